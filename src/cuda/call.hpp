#pragma once
// What the functions of _cuda share: the arrays of a call, its device and its stream, errors of the runtime.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "aisec_fast/array_view.hpp"

namespace aisec_fast::bindings {
namespace {

constexpr std::uintptr_t legacy_default_stream = 1;  // the number DLPack and CUDA have for it

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // the runtime's own record of it: not to be found by someone else's check later
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&previous_));
    check(cudaSetDevice(device));
  }
  ~CurrentDevice() { cudaSetDevice(previous_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int previous_ = 0;
};

struct Named {
  py::object array;
  const char* name;
};

// The arrays of one call, all on one GPU, and the stream the call runs on: the one that the producers say is current
// (torch). A producer that cannot say gets our stream, so that its earlier work is done first, and as it cannot be told
// to wait for ours, the call then waits.
class Arrays {
 public:
  explicit Arrays(const std::vector<Named>& arrays) {
    borrow(arrays, legacy_default_stream);
    bool told = false;
    for (const ArrayView& view : views_) {
      view.on_device(dlpack::on_cuda);
      if (view.device_index() != views_[0].device_index())
        throw py::value_error(view.name() + " and " + views_[0].name() + " are on different GPUs");
      if (!view.stream()) {
        wait_ = true;
        continue;
      }
      if (told && *view.stream() != stream_)
        throw py::value_error(view.name() + " has another current stream than the arrays before it");
      told = true;
      stream_ = *view.stream();
    }
    // DLPack does not let 0 name the default stream, which is what CUDA and torch call it.
    if (told && wait_ && stream_ != 0) borrow(arrays, stream_);
  }

  const ArrayView& operator[](std::size_t index) const { return views_[index]; }

  // Queues work(stream) on the arrays' device without the GIL.
  template <class Work>
  void run(const Work& work) const {
    const py::gil_scoped_release unlocked;
    const CurrentDevice device(views_[0].device_index());
    const auto stream = reinterpret_cast<cudaStream_t>(stream_);
    check(work(stream));
    if (wait_) check(cudaStreamSynchronize(stream));
  }

  // The same for work that adds random numbers: to be done once. A graph that records it would add the same at every
  // replay, and the difference of two results has no noise.
  template <class Work>
  void run_once(const Work& work) const {
    auto recording = cudaStreamCaptureStatusNone;
    {
      const CurrentDevice device(views_[0].device_index());
      check(cudaStreamIsCapturing(reinterpret_cast<cudaStream_t>(stream_), &recording));
    }
    if (recording != cudaStreamCaptureStatusNone)
      throw std::runtime_error(
          "a CUDA graph is being recorded on the current stream, and each replay would add the same noise: add it "
          "outside of the graph");
    run(work);
  }

 private:
  void borrow(const std::vector<Named>& arrays, std::uintptr_t stream) {
    views_.clear();
    views_.reserve(arrays.size());
    for (const Named& named : arrays) views_.emplace_back(named.array, named.name, py::int_(stream));
  }

  std::vector<ArrayView> views_;
  std::uintptr_t stream_ = legacy_default_stream;
  bool wait_ = false;
};

}  // namespace
}  // namespace aisec_fast::bindings
