#pragma once
// Opening what lies in a folder, and nothing outside of it, whatever somebody else does to the folder meanwhile.
// Knows nothing of Python. docs/hashing-files.md says what is promised.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace aisec_fast {

// A descriptor of `place`, a path relative to the folder that `root` is open on, of any length; -1 and errno if there
// is none. No link is followed in any part of it (ELOOP), and ".." is not taken (EXDEV).
int open_beneath(int root, const char* place, int flags);

// Whether open_beneath asks openat2, which resolves a path in one step (Linux 5.6), where the kernel has it; otherwise
// it opens one folder after another.
bool uses_openat2();
void use_openat2(bool wanted);

struct FolderEntry {
  std::string name;
  std::int64_t size;   // in bytes
  std::uint32_t mode;  // st_mode, of a link itself; 0 if it could not be asked for
  int error;           // errno then, otherwise 0
};

// What is in a folder beneath `root` ("": root itself), in no order, into `entries`. Returns 0 or errno. `between` is
// called once in a while, and may throw.
int list_folder(int root, const char* folder, std::vector<FolderEntry>& entries, const std::function<void()>& between);

}  // namespace aisec_fast
