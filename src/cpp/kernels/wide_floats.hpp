#pragma once
// Vectors of floats as wide as the instruction set has them, and tiles of products made of them.
#include <cstddef>

#include "kernels/float_tiles.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

typedef float Wide __attribute__((vector_size(AISEC_WIDTH)));
typedef float UnalignedWide __attribute__((vector_size(AISEC_WIDTH), aligned(4), may_alias));
constexpr std::size_t wide_lanes = AISEC_WIDTH / 4;

inline Wide load_wide(const float* from) { return *reinterpret_cast<const UnalignedWide*>(from); }
inline void store_wide(float* to, Wide value) { *reinterpret_cast<UnalignedWide*>(to) = value; }
inline Wide multiply_add_wide(Wide a, Wide b, Wide sum) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, sum);
#else
  return multiply_add(a, b, sum);
#endif
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
