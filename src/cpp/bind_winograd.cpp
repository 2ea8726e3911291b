#include <algorithm>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/winograd.hpp"
#include "bind.hpp"
#include "instruction_sets.hpp"
#include "scratch.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t least_products = std::size_t{1} << 18;  // smallest work that is worth a thread
constexpr std::size_t least_windows = std::size_t{1} << 10;
constexpr std::size_t few_tiles = 24;   // at once: their points and products stay in the second-level cache
constexpr std::size_t many_tiles = 96;  // where weights come from memory, each time anew
constexpr std::size_t most_tiles = 64;  // of one image in planes that is worked on as a whole
constexpr std::size_t cached_weights = std::size_t{1} << 22;

struct Operand {
  std::optional<ArrayView> view;

  Operand(const py::object& array, const char* name, std::size_t values) {
    if (array.is_none()) return;
    view.emplace(array, name).on_device(dlpack::on_cpu).of_type(DType::float32).contiguous().of_size(values);
  }
  const float* data() const { return view ? view->data<float>() : nullptr; }
};

void check(const ArrayView& x, const ArrayView& weights, const ArrayView& out) {
  for (const ArrayView* view : {&x, &weights, &out})
    view->on_device(dlpack::on_cpu).of_type(DType::float32).contiguous();
  if (x.dimensions() != 4 || out.dimensions() != 4 || weights.dimensions() != 3)
    throw py::value_error("x and out must have 4 dimensions, and weights 3");
}

void check(std::size_t channels, std::size_t outputs) {
  for (std::size_t count : {channels, outputs})
    if (count == 0 || count % winograd_channels != 0) throw py::value_error("channels must be multiples of 16");
}

// The number of results.
std::size_t check(const WinogradShape& shape, const ArrayView& weights, const ArrayView& out) {
  check(shape.channels, shape.outputs);
  const std::size_t results = shape.images * shape.rows * shape.columns * shape.outputs;
  weights.of_size(winograd_points * shape.channels * shape.outputs);
  out.of_size(results).writable();
  return results;
}

std::size_t tiles_at_once(const WinogradShape& shape) {
  return winograd_points * shape.channels * shape.outputs <= cached_weights ? few_tiles : many_tiles;
}

void convolve(const py::object& x_, const py::object& weights_, const py::object& mask_, const py::object& bias_,
              const py::object& added_, bool relu, const py::object& out_, bool threads) {
  const ArrayView x(x_, "x"), weights(weights_, "weights"), out(out_, "out");
  check(x, weights, out);
  const WinogradShape shape{x.size(0), x.size(1), x.size(2), x.size(3), out.size(3)};
  const std::size_t results = check(shape, weights, out);
  const Operand mask(mask_, "mask", x.size()), bias(bias_, "bias", shape.outputs), added(added_, "added", results);
  const WinogradArrays arrays{x.data<float>(), weights.data<float>(), mask.data(), bias.data(),
                              added.data(),    out.data<float>(),     relu};
  const py::gil_scoped_release unlocked;
  const std::size_t at_once = tiles_at_once(shape), area = shape.channels * shape.outputs;
  const std::size_t least = threads ? least_products / (winograd_points * area) + 1 : shape.tiles();
  parallel_for(shape.tiles(), least, [&](std::size_t first, std::size_t last) {
    const std::size_t tiles = std::min(at_once, last - first);
    active_kernels().winograd.convolve(shape, arrays, first, last, tiles,
                                       scratch(winograd_points * tiles * (shape.channels + shape.outputs)));
  });
}

void convolve_planes(const py::object& x_, const py::object& weights_, const py::object& bias_, const py::object& out_,
                     bool threads) {
  const ArrayView x(x_, "x"), weights(weights_, "weights"), out(out_, "out");
  check(x, weights, out);
  const WinogradShape shape{x.size(0), x.size(2), x.size(3), x.size(1), out.size(1)};
  check(shape, weights, out);
  const Operand bias(bias_, "bias", shape.outputs);
  const WinogradArrays arrays{x.data<float>(), weights.data<float>(), nullptr, bias.data(),
                              nullptr,         out.data<float>(),     false};
  const py::gil_scoped_release unlocked;
  const std::size_t each = shape.tile_rows() * shape.tile_columns(), tiles = tiles_at_once(shape);
  if (shape.images * each == 0) return;
  WinogradBlocks blocks{1, shape.tile_rows() * winograd_side, tiles};
  if (each < tiles)
    blocks.images = tiles / each;
  else if (each > most_tiles)
    blocks.rows = (most_tiles / shape.tile_columns() + 1) * winograd_side;
  const std::size_t items = shape.images * blocks.bands(shape);
  const std::size_t work = winograd_points * shape.channels * shape.outputs * each / blocks.bands(shape);
  parallel_for(items, threads ? least_products / work + 1 : items, [&](std::size_t first, std::size_t last) {
    const std::size_t values =
        blocks.values_of_x(shape) + blocks.values_of_result(shape) + blocks.values_of_points(shape);
    active_kernels().winograd.convolve_planes(shape, arrays, blocks, first, last, scratch(values));
  });
}

void spread(const py::object& windows_, bool turned, const py::object& weights_) {
  const ArrayView view(windows_, "windows"), weights(weights_, "weights");
  for (const ArrayView* each : {&view, &weights}) each->on_device(dlpack::on_cpu).of_type(DType::float32).contiguous();
  if (view.dimensions() != 4 || view.size(2) != 3 || view.size(3) != 3)
    throw py::value_error("windows must have the shape [outputs, channels, 3, 3]");
  std::size_t outputs = view.size(0), channels = view.size(1), output_step = 9 * channels, channel_step = 9;
  if (turned) {
    std::swap(outputs, channels);
    std::swap(output_step, channel_step);
  }
  const WinogradWindows windows{view.data<float>(), channels, outputs, channel_step, output_step, turned};
  check(channels, outputs);
  weights.of_size(winograd_points * channels * outputs).writable();
  const py::gil_scoped_release unlocked;
  parallel_for(channels, least_windows / outputs + 1, [&](std::size_t first, std::size_t last) {
    active_kernels().winograd.spread_windows(windows, first, last, scratch(winograd_points * outputs),
                                             weights.data<float>());
  });
}

}  // namespace

void bind_winograd(py::module_& module) {
  module.def("winograd_weights", &spread, py::arg("windows"), py::arg("turned"), py::arg("weights"));
  module.def("winograd", &convolve, py::arg("x"), py::arg("weights"), py::arg("mask"), py::arg("bias"),
             py::arg("added"), py::arg("relu"), py::arg("out"), py::arg("threads") = true);
  module.def("winograd_planes", &convolve_planes, py::arg("x"), py::arg("weights"), py::arg("bias"), py::arg("out"),
             py::arg("threads") = true);
}

}  // namespace aisec_fast
