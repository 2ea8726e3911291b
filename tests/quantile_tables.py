"""The tables of quantiles behind the noise family: how they are made, and a proof of how far off they are.

    python -m tests.quantile_tables          writes python/aisec_fast/_tables/quantiles.bin

docs/noise.md section 4 defines the layout and uses the bound that `largest_error` computes. For each law, Q is the
inverse of the tail function: F(Q(u)) = u with F(x) = erfc(x / sqrt 2) (Gaussian) or exp(-x) (Laplace).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from mpmath import mp, mpf

TABLES = Path(__file__).parent.parent / "python/aisec_fast/_tables/quantiles.bin"
LAWS = ("gaussian", "laplace")
OCTAVES, DEEP_OCTAVES, CELLS = 32, 12, 64  # of u in [2^-32, 1); those below 2^-20; rows an octave
ROWS = OCTAVES * CELLS + 2  # and the row of NaN after the deep ones, and the row of u = 1 at the end
HALF_WIDTH = 1 / (2 * CELLS)  # |delta| of a row
TERMS = 12  # of the Taylor series that stands for Q in a row
DIGITS = 50


def _quantile_derivatives(law: str) -> Callable[[mpf], tuple[mpf, list[mpf]]]:
    """Q(u) and the derivatives Q', ..., Q^(TERMS + 1) at u."""
    if law == "laplace":

        def of_laplace(u: mpf) -> tuple[mpf, list[mpf]]:
            return -mp.log(u), [(-1) ** k * mp.factorial(k - 1) / u**k for k in range(1, TERMS + 2)]

        return of_laplace

    polynomials = _derivative_polynomials()

    def of_gaussian(u: mpf) -> tuple[mpf, list[mpf]]:
        q = _gaussian_quantile(u)
        slope = -mp.sqrt(mp.pi / 2) * mp.exp(q * q / 2)
        return q, [mp.polyval(p[::-1], q) * slope**k for k, p in enumerate(polynomials, 1)]

    return of_gaussian


def _gaussian_quantile(u: mpf) -> mpf:
    """Q(u) by Newton's method from float64: a step d leaves an error of d^2 Q / 2. (Several times as fast as mpmath's erfinv.)"""
    q = mpf(-NormalDist().inv_cdf(float(u) / 2))
    while True:
        step = (mp.erfc(q / mp.sqrt(2)) - u) * mp.sqrt(mp.pi / 2) * mp.exp(q * q / 2)
        q += step
        if abs(step) < mpf(10) ** (-mp.dps // 2 - 2):
            return q


def _derivative_polynomials() -> list[list[int]]:
    """Q^(k) = P_k(Q) Q'^k for the Gaussian: from Q'' = Q Q'^2 follows P_(k+1) = P_k' + k x P_k. Lowest power first."""
    found = [[1]]
    for k in range(1, TERMS + 1):
        p = found[-1]
        following = [0] * (len(p) + 1)
        for power, coefficient in enumerate(p):
            following[power + 1] += k * coefficient
            if power:
                following[power - 1] += power * coefficient
        found.append(following)
    return found


def _cells() -> Iterator[tuple[mpf, mpf]]:
    """(scale, middle): row after row, u = scale * (middle + delta)."""
    for octave in range(OCTAVES):
        for cell in range(CELLS):
            yield mpf(2) ** (octave - OCTAVES), 1 + (cell + mpf(1) / 2) / CELLS


def _taylor(law: str, scale: mpf, middle: mpf) -> list[mpf]:
    """Coefficients of Q(scale (middle + delta)) in delta, up to delta^TERMS."""
    q, derivatives = _quantile_derivatives(law)(scale * middle)
    return [q] + [d * scale**k / mp.factorial(k) for k, d in enumerate(derivatives[:TERMS], 1)]


def _to_chebyshev(power: list[mpf]) -> list[mpf]:
    """Coefficients of T_0, T_1, ... of delta / HALF_WIDTH from those of powers of delta (|T_n| <= 1 in the row)."""
    sums = [mpf(0)] * len(power)
    for n, coefficient in enumerate(power):  # x^n = 2^(1-n) sum of binomial(n, k) T_(n-2k), halved for T_0
        for k in range(n // 2 + 1):
            share = math.comb(n, k) * 2.0 ** (1 - n) * HALF_WIDTH**n  # exact: a small integer over a power of two
            sums[n - 2 * k] += coefficient * (share / 2 if n == 2 * k else share)
    return sums


def _bits(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def _double(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", bits))[0])


def _fit(taylor: list[mpf]) -> list[float]:
    """A row: c0, c1, c2 and the packed c3 and c4 of a polynomial of degree 4 close to the best one."""
    r = mpf(HALF_WIDTH)
    chebyshev = _to_chebyshev(taylor)[:5]
    basis = [[1], [0, 1], [-1, 0, 2], [0, -3, 0, 4], [1, 0, -8, 0, 8]]  # T_n in powers of x
    c = [sum((t[n] * a for t, a in zip(basis, chebyshev, strict=True) if n < len(t)), mpf(0)) / r**n for n in range(5)]
    low = (_bits(float(c[4])) + 2**31) >> 32  # c4 keeps its upper 32 bits
    c4 = _double(low << 32)
    upper = _bits(float(c[3])) >> 32
    c3 = min((_double((upper + step) << 32 | low) for step in (-1, 0, 1)), key=lambda value: abs(value - c[3]))
    excess3, excess4 = c3 - c[3], c4 - c[4]
    c[2] -= excess4 * r**2  # x^4 = x^2 - 1/8 + T_4 / 8 and x^3 = 3 x / 4 + T_3 / 4, with x = delta / r
    c[0] += excess4 * r**4 / 8
    c[1] -= excess3 * r**2 * 3 / 4
    return [float(c[0]), float(c[1]), float(c[2]), c3]


def unpacked(row: Any) -> list[float]:
    """c0, ..., c4 of a row."""
    c0, c1, c2, packed = (float(value) for value in row)
    return [c0, c1, c2, packed, _double(_bits(packed) << 32 & 2**64 - 1)]


def make(law: str) -> np.ndarray:
    """The table of one law: float64 [ROWS, 4]."""
    with mp.workdps(DIGITS):
        rows = [_fit(_taylor(law, scale, middle)) for scale, middle in _cells()]
    deep = DEEP_OCTAVES * CELLS
    outside, end = [np.nan, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]
    return np.array([*rows[:deep], outside, *rows[deep:], end])


def error_bound(law: str, row: Any, scale: mpf, middle: mpf) -> mpf:
    """An upper bound of |polynomial - Q| over one row. A proof, not a sample.

    Both are expanded in delta: Q by its Taylor series, whose remainder is at most |Q^(13)| HALF_WIDTH^13 / 13! with the
    derivative at the row's left end, where it is largest (each |Q^(k)| falls with u). The difference of the two
    polynomials, in Chebyshev form, is at most the sum of its absolute coefficients.
    """
    difference = [-coefficient for coefficient in _taylor(law, scale, middle)]
    for k, coefficient in enumerate(unpacked(row)):
        difference[k] += mpf(coefficient)
    _, derivatives = _quantile_derivatives(law)(scale * (middle - HALF_WIDTH))
    last = abs(derivatives[TERMS]) * scale ** (TERMS + 1)
    remainder = last * mpf(HALF_WIDTH) ** (TERMS + 1) / mp.factorial(TERMS + 1)
    return sum((abs(c) for c in _to_chebyshev(difference)), mpf(0)) + remainder


def largest_error(law: str, table: np.ndarray) -> tuple[mpf, mpf]:
    """The largest bound of every row: (of the deep rows, of the others)."""
    deep = DEEP_OCTAVES * CELLS
    rows = [*table[:deep], *table[deep + 1 : -1]]
    with mp.workdps(DIGITS):
        bounds = [error_bound(law, row, *cell) for row, cell in zip(rows, _cells(), strict=True)]
        return max(bounds[:deep]), max(bounds[deep:])


def stored() -> dict[str, np.ndarray]:
    """The committed tables: {law: float64 [ROWS, 4]}."""
    both = np.fromfile(TABLES, "<f8").reshape(len(LAWS), ROWS, 4)
    return dict(zip(LAWS, both, strict=True))


def include_text() -> str:
    """The committed tables as C++ reads them: CMakeLists.txt writes the same."""
    return "".join(f"{bits:#x},\n" for bits in np.fromfile(TABLES, "<u8").tolist())


if __name__ == "__main__":
    tables = np.array([make(law) for law in LAWS])
    tables.astype("<f8").tofile(TABLES)
    for name, made in zip(LAWS, tables, strict=True):
        print(name, *(f"2^{float(mp.log(bound, 2)):.3f}" for bound in largest_error(name, made)))  # noqa: T201
