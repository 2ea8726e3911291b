// _cuda: the functions of _core for arrays on a GPU, same names and signatures. Imports on a machine without a driver.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/noise_call.hpp"
#include "clipping.cuh"
#include "noise.cuh"

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

 private:
  void borrow(const std::vector<Named>& arrays, std::uintptr_t stream) {
    views_.clear();
    for (const Named& named : arrays) views_.emplace_back(named.array, named.name, py::int_(stream));
  }

  std::vector<ArrayView> views_;
  std::uintptr_t stream_ = legacy_default_stream;
  bool wait_ = false;
};

void require_float(const ArrayView& array) {
  if (array.dtype() != DType::float64) array.of_type(DType::float32);
}

void add_gaussian(const py::object& x_, const py::object& out_, double sigma, double granularity,
                  const py::bytes& key) {
  const Arrays arrays({{x_, "x"}, {out_, "out"}});
  const ArrayView &x = arrays[0].contiguous(), &out = arrays[1].contiguous().writable().of_size(x.size());
  require_float(out);
  if (x.dtype() != DType::int64) out.of_type(x.dtype());
  const NoiseCall call = noise_call(sigma, granularity, key);
  arrays.run([&](cudaStream_t stream) {
    return cuda::add_gaussian(x.dtype(), x.data<void>(), out.dtype(), out.data<void>(), x.size(), call, stream);
  });
}

void add_laplace(const py::object& x_, const py::object& out_, double scale, double granularity, const py::bytes& key) {
  const Arrays arrays({{x_, "x"}, {out_, "out"}});
  const ArrayView &x = arrays[0].contiguous(), &out = arrays[1].contiguous().writable().of_size(x.size());
  require_float(x);
  out.of_type(x.dtype());
  const NoiseCall call = noise_call(scale, granularity, key);
  arrays.run([&](cudaStream_t stream) {
    return cuda::add_laplace(x.dtype(), x.data<void>(), out.data<void>(), x.size(), call, stream);
  });
}

void random_words(const py::object& out_, const py::bytes& key, std::uint32_t domain) {
  const Arrays arrays({{out_, "out"}});
  const ArrayView& out = arrays[0].of_type(DType::uint64).contiguous().writable();
  const NoiseCall call = noise_call(1.0, 1.0, key);
  arrays.run([&](cudaStream_t stream) {
    return cuda::random_words(out.data<std::uint64_t>(), out.size(), call, domain, stream);
  });
}

py::ssize_t first_unfit(const py::object& x_, double granularity) {
  const Arrays arrays({{x_, "x"}});
  const ArrayView& x = arrays[0].contiguous();
  require_float(x);
  std::size_t first = 0;
  arrays.run([&](cudaStream_t stream) {
    return cuda::first_unfit(x.dtype(), x.data<void>(), x.size(), granularity, first, stream);
  });
  return first == x.size() ? -1 : static_cast<py::ssize_t>(first);
}

using Objects = std::vector<py::object>;

std::vector<Named> named(const Objects& grads, const Objects& outs, const py::object& per_row,
                         const char* per_row_name) {
  if (grads.empty()) throw py::value_error("grads is an empty list");
  std::vector<Named> all;
  for (const py::object& grad : grads) all.push_back({grad, "grads"});
  for (const py::object& out : outs) all.push_back({out, "out"});
  all.push_back({per_row, per_row_name});
  return all;
}

// The views of one clipping call: gradients, one output for each (or none), and the norms or weights of the rows.
class ClippingCall {
 public:
  ClippingCall(const Objects& grads, const Objects& outs, const py::object& per_row, const char* per_row_name)
      : arrays_(named(grads, outs, per_row, per_row_name)), grads_(grads.size()), outs_(outs.size()) {
    batch_.dtype = arrays_[0].dtype();
    if (batch_.dtype != DType::float32 && batch_.dtype != DType::float64 && batch_.dtype != DType::bfloat16)
      throw py::type_error("grads has an integer dtype, expected float32, float64 or bfloat16");
    for (std::size_t a = 0; a < grads_; ++a) {
      const ArrayView& grad = arrays_[a].of_type(batch_.dtype).contiguous_rows();
      if (grad.size(0) != arrays_[0].size(0)) throw py::value_error("grads differ in their number of rows");
      std::size_t columns = 1;
      for (std::size_t axis = 1; axis < grad.dimensions(); ++axis) columns *= grad.size(axis);
      batch_.arrays.push_back({grad.data<const void>(), grad.row_stride(), columns});
    }
    batch_.rows = arrays_[0].size(0);
    per_row_array().of_type(DType::float64).contiguous().of_size(batch_.rows);
  }

  const Arrays& arrays() const { return arrays_; }
  const Batch& batch() const { return batch_; }
  const double* weights() const { return per_row_array().data<double>(); }
  double* norms() const { return per_row_array().writable().data<double>(); }

  template <class T>
  std::vector<T*> outputs(DType dtype) const {
    if (outs_ != grads_) throw py::value_error("outs has another length than grads");
    std::vector<T*> pointers;
    for (std::size_t a = 0; a < outs_; ++a) {
      const ArrayView& out = arrays_[grads_ + a];
      pointers.push_back(
          out.of_type(dtype).contiguous().writable().of_size(batch_.arrays[a].columns).template data<T>());
    }
    return pointers;
  }
  std::vector<void*> sums() const {
    return outputs<void>(batch_.dtype == DType::float64 ? DType::float64 : DType::float32);
  }

 private:
  const ArrayView& per_row_array() const { return arrays_[grads_ + outs_]; }

  Arrays arrays_;
  std::size_t grads_, outs_;
  Batch batch_{};
};

void norms(const Objects& grads, const py::object& norms) {
  const ClippingCall call(grads, {}, norms, "norms");
  double* const results = call.norms();
  call.arrays().run([&](cudaStream_t stream) { return cuda::row_norms(call.batch(), results, stream); });
}

void weighted_sum(const Objects& grads, const py::object& weights, const Objects& outs) {
  const ClippingCall call(grads, outs, weights, "weights");
  const std::vector<void*> sums = call.sums();
  call.arrays().run(
      [&](cudaStream_t stream) { return cuda::weighted_sum(call.batch(), call.weights(), sums, stream); });
}

void clip_and_sum(const Objects& grads, double max_norm, const Objects& outs, const py::object& norms) {
  const ClippingCall call(grads, outs, norms, "norms");
  const std::vector<void*> sums = call.sums();
  double* const results = call.norms();
  call.arrays().run(
      [&](cudaStream_t stream) { return cuda::clip_and_sum(call.batch(), max_norm, sums, results, stream); });
}

void lattice_sum(const Objects& grads, double max_norm, double granularity, std::int64_t limit, const Objects& outs,
                 const py::object& norms) {
  const ClippingCall call(grads, outs, norms, "norms");
  const std::vector<std::int64_t*> sums = call.outputs<std::int64_t>(DType::int64);
  double* const results = call.norms();
  call.arrays().run([&](cudaStream_t stream) {
    return cuda::lattice_sum(call.batch(), max_norm, granularity, limit, sums, results, stream);
  });
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;  // no driver, or one too old for this runtime: no devices, not an error
}

int runtime_version() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version));
  return version;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace
}  // namespace aisec_fast::bindings

PYBIND11_MODULE(_cuda, module, pybind11::mod_gil_not_used()) {
  namespace py = pybind11;
  using namespace aisec_fast::bindings;
  module.doc() = "CUDA kernels. Private: use aisec_fast.noise and aisec_fast.clipping.";
  module.attr("version") = AISEC_FAST_VERSION;
  module.def("device_count", &device_count, "GPUs that the driver offers; 0 without a driver.");
  module.def("runtime_version", &runtime_version, "Of the CUDA runtime inside this module: 13000 is 13.0.");
  module.def("driver_version", &driver_version, "The newest CUDA version that the driver supports; 0 without one.");
  module.def("add_gaussian", &add_gaussian, py::arg("x"), py::arg("out"), py::arg("sigma"), py::arg("granularity"),
             py::arg("key"));
  module.def("add_laplace", &add_laplace, py::arg("x"), py::arg("out"), py::arg("scale"), py::arg("granularity"),
             py::arg("key"));
  module.def("random_words", &random_words, py::arg("out"), py::arg("key"), py::arg("domain"));
  module.def("first_unfit", &first_unfit, py::arg("x"), py::arg("granularity"));
  module.def("norms", &norms, py::arg("grads"), py::arg("norms"));
  module.def("weighted_sum", &weighted_sum, py::arg("grads"), py::arg("weights"), py::arg("outs"));
  module.def("clip_and_sum", &clip_and_sum, py::arg("grads"), py::arg("max_norm"), py::arg("outs"), py::arg("norms"));
  module.def("lattice_sum", &lattice_sum, py::arg("grads"), py::arg("max_norm"), py::arg("granularity"),
             py::arg("limit"), py::arg("outs"), py::arg("norms"));
}
