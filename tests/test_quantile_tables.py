"""The committed tables of quantiles: what they hold, where, and the proof of the error that docs/noise.md relies on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mpmath import mp, mpf

from aisec_fast._tables import quantiles
from tests import quantile_tables as tables

LAWS = tables.LAWS
# log2 of the bounds that section 4 states: (deep rows, the others).
STATED = {"gaussian": (-43.8, -42.6), "laplace": (-41.36, -41.36)}


def quantile(law: str, u: mpf) -> mpf:
    return -mp.log(u) if law == "laplace" else mp.sqrt(2) * mp.erfinv(1 - u)


def row_of(v: float) -> tuple[int, float]:
    """Row and delta of v = 2^(32 + o) m, as section 4 says."""
    m, exponent = math.frexp(v)
    m, octave = 2 * m, exponent - 1 - 32
    cell = math.floor(64 * (m - 1))
    row = 64 * octave + cell
    return (row if row < 768 else row + 1), m - (1 + (cell + 0.5) / 64)


def test_the_package_reads_the_committed_file() -> None:
    assert tables.TABLES.stat().st_size == 2 * 2050 * 4 * 8
    for law, table in tables.stored().items():
        read = quantiles(law)
        assert read.dtype == np.float64
        assert read.shape == (2050, 4)
        assert read.tobytes() == table.tobytes()
        assert not read.flags.writeable
        assert quantiles(law) is read
    assert quantiles("gaussian").tobytes() != quantiles("laplace").tobytes()


@pytest.mark.parametrize("law", LAWS)
def test_the_two_rows_that_are_no_cells(law: str) -> None:
    """Row 768 gives NaN, whatever delta is; the row of v = 2^64 gives zero; no other row is odd."""
    table = quantiles(law)
    assert np.flatnonzero(np.isnan(table).any(axis=1)).tolist() == [768]
    assert math.isnan(table[768, 0])
    assert np.isfinite(tables.unpacked(table[768])[1:]).all()
    assert row_of(2.0**64) == (2049, -(2.0**-7))
    assert tables.unpacked(table[2049]) == [0.0] * 5
    assert (np.delete(table[:, 0], [768, 2049]) > 0).all()


@pytest.mark.parametrize("law", LAWS)
def test_a_fresh_table_has_the_same_bits(law: str) -> None:
    """A sample of rows: each border, each octave, and some at random. `make` does the same for all of them."""
    cells = list(tables._cells())
    chosen = {0, 63, 64, 767, 768, 2047, *range(7, 2048, 64), *np.random.default_rng(1).integers(0, 2048, 40).tolist()}
    with mp.workdps(tables.DIGITS):
        for cell in sorted(chosen):
            fresh = np.array(tables._fit(tables._taylor(law, *cells[cell])))
            assert fresh.tobytes() == quantiles(law)[cell if cell < 768 else cell + 1].tobytes(), cell


@pytest.mark.parametrize("law", LAWS)
def test_make_puts_rows_where_the_file_has_them(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(2048))
    monkeypatch.setattr(tables, "_taylor", lambda law, scale, middle: None)
    monkeypatch.setattr(tables, "_fit", lambda taylor: [float(next(numbers)), 1.0, 2.0, 3.0])
    first = tables.make(law)[:, 0]
    assert first[:768].tolist() == list(range(768))
    assert math.isnan(first[768])
    assert first[769:].tolist() == [*range(768, 2048), 0.0]


@pytest.mark.parametrize("law", LAWS)
def test_the_proof_covers_every_row(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 30 digits, which is faster: they round at 2^-99 and the bounds are near 2^-43. A little beyond the rows' ends."""
    monkeypatch.setattr(tables, "DIGITS", 30)
    monkeypatch.setattr(tables, "HALF_WIDTH", tables.HALF_WIDTH * (1 + 2.0**-16))
    deep, other = (float(mp.log(bound, 2)) for bound in tables.largest_error(law, quantiles(law)))
    assert deep < STATED[law][0]
    assert other < STATED[law][1]
    assert abs(deep - STATED[law][0]) < 0.1  # the page is sharp, too
    assert abs(other - STATED[law][1]) < 0.1


@pytest.mark.parametrize("law", LAWS)
def test_rows_hold_the_quantile_where_the_contract_looks(law: str) -> None:
    """Independent of the proof's own idea of rows: v at random, at both ends of cells, and at the borders of zones."""
    rng = np.random.default_rng(2)
    random = np.exp2(rng.uniform(32, 64, 150))
    ends = [2.0**e * (1 + c / 64) for e in (32, 43, 44, 50, 63) for c in (0, 1, 31, 63)]
    values = [*random.tolist(), *ends, *(math.nextafter(v, 0.0) for v in ends if v > 2.0**32)]
    with mp.workdps(40):
        for v in values:
            row, delta = row_of(v)
            c0, c1, c2, c3, c4 = (mpf(c) for c in tables.unpacked(quantiles(law)[row]))
            polynomial = c0 + delta * (c1 + delta * (c2 + delta * (c3 + delta * c4)))
            bound = mpf(2) ** STATED[law][0 if v < 2.0**44 else 1]
            assert abs(polynomial - quantile(law, mpf(v) / 2**64)) < bound, v


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("cell", [0, 767, 768, 1500, 2047])
def test_a_perturbed_row_is_caught(law: str, cell: int) -> None:
    """One coefficient off by as much as moves the polynomial by 2^-40: the bound exceeds the stated one."""
    place = list(tables._cells())[cell]
    stated = STATED[law][0 if cell < 768 else 1]
    good = quantiles(law)[cell if cell < 768 else cell + 1]
    with mp.workdps(tables.DIGITS):
        assert mp.log(tables.error_bound(law, good, *place), 2) < stated
        for k in range(4):
            bad = good.copy()
            bad[k] += 2.0 ** (-40 + 7 * k) * (1 if k < 3 else 2)
            assert mp.log(tables.error_bound(law, bad, *place), 2) > stated, k


def test_the_whole_proof_sees_one_perturbed_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first row, the last and those beside NaN; on the rows' bounds alone, without computing each again."""
    good, seen = quantiles("laplace"), []
    monkeypatch.setattr(tables, "error_bound", lambda law, row, scale, middle: seen.append(row[0]) or mpf(row[0]))
    tables.largest_error("laplace", good)
    assert seen == [*good[:768, 0], *good[769:-1, 0]]
    for row, part in ((0, 0), (767, 0), (769, 1), (2048, 1)):
        bad = good.copy()
        bad[row, 0] = 1e9
        assert tables.largest_error("laplace", bad)[part] == 1e9


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("u", [0.9, 0.3, 2.0**-20, 2.0**-31.5])
def test_derivatives_are_those_of_the_quantile(law: str, u: float) -> None:
    """Closed forms against numerical differentiation."""
    with mp.workdps(60):
        q, derivatives = tables._quantile_derivatives(law)(mpf(u))
        assert abs(q - quantile(law, mpf(u))) < mpf(10) ** -50
        for k in (1, 2, 3, 5, 13):
            with mp.workdps(150):  # steps of the 13th difference lose 13 times their digits
                step = mpf(u) * mpf(10) ** -9
                points = [quantile(law, mpf(u) + (n - mpf(k) / 2) * step) for n in range(k + 1)]
                numeric = sum((-1) ** (k - n) * math.comb(k, n) * y for n, y in enumerate(points)) / step**k
            assert abs(derivatives[k - 1] / numeric - 1) < mpf(10) ** -12, k


def test_the_remainder_is_largest_at_the_left_end() -> None:
    """All coefficients of P_k are positive or zero: with Q' they make each |Q^(k)| fall with u, as long as Q >= 0."""
    polynomials = tables._derivative_polynomials()
    assert len(polynomials) == tables.TERMS + 1
    assert polynomials[:4] == [[1], [0, 1], [1, 0, 2], [0, 7, 0, 6]]
    assert all(c >= 0 for p in polynomials for c in p)


def test_chebyshev_coefficients() -> None:
    power = [mpf(n * n - 5) for n in range(13)]
    with mp.workdps(50):
        chebyshev = tables._to_chebyshev(power)
        for x in (-1, -0.3, 0, 0.7, 1):
            delta = mpf(x) * tables.HALF_WIDTH
            direct = sum(c * delta**n for n, c in enumerate(power))
            assert abs(sum(c * mp.chebyt(n, mpf(x)) for n, c in enumerate(chebyshev)) - direct) < mpf(10) ** -45


# The largest S = 2^k s of fixed point, and the most that a sum is off, as section 4 says.
FIXED = {"gaussian": (1.5 * 2**28, 1.485), "laplace": (1.0625 * 2**28, 1.45)}


def exact_rows(law: str) -> np.ndarray:
    """c0, ..., c4 of the rows of fixed point: u >= 2^-20."""
    return np.array([tables.unpacked(row) for row in quantiles(law)[769:-1]])


@pytest.mark.parametrize("law", LAWS)
def test_bound_of_fixed_point(law: str) -> None:
    """Section 4: the terms, over all rows (float64 counts them well enough)."""
    scale, stated = FIXED[law]
    c0, c1, c2, c3, c4 = np.abs(exact_rows(law)).T
    h = 2.0**-7 * (1 + 2.0**-16)
    c2 = c2 + c4 * h * h
    slope = c1 + 2 * c2 * h + 3 * c3 * h * h + 5 * c4 * h**3  # of Q too, which is off by less than c4 here
    distance = slope * (h * 2.0**-24 + 2.0**-34)
    row = (c1 * h + c2 * h**2 + c3 * h**3) * 2.0**-24 + c4 * h**4 / 8 + 2.0**-41
    t2 = c2 + c3 * h
    t1 = c1 + t2 * h
    evaluation = (t2 * h * h + t1 * h) * 2.0**-24
    worst = 1 + scale * float(np.max(distance + row + evaluation))
    assert stated - 0.02 < worst < stated
    assert scale * np.max(t1) * h + 1 < 2**22
    assert scale * np.max(c0 + t1 * h) + 2**27 + 2 < 2**32  # k <= 28, as s >= 1


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("upper_bits", [31, 32])  # of AVX2, AVX-512
def test_sums_in_fixed_point(law: str, upper_bits: int) -> None:
    """The definition, step by step (FMAs in float64, then rounded), on words at random and at both ends of every cell."""
    scale, stated = FIXED[law]
    k = 8
    rng = np.random.default_rng(3)
    c0, c1, c2, c3, c4 = (column[:, None] for column in exact_rows(law).T)
    first = upper_bits - 20
    octave = np.repeat(np.arange(first, first + 20), 64)[:, None]
    start = np.ldexp(1 + np.tile(np.arange(64), 20) / 64, octave[:, 0])[:, None]
    cell = np.ldexp(1.0, octave - 6)
    inside = np.concatenate([rng.random((1280, 60)), np.tile([0.0, 2.0**-25, 0.5, 1 - 2.0**-25], (1280, 1))], axis=1)
    words = np.ldexp(start + cell * inside, 64 - upper_bits).astype(np.uint64)
    words = np.minimum(words + rng.integers(0, 2**11, words.shape, np.uint64), np.uint64(2**64 - 1))
    a = (words >> np.uint64(64 - upper_bits)).astype(np.int64)
    b = words >> np.uint64(64 - 2 * upper_bits if upper_bits == 31 else 0) & np.uint64(2**upper_bits - 1)
    middle = start + cell / 2
    distance = np.float32(np.float32(a - middle) + np.float32(b) * 2.0**-upper_bits).astype(np.float64)
    h = 2.0**-7
    big0 = np.rint(scale * (c0 - c4 * h**4 / 8) + 2 ** (k - 1) + 0.5)
    big1, big2, big3 = (
        np.float32(np.ldexp(scale * c, -power * octave)).astype(np.float64)
        for power, c in ((1, c1), (2, c2 + c4 * h * h), (3, c3))
    )
    t = np.float32(big3 * distance + big2).astype(np.float64)
    t = np.float32(t * distance + big1).astype(np.float64)
    sums = big0 + np.rint(t * distance)
    delta = np.ldexp((a - middle) + np.ldexp(b.astype(np.float64), -upper_bits), -octave)
    truth = c0 + delta * (c1 + delta * (c2 + delta * (c3 + delta * c4)))
    off = np.abs(sums - (scale * truth + 2 ** (k - 1) + 0.5))
    assert off.max() < stated
    assert off.max() > 1.0  # the bound is no idle one


# E / s of small scales, and the most that a sum is off, as section 4 says.
SMALL = {"gaussian": (2.0**-19, 0.989 * 2.0**-19), "laplace": (3.25 * 2.0**-19, 3.111 * 2.0**-19)}


def halves(law: str) -> tuple[np.ndarray, ...]:
    """The polynomials of both halves of every cell with u >= 2^-12, in powers of the distance from the half's middle."""
    c0, c1, c2, c3, c4 = np.repeat(exact_rows(law)[8 * 64 :], 2, axis=0).T
    x = np.tile([-(2.0**-8), 2.0**-8], len(c0) // 2)
    f0 = c0 + x * (c1 + x * (c2 + x * (c3 + x * c4)))
    f1 = c1 + x * (2 * c2 + x * (3 * c3 + x * 4 * c4))
    return f0, f1, c2 + x * (3 * c3 + 6 * x * c4), c3 + 4 * x * c4, c4


@pytest.mark.parametrize("law", LAWS)
def test_bound_of_small_scales(law: str) -> None:
    """Section 4: the terms, over all rows, in units of s; 1/2 is s / 2 at most."""
    bound, stated = SMALL[law]
    f0, f1, f2, f3, f4 = (np.abs(f) for f in halves(law))
    octave, middle = np.repeat(np.arange(19, 31), 128), 1 + (np.tile(np.arange(128), 12) + 0.5) / 128
    h = 2.0**-8 * (1 + 2.0**-15)
    line = f2 * h * h / 2 * (1 + 2.0**-10) + f3 * h**3 + f4 * h**4 + 2.0**-41
    slope = f1 + 2 * f2 * h + 3 * f3 * h * h + 5 * f4 * h**3  # of Q too
    width = slope * (2.0 ** -(octave + 1.0) + 2.0**-24)
    p0 = f0 + f2 * 2.0**-17
    row = 2.0**-24 * (p0 + f1 * middle + 0.5 + bound) + 2.0**-24 * f1 * h
    evaluation = 2.0**-24 * (p0 + f1 * h + 0.5 + bound)
    worst = float(np.max(line + width + row + evaluation))
    assert stated * 0.999 < worst < stated < bound * 0.99
    assert float(np.max(f1[-1] * 2.0**-24 + 2.0**-25)) < bound  # where v is rounded to 2^31: the row of 1/2 + E


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("s", [1.0, 4095.7])
def test_sums_at_small_scales(law: str, s: float) -> None:
    """The definition, step by step, on words at random and at both ends of every cell."""
    bound, stated = SMALL[law]
    bias = 0.5 + bound * s
    rng = np.random.default_rng(4)
    f0, f1, f2, f3, f4 = (f[:, None] for f in halves(law))
    octave = np.repeat(np.arange(19, 31), 128)[:, None]
    start, cell = np.ldexp(1 + np.tile(np.arange(128), 12)[:, None] / 128, octave), np.ldexp(1.0, octave - 7)
    inside = np.concatenate([rng.random((1536, 60)), np.tile([0.0, 2.0**-24, 0.5, 1 - 2.0**-24], (1536, 1))], axis=1)
    words = np.floor(np.ldexp(start + cell * inside, 33)).astype(np.uint64)
    words = np.where(rng.random(words.shape) < 0.5, words & ~np.uint64(2**33 - 1), words | np.uint64(2**33 - 1))
    a = words >> np.uint64(33)
    inside_cell = np.float32(a) < start + cell  # the others are rounded up into the next one
    per_v = np.float32(np.ldexp(s * f1, -octave)).astype(np.float64)
    c0 = np.float32(s * (f0 + f2 * 2.0**-17) + bias - per_v * (start + cell / 2 - 0.5)).astype(np.float64)
    sums = np.float32(per_v * np.float32(a).astype(np.float64) + c0).astype(np.float64)
    delta = np.ldexp(words.astype(np.float64) * 2.0**-33 - (start + cell / 2), -octave)
    truth = f0 + delta * (f1 + delta * (f2 + delta * (f3 + delta * f4)))
    off = np.abs(sums - (s * truth + bias))[inside_cell]
    assert off.max() < stated * s
    assert off.max() > 0.8 * stated * s  # the bound is no idle one
