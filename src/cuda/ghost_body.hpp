#pragma once
// Bodies of the ghost kernels: no launch, no framework, so that tests/cuda_on_host runs the same text on a CPU. One
// block of threads a sample; everything is added in float64. docs/ghost.md is the contract.
#include <cmath>

#include "aisec_fast/ghost_math.hpp"
#include "grid.hpp"

namespace aisec_fast::cuda {
namespace {

// In thread 0: the sum of the block's values, one a thread.
__device__ inline double fold_block(double value) {
  __shared__ double sums[block_threads];
  sums[threadIdx.x] = value;
  for (unsigned half = block_threads / 2; half > 0; half /= 2) {
    __syncthreads();  // the sums to be added are there
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  const double total = sums[0];
  __syncthreads();  // all sums have been read: the next call may write
  return total;
}

// In thread 0: the sum of value(0), ..., value(count - 1). Its order depends on `count` alone.
template <class Value>
__device__ double block_total(std::uint64_t count, const Value& value) {
  double sum = 0.0;
  for (std::uint64_t i = threadIdx.x; i < count; i += block_threads) sum += value(i);
  return fold_block(sum);
}

// Sum over i < count of first[i * step] * second[i * step].
__device__ inline double dot(const float* first, const float* second, std::uint64_t count, std::uint64_t step) {
  double sum = 0.0;
  for (std::uint64_t i = 0; i < count; ++i)
    sum += static_cast<double>(first[i * step]) * static_cast<double>(second[i * step]);
  return sum;
}

// The sum over all pairs of positions of a(s, t) * g(s, t), both symmetric: i stands for s = i / count, t = i % count.
template <class First, class Second>
__device__ double pair_total(std::uint64_t count, const First& a, const Second& g) {
  return block_total(count * count, [&](std::uint64_t i) {
    const std::uint64_t s = i / count, t = i % count;
    return s > t ? 0.0 : (s == t ? 1.0 : 2.0) * (a(s, t) * g(s, t));
  });
}

__device__ inline void finish(double square, double bound, std::uint64_t terms, std::uint64_t sample, double* squares,
                              double* bounds) {
  if (threadIdx.x != 0) return;
  const SampleNorm norm = finished(square, bound * exact_margin(terms));
  squares[sample] = norm.square;
  if (bounds != nullptr) bounds[sample] = norm.bound;
}

__device__ inline void gram_squares(const GramShape& shape, std::uint64_t batch, const float* inputs,
                                    const float* outputs, double* squares, double* bounds) {
  for (std::uint64_t sample = blockIdx.x; sample < batch; sample += gridDim.x) {
    const auto pairs_of = [&](const float* tokens, std::uint64_t width) {
      return [=](std::uint64_t s, std::uint64_t t) { return dot(tokens + s * width, tokens + t * width, width, 1); };
    };
    const auto a = pairs_of(inputs + sample * shape.length * shape.inputs, shape.inputs);
    const auto g = pairs_of(outputs + sample * shape.length * shape.outputs, shape.outputs);
    const double square = pair_total(shape.length, a, g);
    const double bound = block_total(shape.length, [&](std::uint64_t t) { return sqrt(a(t, t)) * sqrt(g(t, t)); });
    finish(square, bound, shape.length + shape.inputs + shape.outputs, sample, squares, bounds);
  }
}

// One group of one sample of a convolution: pixels and gradients by position.
struct ConvGroup {
  ConvShape shape;
  const float *activation, *gradient;  // [channels / groups, rows, columns], [out_channels / groups, positions]

  __device__ ConvGroup(const ConvShape& c, const float* x, const float* g, std::uint64_t sample, std::uint64_t group)
      : shape(c),
        activation(x + (sample * c.groups + group) * channels() * c.rows * c.columns),
        gradient(g + (sample * c.groups + group) * outputs() * positions()) {}

  __device__ std::uint64_t channels() const { return shape.channels / shape.groups; }
  __device__ std::uint64_t outputs() const { return shape.out_channels / shape.groups; }
  __device__ std::uint64_t positions() const { return shape.out_rows * shape.out_columns; }

  // The pixel that position t reads at a kernel offset, in the first channel; null where there is none.
  __device__ const float* pixel(std::uint64_t t, std::uint64_t kernel_row, std::uint64_t kernel_column) const {
    const std::uint64_t row =
        t / shape.out_columns * shape.stride[0] + kernel_row * shape.dilation[0] - shape.before[0];
    const std::uint64_t column =
        t % shape.out_columns * shape.stride[1] + kernel_column * shape.dilation[1] - shape.before[1];
    return row < shape.rows && column < shape.columns ? activation + row * shape.columns + column : nullptr;
  }
  __device__ double patches(std::uint64_t s, std::uint64_t t) const {
    double sum = 0.0;
    for (std::uint64_t kr = 0; kr < shape.kernel[0]; ++kr)
      for (std::uint64_t kc = 0; kc < shape.kernel[1]; ++kc) {
        const float *first = pixel(s, kr, kc), *second = pixel(t, kr, kc);
        if (first != nullptr && second != nullptr) sum += dot(first, second, channels(), shape.rows * shape.columns);
      }
    return sum;
  }
  __device__ double gradients(std::uint64_t s, std::uint64_t t) const {
    return dot(gradient + s, gradient + t, outputs(), positions());
  }
  __device__ double length() const {
    return block_total(positions(), [&](std::uint64_t t) { return sqrt(patches(t, t)) * sqrt(gradients(t, t)); });
  }
};

__device__ inline std::uint64_t conv_terms(const ConvShape& c) {
  return c.channels * c.kernel[0] * c.kernel[1] + c.out_channels * c.out_rows * c.out_columns;
}

__device__ inline void conv_gram_squares(const ConvShape& shape, std::uint64_t batch, const float* activation,
                                         const float* gradient, double* squares, double* bounds) {
  for (std::uint64_t sample = blockIdx.x; sample < batch; sample += gridDim.x) {
    double square = 0.0, bound = 0.0;
    for (std::uint64_t group = 0; group < shape.groups; ++group) {
      const ConvGroup part(shape, activation, gradient, sample, group);
      square += pair_total(
          part.positions(), [&](std::uint64_t s, std::uint64_t t) { return part.patches(s, t); },
          [&](std::uint64_t s, std::uint64_t t) { return part.gradients(s, t); });
      const double length = part.length();
      bound += length * length;
    }
    finish(square, sqrt(bound), conv_terms(shape), sample, squares, bounds);
  }
}

__device__ inline void conv_rows(const ConvShape& shape, std::uint64_t batch, const float* activation,
                                 const float* gradient, float* rows, double* squares, double* bounds) {
  const std::uint64_t offsets = shape.kernel[0] * shape.kernel[1];
  const std::uint64_t taps = shape.channels / shape.groups * offsets, size = shape.out_channels / shape.groups * taps;
  for (std::uint64_t sample = blockIdx.x; sample < batch; sample += gridDim.x) {
    double square = 0.0, bound = 0.0;
    for (std::uint64_t group = 0; group < shape.groups; ++group) {
      const ConvGroup part(shape, activation, gradient, sample, group);
      float* to = rows + (sample * shape.groups + group) * size;
      square += block_total(size, [&](std::uint64_t i) {
        const std::uint64_t channel = i % taps / offsets, kr = i % offsets / shape.kernel[1], kc = i % shape.kernel[1];
        const float* wanted = part.gradient + i / taps * part.positions();
        double sum = 0.0;
        for (std::uint64_t t = 0; t < part.positions(); ++t) {
          const float* pixel = part.pixel(t, kr, kc);
          if (pixel != nullptr)
            sum += static_cast<double>(wanted[t]) * static_cast<double>(pixel[channel * shape.rows * shape.columns]);
        }
        to[i] = static_cast<float>(sum);
        return static_cast<double>(to[i]) * static_cast<double>(to[i]);
      });
      const double length = part.length();
      bound += length * length;
    }
    finish(square, sqrt(bound), conv_terms(shape), sample, squares, bounds);
  }
}

}  // namespace
}  // namespace aisec_fast::cuda
