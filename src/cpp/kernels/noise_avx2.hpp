#pragma once
// The noise kernels' inner loops with AVX2 and FMA, for granularities at which every integer fits in 32 bits. The plain
// loops in noise.cpp do the same; a compiler makes gathers of their table lookups, which take three times as long.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "aisec_fast/noise_math.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// The words of one number in 16 blocks, in the order of lanes.
inline void join_words(std::uint64_t* out, const std::uint32_t* low, const std::uint32_t* high) {
  for (unsigned b = 0; b < group_blocks; b += 8) {
    const __m256i lows = _mm256_load_si256(reinterpret_cast<const __m256i*>(low + b));
    const __m256i highs = _mm256_load_si256(reinterpret_cast<const __m256i*>(high + b));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + b), _mm256_unpacklo_epi32(lows, highs));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + b + 4), _mm256_unpackhi_epi32(lows, highs));
  }
}

inline __m256d two_rows(const std::uint64_t* low, const std::uint64_t* high) {
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_load_pd(reinterpret_cast<const double*>(low))),
                              _mm_load_pd(reinterpret_cast<const double*>(high)), 1);
}

// What words need of the table: where their rows start in it, in bytes, and their places in them.
struct Cells {
  alignas(32) std::uint64_t offset[group_samples];
  alignas(32) double delta[group_samples];
};

inline void find_cells(Cells& cells, const std::uint64_t* w) {
  const __m256i high_exponent = _mm256_set1_epi64x(0x4530000000000000),
                low_exponent = _mm256_set1_epi64x(0x4330000000000000);
  // 32 times the number of v's upper bits at the first cell; and a row is 32 bytes, one behind its cell: the row of
  // NaN.
  constexpr std::int64_t first = (1023 + 32) << 11;
  const __m256i least = _mm256_set1_epi64x(first + (deep_rows - 1) * 32), start = _mm256_set1_epi64x(32 - first);
  for (unsigned j = 0; j < group_samples; j += 4) {
    const __m256i word = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + j));
    const __m256i high = _mm256_or_si256(_mm256_srli_epi64(word, 32), high_exponent);
    const __m256i low = _mm256_blend_epi32(word, low_exponent, 0xaa);
    const __m256d v = _mm256_add_pd(_mm256_sub_pd(_mm256_castsi256_pd(high), _mm256_set1_pd(0x1p84 + 0x1p52)),
                                    _mm256_castsi256_pd(low));
    const __m256i bits = _mm256_castpd_si256(v);
    // Never below the row of NaN. All these numbers fit in 32 bits.
    const __m256i cell = _mm256_and_si256(_mm256_srli_epi64(bits, 41), _mm256_set1_epi64x(~31));
    const __m256i offset = _mm256_add_epi64(_mm256_max_epi32(cell, least), start);
    const __m256i place = _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi64x(0x3fffffffffff)),
                                          _mm256_set1_epi64x(0x3ff0000000000000));
    _mm256_store_si256(reinterpret_cast<__m256i*>(cells.offset + j), offset);
    _mm256_store_pd(cells.delta + j, _mm256_sub_pd(_mm256_castsi256_pd(place), _mm256_set1_pd(1.0 + 0x1p-7)));
  }
}

// The integers of a group, in order, from its words in the order of lanes, by the fast step; false if some sample is
// undecided. Narrowing two vectors of that order to one puts the samples in order.
inline bool quantile_group(std::int32_t* z, const std::uint64_t* w, const QuantileRow* table, double s, double limit) {
  Cells cells;
  find_cells(cells, w);
  const char* const rows = reinterpret_cast<const char*>(table);
  const __m256d scale = _mm256_set1_pd(s), shift = _mm256_set1_pd(integer_shift);
  __m256i farthest = _mm256_setzero_si256();
  for (unsigned j = 0; j < group_samples; j += 8) {
    __m256d shifted[2];
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned at = j + 4 * half;
      const std::uint64_t* row[4];
      for (unsigned i = 0; i < 4; ++i) row[i] = reinterpret_cast<const std::uint64_t*>(rows + cells.offset[at + i]);
      const __m256d a = two_rows(row[0], row[2]), b = two_rows(row[1], row[3]);
      const __m256d c = two_rows(row[0] + 2, row[2] + 2), d = two_rows(row[1] + 2, row[3] + 2);
      const __m256d c0 = _mm256_unpacklo_pd(a, b), c1 = _mm256_unpackhi_pd(a, b);
      const __m256d c2 = _mm256_unpacklo_pd(c, d), c3 = _mm256_unpackhi_pd(c, d);
      const __m256d c4 = _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(c3), 32));
      const __m256d delta = _mm256_load_pd(cells.delta + at);
      __m256d t = _mm256_fmadd_pd(c4, delta, c3);
      t = _mm256_fmadd_pd(t, delta, c2);
      t = _mm256_fmadd_pd(t, delta, c1);
      t = _mm256_fmadd_pd(t, delta, c0);
      shifted[half] = _mm256_fmadd_pd(t, scale, shift);
      const __m256d integer = _mm256_sub_pd(shifted[half], shift);
      const __m256d distance = _mm256_andnot_pd(_mm256_set1_pd(-0.0), _mm256_fmsub_pd(t, scale, integer));
      // The upper halves of non-negative doubles are ordered like them, and those of NaN are larger still.
      farthest = _mm256_max_epu32(farthest, _mm256_castpd_si256(distance));
    }
    const __m256 narrow = _mm256_shuffle_ps(_mm256_castpd_ps(shifted[0]), _mm256_castpd_ps(shifted[1]), 0x88);
    const __m256 low_words = _mm256_shuffle_ps(_mm256_load_ps(reinterpret_cast<const float*>(w + j)),
                                               _mm256_load_ps(reinterpret_cast<const float*>(w + j + 4)), 0x88);
    const __m256i sign = _mm256_or_si256(_mm256_slli_epi32(_mm256_castps_si256(low_words), 31), _mm256_set1_epi32(1));
    _mm256_store_si256(reinterpret_cast<__m256i*>(z + j), _mm256_sign_epi32(_mm256_castps_si256(narrow), sign));
  }
  alignas(32) std::uint32_t distance[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(distance), farthest);
  const std::uint32_t largest = static_cast<std::uint32_t>(as_bits(limit) >> 32);
  bool decided = true;
  for (unsigned i = 1; i < 8; i += 2) decided &= distance[i] < largest;
  return decided;
}

// out = g (rint(x / g) + z) for a whole group, or false and nothing written if some |x / g| is 2^30 or more.
inline bool add_narrow(const float* x, float* out, const std::int32_t* z, float granularity, float inverse) {
  const __m256 scale = _mm256_set1_ps(inverse);
  __m256i largest = _mm256_setzero_si256();
  for (unsigned j = 0; j < group_samples; j += 8) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + j), scale);
    largest = _mm256_max_epu32(largest, _mm256_castps_si256(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), scaled)));
  }
  const __m256i bound = _mm256_set1_epi32(0x4e800000 - 1);  // of 2^30 as a float; NaN and infinity are larger
  if (_mm256_movemask_epi8(_mm256_cmpgt_epi32(largest, bound)) != 0) return false;
  for (unsigned j = 0; j < group_samples; j += 8) {
    const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + j), scale));
    const __m256i sum = _mm256_add_epi32(q, _mm256_load_si256(reinterpret_cast<const __m256i*>(z + j)));
    _mm256_storeu_ps(out + j, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(granularity)));
  }
  return true;
}

// Float mode for the whole eights of at most 256 samples; how many that were. Nothing is fused: the bits are promised.
inline std::size_t add_float_eights(const float* x, float* out, std::size_t count, const std::uint64_t* w,
                                    const FloatRow* table, float scale) {
  const __m256i mantissa = _mm256_set1_epi32(0x1ffff), one = _mm256_set1_epi32(0x3f800000);
  const char* const rows = reinterpret_cast<const char*>(table);
  std::size_t j = 0;
  for (; j + 8 <= count; j += 8) {
    const std::uint64_t* const four = w + (j / 16 * 8 + j / 8 % 2 * 2);  // words 0 1 and 2 3, or 4 5 and 6 7
    const __m128i early = _mm_load_si128(reinterpret_cast<const __m128i*>(four));
    const __m128i late = _mm_load_si128(reinterpret_cast<const __m128i*>(four + 4));
    const __m256i d = _mm256_inserti128_si256(_mm256_castsi128_si256(early), late, 1);
    const __m256 v = _mm256_cvtepi32_ps(_mm256_or_si256(_mm256_srli_epi32(d, 1), _mm256_set1_epi32(1)));
    const __m256i bits = _mm256_castps_si256(v);
    const __m256 place = _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(bits, mantissa), one));
    const __m256 delta = _mm256_sub_ps(place, _mm256_set1_ps(1.0f + 0x1p-7f));
    alignas(32) std::uint32_t offset[8];  // 16 times the cell's number
    const __m256i cell = _mm256_and_si256(_mm256_srli_epi32(bits, 13), _mm256_set1_epi32(~15));
    _mm256_store_si256(reinterpret_cast<__m256i*>(offset), _mm256_sub_epi32(cell, _mm256_set1_epi32(127 << 10)));
    __m256 two[4];  // rows i and i + 4
    for (unsigned i = 0; i < 4; ++i)
      two[i] =
          _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(reinterpret_cast<const float*>(rows + offset[i]))),
                               _mm_load_ps(reinterpret_cast<const float*>(rows + offset[i + 4])), 1);
    const __m256 low01 = _mm256_unpacklo_ps(two[0], two[1]), high01 = _mm256_unpackhi_ps(two[0], two[1]);
    const __m256 low23 = _mm256_unpacklo_ps(two[2], two[3]), high23 = _mm256_unpackhi_ps(two[2], two[3]);
    const __m256 c0 = _mm256_shuffle_ps(low01, low23, 0x44), c1 = _mm256_shuffle_ps(low01, low23, 0xee);
    const __m256 c2 = _mm256_shuffle_ps(high01, high23, 0x44), c3 = _mm256_shuffle_ps(high01, high23, 0xee);
    __m256 t = _mm256_add_ps(_mm256_mul_ps(c3, delta), c2);
    t = _mm256_add_ps(_mm256_mul_ps(t, delta), c1);
    t = _mm256_add_ps(_mm256_mul_ps(t, delta), c0);
    t = _mm256_xor_ps(t, _mm256_castsi256_ps(_mm256_slli_epi32(d, 31)));
    _mm256_storeu_ps(out + j, _mm256_add_ps(_mm256_loadu_ps(x + j), _mm256_mul_ps(_mm256_set1_ps(scale), t)));
  }
  return j;
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
