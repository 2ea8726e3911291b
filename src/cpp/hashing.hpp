#pragma once
// Hashing over whole inputs and threads, on top of the kernels of one instruction set. Knows nothing of Python.
// docs/hashing.md has the layout of the states; the callers have checked them.
#include <cstddef>
#include <cstdint>

namespace aisec_fast {

// The chaining value of a whole chunk in a state's buffer, where it is known. It lies beside the state: computed
// together with the chunks before it it often costs nothing, but when the state is asked for it has to be a chunk's.
struct Blake3Leaf {
  bool known = false;
  std::uint32_t value[8];
};

// max_threads = 0: as many as pay off. `leaf`, if there is one, belongs to the state before and after.
void blake3_update(std::uint32_t* state, const unsigned char* data, std::size_t size, std::size_t max_threads,
                   Blake3Leaf* leaf = nullptr);
void blake3_output(const std::uint32_t* state, unsigned char* out, std::size_t size, std::uint64_t seek,
                   const Blake3Leaf* leaf = nullptr);
void sha256_update(std::uint32_t* state, const unsigned char* data, std::size_t size);
void sha256_output(const std::uint32_t* state, unsigned char* out);

}  // namespace aisec_fast
