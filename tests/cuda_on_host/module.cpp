// The Python module _cuda on the stand-in, and what the stand-in noted, for test_cuda_module.py.
#include "../../src/cuda/module.cpp"

#include "../../src/cuda/bind_adversarial.cpp"
#include "../../src/cuda/bind_clipping.cpp"
#include "../../src/cuda/bind_ghost.cpp"
#include "../../src/cuda/bind_hashing.cpp"
#include "../../src/cuda/bind_noise.cpp"
#include "../../src/cuda/bind_update.cpp"

#include "adversarial.cu"
#include "clipping.cu"
#include "ghost.cu"
#include "hashing.cu"
#include "noise.cu"
#include "update.cu"

extern "C" {
__attribute__((visibility("default"))) int current_device() { return host_cuda::device; }
__attribute__((visibility("default"))) int last_device() { return host_cuda::last_device; }
__attribute__((visibility("default"))) void* last_stream() { return host_cuda::last_stream; }
__attribute__((visibility("default"))) void record(void* stream, bool on) {
  host_cuda::recorded = stream;
  host_cuda::recording = on;
}
__attribute__((visibility("default"))) unsigned waits() { return host_cuda::waits; }
}
