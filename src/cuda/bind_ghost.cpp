#include <pybind11/stl.h>

#include "aisec_fast/ghost_call.hpp"
#include "bind.hpp"
#include "call.hpp"
#include "ghost.cuh"

namespace aisec_fast::bindings {
namespace {

void gram_squares(const py::object& inputs, const py::object& outputs, const py::object& squares,
                  const py::object& bounds) {
  const Arrays arrays({{inputs, "inputs"}, {outputs, "outputs"}, {squares, "squares"}, {bounds, "bounds"}});
  const GramShape shape = gram_shape(arrays[0], arrays[1], arrays[2], arrays[3]);
  arrays.run([&](cudaStream_t stream) {
    return cuda::gram_squares(shape, arrays[0].size(0), arrays[0].data<float>(), arrays[1].data<float>(),
                              arrays[2].data<double>(), arrays[3].data<double>(), stream);
  });
}

void conv_gram_squares(const py::object& activation, const py::object& gradient, const Pair& kernel, const Pair& stride,
                       const Pair& before, const Pair& dilation, std::size_t groups, const py::object& squares,
                       const py::object& bounds) {
  const Arrays arrays({{activation, "activation"}, {gradient, "gradient"}, {squares, "squares"}, {bounds, "bounds"}});
  const ConvShape shape =
      conv_shape(arrays[0], arrays[1], kernel, stride, before, dilation, groups, arrays[2], arrays[3]);
  arrays.run([&](cudaStream_t stream) {
    return cuda::conv_gram_squares(shape, arrays[0].size(0), arrays[0].data<float>(), arrays[1].data<float>(),
                                   arrays[2].data<double>(), arrays[3].data<double>(), stream);
  });
}

void conv_rows(const py::object& activation, const py::object& gradient, const Pair& kernel, const Pair& stride,
               const Pair& before, const Pair& dilation, std::size_t groups, const py::object& rows,
               const py::object& squares, const py::object& bounds) {
  const Arrays arrays(
      {{activation, "activation"}, {gradient, "gradient"}, {rows, "rows"}, {squares, "squares"}, {bounds, "bounds"}});
  const ConvShape shape = conv_shape(arrays[0], arrays[1], kernel, stride, before, dilation, groups, arrays[3],
                                     arrays[4].size() == 0 ? arrays[3] : arrays[4]);
  arrays[2].of_type(DType::float32).contiguous().of_size(arrays[0].size(0) * row_size(shape)).writable();
  arrays.run([&](cudaStream_t stream) {
    return cuda::conv_rows(shape, arrays[0].size(0), arrays[0].data<float>(), arrays[1].data<float>(),
                           arrays[2].data<float>(), arrays[3].data<double>(), wanted(arrays[4]), stream);
  });
}

}  // namespace

void bind_ghost(py::module_& module) {
  module.def("gram_squares", &gram_squares, py::arg("inputs"), py::arg("outputs"), py::arg("squares"),
             py::arg("bounds"));
  module.def("conv_gram_squares", &conv_gram_squares, py::arg("activation"), py::arg("gradient"), py::arg("kernel"),
             py::arg("stride"), py::arg("before"), py::arg("dilation"), py::arg("groups"), py::arg("squares"),
             py::arg("bounds"));
  module.def("conv_rows", &conv_rows, py::arg("activation"), py::arg("gradient"), py::arg("kernel"), py::arg("stride"),
             py::arg("before"), py::arg("dilation"), py::arg("groups"), py::arg("rows"), py::arg("squares"),
             py::arg("bounds"));
}

}  // namespace aisec_fast::bindings
