"""Cases of the hashing family: one message in memory, in bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from aisec_fast import hashing

from ._kernels import Array, Operation, contenders, has, same_bits
from ._measure import Case, Contender, FloorPart


def cases(sizes: list[int], threads: list[int]) -> Iterator[Case]:
    """``blake3`` on every number of threads; ``sha256``, which is sequential, on one."""
    for operation in ("blake3", "sha256"):
        for size in sizes:
            for count in threads if operation == "blake3" else [1]:
                yield Case("hashing", operation, (size,), "uint8", count, size, 1, partial(_prepare, operation, size))


def _prepare(name: str, size: int) -> tuple[list[Contender], list[FloorPart]]:
    data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    reference = hashlib.sha256 if name == "sha256" else _blake3_of_pypi()
    # Without PyPI's blake3 the backends are compared with ours of the tests' vectors: the reference in plain Python.
    expected = reference(data).digest() if reference else hashing.blake3(data).digest()
    check = same_bits(np.frombuffer(expected, np.uint8))
    peers: dict[str, tuple[Callable[[], Any], Callable[[Array], str], bool]] = {}
    if name == "sha256":
        peers["hashlib"] = (lambda: _digest(hashlib.sha256(data)), check, True)
    elif reference:
        from aisec_fast import get_num_threads

        peers["blake3"] = (lambda: _digest(reference(data, max_threads=get_num_threads())), check, True)
    ours = Operation(lambda values: lambda: _hash(name, values), check, peers)
    found, floors = contenders(ours, data, reads=1)
    return [one for one in found if name == "blake3" or one.backend != "cuda"], floors


def _hash(name: str, values: Any) -> Array:
    if isinstance(values, np.ndarray):
        return _digest(getattr(hashing, name)(values))
    return np.frombuffer(hashing.hash_array(values, name), np.uint8)


def _digest(hasher: Any) -> Array:
    return np.frombuffer(hasher.digest(), np.uint8)


def _blake3_of_pypi() -> Any:
    if not has("blake3"):
        return None
    import blake3

    return blake3.blake3
