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

struct MoveFactor {
  double step_size;
  double* moves;
  __device__ void operator()(std::uint64_t row, double norm) const { moves[row] = move_factor(step_size, norm); }
};

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

// Threads that share a row of an L1 or L0 step, which goes over its row many times: more for a long one.
constexpr unsigned most_row_threads = 1024;
inline unsigned row_threads(std::uint64_t columns) {
  return columns < 32 * std::uint64_t{most_row_threads} ? block_threads : most_row_threads;
}

// What is found of some values in one pass: sums, and the keys next to a threshold, not above it and above it.
struct Found {
  double sum, slope, below, above;

  __device__ static Found nothing() { return {0.0, 0.0, no_key, -no_key}; }
  __device__ static Found sums(double sum, double slope) { return {sum, slope, no_key, -no_key}; }

  __device__ void add(const Found& other) {
    sum += other.sum;
    slope += other.slope;
    below = other.below > below ? other.below : below;
    above = other.above < above ? other.above : above;
  }
  // Over the team, in its lane 0. Sums come first in the order of docs/clipping.md.
  __device__ void fold(const Team& team) {
    for (unsigned half = partial_sums / 2; half > 0; half /= 2)
      add({shifted(team, sum, half), shifted(team, slope, half), shifted(team, below, half),
           shifted(team, above, half)});
  }

 private:
  __device__ static double shifted(const Team& team, double value, unsigned half) {
    return __shfl_down_sync(team.mask, value, half, partial_sums);
  }
};

// Searches a filling's threshold among the keys. Sums of tails fall about as an exponential does: probes follow a
// secant of the sum's logarithm, over the keys and over their own logarithm by turns, with a side that stays put
// counting half as much each time (the Illinois rule), and every fourth halves what is left. The key that is found
// depends on none of this.
class KeySearch {
 public:
  __device__ KeySearch(double budget, double low, double too_large, double high)
      : budget_(budget), low_(low), high_(high), low_excess_(excess(too_large)), high_excess_(excess(0.0)) {}

  __device__ bool done() const { return !(low_ < high_); }
  __device__ double found() const { return high_; }
  __device__ double sum_above() const { return sum_above_high_; }

  __device__ double probe() const {
    const double share = low_excess_ / (low_excess_ - high_excess_);
    if (probes_ % 4 == 3 || !(share >= 0.0 && share < 1.0)) return between(0.5);
    const double guess = probes_ % 2 == 0 ? low_ + (high_ - low_) * share : between(share);
    return guess >= low_ && guess < high_ ? guess : between(0.5);
  }

  __device__ void narrow(const Found& at_probe) {
    ++probes_;
    if (at_probe.sum <= budget_) {
      high_ = at_probe.below;
      sum_above_high_ = at_probe.sum;
      high_excess_ = excess(at_probe.sum);
      if (last_ > 0) low_excess_ /= 2.0;
      last_ = 1;
    } else {
      low_ = at_probe.above;
      low_excess_ = excess(at_probe.sum);
      if (last_ < 0) high_excess_ /= 2.0;
      last_ = -1;
    }
  }

 private:
  // How far a sum is above the budget; what is far below it counts as a thousandth.
  __device__ double excess(double sum) const {
    const double least = 1e-3 * budget_;
    return log((sum > least ? sum : least) / budget_);
  }
  // From low_ to below high_, as numbers follow each other: about by their logarithms.
  __device__ double between(double share) const {
    const auto first = static_cast<std::uint64_t>(order_of(low_));
    const auto distance = static_cast<double>(static_cast<std::uint64_t>(order_of(high_)) - first);  // up to 2^64
    return in_order(static_cast<std::int64_t>(first + static_cast<std::uint64_t>(share * distance)));
  }

  double budget_, low_, high_, low_excess_, high_excess_, sum_above_high_ = 0.0;
  unsigned probes_ = 0;
  int last_ = 0;
};

// What l1_row and l0_row ask for, by all threads of a CUDA block: they make the same calls and get the same answers.
struct BlockLoops {
  static constexpr unsigned most_teams = most_row_threads / partial_sums;

  Found* teams;  // one for each team
  unsigned count_of_teams = blockDim.x / partial_sums;

  // Calls use(begin, what is found of the 1024 values that begin there), blocks in their order, in every thread. A
  // block's values are added in the order of docs/clipping.md. value(i) is a Found.
  template <class Value, class Use>
  __device__ void for_blocks(std::uint64_t count, const Value& value, const Use& use) const {
    const std::uint64_t stride = count_of_teams * norm_block;
    const Team team;
    for (std::uint64_t first = 0; first < count; first += stride) {
      const std::uint64_t number = threadIdx.x / partial_sums, begin = first + number * norm_block;
      if (begin < count) {
        Found found = Found::nothing();
        for_lane_values(
            team.lane, block_end(begin, count) - begin, [&](unsigned i) { return value(begin + i); }, Found::nothing(),
            [&](const Found& one) { found.add(one); });
        found.fold(team);
        if (team.lane == 0) teams[number] = found;
      }
      __syncthreads();  // all blocks' are there
      for (std::uint64_t k = 0; k < count_of_teams && first + k * norm_block < count; ++k)
        use(first + k * norm_block, teams[k]);
      __syncthreads();  // they have been read
    }
  }

  template <class Value>
  __device__ Found find(std::uint64_t count, const Value& value) const {
    Found total = Found::nothing();
    for_blocks(count, value, [&](std::uint64_t, const Found& block) { total.add(block); });
    return total;
  }

  template <class Value>
  __device__ SumAndSlope sums(std::uint64_t count, const Value& value) const {
    const Found found = find(count, [&](std::uint64_t i) {
      const SumAndSlope v = value(i);
      return Found::sums(v.sum, v.slope);
    });
    return {found.sum, found.slope};
  }

  template <class Value>
  __device__ double sum(std::uint64_t count, const Value& value) const {
    return find(count, [&](std::uint64_t i) { return Found::sums(value(i), 0.0); }).sum;
  }

  template <class Value>
  __device__ double largest(std::uint64_t count, const Value& value) const {
    return find(count, [&](std::uint64_t i) { return Found{0.0, 0.0, value(i), -no_key}; }).below;
  }

  template <class T, class Value>
  __device__ void store(T* out, std::uint64_t count, const Value& value) const {
    for (std::uint64_t i = threadIdx.x; i < count; i += blockDim.x) out[i] = value(i);
    __syncthreads();  // others may read it
  }

  // As smallest_fit and share_out have it, but the search goes from key to key: each pass is over the whole row, and
  // tells the keys next to its threshold beside their sum.
  template <class Key, class Weight>
  __device__ Filling fill(std::uint64_t count, double budget, Weights kind, const Key& key,
                          const Weight& weight) const {
    const auto split = [&](double threshold) {
      return find(count, [&](std::uint64_t i) {
        const double k = key(i);
        const bool larger = k > threshold;
        return Found{larger ? weight(i) : 0.0, 0.0, larger ? no_key : k, larger ? k : -no_key};
      });
    };
    const Found all = split(no_key);
    if (all.sum <= budget) return everything;
    // The threshold is a key from `low` to `high`: below `low` the sum is too large, above `high` it fits.
    KeySearch search(budget, all.above, all.sum, largest(count, key));
    while (!search.done()) {
      const Found found = split(search.probe());
      search.narrow(found);
      if (kind.ones && found.sum <= budget && found.sum + 1.0 > budget) break;
    }
    const double high = search.found();
    Filling filling{high, count, 0.0};
    double left = budget - search.sum_above();
    const auto chosen = [&](std::uint64_t i) { return key(i) == high ? weight(i) : 0.0; };
    bool over = false;
    const auto value = [&](std::uint64_t i) { return Found::sums(chosen(i), 0.0); };
    for_blocks(count, value, [&](std::uint64_t begin, const Found& block) {
      if (over) return;
      over = block.sum > left;
      if (over)
        filling = share_out(filling, begin, block_end(begin, count), left, chosen);
      else
        left -= block.sum;
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
  __shared__ Found teams[BlockLoops::most_teams];
  for (std::uint64_t row = blockIdx.x; row < rows; row += gridDim.x) l1_row(BlockLoops{teams}, step_row<T>(step, row));
}

template <class T>
__device__ void l0_rows(std::uint64_t rows, const AdversarialStep& step) {
  __shared__ Found teams[BlockLoops::most_teams];
  for (std::uint64_t row = blockIdx.x; row < rows; row += gridDim.x) l0_row(BlockLoops{teams}, step_row<T>(step, row));
}

}  // namespace
}  // namespace aisec_fast::cuda
