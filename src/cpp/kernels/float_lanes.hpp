#pragma once
// Vectors of float64, and loads that widen to them.
#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "aisec_fast/clipping_math.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// Of 32 bytes with AVX-512 too: its conversions of 64 bytes take longer than two of 32 (Zen 4).
constexpr std::size_t vector_bytes = AISEC_WIDTH < 32 ? AISEC_WIDTH : 32;  // NOLINT(bugprone-branch-clone)
typedef double Doubles __attribute__((vector_size(vector_bytes)));
typedef std::int64_t Integers __attribute__((vector_size(vector_bytes)));
constexpr std::size_t doubles = vector_bytes / 8;

template <class Vector>
inline Vector load(const void* from) {
  Vector values;
  __builtin_memcpy(&values, from, sizeof values);
  return values;
}

template <class Vector>
inline void store(void* to, Vector values) {
  __builtin_memcpy(to, &values, sizeof values);
}

inline Doubles widened(const double* from) { return load<Doubles>(from); }

// __builtin_convertvector would widen each half of a vector on its own and put them together.
inline Doubles widened(const float* from) {
#if defined(__AVX2__)
  return _mm256_cvtps_pd(_mm_loadu_ps(from));
#elif defined(__SSE2__)
  return _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  typedef float Floats __attribute__((vector_size(vector_bytes / 2)));
  return __builtin_convertvector(load<Floats>(from), Doubles);
#endif
}

inline Doubles widened(const Bfloat16* from) {
#if defined(__AVX2__)
  const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), halves)));
#else
  Doubles wide;
  for (std::size_t k = 0; k < doubles; ++k) wide[k] = widen(from[k]);
  return wide;
#endif
}

// Toward zero, for values that fit into 32 bits: x86-64 without AVX has no rounding, but has the conversion.
inline Doubles truncated(Doubles values) {
#if defined(__AVX2__)
  return _mm256_round_pd(values, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
#else
  typedef std::int32_t Words __attribute__((vector_size(vector_bytes / 2)));
  return __builtin_convertvector(__builtin_convertvector(values, Words), Doubles);
#endif
}

// Integers below 2^51 by their bit patterns: AVX2 has no instruction for float64 -> int64.
inline Integers to_integers(Doubles integers) {
  return reinterpret_cast<Integers>(integers + 0x1.8p52) - 0x4338000000000000;
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
