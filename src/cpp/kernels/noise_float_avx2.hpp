#pragma once
// Float mode of float32 with AVX2. A slot of the loop takes a third of the way from rows to sums with each of three
// eights of samples; rounds of AES stand between, whose words become cells of the next group.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/noise_middles_avx2.hpp"
#include "kernels/stream.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr unsigned eights = float_group / 8, turn_eights = 4;

// Of eight samples, in order: the middles of their cells, their distances from there, and their signs (bit 31).
struct alignas(32) FloatCells {
  float middle[8];
  float distance[8];
  float sign[8];
};

// The cells of two groups, one of them being used.
struct FloatPipeline {
  FloatCells cells[2 * eights];

  FloatCells* of(std::size_t sample) { return cells + sample / float_group % 2 * eights; }  // the first of a group
};

AISEC_INLINE __m256i odd_halves(__m256i words) {
  return _mm256_or_si256(_mm256_srli_epi32(words, 1), _mm256_set1_epi32(1));
}
AISEC_INLINE __m256 signs(__m256i words) { return as_floats(_mm256_slli_epi32(words, 31)); }

AISEC_INLINE void find_float_cells(FloatCells& cells, __m256i words) {
  const __m256 v = _mm256_cvtepi32_ps(odd_halves(words)), middle = middle_of(upper_bits(v));
  _mm256_store_ps(cells.middle, middle);
  _mm256_store_ps(cells.distance, _mm256_sub_ps(v, middle));
  _mm256_store_ps(cells.sign, signs(words));
}
// Of `count` samples or a few more.
inline void find_float_cells(FloatCells* cells, const std::uint64_t* words, std::size_t count) {
  for (unsigned k = 0; 8 * k < count; ++k) find_float_cells(cells[k], load_words(words + 4 * k));
}

// Eight samples at once, where the loop below ends.
AISEC_INLINE void add_eight(float* out, const float* x, std::uintptr_t rows, const FloatCells& cells, __m256 scale) {
  const __m256 a = two_rows(rows, cells.middle, 0), b = two_rows(rows, cells.middle, 1);
  const __m256 c = two_rows(rows, cells.middle, 2), d = two_rows(rows, cells.middle, 3);
  const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  const __m256 distance = _mm256_load_ps(cells.distance);
  __m256 t = odd_column(ab_high, cd_high) * distance + even_column(ab_high, cd_high);
  t = t * distance + odd_column(ab_low, cd_low);
  t = t * distance + even_column(ab_low, cd_low);
  _mm256_storeu_ps(out, _mm256_loadu_ps(x) + _mm256_xor_ps(t, _mm256_load_ps(cells.sign)) * scale);
}

// Two eights on their way: of `one` the coefficients are known (t is the highest), of `two` the upper half of T.
struct FloatTurn {
  __m256 t, c2, c1, c0;
  __m256 two_t, two_c0;
};

// Loads the rows of `now`, takes `one` halfway and ends `two`, whose values are at x; between these come four rounds of
// AES (0: none).
template <int round_a, int round_b, int round_c, int round_d, class More>
AISEC_VAES AISEC_INLINE void float_slot(FloatTurn& on, std::uintptr_t rows, const FloatCells& now,
                                        const FloatCells& one, const FloatCells& two, const float* x, float* out,
                                        __m256 scale, const More& more, typename More::Blocks& blocks) {
  __m256 a = two_rows(rows, now.middle, 0);
  pin(a);
  on.t = on.t * _mm256_load_ps(one.distance);
  pin(on.t);
  __m256 b = two_rows(rows, now.middle, 1);
  pin(b);
  on.two_t = on.two_t * _mm256_load_ps(two.distance);
  pin(on.two_t);
  aes_round<round_a>(more, blocks);
  __m256 c = two_rows(rows, now.middle, 2);
  pin(c);
  on.t = on.t + on.c2;
  pin(on.t);
  __m256 d = two_rows(rows, now.middle, 3);
  pin(d);
  on.two_t = on.two_t + on.two_c0;
  pin(on.two_t);
  aes_round<round_b>(more, blocks);
  on.t = on.t * _mm256_load_ps(one.distance);
  pin(on.t);
  __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  pin(ab_low);
  pin(ab_high);
  on.two_t = _mm256_xor_ps(on.two_t, _mm256_load_ps(two.sign));
  pin(on.two_t);
  aes_round<round_c>(more, blocks);
  on.two_t = on.two_t * scale;
  pin(on.two_t);
  __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  pin(cd_low);
  pin(cd_high);
  on.t = on.t + on.c1;
  pin(on.t);
  aes_round<round_d>(more, blocks);
  _mm256_storeu_ps(out, _mm256_loadu_ps(x) + on.two_t);
  on.two_t = on.t, on.two_c0 = on.c0;
  on.t = odd_column(ab_high, cd_high), on.c2 = even_column(ab_high, cd_high);
  pin(on.t);
  pin(on.c2);
  on.c1 = odd_column(ab_low, cd_low), on.c0 = even_column(ab_low, cd_low);
  pin(on.c1);
  pin(on.c0);
}

// out = x + scale T for whole groups; x and out are where sample `first` stands. The first group's words are there, and
// its cells; at the end those of the next one are.
template <class More, class Soon>
AISEC_VAES inline void add_float_groups(const float* x, float* out, FloatPipeline& line, std::size_t first,
                                        std::size_t last, std::uintptr_t rows, float scale_, More more,
                                        const Soon& soon) {
  if (first == last) return;
  const __m256 scale = _mm256_set1_ps(scale_), zero = _mm256_setzero_ps();
  FloatTurn on{zero, zero, zero, zero, zero, zero};
  // In the turn before the first one nothing was: what it leaves goes to `nowhere`.
  float nowhere[2 * 8] = {};
  const float* x_before = nowhere;  // of its third eight
  float* out_before = nowhere;
  alignas(32) std::uint64_t words[group_samples] = {};
  const FloatCells* before = line.of(first);  // of the turn before
  for (std::size_t i = first; i < last; i += float_group) {
    more.begin(words, i / float_group + 1);
    const float* const soon_x = soon(i);
    for (unsigned j = 0; j < float_group; j += 16) __builtin_prefetch(soon_x + j, 1, 3);
    const FloatCells* cells = line.of(i);
    const FloatCells* const end = cells + eights;
    FloatCells* made = line.of(i + float_group);
    const std::uint64_t* of_made = words;
    do {
      auto blocks = more.start();
      float_slot<0, 1, 0, 2>(on, rows, cells[0], before[3], before[2], x_before, out_before, scale, more, blocks);
      float_slot<0, 3, 0, 4>(on, rows, cells[1], cells[0], before[3], x_before + 8, out_before + 8, scale, more,
                             blocks);
      float_slot<5, 0, 6, 7>(on, rows, cells[2], cells[1], cells[0], x, out, scale, more, blocks);
      float_slot<0, 8, 0, 9>(on, rows, cells[3], cells[2], cells[1], x + 8, out + 8, scale, more, blocks);
      // After the slots: they still read cells of the last turn that stood there.
      if constexpr (More::at_once == group_samples) {
        find_float_cells(made, of_made, 8 * turn_eights);
        of_made += 4 * turn_eights;
      } else {
        more.last(blocks);
        for (unsigned k = 0; k < turn_eights; ++k) find_float_cells(made[k], blocks.state[k]);
      }
      made += turn_eights;
      before = cells;
      cells += turn_eights;
      x_before = x + 2 * 8, out_before = out + 2 * 8;
      x += 8 * turn_eights, out += 8 * turn_eights;
    } while (cells != end);
  }
  for (unsigned k = 2; k < turn_eights; ++k)
    add_eight(out_before + 8 * (k - 2), x_before + 8 * (k - 2), rows, before[k], scale);
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
