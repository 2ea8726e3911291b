"""Auto-PGD (APGD): projected gradient ascent with momentum that chooses its step sizes itself.

Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks (2020),
arXiv:2003.01690. Algorithm 1 is the loop below, _apgd_rules has the rules of each norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _arrays, _checks
from . import _arguments, _rows, _start
from ._ball import Ball, make_ball
from ._box import Clip
from ._distances import norm_named
from ._draws import generator, seed_of
from ._models import Flags, fools
from ._progress import Progress, reporting
from ._watch import Watch

if TYPE_CHECKING:
    from torch import Tensor

    from ._apgd_rules import State
    from ._models import Slope
    from ._torch_model import LabelValues

LOSSES = ("ce", "dlr", "margin", "target_dlr", "target_margin")
MOST_TARGETS = 9
NORMS = ("linf", "l2", "l1")  # that this attack, Square and evaluate have rules for


def apgd(
    model: Any,
    x: Any,
    y: Any,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 100,
    restarts: int = 1,
    loss: str = "ce",
    targeted: bool = False,
    targets: Any = None,
    random_start: bool = True,
    early_stop: bool = True,
    eot_iter: int = 1,
    larger_eps: bool | None = None,
    max_rows: int | None = None,
    cuda_graph: bool | None = None,
    precision: str | None = None,
    clip: Clip = (0.0, 1.0),
    seed: int | None = None,
    progress: Progress | bool | None = None,
) -> Any:
    """Attack ``model`` at ``x`` by Auto-PGD, which has no step size to tune (Croce and Hein 2020, Algorithm 1).

    In L-infinity and L2 a step goes ``step_size`` along the gradient's sign or direction, is projected, and is mixed with the
    last move (momentum 0.75). Each sample has its own step size, ``2 * eps`` at first. It is halved, and the sample goes back
    to its best point, at a checkpoint (after 22, 41, 57, 70, 80, 87, 93, 99 % of the steps) if since the last one no more than
    75 % of the steps raised its loss, or if neither its step size nor its highest loss has changed.

    In L1 (Croce and Hein 2021, "Mind the box") a step changes the values of largest slope, all by as much, and is projected
    exactly onto ball and box: at first a fifth of all values, later as many as the best point changes, over 1.5. Steps are
    ``eps`` long at first; at a checkpoint (every 4 % of the steps) they get shorter by a third, down to ``eps / 10``, or, where
    the best point changes over 5 % fewer values than before, begin anew from there at full length.

    Args:
        model: a torch module that gives logits ``[B, classes]``. It is held and left as by :func:`pgd`.
        x: samples ``[B, ...]``, float32 or float64, finite, inside ``clip``: a torch tensor, or a numpy array for a model on
            the CPU. It is not changed.
        y: labels ``[B]``, integers from 0 to classes - 1: true ones, or the answers that are wanted if ``targeted``.
        eps: radius of the ball ``|x_adv - x| <= eps``, in the units of ``x``; above 0 and finite.
        norm: "linf", "l2" or "l1" (also "Linf", "L2", "L1").
        steps: number of steps of a run, at least 1; ``steps + 1`` points are seen, the start among them.
        restarts: number of runs from different random starts, for each target if there are targets; at least 1.
        loss: what is climbed: "ce", "margin", "dlr" (3 classes or more), or, one run for each target class,
            "target_margin" or "target_dlr" (4 classes or more; with it this is AutoAttack's APGD-T).
        targeted: make the model answer ``y``, by going down "ce", "margin" or "dlr" at ``y``. (The targeted losses make it
            answer anything but ``y``, by way of one class after the other.)
        targets: for the targeted losses: how many of the likeliest other classes at ``x`` are targets (default 9, or
            classes - 1 if that is less), or integer labels ``[B, targets]``.
        random_start: start on the ball's surface, in a uniformly random direction from ``x`` (l2) or at a uniformly random
            offset scaled to ``eps`` (linf), projected onto the box; under l1 at the point of ball and box that is nearest to
            ``x`` plus normal noise as wide as the box (without a box, ``eps``), which changes few values. Else at ``x``.
        early_stop: a sample that fools the model stops there and leaves the batch, with all its runs.
        eot_iter: number of passes that each gradient is the mean of (expectation over transformations), for models that
            draw random numbers; loss and verdict are those of the last pass.
        larger_eps: begin in larger balls: 30 % of the steps at ``3 * eps``, 30 % at ``2 * eps``, the rest at ``eps``, each part
            from the best point of the one before, projected. Only what is inside ``eps`` is returned or judged. For "l1", where
            it is the default, as in AutoAttack. It costs a pass more for each part.
        max_rows: largest batch that the model is given. Runs of one sample for several targets and restarts share a batch as
            far as they fit. Default: the number of samples, or of a sample's runs if that is larger.
        cuda_graph: on CUDA, record gradient passes and replay them, as for :func:`pgd`.
        precision: "bfloat16" to compute gradients in it, as for :func:`pgd`; every success is judged by the module itself.
        clip: the box ``(low, high)``, or None for none. Bounds that are no values of the dtype are rounded inward.
        seed: of the random starts. Row i's depends on neither the batch size nor on what happens to other rows. Default:
            from the operating system.
        progress: function ``(step, total_steps, fooled)`` called after each step, or True for a bar on standard error.

    Returns:
        ``x_adv``: a new C-contiguous array of the shape, dtype, library and device of ``x``; ``|x_adv - x| <= eps`` in
        float64 and the box exactly, always. With ``early_stop`` a sample's first point that fools the model, else its point
        of highest loss. Of several runs a sample gets one whose result fools the model, or, if none does, the one with the
        highest loss. Runs attack only samples that are not fooled yet; of those side by side in a batch the one that is
        first to fool the model wins, so ``max_rows`` may change the sample that is returned, never the verdict.

    Raises:
        TypeError, ValueError: an argument, with its name; a model that returns something else than logits that depend on
            ``x``, or of too few classes for the loss; NaN logits, or gradients that are NaN or infinite.
        BackendError: the forced backend is missing or cannot reach ``x``.
    """
    plan = Plan(
        steps=_checks.whole(steps, "steps", least=1),
        restarts=_checks.whole(restarts, "restarts", least=1),
        loss=_loss(loss, targets),
        targeted=_checks.flag(targeted, "targeted"),
        random_start=_checks.flag(random_start, "random_start"),
        early_stop=_checks.flag(early_stop, "early_stop"),
        eot_iter=_checks.whole(eot_iter, "eot_iter", least=1),
        larger_eps=norm_named(norm, NORMS) == "l1" if larger_eps is None else _checks.flag(larger_eps, "larger_eps"),
        max_rows=None if max_rows is None else _checks.whole(max_rows, "max_rows", least=1),
        seed=seed_of(seed),
    )
    if plan.larger_eps and norm_named(norm, NORMS) != "l1":
        raise ValueError(f"larger_eps is True and norm is {norm!r}, expected 'l1' with it")
    if plan.targeted and plan.loss.startswith("target_"):
        raise ValueError(
            f"targeted is True and loss is {plan.loss!r}, expected 'ce', 'margin' or 'dlr': y says which class to reach"
        )
    if plan.restarts > 1 and not plan.random_start:
        raise ValueError(f"restarts is {plan.restarts}, but random_start is False: all runs would be the same")
    ball = make_ball(norm, eps, clip, _arguments.samples(x).dtype, NORMS)
    holding = _arguments.attacked(
        model,
        x,
        y,
        clip=clip,
        least_classes=least_classes(plan.loss),
        needs=f"loss {plan.loss!r}",
        cuda_graph=None if cuda_graph is None else _checks.flag(cuda_graph, "cuda_graph"),
        precision=precision,
    )
    with reporting(progress, "APGD") as report, holding as victim:
        if not victim.x.numel():
            return _arguments.as_given(victim.x.clone(), x)
        aims = _targets(victim, targets) if plan.loss.startswith("target_") else None
        search = Search(victim, ball, plan, aims, report=report)
        return _arguments.as_given(search.run(), x)


def least_classes(loss: str) -> int:
    """The number of classes below which the loss has no meaning."""
    return {"dlr": 3, "target_dlr": 4}.get(loss, 2)


def _loss(loss: object, targets: Any) -> str:
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}, expected one of {', '.join(map(repr, LOSSES))}")
    name = str(loss)
    if targets is not None and not name.startswith("target_"):
        raise ValueError(
            f"targets are given, but loss is {name!r}; expected 'target_dlr' or 'target_margin' with targets"
        )
    return name


def _targets(victim: _arguments.Attacked, targets: Any) -> Tensor:
    """The classes to attack, ``[B, targets]``."""
    batch = len(victim.x)
    logits = victim.model.own_logits(victim.x)
    if targets is None or isinstance(targets, (int, np.integer)):
        count = MOST_TARGETS if targets is None else _checks.whole(targets, "targets", least=1)
        from ._losses import likeliest_others

        return likeliest_others(logits, victim.y, count)
    import torch

    described = _arrays.describe(targets, "targets")
    if not described.dtype.startswith(("int", "uint")):
        raise TypeError(f"targets has dtype {described.dtype}, expected a number of targets or integer labels")
    if len(described.shape) != 2 or described.shape[0] != batch or not described.shape[1]:
        raise ValueError(f"targets has shape {described.shape}, expected labels [{batch}, targets]")
    classes = torch.as_tensor(described.value).to(victim.x.device, torch.int64)
    low, high = (int(bound) for bound in classes.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(f"targets holds labels from {low} to {high}, expected 0 to {logits.shape[1] - 1}")
    if bool((classes == victim.y[:, None]).any()):
        raise ValueError("targets holds true labels of y, expected other classes")
    return classes


@dataclass(frozen=True)
class Plan:
    """What a search does with every sample, checked."""

    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    targeted: bool = False
    random_start: bool = True
    early_stop: bool = True
    eot_iter: int = 1
    larger_eps: bool = False
    max_rows: int | None = None
    seed: int = 0

    def phases(self, ball: Ball) -> list[tuple[Ball, int]]:
        """The balls of a run, one after the other, and the steps in each."""
        if not self.larger_eps:
            return [(ball, self.steps)]
        early = 3 * self.steps // 10
        parts = ((3, early), (2, early), (1, self.steps - 2 * early))
        return [(replace(ball, eps=factor * ball.eps), steps) for factor, steps in parts if steps]


@dataclass
class Notes:
    """What a search saw on its way, of its first run: signs of masked gradients."""

    samples: int = 0
    zero_gradients: int = 0  # samples whose gradient at the start is zero everywhere
    flat: int = 0  # samples that were not fooled, and whose loss was never above that of the start

    def add(self, other: Notes) -> None:
        """What another search saw, too."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass
class Search:
    """All runs on a batch. ``numbers`` tell random draws which sample is which; they default to the rows."""

    victim: _arguments.Attacked
    ball: Ball
    plan: Plan
    targets: Tensor | None = None  # [B, targets]
    numbers: Any = None
    report: Progress = lambda *_: None
    notes: Notes = field(default_factory=Notes)

    def __post_init__(self) -> None:
        batch = len(self.victim.x)
        self.numbers = np.arange(batch) if self.numbers is None else self.numbers
        self.result = self.victim.x.clone()
        self.fooled: Flags = np.zeros(batch, bool)
        self.highest = np.full(batch, -np.inf)
        ranks = range(1, self.targets.shape[1] + 1) if self.targets is not None else (0,)
        from ._apgd_rules import rules_of

        self._rules, self._phases = rules_of(self.ball.norm), self.plan.phases(self.ball)
        self._values = _values(self.plan.loss, targeted=self.plan.targeted)
        self._runs = [(rank, restart) for rank in ranks for restart in range(self.plan.restarts)]
        self._rows = self.plan.max_rows or max(batch, len(self._runs))
        self._done = 0  # steps of runs that are over, of all parts of the batch

    def run(self) -> Tensor:
        """The result for every sample."""
        parts = np.array_split(np.arange(len(self.fooled)), -(-len(self.fooled) // self._rows))
        self._total = len(parts) * len(self._runs) * self.plan.steps
        for number, open_ in enumerate(parts):
            left, first = self._runs, True
            while left and len(open_):
                together = max(1, self._rows // len(open_))
                self._climb(open_, left[:together], first=first)
                left, first = left[together:], False
                open_ = open_[~self.fooled[open_]]
                self._done = ((number + 1) * len(self._runs) - len(left)) * self.plan.steps
        self.report(self._total, self._total, int(self.fooled.sum()))
        return self.result

    # ------------------------------------------------------------------------------------------------ one stacked run

    def _climb(self, samples: _rows.Rows, runs: list[tuple[int, int]], *, first: bool) -> None:
        """Some runs of these samples in one batch; results go to where they belong."""
        state, watch, done = self._begin(samples, runs), Watch(), 0
        for number, (ball, steps) in enumerate(self._phases):
            self._enter(state, number, watch, done)
            if first and not number:
                self.notes.samples += len(samples)
                zero = _rows.to_host(_rows.largest_magnitudes(state.gradient[: len(samples)]) == 0)
                self.notes.zero_gradients += int(zero.sum())
            last = number == len(self._phases) - 1
            if last:
                self._dismiss(state, state.best_fools)
            windows, start = set(self._rules.checkpoints(steps)), 0
            for step in range(1, steps + 1):
                if not len(state.owner):
                    return
                self._move(state, ball, momentum=step > 1)
                hit = self._look(state, done + step, watch, goes_on=step < steps)
                if last:
                    self._dismiss(state, hit)
                if step in windows and step < steps:
                    self._rules.adapt(state, ball.eps, step - start)
                    state.rises = state.rises * 0
                    start = step
                self.report(self._done + len(runs) * (done + step), self._total, int(self.fooled.sum()))
            done += steps
        watch.look()
        if first:
            self.notes.flat += int((state.flat & (state.run == 0)).sum())
        self._settle(state)

    def _begin(self, samples: _rows.Rows, runs: list[tuple[int, int]]) -> State:
        import torch

        from ._apgd_rules import State

        device = self.victim.x.device
        chosen = torch.from_numpy(samples).to(device)
        x = self.victim.x[chosen].repeat(len(runs), *[1] * (self.victim.x.ndim - 1))
        owner, y = chosen.repeat(len(runs)), self.victim.y[chosen].repeat(len(runs))
        labels = y
        if self.targets is not None:
            labels = torch.stack([y, torch.cat([self.targets[chosen, rank - 1] for rank, _ in runs])], 1)
        adv = x.clone()
        if self.plan.random_start:
            offsets = np.empty((len(x), math.prod(x.shape[1:])), str(x.dtype).removeprefix("torch."))
            places = [(*run, int(number)) for run in runs for number in self.numbers[samples]]
            for offset, place in zip(offsets, places, strict=True):
                with np.errstate(over="ignore"):  # eps may lie beyond the dtype; the projection brings it back
                    offset[:] = surface(self._phases[0][0], len(offset), generator(self.plan.seed, *place))
            adv = _start.apply(_start.Drawn(offsets.reshape(x.shape), replace=False), x)
            self._project(adv, x, self._phases[0][0])
        nothing = torch.zeros(len(x), device=device, dtype=torch.float64)
        return State(
            owner=owner, run=torch.arange(len(runs), device=device).repeat_interleave(len(samples)), x=x, adv=adv,
            previous=adv, best=adv, gradient=x, best_gradient=x, y=y, labels=labels,
            step_size=nothing, loss=nothing, best_loss=nothing, best_fools=nothing > 0, flat=nothing == 0, rises=nothing.int(),
            checked_loss=nothing, halved=nothing == 0, checked_support=nothing, moved=nothing,
        )  # fmt: skip

    def _enter(self, state: State, phase: int, watch: Watch, done: int) -> None:
        """Loss and gradient at the start of a phase, after ``done`` steps: at what is in ``state``, or projected from there."""
        import torch

        ball, _ = self._phases[phase]
        if phase:
            state.adv = state.best.clone()
            self._project(state.adv, state.x, ball)
        slope = self._slope(state, self.plan.steps - done)
        watch.note(done, slope.losses, slope.gradient, slope.largest)
        watch.look()
        assert slope.losses is not None
        state.previous = state.best = state.adv
        state.gradient, state.best_gradient = slope.gradient, slope.gradient.clone()
        state.loss = state.best_loss = slope.losses
        state.best_fools, state.rises = self._fools(slope.logits, state), torch.zeros_like(state.rises)
        self._rules.begin(state, ball.eps, chosen=phase > 0 or (self.plan.random_start and len(self._phases) > 1))

    def _slope(self, state: State, passes_left: int) -> Slope:
        """Gradient (the mean of ``eot_iter`` passes), loss and logits (of the last pass) where the rows are.

        The gradient holds until the next call: passes may be replayed, into the same memory.
        """
        model, count = self.victim.model, self.plan.eot_iter
        slope = model.replayed_gradient(state.adv, self._values, state.labels, passes_left * count)
        if count == 1:
            return slope
        total = slope.gradient.clone()
        for number in range(1, count):
            slope = model.replayed_gradient(state.adv, self._values, state.labels, passes_left * count - number)
            total += slope.gradient
        return slope._replace(gradient=total.div_(count), largest=None)

    def _move(self, state: State, ball: Ball, *, momentum: bool) -> None:
        """The next point: step, projection, and from the second step on the last move mixed in and another projection."""
        weight, ahead = self._rules.momentum, self._rules.direction(state)
        ahead.mul_(_rows.column(state.step_size.to(ahead.dtype), ahead)).add_(state.adv)
        self._project(ahead, state.x, ball)
        if momentum and weight < 1:
            # adv + 0.75 (ahead - adv) + 0.25 (adv - previous): written so that points at rest stay where they are.
            ahead.sub_(state.adv).mul_(weight).add_(state.adv - state.previous, alpha=1 - weight).add_(state.adv)
            self._project(ahead, state.x, ball)
        state.previous, state.adv = state.adv, ahead

    def _project(self, adv: Tensor, x: Tensor, ball: Ball) -> None:
        ball.project(self.victim.backend, adv, x)

    def _look(self, state: State, step: int, watch: Watch, *, goes_on: bool) -> Tensor:
        """Loss and gradient at the new points, and the best ones so far; returns who fools the model there."""
        import torch

        if goes_on:
            slope = self._slope(state, self.plan.steps - step)
            losses, logits, state.gradient = slope.losses, slope.logits, slope.gradient
            watch.note(step, losses, state.gradient, slope.largest)
        else:  # nobody goes on from the last point
            logits = self.victim.model.logits(state.adv)
            losses = self._values(logits, state.labels)
            watch.note(step, losses, None)
        if self.plan.early_stop:
            watch.look()
        assert losses is not None
        hit = self._fools(logits, state)
        state.rises = state.rises + (losses > state.loss)
        better = losses > state.best_loss
        state.flat = state.flat & ~better
        state.loss = losses
        state.best_loss = torch.where(better, losses, state.best_loss)
        state.best_fools = torch.where(better, hit, state.best_fools)
        state.best = torch.where(_rows.column(better, state.adv), state.adv, state.best)
        if goes_on:
            state.best_gradient = torch.where(_rows.column(better, state.adv), state.gradient, state.best_gradient)
        return hit

    # ------------------------------------------------------------------------------------------------ results

    def _fools(self, logits: Any, state: State) -> Tensor:
        hit: Tensor = fools(logits, state.y, targeted=self.plan.targeted)
        return hit

    def _confirmed(self, hit: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        return self.victim.model.confirmed(hit, adv, y, targeted=self.plan.targeted)

    def _dismiss(self, state: State, hit: Tensor) -> None:
        """With ``early_stop``, samples that fool the model leave with all their rows."""
        if not self.plan.early_stop:
            return
        rows = self._confirmed(hit, state.adv, state.y).nonzero()[:, 0]
        owners, first = np.unique(_rows.to_host(state.owner[rows]), return_index=True)
        if not len(owners):
            return
        _rows.put(self.result, owners, _rows.take(state.adv[rows], first))
        self.fooled[owners] = True
        state.keep(_rows.from_host(np.flatnonzero(~self.fooled[_rows.to_host(state.owner)]), state.x))

    def _settle(self, state: State) -> None:
        """What a finished run leaves behind: the points of highest loss, and with them who is fooled."""
        heights, owners = _rows.to_host(state.best_loss).astype(np.float64), _rows.to_host(state.owner)
        hit = np.zeros(len(owners), bool)
        if not self.plan.early_stop:
            hit = _rows.to_host(self._confirmed(state.best_fools, state.best, state.y))
        winners = {}
        for row, (owner, height) in enumerate(zip(owners, heights, strict=True)):  # in the order of runs
            if not self.fooled[owner] and (hit[row] or height > self.highest[owner]):
                winners[owner] = row
                self.highest[owner], self.fooled[owner] = height, hit[row]
        if winners:
            rows = np.array(list(winners.values()))
            _rows.put(self.result, np.array(list(winners)), _rows.take(state.best, rows))


def _values(loss: str, *, targeted: bool) -> LabelValues:
    """What is climbed, of logits and labels: the same function each time, so that recorded passes of it are found again."""
    from . import _losses

    if loss.startswith("target_"):
        return {"target_margin": _losses.target_margin_of, "target_dlr": _losses.target_dlr_of}[loss]
    climbed = _losses.LOSSES[loss]
    return climbed.descended if targeted else climbed.values


def surface(ball: Ball, size: int, draws: np.random.Generator) -> Any:
    """A random offset: float64 ``[size]``, of length ``eps``; under "l1" normal and as wide as the box, to be projected."""
    if ball.norm == "l1":
        width = ball.high - ball.low
        return draws.standard_normal(size) * (width if math.isfinite(width) else ball.eps)
    if ball.norm == "linf":
        offset = 2 * draws.random(size) - 1
        length = np.abs(offset).max()
    else:
        offset = draws.standard_normal(size)
        length = np.sqrt(offset @ offset)
    return offset * (ball.eps / (length or 1.0))
