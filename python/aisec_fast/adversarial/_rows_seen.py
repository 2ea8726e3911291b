"""How many rows a model is given: counted where modules are called, for who asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class RowsSeen:
    """Rows of all forward passes, and of those among them that a gradient was wanted of."""

    forward: int = 0
    gradient: int = 0


_counters: ContextVar[tuple[RowsSeen, ...]] = ContextVar("rows_seen", default=())


@contextmanager
def counting() -> Iterator[RowsSeen]:
    """A counter of what modules are given inside the block, by this thread."""
    counter = RowsSeen()
    token = _counters.set((*_counters.get(), counter))
    try:
        yield counter
    finally:
        _counters.reset(token)


@contextmanager
def paused() -> Iterator[None]:
    """A block of this thread in which nothing is counted: no rows are computed when modules are called."""
    token = _counters.set(())
    try:
        yield
    finally:
        _counters.reset(token)


def note(rows: int, *, gradient: bool) -> None:
    """A module is given so many rows."""
    for counter in _counters.get():
        counter.forward += rows
        counter.gradient += rows * gradient
