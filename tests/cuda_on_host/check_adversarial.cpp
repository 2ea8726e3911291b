// Runs the adversarial steps on heap buffers of exact size, for AddressSanitizer, and compares with plain loops.
#include <cfenv>
#include <cmath>

#include "adversarial_entry.hpp"
#include "aisec_fast/adversarial_math.hpp"
#include "check.hpp"

using namespace aisec_fast;

namespace {

template <class T>
constexpr int type_of = static_cast<int>(sizeof(T) == 4 ? DType::float32 : DType::float64);

constexpr double step_size = 0.3, eps = 0.7;

template <class T>
struct Example {
  std::size_t rows, columns;
  Buffer<T> adv, x, gradient, out, expected;

  Example(std::size_t rows_, std::size_t columns_)
      : rows(rows_),
        columns(columns_),
        adv(rows * columns),
        x(rows * columns),
        gradient(rows * columns),
        out(rows * columns),
        expected(rows * columns) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = static_cast<T>(next_value() / 4.0);
      adv[i] = x[i] + static_cast<T>(next_value() / 2.0);
      gradient[i] = static_cast<T>(next_value());
      if (i % 97 == 5) adv[i] = static_cast<T>(NAN);
      if (i % 89 == 7) gradient[i] = static_cast<T>(NAN);
    }
    if (rows > 1 && columns > 0) gradient[columns] = static_cast<T>(INFINITY);
  }
  AdversarialStep step(T* result) {
    return {adv.data(), x.data(), gradient.data(), result, columns, step_size, eps, -0.75, 0.75};
  }

  // The order of docs/clipping.md; nothing here leaves the range of double.
  template <class Value>
  double norm(const Value& value) {
    double sums[16] = {};
    for (std::size_t begin = 0; begin < columns; begin += 1024) {
      double partial[16] = {};
      for (std::size_t c = begin; c < begin + 1024 && c < columns; ++c) partial[c % 16] += value(c) * value(c);
      sums[begin / 1024 % 16] += fold(partial);
    }
    return std::sqrt(fold(sums));
  }
};

// By the processor's rounding modes.
template <class T>
T plain_toward_zero(double value) {
  std::fesetround(FE_TOWARDZERO);
  const volatile double wide = value;
  const volatile T narrow = static_cast<T>(wide);
  std::fesetround(FE_TONEAREST);
  return narrow;
}

template <class T>
T plain_toward_x(T x, T reach) {
  std::fesetround(reach < 0 ? FE_UPWARD : FE_DOWNWARD);
  const volatile T a = x, b = reach;
  const volatile T sum = a + b;
  std::fesetround(FE_TONEAREST);
  return sum;
}

template <class T>
T plain_clamp(T value, double low, double high) {
  return static_cast<T>(std::fmin(std::fmax(static_cast<double>(value), low), high));
}

template <class T>
void check_linf(std::size_t rows, std::size_t columns) {
  Example<T> example(rows, columns);
  for (std::size_t i = 0; i < example.x.size(); ++i) {
    const T x = example.x[i], g = example.gradient[i];
    const T size = static_cast<T>(step_size), reach = plain_toward_zero<T>(eps);
    T moved = example.adv[i] + (g > 0 ? size : g < 0 ? -size : 0);
    if (std::isnan(moved)) moved = x;
    example.expected[i] =
        plain_clamp(plain_clamp(moved, plain_toward_x(x, -reach), plain_toward_x(x, reach)), -0.75, 0.75);
  }
  const AdversarialStep step = example.step(example.out.data()), in_place = example.step(example.adv.data());
  no_error(linf_step(type_of<T>, rows, &step));
  expect(example.out == example.expected, "linf_step", rows, columns);
  no_error(linf_step(type_of<T>, rows, &in_place));
  expect(example.adv == example.expected, "linf_step in place", rows, columns);
}

template <class T>
void check_l2(std::size_t rows, std::size_t columns) {
  Example<T> example(rows, columns);
  const double radius = eps * (1.0 - (0x1p-30 + static_cast<double>(columns) * 0x1p-52));
  for (std::size_t r = 0; r < rows; ++r) {
    const auto slope = [&](std::size_t c) { return static_cast<double>(example.gradient[r * columns + c]); };
    const double norm = example.norm([&](std::size_t c) { return std::isnan(slope(c)) ? 0.0 : slope(c); });
    const double move = std::isfinite(step_size / norm) ? step_size / norm : 0.0;
    const auto change = [&](std::size_t c) {
      const std::size_t i = r * columns + c;
      const double x = static_cast<double>(example.x[i]);
      const double moved = static_cast<double>(example.adv[i]) + (std::isfinite(slope(c)) ? move * slope(c) : 0.0);
      return std::isfinite(moved - x) ? moved - x : 0.0;
    };
    const double length = example.norm(change), factor = length <= radius ? 1.0 : radius / length;
    for (std::size_t c = 0; c < columns; ++c) {
      const std::size_t i = r * columns + c;
      example.expected[i] =
          plain_clamp(plain_toward_x(example.x[i], plain_toward_zero<T>(factor * change(c))), -0.75, 0.75);
    }
  }
  const AdversarialStep step = example.step(example.out.data()), in_place = example.step(example.adv.data());
  no_error(l2_step(type_of<T>, rows, &step));
  expect(example.out == example.expected, "l2_step", rows, columns);
  no_error(l2_step(type_of<T>, rows, &in_place));
  expect(example.adv == example.expected, "l2_step in place", rows, columns);
}

// The L1 and L0 steps have their plain loops in Python; here only memory, and what every result must keep.
template <class T>
void check_rows(const char* name, decltype(&l1_step) run, double radius, std::size_t rows, std::size_t columns) {
  Example<T> example(rows, columns);
  AdversarialStep step = example.step(example.out.data()), in_place = example.step(example.adv.data());
  step.eps = in_place.eps = radius;
  no_error(run(type_of<T>, rows, &step));
  no_error(run(type_of<T>, rows, &in_place));
  expect(example.adv == example.out, name, rows, columns);
  for (std::size_t r = 0; r < rows; ++r) {
    double total = 0.0, changed = 0.0;
    for (std::size_t i = r * columns; i < (r + 1) * columns; ++i) {
      total += std::fabs(static_cast<double>(example.out[i]) - static_cast<double>(example.x[i]));
      changed += example.out[i] != example.x[i] ? 1.0 : 0.0;
    }
    expect((run == &l1_step ? total : changed) <= radius, name, rows, columns);
  }
}

}  // namespace

int main() {
  for (const unsigned order : {0u, 1u}) {
    set_order(order);
    for (const std::size_t columns : {0u, 1u, 129u, 1025u})
      for (const std::size_t rows : {0u, 1u, 3u}) {
        check_linf<float>(rows, columns);
        check_linf<double>(rows, columns);
        check_l2<float>(rows, columns);
        check_l2<double>(rows, columns);
        check_rows<float>("l1_step", l1_step, eps, rows, columns);
        check_rows<double>("l1_step", l1_step, eps, rows, columns);
        check_rows<float>("l0_step", l0_step, 3.0, rows, columns);
        check_rows<double>("l0_step", l0_step, 3.0, rows, columns);
      }
  }
  check_linf<float>(3, 9'000);  // grid-stride
  check_l2<float>(37, 127);     // more rows than blocks
  check_l2<float>(3, 263'000);  // more block sums than a team fetches at once
  std::puts("adversarial: every result as expected");
}
