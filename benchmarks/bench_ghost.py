"""Ghost kernels on every backend; `aisec-fast bench` measures the same cases in interleaved rounds."""

from rows import rows, run


@rows("ghost")
def test_ghost(benchmark, case, contender) -> None:
    run(benchmark, case, contender)
