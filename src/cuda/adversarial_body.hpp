#pragma once
// Bodies of the kernels of the adversarial steps: no launch, no framework, so that tests/cuda_on_host runs the same
// text on a CPU. docs/adversarial.md defines every rounding.
#include "aisec_fast/adversarial_math.hpp"
#include "row_norms_body.hpp"

namespace aisec_fast::cuda {
namespace {

// The gradient's rows as their norms see them.
template <class T>
struct Slopes {
  const T* gradient;
  std::uint64_t rows, columns;

  static constexpr bool squares_leave_range = sizeof(T) == sizeof(double);
  __device__ double value(std::uint64_t row, std::uint64_t column) const {
    return slope_of(gradient[row * columns + column]);
  }
};

// How far each row is from x after its move.
template <class T>
struct Changes {
  const T *adv, *x, *gradient;
  const double* moves;
  std::uint64_t rows, columns;

  static constexpr bool squares_leave_range = true;  // adv and step_size may be anything
  __device__ double value(std::uint64_t row, std::uint64_t column) const {
    const std::uint64_t i = row * columns + column;
    return change_of(adv[i], x[i], gradient[i], moves[row]);
  }
};

template <class T>
__device__ void linf_values(const T* adv, const T* x, const T* gradient, T* out, std::uint64_t count, T step_size,
                            T eps, T low, T high) {
  for (std::uint64_t i = first_index(); i < count; i += index_step())
    out[i] = linf_value(adv[i], x[i], gradient[i], step_size, eps, low, high);
}

__device__ inline void move_factors(std::uint64_t rows, const double* norms, double step_size, double* moves) {
  for (std::uint64_t row = first_index(); row < rows; row += index_step())
    moves[row] = move_factor(step_size, norms[row]);
}

template <class T>
__device__ void l2_values(const Changes<T>& changes, const double* factors, T low, T high, T* out) {
  const Team team;
  for_norm_blocks(changes, [&](std::uint64_t, std::uint64_t row, std::uint64_t begin, std::uint64_t width) {
    const double factor = factors[row];
    for (std::uint64_t c = team.lane; c < width; c += partial_sums) {
      const std::uint64_t i = row * changes.columns + begin + c;
      out[i] = l2_value(changes.x[i], changes.value(row, begin + c), factor, low, high);
    }
  });
}

}  // namespace
}  // namespace aisec_fast::cuda
