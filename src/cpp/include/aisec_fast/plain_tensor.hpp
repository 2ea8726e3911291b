#pragma once
// What torch exports by DLPack without a word, though no kernel may write to it.
#include <cstddef>

#include "aisec_fast/array_view.hpp"

namespace aisec_fast {

// Looks at the arrays of one call. The names are interned: Python keeps what it finds by such names, and a model has
// hundreds of arrays.
class PlainTensors {
 public:
  // ValueError for a tensor of torch that requires grad (unless `leaf_is_fine` and it is one), is negated lazily, or
  // whose storage was cut short under it. Other arrays pass. `view` is that of the array, contiguous.
  void require(const py::object& array, const ArrayView& view, std::size_t value_bytes, bool leaf_is_fine) {
    if (!is_tensor(array)) return;
    if (has(array, names().requires_grad) && !(leaf_is_fine && has(array, names().is_leaf)))
      throw py::value_error(view.name() + " requires grad");
    if (call(array, names().is_neg).ptr() == Py_True)
      throw py::value_error(view.name() + " is a lazily negated tensor");
    if (view.size() == 0) return;
    const std::size_t held = call_for_size(call(array, names().untyped_storage), names().nbytes) / value_bytes;
    if (held < call_for_size(array, names().storage_offset) + view.size())
      throw py::value_error(view.name() + " has no memory: its storage was cut short");
  }

 private:
  struct Names {
    PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
    PyObject* const is_leaf = PyUnicode_InternFromString("is_leaf");
    PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    PyObject* const untyped_storage = PyUnicode_InternFromString("untyped_storage");
    PyObject* const nbytes = PyUnicode_InternFromString("nbytes");
    PyObject* const storage_offset = PyUnicode_InternFromString("storage_offset");
  };
  static const Names& names() {
    static const Names all;
    return all;
  }

  // By what only torch's tensors have: torch itself may not be loaded. Neighbours in a list are mostly of one type.
  bool is_tensor(const py::object& array) {
    const py::type type = py::type::of(array);
    if (type.ptr() != last_type_) {
      last_type_ = type.ptr();
      last_is_tensor_ = py::hasattr(type, py::handle(names().untyped_storage));
    }
    return last_is_tensor_;
  }
  static bool has(const py::object& array, PyObject* name) {
    return py::getattr(array, py::handle(name)).ptr() == Py_True;
  }
  static py::object call(const py::object& object, PyObject* name) {
    PyObject* const result = PyObject_CallMethodNoArgs(object.ptr(), name);
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
  }
  static std::size_t call_for_size(const py::object& object, PyObject* name) {
    const std::size_t size = PyLong_AsSize_t(call(object, name).ptr());
    if (size == static_cast<std::size_t>(-1) && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return size;
  }

  PyObject* last_type_ = nullptr;  // of an array of this call, which keeps it
  bool last_is_tensor_ = false;
};

}  // namespace aisec_fast
