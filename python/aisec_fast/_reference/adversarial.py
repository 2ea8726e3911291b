"""The contract of the adversarial steps (docs/adversarial.md) in NumPy: float64 operations in the stated order.

`adv`, `x`, `gradient` and `out` are arrays [B, ...] of one dtype, float32 or float64; x is finite and within [low, high].
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aisec_fast._reference.clipping import factors, row_norms

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
    dtype, shape = x.dtype.type, (x.shape[0], math.prod(x.shape[1:]))
    wide, center, slope = (a.reshape(shape).astype(np.float64) for a in (adv, x, gradient))
    with np.errstate(all="ignore"):
        quotients = step_size / row_norms([np.where(np.isnan(slope), 0.0, slope)])
        quotients = np.where(np.isfinite(quotients), quotients, 0.0)
        move = np.where(np.isfinite(slope), quotients[:, None] * slope, 0.0)
        change = (wide + move) - center
        change = np.where(np.isfinite(change), change, 0.0)
        scales = factors(row_norms([change]), radius(eps, shape[1]))
        reach, start = toward_zero(scales[:, None] * change, dtype), x.reshape(shape)
        mirrored = np.signbit(reach)
        moved = sum_down(np.where(mirrored, -start, start), np.abs(reach))
        out[...] = clamp_to_box(np.where(mirrored, -moved, moved), low, high).reshape(x.shape)
