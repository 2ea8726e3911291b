#pragma once
// Words that lie one input after the other, as vectors with one lane an input, and back.
#include <utility>

#include "kernels/lanes.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// lane(i) of the result is lane pick(i) of a and b laid end to end.
template <class Vector, class Pick>
inline Vector picked(Vector a, Vector b, const Pick&) {
  return [&]<int... lane>(std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, Pick{}(lane)...);
  }(std::make_integer_sequence<int, int{sizeof(Vector)} / 4>{});
}

// Of each two rows `size` apart, the upper right and the lower left blocks of `size` words change places.
template <int size>
inline void swap_blocks(Lanes (&row)[lanes]) {
  if constexpr (size < lanes) {
    constexpr auto upper = [](int i) { return (i & size) != 0 ? i - size + lanes : i; };
    constexpr auto lower = [](int i) { return (i & size) != 0 ? i + lanes : i + size; };
    for (int r = 0; r < lanes; ++r) {
      if ((r & size) != 0) continue;
      const Lanes a = row[r], b = row[r + size];
      row[r] = picked(a, b, upper);
      row[r + size] = picked(a, b, lower);
    }
  }
}

// Rows of four words to columns, in each 16 bytes of the vectors.
template <class Vector>
inline void transpose_fours(Vector& row0, Vector& row1, Vector& row2, Vector& row3) {
  constexpr int count = int{sizeof(Vector)} / 4;
  constexpr auto low_words = [](int i) { return i / 4 * 4 + i % 4 / 2 + i % 2 * count; };
  constexpr auto high_words = [](int i) { return i / 4 * 4 + i % 4 / 2 + 2 + i % 2 * count; };
  constexpr auto low_pairs = [](int i) { return i / 4 * 4 + i % 2 + i % 4 / 2 * count; };
  constexpr auto high_pairs = [](int i) { return i / 4 * 4 + 2 + i % 2 + i % 4 / 2 * count; };
  const Vector low01 = picked(row0, row1, low_words), high01 = picked(row0, row1, high_words);
  const Vector low23 = picked(row2, row3, low_words), high23 = picked(row2, row3, high_words);
  row0 = picked(low01, low23, low_pairs);
  row1 = picked(low01, low23, high_pairs);
  row2 = picked(high01, high23, low_pairs);
  row3 = picked(high01, high23, high_pairs);
}

// Rows of words to columns: 4 by 4 inside 16 bytes, then blocks of 4, then of 8.
inline void transpose(Lanes (&row)[lanes]) {
  for (int r = 0; r < lanes; r += 4) transpose_fours(row[r], row[r + 1], row[r + 2], row[r + 3]);
  swap_blocks<4>(row);
  swap_blocks<8>(row);
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
