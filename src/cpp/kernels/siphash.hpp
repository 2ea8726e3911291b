#pragma once
// SipHash-2-4 ("SipHash: a fast short-input PRF", Aumasson and Bernstein, 2012), of several records side by side: one
// record's rounds wait for each other.
#include <cstddef>
#include <cstdint>

#include "kernels/exact_load.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// What the lanes of one step are: a vector of 64-bit words, where there are four of them or more, else plain words.
#if AISEC_WIDTH > 16
typedef std::uint64_t SipWord __attribute__((vector_size(AISEC_WIDTH)));
#else
typedef std::uint64_t SipWord;
#endif
constexpr std::size_t sip_lanes = sizeof(SipWord) / 8;
constexpr std::size_t sip_words = 4;  // words side by side, each of sip_lanes records
constexpr std::size_t sip_records = sip_words * sip_lanes;

template <int bits>
inline SipWord sip_rotated(SipWord word) {
  return word << bits | word >> (64 - bits);
}

// All bits where the count is `least` or more.
inline SipWord sip_mask(SipWord count, std::uint64_t least) {
#if AISEC_WIDTH > 16
  return reinterpret_cast<SipWord>(count >= SipWord{} + least);
#else
  return count >= least ? ~SipWord{0} : 0;
#endif
}

struct SipState {
  SipWord v0, v1, v2, v3;

  void round() {
    v0 += v1;
    v2 += v3;
    v1 = sip_rotated<13>(v1) ^ v0;
    v3 = sip_rotated<16>(v3) ^ v2;
    v0 = sip_rotated<32>(v0);
    v2 += v1;
    v0 += v3;
    v1 = sip_rotated<17>(v1) ^ v2;
    v3 = sip_rotated<21>(v3) ^ v0;
    v2 = sip_rotated<32>(v2);
  }
  SipWord folded() const { return v0 ^ v1 ^ v2 ^ v3; }
};

struct SipRecord {
  const unsigned char* bytes;
  std::size_t whole;   // words before the last one
  std::uint64_t last;  // the bytes that fill no word, and the length modulo 256 on top

  void set(const unsigned char* begin, std::size_t size) {
    bytes = begin;
    whole = size / 8;
    const std::size_t rest = size % 8;
    // Where there is a word to end with, its last bytes are what is left: no branch on how many.
    last = rest == 0  ? 0
           : size > 8 ? loaded<std::uint64_t>(begin + size - 8) >> (8 * (8 - rest))
                      : few_bytes(begin, rest);
    last |= std::uint64_t{size} << 56;
  }
};

// Words of 16 positions are written in columns at a time: they stay in the first-level cache.
constexpr std::size_t sip_columns = 16;

// Digests of sip_records records, two words each.
inline void siphash(const SipRecord (&records)[sip_records], const std::uint64_t* key, bool wide,
                    std::uint64_t (&digests)[2][sip_records]) {
  SipState state[sip_words];
  for (SipState& s : state) {
    s.v0 = SipWord{} + (key[0] ^ 0x736f6d6570736575u);
    s.v1 = SipWord{} + (key[1] ^ 0x646f72616e646f6du ^ (wide ? 0xeeu : 0u));
    s.v2 = SipWord{} + (key[0] ^ 0x6c7967656e657261u);
    s.v3 = SipWord{} + (key[1] ^ 0x7465646279746573u);
  }
  alignas(64) std::uint64_t counts[sip_records];
  std::size_t least = records[0].whole, most = least;
  for (std::size_t r = 0; r < sip_records; ++r) {
    counts[r] = records[r].whole;
    least = records[r].whole < least ? records[r].whole : least;
    most = records[r].whole > most ? records[r].whole : most;
  }
  for (std::size_t first = 0; first <= most; first += sip_columns) {
    alignas(64) std::uint64_t words[sip_columns][sip_records];
    const std::size_t end = most + 1 - first < sip_columns ? most + 1 - first : sip_columns;
    for (std::size_t r = 0; r < sip_records; ++r) {
      const SipRecord& record = records[r];
      if (record.whole < first) continue;  // all absorbed: its column is not looked at
      const std::size_t whole = record.whole - first;
      for (std::size_t i = 0; i < whole && i < end; ++i)
        words[i][r] = loaded<std::uint64_t>(record.bytes + 8 * (first + i));
      if (whole < end) words[whole][r] = record.last;
    }
    for (std::size_t i = 0; i < end; ++i) {
      for (std::size_t w = 0; w < sip_words; ++w) {
        SipWord word;
        std::memcpy(&word, &words[i][w * sip_lanes], sizeof word);
        SipState next = state[w];
        next.v3 ^= word;
        next.round();
        next.round();
        next.v0 ^= word;
        if (first + i <= least) {
          state[w] = next;
          continue;
        }
        SipWord count;
        std::memcpy(&count, &counts[w * sip_lanes], sizeof count);
        const SipWord more = sip_mask(count, first + i);
        state[w].v0 ^= (state[w].v0 ^ next.v0) & more;
        state[w].v1 ^= (state[w].v1 ^ next.v1) & more;
        state[w].v2 ^= (state[w].v2 ^ next.v2) & more;
        state[w].v3 ^= (state[w].v3 ^ next.v3) & more;
      }
    }
  }
  for (std::size_t w = 0; w < sip_words; ++w) {
    SipState& s = state[w];
    s.v2 ^= wide ? 0xeeu : 0xffu;
    for (int i = 0; i < 4; ++i) s.round();
    SipWord word = s.folded();
    std::memcpy(&digests[0][w * sip_lanes], &word, sizeof word);
    if (!wide) continue;
    s.v1 ^= 0xddu;
    for (int i = 0; i < 4; ++i) s.round();
    word = s.folded();
    std::memcpy(&digests[1][w * sip_lanes], &word, sizeof word);
  }
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
