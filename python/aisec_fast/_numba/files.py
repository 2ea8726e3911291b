"""Reading and hashing of files in Python, on threads: what runs where there are no native kernels.

The functions, their results and their errors are those of src/cpp/bind_files.cpp; docs/hashing-files.md is the contract.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from typing import Any

from ..hashing import _files
from ..hashing._folders import PASS_THROUGH, TO_READ

_BLOCK = 1 << 20  # bytes read at a time for each hashing thread: a block stays in the second-level cache
_LARGEST_BLOCK = 1 << 25
# Below this many bytes a file costs Python more than hashing: one thread takes all of these, several would only hand the
# interpreter's lock to and fro.
_SMALL = 1 << 16
_WAKE = 0.05  # seconds after which the calling thread looks up
_ATTEMPTS = 3  # to open a file when there is no descriptor left, and none of them is ours
_NAP = 0.001  # seconds between two looks for a free descriptor


def open_beneath(root: int, place: str, flags: int) -> int:
    """A descriptor of ``place``, one folder opened after another: no link is followed in any part of it."""
    *folders, last = place.split("/")
    folder = root
    part = last
    try:
        for part in folders:
            below = os.open(_inside(part), PASS_THROUGH | os.O_NOFOLLOW, dir_fd=folder)
            if folder != root:
                os.close(folder)
            folder = below
        part = last
        return os.open(_inside(part) or ".", flags | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        # Linux says ENOTDIR where a folder is wanted and a link is found.
        if error.errno == errno.ENOTDIR and _is_link(part, folder):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        raise
    finally:
        if folder != root:
            os.close(folder)


def _inside(part: str) -> str:
    if part == "..":
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return part


def _is_link(name: str, folder: int) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def folder_entries(root: int, folder: str) -> tuple[list[str], list[int], list[int], list[tuple[int, int]]]:
    """Names, sizes and modes of what is in a folder, in no order, and (index, errno) of what could not be asked for."""
    names, sizes, modes, errors = [], [], [], []
    descriptor = open_beneath(root, folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                names.append(entry.name)
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError as error:
                    errors.append((len(names) - 1, error.errno or errno.EIO))
                    sizes.append(0)
                    modes.append(0)
                else:
                    sizes.append(status.st_size)
                    modes.append(status.st_mode)
    finally:
        os.close(descriptor)
    return names, sizes, modes, errors


def hash_files(
    roots: list[int],
    places: list[str],
    sizes: list[int],
    algorithm: str,
    threads: int,
    keep_going: bool,
    progress: Callable[[int, int], object] | None,
    tick: float,
) -> tuple[bytes, list[tuple[int, str, int, int]]]:
    """All digests, one after the other, and (index, kind, first, second) of what failed."""
    run = _Run(roots, places, sizes, _files.hashers(algorithm), threads, keep_going, progress, tick)
    return run.results(), run.failures


class _Stopped(BaseException):
    """Another thread has failed or was interrupted."""


class _FailureError(Exception):
    """A file that could not be hashed: kind, first, second."""


class _Run:
    """One call: workers take files from a queue, the largest first; the calling thread reports progress."""

    def __init__(
        self,
        roots: list[int],
        places: list[str],
        sizes: list[int],
        new_hasher: Callable[[int], Any],
        threads: int,
        keep_going: bool,
        progress: Callable[[int, int], object] | None,
        tick: float,
    ) -> None:
        self.roots, self.places, self.sizes, self.new_hasher, self.threads = roots, places, sizes, new_hasher, threads
        self.keep_going, self.progress, self.tick = keep_going, progress, tick
        self.total = sum(sizes)
        self.digests = bytearray(32 * len(places))
        self.failures: list[tuple[int, str, int, int]] = []
        self.small = deque(index for index, size in enumerate(sizes) if size < _SMALL)
        large = [index for index, size in enumerate(sizes) if size >= _SMALL]
        self.large = deque(sorted(large, key=lambda index: -sizes[index]))
        self.workers = min(threads, len(self.large) + bool(self.small))
        self.done = [0] * self.workers  # bytes; each worker writes to its own
        self.open = [False] * self.workers  # whether it holds a descriptor, or is about to
        self.stop = threading.Event()
        self.told = time.monotonic()

    def results(self) -> bytes:
        """Do all of it."""
        if self.workers == 1:
            self._work(0, self._tell)
        elif self.workers:
            self._spread()
        return bytes(self.digests)

    def _spread(self) -> None:
        with ThreadPoolExecutor(self.workers, thread_name_prefix="aisec_fast_files") as pool:
            try:
                # Each worker sees the caller's context: the backend that is forced there is forced here.
                pending = {
                    pool.submit(contextvars.copy_context().run, self._work, worker) for worker in range(self.workers)
                }
                while pending:
                    # Never without a limit: a signal that another thread caught is seen only when this one wakes up.
                    ended, pending = wait(pending, _WAKE, FIRST_EXCEPTION)
                    for future in ended:
                        future.result()
                    self._tell()
            except BaseException:  # an interrupt too: workers end at their next block
                self.stop.set()
                raise

    def _tell(self) -> None:
        if self.progress is not None and (now := time.monotonic()) - self.told >= self.tick:
            self.told = now
            self.progress(min(sum(self.done), self.total), self.total)

    def _work(self, worker: int, after_block: Callable[[], object] = lambda: None) -> None:
        with contextlib.suppress(_Stopped):
            for queue in (self.small, self.large) if worker == 0 else (self.large,):
                self._empty(queue, worker, after_block)

    def _empty(self, queue: deque[int], worker: int, after_block: Callable[[], object]) -> None:
        while not self.stop.is_set():
            try:
                index = queue.popleft()
            except IndexError:  # another worker took the last
                return
            try:
                self.digests[32 * index : 32 * index + 32] = self._digest(index, worker, after_block)
            except (OSError, _FailureError) as error:
                kind, first, second = error.args if isinstance(error, _FailureError) else ("failed", error.errno, 0)
                self.failures.append((index, kind, first, second))
                if not self.keep_going:
                    self.stop.set()

    def _digest(self, index: int, worker: int, after_block: Callable[[], object]) -> bytes:
        # By bytes, each file's fair share of the threads: they all end at about the same time.
        share = max(1, min(self.threads, round(self.threads * self.sizes[index] / max(1, self.total))))
        hasher, length = self.new_hasher(share), 0
        with self._opened(index, worker) as (descriptor, before):
            block = min(_BLOCK * share, _LARGEST_BLOCK, before.st_size + 1)
            with _blocks(descriptor, block, ahead=self.threads > self.workers and before.st_size > block) as blocks:
                for data in blocks:
                    length += len(data)
                    if length > before.st_size:  # somebody may be writing to it faster than we read
                        break
                    hasher.update(data)
                    self.done[worker] += len(data)
                    after_block()
                    if self.stop.is_set():
                        raise _Stopped
            if changed := _files.difference(descriptor, before, length):
                raise _FailureError(*changed)
        digest: bytes = hasher.digest()
        return digest

    @contextlib.contextmanager
    def _opened(self, index: int, worker: int) -> Iterator[tuple[int, os.stat_result]]:
        descriptor = self._descriptor(index, worker)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _FailureError("not_regular", status.st_mode, 0)
            yield descriptor, status
        finally:
            os.close(descriptor)
            self.open[worker] = False

    def _descriptor(self, index: int, worker: int) -> int:
        """Waits where there is no descriptor left but another worker has one."""
        root, place = self.roots[index], self.places[index]
        alone = 0
        while True:
            others = any(self.open)
            self.open[worker] = True
            try:
                return os.open(place, TO_READ) if root < 0 else open_beneath(root, place, TO_READ)
            except OSError as error:
                self.open[worker] = False
                alone += not others and not any(self.open)
                if error.errno not in (errno.EMFILE, errno.ENFILE) or alone == _ATTEMPTS:
                    raise
            if self.stop.wait(_NAP):
                raise _Stopped


@contextlib.contextmanager
def _blocks(descriptor: int, size: int, *, ahead: bool) -> Iterator[Iterator[memoryview]]:
    """A file's blocks. ``ahead``: a thread reads the next one while the caller works on this one."""
    if not ahead:
        view = memoryview(bytearray(size))
        yield _in_turn(descriptor, view)
        return
    # Leaving waits for a read in flight: its descriptor must not be closed before.
    with ThreadPoolExecutor(1, thread_name_prefix="aisec_fast-read") as reader:
        yield _in_advance(descriptor, memoryview(bytearray(size)), memoryview(bytearray(size)), reader)


def _in_turn(descriptor: int, view: memoryview) -> Iterator[memoryview]:
    while count := os.readv(descriptor, [view]):
        yield view[:count]


def _in_advance(descriptor: int, this: memoryview, other: memoryview, reader: Executor) -> Iterator[memoryview]:
    reading: Future[int] = reader.submit(os.readv, descriptor, [this])
    while count := reading.result():
        reading = reader.submit(os.readv, descriptor, [other])
        yield this[:count]
        this, other = other, this
