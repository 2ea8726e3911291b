#pragma once
// Bodies of the BLAKE3 kernels: no launch, no framework, so that tests/cuda_on_host runs the same text on a CPU.
// One thread hashes a chunk; a block of threads, the tree above its chunks. docs/hashing.md defines every bit.
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
  std::uint32_t next[16];
  load_block(next, input);
  for (unsigned block = 0; block < blocks; ++block) {
    std::uint32_t message[16], v[16];
    for (int i = 0; i < 16; ++i) message[i] = next[i];
    input += blake3_block_bytes / sizeof(Unit);
    if (block + 1 < blocks) load_block(next, input);  // on its way while this one is compressed
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

constexpr int most_levels = 22;  // of a slice's tree (hashing.cu), wherever the slice begins

// What the host needs of a slice: its subtrees that have no sibling in it, of 2^level chunks, on its left and its right
// side; and the bytes behind it.
struct Waiting {
  std::uint32_t left[most_levels][8], right[most_levels][8];
  unsigned char tail[blake3_chunk_bytes];
};

// Levels that one launch computes: a CUDA block makes what lies above 2^pass_levels neighbouring nodes, and each thread
// at most one parent a level. Launches, not compressions, are what the upper levels cost.
constexpr int pass_levels = 9;
static_assert(1 << (pass_levels - 1) == block_threads);

struct alignas(16) Node {
  std::uint32_t words[8];
};

// Thread blocks of a pass.
inline std::uint64_t pass_groups(const TreeLevel& level) {
  return level.count() == 0 ? 0 : ((level.end - 1) >> pass_levels) - (level.begin >> pass_levels) + 1;
}

// From the nodes of a level, those of the level pass_levels above, and the nodes between that have to wait. `height` is
// the level's. `tops` must not overlap `values`.
__device__ inline void tree_values(const std::uint32_t* values, const TreeLevel& level, const Blake3Mode& mode,
                                   int height, std::uint32_t* tops, Waiting* waiting) {
  __shared__ Node nodes[2][block_threads];  // levels take turns
  TreeLevel top = level;
  for (int up = 0; up < pass_levels; ++up) top = top.parents();
  for (std::uint64_t group = (level.begin >> pass_levels) + blockIdx.x; group << pass_levels < level.end;
       group += gridDim.x) {
    TreeLevel here = level;
    for (int up = 0; up < pass_levels; ++up) {
      const unsigned pairs = block_threads >> up;
      const std::uint64_t parent = group * pairs + threadIdx.x;
      const std::uint64_t place = 2 * parent - level.begin;  // of its left child among the values
      const TreeLevel above = here.parents();
      const std::uint32_t* children = up == 0 ? values + 8 * static_cast<std::int64_t>(place)
                                              : nodes[(up + 1) % 2][2 * (threadIdx.x % pairs)].words;
      if (threadIdx.x < pairs && parent >= above.begin && parent < above.end) {
        std::uint32_t* const to =
            up + 1 == pass_levels ? tops + 8 * (parent - top.begin) : nodes[up % 2][threadIdx.x].words;
        chaining_value(reinterpret_cast<const Quad*>(children), 1, mode, 0, parent_node, 0, to);
      } else if (threadIdx.x < pairs) {
        if (here.left_waits() && here.count() > 0 && 2 * parent + 1 == here.begin)
          for (int i = 0; i < 8; ++i) waiting->left[height + up][i] = children[8 + i];
        if (here.right_waits() && 2 * parent + 1 == here.end)
          for (int i = 0; i < 8; ++i) waiting->right[height + up][i] = children[i];
      }
      __syncthreads();  // this level's parents are there, and its nodes have been read
      here = above;
    }
  }
}

}  // namespace
}  // namespace aisec_fast::cuda
