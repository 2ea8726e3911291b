#include "adversarial.cuh"
#include "aisec_fast/adversarial_call.hpp"
#include "bind.hpp"
#include "call.hpp"

namespace aisec_fast::bindings {
namespace {

using Run = cudaError_t (*)(DType type, std::size_t rows, const AdversarialStep& step, cudaStream_t stream);

void run_step(Run run, const py::object& adv, const py::object& x, const py::object& gradient, double step_size,
              double eps, double low, double high, const py::object& out) {
  const Arrays arrays({{adv, "adv"}, {x, "x"}, {gradient, "gradient"}, {out, "out"}});
  const AdversarialCall call = adversarial_call(arrays[0], arrays[1], arrays[2], arrays[3], step_size, eps, low, high);
  arrays.run([&](cudaStream_t stream) { return run(call.dtype, call.rows, call.step, stream); });
}

void linf_step(const py::object& adv, const py::object& x, const py::object& gradient, double step_size, double eps,
               double low, double high, const py::object& out) {
  run_step(cuda::linf_step, adv, x, gradient, step_size, eps, low, high, out);
}

void l2_step(const py::object& adv, const py::object& x, const py::object& gradient, double step_size, double eps,
             double low, double high, const py::object& out) {
  run_step(cuda::l2_step, adv, x, gradient, step_size, eps, low, high, out);
}

}  // namespace

void bind_adversarial(py::module_& module) {
  module.def("linf_step", &linf_step, py::arg("adv"), py::arg("x"), py::arg("gradient"), py::arg("step_size"),
             py::arg("eps"), py::arg("low"), py::arg("high"), py::arg("out"));
  module.def("l2_step", &l2_step, py::arg("adv"), py::arg("x"), py::arg("gradient"), py::arg("step_size"),
             py::arg("eps"), py::arg("low"), py::arg("high"), py::arg("out"));
}

}  // namespace aisec_fast::bindings
