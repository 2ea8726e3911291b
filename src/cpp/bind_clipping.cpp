#include <string>
#include <vector>

#include <pybind11/stl.h>
#include "aisec_fast/array_view.hpp"

#include "bind.hpp"
#include "clipping.hpp"

namespace aisec_fast {
namespace {

// The views of one call: gradients, one output for each, and the norms or weights of the rows.
class ClippingCall {
 public:
  ClippingCall(const std::vector<py::object>& grads, const py::object& per_row, bool per_row_is_output)
      : per_row_(per_row, per_row_is_output ? "norms" : "weights") {
    if (grads.empty()) throw py::value_error("grads is an empty list");
    for (const py::object& grad : grads) grads_.emplace_back(grad, "grads");
    batch_.dtype = grads_[0].dtype();
    if (batch_.dtype != DType::float32 && batch_.dtype != DType::float64 && batch_.dtype != DType::bfloat16)
      throw py::type_error("grads has an integer dtype, expected float32, float64 or bfloat16");
    for (const ArrayView& grad : grads_) {
      grad.on_device(dlpack::on_cpu).of_type(batch_.dtype).contiguous_rows();
      if (grad.size(0) != grads_[0].size(0)) throw py::value_error("grads differ in their number of rows");
      std::size_t columns = 1;
      for (std::size_t axis = 1; axis < grad.dimensions(); ++axis) columns *= grad.size(axis);
      batch_.arrays.push_back({grad.data<const void>(), grad.row_stride(), columns});
    }
    batch_.rows = grads_[0].size(0);
    per_row_.on_device(dlpack::on_cpu).of_type(DType::float64).contiguous().of_size(batch_.rows);
    if (per_row_is_output) per_row_.writable();
  }

  const Batch& batch() const { return batch_; }
  double* per_row() const { return per_row_.data<double>(); }

  template <class T>
  std::vector<T*> outputs(const std::vector<py::object>& outs, DType dtype) {
    if (outs.size() != grads_.size()) throw py::value_error("outs has another length than grads");
    std::vector<T*> pointers;
    for (std::size_t a = 0; a < outs.size(); ++a) {
      outs_.emplace_back(outs[a], "out");
      outs_.back().on_device(dlpack::on_cpu).of_type(dtype).contiguous().writable().of_size(batch_.arrays[a].columns);
      pointers.push_back(outs_.back().data<T>());
    }
    return pointers;
  }
  std::vector<void*> sums(const std::vector<py::object>& outs) {
    return outputs<void>(outs, batch_.dtype == DType::float64 ? DType::float64 : DType::float32);
  }

 private:
  std::vector<ArrayView> grads_, outs_;
  ArrayView per_row_;
  Batch batch_;
};

using Objects = std::vector<py::object>;

void norms(const Objects& grads, const py::object& norms) {
  const ClippingCall call(grads, norms, true);
  const py::gil_scoped_release unlocked;
  row_norms(call.batch(), call.per_row());
}

void weighted(const Objects& grads, const py::object& weights, const Objects& outs) {
  ClippingCall call(grads, weights, false);
  const std::vector<void*> sums = call.sums(outs);
  const py::gil_scoped_release unlocked;
  weighted_sum(call.batch(), call.per_row(), sums);
}

void clip(const Objects& grads, double max_norm, const Objects& outs, const py::object& norms) {
  ClippingCall call(grads, norms, true);
  const std::vector<void*> sums = call.sums(outs);
  const py::gil_scoped_release unlocked;
  clip_and_sum(call.batch(), max_norm, sums, call.per_row());
}

void lattice(const Objects& grads, double max_norm, double granularity, std::int64_t limit, const Objects& outs,
             const py::object& norms) {
  ClippingCall call(grads, norms, true);
  const std::vector<std::int64_t*> sums = call.outputs<std::int64_t>(outs, DType::int64);
  const py::gil_scoped_release unlocked;
  lattice_sum(call.batch(), max_norm, granularity, limit, sums, call.per_row());
}

}  // namespace

void bind_clipping(py::module_& module) {
  module.def("norms", &norms, py::arg("grads"), py::arg("norms"));
  module.def("weighted_sum", &weighted, py::arg("grads"), py::arg("weights"), py::arg("outs"));
  module.def("clip_and_sum", &clip, py::arg("grads"), py::arg("max_norm"), py::arg("outs"), py::arg("norms"));
  module.def("lattice_sum", &lattice, py::arg("grads"), py::arg("max_norm"), py::arg("granularity"), py::arg("limit"),
             py::arg("outs"), py::arg("norms"));
}

}  // namespace aisec_fast
