#include <pybind11/stl.h>

#include <algorithm>

#include "aisec_fast/array_view.hpp"
#include "aisec_fast/ghost_call.hpp"
#include "bind.hpp"
#include "convolution.hpp"
#include "ghost.hpp"
#include "products.hpp"

namespace aisec_fast {
namespace {

using Arrays = std::vector<py::object>;

std::vector<ArrayView> floats(const Arrays& arrays, const char* name, std::size_t dimensions) {
  std::vector<ArrayView> views;
  views.reserve(arrays.size());
  for (const py::object& array : arrays) {
    const ArrayView& view = views.emplace_back(array, name);
    view.on_device(dlpack::on_cpu).of_type(DType::float32).contiguous();
    if (view.dimensions() != dimensions)
      throw py::value_error(view.name() + " has an array of " + std::to_string(view.dimensions()) +
                            " dimensions, expected " + std::to_string(dimensions));
  }
  return views;
}

void run_weighted_products(const Arrays& inputs, const Arrays& outputs, const py::object& weights, std::size_t samples,
                           const Arrays& totals) {
  const std::vector<ArrayView> a = floats(inputs, "inputs", 3), g = floats(outputs, "outputs", 3),
                               sums = floats(totals, "totals", 2);
  const ArrayView factors(weights, "weights");
  factors.on_device(dlpack::on_cpu).of_type(DType::float64).contiguous();
  if (a.size() != g.size() || a.size() != sums.size())
    throw py::value_error("inputs, outputs and totals differ in their number");
  if (samples == 0) throw py::value_error("samples is 0, expected at least one sample");
  std::vector<Product> products;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].size(0) != g[i].size(0) || a[i].size(1) != g[i].size(1))
      throw py::value_error("outputs differs from inputs in its batch or its length");
    factors.of_size(a[i].size(0));
    if (sums[i].size(0) != g[i].size(2) || sums[i].size(1) != a[i].size(2))
      throw py::value_error("totals has another shape than [outputs, inputs]");
    sums[i].writable();
    products.push_back({{a[i].size(0), a[i].size(1), a[i].size(2), g[i].size(2), samples},
                        a[i].data<float>(),
                        g[i].data<float>(),
                        sums[i].data<float>()});
  }
  const py::gil_scoped_release unlocked;
  weighted_products(products, factors.data<double>());
}

void run_outer_squares(const Arrays& inputs, const Arrays& outputs, const py::object& squares) {
  const std::vector<ArrayView> a = floats(inputs, "inputs", 3), g = floats(outputs, "outputs", 3);
  const ArrayView found(squares, "squares");
  found.on_device(dlpack::on_cpu).of_type(DType::float64).contiguous().writable();
  if (a.size() != g.size()) throw py::value_error("inputs and outputs differ in their number");
  if (a.empty()) return;
  const std::size_t rows = a[0].size(0);
  found.of_size(2 * a.size() * rows);
  std::vector<Matrix> left, right;
  for (std::size_t k = 0; k < a.size(); ++k)
    for (const ArrayView* view : {&a[k], &g[k]}) {
      if (view->size(0) != rows || view->size(1) != 1)
        throw py::value_error(view->name() + " has an array of another shape than [batch, 1, width], all of one batch");
      (view == &a[k] ? left : right).push_back({view->data<float>(), view->size(2)});
    }
  const py::gil_scoped_release unlocked;
  outer_squares(left, right, rows, found.data<double>());
}

std::vector<const double*> squares_of(const Arrays& arrays, const char* name, std::size_t batch) {
  std::vector<const double*> found;
  for (const py::object& array : arrays) {
    const ArrayView view(array, name);
    view.on_device(dlpack::on_cpu).of_type(DType::float64).contiguous().of_size(batch);
    found.push_back(view.data<double>());
  }
  return found;
}

bool run_clip_weights(const Arrays& squares, const Arrays& spreads, double scale, double bound, double spread_bound,
                      double added, double most, double least, const py::object& weights) {
  const ArrayView out(weights, "weights");
  out.on_device(dlpack::on_cpu).of_type(DType::float64).contiguous().writable();
  const std::size_t batch = out.size();
  if (squares.empty() || (!spreads.empty() && spreads.size() != squares.size()))
    throw py::value_error("squares is empty, or differs in number from spreads");
  return clip_weights(squares_of(squares, "squares", batch), squares_of(spreads, "spreads", batch), batch,
                      {scale, bound, spread_bound, added, most, least}, out.data<double>());
}

void run_weighted_rows(const Arrays& rows, const std::vector<std::size_t>& outputs, const py::object& weights,
                       const Arrays& totals) {
  const ArrayView factors(weights, "weights");
  factors.on_device(dlpack::on_cpu).of_type(DType::float64).contiguous();
  const std::size_t batch = factors.size();
  if (rows.empty() || rows.size() != totals.size() || rows.size() != outputs.size())
    throw py::value_error("rows, outputs and totals differ in their number, or are empty");
  std::vector<KeptRows> kept;
  for (std::size_t k = 0; k < rows.size(); ++k) {
    const ArrayView row(rows[k], "rows"), total(totals[k], "totals");
    for (const ArrayView* view : {&row, &total}) view->on_device(dlpack::on_cpu).of_type(DType::float32).contiguous();
    const std::size_t columns = total.size();
    row.of_size(batch * columns);
    total.writable();
    if (outputs[k] != 0 && columns % outputs[k] != 0)
      throw py::value_error("outputs has " + std::to_string(outputs[k]) + ", which does not divide a row of " +
                            std::to_string(columns) + " values");
    kept.push_back({row.data<float>(), columns, outputs[k], total.data<float>()});
  }
  const py::gil_scoped_release unlocked;
  weighted_rows(kept, batch, factors.data<double>());
}

void run_layer_norm_rows(const py::object& input, const py::object& gradient, const py::object& mean,
                         const py::object& scale, const py::object& weights, const py::object& biases) {
  const std::vector<ArrayView> in = floats({input, gradient}, "input or gradient", 3),
                               each = floats({mean, scale}, "mean or scale", 2),
                               out = floats({weights, biases}, "weights or biases", 2);
  const std::size_t batch = in[0].size(0), length = in[0].size(1), width = in[0].size(2);
  for (const ArrayView& view : in) view.of_size(batch * length * width);
  for (const ArrayView& view : each) view.of_size(batch * length);
  for (const ArrayView& view : out) view.of_size(batch * width).writable();
  const py::gil_scoped_release unlocked;
  layer_norm_rows({length, width}, batch, in[0].data<float>(), in[1].data<float>(), each[0].data<float>(),
                  each[1].data<float>(), out[0].data<float>(), out[1].data<float>());
}

// conv_rows without bounds, with the gradients of the bias: sums of the gradient over its positions, and their squares.
void run_conv_gradients(const py::object& activation, const py::object& gradient, const Pair& kernel,
                        const Pair& stride, const Pair& before, const Pair& dilation, std::size_t groups,
                        const py::object& rows, bool taps_first, const py::object& squares, const py::object& sums,
                        const py::object& sum_squares) {
  const ArrayView a(activation, "activation"), g(gradient, "gradient"), out(rows, "rows"), sum(sums, "sums"),
      square(squares, "squares"), of_sums(sum_squares, "sum_squares");
  for (const ArrayView* view : {&a, &g, &out, &sum, &square, &of_sums}) view->on_device(dlpack::on_cpu);
  const ConvShape shape = conv_shape(a, g, kernel, stride, before, dilation, groups, square, of_sums);
  if (taps_first && groups != 1) throw py::value_error("taps_first is true, which takes groups = 1");
  out.of_type(DType::float32).contiguous().of_size(a.size(0) * row_size(shape)).writable();
  sum.of_type(DType::float32).contiguous().of_size(a.size(0) * shape.out_channels).writable();
  const py::gil_scoped_release unlocked;
  conv_rows(shape, a.size(0), a.data<float>(), g.data<float>(), out.data<float>(), taps_first, square.data<double>(),
            nullptr, {sum.data<float>(), of_sums.data<double>()});
}

// The squares and bounds of gram_squares as upper bounds of n^2 and A^2 (docs/privacy.md, section 3); sums of tokens.
void run_gram_norms(const py::object& inputs, const py::object& outputs, double roundoff, const py::object& squares,
                    const py::object& spreads, const py::object& sums) {
  const ArrayView a(inputs, "inputs"), g(outputs, "outputs"), n(squares, "squares"), most(spreads, "spreads");
  for (const ArrayView* view : {&a, &g, &n, &most}) view->on_device(dlpack::on_cpu);
  const GramShape shape = gram_shape(a, g, n, most);
  const std::size_t batch = a.size(0);
  const std::vector<ArrayView> sum = floats({sums}, "sums", 2);
  sum[0].of_size(batch * shape.outputs).writable();
  double *const square = n.data<double>(), *const spread = most.data<double>();
  const py::gil_scoped_release unlocked;
  gram_squares(shape, batch, a.data<float>(), g.data<float>(), square, spread, sum[0].data<float>());
  for (std::size_t i = 0; i < batch; ++i) {
    const double whole = spread[i] * spread[i];
    square[i] = std::max(square[i], 0.0) + roundoff * whole;
    spread[i] = std::max(whole, square[i]);
  }
}

Lookups lookups_of(const ArrayView& tokens, const ArrayView& vectors, std::int64_t padding) {
  tokens.on_device(dlpack::on_cpu).of_type(DType::int64).contiguous();
  vectors.on_device(dlpack::on_cpu).of_type(DType::float32).contiguous();
  if (tokens.dimensions() != 2 || vectors.dimensions() != 3)
    throw py::value_error("tokens and vectors have other dimensions than 2 and 3");
  if (vectors.size(0) != tokens.size(0) || vectors.size(1) != tokens.size(1))
    throw py::value_error("vectors differs from tokens in its batch or its length");
  return {tokens.size(0), tokens.size(1), vectors.size(2), tokens.data<std::int64_t>(), vectors.data<float>(), padding};
}

void run_embedding_squares(const py::object& tokens, const py::object& vectors, std::int64_t padding,
                           const py::object& squares) {
  const ArrayView places(tokens, "tokens"), values(vectors, "vectors"), found(squares, "squares");
  const Lookups lookups = lookups_of(places, values, padding);
  found.on_device(dlpack::on_cpu).of_type(DType::float64).contiguous().of_size(lookups.batch).writable();
  const py::gil_scoped_release unlocked;
  embedding_squares(lookups, found.data<double>());
}

void run_embedding_total(const py::object& tokens, const py::object& vectors, std::int64_t padding,
                         const py::object& weights, const py::object& total) {
  const ArrayView places(tokens, "tokens"), values(vectors, "vectors"), factors(weights, "weights");
  const Lookups lookups = lookups_of(places, values, padding);
  factors.on_device(dlpack::on_cpu).of_type(DType::float64).contiguous().of_size(lookups.batch);
  const std::vector<ArrayView> sums = floats({total}, "total", 2);
  const std::size_t words = sums[0].size(0);
  if (sums[0].size(1) != lookups.width) throw py::value_error("total has another width than vectors");
  sums[0].writable();
  for (std::size_t i = 0; i < lookups.batch * lookups.length; ++i)
    if (lookups.tokens[i] < 0 || static_cast<std::size_t>(lookups.tokens[i]) >= words)
      throw py::value_error("tokens has one that total has no row for");
  const py::gil_scoped_release unlocked;
  embedding_total(lookups, factors.data<double>(), words, sums[0].data<float>());
}

void run_convolution(const py::object& x_, const py::object& weight_, const py::object& bias_, const Pair& stride,
                     const Pair& before, const Pair& dilation, bool turned, const py::object& out_, bool threads) {
  const ArrayView x(x_, "x"), weight(weight_, "weight"), out(out_, "out");
  for (const ArrayView* view : {&x, &weight, &out}) {
    view->on_device(dlpack::on_cpu).of_type(DType::float32).contiguous();
    if (view->dimensions() != 4) throw py::value_error(view->name() + " must have 4 dimensions");
  }
  const WindowGeometry geometry{{weight.size(2), weight.size(3)}, stride, before, dilation};
  const ArrayView &images = turned ? out : x, &results = turned ? x : out;
  const ConvolutionSizes sizes{
      x.size(0), weight.size(1), weight.size(0), {images.size(2), images.size(3)}, {results.size(2), results.size(3)}};
  for (std::size_t d = 0; d < 2; ++d) {
    if (geometry.kernel[d] == 0 || stride[d] == 0 || dilation[d] == 0)
      throw py::value_error("kernel, stride and dilation must be at least 1");
    constexpr std::size_t most = std::size_t{1} << 24;
    for (std::size_t number : {geometry.kernel[d], stride[d], before[d], dilation[d]})
      if (number > most) throw py::value_error("kernel, stride, padding or dilation is over 2^24");
    const std::size_t reach = (geometry.kernel[d] - 1) * dilation[d] + 1, size = sizes.images[d] + 2 * before[d];
    if (sizes.results[d] != (size < reach ? 0 : (size - reach) / stride[d] + 1))
      throw py::value_error(results.name() + " has another height or width than the convolution gives");
  }
  images.of_size(sizes.batch * sizes.channels * sizes.images[0] * sizes.images[1]);
  results.of_size(sizes.batch * sizes.outputs * sizes.results[0] * sizes.results[1]);
  out.writable();
  std::optional<ArrayView> bias;
  if (!bias_.is_none())
    bias.emplace(bias_, "bias").on_device(dlpack::on_cpu).of_type(DType::float32).contiguous().of_size(out.size(1));
  if (out.size() == 0) return;
  const py::gil_scoped_release unlocked;
  convolve(x.data<float>(), weight.data<float>(), bias ? bias->data<float>() : nullptr, geometry, sizes, turned,
           threads, out.data<float>());
}

}  // namespace

void bind_products(py::module_& module) {
  module.def("weighted_products", &run_weighted_products, py::arg("inputs"), py::arg("outputs"), py::arg("weights"),
             py::arg("samples"), py::arg("totals"));
  module.def("conv_gradients", &run_conv_gradients, py::arg("activation"), py::arg("gradient"), py::arg("kernel"),
             py::arg("stride"), py::arg("before"), py::arg("dilation"), py::arg("groups"), py::arg("rows"),
             py::arg("taps_first"), py::arg("squares"), py::arg("sums"), py::arg("sum_squares"));
  module.def("gram_norms", &run_gram_norms, py::arg("inputs"), py::arg("outputs"), py::arg("roundoff"),
             py::arg("squares"), py::arg("spreads"), py::arg("sums"));
  module.def("outer_squares", &run_outer_squares, py::arg("inputs"), py::arg("outputs"), py::arg("squares"));
  module.def("clip_weights", &run_clip_weights, py::arg("squares"), py::arg("spreads"), py::arg("scale"),
             py::arg("bound"), py::arg("spread_bound"), py::arg("added"), py::arg("most"), py::arg("least"),
             py::arg("weights"));
  module.def("weighted_rows", &run_weighted_rows, py::arg("rows"), py::arg("outputs"), py::arg("weights"),
             py::arg("totals"));
  module.def("layer_norm_rows", &run_layer_norm_rows, py::arg("input"), py::arg("gradient"), py::arg("mean"),
             py::arg("scale"), py::arg("weights"), py::arg("biases"));
  module.def("embedding_squares", &run_embedding_squares, py::arg("tokens"), py::arg("vectors"), py::arg("padding"),
             py::arg("squares"));
  module.def("embedding_total", &run_embedding_total, py::arg("tokens"), py::arg("vectors"), py::arg("padding"),
             py::arg("weights"), py::arg("total"));
  module.def("convolution", &run_convolution, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("stride"),
             py::arg("before"), py::arg("dilation"), py::arg("turned"), py::arg("out"), py::arg("threads") = true);
}

}  // namespace aisec_fast
