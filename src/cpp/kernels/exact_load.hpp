#pragma once
// Records of at most 64 bytes as blocks that end in zeros. Nothing outside a record is read: the memory around it may
// be another's, or nobody's.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/lanes.hpp"

#if defined(__SSE4_1__)
#include <immintrin.h>
#endif

namespace aisec_fast::AISEC_ISA {
namespace {

// A block of 64 bytes, in as many vectors as it takes.
struct Block {
  Lanes part[16 / lanes];
};

template <class Word>
inline Word loaded(const unsigned char* bytes) {
  Word word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// `size` bytes, fewer than 8, as the low bytes of a word; reads overlap where they agree.
inline std::uint64_t few_bytes(const unsigned char* bytes, std::size_t size) {
  if (size >= 4)
    return loaded<std::uint32_t>(bytes) | std::uint64_t{loaded<std::uint32_t>(bytes + size - 4)} << (8 * (size - 4));
  if (size == 0) return 0;
  return bytes[0] | std::uint64_t{bytes[size / 2]} << (8 * (size / 2)) |
         std::uint64_t{bytes[size - 1]} << (8 * (size - 1));
}

#if defined(__SSE4_1__)
// Vectors that take the place of others when a window is moved over them.
alignas(64) constexpr unsigned char shift_bytes[32] = {0,    1,    2,    3,    4,    5,    6,    7,    8,    9,    10,
                                                       11,   12,   13,   14,   15,   0x80, 0x80, 0x80, 0x80, 0x80, 0x80,
                                                       0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80};

// Towards the first byte, by 0 to 16; zeros follow.
inline __m128i shifted(__m128i bytes, std::size_t by) {
  return _mm_shuffle_epi8(bytes, _mm_loadu_si128(reinterpret_cast<const __m128i*>(shift_bytes + by)));
}

inline __m128i quarter_at(const unsigned char* bytes) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
}

// The four quarters of a block. What does not fill one comes from the last 16 bytes.
inline void load_quarters(__m128i (&quarter)[4], const unsigned char* bytes, std::size_t size) {
  quarter[1] = quarter[2] = quarter[3] = _mm_setzero_si128();
  if (size < 16) {
    std::uint64_t low, high = 0;
    if (size < 8) {
      low = few_bytes(bytes, size);
    } else {
      low = loaded<std::uint64_t>(bytes);
      if (size > 8) high = loaded<std::uint64_t>(bytes + size - 8) >> (8 * (16 - size));
    }
    quarter[0] = _mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
    return;
  }
  const __m128i last = quarter_at(bytes + size - 16);
  quarter[0] = quarter_at(bytes);
  if (size <= 32) {
    quarter[1] = shifted(last, 32 - size);
    return;
  }
  quarter[1] = quarter_at(bytes + 16);
  if (size <= 48) {
    quarter[2] = shifted(last, 48 - size);
    return;
  }
  quarter[2] = quarter_at(bytes + 32);
  quarter[3] = shifted(last, 64 - size);
}
#endif

inline void load_block(Block& block, const unsigned char* bytes, std::size_t size) {
#if defined(__AVX512BW__)
  block.part[0] =
      reinterpret_cast<Lanes>(_mm512_maskz_loadu_epi8(size == 64 ? ~__mmask64{0} : (__mmask64{1} << size) - 1, bytes));
#elif defined(__AVX2__)
  __m128i quarter[4];
  load_quarters(quarter, bytes, size);
  block.part[0] = reinterpret_cast<Lanes>(_mm256_set_m128i(quarter[1], quarter[0]));
  block.part[1] = reinterpret_cast<Lanes>(_mm256_set_m128i(quarter[3], quarter[2]));
#elif defined(__SSE4_1__)
  __m128i quarter[4];
  load_quarters(quarter, bytes, size);
  std::memcpy(&block, quarter, sizeof block);
#else
  block = Block{};
  if (size > 0) std::memcpy(&block, bytes, size);
#endif
}

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
