#pragma once
// Opening and reading the files of one call, from several threads: what went wrong with each, and how far they are.
#include <sys/stat.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "files.hpp"
#include "mapped_window.hpp"

namespace aisec_fast {

// A regular file that is open.
struct OpenFile {
  std::size_t index;
  int descriptor;
  struct stat before;

  std::uint64_t size() const { return static_cast<std::uint64_t>(before.st_size); }
};

class FileReader {
 public:
  FileReader(std::vector<FileToHash> files, bool keep_going);

  std::size_t count() const { return files_.size(); }
  std::uint64_t size(std::size_t index) const { return files_[index].size; }  // before it is opened

  // no_descriptor: there is none left, but some of ours will be closed.
  enum class Opening { open, failed, no_descriptor };
  Opening open(std::size_t index, OpenFile& file);
  void close(const OpenFile& file);
  // `size` bytes are there and, if these are the last, not one more: there is room for it. False if not, or if reading
  // failed.
  bool read_exactly(const OpenFile& file, unsigned char* bytes, std::size_t size, std::uint64_t offset);
  // Whether so many bytes of it that `window` has shown were its own.
  bool shown_truly(const OpenFile& file, const MappedWindow& window, std::size_t size);
  // Whether a file that was read to its end is what it was before.
  bool unchanged(const OpenFile& file);
  void finish(std::size_t index) { answers_[index] = {FileOutcome::hashed, 0, 0}; }

  // Everybody ends at the next block; a failure does it too, unless keep_going.
  void stop() { stop_.store(true); }
  bool stopped() const { return stop_.load(std::memory_order_relaxed); }
  std::uint64_t bytes_done() const { return done_.load(std::memory_order_relaxed); }
  const std::vector<FileAnswer>& answers() const { return answers_; }

 private:
  void fail(std::size_t index, FileOutcome outcome, std::uint64_t first, std::uint64_t second = 0);
  bool read(const OpenFile& file, unsigned char* bytes, std::size_t size, std::uint64_t offset, std::size_t& count);

  const std::vector<FileToHash> files_;
  const bool keep_going_;
  std::vector<FileAnswer> answers_;
  std::mutex failures_;  // several workers may find that a file failed: the first one's answer stays
  std::atomic<std::size_t> open_{0};
  std::atomic<std::uint64_t> done_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace aisec_fast
