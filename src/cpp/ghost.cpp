#include "ghost.hpp"

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "aisec_fast/ghost_math.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t least_products = std::size_t{1} << 17;  // smallest work that is worth a thread

// Memory of one thread, aligned as the kernels want it.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : memory_(::operator new(std::max<std::size_t>(bytes, 1), alignment)) {}
  ~Scratch() { ::operator delete(memory_, alignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* bytes() const { return memory_; }
  float* floats() const { return static_cast<float*>(memory_); }

 private:
  static constexpr std::align_val_t alignment{64};
  void* memory_;
};

std::size_t least_units(std::size_t products) { return least_products / std::max<std::size_t>(products, 1) + 1; }

struct Extents {
  std::size_t activation, gradient, rows;  // values a sample
};
Extents extents(const ConvShape& shape) {
  return {shape.channels * shape.rows * shape.columns, shape.out_channels * shape.out_rows * shape.out_columns,
          shape.out_channels * (shape.channels / shape.groups) * shape.kernel[0] * shape.kernel[1]};
}

// Calls one(sample, memory) for every sample, over the threads.
template <class One>
void for_samples(std::size_t batch, std::size_t products, std::size_t scratch_floats, const One& one) {
  parallel_for(batch, least_units(products), [&](std::size_t begin, std::size_t end) {
    const Scratch scratch(scratch_floats * sizeof(float));
    for (std::size_t sample = begin; sample < end; ++sample) one(sample, scratch.floats());
  });
}

// Rows of more bytes than this are out of the caches before a step comes to their sum: they are written past them,
// where they can be, and what the backward pass reads next stays.
constexpr std::size_t passing_bytes = std::size_t{4} << 20, line = 64;
bool pass_by(const ConvShape& shape, std::size_t values, const float* rows) {
  return values * sizeof(float) >= passing_bytes && shape.out_channels * sizeof(float) % line == 0 &&
         reinterpret_cast<std::uintptr_t>(rows) % line == 0;
}

}  // namespace

void gram_squares(const GramShape& shape, std::size_t batch, const float* inputs, const float* outputs, double* squares,
                  double* bounds, float* sums) {
  const GhostKernels& kernels = active_kernels().ghost;
  const std::size_t rows = (shape.length + gram_block - 1) / gram_block;
  std::vector<double> parts(batch * rows), lengths(batch * shape.length);
  // Of each block of tokens; the first one's is made where the sum is.
  std::vector<float> more(sums == nullptr ? 0 : batch * (std::max<std::size_t>(rows, 1) - 1) * shape.outputs);
  const auto sums_of = [&](std::size_t sample, std::size_t row) {
    return sums == nullptr ? nullptr
           : row == 0      ? sums + sample * shape.outputs
                           : more.data() + (sample * (rows - 1) + row - 1) * shape.outputs;
  };
  const std::size_t products = std::min(shape.length, gram_block) * shape.length * (shape.inputs + shape.outputs);
  parallel_for(parts.size(), least_units(products), [&](std::size_t begin, std::size_t end) {
    const Scratch scratch(kernels.gram_bytes);
    for (std::size_t unit = begin; unit < end; ++unit) {
      // The first rows of blocks have the most work: long and short ones in turn, so that threads have as much to do.
      const std::size_t sample = unit / rows, turn = unit % rows;
      const std::size_t row = turn % 2 == 0 ? turn / 2 : rows - 1 - turn / 2;
      const float* const input = inputs + sample * shape.length * shape.inputs;
      const bool goes_on = turn + 1 == rows && unit + 1 < end;
      parts[sample * rows + row] =
          kernels.gram_row(shape, input, outputs + sample * shape.length * shape.outputs, row,
                           goes_on ? input + shape.length * shape.inputs : nullptr, scratch.bytes(),
                           &lengths[sample * shape.length], sums_of(sample, row));
    }
  });
  if (sums != nullptr && rows == 0) std::fill(sums, sums + batch * shape.outputs, 0.0f);
  for (std::size_t sample = 0; sums != nullptr && sample < batch; ++sample)
    for (std::size_t row = 1; row < rows; ++row)
      std::transform(sums_of(sample, row), sums_of(sample, row) + shape.outputs, sums_of(sample, 0), sums_of(sample, 0),
                     [](float later, float sum) { return sum + later; });
  for (std::size_t sample = 0; sample < batch; ++sample) {
    double square = 0.0, bound = 0.0;
    for (std::size_t row = 0; row < rows; ++row) square += parts[sample * rows + row];
    for (std::size_t t = 0; t < shape.length; ++t) bound += lengths[sample * shape.length + t];
    const SampleNorm norm = finished(square, bound * exact_margin(shape.length));
    squares[sample] = norm.square;
    bounds[sample] = norm.bound;
  }
}

void conv_gram_squares(const ConvShape& shape, std::size_t batch, const float* activation, const float* gradient,
                       double* squares, double* bounds) {
  const GhostKernels& kernels = active_kernels().ghost;
  const Extents sizes = extents(shape);
  for_samples(batch, sizes.gradient * shape.out_rows * shape.out_columns, kernels.conv_gram_scratch(shape),
              [&](std::size_t sample, float* memory) {
                const SampleNorm norm = kernels.conv_gram(shape, activation + sample * sizes.activation,
                                                          gradient + sample * sizes.gradient, memory);
                squares[sample] = norm.square;
                bounds[sample] = norm.bound;
              });
}

void conv_rows(const ConvShape& shape, std::size_t batch, const float* activation, const float* gradient, float* rows,
               bool taps_first, double* squares, double* bounds, const ConvSums& added) {
  const GhostKernels& kernels = active_kernels().ghost;
  const Extents sizes = extents(shape);
  const RowOrder order = !taps_first                                ? RowOrder::outputs
                         : pass_by(shape, batch * sizes.rows, rows) ? RowOrder::passing_taps
                                                                    : RowOrder::taps;
  for_samples(batch, sizes.rows * shape.out_rows * shape.out_columns, kernels.conv_rows_scratch(shape),
              [&](std::size_t sample, float* memory) {
                float* const sums = added.sums == nullptr ? nullptr : added.sums + sample * shape.out_channels;
                const SampleNorm norm =
                    kernels.conv_rows(shape, activation + sample * sizes.activation, gradient + sample * sizes.gradient,
                                      bounds != nullptr, memory, rows + sample * sizes.rows, order, sums);
                squares[sample] = norm.square;
                if (bounds != nullptr) bounds[sample] = norm.bound;
                if (sums == nullptr) return;
                double square = 0.0;
                for (std::size_t i = 0; i < shape.out_channels; ++i)
                  square += static_cast<double>(sums[i]) * static_cast<double>(sums[i]);
                added.squares[sample] = square;
              });
}

}  // namespace aisec_fast
