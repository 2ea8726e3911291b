#pragma once
// Convolutions of windows 3 x 3 by fewer products (docs/adversarial.md, section 8): sizes and arrays of a call.
#include <cstddef>

#include "aisec_fast/host_device.hpp"

namespace aisec_fast {

constexpr std::size_t winograd_side = 4,
                      winograd_patch = winograd_side + 2;  // of a tile of the result, of what it reads
constexpr std::size_t winograd_points = winograd_patch * winograd_patch;
constexpr std::size_t winograd_channels = 16;  // inputs and outputs are multiples of it

// Images [rows, columns, channels], zeros around them; the result has as many pixels. A part of an image also has the
// row above or below it, 1 or 0 of each.
struct WinogradShape {
  std::size_t images, rows, columns, channels, outputs, above = 0, below = 0;

  AISEC_HD std::size_t tile_rows() const { return (rows + winograd_side - 1) / winograd_side; }
  AISEC_HD std::size_t tile_columns() const { return (columns + winograd_side - 1) / winograd_side; }
  AISEC_HD std::size_t tiles() const { return images * tile_rows() * tile_columns(); }
};

// What is worked on at a time of images [channels, rows, columns]: several whole images, or a band of rows of one, a
// multiple of winograd_side; and how many of the tiles.
struct WinogradBlocks {
  std::size_t images, rows, tiles;

  AISEC_HD std::size_t bands(const WinogradShape& shape) const { return (shape.rows + rows - 1) / rows; }
  AISEC_HD std::size_t values_of_x(const WinogradShape& shape) const {
    return images * (rows + 2) * shape.columns * shape.channels;
  }
  AISEC_HD std::size_t values_of_result(const WinogradShape& shape) const {
    return (images * rows * shape.columns + winograd_channels) * shape.outputs;  // turned by whole squares
  }
  AISEC_HD std::size_t values_of_points(const WinogradShape& shape) const {
    return winograd_points * tiles * (shape.channels + shape.outputs);
  }
};

// Windows [3, 3] of every output and channel, so many values apart; each turned by half a circle if they are `turned`.
struct WinogradWindows {
  const float* values;
  std::size_t channels, outputs, channel_step, output_step;
  bool turned;
};

// `weights` are [points, channels, outputs]. Null for what is not there: `mask`, like x, keeps the values of x where it
// is above 0; `bias` has a value an output; `added`, like out, is added before the ReLU, and may be out.
struct WinogradArrays {
  const float *x, *weights, *mask, *bias, *added;
  float* out;
  bool relu;
};

}  // namespace aisec_fast
