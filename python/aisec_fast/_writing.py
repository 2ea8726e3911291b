"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ._errors import UnsupportedFileError

_MOST_LINKS = 40  # that Linux follows one after the other


def check_destination(path: Path) -> None:
    """OSError now rather than after the work, if a file could not be written to ``path``."""
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder, expected a file to write to")
    if (path.exists() and not path.is_file()) or _is_open_file(path):
        # The rename would put a plain file in its place: for everybody, where root writes to /dev/null.
        raise UnsupportedFileError(f"{str(path)!r} is a device, pipe or socket, expected a file to write to")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {str(path)!r} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"no permission to write to the folder of {str(path)!r}")


def _is_open_file(path: Path) -> bool:
    """Whether ``path`` leads to what a process has open, as /dev/stdout and /dev/fd/1 do, over links of its own or not."""
    for _ in range(_MOST_LINKS):
        if os.path.realpath(path.parent).startswith("/proc/"):
            return True
        if not path.is_symlink():
            return False
        path = path.parent / path.readlink()
    return False


def write_whole(path: Path, content: str | bytes) -> None:
    """Write bytes, or UTF-8 text, beside ``path``, have it on the disk, then rename: the old file or the new one, never a part."""
    check_destination(path)
    aside = path.parent / f".aisec_fast-{secrets.token_hex(8)}"
    # Exclusive: never through somebody's link. The process's umask decides who may read it, as for any new file.
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk
            error.filename = str(path)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # the new name too
    finally:
        os.close(folder)
