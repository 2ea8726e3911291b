"""Cases of the hashing family: one message in memory, in bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import aisec_fast
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
    data: Any = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    peers: dict[str, tuple[Callable[[], Any], Callable[[Array], str], bool]] = {}
    if name == "sha256":
        check = same_bits(_digest(hashlib.sha256(data)))
        peers["hashlib"] = (lambda: _digest(hashlib.sha256(data)), check, True)
    elif has("blake3"):
        import blake3

        check = same_bits(_digest(blake3.blake3(data)))
        peers["blake3"] = (lambda: _digest(blake3.blake3(data, max_threads=aisec_fast.get_num_threads())), check, True)
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
