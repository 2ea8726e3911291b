"""The CUDA kernels, their launches and their scratch memory, run on the CPU.

test_<family>.py hold them to the contract, as one more backend. Here: sizes at which every loop over the
grid goes around, all orders of the threads, AddressSanitizer, and whether these tests would notice a fault at all.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from aisec_fast import _core
from aisec_fast._reference import clipping as reference
from tests.conftest import bits
from tests.cuda_on_host import adversarial, build, clipping, ghost, hashing, noise, update

pytestmark = pytest.mark.skipif(not build.available(), reason=f"no C++ compiler: {build.COMPILER} is not on the path")

KEY = bytes(range(7, 39))
ORDERS = [0, 1, 2]  # threads take turns forwards, backwards, shuffled
MANY = 70_001  # samples: more than one sweep of the stand-in's grid, which is 32 blocks of 256 threads


def gradients(rows: int, columns: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(dtype)


# ------------------------------------------------------------------------------------------------ against the CPU kernels


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_noise_of_long_arrays(law: str, dtype: str, order: int) -> None:
    x = (np.random.default_rng(1).standard_normal(MANY) * 50).astype(dtype)
    out, expected = np.empty_like(x), np.empty_like(x)
    getattr(_core, f"add_{law}")(x, expected, 1.7, 2.0**-20, KEY)
    getattr(noise, f"add_{law}")(x, out, 1.7, 2.0**-20, KEY, order=order)
    assert bits(out) == bits(expected)
    getattr(noise, f"add_{law}")(x, x, 1.7, 2.0**-20, KEY, order=order)  # in place
    assert bits(x) == bits(expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("granularity", [2.0**-130, 2.0**-20, 1.0, 2.0**100])
def test_noise_on_values_of_any_size(granularity: float, dtype: str) -> None:
    """Beyond 2^51 granularities, and with granularities that no float is, values take the careful way."""
    steps = [size * sign for k in range(45, 66) for size in (2.0**k - 0.5, 2.0**k, 2.0**k + 1.5) for sign in (1, -1)]
    with np.errstate(over="ignore", under="ignore"):
        x = (np.array([*steps, np.nan, np.inf, -np.inf, -0.0, 0.5, 2.5]) * granularity).astype(dtype)
    out, expected = np.empty_like(x), np.empty_like(x)
    for law in ("gaussian", "laplace"):
        getattr(_core, f"add_{law}")(x, expected, 300.0 * granularity, granularity, KEY)
        getattr(noise, f"add_{law}")(x, out, 300.0 * granularity, granularity, KEY)
        assert bits(out) == bits(expected)


@pytest.mark.parametrize("order", ORDERS)
def test_words_and_first_unfit_of_long_arrays(order: int) -> None:
    out, expected = np.empty((2, MANY), np.uint64)
    _core.random_words(expected, KEY, 0)
    noise.random_words(out, KEY, 0, order=order)
    assert bits(out) == bits(expected)
    x = np.zeros(MANY, np.float32)
    assert noise.first_unfit(x, 1.0, order=order) == -1
    x[[40_000, 9_000, 300]] = np.nan, np.inf, 2.0**63
    assert noise.first_unfit(x, 1.0, order=order) == 300


@pytest.mark.parametrize("order", [*ORDERS, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "widths"),
    [(70, [5_400]), (33, [12_288]), (16, [30_000, 3, 63, 7_168, 0, 64]), (17, [72_000])],  # 1, 2, 7 and 12 blocks each
    ids=["1", "2", "7", "12"],
)
def test_wide_rows_are_read_once(rows: int, widths: list[int], dtype: str, order: int) -> None:
    grads = [gradients(rows, width) for width in widths]
    grads[0][3, 5], grads[0][9, 700] = np.nan, np.inf
    grads[0][1] = 0
    grads[0][2] *= 1e-41  # subnormal floats
    if dtype == "bfloat16":
        grads = [(g.view(np.uint32) >> 16).astype(np.uint16) for g in grads]
    outs, norms = [np.empty(width, np.float32) for width in widths], np.empty(rows)
    with clipping.processors(7) as launches:
        clipping.clip_and_sum(grads, 90.0, outs, norms, order=order)
        assert launches() == 1
    expected, lengths = reference.clip_and_sum(grads, 90.0)
    np.testing.assert_array_equal(norms, lengths)  # NaN has many bits
    assert [bits(out) for out in outs] == [bits(e) for e in expected]


@pytest.mark.parametrize(
    ("rows", "columns", "dtype", "processors", "most_blocks", "architecture"),
    [
        (15, 6_000, "float32", 7, 99, 90),  # too few rows to pay
        (16, 4_000, "float32", 7, 99, 90),  # too few columns to keep processors busy
        (16, 80_000, "float32", 7, 99, 90),  # no room
        (16, 6_002, "float32", 7, 99, 90),  # rows that do not begin at multiples of 16 bytes
        (16, 6_000, "float64", 7, 99, 90),
        (16, 6_000, "float32", 1, 99, 90),
        (16, 6_000, "float32", 7, 6, 90),  # a GPU that does not hold all blocks
        (16, 6_000, "float32", 7, 99, 80),  # no code for what it takes
    ],
)
def test_other_rows_are_read_twice(
    rows: int, columns: int, dtype: str, processors: int, most_blocks: int, architecture: int
) -> None:
    grads = [gradients(rows, columns, dtype)]
    outs, norms = [np.empty(columns, dtype)], np.empty(rows)
    with clipping.processors(processors, most_blocks, architecture) as launches:
        clipping.clip_and_sum(grads, 50.0, outs, norms)
        assert launches() == 0
    expected, lengths = reference.clip_and_sum(grads, 50.0)
    assert bits(norms) == bits(lengths)
    assert bits(outs[0]) == bits(expected[0])


# More rows than blocks; more block sums of a row than a team fetches at once; more columns than threads.
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(40, 1100), (2, 600_000)])
def test_clipping_of_large_arrays(shape: tuple[int, int], dtype: str, order: int) -> None:
    grads = [gradients(*shape, dtype), gradients(shape[0], 5, dtype)]
    if dtype == "float64":
        grads[0][0] *= 1e-200
        grads[1][0] *= 1e-200
        grads[0][1] *= 1e200
    norms, expected_norms = np.empty((2, shape[0]))
    outs, expected = ([np.empty(g.shape[1], dtype) for g in grads] for _ in range(2))
    bound = float(np.sqrt(shape[1]))
    _core.clip_and_sum(grads, bound, expected, expected_norms)
    clipping.clip_and_sum(grads, bound, outs, norms, order=order)
    assert bits(norms) == bits(expected_norms)
    assert [bits(out) for out in outs] == [bits(e) for e in expected]

    grads = [np.ascontiguousarray(g[:, :20_000]) for g in grads]  # shuffles are slow on a CPU
    outs, expected = ([np.empty(g.shape[1], np.int64) for g in grads] for _ in range(2))
    for limit in (2**40, 2**40 * 15 // 16, 0, -1):  # none, some, nearly all and all rows fail the check on integers
        _core.lattice_sum(grads, bound, bound * 2.0**-20, limit, expected, expected_norms)
        clipping.lattice_sum(grads, bound, bound * 2.0**-20, limit, outs, norms, order=order)
        assert [bits(out) for out in outs] == [bits(e) for e in expected]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(40, 1100), (2, 600_000)])
def test_adversarial_steps_of_large_arrays(shape: tuple[int, int], dtype: str, order: int) -> None:
    adv, x, gradient = (values * gradients(*shape, dtype) for values in (0.11, 0.1, 1.0))
    adv, x = adv.astype(dtype), x.clip(-0.25, 0.25).astype(dtype)  # the box, as callers promise
    gradient[0] *= 1e-30 if dtype == "float32" else 1e-200
    gradient[1, 7], adv[1, 8] = np.nan, np.inf
    columns = min(shape[1], 33_000)  # of the steps with a CUDA block a row, which are slow on a CPU
    for step, length in (
        ("linf_step", 1.0),
        ("l2_step", float(np.sqrt(shape[1]))),
        ("l1_step", 99.0),
        ("l0_step", 999.0),
    ):
        if step in ("l1_step", "l0_step"):
            adv, x, gradient = (np.ascontiguousarray(values[:, :columns]) for values in (adv, x, gradient))
        out, expected = np.empty_like(x), np.empty_like(x)
        arguments = (adv, x, gradient, 0.003 * length, 0.01 * length, -0.25, 0.25)
        getattr(_core, step)(*arguments, expected)
        getattr(adversarial, step)(*arguments, out, order=order)
        assert bits(out) == bits(expected)


@pytest.mark.parametrize("sigma", [0.0, 1.7])
@pytest.mark.parametrize("count", [31, 32, 33, 70])
def test_steps_of_many_arrays(count: int, sigma: float) -> None:
    """A launch takes 32 of those that have values."""

    def lists() -> list[list[np.ndarray]]:
        rng = np.random.default_rng(7)
        return [[np.abs(rng.standard_normal(i % 7)).astype("f4") for i in range(count)] for _ in range(5)]

    arrays, expected = lists(), lists()
    release = (64.0, sigma, 2.0**-20, [bytes([i]) * 32 for i in range(count)] if sigma else [], "chacha")
    numbers = (0.9, 0.99, 0.1, 0.5, 1e-8, 0.0, 0.99, False)
    _core.adam_step(*expected, *release, *numbers)
    update.adam_step(*arrays, *release, *numbers)
    assert [bits(a) for row in arrays for a in row] == [bits(a) for row in expected for a in row]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sigma", [0.0, 1.7])
def test_steps_of_long_arrays(sigma: float, order: int) -> None:
    def lists() -> list[list[np.ndarray]]:
        rng = np.random.default_rng(6)
        return [[np.abs(rng.standard_normal(size)).astype("f4") for size in (MANY, 5)] for _ in range(5)]

    release = (64.0, sigma, 2.0**-20, [KEY, KEY[::-1]] if sigma else [], "chacha")
    for step, used, numbers in (
        ("noisy_mean", 1, ()),
        ("sgd_step", 3, (0.1, 0.9, 0.1, 0.01, False, True, False)),
        ("adam_step", 5, (0.9, 0.99, 0.1, 0.5, 1e-8, 0.0, 0.99, False)),
    ):
        arrays, expected = lists(), lists()
        getattr(_core, step)(*expected[:used], *release, *numbers)
        getattr(update, step)(*arrays[:used], *release, *numbers, order=order)
        assert [bits(a) for row in arrays for a in row] == [bits(a) for row in expected for a in row]


def test_rows_more_than_2_to_31_values_apart() -> None:
    stride = 2**31 + 5
    reserve_nothing = 0x4000  # Linux's MAP_NORESERVE: 4 GiB of addresses, of which two pages are touched
    memory = mmap.mmap(-1, 2 * (stride + 3), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve_nothing)
    grad = np.lib.stride_tricks.as_strided(np.frombuffer(memory, np.uint16), (2, 3), (2 * stride, 2))
    grad[:] = [[0x3F80, 0x4000, 0x4040], [0x3F00, 0, 0xC000]]  # 1, 2, 3 and 0.5, 0, -2 in bfloat16
    norms, out = np.empty(2), np.empty(3, np.float32)
    clipping.norms([grad], norms)
    clipping.weighted_sum([grad], np.array([1.0, 2.0]), [out])
    assert norms.tolist() == [14**0.5, 4.25**0.5]
    assert out.tolist() == [2.0, 2.0, -1.0]


def blake3_state() -> np.ndarray:
    """Of a keyed hash: all the tree's nodes need the key."""
    state = np.zeros(700, np.uint32)
    state[:8], state[8] = np.frombuffer(KEY, np.uint32), 16
    return state


CHUNK = 1024
MANY_CHUNKS = 8_400  # more than the stand-in's grid has threads


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cuts", [[], [1], [CHUNK], [3 * CHUNK - 2], [7 * CHUNK + 1, 4_000 * CHUNK + 3]])
def test_blake3_of_long_arrays(cuts: list[int], order: int) -> None:
    memory = np.random.default_rng(2).integers(0, 256, MANY_CHUNKS * CHUNK + 77, dtype=np.uint8)
    data = memory[len(cuts) :]  # aligned to words, and not
    expected, state = blake3_state(), blake3_state()
    _core.blake3_update(expected, data, 0)
    for begin, end in zip([0, *cuts], [*cuts, data.size], strict=True):
        hashing.blake3_update(state, data[begin:end], 0, order=order)
    assert bits(state) == bits(expected)
    out, expected_out = np.empty((2, 500), np.uint8)
    hashing.blake3_output(state, out, 2**36 - 100)
    _core.blake3_output(expected, expected_out, 2**36 - 100)
    assert bits(out) == bits(expected_out)


@pytest.mark.parametrize("order", ORDERS)
def test_blake3_of_every_small_tree(order: int) -> None:
    """Any number of chunks after any number of them: which nodes find their siblings, and which have to wait."""
    data = np.random.default_rng(3).integers(0, 256, 64 * CHUNK, dtype=np.uint8)
    for before in range(18):
        for after in range(0 if order == 0 else 14, 18):
            size = (before + after) * CHUNK + 1
            expected, state = blake3_state(), blake3_state()
            _core.blake3_update(expected, data[:size], 1)
            _core.blake3_update(state, data[: before * CHUNK + 1], 1)
            hashing.blake3_update(state, data[before * CHUNK + 1 : size], 0, order=order)
            assert bits(state) == bits(expected), (before, after)


def test_blake3_of_more_than_one_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launches with slices of 2^4 chunks in place of 2^20: what a slice leaves waiting meets the next one's."""
    sources = mutant(tmp_path, "hashing.cu", "std::uint64_t{1} << 20", "std::uint64_t{1} << 4")
    library = build.library("hashing", sources)
    monkeypatch.setattr(hashing, "library", lambda: library)
    data = np.random.default_rng(4).integers(0, 256, 200 * CHUNK, dtype=np.uint8)
    expected = blake3_state()
    _core.blake3_update(expected, data, 1)
    for first in (0, 1, 5 * CHUNK, 29 * CHUNK + 11):
        state = blake3_state()
        hashing.blake3_update(state, data[:first], 0)
        hashing.blake3_update(state, data[first:], 0)
        assert bits(state) == bits(expected)


# ------------------------------------------------------------------------------------------------ under the sanitizers


@pytest.mark.parametrize("family", ["noise", "clipping", "hashing", "adversarial", "update", "ghost"])
def test_exact_buffers_under_the_sanitizers(family: str) -> None:
    run = build.run_check(build.sanitized_check(family))
    assert (run.returncode, run.stdout) == (0, f"{family}: every result as expected\n"), run.stderr


# ------------------------------------------------------------------------------------------------ would a fault be seen?


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        (
            "barrier_in_a_branch",
            "deadlock in block 0:\n  40 threads: waits in __syncthreads at .*\n  24 threads: returned",
        ),
        (
            "two_barriers",
            "divergent barrier in block 0:\n  32 threads: .*__syncthreads.*\n  32 threads: .*__syncthreads",
        ),
        ("lone_shuffle", "deadlock in block 0:\n  16 threads: waits in a shuffle at .*\n  48 threads: returned"),
        ("shuffle_from_outside", "a shuffle reads from a thread outside its mask"),
        ("nobody_publishes", "deadlock in block .:\n(.*\n)?.*64 threads: looks again at .*"),
        ("nothing_announced", "deadlock in block 0:\n  64 threads: looks again at .*"),
        ("other_bytes", "other bytes have come than were announced in block 0:.*"),
        ("not_in_sixteens", "a copy that is not in sixteens in block 0:.*"),
        ("none_together", None),
        ("none", None),
    ],
)
def test_faults_of_kernels_are_reported(fault: str, report: str | None) -> None:
    library = build.library("shim_faults")
    run = library[f"fault_{fault}"]
    run.restype = ctypes.c_char_p
    message = run()
    if report is None:
        assert message is None
    else:
        assert re.match(report, message.decode()), message.decode()


def mutant(folder: Path, file: str, text: str, replacement: str, occurrence: int = 0) -> Path:
    """Return a copy of src/cuda in which one occurrence of a text in one file is replaced."""
    copy = folder / "cuda"
    shutil.copytree(build.CUDA, copy)
    parts = (copy / file).read_text().split(text)
    assert len(parts) > occurrence + 1, f"{file} no longer has {text!r}"
    before, after = text.join(parts[: occurrence + 1]), text.join(parts[occurrence + 1 :])
    (copy / file).write_text(before + replacement + after)
    return copy


def once_calls(order: int) -> bytes:
    """Rows that are read once, of blocks of columns that are not full; or what a kernel that hangs is told."""
    grads, norms = [gradients(70, 5_400), gradients(70, 3)], np.empty(70)
    outs = [np.empty(g.shape[1], np.float32) for g in grads]
    with clipping.processors(7) as launches:
        try:
            clipping.clip_and_sum(grads, 50.0, outs, norms, order=order)
        except RuntimeError as error:
            return str(error).encode()
        assert launches() == 1
    return bits(norms) + b"".join(map(bits, outs))


def noise_calls(order: int) -> bytes:
    x = np.linspace(-9, 9, MANY, dtype=np.float32)
    outs = np.empty((2, MANY), np.float32)
    noise.add_gaussian(x, outs[0], 1.7, 2.0**-20, KEY, order=order)
    noise.add_float_laplace(x, outs[1], 1.7, KEY, order=order)
    return bits(outs)


def clipping_calls(order: int) -> bytes:
    """Sums, and integers of rows that are all a little too long for the limit: with a square less one would count."""
    grads, norms, out, integers = gradients(200, 70), np.empty(200), np.empty(70, np.float32), np.empty(70, np.int64)
    clipping.clip_and_sum([grads], 3.0, [out], norms, order=order)
    rows = np.trunc(grads * (np.minimum(1.0, 3.0 / norms) * (1 - 2.0**-30) / 2.0**-18)[:, None])
    clipping.lattice_sum([grads], 3.0, 2.0**-18, int((rows**2).sum(1).min()) - 1, [integers], norms, order=order)
    return bits(out) + bits(integers)


def hashing_calls(order: int) -> bytes:
    state = blake3_state()
    hashing.blake3_update(state, np.arange(700 * CHUNK).astype(np.uint8), 0, order=order)
    return bits(state)


@pytest.mark.parametrize(
    ("module", "file", "results"),
    [
        (noise, "noise_body.hpp", noise_calls),
        (clipping, "clipping_body.hpp", clipping_calls),
        (clipping, "clipping_once_body.hpp", once_calls),
        (hashing, "hashing_body.hpp", hashing_calls),
    ],
    ids=["noise", "clipping", "clipping_once", "hashing"],
)
def test_every_barrier_around_shared_memory_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, file: str, results: Callable[[int], bytes]
) -> None:
    true = results(0)
    assert all(results(order) == true for order in ORDERS)
    barriers = (build.CUDA / file).read_text().count("__syncthreads();")
    assert barriers > 0
    for barrier in range(barriers):
        (tmp_path / str(barrier)).mkdir()
        sources = mutant(tmp_path / str(barrier), file, "__syncthreads();", "", barrier)
        library = build.library(module.__name__.rpartition(".")[2], sources)
        monkeypatch.setattr(module, "library", lambda library=library: library)
        assert any(results(order) != true for order in ORDERS), f"barrier {barrier} could go"


def test_every_barrier_of_the_ghost_sums_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More samples than blocks, so that a block meets its own sums again."""
    tokens = np.random.default_rng(1).standard_normal((40, 9, 3)).astype(np.float32)
    true = np.empty((2, 40))
    _core.gram_squares(tokens, tokens, *true)

    def results(order: int) -> np.ndarray:
        found = np.empty((2, 40))
        ghost.gram_squares(tokens, tokens, *found, order=order)
        return found

    for order in ORDERS:
        np.testing.assert_allclose(results(order), true, rtol=1e-5)
        assert bits(results(order)) == bits(results(0))
    barriers = (build.CUDA / "ghost_body.hpp").read_text().count("__syncthreads();")
    assert barriers > 0
    for barrier in range(barriers):
        (tmp_path / str(barrier)).mkdir()
        library = build.library(
            "ghost", mutant(tmp_path / str(barrier), "ghost_body.hpp", "__syncthreads();", "", barrier)
        )
        monkeypatch.setattr(ghost, "library", lambda library=library: library)
        assert any(not np.allclose(results(order), true, rtol=1e-5) for order in ORDERS), f"barrier {barrier} could go"


@pytest.mark.parametrize(
    ("family", "file", "text", "replacement"),
    [
        ("noise", "noise_body.hpp", "= load(first, rest - lane);", "= load(first, 128);"),
        ("hashing", "hashing_body.hpp", "chunk < count;", "chunk <= count;"),
        ("clipping", "row_norms_body.hpp", "left < norm_block ? left : norm_block", "left == 0 ? left : norm_block"),
        (
            "clipping",
            "row_norms.hpp",
            "queue.scratch<double>(rows * (most_blocks +",
            "queue.scratch<double>(rows * (1 +",
        ),
        (
            "clipping",
            "clipping_once_body.hpp",
            "left < norm_block ? left : norm_block",
            "left == 0 ? left : norm_block",
        ),
        ("update", "update_body.hpp", "i < item.size;", "i <= item.size;"),
        ("adversarial", "adversarial_body.hpp", "i < count;", "i <= count;"),
        ("adversarial", "adversarial_body.hpp", "c < width;", "c <= width;"),
        ("ghost", "ghost_body.hpp", "i < count; i += block_threads", "i <= count; i += block_threads"),
        ("ghost", "ghost_body.hpp", "row < shape.rows && column", "row <= shape.rows && column"),
    ],
)
def test_a_removed_bounds_check_is_found(tmp_path: Path, family: str, file: str, text: str, replacement: str) -> None:
    program = build.sanitized_check(family, mutant(tmp_path, file, text, replacement), build.ADDRESSES)
    run = build.run_check(program)
    assert run.returncode != 0
    assert "ERROR: AddressSanitizer: heap-" in run.stderr, run.stderr
