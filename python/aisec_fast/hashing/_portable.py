"""The hashers on a backend whose kernels are functions of Python, Numba's: what ``blake3(...)`` gives where it is forced.

The native hashers are types of their own (src/cpp/bind_hashers.cpp). Each of these is a subclass of the public class, so
that to a caller they are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from .. import _checks
from .._backends import choose_host, register_hashers
from .._reference.hashing import DERIVE_KEY_CONTEXT, DERIVE_KEY_MATERIAL, IV, KEYED_HASH
from ._base import PORTABLE
from ._hashers import Bytes, as_bytes, blake3, sha256

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

State: TypeAlias = npt.NDArray[np.uint32]

_PIECE = 1 << 26  # bytes absorbed by one call of a kernel: between two calls Python notices an interrupt
_LAST = 2**64 - 1  # bytes of BLAKE3's output stream


def _fresh(words: int) -> State:
    state = np.zeros(words, np.uint32)
    state[:8] = IV
    return state


FRESH_BLAKE3, FRESH_SHA256 = _fresh(700), _fresh(26)


class _Portable:
    """What both hashers share where kernels are functions of Python: a state array, and a lock.

    The lock is there because such kernels run without the GIL.
    """

    _limit: tuple[int, ...]  # what the kernel takes after state and data
    _lock: threading.Lock
    _output: Callable[..., None]  # the kernels of the backend
    _state: State
    _update: Callable[..., None]

    def update(self, data: Buffer, /) -> Self:
        """Absorb ``data``."""
        array: Bytes = np.frombuffer(data, np.uint8) if type(data) is bytes else as_bytes(data, "data")
        with self._lock:
            if array.size <= _PIECE:
                self._update(self._state, array, *self._limit)
            else:
                self._state = self._absorbed(array)
        return self

    def _absorbed(self, data: Bytes) -> State:
        """A new state, the one after ``data``: an interrupt leaves the old one as it was."""
        state: State = self._state.copy()
        for start in range(0, data.size, _PIECE):
            self._update(state, data[start : start + _PIECE], *self._limit)
        return state

    def copy(self) -> Self:
        """An independent hasher with the same state."""
        new = type(self).__new__(type(self))
        new._update, new._output, new._limit, new._lock = self._update, self._output, self._limit, threading.Lock()
        with self._lock:
            new._state = self._state.copy()
        return new


class PortableBlake3(_Portable, blake3):
    """BLAKE3 on the kernels of the backend that is chosen when it is made."""

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
        self.update(data)

    def digest(self, length: int = 32, *, seek: int = 0) -> bytes:
        """Bytes of the output stream."""
        length, seek = _checks.whole(length, "length"), _checks.whole(seek, "seek")
        if seek + length > _LAST:
            raise ValueError(f"seek is {seek} and length {length}, expected a sum of at most 2^64 - 1")
        out = np.empty(length, np.uint8)
        with self._lock:
            self._output(self._state, out, seek)
        return out.tobytes()

    def hexdigest(self, length: int = 32, *, seek: int = 0) -> str:
        """:meth:`digest` in hexadecimal digits."""
        return self.digest(length, seek=seek).hex()

    def reset(self) -> Self:
        """Forget what was absorbed."""
        with self._lock:
            self._state[9:] = 0
        return self

    def _assume(self, other: Self, /) -> None:
        with self._lock:
            self._state = other._state.copy()


class PortableSha256(_Portable, sha256):
    """SHA-256 on the kernels of the backend that is chosen when it is made."""

    def __init__(self, data: Buffer = b"", /) -> None:
        kernels = choose_host("data").hashing
        self._update, self._output = kernels.sha256_update, kernels.sha256_output
        self._limit = ()
        self._lock = threading.Lock()
        self._state = FRESH_SHA256.copy()
        self.update(data)

    def digest(self) -> bytes:
        """The digest, 32 bytes."""
        out = np.empty(32, np.uint8)
        with self._lock:
            self._output(self._state, out)
        return out.tobytes()

    def hexdigest(self) -> str:
        """The digest as 64 hexadecimal digits."""
        return self.digest().hex()


PORTABLE.update({blake3: PortableBlake3, sha256: PortableSha256})
register_hashers(blake3, PortableBlake3, sha256, PortableSha256)


def _key_words(key: Buffer) -> State:
    array = as_bytes(key, "key")
    if array.size != 32:
        raise ValueError(f"key has {array.size} bytes, expected 32")
    return np.frombuffer(array.tobytes(), np.uint32)


def _context_key(kernels: ModuleType, context: object) -> State:
    """What the context stands for: its hash in a mode of its own (section 2.3 of the paper)."""
    if not isinstance(context, str):
        raise TypeError(f"derive_key_context is {_checks.kind_of(context)}, expected a str")
    try:
        encoded = context.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"derive_key_context is a str that has no UTF-8 form ({error.reason}), expected text"
        ) from None
    state, key = FRESH_BLAKE3.copy(), np.empty(32, np.uint8)
    state[8] = DERIVE_KEY_CONTEXT
    kernels.blake3_update(state, np.frombuffer(encoded, np.uint8), 1)
    kernels.blake3_output(state, key, 0)
    return key.view(np.uint32)
