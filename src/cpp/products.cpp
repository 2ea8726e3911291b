#include "products.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <new>

#include "clipping.hpp"
#include "instruction_sets.hpp"
#include "kernels/standard_arithmetic.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

// Of a part: 128 tokens' inputs and outputs stay in the second-level cache. Rows of outputs as long as a page, since
// each page that is not looked up for long costs a walk through tables.
constexpr std::size_t most_outputs = 1024, most_inputs = 512;
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
void add_parts(const Product& product, const ProductKernels& kernels, std::size_t threads, std::vector<Work>& work) {
  const ProductShape& shape = product.shape;
  if (shape.inputs == 0 || shape.outputs == 0) return;
  const std::size_t across = parts_of(shape.inputs, most_inputs);
  std::size_t down = parts_of(shape.outputs, most_outputs);
  if (shape.batch * shape.length * shape.inputs * shape.outputs >= threads * least_products)
    while (down * across % threads != 0) ++down;
  const std::size_t outputs = share(shape.outputs, down, kernels.tile_outputs);
  const std::size_t inputs = share(shape.inputs, across, kernels.tile_inputs);
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

// sum = the vectors at these places, in float64 and in their order.
void sum_vectors(const Lookups& lookups, const std::size_t* places, std::size_t count, double* __restrict sum) {
  std::fill(sum, sum + lookups.width, 0.0);
  for (std::size_t k = 0; k < count; ++k) {
    const float* const vector = lookups.vectors + places[k] * lookups.width;
    for (std::size_t j = 0; j < lookups.width; ++j) sum[j] += static_cast<double>(vector[j]);
  }
}

// The end of the run of equal keys that starts at `first`.
template <class Key>
std::size_t run_end(const std::vector<std::size_t>& places, std::size_t first, std::size_t last, const Key& key) {
  std::size_t end = first + 1;
  while (end < last && key(places[end]) == key(places[first])) ++end;
  return end;
}

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
      add_parts(product, kernels, thread_count(), work);
  }
  std::size_t floats = 0;
  for (const Work& one : work) floats = std::max(floats, kernels.scratch(one.part));
  // Each thread has memory of its own and takes the next part when it has done one; small ones last, as the others wait
  // for the last one.
  std::stable_sort(work.begin(), work.end(), [](const Work& a, const Work& b) {
    return a.part.outputs * a.part.inputs > b.part.outputs * b.part.inputs;
  });
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

void outer_squares(const std::vector<Matrix>& left, const std::vector<Matrix>& right, std::size_t rows,
                   double* squares) {
  const ClippingKernels& kernels = active_kernels().clipping_float32;
  std::size_t columns = 0;
  for (std::size_t k = 0; k < left.size(); ++k) columns += left[k].columns + right[k].columns;
  parallel_for(rows, least_values / std::max<std::size_t>(columns, 1) + 1, [&](std::size_t begin, std::size_t end) {
    const StandardArithmetic arithmetic;
    const std::size_t count = end - begin;
    std::vector<double> sums(count);
    const auto add_squares = [&](const Matrix& matrix, double* to) {
      std::fill(to, to + count, 0.0);
      for (std::size_t first = 0; first < matrix.columns; first += norm_block) {
        const float* from = matrix.values + begin * matrix.columns + first;
        const auto stride = static_cast<std::ptrdiff_t>(matrix.columns);
        const RowSet set{from,
                         stride,
                         count,
                         reinterpret_cast<const char*>(from),
                         stride * static_cast<std::ptrdiff_t>(sizeof(float)),
                         false};
        kernels.block_sums(set, std::min(norm_block, matrix.columns - first), 1.0, sums.data());
        for (std::size_t r = 0; r < count; ++r) to[r] += sums[r];
      }
    };
    for (std::size_t k = 0; k < left.size(); ++k) {
      double *const product = squares + k * rows + begin, *const own = product + left.size() * rows;
      add_squares(left[k], product);
      add_squares(right[k], own);
      for (std::size_t r = 0; r < count; ++r) product[r] *= own[r];
    }
  });
}

bool clip_weights(const std::vector<const double*>& squares, const std::vector<const double*>& spreads,
                  std::size_t batch, const WeightRule& rule, double* weights) {
  const StandardArithmetic arithmetic;
  const auto norm_of = [&](const std::vector<const double*>& parts, std::size_t sample) {
    double sum = parts[0][sample];
    for (std::size_t part = 1; part < parts.size(); ++part) sum += parts[part][sample];
    return std::sqrt(sum * (rule.scale * rule.scale));
  };
  bool some_zero = false;
  for (std::size_t i = 0; i < batch; ++i) {
    const double norm = norm_of(squares, i), spread = spreads.empty() ? norm : norm_of(spreads, i);
    const double by_norm = rule.bound / (norm + rule.added), by_spread = rule.spread_bound / spread;
    const bool enough = by_norm >= rule.least && by_spread >= rule.least;  // false for what is no number
    weights[i] = enough ? std::min({rule.most, by_norm, by_spread}) * rule.scale : 0.0;
    some_zero |= !enough;
  }
  return some_zero;
}

void weighted_rows(const std::vector<KeptRows>& kept, std::size_t batch, const double* weights) {
  std::vector<std::vector<float>> sums(kept.size());  // of those whose outputs are last
  Batch call{DType::float32, batch, {}};
  std::vector<void*> outs;
  for (std::size_t k = 0; k < kept.size(); ++k) {
    if (kept[k].outputs != 0) sums[k].resize(kept[k].columns);
    call.arrays.push_back({kept[k].rows, static_cast<std::ptrdiff_t>(kept[k].columns), kept[k].columns});
    outs.push_back(kept[k].outputs != 0 ? sums[k].data() : kept[k].total);
  }
  weighted_sum(call, weights, outs);
  constexpr std::size_t together = 16;  // outputs whose values lie in one cache line
  for (std::size_t k = 0; k < kept.size(); ++k) {
    const std::size_t outputs = kept[k].outputs, taps = outputs == 0 ? 0 : kept[k].columns / outputs;
    const float* const from = sums[k].data();
    float* const to = kept[k].total;
    parallel_for((outputs + together - 1) / together, least_values / std::max<std::size_t>(taps * together, 1) + 1,
                 [=](std::size_t begin, std::size_t end) {
                   for (std::size_t block = begin; block < end; ++block)
                     for (std::size_t tap = 0; tap < taps; ++tap)
                       for (std::size_t o = block * together; o < std::min(outputs, (block + 1) * together); ++o)
                         to[o * taps + tap] = from[tap * outputs + o];
                 });
  }
}

void embedding_squares(const Lookups& lookups, double* squares) {
  const std::size_t length = lookups.length, size = length * lookups.width;
  const auto token = [&](std::size_t place) { return lookups.tokens[place]; };
  parallel_for(lookups.batch, least_values / std::max<std::size_t>(size, 1) + 1,
               [&](std::size_t begin, std::size_t end) {
                 const StandardArithmetic arithmetic;
                 std::vector<std::size_t> places;
                 std::vector<double> sum(lookups.width);
                 for (std::size_t sample = begin; sample < end; ++sample) {
                   places.clear();
                   for (std::size_t t = sample * length; t < (sample + 1) * length; ++t)
                     if (token(t) != lookups.padding) places.push_back(t);
                   std::sort(places.begin(), places.end(), [&](std::size_t a, std::size_t b) {
                     return token(a) < token(b) || (token(a) == token(b) && a < b);
                   });
                   double square = 0.0;
                   for (std::size_t first = 0, stop; first < places.size(); first = stop) {
                     stop = run_end(places, first, places.size(), token);
                     sum_vectors(lookups, &places[first], stop - first, sum.data());
                     double lanes[8] = {};
                     std::size_t j = 0;
                     for (; j + 8 <= sum.size(); j += 8)
                       for (std::size_t l = 0; l < 8; ++l) lanes[l] += sum[j + l] * sum[j + l];
                     for (; j < sum.size(); ++j) lanes[0] += sum[j] * sum[j];
                     for (const double lane : lanes) square += lane;
                   }
                   squares[sample] = square;
                 }
               });
}

void embedding_total(const Lookups& lookups, const double* weights, std::size_t words, float* total) {
  const auto token = [&](std::size_t place) { return lookups.tokens[place]; };
  const auto sample = [&](std::size_t place) { return place / lookups.length; };
  std::vector<std::size_t> places, starts;
  for (std::size_t place = 0; place < lookups.batch * lookups.length; ++place)
    if (token(place) != lookups.padding && weights[sample(place)] != 0.0) places.push_back(place);
  std::sort(places.begin(), places.end(),
            [&](std::size_t a, std::size_t b) { return token(a) < token(b) || (token(a) == token(b) && a < b); });
  for (std::size_t first = 0; first < places.size(); first = run_end(places, first, places.size(), token))
    starts.push_back(first);
  starts.push_back(places.size());
  const std::size_t least = least_values / std::max<std::size_t>(lookups.width, 1) + 1;
  parallel_for(words, least, [&](std::size_t begin, std::size_t end) {
    std::fill(total + begin * lookups.width, total + end * lookups.width, 0.0f);
  });
  parallel_for(starts.size() - 1, least, [&](std::size_t begin, std::size_t end) {
    const StandardArithmetic arithmetic;
    std::vector<double> row(lookups.width), sum(lookups.width);
    for (std::size_t run = begin; run < end; ++run) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (std::size_t first = starts[run], stop; first < starts[run + 1]; first = stop) {
        stop = run_end(places, first, starts[run + 1], sample);
        sum_vectors(lookups, &places[first], stop - first, row.data());
        const double weight = weights[sample(places[first])];
        for (std::size_t j = 0; j < row.size(); ++j) sum[j] += weight * row[j];
      }
      float* const to = total + static_cast<std::size_t>(token(places[starts[run]])) * lookups.width;
      for (std::size_t j = 0; j < sum.size(); ++j) to[j] = static_cast<float>(sum[j]);
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
