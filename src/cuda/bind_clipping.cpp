#include <pybind11/stl.h>

#include "bind.hpp"
#include "call.hpp"
#include "clipping.cuh"

namespace aisec_fast::bindings {
namespace {

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

}  // namespace

void bind_clipping(py::module_& module) {
  module.def("norms", &norms, py::arg("grads"), py::arg("norms"));
  module.def("weighted_sum", &weighted_sum, py::arg("grads"), py::arg("weights"), py::arg("outs"));
  module.def("clip_and_sum", &clip_and_sum, py::arg("grads"), py::arg("max_norm"), py::arg("outs"), py::arg("norms"));
  module.def("lattice_sum", &lattice_sum, py::arg("grads"), py::arg("max_norm"), py::arg("granularity"),
             py::arg("limit"), py::arg("outs"), py::arg("norms"));
}

}  // namespace aisec_fast::bindings
