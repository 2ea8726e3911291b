// Exact integers and decisions from words of the stream, compiled once per instruction set. docs/noise-integers.md
// defines every value and proves when a word decides.
#include <cstdint>
#include <cstring>

#include "aisec_fast/kernels.hpp"
#include "aisec_fast/noise_math.hpp"
#include "kernels/families.hpp"
#include "kernels/standard_arithmetic.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// thresholds fall and end with 0; guide[c] of them are above every 63-bit number whose highest bits are c.
std::size_t signed_by_table(const std::uint64_t* words, std::size_t count, const std::uint64_t* thresholds,
                            const std::uint32_t* guide, unsigned shift, std::int64_t* out, std::uint32_t* open) {
  std::size_t opened = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t u = words[i] >> 1;
    std::size_t k = guide[u >> shift];
    k += u < thresholds[k];  // few cells hold more than one threshold: without a branch for it
    while (u < thresholds[k]) ++k;
    out[i] = with_sign(static_cast<std::int64_t>(k), words[i]);
    if (u == thresholds[k]) [[unlikely]]
      open[opened++] = static_cast<std::uint32_t>(i);
  }
  return opened;
}

// Four samples at a time, whatever the vector's width: a row of the table is one vector of four.
typedef double Doubles __attribute__((vector_size(32)));
typedef std::uint64_t Bits __attribute__((vector_size(32)));
typedef std::int64_t Mask __attribute__((vector_size(32)));
typedef double Row __attribute__((vector_size(32), aligned(8), may_alias));

// |Z| = rint(scale T + offset) where that is at most `limit` from an integer; T is the polynomial of u's row.
std::size_t signed_by_quantile(const std::uint64_t* words, std::size_t count, const double* rows, double scale,
                               double offset, double limit, std::int64_t* out, std::uint32_t* open) {
  const StandardArithmetic arithmetic;
  constexpr std::int64_t least = std::int64_t{1} << 43;  // u = 2^-20 in units of 2^-63: the first row after the deep
  constexpr std::uint64_t first_row = ((1023 + 43) << 6) - 769;
  constexpr std::uint64_t shift_bits = 0x4338000000000000u;  // of integer_shift
  std::size_t opened = 0;
  for (std::size_t i = 0; i < count; i += 4) {
    const std::size_t lanes = count - i < 4 ? count - i : 4;
    Bits w{};
    if (lanes == 4) [[likely]]
      memcpy(&w, words + i, sizeof w);
    else
      memcpy(&w, words + i, lanes * sizeof *words);
    const Bits u = w >> 1;
    const Mask deep = reinterpret_cast<Mask>(u) < least;
    const Bits inside = (u & ~reinterpret_cast<Bits>(deep)) | (reinterpret_cast<Bits>(deep) & least);
    // To double with one rounding: 2^84 + the upper half and 2^52 + the lower half are bit patterns.
    const Doubles v = (reinterpret_cast<Doubles>(inside >> 32 | 0x4530000000000000u) - (0x1p84 + 0x1p52)) +
                      reinterpret_cast<Doubles>((inside & 0xffffffffu) | 0x4330000000000000u);
    const Bits bits = reinterpret_cast<Bits>(v), place = (bits >> 46) - first_row;
    const Doubles delta = reinterpret_cast<Doubles>((bits & 0x3fffffffffffu) | 0x3ff0000000000000u) - (1.0 + 0x1p-7);
    const Row row0 = *reinterpret_cast<const Row*>(rows + 4 * place[0]),
              row1 = *reinterpret_cast<const Row*>(rows + 4 * place[1]),
              row2 = *reinterpret_cast<const Row*>(rows + 4 * place[2]),
              row3 = *reinterpret_cast<const Row*>(rows + 4 * place[3]);
    const Doubles even01 = __builtin_shufflevector(row0, row1, 0, 4, 2, 6),
                  odd01 = __builtin_shufflevector(row0, row1, 1, 5, 3, 7),
                  even23 = __builtin_shufflevector(row2, row3, 0, 4, 2, 6),
                  odd23 = __builtin_shufflevector(row2, row3, 1, 5, 3, 7);
    const Doubles c0 = __builtin_shufflevector(even01, even23, 0, 1, 4, 5),
                  c1 = __builtin_shufflevector(odd01, odd23, 0, 1, 4, 5),
                  c2 = __builtin_shufflevector(even01, even23, 2, 3, 6, 7),
                  c3 = __builtin_shufflevector(odd01, odd23, 2, 3, 6, 7),
                  c4 = reinterpret_cast<Doubles>(reinterpret_cast<Bits>(c3) << 32);
    const Doubles a = scale * (c0 + delta * (c1 + delta * (c2 + delta * (c3 + delta * c4)))) + offset;
    const Doubles shifted = a + integer_shift, distance = a - (shifted - integer_shift);
    const Bits minus = -(w & 1), n = ((reinterpret_cast<Bits>(shifted) - shift_bits) ^ minus) - minus;
    if (lanes == 4) [[likely]]
      memcpy(out + i, &n, sizeof n);
    else
      memcpy(out + i, &n, lanes * sizeof *out);
    const Mask closed = (distance <= limit) & (-distance <= limit) & ~deep;
    if ((closed[0] & closed[1] & closed[2] & closed[3]) == 0)
      for (std::size_t lane = 0; lane < lanes; ++lane)
        if (closed[lane] == 0) open[opened++] = static_cast<std::uint32_t>(i + lane);
  }
  return opened;
}

std::int64_t high_half(std::int64_t a, std::int64_t b) {
  __extension__ typedef __int128 SignedWide;
  return static_cast<std::int64_t>(SignedWide{a} * b >> 64);
}

// As signed_by_quantile, in 64-bit fixed point with Q in units of 2^-66: rows of c0 (two words), c1, ..., c8.
std::size_t signed_by_wide_quantile(const std::uint64_t* words, const std::int64_t* rows, const WideScale& by,
                                    std::int64_t* out, std::uint32_t* open, std::size_t opened) {
  const StandardArithmetic arithmetic;
  constexpr std::uint64_t one = std::uint64_t{1} << 62;  // of the fraction below
  std::size_t left = 0;
  for (std::size_t j = 0; j < opened; ++j) {
    const std::uint32_t i = open[j];
    const std::uint64_t u = words[i] >> 1;
    open[left++] = i;
    if (u < std::uint64_t{1} << 43) continue;
    const int zeros = __builtin_clzll(u);
    const std::uint64_t digits = u << zeros;  // u = 2^-zeros m, m = digits / 2^63, in [1, 2)
    const std::int64_t* const row = rows + 10 * (64 * (20 - zeros) + static_cast<int>(digits >> 57 & 63));
    const auto x = static_cast<std::int64_t>(digits << 7 ^ std::uint64_t{1} << 63);  // 2^64 times 2^6 (m - middle)
    std::int64_t sum = row[9];
    for (int k = 8; k >= 2; --k) sum = row[k] + high_half(sum, x);
    const auto step = high_half(sum, x);
    // Q = whole 2^64 + part; the product with the mantissa is high 2^64 + low, with `fraction` bits of high below 1.
    const std::uint64_t start = static_cast<std::uint64_t>(row[1]), part = start + static_cast<std::uint64_t>(step);
    const std::uint64_t whole = static_cast<std::uint64_t>(row[0]) +
                                (step < 0 ? (part > start ? ~std::uint64_t{0} : 0) : (part < start ? 1 : 0));
    const Wide product = Wide{part} * by.mantissa;
    const std::uint64_t low = static_cast<std::uint64_t>(product),
                        high = static_cast<std::uint64_t>(product >> 64) + whole * by.mantissa;
    const std::uint64_t floor = high >> by.fraction;
    const std::uint64_t fraction = (high - (floor << by.fraction)) << (62 - by.fraction) | low >> (by.fraction + 2);
    const double shift = by.offset + by.slope * static_cast<double>(static_cast<std::int64_t>(floor));
    // Half a unit and a whole one more keep this positive.
    const std::uint64_t place =
        fraction + one / 2 + one + static_cast<std::uint64_t>(static_cast<std::int64_t>(shift * 0x1p62));
    const std::uint64_t beyond = place & (one - 1), distance = beyond < one - beyond ? beyond : one - beyond;
    const double width =
        as_double(static_cast<std::uint64_t>(1023 - 63 + zeros) << 52);  // 2^-63 / 2^-zeros, above |dQ|
    const double error = by.scale * (0x1p-61 + width) + 0x1p-40;
    if (!(static_cast<double>(static_cast<std::int64_t>(distance)) * 0x1p-62 > error)) continue;
    --left;
    out[i] = with_sign(static_cast<std::int64_t>(floor + (place >> 62) - 1), words[i]);
  }
  return left;
}

std::size_t decisions(const std::uint64_t* words, std::size_t count, std::uint64_t threshold, std::uint8_t* out,
                      std::uint32_t* open) {
  std::uint64_t any = 0;
  for (std::size_t i = 0; i < count; ++i) {
    out[i] = words[i] < threshold;
    any |= words[i] == threshold;
  }
  if (!any) return 0;
  std::size_t opened = 0;
  for (std::size_t i = 0; i < count; ++i)
    if (words[i] == threshold) open[opened++] = static_cast<std::uint32_t>(i);
  return opened;
}

std::int64_t above(std::int64_t low, std::uint64_t distance) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(low) + distance);
}

// Further bits add less than `bound` to the low half of the product: it is open if they could carry.
std::size_t bounded(const std::uint64_t* words, std::size_t count, std::int64_t low, std::uint64_t bound,
                    std::uint64_t growth, std::int64_t* out, std::uint32_t* open) {
  std::size_t opened = 0;
  for (std::size_t i = 0; i < count; ++i, bound += growth) {
    const Wide product = Wide{words[i]} * bound;
    out[i] = above(low, static_cast<std::uint64_t>(product >> 64));
    if (static_cast<std::uint64_t>(product) > std::uint64_t{0} - bound) [[unlikely]]
      open[opened++] = static_cast<std::uint32_t>(i);
  }
  return opened;
}

std::size_t bounded_wide(const std::uint64_t* words, std::size_t count, std::int64_t low, std::uint64_t bound,
                         std::int64_t* out, std::uint32_t* open) {
  std::size_t opened = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const Wide last = Wide{words[2 * i + 1]} * bound, product = Wide{words[2 * i]} * bound + (last >> 64);
    out[i] = above(low, static_cast<std::uint64_t>(product >> 64));
    if (~static_cast<std::uint64_t>(product) == 0 && static_cast<std::uint64_t>(last) > std::uint64_t{0} - bound)
      open[opened++] = static_cast<std::uint32_t>(i);
  }
  return opened;
}

}  // namespace

IntegerKernels integer_kernels() {
  return {signed_by_table, signed_by_quantile, signed_by_wide_quantile, decisions, bounded, bounded_wide};
}

}  // namespace aisec_fast::AISEC_ISA
