"""The reference of the adversarial steps against exact rational arithmetic: both guarantees of docs/adversarial.md."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aisec_fast._reference import adversarial as reference

INF, NAN = np.inf, np.nan
LARGEST = float(np.finfo(np.float64).max)
DTYPES = [np.float32, np.float64]
NASTY = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.0**-24,
    1 - 2.0**-24,
    1 + 2.0**-23,
    2.0**-126,
    2.0**-149,
    -(2.0**-149),
    3e38,
    -3e38,
]
NASTY_64 = [*NASTY, 5e-324, -5e-324, 2.0**-1022, 1e-200, 1e200, 1.7e308, -1.7e308, 1 + 2.0**-52]
EPS = [0.0, 5e-324, 2.0**-149, 2.0**-150, 1e-45, 1e-9, 8 / 255, 0.1, 1 / 3, 1.0, 1e30, 3e38, 1e300, LARGEST]
EPS += [2.0**-400, 2.0**-401, 1e-130, INF]


def finite(dtype: type) -> st.SearchStrategy[float]:
    width = 32 if dtype is np.float32 else 64
    plain = st.floats(width=width, allow_nan=False, allow_infinity=False)
    near_one = st.floats(0, 1, width=width)
    return st.one_of(st.sampled_from(NASTY if width == 32 else NASTY_64), near_one, plain)


def anything(dtype: type) -> st.SearchStrategy[float]:
    return st.one_of(finite(dtype), st.sampled_from([NAN, INF, -INF]))


RADII = st.one_of(st.sampled_from(EPS), st.floats(0, 2), st.floats(0, allow_infinity=False))
STEPS = st.one_of(st.sampled_from([0.0, 0.01, -0.01, 1e-45, 1e30, -1e300, LARGEST]), st.floats(-2, 2))
BOXES = st.sampled_from([(-INF, INF), (0.0, 1.0), (-1.0, 1.0), (0.25, 0.5), (-0.0, 0.0)])


@st.composite
def steps(draw: Any, most: int = 8) -> tuple[Any, ...]:
    """The arguments of a step: one dtype, one to three rows, x in the box."""
    dtype = draw(st.sampled_from(DTYPES))
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, most))
    low, high = draw(BOXES)

    def array(values: st.SearchStrategy[float]) -> np.ndarray:
        flat = draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
        return np.array(flat, dtype).reshape(rows, columns)

    x = np.clip(array(finite(dtype)), dtype(low), dtype(high))
    return array(anything(dtype)), x, array(anything(dtype)), draw(STEPS), draw(RADII), low, high


def run(step: Callable[..., None], arguments: tuple[Any, ...]) -> np.ndarray:
    adv, x = arguments[:2]
    before = [a.copy() for a in arguments[:3]]
    out = np.full_like(x, 7)
    step(*arguments, out)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(arguments[:3], before, strict=True))
    in_place = adv.copy()
    step(in_place, *arguments[1:], in_place)
    assert in_place.tobytes() == out.tobytes()
    return out


@settings(max_examples=150)
@given(st.one_of(st.sampled_from(EPS), st.floats(allow_nan=False)), st.sampled_from(DTYPES), st.booleans())
def test_toward_zero(value, dtype, negative) -> None:
    """The largest magnitude that is not larger; infinity stays."""
    value = np.float64(-value if negative else value)
    with np.errstate(all="ignore"):
        got = reference.toward_zero(value, dtype)[()]
        beyond = np.nextafter(got, dtype(np.copysign(INF, value)))
    assert isinstance(got, dtype)
    assert np.signbit(got) == np.signbit(value)
    if np.isinf(value):
        assert got == value
    else:
        assert abs(Fraction(float(got))) <= abs(Fraction(float(value)))
        assert np.isinf(beyond) or abs(Fraction(float(beyond))) > abs(Fraction(float(value)))


@settings(max_examples=150)
@given(st.data(), st.sampled_from(DTYPES))
def test_sum_down(data, dtype) -> None:
    """The largest value that is not above the exact sum, or infinity where that is beyond the range."""
    a, b = np.array([data.draw(finite(dtype))], dtype), np.abs(np.array([data.draw(finite(dtype))], dtype))
    with np.errstate(all="ignore"):
        got = reference.sum_down(a, b)[0]
        above = np.nextafter(got, dtype(INF))
    exact = Fraction(float(a[0])) + Fraction(float(b[0]))
    if np.isinf(got):
        assert exact > Fraction(float(np.finfo(dtype).max))
    else:
        assert Fraction(float(got)) <= exact
        assert np.isinf(above) or Fraction(float(above)) > exact


@settings(max_examples=100)
@given(steps())
def test_linf_step(arguments) -> None:
    adv, x, gradient, step_size, eps, low, high = arguments
    out = run(reference.linf_step, arguments)
    dtype = x.dtype.type
    assert np.isfinite(out).all()
    assert ((dtype(low) <= out) & (out <= dtype(high))).all()
    with np.errstate(all="ignore"):
        assert (np.abs(out.astype(np.float64) - x.astype(np.float64)) <= eps).all()
        reach, size = float(reference.toward_zero(np.float64(eps), dtype)), dtype(step_size)
    for a, b, g, got in zip(adv.flat, x.flat, gradient.flat, out.flat, strict=True):
        with np.errstate(all="ignore"):
            moved = a + size if g > 0 else a - size if g < 0 else a
        moved = b if np.isnan(moved) else moved
        distance = INF if np.isinf(moved) else abs(Fraction(float(moved)) - Fraction(float(b)))
        if math.isfinite(eps):
            assert abs(Fraction(float(got)) - Fraction(float(b))) <= Fraction(eps)
        if distance <= reach and np.isfinite(moved) and low <= moved <= high:  # then nothing may change it
            assert got == moved
        elif distance > reach and low < got < high:  # on the ball: the next value is outside
            with np.errstate(all="ignore"):
                beyond = np.nextafter(got, moved)
            assert np.isinf(beyond) or abs(Fraction(float(beyond)) - Fraction(float(b))) > reach


def norms_in_many_orders(difference: np.ndarray) -> list[float]:
    """The float64 norm as a reader might compute it."""
    squares = difference * difference
    forwards = backwards = 0.0
    for square in squares.tolist():
        forwards += square
    for square in squares[::-1].tolist():
        backwards += square
    total = float(np.sum(squares))
    return [
        *map(math.sqrt, (forwards, backwards, total, float(difference @ difference))),
        float(np.linalg.norm(difference)),
    ]


def assert_in_ball(out: np.ndarray, x: np.ndarray, eps: float) -> None:
    """In exact arithmetic; and as float64 evaluates it, where squares of eps stay in its range."""
    for row, center in zip(out.astype(np.float64), x.astype(np.float64), strict=True):
        if math.isfinite(eps):
            square = sum(((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(row.tolist(), center.tolist(), strict=True)))
            assert square <= Fraction(eps) ** 2
        with np.errstate(all="ignore"):
            if eps <= 2.0**511:
                assert max(norms_in_many_orders(row - center)) <= eps


@settings(max_examples=150)
@given(steps())
def test_l2_step(arguments) -> None:
    _, x, _, _, eps, low, high = arguments
    out = run(reference.l2_step, arguments)
    dtype = x.dtype.type
    assert np.isfinite(out).all()
    assert ((dtype(low) <= out) & (out <= dtype(high))).all()
    assert_in_ball(out, x, eps)


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 2, 3, 15, 1023, 1024, 1025, 4000]),
    st.sampled_from([2.0**-400, 1e-60, 2.0**-149, 1e-30, 1e-6, 0.5, 3.0, 1e20, 2.0**511]),
    st.sampled_from([0.0, 1.0, 1e-4]),
)
def test_l2_on_the_border(seed, dtype, columns, eps, spread) -> None:
    """Rows that start, or end, where one more rounding would leave the ball."""
    rng = np.random.default_rng(seed)
    x = (spread * rng.random((2, columns))).astype(dtype)
    direction = rng.standard_normal((2, columns))
    lengths = np.sqrt((direction * direction).sum(axis=1, keepdims=True))
    with np.errstate(all="ignore"):
        adv = (x + eps * (direction / lengths)).astype(dtype)
    gradient = rng.standard_normal((2, columns)).astype(dtype)
    for step_size in (0.0, eps * 2.0**-20, eps, -3 * eps):
        assert_in_ball(run(reference.l2_step, (adv, x, gradient, step_size, eps, -INF, INF)), x, eps)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), st.integers(1, 40))
def test_l2_moves_along_the_gradient(seed, dtype, columns) -> None:
    """Within the ball: adv + step_size * g / ||g||, to one unit of the result, one of the change, and 2^-45."""
    rng = np.random.default_rng(seed)
    x, adv, gradient = (rng.standard_normal((1, columns)).astype(dtype) for _ in range(3))
    out = run(reference.l2_step, (adv, x, gradient, 0.25, 1e6, -INF, INF))
    g = gradient[0].astype(np.float64)
    wanted = adv[0].astype(np.float64) + 0.25 * g / math.sqrt(math.fsum(v * v for v in g.tolist()))
    change = np.abs(wanted - x[0])
    units = np.spacing(np.abs(out[0])).astype(np.float64) + np.spacing(change.astype(dtype))
    allowed = units + 2.0**-45 * (1 + change)
    assert (np.abs(out[0] - wanted) <= allowed).all()


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), st.integers(1, 40), st.floats(1e-3, 1.0))
def test_l2_projects_radially(seed, dtype, columns, eps) -> None:
    """From outside: x + eps * change / ||change||, short of it by at most one part in 2^29 and two units of the dtype."""
    rng = np.random.default_rng(seed)
    x = rng.random((1, columns)).astype(dtype)
    adv = (x + 5 + rng.random((1, columns))).astype(dtype)
    out = run(reference.l2_step, (adv, x, np.zeros_like(x), 1.0, eps, -INF, INF))
    change = (adv.astype(np.float64) - x)[0]
    wanted = eps * change / math.sqrt(math.fsum(v * v for v in change.tolist()))
    got = out[0].astype(np.float64) - x[0]
    assert (got <= wanted * (1 + 2.0**-45)).all()
    assert (got >= wanted * (1 - 2.0**-29) - 2 * np.spacing(out[0] + dtype(1))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite(dtype: type) -> None:
    def array(*values: float) -> np.ndarray:
        return np.array([values], dtype)

    x, out = array(0.5, 0.5, 0.5, 0.5), np.empty((1, 4), dtype)
    reference.linf_step(array(NAN, INF, -INF, 0.5), x, array(1, NAN, INF, -INF), 0.25, 0.125, -INF, INF, out)
    assert out.tolist() == [[0.5, 0.625, 0.375, 0.375]]  # NaN: back to x
    reference.linf_step(x, x, array(-INF, NAN, 0.0, -0.0), 0.125, 1.0, -INF, INF, out)
    assert out.tolist() == [[0.375, 0.5, 0.5, 0.5]]

    reference.l2_step(array(NAN, INF, 0.5, 0.5), x, array(0, 0, 3, NAN), 0.25, 8.0, -INF, INF, out)
    assert out.tolist() == [[0.5, 0.5, 0.75, 0.5]]  # neither NaN in the gradient nor what is not finite in adv matters
    reference.l2_step(array(0.75, 0.5, 0.5, 0.5), x, array(INF, 1, 2, NAN), 0.25, 8.0, -INF, INF, out)
    assert out.tolist() == [[0.75, 0.5, 0.5, 0.5]]  # an infinite gradient has no direction: the row is not moved
    reference.l2_step(array(0.75, 0.5, 0.5, 0.5), x, array(0, 0, 0, 0), 0.25, 8.0, -INF, INF, out)
    assert out.tolist() == [[0.75, 0.5, 0.5, 0.5]]


def test_a_norm_out_of_range_is_scaled() -> None:
    x, out = np.zeros((2, 2)), np.empty((2, 2))
    reference.l2_step(x, x, np.array([[3e-200, 4e-200], [3e200, -4e200]]), 0.5, 1.0, -INF, INF, out)
    np.testing.assert_allclose(out, [[0.3, 0.4], [0.3, -0.4]], rtol=1e-15)
    reference.l2_step(x + 1e200, x, x, 0.5, 1.0, -INF, INF, out)
    np.testing.assert_allclose(out, np.full((2, 2), 2**-0.5), rtol=1e-8)
    reference.l2_step(x, x, np.full((2, 2), 5e-324), 1e10, 1.0, -INF, INF, out)
    assert out.tolist() == x.tolist()  # step_size / norm overflows: no direction


def test_a_ball_too_small_for_squares_holds_x_alone() -> None:
    x, out = np.zeros((1, 2)), np.empty((1, 2))
    ones = np.ones((1, 2))
    reference.l2_step(ones, x, ones, 1.0, math.nextafter(2.0**-400, 0), -INF, INF, out)
    assert out.tolist() == [[0, 0]]
    reference.l2_step(ones, x, ones, 1.0, 2.0**-400, -INF, INF, out)
    assert (out > 0).all()


def test_the_margin_grows_with_the_row() -> None:
    assert reference.radius(1.0, 0) == 1 - 2.0**-30
    assert reference.radius(2.0, 2**40) == 2 * (1 - 2.0**-30 - 2.0**-12)
    assert reference.radius(INF, 10) == INF
    assert reference.radius(0.0, 10) == 0
