#pragma once
// The words of one call (docs/noise.md section 3), a group of 128 at a time.
#include <cstdint>
#include <cstring>

#include "aisec_fast/kernels.hpp"
#include "aisec_fast/noise_math.hpp"
#include "kernels/aes.hpp"
#include "kernels/lanes.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

#if defined(__AVX512F__)
constexpr unsigned lane_of(unsigned j) { return j; }

// The words of two numbers of a group's blocks. A lane is a block, in an order that interleaving halves straightens.
inline void join_words(std::uint64_t* out, Lanes low, Lanes high) {
  const __m512i lows = reinterpret_cast<__m512i>(low), highs = reinterpret_cast<__m512i>(high);
  _mm512_store_si512(out, _mm512_maskz_unpacklo_epi32(0xffff, lows, highs));
  _mm512_store_si512(out + 8, _mm512_maskz_unpackhi_epi32(0xffff, lows, highs));
}

inline void chacha_group(std::uint64_t* out, const Key& key, Domain domain, std::uint64_t first) {
  const Lanes order{0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
  Lanes block[16];
  chacha_block<Rotation>(block, key, order + static_cast<std::uint32_t>(first),
                         Lanes{} + static_cast<std::uint32_t>(first >> 32), domain, Level::main);
  for (unsigned k = 0; k < 8; ++k) join_words(out + k * group_blocks, block[2 * k], block[2 * k + 1]);
}
#else
// Words stand in the order of lanes, 0 1 4 5 2 3 6 7 of each eight: interleaving vectors of eight 32-bit halves gives
// it, and narrowing vectors of four 64-bit values undoes it.
constexpr unsigned lane_of(unsigned j) { return (j & ~6u) | (j & 2u) << 1 | (j & 4u) >> 1; }

// The words of one number in 16 blocks.
inline void join_words(std::uint64_t* out, const std::uint32_t* low, const std::uint32_t* high) {
#if defined(__AVX2__)
  for (unsigned b = 0; b < group_blocks; b += 8) {
    const __m256i lows = _mm256_load_si256(reinterpret_cast<const __m256i*>(low + b));
    const __m256i highs = _mm256_load_si256(reinterpret_cast<const __m256i*>(high + b));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + b), _mm256_unpacklo_epi32(lows, highs));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + b + 4), _mm256_unpackhi_epi32(lows, highs));
  }
#else
  for (unsigned b = 0; b < group_blocks; ++b) out[lane_of(b)] = join(low[b], high[b]);
#endif
}

struct alignas(64) GroupBlocks {
  std::uint32_t word[16][group_blocks];  // word[w][b]: word w of the group's block b
};

inline void chacha_group(std::uint64_t* out, const Key& key, Domain domain, std::uint64_t first) {
  GroupBlocks x;
  for (unsigned b = 0; b < group_blocks; b += lanes) {
    Lanes low, high, block[16];
    for (unsigned lane = 0; lane < lanes; ++lane) {
      low[lane] = static_cast<std::uint32_t>(first + b + lane);
      high[lane] = static_cast<std::uint32_t>((first + b + lane) >> 32);
    }
    chacha_block<Rotation>(block, key, low, high, domain, Level::main);
    for (int w = 0; w < 16; ++w) memcpy(&x.word[w][b], &block[w], sizeof block[w]);
  }
  for (unsigned k = 0; k < 8; ++k) join_words(out + k * group_blocks, x.word[2 * k], x.word[2 * k + 1]);
}
#endif

// Words stand in the order of lanes.
class Stream {
 public:
  Stream(const NoiseCall& call, Domain domain) : domain_(domain), generator_(call.generator) {
    for (int i = 0; i < 8; ++i) key_.word[i] = call.key[i];
  }

  const Key& key() const { return key_; }

  void read(std::uint64_t* out, std::uint64_t group) {
#if defined(AISEC_X86)
    if (generator_ != Generator::chacha) return read_aes<WordOrder::lanes>(out, group);
#endif
    chacha_group(out, key_, domain_, group * group_blocks);
  }

#if defined(__AVX512F__)
  void read_in_order(std::uint64_t* out, std::uint64_t group) { read(out, group); }
#elif defined(__AVX2__)
  // The same as they are numbered.
  void read_in_order(std::uint64_t* out, std::uint64_t group) {
    if (generator_ != Generator::chacha) return read_aes<WordOrder::numbers>(out, group);
    chacha_group(out, key_, domain_, group * group_blocks);
    for (unsigned j = 0; j < group_samples; j += 8) {
      __m256i* const words = reinterpret_cast<__m256i*>(out + j);
      const __m256i early = _mm256_load_si256(words), late = _mm256_load_si256(words + 1);
      _mm256_store_si256(words, _mm256_permute2x128_si256(early, late, 0x20));
      _mm256_store_si256(words + 1, _mm256_permute2x128_si256(early, late, 0x31));
    }
  }
#endif

#if defined(__AVX2__)
  bool has_vaes() const { return generator_ == Generator::vaes; }

  // Words from `group` on, up to the next group of which starts_subkey() holds.
  template <class Words>
  AISEC_VAES Words vaes_words(std::uint64_t group) {
    const std::uint64_t first = find_subkey(group);
    return Words(subkey_, first);
  }
  static bool starts_subkey(std::uint64_t group) { return group % subkey_groups == 0; }
#endif

 private:
#if defined(AISEC_X86)
  static constexpr std::uint64_t subkey_groups = 1u << 18;  // of 64 blocks: 2^24 blocks

  // Sets the group's subkey; the number of its first block under that.
  std::uint64_t find_subkey(std::uint64_t group) {
    const std::uint64_t number = group / subkey_groups;
    if (number != subkey_number_) {
      std::uint32_t x[16];
      chacha_block(x, key_, static_cast<std::uint32_t>(number), static_cast<std::uint32_t>(number >> 32), domain_,
                   Level::subkey);
      aes_subkey(subkey_, x, join(x[4], x[5]));
      subkey_number_ = number;
    }
    return group % subkey_groups * (group_samples / 2);
  }

  template <WordOrder order>
  void read_aes(std::uint64_t* out, std::uint64_t group) {
    const std::uint64_t first = find_subkey(group);
#if defined(__AVX512F__)
    if (generator_ == Generator::vaes) return make_words(out, VaesWords(subkey_, first));
#elif defined(__AVX2__)
    if (generator_ == Generator::vaes) return make_words(out, VaesWordsIn<order>(subkey_, first));
#endif
    aes_words<order>(out, subkey_, first);
  }

  AesSubkey subkey_{};
  std::uint64_t subkey_number_ = ~std::uint64_t{0};
#endif

  Key key_;
  Domain domain_;
  Generator generator_;
};

// Words of one group after another: of any generator, a group at once; begin() may be left out where begins() is false.
struct WholeGroups {
  static constexpr unsigned at_once = group_samples;
  struct Blocks {};

  Stream& stream;
  std::uint64_t groups;  // of the call

  void begin(std::uint64_t* out, std::uint64_t group) {
    if (group < groups) stream.read(out, group);
  }
  bool begins(std::uint64_t) const { return true; }
  void make(std::uint64_t*) const {}
  Blocks start() const { return {}; }
  template <int first, int last>
  void rounds(Blocks&) const {}
  void end(std::uint64_t*, const Blocks&) const {}
};

#if defined(__AVX2__)
// or of VAES, a few at a time.
template <class Words>
struct VaesGroupsOf {
  static constexpr unsigned at_once = Words::at_once;

  Stream& stream;
  Words words;

  AISEC_VAES VaesGroupsOf(Stream& stream_, std::uint64_t group)
      : stream(stream_), words(stream_.vaes_words<Words>(group)) {}
  AISEC_VAES void begin(const std::uint64_t*, std::uint64_t group) {
    if (begins(group)) [[unlikely]]
      words = stream.vaes_words<Words>(group);
  }
  bool begins(std::uint64_t group) const { return Stream::starts_subkey(group); }
  AISEC_VAES void make(std::uint64_t* out) { words.make(out); }
  using Blocks = typename Words::Blocks;

  AISEC_VAES AISEC_INLINE Blocks start() { return words.start(); }
  template <int first, int last>
  AISEC_VAES AISEC_INLINE void rounds(Blocks& blocks) const {
    words.template rounds<first, last>(blocks);
  }
  AISEC_VAES AISEC_INLINE void last(Blocks& blocks) const { words.last(blocks); }
  AISEC_VAES AISEC_INLINE void end(std::uint64_t* out, Blocks& blocks) const { words.end(out, blocks); }
};
using VaesGroups = VaesGroupsOf<VaesWords>;
#endif

#if defined(__AVX2__)
// Both with words as they are numbered.
struct WholeGroupsInOrder : WholeGroups {
  // NOLINTNEXTLINE(bugprone-derived-method-shadowing-base-method): it stands in for it
  void begin(std::uint64_t* out, std::uint64_t group) {
    if (group < groups) stream.read_in_order(out, group);
  }
};
using VaesGroupsInOrder = VaesGroupsOf<VaesWordsInOrder>;
#endif

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
