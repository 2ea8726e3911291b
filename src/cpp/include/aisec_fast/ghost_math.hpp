#pragma once
// Constants and bounds shared by CPU and CUDA kernels of the ghost family. docs/ghost.md derives the bounds.
#include <cmath>
#include <cstddef>

#include "aisec_fast/host_device.hpp"
#include "aisec_fast/kernels.hpp"

namespace aisec_fast {
namespace {

constexpr std::size_t lane_roundings = 64;  // products that a lane of a dot product adds in float32
constexpr std::size_t channel_chunk = 64;   // the same for channels, whose sums are then added in float32, too

// gamma_n of n roundings to float32, rounded up.
AISEC_HD double roundoff(double roundings) {
  return roundings * 0x1p-24 / (1.0 - roundings * 0x1p-24) * (1.0 + 0x1p-50);
}

// An upper bound of max(|v|, 2^-50), from |v|^2 as it was computed in float32 with so many roundings.
AISEC_HD double length_bound(double square, double roundings) {
  return sqrt((square + 0x1p-100) / (1.0 - roundoff(roundings))) * (1.0 + 0x1p-50);
}

// Roundings on the way of a product into its sum, of `width` products; one more for what is lost to underflow and to
// float64.
AISEC_HD double dot_roundings(std::size_t width) { return static_cast<double>(width < 68 ? width : 68) + 1.0; }
AISEC_HD double channel_roundings(std::size_t channels, std::size_t taps) {
  const std::size_t chunks = channels / channel_chunk;
  return static_cast<double>((channels < channel_chunk ? channels : channel_chunk) + chunks + taps) + 1.0;
}

// What float64 may lose in a bound that is a sum of so many terms, none negative: a factor.
AISEC_HD double exact_margin(std::size_t terms) { return 1.0 + (static_cast<double>(terms) + 16.0) * 0x1p-52; }

// What a sample's results are: both infinite if either is not finite.
AISEC_HD SampleNorm finished(double square, double bound) {
  const bool finite = fabs(square) <= 0x1.fffffffffffffp+1023 && bound <= 0x1.fffffffffffffp+1023;  // NaN fails both
  return finite ? SampleNorm{square, bound} : SampleNorm{HUGE_VAL, HUGE_VAL};
}

}  // namespace
}  // namespace aisec_fast
