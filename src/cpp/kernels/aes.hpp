#pragma once
// AES-128 in counter mode by the processor's instructions (FIPS 197; NIST SP 800-38A): the words of docs/noise.md
// section 3. There is no portable text on purpose: tables leak the key through the cache.
#include <cstdint>

#if defined(AISEC_X86)
#include <immintrin.h>
#endif

namespace aisec_fast::AISEC_ISA {
namespace {

struct AesSubkey {
  alignas(16) std::uint32_t round_key[11][4];
  std::uint64_t nonce;
};

#if defined(AISEC_X86)

constexpr unsigned lane_block(unsigned i) { return (i & ~3u) | (i & 1u) << 1 | (i >> 1 & 1u); }

// Round key `round` from the one before it (FIPS 197, section 5.2); the instruction wants its constant at compile time.
template <int constant>
__attribute__((target("aes"))) void expand(AesSubkey& subkey, int round) {
  __m128i key = _mm_load_si128(reinterpret_cast<const __m128i*>(subkey.round_key[round - 1]));
  const __m128i mixed = _mm_shuffle_epi32(_mm_aeskeygenassist_si128(key, constant), 0xff);
  key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
  key = _mm_xor_si128(key, _mm_slli_si128(key, 8));
  _mm_store_si128(reinterpret_cast<__m128i*>(subkey.round_key[round]), _mm_xor_si128(key, mixed));
}

void aes_subkey(AesSubkey& subkey, const std::uint32_t* key, std::uint64_t nonce) {
  for (int i = 0; i < 4; ++i) subkey.round_key[0][i] = key[i];
  expand<0x01>(subkey, 1);
  expand<0x02>(subkey, 2);
  expand<0x04>(subkey, 3);
  expand<0x08>(subkey, 4);
  expand<0x10>(subkey, 5);
  expand<0x20>(subkey, 6);
  expand<0x40>(subkey, 7);
  expand<0x80>(subkey, 8);
  expand<0x1b>(subkey, 9);
  expand<0x36>(subkey, 10);
  subkey.nonce = nonce;
}

// 64 blocks, that is 128 words in the order of noise.cpp's lanes, from block `first` on: of four blocks the second and
// third change places. Eight are in flight, because one takes some 40 cycles.
__attribute__((target("aes"))) void aes_words(std::uint64_t* out, const AesSubkey& subkey, std::uint64_t first) {
  const __m128i* const keys = reinterpret_cast<const __m128i*>(subkey.round_key);
  for (unsigned block = 0; block < 64; block += 8, out += 16) {
    __m128i state[8];
    for (unsigned i = 0; i < 8; ++i) {
      const std::uint64_t number = first + block + lane_block(i);
      const __m128i counter = _mm_set_epi64x(static_cast<long long>(subkey.nonce), static_cast<long long>(number));
      state[i] = _mm_xor_si128(counter, keys[0]);
    }
    for (int round = 1; round < 10; ++round)
      for (__m128i& s : state) s = _mm_aesenc_si128(s, keys[round]);
    for (unsigned i = 0; i < 8; ++i)
      _mm_store_si128(reinterpret_cast<__m128i*>(out + 2 * i), _mm_aesenclast_si128(state[i], keys[10]));
  }
}

#if defined(__AVX2__)
// The same, two blocks an instruction.
__attribute__((target("vaes"))) void vaes_words(std::uint64_t* out, const AesSubkey& subkey, std::uint64_t first) {
  __m256i keys[11];
  for (int round = 0; round < 11; ++round)
    keys[round] =
        _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(subkey.round_key[round])));
  const long long nonce = static_cast<long long>(subkey.nonce), counter = static_cast<long long>(first);
  __m256i even = _mm256_set_epi64x(nonce, counter + 2, nonce, counter);  // blocks 0 and 2 of four; then 1 and 3
  const __m256i one = _mm256_set_epi64x(0, 1, 0, 1), four = _mm256_set_epi64x(0, 4, 0, 4);
  for (unsigned block = 0; block < 64; block += 16, out += 32) {
    __m256i state[8];
    for (unsigned i = 0; i < 8; i += 2) {
      state[i] = _mm256_xor_si256(even, keys[0]);
      state[i + 1] = _mm256_xor_si256(_mm256_add_epi64(even, one), keys[0]);
      even = _mm256_add_epi64(even, four);
    }
    for (int round = 1; round < 10; ++round)
      for (__m256i& s : state) s = _mm256_aesenc_epi128(s, keys[round]);
    for (unsigned i = 0; i < 8; ++i)
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + 4 * i), _mm256_aesenclast_epi128(state[i], keys[10]));
  }
}
#endif

#endif

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
