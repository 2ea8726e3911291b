// Runs one kernel of one instruction set on fixed inputs, on one thread, so that guard.py can count its instructions:
// those of `counted` are the kernel's alone, without start-up and inputs.
//   guard                        list "<isa> <kernel>" lines
//   guard <isa> <kernel>         run
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "aisec_fast/convolution.hpp"
#include "aisec_fast/winograd.hpp"
#include "clipping.hpp"
#include "ghost.hpp"
#include "instruction_sets.hpp"
#include "thread_pool.hpp"

using namespace aisec_fast;

namespace {

constexpr std::size_t samples = 16384, rows = 16, columns = 5000, chunks = 64, records = 1024;

// The same numbers on every machine, about as spread as a standard normal.
template <class T>
std::vector<T> values(std::size_t count) {
  std::vector<T> made(count);
  std::uint64_t state = 1;
  for (T& value : made) {
    double sum = 0.0;
    for (int i = 0; i < 4; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<double>(state >> 40) * 0x1p-24 - 0.5;
    }
    value = static_cast<T>(sum * 1.7);
  }
  return made;
}

struct Inputs {
  std::vector<float> x = values<float>(rows * columns), out = std::vector<float>(rows * columns);
  std::vector<double> wide = values<double>(samples), wide_out = std::vector<double>(samples);
  std::vector<std::uint64_t> words = std::vector<std::uint64_t>(samples);
  std::vector<double> norms = std::vector<double>(rows);
  std::vector<std::int64_t> lattice = std::vector<std::int64_t>(columns);
  NoiseCall noise{{1, 2, 3, 4, 5, 6, 7, 8}, 1048576.0, 0x1p-20, Generator::chacha};
  std::vector<unsigned char> bytes = std::vector<unsigned char>(chunks * 1024, 7);
  std::vector<std::uint32_t> hashes = std::vector<std::uint32_t>(chunks * 8);
  std::vector<std::uint32_t> places = [] {  // of records of 16 to 32 bytes
    std::vector<std::uint32_t> made{0};
    while (made.size() <= records) made.push_back(made.back() + 16 + static_cast<std::uint32_t>(made.size() % 17));
    return made;
  }();
  std::vector<unsigned char> digests = std::vector<unsigned char>(32 * records);
  Records column{bytes.data(), places.data(), places.data() + 1, false, digests.data(), 32};
  std::vector<float> adv = x, gradient = values<float>(rows * columns);
  std::vector<float> lengths = std::vector<float>(rows * columns, 1.0f);
  AdversarialStep step{adv.data(), x.data(), gradient.data(), out.data(), columns, 0.01, 0.03, -10.0, 10.0};
  UpdateArrays update{out.data(), adv.data(), {gradient.data(), lengths.data(), nullptr}};
  SgdStep sgd{256.0, 0.1, 0.9, 0.0, 0.01, true, false, false};
  AdamStep adam{256.0, 0.9, 0.999, 0.01, 0.5, 1e-8, 0.0, 0.999, false};
  GramShape tokens{50, 80, 80};
  ConvShape conv{20, 10, 10, 20, 10, 10, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
  WinogradShape images{1, 20, 20, 32, 32};
  std::vector<std::size_t> offsets = [] {  // of a window 3 x 3 in planes of 21 x 21
    std::vector<std::size_t> made;
    for (std::size_t i = 0; i < 16 * 9; ++i) made.push_back(i / 9 * 441 + i % 9 / 3 * 21 + i % 3);
    return made;
  }();
  std::vector<double> squares = std::vector<double>(1), bounds = std::vector<double>(1);
  Batch batch{DType::float32, rows, {{x.data(), static_cast<std::ptrdiff_t>(columns), columns}}};
};

using Call = std::function<void(const Kernels&)>;

std::vector<std::pair<std::string, Call>> calls(Inputs& in) {
  return {
      {"random_words", [&](const Kernels& k) { k.noise.random_words(in.words.data(), 0, samples, in.noise, 0); }},
      {"gaussian_float32",
       [&](const Kernels& k) {
         k.noise.gaussian_float32(in.x.data(), in.out.data(), 0, samples, in.noise, nothing_soon);
       }},
      {"gaussian_float32_small",
       [&](const Kernels& k) {
         NoiseCall noise = in.noise;
         noise.scale = 256.0;
         noise.granularity = 0x1p-8;
         k.noise.gaussian_float32(in.x.data(), in.out.data(), 0, samples, noise, nothing_soon);
       }},
      {"float_gaussian_float32",
       [&](const Kernels& k) {
         k.noise.float_gaussian_float32(in.x.data(), in.out.data(), 0, samples, in.noise, nothing_soon);
       }},
      {"gaussian_float64",
       [&](const Kernels& k) {
         k.noise.gaussian_float64(in.wide.data(), in.wide_out.data(), 0, samples, in.noise, nothing_soon);
       }},
      {"laplace_float32",
       [&](const Kernels& k) {
         k.noise.laplace_float32(in.x.data(), in.out.data(), 0, samples, in.noise, nothing_soon);
       }},
      {"sgd_float32", [&](const Kernels& k) { k.update_float32.sgd(in.update, in.sgd, 0, samples); }},
      {"adam_float32", [&](const Kernels& k) { k.update_float32.adam(in.update, in.adam, 0, samples); }},
      {"row_norms", [&](const Kernels&) { row_norms(in.batch, in.norms.data()); }},
      {"clip_and_sum", [&](const Kernels&) { clip_and_sum(in.batch, 30.0, {in.out.data()}, in.norms.data()); }},
      {"lattice_sum",
       [&](const Kernels&) {
         lattice_sum(in.batch, 30.0, 0x1p-16, std::int64_t{3932160000000}, {in.lattice.data()}, in.norms.data());
       }},
      {"blake3_chunks",
       [&](const Kernels& k) {
         k.hashing.blake3_chunks(in.bytes.data(), chunks, in.noise.key, 0, 0, in.hashes.data());
       }},
      {"blake3_parents",
       [&](const Kernels& k) {
         k.hashing.blake3_parents(in.hashes.data(), chunks / 2, in.noise.key, 0, in.hashes.data());
       }},
      {"sha256_blocks",  // valgrind's processor has no SHA instructions: the portable text
       [&](const Kernels& k) { k.hashing.sha256_blocks(in.hashes.data(), in.bytes.data(), in.bytes.size() / 64); }},
      {"records_blake3", [&](const Kernels& k) { k.records.blake3(in.column, in.noise.key, 16, 0, records); }},
      {"records_hmac_sha256",
       [&](const Kernels& k) { k.records.sha256(in.column, in.noise.key, in.hashes.data(), 0, records); }},
      {"records_siphash24",
       [&](const Kernels& k) {
         Records tags = in.column;
         tags.size = 8;
         k.records.siphash24(tags, in.words.data(), 0, records);
       }},
      {"linf_float32", [&](const Kernels& k) { k.adversarial.linf_float32(in.step, 0, rows * columns); }},
      {"l2_float32", [&](const Kernels& k) { k.adversarial.l2_float32(in.step, 0, rows); }},
      {"gram_squares",
       [&](const Kernels&) {
         gram_squares(in.tokens, 1, in.x.data(), in.gradient.data(), in.squares.data(), in.bounds.data(), nullptr);
       }},
      {"weighted_product",
       [&](const Kernels& k) {
         k.products.weighted_product({4, 50, 80, 80, 2}, in.x.data(), in.gradient.data(), in.wide.data(),
                                     {0, 80, 0, 80}, in.adv.data(), in.out.data());
       }},
      {"conv_gram_squares",
       [&](const Kernels&) {
         conv_gram_squares(in.conv, 1, in.x.data(), in.gradient.data(), in.squares.data(), in.bounds.data());
       }},
      {"conv_rows",
       [&](const Kernels&) {
         conv_rows(in.conv, 1, in.x.data(), in.gradient.data(), in.out.data(), false, in.squares.data(),
                   in.bounds.data(), {nullptr, nullptr});
       }},
      {"winograd",
       [&](const Kernels& k) {
         const WinogradArrays arrays{in.x.data(), in.gradient.data(), in.x.data(), nullptr,
                                     in.x.data(), in.out.data(),      true};
         k.winograd.convolve(in.images, arrays, 0, in.images.tiles(), 24, in.lengths.data());
       }},
      {"winograd_planes",
       [&](const Kernels& k) {
         const WinogradArrays arrays{in.x.data(), in.gradient.data(), nullptr, nullptr, nullptr, in.out.data(), false};
         k.winograd.convolve_planes(in.images, arrays, {1, 20, 16}, 0, 1, in.lengths.data());
       }},
      {"convolution",  // steps of 2: from 16 channels of 20 x 20 to 32 of 10 x 10
       [&](const Kernels& k) {
         const ConvolutionPart part{10, 10, 0, 0, in.offsets.size(), in.offsets.data(), in.gradient.data()};
         const ConvolutionPlan plan{16, 20, 20, {1, 1}, 21, 21, 32, 10, 10, {2, 2}, {1, 1}, 10, 1, &part};
         k.convolution.convolve(plan, in.x.data(), nullptr, 0, 1, in.lengths.data(), in.out.data());
       }},
  };
}

}  // namespace

// By this name valgrind finds what to count.
extern "C" [[gnu::noinline]] void counted(const Call& call) { call(active_kernels()); }

int main(int count, char** arguments) {
  Inputs inputs;
  const auto known = calls(inputs);
  if (count == 1) {
    for (const Kernels& kernels : supported_kernels())
      for (const auto& [name, call] : known) std::printf("%s %s\n", kernels.name, name.c_str());
    return 0;
  }
  if (count != 3) return 2;
  set_thread_count(1);
  use_instruction_set(arguments[1]);
  for (const auto& [name, call] : known)
    if (name == arguments[2]) {
      call(active_kernels());  // pays for what is done once: memory, tables
      counted(call);
      return 0;
    }
  std::fprintf(stderr, "no kernel %s\n", arguments[2]);
  return 2;
}
