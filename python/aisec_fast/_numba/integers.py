"""Exact integers and decisions for Numba. docs/noise-integers.md is the contract and has the proof of every bound.

The words of a call are written first; a kernel turns each part into values and lists the positions that the words leave
open. Types are explicit, because Numba turns `uint64 + int64` into float64, and without its compiler NumPy's rules hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aisec_fast._numba._kernel import inlined, kernel
from aisec_fast._numba._parallel import parallel_for, thread_count
from aisec_fast._numba.noise import random_words

U32: TypeAlias = np.uint32
U64: TypeAlias = np.uint64
I64: TypeAlias = np.int64
F64: TypeAlias = np.float64
Open: TypeAlias = list[tuple[int, ...]]

BLOCK = 2**14  # samples that a thread turns into values at a time
DOMAIN = 0

ZERO, ONE, HALF_WORD = U64(0), U64(1), U64(32)
LOW_HALF, ALL_ONES = U64(2**32 - 1), U64(2**64 - 1)
LEAST = U64(2**43)  # u = 2^-20 in units of 2^-63: the first row after the deep ones
FIRST_ROW = U64(((1023 + 43) << 6) - 769)
LOW_46, ONE_BITS = U64(2**46 - 1), U64(0x3FF0000000000000)
ROUNDER, ROUNDER_BITS = F64(1.5 * 2.0**52), I64(0x4338000000000000)  # a + ROUNDER has the bits ROUNDER_BITS + rint(a)
MIDDLE = F64(1 + 2.0**-7)
BITS_62, TOP_BIT = U64(62), U64(2**63)
ONE_62, LOW_62, THREE_HALVES = U64(2**62), U64(2**62 - 1), U64(3 * 2**61)  # 1 in units of 2^-62, its mask, 3/2


@inlined
def _with_sign(magnitude: I64, word: U64) -> I64:
    minus = I64(-I64(word & ONE))
    return I64(I64(magnitude ^ minus) - minus)


@kernel
def _by_table(
    words: NDArray[U64],
    thresholds: NDArray[U64],
    guide: NDArray[U32],
    shift: U64,
    out: NDArray[I64],
    opened: NDArray[I64],
) -> int:
    count = 0
    for i in range(words.size):
        u = U64(words[i] >> ONE)
        k = I64(guide[I64(u >> shift)])
        while u < thresholds[k]:
            k = I64(k + I64(1))
        out[i] = _with_sign(k, words[i])
        if u == thresholds[k]:
            opened[count] = i
            count += 1
    return count


@kernel
def _by_quantile(
    words: NDArray[U64],
    rows: NDArray[F64],
    scale: F64,
    offset: F64,
    limit: F64,
    out: NDArray[I64],
    opened: NDArray[I64],
) -> int:
    count = 0
    for i in range(words.size):
        u = U64(words[i] >> ONE)
        inside = max(u, LEAST)
        bits = F64(I64(inside)).view(U64)
        row = I64(U64(U64(bits >> U64(46)) - FIRST_ROW))
        delta = F64(U64(U64(bits & LOW_46) | ONE_BITS).view(F64) - MIDDLE)
        c3 = rows[row, 3]
        c4 = U64(F64(c3).view(U64) << HALF_WORD).view(F64)
        t = rows[row, 0] + delta * (rows[row, 1] + delta * (rows[row, 2] + delta * (c3 + delta * c4)))
        a = scale * t + offset
        shifted = F64(a + ROUNDER)
        distance = a - (shifted - ROUNDER)
        out[i] = _with_sign(I64(shifted.view(I64) - ROUNDER_BITS), words[i])
        if u < LEAST or not (abs(distance) <= limit):
            opened[count] = i
            count += 1
    return count


@inlined
def _product(a: U64, b: U64) -> tuple[U64, U64]:
    """The high and the low half of a b."""
    a0, a1, b0, b1 = U64(a & LOW_HALF), U64(a >> HALF_WORD), U64(b & LOW_HALF), U64(b >> HALF_WORD)
    lowest, middle = U64(a0 * b0), U64(a1 * b0)
    middle = U64(middle + U64(lowest >> HALF_WORD))
    other = U64(U64(a0 * b1) + U64(middle & LOW_HALF))
    high = U64(U64(a1 * b1) + U64(U64(middle >> HALF_WORD) + U64(other >> HALF_WORD)))
    return high, U64(U64(other << HALF_WORD) | U64(lowest & LOW_HALF))


@inlined
def _signed_high(a: I64, b: I64) -> I64:
    """The high half of a b."""
    high, _ = _product(U64(a), U64(b))
    if a < 0:
        high = U64(high - U64(b))
    if b < 0:
        high = U64(high - U64(a))
    return I64(high)


@inlined
def _wide_magnitude(u: U64, rows: NDArray[I64], mantissa: U64, below: U64, scale: F64, offset: F64, slope: F64) -> I64:
    """|Z| as `_by_quantile` has it, in 64-bit fixed point with Q in units of 2^-66; -1 if that leaves it open."""
    zeros = I64(1)
    while U64(u >> U64(63 - zeros)) == ZERO:  # u = 2^-zeros m with m in [1, 2)
        zeros += 1
    digits = U64(u << U64(zeros))
    row = I64(64 * (20 - zeros)) + I64(U64(digits >> U64(57)) & U64(63))
    x = I64(U64(U64(digits << U64(7)) ^ TOP_BIT))
    total = rows[row, 9]
    for k in range(8, 1, -1):
        total = I64(rows[row, k] + _signed_high(total, x))
    step = _signed_high(total, x)
    start = U64(rows[row, 1])
    part, whole = U64(start + U64(step)), U64(rows[row, 0])
    if step < 0 and part > start:
        whole = U64(whole - ONE)
    if step >= 0 and part < start:
        whole = U64(whole + ONE)
    high, low = _product(part, mantissa)
    high = U64(high + U64(whole * mantissa))
    floor = U64(high >> below)
    fraction = U64(U64(U64(high - U64(floor << below)) << U64(BITS_62 - below)) | U64(low >> U64(below + U64(2))))
    shift = offset + slope * F64(I64(floor))
    place = U64(U64(fraction + THREE_HALVES) + U64(I64(shift * F64(2.0**62))))
    beyond = U64(place & LOW_62)
    distance = min(beyond, U64(ONE_62 - beyond))
    error = scale * (F64(2.0**-61) + F64(2.0) ** (zeros - 63)) + F64(2.0**-40)
    if not (F64(I64(distance)) * F64(2.0**-62) > error):
        return I64(-1)
    return I64(U64(U64(floor + U64(place >> BITS_62)) - ONE))


@kernel
def _by_wide_quantile(
    words: NDArray[U64],
    rows: NDArray[I64],
    mantissa: U64,
    below: U64,
    scale: F64,
    offset: F64,
    slope: F64,
    out: NDArray[I64],
    opened: NDArray[I64],
    count: int,
) -> int:
    """Decide what it can of the open samples; returns how many are still open."""
    left = 0
    for j in range(count):
        i = opened[j]
        u = U64(words[i] >> ONE)
        if u >= LEAST:
            magnitude = _wide_magnitude(u, rows, mantissa, below, scale, offset, slope)
            if magnitude >= 0:
                out[i] = _with_sign(magnitude, words[i])
                continue
        opened[left] = i
        left += 1
    return left


@kernel
def _decide(words: NDArray[U64], threshold: U64, out: NDArray[np.uint8], opened: NDArray[I64]) -> int:
    count = 0
    for i in range(words.size):
        out[i] = words[i] < threshold
        if words[i] == threshold:
            opened[count] = i
            count += 1
    return count


@kernel
def _bounded(words: NDArray[U64], low: U64, bound: U64, growth: U64, out: NDArray[I64], opened: NDArray[I64]) -> int:
    count = 0
    for i in range(words.size):
        high, rest = _product(words[i], bound)
        out[i] = I64(U64(low + high))
        if rest > U64(ZERO - bound):
            opened[count] = i
            count += 1
        bound = U64(bound + growth)
    return count


@kernel
def _bounded_wide(words: NDArray[U64], low: U64, bound: U64, out: NDArray[I64], opened: NDArray[I64]) -> int:
    count = 0
    for i in range(out.size):
        carry, rest = _product(words[2 * i + 1], bound)
        high, middle = _product(words[2 * i], bound)
        middle = U64(middle + carry)
        if middle < carry:
            high = U64(high + ONE)
        out[i] = I64(U64(low + high))
        if middle == ALL_ONES and rest > U64(ZERO - bound):
            opened[count] = i
            count += 1
    return count


@kernel
def _shuffle(places: NDArray[I64], first: int, last: int) -> int:
    """The steps first, ..., last - 1; returns the first that leads beyond its own place, or -1."""
    for i in range(first, last):
        j = places[i]
        if j < 0 or j > i:
            return i
        places[i] = places[j]
        places[j] = i
    return -1


Decide: TypeAlias = Callable[[NDArray[U64], int, NDArray[Any], NDArray[I64]], int]


def _draw(out: NDArray[Any], key: bytes, generator: str, each: int, decide: Decide) -> Open:
    """decide(words, first sample, its part of out, opened) over the threads; [(index, word, ...)] of what is open."""
    words = np.empty(each * out.size, U64)
    random_words(words, key, DOMAIN, generator)
    found: Open = []  # appended to by threads: list.extend is atomic

    def work(begin: int, end: int) -> None:
        opened = np.empty(min(BLOCK, out.size), I64)
        for first in range(begin * BLOCK, min(end * BLOCK, out.size), BLOCK):
            part = out[first : first + BLOCK]
            own = words[each * first : each * (first + part.size)]
            count = decide(own, first, part, opened)
            found.extend([(first + i, *map(int, own[each * i : each * (i + 1)])) for i in opened[:count].tolist()])

    parallel_for(-(-out.size // BLOCK), thread_count(), work)
    return found


def signed_by_table(
    out: NDArray[I64], key: bytes, thresholds: NDArray[U64], guide: NDArray[U32], generator: str = "chacha"
) -> Open:
    """|Z| = how many thresholds are above the word's 63 highest bits; bit 0 is the sign."""
    shift = U64(64 - guide.size.bit_length())
    return _draw(
        out, key, generator, 1, lambda words, _, part, opened: _by_table(words, thresholds, guide, shift, part, opened)
    )


def signed_by_quantile(
    out: NDArray[I64],
    key: bytes,
    rows: NDArray[F64],
    scale: float,
    offset: float,
    limit: float,
    wide: NDArray[I64],
    exact_scale: float,
    slope: float,
    generator: str = "chacha",
) -> Open:
    """|Z| = rint(scale Q(u) + offset) where the table `rows` of Q tells, or `wide`: rint(exact_scale Q + offset + slope |Z|)."""
    factor, shift, most = F64(scale), F64(offset), F64(limit)
    mantissa, exponent = math.frexp(exact_scale)
    whole, below = U64(int(math.ldexp(mantissa, 53))), U64(max(55 - exponent, 0))

    def decide(words: NDArray[U64], _: int, part: NDArray[I64], opened: NDArray[I64]) -> int:
        count = _by_quantile(words, rows, factor, shift, most, part, opened)
        if count == 0 or wide.size == 0:
            return count
        return _by_wide_quantile(words, wide, whole, below, F64(exact_scale), shift, F64(slope), part, opened, count)

    return _draw(out, key, generator, 1, decide)


def decisions(out: NDArray[np.uint8], key: bytes, threshold: int, generator: str = "chacha") -> Open:
    """1 if the word is below threshold, else 0."""
    return _draw(out, key, generator, 1, lambda words, _, part, opened: _decide(words, U64(threshold), part, opened))


def bounded_integers(
    out: NDArray[I64], key: bytes, low: int, bound: int, growth: int, wide: bool, generator: str = "chacha"
) -> Open:
    """low + floor(u (bound + growth i)); `wide`: u from two words, without growth."""
    base = U64(low % 2**64)
    if wide:
        return _draw(
            out, key, generator, 2, lambda words, _, part, opened: _bounded_wide(words, base, U64(bound), part, opened)
        )

    def decide(words: NDArray[U64], first: int, part: NDArray[I64], opened: NDArray[I64]) -> int:
        return _bounded(words, base, U64(bound + growth * first), U64(growth), part, opened)

    return _draw(out, key, generator, 1, decide)


def shuffle(places: NDArray[I64], first: int, last: int) -> None:
    """For i = first, ..., last - 1: j = places[i], places[i] = places[j], places[j] = i."""
    if _shuffle(places, first, last) >= 0:
        raise IndexError("places holds a step beyond its own place")
