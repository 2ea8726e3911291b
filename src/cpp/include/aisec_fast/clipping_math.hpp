#pragma once
// Loads and the fixed order of the block sum, shared by CPU and CUDA kernels. docs/clipping.md.
#include <cstdint>
#include <cstring>

#include "aisec_fast/host_device.hpp"

namespace aisec_fast {
namespace {

constexpr unsigned partial_sums = 16;

// Norms of float64 rows whose squares leave the range of float64 are computed again from scaled values.
constexpr double small_total = 0x1p-900, shrink = 0x1p-600, enlarge = 0x1p600;

struct Bfloat16 {
  std::uint16_t bits;
};

AISEC_HD double widen(float value) { return static_cast<double>(value); }
AISEC_HD double widen(double value) { return value; }
AISEC_HD double widen(Bfloat16 value) {
  const std::uint32_t bits = std::uint32_t{value.bits} << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return static_cast<double>(wide);
}

// A factor below this has lost bits, or is near losing them: a subnormal quotient may be twice the true one. Such a row
// is left out, or its clipped norm could exceed the bound (and its squares the range of 64 bits).
constexpr double least_factor = 0x1p-1000;
constexpr double largest_finite = 0x1.fffffffffffffp+1023;

// What a row is multiplied by before its squares are added once more; 1 if their sum stayed in range.
AISEC_HD double norm_multiplier(double total) {
  return total >= small_total && total <= largest_finite ? 1.0 : total > largest_finite ? shrink : enlarge;
}

// 1, or max_norm / norm if the norm is larger, or 0 for a row that is left out.
AISEC_HD double clip_factor(double norm, double max_norm) {
  if (norm <= max_norm) return 1.0;
  const double factor = max_norm / norm;
  return norm <= largest_finite && factor >= least_factor ? factor : 0.0;  // NaN fails both
}

// What a row's values are multiplied by on their way to the lattice; 0 for a row that is left out.
AISEC_HD double lattice_factor(double norm, double max_norm, double granularity) {
  const double factor = clip_factor(norm, max_norm) * (1.0 - 0x1p-30) / granularity;
  return factor >= least_factor ? factor : 0.0;
}

// Folds the partial sums in the one order that every backend uses.
template <unsigned half = partial_sums / 2>  // constant, or compilers make branches of it
AISEC_HD double fold(double (&partial)[partial_sums]) {
  for (unsigned k = 0; k < half; ++k) partial[k] += partial[k + half];
  if constexpr (half > 1)
    return fold<half / 2>(partial);
  else
    return partial[0];
}

}  // namespace
}  // namespace aisec_fast
