#pragma once
// Convolutions of images in planes as sums over taps, and gradients of their inputs.
#include <array>
#include <cstddef>

namespace aisec_fast {

using Pair = std::array<std::size_t, 2>;  // of rows and of columns

struct WindowGeometry {
  Pair kernel, stride, before, dilation;
};
struct ConvolutionSizes {
  std::size_t batch, channels, outputs;
  Pair images, results;
};

// out [batch, outputs, results] of x [batch, channels, images] and weight [outputs, channels, kernel], plus `bias` if
// it is not null; or, `turned`, out [batch, channels, images] is the gradient of the images, and x that of the results.
void convolve(const float* x, const float* weight, const float* bias, const WindowGeometry& geometry,
              const ConvolutionSizes& sizes, bool turned, bool threads, float* out);

}  // namespace aisec_fast
