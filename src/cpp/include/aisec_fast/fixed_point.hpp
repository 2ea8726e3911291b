#pragma once
// Non-negative fixed-point numbers with 64 integer and 320 fractional bits, truncating. They decide the rare noise
// samples that binary64 leaves open (docs/noise.md section 4, "Resolver"), so plain and provable beats fast here.
#include <cstdint>

#include "aisec_fast/host_device.hpp"

namespace aisec_fast {
namespace {

constexpr int fixed_limbs = 6;
constexpr int fraction_limbs = 5;
constexpr int fraction_bits = 64 * fraction_limbs;

struct Fixed {
  std::uint64_t limb[fixed_limbs];  // limb[5] is the integer part, limb[0] the last fraction bits
};

__extension__ typedef unsigned __int128 Wide;

AISEC_HD Fixed fixed_integer(std::uint64_t value) { return Fixed{{0, 0, 0, 0, 0, value}}; }

AISEC_HD bool less(const Fixed& a, const Fixed& b) {
  for (int i = fixed_limbs - 1; i > 0; --i)
    if (a.limb[i] != b.limb[i]) return a.limb[i] < b.limb[i];
  return a.limb[0] < b.limb[0];
}

AISEC_HD bool is_zero(const Fixed& a) {
  std::uint64_t any = 0;
  for (int i = 0; i < fixed_limbs; ++i) any |= a.limb[i];
  return any == 0;
}

AISEC_HD Fixed add(const Fixed& a, const Fixed& b) {
  Fixed sum;
  std::uint64_t carry = 0;
  for (int i = 0; i < fixed_limbs; ++i) {
    const Wide total = Wide{a.limb[i]} + b.limb[i] + carry;
    sum.limb[i] = static_cast<std::uint64_t>(total);
    carry = static_cast<std::uint64_t>(total >> 64);
  }
  return sum;
}

// a - b, or zero if b is larger.
AISEC_HD Fixed subtract(const Fixed& a, const Fixed& b) {
  if (less(a, b)) return fixed_integer(0);
  Fixed difference;
  std::uint64_t borrow = 0;
  for (int i = 0; i < fixed_limbs; ++i) {
    const Wide total = Wide{a.limb[i]} - b.limb[i] - borrow;
    difference.limb[i] = static_cast<std::uint64_t>(total);
    borrow = static_cast<std::uint64_t>(total >> 64) & 1;
  }
  return difference;
}

// a * 2^bits, 0 < bits < 64; bits shifted out at the top are lost.
AISEC_HD Fixed shift_left(const Fixed& a, int bits) {
  Fixed shifted;
  for (int i = fixed_limbs - 1; i > 0; --i) shifted.limb[i] = a.limb[i] << bits | a.limb[i - 1] >> (64 - bits);
  shifted.limb[0] = a.limb[0] << bits;
  return shifted;
}

AISEC_HD_COLD Fixed multiply(const Fixed& a, const Fixed& b) {
  std::uint64_t product[2 * fixed_limbs] = {};
  for (int i = 0; i < fixed_limbs; ++i) {
    std::uint64_t carry = 0;
    for (int j = 0; j < fixed_limbs; ++j) {
      const Wide total = Wide{a.limb[i]} * b.limb[j] + product[i + j] + carry;
      product[i + j] = static_cast<std::uint64_t>(total);
      carry = static_cast<std::uint64_t>(total >> 64);
    }
    product[i + fixed_limbs] = carry;
  }
  Fixed result;
  for (int i = 0; i < fixed_limbs; ++i) result.limb[i] = product[i + fraction_limbs];
  return result;
}

AISEC_HD Fixed multiply_by_integer(const Fixed& a, std::uint64_t factor) {
  Fixed result;
  std::uint64_t carry = 0;
  for (int i = 0; i < fixed_limbs; ++i) {
    const Wide total = Wide{a.limb[i]} * factor + carry;
    result.limb[i] = static_cast<std::uint64_t>(total);
    carry = static_cast<std::uint64_t>(total >> 64);
  }
  return result;
}

// divisor < 2^32: then every partial dividend fits in 64 bits.
AISEC_HD_COLD Fixed divide_by_integer(const Fixed& a, std::uint64_t divisor) {
  Fixed quotient;
  std::uint64_t remainder = 0;
  for (int i = fixed_limbs - 1; i >= 0; --i) {
    const std::uint64_t high = remainder << 32 | a.limb[i] >> 32;
    const std::uint64_t low = high % divisor << 32 | (a.limb[i] & 0xffffffffu);
    quotient.limb[i] = high / divisor << 32 | low / divisor;
    remainder = low % divisor;
  }
  return quotient;
}

// a / b for a < b < 4, bit by bit.
AISEC_HD_COLD Fixed divide(const Fixed& a, const Fixed& b) {
  Fixed quotient = fixed_integer(0), remainder = a;
  for (int bit = fraction_bits - 1; bit >= 0; --bit) {
    remainder = shift_left(remainder, 1);
    if (!less(remainder, b)) {
      remainder = subtract(remainder, b);
      quotient.limb[bit / 64] |= std::uint64_t{1} << (bit % 64);
    }
  }
  return quotient;
}

// sqrt(a) for a < 2^16: the integer square root of a * 2^640, two binary digits of it at a time.
AISEC_HD_COLD Fixed square_root(const Fixed& a) {
  Fixed root = fixed_integer(0), remainder = fixed_integer(0);
  constexpr int first = fraction_bits + 14;  // highest even digit of a that can be set
  for (int digit = first; digit >= -fraction_bits; digit -= 2) {
    const std::uint64_t two = digit >= 0 ? a.limb[digit / 64] >> (digit % 64) & 3 : 0;
    remainder = shift_left(remainder, 2);
    remainder.limb[0] |= two;
    root = shift_left(root, 1);
    Fixed trial = shift_left(root, 1);
    trial.limb[0] |= 1;
    if (!less(remainder, trial)) {
      remainder = subtract(remainder, trial);
      root.limb[0] |= 1;
    }
  }
  return root;
}

// -ln(a) for 0 < a < 1.
AISEC_HD_COLD Fixed minus_logarithm(const Fixed& a) {
  const Fixed ln2{
      {0xe7b876206debac98u, 0x8a0d175b8baafa2bu, 0x40f343267298b62du, 0xc9e3b39803f2f6afu, 0xb17217f7d1cf79abu, 0}};
  const Fixed one = fixed_integer(1);
  Fixed mantissa = a;
  std::uint64_t exponent = 0;  // a = mantissa / 2^exponent, 1 <= mantissa < 2
  while (mantissa.limb[fraction_limbs] == 0) {
    mantissa = shift_left(mantissa, 1);
    ++exponent;
  }
  const Fixed t = divide(subtract(mantissa, one), add(mantissa, one));
  const Fixed z = multiply(t, t);
  Fixed sum = fixed_integer(0);
  for (std::uint64_t k = 101; k-- > 0;) sum = add(multiply(z, sum), divide_by_integer(one, 2 * k + 1));
  return subtract(multiply_by_integer(ln2, exponent), shift_left(multiply(t, sum), 1));
}

// Cosine and sine of a quarter turn times f, 0 <= f < 1.
AISEC_HD_COLD void cosine_sine(const Fixed& f, Fixed& cosine, Fixed& sine) {
  const Fixed half_pi{
      {0xa29410f31c6809bbu, 0x04177d4c76273644u, 0x52049c1114cf98e8u, 0x898cc51701b839a2u, 0x921fb54442d18469u, 1}};
  const Fixed one = fixed_integer(1), angle = multiply(f, half_pi), square = multiply(angle, angle);
  cosine = sine = one;
  for (std::uint64_t k = 40; k > 0; --k) {
    cosine = subtract(one, divide_by_integer(multiply(square, cosine), (2 * k - 1) * (2 * k)));
    sine = subtract(one, divide_by_integer(multiply(square, sine), (2 * k) * (2 * k + 1)));
  }
  sine = multiply(angle, sine);
}

}  // namespace
}  // namespace aisec_fast
