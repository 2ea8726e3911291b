"""The box that samples lie in: its bounds, as values of the samples' dtype."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from .._arrays import Array
from . import _rows

Clip: TypeAlias = "tuple[float, float] | None"


@dataclass(frozen=True)
class Box:
    """The values from ``low`` to ``high``, infinite where there is no bound."""

    low: float
    high: float

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


def make_box(clip: object, dtype: str) -> Box:
    """The box of these bounds, rounded inward to values of ``dtype``; TypeError or ValueError if they are wrong."""
    if clip is None:
        return Box(-math.inf, math.inf)
    if not isinstance(clip, (tuple, list)) or len(clip) != 2:
        raise TypeError(f"clip is {clip!r}, expected a pair (low, high) or None for no box")
    for bound in clip:
        if isinstance(bound, bool) or not isinstance(bound, numbers.Real):
            raise TypeError(f"clip is {clip!r}, expected a pair of real numbers")
    return _rounded_inward(float(clip[0]), float(clip[1]), dtype)


@lru_cache(maxsize=64)
def _rounded_inward(low: float, high: float, dtype: str) -> Box:
    """The same of a pair of floats: attacks ask for one box again and again."""
    clip = (low, high)
    if not low < high:
        raise ValueError(f"clip is {clip!r}, expected low < high")
    rounded_low, rounded_high = _round_up(low, dtype), -_round_up(-high, dtype)
    if rounded_low > rounded_high or rounded_low == math.inf or rounded_high == -math.inf:
        raise ValueError(f"clip is {clip!r}, which holds no {dtype} value")
    return Box(rounded_low, rounded_high)


def _round_up(bound: float, dtype: str) -> float:
    """The smallest value of ``dtype`` that is not below ``bound``."""
    with np.errstate(over="ignore"):
        value = np.dtype(dtype).type(bound)
    return float(np.nextafter(value, np.dtype(dtype).type(np.inf)) if float(value) < bound else value)
