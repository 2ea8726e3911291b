#pragma once
// The table of CPU kernels. Each instruction set fills one; nothing but plain pointers crosses the boundary, so no
// vector type and no inline function is shared between objects compiled for different instruction sets.
#include <cstddef>
#include <cstdint>

namespace aisec_fast {

enum class DType { float32, float64, bfloat16, int64, uint64, uint8, uint32 };

// Where the words of a call come from: ChaCha, or AES by instructions for one block or for two.
enum class Generator : std::uint32_t { chacha, aes, vaes };

// What a noise kernel needs beside its arrays. `scale` is sigma / granularity or scale / granularity.
struct NoiseCall {
  std::uint32_t key[8];
  double scale;
  double granularity;
  Generator generator;
};

// x and out are whole arrays; samples first <= i < last are written. `first` is a multiple of noise_group. `soon`:
// arrays of x's type, closed by a null pointer, that the caller reads next at these places: they come into the cache
// meanwhile.
using AddNoise = void (*)(const void* x, void* out, std::size_t first, std::size_t last, const NoiseCall& call,
                          const void* const* soon);
constexpr const void* nothing_soon[] = {nullptr};
// Index of the first x[i], i < count, that is not finite or has |x / granularity| > 2^62; count if there is none.
using FirstUnfit = std::size_t (*)(const void* x, std::size_t count, double granularity);

struct NoiseKernels {
  // Words first, ..., last - 1 of the stream; `out` has room for these alone. `first` is a multiple of 128.
  void (*random_words)(std::uint64_t* out, std::size_t first, std::size_t last, const NoiseCall& call,
                       std::uint32_t domain);
  AddNoise gaussian_float32, gaussian_float64;                  // float data
  AddNoise gaussian_lattice_float32, gaussian_lattice_float64;  // int64 lattice integers in, floats out
  AddNoise laplace_float32, laplace_float64;
  // Float mode: `scale` is sigma or Laplace's scale itself, `granularity` is not used.
  AddNoise float_gaussian_float32, float_gaussian_float64, float_laplace_float32, float_laplace_float64;
  FirstUnfit unfit_float32, unfit_float64;
};

// `count` rows of one dtype, `stride` values apart, and what will be read next: as many rows, `next_stride` bytes
// apart. Kernels fetch those into the cache while they compute; `passing` rows will not be read again, and should not
// drive others from the cache. Nothing but time depends on either.
struct RowSet {
  const void* rows;
  std::ptrdiff_t stride;
  std::size_t count;
  const char* next_rows;
  std::ptrdiff_t next_stride;
  bool passing;
};

// Whole tiles of norm_block columns that lie side by side: of rows to add with their weights, and of as many to
// measure.
struct RowRun {
  const void *added, *measured;
  std::ptrdiff_t stride;  // from row to row, in values
  std::size_t rows, tiles;
  bool passing;  // the added rows
};

// Kernels over at most norm_block columns. A weight (or factor) of zero selects the row away: its values are not read.
struct ClippingKernels {
  void (*block_sums)(const RowSet& rows, std::size_t columns, double multiplier, double* sums);
  void (*add_weighted)(const RowSet& rows, const double* weights, std::size_t columns, double* total);
  // add_weighted of some rows, all of weights other than zero, and block_sums of the others, side by side.
  void (*add_and_measure)(const RowRun& run, const double* weights, double* total, double* sums);
  // Adds the rows' integers to total and the sums of their squares to `squares`; small: each such sum is below 2^53.
  void (*add_lattice)(const RowSet& rows, const double* factors, bool small, std::size_t columns, std::int64_t* total,
                      std::int64_t* squares);
  // The same (small) of some rows, all of factors other than zero, and block_sums of the others, side by side.
  void (*add_lattice_and_measure)(const RowRun& run, const double* factors, std::int64_t* total, std::int64_t* squares,
                                  double* sums);
};

// A node of BLAKE3's tree before its compression: `counter` is the chunk's number, 0 for a parent.
struct Blake3Node {
  std::uint32_t chaining[8], message[16];
  std::uint64_t counter;
  std::uint32_t length, flags;
};

// Blocks of one node in their order: some of a chunk's, or a parent's only one.
struct Blake3Chain {
  const unsigned char* data;  // blocks * 64 bytes, zero beyond the last block's length
  std::size_t blocks;
  std::uint64_t counter;
  std::uint32_t last_length;        // bytes of the last block
  std::uint32_t mode, first, last;  // flags of all blocks, more of the first and of the last
};

struct HashingKernels {
  // What `chaining`, 8 words, becomes by these blocks.
  void (*blake3_chain)(std::uint32_t* chaining, const Blake3Chain& chain);
  // Chaining values (8 words each) of `count` whole chunks; the first has number `counter`. `mode` is the hash's flags.
  void (*blake3_chunks)(const unsigned char* data, std::size_t count, const std::uint32_t* key, std::uint32_t mode,
                        std::uint64_t counter, std::uint32_t* out);
  // Chaining values of `count` parents of 2 * count children. `out` may be `children`.
  void (*blake3_parents)(const std::uint32_t* children, std::size_t count, const std::uint32_t* key, std::uint32_t mode,
                         std::uint32_t* out);
  // `count` blocks of 64 bytes of a root's stream, from block `index` on.
  void (*blake3_stream)(const Blake3Node& root, std::uint64_t index, std::size_t count, unsigned char* out);
  // Blocks of 64 bytes into SHA-256's chaining value.
  void (*sha256_blocks)(std::uint32_t* state, const unsigned char* data, std::size_t count);
  // The same for `streams` independent chaining values, `count` blocks of each, computed side by side: one alone leaves
  // most of a core idle. sha256_side_by_side is how many keep a core busy; any number is taken.
  void (*sha256_streams)(std::uint32_t* const* states, const unsigned char* const* data, std::size_t count,
                         std::size_t streams);
  std::size_t sha256_side_by_side;
};

// Many records in one buffer: record i is bytes starts[i] to ends[i] - 1 of data. Nothing else of data is read, so
// there may be anything, or no memory, between two of them.
struct Records {
  const unsigned char* data;
  const void *starts, *ends;
  bool wide;           // they are int64, else uint32
  unsigned char* out;  // digest i is bytes i * size to (i + 1) * size - 1
  std::size_t size;
};

// Digests of records first, ..., last - 1 (docs/hashing-records.md).
struct RecordKernels {
  // Plain or keyed BLAKE3, as `mode` says, of records of at most a chunk, and digests of at most blake3_block_bytes.
  // The longer records are left alone; returns how many they are.
  std::size_t (*blake3)(const Records& records, const std::uint32_t* key, std::uint32_t mode, std::size_t first,
                        std::size_t last);
  // SHA-256 from the chaining value `inner`, which has absorbed nothing or, if there is an `outer` (HMAC), one block.
  // `outer` absorbs the digest after the block that it has absorbed.
  void (*sha256)(const Records& records, const std::uint32_t* inner, const std::uint32_t* outer, std::size_t first,
                 std::size_t last);
  // Digests of 8 or 16 bytes.
  void (*siphash24)(const Records& records, const std::uint64_t* key, std::size_t first, std::size_t last);
};

// One step over arrays of one dtype, [rows, columns]; out may be adv. low and high are values of the dtype.
struct AdversarialStep {
  const void *adv, *x, *gradient;
  void* out;
  std::size_t columns;
  double step_size, eps, low, high;
};

// Writes values (linf) or rows (the others) first, ..., last - 1.
using AdversarialKernel = void (*)(const AdversarialStep& step, std::size_t first, std::size_t last);

struct AdversarialKernels {
  AdversarialKernel linf_float32, linf_float64, l2_float32, l2_float64, l1_float32, l1_float64, l0_float32, l0_float64;
};

// Exact integers and decisions (docs/noise-integers.md). Each kernel reads the words of `count` samples, writes their
// values and into `open` the positions of those that their words leave open, and returns how many these are.
// How |Z| follows from Q(u) at a large scale, mantissa / 2^(64 - fraction) exactly: rint(scale Q + offset + slope |Z|).
struct WideScale {
  std::uint64_t mantissa;  // below 2^53
  unsigned fraction;       // 14 to 34
  double scale, offset, slope;
};

struct IntegerKernels {
  std::size_t (*signed_by_table)(const std::uint64_t* words, std::size_t count, const std::uint64_t* thresholds,
                                 const std::uint32_t* guide, unsigned shift, std::int64_t* out, std::uint32_t* open);
  std::size_t (*signed_by_quantile)(const std::uint64_t* words, std::size_t count, const double* rows, double scale,
                                    double offset, double limit, std::int64_t* out, std::uint32_t* open);
  // Decides what it can of the open samples and returns how many are still open.
  std::size_t (*signed_by_wide_quantile)(const std::uint64_t* words, const std::int64_t* rows, const WideScale& by,
                                         std::int64_t* out, std::uint32_t* open, std::size_t opened);
  std::size_t (*decisions)(const std::uint64_t* words, std::size_t count, std::uint64_t threshold, std::uint8_t* out,
                           std::uint32_t* open);
  // Integers below bound, bound + growth, bound + 2 growth, ...; bounded_wide reads two words each.
  std::size_t (*bounded)(const std::uint64_t* words, std::size_t count, std::int64_t low, std::uint64_t bound,
                         std::uint64_t growth, std::int64_t* out, std::uint32_t* open);
  std::size_t (*bounded_wide)(const std::uint64_t* words, std::size_t count, std::int64_t low, std::uint64_t bound,
                              std::int64_t* out, std::uint32_t* open);
};

// One parameter of a step (docs/update.md): arrays of one dtype and size. `sums` becomes the mean gradient.
struct UpdateArrays {
  void *sums, *params;
  void* state[3];  // sgd: the momentum buffer; adam: exp_avg, exp_avg_sq, max_exp_avg_sq; nullptr for what is not used
};

// One parameter with its own key; `noise.scale` is 0 where no noise is added.
struct UpdateItem {
  UpdateArrays arrays;
  std::size_t size;
  NoiseCall noise;
};

struct SgdStep {
  double divisor, lr, momentum, dampening, weight_decay;
  bool nesterov, maximize, first;
};

// `decay` multiplies the parameters (AdamW), `weight_decay` is added to the gradient (Adam).
struct AdamStep {
  double divisor, beta1, beta2, step_size, root_correction, eps, weight_decay, decay;
  bool maximize;
};

// Values first, ..., last - 1 of whole arrays.
struct UpdateKernels {
  void (*mean)(const UpdateArrays& arrays, double divisor, std::size_t first, std::size_t last);
  void (*sgd)(const UpdateArrays& arrays, const SgdStep& step, std::size_t first, std::size_t last);
  void (*adam)(const UpdateArrays& arrays, const AdamStep& step, std::size_t first, std::size_t last);
};

// Per-sample gradients of layers (docs/ghost.md), from one sample's float32 inputs and output gradients.
struct GramShape {
  std::size_t length, inputs, outputs;  // tokens, and the values of each in [length, inputs] and [length, outputs]
};

// [channels, rows, columns] to [out_channels, out_rows, out_columns]; `before` is the zero padding above and to the
// left.
struct ConvShape {
  std::size_t channels, rows, columns, out_channels, out_rows, out_columns;
  std::size_t kernel[2], stride[2], before[2], dilation[2], groups;
};

// Of a sample's gradient: its squared norm, and an upper bound of the norm of the sum of its terms' absolute values.
struct SampleNorm {
  double square, bound;
};

// How a sample's gradient lies in memory: [out_channels][taps], the weight's own order; or, of one group,
// [taps][out_channels], which takes no transpositions. Memory after the rows is fetched, that of the next sample's; but
// `passing` rows go by the caches, for who will not read them soon: aligned to 64 bytes, of whole lines of outputs.
enum class RowOrder { outputs, taps, passing_taps };

// `memory` is scratch: gram_bytes for gram_row, and as many floats as the functions say for the convolutions; aligned
// to 64 bytes.
struct GhostKernels {
  std::size_t gram_bytes;
  // The part of the square that pairs of tokens (s, t), s <= t, give whose s is in block `row` of gram_block tokens;
  // lengths[s] = an upper bound of |input s| |output s| for these s; sums [outputs], if not null, the sum of output s
  // over them. `next_inputs`, if not null, are those of the sample that the caller will come to next.
  double (*gram_row)(const GramShape& shape, const float* inputs, const float* outputs, std::size_t row,
                     const float* next_inputs, void* memory, double* lengths, float* sums);
  std::size_t (*conv_rows_scratch)(const ConvShape& shape);
  // Without a bound, which takes time of its own, if it is not `bounded`. `sums` [out_channels] of the gradient over
  // the positions, if it is not null.
  SampleNorm (*conv_rows)(const ConvShape& shape, const float* activation, const float* gradient, bool bounded,
                          float* memory, float* rows, RowOrder order, float* sums);
  std::size_t (*conv_gram_scratch)(const ConvShape& shape);
  SampleNorm (*conv_gram)(const ConvShape& shape, const float* activation, const float* gradient, float* memory);
};

// Sizes and arrays: aisec_fast/winograd.hpp.
struct WinogradShape;
struct WinogradArrays;
struct WinogradBlocks;
struct WinogradWindows;

// The tiles first, ..., last - 1 of a result, `at_once` at a time. `memory`: winograd_points * at_once * (channels +
// outputs) floats, aligned to 64 bytes.
struct WinogradKernels {
  void (*convolve)(const WinogradShape& shape, const WinogradArrays& arrays, std::size_t first, std::size_t last,
                   std::size_t at_once, float* memory);
  // The same for x and out [images, channels, rows, columns], no mask, nothing added and no ReLU: the images first,
  // ..., last - 1, or that many bands of images, bands first. `memory`: as `blocks` says.
  void (*convolve_planes)(const WinogradShape& shape, const WinogradArrays& arrays, const WinogradBlocks& blocks,
                          std::size_t first, std::size_t last, float* memory);
  // To [points, channels, outputs], as `convolve` takes them: the channels first, ..., last - 1. `row`: points *
  // outputs floats.
  void (*spread_windows)(const WinogradWindows& windows, std::size_t first, std::size_t last, float* row,
                         float* weights);
};

// Parts and sizes of a call: aisec_fast/convolution.hpp.
struct ConvolutionPlan;

struct ConvolutionKernels {
  // The images first, ..., last - 1. `bias`, whole panels of it, if it is not null. `memory`: as the plan says, aligned
  // to 64 bytes.
  void (*convolve)(const ConvolutionPlan& plan, const float* x, const float* bias, std::size_t first, std::size_t last,
                   float* memory, float* out);
};

// A linear layer's batch: inputs [batch, length, inputs], outputs' gradients [batch, length, outputs]. The products of
// `block` samples are one float32 sum, before it is added to those of the others.
struct ProductShape {
  std::size_t batch, length, inputs, outputs, block;
};

// The part of a weight [outputs, inputs] that one call makes.
struct ProductPart {
  std::size_t first_output, outputs, first_input, inputs;
};

struct NormShape {
  std::size_t length, width;
};

// docs/products.md.
struct ProductKernels {
  std::size_t tile_outputs, tile_inputs;            // parts of whole tiles lose nothing
  std::size_t (*scratch)(const ProductPart& part);  // floats; `memory` is aligned to 64 bytes
  // total [outputs, inputs] = sum over samples of weight * sum_t output_t input_t^T, in this part of it. A sample of
  // weight zero is selected away.
  void (*weighted_product)(const ProductShape& shape, const float* inputs, const float* outputs, const double* weights,
                           const ProductPart& part, float* memory, float* total);
  // One sample's gradients of a LayerNorm over the last dimension, from what it read, the gradient of what it gave
  // ([length, width] both), and the mean and 1 / deviation of each position.
  void (*layer_norm)(const NormShape& shape, const float* input, const float* gradient, const float* mean,
                     const float* scale, float* weight, float* bias);
};

struct Kernels {
  const char* name;
  NoiseKernels noise;
  ClippingKernels clipping_float32, clipping_float64, clipping_bfloat16;
  HashingKernels hashing;
  RecordKernels records;
  AdversarialKernels adversarial;
  IntegerKernels integers;
  UpdateKernels update_float32, update_float64;
  GhostKernels ghost;
  WinogradKernels winograd;
  ConvolutionKernels convolution;
  ProductKernels products;
};

constexpr std::size_t noise_group = 512;    // samples that no two threads share: kernels start at multiples of it
constexpr std::size_t norm_block = 1024;    // values in one block sum
constexpr std::size_t gram_block = 64;      // tokens whose Gram matrix is formed at a time
constexpr std::size_t product_depth = 128;  // tokens of a product that are added in registers

}  // namespace aisec_fast
