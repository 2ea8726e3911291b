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
AISEC_HD bool is_finite(double value) { return without_sign(value) <= largest_finite; }

template <class T>
constexpr T largest_of = static_cast<T>(sizeof(T) == 4 ? 0x1.fffffep+127 : largest_finite);

// value rounded to T toward zero; infinity stays.
template <class T>
AISEC_HD T toward_zero(double value) {
  using Word = typename Bits<T>::Word;
  const T nearest = static_cast<T>(value);
  const bool too_large = without_sign(widen(nearest)) > without_sign(value);
  return bits_as<T>(bits_as<Word>(nearest) - (too_large ? Word{1} : Word{0}));
}

// a + b rounded down, for finite a and b >= 0: the sum's error, exact (Knuth's two-sum), tells whether it was rounded
// up. A sum beyond the largest value stays infinite.
template <class T>
AISEC_HD T sum_down(T a, T b) {
  using Word = typename Bits<T>::Word;
  using Unsigned = typename Bits<T>::Unsigned;
  const T sum = a + b, rest = sum - a, error = (a - (sum - rest)) + (b - rest);
  const Word bits = bits_as<Word>(sum), down = (bits >> (8 * sizeof(Word) - 1)) | Word{1};  // 1, or -1 below zero
  const Word moved = static_cast<Word>(static_cast<Unsigned>(bits) - static_cast<Unsigned>(down));
  return bits_as<T>(error < T{0} ? moved : bits);
}

template <class T>
AISEC_HD T flip_sign(T value, typename Bits<T>::Word sign) {
  return bits_as<T>(bits_as<typename Bits<T>::Word>(value) ^ sign);
}

// The order of the comparisons says which zero wins.
template <class T>
AISEC_HD T clamp(T value, T low, T high) {
  const T raised = value > low ? value : low;
  return raised < high ? raised : high;
}

// The box, and every finite value if there is none.
template <class T>
AISEC_HD T bound_of(double bound) {
  return clamp(static_cast<T>(bound), -largest_of<T>, largest_of<T>);
}

// Mirrored, so that the value moves up from x: then the ball ends at x + eps, rounded down.
template <class T>
AISEC_HD T linf_value(T adv, T x, T gradient, T step_size, T eps, T low, T high) {
  using Word = typename Bits<T>::Word;
  const T move = (gradient > T{0} ? step_size : T{0}) - (gradient < T{0} ? step_size : T{0});
  const T stepped = adv + move, moved = stepped == stepped ? stepped : x;
  const Word sign = moved < x ? Word{1} << (8 * sizeof(Word) - 1) : Word{0};
  const T limit = sum_down(flip_sign(x, sign), eps), target = flip_sign(moved, sign);
  return clamp(flip_sign(target < limit ? target : limit, sign), low, high);
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
  using Word = typename Bits<T>::Word;
  const T reach = toward_zero<T>(factor * change);
  const Word sign = bits_as<Word>(reach) & (Word{1} << (8 * sizeof(Word) - 1));
  return clamp(flip_sign(sum_down(flip_sign(x, sign), flip_sign(reach, sign)), sign), low, high);
}

}  // namespace
}  // namespace aisec_fast
