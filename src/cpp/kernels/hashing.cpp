// Hashing kernels, compiled once per instruction set. docs/hashing.md says what they compute. BLAKE3 takes as many
// blocks at once as a vector has words, one lane a block.
#include <cstring>

#include "aisec_fast/hashing_math.hpp"
#include "kernels/families.hpp"
#include "kernels/lanes.hpp"
#include "kernels/sha256.hpp"
#include "kernels/transpose.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// What all lanes of one call share.
struct Group {
  const std::uint32_t* key;
  std::uint32_t mode;
  std::size_t blocks;           // of each lane's input
  std::uint32_t first, last;    // more flags of the first and the last block
  const unsigned char* inputs;  // lane i's input begins i * blocks * 64 bytes on
};

// Counters of the lanes: first, first + step, ...
inline void count_lanes(Lanes& low, Lanes& high, std::uint64_t first, std::uint64_t step) {
  for (int lane = 0; lane < lanes; ++lane) {
    const std::uint64_t counter = first + static_cast<std::uint64_t>(lane) * step;
    low[lane] = static_cast<std::uint32_t>(counter);
    high[lane] = static_cast<std::uint32_t>(counter >> 32);
  }
}

// Chaining values of the next `lanes` of `left` inputs; lanes left over hash the last one again. Returns how many there
// were. `out` may be the inputs' own memory: all is read before anything is written.
std::size_t hash_group(const Group& group, std::size_t left, std::uint64_t counter, std::uint64_t step,
                       std::uint32_t* out) {
  const std::size_t count = left < std::size_t{lanes} ? left : std::size_t{lanes};
  const std::size_t stride = group.blocks * blake3_block_bytes;
  // Processors do not foresee reads that jump from chunk to chunk: while this group is hashed, the next one is fetched.
  const std::size_t ahead = left >= std::size_t{2 * lanes} ? lanes * stride : 0;
  const unsigned char* input[lanes];
  for (std::size_t lane = 0; lane < std::size_t{lanes}; ++lane)
    input[lane] = group.inputs + (lane < count ? lane : count - 1) * stride;
  Lanes low, high, chaining[8];
  count_lanes(low, high, counter, step);
  for (int i = 0; i < 8; ++i) chaining[i] = Lanes{} + group.key[i];
  for (std::size_t block = 0; block < group.blocks; ++block) {
    Lanes message[16];
    for (int lane = 0; lane < lanes; ++lane) __builtin_prefetch(input[lane] + block * blake3_block_bytes + ahead);
    for (int word = 0; word < 16; word += lanes) {
      Lanes row[lanes];
      for (int lane = 0; lane < lanes; ++lane)
        std::memcpy(&row[lane], input[lane] + block * blake3_block_bytes + 4 * word, sizeof row[lane]);
      transpose(row);
      for (int i = 0; i < lanes; ++i) message[word + i] = row[i];
    }
    const std::uint32_t flags =
        group.mode | (block == 0 ? group.first : 0u) | (block + 1 == group.blocks ? group.last : 0u);
    Lanes v[16];
    blake3_compress<Rotation>(v, chaining, message, low, high, std::uint32_t{blake3_block_bytes}, flags);
    blake3_fold(chaining, v);
  }
  std::uint32_t words[8][lanes];
  std::memcpy(words, chaining, sizeof words);
  for (std::size_t lane = 0; lane < count; ++lane)
    for (int i = 0; i < 8; ++i) out[8 * lane + static_cast<std::size_t>(i)] = words[i][lane];
  return count;
}

void hash_all(Group group, std::size_t count, std::uint64_t counter, std::uint64_t step, std::uint32_t* out) {
  while (count > 0) {
    const std::size_t taken = hash_group(group, count, counter, step, out);
    group.inputs += taken * group.blocks * blake3_block_bytes;
    counter += taken * step;
    out += 8 * taken;
    count -= taken;
  }
}

void blake3_chunks(const unsigned char* data, std::size_t count, const std::uint32_t* key, std::uint32_t mode,
                   std::uint64_t counter, std::uint32_t* out) {
  hash_all({key, mode, blake3_chunk_blocks, chunk_start, chunk_end, data}, count, counter, 1, out);
}

void blake3_parents(const std::uint32_t* children, std::size_t count, const std::uint32_t* key, std::uint32_t mode,
                    std::uint32_t* out) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(children);
  hash_all({key, mode | parent_node, 1, 0, 0, bytes}, count, 0, 0, out);
}

void blake3_stream(const Blake3Node& root, std::uint64_t index, std::size_t count, unsigned char* out) {
  Lanes chaining[8], message[16];
  for (int i = 0; i < 8; ++i) chaining[i] = Lanes{} + root.chaining[i];
  for (int i = 0; i < 16; ++i) message[i] = Lanes{} + root.message[i];
  while (count > 0) {
    const std::size_t taken = count < std::size_t{lanes} ? count : std::size_t{lanes};
    Lanes low, high, block[16];
    count_lanes(low, high, index, 1);
    blake3_compress<Rotation>(block, chaining, message, low, high, root.length, root.flags);
    blake3_fold_stream(block, chaining);
    std::uint32_t words[16][lanes];
    std::memcpy(words, block, sizeof words);
    for (std::size_t lane = 0; lane < taken; ++lane)
      for (std::size_t i = 0; i < 16; ++i)
        std::memcpy(out + lane * blake3_block_bytes + 4 * i, &words[i][lane], sizeof words[i][lane]);
    out += taken * blake3_block_bytes;
    index += taken;
    count -= taken;
  }
}

}  // namespace

HashingKernels hashing_kernels(bool sha_instructions) {
  HashingKernels kernels = {blake3_chunks,          blake3_parents,       blake3_stream,
                            sha256_blocks_portable, sha256_streams_lanes, std::size_t{lanes}};
#if defined(AISEC_HAS_SHA)
  if (sha_instructions) {
    kernels.sha256_blocks = sha256_blocks_x86;
    kernels.sha256_streams = sha256_streams_x86;
    kernels.sha256_side_by_side = sha_streams;
  }
#else
  static_cast<void>(sha_instructions);
#endif
  return kernels;
}

}  // namespace aisec_fast::AISEC_ISA
