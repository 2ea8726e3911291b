"""The hashers: BLAKE3 with the shape of PyPI's `blake3`, SHA-256 with that of `hashlib`."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import _checks

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

    from .._core import Blake3 as _Blake3
    from .._core import Sha256 as _Sha256
else:
    try:
        from .._core import Blake3 as _Blake3
        from .._core import Sha256 as _Sha256
    except ImportError:  # the reason is told by use_backend("native")
        from ._base import Base as _Blake3
        from ._base import Base as _Sha256

Bytes: TypeAlias = npt.NDArray[np.uint8]

_NAMES = re.compile(":[^:]*:")  # of a structure's fields, in the format of a buffer
_READ = 1 << 20  # bytes read at a time from what cannot be mapped


def as_bytes(data: Buffer, name: str) -> Bytes:
    """The memory of an object with the buffer protocol, not copied."""
    buffer: Any = data  # numpy's stubs list types, not the protocol
    try:
        if isinstance(data, np.ndarray) and data.dtype.hasobject:
            raise TypeError(f"{name} has dtype {data.dtype}, expected plain values: it holds references to objects")
        found: Bytes = np.frombuffer(buffer, np.uint8)
    except (BufferError, ValueError) as error:
        raise ValueError(
            f"{name} is not one readable piece of memory ({error}), expected a contiguous buffer"
        ) from None
    except TypeError as error:
        if isinstance(data, np.ndarray):
            raise
        hint = "; encode it" if isinstance(data, str) else "; hash_array takes arrays" if hasattr(data, "shape") else ""
        message = f"{name} is {_checks.kind_of(data)}, expected bytes or another object with the buffer protocol{hint}"
        raise TypeError(message) from error
    if not isinstance(data, (bytes, bytearray, np.ndarray)) and "O" in _NAMES.sub("", memoryview(buffer).format):
        raise TypeError(f"{name} is {_checks.kind_of(data)} of references to objects, expected plain values")
    return found


class blake3(_Blake3):  # noqa: N801 - the name that PyPI's package has
    """BLAKE3: hash, keyed hash or key derivation, with output of any length.

    The digest is the same on every backend, instruction set and number of threads; docs/hashing.md is the contract.
    The backend is chosen when the hasher is made (:func:`aisec_fast.use_backend`). Calls on one hasher from several
    threads take turns, in no particular order. After a fork the child has a hasher of its own; one that another thread
    was working on at that moment must not be used there.

    Source: "BLAKE3: one function, fast everywhere" (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020).

    Methods:
        update(data): absorb bytes, bytearray, memoryview, numpy array or anything else with the buffer protocol,
            C-contiguous; returns the hasher itself. If it raises, the hasher is as it was.
        digest(length=32, *, seek=0): the digest, or any part of the output stream, which is endless for practical
            purposes; a shorter output is the beginning of a longer one, ``seek`` is the position of its first byte, and
            ``seek + length`` is at most 2^64 - 1. The state stays as it is.
        hexdigest(length=32, *, seek=0): the same in hexadecimal digits, two for each of the ``length`` bytes.
        copy(): an independent hasher with the same state.
        reset(): forget what was absorbed, the ``data`` given at the start too; mode and key stay. Returns the hasher.
        update_mmap(path): absorb a file.

    Args:
        data: the first bytes to absorb, as in ``update``.
        key: 32 bytes; makes it a keyed hash (a MAC). Not together with ``derive_key_context``.
        derive_key_context: a str, hard-coded, unique to one use in one application; makes it a key derivation, and
            ``data`` the key material.
        max_threads: most threads one call may use, at least 1, and never more than :func:`aisec_fast.get_num_threads`.
            None or ``blake3.AUTO``: no further limit. Threads are used only where they win.

    Raises:
        TypeError: data without a buffer (a str, a tensor), or an array of Python objects; a wrong argument.
        ValueError: data that is not C-contiguous, a key of another length, both ``key`` and ``derive_key_context``, a
            ``length`` or ``seek`` below 0 or beyond the stream.
        OverflowError: more bytes in all than the function is defined for, 2^64 - 1.
        BackendError: a backend is forced that is missing, or "cuda" (:func:`hash_array` hashes arrays on a GPU).
    """

    __slots__ = ()

    name: ClassVar[str] = "blake3"
    digest_size: ClassVar[int] = 32
    block_size: ClassVar[int] = 64
    key_size: ClassVar[int] = 32
    AUTO: ClassVar[int] = -1

    def update_mmap(self, path: str | os.PathLike[str]) -> Self:
        """Absorb a file, mapped into memory; what cannot be mapped (a pipe, an empty file) is read.

        If this raises, the hasher is as it was. A process that touches mapped memory behind the end of a file which
        another program has shortened meanwhile is killed (SIGBUS): for files that may change use :func:`hash_file`.

        Raises:
            OSError: the file cannot be opened or read.
        """
        with Path(path).open("rb") as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # ValueError: an empty file, or one of /proc, which look empty
                read = self.copy()
                while block := file.read(_READ):
                    read.update(block)
                self._assume(read)
            else:  # unmapped with the last reference to it: closing it fails while a traceback still holds the array
                self.update(mapped)
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a blake3 hasher cannot be pickled; .copy() copies it inside this process")


class sha256(_Sha256):  # noqa: N801 - the name that hashlib has
    """SHA-256 with the shape of hashlib's; ``hmac.new(key, data, sha256)`` works too.

    What :class:`blake3` says of backends, threads and forks holds here; a single stream runs on one thread.

    Source: FIPS 180-4, Secure Hash Standard (2015).

    Methods:
        update(data): as in :class:`blake3`.
        digest(), hexdigest(): the digest, 32 bytes or 64 hexadecimal digits; the state stays as it is.
        copy(): an independent hasher with the same state.

    Args:
        data: the first bytes to absorb.

    Raises:
        TypeError, ValueError: see :class:`blake3`.
        OverflowError: more than 2^61 - 1 bytes in all.
        BackendError: a backend is forced that is missing, or "cuda".
    """

    __slots__ = ()

    name: ClassVar[str] = "sha256"
    digest_size: ClassVar[int] = 32
    block_size: ClassVar[int] = 64

    def __reduce__(self) -> Any:
        raise TypeError("a sha256 hasher cannot be pickled; .copy() copies it inside this process")


HASHERS: dict[str, type[blake3 | sha256]] = {"blake3": blake3, "sha256": sha256}
