// Kernels of the adversarial steps, compiled once per instruction set. docs/adversarial.md defines every rounding.
// Results are made in a buffer before they are stored: out may be adv, and the compiler does not vectorise loops that
// store into what they may read.
#include "aisec_fast/adversarial_rows.hpp"
#include "kernels/block_sum.hpp"
#include "kernels/families.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr std::size_t buffered = 256;  // values

// out[i] = value(i) for first <= i < last.
template <class T, class Value>
AISEC_HD void store(T* out, std::size_t first, std::size_t last, const Value& value) {
  alignas(64) T buffer[buffered];
  for (; first + buffered <= last; first += buffered) {
    for (std::size_t j = 0; j < buffered; ++j) buffer[j] = value(first + j);
    memcpy(out + first, buffer, sizeof buffer);
  }
  const std::size_t left = last - first;
  for (std::size_t j = 0; j < left; ++j) buffer[j] = value(first + j);
  for (std::size_t j = 0; j < left; ++j) out[first + j] = buffer[j];
}

template <class T>
void linf_values(const AdversarialStep& step, std::size_t first, std::size_t last) {
  const T *adv = static_cast<const T*>(step.adv), *x = static_cast<const T*>(step.x),
          *gradient = static_cast<const T*>(step.gradient);
  const T step_size = static_cast<T>(step.step_size), eps = toward_zero<T>(step.eps);
  const T low = bound_of<T>(step.low), high = bound_of<T>(step.high);
  store(static_cast<T*>(step.out), first, last,
        [=](std::size_t i) { return linf_value(adv[i], x[i], gradient[i], step_size, eps, low, high); });
}

template <class T>
void l2_rows(const AdversarialStep& step, std::size_t first, std::size_t last) {
  const std::size_t columns = step.columns;
  const double step_size = step.step_size, radius = inner_radius(step.eps, columns);
  const T low = bound_of<T>(step.low), high = bound_of<T>(step.high);
  for (std::size_t row = first; row < last; ++row) {
    const T *adv = static_cast<const T*>(step.adv) + row * columns, *x = static_cast<const T*>(step.x) + row * columns,
            *gradient = static_cast<const T*>(step.gradient) + row * columns;
    const double move = move_factor(step_size, row_norm(columns, [=](std::size_t i) { return slope_of(gradient[i]); }));
    const auto change = [=](std::size_t i) { return change_of(adv[i], x[i], gradient[i], move); };
    const double factor = clip_factor(row_norm(columns, change), radius);
    store(static_cast<T*>(step.out) + row * columns, 0, columns,
          [=](std::size_t i) { return l2_value(x[i], change(i), factor, low, high); });
  }
}

// Everything that a loop calls becomes part of it, and the loop no part of its caller: else the compiler gives up.
#define AISEC_LOOP __attribute__((noinline, flatten))

constexpr std::size_t most_groups = 4096;

std::size_t block_end(std::size_t begin, std::size_t count) {
  return count - begin < norm_block ? count : begin + norm_block;
}

// no_key of nothing.
template <class Value>
AISEC_HD double largest_of_range(std::size_t first, std::size_t last, const Value& value) {
  alignas(64) double most[partial_sums];
  for (double& number : most) number = no_key;
  const auto take = [&](std::size_t i, std::size_t k) {
    const double v = value(i);
    most[k] = v > most[k] ? v : most[k];
  };
  for (; first + partial_sums <= last; first += partial_sums)
    for (std::size_t k = 0; k < partial_sums; ++k) take(first + k, k);
  for (std::size_t k = 0; first + k < last; ++k) take(first + k, k);
  double result = no_key;
  for (const double number : most) result = number > result ? number : result;
  return result;
}

// The largest key of each group of `width` values; returns the largest of all.
template <class Key>
AISEC_LOOP double find_largest_keys(std::size_t count, std::size_t width, Key key, double* largest) {
  double highest = no_key;
  for (std::size_t first = 0; first < count; first += width) {
    const double found = largest_of_range(first, first + width < count ? first + width : count, key);
    *largest++ = found;
    highest = found > highest ? found : highest;
  }
  return highest;
}

template <class Key, class Weight>
AISEC_LOOP void load(std::size_t first, std::size_t count, Key key, Weight weight, double* keys, double* weights) {
  for (std::size_t i = 0; i < count; ++i) keys[i] = key(first + i);
  for (std::size_t i = 0; i < count; ++i) weights[i] = weight(first + i);
}

// Adds the weights of the keys above `threshold`, or of those equal to it.
AISEC_LOOP void add_chosen(const double* keys, const double* weights, std::size_t count, double threshold, bool tied,
                           double (&partial)[partial_sums]) {
  if (tied)
    add_partial(0, count, [=](std::size_t i) { return keys[i] == threshold ? weights[i] : 0.0; }, partial);
  else
    add_partial(0, count, [=](std::size_t i) { return keys[i] > threshold ? weights[i] : 0.0; }, partial);
}

// Sums of the weights of some keys. Groups of values without such keys are passed over: they would add zeros.
template <class Key, class Weight>
class ChosenSums {
 public:
  ChosenSums(std::size_t count, const Key& key, const Weight& weight) : count_(count), key_(key), weight_(weight) {
    while ((count + width_ - 1) / width_ > most_groups) width_ *= 2;
    piece_ = width_ < norm_block ? width_ : norm_block;
    highest_ = find_largest_keys(count, width_, key, largest_);
  }
  double highest() const { return highest_; }

  // Of one block: the keys above `threshold`, or those equal to it.
  double block(std::size_t begin, double threshold, bool tied) const {
    alignas(64) double partial[partial_sums] = {}, weights[norm_block], keys[norm_block];
    bool any = false;
    const std::size_t end = block_end(begin, count_);
    for (std::size_t first = begin; first < end; first += piece_) {
      const double largest = largest_[first / width_];  // NOLINT(clang-analyzer-core.uninitialized.Assign)
      if (!(largest > threshold || (tied && largest == threshold))) continue;
      const std::size_t count = end - first < piece_ ? end - first : piece_;
      load(first, count, key_, weight_, keys, weights);
      add_chosen(keys, weights, count, threshold, tied, partial);
      any = true;
    }
    return any ? fold(partial) : 0.0;
  }
  // Of all larger keys; not all of it once it is above the budget, since it only grows.
  double above(double threshold, double budget) const {
    double total = 0.0;
    for (std::size_t begin = 0; begin < count_ && total <= budget; begin += norm_block)
      total += block(begin, threshold, false);
    return total;
  }

 private:
  std::size_t count_, width_ = partial_sums, piece_;
  Key key_;
  Weight weight_;
  double highest_;
  alignas(64) double largest_[most_groups];
};

// What l1_row and l0_row ask for.
struct RowLoops {
  template <class Value>
  AISEC_LOOP static double sum(std::size_t count, Value value) {
    double total = 0.0;
    for (std::size_t begin = 0; begin < count; begin += norm_block) {
      alignas(64) double partial[partial_sums] = {};
      add_partial(begin, block_end(begin, count), value, partial);
      total += fold(partial);
    }
    return total;
  }

  template <class Value>
  AISEC_LOOP static SumAndSlope sums(std::size_t count, Value value) {
    double total = 0.0, slope = 0.0;
    for (std::size_t begin = 0; begin < count; begin += norm_block) {
      alignas(64) double partial[partial_sums] = {}, slopes[partial_sums] = {};
      const auto add = [&](std::size_t i, std::size_t k) {
        const SumAndSlope v = value(i);
        partial[k] += v.sum;
        slopes[k] += v.slope;
      };
      const std::size_t end = block_end(begin, count);
      std::size_t i = begin;
      for (; i + partial_sums <= end; i += partial_sums)
        for (std::size_t k = 0; k < partial_sums; ++k) add(i + k, k);
      for (std::size_t k = 0; i + k < end; ++k) add(i + k, k);
      total += fold(partial);
      slope += fold(slopes);
    }
    return {total, slope};
  }

  template <class Value>
  AISEC_LOOP static double largest(std::size_t count, Value value) {
    return largest_of_range(0, count, value);
  }

  template <class T, class Value>
  AISEC_LOOP static void store(T* out, std::size_t count, Value value) {
    AISEC_ISA::store(out, 0, count, value);
  }

  template <class Key, class Weight>
  static Filling fill(std::size_t count, double budget, Weights kind, const Key& key, const Weight& weight) {
    const ChosenSums<Key, Weight> sums(count, key, weight);
    if (sums.above(no_key, budget) <= budget) return everything;
    const auto above = [&](double threshold) { return sums.above(threshold, budget); };
    const double tied = smallest_fit(sums.highest(), budget, kind, above);
    double left = budget - above(tied);
    for (std::size_t begin = 0; begin < count; begin += norm_block) {
      const double total = sums.block(begin, tied, true);
      if (!(total <= left))
        return share_out({tied, 0, 0.0}, begin, block_end(begin, count), left,
                         [&](std::size_t i) { return key(i) == tied ? weight(i) : 0.0; });
      left -= total;
    }
    return {tied, count, 0.0};
  }
};

template <class T, void (*Step)(const RowLoops&, const StepRow<T>&)>
void rows_of(const AdversarialStep& step, std::size_t first, std::size_t last) {
  for (std::size_t row = first; row < last; ++row) Step(RowLoops{}, step_row<T>(step, row));
}

}  // namespace

AdversarialKernels adversarial_kernels() {
  return {linf_values<float>,
          linf_values<double>,
          l2_rows<float>,
          l2_rows<double>,
          rows_of<float, l1_row<float, RowLoops>>,
          rows_of<double, l1_row<double, RowLoops>>,
          rows_of<float, l0_row<float, RowLoops>>,
          rows_of<double, l0_row<double, RowLoops>>};
}

}  // namespace aisec_fast::AISEC_ISA
