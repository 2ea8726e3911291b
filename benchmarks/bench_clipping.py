"""Clipping kernels on every backend; `aisec-fast bench` measures the same cases in interleaved rounds."""

from rows import rows, run


@rows("clipping")
def test_clipping(benchmark, case, contender) -> None:
    run(benchmark, case, contender)
