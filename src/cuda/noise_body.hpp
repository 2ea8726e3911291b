#pragma once
// Bodies of the noise kernels: no launch, no framework, so that tests/cuda_on_host runs the same text on a CPU.
// docs/noise.md defines every bit. One thread makes one generator block; 16 neighbouring threads make a group of 128
// samples, and each of their loads and stores covers 16 neighbouring samples.
#include "aisec_fast/kernels.hpp"
#include "aisec_fast/noise_float.hpp"
#include "aisec_fast/noise_math.hpp"
#include "grid.hpp"

namespace aisec_fast::cuda {
namespace {

// The tables in memory of the GPU; 131 KB, of which nearly all samples read the first 10 KB of a law's upper octaves.
alignas(64) __device__ const QuantileRow device_quantiles[2][quantile_rows] = {
#include "quantiles.inc"
};

// Blocks that a processor must hold at once. Left alone, the compiler gives every thread the registers of the one
// sample in a million that is refined, and a processor then holds a single block.
constexpr unsigned noise_blocks = 4;

// One thread a generator block.
inline std::uint64_t noise_threads(std::uint64_t count) {
  return (count / group_samples + (count % group_samples != 0)) * group_blocks;
}

// Calls use(first, words, load(first)) for each generator block of `count` samples: its own samples are first, first +
// 16,
// ... What it loads is on its way while the words are made.
template <class Load, class Use>
__device__ void for_generator_blocks(std::uint64_t count, const std::uint32_t* key_words, Domain domain,
                                     const Load& load, const Use& use) {
  Key key;
  for (int i = 0; i < 8; ++i) key.word[i] = key_words[i];
  const std::uint64_t groups = count / group_samples + (count % group_samples != 0);
  for (std::uint64_t block = first_index(); block < groups * group_blocks; block += index_step()) {
    const std::uint64_t first = block / group_blocks * group_samples + block % group_blocks;
    const auto loaded = load(first);
    std::uint32_t words[16];
    chacha_block(words, key, static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), domain,
                 Level::main);
    use(first, words, loaded);
  }
}

// A generator block's own values.
template <class X>
struct Loaded {
  X values[8];
};

struct Nothing {
  __device__ Nothing operator()(std::uint64_t) const { return {}; }
};

// What becomes of a flagged sample i: its word is made anew, so that the hot loop keeps nothing for this.
AISEC_HD_COLD std::int64_t refined_sample(Law law, const QuantileRow* table, NoiseCall call, std::uint64_t i) {
  Key key;
  for (int k = 0; k < 8; ++k) key.word[k] = call.key[k];
  const std::uint64_t block = i / group_samples * group_blocks + i % group_blocks;
  const unsigned place = static_cast<unsigned>(i % group_samples / group_blocks);
  std::uint32_t words[16];
  chacha_block(words, key, static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), domain_of(law),
               Level::main);
  return resolve_sample(law, table, join(words[2 * place], words[2 * place + 1]), key, i, call.scale);
}

// Calls use(i, g (rint(x[i] / g) + Z)) for each sample; the last group may be longer than the array.
template <Law law, class Out, class X, class Use>
__device__ void for_noisy_values(const X* x, std::uint64_t count, const NoiseCall& call, const Use& use) {
  const QuantileRow* const table = device_quantiles[static_cast<unsigned>(law)];
  const double inverse = 1.0 / call.granularity, limit = largest_distance(law, call.scale);
  const auto add = [&](std::uint64_t i, X value, std::int64_t noise) {
    use(i, from_lattice<Out>(to_lattice(value, inverse) + noise, call.granularity));
  };
  const auto load_block = [&](std::uint64_t first) {
    Loaded<X> loaded;
    for (unsigned k = 0; k < 8; ++k)
      loaded.values[k] = first + k * group_blocks < count ? x[first + k * group_blocks] : X{};
    return loaded;
  };
  const auto add_block = [&](std::uint64_t first, const std::uint32_t (&words)[16], const Loaded<X>& loaded) {
    unsigned left = 0;  // a bit for each flagged sample
    for (unsigned k = 0; k < 8; ++k) {
      std::int64_t noise;
      std::uint64_t flagged;
      quantile_sample(table, join(words[2 * k], words[2 * k + 1]), call.scale, limit, noise, flagged);
      if (flagged)
        left |= 1u << k;
      else if (first + k * group_blocks < count)
        add(first + k * group_blocks, loaded.values[k], noise);
    }
    for (std::uint64_t i = first; left != 0 && i < count; i += group_blocks, left >>= 1)
      if (left % 2 != 0) add(i, x[i], refined_sample(law, table, call, i));
  };
  for_generator_blocks(count, call.key, domain_of(law), load_block, add_block);
}

template <Law law, class X, class Out>
__device__ void add_noise(const X* x, Out* out, std::uint64_t count, const NoiseCall& call) {
  for_noisy_values<law, Out>(x, count, call, [&](std::uint64_t i, Out value) { out[i] = value; });
}

// Float mode. A word is one sample of float64, or two of float32, which then lie side by side.
template <Law law>
__device__ void add_float(const double* x, double* out, std::uint64_t count, const NoiseCall& call) {
  const QuantileRow* const table = device_quantiles[static_cast<unsigned>(law)];
  const auto add_block = [&](std::uint64_t first, const std::uint32_t (&words)[16], Nothing) {
    for (unsigned k = 0; k < 8; ++k) {
      const std::uint64_t i = first + k * group_blocks;
      if (i < count) out[i] = x[i] + call.scale * float_sample(table, join(words[2 * k], words[2 * k + 1]));
    }
  };
  for_generator_blocks(count, call.key, domain_of(law), Nothing{}, add_block);
}

template <Law law>
__device__ void add_float(const float* x, float* out, std::uint64_t count, const NoiseCall& call) {
  const QuantileRow* const table = device_quantiles[static_cast<unsigned>(law)];
  const float scale = static_cast<float>(call.scale);
  const auto add_block = [&](std::uint64_t first, const std::uint32_t (&words)[16], Nothing) {
    for (unsigned k = 0; k < 16; ++k) {
      const std::uint64_t i = 2 * (first + k / 2 * group_blocks) + k % 2;
      if (i < count) out[i] = x[i] + scale * float_sample(table, words[k]);
    }
  };
  for_generator_blocks(count / 2 + count % 2, call.key, domain_of(law), Nothing{}, add_block);
}

__device__ inline void random_words(std::uint64_t* out, std::uint64_t count, const NoiseCall& call, Domain domain) {
  const auto store_block = [&](std::uint64_t first, const std::uint32_t (&words)[16], Nothing) {
    for (unsigned k = 0; k < 8; ++k) {
      const std::uint64_t i = first + k * group_blocks;
      if (i < count) out[i] = join(words[2 * k], words[2 * k + 1]);
    }
  };
  for_generator_blocks(count, call.key, domain, Nothing{}, store_block);
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
