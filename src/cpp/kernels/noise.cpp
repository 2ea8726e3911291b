// Noise kernels, compiled once per instruction set: AISEC_ISA names the namespace, AISEC_WIDTH is a vector's bytes.
// docs/noise.md defines every bit.
#include "aisec_fast/kernels.hpp"
#include "aisec_fast/noise_float.hpp"
#include "aisec_fast/noise_math.hpp"
#include "kernels/aes.hpp"
#include "kernels/families.hpp"
#include "kernels/lanes.hpp"
#include "kernels/standard_arithmetic.hpp"

#if defined(__AVX2__)
#include "kernels/noise_avx2.hpp"
#endif

namespace aisec_fast::AISEC_ISA {
namespace {

struct alignas(64) GroupBlocks {
  std::uint32_t word[16][group_blocks];  // word[w][b]: word w of the group's block b
};

// Words stand in the order of lanes, 0 1 4 5 2 3 6 7 of each eight: interleaving vectors of eight 32-bit halves gives
// it, and narrowing vectors of four 64-bit values undoes it.
constexpr unsigned lane_of(unsigned j) { return (j & ~6u) | (j & 2u) << 1 | (j & 4u) >> 1; }

#if !defined(__AVX2__)
void join_words(std::uint64_t* out, const std::uint32_t* low, const std::uint32_t* high) {
  for (unsigned b = 0; b < group_blocks; ++b) out[lane_of(b)] = join(low[b], high[b]);
}
#endif

// The words of one call, a group of 128 at a time, in the order of lanes.
class Stream {
 public:
  Stream(const NoiseCall& call, Domain domain) : domain_(domain), generator_(call.generator) {
    for (int i = 0; i < 8; ++i) key_.word[i] = call.key[i];
  }

  const Key& key() const { return key_; }

  void read(std::uint64_t* out, std::uint64_t group) {
#if defined(AISEC_X86)
    if (generator_ != Generator::chacha) return read_aes(out, group);
#endif
    read_chacha(out, group);
  }

 private:
  void read_chacha(std::uint64_t* out, std::uint64_t group) const {
    GroupBlocks x;
    const std::uint64_t first = group * group_blocks;
    for (unsigned b = 0; b < group_blocks; b += lanes) {
      Lanes low, high, block[16];
      for (unsigned lane = 0; lane < lanes; ++lane) {
        low[lane] = static_cast<std::uint32_t>(first + b + lane);
        high[lane] = static_cast<std::uint32_t>((first + b + lane) >> 32);
      }
      chacha_block<Rotation>(block, key_, low, high, domain_, Level::main);
      for (int w = 0; w < 16; ++w) memcpy(&x.word[w][b], &block[w], sizeof block[w]);
    }
    for (unsigned k = 0; k < 8; ++k) join_words(out + k * group_blocks, x.word[2 * k], x.word[2 * k + 1]);
  }

#if defined(AISEC_X86)
  static constexpr unsigned subkey_group_bits = 18;  // 2^18 groups of 64 blocks: 2^24 blocks

  void read_aes(std::uint64_t* out, std::uint64_t group) {
    const std::uint64_t number = group >> subkey_group_bits;
    if (number != subkey_number_) {
      std::uint32_t x[16];
      chacha_block(x, key_, static_cast<std::uint32_t>(number), static_cast<std::uint32_t>(number >> 32), domain_,
                   Level::subkey);
      aes_subkey(subkey_, x, join(x[4], x[5]));
      subkey_number_ = number;
    }
    const std::uint64_t first = (group & ((1u << subkey_group_bits) - 1)) * (group_samples / 2);
#if defined(__AVX2__)
    if (generator_ == Generator::vaes) return vaes_words(out, subkey_, first);
#endif
    aes_words(out, subkey_, first);
  }

  AesSubkey subkey_{};
  std::uint64_t subkey_number_ = ~std::uint64_t{0};
#endif

  Key key_;
  Domain domain_;
  Generator generator_;
};

constexpr double narrow_scale = 0x1p22;  // up to here the farthest sample, 222 s, is below 2^30

// Reads every cache line of the rows that the fast step uses (41 KB), so that a rare row, that is a large sample, does
// not show itself by a miss far down the memory.
void warm_table(const QuantileRow* table) {
  for (int row = deep_rows; row < quantile_rows; row += 2)
    static_cast<void>(*static_cast<const volatile std::uint64_t*>(table[row].c));
}

// The first `count` integers of a group; what follows is not resolved. Z is std::int32_t up to narrow_scale, else
// std::int64_t.
template <Law law, class Z>
void sample_group(Z* z, std::size_t count, Stream& stream, std::uint64_t group, double s) {
  const QuantileRow* const table = quantile_tables[static_cast<unsigned>(law)];
  const double limit = largest_distance(law, s);
  alignas(64) std::uint64_t w[group_samples];
  stream.read(w, group);
  const auto resolve = [&](unsigned j, std::uint64_t word) {
    z[j] = static_cast<Z>(resolve_sample(law, table, word, stream.key(), group * group_samples + j, s));
  };
#if defined(__AVX2__)
  if constexpr (sizeof(Z) == 4) {
    if (quantile_group(z, w, table, s, limit)) return;
    for (unsigned j = 0; j < count; ++j) {
      const std::uint64_t word = w[lane_of(j)];
      std::int64_t integer;
      std::uint64_t flagged;
      quantile_sample(table, word, s, limit, integer, flagged);
      if (flagged)
        resolve(j, word);
      else
        z[j] = static_cast<Z>(integer);
    }
    return;
  }
#endif
  alignas(64) std::uint64_t flagged[group_samples];
  std::uint64_t any = 0;
  for (unsigned j = 0; j < group_samples; ++j) {
    std::int64_t integer;
    quantile_sample(table, w[lane_of(j)], s, limit, integer, flagged[j]);
    z[j] = static_cast<Z>(integer);
    any |= flagged[j];
  }
  if (!any) return;
  for (unsigned j = 0; j < count; ++j)
    if (flagged[j]) resolve(j, w[lane_of(j)]);
}

double to_double(std::int32_t z) { return z; }
double to_double(std::int64_t z) {  // |z| < 2^51
  return as_double(static_cast<std::uint64_t>(z) + as_bits(integer_shift)) - integer_shift;
}

template <class X>
constexpr bool is_float = static_cast<X>(0.5) != X{0};

// out = g (rint(x / g) + z). In float64, where everything up to 2^52 is exact, unless a value is larger.
template <class X, class Out, class Z>
void add_group(const X* x, Out* out, std::size_t count, const Z* z, double granularity, double inverse) {
  if constexpr (is_float<X>) {
    std::uint64_t large = 0;
    for (std::size_t j = 0; j < count; ++j) large |= !(magnitude(static_cast<double>(x[j]) * inverse) < 0x1p51);
    if (!large) {
      for (std::size_t j = 0; j < count; ++j) {
        const double sum = nearest(static_cast<double>(x[j]) * inverse) + to_double(z[j]);
        out[j] = static_cast<Out>(static_cast<double>(static_cast<Out>(sum)) * granularity);
      }
      return;
    }
  }
  for (std::size_t j = 0; j < count; ++j) out[j] = from_lattice<Out>(to_lattice(x[j], inverse) + z[j], granularity);
}

constexpr std::size_t prefetched = 4 * group_samples;  // how far ahead: making so many samples takes a microsecond

template <class X>
void prefetch(const X* x, std::size_t first, std::size_t last) {
  for (std::size_t i = first; i < last; i += 64 / sizeof(X)) __builtin_prefetch(x + i, 1, 2);  // to write, second level
}

// Memory is read while noise is made, which takes longer: at 2 ns a sample it costs nearly nothing then.
template <class X, class Out, Law law, class Z>
void add_noise_as(const X* x, Out* out, std::size_t first, std::size_t last, const NoiseCall& call,
                  const void* const* soon) {
  Stream stream(call, domain_of(law));
  const double inverse = 1.0 / call.granularity;
  alignas(64) Z z[group_samples];
  for (std::size_t i = first; i < last; i += group_samples) {
    const std::size_t count = last - i < group_samples ? last - i : group_samples;
    if (last - i > prefetched) prefetch(x, i + prefetched, i + prefetched + count);
    for (const void* const* array = soon; *array != nullptr; ++array)
      prefetch(static_cast<const X*>(*array), i, i + count);
    sample_group<law>(z, count, stream, i / group_samples, call.scale);
#if defined(__AVX2__)
    if constexpr (is_float<X> && sizeof(X) == 4 && sizeof(Z) == 4) {
      const bool normal = call.granularity >= 0x1p-126 && call.granularity <= 0x1p96;  // of g (q + Z) too
      if (normal && count == group_samples &&
          add_narrow(x + i, out + i, z, static_cast<float>(call.granularity), static_cast<float>(inverse)))
        continue;
    }
#endif
    add_group(x + i, out + i, count, z, call.granularity, inverse);
  }
}

template <class X, class Out, Law law>
void add_noise(const void* x_, void* out_, std::size_t first, std::size_t last, const NoiseCall& call,
               const void* const* soon) {
  const StandardArithmetic arithmetic;
  const X* x = static_cast<const X*>(x_);
  Out* out = static_cast<Out*>(out_);
  warm_table(quantile_tables[static_cast<unsigned>(law)]);
  if (call.scale <= narrow_scale)
    add_noise_as<X, Out, law, std::int32_t>(x, out, first, last, call, soon);
  else
    add_noise_as<X, Out, law, std::int64_t>(x, out, first, last, call, soon);
}

// Float mode; a word is one sample of float64, or two of float32.
template <Law law>
void add_float(const double* x, double* out, std::size_t count, const std::uint64_t* w, double scale) {
  for (std::size_t j = 0; j < count; ++j)
    out[j] =
        x[j] + scale * float_sample(quantile_tables[static_cast<unsigned>(law)], w[lane_of(static_cast<unsigned>(j))]);
}

template <Law law>
void add_float(const float* x, float* out, std::size_t count, const std::uint64_t* w, double scale) {
  const FloatRow* const table = float_tables[static_cast<unsigned>(law)];
  std::size_t j = 0;
#if defined(__AVX2__)
  j = add_float_eights(x, out, count, w, table, static_cast<float>(scale));
#endif
  for (; j < count; ++j) {
    const std::uint64_t word = w[lane_of(static_cast<unsigned>(j / 2))] >> (32 * (j % 2));
    out[j] = x[j] + static_cast<float>(scale) * float_sample(table, static_cast<std::uint32_t>(word));
  }
}

template <class T, Law law>
void add_float_noise(const void* x_, void* out_, std::size_t first, std::size_t last, const NoiseCall& call,
                     const void* const* /*soon*/) {
  const StandardArithmetic arithmetic;
  const T* x = static_cast<const T*>(x_);
  T* out = static_cast<T*>(out_);
  Stream stream(call, domain_of(law));
  constexpr std::size_t group = sizeof(T) == sizeof(float) ? 2 * group_samples : group_samples;
  alignas(64) std::uint64_t w[group_samples];
  for (std::size_t i = first; i < last; i += group) {
    stream.read(w, i / group);
    add_float<law>(x + i, out + i, last - i < group ? last - i : group, w, call.scale);
  }
}

void random_words(std::uint64_t* out, std::size_t first, std::size_t last, const NoiseCall& call,
                  std::uint32_t domain) {
  Stream stream(call, static_cast<Domain>(domain));
  alignas(64) std::uint64_t group[group_samples];
  for (std::size_t i = first; i < last; i += group_samples, out += group_samples) {
    stream.read(group, i / group_samples);
    const std::size_t count = last - i < group_samples ? last - i : group_samples;
    if (count == group_samples)
      for (unsigned j = 0; j < group_samples; j += 2) memcpy(out + j, group + lane_of(j), 2 * sizeof group[0]);
    else
      for (unsigned j = 0; j < count; ++j) out[j] = group[lane_of(j)];
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
          add_noise<float, float, Law::gaussian>,
          add_noise<double, double, Law::gaussian>,
          add_noise<std::int64_t, float, Law::gaussian>,
          add_noise<std::int64_t, double, Law::gaussian>,
          add_noise<float, float, Law::laplace>,
          add_noise<double, double, Law::laplace>,
          add_float_noise<float, Law::gaussian>,
          add_float_noise<double, Law::gaussian>,
          add_float_noise<float, Law::laplace>,
          add_float_noise<double, Law::laplace>,
          first_unfit<float>,
          first_unfit<double>};
}

}  // namespace aisec_fast::AISEC_ISA
