#pragma once
// Integers in fixed point with AVX2 (docs/noise.md, section 4).
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/noise_avx2.hpp"
#include "kernels/noise_fixed.hpp"
#include "kernels/noise_middles.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// Of eight samples, in order.
struct alignas(32) FixedCells {
  float middle[8];
  float distance[8];
};
// Eights on their way: of `one` the coefficients are known (t is the highest), of `two` the sum.
struct FixedTurn {
  __m256 t, c2, c1, c0;
  __m256 two_sum;
};
struct FixedPipeline {
  alignas(32) std::uint64_t words[two_groups] = {};
  FixedCells cells[4];
  FixedTurn on;
};
struct FixedQuantiles {
  std::uintptr_t rows;
  __m128i k;
  __m256i fraction;

  explicit FixedQuantiles(const FixedTable& table)
      : rows(reinterpret_cast<std::uintptr_t>(table.row) - first_middle_offset + 16 - (first_fixed_octave << 10)),
        k(_mm_cvtsi32_si128(table.k)),
        fraction(_mm256_set1_epi32((1 << table.k) - 2)) {}
};

// Steps from eight words to v's distance from the middle of its cell: the upper 31 bits are an integer and so is the
// middle, to the next 31 belongs 2^-31.
AISEC_INLINE __m256d half_words(const std::uint64_t* words) {
  return _mm256_castsi256_pd(_mm256_srli_epi64(load_words(words), 1));
}
AISEC_INLINE __m256i upper_bits(__m256d a, __m256d b) { return high_halves(a, b); }
AISEC_INLINE __m256i lower_bits(__m256d a, __m256d b) { return _mm256_srli_epi32(low_halves(a, b), 1); }
AISEC_INLINE __m256 or_open(__m256 middle) {  // small u lead to the first row
  const __m256i least = _mm256_set1_epi32(((127 + first_fixed_octave) << 23) - 0x10000);
  return as_floats(_mm256_max_epi32(_mm256_castps_si256(middle), least));
}
AISEC_INLINE __m256i minus_middle(__m256i upper, __m256 middle) {
  return _mm256_sub_epi32(upper, _mm256_cvttps_epi32(middle));
}
AISEC_INLINE __m256 joined(__m256 upper, __m256 lower) {
  return _mm256_fmadd_ps(lower, _mm256_set1_ps(0x1p-31f), upper);
}

AISEC_INLINE void find_fixed_cells(FixedCells& cells, const std::uint64_t* words) {
  const __m256d a = half_words(words), b = half_words(words + 4);
  const __m256i upper = upper_bits(a, b);
  const __m256 middle = or_open(middle_of(upper_bits(_mm256_cvtepi32_ps(upper))));
  const __m256 distance = _mm256_cvtepi32_ps(minus_middle(upper, middle));
  _mm256_store_ps(cells.middle, middle);
  _mm256_store_ps(cells.distance, joined(distance, _mm256_cvtepi32_ps(lower_bits(a, b))));
}

AISEC_INLINE __m256 fixed_sum(__m256 t, __m256 distance, __m256 c0) {
  const __m256 moved = _mm256_fmadd_ps(t, distance, _mm256_set1_ps(fixed_shift));
  return as_floats(_mm256_add_epi32(_mm256_castps_si256(moved), _mm256_castps_si256(c0)));
}

// Before the first turn; the words of its group are there.
inline void start(FixedPipeline& line, const FixedQuantiles& by) {
  for (unsigned n = 0; n < 4; ++n) find_fixed_cells(line.cells[n], line.words + 8 * n);
  const auto coefficients = [&](const FixedCells& cells) {
    const __m256 a = two_rows(by.rows, cells.middle, 0), b = two_rows(by.rows, cells.middle, 1);
    const __m256 c = two_rows(by.rows, cells.middle, 2), d = two_rows(by.rows, cells.middle, 3);
    const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
    const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
    return FloatCoefficients{even_column(ab_low, cd_low), odd_column(ab_low, cd_low), even_column(ab_high, cd_high),
                             odd_column(ab_high, cd_high)};
  };
  const FloatCoefficients c = coefficients(line.cells[0]), next = coefficients(line.cells[1]);
  const __m256 x = _mm256_load_ps(line.cells[0].distance);
  const __m256 t = _mm256_fmadd_ps(_mm256_fmadd_ps(c.c3, x, c.c2), x, c.c1);
  line.on = {next.c3, next.c2, next.c1, next.c0, fixed_sum(t, x, c.c0)};
}

// Loads the rows of `now`, finds the sum of `one`, decides `two`, whose words are at two_words, and finds the cells of
// `later`; between these come five rounds of AES. A bit for each sample that is left open.
template <int first_round, class More>
AISEC_VAES AISEC_INLINE unsigned fixed_slot(FixedTurn& on, const FixedQuantiles& by, const FixedCells& now,
                                            const FixedCells& one, std::int32_t* z, const std::uint64_t* two_words,
                                            FixedCells& later, const std::uint64_t* later_words, const More& more,
                                            typename More::Blocks& blocks) {
  const auto pin_integers = [](__m256i& integers) __attribute__((always_inline)) { asm volatile("" : "+x"(integers)); };
  __m256 a = two_rows(by.rows, now.middle, 0);
  pin(a);
  on.t = _mm256_fmadd_ps(on.t, _mm256_load_ps(one.distance), on.c2);
  pin(on.t);
  const __m256i sum = _mm256_castps_si256(on.two_sum);
  __m256i fraction = _mm256_and_si256(sum, by.fraction);
  pin_integers(fraction);
  const __m256d early = half_words(later_words), late = half_words(later_words + 4);
  aes_round<first_round>(more, blocks);
  __m256 b = two_rows(by.rows, now.middle, 1);
  pin(b);
  __m256i upper = upper_bits(early, late), lower = lower_bits(early, late);
  pin_integers(upper);
  pin_integers(lower);
  __m256i n = _mm256_srl_epi32(sum, by.k);
  pin_integers(n);
  aes_round<first_round + 1>(more, blocks);
  __m256 c = two_rows(by.rows, now.middle, 2);
  pin(c);
  on.t = _mm256_fmadd_ps(on.t, _mm256_load_ps(one.distance), on.c1);
  pin(on.t);
  __m256 v = _mm256_cvtepi32_ps(upper), part = _mm256_cvtepi32_ps(lower);
  pin(v);
  pin(part);
  const __m256i low_words = low_halves(_mm256_load_pd(reinterpret_cast<const double*>(two_words)),
                                       _mm256_load_pd(reinterpret_cast<const double*>(two_words + 4)));
  const __m256i sign = _mm256_or_si256(_mm256_slli_epi32(low_words, 31), _mm256_set1_epi32(1));
  _mm256_store_si256(reinterpret_cast<__m256i*>(z), _mm256_sign_epi32(n, sign));
  __m256 d = two_rows(by.rows, now.middle, 3);
  pin(d);
  aes_round<first_round + 2>(more, blocks);
  __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  pin(ab_low);
  pin(ab_high);
  __m256 middle = or_open(middle_of(upper_bits(v)));
  pin(middle);
  _mm256_store_ps(later.middle, middle);
  on.two_sum = fixed_sum(on.t, _mm256_load_ps(one.distance), on.c0);
  pin(on.two_sum);
  upper = minus_middle(upper, middle);
  pin_integers(upper);
  aes_round<first_round + 3>(more, blocks);
  __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  pin(cd_low);
  pin(cd_high);
  __m256 distance = _mm256_cvtepi32_ps(upper);
  pin(distance);
  aes_round<first_round + 4 == 10 ? 0 : first_round + 4>(more, blocks);
  on.t = odd_column(ab_high, cd_high), on.c2 = even_column(ab_high, cd_high);
  pin(on.t);
  pin(on.c2);
  on.c1 = odd_column(ab_low, cd_low), on.c0 = even_column(ab_low, cd_low);
  pin(on.c1);
  pin(on.c0);
  _mm256_store_ps(later.distance, joined(distance, part));
  const __m256i open = _mm256_cmpeq_epi32(fraction, _mm256_setzero_si256());
  return static_cast<unsigned>(_mm256_movemask_ps(as_floats(open)));
}

// As decide_groups; samples left open are kept in `open`, and settle() decides them when there are many.
// not_added(i, found) goes on where integers cannot be added at once, those that were found open being kept last.
template <class More, class Add, class Soon, class Settle, class NotAdded>
AISEC_VAES inline void decide_fixed_groups(FixedPipeline& line, std::size_t first, std::size_t last,
                                           const FixedQuantiles& by_, More more, std::int32_t* z, const Add& integers,
                                           OpenSamples<Pipeline>& open, const Soon& soon, const Settle& settle,
                                           const NotAdded& not_added) {
  const FixedQuantiles by = by_;
  FixedTurn on = line.on;
  for (std::size_t i = first; i < last;) {
    more.begin(line.words + (i % two_groups ^ group_samples), i / group_samples + 1);
    OpenBits found;
    bool added;
    do {  // without a call
      const std::size_t group = i % two_groups;
      const auto* const later = soon(i);
      for (unsigned j = 0; j < group_samples; j += 64 / sizeof *later) __builtin_prefetch(later + j, 1, 3);
      found = {};
      for (unsigned j = 0; j < group_samples; j += turn) {
        FixedCells* const past = line.cells + j / turn % 2 * 2;
        FixedCells* const next = line.cells + (j / turn + 1) % 2 * 2;
        const std::uint64_t* const words = line.words + group + j;
        const std::uint64_t* const later_words = line.words + (group + j + 2 * turn) % two_groups;
        auto blocks = more.start();
        const unsigned early =
            fixed_slot<1>(on, by, next[0], past[1], z + j, words, past[0], later_words, more, blocks);
        const unsigned late =
            fixed_slot<6>(on, by, next[1], next[0], z + j + 8, words + 8, past[1], later_words + 8, more, blocks);
        more.end(line.words + (group ^ group_samples) + j, blocks);
        found.add_sixteen(early | late << 8);
      }
      open.keep(found, line.words + group, integers.x, i);
      added = integers.add(i, z);
      i += group_samples;
    } while (added && open.count < OpenSamples<Pipeline>::many && i < last && !more.begins(i / group_samples + 1));
    if (!added) [[unlikely]]
      not_added(i - group_samples, found);
    else if (open.count >= OpenSamples<Pipeline>::many)
      settle();
  }
  line.on = on;
}

// Integers of the first eight words, in their order, by the fast step; a bit for each that is undecided.
inline unsigned decide_eight(std::int32_t* z, OpenSamples<Pipeline>& open, unsigned at, const Quantiles& by) {
  alignas(32) double t[8];
  alignas(32) std::int32_t in_order[8];
  Cells& cells = open.line.cells[0][0];
  __m256i least = by.fraction;
  find_cells(cells, open.line.words + at);
  evaluate(t, by.rows, cells, 0);
  evaluate(t + 4, by.rows, cells, 1);
  decide(in_order, least, t, open.line.words + at, by);
  const __m256i undecided = _mm256_cmpeq_epi32(least, _mm256_setzero_si256());
  const __m256i order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
  const __m256i integers = _mm256_load_si256(reinterpret_cast<const __m256i*>(in_order));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(z), _mm256_permutevar8x32_epi32(integers, order));
  return static_cast<unsigned>(_mm256_movemask_ps(as_floats(_mm256_permutevar8x32_epi32(undecided, order))));
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
