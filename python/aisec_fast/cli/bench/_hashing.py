"""Cases of the hashing family: one message in memory, and many short records with a key; in bytes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from aisec_fast import hashing

from ._kernels import Array, DifferenceError, Operation, contenders, has, same_bits
from ._measure import Case, Contender, FloorPart

# Algorithms of hash_records, with a key and digests of 32 bytes.
RECORDS = {"records_blake3": "blake3", "records_hmac_sha256": "hmac-sha256"}
_KEY = bytes(range(32))
_RECORD = 24  # bytes on average: 16 to 32
_MOST_RECORDS = 2**19  # a loop over so many takes a second
_CHECKED = 1000  # records compared with hashlib and blake3


def cases(sizes: list[int], threads: list[int]) -> Iterator[Case]:
    """``blake3`` on every number of threads; ``sha256``, which is sequential, on one; records at one size."""
    for operation in ("blake3", "sha256"):
        for size in sizes:
            for count in threads if operation == "blake3" else [1]:
                yield Case(
                    "hashing", operation, (size,), "uint8", count, size, 1, partial(_prepare, operation, size, count)
                )
    records = min(max(sizes) // _RECORD // 2 * 2, _MOST_RECORDS)
    moved = 1 + (4 + 32) / _RECORD  # an offset and a digest go with the bytes of a record
    for operation in RECORDS:
        for count in threads:
            prepare = partial(_prepare_records, operation, records)
            yield Case("hashing", operation, (records, _RECORD), "uint8", count, records * _RECORD, moved, prepare)


def _prepare(name: str, size: int, threads: int) -> tuple[list[Contender], list[FloorPart]]:
    data: Any = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    peers: dict[str, tuple[Callable[[], Any], Callable[[Array], str], bool]] = {}
    if name == "sha256":
        check = same_bits(_digest(hashlib.sha256(data)))
        peers["hashlib"] = (lambda: _digest(hashlib.sha256(data)), check, True)
    elif has("blake3"):
        import blake3

        check = same_bits(_digest(blake3.blake3(data)))
        peers["blake3"] = (lambda: _digest(blake3.blake3(data, max_threads=threads)), check, True)
        if threads > 1:  # which its threads are slower than up to some MiB
            peers["blake3, one thread"] = (lambda: _digest(blake3.blake3(data)), check, True)
    else:
        agrees = same_bits(_digest(hashing.blake3(data)))

        def check(result: Array) -> str:
            return f"equal {agrees(result)}"  # among our backends: no other BLAKE3 is installed

    ours = Operation(lambda values: lambda: _hash(name, values), check, peers)
    found, floors = contenders(ours, data, reads=1, hashing=True)
    return [one for one in found if name == "blake3" or one.backend != "cuda"], floors


def _hash(name: str, values: Any) -> Array:
    if isinstance(values, np.ndarray):
        return _digest(getattr(hashing, name)(values))
    return np.frombuffer(hashing.hash_array(values, name), np.uint8)


def _digest(hasher: Any) -> Array:
    return np.frombuffer(hasher.digest(), np.uint8)


def _prepare_records(name: str, count: int) -> tuple[list[Contender], list[FloorPart]]:
    """Texts of 16 to 32 bytes, as a buffer with offsets; peers take what suits them best, made before."""
    rng = np.random.default_rng(0)
    half = rng.integers(16, 33, count // 2)
    offsets = np.concatenate([[0], np.cumsum(np.stack([half, 2 * _RECORD - half], 1))]).astype(np.int32)
    data: Any = rng.integers(97, 123, count * _RECORD, dtype=np.uint8)
    algorithm, raw = RECORDS[name], data.tobytes()
    records = [raw[begin:end] for begin, end in pairwise(offsets.tolist())]
    peers: dict[str, tuple[Callable[[], Any], Callable[[Array], str], bool]] = {}
    if name == "records_hmac_sha256":

        def digest(record: bytes) -> bytes:
            return hmac.digest(_KEY, record, "sha256")

        peers["hmac"] = (lambda: _loop(digest, records), same_bits(_loop(digest, records[:_CHECKED])), True)
        if has("polars_hash"):
            peers["polars-hash"] = (*_polars_hash(records), True)
    else:

        def digest(record: bytes) -> bytes:
            return hashing.blake3(record, key=_KEY).digest()

        if has("blake3"):
            import blake3

            def digest(record: bytes) -> bytes:
                return blake3.blake3(record, key=_KEY).digest()

            peers["blake3"] = (lambda: _loop(digest, records), same_bits(_loop(digest, records[:_CHECKED])), True)
    ours = Operation(
        lambda values: lambda: hashing.hash_records(values, offsets, key=_KEY, algorithm=algorithm).reshape(-1),
        same_bits(_loop(digest, records[:_CHECKED])),
        peers,
    )
    return contenders(ours, data, reads=1 + 4 / _RECORD, writes=32 / _RECORD, on_devices=False, hashing=True)


def _loop(digest: Callable[[bytes], bytes], records: list[bytes]) -> Array:
    return np.frombuffer(b"".join([digest(record) for record in records]), np.uint8)


def _polars_hash(
    records: list[bytes],
) -> tuple[Callable[[], Any], Callable[[Array], str]]:
    """polars-hash makes hexadecimal text, with a key that is text: it is timed with one, and checked with it."""
    import polars as pl
    import polars_hash

    key = _KEY.hex()[:32]
    frame = pl.DataFrame({"record": [record.decode() for record in records]})
    column = polars_hash.col("record").chash.hmac_sha256(key=key)
    expected = [hmac.digest(key.encode(), record, "sha256").hex() for record in records[:_CHECKED]]

    def check(result: Array) -> str:
        if result[:_CHECKED].tolist() != expected:
            raise DifferenceError("polars-hash differs from hmac")
        return "bits"

    return lambda: frame.select(column).to_series(), check
