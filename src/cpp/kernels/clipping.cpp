// Clipping kernels, compiled once per instruction set. Order of every sum: docs/clipping.md.
#include "aisec_fast/clipping_math.hpp"
#include "kernels/block_sum.hpp"
#include "kernels/families.hpp"
#include "kernels/float_lanes.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr std::size_t line_bytes = 64, group = 16;  // columns worked on between two prefetches
constexpr int rows_together = 4;                    // so that loading and storing a total costs little beside them
constexpr std::size_t ahead_bytes = 512;            // what passes is asked for so far ahead in its own row
// Rows that are added while as many are measured: as many as there are registers for their partial sums.
constexpr int rows_side_by_side = AISEC_WIDTH == 64 ? 4 : 2;
constexpr std::size_t measured_ahead = 8192;  // bytes of theirs that are asked for before they are needed

template <class T>
inline const T* row_of(const RowSet& set, std::size_t r) {
  return static_cast<const T*>(set.rows) + static_cast<std::ptrdiff_t>(r) * set.stride;
}

inline const char* next_of(const RowSet& set, std::size_t r) {
  return set.next_rows + static_cast<std::ptrdiff_t>(r) * set.next_stride;
}

// Fetches what lies in `row` where the caller's columns c, ..., c + 15 lie in their row; `locality` as in
// __builtin_prefetch. Every line: with every other line left out the hardware's prefetchers lose the stream.
template <int locality, class T>
inline void fetch_lines(const char* row, std::size_t c) {
  if constexpr (group * sizeof(T) >= line_bytes) {
    for (std::size_t at = 0; at < group * sizeof(T); at += line_bytes)
      __builtin_prefetch(row + c * sizeof(T) + at, 0, locality);
  } else {
    if (c * sizeof(T) % line_bytes == 0) __builtin_prefetch(row + c * sizeof(T), 0, locality);
  }
}

// What is read next, into the second level. Memory delivers while the caller computes; the hardware's own prefetchers
// stop at the end of every page, and a tile of a row is about a page. Both kernels do it.
template <class T>
inline void fetch(const char* row, std::size_t c) {
  fetch_lines<2, T>(row, c);
}

// What passes, into the first level and no other: rows of the next block stay in the shared cache in its place.
template <class T>
inline void fetch_passing(const T* row, std::size_t c) {
  fetch_lines<0, T>(reinterpret_cast<const char*>(row) + ahead_bytes, c);
}

// sum + value^2. The square of a float32 is exact in float64, so that to fuse both rounds no other way.
template <class T>
inline Doubles add_square(Doubles sum, Doubles value) {
#if defined(__FMA__)
  if constexpr (sizeof(T) < sizeof(double)) return _mm256_fmadd_pd(value, value, sum);
#endif
  return sum + value * value;
}

// sum + weight * value, each rounded: the product times 1, fused, is that very sum. For every other row, as some
// processors (Zen 4) fuse in the units that multiply, and add in those that convert, which have more to do.
inline Doubles add_product([[maybe_unused]] int r, Doubles sum, double weight, Doubles value) {
#if defined(__FMA__)
  if (r % 2 == 1) return _mm256_fmadd_pd(weight * value, _mm256_set1_pd(1.0), sum);
#endif
  return sum + weight * value;
}

// Block sums of `count` rows side by side, as each is a chain of additions; with their partial sums in vectors.
template <int count, class T>
inline void row_block_sums(const RowSet& set, std::size_t first, std::size_t columns, double* out) {
  static_assert(group == partial_sums);
  constexpr std::size_t vectors = partial_sums / doubles;
  const T* rows[count];
  const char* next[count];
  for (int r = 0; r < count; ++r) {
    rows[r] = row_of<T>(set, first + static_cast<std::size_t>(r));
    next[r] = next_of(set, first + static_cast<std::size_t>(r));
  }
  Doubles sums[count][vectors] = {};
  const std::size_t whole = columns / group * group;
  for (std::size_t c = 0; c < whole; c += group)
    for (int r = 0; r < count; ++r) {
      fetch<T>(next[r], c);
#pragma GCC unroll 8
      for (std::size_t k = 0; k < vectors; ++k)
        sums[r][k] = add_square<T>(sums[r][k], widened(rows[r] + c + k * doubles));
    }
  for (int r = 0; r < count; ++r) {
    alignas(64) double partial[partial_sums];
    __builtin_memcpy(partial, sums[r], sizeof partial);
    for (std::size_t k = 0; whole + k < columns; ++k)
      partial[k] += widen(rows[r][whole + k]) * widen(rows[r][whole + k]);
    out[first + static_cast<std::size_t>(r)] = fold(partial);
  }
}

template <class T>
void block_sums(const RowSet& set, std::size_t columns, double multiplier, double* sums) {
  std::size_t r = 0;
  if (multiplier == 1.0) {
    for (; r + 2 <= set.count; r += 2) row_block_sums<2, T>(set, r, columns, sums);
    if (r < set.count) row_block_sums<1, T>(set, r, columns, sums);
    return;
  }
  for (; r < set.count; ++r) {
    const T* row = row_of<T>(set, r);
    sums[r] = block_sum(columns, [=](std::size_t i) { return widen(row[i]) * multiplier; });
  }
}

// Rows of a weight other than zero: in order, four at a time, then the last few: use(number of rows, rows), where the
// number is a constant.
struct Chosen {
  std::size_t rows[rows_together];
};
template <int count>
struct Count {
  static constexpr int value = count;
};
template <class Use>
inline void for_rows(const RowSet& set, const double* weights, const Use& use) {
  Chosen chosen{};
  int waiting = 0;
  for (std::size_t r = 0; r < set.count; ++r) {
    if (weights[r] == 0.0) continue;
    chosen.rows[waiting] = r;
    if (++waiting < rows_together) continue;
    use(Count<rows_together>{}, chosen);
    waiting = 0;
  }
  static_assert(rows_together == 4);
  if (waiting == 3) use(Count<3>{}, chosen);
  if (waiting == 2) use(Count<2>{}, chosen);
  if (waiting == 1) use(Count<1>{}, chosen);
}

// What becomes of some rows' values at columns at, at + 1, ...: they are added with their weights,
template <int count>
struct WeightedRows {
  double* __restrict total;
  double weights[count];
  void add(std::size_t at, const Doubles (&values)[count]) const {
    Doubles sum = load<Doubles>(total + at);
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) sum = add_product(r, sum, weights[r], values[r]);
    store(total + at, sum);
  }
};

// or as integers, whose squares are added up too, in float64: for rows whose sum is below 2^53.
template <int count>
struct LatticeRows {
  std::int64_t* __restrict total;
  double factors[count];
  Doubles squares[count];
  void add(std::size_t at, const Doubles (&values)[count]) {
    Doubles integers = {};  // of all rows: below 2^33
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r) {
      const Doubles t = truncated(values[r] * factors[r]);
      integers += t;
      squares[r] += t * t;
    }
    store(total + at, load<Integers>(total + at) + to_integers(integers));
  }
  std::int64_t sum_of_squares(int r) const {
    double sum = 0.0;
    for (std::size_t k = 0; k < doubles; ++k) sum += squares[r][k];
    return static_cast<std::int64_t>(sum);
  }
};

// The chosen rows' values in whole groups of columns; how many columns these are.
template <int count, class T, class Rows>
inline std::size_t add_groups(const RowSet& set, const T* const (&added)[count], const Chosen& chosen,
                              std::size_t columns, Rows& rows) {
  const char* next[count];
  for (int r = 0; r < count; ++r) next[r] = next_of(set, chosen.rows[r]);
  const std::size_t whole = columns / group * group;
  for (std::size_t c = 0; c < whole; c += group) {
    for (int r = 0; r < count; ++r) fetch<T>(next[r], c);
    if (set.passing)
      for (int r = 0; r < count; ++r) fetch_passing(added[r], c);
#pragma GCC unroll 8
    for (std::size_t at = c; at < c + group; at += doubles) {
      Doubles values[count];
#pragma GCC unroll 8
      for (int r = 0; r < count; ++r) values[r] = widened(added[r] + at);
      rows.add(at, values);
    }
  }
  return whole;
}

// total[c] += the chosen rows' weighted values, each row in its turn.
template <int count, class T>
inline void add_rows(const RowSet& set, const Chosen& chosen, const double* weights, std::size_t columns,
                     double* total) {
  const T* added[count];
  WeightedRows<count> rows{total, {}};
  for (int r = 0; r < count; ++r) {
    added[r] = row_of<T>(set, chosen.rows[r]);
    rows.weights[r] = weights[chosen.rows[r]];
  }
  for (std::size_t c = add_groups(set, added, chosen, columns, rows); c < columns; ++c)
    for (int r = 0; r < count; ++r) total[c] += rows.weights[r] * widen(added[r][c]);
}

template <class T>
void add_weighted(const RowSet& set, const double* weights, std::size_t columns, double* total) {
  for_rows(set, weights, [&](auto count, const Chosen& chosen) {
    add_rows<decltype(count)::value, T>(set, chosen, weights, columns, total);
  });
}

// One tile of some rows that are added, and of as many that are measured: both in one loop, and in the same loop for
// all tiles. Processors know a stream by the instruction that reads it, and start anew when another goes on with it: a
// loop of its own for the end of a tile costs a third where rows come from the shared cache (Zen 5).
template <int count, class T, class Rows>
inline void add_and_measure_tile(const T* added, const T* measured, const RowRun& run, Rows& rows, double* sums) {
  static_assert(group == partial_sums);
  constexpr std::size_t vectors = partial_sums / doubles, ahead = measured_ahead / count / sizeof(T);
  Doubles partial[count][vectors] = {};
  for (std::size_t c = 0; c < norm_block; c += group) {
    for (int r = 0; r < count; ++r) {
      fetch_lines<3, T>(reinterpret_cast<const char*>(measured + r * run.stride + ahead), c);
      if (run.passing) fetch_passing(added + r * run.stride, c);
    }
#pragma GCC unroll 8
    for (std::size_t k = 0; k < vectors; ++k) {
      const std::size_t at = c + k * doubles;
      Doubles values[count];
#pragma GCC unroll 8
      for (int r = 0; r < count; ++r) {
        values[r] = widened(added + r * run.stride + at);
        partial[r][k] = add_square<T>(partial[r][k], widened(measured + r * run.stride + at));
      }
      rows.add(at, values);
    }
  }
  for (int r = 0; r < count; ++r) {
    alignas(64) double folded[partial_sums];
    __builtin_memcpy(folded, partial[r], sizeof folded);
    sums[r] = fold(folded);
  }
}

// For every tile of a run, its rows several at a time: use(number of rows, first of them, tile, added, measured), where
// the number is a constant.
template <class T, class Use>
inline void for_tiles(const RowRun& run, const Use& use) {
  const T *added = static_cast<const T*>(run.added), *measured = static_cast<const T*>(run.measured);
  for (std::size_t t = 0; t < run.tiles; ++t, added += norm_block, measured += norm_block) {
    std::size_t r = 0;
    const auto some = [&](auto count) {
      for (constexpr int n = decltype(count)::value; r + n <= run.rows; r += n) {
        const std::ptrdiff_t offset = static_cast<std::ptrdiff_t>(r) * run.stride;
        use(count, r, t, added + offset, measured + offset);
      }
    };
    some(Count<rows_side_by_side>{});
    some(Count<1>{});
  }
}

template <class T>
void add_and_measure(const RowRun& run, const double* weights, double* total, double* sums) {
  for_tiles<T>(run, [=, &run](auto count, std::size_t r, std::size_t t, const T* added, const T* measured) {
    constexpr int n = decltype(count)::value;
    WeightedRows<n> rows{total + t * norm_block, {}};
    for (std::size_t i = 0; i < n; ++i) rows.weights[i] = weights[r + i];
    add_and_measure_tile<n>(added, measured, run, rows, sums + t * run.rows + r);
  });
}

template <class T>
void add_lattice_and_measure(const RowRun& run, const double* factors, std::int64_t* total, std::int64_t* squares,
                             double* sums) {
  for_tiles<T>(run, [=, &run](auto count, std::size_t r, std::size_t t, const T* added, const T* measured) {
    constexpr int n = decltype(count)::value;
    LatticeRows<n> rows{total + t * norm_block, {}, {}};
    for (std::size_t i = 0; i < n; ++i) rows.factors[i] = factors[r + i];
    add_and_measure_tile<n>(added, measured, run, rows, sums + t * run.rows + r);
    for (int i = 0; i < n; ++i) squares[r + static_cast<std::size_t>(i)] += rows.sum_of_squares(i);
  });
}

// One row's integers and the sum of their squares, in 64-bit integers.
template <class T>
std::int64_t add_integers(const T* row, double factor, std::size_t begin, std::size_t end,
                          std::int64_t* __restrict total) {
  std::int64_t squares = 0;
  for (std::size_t c = begin; c < end; ++c) {
    const std::int64_t t = static_cast<std::int32_t>(widen(row[c]) * factor);
    total[c] += t;
    squares += t * t;
  }
  return squares;
}

// The same for several rows whose squares sum to less than 2^53, in float64: nothing is rounded.
template <int count, class T>
void add_lattice_rows(const RowSet& set, const Chosen& chosen, const double* factors, std::size_t columns,
                      std::int64_t* total, std::int64_t* squares) {
  const T* added[count];
  LatticeRows<count> rows{total, {}, {}};
  for (int r = 0; r < count; ++r) {
    added[r] = row_of<T>(set, chosen.rows[r]);
    rows.factors[r] = factors[chosen.rows[r]];
  }
  const std::size_t whole = add_groups(set, added, chosen, columns, rows);
  for (int r = 0; r < count; ++r)
    squares[chosen.rows[r]] += rows.sum_of_squares(r) + add_integers(added[r], rows.factors[r], whole, columns, total);
}

template <class T>
void add_lattice(const RowSet& set, const double* factors, bool small, std::size_t columns, std::int64_t* total,
                 std::int64_t* squares) {
  if (small)
    return for_rows(set, factors, [&](auto count, const Chosen& chosen) {
      add_lattice_rows<decltype(count)::value, T>(set, chosen, factors, columns, total, squares);
    });
  for (std::size_t r = 0; r < set.count; ++r)
    if (factors[r] != 0.0) squares[r] += add_integers(row_of<T>(set, r), factors[r], 0, columns, total);
}

template <class T>
ClippingKernels kernels_of() {
  return {block_sums<T>, add_weighted<T>, add_and_measure<T>, add_lattice<T>, add_lattice_and_measure<T>};
}

}  // namespace

ClippingKernels clipping_kernels(DType dtype) {
  return dtype == DType::float32   ? kernels_of<float>()
         : dtype == DType::float64 ? kernels_of<double>()
                                   : kernels_of<Bfloat16>();
}

}  // namespace aisec_fast::AISEC_ISA
