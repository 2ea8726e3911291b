"""The contract of the adversarial steps (docs/adversarial.md) in NumPy: float64 operations in the stated order.

`adv`, `x`, `gradient` and `out` are arrays [B, ...] of one dtype, float32 or float64; x is finite and within [low, high].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aisec_fast._reference.clipping import BLOCK, block_sums, factors, row_norms

Array = NDArray[Any]
Floats = NDArray[np.float64]

LEAST_EPS = 2.0**-400  # below it squares of differences may lose bits: such a ball holds x alone


def toward_zero(values: Floats, dtype: Any) -> Array:
    """Return float64 values rounded to dtype toward zero; infinity stays."""
    nearest = values.astype(dtype)
    too_large = np.abs(nearest.astype(np.float64)) > np.abs(values)
    return np.where(too_large, np.nextafter(nearest, dtype(0)), nearest)


def sum_down(a: Array, b: Array) -> Array:
    """Return a + b rounded down, for finite a and b >= 0, by the exact error of the sum (Knuth); infinite beyond the range."""
    total = a + b
    rest = total - a
    error = (a - (total - rest)) + (b - rest)
    return np.where(error < 0, np.nextafter(total, a.dtype.type(-np.inf)), total)


def clamp(values: Array, low: Array, high: Array) -> Array:
    """Return low where a value is not above it, then high where that is not below it: which zero wins is fixed."""
    raised = np.where(values > low, values, low)
    return np.where(raised < high, raised, high)


def clamp_to_box(values: Array, low: float, high: float) -> Array:
    """Return the values inside the box; without one, inside the finite values."""
    dtype = values.dtype.type
    largest = np.finfo(dtype).max
    return clamp(values, clamp(dtype(low), -largest, largest), clamp(dtype(high), -largest, largest))


def linf_step(
    adv: Array, x: Array, gradient: Array, step_size: float, eps: float, low: float, high: float, out: Array
) -> None:
    """out = adv moved by step_size along the sign of the gradient, back into the ball of radius eps around x and the box."""
    dtype = x.dtype.type
    with np.errstate(all="ignore"):
        size, zero = dtype(step_size), dtype(0)
        moved = adv + (np.where(gradient > 0, size, zero) - np.where(gradient < 0, size, zero))
        moved = np.where(np.isnan(moved), x, moved)
        mirrored = moved < x  # then all signs are turned, so that the ball ends at x + eps
        center, target = np.where(mirrored, -x, x), np.where(mirrored, -moved, moved)
        limit = sum_down(center, toward_zero(np.float64(eps), dtype))
        inside = np.where(target < limit, target, limit)
        out[...] = clamp_to_box(np.where(mirrored, -inside, inside), low, high)


def radius(eps: float, columns: int) -> float:
    """Return the radius that rows are projected to: eps less what any float64 evaluation of a norm can be off by."""
    return eps * (1.0 - (2.0**-30 + columns * 2.0**-52)) if eps >= LEAST_EPS else 0.0


def l2_step(
    adv: Array, x: Array, gradient: Array, step_size: float, eps: float, low: float, high: float, out: Array
) -> None:
    """out = adv moved by step_size along the row's gradient, back into the ball of radius eps around x and the box."""
    shape = (x.shape[0], math.prod(x.shape[1:]))
    wide, center, slope = (a.reshape(shape).astype(np.float64) for a in (adv, x, gradient))
    with np.errstate(all="ignore"):
        quotients = step_size / row_norms([np.where(np.isnan(slope), 0.0, slope)])
        quotients = np.where(np.isfinite(quotients), quotients, 0.0)
        move = np.where(np.isfinite(slope), quotients[:, None] * slope, 0.0)
        change = (wide + move) - center
        change = np.where(np.isfinite(change), change, 0.0)
        scales = factors(row_norms([change]), radius(eps, shape[1]))
        out[...] = _toward_x(x.reshape(shape), scales[:, None] * change, low, high).reshape(x.shape)


def _row_sum(values: Floats) -> float:
    """Return the sum of one row: block sums of docs/clipping.md, added from left to right."""
    return sum(block_sums(values[None])[0].tolist(), 0.0)


def _toward_x(x: Array, reach: Floats, low: float, high: float) -> Array:
    """Return x + reach rounded toward x, in the box."""
    rounded = toward_zero(reach, x.dtype.type)
    mirrored = np.signbit(rounded)
    moved = sum_down(np.where(mirrored, -x, x), np.abs(rounded))
    return clamp_to_box(np.where(mirrored, -moved, moved), low, high)


def fill(keys: Floats, weights: Floats, budget: float, allowed: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
    """Return how much of each weight the budget takes, largest keys first, equal keys by index; and which are whole."""
    levels = [-np.inf, *np.unique(keys[allowed])]

    def above(level: float) -> float:
        return _row_sum(np.where(allowed & (keys > level), weights, 0.0))

    first, last = -1, len(levels) - 1  # the last level fits: nothing is above it
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (first, middle) if above(levels[middle]) <= budget else (middle, last)
    whole = allowed & (keys > levels[last])
    taken = np.where(whole, weights, 0.0)
    tied = allowed & (keys == levels[last]) if last else np.zeros_like(allowed)
    left = budget - above(levels[last])
    for begin in range(0, keys.size, BLOCK):
        block = slice(begin, begin + BLOCK)
        total = _row_sum(np.where(tied[block], weights[block], 0.0))
        if total <= left:
            left -= total
            taken[block][tied[block]] = weights[block][tied[block]]
            whole[block] |= tied[block]
            continue
        for i in begin + np.flatnonzero(tied[block]):
            if not weights[i] <= left:
                taken[i] = left
                break
            left -= weights[i]
            taken[i], whole[i] = weights[i], True
        break
    return taken, whole


def _slopes(gradient: Array, step_size: float) -> Floats | None:
    """Return the gradient (NaN as 0), its signs turned for descent; None if it has no direction or there is no step."""
    slope = gradient.astype(np.float64)
    slope = np.where(np.isnan(slope), 0.0, slope)
    if step_size == 0 or not np.isfinite(slope).all() or not slope.any():
        return None
    return slope if step_size > 0 else -slope


def _finite_box(dtype: Any, low: float, high: float) -> tuple[np.float64, np.float64]:
    largest = np.finfo(dtype).max
    return np.float64(clamp(dtype(low), -largest, largest)), np.float64(clamp(dtype(high), -largest, largest))


def threshold(sum_at: Callable[[float], float], largest: float, bound: float) -> float:
    """Return the smallest threshold whose sum is at most `bound`: 0, or a multiple of 2^-46 times the power of two at or below
    `bound`; from 2^53 multiples on any float64. The sum falls as the threshold grows, and is 0 at `largest`."""
    if sum_at(0.0) <= bound:
        return 0.0
    spacing = math.ldexp(1.0, math.frexp(bound)[1] - 1 - 46)
    limit = spacing * 2.0**53

    def value(k: int) -> float:
        return k * spacing if k < 2**53 else float((np.float64(limit).view(np.int64) + (k - 2**53)).view(np.float64))

    first = 0
    last = (
        math.ceil(largest / spacing)
        if largest < limit
        else 2**53 + int(np.float64(largest).view(np.int64) - np.float64(limit).view(np.int64))
    )
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (first, middle) if sum_at(value(middle)) <= bound else (middle, last)
    return value(last)


def _l1_row(x: Array, adv: Array, slope: Floats | None, size: float, eps: float, low: float, high: float) -> Array:
    bound = radius(eps, x.size)
    lowest, highest = _finite_box(x.dtype.type, low, high)
    center = x.astype(np.float64)
    offset = adv.astype(np.float64) - center
    offset = np.where(np.isfinite(offset), offset, 0.0)

    def room(up: NDArray[np.bool_]) -> Floats:
        most = np.where(up, highest - center, center - lowest)
        return np.where(most < bound, most, bound)

    change = offset
    if slope is not None:
        taken, _ = fill(np.abs(slope), room(slope > 0), radius(bound, x.size), slope != 0)
        vertex = np.where(slope > 0, taken, -taken)
        share = abs(size) / np.float64(_row_sum(np.abs(vertex - offset)))
        change = offset + share * (vertex - offset) if share < 1 else vertex
        change = np.where(np.isfinite(change), change, 0.0)
    magnitude, most = np.abs(change), room(change > 0)

    def shrunk(level: float) -> Floats:
        rest = magnitude - level
        positive = np.where(rest > 0, rest, 0.0)
        return np.where(positive < most, positive, most)

    reach = shrunk(threshold(lambda level: _row_sum(shrunk(level)), float(magnitude.max(initial=0.0)), bound))
    return _toward_x(x, np.where(change < 0, -reach, reach), low, high)


def l1_step(
    adv: Array, x: Array, gradient: Array, step_size: float, eps: float, low: float, high: float, out: Array
) -> None:
    """out = adv moved by step_size toward the vertex of ball and box that the gradient points to, then projected onto both."""
    shape = (x.shape[0], math.prod(x.shape[1:]))
    result = np.empty(shape, x.dtype)
    with np.errstate(all="ignore"):
        for row, (a, b, g) in enumerate(zip(*(array.reshape(shape) for array in (adv, x, gradient)), strict=True)):
            result[row] = _l1_row(b, a, _slopes(g, step_size), step_size, eps, low, high)
    out[...] = result.reshape(x.shape)


def _l0_row(x: Array, adv: Array, slope: Floats | None, size: float, eps: float, low: float, high: float) -> Array:
    def numbers(values: Floats) -> Floats:
        return np.where(np.isnan(values), 0.0, values)

    center, ones = x.astype(np.float64), np.ones(x.size)
    most = math.floor(eps) if math.isfinite(eps) else eps
    wanted = np.abs(adv.astype(np.float64) - center)
    inside = np.where(np.isfinite(adv), clamp_to_box(adv, low, high), x)
    change = np.abs(inside.astype(np.float64) - center)
    _, kept = fill(numbers(change * (2 * wanted - change)), ones, most, inside != x)
    point = np.where(kept, inside, x)
    if slope is None:
        return point

    def given(values: Array) -> Floats:
        return numbers(slope * (values.astype(np.float64) - center))

    ends = np.where(
        slope > 0, clamp_to_box(np.full_like(x, np.inf), low, high), clamp_to_box(np.full_like(x, -np.inf), low, high)
    )
    differs = point != x
    full = differs.any() and np.count_nonzero(differs) + 1 > most
    least = given(point)[differs].min() if full else 0.0
    reachable = np.where(slope != 0, given(ends), 0.0)
    benefit = np.where(differs, reachable - given(point), np.where(reachable > 0, reachable - least, 0.0))
    _, movers = fill(benefit, ones, math.ceil(abs(size)), benefit > 0)
    moved = np.where(movers, ends, point)
    _, kept = fill(given(moved), ones, most, moved != x)
    return np.where(kept, moved, x)


def l0_step(
    adv: Array, x: Array, gradient: Array, step_size: float, eps: float, low: float, high: float, out: Array
) -> None:
    """out = adv with the ceil(|step_size|) values that gain most at their end of the box, and the eps best of all kept."""
    shape = (x.shape[0], math.prod(x.shape[1:]))
    result = np.empty(shape, x.dtype)
    with np.errstate(all="ignore"):
        for row, (a, b, g) in enumerate(zip(*(array.reshape(shape) for array in (adv, x, gradient)), strict=True)):
            result[row] = _l0_row(b, a, _slopes(g, step_size), step_size, eps, low, high)
    out[...] = result.reshape(x.shape)
