#include "products.hpp"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t most_outputs = 256, most_inputs = 512;  // of a part, so that it stays in the second-level cache
constexpr std::size_t least_products = std::size_t{1} << 17;  // smallest work that is worth a thread
constexpr std::size_t least_values = std::size_t{1} << 15;

struct Work {
  const Product* product;
  ProductPart part;
};

std::size_t parts_of(std::size_t count, std::size_t most) { return (count + most - 1) / most; }
// The length of each of so many parts, in whole tiles.
std::size_t share(std::size_t count, std::size_t parts, std::size_t tile) {
  return ((count + parts - 1) / parts + tile - 1) / tile * tile;
}

// A weight's parts: as many for each thread, if it is large. Bits do not depend on it, since every value of a weight is
// made by itself.
void add_parts(const Product& product, std::size_t threads, std::vector<Work>& work) {
  const ProductShape& shape = product.shape;
  const std::size_t across = parts_of(shape.inputs, most_inputs);
  std::size_t down = parts_of(shape.outputs, most_outputs);
  if (shape.batch * shape.length * shape.inputs * shape.outputs >= threads * least_products)
    while (down * across % threads != 0) ++down;
  const std::size_t outputs = share(shape.outputs, down, 6), inputs = share(shape.inputs, across, 16);
  for (std::size_t o = 0; o < shape.outputs; o += outputs)
    for (std::size_t i = 0; i < shape.inputs; i += inputs)
      work.push_back({&product, {o, std::min(outputs, shape.outputs - o), i, std::min(inputs, shape.inputs - i)}});
}

class Scratch {
 public:
  explicit Scratch(std::size_t floats)
      : memory_(static_cast<float*>(::operator new(floats * sizeof(float), alignment))) {}
  ~Scratch() { ::operator delete(memory_, alignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  float* floats() const { return memory_; }

 private:
  static constexpr std::align_val_t alignment{64};
  float* memory_;
};

}  // namespace

void weighted_products(const std::vector<Product>& products, const double* weights) {
  const ProductKernels& kernels = active_kernels().products;
  std::vector<Work> work;
  std::size_t total = 0;
  for (const Product& product : products) {
    const ProductShape& shape = product.shape;
    total += shape.batch * shape.length * shape.inputs * shape.outputs;
    if (shape.batch * shape.length == 0)
      std::fill(product.total, product.total + shape.inputs * shape.outputs, 0.0f);
    else
      add_parts(product, thread_count(), work);
  }
  std::size_t floats = 0;
  for (const Work& one : work) floats = std::max(floats, kernels.scratch(one.part));
  // Each thread has memory of its own and takes the next part when it has done one.
  std::atomic<std::size_t> next{0};
  const std::size_t threads = std::min({thread_count(), work.size(), total / least_products + 1});
  parallel_for(threads, 1, [&](std::size_t, std::size_t) {
    const Scratch scratch(floats);
    for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < work.size();) {
      const Product& product = *work[i].product;
      kernels.weighted_product(product.shape, product.inputs, product.outputs, weights, work[i].part, scratch.floats(),
                               product.total);
    }
  });
}

void row_squares(const std::vector<Matrix>& matrices, std::size_t rows, double* squares) {
  const ClippingKernels& kernels = active_kernels().clipping_float32;
  std::size_t columns = 0;
  for (const Matrix& matrix : matrices) columns += matrix.columns;
  parallel_for(rows, least_values / std::max<std::size_t>(columns, 1) + 1, [&](std::size_t begin, std::size_t end) {
    std::vector<double> sums(end - begin);
    for (std::size_t m = 0; m < matrices.size(); ++m) {
      const Matrix& matrix = matrices[m];
      double* const to = squares + m * rows + begin;
      std::fill(to, to + (end - begin), 0.0);
      for (std::size_t first = 0; first < matrix.columns; first += norm_block) {
        const float* from = matrix.values + begin * matrix.columns + first;
        const auto stride = static_cast<std::ptrdiff_t>(matrix.columns);
        const RowSet set{from, stride, end - begin, reinterpret_cast<const char*>(from),
                         stride * static_cast<std::ptrdiff_t>(sizeof(float))};
        kernels.block_sums(set, std::min(norm_block, matrix.columns - first), 1.0, sums.data());
        for (std::size_t r = 0; r < sums.size(); ++r) to[r] += sums[r];
      }
    }
  });
}

void layer_norm_rows(const NormShape& shape, std::size_t batch, const float* input, const float* gradient,
                     const float* mean, const float* scale, float* weights, float* biases) {
  const ProductKernels& kernels = active_kernels().products;
  const std::size_t size = shape.length * shape.width;
  parallel_for(batch, least_values / std::max<std::size_t>(size, 1) + 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i)
      kernels.layer_norm(shape, input + i * size, gradient + i * size, mean + i * shape.length,
                         scale + i * shape.length, weights + i * shape.width, biases + i * shape.width);
  });
}

}  // namespace aisec_fast
