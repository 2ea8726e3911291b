"""Hashing kernels on every backend; `aisec-fast bench` measures the same cases in interleaved rounds."""

from rows import rows, run


@rows("hashing")
def test_hashing(benchmark, case, contender) -> None:
    run(benchmark, case, contender)
