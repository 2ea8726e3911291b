"""What a run of the harness leaves: rows, with the machine, the versions and the commit they belong to."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aisec_fast

from .._output import CommandError
from ._measure import Skipped

FORMAT = 1
KEY = ("family", "operation", "shape", "dtype", "backend", "instruction_set", "device", "threads")
_PACKAGES = ("numpy", "numba", "torch", "dp-accounting", "blake3", "opacus", "opendp", "torchattacks")
_LEAST, _MOST = 1e-6, 1e18  # ns: no time lies beyond, and the ratio of two within is a plain number
_SLOWER = 1.10  # ratio of medians above which, with quartiles apart, a row counts as slower


def document(
    rows: Sequence[dict[str, Any]], skipped: Sequence[Skipped], *, options: str, interrupted: bool, seconds: float
) -> dict[str, Any]:
    """The rows and everything that says what they are of; ``options`` are those of the command that chose what to run."""
    return {
        "format": FORMAT,
        "version": aisec_fast.__version__,
        "commit": _commit(),
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": f"aisec-fast bench {options}".strip(),
        "interrupted": interrupted,
        "seconds": seconds,
        "machine": machine(),
        "versions": versions(_PACKAGES),
        "rows": list(rows),
        "skipped": [{"case": one.case.name, "contender": one.label, "reason": one.reason} for one in skipped],
    }


def machine() -> dict[str, Any]:
    """This machine, as ``aisec_fast.info()`` knows it, with its processor's name."""
    found = aisec_fast.info()
    keys = ("instruction_sets", "instruction_set", "threads", "cuda")
    return {**found["machine"], "model": _processor(), **{key: found[key] for key in keys}}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python, of this package and of those of ``packages`` that are installed."""
    found = {"python": platform.python_version(), "aisec_fast": aisec_fast.__version__}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def load(path: Path) -> dict[str, Any]:
    """A document from a file; CommandError if it is none, or of another format."""
    return parse(path.read_bytes(), str(path))


def parse(data: bytes, path: str) -> dict[str, Any]:
    """The document that the bytes of the file ``path`` hold."""
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also of the encoding, and numbers beyond what Python reads
        raise CommandError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict) or "rows" not in found or "format" not in found:
        raise CommandError(f"{path} holds no benchmark results: expected the file that aisec-fast bench --json writes")
    if found["format"] != FORMAT:
        raise CommandError(f"{path} has results of format {_short(found['format'])}, expected {FORMAT}: measure again")
    try:
        for row in found["rows"]:
            _check(row)
        for what in ("version", "commit", "date"):
            _check_text(found[what])
        _check_text(found["machine"]["model"])
    except (TypeError, KeyError, ValueError) as error:
        raise CommandError(
            f"{path} holds benchmark results that were not written by aisec-fast bench: {_short(error)}"
        ) from None
    return found


def _check(row: dict[str, Any]) -> None:
    """Raise unless ``compare`` can read the row: a time that is no time must not pass for a fast one."""
    for time in (row["ns"], *row["quartiles"]):
        if isinstance(time, bool) or not isinstance(time, (int, float)) or not _LEAST < time < _MOST:
            raise ValueError(f"a time is {_short(time)}")
    if len(row["quartiles"]) != 2 or not isinstance(row["busy"], bool):
        raise ValueError("quartiles or busy")
    for key in KEY:
        if key not in ("shape", "threads"):
            _check_text(row[key])
    if not isinstance(row["shape"], list):
        raise TypeError(f"a shape is {_short(row['shape'])}")
    for extent in (*row["shape"], row["threads"]):
        if type(extent) is not int or not 0 <= extent < 2**63:
            raise ValueError(f"an extent or a number of threads is {_short(extent)}")


def _check_text(value: object) -> None:
    if not isinstance(value, (str, type(None))):
        raise TypeError(f"a name is {_short(value)}")


def _short(value: object) -> str:
    """What stands in a file, or what is wrong with it, for a message: never all of a large one."""
    if isinstance(value, (dict, list)):  # maybe nested deeper than repr goes
        return f"a {type(value).__name__}"
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each contender in both: ``ratio`` = time after / time before; ``verdict`` "slower", "faster" or "".

    A verdict needs medians more than 10 % apart and quartiles that do not overlap, and neither row marked busy.
    """
    old = {_key(row): row for row in before["rows"]}
    found = []
    for row in after["rows"]:
        past = old.get(_key(row))
        if past is None:
            continue
        ratio = row["ns"] / past["ns"]
        verdict = ""
        if not (row["busy"] or past["busy"]):
            if ratio > _SLOWER and row["quartiles"][0] > past["quartiles"][1]:
                verdict = "slower"
            elif ratio < 1 / _SLOWER and row["quartiles"][1] < past["quartiles"][0]:
                verdict = "faster"
        found.append(
            {
                **{key: row[key] for key in KEY},
                "before": past["ns"],
                "after": row["ns"],
                "ratio": ratio,
                "verdict": verdict,
            }
        )
    return found


def unmatched(before: dict[str, Any], after: dict[str, Any]) -> tuple[int, int]:
    """How many rows of each document have no partner in the other."""
    old, new = ({_key(row) for row in document["rows"]} for document in (before, after))
    return len(old - new), len(new - old)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(tuple(row[key]) if isinstance(row[key], list) else row[key] for key in KEY)


def _commit() -> str | None:
    """The commit of a development checkout, with "+" if it has changes; None for an installed package."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
