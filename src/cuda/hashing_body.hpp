#pragma once
// Bodies of the BLAKE3 kernels: no launch, no framework, so that tests/cuda_on_host runs the same text on a CPU.
// One thread hashes a chunk, or a parent of two chaining values. docs/hashing.md defines every bit.
#include "aisec_fast/hashing_math.hpp"
#include "grid.hpp"

namespace aisec_fast::cuda {
namespace {

// What all nodes of one hash share, passed by value.
struct Blake3Mode {
  std::uint32_t key[8];
  std::uint32_t flags;
};

// Sixteen bytes that one instruction loads.
struct alignas(16) Quad {
  std::uint32_t words[4];
};

// The 16 words of a block. Unit says how the block is aligned: Quad, std::uint32_t, or unsigned char for not at all.
__device__ inline void load_block(std::uint32_t (&message)[16], const Quad* block) {
  for (int i = 0; i < 4; ++i) {
    const Quad quad = block[i];
    for (int k = 0; k < 4; ++k) message[4 * i + k] = quad.words[k];
  }
}
__device__ inline void load_block(std::uint32_t (&message)[16], const std::uint32_t* block) {
  for (int i = 0; i < 16; ++i) message[i] = block[i];
}
__device__ inline void load_block(std::uint32_t (&message)[16], const unsigned char* block) {
  for (int i = 0; i < 16; ++i, block += 4)
    message[i] = std::uint32_t{block[0]} | std::uint32_t{block[1]} << 8 | std::uint32_t{block[2]} << 16 |
                 std::uint32_t{block[3]} << 24;
}

// The chaining value of `blocks` whole blocks; `first` and `last` are more flags of the first and the last of them.
template <class Unit>
__device__ void chaining_value(const Unit* input, unsigned blocks, const Blake3Mode& mode, std::uint64_t counter,
                               std::uint32_t first, std::uint32_t last, std::uint32_t* value) {
  std::uint32_t chaining[8];
  for (int i = 0; i < 8; ++i) chaining[i] = mode.key[i];
  for (unsigned block = 0; block < blocks; ++block, input += blake3_block_bytes / sizeof(Unit)) {
    std::uint32_t message[16], v[16];
    load_block(message, input);
    const std::uint32_t flags = mode.flags | (block == 0 ? first : 0u) | (block + 1 == blocks ? last : 0u);
    blake3_compress<PlainRotation>(v, chaining, message, static_cast<std::uint32_t>(counter),
                                   static_cast<std::uint32_t>(counter >> 32), std::uint32_t{blake3_block_bytes}, flags);
    blake3_fold(chaining, v);
  }
  for (int i = 0; i < 8; ++i) value[i] = chaining[i];
}

// Of `count` whole chunks.
template <class Unit>
__device__ void chunk_values(const Unit* data, std::uint64_t count, const Blake3Mode& mode, std::uint64_t counter,
                             std::uint32_t* values) {
  for (std::uint64_t chunk = first_index(); chunk < count; chunk += index_step())
    chaining_value(data + chunk * (blake3_chunk_bytes / sizeof(Unit)), blake3_chunk_blocks, mode, counter + chunk,
                   chunk_start, chunk_end, values + 8 * chunk);
}

// Nodes `begin` to `end` - 1 of one level of the whole input's tree; values[0] belongs to node `begin`. A node without
// its sibling in there has to wait on the host's stack: at most one on each side.
struct TreeLevel {
  std::uint64_t begin, end;

  AISEC_HD bool left_waits() const { return begin % 2 == 1; }
  AISEC_HD bool right_waits() const { return end % 2 == 1 && end > begin; }
  AISEC_HD TreeLevel parents() const { return {begin / 2 + begin % 2, end / 2}; }
  AISEC_HD std::uint64_t count() const { return end > begin ? end - begin : 0; }
};

// Parents of the level's pairs, and the nodes that have to wait. `parents` must not overlap `values`.
__device__ inline void parent_values(const std::uint32_t* values, TreeLevel level, const Blake3Mode& mode,
                                     std::uint32_t* parents, std::uint32_t* left, std::uint32_t* right) {
  const std::uint64_t count = level.parents().count(), skip = level.left_waits() ? 8 : 0;
  for (std::uint64_t parent = first_index(); parent < count; parent += index_step())
    chaining_value(values + skip + 16 * parent, 1, mode, 0, parent_node, 0, parents + 8 * parent);
  if (first_index() >= 8) return;
  const std::uint64_t word = first_index();
  if (level.left_waits() && level.count() > 0) left[word] = values[word];
  if (level.right_waits()) right[word] = values[8 * (level.count() - 1) + word];
}

}  // namespace
}  // namespace aisec_fast::cuda
