#include "files.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "aisec_fast/hashing_state.hpp"
#include "file_reader.hpp"
#include "hashing.hpp"
#include "instruction_sets.hpp"
#include "sha256_messages.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t digest_bytes = 32;
constexpr std::uint32_t initial_words[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                            0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};  // of both functions

// A worker reads this much and hashes it before it reads on: it stays in the second-level cache.
constexpr std::size_t memory_bytes = std::size_t{1} << 18;
constexpr std::size_t small_bytes = std::size_t{1} << 16;  // files up to here are read whole, several into one memory
constexpr std::size_t small_together = 64;                 // and so many are taken at a time
constexpr std::size_t slack = 2 * sha256_block;            // behind the bytes of a file: one more, or SHA-256's padding
// Neighbouring streams must not fall on the same lines of the first-level cache.
constexpr std::size_t lane_gap = 4096 + 64;
constexpr std::size_t piece_bytes = std::size_t{1} << 20;  // of a BLAKE3 tree: what workers share
constexpr std::size_t most_pieces = 8;                     // that a worker takes at a time
constexpr std::size_t block_bytes = std::size_t{1} << 17;  // of a piece, read at a time
constexpr std::size_t block_chunks = block_bytes / blake3_chunk_bytes;
// Of a tree's file, mapped for all workers together: for mappings of their own they wait for one another, and each
// one's end interrupts the processors of all.
constexpr std::uint64_t segment_bytes = std::uint64_t{1} << 26;
// Of a stream, in a turn, where it need not be read: an eighth of what is left, within these bounds.
constexpr std::uint64_t least_shown = std::uint64_t{1} << 18, most_shown = std::uint64_t{1} << 22;
// Mapping changes what all threads of a process share: with more of them they would wait for one another. They read.
constexpr std::size_t most_that_map = 8;
constexpr std::size_t small_for_a_thread = 8;  // fewer small files are not worth another thread
constexpr std::size_t at_once_bytes = std::size_t{1} << 18, at_once_files = 16;  // less is not worth a thread

constexpr auto nap = std::chrono::milliseconds(1);  // between two looks for a free descriptor
constexpr auto idle = std::chrono::milliseconds(5);

struct ChainingValue {
  std::uint32_t words[8];
  bool known = false;
};

// The roots of `roots` full subtrees side by side take the first places.
void merge(std::uint32_t* values, std::size_t count, std::size_t roots, const HashingKernels& kernels) {
  for (; count > roots; count /= 2) kernels.blake3_parents(values, count / 2, initial_words, 0, values);
}

// A file whose SHA-256 is under way; what was read of it ends at a block's border.
struct Stream {
  OpenFile file;
  std::uint64_t offset;
  std::uint32_t state[8];

  std::uint64_t left() const { return file.size() - offset; }
};

// A file of some size as BLAKE3's pieces: whole ones, then ever smaller ones down to a block, so that little is left
// for the one who ends the tree. The last chunk, which may be its root, is in none of them.
class Pieces {
 public:
  Pieces() = default;
  explicit Pieces(std::uint64_t bytes)
      : whole_((bytes - 1) / piece_bytes),
        blocks_(static_cast<std::size_t>((bytes - 1) % piece_bytes / block_bytes)),
        count_(whole_ + static_cast<std::uint64_t>(std::popcount(blocks_))) {}

  std::uint64_t count() const { return count_; }
  std::uint64_t begin(std::uint64_t piece) const {
    std::uint64_t at = std::min(piece, whole_) * piece_bytes;
    std::size_t left = blocks_;
    for (std::uint64_t i = whole_; i < piece; ++i, left -= std::bit_floor(left))
      at += std::bit_floor(left) * block_bytes;
    return at;
  }
  std::size_t size(std::uint64_t piece) const { return static_cast<std::size_t>(begin(piece + 1) - begin(piece)); }

 private:
  std::uint64_t whole_ = 0;
  std::size_t blocks_ = 0;
  std::uint64_t count_ = 0;
};

// Part of a tree's file, shown to all workers.
struct Segment {
  std::uint64_t begin, end;
  std::optional<MappedWindow> window;    // none: everything is read
  const unsigned char* shown = nullptr;  // null: it has to be read
};

// A file whose BLAKE3 is under way. Pieces are handed out in order, come back in any, and are pushed in order.
struct Tree {
  OpenFile file{};
  Pieces pieces;
  std::uint64_t next = 0, pushed = 0;
  std::shared_ptr<Segment> segment;  // where `next` is, or was
  std::size_t busy = 0;              // workers that are at a piece
  bool failed = false;
  std::deque<ChainingValue> waiting;  // from `pushed` on
  std::uint32_t words[blake3_state_words] = {};

  std::uint64_t left() const { return pieces.count() - next; }
};

// What a worker works on: memory to read into, and windows (none: it reads everything).
struct Desk {
  explicit Desk(std::size_t count)
      : memory(std::make_unique_for_overwrite<unsigned char[]>(memory_bytes + most_lanes * lane_gap + slack)),
        windows(count) {}

  // Null: it has to be read.
  const unsigned char* show(std::size_t window, const OpenFile& file, std::uint64_t offset, std::size_t size) {
    if (window >= windows.size() || !in_page_cache(file.descriptor, offset, size)) return nullptr;
    return windows[window].show(file.descriptor, offset, size);
  }

  const std::unique_ptr<unsigned char[]> memory;
  std::deque<MappedWindow> windows;  // these cannot move
};

// Signals are for the interpreter's threads: a new thread starts with all of them blocked but the one that windows
// need.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace

// Large files come first, the largest of them before the others; several are under way at once, and workers take turns
// at them: what is under way belongs to nobody between two turns, so nobody is idle while another has two. Small files,
// in the order that they have on the disk as far as we know it, fill what is left.
class FileHashing::Run {
 public:
  Run(std::vector<FileToHash> files, FileDigest digest, std::size_t threads, bool keep_going, unsigned char* digests)
      : reader_(std::move(files), keep_going),
        digest_(digest),
        digests_(digests),
        kernels_(active_kernels().hashing),
        lanes_(std::min(most_lanes, kernels_.sha256_side_by_side)),
        lane_bytes_(memory_bytes / lanes_ / sha256_block * sha256_block) {
    std::uint64_t units = 0;
    for (std::size_t index = 0; index < reader_.count(); ++index) {
      if (reader_.size(index) <= small_bytes) {
        small_.push_back(index);
      } else {
        large_.push_back(index);
        left_ += reader_.size(index);
        units += digest == FileDigest::sha256 ? 1 : reader_.size(index) / piece_bytes + 1;
      }
    }
    std::stable_sort(large_.begin(), large_.end(),
                     [this](std::size_t a, std::size_t b) { return reader_.size(a) > reader_.size(b); });
    unfinished_ = large_.size();
    units += small_.size() / small_for_a_thread + (small_.size() % small_for_a_thread != 0);
    workers_ = static_cast<std::size_t>(std::clamp<std::uint64_t>(units, 1, threads));
    maps_ = !large_.empty() && workers_ <= most_that_map;
    most_open_ = workers_ * (digest == FileDigest::sha256 ? lanes_ : 1);
    last_ones_ = digest == FileDigest::sha256 ? 3 * most_open_ : 0;
    start();
  }

  ~Run() {
    reader_.stop();
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    for (const Stream& stream : ready_) ::close(stream.file.descriptor);
    for (const auto& tree : trees_) ::close(tree->file.descriptor);
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  bool wait(std::chrono::microseconds most) {
    std::unique_lock lock(mutex_);
    ended_.wait_for(lock, most, [this] { return running_ == 0; });
    if (running_ == 0 && thrown_) std::rethrow_exception(thrown_);
    return running_ == 0;
  }

  std::uint64_t bytes_done() const { return reader_.bytes_done(); }
  const std::vector<FileAnswer>& answers() const { return reader_.answers(); }

 private:
  void start() {
    std::uint64_t total = left_;
    for (const std::size_t index : small_) total += reader_.size(index);
    if (total <= at_once_bytes && reader_.count() <= at_once_files) {
      maps_ = false;  // the caller may block SIGBUS
      return work(0);
    }
    running_ = workers_;
    const SignalsBlocked blocked;
    try {
      for (std::size_t worker = 0; worker < workers_; ++worker) threads_.emplace_back([this] { run(); });
    } catch (const std::exception&) {  // those that there are do the work
      const std::lock_guard lock(mutex_);
      running_ -= workers_ - threads_.size();
      if (threads_.empty()) throw;
    }
  }

  void run() {
    std::exception_ptr thrown;
    try {
      work(maps_ && digest_ == FileDigest::sha256 ? lanes_ : 0);
    } catch (...) {
      thrown = std::current_exception();
      reader_.stop();
    }
    const std::lock_guard lock(mutex_);
    if (thrown && !thrown_) thrown_ = thrown;
    --running_;
    ended_.notify_all();
    changed_.notify_all();
  }

  void work(std::size_t windows) {
    Desk desk(windows);
    while (!reader_.stopped()) {
      if (digest_ == FileDigest::sha256 ? turn_at_streams(desk) : turn_at_a_tree(desk)) continue;
      if (some_small(desk.memory.get())) continue;
      std::unique_lock lock(mutex_);
      if (unfinished_ == 0) return;
      changed_.wait_for(lock, idle);
    }
  }

  unsigned char* digest_of(std::size_t index) { return digests_ + digest_bytes * index; }

  // --- Small files ---------------------------------------------------------------------------------------------------

  // Takes some, reads them whole, then hashes them. False if none is left.
  bool some_small(unsigned char* memory) {
    const std::size_t taken = next_small_.load(std::memory_order_relaxed);
    if (taken >= small_.size()) return false;
    const std::size_t fair = (small_.size() - taken) / (4 * workers_) + 1;
    const std::size_t begin = next_small_.fetch_add(std::min(small_together, fair));
    const std::size_t end = std::min(small_.size(), begin + std::min(small_together, fair));
    Message messages[small_together];
    std::size_t count = 0, used = 0;
    for (std::size_t next = begin; next < end && !reader_.stopped(); ++next) {
      if (used + small_bytes + slack > memory_bytes) {
        hash_small(messages, count, memory);
        count = used = 0;
      }
      OpenFile file;
      if (!open_small(small_[next], file)) continue;
      const std::size_t size = file.size();
      if (size > small_bytes) {  // it has grown since its size was asked for
        const std::lock_guard lock(mutex_);
        large_.push_back(file.index);
        left_ += size;
        ++unfinished_;
      } else if (reader_.read_exactly(file, memory + used, size, 0) && reader_.unchanged(file)) {
        messages[count++] = {file.index, used, size};
        used += (size + slack) / sha256_block * sha256_block;
      }
      reader_.close(file);
    }
    hash_small(messages, count, memory);
    return begin < end;
  }

  bool open_small(std::size_t index, OpenFile& file) {
    for (;;) {
      const FileReader::Opening opening = reader_.open(index, file);
      if (opening != FileReader::Opening::no_descriptor) return opening == FileReader::Opening::open;
      if (reader_.stopped()) return false;
      std::this_thread::sleep_for(nap);  // who holds one does not wait for us
    }
  }

  struct Message {
    std::size_t index, at, size;
  };

  void hash_small(const Message* messages, std::size_t count, unsigned char* memory) {
    if (digest_ == FileDigest::sha256) {
      std::uint32_t states[small_together][8];
      Stretch stretches[small_together];
      for (std::size_t i = 0; i < count; ++i) {
        std::memcpy(states[i], initial_words, sizeof initial_words);
        unsigned char* const data = memory + messages[i].at;
        stretches[i] = {states[i], data, pad_sha256(data, messages[i].size, messages[i].size)};
      }
      absorb_sha256(stretches, count, kernels_);
      for (std::size_t i = 0; i < count; ++i) write_big_endian(states[i], digest_of(messages[i].index));
    } else {
      for (std::size_t i = 0; i < count; ++i) {
        std::uint32_t words[blake3_state_words] = {};
        std::memcpy(words, initial_words, sizeof initial_words);
        blake3_update(words, memory + messages[i].at, messages[i].size, 1);
        blake3_output(words, digest_of(messages[i].index), digest_bytes, 0);
      }
    }
    for (std::size_t i = 0; i < count; ++i) reader_.finish(messages[i].index);
  }

  // --- Large files ---------------------------------------------------------------------------------------------------

  // Takes the next large file that nobody has begun, if there is one and another may be under way; false otherwise.
  bool begin_large(OpenFile& file, std::unique_lock<std::mutex>& lock) {
    while (!large_.empty() && (under_way_ < most_open_ || large_.size() <= last_ones_) && !reader_.stopped()) {
      const std::size_t index = large_.front();
      large_.pop_front();
      ++under_way_;
      lock.unlock();
      const FileReader::Opening opening = reader_.open(index, file);
      lock.lock();
      if (opening == FileReader::Opening::open) {
#if defined(POSIX_FADV_SEQUENTIAL)
        posix_fadvise(file.descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);
#endif
        return true;
      }
      --under_way_;
      if (opening == FileReader::Opening::no_descriptor) {
        large_.push_front(index);
        most_open_ = std::max<std::size_t>(1, under_way_);
        last_ones_ = 0;
        return false;
      }
      left_ -= std::min(left_, reader_.size(index));
      --unfinished_;
    }
    return false;
  }

  // `lock` is held.
  void end_large(const OpenFile& file) {
    reader_.close(file);
    --under_way_;
    --unfinished_;
    changed_.notify_all();
  }

  // --- SHA-256 of large files ----------------------------------------------------------------------------------------

  // Some streams for one turn. With many files left these are as many as keep a core busy. Towards the end the largest
  // decides when all are done: then fewer are taken, which makes each of them faster.
  std::vector<Stream> take_streams() {
    std::vector<Stream> taken;
    std::unique_lock lock(mutex_);
    std::uint64_t largest = large_.empty() ? 1 : reader_.size(large_.front()) + 1;
    for (const Stream& stream : ready_) largest = std::max(largest, stream.left());
    // How many streams as long as the largest would be this worker's share of the work.
    const std::uint64_t equals = (left_ / workers_ + largest / 2) / largest;
    const auto wanted = static_cast<std::size_t>(std::clamp<std::uint64_t>(equals, 1, lanes_));
    while (taken.size() < wanted) {
      Stream stream{};
      if (begin_large(stream.file, lock)) {
        std::memcpy(stream.state, initial_words, sizeof initial_words);
        taken.push_back(stream);
        continue;
      }
      const auto next = std::max_element(ready_.begin(), ready_.end(),
                                         [](const Stream& a, const Stream& b) { return a.left() < b.left(); });
      if (next == ready_.end()) break;
      taken.push_back(*next);
      ready_.erase(next);
    }
    return taken;
  }

  bool turn_at_streams(Desk& desk) {
    std::vector<Stream> streams = take_streams();
    if (streams.empty()) return false;
    Stretch stretches[most_lanes];
    bool ended[most_lanes], good[most_lanes], shown[most_lanes];
    std::size_t sizes[most_lanes];
    for (std::size_t i = 0; i < streams.size(); ++i) {
      Stream& stream = streams[i];
      const std::uint64_t left = stream.left();
      const std::uint64_t wanted = std::min(left, std::clamp(left / 8, least_shown, most_shown));
      sizes[i] = static_cast<std::size_t>(wanted / sha256_block * sha256_block);
      // What is little is read: its padding comes behind it.
      const unsigned char* data = left > lane_bytes_ ? desk.show(i, stream.file, stream.offset, sizes[i]) : nullptr;
      shown[i] = good[i] = data != nullptr;
      ended[i] = false;
      std::size_t blocks = sizes[i] / sha256_block;
      if (!shown[i]) {
        unsigned char* const bytes = desk.memory.get() + i * (lane_bytes_ + lane_gap);
        sizes[i] = static_cast<std::size_t>(std::min<std::uint64_t>(lane_bytes_, left));
        ended[i] = sizes[i] == left;
        good[i] = reader_.read_exactly(stream.file, bytes, sizes[i], stream.offset) &&
                  (!ended[i] || reader_.unchanged(stream.file));
        blocks = ended[i] ? pad_sha256(bytes, sizes[i], stream.offset + sizes[i]) : sizes[i] / sha256_block;
        data = bytes;
      }
      stretches[i] = {stream.state, data, good[i] ? blocks : 0};
    }
    absorb_sha256(stretches, streams.size(), kernels_);
    std::uint64_t progress = 0;
    for (std::size_t i = 0; i < streams.size(); ++i) {
      if (shown[i]) good[i] = reader_.shown_truly(streams[i].file, desk.windows[i], sizes[i]);
      streams[i].offset += sizes[i];
      progress += sizes[i];
    }
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < streams.size(); ++i) {
      const Stream& stream = streams[i];
      if (good[i] && !ended[i]) {
        ready_.push_back(stream);
        continue;
      }
      if (good[i]) {
        write_big_endian(stream.state, digest_of(stream.file.index));
        reader_.finish(stream.file.index);
      } else {
        progress += stream.left();
      }
      end_large(stream.file);
    }
    left_ -= std::min(left_, progress);
    changed_.notify_one();
    return true;
  }

  // --- BLAKE3 of large files -----------------------------------------------------------------------------------------

  // A piece of a file that nobody has begun, or else of the file with the most pieces left. `lock` is held.
  Tree* take_tree(std::unique_lock<std::mutex>& lock) {
    auto tree = std::make_unique<Tree>();
    if (begin_large(tree->file, lock)) {
      std::memcpy(tree->words, initial_words, sizeof initial_words);
      if (tree->file.size() > 0) tree->pieces = Pieces(tree->file.size());
      trees_.push_back(std::move(tree));
      changed_.notify_all();  // who found nothing while the file was opened
      return trees_.back().get();
    }
    Tree* found = nullptr;
    for (const auto& other : trees_)
      if (other->left() > (found ? found->left() : 0)) found = other.get();
    return found;
  }

  bool turn_at_a_tree(Desk& desk) {
    std::unique_lock lock(mutex_);
    Tree* const tree = take_tree(lock);
    if (!tree) return false;
    ++tree->busy;
    // Stays with its file, to read it in order; takes several pieces at a time while many are left.
    while (!tree->failed && tree->left() > 0 && !reader_.stopped()) {
      const std::uint64_t first = tree->next;
      std::shared_ptr<Segment> before = tree->segment;
      std::shared_ptr<Segment> segment = segment_of(*tree, first);
      auto count = static_cast<std::size_t>(std::clamp<std::uint64_t>(tree->left() / (4 * workers_), 1, most_pieces));
      while (tree->pieces.begin(first + count) > segment->end) --count;
      tree->next += count;
      lock.unlock();
      before.reset();  // whoever has a segment last unmaps it: not while the lock is held
      ChainingValue values[most_pieces];
      const bool good = hash_pieces(*tree, first, count, *segment, desk, values);
      segment.reset();
      lock.lock();
      if (good) {
        for (std::size_t i = 0; i < count; ++i) push(*tree, first + i, values[i]);
      } else {
        tree->failed = true;
        tree->next = tree->pieces.count();
      }
    }
    if (--tree->busy > 0 || reader_.stopped()) return true;
    if (!tree->failed) {  // all pieces are pushed, and only this worker knows
      lock.unlock();
      const bool good = hash_tail(*tree, desk);
      lock.lock();
      if (good) reader_.finish(tree->file.index);
    }
    end_large(tree->file);
    const auto place =
        std::find_if(trees_.begin(), trees_.end(), [tree](const auto& other) { return other.get() == tree; });
    const std::unique_ptr<Tree> ended = std::move(*place);
    trees_.erase(place);
    lock.unlock();
    return true;
  }

  // `lock` is held.
  std::shared_ptr<Segment> segment_of(Tree& tree, std::uint64_t piece) const {
    const std::uint64_t offset = tree.pieces.begin(piece);
    if (!tree.segment || offset >= tree.segment->end) {
      const std::uint64_t begin = offset / segment_bytes * segment_bytes;
      tree.segment = std::make_shared<Segment>(begin, std::min(begin + segment_bytes, tree.file.size()));
      const auto size = static_cast<std::size_t>(tree.segment->end - begin);
      if (maps_) tree.segment->shown = tree.segment->window.emplace().show(tree.file.descriptor, begin, size);
    }
    return tree.segment;
  }

  // Bytes of a segment; null if they have to be read.
  static const unsigned char* shown(const Segment& segment, const OpenFile& file, std::uint64_t offset,
                                    std::size_t size) {
    if (!segment.shown || !in_page_cache(file.descriptor, offset, size)) return nullptr;
    const unsigned char* const bytes = segment.shown + (offset - segment.begin);
    MappedWindow::map_pages(bytes, size);
    return bytes;
  }

  bool hash_pieces(const Tree& tree, std::uint64_t first, std::size_t count, const Segment& segment, Desk& desk,
                   ChainingValue* values) {
    const std::uint64_t begin = tree.pieces.begin(first);
    const auto bytes = static_cast<std::size_t>(tree.pieces.begin(first + count) - begin);
    const unsigned char* const data = shown(segment, tree.file, begin, bytes);
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t offset = tree.pieces.begin(first + i);
      const std::size_t size = tree.pieces.size(first + i);
      if (!hash_piece(tree.file, offset, size, data ? data + (offset - begin) : nullptr, desk, values[i])) return false;
    }
    return !data || reader_.shown_truly(tree.file, *segment.window, bytes);
  }

  // `shown`: its bytes; null if they have to be read.
  bool hash_piece(const OpenFile& file, std::uint64_t begin, std::size_t size, const unsigned char* shown, Desk& desk,
                  ChainingValue& value) {
    constexpr std::size_t most_blocks = piece_bytes / block_bytes, block_roots = 16;  // those fill the lanes of vectors
    std::uint32_t roots[8 * most_blocks * block_roots], values[8 * block_chunks];
    const std::size_t blocks = size / block_bytes;
    for (std::size_t block = 0; block < blocks; ++block) {
      if (reader_.stopped()) return false;
      const std::uint64_t offset = begin + block * block_bytes;
      if (!shown && !reader_.read_exactly(file, desk.memory.get(), block_bytes, offset)) return false;
      const unsigned char* const data = shown ? shown + block * block_bytes : desk.memory.get();
      kernels_.blake3_chunks(data, block_chunks, initial_words, 0, offset / blake3_chunk_bytes, values);
      merge(values, block_chunks, block_roots, kernels_);
      std::memcpy(roots + 8 * block_roots * block, values, 32 * block_roots);
    }
    merge(roots, blocks * block_roots, 1, kernels_);
    std::memcpy(value.words, roots, sizeof value.words);
    value.known = true;
    return true;
  }

  // `lock` is held: this is one compression a piece.
  static void push(Tree& tree, std::uint64_t piece, const ChainingValue& value) {
    const std::size_t place = static_cast<std::size_t>(piece - tree.pushed);
    if (tree.waiting.size() <= place) tree.waiting.resize(place + 1);
    tree.waiting[place] = value;
    for (; !tree.waiting.empty() && tree.waiting.front().known; ++tree.pushed) {
      Blake3State(tree.words).push(tree.waiting.front().words, tree.pieces.size(tree.pushed) / blake3_chunk_bytes);
      tree.waiting.pop_front();
    }
  }

  // What comes after the pieces, a block at most: the last chunk is among it, which may be the root.
  bool hash_tail(Tree& tree, Desk& desk) {
    const OpenFile& file = tree.file;
    const std::uint64_t offset = tree.pieces.begin(tree.pieces.count());
    const auto left = static_cast<std::size_t>(file.size() - offset);
    if (!reader_.read_exactly(file, desk.memory.get(), left, offset) || !reader_.unchanged(file)) return false;
    blake3_update(tree.words, desk.memory.get(), left, 1);
    blake3_output(tree.words, digest_of(file.index), digest_bytes, 0);
    return true;
  }

  FileReader reader_;
  const FileDigest digest_;
  unsigned char* const digests_;
  const HashingKernels& kernels_;
  const std::size_t lanes_, lane_bytes_;
  std::vector<std::size_t> small_;
  std::atomic<std::size_t> next_small_{0};
  std::size_t workers_ = 0;
  bool maps_ = false;
  std::vector<std::thread> threads_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_, ended_;
  std::deque<std::size_t> large_;  // not begun
  std::size_t unfinished_ = 0, under_way_ = 0;
  // How many are open at a time, and how few are left when all of them are opened: turns go to the largest, so these
  // then come to their ends together, not one after the other.
  std::size_t most_open_ = 0, last_ones_ = 0;
  std::uint64_t left_ = 0;                    // bytes of large files, about
  std::vector<Stream> ready_;                 // between two turns
  std::vector<std::unique_ptr<Tree>> trees_;  // under way
  std::size_t running_ = 0;
  std::exception_ptr thrown_;
};

FileHashing::FileHashing(std::vector<FileToHash> files, FileDigest digest, std::size_t threads, bool keep_going,
                         unsigned char* digests)
    : run_(std::make_unique<Run>(std::move(files), digest, threads, keep_going, digests)) {}
FileHashing::~FileHashing() = default;
bool FileHashing::wait(std::chrono::microseconds most) { return run_->wait(most); }
std::uint64_t FileHashing::bytes_done() const { return run_->bytes_done(); }
const std::vector<FileAnswer>& FileHashing::answers() const { return run_->answers(); }

}  // namespace aisec_fast
