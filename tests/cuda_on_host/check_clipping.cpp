// Runs every clipping kernel on heap buffers of exact size, for AddressSanitizer, and compares with plain loops.
#include <cmath>
#include <vector>

#include "aisec_fast/clipping_math.hpp"
#include "check.hpp"
#include "clipping_entry.hpp"

using namespace aisec_fast;

namespace {

template <class T>
constexpr DType dtype_of = sizeof(T) == 4   ? DType::float32
                           : sizeof(T) == 8 ? DType::float64
                                            : DType::bfloat16;

template <class T>
T narrow(double value) {
  return static_cast<T>(value);
}
template <>
Bfloat16 narrow<Bfloat16>(double value) {
  const float wide = static_cast<float>(value);
  std::uint32_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  return {static_cast<std::uint16_t>(bits >> 16)};
}

// Two arrays of one call; the second has rows that lie apart.
template <class T>
struct Example {
  std::size_t rows, columns[2], stride[2];
  Buffer<T> first, second;
  Gradients arrays[2];

  Example(std::size_t rows_, std::size_t columns_, double scale)
      : rows(rows_),
        columns{columns_, 3},
        stride{columns_, 5},
        first(rows_ * columns_),
        second(rows_ == 0 ? 0 : (rows_ - 1) * 5 + 3) {
    for (Buffer<T>* buffer : {&first, &second})
      for (std::size_t i = 0; i < buffer->size(); ++i) (*buffer)[i] = narrow<T>(next_value() * scale);
    arrays[0] = {first.data(), static_cast<std::ptrdiff_t>(stride[0]), columns[0]};
    arrays[1] = {second.data(), static_cast<std::ptrdiff_t>(stride[1]), columns[1]};
    if (rows > 2) at(1, 2, 0) = narrow<T>(INFINITY);
  }
  T& at(std::size_t array, std::size_t row, std::size_t column) {
    return (array == 0 ? first : second)[row * stride[array] + column];
  }
  double value(std::size_t array, std::size_t row, std::size_t column) { return widen(at(array, row, column)); }
  CBatch call() const { return {static_cast<std::int32_t>(dtype_of<T>), rows, 2, arrays}; }

  // The order of docs/clipping.md.
  double total(std::size_t row, double multiplier) {
    double total = 0.0;
    for (std::size_t a = 0; a < 2; ++a) {
      double sums[16] = {};
      for (std::size_t begin = 0; begin < columns[a]; begin += 1024) {
        double partial[16] = {};
        for (std::size_t c = begin; c < begin + 1024 && c < columns[a]; ++c) {
          const double scaled = value(a, row, c) * multiplier;
          partial[c % 16] += scaled * scaled;
        }
        sums[begin / 1024 % 16] += fold(partial);
      }
      total += fold(sums);
    }
    return total;
  }
  double norm(std::size_t row) {
    const double plain = total(row, 1.0);
    if (sizeof(T) != 8 || (plain >= 0x1p-900 && plain < INFINITY)) return std::sqrt(plain);
    const double multiplier = plain == INFINITY ? 0x1p-600 : 0x1p600;
    return std::sqrt(total(row, multiplier)) / multiplier;
  }
};

double factor_of(double norm, double max_norm) {
  return norm <= max_norm ? 1.0 : std::isfinite(norm) ? max_norm / norm : 0.0;
}

template <class T, class Out>
void check_sums(Example<T>& example, double max_norm) {
  const CBatch call = example.call();
  Buffer<double> expected_norms(example.rows), measured(example.rows), again(example.rows), weights(example.rows);
  for (std::size_t r = 0; r < example.rows; ++r) {
    expected_norms[r] = example.norm(r);
    weights[r] = factor_of(expected_norms[r], max_norm);
  }
  no_error(norms(&call, measured.data()));
  expect(measured == expected_norms, "norms", example.rows, example.columns[0]);

  Buffer<Out> out[2] = {Buffer<Out>(example.columns[0]), Buffer<Out>(example.columns[1])};
  Buffer<Out> expected[2] = {Buffer<Out>(example.columns[0]), Buffer<Out>(example.columns[1])};
  for (std::size_t a = 0; a < 2; ++a)
    for (std::size_t c = 0; c < example.columns[a]; ++c) {
      double sum = 0.0;
      for (std::size_t r = 0; r < example.rows; ++r)
        if (weights[r] != 0.0) sum += weights[r] * example.value(a, r, c);
      expected[a][c] = static_cast<Out>(sum);
    }
  void* const outs[2] = {out[0].data(), out[1].data()};
  no_error(weighted_sum(&call, weights.data(), outs));
  expect(out[0] == expected[0] && out[1] == expected[1], "weighted_sum", example.rows, example.columns[0]);
  for (Buffer<Out>& one : out) std::memset(one.data(), 0, one.size() * sizeof(Out));
  no_error(clip_and_sum(&call, max_norm, outs, again.data()));
  expect(again == expected_norms, "norms of clip_and_sum", example.rows, example.columns[0]);
  expect(out[0] == expected[0] && out[1] == expected[1], "clip_and_sum", example.rows, example.columns[0]);
}

template <class T>
void check_lattice(Example<T>& example, double max_norm, std::int64_t limit) {
  const double granularity = max_norm * 0x1p-20;
  const CBatch call = example.call();
  Buffer<std::int64_t> out[2] = {Buffer<std::int64_t>(example.columns[0]), Buffer<std::int64_t>(example.columns[1])};
  std::vector<std::int64_t> expected[2] = {std::vector<std::int64_t>(example.columns[0]),
                                           std::vector<std::int64_t>(example.columns[1])};
  for (std::size_t r = 0; r < example.rows; ++r) {
    const double factor = factor_of(example.norm(r), max_norm) * (1.0 - 0x1p-30) / granularity;
    if (factor == 0.0) continue;
    std::int64_t squares = 0;
    const auto integer = [&](std::size_t a, std::size_t c) {
      return static_cast<std::int64_t>(example.value(a, r, c) * factor);
    };
    for (std::size_t a = 0; a < 2; ++a)
      for (std::size_t c = 0; c < example.columns[a]; ++c) squares += integer(a, c) * integer(a, c);
    for (std::size_t a = 0; a < 2 && squares <= limit; ++a)
      for (std::size_t c = 0; c < example.columns[a]; ++c) expected[a][c] += integer(a, c);
  }
  Buffer<double> measured(example.rows);
  std::int64_t* const outs[2] = {out[0].data(), out[1].data()};
  no_error(lattice_sum(&call, max_norm, granularity, limit, outs, measured.data()));
  for (std::size_t a = 0; a < 2; ++a)
    for (std::size_t c = 0; c < example.columns[a]; ++c)
      expect(out[a][c] == expected[a][c], "lattice_sum", example.rows, example.columns[0]);
}

template <class T, class Out>
void check(std::size_t rows, std::size_t columns, double scale) {
  Example<T> example(rows, columns, scale);
  const double max_norm = scale * std::sqrt(static_cast<double>(columns + 3));  // some rows are clipped, some are not
  check_sums<T, Out>(example, max_norm);
  check_lattice(example, max_norm, std::int64_t{1} << 40);
  check_lattice(example, max_norm, std::int64_t{9} << 36);  // rows that the last check drops
}

}  // namespace

int main() {
  for (const unsigned order : {0u, 1u}) {
    set_order(order);
    for (const std::size_t columns : {0u, 1u, 129u, 1025u})
      for (const std::size_t rows : {0u, 1u, 3u}) {
        check<float, float>(rows, columns, 1.0);
        check<Bfloat16, float>(rows, columns, 1.0);
        check<double, double>(rows, columns, 1e-250);  // squares vanish
        check<double, double>(rows, columns, 1e250);   // squares overflow
      }
  }
  check<float, float>(37, 127, 1.0);        // more rows than blocks
  check<Bfloat16, float>(3, 263'000, 1.0);  // more block sums than a team fetches at once; grid-stride everywhere
  set_processors(7, ~0u, 90);
  for (const unsigned order : {0u, 1u}) {
    set_order(order);
    check<float, float>(17, 5400, 1.0);  // rows that are read once; of the second array, value by value
    check<Bfloat16, float>(17, 5400, 1.0);
  }
  std::puts("clipping: every result as expected");
}
