#include "noise.cuh"

#include "noise_body.hpp"
#include "queue.hpp"

namespace aisec_fast::cuda {
namespace {

template <Law law, class X, class Out>
__global__ void __launch_bounds__(block_threads, noise_blocks)
    add_noise_kernel(const X* x, Out* out, std::uint64_t count, NoiseCall call) {
  add_noise<law>(x, out, count, call);
}

template <Law law, class X>
__global__ void __launch_bounds__(block_threads, noise_blocks)
    add_float_kernel(const X* x, X* out, std::uint64_t count, NoiseCall call) {
  add_float<law>(x, out, count, call);
}

__global__ void __launch_bounds__(block_threads)
    random_words_kernel(std::uint64_t* out, std::uint64_t count, NoiseCall call, Domain domain) {
  random_words(out, count, call, domain);
}

template <class X>
__global__ void __launch_bounds__(block_threads)
    first_unfit_kernel(const X* x, std::uint64_t count, double granularity, unsigned long long* first) {
  first_unfit(x, count, granularity, first);
}

template <Law law, class X, class Out>
cudaError_t run_noise(const void* x, void* out, std::size_t count, const NoiseCall& call, cudaStream_t stream) {
  Queue queue(stream);
  queue.run_resident(noise_threads(count), noise_blocks, add_noise_kernel<law, X, Out>, static_cast<const X*>(x),
                     static_cast<Out*>(out), count, call);
  return queue.finish();
}

template <Law law, class X>
cudaError_t run_float(const void* x, void* out, std::size_t count, const NoiseCall& call, cudaStream_t stream) {
  Queue queue(stream);
  const std::size_t words = sizeof(X) == 4 ? count / 2 + count % 2 : count;
  queue.run_resident(noise_threads(words), noise_blocks, add_float_kernel<law, X>, static_cast<const X*>(x),
                     static_cast<X*>(out), count, call);
  return queue.finish();
}

template <class X>
cudaError_t run_unfit(const void* x, std::size_t count, double granularity, std::size_t& first, cudaStream_t stream) {
  Queue queue(stream);
  auto* found = queue.scratch<unsigned long long>(1);
  queue.fill_bytes(found, 0xff, 1);  // larger than any index
  queue.run(count, first_unfit_kernel<X>, static_cast<const X*>(x), count, granularity, found);
  const unsigned long long index = queue.read(found);
  first = index < count ? static_cast<std::size_t>(index) : count;
  return queue.finish();
}

}  // namespace

cudaError_t add_gaussian(DType x_type, const void* x, DType out_type, void* out, std::size_t count,
                         const NoiseCall& call, cudaStream_t stream) {
  const bool wide = out_type == DType::float64;
  if (x_type == DType::int64)
    return wide ? run_noise<Law::gaussian, std::int64_t, double>(x, out, count, call, stream)
                : run_noise<Law::gaussian, std::int64_t, float>(x, out, count, call, stream);
  return wide ? run_noise<Law::gaussian, double, double>(x, out, count, call, stream)
              : run_noise<Law::gaussian, float, float>(x, out, count, call, stream);
}

cudaError_t add_laplace(DType type, const void* x, void* out, std::size_t count, const NoiseCall& call,
                        cudaStream_t stream) {
  return type == DType::float64 ? run_noise<Law::laplace, double, double>(x, out, count, call, stream)
                                : run_noise<Law::laplace, float, float>(x, out, count, call, stream);
}

cudaError_t add_float(Law law, DType type, const void* x, void* out, std::size_t count, const NoiseCall& call,
                      cudaStream_t stream) {
  const bool wide = type == DType::float64;
  if (law == Law::laplace)
    return wide ? run_float<Law::laplace, double>(x, out, count, call, stream)
                : run_float<Law::laplace, float>(x, out, count, call, stream);
  return wide ? run_float<Law::gaussian, double>(x, out, count, call, stream)
              : run_float<Law::gaussian, float>(x, out, count, call, stream);
}

cudaError_t random_words(std::uint64_t* out, std::size_t count, const NoiseCall& call, std::uint32_t domain,
                         cudaStream_t stream) {
  Queue queue(stream);
  queue.run(noise_threads(count), random_words_kernel, out, count, call, static_cast<Domain>(domain));
  return queue.finish();
}

cudaError_t first_unfit(DType type, const void* x, std::size_t count, double granularity, std::size_t& first,
                        cudaStream_t stream) {
  return type == DType::float64 ? run_unfit<double>(x, count, granularity, first, stream)
                                : run_unfit<float>(x, count, granularity, first, stream);
}

}  // namespace aisec_fast::cuda
