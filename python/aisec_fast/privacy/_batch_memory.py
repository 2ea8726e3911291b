"""``BatchMemoryManager``: large logical batches in parts that fit in memory, under Opacus's name."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from .. import _checks
from ._sampling import PrivateLoader
from ._step import step_of


class BatchMemoryManager:
    """Inside the ``with`` block the loader hands out its batches in parts of at most ``max_physical_batch_size`` records.

    Each part has its backward pass and its ``optimizer.step()``; only the step on the last part of a batch books, adds
    noise and updates the parameters. The same as ``make_private(max_physical_batch_size=...)`` for a while.

    Args:
        data_loader: the loader returned by ``make_private``.
        max_physical_batch_size: records in a part, >= 1.
        optimizer: accepted as in Opacus; it must be the one that ``make_private`` has returned with the loader.

    Raises:
        TypeError, ValueError: an argument, with its name.
    """

    def __init__(self, *, data_loader: Any, max_physical_batch_size: int, optimizer: Optimizer | None = None) -> None:
        if not isinstance(data_loader, PrivateLoader):
            raise TypeError(
                f"data_loader must be the loader that make_private has returned, got {type(data_loader).__name__}"
            )
        if optimizer is not None and step_of(optimizer).tally is not data_loader.tally:
            raise ValueError("optimizer is not the one that make_private has returned with this data_loader")
        self.data_loader = data_loader
        self.size = _checks.whole(max_physical_batch_size, "max_physical_batch_size", least=1)
        self._before: int | None = None

    def __enter__(self) -> PrivateLoader:
        parts = self.data_loader.parts
        self._before, parts.max_physical_batch_size = parts.max_physical_batch_size, self.size
        return self.data_loader

    def __exit__(self, *_error: object) -> None:
        self.data_loader.parts.max_physical_batch_size = self._before
