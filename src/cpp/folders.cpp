#include "folders.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>
#include <memory>
#include <string_view>

#if defined(__linux__)
#include <sys/syscall.h>
#endif

namespace aisec_fast {
namespace {

constexpr std::size_t entries_between = 4096;  // how many are listed before `between` is called

// Where a folder is only passed through, it need not be readable.
#if defined(O_PATH)
constexpr int pass_through = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
#else
constexpr int pass_through = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
#endif

std::atomic<bool> openat2_wanted{true};

#if defined(__linux__)
constexpr long openat2_number = 437;  // on every architecture

// linux/openat2.h, which older systems lack
struct OpenHow {
  std::uint64_t flags, mode, resolve;
};
constexpr std::uint64_t resolve_no_magic_links = 2, resolve_no_symlinks = 4, resolve_beneath = 8;

int openat2(int root, const char* place, int flags) {
  const OpenHow how{static_cast<std::uint64_t>(flags), 0,
                    resolve_no_magic_links | resolve_no_symlinks | resolve_beneath};
  return static_cast<int>(syscall(openat2_number, root, place, &how, sizeof how));
}

// A sandbox may forbid what it does not know.
bool kernel_has_openat2() {
  static const bool found = [] {
    const int here = openat2(AT_FDCWD, ".", O_PATH | O_CLOEXEC);
    if (here >= 0) close(here);
    return here >= 0 || (errno != ENOSYS && errno != EPERM && errno != EINVAL && errno != E2BIG);
  }();
  return found;
}
#else
int openat2(int, const char*, int) { return -1; }
bool kernel_has_openat2() { return false; }
#endif

// Linux says ENOTDIR where a folder is wanted and a link is found; openat2 says ELOOP.
void tell_link(int folder, const char* name) {
  struct stat status;
  const int before = errno;
  if (before == ENOTDIR && fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(status.st_mode))
    errno = ELOOP;
  else
    errno = before;
}

int walk(int root, std::string_view place, int flags) {
  int folder = root;
  for (;;) {
    const std::size_t slash = place.find('/');
    const bool last = slash == std::string_view::npos;
    const std::string part(place.substr(0, slash));
    int next = -1;
    if (part == "..")
      errno = EXDEV;
    else
      next = openat(folder, part.empty() ? "." : part.c_str(), last ? flags | O_NOFOLLOW : pass_through);
    if (next < 0) tell_link(folder, part.c_str());
    const int error = errno;
    if (folder != root) close(folder);
    errno = error;
    if (last || next < 0) return next;
    folder = next;
    place.remove_prefix(slash + 1);
  }
}

}  // namespace

bool uses_openat2() { return openat2_wanted.load() && kernel_has_openat2(); }
void use_openat2(bool wanted) { openat2_wanted.store(wanted); }

int open_beneath(int root, const char* place, int flags) {
  if (!uses_openat2() || std::strlen(place) >= PATH_MAX) return walk(root, place, flags);
  for (int tries = 0; tries < 100; ++tries) {  // EAGAIN: something was renamed meanwhile
    const int found = openat2(root, *place == 0 ? "." : place, flags);
    if (found >= 0 || errno != EAGAIN) return found;
  }
  return walk(root, place, flags);
}

int list_folder(int root, const char* folder, std::vector<FolderEntry>& entries, const std::function<void()>& between) {
  const int descriptor = open_beneath(root, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return errno;
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(fdopendir(descriptor), closedir);
  if (!stream) {
    const int error = errno;
    close(descriptor);
    return error;
  }
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(stream.get());  // NOLINT(concurrency-mt-unsafe): the stream is ours
    if (!entry) return errno;
    if (std::strcmp(entry->d_name, ".") == 0 || std::strcmp(entry->d_name, "..") == 0) continue;
    struct stat status;
    const bool told = fstatat(descriptor, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0;
    entries.push_back({entry->d_name, told ? status.st_size : 0, told ? status.st_mode : 0, told ? 0 : errno});
    if (entries.size() % entries_between == 0) between();
  }
}

}  // namespace aisec_fast
