"""DDN: Rony et al., Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses (2019)."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import _checks
from . import _arguments
from ._box import Clip
from ._losses import cross_entropy
from ._minimal import begin, beside, falling, unit_l2, watched
from ._models import fools
from ._progress import Progress, reporting
from ._watch import Watch


def ddn(
    model: Any,
    x: Any,
    y: Any,
    *,
    steps: int = 100,
    init_norm: float = 1.0,
    gamma: float = 0.05,
    targeted: bool = False,
    clip: Clip = (0.0, 1.0),
    progress: Progress | bool | None = None,
) -> Any:
    """Find the smallest change in L2 that fools ``model``: decoupled direction and norm (Rony et al. 2019).

    Gradient steps of the cross-entropy turn the direction; the norm is set apart from it, smaller after a step that fools
    the model and larger after one that does not. At the end a few forward passes follow the way back to the sample for as
    long as the model is fooled.

    Args:
        model: a torch module that gives logits ``[B, classes]``. It is held and left as by :func:`pgd`.
        x: samples ``[B, ...]`` as for :func:`fab`.
        y: labels ``[B]``, integers from 0 to classes - 1: true ones, or targets if ``targeted``.
        steps: number of steps, at least 1: one gradient each. Their length falls from 1 to 0.01 along a cosine.
        init_norm: norm of the first change, in the units of ``x``.
        gamma: part by which the norm changes at each step, above 0 and below 1.
        targeted: make the model answer ``y``, instead of anything but ``y``.
        clip: the box ``(low, high)``, or None for none.
        progress: function ``(step, total_steps, fooled)`` called after each step, or True for a bar on standard error.

    Returns:
        ``x_adv``, a new C-contiguous array like ``x``, inside the box exactly: the closest samples found that fool the model,
        ``x`` itself where it is fooled already or where none was found.

    Raises:
        TypeError, ValueError: an argument, with its name; models and values as for :func:`pgd`.
    """
    steps, change = _checks.whole(steps, "steps", least=1), _checks.probability(gamma, "gamma")
    radius_of_all = _checks.positive(init_norm, "init_norm")
    targeted = _checks.flag(targeted, "targeted")
    with reporting(progress) as report, _arguments.attacked(model, x, y, clip=clip) as victim:
        if not victim.x.numel():
            return _arguments.as_given(victim.x.clone(), x)
        closest, _ = begin(victim, "l2", targeted=targeted)
        rows = closest.open()
        x0, labels = victim.x[rows], victim.y[rows]
        adv, watch = x0, Watch()
        radius = torch.full((len(rows),), radius_of_all, dtype=torch.float64, device=x0.device)
        for step in range(steps if len(rows) else 0):
            gradient, _, logits = watched(victim.model, adv, lambda z: cross_entropy(z, labels), watch, step)
            fooled = fools(logits, labels, targeted=targeted)
            closest.offer(rows, adv, fooled)
            length = falling(step, steps, 1.0, 0.01) * (-1 if targeted else 1)
            radius *= torch.where(fooled, radius.new_tensor(1 - change), 1 + change)
            direction = unit_l2(adv - x0 + length * unit_l2(gradient))
            adv = (x0 + beside(radius, x0) * direction).clamp_(victim.low, victim.high)
            report(step + 1, steps, int(closest.distances.isfinite().sum()))
        watch.look()
        if len(rows):
            closest.offer(rows, adv, fools(victim.model.logits(adv), labels, targeted=targeted))
        closest.draw_near(victim, targeted=targeted)
        report(steps, steps, int((closest.distances < math.inf).sum()))
        return _arguments.as_given(closest.values, x)
