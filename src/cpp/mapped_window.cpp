#include "mapped_window.hpp"

#include <sys/mman.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>

#include <pthread.h>

namespace aisec_fast {

#if defined(__linux__) && defined(RWF_NOWAIT)

namespace {

// What the handler looks through: the first address of what is shown and the one behind it, 0 where nothing is.
struct Slot {
  std::atomic<std::uintptr_t> begin{0}, end{0};
  std::atomic<bool> lost{false};
  std::atomic<bool> taken{false};
};
static_assert(std::atomic<std::uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free,
              "a signal handler can use nothing else");
constexpr std::uint64_t largest_page = 1 << 16, smallest_page = 1 << 12;  // of any system
constexpr std::size_t slots = 256;                                        // a window that finds none shows nothing
Slot table[slots];

struct sigaction before;  // ours
std::size_t windows = 0;
// Somebody put a handler where ours stood. It may go on to ours, now or later; if ours went on to it, neither would
// end.
bool overlaid = false;
std::mutex handler_mutex;  // guards these

// Of a SIGBUS that is not for us.
void pass_on(int signal, siginfo_t* info, void* context) {
  const bool fault = info->si_code > 0;  // comes again as soon as we return
  if ((before.sa_flags & SA_SIGINFO) != 0) return before.sa_sigaction(signal, info, context);
  if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(signal);
  if (before.sa_handler == SIG_IGN && !fault) return;
  struct sigaction ends{};
  ends.sa_handler = SIG_DFL;
  sigaction(signal, &ends, nullptr);
  if (!fault) raise(signal);  // when we return: it is blocked until then
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Slot& slot : table) {
    const std::uintptr_t begin = slot.begin.load(), end = slot.end.load();
    if (info->si_code <= 0 || address < begin || address >= end) continue;
    if (slot.begin.load() != begin) continue;  // somebody else's, who shows another place now: `end` is of that one
    const int error = errno;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): an atomic integer, for the handler
    void* const zeros = mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    errno = error;
    if (zeros == MAP_FAILED) break;
    slot.lost.store(true);
    return;
  }
  pass_on(signal, info, context);
}

bool is_ours(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == on_bus_error;
}

bool calls_nobody(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) == 0 && (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN);
}

bool put_handler() {
  static const bool forks =
      pthread_atfork([] { handler_mutex.lock(); }, [] { handler_mutex.unlock(); }, [] { handler_mutex.unlock(); }) == 0;
  const std::lock_guard lock(handler_mutex);
  struct sigaction now, ours{};
  ours.sa_sigaction = on_bus_error;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  if (!forks || sigaction(SIGBUS, nullptr, &now) != 0) return false;
  if (!is_ours(now)) {
    overlaid = overlaid || windows > 0;
    if (overlaid && !calls_nobody(now)) return false;
    if (sigaction(SIGBUS, &ours, &before) != 0) return false;
  }
  ++windows;
  return true;
}

void take_handler_away() {
  const std::lock_guard lock(handler_mutex);
  struct sigaction now;
  if (--windows > 0 || sigaction(SIGBUS, nullptr, &now) != 0) return;
  if (is_ours(now))
    sigaction(SIGBUS, &before, nullptr);
  else
    overlaid = true;
}

bool cached(int descriptor, std::uint64_t offset) {
  unsigned char byte;
  const iovec place{&byte, 1};
  return preadv2(descriptor, &place, 1, static_cast<off_t>(offset), RWF_NOWAIT) == 1;
}

}  // namespace

MappedWindow::MappedWindow() {
  Slot* const found = std::find_if(table, table + slots, [](Slot& slot) { return !slot.taken.exchange(true); });
  if (found == table + slots) return;
  if (put_handler())
    slot_ = static_cast<std::size_t>(found - table);
  else
    found->taken.store(false);
}

MappedWindow::~MappedWindow() {
  if (slot_ == none) return;
  clear();
  table[slot_].taken.store(false);
  take_handler_away();
}

const unsigned char* MappedWindow::show(int descriptor, std::uint64_t offset, std::size_t size) {
  if (slot_ == none || size == 0) return nullptr;
  clear();
  const auto ahead = static_cast<std::size_t>(offset % largest_page);
  void* const shown =
      mmap(nullptr, ahead + size, PROT_READ, MAP_SHARED, descriptor, static_cast<off_t>(offset - ahead));
  if (shown == MAP_FAILED) return nullptr;
  Slot& slot = table[slot_];
  slot.lost.store(false);
  slot.end.store(reinterpret_cast<std::uintptr_t>(shown) + ahead + size);
  slot.begin.store(reinterpret_cast<std::uintptr_t>(shown));
  return static_cast<const unsigned char*>(shown) + ahead;
}

void MappedWindow::map_pages(const unsigned char* shown, std::size_t size) {
  constexpr int populate_read = 22;  // MADV_POPULATE_READ, which is younger than some headers; Linux 5.14 has it
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(shown) / smallest_page * smallest_page;
  const std::size_t bytes = reinterpret_cast<std::uintptr_t>(shown) + size - begin;
  // NOLINTNEXTLINE(performance-no-int-to-ptr): rounded to a page
  if (madvise(reinterpret_cast<void*>(begin), bytes, populate_read) == 0 || errno != EINVAL) return;
  for (std::size_t at = 0; at < size; at += smallest_page)
    static_cast<void>(*const_cast<volatile const unsigned char*>(shown + at));
}

void MappedWindow::clear() {
  Slot& slot = table[slot_];
  const std::uintptr_t begin = slot.begin.load(), end = slot.end.load();
  if (begin == 0) return;
  slot.begin.store(0);
  slot.end.store(0);
  munmap(reinterpret_cast<void*>(begin), end - begin);  // NOLINT(performance-no-int-to-ptr)
}

bool MappedWindow::lost() const { return slot_ != none && table[slot_].lost.load(); }

bool in_page_cache(int descriptor, std::uint64_t offset, std::size_t size) {
  return size > 0 && cached(descriptor, offset) && cached(descriptor, offset + size - 1);
}

#else  // nothing is shown

MappedWindow::MappedWindow() = default;
MappedWindow::~MappedWindow() = default;
const unsigned char* MappedWindow::show(int, std::uint64_t, std::size_t) { return nullptr; }
void MappedWindow::map_pages(const unsigned char*, std::size_t) {}
void MappedWindow::clear() {}
bool MappedWindow::lost() const { return false; }
bool in_page_cache(int, std::uint64_t, std::size_t) { return false; }

#endif

}  // namespace aisec_fast
