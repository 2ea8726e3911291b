"""Adversarial kernels on every backend; `aisec-fast bench` measures the same cases in interleaved rounds."""

from rows import rows, run


@rows("adversarial")
def test_adversarial(benchmark, case, contender) -> None:
    run(benchmark, case, contender)
