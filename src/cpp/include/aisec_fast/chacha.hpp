#pragma once
// The ChaCha block function (Bernstein 2008; RFC 8439 with the original 64-bit counter). docs/noise.md section 3.
#include <cstdint>

#include "aisec_fast/host_device.hpp"
#include "aisec_fast/rotation.hpp"

namespace aisec_fast {
namespace {

constexpr int chacha_rounds = 12;

enum class Domain : std::uint32_t { words = 0, gaussian = 1, laplace = 2 };
enum class Level : std::uint32_t { main = 0, refinement = 1, subkey = 2 };

struct Key {
  std::uint32_t word[8];
};

// Word is std::uint32_t, or a vector of them (one lane a block). Rotations to the left by 16, 12, 8 and 7 bits.
template <class Rotation, class Word>
AISEC_HD void quarter_round(Word& a, Word& b, Word& c, Word& d) {
  a += b;
  d = Rotation::template right<32 - 16>(d ^ a);
  c += d;
  b = Rotation::template right<32 - 12>(b ^ c);
  a += b;
  d = Rotation::template right<32 - 8>(d ^ a);
  c += d;
  b = Rotation::template right<32 - 7>(b ^ c);
}

template <class Rotation = PlainRotation, class Word>
AISEC_HD void column_round(Word (&x)[16]) {
  quarter_round<Rotation>(x[0], x[4], x[8], x[12]);
  quarter_round<Rotation>(x[1], x[5], x[9], x[13]);
  quarter_round<Rotation>(x[2], x[6], x[10], x[14]);
  quarter_round<Rotation>(x[3], x[7], x[11], x[15]);
}

template <class Rotation = PlainRotation, class Word>
AISEC_HD void diagonal_round(Word (&x)[16]) {
  quarter_round<Rotation>(x[0], x[5], x[10], x[15]);
  quarter_round<Rotation>(x[1], x[6], x[11], x[12]);
  quarter_round<Rotation>(x[2], x[7], x[8], x[13]);
  quarter_round<Rotation>(x[3], x[4], x[9], x[14]);
}

template <int rounds, class Rotation = PlainRotation, class Word>
AISEC_HD void chacha_permute(Word (&x)[16]) {
  AISEC_UNROLL
  for (int round = 0; round < rounds; round += 2) {
    column_round<Rotation>(x);
    diagonal_round<Rotation>(x);
  }
}

// The input block; lanes of a vector Word differ in their counter halves only.
template <class Word>
AISEC_HD void chacha_input(Word (&x)[16], const Key& key, Word index_low, Word index_high, Domain domain, Level level) {
  const Word zero = index_low ^ index_low;  // broadcasts a scalar to any Word
  x[0] = zero + 0x61707865u;                // "expa" "nd 3" "2-by" "te k"
  x[1] = zero + 0x3320646eu;
  x[2] = zero + 0x79622d32u;
  x[3] = zero + 0x6b206574u;
  for (int i = 0; i < 8; ++i) x[4 + i] = zero + key.word[i];
  x[12] = index_low;
  x[13] = index_high;
  x[14] = zero + static_cast<std::uint32_t>(domain);
  x[15] = zero + static_cast<std::uint32_t>(level);
}

template <class Rotation = PlainRotation, class Word>
AISEC_HD void chacha_block(Word (&out)[16], const Key& key, Word index_low, Word index_high, Domain domain,
                           Level level) {
  Word input[16];
  chacha_input(input, key, index_low, index_high, domain, level);
  for (int i = 0; i < 16; ++i) out[i] = input[i];
  chacha_permute<chacha_rounds, Rotation>(out);
  for (int i = 0; i < 16; ++i) out[i] += input[i];
}

AISEC_HD std::uint64_t join(std::uint32_t low, std::uint32_t high) {
  return std::uint64_t{low} | std::uint64_t{high} << 32;
}

// The eight 64-bit words e0..e7 that continue the bits of one sample.
AISEC_HD void refinement_words(std::uint64_t (&e)[8], const Key& key, Domain domain, std::uint64_t index) {
  std::uint32_t x[16];
  chacha_block(x, key, static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), domain,
               Level::refinement);
  for (int m = 0; m < 8; ++m) e[m] = join(x[2 * m], x[2 * m + 1]);
}

}  // namespace
}  // namespace aisec_fast
