#include "clipping.hpp"

#include <algorithm>
#include <cmath>

#include "aisec_fast/clipping_math.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

// Rows are taken in blocks that stay in cache between the pass that measures them and the pass that adds them.
constexpr std::size_t cached_bytes = std::size_t{8} << 20;
constexpr std::size_t least_bytes = std::size_t{256} << 10;  // smallest work that is worth a thread

// At most 1024 columns of one array: one block sum, and the unit of work when columns are shared among threads.
struct Tile {
  std::size_t array, begin, width;
};

class Rows {
 public:
  explicit Rows(const Batch& batch)
      : batch_(batch),
        kernels_(batch.dtype == DType::float32   ? active_kernels().clipping_float32
                 : batch.dtype == DType::float64 ? active_kernels().clipping_float64
                                                 : active_kernels().clipping_bfloat16),
        item_(batch.dtype == DType::float32   ? 4
              : batch.dtype == DType::float64 ? 8
                                              : 2) {
    std::size_t columns = 0;
    for (std::size_t a = 0; a < batch.arrays.size(); ++a) {
      for (std::size_t begin = 0; begin < batch.arrays[a].columns; begin += norm_block)
        tiles_.push_back({a, begin, std::min(norm_block, batch.arrays[a].columns - begin)});
      columns += batch.arrays[a].columns;
    }
    rows_in_cache_ = std::clamp<std::size_t>(cached_bytes / std::max<std::size_t>(1, columns * item_), 4, 4096);
  }

  const ClippingKernels& kernels() const { return kernels_; }
  const std::vector<Tile>& tiles() const { return tiles_; }
  std::size_t least_tiles(std::size_t rows) const {
    return std::max<std::size_t>(1, least_bytes / (norm_block * item_ * std::max<std::size_t>(1, rows)));
  }

  const void* at(std::size_t row, const Tile& tile) const {
    const Gradients& array = batch_.arrays[tile.array];
    return static_cast<const char*>(array.data) +
           (static_cast<std::ptrdiff_t>(row) * array.stride + static_cast<std::ptrdiff_t>(tile.begin)) *
               static_cast<std::ptrdiff_t>(item_);
  }
  std::ptrdiff_t stride(const Tile& tile) const { return batch_.arrays[tile.array].stride; }

  // Calls use(first, last) for blocks of rows whose values fit in cache together.
  template <class Use>
  void for_blocks(const Use& use) const {
    for (std::size_t first = 0; first < batch_.rows; first += rows_in_cache_)
      use(first, std::min(batch_.rows, first + rows_in_cache_));
  }

  // Calls use(tile) for every tile, over the threads.
  template <class Use>
  void for_tiles(std::size_t rows, const Use& use) const {
    parallel_for(tiles_.size(), least_tiles(rows), [&](std::size_t begin, std::size_t end) {
      for (std::size_t t = begin; t < end; ++t) use(tiles_[t]);
    });
  }

  void norms(std::size_t first, std::size_t last, double* norms) {
    const std::size_t blocks = tiles_.size();
    sums_.resize((last - first) * blocks);
    parallel_for(sums_.size(), least_tiles(1), [&](std::size_t begin, std::size_t end) {
      for (std::size_t unit = begin; unit < end; ++unit) {
        const Tile& tile = tiles_[unit % blocks];
        kernels_.block_sums(at(first + unit / blocks, tile), tile.width, 1.0, &sums_[unit]);
      }
    });
    for (std::size_t row = first; row < last; ++row) {
      double* sums = sums_.data() + (row - first) * blocks;
      const double total = row_total(sums);
      norms[row] = std::sqrt(total);
      const double multiplier = norm_multiplier(total);
      if (batch_.dtype != DType::float64 || multiplier == 1.0) continue;
      for (std::size_t t = 0; t < blocks; ++t)
        kernels_.block_sums(at(row, tiles_[t]), tiles_[t].width, multiplier, &sums[t]);
      norms[row] = std::sqrt(row_total(sums)) / multiplier;
    }
  }

 private:
  double row_total(const double* sums) const {
    double total = 0.0, array_total = 0.0;
    for (std::size_t t = 0; t < tiles_.size(); ++t) {
      array_total = tiles_[t].begin == 0 ? sums[t] : array_total + sums[t];
      const bool array_ends = t + 1 == tiles_.size() || tiles_[t + 1].begin == 0;
      if (array_ends) total += array_total;
    }
    return total;
  }

  const Batch& batch_;
  const ClippingKernels& kernels_;
  std::size_t item_;
  std::vector<Tile> tiles_;
  std::size_t rows_in_cache_ = 1;
  std::vector<double> sums_;
};

// Running totals of all arrays in binary64, rounded once when they are stored.
class Totals {
 public:
  explicit Totals(const Batch& batch) : batch_(batch) {
    for (const Gradients& array : batch.arrays) totals_.emplace_back(array.columns);
  }
  void add(const Rows& rows, std::size_t first, std::size_t last, const double* weights) {
    rows.for_tiles(last - first, [&](const Tile& tile) {
      rows.kernels().add_weighted(rows.at(first, tile), rows.stride(tile), last - first, weights, tile.width,
                                  &totals_[tile.array][tile.begin]);
    });
  }
  void store(const std::vector<void*>& outs) const {
    for (std::size_t a = 0; a < totals_.size(); ++a) {
      if (batch_.dtype == DType::float64)
        std::copy(totals_[a].begin(), totals_[a].end(), static_cast<double*>(outs[a]));
      else
        std::transform(totals_[a].begin(), totals_[a].end(), static_cast<float*>(outs[a]),
                       [](double total) { return static_cast<float>(total); });
    }
  }

 private:
  const Batch& batch_;
  std::vector<std::vector<double>> totals_;
};

}  // namespace

void row_norms(const Batch& batch, double* norms) {
  Rows rows(batch);
  rows.for_blocks([&](std::size_t first, std::size_t last) { rows.norms(first, last, norms); });
}

void weighted_sum(const Batch& batch, const double* weights, const std::vector<void*>& outs) {
  const Rows rows(batch);
  Totals totals(batch);
  totals.add(rows, 0, batch.rows, weights);
  totals.store(outs);
}

void clip_and_sum(const Batch& batch, double max_norm, const std::vector<void*>& outs, double* norms) {
  Rows rows(batch);
  Totals totals(batch);
  std::vector<double> factors;
  rows.for_blocks([&](std::size_t first, std::size_t last) {
    rows.norms(first, last, norms);
    factors.clear();
    for (std::size_t row = first; row < last; ++row) factors.push_back(clip_factor(norms[row], max_norm));
    totals.add(rows, first, last, factors.data());
  });
  totals.store(outs);
}

void lattice_sum(const Batch& batch, double max_norm, double granularity, std::int64_t limit,
                 const std::vector<std::int64_t*>& outs, double* norms) {
  Rows rows(batch);
  for (std::size_t a = 0; a < outs.size(); ++a) std::fill_n(outs[a], batch.arrays[a].columns, std::int64_t{0});
  std::vector<double> factors;
  rows.for_blocks([&](std::size_t first, std::size_t last) {
    rows.norms(first, last, norms);
    factors.clear();
    for (std::size_t row = first; row < last; ++row)
      factors.push_back(lattice_factor(norms[row], max_norm, granularity));
    parallel_for(last - first, rows.least_tiles(rows.tiles().size()), [&](std::size_t begin, std::size_t end) {
      for (std::size_t row = begin; row < end; ++row) {
        std::int64_t square_sum = 0;
        if (factors[row] != 0.0)
          for (const Tile& tile : rows.tiles())
            square_sum += rows.kernels().lattice_square_sum(rows.at(first + row, tile), tile.width, factors[row]);
        if (square_sum > limit) factors[row] = 0.0;  // the sensitivity is proved by this line, not by the norm
      }
    });
    rows.for_tiles(last - first, [&](const Tile& tile) {
      rows.kernels().add_lattice(rows.at(first, tile), rows.stride(tile), last - first, factors.data(), tile.width,
                                 &outs[tile.array][tile.begin]);
    });
  });
}

}  // namespace aisec_fast
