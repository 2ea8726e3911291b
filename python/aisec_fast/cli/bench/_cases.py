"""All cases of the harness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import _adversarial, _clipping, _files, _ghost, _hashing, _noise, _training, _transfer, _update
from ._measure import Case


def all_cases(sizes: Sequence[int], threads: Sequence[int]) -> Iterator[Case]:
    """Every family's cases, in the order of the table."""
    for family in (_noise, _clipping, _ghost, _hashing, _files, _adversarial, _update):
        yield from family.cases(list(sizes), list(threads))
    yield from _transfer.cases(list(sizes))
    yield from _training.cases(list(threads))


def demo_cases(*, quick: bool, threads: int) -> Iterator[Case]:
    """The kernels at one size each, for the demo: 4 million values, 64 MiB to hash."""
    scale = 2**4 if quick else 1
    for family, size in ((_noise, 2**22), (_clipping, 2**24), (_hashing, 2**26), (_adversarial, 2**24)):
        for case in family.cases([size // scale], [threads]):
            if case.bytes_per_value and case.operation not in {*_noise.VARIANTS, *_hashing.RECORDS}:
                yield case
