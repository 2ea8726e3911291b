"""Projected gradient descent (PGD): Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (2018)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .. import _arrays, _checks
from .._arrays import Array
from .._backends import choose
from . import _rows, _start
from ._ball import DTYPES, Clip, Step, make_ball
from ._models import Attackable, Flags, Floats, GivenGradient, GradientModel
from ._progress import Progress, reporting
from ._watch import Watch

_LOSSES = ("ce", "margin", "dlr")  # keys of _losses.LOSSES, which needs torch


def pgd(
    model: Any,
    x: Any,
    y: Any,
    *,
    eps: float,
    step_size: float | None = None,
    steps: int = 40,
    norm: str = "linf",
    random_start: bool = True,
    restarts: int = 1,
    targeted: bool = False,
    clip: Clip = (0.0, 1.0),
    loss: str = "ce",
    early_stop: bool = False,
    seed: int | None = None,
    progress: Progress | bool | None = None,
) -> Any:
    """Attack ``model`` at ``x``: climb the loss by steps of fixed length, projected onto ball and box (PGD).

    A torch module is attacked in eval mode, every submodule of it, with gradients on and autocast off. Its training flags,
    parameters, ``.grad``, buffers and torch's random state are left as they were found, also after an error or Ctrl-C.

    Args:
        model: a torch module that gives logits ``[B, classes]``, or a :class:`GradientModel`.
        x: samples ``[B, ...]``, float32 or float64, finite, inside ``clip``: a torch tensor for a torch module; numpy, cupy,
            torch or any DLPack producer for a GradientModel. It is not changed.
        y: labels ``[B]``: true ones, or targets if ``targeted``. Integers from 0 to classes - 1, a tensor on the device of
            ``x`` for a torch module. For a GradientModel they are passed on, and without ``predict`` may be anything with
            B rows.
        eps: radius of the ball ``|x_adv - x| <= eps``, in the units of ``x``; above 0 and finite. Under "l0" the number of
            values of a sample that may differ (a fraction is dropped), at least 1.
        step_size: length of a step in the norm, above 0. Default: ``2.5 * eps / steps``. Under "l0" the number of values that
            a step changes, rounded up.
        steps: number of steps, at least 0.
        norm: "linf", "l2", "l1" or "l0" (also "Linf" and so on): of the ball and of a step, for each sample. "l0" counts
            values, each channel by itself, and needs a box.
        random_start: start at a point drawn uniformly from the ball (under "l0": as many values as may differ, chosen
            uniformly, uniform in the box) and then projected onto the box; else at ``x``.
        restarts: number of runs from different random starts, at least 1.
        targeted: make the model answer ``y``, instead of anything but ``y``.
        clip: the box ``(low, high)`` that samples must lie in, or None for none. Bounds that are no values of the dtype are
            rounded inward.
        loss: "ce" (cross-entropy), "margin" (Carlini and Wagner 2017) or, untargeted, "dlr" (Croce and Hein 2020). Targeted
            attacks descend the same loss at the target. A GradientModel brings its own.
        early_stop: a sample that fools the model stops there and leaves the batch.
        seed: of the random starts. The same seed gives the same starts on every device and backend; row i depends on
            neither the batch size nor on other restarts. Default: from the operating system.
        progress: function ``(step, total_steps, fooled)`` called after each step (``fooled``: samples known to fool the
            model, None if that is not known), or True for a bar on standard error (needs rich).

    Returns:
        ``x_adv``: a new C-contiguous array of the shape, dtype, library and device of ``x``. Every sample keeps
        ``|x_adv - x| <= eps``, evaluated in float64, and lies in the box exactly. One run gives its last iterate, or, with
        ``early_stop``, a fooled sample's first iterate that fools the model (the start counts). Of several runs a sample
        gets the result of the first whose result fools the model, or, if none does, of the one with the highest loss there
        (lowest if targeted; the first of equals; for a GradientModel the margin of its logits stands for the loss). Runs
        after the first attack only those samples that are not fooled yet.

    Raises:
        TypeError, ValueError: an argument, with its name; a model that returns something else than logits that depend on
            ``x``; NaN logits, or gradients that are NaN or infinite, with step and number of samples.
        BackendError: the forced backend is missing or cannot reach ``x``.
    """
    samples = _samples(x)
    ball = make_ball(norm, eps, clip, samples.dtype)
    count, runs = _checks.whole(steps, "steps"), _checks.whole(restarts, "restarts", least=1)
    if loss not in _LOSSES:
        raise ValueError(f"loss is {loss!r}, expected one of {', '.join(map(repr, _LOSSES))}")
    if loss == "dlr" and targeted:
        raise ValueError(
            "loss is 'dlr' and targeted is True, expected 'ce' or 'margin': the targeted DLR loss needs the true labels too"
        )
    if runs > 1 and not random_start:
        raise ValueError(f"restarts is {runs}, but random_start is False: all runs would be the same")
    if seed is not None:
        seed = _checks.whole(seed, "seed")
    length = ball.default_step_size(count) if step_size is None else _checks.positive(step_size, "step_size")
    needs_verdict = early_stop or runs > 1
    attackable, labels = _attackable(model, samples, y, loss, targeted=targeted, needs_verdict=needs_verdict)
    ball.require_inside_box(samples)
    stepper = partial(ball.stepper, choose([samples]))
    if samples.size == 0:
        return _rows.copy(samples.value)
    starts = _start.RandomStarts(seed, runs) if random_start else None

    def start(restart: int, rows: _rows.Rows) -> tuple[Any, Any]:
        clean = samples.value if len(rows) == samples.shape[0] else _rows.take(samples.value, rows)
        if starts is None:
            return clean, _rows.copy(clean)
        adv = _start.apply(starts.drawn(restart, ball, samples.shape, samples.dtype, rows), clean)
        stepper(adv, clean)(clean, 0.0)
        return clean, adv

    with reporting(progress) as report, attackable.attacked():
        attack = _Attack(
            model=attackable,
            stepper=stepper,
            signed_length=-length if targeted else length,
            steps=count,
            restarts=runs,
            early_stop=early_stop,
            report=report,
        )
        return attack.best(labels, samples.shape[0], start)


@dataclass
class _Attack:
    """Runs over one batch; ``y`` and the loss belong to the model."""

    model: Attackable
    stepper: Callable[[Any, Any], Step]  # of x_adv and x
    signed_length: float  # negative to descend
    steps: int
    restarts: int
    early_stop: bool
    report: Progress
    fooled: int = 0  # samples known to fool the model, of runs that are over

    @property
    def _needs_verdict(self) -> bool:
        return self.early_stop or self.restarts > 1

    def best(self, y: Any, batch: int, start: Callable[[int, _rows.Rows], tuple[Any, Any]]) -> Any:
        """All runs, and for each sample the result that ``pgd`` promises."""
        rows = np.arange(batch)  # samples that are not fooled yet
        result: Any = None
        highest = np.full(batch, -np.inf)
        for restart in range(self.restarts):
            x, adv = start(restart, rows)
            labels = y if len(rows) == batch else _rows.take(y, rows)
            adv, fooled, heights = self._run(x, adv, labels, restart * self.steps)
            if result is None:
                result = adv
            else:
                better = np.flatnonzero(fooled | (heights > highest))
                _rows.put(result, rows[better], _rows.take(adv, better))
            rows, highest = rows[~fooled], np.maximum(highest, heights)[~fooled]
            self.fooled = batch - len(rows)
            if not len(rows):
                break
        self._tell(self.restarts * self.steps, 0)
        return result

    def _run(self, x: Any, adv: Any, y: Any, steps_before: int) -> tuple[Any, Flags, Floats]:
        """One run from ``adv``, which is overwritten: its result, who is fooled, and how high the attacker's loss is.

        Without verdicts nobody counts as fooled.
        """
        result, rows = adv, np.arange(len(adv))  # adv holds these rows of result, once some have left
        fooled, heights = np.zeros(len(adv), bool), np.full(len(adv), -np.inf)
        watch, step = Watch(), self.stepper(adv, x)
        for k in range(self.steps):
            slope = self.model.slope(adv, y, with_logits=self.early_stop)
            gradient = slope.gradient
            watch.note(k, slope.losses, _rows.largest_magnitudes(gradient))
            if self.early_stop:
                watch.look()
                hit = self.model.fooled(slope.logits, y)
                if hit.any():
                    self._store(result, rows, adv, np.flatnonzero(hit))
                    fooled[rows[hit]] = True
                    left = np.flatnonzero(~hit)
                    rows = rows[left]
                    if not len(rows):
                        return result, fooled, heights
                    x, adv, y, gradient = (_rows.take(values, left) for values in (x, adv, y, gradient))
                    step = self.stepper(adv, x)
            step(gradient, self.signed_length)
            self._tell(steps_before + k + 1, int(np.count_nonzero(fooled)))
        watch.look()
        if self._needs_verdict:
            logits = self.model.predict(adv)
            losses = self.model.losses(logits, y)
            watch.note(self.steps, losses, None)
            watch.look()
            fooled[rows] = self.model.fooled(logits, y)
            heights[rows] = _rows.to_host(losses) * math.copysign(1.0, self.signed_length)
        self._store(result, rows, adv, np.arange(len(rows)))
        return result, fooled, heights

    @staticmethod
    def _store(result: Any, rows: _rows.Rows, adv: Any, which: _rows.Rows) -> None:
        if adv is not result:
            _rows.put(result, rows[which], _rows.take(adv, which))

    def _tell(self, step: int, newly_fooled: int) -> None:
        known = self.fooled + newly_fooled if self._needs_verdict else None
        self.report(step, self.restarts * self.steps, known)


def _samples(x: Any) -> Array:
    """``x`` described, in C order and without its history; errors unless it can be attacked."""
    samples = _arrays.describe(x.detach() if _rows.is_tensor(x) else x, "x")
    if samples.dtype in ("float16", "bfloat16"):
        raise TypeError(
            f"x has dtype {samples.dtype}, expected float32 or float64: steps get lost in half precision; attack in "
            "float32 (a module may convert its input)"
        )
    if samples.dtype not in DTYPES:
        raise TypeError(
            f"x has dtype {samples.dtype}, expected float32 or float64 (scale integer images, for example x / 255)"
        )
    if not samples.shape:
        raise ValueError("x has no dimensions, expected [B, ...]")
    return _arrays.describe(_rows.contiguous(samples), "x")


def _attackable(
    model: Any, x: Array, y: Any, loss: str, *, targeted: bool, needs_verdict: bool
) -> tuple[Attackable, Any]:
    """The model ready for an attack, and the labels as it takes them."""
    if isinstance(model, GradientModel):
        if loss != "ce":
            raise ValueError(
                f"loss is {loss!r}, but model is a GradientModel: its gradient function brings the loss; leave loss out"
            )
        if needs_verdict and model.predict is None:
            raise ValueError(
                "model is a GradientModel without predict, expected one with it: early_stop and restarts above 1 need "
                "logits"
            )
        return GivenGradient(model, x, targeted=targeted), _labels(y, x, integers=needs_verdict).value
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a torch.nn.Module that gives logits or a GradientModel"
        )
    if x.library != "torch":
        raise TypeError(f"x is a {x.library} array, expected a torch tensor as model is a torch module")
    labels = _labels(y, x, integers=True)
    if labels.library != "torch":
        raise TypeError(f"y is a {labels.library} array, expected a torch tensor as model is a torch module")
    from ._torch_model import TorchModel

    return TorchModel.made(model, x.value, labels.value, loss=loss, targeted=targeted)


def _labels(y: Any, x: Array, *, integers: bool) -> Array:
    labels = _arrays.describe(y, "y")
    _arrays.require_same_device([x, labels])
    if integers:
        if not labels.dtype.startswith(("int", "uint")):
            raise TypeError(f"y has dtype {labels.dtype}, expected integer labels")
        if len(labels.shape) != 1:
            raise ValueError(f"y has shape {labels.shape}, expected labels [{x.shape[0]}]")
    if not labels.shape or labels.shape[0] != x.shape[0]:
        raise ValueError(f"y has shape {labels.shape}, expected {x.shape[0]} labels as x has samples")
    return labels
