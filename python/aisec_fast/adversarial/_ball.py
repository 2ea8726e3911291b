"""Where an adversarial sample may lie: the ball around x cut with the box, and the kernel that steps inside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from .. import _checks
from .._arrays import describe
from .._backends import Backend
from ._box import Box, make_box

Step: TypeAlias = Callable[[Any, float], None]  # of gradient and step_size

DTYPES = ("float32", "float64")
_NORMS = {"linf": "linf", "Linf": "linf", "l2": "l2", "L2": "l2"}


@dataclass(frozen=True)
class Ball(Box):
    """Box, norm and radius."""

    norm: str
    eps: float

    def stepper(self, backend: Backend, adv: Any, x: Any) -> Step:
        """A function that moves ``adv`` in place, around ``x``; the arrays are known to fit."""
        kernel = getattr(backend.adversarial, f"{self.norm}_step")
        target, clean = backend.operands([describe(adv, "x_adv"), describe(x, "x")])

        def step(gradient: Any, step_size: float) -> None:
            [slope] = backend.operands([describe(gradient, "gradient")])
            kernel(target, clean, slope, step_size, self.eps, self.low, self.high, target)

        return step


def make_ball(norm: object, eps: object, clip: object, dtype: str) -> Ball:
    """The ball of these arguments; TypeError or ValueError if one of them is wrong."""
    if not isinstance(norm, str) or norm not in _NORMS:
        raise ValueError(f"norm is {norm!r}, expected 'linf' or 'l2' (or 'Linf', 'L2')")
    radius, box = _checks.positive(eps, "eps"), make_box(clip, dtype)
    return Ball(box.low, box.high, _NORMS[norm], radius)
