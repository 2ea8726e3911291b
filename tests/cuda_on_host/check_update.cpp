// Runs the optimizers' steps on heap buffers of exact size, for AddressSanitizer, and compares with plain formulas.
#include <cmath>
#include <vector>

#include "check.hpp"
#include "update_entry.hpp"

using namespace aisec_fast;

namespace {

template <class T>
constexpr int type_of = static_cast<int>(sizeof(T) == 4 ? DType::float32 : DType::float64);

const SgdStep sgd{8.0, 0.1, 0.9, 0.25, 0.01, true, false, false};
const AdamStep adam{8.0, 0.9, 0.99, 0.1, 0.5, 1e-8, 0.01, 1.0, true};

template <class T>
struct Example {
  Buffer<T> sums, params, first, second;

  explicit Example(std::size_t size) : sums(size), params(size), first(size), second(size) {
    for (std::size_t i = 0; i < size; ++i) {
      sums[i] = static_cast<T>(next_value());
      params[i] = static_cast<T>(next_value());
      first[i] = static_cast<T>(next_value());
      second[i] = static_cast<T>(next_value() + 3.0);
    }
  }
  UpdateItem item(double scale) {
    return {{sums.data(), params.data(), {first.data(), second.data(), nullptr}},
            sums.size(),
            {{1, 2, 3, 4, 5, 6, 7, 8}, scale, 0x1p-20, Generator::chacha}};
  }
};

template <class T>
void copy(Buffer<T>& to, Buffer<T>& from) {
  for (std::size_t i = 0; i < from.size(); ++i) to[i] = from[i];
}

// Without noise: the formulas. With noise the sums are those of the mean alone.
template <class T>
void check_sgd(std::size_t size, double scale) {
  Example<T> run(size);
  Buffer<T> sums(size), params(size), buffers(size);
  copy(sums, run.sums);
  copy(params, run.params);
  copy(buffers, run.first);
  UpdateItem mean = run.item(scale), item = mean;
  mean.arrays.sums = sums.data();
  no_error(noisy_mean(type_of<T>, &mean, 1, sgd.divisor));
  no_error(sgd_step(type_of<T>, &item, 1, &sgd));
  for (std::size_t i = 0; i < size; ++i) {
    const T step = sums[i] + static_cast<T>(sgd.weight_decay) * params[i];
    buffers[i] = static_cast<T>(sgd.momentum) * buffers[i] + static_cast<T>(1.0 - sgd.dampening) * step;
    params[i] -= static_cast<T>(sgd.lr) * (step + static_cast<T>(sgd.momentum) * buffers[i]);
  }
  expect(run.sums == sums && run.params == params && run.first == buffers, "sgd", size);
}

template <class T>
void check_adam(std::size_t size, double scale) {
  Example<T> run(size);
  Buffer<T> sums(size), params(size), averages(size), squares(size);
  copy(sums, run.sums);
  copy(params, run.params);
  copy(averages, run.first);
  copy(squares, run.second);
  UpdateItem mean = run.item(scale), item = mean;
  mean.arrays.sums = sums.data();
  no_error(noisy_mean(type_of<T>, &mean, 1, adam.divisor));
  no_error(adam_step(type_of<T>, &item, 1, &adam));
  for (std::size_t i = 0; i < size; ++i) {
    const T gradient = -sums[i] + static_cast<T>(adam.weight_decay) * params[i];
    averages[i] += static_cast<T>(1.0 - adam.beta1) * (gradient - averages[i]);
    squares[i] = static_cast<T>(adam.beta2) * squares[i] + (static_cast<T>(1.0 - adam.beta2) * gradient) * gradient;
    params[i] -= (static_cast<T>(adam.step_size) * averages[i]) /
                 (std::sqrt(squares[i]) / static_cast<T>(adam.root_correction) + static_cast<T>(adam.eps));
  }
  expect(run.sums == sums && run.params == params && run.first == averages && run.second == squares, "adam", size);
}

}  // namespace

int main() {
  for (const std::size_t size : {0u, 1u, 127u, 129u, 9'000u})
    for (const double scale : {0.0, 0x1.8p20}) {
      check_sgd<float>(size, scale);
      check_sgd<double>(size, scale);
      check_adam<float>(size, scale);
      check_adam<double>(size, scale);
    }
  std::puts("update: every result as expected");
}
