"""Fused noise and optimizer steps on every backend; `aisec-fast bench` measures the same cases in interleaved rounds."""

from rows import rows, run


@rows("update")
def test_update(benchmark, case, contender) -> None:
    run(benchmark, case, contender)
