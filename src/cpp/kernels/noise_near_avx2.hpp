#pragma once
// Integers of scales up to near_scale with AVX2, in binary32 (docs/noise.md, section 4), which leaves more samples
// open.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/noise_avx2.hpp"
#include "kernels/noise_middles_avx2.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

struct alignas(32) NearCells {
  float middle[8];
  float distance[8];
};
// Eights on their way: of `one` the coefficients are known (t is the highest), of `two` T.
struct NearTurn {
  __m256 t, c2, c1, c0;
  __m256 two_t;
};
struct NearPipeline {
  alignas(32) std::uint64_t words[two_groups] = {};
  alignas(32) float open[group_samples];  // negative for samples that are undecided
  NearCells cells[4];
  NearTurn on;
};
struct NearQuantiles {
  const FloatRow* table;
  std::uintptr_t rows;
  __m256 scale, most;

  NearQuantiles(Law law, double s, double error)
      : table(scaled_tables[static_cast<unsigned>(law)]),
        rows(reinterpret_cast<std::uintptr_t>(table) - first_middle_offset),
        scale(_mm256_set1_ps(static_cast<float>(s))),
        most(_mm256_set1_ps(near_limit(s, error))) {}
};

// Steps from eight words to v, the upper 31 bits and 2^-31 times the next 31.
AISEC_INLINE __m256d half_words(const std::uint64_t* words) {
  return _mm256_castsi256_pd(_mm256_srli_epi64(load_words(words), 1));
}
AISEC_INLINE __m256 upper_part(__m256d a, __m256d b) { return _mm256_cvtepi32_ps(high_halves(a, b)); }
AISEC_INLINE __m256i lower_bits(__m256d a, __m256d b) { return _mm256_srli_epi32(low_halves(a, b), 1); }
AISEC_INLINE __m256 joined(__m256 upper, __m256 lower) {
  return _mm256_fmadd_ps(lower, _mm256_set1_ps(0x1p-31f), upper);
}
AISEC_INLINE __m256 or_nan(__m256 middle) {  // v < 1 leads to the row of NaN
  const __m256i least = _mm256_set1_epi32(0x3f7f0000);
  return as_floats(_mm256_max_epi32(_mm256_castps_si256(middle), least));
}

AISEC_INLINE void find_near_cells(NearCells& cells, const std::uint64_t* words) {
  const __m256d a = half_words(words), b = half_words(words + 4);
  const __m256 v = joined(upper_part(a, b), _mm256_cvtepi32_ps(lower_bits(a, b)));
  const __m256 middle = middle_of(upper_bits(v));
  _mm256_store_ps(cells.middle, or_nan(middle));
  _mm256_store_ps(cells.distance, _mm256_sub_ps(v, middle));
}

// Before the first turn; the words of its group are there.
inline void start(NearPipeline& line, const NearQuantiles& by) {
  for (unsigned k = 0; k < 4; ++k) find_near_cells(line.cells[k], line.words + 8 * k);
  const auto coefficients = [&](const NearCells& cells) {
    const __m256 a = two_rows(by.rows, cells.middle, 0), b = two_rows(by.rows, cells.middle, 1);
    const __m256 c = two_rows(by.rows, cells.middle, 2), d = two_rows(by.rows, cells.middle, 3);
    const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
    const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
    return FloatCoefficients{even_column(ab_low, cd_low), odd_column(ab_low, cd_low), even_column(ab_high, cd_high),
                             odd_column(ab_high, cd_high)};
  };
  const FloatCoefficients c = coefficients(line.cells[0]), next = coefficients(line.cells[1]);
  const __m256 x = _mm256_load_ps(line.cells[0].distance);
  const __m256 t = _mm256_fmadd_ps(_mm256_fmadd_ps(_mm256_fmadd_ps(c.c3, x, c.c2), x, c.c1), x, c.c0);
  line.on = {next.c3, next.c2, next.c1, next.c0, t};
}

// Loads the rows of `now`, finds T of `one`, decides `two`, whose words are at two_words, and finds the cells of
// `later`; between these come five rounds of AES.
template <int first_round, class More>
AISEC_VAES AISEC_INLINE void near_slot(NearTurn& on, const NearQuantiles& by, const NearCells& now,
                                       const NearCells& one, std::int32_t* z, float* open, __m256& any,
                                       const std::uint64_t* two_words, NearCells& later,
                                       const std::uint64_t* later_words, const More& more,
                                       typename More::Blocks& blocks) {
  const __m256 shift = _mm256_set1_ps(0x1.8p23f);
  __m256 a = two_rows(by.rows, now.middle, 0);
  pin(a);
  on.t = _mm256_fmadd_ps(on.t, _mm256_load_ps(one.distance), on.c2);
  pin(on.t);
  __m256 shifted = _mm256_fmadd_ps(on.two_t, by.scale, shift);
  pin(shifted);
  const __m256d early = half_words(later_words), late = half_words(later_words + 4);
  aes_round<first_round>(more, blocks);
  __m256 b = two_rows(by.rows, now.middle, 1);
  pin(b);
  __m256 upper = upper_part(early, late), lower = as_floats(lower_bits(early, late));
  pin(upper);
  pin(lower);
  __m256 nearest = _mm256_sub_ps(shifted, shift);
  pin(nearest);
  aes_round<first_round + 1>(more, blocks);
  __m256 c = two_rows(by.rows, now.middle, 2);
  pin(c);
  on.t = _mm256_fmadd_ps(on.t, _mm256_load_ps(one.distance), on.c1);
  pin(on.t);
  lower = _mm256_cvtepi32_ps(_mm256_castps_si256(lower));
  pin(lower);
  __m256 distance = _mm256_fmsub_ps(on.two_t, by.scale, nearest);
  pin(distance);
  __m256 d = two_rows(by.rows, now.middle, 3);
  pin(d);
  aes_round<first_round + 2>(more, blocks);
  __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  pin(ab_low);
  pin(ab_high);
  __m256 v = joined(upper, lower);
  pin(v);
  on.t = _mm256_fmadd_ps(on.t, _mm256_load_ps(one.distance), on.c0);
  pin(on.t);
  __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), distance);
  pin(size);
  const __m256i low_words = low_halves(_mm256_load_pd(reinterpret_cast<const double*>(two_words)),
                                       _mm256_load_pd(reinterpret_cast<const double*>(two_words + 4)));
  const __m256i sign = _mm256_or_si256(_mm256_slli_epi32(low_words, 31), _mm256_set1_epi32(1));
  const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_castps_si256(shift));
  _mm256_store_si256(reinterpret_cast<__m256i*>(z), _mm256_sign_epi32(n, sign));
  aes_round<first_round + 3>(more, blocks);
  __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  pin(cd_low);
  pin(cd_high);
  const __m256 undecided = _mm256_cmp_ps(size, by.most, _CMP_NLE_UQ);
  any = _mm256_or_ps(any, undecided);
  _mm256_store_ps(open, undecided);
  __m256 middle = middle_of(upper_bits(v));
  pin(middle);
  _mm256_store_ps(later.middle, or_nan(middle));
  _mm256_store_ps(later.distance, _mm256_sub_ps(v, middle));
  aes_round<first_round + 4 == 10 ? 0 : first_round + 4>(more, blocks);
  on.two_t = on.t;
  on.t = odd_column(ab_high, cd_high), on.c2 = even_column(ab_high, cd_high);
  pin(on.t);
  pin(on.c2);
  on.c1 = odd_column(ab_low, cd_low), on.c0 = even_column(ab_low, cd_low);
  pin(on.c1);
  pin(on.c0);
}

// As decide_groups, in binary32; one(i, j) decides sample j of the group at i.
template <class More, class Add, class Soon, class One, class End>
AISEC_VAES inline void decide_near_groups(NearPipeline& line, std::size_t first, std::size_t last,
                                          const NearQuantiles& by_, More more, std::int32_t* z, const Add& integers,
                                          const Soon& soon, const One& one, const End& end) {
  const NearQuantiles by = by_;
  NearTurn on = line.on;
  for (std::size_t i = first; i < last; i += group_samples) {
    const std::size_t group = i % two_groups;
    more.begin(line.words + (group ^ group_samples), i / group_samples + 1);
    const auto* const later = soon(i);
    for (unsigned j = 0; j < group_samples; j += 64 / sizeof *later) __builtin_prefetch(later + j, 1, 3);
    __m256 any = _mm256_setzero_ps();
    for (unsigned j = 0; j < group_samples; j += turn) {
      NearCells* const past = line.cells + j / turn % 2 * 2;
      NearCells* const next = line.cells + (j / turn + 1) % 2 * 2;
      const std::uint64_t* const words = line.words + group + j;
      const std::uint64_t* const later_words = line.words + (group + j + 2 * turn) % two_groups;
      auto blocks = more.start();
      near_slot<1>(on, by, next[0], past[1], z + j, line.open + j, any, words, past[0], later_words, more, blocks);
      near_slot<6>(on, by, next[1], next[0], z + j + 8, line.open + j + 8, any, words + 8, past[1], later_words + 8,
                   more, blocks);
      more.end(line.words + (group ^ group_samples) + j, blocks);
    }
    if (_mm256_movemask_ps(any))
      for (unsigned j = 0; j < group_samples; j += 8)
        for (unsigned open = static_cast<unsigned>(_mm256_movemask_ps(_mm256_load_ps(line.open + j))); open;
             open &= open - 1)
          one(i, j + static_cast<unsigned>(__builtin_ctz(open)));
    if (!integers.add(i, z)) end(i, group_samples, 0);
  }
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
