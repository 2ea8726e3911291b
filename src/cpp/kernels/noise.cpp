// Noise kernels, compiled once per instruction set: AISEC_ISA names the namespace, AISEC_WIDTH is a vector's bytes.
// docs/noise.md defines every bit.
#include "aisec_fast/kernels.hpp"
#include "aisec_fast/noise_float.hpp"
#include "aisec_fast/noise_math.hpp"
#include "kernels/families.hpp"
#include "kernels/standard_arithmetic.hpp"
#include "kernels/stream.hpp"

#if defined(__AVX512F__)
#include "kernels/noise_avx512.hpp"
#elif defined(__AVX2__)
#include "kernels/noise_avx2.hpp"
#include "kernels/noise_fixed_avx2.hpp"
#include "kernels/noise_small_avx2.hpp"
#endif
#if defined(__AVX2__)
#include "kernels/noise_float_vectors.hpp"
#endif

namespace aisec_fast::AISEC_ISA {
namespace {

constexpr double narrow_scale = 0x1p22;  // up to here the farthest sample, 222 s, is below 2^30

// Reads every cache line of the rows that the fast step uses (41 KB), so that a rare row, that is a large sample, does
// not show itself by a miss far down the memory.
void warm_table(const QuantileRow* table) {
  for (int row = deep_rows; row < quantile_rows; row += 2)
    static_cast<void>(*static_cast<const volatile std::uint64_t*>(table[row].c));
}

#if defined(__AVX2__)
void warm_table(const FixedTable& table) {
  for (const FixedRow* row = table.row; row < table.row + sizeof table.row / sizeof *row; row += 4)
    static_cast<void>(*static_cast<const volatile float*>(&row->c1));
}
#if !defined(__AVX512F__)
void warm_table(const SmallTable& table) {
  for (const SmallRow* row = table.row; row < table.row + sizeof table.row / sizeof *row; row += 8)
    static_cast<void>(*static_cast<const volatile float*>(&row->c1));
}
#endif
#endif

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
    add_group(x + i, out + i, count, z, call.granularity, inverse);
  }
}

#if defined(__AVX2__)
// The same for scales up to narrow_scale.
template <class X, class Out, Law law>
void add_narrow_noise(const X* x, Out* out, std::size_t first, std::size_t last, const NoiseCall& call,
                      const void* const* soon) {
  const double s = call.scale, granularity = call.granularity, inverse = 1.0 / granularity;
  const QuantileRow* const table = quantile_tables[static_cast<unsigned>(law)];
  const Quantiles by(table, s, quantile_bound(law) * s);
  Stream stream(call, domain_of(law));
  Pipeline line;
  stream.read(line.words, first / group_samples);
  alignas(64) std::int32_t z[group_samples];

  const auto decide_word = [&](std::uint64_t word, std::size_t sample) __attribute__((noinline)) {
    std::int64_t integer;
    std::uint64_t flagged;
    quantile_sample(table, word, s, largest_distance(law, s), integer, flagged);
    if (flagged) integer = resolve_sample(law, table, word, stream.key(), sample, s);
    return static_cast<std::int32_t>(integer);
  };
  const auto decide_one = [&](const std::uint64_t* words, std::size_t i, unsigned j) {
    z[j] = decide_word(words[i % two_groups + lane_of(j)], i + j);
  };
  // Samples of the group at i from `decided` on; those from `added` on are still to be added.
  const auto settle = [&](std::size_t i, unsigned decided, unsigned added) __attribute__((noinline)) {
    const std::size_t count = last - i < group_samples ? last - i : group_samples;
    for (std::size_t j = decided; j < count; ++j) decide_one(line.words, i, static_cast<unsigned>(j));
    add_group(x + i + added, out + i + added, count - added, z + added, granularity, inverse);
  };
  const auto later = [&](std::size_t i) {
    for (const void* const* array = soon; *array != nullptr; ++array)
      prefetch(static_cast<const X*>(*array), i, i + group_samples);
    return x + (last - i > prefetched + group_samples ? i + prefetched : i);
  };
  const std::size_t whole = last - last % group_samples;
  const auto add_integers = [&] {
    return AddIntegers{reinterpret_cast<const float*>(x), reinterpret_cast<float*>(out),
                       static_cast<float>(granularity), static_cast<float>(inverse),
                       static_cast<float>(granularity * 0x1p30)};
  };
  const auto add_groups = [&](const auto& more) {
    if constexpr (is_float<X> && sizeof(X) == 4)
      if (granularity >= 0x1p-126 && granularity <= 0x1p96)  // of g (q + Z) too these are normal
        return decide_groups(line, first, whole, by, more, z, add_integers(), later, settle);
    decide_groups(line, first, whole, by, more, z, NeverAdd{}, later, settle);
  };
  const WholeGroups any{stream, (last + group_samples - 1) / group_samples};
  const bool many = whole - first > group_samples;
  if constexpr (is_float<X> && sizeof(X) == 4) {
    // By the rows of s, which leave some samples open; z2 are the integers of a group.
    const auto by_rows = [&](auto& ahead, const auto& rows, auto* z2, const auto& adding, const auto& decide) {
      memcpy(ahead.words, line.words, sizeof ahead.words);
      start(ahead, rows);
      OpenSamples<Pipeline> open;
      // The first `count` of the open samples, 128 or fewer, eight at a time.
      const auto settle_first = [&](unsigned count) {
        float values[group_samples];
        unsigned n = 0;
        do  // once even if there are none: a call should not take the longer for one that is far out
          for (unsigned undecided = decide_eight(z + n, open, n, by); undecided; undecided &= undecided - 1) {
            const unsigned m = n + static_cast<unsigned>(__builtin_ctz(undecided));
            if (m < count) z[m] = decide_word(open.line.words[m], open.at[m]);
          }
        while ((n += 8) < count);
        const AddIntegers integers = add_integers();
        AddIntegers{open.x, values, integers.granularity, integers.inverse, integers.bound}.add(0, z);
        for (n = 0; n < count; ++n) out[open.at[n]] = values[n];
      };
      const auto settle_many = [&]() __attribute__((noinline)) {
        settle_first(open.many);
        open.count -= open.many;
        for (unsigned n = 0; n < open.count; ++n) {
          open.line.words[n] = open.line.words[open.many + n];
          open.at[n] = open.at[open.many + n];
          open.x[n] = open.x[open.many + n];
        }
      };
      const auto not_added = [&](std::size_t i, const OpenBits& found) __attribute__((noinline)) {
        for (unsigned j = 0; j < group_samples; ++j) {
          z[j] = static_cast<std::int32_t>(z2[j]);
          if ((j < 64 ? found.low : found.high) >> j % 64 & 1) {
            decide_one(ahead.words, i, j);
            --open.count;
          }
        }
        settle(i, group_samples, 0);
      };
      if (stream.has_vaes())
        decide(ahead, first, whole, rows, VaesGroups(stream, first / group_samples + 1), z2, adding, open, later,
               settle_many, not_added);
      else
        decide(ahead, first, whole, rows, any, z2, adding, open, later, settle_many, not_added);
      for (unsigned n = open.count; n < open.many; ++n) open.x[n] = 0.0f;  // of other samples, and perhaps too large
      settle_first(open.count);
      if (whole == last) return;
      memcpy(line.words, ahead.words, sizeof line.words);
      start(line, by, whole % two_groups);
      decide_groups(line, whole, last, by, any, z, NeverAdd{}, later, settle);
    };
    const bool normal = many && granularity >= 0x1p-126 && granularity <= 0x1p96;  // and numbers of g (q + Z) too
#if !defined(__AVX512F__)
    const SmallTable* const small = normal && s <= largest_small_scale
                                        ? rows_of_scale<SmallTable, law>(s, whole - first, make_small_rows)
                                        : nullptr;
    if (small != nullptr) {
      warm_table(*small);
      SmallPipeline ahead;
      alignas(32) float small_z[group_samples];
      return by_rows(ahead, SmallQuantiles(*small), small_z, AddFloats{add_integers()},
                     [](auto&&... of) { decide_small_groups(of...); });
    }
#endif
    const FixedTable* const fixed =
        normal ? rows_of_scale<FixedTable, law>(s, whole - first, make_fixed_rows) : nullptr;
    if (fixed != nullptr) {
      warm_table(*fixed);
      FixedPipeline ahead;
      return by_rows(ahead, FixedQuantiles(*fixed), z, add_integers(),
                     [](auto&&... of) { decide_fixed_groups(of...); });
    }
  }
  start(line, by);
  if (stream.has_vaes() && many)
    add_groups(VaesGroups(stream, first / group_samples + 1));
  else
    add_groups(any);
  if (whole < last) decide_groups(line, whole, last, by, any, z, NeverAdd{}, later, settle);
}
#endif

template <class X, class Out, Law law>
void add_noise(const void* x_, void* out_, std::size_t first, std::size_t last, const NoiseCall& call,
               const void* const* soon) {
  const StandardArithmetic arithmetic;
  const X* x = static_cast<const X*>(x_);
  Out* out = static_cast<Out*>(out_);
  warm_table(quantile_tables[static_cast<unsigned>(law)]);
  if (call.scale <= narrow_scale)
#if defined(__AVX2__)
    add_narrow_noise<X, Out, law>(x, out, first, last, call, soon);
#else
    add_noise_as<X, Out, law, std::int32_t>(x, out, first, last, call, soon);
#endif
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
  for (std::size_t j = 0; j < count; ++j) {
    const std::uint64_t word = w[lane_of(static_cast<unsigned>(j / 2))] >> (32 * (j % 2));
    out[j] = x[j] + static_cast<float>(scale) * float_sample(table, static_cast<std::uint32_t>(word));
  }
}

#if defined(__AVX2__)
static_assert(noise_group % two_float_groups == 0);  // where its pipeline starts

template <Law law>
void add_float32_noise(const float* x, float* out, std::size_t first, std::size_t last, const NoiseCall& call) {
  const std::uintptr_t rows =
      reinterpret_cast<std::uintptr_t>(scaled_tables[static_cast<unsigned>(law)]) - first_middle_offset;
  const float scale = static_cast<float>(call.scale);
  const std::size_t whole = last - last % float_group, groups = (last + float_group - 1) / float_group;
  const auto later = [&](std::size_t i) { return x + (last - i > prefetched + float_group ? i + prefetched : i); };
  Stream stream(call, domain_of(law));
  FloatPipeline line;
  alignas(64) std::uint64_t words[group_samples];
  stream.read_in_order(words, first / float_group);
  find_float_cells(line.of(first), words, last - first < float_group ? last - first : float_group);
  if (stream.has_vaes() && whole - first > float_group)
    add_float_groups(x + first, out + first, line, first, whole, rows, scale,
                     VaesGroupsInOrder(stream, first / float_group + 1), later);
  else
    add_float_groups(x + first, out + first, line, first, whole, rows, scale, WholeGroupsInOrder{{stream, groups}},
                     later);
  for (std::size_t i = whole; i < last; i += 8) {
    float values[8] = {};
    const std::size_t bytes = (last - i < 8 ? last - i : 8) * sizeof *x;
    memcpy(values, x + i, bytes);
    const FloatEight eight(line.of(whole), static_cast<unsigned>(i - whole) / 8);
    add_eight(values, values, rows, eight, _mm256_set1_ps(scale));
    memcpy(out + i, values, bytes);
  }
}
#endif

template <class T, Law law>
void add_float_noise(const void* x_, void* out_, std::size_t first, std::size_t last, const NoiseCall& call,
                     const void* const* /*soon*/) {
  const StandardArithmetic arithmetic;
  const T* x = static_cast<const T*>(x_);
  T* out = static_cast<T*>(out_);
#if defined(__AVX2__)
  if constexpr (sizeof(T) == sizeof(float)) return add_float32_noise<law>(x, out, first, last, call);
#endif
  Stream stream(call, domain_of(law));
  constexpr std::size_t group = sizeof(T) == sizeof(float) ? 2 * group_samples : group_samples;
  alignas(64) std::uint64_t w[group_samples];
  for (std::size_t i = first; i < last; i += group) {
    stream.read(w, i / group);
    add_float<law>(x + i, out + i, last - i < group ? last - i : group, w, call.scale);
  }
}

template <class More>
AISEC_VAES void copy_words(std::uint64_t* out, std::size_t first, std::size_t last, More more) {
  alignas(64) std::uint64_t group[group_samples];
  for (std::size_t i = first; i < last; i += group_samples, out += group_samples) {
    more.begin(group, i / group_samples);
    for (unsigned j = 0; j < group_samples; j += More::at_once) more.make(group + j);
    const std::size_t count = last - i < group_samples ? last - i : group_samples;
    if (count == group_samples)
      for (unsigned j = 0; j < group_samples; j += 2) memcpy(out + j, group + lane_of(j), 2 * sizeof group[0]);
    else
      for (unsigned j = 0; j < count; ++j) out[j] = group[lane_of(j)];
  }
}

void random_words(std::uint64_t* out, std::size_t first, std::size_t last, const NoiseCall& call,
                  std::uint32_t domain) {
  Stream stream(call, static_cast<Domain>(domain));
#if defined(__AVX2__)
  if (stream.has_vaes()) return copy_words(out, first, last, VaesGroups(stream, first / group_samples));
#endif
  copy_words(out, first, last, WholeGroups{stream, last});
}

std::int32_t magnitude_bits(float x) { return static_cast<std::int32_t>(as_bits(x) & 0x7fffffffu); }
std::int64_t magnitude_bits(double x) { return static_cast<std::int64_t>(as_bits(x) & ~std::uint64_t{0} >> 1); }

// Magnitudes are in the order of their bits, and NaN's are above infinity's.
template <class X>
std::size_t first_unfit(const void* x_, std::size_t count, double granularity) {
  using Bits = decltype(magnitude_bits(X{}));
  const X* x = static_cast<const X*>(x_);
  const double limit = 0x1p62 * granularity;  // a power of two: one of X's values, or beyond them, or below
  const X largest = static_cast<X>(sizeof(X) == sizeof(float) ? 0x1.fffffep127 : 0x1.fffffffffffffp1023);
  const Bits most = magnitude_bits(limit < static_cast<double>(largest) ? static_cast<X>(limit) : largest);
  constexpr std::size_t block = 4096;
  // Arrays beyond the caches are read at eight places at once, which keeps more of memory busy. Where something does
  // not fit, the loop below looks for the first.
  constexpr std::size_t places = 8, run = block / places, large = std::size_t{1} << 21;
  const std::size_t apart = count < large ? 0 : count / block * run;
  Bits unfit_anywhere = 0;
  for (std::size_t begin = 0; begin < apart && unfit_anywhere >= 0; begin += run)
    for (std::size_t i = begin; i < begin + run; ++i)
      for (std::size_t place = 0; place < places; ++place)
        unfit_anywhere |= most - magnitude_bits(x[place * apart + i]);
  for (std::size_t begin = unfit_anywhere < 0 ? 0 : places * apart; begin < count; begin += block) {
    const std::size_t end = count - begin < block ? count : begin + block;
    Bits unfit = 0;  // negative if one of the block is
    for (std::size_t i = begin; i < end; ++i) unfit |= most - magnitude_bits(x[i]);
    if (unfit >= 0) continue;
    for (std::size_t i = begin;; ++i)
      if (magnitude_bits(x[i]) > most) return i;
  }
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
