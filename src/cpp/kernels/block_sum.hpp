#pragma once
// The block sum of docs/clipping.md for CPU kernels, and sums and norms on top of it.
#include <cstddef>

#include "aisec_fast/clipping_math.hpp"
#include "aisec_fast/kernels.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// partial[i % partial_sums] += value(i) for first <= i < last, in their order; `first` is a multiple of partial_sums.
template <class Value>
AISEC_HD void add_partial(std::size_t first, std::size_t last, const Value& value, double (&partial)[partial_sums]) {
  for (; first + partial_sums <= last; first += partial_sums)
    for (std::size_t k = 0; k < partial_sums; ++k) partial[k] += value(first + k);
  for (std::size_t k = 0; first + k < last; ++k) partial[k] += value(first + k);
}

// The sum of squares of value(0), ..., value(count - 1), count <= norm_block.
template <class Value>
AISEC_HD double block_sum(std::size_t count, const Value& value) {
  alignas(64) double partial[partial_sums] = {};
  const auto square = [&](std::size_t i) {
    const double v = value(i);
    return v * v;
  };
  add_partial(0, count, square, partial);
  return fold(partial);
}

// The norm of value(0), ..., value(columns - 1), computed again from scaled values where squares leave the range.
template <class Value>
AISEC_HD double row_norm(std::size_t columns, const Value& value) {
  double multiplier = 1.0;
  for (;;) {
    double partial[partial_sums] = {};
    for (std::size_t begin = 0; begin < columns; begin += norm_block) {
      const std::size_t width = columns - begin < norm_block ? columns - begin : norm_block;
      partial[begin / norm_block % partial_sums] +=
          block_sum(width, [&](std::size_t i) { return value(begin + i) * multiplier; });
    }
    const double total = fold(partial), again = multiplier == 1.0 ? norm_multiplier(total) : 1.0;
    if (again == 1.0) return __builtin_sqrt(total) / multiplier;
    multiplier = again;
  }
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
