#pragma once
// One registrar a family; module.cpp calls them all.
#include <pybind11/pybind11.h>

namespace aisec_fast {
void bind_runtime(pybind11::module_& module);
void bind_noise(pybind11::module_& module);
void bind_clipping(pybind11::module_& module);
void bind_hashing(pybind11::module_& module);
void bind_hashers(pybind11::module_& module);
void bind_adversarial(pybind11::module_& module);
void bind_integers(pybind11::module_& module);
void bind_update(pybind11::module_& module);
void bind_records(pybind11::module_& module);
void bind_ghost(pybind11::module_& module);
void bind_winograd(pybind11::module_& module);
void bind_products(pybind11::module_& module);
void bind_files(pybind11::module_& module);
}  // namespace aisec_fast
