"""Noise kernels for Numba. docs/noise.md is the contract and has the proof of every constant below.

A call works through its array in chunks. A kernel draws a chunk's integers Z by the fast step and lists what it flags;
`_reference.noise` decides those from the same bits; a second kernel adds Z to the array.

All arithmetic is written with explicit types, because Numba turns `uint32 + uint32` into uint64 and `uint64 + int64`
into float64, and without Numba's compiler (NUMBA_DISABLE_JIT=1) NumPy's rules are different ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aisec_fast._numba._kernel import inlined, kernel
from aisec_fast._numba._parallel import parallel_for, thread_count
from aisec_fast._reference.noise import gaussian_integer_pair, laplace_integer

U32: TypeAlias = np.uint32
U64: TypeAlias = np.uint64
I64: TypeAlias = np.int64
F64: TypeAlias = np.float64
Block: TypeAlias = tuple[U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32]

GROUP = 128  # samples made from LANES consecutive blocks
LANES = 16
CHUNK = 128  # groups a chunk: Z and the records of flagged samples stay in the second-level cache
RECORD = 11  # words recorded of a flagged pair or sample: its number, its main words (Laplace: one, then 0), refinement
LARGEST_INTEGER = F64(2.0**62)
UNDECIDED = I64(-(2**63))  # stands in Z for what is flagged

RAW, GAUSSIAN, LAPLACE = U32(0), U32(1), U32(2)
MAIN, REFINEMENT = U32(0), U32(1)
C0, C1, C2, C3 = U32(0x61707865), U32(0x3320646E), U32(0x79622D32), U32(0x6B206574)  # "expand 32-byte k"

# The flag zones and bounds E of section 4.
LOWEST_WU, WU_RANGE = U64(2**48), U64(2**64 - 2**47 - 2**48)
LOWEST_LAPLACE_W = U64(2**47)
LARGEST_FAST_SCALE = 2.0**36
GAUSSIAN_ERROR, LAPLACE_ERROR = 2.0**-38, 2.0**-36

# Bit patterns of binary64 numbers, for work on exponents and for conversions that AVX2 has no instruction for.
ONE_BITS, SQRT_HALF_BITS, TWO_52_BITS = U64(0x3FF0000000000000), U64(0x3FE6A09E667F3BCD), U64(0x4330000000000000)
TOP_12, LOW_62, LOW_63 = U64(0xFFF0000000000000), U64(2**62 - 1), U64(2**63 - 1)
E_BIAS = F64(2.0**52 + 2048.0)
ROUNDER = F64(1.5 * 2.0**52)  # a + ROUNDER rounds a to an integer n, ties to even, for |a| < 2^51,
ROUNDER_BITS = I64(0x4338000000000000)  # and its bit pattern is ROUNDER_BITS + n

ONE, HALF, LARGEST_UNIFORM = F64(1.0), F64(0.5), F64(1.0 - 2.0**-53)
LN_2, HALF_PI, SQRT_HALF = F64(math.log(2.0)), F64(math.pi / 2), F64(math.sqrt(0.5))
ARTANH = tuple(1 / n for n in range(21, 0, -2))  # atanh t = t (1 + z/3 + z^2/5 + ...), z = t^2
COSINE = tuple((-1) ** (n // 2) / math.factorial(n) for n in range(18, -1, -2))
SINE = tuple((-1) ** (n // 2) / math.factorial(n) for n in range(19, 0, -2))  # over y


# --- Bits -------------------------------------------------------------------------------------------------------------


@inlined
def _rotate(x: U32, distance: int) -> U32:
    return U32(U32(x << U32(distance)) | U32(x >> U32(32 - distance)))


@inlined
def _quarter_round(a: U32, b: U32, c: U32, d: U32) -> tuple[U32, U32, U32, U32]:
    a = U32(a + b)
    d = _rotate(U32(d ^ a), 16)
    c = U32(c + d)
    b = _rotate(U32(b ^ c), 12)
    a = U32(a + b)
    d = _rotate(U32(d ^ a), 8)
    c = U32(c + d)
    b = _rotate(U32(b ^ c), 7)
    return a, b, c, d


@inlined
def _double_round(x: Block) -> Block:
    x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15 = x
    x0, x4, x8, x12 = _quarter_round(x0, x4, x8, x12)
    x1, x5, x9, x13 = _quarter_round(x1, x5, x9, x13)
    x2, x6, x10, x14 = _quarter_round(x2, x6, x10, x14)
    x3, x7, x11, x15 = _quarter_round(x3, x7, x11, x15)
    x0, x5, x10, x15 = _quarter_round(x0, x5, x10, x15)
    x1, x6, x11, x12 = _quarter_round(x1, x6, x11, x12)
    x2, x7, x8, x13 = _quarter_round(x2, x7, x8, x13)
    x3, x4, x9, x14 = _quarter_round(x3, x4, x9, x14)
    return x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15


@inlined
def _blocks(key: NDArray[U32], domain: U32, level: U32, first: U64, lanes: int, words: NDArray[U32]) -> None:
    """words[w, b] = word w of block first + b, for b < lanes. A lane becomes a vector element."""
    k0, k1, k2, k3, k4, k5, k6, k7 = key[0], key[1], key[2], key[3], key[4], key[5], key[6], key[7]
    for b in range(lanes):
        counter = U64(first + U64(b))
        low, high = U32(counter & U64(0xFFFFFFFF)), U32(counter >> U64(32))
        x = (C0, C1, C2, C3, k0, k1, k2, k3, k4, k5, k6, k7, low, high, domain, level)
        # Not a loop: LLVM would not unroll six passes of this length, and then not vectorise the loop over lanes.
        x = _double_round(_double_round(_double_round(_double_round(_double_round(_double_round(x))))))
        words[0, b], words[1, b], words[2, b], words[3, b] = x[0] + C0, x[1] + C1, x[2] + C2, x[3] + C3
        words[4, b], words[5, b], words[6, b], words[7, b] = x[4] + k0, x[5] + k1, x[6] + k2, x[7] + k3
        words[8, b], words[9, b], words[10, b], words[11, b] = x[8] + k4, x[9] + k5, x[10] + k6, x[11] + k7
        words[12, b], words[13, b] = x[12] + low, x[13] + high
        words[14, b], words[15, b] = x[14] + domain, x[15] + level


@inlined
def _join(low: U32, high: U32) -> U64:
    return U64(U64(low) | U64(U64(high) << U64(32)))


@kernel
def _raw_words(key: NDArray[U32], domain: U32, first_group: int, out: NDArray[U64]) -> None:
    """Fill `out` with the words from group `first_group` on."""
    words = np.empty((16, LANES), U32)
    for start in range(0, out.size, GROUP):
        _blocks(key, domain, MAIN, U64(LANES * (first_group + start // GROUP)), LANES, words)
        for i in range(min(GROUP, out.size - start)):
            k, b = i // LANES, i % LANES
            out[start + i] = _join(words[2 * k, b], words[2 * k + 1, b])


# --- The fast step ----------------------------------------------------------------------------------------------------


@inlined
def _polynomial(coefficients: tuple[float, ...], x: F64) -> F64:
    """Horner's scheme, highest coefficient first."""
    value = F64(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


@inlined
def _unit(k: U64) -> F64:
    """(k + 1/2) 2^-52 for k < 2^52, exactly: 1 + k 2^-52 is a bit pattern, and the difference is representable."""
    return F64(U64(k | ONE_BITS).view(F64) - LARGEST_UNIFORM)


@inlined
def _negative_log(u: F64) -> F64:
    """-ln u for 2^-53 <= u < 1: u = 2^e m with m in [sqrt(1/2), sqrt 2), and ln m = 2 atanh t."""
    bits = F64(u).view(U64)
    shifted = U64(bits - SQRT_HALF_BITS)  # e in the top 12 bits, signed
    e = F64(U64(U64(U64(shifted >> U64(52)) ^ U64(0x800)) | TWO_52_BITS).view(F64) - E_BIAS)
    m = F64(U64(bits - U64(shifted & TOP_12)).view(F64))
    t = (m - ONE) / (m + ONE)
    return F64(-(e * LN_2 + (t + t) * _polynomial(ARTANH, t * t)))


@inlined
def _fast_pair(wu: U64, wv: U64, s: F64) -> tuple[F64, F64]:
    """s r cos(f pi/2) and s r sin(f pi/2), each within E = 2^-38 s if u is in the zone."""
    radius = s * np.sqrt(F64(2.0) * _negative_log(_unit(U64(wu >> U64(12)))))
    y = (_unit(U64(U64(wv & LOW_62) >> U64(10))) - HALF) * HALF_PI  # the angle beyond pi/4
    z = y * y
    cosine, sine = _polynomial(COSINE, z), y * _polynomial(SINE, z)
    return radius * ((cosine - sine) * SQRT_HALF), radius * ((cosine + sine) * SQRT_HALF)


@inlined
def _signed_integer(rounded: F64, sign: U64) -> I64:
    """The integer n of rounded = n + ROUNDER, negated if sign is 1. (AVX2 cannot convert float64 to int64.)"""
    n, negative = I64(F64(rounded).view(I64) - ROUNDER_BITS), I64(sign)
    return I64(I64(n ^ I64(-negative)) + negative)


@inlined
def _record(
    record: NDArray[U64], number: int, w0: U64, w1: U64, key: NDArray[U32], domain: U32, words: NDArray[U32]
) -> None:
    """Note down all that decides one flagged pair or sample. `words` is scratch."""
    _blocks(key, domain, REFINEMENT, U64(number), 1, words)
    record[0], record[1], record[2] = U64(number), w0, w1
    for m in range(8):
        record[3 + m] = _join(words[2 * m, 0], words[2 * m + 1, 0])


@kernel
def _gaussian_chunk(
    key: NDArray[U32], s: F64, limit: F64, first_group: int, z: NDArray[I64], records: NDArray[U64]
) -> int:
    """Fill z [groups, 2, 4, LANES] (half, k, b) from group `first_group` on; return how many pairs are in `records`."""
    words, extra = np.empty((16, LANES), U32), np.empty((16, LANES), U32)
    flagged = 0
    for g in range(z.shape[0]):
        group = first_group + g
        _blocks(key, GAUSSIAN, MAIN, U64(LANES * group), LANES, words)
        for k in range(4):
            x0, x1, x2, x3 = words[4 * k], words[4 * k + 1], words[4 * k + 2], words[4 * k + 3]
            z0, z1 = z[g, 0, k], z[g, 1, k]
            any_flag = I64(0)
            for b in range(LANES):
                wu, wv = _join(x0[b], x1[b]), _join(x2[b], x3[b])
                first, second = _fast_pair(wu, wv, s)
                first_rounded, second_rounded = first + ROUNDER, second + ROUNDER
                flag = (
                    (U64(wu - LOWEST_WU) >= WU_RANGE)
                    | (abs(first - (first_rounded - ROUNDER)) > limit)
                    | (abs(second - (second_rounded - ROUNDER)) > limit)
                )
                z0[b] = UNDECIDED if flag else _signed_integer(first_rounded, U64(wv >> U64(63)))
                z1[b] = _signed_integer(second_rounded, U64(U64(wv >> U64(62)) & U64(1)))
                any_flag |= I64(flag)
            if any_flag != 0:
                for b in range(LANES):
                    if z0[b] == UNDECIDED:
                        wu, wv = _join(x0[b], x1[b]), _join(x2[b], x3[b])
                        _record(records[flagged], 64 * group + LANES * k + b, wu, wv, key, GAUSSIAN, extra)
                        flagged += 1
    return flagged


@kernel
def _laplace_chunk(
    key: NDArray[U32], s: F64, limit: F64, first_group: int, z: NDArray[I64], records: NDArray[U64]
) -> int:
    """Fill z [groups, 2, 4, LANES] (k div 4, k mod 4, b) from `first_group` on; return how many samples are recorded."""
    words, extra = np.empty((16, LANES), U32), np.empty((16, LANES), U32)
    flagged = 0
    for g in range(z.shape[0]):
        group = first_group + g
        _blocks(key, LAPLACE, MAIN, U64(LANES * group), LANES, words)
        for k in range(8):
            x0, x1, zk = words[2 * k], words[2 * k + 1], z[g, k // 4, k % 4]
            any_flag = I64(0)
            for b in range(LANES):
                w = _join(x0[b], x1[b])
                magnitude = U64(w & LOW_63)
                value = s * _negative_log(_unit(U64(magnitude >> U64(11))))
                rounded = value + ROUNDER
                flag = (magnitude < LOWEST_LAPLACE_W) | (abs(value - (rounded - ROUNDER)) > limit)
                zk[b] = UNDECIDED if flag else _signed_integer(rounded, U64(w >> U64(63)))
                any_flag |= I64(flag)
            if any_flag != 0:
                for b in range(LANES):
                    if zk[b] == UNDECIDED:
                        w = _join(x0[b], x1[b])
                        _record(records[flagged], GROUP * group + LANES * k + b, w, U64(0), key, LAPLACE, extra)
                        flagged += 1
    return flagged


# --- The lattice ------------------------------------------------------------------------------------------------------


@inlined
def _to_lattice(value: Any, inverse: F64) -> I64:
    """rint(value / g), NaN as 0, clamped to +-2^62; an int64 value is on the lattice already."""
    if isinstance(value, np.int64):
        return I64(value)
    q = np.rint(F64(value) * inverse)
    q = F64(0.0) if np.isnan(q) else min(max(q, -LARGEST_INTEGER), LARGEST_INTEGER)
    return I64(q)


@kernel
def _add_chunk(x: NDArray[Any], z: NDArray[I64], inverse: F64, granularity: F64, out: NDArray[Any]) -> None:
    for i in range(x.size):
        # The one rounding; the product in float64 is exact, or it overflows or underflows in out's type.
        value = out.dtype.type(I64(_to_lattice(x[i], inverse) + z[i]))
        out[i] = out.dtype.type(F64(value) * granularity)


@kernel
def _first_unfit(x: NDArray[Any], limit: F64) -> int:
    for start in range(0, x.size, 4096):
        stop = min(start + 4096, x.size)
        unfit = 0
        for i in range(start, stop):  # without an exit, so that it vectorises
            unfit += not (abs(F64(x[i])) <= limit)
        if unfit > 0:
            for i in range(start, stop):
                if not (abs(F64(x[i])) <= limit):
                    return i
    return -1


# --- The backend's interface ------------------------------------------------------------------------------------------

Draw: TypeAlias = Callable[[NDArray[U32], F64, F64, int, NDArray[I64], NDArray[U64]], int]


def random_words(out: NDArray[U64], key: bytes, domain: int) -> None:
    """Fill out, uint64 [n], with words 0, ..., n - 1 of `domain`'s main stream in the "raw words" layout."""
    chunk = CHUNK * GROUP

    def work(begin: int, end: int) -> None:
        _raw_words(_key_words(key), U32(domain), CHUNK * begin, out[begin * chunk : end * chunk])

    parallel_for(-(-out.size // chunk), thread_count(), work)


def add_gaussian(x: NDArray[Any], out: NDArray[Any], sigma: float, granularity: float, key: bytes) -> None:
    """out = g (q + Z), Z Gaussian of standard deviation sigma / g, g = granularity.

    x: C-contiguous float32 or float64, q = rint(x / g), or int64, q = x; out: same shape, float32 or float64, may be x.
    """

    def decide(record: list[int], z: NDArray[I64], first_group: int) -> None:
        number, wu, wv, *extra = record
        group, position = divmod(number - GROUP // 2 * first_group, GROUP // 2)
        i = GROUP * group + position
        z[i], z[i + GROUP // 2] = gaussian_integer_pair(wu, wv, extra, s)

    s = sigma / granularity
    _add(x, out, s, GAUSSIAN_ERROR, granularity, key, _gaussian_chunk, decide)


def add_laplace(x: NDArray[Any], out: NDArray[Any], scale: float, granularity: float, key: bytes) -> None:
    """out = g (rint(x / g) + Z), Z Laplace of scale scale / g, g = granularity; x and out as in `add_gaussian`."""

    def decide(record: list[int], z: NDArray[I64], first_group: int) -> None:
        number, w, _, *extra = record
        z[number - GROUP * first_group] = laplace_integer(w, extra, s)

    s = scale / granularity
    _add(x, out, s, LAPLACE_ERROR, granularity, key, _laplace_chunk, decide)


def first_unfit(x: NDArray[Any], granularity: float) -> int:
    """Return the index of the first x that is NaN, infinite or larger than 2^62 granularity, or -1."""
    return int(_first_unfit(x.reshape(-1), F64(2.0**62 * granularity)))


def _key_words(key: bytes) -> NDArray[U32]:
    return np.frombuffer(key, "<u4").astype(U32)


def _add(
    x: NDArray[Any],
    out: NDArray[Any],
    s: float,
    error: float,
    granularity: float,
    key: bytes,
    draw: Draw,
    decide: Callable[[list[int], NDArray[I64], int], None],
) -> None:
    """Draw, decide what was flagged, add; chunk by chunk, on all threads. `error` is E / s."""
    x, out = x.reshape(-1), out.reshape(-1)
    key_words = _key_words(key)
    limit = F64(0.5 - error * s if s <= LARGEST_FAST_SCALE else -1.0)  # a negative limit flags everything
    inverse = F64(1.0 / granularity)

    def work(begin: int, end: int) -> None:
        z = np.empty((min(CHUNK, -(-x.size // GROUP)), 2, 4, LANES), I64)
        records = np.empty((z.size, RECORD), U64)
        for chunk in range(begin, end):
            first_group = chunk * CHUNK
            part = slice(first_group * GROUP, (first_group + CHUNK) * GROUP)
            used = z[: -(-x[part].size // GROUP)]
            integers = used.reshape(-1)
            flagged = draw(key_words, F64(s), limit, first_group, used, records)
            for record in records[:flagged].tolist():
                decide(record, integers, first_group)
            _add_chunk(x[part], integers, inverse, F64(granularity), out[part])

    parallel_for(-(-x.size // (CHUNK * GROUP)), thread_count(), work)
