"""The clipping reference against exact rational arithmetic, and against the bounds of docs/clipping.md."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aisec_fast._reference import clipping

SHAPES = [[(10,)], [(1024,)], [(1025,)], [(3, 5), (2000,), ()], [(0,)], [(16,), (0, 4)]]
H = Fraction(1, 2**53)


def values(grads):
    """Each sample's values in all arrays, as Python floats."""
    arrays = [clipping.from_bfloat16(g) if g.dtype == np.uint16 else g for g in grads]
    return [[float(v) for a in arrays for v in a[i].ravel()] for i in range(len(grads[0]))]


def make(shapes, dtype, rows=7, seed=0):
    rng = np.random.default_rng(seed)
    spread = np.exp(2 * rng.standard_normal(rows))
    arrays = [rng.standard_normal((rows, *s)) * spread.reshape(rows, *[1] * len(s)) for s in shapes]
    if dtype == np.uint16:
        return [(a.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for a in arrays]
    return [a.astype(dtype) for a in arrays]


def relative_error_of_root(got, square):
    """|got - sqrt(square)| / sqrt(square) to first order, exactly: half the relative error of the square."""
    return abs(Fraction(float(got)) ** 2 - square) / square / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
@pytest.mark.parametrize("shapes", SHAPES)
def test_norms_are_within_their_bound(shapes, dtype):
    grads = make(shapes, dtype)
    blocks = max(-(-math.prod(s) // 1024) for s in shapes)
    for got, row in zip(clipping.row_norms(grads), values(grads), strict=True):
        square = sum((Fraction(v) ** 2 for v in row), Fraction(0))
        if square:
            assert relative_error_of_root(got, square) <= (76 + Fraction(blocks, 16) + len(shapes)) * H / 2
        else:
            assert got == 0


def test_norms_add_in_the_stated_order():
    """Written out with Python floats, one addition at a time."""

    def in_turns(values):
        partial = [0.0] * 16
        for position, value in enumerate(values):
            partial[position % 16] += value
        for half in (8, 4, 2, 1):
            for k in range(half):
                partial[k] += partial[k + half]
        return partial[0]

    grads = make([(35_000,), (1500,), (33,)], np.float64, rows=20)  # many: a wrong order often gives the same last bit
    got = clipping.row_norms(grads)
    for i in range(20):
        row_total = 0.0
        for array in grads:
            squares = [v * v for v in array[i].tolist()]
            row_total += in_turns([in_turns(squares[start : start + 1024]) for start in range(0, len(squares), 1024)])
        assert got[i] == math.sqrt(row_total)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-150, 1.0, 1e150, 1e200, 1e307])
def test_norms_of_extreme_rows_are_as_accurate(scale):
    """Squares that overflow or vanish: computed again from scaled values."""
    x = np.array([[1.0, -2.0, 3.0, 0.5], [0, 0, 0, 0]]) * scale
    square = sum((Fraction(v) ** 2 for v in x[0].tolist()), Fraction(0))
    got = clipping.row_norms([x])
    half_an_ulp = Fraction(math.ulp(float(got[0]))) / 2 / Fraction(float(got[0]))  # matters where it is subnormal
    assert relative_error_of_root(got[0], square) <= 69 * H + half_an_ulp
    assert got[1] == 0


def test_norms_that_are_not_finite():
    x = np.array([[np.nan, 1], [np.inf, 1], [np.inf, np.nan], [3, 4]], np.float64)
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(clipping.row_norms([x.astype(dtype)]), [np.nan, np.inf, np.nan, 5])


def test_factors():
    norms = np.array([0.0, 1.0, 1.9, 2.0, np.nextafter(2.0, 3), 4.0, np.inf, np.nan])
    np.testing.assert_array_equal(clipping.factors(norms, 2.0), [1, 1, 1, 1, 2 / np.nextafter(2.0, 3), 0.5, 0, 0])


def test_bfloat16():
    bits = np.array([[0x3F80, 0xC000, 0x7F80, 0x0001, 0x8000]], np.uint16)
    assert clipping.from_bfloat16(bits).tolist() == [[1.0, -2.0, np.inf, 2.0**-133, 0.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
@pytest.mark.parametrize("shapes", SHAPES)
def test_clipped_sums_are_within_their_bound(shapes, dtype):
    grads = make(shapes, dtype)
    sums, norms = clipping.clip_and_sum(grads, max_norm=2.0)
    rows = values(grads)
    factors = [min(1.0, 2.0 / float(n)) if n else 1.0 for n in norms]
    out = np.concatenate([s.ravel() for s in sums]) if sums else np.zeros(0)
    assert all(s.dtype == (np.float64 if dtype == np.float64 else np.float32) for s in sums)
    for c, got in enumerate(out):
        terms = [factor * row[c] for factor, row in zip(factors, rows, strict=True)]
        truth = sum((Fraction(f) * Fraction(row[c]) for f, row in zip(factors, rows, strict=True)), Fraction(0))
        bound = (len(rows) + 1) * H * Fraction(math.fsum(map(abs, terms))) + Fraction(float(np.spacing(abs(got)))) / 2
        assert abs(Fraction(float(got)) - truth) <= bound
        assert math.isclose(got, math.fsum(terms), rel_tol=1e-5, abs_tol=1e-6)


def test_sums_of_rows_that_are_not_finite():
    """They are left out; the other rows' sum is what it would be without them."""
    x = make([(40,)], np.float32, rows=6)[0]
    x[1, 3], x[4, 0] = np.nan, -np.inf
    (got,), norms = clipping.clip_and_sum([x], 1.0)
    (want,), _ = clipping.clip_and_sum([x[[0, 2, 3, 5]]], 1.0)
    np.testing.assert_array_equal(got, want)
    assert np.isnan(norms[1])
    assert norms[4] == np.inf


def test_weighted_sum_does_not_touch_rows_of_weight_zero():
    x = np.array([[1, np.nan], [2, 3], [4, 5]], np.float32)
    assert clipping.weighted_sum(x, np.array([0.0, 2.0, -1.0])).tolist() == [0, 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([np.float32, np.float64, np.uint16]), st.integers(-40, 40))
def test_lattice_rows_are_never_longer_than_max_norm(seed, dtype, exponent):
    grads = make([(30,), (2, 4)], dtype, rows=3, seed=seed)
    max_norm = 1.5 * 2.0**exponent
    granularity = 2.0 ** (exponent - 30)
    integers, norms = clipping.lattice_rows(grads, max_norm, granularity)
    factors = clipping.factors(norms, max_norm)
    for i, row in enumerate(values(grads)):
        t = [int(v) for array in integers for v in array[i].ravel()]
        assert sum(v * v for v in t) * Fraction(granularity) ** 2 <= Fraction(max_norm) ** 2
        for v, n in zip(row, t, strict=True):
            exact = Fraction(v) * Fraction(factors[i]) / Fraction(granularity)
            assert abs(n) <= abs(exact)
            assert abs(n - exact) < 1 + abs(exact) / 2**29
    sums, _ = clipping.lattice_sum(grads, max_norm, granularity)
    assert all((q == t.sum(axis=0)).all() for q, t in zip(sums, integers, strict=True))


def test_lattice_rows_are_shrunk_before_they_are_truncated():
    """A row of norm max_norm ends one unit in 2^30 below it, so that no rounding can push it above."""
    (t,), _ = clipping.lattice_rows([np.array([[1.0], [-4.0]])], 1.0, 2.0**-31)
    assert t.tolist() == [[2**31 - 2], [-(2**31 - 2)]]


def test_lattice_rows_that_do_not_count():
    """Not finite; or too long in integers, which takes a factor so small that it loses its precision."""
    max_norm = 3.5e-16
    x = np.array([[np.nan, 1.0], [np.inf, 0.0], [1e308, 1e308], [1.0, 2.0]])
    (t,), _ = clipping.lattice_rows([x], max_norm, 2.0**-82)
    assert (t[:3] == 0).all()
    assert (t[3] > 0).all()
