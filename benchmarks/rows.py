"""The harness's cases as pytest-benchmark rows: each result is compared with the reference, then the call is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import aisec_fast
from aisec_fast.cli.bench._cases import all_cases
from aisec_fast.cli.bench._measure import Case, Contender

SIZES = [2**22]


def rows(family: str) -> Callable[[Any], Any]:
    """Parametrize a test with ``case`` and ``contender`` over a family, at one size, on all threads."""
    threads = [aisec_fast.get_num_threads()]
    found: list[tuple[Case, Contender]] = []
    for case in all_cases(SIZES, threads):
        if case.family == family:
            found += [(case, contender) for contender in case.prepare()[0]]
    names = [f"{case.operation}-{contender.label}" for case, contender in found]
    return pytest.mark.parametrize(("case", "contender"), found, ids=names)


def run(benchmark: Any, case: Case, contender: Contender) -> None:
    """Check, then time."""
    benchmark.group = case.operation
    with contender.active():
        contender.check()
        benchmark(contender.call)
