#pragma once
// Integers at small scales with AVX2, by straight lines in float32 (docs/noise.md, section 4).
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "aisec_fast/noise_math.hpp"
#include "kernels/noise_avx2.hpp"
#include "kernels/noise_fixed.hpp"
#include "kernels/noise_middles.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// Of u in [2^-12, 1] and v = 2^31 u: s Q(u) + 1/2 + E is c0 + c1 v, off by less than E. A cell's number is the upper
// half of v, a float32. The first row leaves every sample open: it is for smaller u.
struct alignas(8) SmallRow {
  float c0, c1;
};
constexpr int small_octaves = 12, first_small_octave = 31 - small_octaves;
constexpr float below_small_octaves = 0x1.fffffep18f;
constexpr std::uintptr_t first_small_cell = (127 + first_small_octave) << 7;
struct SmallTable {
  alignas(64) SmallRow row[128 * small_octaves + 2];
  double s;
  float window;  // 2 E
};
constexpr double largest_small_scale = 0x1p12;                                                // s
constexpr double small_bound(Law law) { return law == Law::gaussian ? 0x1p-19 : 0x1.ap-18; }  // E / s

inline void make_small_rows(SmallTable& table, Law law, double s) {
  const double bound = small_bound(law) * s, bias = 0.5 + bound;
  const QuantileRow* from = quantile_tables[static_cast<unsigned>(law)] + deep_rows + 1 +
                            64 * static_cast<std::ptrdiff_t>(fixed_octaves - small_octaves);
  SmallRow* to = table.row;
  *to++ = {0.0f, 0.0f};
  double unit = 1.0 / (1 << first_small_octave);
  for (int octave = 0; octave < small_octaves; ++octave, unit *= 0.5)
    for (int cell = 0; cell < 128; ++cell) {
      const QuantileRow& row = from[cell / 2];
      const double c4 = as_double(row.c[3] << 32), c3 = as_double(row.c[3]), c2 = as_double(row.c[2]);
      const double c1 = as_double(row.c[1]), c0 = as_double(row.c[0]);
      const double x = cell % 2 == 0 ? -0x1p-8 : 0x1p-8;  // the middle of this half of the cell
      const double value = c0 + x * (c1 + x * (c2 + x * (c3 + x * c4)));
      const double slope = c1 + x * (2.0 * c2 + x * (3.0 * c3 + x * 4.0 * c4));
      const double bend = c2 + x * (3.0 * c3 + x * 6.0 * c4);  // x^2 is 2^-17 there, give or take as much
      const double middle = (1.0 + (cell + 0.5) / 128.0) / unit;
      const float per_v = static_cast<float>(s * slope * unit);
      *to++ = {static_cast<float>(s * (value + bend * 0x1p-17) + bias - per_v * (middle - 0.5)), per_v};
      if (cell == 127) from += 64;
    }
  *to = {static_cast<float>(bias), 0.0f};
  table.s = s;
  table.window = static_cast<float>(2.0 * bound);
}

// Eights on their way: of `one` the row is known, of `two` the sum.
struct SmallTurn {
  __m256 c1, c0;
  __m256 two;
};
// Two groups of words, one of them being used, and of their samples, in order, v and the sign (bit 31).
struct SmallPipeline {
  alignas(32) std::uint64_t words[two_groups] = {};
  alignas(32) float v[two_groups];
  alignas(32) float sign[two_groups];
  SmallTurn on;
};
struct SmallQuantiles {
  std::uintptr_t rows;
  __m256 window;

  explicit SmallQuantiles(const SmallTable& table)
      : rows(reinterpret_cast<std::uintptr_t>(table.row) - sizeof(SmallRow) * (first_small_cell - 1)),
        window(_mm256_set1_ps(table.window)) {}
};

AISEC_INLINE void keep_small_cells(SmallPipeline& line, std::size_t at, __m256d a, __m256d b) {
  const __m256 v = _mm256_cvtepi32_ps(_mm256_srli_epi32(high_halves(a, b), 1));
  _mm256_store_ps(line.v + at, _mm256_max_ps(v, _mm256_set1_ps(below_small_octaves)));
  _mm256_store_ps(line.sign + at, as_floats(_mm256_slli_epi32(low_halves(a, b), 31)));
}
AISEC_INLINE void find_small_cells(SmallPipeline& line, std::size_t at) {
  const double* const words = reinterpret_cast<const double*>(line.words + at);
  keep_small_cells(line, at, _mm256_load_pd(words), _mm256_load_pd(words + 4));
}

// Rows of samples i, i + 1, i + 4 and i + 5.
AISEC_INLINE __m128 two_small_rows(std::uintptr_t rows, const float* v) {
  const auto row = [&](int sample) {
    std::uint16_t cell;
    memcpy(&cell, reinterpret_cast<const char*>(v + sample) + 2, sizeof cell);
    return row_at<double>(rows, sizeof(SmallRow) * cell);
  };
  return _mm_castpd_ps(_mm_loadh_pd(_mm_load_sd(row(0)), row(1)));
}
AISEC_INLINE __m256 with_later_rows(__m128 two, std::uintptr_t rows, const float* v) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(two), two_small_rows(rows, v + 4), 1);
}
AISEC_INLINE __m256 first_column(__m256 even, __m256 odd) { return _mm256_shuffle_ps(even, odd, 0x88); }
AISEC_INLINE __m256 second_column(__m256 even, __m256 odd) { return _mm256_shuffle_ps(even, odd, 0xdd); }

AISEC_INLINE __m256 small_sum(const float* v, __m256 c1, __m256 c0) {
  return _mm256_fmadd_ps(c1, _mm256_load_ps(v), c0);
}

// Before the first turn; the words of its group are there.
inline void start(SmallPipeline& line, const SmallQuantiles& by) {
  for (unsigned j = 0; j < group_samples; j += 8) find_small_cells(line, j);
  const auto rows = [&](const float* v) { return with_later_rows(two_small_rows(by.rows, v), by.rows, v); };
  const __m256 even = rows(line.v), odd = rows(line.v + 2), even1 = rows(line.v + 8), odd1 = rows(line.v + 10);
  line.on = {second_column(even1, odd1), first_column(even1, odd1),
             small_sum(line.v, second_column(even, odd), first_column(even, odd))};
}

// Loads the rows of `now`, finds the sum of `one` and decides `two`; between these come five rounds of AES. All three
// are v of eight samples, two_sign their signs. A bit for each sample that is left open.
template <int first_round, class More>
AISEC_VAES AISEC_INLINE unsigned small_slot(SmallTurn& on, const SmallQuantiles& by, const float* now, const float* one,
                                            const float* two_sign, float* z, const More& more,
                                            typename More::Blocks& blocks) {
  const __m128 a = two_small_rows(by.rows, now);
  __m256 n = _mm256_floor_ps(on.two);
  pin(n);
  __m256 sum = small_sum(one, on.c1, on.c0);
  pin(sum);
  aes_round<first_round>(more, blocks);
  __m256 even = with_later_rows(a, by.rows, now);
  pin(even);
  __m256 fraction = _mm256_sub_ps(on.two, n);
  pin(fraction);
  on.two = sum;
  aes_round<first_round + 1>(more, blocks);
  const __m128 b = two_small_rows(by.rows, now + 2);
  _mm256_store_ps(z, _mm256_xor_ps(n, _mm256_load_ps(two_sign)));
  aes_round<first_round + 2>(more, blocks);
  __m256 odd = with_later_rows(b, by.rows, now + 2);
  pin(odd);
  aes_round<first_round + 3>(more, blocks);
  const __m256 open = _mm256_cmp_ps(fraction, by.window, _CMP_LT_OQ);
  aes_round<first_round + 4 == 10 ? 0 : first_round + 4>(more, blocks);
  on.c0 = first_column(even, odd), on.c1 = second_column(even, odd);
  pin(on.c0);
  pin(on.c1);
  return static_cast<unsigned>(_mm256_movemask_ps(open));
}

// Decides the sixteen samples at `at` and makes as many words of the other group.
template <class More>
AISEC_VAES AISEC_INLINE unsigned small_turn(SmallTurn& on, const SmallQuantiles& by, SmallPipeline& line,
                                            std::size_t at, float* z, More& more) {
  const float* const now = line.v + (at + turn) % two_groups;
  const float* const sign = line.sign + at;
  const std::size_t made = at ^ group_samples;
  auto blocks = more.start();
  const unsigned early = small_slot<1>(on, by, now, line.v + at + 8, sign, z, more, blocks);
  const unsigned late = small_slot<6>(on, by, now + 8, now, sign + 8, z + 8, more, blocks);
  more.end(line.words + made, blocks);
  if constexpr (More::at_once == turn) {
    for (unsigned half = 0; half < 2; ++half)
      keep_small_cells(line, made + 8 * half, _mm256_castsi256_pd(blocks.state[2 * half]),
                       _mm256_castsi256_pd(blocks.state[2 * half + 1]));
  } else {
    for (unsigned half = 0; half < 2; ++half) find_small_cells(line, made + 8 * half);
  }
  return early | late << 8;
}

// As AddIntegers, but float32 adds two of its integers and rounds their sum. Neither zero nor minus zero may become
// minus zero: plus zero sees to that.
struct AddFloats : AddIntegers {
  bool add(std::size_t first, const float* z) const {
    if (!all_small(first)) return false;
    const float* const from = x + first;
    float* const to = out + first;
    const __m256 by = _mm256_set1_ps(inverse), back = _mm256_set1_ps(granularity);
    for (unsigned j = 0; j < group_samples; j += 8) {
      const __m256 q =
          _mm256_round_ps(_mm256_mul_ps(_mm256_loadu_ps(from + j), by), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      const __m256 sum = _mm256_add_ps(q, _mm256_load_ps(z + j));
      _mm256_storeu_ps(to + j, _mm256_fmadd_ps(sum, back, _mm256_setzero_ps()));
    }
    return true;
  }
};

// As decide_fixed_groups, of Z as floats.
template <class More, class Add, class Soon, class Settle, class NotAdded>
AISEC_VAES inline void decide_small_groups(SmallPipeline& line, std::size_t first, std::size_t last,
                                           const SmallQuantiles& by_, More more, float* z, const Add& integers,
                                           OpenSamples<Pipeline>& open, const Soon& soon, const Settle& settle,
                                           const NotAdded& not_added) {
  const SmallQuantiles by = by_;
  SmallTurn on = line.on;
  for (std::size_t i = first; i < last;) {
    more.begin(line.words + (i % two_groups ^ group_samples), i / group_samples + 1);
    OpenBits found;
    std::uint32_t bits[group_samples / 32];
    bool added;
    do {  // without a call
      const std::size_t group = i % two_groups;
      const auto* const later = soon(i);
      for (unsigned j = 0; j < group_samples; j += 64 / sizeof *later) __builtin_prefetch(later + j, 1, 3);
      for (unsigned j = 0; j < group_samples; j += 2 * turn) {
        const unsigned early = small_turn(on, by, line, group + j, z + j, more);
        const unsigned late = small_turn(on, by, line, group + j + turn, z + j + turn, more);
        bits[j / (2 * turn)] = early | late << 16;
      }
      found = {bits[0] | std::uint64_t{bits[1]} << 32, bits[2] | std::uint64_t{bits[3]} << 32};
      open.template keep<1>(found, line.words + group, integers.x, i);
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

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
