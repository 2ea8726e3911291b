// The fast step and the resolver of one sample, callable with any bits: tests/test_noise_math.py.
#include "aisec_fast/noise_math.hpp"

using namespace aisec_fast;

namespace {
alignas(64) const QuantileRow tables[2][quantile_rows] = {
#include "quantiles.inc"
};
}  // namespace

extern "C" {

// a = s T, |Z| with its sign, and whether it is flagged.
double fast_sample(unsigned law, std::uint64_t w, double s, std::int64_t* integer, std::uint64_t* flagged) {
  const double limit = largest_distance(static_cast<Law>(law), s);
  quantile_sample(tables[law], w, s, limit, *integer, *flagged);
  const std::uint64_t bits = as_bits(rounded_word(w));
  const std::int64_t cell = quantile_cell(bits);
  return s * quantile(tables[law][(cell < deep_rows ? deep_rows - 1 : cell) + 1], quantile_delta(bits));
}

std::int64_t decide_sample(unsigned law, std::uint64_t w, const std::uint64_t* e, double s) {
  std::uint64_t words[8];
  for (int i = 0; i < 8; ++i) words[i] = e[i];
  return with_sign(decide_magnitude(static_cast<Law>(law), tables[law], w, words, s), w);
}

// u < F((n - 1/2) / s) by the longer of the two arithmetics alone.
bool reaches_at_length(unsigned law, std::uint64_t w, const std::uint64_t* e, std::uint64_t n, double s) {
  std::uint64_t words[8];
  for (int i = 0; i < 8; ++i) words[i] = e[i];
  return compare_with_tail(static_cast<Law>(law), expansion<most_fraction_limbs>(w, words), n, s) == Order::less;
}

// F(y) or its complement as the resolver computes it, y = numerator / divisor: limbs, the integer part last.
void long_tail(unsigned law, std::uint64_t numerator, std::uint64_t divisor, std::uint64_t* limbs) {
  const auto y = ratio<most_fraction_limbs>(numerator, divisor);
  const auto value = static_cast<Law>(law) == Law::laplace ? exponential_of_minus(y) : normal_mass_within(y);
  for (int i = 0; i <= most_fraction_limbs; ++i) limbs[i] = value.limb[i];
}

void short_tail(unsigned law, std::uint64_t numerator, std::uint64_t divisor, std::uint64_t* limbs) {
  const auto y = ratio<4>(numerator, divisor);
  const auto value = static_cast<Law>(law) == Law::laplace ? exponential_of_minus(y) : normal_mass_within(y);
  for (int i = 0; i <= 4; ++i) limbs[i] = value.limb[i];
}

void shortest_tail(unsigned law, std::uint64_t numerator, std::uint64_t divisor, std::uint64_t* limbs) {
  const auto y = ratio<2>(numerator, divisor);
  const auto value = static_cast<Law>(law) == Law::laplace ? exponential_of_minus(y) : normal_mass_within(y);
  for (int i = 0; i <= 2; ++i) limbs[i] = value.limb[i];
}

std::uint64_t groups_of_four_terms(std::uint64_t square_below) { return groups_of_terms(square_below); }

}  // extern "C"
