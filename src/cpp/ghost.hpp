#pragma once
// Norms of per-sample gradients over samples and threads, on top of the kernels of one instruction set.
#include <cstddef>

#include "aisec_fast/kernels.hpp"

namespace aisec_fast {

// inputs [batch, length, inputs], outputs [batch, length, outputs]; squares and bounds [batch];
// sums [batch, outputs] of the outputs over the tokens, or null.
void gram_squares(const GramShape& shape, std::size_t batch, const float* inputs, const float* outputs, double* squares,
                  double* bounds, float* sums);
// Of the gradient over its positions, [batch, out_channels], and their squares, [batch]; null where they are not
// wanted.
struct ConvSums {
  float* sums;
  double* squares;
};
// activation [batch, channels, rows, columns], gradient [batch, out_channels, out_rows, out_columns].
void conv_gram_squares(const ConvShape& shape, std::size_t batch, const float* activation, const float* gradient,
                       double* squares, double* bounds);
// rows [batch, out_channels, channels / groups, kernel...], or [batch, channels, kernel..., out_channels] if the taps
// come first, for one group; bounds may be null.
void conv_rows(const ConvShape& shape, std::size_t batch, const float* activation, const float* gradient, float* rows,
               bool taps_first, double* squares, double* bounds, const ConvSums& added);

}  // namespace aisec_fast
