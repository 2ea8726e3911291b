#pragma once
// BLAKE3's compression function ("BLAKE3: one function, fast everywhere", O'Connor, Aumasson, Neves and
// Wilcox-O'Hearn, 2020, section 2). Words are little-endian, as is every machine that we build for. docs/hashing.md.
#include <cstddef>
#include <cstdint>

#include "aisec_fast/host_device.hpp"
#include "aisec_fast/rotation.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t blake3_block_bytes = 64, blake3_chunk_bytes = 1024;
constexpr std::size_t blake3_chunk_blocks = blake3_chunk_bytes / blake3_block_bytes;

// What a block is, for its compression (table 3 of the paper).
constexpr std::uint32_t chunk_start = 1, chunk_end = 2, parent_node = 4, root_node = 8;
constexpr std::uint32_t keyed_hash = 16, derive_key_context = 32, derive_key_material = 64;

// Which of the block's words is at `position` in a round: each round permutes what the one before it read.
constexpr int permuted(int round, int position) {
  constexpr int permutation[16] = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};
  for (; round > 0; --round) position = permutation[position];
  return position;
}
template <int round, int position>
constexpr int blake3_word = permuted(round, position);  // device code may read it, but not call

// The quarter of a round that reads message words 2 * g and 2 * g + 1.
template <class Rotation, int round, int g, class Word>
AISEC_HD void blake3_mix(Word& a, Word& b, Word& c, Word& d, const Word (&message)[16]) {
  a = a + message[blake3_word<round, 2 * g>] + b;  // b is known last: this order waits for it least
  d = Rotation::template right<16>(d ^ a);
  c += d;
  b = Rotation::template right<12>(b ^ c);
  a = a + message[blake3_word<round, 2 * g + 1>] + b;
  d = Rotation::template right<8>(d ^ a);
  c += d;
  b = Rotation::template right<7>(b ^ c);
}

template <class Rotation, int round, class Word>
AISEC_HD void blake3_round(Word (&v)[16], const Word (&message)[16]) {
  blake3_mix<Rotation, round, 0>(v[0], v[4], v[8], v[12], message);
  blake3_mix<Rotation, round, 1>(v[1], v[5], v[9], v[13], message);
  blake3_mix<Rotation, round, 2>(v[2], v[6], v[10], v[14], message);
  blake3_mix<Rotation, round, 3>(v[3], v[7], v[11], v[15], message);
  blake3_mix<Rotation, round, 4>(v[0], v[5], v[10], v[15], message);
  blake3_mix<Rotation, round, 5>(v[1], v[6], v[11], v[12], message);
  blake3_mix<Rotation, round, 6>(v[2], v[7], v[8], v[13], message);
  blake3_mix<Rotation, round, 7>(v[3], v[4], v[9], v[14], message);
}

// The working state after seven rounds; the caller folds it. Word is std::uint32_t, or a vector of them (one
// lane a block). Length and flags are words that all lanes share, or a vector of them too.
template <class Rotation, class Word, class Shared>
AISEC_HD void blake3_compress(Word (&v)[16], const Word (&chaining)[8], const Word (&message)[16], Word counter_low,
                              Word counter_high, Shared length, Shared flags) {
  const Word zero = counter_low ^ counter_low;  // broadcasts a scalar to any Word
  for (int i = 0; i < 8; ++i) v[i] = chaining[i];
  v[8] = zero + 0x6a09e667u;
  v[9] = zero + 0xbb67ae85u;
  v[10] = zero + 0x3c6ef372u;
  v[11] = zero + 0xa54ff53au;
  v[12] = counter_low;
  v[13] = counter_high;
  v[14] = zero + length;
  v[15] = zero + flags;
  blake3_round<Rotation, 0>(v, message);
  blake3_round<Rotation, 1>(v, message);
  blake3_round<Rotation, 2>(v, message);
  blake3_round<Rotation, 3>(v, message);
  blake3_round<Rotation, 4>(v, message);
  blake3_round<Rotation, 5>(v, message);
  blake3_round<Rotation, 6>(v, message);
}

// The next chaining value.
template <class Word>
AISEC_HD void blake3_fold(Word (&chaining)[8], const Word (&v)[16]) {
  for (int i = 0; i < 8; ++i) chaining[i] = v[i] ^ v[i + 8];
}

// 64 bytes of a root's output stream, whose number in the stream was the counter.
template <class Word>
AISEC_HD void blake3_fold_stream(Word (&v)[16], const Word (&chaining)[8]) {
  for (int i = 0; i < 8; ++i) {
    v[i] ^= v[i + 8];
    v[i + 8] ^= chaining[i];
  }
}

}  // namespace
}  // namespace aisec_fast
