"""What the subcommands share: files written whole or not at all, and a clear word when an optional package is missing."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._writing import check_destination, write_whole

if TYPE_CHECKING:
    from rich.console import Console

# Optional package, as it is imported -> (as pip knows it, the extra of ours that brings it).
_PACKAGES = {
    "torch": ("torch", "privacy"),
    "dp_accounting": ("dp-accounting", "privacy"),
    "sklearn": ("scikit-learn", "demo"),
    "rich": ("rich", "demo"),
    "plotly": ("plotly", "report"),
    "jinja2": ("Jinja2", "report"),
}
_UNLIMITED = 200  # columns where there is no terminal: more than any table has


def say(text: str, *, error: bool = False) -> None:
    """Print one message. What the stream cannot encode is escaped."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed by whoever started us; without a place for its result a command has failed
        if error:
            return
        raise CommandError("standard output is closed")
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def printable(text: str) -> str:
    """Text that others wrote, with whatever could steer a terminal escaped; lines stay lines."""
    return "".join(letter if letter.isprintable() or letter == "\n" else _escape(letter) for letter in text)


def printable_name(name: str) -> str:
    """A file's name on one line, for a person: escaped as in Python, so that no two names look the same."""
    return "".join(_escape(letter) if letter in "\\\n" else printable(letter) for letter in name)


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode's way to keep a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if 0x80 <= code <= 0xFFFF else letter.encode("unicode_escape").decode()


class CommandError(Exception):
    """A command cannot do what was asked; the message says why."""


class MissingPackageError(CommandError):
    """A command needs packages that are not installed; the message says how to get them."""


def require(modules: Sequence[str], extra: str, command: str) -> None:
    """Raise MissingPackageError, naming everything that is missing at once, unless all ``modules`` can be imported."""
    missing = []
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing.append(_PACKAGES[module][0] if error.name == module else str(error.name))
    if missing:
        raise MissingPackageError(f"{command} needs {' and '.join(missing)}: {_how_to_install(extra)}")


def missing_package(error: ModuleNotFoundError) -> str | None:
    """What to say if an import failed for want of one of our optional packages; None if it is another one."""
    package, extra = _PACKAGES.get((error.name or "").partition(".")[0], (None, ""))
    return f"this needs {package}: {_how_to_install(extra)}" if package else None


def _how_to_install(extra: str) -> str:
    return f"pip install '.[{extra}]' in a checkout of aisec_fast (torch first, where its CPU build is wanted)"


def console_for_tables(*, stderr: bool, soft_wrap: bool = False) -> Console:
    """A console of rich, which would take files and pipes for 80 columns wide and cut the numbers of its tables."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, soft_wrap=soft_wrap)
    if not console.is_terminal:
        console.width = _UNLIMITED
    return console


def check_json(destination: str | None) -> None:
    """OSError now rather than after the work, if the result could not be written there."""
    if destination is not None and destination != "-":
        check_destination(Path(destination))


def write_json(result: dict[str, Any], destination: str) -> None:
    """Write ``result`` as JSON to a file, whole or not at all; "-" is standard output."""
    write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", destination)


def write_text(text: str, destination: str) -> None:
    """Write ``text`` to a file, whole or not at all; "-" is standard output."""
    if destination == "-":
        say(text.rstrip())
    else:
        write_whole(Path(destination), text)
