#pragma once
// Products of float32 matrices, a tile at a time in registers. One tile has as many sums as two multiply-add units with
// a latency of four need, and as 16 registers hold.
#include <cstddef>
#include <utility>

#include "aisec_fast/host_device.hpp"
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace aisec_fast::AISEC_ISA {
namespace {

// Of 32 bytes with AVX-512 too: with 64, most of a convolution's short rows would be padding.
constexpr std::size_t tile_bytes = AISEC_WIDTH < 32 ? AISEC_WIDTH : 32;  // NOLINT(bugprone-branch-clone)
typedef float Floats __attribute__((vector_size(tile_bytes)));
typedef float UnalignedFloats __attribute__((vector_size(tile_bytes), aligned(4), may_alias));
constexpr std::size_t float_lanes = tile_bytes / 4;

AISEC_HD constexpr std::size_t least(std::size_t a, std::size_t b) { return a < b ? a : b; }
AISEC_HD Floats load(const float* from) { return *reinterpret_cast<const UnalignedFloats*>(from); }
AISEC_HD void store(float* to, Floats value) { *reinterpret_cast<UnalignedFloats*>(to) = value; }

// Past the caches, to an aligned place; visible to other threads after end_of_stream().
#if defined(__AVX__)
AISEC_HD void stream(float* to, Floats value) { _mm256_stream_ps(to, value); }
AISEC_HD void end_of_stream() { _mm_sfence(); }
#elif defined(__SSE__)
AISEC_HD void stream(float* to, Floats value) { _mm_stream_ps(to, value); }
AISEC_HD void end_of_stream() { _mm_sfence(); }
#else
AISEC_HD void stream(float* to, Floats value) { store(to, value); }
AISEC_HD void end_of_stream() {}
#endif

AISEC_HD Floats multiply_add(Floats a, Floats b, Floats sum) {
#if defined(__FMA__)
  return _mm256_fmadd_ps(a, b, sum);
#else
  return a * b + sum;
#endif
}

AISEC_HD std::size_t round_up(std::size_t count) { return (count + float_lanes - 1) / float_lanes * float_lanes; }

typedef double Doubles __attribute__((vector_size(tile_bytes)));

// Halves of a vector in float64. __builtin_convertvector would widen each half of a half on its own.
#if defined(__AVX2__)
AISEC_HD Doubles lower(Floats values) { return _mm256_cvtps_pd(_mm256_castps256_ps128(values)); }
AISEC_HD Doubles upper(Floats values) { return _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1)); }
#else
template <int begin, int... lane>
AISEC_HD Doubles widened(Floats values, std::integer_sequence<int, lane...>) {
  return __builtin_convertvector(__builtin_shufflevector(values, values, (begin + lane)...), Doubles);
}
constexpr int half_lanes = static_cast<int>(float_lanes) / 2;
AISEC_HD Doubles lower(Floats values) { return widened<0>(values, std::make_integer_sequence<int, half_lanes>{}); }
AISEC_HD Doubles upper(Floats values) {
  return widened<half_lanes>(values, std::make_integer_sequence<int, half_lanes>{});
}
#endif
AISEC_HD double add_lanes(Doubles values) {
  double sum = 0.0;
  for (std::size_t i = 0; i < float_lanes / 2; ++i) sum += values[i];
  return sum;
}

// Sums of squares of float32 values in float64, where squares are exact.
struct Squares {
  Doubles sums[4] = {};

  // The halves go to the sums `first` and `first + 1`: neighbouring calls do not wait for one another.
  AISEC_HD void add(Floats values, std::size_t first) {
    const Doubles low = lower(values), high = upper(values);
    sums[first] += low * low;
    sums[first + 1] += high * high;
  }
  AISEC_HD double total() const { return add_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])); }
};

// A sum of products whose terms are found by two nested loops: steps of a and b, in values.
struct Walk {
  std::size_t outer, inner;
  std::size_t a_outer, a_inner, b_outer, b_inner;
};

// sums[r][v] = sum over the walk of a[r] * (vector v at b), one after the other in float32.
template <std::size_t rows_, std::size_t vectors_>
AISEC_HD void add_products(const float* const (&a)[rows_], const float* b, std::size_t vector_step, const Walk& walk,
                           Floats (&sums)[rows_][vectors_]) {
  for (std::size_t o = 0; o < walk.outer; ++o) {
    const float* to = b + o * walk.b_outer;
    std::size_t at = o * walk.a_outer;
    for (std::size_t i = 0; i < walk.inner; ++i, at += walk.a_inner, to += walk.b_inner) {
      Floats right[vectors_];
      for (std::size_t v = 0; v < vectors_; ++v) right[v] = load(to + v * vector_step);
      for (std::size_t r = 0; r < rows_; ++r) {
        const Floats left = a[r][at] - Floats{};
        for (std::size_t v = 0; v < vectors_; ++v) sums[r][v] = multiply_add(left, right[v], sums[r][v]);
      }
    }
  }
}

// Lane by lane: from[0][0..], ... as columns.
AISEC_HD void transpose(Floats (&square)[float_lanes]) {
  constexpr int n = static_cast<int>(float_lanes);
  const auto interleave = []<int... lane>(Floats a, Floats b, int, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * n)...);
  };
  const auto interleave_high = []<int... lane>(Floats a, Floats b, int, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, (n / 2 + lane / 2 + lane % 2 * n)...);
  };
  const auto all = std::make_integer_sequence<int, n>{};
  for (std::size_t step = 1; step < float_lanes; step *= 2) {
    Floats next[float_lanes];
    for (std::size_t i = 0; i < float_lanes / 2; ++i) {
      next[2 * i] = interleave(square[i], square[i + float_lanes / 2], 0, all);
      next[2 * i + 1] = interleave_high(square[i], square[i + float_lanes / 2], 0, all);
    }
    for (std::size_t i = 0; i < float_lanes; ++i) square[i] = next[i];
  }
}

// to[c * to_pitch + r] = from[r * from_pitch + c], r < rows, c < columns; to's rows are padded with zeros up to
// `whole`.
AISEC_HD void transpose_copy(const float* from, std::size_t from_pitch, std::size_t rows, std::size_t columns,
                             float* to, std::size_t to_pitch, std::size_t whole) {
  for (std::size_t r = 0; r < whole; r += float_lanes) {
    std::size_t c = 0;
    if (r + float_lanes <= rows)
      for (; c + float_lanes <= columns; c += float_lanes) {
        Floats square[float_lanes];
        for (std::size_t i = 0; i < float_lanes; ++i) square[i] = load(from + (r + i) * from_pitch + c);
        transpose(square);
        for (std::size_t i = 0; i < float_lanes; ++i) store(to + (c + i) * to_pitch + r, square[i]);
      }
    for (; c < columns; ++c)
      for (std::size_t i = r; i < least(r + float_lanes, whole); ++i)
        to[c * to_pitch + i] = i < rows ? from[i * from_pitch + c] : 0.0f;
  }
}

// to[c * to_pitch + r] = from[r * from_pitch + c], r < rows, c < columns; `from` has whole squares.
AISEC_HD void store_transposed(const float* from, std::size_t from_pitch, std::size_t rows, std::size_t columns,
                               float* to, std::size_t to_pitch) {
  for (std::size_t c = 0; c < columns; c += float_lanes)
    for (std::size_t r = 0; r < rows; r += float_lanes) {
      Floats square[float_lanes];
      for (std::size_t i = 0; i < float_lanes; ++i) square[i] = load(from + (r + i) * from_pitch + c);
      transpose(square);
      if (r + float_lanes <= rows && c + float_lanes <= columns) {
        for (std::size_t i = 0; i < float_lanes; ++i) store(to + (c + i) * to_pitch + r, square[i]);
        continue;
      }
      alignas(64) float edge[float_lanes * float_lanes];  // vectors whose lanes are indexed would live in memory
      for (std::size_t i = 0; i < float_lanes; ++i) store(edge + i * float_lanes, square[i]);
      for (std::size_t i = 0; i < least(float_lanes, columns - c); ++i)
        for (std::size_t j = 0; j < least(float_lanes, rows - r); ++j)
          to[(c + i) * to_pitch + r + j] = edge[i * float_lanes + j];
    }
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
