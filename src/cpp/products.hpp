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
// squares[m * rows + r] = the squared norm of row r of matrix m.
void row_squares(const std::vector<Matrix>& matrices, std::size_t rows, double* squares);

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
