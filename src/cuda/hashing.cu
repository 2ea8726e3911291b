#include "hashing.cuh"

#include <cstring>
#include <utility>

#include "aisec_fast/hashing_state.hpp"
#include "hashing_body.hpp"
#include "queue.hpp"

namespace aisec_fast::cuda {
namespace {

// Chunks are hashed 1 GiB at a time, so that the scratch memory for their chaining values stays at 48 MiB.
constexpr std::uint64_t slice_chunks = std::uint64_t{1} << 20;

template <class Unit>
__global__ void __launch_bounds__(block_threads)
    chunk_values_kernel(const Unit* data, std::uint64_t count, Blake3Mode mode, std::uint64_t counter,
                        std::uint32_t* values) {
  chunk_values(data, count, mode, counter, values);
}

__global__ void __launch_bounds__(block_threads)
    tree_values_kernel(const std::uint32_t* values, TreeLevel level, Blake3Mode mode, int height, std::uint32_t* tops,
                       Waiting* waiting) {
  tree_values(values, level, mode, height, tops, waiting);
}

class Slices {
 public:
  Slices(Queue& queue, Blake3State& state, std::uint64_t chunks) : queue_(queue), state_(state) {
    std::memcpy(mode_.key, state.key(), sizeof mode_.key);
    mode_.flags = state.mode();
    if (chunks == 0) return;
    const std::uint64_t most = chunks < slice_chunks ? chunks : slice_chunks;
    values_ = queue.scratch<std::uint32_t>(8 * most);
    tops_ = queue.scratch<std::uint32_t>(8 * ((most >> pass_levels) + 2));
    waiting_ = queue.scratch<Waiting>(1);
  }

  // Whole chunks; and the `behind` bytes that follow them go to `tail`, which saves waiting for the GPU once more.
  void absorb(const unsigned char* data, std::uint64_t chunks, unsigned char* tail, std::size_t behind) {
    const std::uint64_t first = state_.chunks();
    const auto place = reinterpret_cast<std::uintptr_t>(data);
    if (place % alignof(Quad) == 0)
      hash_chunks<Quad>(data, chunks);
    else if (place % alignof(std::uint32_t) == 0)
      hash_chunks<std::uint32_t>(data, chunks);
    else
      hash_chunks<unsigned char>(data, chunks);
    TreeLevel levels[most_levels];
    int height = 0;
    std::uint32_t *nodes = values_, *tops = tops_;
    for (TreeLevel level = {first, first + chunks}; level.count() > 0;) {
      queue_.run_blocks(pass_groups(level), tree_values_kernel, nodes, level, mode_, height, tops, waiting_);
      for (int up = 0; up < pass_levels; ++up, level = level.parents())
        if (level.count() > 0) levels[height++] = level;
      std::swap(nodes, tops);
    }
    queue_.copy(waiting_->tail, data + chunks * blake3_chunk_bytes, behind);
    const Waiting waiting = queue_.read(waiting_);
    if (!queue_.ok()) return;
    std::memcpy(tail, waiting.tail, behind);
    for (int i = 0; i < height; ++i)
      if (levels[i].left_waits()) state_.push(waiting.left[i], std::uint64_t{1} << i);
    for (int i = height; i-- > 0;)
      if (levels[i].right_waits()) state_.push(waiting.right[i], std::uint64_t{1} << i);
  }

 private:
  template <class Unit>
  void hash_chunks(const unsigned char* data, std::uint64_t chunks) {
    queue_.run_apart(chunks, chunk_values_kernel<Unit>, reinterpret_cast<const Unit*>(data), chunks, mode_,
                     state_.chunks(), values_);
  }

  Queue& queue_;
  Blake3State& state_;
  Blake3Mode mode_{};
  std::uint32_t *values_ = nullptr, *tops_ = nullptr;
  Waiting* waiting_ = nullptr;
};

}  // namespace

cudaError_t blake3_update(std::uint32_t* state, const unsigned char* data, std::size_t size, cudaStream_t stream) {
  if (size == 0) return cudaSuccess;
  std::uint32_t words[blake3_state_words];
  std::memcpy(words, state, sizeof words);
  Blake3State next(words);
  const Blake3Split split = next.split(size);
  unsigned char few[blake3_chunk_bytes];
  Queue queue(stream);
  queue.read(few, data, split.head);
  next.append(few, split.head);
  if (split.tail > 0) {
    next.flush();
    data += split.head;
    Slices slices(queue, next, split.chunks);
    for (std::uint64_t left = split.chunks; left > 0 && queue.ok();) {
      const std::uint64_t taken = left < slice_chunks ? left : slice_chunks;
      left -= taken;
      slices.absorb(data, taken, few, left == 0 ? split.tail : 0);
      data += taken * blake3_chunk_bytes;
    }
    if (split.chunks == 0) queue.read(few, data, split.tail);
    next.append(few, split.tail);
  }
  const cudaError_t status = queue.finish();
  if (status == cudaSuccess) std::memcpy(state, words, sizeof words);
  return status;
}

void blake3_output(const std::uint32_t* state, unsigned char* out, std::size_t size, std::uint64_t seek) {
  const auto whole_blocks = [](const Blake3Node& root, std::uint64_t index, std::size_t count, unsigned char* to) {
    for (std::size_t i = 0; i < count; ++i) {
      std::uint32_t words[16];
      stream_block(words, root, index + i);
      std::memcpy(to + i * sizeof words, words, sizeof words);
    }
  };
  write_stream(blake3_root(state), out, size, seek, whole_blocks);
}

}  // namespace aisec_fast::cuda
