// Runs the BLAKE3 kernels on heap buffers of exact size, for AddressSanitizer, and compares with the tree as the paper
// defines it: a recursion over the whole input.
#include <initializer_list>
#include <vector>

#include "aisec_fast/hashing_state.hpp"
#include "check.hpp"
#include "hashing_entry.hpp"

using namespace aisec_fast;

namespace {

constexpr std::uint32_t mode = keyed_hash;
constexpr std::size_t chunk = blake3_chunk_bytes, output_bytes = 100;

std::vector<std::uint32_t> fresh_state() {
  std::vector<std::uint32_t> words(blake3_state_words);
  for (std::uint32_t i = 0; i < 8; ++i) words[i] = 0x01234567u * (i + 1);
  words[8] = mode;
  return words;
}

Blake3Node plain_node(const unsigned char* data, std::size_t size, std::uint64_t first) {
  const std::vector<std::uint32_t> key = fresh_state();
  Blake3Node node{};
  if (size > chunk) {  // the left subtree is the largest full one that leaves something to the right
    std::size_t left = chunk;
    while (2 * left < size) left *= 2;
    Blake3Node nodes[2] = {plain_node(data, left, first), plain_node(data + left, size - left, first + left / chunk)};
    for (Blake3Node& child : nodes) chain_node(child);
    return parent_of(key.data(), mode, nodes[0].chaining, nodes[1].chaining);
  }
  std::memcpy(node.chaining, key.data(), sizeof node.chaining);
  node.counter = first;
  for (std::size_t begin = 0;; begin += 64) {
    const std::size_t length = size - begin < 64 ? size - begin : 64;
    const bool last = begin + length == size;
    unsigned char block[64] = {};
    std::memcpy(block, data + begin, length);
    load_words(node.message, block);
    node.length = static_cast<std::uint32_t>(length);
    node.flags = mode | (begin == 0 ? chunk_start : 0u) | (last ? chunk_end : 0u);
    if (last) return node;
    chain_node(node);
  }
}

Buffer<unsigned char> plain_output(const unsigned char* data, std::size_t size) {
  Blake3Node root = plain_node(data, size, 0);
  root.flags |= root_node;
  Buffer<unsigned char> out(output_bytes);
  for (std::size_t i = 0; i < output_bytes; ++i) {
    std::uint32_t words[16];
    stream_block(words, root, i / 64);
    out[i] = static_cast<unsigned char>(words[i % 64 / 4] >> (8 * (i % 4)));
  }
  return out;
}

// Absorbs the data in two updates, the second from an exact buffer of its own that begins `shift` bytes off alignment.
void check(std::size_t size, std::size_t first, std::size_t shift) {
  Buffer<unsigned char> head(first), tail(size - first + shift), out(output_bytes);
  std::vector<unsigned char> all(size + 1);
  for (std::size_t i = 0; i < size; ++i) {
    all[i] = static_cast<unsigned char>(next_value() * 100.0);
    (i < first ? head[i] : tail[i - first + shift]) = all[i];
  }
  const std::vector<std::uint32_t> start = fresh_state();
  Buffer<std::uint32_t> state(blake3_state_words);
  std::memcpy(state.data(), start.data(), blake3_state_words * sizeof(std::uint32_t));
  no_error(blake3_update(state.data(), head.data(), first));
  no_error(blake3_update(state.data(), tail.data() + shift, size - first));
  no_error(blake3_output(state.data(), out.data(), output_bytes, 0));
  expect(out == plain_output(all.data(), size), "blake3", size, first);
}

}  // namespace

int main() {
  for (const unsigned order : {0u, 1u}) {
    set_order(order);
    for (const std::size_t size : {std::size_t{0}, std::size_t{1}, chunk - 1, chunk, chunk + 1, 2 * chunk,
                                   2 * chunk + 1, 3 * chunk, 17 * chunk + 5, 64 * chunk})
      for (const std::size_t first : {std::size_t{0}, std::size_t{1}, size / 2, 3 * chunk, 5 * chunk + 7, size})
        if (first <= size) check(size, first, first % 5);
  }
  check(8'200 * chunk + 1, 11 * chunk + 3, 0);  // grid-stride: more chunks than the stand-in's grid has threads
  std::puts("hashing: every result as expected");
}
