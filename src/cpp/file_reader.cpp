#include "file_reader.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "folders.hpp"

namespace aisec_fast {
namespace {

constexpr int attempts = 3;  // to open a file when there is no descriptor left, and none of them is ours
constexpr auto nap = std::chrono::milliseconds(1);

struct timespec modified(const struct stat& status) {
#if defined(__APPLE__)
  return status.st_mtimespec;
#else
  return status.st_mtim;
#endif
}

struct timespec changed_at(const struct stat& status) {
#if defined(__APPLE__)
  return status.st_ctimespec;
#else
  return status.st_ctim;
#endif
}

bool same(const struct timespec& a, const struct timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

std::uint64_t size_of(const struct stat& status) { return static_cast<std::uint64_t>(status.st_size); }

}  // namespace

FileReader::FileReader(std::vector<FileToHash> files, bool keep_going)
    : files_(std::move(files)), keep_going_(keep_going), answers_(files_.size(), {FileOutcome::failed, 0, 0}) {}

void FileReader::fail(std::size_t index, FileOutcome outcome, std::uint64_t first, std::uint64_t second) {
  {
    const std::lock_guard lock(failures_);
    FileAnswer& answer = answers_[index];
    if (answer.outcome == FileOutcome::failed && answer.first == 0) answer = {outcome, first, second};
  }
  if (!keep_going_) stop();
}

FileReader::Opening FileReader::open(std::size_t index, OpenFile& file) {
  constexpr int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;  // never waits for the other end of a FIFO
  const FileToHash& wanted = files_[index];
  file.index = index;
  for (int alone = 0;;) {
    const bool others = open_.load() > 0;
    file.descriptor =
        wanted.root == named ? ::open(wanted.place, flags) : open_beneath(wanted.root, wanted.place, flags);
    if (file.descriptor >= 0) break;
    const bool none_left = errno == EMFILE || errno == ENFILE;
    if (none_left && others) return Opening::no_descriptor;
    if (!none_left || ++alone == attempts) {
      fail(index, FileOutcome::failed, static_cast<std::uint64_t>(errno));
      return Opening::failed;
    }
    std::this_thread::sleep_for(nap);  // another worker may have been about to be counted
  }
  open_.fetch_add(1);
  if (fstat(file.descriptor, &file.before) != 0)
    fail(index, FileOutcome::failed, static_cast<std::uint64_t>(errno));
  else if (!S_ISREG(file.before.st_mode))
    fail(index, FileOutcome::not_regular, file.before.st_mode);
  else
    return Opening::open;
  close(file);
  return Opening::failed;
}

void FileReader::close(const OpenFile& file) {
  ::close(file.descriptor);
  open_.fetch_sub(1);
}

// All of the bytes from `offset` on that there are, `size` at most; false if reading failed.
bool FileReader::read(const OpenFile& file, unsigned char* bytes, std::size_t size, std::uint64_t offset,
                      std::size_t& count) {
  for (count = 0; count < size;) {
    const ssize_t got = pread(file.descriptor, bytes + count, size - count, static_cast<off_t>(offset + count));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      fail(file.index, FileOutcome::failed, static_cast<std::uint64_t>(errno));
      return false;
    }
    if (got == 0) break;
    count += static_cast<std::size_t>(got);
  }
  done_.fetch_add(count, std::memory_order_relaxed);
  return true;
}

bool FileReader::read_exactly(const OpenFile& file, unsigned char* bytes, std::size_t size, std::uint64_t offset) {
  const bool last = offset + size == file.size();
  std::size_t count = 0;
  if (!read(file, bytes, size + (last ? 1 : 0), offset, count)) return false;
  if (count == size) return true;
  struct stat after;
  const bool told = fstat(file.descriptor, &after) == 0 && size_of(after) != file.size();
  fail(file.index, FileOutcome::resized, file.size(), told ? size_of(after) : offset + count);
  return false;
}

bool FileReader::shown_truly(const OpenFile& file, const MappedWindow& window, std::size_t size) {
  done_.fetch_add(size, std::memory_order_relaxed);
  if (!window.lost()) return true;
  if (unchanged(file)) fail(file.index, FileOutcome::failed, EIO);  // the disk's fault then, or the memory's
  return false;
}

bool FileReader::unchanged(const OpenFile& file) {
  struct stat after;
  if (fstat(file.descriptor, &after) != 0)
    fail(file.index, FileOutcome::failed, static_cast<std::uint64_t>(errno));
  else if (after.st_size != file.before.st_size)
    fail(file.index, FileOutcome::resized, file.size(), size_of(after));
  else if (!same(modified(after), modified(file.before)))
    fail(file.index, FileOutcome::touched, 0);
  else if (!same(changed_at(after), changed_at(file.before)))
    fail(file.index, FileOutcome::touched, 1);
  else
    return true;
  return false;
}

}  // namespace aisec_fast
