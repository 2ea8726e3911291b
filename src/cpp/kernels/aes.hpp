#pragma once
// AES-128 in counter mode by the processor's instructions (FIPS 197; NIST SP 800-38A): the words of docs/noise.md
// section 3. There is no portable text on purpose: tables leak the key through the cache.
#include <cstdint>

#if defined(AISEC_X86)
#include <immintrin.h>
#endif

#if defined(__AVX2__)
#define AISEC_VAES __attribute__((target("vaes")))
#else
#define AISEC_VAES
#endif
#define AISEC_INLINE __attribute__((always_inline)) inline

namespace aisec_fast::AISEC_ISA {
namespace {

// Of words in memory: as they are numbered, or in the order of lanes (stream.hpp).
enum class WordOrder { numbers, lanes };

struct AesSubkey {
  alignas(16) std::uint32_t round_key[11][4];
  std::uint64_t nonce;
};

#if defined(AISEC_X86)

// Blocks in the order of noise.cpp's lanes: of four, the second and the third change places.
constexpr unsigned lane_block(unsigned i) {
#if defined(__AVX512F__)
  return i;
#else
  return (i & ~3u) | (i & 1u) << 1 | (i >> 1 & 1u);
#endif
}

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

// 64 blocks, that is 128 words, from block `first` on. Eight are in flight, because one takes some 40 cycles.
template <WordOrder order>
__attribute__((target("aes"))) void aes_words(std::uint64_t* out, const AesSubkey& subkey, std::uint64_t first) {
  const __m128i* const keys = reinterpret_cast<const __m128i*>(subkey.round_key);
  for (unsigned block = 0; block < 64; block += 8, out += 16) {
    __m128i state[8];
    for (unsigned i = 0; i < 8; ++i) {
      const std::uint64_t number = first + block + (order == WordOrder::lanes ? lane_block(i) : i);
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
#if defined(__AVX512F__)
// The same words, eight at a time. Each call takes five times four blocks two rounds further, and ends with those that
// began four calls ago: the 40 cycles that blocks take are then nobody's to wait for.
class VaesWords {
 public:
  static constexpr unsigned at_once = 8;
  struct Blocks {};

  AISEC_VAES VaesWords(const AesSubkey& subkey, std::uint64_t first) {
    for (int round = 0; round < 11; ++round)
      keys_[round] = _mm512_maskz_broadcast_i32x4(
          0xffff, _mm_load_si128(reinterpret_cast<const __m128i*>(subkey.round_key[round])));
    const long long nonce = static_cast<long long>(subkey.nonce), block = static_cast<long long>(first);
    counter_ = _mm512_set_epi64(nonce, block + 3, nonce, block + 2, nonce, block + 1, nonce, block);
    for (__m512i& state : state_) state = counter_;
    for (int i = 0; i < 4; ++i) advance();
  }

  AISEC_VAES void make(std::uint64_t* out) {
    const __m512i last = _mm512_aesenc_epi128(state_[3], keys_[9]);
    _mm512_store_si512(out, _mm512_aesenclast_epi128(last, keys_[10]));
    advance();
  }

 private:
  AISEC_VAES void advance() {
    for (int i = 3; i > 0; --i)
      state_[i] = _mm512_aesenc_epi128(_mm512_aesenc_epi128(state_[i - 1], keys_[2 * i + 1]), keys_[2 * i + 2]);
    const __m512i block = _mm512_xor_si512(counter_, keys_[0]);
    state_[0] = _mm512_aesenc_epi128(_mm512_aesenc_epi128(block, keys_[1]), keys_[2]);
    counter_ = _mm512_add_epi64(counter_, _mm512_set_epi64(0, 4, 0, 4, 0, 4, 0, 4));
  }

  __m512i keys_[11], counter_, state_[4];
};

// The same, sixteen at a time. A caller asks for a round at a time and does other things between them.
class VaesWordsInOrder {
 public:
  static constexpr unsigned at_once = 16;
  struct Blocks {
    __m512i state[2];
  };

  AISEC_VAES VaesWordsInOrder(const AesSubkey& subkey, std::uint64_t first) {
    for (int round = 0; round < 11; ++round)
      keys_[round] = _mm512_maskz_broadcast_i32x4(
          0xffff, _mm_load_si128(reinterpret_cast<const __m128i*>(subkey.round_key[round])));
    const long long nonce = static_cast<long long>(subkey.nonce), block = static_cast<long long>(first);
    counter_ = _mm512_set_epi64(nonce, block + 3, nonce, block + 2, nonce, block + 1, nonce, block);
  }

  // The counter is a multiple of eight, so that a sum with less is an exclusive or.
  AISEC_VAES AISEC_INLINE Blocks start() {
    const auto plus = [](int n) { return _mm512_set_epi64(0, n, 0, n, 0, n, 0, n); };
    const __m512i block = _mm512_xor_si512(counter_, keys_[0]);
    counter_ = _mm512_add_epi64(counter_, plus(8));
    return {{block, _mm512_xor_si512(block, plus(4))}};
  }
  template <int first, int last>
  AISEC_VAES AISEC_INLINE void rounds(Blocks& blocks) const {
    for (int round = first; round <= last; ++round)
      for (__m512i& state : blocks.state) state = _mm512_aesenc_epi128(state, keys_[round]);
  }
  // The last round: words.
  AISEC_VAES AISEC_INLINE void last(Blocks& blocks) const {
    for (__m512i& state : blocks.state) state = _mm512_aesenclast_epi128(state, keys_[10]);
  }

 private:
  __m512i keys_[11], counter_;
};

#else
// The same words, sixteen at a time, two blocks an instruction. A caller asks for a few rounds at a time and does other
// things between them, which fills the 40 cycles that blocks take; a key read once then serves eight of them.
template <WordOrder order>
class VaesWordsIn {
 public:
  static constexpr unsigned at_once = 16;
  struct Blocks {
    __m256i state[4];
  };

  AISEC_VAES VaesWordsIn(const AesSubkey& subkey, std::uint64_t first) {
    for (int round = 0; round < 11; ++round)
      keys_[round] =
          _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(subkey.round_key[round])));
    const long long nonce = static_cast<long long>(subkey.nonce), block = static_cast<long long>(first);
    counter_ = _mm256_set_epi64x(nonce, block + second, nonce, block);
  }

  // The counter is a multiple of eight, so that a sum with less is an exclusive or.
  AISEC_VAES AISEC_INLINE Blocks start() {
    const auto plus = [](int n) { return _mm256_set_epi64x(0, n, 0, n); };
    const __m256i block = _mm256_xor_si256(counter_, keys_[0]);
    counter_ = _mm256_add_epi64(counter_, plus(8));
    return {{block, _mm256_xor_si256(block, plus(3 - second)), _mm256_xor_si256(block, plus(4)),
             _mm256_xor_si256(block, plus(7 - second))}};
  }
  template <int first, int last>
  AISEC_VAES AISEC_INLINE void rounds(Blocks& blocks) const {
    for (int round = first; round <= last; ++round)
      for (__m256i& state : blocks.state) state = _mm256_aesenc_epi128(state, keys_[round]);
  }
  // The last round: words.
  AISEC_VAES AISEC_INLINE void last(Blocks& blocks) const {
    for (__m256i& state : blocks.state) state = _mm256_aesenclast_epi128(state, keys_[10]);
  }
  AISEC_VAES AISEC_INLINE void end(std::uint64_t* out, Blocks& blocks) const {
    for (__m256i& state : blocks.state) {
      state = _mm256_aesenclast_epi128(state, keys_[10]);
      _mm256_store_si256(reinterpret_cast<__m256i*>(out), state);
      out += 4;
    }
  }
  AISEC_VAES void make(std::uint64_t* out) {
    Blocks blocks = start();
    rounds<1, 9>(blocks);
    end(out, blocks);
  }

 private:
  static constexpr int second = order == WordOrder::lanes ? 2 : 1;  // a vector's second block, from its first on

  __m256i keys_[11], counter_;
};
using VaesWords = VaesWordsIn<WordOrder::lanes>;
using VaesWordsInOrder = VaesWordsIn<WordOrder::numbers>;
#endif

// 128 of them.
template <class Words>
AISEC_VAES inline void make_words(std::uint64_t* out, Words words) {
  for (unsigned j = 0; j < 128; j += Words::at_once) words.make(out + j);
}
#endif

#endif

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
