"""Real functions to any precision, in Python integers. A fixed-point number is an integer in units of 2^-bits.

Each function states its error in units, for `bits` from 64 to 2^12.
"""

from __future__ import annotations

import math
from functools import cache


@cache
def ln_2(bits: int) -> int:
    """ln 2 = 2 atanh(1/3) = 2 (1/3 + 1/(3 3^3) + 1/(5 3^5) + ...), within one unit."""
    guard = 16
    power, total, k = (2 << (bits + guard)) // 3, 0, 1
    while power:
        total += power // k
        power, k = power // 9, k + 2
    return total >> guard


@cache
def pi(bits: int) -> int:
    """16 arctan(1/5) - 4 arctan(1/239) (Machin 1706), within one unit."""
    guard = 16

    def arctan_of_inverse(n: int) -> int:
        total, power, k, sign = 0, (1 << (bits + guard)) // n, 1, 1
        while power:
            total += sign * (power // k)
            power, k, sign = power // (n * n), k + 2, -sign
        return total

    return (16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239)) >> guard


@cache
def root_of_2_over_pi(bits: int) -> int:
    """sqrt(2 / pi), within two units."""
    return math.isqrt((2 << (3 * bits)) // pi(bits))


def exp(x: int, bits: int) -> int:
    """exp(x) for 0 <= x < 2^12, with a relative error below 2^14 units.

    2^k exp(x - k ln 2) by Taylor's series, whose terms are positive: k < 2^13 errors of ln 2 and fewer than 2^12 cut terms.
    """
    k, r = divmod(x, ln_2(bits))
    total, term, n = 0, 1 << bits, 1
    while term:
        total += term
        term, n = (term * r >> bits) // n, n + 1
    return total << k


def exp_of_minus(numerator: int, denominator: int, bits: int) -> int:
    """exp(-numerator / denominator) of a ratio >= 0, within two units."""
    if numerator > bits * denominator:  # below half a unit
        return 0
    inner = bits + 32
    return ((1 << (2 * inner)) // exp((numerator << inner) // denominator, inner)) >> 32


def gaussian_tail(y: int, bits: int) -> int:
    """P(|N(0,1)| > y) for 0 <= y < 2^6, y within one unit, within 2^17 units.

    1 - sqrt(2/pi) y exp(-y^2/2) (1 + y^2/3 + y^4/(3 5) + y^6/(3 5 7) + ...). Every term is positive, so relative errors
    do not grow: each of fewer than 2^14 terms is cut by two units at most, while their sum is at least 1; y^2 is off by
    2^7 units; the exponential has 2^14. All of it multiplies a product below 1.
    """
    square = y * y >> bits
    total, term, odd = 0, 1 << bits, 1
    while term:
        total += term
        odd += 2
        term = (term * square >> bits) // odd
    return (1 << bits) - (root_of_2_over_pi(bits) * y >> bits) * total // exp(square >> 1, bits)
