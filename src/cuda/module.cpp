// _cuda: the functions of _core for arrays on a GPU, same names and signatures. Imports on a machine without a driver.
#include <pybind11/stl.h>

#include "bind.hpp"
#include "call.hpp"

namespace aisec_fast::bindings {
namespace {

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;  // no driver, or one too old for this runtime: no devices, not an error
}

std::vector<std::string> device_names() {
  std::vector<std::string> names;
  for (int device = 0; device < device_count(); ++device) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device));
    names.emplace_back(properties.name);
  }
  return names;
}

int runtime_version() {
  int version = 0;
  check(cudaRuntimeGetVersion(&version));
  return version;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace
}  // namespace aisec_fast::bindings

PYBIND11_MODULE(_cuda, module, pybind11::mod_gil_not_used()) {
  using namespace aisec_fast::bindings;
  module.doc() = "CUDA kernels. Private: use the public module of each family.";
  module.attr("version") = AISEC_FAST_VERSION;
  module.def("device_count", &device_count, "GPUs that the driver offers; 0 without a driver.");
  module.def("device_names", &device_names, "Their names, in order.");
  module.def("runtime_version", &runtime_version, "Of the CUDA runtime inside this module: 13000 is 13.0.");
  module.def("driver_version", &driver_version, "The newest CUDA version that the driver supports; 0 without one.");
  bind_noise(module);
  bind_clipping(module);
  bind_hashing(module);
  bind_adversarial(module);
  bind_update(module);
  bind_ghost(module);
}
