#pragma once
// A view borrowed from a Python array: numpy, torch (DLPack's C exchange API, without importing torch), or any producer
// of DLPack. Nothing is copied. The view keeps the array alive; make all views before releasing the GIL.
// The DLPack ABI (version 1) is declared here so that no header has to be vendored: https://dmlc.github.io/dlpack
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "aisec_fast/kernels.hpp"

namespace aisec_fast {
namespace py = pybind11;

namespace dlpack {
struct Device {
  std::int32_t type, id;
};
struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};
struct Version {
  std::uint32_t major, minor;
};
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  int (*allocate)(Tensor*, ManagedVersioned**, void*, void (*)(void*, const char*, const char*));
  int (*managed_from_object)(void*, ManagedVersioned**);
  int (*managed_to_object)(ManagedVersioned*, void**);
  int (*tensor_from_object)(void*, Tensor*);
  int (*current_stream)(std::int32_t, std::int32_t, void**);
};
constexpr std::int32_t on_cpu = 1, on_cuda = 2;
constexpr std::uint64_t read_only = 1;
}  // namespace dlpack

// A number for each axis. Few arrays have more axes than fit here without memory of their own, and a call may have
// hundreds of arrays.
class Axes {
 public:
  void resize(std::size_t count) {
    count_ = count;
    if (count > near_.size()) far_.resize(count);
  }
  std::size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  std::int64_t* begin() { return count_ > near_.size() ? far_.data() : near_.data(); }
  const std::int64_t* begin() const { return count_ > near_.size() ? far_.data() : near_.data(); }
  const std::int64_t* end() const { return begin() + count_; }
  std::int64_t& operator[](std::size_t axis) { return begin()[axis]; }
  std::int64_t operator[](std::size_t axis) const { return begin()[axis]; }
  bool operator==(const Axes& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

 private:
  std::array<std::int64_t, 5> near_{};
  std::vector<std::int64_t> far_;
  std::size_t count_ = 0;
};

class ArrayView {
 public:
  // `stream` goes to __dlpack__ of producers without the C exchange API; None on the CPU.
  ArrayView(const py::object& array, const char* name, const py::object& stream = py::none())
      : name_(name), owner_(array) {
    if (py::isinstance<py::array>(array))
      borrow_numpy(py::reinterpret_borrow<py::array>(array));
    else if (!borrow_exchange(array))
      borrow_capsule(array, stream);
  }

  std::string name() const { return name_; }
  DType dtype() const { return dtype_; }
  std::int32_t device() const { return device_.type; }
  std::int32_t device_index() const { return device_.id; }
  // The producer's current stream (torch), if it told us.
  std::optional<std::uintptr_t> stream() const { return stream_; }
  std::size_t dimensions() const { return shape_.size(); }
  std::size_t size(std::size_t axis) const { return static_cast<std::size_t>(shape_[axis]); }
  std::size_t size() const {
    std::size_t product = 1;
    for (const std::int64_t extent : shape_) product *= static_cast<std::size_t>(extent);
    return product;
  }
  // Values (not bytes) between neighbours along the first axis.
  std::ptrdiff_t row_stride() const { return shape_.empty() ? 0 : static_cast<std::ptrdiff_t>(strides_[0]); }

  template <class T>
  T* data() const {
    return static_cast<T*>(data_);
  }

  const ArrayView& on_device(std::int32_t device) const {
    if (device_.type != device)
      throw py::value_error(name() + " lives on DLPack device type " + std::to_string(device_.type) + ", expected " +
                            std::to_string(device));
    return *this;
  }
  const ArrayView& of_type(DType expected) const {
    if (dtype_ != expected) throw py::type_error(name() + " has another dtype than expected");
    return *this;
  }
  const ArrayView& of_size(std::size_t expected) const {
    if (size() != expected)
      throw py::value_error(name() + " has " + std::to_string(size()) + " values, expected " +
                            std::to_string(expected));
    return *this;
  }
  const ArrayView& of_shape(const ArrayView& other) const {
    if (shape_ != other.shape_) throw py::value_error(name() + " has another shape than " + other.name());
    return *this;
  }
  const ArrayView& writable() const {
    if (!writable_) throw py::value_error(name() + " is read-only");
    return *this;
  }
  const ArrayView& contiguous() const {
    if (!contiguous_from(0)) throw py::value_error(name() + " is not C-contiguous");
    return *this;
  }
  // Each row contiguous; rows any distance apart.
  const ArrayView& contiguous_rows() const {
    if (shape_.empty() || !contiguous_from(1)) throw py::value_error(name() + " is not contiguous inside its rows");
    return *this;
  }

 private:
  bool contiguous_from(std::size_t axis) const {
    if (size() == 0) return true;
    std::int64_t expected = 1;
    for (std::size_t i = shape_.size(); i-- > axis;) {
      if (shape_[i] != 1 && strides_[i] != expected) return false;
      expected *= shape_[i];
    }
    return true;
  }

  void borrow_numpy(const py::array& array) {
    const py::dtype type = array.dtype();
    const char order = type.byteorder();
    if (order != '=' && order != '|') throw py::type_error(name() + " is not in native byte order");
    const bool bfloat16 = type.itemsize() == 2 && std::string(py::str(type.attr("name"))) == "bfloat16";  // ml_dtypes
    const char kind = type.kind();
    set_dtype(bfloat16 ? 4 : kind == 'f' ? 2 : kind == 'i' ? 0 : kind == 'u' ? 1 : 255, 8 * type.itemsize());
    data_ = const_cast<void*>(array.data());
    writable_ = array.writeable();
    device_ = {dlpack::on_cpu, 0};
    shape_.resize(static_cast<std::size_t>(array.ndim()));
    strides_.resize(shape_.size());
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
      shape_[static_cast<std::size_t>(axis)] = array.shape(axis);
      if (array.size() > 0 && array.shape(axis) > 1 && array.strides(axis) % array.itemsize() != 0)
        throw py::value_error(name() + " has strides that are no multiple of its item size");
      strides_[static_cast<std::size_t>(axis)] = array.strides(axis) / array.itemsize();
    }
  }

  bool borrow_exchange(const py::object& array) {
    // An interned name: Python keeps what it finds by one, and a model has hundreds of arrays.
    static PyObject* const attribute = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
    const py::object capsule = py::getattr(py::type::of(array), py::handle(attribute), py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return false;
    auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (api != nullptr && api->version.major != 1) api = api->previous;
    if (api == nullptr || api->tensor_from_object == nullptr) return false;
    dlpack::Tensor tensor;
    if (api->tensor_from_object(array.ptr(), &tensor) != 0) throw py::error_already_set();
    borrow_tensor(tensor);
    void* stream = nullptr;
    if (device_.type == dlpack::on_cuda && api->current_stream(device_.type, device_.id, &stream) != 0)
      throw py::error_already_set();
    if (device_.type == dlpack::on_cuda) stream_ = reinterpret_cast<std::uintptr_t>(stream);
    return true;
  }

  void borrow_capsule(const py::object& array, const py::object& stream) {
    if (!py::hasattr(array, "__dlpack__"))
      throw py::type_error(name() + " is a " + std::string(py::str(py::type::of(array).attr("__name__"))) +
                           ", expected an array");
    py::object capsule;
    try {
      capsule = array.attr("__dlpack__")(py::arg("stream") = stream, py::arg("max_version") = py::make_tuple(1, 0));
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;  // a producer from before DLPack 1.0
      capsule = array.attr("__dlpack__")(py::arg("stream") = stream);
    }
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
      auto* managed = static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
      if (managed->version.major != 1)
        throw py::buffer_error(name() + " speaks DLPack " + std::to_string(managed->version.major) + ", expected 1");
      borrow_tensor(managed->tensor);
      writable_ = (managed->flags & dlpack::read_only) == 0;
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
      borrow_tensor(static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor);
    } else {
      throw py::type_error(name() + ".__dlpack__() returned no DLPack capsule");
    }
    owner_ = std::move(capsule);  // not consumed: it frees the export when the view goes
  }

  void borrow_tensor(const dlpack::Tensor& tensor) {
    if (tensor.dtype.lanes != 1) throw py::type_error(name() + " has a vector dtype");
    set_dtype(tensor.dtype.code, tensor.dtype.bits);
    data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
    device_ = tensor.device;
    shape_.resize(static_cast<std::size_t>(tensor.ndim));
    std::copy_n(tensor.shape, shape_.size(), shape_.begin());
    strides_.resize(shape_.size());
    std::int64_t compact = 1;  // DLPack's null strides mean C order
    for (std::size_t axis = shape_.size(); axis-- > 0; compact *= shape_[axis])
      strides_[axis] = tensor.strides != nullptr ? tensor.strides[axis] : compact;
    if (tensor.data == nullptr && size() > 0)
      throw py::value_error(name() + " has no memory");  // zeros that torch knows of
  }

  void set_dtype(int code, py::ssize_t bits) {
    if (code == 2 && bits == 32)
      dtype_ = DType::float32;
    else if (code == 2 && bits == 64)
      dtype_ = DType::float64;
    else if (code == 4 && bits == 16)
      dtype_ = DType::bfloat16;
    else if (code == 0 && bits == 64)
      dtype_ = DType::int64;
    else if (code == 1 && bits == 64)
      dtype_ = DType::uint64;
    else if (code == 1 && bits == 8)
      dtype_ = DType::uint8;
    else if (code == 1 && bits == 32)
      dtype_ = DType::uint32;
    else
      throw py::type_error(name() + " has a dtype that no kernel takes");
  }

  const char* name_;
  py::object owner_;
  void* data_ = nullptr;
  DType dtype_ = DType::float32;
  dlpack::Device device_{};
  std::optional<std::uintptr_t> stream_;
  bool writable_ = true;
  Axes shape_, strides_;
};

}  // namespace aisec_fast
