"""Random starts: drawn on the CPU in float64 for every sample, so that devices and dropped samples change nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _rows
from ._ball import Ball

_VALUES_AT_A_TIME = 1 << 20


class RandomStarts:
    """The starts of each restart: a function of seed, restart, row and the samples' size alone.

    Args:
        seed: an integer, or None for one from the operating system.
        restarts: how many there may be; a larger number leaves the first ones as they were.
    """

    def __init__(self, seed: int | None, restarts: int) -> None:
        self._seeds = np.random.SeedSequence(seed).spawn(2 * restarts)

    def offsets(
        self, restart: int, ball: Ball, shape: tuple[int, ...], dtype: str, rows: _rows.Rows
    ) -> npt.NDArray[Any]:
        """Offsets from x for these rows of a batch of ``shape``, rounded to ``dtype``: uniform in the ball."""
        directions, radii = (np.random.default_rng(seed) for seed in self._seeds[2 * restart : 2 * restart + 2])
        batch, size = shape[0], math.prod(shape[1:])
        kept = np.empty((len(rows), size), dtype)
        step = max(1, _VALUES_AT_A_TIME // size)
        for first in range(0, batch, step):
            count = min(step, batch - first)
            if ball.norm == "linf":
                drawn = (2 * directions.random((count, size)) - 1) * ball.eps
            else:
                drawn = directions.standard_normal((count, size))
                lengths = np.sqrt(np.einsum("ij,ij->i", drawn, drawn))
                drawn *= (ball.eps * radii.random(count) ** (1 / size) / np.where(lengths > 0, lengths, 1))[:, None]
            begin, end = np.searchsorted(rows, (first, first + count))
            with np.errstate(over="ignore"):  # eps may lie beyond the dtype; the projection brings it back
                kept[begin:end] = drawn[rows[begin:end] - first]
        return kept.reshape(len(rows), *shape[1:])


def apply(offsets: npt.NDArray[Any], x: Any) -> Any:
    """x + offsets as a new array like ``x``; the sum is rounded once, alike on every device."""
    start = _rows.from_host(offsets, x)
    with np.errstate(over="ignore"):
        start += x
    return start
