"""CW: Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks (2017), the attack in L2."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from . import _arguments
from ._box import Clip
from ._losses import margin
from ._minimal import Closest, begin, beside, watched
from ._models import fools
from ._progress import Progress, reporting
from ._watch import Watch

_BETAS, _TINY = (0.9, 0.999), 1e-8  # Adam's: Kingma and Ba (2015)
_GROWTH = 10.0  # of c, as long as nothing was found
_LOOKS = 10  # for progress in a search, early_abort
_NO_PROGRESS = 0.9999
_INSIDE = 1 - 1e-6  # x in tanh space stays finite


def cw(
    model: Any,
    x: Any,
    y: Any,
    *,
    confidence: float = 0.0,
    steps: int = 1000,
    search_steps: int = 9,
    initial_c: float = 1e-3,
    lr: float = 0.01,
    early_abort: bool = True,
    targeted: bool = False,
    clip: Clip = (0.0, 1.0),
    progress: Progress | bool | None = None,
) -> Any:
    """Find the smallest change in L2 that fools ``model``: the attack of Carlini and Wagner (2017).

    Adam minimises ``|x_adv - x|^2 + c * max(confidence - lead, 0)``, where the lead is that of the largest other logit over
    the label's (of the target's over the largest other, if ``targeted``), with x_adv in the box by ``tanh``; c is searched
    for each sample by bisection. At the end a few forward passes follow the way back to the sample for as long as the model
    is fooled. Slow, with ``steps * search_steps`` gradients; :func:`fmn` and :func:`ddn` reach much the same in a hundred.

    Args:
        model: a torch module that gives logits ``[B, classes]``. It is held and left as by :func:`pgd`.
        x: samples ``[B, ...]`` as for :func:`fab`.
        y: labels ``[B]``, integers from 0 to classes - 1: true ones, or targets if ``targeted``.
        confidence: by how much the wrong logit must lead, 0 or above.
        steps: most steps of each search, at least 1: one gradient each.
        search_steps: number of searches, each with another c, at least 1.
        initial_c: the first c, above 0.
        lr: Adam's learning rate, in tanh space (in the units of ``x`` without a finite box).
        early_abort: a search is over for a sample whose objective has not fallen by 0.01 % in a tenth of the steps.
        targeted: make the model answer ``y``, instead of anything but ``y``.
        clip: the box ``(low, high)``, or None for none.
        progress: function ``(step, total_steps, fooled)`` called after each step, or True for a bar on standard error.

    Returns:
        ``x_adv``, a new C-contiguous array like ``x``, inside the box exactly: the closest samples found that fool the model by
        ``confidence``, ``x`` itself where it is fooled already (by any lead) or where none was found.

    Raises:
        TypeError, ValueError: an argument, with its name; models and values as for :func:`pgd`.
    """
    steps, searches = (_checks.whole(v, n, least=1) for v, n in ((steps, "steps"), (search_steps, "search_steps")))
    lead, rate = _checks.not_negative(confidence, "confidence"), _checks.positive(lr, "lr")
    first_c = _checks.positive(initial_c, "initial_c")
    abort, targeted = _checks.flag(early_abort, "early_abort"), _checks.flag(targeted, "targeted")
    with reporting(progress) as report, _arguments.attacked(model, x, y, clip=clip) as victim:
        if not victim.x.numel():
            return _arguments.as_given(victim.x.clone(), x)
        closest, _ = begin(victim, "l2", targeted=targeted)
        rows = closest.open()
        c = torch.full((len(rows),), first_c, dtype=torch.float64, device=victim.x.device)
        too_small, large_enough = torch.zeros_like(c), torch.full_like(c, math.inf)

        def tell(step: int) -> None:
            report(step, steps * searches, int(closest.distances.isfinite().sum()))

        for search in range(searches if len(rows) else 0):
            run = _Run(victim, closest, rows, c, lead, rate, abort=abort, targeted=targeted)
            found = run.found(steps, lambda step, done=search * steps: tell(done + step))
            large_enough = torch.where(found, large_enough.minimum(c), large_enough)
            too_small = torch.where(found, too_small, too_small.maximum(c))
            c = torch.where(large_enough.isfinite(), (too_small + large_enough) / 2, c * _GROWTH)
        closest.draw_near(victim, targeted=targeted, confidence=lead)
        tell(steps * searches)
        return _arguments.as_given(closest.values, x)


class _Run:
    """One search with one c for each sample."""

    def __init__(
        self, victim: _arguments.Attacked, closest: Closest, rows: Tensor, c: Tensor, lead: float, lr: float, *,
        abort: bool, targeted: bool,
    ) -> None:  # fmt: skip
        self.victim, self.closest, self.rows, self.c, self.lead, self.lr = victim, closest, rows, c, lead, lr
        self.abort, self.targeted = abort, targeted
        self.boxed = math.isfinite(victim.low) and math.isfinite(victim.high)
        self.center, self.half = (victim.low + victim.high) / 2, (victim.high - victim.low) / 2

    def _place(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The samples for these variables, and their slope."""
        if not self.boxed:
            return w.clamp(self.victim.low, self.victim.high), torch.ones_like(w)
        bent = w.tanh()
        return (self.center + self.half * bent).clamp_(self.victim.low, self.victim.high), self.half * (1 - bent * bent)

    def _objective(self, logits: Tensor, y: Tensor) -> Tensor:
        lead = margin(logits, y) * (-1 if self.targeted else 1)
        return (self.lead - lead).clamp_min(0)

    def found(self, steps: int, tell: Any) -> Tensor:
        """Whether each sample was made to fool the model; the closest are kept."""
        found = torch.zeros(len(self.rows), dtype=torch.bool, device=self.rows.device)
        left = torch.arange(len(self.rows), device=self.rows.device)
        x, y, c = self.victim.x[self.rows], self.victim.y[self.rows], self.c
        w = ((x - self.center) / self.half * _INSIDE).atanh() if self.boxed else x.clone()
        mean, square, before = torch.zeros_like(x), torch.zeros_like(x), torch.full_like(c, math.inf)
        watch = Watch()
        for step in range(1, steps + 1):
            adv, slope = self._place(w)
            slopes, gaps, logits = watched(self.victim.model, adv, partial(self._objective, y=y), watch, step - 1)
            fooled = fools(logits, y, targeted=self.targeted) & (gaps <= 0)
            self.closest.offer(self.rows[left], adv, fooled)
            found[left] |= fooled
            gradient = (2 * (adv - x) + beside(c, x) * slopes) * slope
            mean = _BETAS[0] * mean + (1 - _BETAS[0]) * gradient
            square = _BETAS[1] * square + (1 - _BETAS[1]) * gradient * gradient
            root = (square / (1 - _BETAS[1] ** step)).sqrt()
            w = w - self.lr / (1 - _BETAS[0] ** step) * mean / (root + _TINY)
            if self.abort and step % max(1, steps // _LOOKS) == 0:
                watch.look()
                change = (adv - x).double().reshape(len(x), -1)
                value = (change * change).sum(1) + c * gaps.double()
                going = (value <= _NO_PROGRESS * before).nonzero()[:, 0]
                left, x, y, c, w, mean, square, before = (v[going] for v in (left, x, y, c, w, mean, square, value))
                if not len(left):
                    break
            tell(step)
        watch.look()
        return found
