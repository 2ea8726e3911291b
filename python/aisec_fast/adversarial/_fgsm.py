"""Sign steps from the sample itself: FGSM, BIM, and MI-FGSM, which adds momentum. The first two are runs of ``pgd``."""

from __future__ import annotations

from typing import Any

import torch

from .. import _checks
from . import _arguments, _rows
from ._ball import make_ball
from ._box import Clip
from ._distances import lengths
from ._losses import LOSSES
from ._pgd import pgd
from ._progress import Progress, reporting
from ._watch import Watch


def fgsm(
    model: Any,
    x: Any,
    y: Any,
    *,
    eps: float,
    norm: str = "linf",
    targeted: bool = False,
    clip: Clip = (0.0, 1.0),
    loss: str = "ce",
) -> Any:
    """One step of length ``eps`` along the gradient's sign: the fast gradient sign method (Goodfellow et al. 2015).

    The same as ``pgd(..., steps=1, step_size=eps, random_start=False)``; under ``norm="l2"`` a step along the gradient.
    Arguments, result and errors are those of :func:`pgd`.
    """
    return pgd(
        model,
        x,
        y,
        eps=_checks.positive(eps, "eps"),
        step_size=eps,
        steps=1,
        norm=norm,
        random_start=False,
        targeted=targeted,
        clip=clip,
        loss=loss,
    )


def bim(
    model: Any,
    x: Any,
    y: Any,
    *,
    eps: float,
    step_size: float | None = None,
    steps: int = 10,
    norm: str = "linf",
    targeted: bool = False,
    clip: Clip = (0.0, 1.0),
    loss: str = "ce",
    early_stop: bool = False,
    progress: Progress | bool | None = None,
) -> Any:
    """Sign steps from the sample itself: the basic iterative method (Kurakin et al. 2017, Adversarial examples in the
    physical world), which is :func:`pgd` without a random start.

    ``step_size`` defaults to ``1.25 * eps / steps``: the paper takes steps of one grey level, and for eps = 8 ten of them.
    The other arguments, result and errors are those of :func:`pgd`.
    """
    count = _checks.whole(steps, "steps", least=1)
    return pgd(
        model,
        x,
        y,
        eps=eps,
        step_size=1.25 * _checks.positive(eps, "eps") / count if step_size is None else step_size,
        steps=count,
        norm=norm,
        random_start=False,
        targeted=targeted,
        clip=clip,
        loss=loss,
        early_stop=early_stop,
        progress=progress,
    )


def mifgsm(
    model: Any,
    x: Any,
    y: Any,
    *,
    eps: float,
    step_size: float | None = None,
    steps: int = 10,
    decay: float = 1.0,
    norm: str = "linf",
    targeted: bool = False,
    clip: Clip = (0.0, 1.0),
    loss: str = "ce",
    progress: Progress | bool | None = None,
) -> Any:
    """Sign steps along an accumulated gradient: momentum iterative FGSM (Dong et al. 2018, Boosting Adversarial Attacks
    with Momentum), for examples that transfer to other models.

    Args:
        model: a torch module that gives logits ``[B, classes]``. It is held and left as by :func:`pgd`.
        x: samples ``[B, ...]``, float32 or float64, finite, inside ``clip``: a torch tensor, or a numpy array for a model on
            the CPU. It is not changed.
        y: labels ``[B]``, integers from 0 to classes - 1: true ones, or targets if ``targeted``.
        eps: radius of the ball ``|x_adv - x| <= eps``, in the units of ``x``; above 0 and finite.
        step_size: length of a step, above 0. Default: ``eps / steps``.
        steps: number of steps, at least 1.
        decay: factor mu of what was accumulated, 0 or above; each new gradient is divided by its L1 norm first.
        norm: of ball and steps, as for :func:`pgd`.
        targeted: make the model answer ``y``, instead of anything but ``y``.
        clip: the box ``(low, high)``, or None for none.
        loss: "ce", "margin" or "dlr"; targeted attacks descend it at the target. No class has a run of its own.
        progress: function ``(step, total_steps, None)`` called after each step, or True for a bar on standard error.

    Returns:
        ``x_adv``, the last iterate: a new C-contiguous array like ``x``, inside ball and box as :func:`pgd` keeps them.

    Raises:
        TypeError, ValueError: an argument, with its name; models and values as for :func:`pgd`.
    """
    count, factor = _checks.whole(steps, "steps", least=1), _checks.not_negative(decay, "decay")
    targeted = _checks.flag(targeted, "targeted")
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}, expected one of {', '.join(map(repr, LOSSES))}")
    ball = make_ball(norm, eps, clip, _arguments.samples(x).dtype)
    length = ball.eps / count if step_size is None else _checks.positive(step_size, "step_size")
    values, least = LOSSES[loss].values, LOSSES[loss].least_classes
    with (
        reporting(progress) as report,
        _arguments.attacked(model, x, y, clip=clip, least_classes=least, needs=f"loss {loss!r}") as victim,
    ):
        adv = _rows.copy(victim.x)
        if not adv.numel():
            return _arguments.as_given(adv, x)
        step, watch, total = ball.stepper(victim.backend, adv, victim.x), Watch(), torch.zeros_like(adv)
        for k in range(count):
            slope = victim.model.gradient(adv, lambda logits: values(logits, victim.y))
            watch.note(k, slope.losses, slope.gradient)
            norms = _rows.column(lengths(slope.gradient.double(), "l1").clamp_min(1e-300), adv)
            total = factor * total + (slope.gradient / norms).to(adv.dtype)
            step(total, -length if targeted else length)
            report(k + 1, count, None)
        watch.look()
        return _arguments.as_given(adv, x)
