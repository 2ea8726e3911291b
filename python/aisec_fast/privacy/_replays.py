"""Steps recorded once on a GPU and replayed: what norms and sums cost there is mostly the CPU's time to launch their kernels.

What layers saw and what gradients came back is copied to fixed memory, as many rows as a batch may have; a recorded step
reads it there and leaves the clipped sums. Rows beyond the batch hold samples of earlier ones: their weight is 0, so they
are selected away, as samples are whose gradient is not finite. The size of the batch and the clipping norm are told to each
replay. Noise is never part of a recording: each release draws its own, outside.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import _cuda_graphs
from .._cuda_graphs import GraphError
from ._charges import Rounding
from ._clip import Batch
from ._recording import Record, Recorder, Use, are_ours, is_alone

_PAYS_FROM = 2  # a step of the same shapes that comes this often is recorded
_MOST_GRAPHS = 4  # alive at once: sequences of other lengths are other shapes
_MOST_RECORDINGS = 16
_MOST_TRIES = 10  # steps that other threads kept from being recorded, after which none is tried any more
_MOST_SIZES = 256  # of batches, for which views are kept
_PART_OF_MEMORY = 64  # records are kept where they take no more than this part of the GPU's memory
_TOO_MANY = "batches have too many shapes"
_MUST = "cuda_graph is True, but the step cannot be replayed"
_SPREAD = 4.0  # standard deviations of a Poisson batch's size that have room


class Measured(Protocol):
    """Sums that were made here and now."""

    roundings: dict[int, list[Rounding]]
    products_charge: float

    def take(self) -> list[Tensor]:
        """In the order of the parameters."""


class Done(NamedTuple):
    """The clipped sums of one backward pass, and what their rounding is charged for."""

    totals: list[Tensor]
    roundings: dict[int, list[Rounding]]
    products_charge: float


Measure = Callable[[list[Use], Batch], Measured]


class Replays:
    """The recorded steps of one ``make_private``.

    Args:
        recorder: of the records. Told to leave all measuring to the step, as long as steps are replayed.
        device: of the parameters.
        mean_loss: whether gradients are multiplied by the size of the batch.
        most: the largest batch.
        must: raise RuntimeError where a step cannot be recorded.
    """

    def __init__(self, recorder: Recorder, device: torch.device, *, mean_loss: bool, most: int, must: bool) -> None:
        self._recorder, self._device, self._mean, self._most, self._must = recorder, device, mean_loss, most, must
        self.outcome = "not yet"
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph] = {}
        self._refused: dict[Hashable, str] = {}
        self._recordings = self._kept_off = 0
        self._open: list[_cuda_graphs.Recorder] = []
        weakref.finalize(self, _close, self._open)
        recorder.late = True

    def sums(self, found: list[Use], batch: Batch, measure: Measure) -> Done | None:
        """The clipped sums; None if they are to be made as always. Totals hold until the next call."""
        if not batch.size:
            return None
        done, self.outcome = self._sums(found, batch, measure)
        return done

    def _sums(self, found: list[Use], batch: Batch, measure: Measure) -> tuple[Done | None, str]:
        """The sums, and what there is to say."""
        if _cuda_graphs.workspaces_may_go():
            return None, self._stop("torch.compile makes CUDA graphs, and frees memory that others use")
        records = _tensors(found)
        if records is None:  # after a refusal layers measure as they come
            return None, self.outcome
        if records[0].device != self._device:
            return None, f"off: the module has moved to {records[0].device}"
        key = _key(found, records)
        if key in self._refused:
            return None, self._refused[key]
        graph = self._graphs.get(key)
        if graph is not None and graph.fits(found, records, batch):
            if not graph.is_free():
                return None, "off: somebody holds the last step's gradients"
            graph.fill(records, batch)
            graph.replay()
            return graph.done, "replayed"
        is_full = self._recordings >= _MOST_RECORDINGS or (graph is None and len(self._graphs) >= _MOST_GRAPHS)
        if is_full and not self._must:
            return None, f"off: {_TOO_MANY}"  # not noted for each of them, of which there may be many
        self._seen[key] += 1
        if self._seen[key] < _PAYS_FROM:
            self._seen = self._seen if len(self._seen) < 1000 else Counter()
            return None, "not yet"
        if not self._must and _cuda_graphs.other_threads():
            self._kept_off += 1
            if self._kept_off >= _MOST_TRIES and not self._graphs:
                self._recorder.late = False  # which takes less memory
            return None, "off: other threads may use the device"
        if is_full:
            raise RuntimeError(f"{_MUST}: {_TOO_MANY}")
        return self._record(key, found, records, batch, measure)

    def _record(
        self, key: Hashable, found: list[Use], records: list[Tensor], batch: Batch, measure: Measure
    ) -> tuple[Done | None, str]:
        done: Done | None = None
        graph: _Graph | None = None
        smaller = self._graphs.pop(key, None)
        if smaller is not None:
            self._close(smaller)
        try:
            self._recordings += 1
            room = batch.size + math.ceil(_SPREAD * math.sqrt(batch.size))
            graph = _Graph(found, min(room, self._most), self._mean, _cuda_graphs.recorder(self._device))
            self._open.append(graph.recorder)
            if graph.bytes + sum(one.bytes for one in self._graphs.values()) > _most_bytes(self._device):
                raise GraphError("copies of what layers saw take too much memory")
            graph.fill(records, batch)
            done = graph.warm(measure)
            graph.record(measure, done)
        except BaseException as error:
            if graph is not None:
                self._close(graph)
            if not isinstance(error, (ValueError, TypeError, NotImplementedError, RuntimeError)):  # torch raises these
                raise
            why = str(error).partition("\n")[0]
            if self._must:
                raise RuntimeError(f"{_MUST}: {why}") from error
            self._refused[key] = f"off: {why}"
            self._recorder.late = bool(self._graphs)
            return done, self._refused[key]
        self._graphs[key] = graph
        return graph.done, "replayed"

    def _stop(self, why: str) -> str:
        """Replay nothing any more; what there is to say."""
        while self._graphs:
            self._close(self._graphs.popitem()[1])
        self._recorder.late = False
        if self._must:
            raise RuntimeError(f"{_MUST}: {why}")
        return f"off: {why}"

    def _close(self, graph: _Graph) -> None:
        if graph.recorder in self._open:
            self._open.remove(graph.recorder)
        graph.recorder.close()


class _Graph:
    """A recorded step for records of the same shapes, of up to ``size`` samples."""

    done: Done
    replay: _cuda_graphs.Replay

    def __init__(self, found: list[Use], size: int, mean_loss: bool, recorder: _cuda_graphs.Recorder) -> None:
        _check(found)
        self.size, self.recorder, self._mean = size, recorder, mean_loss
        self._layers, self._settings = [use.layer for use in found], _settings(found)
        self._rows = [[one.new_zeros((size, *one.shape[1:])) for one in _tensors([use]) or ()] for use in found]
        flat = [one for rows in self._rows for one in rows]
        self.bytes = sum(one.numel() * one.element_size() for one in flat)
        kinds = dict.fromkeys(one.dtype for one in flat)
        self._places = [[i for i, one in enumerate(flat) if one.dtype == kind] for kind in kinds]
        self._parts: dict[int, list[list[Tensor]]] = {}  # their first rows, by their number, of each dtype
        device = flat[0].device
        self._numbers = torch.arange(size, dtype=torch.float64, device=device)
        self._told: list[Any] = [None, None]
        self._count, self._max_norm = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))

    def fits(self, found: list[Use], records: list[Tensor], batch: Batch) -> bool:
        """Whether this batch of records of the right shapes is one for it: samples all, not too many, of layers that do
        what they did."""
        are_samples = all(len(one) == batch.size for one in records)
        return batch.size <= self.size and are_samples and _settings(found) == self._settings

    def fill(self, records: list[Tensor], batch: Batch) -> None:
        """Copy the records, and tell size and norm."""
        if (parts := self._parts.get(batch.size)) is None:
            if len(self._parts) == _MOST_SIZES:
                self._parts.clear()
            flat = [one[: batch.size] for rows in self._rows for one in rows]
            parts = self._parts[batch.size] = [[flat[i] for i in places] for places in self._places]
        for places, targets in zip(self._places, parts, strict=True):
            sources = [records[i] for i in places]
            if not all(one.is_contiguous() for one in sources):  # one would keep all from being copied together
                sources = [one.contiguous() for one in sources]
            torch._foreach_copy_(targets, sources)
        for i, (place, number) in enumerate(((self._count, batch.size), (self._max_norm, batch.max_norm))):
            if self._told[i] != number:
                self._told[i] = None  # until it is done: an interrupt may come in between
                place.fill_(number)
                self._told[i] = number

    def warm(self, measure: Measure) -> Done:
        """The sums, computed where they will be recorded."""
        return self._done(self.recorder.warmed, measure)

    def record(self, measure: Measure, expected: Done) -> None:
        """Record, and see that a replay gives the same."""

        def recorded(work: Callable[[], list[Tensor]]) -> list[Tensor]:
            self.replay, totals = self.recorder.record(work)
            return totals

        self.done = self._done(recorded, measure)
        self.replay()
        if not all(map(torch.equal, self.done.totals, expected.totals)):
            raise GraphError("a replayed step differs from what it repeats")

    def _done(self, run: Callable[[Callable[[], list[Tensor]]], list[Tensor]], measure: Measure) -> Done:
        made: list[Measured] = []

        def work() -> list[Tensor]:
            uses = []
            for layer, (activation, gradient, *statistics) in zip(self._layers, self._rows, strict=True):
                record = Record(activation, gradient, tuple(statistics) or None)  # type: ignore[arg-type]
                uses.append(Use(layer, partial(Record.rule, layer=layer), record))
                if not uses[-1].rule.recordable():
                    raise GraphError(f"{type(layer.module).__name__} {layer.name!r} has values to wait for")
            scale = self._count if self._mean else 1.0
            sums = measure(uses, Batch(self.size, scale, self._max_norm, self._numbers < self._count))
            made[:] = [sums]
            return _apart(sums.take())

        totals = run(work)
        return Done(totals, made[0].roundings, made[0].products_charge)

    def is_free(self) -> bool:
        """Whether nobody holds the totals, which became gradients."""
        return all(are_ours(self.done.totals))


def _tensors(found: list[Use]) -> list[Tensor] | None:
    """All records' tensors; None if a layer has no record any more."""
    tensors: list[Tensor] = []
    for use in found:
        if use.record is None:
            return None
        activation, gradient, statistics = use.record
        tensors += (activation, gradient, *statistics) if statistics else (activation, gradient)
    return tensors


def _key(found: list[Use], records: list[Tensor]) -> Hashable:
    """What a recorded step fits: layers, and their records' shapes but for the number of samples."""
    layers = [(id(use.layer), use.record is not None and use.record.statistics is not None) for use in found]
    return (*layers, *[(one.shape[1:], one.dtype) for one in records])


def _settings(found: list[Use]) -> list[Any]:
    """What rules read of the layers beside their parameters, which somebody may change: a recording has it built in."""
    modules = [(use.layer.module, getattr(use.layer.rule, "layer_type", None)) for use in found]
    return [getattr(module, name, None) for module, kind in modules for name in getattr(kind, "__constants__", ())]


def _check(found: list[Use]) -> None:
    """Raise GraphError unless all parameters are used once, by samples in the first dimension."""
    uses = Counter(id(parameter) for use in found for parameter in use.layer.parameters.values())
    if any(count > 1 for count in uses.values()):
        raise GraphError("a parameter is used several times")
    if any(len(one) != use.batch for use in found for one in _tensors([use]) or ()):
        raise GraphError("a record has something else in its first dimension than samples")


def _apart(totals: list[Tensor]) -> list[Tensor]:
    """The same, each in memory of its own."""
    shared = [i for i, one in enumerate(totals) if not is_alone(one)]
    if shared:
        copies = [torch.empty_like(totals[i]) for i in shared]
        torch._foreach_copy_(copies, [totals[i] for i in shared])
        for i, copy in zip(shared, copies, strict=True):
            totals[i] = copy
    return totals


def _most_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory) // _PART_OF_MEMORY


def _close(recorders: list[_cuda_graphs.Recorder]) -> None:
    for recorder in recorders:
        with contextlib.suppress(RuntimeError):
            recorder.close()
    recorders.clear()
