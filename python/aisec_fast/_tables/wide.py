"""Quantiles to 62 bits, for scales at which float64 leaves too many samples open. docs/noise-integers.md section 4.

Made when first asked for (a fifth of a second): rows as in quantiles.bin, but Taylor's polynomial at the cell's middle, in
fixed point.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from aisec_fast._reference.fixed_point import exp_of_minus, gaussian_tail, ln_2, root_of_2_over_pi

OCTAVES, CELLS, DEGREE = 20, 64, 8
UNIT_BITS = 66  # a coefficient is in units of 2^-66, and c_k is multiplied by 2^-6k
BITS = 160  # of the arithmetic that makes them


@cache
def wide_quantiles(law: str) -> NDArray[np.int64]:
    """The rows of "gaussian" or "laplace", u >= 2^-20: int64 [1280 rows, 10 numbers], c0 in two words; read-only."""
    polynomial = {"gaussian": _gaussian, "laplace": _laplace}[law]
    rows = []
    for octave in range(-OCTAVES, 0):
        for cell in range(CELLS):
            c0, *others = polynomial(octave, Fraction(2 * (CELLS + cell) + 1, 2 * CELLS))
            whole, part = divmod(_rounded(c0, 0), 2**64)
            rows.append([whole, part - 2**64 * (part >> 63), *(_rounded(c, k) for k, c in enumerate(others, 1))])
    table = np.array(rows, np.int64)
    table.flags.writeable = False
    return table


def _rounded(coefficient: int, power: int) -> int:
    drop = BITS - UNIT_BITS + 6 * power
    return (coefficient + (1 << (drop - 1))) >> drop


def _laplace(octave: int, middle: Fraction) -> list[int]:
    """-ln(2^octave (middle + delta)) in powers of delta."""
    logarithm, *derivatives = _logarithm(middle)
    return [logarithm - octave * ln_2(BITS), *derivatives]


@cache
def _logarithm(middle: Fraction) -> list[int]:
    """-ln(middle + delta); ln middle = 2 atanh((middle - 1) / (middle + 1))."""
    t = (middle - 1) / (middle + 1)
    power, total, k = int(t * 2 ** (BITS + 1)), 0, 1
    while power:
        total += power // k
        power, k = int(power * t * t), k + 2
    return [-total, *(int((-1) ** k * 2**BITS / (k * middle**k)) for k in range(1, DEGREE + 1))]


def _gaussian(octave: int, middle: Fraction) -> list[int]:
    """Q(2^octave (middle + delta)), Q'(u) = -sqrt(pi/2) exp(Q^2/2), Q^(k) = P_k(Q) Q'^k (docs/noise.md section 4)."""
    u = int(middle * 2 ** (BITS + octave))
    first = -NormalDist().inv_cdf(u / 2 ** (BITS + 1))
    q = int(first * 2**BITS)
    q += (gaussian_tail(q, BITS) - u << BITS) // _density(q)  # Newton: an error of 2^-50 becomes one of 2^-98
    slope = (-1 << (2 * BITS + octave)) // _density(q)
    found, power, factorial = [q], 1 << BITS, 1
    for k in range(1, DEGREE + 1):
        power, factorial = power * slope >> BITS, factorial * k
        value = 0
        for coefficient in reversed(_derivative_polynomial(k)):
            value = (value * q >> BITS) + (coefficient << BITS)
        found.append((value * power >> BITS) // factorial)
    return found


def _density(q: int) -> int:
    """-F'(q) = sqrt(2/pi) exp(-q^2/2)."""
    return root_of_2_over_pi(BITS) * exp_of_minus(q * q, 2 << (2 * BITS), BITS) >> BITS


@cache
def _derivative_polynomial(k: int) -> list[int]:
    """P_1 = 1, P_(k+1) = P_k' + k x P_k, lowest power first."""
    if k == 1:
        return [1]
    before = _derivative_polynomial(k - 1)
    following = [0] * (len(before) + 1)
    for power, coefficient in enumerate(before):
        following[power + 1] += (k - 1) * coefficient
        if power:
            following[power - 1] += power * coefficient
    return following
