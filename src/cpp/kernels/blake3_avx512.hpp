#pragma once
// BLAKE3 of up to sixteen inputs (chunks, or parents) at once with AVX-512, written out for three reasons. Compilers
// turn the inputs' rows (words of one input) into columns (one word of all inputs) with the vector units, which have
// enough to do: here the scalar units do it for the next block while the vector units work on this one. An order of
// operations in which two quarters of a round are a step behind the other two keeps more units busy. And the chaining
// values stay in registers from block to block.
//
// The rows of a state are registers 0 to 15. A processor that has AVX-512 but does 512 bits in two halves (Zen 4) is
// faster with two states of eight inputs: the second has registers 16 to 31.
#include <cstddef>
#include <cstdint>

#include "aisec_fast/hashing_math.hpp"
#include "kernels/lanes.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// What a group of inputs needs beside its message.
struct GroupConstants {
  Lanes low, high;                           // counters
  std::uint32_t iv[4], length;               // rows 8 to 11, row 14
  std::uint32_t flags[blake3_chunk_blocks];  // row 15 of each block
  std::size_t blocks, ahead;                 // of each input; how many bytes before they are read they are fetched
};

// clang-format off
#define AISEC_ROW(V, v) "%%" V #v
#define AISEC_ADD(V, a, b) "vpaddd " AISEC_ROW(V, b) ", " AISEC_ROW(V, a) ", " AISEC_ROW(V, a) "\n\t"
#define AISEC_XOR(V, a, b) "vpxord " AISEC_ROW(V, b) ", " AISEC_ROW(V, a) ", " AISEC_ROW(V, a) "\n\t"
#define AISEC_TURN(V, a, bits) "vprord $" #bits ", " AISEC_ROW(V, a) ", " AISEC_ROW(V, a) "\n\t"
#define AISEC_ADD_WORD(V, part, a, word) \
  "vpaddd " part "+64*" #word "(%[message]), " AISEC_ROW(V, a) ", " AISEC_ROW(V, a) "\n\t"

// The same of two quarters.
#define AISEC_ADD_WORDS(V, part, a, x, b, y) AISEC_ADD_WORD(V, part, a, x) AISEC_ADD_WORD(V, part, b, y)
#define AISEC_ADDS(V, a, b, c, d) AISEC_ADD(V, a, b) AISEC_ADD(V, c, d)
#define AISEC_XORS(V, a, b, c, d) AISEC_XOR(V, a, b) AISEC_XOR(V, c, d)
#define AISEC_TURNS(V, a, b, bits) AISEC_TURN(V, a, bits) AISEC_TURN(V, b, bits)

// Half of four quarters of a round in eight steps, two quarters a step behind the other two; M0 to M5 are done between.
// Of one state, then of two.
#define AISEC_STEP_0(V, part, w0, w1, w2, w3, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)  \
  AISEC_ADD_WORDS(V, part, a0, w0, a1, w1)
#define AISEC_STEP_1(V, part, w0, w1, w2, w3, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)  \
  AISEC_ADDS(V, a0, b0, a1, b1) AISEC_ADD_WORDS(V, part, a2, w2, a3, w3)
#define AISEC_STEP_2(V, part, w0, w1, w2, w3, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)  \
  AISEC_XORS(V, d0, a0, d1, a1) AISEC_ADDS(V, a2, b2, a3, b3)
#define AISEC_STEP_3(V, right, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)                 \
  AISEC_TURNS(V, d0, d1, right) AISEC_XORS(V, d2, a2, d3, a3)
#define AISEC_STEP_4(V, right, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)                 \
  AISEC_ADDS(V, c0, d0, c1, d1) AISEC_TURNS(V, d2, d3, right)
#define AISEC_STEP_5(V, right, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)                 \
  AISEC_XORS(V, b0, c0, b1, c1) AISEC_ADDS(V, c2, d2, c3, d3)
#define AISEC_STEP_6(V, less, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)                  \
  AISEC_TURNS(V, b0, b1, less) AISEC_XORS(V, b2, c2, b3, c3)
#define AISEC_STEP_7(V, less, a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3)                  \
  AISEC_TURNS(V, b2, b3, less)
#define AISEC_STEP_OF(number, ...) AISEC_STEP_##number(__VA_ARGS__)
#define AISEC_STEP(...) AISEC_STEP_OF(__VA_ARGS__)
#define AISEC_LIST(...) __VA_ARGS__
#define AISEC_WORDS_OF(number, V, part, ROWS, ...) AISEC_STEP(number, V, part, __VA_ARGS__, AISEC_LIST ROWS)
#define AISEC_TURNS_OF(number, V, bits, ROWS) AISEC_STEP(number, V, bits, AISEC_LIST ROWS)
#define AISEC_HALF_(V, M0, M1, M2, M3, M4, M5, w0, w1, w2, w3, right, less, ROWS, ROWS_2)                           \
  AISEC_WORDS_OF(0, V, "0", ROWS, w0, w1, w2, w3)                                                                   \
  AISEC_WORDS_OF(1, V, "0", ROWS, w0, w1, w2, w3) M0 AISEC_WORDS_OF(2, V, "0", ROWS, w0, w1, w2, w3) M1             \
  AISEC_TURNS_OF(3, V, right, ROWS) M2 AISEC_TURNS_OF(4, V, right, ROWS) M3 AISEC_TURNS_OF(5, V, right, ROWS) M4    \
  AISEC_TURNS_OF(6, V, less, ROWS) M5 AISEC_TURNS_OF(7, V, less, ROWS)
#define AISEC_HALF_OF_TWO_(V, M0, M1, M2, M3, M4, M5, w0, w1, w2, w3, right, less, ROWS, ROWS_2)                    \
  AISEC_WORDS_OF(0, V, "0", ROWS, w0, w1, w2, w3) AISEC_WORDS_OF(0, V, "32", ROWS_2, w0, w1, w2, w3)                \
  AISEC_WORDS_OF(1, V, "0", ROWS, w0, w1, w2, w3) AISEC_WORDS_OF(1, V, "32", ROWS_2, w0, w1, w2, w3) M0             \
  AISEC_WORDS_OF(2, V, "0", ROWS, w0, w1, w2, w3) AISEC_WORDS_OF(2, V, "32", ROWS_2, w0, w1, w2, w3) M1             \
  AISEC_TURNS_OF(3, V, right, ROWS) AISEC_TURNS_OF(3, V, right, ROWS_2) M2                                          \
  AISEC_TURNS_OF(4, V, right, ROWS) AISEC_TURNS_OF(4, V, right, ROWS_2) M3                                          \
  AISEC_TURNS_OF(5, V, right, ROWS) AISEC_TURNS_OF(5, V, right, ROWS_2) M4                                          \
  AISEC_TURNS_OF(6, V, less, ROWS) AISEC_TURNS_OF(6, V, less, ROWS_2) M5                                            \
  AISEC_TURNS_OF(7, V, less, ROWS) AISEC_TURNS_OF(7, V, less, ROWS_2)
#define AISEC_HALF(V, MOVES, ...) AISEC_HALF_(V, MOVES, __VA_ARGS__)
#define AISEC_HALF_OF_TWO(V, MOVES, ...) AISEC_HALF_OF_TWO_(V, MOVES, __VA_ARGS__)

// Words 2 pair and 2 pair + 1 of an input's next block to their rows.
#define AISEC_INPUT(lane) \
  "movq 8*" #lane "(%[inputs]), %[from]\n\t" "prefetcht0 (%[from], %[ahead])\n\t"
#define AISEC_MOVE(lane, pair)                                      \
  "movq 8*" #pair "(%[from], %[place]), %[word]\n\t"                \
  "movl %k[word], 128*" #pair "+4*" #lane "(%[next])\n\t"           \
  "shrq $32, %[word]\n\t"                                           \
  "movl %k[word], 128*" #pair "+64+4*" #lane "(%[next])\n\t"
#define AISEC_FIRST(lane) AISEC_INPUT(lane) AISEC_MOVE(lane, 0)

// What is done beside half 1 to 4 of a round: words of three inputs move, of two, of one, or none.
#define AISEC_THREE_1(x, y, z) \
  AISEC_FIRST(x), AISEC_MOVE(x, 1), AISEC_MOVE(x, 2), AISEC_MOVE(x, 3), AISEC_MOVE(x, 4), AISEC_MOVE(x, 5)
#define AISEC_THREE_2(x, y, z) \
  AISEC_MOVE(x, 6), AISEC_MOVE(x, 7), AISEC_FIRST(y), AISEC_MOVE(y, 1), AISEC_MOVE(y, 2), AISEC_MOVE(y, 3)
#define AISEC_THREE_3(x, y, z) \
  AISEC_MOVE(y, 4), AISEC_MOVE(y, 5), AISEC_MOVE(y, 6), AISEC_MOVE(y, 7), AISEC_FIRST(z), AISEC_MOVE(z, 1)
#define AISEC_THREE_4(x, y, z) \
  AISEC_MOVE(z, 2), AISEC_MOVE(z, 3), AISEC_MOVE(z, 4), AISEC_MOVE(z, 5), AISEC_MOVE(z, 6), AISEC_MOVE(z, 7)
#define AISEC_TWO_1(x, y) AISEC_FIRST(x), AISEC_MOVE(x, 1), AISEC_MOVE(x, 2), AISEC_MOVE(x, 3), "", ""
#define AISEC_TWO_2(x, y) AISEC_MOVE(x, 4), AISEC_MOVE(x, 5), AISEC_MOVE(x, 6), AISEC_MOVE(x, 7), "", ""
#define AISEC_TWO_3(x, y) AISEC_TWO_1(y, y)
#define AISEC_TWO_4(x, y) AISEC_TWO_2(y, y)
#define AISEC_ONE_1(x) AISEC_TWO_1(x, x)
#define AISEC_ONE_2(x) AISEC_TWO_2(x, x)
#define AISEC_ONE_3(x) AISEC_NONE(3)
#define AISEC_ONE_4(x) AISEC_NONE(4)
#define AISEC_NONE(half) "", "", "", "", "", ""

// Which inputs' words move in which round, of sixteen and of eight.
#define AISEC_SIXTEEN_0(half) AISEC_THREE_##half(0, 1, 2)
#define AISEC_SIXTEEN_1(half) AISEC_THREE_##half(3, 4, 5)
#define AISEC_SIXTEEN_2(half) AISEC_THREE_##half(6, 7, 8)
#define AISEC_SIXTEEN_3(half) AISEC_THREE_##half(9, 10, 11)
#define AISEC_SIXTEEN_4(half) AISEC_THREE_##half(12, 13, 14)
#define AISEC_SIXTEEN_5(half) AISEC_ONE_##half(15)
#define AISEC_EIGHT_0(half) AISEC_TWO_##half(0, 1)
#define AISEC_EIGHT_1(half) AISEC_TWO_##half(2, 3)
#define AISEC_EIGHT_2(half) AISEC_TWO_##half(4, 5)
#define AISEC_EIGHT_3(half) AISEC_TWO_##half(6, 7)
#define AISEC_EIGHT_4(half) AISEC_NONE(half)
#define AISEC_EIGHT_5(half) AISEC_NONE(half)

// Rows of the quarters of a round: columns, then diagonals, of the first and of the second state. The last diagonal
// comes first, because it reads what the first column has written.
#define AISEC_COLUMNS      0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define AISEC_DIAGONALS    3, 0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 8, 14, 15, 12, 13
#define AISEC_COLUMNS_2    16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
#define AISEC_DIAGONALS_2  19, 16, 17, 18, 20, 21, 22, 23, 25, 26, 27, 24, 30, 31, 28, 29

// A round over message words in this order: of one state in zmm or ymm registers, or of two in ymm registers.
#define AISEC_ROUND_(HALF, V, MOVES, w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15)     \
  HALF(V, MOVES(1), w0, w2, w4, w6, 16, 12, (AISEC_COLUMNS), (AISEC_COLUMNS_2))                                \
  HALF(V, MOVES(2), w1, w3, w5, w7, 8, 7, (AISEC_COLUMNS), (AISEC_COLUMNS_2))                                  \
  HALF(V, MOVES(3), w14, w8, w10, w12, 16, 12, (AISEC_DIAGONALS), (AISEC_DIAGONALS_2))                         \
  HALF(V, MOVES(4), w15, w9, w11, w13, 8, 7, (AISEC_DIAGONALS), (AISEC_DIAGONALS_2))
#define AISEC_ROUND_OF_ONE(...) AISEC_ROUND_(AISEC_HALF, __VA_ARGS__)
#define AISEC_ROUND_OF_TWO(...) AISEC_ROUND_(AISEC_HALF_OF_TWO, __VA_ARGS__)

// The order of words is that of blake3_word in hashing_math.hpp.
#define AISEC_SEVEN_ROUNDS(ROUND, V, MOVES)                                           \
  ROUND(V, MOVES##_0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)           \
  ROUND(V, MOVES##_1, 2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)           \
  ROUND(V, MOVES##_2, 3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1)           \
  ROUND(V, MOVES##_3, 10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6)           \
  ROUND(V, MOVES##_4, 12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4)           \
  ROUND(V, MOVES##_5, 9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7)           \
  ROUND(V, AISEC_NONE, 11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13)

#define AISEC_LOAD(V, part, v, row) "vmovdqa64 " part "+64*" #row "(%[chaining]), " AISEC_ROW(V, v) "\n\t"
#define AISEC_STORE(V, part, v, row) "vmovdqa64 " AISEC_ROW(V, v) ", " part "+64*" #row "(%[chaining])\n\t"
#define AISEC_ALL(V, part, DO, v0, v1, v2, v3, v4, v5, v6, v7)                                               \
  DO(V, part, v0, 0) DO(V, part, v1, 1) DO(V, part, v2, 2) DO(V, part, v3, 3)                                \
  DO(V, part, v4, 4) DO(V, part, v5, 5) DO(V, part, v6, 6) DO(V, part, v7, 7)

// Rows 8 to 15 of a block's state.
#define AISEC_WORD_OF_ALL(V, v, place) "vpbroadcastd " place ", " AISEC_ROW(V, v) "\n\t"
#define AISEC_START(V, part, v8, v9, v10, v11, v12, v13, v14, v15)                                              \
  AISEC_WORD_OF_ALL(V, v8, "128(%[constants])") AISEC_WORD_OF_ALL(V, v9, "132(%[constants])")                   \
  AISEC_WORD_OF_ALL(V, v10, "136(%[constants])") AISEC_WORD_OF_ALL(V, v11, "140(%[constants])")                 \
  "vmovdqa64 " part "(%[constants]), " AISEC_ROW(V, v12) "\n\t"                                                 \
  "vmovdqa64 " part "+64(%[constants]), " AISEC_ROW(V, v13) "\n\t"                                              \
  AISEC_WORD_OF_ALL(V, v14, "144(%[constants])") AISEC_WORD_OF_ALL(V, v15, "(%[flags])")
#define AISEC_FOLD(V, v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15)                     \
  AISEC_XORS(V, v0, v8, v1, v9) AISEC_XORS(V, v2, v10, v3, v11) AISEC_XORS(V, v4, v12, v5, v13)                 \
  AISEC_XORS(V, v6, v14, v7, v15)
#define AISEC_FOLD_(...) AISEC_FOLD(__VA_ARGS__)

#define AISEC_HASH(BEGIN, START, ROUNDS, FOLD, END)                                                                   \
  const unsigned char *const *now = inputs, *const *after = behind;                                                   \
  const std::uint32_t* flags = constants.flags;                                                                       \
  Message *message = first, *next = second;                                                                           \
  std::uint64_t word, from, zero = 0, place = 0, ahead = constants.ahead, left = constants.blocks;                    \
  asm volatile(BEGIN                                                                                                  \
      "1:\n\t" START                                                                                                  \
      "addq $64, %[place]\n\t" "addq $64, %[ahead]\n\t" "cmpq $1, %[left]\n\t"                                        \
      "cmoveq %[after], %[inputs]\n\t" "cmoveq %[zero], %[place]\n\t" "cmoveq %[first_ahead], %[ahead]\n\t"           \
      ROUNDS FOLD                                                                                                     \
      "xchgq %[message], %[next]\n\t" "addq $4, %[flags]\n\t" "decq %[left]\n\t" "jne 1b\n\t" END                     \
      : [word] "=&r"(word), [from] "=&r"(from), [place] "+r"(place), [ahead] "+r"(ahead), [left] "+r"(left),          \
        [inputs] "+r"(now), [flags] "+r"(flags), [message] "+r"(message), [next] "+r"(next)                           \
      : [after] "m"(after), [zero] "m"(zero), [first_ahead] "m"(constants.ahead), [chaining] "r"(&chaining[0]),       \
        [constants] "r"(&constants)                                                                                   \
      : "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",      \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22",   \
        "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31")

using Message = Lanes[16];                         // a block of every lane, in columns
using Places = const unsigned char* const[lanes];  // where each lane's input begins

// The chaining values of sixteen inputs at the end of their blocks. Those lie at `inputs`, the first of each in columns
// in `first`. By the way the first blocks of `behind` come into columns: in `first` if the inputs' blocks are an even
// number, else in `second`.
__attribute__((noinline)) void hash_sixteen(Lanes (&chaining)[8], const GroupConstants& constants, Message* first,
                                            Message* second, Places& inputs, Places& behind) {
  AISEC_HASH(AISEC_ALL("zmm", "0", AISEC_LOAD, 0, 1, 2, 3, 4, 5, 6, 7),
             AISEC_START("zmm", "0", 8, 9, 10, 11, 12, 13, 14, 15),
             AISEC_SEVEN_ROUNDS(AISEC_ROUND_OF_ONE, "zmm", AISEC_SIXTEEN),
             AISEC_FOLD_("zmm", AISEC_COLUMNS),
             AISEC_ALL("zmm", "0", AISEC_STORE, 0, 1, 2, 3, 4, 5, 6, 7));
}

__attribute__((noinline)) void hash_twice_eight(Lanes (&chaining)[8], const GroupConstants& constants, Message* first,
                                                Message* second, Places& inputs, Places& behind) {
  AISEC_HASH(AISEC_ALL("ymm", "0", AISEC_LOAD, 0, 1, 2, 3, 4, 5, 6, 7)
             AISEC_ALL("ymm", "32", AISEC_LOAD, 16, 17, 18, 19, 20, 21, 22, 23),
             AISEC_START("ymm", "0", 8, 9, 10, 11, 12, 13, 14, 15)
             AISEC_START("ymm", "32", 24, 25, 26, 27, 28, 29, 30, 31),
             AISEC_SEVEN_ROUNDS(AISEC_ROUND_OF_TWO, "ymm", AISEC_SIXTEEN),
             AISEC_FOLD_("ymm", AISEC_COLUMNS) AISEC_FOLD_("ymm", AISEC_COLUMNS_2),
             AISEC_ALL("ymm", "0", AISEC_STORE, 0, 1, 2, 3, 4, 5, 6, 7)
             AISEC_ALL("ymm", "32", AISEC_STORE, 16, 17, 18, 19, 20, 21, 22, 23));
}

// The first eight inputs alone.
__attribute__((noinline)) void hash_eight(Lanes (&chaining)[8], const GroupConstants& constants, Message* first,
                                          Message* second, Places& inputs, Places& behind) {
  AISEC_HASH(AISEC_ALL("ymm", "0", AISEC_LOAD, 0, 1, 2, 3, 4, 5, 6, 7),
             AISEC_START("ymm", "0", 8, 9, 10, 11, 12, 13, 14, 15),
             AISEC_SEVEN_ROUNDS(AISEC_ROUND_OF_ONE, "ymm", AISEC_EIGHT),
             AISEC_FOLD_("ymm", AISEC_COLUMNS),
             AISEC_ALL("ymm", "0", AISEC_STORE, 0, 1, 2, 3, 4, 5, 6, 7));
}
// clang-format on

#undef AISEC_ROW
#undef AISEC_ADD
#undef AISEC_XOR
#undef AISEC_TURN
#undef AISEC_ADD_WORD
#undef AISEC_ADD_WORDS
#undef AISEC_ADDS
#undef AISEC_XORS
#undef AISEC_TURNS
#undef AISEC_STEP_0
#undef AISEC_STEP_1
#undef AISEC_STEP_2
#undef AISEC_STEP_3
#undef AISEC_STEP_4
#undef AISEC_STEP_5
#undef AISEC_STEP_6
#undef AISEC_STEP_7
#undef AISEC_STEP_OF
#undef AISEC_STEP
#undef AISEC_LIST
#undef AISEC_WORDS_OF
#undef AISEC_TURNS_OF
#undef AISEC_HALF_
#undef AISEC_HALF_OF_TWO_
#undef AISEC_HALF
#undef AISEC_HALF_OF_TWO
#undef AISEC_INPUT
#undef AISEC_MOVE
#undef AISEC_FIRST
#undef AISEC_THREE_1
#undef AISEC_THREE_2
#undef AISEC_THREE_3
#undef AISEC_THREE_4
#undef AISEC_TWO_1
#undef AISEC_TWO_2
#undef AISEC_TWO_3
#undef AISEC_TWO_4
#undef AISEC_ONE_1
#undef AISEC_ONE_2
#undef AISEC_ONE_3
#undef AISEC_ONE_4
#undef AISEC_NONE
#undef AISEC_SIXTEEN_0
#undef AISEC_SIXTEEN_1
#undef AISEC_SIXTEEN_2
#undef AISEC_SIXTEEN_3
#undef AISEC_SIXTEEN_4
#undef AISEC_SIXTEEN_5
#undef AISEC_EIGHT_0
#undef AISEC_EIGHT_1
#undef AISEC_EIGHT_2
#undef AISEC_EIGHT_3
#undef AISEC_EIGHT_4
#undef AISEC_EIGHT_5
#undef AISEC_COLUMNS
#undef AISEC_DIAGONALS
#undef AISEC_COLUMNS_2
#undef AISEC_DIAGONALS_2
#undef AISEC_ROUND_
#undef AISEC_ROUND_OF_ONE
#undef AISEC_ROUND_OF_TWO
#undef AISEC_SEVEN_ROUNDS
#undef AISEC_LOAD
#undef AISEC_STORE
#undef AISEC_ALL
#undef AISEC_WORD_OF_ALL
#undef AISEC_START
#undef AISEC_FOLD
#undef AISEC_FOLD_
#undef AISEC_HASH

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
