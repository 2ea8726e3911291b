// The fast step and the resolver of one pair or sample, callable with any bits: tests/test_noise_math.py.
#include "aisec_fast/noise_math.hpp"

using namespace aisec_fast;

extern "C" {

void fast_gaussian(std::uint64_t wu, std::uint64_t wv, double s, std::int64_t* integers, std::uint64_t* flagged) {
  gaussian_pair(wu, wv, s, integers[0], integers[1], *flagged);
}

void fast_laplace(std::uint64_t w, double s, std::int64_t* integers, std::uint64_t* flagged) {
  laplace_sample(w, s, integers[0], *flagged);
}

void decide_gaussian(std::uint64_t wu, std::uint64_t wv, const std::uint64_t* e, double s, std::int64_t* integers) {
  std::uint64_t words[8];
  for (int i = 0; i < 8; ++i) words[i] = e[i];
  decide_gaussian_pair(wu, wv, words, s, integers[0], integers[1]);
}

void decide_laplace(std::uint64_t w, const std::uint64_t* e, double s, std::int64_t* integers) {
  std::uint64_t words[8];
  for (int i = 0; i < 8; ++i) words[i] = e[i];
  integers[0] = decide_laplace_sample(w, words, s);
}

double fast_logarithm(std::uint64_t k) { return logarithm(unit_midpoint(k)); }

void fast_cosine_sine(std::uint64_t k, double* out) { cosine_sine(unit_midpoint(k), out[0], out[1]); }

}  // extern "C"
