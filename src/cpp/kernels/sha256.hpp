#pragma once
// SHA-256's compression function (FIPS 180-4, section 6.2.2): of one stream as plain text, of several side by side as
// vectors with a lane for each stream, and of one to four with the SHA instructions of x86.
//
// The rounds of one stream wait for each other, so that one stream alone leaves most of a core idle.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/lanes.hpp"
#include "kernels/transpose.hpp"

#if defined(AISEC_X86) && defined(__SSE4_1__)
#define AISEC_HAS_SHA
#include <immintrin.h>
#endif

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr std::size_t sha256_block_bytes = 64;

// FIPS 180-4, section 4.2.2: the fractions of the cube roots of the first 64 primes.
alignas(16) constexpr std::uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// --- Words, or vectors of words with a lane for each stream ----------------------------------------------------------

inline std::uint32_t byte_swapped(std::uint32_t word) { return __builtin_bswap32(word); }

inline Lanes byte_swapped(Lanes words) {
#if defined(__AVX2__)
  typedef unsigned char Bytes __attribute__((vector_size(AISEC_WIDTH)));
  return [&]<int... byte>(std::integer_sequence<int, byte...>) {
    const Bytes bytes = reinterpret_cast<Bytes>(words);
    return reinterpret_cast<Lanes>(__builtin_shufflevector(bytes, bytes, (byte / 4 * 4 + 3 - byte % 4)...));
  }(std::make_integer_sequence<int, AISEC_WIDTH>{});
#else
  const Lanes halves = (words >> 16) | (words << 16);
  return ((halves >> 8) & 0x00ff00ffu) | ((halves << 8) & 0xff00ff00u);
#endif
}

// One block, w, into the chaining value. w is overwritten: it goes on as the message schedule, sixteen words at a time.
template <class Rotate, class Word>
inline __attribute__((always_inline)) void sha256_compress(Word (&state)[8], Word (&w)[16]) {
  Word a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
  Word b_or_c = b ^ c;  // where they differ; the next round's is this round's where a and b differ
  for (int first = 0; first < 64; first += 16) {
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) {
      if (first > 0) {
        const Word x = w[(t + 1) % 16], y = w[(t + 14) % 16];
        const Word s0 = Rotate::template right<7>(x) ^ Rotate::template right<18>(x) ^ x >> 3;
        const Word s1 = Rotate::template right<17>(y) ^ Rotate::template right<19>(y) ^ y >> 10;
        w[t] = (w[t] + s0) + (w[(t + 9) % 16] + s1);
      }
      const Word s1 = Rotate::template right<6>(e) ^ Rotate::template right<11>(e) ^ Rotate::template right<25>(e);
      const Word s0 = Rotate::template right<2>(a) ^ Rotate::template right<13>(a) ^ Rotate::template right<22>(a);
      const Word choice = g ^ (e & (f ^ g)), a_or_b = a ^ b, majority = b ^ (a_or_b & b_or_c);
      const Word sum = (h + (w[t] + sha256_constants[first + t])) + (choice + s1);
      b_or_c = a_or_b;
      h = g;
      g = f;
      f = e;
      e = d + sum;
      d = c;
      c = b;
      b = a;
      a = sum + (s0 + majority);
    }
  }
  state[0] += a;
  state[1] += b;
  state[2] += c;
  state[3] += d;
  state[4] += e;
  state[5] += f;
  state[6] += g;
  state[7] += h;
}

inline void sha256_blocks_portable(std::uint32_t* state, const unsigned char* data, std::size_t count) {
  std::uint32_t chaining[8], w[16];
  std::memcpy(chaining, state, sizeof chaining);
  for (; count > 0; --count, data += sha256_block_bytes) {
    std::memcpy(w, data, sizeof w);
    for (std::uint32_t& word : w) word = byte_swapped(word);
    sha256_compress<PlainRotation>(chaining, w);
  }
  std::memcpy(state, chaining, sizeof chaining);
}

// The words of a chaining value that fill a vector, or all.
constexpr int sha256_part = lanes < 8 ? lanes : 8;

inline void load_chaining(Lanes (&chaining)[8], const std::uint32_t* const (&states)[lanes]) {
  for (int word = 0; word < 8; word += sha256_part) {
    Lanes row[lanes];
    for (int lane = 0; lane < lanes; ++lane) {
      row[lane] = Lanes{};
      std::memcpy(&row[lane], states[lane] + word, 4 * sha256_part);
    }
    transpose(row);
    for (int i = 0; i < sha256_part; ++i) chaining[word + i] = row[i];
  }
}

// Rows are what the lanes hold: words `word` to `word` + sha256_part - 1 of each.
inline void chaining_rows(Lanes (&row)[lanes], const Lanes (&chaining)[8], int word) {
  for (int i = 0; i < lanes; ++i) row[i] = i < sha256_part ? chaining[word + i] : Lanes{};
  transpose(row);
}

inline void load_block(Lanes (&w)[16], const unsigned char* const (&data)[lanes], std::size_t at) {
  for (int word = 0; word < 16; word += lanes) {
    Lanes row[lanes];
    for (int lane = 0; lane < lanes; ++lane) std::memcpy(&row[lane], data[lane] + at + 4 * word, sizeof row[lane]);
    transpose(row);
    for (int i = 0; i < lanes; ++i) w[word + i] = byte_swapped(row[i]);
  }
}

// Lanes without a stream of their own repeat the last one.
inline void sha256_streams_lanes(std::uint32_t* const* states, const unsigned char* const* data, std::size_t count,
                                 std::size_t streams) {
  while (streams > 1) {
    const std::size_t taken = streams < std::size_t{lanes} ? streams : std::size_t{lanes};
    const std::uint32_t* before[lanes];
    const unsigned char* input[lanes];
    for (std::size_t lane = 0; lane < std::size_t{lanes}; ++lane) {
      before[lane] = states[lane < taken ? lane : taken - 1];
      input[lane] = data[lane < taken ? lane : taken - 1];
    }
    Lanes chaining[8], w[16];
    load_chaining(chaining, before);
    for (std::size_t block = 0; block < count; ++block) {
      load_block(w, input, block * sha256_block_bytes);
      sha256_compress<Rotation>(chaining, w);
    }
    for (int word = 0; word < 8; word += sha256_part) {
      Lanes row[lanes];
      chaining_rows(row, chaining, word);
      for (std::size_t lane = 0; lane < taken; ++lane) std::memcpy(states[lane] + word, &row[lane], 4 * sha256_part);
    }
    states += taken;
    data += taken;
    streams -= taken;
  }
  if (streams == 1) sha256_blocks_portable(states[0], data[0], count);
}

// --- The SHA instructions
// ---------------------------------------------------------------------------------------------

#if defined(AISEC_HAS_SHA)
#define AISEC_SHA __attribute__((target("sha,sse4.1,ssse3")))
#define AISEC_SHA_INLINE inline __attribute__((target("sha,sse4.1,ssse3"), always_inline))

// The instructions keep a chaining value as words {F, E, B, A} and {H, G, D, C}, lowest first.
struct ShaHalves {
  __m128i abef, cdgh;
};

AISEC_SHA_INLINE ShaHalves sha_halves(const std::uint32_t* state) {
  const auto* halves = reinterpret_cast<const __m128i*>(state);
  const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128(halves), 0xb1);
  const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128(halves + 1), 0x1b);
  return {_mm_alignr_epi8(badc, hgfe, 8), _mm_blend_epi16(hgfe, badc, 0xf0)};
}

// Words A to D and E to H, A and E lowest.
AISEC_SHA_INLINE void sha_words(const ShaHalves& halves, __m128i& abcd, __m128i& efgh) {
  const __m128i abfe = _mm_shuffle_epi32(halves.abef, 0x1b), dchg = _mm_shuffle_epi32(halves.cdgh, 0xb1);
  abcd = _mm_blend_epi16(abfe, dchg, 0xf0);
  efgh = _mm_alignr_epi8(dchg, abfe, 8);
}

AISEC_SHA_INLINE __m128i sha_swapped(__m128i bytes) {
  return _mm_shuffle_epi8(bytes, _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203));
}

// One block into each of `streams` chaining values, four rounds of one after four rounds of the other. w is
// overwritten.
template <int streams>
AISEC_SHA_INLINE void sha256_compress_x86(ShaHalves (&state)[streams], __m128i (&w)[streams][4]) {
  ShaHalves before[streams];
  for (int s = 0; s < streams; ++s) before[s] = state[s];
#pragma GCC unroll 16
  for (int four = 0; four < 16; ++four) {
    const __m128i constants = _mm_load_si128(reinterpret_cast<const __m128i*>(sha256_constants + 4 * four));
    __m128i sum[streams];
#pragma GCC unroll 4
    for (int s = 0; s < streams; ++s) {
      sum[s] = _mm_add_epi32(w[s][four % 4], constants);
      state[s].cdgh = _mm_sha256rnds2_epu32(state[s].cdgh, state[s].abef, sum[s]);
    }
#pragma GCC unroll 4
    for (int s = 0; s < streams; ++s) {
      if (four < 12) {  // the words of four rounds that come twelve later
        const __m128i w1 = w[s][(four + 1) % 4], w2 = w[s][(four + 2) % 4], w3 = w[s][(four + 3) % 4];
        const __m128i added = _mm_add_epi32(_mm_sha256msg1_epu32(w[s][four % 4], w1), _mm_alignr_epi8(w3, w2, 4));
        w[s][four % 4] = _mm_sha256msg2_epu32(added, w3);
      }
      state[s].abef = _mm_sha256rnds2_epu32(state[s].abef, state[s].cdgh, _mm_shuffle_epi32(sum[s], 0x0e));
    }
  }
  for (int s = 0; s < streams; ++s) {
    state[s].abef = _mm_add_epi32(state[s].abef, before[s].abef);
    state[s].cdgh = _mm_add_epi32(state[s].cdgh, before[s].cdgh);
  }
}

template <int streams>
AISEC_SHA void sha256_together(std::uint32_t* const* states, const unsigned char* const* data, std::size_t count) {
  ShaHalves state[streams];
  const unsigned char* input[streams];
  for (int s = 0; s < streams; ++s) {
    state[s] = sha_halves(states[s]);
    input[s] = data[s];
  }
  for (std::size_t at = 0; at < count * sha256_block_bytes; at += sha256_block_bytes) {
    __m128i w[streams][4];
    for (int s = 0; s < streams; ++s)
      for (int i = 0; i < 4; ++i)
        w[s][i] = sha_swapped(_mm_loadu_si128(reinterpret_cast<const __m128i*>(input[s] + at) + i));
    sha256_compress_x86<streams>(state, w);
  }
  for (int s = 0; s < streams; ++s) {
    __m128i abcd, efgh;
    sha_words(state[s], abcd, efgh);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(states[s]), abcd);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(states[s] + 4), efgh);
  }
}

inline void sha256_blocks_x86(std::uint32_t* state, const unsigned char* data, std::size_t count) {
  sha256_together<1>(&state, &data, count);
}

// Three keep the unit busy that has the rounds (measured on Zen 3: 1.49, 2.80, 3.18 and 3.18 GB/s for one to four).
constexpr std::size_t sha_streams = 3;

inline void sha256_streams_x86(std::uint32_t* const* states, const unsigned char* const* data, std::size_t count,
                               std::size_t streams) {
  for (; streams > sha_streams + 1; states += sha_streams, data += sha_streams, streams -= sha_streams)
    sha256_together<sha_streams>(states, data, count);
  if (streams == 4) sha256_together<4>(states, data, count);  // faster than three and one
  if (streams == 3) sha256_together<3>(states, data, count);
  if (streams == 2) sha256_together<2>(states, data, count);
  if (streams == 1) sha256_together<1>(states, data, count);
}
#endif

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
