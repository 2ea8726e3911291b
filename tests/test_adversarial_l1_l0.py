"""The reference of the L1 and L0 steps against exact rational arithmetic and brute force: docs/adversarial.md, sections 4 and 5."""

from __future__ import annotations

import bisect
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aisec_fast._reference import adversarial as reference
from tests.test_adversarial_reference import DTYPES, INF, run, steps

MARGINS = 2.0**-28  # of a radius: more than two margins and the grid of thresholds cost rows of at most 40 values


def exact(values: np.ndarray) -> list[Fraction]:
    return [Fraction(float(v)) for v in values]


def assert_in_l1_ball(out: np.ndarray, x: np.ndarray, eps: float) -> None:
    """In exact arithmetic, and as float64 evaluates it in several orders."""
    for row, center in zip(out, x, strict=True):
        if math.isfinite(eps):
            assert sum(abs(a - b) for a, b in zip(exact(row), exact(center), strict=True)) <= Fraction(eps)
        with np.errstate(all="ignore"):
            distance = np.abs(row.astype(np.float64) - center.astype(np.float64))
        assert max(sum(distance.tolist()), sum(distance[::-1].tolist()), float(distance.sum())) <= eps


@settings(max_examples=100)
@given(steps())
def test_l1_stays_in_ball_and_box(arguments) -> None:
    _, x, _, _, eps, low, high = arguments
    out = run(reference.l1_step, arguments)
    assert np.isfinite(out).all()
    assert ((x.dtype.type(low) <= out) & (out <= x.dtype.type(high))).all()
    assert_in_l1_ball(out, x, eps)


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 2, 15, 1023, 1025, 3000]),
    st.sampled_from([2.0**-400, 1e-60, 2.0**-149, 1e-30, 1e-6, 0.5, 3.0, 1e20, 1e300]),
    st.sampled_from([0.0, 1.0, 1e-4]),
)
def test_l1_on_the_border(seed, dtype, columns, eps, spread) -> None:
    """Rows that start, or end, where one more rounding would leave the ball."""
    rng = np.random.default_rng(seed)
    x = (spread * rng.random((1, columns))).astype(dtype)
    direction = rng.laplace(size=(1, columns))
    with np.errstate(all="ignore"):
        adv = (x + eps * (direction / np.abs(direction).sum())).astype(dtype)
    gradient = rng.standard_normal((1, columns)).astype(dtype)
    for step_size in (0.0, eps * 2.0**-20, -3 * eps):
        assert_in_l1_ball(run(reference.l1_step, (adv, x, gradient, step_size, eps, -INF, INF)), x, eps)


def exact_projection(change: list[Fraction], rooms: list[Fraction], radius: Fraction) -> list[Fraction]:
    """What is left of each magnitude: breakpoints in order, then the linear piece that holds the root."""

    def shrunk(t: Fraction) -> list[Fraction]:
        return [min(max(abs(d) - t, Fraction(0)), room) for d, room in zip(change, rooms, strict=True)]

    if sum(shrunk(Fraction(0))) <= radius:
        return shrunk(Fraction(0))
    places = {Fraction(0)}
    for d, room in zip(change, rooms, strict=True):
        places |= {abs(d), max(abs(d) - room, Fraction(0))}
    kinks = sorted(places)
    piece = bisect.bisect_left(kinks, True, key=lambda t: sum(shrunk(t)) <= radius)
    below, above = kinks[piece - 1], kinks[piece]
    first, last = sum(shrunk(below)), sum(shrunk(above))
    return shrunk(below + (first - radius) * (above - below) / (first - last))


@settings(max_examples=80)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(DTYPES),
    st.integers(1, 40),
    st.sampled_from([0.01, 0.5, 2.0, 7.0]),
    st.sampled_from([0.01, 1.0, 50.0]),
    st.sampled_from([(0.0, 1.0), (-INF, INF), (-3.0, 1.0)]),
    st.booleans(),
)
def test_l1_projects_exactly(seed, dtype, columns, eps, spread, box, ties) -> None:
    """Croce and Hein 2021: the nearest point of ball and box, to MARGINS of the radius and two roundings to the dtype."""
    rng = np.random.default_rng(seed)
    x = rng.random((1, columns)).astype(dtype)
    change = spread * rng.standard_normal((1, columns))
    adv = (x + (np.round(change * 4) / 4 if ties else change)).astype(dtype)
    out = run(reference.l1_step, (adv, x, x, 0.0, eps, *box))[0]
    moves = [a - b for a, b in zip(exact(adv[0]), exact(x[0]), strict=True)]
    low, high = (Fraction(bound if math.isfinite(bound) else math.copysign(1e9, bound)) for bound in box)
    rooms = [high - b if d > 0 else b - low for d, b in zip(moves, exact(x[0]), strict=True)]
    wanted = exact_projection(moves, rooms, Fraction(eps))
    for got, center, move, reach in zip(out, exact(x[0]), moves, wanted, strict=True):
        short = reach - (Fraction(float(got)) - center) * (1 if move > 0 else -1)
        unit = float(np.spacing(dtype(max(abs(float(got)), float(center), float(reach)))))
        assert -Fraction(MARGINS * eps) <= short <= Fraction(MARGINS * eps + 2 * unit)


def best_l1(x: np.ndarray, slope: np.ndarray, eps: float, low: float, high: float) -> Fraction:
    """The largest <slope, z - x> over ball and box: the steepest values first."""
    left, total = Fraction(eps), Fraction(0)
    for center, along in sorted(zip(exact(x), exact(slope), strict=True), key=lambda pair: -abs(pair[1])):
        room = Fraction(high) - center if along > 0 else center - Fraction(low)
        taken = min(left, room)
        left, total = left - taken, total + abs(along) * taken
    return total


def value_of(out: np.ndarray, x: np.ndarray, slope: np.ndarray) -> Fraction:
    return sum((s * (a - b) for s, a, b in zip(exact(slope), exact(out), exact(x), strict=True)), Fraction(0))


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(DTYPES),
    st.integers(1, 40),
    st.sampled_from([0.1, 1.0, 3.3, 100.0]),
    st.sampled_from(["one step", "many steps", "descent"]),
    st.booleans(),
)
def test_l1_reaches_the_optimum_of_a_linear_loss_and_stays(seed, dtype, columns, eps, how, ties) -> None:
    rng = np.random.default_rng(seed)
    x = rng.random((1, columns)).astype(dtype)
    slope = rng.standard_normal((1, columns))
    slope = (np.round(slope * 2) if ties else slope).astype(dtype)
    adv, count = (
        (x + 0.3 * rng.standard_normal((1, columns))).clip(0, 1).astype(dtype),
        16 if how == "many steps" else 1,
    )
    size = {"one step": 3 * eps, "many steps": eps / 7, "descent": -3 * eps}[how]
    adv = run(reference.l1_step, (adv, x, x, 0.0, eps, 0.0, 1.0))
    for _ in range(count):
        adv = run(reference.l1_step, (adv, x, slope, size, eps, 0.0, 1.0))
    sign = -1 if how == "descent" else 1
    wanted, got = best_l1(x[0], sign * slope[0], eps, 0.0, 1.0), value_of(adv[0], x[0], sign * slope[0])
    steepest = float(np.abs(slope).max())
    rounding = columns * steepest * float(np.finfo(dtype).eps) * (1 + (count > 1) * 4)
    assert wanted - Fraction(steepest * MARGINS * eps + rounding) <= got <= wanted
    again = run(reference.l1_step, (adv, x, slope, size, eps, 0.0, 1.0))
    assert np.abs(again - adv).max() <= 4 * np.finfo(dtype).eps


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), st.integers(2, 40), st.floats(0.01, 0.2))
def test_an_l1_step_has_the_length_asked_for(seed, dtype, columns, size) -> None:
    rng = np.random.default_rng(seed)
    x, slope = rng.random((1, columns)).astype(dtype), rng.standard_normal((1, columns)).astype(dtype)
    out = run(reference.l1_step, (x, x, slope, size, 0.5, -1.0, 2.0))
    assert np.abs(out.astype("f8") - x).sum() == pytest.approx(size, abs=columns * 2 * float(np.finfo(dtype).eps))


# ------------------------------------------------------------------------------------------------ L0


@settings(max_examples=100)
@given(steps())
def test_l0_changes_few_values_and_stays_in_the_box(arguments) -> None:
    _, x, _, _, eps, low, high = arguments
    out = run(reference.l0_step, arguments)
    assert np.isfinite(out).all()
    assert ((x.dtype.type(low) <= out) & (out <= x.dtype.type(high))).all()
    assert ((out != x).sum(axis=1) <= eps).all()


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), st.integers(1, 7), st.integers(1, 4), st.booleans())
def test_l0_projects_to_the_nearest_point(seed, dtype, columns, most, ties) -> None:
    """Against every choice of values that may differ."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(0, 3, (1, columns)) / 2 if ties else rng.random((1, columns))).astype(dtype)
    change = rng.standard_normal((1, columns))
    adv = (x + (np.round(change * 2) / 2 if ties else change)).astype(dtype)
    out = run(reference.l0_step, (adv, x, x, 0.0, most + 0.5, 0.0, 1.0))[0]

    def distance(point: np.ndarray) -> Fraction:
        return sum(((a - b) ** 2 for a, b in zip(exact(point), exact(adv[0]), strict=True)), Fraction(0))

    inside = np.clip(adv[0], 0, 1)
    choices = itertools.combinations(range(columns), min(most, columns))
    nearest = min(distance(np.where(np.isin(np.arange(columns), chosen), inside, x[0])) for chosen in choices)
    assert distance(out) <= nearest * (1 + Fraction(2) ** -50)
    if ties and distance(out) == nearest:  # of equal gains the first
        gains = [(a - b) ** 2 - (a - c) ** 2 for a, b, c in zip(exact(adv[0]), exact(x[0]), exact(inside), strict=True)]
        order = sorted((i for i in range(columns) if inside[i] != x[0, i]), key=lambda i: (-gains[i], i))
        assert np.flatnonzero(out != x[0]).tolist() == sorted(order[:most])


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(DTYPES),
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from([0.3, 1.0, -2.0, 50.0]),
    st.booleans(),
)
def test_l0_climbs_to_the_optimum_of_a_linear_loss(seed, dtype, columns, most, size, ties) -> None:
    """2 most / ceil(size) steps from anywhere; none of them loses anything."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(0, 5, (1, columns)) / 4 if ties else rng.random((1, columns))).astype(dtype)
    slope = rng.standard_normal((1, columns))
    slope = (np.round(slope * 2) if ties else slope).astype(dtype)
    adv = run(reference.l0_step, (rng.random((1, columns)).astype(dtype), x, x, 0.0, float(most), 0.0, 1.0))
    along = slope if size > 0 else -slope
    values = [value_of(adv[0], x[0], along[0])]
    for _ in range(math.ceil(2 * most / math.ceil(abs(size)))):
        adv = run(reference.l0_step, (adv, x, slope, size, float(most), 0.0, 1.0))
        values.append(value_of(adv[0], x[0], along[0]))
    slack = Fraction(2) ** -45
    assert all(after >= before - slack for before, after in itertools.pairwise(values))
    gains = [abs(s) * (1 - c if s > 0 else c) for s, c in zip(exact(along[0]), exact(x[0]), strict=True)]
    assert abs(values[-1] - sum(sorted(gains)[::-1][:most])) <= slack
    again = run(reference.l0_step, (adv, x, slope, size, float(most), 0.0, 1.0))
    assert abs(value_of(again[0], x[0], along[0]) - values[-1]) <= slack


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_l0_step_changes_as_many_values_as_asked_for(dtype) -> None:
    rng = np.random.default_rng(1)
    x, slope = rng.random((1, 40)).astype(dtype), rng.standard_normal((1, 40)).astype(dtype)
    for size, count in ((0.2, 1), (1.0, 1), (1.5, 2), (7.0, 7), (1e9, 12)):
        out = run(reference.l0_step, (x, x, slope, size, 12.9, 0.0, 1.0))
        assert np.count_nonzero(out != x) == count
        assert np.isin(out[out != x], [0, 1]).all()
