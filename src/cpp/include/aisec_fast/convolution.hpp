#pragma once
// Convolutions of images in planes, and gradients of their inputs, as sums over taps: what a call consists of.
#include <cstddef>

#include "aisec_fast/host_device.hpp"

namespace aisec_fast {

constexpr std::size_t convolution_panel = 16;  // outputs that are computed together

// Results that are made of the same taps: a grid of pixels of the result, whose first one reads from the point (0, 0)
// of the source on.
struct ConvolutionPart {
  std::size_t rows, columns;        // of the grid
  std::size_t out_row, out_column;  // of its first pixel
  std::size_t taps;
  const std::size_t* offsets;  // of a tap, in values, from the point
  const float* panels;         // [panels][taps][convolution_panel], zeros where no output is
};

// The source [channels, rows, columns] with zeros around it is [channels, padded_rows, padded_columns].
struct ConvolutionPlan {
  std::size_t channels, rows, columns, before[2], padded_rows, padded_columns;
  std::size_t outputs, out_rows, out_columns;
  std::size_t from_step[2], out_step[2];  // between points, and between pixels of the result, of a grid
  std::size_t band;                       // rows of the result that are computed at a time, a multiple of out_step[0]
  std::size_t parts;
  const ConvolutionPart* part;

  AISEC_HD std::size_t panels() const { return (outputs + convolution_panel - 1) / convolution_panel; }
  AISEC_HD bool is_padded() const {
    return before[0] != 0 || before[1] != 0 || padded_rows != rows || padded_columns != columns;
  }
  // In values; vectors may be read beyond either.
  AISEC_HD std::size_t values_of_source() const {
    return is_padded() ? channels * padded_rows * padded_columns + convolution_panel : 0;
  }
  AISEC_HD std::size_t values_of_result() const {
    return (band * out_columns + convolution_panel) * panels() * convolution_panel;
  }
};

}  // namespace aisec_fast
