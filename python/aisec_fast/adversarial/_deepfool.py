"""DeepFool: Moosavi-Dezfooli, Fawzi and Frossard, DeepFool: a simple and accurate method to fool deep neural networks (2016)."""

from __future__ import annotations

from typing import Any

import torch

from .. import _checks
from . import _arguments
from ._box import Clip
from ._distances import norm_named
from ._hyperplane import nearest_boundary, onto_hyperplane
from ._losses import likeliest_others
from ._minimal import begin
from ._models import fools
from ._progress import Progress, reporting
from ._watch import Watch


def deepfool(
    model: Any,
    x: Any,
    y: Any,
    *,
    norm: str = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
    num_classes: int = 10,
    clip: Clip = (0.0, 1.0),
    progress: Progress | bool | None = None,
) -> Any:
    """Find a small change that fools ``model``: DeepFool (Moosavi-Dezfooli et al. 2016).

    Each step goes to the nearest boundary of the linearised model; a sample leaves the batch with the first step that fools
    the model, and a few forward passes then follow the way back for as long as the model is fooled. Quick, and a good upper
    bound; :func:`fab`, :func:`fmn` or :func:`ddn` find closer ones.

    Args:
        model: a torch module that gives logits ``[B, classes]``. It is held and left as by :func:`pgd`.
        x: samples ``[B, ...]`` as for :func:`fab`.
        y: true labels ``[B]``, integers from 0 to classes - 1.
        norm: "l2" or "linf" (a capital L is fine), in which steps are the shortest.
        steps: most steps, at least 1: a forward pass each, and a backward pass for each class looked at.
        overshoot: how far beyond the boundary a step goes, as a part of it.
        num_classes: look at the boundaries of the label to this many classes less one: the likeliest at ``x``.
        clip: the box ``(low, high)``, which every step is clipped to, or None for none, as in the paper.
        progress: function ``(step, total_steps, fooled)`` called after each step, or True for a bar on standard error.

    Returns:
        ``x_adv``, a new C-contiguous array like ``x``, inside the box exactly: samples that fool the model, ``x`` itself where
        the model is wrong already or where none was found.

    Raises:
        TypeError, ValueError: an argument, with its name; models and values as for :func:`pgd`.
    """
    name = norm_named(norm, ("linf", "l2"))
    steps, beyond = _checks.whole(steps, "steps", least=1), _checks.not_negative(overshoot, "overshoot")
    others = _checks.whole(num_classes, "num_classes", least=2) - 1
    with reporting(progress) as report, _arguments.attacked(model, x, y, clip=clip) as victim:
        if not victim.x.numel():
            return _arguments.as_given(victim.x.clone(), x)
        closest, logits = begin(victim, name, targeted=False)
        rows = closest.open()
        labels, low, high = victim.y[rows], victim.low, victim.high
        classes = likeliest_others(logits[rows], labels, others)
        adv, watch = victim.x[rows], Watch()
        for step in range(steps):
            if not len(rows):
                break
            normal, value, magnitudes = nearest_boundary(victim.model, adv, labels, name, classes=classes)
            # Where the boundary has been reached without being crossed, a last bit decides: go on by a little.
            little = 8 * torch.finfo(adv.dtype).eps * normal.abs().amax(1).double()
            flat = adv.reshape(normal.shape)
            change = onto_hyperplane(flat, normal, value.minimum(-little), -torch.inf, torch.inf, name)
            adv = (flat + (1 + beyond) * change).clamp_(low, high).reshape(adv.shape)
            logits = victim.model.logits(adv)
            watch.note(step, logits.sum(1), magnitudes)
            watch.look()
            fooled = fools(logits, labels, targeted=False)
            closest.offer(rows, adv, fooled)
            left = (~fooled).nonzero()[:, 0]
            rows, labels, classes, adv = (v[left] for v in (rows, labels, classes, adv))
            report(step + 1, steps, len(victim.x) - len(rows))
        report(steps, steps, len(victim.x) - len(rows))
        closest.draw_near(victim, targeted=False)
        return _arguments.as_given(closest.values, x)
