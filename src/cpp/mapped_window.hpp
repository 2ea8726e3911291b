#pragma once
// Parts of files shown in memory where they lie in the page cache, without the copy that reading makes. Knows nothing
// of Python. docs/hashing-files.md says what is promised of files that change meanwhile.
#include <cstddef>
#include <cstdint>

namespace aisec_fast {

// One mapping. While there is a window, the process has a handler of SIGBUS: the system's answer to who touches what is
// no longer in the file. It puts zeros there and notes it, if a window shows the place; anybody else's SIGBUS goes on
// to the handler that was there before.
class MappedWindow {
 public:
  MappedWindow();
  ~MappedWindow();
  MappedWindow(const MappedWindow&) = delete;
  MappedWindow& operator=(const MappedWindow&) = delete;

  // These bytes of a file, until the next call; pages are mapped as they are touched, some neighbours at a time. Null
  // where the system cannot map them.
  const unsigned char* show(int descriptor, std::uint64_t offset, std::size_t size);
  // Maps all pages of some bytes that are shown, from any thread: who reads many places ahead fetches nothing where no
  // page is mapped.
  static void map_pages(const unsigned char* shown, std::size_t size);
  // Whether some of what is shown went away while it was looked at: zeros may have been seen in its place.
  bool lost() const;

 private:
  static constexpr std::size_t none = ~std::size_t{0};
  void clear();
  std::size_t slot_ = none;
};

// Whether the first and the last byte are in the page cache, as far as the system says so: if not, they are better read
// than shown.
bool in_page_cache(int descriptor, std::uint64_t offset, std::size_t size);

}  // namespace aisec_fast
