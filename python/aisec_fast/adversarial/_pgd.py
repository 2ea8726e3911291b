"""Projected gradient descent (PGD): Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (2018)."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _checks
from .._arrays import Array
from .._backends import choose
from . import _arguments, _rows, _start
from ._ball import Ball, make_ball
from ._box import Clip
from ._models import Attackable, GivenGradient, GradientModel
from ._progress import Progress, reporting
from ._runs import Runs

_LOSSES = ("ce", "margin", "dlr")  # keys of _losses.LOSSES, which needs torch
_TARGETS_OF_MARGIN = 9  # AutoAttack's number
_STEPS_FOR_A_COPY = 10  # making a working copy costs a few passes over a few rows
_STEPS_FOR_A_COPY_ON_CUDA = 40  # where a pass over a few rows takes the CPU as long as one over all


def pgd(
    model: Any,
    x: Any,
    y: Any,
    *,
    eps: float | Sequence[float],
    step_size: float | None = None,
    steps: int = 40,
    norm: str = "linf",
    random_start: bool = True,
    restarts: int = 1,
    targeted: bool = False,
    clip: Clip = (0.0, 1.0),
    loss: str = "ce",
    targets: int | None = None,
    early_stop: bool = False,
    working_copy: bool | None = None,
    cuda_graph: bool | None = None,
    precision: str | None = None,
    seed: int | None = None,
    progress: Progress | bool | None = None,
) -> Any:
    """Attack ``model`` at ``x``: climb the loss by steps of fixed length, projected onto ball and box (PGD).

    A torch module is attacked in eval mode, every submodule of it, with gradients on and autocast off. Its training flags,
    parameters, ``.grad``, buffers and torch's random state are left as they were found, also after an error or Ctrl-C.

    Args:
        model: a torch module that gives logits ``[B, classes]``, or a :class:`GradientModel`.
        x: samples ``[B, ...]``, float32 or float64, finite, inside ``clip``: a torch tensor (or, for one on the CPU, a numpy
            array) for a torch module; numpy, cupy, torch, jax or any DLPack producer for a GradientModel. It is not changed.
        y: labels ``[B]``: true ones, or targets if ``targeted``. Integers from 0 to classes - 1, a tensor on the device of
            ``x`` for a torch module. For a GradientModel they are passed on, and without ``predict`` may be anything with
            B rows.
        eps: radius of the ball ``|x_adv - x| <= eps``, in the units of ``x``; above 0 and finite. Under "l0" the number of
            values of a sample that may differ (a fraction is dropped), at least 1. Or several radii: then the result has
            one batch for each, as if each had been asked for alone, and they are attacked in one batch.
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
        loss: "ce" (cross-entropy), "margin" (Carlini and Wagner 2017) or "dlr" (Croce and Hein 2020). Targeted attacks
            descend the same loss at the target. A GradientModel brings its own.
        targets: number of other classes that are attacked one after the other, from the most likely at ``x`` down (the
            multi-targeted attack of Gowal et al. 2019): each restart then is one run for each. Default: no class of its
            own for "ce" and "dlr"; for "margin" 9, AutoAttack's number, or all others where there are fewer.
        early_stop: a sample that fools the model stops there and leaves the batch.
        working_copy: take gradients from a faster form of the module, if it has one: on the CPU in float32 a list of its
            operations, else the module with its batch norms folded into its convolutions; and compute batches with large
            activations in parts. Every success is judged by the module itself. Default: where all runs together have 10
            steps or more, on CUDA 40.
        cuda_graph: on CUDA, record a gradient's forward and backward pass once as a CUDA graph and replay it: launching
            kernels is what most passes of small models take their time for. Replays are tried against the module on the
            way, and every success is judged by the module itself, called as always. Default: where enough steps are left
            and no other thread of Python may use the device; a module that cannot be recorded (it waits for the device, or
            draws random numbers) is attacked without. True: raise for such a module. False: never.
        precision: "bfloat16" to compute gradients, and the logits that come with them, under torch's autocast in bfloat16 (float32
            samples and torch modules only); steps and projections stay in the dtype of ``x``, and every success is judged by
            the module itself as it is. If its logits are others by over 5 % of the largest, a RuntimeWarning says that the
            attack goes on without. Default: as the module computes. It pays on GPUs; on a CPU, measure it.
        seed: of the random starts. The same seed gives the same starts on every device and backend; row i depends on
            neither the batch size nor on other restarts. Default: from the operating system.
        progress: function ``(step, total_steps, fooled)`` called after each step (``fooled``: samples known to fool the
            model, None if that is not known), or True for a bar on standard error (needs rich).

    Returns:
        ``x_adv``: a new C-contiguous array of the shape (``[len(eps), B, ...]`` for several), dtype, library and device of
        ``x``. Every sample keeps
        ``|x_adv - x| <= eps``, evaluated in float64, and lies in the box exactly. One run gives its last iterate, or, with
        ``early_stop``, a fooled sample's first iterate that fools the model (the start counts). Of several runs a sample
        gets the result of the first whose result fools the model, or, if none does, of the one with the highest loss there
        (lowest if targeted; the first of equals; for a GradientModel the margin of its logits stands for the loss). Runs
        after the first attack only those samples that are not fooled yet, several runs at a time where the batch has room;
        with ``early_stop`` the first of these to fool wins.

    Raises:
        TypeError, ValueError: an argument, with its name; a model that returns something else than logits that depend on
            ``x``; NaN logits, or gradients that are NaN or infinite, with step and number of samples.
        RuntimeError: ``cuda_graph`` is True, and the module's passes cannot be replayed.
        BackendError: the forced backend is missing or cannot reach ``x``.
    """
    samples = _arguments.samples(x)
    balls = [make_ball(norm, radius, clip, samples.dtype) for radius in _radii(eps)]
    count, tries = _checks.whole(steps, "steps"), _checks.whole(restarts, "restarts", least=1)
    if loss not in _LOSSES:
        raise ValueError(f"loss is {loss!r}, expected one of {', '.join(map(repr, _LOSSES))}")
    random_start = _checks.flag(random_start, "random_start")
    targeted, early_stop = _checks.flag(targeted, "targeted"), _checks.flag(early_stop, "early_stop")
    if tries > 1 and not random_start:
        raise ValueError(f"restarts is {tries}, but random_start is False: all runs would be the same")
    if targets is not None:
        targets = _checks.whole(targets, "targets", least=1)
        if targeted:
            raise ValueError("targets is set and targeted is True: y already says which class each sample is to reach")
    elif loss == "margin" and not targeted:
        targets = _TARGETS_OF_MARGIN
    if seed is not None:
        seed = _checks.whole(seed, "seed")
    lengths = [_length(step_size, ball, count) for ball in balls]
    if working_copy is None:
        least = _STEPS_FOR_A_COPY if samples.device == "cpu" else _STEPS_FOR_A_COPY_ON_CUDA
        working_copy = count * tries * (targets or 1) >= least
    attackable, samples, labels = _attackable(
        model,
        samples,
        x,
        y,
        loss,
        targets=targets,
        targeted=targeted,
        needs_verdict=early_stop or tries > 1,
        working_copy=_checks.flag(working_copy, "working_copy"),
        cuda_graph=None if cuda_graph is None else _checks.flag(cuda_graph, "cuda_graph"),
        precision=_arguments.precision_named(precision, samples.dtype),
    )
    balls[0].require_inside_box(samples)
    several = not isinstance(eps, numbers.Real)
    if samples.size == 0:
        result = _rows.concatenate([samples.value] * len(balls))
        return _returned(_rows.copy(result), x, len(balls) if several else None)
    with reporting(progress) as report, attackable.attacked():
        each_label, count_of_targets = attackable.labelled(samples.value, labels)
        result = Runs(
            model=attackable,
            balls=balls,
            step_sizes=[-length if targeted else length for length in lengths],
            backend=choose([samples]),
            samples=samples,
            labels=each_label,
            targets=count_of_targets,
            restarts=tries,
            starts=_start.RandomStarts(seed, tries) if random_start else None,
            steps=count,
            early_stop=early_stop,
            report=report,
            counted=progress is not None,
        ).best()
    return _returned(result, x, len(balls) if several else None)


def _length(step_size: object, ball: Ball, steps: int) -> float:
    return ball.default_step_size(steps) if step_size is None else _checks.positive(step_size, "step_size")


def _radii(eps: object) -> Sequence[object]:
    """``eps`` as a list: of one where it is a number."""
    if not isinstance(eps, (list, tuple, np.ndarray)):
        return [eps]
    if len(np.shape(eps)) != 1 or not len(eps):
        raise ValueError(f"eps is {eps!r}, expected a number or a sequence of at least one")
    return list(eps)


def _returned(result: Any, x: Any, radii: int | None) -> Any:
    """The items' results as the caller gets them: one batch, or one for each radius."""
    if radii is not None:
        result = result.reshape(radii, -1, *result.shape[1:]) if len(result) else result.reshape(radii, *x.shape)
    return _arguments.as_given(result, x)


def _attackable(
    model: Any,
    x: Array,
    given_x: Any,
    y: Any,
    loss: str,
    *,
    targets: int | None,
    targeted: bool,
    needs_verdict: bool,
    working_copy: bool,
    cuda_graph: bool | None,
    precision: str | None,
) -> tuple[Attackable, Array, Any]:
    """The model ready for an attack, and samples and labels as it takes them."""
    if isinstance(model, GradientModel):
        if targets is not None and loss == "ce":
            raise ValueError("targets is set, but model is a GradientModel: its gradient function brings the loss")
        if loss != "ce":
            raise ValueError(
                f"loss is {loss!r}, but model is a GradientModel: its gradient function brings the loss; leave loss out"
            )
        if needs_verdict and model.predict is None:
            raise ValueError(
                "model is a GradientModel without predict, expected one with it: early_stop and restarts above 1 need "
                "logits"
            )
        if cuda_graph:
            raise ValueError(
                "cuda_graph is True, but model is a GradientModel: its functions may do more than torch records"
            )
        if precision is not None:
            raise ValueError(
                f"precision is {precision!r}, but model is a GradientModel: its functions choose their own"
            )
        labels = _arguments.labels(y, x, integers=needs_verdict).value
        return GivenGradient(model, x, (given_x, y), targeted=targeted), x, labels
    x = _arguments.tensor_samples(model, x, others=" or a GradientModel")
    from ._losses import LOSSES
    from ._torch_model import TorchLoss

    least = LOSSES[loss].least_classes if targets is None else LOSSES[loss].least_classes_for_targets
    prepared, labels = _arguments.torch_model(model, x, y, least_classes=least, needs=f"loss {loss!r}")
    attackable = TorchLoss(
        prepared,
        loss,
        targeted=targeted,
        targets=targets,
        batch=x.value,
        working_copy=working_copy,
        cuda_graph=cuda_graph,
        precision=precision,
    )
    return attackable, x, labels
