// Runs every noise kernel on heap buffers of exact size, for AddressSanitizer, and compares with loops over samples.
#include "aisec_fast/noise_float.hpp"
#include "aisec_fast/noise_math.hpp"
#include "check.hpp"
#include "noise_entry.hpp"

using namespace aisec_fast;

namespace {

alignas(64) const QuantileRow tables[2][quantile_rows] = {
#include "quantiles.inc"
};

template <class T>
constexpr DType dtype_of = sizeof(T) == 4 ? DType::float32 : DType::float64;
template <>
constexpr DType dtype_of<std::int64_t> = DType::int64;

NoiseCall example(double scale) {
  NoiseCall call{{}, scale, 0x1p-20, Generator::chacha};
  for (std::uint32_t i = 0; i < 8; ++i) call.key[i] = 0x03020100u + 0x04040404u * i;
  return call;
}

Key key_of(const NoiseCall& call) {
  Key key;
  std::memcpy(key.word, call.key, sizeof key.word);
  return key;
}

// Sample i as the table of docs/noise.md section 3 says it, one block for each.
void words_of(std::uint32_t (&words)[16], const NoiseCall& call, std::uint64_t i, Domain domain) {
  const std::uint64_t block = i / 128 * 16 + i % 16;
  chacha_block(words, key_of(call), static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), domain,
               Level::main);
}

std::uint64_t plain_word(const NoiseCall& call, std::uint64_t i, Domain domain) {
  std::uint32_t words[16];
  words_of(words, call, i, domain);
  return join(words[2 * (i % 128 / 16)], words[2 * (i % 128 / 16) + 1]);
}

// Every sample by the resolver.
std::int64_t plain_sample(Law law, const NoiseCall& call, std::uint64_t i) {
  return resolve_sample(law, tables[static_cast<unsigned>(law)], plain_word(call, i, domain_of(law)), key_of(call), i,
                        call.scale);
}

template <class X, class Out>
Out plain_sum(X x, std::int64_t noise, double granularity) {
  return from_lattice<Out>(to_lattice(x, 1.0 / granularity) + noise, granularity);
}

template <class X, class Out>
void check_gaussian(std::size_t size, double scale) {
  const NoiseCall call = example(scale);
  Buffer<X> x(size);
  Buffer<Out> out(size), expected(size);
  for (std::size_t i = 0; i < size; ++i) x[i] = static_cast<X>(next_value() * 100.0);
  for (std::size_t i = 0; i < size; ++i)
    expected[i] = plain_sum<X, Out>(x[i], plain_sample(Law::gaussian, call, i), call.granularity);
  no_error(
      add_gaussian(static_cast<int>(dtype_of<X>), x.data(), static_cast<int>(dtype_of<Out>), out.data(), size, &call));
  expect(out == expected, "add_gaussian", size);
}

template <class X>
void check_laplace(std::size_t size, double scale) {
  const NoiseCall call = example(scale);
  Buffer<X> x(size), expected(size);
  for (std::size_t i = 0; i < size; ++i) {
    x[i] = static_cast<X>(next_value());
    expected[i] = plain_sum<X, X>(x[i], plain_sample(Law::laplace, call, i), call.granularity);
  }
  no_error(add_laplace(static_cast<int>(dtype_of<X>), x.data(), x.data(), size, &call));  // in place
  expect(x == expected, "add_laplace", size);
}

void check_far(std::uint64_t first, std::size_t size, double scale) {
  const NoiseCall call = example(scale);
  Buffer<float> x(size), expected(size);
  for (std::size_t i = 0; i < size; ++i) {
    x[i] = static_cast<float>(next_value());
    expected[i] = plain_sum<float, float>(x[i], plain_sample(Law::laplace, call, first + i), call.granularity);
  }
  no_error(add_laplace_from(x.data(), x.data(), first, first + size, &call));
  expect(x == expected, "add_laplace_from", size);
}

template <class X>
void check_float(std::size_t size) {
  const NoiseCall call = example(1.7);
  Buffer<X> x(size), expected(size);
  for (std::size_t i = 0; i < size; ++i) {
    x[i] = static_cast<X>(next_value());
    const std::uint64_t word = plain_word(call, sizeof(X) == 4 ? i / 2 : i, Domain::gaussian);
    if constexpr (sizeof(X) == 4)
      expected[i] = x[i] + 1.7f * float_sample(tables[0], static_cast<std::uint32_t>(word >> (32 * (i % 2))));
    else
      expected[i] = x[i] + 1.7 * float_sample(tables[0], word);
  }
  no_error(add_float(0, static_cast<int>(dtype_of<X>), x.data(), x.data(), size, &call));  // in place
  expect(x == expected, "add_float", size);
}

void check_words(std::size_t size) {
  const NoiseCall call = example(1.0);
  Buffer<std::uint64_t> out(size), expected(size);
  for (std::size_t i = 0; i < size; ++i) expected[i] = plain_word(call, i, Domain::words);
  no_error(random_words(out.data(), size, &call, 0));
  expect(out == expected, "random_words", size);
}

template <class X>
void check_unfit(std::size_t size) {
  Buffer<X> x(size);
  for (std::size_t i = 0; i < size; ++i) x[i] = static_cast<X>(next_value());
  std::size_t first = 0;
  no_error(first_unfit(static_cast<int>(dtype_of<X>), x.data(), size, 1.0, &first));
  expect(first == size, "first_unfit of good values", size);
  if (size == 0) return;
  x[size / 2] = x[size - 1] = static_cast<X>(0x1p63);
  no_error(first_unfit(static_cast<int>(dtype_of<X>), x.data(), size, 1.0, &first));
  expect(first == size / 2, "first_unfit", size);
}

}  // namespace

int main() {
  for (const std::size_t size : {0u, 1u, 15u, 127u, 129u})
    for (const double scale : {1.0, 0x1.8p20, 0x1p40}) {  // at the last one everything is resolved
      check_gaussian<float, float>(size, scale);
      check_gaussian<double, double>(size, scale);
      check_gaussian<std::int64_t, float>(size, scale);
      check_gaussian<std::int64_t, double>(size, scale);
      check_laplace<float>(size, scale);
      check_laplace<double>(size, scale);
    }
  check_far((std::uint64_t{1} << 35) - 1024, 2200, 0x1.8p20);  // here the upper half of the counter becomes one
  check_far(488'082 / 128 * 128, 128, 0x1p22);                 // rint(s T) of sample 488,082 is wrong
  check_far(1'807'757 / 128 * 128, 128, 0x1p22);               // u < 2^-20 for sample 1,807,757
  for (const std::size_t size : {0u, 1u, 127u, 129u, 255u, 257u}) {
    check_float<float>(size);
    check_float<double>(size);
  }
  for (const std::size_t size : {0u, 1u, 127u, 129u, 70'000u}) check_words(size);  // the last one: grid-stride
  for (const std::size_t size : {0u, 1u, 255u, 257u, 9'000u}) {
    check_unfit<float>(size);
    check_unfit<double>(size);
  }
  std::puts("noise: every result as expected");
}
