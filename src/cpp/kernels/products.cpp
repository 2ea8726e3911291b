// Weighted sums of per-sample gradients of linear layers, compiled once per instruction set. Order of the sums and what
// rounding may do: docs/products.md.
#include "kernels/families.hpp"
#include "kernels/standard_arithmetic.hpp"
#include "kernels/wide_floats.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr std::size_t tile_rows = AISEC_WIDTH == 64 ? 8 : 6, tile_vectors = 2;  // vectors of 64 bytes: there are 32
constexpr std::size_t tile_columns = tile_vectors * wide_lanes;

std::size_t whole_tiles(std::size_t count, std::size_t of) { return (count + of - 1) / of * of; }
// A pitch that is no power of two: neighbours in other cache sets.
std::size_t pitch_of(std::size_t outputs) { return whole_tiles(outputs, 48) + 16; }

std::size_t product_scratch(const ProductPart& part) {
  const std::size_t columns = whole_tiles(part.inputs, tile_columns);
  return product_depth * (1 + pitch_of(part.outputs) + columns) + 16 + part.outputs * columns;
}

struct Piece {
  std::size_t first, rows;  // of the tokens of all samples
};

// to[k][c] = factor[k] * the outputs of token k, a row each; zeros where the factor is, and up to whole tiles.
void copy_scaled(const float* from, std::size_t pitch, std::size_t rows, std::size_t columns, const float* factors,
                 float* to, std::size_t to_pitch) {
  const std::size_t whole = whole_tiles(columns, tile_rows);
  for (std::size_t k = 0; k < rows; ++k, from += pitch, to += to_pitch) {
    const float factor = factors[k];
    std::size_t c = 0;
    if (factor != 0.0f)
      for (; c < columns; ++c) to[c] = factor * from[c];
    for (; c < whole; ++c) to[c] = 0.0f;
  }
}

// The inputs in panels of tile_columns values a token, one panel after the other.
void copy_panels(const float* from, std::size_t pitch, std::size_t rows, std::size_t columns, const float* factors,
                 float* to) {
  for (std::size_t k = 0; k < rows; ++k, from += pitch) {
    float* panel = to + k * tile_columns;
    std::size_t c = 0;
    if (factors[k] != 0.0f) {
      for (; c + tile_columns <= columns; c += tile_columns, panel += rows * tile_columns)
        for (std::size_t v = 0; v < tile_vectors; ++v)
          store_wide(panel + v * wide_lanes, load_wide(from + c + v * wide_lanes));
      if (c < columns) {
        for (std::size_t i = 0; i < tile_columns; ++i) panel[i] = c + i < columns ? from[c + i] : 0.0f;
        c = columns;
      }
    }
    for (; c < columns; c += tile_columns, panel += rows * tile_columns)
      for (std::size_t v = 0; v < tile_vectors; ++v) store_wide(panel + v * wide_lanes, Wide{});
  }
}

// Where a tile goes: to[r * pitch + c], added to what is there or in its place.
struct Target {
  float* to;
  std::size_t pitch;
  bool adds;
};

void put(const Wide (&sums)[tile_rows][tile_vectors], const Target& target, std::size_t rows, std::size_t columns) {
  if (rows >= tile_rows && columns >= tile_columns) {
#pragma GCC unroll 16
    for (std::size_t r = 0; r < tile_rows; ++r)
      for (std::size_t v = 0; v < tile_vectors; ++v) {
        float* const to = target.to + r * target.pitch + v * wide_lanes;
        store_wide(to, target.adds ? load_wide(to) + sums[r][v] : sums[r][v]);
      }
    return;
  }
  alignas(64) float edge[tile_rows * tile_columns];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < tile_rows; ++r)
    for (std::size_t v = 0; v < tile_vectors; ++v) store_wide(edge + r * tile_columns + v * wide_lanes, sums[r][v]);
  for (std::size_t r = 0; r < least(rows, tile_rows); ++r)
    for (std::size_t c = 0; c < least(columns, tile_columns); ++c) {
      float& to = target.to[r * target.pitch + c];
      to = target.adds ? to + edge[r * tile_columns + c] : edge[r * tile_columns + c];
    }
}

// sums[r][v] = sum over the tokens of a[r] * (vector v at b), one after the other.
inline void add_tokens(const float* a, std::size_t pitch, const float* b, std::size_t rows,
                       Wide (&sums)[tile_rows][tile_vectors]) {
  for (std::size_t k = 0; k < rows; ++k, a += pitch, b += tile_columns) {
    Wide right[tile_vectors];
    for (std::size_t v = 0; v < tile_vectors; ++v) right[v] = load_wide(b + v * wide_lanes);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < tile_rows; ++r) {
      const Wide left = a[r] - Wide{};
      for (std::size_t v = 0; v < tile_vectors; ++v) sums[r][v] = multiply_add_wide(left, right[v], sums[r][v]);
    }
  }
}

// The product of one piece, tile by tile: each sum is one chain over the piece's tokens.
void add_piece(const float* outputs, std::size_t pitch, const float* panels, std::size_t rows, const ProductPart& part,
               const Target& target, Ahead next_outputs, Ahead next_inputs) {
  const std::size_t tiles =
      (part.outputs + tile_rows - 1) / tile_rows * ((part.inputs + tile_columns - 1) / tile_columns);
  const std::size_t few = Ahead::count(product_depth, part.outputs) / tiles + 1;
  const std::size_t some = Ahead::count(product_depth, part.inputs) / tiles + 1;
  for (std::size_t c = 0; c < part.inputs; c += tile_columns, panels += rows * tile_columns)
    for (std::size_t r = 0; r < part.outputs; r += tile_rows) {
      next_outputs.fetch(few);
      next_inputs.fetch(some);
      const Target tile{target.to + r * target.pitch + c, target.pitch, target.adds};
      for (std::size_t i = 0; i < least(tile_rows, part.outputs - r); ++i)
        __builtin_prefetch(tile.to + i * tile.pitch, 1, 3);
      Wide sums[tile_rows][tile_vectors];
#pragma GCC unroll 16
      for (std::size_t i = 0; i < tile_rows; ++i)
        for (std::size_t v = 0; v < tile_vectors; ++v) sums[i][v] = Wide{};
      add_tokens(outputs + r, pitch, panels, rows, sums);
      put(sums, tile, part.outputs - r, part.inputs - c);
    }
}

void weighted_product(const ProductShape& shape, const float* inputs, const float* outputs, const double* weights,
                      const ProductPart& part, float* memory, float* total) {
  const StandardArithmetic standard;
  const std::size_t tokens = shape.batch * shape.length, block = shape.block * shape.length;
  const std::size_t pitch = pitch_of(part.outputs), columns = whole_tiles(part.inputs, tile_columns);
  float *factors = memory, *scaled = factors + product_depth, *panels = scaled + product_depth * pitch,
        *sums = panels + product_depth * columns;
  const Target all{total + part.first_output * shape.inputs + part.first_input, shape.inputs, false};
  for (std::size_t begin = 0; begin < tokens; begin += block) {
    const std::size_t end = least(tokens, begin + block);
    const bool single = end - begin <= product_depth;  // then its tiles go where the sum is made
    for (std::size_t first = begin; first < end; first += product_depth) {
      const std::size_t rows = least(product_depth, end - first);
      for (std::size_t k = 0; k < rows; ++k) factors[k] = static_cast<float>(weights[(first + k) / shape.length]);
      copy_scaled(outputs + first * shape.outputs + part.first_output, shape.outputs, rows, part.outputs, factors,
                  scaled, pitch);
      copy_panels(inputs + first * shape.inputs + part.first_input, shape.inputs, rows, part.inputs, factors, panels);
      const std::size_t after = first + rows, left = least(product_depth, tokens - after);
      add_piece(scaled, pitch, panels, rows, part,
                single ? Target{all.to, all.pitch, begin > 0} : Target{sums, columns, first > begin},
                Ahead(outputs, after * shape.outputs + part.first_output, shape.outputs, left, part.outputs),
                Ahead(inputs, after * shape.inputs + part.first_input, shape.inputs, left, part.inputs));
    }
    if (!single)
      for (std::size_t r = 0; r < part.outputs; ++r)
        for (std::size_t c = 0; c < part.inputs; ++c) {
          float& to = all.to[r * all.pitch + c];
          to = begin > 0 ? to + sums[r * columns + c] : sums[r * columns + c];
        }
  }
}

void layer_norm(const NormShape& shape, const float* input, const float* gradient, const float* mean,
                const float* scale, float* __restrict weight, float* __restrict bias) {
  const StandardArithmetic standard;
  for (std::size_t i = 0; i < shape.width; ++i) weight[i] = bias[i] = 0.0f;
  for (std::size_t t = 0; t < shape.length; ++t, input += shape.width, gradient += shape.width) {
    const float middle = mean[t], by = scale[t];
    for (std::size_t i = 0; i < shape.width; ++i) {
      weight[i] += (input[i] - middle) * by * gradient[i];
      bias[i] += gradient[i];
    }
  }
}

}  // namespace

ProductKernels product_kernels() { return {tile_rows, tile_columns, product_scratch, weighted_product, layer_norm}; }

}  // namespace aisec_fast::AISEC_ISA
