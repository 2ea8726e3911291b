"""The hashing family: every backend against the reference, bit by bit, and the public functions against their peers."""

from __future__ import annotations

import array
import contextlib
import functools
import hashlib
import hmac
import mmap
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blake3 as pypi
import numpy as np
import pytest
import torch

import aisec_fast
from aisec_fast import BackendError, _arrays, hashing
from aisec_fast._backends import Backend
from aisec_fast._reference import hashing as reference
from aisec_fast.hashing import _hash_array, _hashers, _portable
from tests.conftest import HASHING_NATIVE, WITHOUT_JIT, Kernels, load, running
from tests.test_hashing_reference import CONTEXT, KEY, MODES
from tests.test_runtime import in_child, python

DATA = np.random.default_rng(0).integers(0, 256, 70_016, np.uint8)
# Around every border: block, chunk, groups of 2 to 64 chunks, and one length with a rest of everything.
SIZES = [0, 1, 64, 65, 1023, 1024, 1025, 2048, 2049, 3073, 4097]
if not WITHOUT_JIT:
    SIZES += [63, 127, 128, 129, 2047, 4095, 4096, 5121, 7169, 8191, 8192, 8193, 9217, 15_361, 16_383, 16_384, 16_385]
    SIZES += [17_409, 32_768, 32_769, 65_536, 65_537, 70_000]
    SIZES.sort()
NO_INTERPRETER = pytest.mark.skipif(WITHOUT_JIT, reason="too much for an interpreter")
MODE_NAMES = ["hash", "keyed", "derive"]

ON_THE_HOST = pytest.mark.parametrize("kernels", [*HASHING_NATIVE, "numba"], indirect=True)


@pytest.fixture(params=[*HASHING_NATIVE, "numba", "cuda_on_host"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    yield from running(request.param)


@functools.cache
def reference_state(size: int, mode: int) -> bytes:
    """The reference's state after DATA[:size], from that of the next smaller size."""
    smaller = [s for s in SIZES if s < size]
    state = reference.blake3_state(**MODES[mode])
    if smaller:
        state[:] = np.frombuffer(reference_state(smaller[-1], mode), np.uint32)
    reference.blake3_update(state, DATA[smaller[-1] if smaller else 0 : size])
    return state.tobytes()


def digest(kernels: Kernels, state: np.ndarray, size: int = 32, seek: int = 0) -> bytes:
    out, before = np.full(size, 7, np.uint8), state.tobytes()
    kernels.hashing.blake3_output(state, out, seek)
    assert state.tobytes() == before
    return out.tobytes()


# ------------------------------------------------------------------------------------------------ BLAKE3 kernels


@pytest.mark.parametrize("mode", range(3), ids=MODE_NAMES)
def test_blake3_states_and_digests(kernels: Kernels, mode: int) -> None:
    for size in SIZES:
        state = reference.blake3_state(**MODES[mode])
        kernels.hashing.blake3_update(state, DATA[:size], 0)
        assert state.tobytes() == reference_state(size, mode), size
        assert digest(kernels, state) == pypi.blake3(DATA[:size].tobytes(), **MODES[mode]).digest(), size


@NO_INTERPRETER
def test_blake3_of_many_lengths(kernels: Kernels) -> None:
    """Every chunk count up to 68 with several fills of the last block and chunk."""
    for size in range(0, 70_000, 1021 if kernels.name == "cuda_on_host" else 113):
        state = reference.blake3_state()
        kernels.hashing.blake3_update(state, DATA[:size], 0)
        assert digest(kernels, state) == pypi.blake3(DATA[:size].tobytes()).digest(), size


@pytest.mark.parametrize("seed", range(2 if WITHOUT_JIT else 6))
def test_blake3_splits_do_not_matter(kernels: Kernels, seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = SIZES[-1] if seed % 2 else 4097
    state, position = reference.blake3_state(), 0
    while position < size:
        most = (70, 1100, 9000)[generator.integers(3)]
        end = min(size, position + int(generator.integers(0, most)))
        kernels.hashing.blake3_update(state, DATA[position:end].copy(), 0)  # another alignment each time
        position = end
    assert state.tobytes() == reference_state(size, 0)


def test_blake3_updates_that_end_at_borders(kernels: Kernels) -> None:
    """What fills the buffer to the brim is not compressed before more follows."""
    state, position = reference.blake3_state(), 0
    for end in (1, 1024, 2048, 2049, 3073, 4097):
        kernels.hashing.blake3_update(state, DATA[position:end], 0)
        assert state.tobytes() == reference_state(end, 0), end
        position = end


def test_a_state_passes_between_backends(kernels: Kernels) -> None:
    for first in (1000, 1024, 3500):
        state = reference.blake3_state()
        reference.blake3_update(state, DATA[:first])
        kernels.hashing.blake3_update(state, DATA[first:3600], 0)
        reference.blake3_update(state, DATA[3600:4097])
        assert state.tobytes() == reference_state(4097, 0)


def test_data_of_any_alignment_read_only_or_not(kernels: Kernels) -> None:
    memory = np.empty(2100, np.uint8)
    for offset in range(5):
        data = memory[offset:][:2049]
        data[:] = DATA[:2049]
        for writable in (True, False):
            data.flags.writeable = writable
            state = reference.blake3_state()
            kernels.hashing.blake3_update(state, data, 0)
            assert state.tobytes() == reference_state(2049, 0)
        assert data.tobytes() == DATA[:2049].tobytes()


def test_blake3_output_anywhere(kernels: Kernels) -> None:
    for size in (0, 64, 1023, 1024, 3073):
        state = np.frombuffer(reference_state(size, 1), np.uint32).copy()
        peer = pypi.blake3(DATA[:size].tobytes(), key=KEY)
        places = [(0, 0), (0, 5), (1, 63), (64, 64), (65, 63), (31, 2**38 - 7), (130, 2**64 - 131), (0, 2**64 - 1)]
        for length, seek in [*places, *([] if WITHOUT_JIT else [(1500, 1), (5000, 2**32 - 100)])]:
            assert digest(kernels, state, length, seek) == peer.digest(length, seek=seek), (size, length, seek)


def test_a_chunk_number_beyond_32_bits(kernels: Kernels) -> None:
    for chunks in (2**32 - 1, 2**32, 2**33 - 3):
        state = reference.blake3_state()
        state[9:12] = 1024, chunks & (2**32 - 1), chunks >> 32
        entries = chunks.bit_count()
        state[12 : 12 + 8 * entries] = np.arange(8 * entries)
        state[444:] = np.arange(256)
        expected = state.copy()
        reference.blake3_update(expected, DATA[:5000])
        kernels.hashing.blake3_update(state, DATA[:5000], 0)
        assert state.tobytes() == expected.tobytes()


@NO_INTERPRETER
def test_threads_do_not_matter(kernels: Kernels, threads) -> None:
    size = 3_500_777
    data = np.resize(DATA, size)
    expected = reference.blake3_state()
    load(HASHING_NATIVE[-1]).hashing.blake3_update(expected, data, 1)
    assert digest(kernels, expected) == pypi.blake3(data).digest()
    runs = [(3, 1024 * 7)] if kernels.name == "cuda_on_host" else [(1, 0), (2, 1), (2, 1024), (3, 5000), (5, 2**18)]
    for number, head in runs:
        threads(number)
        for limit in (0, 1, 2, 1000):
            state = reference.blake3_state()
            kernels.hashing.blake3_update(state, data[:head], limit)
            kernels.hashing.blake3_update(state, data[head:], limit)
            assert state.tobytes() == expected.tobytes(), (number, head, limit)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux shows them")
def test_as_many_threads_as_are_allowed() -> None:
    """The native pool starts threads with the first call that wants them: what is missing shows in no digest."""
    code = """
import os, sys
import numpy as np
import aisec_fast
from aisec_fast import hashing
aisec_fast.set_num_threads(4)
data, before = np.zeros(1 << 23, np.uint8), len(os.listdir("/proc/self/task"))
hashing.blake3(data, max_threads=int(sys.argv[1]) or None)
print(1 + len(os.listdir("/proc/self/task")) - before)
"""
    for limit, threads in ((1, 1), (2, 2), (3, 3), (0, 4)):
        run = python(code.replace("sys.argv[1]", repr(str(limit))))
        assert run.stdout.split() == [str(threads)], (limit, run.stderr)


# ------------------------------------------------------------------------------------------------ SHA-256 kernels


def sha_digest(kernels: Kernels, state: np.ndarray) -> bytes:
    out, before = np.full(32, 7, np.uint8), state.tobytes()
    kernels.hashing.sha256_output(state, out)
    assert state.tobytes() == before
    return out.tobytes()


@ON_THE_HOST
def test_sha256_states_and_digests(kernels: Kernels) -> None:
    for size in [*range(0, 200, 1 if not WITHOUT_JIT else 11), 55, 56, 63, 64, 65, 119, 120, 1000]:
        state, expected = reference.sha256_state(), reference.sha256_state()
        for part in (DATA[: size // 3], DATA[size // 3 : size]):
            kernels.hashing.sha256_update(state, part)
        reference.sha256_update(expected, DATA[:size])
        assert state.tobytes() == expected.tobytes(), size
        assert sha_digest(kernels, state) == hashlib.sha256(DATA[:size]).digest(), size


@ON_THE_HOST
@NO_INTERPRETER
def test_sha256_of_a_million_letters(kernels: Kernels) -> None:
    """NIST's example, split at random."""
    state, left, generator = reference.sha256_state(), 1_000_000, np.random.default_rng(1)
    while left:
        size = min(left, int(generator.integers(0, 60_000)))
        kernels.hashing.sha256_update(state, np.full(size, ord("a"), np.uint8))
        left -= size
    expected = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    assert sha_digest(kernels, state).hex() == expected


@ON_THE_HOST
def test_sha256_counts_beyond_32_bits(kernels: Kernels) -> None:
    state = reference.sha256_state()
    state[8:10], state[10:] = (2**32 - 10, 3), np.frombuffer(DATA[:54].tobytes().ljust(64, b"\0"), np.uint32)
    expected, out = state.copy(), np.empty(32, np.uint8)
    reference.sha256_update(expected, DATA[:100])
    reference.sha256_output(expected, out)
    kernels.hashing.sha256_update(state, DATA[:100])
    assert state.tobytes() == expected.tobytes()
    assert sha_digest(kernels, state) == out.tobytes()


# ------------------------------------------------------------------------------------------------ the hashers


@pytest.mark.parametrize("mode", range(3), ids=MODE_NAMES)
def test_blake3_is_pypis(backend: str, mode: int) -> None:
    ours, theirs = hashing.blake3(DATA[:100], **MODES[mode]), pypi.blake3(DATA[:100].tobytes(), **MODES[mode])
    assert ours.update(DATA[100:3000]) is ours
    theirs.update(DATA[100:3000].tobytes())
    assert ours.digest() == theirs.digest()
    assert ours.hexdigest() == theirs.hexdigest()
    assert ours.digest(100, seek=33) == theirs.digest(100, seek=33)
    assert ours.hexdigest(5, seek=1) == theirs.hexdigest(5, seek=1)
    assert ours.digest(length=0) == b""
    assert ours.digest(5, seek=2**64 - 6) == theirs.digest(5, seek=2**64 - 6)
    middle = ours.copy()
    ours.update(b"more")
    assert middle.digest() == theirs.digest()
    assert ours.digest() == theirs.copy().update(b"more").digest() != middle.digest()
    assert ours.reset() is ours
    assert ours.digest() == pypi.blake3(**MODES[mode]).digest()
    assert ours.update(b"again").digest() == pypi.blake3(b"again", **MODES[mode]).digest()


def test_sha256_is_hashlibs(backend: str) -> None:
    ours, theirs = hashing.sha256(DATA[:100]), hashlib.sha256(DATA[:100])
    assert ours.update(DATA[100:3000]) is ours
    theirs.update(DATA[100:3000])
    middle = ours.copy()
    assert ours.update(b"more").digest() != theirs.digest()
    assert middle.digest() == theirs.digest()
    assert middle.hexdigest() == theirs.hexdigest()
    assert hashing.sha256().hexdigest() == hashlib.sha256().hexdigest()
    assert hmac.new(b"key", b"data", hashing.sha256).digest() == hmac.digest(b"key", b"data", "sha256")


def test_attributes_are_those_of_the_peers() -> None:
    for ours, theirs, names in (
        (hashing.blake3(), pypi.blake3(), ("name", "digest_size", "block_size", "key_size", "AUTO")),
        (hashing.sha256(), hashlib.sha256(), ("name", "digest_size", "block_size")),
    ):
        for name in names:
            assert getattr(ours, name) == getattr(theirs, name)
    for limit in (None, 1, 2, np.int64(3), hashing.blake3.AUTO, 10**30):
        assert hashing.blake3(b"x", max_threads=limit).digest() == pypi.blake3(b"x").digest()


BUFFERS: list[Any] = [
    b"12345678",
    bytearray(b"12345678"),
    memoryview(b"12345678"),
    memoryview(bytearray(b"12345678")).cast("H"),
    array.array("d", [1.5]),
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.arange(2, dtype=">i8"),
    np.array([True, False]),
    np.float64(2.5),
    np.array(1, np.int16),
    b"",
    bytearray(),
    memoryview(b""),
    np.zeros((0, 3)),
    memoryview(np.zeros(2, [("Offset", "i4"), ("b", "f8")])),  # no "O" of an object
]


@pytest.mark.parametrize("hasher", ["blake3", "sha256"])
def test_anything_with_a_buffer(backend: str, hasher: str) -> None:
    ours, peer = getattr(hashing, hasher), pypi.blake3 if hasher == "blake3" else hashlib.sha256
    for data in BUFFERS:
        expected = peer(np.asarray(data).tobytes() if isinstance(data, (np.ndarray, np.generic)) else bytes(data))
        assert ours(data).digest() == expected.digest()
        assert ours().update(data).digest() == expected.digest()
    key = bytearray(KEY)
    assert hashing.blake3(b"x", key=memoryview(key)).digest() == pypi.blake3(b"x", key=KEY).digest()


def on_numba(make: Callable[..., Any], *arguments: Any) -> Any:
    with aisec_fast.use_backend("numba"):
        return make(*arguments)


def test_the_backend_is_that_of_the_hashers_making(monkeypatch: pytest.MonkeyPatch) -> None:
    from aisec_fast._numba import hashing as numba

    hasher = on_numba(hashing.blake3)
    assert isinstance(hasher, hashing.blake3)
    assert hasher._update is hasher.copy()._update is numba.blake3_update
    assert type(hashing.blake3()) is type(hashing.blake3().copy()) is hashing.blake3
    assert type(hashing.sha256()) is hashing.sha256
    monkeypatch.setenv("AISEC_FAST_BACKEND", "numba")
    assert type(hashing.sha256()) is _portable.PortableSha256
    with aisec_fast.use_backend("native"):
        assert type(hashing.sha256()) is hashing.sha256
    monkeypatch.setenv("AISEC_FAST_BACKEND", "abacus")
    with pytest.raises(BackendError, match=r"backend .AISEC_FAST_BACKEND. is 'abacus'"):
        hashing.blake3()


def test_a_subclass_is_native_or_an_error() -> None:
    class Mine(hashing.blake3):
        pass

    assert Mine(b"x").copy().digest() == pypi.blake3(b"x").digest()
    with pytest.raises(TypeError, match=r"Mine is a subclass of blake3, which runs on the native backend only"):
        on_numba(Mine)


def test_without_native_kernels() -> None:
    """The public classes then make portable hashers; so does a subclass of nothing native."""
    code = """
import sys
sys.modules["aisec_fast._core"] = None
from aisec_fast import hashing
hasher = hashing.blake3(b"abc", max_threads=1)
assert isinstance(hasher, hashing.blake3) and type(hasher).__name__ == "PortableBlake3"
print(hasher.copy().hexdigest(), hashing.sha256(b"abc").hexdigest())
"""
    run = python(code)
    assert run.stdout.split() == [pypi.blake3(b"abc").hexdigest(), hashlib.sha256(b"abc").hexdigest()], run.stderr


def test_hashers_of_bytes_refuse_the_gpu() -> None:
    pytest.importorskip("aisec_fast._cuda", reason="not in this build")
    with aisec_fast.use_backend("cuda"), pytest.raises(BackendError, match="backend is 'cuda', but data lives on cpu"):
        hashing.blake3()


@pytest.mark.parametrize("hasher", [hashing.blake3, hashing.sha256])
def test_an_interrupt_leaves_the_hasher_as_it_was(hasher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_portable, "_PIECE", 1000)
    whole = on_numba(hasher, DATA[:50])
    before, update, calls = whole.digest(), whole._update, []

    def interrupted(*arguments: Any) -> None:
        calls.append(update(*arguments))
        if len(calls) == 3:
            raise KeyboardInterrupt

    whole._update = interrupted
    with pytest.raises(KeyboardInterrupt):
        whole.update(DATA[50:6000])
    assert whole.digest() == before
    assert whole.update(DATA[50:6000]).digest() == hasher(DATA[:6000].tobytes()).digest()  # and is not locked
    assert len(calls) == 3 + 6


@contextlib.contextmanager
def alarm_while_hashing(handler: Callable[[], object]) -> Iterator[None]:
    """A signal arrives some milliseconds on."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, 0.003)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("hasher", [hashing.blake3, hashing.sha256])
def test_a_native_hasher_looks_for_signals(hasher: Any) -> None:
    """Between two slices of 64 MiB, the first of which takes longer than the alarm."""
    whole, much = hasher(b"head"), np.zeros(130 << 20, np.uint8)
    before = whole.digest()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), alarm_while_hashing(interrupt):
        whole.update(much)
    assert whole.digest() == before
    seen: list[Any] = []

    def use() -> None:
        try:
            whole.update(b"more")
        except RuntimeError as error:
            seen.append(str(error))

    with alarm_while_hashing(use):
        whole.update(much)
    assert seen == ["the hasher is in use: a signal interrupted its update on this thread"]
    peer = (hashlib.sha256 if hasher is hashing.sha256 else pypi.blake3)(b"head")
    peer.update(much)
    assert whole.digest() == peer.digest()


def test_hashers_are_not_pickled(backend: str) -> None:
    for hasher in (hashing.blake3(key=KEY), hashing.sha256()):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(hasher)


# ------------------------------------------------------------------------------------------------ files as memory


def test_update_mmap(backend: str, tmp_path: Path) -> None:
    for size in (0, 1, 2000 if WITHOUT_JIT else 70_000):
        path = tmp_path / str(size)
        path.write_bytes(DATA[:size])
        for name in (path, str(path)):
            hasher = hashing.blake3(b"head")
            assert hasher.update_mmap(name) is hasher
            assert hasher.digest() == pypi.blake3(b"head" + DATA[:size].tobytes()).digest()


def test_update_mmap_reads_what_cannot_be_mapped(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(DATA.tobytes()))
    writer.start()
    assert hashing.blake3().update_mmap(pipe).digest() == pypi.blake3(DATA.tobytes()).digest()
    writer.join()


def test_update_mmap_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_portable, "_PIECE", 1000)
    monkeypatch.setattr(_hashers, "_READ", 1000)
    hasher = on_numba(hashing.blake3, b"head")
    update = hasher._update

    def interrupted(*arguments: Any) -> None:
        update(*arguments)
        raise KeyboardInterrupt

    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_bytes(DATA[:5000])
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(DATA[:5000]))  # fits into the pipe: needs no reader
    writer.start()
    for path, error in (
        (tmp_path / "missing", FileNotFoundError),
        (tmp_path, IsADirectoryError),
        (file, KeyboardInterrupt),
        (pipe, KeyboardInterrupt),
    ):
        hasher._update = interrupted
        with pytest.raises(error):
            hasher.update_mmap(path)
        hasher._update = update
        assert hasher.digest() == pypi.blake3(b"head").digest()
    writer.join()


def test_a_whole_last_chunk(backend: str) -> None:
    """Its chaining value is known early at some lengths: it must not outlive what follows."""
    for chunks in (1, 2, 3, 4) if WITHOUT_JIT else (1, 2, 3, 4, 8, 9, 12, 64, 65, 130):
        data = np.resize(DATA, chunks * 1024).tobytes()
        hasher, peer = hashing.blake3(data), pypi.blake3(data)
        for more in (b"", b"x", DATA[:1023].tobytes(), DATA[:2048].tobytes(), DATA[:5120].tobytes()):
            hasher.update(more)
            peer.update(more)
            assert hasher.digest() == hasher.copy().digest() == peer.digest(), (chunks, len(more))
            assert hasher.digest(100, seek=7) == peer.digest(100, seek=7)
        assert hashing.blake3(data).reset().digest() == pypi.blake3().digest()
        assert hashing.blake3(data).reset().update(b"x").digest() == pypi.blake3(b"x").digest()


@NO_INTERPRETER
def test_whole_chunks_from_any_place(backend: str) -> None:
    """Each subtree's border that a last chunk can have to its left."""
    data = np.resize(DATA, 130 * 1024)
    for before in (0, 1, 2, 3, 5, 6, 8, 12, 31, 63, 64):
        for chunks in range(1, 35):
            end = (before + chunks) * 1024
            hasher = hashing.blake3(data[: before * 1024]).update(data[before * 1024 : end])
            assert hasher.digest() == pypi.blake3(data[:end]).digest(), (before, chunks)
            assert hasher.update(b"x").digest() == pypi.blake3(data[:end]).update(b"x").digest(), (before, chunks)


def test_arguments_of_a_digest(backend: str) -> None:
    hasher, peer = hashing.blake3(b"x"), pypi.blake3(b"x")
    assert hasher.digest(np.int64(5)) == hasher.digest(length=5) == peer.digest(5)
    assert hasher.digest(length=5, seek=np.uint8(3)) == peer.digest(5, seek=3)
    for bad in (lambda: hasher.digest(1, 2), lambda: hasher.digest(1, length=1), lambda: hasher.digest(size=1)):
        with pytest.raises(TypeError):
            bad()
    for hashers in (hashing.blake3, hashing.sha256):
        for wrong in (lambda new: new(b"", b""), lambda new: new(data=b""), lambda new: new(b"", name="x")):
            with pytest.raises(TypeError):
                wrong(hashers)


# ------------------------------------------------------------------------------------------------ hash_array

ARRAYS: list[Any] = [
    *(np.arange(24).reshape(2, 3, 4).astype(dtype) for dtype in ("f2", "f4", "f8", "c8", "c16", "i1", "u2", "i8", "?")),
    np.array(1.5),
    np.zeros((0, 3), np.float32),
    np.zeros((3, 0, 2), np.int8),
    np.arange(6.0)[None, :, None][:, ::1],
    np.array(["a", "bcd"]),
    np.array([b"a", b"bcd"]),
    np.array(["2026-01-01"], "M8[D]"),
    np.array([3], "m8[s]"),
    np.arange(100.0 if WITHOUT_JIT else 5000.0),
]


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
def test_hash_array_of_numpy(backend: str, algorithm: str) -> None:
    peer: Callable[[bytes], Any] = pypi.blake3 if algorithm == "blake3" else hashlib.sha256
    for values in ARRAYS:
        before = values.copy()
        assert hashing.hash_array(values, algorithm) == peer(values.tobytes()).digest(), values.dtype
        read_only = values.copy()
        read_only.flags.writeable = False
        assert hashing.hash_array(read_only, algorithm) == peer(values.tobytes()).digest()
        assert before.tobytes() == values.tobytes()


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
def test_hash_array_of_torch(backend: str, algorithm: str) -> None:
    peer: Callable[[bytes], Any] = pypi.blake3 if algorithm == "blake3" else hashlib.sha256
    names = ("float16", "bfloat16", "float32", "float64", "complex64", "uint8", "int16", "int64", "bool", "float8_e5m2")
    for values in (torch.arange(24.0).reshape(2, 3, 4), torch.tensor(1.5), torch.zeros(0, 3), torch.arange(300.0)):
        for name in names:
            tensor = values.to(getattr(torch, name))
            raw = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
            assert len(raw) == values.numel() * tensor.element_size()
            assert hashing.hash_array(tensor, algorithm) == peer(raw).digest(), name
    bits = torch.tensor([1.0, -2.0]).bfloat16()
    assert hashing.hash_array(bits, algorithm) == peer(bytes.fromhex("803f00c0")).digest()
    parameter = torch.nn.Parameter(torch.ones(2))
    assert hashing.hash_array(parameter.detach()) == hashing.hash_array(np.ones(2, np.float32))


def test_hash_array_hashes_values_alone() -> None:
    values = np.arange(6.0)
    assert (
        hashing.hash_array(values) == hashing.hash_array(values.reshape(2, 3)) == hashing.hash_array(values.view("i8"))
    )
    assert hashing.hash_array(values) != hashing.hash_array(values.astype(np.float32))
    assert hashing.hash_array(np.zeros(1)) != hashing.hash_array(-np.zeros(1))
    assert hashing.hash_array(values.reshape(2, 3)[1]) == hashing.hash_array(values[3:])


@contextlib.contextmanager
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """numpy arrays are said to live on a GPU; the CUDA kernels run on the host."""
    kernels = load("cuda_on_host")
    describe = _arrays.describe

    def elsewhere(value: Any, name: str) -> _arrays.Array:
        found = describe(value, name)
        return found._replace(device="cuda:0")

    with monkeypatch.context() as patch:
        patch.setattr(_arrays, "describe", elsewhere)
        patch.setattr(
            _hash_array,
            "choose",
            lambda _: Backend(
                **{
                    **kernels._asdict(),
                    "name": "cuda",
                    "integers": kernels.noise,
                    "records": kernels.noise,
                    "files": kernels.noise,
                }
            ),
        )
        yield


def test_hash_array_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for values in (np.arange(5000.0).reshape(50, 100), np.array(1.5), np.zeros((0, 3))):
        with a_gpu(monkeypatch):
            assert hashing.hash_array(values) == pypi.blake3(values.tobytes()).digest()


def test_sha256_of_an_array_on_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        a_gpu(monkeypatch),
        pytest.raises(BackendError, match=r"^array lives on cuda:0, but algorithm is 'sha256'.*CPU"),
    ):
        hashing.hash_array(np.ones(3), "sha256")


# ------------------------------------------------------------------------------------------------ threads and forks


def together(tasks: list[Callable[[], object]]) -> None:
    """Run the tasks in threads of their own."""
    workers = [threading.Thread(target=task) for task in tasks]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


@NO_INTERPRETER
def test_hashers_in_many_threads(backend: str, threads) -> None:
    threads(2)
    data = np.resize(DATA, 1_500_000)
    inputs = [data[number:] for number in range(4)]
    results: dict[int, bytes] = {}

    def work(number: int) -> None:
        with aisec_fast.use_backend(backend):
            results[number] = hashing.blake3(inputs[number]).digest()

    together([functools.partial(work, number) for number in range(4)])
    assert results == {number: pypi.blake3(part).digest() for number, part in enumerate(inputs)}


@pytest.mark.parametrize("hasher", ["blake3", "sha256"])
def test_one_hasher_in_many_threads(backend: str, hasher: str) -> None:
    """Updates take turns: of equal pieces, whose order does not show, none is lost or torn."""
    piece, shared, rounds = DATA[:1500].tobytes(), getattr(hashing, hasher)(), 2 if WITHOUT_JIT else 50
    torn: list[bytes] = []

    def work() -> None:
        for _ in range(rounds):
            shared.update(piece)
            torn.append(shared.copy().digest())

    together([work] * 4)
    prefixes = getattr(hashing, hasher)()
    expected = {prefixes.update(piece).digest() for _ in range(4 * rounds)}
    assert shared.digest() == prefixes.digest()
    assert set(torn) <= expected


@pytest.mark.parametrize("hasher", [hashing.blake3, hashing.sha256])
def test_calls_on_one_hasher_take_turns(hasher: Any) -> None:
    shared, inside, seen = on_numba(hasher), [0], set()

    def watched(kernel: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            inside[0] += 1
            seen.add(inside[0])
            time.sleep(0.002)
            kernel(*arguments)
            inside[0] -= 1

        return call

    shared._update, shared._output = watched(shared._update), watched(shared._output)
    together([lambda: shared.update(b"x"), shared.digest, lambda: shared.update(b"y"), shared.hexdigest] * 2)
    assert seen == {1}


@NO_INTERPRETER
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_goes_on(backend: str, threads) -> None:
    threads(4)
    data = np.resize(DATA, 2_500_000)
    hasher = hashing.blake3(data[:1_300_000])  # the pool is alive when we fork

    def finish() -> bytes:
        return hasher.copy().update(data[1_300_000:]).digest()

    assert in_child(finish) == finish() == pypi.blake3(data).digest()


def test_a_mapped_file_is_a_buffer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert hashing.sha256(mapped).digest() == hashlib.sha256(DATA).digest()
        hasher = hashing.blake3(derive_key_context=CONTEXT).update(mapped)
    assert hasher.digest() == pypi.blake3(DATA.tobytes(), derive_key_context=CONTEXT).digest()
