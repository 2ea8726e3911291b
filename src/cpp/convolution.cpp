#include "convolution.hpp"

#include <algorithm>
#include <vector>

#include "aisec_fast/convolution.hpp"
#include "instruction_sets.hpp"
#include "scratch.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t panel = convolution_panel;
constexpr std::size_t band_values = std::size_t{1} << 14;     // of a result, which then stays in the second-level cache
constexpr std::size_t least_products = std::size_t{1} << 18;  // smallest work that is worth a thread

// Taps of one part.
struct Taps {
  std::vector<std::size_t> offsets;
  std::vector<float> panels;
};

// A plan and what it points to.
struct Call {
  ConvolutionPlan plan{};
  std::vector<Taps> taps;
  std::vector<ConvolutionPart> parts;
  std::vector<float> bias;
};

// Tap `number` of `count`: its weights for the outputs, so many values apart.
void add_tap(Taps& taps, const float* weight, std::size_t outputs, std::size_t output_step, std::size_t number,
             std::size_t count) {
  for (std::size_t k = 0; k < outputs; ++k)
    taps.panels[(k / panel * count + number) * panel + k % panel] = weight[k * output_step];
}

// Result (i, j) reads what lies at i * stride + kr * dilation of the padded source.
Call forward(const float* weight, const WindowGeometry& geometry, std::size_t channels, std::size_t outputs, Pair size,
             Pair made) {
  Call call;
  ConvolutionPlan& plan = call.plan;
  plan = {channels, size[0], size[1], {}, 0, 0, outputs, made[0], made[1], {}, {1, 1}, 1, 0, nullptr};
  std::size_t* padded[2] = {&plan.padded_rows, &plan.padded_columns};
  for (std::size_t d = 0; d < 2; ++d) {
    plan.before[d] = geometry.before[d];
    plan.from_step[d] = geometry.stride[d];
    const std::size_t reach =
        made[d] == 0 ? 0 : (made[d] - 1) * geometry.stride[d] + (geometry.kernel[d] - 1) * geometry.dilation[d] + 1;
    *padded[d] = geometry.before[d] == 0 ? std::max(reach, size[d]) : reach;
  }
  const std::size_t window = geometry.kernel[0] * geometry.kernel[1], count = channels * window;
  Taps taps;
  taps.panels.resize(plan.panels() * count * panel);
  for (std::size_t c = 0; c < channels; ++c)
    for (std::size_t kr = 0; kr < geometry.kernel[0]; ++kr)
      for (std::size_t kc = 0; kc < geometry.kernel[1]; ++kc) {
        add_tap(taps, weight + c * window + kr * geometry.kernel[1] + kc, outputs, count, taps.offsets.size(), count);
        taps.offsets.push_back((c * plan.padded_rows + kr * geometry.dilation[0]) * plan.padded_columns +
                               kc * geometry.dilation[1]);
      }
  call.taps.push_back(std::move(taps));
  call.parts.push_back({made[0], made[1], 0, 0, count, nullptr, nullptr});
  return call;
}

// The gradient of input pixel i is made of the gradients of results r with r * stride + kr * dilation = i + before: for
// each class of (i + before) modulo the stride, the same taps kr, and r = (i + before) / stride - kr * dilation /
// stride.
Call backward(const float* weight, const WindowGeometry& geometry, std::size_t outputs, std::size_t channels, Pair size,
              Pair made) {
  Call call;
  ConvolutionPlan& plan = call.plan;
  plan = {outputs, size[0], size[1], {}, 0, 0, channels, made[0], made[1], {1, 1}, {}, 1, 0, nullptr};
  std::size_t* padded[2] = {&plan.padded_rows, &plan.padded_columns};
  Pair farthest;
  for (std::size_t d = 0; d < 2; ++d) {
    farthest[d] = (geometry.kernel[d] - 1) * geometry.dilation[d] / geometry.stride[d];
    plan.before[d] = farthest[d];
    plan.out_step[d] = geometry.stride[d];
    *padded[d] = farthest[d] + (made[d] + geometry.before[d] - 1) / geometry.stride[d] + 1;
  }
  const std::size_t window = geometry.kernel[0] * geometry.kernel[1];
  for (std::size_t row = 0; row < geometry.stride[0]; ++row)
    for (std::size_t column = 0; column < geometry.stride[1]; ++column) {
      const Pair residue{row, column};
      Pair first, grid, quotient;
      for (std::size_t d = 0; d < 2; ++d) {
        const std::size_t phase = (residue[d] + geometry.stride[d] - geometry.before[d] % geometry.stride[d]) %
                                  geometry.stride[d];  // the first pixel of this class
        first[d] = phase;
        grid[d] = phase < made[d] ? (made[d] - phase - 1) / geometry.stride[d] + 1 : 0;
        quotient[d] = (phase + geometry.before[d]) / geometry.stride[d];
      }
      if (grid[0] == 0 || grid[1] == 0) continue;
      std::vector<Pair> places;
      for (std::size_t kr = 0; kr < geometry.kernel[0]; ++kr)
        for (std::size_t kc = 0; kc < geometry.kernel[1]; ++kc)
          if (kr * geometry.dilation[0] % geometry.stride[0] == row &&
              kc * geometry.dilation[1] % geometry.stride[1] == column)
            places.push_back({kr, kc});
      const std::size_t count = outputs * places.size();
      Taps taps;
      taps.panels.resize(plan.panels() * count * panel);
      for (std::size_t k = 0; k < outputs; ++k)
        for (const Pair& place : places) {
          add_tap(taps, weight + k * channels * window + place[0] * geometry.kernel[1] + place[1], channels, window,
                  taps.offsets.size(), count);
          const auto shift = [&](std::size_t d) {
            return farthest[d] + quotient[d] - place[d] * geometry.dilation[d] / geometry.stride[d];
          };
          taps.offsets.push_back((k * plan.padded_rows + shift(0)) * plan.padded_columns + shift(1));
        }
      call.taps.push_back(std::move(taps));
      call.parts.push_back({grid[0], grid[1], first[0], first[1], count, nullptr, nullptr});
    }
  return call;
}

}  // namespace

void convolve(const float* x, const float* weight, const float* bias, const WindowGeometry& geometry,
              const ConvolutionSizes& sizes, bool turned, bool threads, float* out) {
  Call call = turned ? backward(weight, geometry, sizes.outputs, sizes.channels, sizes.results, sizes.images)
                     : forward(weight, geometry, sizes.channels, sizes.outputs, sizes.images, sizes.results);
  ConvolutionPlan& plan = call.plan;
  for (std::size_t i = 0; i < call.parts.size(); ++i) {
    call.parts[i].offsets = call.taps[i].offsets.data();
    call.parts[i].panels = call.taps[i].panels.data();
  }
  plan.parts = call.parts.size();
  plan.part = call.parts.data();
  const std::size_t step = plan.out_step[0], row = plan.out_columns * plan.panels() * panel;
  const std::size_t steps = std::max<std::size_t>(1, band_values / (row * step));
  plan.band = std::min(steps, (plan.out_rows + step - 1) / step) * step;
  if (bias != nullptr) {
    call.bias.resize(plan.panels() * panel);
    std::copy_n(bias, plan.outputs, call.bias.data());
    bias = call.bias.data();
  }
  const std::size_t work =
      sizes.outputs * sizes.channels * geometry.kernel[0] * geometry.kernel[1] * sizes.results[0] * sizes.results[1];
  const std::size_t least = threads ? least_products / std::max<std::size_t>(1, work) + 1 : sizes.batch;
  parallel_for(sizes.batch, least, [&](std::size_t first, std::size_t last) {
    float* const memory = scratch(plan.values_of_source() + plan.values_of_result());
    active_kernels().convolution.convolve(plan, x, bias, first, last, memory, out);
  });
}

}  // namespace aisec_fast
