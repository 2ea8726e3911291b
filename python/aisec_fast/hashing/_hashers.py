"""The hashers: BLAKE3 with the shape of PyPI's `blake3`, SHA-256 with that of `hashlib`."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import _checks
from .._backends import choose_host
from .._reference.hashing import DERIVE_KEY_CONTEXT, DERIVE_KEY_MATERIAL, IV, KEYED_HASH

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

State: TypeAlias = npt.NDArray[np.uint32]
Bytes: TypeAlias = npt.NDArray[np.uint8]

_PIECE = 1 << 26  # bytes absorbed by one call of a kernel: between two calls Python notices an interrupt
_READ = 1 << 20  # bytes read at a time from what cannot be mapped
_LAST = 2**64 - 1  # bytes of BLAKE3's output stream


def _fresh(words: int) -> State:
    state = np.zeros(words, np.uint32)
    state[:8] = IV
    return state


FRESH_BLAKE3, FRESH_SHA256 = _fresh(700), _fresh(26)


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
        message = f"{name} is a {type(data).__name__}, expected bytes or another object with the buffer protocol{hint}"
        raise TypeError(message) from error
    if not isinstance(data, (bytes, bytearray, np.ndarray)) and "O" in memoryview(buffer).format:
        raise TypeError(f"{name} is a {type(data).__name__} of references to objects, expected plain values")
    return found


def _absorbed(update: Callable[..., None], state: State, data: Bytes, *limit: int) -> State:
    """A new state, the one after ``data``: an interrupt leaves the old one as it was."""
    state = state.copy()
    for start in range(0, data.size, _PIECE):
        update(state, data[start : start + _PIECE], *limit)
    return state


class _Hasher:
    """What both hashers share: a state, the kernels that work on it, and a lock, because kernels run without the GIL."""

    __slots__ = ("_limit", "_lock", "_output", "_state", "_update")

    name: ClassVar[str]
    digest_size: ClassVar[int] = 32
    block_size: ClassVar[int] = 64

    _limit: tuple[int, ...]  # what the kernel takes after state and data
    _lock: threading.Lock
    _output: Callable[..., None]  # the kernels of the backend
    _state: State
    _update: Callable[..., None]

    def update(self, data: Buffer, /) -> Self:
        """Absorb ``data``.

        Args:
            data: bytes, bytearray, memoryview, numpy array or anything else with the buffer protocol, C-contiguous.

        Returns:
            The hasher itself.

        Raises:
            TypeError: ``data`` has no buffer (a str, a tensor) or is an array of Python objects.
            ValueError: ``data`` is not C-contiguous.
            OverflowError: more bytes in all than the function is defined for (BLAKE3 2^64 - 1, SHA-256 2^61 - 1).
        """
        array: Bytes = np.frombuffer(data, np.uint8) if type(data) is bytes else as_bytes(data, "data")
        with self._lock:
            if array.size <= _PIECE:
                self._update(self._state, array, *self._limit)
            else:
                self._state = _absorbed(self._update, self._state, array, *self._limit)
        return self

    def copy(self) -> Self:
        """An independent hasher with the same state."""
        new = object.__new__(type(self))
        new._update, new._output, new._limit, new._lock = self._update, self._output, self._limit, threading.Lock()
        with self._lock:
            new._state = self._state.copy()
        return new

    def __reduce__(self) -> Any:
        raise TypeError(f"a {self.name} hasher cannot be pickled; .copy() copies it inside this process")


class blake3(_Hasher):  # noqa: N801 - the name that PyPI's package has
    """BLAKE3: hash, keyed hash or key derivation, with output of any length.

    The digest is the same on every backend, instruction set and number of threads; docs/hashing.md is the contract.
    The backend is chosen when the hasher is made (:func:`aisec_fast.use_backend`). Calls on one hasher from several
    threads take turns, in no particular order. After a fork the child has a hasher of its own; one that another thread
    was working on at that moment must not be used there.

    Source: "BLAKE3: one function, fast everywhere" (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020).

    Args:
        data: the first bytes to absorb, as in :meth:`update`.
        key: 32 bytes; makes it a keyed hash (a MAC). Not together with ``derive_key_context``.
        derive_key_context: a str, hard-coded, unique to one use in one application; makes it a key derivation, and
            ``data`` the key material.
        max_threads: most threads one call may use, at least 1, and never more than :func:`aisec_fast.get_num_threads`.
            None or ``blake3.AUTO``: no further limit. Threads are used only where they win.

    Raises:
        TypeError, ValueError: a wrong argument, or both ``key`` and ``derive_key_context``.
        BackendError: a backend is forced that is missing, or "cuda" (:func:`hash_array` hashes arrays on a GPU).
    """

    __slots__ = ()

    name = "blake3"
    key_size: ClassVar[int] = 32
    AUTO: ClassVar[int] = -1

    def __init__(
        self,
        data: Buffer = b"",
        /,
        *,
        key: Buffer | None = None,
        derive_key_context: str | None = None,
        max_threads: int | None = None,
    ) -> None:
        limit = 0 if max_threads is None or max_threads == -1 else _checks.whole(max_threads, "max_threads", least=1)
        kernels = choose_host("data").hashing
        self._update, self._output = kernels.blake3_update, kernels.blake3_output
        self._limit = (limit,)
        self._lock = threading.Lock()
        self._state = state = FRESH_BLAKE3.copy()
        if key is not None:
            if derive_key_context is not None:
                raise ValueError("key and derive_key_context are both given, expected at most one of them")
            state[:8], state[8] = _key_words(key), KEYED_HASH
        elif derive_key_context is not None:
            state[:8], state[8] = _context_key(kernels, derive_key_context), DERIVE_KEY_MATERIAL
        if type(data) is not bytes or data:
            self.update(data)

    def digest(self, length: int = 32, *, seek: int = 0) -> bytes:
        """The digest, or any part of the output stream, which is endless for practical purposes; the state stays as it is.

        Args:
            length: number of bytes. A shorter output is the beginning of a longer one.
            seek: position of the first byte in the output stream; ``seek + length`` is at most 2^64 - 1.
        """
        if type(length) is not int or length < 0 or type(seek) is not int or seek < 0:  # the checks cost a microsecond
            length, seek = _checks.whole(length, "length"), _checks.whole(seek, "seek")
        if seek + length > _LAST:
            raise ValueError(f"seek is {seek} and length {length}, expected a sum of at most 2^64 - 1")
        out = np.empty(length, np.uint8)
        with self._lock:
            self._output(self._state, out, seek)
        return out.tobytes()

    def hexdigest(self, length: int = 32, *, seek: int = 0) -> str:
        """:meth:`digest` in hexadecimal digits, two for each of the ``length`` bytes."""
        return self.digest(length, seek=seek).hex()

    def reset(self) -> Self:
        """Forget what was absorbed, the ``data`` given at the start too; mode and key stay. Returns the hasher itself."""
        with self._lock:
            self._state[9:] = 0
        return self

    def update_mmap(self, path: str | os.PathLike[str]) -> Self:
        """Absorb a file, mapped into memory; what cannot be mapped (a pipe, an empty file) is read.

        If this raises, the hasher is as it was. A process that touches mapped memory behind the end of a file which
        another program has shortened meanwhile is killed (SIGBUS): for files that may change use :func:`hash_file`.

        Raises:
            OSError: the file cannot be opened or read.
        """
        with Path(path).open("rb") as file, self._lock:
            state = self._state.copy()
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # ValueError: an empty file, or one of /proc, which look empty
                while block := file.read(_READ):
                    self._update(state, np.frombuffer(block, np.uint8), *self._limit)
            else:  # unmapped with the last reference to it: closing it fails while a traceback still holds the array
                state = _absorbed(self._update, state, np.frombuffer(mapped, np.uint8), *self._limit)
            self._state = state
        return self


class sha256(_Hasher):  # noqa: N801 - the name that hashlib has
    """SHA-256 with the shape of hashlib's; ``hmac.new(key, data, sha256)`` works too.

    What :class:`blake3` says of backends, threads and forks holds here; a single stream runs on one thread.

    Source: FIPS 180-4, Secure Hash Standard (2015).

    Args:
        data: the first bytes to absorb, as in :meth:`update`.

    Raises:
        TypeError, ValueError: see :meth:`update`.
        BackendError: a backend is forced that is missing, or "cuda".
    """

    __slots__ = ()

    name = "sha256"

    def __init__(self, data: Buffer = b"", /) -> None:
        kernels = choose_host("data").hashing
        self._update, self._output = kernels.sha256_update, kernels.sha256_output
        self._limit = ()
        self._lock = threading.Lock()
        self._state = FRESH_SHA256.copy()
        if type(data) is not bytes or data:
            self.update(data)

    def digest(self) -> bytes:
        """The digest, 32 bytes; the state stays as it is."""
        out = np.empty(32, np.uint8)
        with self._lock:
            self._output(self._state, out)
        return out.tobytes()

    def hexdigest(self) -> str:
        """The digest as 64 hexadecimal digits."""
        return self.digest().hex()


HASHERS: dict[str, type[blake3 | sha256]] = {"blake3": blake3, "sha256": sha256}


def _key_words(key: Buffer) -> State:
    array = as_bytes(key, "key")
    if array.size != 32:
        raise ValueError(f"key has {array.size} bytes, expected 32")
    return np.frombuffer(array.tobytes(), np.uint32)


def _context_key(kernels: ModuleType, context: object) -> State:
    """What the context stands for: its hash in a mode of its own (section 2.3 of the paper)."""
    if not isinstance(context, str):
        raise TypeError(f"derive_key_context is a {type(context).__name__}, expected a str")
    state, key = FRESH_BLAKE3.copy(), np.empty(32, np.uint8)
    state[8] = DERIVE_KEY_CONTEXT
    kernels.blake3_update(state, np.frombuffer(context.encode(), np.uint8), 1)
    kernels.blake3_output(state, key, 0)
    return key.view(np.uint32)
