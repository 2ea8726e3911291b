"""Noise kernels on every backend; `aisec-fast bench` measures the same cases in interleaved rounds."""

from rows import rows, run


@rows("noise")
def test_noise(benchmark, case, contender) -> None:
    run(benchmark, case, contender)
