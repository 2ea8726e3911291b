#include <pybind11/stl.h>

#include "aisec_fast/ghost_call.hpp"
#include "bind.hpp"
#include "ghost.hpp"

namespace aisec_fast {
namespace {

ArrayView on_cpu(const py::object& array, const char* name) {
  ArrayView view(array, name);
  view.on_device(dlpack::on_cpu);
  return view;
}

void run_gram_squares(const py::object& inputs, const py::object& outputs, const py::object& squares,
                      const py::object& bounds) {
  const ArrayView a = on_cpu(inputs, "inputs"), g = on_cpu(outputs, "outputs");
  const ArrayView square = on_cpu(squares, "squares"), bound = on_cpu(bounds, "bounds");
  const GramShape shape = gram_shape(a, g, square, bound);
  const py::gil_scoped_release unlocked;
  gram_squares(shape, a.size(0), a.data<float>(), g.data<float>(), square.data<double>(), bound.data<double>(),
               nullptr);
}

void run_conv_gram_squares(const py::object& activation, const py::object& gradient, const Pair& kernel,
                           const Pair& stride, const Pair& before, const Pair& dilation, std::size_t groups,
                           const py::object& squares, const py::object& bounds) {
  const ArrayView a = on_cpu(activation, "activation"), g = on_cpu(gradient, "gradient");
  const ArrayView square = on_cpu(squares, "squares"), bound = on_cpu(bounds, "bounds");
  const ConvShape shape = conv_shape(a, g, kernel, stride, before, dilation, groups, square, bound);
  const py::gil_scoped_release unlocked;
  conv_gram_squares(shape, a.size(0), a.data<float>(), g.data<float>(), square.data<double>(), bound.data<double>());
}

void run_conv_rows(const py::object& activation, const py::object& gradient, const Pair& kernel, const Pair& stride,
                   const Pair& before, const Pair& dilation, std::size_t groups, const py::object& rows,
                   const py::object& squares, const py::object& bounds) {
  const ArrayView a = on_cpu(activation, "activation"), g = on_cpu(gradient, "gradient"), out = on_cpu(rows, "rows");
  const ArrayView square = on_cpu(squares, "squares"), bound = on_cpu(bounds, "bounds");
  const ConvShape shape =
      conv_shape(a, g, kernel, stride, before, dilation, groups, square, bound.size() == 0 ? square : bound);
  out.of_type(DType::float32).contiguous().of_size(a.size(0) * row_size(shape)).writable();
  const py::gil_scoped_release unlocked;
  conv_rows(shape, a.size(0), a.data<float>(), g.data<float>(), out.data<float>(), false, square.data<double>(),
            wanted(bound), {nullptr, nullptr});
}

}  // namespace

void bind_ghost(py::module_& module) {
  module.def("gram_squares", &run_gram_squares, py::arg("inputs"), py::arg("outputs"), py::arg("squares"),
             py::arg("bounds"));
  module.def("conv_gram_squares", &run_conv_gram_squares, py::arg("activation"), py::arg("gradient"), py::arg("kernel"),
             py::arg("stride"), py::arg("before"), py::arg("dilation"), py::arg("groups"), py::arg("squares"),
             py::arg("bounds"));
  module.def("conv_rows", &run_conv_rows, py::arg("activation"), py::arg("gradient"), py::arg("kernel"),
             py::arg("stride"), py::arg("before"), py::arg("dilation"), py::arg("groups"), py::arg("rows"),
             py::arg("squares"), py::arg("bounds"));
}

}  // namespace aisec_fast
