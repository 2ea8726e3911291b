#include "hashing.hpp"

#include <algorithm>
#include <cstring>

#include "aisec_fast/hashing_state.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

// Chunks are hashed and merged in pieces of 64 KiB, which stay in cache; pieces are what threads share. Their chaining
// values lie on the stack for 64 MiB at a time.
constexpr std::size_t piece_chunks = 64, most_pieces = 1024;
constexpr std::size_t least_pieces = 4;    // smallest work that is worth a thread
constexpr std::size_t most_of_a_turn = 8;  // a thread takes as many neighbours at once: memory is read ahead

class Tree {
 public:
  explicit Tree(std::uint32_t* words) : kernels_(active_kernels().hashing), state_(words, kernels_.blake3_chain) {}

  // Whole chunks, and more bytes follow: one more whole chunk if there is a leaf to be filled in.
  void absorb(const unsigned char* data, std::size_t chunks, std::size_t max_threads, Blake3Leaf* leaf) {
    const std::size_t to_piece = (piece_chunks - state_.chunks() % piece_chunks) % piece_chunks;
    const std::size_t before = std::min(chunks, to_piece);
    if (before == chunks) return absorb_few(data, before, leaf);
    absorb_few(data, before, nullptr);
    data += before * blake3_chunk_bytes;
    chunks -= before;
    for (std::size_t pieces; (pieces = std::min(chunks / piece_chunks, most_pieces)) > 0;) {
      absorb_pieces(data, pieces, max_threads);
      data += pieces * piece_chunks * blake3_chunk_bytes;
      chunks -= pieces * piece_chunks;
    }
    absorb_few(data, chunks, leaf);
  }

 private:
  // Fewer than a piece, and the leaf after them.
  void absorb_few(const unsigned char* data, std::size_t chunks, Blake3Leaf* leaf) {
    std::uint32_t values[8 * piece_chunks];
    kernels_.blake3_chunks(data, chunks + (leaf != nullptr), state_.key(), state_.mode(), state_.chunks(), values);
    push(values, chunks, 1, leaf);
  }

  void absorb_pieces(const unsigned char* data, std::size_t pieces, std::size_t max_threads) {
    std::uint32_t values[8 * most_pieces];
    const std::uint64_t first = state_.chunks();
    const std::size_t most = max_threads == 0 ? thread_count() : std::min(max_threads, thread_count());
    const std::size_t threads = std::clamp<std::size_t>(pieces / least_pieces, 1, most);
    const std::size_t turn = std::clamp<std::size_t>(threads == 1 ? pieces : pieces / threads / 8, 1, most_of_a_turn);
    parallel_chunks(pieces, least_pieces, turn, threads, [&](std::size_t begin, std::size_t end) {
      std::uint32_t leaves[8 * piece_chunks * most_of_a_turn];
      for (std::size_t piece = begin; piece < end; ++piece)
        kernels_.blake3_chunks(data + piece * piece_chunks * blake3_chunk_bytes, piece_chunks, state_.key(),
                               state_.mode(), first + piece * piece_chunks,
                               leaves + 8 * piece_chunks * (piece - begin));
      merge(leaves, piece_chunks * (end - begin), end - begin);
      // NOLINTNEXTLINE(clang-analyzer-unix.cstring.UninitializedRead): the kernel, which is not seen here, wrote them
      std::memcpy(values + 8 * begin, leaves, 32 * (end - begin));
    });
    push(values, pieces, piece_chunks, nullptr);
  }

  // The roots of `roots` full subtrees side by side take the first places.
  void merge(std::uint32_t* values, std::size_t count, std::size_t roots) const {
    for (; count > roots; count /= 2) kernels_.blake3_parents(values, count / 2, state_.key(), state_.mode(), values);
  }

  // Adds the roots of `count` neighbouring subtrees of `size` chunks, and after them the leaf's value. A level at a
  // time, so that lanes are full: a node without its sibling among ours goes to the stack, from the left side at once,
  // from the right side when all that is larger is there.
  void push(std::uint32_t* values, std::size_t count, std::size_t size, Blake3Leaf* leaf) {
    constexpr std::size_t most_levels = 12;  // of 1024 nodes and a leaf
    std::uint32_t waiting[most_levels][8];
    bool waits[most_levels] = {};
    std::uint64_t begin = state_.chunks() / size, end = begin + count + (leaf != nullptr);
    if (leaf != nullptr) {
      std::memcpy(leaf->value, values + 8 * count, 32);
      leaf->merged = 0;
    }
    std::size_t level = 0;
    for (; begin < end; ++level, begin /= 2, end /= 2) {
      const auto node = [&](std::uint64_t index) { return values + 8 * (index - begin); };
      const auto wait = [&](const std::uint32_t* value) {
        std::memcpy(waiting[level], value, 32);
        waits[level] = true;
      };
      if (leaf != nullptr) {  // the last node is the leaf, or has it in it
        const bool alone = end - begin == 1 || end % 2 == 1, below_root = begin == 0 && end == 2;
        if (alone || below_root) {
          std::memcpy(leaf->spine, node(--end), 32);
          leaf = nullptr;
          if (begin == end) break;
        } else {
          wait(node(end - 2));
          ++leaf->merged;
        }
      }
      if (begin % 2 == 1) {
        state_.push(values, size << level);
        values += 8;
        ++begin;
      }
      if (begin < end && leaf == nullptr && end % 2 == 1) wait(node(--end));
      if (begin < end) kernels_.blake3_parents(values, (end - begin) / 2, state_.key(), state_.mode(), values);
    }
    while (level-- > 0)
      if (waits[level]) state_.push(waiting[level], size << level);
  }

  const HashingKernels& kernels_;
  Blake3State state_;
};

constexpr std::size_t sha256_block_bytes = 64, sha256_length_bytes = 8;

// Words of a SHA-256 state.
struct Sha256State {
  std::uint32_t* words;

  std::uint64_t total() const { return std::uint64_t{words[8]} | std::uint64_t{words[9]} << 32; }
  unsigned char* buffer() const { return reinterpret_cast<unsigned char*>(words + 10); }
  void count(std::size_t size) const {
    const std::uint64_t sum = total() + size;
    words[8] = static_cast<std::uint32_t>(sum);
    words[9] = static_cast<std::uint32_t>(sum >> 32);
  }
  void compress_buffer() const {
    active_kernels().hashing.sha256_blocks(words, buffer(), 1);
    std::memset(buffer(), 0, sha256_block_bytes);
  }
};

}  // namespace

void blake3_update(std::uint32_t* words, const unsigned char* data, std::size_t size, std::size_t max_threads,
                   Blake3Leaf* leaf) {
  if (size == 0) return;
  Blake3State state(words, active_kernels().hashing.blake3_chain);
  const Blake3Split split = state.split(size);
  state.append(data, split.head);
  if (split.tail == 0) return;  // all of it fitted into the buffer
  state.flush(leaf);
  data += split.head;
  // A chunk more costs nothing where the vectors have lanes to spare.
  const bool early = leaf != nullptr && split.tail == blake3_chunk_bytes && split.chunks % 8 != 0;
  if (leaf != nullptr) leaf->known = early;
  if (split.chunks > 0) Tree(words).absorb(data, split.chunks, max_threads, early ? leaf : nullptr);
  state.append(data + split.chunks * blake3_chunk_bytes, split.tail);
}

void blake3_output(const std::uint32_t* state, unsigned char* out, std::size_t size, std::uint64_t seek,
                   const Blake3Leaf* leaf) {
  const HashingKernels& kernels = active_kernels().hashing;
  Blake3Node root = blake3_root(state, kernels.blake3_chain, leaf);
  if (seek == 0 && size <= 32) {  // what a chaining value would be
    chain_node(root, kernels.blake3_chain);
    std::memcpy(out, root.chaining, size);
    return;
  }
  write_stream(root, out, size, seek, kernels.blake3_stream);
}

void sha256_update(std::uint32_t* words, const unsigned char* data, std::size_t size) {
  if (size == 0) return;
  const Sha256State state{words};
  const std::size_t fill = state.total() % sha256_block_bytes;
  state.count(size);
  if (fill > 0) {
    const std::size_t head = std::min(size, sha256_block_bytes - fill);
    std::memcpy(state.buffer() + fill, data, head);
    if (fill + head < sha256_block_bytes) return;
    state.compress_buffer();
    data += head;
    size -= head;
  }
  active_kernels().hashing.sha256_blocks(words, data, size / sha256_block_bytes);
  const std::size_t tail = size % sha256_block_bytes;
  if (tail > 0) std::memcpy(state.buffer(), data + (size - tail), tail);
}

void sha256_output(const std::uint32_t* state, unsigned char* out) {
  std::uint32_t words[26];
  std::memcpy(words, state, sizeof words);
  const Sha256State copy{words};
  const std::size_t fill = copy.total() % sha256_block_bytes;
  copy.buffer()[fill] = 0x80;
  if (fill + 1 > sha256_block_bytes - sha256_length_bytes) copy.compress_buffer();
  const std::uint64_t bits = __builtin_bswap64(copy.total() * 8);
  std::memcpy(copy.buffer() + sha256_block_bytes - sha256_length_bytes, &bits, sizeof bits);
  copy.compress_buffer();
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t word = __builtin_bswap32(words[i]);
    std::memcpy(out + 4 * i, &word, sizeof word);
  }
}

}  // namespace aisec_fast
