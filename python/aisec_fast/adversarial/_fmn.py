"""FMN: Pintor, Roli, Brendel and Biggio, Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints (2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from . import _arguments
from ._box import Clip
from ._distances import lengths, norm_named
from ._losses import margin
from ._minimal import begin, beside, falling, unit_l2, watched
from ._models import fools
from ._progress import Progress, reporting
from ._watch import Watch

_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


def fmn(
    model: Any,
    x: Any,
    y: Any,
    *,
    norm: str = "l2",
    steps: int = 100,
    step_size: float = 1.0,
    gamma: float = 0.05,
    targeted: bool = False,
    clip: Clip = (0.0, 1.0),
    progress: Progress | bool | None = None,
) -> Any:
    """Find the smallest change that fools ``model``: the fast minimum-norm attack (Pintor et al. 2021).

    Gradient steps of the margin inside a ball whose radius follows the boundary: it shrinks after a step that fools the
    model, to the smallest norm yet at most, and grows after one that does not. At the end a few forward passes follow the
    way back to the sample for as long as the model is fooled (not under L0, where that changes nothing).

    Args:
        model: a torch module that gives logits ``[B, classes]``. It is held and left as by :func:`pgd`.
        x: samples ``[B, ...]`` as for :func:`fab`.
        y: labels ``[B]``, integers from 0 to classes - 1: true ones, or targets if ``targeted``.
        norm: "linf", "l2", "l1" or "l0" (a capital L is fine), in which the change is small.
        steps: number of steps, at least 1: one gradient each.
        step_size: Euclidean length of the first step; it falls to a hundredth along a cosine.
        gamma: part by which the radius changes at first; it falls to a fiftieth along a cosine. Above 0 and below 1.
        targeted: make the model answer ``y``, instead of anything but ``y``.
        clip: the box ``(low, high)``, or None for none.
        progress: function ``(step, total_steps, fooled)`` called after each step, or True for a bar on standard error.

    Returns:
        ``x_adv``, a new C-contiguous array like ``x``, inside the box exactly: the closest samples found that fool the model,
        ``x`` itself where it is fooled already or where none was found.

    Raises:
        TypeError, ValueError: an argument, with its name; models and values as for :func:`pgd`.
    """
    name = norm_named(norm)
    steps, first_length = _checks.whole(steps, "steps", least=1), _checks.positive(step_size, "step_size")
    first_gamma, targeted = _checks.probability(gamma, "gamma"), _checks.flag(targeted, "targeted")
    with reporting(progress) as report, _arguments.attacked(model, x, y, clip=clip) as victim:
        if not victim.x.numel():
            return _arguments.as_given(victim.x.clone(), x)
        closest, _ = begin(victim, name, targeted=targeted)
        rows = closest.open()
        x0, labels = victim.x[rows], victim.y[rows]
        adv, watch, sign = x0, Watch(), -1 if targeted else 1
        radius = torch.full((len(rows),), float(name == "l0"), dtype=torch.float64, device=x0.device)
        for step in range(steps if len(rows) else 0):
            gradient, margins, logits = watched(victim.model, adv, lambda z: margin(z, labels), watch, step)
            fooled = fools(logits, labels, targeted=targeted)
            closest.offer(rows, adv, fooled)
            change, best = adv - x0, closest.distances[rows]
            rate = falling(step, steps, first_gamma, first_gamma / 50)
            if name == "l0":
                smaller = torch.minimum(radius - 1, (radius * (1 - rate)).floor()).minimum(best)
                radius = torch.where(fooled, smaller, torch.maximum(radius + 1, (radius * (1 + rate)).floor()))
                radius = radius.clamp_(0, change[0].numel())
            else:
                steepness = lengths(gradient.double(), _DUAL[name]).clamp_min(1e-300)
                # The paper goes to the linearised boundary exactly until something is found: over it by a last bit, or,
                # where the box cuts steps short, ever closer to it. So go a little further, and further every time.
                over_boundary = lengths(change.double(), name) + (1 + rate) * margins.double().abs() / steepness
                first = torch.where(best.isfinite(), 0, over_boundary)
                outside = torch.maximum(radius * (1 + rate), first)
                radius = torch.where(fooled, torch.minimum(radius * (1 - rate), best), outside)
            length = sign * falling(step, steps, first_length, first_length / 100)
            change = into_ball(change + length * unit_l2(gradient), radius, name)
            adv = (x0 + change).clamp_(victim.low, victim.high)
            report(step + 1, steps, int(closest.distances.isfinite().sum()))
        watch.look()
        if len(rows):
            closest.offer(rows, adv, fools(victim.model.logits(adv), labels, targeted=targeted))
        closest.draw_near(victim, targeted=targeted, **({"steps": 0} if name == "l0" else {}))
        report(steps, steps, int(closest.distances.isfinite().sum()))
        return _arguments.as_given(closest.values, x)


def into_ball(change: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The nearest change, in L2, of norm ``radius`` or less, for each row."""
    if norm == "linf":
        limit = beside(radius, change)
        return change.maximum(-limit).minimum(limit)
    if norm == "l2":
        return change * beside((radius / lengths(change.double(), "l2").clamp_min(1e-300)).clamp_max(1), change)
    flat = change.reshape(len(change), -1)
    ordered = flat.abs().sort(dim=1, descending=True).values
    if norm == "l0":  # the radius-th largest stays, and what is as large
        kept = ordered.gather(1, (radius.long() - 1).clamp_(0, flat.shape[1] - 1)[:, None])
        return torch.where((flat.abs() >= kept) & (radius >= 1)[:, None], flat, 0).reshape(change.shape)
    # L1: magnitudes less one threshold. Held, Wolfe and Crowder, Validation of subgradient optimization (1974).
    count = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    thresholds = (ordered.cumsum(1, dtype=torch.float64) - radius[:, None]) / count
    last = (ordered > thresholds).sum(1, keepdim=True).clamp_min_(1) - 1
    threshold = thresholds.gather(1, last).clamp_min_(0).to(flat.dtype)
    return ((flat.abs() - threshold).clamp_min_(0) * flat.sign()).reshape(change.shape)
