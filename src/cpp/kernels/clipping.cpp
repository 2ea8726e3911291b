// Clipping kernels, compiled once per instruction set. Order of every sum: docs/clipping.md.
#include "aisec_fast/clipping_math.hpp"
#include "kernels/block_sum.hpp"
#include "kernels/families.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr std::size_t column_tile = 1024;  // running totals that stay in the first-level cache

template <class T>
void block_sums(const void* row_, std::size_t columns, double multiplier, double* sums) {
  const T* row = static_cast<const T*>(row_);
  for (std::size_t begin = 0; begin < columns; begin += norm_block, ++sums)
    *sums = block_sum(columns - begin < norm_block ? columns - begin : norm_block,
                      [=](std::size_t i) { return widen(row[begin + i]) * multiplier; });
}

template <class T>
void add_weighted(const void* rows_, std::ptrdiff_t stride, std::size_t count, const double* weights,
                  std::size_t columns, double* total) {
  const T* rows = static_cast<const T*>(rows_);
  for (std::size_t begin = 0; begin < columns; begin += column_tile) {
    const std::size_t width = columns - begin < column_tile ? columns - begin : column_tile;
    for (std::size_t r = 0; r < count; ++r) {
      if (weights[r] == 0.0) continue;
      const T* row = rows + static_cast<std::ptrdiff_t>(r) * stride + begin;
      const double weight = weights[r];
      double* sum = total + begin;
      for (std::size_t c = 0; c < width; ++c) sum[c] += weight * widen(row[c]);
    }
  }
}

template <class T>
std::int64_t lattice_square_sum(const void* row_, std::size_t columns, double factor) {
  const T* row = static_cast<const T*>(row_);
  std::int64_t sum = 0;
  for (std::size_t c = 0; c < columns; ++c) {
    const std::int64_t t = static_cast<std::int32_t>(widen(row[c]) * factor);
    sum += t * t;
  }
  return sum;
}

template <class T>
void add_lattice(const void* rows_, std::ptrdiff_t stride, std::size_t count, const double* factors,
                 std::size_t columns, std::int64_t* total) {
  const T* rows = static_cast<const T*>(rows_);
  for (std::size_t begin = 0; begin < columns; begin += column_tile) {
    const std::size_t width = columns - begin < column_tile ? columns - begin : column_tile;
    for (std::size_t r = 0; r < count; ++r) {
      if (factors[r] == 0.0) continue;
      const T* row = rows + static_cast<std::ptrdiff_t>(r) * stride + begin;
      for (std::size_t c = 0; c < width; ++c) total[begin + c] += static_cast<std::int32_t>(widen(row[c]) * factors[r]);
    }
  }
}

template <class T>
ClippingKernels kernels_of() {
  return {block_sums<T>, add_weighted<T>, lattice_square_sum<T>, add_lattice<T>};
}

}  // namespace

ClippingKernels clipping_kernels(DType dtype) {
  return dtype == DType::float32   ? kernels_of<float>()
         : dtype == DType::float64 ? kernels_of<double>()
                                   : kernels_of<Bfloat16>();
}

}  // namespace aisec_fast::AISEC_ISA
