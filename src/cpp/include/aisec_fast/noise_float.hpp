#pragma once
// Float mode: noise as other libraries add it, x + sigma T in floating point, for work that is not private.
// docs/noise.md section 7. No operation is contracted, so every backend gives the same bits.
#include <cstdint>
#include <cstring>

#include "aisec_fast/noise_math.hpp"

namespace aisec_fast {
namespace {

AISEC_HD float as_float(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

AISEC_HD std::uint32_t as_bits(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

AISEC_HD float coefficient(const FloatRow& row, int k) { return row.c[k]; }
AISEC_HD float coefficient(const QuantileRow& row, int k) { return static_cast<float>(as_double(row.c[k])); }

// A FloatRow's place among the rows it was made from: the first octave and the row of NaN are left out.
AISEC_HD int row_of(const FloatRow*, int cell) { return cell; }
AISEC_HD int row_of(const QuantileRow*, int cell) { return cell + 64 + (cell + 64 >= deep_rows); }

// T from 32 bits: the lowest is the sign, the others are u. From either table: they hold the same numbers.
template <class Row>
AISEC_HD float float_sample(const Row* table, std::uint32_t d) {
  const std::uint32_t bits = as_bits(static_cast<float>(static_cast<std::int32_t>(d >> 1 | 1)));
  const float delta = as_float((bits & 0x1ffffu) | 0x3f800000u) - (1.0f + 0x1p-7f);
  const Row& row = table[row_of(table, static_cast<int>(bits >> 17) - (127 << 6))];
  float t = coefficient(row, 3) * delta + coefficient(row, 2);
  t = t * delta + coefficient(row, 1);
  t = t * delta + coefficient(row, 0);
  return as_float(as_bits(t) ^ d << 31);
}

// T from 64 bits; u below 2^-32 counts as 2^-32.
AISEC_HD double float_sample(const QuantileRow* table, std::uint64_t w) {
  const std::uint64_t least = std::uint64_t{1} << 32;
  const std::uint64_t bits = as_bits(rounded_word(w < least ? least : w));
  const std::int64_t cell = quantile_cell(bits);
  const double t = quantile(table[cell < deep_rows ? cell : cell + 1], quantile_delta(bits));
  return as_double(as_bits(t) ^ w << 63);
}

}  // namespace
}  // namespace aisec_fast
