#include "parallel_steps.hpp"

#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "spin.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t most_units = 0xffff;

// Units of one step that nobody has begun: in one word, so that one operation takes one, and none of another step.
class alignas(64) Units {
 public:
  void set(std::uint32_t step, std::size_t begin, std::size_t end) {
    word_.store(std::uint64_t{step} << 32 | begin << 16 | end, std::memory_order_release);
  }
  std::size_t begin() const { return word_.load(std::memory_order_relaxed) >> 16 & 0xffff; }
  // The next one of that step, or none: beyond any.
  std::size_t next(std::uint32_t step) const {
    const std::uint64_t word = word_.load(std::memory_order_relaxed);
    const std::size_t begin = word >> 16 & 0xffff, end = word & 0xffff;
    return word >> 32 == step && begin < end ? begin : most_units + 1;
  }

  // The first, or the last, if more than `kept` are left.
  std::optional<std::size_t> take(std::uint32_t step, bool last, std::size_t kept) {
    std::uint64_t word = word_.load(std::memory_order_acquire);
    for (;;) {
      const std::size_t begin = word >> 16 & 0xffff, end = word & 0xffff;
      if (word >> 32 != step || end - begin <= kept) return std::nullopt;
      const std::uint64_t rest = last ? word - 1 : word + (std::uint64_t{1} << 16);
      if (word_.compare_exchange_weak(word, rest, std::memory_order_acquire, std::memory_order_acquire))
        return last ? end - 1 : begin;
    }
  }

 private:
  std::atomic<std::uint64_t> word_{0};
};

// What the threads of parallel_steps share. Of two steps, since the next one is begun before a step is done.
class Steps {
 public:
  Steps(std::size_t parts, std::size_t units, std::uint32_t steps, const std::function<void(const StepUnit&)>& work,
        const std::function<void(std::uint32_t)>& between)
      : parts_(parts), units_(units), steps_(steps), work_(work), between_(between) {
    for (State& state : states_) state.shares = std::vector<Share>(parts);
    for (std::uint32_t step = 0; step < 2; ++step) {
      for (std::size_t part = 0; part < parts; ++part)
        of(step).shares[part].done = units * (part + 1) / parts - units * part / parts;
      share_out(step);
    }
  }

  void run(std::size_t own) {
    for (std::uint32_t step = 0; (step = std::max(step, current_.load(std::memory_order_acquire))) < steps_; ++step) {
      const auto begun = [&] { return current_.load(std::memory_order_acquire) >= step; };
      std::optional<std::size_t> ahead;
      if (!begun()) ahead = take(own, own, step, 0);
      if (ahead) work(own, *ahead, step, true, false);
      spin_until(begun);
      if (!begun()) finish(own, step - 1, work_all(own, step - 1, 0));  // what is left to threads that do not come
      for (std::uint32_t now; (now = current_.load(std::memory_order_acquire)) < step;)
        current_.wait(now, std::memory_order_acquire);
      if (ahead) work(own, *ahead, step, false, true);
      finish(own, step, (ahead ? 1 : 0) + work_all(own, step, 1));
    }
  }

 private:
  struct Share {
    Units units;
    std::size_t done = 0;  // by the thread of this number
  };
  struct State {
    std::vector<Share> shares;
    std::atomic<std::size_t> left{0};  // units that are not done
  };
  State& of(std::uint32_t step) { return states_[step % 2]; }

  std::optional<std::size_t> take(std::size_t own, std::size_t part, std::uint32_t step, std::size_t kept) {
    return of(step).shares[part].units.take(step, part != own, kept);
  }

  // All that is to be had; of others' units `kept` are left to them: they will begin them before long, and have them
  // in their caches. Returns how many.
  std::size_t work_all(std::size_t own, std::uint32_t step, std::size_t kept) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < parts_; ++i)
      while (const auto unit = take(own, (own + i) % parts_, step, i == 0 ? 0 : kept)) {
        work(own, *unit, step, true, true);
        ++count;
      }
    return count;
  }

  void work(std::size_t own, std::size_t unit, std::uint32_t step, bool first, bool second) {
    // Its own next unit; when it has no more, the first one of the next step.
    const std::size_t next = of(step).shares[own].units.next(step);
    if (next < units_)
      work_({own, unit, step, next, step, first, second});
    else
      work_({own, unit, step, of(step + 1).shares[own].units.begin() % units_, step + 1, first, second});
  }

  void finish(std::size_t own, std::uint32_t step, std::size_t done) {
    if (done == 0) return;
    State& state = of(step);
    state.shares[own].done += done;
    if (state.left.fetch_sub(done, std::memory_order_acq_rel) > done) return;
    between_(step);
    share_out(step + 2);
    current_.store(step + 1, std::memory_order_release);
    current_.notify_all();
  }

  // Everybody as many units as he did.
  void share_out(std::uint32_t step) {
    State& state = of(step);
    state.left.store(units_, std::memory_order_relaxed);
    std::size_t begin = 0;
    for (Share& share : state.shares) {
      share.units.set(step, begin, begin + share.done);
      begin += share.done;
      share.done = 0;
    }
  }

  const std::size_t parts_, units_;
  const std::uint32_t steps_;
  const std::function<void(const StepUnit&)>& work_;
  const std::function<void(std::uint32_t)>& between_;
  State states_[2];
  std::atomic<std::uint32_t> current_{0};
};

}  // namespace

void parallel_steps(std::size_t parts, std::size_t units, std::uint32_t steps,
                    const std::function<void(const StepUnit&)>& work,
                    const std::function<void(std::uint32_t step)>& between) {
  if (parts == 1) {
    for (std::uint32_t step = 0; step < steps; ++step) {
      for (std::size_t unit = 0; unit < units; ++unit) {
        const bool ends = unit + 1 == units;
        work({0, unit, step, ends ? 0 : unit + 1, ends ? step + 1 : step, true, true});
      }
      between(step);
    }
    return;
  }
  Steps all(parts, units, steps, work, between);
  // The number of threads may have fallen since `parts` was chosen: then one of them runs several.
  parallel_for(parts, 1, [&](std::size_t own, std::size_t end) noexcept {
    for (; own < end; ++own) all.run(own);
  });
}

}  // namespace aisec_fast
