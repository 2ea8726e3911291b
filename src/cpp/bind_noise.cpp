#include <algorithm>
#include <atomic>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/noise_call.hpp"
#include "bind.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

// A chunk's start costs as much as some 1500 samples: a thread takes 262144 at a time, and in the end no fewer than
// 32768, which is also the smallest work that is worth a thread: some 30 microseconds. One thread takes all there is.
constexpr std::size_t least_groups = 64, chunk_groups = 512;

// Samples of one array in whole groups, over the threads.
template <class Use>
void for_groups(std::size_t size, const Use& use) {
  const std::size_t groups = size / noise_group + (size % noise_group != 0);
  const std::size_t threads = std::min(thread_count(), groups / least_groups);
  if (threads <= 1) return use(0, size);
  parallel_chunks(groups, least_groups, chunk_groups, threads, [&](std::size_t begin, std::size_t end) {
    use(begin * noise_group, std::min(size, end * noise_group));
  });
}

struct Pair {
  ArrayView x, out;
  Pair(const py::object& x_, const py::object& out_) : x(x_, "x"), out(out_, "out") {
    x.on_device(dlpack::on_cpu).contiguous();
    out.on_device(dlpack::on_cpu).contiguous().writable().of_size(x.size());
    if (x.dtype() != DType::int64) out.of_type(x.dtype());
  }
};

void add_noise(AddNoise kernel, const Pair& arrays, const NoiseCall& call) {
  const py::gil_scoped_release unlocked;
  for_groups(arrays.x.size(), [&](std::size_t first, std::size_t last) {
    kernel(arrays.x.data<const void>(), arrays.out.data<void>(), first, last, call, nothing_soon);
  });
}

// The kernel for one of the two types of `array`.
AddNoise of_type(const ArrayView& array, AddNoise narrow, AddNoise wide) {
  if (array.dtype() == DType::float64) return wide;
  array.of_type(DType::float32);
  return narrow;
}

void add_gaussian(const py::object& x, const py::object& out, double sigma, double granularity, const py::bytes& key,
                  const std::string& generator) {
  const Pair arrays(x, out);
  const NoiseKernels& kernels = active_kernels().noise;
  const bool lattice = arrays.x.dtype() == DType::int64;
  const AddNoise kernel = lattice
                              ? of_type(arrays.out, kernels.gaussian_lattice_float32, kernels.gaussian_lattice_float64)
                              : of_type(arrays.out, kernels.gaussian_float32, kernels.gaussian_float64);
  add_noise(kernel, arrays, noise_call(sigma, granularity, key, generator, aes_instructions()));
}

void add_laplace(const py::object& x, const py::object& out, double scale, double granularity, const py::bytes& key,
                 const std::string& generator) {
  const Pair arrays(x, out);
  const NoiseKernels& kernels = active_kernels().noise;
  add_noise(of_type(arrays.x, kernels.laplace_float32, kernels.laplace_float64), arrays,
            noise_call(scale, granularity, key, generator, aes_instructions()));
}

void add_float_gaussian(const py::object& x, const py::object& out, double sigma, const py::bytes& key,
                        const std::string& generator) {
  const Pair arrays(x, out);
  const NoiseKernels& kernels = active_kernels().noise;
  add_noise(of_type(arrays.x, kernels.float_gaussian_float32, kernels.float_gaussian_float64), arrays,
            float_noise_call(sigma, key, generator, aes_instructions()));
}

void add_float_laplace(const py::object& x, const py::object& out, double scale, const py::bytes& key,
                       const std::string& generator) {
  const Pair arrays(x, out);
  const NoiseKernels& kernels = active_kernels().noise;
  add_noise(of_type(arrays.x, kernels.float_laplace_float32, kernels.float_laplace_float64), arrays,
            float_noise_call(scale, key, generator, aes_instructions()));
}

void random_words(const py::object& out_, const py::bytes& key, std::uint32_t domain, const std::string& generator) {
  const ArrayView out(out_, "out");
  out.on_device(dlpack::on_cpu).of_type(DType::uint64).contiguous().writable();
  const NoiseCall call = words_call(key, generator, aes_instructions());
  const auto kernel = active_kernels().noise.random_words;
  const py::gil_scoped_release unlocked;
  for_groups(out.size(), [&](std::size_t first, std::size_t last) {
    kernel(out.data<std::uint64_t>() + first, first, last, call, domain);
  });
}

py::ssize_t first_unfit(const py::object& x_, double granularity) {
  const ArrayView x(x_, "x");
  x.on_device(dlpack::on_cpu).contiguous();
  const bool wide = x.dtype() == DType::float64;
  if (!wide) x.of_type(DType::float32);
  const FirstUnfit kernel = wide ? active_kernels().noise.unfit_float64 : active_kernels().noise.unfit_float32;
  const py::gil_scoped_release unlocked;
  const auto* const data = x.data<const unsigned char>();
  const std::size_t width = wide ? sizeof(double) : sizeof(float);
  std::atomic<std::size_t> first{x.size()};
  for_groups(x.size(), [&](std::size_t begin, std::size_t end) {  // by the threads that will write there
    const std::size_t index = begin + kernel(data + begin * width, end - begin, granularity);
    if (index == end) return;
    for (std::size_t least = first; index < least && !first.compare_exchange_weak(least, index);) {
    }
  });
  return first == x.size() ? -1 : static_cast<py::ssize_t>(first);
}

}  // namespace

void bind_noise(py::module_& module) {
  module.def("add_gaussian", &add_gaussian, py::arg("x"), py::arg("out"), py::arg("sigma"), py::arg("granularity"),
             py::arg("key"), py::arg("generator") = "chacha");
  module.def("add_laplace", &add_laplace, py::arg("x"), py::arg("out"), py::arg("scale"), py::arg("granularity"),
             py::arg("key"), py::arg("generator") = "chacha");
  module.def("add_float_gaussian", &add_float_gaussian, py::arg("x"), py::arg("out"), py::arg("sigma"), py::arg("key"),
             py::arg("generator") = "chacha");
  module.def("add_float_laplace", &add_float_laplace, py::arg("x"), py::arg("out"), py::arg("scale"), py::arg("key"),
             py::arg("generator") = "chacha");
  module.def("random_words", &random_words, py::arg("out"), py::arg("key"), py::arg("domain"),
             py::arg("generator") = "chacha");
  module.def("has_aes", [] { return aes_instructions() != Generator::chacha; });
  module.def("first_unfit", &first_unfit, py::arg("x"), py::arg("granularity"));
}

}  // namespace aisec_fast
