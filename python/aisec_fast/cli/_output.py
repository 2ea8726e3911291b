"""What the subcommands share: results as JSON, and a clear word when an optional package is missing."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._writing import write_whole

# Optional package, as it is imported -> (as pip knows it, the extra of ours that brings it).
_PACKAGES = {
    "torch": ("torch", "privacy"),
    "dp_accounting": ("dp-accounting", "privacy"),
    "sklearn": ("scikit-learn", "demo"),
    "rich": ("rich", "demo"),
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


def write_json(result: dict[str, Any], destination: str) -> None:
    """Write ``result`` to a file, whole or not at all; "-" is standard output."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if destination == "-":
        say(text.rstrip())
    else:
        write_whole(Path(destination), text)
