"""FAB, the smallest change by repeated projection onto the linearised decision boundary.

Croce and Hein, Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack (2020), arXiv:1907.02044.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from . import _arguments, _rows, _start
from ._ball import Ball, make_ball
from ._box import Clip
from ._distances import distances, lengths, norm_named
from ._hyperplane import nearest_boundary, onto_hyperplane
from ._losses import likeliest_others, margin, target_margin
from ._minimal import begin, beside, verdicts
from ._models import fools
from ._progress import Progress, reporting
from ._watch import Watch

_MOST_CLASSES = 100  # without targets: each step takes a backward pass for every class
_VALUES_AT_A_TIME = 1 << 24  # of all targets stacked


def fab(
    model: Any,
    x: Any,
    y: Any,
    *,
    eps: float | None = None,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    targeted: bool = False,
    targets: int | None = None,
    clip: Clip = (0.0, 1.0),
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    seed: int | None = None,
    progress: Progress | bool | None = None,
) -> Any:
    """Find the smallest change that fools ``model``: the Fast Adaptive Boundary attack (Croce and Hein 2020).

    Each step linearises the model, projects the iterate and the sample itself onto the nearest decision boundary cut with
    the box, and goes to a mean of the two; a step that fools the model is kept if it is the closest yet, and the search goes
    on from nearer to the sample. At the end a few forward passes follow the way back to the sample for as long as the model
    is fooled. AutoAttack's "fab-t" is ``targets=9``, which is also the form for many classes.

    Args:
        model: a torch module that gives logits ``[B, classes]``. It is held and left as by :func:`pgd`.
        x: samples ``[B, ...]``, float32 or float64, finite, inside ``clip``: a torch tensor, or a numpy array for a model on
            the CPU. It is not changed.
        y: labels ``[B]``, integers from 0 to classes - 1: true ones, or the answers that are wanted if ``targeted``.
        eps: None looks for the smallest change, wherever it ends. A number asks for one with ``|x_adv - x| <= eps``: a
            sample is done as soon as one is found, and restarts go on with the others.
        norm: "linf", "l2" or "l1" (a capital L is fine), in which the change is small.
        steps: number of steps, at least 1: a gradient and a forward pass each.
        restarts: number of runs, at least 1. The first starts at ``x``, the others at random around it, half as far as the
            closest adversarial sample so far (or ``eps``, if that is less).
        targeted: make the model answer ``y``: each step takes the boundary between ``y`` and the likeliest other class there,
            with one backward pass for any number of classes.
        targets: attack this many classes one by one, the likeliest other ones at ``x``, all stacked into one batch, and keep
            the closest (FAB-T; classes - 1 if there are no more). None: the nearest boundary of all classes at each step,
            with a backward pass for each class; at most 100 classes. Not with ``targeted``.
        clip: the box ``(low, high)``, or None for none.
        alpha_max: largest weight of the sample's own projection, from 0 to 1.
        eta: how far beyond the boundary projections go, 1 or above.
        beta: part of the way from the sample that is left after a step that fools, above 0 and below 1.
        seed: of the random starts. Default: from the operating system.
        progress: function ``(step, total_steps, fooled)`` called after each step, or True for a bar on standard error.

    Returns:
        ``x_adv``, a new C-contiguous array like ``x``, inside the box exactly. Without ``eps``: the closest adversarial sample
        found, ``x`` itself where it fools the model already or where none was found. With ``eps``: one that fools the model
        inside the ball, exactly as :func:`pgd` keeps it, else ``x`` itself.

    Raises:
        TypeError, ValueError: an argument, with its name; models and values as for :func:`pgd`.
    """
    name = norm_named(norm, ("linf", "l2", "l1"))
    settings = _Settings(
        steps=_checks.whole(steps, "steps", least=1),
        restarts=_checks.whole(restarts, "restarts", least=1),
        targeted=_checks.flag(targeted, "targeted"),
        targets=None if targets is None else _checks.whole(targets, "targets", least=1),
        alpha_max=_checks.not_negative(alpha_max, "alpha_max"),
        eta=_checks.real(eta, "eta"),
        beta=_checks.probability(beta, "beta"),
        seed=None if seed is None else _checks.whole(seed, "seed"),
    )
    if settings.targeted and targets is not None:
        raise ValueError("targets is set and targeted is True: y already says which class each sample is to reach")
    if settings.alpha_max > 1:
        raise ValueError(f"alpha_max is {alpha_max}, expected 0 to 1")
    if settings.eta < 1:
        raise ValueError(f"eta is {eta}, expected 1 or above")
    if eps is not None:
        _checks.positive(eps, "eps")
    with reporting(progress) as report, _arguments.attacked(model, x, y, clip=clip) as victim:
        if not victim.x.numel():
            return _arguments.as_given(victim.x.clone(), x)
        ball = None if eps is None else make_ball(norm, eps, clip, str(victim.x.dtype).removeprefix("torch."))
        return _arguments.as_given(_Search(victim, name, ball, settings, report).result(), x)


@dataclass(frozen=True)
class _Settings:
    steps: int
    restarts: int
    targeted: bool
    targets: int | None
    alpha_max: float
    eta: float
    beta: float
    seed: int | None


class _Search:
    """All runs on one batch. With targets, a sample stands ``copies`` times in the batch, next to itself."""

    def __init__(
        self, victim: _arguments.Attacked, norm: str, ball: Ball | None, settings: _Settings, report: Progress
    ) -> None:
        self.victim, self.norm, self.ball, self.settings, self.report = victim, norm, ball, settings, report
        self.closest, logits = begin(victim, norm, targeted=settings.targeted)
        self.targets = self._ranked(logits)
        self.copies = 1 if self.targets is None else self.targets.shape[1]
        self.starts = _start.RandomStarts(settings.seed, settings.restarts)
        self.reach = self.closest.distances.clone()  # how far from its sample a run ended

    def _ranked(self, logits: Tensor) -> Tensor | None:
        """The classes to attack, ``[B, targets]``: the likeliest that are not the label. None: the nearest, or the one wanted."""
        classes = logits.shape[1]
        if self.settings.targets is not None:
            return likeliest_others(logits, self.victim.y, self.settings.targets)
        if classes > _MOST_CLASSES and not self.settings.targeted:
            raise ValueError(
                f"model gave logits of {classes} classes, expected at most {_MOST_CLASSES} without targets: give "
                "targets=9, for example"
            )
        return None

    def result(self) -> Tensor:
        """What ``fab`` returns."""
        rows = self.closest.open()
        size = self.copies * math.prod(self.victim.x.shape[1:])
        for restart in range(self.settings.restarts):
            parts = torch.split(rows, max(1, _VALUES_AT_A_TIME // size)) if len(rows) else ()
            for index, part in enumerate(parts):
                self._run(restart, part, index, len(parts))
            self.closest.draw_near(self.victim, targeted=self.settings.targeted)
            if self.ball is not None:
                rows = rows[~self._into_ball(self.ball, rows)]
        if self.ball is not None:
            self.closest.put(rows, self.victim.x[rows], math.inf)
        self._tell(self.settings.restarts * self.settings.steps)
        return self.closest.values

    def _into_ball(self, ball: Ball, rows: Tensor) -> Tensor:
        """Project what was found for these rows, ask the model again, and say where it is fooled: they are done."""
        done = self.closest.distances[rows].isfinite()
        found = rows[done]
        if len(found):
            x, adv = self.victim.x[found], self.closest.values[found]
            ball.project(self.victim.backend, adv, x)
            fooled, _ = verdicts(self.victim.model, adv, self.victim.y[found], targeted=self.settings.targeted)
            self.closest.put(found[fooled], adv[fooled], distances(adv, x, self.norm)[fooled])
            done[done.clone()] = fooled
        return done

    def _run(self, restart: int, rows: Tensor, part: int, parts: int) -> None:
        x, y = (values[rows].repeat_interleave(self.copies, 0) for values in (self.victim.x, self.victim.y))
        targets = None if self.targets is None else self.targets[rows].reshape(-1)
        adv = self._start(restart, rows)
        watch = Watch()
        for step in range(self.settings.steps):
            normal, value, magnitudes = self._boundary(adv, y, targets)
            adv = self._toward(adv, x, normal, value)
            logits = self.victim.model.logits(adv)
            watch.note(step, logits.sum(1), magnitudes)
            fooled = fools(logits, y, targeted=self.settings.targeted)
            self._keep(rows, adv, x, fooled)
            adv = torch.where(_rows.column(fooled, adv), x + self.settings.beta * (adv - x), adv)
            adv.clamp_(self.victim.low, self.victim.high)
            self._tell(restart * self.settings.steps + (part * self.settings.steps + step + 1) // parts)
            if self.ball is not None:
                watch.look()
                left = self.closest.distances[rows] > self.ball.eps
                if not left.all():
                    rows = rows[left]
                    if not len(rows):
                        return
                    left = left.repeat_interleave(self.copies)
                    adv, x, y = adv[left], x[left], y[left]
                    targets = None if targets is None else targets[left]
        watch.look()
        self.reach[rows] = distances(adv, x, self.norm).reshape(len(rows), self.copies).amax(1)

    def _start(self, restart: int, rows: Tensor) -> Tensor:
        """Where a run starts: the samples, or points around them, all of a sample's copies at one."""
        x = self.victim.x[rows]
        if restart:
            even = Ball(norm=self.norm, eps=1.0, low=self.victim.low, high=self.victim.high)
            shape, dtype = tuple(self.victim.x.shape), str(x.dtype).removeprefix("torch.")
            offsets = _rows.from_host(self.starts.drawn(restart, even, shape, dtype, _rows.to_host(rows)).values, x)
            reach = self.closest.distances[rows].minimum(self.reach[rows]) / 2
            if self.ball is not None:
                reach = reach.clamp_max(self.ball.eps / 2)
            x = (x + beside(reach, x) * offsets).clamp(self.victim.low, self.victim.high)
        return x.repeat_interleave(self.copies, 0)

    def _boundary(self, adv: Tensor, y: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The linearised boundary to the target, or the nearest, as :func:`nearest_boundary` gives it."""

        def lead(logits: Tensor) -> Tensor:
            ahead = -margin(logits, y) if targets is None else target_margin(logits, y, targets)
            return ahead[:, None]

        if targets is None and not self.settings.targeted:
            box = self.victim.low, self.victim.high
            return nearest_boundary(self.victim.model, adv, y, self.norm, box=box)
        [(gradient, value)] = self.victim.model.gradients(adv, lead)
        normal = gradient.reshape(len(adv), -1)
        return normal, value.double(), normal.abs().amax(1)

    def _toward(self, adv: Tensor, x: Tensor, normal: Tensor, value: Tensor) -> Tensor:
        """The step: a mean of the projections of iterate and sample, each a little beyond the boundary."""
        low, high, settings = self.victim.low, self.victim.high, self.settings
        here, clean = adv.reshape(normal.shape), x.reshape(normal.shape)
        at_clean = value + ((clean - here) * normal).sum(1, dtype=torch.float64)
        changes = onto_hyperplane(
            torch.cat([here, clean]), normal.repeat(2, 1), torch.cat([value, at_clean]), low, high, self.norm
        )
        far, near = torch.chunk(lengths(changes.double(), self.norm), 2)
        change, clean_change = torch.chunk(changes, 2)
        weight = (far / (far + near).clamp_min(1e-300)).clamp_max(settings.alpha_max).to(adv.dtype)[:, None]
        mean = (here + settings.eta * change) * (1 - weight) + (clean + settings.eta * clean_change) * weight
        return mean.clamp_(low, high).reshape(adv.shape)

    def _keep(self, rows: Tensor, adv: Tensor, x: Tensor, fooled: Tensor) -> None:
        """Offer each sample the closest of its copies that fools the model."""
        found = torch.where(fooled, distances(adv, x, self.norm), math.inf).reshape(len(rows), self.copies)
        nearest, copy = found.min(1)
        better = (nearest < self.closest.distances[rows]).nonzero()[:, 0]
        which = torch.arange(len(rows), device=rows.device) * self.copies + copy
        self.closest.put(rows[better], adv[which[better]], nearest[better])

    def _tell(self, step: int) -> None:
        limit = math.inf if self.ball is None else self.ball.eps
        fooled = int(((self.closest.distances <= limit) & self.closest.distances.isfinite()).sum())
        self.report(step, self.settings.restarts * self.settings.steps, fooled)
