#pragma once
// SHA-256's compression function (FIPS 180-4, section 6.2.2), as plain text and with the SHA instructions of x86.
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(AISEC_X86)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace aisec_fast::AISEC_ISA {
namespace {

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

inline std::uint32_t rotated(std::uint32_t x, int bits) { return (x >> bits) | (x << (32 - bits)); }

void sha256_blocks_portable(std::uint32_t* state, const unsigned char* data, std::size_t count) {
  for (; count > 0; --count, data += 64) {
    std::uint32_t w[64];
    for (int t = 0; t < 16; ++t) {
      std::memcpy(&w[t], data + 4 * t, 4);
      w[t] = __builtin_bswap32(w[t]);
    }
    for (int t = 16; t < 64; ++t) {
      const std::uint32_t s0 = rotated(w[t - 15], 7) ^ rotated(w[t - 15], 18) ^ w[t - 15] >> 3;
      const std::uint32_t s1 = rotated(w[t - 2], 17) ^ rotated(w[t - 2], 19) ^ w[t - 2] >> 10;
      w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    std::uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    std::uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int t = 0; t < 64; ++t) {
      const std::uint32_t choice = g ^ (e & (f ^ g)), majority = (a & b) | (c & (a | b));
      const std::uint32_t first =
          h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + choice + sha256_constants[t] + w[t];
      const std::uint32_t second = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + majority;
      h = g;
      g = f;
      f = e;
      e = d + first;
      d = c;
      c = b;
      b = a;
      a = first + second;
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
}

#if defined(AISEC_X86) && AISEC_WIDTH > 16
#define AISEC_SHA __attribute__((target("sha,sse4.1,ssse3")))

// The instructions keep the state as words {F, E, B, A} and {H, G, D, C}, lowest first, and do two rounds each.
AISEC_SHA inline void four_rounds(__m128i& abef, __m128i& cdgh, __m128i message, int round) {
  const __m128i constants = _mm_load_si128(reinterpret_cast<const __m128i*>(sha256_constants + round));
  const __m128i sum = _mm_add_epi32(message, constants);
  cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
  abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
}

// The next four words of the message schedule; w0 to w3 hold the sixteen before them.
AISEC_SHA inline __m128i next_words(__m128i w0, __m128i w1, __m128i w2, __m128i w3) {
  const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
  return _mm_sha256msg2_epu32(sum, w3);
}

AISEC_SHA inline __m128i big_endian_words(const unsigned char* data) {
  const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data)), order);
}

AISEC_SHA void sha256_blocks_x86(std::uint32_t* state, const unsigned char* data, std::size_t count) {
  auto* halves = reinterpret_cast<__m128i*>(state);
  const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128(halves), 0xb1);
  const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128(halves + 1), 0x1b);
  __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);
  for (; count > 0; --count, data += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w0 = big_endian_words(data), w1 = big_endian_words(data + 16);
    __m128i w2 = big_endian_words(data + 32), w3 = big_endian_words(data + 48);
    four_rounds(abef, cdgh, w0, 0);
    four_rounds(abef, cdgh, w1, 4);
    four_rounds(abef, cdgh, w2, 8);
    four_rounds(abef, cdgh, w3, 12);
    for (int round = 16; round < 64; round += 16) {
      w0 = next_words(w0, w1, w2, w3);
      four_rounds(abef, cdgh, w0, round);
      w1 = next_words(w1, w2, w3, w0);
      four_rounds(abef, cdgh, w1, round + 4);
      w2 = next_words(w2, w3, w0, w1);
      four_rounds(abef, cdgh, w2, round + 8);
      w3 = next_words(w3, w0, w1, w2);
      four_rounds(abef, cdgh, w3, round + 12);
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i abfe = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(halves, _mm_blend_epi16(abfe, dchg, 0xf0));
  _mm_storeu_si128(halves + 1, _mm_alignr_epi8(dchg, abfe, 8));
}

// CPUID leaf 7, EBX bit 29. AVX, which both instruction sets that ask have, settles the rest.
bool cpu_has_sha() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b >> 29 & 1) != 0;
}

auto sha256_blocks_kernel() { return cpu_has_sha() ? sha256_blocks_x86 : sha256_blocks_portable; }
#else
auto sha256_blocks_kernel() { return sha256_blocks_portable; }
#endif

void sha256_streams(std::uint32_t* const* states, const unsigned char* const* data, std::size_t count,
                    std::size_t streams) {
  for (std::size_t stream = 0; stream < streams; ++stream) sha256_blocks_kernel()(states[stream], data[stream], count);
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
