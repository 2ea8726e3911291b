// Convolutions of windows 3 x 3 by Winograd's products F(4 x 4, 3 x 3), compiled once per instruction set: Lavin and
// Gray 2015, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308. Bounds: docs/adversarial.md.
#include "aisec_fast/winograd.hpp"

#include "kernels/families.hpp"
#include "kernels/wide_floats.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr std::size_t side = winograd_side, patch = winograd_patch, points = winograd_points;
static_assert(winograd_channels % wide_lanes == 0);

inline Wide all(float value) { return value - Wide{}; }
// NaN stays, in either.
inline Wide above_zero(Wide value, Wide mask) { return mask <= Wide{} ? Wide{} : value; }

// B^T d: from six values of a row or column of a patch to the six points.
inline void to_points(const Wide (&d)[patch], Wide (&v)[patch]) {
  const Wide four = all(4.0f), two = all(2.0f);
  const Wide a = multiply_add_wide(-four, d[2], d[4]), b = multiply_add_wide(-four, d[1], d[3]);  // of points 1 and -1
  const Wide c = d[4] - d[2], e = d[3] - d[1];                                                    // of points 2 and -2
  v[0] = multiply_add_wide(four, d[0] - d[2], c);
  v[1] = a + b;
  v[2] = a - b;
  v[3] = multiply_add_wide(two, e, c);
  v[4] = multiply_add_wide(-two, e, c);
  v[5] = multiply_add_wide(four, d[1] - d[3], d[5] - d[3]);
}

// A^T m: from six points to four values.
inline void from_points(const Wide (&m)[patch], Wide (&y)[side]) {
  const Wide four = all(4.0f), two = all(2.0f), eight = all(8.0f);
  const Wide a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
  y[0] = m[0] + a + c;
  y[1] = multiply_add_wide(two, d, b);
  y[2] = multiply_add_wide(four, c, a);
  y[3] = multiply_add_wide(eight, d, b) + m[5];
}

struct Tile {
  std::size_t image, row, column;  // of its first pixel in the result
};

Tile tile_at(const WinogradShape& shape, std::size_t number) {
  const std::size_t across = shape.tile_columns(), each = across * shape.tile_rows();
  return {number / each, number % each / across * side, number % across * side};
}

// spread[point][tile][channel] of the patches of `count` tiles from `first` on.
template <bool masked>
void spread_patches(const WinogradShape& shape, const WinogradArrays& arrays, std::size_t first, std::size_t count,
                    float* spread) {
  const std::size_t channels = shape.channels, row_step = shape.columns * channels, point_step = count * channels;
  const std::size_t rows = shape.above + shape.rows + shape.below;
  for (std::size_t t = 0; t < count; ++t) {
    const Tile tile = tile_at(shape, first + t);
    const std::size_t image = tile.image * rows * row_step;
    for (std::size_t k = 0; k < channels; k += wide_lanes) {
      Wide half[patch][patch];  // [column][point of rows]
      for (std::size_t j = 0; j < patch; ++j) {
        const std::size_t column = tile.column + j - 1;  // wraps round to the left of the image
        Wide d[patch] = {};
        if (column < shape.columns)
          for (std::size_t i = 0; i < patch; ++i) {
            const std::size_t row = shape.above + tile.row + i - 1;
            if (row >= rows) continue;
            const std::size_t at = image + row * row_step + column * channels + k;
            d[i] = load_wide(arrays.x + at);
            if constexpr (masked) d[i] = above_zero(d[i], load_wide(arrays.mask + at));
          }
        to_points(d, half[j]);
      }
      float* to = spread + t * channels + k;
      for (std::size_t i = 0; i < patch; ++i) {
        Wide d[patch], v[patch];
        for (std::size_t j = 0; j < patch; ++j) d[j] = half[j][i];
        to_points(d, v);
        for (std::size_t j = 0; j < patch; ++j, to += point_step) store_wide(to, v[j]);
      }
    }
  }
}

// to[r][..] = sum over c of from[r][c] * weights[c][..], for `rows_` rows and `vectors_` vectors of outputs.
template <std::size_t rows_, std::size_t vectors_>
inline void products(const float* from, std::size_t channels, const float* weights, std::size_t outputs, float* to) {
  Wide sums[rows_][vectors_] = {};
  for (std::size_t c = 0; c < channels; ++c, weights += outputs) {
    Wide right[vectors_];
    for (std::size_t v = 0; v < vectors_; ++v) right[v] = load_wide(weights + v * wide_lanes);
    for (std::size_t r = 0; r < rows_; ++r) {
      const Wide left = all(from[r * channels + c]);
      for (std::size_t v = 0; v < vectors_; ++v) sums[r][v] = multiply_add_wide(left, right[v], sums[r][v]);
    }
  }
  for (std::size_t r = 0; r < rows_; ++r)
    for (std::size_t v = 0; v < vectors_; ++v) store_wide(to + r * outputs + v * wide_lanes, sums[r][v]);
}

constexpr std::size_t most_rows = AISEC_WIDTH == 64 ? 12 : 6;  // as many sums at a time as registers hold

template <std::size_t rows_, std::size_t vectors_>
void rest_of_rows(std::size_t rows, const float* from, std::size_t channels, const float* weights, std::size_t outputs,
                  float* to) {
  if constexpr (rows_ > 0) {
    if (rows == rows_)
      products<rows_, vectors_>(from, channels, weights, outputs, to);
    else
      rest_of_rows<rows_ - 1, vectors_>(rows, from, channels, weights, outputs, to);
  }
}

// At every point: [count, channels] times [channels, outputs].
template <std::size_t vectors>
void multiply(const WinogradShape& shape, const float* weights, std::size_t count, const float* spread,
              float* gathered) {
  const std::size_t channels = shape.channels, outputs = shape.outputs;
  for (std::size_t point = 0; point < points; ++point) {
    const float* from = spread + point * count * channels;
    float* to = gathered + point * count * outputs;
    const float* right = weights + point * channels * outputs;
    for (std::size_t k = 0; k < outputs; k += vectors * wide_lanes) {
      std::size_t r = 0;
      for (; r + most_rows <= count; r += most_rows)
        products<most_rows, vectors>(from + r * channels, channels, right + k, outputs, to + r * outputs + k);
      rest_of_rows<most_rows - 1, vectors>(count - r, from + r * channels, channels, right + k, outputs,
                                           to + r * outputs + k);
    }
  }
}

void gather(const WinogradShape& shape, const WinogradArrays& arrays, std::size_t first, std::size_t count,
            const float* gathered) {
  const std::size_t outputs = shape.outputs, row_step = shape.columns * outputs, point_step = count * outputs;
  for (std::size_t t = 0; t < count; ++t) {
    const Tile tile = tile_at(shape, first + t);
    const std::size_t corner = ((tile.image * shape.rows + tile.row) * shape.columns + tile.column) * outputs;
    for (std::size_t k = 0; k < outputs; k += wide_lanes) {
      const float* from = gathered + t * outputs + k;
      Wide half[side][patch];
      for (std::size_t j = 0; j < patch; ++j) {
        Wide m[patch], y[side];
        for (std::size_t i = 0; i < patch; ++i) m[i] = load_wide(from + (i * patch + j) * point_step);
        from_points(m, y);
        for (std::size_t i = 0; i < side; ++i) half[i][j] = y[i];
      }
      const Wide bias = arrays.bias == nullptr ? Wide{} : load_wide(arrays.bias + k);
      for (std::size_t i = 0; i < side && tile.row + i < shape.rows; ++i) {
        Wide y[side];
        from_points(half[i], y);
        const std::size_t at = corner + i * row_step + k;
        for (std::size_t j = 0; j < side && tile.column + j < shape.columns; ++j) {
          Wide value = y[j] + bias;
          if (arrays.added != nullptr) value += load_wide(arrays.added + at + j * outputs);
          if (arrays.relu) value = above_zero(value, value);
          store_wide(arrays.out + at + j * outputs, value);
        }
      }
    }
  }
}

void convolve(const WinogradShape& shape, const WinogradArrays& arrays, std::size_t first, std::size_t last,
              std::size_t at_once, float* memory) {
  float* const gathered = memory + points * at_once * shape.channels;
  for (std::size_t begin = first; begin < last; begin += at_once) {
    const std::size_t count = last - begin < at_once ? last - begin : at_once;
    if (arrays.mask == nullptr)
      spread_patches<false>(shape, arrays, begin, count, memory);
    else
      spread_patches<true>(shape, arrays, begin, count, memory);
    if (shape.outputs % (2 * wide_lanes) == 0)
      multiply<2>(shape, arrays.weights, count, memory, gathered);
    else
      multiply<1>(shape, arrays.weights, count, memory, gathered);
    gather(shape, arrays, begin, count, gathered);
  }
}

// Images [channels, rows, columns] are turned, pixels first, in memory that stays in the cache, and results back.
void convolve_planes(const WinogradShape& shape, const WinogradArrays& arrays, const WinogradBlocks& blocks,
                     std::size_t first, std::size_t last, float* memory) {
  const std::size_t bands = blocks.bands(shape), plane = shape.rows * shape.columns;
  float* const x = memory;
  float* const out = x + blocks.values_of_x(shape);
  float* const rest = out + blocks.values_of_result(shape);
  for (std::size_t item = first, count = 1; item < last; item += count) {
    count = bands == 1 ? least(blocks.images, last - item) : 1;
    const std::size_t image = item / bands, row = item % bands * blocks.rows;
    WinogradShape part = shape;
    part.images = count;
    part.rows = least(blocks.rows, shape.rows - row);
    part.above = row > 0;
    part.below = row + part.rows < shape.rows;
    const std::size_t taken = (part.above + part.rows + part.below) * shape.columns, made = part.rows * shape.columns;
    for (std::size_t i = 0; i < count; ++i)
      transpose_copy(arrays.x + (image + i) * shape.channels * plane + (row - part.above) * shape.columns, plane,
                     shape.channels, taken, x + i * taken * shape.channels, shape.channels, shape.channels);
    convolve(part, {x, arrays.weights, nullptr, arrays.bias, nullptr, out, false}, 0, part.tiles(), blocks.tiles, rest);
    for (std::size_t i = 0; i < count; ++i)
      store_transposed(out + i * made * shape.outputs, shape.outputs, made, shape.outputs,
                       arrays.out + (image + i) * shape.outputs * plane + row * shape.columns, plane);
  }
}

typedef double WideDoubles __attribute__((vector_size(AISEC_WIDTH)));
typedef float Half __attribute__((vector_size(AISEC_WIDTH / 2)));
typedef float UnalignedHalf __attribute__((vector_size(AISEC_WIDTH / 2), aligned(4), may_alias));

// G of the paper: from three values to the points.
inline void to_points(const WideDoubles (&g)[3], WideDoubles (&v)[patch]) {
  const WideDoubles sides = g[0] + g[2], far = g[0] * (1.0 / 24.0) + g[2] * (1.0 / 6.0), middle = g[1] * (1.0 / 12.0);
  v[0] = g[0] * 0.25;
  v[1] = (sides + g[1]) * (-1.0 / 6.0);
  v[2] = (sides - g[1]) * (-1.0 / 6.0);
  v[3] = far + middle;
  v[4] = far - middle;
  v[5] = g[2];
}

// In float64: each weight is rounded to float32 once. `row` holds the points of one channel: what is written then is
// long enough to be fetched ahead.
void spread_windows(const WinogradWindows& windows, std::size_t first, std::size_t last, float* row, float* weights) {
  constexpr std::size_t lanes = wide_lanes / 2;
  const std::size_t outputs = windows.outputs;
  for (std::size_t channel = first; channel < last; ++channel) {
    for (std::size_t k = 0; k < outputs; k += lanes) {
      alignas(64) float values[9][lanes];
      for (std::size_t lane = 0; lane < lanes; ++lane) {
        const float* from = windows.values + channel * windows.channel_step + (k + lane) * windows.output_step;
        for (std::size_t i = 0; i < 9; ++i) values[i][lane] = from[windows.turned ? 8 - i : i];
      }
      WideDoubles half[3][patch];
      for (std::size_t j = 0; j < 3; ++j) {
        WideDoubles g[3];
        for (std::size_t i = 0; i < 3; ++i)
          g[i] = __builtin_convertvector(*reinterpret_cast<const UnalignedHalf*>(values[i * 3 + j]), WideDoubles);
        to_points(g, half[j]);
      }
      for (std::size_t i = 0; i < patch; ++i) {
        WideDoubles v[patch];
        to_points({half[0][i], half[1][i], half[2][i]}, v);
        for (std::size_t j = 0; j < patch; ++j)
          *reinterpret_cast<UnalignedHalf*>(row + (i * patch + j) * outputs + k) = __builtin_convertvector(v[j], Half);
      }
    }
    for (std::size_t point = 0; point < points; ++point)
      for (std::size_t k = 0; k < outputs; k += wide_lanes)
        store_wide(weights + (point * windows.channels + channel) * outputs + k, load_wide(row + point * outputs + k));
  }
}

}  // namespace

WinogradKernels winograd_kernels() { return {&convolve, &convolve_planes, &spread_windows}; }

}  // namespace aisec_fast::AISEC_ISA
