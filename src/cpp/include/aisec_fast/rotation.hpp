#pragma once
// Rotations of 32-bit words, for ChaCha and BLAKE3: a policy, because vectors have faster ones (kernels/lanes.hpp).
#include "aisec_fast/host_device.hpp"

namespace aisec_fast {
namespace {

// Word is std::uint32_t, or a vector of them.
struct PlainRotation {
  template <int bits, class Word>
  static AISEC_HD Word right(Word value) {
    return (value >> bits) | (value << (32 - bits));
  }
};

}  // namespace
}  // namespace aisec_fast
