#pragma once
// BLAKE3 of eight inputs (chunks, or parents) at once in the sixteen registers that AVX2 has, written out because no
// compiler keeps a state of sixteen vectors there: theirs spill in every quarter. A state leaves no register for a
// rotation's second half, so one of rows 8 to 11 waits in memory meanwhile; in turns, because what is stored can be
// read only about as late as half a round ends, and a row that went there every time would be a chain of such delays.
//
// Turning the inputs' rows (words of one input) into columns (one word of eight inputs) is work for the vector units
// too. Here the scalar units, idle else, do it for the next block while the vector units work on this one. What they
// store is read hundreds of cycles later, when it has long left the store buffer.
#include <cstddef>
#include <cstdint>

#include "aisec_fast/hashing_math.hpp"
#include "kernels/lanes.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

alignas(32) constexpr unsigned char turn_16[32] = {2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
                                                   2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13};
alignas(32) constexpr unsigned char turn_8[32] = {1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12,
                                                  1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12};

// clang-format off
// Row v of the state is register v.
#define AISEC_ROW(v) "%%ymm" #v
#define AISEC_ADD(a, b) "vpaddd " AISEC_ROW(b) ", " AISEC_ROW(a) ", " AISEC_ROW(a) "\n\t"
#define AISEC_XOR(a, b) "vpxor " AISEC_ROW(b) ", " AISEC_ROW(a) ", " AISEC_ROW(a) "\n\t"
#define AISEC_ADD_WORD(a, word) "vpaddd 32*" #word "(%[message]), " AISEC_ROW(a) ", " AISEC_ROW(a) "\n\t"
#define AISEC_ADD_WAITING(c, d) "vpaddd %[waiting], " AISEC_ROW(d) ", " AISEC_ROW(c) "\n\t"
#define AISEC_WAIT(c) "vmovdqa " AISEC_ROW(c) ", %[waiting]\n\t"
#define AISEC_TURN_BYTES(d, table) "vpshufb %[" table "], " AISEC_ROW(d) ", " AISEC_ROW(d) "\n\t"
#define AISEC_TURN_BITS(b, right, left, free)                     \
  "vpsrld $" right ", " AISEC_ROW(b) ", " AISEC_ROW(free) "\n\t"  \
  "vpslld $" left ", " AISEC_ROW(b) ", " AISEC_ROW(b) "\n\t"      \
  "vpor " AISEC_ROW(free) ", " AISEC_ROW(b) ", " AISEC_ROW(b) "\n\t"

// Words 2 pair and 2 pair + 1 of an input's next block to their rows.
#define AISEC_MOVE(lane, pair)                                      \
  "movq %c[stride]*" #lane "+8*" #pair "(%[input]), %[word]\n\t"    \
  "movl %k[word], 64*" #pair "+4*" #lane "(%[next])\n\t"            \
  "shrq $32, %[word]\n\t"                                           \
  "movl %k[word], 64*" #pair "+32+4*" #lane "(%[next])\n\t"
#define AISEC_REST(lane, pair) ""

// Half of four quarters of a round, side by side; between them, MOVE of two lanes and two pairs. Row c3 comes from
// memory, row c0 goes there.
#define AISEC_HALF_(MOVE, lane0, lane1, pair0, pair1, w0, w1, w2, w3,                                               \
                    a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3, table, right, left)             \
  AISEC_ADD_WORD(a0, w0) AISEC_ADD_WORD(a1, w1) AISEC_ADD_WORD(a2, w2) AISEC_ADD_WORD(a3, w3) MOVE(lane0, pair0)    \
  AISEC_ADD(a0, b0) AISEC_ADD(a1, b1) AISEC_ADD(a2, b2) AISEC_ADD(a3, b3)                                           \
  AISEC_XOR(d0, a0) AISEC_XOR(d1, a1) AISEC_XOR(d2, a2) AISEC_XOR(d3, a3) MOVE(lane1, pair0)                        \
  AISEC_TURN_BYTES(d0, table) AISEC_TURN_BYTES(d1, table) AISEC_TURN_BYTES(d2, table) AISEC_TURN_BYTES(d3, table)   \
  AISEC_ADD(c0, d0) AISEC_ADD(c1, d1) AISEC_ADD(c2, d2) AISEC_ADD_WAITING(c3, d3) MOVE(lane0, pair1)                \
  AISEC_XOR(b0, c0) AISEC_WAIT(c0) AISEC_XOR(b1, c1) AISEC_XOR(b2, c2) AISEC_XOR(b3, c3) MOVE(lane1, pair1)         \
  AISEC_TURN_BITS(b0, right, left, c0) AISEC_TURN_BITS(b1, right, left, c0)                                         \
  AISEC_TURN_BITS(b2, right, left, c0) AISEC_TURN_BITS(b3, right, left, c0)
#define AISEC_HALF(...) AISEC_HALF_(__VA_ARGS__)

// A round over message words in this order, while two lanes' words move. Columns, then diagonals; the second half of
// each begins with the second quarter, so that the row which waits is another one each time.
#define AISEC_COLUMNS      0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define AISEC_COLUMNS_2    1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12
#define AISEC_DIAGONALS    0, 1, 2, 3, 5, 6, 7, 4, 10, 11, 8, 9, 15, 12, 13, 14
#define AISEC_DIAGONALS_2  1, 2, 3, 0, 6, 7, 4, 5, 11, 8, 9, 10, 12, 13, 14, 15
#define AISEC_ROUND(MOVE, lane0, lane1, w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15)  \
  AISEC_HALF(MOVE, lane0, lane1, 0, 1, w0, w2, w4, w6, AISEC_COLUMNS, "turn_16", "12", "20")                   \
  AISEC_HALF(MOVE, lane0, lane1, 2, 3, w3, w5, w7, w1, AISEC_COLUMNS_2, "turn_8", "7", "25")                   \
  AISEC_HALF(MOVE, lane0, lane1, 4, 5, w8, w10, w12, w14, AISEC_DIAGONALS, "turn_16", "12", "20")              \
  AISEC_HALF(MOVE, lane0, lane1, 6, 7, w11, w13, w15, w9, AISEC_DIAGONALS_2, "turn_8", "7", "25")

#define AISEC_LOAD(v) "vmovdqa 32*" #v "(%[chaining]), " AISEC_ROW(v) "\n\t"
#define AISEC_STORE(v) "vmovdqa " AISEC_ROW(v) ", 32*" #v "(%[chaining])\n\t"
#define AISEC_CONSTANT(v, index) "vmovdqa 32*" #index "(%[constants]), " AISEC_ROW(v) "\n\t"
// clang-format on

// Rows 8 to 14 of a block's state: the first half of the IV, counters, the block's length.
struct BlockConstants {
  Lanes rows[7];
};

// The eight inputs' chaining values after one more block; `next` = the block of the first input that lies at `input`,
// and those of the others `stride` bytes on each, in columns.
template <int stride>
inline void compress_and_turn(Lanes (&chaining)[8], const BlockConstants& constants, const Lanes& flags,
                              const Lanes (&message)[16], Lanes (&next)[16], const unsigned char* input) {
  struct Input {
    unsigned char bytes[7 * stride + blake3_block_bytes];
  };
  struct Table {
    unsigned char bytes[32];
  };
  Lanes waiting;
  std::uint64_t word;
  // clang-format off
  asm volatile(
      AISEC_CONSTANT(11, 3) AISEC_WAIT(11)
      AISEC_LOAD(0) AISEC_LOAD(1) AISEC_LOAD(2) AISEC_LOAD(3) AISEC_LOAD(4) AISEC_LOAD(5) AISEC_LOAD(6) AISEC_LOAD(7)
      AISEC_CONSTANT(8, 0) AISEC_CONSTANT(9, 1) AISEC_CONSTANT(10, 2) AISEC_CONSTANT(12, 4) AISEC_CONSTANT(13, 5)
      AISEC_CONSTANT(14, 6) "vmovdqa %[flags], %%ymm15\n\t"
      // The order of words is that of blake3_word in hashing_math.hpp.
      AISEC_ROUND(AISEC_MOVE, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
      AISEC_ROUND(AISEC_MOVE, 2, 3, 2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
      AISEC_ROUND(AISEC_MOVE, 4, 5, 3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1)
      AISEC_ROUND(AISEC_MOVE, 6, 7, 10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6)
      AISEC_ROUND(AISEC_REST, 0, 0, 12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4)
      AISEC_ROUND(AISEC_REST, 0, 0, 9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7)
      AISEC_ROUND(AISEC_REST, 0, 0, 11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13)
      AISEC_XOR(0, 8) AISEC_XOR(1, 9) AISEC_XOR(2, 10) "vpxor %[waiting], %%ymm3, %%ymm3\n\t"
      AISEC_XOR(4, 12) AISEC_XOR(5, 13) AISEC_XOR(6, 14) AISEC_XOR(7, 15)
      AISEC_STORE(0) AISEC_STORE(1) AISEC_STORE(2) AISEC_STORE(3)
      AISEC_STORE(4) AISEC_STORE(5) AISEC_STORE(6) AISEC_STORE(7)
      : [waiting] "=&m"(waiting), [word] "=&r"(word), "+m"(chaining), "=m"(next)
      : [chaining] "r"(&chaining[0]), [constants] "r"(&constants), [flags] "m"(flags), [message] "r"(&message[0]),
        [next] "r"(&next[0]), [input] "r"(input), [stride] "i"(stride),
        [turn_16] "m"(*reinterpret_cast<const Table*>(turn_16)), [turn_8] "m"(*reinterpret_cast<const Table*>(turn_8)),
        "m"(constants), "m"(message), "m"(*reinterpret_cast<const Input*>(input))
      : "cc", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11",
        "ymm12", "ymm13", "ymm14", "ymm15");
  // clang-format on
}

#undef AISEC_ROW
#undef AISEC_ADD
#undef AISEC_XOR
#undef AISEC_ADD_WORD
#undef AISEC_ADD_WAITING
#undef AISEC_WAIT
#undef AISEC_TURN_BYTES
#undef AISEC_TURN_BITS
#undef AISEC_MOVE
#undef AISEC_REST
#undef AISEC_HALF_
#undef AISEC_HALF
#undef AISEC_COLUMNS
#undef AISEC_COLUMNS_2
#undef AISEC_DIAGONALS
#undef AISEC_DIAGONALS_2
#undef AISEC_ROUND
#undef AISEC_LOAD
#undef AISEC_STORE
#undef AISEC_CONSTANT

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
