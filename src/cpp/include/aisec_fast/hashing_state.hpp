#pragma once
// The state of a BLAKE3 hasher, 700 words that Python keeps (docs/hashing.md has their layout), on one CPU thread and
// one block at a time. _core and _cuda differ only in how they hash whole chunks.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "aisec_fast/hashing_math.hpp"
#include "aisec_fast/kernels.hpp"

namespace aisec_fast {

// What is known early of a whole chunk that is still in the buffer, because it is the last. It lies beside the state:
// computed together with the chunks before it, it often costs nothing, but the state is the same with it or without.
struct Blake3Leaf {
  bool known = false;
  std::uint32_t value[8];  // the chunk's chaining value
  std::uint32_t spine[8];  // that of the largest subtree around it, the root left out, if nothing follows
  std::size_t merged;      // how many entries of the stack, from the top, are in that subtree
};

namespace {

constexpr std::size_t blake3_state_words = 700;
constexpr std::uint64_t blake3_most_chunks = std::uint64_t{1} << 54;  // 2^64 bytes

inline void load_words(std::uint32_t (&words)[16], const void* bytes) { std::memcpy(words, bytes, sizeof words); }

inline void compress_node(std::uint32_t (&v)[16], const Blake3Node& node, std::uint64_t counter) {
  blake3_compress<PlainRotation>(v, node.chaining, node.message, static_cast<std::uint32_t>(counter),
                                 static_cast<std::uint32_t>(counter >> 32), node.length, node.flags);
}

// HashingKernels::blake3_chain for every processor.
inline void blake3_chain_plain(std::uint32_t* chaining, const Blake3Chain& chain) {
  for (std::size_t block = 0; block < chain.blocks; ++block) {
    const bool last = block + 1 == chain.blocks;
    Blake3Node node;
    std::memcpy(node.chaining, chaining, sizeof node.chaining);
    load_words(node.message, chain.data + block * blake3_block_bytes);
    node.counter = chain.counter;
    node.length = last ? chain.last_length : std::uint32_t{blake3_block_bytes};
    node.flags = chain.mode | (block == 0 ? chain.first : 0u) | (last ? chain.last : 0u);
    std::uint32_t v[16];
    compress_node(v, node, node.counter);
    blake3_fold(node.chaining, v);
    std::memcpy(chaining, node.chaining, sizeof node.chaining);
  }
}

using ChainKernel = decltype(HashingKernels::blake3_chain);

// A node's chaining value becomes what its parent, or its next block, sees.
inline void chain_node(Blake3Node& node, ChainKernel chain = blake3_chain_plain) {
  const auto* message = reinterpret_cast<const unsigned char*>(node.message);
  chain(node.chaining, {message, 1, node.counter, node.length, node.flags, 0, 0});
}

inline Blake3Node parent_of(const std::uint32_t* key, std::uint32_t mode, const std::uint32_t* left,
                            const std::uint32_t* right) {
  Blake3Node node;
  std::memcpy(node.chaining, key, sizeof node.chaining);
  std::memcpy(node.message, left, 32);
  std::memcpy(node.message + 8, right, 32);
  node.counter = 0;
  node.length = blake3_block_bytes;
  node.flags = mode | parent_node;
  return node;
}

// Block `index` of a root's stream.
inline void stream_block(std::uint32_t (&words)[16], const Blake3Node& root, std::uint64_t index) {
  compress_node(words, root, index);
  blake3_fold_stream(words, root.chaining);
}

// How an update is shared out: bytes that fill the buffer up, whole chunks, bytes that stay in the buffer.
struct Blake3Split {
  std::size_t head, chunks, tail;
};

class Blake3State {
 public:
  explicit Blake3State(std::uint32_t* words, ChainKernel chain = blake3_chain_plain) : words_(words), chain_(chain) {}

  const std::uint32_t* key() const { return words_; }
  std::uint32_t mode() const { return words_[8]; }
  std::size_t buffered() const { return words_[9]; }
  std::uint64_t chunks() const { return std::uint64_t{words_[10]} | std::uint64_t{words_[11]} << 32; }

  // What every state is that our functions made: what does not hold would make them leave the array.
  bool valid() const {
    const bool known =
        mode() == 0 || mode() == keyed_hash || mode() == derive_key_context || mode() == derive_key_material;
    return known && buffered() <= blake3_chunk_bytes && chunks() < blake3_most_chunks &&
           (buffered() > 0 || chunks() == 0);
  }

  // The last chunk is kept, even if it is whole: whether it is the root shows only when it is known to be the last.
  Blake3Split split(std::size_t size) const {
    const std::size_t room = buffered() == 0 ? 0 : blake3_chunk_bytes - buffered();
    const std::size_t head = size < room ? size : room, rest = size - head;
    const std::size_t whole = rest == 0 ? 0 : (rest - 1) / blake3_chunk_bytes;
    return {head, whole, rest - whole * blake3_chunk_bytes};
  }

  // Bytes that the buffer has room for.
  void append(const void* bytes, std::size_t size) {
    if (size == 0) return;
    std::memcpy(buffer() + buffered(), bytes, size);
    words_[9] += static_cast<std::uint32_t>(size);
  }

  // Hashes the full buffer, if there is one: more bytes follow.
  void flush(const Blake3Leaf* leaf = nullptr) {
    if (buffered() == 0) return;
    std::uint32_t chaining[8];
    const std::uint32_t* value = leaf != nullptr && leaf->known ? leaf->value : nullptr;
    if (value == nullptr) {
      std::memcpy(chaining, key(), sizeof chaining);
      chain_(chaining, {buffer(), blake3_chunk_blocks, chunks(), std::uint32_t{blake3_block_bytes}, mode(), chunk_start,
                        chunk_end});
      value = chaining;
    }
    push(value, 1);
    std::memset(buffer(), 0, blake3_chunk_bytes);
    words_[9] = 0;
  }

  // Adds the chaining value of the next `count` chunks, a power of two that divides chunks().
  void push(const std::uint32_t* chaining, std::uint64_t count) {
    std::uint32_t top[8];
    std::memcpy(top, chaining, sizeof top);
    std::size_t entries = subtrees();
    for (std::uint64_t size = count; (chunks() & size) != 0; size <<= 1) {
      Blake3Node parent = parent_of(key(), mode(), entry(--entries), top);
      chain_node(parent, chain_);
      std::memcpy(top, parent.chaining, sizeof top);
      std::memset(entry(entries), 0, sizeof top);
    }
    std::memcpy(entry(entries), top, sizeof top);
    const std::uint64_t total = chunks() + count;
    words_[10] = static_cast<std::uint32_t>(total);
    words_[11] = static_cast<std::uint32_t>(total >> 32);
  }

  // The node whose stream is the hash of everything absorbed.
  Blake3Node root(const Blake3Leaf* leaf = nullptr) const {
    std::size_t entries = subtrees();
    Blake3Node node;
    if (leaf != nullptr && leaf->known) {
      entries -= leaf->merged + 1;
      node = parent_of(key(), mode(), entry(entries), leaf->spine);
    } else {
      node = last_block();
    }
    while (entries-- > 0) {
      chain_node(node, chain_);
      node = parent_of(key(), mode(), entry(entries), node.chaining);
    }
    node.flags |= root_node;
    return node;
  }

 private:
  std::size_t subtrees() const { return static_cast<std::size_t>(__builtin_popcountll(chunks())); }
  std::uint32_t* entry(std::size_t index) const { return words_ + 12 + 8 * index; }
  unsigned char* buffer() const { return reinterpret_cast<unsigned char*>(words_ + 444); }

  // The buffer's last block, after those before it.
  Blake3Node last_block() const {
    const std::size_t before = buffered() == 0 ? 0 : (buffered() - 1) / blake3_block_bytes;
    Blake3Node node;
    std::memcpy(node.chaining, key(), sizeof node.chaining);
    chain_(node.chaining, {buffer(), before, chunks(), std::uint32_t{blake3_block_bytes}, mode(), chunk_start, 0});
    load_words(node.message, buffer() + before * blake3_block_bytes);
    node.counter = chunks();
    node.length = static_cast<std::uint32_t>(buffered() - before * blake3_block_bytes);
    node.flags = mode() | chunk_end | (before == 0 ? chunk_start : 0u);
    return node;
  }

  std::uint32_t* words_;
  ChainKernel chain_;
};

// The root of a state that does not change.
inline Blake3Node blake3_root(const std::uint32_t* state, ChainKernel chain = blake3_chain_plain,
                              const Blake3Leaf* leaf = nullptr) {
  return Blake3State(const_cast<std::uint32_t*>(state), chain).root(leaf);  // root() writes nothing
}

// Bytes `seek` to `seek` + `size` of a root's stream. whole(root, index, count, out) makes whole blocks.
template <class Whole>
void write_stream(const Blake3Node& root, unsigned char* out, std::size_t size, std::uint64_t seek,
                  const Whole& whole) {
  while (size > 0) {
    const std::uint64_t index = seek / blake3_block_bytes;
    const std::size_t skip = seek % blake3_block_bytes;
    std::size_t made;
    if (skip == 0 && size >= blake3_block_bytes) {
      whole(root, index, size / blake3_block_bytes, out);
      made = size / blake3_block_bytes * blake3_block_bytes;
    } else {
      std::uint32_t words[16];
      stream_block(words, root, index);
      made = blake3_block_bytes - skip < size ? blake3_block_bytes - skip : size;
      std::memcpy(out, reinterpret_cast<const unsigned char*>(words) + skip, made);
    }
    out += made;
    size -= made;
    seek += made;
  }
}

}  // namespace
}  // namespace aisec_fast
