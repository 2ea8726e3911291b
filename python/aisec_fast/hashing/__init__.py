"""Hashing: BLAKE3 and SHA-256, as fast as the machine allows.

:class:`blake3` has the shape of PyPI's `blake3` and :class:`sha256` that of hashlib's, so that code changes by its import;
:func:`hash_array` hashes arrays of numpy, torch and cupy where they live, :func:`hash_file` and :func:`hash_directory` what is
on disk, :func:`hash_records` every record of a column. Digests are the same on every backend,
instruction set and number of threads; docs/hashing.md and the pages it names are the contract.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._files import hash_directory, hash_file
    from ._hash_array import hash_array
    from ._hashers import blake3, sha256
    from ._records import hash_records

__all__ = ["blake3", "hash_array", "hash_directory", "hash_file", "hash_records", "sha256"]

_HOMES = {
    "blake3": "_portable",  # which imports _hashers, and makes the other backends known to it
    "hash_array": "_hash_array",
    "hash_directory": "_files",
    "hash_file": "_files",
    "hash_records": "_records",
    "sha256": "_portable",
}


def __getattr__(name: str) -> Any:
    """The native kernels are loaded with the first name that is used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
