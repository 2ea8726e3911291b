"""Digests of files and of whole folders: read in blocks, hashed without the GIL, all cores filled across files.

Nothing is mapped into memory: a file that shrinks while it is mapped kills the process, a file that shrinks while it is
read is an error.
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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, TypeAlias, overload

from .. import _checks
from .._backends import get_num_threads
from .._errors import FileChangedError, UnsupportedFileError

StrPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
Progress: TypeAlias = Callable[[int, int], object]
DIGEST_SIZES = {"blake3": 32, "sha256": 32}

_BLOCK = 1 << 20  # bytes read at a time for each hashing thread: a block stays in the second-level cache
_LARGEST_BLOCK = 1 << 25
# Below this many bytes a file costs Python more than hashing: one thread takes all of these, several would only hand the
# interpreter's lock to and fro.
_SMALL = 1 << 16
_TICK = 0.05  # seconds between two calls of progress
_WAKE = 0.05  # seconds after which the calling thread looks up

_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class Found(NamedTuple):
    """One entry of a folder, or a file that a caller named."""

    name: str  # relative to the folder, "/" between its parts
    path: str  # where to open it
    size: int  # in bytes
    mode: int  # st_mode; of a link itself unless links are allowed
    follow: bool  # whether opening it may go through a link

    @property
    def kind(self) -> str:
        """In words: "a regular file", "a symbolic link", ..."""
        return _KINDS.get(stat.S_IFMT(self.mode), "a special file")

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    def refusal(self) -> UnsupportedFileError:
        """Why it cannot be hashed, if it is no regular file."""
        more = ""
        if stat.S_ISLNK(self.mode):
            more = ". Its target is none either" if self.follow else " (allow_symlinks takes its target instead)"
        return UnsupportedFileError(errno.EINVAL, f"is {self.kind}, expected a regular file{more}", self.path)


def hash_file(
    path: StrPath, algorithm: str = "blake3", *, max_threads: int | None = None, progress: Progress | None = None
) -> bytes:
    """Digest of a file's bytes.

    Args:
        path: A regular file, or a symbolic link to one.
        algorithm: "blake3" or "sha256" (one SHA-256 stream is sequential: more threads do not speed it up).
        max_threads: Most CPU threads to use; None: ``aisec_fast.get_num_threads()``. The digest does not depend on it.
        progress: Called as ``progress(done_bytes, total_bytes)`` from the calling thread, at most 20 times a second and
            once at the end.

    Returns:
        32 bytes.

    Raises:
        FileNotFoundError, PermissionError, OSError: The file cannot be opened or read; the error names it.
        IsADirectoryError: ``path`` is a directory.
        UnsupportedFileError: It is a FIFO, a socket or a device (an OSError). It is not opened.
        FileChangedError: Its size or modification time changed while it was read (an OSError).
        ValueError, TypeError: Unknown algorithm, wrong ``max_threads``, no path.
    """
    return hash_found([named_file(path)], algorithm, max_threads=max_threads, progress=progress)[0]


def hash_directory(
    path: StrPath,
    algorithm: str = "blake3",
    *,
    max_threads: int | None = None,
    progress: Progress | None = None,
    ignore: Iterable[str] = (),
    allow_symlinks: bool = False,
) -> dict[str, bytes]:
    """Digest of every file in a folder and in the folders below it, hidden files included.

    Empty folders, permissions, owners and times leave no trace in the result.

    Args:
        path: A folder, or a symbolic link to one.
        algorithm: As in ``hash_file``.
        max_threads: As in ``hash_file``; many files share the threads, a large file gets several (BLAKE3).
        progress: As in ``hash_file``, over the bytes of all files.
        ignore: Paths relative to ``path``, with "/" between their parts, that are left out, a folder with all that is in
            it. They are plain names, not patterns. A path that does not exist ignores nothing.
        allow_symlinks: False: a symbolic link inside the folder is an error that names it, unless it is ignored. True:
            a link to a regular file counts as that file, wherever it is; a link to a folder or to nothing is still an
            error. So loops cannot occur.

    Returns:
        Names relative to ``path`` ("/" between their parts) and their digests, sorted part by part. Bytes of a name that
        are not UTF-8 are kept as ``os.fsdecode`` gives them (surrogate escapes).

    Raises:
        NotADirectoryError: ``path`` is no directory.
        UnsupportedFileError: A symbolic link, FIFO, socket or device lies in the folder (an OSError).
        Otherwise as ``hash_file``. The first error stops everything.
    """
    files = regular_files(path, ignore=ignore, allow_symlinks=allow_symlinks)
    digests = hash_found(files, algorithm, max_threads=max_threads, progress=progress)
    return {found.name: digest for found, digest in zip(files, digests, strict=True)}


# --- What is there ----------------------------------------------------------------------------------------------------


def text_path(path: StrPath, argument: str = "path") -> str:
    """The path as str; bytes that are not UTF-8 become surrogate escapes."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"{argument} is a {type(path).__name__}, expected str, bytes or a path") from None
    if "\0" in text or not text:
        raise ValueError(f"{argument} is {text!r}, expected the path of a file or folder")
    return text


def named_file(path: StrPath) -> Found:
    """The file that a caller named; links are followed."""
    text = text_path(path)
    status = os.stat(text)  # noqa: PTH116 - a path may be bytes that are not UTF-8
    found = Found(text, text, status.st_size, status.st_mode, follow=True)
    if found.is_directory:
        raise IsADirectoryError(errno.EISDIR, "is a directory, expected a file", text)
    if not found.is_file:
        raise found.refusal()
    return found


def ignored_names(ignore: Iterable[str]) -> tuple[str, ...]:
    """The relative paths to leave out, checked, in normal form, sorted."""
    if isinstance(ignore, (str, bytes)):
        raise TypeError(f"ignore is {ignore!r}, expected several paths: [{ignore!r}]")
    names = set()
    for name in ignore:
        if not isinstance(name, (str, PurePosixPath)):
            raise TypeError(f"ignore holds a {type(name).__name__}, expected relative paths as str")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"ignore holds {str(name)!r}, expected a path inside the folder, relative to it")
        names.add(str(path))
    return tuple(sorted(names))


def order(name: str) -> list[str]:
    """Sort key: part by part, so that a folder's files stay together ("a/b" before "a-b")."""
    return name.split("/")


def scan(
    path: StrPath,
    *,
    ignore: Iterable[str] = (),
    allow_symlinks: bool = False,
    on_error: Callable[[OSError], object] | None = None,
) -> list[Found]:
    """Everything below a folder that is not ignored, directories too, sorted by ``order``.

    A folder that cannot be read raises, or with ``on_error`` is left out and told.
    """
    root, left_out = text_path(path), frozenset(ignored_names(ignore))
    if not stat.S_ISDIR(os.stat(root).st_mode):  # noqa: PTH116
        raise NotADirectoryError(errno.ENOTDIR, "is no directory", root)
    found, pending = [], [""]
    while pending:
        folder = pending.pop()
        try:
            # pathlib is three times slower here
            with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118
                here = [
                    _found(entry, folder, allow_symlinks) for entry in entries if folder + entry.name not in left_out
                ]
        except OSError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        found += here
        pending += [f"{entry.name}/" for entry in here if entry.is_directory]
    return sorted(found, key=lambda entry: order(entry.name))


def _found(entry: os.DirEntry[str], folder: str, allow_symlinks: bool) -> Found:
    status = entry.stat(follow_symlinks=False)
    follow = allow_symlinks and stat.S_ISLNK(status.st_mode)
    if follow and (target := _target(entry)):
        status = target
    return Found(folder + entry.name, entry.path, status.st_size, status.st_mode, follow)


def _target(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Status of what a link points to; None if that is a folder, or if the link leads nowhere."""
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    return None if stat.S_ISDIR(status.st_mode) else status


def regular_files(path: StrPath, *, ignore: Iterable[str] = (), allow_symlinks: bool = False) -> list[Found]:
    """All files of a folder, in order; UnsupportedFileError if something else than files and folders is there."""
    files = [found for found in scan(path, ignore=ignore, allow_symlinks=allow_symlinks) if not found.is_directory]
    for found in files:
        if not found.is_file:
            raise found.refusal()
    return files


# --- Hashing many -----------------------------------------------------------------------------------------------------


@overload
def hash_found(
    files: list[Found],
    algorithm: str,
    *,
    max_threads: int | None = None,
    progress: Progress | None = None,
    keep_going: Literal[False] = False,
) -> list[bytes]: ...


@overload
def hash_found(
    files: list[Found],
    algorithm: str,
    *,
    max_threads: int | None = None,
    progress: Progress | None = None,
    keep_going: Literal[True],
) -> list[bytes | OSError]: ...


def hash_found(
    files: list[Found],
    algorithm: str,
    *,
    max_threads: int | None = None,
    progress: Progress | None = None,
    keep_going: bool = False,
) -> Any:
    """Digests of these files, in their order. The first error is raised, or with ``keep_going`` put in its place."""
    new_hasher = hashers(algorithm)
    threads = get_num_threads() if max_threads is None else _checks.whole(max_threads, "max_threads", least=1)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is a {type(progress).__name__}, expected a function of (done_bytes, total_bytes)")
    return _Run(files, new_hasher, threads, progress, keep_going).results()


def hashers(algorithm: str) -> Callable[[int], Any]:
    """A function that gives a fresh hasher for so many threads."""
    from . import blake3, sha256

    if algorithm == "blake3":
        return lambda threads: blake3(max_threads=threads)
    if algorithm == "sha256":
        return lambda _: sha256()
    raise ValueError(f'algorithm is {algorithm!r}, expected "blake3" or "sha256"')


class _Stopped(BaseException):
    """Another thread has failed or was interrupted."""


class _Run:
    """One call: workers take files from a queue, the largest first; the calling thread reports progress."""

    def __init__(
        self,
        files: list[Found],
        new_hasher: Callable[[int], Any],
        threads: int,
        progress: Progress | None,
        keep_going: bool,
    ) -> None:
        self.files, self.new_hasher, self.threads, self.keep_going = files, new_hasher, threads, keep_going
        self.progress = progress
        self.total = sum(found.size for found in files)
        self.answers: list[bytes | OSError | None] = [None] * len(files)
        self.small = deque(index for index, found in enumerate(files) if found.size < _SMALL)
        large = [index for index, found in enumerate(files) if found.size >= _SMALL]
        self.large = deque(sorted(large, key=lambda index: -files[index].size))
        self.workers = min(threads, len(self.large) + bool(self.small))
        self.done = [0] * self.workers  # bytes; each worker writes to its own
        self.stop = threading.Event()
        self.told = time.monotonic()

    def results(self) -> list[bytes | OSError | None]:
        """Do all of it."""
        if self.workers == 1:
            self._work(0, self._tell)
        elif self.workers:
            self._spread()
        if self.progress is not None:
            self.progress(self.total, self.total)
        return self.answers

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
        if self.progress is not None and (now := time.monotonic()) - self.told >= _TICK:
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
            found = self.files[index]
            try:
                self.answers[index] = self._digest(found, worker, after_block)
            except OSError as error:
                if error.filename is None:  # reading knows a descriptor, not a name
                    error.filename = found.path
                if not self.keep_going:
                    raise
                self.answers[index] = error

    def _digest(self, found: Found, worker: int, after_block: Callable[[], object]) -> bytes:
        # By bytes, each file's fair share of the threads: they all end at about the same time.
        share = max(1, min(self.threads, round(self.threads * found.size / max(1, self.total))))
        hasher, length = self.new_hasher(share), 0
        with opened(found.path, follow=found.follow) as (descriptor, before):
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
            check_unchanged(descriptor, before, length, found.path)
        digest: bytes = hasher.digest()
        return digest


# --- Reading one ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: str, *, follow: bool = True) -> Iterator[tuple[int, os.stat_result]]:
    """A regular file's descriptor and status; never waits for the other end of a FIFO that took the file's place."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        found = Found(path, path, status.st_size, status.st_mode, follow)
        if not found.is_file:
            raise found.refusal()
        yield descriptor, status
    finally:
        os.close(descriptor)


def check_unchanged(descriptor: int, before: os.stat_result, length: int, path: str) -> None:
    """FileChangedError unless ``length`` bytes were read of a file that is still what it was before."""
    after = os.fstat(descriptor)
    if length != before.st_size or after.st_size != before.st_size:
        now = after.st_size if after.st_size != before.st_size else length
        message = f"changed while it was read: it had {before.st_size} bytes, then {now}"
    elif after.st_mtime_ns != before.st_mtime_ns:
        message = "changed while it was read: it has a new modification time"
    else:
        return
    raise FileChangedError(errno.EBUSY, message, path)


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
