#pragma once
// Vectors of 32-bit words as wide as the instruction set has them, for ChaCha and BLAKE3: one lane a block.
#include <cstdint>
#include <utility>

#include "aisec_fast/rotation.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

typedef std::uint32_t Lanes __attribute__((vector_size(AISEC_WIDTH)));
constexpr int lanes = AISEC_WIDTH / 4;

// Rotations by whole bytes are one shuffle where bytes of a vector can be shuffled and words not rotated.
struct Rotation {
  template <int bits, class Vector>
  static inline Vector right(Vector value) {
#if defined(__SSSE3__) && !defined(__AVX512F__)
    if constexpr (bits % 8 == 0) {
      typedef unsigned char Bytes __attribute__((vector_size(sizeof(Vector))));
      return [&]<int... byte>(std::integer_sequence<int, byte...>) {
        const Bytes bytes = reinterpret_cast<Bytes>(value);
        return reinterpret_cast<Vector>(
            __builtin_shufflevector(bytes, bytes, (byte / 4 * 4 + (byte + bits / 8) % 4)...));
      }(std::make_integer_sequence<int, static_cast<int>(sizeof(Vector))>{});
    }
#endif
    return PlainRotation::right<bits>(value);
  }
};

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
