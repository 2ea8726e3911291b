"""What ``hash``, ``manifest`` and ``verify`` share: options, a progress bar, where a file lies."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .._backends import get_num_threads
from ..hashing._files import DIGEST_SIZES, Progress, hashers
from ._output import CommandError, printable_name


def add_algorithm(parser: argparse.ArgumentParser, default: str) -> None:
    """``--algorithm``."""
    parser.add_argument("--algorithm", choices=sorted(DIGEST_SIZES), default=default, help=f"default: {default}")


def add_links(parser: argparse.ArgumentParser) -> None:
    """``--allow-symlinks``."""
    parser.add_argument(
        "--allow-symlinks",
        action="store_true",
        help="take a link for the file that it points to, if that lies inside the same folder; otherwise a link is an error",
    )


def add_common(parser: argparse.ArgumentParser) -> None:
    """``--ignore`` and ``--max-threads``."""
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATH",
        help="leave out this path, relative to the folder, with all that is in it (a plain name; may be repeated)",
    )
    parser.add_argument("--max-threads", type=_threads, metavar="N", help="most CPU threads to use; default: all cores")


def add_patterns(parser: argparse.ArgumentParser) -> None:
    """``--ignore-pattern``."""
    parser.add_argument(
        "--ignore-pattern",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out what matches this shell pattern: a name at any depth ('*.tmp'), or with '/' a path in the folder, "
        "'**' for any number of parts (may be repeated)",
    )


def _threads(text: str) -> int:
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:  # the kernels count in 64 bits
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is no number of threads, expected 1 or more")
    return int(text)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """A bar on standard error if that is a terminal and rich is there; otherwise None, which shows nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as SpeedColumn
    except ModuleNotFoundError:
        yield None
        return
    console = Console(stderr=True)
    columns = TextColumn("hashing"), BarColumn(), DownloadColumn(), SpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=console.is_dumb_terminal) as bar:
        task = bar.add_task("hashing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def inside(file: str, folder: str) -> str | None:
    """The name of a file relative to a folder that it lies in, however both were written; None if it lies elsewhere."""
    # realpath: Path.resolve raises RuntimeError for a loop of links, which is told as an OSError when it is opened
    root, place = Path(os.path.realpath(folder)), Path(file)
    place = Path(os.path.realpath(place.parent)) / place.name
    return place.relative_to(root).as_posix() if place != root and place.is_relative_to(root) else None


def standard_input() -> BinaryIO:
    """Its bytes; OSError if whoever started us has closed it."""
    if sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed", "-")
    return sys.stdin.buffer


def hash_standard_input(algorithm: str, max_threads: int | None) -> bytes | OSError:
    """The digest of all that is left of it, or what went wrong."""
    hasher = hashers(algorithm)(max_threads or get_num_threads())
    try:
        file = standard_input()
        while block := file.read(1 << 20):
            hasher.update(block)
    except OSError as error:
        return error
    digest: bytes = hasher.digest()
    return digest


def reason(error: OSError) -> str:
    """What went wrong, without the name that stands beside it, and with options as they are typed here."""
    return (error.strerror or str(error)).replace("(allow_symlinks ", "(--allow-symlinks ")


def name_and_reason(error: OSError) -> str:
    """The line for a file that could not be read or written; Python would put the error's number first."""
    named = isinstance(error.filename, (str, bytes, os.PathLike)) and error.filename2 is None and error.strerror
    return f"{printable_name(os.fsdecode(error.filename))}: {reason(error)}" if named else str(error)


def print_names(text: str) -> None:
    """Print lines with names of files, which go out as the bytes that they are on the disk."""
    if sys.stdout is None:
        raise CommandError("standard output is closed")
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(text))
    sys.stdout.buffer.flush()
