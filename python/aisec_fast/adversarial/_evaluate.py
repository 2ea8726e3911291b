"""``evaluate``: AutoAttack's ensemble, each attack on what the ones before it left, with a report."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks
from .._writing import check_destination
from . import _arguments, _masking, _rows
from ._apgd import MOST_TARGETS, NORMS, Notes
from ._ball import make_ball
from ._box import Clip
from ._distances import norm_named
from ._draws import seed_of
from ._ensembles import Attack, Job, attacks_of, rows_of
from ._masking import Finding, GradientMaskingWarning
from ._progress import bar
from ._report import Report, versions
from ._rows_seen import counting
from ._state import Checkpoint, Stage, State, digest, weights
from ._watch import Watch

# attack, samples done, samples of this attack, robust accuracy so far
EvaluationProgress = Callable[[str, int, int, float], object]

_CHECKS = ("cheap", "all", "none")
_ADVICE = ' (for two or three: attacks=["apgd-ce", "apgd-margin", "fab-t", "square"])'  # those without the DLR loss


def evaluate(
    model: Any,
    x: Any,
    y: Any,
    *,
    eps: float | Sequence[float],
    norm: str = "linf",
    attacks: str | Sequence[Any] = "standard",
    batch_size: int = 250,
    clip: Clip = (0.0, 1.0),
    masking_checks: str = "cheap",
    cuda_graph: bool | None = None,
    checkpoint: str | Path | None = None,
    seed: int | None = None,
    progress: EvaluationProgress | bool | None = None,
) -> Report:
    """How much of ``model``'s accuracy is left under attack: AutoAttack (Croce and Hein 2020) and ensembles like it.

    Samples that the model gets wrong already count as fooled; every attack gets those that all before it have left. "standard"
    is AutoAttack's ensemble with its budgets, so that robust accuracies compare with RobustBench's: apgd-ce (100 steps,
    one restart), apgd-t (targeted DLR loss, 9 target classes, 100 steps each), fab-t (9 target classes, 100 steps each) and
    square (5,000 queries). In L1 it is AutoAttack's as well: apgd-ce from 5 starts, apgd-t with 5 target classes, both in
    shrinking balls (Croce and Hein 2021).

    Args:
        model: a torch module that gives logits ``[B, classes]``. It is held and left as by :func:`pgd`.
        x: samples ``[B, ...]``, float32 or float64, finite, inside ``clip``, at least one: a torch tensor, or a numpy array
            for a model on the CPU.
        y: true labels ``[B]``, integers from 0 to classes - 1.
        eps: radius of the ball, or several, for a curve: an example found at a smaller one counts at all larger ones.
        norm: "linf", "l2" or "l1" (also "Linf", "L2", "L1").
        attacks: "standard"; "rand", for models that draw random numbers (apgd-ce and apgd-dlr with gradients that are the
            mean of 20 passes); "quick", to be compared with nothing (20 steps, 3 target classes, 200 queries); or a list of
            names ("apgd-ce", "apgd-dlr", "apgd-margin", "apgd-t", "fab", "fab-t", "square") and functions
            ``attack(model, x, y, *, eps, norm, clip, seed) -> x_adv``, as :func:`pgd` is one (change its defaults with
            functools.partial). What a function returns is projected onto ball and box.
        batch_size: largest batch that the model is given: samples, or, where fewer are left, their runs for several targets
            side by side.
        clip: the box ``(low, high)``, or None for none.
        masking_checks: "cheap" looks at what the attacks saw anyway; "all" also runs attacks that a sound model must not
            resist (on 256 samples; about as long as 3,000 steps of apgd-ce on them); "none". What they find is in the report,
            and warned of as :class:`GradientMaskingWarning`.
        cuda_graph: on CUDA, record the gradient passes of Auto-PGD and replay them, as for :func:`pgd`. False: never.
        checkpoint: a file to go on from, if it exists, and to save to after every batch of every attack; at the end it is
            left. The result is that of an uninterrupted run. It is bound to x, y, the model's weights, its answers at x and all settings
            (functions by name and keywords), and takes as much memory as the fooled samples.
        seed: of everything random. What a sample's attacks draw depends on seed and sample alone. Default: from the checkpoint, or
            from the operating system; it is in the report.
        progress: function ``(attack, samples_done, samples, robust_accuracy)`` called after every step, or True for a bar on
            standard error (needs rich).

    Returns:
        A :class:`Report`: accuracies, samples, verdicts, warnings; ``print`` it, or take ``to_json`` or ``to_html``.

    Raises:
        TypeError, ValueError: an argument, with its name; a model with fewer classes than an attack needs ("standard" and
            "apgd-t" 4, "apgd-dlr" 3: name others for fewer); NaN logits or gradients; a checkpoint of something else.
        OSError: the checkpoint cannot be read or written.
        BackendError: the forced backend is missing or cannot reach ``x``.
    """
    radii = _radii(eps)
    plan = attacks_of(attacks, norm_named(norm, NORMS))
    most = max(plan, key=lambda attack: attack.least_classes)
    size = _checks.whole(batch_size, "batch_size", least=1)
    if masking_checks not in _CHECKS:
        raise ValueError(f"masking_checks is {masking_checks!r}, expected one of {', '.join(map(repr, _CHECKS))}")
    samples = _arguments.samples(x)
    ball = make_ball(norm, radii[0], clip, samples.dtype, NORMS)
    if samples.size == 0:
        raise ValueError(f"x has shape {samples.shape}, expected at least one sample with values")
    file = None if checkpoint is None else Checkpoint(checkpoint)
    if file is not None:
        check_destination(file.path)
        seed = file.seed() if seed is None else seed
    holding = _arguments.attacked(
        model,
        x,
        y,
        clip=clip,
        least_classes=most.least_classes,
        needs=f"attack {most.name!r}{_ADVICE if most.least_classes > 2 else ''}",
        cuda_graph=None if cuda_graph is None else _checks.flag(cuda_graph, "cuda_graph"),
    )
    with _reporting(progress) as report, holding as victim:
        job = Job(
            module=model,
            victim=victim,
            likeliest=victim.y[:, None],
            numbers=np.arange(len(victim.x)),
            ball=ball,
            clip=clip,
            seed=seed_of(seed),
            max_rows=size,
            report=lambda *_: None,
        )
        evaluation = _Evaluation(job, plan, radii, size, masking_checks, file, report, random=attacks == "rand")
        found = evaluation.run()
        found = replace(found, x_adv=_arguments.as_given(found.x_adv, x), _x=_arguments.as_given(victim.x, x))
    for finding in found.warnings:
        warnings.warn(finding.message, GradientMaskingWarning, stacklevel=2)
    return found


def _radii(eps: object) -> list[float]:
    if isinstance(eps, (list, tuple, np.ndarray)):
        if not len(eps):
            raise ValueError("eps is empty, expected a number or a list of numbers")
        return sorted({_checks.positive(radius, "eps") for radius in eps})
    return [_checks.positive(eps, "eps")]


@contextmanager
def _reporting(progress: EvaluationProgress | bool | None) -> Iterator[EvaluationProgress]:
    if progress is None or progress is False:
        yield lambda *_: None
    elif progress is True:
        with bar() as show:
            yield lambda attack, done, total, accuracy: show(attack, done, total, f"robust {accuracy:.2%}")
    elif callable(progress):
        yield progress
    else:
        raise TypeError(
            f"progress is {_checks.kind_of(progress)}, expected None, True for a bar, or a function "
            "(attack, samples_done, samples, robust_accuracy)"
        )


class _Evaluation:
    def __init__(
        self,
        job: Job,
        plan: tuple[Attack, ...],
        radii: list[float],
        batch_size: int,
        masking_checks: str,
        file: Checkpoint | None,
        report: EvaluationProgress,
        *,
        random: bool,
    ) -> None:
        self.job, self.plan, self.radii, self.size = job, plan, radii, batch_size
        self.checks, self.file, self.report, self.random = masking_checks, file, report, random
        self.findings: list[Finding] = []
        self.count = len(job.numbers)

    def run(self) -> Report:
        """All attacks at all eps, from wherever the checkpoint stands."""
        began = time.perf_counter()
        with counting() as rows:
            answers = self._clean()
        clean = Stage("clean", 0.0, self.count, 0, 0.0, time.perf_counter() - began, rows.forward, rows.gradient)
        victim = self.job.victim
        wrong = answers != _rows.to_host(victim.y)
        state = self.state = State(
            np.where(wrong, 0.0, np.nan),
            np.full(self.count, -1, np.int64),
            victim.x.clone(),
            open_=np.flatnonzero(~wrong),
        )
        clean.newly_fooled, clean.robust_accuracy = int(wrong.sum()), self._accuracy()
        settings = self._settings()
        self.bound_to = digest(
            [victim.x, victim.y, _rows.from_host(answers, victim.x), *weights(self.job.module)],
            {**settings, "seed": self.job.seed, "shape": list(victim.x.shape)},
        )
        if self.file is not None:
            self.file.load(state, bound_to=self.bound_to)
        for number, (eps, (index, attack)) in enumerate((e, a) for e in self.radii for a in enumerate(self.plan)):
            if number >= len(state.stages) - 1:
                self._stage(number, eps, index, attack)
        lost = self._verify()
        if self.checks != "none":
            black = {attack.name: attack.black_box for attack in self.plan}
            counts = [(stage.eps, stage.attack, black[stage.attack], stage.newly_fooled) for stage in state.stages]
            self.findings += _masking.of_stages(self.count, counts, state.notes, int(np.isnan(state.fooled_at).sum()))
        if self.checks == "all":
            self.findings += _masking.costly(self.job, self.radii, state.fooled_at)
        return Report(
            norm=self.job.ball.norm,
            eps=tuple(self.radii),
            clean_accuracy=clean.robust_accuracy,
            stages=(clean, *state.stages),
            fooled_at=state.fooled_at,
            fooled_by=tuple(self.plan[by].name if by >= 0 else "" for by in state.fooled_by),
            x_adv=state.x_adv,
            warnings=tuple(self.findings),
            unconfirmed=lost,
            seed=self.job.seed,
            settings=settings,
            versions=versions(),
            seconds=time.perf_counter() - began,
            _x=victim.x,
        )

    def _settings(self) -> dict[str, Any]:
        ball = self.job.ball
        return {
            "norm": ball.norm,
            "eps": self.radii,
            "clip": None if self.job.clip is None else [float(bound) for bound in self.job.clip],
            "attacks": [{"name": attack.name, **attack.settings} for attack in self.plan],
            "batch_size": self.size,
            "masking_checks": self.checks,
            "dtype": str(self.job.victim.x.dtype).removeprefix("torch."),
        }

    def _clean(self) -> Any:
        """The model's answers at x, and from the same pass the classes that targeted attacks go for."""
        import torch

        from ._losses import likeliest_others

        victim, watch, answers, likeliest = self.job.victim, Watch(), [], []
        for rows in _rows.batches(self.count, self.size):
            logits = victim.model.own_logits(_rows.take(victim.x, rows))
            watch.note(0, logits.sum(1), None)
            watch.look()
            answers.append(logits.argmax(1))
            likeliest.append(likeliest_others(logits, _rows.take(victim.y, rows), MOST_TARGETS))
            if self.checks != "none" and not rows[0]:
                again = victim.model.own_logits(_rows.take(victim.x, rows))
                self.findings += _masking.of_logits(logits, again, random_is_fine=self.random)
        self.job = replace(self.job, likeliest=torch.cat(likeliest))
        return _rows.to_host(torch.cat(answers))

    def _stage(self, number: int, eps: float, index: int, attack: Attack) -> None:
        """One attack at one eps, on everything that is left; goes on where it was interrupted."""
        state = self.state
        if number == len(state.stages):
            state.open_ = np.flatnonzero(np.isnan(state.fooled_at))
            state.stages.append(Stage(attack.name, eps, len(state.open_)))
            state.parts_done = 0
        stage = state.stages[number]
        stage.robust_accuracy = self._accuracy()
        ball = replace(self.job.ball, eps=eps)
        parts = _rows.batches(len(state.open_), self.size)
        for part in parts[state.parts_done :]:
            began = time.perf_counter()
            job = replace(rows_of(self.job, state.open_[part]), ball=ball, report=self._inside(attack, stage, part))
            doubted = job.victim.model.differences
            with counting() as rows:
                adv, notes = attack.run(job)
                fooled = _rows.to_host(job.victim.model.fooled(adv, job.victim.y))
            hits = np.flatnonzero(fooled)
            state.record(job.numbers[hits], _rows.take(adv, hits), eps, index)
            state.notes.setdefault(attack.name, Notes()).add(notes)
            stage.newly_fooled += len(hits)
            stage.robust_accuracy = self._accuracy()
            stage.seconds += time.perf_counter() - began
            stage.forward_rows += rows.forward
            stage.gradient_rows += rows.gradient
            stage.differences += job.victim.model.differences - doubted
            state.parts_done += 1
            self.report(attack.name, int(part[-1]) + 1, stage.samples, stage.robust_accuracy)
            if self.file is not None:
                self.file.save(state, bound_to=self.bound_to, seed=self.job.seed)

    def _inside(self, attack: Attack, stage: Stage, part: _rows.Rows) -> Callable[[int, int, int | None], None]:
        """The progress of an attack on a part, told as that of the stage."""
        accuracy = self._accuracy()

        def tell(step: int, total: int, fooled: int | None) -> None:
            done = int(part[0]) + len(part) * step // max(1, total)
            self.report(attack.name, done, stage.samples, accuracy - (fooled or 0) / self.count)

        return tell

    def _accuracy(self) -> float:
        return float(np.isnan(self.state.fooled_at).mean())

    def _verify(self) -> int:
        """Look at all samples once more, in the caller's order; who does not fool the model there is not fooled."""
        state, victim, lost = self.state, self.job.victim, 0
        for rows in _rows.batches(self.count, self.size):
            claimed = state.fooled_at[rows] > 0
            if claimed.any():
                adv, labels = _rows.take(state.x_adv, rows), _rows.take(victim.y, rows)
                fools = _rows.to_host(victim.model.fooled(adv, labels))
                back = rows[claimed & ~fools]
                lost += len(back)
                if len(back):
                    state.record(back, _rows.take(victim.x, back), np.nan, -1)
        return lost
