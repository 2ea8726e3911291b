#pragma once
// A pool of threads of our own: OpenMP hangs in forked children and clashes with torch's copy of it
// (docs/decisions/0001-no-openmp.md).
#include <cstddef>
#include <cstdint>
#include <functional>

namespace aisec_fast {

using Range = std::function<void(std::size_t begin, std::size_t end)>;

// Splits [0, count) into contiguous ranges of at least `least` and runs them on at most thread_count() threads, one of
// them the caller. Returns when all are done; the first exception is thrown again. Results must not depend on the
// split.
void parallel_for(std::size_t count, std::size_t least, const Range& range);

// The same on at most `most` threads, but each takes its range in chunks, and then chunks of others' ranges: for long
// work, where a thread that has to share its core must not hold up the rest. Its own come first as they may be in its
// cache: the loop before this one, of ours or of torch's, was split in the same way. The last chunks of a range are
// smaller, down to `least`, so that nobody waits for the end of a whole one.
void parallel_chunks(std::size_t count, std::size_t least, std::size_t chunk, std::size_t most, const Range& range);

// Lets loops run on the threads of the libgomp at `path`, which the process must have loaded already (torch's), as long
// as the caller's torch uses more than one. False if it is not there. A forked child goes back to threads of our own.
// Why: docs/decisions/0006-torchs-threads.md.
bool share_openmp(const char* path);
bool shares_openmp();

std::size_t thread_count();
void set_thread_count(std::size_t threads);

}  // namespace aisec_fast
