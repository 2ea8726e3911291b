"""Gradient passes recorded once and replayed: what a pass costs on a GPU is mostly the CPU's time to launch its kernels.

A pass (forward, loss, backward) is recorded into a CUDA graph that reads a fixed batch and writes fixed results. Whether the
graph computes what the module computes is not deduced but tried: its first replay must equal a pass that was computed as
always, and ``TorchModel`` compares its logits with the module's now and then on the way. Whatever fails leaves the attack as
it would be without graphs. One attack's graphs share one pool of memory, and end with it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._cuda_graphs import GraphError, Recorder, Replay
from . import _rows, _rows_seen
from ._models import Slope

PAYS_FROM = 6  # passes that are still to come: warm-up, recording and trial cost about three
_MOST_GRAPHS = 6  # of one loss, so that a batch that shrinks at every step is not recorded anew each time
_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-10}  # times the largest value; cuDNN may round to TF32
_COARSE = 0.05  # where passes round to 8 bits

Labels = Tensor  # [B, ...]
Values = Callable[[Tensor, Labels], Tensor]  # of logits and labels: a value for each sample, [B]
Pass = Callable[[Tensor, Values, Labels], Slope]


class _Graph(NamedTuple):
    x: Tensor  # what the graph reads
    y: Tensor
    replay: Replay
    result: Slope  # what it writes, with ``noted``
    taken: list[Any]  # labels that y holds, and of how many rows


class _Key(NamedTuple):
    values: Values
    sample: tuple[int, ...]
    dtype: torch.dtype
    label: tuple[int, ...]


class Graphs:
    """The graphs of one attack.

    Args:
        run: computes a pass as always: of batch, values and labels.
        recorder: records on the batch's device.
        must: raise where a pass cannot be recorded, and record however few passes are left.
        coarse: passes compute in half precision.
        mixes: whether samples depend on each other in the module: then no batch is padded. Asked once, if it matters.
    """

    def __init__(
        self, run: Pass, recorder: Recorder, *, must: bool, mixes: Callable[[Tensor], bool], coarse: bool = False
    ) -> None:
        self._run, self._recorder, self._must, self._mixes = run, recorder, must, mixes
        self._least_tolerance = _COARSE if coarse else 0.0
        self._graphs: dict[_Key, list[_Graph]] = {}
        self._warm, self._rows = False, -1
        self._values: Values | None = None
        self.recorded = 0  # graphs of a loss so far
        self._mixed: bool | None = None
        self.dropped = ""  # why passes are no longer recorded

    @property
    def in_use(self) -> bool:
        """Whether passes come from a graph."""
        return bool(self._graphs)

    def slope(self, adv: Tensor, values: Values, y: Labels, passes_left: int) -> Slope | None:
        """A pass at ``adv``; None if it is to be computed as always. Gradient and logits hold until the next pass.

        Args:
            adv: the batch.
            values: of logits and labels; the same function each time, or there is nothing to replay.
            y: labels; not changed in place.
            passes_left: passes that the attack may still need, this one included.
        """
        if self.dropped:
            return None
        if values != self._values:  # of one loss at a time: an evaluation comes to its next attack
            self._graphs.clear()
            self._values, self.recorded = values, 0
        key, rows, last = _Key(values, tuple(adv.shape[1:]), adv.dtype, tuple(y.shape[1:])), len(adv), self._rows
        self._rows = rows
        pays = self._must or passes_left >= PAYS_FROM
        graph = self._fitting(key, adv)
        if graph is not None and not (pays and len(graph.x) >= 2 * rows and self.recorded < _MOST_GRAPHS):
            return _replayed(graph, adv, y)
        if not self._warm:  # the first pass shows what is wrong with the model, and lets libraries prepare themselves
            self._warm = True
            return None
        if not pays or self.recorded >= _MOST_GRAPHS or (graph is None and self.recorded and rows != last):
            return None
        return self._record(key, adv, y, rows if graph is None else _halved(len(graph.x), rows))

    def _fitting(self, key: _Key, adv: Tensor) -> _Graph | None:
        """The smallest graph that has room for the batch."""
        fitting = [graph for graph in self._graphs.get(key, ()) if len(graph.x) >= len(adv)]
        graph = min(fitting, key=lambda graph: len(graph.x), default=None)
        if graph is None or len(graph.x) == len(adv):
            return graph
        if self._mixed is None:
            self._mixed = self._mixes(graph.x)  # two rows or more
        return None if self._mixed else graph

    def _record(self, key: _Key, adv: Tensor, y: Labels, rows: int) -> Slope | None:
        x, labels = adv.new_empty(rows, *adv.shape[1:]), y.new_empty(rows, *y.shape[1:])
        _fill(x, adv)
        _fill(labels, y)
        before = _draws()
        expected = self._recorder.warmed(lambda: self._run(x, key.values, labels))
        self.recorded += 1
        try:
            if _draws() != before:
                raise GraphError("the model draws random numbers")
            with _rows_seen.paused():
                replay, result = self._recorder.record(lambda: _with_notes(self._run(x, key.values, labels)))
            replay()
            if not (self._same(result.gradient, expected.gradient) and self._same(result.logits, expected.logits)):
                if not bool(expected.gradient.isfinite().all()):
                    return _first(expected, len(adv))  # which the watch will find
                raise GraphError("a replayed pass differs from the model's own: random numbers, or state outside torch")
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:  # torch raises all of these
            self.drop(str(error).partition("\n")[0])
            return _first(expected, len(adv))
        self._graphs.setdefault(key, []).append(_Graph(x, labels, replay, result, [y, len(adv)]))
        return _first(expected, len(adv))

    def _same(self, found: Any, expected: Any) -> bool:
        """Equal; to rounding, if convolutions may give other bits each time."""
        if torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled():
            return torch.equal(found, expected)
        bound = max(_TOLERANCE[expected.dtype], self._least_tolerance) * expected.abs().max()
        return bool((found - expected).abs().max() <= bound)

    def forget(self) -> None:
        """Drop what was recorded; passes may be recorded anew, of a module that is called another way."""
        self._graphs.clear()
        self._warm = False

    def drop(self, why: str) -> None:
        """No graphs any more; RuntimeError if there must be."""
        self.dropped = why
        self.close()
        if self._must:
            raise RuntimeError(f"cuda_graph is True, but the model's passes cannot be replayed: {why}")

    def close(self) -> None:
        """Give all memory back."""
        self._graphs.clear()
        self._recorder.close()


def _halved(size: int, rows: int) -> int:
    """``size`` halved, rounded up, for as long as there is room for ``rows``."""
    while (half := (size + 1) // 2) >= rows and half < size:
        size = half
    return size


def _fill(target: Tensor, values: Tensor) -> None:
    """Rows of ``values``, and the last of them again up to the end."""
    target[: len(values)].copy_(values)
    if len(target) > len(values):
        target[len(values) :].copy_(values[-1:].expand_as(target[len(values) :]))


def _replayed(graph: _Graph, adv: Tensor, y: Labels) -> Slope:
    rows = len(adv)
    labels, before = graph.taken
    if before == len(graph.x) == rows:
        graph.x.copy_(adv)
    else:
        _fill(graph.x, adv)
    if labels is not y:
        _fill(graph.y, y)
    graph.taken[:] = [y, rows]
    _rows_seen.note(len(graph.x), gradient=True)
    graph.replay()
    losses, largest = graph.result.losses.clone()  # type: ignore[union-attr]  # what is kept longer than to the next pass
    return _first(graph.result._replace(losses=losses, largest=largest), rows)


def _with_notes(slope: Slope) -> Slope:
    """With losses and largest magnitudes as one tensor ``[2, B]``, in the place of losses."""
    largest, losses = _rows.largest_magnitudes(slope.gradient), slope.losses
    assert losses is not None
    wide = torch.promote_types(largest.dtype, losses.dtype)
    return slope._replace(losses=torch.stack([losses.to(wide), largest.to(wide)]))


def _first(slope: Slope, rows: int) -> Slope:
    return Slope(*[None if part is None else part[:rows] for part in slope])


def _draws() -> list[Any]:
    """The states of the generators on the host that a model may draw from."""
    states: list[Any] = [random.getstate(), torch.get_rng_state().numpy().tobytes()]
    if "numpy.random" in sys.modules:
        states.append([part.tobytes() if hasattr(part, "tobytes") else part for part in _numpy_state()])
    return states


def _numpy_state() -> tuple[Any, ...]:
    import numpy as np

    state = np.random.get_state(legacy=True)  # noqa: NPY002 - it is only read
    return tuple(state)
