#include <pybind11/stl.h>

#include <algorithm>

#include "aisec_fast/update_call.hpp"
#include "bind.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

// Values that noise and step pass over while they are in the second-level cache: 64 KiB of each array.
constexpr std::size_t span_bytes = 1 << 16;
constexpr std::size_t least_groups = 16;  // smallest work that is worth a thread

class UpdateCall {
 public:
  UpdateCall(const std::vector<UpdateList>& lists, const UpdateNoise& noise) {
    views_.reserve(count_arrays(lists));
    for (const UpdateList& list : lists)
      for (const py::object& array : list.arrays) {
        views_.emplace_back(array, list.name);
        views_.back().on_device(dlpack::on_cpu);
      }
    items_ = update_items(views_, lists, noise, aes_instructions());
  }

  // Adds the noise to a span of sums and calls use(kernels, arrays, first, last) on it, over all arrays and threads.
  template <class Use>
  void run(const Use& use) const {
    if (items_.empty()) return;
    const py::gil_scoped_release unlocked;
    const bool wide = views_[0].dtype() == DType::float64;
    const Kernels& all = active_kernels();
    const UpdateKernels& kernels = wide ? all.update_float64 : all.update_float32;
    const AddNoise add_noise = wide ? all.noise.gaussian_float64 : all.noise.gaussian_float32;
    std::vector<std::size_t> ends;  // of each array, in groups
    ends.reserve(items_.size());
    for (const UpdateItem& item : items_)
      ends.push_back((ends.empty() ? 0 : ends.back()) + item.size / noise_group + (item.size % noise_group != 0));
    const std::size_t span = span_bytes / noise_group / (wide ? sizeof(double) : sizeof(float));
    parallel_chunks(ends.back(), least_groups, span, thread_count(), [&](std::size_t begin, std::size_t end) {
      for (auto a = std::upper_bound(ends.begin(), ends.end(), begin); begin < end; ++a) {
        const UpdateItem& item = items_[static_cast<std::size_t>(a - ends.begin())];
        const std::size_t start = a == ends.begin() ? 0 : *(a - 1), stop = std::min(end, *a);
        const std::size_t first = (begin - start) * noise_group;
        const std::size_t last = std::min(item.size, (stop - start) * noise_group);
        if (first < last) {
          if (item.noise.scale != 0.0) add(add_noise, item, first, last);
          use(kernels, item.arrays, first, last);
        }
        begin = stop;
      }
    });
  }

 private:
  static void add(AddNoise kernel, const UpdateItem& item, std::size_t first, std::size_t last) {
    const UpdateArrays& arrays = item.arrays;
    const void* soon[5] = {};
    std::size_t count = 0;
    for (const void* array : {arrays.params, arrays.state[0], arrays.state[1], arrays.state[2]})
      if (array != nullptr) soon[count++] = array;
    kernel(arrays.sums, arrays.sums, first, last, item.noise, soon);
  }

  std::vector<ArrayView> views_;
  std::vector<UpdateItem> items_;
};

void noisy_mean(const Objects& sums, double divisor, double sigma, double granularity,
                const std::vector<py::bytes>& keys, const std::string& generator) {
  const UpdateCall call({{sums, "sums"}}, {sigma, granularity, keys, generator});
  call.run([&](const UpdateKernels& kernels, const UpdateArrays& arrays, std::size_t first, std::size_t last) {
    kernels.mean(arrays, divisor, first, last);
  });
}

void sgd_step(const Objects& sums, const Objects& params, const Objects& buffers, double divisor, double sigma,
              double granularity, const std::vector<py::bytes>& keys, const std::string& generator, double lr,
              double momentum, double dampening, double weight_decay, bool nesterov, bool maximize, bool first_step) {
  const SgdStep step{divisor, lr, momentum, dampening, weight_decay, nesterov, maximize, first_step};
  const UpdateCall call({{sums, "sums"}, {params, "params", true, true}, {buffers, "buffers", momentum != 0.0}},
                        {sigma, granularity, keys, generator});
  call.run([&](const UpdateKernels& kernels, const UpdateArrays& arrays, std::size_t first, std::size_t last) {
    kernels.sgd(arrays, step, first, last);
  });
}

void adam_step(const Objects& sums, const Objects& params, const Objects& exp_avgs, const Objects& exp_avg_sqs,
               const Objects& max_exp_avg_sqs, double divisor, double sigma, double granularity,
               const std::vector<py::bytes>& keys, const std::string& generator, double beta1, double beta2,
               double step_size, double root_correction, double eps, double weight_decay, double decay, bool maximize) {
  const AdamStep step{divisor, beta1, beta2, step_size, root_correction, eps, weight_decay, decay, maximize};
  const UpdateCall call({{sums, "sums"},
                         {params, "params", true, true},
                         {exp_avgs, "exp_avgs"},
                         {exp_avg_sqs, "exp_avg_sqs"},
                         {max_exp_avg_sqs, "max_exp_avg_sqs", false}},
                        {sigma, granularity, keys, generator});
  call.run([&](const UpdateKernels& kernels, const UpdateArrays& arrays, std::size_t first, std::size_t last) {
    kernels.adam(arrays, step, first, last);
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

}  // namespace aisec_fast
