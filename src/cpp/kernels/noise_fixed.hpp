#pragma once
// What AVX2 and AVX-512 share to make integers in fixed point (docs/noise.md, section 4): the rows of a scale s, and
// the samples that are left open.
#include <cstddef>
#include <cstdint>

#include "aisec_fast/noise_math.hpp"
#include "kernels/noise_rows.hpp"
#include "kernels/stream.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// Of u in [2^-20, 1], as numbers of 2^-k: s T is c0 and what the float 3 * 2^22 gets by adding the rest, as bits. The
// first and the last row leave every sample open: those are for smaller u, and for u rounded to 1.
struct alignas(16) FixedRow {
  std::uint32_t c0;
  float c1, c2, c3;
};
constexpr int fixed_octaves = 20;
#if defined(__AVX512F__)
constexpr int first_fixed_octave = 12;  // of v = 2^32 u
#else
constexpr int first_fixed_octave = 11;  // of v = 2^31 u
#endif
struct FixedTable {
  alignas(64) FixedRow row[64 * fixed_octaves + 2];
  double s;
  int k;
};
constexpr float fixed_shift = 0x1.8p23f;
constexpr std::uint32_t fixed_shift_bits = 0x4b400000;

constexpr double largest_fixed_scale(Law law) { return law == Law::gaussian ? 0x1.8p28 : 0x1.1p28; }  // 2^k s

inline void make_fixed_rows(FixedTable& table, Law law, double s) {
  double scale = s;
  int k = 0;
  for (; 2.0 * scale <= largest_fixed_scale(law); scale *= 2.0) ++k;
  const double bias = as_double(static_cast<std::uint64_t>(1023 + k - 1) << 52) + 0.5;
  const FixedRow open{0u - fixed_shift_bits, 0.0f, 0.0f, 0.0f};
  const QuantileRow* from = quantile_tables[static_cast<unsigned>(law)] + deep_rows + 1;
  FixedRow* to = table.row;
  *to++ = open;
  constexpr double h2 = 0x1p-14;
  double unit = 1.0 / (1 << first_fixed_octave);
  for (int octave = 0; octave < fixed_octaves; ++octave, unit *= 0.5) {
    const double scale1 = scale * unit, scale2 = scale1 * unit, scale3 = scale2 * unit;
    for (int cell = 0; cell < 64; ++cell) {
      const QuantileRow& row = *from++;
      const double c4 = as_double(row.c[3] << 32);  // c4 delta^4 is c4 h^2 delta^2 - c4 h^4 / 8, or nearly so
      const double c0 = as_double(row.c[0]) - c4 * (h2 * h2 / 8.0), c2 = as_double(row.c[2]) + c4 * h2;
      const std::uint64_t integer = as_bits(scale * c0 + bias + integer_shift);
      *to++ = {static_cast<std::uint32_t>(integer) - fixed_shift_bits, static_cast<float>(scale1 * as_double(row.c[1])),
               static_cast<float>(scale2 * c2), static_cast<float>(scale3 * as_double(row.c[3]))};
    }
  }
  *to = open;
  table.s = s;
  table.k = k;
}

// The rows of s, made by make(table, law, s), which a thread keeps; null if `samples` are too few to make them.
template <class Table, Law law, class Make>
const Table* rows_of_scale(double s, std::size_t samples, const Make& make) {
  constexpr std::size_t worth_it = 1 << 13;  // making them takes as long as some 2000 samples
  static thread_local Table table;
  if (table.s != s) {
    if (samples < worth_it) return nullptr;
    make(table, law, s);
  }
  return &table;
}

// A bit for each sample of a group: set if it was found open.
struct OpenBits {
  std::uint64_t low = 0, high = 0;

  AISEC_INLINE void add_sixteen(std::uint64_t bits) {  // the first come to stand lowest
    low = low >> 16 | high << 48;
    high = high >> 16 | bits << 48;
  }
};

// Samples left open, which wait until they are many: the words of `line`, the places and the values of `x`.
template <class Pipeline>
struct OpenSamples {
  static constexpr unsigned many = group_samples;

  Pipeline line;
  std::size_t at[two_groups];
  float x[two_groups] = {};
  unsigned count = 0;

  // Of the group at i, of which words[lane_of(j)] is word j; in each half at_once of them without a branch.
  template <int at_once = 2>
  AISEC_INLINE void keep(const OpenBits& found, const std::uint64_t* words, const float* values, std::size_t i) {
    keep_half<at_once>(found.low, words, values, i, 0);
    keep_half<at_once>(found.high, words, values, i, 64);
  }

 private:
  template <int at_once>
  AISEC_INLINE void keep_half(std::uint64_t bits, const std::uint64_t* words, const float* values, std::size_t i,
                              unsigned first) {
    for (int n = 0; n < at_once; ++n) keep_one(bits, words, values, i, first);
    while (bits != 0) [[unlikely]]
      keep_one(bits, words, values, i, first);
  }
  AISEC_INLINE void keep_one(std::uint64_t& bits, const std::uint64_t* words, const float* values, std::size_t i,
                             unsigned first) {
    const unsigned j = first + static_cast<unsigned>(__builtin_ctzll(bits | std::uint64_t{1} << 63));
    line.words[count] = words[lane_of(j)];
    at[count] = i + j;
    x[count] = values[i + j];
    count += bits != 0;
    bits &= bits - 1;
  }
};

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
