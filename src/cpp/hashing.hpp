#pragma once
// Hashing over whole inputs and threads, on top of the kernels of one instruction set. Knows nothing of Python.
// docs/hashing.md has the layout of the states; the callers have checked them.
#include <cstddef>
#include <cstdint>

namespace aisec_fast {

// max_threads = 0: as many as pay off.
void blake3_update(std::uint32_t* state, const unsigned char* data, std::size_t size, std::size_t max_threads);
void blake3_output(const std::uint32_t* state, unsigned char* out, std::size_t size, std::uint64_t seek);
void sha256_update(std::uint32_t* state, const unsigned char* data, std::size_t size);
void sha256_output(const std::uint32_t* state, unsigned char* out);

}  // namespace aisec_fast
