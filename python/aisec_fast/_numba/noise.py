"""Noise kernels for Numba. docs/noise.md is the contract and has the proof of every constant below.

A call works through its array in chunks. A kernel draws a chunk's integers Z by the fast step and lists what it flags;
`_reference.noise` decides those from the same bits; a second kernel adds Z to the array.

All arithmetic is written with explicit types, because Numba turns `uint32 + uint32` into uint64 and `uint64 + int64`
into float64, and without Numba's compiler (NUMBA_DISABLE_JIT=1) NumPy's rules are different ones.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aisec_fast._numba._kernel import inlined, kernel
from aisec_fast._numba._parallel import parallel_for, thread_count
from aisec_fast._reference.noise import gaussian_integer, laplace_integer
from aisec_fast._tables import quantiles

U32: TypeAlias = np.uint32
U64: TypeAlias = np.uint64
I64: TypeAlias = np.int64
F32: TypeAlias = np.float32
F64: TypeAlias = np.float64
Block: TypeAlias = tuple[U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32, U32]

GROUP = 128  # samples made from LANES consecutive blocks
LANES = 16
CHUNK = 128  # groups a chunk: Z and the records of flagged samples stay in the second-level cache
RECORD = 6  # words recorded of a flagged sample: its number, its word, e_0 to e_3
STRIP = 1024  # values that are added at a time
LARGEST_INTEGER = F64(2.0**62)
UNDECIDED = F64(np.nan)  # stands in Z for what is flagged

RAW, GAUSSIAN, LAPLACE = U32(0), U32(1), U32(2)
MAIN, REFINEMENT = U32(0), U32(1)
C0, C1, C2, C3 = U32(0x61707865), U32(0x3320646E), U32(0x79622D32), U32(0x6B206574)  # "expand 32-byte k"

GAUSSIAN_ERROR, LAPLACE_ERROR = 2.0**-42, 2.0**-40  # E / s of section 4

# The upper 18 bits of binary64 v = 2^(32+o) m are 64 (1023 + 32 + o) + c. From o = 12 on row 64 o + c + 1 is v's, and
# the row before them holds NaN, which flags the sample.
ROW_OF_NAN = I64(64 * (1023 + 32 + 12) - 1)
BEFORE_ROW_0 = I64(64 * (1023 + 32) - 1)
LOW_46, ONE_BITS = U64(2**46 - 1), U64(0x3FF0000000000000)
MIDDLE = F64(1.0 + 2.0**-7)  # of a cell moved to [1, 1 + 1/64)

# Of float mode, where the deep rows are used too.
DEEPEST = U64(2**32)  # words below it count as it
DEEP_ROWS = I64(768)
FLOAT_MIDDLE = F32(1.0 + 2.0**-7)
LOW_17, ONE_FLOAT_BITS = U32(2**17 - 1), U32(0x3F800000)
BEFORE_FLOAT_ROW_0, FLOAT_ROWS_LEFT_OUT = I64(64 * 127), I64(64)  # the octave below 2^-31

ROUNDER = F64(1.5 * 2.0**52)  # (a + ROUNDER) - ROUNDER rounds a to an integer, ties to even, for |a| < 2^51
NEAR = F64(2.0**50)  # |q| up to here: q and q + Z are exact in float64, as |Z| < 2^48


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
    """Fill `out` with the words w of the main stream from group `first_group` on."""
    words = np.empty((16, LANES), U32)
    for start in range(0, out.size, GROUP):
        _blocks(key, domain, MAIN, U64(LANES * (first_group + start // GROUP)), LANES, words)
        for i in range(min(GROUP, out.size - start)):
            k, b = i // LANES, i % LANES
            out[start + i] = _join(words[2 * k, b], words[2 * k + 1, b])


# --- The fast step ----------------------------------------------------------------------------------------------------


@inlined
def _record(record: NDArray[U64], number: int, w: U64, key: NDArray[U32], domain: U32, words: NDArray[U32]) -> None:
    """Note down all that decides one flagged sample. `words` is scratch."""
    _blocks(key, domain, REFINEMENT, U64(number), 1, words)
    record[0], record[1] = U64(number), w
    for m in range(4):
        record[2 + m] = _join(words[2 * m, 0], words[2 * m + 1, 0])


@kernel
def _draw_chunk(
    key: NDArray[U32],
    domain: U32,
    table: NDArray[F64],
    s: F64,
    limit: F64,
    first_group: int,
    z: NDArray[F64],
    records: NDArray[U64],
) -> int:
    """Fill z [groups, GROUP] from group `first_group` on; return how many samples are in `records`.

    A group goes through three loops, because LLVM vectorises the first and the last and not the look-ups between them;
    those it turns into one load and one store of four numbers.
    """
    words, extra = np.empty((16, LANES), U32), np.empty((16, LANES), U32)
    rows, deltas, signs = np.empty(GROUP, U64), np.empty(GROUP, F64), np.empty(GROUP, U64)
    coefficients = np.empty((GROUP, 4), F64)
    flagged = 0
    for g in range(z.shape[0]):
        group, zg = first_group + g, z[g]
        _blocks(key, domain, MAIN, U64(LANES * group), LANES, words)
        for k in range(8):
            low, high = words[2 * k], words[2 * k + 1]
            for b in range(LANES):
                w = _join(low[b], high[b])
                v = F64(w).view(U64)
                rows[LANES * k + b] = U64(max(I64(v >> U64(46)), ROW_OF_NAN) - BEFORE_ROW_0)
                deltas[LANES * k + b] = U64(U64(v & LOW_46) | ONE_BITS).view(F64) - MIDDLE
                signs[LANES * k + b] = U64(w << U64(63))
        for i in range(GROUP):
            row = rows[i]
            c0, c1, c2, c3 = table[row, 0], table[row, 1], table[row, 2], table[row, 3]
            coefficients[i, 0], coefficients[i, 1], coefficients[i, 2], coefficients[i, 3] = c0, c1, c2, c3
        any_flag = I64(0)
        for i in range(GROUP):
            c3 = coefficients[i, 3]
            c4 = U64(F64(c3).view(U64) << U64(32)).view(F64)
            delta, sign = deltas[i], signs[i]
            t = (((c4 * delta + c3) * delta + coefficients[i, 2]) * delta + coefficients[i, 1]) * delta
            a = s * (t + coefficients[i, 0])
            n = (a + ROUNDER) - ROUNDER
            flag = not (abs(a - n) <= limit)
            zg[i] = UNDECIDED if flag else U64(F64(n).view(U64) ^ sign).view(F64)
            any_flag |= I64(flag)
        if any_flag != 0:
            for i in range(GROUP):
                if np.isnan(zg[i]):
                    k, b = i // LANES, i % LANES
                    w = _join(words[2 * k, b], words[2 * k + 1, b])
                    _record(records[flagged], GROUP * group + i, w, key, domain, extra)
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


@inlined
def _over_granularity(value: Any, inverse: F64) -> F64:
    """value / g, or the lattice's integer itself."""
    if isinstance(value, np.int64):
        return F64(value)
    return F64(F64(value) * inverse)


@kernel
def _add_chunk(x: NDArray[Any], z: NDArray[F64], inverse: F64, granularity: F64, out: NDArray[Any]) -> None:
    """out = g (q + z). Near the origin all of it is float64 arithmetic: AVX2 cannot convert to and from int64.

    A strip is a slice, whose indices LLVM knows not to be negative, and x / g is put aside, because x may be out: else
    the loops would not vectorise, and adding would take longer than drawing.
    """
    scaled = np.empty(STRIP, F64)
    for start in range(0, x.size, STRIP):
        stop = min(start + STRIP, x.size)
        values, integers, results = x[start:stop], z[start:stop], out[start:stop]
        far = 0
        for i in range(values.size):  # without an exit, so that it vectorises
            over = _over_granularity(values[i], inverse)
            far += not (abs(over) <= NEAR)
            scaled[i] = over
        # The one rounding is to out's type; the product in float64 is exact, or it overflows or underflows in that type.
        if far == 0:
            for i in range(values.size):
                q = (scaled[i] + ROUNDER) - ROUNDER
                value = out.dtype.type(F64(q + integers[i]))
                results[i] = out.dtype.type(F64(value) * granularity)
        else:
            for i in range(values.size):
                value = out.dtype.type(I64(_to_lattice(values[i], inverse) + I64(integers[i])))
                results[i] = out.dtype.type(F64(value) * granularity)


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


# --- Float mode -------------------------------------------------------------------------------------------------------


@inlined
def _float_sample(words: NDArray[U32], table: NDArray[F32], i: int) -> F32:
    """T of sample i of a group of 256, from half i mod 2 of word i div 2."""
    k, b = i // 2 // LANES, i // 2 % LANES
    d = words[2 * k + i % 2, b]
    v = F32(np.int32(U32(U32(d >> U32(1)) | U32(1)))).view(U32)
    delta = U32(U32(v & LOW_17) | ONE_FLOAT_BITS).view(F32) - FLOAT_MIDDLE
    row = I64(v >> U32(17)) - BEFORE_FLOAT_ROW_0 + FLOAT_ROWS_LEFT_OUT
    row += I64(row >= DEEP_ROWS)
    t = F32(F32(F32(table[row, 3] * delta) + table[row, 2]) * delta) + table[row, 1]
    t = F32(F32(t * delta) + table[row, 0])
    return U32(t.view(U32) ^ U32(d << U32(31))).view(F32)


@inlined
def _double_sample(words: NDArray[U32], table: NDArray[F64], i: int) -> F64:
    """T of sample i of a group of 128, from word i."""
    k, b = i // LANES, i % LANES
    w = _join(words[2 * k, b], words[2 * k + 1, b])
    v = F64(max(w, DEEPEST)).view(U64)
    delta = U64(U64(v & LOW_46) | ONE_BITS).view(F64) - MIDDLE
    row = I64(v >> U64(46)) - BEFORE_ROW_0 - I64(1)
    row += I64(row >= DEEP_ROWS)
    c3 = table[row, 3]
    c4 = U64(F64(c3).view(U64) << U64(32)).view(F64)
    t = (((c4 * delta + c3) * delta + table[row, 2]) * delta + table[row, 1]) * delta + table[row, 0]
    return U64(F64(t).view(U64) ^ U64(w << U64(63))).view(F64)


@kernel
def _add_float_chunk(
    key: NDArray[U32],
    domain: U32,
    table: NDArray[Any],
    scale: Any,
    first_group: int,
    x: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """out = x + scale T, from group `first_group` on; float32 has two samples a word."""
    words = np.empty((16, LANES), U32)
    if isinstance(scale, np.float32):
        for g in range(0, x.size, 2 * GROUP):
            _blocks(key, domain, MAIN, U64(LANES * (first_group + g // (2 * GROUP))), LANES, words)
            for i in range(min(2 * GROUP, x.size - g)):
                out[g + i] = x[g + i] + scale * _float_sample(words, table, i)
    else:
        for g in range(0, x.size, GROUP):
            _blocks(key, domain, MAIN, U64(LANES * (first_group + g // GROUP)), LANES, words)
            for i in range(min(GROUP, x.size - g)):
                out[g + i] = x[g + i] + scale * _double_sample(words, table, i)


# --- The backend's interface ------------------------------------------------------------------------------------------

# Of a law: its domain, E / s, and what decides a flagged sample.
LAWS = {
    "gaussian": (GAUSSIAN, GAUSSIAN_ERROR, gaussian_integer),
    "laplace": (LAPLACE, LAPLACE_ERROR, laplace_integer),
}


def random_words(out: NDArray[U64], key: bytes, domain: int, generator: str = "chacha") -> None:
    """Fill out, uint64 [n], with words 0, ..., n - 1 of `domain`'s main stream. `generator`: "chacha" is all there is."""
    _require_chacha(generator)
    chunk = CHUNK * GROUP

    def work(begin: int, end: int) -> None:
        _raw_words(_key_words(key), U32(domain), CHUNK * begin, out[begin * chunk : end * chunk])

    parallel_for(-(-out.size // chunk), thread_count(), work)


def add_gaussian(
    x: NDArray[Any], out: NDArray[Any], sigma: float, granularity: float, key: bytes, generator: str = "chacha"
) -> None:
    """out = g (q + Z), Z Gaussian of standard deviation sigma / g, g = granularity.

    x: C-contiguous float32 or float64, q = rint(x / g), or int64, q = x; out: same shape, float32 or float64, may be x.
    generator: "chacha" is all there is.
    """
    _require_chacha(generator)
    _add("gaussian", x, out, sigma / granularity, granularity, key)


def add_laplace(
    x: NDArray[Any], out: NDArray[Any], scale: float, granularity: float, key: bytes, generator: str = "chacha"
) -> None:
    """out = g (q + Z), Z Laplace of scale scale / g, g = granularity; the rest as in `add_gaussian`."""
    _require_chacha(generator)
    _add("laplace", x, out, scale / granularity, granularity, key)


def add_float_gaussian(x: NDArray[Any], out: NDArray[Any], sigma: float, key: bytes, generator: str = "chacha") -> None:
    """out = x + sigma T in floating point (float mode), T of unit variance; float32 or float64; may be x."""
    _require_chacha(generator)
    _add_float("gaussian", x, out, sigma, key)


def add_float_laplace(x: NDArray[Any], out: NDArray[Any], scale: float, key: bytes, generator: str = "chacha") -> None:
    """out = x + scale T in floating point (float mode), T of scale 1; the rest as in `add_float_gaussian`."""
    _require_chacha(generator)
    _add_float("laplace", x, out, scale, key)


def first_unfit(x: NDArray[Any], granularity: float) -> int:
    """Return the index of the first x that is NaN, infinite or larger than 2^62 granularity, or -1."""
    return int(_first_unfit(x.reshape(-1), F64(2.0**62 * granularity)))


def _require_chacha(generator: str) -> None:
    if generator != "chacha":
        raise ValueError(f"generator is {generator!r}, expected 'chacha', the only one of the Numba backend")


def _key_words(key: bytes) -> NDArray[U32]:
    if len(key) != 32:
        raise ValueError(f"key has {len(key)} bytes, expected 32")
    return np.frombuffer(key, "<u4").astype(U32)


def _add(law: str, x: NDArray[Any], out: NDArray[Any], s: float, granularity: float, key: bytes) -> None:
    """Draw, decide what was flagged, add; chunk by chunk, on all threads."""
    x, out = x.reshape(-1), out.reshape(-1)
    domain, error, decide = LAWS[law]
    key_words, table = _key_words(key), quantiles(law)
    limit, inverse = F64(0.5 - error * s), F64(1.0 / granularity)

    def work(begin: int, end: int) -> None:
        z = np.empty((min(CHUNK, -(-x.size // GROUP)), GROUP), F64)
        records = np.empty((z.size, RECORD), U64)
        for chunk in range(begin, end):
            first_group = chunk * CHUNK
            part = slice(first_group * GROUP, (first_group + CHUNK) * GROUP)
            used = z[: -(-x[part].size // GROUP)]
            integers = used.reshape(-1)
            flagged = _draw_chunk(key_words, domain, table, F64(s), limit, first_group, used, records)
            for number, w, *extra in records[:flagged].tolist():
                integers[number - GROUP * first_group] = decide(w, extra, s)
            _add_chunk(x[part], integers, inverse, F64(granularity), out[part])

    parallel_for(-(-x.size // (CHUNK * GROUP)), thread_count(), work)


def _add_float(law: str, x: NDArray[Any], out: NDArray[Any], scale: float, key: bytes) -> None:
    x, out = x.reshape(-1), out.reshape(-1)
    key_words, table, domain = _key_words(key), quantiles(law).astype(x.dtype), LAWS[law][0]
    chunk = CHUNK * GROUP * (8 // x.itemsize)

    def work(begin: int, end: int) -> None:
        for first in range(begin, end):
            part = slice(first * chunk, (first + 1) * chunk)
            _add_float_chunk(key_words, domain, table, x.dtype.type(scale), first * CHUNK, x[part], out[part])

    parallel_for(-(-x.size // chunk), thread_count(), work)
