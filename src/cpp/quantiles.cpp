#include "aisec_fast/quantiles.hpp"

#include <bit>
#include <limits>

namespace aisec_fast {
namespace {

constexpr QuantileRow rows[2][quantile_rows] = {
#include "quantiles.inc"
};

struct FloatTable {
  FloatRow nan, row[float_rows];
};

constexpr FloatTable narrowed(const QuantileRow (&wide)[quantile_rows]) {
  FloatTable table{};
  for (float& c : table.nan.c) c = std::numeric_limits<float>::quiet_NaN();
  for (int i = 0; i < float_rows; ++i)  // the first octave and the row of NaN are left out
    for (int k = 0; k < 4; ++k)
      table.row[i].c[k] = static_cast<float>(std::bit_cast<double>(wide[i + 64 + (i + 64 >= deep_rows)].c[k]));
  return table;
}

constexpr FloatTable scaled(const FloatTable& narrow) {  // exact: no number comes near the least normal one
  FloatTable table = narrow;
  float unit = 1.0f;
  for (int i = 0; i < float_rows; ++i) {
    if (i != 0 && i % 64 == 0) unit *= 0.5f;
    table.row[i].c[1] *= unit;
    table.row[i].c[2] *= unit * unit;
    table.row[i].c[3] *= unit * unit * unit;
  }
  return table;
}

alignas(64) constexpr FloatTable narrow[2] = {narrowed(rows[0]), narrowed(rows[1])};
alignas(64) constexpr FloatTable scaled_narrow[2] = {scaled(narrow[0]), scaled(narrow[1])};

}  // namespace

alignas(64) const QuantileRow quantile_tables[2][quantile_rows] = {
#include "quantiles.inc"
};

const FloatRow* const float_tables[2] = {narrow[0].row, narrow[1].row};
const FloatRow* const scaled_tables[2] = {scaled_narrow[0].row, scaled_narrow[1].row};

}  // namespace aisec_fast
