#pragma once
// Sums over a batch and over threads, on top of the kernels of one instruction set (docs/products.md).
#include <cstddef>
#include <cstdint>
#include <vector>

#include "aisec_fast/kernels.hpp"

namespace aisec_fast {

// total [outputs, inputs] becomes the sum over samples of weight * sum_t output_t input_t^T.
struct Product {
  ProductShape shape;
  const float *inputs, *outputs;
  float* total;
};
// All products of a step, which have one batch.
void weighted_products(const std::vector<Product>& products, const double* weights);

// [rows, columns], float32.
struct Matrix {
  const float* values;
  std::size_t columns;
};
// Of layers that read one position, whose samples' gradients are outer products: squares[k * rows + r] = the squared
// norm of row r of left[k] times that of right[k], for all k, and then those of right[k] alone.
void outer_squares(const std::vector<Matrix>& left, const std::vector<Matrix>& right, std::size_t rows,
                   double* squares);

// weight = scale * min(most, bound / (n + added), spread_bound / A), from sums of squares of n and of A; zero where one
// of the two is below `least`, or no number (docs/privacy.md, section 4).
struct WeightRule {
  double scale, bound, spread_bound, added, most, least;
};
// The squares, of `batch` samples each, are added in their order; so are those of A, which are the same if there are
// none. Says whether some weight is zero.
bool clip_weights(const std::vector<const double*>& squares, const std::vector<const double*>& spreads,
                  std::size_t batch, const WeightRule& rule, double* weights);

// Samples' gradients of one parameter, [batch, columns]; the total has its `outputs` first, if they are last here.
struct KeptRows {
  const float* rows;
  std::size_t columns, outputs;  // 0: in the total's order
  float* total;
};
// Totals become the sums over samples of weight * row: weighted_sum (clipping.hpp), in the order that totals have.
void weighted_rows(const std::vector<KeptRows>& kept, std::size_t batch, const double* weights);

// input and gradient [batch, length, width], mean and scale [batch, length]; weights and biases [batch, width].
void layer_norm_rows(const NormShape& shape, std::size_t batch, const float* input, const float* gradient,
                     const float* mean, const float* scale, float* weights, float* biases);

// What an Embedding saw, [batch, length] tokens, and the gradient of what it gave, [batch, length, width].
struct Lookups {
  std::size_t batch, length, width;
  const std::int64_t* tokens;
  const float* vectors;
  std::int64_t padding;  // tokens that are not trained; -1 for none
};
// squares[i] = the squared norm of sample i's gradient, whose row of a token is the sum of the vectors at that token.
void embedding_squares(const Lookups& lookups, double* squares);
// total [words, width] becomes the sum over samples of weight * gradient. Tokens are below `words`.
void embedding_total(const Lookups& lookups, const double* weights, std::size_t words, float* total);

}  // namespace aisec_fast
