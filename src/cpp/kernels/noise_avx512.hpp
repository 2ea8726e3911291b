#pragma once
// The noise kernels' inner loops with AVX-512; the plain loops in noise.cpp do the same. A sample waits for most of its
// time, for memory and for the step before, and a core does not look far enough ahead to fill that time: each turn of a
// loop makes words of the next group, finds the rows of later samples and evaluates some before it ends with these.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/noise_fixed.hpp"
#include "kernels/noise_rows.hpp"
#include "kernels/stream.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// Two groups of words, one of them being used, and what they need of the table: where their rows start, in bytes, and
// their places in them. `t` is T of the next eight samples.
struct Eight {
  __m256d low, high;
};
struct Pipeline {
  alignas(64) std::uint64_t words[two_groups] = {};
  alignas(64) std::uint64_t offset[two_groups];
  alignas(64) double delta[two_groups];
  Eight t;
};

AISEC_INLINE void find_cells(Pipeline& line, unsigned at) {
  const __m512i least = _mm512_set1_epi64(first_offset + (deep_rows - 1) * 32);
  const __m512i place = _mm512_set1_epi64(0x3fffffffffff), one = _mm512_set1_epi64(0x3ff0000000000000);
  const __m512i bits = _mm512_castpd_si512(_mm512_maskz_cvtepu64_pd(0xff, _mm512_load_si512(line.words + at)));
  const __m512i cell = _mm512_and_si512(_mm512_maskz_srli_epi64(0xff, bits, 41), _mm512_set1_epi64(~31));
  _mm512_store_si512(line.offset + at, _mm512_maskz_max_epi32(0xffff, cell, least));  // they fit in 32 bits
  const __m512i m = _mm512_ternarylogic_epi64(bits, place, one, 0xea);                // (bits & place) | one
  _mm512_store_pd(line.delta + at, _mm512_castsi512_pd(m) - _mm512_set1_pd(1.0 + 0x1p-7));
}

AISEC_INLINE Eight next_eight(const Quantiles& by, const Pipeline& line, unsigned at) {
  return {quantiles<2>(by.rows, line.offset + at, line.delta + at),
          quantiles<2>(by.rows, line.offset + at + 4, line.delta + at + 4)};
}

constexpr unsigned cells_ahead = 32;  // what a store has put into memory is slow to read for a while

// Before the first turn; the words of its group are there, from `group` on.
inline void start(Pipeline& line, const Quantiles& by, std::size_t group = 0) {
  for (unsigned j = 0; j < cells_ahead; j += 8) find_cells(line, static_cast<unsigned>(group) + j);
  line.t = next_eight(by, line, static_cast<unsigned>(group));
}

struct Decision {
  __m256i magnitude;
  __mmask8 minus, undecided;
};

AISEC_INLINE Decision decide(const Quantiles& by, Eight t, const std::uint64_t* words) {
  const auto low_halves = [](__m256d a, __m256d b) {
    return _mm256_permutex2var_epi32(_mm256_castpd_si256(a), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14),
                                     _mm256_castpd_si256(b));
  };
  const __m256d shift = _mm256_set1_pd(integer_shift);
  const __m256i n = low_halves(_mm256_fmadd_pd(t.low, by.scale, shift), _mm256_fmadd_pd(t.high, by.scale, shift));
  const __m256i f = low_halves(_mm256_fmadd_pd(t.low, by.scale, by.up), _mm256_fmadd_pd(t.high, by.scale, by.up));
  return {n, _mm512_test_epi64_mask(_mm512_load_si512(words), _mm512_set1_epi64(1)),
          _mm256_testn_epi32_mask(f, by.fraction)};
}

// What becomes of integers: they are kept, a group at a time.
struct KeepIntegers {
  std::int32_t* z;

  void take(std::size_t i, const Decision& d) const {
    const __m256i n = _mm256_mask_sub_epi32(d.magnitude, d.minus, _mm256_setzero_si256(), d.magnitude);
    _mm256_store_si256(reinterpret_cast<__m256i*>(z + i % group_samples), n);
  }
};

// Or out = g (rint(x / g) + z) in groups with |x / g| < 2^30; `bound` is g 2^30.
struct AddIntegers {
  const float* x;
  float* out;
  float granularity, inverse, bound;

  bool begin(std::size_t i) const {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    __m512i largest = _mm512_setzero_si512();
    for (unsigned j = 0; j < group_samples; j += 16)
      largest = _mm512_maskz_max_epi32(0xffff, largest, _mm512_and_si512(_mm512_loadu_si512(x + i + j), magnitude));
    return _mm512_cmplt_epi32_mask(largest, _mm512_castps_si512(_mm512_set1_ps(bound))) == 0xffff;
  }
  void take(std::size_t i, const Decision& d) const {
    const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse)));
    const __m256i sum = _mm256_mask_sub_epi32(_mm256_add_epi32(q, d.magnitude), d.minus, q, d.magnitude);
    _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(granularity)));
  }
  // All of a group; false and nothing written if some value is too large.
  bool add(std::size_t i, const std::int32_t* z) const {
    if (!begin(i)) return false;
    for (unsigned j = 0; j < group_samples; j += 16) {
      const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + i + j), _mm512_set1_ps(inverse));
      const __m512i sum = _mm512_add_epi32(_mm512_maskz_cvtps_epi32(0xffff, scaled), _mm512_load_si512(z + j));
      const __m512 value = _mm512_maskz_cvtepi32_ps(0xffff, sum);
      _mm512_storeu_ps(out + i + j, _mm512_mul_ps(value, _mm512_set1_ps(granularity)));
    }
    return true;
  }
};

// Decides the samples of the group at i, eight after eight, until some are undecided; use.take(first, decision) for
// those before; how many they are. The words of the next group are made meanwhile, whose values `soon` stands for.
template <class More, class Use, class X>
AISEC_VAES __attribute__((always_inline)) inline unsigned decide_group(Pipeline& line, std::size_t i, Eight& t,
                                                                       const Quantiles& by, More& more, const Use& use,
                                                                       const X* soon) {
  unsigned decided = 0;
  bool all = true;
  for (unsigned j = 0; j < group_samples; j += 8) {
    const unsigned at = i % two_groups + j;
    __builtin_prefetch(soon + j, 1, 3);  // to write, first level
    more.make(line.words + (at ^ group_samples));
    find_cells(line, (at + cells_ahead) % two_groups);
    const Eight next = next_eight(by, line, (at + 8) % two_groups);
    const Decision decision = decide(by, t, line.words + at);
    t = next;
    all = all && !decision.undecided;
    if (all) {
      use.take(i + j, decision);
      decided = j + 8;
    }
  }
  return decided;
}

// Makes the integers of groups first, ..., and adds them where `integers` does, or else puts them in z; calls
// end(i, decided, added) for groups of which something is left, i being its first sample. soon(i) is where values of a
// later group stand.
template <class More, class Add, class Soon, class End>
AISEC_VAES inline void decide_groups(Pipeline& line, std::size_t first, std::size_t last, const Quantiles& by_,
                                     More more, std::int32_t* z, const Add integers, const Soon& soon, const End& end) {
  const Quantiles by = by_;  // in registers, as nothing can write to it there
  Eight t = line.t;
  for (std::size_t i = first; i < last; i += group_samples) {
    more.begin(line.words + (i % two_groups ^ group_samples), i / group_samples + 1);
    const auto* const later = soon(i);
    if (integers.begin(i)) {
      const unsigned decided = decide_group(line, i, t, by, more, integers, later);
      if (decided < group_samples) [[unlikely]]
        end(i, decided, decided);
    } else {
      end(i, decide_group(line, i, t, by, more, KeepIntegers{z}, later), 0);
    }
  }
  line.t = t;
}

// Fixed point (docs/noise.md, section 4). `minus` has a bit for each of sixteen samples.
struct FixedPipeline {
  alignas(64) std::uint64_t words[two_groups] = {};
  alignas(64) std::uint32_t offset[two_groups];
  alignas(64) float distance[two_groups];
  std::uint16_t minus[two_groups / 16];
  __m512i sums;  // of the next sixteen samples
};
struct FixedQuantiles {
  std::uintptr_t rows;
  __m128i k;
  __m512i fraction;

  explicit FixedQuantiles(const FixedTable& table)
      : rows(reinterpret_cast<std::uintptr_t>(table.row) + 16 - ((127 + first_fixed_octave) << 10)),
        k(_mm_cvtsi32_si128(table.k)),
        fraction(_mm512_set1_epi32((1 << table.k) - 2)) {}
};

AISEC_INLINE void find_fixed_cells(FixedPipeline& line, unsigned at) {
  const __m512i least = _mm512_set1_epi32(((127 + first_fixed_octave) << 10) - 16);  // the row before the first
  const __m512i a = _mm512_load_si512(line.words + at), b = _mm512_load_si512(line.words + at + 8);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i lows = _mm512_permutex2var_epi32(a, even, b);
  const __m512i highs = _mm512_permutex2var_epi32(a, _mm512_or_si512(even, _mm512_set1_epi32(1)), b);
  const __m512i v =
      _mm512_castps_si512(_mm512_maskz_cvt_roundepu32_ps(0xffff, highs, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));
  const __m512i cell = _mm512_and_si512(_mm512_maskz_srli_epi32(0xffff, v, 13), _mm512_set1_epi32(~15));
  _mm512_store_si512(line.offset + at, _mm512_maskz_max_epi32(0xffff, cell, least));
  // (v & upper bits) | a half
  const __m512i middle = _mm512_ternarylogic_epi32(v, _mm512_set1_epi32(~0x1ffff), _mm512_set1_epi32(0x10000), 0xea);
  const __m512i whole = _mm512_maskz_cvttps_epu32(0xffff, _mm512_castsi512_ps(middle));
  const __m512 upper = _mm512_maskz_cvtepi32_ps(0xffff, _mm512_sub_epi32(highs, whole));
  const __m512 lower = _mm512_maskz_cvtepu32_ps(0xffff, lows);
  _mm512_store_ps(line.distance + at, _mm512_fmadd_ps(lower, _mm512_set1_ps(0x1p-32f), upper));
  line.minus[at / 16] = _mm512_test_epi32_mask(lows, _mm512_set1_epi32(1));
}

constexpr unsigned fixed_cells_ahead = 2 * cells_ahead;

AISEC_INLINE __m512i fixed_sums(const FixedQuantiles& by, const FixedPipeline& line, unsigned at) {
  const auto eight = [&](unsigned i) {
    const FloatCoefficients c = float_coefficients(by.rows, line.offset + i);
    const __m256 x = _mm256_load_ps(line.distance + i);
    const __m256 t = _mm256_fmadd_ps(_mm256_fmadd_ps(c.c3, x, c.c2), x, c.c1);
    const __m256 moved = _mm256_fmadd_ps(t, x, _mm256_set1_ps(fixed_shift));
    return _mm256_add_epi32(_mm256_castps_si256(moved), _mm256_castps_si256(c.c0));
  };
  return _mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(eight(at)), eight(at + 8), 1);
}

inline void start(FixedPipeline& line, const FixedQuantiles& by) {
  for (unsigned j = 0; j < fixed_cells_ahead; j += 16) find_fixed_cells(line, j);
  line.sums = fixed_sums(by, line, 0);
}

// Integers of sixteen samples, in order; which of them are left open.
AISEC_INLINE __mmask16 decide_fixed(std::int32_t* z, const FixedQuantiles& by, __m512i sums, __mmask16 minus) {
  const __m512i n = _mm512_maskz_srl_epi32(0xffff, sums, by.k);
  _mm512_store_si512(z, _mm512_mask_sub_epi32(n, minus, _mm512_setzero_si512(), n));
  return _mm512_testn_epi32_mask(sums, by.fraction);
}

// As decide_groups; samples left open are kept in `open`, and settle() decides them when there are many.
// not_added(i, found) goes on where integers cannot be added at once, those that were found open being kept last. It is
// no part of its caller, where the compiler would find too much text and call the parts of decide_groups too.
template <class More, class Add, class Soon, class Settle, class NotAdded>
AISEC_VAES __attribute__((noinline)) void decide_fixed_groups(FixedPipeline& line, std::size_t first, std::size_t last,
                                                              const FixedQuantiles& by_, More more, std::int32_t* z,
                                                              const Add integers, OpenSamples<Pipeline>& open,
                                                              const Soon& soon, const Settle& settle,
                                                              const NotAdded& not_added) {
  const FixedQuantiles by = by_;
  __m512i sums = line.sums;
  for (std::size_t i = first; i < last;) {
    more.begin(line.words + (i % two_groups ^ group_samples), i / group_samples + 1);
    OpenBits found;
    bool added;
    do {  // without a call, so that what AES needs stays in registers
      const unsigned group = i % two_groups;
      const auto* const later = soon(i);
      found = {};
      for (unsigned j = 0; j < group_samples; j += 16) {
        const unsigned at = group + j;
        __builtin_prefetch(later + j, 1, 3);
        more.make(line.words + (at ^ group_samples));
        find_fixed_cells(line, (at + fixed_cells_ahead) % two_groups);
        const __m512i next = fixed_sums(by, line, (at + 16) % two_groups);
        more.make(line.words + (at ^ group_samples) + 8);
        found.add_sixteen(decide_fixed(z + j, by, sums, line.minus[at / 16]));
        sums = next;
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
  line.sums = sums;
}

// Integers of eight words from `at` on by the fast step; a bit for each that is undecided.
inline unsigned decide_eight(std::int32_t* z, OpenSamples<Pipeline>& open, unsigned at, const Quantiles& by) {
  find_cells(open.line, at);
  const Decision decision = decide(by, next_eight(by, open.line, at), open.line.words + at);
  KeepIntegers{z}.take(0, decision);
  return decision.undecided;
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
