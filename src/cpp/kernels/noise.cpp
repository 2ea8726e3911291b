// Noise kernels, compiled once per instruction set: AISEC_ISA names the namespace, AISEC_WIDTH is a vector's bytes.
// Plain loops over 16 lanes; the compiler vectorises them. docs/noise.md defines every bit.
#include "aisec_fast/kernels.hpp"
#include "aisec_fast/noise_math.hpp"
#include "kernels/families.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

typedef std::uint32_t Lanes __attribute__((vector_size(AISEC_WIDTH)));
constexpr unsigned lanes = AISEC_WIDTH / sizeof(std::uint32_t);

struct alignas(64) GroupWords {
  std::uint32_t word[16][group_blocks];  // word[w][b]: word w of the group's block b
};

Key load_key(const std::uint32_t* words) {
  Key key;
  for (int i = 0; i < 8; ++i) key.word[i] = words[i];
  return key;
}

void chacha_group(GroupWords& out, const Key& key, Domain domain, std::uint64_t group) {
  const std::uint64_t first = group * group_blocks;
  for (unsigned b = 0; b < group_blocks; b += lanes) {
    Lanes low, high, block[16];
    for (unsigned lane = 0; lane < lanes; ++lane) {
      low[lane] = static_cast<std::uint32_t>(first + b + lane);
      high[lane] = static_cast<std::uint32_t>((first + b + lane) >> 32);
    }
    chacha_block(block, key, low, high, domain, Level::main);
    for (int w = 0; w < 16; ++w) memcpy(&out.word[w][b], &block[w], sizeof block[w]);
  }
}

// The raw 64-bit words of a group, in sample order.
void words_group(std::uint64_t* out, const Key& key, Domain domain, std::uint64_t group) {
  GroupWords x;
  chacha_group(x, key, domain, group);
  for (unsigned k = 0; k < 8; ++k)
    for (unsigned b = 0; b < group_blocks; ++b)
      out[k * group_blocks + b] = join(x.word[2 * k][b], x.word[2 * k + 1][b]);
}

void gaussian_group(std::int64_t* z, const Key& key, std::uint64_t group, double s) {
  GroupWords x;
  chacha_group(x, key, Domain::gaussian, group);
  alignas(64) std::uint64_t wu[group_pairs], wv[group_pairs], flagged[group_pairs];
  for (unsigned k = 0; k < 4; ++k)
    for (unsigned b = 0; b < group_blocks; ++b) {
      wu[k * group_blocks + b] = join(x.word[4 * k][b], x.word[4 * k + 1][b]);
      wv[k * group_blocks + b] = join(x.word[4 * k + 2][b], x.word[4 * k + 3][b]);
    }
  std::uint64_t any = 0;
  for (unsigned p = 0; p < group_pairs; ++p) {
    gaussian_pair(wu[p], wv[p], s, z[p], z[group_pairs + p], flagged[p]);
    any |= flagged[p];
  }
  if (!any) return;
  for (unsigned p = 0; p < group_pairs; ++p)
    if (flagged[p]) resolve_gaussian_pair(wu[p], wv[p], key, group * group_pairs + p, s, z[p], z[group_pairs + p]);
}

void laplace_group(std::int64_t* z, const Key& key, std::uint64_t group, double s) {
  alignas(64) std::uint64_t w[group_samples], flagged[group_samples];
  words_group(w, key, Domain::laplace, group);
  std::uint64_t any = 0;
  for (unsigned j = 0; j < group_samples; ++j) {
    laplace_sample(w[j], s, z[j], flagged[j]);
    any |= flagged[j];
  }
  if (!any) return;
  for (unsigned j = 0; j < group_samples; ++j)
    if (flagged[j]) z[j] = resolve_laplace_sample(w[j], key, group * group_samples + j, s);
}

using GroupSampler = void (*)(std::int64_t*, const Key&, std::uint64_t, double);

template <class X, class Out, GroupSampler sample>
void add_noise(const void* x_, void* out_, std::size_t first, std::size_t last, const NoiseCall& call) {
  const X* x = static_cast<const X*>(x_);
  Out* out = static_cast<Out*>(out_);
  const Key key = load_key(call.key);
  const double inverse = 1.0 / call.granularity;
  alignas(64) std::int64_t z[group_samples];
  for (std::size_t i = first; i < last; i += group_samples) {
    sample(z, key, i / group_samples, call.scale);
    const std::size_t count = last - i < group_samples ? last - i : group_samples;
    for (std::size_t j = 0; j < count; ++j)
      out[i + j] = from_lattice<Out>(to_lattice(x[i + j], inverse) + z[j], call.granularity);
  }
}

void random_words(std::uint64_t* out, std::size_t first, std::size_t last, const std::uint32_t* key_words,
                  std::uint32_t domain) {
  const Key key = load_key(key_words);
  std::uint64_t group[group_samples];
  for (std::size_t i = first; i < last; i += group_samples) {
    words_group(group, key, static_cast<Domain>(domain), i / group_samples);
    const std::size_t count = last - i < group_samples ? last - i : group_samples;
    memcpy(out + i, group, count * sizeof group[0]);
  }
}

template <class X>
std::size_t first_unfit(const void* x_, std::size_t count, double granularity) {
  const X* x = static_cast<const X*>(x_);
  const double inverse = 1.0 / granularity;
  for (std::size_t i = 0; i < count; ++i)
    if (!(magnitude(static_cast<double>(x[i]) * inverse) <= 0x1p62)) return i;
  return count;
}

}  // namespace

NoiseKernels noise_kernels() {
  return {random_words,
          add_noise<float, float, gaussian_group>,
          add_noise<double, double, gaussian_group>,
          add_noise<std::int64_t, float, gaussian_group>,
          add_noise<std::int64_t, double, gaussian_group>,
          add_noise<float, float, laplace_group>,
          add_noise<double, double, laplace_group>,
          first_unfit<float>,
          first_unfit<double>};
}

}  // namespace aisec_fast::AISEC_ISA
