#pragma once
// Non-negative fixed-point numbers with 64 integer and 64 F fractional bits, truncating. They decide the rare noise
// samples that binary64 leaves open (docs/noise.md section 4, "Resolver"), so plain and provable beats fast here.
#include <cstdint>
#include <cstring>

#include "aisec_fast/host_device.hpp"

namespace aisec_fast {
namespace {

constexpr int most_fraction_limbs = 11;

template <int F>
struct Fixed {
  std::uint64_t limb[F + 1];  // limb[F] is the integer part, limb[0] the last fraction bits
};

__extension__ typedef unsigned __int128 Wide;

template <int F>
AISEC_HD Fixed<F> fixed_integer(std::uint64_t value) {
  Fixed<F> result{};
  result.limb[F] = value;
  return result;
}

// The leading F of a constant's limbs, least first.
template <int F>
AISEC_HD Fixed<F> leading(const std::uint64_t (&limbs)[most_fraction_limbs]) {
  Fixed<F> result{};
  for (int i = 0; i < F; ++i) result.limb[i] = limbs[most_fraction_limbs - F + i];
  return result;
}

template <int F>
AISEC_HD bool less(const Fixed<F>& a, const Fixed<F>& b) {
  for (int i = F; i > 0; --i)
    if (a.limb[i] != b.limb[i]) return a.limb[i] < b.limb[i];
  return a.limb[0] < b.limb[0];
}

template <int F>
AISEC_HD bool is_zero(const Fixed<F>& a) {
  std::uint64_t any = 0;
  for (int i = 0; i < F + 1; ++i) any |= a.limb[i];
  return any == 0;
}

template <int F>
AISEC_HD Fixed<F> add(const Fixed<F>& a, const Fixed<F>& b) {
  Fixed<F> sum;
  std::uint64_t carry = 0;
  for (int i = 0; i < F + 1; ++i) {
    const Wide total = Wide{a.limb[i]} + b.limb[i] + carry;
    sum.limb[i] = static_cast<std::uint64_t>(total);
    carry = static_cast<std::uint64_t>(total >> 64);
  }
  return sum;
}

// a - b, or zero if b is larger.
template <int F>
AISEC_HD Fixed<F> subtract(const Fixed<F>& a, const Fixed<F>& b) {
  if (less(a, b)) return fixed_integer<F>(0);
  Fixed<F> difference;
  std::uint64_t borrow = 0;
  for (int i = 0; i < F + 1; ++i) {
    const Wide total = Wide{a.limb[i]} - b.limb[i] - borrow;
    difference.limb[i] = static_cast<std::uint64_t>(total);
    borrow = static_cast<std::uint64_t>(total >> 64) & 1;
  }
  return difference;
}

// a / 2^bits.
template <int F>
AISEC_HD Fixed<F> shift_right(const Fixed<F>& a, unsigned bits) {
  Fixed<F> shifted{};
  const int limbs = static_cast<int>(bits / 64), rest = static_cast<int>(bits % 64);
  for (int i = 0; i + limbs < F + 1; ++i) {
    shifted.limb[i] = a.limb[i + limbs] >> rest;
    if (rest != 0 && i + limbs + 1 < F + 1) shifted.limb[i] |= a.limb[i + limbs + 1] << (64 - rest);
  }
  return shifted;
}

template <int F>
AISEC_HD Fixed<F> product_of(const Fixed<F>& a, const Fixed<F>& b) {
  std::uint64_t product[2 * F + 2] = {};
  for (int i = 0; i < F + 1; ++i) {
    std::uint64_t carry = 0;
    for (int j = 0; j < F + 1; ++j) {
      const Wide total = Wide{a.limb[i]} * b.limb[j] + product[i + j] + carry;
      product[i + j] = static_cast<std::uint64_t>(total);
      carry = static_cast<std::uint64_t>(total >> 64);
    }
    product[i + F + 1] = carry;
  }
  Fixed<F> result;
  for (int i = 0; i < F + 1; ++i) result.limb[i] = product[i + F];
  return result;
}

// Functions that many samples wait for on a GPU, where a call passes numbers through memory, are inlined for the
// shortest numbers, and called for longer ones, which few samples need.
constexpr int inlined_limbs = 2;

template <int F>
AISEC_HD_COLD Fixed<F> called_product_of(const Fixed<F>& a, const Fixed<F>& b) {
  return product_of(a, b);
}
template <int F>
AISEC_HD Fixed<F> multiply(const Fixed<F>& a, const Fixed<F>& b) {
  if constexpr (F <= inlined_limbs)
    return product_of(a, b);
  else
    return called_product_of(a, b);
}

template <int F>
AISEC_HD Fixed<F> multiply_by_integer(const Fixed<F>& a, std::uint64_t factor) {
  Fixed<F> result;
  std::uint64_t carry = 0;
  for (int i = 0; i < F + 1; ++i) {
    const Wide total = Wide{a.limb[i]} * factor + carry;
    result.limb[i] = static_cast<std::uint64_t>(total);
    carry = static_cast<std::uint64_t>(total >> 64);
  }
  return result;
}

// Long division by way of 1 / divisor in binary64, as a GPU has no instruction to divide integers. A step appends
// `bits` bits to the remainder and takes the next digit of the quotient: the product is within 2^-19 of it, as long as
// a digit is below 2^32 and the divisor below 2^53, so that the nearest integer is the digit or one more.
class LongDivision {
 public:
  explicit AISEC_HD LongDivision(std::uint64_t divisor)
      : divisor_(divisor), inverse_(1.0 / static_cast<double>(divisor)) {}

  // remainder * 2^bits must stay below 2^63.
  AISEC_HD std::uint64_t digit(unsigned bits, std::uint64_t next) {
    const std::uint64_t dividend = remainder_ << bits | next;
    const double with_shift = static_cast<double>(static_cast<std::int64_t>(dividend)) * inverse_ + 0x1p52;
    std::uint64_t digit;
    memcpy(&digit, &with_shift, sizeof digit);
    digit -= 0x4330000000000000u;  // 2^52
    remainder_ = dividend - digit * divisor_;
    const std::uint64_t too_large = remainder_ >> 63;
    remainder_ += too_large * divisor_;
    return digit - too_large;
  }

 private:
  std::uint64_t divisor_, remainder_ = 0;
  double inverse_;
};

// divisor < 2^31.
template <int F>
AISEC_HD Fixed<F> quotient_of(const Fixed<F>& a, std::uint64_t divisor) {
  LongDivision division(divisor);
  Fixed<F> quotient;
  for (int i = F; i >= 0; --i) {
    const std::uint64_t high = division.digit(32, a.limb[i] >> 32);
    quotient.limb[i] = high << 32 | division.digit(32, a.limb[i] & 0xffffffffu);
  }
  return quotient;
}
template <int F>
AISEC_HD_COLD Fixed<F> called_quotient_of(const Fixed<F>& a, std::uint64_t divisor) {
  return quotient_of(a, divisor);
}
template <int F>
AISEC_HD Fixed<F> divide_by_integer(const Fixed<F>& a, std::uint64_t divisor) {
  if constexpr (F <= inlined_limbs)
    return quotient_of(a, divisor);
  else
    return called_quotient_of(a, divisor);
}

// numerator / divisor, below 2^64; divisor < 2^53.
template <int F>
AISEC_HD_COLD Fixed<F> ratio(Wide numerator, std::uint64_t divisor) {
  constexpr unsigned digit = 8;
  LongDivision division(divisor);
  const auto next_limb = [&](std::uint64_t limb) {
    std::uint64_t quotient = 0;
    for (unsigned left = 64; left > 0; left -= digit)
      quotient = quotient << digit | division.digit(digit, limb >> (left - digit) & 0xff);
    return quotient;
  };
  Fixed<F> quotient;
  if (const std::uint64_t high = static_cast<std::uint64_t>(numerator >> 64)) next_limb(high);  // 0
  quotient.limb[F] = next_limb(static_cast<std::uint64_t>(numerator));
  for (int i = F - 1; i >= 0; --i) quotient.limb[i] = next_limb(0);
  return quotient;
}

template <int F>
struct Powers {
  Fixed<F> first, second, third, fourth;

  explicit AISEC_HD Powers(const Fixed<F>& x)
      : first(x), second(multiply(x, x)), third(multiply(second, x)), fourth(multiply(second, second)) {}
};

// exp(-x) for x < 2^9: 2^-k exp(-r) with x = k ln 2 + r, 0 <= r < 0.7, by Taylor's series.
template <int F>
AISEC_HD_COLD Fixed<F> exponential_of_minus(const Fixed<F>& x) {
  const Fixed<F> ln2 = leading<F>({0xb9ea9bc3b136603bu, 0x1acbda11317c387eu, 0x3e96ca16224ae8c5u, 0x27573b291169b825u,
                                   0xed2eae35c1382144u, 0x559552fb4afa1b10u, 0xe7b876206debac98u, 0x8a0d175b8baafa2bu,
                                   0x40f343267298b62du, 0xc9e3b39803f2f6afu, 0xb17217f7d1cf79abu});
  // floor(x / ln 2), or one less: from 96 bits of x and 1 / ln 2 = 0xb8aa3b29.5... / 2^31.
  const Wide head = Wide{x.limb[F]} << 32 | x.limb[F - 1] >> 32;
  const std::uint64_t k = static_cast<std::uint64_t>(head * 0xb8aa3b29u >> 63);
  const Fixed<F> r = subtract(x, multiply_by_integer(ln2, k)), one = fixed_integer<F>(1);
  constexpr std::uint64_t terms = 12 * F + 8;  // 0.7^terms / terms! is below the unit
  static_assert(terms % 4 == 0);
  const Powers<F> to(r);
  Fixed<F> sum = one;
  for (std::uint64_t i = terms - 3; i < terms; i -= 4) {  // four terms a division, which is what takes time
    const std::uint64_t from_3 = i + 3, from_2 = from_3 * (i + 2), from_1 = from_2 * (i + 1), all = from_1 * i;
    const Fixed<F> plus = add(multiply_by_integer(to.second, from_2), multiply(to.fourth, sum));
    const Fixed<F> minus = add(multiply_by_integer(to.first, from_1), multiply_by_integer(to.third, from_3));
    sum = divide_by_integer(subtract(add(fixed_integer<F>(all), plus), minus), all);
  }
  return shift_right(sum, static_cast<unsigned>(k));
}

// y^2 < 16: how many groups of four terms the sum below has for 128 bits. What is left out is below 2^-128.
AISEC_HD std::uint64_t groups_of_terms(std::uint64_t square_below) { return 8 + (2 * square_below + 2) / 3; }

// 1 + y^2/3 + y^4/(3 5) + ..., y^2 < 16, from its end.
AISEC_HD Fixed<2> growing_sum(const Fixed<2>& square) {
  const Powers<2> to(square);
  Fixed<2> sum = fixed_integer<2>(1);
  for (std::uint64_t group = groups_of_terms(square.limb[2] + 1); group > 0; --group) {
    const std::uint64_t d = 8 * group - 5;  // the first divisor of the group: 3, 11, ...
    const std::uint64_t from_3 = d + 6, from_2 = from_3 * (d + 4), from_1 = from_2 * (d + 2), all = from_1 * d;
    const Fixed<2> low = add(multiply_by_integer(to.first, from_1), multiply_by_integer(to.second, from_2));
    const Fixed<2> high = add(multiply_by_integer(to.third, from_3), multiply(to.fourth, sum));
    sum = divide_by_integer(add(add(fixed_integer<2>(all), low), high), all);
  }
  return sum;
}

// erf(y / sqrt 2): a_0 + a_1 + ..., a_0 = sqrt(2/pi) y exp(-y^2/2), a_(k+1) = a_k y^2 / (2k + 3). For y < 2^5; with 128
// bits for y < 4.
template <int F>
AISEC_HD_COLD Fixed<F> normal_mass_within(const Fixed<F>& y) {
  const Fixed<F> root_2_over_pi =
      leading<F>({0x9596a89bcd3dd465u, 0x9d9b7adccb84672bu, 0x30505c3fb28f9c96u, 0x4f1d32688be119ffu,
                  0xd6284ef2e17c2a26u, 0x47eba75766e9d11bu, 0x3bf158aa88fa7b6eu, 0x808e369004c73a5du,
                  0xa7053e60a24e0db1u, 0x7e59e2805d5c717fu, 0xcc42299ea1b28468u});
  const Fixed<F> square = multiply(y, y);
  Fixed<F> term = multiply(multiply(root_2_over_pi, y), exponential_of_minus(shift_right(square, 1)));
  if constexpr (F == 2) {
    return multiply(term, growing_sum(square));
  } else {
    Fixed<F> sum = fixed_integer<F>(0);
    for (std::uint64_t k = 0; !is_zero(term); ++k) {
      sum = add(sum, term);
      term = divide_by_integer(multiply(term, square), 2 * k + 3);
    }
    return sum;
  }
}

}  // namespace
}  // namespace aisec_fast
