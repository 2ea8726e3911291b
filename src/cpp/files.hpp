#pragma once
// Digests of many files at once, on threads of their own: a worker that waits for a disk must not hold up the loops of
// the pool, and the caller stays free to look for signals. Knows nothing of Python. docs/hashing-files.md.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace aisec_fast {

enum class FileDigest { blake3, sha256 };

struct FileToHash {
  int root;            // descriptor of the folder that it is opened beneath, no link followed; `named` for none
  const char* place;   // relative to that folder; where there is none, a path whose links are followed
  std::uint64_t size;  // as far as known: what work is shared by
};
constexpr int named = -1;

enum class FileOutcome { hashed, failed, not_regular, resized, touched };

// first, second: errno of a failure; st_mode of what is no regular file; the sizes before and after.
struct FileAnswer {
  FileOutcome outcome;
  std::uint64_t first, second;
};

class FileHashing {
 public:
  // Starts. `digests` has 32 bytes for each file; it and the places stay until this object is gone. Unless keep_going,
  // the first failure stops everything. std::system_error if not a single thread can be started.
  FileHashing(std::vector<FileToHash> files, FileDigest digest, std::size_t threads, bool keep_going,
              unsigned char* digests);
  ~FileHashing();  // stops at the next block
  FileHashing(const FileHashing&) = delete;
  FileHashing& operator=(const FileHashing&) = delete;

  // Waits, for so long at most; true if all is done or has failed. Throws what a worker has thrown.
  bool wait(std::chrono::microseconds most);
  std::uint64_t bytes_done() const;
  // When wait has returned true. Files that nobody came to are not hashed: only after a failure.
  const std::vector<FileAnswer>& answers() const;

 private:
  class Run;
  std::unique_ptr<Run> run_;
};

}  // namespace aisec_fast
