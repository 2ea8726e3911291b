"""The loop of projected gradient descent: runs over a batch, stacked, with samples that leave once they are fooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from .._arrays import Array
from .._backends import Backend
from . import _rows, _start
from ._ball import Ball
from ._models import Attackable, Flags, Floats
from ._progress import Progress
from ._watch import Watch

_CLAIMS_AT_ONCE = 16  # the model is asked about so many successes at a time: few take it nearly as long
_STACKED_VALUES = 1 << 21  # runs are stacked up to a batch of so many values, or to the size of the batch given


@dataclass
class _Batch:
    """Rows that are attacked together: what each belongs to, and its arrays."""

    items: _rows.Rows  # sample + number of samples * radius; rows of one radius lie together
    runs: _rows.Rows
    x: Any
    adv: Any
    y: Any

    def kept(self, rows: _rows.Rows) -> _Batch:
        """These rows, as a batch of its own."""
        arrays = (_rows.take(values, rows) for values in (self.x, self.adv, self.y))
        return _Batch(self.items[rows], self.runs[rows], *arrays)


@dataclass
class _Climb:
    """Rows on their way."""

    steps: int  # taken
    batch: _Batch
    rows: _rows.Rows  # of the outcome
    gradient: Any = None  # where they are, if it is known already

    def kept(self, rows: _rows.Rows) -> _Climb:
        """These rows alone."""
        return _Climb(self.steps, self.batch.kept(rows), self.rows[rows], _rows.take(self.gradient, rows))


@dataclass
class _Outcome:
    """Each row's result, and how high the attacker's loss is there."""

    result: Any
    heights: Floats

    def store(self, rows: _rows.Rows, adv: Any, which: _rows.Rows) -> None:
        """Keep those of a batch that holds these rows."""
        if adv is not self.result:
            _rows.put(self.result, rows[which], _rows.take(adv, which))


class _Claims:
    """Rows that fool by the logits of their gradients' pass, and that the model itself has not confirmed yet."""

    def __init__(self) -> None:
        self.rows = 0
        self._held: list[tuple[_Climb, Flags]] = []

    def add(self, climb: _Climb, hit: Flags) -> None:
        """All rows of items of which these fool."""
        self._held.append((climb, hit))
        self.rows += np.count_nonzero(hit)

    def confirmed(self, model: Attackable) -> list[tuple[_Climb, Flags]]:
        """The same with the model's verdicts, from one call for all. Nothing is held then."""
        held, self._held, self.rows = self._held, [], 0
        if not held:
            return []
        hits = [np.flatnonzero(hit) for _, hit in held]
        adv, y = (
            _rows.concatenate(
                [_rows.take(values(climb.batch), rows) for (climb, _), rows in zip(held, hits, strict=True)]
            )
            for values in (attrgetter("adv"), attrgetter("y"))
        )
        verdicts = np.split(model.settled(adv, y), np.cumsum([len(rows) for rows in hits])[:-1])
        for (_, hit), rows, true in zip(held, hits, verdicts, strict=True):
            hit[rows] = true
        return held


@dataclass
class Runs:
    """All runs of all items, where an item is a sample at one radius.

    The first run goes over all items. Later ones go over those that are not fooled yet, several runs at a time where that
    makes no batch that is larger than the one given (or than ``_STACKED_VALUES``).
    """

    model: Attackable
    balls: Sequence[Ball]  # one for each radius
    step_sizes: Sequence[float]  # negative to descend
    backend: Backend
    samples: Array
    labels: Any  # [B, ...], as the model takes them, or [B, targets, ...] with several targets
    targets: int  # 0 without any
    restarts: int
    starts: _start.RandomStarts | None
    steps: int
    early_stop: bool
    report: Progress
    counted: bool = False  # whether somebody is told how many are fooled in the end

    def __post_init__(self) -> None:
        batch = self.samples.shape[0]
        self._batch, self._runs = batch, self.restarts * max(1, self.targets)
        self._most_rows = max(batch, _STACKED_VALUES * batch // self.samples.size)
        self._highest = np.full(batch * len(self.balls), -np.inf)  # loss of each item's result, infinite once it fools
        self._fooled, self._steps_done = 0, 0.0

    def best(self) -> Any:
        """For each item the result of the first run that fools, else of the one with the highest loss: ``[items, ...]``."""
        result: Any = None
        run, left = 0, np.arange(len(self._highest))
        while run < self._runs and len(left):
            stacked = 1 if run == 0 else max(1, min(self._runs - run, self._most_rows // len(left)))
            for begin in range(0, len(left), self._most_rows):
                some, runs, fooled = left[begin : begin + self._most_rows], range(run, run + stacked), self._fooled
                batch = self._started(some, runs)
                adv, heights = self._run(batch, len(batch.items) / len(left))
                if self.model.misled():
                    self._fooled, batch = fooled, self._started(some, runs)
                    adv, heights = self._run(batch, 0.0)
                if self._runs == 1 and len(batch.items) == len(self._highest):
                    result = adv  # nothing to compare
                    break
                order = np.lexsort((batch.runs, -heights, batch.items))
                if result is None:
                    result = _rows.empty(len(self._highest), self.samples.value)
                items, first = np.unique(batch.items[order], return_index=True)
                winners = order[first]
                better = (heights[winners] > self._highest[items]) | (run == 0)
                _rows.put(result, items[better], _rows.take(adv, winners[better]))
                self._highest[items] = np.maximum(heights[winners], self._highest[items])
            left = np.flatnonzero(self._highest < np.inf)
            run += stacked
            self._steps_done = run * self.steps
        self._steps_done = self._total_steps
        self._tell()
        return result

    def _started(self, items: _rows.Rows, runs: range) -> _Batch:
        """The rows of these items and runs, at their starts."""
        every: list[tuple[_rows.Rows, _rows.Rows, Any, Any, Any]] = []
        for radius, ball in enumerate(self.balls):
            rows = items[items // self._batch == radius] % self._batch
            if not len(rows):
                continue
            whole = len(rows) == self._batch
            x = self.samples.value if whole else _rows.take(self.samples.value, rows)
            y = self.labels if whole else _rows.take(self.labels, rows)
            for run in runs:
                adv = self._start(ball, run // max(1, self.targets), rows, x)
                labels = y[:, run % self.targets] if self.targets else y
                every.append((rows + radius * self._batch, np.full(len(rows), run), x, adv, labels))
        numbers, run_numbers, *arrays = zip(*every, strict=True)
        return _Batch(np.concatenate(numbers), np.concatenate(run_numbers), *map(_rows.concatenate, arrays))

    def _start(self, ball: Ball, restart: int, rows: _rows.Rows, x: Any) -> Any:
        if self.starts is None:
            return _rows.copy(x)
        adv = _start.apply(self.starts.drawn(restart, ball, self.samples.shape, self.samples.dtype, rows), x)
        ball.project(self.backend, adv, x)
        return adv

    def _run(self, batch: _Batch, runs: float) -> tuple[Any, Floats]:
        """Steps from ``batch.adv``, which is overwritten: each row's result and how high the attacker's loss is there.

        These are so many ``runs`` of the items that are left.

        Infinite where the row fools; -infinity where that is not asked, or where another run of its item fooled first.
        """
        rows = np.arange(len(batch.items))
        outcome = _Outcome(batch.adv, np.full(len(rows), -np.inf))
        late = self._climb(_Climb(0, batch, rows), outcome, runs)
        for climb in late:  # what the model did not confirm goes on from where it was
            self._climb(climb, outcome, 0.0, wait=False)
        return outcome.result, outcome.heights

    def _climb(self, climb: _Climb, outcome: _Outcome, runs: float, *, wait: bool = True) -> list[_Climb]:
        """The steps that are left, until an item is fooled. Returns what was stopped and has to go on.

        Successes are confirmed by the model, and where they may ``wait``, many at a time: they leave the batch meanwhile.
        """
        batch, rows, gradient = climb.batch, climb.rows, climb.gradient
        claims, late = _Claims(), []
        watch, step = Watch(), self._stepper(batch)
        for k in range(climb.steps, self.steps):
            if gradient is None:
                slope = self.model.slope(batch.adv, batch.y, with_logits=self.early_stop, passes_left=self.steps - k)
                gradient = slope.gradient
                watch.note(k, slope.losses, gradient, slope.largest)
                if self.early_stop:
                    watch.look()
                    hit = self.model.fooled(slope.logits, batch.y)
                    waits = wait and self.model.may_wait()
                    if not waits:
                        hit = self.model.confirmed(hit, batch.adv, batch.y)
                    if hit.any():
                        gone = np.isin(batch.items, batch.items[hit])
                        leaves, left = np.flatnonzero(gone), np.flatnonzero(~gone)
                        if waits:
                            part = _Climb(k, batch.kept(leaves), rows[leaves], _rows.take(gradient, leaves))
                            claims.add(part, hit[leaves])
                            if claims.rows >= _CLAIMS_AT_ONCE:
                                late += self._settle(claims, outcome)
                        else:
                            self._won(batch, rows, hit, outcome)
                        if not len(left):
                            return late + self._settle(claims, outcome)
                        rows, batch, gradient = rows[left], batch.kept(left), _rows.take(gradient, left)
                        step = self._stepper(batch)
            step(gradient)
            gradient = None
            self._steps_done += runs
            self._tell()
        watch.look()
        if self._runs > 1 or (self.early_stop and self.counted):
            logits = self.model.predict(batch.adv)
            losses = self.model.losses(logits, batch.y)
            watch.note(self.steps, losses, None)
            watch.look()
            hit = self.model.fooled(logits, batch.y)
            climbed = np.minimum(_rows.to_host(losses) * np.sign(self.step_sizes[0]), np.finfo(float).max)
            outcome.heights[rows] = np.where(hit, np.inf, climbed)
            self._fooled += len(np.unique(batch.items[hit]))
        outcome.store(rows, batch.adv, np.arange(len(rows)))
        return late + self._settle(claims, outcome)

    def _won(self, batch: _Batch, rows: _rows.Rows, hit: Flags, outcome: _Outcome) -> None:
        outcome.store(rows, batch.adv, np.flatnonzero(hit))
        outcome.heights[rows[hit]] = np.inf
        self._fooled += len(np.unique(batch.items[hit]))

    def _settle(self, claims: _Claims, outcome: _Outcome) -> list[_Climb]:
        """Ask the model about all claims, which are none then. Returns what it did not confirm."""
        late = []
        for climb, hit in claims.confirmed(self.model):
            self._won(climb.batch, climb.rows, hit, outcome)
            left = np.flatnonzero(~np.isin(climb.batch.items, climb.batch.items[hit]))
            if len(left):
                late.append(climb.kept(left))
        return late

    def _stepper(self, batch: _Batch) -> Callable[[Any], None]:
        """The fused step of each radius on its rows."""
        bounds = np.searchsorted(batch.items // self._batch, np.arange(len(self.balls) + 1))
        steps = [
            (slice(begin, end), ball.stepper(self.backend, batch.adv[begin:end], batch.x[begin:end]), step_size)
            for ball, step_size, begin, end in zip(self.balls, self.step_sizes, bounds, bounds[1:], strict=False)
            if begin < end
        ]

        def step(gradient: Any) -> None:
            for rows, move, step_size in steps:
                move(gradient if len(steps) == 1 else gradient[rows], step_size)

        return step

    @property
    def _needs_verdict(self) -> bool:
        return self.early_stop or self._runs > 1

    @property
    def _total_steps(self) -> int:
        return self._runs * self.steps

    def _tell(self) -> None:
        self.report(round(self._steps_done), self._total_steps, self._fooled if self._needs_verdict else None)
