"""Hashing kernels on every backend: the demo's cases as pytest-benchmark rows."""

import pytest

from aisec_fast.cli import throughput

ROWS = [(case, one) for case in throughput.cases() if case.family == "hashing" for one in throughput.contenders(case)]


@pytest.mark.parametrize(("case", "contender"), ROWS, ids=[f"{c.operation}-{o.label}" for c, o in ROWS])
def test_hashing(benchmark, case, contender) -> None:
    benchmark.group = case.operation
    with contender.active():
        benchmark(contender.call)
