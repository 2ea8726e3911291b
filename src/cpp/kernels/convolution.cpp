// Convolutions as sums over taps, a pixel of the source times the weights of several outputs, one tap after the other
// in float32. Compiled once per instruction set; docs/products.md.
#include "aisec_fast/convolution.hpp"
#include "kernels/families.hpp"
#include "kernels/standard_arithmetic.hpp"
#include "kernels/wide_floats.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr std::size_t panel = convolution_panel, tile_vectors = panel / wide_lanes;
constexpr std::size_t most_pixels = AISEC_WIDTH == 64 ? 12 : 6;  // of a tile: as many sums as registers hold

// The pixels that are reached; the zeros around them are there.
void copy_pixels(const ConvolutionPlan& plan, const float* source, float* to) {
  if (plan.padded_rows <= plan.before[0] || plan.padded_columns <= plan.before[1]) return;  // zeros alone are reached
  const std::size_t rows = least(plan.rows, plan.padded_rows - plan.before[0]);
  const std::size_t columns = least(plan.columns, plan.padded_columns - plan.before[1]);
  to += plan.before[0] * plan.padded_columns + plan.before[1];
  for (std::size_t channel = 0; channel < plan.channels; ++channel)
    for (std::size_t r = 0; r < rows; ++r) {
      const float* from = source + (channel * plan.rows + r) * plan.columns;
      float* row = to + (channel * plan.padded_rows + r) * plan.padded_columns;
      for (std::size_t i = 0; i < columns; ++i) row[i] = from[i];
    }
}

struct Place {
  const float* from;
  float* to;
};

// to[..] = bias + sum over taps of from[offset] * weights[tap][..], of so many pixels.
template <std::size_t pixels_>
void tile(const Place* places, std::size_t count, const ConvolutionPart& part, const float* weights,
          const Wide (&bias)[tile_vectors]) {
  const float* from[pixels_];
  for (std::size_t r = 0; r < pixels_; ++r) from[r] = places[r < count ? r : 0].from;
  Wide sums[pixels_][tile_vectors] = {};
  for (std::size_t t = 0; t < part.taps; ++t, weights += panel) {
    const std::size_t offset = part.offsets[t];
    Wide right[tile_vectors];
    for (std::size_t v = 0; v < tile_vectors; ++v) right[v] = load_wide(weights + v * wide_lanes);
    for (std::size_t r = 0; r < pixels_; ++r) {
      const Wide left = from[r][offset] - Wide{};
      for (std::size_t v = 0; v < tile_vectors; ++v) sums[r][v] = multiply_add_wide(left, right[v], sums[r][v]);
    }
  }
  for (std::size_t r = 0; r < pixels_; ++r)
    if (r < count)
      for (std::size_t v = 0; v < tile_vectors; ++v) store_wide(places[r].to + v * wide_lanes, sums[r][v] + bias[v]);
}

// Pixels of one part in rows first, ..., last - 1 of its grid; `to` is [pixels of the band][panels * panel], whose
// first row is `top`.
void grid(const ConvolutionPlan& plan, const ConvolutionPart& part, std::size_t first, std::size_t last,
          std::size_t top, const float* source, const float* bias, float* to) {
  const std::size_t count = (last - first) * part.columns, pitch = plan.panels() * panel;
  for (std::size_t block = 0; block < plan.panels(); ++block) {
    const float* weights = part.panels + block * part.taps * panel;
    Wide added[tile_vectors] = {};
    if (bias != nullptr)
      for (std::size_t v = 0; v < tile_vectors; ++v) added[v] = load_wide(bias + block * panel + v * wide_lanes);
    std::size_t row = first, column = 0;
    for (std::size_t p = 0; p < count; p += most_pixels) {
      Place places[most_pixels];
      const std::size_t here = least(most_pixels, count - p);
      for (std::size_t r = 0; r < here; ++r) {
        places[r].from = source + row * plan.from_step[0] * plan.padded_columns + column * plan.from_step[1];
        const std::size_t out_row = part.out_row + row * plan.out_step[0] - top;
        const std::size_t out_column = part.out_column + column * plan.out_step[1];
        places[r].to = to + (out_row * plan.out_columns + out_column) * pitch + block * panel;
        if (++column == part.columns) {
          column = 0;
          ++row;
        }
      }
      if (here > most_pixels / 2)
        tile<most_pixels>(places, here, part, weights, added);
      else
        tile<most_pixels / 2>(places, here, part, weights, added);
    }
  }
}

void convolve(const ConvolutionPlan& plan, const float* x, const float* bias, std::size_t first, std::size_t last,
              float* memory, float* out) {
  const StandardArithmetic standard;
  const std::size_t source_values = plan.channels * plan.rows * plan.columns, plane = plan.out_rows * plan.out_columns;
  const std::size_t pitch = plan.panels() * panel;
  float* const band = memory + plan.values_of_source();
  for (std::size_t i = 0; i < plan.values_of_source(); ++i) memory[i] = 0.0f;
  for (std::size_t image = first; image < last; ++image) {
    const float* source = x + image * source_values;
    if (plan.is_padded()) {
      copy_pixels(plan, source, memory);
      source = memory;
    }
    for (std::size_t top = 0; top < plan.out_rows; top += plan.band) {
      const std::size_t end = least(top + plan.band, plan.out_rows);
      for (std::size_t i = 0; i < plan.parts; ++i) {
        const ConvolutionPart& part = plan.part[i];
        const auto rows_before = [&](std::size_t row) {
          return row <= part.out_row ? 0 : least((row - part.out_row - 1) / plan.out_step[0] + 1, part.rows);
        };
        grid(plan, part, rows_before(top), rows_before(end), top, source, bias, band);
      }
      store_transposed(band, pitch, (end - top) * plan.out_columns, plan.outputs,
                       out + image * plan.outputs * plane + top * plan.out_columns, plane);
    }
  }
}

}  // namespace

ConvolutionKernels convolution_kernels() { return {&convolve}; }

}  // namespace aisec_fast::AISEC_ISA
