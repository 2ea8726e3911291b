#include "hashing.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "aisec_fast/hashing_state.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

// Chunks are hashed and merged in pieces of 64 KiB, which stay in cache; pieces are what threads share. Their chaining
// values lie on the stack for 64 MiB at a time.
constexpr std::size_t piece_chunks = 64, most_pieces = 1024;
constexpr std::size_t least_pieces = 4;  // smallest work that is worth a thread

class Tree {
 public:
  explicit Tree(std::uint32_t* words) : kernels_(active_kernels().hashing), state_(words, kernels_.blake3_chain) {}

  // Whole chunks, and more bytes follow: a whole chunk too if its value, `next`, is asked for.
  void absorb(const unsigned char* data, std::size_t chunks, std::size_t max_threads, std::uint32_t* next) {
    const std::size_t to_piece = (piece_chunks - state_.chunks() % piece_chunks) % piece_chunks;
    const std::size_t before = std::min(chunks, to_piece);
    absorb_few(data, before, before == chunks ? next : nullptr);
    if (before == chunks) return;
    data += before * blake3_chunk_bytes;
    chunks -= before;
    for (std::size_t pieces; (pieces = std::min(chunks / piece_chunks, most_pieces)) > 0;) {
      absorb_pieces(data, pieces, max_threads);
      data += pieces * piece_chunks * blake3_chunk_bytes;
      chunks -= pieces * piece_chunks;
    }
    absorb_few(data, chunks, next);
  }

 private:
  // Fewer than a piece, and the one after them.
  void absorb_few(const unsigned char* data, std::size_t chunks, std::uint32_t* next) {
    std::uint32_t values[8 * piece_chunks];
    kernels_.blake3_chunks(data, chunks + (next != nullptr), state_.key(), state_.mode(), state_.chunks(), values);
    if (next != nullptr) std::memcpy(next, values + 8 * chunks, 32);
    push(values, chunks, 1);
  }

  void absorb_pieces(const unsigned char* data, std::size_t pieces, std::size_t max_threads) {
    std::uint32_t values[8 * most_pieces];
    const std::uint64_t first = state_.chunks();
    const std::size_t most = max_threads == 0 ? thread_count() : std::min(max_threads, thread_count());
    // Threads take pieces as they come: one that shares its core with other work holds up nobody.
    std::atomic<std::size_t> taken{0};
    parallel_for(std::clamp<std::size_t>(pieces / least_pieces, 1, most), 1, [&](std::size_t, std::size_t) {
      for (std::size_t piece; (piece = taken.fetch_add(1, std::memory_order_relaxed)) < pieces;) {
        std::uint32_t leaves[8 * piece_chunks];
        kernels_.blake3_chunks(data + piece * piece_chunks * blake3_chunk_bytes, piece_chunks, state_.key(),
                               state_.mode(), first + piece * piece_chunks, leaves);
        merge(leaves, piece_chunks);
        std::memcpy(values + 8 * piece, leaves, 32);
      }
    });
    push(values, pieces, piece_chunks);
  }

  // The root of a full subtree takes the first place.
  void merge(std::uint32_t* values, std::size_t count) const {
    for (; count > 1; count /= 2) kernels_.blake3_parents(values, count / 2, state_.key(), state_.mode(), values);
  }

  // Adds the roots of `count` neighbouring subtrees of `size` chunks, in full subtrees as large as they come.
  void push(std::uint32_t* values, std::size_t count, std::size_t size) {
    while (count > 0) {
      const std::uint64_t place = state_.chunks() / size;
      std::size_t together = 1;
      while (2 * together <= count && place % (2 * together) == 0) together *= 2;
      merge(values, together);
      state_.push(values, together * size);
      values += 8 * together;
      count -= together;
    }
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
  state.flush(leaf != nullptr && leaf->known ? leaf->value : nullptr);
  data += split.head;
  // A chunk more costs nothing where the vectors have lanes to spare.
  const bool early = leaf != nullptr && split.tail == blake3_chunk_bytes && split.chunks % 8 != 0;
  if (leaf != nullptr) leaf->known = early;
  if (split.chunks > 0) Tree(words).absorb(data, split.chunks, max_threads, early ? leaf->value : nullptr);
  state.append(data + split.chunks * blake3_chunk_bytes, split.tail);
}

void blake3_output(const std::uint32_t* state, unsigned char* out, std::size_t size, std::uint64_t seek,
                   const Blake3Leaf* leaf) {
  const HashingKernels& kernels = active_kernels().hashing;
  Blake3Node root = blake3_root(state, kernels.blake3_chain, leaf != nullptr && leaf->known ? leaf->value : nullptr);
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
