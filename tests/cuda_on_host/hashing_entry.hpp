#pragma once
// The C functions of hashing.cpp.
#include <cstddef>
#include <cstdint>

extern "C" {
void set_order(unsigned order);
const char* blake3_update(std::uint32_t* state, const unsigned char* data, std::size_t size);
const char* blake3_output(const std::uint32_t* state, unsigned char* out, std::size_t size, std::uint64_t seek);
}
