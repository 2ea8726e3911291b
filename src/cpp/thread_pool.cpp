#include "thread_pool.hpp"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "spin.hpp"

namespace aisec_fast {
namespace {

// NOLINTNEXTLINE(bugprone-throwing-static-initialization)
const std::size_t processors = std::max<std::size_t>(1, std::thread::hardware_concurrency());

// Which processor a worker is on, and how it is kept off its caller's. Linux wakes a thread where it last ran, and that
// may be where its caller is, who is not idle: then the worker waits until the caller has done all the work, while
// another processor idles (docs/decisions/0007-workers-leave-the-callers-processor.md).
class Place {
 public:
#if defined(__linux__)
  static int here() { return sched_getcpu(); }

  // By the worker.
  void note() { processor_.store(here(), std::memory_order_relaxed); }

  // By its caller, who is on `processor`: the worker may no longer run there, if it did last and may run elsewhere.
  // What others allow it is kept: if they changed that since, the change holds.
  void leave(int processor, pthread_t worker) {
    if (processor < 0 || processor_.load(std::memory_order_relaxed) != processor) return;
    cpu_set_t now;
    if (pthread_getaffinity_np(worker, sizeof now, &now) != 0) return;  // a machine of more than CPU_SETSIZE processors
    if (!left_ || !CPU_EQUAL(&now, &set_)) allowed_ = now;
    set_ = allowed_;
    CPU_CLR(static_cast<std::size_t>(processor), &set_);
    left_ = CPU_COUNT(&set_) > 0 && pthread_setaffinity_np(worker, sizeof set_, &set_) == 0;
    processor_.store(-1, std::memory_order_relaxed);
  }

 private:
  std::atomic<int> processor_{-1};  // -1: not known
  bool left_ = false;
  cpu_set_t allowed_{}, set_{};  // by others; by us
#else
  static int here() { return -1; }
  void note() {}
  void leave(int, pthread_t) {}
#endif
};

struct Worker {
  std::thread thread;
  Place place;
};

class Pool {
 public:
  // Makes sure that `workers` threads exist, on other processors than the caller's where there are enough. If the
  // system refuses a thread, the others do its work.
  void prepare(std::size_t workers) {
    const std::lock_guard lock(mutex_);
    try {
      while (workers_.size() < workers) {
        Worker& worker = workers_.emplace_back();
        worker.thread = std::thread([this, &place = worker.place] { work(place); });
      }
    } catch (const std::system_error&) {
      workers_.pop_back();
    }
    if (workers >= processors) return;
    const int here = Place::here();
    for (Worker& worker : workers_) worker.place.leave(here, worker.thread.native_handle());
  }

  void submit(std::function<void()> job) {
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(job));
      waiting_.store(jobs_.size(), std::memory_order_release);
    }
    ready_.notify_one();
  }

  // Runs one waiting job on the caller's thread; false if there is none.
  bool help() {
    std::unique_lock lock(mutex_);
    if (jobs_.empty()) return false;
    run_first(lock);
    return true;
  }

 private:
  void work(Place& place) {
    for (;;) {
      spin_until([this] { return waiting_.load(std::memory_order_acquire) > 0; });
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [&] {
        place.note();  // also if it comes too late for a job
        return !jobs_.empty();
      });
      run_first(lock);
    }
  }

  void run_first(std::unique_lock<std::mutex>& lock) {
    const std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    waiting_.store(jobs_.size(), std::memory_order_release);
    lock.unlock();
    job();
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> jobs_;
  std::atomic<std::size_t> waiting_{0};  // how many jobs there are, for a look without the lock
  std::deque<Worker> workers_;           // stay where they are
};

// Entry points of a libgomp that somebody else has loaded; nothing is linked.
struct OpenMp {
  void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
  int (*max_threads)();
  int (*in_parallel)();
  int (*thread_number)();
};

std::atomic<const OpenMp*> openmp{nullptr};

// Never destroyed: workers may outlive static destruction. A forked child has none of its parent's threads, so it
// starts with a fresh pool and leaves the old one, locks and all, alone.
// NOLINTBEGIN(bugprone-throwing-static-initialization): without memory for a pool the module cannot be loaded anyway
std::atomic<Pool*> pool{new Pool};
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] {
  pool.store(new Pool);
  openmp.store(nullptr);  // its threads do not survive either, and it does not notice
});

std::atomic<std::size_t> threads_wanted{processors};
// NOLINTEND(bugprone-throwing-static-initialization)

// count * part / parts without overflow
std::size_t start_of(std::size_t count, std::size_t parts, std::size_t part) {
  return count / parts * part + std::min(part, count % parts);
}

std::size_t parts_of(std::size_t count, std::size_t least) {
  return std::min(thread_count(), std::max<std::size_t>(1, count / std::max<std::size_t>(1, least)));
}

// What the ranges of one call share.
struct Join {
  std::mutex mutex;
  std::condition_variable done;
  std::size_t left;
  std::exception_ptr error;
  std::atomic<bool> finished{false};  // for a look without the lock

  void run(const Range& range, std::size_t begin, std::size_t end) {
    std::exception_ptr thrown;
    try {
      range(begin, end);
    } catch (...) {
      thrown = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    if (thrown && !error) error = thrown;
    if (--left > 0) return;
    finished.store(true, std::memory_order_release);
    done.notify_one();
  }
};

// A loop on the threads of OpenMP. Each takes the part of its own number first, as torch's loops do: what torch's last
// loop wrote is in its cache. Then it takes what nobody has begun, so it does not matter how many come.
struct Team {
  const OpenMp& library;
  const Range& range;
  std::size_t count;
  std::vector<std::atomic<bool>> begun;
  std::mutex mutex;
  std::exception_ptr error;

  static void run(void* team_) {
    auto& team = *static_cast<Team*>(team_);
    const std::size_t parts = team.begun.size(), own = static_cast<std::size_t>(team.library.thread_number());
    for (std::size_t i = 0; i < parts; ++i) {
      const std::size_t part = (own + i) % parts;
      if (team.begun[part].exchange(true, std::memory_order_relaxed)) continue;
      try {
        team.range(start_of(team.count, parts, part), start_of(team.count, parts, part + 1));
      } catch (...) {
        const std::lock_guard lock(team.mutex);
        if (!team.error) team.error = std::current_exception();
      }
    }
  }
};

// False if the loop has to run elsewhere. The team has as many threads as torch's own, or they would be made anew.
bool run_on_openmp(std::size_t count, std::size_t parts, const Range& range) {
  const OpenMp* library = openmp.load(std::memory_order_acquire);
  if (!library || library->in_parallel()) return false;
  const int threads = library->max_threads();
  if (threads < 2) return false;
  Team team{*library, range, count, std::vector<std::atomic<bool>>(parts), {}, {}};
  library->parallel(&Team::run, &team, static_cast<unsigned>(threads), 0);
  if (team.error) std::rethrow_exception(team.error);
  return true;
}

}  // namespace

std::size_t thread_count() { return threads_wanted.load(); }
void set_thread_count(std::size_t threads) { threads_wanted.store(threads); }

bool shares_openmp() { return openmp.load() != nullptr; }

bool share_openmp(const char* path) {
  if (shares_openmp()) return true;
  void* library = dlopen(path, RTLD_NOLOAD | RTLD_NOW);  // never closed
  if (!library) return false;
  const auto find = [&](auto& entry, const char* name) {
    entry = reinterpret_cast<std::remove_reference_t<decltype(entry)>>(dlsym(library, name));
    return entry != nullptr;
  };
  static OpenMp found{};
  if (!find(found.parallel, "GOMP_parallel") || !find(found.max_threads, "omp_get_max_threads") ||
      !find(found.in_parallel, "omp_in_parallel") || !find(found.thread_number, "omp_get_thread_num"))
    return false;
  openmp.store(&found, std::memory_order_release);
  return true;
}

void parallel_for(std::size_t count, std::size_t least, const Range& range) {
  if (count == 0) return;
  const std::size_t parts = parts_of(count, least);
  if (parts == 1) return range(0, count);
  if (run_on_openmp(count, parts, range)) return;
  const auto start = [&](std::size_t part) { return start_of(count, parts, part); };
  Join join{{}, {}, parts, nullptr, {}};
  Pool& workers = *pool.load();
  workers.prepare(parts - 1);
  for (std::size_t part = 1; part < parts; ++part) {
    const auto job = [&join, &range, begin = start(part), end = start(part + 1)] { join.run(range, begin, end); };
    try {
      workers.submit(job);
    } catch (const std::bad_alloc&) {
      job();  // ranges already submitted refer to `join`: leaving before they are done is no option
    }
  }
  join.run(range, 0, start(1));
  while (workers.help()) {
  }
  spin_until([&] { return join.finished.load(std::memory_order_acquire); });
  std::unique_lock lock(join.mutex);  // the last one may still hold it
  join.done.wait(lock, [&] { return join.left == 0; });
  if (join.error) std::rethrow_exception(join.error);
}

namespace {

// What nobody has begun of one thread's range.
class alignas(64) Share {  // each on a cache line of its own
 public:
  void set(std::size_t begin, std::size_t end) {
    begin_.store(begin, std::memory_order_relaxed);
    end_ = end;
  }

  // Its next chunk: `most`, but a quarter of what is left once that is less, and no fewer than `fewest`. Empty if
  // nothing is left.
  std::pair<std::size_t, std::size_t> take(std::size_t fewest, std::size_t most) {
    for (std::size_t begin = begin_.load(std::memory_order_relaxed);;) {
      const std::size_t left = end_ - begin, end = begin + std::min(left, std::clamp(left / 4, fewest, most));
      if (left == 0 || begin_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) return {begin, end};
    }
  }

 private:
  std::atomic<std::size_t> begin_{0};
  std::size_t end_ = 0;
};

}  // namespace

void parallel_chunks(std::size_t count, std::size_t least, std::size_t chunk, std::size_t most, const Range& range) {
  const std::size_t parts = std::min(parts_of(count, least), most), fewest = std::min(least, chunk);
  std::vector<Share> shares(parts);
  for (std::size_t part = 0; part < parts; ++part)
    shares[part].set(start_of(count, parts, part), start_of(count, parts, part + 1));
  parallel_for(parts, 1, [&](std::size_t own, std::size_t) {
    for (std::size_t i = 0; i < parts; ++i) {
      Share& share = shares[(own + i) % parts];
      for (auto [begin, end] = share.take(fewest, chunk); begin < end; std::tie(begin, end) = share.take(fewest, chunk))
        range(begin, end);
    }
  });
}

}  // namespace aisec_fast
