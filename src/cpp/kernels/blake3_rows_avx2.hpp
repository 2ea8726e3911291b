#pragma once
// BLAKE3's seven rounds for two vectors of states, two inputs in each, written out: a compiler keeps all message words
// in registers and rows of the states in memory, where all waits for them. Here the states have registers, and so have
// the first vector's words; the second's lie in memory. The next round's words are made a few instructions at a time,
// because the processor looks ahead for less than a round.
#include "kernels/lanes.hpp"

namespace aisec_fast::AISEC_ISA {
namespace {

// clang-format off
// As the assembler has it: sources, then what becomes of the last one.
#define AISEC_OP(op, from, to) op " " from ", " to ", " to "\n\t"
#define AISEC_SHUFFLE(order, from, to) "vpshufd $" order ", " from ", " to "\n\t"
#define AISEC_PUT(from, to) "vmovdqa " from ", " to "\n\t"

// Words 0 to 3 (as in RoundWords) of the second vector in a round; they lie in turns in two places.
#define AISEC_Y(round, i) "128*((" #round ")&1)+32*" #i "(%[words])"
#define AISEC_T "%%ymm12"
#define AISEC_U "%%ymm13"
#define AISEC_V "%%ymm14"
#define AISEC_FREE "%%ymm15"

// What RoundWords::permute does: for the second vector in three parts, for the first in one.
// NOLINTBEGIN(bugprone-macro-parentheses): of strings of assembly
#define AISEC_PERMUTE_1(round)                                                                        \
  AISEC_PUT(AISEC_Y(round, 0), AISEC_T) AISEC_OP("vshufps $0xd9,", AISEC_Y(round, 1), AISEC_T)        \
  AISEC_SHUFFLE("0x78", AISEC_T, AISEC_T) AISEC_PUT(AISEC_T, AISEC_Y(round + 1, 0))
#define AISEC_PERMUTE_2(round)                                                                        \
  AISEC_PUT(AISEC_Y(round, 2), AISEC_T) AISEC_OP("vshufps $0xfa,", AISEC_Y(round, 3), AISEC_T)        \
  AISEC_SHUFFLE("0x0f", AISEC_Y(round, 0), AISEC_U) AISEC_OP("vpblendd $0xaa,", AISEC_T, AISEC_U)     \
  AISEC_PUT(AISEC_U, AISEC_Y(round + 1, 1))
#define AISEC_PERMUTE_3(round)                                                                        \
  AISEC_PUT(AISEC_Y(round, 3), AISEC_V) "vpunpckhdq " AISEC_Y(round, 1) ", " AISEC_V ", " AISEC_U "\n\t" \
  AISEC_OP("vpunpckldq", AISEC_Y(round, 1), AISEC_V) AISEC_OP("vpblendd $0x88,", AISEC_Y(round, 2), AISEC_V) \
  AISEC_OP("vpunpcklqdq", AISEC_Y(round, 2), AISEC_U) AISEC_SHUFFLE("0xb4", AISEC_V, AISEC_V)         \
  AISEC_SHUFFLE("0x93", AISEC_U, AISEC_U) AISEC_PUT(AISEC_V, AISEC_Y(round + 1, 2))                   \
  AISEC_PUT(AISEC_U, AISEC_Y(round + 1, 3))
#define AISEC_PERMUTE_4(round)                                                                        \
  "vshufps $0xd9, %[x1], %[x0], " AISEC_T "\n\t" AISEC_SHUFFLE("0x0f", "%[x0]", AISEC_U)              \
  AISEC_SHUFFLE("0x78", AISEC_T, "%[x0]") "vshufps $0xfa, %[x3], %[x2], " AISEC_T "\n\t"              \
  "vpunpckldq %[x1], %[x3], " AISEC_V "\n\t" AISEC_OP("vpunpckhdq", "%[x1]", "%[x3]")                 \
  "vpblendd $0xaa, " AISEC_T ", " AISEC_U ", %[x1]\n\t" AISEC_OP("vpblendd $0x88,", "%[x2]", AISEC_V) \
  AISEC_OP("vpunpcklqdq", "%[x2]", "%[x3]") AISEC_SHUFFLE("0xb4", AISEC_V, "%[x2]")                   \
  AISEC_SHUFFLE("0x93", "%[x3]", "%[x3]")
#define AISEC_NONE(round) ""
// NOLINTEND(bugprone-macro-parentheses)

// Half of each quarter of a round; while its bits turn, PERMUTE.
#define AISEC_HALF(PERMUTE, round, i, table, right, left)                                    \
  AISEC_OP("vpaddd", "%[x" #i "]", "%[a]") AISEC_OP("vpaddd", AISEC_Y(round, i), "%[e]")     \
  AISEC_OP("vpaddd", "%[b]", "%[a]") AISEC_OP("vpaddd", "%[f]", "%[e]")                      \
  AISEC_OP("vpxor", "%[a]", "%[d]") AISEC_OP("vpxor", "%[e]", "%[h]")                        \
  AISEC_OP("vpshufb", table, "%[d]") AISEC_OP("vpshufb", table, "%[h]")                      \
  AISEC_OP("vpaddd", "%[d]", "%[c]") AISEC_OP("vpaddd", "%[h]", "%[g]")                      \
  AISEC_OP("vpxor", "%[c]", "%[b]") AISEC_OP("vpxor", "%[g]", "%[f]")                        \
  PERMUTE(round)                                                                             \
  "vpsrld $" right ", %[b], " AISEC_FREE "\n\tvpslld $" left ", %[b], %[b]\n\t"              \
  AISEC_OP("vpor", AISEC_FREE, "%[b]")                                                       \
  "vpsrld $" right ", %[f], " AISEC_FREE "\n\tvpslld $" left ", %[f], %[f]\n\t"              \
  AISEC_OP("vpor", AISEC_FREE, "%[f]")

#define AISEC_ROUND(P1, P2, P3, P4, round)                                                   \
  AISEC_HALF(P1, round, 0, "%[turn_16]", "12", "20")                                         \
  AISEC_HALF(P2, round, 1, "%[turn_8]", "7", "25")                                           \
  AISEC_SHUFFLE("0x93", "%[a]", "%[a]") AISEC_SHUFFLE("0x93", "%[e]", "%[e]")                \
  AISEC_SHUFFLE("0x4e", "%[d]", "%[d]") AISEC_SHUFFLE("0x4e", "%[h]", "%[h]")                \
  AISEC_SHUFFLE("0x39", "%[c]", "%[c]") AISEC_SHUFFLE("0x39", "%[g]", "%[g]")                \
  AISEC_HALF(P3, round, 2, "%[turn_16]", "12", "20")                                         \
  AISEC_HALF(P4, round, 3, "%[turn_8]", "7", "25")                                           \
  AISEC_SHUFFLE("0x39", "%[a]", "%[a]") AISEC_SHUFFLE("0x39", "%[e]", "%[e]")                \
  AISEC_SHUFFLE("0x4e", "%[d]", "%[d]") AISEC_SHUFFLE("0x4e", "%[h]", "%[h]")                \
  AISEC_SHUFFLE("0x93", "%[c]", "%[c]") AISEC_SHUFFLE("0x93", "%[g]", "%[g]")
#define AISEC_ONE_OF_SIX(round) AISEC_ROUND(AISEC_PERMUTE_1, AISEC_PERMUTE_2, AISEC_PERMUTE_3, AISEC_PERMUTE_4, round)
#define AISEC_THE_LAST(round) AISEC_ROUND(AISEC_NONE, AISEC_NONE, AISEC_NONE, AISEC_NONE, round)

// What seven times RowState::round does, to `one` with words `x` and to `two` with words `y`.
template <class State, class Words>
inline void rounds_of_two(State& one, Words& x, State& two, const Words& y) {
  struct Table {
    unsigned char bytes[32];
  };
  Lanes words[2][4] = {{y.x0, y.x1, y.x2, y.x3}};
  asm(AISEC_ONE_OF_SIX(0) AISEC_ONE_OF_SIX(1) AISEC_ONE_OF_SIX(2) AISEC_ONE_OF_SIX(3) AISEC_ONE_OF_SIX(4)
      AISEC_ONE_OF_SIX(5) AISEC_THE_LAST(6)
      : [a] "+x"(one.a), [b] "+x"(one.b), [c] "+x"(one.c), [d] "+x"(one.d),
        [e] "+x"(two.a), [f] "+x"(two.b), [g] "+x"(two.c), [h] "+x"(two.d),
        [x0] "+x"(x.x0), [x1] "+x"(x.x1), [x2] "+x"(x.x2), [x3] "+x"(x.x3), "+m"(words)
      : [words] "r"(&words), [turn_16] "m"(*reinterpret_cast<const Table*>(turn_16)),
        [turn_8] "m"(*reinterpret_cast<const Table*>(turn_8))
      : "ymm12", "ymm13", "ymm14", "ymm15");
}
// clang-format on

#undef AISEC_OP
#undef AISEC_SHUFFLE
#undef AISEC_PUT
#undef AISEC_Y
#undef AISEC_T
#undef AISEC_U
#undef AISEC_V
#undef AISEC_FREE
#undef AISEC_PERMUTE_1
#undef AISEC_PERMUTE_2
#undef AISEC_PERMUTE_3
#undef AISEC_PERMUTE_4
#undef AISEC_NONE
#undef AISEC_HALF
#undef AISEC_ROUND
#undef AISEC_ONE_OF_SIX
#undef AISEC_THE_LAST

}  // namespace
}  // namespace aisec_fast::AISEC_ISA
