"""What the attacks for the smallest change share: the smallest found so far, verdicts, and the search on the way back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _rows
from ._arguments import Attacked
from ._distances import distances, lengths
from ._models import fools
from ._torch_model import TorchModel, Values
from ._watch import Watch

BACK_STEPS = 6  # of the search between a sample and its adversarial
_PUSHES = (1 + 2**-8, 1 + 2**-5, 1 + 2**-3)  # outward, where the answer turns on the last bits of the logits


class Closest:
    """For each sample its closest adversarial so far: itself at distance 0 where the model is wrong already, and itself at
    an infinite distance where there is none yet."""

    def __init__(self, x: Tensor, norm: str, *, fooled: Tensor) -> None:
        self.x, self.norm = x, norm
        self.values = x.clone()
        self.distances = torch.where(fooled, 0.0, torch.inf).double()

    def open(self) -> Tensor:
        """Rows of the samples that the model answers as the attacker does not want."""
        return (self.distances > 0).nonzero()[:, 0]

    def offer(self, rows: Tensor, adv: Tensor, fooled: Tensor) -> None:
        """Keep ``adv`` at these rows where it fools and is closer. Rows are different ones."""
        found = distances(adv, self.x[rows], self.norm)
        better = (fooled & (found < self.distances[rows])).nonzero()[:, 0]  # waits for a device once, a mask each time
        self.put(rows[better], adv[better], found[better])

    def put(self, rows: Tensor, values: Tensor, lengths: Tensor | float) -> None:
        """Overwrite what is kept at these rows."""
        self.values[rows] = values
        self.distances[rows] = lengths

    def draw_near(self, victim: Attacked, *, targeted: bool, steps: int = BACK_STEPS, confidence: float = 0.0) -> None:
        """Ask the model about every result, and follow the way back to its sample for as long as the model is fooled.

        Bisection and the secant rule take turns, ``steps`` forward passes in all. What no longer fools the model when it
        is asked again (its answer may turn on a last bit) is pushed outward a little, and is dropped if that does not help.
        """
        rows = ((self.distances > 0) & self.distances.isfinite()).nonzero()[:, 0]
        if not len(rows):
            return
        x, far, y = self.x[rows], self.values[rows], victim.y[rows]
        wide = (len(rows), *[1] * (x.ndim - 1))

        def ask(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            point = (x + t.to(x.dtype).reshape(wide) * (far - x)).clamp(victim.low, victim.high)
            point = torch.where((t == 1).reshape(wide), far, point)
            return point, *judged(point)

        def judged(point: Tensor) -> tuple[Tensor, Tensor]:
            return verdicts(victim.model, point, y, targeted=targeted, confidence=confidence)

        outer = torch.ones(len(rows), dtype=torch.float64, device=x.device)
        adv, fooled, upper = ask(outer)
        for push in _PUSHES:
            if fooled.all():
                break
            outer = torch.where(fooled, outer, push)
            adv, fooled, upper = ask(outer)
        lost = ~fooled
        inner = torch.zeros_like(outer)
        lower = judged(x)[1]
        for step in range(steps):
            secant = inner + (outer - inner) * (lower / (lower - upper)).nan_to_num(0.5).clamp(0, 1)
            middle = (inner + outer) / 2 if step % 2 else secant + 0.01 * (outer - secant)
            point, fooled, height = ask(middle)
            closer = (fooled & (height > 0)).reshape(wide)
            adv = torch.where(closer, point, adv)
            closer = closer.reshape(-1)
            outer, upper = torch.where(closer, middle, outer), torch.where(closer, height, upper)
            inner, lower = torch.where(closer, inner, middle), torch.where(closer, lower, height)
        self.put(rows, adv, distances(adv, x, self.norm))
        self.put(rows[lost], x[lost], torch.inf)


def verdicts(
    model: TorchModel, adv: Tensor, y: Tensor, *, targeted: bool, confidence: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Whether each sample fools the model by ``confidence``, and by how much more, float64, less what rounding may explain.

    The second is above 0 only where another order of sums in the model would hardly change the verdict.
    """
    logits = model.own_logits(adv)
    if logits.isnan().any():
        raise ValueError(f"model gave NaN logits for {int(logits.isnan().any(1).sum())} of {len(adv)} samples")
    label = y[:, None]
    at_label, others = logits.gather(1, label)[:, 0], logits.scatter(1, label, -torch.inf).amax(1)
    lead = (at_label.double() - others.double()) * (1 if targeted else -1)
    doubt = 8 * torch.finfo(logits.dtype).eps * torch.maximum(at_label.abs(), others.abs()).double()
    fooled = fools(logits, y, targeted=targeted)
    return fooled & (lead >= confidence), lead - confidence - doubt


def begin(victim: Attacked, norm: str, *, targeted: bool) -> tuple[Closest, Tensor]:
    """Nothing found yet, and the logits at the samples themselves."""
    logits = victim.model.own_logits(victim.x)
    watch = Watch()
    watch.note(0, logits.sum(1), None)
    watch.look()
    return Closest(victim.x, norm, fooled=fools(logits, victim.y, targeted=targeted)), logits


def watched(model: TorchModel, adv: Tensor, values: Values, watch: Watch, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient, values ``[B]`` and logits at ``adv``, noted by the watch."""
    slope = model.gradient(adv, values)
    losses: Any = slope.losses
    logits: Any = slope.logits
    watch.note(step, losses, slope.gradient)
    return slope.gradient, losses, logits


def beside(values: Tensor, like: Tensor) -> Tensor:
    """``[B]`` as ``[B, 1, ...]`` in the dtype of ``like``, to meet it."""
    column: Tensor = _rows.column(values.to(like.dtype), like)
    return column


def falling(step: int, steps: int, first: float, last: float) -> float:
    """From ``first`` down to ``last`` along half a cosine wave: Loshchilov and Hutter, SGDR (2017)."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def unit_l2(values: Tensor) -> Tensor:
    """Each row over its Euclidean norm; rows of zeros stay."""
    norms = lengths(values.double(), "l2")
    return values * beside(torch.where(norms > 0, 1 / norms, 0), values)
