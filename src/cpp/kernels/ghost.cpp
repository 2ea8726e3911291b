// Norms of per-sample gradients without (or with cheaply) forming them, compiled once per instruction set. Order of the
// sums and what rounding may do: docs/ghost.md.
#include "aisec_fast/ghost_math.hpp"
#include "kernels/families.hpp"
#include "kernels/standard_arithmetic.hpp"
#include "kernels/wide_floats.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// ---------------------------------------------------------------------------------------------------- gram_squares

constexpr std::size_t tile_rows = 4, tile_columns = AISEC_WIDTH == 64 ? 4 : 3;  // with vectors of 64 bytes there are 32
constexpr std::size_t gram_chunk = least(lane_roundings * wide_lanes, 512);     // values that are added in float32
constexpr std::size_t strip = 8;  // rows whose chunk stays in the first-level cache
constexpr std::size_t packed_width =
    gram_chunk + 16;                                 // a pitch that is no power of two: neighbours in other cache sets
constexpr std::size_t packed_rows = gram_block + 2;  // what the last tile of three columns reads beyond the block

struct GramScratch {
  alignas(64) float first[packed_rows][packed_width], second[packed_rows][packed_width];
  alignas(64) double inputs[packed_rows][gram_block], outputs[packed_rows][gram_block];  // [t][s]
};

// Columns begin, ..., begin + count - 1 of the tokens from `first` on, and zeros up to whole vectors.
void pack(const float* tokens, std::size_t length, std::size_t width, std::size_t first, std::size_t begin,
          std::size_t count, float (&to)[packed_rows][packed_width]) {
  const std::size_t rows = least(gram_block, length - first), whole = round_wide(count);
  for (std::size_t r = 0; r < rows; ++r) {
    const float* from = tokens + (first + r) * width + begin;
    for (std::size_t i = 0; i < count; ++i) to[r][i] = from[i];
    for (std::size_t i = count; i < whole; ++i) to[r][i] = 0.0f;
  }
  for (std::size_t r = rows; r < least(rows + tile_rows - 1, packed_rows); ++r)  // the rest of the last tiles
    for (std::size_t i = 0; i < whole; ++i) to[r][i] = 0.0f;
}

// sums[i] = the sum of column i over the tokens, one after the other.
void add_rows(const float (&tokens)[packed_rows][packed_width], std::size_t rows, std::size_t count, float* sums) {
  for (std::size_t i = 0; i < count; i += float_lanes) {
    Floats sum = load(tokens[0] + i);
    for (std::size_t r = 1; r < rows; ++r) sum += load(tokens[r] + i);
    if (i + float_lanes <= count) {
      store(sums + i, sum);
      continue;
    }
    alignas(64) float edge[float_lanes];
    store(edge, sum);
    for (std::size_t lane = 0; i + lane < count; ++lane) sums[i + lane] = edge[lane];
  }
}

// Tokens that are worked on: two blocks of them, or the same twice.
struct Blocks {
  const float* tokens;
  std::size_t width, first, second;
};

// What pack() copies of a block: the columns from `begin` on.
Ahead fetched(const Blocks& blocks, std::size_t first, std::size_t length, std::size_t begin, std::size_t count) {
  const std::size_t rows = count == 0 ? 0 : least(gram_block, length - first);
  return Ahead(blocks.tokens, first * blocks.width + begin, blocks.width, rows, count);
}

// gram[t][s] = a_s . a_t for the tokens s of one block and t of another, or the same: then where s <= t alone.
// `then`, if it has tokens, is what will be worked on after that.
void gram_of(const Blocks& blocks, std::size_t length, const Blocks& then, GramScratch& scratch,
             double (&gram)[packed_rows][gram_block], float* sums = nullptr) {
  const auto [tokens, width, first, second] = blocks;
  const bool same = first == second;
  const std::size_t rows = least(gram_block, length - first), columns = least(gram_block, length - second);
  if (width == 0)
    for (std::size_t t = 0; t < columns; ++t)
      for (std::size_t s = 0; s < gram_block; ++s) gram[t][s] = 0.0;
  for (std::size_t begin = 0; begin < width; begin += gram_chunk) {
    const std::size_t count = least(gram_chunk, width - begin);
    pack(tokens, length, width, first, begin, count, scratch.first);
    if (!same) pack(tokens, length, width, second, begin, count, scratch.second);
    if (sums != nullptr) add_rows(scratch.first, rows, count, sums + begin);
    const auto& other = same ? scratch.first : scratch.second;
    const bool more = begin + gram_chunk < width;
    const Blocks& soon = more ? blocks : then;
    const std::size_t next = more ? begin + gram_chunk : 0;
    const std::size_t next_count = soon.tokens == nullptr ? 0 : least(gram_chunk, soon.width - next);
    Ahead ahead = fetched(soon, soon.first, length, next, next_count);
    Ahead later = fetched(soon, soon.second, length, next, soon.first == soon.second ? 0 : next_count);
    const std::size_t tiles = (rows + tile_rows - 1) / tile_rows * ((columns + tile_columns - 1) / tile_columns);
    const std::size_t times = (count + 8 * wide_lanes - 1) / (8 * wide_lanes);
    const std::size_t lines = Ahead::count(2 * gram_block, next_count) / (tiles * times) + 1;
    for (std::size_t top = 0; top < rows; top += strip)
      for (std::size_t t = same ? top / tile_columns * tile_columns : 0; t < columns; t += tile_columns) {
        const std::size_t end = least(top + strip, same ? least(rows, t + tile_columns) : rows);
        for (std::size_t s = top; s < end; s += tile_rows)
          add_dots<tile_columns>(scratch.first[s], other[t], packed_width, round_wide(count),
                                 ahead.done() ? later : ahead, lines, begin > 0, &gram[t][s], gram_block);
      }
  }
}

// The sum of a[s] g[s], in lanes and then over them.
double add_up(const double* a, const double* g, std::size_t count) {
  constexpr std::size_t lanes = 8;
  typedef double Lanes __attribute__((vector_size(8 * lanes)));
  typedef double UnalignedLanes __attribute__((vector_size(8 * lanes), aligned(8), may_alias));
  Lanes sums = {};
  std::size_t s = 0;
  for (; s + lanes <= count; s += lanes)
    sums += *reinterpret_cast<const UnalignedLanes*>(a + s) * *reinterpret_cast<const UnalignedLanes*>(g + s);
  double sum = 0.0;
  for (; s < count; ++s) sum += a[s] * g[s];
  for (std::size_t lane = 0; lane < lanes; ++lane) sum += sums[lane];
  return sum;
}

// The part of the sum over pairs of tokens (s, t), s <= t, whose s is in block `row`.
// lengths[s] = an upper bound of |a_s| |g_s| for those s; `sums` of their outputs, if it is not null.
double gram_row(const GramShape& shape, const float* inputs, const float* outputs, std::size_t row,
                const float* next_inputs, void* memory, double* lengths, float* sums) {
  const StandardArithmetic standard;
  GramScratch& scratch = *static_cast<GramScratch*>(memory);
  const std::size_t first = row * gram_block;
  double total = 0.0;
  for (std::size_t second = first; second < shape.length; second += gram_block) {
    const Blocks a_blocks{inputs, shape.inputs, first, second}, g_blocks{outputs, shape.outputs, first, second};
    const bool more = second + gram_block < shape.length;
    const Blocks then =
        more ? Blocks{inputs, shape.inputs, first, second + gram_block} : Blocks{next_inputs, shape.inputs, 0, 0};
    gram_of(a_blocks, shape.length, g_blocks, scratch, scratch.inputs);
    gram_of(g_blocks, shape.length, then, scratch, scratch.outputs, second == first ? sums : nullptr);
    const std::size_t columns = least(gram_block, shape.length - second);
    for (std::size_t t = 0; t < columns; ++t) {
      const double *a = scratch.inputs[t], *g = scratch.outputs[t];
      const std::size_t last = second == first ? t : least(gram_block, shape.length - first);
      total += 2.0 * add_up(a, g, last);
      if (second == first) {
        total += a[t] * g[t];
        lengths[first + t] =
            length_bound(a[t], dot_roundings(shape.inputs)) * length_bound(g[t], dot_roundings(shape.outputs));
      }
    }
  }
  return total;
}

// ------------------------------------------------------------------------------------------------------- conv_rows

// The bound of conv_rows: sums of squares over the pixels of each patch, first along its columns, then along its rows.
std::size_t bound_scratch(const ConvShape& c) {
  return 2 * (c.rows * c.columns + c.rows * c.out_columns + c.out_rows * c.out_columns);
}
double conv_bound(const ConvShape& c, const float* x, const float* g, float* memory) {
  const StandardArithmetic standard;
  const std::size_t plane = c.rows * c.columns, positions = c.out_rows * c.out_columns;
  const std::size_t channels = c.channels / c.groups, outputs = c.out_channels / c.groups;
  double *pixels = reinterpret_cast<double*>(memory), *lines = pixels + plane,
         *lengths = lines + c.rows * c.out_columns;
  const auto add_planes = [](const float* from, std::size_t count, std::size_t size, double* to) {
    for (std::size_t i = 0; i < size; ++i) to[i] = 0.0;
    for (std::size_t j = 0; j < count; ++j, from += size)
      for (std::size_t i = 0; i < size; ++i) to[i] += static_cast<double>(from[i]) * static_cast<double>(from[i]);
  };
  double bound = 0.0;
  for (std::size_t group = 0; group < c.groups; ++group) {
    add_planes(x + group * channels * plane, channels, plane, pixels);
    add_planes(g + group * outputs * positions, outputs, positions, lengths);
    for (std::size_t r = 0; r < c.rows; ++r)
      for (std::size_t j = 0; j < c.out_columns; ++j) {
        double sum = 0.0;
        for (std::size_t k = 0; k < c.kernel[1]; ++k) {
          const std::size_t at = j * c.stride[1] + k * c.dilation[1] - c.before[1];
          if (at < c.columns) sum += pixels[r * c.columns + at];
        }
        lines[r * c.out_columns + j] = sum;
      }
    double total = 0.0;
    for (std::size_t i = 0; i < c.out_rows; ++i)
      for (std::size_t j = 0; j < c.out_columns; ++j) {
        double sum = 0.0;
        for (std::size_t k = 0; k < c.kernel[0]; ++k) {
          const std::size_t at = i * c.stride[0] + k * c.dilation[0] - c.before[0];
          if (at < c.rows) sum += lines[at * c.out_columns + j];
        }
        total += sqrt(sum * lengths[i * c.out_columns + j]);
      }
    bound += total * total;
  }
  return sqrt(bound) * exact_margin(c.channels * c.kernel[0] * c.kernel[1] + c.out_channels + positions);
}

constexpr std::size_t tile_taps = 6, tile_vectors = 2, tile_outputs = tile_vectors * float_lanes;
constexpr std::size_t flushed_taps = 48;  // taps whose gradients are transposed together: whole tiles and whole vectors

// The pixels that a group's kernel reaches, zeros included: rows x columns, one plane a channel.
struct Padded {
  std::size_t rows, columns;
};
AISEC_HD Padded padded(const ConvShape& c) {
  return {(c.out_rows - 1) * c.stride[0] + (c.kernel[0] - 1) * c.dilation[0] + 1,
          (c.out_columns - 1) * c.stride[1] + (c.kernel[1] - 1) * c.dilation[1] + 1};
}

void pad_planes(const ConvShape& c, const float* x, std::size_t planes, float* to) {
  const Padded size = padded(c);
  const std::size_t left = c.before[1], last = least(size.columns, left + c.columns);
  for (std::size_t plane = 0; plane < planes; ++plane)
    for (std::size_t r = 0; r < size.rows; ++r, to += size.columns) {
      const bool real = r >= c.before[0] && r - c.before[0] < c.rows;
      const float* from = x + (plane * c.rows + r - c.before[0]) * c.columns;
      std::size_t i = 0;
      for (; i < (real ? least(left, last) : size.columns); ++i) to[i] = 0.0f;
      for (; i < last; ++i) to[i] = from[i - left];
      for (; i < size.columns; ++i) to[i] = 0.0f;
    }
}

// Values of whole cache lines, so that no vector of what comes after them lies across two.
AISEC_HD std::size_t whole_lines(std::size_t values) { return (values + 15) / 16 * 16; }

std::size_t rows_scratch(const ConvShape& c) {
  const Padded size = padded(c);
  const std::size_t positions = c.out_rows * c.out_columns, outputs = c.out_channels / c.groups;
  const std::size_t blocks = (outputs + tile_outputs - 1) / tile_outputs;
  const std::size_t taps = c.channels / c.groups * c.kernel[0] * c.kernel[1];
  const std::size_t product = whole_lines(2 * (taps + tile_taps)) +
                              whole_lines(c.channels / c.groups * size.rows * size.columns) +
                              blocks * positions * tile_outputs;
  return product > bound_scratch(c) ? product : bound_scratch(c);
}

// to[tap * pitch + output]: the gradients of tile_taps taps, at these offsets of the pixels, for `vectors` vectors of
// outputs. Only the first `count` taps are real: squared, and stored.
template <std::size_t vectors>
AISEC_HD void row_tile(const float* planes, const std::size_t* offsets, const float* panel, const Walk& walk,
                       std::size_t count, float* to, std::size_t pitch, bool passing, Squares& squares) {
  const float* pixels[tile_taps];
  for (std::size_t r = 0; r < tile_taps; ++r) pixels[r] = planes + offsets[r];
  Floats sums[tile_taps][vectors];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < tile_taps; ++r)
    for (std::size_t v = 0; v < vectors; ++v) sums[r][v] = Floats{};
  add_products(pixels, panel, float_lanes, walk, sums);
  for (std::size_t r = 0; r < tile_taps; ++r)
    for (std::size_t v = 0; v < vectors && r < count; ++v) {
      float* const place = to + r * pitch + v * float_lanes;
      passing ? stream(place, sums[r][v]) : store(place, sums[r][v]);
      squares.add(sums[r][v], 2 * v);
    }
}

// sums[v] = the sum over the positions of output v of a panel, v < here, in their order. Not inlined: the tiles beside
// it would have fewer registers.
__attribute__((noinline)) void add_positions(const float* panel, std::size_t positions, std::size_t here, float* sums) {
  Floats added[tile_vectors] = {};
  for (std::size_t t = 0; t < positions; ++t)
    for (std::size_t v = 0; v < tile_vectors; ++v) added[v] += load(panel + t * tile_outputs + v * float_lanes);
  alignas(64) float all[tile_outputs];
  for (std::size_t v = 0; v < tile_vectors; ++v) store(all + v * float_lanes, added[v]);
  for (std::size_t i = 0; i < here; ++i) sums[i] = all[i];
}

// What the next sample reads, into the second level of the cache a few lines at a time: it is cold if the backward pass
// has not come by yet, and the first to touch each line of a plane would wait for it.
class NextSample {
 public:
  NextSample(const float* values, std::size_t count) : from_(values), count_(count) {}

  void fetch(std::size_t lines) {
    for (; lines > 0 && at_ < count_; --lines, at_ += 16) __builtin_prefetch(from_ + at_, 0, 2);
  }
  std::size_t lines() const { return count_ / 16 + 1; }

 private:
  const float* from_;
  std::size_t count_, at_ = 0;
};

// rows [out_channels, channels / groups, kernel...], or with the outputs last: one sample's gradient; its squared norm,
// and its bound. `sums`, if it is not null: [out_channels], the gradient of the bias.
SampleNorm conv_rows(const ConvShape& c, const float* x, const float* g, bool bounded, float* memory, float* rows,
                     RowOrder order, float* sums) {
  const StandardArithmetic standard;
  // Where all that is read are pixels they are read in their place.
  const Padded needed = padded(c);
  const bool real = c.before[0] == 0 && c.before[1] == 0 && needed.rows <= c.rows && needed.columns <= c.columns;
  const Padded size = real ? Padded{c.rows, c.columns} : needed;
  const std::size_t positions = c.out_rows * c.out_columns, outputs = c.out_channels / c.groups;
  const std::size_t channels = c.channels / c.groups, taps = channels * c.kernel[0] * c.kernel[1];
  const std::size_t blocks = (outputs + tile_outputs - 1) / tile_outputs;
  std::size_t* offsets = reinterpret_cast<std::size_t*>(memory);
  float* planes = memory + whole_lines(2 * (taps + tile_taps));
  float* panels = planes + whole_lines(channels * needed.rows * needed.columns);
  const std::size_t row_values = c.out_channels * taps;
  std::size_t tap = 0;
  for (std::size_t channel = 0; channel < channels; ++channel)
    for (std::size_t kr = 0; kr < c.kernel[0]; ++kr)
      for (std::size_t kc = 0; kc < c.kernel[1]; ++kc)
        offsets[tap++] = (channel * size.rows + kr * c.dilation[0]) * size.columns + kc * c.dilation[1];
  for (; tap < taps + tile_taps; ++tap) offsets[tap] = offsets[taps - 1];  // computed again, never stored
  const Walk walk{c.out_rows,  c.out_columns, c.stride[0] * size.columns, c.stride[1], c.out_columns * tile_outputs,
                  tile_outputs};
  NextSample next_x(x + c.channels * c.rows * c.columns, c.channels * c.rows * c.columns);
  NextSample next_g(g + c.out_channels * positions, c.out_channels * positions);
  const std::size_t tiles = c.groups * blocks * ((taps + tile_taps - 1) / tile_taps);
  const std::size_t lines_x = next_x.lines() / tiles + 1, lines_g = next_g.lines() / tiles + 1;
  const bool taps_first = order != RowOrder::outputs, passing = order == RowOrder::passing_taps;
  Squares squares;
  for (std::size_t group = 0; group < c.groups; ++group) {
    const float* pixels = x + group * channels * c.rows * c.columns;
    if (!real) {
      pad_planes(c, pixels, channels, planes);
      pixels = planes;
    }
    for (std::size_t block = 0; block < blocks; ++block) {
      const std::size_t first = block * tile_outputs, here = least(tile_outputs, outputs - first);
      float* panel = panels + block * positions * tile_outputs;
      transpose_copy(g + (group * outputs + first) * positions, positions, here, positions, panel, tile_outputs,
                     tile_outputs);
      if (sums != nullptr) add_positions(panel, positions, here, sums + group * outputs + first);
      float* to = rows + (group * outputs + first) * taps;
      // Whole vectors of outputs that lie next to one another are stored at once.
      const bool directly = taps_first && here % float_lanes == 0;
      for (std::size_t begin = 0; begin < taps; begin += flushed_taps) {
        alignas(64) float done[flushed_taps * tile_outputs];
        const std::size_t count = least(flushed_taps, taps - begin);
        for (std::size_t t = count; t < round_up(count) && !directly; ++t)  // squares are transposed whole
          for (std::size_t i = 0; i < tile_outputs; ++i) done[t * tile_outputs + i] = 0.0f;
        for (std::size_t t = 0; t < count; t += tile_taps) {
          // Memory gets ready for the next sample's gradients while these are computed.
          const float* soon = rows + row_values + (group * outputs + first) * taps + (begin + t) * here;
          if (!passing)
            for (std::size_t i = 0; i < tile_taps * here; i += 16) __builtin_prefetch(soon + i, 1, 2);
          next_x.fetch(lines_x);
          next_g.fetch(lines_g);
          float* const place = directly ? rows + (begin + t) * outputs + first : done + t * tile_outputs;
          const std::size_t pitch = directly ? outputs : tile_outputs;
          if (here > float_lanes)
            row_tile<tile_vectors>(pixels, offsets + begin + t, panel, walk, count - t, place, pitch, passing, squares);
          else
            row_tile<1>(pixels, offsets + begin + t, panel, walk, count - t, place, pitch, passing, squares);
        }
        if (directly) continue;
        // Columns of `done` that stand for no output are not stored.
        if (!taps_first) store_transposed(done, tile_outputs, count, here, to + begin, taps);
        for (std::size_t t = 0; t < count && taps_first; ++t)
          for (std::size_t i = 0; i < here; ++i) rows[(begin + t) * outputs + first + i] = done[t * tile_outputs + i];
      }
    }
  }
  if (passing) end_of_stream();
  return finished(squares.total(), bounded ? conv_bound(c, x, g, memory) : 0.0);
}

// ----------------------------------------------------------------------------------------------- conv_gram_squares

// Pixels whose positions differ by multiples of the stride are a class, the points of a lattice. Output (i, j) reads,
// for a kernel offset of the class, the point (i, j) + an offset: zero where no pixel is.
struct Range {
  std::size_t first, count, start;  // of the points that are pixels; the first one's pixel
};
// Points i of a class, i < size, with a pixel: 0 <= i * stride + residue - before < pixels.
AISEC_HD Range real_points(std::size_t size, std::size_t stride, std::size_t residue, std::size_t before,
                           std::size_t pixels) {
  const std::size_t first = before > residue ? (before - residue + stride - 1) / stride : 0;
  const std::size_t start = first * stride + residue - before;
  const std::size_t inside = start < pixels ? (pixels - start + stride - 1) / stride : 0;
  return {first, first < size ? least(inside, size - first) : 0, start};
}

// The lattice of every class and of the outputs: rows of `pitch` points, of which vectors may overwrite the last.
struct Lattice {
  std::size_t rows, columns, pitch, points;
};
Lattice lattice_of(const ConvShape& c) {
  const std::size_t rows = c.out_rows + (c.kernel[0] - 1) * c.dilation[0] / c.stride[0];
  const std::size_t columns = c.out_columns + (c.kernel[1] - 1) * c.dilation[1] / c.stride[1];
  std::size_t pitch = columns;
  const auto make_room = [&](std::size_t first, std::size_t count) {
    const std::size_t end = first + round_up(count);
    pitch = end > pitch ? end : pitch;
  };
  make_room(0, c.out_columns);
  for (std::size_t residue = 0; residue < c.stride[1]; ++residue) {
    const Range range = real_points(columns, c.stride[1], residue, c.before[1], c.columns);
    make_room(range.first, range.count);
  }
  return {rows, columns, pitch, rows * pitch + float_lanes};
}

// From one plane of `size` values to the next: an odd number of cache lines, so that a point's channels lie in many
// sets.
AISEC_HD std::size_t plane_pitch(std::size_t size) { return ((size + 15) / 16 | 1) * 16; }

// The points of a class as planes, one a channel; rows of whole vectors, filled up with zeros.
void copy_points(const float* x, std::size_t channels, std::size_t plane, const Range& rows, const Range& columns,
                 std::size_t pixels_a_row, std::size_t down, std::size_t right, float* planes) {
  const std::size_t width = round_up(columns.count), pitch = plane_pitch(rows.count * width);
  for (std::size_t channel = 0; channel < channels; ++channel)
    for (std::size_t r = 0; r < rows.count; ++r) {
      const float* from = x + channel * plane + (rows.start + r * down) * pixels_a_row + columns.start;
      float* to = planes + channel * pitch + r * width;
      if (right == 1)
        for (std::size_t i = 0; i < columns.count; ++i) to[i] = from[i];
      else
        for (std::size_t i = 0; i < columns.count; ++i) to[i] = from[i * right];
      for (std::size_t i = columns.count; i < width; ++i) to[i] = 0.0f;
    }
}

// gram[s * points + t] = sum over channels of point s times point t, s <= t, for the points of `rows` x `columns` from
// (first_row, first_column) on; `planes` holds them, rows of whole vectors. Other entries t > s are zero.
void gram_of_planes(const float* planes, std::size_t channels, std::size_t first_row, std::size_t rows,
                    std::size_t first_column, std::size_t columns, const Lattice& lattice, float* gram) {
  for (std::size_t s = 0; s < lattice.points; ++s)  // from the diagonal on: no more is ever read
    for (std::size_t i = s; i < lattice.points; ++i) gram[s * lattice.points + i] = 0.0f;
  const std::size_t width = round_up(columns), size = rows * width, vectors = size / float_lanes;
  const std::size_t pitch = plane_pitch(size);
  const auto point_of = [&](std::size_t i) {
    return (first_row + i / width) * lattice.pitch + first_column + i % width;
  };
  for (std::size_t vector = 0; vector < vectors; vector += tile_vectors) {
    const std::size_t t = vector * float_lanes, last = t + tile_vectors * float_lanes;  // s >= last: another tile
    std::size_t next = 0;
    while (next < size && next < last) {
      std::size_t s[tile_taps];
      const float* pixels[tile_taps];
      std::size_t found = 0;
      for (; found < tile_taps && next < size && next < last; ++next)
        if (next % width < columns) s[found++] = next;
      if (found == 0) break;
      for (std::size_t r = 0; r < tile_taps; ++r) pixels[r] = planes + s[r < found ? r : 0];
      Floats sums[tile_taps][tile_vectors] = {};
      for (std::size_t begin = 0; begin < channels; begin += channel_chunk) {
        const Walk walk{1, least(channel_chunk, channels - begin), 0, pitch, 0, pitch};
        Floats part[tile_taps][tile_vectors] = {};
        const float* from[tile_taps];
        for (std::size_t r = 0; r < tile_taps; ++r) from[r] = pixels[r] + begin * pitch;
        add_products(from, planes + begin * pitch + t, float_lanes, walk, part);
        for (std::size_t r = 0; r < tile_taps; ++r)
          for (std::size_t v = 0; v < tile_vectors; ++v) sums[r][v] += part[r][v];
      }
      for (std::size_t r = 0; r < found; ++r)
        for (std::size_t v = 0; v < tile_vectors && vector + v < vectors; ++v)
          store(gram + point_of(s[r]) * lattice.points + point_of(t + v * float_lanes), sums[r][v]);
    }
  }
}

struct GramScratchSizes {
  std::size_t planes, gram, taps, points;
};
GramScratchSizes gram_sizes(const ConvShape& c) {
  const Lattice lattice = lattice_of(c);
  const std::size_t channels = c.channels / c.groups, outputs = c.out_channels / c.groups;
  return {plane_pitch(lattice.rows * round_up(lattice.columns)) * (channels > outputs ? channels : outputs) +
              2 * float_lanes,
          lattice.points * lattice.points + float_lanes, c.kernel[0] * c.kernel[1], c.out_rows * c.out_columns};
}

std::size_t conv_gram_scratch(const ConvShape& c) {
  const GramScratchSizes sizes = gram_sizes(c);
  return 2 * (sizes.taps + sizes.points) + sizes.planes + 2 * sizes.gram;
}

// The squared norm of one sample's gradient, and its bound.
SampleNorm conv_gram(const ConvShape& c, const float* x, const float* g, float* memory) {
  const StandardArithmetic standard;
  const Lattice lattice = lattice_of(c);
  const GramScratchSizes sizes = gram_sizes(c);
  const std::size_t channels = c.channels / c.groups, outputs = c.out_channels / c.groups;
  std::size_t* offsets = reinterpret_cast<std::size_t*>(memory);
  double* patches = reinterpret_cast<double*>(offsets + sizes.taps);
  float* planes = memory + 2 * (sizes.taps + sizes.points);
  float *pixels = planes + sizes.planes, *gradients = pixels + sizes.gram;
  const std::size_t positions = c.out_rows * c.out_columns, end = (c.out_rows - 1) * lattice.pitch + c.out_columns;
  const std::size_t plane = c.rows * c.columns;

  double square = 0.0, bound = 0.0;
  for (std::size_t group = 0; group < c.groups; ++group) {
    const float *from = x + group * channels * plane, *gradient = g + group * outputs * positions;
    copy_points(gradient, outputs, positions, {0, c.out_rows, 0}, {0, c.out_columns, 0}, c.out_columns, 1, 1, planes);
    gram_of_planes(planes, outputs, 0, c.out_rows, 0, c.out_columns, lattice, gradients);
    for (std::size_t i = 0; i < positions; ++i) patches[i] = 0.0;

    for (std::size_t class_row = 0; class_row < c.stride[0]; ++class_row)
      for (std::size_t class_column = 0; class_column < c.stride[1]; ++class_column) {
        std::size_t taps = 0;
        for (std::size_t kr = 0; kr < c.kernel[0]; ++kr)
          for (std::size_t kc = 0; kc < c.kernel[1]; ++kc) {
            const std::size_t down = kr * c.dilation[0], right = kc * c.dilation[1];
            if (down % c.stride[0] == class_row && right % c.stride[1] == class_column)
              offsets[taps++] = (down / c.stride[0] * lattice.pitch + right / c.stride[1]) * (lattice.points + 1);
          }
        const Range rows = real_points(lattice.rows, c.stride[0], class_row, c.before[0], c.rows);
        const Range columns = real_points(lattice.columns, c.stride[1], class_column, c.before[1], c.columns);
        if (taps == 0 || rows.count == 0 || columns.count == 0) continue;
        copy_points(from, channels, plane, rows, columns, c.columns, c.stride[0], c.stride[1], planes);
        gram_of_planes(planes, channels, rows.first, rows.count, columns.first, columns.count, lattice, pixels);

        for (std::size_t i = 0; i < positions; ++i) {
          const std::size_t s = i / c.out_columns * lattice.pitch + i % c.out_columns;
          const float *row = pixels + s * lattice.points, *weights = gradients + s * lattice.points;
          float own = 0.0f;
          for (std::size_t k = 0; k < taps; ++k) own += row[offsets[k] + s];
          patches[i] += static_cast<double>(own);
          Doubles low = {}, high = {};
          for (std::size_t t = s + 1; t < end;
               t += float_lanes) {  // what lies between or after the outputs has weight 0
            Floats sum = {};
            for (std::size_t k = 0; k < taps; ++k) sum += load(row + offsets[k] + t);
            const Floats weight = load(weights + t);
            low += lower(sum) * lower(weight);
            high += upper(sum) * upper(weight);
          }
          square += 2.0 * add_lanes(low + high) + static_cast<double>(own) * static_cast<double>(weights[s]);
        }
      }
    double lengths = 0.0;
    for (std::size_t i = 0; i < positions; ++i) {
      const std::size_t s = i / c.out_columns * lattice.pitch + i % c.out_columns;
      lengths += length_bound(patches[i], channel_roundings(channels, sizes.taps)) *
                 length_bound(static_cast<double>(gradients[s * lattice.points + s]), channel_roundings(outputs, 0));
    }
    bound += lengths * lengths;
  }
  return finished(square, sqrt(bound) * exact_margin(positions + c.groups));
}

}  // namespace

GhostKernels ghost_kernels() {
  return {sizeof(GramScratch), gram_row, rows_scratch, conv_rows, conv_gram_scratch, conv_gram};
}

}  // namespace aisec_fast::AISEC_ISA
