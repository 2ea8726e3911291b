#pragma once
// SHA-256 of whole messages and of parts of them, side by side, on top of the kernels of one instruction set.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "aisec_fast/kernels.hpp"

namespace aisec_fast {

constexpr std::size_t sha256_block = 64, most_lanes = 16;

// A message, or the part of one that is in memory.
struct Stretch {
  std::uint32_t* state;
  const unsigned char* data;
  std::size_t blocks;
};

// Puts SHA-256's padding behind the last `size` bytes of a message of `total`; returns how many blocks they are then.
inline std::size_t pad_sha256(unsigned char* bytes, std::size_t size, std::uint64_t total) {
  const std::size_t blocks = (size + 8) / sha256_block + 1;
  std::memset(bytes + size, 0, blocks * sha256_block - size);
  bytes[size] = 0x80;  // NOLINT(clang-analyzer-security.ArrayBound): callers have room for whole blocks
  const std::uint64_t bits = __builtin_bswap64(total * 8);
  std::memcpy(bytes + blocks * sha256_block - sizeof bits, &bits, sizeof bits);
  return blocks;
}

inline void write_big_endian(const std::uint32_t* words, unsigned char* out) {
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t word = __builtin_bswap32(words[i]);
    std::memcpy(out + 4 * i, &word, sizeof word);
  }
}

// All of these messages, as many side by side as keep the core busy.
inline void absorb_sha256(const Stretch* stretches, std::size_t count, const HashingKernels& kernels) {
  std::uint32_t* states[most_lanes];
  const unsigned char* data[most_lanes];
  std::size_t left[most_lanes];
  const std::size_t lanes = std::min(most_lanes, kernels.sha256_side_by_side);
  std::size_t active = 0, next = 0;
  for (;;) {
    for (; active < lanes && next < count; ++next) {
      if (stretches[next].blocks == 0) continue;
      states[active] = stretches[next].state;
      data[active] = stretches[next].data;
      left[active++] = stretches[next].blocks;
    }
    if (active == 0) return;
    const std::size_t blocks = *std::min_element(left, left + active);
    kernels.sha256_streams(states, data, blocks, active);
    for (std::size_t lane = active; lane-- > 0;) {
      data[lane] += blocks * sha256_block;
      left[lane] -= blocks;
      if (left[lane] > 0) continue;
      --active;
      states[lane] = states[active];
      data[lane] = data[active];
      left[lane] = left[active];
    }
  }
}

}  // namespace aisec_fast
