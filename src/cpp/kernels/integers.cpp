// Exact integers and decisions from words of the stream, compiled once per instruction set. docs/noise-integers.md
// defines every value and proves when a word decides.
#include <cstdint>
#include <cstring>

#include "aisec_fast/kernels.hpp"
#include "kernels/families.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

__extension__ typedef unsigned __int128 Wide;

std::int64_t with_sign(std::uint64_t magnitude, std::uint64_t word) {
  const std::uint64_t minus = std::uint64_t{0} - (word & 1);
  return static_cast<std::int64_t>((magnitude ^ minus) - minus);
}

// thresholds fall and end with 0; guide[c] of them are above every 63-bit number whose highest bits are c.
std::size_t signed_by_table(const std::uint64_t* words, std::size_t count, const std::uint64_t* thresholds,
                            const std::uint32_t* guide, unsigned shift, std::int64_t* out, std::uint32_t* open) {
  std::size_t opened = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t u = words[i] >> 1;
    std::size_t k = guide[u >> shift];
    k += u < thresholds[k];  // few cells hold more than one threshold: without a branch for it
    while (u < thresholds[k]) ++k;
    out[i] = with_sign(k, words[i]);
    open[opened] = static_cast<std::uint32_t>(i);
    opened += u == thresholds[k];
  }
  return opened;
}

double as_double(std::uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

std::uint64_t as_bits(double value) {
  std::uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// |Z| = rint(scale T + offset) where that is at most `limit` from an integer; T is the polynomial of u's row.
std::size_t signed_by_quantile(const std::uint64_t* words, std::size_t count, const double* rows, double scale,
                               double offset, double limit, std::int64_t* out, std::uint32_t* open) {
  constexpr std::uint64_t least = std::uint64_t{1} << 43;  // u = 2^-20 in units of 2^-63: the first row after the deep
  constexpr std::uint64_t first_row = ((1023 + 43) << 6) - 769;
  constexpr double rounder = 0x1.8p52;  // a + rounder rounds to an integer, |a| < 2^51
  std::size_t opened = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t u = words[i] >> 1, inside = u < least ? least : u;
    const std::uint64_t bits = as_bits(static_cast<double>(static_cast<std::int64_t>(inside)));
    const double* row = rows + 4 * ((bits >> 46) - first_row);
    const double delta = as_double((bits & 0x3fffffffffffu) | 0x3ff0000000000000u) - (1.0 + 0x1p-7);
    const double c4 = as_double(as_bits(row[3]) << 32);
    const double t = row[0] + delta * (row[1] + delta * (row[2] + delta * (row[3] + delta * c4)));
    const double a = scale * t + offset, shifted = a + rounder, distance = a - (shifted - rounder);
    out[i] = with_sign(as_bits(shifted) - as_bits(rounder), words[i]);
    open[opened] = static_cast<std::uint32_t>(i);
    opened += static_cast<std::size_t>(u < least) | static_cast<std::size_t>(!(distance <= limit)) |
              static_cast<std::size_t>(!(-distance <= limit));
  }
  return opened;
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
  for (std::size_t i = 0; i < count; ++i) {
    open[opened] = static_cast<std::uint32_t>(i);
    opened += words[i] == threshold;
  }
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
    open[opened] = static_cast<std::uint32_t>(i);
    opened += static_cast<std::uint64_t>(product) > std::uint64_t{0} - bound;
  }
  return opened;
}

std::size_t bounded_wide(const std::uint64_t* words, std::size_t count, std::int64_t low, std::uint64_t bound,
                         std::int64_t* out, std::uint32_t* open) {
  std::size_t opened = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const Wide last = Wide{words[2 * i + 1]} * bound, product = Wide{words[2 * i]} * bound + (last >> 64);
    out[i] = above(low, static_cast<std::uint64_t>(product >> 64));
    open[opened] = static_cast<std::uint32_t>(i);
    opened += static_cast<std::size_t>(~static_cast<std::uint64_t>(product) == 0) &
              static_cast<std::size_t>(static_cast<std::uint64_t>(last) > std::uint64_t{0} - bound);
  }
  return opened;
}

}  // namespace

IntegerKernels integer_kernels() { return {signed_by_table, signed_by_quantile, decisions, bounded, bounded_wide}; }

}  // namespace aisec_fast::AISEC_ISA
