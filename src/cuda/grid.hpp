#pragma once
// How a thread finds its share of the work. Every kernel of ours is a grid-stride loop: any number of blocks gives the
// same result, so the launch chooses it by the size of the GPU, and indices have 64 bits whatever the grid.
#include <cstdint>

namespace aisec_fast::cuda {
namespace {

constexpr unsigned block_threads = 256;
constexpr unsigned warp_threads = 32;

// Some threads of a launch that share one piece of work: this one's first index, and the step to its next.
struct Span {
  std::uint64_t first, step;
};

__device__ inline std::uint64_t first_index() { return std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ inline std::uint64_t index_step() { return std::uint64_t{gridDim.x} * blockDim.x; }

__device__ inline Span whole_grid() { return {first_index(), index_step()}; }

}  // namespace
}  // namespace aisec_fast::cuda
