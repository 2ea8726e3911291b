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

LARGEST = float(np.finfo(np.float64).max)
LEAST_EPS = 2.0**-400  # below it squares of differences may lose bits: such a ball holds x alone


def nearest_inside(x: Array, reach: Floats | float) -> Array:
    """Return x + reach rounded to x's dtype, moved one value toward x where it is then farther from x than |reach|."""
    center = x.astype(np.float64)
    nearest = (center + reach).astype(x.dtype)
    too_far = np.abs(nearest.astype(np.float64) - center) > np.abs(reach)
    return np.where(too_far, np.nextafter(nearest, x), nearest)


def clamp(values: Array, low: Array, high: Array) -> Array:
    """Return low where a value is not above it, then high where that is not below it: which zero wins is fixed."""
    raised = np.where(values > low, values, low)
    return np.where(raised < high, raised, high)


def linf_step(
    adv: Array, x: Array, gradient: Array, step_size: float, eps: float, low: float, high: float, out: Array
) -> None:
    """out = adv moved by step_size along the sign of the gradient, back into the ball of radius eps around x and the box."""
    dtype = x.dtype.type
    with np.errstate(all="ignore"):
        sign = (gradient > 0).astype(np.float64) - (gradient < 0).astype(np.float64)
        moved = (adv.astype(np.float64) + step_size * sign).astype(dtype)
        moved = np.where(np.isnan(moved), x, moved)
        change = moved.astype(np.float64) - x.astype(np.float64)
        bound = nearest_inside(x, np.copysign(min(eps, LARGEST), change))
        inside = clamp(moved, np.where(bound < x, bound, x), np.where(bound < x, x, bound))
        out[...] = clamp(inside, dtype(low), dtype(high))


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
        moved = nearest_inside(x.reshape(shape), scales[:, None] * change)
        out[...] = clamp(moved, dtype(low), dtype(high)).reshape(x.shape)
