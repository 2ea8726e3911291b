#include "bind.hpp"

PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  module.doc() = "CPU kernels. Private: use the public module of each family.";
  aisec_fast::bind_runtime(module);
  aisec_fast::bind_noise(module);
  aisec_fast::bind_clipping(module);
  aisec_fast::bind_hashing(module);
  aisec_fast::bind_hashers(module);
  aisec_fast::bind_adversarial(module);
  aisec_fast::bind_integers(module);
  aisec_fast::bind_update(module);
  aisec_fast::bind_records(module);
  aisec_fast::bind_ghost(module);
  aisec_fast::bind_winograd(module);
  aisec_fast::bind_products(module);
  aisec_fast::bind_files(module);
}
