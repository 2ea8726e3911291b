"""Batches for DP-SGD: Poisson sampling, at-most-once passes, and the count of what the loader handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler

from .. import noise
from .._errors import PrivacyError
from .._sources import Source

_RECORDS = 2**20  # decided at a time, under a key of their own


class PoissonBatchSampler(Sampler[list[int]]):
    """Each of ``steps`` batches holds each of ``size`` records independently with probability 1/steps.

    Batches vary in size and may be empty. Draws come from ``source`` by :func:`aisec_fast.noise.poisson_mask` (so the
    probability is at most 2^-320 below 1/steps, never above), and are never repeated: a new pass is a new draw.
    """

    def __init__(self, size: int, steps: int, source: Source) -> None:
        self.size, self.steps, self.source = size, steps, source

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.steps):
            yield self._draw()

    def _draw(self) -> list[int]:
        rate = Fraction(1, self.steps)
        batch: list[int] = []
        for start in range(0, self.size, _RECORDS):
            mask = noise.poisson_mask(min(_RECORDS, self.size - start), rate, source=self.source)
            batch.extend((np.flatnonzero(mask) + start).tolist())
        return batch


class OnceBatchSampler(Sampler[list[int]]):
    """The user's batch sampler, with the check that no record comes twice in one pass."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        seen: set[int] = set()
        for batch in self.batches:
            before = len(seen)
            seen.update(batch)
            if len(seen) != before + len(batch):
                raise PrivacyError(
                    "the data_loader's sampler drew a record twice in one pass, but poisson_sampling=False is "
                    "accounted as one participation a pass; use a sampler without replacement, or poisson_sampling=True"
                )
            yield batch


_LEFT_OUT = (
    "a batch without samples was left out by the loop, while others had their step: the number of steps then tells that it was "
    "empty, and is less than what Poisson sampling is accounted for. Let it have forward, backward and step like all others (a "
    "mean loss of it is NaN, which does no harm; leave it out of what is logged), or optimizer.step() alone"
)


class Part(NamedTuple):
    """What one step works on: a logical batch, or one of the parts into which it was split."""

    first: bool
    last: bool
    from_loader: bool = True
    largest: int | None = None  # records that a part may have; None: batches are not split
    records: int | None = None  # that it has; None: not known, from elsewhere
    number: int = 0  # of the pass, from 1 on; 0: it has not left the loader

    @property
    def whole(self) -> bool:
        return self.first and self.last


class Tally:
    """Knows what a loader handed out, so that each step can be booked for what it was."""

    def __init__(self) -> None:
        self.passes = 0  # iterations of the loader that handed out at least one batch
        self._waiting: deque[Part] = deque()  # of the newest pass, not yet used by a step
        self._steps = 0  # on batches of the newest pass
        self._in_turn = True  # each of its batches had its step before the next one left

    def handed_out(self, part: Part, number: int = 0) -> int:
        """A batch of this pass, or of a new one, left the loader; what is left of an older pass no longer counts. The number of
        its pass."""
        if not number:
            self.passes += 1
            number = self.passes
            self._waiting.clear()
            self._steps, self._in_turn = 0, True
        elif self._waiting and not (part.whole and all(waiting.whole for waiting in self._waiting)):
            raise PrivacyError(
                "the loader was asked for a batch before the last one had its optimizer.step(): with "
                "max_physical_batch_size every batch needs its backward pass and step, also an empty one, and the "
                "loader cannot be read ahead"
            )
        self._in_turn &= not self._waiting
        self._waiting.append(part._replace(number=number))
        return number

    def ended(self) -> None:
        """A pass has come to its end. Raise PrivacyError if its last batches were empty and left out, among others that were not."""
        if self._in_turn and self._steps and self.waiting(0):
            self._waiting.clear()
            raise PrivacyError(_LEFT_OUT)

    def waiting(self, records: int) -> int:
        """How many batches or parts of so many records wait for their step."""
        return sum(part.records == records for part in self._waiting)

    def next(self, samples: int) -> Part:
        """A step on ``samples`` happens: what it works on. Without a waiting batch of the loader it is one from elsewhere.

        A batch of fewer records than that was left out by the loop: the next one is meant. No samples: an empty one, if there is.
        Raises PrivacyError if an empty batch was left out.
        """
        if not self._waiting:
            return Part(first=True, last=True, from_loader=False)
        self._steps += 1
        if not samples and self.waiting(0):
            part = next(part for part in self._waiting if part.records == 0)
            self._waiting.remove(part)
            return part
        part = self._waiting.popleft()
        while self._waiting and part.records is not None and part.records < samples:
            if part.records == 0:
                raise PrivacyError(_LEFT_OUT)
            part = self._waiting.popleft()
        return part


class PartSampler(Sampler[list[int]]):
    """The batches of another batch sampler, split into parts of at most ``max_physical_batch_size`` records."""

    def __init__(self, batches: Sampler[list[int]], max_physical_batch_size: int | None) -> None:
        self.batches, self.max_physical_batch_size = batches, max_physical_batch_size
        self.made: deque[Part] = deque()  # of the newest pass, in the order in which batches come out of the loader

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        self.made = deque()
        return self._parts(self.made)

    def _parts(self, made: deque[Part]) -> Iterator[list[int]]:
        for batch in self.batches:
            size = self.max_physical_batch_size or max(1, len(batch))
            starts = range(0, max(1, len(batch)), size)
            for start in starts:
                records = batch[start : start + size]
                made.append(Part(start == 0, start == starts[-1], True, self.max_physical_batch_size, len(records)))
                yield records


class PrivateLoader(DataLoader[Any]):
    """A DataLoader over ``loader``'s data set with another batch sampler, which tells what it hands out.

    Its length is that of a pass in logical batches, also where they come in parts.
    """

    def __init__(
        self, loader: DataLoader[Any], batches: Sampler[list[int]], max_physical_batch_size: int | None
    ) -> None:
        self.parts = PartSampler(batches, max_physical_batch_size)
        super().__init__(
            loader.dataset,
            batch_sampler=self.parts,
            num_workers=loader.num_workers,
            collate_fn=EmptyCollate(loader.collate_fn, loader.dataset),
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
            persistent_workers=loader.persistent_workers,
        )
        self.tally = Tally()
        self.may_go_on: Callable[[bool], bool] = lambda _new_pass: True  # asked before each logical batch

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        made = self.parts.made
        number = 0  # of the pass, once it has begun
        for batch in batches:
            part = made.popleft()
            if part.first and not self.may_go_on(not number):
                return
            number = self.tally.handed_out(part, number)
            yield batch
        if number:
            self.tally.ended()


class EmptyCollate:
    """The user's collate function, which also makes an empty batch: tensors like the others, of batch size 0."""

    def __init__(self, collate: Callable[[list[Any]], Any], dataset: Any) -> None:
        self.collate, self.dataset = collate, dataset

    def __call__(self, samples: list[Any]) -> Any:
        if samples:
            return self.collate(samples)
        sample = self.dataset[0]
        # Which dimension is the batch? The one that grows when the same sample is collated twice.
        return _emptied(self.collate([sample]), self.collate([sample, sample]))


def _emptied(one: Any, two: Any) -> Any:
    if isinstance(one, torch.Tensor):
        grown = [dim for dim in range(one.dim()) if one.shape[dim] != two.shape[dim]]
        if len(grown) != 1:
            raise TypeError(
                f"cannot make an empty batch of a tensor {tuple(one.shape)}: no dimension counts the samples"
            )
        return one.narrow(grown[0], 0, 0).clone()
    if isinstance(one, Mapping):
        return {key: _emptied(one[key], two[key]) for key in one}
    if isinstance(one, tuple) and hasattr(one, "_fields"):
        return type(one)(*map(_emptied, one, two))
    if isinstance(one, (list, tuple)):
        if len(one) != len(two):  # a list of samples
            return type(one)()
        return type(one)(map(_emptied, one, two))
    raise TypeError(f"cannot make an empty batch of a {type(one).__name__}: the collate function must return tensors")


def poisson_loader(
    loader: DataLoader[Any], source: Source, max_physical_batch_size: int | None = None
) -> PrivateLoader:
    """A loader whose batches are Poisson samples at rate 1/len(loader), over the whole data set of ``loader``."""
    check_loader(loader)
    batches = loader.batch_sampler
    sampler = batches.sampler if type(batches) is BatchSampler else batches
    if type(sampler) not in (SequentialSampler, RandomSampler):
        raise ValueError(
            f"data_loader draws by {type(sampler).__name__}, which poisson_sampling=True would replace by Poisson "
            "sampling of its whole data set; pass a loader with plain shuffling (for a part of the data: "
            "torch.utils.data.Subset)"
        )
    drawn = PoissonBatchSampler(len(loader.dataset), len(loader), source)  # type: ignore[arg-type]
    return PrivateLoader(loader, drawn, max_physical_batch_size)


def plain_loader(loader: DataLoader[Any], max_physical_batch_size: int | None = None) -> PrivateLoader:
    """A loader with the batches of ``loader``, each record at most once a pass."""
    check_loader(loader)
    return PrivateLoader(loader, OnceBatchSampler(loader.batch_sampler), max_physical_batch_size)


def batch_size_of(loader: DataLoader[Any]) -> int:
    """The size of the batches that ``loader`` makes; ValueError if it has no fixed one."""
    size: int | None = getattr(loader.batch_sampler, "batch_size", None)
    if size is None:
        raise ValueError(
            "data_loader's batch_sampler has no batch_size attribute, and steps are divided by the expected batch size"
        )
    return size


def check_loader(loader: Any) -> None:
    """Raise TypeError or ValueError unless ``loader`` can be sampled."""
    if not isinstance(loader, DataLoader):
        raise TypeError(f"data_loader must be a torch DataLoader, got {type(loader).__name__}")
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "data_loader has an IterableDataset, whose records cannot be sampled; use a data set with len and indexing"
        )
    if not hasattr(loader.dataset, "__len__"):
        raise TypeError(
            f"data_loader's data set, a {type(loader.dataset).__name__}, has no len, which tells how many records there are"
        )
    if loader.batch_sampler is None:
        raise ValueError("data_loader has batch_size=None; give it a batch_size")
    if len(loader) == 0:
        raise ValueError("data_loader is empty")
