"""The contract of exact integers and decisions (docs/noise-integers.md) in Python integers.

A sample is decided from its whole bit expansion by the definition: a uniform number is compared with the exact tail of the
law, in fixed point, with as many bits as that takes. There is no fast step, so there is nothing to flag; a float64 only
says where to look first. The backends decide by these functions what their fast steps leave open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

from .fixed_point import exp_of_minus, gaussian_tail, root_of_2_over_pi
from .noise import RAW, random_words, refinement

SIGNED_BITS = 319  # of a signed sample's uniform number: 63 of its word, 64 of each of four refinement words
DECISION_BITS = 320  # of a decision's: 64 of its word and of each of four refinement words
FIRST_BITS = 192  # fraction bits of the first attempt to compare; doubled until they suffice
ERROR = 2**20  # of a tail, in units of 2^-bits
LISTED_SCALE = 64  # below it the tails of the discrete Gaussian and Laplace law are summed one after the other

Words: TypeAlias = Sequence[int]
Tail: TypeAlias = Callable[[int, int], int]
"""tail(k, bits) is P(|Z| >= k) for k >= 1, within ERROR units of 2^-bits; FIRST_BITS <= bits < 2^12."""


class Law(NamedTuple):
    """A symmetric law on the integers: its tail, and about where a uniform number 0 < u < 1 leads."""

    tail: Tail
    guess: Callable[[float], float]


# --- Laws -------------------------------------------------------------------------------------------------------------


def _listed(make: Callable[[int], list[int]]) -> Tail:
    """A tail from make(bits), the list of P(|Z| >= 1), P(|Z| >= 2), ... to where they vanish."""
    lists = cache(make)

    def tail(k: int, bits: int) -> int:
        listed = lists(bits)
        return listed[k - 1] if k <= len(listed) else 0

    return tail


def _normalised(masses: list[int], bits: int) -> list[int]:
    """P(|Z| >= 1), P(|Z| >= 2), ... in units of 2^-bits from masses proportional to P(Z = 0), P(Z = 1), ..."""
    tails, total = [], 0
    for mass in reversed(masses[1:]):
        total += 2 * mass
        tails.append(total)
    total += masses[0]
    return [(tail << bits) // total for tail in reversed(tails)]


@lru_cache(64)
def discrete_gaussian(sigma: float) -> Law:
    """P(Z = n) ~ exp(-n^2 / (2 sigma^2))."""
    a, b = sigma.as_integer_ratio()

    def summed(bits: int) -> list[int]:
        inner = bits + 64
        ratio = exp_of_minus(b * b, 2 * a * a, inner)  # q; P(Z = n) ~ q^(n^2), and n^2 grows by 2 n + 1
        square = ratio * ratio >> inner
        masses = [1 << inner]
        while masses[-1]:
            masses.append(masses[-1] * ratio >> inner)
            ratio = ratio * square >> inner
        return _normalised(masses, bits)

    def by_integral(k: int, bits: int) -> int:
        y = (((2 * k - 1) * b) << bits) // (2 * a)
        if y >> bits >= 64:
            return 0
        density = root_of_2_over_pi(bits) * exp_of_minus((2 * k - 1) ** 2 * b * b, 8 * a * a, bits) >> bits
        # Euler and Maclaurin: sum of b_j He_(2j-1)(y) / sigma^(2j-1), with He_(m+1) = y He_m - m He_(m-1).
        previous, this, correction = 0, 1 << bits, 0
        for m in range(2 * _integral_terms(sigma, bits)):
            if m % 2:
                share = _midpoint_coefficient((m + 1) // 2)
                correction += this * share.numerator // share.denominator
            previous, this = this, ((y * this >> bits) - m * previous * b // a) * b // a
        return gaussian_tail(y, bits) + ((density * correction >> bits) * b // a)

    tail = _listed(summed) if sigma < LISTED_SCALE else by_integral
    return Law(tail, lambda u: -sigma * NormalDist().inv_cdf(u / 2))


@cache
def _midpoint_coefficient(j: int) -> Fraction:
    """b_j = B_2j(1/2) / (2j)!: the coefficients of (t/2) / sinh(t/2), as its product with sinh(t/2) / (t/2) is 1."""
    if j == 0:
        return Fraction(1)
    return -sum(
        (_midpoint_coefficient(i) / (4 ** (j - i) * math.factorial(2 * (j - i) + 1)) for i in range(j)), Fraction(0)
    )


def _integral_terms(sigma: float, bits: int) -> int:
    """The least J with 8 sqrt((2J)!) / (2 pi sigma)^(2J) < 2^-bits: the bound of the remainder after J terms."""
    j = 1
    while 3 + math.lgamma(2 * j + 1) / math.log(4) - 2 * j * math.log2(2 * math.pi * sigma) >= -bits:
        j += 1
    return j


@lru_cache(64)
def discrete_laplace(scale: float) -> Law:
    """P(Z = n) ~ q^|n|, q = exp(-1 / scale): P(|Z| >= k) = 2 q^k / (1 + q)."""
    a, b = scale.as_integer_ratio()

    def multiplied(bits: int) -> list[int]:
        inner = bits + 64
        ratio = exp_of_minus(b, a, inner)
        tails = [(2 * ratio << inner) // ((1 << inner) + ratio)]
        while tails[-1]:
            tails.append(tails[-1] * ratio >> inner)
        return [tail >> 64 for tail in tails]

    def direct(k: int, bits: int) -> int:
        return (2 * exp_of_minus(k * b, a, bits) << bits) // ((1 << bits) + exp_of_minus(b, a, bits))

    tail = _listed(multiplied) if scale < LISTED_SCALE else direct
    return Law(tail, lambda u: -scale * math.log(u))


@lru_cache(64)
def skellam(variance: Fraction) -> Law:
    """The difference of two Poisson numbers of mean variance / 2: P(Z = n) = exp(-v) I_n(v), v = variance."""
    a, b = variance.numerator, variance.denominator

    def by_recurrence(bits: int) -> list[int]:
        # I_(n-1) = I_(n+1) + (2 n / v) I_n downwards from (0, 1) at N + 1 and N (Miller). docs: N y_N bounds the error.
        inner = bits + 64
        last = math.isqrt(int(2 * inner * variance)) + inner
        masses = [0, 1 << inner]
        for n in range(last, 0, -1):
            masses.append(masses[-2] + 2 * n * masses[-1] * b // a)
        masses.reverse()
        if (last << inner) << (bits + 1) > masses[0]:
            raise AssertionError(f"Miller's recurrence for variance {variance} starts too low, at {last}")
        return _normalised(masses[:-1], bits)

    return Law(_listed(by_recurrence), lambda u: -math.sqrt(variance) * NormalDist().inv_cdf(u / 2))


# --- Samples ----------------------------------------------------------------------------------------------------------


def _join(value: int, extra: Words) -> int:
    for word in extra[:4]:
        value = value << 64 | word
    return value


def _is_below(u: int, tail: Tail, k: int) -> bool:
    """u < P(|Z| >= k)? u is in units of 2^-SIGNED_BITS."""
    bits = FIRST_BITS
    while True:
        difference = tail(k, bits) - (u << bits >> SIGNED_BITS)
        if abs(difference) > ERROR + 1:
            return difference > 0
        bits *= 2


def magnitude(u: int, law: Law) -> int:
    """|Z|, the number of k >= 1 with u < P(|Z| >= k). They are 1, 2, ..., |Z|, because the tail falls."""
    low, step = max(round(law.guess(u / 2**SIGNED_BITS)), 0), 1
    high = low + 1
    while low > 0 and not _is_below(u, law.tail, low):
        low, high, step = max(low - step, 0), low, 2 * step
    step = 1
    while _is_below(u, law.tail, high):
        low, high, step = high, high + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _is_below(u, law.tail, middle) else (low, middle)
    return low


def signed_integer(w: int, extra: Words, law: Law) -> int:
    """The sample that owns word w and refinement words extra: bit 0 is the sign, the other bits are u; u = 0 counts as a unit."""
    return (-1) ** (w & 1) * magnitude(max(_join(w >> 1, extra), 1), law)


def decision(w: int, extra: Words, threshold: int) -> bool:
    """u < threshold, both in units of 2^-DECISION_BITS."""
    return _join(w, extra) < threshold


def bounded_integer(words: Words, extra: Words, bound: int) -> int:
    """floor(u bound), u the binary fraction with the digits of words and then of extra."""
    return _join(_join(0, words), extra) * bound >> (64 * (len(words) + 4))


def probability_threshold(probability: Fraction) -> int:
    """floor(2^DECISION_BITS probability)."""
    return (probability.numerator << DECISION_BITS) // probability.denominator


def exp_threshold(x: Fraction) -> int:
    """floor(2^DECISION_BITS exp(-x)) for x >= 0."""
    if x == 0:
        return 1 << DECISION_BITS
    more = 64
    while True:
        value = exp_of_minus(x.numerator, x.denominator, DECISION_BITS + more)
        if (value - 2) >> more == (value + 2) >> more or value == 0:
            return value >> more
        more *= 2


# --- Arrays -----------------------------------------------------------------------------------------------------------


def signed_integers(key: bytes, n: int, law: Law) -> list[int]:
    """Samples 0, ..., n - 1 of a symmetric law."""
    return [signed_integer(w, refinement(key, RAW, i), law) for i, w in enumerate(random_words(key, n))]


def decisions(key: bytes, n: int, threshold: int) -> list[bool]:
    """Decisions 0, ..., n - 1 with probability threshold / 2^DECISION_BITS."""
    return [decision(w, refinement(key, RAW, i), threshold) for i, w in enumerate(random_words(key, n))]


def words_each(bound: int) -> int:
    """How many words of the stream an integer below bound owns."""
    return 1 if bound <= 2**32 else 2


def uniform_integers(key: bytes, n: int, low: int, high: int) -> list[int]:
    """n integers of low, ..., high - 1."""
    each = words_each(high - low)
    words = random_words(key, each * n)
    owned = [words[each * i : each * (i + 1)] for i in range(n)]
    return [low + bounded_integer(w, refinement(key, RAW, i), high - low) for i, w in enumerate(owned)]


def permutation(key: bytes, n: int) -> list[int]:
    """Fisher and Yates' shuffle inside out: i = 0, 1, ... takes the place j <= i that word w_i names, and what was there goes last."""
    result: list[int] = []
    for i, w in enumerate(random_words(key, n)):
        j = bounded_integer([w], refinement(key, RAW, i), i + 1)
        result.append(i)
        result[i], result[j] = result[j], result[i]
    return result
