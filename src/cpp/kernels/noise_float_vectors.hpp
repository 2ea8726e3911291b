#pragma once
// Float mode of float32 with AVX2 and AVX-512. A slot of the loop takes a third of the way from rows to sums with each
// of three eights of samples; rounds of AES stand between, whose words become cells of the next group.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/noise_middles.hpp"
#include "kernels/stream.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

#if defined(__AVX512F__)
using FloatWords = __m512i;
#else
using FloatWords = __m256i;
#endif
constexpr unsigned cells_at_once = sizeof(FloatWords) / 4;  // 16 or 8
constexpr unsigned turn_samples = 32, turn_words = turn_samples / cells_at_once;

// Of some samples, in order: the middles of their cells, their distances from there, and their signs (in bit 31).
struct alignas(64) FloatCells {
  float middle[cells_at_once];
  float distance[cells_at_once];
  std::uint32_t sign[cells_at_once];
};

// The cells of two groups, one of them being used.
struct FloatPipeline {
  FloatCells cells[two_float_groups / cells_at_once];

  // The first of a group.
  FloatCells* of(std::size_t sample) { return cells + sample / float_group % 2 * (float_group / cells_at_once); }
};

#if defined(__AVX512F__)
AISEC_INLINE FloatWords load_float_words(const std::uint64_t* words) { return _mm512_load_si512(words); }
AISEC_INLINE void find_float_cells(FloatCells& cells, FloatWords words) {
  const auto set = [](unsigned bits) { return _mm512_set1_epi32(static_cast<int>(bits)); };
  // (a & b) | c
  const auto and_or = [](__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi32(a, b, c, 0xea); };
  const __m512i sign = _mm512_maskz_ror_epi32(0xffff, words, 1);
  const __m512 v = _mm512_maskz_cvtepi32_ps(0xffff, and_or(sign, set(0x7fffffff), set(1)));
  const __m512 middle = _mm512_castsi512_ps(and_or(_mm512_castps_si512(v), set(~0x1ffffu), set(0x10000)));
  _mm512_store_ps(cells.middle, middle);
  _mm512_store_ps(cells.distance, v - middle);
  _mm512_store_si512(cells.sign, sign);
}
AISEC_INLINE __m256 with_signs(__m256 t, const std::uint32_t* sign) {
  const __m256i of = _mm256_load_si256(reinterpret_cast<const __m256i*>(sign));
  const __m256i highest = _mm256_set1_epi32(static_cast<int>(0x80000000u));
  return as_floats(_mm256_ternarylogic_epi32(_mm256_castps_si256(t), of, highest, 0x78));  // t ^ (of & highest)
}
#else
AISEC_INLINE FloatWords load_float_words(const std::uint64_t* words) { return load_words(words); }
AISEC_INLINE void find_float_cells(FloatCells& cells, FloatWords words) {
  const __m256i odd = _mm256_or_si256(_mm256_srli_epi32(words, 1), _mm256_set1_epi32(1));
  const __m256 v = _mm256_cvtepi32_ps(odd), middle = middle_of(upper_bits(v));
  _mm256_store_ps(cells.middle, middle);
  _mm256_store_ps(cells.distance, v - middle);
  _mm256_store_si256(reinterpret_cast<__m256i*>(cells.sign), _mm256_slli_epi32(words, 31));
}
AISEC_INLINE __m256 with_signs(__m256 t, const std::uint32_t* sign) {
  return _mm256_xor_ps(t, as_floats(_mm256_load_si256(reinterpret_cast<const __m256i*>(sign))));
}
#endif
// Of `count` samples or a few more.
inline void find_float_cells(FloatCells* cells, const std::uint64_t* words, std::size_t count) {
  for (unsigned k = 0; cells_at_once * k < count; ++k)
    find_float_cells(cells[k], load_float_words(words + cells_at_once / 2 * k));
}

// Eight samples, the k-th eight from `cells` on.
struct FloatEight {
  const float *middle, *distance;
  const std::uint32_t* sign;

  AISEC_INLINE FloatEight(const FloatCells* cells, unsigned k) {
    const FloatCells& from = cells[8 * k / cells_at_once];
    const unsigned at = 8 * k % cells_at_once;
    middle = from.middle + at, distance = from.distance + at, sign = from.sign + at;
  }
};

// At once, where the loop below ends.
AISEC_INLINE void add_eight(float* out, const float* x, std::uintptr_t rows, const FloatEight& eight, __m256 scale) {
  const __m256 a = two_rows(rows, eight.middle, 0), b = two_rows(rows, eight.middle, 1);
  const __m256 c = two_rows(rows, eight.middle, 2), d = two_rows(rows, eight.middle, 3);
  const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  const __m256 distance = _mm256_load_ps(eight.distance);
  __m256 t = odd_column(ab_high, cd_high) * distance + even_column(ab_high, cd_high);
  t = t * distance + odd_column(ab_low, cd_low);
  t = t * distance + even_column(ab_low, cd_low);
  _mm256_storeu_ps(out, _mm256_loadu_ps(x) + with_signs(t, eight.sign) * scale);
}

// Two eights on their way: of `one` the coefficients are known (t is the highest), of `two` the upper half of T.
struct FloatTurn {
  __m256 t, c2, c1, c0;
  __m256 two_t, two_c0;
};

// Loads the rows of `now`, takes `one` halfway and ends `two`, whose values are at x; between these come four rounds of
// AES (0: none).
template <int round_a, int round_b, int round_c, int round_d, class More>
AISEC_VAES AISEC_INLINE void float_slot(FloatTurn& on, std::uintptr_t rows, const FloatEight& now,
                                        const FloatEight& one, const FloatEight& two, const float* x, float* out,
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
  on.two_t = with_signs(on.two_t, two.sign);
  pin(on.two_t);
  aes_round<round_c>(more, blocks);
  on.two_t = on.two_t * scale;
  pin(on.two_t);
  on.t = on.t + on.c1;
  pin(on.t);
  aes_round<round_d>(more, blocks);
  _mm256_storeu_ps(out, _mm256_loadu_ps(x) + on.two_t);
  // As late as can be: they wait for the rows.
  __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  pin(ab_low);
  pin(ab_high);
  __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  pin(cd_low);
  pin(cd_high);
  on.two_t = on.t, on.two_c0 = on.c0;
  on.t = odd_column(ab_high, cd_high), on.c2 = even_column(ab_high, cd_high);
  pin(on.t);
  pin(on.c2);
  on.c1 = odd_column(ab_low, cd_low), on.c0 = even_column(ab_low, cd_low);
  pin(on.c1);
  pin(on.c0);
}

// A turn's words and where their cells shall be. With AVX-512, which has the registers, cells are found a turn later,
// when nobody waits for the last rounds of AES any more.
struct FloatWordsReady {
  static constexpr bool waits = turn_words == 2;

  FloatWords words[turn_words];
  FloatCells* cells;

  AISEC_INLINE void find(unsigned k) const { find_float_cells(cells[k], words[k]); }
};

// out = x + scale T for whole groups; x and out are where sample `first` stands. The first group's words are there, and
// its cells; at the end those of the next one are.
template <class More, class Soon>
AISEC_VAES inline void add_float_groups(const float* x, float* out, FloatPipeline& line, std::size_t first,
                                        std::size_t last, std::uintptr_t rows, float scale_, More more,
                                        const Soon& soon) {
  if (first == last) return;
  const __m256 scale = _mm256_set1_ps(scale_), zero = _mm256_setzero_ps();
  FloatTurn on{zero, zero, zero, zero, zero, zero};
  // In the turn before the first one nothing was: what it leaves goes to `nowhere` and `no_cells`.
  float nowhere[2 * 8] = {};
  FloatCells no_cells[turn_words];
  const float* x_before = nowhere;  // of its third eight
  float* out_before = nowhere;
  FloatWordsReady ready{{}, no_cells};
  alignas(64) std::uint64_t words[group_samples] = {};
  const FloatCells* before = line.of(first);  // of the turn before
  for (std::size_t i = first; i < last; i += float_group) {
    more.begin(words, i / float_group + 1);
    const float* const soon_x = soon(i);
    for (unsigned j = 0; j < float_group; j += 16) __builtin_prefetch(soon_x + j, 1, 3);
    const FloatCells* cells = line.of(i);
    const FloatCells* const end = cells + float_group / cells_at_once;
    FloatCells* made = line.of(i + float_group);
    const std::uint64_t* of_made = words;
    const auto now = [&](unsigned k) __attribute__((always_inline)) { return FloatEight(cells, k); };
    const auto last_turn = [&](unsigned k) __attribute__((always_inline)) { return FloatEight(before, k); };
    do {
      auto blocks = more.start();
      float_slot<1, 2, 0, 3>(on, rows, now(0), last_turn(3), last_turn(2), x_before, out_before, scale, more, blocks);
      if constexpr (FloatWordsReady::waits) ready.find(0);
      float_slot<4, 0, 5, 6>(on, rows, now(1), now(0), last_turn(3), x_before + 8, out_before + 8, scale, more, blocks);
      if constexpr (FloatWordsReady::waits) ready.find(1);
      float_slot<7, 0, 8, 0>(on, rows, now(2), now(1), now(0), x, out, scale, more, blocks);
      float_slot<9, 0, 0, 0>(on, rows, now(3), now(2), now(1), x + 8, out + 8, scale, more, blocks);
      if constexpr (More::at_once != group_samples) more.last(blocks);
      for (unsigned k = 0; k < turn_words; ++k) {
        if constexpr (More::at_once == group_samples)
          ready.words[k] = load_float_words(of_made + cells_at_once / 2 * k);
        else
          ready.words[k] = blocks.state[k];
      }
      ready.cells = made;
      if constexpr (!FloatWordsReady::waits)
        for (unsigned k = 0; k < turn_words; ++k) ready.find(k);
      of_made += turn_samples / 2;
      made += turn_words;
      before = cells;
      cells += turn_words;
      x_before = x + 2 * 8, out_before = out + 2 * 8;
      x += turn_samples, out += turn_samples;
    } while (cells != end);
  }
  if constexpr (FloatWordsReady::waits)
    for (unsigned k = 0; k < turn_words; ++k) ready.find(k);
  for (unsigned k = 2; k < 4; ++k)
    add_eight(out_before + 8 * (k - 2), x_before + 8 * (k - 2), rows, FloatEight(before, k), scale);
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
