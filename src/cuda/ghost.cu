#include "ghost.cuh"

#include "ghost_body.hpp"
#include "queue.hpp"

namespace aisec_fast::cuda {
namespace {

__global__ void __launch_bounds__(block_threads)
    gram_squares_kernel(GramShape shape, std::uint64_t batch, const float* inputs, const float* outputs,
                        double* squares, double* bounds) {
  gram_squares(shape, batch, inputs, outputs, squares, bounds);
}

__global__ void __launch_bounds__(block_threads)
    conv_gram_squares_kernel(ConvShape shape, std::uint64_t batch, const float* activation, const float* gradient,
                             double* squares, double* bounds) {
  conv_gram_squares(shape, batch, activation, gradient, squares, bounds);
}

__global__ void __launch_bounds__(block_threads)
    conv_rows_kernel(ConvShape shape, std::uint64_t batch, const float* activation, const float* gradient, float* rows,
                     double* squares, double* bounds) {
  conv_rows(shape, batch, activation, gradient, rows, squares, bounds);
}

}  // namespace

cudaError_t gram_squares(const GramShape& shape, std::size_t batch, const float* inputs, const float* outputs,
                         double* squares, double* bounds, cudaStream_t stream) {
  Queue queue(stream);
  queue.run(batch * block_threads, gram_squares_kernel, shape, batch, inputs, outputs, squares, bounds);
  return queue.finish();
}

cudaError_t conv_gram_squares(const ConvShape& shape, std::size_t batch, const float* activation, const float* gradient,
                              double* squares, double* bounds, cudaStream_t stream) {
  Queue queue(stream);
  queue.run(batch * block_threads, conv_gram_squares_kernel, shape, batch, activation, gradient, squares, bounds);
  return queue.finish();
}

cudaError_t conv_rows(const ConvShape& shape, std::size_t batch, const float* activation, const float* gradient,
                      float* rows, double* squares, double* bounds, cudaStream_t stream) {
  Queue queue(stream);
  queue.run(batch * block_threads, conv_rows_kernel, shape, batch, activation, gradient, rows, squares, bounds);
  return queue.finish();
}

}  // namespace aisec_fast::cuda
