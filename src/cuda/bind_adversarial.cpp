#include "adversarial.cuh"
#include "aisec_fast/adversarial_call.hpp"
#include "bind.hpp"
#include "call.hpp"

namespace aisec_fast::bindings {
namespace {

using Run = cudaError_t (*)(DType type, std::size_t rows, const AdversarialStep& step, cudaStream_t stream);

template <Run run>
void step(const py::object& adv, const py::object& x, const py::object& gradient, double step_size, double eps,
          double low, double high, const py::object& out) {
  const Arrays arrays({{adv, "adv"}, {x, "x"}, {gradient, "gradient"}, {out, "out"}});
  const AdversarialCall call = adversarial_call(arrays[0], arrays[1], arrays[2], arrays[3], step_size, eps, low, high);
  arrays.run([&](cudaStream_t stream) { return run(call.dtype, call.rows, call.step, stream); });
}

}  // namespace

void bind_adversarial(py::module_& module) {
  const auto define = [&](const char* name, auto function) {
    module.def(name, function, py::arg("adv"), py::arg("x"), py::arg("gradient"), py::arg("step_size"), py::arg("eps"),
               py::arg("low"), py::arg("high"), py::arg("out"));
  };
  define("linf_step", &step<&cuda::linf_step>);
  define("l2_step", &step<&cuda::l2_step>);
  define("l1_step", &step<&cuda::l1_step>);
  define("l0_step", &step<&cuda::l0_step>);
}

}  // namespace aisec_fast::bindings
