#pragma once
// A loop of steps on the threads of the pool: each step needs what the one before has found out.
#include <cstddef>
#include <cstdint>
#include <functional>

namespace aisec_fast {

// A unit of one step, and what its thread will begin next (if nobody takes it away): worth fetching.
struct StepUnit {
  std::size_t thread, unit;
  std::uint32_t step;
  std::size_t next_unit;
  std::uint32_t next_step;
  bool first, second;  // which halves are to be done now
};

// Runs steps 0, ..., steps - 1 of all units (at most 65535), each unit's first half and then its second, both on one
// thread; between(s) runs once when all of step s is done (also after the last). No second half of step s + 1 begins
// before that. One first half may, where a thread would have to wait: so between(s) must stand first halves of the next
// step beside it. One dispatch for all: threads that wait spin before they sleep.
// Threads are not equally fast, so each takes units of its own range in turn and then, from their ends, what others
// have left; what it did is the length of its range two steps later. `thread` < parts is of one thread at a time. A
// thread that comes late holds up nobody for longer than a spin. Neither function may throw.
void parallel_steps(std::size_t parts, std::size_t units, std::uint32_t steps,
                    const std::function<void(const StepUnit&)>& work,
                    const std::function<void(std::uint32_t step)>& between);

}  // namespace aisec_fast
