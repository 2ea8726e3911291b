"""Digests of files and of whole folders: read in blocks, hashed without the GIL, all cores filled across files.

docs/hashing-files.md is the contract. A file that shrinks meanwhile is an error, also where it is mapped into memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias, overload

from .. import _checks
from .._backends import choose_host, get_num_threads
from .._errors import FileChangedError
from ._folders import (
    TO_READ,
    Found,
    Patterns,
    StrPath,
    ignored_names,
    named_file,
    opened_folder,
    order,
    regular_files,
    scan,
    text_path,
)

__all__ = [
    "DIGEST_SIZES",
    "Found",
    "Patterns",
    "Progress",
    "StrPath",
    "check_unchanged",
    "hash_directory",
    "hash_file",
    "hash_found",
    "hashers",
    "ignored_names",
    "named_file",
    "opened",
    "order",
    "regular_files",
    "scan",
    "text_path",
]

Progress: TypeAlias = Callable[[int, int], object]
DIGEST_SIZES = {"blake3": 32, "sha256": 32}

_TICK = 0.05  # seconds between two calls of progress
_MOST_THREADS = 1 << 30  # what the native reader takes; there are never more of them than work


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
        FileChangedError: Its size, or its time of modification or of change, was another after it was read (an OSError).
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
    ignore_patterns: Iterable[str] = (),
    allow_symlinks: bool = False,
) -> dict[str, bytes]:
    """Digest of every file in a folder and in the folders below it, hidden files included.

    Empty folders, permissions, owners and times leave no trace in the result.

    Args:
        path: A folder, or a symbolic link to one.
        algorithm: As in ``hash_file``. Several SHA-256 streams run side by side on each core, so many files are faster
            than one of the same bytes.
        max_threads: As in ``hash_file``; many files share the threads, a large file gets several (BLAKE3).
        progress: As in ``hash_file``, over the bytes of all files.
        ignore: Paths relative to ``path``, with "/" between their parts, that are left out, a folder with all that is in
            it. They are plain names, not patterns. A path that does not exist ignores nothing.
        ignore_patterns: Shell patterns (``*``, ``?``, ``[ab]``, ``[!ab]``, which never match a "/") of what is left out,
            a folder with all that is in it. Without "/", the name of anything at any depth: ``"*.tmp"``,
            ``"__pycache__"``. With "/", a path relative to ``path``, in which ``**`` stands for any number of parts:
            ``"checkpoints/**/*.bin"``. With "/" at the end, folders alone.
        allow_symlinks: False: a symbolic link inside the folder is an error that names it, unless it is ignored. True:
            a link to a regular file inside the folder counts as that file; a link that leads out of the folder, to a
            folder or to nothing is still an error. So loops cannot occur, and nothing outside of the folder is read,
            even if links are put into it meanwhile (docs/hashing-files.md).

    Returns:
        Names relative to ``path`` ("/" between their parts) and their digests, sorted part by part. Bytes of a name that
        are not UTF-8 are kept as ``os.fsdecode`` gives them (surrogate escapes).

    Raises:
        NotADirectoryError: ``path`` is no directory.
        UnsupportedFileError: A symbolic link, FIFO, socket or device lies in the folder (an OSError).
        Otherwise as ``hash_file``. The first error stops everything.
    """
    patterns = Patterns(ignore_patterns)
    files = regular_files(path, ignore=ignore, patterns=patterns, allow_symlinks=allow_symlinks)
    digests = hash_found(files, algorithm, max_threads=max_threads, progress=progress)
    return {found.name: digest for found, digest in zip(files, digests, strict=True)}


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
    if algorithm not in [*DIGEST_SIZES]:
        raise ValueError(f'algorithm is {algorithm!r}, expected "blake3" or "sha256"')
    threads = get_num_threads() if max_threads is None else _checks.whole(max_threads, "max_threads", least=1)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is {_checks.kind_of(progress)}, expected a function of (done_bytes, total_bytes)")
    threads = min(threads, _MOST_THREADS)
    places, sizes = [found.place or found.name for found in files], [found.size for found in files]
    with _roots(files) as roots:
        hash_files = choose_host("data").files.hash_files
        digests, failures = hash_files(roots, places, sizes, algorithm, threads, keep_going, progress, _TICK)
    size = DIGEST_SIZES[algorithm]
    answers: list[bytes | OSError] = [digests[start : start + size] for start in range(0, size * len(files), size)]
    for index, *failure in failures:
        error = _error(files[index], *failure)
        if not keep_going:
            raise error
        answers[index] = error
    if progress is not None:
        total = sum(sizes)
        progress(total, total)
    return answers


@contextlib.contextmanager
def _roots(files: list[Found]) -> Iterator[list[int]]:
    """For each file a descriptor of the folder that it lies beneath; -1 for a file that a caller named."""
    with contextlib.ExitStack() as stack:
        descriptors: dict[str | None, int] = {None: -1}
        for root in {found.root for found in files} - {None}:
            descriptors[root] = stack.enter_context(opened_folder(root or ""))
        yield [descriptors[found.root] for found in files]


def _error(found: Found, kind: str, first: int, second: int) -> OSError:
    """What a backend says of a file (docs/hashing-files.md), as an exception."""
    if kind == "not_regular":
        return found._replace(mode=first).refusal()
    if kind == "resized":
        return _changed(f"it had {first} bytes, then {second}", found.path)
    if kind == "touched":
        return _changed("it has a new change time" if first else "it has a new modification time", found.path)
    return OSError(first, os.strerror(first), found.path)


def _changed(how: str, path: str) -> FileChangedError:
    return FileChangedError(errno.EBUSY, f"changed while it was read: {how}", path)


def hashers(algorithm: str) -> Callable[[int], Any]:
    """A function that gives a fresh hasher for so many threads."""
    from . import blake3, sha256

    return {"blake3": lambda threads: blake3(max_threads=threads), "sha256": lambda _: sha256()}[algorithm]


# --- Reading one ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: str) -> Iterator[tuple[int, os.stat_result]]:
    """Descriptor and status of a regular file that a caller named."""
    descriptor = os.open(path, TO_READ)
    try:
        status = os.fstat(descriptor)
        found = Found(path, status.st_size, status.st_mode, None)
        if not found.is_file:
            raise found.refusal()
        yield descriptor, status
    finally:
        os.close(descriptor)


def difference(descriptor: int, before: os.stat_result, length: int) -> tuple[str, int, int] | None:
    """How a file of which ``length`` bytes were read differs from what it was before; None if it does not."""
    after = os.fstat(descriptor)
    if length != before.st_size or after.st_size != before.st_size:
        return "resized", before.st_size, after.st_size if after.st_size != before.st_size else length
    if after.st_mtime_ns != before.st_mtime_ns:
        return "touched", 0, 0
    return ("touched", 1, 0) if after.st_ctime_ns != before.st_ctime_ns else None


def check_unchanged(descriptor: int, before: os.stat_result, length: int, path: str) -> None:
    """FileChangedError unless ``length`` bytes were read of a file that is still what it was before."""
    if changed := difference(descriptor, before, length):
        raise _error(Found(path, before.st_size, before.st_mode, None), *changed)
