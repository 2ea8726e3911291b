#pragma once
// CUDA kernels on one CPU thread, for tests. Each GPU thread is a fiber that runs until it meets a barrier or a
// shuffle; the scheduler wakes the waiting fibers when all that must arrive have arrived. Nothing is left to chance:
// the fibers run in an order one chooses (`order`), so a missing barrier gives the same wrong result every time.
//
// Stricter than a GPU, where these go unnoticed until they hang or do harm. Each throws Failure and says where:
//   - threads of a block wait at different barriers, or some have returned while others wait
//   - a shuffle whose mask names threads that do not come, or that reads from a thread outside the mask
//   - blocks that wait for what nobody does
// Only what our kernels use: one-dimensional grids, __syncthreads, __syncwarp, __shfl_down_sync, __shfl_xor_sync, max,
// __float2int_rn, atomicAdd, atomicMin, and together.hpp: blocks are run one after the other, or, where they wait for
// one another, all in turns.
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time; blocks that run together have dynamic_shared() alone

struct dim3 {
  unsigned x, y = 1, z = 1;
  dim3(unsigned x_ = 1) : x(x_) {}
};
inline dim3 blockIdx{0}, threadIdx{0}, blockDim, gridDim;

namespace host_cuda {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// 0: threads take turns from first to last, 1: from last to first, else: shuffled, a different way for each number.
inline unsigned order = 0;

constexpr unsigned warp_threads = 32;

enum class State { ready, at_barrier, in_shuffle, looking_again, returned };

struct Copy {
  void* to;
  const void* from;
  unsigned bytes;
};

struct Fiber {
  ucontext_t context;
  State state;
  std::source_location where;  // of the barrier or shuffle
  unsigned mask;               // of the shuffle
  unsigned source;             // thread it reads from
  std::uint64_t value;         // sent, then received
  void* fake_stack;            // ASan's
};

class Machine {
 public:
  static Machine& get() {
    static Machine machine;
    return machine;
  }

  // `together`: all blocks take turns; else each runs to its end before the next begins.
  void launch(unsigned blocks, unsigned threads, std::size_t shared_bytes, bool together,
              const std::function<void()>& body) {
    const std::lock_guard lock(mutex_);  // blockIdx and shared memory are global
    const unsigned at_once = together ? blocks : 1;
    make_stacks(at_once * threads);
    body_ = &body;
    gridDim = dim3(blocks);
    blockDim = dim3(threads);
    for (first_block_ = 0; first_block_ < blocks; first_block_ += at_once) {
      shared_.assign(at_once, std::vector<std::max_align_t>(shared_bytes / sizeof(std::max_align_t) + 1));
      for (std::vector<std::max_align_t>& memory : shared_)  // as cudaMallocFromPoolAsync
        std::memset(memory.data(), order % 2 == 0 ? 0xff : 0, memory.size() * sizeof(std::max_align_t));
      copies_.clear();
      fibers_.assign(at_once * threads, {});
      for (unsigned t = 0; t < fibers_.size(); ++t) start(t);
      idle_rounds_ = 0;
      while (!std::all_of(fibers_.begin(), fibers_.end(), [](const Fiber& f) { return f.state == State::returned; }))
        run_round();
    }
  }

  void launch(unsigned blocks, unsigned threads, const std::function<void()>& body) {
    launch(blocks, threads, 0, false, body);
  }

  // A fault of the thread that calls it: nothing can be thrown from its stack.
  void fault(const char* what) {
    fault_ = what;
    wait(State::returned);
  }

  unsigned char* shared() { return reinterpret_cast<unsigned char*>(shared_[current_ / blockDim.x].data()); }
  // Not yet done, by what waits for them.
  std::map<const void*, std::vector<Copy>>& copies() { return copies_; }
  void look_again(const std::source_location& where) {
    fibers_[current_].where = where;
    wait(State::looking_again);
  }
  void published() { idle_rounds_ = 0; }

  void barrier(const std::source_location& where) {
    fibers_[current_].where = where;
    wait(State::at_barrier);
  }

  // `source` is a thread of the block.
  std::uint64_t shuffle(unsigned mask, std::uint64_t value, unsigned source, const std::source_location& where) {
    source += current_ - threadIdx.x;
    Fiber& fiber = fibers_[current_];
    fiber.mask = mask;
    fiber.value = value;
    fiber.source = source;
    fiber.where = where;
    wait(State::in_shuffle);
    return fiber.value;
  }

 private:
  // ASan's frames are several times larger.
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t stack_bytes = 256 << 10;
#else
  static constexpr std::size_t stack_bytes = 64 << 10;
#endif

  // Each stack lies above a page that must not be touched: an overflow stops the program instead of spoiling a
  // neighbour.
  void make_stacks(unsigned threads) {
    if (threads <= stacks_) return;
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), slot = stack_bytes + page;
    void* memory = mmap(nullptr, slot * threads, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw Failure("no memory for stacks");
    stack_memory_ = static_cast<char*>(memory);
    for (unsigned t = 0; t < threads; ++t)
      if (mprotect(stack_memory_ + t * slot + page, stack_bytes, PROT_READ | PROT_WRITE) != 0)
        throw Failure("no memory for stacks");
    stacks_ = threads;
  }
  char* stack(unsigned thread) const {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return stack_memory_ + thread * (stack_bytes + page) + page;
  }

  void start(unsigned thread) {
    Fiber& fiber = fibers_[thread];
    fiber.state = State::ready;
    fiber.fake_stack = nullptr;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack(thread);
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, [] { get().run_thread(); }, 0);
    fiber.context.uc_stack.ss_size =
        0;  // or ASan's swapcontext would wipe its marks off the whole stack at every switch
  }

  void run_thread() {
    arrived_in_fiber();
    (*body_)();
    wait(State::returned);
  }

  // From the scheduler into a fiber, and back.
  void resume(unsigned thread) {
    fault_ = nullptr;
    current_ = thread;
    blockIdx = dim3(first_block_ + thread / blockDim.x);
    threadIdx = dim3(thread % blockDim.x);
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack(thread), stack_bytes);
#endif
    swapcontext(&scheduler_, &fibers_[thread].context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }
  void wait(State state) {
    Fiber& fiber = fibers_[current_];
    fiber.state = state;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(state == State::returned ? nullptr : &fiber.fake_stack, scheduler_stack_,
                                   scheduler_stack_bytes_);
#endif
    swapcontext(&fiber.context, &scheduler_);
    arrived_in_fiber();
  }
  void arrived_in_fiber() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fibers_[current_].fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  // Every ready thread runs until it waits or returns; then those whose wait is over become ready.
  void run_round() {
    std::vector<unsigned> turn(fibers_.size());
    std::iota(turn.begin(), turn.end(), 0u);
    if (order == 1) std::reverse(turn.begin(), turn.end());
    if (order > 1)
      for (unsigned i = static_cast<unsigned>(turn.size()); i > 1; --i) std::swap(turn[i - 1], turn[random() % i]);
    for (const unsigned t : turn)
      if (fibers_[t].state == State::ready) {
        resume(t);
        if (fault_ != nullptr) fail(fault_);
      }
    bool any = finish_shuffles();
    if (!any)
      for (unsigned first = 0; first < fibers_.size(); first += blockDim.x) any |= finish_barrier(first);
    constexpr unsigned patience = 4;  // rounds in which nobody does anything but look again
    idle_rounds_ = any ? 0 : idle_rounds_ + 1;
    for (Fiber& fiber : fibers_) {
      if (fiber.state != State::looking_again) continue;
      if (idle_rounds_ > patience) fail("deadlock");
      fiber.state = State::ready;
    }
  }

  // Whether any shuffle had all its threads.
  bool finish_shuffles() {
    bool any = false;
    for (unsigned first = 0; first < fibers_.size(); first += warp_threads)
      for (unsigned lane = 0; lane < warp_threads && first + lane < fibers_.size(); ++lane)
        any |= finish_shuffle(first, first + lane);
    return any;
  }
  bool finish_shuffle(unsigned warp, unsigned thread) {
    const Fiber& leader = fibers_[thread];
    if (leader.state != State::in_shuffle) return false;
    std::vector<unsigned> members;
    for (unsigned lane = 0; lane < warp_threads; ++lane) {
      if ((leader.mask >> lane & 1) == 0) continue;
      const unsigned member = warp + lane;
      if (member >= fibers_.size() || fibers_[member].state != State::in_shuffle ||
          fibers_[member].mask != leader.mask || !same(fibers_[member].where, leader.where))
        return false;
      members.push_back(member);
    }
    if (std::find(members.begin(), members.end(), thread) == members.end())
      fail("a thread is not in the mask of its own shuffle");
    std::vector<std::uint64_t> received;
    for (const unsigned member : members) {
      if (std::find(members.begin(), members.end(), fibers_[member].source) == members.end())
        fail("a shuffle reads from a thread outside its mask");
      received.push_back(fibers_[fibers_[member].source].value);
    }
    for (std::size_t i = 0; i < members.size(); ++i) {
      fibers_[members[i]].value = received[i];
      fibers_[members[i]].state = State::ready;
    }
    return true;
  }

  // Whether a block's threads, from `first` on, have all arrived at a barrier.
  bool finish_barrier(unsigned first) {
    const auto begin = fibers_.begin() + first, end = begin + blockDim.x;
    const auto all = [&](State state) {
      return std::all_of(begin, end, [=](const Fiber& fiber) { return fiber.state == state; });
    };
    const bool some_wait =
        std::any_of(begin, end, [](const Fiber& fiber) { return fiber.state == State::looking_again; });
    if (some_wait || all(State::returned)) return false;
    blockIdx = dim3(first_block_ + first / blockDim.x);
    if (!all(State::at_barrier)) fail("deadlock");
    if (!std::all_of(begin, end, [&](const Fiber& fiber) { return same(fiber.where, begin->where); }))
      fail("divergent barrier");
    for (auto fiber = begin; fiber != end; ++fiber) fiber->state = State::ready;
    return true;
  }

  static bool same(const std::source_location& a, const std::source_location& b) {
    return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
  }

  // Says what the threads of the block do, and leaves them there.
  [[noreturn]] void fail(const std::string& what) const {
#if defined(__SANITIZE_ADDRESS__)
    // Their frames are never left: what ASan has marked in them must not meet the next thread on the same stack.
    for (unsigned t = 0; t < stacks_; ++t) __asan_unpoison_memory_region(stack(t), stack_bytes);
#endif
    std::string report = what + " in block " + std::to_string(blockIdx.x) + ":";
    std::vector<std::pair<std::string, unsigned>> groups;
    for (const Fiber& fiber : fibers_) {
      const std::string doing = describe(fiber);
      auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& known) { return known.first == doing; });
      if (group == groups.end()) group = groups.insert(groups.end(), {doing, 0});
      ++group->second;
    }
    for (const auto& [doing, count] : groups) report += "\n  " + std::to_string(count) + " threads: " + doing;
    throw Failure(report);
  }
  static std::string describe(const Fiber& fiber) {
    if (fiber.state == State::returned) return "returned";
    if (fiber.state == State::ready) return "ready";
    const std::string at = std::string(fiber.where.file_name()) + ":" + std::to_string(fiber.where.line());
    if (fiber.state == State::at_barrier) return "waits in __syncthreads at " + at;
    if (fiber.state == State::looking_again) return "looks again at " + at;
    return "waits in a shuffle at " + at;
  }

  unsigned random() {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u + order;
    return static_cast<unsigned>(random_ >> 33);
  }

  std::mutex mutex_;
  std::vector<Fiber> fibers_;
  const std::function<void()>* body_ = nullptr;
  ucontext_t scheduler_{};
  std::vector<std::vector<std::max_align_t>> shared_;  // of each block that runs
  std::map<const void*, std::vector<Copy>> copies_;
  const char* fault_ = nullptr;  // of the last thread that ran
  unsigned first_block_ = 0, idle_rounds_ = 0;
  unsigned current_ = 0, stacks_ = 0;
  char* stack_memory_ = nullptr;
  std::uint64_t random_ = 1;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_bytes_ = 0;
};

}  // namespace host_cuda

inline void __syncthreads(const std::source_location& where = std::source_location::current()) {
  host_cuda::Machine::get().barrier(where);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, unsigned width = host_cuda::warp_threads,
                   const std::source_location& where = std::source_location::current()) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  // A thread whose source lies beyond its group of `width` gets its own value.
  const unsigned source = threadIdx.x % width + distance < width ? threadIdx.x + distance : threadIdx.x;
  bits = host_cuda::Machine::get().shuffle(mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits_,
                  const std::source_location& where = std::source_location::current()) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = host_cuda::Machine::get().shuffle(mask, bits, threadIdx.x ^ bits_, where);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Threads of a warp, all of them.
inline void __syncwarp(const std::source_location& where = std::source_location::current()) {
  host_cuda::Machine::get().shuffle(~0u, 0, threadIdx.x, where);
}

inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }

// Ties to even; NaN is 0, and what does not fit the nearest that does.
inline int __float2int_rn(float value) {
  if (!(value >= -0x1p31f && value < 0x1p31f)) return value > 0.0f ? INT32_MAX : value < 0.0f ? INT32_MIN : 0;
  return static_cast<int>(std::lrintf(value));
}

template <class T>
T atomicAdd(T* target, T value) {
  const T old = *target;
  *target = old + value;
  return old;
}

template <class T>
T atomicMin(T* target, T value) {
  const T old = *target;
  *target = std::min(old, value);
  return old;
}

namespace aisec_fast::cuda {
namespace {

// What src/cuda/together.hpp has for GPUs. Copies are done by whoever waits for them, no earlier: what is missing is
// missed.
inline unsigned char* dynamic_shared() { return host_cuda::Machine::get().shared(); }

constexpr int together_from = 90;

struct Arrivals {
  std::uint32_t phase, bytes;  // announced in it, plus 1; or 0
};

inline void prepare(Arrivals& arrivals) { arrivals = {0, 0}; }

inline void announce(Arrivals& arrivals, unsigned bytes) {
  if (arrivals.bytes != 0) host_cuda::Machine::get().fault("arrivals are announced twice in a phase");
  arrivals.bytes = bytes + 1;
}

inline void bring(void* to, const void* from, unsigned bytes, Arrivals& arrivals) {
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from) | bytes) % 16 != 0)
    host_cuda::Machine::get().fault("a copy that is not in sixteens");
  host_cuda::Machine::get().copies()[&arrivals].push_back({to, from, bytes});
}

inline void wait_for_arrivals(Arrivals& arrivals, unsigned phase,
                              const std::source_location& where = std::source_location::current()) {
  if (arrivals.phase > phase + 1) host_cuda::Machine::get().fault("a wait for a phase that is long over");
  while (arrivals.phase == phase && arrivals.bytes == 0) host_cuda::Machine::get().look_again(where);
  if (arrivals.phase != phase) return;
  std::uint32_t bytes = 1;
  for (const host_cuda::Copy& copy : host_cuda::Machine::get().copies()[&arrivals]) {
    std::memcpy(copy.to, copy.from, copy.bytes);
    bytes += copy.bytes;
  }
  if (bytes != arrivals.bytes) host_cuda::Machine::get().fault("other bytes have come than were announced");
  host_cuda::Machine::get().copies()[&arrivals].clear();
  arrivals = {phase + 1, 0};
}

inline void publish(double* place, double value) {
  *place = value == value ? value : std::numeric_limits<double>::quiet_NaN();
  host_cuda::Machine::get().published();
}
inline double published(const double* place) { return *place; }
inline bool is_unpublished(double value) {
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits == ~std::uint64_t{0};
}
inline void look_again(const std::source_location& where = std::source_location::current()) {
  host_cuda::Machine::get().look_again(where);
}

}  // namespace
}  // namespace aisec_fast::cuda
