#include <pybind11/stl.h>

#include "aisec_fast/update_call.hpp"
#include "bind.hpp"
#include "call.hpp"
#include "update.cuh"

namespace aisec_fast::bindings {
namespace {

std::vector<Named> named(const std::vector<UpdateList>& lists) {
  std::vector<Named> all;
  all.reserve(count_arrays(lists));
  for (const UpdateList& list : lists)
    for (const py::object& array : list.arrays) all.push_back({array, list.name});
  return all;
}

// Queues work(dtype, items, stream).
template <class Work>
void run(const std::vector<UpdateList>& lists, const UpdateNoise& noise, const Work& work) {
  if (lists[0].arrays.empty()) return;
  const Arrays arrays(named(lists));
  const std::vector<UpdateItem> items = update_items(arrays, lists, noise, Generator::chacha);
  const DType dtype = arrays[0].dtype();
  const auto queued = [&](cudaStream_t stream) { return work(dtype, items, stream); };
  if (noise.sigma > 0.0)
    arrays.run_once(queued);
  else
    arrays.run(queued);
}

void noisy_mean(const Objects& sums, double divisor, double sigma, double granularity,
                const std::vector<py::bytes>& keys, const std::string& generator) {
  run({{sums, "sums"}}, {sigma, granularity, keys, generator},
      [&](DType dtype, const std::vector<UpdateItem>& items, cudaStream_t stream) {
        return cuda::noisy_mean(dtype, items, divisor, stream);
      });
}

void sgd_step(const Objects& sums, const Objects& params, const Objects& buffers, double divisor, double sigma,
              double granularity, const std::vector<py::bytes>& keys, const std::string& generator, double lr,
              double momentum, double dampening, double weight_decay, bool nesterov, bool maximize, bool first) {
  const SgdStep step{divisor, lr, momentum, dampening, weight_decay, nesterov, maximize, first};
  run({{sums, "sums"}, {params, "params", true, true}, {buffers, "buffers", momentum != 0.0}},
      {sigma, granularity, keys, generator},
      [&](DType dtype, const std::vector<UpdateItem>& items, cudaStream_t stream) {
        return cuda::sgd_step(dtype, items, step, stream);
      });
}

void adam_step(const Objects& sums, const Objects& params, const Objects& exp_avgs, const Objects& exp_avg_sqs,
               const Objects& max_exp_avg_sqs, double divisor, double sigma, double granularity,
               const std::vector<py::bytes>& keys, const std::string& generator, double beta1, double beta2,
               double step_size, double root_correction, double eps, double weight_decay, double decay, bool maximize) {
  const AdamStep step{divisor, beta1, beta2, step_size, root_correction, eps, weight_decay, decay, maximize};
  run({{sums, "sums"},
       {params, "params", true, true},
       {exp_avgs, "exp_avgs"},
       {exp_avg_sqs, "exp_avg_sqs"},
       {max_exp_avg_sqs, "max_exp_avg_sqs", false}},
      {sigma, granularity, keys, generator},
      [&](DType dtype, const std::vector<UpdateItem>& items, cudaStream_t stream) {
        return cuda::adam_step(dtype, items, step, stream);
      });
}

}  // namespace

void bind_update(py::module_& module) {
  module.def("noisy_mean", &noisy_mean, py::arg("sums"), py::arg("divisor"), py::arg("sigma"), py::arg("granularity"),
             py::arg("keys"), py::arg("generator"));
  module.def("sgd_step", &sgd_step, py::arg("sums"), py::arg("params"), py::arg("buffers"), py::arg("divisor"),
             py::arg("sigma"), py::arg("granularity"), py::arg("keys"), py::arg("generator"), py::arg("lr"),
             py::arg("momentum"), py::arg("dampening"), py::arg("weight_decay"), py::arg("nesterov"),
             py::arg("maximize"), py::arg("first"));
  module.def("adam_step", &adam_step, py::arg("sums"), py::arg("params"), py::arg("exp_avgs"), py::arg("exp_avg_sqs"),
             py::arg("max_exp_avg_sqs"), py::arg("divisor"), py::arg("sigma"), py::arg("granularity"), py::arg("keys"),
             py::arg("generator"), py::arg("beta1"), py::arg("beta2"), py::arg("step_size"), py::arg("root_correction"),
             py::arg("eps"), py::arg("weight_decay"), py::arg("decay"), py::arg("maximize"));
}

}  // namespace aisec_fast::bindings
