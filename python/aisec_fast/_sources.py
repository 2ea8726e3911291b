"""Sources of randomness: where the key of each call comes from. docs/noise.md section 2."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from typing import Any, NoReturn

from . import _checks

_KEY_BYTES = 32
_sources: weakref.WeakSet[Source] = weakref.WeakSet()


class Source:
    """A 32-byte state that gives one fresh key to each call and forgets the state it came from."""

    any_generator = False  # whether words may come from whatever is fastest here; else from ChaCha, the same everywhere

    def __init__(self, state: bytes) -> None:
        self._state = bytearray(state)
        self._locks: dict[int, threading.Lock] = {}  # one a process: a fork may copy a lock that is held
        _sources.add(self)

    def next_key(self) -> bytes:
        """A fresh 32-byte key; the state that made it is overwritten before it is returned."""
        return self.next_keys(1)[0]

    def next_keys(self, count: int) -> list[bytes]:
        """So many keys, those that as many calls of :meth:`next_key` would give."""
        keys = []
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            self._enter_process()
            for _ in range(count):
                derived = hashlib.blake2b(
                    b"aisec_fast call key", key=bytes(self._state), digest_size=2 * _KEY_BYTES
                ).digest()
                self._state[:] = derived[:_KEY_BYTES]
                keys.append(derived[_KEY_BYTES:])
        return keys

    def _enter_process(self) -> None:
        """What a source does before each key, under its lock."""

    def _after_fork(self) -> None:
        """What a source does in a forked child, before anything else runs there."""

    def _refuse(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled: two copies would give the same noise")

    def __copy__(self) -> NoReturn:
        self._refuse()

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self._refuse()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._refuse()


class SecureSource(Source):
    """Randomness for private use: seeded by the operating system, again in every forked child.

    Keys come from keyed BLAKE2b (RFC 7693) with fast key erasure: a stolen state tells nothing of earlier calls. A key is
    expanded by AES-128 in counter mode where the CPU has instructions for it (``info()["generators"]``), else by
    ChaCha12. It cannot be copied, pickled, seeded or reset. Safe to share among threads.
    """

    any_generator = True

    def __init__(self) -> None:
        super().__init__(os.urandom(_KEY_BYTES))
        self._process = os.getpid()

    def _enter_process(self) -> None:
        if self._process != os.getpid():  # a fork that did not run Python's fork handlers
            self._after_fork()

    def _after_fork(self) -> None:
        self._state[:] = os.urandom(_KEY_BYTES)
        self._process = os.getpid()


class SeededSource(Source):
    """Repeatable randomness, for tests only: whoever knows the seed knows the noise.

    The same seed gives the same sequence of keys, hence (always by ChaCha12) the same bits, on every backend. It advances
    with each array.
    A forked child repeats its parent.

    Args:
        seed: an integer of at least 0.
    """

    def __init__(self, seed: int) -> None:
        from ._checks import whole

        number = whole(seed, "seed")
        encoded = number.to_bytes(max(1, (number.bit_length() + 7) // 8), "little")
        super().__init__(hashlib.sha256(b"aisec_fast seed " + encoded).digest())


_default: SecureSource | None = None
_default_lock = threading.Lock()


def _renew_after_fork() -> None:
    global _default_lock
    _default_lock = threading.Lock()  # another thread of the parent may have held the old one
    for source in list(_sources):
        source._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_after_fork)


def _own_source() -> SecureSource:
    global _default
    with _default_lock:
        if _default is None:
            _default = SecureSource()
        return _default


def chosen(source: Source | None) -> Source:
    """``source``, or the process's own SecureSource; TypeError for anything else."""
    if source is None:
        return _default or _own_source()
    if not isinstance(source, Source):
        raise TypeError(f"source is {_checks.kind_of(source)}, expected a SecureSource or SeededSource")
    return source
