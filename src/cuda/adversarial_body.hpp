#pragma once
// Bodies of the kernels of the adversarial steps: no launch, no framework, so that tests/cuda_on_host runs the same
// text on a CPU. docs/adversarial.md defines every rounding.
#include "aisec_fast/adversarial_rows.hpp"
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

// Values that one instruction loads.
template <class T>
struct alignas(16) Pack {
  static constexpr unsigned size = 16 / sizeof(T);
  T values[size];
};

// How many threads linf_values can use.
template <class T>
std::uint64_t linf_threads(std::uint64_t count) {
  return count / Pack<T>::size + Pack<T>::size;
}

// Several values a thread where all arrays are aligned for it: as many bytes must be on their way as the memory's
// latency asks for.
template <class T>
__device__ void linf_values(const T* adv, const T* x, const T* gradient, T* out, std::uint64_t count, T step_size,
                            T eps, T low, T high) {
  const auto place = [](const T* values) { return reinterpret_cast<std::uintptr_t>(values); };
  std::uint64_t done = 0;
  if ((place(adv) | place(x) | place(gradient) | place(out)) % alignof(Pack<T>) == 0) {
    done = count / Pack<T>::size * Pack<T>::size;
    for (std::uint64_t i = first_index() * Pack<T>::size; i < done; i += index_step() * Pack<T>::size) {
      Pack<T> moved = *reinterpret_cast<const Pack<T>*>(adv + i);
      const Pack<T> middle = *reinterpret_cast<const Pack<T>*>(x + i);
      const Pack<T> slope = *reinterpret_cast<const Pack<T>*>(gradient + i);
      for (unsigned k = 0; k < Pack<T>::size; ++k)
        moved.values[k] = linf_value(moved.values[k], middle.values[k], slope.values[k], step_size, eps, low, high);
      *reinterpret_cast<Pack<T>*>(out + i) = moved;
    }
  }
  for (std::uint64_t i = done + first_index(); i < count; i += index_step())
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

// What l1_row and l0_row ask for, by all threads of a CUDA block: they make the same calls and get the same answers.
struct BlockLoops {
  double* teams;  // one for each team

  static constexpr unsigned most_teams = block_threads / partial_sums;

  // The sum over a block's values in the team's lane 0, in the order of docs/clipping.md.
  template <class Value>
  __device__ static double team_sum(std::uint64_t begin, std::uint64_t count, const Value& value) {
    const Team team;
    const std::uint64_t end = block_end(begin, count);
    double sum = 0.0;
    for (std::uint64_t i = begin + team.lane; i < end; i += partial_sums) sum += value(i);
    return team.fold(sum);
  }

  // Calls use(begin, the sum of the block that begins there) for every block in its order, in every thread.
  template <class Value, class Use>
  __device__ void for_block_sums(std::uint64_t count, const Value& value, const Use& use) const {
    constexpr std::uint64_t stride = most_teams * norm_block;
    for (std::uint64_t first = 0; first < count; first += stride) {
      const std::uint64_t team = threadIdx.x / partial_sums, begin = first + team * norm_block;
      if (begin < count) {
        const double sum = team_sum(begin, count, value);
        if (threadIdx.x % partial_sums == 0) teams[team] = sum;
      }
      __syncthreads();  // the sums are there
      for (std::uint64_t k = 0; k < most_teams && first + k * norm_block < count; ++k)
        use(first + k * norm_block, teams[k]);
      __syncthreads();  // the sums have been read
    }
  }

  template <class Value>
  __device__ double sum(std::uint64_t count, const Value& value) const {
    double total = 0.0;
    for_block_sums(count, value, [&](std::uint64_t, double sum_) { total += sum_; });
    return total;
  }

  template <class Value>
  __device__ SumAndSlope sums(std::uint64_t count, const Value& value) const {
    const double total = sum(count, [&](std::uint64_t i) { return value(i).sum; });
    return {total, sum(count, [&](std::uint64_t i) { return value(i).slope; })};
  }

  template <class Value>
  __device__ double largest(std::uint64_t count, const Value& value) const {
    const Team team;
    double most = no_key;
    for (std::uint64_t i = threadIdx.x; i < count; i += blockDim.x) {
      const double v = value(i);
      most = v > most ? v : most;
    }
    for (unsigned half = partial_sums / 2; half > 0; half /= 2) {
      const double other = __shfl_down_sync(team.mask, most, half, partial_sums);
      most = other > most ? other : most;
    }
    if (team.lane == 0) teams[threadIdx.x / partial_sums] = most;
    __syncthreads();  // the teams' are there
    for (unsigned k = 0; k < most_teams; ++k) most = teams[k] > most ? teams[k] : most;
    __syncthreads();  // they have been read
    return most;
  }

  template <class T, class Value>
  __device__ void store(T* out, std::uint64_t count, const Value& value) const {
    for (std::uint64_t i = threadIdx.x; i < count; i += blockDim.x) out[i] = value(i);
    __syncthreads();  // others may read it
  }

  template <class Key, class Weight>
  __device__ Filling fill(std::uint64_t count, double budget, Weights kind, const Key& key,
                          const Weight& weight) const {
    const auto above = [&](double threshold) {
      return sum(count, [&](std::uint64_t i) { return key(i) > threshold ? weight(i) : 0.0; });
    };
    if (above(no_key) <= budget) return everything;
    const double tied = smallest_fit(largest(count, key), budget, kind, above);
    Filling filling{tied, count, 0.0};
    double left = budget - above(tied);
    const auto chosen = [&](std::uint64_t i) { return key(i) == tied ? weight(i) : 0.0; };
    bool over = false;
    for_block_sums(count, chosen, [&](std::uint64_t begin, double total) {
      if (over) return;
      over = total > left;
      if (over)
        filling = share_out(filling, begin, block_end(begin, count), left, chosen);
      else
        left -= total;
    });
    return filling;
  }

 private:
  __device__ static std::uint64_t block_end(std::uint64_t begin, std::uint64_t count) {
    return count - begin < norm_block ? count : begin + norm_block;
  }
};

// One CUDA block a row.
template <class T>
__device__ void l1_rows(std::uint64_t rows, const AdversarialStep& step) {
  __shared__ double teams[BlockLoops::most_teams];
  for (std::uint64_t row = blockIdx.x; row < rows; row += gridDim.x) l1_row(BlockLoops{teams}, step_row<T>(step, row));
}

template <class T>
__device__ void l0_rows(std::uint64_t rows, const AdversarialStep& step) {
  __shared__ double teams[BlockLoops::most_teams];
  for (std::uint64_t row = blockIdx.x; row < rows; row += gridDim.x) l0_row(BlockLoops{teams}, step_row<T>(step, row));
}

}  // namespace
}  // namespace aisec_fast::cuda
