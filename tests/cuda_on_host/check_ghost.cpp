// Runs the ghost kernels on heap buffers of exact size, for AddressSanitizer, and compares with plain loops.
#include <cmath>
#include <vector>

#include "check.hpp"
#include "ghost_entry.hpp"

using namespace aisec_fast;

namespace {

void fill(Buffer<float>& values) {
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(next_value());
}

bool near(double found, double expected, double scale) { return std::fabs(found - expected) <= 1e-12 * scale; }

void check_gram(std::size_t batch, const GramShape& shape) {
  Buffer<float> inputs(batch * shape.length * shape.inputs), outputs(batch * shape.length * shape.outputs);
  Buffer<double> squares(batch), bounds(batch);
  fill(inputs);
  fill(outputs);
  no_error(gram_squares(&shape, batch, inputs.data(), outputs.data(), squares.data(), bounds.data()));
  for (std::size_t b = 0; b < batch; ++b) {
    double square = 0.0, bound = 0.0;
    std::vector<double> row(shape.inputs * shape.outputs);
    for (std::size_t t = 0; t < shape.length; ++t) {
      const float* a = inputs.data() + (b * shape.length + t) * shape.inputs;
      const float* g = outputs.data() + (b * shape.length + t) * shape.outputs;
      double a_square = 0.0, g_square = 0.0;
      for (std::size_t i = 0; i < shape.inputs; ++i) a_square += double{a[i]} * double{a[i]};
      for (std::size_t j = 0; j < shape.outputs; ++j) g_square += double{g[j]} * double{g[j]};
      bound += std::sqrt(a_square * g_square);
      for (std::size_t i = 0; i < row.size(); ++i) row[i] += double{g[i / shape.inputs]} * double{a[i % shape.inputs]};
    }
    for (const double value : row) square += value * value;
    expect(near(squares[b], square, bound * bound), "gram_squares", shape.length, shape.inputs);
    expect(near(bounds[b], bound, bound) && bounds[b] >= bound * (1 - 1e-14), "bound", shape.length, shape.inputs);
  }
}

void check_conv(std::size_t batch, const ConvShape& c) {
  const std::size_t pixels = c.channels * c.rows * c.columns, positions = c.out_rows * c.out_columns;
  const std::size_t channels = c.channels / c.groups, outputs = c.out_channels / c.groups;
  const std::size_t taps = channels * c.kernel[0] * c.kernel[1], size = c.out_channels * taps;
  Buffer<float> x(batch * pixels), g(batch * c.out_channels * positions), rows(batch * size);
  Buffer<double> squares(batch), bounds(batch), gram(batch), lengths(batch);
  fill(x);
  fill(g);
  no_error(conv_rows(&c, batch, x.data(), g.data(), rows.data(), squares.data(), bounds.data()));
  no_error(conv_gram_squares(&c, batch, x.data(), g.data(), gram.data(), lengths.data()));
  for (std::size_t b = 0; b < batch; ++b) {
    double square = 0.0;
    for (std::size_t i = 0; i < size; ++i) {
      const std::size_t p = i / taps, channel = p / outputs * channels + i % taps / (c.kernel[0] * c.kernel[1]);
      const std::size_t kr = i / c.kernel[1] % c.kernel[0], kc = i % c.kernel[1];
      double sum = 0.0;
      for (std::size_t t = 0; t < positions; ++t) {
        const std::size_t row = t / c.out_columns * c.stride[0] + kr * c.dilation[0] - c.before[0];
        const std::size_t column = t % c.out_columns * c.stride[1] + kc * c.dilation[1] - c.before[1];
        if (row < c.rows && column < c.columns)
          sum += double{g[(b * c.out_channels + p) * positions + t]} *
                 double{x[b * pixels + (channel * c.rows + row) * c.columns + column]};
      }
      expect(rows[b * size + i] == static_cast<float>(sum), "conv_rows", i, b);
      square += double{rows[b * size + i]} * double{rows[b * size + i]};
    }
    expect(near(squares[b], square, square), "squares of conv_rows", b);
    expect(std::fabs(gram[b] - square) <= 1e-6 * lengths[b] * lengths[b], "conv_gram_squares", b);
    expect(near(bounds[b], lengths[b], lengths[b]), "bounds", b);
  }
}

}  // namespace

int main() {
  for (const unsigned order : {0u, 1u}) {
    set_order(order);
    for (const std::size_t batch : {0u, 1u, 3u}) {
      check_gram(batch, {1, 1, 1});
      check_gram(batch, {5, 7, 3});
      check_gram(batch, {0, 2, 2});
      check_conv(batch, {4, 5, 6, 6, 3, 3, {3, 2}, {2, 2}, {1, 0}, {1, 1}, 2});
      check_conv(batch, {1, 1, 9, 2, 1, 3, {1, 4}, {1, 3}, {0, 2}, {1, 2}, 1});
    }
  }
  check_gram(40, {3, 2, 2});  // more samples than blocks
  check_gram(1, {23, 3, 2});  // more pairs than threads
  check_conv(40, {1, 2, 2, 1, 2, 2, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1});
  check_conv(1, {8, 3, 3, 6, 3, 3, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1});
  std::puts("ghost: every result as expected");
}
