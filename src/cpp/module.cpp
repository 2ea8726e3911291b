#include "bind.hpp"

PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  module.doc() = "CPU kernels. Private: use aisec_fast.noise and aisec_fast.clipping.";
  aisec_fast::bind_runtime(module);
  aisec_fast::bind_noise(module);
  aisec_fast::bind_clipping(module);
  aisec_fast::bind_hashing(module);
}
