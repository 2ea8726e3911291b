#pragma once
// Hashing over whole inputs and threads, on top of the kernels of one instruction set. Knows nothing of Python.
// docs/hashing.md has the layout of the states; the callers have checked them.
#include <cstddef>
#include <cstdint>

#include "aisec_fast/hashing_state.hpp"

namespace aisec_fast {

// max_threads = 0: as many as pay off. `leaf`, if there is one, belongs to the state before and after.
void blake3_update(std::uint32_t* state, const unsigned char* data, std::size_t size, std::size_t max_threads,
                   Blake3Leaf* leaf = nullptr);
void blake3_output(const std::uint32_t* state, unsigned char* out, std::size_t size, std::uint64_t seek,
                   const Blake3Leaf* leaf = nullptr);
void sha256_update(std::uint32_t* state, const unsigned char* data, std::size_t size);
void sha256_output(const std::uint32_t* state, unsigned char* out);

}  // namespace aisec_fast
