#pragma once
// One Gaussian pair or Laplace sample from its bits: the fast step in binary64 with its bound, and the resolver.
// docs/noise.md sections 3 and 4 hold the definitions and the proofs; names follow them.
#include <cstdint>
#include <cstring>

#include "aisec_fast/chacha.hpp"
#include "aisec_fast/fixed_point.hpp"

namespace aisec_fast {
namespace {

constexpr unsigned group_samples = 128;  // made from 16 blocks
constexpr unsigned group_blocks = 16;
constexpr unsigned group_pairs = group_samples / 2;

constexpr double gaussian_bound = 0x1p-38;  // E / s
constexpr double laplace_bound = 0x1p-36;

AISEC_HD double as_double(std::uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

AISEC_HD std::uint64_t as_bits(double value) {
  std::uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

AISEC_HD double magnitude(double value) { return as_double(as_bits(value) & 0x7fffffffffffffffu); }

// (k + 1/2) 2^-52 for k < 2^52, exactly.
AISEC_HD double unit_midpoint(std::uint64_t k) { return as_double(k | 0x3ff0000000000000u) - (1.0 - 0x1p-53); }

// Nearest integer of |value| < 2^51, ties to even, as a double and as an integer.
constexpr double integer_shift = 0x1.8p52;
AISEC_HD double nearest(double value) { return (value + integer_shift) - integer_shift; }
AISEC_HD std::int64_t nearest_integer(double value) {
  return static_cast<std::int64_t>(as_bits(value + integer_shift) - as_bits(integer_shift));
}

// ln u for u = unit_midpoint(k).
AISEC_HD double logarithm(double u) {
  constexpr std::uint64_t root_half = 0x3fe6a09e667f3bcdu, one = 0x3ff0000000000000u;
  const std::uint64_t bits = as_bits(u);
  const std::uint64_t biased = (bits + (one - root_half)) >> 52;  // 1023 + e
  const double m = as_double(bits - ((biased - 1023) << 52));     // in [sqrt(1/2), sqrt 2)
  const double e = as_double(biased | 0x4330000000000000u) - (0x1p52 + 1023.0);
  const double t = (m - 1.0) / (m + 1.0), z = t * t;
  double sum = 1.0 / 21.0;
  sum = sum * z + 1.0 / 19.0;
  sum = sum * z + 1.0 / 17.0;
  sum = sum * z + 1.0 / 15.0;
  sum = sum * z + 1.0 / 13.0;
  sum = sum * z + 1.0 / 11.0;
  sum = sum * z + 1.0 / 9.0;
  sum = sum * z + 1.0 / 7.0;
  sum = sum * z + 1.0 / 5.0;
  sum = sum * z + 1.0 / 3.0;
  sum = sum * z + 1.0;
  return e * 0x1.62e42fefa39efp-1 + (t + t) * sum;
}

// Cosine and sine of a quarter turn times f: of pi/4 + y with |y| <= pi/4.
AISEC_HD void cosine_sine(double f, double& cosine, double& sine) {
  const double y = (f - 0.5) * 0x1.921fb54442d18p+0, z = y * y;
  double c = -1.0 / 6402373705728000.0;  // 1/18!
  c = c * z + 1.0 / 20922789888000.0;
  c = c * z - 1.0 / 87178291200.0;
  c = c * z + 1.0 / 479001600.0;
  c = c * z - 1.0 / 3628800.0;
  c = c * z + 1.0 / 40320.0;
  c = c * z - 1.0 / 720.0;
  c = c * z + 1.0 / 24.0;
  c = c * z - 1.0 / 2.0;
  c = c * z + 1.0;
  double s = -1.0 / 121645100408832000.0;  // 1/19!
  s = s * z + 1.0 / 355687428096000.0;
  s = s * z - 1.0 / 1307674368000.0;
  s = s * z + 1.0 / 6227020800.0;
  s = s * z - 1.0 / 39916800.0;
  s = s * z + 1.0 / 362880.0;
  s = s * z - 1.0 / 5040.0;
  s = s * z + 1.0 / 120.0;
  s = s * z - 1.0 / 6.0;
  s = s * z + 1.0;
  s = s * y;
  cosine = (c - s) * 0x1.6a09e667f3bcdp-1;
  sine = (c + s) * 0x1.6a09e667f3bcdp-1;
}

// Sets the sign of an integer from the top bit of `bits`.
AISEC_HD std::int64_t with_sign(std::int64_t integer, std::uint64_t bits) {
  const std::int64_t minus = -static_cast<std::int64_t>(bits >> 63);
  return (integer ^ minus) - minus;
}

// The pair's two integers, or flagged != 0 if binary64 cannot decide them.
AISEC_HD void gaussian_pair(std::uint64_t wu, std::uint64_t wv, double s, std::int64_t& first, std::int64_t& second,
                            std::uint64_t& flagged) {
  const double radius = s * __builtin_sqrt(-2.0 * logarithm(unit_midpoint(wu >> 12)));
  double cosine, sine;
  cosine_sine(unit_midpoint(wv << 2 >> 12), cosine, sine);
  const double a = radius * cosine, b = radius * sine;
  const double limit = 0.5 - gaussian_bound * s;
  const bool undecided = !(magnitude(a - nearest(a)) <= limit) | !(magnitude(b - nearest(b)) <= limit);
  const bool outside = wu - (std::uint64_t{1} << 48) >= 0 - (std::uint64_t{1} << 48) - (std::uint64_t{1} << 47);
  flagged = undecided | outside;
  first = with_sign(nearest_integer(a), wv);
  second = with_sign(nearest_integer(b), wv << 1);
}

AISEC_HD void laplace_sample(std::uint64_t w, double s, std::int64_t& integer, std::uint64_t& flagged) {
  const double a = s * -logarithm(unit_midpoint(w << 1 >> 12));
  flagged = !(magnitude(a - nearest(a)) <= 0.5 - laplace_bound * s) | ((w << 1) < (std::uint64_t{1} << 48));
  integer = with_sign(nearest_integer(a), w);
}

// rint(value * s) for value < 2^9 and 1 <= s <= 2^40: s is a 53-bit integer over a power of two.
AISEC_HD std::int64_t scaled_nearest_integer(const Fixed& value, double s) {
  const std::uint64_t bits = as_bits(s);
  const std::uint64_t mantissa = (bits & 0xfffffffffffffu) | 0x10000000000000u;
  const int shift = 1075 - static_cast<int>(bits >> 52);  // s = mantissa / 2^shift, 12 <= shift <= 52
  const std::uint64_t integer_part = multiply_by_integer(value, mantissa).limb[fraction_limbs];
  return static_cast<std::int64_t>((integer_part + (std::uint64_t{1} << (shift - 1))) >> shift);
}

// The pair's two integers from its whole expansion; e continues wu and wv.
AISEC_HD_COLD void decide_gaussian_pair(std::uint64_t wu, std::uint64_t wv, const std::uint64_t (&e)[8], double s,
                                        std::int64_t& first, std::int64_t& second) {
  Fixed u{{e[3], e[2], e[1], e[0], wu, 0}};
  if (is_zero(u)) u.limb[0] = 1;
  Fixed f{{e[7], e[6], e[5], e[4], wv & 0x3fffffffffffffffu, 0}};
  f = shift_left(f, 2);  // the 62 bits of wv stand for 1/2, 1/4, ...
  const Fixed radius = square_root(shift_left(minus_logarithm(u), 1));
  Fixed cosine, sine;
  cosine_sine(f, cosine, sine);
  first = with_sign(scaled_nearest_integer(multiply(radius, cosine), s), wv);
  second = with_sign(scaled_nearest_integer(multiply(radius, sine), s), wv << 1);
}

AISEC_HD_COLD std::int64_t decide_laplace_sample(std::uint64_t w, const std::uint64_t (&e)[8], double s) {
  Fixed u{{e[3], e[2], e[1], e[0], w & 0x7fffffffffffffffu, 0}};
  u = shift_left(u, 1);
  if (is_zero(u)) u.limb[0] = 2;
  return with_sign(scaled_nearest_integer(minus_logarithm(u), s), w);
}

// What becomes of a flagged pair or sample.
AISEC_HD_COLD void resolve_gaussian_pair(std::uint64_t wu, std::uint64_t wv, const Key& key, std::uint64_t pair,
                                         double s, std::int64_t& first, std::int64_t& second) {
  std::uint64_t e[8];
  refinement_words(e, key, Domain::gaussian, pair);
  decide_gaussian_pair(wu, wv, e, s, first, second);
}

AISEC_HD_COLD std::int64_t resolve_laplace_sample(std::uint64_t w, const Key& key, std::uint64_t sample, double s) {
  std::uint64_t e[8];
  refinement_words(e, key, Domain::laplace, sample);
  return decide_laplace_sample(w, e, s);
}

// rint(x / g), NaN as 0, the rest clamped to +-2^62.
AISEC_HD std::int64_t to_lattice(double x, double inverse_granularity) {
  constexpr double largest = 0x1p62, big = 0x1p52;
  const double scaled = x * inverse_granularity, size = magnitude(scaled);
  const double rounded = size < big ? (size + big) - big : size;  // from 2^52 on a double is an integer
  const double clamped = rounded < largest ? rounded : (rounded >= largest ? largest : 0.0);
  const std::int64_t integer = static_cast<std::int64_t>(clamped);
  return with_sign(integer, as_bits(scaled));
}
AISEC_HD std::int64_t to_lattice(float x, double inverse_granularity) {
  return to_lattice(static_cast<double>(x), inverse_granularity);
}
AISEC_HD std::int64_t to_lattice(std::int64_t q, double) { return q; }

// float(integer) * g, the integer rounded once.
template <class T>
AISEC_HD T from_lattice(std::int64_t integer, double granularity) {
  return static_cast<T>(static_cast<double>(static_cast<T>(integer)) * granularity);
}

}  // namespace
}  // namespace aisec_fast
