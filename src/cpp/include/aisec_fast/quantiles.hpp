#pragma once
// The tables of quantiles (docs/noise.md section 4), as bit patterns of binary64.
#include <cstdint>

namespace aisec_fast {

enum class Law : std::uint32_t { gaussian = 0, laplace = 1 };

struct alignas(32) QuantileRow {
  std::uint64_t c[4];
};

constexpr int deep_rows = 768;  // of u in [2^-32, 2^-20); a row of NaN follows them
constexpr int quantile_rows = 2050;

// The rows of u in [2^-31, 1] in binary32 and without c4, for float mode.
struct alignas(16) FloatRow {
  float c[4];
};
constexpr int float_rows = quantile_rows - 1 - 64;

// In memory of the CPU, a float row of NaN before each table; the GPU has its own.
extern const QuantileRow quantile_tables[2][quantile_rows];
extern const FloatRow* const float_tables[2];
// The same with 2^-ko c_k in octave o (v from 2^o on), for v's distance from the middle of its cell as it is.
extern const FloatRow* const scaled_tables[2];

}  // namespace aisec_fast
