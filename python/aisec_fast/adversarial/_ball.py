"""Where an adversarial sample may lie: the ball around x cut with the box, and the kernel that steps inside it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .. import _checks
from .._arrays import Array, describe
from .._backends import Backend
from . import _rows

Clip: TypeAlias = "tuple[float, float] | None"
Step: TypeAlias = Callable[[Any, float], None]  # of gradient and step_size

DTYPES = ("float32", "float64")
_NORMS = {"linf": "linf", "Linf": "linf", "l2": "l2", "L2": "l2"}


@dataclass(frozen=True)
class Ball:
    """Norm, radius, and the box as values of the arrays' dtype (infinite without one)."""

    norm: str
    eps: float
    low: float
    high: float

    def stepper(self, backend: Backend, adv: Any, x: Any) -> Step:
        """A function that moves ``adv`` in place, around ``x``; the arrays are known to fit."""
        kernel = getattr(backend.adversarial, f"{self.norm}_step")
        target, clean = backend.operands([describe(adv, "x_adv"), describe(x, "x")])

        def step(gradient: Any, step_size: float) -> None:
            [slope] = backend.operands([describe(gradient, "gradient")])
            kernel(target, clean, slope, step_size, self.eps, self.low, self.high, target)

        return step

    def require_inside_box(self, x: Array) -> None:
        """ValueError unless every value of ``x`` is finite and in the box."""
        if x.size == 0:
            return
        smallest, largest = _rows.value_range(x.value)
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            raise ValueError(f"{x.name} holds NaN or infinite values, expected finite ones")
        if smallest < self.low or largest > self.high:
            raise ValueError(
                f"{x.name} has values from {smallest!r} to {largest!r}, expected values inside clip "
                f"({self.low!r} to {self.high!r} as {x.dtype}); clip=None means no box"
            )


def make_ball(norm: object, eps: object, clip: object, dtype: str) -> Ball:
    """The ball of these arguments; TypeError or ValueError if one of them is wrong."""
    if not isinstance(norm, str) or norm not in _NORMS:
        raise ValueError(f"norm is {norm!r}, expected 'linf' or 'l2' (or 'Linf', 'L2')")
    return Ball(_NORMS[norm], _checks.positive(eps, "eps"), *_box(clip, dtype))


def _box(clip: object, dtype: str) -> tuple[float, float]:
    """The bounds rounded inward to values of ``dtype``."""
    if clip is None:
        return -math.inf, math.inf
    if not isinstance(clip, (tuple, list)) or len(clip) != 2:
        raise TypeError(f"clip is {clip!r}, expected a pair (low, high) or None for no box")
    for bound in clip:
        if isinstance(bound, bool) or not isinstance(bound, numbers.Real):
            raise TypeError(f"clip is {clip!r}, expected a pair of real numbers")
    low, high = float(clip[0]), float(clip[1])
    if not low < high:
        raise ValueError(f"clip is {clip!r}, expected low < high")
    rounded_low, rounded_high = _round_up(low, dtype), -_round_up(-high, dtype)
    if rounded_low > rounded_high or rounded_low == math.inf or rounded_high == -math.inf:
        raise ValueError(f"clip is {clip!r}, which holds no {dtype} value")
    return rounded_low, rounded_high


def _round_up(bound: float, dtype: str) -> float:
    """The smallest value of ``dtype`` that is not below ``bound``."""
    with np.errstate(over="ignore"):
        value = np.dtype(dtype).type(bound)
    return float(np.nextafter(value, np.dtype(dtype).type(np.inf)) if float(value) < bound else value)
