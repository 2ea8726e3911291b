#include "aisec_fast/noise_call.hpp"
#include "bind.hpp"
#include "call.hpp"
#include "noise.cuh"

namespace aisec_fast::bindings {
namespace {

void require_float(const ArrayView& array) {
  if (array.dtype() != DType::float64) array.of_type(DType::float32);
}

void add_gaussian(const py::object& x_, const py::object& out_, double sigma, double granularity, const py::bytes& key,
                  const std::string& generator) {
  const Arrays arrays({{x_, "x"}, {out_, "out"}});
  const ArrayView &x = arrays[0].contiguous(), &out = arrays[1].contiguous().writable().of_size(x.size());
  require_float(out);
  if (x.dtype() != DType::int64) out.of_type(x.dtype());
  const NoiseCall call = noise_call(sigma, granularity, key, generator, Generator::chacha);
  arrays.run_once([&](cudaStream_t stream) {
    return cuda::add_gaussian(x.dtype(), x.data<void>(), out.dtype(), out.data<void>(), x.size(), call, stream);
  });
}

void add_laplace(const py::object& x_, const py::object& out_, double scale, double granularity, const py::bytes& key,
                 const std::string& generator) {
  const Arrays arrays({{x_, "x"}, {out_, "out"}});
  const ArrayView &x = arrays[0].contiguous(), &out = arrays[1].contiguous().writable().of_size(x.size());
  require_float(x);
  out.of_type(x.dtype());
  const NoiseCall call = noise_call(scale, granularity, key, generator, Generator::chacha);
  arrays.run_once([&](cudaStream_t stream) {
    return cuda::add_laplace(x.dtype(), x.data<void>(), out.data<void>(), x.size(), call, stream);
  });
}

// Float mode.
template <Law law>
void add_float(const py::object& x_, const py::object& out_, double scale, const py::bytes& key,
               const std::string& generator) {
  const Arrays arrays({{x_, "x"}, {out_, "out"}});
  const ArrayView &x = arrays[0].contiguous(), &out = arrays[1].contiguous().writable().of_size(x.size());
  require_float(x);
  out.of_type(x.dtype());
  const NoiseCall call = float_noise_call(scale, key, generator, Generator::chacha);
  arrays.run_once([&](cudaStream_t stream) {
    return cuda::add_float(law, x.dtype(), x.data<void>(), out.data<void>(), x.size(), call, stream);
  });
}

void random_words(const py::object& out_, const py::bytes& key, std::uint32_t domain, const std::string& generator) {
  const Arrays arrays({{out_, "out"}});
  const ArrayView& out = arrays[0].of_type(DType::uint64).contiguous().writable();
  const NoiseCall call = words_call(key, generator, Generator::chacha);
  arrays.run_once([&](cudaStream_t stream) {
    return cuda::random_words(out.data<std::uint64_t>(), out.size(), call, domain, stream);
  });
}

py::ssize_t first_unfit(const py::object& x_, double granularity) {
  const Arrays arrays({{x_, "x"}});
  const ArrayView& x = arrays[0].contiguous();
  require_float(x);
  std::size_t first = 0;
  arrays.run([&](cudaStream_t stream) {
    return cuda::first_unfit(x.dtype(), x.data<void>(), x.size(), granularity, first, stream);
  });
  return first == x.size() ? -1 : static_cast<py::ssize_t>(first);
}

}  // namespace

void bind_noise(py::module_& module) {
  module.def("add_gaussian", &add_gaussian, py::arg("x"), py::arg("out"), py::arg("sigma"), py::arg("granularity"),
             py::arg("key"), py::arg("generator") = "chacha");
  module.def("add_laplace", &add_laplace, py::arg("x"), py::arg("out"), py::arg("scale"), py::arg("granularity"),
             py::arg("key"), py::arg("generator") = "chacha");
  module.def("add_float_gaussian", &add_float<Law::gaussian>, py::arg("x"), py::arg("out"), py::arg("sigma"),
             py::arg("key"), py::arg("generator") = "chacha");
  module.def("add_float_laplace", &add_float<Law::laplace>, py::arg("x"), py::arg("out"), py::arg("scale"),
             py::arg("key"), py::arg("generator") = "chacha");
  module.def("random_words", &random_words, py::arg("out"), py::arg("key"), py::arg("domain"),
             py::arg("generator") = "chacha");
  module.def("first_unfit", &first_unfit, py::arg("x"), py::arg("granularity"));
}

}  // namespace aisec_fast::bindings
