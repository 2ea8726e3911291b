#include "records.hpp"

#include <algorithm>
#include <cstring>

#include "aisec_fast/hashing_state.hpp"
#include "hashing.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

// A record costs about as much as this many of its bytes, whatever its length.
constexpr std::size_t record_cost = 128;
constexpr std::size_t least_cost = std::size_t{1} << 20;  // smallest work that is worth a thread, about 100 us
constexpr std::size_t chunk_cost = std::size_t{1} << 17;  // what a thread takes at a time

template <class Offset>
std::uint64_t total_bytes(const Records& records, std::size_t count) {
  const auto* starts = static_cast<const Offset*>(records.starts);
  const auto* ends = static_cast<const Offset*>(records.ends);
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < count; ++i) total += ends[i] - starts[i];
  return total;
}

template <class Range>
void over_threads(const Records& records, std::size_t count, std::size_t max_threads, const Range& range) {
  if (count == 0) return;
  const std::uint64_t bytes =
      records.wide ? total_bytes<std::uint64_t>(records, count) : total_bytes<std::uint32_t>(records, count);
  const std::size_t mean = bytes / count + records.size + record_cost;
  parallel_chunks(count, std::max(std::size_t{1}, least_cost / mean), std::max(std::size_t{1}, chunk_cost / mean),
                  max_threads == 0 ? thread_count() : max_threads, range);
}

std::size_t size_of(const Records& records, std::size_t i) {
  if (records.wide)
    return static_cast<const std::uint64_t*>(records.ends)[i] - static_cast<const std::uint64_t*>(records.starts)[i];
  return static_cast<const std::uint32_t*>(records.ends)[i] - static_cast<const std::uint32_t*>(records.starts)[i];
}

std::size_t start_of(const Records& records, std::size_t i) {
  return records.wide ? static_cast<const std::uint64_t*>(records.starts)[i]
                      : static_cast<const std::uint32_t*>(records.starts)[i];
}

// Any record and any size of digest: as a hasher does it.
void blake3_record(const Records& records, std::size_t i, const std::uint32_t* key, std::uint32_t mode) {
  std::uint32_t state[blake3_state_words] = {};
  std::memcpy(state, key, 32);
  state[8] = mode;
  blake3_update(state, records.data + start_of(records, i), size_of(records, i), 1);
  blake3_output(state, records.out + i * records.size, records.size, 0);
}

}  // namespace

void blake3_records(const Records& records, std::size_t count, const std::uint32_t* key, std::uint32_t mode,
                    std::size_t max_threads) {
  const auto kernel = active_kernels().records.blake3;
  const bool in_lanes = records.size <= blake3_block_bytes;
  over_threads(records, count, max_threads, [&](std::size_t first, std::size_t last) {
    std::size_t left = in_lanes ? kernel(records, key, mode, first, last) : last - first;
    for (std::size_t i = first; left > 0; ++i) {
      if (in_lanes && size_of(records, i) <= blake3_chunk_bytes) continue;
      blake3_record(records, i, key, mode);
      --left;
    }
  });
}

void sha256_records(const Records& records, std::size_t count, const std::uint32_t* inner, const std::uint32_t* outer,
                    std::size_t max_threads) {
  const auto kernel = active_kernels().records.sha256;
  over_threads(records, count, max_threads,
               [&](std::size_t first, std::size_t last) { kernel(records, inner, outer, first, last); });
}

void siphash24_records(const Records& records, std::size_t count, const std::uint64_t* key, std::size_t max_threads) {
  const auto kernel = active_kernels().records.siphash24;
  over_threads(records, count, max_threads,
               [&](std::size_t first, std::size_t last) { kernel(records, key, first, last); });
}

}  // namespace aisec_fast
