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

// a b + c by the units that multiply, which have less to do here than those for logic; where b is a power of two the
// compiler would choose these.
__device__ inline std::uint32_t multiply_add(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
#if defined(__CUDA_ARCH__)
  std::uint32_t result;
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
#else
  return a * b + c;
#endif
}

// Two numbers that one instruction reads.
struct alignas(16) Pair {
  std::uint64_t first, second;
};

// A law's rows that the common way reads, in the shared memory of a block: of the GPU's memory, a warp reads its 32
// rows one line after the other. Halves of rows stand apart, so that rows side by side lie in different banks.
struct NearRows {
  // The first stands for all deep ones. It gives infinity: no fraction, and no distance from an integer.
  static constexpr unsigned count = quantile_rows - deep_rows;
  Pair low[count], high[count];

  // Called by all threads of a block, once.
  __device__ void fill(const QuantileRow* table) {
    constexpr std::uint64_t infinity = std::uint64_t{0x7ff} << 52;
    for (unsigned row = threadIdx.x; row < count; row += blockDim.x) {
      const std::uint64_t* const c = table[deep_rows + row].c;
      low[row] = row == 0 ? Pair{infinity, 0} : Pair{c[0], c[1]};
      high[row] = row == 0 ? Pair{0, 0} : Pair{c[2], c[3]};
    }
    __syncthreads();  // the rows are there
  }

  // What stands at a row. `cell` is what v's upper half has in front of its lowest 14 bits, less that of the number 1.
  __device__ static const Pair& at(const Pair* rows, std::int32_t cell) {
    constexpr std::int32_t deepest = (32 << 6) + deep_rows - 1;
    return rows[static_cast<std::uint32_t>(max(cell, deepest) - deepest)];
  }
};

// One thread a generator block.
inline std::uint64_t noise_threads(std::uint64_t count) {
  return (count / group_samples + (count % group_samples != 0)) * group_blocks;
}

// Makes the words of a generator block.
struct WordMaker {
  Key key;
  Domain domain;

  __device__ WordMaker(const std::uint32_t* key_words, Domain own) : domain(own) {
    for (int i = 0; i < 8; ++i) key.word[i] = key_words[i];
  }
  __device__ void operator()(std::uint32_t (&words)[16], std::uint64_t block) const {
    chacha_block(words, key, static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), domain,
                 Level::main);
  }
};

// The three columns that the counter's low half has no part in, after the first half round, in shared memory: all
// blocks below 2^32 have them in common. Kept in registers they would drive others out.
struct Columns {
  struct alignas(16) Column {
    std::uint32_t word[4];
  } column[3];

  // By one thread; ready after the next barrier.
  __device__ void fill(const WordMaker& make) {
    std::uint32_t x[16];
    chacha_input(x, make.key, 0u, 0u, make.domain, Level::main);
    column_round(x);
    for (int i = 0; i < 12; ++i) column[i / 4].word[i % 4] = x[4 * (i % 4) + 1 + i / 4];
  }
};

// The same words for blocks below 2^32.
struct QuickWordMaker : WordMaker {
  const Columns& columns;

  __device__ QuickWordMaker(const WordMaker& make, const Columns& own) : WordMaker(make), columns(own) {}
  __device__ void operator()(std::uint32_t (&words)[16], std::uint64_t block) const {
    std::uint32_t input[16];
    chacha_input(input, key, static_cast<std::uint32_t>(block), 0u, domain, Level::main);
    for (int i = 0; i < 4; ++i) words[4 * i] = input[4 * i];
    quarter_round<PlainRotation>(words[0], words[4], words[8], words[12]);
    for (int i = 0; i < 3; ++i) {
      const Columns::Column column = columns.column[i];
      for (int k = 0; k < 4; ++k) words[4 * k + 1 + i] = column.word[k];
    }
    diagonal_round(words);
    chacha_permute<chacha_rounds - 2>(words);
    for (int i = 0; i < 16; ++i) words[i] += input[i];
  }
};

// A generator block is named by the first of its samples, which are first, first + 16, and so on.
__device__ inline std::uint64_t first_sample(std::uint64_t block) {
  return block / group_blocks * group_samples + block % group_blocks;
}
AISEC_HD std::uint64_t block_of(std::uint64_t first) {
  return first / group_samples * group_blocks + first % group_blocks;
}

// Calls use(first, samples, words, load(first, samples)) for this thread's generator blocks from `first` on that lie in
// the `whole` samples of complete groups, so `samples` is known to the compiler, which leaves out what asks for it.
// Returns the block that comes next. make(words, block) makes the words, while what is loaded is on its way.
template <class Make, class Load, class Use>
__device__ std::uint64_t for_whole_groups(std::uint64_t first, const Span& span, std::uint64_t whole, const Make& make,
                                          const Load& load, const Use& use) {
  static_assert(block_threads % group_blocks == 0);  // so is every step
  const std::uint64_t step = span.step / group_blocks * group_samples;
  for (; first < whole; first += step) {
    const auto loaded = load(first, group_samples);
    std::uint32_t words[16];
    make(words, block_of(first));
    use(first, group_samples, words, loaded);
  }
  return first;
}

// The same for the group that reaches beyond the array, if there is one and this thread has a block of it: there are
// samples below first + samples.
template <class Make, class Load, class Use>
__device__ void for_last_group(std::uint64_t first, std::uint64_t count, const Make& make, const Load& load,
                               const Use& use) {
  const unsigned rest = static_cast<unsigned>(count % group_samples),
                 lane = static_cast<unsigned>(first % group_blocks);
  if (first / group_samples == count / group_samples && lane < rest) {
    const auto loaded = load(first, rest - lane);
    std::uint32_t words[16];
    make(words, block_of(first));
    use(first, rest - lane, words, loaded);
  }
}

// For all of an array's groups.
template <class Load, class Use>
__device__ void for_generator_blocks(const Span& span, std::uint64_t count, const std::uint32_t* key_words,
                                     Domain domain, const Load& load, const Use& use) {
  const WordMaker make(key_words, domain);
  const std::uint64_t whole = count - count % group_samples,
                      next = for_whole_groups(first_sample(span.first), span, whole, make, load, use);
  for_last_group(next, count, make, load, use);
}

// A generator block's own values.
template <class X, unsigned count = 8>
struct Loaded {
  X values[count];
};

struct Nothing {
  __device__ Nothing operator()(std::uint64_t, unsigned) const { return {}; }
};

// A generator block by the way that always ends well. Its words are made anew, so that the common way keeps nothing for
// this; not a part of it either, or what it needs would be kept.
template <Law law, class Out, class X, class Use>
AISEC_HD_COLD void use_carefully(const QuantileRow* table, const X* x, NoiseCall call, std::uint64_t first,
                                 unsigned samples, Use use) {
  Key key;
  for (int k = 0; k < 8; ++k) key.word[k] = call.key[k];
  const std::uint64_t block = block_of(first);
  std::uint32_t words[16];
  chacha_block(words, key, static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), domain_of(law),
               Level::main);
  for (unsigned k = 0; k < 8 && k * group_blocks < samples; ++k) {
    const std::uint64_t i = first + k * group_blocks, w = join(words[2 * k], words[2 * k + 1]);
    std::int64_t noise;
    std::uint64_t flagged;
    quantile_sample(table, w, call.scale, largest_distance(law, call.scale), noise, flagged);
    if (flagged) noise = resolve_sample(law, table, w, key, i, call.scale);
    use(i, from_lattice<Out>(to_lattice(x[i], 1.0 / call.granularity) + noise, call.granularity));
  }
}

// T of a word, infinity for one that lies too deep; multiplied and added in one rounding where docs/noise.md allows it:
// no integer depends on that.
__device__ inline double quantile_of(const NearRows& rows, std::uint64_t w) {
  const std::uint64_t bits = as_bits(static_cast<double>(w));  // rounded_word's, in one instruction
  const auto upper = static_cast<std::uint32_t>(bits >> 32);
  const std::uint32_t cell = (upper >> 14) - (1023 << 6);
  const Pair low = NearRows::at(rows.low, static_cast<std::int32_t>(cell)),
             high = NearRows::at(rows.high, static_cast<std::int32_t>(cell));
  const std::uint64_t place = std::uint64_t{multiply_add(cell, 0u - (1u << 14), upper)} << 32 | (bits & 0xffffffffu);
  const double delta = as_double(place) - (1.0 + 0x1p-7);  // quantile_delta's
  double t = fma(as_double(high.second << 32), delta, as_double(high.second));
  t = fma(t, delta, as_double(high.first));
  t = fma(t, delta, as_double(low.second));
  return fma(t, delta, as_double(low.first));
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

// A generator block's results, if all of them are decided; samples that are not there are zero. Any integers below
// 2^51, added as doubles.
template <Law law, class Out>
struct WideWay {
  using Lattice = std::conditional_t<sizeof(Out) == sizeof(float), NarrowLattice, WideLattice>;
  double scale, inverse, limit;
  Lattice lattice;

  __device__ explicit WideWay(const NoiseCall& call)
      : scale(call.scale),
        inverse(1.0 / call.granularity),
        limit(Lattice::knows(call.granularity) ? largest_distance(law, call.scale) : -1.0),
        lattice(call.granularity) {}

  template <class X>
  __device__ bool operator()(const NearRows& rows, const std::uint32_t (&words)[16], const Loaded<X>& x,
                             Out (&values)[8]) const {
    bool decided = true;
    for (unsigned k = 0; k < 8; ++k) {
      const std::uint64_t w = join(words[2 * k], words[2 * k + 1]);
      const double a = scale * quantile_of(rows, w), n = nearest(a);
      const double scaled = over_granularity(x.values[k], inverse);
      decided &= fabs(a - n) <= limit;
      decided &= fabs(scaled) < 0x1p51;
      values[k] = lattice.value(nearest(scaled) + as_double(as_bits(n) ^ w << 63));
    }
    return decided;
  }
};

// The same for float32 and integers below 2^30, by docs/noise.md's other form of the fast step: the lower half of a sum
// holds what is asked for, and half as many doubles are needed.
template <Law law>
struct NarrowWay {
  double scale, up;
  std::uint32_t fraction;
  float inverse, granularity;

  __device__ static bool knows(const NoiseCall& call) {
    return call.scale <= 0x1p22 && call.granularity >= 0x1p-126 && call.granularity <= 0x1p126;
  }
  __device__ explicit NarrowWay(const NoiseCall& call)
      : scale(call.scale),
        inverse(static_cast<float>(1.0 / call.granularity)),
        granularity(static_cast<float>(call.granularity)) {
    double h = 0x1p-26;
    while (h < quantile_bound(law) * call.scale + 0x1p-27) h *= 2.0;
    up = 0x1p26 + 0.5 + h;
    fraction = (1u << 26) - static_cast<std::uint32_t>(h * 0x1p27);
  }

  __device__ bool operator()(const NearRows& rows, const std::uint32_t (&words)[16], const Loaded<float>& x,
                             float (&values)[8]) const {
    bool decided = true;
    float size = 0.0f;  // of all x together: a sum keeps units busy that are idle, a comparison those that are not
    for (unsigned k = 0; k < 8; ++k) {
      const double t = quantile_of(rows, join(words[2 * k], words[2 * k + 1]));
      decided &= (static_cast<std::uint32_t>(as_bits(fma(scale, t, up))) & fraction) != 0;
      const double signed_t = as_double(as_bits(t) ^ std::uint64_t{words[2 * k] << 31} << 32);
      const auto noise = static_cast<std::uint32_t>(as_bits(fma(scale, signed_t, integer_shift)));
      const float scaled = x.values[k] * inverse;
      size += fabsf(scaled);
      const auto sum = static_cast<std::int32_t>(static_cast<std::uint32_t>(__float2int_rn(scaled)) + noise);
      values[k] = static_cast<float>(sum) * granularity;
    }
    return decided && size < 0x1p30f;
  }
};

// Calls use(i, g (rint(x[i] / g) + Z)) for each sample. What the common way leaves open of a generator block, because x
// is too large or the table cannot decide, takes the careful way as a whole.
// All threads of a block call it together, once.
template <Law law, class Out, class X, class Use>
__device__ void for_noisy_values(const Span& span, const X* x, std::uint64_t count, const NoiseCall& call,
                                 const Use& use) {
  __shared__ NearRows rows;
  __shared__ Columns columns;
  const WordMaker make(call.key, domain_of(law));
  if (threadIdx.x == 0) columns.fill(make);
  rows.fill(device_quantiles[static_cast<unsigned>(law)]);  // with a barrier, for the columns too
  const auto load_block = [&](std::uint64_t first, unsigned samples) {
    Loaded<X> loaded;
    for (unsigned k = 0; k < 8; ++k) loaded.values[k] = k * group_blocks < samples ? x[first + k * group_blocks] : X{};
    return loaded;
  };
  const auto by = [&](const auto& way) {
    return [&, way](std::uint64_t first, unsigned samples, const std::uint32_t (&words)[16], const Loaded<X>& loaded) {
      Out values[8];
      if (way(rows, words, loaded, values)) {
        for (unsigned k = 0; k < 8; ++k)
          if (k * group_blocks < samples) use(first + k * group_blocks, values[k]);
        return;
      }
      use_carefully<law, Out>(device_quantiles[static_cast<unsigned>(law)], x, call, first, samples, use);
    };
  };
  const WideWay<law, Out> wide(call);
  const std::uint64_t whole = count - count % group_samples, quick = first_sample(std::uint64_t{1} << 32);
  std::uint64_t next = first_sample(span.first);
  const auto go_quickly = [&](const auto& way) {
    next =
        for_whole_groups(next, span, whole < quick ? whole : quick, QuickWordMaker(make, columns), load_block, by(way));
  };
  if constexpr (!std::is_same_v<X, float>)
    go_quickly(wide);
  else if (NarrowWay<law>::knows(call))
    go_quickly(NarrowWay<law>(call));
  next = for_whole_groups(next, span, whole, make, load_block, by(wide));
  for_last_group(next, count, make, load_block, by(wide));
}

template <Law law, class X, class Out>
__device__ void add_noise(const X* x, Out* out, std::uint64_t count, const NoiseCall& call) {
  for_noisy_values<law, Out>(whole_grid(), x, count, call, [out](std::uint64_t i, Out value) { out[i] = value; });
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
