"""A digest for each of many short records: columns of names, addresses, identifiers."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _arrays, _checks
from .._backends import Backend, choose_host
from .._reference.hashing import BLOCK, IV, KEYED_HASH
from ._columns import Records, records_of
from ._hashers import Bytes, as_bytes, blake3, sha256
from ._portable import FRESH_SHA256

if TYPE_CHECKING:
    from typing_extensions import Buffer

# One call of a kernel takes at most so many records and bytes: between two calls Python notices an interrupt.
_MOST_RECORDS, _MOST_BYTES = 1 << 20, 1 << 26
_LARGEST_DIGEST = 1 << 16


class _Method(NamedTuple):
    """An algorithm with its key and size of digest."""

    kernel: Callable[[Bytes, Any, Any, Bytes], None]  # data, starts, ends, out
    alone: Callable[[Any], bytes] | None  # one long record, in pieces


def hash_records(
    data: Any,
    offsets: Any = None,
    *,
    key: Buffer | None = None,
    algorithm: str = "blake3",
    digest_size: int | None = None,
    nulls: str = "raise",
    max_threads: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Digest of every record of a column, or of a buffer with offsets. No Python loop over the records of a column.

    Pseudonyms need a key: without one, whoever can guess a record can find its digest. Equal records have equal digests.

    Args:
        data: with ``offsets`` a C-contiguous buffer (bytes, numpy, ...). Without: an Arrow column of strings or binary
            of any library that has the Arrow PyCapsule interface (pyarrow ``Array`` and ``ChunkedArray``, polars
            ``Series``, ...), plain, large, view, fixed-size or dictionary; a pandas ``Series`` or ``Index`` of strings
            or bytes, categorical too; a numpy array ``[n]`` of ``S``, ``U``, ``V``, ``StringDType`` or objects, or
            ``[n, width]`` of uint8; a sequence of str and bytes. A str is hashed as UTF-8. numpy's ``S`` and ``U`` do
            not tell trailing NULs from padding, so there they are no part of a value.
        offsets: integers ``[n + 1]`` as Arrow has them: record i is ``data[offsets[i]:offsets[i + 1]]``. The first may
            be above 0, and data may go on after the last.
        key: "blake3": None, or 32 bytes for a keyed hash. "hmac-sha256": bytes, any number but 0 (RFC 2104 discourages
            fewer than 32). "siphash24": 16 bytes. "sha256" has none.
        algorithm: "blake3", "sha256", "hmac-sha256" or "siphash24" (SipHash-2-4, for tables and short tags: 8 bytes are too few
            where collisions matter).
        digest_size: bytes of a digest. "blake3": 1 to 65536, default 32. "sha256" and "hmac-sha256": 1 to 32, the first
            bytes of the digest, default 32 (RFC 2104, section 5, advises 16 or more). "siphash24": 8, the default, or
            16, which is SipHash-2-4-128 and another function.
        nulls: what a null (Arrow's; None, NaN and ``pandas.NA`` in objects) does. "raise": ValueError. "zero": its row
            is zeros, which no record has but by a chance of 2^(-8 digest_size).
        max_threads: most threads to use, at least 1; None: as many as :func:`aisec_fast.get_num_threads` says. Few
            records take one.

    Returns:
        uint8 ``[n, digest_size]``, C-contiguous, the same on every backend, instruction set and number of threads
        (docs/hashing-records.md).

    Raises:
        TypeError: no column, or one of other values than strings and bytes; offsets that are no integers.
        ValueError: offsets that decrease, are negative or leave data, named with their index; a null; a key or digest size
            that the algorithm does not have; an unknown algorithm; a str that has no UTF-8 form.
        BackendError: data lives on a GPU, or the forced backend is missing or "cuda".

    Source: BLAKE3 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020), FIPS 180-4, RFC 2104, SipHash (Aumasson,
    Bernstein, 2012).
    """
    if nulls not in ("raise", "zero"):
        raise ValueError(f"nulls is {nulls!r}, expected 'raise' or 'zero'")
    limit = 0 if max_threads is None else _checks.whole(max_threads, "max_threads", least=1)
    if algorithm not in [*_ALGORITHMS]:
        raise ValueError(f"algorithm is {algorithm!r}, expected {', '.join(map(repr, _ALGORITHMS))}")
    usual, sizes, make = _ALGORITHMS[algorithm]
    size = usual if digest_size is None else _checks.whole(digest_size, "digest_size", least=1)
    if size not in sizes:
        expected = f"1 to {sizes[-1]}" if isinstance(sizes, range) else " or ".join(map(str, sizes))
        raise ValueError(f"digest_size is {size}, expected {expected} for {algorithm!r}")
    secret = None if key is None else as_bytes(key, "key").tobytes()
    method = make(choose_host("data"), secret, size, limit)
    chunks = records_of(data, offsets)
    if nulls == "raise":
        _refuse_nulls(chunks)
    out = _arrays.empty((sum(chunk.rows for chunk in chunks), size), np.uint8, "data")
    first = 0
    for chunk in chunks:
        _hash_chunk(method, chunk, out[first : first + chunk.rows])
        first += chunk.rows
    return out


def _refuse_nulls(chunks: list[Records]) -> None:
    first = 0
    for chunk in chunks:
        if chunk.valid is not None and not chunk.valid.all():
            count = sum(int(c.rows - c.valid.sum()) for c in chunks if c.valid is not None)
            raise ValueError(
                f"data[{first + int(chunk.valid.argmin())}] is null, and {count} of all are; expected none, "
                "or nulls='zero', which makes their rows zeros"
            )
        first += chunk.rows


def _hash_chunk(method: _Method, chunk: Records, out: Bytes) -> None:
    if chunk.codes is None:
        _hash(method, chunk, out)
    else:
        digests = _arrays.empty((len(chunk.starts), out.shape[1]), np.uint8, "data")
        _hash(method, chunk, digests)
        np.take(digests, chunk.codes, axis=0, out=out, mode="clip")  # mode "raise" would buffer out
    if chunk.valid is not None:
        out[~chunk.valid] = 0


def _hash(method: _Method, records: Records, out: Bytes) -> None:
    for first in range(0, len(out), _MOST_RECORDS):
        part = slice(first, first + _MOST_RECORDS)
        starts, ends = records.starts[part], records.ends[part]
        size = int(ends[-1]) - int(starts[0]) if records.adjoin else int((ends - starts).sum())
        if size <= _MOST_BYTES:
            method.kernel(records.data, starts, ends, out[part])
        else:
            _hash_by_bytes(method, records.data, starts, ends, out[part])


def _hash_by_bytes(method: _Method, data: Bytes, starts: Any, ends: Any, out: Bytes) -> None:
    """As many records at a time as have few enough bytes."""
    total = np.cumsum(ends - starts, dtype=np.int64)
    first = 0
    while first < len(out):
        before = int(total[first - 1]) if first else 0
        last = int(np.searchsorted(total, before + _MOST_BYTES, "right"))
        if last > first or method.alone is None:
            part = slice(first, max(last, first + 1))
            method.kernel(data, starts[part], ends[part], out[part])
            first = part.stop
        else:
            record = data[int(starts[first]) : int(ends[first])]
            out[first] = np.frombuffer(method.alone(record), np.uint8)
            first += 1


# --- Algorithms -------------------------------------------------------------------------------------------------------


def _require_key(key: bytes | None, algorithm: str) -> bytes:
    if key is None:
        raise ValueError(f"key is None, expected the key of {algorithm!r}")
    return key


def _blake3(backend: Backend, key: bytes | None, size: int, limit: int) -> _Method:
    if key is not None and len(key) != 32:
        raise ValueError(f"key has {len(key)} bytes, expected 32 for 'blake3'")
    words = np.array(IV, np.uint32) if key is None else np.frombuffer(key, np.uint32)
    mode, kernel = 0 if key is None else KEYED_HASH, backend.records.blake3_records
    return _Method(
        lambda data, starts, ends, out: kernel(data, starts, ends, words, mode, out, limit),
        lambda record: blake3(record, key=key, max_threads=limit or None).digest(size),
    )


def _sha256(backend: Backend, key: bytes | None, size: int, limit: int) -> _Method:
    if key is not None:
        raise ValueError(
            "key is given, but 'sha256' has none, and a hash of key and record is no MAC: use 'hmac-sha256'"
        )
    return _sha256_from(backend, FRESH_SHA256[:8].copy(), lambda record: sha256(record).digest()[:size], limit)


def _hmac_sha256(backend: Backend, key: bytes | None, size: int, limit: int) -> _Method:
    given = _require_key(key, "hmac-sha256")
    if not given:  # a variable that was not set, say: anybody could compute these digests
        raise ValueError(
            "key has 0 bytes, expected at least 1 for 'hmac-sha256', better 32: without a key it is no secret"
        )
    short = sha256(given).digest() if len(given) > BLOCK else given
    padded = np.frombuffer(short.ljust(BLOCK, b"\0"), np.uint8)
    states = np.stack([FRESH_SHA256, FRESH_SHA256])
    for state, pad in zip(states, (0x36, 0x5C), strict=True):
        backend.hashing.sha256_update(state, padded ^ np.uint8(pad))
    chaining = states[:, :8].copy()
    method: Any = sha256  # typeshed asks for a hash object of hashlib
    return _sha256_from(backend, chaining, lambda record: hmac.new(given, record, method).digest()[:size], limit)


def _sha256_from(
    backend: Backend, chaining: npt.NDArray[np.uint32], alone: Callable[[Any], bytes], limit: int
) -> _Method:
    kernel = backend.records.sha256_records
    return _Method(lambda data, starts, ends, out: kernel(data, starts, ends, chaining, out, limit), alone)


def _siphash24(backend: Backend, key: bytes | None, size: int, limit: int) -> _Method:  # noqa: ARG001 - out has the size
    given = _require_key(key, "siphash24")
    if len(given) != 16:
        raise ValueError(f"key has {len(given)} bytes, expected 16 for 'siphash24'")
    words, kernel = np.frombuffer(given, np.uint32), backend.records.siphash24_records
    return _Method(lambda data, starts, ends, out: kernel(data, starts, ends, words, out, limit), None)


# The usual size of a digest, those there are, and what makes the method.
_ALGORITHMS: dict[str, tuple[int, range | tuple[int, ...], Callable[..., _Method]]] = {
    "blake3": (32, range(1, _LARGEST_DIGEST + 1), _blake3),
    "sha256": (32, range(1, 33), _sha256),
    "hmac-sha256": (32, range(1, 33), _hmac_sha256),
    "siphash24": (8, (8, 16), _siphash24),
}
