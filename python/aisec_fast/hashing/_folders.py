"""What lies in a folder: found once, named in order, opened later without a way out of the folder."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from itertools import repeat
from pathlib import PurePosixPath
from typing import NamedTuple, TypeAlias

from .. import _checks
from .._backends import choose_host
from .._errors import UnsupportedFileError

StrPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"

# A folder that is only passed through, or kept to open files beneath it, need not be readable.
PASS_THROUGH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
# Never waits for the other end of a FIFO that took a file's place.
TO_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_KIND = stat.S_IFMT(0xFFFF)  # the bits of a mode that say what it is
_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
_ASK = "allow_symlinks takes its target instead"  # what a reader of the error can do
_NO_FILE = "Its target is none either"
_OUTSIDE = "Its target lies outside of the folder"


class Found(NamedTuple):
    """One entry of a folder, or a file that a caller named."""

    name: str  # relative to the folder, "/" between its parts; or the path that a caller named
    size: int  # in bytes
    mode: int  # st_mode; of an allowed link's target
    root: str | None  # the folder; None: a caller named the file, and links that lead to it are followed
    place: str = ""  # where an allowed link leads: relative to the folder, no link in any part of it
    note: str = ""  # why a link is not taken for its target

    @property
    def path(self) -> str:
        """As a user would write it."""
        return self.name if self.root is None else os.path.join(self.root, self.name)  # noqa: PTH118 - pathlib is slow

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
        more = f" ({_ASK})" if self.note == _ASK else f". {self.note}" if self.note else ""
        return UnsupportedFileError(errno.EINVAL, f"is {self.kind}, expected a regular file{more}", self.path)


_new: Callable[[tuple[str, int, int, str, str, str]], Found] = partial(tuple.__new__, Found)


def text_path(path: StrPath, argument: str = "path") -> str:
    """The path as str; bytes that are not UTF-8 become surrogate escapes."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"{argument} is {_checks.kind_of(path)}, expected str, bytes or a path") from None
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"{argument} is {text!r}, which no file can be named, expected a path") from None
    if "\0" in text or not text:
        raise ValueError(f"{argument} is {text!r}, expected the path of a file or folder")
    return text


def named_file(path: StrPath) -> Found:
    """The file that a caller named; links are followed."""
    text = text_path(path)
    status = os.stat(text)  # noqa: PTH116 - a path may be bytes that are not UTF-8
    found = Found(text, status.st_size, status.st_mode, None)
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
            raise TypeError(f"ignore holds {_checks.kind_of(name)}, expected relative paths as str")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"ignore holds {str(name)!r}, expected a path inside the folder, relative to it")
        names.add(str(path))
    return tuple(sorted(names))


class Patterns:
    """Names to leave out by pattern; what was left out so far is in ``matched``."""

    def __init__(self, patterns: Iterable[str]) -> None:
        if isinstance(patterns, (str, bytes)):
            raise TypeError(f"ignore_patterns is {patterns!r}, expected several patterns: [{patterns!r}]")
        self.matched: list[str] = []
        self._patterns: list[tuple[list[str], bool]] = []
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise TypeError(f"ignore_patterns holds {_checks.kind_of(pattern)}, expected str")
            parts = pattern.rstrip("/").split("/")
            if not all(parts) or {".", ".."} & {*parts}:
                raise ValueError(
                    f"ignore_patterns holds {pattern!r}, expected parts between '/' that are not empty, '.' or '..'"
                )
            self._patterns.append((parts if len(parts) > 1 else ["**", *parts], pattern.endswith("/")))

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._patterns)

    def match(self, name: str, mode: int) -> bool:
        """Whether an entry is left out."""
        parts, is_folder = name.split("/"), mode & _KIND == stat.S_IFDIR
        if not any(_matches(parts, pattern) for pattern, folders in self._patterns if is_folder or not folders):
            return False
        self.matched.append(name)
        return True


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether a path matches part by part; ``**`` stands for any number of parts.

    Steps are at most parts times parts of the pattern: folders may be as deep as a stranger likes.
    """
    places = _with_none(0, pattern)  # up to where the pattern may have matched
    for part in parts:
        after: set[int] = set()
        for place in places:
            if place < len(pattern) and (pattern[place] == "**" or fnmatchcase(part, pattern[place])):
                after |= _with_none(place if pattern[place] == "**" else place + 1, pattern)
        if not after:
            return False
        places = after
    return len(pattern) in places


def _with_none(place: int, pattern: list[str]) -> set[int]:
    """A place and those behind the ``**`` there, which may stand for no part."""
    places = {place}
    while place < len(pattern) and pattern[place] == "**":
        place += 1
        places.add(place)
    return places


def order(name: str) -> str:
    """Sort key: part by part, so that a folder's files stay together ("a/b" before "a-b")."""
    return name.replace("/", "\0")  # which no name holds, and which comes before all that one may hold


@contextlib.contextmanager
def opened_folder(root: str) -> Iterator[int]:
    """A descriptor to open things beneath; links that lead to the folder itself are followed."""
    descriptor = os.open(root, PASS_THROUGH)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def scan(
    path: StrPath,
    *,
    ignore: Iterable[str] = (),
    patterns: Patterns | None = None,
    allow_symlinks: bool = False,
    on_error: Callable[[OSError], object] | None = None,
) -> list[Found]:
    """Everything below a folder that is not ignored, directories too, sorted by ``order``.

    What cannot be read raises, or with ``on_error`` is left out and told.
    """
    root, left_out = text_path(path), frozenset(ignored_names(ignore))
    allow_symlinks = _checks.flag(allow_symlinks, "allow_symlinks")
    if not stat.S_ISDIR(os.stat(root).st_mode):  # noqa: PTH116
        raise NotADirectoryError(errno.ENOTDIR, "is no directory", root)
    with opened_folder(root) as descriptor:
        return _Scan(root, descriptor, left_out, patterns or Patterns(()), allow_symlinks, on_error).results()


class _Scan:
    """One call."""

    def __init__(
        self,
        root: str,
        descriptor: int,
        left_out: frozenset[str],
        patterns: Patterns,
        allow_symlinks: bool,
        on_error: Callable[[OSError], object] | None,
    ) -> None:
        self.root, self.descriptor, self.left_out, self.on_error = root, descriptor, left_out, on_error
        self.patterns = patterns
        self.allow_symlinks = allow_symlinks
        self.entries = choose_host("path").files.folder_entries
        self.real_root = os.path.realpath(root) if allow_symlinks else ""

    def results(self) -> list[Found]:
        """All of it."""
        found: list[Found] = []
        pending = [""]
        while pending:
            folder = pending.pop()
            try:
                names, sizes, modes, errors = self.entries(self.descriptor, folder)
            except OSError as error:
                self._tell(error.errno or errno.EIO, folder)
                continue
            if folder:
                prefix = f"{folder}/"
                names = [prefix + name for name in names]
            for index, number in errors:
                if names[index] not in self.left_out and not self.patterns.match(names[index], 0):
                    self._tell(number, names[index])
            # Millions of entries: no function of Python runs for each of them.
            here: Iterable[Found] = map(_new, zip(names, sizes, modes, repeat(self.root), repeat(""), repeat("")))
            if self.left_out or errors:
                here = filter(lambda entry: entry.mode and entry.name not in self.left_out, here)
            if self.patterns:
                here = filter(lambda entry: not self.patterns.match(entry.name, entry.mode), here)
            if any(mode & _KIND == stat.S_IFLNK for mode in modes):
                here = (self._link(entry) if entry.mode & _KIND == stat.S_IFLNK else entry for entry in here)
            first = len(found)
            found += here
            pending += [entry[0] for entry in found[first:] if entry[2] & _KIND == stat.S_IFDIR]
        return sorted(found, key=lambda entry: order(entry[0]))

    def _tell(self, number: int, name: str) -> None:
        path = os.path.join(self.root, name) if name else self.root  # noqa: PTH118
        error = OSError(number, os.strerror(number), path)
        if self.on_error is None:
            raise error
        self.on_error(error)

    def _link(self, entry: Found) -> Found:
        """A link as what it leads to, if that is allowed and is no folder and lies inside."""
        found = entry._replace(note=_ASK)
        if not self.allow_symlinks:
            return found
        try:
            target = os.path.realpath(found.path, strict=True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return found._replace(note=_NO_FILE)
            raise
        inside = self.real_root if self.real_root.endswith("/") else f"{self.real_root}/"
        if not target.startswith(inside):
            return found._replace(note=_NO_FILE if target == self.real_root else _OUTSIDE)
        place = target[len(inside) :]
        status = os.stat(place, dir_fd=self.descriptor, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
            return found._replace(note=_NO_FILE)
        return Found(entry.name, status.st_size, status.st_mode, self.root, place)


def regular_files(
    path: StrPath, *, ignore: Iterable[str] = (), patterns: Patterns | None = None, allow_symlinks: bool = False
) -> list[Found]:
    """All files of a folder, in order; UnsupportedFileError if something else than files and folders is there."""
    found = scan(path, ignore=ignore, patterns=patterns, allow_symlinks=allow_symlinks)
    for entry in found:
        if entry[2] & _KIND not in (stat.S_IFREG, stat.S_IFDIR):
            raise entry.refusal()
    return [entry for entry in found if entry[2] & _KIND == stat.S_IFREG]
