"""The noise contract (docs/noise.md) in Python integers.

ChaCha is written as in RFC 8439. A sample is decided from its whole bit expansion in fixed-point arithmetic with
`FRACTION_BITS` fractional bits, by the textbook series; there is no fast step, so there is nothing to flag.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

RAW, GAUSSIAN, LAPLACE = 0, 1, 2  # domains: word 14 of the ChaCha state
MAIN, REFINEMENT = 0, 1  # levels: word 15
GROUP = 128  # samples made from 16 consecutive blocks

MASK32 = 2**32 - 1
CHACHA_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
QUARTER_ROUNDS = (
    *((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),  # columns
    *((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)),  # diagonals
)

# Fixed-point numbers are integers in units of 2^-FRACTION_BITS. An expansion has at most 320 bits; the 128 bits beyond
# them keep 64 clear of every rounding error below, even after the multiplication by s <= 2^40.
FRACTION_BITS = 448
ONE = 1 << FRACTION_BITS
SMALLEST_UNIFORM = 1 << (FRACTION_BITS - 320)

Words: TypeAlias = Sequence[int]
Extra: TypeAlias = Words | Callable[[], Words]
"""The eight 64-bit words of a refinement block, or a function that makes them."""


# --- Bits -------------------------------------------------------------------------------------------------------------


def chacha_block(key: bytes, counter: int, domain: int, level: int, rounds: int = 12) -> list[int]:
    """Return the 16 output words of one ChaCha block.

    `counter` fills state words 12 and 13, `domain` word 14, `level` word 15; so RFC 8439's 32-bit counter and 96-bit
    nonce are reached as `counter = block + (nonce[0] << 32)`, `domain = nonce[1]`, `level = nonce[2]`, `rounds = 20`.
    """
    start = [*CHACHA_CONSTANTS, *struct.unpack("<8I", key), counter & MASK32, counter >> 32, domain, level]
    x = list(start)
    for _ in range(rounds // 2):
        for a, b, c, d in QUARTER_ROUNDS:
            for target, source, other, distance in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[target] = (x[target] + x[source]) & MASK32
                mixed = x[other] ^ x[target]
                x[other] = (mixed << distance | mixed >> (32 - distance)) & MASK32
    return [(word + first) & MASK32 for word, first in zip(x, start, strict=True)]


def random_words(key: bytes, n: int, domain: int = RAW, start: int = 0) -> list[int]:
    """Return `n` 64-bit words of the main stream in the "raw words" layout, from word number `start` on."""
    block = cache(lambda counter: chacha_block(key, counter, domain, MAIN))
    words = []
    for i in range(start, start + n):
        group, j = divmod(i, GROUP)
        k, b = divmod(j, 16)
        x = block(16 * group + b)
        words.append(x[2 * k] | x[2 * k + 1] << 32)
    return words


def refinement(key: bytes, domain: int, number: int) -> list[int]:
    """Return the eight refinement words of pair (Gaussian) or sample (Laplace) `number`."""
    x = chacha_block(key, number, domain, REFINEMENT)
    return [x[2 * m] | x[2 * m + 1] << 32 for m in range(8)]


def _expansion(words: Words, first_bits: int) -> int:
    """Read words as one binary fraction: the low `first_bits` bits of the first, then all 64 of each other word."""
    bits, value = first_bits, words[0] & ((1 << first_bits) - 1)
    for word in words[1:]:
        bits, value = bits + 64, value << 64 | word
    return value << (FRACTION_BITS - bits)


# --- Fixed-point mathematics ------------------------------------------------------------------------------------------


def _log_from_one_to_two(m: int) -> int:
    """ln m for 1 <= m <= 2, by ln m = 2 atanh t = 2 (t + t^3/3 + t^5/5 + ...) with t = (m - 1)/(m + 1) <= 1/3."""
    t = ((m - ONE) << FRACTION_BITS) // (m + ONE)
    z = t * t >> FRACTION_BITS
    total, power, k = 0, t, 1
    while power:
        total += power // k
        power = power * z >> FRACTION_BITS
        k += 2
    return 2 * total


def _arctan_of_inverse(n: int) -> int:
    """arctan(1/n) = 1/n - 1/(3 n^3) + 1/(5 n^5) - ... for an integer n > 1."""
    total, power, k, sign = 0, ONE // n, 1, 1
    while power:
        total += sign * (power // k)
        power //= n * n
        k, sign = k + 2, -sign
    return total


LN_2 = _log_from_one_to_two(2 * ONE)
HALF_PI = 2 * (4 * _arctan_of_inverse(5) - _arctan_of_inverse(239))  # Machin 1706


def _negative_log(u: int) -> int:
    """-ln u for 0 < u < 1."""
    exponent = FRACTION_BITS + 1 - u.bit_length()
    return exponent * LN_2 - _log_from_one_to_two(u << exponent)


def _cosine_and_sine(angle: int) -> tuple[int, int]:
    """The Taylor series at 0; 0 <= angle <= pi/2."""
    sums = [0, 0, 0, 0]  # of angle^n / n! for n = 0, 1, 2, 3 modulo 4
    term, n = ONE, 0
    while term:
        sums[n % 4] += term
        n += 1
        term = (term * angle >> FRACTION_BITS) // n
    return sums[0] - sums[2], sums[1] - sums[3]


def _scale_and_round(s: float, y: int, fraction_bits: int) -> int:
    """floor(s * y * 2^-fraction_bits + 1/2) for y >= 0. Nothing is rounded before the end: s is a ratio of integers."""
    numerator, denominator = s.as_integer_ratio()
    unit = denominator << fraction_bits
    return (2 * numerator * y + unit) // (2 * unit)


# --- Samples ----------------------------------------------------------------------------------------------------------


def gaussian_integer_pair(wu: int, wv: int, extra: Extra, s: float) -> tuple[int, int]:
    """Return rint(s N0) and rint(s N1) for the pair that owns main words `wu`, `wv` and refinement words `extra`."""
    e = list(extra() if callable(extra) else extra)
    u = max(_expansion([wu, *e[:4]], 64), SMALLEST_UNIFORM)
    f = _expansion([wv, *e[4:]], 62)
    radius = math.isqrt(2 * _negative_log(u) << FRACTION_BITS)
    cosine, sine = _cosine_and_sine(f * HALF_PI >> FRACTION_BITS)
    first = _scale_and_round(s, radius * cosine, 2 * FRACTION_BITS)
    second = _scale_and_round(s, radius * sine, 2 * FRACTION_BITS)
    return (-first if wv >> 63 else first), (-second if wv >> 62 & 1 else second)


def laplace_integer(w: int, extra: Extra, s: float) -> int:
    """Return rint(s L) for the sample that owns main word `w` and refinement words `extra`."""
    e = list(extra() if callable(extra) else extra)
    u = max(_expansion([w, *e[:4]], 63), SMALLEST_UNIFORM)
    value = _scale_and_round(s, _negative_log(u), FRACTION_BITS)
    return -value if w >> 63 else value


def gaussian_integers(key: bytes, s: float, start: int, stop: int) -> list[int]:
    """Return the Gaussian integers Z of samples start, ..., stop - 1 of the stream of `key`."""

    @cache
    def pair(group: int, k: int, b: int) -> tuple[int, int]:
        x = chacha_block(key, 16 * group + b, GAUSSIAN, MAIN)[4 * k : 4 * k + 4]
        extra = refinement(key, GAUSSIAN, 64 * group + 16 * k + b)
        return gaussian_integer_pair(x[0] | x[1] << 32, x[2] | x[3] << 32, extra, s)

    def samples() -> Iterator[int]:
        for i in range(start, stop):
            group, j = divmod(i, GROUP)
            half, position = divmod(j, 64)
            yield pair(group, *divmod(position, 16))[half]

    return list(samples())


def laplace_integers(key: bytes, s: float, start: int, stop: int) -> list[int]:
    """Return the Laplace integers Z of samples start, ..., stop - 1 of the stream of `key`."""
    words = random_words(key, stop - start, LAPLACE, start)
    return [laplace_integer(w, refinement(key, LAPLACE, i), s) for i, w in enumerate(words, start)]


# --- Arrays -----------------------------------------------------------------------------------------------------------


def to_lattice(x: NDArray[Any], granularity: float) -> NDArray[np.int64]:
    """Return q = rint(x / granularity), of x's shape: NaN counts as 0, all else is clamped to +-2^62. int64 x is q."""
    if x.dtype == np.int64:
        return x.copy()
    with np.errstate(over="ignore"):
        q = np.rint(x.astype(np.float64) / granularity)
    return np.clip(np.where(np.isnan(q), 0.0, q), -(2.0**62), 2.0**62).astype(np.int64)


def from_lattice(integers: NDArray[np.int64], granularity: float, dtype: DTypeLike) -> NDArray[Any]:
    """Return integers * granularity: int64 -> dtype is the one rounding, the product is exact (or under/overflows)."""
    with np.errstate(over="ignore", under="ignore"):
        return (integers.astype(dtype).astype(np.float64) * granularity).astype(dtype)


def add_gaussian(
    x: NDArray[Any], sigma: float, granularity: float, key: bytes, dtype: DTypeLike | None = None
) -> NDArray[Any]:
    """Return granularity * (q + Z), Z Gaussian of standard deviation sigma / granularity, in `dtype` (default: x's)."""
    noise = gaussian_integers(key, sigma / granularity, 0, x.size)
    return _add(x, noise, granularity, x.dtype if dtype is None else dtype)


def add_laplace(x: NDArray[Any], scale: float, granularity: float, key: bytes) -> NDArray[Any]:
    """Return granularity * (q + Z), Z Laplace of scale scale / granularity, in x's dtype."""
    return _add(x, laplace_integers(key, scale / granularity, 0, x.size), granularity, x.dtype)


def _add(x: NDArray[Any], noise: list[int], granularity: float, dtype: DTypeLike) -> NDArray[Any]:
    integers = to_lattice(x, granularity) + np.array(noise, np.int64).reshape(x.shape)
    return from_lattice(integers, granularity, dtype)
