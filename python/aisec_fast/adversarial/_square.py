"""Square Attack: random search by changes inside squares, which needs nothing but the model's answers.

Andriushchenko, Croce, Flammarion and Hein, Square Attack: a query-efficient black-box adversarial attack via random search
(2020), arXiv:1912.00049. Algorithms 1 to 3 are the rules below. In L1 they are those of the authors' AutoAttack:
Croce and Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers (2021), arXiv:2103.01208.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import _checks
from .._arrays import Array
from .._backends import Backend, choose
from . import _arguments, _rows
from ._apgd import NORMS
from ._ball import Ball, make_ball
from ._box import Clip
from ._draws import generator, seed_of
from ._models import Flags, Floats, GivenGradient, GradientModel, fools
from ._progress import Progress, reporting
from ._watch import Watch

# Queries (of 10,000) after which the share of changed pixels is halved: section 5.1 of the paper.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_TINY = 1e-12  # keeps 0 / 0 out of normalisations
_LONGEST = {"float32": 1e18, "float64": 1e150}  # changes whose squares and their sums stay finite


def square(
    model: Any,
    x: Any,
    y: Any,
    *,
    eps: float,
    norm: str = "linf",
    targeted: bool = False,
    n_queries: int = 5000,
    restarts: int = 1,
    p_init: float = 0.8,
    rescale_schedule: bool = False,
    image_shape: tuple[int, ...] | None = None,
    clip: Clip = (0.0, 1.0),
    seed: int | None = None,
    progress: Progress | bool | None = None,
) -> Any:
    """Attack ``model`` at ``x`` by random search, from its logits alone (Square Attack, Andriushchenko et al. 2020).

    The first query is a pattern of vertical stripes (linf) or of small patches (l2, l1) on the ball. Each further query changes
    the pixels of a random square, all to the surface of the ball, and is kept if it raises the margin
    ``max_{j != y} z_j - z_y`` or fools the model. Squares shrink on a fixed schedule. No gradient is used, so masked
    gradients do not stop it.

    Args:
        model: a torch module that gives logits ``[B, classes]`` (held and left as by :func:`pgd`), or a
            :class:`GradientModel` with ``predict``, whose gradient is not called.
        x: samples ``[B, ...]``, float32 or float64, finite, inside ``clip``; arrays as for :func:`pgd`. It is not changed.
        y: labels ``[B]``, integers from 0 to classes - 1: true ones, or the answers that are wanted if ``targeted``.
        eps: radius of the ball ``|x_adv - x| <= eps``, in the units of ``x``; above 0 and finite.
        norm: "linf", "l2" or "l1" (also "Linf", "L2", "L1").
        targeted: make the model answer ``y``: what is kept raises ``z_y - logsumexp(z)``, or reaches ``y``.
        n_queries: how often, at most, the model is asked about a sample in a run, the first pattern included; at least 1. A
            sample that fools the model is not asked about again. Nothing is asked about ``x`` itself.
        restarts: number of runs, at least 1. Runs after the first attack only samples that are not fooled yet.
        p_init: share of the pixels that the first squares cover, above 0 and below 1. It is halved after 10, 50, 200, 500,
            1000, 2000, 4000, 6000 and 8000 queries.
        rescale_schedule: stretch these numbers by n_queries / 10,000. AutoAttack does not.
        image_shape: how a sample is laid out, ``(channels, height, width)``, if its own shape does not say. Default: the last
            two axes are height and width and all before them are channels; one axis is one channel of height 1, where a
            square is a run of neighbouring values (so give the shape of flattened images).
        clip: the box ``(low, high)``, or None for none. Bounds that are no values of the dtype are rounded inward.
        seed: of the search. All samples of a call see the same squares, and row i's first pattern depends on neither the
            batch size nor on what happens to other rows. Default: from the operating system.
        progress: function ``(query, total_queries, fooled)`` called after each query, or True for a bar on standard error.

    Returns:
        ``x_adv``: a new C-contiguous array of the shape, dtype, library and device of ``x``; ``|x_adv - x| <= eps`` in
        float64 and the box exactly, always. A fooled sample's first query that fools the model, else its query of largest
        margin (``targeted``: of largest ``z_y - logsumexp(z)``), of all runs.

    Raises:
        TypeError, ValueError: an argument, with its name; a model that returns something else than logits; NaN logits.
        BackendError: the forced backend is missing or cannot reach ``x``.
    """
    plan = Plan(
        n_queries=_checks.whole(n_queries, "n_queries", least=1),
        restarts=_checks.whole(restarts, "restarts", least=1),
        p_init=_checks.probability(p_init, "p_init"),
        rescale_schedule=_checks.flag(rescale_schedule, "rescale_schedule"),
        image_shape=image_shape,
        seed=seed_of(seed),
    )
    samples = _arguments.samples(x)
    ball = make_ball(norm, eps, clip, samples.dtype, NORMS)
    layout(samples.shape, image_shape)
    aimed = _checks.flag(targeted, "targeted")
    with (
        reporting(progress, "Square") as report,
        _scored(model, samples, x, y, clip, ball, targeted=aimed) as (scored, clean, labels),
    ):
        if not samples.size:
            return _arguments.as_given(_rows.copy(clean), x)
        search = Search(scored, clean, labels, ball, choose([samples]), plan, report=report)
        return _arguments.as_given(search.run(), x)


def layout(shape: tuple[int, ...], image_shape: Any) -> tuple[int, int, int]:
    """Channels, height and width of samples of ``shape`` ``[B, ...]``; TypeError or ValueError if they cannot be so."""
    sample = shape[1:]
    if image_shape is None:
        if len(sample) < 2:
            return 1, 1, math.prod(sample)
        return math.prod(sample[:-2]), sample[-2], sample[-1]
    if not isinstance(image_shape, Sequence) or len(image_shape) != 3:
        raise TypeError(f"image_shape is {image_shape!r}, expected (channels, height, width)")
    channels, height, width = (_checks.whole(size, "image_shape", least=1) for size in image_shape)
    if channels * height * width != math.prod(sample):
        raise ValueError(
            f"image_shape is {tuple(image_shape)!r}, {channels * height * width} values, but a sample of x has shape "
            f"{sample}, {math.prod(sample)} values"
        )
    return channels, height, width


@contextmanager
def _scored(
    model: Any, samples: Array, given: Any, y: Any, clip: Clip, ball: Ball, *, targeted: bool
) -> Iterator[tuple[Scored, Any, Any]]:
    """The model as a search needs it, with samples and labels."""
    if isinstance(model, GradientModel):
        if model.predict is None:
            raise ValueError("model is a GradientModel without predict, expected one with it: the attack needs logits")
        labels = _arguments.labels(y, samples)
        ball.require_inside_box(samples)
        functions = (_Aimed if targeted else GivenGradient)(model, samples, (given, y), targeted=targeted)
        yield functions, samples.value, labels.value
        return
    with _arguments.attacked(model, samples.value, y, clip=clip) as victim:
        yield TorchScored(victim, targeted=targeted), victim.x, victim.y


class Scored(Protocol):
    """A model that gives logits."""

    def predict(self, adv: Any) -> Any:
        """Logits ``[B, classes]``."""

    def losses(self, logits: Any, y: Any) -> Any:
        """What is to rise, ``[B]``: margins, or for a wanted answer its log-probability. NaN where a logit is NaN."""

    def fooled(self, logits: Any, y: Any) -> Flags:
        """Whether each sample is claimed to fool the model, on the host."""

    def confirmed(self, hit: Flags, adv: Any, y: Any) -> Flags:
        """Those of ``hit`` that do fool it."""


class _Aimed(GivenGradient):
    """Functions that are to give a wanted answer."""

    def losses(self, logits: Floats, y: Any) -> Floats:
        """See :class:`Scored`."""
        super().losses(logits, y)  # which checks the labels
        highest = logits.max(axis=1, keepdims=True)
        at_label = np.take_along_axis(logits - highest, _rows.to_host(y)[:, None].astype(np.intp), 1)[:, 0]
        rises: Floats = at_label - np.log(np.exp(logits - highest).sum(axis=1))
        return rises


class TorchScored:
    """A torch module under attack: see :class:`Scored`."""

    def __init__(self, victim: _arguments.Attacked, *, targeted: bool = False) -> None:
        self._victim, self._targeted = victim, targeted

    def predict(self, adv: Any) -> Any:
        """See :class:`Scored`."""
        return self._victim.model.logits(adv)

    def losses(self, logits: Any, y: Any) -> Any:
        """See :class:`Scored`."""
        from ._losses import cross_entropy, margin

        return -cross_entropy(logits, y) if self._targeted else margin(logits, y)

    def fooled(self, logits: Any, y: Any) -> Flags:
        """See :class:`Scored`."""
        flags: Flags = _rows.to_host(fools(logits, y, targeted=self._targeted))
        return flags

    def confirmed(self, hit: Flags, adv: Any, y: Any) -> Flags:
        """See :class:`Scored`."""
        flags = _rows.from_host(hit, adv)
        confirmed: Flags = _rows.to_host(self._victim.model.confirmed(flags, adv, y, targeted=self._targeted))
        return confirmed


@dataclass(frozen=True)
class Plan:
    """What a search does with every sample, checked."""

    n_queries: int = 5000
    restarts: int = 1
    p_init: float = 0.8
    rescale_schedule: bool = False
    image_shape: tuple[int, ...] | None = None
    seed: int = 0

    def share(self, proposal: int) -> float:
        """The share of pixels that a square covers; proposals are counted from 0."""
        if self.rescale_schedule:
            proposal = int(proposal / self.n_queries * 10_000)
        return self.p_init * 0.5 ** sum(proposal > after for after in _HALVINGS)


class Search:
    """All runs on a batch. ``numbers`` tell random draws which sample is which; they default to the rows."""

    def __init__(
        self,
        scored: Scored,
        x: Any,
        y: Any,
        ball: Ball,
        backend: Backend,
        plan: Plan,
        numbers: npt.NDArray[np.intp] | None = None,
        report: Progress = lambda *_: None,
    ) -> None:
        self.scored, self.x, self.y, self.ball, self.backend, self.plan = scored, x, y, ball, backend, plan
        self.numbers = np.arange(len(x)) if numbers is None else numbers
        self.report = report
        self.result = _rows.copy(x)
        self.fooled: Flags = np.zeros(len(x), bool)
        self.highest = np.full(len(x), -np.inf)

    def run(self) -> Any:
        """The result for every sample."""
        proposals = _Stripes if self.ball.norm == "linf" else _Patches
        for restart in range(self.plan.restarts):
            rows = np.flatnonzero(~self.fooled)
            if len(rows):
                clean = self.x if len(rows) == len(self.x) else _rows.take(self.x, rows)
                first = [generator(self.plan.seed, restart, int(number)) for number in self.numbers[rows]]
                moves = proposals(
                    clean, self.ball, self.backend, layout(tuple(self.x.shape), self.plan.image_shape), first
                )
                self._search(restart, rows, moves)
        self._tell(self.plan.restarts, 0)
        return self.result

    def _search(self, restart: int, rows: _rows.Rows, moves: _Moves) -> None:
        """One run; ``rows`` are those that ``moves`` holds."""
        model, watch, draws = self.scored, Watch(), generator(self.plan.seed, restart)
        y = _rows.take(self.y, rows)
        best = np.full(len(rows), -np.inf)
        for query in range(self.plan.n_queries):
            if query:
                moves.propose(self.plan.share(query - 1), draws)
            logits = model.predict(moves.proposal)
            losses = model.losses(logits, y)
            watch.note(query, losses, None)
            watch.look()
            margins = _rows.to_host(losses)
            hit = model.confirmed(model.fooled(logits, y), moves.proposal, y)
            better = (margins > best) | hit
            moves.settle(better)
            best = np.where(better, margins, best)
            if hit.any():
                leaving, left = np.flatnonzero(hit), np.flatnonzero(~hit)
                _rows.put(self.result, rows[leaving], _rows.take(moves.best, leaving))
                self.fooled[rows[leaving]] = True
                rows, best, y = rows[left], best[left], _rows.take(y, left)
                moves.keep(left)
            self._tell(restart, query + 1)
            if not len(rows):
                return
        higher = np.flatnonzero(best > self.highest[rows])
        _rows.put(self.result, rows[higher], _rows.take(moves.best, higher))
        self.highest[rows[higher]] = best[higher]

    def _tell(self, runs_done: int, query: int) -> None:
        total = self.plan.restarts * self.plan.n_queries
        self.report(runs_done * self.plan.n_queries + query, total, int(self.fooled.sum()))


class _Moves:
    """The best points so far and the next ones, ``[B, ...]`` like the samples. Begins with the first proposal."""

    best: Any
    proposal: Any

    def __init__(self, ball: Ball, backend: Backend, shape: tuple[int, int, int]) -> None:
        self.ball, self.backend, self.shape = ball, backend, shape

    def propose(self, share: float, draws: np.random.Generator) -> None:
        """Set the next proposal."""
        raise NotImplementedError

    def settle(self, better: Flags) -> None:
        """Make the proposal the best point where it is better."""
        raise NotImplementedError

    def keep(self, rows: _rows.Rows) -> None:
        """Forget all other rows."""
        raise NotImplementedError

    def image(self, values: Any) -> Any:
        """The same memory as ``[B, channels, height, width]``."""
        return values.reshape(len(values), *self.shape)

    def window(self, share: float, draws: np.random.Generator, *, odd: bool) -> tuple[slice, slice, slice, slice]:
        """A random square of this share of the pixels; of an image too narrow for it, a rectangle as large."""
        _, height, width = self.shape
        area = share * height * width
        side = max(round(math.sqrt(area)), 3 if odd else 1)
        side += odd and side % 2 == 0
        short = min(height, width)
        longer = side if side <= short else max(1, round(area / short))
        rows, columns = (min(side, height), longer) if height <= width else (longer, min(side, width))
        rows, columns = min(rows, height), min(columns, width)
        top, left = int(draws.integers(height - rows + 1)), int(draws.integers(width - columns + 1))
        return slice(None), slice(None), slice(top, top + rows), slice(left, left + columns)


class _Stripes(_Moves):
    """L-infinity, Algorithm 2: every proposed pixel lies on one of the two ends of the ball cut with the box.

    The ends are computed once by the projecting kernel, so a proposal only copies a window, and a refused one copies it back.
    """

    def __init__(
        self, x: Any, ball: Ball, backend: Backend, shape: tuple[int, int, int], first: list[np.random.Generator]
    ) -> None:
        super().__init__(ball, backend, shape)
        ones = x * 0 + 1
        self._ends = []  # lower and upper
        for step in (-2 * ball.eps, 2 * ball.eps):
            end = _rows.copy(x)
            ball.stepper(backend, end, x)(ones, step)
            self._ends.append(end)
        channels, _, width = shape
        signs = np.stack([draws.integers(2, size=(channels, 1, width)) for draws in first]) > 0
        low, high = map(self.image, self._ends)
        stripes = _rows.where(_rows.from_host(signs, x), high, low)
        self.best = self.proposal = stripes.reshape(x.shape)
        self._before: Any = None
        self._window: Any = None

    def propose(self, share: float, draws: np.random.Generator) -> None:
        """See :class:`_Moves`."""
        self._window = window = self.window(share, draws, odd=False)
        signs = _rows.from_host(draws.integers(2, size=(1, self.shape[0], 1, 1)) > 0, self.best)
        pixels = self.image(self.best)
        self._before = _rows.copy(pixels[window])
        low, high = (self.image(end)[window] for end in self._ends)
        pixels[window] = _rows.where(signs, high, low)

    def settle(self, better: Flags) -> None:
        """See :class:`_Moves`."""
        if self._window is not None and not better.all():
            worse = np.flatnonzero(~better)
            window = self.image(self.best)[self._window]  # the same memory
            _rows.put(window, worse, _rows.take(self._before, worse))

    def keep(self, rows: _rows.Rows) -> None:
        """See :class:`_Moves`."""
        self.best = self.proposal = _rows.take(self.best, rows)
        self._ends = [_rows.take(end, rows) for end in self._ends]


class _Patches(_Moves):
    """L2, Algorithm 3: norm is taken out of one window, and out of what the ball leaves, and put into another as a pattern.

    L1: the same with sums of magnitudes for norms and with steeper hills. Each channel of the pattern gets the unused norm, and
    the norm in its windows as often as there are channels: the exact projection cuts that down to the highest values.
    """

    def __init__(
        self, x: Any, ball: Ball, backend: Backend, shape: tuple[int, int, int], first: list[np.random.Generator]
    ) -> None:
        super().__init__(ball, backend, shape)
        channels, height, width = shape
        self._x, self._power = x, 1 if ball.norm == "l1" else 2
        dtype = str(x.dtype).removeprefix("torch.")
        self._eps = min(ball.eps, _LONGEST[dtype])
        tall, wide = max(height // 5, 1), max(width // 5, 1)
        tops = range(max(0, (height - 5 * tall) // 2), height - tall + 1, tall)[:5]
        lefts = range(max(0, (width - 5 * wide) // 2), width - wide + 1, wide)[:5]
        start = np.zeros((len(first), *shape))
        for change, draws in zip(start, first, strict=True):
            for top in tops:
                for left in lefts:
                    signs = 2 * draws.integers(2, size=(channels, 1, 1)) - 1
                    change[:, top : top + tall, left : left + wide] = signs * pattern(tall, wide, draws, self._power)
        if self._power == 1:
            # Patches of norm 1 in a box of width 1, which only a large ball holds as they are.
            box = ball.high - ball.low
            start *= max(
                min(box, _LONGEST[dtype]) if math.isfinite(box) else self._eps, self._eps / abs(start[0]).sum()
            )
        self.best = self.proposal = self._on_sphere(_rows.from_host(start.astype(dtype), x))

    def propose(self, share: float, draws: np.random.Generator) -> None:
        """See :class:`_Moves`."""
        channels, power = self.shape[0], self._power
        into, out_of = self.window(share, draws, odd=True), self.window(share, draws, odd=True)
        change = self.image(self.best - self._x)
        rest = _rows.copy(change)
        rest[into] = 0
        rest[out_of] = 0
        whole, kept = self._sums(change), self._sums(rest)  # of each channel
        unused = (self._eps**power - whole.sum(1)).clip(min=0)
        available = ((whole - kept).clip(min=0) + unused[:, None] / channels) ** (1 / power)
        if power == 1:
            available = available * channels
        old = change[into]
        shape = pattern(old.shape[2], old.shape[3], draws, power)
        signs = 2 * draws.integers(2, size=(1, channels, 1, 1)) - 1
        new = _rows.from_host((signs * shape).astype(str(change.dtype).removeprefix("torch.")), change) + old / (
            _TINY + self._lengths(old)
        )
        rest[into] = new / (_TINY + self._lengths(new)) * available[:, :, None, None]
        self.proposal = self._on_sphere(rest)

    def _on_sphere(self, change: Any) -> Any:
        """x plus the change, projected; before that, in L2, it is made ``eps`` long."""
        if self._power == 2:
            length = self._sums(change).sum(1) ** 0.5
            change = change * (self._eps / (_TINY + length))[:, None, None, None]
        point = change.reshape(self._x.shape) + self._x
        self.ball.project(self.backend, point, self._x)
        return point

    def _sums(self, values: Any) -> Any:
        """Of squares, or magnitudes, in each channel: ``[B, channels]``."""
        return (abs(values) if self._power == 1 else values * values).sum((2, 3))

    def _lengths(self, values: Any) -> Any:
        """Norms of the channels, ``[B, channels, 1, 1]``."""
        return (self._sums(values) ** (1 / self._power))[:, :, None, None]

    def settle(self, better: Flags) -> None:
        """See :class:`_Moves`."""
        if self.best is not self.proposal:
            rows = np.flatnonzero(better)
            _rows.put(self.best, rows, _rows.take(self.proposal, rows))

    def keep(self, rows: _rows.Rows) -> None:
        """See :class:`_Moves`."""
        self.best, self._x = _rows.take(self.best, rows), _rows.take(self._x, rows)
        self.proposal = self.best


def pattern(rows: int, columns: int, draws: np.random.Generator, power: int = 2) -> npt.NDArray[np.float64]:
    """Two hills, one up and one down, side by side along a random axis: eta of Algorithm 3, ``[rows, columns]``.

    Of length 1 in the norm that is the root of a sum of these powers.
    """
    upright = bool(draws.integers(2))  # drawn whatever the shape is
    if rows > 1 and (upright or columns == 1):
        half = rows // 2
        hills = np.concatenate([_hill(half, columns, power), -_hill(rows - half, columns, power)])
    elif columns > 1:
        half = columns // 2
        hills = np.concatenate([_hill(rows, half, power), -_hill(rows, columns - half, power)], axis=1)
    else:
        hills = np.ones((1, 1))
    return _normalised(hills, power)


def _hill(rows: int, columns: int, power: int = 2) -> npt.NDArray[np.float64]:
    """At the distance d from the middle the sum of 1 / (c + 1)^2 (under L1: ^4) over c >= d, of length 1."""
    down, across = abs(np.arange(rows) - rows // 2), abs(np.arange(columns) - columns // 2)
    widest = max(rows // 2, columns // 2) + 1
    tails = np.cumsum(1 / np.arange(widest, 0, -1.0) ** (2 if power == 2 else 4))[::-1]
    return _normalised(tails[np.maximum(down[:, None], across)], power)


def _normalised(values: npt.NDArray[np.float64], power: int) -> npt.NDArray[np.float64]:
    """The values over their norm."""
    normalised: npt.NDArray[np.float64] = values / (np.abs(values) ** power).sum() ** (1 / power)
    return normalised
