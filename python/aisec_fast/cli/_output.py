"""What the subcommands share: files written whole or not at all, and a clear word when an optional package is missing."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Optional package, as it is imported -> (as pip knows it, the extra of ours that brings it).
_PACKAGES = {
    "torch": ("torch", "privacy"),
    "dp_accounting": ("dp-accounting", "privacy"),
    "sklearn": ("scikit-learn", "demo"),
    "rich": ("rich", "demo"),
    "plotly": ("plotly", "report"),
    "jinja2": ("Jinja2", "report"),
}


def say(text: str, *, error: bool = False) -> None:
    """Print one message."""
    stream = sys.stderr if error else sys.stdout
    stream.write(text + "\n")
    stream.flush()


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
    return f"pip install 'aisec_fast[{extra}]' (torch first and on its own where its CPU build is wanted)"


def check_destination(path: Path) -> None:
    """OSError now rather than after the work, if a file could not be written to ``path``."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file to write to")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"no permission to write to the folder of {path}")


def write_json(result: dict[str, Any], destination: str) -> None:
    """Write ``result`` as JSON to a file, whole or not at all; "-" is standard output."""
    write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", destination)


def write_text(text: str, destination: str) -> None:
    """Write ``text`` to a file, whole or not at all; "-" is standard output."""
    if destination == "-":
        say(text.rstrip())
        return
    path = Path(destination)
    check_destination(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    aside = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        aside.chmod(0o666 & ~_umask())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
