#pragma once
#include <cstddef>
#include <memory>
#include <new>

namespace aisec_fast {

// Memory of one thread, aligned to 64 bytes, kept from call to call: fresh pages would have to be cleared.
inline float* scratch(std::size_t floats) {
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local std::size_t size = 0;
  if (size < floats) {
    memory.reset();
    size = 0;
    memory.reset(::operator new(floats * sizeof(float), std::align_val_t{64}));
    size = floats;
  }
  return static_cast<float*>(memory.get());
}

}  // namespace aisec_fast
