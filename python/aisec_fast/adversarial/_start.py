"""Random starts: drawn on the CPU in float64 for every sample, so that devices and dropped samples change nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _rows
from ._ball import Ball

_VALUES_AT_A_TIME = 1 << 16  # of float64: they stay in the cache


@dataclass(frozen=True)
class Drawn:
    """Offsets from x; or, under "l0", values that replace x's, NaN where x stays."""

    values: npt.NDArray[Any]
    replace: bool


class RandomStarts:
    """The starts of each restart: a function of seed, restart, row and the samples' size alone.

    Args:
        seed: an integer, or None for one from the operating system.
        restarts: how many there may be; a larger number leaves the first ones as they were.
    """

    def __init__(self, seed: int | None, restarts: int) -> None:
        self._seeds = np.random.SeedSequence(seed).spawn(2 * restarts)

    def drawn(self, restart: int, ball: Ball, shape: tuple[int, ...], dtype: str, rows: _rows.Rows) -> Drawn:
        """What moves these rows of a batch of ``shape`` to points uniform in the ball, rounded to ``dtype``.

        Under "l0" ``floor(eps)`` values of each row are chosen uniformly and drawn uniformly from the box.
        """
        directions, radii = (np.random.default_rng(seed) for seed in self._seeds[2 * restart : 2 * restart + 2])
        batch, size = shape[0], math.prod(shape[1:])
        kept = np.empty((len(rows), size), dtype)
        step = max(1, _VALUES_AT_A_TIME // size)
        for first in range(0, batch, step):
            count = min(step, batch - first)
            drawn = _draw(ball, directions, radii, count, size)
            begin, end = np.searchsorted(rows, (first, first + count))
            with np.errstate(over="ignore"):  # eps may lie beyond the dtype; the projection brings it back
                kept[begin:end] = drawn if end - begin == count else drawn[rows[begin:end] - first]
        return Drawn(kept.reshape(len(rows), *shape[1:]), ball.norm == "l0")


def _draw(
    ball: Ball, directions: np.random.Generator, radii: np.random.Generator, count: int, size: int
) -> npt.NDArray[np.float64]:
    """The next ``count`` rows."""
    if ball.norm == "linf":
        values = directions.random((count, size))
        values *= 2
        values -= 1
        values *= ball.eps
        return values
    if ball.norm == "l0":
        changes = min(math.floor(ball.eps), size)
        order = directions.random((count, size)).argsort(axis=1, kind="stable")[:, :changes]
        values = np.full((count, size), np.nan)
        np.put_along_axis(values, order, ball.low + (ball.high - ball.low) * radii.random((count, changes)), axis=1)
        return values
    # A direction uniform on the sphere of the norm: normal variables for L2, Laplace variables for L1.
    drawn = directions.standard_normal((count, size)) if ball.norm == "l2" else directions.laplace(size=(count, size))
    # By sums whose order does not depend on the number of rows.
    lengths = np.sqrt(np.square(drawn).sum(axis=1)) if ball.norm == "l2" else np.abs(drawn).sum(axis=1)
    scales: npt.NDArray[np.float64] = ball.eps * radii.random(count) ** (1 / size) / np.where(lengths > 0, lengths, 1)
    drawn *= scales[:, None]
    return drawn


def apply(drawn: Drawn, x: Any) -> Any:
    """The starts as a new array like ``x``; sums are rounded once, alike on every device."""
    start = _rows.from_host(drawn.values, x)
    if drawn.replace:
        return _rows.where(start != start, x, start)  # noqa: PLR0124 (NaN)
    with np.errstate(over="ignore"):
        start += x
    return start
