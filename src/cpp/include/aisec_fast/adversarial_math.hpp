#pragma once
// Arithmetic of the adversarial steps, shared by CPU and CUDA kernels. docs/adversarial.md defines every rounding.
#include <cstdint>
#include <cstring>

#include "aisec_fast/clipping_math.hpp"

namespace aisec_fast {
namespace {

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using Word = std::int32_t;
  using Unsigned = std::uint32_t;
};
template <>
struct Bits<double> {
  using Word = std::int64_t;
  using Unsigned = std::uint64_t;
};

template <class To, class From>
AISEC_HD To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}

AISEC_HD double without_sign(double value) {
  return bits_as<double>(bits_as<std::int64_t>(value) & std::int64_t{0x7fffffffffffffff});
}
AISEC_HD double with_sign_of(double value, double magnitude) {
  constexpr std::int64_t sign_bit = std::int64_t{1} << 63;
  return bits_as<double>(bits_as<std::int64_t>(magnitude) | (bits_as<std::int64_t>(value) & sign_bit));
}
AISEC_HD bool is_finite(double value) { return without_sign(value) <= largest_finite; }

// x + reach rounded to T, moved one value toward x where it is then farther from x than most = |reach|, which is
// finite. By bits and without a branch, so that loops vectorise: seen from x, a value on the same side of zero as its
// direction is moved toward zero, another away from zero. A zero that must move has x's sign, so it counts as the other
// side.
template <class T>
AISEC_HD T nearest_inside(T x, double reach, double most) {
  using Word = typename Bits<T>::Word;
  using Unsigned = typename Bits<T>::Unsigned;
  constexpr int top = 8 * sizeof(Word) - 1;
  const T nearest = static_cast<T>(widen(x) + reach);
  const bool too_far = without_sign(widen(nearest) - widen(x)) > most;
  const Word bits = bits_as<Word>(nearest), direction = nearest < x ? Word{1} << top : Word{0};
  const Word toward_zero = ((bits ^ direction) >> top) | Word{1};  // 1, or -1 for away from zero
  const Word moved = static_cast<Word>(static_cast<Unsigned>(bits) - static_cast<Unsigned>(toward_zero));
  return bits_as<T>(too_far ? moved : bits);
}

// The order of the comparisons says which zero wins.
template <class T>
AISEC_HD T clamp(T value, T low, T high) {
  const T raised = value > low ? value : low;
  return raised < high ? raised : high;
}

// eps is finite.
template <class T>
AISEC_HD T linf_value(T adv, T x, T gradient, double step_size, double eps, T low, T high) {
  const T sign = (gradient > T{0} ? T{1} : T{0}) - (gradient < T{0} ? T{1} : T{0});
  const T stepped = static_cast<T>(widen(adv) + step_size * widen(sign)), moved = stepped == stepped ? stepped : x;
  const T bound = nearest_inside(x, with_sign_of(widen(moved) - widen(x), eps), eps);
  const T inside = clamp(moved, bound < x ? bound : x, bound < x ? x : bound);
  return clamp(inside, low, high);
}

// What the steepest direction is scaled by: step_size / norm, or 0 if that is not finite.
AISEC_HD double move_factor(double step_size, double norm) {
  const double quotient = step_size / norm;
  return is_finite(quotient) ? quotient : 0.0;
}

// A gradient's entry in the norm: NaN counts as 0.
template <class T>
AISEC_HD double slope_of(T gradient) {
  const double slope = widen(gradient);
  return slope == slope ? slope : 0.0;
}

// How far a value is from x after the move; 0 where that is not finite.
template <class T>
AISEC_HD double change_of(T adv, T x, T gradient, double factor) {
  const double slope = widen(gradient), move = is_finite(slope) ? factor * slope : 0.0;
  const double change = (widen(adv) + move) - widen(x);
  return is_finite(change) ? change : 0.0;
}

// The radius that rows are projected to: eps less what any float64 evaluation of a row's norm can be off by. Below
// least_eps squares may lose bits: such a ball holds x alone.
constexpr double least_eps = 0x1p-400;
AISEC_HD double inner_radius(double eps, std::uint64_t columns) {
  return eps >= least_eps ? eps * (1.0 - (0x1p-30 + static_cast<double>(columns) * 0x1p-52)) : 0.0;
}

template <class T>
AISEC_HD T l2_value(T x, double change, double factor, T low, T high) {
  const double reach = factor * change;
  return clamp(nearest_inside(x, reach, without_sign(reach)), low, high);
}

}  // namespace
}  // namespace aisec_fast
