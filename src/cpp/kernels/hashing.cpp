// Hashing kernels, compiled once per instruction set. docs/hashing.md says what they compute. BLAKE3 takes as many
// blocks at once as a vector has words, one lane a block.
#include <cstring>

#include "aisec_fast/hashing_math.hpp"
#include "kernels/families.hpp"
#include "kernels/lanes.hpp"
#include "kernels/sha256.hpp"
#include "kernels/transpose.hpp"

#if defined(__AVX2__) && !defined(__AVX512F__)
#define AISEC_BLAKE3_AVX2 1
#include "kernels/blake3_avx2.hpp"
#include "kernels/blake3_rows_avx2.hpp"
#else
#define AISEC_BLAKE3_AVX2 0
#endif
#if defined(__AVX512F__)
#define AISEC_BLAKE3_AVX512 1
#include "kernels/blake3_avx512.hpp"
#else
#define AISEC_BLAKE3_AVX512 0
#endif

namespace aisec_fast::AISEC_ISA {
namespace {

// Few inputs: the state's four rows are vectors, the four quarters of half a round lie side by side in them, and a
// vector of more than four words has the rows of several inputs.
typedef std::uint32_t Row __attribute__((vector_size(16)));

inline Row row_at(const void* words) {
  Row row;
  std::memcpy(&row, words, sizeof row);
  return row;
}

// Lane i, from each input's own four words, of x (0 to 3) and y (4 to 7).
template <int i0, int i1, int i2, int i3, class Rows>
inline Rows words_of(Rows x, Rows y) {
  constexpr int count = int{sizeof(Rows)} / 4;
  constexpr auto pick = [](int lane) {
    const int from[4] = {i0, i1, i2, i3}, word = from[lane % 4], input = lane / 4 * 4;
    return word < 4 ? input + word : count + input + word - 4;
  };
  return [&]<int... lane>(std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(x, y, pick(lane)...);
  }(std::make_integer_sequence<int, count>{});
}

// Compilers would put b, which is known last, into the first of two additions.
template <class Rows>
inline Rows sum_first(Rows a, Rows words) {
  Rows sum = a + words;
#if defined(AISEC_X86)
  asm("" : "+x"(sum));
#endif
  return sum;
}

template <class Rows>
inline void mix_columns(Rows& a, Rows& b, Rows& c, Rows& d, Rows even_words, Rows odd_words) {
  a = sum_first(a, even_words) + b;
  d = Rotation::right<16>(d ^ a);
  c += d;
  b = Rotation::right<12>(b ^ c);
  a = sum_first(a, odd_words) + b;
  d = Rotation::right<8>(d ^ a);
  c += d;
  b = Rotation::right<7>(b ^ c);
}

// The same, by the shuffle that takes two lanes of each: of floats, as far as a compiler knows, though it moves bits.
template <int i0, int i1, int i2, int i3, class Rows>
inline Rows two_of_each(Rows x, Rows y) {
  typedef float Floats __attribute__((vector_size(sizeof(Rows))));
  return reinterpret_cast<Rows>(words_of<i0, i1, i2, i3>(reinterpret_cast<Floats>(x), reinterpret_cast<Floats>(y)));
}

// A block's words in the order in which a round reads them: even and odd ones of columns and diagonals.
template <class Rows>
struct RoundWords {
  Rows x0, x1, x2, x3;  // {0, 2, 4, 6}, {1, 3, 5, 7}, {14, 8, 10, 12}, {15, 9, 11, 13}

  void load(Rows w0, Rows w1, Rows w2, Rows w3) {
    x0 = two_of_each<0, 2, 4, 6>(w0, w1);
    x1 = two_of_each<1, 3, 5, 7>(w0, w1);
    x2 = two_of_each<0, 2, 4, 6>(w2, w3);
    x3 = two_of_each<1, 3, 5, 7>(w2, w3);
    x2 = words_of<3, 0, 1, 2>(x2, x2);
    x3 = words_of<3, 0, 1, 2>(x3, x3);
  }

  // Those of the next round (table 2 of the paper): {2, 3, 7, 4}, {6, 10, 0, 13}, {15, 1, 12, 9}, {8, 11, 5, 14}.
  void permute() {
    const Rows y0 = two_of_each<1, 2, 5, 7>(x0, x1);
    const Rows y1 = two_of_each<2, 2, 7, 7>(x2, x3);
    const Rows y2 = words_of<0, 1, 2, 7>(words_of<0, 4, 1, 5>(x3, x1), x2);
    const Rows y3 = words_of<0, 1, 4, 5>(words_of<2, 6, 3, 7>(x3, x1), x2);
    x1 = words_of<0, 5, 2, 7>(words_of<3, 3, 0, 0>(x0, x0), y1);
    x0 = words_of<0, 2, 3, 1>(y0, y0);
    x2 = words_of<0, 1, 3, 2>(y2, y2);
    x3 = words_of<3, 0, 1, 2>(y3, y3);
  }
};

// The compression of one block of each input.
template <class Rows>
struct RowState {
  Rows a, b, c, d;

  void round(RoundWords<Rows>& words) {
    mix_columns(a, b, c, d, words.x0, words.x1);
    // The diagonals become columns. b, on which all waits, stays where it is: lane i has quarter 4 + (i + 3) % 4.
    a = words_of<3, 0, 1, 2>(a, a);
    c = words_of<1, 2, 3, 0>(c, c);
    d = words_of<2, 3, 0, 1>(d, d);
    mix_columns(a, b, c, d, words.x2, words.x3);
    a = words_of<1, 2, 3, 0>(a, a);
    c = words_of<3, 0, 1, 2>(c, c);
    d = words_of<2, 3, 0, 1>(d, d);
    words.permute();
  }
};

void blake3_chain(std::uint32_t* chaining, const Blake3Chain& chain) {
  Row upper = row_at(chaining), lower = row_at(chaining + 4);
  for (std::size_t block = 0; block < chain.blocks; ++block) {
    const bool last = block + 1 == chain.blocks;
    const unsigned char* words = chain.data + block * blake3_block_bytes;
    RowState<Row> state;
    RoundWords<Row> message;
    message.load(row_at(words), row_at(words + 16), row_at(words + 32), row_at(words + 48));
    state.a = upper;
    state.b = lower;
    state.c = Row{0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au};
    state.d = Row{static_cast<std::uint32_t>(chain.counter), static_cast<std::uint32_t>(chain.counter >> 32),
                  last ? chain.last_length : std::uint32_t{blake3_block_bytes},
                  chain.mode | (block == 0 ? chain.first : 0u) | (last ? chain.last : 0u)};
    for (int round = 0; round < 7; ++round) state.round(message);
    upper = state.a ^ state.c;
    lower = state.b ^ state.d;
  }
  std::memcpy(chaining, &upper, sizeof upper);
  std::memcpy(chaining + 4, &lower, sizeof lower);
}

// What all inputs of one call share.
struct Group {
  const std::uint32_t* key;
  std::uint32_t mode, first, last;  // flags of all blocks, more of an input's first and last
};

// Counters of the lanes: first, first + step, ...
inline void count_lanes(Lanes& low, Lanes& high, std::uint64_t first, std::uint32_t step) {
  constexpr auto index = []<int... lane>(std::integer_sequence<int, lane...>) { return Lanes{std::uint32_t{lane}...}; };
  const std::uint32_t low_first = static_cast<std::uint32_t>(first);
  low = index(std::make_integer_sequence<int, lanes>{}) * step + low_first;
  high = static_cast<std::uint32_t>(first >> 32) - reinterpret_cast<Lanes>(low < low_first);  // true is -1
}

// 16 bytes of every `step`-th of a vector's inputs. Put together in registers: a vector loaded from memory that was
// stored in parts has to wait for it.
template <std::size_t count, std::size_t step = 1>
inline auto rows_at(const unsigned char* const* inputs, std::size_t place) {
  if constexpr (count == 1) {
    return row_at(inputs[0] + place);
  } else {
    const auto low = rows_at<count / 2, step>(inputs, place);
    const auto high = rows_at<count / 2, step>(inputs + count / 2 * step, place);
    return [&]<int... lane>(std::integer_sequence<int, lane...>) {
      return __builtin_shufflevector(low, high, lane...);
    }(std::make_integer_sequence<int, int{4 * count}>{});
  }
}

// Where each lane's input begins, `stride` bytes after the one before; the last of `count` stands in for those that are
// missing.
struct Inputs {
  const unsigned char* at[lanes];

  Inputs(const unsigned char* first, std::size_t stride, std::size_t count) {
    for (std::size_t lane = 0; lane < std::size_t{lanes}; ++lane)
      at[lane] = first + (lane < count ? lane : count - 1) * stride;
  }
};

// The block at `place` of the first `count` inputs, in columns.
template <std::size_t count = lanes>
inline void load_columns(Lanes (&message)[16], const Inputs& inputs, std::size_t place = 0) {
  for (std::size_t word = 0; word < 16; word += 4) {
    const auto rows = [&](std::size_t i) { return rows_at<count / 4, 4>(inputs.at + i, place + 4 * word); };
    auto row0 = rows(0), row1 = rows(1), row2 = rows(2), row3 = rows(3);
    transpose_fours(row0, row1, row2, row3);
    std::memcpy(&message[word], &row0, sizeof row0);
    std::memcpy(&message[word + 1], &row1, sizeof row1);
    std::memcpy(&message[word + 2], &row2, sizeof row2);
    std::memcpy(&message[word + 3], &row3, sizeof row3);
  }
}

// The first `count` lanes' chaining values, one after the other.
inline void write_values(const Lanes (&chaining)[8], std::size_t count, std::uint32_t* out) {
  for (int word = 0; word < 8; word += 4) {
    Lanes row[4] = {chaining[word], chaining[word + 1], chaining[word + 2], chaining[word + 3]};
    transpose_fours(row[0], row[1], row[2], row[3]);
    for (std::size_t lane = 0; lane < std::size_t{lanes}; ++lane)
      if (lane < count)
        std::memcpy(out + 8 * lane + word, reinterpret_cast<const char*>(&row[lane % 4]) + lane / 4 * 16, 16);
  }
}

// Processors do not foresee reads that jump from input to input: the group after the next is fetched while one is
// hashed, also behind the inputs, where more of the same message lies, or nothing, which does no harm.
constexpr std::size_t groups_ahead = 2;

inline void prefetch_block(const unsigned char* block, std::size_t stride) {
  for (std::size_t lane = 0; lane < std::size_t{lanes}; ++lane) __builtin_prefetch(block + lane * stride);
}

#if AISEC_BLAKE3_AVX512
// Chaining values of `count` inputs of `blocks` blocks each, sixteen at a time, and at the end sixteen or eight, where
// the last one stands in for those that are missing. `out` may be the inputs' own memory: a group's is written when its
// inputs, and the next group's first blocks, are read. halves: the processor does 512 bits in two halves.
template <std::size_t blocks, bool halves>
void hash_many(const unsigned char* data, std::size_t count, const Group& group, std::uint64_t counter,
               std::uint32_t step, std::uint32_t* out) {
  constexpr std::size_t stride = blocks * blake3_block_bytes;
  GroupConstants constants = {};
  const std::uint32_t iv[4] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au};
  std::memcpy(constants.iv, iv, sizeof iv);
  constants.length = std::uint32_t{blake3_block_bytes};
  for (std::size_t block = 0; block < blocks; ++block)
    constants.flags[block] = group.mode | (block == 0 ? group.first : 0u) | (block + 1 == blocks ? group.last : 0u);
  constants.blocks = blocks;
  constants.ahead = blocks > 1 ? groups_ahead * lanes * stride : 0;
  Inputs inputs(data, stride, count);
  Lanes messages[2][16];
  if (count > lanes / 2)
    load_columns(messages[0], inputs);
  else
    load_columns<lanes / 2>(messages[0], inputs);
  for (std::size_t now = 0; count > 0; now = (now + blocks) % 2) {
    const std::size_t taken = count < std::size_t{lanes} ? count : std::size_t{lanes}, left = count - taken;
    if (left > 0) data += taken * stride;  // else what comes behind are its own inputs once more, for nothing
    const Inputs behind(data, stride, left > 0 ? left : taken);
    Lanes chaining[8];
    for (int i = 0; i < 8; ++i) chaining[i] = Lanes{} + group.key[i];
    count_lanes(constants.low, constants.high, counter, step);
    const auto hash = taken <= std::size_t{lanes / 2} ? hash_eight : halves ? hash_twice_eight : hash_sixteen;
    hash(chaining, constants, &messages[now], &messages[now ^ 1], inputs.at, behind.at);
    write_values(chaining, taken, out);
    inputs = behind;
    counter += taken * step;
    out += 8 * taken;
    count = left;
  }
}
#else
// Chaining values of `groups` times `lanes` inputs of `blocks` blocks each. `out` may be the inputs' own memory: a
// group's is written when its inputs, and a vector's worth of the next group's, are read.
template <std::size_t blocks>
void hash_groups(const unsigned char* data, std::size_t groups, const Group& group, std::uint64_t counter,
                 std::uint32_t step, std::uint32_t* out) {
  constexpr std::size_t stride = blocks * blake3_block_bytes;
#if AISEC_BLAKE3_AVX2
  const Lanes flags[3] = {Lanes{} + (group.mode | group.first), Lanes{} + group.mode,
                          Lanes{} + (group.mode | group.last)};
  BlockConstants constants = {{Lanes{} + 0x6a09e667u, Lanes{} + 0xbb67ae85u, Lanes{} + 0x3c6ef372u,
                               Lanes{} + 0xa54ff53au, Lanes{}, Lanes{}, Lanes{} + std::uint32_t{blake3_block_bytes}}};
  Lanes message[2][16];
  std::size_t at = 0;  // which message
  load_columns(message[at], Inputs(data, stride, lanes));
#endif
  for (; groups > 0; --groups, counter += lanes * step, out += 8 * lanes) {
    // Behind the last group come its own inputs once more, for nothing.
    const unsigned char* const behind = groups > 1 ? data + lanes * stride : data;
    Lanes low, high, chaining[8];
    for (int i = 0; i < 8; ++i) chaining[i] = Lanes{} + group.key[i];
    count_lanes(low, high, counter, step);
#if AISEC_BLAKE3_AVX2
    constants.rows[4] = low;
    constants.rows[5] = high;
#endif
    for (std::size_t block = 0; block < blocks; ++block) {
      const bool last = block + 1 == blocks;
      const std::size_t place = block * blake3_block_bytes;
      if constexpr (blocks > 1) prefetch_block(data + groups_ahead * lanes * stride + place, stride);
#if AISEC_BLAKE3_AVX2
      compress_and_turn<int{stride}>(chaining, constants,
                                     flags[block == 0 ? 0
                                           : last     ? 2
                                                      : 1],
                                     message[at], message[at ^ 1], last ? behind : data + place + blake3_block_bytes);
      at ^= 1;
#else
      Lanes message[16], v[16];
      load_columns(message, Inputs(data, stride, lanes), place);
      blake3_compress<Rotation>(v, chaining, message, low, high, std::uint32_t{blake3_block_bytes},
                                group.mode | (block == 0 ? group.first : 0u) | (last ? group.last : 0u));
      blake3_fold(chaining, v);
#endif
    }
    data = behind;
    write_values(chaining, lanes, out);
  }
}

#endif

// As many inputs as hide each other's latency: one vector of rows, or two side by side.
// Vectors of 64 bytes are slower than two of 32.
#if AISEC_BLAKE3_AVX512
typedef std::uint32_t Rows __attribute__((vector_size(32)));
#else
typedef Lanes Rows;
#endif
constexpr std::size_t row_inputs = sizeof(Rows) / sizeof(Row);  // NOLINT(bugprone-sizeof-expression): 1 or more

// A row of each of a vector's inputs.
inline Rows repeated(Row row) {
  return [&]<int... lane>(std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(row, row, (lane % 4)...);
  }(std::make_integer_sequence<int, int{sizeof(Rows)} / 4>{});
}

// The last row of a vector's inputs: their counters, the block's length and mode.
inline Rows last_rows(std::uint64_t counter, std::uint32_t step, std::uint32_t mode) {
  typedef std::uint64_t Halves __attribute__((vector_size(sizeof(Rows))));
  const std::uint64_t rest = std::uint64_t{mode} << 32 | blake3_block_bytes;
  return [&]<int... half>(std::integer_sequence<int, half...>) {
    return reinterpret_cast<Rows>(Halves{(half % 2 == 0 ? counter + half / 2 * step : rest)...});
  }(std::make_integer_sequence<int, int{sizeof(Rows)} / 8>{});
}

// Chaining values of 1 to `vectors` * row_inputs inputs; the last one stands in for those that are missing. Nothing is
// put together in memory: what is stored in parts cannot be loaded whole for a while.
template <std::size_t blocks, std::size_t vectors>
void hash_few(const unsigned char* data, std::size_t count, const Group& group, std::uint64_t counter,
              std::uint32_t step, std::uint32_t* out) {
  constexpr std::size_t most = vectors * row_inputs;
  const unsigned char* inputs[most];
  for (std::size_t i = 0; i < most; ++i) inputs[i] = data + (i < count ? i : count - 1) * blocks * blake3_block_bytes;
  Rows upper[vectors], lower[vectors], last[vectors];
  for (std::size_t k = 0; k < vectors; ++k) {
    upper[k] = repeated(row_at(group.key));
    lower[k] = repeated(row_at(group.key + 4));
    last[k] = last_rows(counter + k * row_inputs * step, step, group.mode);
  }
  for (std::size_t block = 0; block < blocks; ++block) {
    const Rows more = repeated(Row{0, 0, 0, (block == 0 ? group.first : 0u) | (block + 1 == blocks ? group.last : 0u)});
    const auto begun = [&](std::size_t k) {
      const Rows iv = repeated(Row{0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au});
      return RowState<Rows>{upper[k], lower[k], iv, last[k] | more};
    };
    const auto loaded = [&](std::size_t k) {
      const auto row = [&](std::size_t place) {
        return rows_at<row_inputs>(inputs + k * row_inputs, block * blake3_block_bytes + place);
      };
      RoundWords<Rows> words;
      words.load(row(0), row(16), row(32), row(48));
      return words;
    };
    const auto end = [&](const RowState<Rows>& state, std::size_t k) {
      upper[k] = state.a ^ state.c;
      lower[k] = state.b ^ state.d;
    };
    if constexpr (vectors == 1) {
      RowState<Rows> state = begun(0);
      RoundWords<Rows> words = loaded(0);
      for (int round = 0; round < 7; ++round) state.round(words);
      end(state, 0);
    } else {
      RowState<Rows> one = begun(0), two = begun(1);  // no arrays: those would lie in memory
      RoundWords<Rows> words_of_one = loaded(0), words_of_two = loaded(1);
#if AISEC_BLAKE3_AVX2
      rounds_of_two(one, words_of_one, two, words_of_two);
#else
      for (int round = 0; round < 7; ++round) {
        one.round(words_of_one);
        two.round(words_of_two);
      }
#endif
      end(one, 0);
      end(two, 1);
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t k = i / row_inputs, place = i % row_inputs * sizeof(Row);
    std::memcpy(out + 8 * i, reinterpret_cast<const char*>(&upper[k]) + place, sizeof(Row));
    std::memcpy(out + 8 * i + 4, reinterpret_cast<const char*>(&lower[k]) + place, sizeof(Row));
  }
}

// Chaining values of `count` inputs, whose counters are counter, counter + step, ... `out` may be the inputs' own
// memory.
template <std::size_t blocks, bool halves>
void hash_all(const unsigned char* data, std::size_t count, const Group& group, std::uint64_t counter,
              std::uint32_t step, std::uint32_t* out) {
  constexpr std::size_t stride = blocks * blake3_block_bytes;
#if AISEC_BLAKE3_AVX512
  const std::size_t rest = count % lanes <= 2 * row_inputs ? count % lanes : 0, whole = count - rest;
  if (whole > 0) hash_many<blocks, halves>(data, whole, group, counter, step, out);
#else
  const std::size_t rest = count % lanes, whole = count - rest;
  if (whole > 0) hash_groups<blocks>(data, whole / lanes, group, counter, step, out);
#endif
  data += whole * stride;
  counter += whole * step;
  out += 8 * whole;
  if (rest == 0) return;
  if (rest <= row_inputs) return hash_few<blocks, 1>(data, rest, group, counter, step, out);
  if (rest <= 2 * row_inputs) return hash_few<blocks, 2>(data, rest, group, counter, step, out);
#if !AISEC_BLAKE3_AVX512
  unsigned char inputs[lanes * stride];  // filled up with zeros
  std::uint32_t values[8 * lanes];
  std::memcpy(inputs, data, rest * stride);
  std::memset(inputs + rest * stride, 0, (lanes - rest) * stride);
  hash_groups<blocks>(inputs, 1, group, counter, step, values);
  std::memcpy(out, values, rest * 32);
#endif
}

template <bool halves>
void blake3_chunks(const unsigned char* data, std::size_t count, const std::uint32_t* key, std::uint32_t mode,
                   std::uint64_t counter, std::uint32_t* out) {
  hash_all<blake3_chunk_blocks, halves>(data, count, {key, mode, chunk_start, chunk_end}, counter, 1, out);
}

template <bool halves>
void blake3_parents(const std::uint32_t* children, std::size_t count, const std::uint32_t* key, std::uint32_t mode,
                    std::uint32_t* out) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(children);
  hash_all<1, halves>(bytes, count, {key, mode | parent_node, 0, 0}, 0, 0, out);
}

void blake3_stream(const Blake3Node& root, std::uint64_t index, std::size_t count, unsigned char* out) {
  Lanes chaining[8], message[16];
  for (int i = 0; i < 8; ++i) chaining[i] = Lanes{} + root.chaining[i];
  for (int i = 0; i < 16; ++i) message[i] = Lanes{} + root.message[i];
  while (count > 0) {
    const std::size_t taken = count < std::size_t{lanes} ? count : std::size_t{lanes};
    Lanes low, high, block[16];
    count_lanes(low, high, index, 1);
    blake3_compress<Rotation>(block, chaining, message, low, high, root.length, root.flags);
    blake3_fold_stream(block, chaining);
    std::uint32_t words[16][lanes];
    std::memcpy(words, block, sizeof words);
    for (std::size_t lane = 0; lane < taken; ++lane)
      for (std::size_t i = 0; i < 16; ++i)
        std::memcpy(out + lane * blake3_block_bytes + 4 * i, &words[i][lane], sizeof words[i][lane]);
    out += taken * blake3_block_bytes;
    index += taken;
    count -= taken;
  }
}

}  // namespace

HashingKernels hashing_kernels(bool sha_instructions) {
  HashingKernels kernels = {blake3_chain,           blake3_chunks<false>, blake3_parents<false>, blake3_stream,
                            sha256_blocks_portable, sha256_streams_lanes, std::size_t{lanes}};
#if AISEC_BLAKE3_AVX512
  // Zen 4. Without SHA instructions, which it has, the kernels are those of other processors: that is for tests.
  if (sha_instructions && __builtin_cpu_is("amdfam19h")) {
    kernels.blake3_chunks = blake3_chunks<true>;
    kernels.blake3_parents = blake3_parents<true>;
  }
#endif
#if defined(AISEC_HAS_SHA)
  if (sha_instructions) {
    kernels.sha256_blocks = sha256_blocks_x86;
    kernels.sha256_streams = sha256_streams_x86;
    kernels.sha256_side_by_side = sha_streams;
  }
#else
  static_cast<void>(sha_instructions);
#endif
  return kernels;
}

}  // namespace aisec_fast::AISEC_ISA
