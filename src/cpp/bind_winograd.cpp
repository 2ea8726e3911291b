#include <algorithm>
#include <memory>
#include <new>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/winograd.hpp"
#include "bind.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t least_products = std::size_t{1} << 18;  // smallest work that is worth a thread
constexpr std::size_t few_tiles = 24;   // at once: their points and products stay in the second-level cache
constexpr std::size_t many_tiles = 96;  // where weights come from memory, each time anew
constexpr std::size_t cached_weights = std::size_t{1} << 22;

// Memory of one thread, kept from call to call: fresh pages would have to be cleared.
float* scratch(std::size_t floats) {
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local std::size_t size = 0;
  if (size < floats) {
    memory.reset();
    size = 0;
    memory.reset(::operator new(floats * sizeof(float), std::align_val_t{64}));
    size = floats;
  }
  return static_cast<float*>(memory.get());
}

struct Operand {
  std::optional<ArrayView> view;

  Operand(const py::object& array, const char* name, std::size_t values) {
    if (array.is_none()) return;
    view.emplace(array, name).on_device(dlpack::on_cpu).of_type(DType::float32).contiguous().of_size(values);
  }
  const float* data() const { return view ? view->data<float>() : nullptr; }
};

void convolve(const py::object& x_, const py::object& weights_, const py::object& mask_, const py::object& bias_,
              const py::object& added_, bool relu, const py::object& out_, bool threads) {
  const ArrayView x(x_, "x"), weights(weights_, "weights"), out(out_, "out");
  for (const ArrayView* view : {&x, &weights, &out})
    view->on_device(dlpack::on_cpu).of_type(DType::float32).contiguous();
  if (x.dimensions() != 4 || out.dimensions() != 4 || weights.dimensions() != 3)
    throw py::value_error("x and out must have 4 dimensions, and weights 3");
  const WinogradShape shape{x.size(0), x.size(1), x.size(2), x.size(3), out.size(3)};
  if (shape.channels == 0 || shape.channels % winograd_channels != 0 || shape.outputs == 0 ||
      shape.outputs % winograd_channels != 0)
    throw py::value_error("channels must be multiples of 16");
  const std::size_t results = shape.images * shape.rows * shape.columns * shape.outputs;
  weights.of_size(winograd_points * shape.channels * shape.outputs);
  out.of_size(results).writable();
  const Operand mask(mask_, "mask", x.size()), bias(bias_, "bias", shape.outputs), added(added_, "added", results);
  const WinogradArrays arrays{x.data<float>(), weights.data<float>(), mask.data(), bias.data(),
                              added.data(),    out.data<float>(),     relu};
  const py::gil_scoped_release unlocked;
  const std::size_t area = shape.channels * shape.outputs;
  const std::size_t at_once = winograd_points * area <= cached_weights ? few_tiles : many_tiles;
  const std::size_t least = threads ? least_products / (winograd_points * area) + 1 : shape.tiles();
  parallel_for(shape.tiles(), least, [&](std::size_t first, std::size_t last) {
    const std::size_t tiles = std::min(at_once, last - first);
    active_kernels().winograd.convolve(shape, arrays, first, last, tiles,
                                       scratch(winograd_points * tiles * (shape.channels + shape.outputs)));
  });
}

void spread(const py::object& windows_, const py::object& weights_) {
  const ArrayView windows(windows_, "windows"), weights(weights_, "weights");
  for (const ArrayView* view : {&windows, &weights})
    view->on_device(dlpack::on_cpu).of_type(DType::float32).contiguous();
  const std::size_t count = windows.size() / 9;
  windows.of_size(9 * count);
  if (count % winograd_channels != 0) throw py::value_error("channels must be multiples of 16");
  weights.of_size(winograd_points * count).writable();
  const py::gil_scoped_release unlocked;
  active_kernels().winograd.spread_windows(windows.data<float>(), count, weights.data<float>());
}

}  // namespace

void bind_winograd(py::module_& module) {
  module.def("winograd_weights", &spread, py::arg("windows"), py::arg("weights"));
  module.def("winograd", &convolve, py::arg("x"), py::arg("weights"), py::arg("mask"), py::arg("bias"),
             py::arg("added"), py::arg("relu"), py::arg("out"), py::arg("threads") = true);
}

}  // namespace aisec_fast
