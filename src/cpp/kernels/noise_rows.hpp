#pragma once
// From rows of the tables to T, with AVX2, for its kernels and those of AVX-512: rows are read whole and transposed,
// in vectors of 32 bytes. A compiler makes gathers of the plain text's lookups, which take three times as long.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "aisec_fast/noise_float.hpp"
#include "aisec_fast/noise_math.hpp"
#include "kernels/aes.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr unsigned two_groups = 2 * group_samples;

// A row's offset is 32 times the number of v's upper bits. A row is one behind its cell, and the row of NaN is that of
// the last deep cell, for which deeper ones are taken.
constexpr std::int64_t first_offset = (1023 + 32) << 11;

// What a call's samples have in common: rint(a), a = s T, is decided if the fraction of a + 1/2 + h, rounded to 2^-26,
// is 2 h = 2^-digits or more (docs/noise.md, section 4).
struct Quantiles {
  std::uintptr_t rows;
  __m256d scale, up;
  __m256i fraction;

  Quantiles(const QuantileRow* table, double s, double error)
      : rows(reinterpret_cast<std::uintptr_t>(table) + 32 - first_offset), scale(_mm256_set1_pd(s)) {
    int digits = 25;
    double h = 0x1p-26;
    while (h < error + 0x1p-27) {
      h *= 2;
      --digits;
    }
    up = _mm256_set1_pd(0x1p26 + 0.5 + h);
    fraction = _mm256_set1_epi32((1 << 26) - (1 << (26 - digits)));
  }
};

// What is at an offset from `rows`, which lies outside the table: so it is a number, as a pointer may not.
template <class T>
AISEC_INLINE const T* row_at(std::uintptr_t rows, std::uintptr_t offset) {
  return reinterpret_cast<const T*>(rows + offset);  // NOLINT(performance-no-int-to-ptr)
}

// T of four samples, whose rows start at offsets 0, 1, second and second + 1.
template <int second, class Offset>
inline __m256d quantiles(std::uintptr_t rows, const Offset* offset, const double* delta) {
  const auto row = [&](int i) { return _mm256_load_pd(row_at<double>(rows, offset[i])); };
  const __m256d a = row(0), b = row(1), c = row(second), d = row(second + 1);
  const __m256d ab_even = _mm256_unpacklo_pd(a, b), ab_odd = _mm256_unpackhi_pd(a, b);
  const __m256d cd_even = _mm256_unpacklo_pd(c, d), cd_odd = _mm256_unpackhi_pd(c, d);
  const __m256d c0 = _mm256_permute2f128_pd(ab_even, cd_even, 0x20), c1 = _mm256_permute2f128_pd(ab_odd, cd_odd, 0x20);
  const __m256d c2 = _mm256_permute2f128_pd(ab_even, cd_even, 0x31), c3 = _mm256_permute2f128_pd(ab_odd, cd_odd, 0x31);
  const __m256d c4 = _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(c3), 32)), x = _mm256_load_pd(delta);
  const __m256d low = _mm256_fmadd_pd(c1, x, c0), high = _mm256_fmadd_pd(_mm256_fmadd_pd(c4, x, c3), x, c2);
  return _mm256_fmadd_pd(high, _mm256_mul_pd(x, x), low);
}

// Float mode of float32: two samples a word. Nothing is fused: the bits are promised.
constexpr unsigned float_group = 2 * group_samples, two_float_groups = 2 * float_group;

constexpr std::uintptr_t first_float_offset = 127 << 10;  // 16 times the number of v's upper bits at v = 1

struct FloatCoefficients {
  __m256 c0, c1, c2, c3;
};

// Of eight samples.
inline FloatCoefficients float_coefficients(std::uintptr_t rows, const std::uint32_t* offset) {
  const auto two_rows = [&](int i) {  // i and i + 4
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_load_ps(row_at<float>(rows, offset[i]))),
                                _mm_load_ps(row_at<float>(rows, offset[i + 4])), 1);
  };
  const __m256 a = two_rows(0), b = two_rows(1), c = two_rows(2), d = two_rows(3);
  const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  return {_mm256_shuffle_ps(ab_low, cd_low, 0x44), _mm256_shuffle_ps(ab_low, cd_low, 0xee),
          _mm256_shuffle_ps(ab_high, cd_high, 0x44), _mm256_shuffle_ps(ab_high, cd_high, 0xee)};
}

// Stands for AddIntegers where integers are not added at once.
struct NeverAdd {
  bool begin(std::size_t) const { return false; }
  bool add(std::size_t, const std::int32_t*) const { return false; }
  template <class Decision>
  void take(std::size_t, const Decision&) const {}
};

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
