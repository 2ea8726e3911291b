"""Digests of many records: every backend against hashlib, hmac, blake3 and the reference; nothing outside a record is read.

tests/test_records_reference.py holds the reference to published vectors, tests/test_records_columns.py is about columns.
"""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import blake3 as oracle
import numpy as np
import pytest

import aisec_fast
from aisec_fast import _core, hashing
from aisec_fast._reference import records as reference
from aisec_fast.hashing import _records, hash_records
from tests.conftest import HASHING_NATIVE, WITHOUT_JIT
from tests.test_codebase import PACKAGE, functions
from tests.test_records_reference import RFC_4231, SIP_KEY, VECTORS

KEY = bytes(range(32))
DATA = np.random.default_rng(5).integers(0, 256, 1 << 20, dtype=np.uint8)
PATHS = [
    f"{name}{sha}" for name in HASHING_NATIVE for sha in ("", "-plain")
]  # with the CPU's SHA instructions and without


@pytest.fixture(params=[*PATHS, "numba"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels that public calls then use."""
    best = _core.instruction_set()
    name, _, instruction_set = request.param.partition("-")
    if instruction_set:
        _core.use_instruction_set(instruction_set.removesuffix("-plain"), not instruction_set.endswith("-plain"))
    with aisec_fast.use_backend(name):
        yield request.param
    _core.use_instruction_set(best)


def cut(sizes: Sequence[int], first: int = 0, dtype: Any = np.int32) -> tuple[np.ndarray, list[bytes]]:
    """Offsets of records of these sizes in DATA, and the records."""
    offsets = (first + np.concatenate([[0], np.cumsum(sizes)])).astype(dtype)
    return offsets, [DATA[a:b].tobytes() for a, b in pairwise(offsets)]


def expected(records: Sequence[bytes], algorithm: str, key: bytes | None, size: int) -> list[bytes]:
    if algorithm == "blake3":
        return [oracle.blake3(record, key=key).digest(size) for record in records]
    if algorithm == "sha256":
        return [hashlib.sha256(record).digest()[:size] for record in records]
    assert key is not None
    if algorithm == "hmac-sha256":
        return [hmac.digest(key, record, "sha256")[:size] for record in records]
    return [reference.siphash24(key, record, size) for record in records]


def assert_equal(found: np.ndarray, wanted: list[bytes]) -> None:
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    wrong = [i for i, digest in enumerate(wanted) if found[i].tobytes() != digest]
    assert len(found) == len(wanted)
    assert not wrong, f"{len(wrong)} of {len(wanted)} are wrong, the first are {wrong[:8]}"


# Every algorithm, key and size that takes a path of its own.
CASES = [
    *(("blake3", KEY, size) for size in (32, 16, 1, 20, 33, 64, 65, 200)),
    ("blake3", None, 32),
    *(("sha256", None, size) for size in (32, 16, 5)),
    *(("hmac-sha256", b"k" * size, 32) for size in (1, 32, 63, 64, 65, 131)),
    ("hmac-sha256", KEY, 16),
    *(("siphash24", KEY[:16], size) for size in (8, 16)),
]
SIZES: dict[str, list[int]] = {
    "each up to 200": list(range(200)),
    "short": np.random.default_rng(1).integers(0, 65, 300).tolist(),
    "long among short": [0, 5000, 3, 64, 1024, 1025, 55, 56, 64, 65, 119, 120, 2048, 1, 1023, 4999, 8, 7, 9, 130],
    "mixed": np.random.default_rng(2).integers(0, 1400, 60).tolist(),
    "one": [24],
    "empty ones": [0] * 40,
    "none": [],
}
if WITHOUT_JIT:
    CASES = CASES[::3]
    SIZES = {"some": [*range(10), 31, 55, 56, 63, 64, 65, 119, 120, 129, 1030], "none": []}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_against_oracles(kernels: str, sizes: list[int]) -> None:
    for algorithm, key, size in CASES:
        offsets, records = cut(sizes, first=3)
        found = hash_records(DATA, offsets, key=key, algorithm=algorithm, digest_size=size)
        assert found.shape == (len(sizes), size)
        assert_equal(found, expected(records, algorithm, key, size))


def test_backends_have_the_vectors(kernels: str) -> None:
    for size, columns, tag in VECTORS:
        found: Any = hash_records([bytes(range(size))], key=SIP_KEY, algorithm="siphash24", digest_size=columns)
        assert found.tobytes().hex() == tag
    for key, message, tag in RFC_4231:
        found = hash_records([message], key=key, algorithm="hmac-sha256", digest_size=len(tag) // 2)
        assert found.tobytes().hex() == tag


def test_blocks_of_hmac_are_the_keys(kernels: str) -> None:
    """A key longer than a block is its digest, a shorter one is filled up: RFC 2104, section 2."""
    long = b"x" * 65
    for key, same in ((long, reference.sha256(long)), (b"abc", b"abc\0\0"), (b"\0", b"\0" * 64)):
        digests = [hash_records([b"m"], key=k, algorithm="hmac-sha256") for k in (key, same)]
        assert np.array_equal(*digests)


def test_the_reference_agrees() -> None:
    offsets, records = cut([0, 3, 55, 56, 64, 65, 130, 1025], dtype=np.int64)
    places = DATA, offsets[:-1], offsets[1:]
    out = np.empty((len(records), 40), np.uint8)
    reference.blake3_records(*places, np.frombuffer(KEY, np.uint32), 16, out)
    assert_equal(out, expected(records, "blake3", KEY, 40))
    out = np.empty((len(records), 32), np.uint8)
    reference.sha256_records(*places, reference.sha256_state()[:8], out)
    assert_equal(out, expected(records, "sha256", None, 32))
    reference.sha256_records(*places, reference.hmac_chaining(KEY), out)
    assert_equal(out, expected(records, "hmac-sha256", KEY, 32))
    out = np.empty((len(records), 8), np.uint8)
    reference.siphash24_records(*places, np.frombuffer(KEY[:16], np.uint32), out)
    assert_equal(out, expected(records, "siphash24", KEY[:16], 8))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64, np.int16, ">i4", ">i8", list])
@pytest.mark.parametrize("first", [0, 1, 200])
def test_offsets_of_any_type_from_anywhere(dtype: Any, first: int) -> None:
    """Data before the first and after the last offset is left alone."""
    offsets, records = cut([20, 0, 33, 7], first, np.int64 if dtype is list else dtype)
    given = offsets.tolist() if dtype is list else offsets
    assert_equal(hash_records(DATA[:300], given, key=KEY), expected(records, "blake3", KEY, 32))


def test_offsets_of_any_stride_and_alignment() -> None:
    offsets, records = cut([20, 0, 33, 7])
    spread = np.zeros((5, 2), np.int32)
    spread[:, 1] = offsets
    crooked = np.frombuffer(b"x" + offsets.tobytes(), np.uint8)[1:].view(np.int32)
    for given in (spread[:, 1], crooked, memoryview(offsets)):
        assert_equal(hash_records(DATA.tobytes(), given), expected(records, "blake3", None, 32))


def test_threads_do_not_matter(kernels: str, threads: Any) -> None:
    if WITHOUT_JIT:
        pytest.skip("minutes for as many records as threads share")
    sizes = np.random.default_rng(4).integers(0, 70, 20_000)
    sizes[::5000] = 3000
    offsets, _ = cut(sizes.tolist())
    for algorithm, key, size in (("blake3", KEY, 32), ("hmac-sha256", KEY, 32), ("siphash24", KEY[:16], 8)):
        threads(1)
        alone = hash_records(DATA, offsets, key=key, algorithm=algorithm, digest_size=size)
        for count, limit in ((2, None), (5, None), (5, 2), (5, 1000)):
            threads(count)
            again = hash_records(DATA, offsets, key=key, algorithm=algorithm, digest_size=size, max_threads=limit)
            assert again.tobytes() == alone.tobytes()


def test_instruction_sets_and_backends_agree_on_many(threads: Any) -> None:
    if WITHOUT_JIT:
        pytest.skip("minutes without a compiler")
    offsets, _ = cut(np.random.default_rng(6).integers(16, 33, 30_000).tolist())
    threads(2)
    for algorithm, key in (("blake3", KEY), ("hmac-sha256", KEY), ("siphash24", KEY[:16])):
        with aisec_fast.use_backend("numba"):
            wanted = hash_records(DATA, offsets, key=key, algorithm=algorithm).tobytes()
        for name in _core.instruction_sets():
            _core.use_instruction_set(name)
            assert hash_records(DATA, offsets, key=key, algorithm=algorithm).tobytes() == wanted, name
        _core.use_instruction_set(_core.instruction_sets()[0])


def test_a_call_in_slices_gives_the_same(monkeypatch: pytest.MonkeyPatch, kernels: str) -> None:
    """As for more records and bytes than one call of a kernel takes, and for records that are hashed in pieces."""
    offsets, records = cut([10, 700, 0, 30, 5000, 64, 64, 64, 900, 1, 2, 3], first=9)
    monkeypatch.setattr(_records, "_MOST_RECORDS", 5)
    monkeypatch.setattr(_records, "_MOST_BYTES", 800)
    for algorithm, key, size in CASES:
        found = hash_records(DATA, offsets, key=key, algorithm=algorithm, digest_size=size)
        assert_equal(found, expected(records, algorithm, key, size))


def test_records_anywhere(kernels: str) -> None:
    """Kernels take any places: with gaps, backwards, overlapping, in the middle of nothing."""
    rng = np.random.default_rng(8)
    starts = rng.integers(0, 5000, 77)
    ends = starts + rng.integers(0, 150, 77)
    records = [DATA[a:b].tobytes() for a, b in zip(starts, ends, strict=True)]
    module: Any = _core
    if kernels == "numba":
        from aisec_fast._numba import records as module
    out = np.empty((77, 32), np.uint8)
    module.blake3_records(DATA, starts, ends, np.frombuffer(KEY, np.uint32), 16, out, 0)
    assert_equal(out, expected(records, "blake3", KEY, 32))
    module.sha256_records(DATA, starts, ends, reference.hmac_chaining(KEY), out, 0)
    assert_equal(out, expected(records, "hmac-sha256", KEY, 32))
    short = np.empty((77, 8), np.uint8)
    module.siphash24_records(DATA, starts, ends, np.frombuffer(KEY[:16], np.uint32), short, 0)
    assert_equal(short, expected(records, "siphash24", KEY[:16], 8))


GUARDED = """
import ctypes, mmap, sys
import numpy as np
from aisec_fast import _core
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 4 * page)
whole = np.frombuffer(memory, np.uint8)
whole[:] = np.arange(4 * page) % 251
libc = ctypes.CDLL(None, use_errno=True)
for guard in (0, 3 * page):
    assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + guard), ctypes.c_size_t(page), 0) == 0
data = whole[page : 3 * page]
def places(sizes):
    sizes = np.array(sizes)
    at_the_end, at_the_start = np.full(len(sizes), data.size), np.zeros(len(sizes), np.int64)
    return np.concatenate([at_the_end - sizes, at_the_start]), np.concatenate([at_the_end, at_the_start + sizes])
key = np.arange(8, dtype=np.uint32)
both = np.arange(16, dtype=np.uint32).reshape(2, 8)
for name in _core.instruction_sets():
    for sha in (True, False):
        _core.use_instruction_set(name, sha)
        for sizes in ([size] for size in range(140)):
            starts, ends = places(sizes * 9)
            for columns in (32, 64):
                _core.blake3_records(data, starts, ends, key, 16, np.empty((len(starts), columns), np.uint8), 1)
            out = np.empty((len(starts), 32), np.uint8)
            _core.sha256_records(data, starts, ends, key, out, 1)
            _core.sha256_records(data, starts, ends, both, out, 1)
            _core.siphash24_records(data, starts, ends, key[:4], out[:, :8].copy(), 1)
        starts, ends = places(list(range(0, 1500, 7)) + [5000])
        _core.blake3_records(data, starts, ends, key, 16, np.empty((len(starts), 32), np.uint8), 1)
        _core.sha256_records(data, starts, ends, both, np.empty((len(starts), 32), np.uint8), 1)
        _core.siphash24_records(data, starts, ends, key[:4], np.empty((len(starts), 16), np.uint8), 1)
print("nothing else was read", flush=True)
if len(sys.argv) > 1:
    print(whole[3 * page])
"""


def test_nothing_outside_the_records_is_read() -> None:
    """Records that begin and end where memory does: a page that may not be read lies on either side."""
    run = subprocess.run([sys.executable, "-c", GUARDED], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "nothing else was read\n"
    guarded = subprocess.run([sys.executable, "-c", GUARDED, "touch"], check=False, capture_output=True)
    assert guarded.returncode < 0  # killed: the pages do guard


def test_the_gil_is_released() -> None:
    """Another thread gets to run, though Python itself would not let it for an hour."""
    offsets = np.arange(0, 1 << 20, 16)
    started, ran = threading.Event(), threading.Event()

    def other() -> None:
        started.wait()
        ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        started.set()
        for _ in range(50):
            if ran.is_set():
                break
            _core.sha256_records(
                DATA, offsets[:-1], offsets[1:], np.zeros(8, np.uint32), np.empty((offsets.size - 1, 32), np.uint8), 1
            )
        found = ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert found


def test_backends_have_the_same_functions() -> None:
    core, numba = functions(PACKAGE / "_core.pyi"), functions(PACKAGE / "_numba" / "records.py")
    assert len(numba) == 3
    for name, arguments in numba.items():
        assert core[name] == arguments, name


# ----------------------------------------------------------------------------------------------------------- wrong calls


def call(**changed: Any) -> Any:
    arguments = {"data": DATA[:100], "offsets": [0, 10, 30], "key": None, "algorithm": "blake3"} | changed
    return hash_records(arguments.pop("data"), arguments.pop("offsets"), **arguments)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"offsets": [0, 20, 10]}, ValueError, r"offsets\[2\] is 10, below offsets\[1\], which is 20"),
        ({"offsets": [-1, 20]}, ValueError, r"offsets\[0\] is -1, expected 0 or above"),
        ({"offsets": np.array([0, 2**31, 5], np.uint32)}, ValueError, r"offsets\[2\] is 5, below"),
        ({"offsets": [0, 50, 101, 102]}, ValueError, r"offsets\[2\] is 101, beyond the 100 bytes of data"),
        ({"offsets": [101]}, ValueError, r"offsets\[0\] is 101, beyond"),
        ({"offsets": np.array([0, 2**63], np.uint64)}, ValueError, "beyond the 100 bytes of data"),
        ({"offsets": []}, TypeError, "offsets has dtype float64"),
        ({"offsets": np.zeros(0, np.int32)}, ValueError, r"offsets has shape \[0\], expected \[n \+ 1\]"),
        ({"offsets": [[0, 1]]}, ValueError, r"offsets has shape \[1, 2\]"),
        ({"offsets": [0.0, 1.0]}, TypeError, "offsets has dtype float64, expected int32, int64"),
        ({"offsets": [True, True]}, TypeError, "offsets has dtype bool"),
        ({"offsets": np.ma.array([0, 1, 2], mask=[0, 1, 0])}, TypeError, "offsets is a masked array"),
        ({"data": "text"}, TypeError, "data is a str, expected bytes"),
        ({"data": DATA[:100:2]}, ValueError, "data is not one readable piece"),
        ({"key": b"short"}, ValueError, "key has 5 bytes, expected 32 for 'blake3'"),
        ({"key": "k" * 32}, TypeError, "key is a str"),
        ({"key": KEY, "algorithm": "sha256"}, ValueError, "key is given, but 'sha256' has none"),
        ({"algorithm": "hmac-sha256"}, ValueError, "key is None, expected the key of 'hmac-sha256'"),
        (
            {"algorithm": "hmac-sha256", "key": b""},
            ValueError,
            "key has 0 bytes, expected at least 1 for 'hmac-sha256'",
        ),
        ({"algorithm": "siphash24"}, ValueError, "key is None"),
        ({"algorithm": "siphash24", "key": KEY}, ValueError, "key has 32 bytes, expected 16 for 'siphash24'"),
        ({"algorithm": "md5"}, ValueError, "algorithm is 'md5', expected 'blake3', 'sha256'"),
        ({"algorithm": ["sha256"]}, ValueError, r"algorithm is \['sha256'\], expected"),
        ({"digest_size": 0}, ValueError, "digest_size is 0, expected at least 1"),
        ({"digest_size": 65537}, ValueError, "digest_size is 65537, expected 1 to 65536 for 'blake3'"),
        ({"digest_size": 33, "algorithm": "sha256"}, ValueError, "digest_size is 33, expected 1 to 32"),
        (
            {"digest_size": 12, "algorithm": "siphash24", "key": KEY[:16]},
            ValueError,
            "digest_size is 12, expected 8 or 16",
        ),
        ({"digest_size": 8.0}, TypeError, "digest_size is a float"),
        ({"max_threads": 0}, ValueError, "max_threads is 0, expected at least 1"),
        ({"nulls": "drop"}, ValueError, "nulls is 'drop', expected 'raise' or 'zero'"),
    ],
)
def test_wrong_calls(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(**changed)


def test_nothing_is_hashed_before_the_offsets_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_records, "_hash_chunk", lambda *_: pytest.fail("hashed"))
    with pytest.raises(ValueError, match="below"):
        call(offsets=[0, 90, 80])


class OnCuda:
    """What an array of a GPU tells before anyone touches it."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 1

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("touched")


@pytest.mark.parametrize("argument", ["data", "offsets"])
def test_arrays_of_a_gpu_are_refused(argument: str) -> None:
    with pytest.raises(aisec_fast.BackendError, match=f"{argument} lives on cuda:1, but records are hashed on the CPU"):
        call(**{argument: OnCuda()})


def test_a_forced_cuda_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AISEC_FAST_BACKEND", "cuda")
    with pytest.raises(aisec_fast.BackendError, match="data lives on cpu"):
        call()


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"starts": np.zeros(3, np.int32)}, "dtype that no kernel takes"),
        ({"starts": np.zeros(3, np.uint8)}, "starts has another dtype"),
        ({"ends": np.zeros(3, np.uint32)}, "ends has another dtype"),
        ({"ends": np.zeros(2, np.int64)}, "ends has 2 values, expected 3"),
        ({"out": np.zeros((2, 32), np.uint8)}, "a row for each of the 3 records"),
        ({"out": np.zeros((3, 0), np.uint8)}, "a row for each"),
        ({"out": np.zeros((3, 64), np.uint8)[:, ::2]}, "out is not C-contiguous"),
        ({"chaining": np.zeros(9, np.uint32)}, "chaining has 9 values, expected 8"),
        ({"out": np.zeros((3, 33), np.uint8)}, "more than 32 columns"),
    ],
)
def test_guards_of_the_binding(changed: dict[str, Any], error: str) -> None:
    arguments = {
        "data": DATA,
        "starts": np.zeros(3, np.int64),
        "ends": np.zeros(3, np.int64),
        "chaining": np.zeros(8, np.uint32),
        "out": np.empty((3, 32), np.uint8),
        "max_threads": 0,
    }
    with pytest.raises((TypeError, ValueError), match=error):
        _core.sha256_records(**arguments | changed)


def test_hashers_give_the_same_digest() -> None:
    offsets, records = cut([40])
    assert hash_records(DATA, offsets, key=KEY)[0].tobytes() == hashing.blake3(records[0], key=KEY).digest()
    assert hash_records(DATA, offsets, algorithm="sha256")[0].tobytes() == hashing.sha256(records[0]).digest()
