#include "aisec_fast/quantiles.hpp"

namespace aisec_fast {

alignas(64) const QuantileRow quantile_tables[2][quantile_rows] = {
#include "quantiles.inc"
};

}  // namespace aisec_fast
