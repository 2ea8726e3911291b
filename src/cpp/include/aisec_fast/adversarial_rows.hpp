#pragma once
// The L1 and L0 steps of one row, written once for CPU and CUDA (docs/adversarial.md, sections 4 and 5). `Row` says how
// a row's values are added up, compared and stored; value(i) and the like may be asked for any i < columns, again and
// again, until store.
#include "aisec_fast/adversarial_math.hpp"
#include "aisec_fast/kernels.hpp"

namespace aisec_fast {
namespace {

// One row: adv, x and gradient are its values.
template <class T>
struct StepRow {
  const T *adv, *x, *gradient;
  T* out;
  std::size_t columns;
  double step_size, eps;
  T low, high;  // finite
};

template <class T>
AISEC_HD StepRow<T> step_row(const AdversarialStep& step, std::size_t row) {
  const std::size_t first = row * step.columns;
  return {static_cast<const T*>(step.adv) + first,
          static_cast<const T*>(step.x) + first,
          static_cast<const T*>(step.gradient) + first,
          static_cast<T*>(step.out) + first,
          step.columns,
          step.step_size,
          step.eps,
          bound_of<T>(step.low),
          bound_of<T>(step.high)};
}

// A sum, and how many of its terms grow as the threshold falls.
struct SumAndSlope {
  double sum, slope;
};

// --- Filling: the values with the largest keys, until a budget is used up --------------------------------------------

constexpr double no_key = -__builtin_huge_val();  // of values that must not be taken

struct Filling {
  double threshold;  // larger keys are taken
  std::size_t stop;  // those equal to it are taken below this index
  double last;       // and this much is taken there

  template <class Number>
  AISEC_HD Number choose(std::size_t i, double key, Number taken, Number other) const {
    const Number tied = i < stop ? taken : other;
    return key > threshold ? taken : key == threshold ? tied : other;
  }
  AISEC_HD double taken(std::size_t i, double key, double weight) const {
    const double tied = i < stop ? weight : i == stop ? last : 0.0;
    return key > threshold ? weight : key == threshold ? tied : 0.0;
  }
};
constexpr Filling everything{no_key, 0, 0.0};

// Integers in the order of the numbers, and back.
AISEC_HD std::int64_t order_of(double value) {
  const auto bits = bits_as<std::int64_t>(value);
  return bits ^ static_cast<std::int64_t>(static_cast<std::uint64_t>(bits >> 63) >> 1);
}
AISEC_HD double in_order(std::int64_t order) {
  return bits_as<double>(order ^ static_cast<std::int64_t>(static_cast<std::uint64_t>(order >> 63) >> 1));
}

// How the weights of a filling are: any, in keys whose lowest bits are 0; or ones.
struct Weights {
  unsigned shift;
  bool ones;
};

// The smallest threshold whose sum of weights above it fits into the budget, if that of `highest` does and that of
// no_key does not. Of ones, any threshold that leaves no room for one more.
template <class Above>
AISEC_HD double smallest_fit(double highest, double budget, Weights kind, const Above& above) {
  std::int64_t high = order_of(highest) >> kind.shift, low = -1;
  if (high < 0 || above(in_order(low)) <= budget) low = order_of(no_key) >> kind.shift;
  for (;;) {
    const std::uint64_t width = static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low);
    if (width <= 1) return in_order(high << kind.shift);
    const auto middle = static_cast<std::int64_t>(static_cast<std::uint64_t>(low) + width / 2);
    const double total = above(in_order(middle << kind.shift));
    (total <= budget ? high : low) = middle;
    if (kind.ones && total <= budget && total + 1.0 > budget) return in_order(middle << kind.shift);
  }
}

// `left` goes to values first, ..., last - 1 in their order, until it is used up.
template <class Weight>
AISEC_HD Filling share_out(Filling filling, std::size_t first, std::size_t last, double left, const Weight& weight) {
  for (filling.stop = first; filling.stop < last; ++filling.stop) {
    const double wanted = weight(filling.stop);
    if (!(wanted <= left)) {
      filling.last = left;
      break;
    }
    left -= wanted;
  }
  return filling;
}

// --- The threshold of the L1 projection ------------------------------------------------------------------------------

// Searches the smallest multiple of 2^-46 of the radius (rounded down to a power of two) whose sum fits into the
// radius; beyond 2^53 multiples, the smallest float64. Probes follow the slope, and every third one halves what is
// left: the result is the same whatever the probes.
class ThresholdSearch {
 public:
  AISEC_HD ThresholdSearch(double radius, double largest, SumAndSlope at_zero) : radius_(radius) {
    spacing_ = bits_as<double>(bits_as<std::int64_t>(radius) & std::int64_t{0x7ff0000000000000}) * 0x1p-46;
    limit_ = spacing_ * 0x1p53;
    high_ = index(largest);
    width_ = high_;
    aim(at_zero);
  }

  AISEC_HD bool done() const { return high_ - low_ <= 1; }
  AISEC_HD double probe() const { return value(probe_); }
  AISEC_HD double found() const { return value(high_); }
  AISEC_HD void narrow(SumAndSlope at_probe) {
    (at_probe.sum <= radius_ ? high_ : low_) = probe_;
    aim(at_probe);
  }

 private:
  static constexpr std::int64_t multiples = std::int64_t{1} << 53;

  AISEC_HD double value(std::int64_t k) const {
    if (k < multiples) return static_cast<double>(k) * spacing_;
    return bits_as<double>(bits_as<std::int64_t>(limit_) + (k - multiples));
  }
  // Of the smallest one that is not below t.
  AISEC_HD std::int64_t index(double t) const {
    if (!(t < limit_)) return multiples + (bits_as<std::int64_t>(t) - bits_as<std::int64_t>(limit_));
    const double quotient = t / spacing_;
    const auto floor = static_cast<std::int64_t>(quotient);
    return floor + (static_cast<double>(floor) < quotient ? 1 : 0);
  }
  AISEC_HD void aim(SumAndSlope at_probe) {
    if (done()) return;
    const double root = value(probe_) + (at_probe.sum - radius_) / at_probe.slope;
    const std::int64_t middle = low_ + (high_ - low_) / 2;
    std::int64_t next = root >= 0.0 && root <= largest_finite ? index(root) : middle;
    if (++probes_ % 3 == 0) {
      if (high_ - low_ > width_ / 2) next = middle;
      width_ = high_ - low_;
    }
    probe_ = next <= low_ ? low_ + 1 : next >= high_ ? high_ - 1 : next;
  }

  double radius_, spacing_, limit_;
  std::int64_t low_ = 0, high_, width_, probe_ = 0;  // low does not fit, high does
  int probes_ = 0;
};

// --- L1 --------------------------------------------------------------------------------------------------------------
// Values are given by functions that hold copies, not references: loops over them then vectorise.

// How far x may go up or down, within the box and the radius.
template <class T>
AISEC_HD double room(const StepRow<T>& row, std::size_t i, bool up, double radius) {
  const double x = widen(row.x[i]), most = up ? widen(row.high) - x : x - widen(row.low);
  return most < radius ? most : radius;
}

// adv - x; 0 where that is not finite.
template <class T>
AISEC_HD double offset_of(const StepRow<T>& row, std::size_t i) {
  const double offset = widen(row.adv[i]) - widen(row.x[i]);
  return is_finite(offset) ? offset : 0.0;
}

// Whether the step has a direction: a gradient that is not zero and holds no infinity.
template <class T, class Row>
AISEC_HD bool has_direction(const Row& values, const StepRow<T>& row) {
  if (row.step_size == 0.0) return false;
  const T* gradient = row.gradient;
  const double largest =
      values.largest(row.columns, [=](std::size_t i) { return without_sign(slope_of(gradient[i])); });
  return largest > 0.0 && largest <= largest_finite;
}

// The gradient (NaN as 0), its signs turned for descent.
template <class T>
AISEC_HD auto signed_slope(const StepRow<T>& row) {
  const double sign = row.step_size > 0.0 ? 1.0 : -1.0;
  const T* gradient = row.gradient;
  return [=](std::size_t i) { return sign * slope_of(gradient[i]); };
}

// What is left of a change when its magnitude is lowered by the threshold and cut at `most`.
AISEC_HD double shrunk(double change, double threshold, double most) {
  const double rest = without_sign(change) - threshold, positive = rest > 0.0 ? rest : 0.0;
  return positive < most ? positive : most;
}

// out = the point of ball and box nearest to x + change.
template <class T, class Row, class Change>
AISEC_HD void project_l1(const Row& values, const StepRow<T>& row, double radius, const Change& change) {
  const auto sums = [&](double threshold) {
    return values.sums(row.columns, [=](std::size_t i) {
      const double d = change(i), most = room(row, i, d > 0.0, radius), rest = without_sign(d) - threshold;
      return SumAndSlope{shrunk(d, threshold, most), rest > 0.0 ? (rest < most ? 1.0 : 0.0) : 0.0};
    });
  };
  double threshold = 0.0;
  const SumAndSlope whole = sums(0.0);
  if (!(whole.sum <= radius)) {
    ThresholdSearch search(radius, values.largest(row.columns, [=](std::size_t i) { return without_sign(change(i)); }),
                           whole);
    while (!search.done()) search.narrow(sums(search.probe()));
    threshold = search.found();
  }
  values.store(row.out, row.columns, [=](std::size_t i) {
    const double d = change(i), reach = shrunk(d, threshold, room(row, i, d > 0.0, radius));
    return l2_value(row.x[i], d < 0.0 ? -reach : reach, 1.0, row.low, row.high);
  });
}

template <class T, class Row>
AISEC_HD void l1_row(const Row& values, const StepRow<T>& row) {
  const double radius = inner_radius(row.eps, row.columns);
  if (!has_direction(values, row)) {
    project_l1(values, row, radius, [=](std::size_t i) { return offset_of(row, i); });
    return;
  }
  const auto slope = signed_slope(row);
  const auto key = [=](std::size_t i) {
    const double magnitude = without_sign(slope(i));
    return magnitude > 0.0 ? magnitude : no_key;
  };
  const auto most = [=](std::size_t i) { return room(row, i, slope(i) > 0.0, radius); };
  // A little less than the radius, so that rounding does not take a step out of the ball.
  const Weights kind{sizeof(T) == sizeof(float) ? 29 : 0, false};
  const Filling filling = values.fill(row.columns, inner_radius(radius, row.columns), kind, key, most);
  const auto vertex = [=](std::size_t i) {
    const double taken = filling.taken(i, key(i), most(i));
    return slope(i) > 0.0 ? taken : -taken;
  };
  const double distance =
      values.sum(row.columns, [=](std::size_t i) { return without_sign(vertex(i) - offset_of(row, i)); });
  const double share = without_sign(row.step_size) / distance;
  project_l1(values, row, radius, [=](std::size_t i) {
    const double offset = offset_of(row, i), target = vertex(i);
    const double moved = share < 1.0 ? offset + share * (target - offset) : target;
    return is_finite(moved) ? moved : 0.0;
  });
}

// --- L0 --------------------------------------------------------------------------------------------------------------

AISEC_HD double rounded_up(double count) {
  if (!(count < 0x1p53)) return count;
  const auto floor = static_cast<double>(static_cast<std::int64_t>(count));
  return floor < count ? floor + 1.0 : floor;
}

AISEC_HD double number_or_zero(double value) { return value == value ? value : 0.0; }

// Each stage leaves its point in out, which the next one reads.
template <class T, class Row>
AISEC_HD void l0_row(const Row& values, const StepRow<T>& row) {
  const Weights ones{0, true};
  const auto one = [](std::size_t) { return 1.0; };
  // The nearest point: the values whose return to x would cost most.
  const auto inside = [=](std::size_t i) {
    return is_finite(widen(row.adv[i])) ? clamp(row.adv[i], row.low, row.high) : row.x[i];
  };
  const auto gain = [=](std::size_t i) {
    const T value = inside(i);
    const double x = widen(row.x[i]), change = without_sign(widen(value) - x);
    const double wanted = without_sign(widen(row.adv[i]) - x);
    return value != row.x[i] ? number_or_zero(change * (2.0 * wanted - change)) : no_key;
  };
  const Filling nearest = values.fill(row.columns, row.eps, ones, gain, one);
  values.store(row.out, row.columns, [=](std::size_t i) { return nearest.choose(i, gain(i), inside(i), row.x[i]); });
  if (!has_direction(values, row)) return;

  // What each value gives along the gradient, and could give at its end of the box.
  const auto slope = signed_slope(row);
  const auto end = [=](std::size_t i) { return slope(i) > 0.0 ? row.high : row.low; };
  const auto given = [=](std::size_t i, T value) {
    return number_or_zero(slope(i) * (widen(value) - widen(row.x[i])));
  };
  const double held = values.sum(row.columns, [=](std::size_t i) { return row.out[i] != row.x[i] ? 1.0 : 0.0; });
  double least = 0.0;  // what the value that makes room for another gives
  if (held > 0.0 && held + 1.0 > row.eps)
    least = -values.largest(
        row.columns, [=](std::size_t i) { return row.out[i] != row.x[i] ? -given(i, row.out[i]) : -largest_finite; });
  const auto benefit = [=](std::size_t i) {
    const double most = slope(i) != 0.0 ? given(i, end(i)) : 0.0, alone = most > 0.0 ? most - least : 0.0;
    const double more = row.out[i] != row.x[i] ? most - given(i, row.out[i]) : alone;
    return more > 0.0 ? more : no_key;
  };
  const Filling movers = values.fill(row.columns, rounded_up(without_sign(row.step_size)), ones, benefit, one);
  values.store(row.out, row.columns, [=](std::size_t i) { return movers.choose(i, benefit(i), end(i), row.out[i]); });
  const auto worth = [=](std::size_t i) { return row.out[i] != row.x[i] ? given(i, row.out[i]) : no_key; };
  const Filling best = values.fill(row.columns, row.eps, ones, worth, one);
  values.store(row.out, row.columns, [=](std::size_t i) { return best.choose(i, worth(i), row.out[i], row.x[i]); });
}

}  // namespace
}  // namespace aisec_fast
