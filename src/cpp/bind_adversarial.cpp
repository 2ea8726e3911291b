#include <algorithm>

#include "aisec_fast/adversarial_call.hpp"
#include "bind.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t least_values = 16'384;  // smallest work that is worth a thread

struct StepCall {
  ArrayView adv, x, gradient, out;
  AdversarialCall checked;

  StepCall(const py::object& adv_, const py::object& x_, const py::object& gradient_, double step_size, double eps,
           double low, double high, const py::object& out_)
      : adv(adv_, "adv"), x(x_, "x"), gradient(gradient_, "gradient"), out(out_, "out") {
    for (const ArrayView* view : {&adv, &x, &gradient, &out}) view->on_device(dlpack::on_cpu);
    checked = adversarial_call(adv, x, gradient, out, step_size, eps, low, high);
  }

  // Runs the kernel on `count` values or rows, `columns` values each, over the threads.
  void run(AdversarialKernel kernel, std::size_t count, std::size_t columns) const {
    const py::gil_scoped_release unlocked;
    const std::size_t least = std::max<std::size_t>(1, least_values / std::max<std::size_t>(1, columns));
    parallel_for(count, least, [&](std::size_t first, std::size_t last) { kernel(checked.step, first, last); });
  }
};

// Single values are the work of linf_step, rows that of the others.
template <bool by_rows, AdversarialKernel AdversarialKernels::* float32,
          AdversarialKernel AdversarialKernels::* float64>
void step(const py::object& adv, const py::object& x, const py::object& gradient, double step_size, double eps,
          double low, double high, const py::object& out) {
  const StepCall call(adv, x, gradient, step_size, eps, low, high, out);
  const AdversarialKernels& kernels = active_kernels().adversarial;
  call.run(call.checked.dtype == DType::float64 ? kernels.*float64 : kernels.*float32,
           by_rows ? call.checked.rows : call.x.size(), by_rows ? call.checked.step.columns : 1);
}

}  // namespace

void bind_adversarial(py::module_& module) {
  const auto define = [&](const char* name, auto function) {
    module.def(name, function, py::arg("adv"), py::arg("x"), py::arg("gradient"), py::arg("step_size"), py::arg("eps"),
               py::arg("low"), py::arg("high"), py::arg("out"));
  };
  using Steps = AdversarialKernels;
  define("linf_step", &step<false, &Steps::linf_float32, &Steps::linf_float64>);
  define("l2_step", &step<true, &Steps::l2_float32, &Steps::l2_float64>);
  define("l1_step", &step<true, &Steps::l1_float32, &Steps::l1_float64>);
  define("l0_step", &step<true, &Steps::l0_float32, &Steps::l0_float64>);
}

}  // namespace aisec_fast
