#pragma once
// Bodies of the noise kernels: no launch, no framework, so that tests/cuda_on_host runs the same text on a CPU.
// docs/noise.md defines every bit. One thread makes one generator block; 16 neighbouring threads make a group of 128
// samples, and each of their loads and stores covers 16 neighbouring samples.
#include "aisec_fast/kernels.hpp"
#include "aisec_fast/noise_math.hpp"
#include "grid.hpp"

namespace aisec_fast::cuda {
namespace {

// Calls use(first, words) for each generator block of `count` samples: its own samples are first, first + 16, ...
template <class Use>
__device__ void for_generator_blocks(std::uint64_t count, const std::uint32_t* key_words, Domain domain,
                                     const Use& use) {
  Key key;
  for (int i = 0; i < 8; ++i) key.word[i] = key_words[i];
  const std::uint64_t groups = count / group_samples + (count % group_samples != 0);
  for (std::uint64_t block = first_index(); block < groups * group_blocks; block += index_step()) {
    std::uint32_t words[16];
    chacha_block(words, key, static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), domain,
                 Level::main);
    use(key, block / group_blocks * group_samples + block % group_blocks, words);
  }
}

// Adds the integer noise of sample i; the last group may be longer than the array.
template <class X, class Out>
__device__ void add_to_sample(const X* x, Out* out, std::uint64_t count, std::uint64_t i, std::int64_t noise,
                              double granularity) {
  if (i < count) out[i] = from_lattice<Out>(to_lattice(x[i], 1.0 / granularity) + noise, granularity);
}

template <class X, class Out>
__device__ void add_gaussian(const X* x, Out* out, std::uint64_t count, const NoiseCall& call) {
  const auto add_block = [&](const Key& key, std::uint64_t first, const std::uint32_t (&words)[16]) {
    const std::uint64_t first_pair = first / group_samples * group_pairs + first % group_samples;
    for (unsigned k = 0; k < 4; ++k) {
      const std::uint64_t wu = join(words[4 * k], words[4 * k + 1]), wv = join(words[4 * k + 2], words[4 * k + 3]);
      std::int64_t cosine_side, sine_side;
      std::uint64_t flagged;
      gaussian_pair(wu, wv, call.scale, cosine_side, sine_side, flagged);
      if (flagged)
        resolve_gaussian_pair(wu, wv, key, first_pair + k * group_blocks, call.scale, cosine_side, sine_side);
      const std::uint64_t i = first + k * group_blocks;
      add_to_sample(x, out, count, i, cosine_side, call.granularity);
      add_to_sample(x, out, count, i + group_pairs, sine_side, call.granularity);
    }
  };
  for_generator_blocks(count, call.key, Domain::gaussian, add_block);
}

template <class X>
__device__ void add_laplace(const X* x, X* out, std::uint64_t count, const NoiseCall& call) {
  const auto add_block = [&](const Key& key, std::uint64_t first, const std::uint32_t (&words)[16]) {
    for (unsigned k = 0; k < 8; ++k) {
      const std::uint64_t w = join(words[2 * k], words[2 * k + 1]), i = first + k * group_blocks;
      std::int64_t noise;
      std::uint64_t flagged;
      laplace_sample(w, call.scale, noise, flagged);
      if (flagged) noise = resolve_laplace_sample(w, key, i, call.scale);
      add_to_sample(x, out, count, i, noise, call.granularity);
    }
  };
  for_generator_blocks(count, call.key, Domain::laplace, add_block);
}

__device__ inline void random_words(std::uint64_t* out, std::uint64_t count, const NoiseCall& call, Domain domain) {
  const auto store_block = [&](const Key&, std::uint64_t first, const std::uint32_t (&words)[16]) {
    for (unsigned k = 0; k < 8; ++k) {
      const std::uint64_t i = first + k * group_blocks;
      if (i < count) out[i] = join(words[2 * k], words[2 * k + 1]);
    }
  };
  for_generator_blocks(count, call.key, domain, store_block);
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
