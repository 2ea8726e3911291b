#pragma once
// The noise kernels' inner loops with AVX2 and FMA; the plain loops in noise.cpp do the same. Words of the next group
// are made while the rows of this one are found: that leaves the units of AES idle.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/noise_rows.hpp"
#include "kernels/stream.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// Two groups of words, one of them being used, and what that one needs of the table: where rows start in it, in bytes,
// and the words' places in them.
struct Pipeline {
  alignas(32) std::uint64_t words[two_groups] = {};
  alignas(32) std::uint64_t offset[group_samples];
  alignas(32) double delta[group_samples];
};

inline void start(Pipeline&, const Quantiles&) {}

template <class More>
AISEC_VAES inline void find_cells(Pipeline& line, unsigned group, More& more) {
  const __m256i high_exponent = _mm256_set1_epi64x(0x4530000000000000),
                low_exponent = _mm256_set1_epi64x(0x4330000000000000);
  const __m256i least = _mm256_set1_epi64x(first_offset + (deep_rows - 1) * 32);
  const __m256i place = _mm256_set1_epi64x(0x3fffffffffff), one = _mm256_set1_epi64x(0x3ff0000000000000);
  for (unsigned j = 0; j < group_samples; j += 4) {
    if (j % 8 == 0) more.make(line.words + (group ^ group_samples) + j);
    const __m256i word = _mm256_load_si256(reinterpret_cast<const __m256i*>(line.words + group + j));
    const __m256i high = _mm256_or_si256(_mm256_srli_epi64(word, 32), high_exponent);
    const __m256i low = _mm256_blend_epi32(word, low_exponent, 0xaa);
    const __m256d v = _mm256_add_pd(_mm256_sub_pd(_mm256_castsi256_pd(high), _mm256_set1_pd(0x1p84 + 0x1p52)),
                                    _mm256_castsi256_pd(low));
    const __m256i bits = _mm256_castpd_si256(v);
    const __m256i cell = _mm256_and_si256(_mm256_srli_epi64(bits, 41), _mm256_set1_epi64x(~31));
    const __m256i offset = _mm256_max_epi32(cell, least);  // they fit in 32 bits
    _mm256_store_si256(reinterpret_cast<__m256i*>(line.offset + j), offset);
    const __m256d m = _mm256_castsi256_pd(_mm256_or_si256(_mm256_and_si256(bits, place), one));
    _mm256_store_pd(line.delta + j, _mm256_sub_pd(m, _mm256_set1_pd(1.0 + 0x1p-7)));
  }
}

inline __m256i low_halves(__m256d a, __m256d b) {
  return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castpd_ps(a), _mm256_castpd_ps(b), 0x88));
}

// The integers of a group, in order, by the fast step; false if some sample is undecided. Narrowing two vectors in the
// order of lanes to one puts the samples in order.
inline bool quantile_group(std::int32_t* z, const Pipeline& line, const std::uint64_t* words, const Quantiles& by) {
  const __m256d shift = _mm256_set1_pd(integer_shift);
  const auto four = [&](unsigned j) { return quantiles(by.rows, line.offset + j, line.delta + j); };
  __m256i least = by.fraction;
  __m256d next_low = four(0), next_high = four(4);
  for (unsigned j = 0; j < group_samples; j += 8) {
    const __m256d low = next_low, high = next_high;
    const unsigned next = (j + 8) % group_samples;
    next_low = four(next);  // before the last steps of these: a core does not look far enough ahead
    next_high = four(next + 4);
    const __m256i n = low_halves(_mm256_fmadd_pd(low, by.scale, shift), _mm256_fmadd_pd(high, by.scale, shift));
    const __m256i f = low_halves(_mm256_fmadd_pd(low, by.scale, by.up), _mm256_fmadd_pd(high, by.scale, by.up));
    least = _mm256_min_epu32(least, _mm256_and_si256(f, by.fraction));
    const __m256i low_words = low_halves(_mm256_load_pd(reinterpret_cast<const double*>(words + j)),
                                         _mm256_load_pd(reinterpret_cast<const double*>(words + j + 4)));
    const __m256i sign = _mm256_or_si256(_mm256_slli_epi32(low_words, 31), _mm256_set1_epi32(1));
    _mm256_store_si256(reinterpret_cast<__m256i*>(z + j), _mm256_sign_epi32(n, sign));
  }
  return _mm256_movemask_epi8(_mm256_cmpeq_epi32(least, _mm256_setzero_si256())) == 0;
}

// out = g (rint(x / g) + z) for values first to first + 127, or false and nothing written if some |x / g| is 2^30 or
// more; `bound` is g 2^30.
struct AddIntegers {
  const float* x;
  float* out;
  float granularity, inverse, bound;

  bool add(std::size_t first, const std::int32_t* z) const {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i largest = _mm256_setzero_si256();
    for (unsigned j = 0; j < group_samples; j += 8) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + first + j));
      largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, magnitude));
    }
    const __m256i below = _mm256_cmpgt_epi32(_mm256_castps_si256(_mm256_set1_ps(bound)), largest);
    if (_mm256_movemask_epi8(below) != -1) return false;
    for (unsigned j = 0; j < group_samples; j += 8) {
      const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + first + j), _mm256_set1_ps(inverse)));
      const __m256i sum = _mm256_add_epi32(q, _mm256_load_si256(reinterpret_cast<const __m256i*>(z + j)));
      _mm256_storeu_ps(out + first + j, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(granularity)));
    }
    return true;
  }
};

// Makes the integers of groups first, ..., in z and adds them where `integers` does; for the others end(i, decided, 0),
// i being a group's first sample. soon(i) is where values of a later group stand.
template <class More, class Add, class Soon, class End>
AISEC_VAES inline void decide_groups(Pipeline& line, std::size_t first, std::size_t last, const Quantiles& by,
                                     More more, std::int32_t* z, const Add& integers, const Soon& soon,
                                     const End& end) {
  for (std::size_t i = first; i < last; i += group_samples) {
    const unsigned group = i % two_groups;
    more.begin(line.words + (group ^ group_samples), i / group_samples + 1);
    const auto* const later = soon(i);
    for (unsigned j = 0; j < group_samples; j += 64 / sizeof *later) __builtin_prefetch(later + j, 1, 2);
    find_cells(line, group, more);
    const bool decided = quantile_group(z, line, line.words + group, by);
    if (!decided || !integers.add(i, z)) end(i, decided ? group_samples : 0, 0);
  }
}

// Float mode of float32: T of a group's samples is made from these.
struct FloatPipeline {
  alignas(32) std::uint64_t words[two_groups] = {};
  alignas(32) std::uint32_t word[float_group];  // of two_groups' half, in order
  alignas(32) std::uint32_t offset[float_group];
  alignas(32) float delta[float_group];
};

inline void start(FloatPipeline&, std::uintptr_t) {}

template <class More>
AISEC_VAES inline void find_float_cells(FloatPipeline& line, unsigned group, More& more) {
  const __m256i place = _mm256_set1_epi32(0x1ffff), one = _mm256_set1_epi32(0x3f800000);
  for (unsigned j = 0; j < float_group; j += 8) {
    if (j % 16 == 0) more.make(line.words + (group ^ group_samples) + j / 2);
    const std::uint64_t* const four = line.words + group + j / 16 * 8 + j / 8 % 2 * 2;  // words 0 1, 2 3 or 4 5, 6 7
    const __m256i early = _mm256_castsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(four)));
    const __m256i d = _mm256_inserti128_si256(early, _mm_load_si128(reinterpret_cast<const __m128i*>(four + 4)), 1);
    const __m256 v = _mm256_cvtepi32_ps(_mm256_or_si256(_mm256_srli_epi32(d, 1), _mm256_set1_epi32(1)));
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i cell = _mm256_and_si256(_mm256_srli_epi32(bits, 13), _mm256_set1_epi32(~15));
    _mm256_store_si256(reinterpret_cast<__m256i*>(line.word + j), d);
    _mm256_store_si256(reinterpret_cast<__m256i*>(line.offset + j), cell);
    const __m256 m = _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(bits, place), one));
    _mm256_store_ps(line.delta + j, _mm256_sub_ps(m, _mm256_set1_ps(1.0f + 0x1p-7f)));
  }
}

// out = x + scale T for whole groups; x and out are where sample `first` stands.
template <class More, class Soon>
AISEC_VAES inline void add_float_groups(const float* x, float* out, FloatPipeline& line, std::size_t first,
                                        std::size_t last, std::uintptr_t rows, float scale_, More more,
                                        const Soon& soon) {
  const __m256 scale = _mm256_set1_ps(scale_);
  for (std::size_t i = first; i < last; i += float_group) {
    const unsigned group = i / 2 % two_groups;
    more.begin(line.words + (group ^ group_samples), i / float_group + 1);
    const float* const later = soon(i);
    for (unsigned j = 0; j < float_group; j += 16) __builtin_prefetch(later + j, 1, 2);
    find_float_cells(line, group, more);
    __m256 next = float_quantiles(rows, line.offset, line.delta);
    for (unsigned j = 0; j < float_group; j += 8) {
      const __m256 t = next;
      const unsigned at = (j + 8) % float_group;
      next = float_quantiles(rows, line.offset + at, line.delta + at);
      const __m256i sign = _mm256_slli_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(line.word + j)), 31);
      const __m256 noise = _mm256_mul_ps(scale, _mm256_xor_ps(t, _mm256_castsi256_ps(sign)));
      _mm256_storeu_ps(out + i - first + j, _mm256_add_ps(_mm256_loadu_ps(x + i - first + j), noise));
    }
  }
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
