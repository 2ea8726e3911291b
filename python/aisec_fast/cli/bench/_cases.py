"""All cases of the harness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import _clipping, _noise, _training
from ._measure import Case


def all_cases(sizes: Sequence[int], threads: Sequence[int]) -> Iterator[Case]:
    """Every family's cases, in the order of the table."""
    for family in (_noise, _clipping):
        yield from family.cases(list(sizes), list(threads))
    yield from _training.cases(list(threads))
