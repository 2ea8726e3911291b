#pragma once
// Vectors of floats as wide as the instruction set has them, and tiles of products made of them.
#include <cstddef>
#include <utility>

#include "kernels/float_tiles.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

typedef float Wide __attribute__((vector_size(AISEC_WIDTH)));
typedef float UnalignedWide __attribute__((vector_size(AISEC_WIDTH), aligned(4), may_alias));
constexpr std::size_t wide_lanes = AISEC_WIDTH / 4;

inline Wide load_wide(const float* from) { return *reinterpret_cast<const UnalignedWide*>(from); }
inline void store_wide(float* to, Wide value) { *reinterpret_cast<UnalignedWide*>(to) = value; }
inline std::size_t round_wide(std::size_t count) { return (count + wide_lanes - 1) / wide_lanes * wide_lanes; }
inline Wide multiply_add_wide(Wide a, Wide b, Wide sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, sum);
#else
  return multiply_add(a, b, sum);
#endif
}

// The sums of neighbours, of a and b in turn, within 128 bits: a0+a1, a2+a3, b0+b1, b2+b3, a4+a5, ...
inline Wide add_pairs_wide(Wide a, Wide b) {
  return [&]<int... lane>(std::integer_sequence<int, lane...>) {
    constexpr int n = static_cast<int>(wide_lanes);
    return __builtin_shufflevector(a, b, (lane / 4 * 4 + lane % 2 * 2 + (lane % 4 / 2) * n)...) +
           __builtin_shufflevector(a, b, (lane / 4 * 4 + lane % 2 * 2 + (lane % 4 / 2) * n + 1)...);
  }(std::make_integer_sequence<int, static_cast<int>(wide_lanes)>{});
}

typedef float FourFloats __attribute__((vector_size(16)));
typedef double FourDoubles __attribute__((vector_size(32)));
typedef double UnalignedDoubles __attribute__((vector_size(32), aligned(8), may_alias));

template <int part>
FourFloats quarter_wide(Wide values) {
  constexpr int first = 4 * part % static_cast<int>(wide_lanes);
  return __builtin_shufflevector(values, values, first, first + 1, first + 2, first + 3);
}

// Four sums, over the lanes of four vectors each of which is in parts of 128 bits: the parts in pairs.
inline FourFloats add_parts(Wide sums) {
  if constexpr (wide_lanes == 4) return quarter_wide<0>(sums);
  if constexpr (wide_lanes == 8) return quarter_wide<0>(sums) + quarter_wide<1>(sums);
  return (quarter_wide<0>(sums) + quarter_wide<1>(sums)) + (quarter_wide<2>(sums) + quarter_wide<3>(sums));
}

// What will be worked on next, fetched into the caches a few lines at a time: rows of a matrix.
class Ahead {
 public:
  Ahead(const float* values, std::size_t first, std::size_t pitch, std::size_t rows, std::size_t columns)
      : from_(rows == 0 ? values : values + first), pitch_(pitch), rows_(rows), columns_(columns) {}

  void fetch(std::size_t count) {
    for (; count > 0 && rows_ > 0; --count) {
      __builtin_prefetch(from_ + column_, 0, 3);
      column_ += line;
      if (column_ < columns_) continue;
      column_ = 0;
      from_ += pitch_;
      --rows_;
    }
  }
  bool done() const { return rows_ == 0; }
  static std::size_t count(std::size_t rows, std::size_t columns) { return rows * ((columns + line - 1) / line); }

 private:
  static constexpr std::size_t line = 16;
  const float* from_;
  std::size_t pitch_, rows_, columns_, column_ = 0;
};

// to[c * to_pitch + r] = row r . column c, r < 4, over `count` values, whole vectors, or is added to it. Lane by lane
// in float32, then the lanes in pairs. What comes next is fetched meanwhile, so many lines every 8 vectors.
template <std::size_t columns_>
void add_dots(const float* rows, const float* columns, std::size_t pitch, std::size_t count, Ahead& ahead,
              std::size_t lines, bool adds, double* to, std::size_t to_pitch) {
  Wide sums[columns_][4] = {};
  for (std::size_t i = 0; i < count; i += wide_lanes) {
    if (i % (8 * wide_lanes) == 0) ahead.fetch(lines);
    Wide b[columns_];
    for (std::size_t c = 0; c < columns_; ++c) b[c] = load_wide(columns + c * pitch + i);
    for (std::size_t r = 0; r < 4; ++r) {
      const Wide a = load_wide(rows + r * pitch + i);
      for (std::size_t c = 0; c < columns_; ++c) sums[c][r] = multiply_add_wide(a, b[c], sums[c][r]);
    }
  }
  Wide folded[columns_];  // of 128 bits each part has a sum of every row
  for (std::size_t c = 0; c < columns_; ++c)
    folded[c] = add_pairs_wide(add_pairs_wide(sums[c][0], sums[c][1]), add_pairs_wide(sums[c][2], sums[c][3]));
  const auto put = [&](std::size_t c, FourFloats four) {
    UnalignedDoubles* const totals = reinterpret_cast<UnalignedDoubles*>(to + c * to_pitch);
    const FourDoubles exact = __builtin_convertvector(four, FourDoubles);
    *totals = adds ? *totals + exact : exact;
  };
#if AISEC_WIDTH == 64
  if constexpr (columns_ == 4) {  // the same sums for four columns at a time
    const auto pairs = [](Wide a, Wide b) {
      return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
             __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    };
    const Wide all = pairs(pairs(folded[0], folded[1]), pairs(folded[2], folded[3]));
    put(0, quarter_wide<0>(all));
    put(1, quarter_wide<1>(all));
    put(2, quarter_wide<2>(all));
    put(3, quarter_wide<3>(all));
    return;
  }
#endif
  for (std::size_t c = 0; c < columns_; ++c) put(c, add_parts(folded[c]));
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
