"""Where an adversarial sample may lie: the ball around x cut with the box, and the kernel that steps inside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .. import _checks
from .._arrays import describe
from .._backends import Backend
from ._box import Box, make_box
from ._distances import NORMS, norm_named

Step: TypeAlias = Callable[[Any, float], None]  # of gradient and step_size

DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Ball(Box):
    """Box, norm and radius."""

    norm: str
    eps: float

    def stepper(self, backend: Backend, adv: Any, x: Any) -> Step:
        """A function that moves ``adv`` in place, around ``x``; the arrays are known to fit."""
        kernel = getattr(backend.adversarial, f"{self.norm}_step")
        target, clean = backend.operands([describe(adv, "x_adv"), describe(x, "x")])
        as_given = backend.name != "numba"  # the other kernels take arrays as they are

        def step(gradient: Any, step_size: float) -> None:
            slope = gradient if as_given else backend.operands([describe(gradient, "gradient")])[0]
            kernel(target, clean, slope, step_size, self.eps, self.low, self.high, target)

        return step

    def project(self, backend: Backend, adv: Any, x: Any) -> None:
        """Replace ``adv``, which may hold anything, in place by the nearest point of ball and box around ``x``.

        Nearest in Euclid's norm (under "linf" for each value by itself); of an L2 ball, the ball's nearest point moved into
        the box. A value that is not finite counts as x, under "linf" as the end of the ball or, if NaN, as x.
        """
        if adv.size if isinstance(adv, np.ndarray) else len(adv):
            self.stepper(backend, adv, x)(x, 0.0)

    def default_step_size(self, steps: int) -> float:
        """Length of a step, in the ball's norm, that reaches any point of the ball from any other in ``steps`` steps: 2.5 eps / steps.

        Under "l0" it counts values, and a step changes at least one.
        """
        return 2.5 * self.eps / max(1, steps)


def make_ball(norm: object, eps: object, clip: object, dtype: str, norms: Sequence[str] = NORMS) -> Ball:
    """The ball of these arguments, in one of ``norms``; TypeError or ValueError if one of them is wrong."""
    name = norm_named(norm, norms)
    radius, box = _checks.positive(eps, "eps"), make_box(clip, dtype)
    ball = Ball(box.low, box.high, name, radius)
    if ball.norm == "l0":
        if ball.eps < 1:
            raise ValueError(f"eps is {eps!r} and norm 'l0', expected at least 1: the number of values that may differ")
        if math.isinf(ball.low) or math.isinf(ball.high):
            raise ValueError(f"clip is {clip!r} and norm 'l0', expected a finite box: values may go to its ends")
    return ball
