"""What is particular to the native hash kernels: instruction sets, threads and splits give one state; the guards of the binding.

tests/test_hashing.py holds every backend to the reference and to published vectors.
"""

from __future__ import annotations

import hashlib
import mmap
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from aisec_fast import _core
from tests.conftest import bits

IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
KEYED_HASH = 16
CHUNK = 1024
PIECE = 64 * CHUNK  # what threads share
DATA = np.random.default_rng(11).integers(0, 256, 40 * PIECE + 17, dtype=np.uint8)


@pytest.fixture(params=_core.instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    best = _core.instruction_set()
    _core.use_instruction_set(request.param)
    yield request.param
    _core.use_instruction_set(best)


@pytest.fixture(params=[True, False], ids=["sha", "plain"])
def sha_isa(isa: str, request: pytest.FixtureRequest) -> str:
    """Each instruction set with what this CPU has beside it (SHA instructions, halves of vectors), and without."""
    _core.use_instruction_set(isa, request.param)
    return isa


def blake3_state(flags: int = 0) -> np.ndarray:
    state = np.zeros(700, np.uint32)
    state[:8], state[8] = IV, flags
    return state


def sha256_state() -> np.ndarray:
    state = np.zeros(26, np.uint32)
    state[:8] = IV
    return state


def absorbed(data: np.ndarray, cuts: Any = (), max_threads: int = 1, flags: int = 0) -> np.ndarray:
    state = blake3_state(flags)
    edges = [0, *cuts, data.size]
    for begin, end in pairwise(edges):
        _core.blake3_update(state, data[begin:end], max_threads)
    return state


def stream(state: np.ndarray, size: int, seek: int = 0) -> bytes:
    out = np.empty(size, np.uint8)
    _core.blake3_output(state, out, seek)
    return out.tobytes()


# ---------------------------------------------------------------------- a slow BLAKE3 that shares nothing with the kernels


def slow_compress(chaining: list[int], block: bytes, counter: int, length: int, flags: int) -> list[int]:
    m = [int.from_bytes(block[4 * i : 4 * i + 4], "little") for i in range(16)]
    v = [*chaining, *IV[:4], counter & 0xFFFFFFFF, counter >> 32, length, flags]
    columns = [(i, i + 4, i + 8, i + 12) for i in range(4)]
    diagonals = [(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4) for i in range(4)]
    for _ in range(7):
        for g, (a, b, c, d) in enumerate(columns + diagonals):
            for word, first, second in ((m[2 * g], 16, 12), (m[2 * g + 1], 8, 7)):
                v[a] = (v[a] + v[b] + word) & 0xFFFFFFFF
                v[d] = turned(v[d] ^ v[a], first)
                v[c] = (v[c] + v[d]) & 0xFFFFFFFF
                v[b] = turned(v[b] ^ v[c], second)
        m = [m[i] for i in (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)]
    return [v[i] ^ v[i + 8] for i in range(8)] + [v[i + 8] ^ chaining[i] for i in range(8)]


def turned(x: int, n: int) -> int:
    return (x >> n | x << (32 - n)) & 0xFFFFFFFF


def slow_node(data: bytes, first: int, flags: int, root: bool, position: int) -> list[int]:
    """The words of the node over `data`, whose first chunk has number `first`; of the root: block `position` of its stream."""
    chunks = max(1, -(-len(data) // CHUNK))
    if chunks > 1:
        left = 1 << (chunks - 1).bit_length() - 1
        halves = (data[: left * CHUNK], first), (data[left * CHUNK :], first + left)
        words = [word for half, start in halves for word in slow_node(half, start, flags, False, 0)[:8]]
        block = b"".join(word.to_bytes(4, "little") for word in words)
        return slow_compress(IV, block, position, 64, flags | 4 | (8 if root else 0))
    chaining, blocks = IV, max(1, -(-len(data) // 64))
    for i in range(blocks):
        block, last = data[64 * i : 64 * i + 64], i + 1 == blocks
        more = (1 if i == 0 else 0) | (2 if last else 0) | (8 if last and root else 0)
        number = position if last and root else first
        words = slow_compress(chaining, block.ljust(64, b"\0"), number, len(block), flags | more)
        chaining = words[:8]
    return words


def slow_stream(data: bytes, size: int, seek: int = 0, flags: int = 0) -> bytes:
    blocks = [slow_node(data, 0, flags, True, i) for i in range(seek // 64, (seek + size) // 64 + 1)]
    whole = b"".join(word.to_bytes(4, "little") for block in blocks for word in block)
    return whole[seek % 64 :][:size]


# ------------------------------------------------------------------------------------------------ the same state, always


@pytest.mark.parametrize(
    "size", [0, 1, 64, 65, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 64, 17 * CHUNK - 1, 21 * CHUNK]
)
def test_against_the_definition(sha_isa: str, size: int) -> None:
    state = absorbed(DATA[:size], flags=KEYED_HASH)
    assert stream(state, 80, 50) == slow_stream(DATA[:size].tobytes(), 80, 50, KEYED_HASH)


@pytest.mark.parametrize("chunks", [*range(2, 36), 63, 64, 65, 127, 129])
def test_any_number_of_chunks_from_any_place(sha_isa: str, chunks: int) -> None:
    """Full vectors and rests, begun at a chunk number that is a multiple of nothing or of much: as chunk by chunk."""
    for before in (0, 1, 4, 7, 32, 63):
        data = DATA[: (before + chunks) * CHUNK + 5]
        one_by_one = absorbed(data, range(CHUNK, data.size, CHUNK))
        assert bits(absorbed(data, [before * CHUNK])) == bits(one_by_one)
        assert bits(absorbed(data, [before * CHUNK + 1])) == bits(one_by_one)


def test_instruction_sets_agree(sha_isa: str) -> None:
    state = absorbed(DATA, [777])
    output = stream(state, 5000, 3)
    sha = sha256_state()
    _core.sha256_update(sha, DATA)
    _core.use_instruction_set(_core.instruction_sets()[-1])
    assert bits(state) == bits(absorbed(DATA))
    assert output == stream(state, 5000, 3)
    plain = sha256_state()
    _core.sha256_update(plain, DATA)
    assert bits(sha) == bits(plain)


@pytest.mark.parametrize("threads_set", [1, 2, 3, 7])
@pytest.mark.parametrize("max_threads", [0, 1, 2, 1000])
def test_threads_do_not_matter(isa: str, threads: Any, threads_set: int, max_threads: int) -> None:
    threads(1)
    alone = absorbed(DATA), absorbed(DATA[: 9 * PIECE])
    threads(threads_set)
    assert bits(absorbed(DATA, max_threads=max_threads)) == bits(alone[0])
    assert bits(absorbed(DATA, [5, 3 * CHUNK, 17 * PIECE + 1], max_threads)) == bits(alone[0])
    assert bits(absorbed(DATA[: 9 * PIECE], max_threads=max_threads)) == bits(alone[1])


def test_more_pieces_than_one_round_takes(threads: Any) -> None:
    """The chaining values of 1024 pieces lie on the stack at a time."""
    threads(2)
    data = np.tile(np.arange(251, dtype=np.uint8), (1030 * PIECE + 77) // 251 + 1)[: 1030 * PIECE + 77]
    cuts = [400 * PIECE + 5, 1020 * PIECE]
    assert bits(absorbed(data, max_threads=0)) == bits(absorbed(data, cuts, max_threads=0))


def test_splits_of_every_kind(sha_isa: str) -> None:
    rng = np.random.default_rng(3)
    whole = absorbed(DATA[:200_000])
    sha = sha256_state()
    _core.sha256_update(sha, DATA[:200_000])
    digest = np.empty(32, np.uint8)
    _core.sha256_output(sha, digest)
    assert digest.tobytes() == hashlib.sha256(DATA[:200_000]).digest()
    for most in (70, 1100, 5000, 100_000):
        cuts = np.cumsum(rng.integers(0, most, 200_000 // most * 2))
        cuts = cuts[cuts < 200_000].tolist()
        assert bits(absorbed(DATA[:200_000], cuts)) == bits(whole)
        state = sha256_state()
        for begin, end in zip([0, *cuts], [*cuts, 200_000], strict=True):
            _core.sha256_update(state, DATA[begin:end])
        assert bits(state) == bits(sha)


@pytest.mark.parametrize("blocks", [0, 1, 2, 5])
@pytest.mark.parametrize("shift", [0, 1])
def test_sha256_streams_side_by_side(sha_isa: str, blocks: int, shift: int) -> None:
    """Any number of streams, from chaining values of their own: each as hashlib has it, alone and after a first block."""
    for streams in range(36):
        size = 64 * (blocks + 1)
        data = DATA[shift : shift + streams * size].reshape(streams, size)
        states = np.tile(np.array(IV, np.uint32), (streams, 1))
        _core.sha256_streams(states, np.ascontiguousarray(data[:, :64]))
        _core.sha256_streams(states, np.ascontiguousarray(data[:, 64:]))
        for stream in range(streams):
            state, out = sha256_state(), np.empty(32, np.uint8)
            state[:8], state[8] = states[stream], data.shape[1]
            _core.sha256_output(state, out)
            assert out.tobytes() == hashlib.sha256(data[stream]).digest(), (streams, stream)


@pytest.mark.parametrize("size", [*range(54, 66), 118, 119, 120, 128, 1000])
def test_sha256_padding(sha_isa: str, size: int) -> None:
    state, out = sha256_state(), np.empty(32, np.uint8)
    _core.sha256_update(state, DATA[:size])
    before = state.copy()
    _core.sha256_output(state, out)
    assert out.tobytes() == hashlib.sha256(DATA[:size]).digest()
    assert bits(state) == bits(before)
    assert not state[10:].view(np.uint8)[size % 64 :].any()  # unused bytes of the buffer are zero


def test_unused_words_of_a_state_are_zero(isa: str) -> None:
    for size in (0, 1, CHUNK, CHUNK + 1, 8 * CHUNK, 8 * CHUNK + 1, 45 * CHUNK + 100):
        state = absorbed(DATA[:size])
        buffered, chunks = int(state[9]), int(state[10])
        assert (buffered, chunks) == ((size - 1) % CHUNK + 1, (size - 1) // CHUNK) if size else (0, 0)
        stack = state[12:444].reshape(54, 8)
        used = chunks.bit_count()
        assert stack[:used].any(axis=1).all()
        assert not stack[used:].any()
        assert not state[444:].view(np.uint8)[buffered:].any()


def test_the_stream_is_one_stream(isa: str) -> None:
    state = absorbed(DATA[:5000])
    whole = stream(state, 3000)
    before = state.copy()
    for seek, size in (
        (0, 0),
        (0, 64),
        (1, 63),
        (1, 64),
        (63, 1),
        (63, 2),
        (64, 64),
        (100, 2500),
        (128, 1024),
        (2999, 1),
    ):
        assert stream(state, size, seek) == whole[seek : seek + size]
    assert bits(state) == bits(before)
    end = 2**64 - 1
    assert stream(state, 1300, end - 1300)[-7:] == stream(state, 7, end - 7)
    high = slow_stream(DATA[:70].tobytes(), 90, 2**40 - 30)  # the counter's halves
    assert stream(absorbed(DATA[:70]), 90, 2**40 - 30) == high


def test_input_at_any_alignment(isa: str) -> None:
    whole = absorbed(DATA[:30_000])
    for shift in range(1, 9):
        memory = np.empty(30_000 + shift, np.uint8)
        memory[shift:] = DATA[:30_000]
        assert bits(absorbed(memory[shift:])) == bits(whole)


def test_chunk_numbers_beyond_32_bits(isa: str) -> None:
    """A state that has absorbed 2^42 bytes less a little, as it lies in the array: nothing that large is hashed."""
    results = []
    for cuts in ([], [CHUNK, 3 * CHUNK, 90 * CHUNK + 1]):
        state = absorbed(DATA[:1])
        chunks = 2**32 - 64
        state[10:12] = chunks & 0xFFFFFFFF, chunks >> 32
        state[12 : 12 + 8 * 26] = np.arange(8 * 26)
        edges = [1, *cuts, 200 * CHUNK]
        for begin, end in pairwise(edges):
            _core.blake3_update(state, DATA[begin:end], 1)
        assert int(state[10]) | int(state[11]) << 32 == 2**32 - 64 + 199
        results.append(bits(state))
    assert results[0] == results[1]


def test_more_than_4_gib_at_once(threads: Any) -> None:
    """4 GiB + 5 bytes of addresses that are one page of zeros; only the best instruction set, in a second or two."""
    size = 2**32 + 5
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=mmap.PROT_READ)
    except OSError:
        pytest.skip("no 4 GiB of addresses")
    zeros = np.frombuffer(memory, np.uint8)
    threads(2)
    whole = absorbed(zeros, max_threads=0)
    assert int(whole[9]) == 5
    assert int(whole[10]) == 2**22
    subtree = absorbed(zeros[: 2**20])  # all subtrees of a size would be equal but for their chunks' numbers
    assert bits(whole[12:20]) != bits(subtree[12:20])
    halves = absorbed(zeros, [2**31 + 3], max_threads=0)
    assert bits(halves) == bits(whole)


def test_sha256_lengths_beyond_32_bits(isa: str) -> None:
    """As if 4 GiB less 7 bytes had been absorbed."""
    results = []
    for cuts in ([], [7], [3, 100]):
        state = sha256_state()
        state[8:10] = 2**32 - 64, 0
        for begin, end in pairwise([0, 57, *(57 + cut for cut in cuts), 1000]):
            _core.sha256_update(state, DATA[begin:end])
        assert state[8:10].tolist() == [1000 - 64, 1]
        results.append(bits(state))
    assert len(set(results)) == 1


def test_the_gil_is_released() -> None:
    """Another thread gets to run, though Python itself would not let it for an hour."""
    started, ran = threading.Event(), threading.Event()

    def other() -> None:
        started.wait()
        ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    data, state, interval = np.zeros(1 << 24, np.uint8), blake3_state(), sys.getswitchinterval()
    sys.setswitchinterval(3600.0)
    try:
        started.set()
        for _ in range(100):
            _core.blake3_update(state, data, 1)
            if ran.is_set():
                break
        released = ran.is_set()
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert released


# ------------------------------------------------------------------------------------------------ bad input

OUT = np.zeros(32, np.uint8)
FROZEN_STATE, FROZEN_OUT = blake3_state(), OUT.copy()
FROZEN_STATE.flags.writeable = FROZEN_OUT.flags.writeable = False


def broken(**words: int) -> np.ndarray:
    state = blake3_state()
    for word, value in words.items():
        state[int(word[1:])] = value
    return state


ANY_STATE = [
    ("a list", lambda: [0] * 700, TypeError, "state is a list, expected an array"),
    ("dtype", lambda: np.zeros(700, np.float32), TypeError, "state has another dtype"),
    ("signed", lambda: np.zeros(700, np.int32), TypeError, "state has a dtype that no kernel takes"),
    ("shape", lambda: np.zeros((7, 100), np.uint32), ValueError, "state has 2 dimensions, expected 1"),
    ("strided", lambda: np.zeros(1400, np.uint32)[::2], ValueError, "state is not C-contiguous"),
    ("short", lambda: np.zeros(699, np.uint32), ValueError, "state has 699 values, expected"),
    ("unaligned", lambda: np.zeros(2801, np.uint8)[1:].view(np.uint32), ValueError, "state is not aligned"),
]
BLAKE3_STATE = [
    *ANY_STATE,
    ("read-only", lambda: FROZEN_STATE, ValueError, "state is read-only"),
    ("full buffer", lambda: broken(_9=1025), ValueError, "state holds no BLAKE3 state"),
    ("empty buffer", lambda: broken(_10=1), ValueError, "state holds no BLAKE3 state"),
    ("too many chunks", lambda: broken(_9=1, _11=2**22), ValueError, "state holds no BLAKE3 state"),
    ("flags", lambda: broken(_8=1), ValueError, "state holds no BLAKE3 state"),
]
DATA_WRONG = [
    ("bytes", b"abc", TypeError, "data is a bytes, expected an array"),
    ("dtype", np.zeros(3, np.uint32), TypeError, "data has another dtype"),
    ("shape", np.zeros((3, 3), np.uint8), ValueError, "data has 2 dimensions, expected 1"),
    ("no dimension", np.zeros((), np.uint8), ValueError, "data has 0 dimensions, expected 1"),
    ("strided", np.zeros(9, np.uint8)[::2], ValueError, "data is not C-contiguous"),
]
OUT_WRONG = [
    ("dtype", np.zeros(32, np.float32), TypeError, "out has another dtype"),
    ("shape", np.zeros((1, 32), np.uint8), ValueError, "out has 2 dimensions, expected 1"),
    ("strided", np.zeros(64, np.uint8)[::2], ValueError, "out is not C-contiguous"),
    ("read-only", FROZEN_OUT, ValueError, "out is read-only"),
]


@pytest.mark.parametrize(("what", "make", "error", "message"), BLAKE3_STATE, ids=[row[0] for row in BLAKE3_STATE])
def test_bad_blake3_states(what, make, error, message) -> None:
    state = make()
    before = bits(state)
    with pytest.raises(error, match=message):
        _core.blake3_update(state, DATA[:5000], 1)
    with pytest.raises(error, match=message):
        _core.blake3_output(state, OUT, 0)
    assert bits(state) == before


@pytest.mark.parametrize(("what", "make", "error", "message"), ANY_STATE, ids=[row[0] for row in ANY_STATE])
def test_bad_sha256_states(what, make, error, message) -> None:
    state = make()
    state = state[:26] if what == "unaligned" else state
    with pytest.raises(error, match=message):
        _core.sha256_update(state, DATA[:500])
    with pytest.raises(error, match=message):
        _core.sha256_output(state, OUT)


@pytest.mark.parametrize(("what", "data", "error", "message"), DATA_WRONG, ids=[row[0] for row in DATA_WRONG])
def test_bad_data(what, data, error, message) -> None:
    for call in (
        lambda: _core.blake3_update(blake3_state(), data, 1),
        lambda: _core.sha256_update(sha256_state(), data),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(("what", "out", "error", "message"), OUT_WRONG, ids=[row[0] for row in OUT_WRONG])
def test_bad_outputs(what, out, error, message) -> None:
    for call in (
        lambda: _core.blake3_output(blake3_state(), out, 0),
        lambda: _core.sha256_output(sha256_state(), out),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _core.sha256_output(sha256_state(), OUT[:31]), ValueError, "out has 31 values, expected 32"),
        (lambda: _core.blake3_output(blake3_state(), OUT, -1), ValueError, "seek is -1, expected 0 to"),
        (lambda: _core.blake3_output(blake3_state(), OUT, 2**64), ValueError, "seek is 18446744073709551616, expected"),
        (
            lambda: _core.blake3_output(blake3_state(), OUT, 2**64 - 32),
            ValueError,
            r"expected 0 to 18446744073709551583$",
        ),
        (lambda: _core.blake3_output(blake3_state(), OUT, 1.5), TypeError, "seek"),
        (lambda: _core.blake3_update(blake3_state(), OUT, -1), ValueError, "max_threads is -1, expected 0 to"),
        (lambda: _core.blake3_update(blake3_state(), OUT, 2**70), ValueError, "max_threads is 1180591620717411303424"),
        (
            lambda: _core.blake3_update(broken(_9=1, _10=2**32 - 1, _11=2**22 - 1), DATA[:CHUNK], 1),
            OverflowError,
            r"data has 1024 bytes: more than 2\^64 - 1 in all",
        ),
        (
            lambda: _core.sha256_update(np.r_[np.zeros(8), [2**32 - 10, 2**29 - 1], np.zeros(16)].astype("u4"), OUT),
            OverflowError,
            r"data has 32 bytes: more than 2\^61 - 1 in all",
        ),
    ],
)
def test_numbers_out_of_range(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
