#pragma once
// What float mode and AVX2's fixed point have in common: v, a float32, the middle of its cell, and the row of
// scaled_tables that the middle leads to. A core keeps some 64 vector operations waiting for their operands, fewer than
// the 45 cycles from a row to a sum would need: so their loops do parts of several eights of samples in turns.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/noise_rows.hpp"
#include "kernels/stream.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

AISEC_INLINE __m256i load_words(const std::uint64_t* words) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(words));
}
AISEC_INLINE __m256 as_floats(__m256i bits) { return _mm256_castsi256_ps(bits); }

// The middle of v's cell in two steps.
AISEC_INLINE __m256 upper_bits(__m256 v) { return _mm256_and_ps(v, as_floats(_mm256_set1_epi32(~0x1ffff))); }
AISEC_INLINE __m256 middle_of(__m256 upper) { return _mm256_or_ps(upper, as_floats(_mm256_set1_epi32(0x10000))); }

// Rows of samples i and i + 4. The upper half of a middle is twice its cell's number and one.
constexpr std::uintptr_t first_middle_offset = first_float_offset + 8;  // 8 times that of v = 1
AISEC_INLINE __m256 two_rows(std::uintptr_t rows, const float* middle, int i) {
  const auto row = [&](int sample) {
    std::uint16_t upper;
    memcpy(&upper, reinterpret_cast<const char*>(middle + sample) + 2, sizeof upper);
    return _mm_load_ps(row_at<float>(rows, std::uintptr_t{8} * upper));
  };
  return _mm256_insertf128_ps(_mm256_castps128_ps256(row(i)), row(i + 4), 1);
}

// Of rows whose halves were interleaved two by two, a coefficient of all.
AISEC_INLINE __m256 even_column(__m256 ab, __m256 cd) { return _mm256_shuffle_ps(ab, cd, 0x44); }
AISEC_INLINE __m256 odd_column(__m256 ab, __m256 cd) { return _mm256_shuffle_ps(ab, cd, 0xee); }

// Compilers move an operation to where its result is used; pinned, it stays where it stands.
AISEC_INLINE void pin(__m256& value) { asm volatile("" : "+v"(value)); }

template <int number, class More>
AISEC_VAES AISEC_INLINE void aes_round(const More& more, typename More::Blocks& blocks) {
  if constexpr (number != 0) more.template rounds<number, number>(blocks);
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
