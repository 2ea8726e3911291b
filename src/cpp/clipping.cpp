#include "clipping.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "aisec_fast/clipping_math.hpp"
#include "instruction_sets.hpp"
#include "parallel_steps.hpp"
#include "thread_pool.hpp"

namespace aisec_fast {
namespace {

// Rows are taken in blocks, which are added one step after they were measured. Of narrow rows so many that a thread's
// share stays in its second-level cache meanwhile.
constexpr std::size_t cached_bytes = std::size_t{160} << 10;
constexpr std::size_t most_rows = 4096;
// Of wide rows as many as are added together, since totals pass by once a block, but no more than the shared cache
// keeps beside the totals: it often keeps less than it has.
constexpr std::size_t rows_together = 4, shared_bytes = std::size_t{12} << 20;
// Where one row and the totals are more than this, all rows are measured first, then added tile by tile.
constexpr std::size_t widest_row = std::size_t{20} << 20;
// Batches beyond this are no longer in any cache when somebody reads them again.
constexpr std::size_t passing_bytes = std::size_t{16} << 20;
// While some rows of a tile are added as many are fetched: whole tiles if the next one stays in the second-level cache
// meanwhile (which lines that pass by do not enter), else a few rows.
constexpr std::size_t fetched_bytes = std::size_t{512} << 10, fetched_beside_passing = std::size_t{2} << 20;
constexpr std::size_t few_rows = 16;
// Threads take tiles in turn, so many times a step: often enough to end it together, seldom enough to cost nothing.
constexpr std::size_t units_of_part = 64;
constexpr std::size_t least_bytes = std::size_t{256} << 10;  // smallest work that is worth a thread

std::size_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : dtype == DType::float64 ? 8 : 2; }

const ClippingKernels& kernels_for(DType dtype) {
  const Kernels& kernels = active_kernels();
  return dtype == DType::float32   ? kernels.clipping_float32
         : dtype == DType::float64 ? kernels.clipping_float64
                                   : kernels.clipping_bfloat16;
}

// At most 1024 columns of one array: one block sum. `at` counts columns over all arrays.
struct Tile {
  std::size_t array, begin, width, at;
};

struct Part {
  std::size_t begin, end;
};

struct Place {
  std::size_t tile, row;
};

// Gradients as blocks of rows by tiles of columns; the tiles of all arrays are shared out in parts of about equal
// width.
class Rows {
 public:
  // In blocks of so many rows; 0 for what suits the cache.
  explicit Rows(const Batch& batch, std::size_t rows_in_block = 0)
      : batch_(batch), item_(size_of(batch.dtype)), kernels_(kernels_for(batch.dtype)) {
    for (std::size_t a = 0; a < batch.arrays.size(); ++a)
      for (std::size_t begin = 0; begin < batch.arrays[a].columns; begin += norm_block) {
        const std::size_t width = std::min(norm_block, batch.arrays[a].columns - begin);
        tiles_.push_back({a, begin, width, columns_});
        columns_ += width;
      }
    const std::size_t worth = std::max<std::size_t>(1, batch.rows * columns_ * item_ / least_bytes);
    share_out(std::min({thread_count(), worth, std::max<std::size_t>(1, tiles_.size())}));
    rows_in_block_ = std::clamp<std::size_t>(batch.rows, 1, rows_in_block != 0 ? rows_in_block : fitting_rows());
    passing_ = batch.rows * columns_ * item_ > passing_bytes;
  }

  const Batch& batch() const { return batch_; }
  const ClippingKernels& kernels() const { return kernels_; }
  const std::vector<Tile>& tiles() const { return tiles_; }
  std::size_t columns() const { return columns_; }
  bool wide() const { return columns_ * (item_ + sizeof(double)) > widest_row; }
  std::size_t parts() const { return parts_.size(); }
  std::size_t rows_in_block() const { return rows_in_block_; }
  std::size_t blocks() const { return (batch_.rows + rows_in_block_ - 1) / rows_in_block_; }
  std::size_t first(std::size_t block) const { return block * rows_in_block_; }
  std::size_t count(std::size_t block) const { return std::min(rows_in_block_, batch_.rows - first(block)); }
  const Part& part(std::size_t index) const { return parts_[index]; }
  // Rows to add at once where all of a tile are added.
  std::size_t at_once() const {
    return batch_.rows * norm_block * item_ <= (passing_ ? fetched_beside_passing : fetched_bytes) ? batch_.rows
                                                                                                   : few_rows;
  }

  // Rows first, ..., first + count - 1 of a tile; as many from `next` on are read after them.
  RowSet set(std::size_t t, std::size_t first, std::size_t count, Place next) const {
    const Tile& tile = tiles_[t];
    return {
        at({t, first}), stride(tile), count, at(next), stride(tiles_[next.tile]) * static_cast<std::ptrdiff_t>(item_),
        passing_};
  }
  RowSet set(std::size_t t, std::size_t first, std::size_t count) const { return set(t, first, count, {t, first}); }

  // Rows of block - 1 to add and of `block` to measure, in the first of the tiles t, ..., end - 1 that are whole and
  // lie side by side. In no tile where a block is small, or so many rows that its tiles are too far from each other.
  RowRun run(std::size_t block, std::size_t t, std::size_t end) const {
    std::size_t stop = t;
    if (count(block) == rows_in_block_ && rows_in_block_ <= rows_together)
      while (stop < end && tiles_[stop].width == norm_block && tiles_[stop].array == tiles_[t].array) ++stop;
    return {at({t, first(block - 1)}), at({t, first(block)}), stride(tiles_[t]), rows_in_block_, stop - t, passing_};
  }

 private:
  std::size_t fitting_rows() const {
    const std::size_t row = std::max<std::size_t>(1, columns_ * item_), totals = columns_ * sizeof(double);
    const std::size_t shared = std::min(rows_together, totals < shared_bytes ? (shared_bytes - totals) / row : 0);
    return std::clamp<std::size_t>(std::max(cached_bytes * parts() / row, shared), 1, most_rows);
  }
  void share_out(std::size_t parts) {
    std::size_t t = 0;
    for (std::size_t part = 1; part <= parts; ++part) {
      const std::size_t begin = t, end = columns_ / parts * part + columns_ % parts * part / parts;
      while (t < tiles_.size() && (part == parts || tiles_[t].at + tiles_[t].width / 2 < end)) ++t;
      parts_.push_back({begin, t});
    }
  }
  const char* at(Place place) const {
    const Tile& tile = tiles_[place.tile];
    const Gradients& array = batch_.arrays[tile.array];
    return static_cast<const char*>(array.data) +
           (static_cast<std::ptrdiff_t>(place.row) * array.stride + static_cast<std::ptrdiff_t>(tile.begin)) *
               static_cast<std::ptrdiff_t>(item_);
  }
  std::ptrdiff_t stride(const Tile& tile) const { return batch_.arrays[tile.array].stride; }

  const Batch& batch_;
  std::size_t item_, columns_ = 0, rows_in_block_ = 1;
  bool passing_;
  const ClippingKernels& kernels_;
  std::vector<Tile> tiles_;
  std::vector<Part> parts_;
};

// The norms of one block of rows at a time, while the next may be measured already.
class Norms {
 public:
  Norms(const Rows& rows, double* norms)
      : rows_(rows),
        norms_(norms),
        sums_of_block_(rows.tiles().size() * rows.rows_in_block()),
        sums_(std::min<std::size_t>(2, rows.blocks()) * sums_of_block_),
        totals_(rows.rows_in_block()) {}

  // Tile t of some rows, the first of which is row r of the block.
  void measure(std::size_t block, std::size_t t, std::size_t r, const RowSet& set) {
    rows_.kernels().block_sums(set, width(t), 1.0, sums(block, t) + r);
  }

  // Where the sums of a block's tiles are written, tile after tile.
  double* sums(std::size_t block, std::size_t t) {
    return sums_.data() + block % 2 * sums_of_block_ + t * rows_.rows_in_block();
  }

  // When all tiles of a block have been measured.
  void finish(std::size_t block) {
    const std::size_t first = rows_.first(block), count = rows_.count(block);
    add(block, 0, count);
    for (std::size_t r = 0; r < count; ++r) {
      const double total = totals_[r], multiplier = norm_multiplier(total);
      norms_[first + r] = std::sqrt(total);
      if (rows_.batch().dtype != DType::float64 || multiplier == 1.0) continue;
      for (std::size_t t = 0; t < rows_.tiles().size(); ++t)
        rows_.kernels().block_sums(rows_.set(t, first + r, 1), width(t), multiplier, sums(block, t) + r);
      add(block, r, r + 1);
      norms_[first + r] = std::sqrt(totals_[r]) / multiplier;
    }
  }

 private:
  std::size_t width(std::size_t t) const { return rows_.tiles()[t].width; }

  // Row totals of rows begin, ..., end - 1: some side by side, as each is a chain of additions.
  void add(std::size_t block, std::size_t begin, std::size_t end) {
    constexpr std::size_t together = 4;
    for (; begin + together <= end; begin += together) add<together>(block, begin);
    for (; begin < end; ++begin) add<1>(block, begin);
  }
  template <std::size_t count>
  void add(std::size_t block, std::size_t first) {
    const std::size_t pitch = rows_.rows_in_block();
    const double* sum = sums(block, 0) + first;
    double totals[count] = {};
    for (const Gradients& array : rows_.batch().arrays) {
      const std::size_t blocks = array.columns / norm_block + (array.columns % norm_block != 0);
      double partial[count][partial_sums] = {};
      for (std::size_t b = 0; b < blocks; ++b, sum += pitch)
        for (std::size_t r = 0; r < count; ++r) partial[r][b % partial_sums] += sum[r];
      for (std::size_t r = 0; r < count; ++r) totals[r] += blocks > 1 ? fold(partial[r]) : partial[r][0];
    }
    std::copy_n(totals, count, &totals_[first]);
  }

  const Rows& rows_;
  double* norms_;
  std::size_t sums_of_block_;
  std::vector<double> sums_, totals_;
};

// Memory of no particular content, in huge pages if it is large. It is kept from call to call: to get 10 MB of fresh
// pages takes milliseconds, as long as dozens of rows of that size.
class Scratch {
 public:
  explicit Scratch(std::size_t count) : block_(kept.exchange(nullptr)) {
    if (block_ != nullptr && block_->size >= count) return;
    delete block_;
    block_ = nullptr;
    block_ = new Block(count);
  }
  ~Scratch() {
    if (block_->size <= most_kept) block_ = kept.exchange(block_);
    delete block_;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  double* data() const { return block_->memory; }

 private:
  struct Block {
    explicit Block(std::size_t count) : size(count) {
      constexpr std::size_t line = 64, huge = std::size_t{2} << 20;
      const std::size_t bytes = count * sizeof(double), page = bytes < 2 * huge ? line : huge;
      memory =
          static_cast<double*>(std::aligned_alloc(page, std::max<std::size_t>(1, (bytes + page - 1) / page) * page));
      if (memory == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
      if (page == huge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    }
    ~Block() { std::free(memory); }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    double* memory;
    std::size_t size;
  };
  static constexpr std::size_t most_kept = std::size_t{2} << 20;
  static inline std::atomic<Block*> kept{nullptr};
  Block* block_;
};

// Running totals of all arrays in binary64, rounded once when they are stored. float64 sums are their own totals.
class Totals {
 public:
  Totals(const Rows& rows, const std::vector<void*>& outs)
      : rows_(rows),
        outs_(outs),
        in_place_(rows.batch().dtype == DType::float64),
        scratch_(in_place_ ? 0 : rows.columns()) {}

  void clear(std::size_t t) const { std::fill_n(at(t), rows_.tiles()[t].width, 0.0); }
  void add(std::size_t t, const RowSet& set, const double* weights) const {
    rows_.kernels().add_weighted(set, weights, rows_.tiles()[t].width, at(t));
  }
  double* at(std::size_t t) const {
    const Tile& tile = rows_.tiles()[t];
    return in_place_ ? static_cast<double*>(outs_[tile.array]) + tile.begin : scratch_.data() + tile.at;
  }
  void store(std::size_t t) const {
    if (in_place_) return;
    const Tile& tile = rows_.tiles()[t];
    std::transform(at(t), at(t) + tile.width, static_cast<float*>(outs_[tile.array]) + tile.begin,
                   [](double total) { return static_cast<float>(total); });
  }

 private:
  const Rows& rows_;
  const std::vector<void*>& outs_;
  bool in_place_;
  Scratch scratch_;
};

bool none_left_out(const double* factors, std::size_t count) {
  return std::find(factors, factors + count, 0.0) == factors + count;
}

// The norms of all rows, in one block, along the rows as memory lies.
void measure_all(const Rows& rows, double* norms) {
  Norms measured(rows, norms);
  const std::size_t tiles = rows.tiles().size(), units = rows.rows_in_block() * tiles;
  parallel_for(units, units / rows.parts(), [&](std::size_t begin, std::size_t end) {
    for (std::size_t unit = begin; unit < end; ++unit) {
      const std::size_t t = unit % tiles, row = unit / tiles, next = std::min(unit + 1, units - 1);
      measured.measure(0, t, row, rows.set(t, row, 1, {next % tiles, next / tiles}));
    }
  });
  measured.finish(0);
}

// Calls finish(block) when a block's norms are known, then use(thread, block, t, rows) for its tiles. Step s measures
// block s and, tile by tile, uses block s - 1: so memory is busy all the time, and threads meet once a block. First
// use_and_measure(thread, s, t, end) is asked to do both for some tiles from t on, and says how many it did.
template <class Finish, class Use, class Both>
void measure_then_use(const Rows& rows, Norms& norms, const Finish& finish, const Use& use,
                      const Both& use_and_measure) {
  const auto blocks = static_cast<std::uint32_t>(rows.blocks());
  const std::size_t tiles = rows.tiles().size(), units = std::min<std::size_t>(rows.parts() * units_of_part, 65535),
                    together = tiles / units + 1;
  const auto work = [&](const StepUnit& unit) {
    const std::size_t begin = unit.unit * together, end = std::min(begin + together, tiles);
    const std::uint32_t block = unit.step;
    // What is measured after a tile; behind the last block that are its own rows once more.
    const auto after = [&](std::size_t t) -> Place {
      const bool ends = t + 1 == end;
      return {ends ? unit.next_unit * together : t + 1,
              rows.first(std::min<std::size_t>(ends ? unit.next_step : unit.step, blocks - 1))};
    };
    for (std::size_t t = begin, done; t < end; t += done) {
      done = unit.first && unit.second && block > 0 && block < blocks ? use_and_measure(unit.thread, block, t, end) : 0;
      if (done > 0) continue;
      done = 1;
      if (unit.second && block > 0)
        use(unit.thread, block - 1, t, rows.set(t, rows.first(block - 1), rows.count(block - 1), after(t)));
      if (unit.first && block < blocks)
        norms.measure(block, t, 0, rows.set(t, rows.first(block), rows.count(block), after(t)));
    }
  };
  parallel_steps(rows.parts(), (tiles + together - 1) / together, blocks + 1, work, [&](std::uint32_t block) {
    if (block == blocks) return;
    norms.finish(block);
    finish(block);
  });
}

}  // namespace

void row_norms(const Batch& batch, double* norms) {
  if (batch.rows == 0) return;
  measure_all(Rows(batch, batch.rows), norms);
}

void weighted_sum(const Batch& batch, const double* weights, const std::vector<void*>& outs) {
  const Rows rows(batch);
  const Totals totals(rows, outs);
  parallel_for(rows.parts(), 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t part = first; part < last; ++part) {
      const auto [begin, end] = rows.part(part);
      for (std::size_t t = begin; t < end; ++t) {
        totals.clear(t);
        for (std::size_t row = 0, count; row < batch.rows; row += count) {
          count = std::min(rows.at_once(), batch.rows - row);
          const bool ends = row + count == batch.rows;
          totals.add(t, rows.set(t, row, count, {ends && t + 1 < end ? t + 1 : t, ends ? 0 : row + count}),
                     weights + row);
        }
        totals.store(t);
      }
    }
  });
}

void clip_and_sum(const Batch& batch, double max_norm, const std::vector<void*>& outs, double* norms) {
  const Rows rows(batch);
  if (rows.wide() || batch.rows == 0) {
    row_norms(batch, norms);
    std::vector<double> factors(batch.rows);
    std::transform(norms, norms + batch.rows, factors.begin(),
                   [=](double norm) { return clip_factor(norm, max_norm); });
    return weighted_sum(batch, factors.data(), outs);
  }
  Norms measured(rows, norms);
  const Totals totals(rows, outs);
  std::vector<double> factors(rows.rows_in_block());
  bool all_count = true;
  const auto finish = [&](std::size_t block) {
    for (std::size_t r = 0; r < rows.count(block); ++r)
      factors[r] = clip_factor(norms[rows.first(block) + r], max_norm);
    all_count = none_left_out(factors.data(), rows.count(block));
  };
  const auto add = [&](std::size_t, std::size_t block, std::size_t t, const RowSet& set) {
    if (block == 0) totals.clear(t);
    totals.add(t, set, factors.data());
    if (block + 1 == rows.blocks()) totals.store(t);
  };
  measure_then_use(rows, measured, finish, add,
                   [&](std::size_t, std::size_t block, std::size_t t, std::size_t end) -> std::size_t {
                     if (block == 1 || !all_count) return 0;  // totals are cleared when the first block is added
                     const RowRun run = rows.run(block, t, end);
                     if (run.tiles > 0)
                       rows.kernels().add_and_measure(run, factors.data(), totals.at(t), measured.sums(block, t));
                     return run.tiles;
                   });
}

void lattice_sum(const Batch& batch, double max_norm, double granularity, std::int64_t limit,
                 const std::vector<std::int64_t*>& outs, double* norms) {
  for (std::size_t a = 0; a < outs.size(); ++a) std::fill_n(outs[a], batch.arrays[a].columns, std::int64_t{0});
  const Rows rows(batch);
  Norms measured(rows, norms);
  std::vector<double> factors(batch.rows);
  std::vector<std::int64_t> squares(rows.parts() * batch.rows);
  const bool small = limit <= std::int64_t{1} << 52;
  const auto add = [&](std::size_t part, std::size_t first, std::size_t t, const RowSet& set) {
    const Tile& tile = rows.tiles()[t];
    rows.kernels().add_lattice(set, &factors[first], small, tile.width, outs[tile.array] + tile.begin,
                               &squares[part * batch.rows + first]);
  };
  bool all_count = true;
  const auto finish = [&](std::size_t block) {
    const std::size_t first = rows.first(block), count = rows.count(block);
    for (std::size_t row = first; row < first + count; ++row)
      factors[row] = lattice_factor(norms[row], max_norm, granularity);
    all_count = none_left_out(&factors[first], count);
  };
  measure_then_use(
      rows, measured, finish,
      [&](std::size_t part, std::size_t block, std::size_t t, const RowSet& set) {
        add(part, rows.first(block), t, set);
      },
      [&](std::size_t part, std::size_t block, std::size_t t, std::size_t end) -> std::size_t {
        if (!small || !all_count) return 0;
        const RowRun run = rows.run(block, t, end);
        const std::size_t first = rows.first(block - 1);
        const Tile& tile = rows.tiles()[t];
        if (run.tiles > 0)
          rows.kernels().add_lattice_and_measure(run, &factors[first], outs[tile.array] + tile.begin,
                                                 &squares[part * batch.rows + first], measured.sums(block, t));
        return run.tiles;
      });
  for (std::size_t row = 0; row < batch.rows; ++row) {
    std::int64_t sum = 0;
    for (std::size_t part = 0; part < rows.parts(); ++part) sum += squares[part * batch.rows + row];
    if (sum <= limit) continue;    // the sensitivity is proved by this line, not by the norm
    factors[row] = -factors[row];  // never, for sane input: take the row's integers out again, which is exact
    for (std::size_t t = 0; t < rows.tiles().size(); ++t) add(0, row, t, rows.set(t, row, 1));
  }
}

}  // namespace aisec_fast
