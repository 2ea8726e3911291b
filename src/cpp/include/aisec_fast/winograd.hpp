#pragma once
// Convolutions of windows 3 x 3 by fewer products (docs/adversarial.md, section 8): sizes and arrays of a call.
#include <cstddef>

#include "aisec_fast/host_device.hpp"

namespace aisec_fast {

constexpr std::size_t winograd_side = 4,
                      winograd_patch = winograd_side + 2;  // of a tile of the result, of what it reads
constexpr std::size_t winograd_points = winograd_patch * winograd_patch;
constexpr std::size_t winograd_channels = 16;  // inputs and outputs are multiples of it

// Images [rows, columns, channels], zeros around them; the result has as many pixels.
struct WinogradShape {
  std::size_t images, rows, columns, channels, outputs;

  AISEC_HD std::size_t tile_rows() const { return (rows + winograd_side - 1) / winograd_side; }
  AISEC_HD std::size_t tile_columns() const { return (columns + winograd_side - 1) / winograd_side; }
  AISEC_HD std::size_t tiles() const { return images * tile_rows() * tile_columns(); }
};

// `weights` are [points, channels, outputs]. Null for what is not there: `mask`, like x, keeps the values of x where it
// is above 0; `bias` has a value an output; `added`, like out, is added before the ReLU, and may be out.
struct WinogradArrays {
  const float *x, *weights, *mask, *bias, *added;
  float* out;
  bool relu;
};

}  // namespace aisec_fast
