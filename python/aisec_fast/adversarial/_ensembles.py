"""Attacks by their names, and the ensembles that ``evaluate`` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from .. import _checks
from . import _apgd, _arguments, _rows, _square
from ._ball import Ball
from ._box import Clip
from ._progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


@dataclass(frozen=True)
class Job:
    """Some samples that are still right, for one attack."""

    module: nn.Module  # the user's own
    victim: _arguments.Attacked  # its x and y are those samples
    likeliest: Tensor  # the other classes, likeliest first, [samples, up to 9]
    numbers: npt.NDArray[np.intp]  # which samples they are: random draws depend on it
    ball: Ball
    clip: Clip
    seed: int
    max_rows: int
    report: Progress


@dataclass(frozen=True)
class Attack:
    """An attack ready to run. ``settings`` are what a report says of it, and what a checkpoint is bound to."""

    name: str
    run: Callable[[Job], tuple[Tensor, _apgd.Notes]]  # points like the job's samples
    settings: Mapping[str, Any] = field(default_factory=dict)
    least_classes: int = 2
    black_box: bool = False


def _auto_pgd(
    name: str,
    loss: str,
    *,
    steps: int = 100,
    restarts: int = 1,
    targets: int | None = None,
    eot_iter: int = 1,
    larger_eps: bool = False,
) -> Attack:
    plan = _apgd.Plan(steps=steps, restarts=restarts, loss=loss, eot_iter=eot_iter, larger_eps=larger_eps)

    def run(job: Job) -> tuple[Tensor, _apgd.Notes]:
        aims = None if targets is None else job.likeliest[:, :targets]
        ours = replace(plan, seed=job.seed, max_rows=job.max_rows)
        search = _apgd.Search(job.victim, job.ball, ours, aims, numbers=job.numbers, report=job.report)
        return search.run(), search.notes

    settings = {
        "loss": loss, "steps": steps, "restarts": restarts, "targets": targets, "eot_iter": eot_iter, "larger_eps": larger_eps,
    }  # fmt: skip
    return Attack(name, run, settings, _apgd.least_classes(loss))


def _boundary(name: str, targets: int | None, *, steps: int = 100, restarts: int = 1) -> Attack:
    def run(job: Job) -> tuple[Tensor, _apgd.Notes]:
        from ._fab import fab

        adv = fab(
            job.module, job.victim.x, job.victim.y, eps=job.ball.eps, norm=job.ball.norm, steps=steps, restarts=restarts,
            targets=targets, clip=job.clip, seed=job.seed, progress=job.report,
        )  # fmt: skip
        return adv, _apgd.Notes()

    return Attack(name, run, {"steps": steps, "restarts": restarts, "targets": targets})


def _random_search(name: str, *, n_queries: int = 5000) -> Attack:
    plan = _square.Plan(n_queries=n_queries)

    def run(job: Job) -> tuple[Tensor, _apgd.Notes]:
        scored, victim = _square.TorchScored(job.victim), job.victim
        search = _square.Search(
            scored, victim.x, victim.y, job.ball, victim.backend, replace(plan, seed=job.seed), job.numbers, job.report
        )
        return search.run(), _apgd.Notes()

    return Attack(name, run, {"n_queries": n_queries}, black_box=True)


def _given(function: Callable[..., Any]) -> Attack:
    """An attack of the user's own."""
    bound = function
    settings: dict[str, Any] = {}
    while isinstance(bound, partial):
        settings = {**{key: repr(value) for key, value in bound.keywords.items()}, **settings}
        bound = bound.func
    name = getattr(bound, "__name__", type(bound).__name__)

    def run(job: Job) -> tuple[Tensor, _apgd.Notes]:
        import torch

        x = job.victim.x
        adv = function(
            job.module,
            x.clone(),
            job.victim.y.clone(),
            eps=job.ball.eps,
            norm=job.ball.norm,
            clip=job.clip,
            seed=job.seed,
        )
        if not isinstance(adv, torch.Tensor):
            raise TypeError(f"attack {name!r} returned {_checks.kind_of(adv)}, expected samples like x")
        if adv.shape != x.shape or adv.dtype != x.dtype or adv.device != x.device:
            raise ValueError(
                f"attack {name!r} returned {adv.dtype} of shape {tuple(adv.shape)} on {adv.device}, expected {x.dtype} of "
                f"shape {tuple(x.shape)} on {x.device} as x"
            )
        adv = adv.detach().clone(memory_format=torch.contiguous_format)
        if bool(adv.isnan().any()):
            raise ValueError(f"attack {name!r} returned NaN, expected samples like x")
        job.ball.project(job.victim.backend, adv, x)  # what lies outside ball or box is projected
        return adv, _apgd.Notes()

    return Attack(name, run, settings)


def _named(*attacks: Attack) -> dict[str, Attack]:
    return {attack.name: attack for attack in attacks}


ATTACKS = _named(
    _auto_pgd("apgd-ce", "ce"),
    _auto_pgd("apgd-dlr", "dlr"),
    _auto_pgd("apgd-margin", "margin"),
    _auto_pgd("apgd-t", "target_dlr", targets=9),
    _boundary("fab", None),
    _boundary("fab-t", 9),
    _random_search("square"),
)
# AutoAttack's budgets in L1, for which Croce and Hein 2021 ("Mind the box") wrote its attacks.
L1_ATTACKS = ATTACKS | _named(
    _auto_pgd("apgd-ce", "ce", restarts=5, larger_eps=True),
    _auto_pgd("apgd-dlr", "dlr", restarts=5, larger_eps=True),
    _auto_pgd("apgd-margin", "margin", restarts=5, larger_eps=True),
    _auto_pgd("apgd-t", "target_dlr", targets=5, larger_eps=True),
)

_STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
ENSEMBLES = {
    "standard": tuple(ATTACKS[name] for name in _STANDARD),
    "rand": (_auto_pgd("apgd-ce", "ce", eot_iter=20), _auto_pgd("apgd-dlr", "dlr", eot_iter=20)),
    "quick": (
        _auto_pgd("apgd-ce", "ce", steps=20),
        _auto_pgd("apgd-t", "target_dlr", steps=20, targets=3),
        _random_search("square", n_queries=200),
    ),
}
L1_ENSEMBLES = ENSEMBLES | {
    "standard": tuple(L1_ATTACKS[name] for name in _STANDARD),
    "quick": (
        _auto_pgd("apgd-ce", "ce", steps=20, larger_eps=True),
        _auto_pgd("apgd-t", "target_dlr", steps=20, targets=3, larger_eps=True),
        _random_search("square", n_queries=200),
    ),
}


def attacks_of(attacks: object, norm: str) -> tuple[Attack, ...]:
    """The attacks that were asked for, in their order, for a norm; TypeError or ValueError if there is no such attack."""
    known, ensembles = (L1_ATTACKS, L1_ENSEMBLES) if norm == "l1" else (ATTACKS, ENSEMBLES)
    if isinstance(attacks, str):
        if attacks in ensembles:
            return ensembles[attacks]
        attacks = [attacks]
    if not isinstance(attacks, Sequence) or not attacks:
        raise TypeError(f"attacks is {attacks!r}, expected the name of an ensemble or a list of names and functions")
    found = []
    for attack in attacks:
        if callable(attack):
            found.append(_given(attack))
        elif attack in known:
            found.append(known[attack])
        else:
            raise ValueError(
                f"attacks names {attack!r}, expected one of {', '.join(map(repr, (*ensembles, *known)))}, or functions"
            )
    names = [attack.name for attack in found]
    if len(set(names)) < len(names):
        found = [
            replace(attack, name=f"{attack.name} #{names[: i + 1].count(attack.name)}")
            if names.count(attack.name) > 1
            else attack
            for i, attack in enumerate(found)
        ]
    return tuple(found)


def rows_of(job: Job, rows: _rows.Rows) -> Job:
    """The job for some of its samples."""
    victim = replace(job.victim, x=_rows.take(job.victim.x, rows), y=_rows.take(job.victim.y, rows))
    return replace(job, victim=victim, likeliest=_rows.take(job.likeliest, rows), numbers=rows)
