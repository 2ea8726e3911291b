"""The clipping family: every backend against the reference, bit by bit, and the promises of docs/clipping.md."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import aisec_fast
from aisec_fast import _core, clipping, noise
from tests.conftest import NATIVE, WITHOUT_JIT, Kernels, Remembering, bits, remembered

reference = Remembering("clipping")
SHAPES = [(0, 3), (1, 1), (3, 0), (1, 1023), (2, 1024), (3, 1025), (5, 16), (7, 33)]
SHAPES += [] if WITHOUT_JIT else [(64, 1000), (300, 4097), (3, 70_000)]
DTYPES = ["float32", "float64", "bfloat16"]


def gradients(shape: tuple[int, ...], dtype: str, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Random gradients; bfloat16 as its bits in uint16, which is what the kernels get."""
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def exact(grad: np.ndarray) -> np.ndarray:
    """The values in float64."""
    values = reference.from_bfloat16(grad) if grad.dtype == np.uint16 else grad
    return values.astype(np.float64).reshape(grad.shape[0], int(np.prod(grad.shape[1:])))


@remembered
def true_norms(grad: np.ndarray) -> list[float]:
    return [math.sqrt(math.fsum(v * v for v in row)) for row in exact(grad)]


def sums_like(grads: list[np.ndarray]) -> list[np.ndarray]:
    return [np.full(g.shape[1:], 7, np.float64 if g.dtype == np.float64 else np.float32) for g in grads]


class Native:
    """The native kernels take bfloat16 as a dtype of its own, which numpy lacks: torch carries it."""

    @staticmethod
    def operand(kernels: Kernels, grad: np.ndarray) -> object:
        if grad.dtype != np.uint16 or not kernels.name.startswith("native"):
            return grad
        import torch

        return torch.from_numpy(grad.view(np.int16)).view(torch.bfloat16)


def operands(kernels: Kernels, grads: list[np.ndarray]) -> list[object]:
    return [Native.operand(kernels, grad) for grad in grads]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(kernels: Kernels, shape: tuple[int, int], dtype: str) -> None:
    grad = gradients(shape, dtype)
    norms = np.full(shape[0], 7.0)
    kernels.clipping.norms(operands(kernels, [grad]), norms)
    assert bits(norms) == bits(reference.row_norms([grad]))
    for truth, norm in zip(true_norms(grad), norms, strict=True):  # and the reference's order is close to the truth
        assert abs(norm - truth) <= (77 + shape[1] / 2**14) * 2.0**-54 * truth


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_clip_and_sum(kernels: Kernels, shape: tuple[int, int], dtype: str) -> None:
    grads = [gradients(shape, dtype), gradients((shape[0], 5, 3), dtype, seed=1)]
    outs, norms = sums_like(grads), np.empty(shape[0])
    bound = 0.9 * math.sqrt(shape[1] + 15)
    kernels.clipping.clip_and_sum(operands(kernels, grads), bound, outs, norms)
    sums, expected = reference.clip_and_sum(grads, bound)
    assert bits(norms) == bits(expected)
    assert [bits(out) for out in outs] == [bits(s) for s in sums]


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_sum(kernels: Kernels, dtype: str) -> None:
    grad = gradients((9, 1500 if not WITHOUT_JIT else 40), dtype)
    if dtype != "bfloat16":
        grad[4] = np.nan
    weights = np.linspace(-1, 1, 9)
    assert weights[4] == 0.0  # selects the NaN row away
    outs = sums_like([grad])
    kernels.clipping.weighted_sum(operands(kernels, [grad]), weights, outs)
    assert bits(outs[0]) == bits(reference.weighted_sum(grad, weights).astype(outs[0].dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_lattice_sum(kernels: Kernels, shape: tuple[int, int], dtype: str) -> None:
    grads = [gradients(shape, dtype, scale=0.1), gradients((shape[0], 4), dtype, seed=1)]
    bound, granularity = 1.3, clipping.lattice_granularity(1.3, 0.8)
    limit = math.floor((bound / granularity) ** 2)
    outs, norms = [np.full(g.shape[1:], 7, np.int64) for g in grads], np.empty(shape[0])
    kernels.clipping.lattice_sum(operands(kernels, grads), bound, granularity, limit, outs, norms)
    expected, _ = reference.lattice_sum(grads, bound, granularity)
    assert [out.tolist() for out in outs] == [e.reshape(o.shape).tolist() for e, o in zip(expected, outs, strict=True)]


def test_lattice_limit_drops_a_row(kernels: Kernels) -> None:
    """The integer check decides, not the norm: with a limit one too small the row is gone, all of it."""
    grads = [np.array([[3.0, 4.0], [0.1, 0.1]], np.float32)]
    rows, _ = reference.lattice_rows(grads, 1.0, 2.0**-10)
    largest = int((rows[0].astype(object) ** 2).sum(axis=1).max())
    for limit, expected in ((largest, rows[0].sum(axis=0)), (largest - 1, rows[0][1])):
        out, norms = np.empty(2, np.int64), np.empty(2)
        kernels.clipping.lattice_sum(grads, 1.0, 2.0**-10, limit, [out], norms)
        assert out.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 31, 40])
def test_any_number_of_rows_and_columns(kernels: Kernels, columns: int, dtype: str) -> None:
    """Rows are added several at a time and columns in groups; rows of weight 0 are left out before."""
    for rows in range(1, 11):
        grad = gradients((rows, columns), dtype, seed=rows)
        weights = np.random.default_rng(columns).standard_normal(rows) * (np.arange(rows) % 4 != 2)
        outs = sums_like([grad])
        kernels.clipping.weighted_sum(operands(kernels, [grad]), weights, outs)
        assert bits(outs[0]) == bits(reference.weighted_sum(grad, weights).astype(outs[0].dtype))
        for multiplier in (1.0, 2.0**-15):  # integers whose squares sum to less, and to more, than float64 can count
            spacing = clipping.lattice_granularity(1.5, multiplier)
            limit = math.floor((1.5 / spacing) ** 2)
            out, norms = np.empty(columns, np.int64), np.empty(rows)
            kernels.clipping.lattice_sum(operands(kernels, [grad]), 1.5, spacing, limit, [out], norms)
            assert out.tolist() == reference.lattice_sum([grad], 1.5, spacing)[0][0].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_lists_of_arrays_of_many_sizes(kernels: Kernels, threads, count: int, dtype: str) -> None:
    """Threads share the columns of all arrays, whose bounds lie anywhere; several blocks of rows."""
    threads(count)
    widths = [3, 1, 50, 0, 1] if WITHOUT_JIT else [64, 1, 3000, 1024, 0, 7, 2049, 16, 30_000, 5, 1025, 9000, 1]
    grads = [gradients((19, width), dtype, seed=i, scale=0.1) for i, width in enumerate(widths)]
    if dtype == "float64":
        for grad in grads:  # rows whose norms are computed again, in the midst of others
            grad[7] *= 1e-200
            grad[13] *= 1e200
    outs, norms, integers = sums_like(grads), np.empty(19), [np.empty(width, np.int64) for width in widths]
    bound, spacing = 2.0, clipping.lattice_granularity(2.0, 1.0)
    limit = math.floor((bound / spacing) ** 2)
    kernels.clipping.clip_and_sum(operands(kernels, grads), bound, outs, norms)
    sums, expected = reference.clip_and_sum(grads, bound)
    assert bits(norms) == bits(expected)
    assert [bits(out) for out in outs] == [bits(s) for s in sums]
    again = np.empty(19)
    kernels.clipping.norms(operands(kernels, grads), again)
    assert bits(again) == bits(expected)
    kernels.clipping.lattice_sum(operands(kernels, grads), bound, spacing, limit, integers, norms)
    assert [q.tolist() for q in integers] == [q.tolist() for q in reference.lattice_sum(grads, bound, spacing)[0]]
    assert bits(norms) == bits(expected)


@pytest.mark.parametrize(
    "shape", [(2, 37), pytest.param((13, 40_000), marks=pytest.mark.skipif(WITHOUT_JIT, reason="slow"))]
)
def test_the_limit_is_exact_beyond_2_53(kernels: Kernels, shape: tuple[int, int]) -> None:
    """Squares that float64 cannot count one by one: the check still sees a difference of 1."""
    grads = [gradients(shape, "float32")]
    spacing = 2.0**-30
    rows, _ = reference.lattice_rows(grads, 1.0, spacing)
    lengths = [sum(int(t) ** 2 for t in row) for row in rows[0]]
    assert min(lengths) > 2**59
    for limit in (lengths[0], lengths[0] - 1, lengths[1], lengths[1] - 1):
        out, norms = np.empty(shape[1], np.int64), np.empty(shape[0])
        kernels.clipping.lattice_sum(grads, 1.0, spacing, limit, [out], norms)
        counted = [row for row, length in zip(rows[0], lengths, strict=True) if length <= limit]
        assert out.tolist() == sum(counted, np.zeros(shape[1], np.int64)).tolist()


@pytest.mark.skipif(WITHOUT_JIT, reason="too large for plain Python")
@pytest.mark.parametrize("shape", [(8, 600_000), (5, 1_100_000), (3, 1_760_000)])
def test_wide_rows(kernels: Kernels, shape: tuple[int, int]) -> None:
    """Native kernels add three rows at a time, one, and where a row and its totals exceed 20 MiB none before all are measured."""
    grad = gradients(shape, "float32")
    grad[1, 5] = np.nan
    outs, norms = sums_like([grad]), np.empty(shape[0])
    kernels.clipping.clip_and_sum([grad], 500.0, outs, norms)
    (expected,), lengths = reference.clip_and_sum([grad], 500.0)
    assert bits(norms) == bits(lengths)
    assert bits(outs[0]) == bits(expected)


@pytest.mark.parametrize("kernels", NATIVE, indirect=True)
@pytest.mark.parametrize("bad", [None, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(22, 40_000), (9, 600_000), (7, 750_000)])
def test_blocks_of_a_few_rows(kernels: Kernels, rows: int, width: int, dtype: str, bad: int | None) -> None:
    """Four rows, three or two are added while as many are measured; apart where one is left out, and at the end."""
    width //= 2 if dtype == "float64" else 1
    grads = [gradients((rows, part), dtype, seed) for seed, part in enumerate((width - 3 * 1024 - 7, 3 * 1024 + 7))]
    if bad is not None:
        grads[1][bad, 2000] = 0x7FC0 if dtype == "bfloat16" else np.nan
    arrays, outs, norms = operands(kernels, grads), sums_like(grads), np.empty(rows)
    kernels.clipping.clip_and_sum(arrays, width**0.5, outs, norms)
    expected, lengths = reference.clip_and_sum(grads, width**0.5)
    assert bits(norms) == bits(lengths)
    assert [bits(out) for out in outs] == [bits(out) for out in expected]
    if width > 100_000:
        return
    for multiplier in (1.0, 2.0**-15):  # integers whose squares sum to less, and to more, than float64 can count
        spacing = clipping.lattice_granularity(2.0, multiplier)
        limit, integers = math.floor((2.0 / spacing) ** 2), [np.empty(out.size, np.int64) for out in outs]
        kernels.clipping.lattice_sum(arrays, 2.0, spacing, limit, integers, norms)
        assert [q.tolist() for q in integers] == [q.tolist() for q in reference.lattice_sum(grads, 2.0, spacing)[0]]


@pytest.mark.skipif(WITHOUT_JIT, reason="too large for plain Python")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_rows_of_several_arrays(kernels: Kernels, threads, dtype: str, count: int) -> None:
    """Native kernels add one row while they measure the next, in runs of whole tiles: not over an array's end."""
    threads(count)
    widths = [683 * 1024, 2 * 1024 + 30, 400_000] if dtype != "float64" else [411 * 1024, 2 * 1024 + 30, 200_000]
    grads = [gradients((6, width), dtype, seed) for seed, width in enumerate(widths)]
    grads[1][3, 5] = 0x7FC0 if dtype == "bfloat16" else np.inf
    outs, norms = sums_like(grads), np.empty(6)
    kernels.clipping.clip_and_sum(operands(kernels, grads), 500.0, outs, norms)
    expected, lengths = reference.clip_and_sum(grads, 500.0)
    assert bits(norms) == bits(lengths)
    assert [bits(out) for out in outs] == [bits(out) for out in expected]


@pytest.mark.parametrize("count", [1, 2])
def test_the_limit_counts_all_arrays_and_threads(kernels: Kernels, threads, count: int) -> None:
    """One row of many is too long by 1, over a list and several threads: it alone is gone, wherever it lies."""
    threads(count)
    width = 20 if WITHOUT_JIT else 40_000
    grads = [gradients((11, width), "float32", scale=1e-3), gradients((11, width // 2 + 1), "float32", 1, 1e-3)]
    for grad in grads:
        grad[6] *= 100
    rows, _ = reference.lattice_rows(grads, 1.0, 2.0**-14)
    limit = max(sum(int((t[i] ** 2).sum()) for t in rows) for i in range(11)) - 1
    outs, norms = [np.empty(g.shape[1], np.int64) for g in grads], np.empty(11)
    kernels.clipping.lattice_sum(grads, 1.0, 2.0**-14, limit, outs, norms)
    assert [out.tolist() for out in outs] == [np.delete(t, 6, axis=0).sum(axis=0).tolist() for t in rows]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_bad_row_is_selected_away(kernels: Kernels, dtype: str, poison: float) -> None:
    grad = gradients((5, 40), dtype)
    grad[2, 7] = poison
    out, norms = np.empty(40, dtype), np.empty(5)
    kernels.clipping.clip_and_sum([grad], 1.0, [out], norms)
    rest, good = np.empty(40, dtype), np.empty(4)
    kernels.clipping.clip_and_sum([np.delete(grad, 2, axis=0)], 1.0, [rest], good)
    assert bits(out) == bits(rest)
    assert not np.isfinite(norms[2])
    integers, fewer = np.empty(40, np.int64), np.empty(40, np.int64)
    kernels.clipping.lattice_sum([grad], 1.0, 2.0**-20, 2**40, [integers], norms)
    kernels.clipping.lattice_sum([np.delete(grad, 2, axis=0)], 1.0, 2.0**-20, 2**40, [fewer], good)
    assert integers.tolist() == fewer.tolist()


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-160, 1e160, 1e300])
def test_extreme_float64_norms_are_rescued(kernels: Kernels, scale: float) -> None:
    grad = np.array([[3.0, 4.0, 0.0]]) * scale
    norms = np.empty(1)
    kernels.clipping.norms([grad], norms)
    truth = math.hypot(*grad[0])
    assert norms[0] == pytest.approx(truth, rel=1e-14, abs=5e-324)
    assert bits(norms) == bits(reference.row_norms([grad]))


def test_a_factor_that_lost_its_bits_drops_the_row(kernels: Kernels) -> None:
    """max_norm / norm is subnormal here and rounds up by much; the squares would pass 2^63 and wrap below the limit."""
    grad, bound = np.full((2, 4), 0.7e308), 3.5e-16
    grad[1] = 1.0
    granularity = clipping.lattice_granularity(bound, 2.0**-20)
    limit = math.floor((bound / granularity) ** 2)
    out, norms = np.empty(4, np.int64), np.empty(2)
    kernels.clipping.lattice_sum([grad], bound, granularity, limit, [out], norms)
    rest, one = np.empty(4, np.int64), np.empty(1)
    kernels.clipping.lattice_sum([grad[1:]], bound, granularity, limit, [rest], one)
    assert out.tolist() == rest.tolist()
    total, alone = np.empty(4), np.empty(4)
    kernels.clipping.clip_and_sum([grad], bound, [total], norms)
    kernels.clipping.clip_and_sum([grad[1:]], bound, [alone], one)
    assert bits(total) == bits(alone)


def test_zero_rows(kernels: Kernels) -> None:
    out, norms = np.empty(3, np.float32), np.empty(2)
    kernels.clipping.clip_and_sum([np.zeros((2, 3), np.float32)], 1.0, [out], norms)
    assert out.tolist() == [0, 0, 0]
    assert norms.tolist() == [0, 0]


@pytest.mark.parametrize("view", ["every second row", "rows of a wider array", "reversed rows"])
def test_rows_may_lie_apart(kernels: Kernels, view: str) -> None:
    whole = gradients((12, 50), "float32")
    grad = {"every second row": whole[::2], "rows of a wider array": whole[:, 3:40], "reversed rows": whole[::-1]}[view]
    out, norms = np.empty(grad.shape[1], np.float32), np.empty(grad.shape[0])
    kernels.clipping.clip_and_sum([grad], 2.0, [out], norms)
    expected, other = np.empty_like(out), np.empty_like(norms)
    kernels.clipping.clip_and_sum([grad.copy()], 2.0, [expected], other)
    assert bits(out) == bits(expected)
    assert bits(norms) == bits(other)


def test_bits_do_not_depend_on_threads(kernels: Kernels, threads) -> None:
    grad = gradients((20, 300) if WITHOUT_JIT else (40, 60_001), "float32")
    seen = set()
    for count in (1, 2, 3, 7):
        threads(count)
        out, norms = np.empty(grad.shape[1], np.float32), np.empty(grad.shape[0])
        integers = np.empty(grad.shape[1], np.int64)
        kernels.clipping.clip_and_sum([grad], 10.0, [out], norms)
        kernels.clipping.lattice_sum([grad], 10.0, 2.0**-17, 2**60, [integers], norms)
        seen.add(bits(out) + bits(norms) + bits(integers))
    assert len(seen) == 1


@pytest.mark.parametrize("isa", [name.removeprefix("native-") for name in NATIVE])
def test_threads_that_run_ahead_of_each_other(threads, isa: str) -> None:
    """Hundreds of short steps, in which more threads than processors take units from each other."""
    shape = (700, 20_001)
    grad = gradients(shape, "float32", scale=1e-2) * np.linspace(0.5, 2.0, shape[0], dtype=np.float32)[:, None]
    best = _core.instruction_set()
    _core.use_instruction_set(isa)
    seen = set()
    try:
        for count in (1, 2, 3, 7, 2, 3):
            threads(count)
            out, norms, integers = np.empty(shape[1], np.float32), np.empty(shape[0]), np.empty(shape[1], np.int64)
            _core.clip_and_sum([grad], 1.5, [out], norms)
            seen.add(bits(out) + bits(norms))
            _core.lattice_sum([grad], 1.5, 2.0**-19, int((1.5 * 2**19) ** 2), [integers], norms)
            seen.add(bits(integers) + bits(norms))
    finally:
        _core.use_instruction_set(best)
    assert len(seen) == 2


OF_TORCH = """
import torch
from aisec_fast import _backends, clipping, set_num_threads
torch.set_num_threads(2)
shared = _backends.share_torch_threads()
grads = torch.randn(300, 9000, generator=torch.Generator().manual_seed(1))
sums = []
for threads in (1, 8):
    set_num_threads(threads)
    sums.append(clipping.clip_and_sum(grads, 50.0)[0])
print(torch.equal(*sums), shared)
"""


def test_threads_that_never_come_hold_up_nobody() -> None:
    """Torch has two threads for eight ranges: those of the other six are done by them, in every step."""
    environment = {**os.environ, "AISEC_FAST_BACKEND": "native", "AISEC_FAST_OWN_THREADS": ""}
    done = subprocess.run(
        [sys.executable, "-c", OF_TORCH], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert done.stdout.split() == ["True", "True"]


def test_calls_beside_each_other_keep_their_sums_apart(threads) -> None:
    """Memory is kept from call to call, for one call at a time."""
    from concurrent.futures import ThreadPoolExecutor

    threads(1)
    grads = [gradients((6, width), "float32", seed) for seed, width in enumerate([200_000, 300_000, 250_000])]
    expected = [bits(clipping.clip_and_sum(grad, 5.0)[0]) for grad in grads]

    def many(k: int) -> set[bytes]:
        return {bits(clipping.clip_and_sum(grads[k], 5.0)[0]) for _ in range(20)}

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(many, range(3))) == [{one} for one in expected]


@given(
    st.integers(1, 6),
    st.lists(st.integers(0, 40), min_size=1, max_size=3),
    st.floats(1e-3, 1e3),
    st.sampled_from(["float32", "float64"]),
    st.integers(0, 2**32 - 1),
)
def test_clipped_sum_is_within_its_bound(rows: int, widths: list[int], bound: float, dtype: str, seed: int) -> None:
    grads = [gradients((rows, w), dtype, seed + i, scale=10.0 ** (seed % 5 - 2)) for i, w in enumerate(widths)]
    sums, norms = clipping.clip_and_sum(grads, bound)
    norms = np.asarray(norms, np.float64)
    truth = np.concatenate([exact(g) for g in grads], axis=1)
    lengths = np.array([math.sqrt(math.fsum(v * v for v in row)) for row in truth])
    unit = 2.0**-53 if dtype == "float64" else 2.0**-24
    assert np.all(np.abs(norms - lengths) <= 80 * 2.0**-53 * lengths + unit * lengths)
    scaled = truth * np.minimum(1, bound / np.maximum(lengths, 1e-300))[:, None]
    error = np.abs(np.concatenate([np.ravel(s) for s in sums]) - scaled.sum(axis=0))
    allowed = (rows + 90) * 2.0**-53 * np.abs(scaled).sum(axis=0) + unit * np.abs(scaled.sum(axis=0)) + 1e-45
    assert np.all(error <= allowed)


@given(st.integers(1, 20), st.floats(1e-3, 1e3), st.floats(2.0**-20, 100.0), st.integers(0, 2**32 - 1))
def test_sensitivity_is_exact(width: int, bound: float, multiplier: float, seed: int) -> None:
    """Removing a row moves the integers by at most max_norm / g, in exact arithmetic."""
    from fractions import Fraction

    grad = gradients((4, width), "float32", seed, scale=10.0 ** (seed % 7 - 3))
    granularity = clipping.lattice_granularity(bound, multiplier)
    rows, _ = reference.lattice_rows([grad], bound, granularity)
    whole, _ = reference.lattice_sum([grad], bound, granularity)
    less, _ = reference.lattice_sum([grad[1:]], bound, granularity)
    difference = [int(a) - int(b) for a, b in zip(whole[0], less[0], strict=True)]
    assert difference == rows[0][0].tolist()
    assert Fraction(granularity) ** 2 * sum(d * d for d in difference) <= Fraction(bound) ** 2


def test_private_sum_is_the_clipped_sum_plus_noise(backend: str) -> None:
    """Chi-square of the noise, false-alarm rate 1e-6."""
    width = 500 if WITHOUT_JIT else 20_000
    grad = gradients((30, width), "float32")
    private = clipping.private_sum(grad, 1.0, 2.0, source=noise.SeededSource(1))
    plain = clipping.private_sum(grad, 1.0, 0.0)
    clipped, _ = clipping.clip_and_sum(grad, 1.0)
    assert np.abs(plain - clipped).max() < 30 * (2.0**-20 + 2.0**-29)
    statistic = float(np.sum(((private - plain).astype(np.float64) / 2.0) ** 2))
    low, high = stats.chi2(width).ppf([5e-7, 1 - 5e-7])
    assert low < statistic < high


def test_private_sum_lists_and_dtypes(backend: str) -> None:
    import torch

    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        grads = [torch.randn(6, 3, 2).to(dtype), torch.randn(6, 4).to(dtype)]
        sums = clipping.private_sum(grads, 1.0, 1.0)
        assert [tuple(s.shape) for s in sums] == [(3, 2), (4,)]
        assert all(s.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) for s in sums)
        assert clipping.per_sample_norms(grads).dtype == sums[0].dtype


def test_huge_row_needs_64_bit_addresses() -> None:
    """More than 2^31 columns; untouched zero pages cost no memory."""
    grad = np.zeros((1, 2**31 + 10), np.float32)
    grad[0, -1], grad[0, 2**31 - 1] = 3.0, 4.0
    assert clipping.per_sample_norms(grad).tolist() == [5.0]


def test_the_number_of_threads_may_change_during_a_call(threads: Any) -> None:
    """What a call leaves undone shows in the sums: of ones, and into memory that held something else."""
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            aisec_fast.set_num_threads(8)
            time.sleep(0)
            aisec_fast.set_num_threads(1)
            time.sleep(0)

    threads(1)
    grad = np.ones((1, 300_000), np.float32)
    changing = threading.Thread(target=flip)
    changing.start()
    try:
        for _ in range(600):
            out = np.full(300_000, -7.0, np.float32)
            clipping.clip_and_sum(grad, 1e9, out=out)
            assert (out == 1.0).all()
    finally:
        stop.set()
        changing.join()
