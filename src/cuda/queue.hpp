#pragma once
// Work on one stream of the current device, in order, with its scratch memory. After the first error nothing more is
// queued; status() says what it was. cudaLaunchKernelEx instead of <<<>>>, so that tests/cuda_on_host compiles the
// launches too.
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "grid.hpp"

namespace aisec_fast::cuda {
namespace {

class Queue {
 public:
  explicit Queue(cudaStream_t stream) : stream_(stream) {
    int device = 0, processors = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    most_blocks_ = static_cast<std::uint64_t>(processors) * blocks_per_processor;
  }
  ~Queue() { release(); }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // `count` values that live until the work queued so far and later is done.
  template <class T>
  T* scratch(std::uint64_t count) {
    void* memory = nullptr;
    if (ok() && check(cudaMallocAsync(&memory, (count > 0 ? count : 1) * sizeof(T), stream_)))
      scratch_.push_back(memory);
    return static_cast<T*>(memory);
  }

  template <class T>
  void fill_bytes(T* values, int byte, std::uint64_t count) {
    if (ok() && count > 0) check(cudaMemsetAsync(values, byte, count * sizeof(T), stream_));
  }

  // Runs the kernel on enough blocks to give each of `threads` threads one piece of work, or on as many as the GPU
  // holds.
  template <class... Parameters, class... Arguments>
  void run(std::uint64_t threads, void (*kernel)(Parameters...), Arguments&&... arguments) {
    const std::uint64_t blocks = threads / block_threads + (threads % block_threads != 0);
    if (!ok() || blocks == 0) return;
    cudaLaunchConfig_t launch{};
    launch.gridDim = dim3(static_cast<unsigned>(blocks < most_blocks_ ? blocks : most_blocks_));
    launch.blockDim = dim3(block_threads);
    launch.stream = stream_;
    check(cudaLaunchKernelEx(&launch, kernel, std::forward<Arguments>(arguments)...));
  }

  // Waits for all of it and copies one value back.
  template <class T>
  T read(const T* value) {
    T copy{};
    if (ok()) check(cudaMemcpyAsync(&copy, value, sizeof copy, cudaMemcpyDeviceToHost, stream_));
    if (ok()) check(cudaStreamSynchronize(stream_));
    return copy;
  }

  // The same for `count` values.
  template <class T>
  void read(T* to, const T* from, std::size_t count) {
    if (ok() && count > 0) check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDeviceToHost, stream_));
    if (ok() && count > 0) check(cudaStreamSynchronize(stream_));
  }

  bool ok() const { return status_ == cudaSuccess; }

  cudaError_t finish() {
    release();
    return status_;
  }

 private:
  static constexpr std::uint64_t blocks_per_processor =
      32;  // four times what fits: a slow block does not hold up the rest

  bool check(cudaError_t status) {
    if (ok()) status_ = status;
    return status == cudaSuccess;
  }
  void release() {
    for (void* memory : scratch_) check(cudaFreeAsync(memory, stream_));
    scratch_.clear();
  }

  cudaStream_t stream_;
  std::uint64_t most_blocks_ = 0;
  cudaError_t status_ = cudaSuccess;
  std::vector<void*> scratch_;
};

}  // namespace
}  // namespace aisec_fast::cuda
