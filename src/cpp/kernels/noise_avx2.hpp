#pragma once
// The noise kernels' inner loops with AVX2 and FMA; the plain loops in noise.cpp do the same. A sample waits for most
// of its time, and there are few registers: each turn of a loop makes sixteen words of the next group, a few rounds of
// AES at a time, and between them finds the cells of later samples, evaluates the next ones and decides these.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/noise_rows.hpp"
#include "kernels/stream.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr unsigned turn = 16;  // words a turn

// What eight samples need of the table, in the order of lanes: where their rows start, in bytes, and their places in
// the cells.
struct alignas(32) Cells {
  std::uint32_t offset[8];
  double delta[8];
};

// Two groups of words, one of them being used; cells of the next turn and the one after that; T of this turn's
// samples.
struct Pipeline {
  alignas(32) std::uint64_t words[two_groups] = {};
  Cells cells[2][2];
  alignas(32) double t[turn];
};

AISEC_INLINE __m256i low_halves(__m256d a, __m256d b) {
  return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castpd_ps(a), _mm256_castpd_ps(b), 0x88));
}
AISEC_INLINE __m256i high_halves(__m256d a, __m256d b) {
  return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castpd_ps(a), _mm256_castpd_ps(b), 0xdd));
}

AISEC_INLINE __m256d rounded_words(const std::uint64_t* words) {
  const __m256i high_exponent = _mm256_set1_epi64x(0x4530000000000000);
  const __m256i low_exponent = _mm256_set1_epi64x(0x4330000000000000);
  const __m256i word = _mm256_load_si256(reinterpret_cast<const __m256i*>(words));
  const __m256i high = _mm256_or_si256(_mm256_srli_epi64(word, 32), high_exponent);
  const __m256i low = _mm256_blend_epi32(word, low_exponent, 0xaa);
  return _mm256_add_pd(_mm256_sub_pd(_mm256_castsi256_pd(high), _mm256_set1_pd(0x1p84 + 0x1p52)),
                       _mm256_castsi256_pd(low));
}

AISEC_INLINE __m256d places(__m256d v) {
  const __m256i place = _mm256_set1_epi64x(0x3fffffffffff), one = _mm256_set1_epi64x(0x3ff0000000000000);
  const __m256i m = _mm256_or_si256(_mm256_and_si256(_mm256_castpd_si256(v), place), one);
  return _mm256_sub_pd(_mm256_castsi256_pd(m), _mm256_set1_pd(1.0 + 0x1p-7));
}

AISEC_INLINE void find_cells(Cells& cells, const std::uint64_t* words) {
  const __m256i least = _mm256_set1_epi32(first_offset + (deep_rows - 1) * 32);
  const __m256d a = rounded_words(words), b = rounded_words(words + 4);
  const __m256i cell = _mm256_and_si256(_mm256_srli_epi32(high_halves(a, b), 9), _mm256_set1_epi32(~31));
  _mm256_store_si256(reinterpret_cast<__m256i*>(cells.offset), _mm256_max_epi32(cell, least));
  _mm256_store_pd(cells.delta, places(a));
  _mm256_store_pd(cells.delta + 4, places(b));
}

// T of the first four (half 0) or last four words of a cell's eight.
AISEC_INLINE void evaluate(double* t, std::uintptr_t rows, const Cells& cells, int half) {
  _mm256_store_pd(t, quantiles<4>(rows, cells.offset + 2 * half, cells.delta + 4 * half));
}

// Before the first turn; the words of its group are there, from `group` on.
inline void start(Pipeline& line, const Quantiles& by, std::size_t group = 0) {
  const std::uint64_t* const words = line.words + group;
  for (unsigned half = 0; half < 2; ++half) {
    find_cells(line.cells[0][half], words + 8 * half);
    evaluate(line.t + 8 * half, by.rows, line.cells[0][half], 0);
    evaluate(line.t + 8 * half + 4, by.rows, line.cells[0][half], 1);
    find_cells(line.cells[0][half], words + turn + 8 * half);
  }
}

// Integers of eight samples, in order, by the fast step; `least` becomes 0 where some sample is undecided. Narrowing
// two vectors in the order of lanes to one puts the samples in order.
AISEC_INLINE void decide(std::int32_t* z, __m256i& least, const double* t, const std::uint64_t* words,
                         const Quantiles& by) {
  const __m256d low = _mm256_load_pd(t), high = _mm256_load_pd(t + 4), shift = _mm256_set1_pd(integer_shift);
  const __m256i n = low_halves(_mm256_fmadd_pd(low, by.scale, shift), _mm256_fmadd_pd(high, by.scale, shift));
  const __m256i f = low_halves(_mm256_fmadd_pd(low, by.scale, by.up), _mm256_fmadd_pd(high, by.scale, by.up));
  least = _mm256_min_epu32(least, _mm256_and_si256(f, by.fraction));
  const __m256i low_words = low_halves(_mm256_load_pd(reinterpret_cast<const double*>(words)),
                                       _mm256_load_pd(reinterpret_cast<const double*>(words + 4)));
  const __m256i sign = _mm256_or_si256(_mm256_slli_epi32(low_words, 31), _mm256_set1_epi32(1));
  _mm256_store_si256(reinterpret_cast<__m256i*>(z), _mm256_sign_epi32(n, sign));
}

// Decides the samples of the group that starts at `group` in line.words; false if some are undecided.
template <class More>
AISEC_VAES AISEC_INLINE bool decide_group(std::int32_t* z, Pipeline& line, unsigned group, const Quantiles& by,
                                          More& more) {
  __m256i least = by.fraction;
  std::size_t at = group;
  for (unsigned j = 0; j < group_samples; j += turn, at += turn) {
    const Cells* const cells = line.cells[at / turn % 2];
    Cells* const later = line.cells[(at / turn + 1) % 2];
    const std::uint64_t* const words = line.words + at;
    const std::uint64_t* const later_words = line.words + (at + 2 * turn) % two_groups;
    auto blocks = more.start();
    more.template rounds<1, 2>(blocks);
    decide(z + j, least, line.t, words, by);
    more.template rounds<3, 3>(blocks);
    find_cells(later[0], later_words);
    more.template rounds<4, 4>(blocks);
    evaluate(line.t, by.rows, cells[0], 0);
    more.template rounds<5, 5>(blocks);
    evaluate(line.t + 4, by.rows, cells[0], 1);
    more.template rounds<6, 6>(blocks);
    decide(z + j + 8, least, line.t + 8, words + 8, by);
    more.template rounds<7, 7>(blocks);
    find_cells(later[1], later_words + 8);
    more.template rounds<8, 8>(blocks);
    evaluate(line.t + 8, by.rows, cells[1], 0);
    more.template rounds<9, 9>(blocks);
    evaluate(line.t + 12, by.rows, cells[1], 1);
    more.end(line.words + (at ^ group_samples), blocks);
  }
  return _mm256_movemask_epi8(_mm256_cmpeq_epi32(least, _mm256_setzero_si256())) == 0;
}

// out = g (rint(x / g) + z) for values first to first + 127, or false and nothing written if some |x / g| is 2^30 or
// more; `bound` is g 2^30.
struct AddIntegers {
  const float* x;
  float* out;
  float granularity, inverse, bound;

  AISEC_INLINE bool all_small(std::size_t first) const {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i largest = _mm256_setzero_si256();
    for (unsigned j = 0; j < group_samples; j += 8) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + first + j));
      largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, magnitude));
    }
    const __m256i below = _mm256_cmpgt_epi32(_mm256_castps_si256(_mm256_set1_ps(bound)), largest);
    return _mm256_movemask_epi8(below) == -1;
  }
  bool add(std::size_t first, const std::int32_t* z) const {
    if (!all_small(first)) return false;
    for (unsigned j = 0; j < group_samples; j += 8) {
      const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + first + j), _mm256_set1_ps(inverse)));
      const __m256i sum = _mm256_add_epi32(q, _mm256_load_si256(reinterpret_cast<const __m256i*>(z + j)));
      _mm256_storeu_ps(out + first + j, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(granularity)));
    }
    return true;
  }
};

// Makes the integers of groups first, ... in z and adds them where `integers` does; for the others end(i, decided, 0),
// i being a group's first sample. soon(i) is where values of a later group stand.
template <class More, class Add, class Soon, class End>
AISEC_VAES inline void decide_groups(Pipeline& line, std::size_t first, std::size_t last, const Quantiles& by_,
                                     More more, std::int32_t* z, const Add& integers, const Soon& soon,
                                     const End& end) {
  const Quantiles by = by_;  // in registers, as nothing can write to it there
  for (std::size_t i = first; i < last; i += group_samples) {
    const unsigned group = i % two_groups;
    more.begin(line.words + (group ^ group_samples), i / group_samples + 1);
    const auto* const later = soon(i);
    for (unsigned j = 0; j < group_samples; j += 64 / sizeof *later) __builtin_prefetch(later + j, 1, 3);
    const bool decided = decide_group(z, line, group, by, more);
    if (!decided || !integers.add(i, z)) end(i, decided ? group_samples : 0, 0);
  }
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
