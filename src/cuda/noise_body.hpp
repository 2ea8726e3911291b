#pragma once
// Bodies of the noise kernels: no launch, no framework, so that tests/cuda_on_host runs the same text on a CPU.
// docs/noise.md defines every bit. One thread makes one generator block; 16 neighbouring threads make a group of 128
// samples, and each of their loads and stores covers 16 neighbouring samples.
#include <cmath>
#include <type_traits>

#include "aisec_fast/kernels.hpp"
#include "aisec_fast/noise_float.hpp"
#include "aisec_fast/noise_math.hpp"
#include "grid.hpp"

namespace aisec_fast::cuda {
namespace {

// The tables in memory of the GPU.
alignas(64) __device__ const QuantileRow device_quantiles[2][quantile_rows] = {
#include "quantiles.inc"
};

// Blocks that a processor must hold at once. Left alone, the compiler gives every thread the registers of the one
// sample in a million that is refined, and a processor then holds a single block. Few more are started than all
// processors hold: each reads a table before anything else.
constexpr unsigned noise_blocks = 4;

// Two numbers that one instruction reads.
struct alignas(16) Pair {
  std::uint64_t first, second;
};

// A law's rows that the common way reads, in the shared memory of a block: of the GPU's memory, a warp reads its 32
// rows one line after the other. Halves of rows stand apart, so that rows side by side lie in different banks.
struct NearRows {
  static constexpr unsigned count = quantile_rows - deep_rows;  // the first is the row of NaN
  Pair low[count], high[count];

  // Called by all threads of a block, once.
  __device__ void fill(const QuantileRow* table) {
    for (unsigned row = threadIdx.x; row < count; row += blockDim.x) {
      const std::uint64_t* const c = table[deep_rows + row].c;
      low[row] = {c[0], c[1]};
      high[row] = {c[2], c[3]};
    }
    __syncthreads();  // the rows are there
  }

  // Of a number's bits; in bytes, which saves shifts back and forth.
  __device__ const Pair* row_of(const Pair* rows, std::uint64_t v_bits) const {
    constexpr std::uint32_t deepest = ((1023 + 32) << 6) + static_cast<std::uint32_t>(deep_rows) - 1;
    static_assert(sizeof(Pair) == 16);
    const std::uint32_t place = static_cast<std::uint32_t>(v_bits >> (46 - 4)) & ~15u;
    return reinterpret_cast<const Pair*>(reinterpret_cast<const char*>(rows) +
                                         (max(place, 16 * deepest) - 16 * deepest));
  }
};

// One thread a generator block.
inline std::uint64_t noise_threads(std::uint64_t count) {
  return (count / group_samples + (count % group_samples != 0)) * group_blocks;
}

// Calls use(first, samples, words, load(first, samples)) for each generator block of `count` samples. Its own samples
// are first, first + 16, ... below first + samples; what it loads is on its way while the words are made. For groups
// that lie in the array as a whole `samples` is known to the compiler, which then leaves out what asks for it.
template <class Load, class Use>
__device__ void for_generator_blocks(const Span& span, std::uint64_t count, const std::uint32_t* key_words,
                                     Domain domain, const Load& load, const Use& use) {
  Key key;
  for (int i = 0; i < 8; ++i) key.word[i] = key_words[i];
  const auto run = [&](std::uint64_t block, unsigned samples) {
    const std::uint64_t first = block / group_blocks * group_samples + block % group_blocks;
    const auto loaded = load(first, samples);
    std::uint32_t words[16];
    chacha_block(words, key, static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), domain,
                 Level::main);
    use(first, samples, words, loaded);
  };
  const std::uint64_t whole = count / group_samples * group_blocks;
  std::uint64_t block = span.first;
  for (; block < whole; block += span.step) run(block, group_samples);
  const unsigned rest = static_cast<unsigned>(count % group_samples),
                 lane = static_cast<unsigned>(block % group_blocks);
  if (block < whole + group_blocks && lane < rest) run(block, rest - lane);
}

// A generator block's own values.
template <class X, unsigned count = 8>
struct Loaded {
  X values[count];
};

struct Nothing {
  __device__ Nothing operator()(std::uint64_t, unsigned) const { return {}; }
};

// Sample i by the way that always ends well: its word is made anew, so that the common way keeps nothing for this.
AISEC_HD_COLD std::int64_t careful_sample(Law law, const QuantileRow* table, NoiseCall call, std::uint64_t i) {
  Key key;
  for (int k = 0; k < 8; ++k) key.word[k] = call.key[k];
  const std::uint64_t block = i / group_samples * group_blocks + i % group_blocks;
  const unsigned place = static_cast<unsigned>(i % group_samples / group_blocks);
  std::uint32_t words[16];
  chacha_block(words, key, static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), domain_of(law),
               Level::main);
  const std::uint64_t w = join(words[2 * place], words[2 * place + 1]);
  std::int64_t noise;
  std::uint64_t flagged;
  quantile_sample(table, w, call.scale, largest_distance(law, call.scale), noise, flagged);
  return flagged ? resolve_sample(law, table, w, key, i, call.scale) : noise;
}

// quantile_sample's |Z| before it is rounded, NaN for a word that lies too deep; multiplied and added in one rounding
// where docs/noise.md allows it: no integer depends on that.
__device__ inline double quantile_of(const NearRows& rows, std::uint64_t w, double s) {
  const std::uint64_t bits = as_bits(rounded_word(w));
  const Pair low = *rows.row_of(rows.low, bits), high = *rows.row_of(rows.high, bits);
  const double delta = quantile_delta(bits);
  double t = fma(as_double(high.second << 32), delta, as_double(high.second));
  t = fma(t, delta, as_double(high.first));
  t = fma(t, delta, as_double(low.second));
  return s * fma(t, delta, as_double(low.first));
}

// float(integer) * g as from_lattice has it, from an integer that a double holds. For float the product is one of
// floats: it rounds to the same as one of doubles does, if g is a float.
struct WideLattice {
  double granularity;

  __device__ static bool knows(double) { return true; }
  __device__ explicit WideLattice(double g) : granularity(g) {}
  __device__ double value(double integer) const { return integer * granularity; }
};
struct NarrowLattice {
  float granularity;

  __device__ static bool knows(double g) { return g >= 0x1p-126 && g <= 0x1p127; }
  __device__ explicit NarrowLattice(double g) {
    const auto bits = static_cast<std::uint32_t>(as_bits(g) >> 29) - (std::uint32_t{1023 - 127} << 23);
    memcpy(&granularity, &bits, sizeof bits);
  }
  __device__ float value(double integer) const { return static_cast<float>(integer) * granularity; }
};

__device__ inline double over_granularity(double x, double inverse) { return x * inverse; }
__device__ inline double over_granularity(float x, double inverse) { return static_cast<double>(x) * inverse; }
__device__ inline double over_granularity(std::int64_t q, double) { return static_cast<double>(q); }

// Calls use(i, g (rint(x[i] / g) + Z)) for each sample; the last group may be longer than the array. The common way
// adds two integers below 2^51 as doubles; what is larger, or cannot be decided by the table, takes the careful way.
// All threads of a block call it together, once.
template <Law law, class Out, class X, class Use>
__device__ void for_noisy_values(const Span& span, const X* x, std::uint64_t count, const NoiseCall& call,
                                 const Use& use) {
  __shared__ NearRows rows;
  const QuantileRow* const table = device_quantiles[static_cast<unsigned>(law)];
  rows.fill(table);
  using Lattice = std::conditional_t<sizeof(Out) == sizeof(float), NarrowLattice, WideLattice>;
  const double inverse = 1.0 / call.granularity;
  const double limit = Lattice::knows(call.granularity) ? largest_distance(law, call.scale) : -1.0;
  const Lattice lattice(call.granularity);
  const auto load_block = [&](std::uint64_t first, unsigned samples) {
    Loaded<X> loaded;
    for (unsigned k = 0; k < 8; ++k) loaded.values[k] = k * group_blocks < samples ? x[first + k * group_blocks] : X{};
    return loaded;
  };
  const auto add_block = [&](std::uint64_t first, unsigned samples, const std::uint32_t (&words)[16],
                             const Loaded<X>& loaded) {
    unsigned left = 0;  // a bit for each sample that needs care
    for (unsigned k = 0; k < 8; ++k) {
      const std::uint64_t w = join(words[2 * k], words[2 * k + 1]);
      const double a = quantile_of(rows, w, call.scale), n = nearest(a);
      const double scaled = over_granularity(loaded.values[k], inverse);
      const bool decided = fabs(a - n) <= limit && fabs(scaled) < 0x1p51;
      const Out value = lattice.value(nearest(scaled) + as_double(as_bits(n) ^ w << 63));
      left |= decided ? 0u : 1u << k;
      if (decided && k * group_blocks < samples) use(first + k * group_blocks, value);
    }
    for (std::uint64_t i = first; left != 0 && i < count; i += group_blocks, left >>= 1)
      if (left % 2 != 0)
        use(i, from_lattice<Out>(to_lattice(x[i], inverse) + careful_sample(law, table, call, i), call.granularity));
  };
  for_generator_blocks(span, count, call.key, domain_of(law), load_block, add_block);
}

template <Law law, class X, class Out>
__device__ void add_noise(const X* x, Out* out, std::uint64_t count, const NoiseCall& call) {
  for_noisy_values<law, Out>(whole_grid(), x, count, call, [&](std::uint64_t i, Out value) { out[i] = value; });
}

// Float mode. A word is one sample of float64, or two of float32, which then lie side by side.
template <Law law>
__device__ void add_float(const double* x, double* out, std::uint64_t count, const NoiseCall& call) {
  const QuantileRow* const table = device_quantiles[static_cast<unsigned>(law)];
  const auto add_block = [&](std::uint64_t first, unsigned samples, const std::uint32_t (&words)[16], Nothing) {
    for (unsigned k = 0; k < 8 && k * group_blocks < samples; ++k) {
      const std::uint64_t i = first + k * group_blocks;
      out[i] = x[i] + call.scale * float_sample(table, join(words[2 * k], words[2 * k + 1]));
    }
  };
  for_generator_blocks(whole_grid(), count, call.key, domain_of(law), Nothing{}, add_block);
}

// A law's rows in binary32, in the shared memory of a block.
struct FloatRows {
  FloatRow rows[float_rows];

  // Called by all threads of a block, once.
  __device__ void fill(const QuantileRow* table) {
    for (unsigned row = threadIdx.x; row < float_rows; row += blockDim.x) {
      const QuantileRow& from = table[row_of(table, static_cast<int>(row))];
      rows[row] = {{coefficient(from, 0), coefficient(from, 1), coefficient(from, 2), coefficient(from, 3)}};
    }
    __syncthreads();  // the rows are there
  }
};

template <Law law>
__device__ void add_float(const float* x, float* out, std::uint64_t count, const NoiseCall& call) {
  __shared__ FloatRows table;
  table.fill(device_quantiles[static_cast<unsigned>(law)]);
  const float scale = static_cast<float>(call.scale);
  const auto place = [](std::uint64_t first, unsigned k) { return 2 * (first + k / 2 * group_blocks) + k % 2; };
  const auto load_block = [&](std::uint64_t first, unsigned) {
    Loaded<float, 16> loaded;
    for (unsigned k = 0; k < 16; ++k) loaded.values[k] = place(first, k) < count ? x[place(first, k)] : 0.0f;
    return loaded;
  };
  const auto add_block = [&](std::uint64_t first, unsigned, const std::uint32_t (&words)[16],
                             const Loaded<float, 16>& loaded) {
    for (unsigned k = 0; k < 16; ++k) {
      const float noisy = loaded.values[k] + scale * float_sample(table.rows, words[k]);
      if (place(first, k) < count) out[place(first, k)] = noisy;
    }
  };
  for_generator_blocks(whole_grid(), count / 2 + count % 2, call.key, domain_of(law), load_block, add_block);
}

__device__ inline void random_words(std::uint64_t* out, std::uint64_t count, const NoiseCall& call, Domain domain) {
  const auto store_block = [&](std::uint64_t first, unsigned samples, const std::uint32_t (&words)[16], Nothing) {
    for (unsigned k = 0; k < 8 && k * group_blocks < samples; ++k)
      out[first + k * group_blocks] = join(words[2 * k], words[2 * k + 1]);
  };
  for_generator_blocks(whole_grid(), count, call.key, domain, Nothing{}, store_block);
}

// Lowers *first to the smallest i < count whose x[i] is not finite or has |x / granularity| > 2^62. A minimum does not
// depend on the order of the threads.
template <class X>
__device__ void first_unfit(const X* x, std::uint64_t count, double granularity, unsigned long long* first) {
  const double inverse = 1.0 / granularity;
  for (std::uint64_t i = first_index(); i < count; i += index_step())
    if (!(magnitude(static_cast<double>(x[i]) * inverse) <= 0x1p62)) {
      atomicMin(first, static_cast<unsigned long long>(i));
      return;  // this thread's later values have larger indices
    }
}

}  // namespace
}  // namespace aisec_fast::cuda
