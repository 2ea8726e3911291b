#pragma once
// Digests of many records over threads, on top of the kernels of one instruction set. Knows nothing of Python.
// docs/hashing-records.md; the callers have checked that every record lies in memory that may be read.
#include <cstddef>
#include <cstdint>

#include "aisec_fast/kernels.hpp"

namespace aisec_fast {

// max_threads = 0: as many as pay off.
void blake3_records(const Records& records, std::size_t count, const std::uint32_t* key, std::uint32_t mode,
                    std::size_t max_threads);
void sha256_records(const Records& records, std::size_t count, const std::uint32_t* inner, const std::uint32_t* outer,
                    std::size_t max_threads);
void siphash24_records(const Records& records, std::size_t count, const std::uint64_t* key, std::size_t max_threads);

}  // namespace aisec_fast
