#pragma once
// Loads and the fixed order of the block sum, shared by CPU and CUDA kernels. docs/clipping.md.
#include <cstdint>
#include <cstring>

#include "aisec_fast/host_device.hpp"

namespace aisec_fast {
namespace {

constexpr unsigned partial_sums = 16;

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

// Folds the partial sums in the one order that every backend uses.
AISEC_HD double fold(double (&partial)[partial_sums]) {
  for (unsigned half = partial_sums / 2; half > 0; half /= 2)
    for (unsigned k = 0; k < half; ++k) partial[k] += partial[k + half];
  return partial[0];
}

}  // namespace
}  // namespace aisec_fast
