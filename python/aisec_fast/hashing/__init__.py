"""Hashing: BLAKE3 and SHA-256, as fast as the machine allows.

:class:`blake3` has the shape of PyPI's `blake3` and :class:`sha256` that of hashlib's, so that code changes by its import;
:func:`hash_array` hashes arrays of numpy, torch and cupy where they live, :func:`hash_file` and :func:`hash_directory` what is
on disk, :func:`hash_records` every record of a column. Digests are the same on every backend,
instruction set and number of threads; docs/hashing.md and docs/hashing-records.md are the contract.
"""

from ._files import hash_directory, hash_file
from ._hash_array import hash_array
from ._hashers import blake3, sha256
from ._portable import PortableBlake3 as _  # noqa: F401 - makes other backends known to the hashers
from ._records import hash_records

__all__ = ["blake3", "hash_array", "hash_directory", "hash_file", "hash_records", "sha256"]
