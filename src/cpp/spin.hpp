#pragma once
// Waiting for another thread without sleeping.

namespace aisec_fast {

// Tells the processor that a loop only waits.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// For some microseconds, or until the condition holds: to fall asleep and be woken takes longer than a short loop.
template <class Condition>
void spin_until(const Condition& holds) {
  for (int spins = 0; spins < 4000 && !holds(); ++spins) relax();
}

}  // namespace aisec_fast
