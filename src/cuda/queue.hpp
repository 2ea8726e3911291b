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
#include "scratch_pool.hpp"
#include "together.hpp"

namespace aisec_fast::cuda {
namespace {

class Queue {
 public:
  explicit Queue(cudaStream_t stream) : stream_(stream) {
    int processors = 0;
    check(cudaGetDevice(&device_));
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device_));
    processors_ = static_cast<std::uint64_t>(processors);
  }
  ~Queue() { release(); }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // `count` values that live until the work queued so far and later is done.
  template <class T>
  T* scratch(std::uint64_t count) {
    void* memory = nullptr;
    cudaMemPool_t pool = nullptr;
    if (ok() && check(scratch_pool(device_, pool)) &&
        check(cudaMallocFromPoolAsync(&memory, (count > 0 ? count : 1) * sizeof(T), pool, stream_)))
      scratch_.push_back(memory);
    return static_cast<T*>(memory);
  }

  template <class T>
  void fill_bytes(T* values, int byte, std::uint64_t count) {
    if (ok() && count > 0) check(cudaMemsetAsync(values, byte, count * sizeof(T), stream_));
  }

  template <class T>
  void copy(T* to, const T* from, std::uint64_t count) {
    if (ok() && count > 0) check(cudaMemcpyAsync(to, from, count * sizeof(T), cudaMemcpyDeviceToDevice, stream_));
  }

  // Runs the kernel on enough blocks to give each of `threads` threads one piece of work, or on as many as the GPU
  // holds.
  template <class... Parameters, class... Arguments>
  void run(std::uint64_t threads, void (*kernel)(Parameters...), Arguments&&... arguments) {
    launch(block_threads, blocks(threads), kernel, std::forward<Arguments>(arguments)...);
  }

  // The same for a kernel whose blocks each prepare something first: on no more blocks than processors hold at once.
  template <class... Parameters, class... Arguments>
  void run_resident(std::uint64_t threads, unsigned per_processor, void (*kernel)(Parameters...),
                    Arguments&&... arguments) {
    launch(block_threads, resident_blocks(threads, per_processor), kernel, std::forward<Arguments>(arguments)...);
  }

  // The same for a kernel whose threads know nothing of each other: few of them come in small blocks, so that they
  // reach all processors.
  template <class... Parameters, class... Arguments>
  void run_apart(std::uint64_t threads, void (*kernel)(Parameters...), Arguments&&... arguments) {
    unsigned block = block_threads;
    while (block > 2 * warp_threads && threads / block < 2 * processors_) block /= 2;
    launch(block, blocks_of(block, threads), kernel, std::forward<Arguments>(arguments)...);
  }

  // Whether so many threads are less than a block for each processor.
  bool is_few(std::uint64_t threads) const { return threads < processors_ * block_threads; }

  // How many blocks `run` takes for so many threads.
  unsigned blocks(std::uint64_t threads) const { return blocks_of(block_threads, threads); }

  // Where each has much to do, some times as many, one after the other: a block that is held up then holds up less.
  unsigned resident_blocks(std::uint64_t threads, unsigned per_processor) const {
    constexpr std::uint64_t most_waves = 4, long_work = 32;
    const std::uint64_t resident = processors_ * per_processor, wanted = pieces(threads, block_threads);
    const std::uint64_t waves = wanted / (resident * long_work);
    const std::uint64_t most = resident * (waves < 1 ? 1 : waves < most_waves ? waves : most_waves);
    return static_cast<unsigned>(wanted < most ? wanted : most);
  }

  template <class... Parameters, class... Arguments>
  void run_blocks(std::uint64_t blocks, void (*kernel)(Parameters...), Arguments&&... arguments) {
    launch(block_threads, static_cast<unsigned>(blocks), kernel, std::forward<Arguments>(arguments)...);
  }

  // One block of so many threads for each of `pieces`, or as many blocks as the GPU has use for.
  template <class... Parameters, class... Arguments>
  void run_blocks_of(unsigned block, std::uint64_t pieces, void (*kernel)(Parameters...), Arguments&&... arguments) {
    const std::uint64_t most = processors_ * blocks_per_processor;
    launch(block, static_cast<unsigned>(pieces < most ? pieces : most), kernel, std::forward<Arguments>(arguments)...);
  }

  // Whether there is code of a kernel for an architecture that has what together.hpp takes. After an error, too.
  template <class... Parameters>
  bool has_code_together(void (*kernel)(Parameters...)) {
    cudaFuncAttributes attributes{};
    if (ok()) check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)));
    return !ok() || attributes.ptxVersion >= together_from;
  }

  // Runs a kernel whose blocks wait for one another and that has such code, with so many bytes of shared memory each.
  // False, and nothing is queued, if the GPU does not hold all blocks.
  template <class... Parameters, class... Arguments>
  bool run_together(unsigned block, unsigned blocks, std::size_t shared_bytes, void (*kernel)(Parameters...),
                    Arguments&&... arguments) {
    const void* const function = reinterpret_cast<const void*>(kernel);
    if (!ok()) return true;
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    cudaLaunchAttribute together{};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config = launch_config(block, blocks);
    config.dynamicSmemBytes = shared_bytes;
    config.attrs = &together;
    config.numAttrs = 1;
    if (!ok()) return true;
    const cudaError_t status = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
    if (status == cudaErrorCooperativeLaunchTooLarge) {
      cudaGetLastError();  // the runtime's own record of it
      return false;
    }
    check(status);
    return true;
  }

  // Processors of a GPU that runs blocks together; else 0.
  unsigned processors_together() {
    return attribute(cudaDevAttrCooperativeLaunch) != 0 ? static_cast<unsigned>(processors_) : 0;
  }
  std::size_t most_shared_bytes() {
    return static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
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

  static std::uint64_t pieces(std::uint64_t count, std::uint64_t size) { return count / size + (count % size != 0); }

  unsigned blocks_of(unsigned block, std::uint64_t threads) const {
    const std::uint64_t wanted = pieces(threads, block);
    const std::uint64_t most = processors_ * blocks_per_processor * (block_threads / block);
    return static_cast<unsigned>(wanted < most ? wanted : most);
  }

  template <class... Parameters, class... Arguments>
  void launch(unsigned block, unsigned blocks, void (*kernel)(Parameters...), Arguments&&... arguments) {
    if (!ok() || blocks == 0) return;
    const cudaLaunchConfig_t config = launch_config(block, blocks);
    check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
  }

  cudaLaunchConfig_t launch_config(unsigned block, unsigned blocks) const {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(block);
    config.stream = stream_;
    return config;
  }

  int attribute(cudaDeviceAttr which) {
    int value = 0;
    if (ok()) check(cudaDeviceGetAttribute(&value, which, device_));
    return value;
  }

  bool check(cudaError_t status) {
    if (ok()) status_ = status;
    return status == cudaSuccess;
  }
  void release() {
    for (void* memory : scratch_) check(cudaFreeAsync(memory, stream_));
    scratch_.clear();
  }

  cudaStream_t stream_;
  int device_ = 0;
  std::uint64_t processors_ = 1;
  cudaError_t status_ = cudaSuccess;
  std::vector<void*> scratch_;
};

}  // namespace
}  // namespace aisec_fast::cuda
