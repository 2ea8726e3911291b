#pragma once
// One sample from its bits: the fast step in binary64 with its bound, and the resolver.
// docs/noise.md sections 3 and 4 hold the definitions and the proofs; names follow them.
#include <cstdint>
#include <cstring>

#include "aisec_fast/chacha.hpp"
#include "aisec_fast/fixed_point.hpp"
#include "aisec_fast/quantiles.hpp"

namespace aisec_fast {
namespace {

constexpr unsigned group_samples = 128;  // made from 16 blocks of ChaCha
constexpr unsigned group_blocks = 16;

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

// Nearest integer of |value| < 2^51, ties to even, as a double and as an integer.
constexpr double integer_shift = 0x1.8p52;
AISEC_HD double nearest(double value) { return (value + integer_shift) - integer_shift; }
AISEC_HD std::int64_t nearest_integer(double value) {
  return static_cast<std::int64_t>(as_bits(value + integer_shift) - as_bits(integer_shift));
}

// Negates the integer if the lowest of `bits` is set.
AISEC_HD std::int64_t with_sign(std::int64_t integer, std::uint64_t bits) {
  const std::int64_t minus = -static_cast<std::int64_t>(bits & 1);
  return (integer ^ minus) - minus;
}

// w rounded to binary64, in operations that every instruction set has for vectors.
AISEC_HD double rounded_word(std::uint64_t w) {
  return (as_double(w >> 32 | 0x4530000000000000u) - (0x1p84 + 0x1p52)) +
         as_double((w & 0xffffffffu) | 0x4330000000000000u);
}

// Number of a cell: 0 for the least v = 2^32, 2048 for v = 2^64; negative or huge outside.
AISEC_HD std::int64_t quantile_cell(std::uint64_t v_bits) {
  return static_cast<std::int64_t>(v_bits >> 46) - ((1023 + 32) << 6);
}

// v's place in its cell.
AISEC_HD double quantile_delta(std::uint64_t v_bits) {
  return as_double((v_bits & 0x3fffffffffffu) | 0x3ff0000000000000u) - (1.0 + 0x1p-7);
}

AISEC_HD double quantile(const QuantileRow& row, double delta) {
  const double c4 = as_double(row.c[3] << 32);
  return (((c4 * delta + as_double(row.c[3])) * delta + as_double(row.c[2])) * delta + as_double(row.c[1])) * delta +
         as_double(row.c[0]);
}

AISEC_HD Domain domain_of(Law law) { return law == Law::gaussian ? Domain::gaussian : Domain::laplace; }

// E / s.
AISEC_HD double quantile_bound(Law law) { return law == Law::gaussian ? 0x1p-42 : 0x1p-40; }

// |a - n| up to which the fast step accepts; negative from where nothing is.
AISEC_HD double largest_distance(Law law, double s) { return 0.5 - quantile_bound(law) * s; }

// The fast step, flagged != 0 if it cannot decide.
AISEC_HD void quantile_sample(const QuantileRow* table, std::uint64_t w, double s, double limit, std::int64_t& integer,
                              std::uint64_t& flagged) {
  const std::uint64_t bits = as_bits(rounded_word(w));
  const std::int64_t cell = quantile_cell(bits);
  const std::int64_t row = (cell < deep_rows ? deep_rows - 1 : cell) + 1;
  const double a = s * quantile(table[row], quantile_delta(bits));
  flagged = !(magnitude(a - nearest(a)) <= limit);
  integer = with_sign(nearest_integer(a), w);
}

// u with 64 F fractional bits: w without its lowest bit, then e[0], ..., e[3]; 2^-319 for zero.
template <int F>
AISEC_HD Fixed<F> expansion(std::uint64_t w, const std::uint64_t (&e)[8]) {
  const std::uint64_t words[6] = {w >> 1, e[0], e[1], e[2], e[3], 0};
  Fixed<F> u = fixed_integer<F>(0);
  std::uint64_t any = 0;
  for (int i = 0; i < 5; ++i) {
    const std::uint64_t limb = words[i] << 1 | words[i + 1] >> 63;
    any |= limb;
    if (i < F) u.limb[F - 1 - i] = limb;
  }
  if (F >= 5 && any == 0) u.limb[F - 5] = 2;
  return u;
}

enum class Order { less, close, not_less };

// u against F(y), y = (n - 1/2) / s, for n >= 1 and 1 <= s <= 2^40: `close` if they differ by less than 2^(64 - 64 F).
template <int F>
AISEC_HD_COLD Order compare_with_tail(Law law, const Fixed<F>& u, std::uint64_t n, double s) {
  const std::uint64_t bits = as_bits(s);
  const std::uint64_t mantissa = (bits & 0xfffffffffffffu) | 0x10000000000000u;
  const int shift = 1075 - static_cast<int>(bits >> 52);  // s = mantissa / 2^shift, 12 <= shift <= 52
  const Fixed<F> y = ratio<F>(Wide{2 * n - 1} << (shift - 1), mantissa);
  Fixed<F> left = u, right = fixed_integer<F>(1);  // u < F(y) is left < right
  if (law == Law::laplace)
    right = exponential_of_minus(y);
  else
    left = add(u, normal_mass_within(y));
  const bool smaller = less(left, right);
  const Fixed<F> difference = smaller ? subtract(right, left) : subtract(left, right);
  if (is_zero(shift_right(difference, 64))) return Order::close;
  return smaller ? Order::less : Order::not_less;
}

// Whether u < F((n - 1/2) / s). 128 bits settle nearly every question about a sample near the middle, 256 bits about
// one that is not far out.
AISEC_HD_COLD bool reaches(Law law, std::uint64_t w, const std::uint64_t (&e)[8], std::uint64_t n, double s) {
  if (static_cast<double>(n) < 4.0 * s) {
    const Order order = compare_with_tail(law, expansion<2>(w, e), n, s);
    if (order != Order::close) return order == Order::less;
  }
  if (static_cast<double>(n) < 8.0 * s) {
    const Order order = compare_with_tail(law, expansion<4>(w, e), n, s);
    if (order != Order::close) return order == Order::less;
  }
  const Fixed<most_fraction_limbs> u = expansion<most_fraction_limbs>(w, e);
  return compare_with_tail(law, u, n, s) == Order::less;  // close: the residual of docs/noise.md
}

// |Z| from the whole expansion.
AISEC_HD_COLD std::int64_t decide_magnitude(Law law, const QuantileRow* table, std::uint64_t w,
                                            const std::uint64_t (&e)[8], double s) {
  const double farthest = law == Law::gaussian ? 21.2 : 222.0;
  std::uint64_t low = 0, high = static_cast<std::uint64_t>(farthest * s) + 1;
  const Fixed<2> u = expansion<2>(w, e);
  if (u.limb[1] >> 32 != 0) {
    const std::uint64_t bits = as_bits(static_cast<double>(u.limb[1]) + static_cast<double>(u.limb[0]) * 0x1p-64);
    const std::int64_t cell = quantile_cell(bits);
    const double a = s * quantile(table[cell < deep_rows ? cell : cell + 1], quantile_delta(bits));
    const double reach = 0.5 + quantile_bound(law) * s;
    if (a > reach) {
      low = static_cast<std::uint64_t>(a - reach);
      low += static_cast<double>(low) < a - reach;
    }
    high = static_cast<std::uint64_t>(a + reach);
  }
  while (low < high) {
    const std::uint64_t middle = low + (high - low + 1) / 2;
    if (reaches(law, w, e, middle, s))
      low = middle;
    else
      high = middle - 1;
  }
  return static_cast<std::int64_t>(low);
}

// What becomes of a flagged sample.
AISEC_HD_COLD std::int64_t resolve_sample(Law law, const QuantileRow* table, std::uint64_t w, const Key& key,
                                          std::uint64_t sample, double s) {
  std::uint64_t e[8];
  refinement_words(e, key, domain_of(law), sample);
  return with_sign(decide_magnitude(law, table, w, e, s), w);
}

// rint(x / g), NaN as 0, the rest clamped to +-2^62.
AISEC_HD std::int64_t to_lattice(double x, double inverse_granularity) {
  constexpr double largest = 0x1p62, big = 0x1p52;
  const double scaled = x * inverse_granularity, size = magnitude(scaled);
  const double rounded = size < big ? (size + big) - big : size;  // from 2^52 on a double is an integer
  const double clamped = rounded < largest ? rounded : (rounded >= largest ? largest : 0.0);
  const std::int64_t integer = static_cast<std::int64_t>(clamped);
  return with_sign(integer, as_bits(scaled) >> 63);
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
