"""``aisec-fast info``: what this installation can do and what it is using."""

from __future__ import annotations

import argparse
from typing import Any

import aisec_fast

from ._output import say, write_json

HELP = "show backends, instruction sets, threads, GPUs and versions"
DESCRIPTION = "Show what this installation can do and what it is using."
EPILOG = """\
examples:
  aisec-fast info
  aisec-fast info --json                  the same, for a program
  AISEC_FAST_ISA=baseline aisec-fast info force an instruction set, for this process
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``info`` has none of its own."""


def run(arguments: argparse.Namespace) -> None:
    """Print the table, or the JSON."""
    found = aisec_fast.info()
    if arguments.json:
        write_json(found, arguments.json)
    if arguments.json != "-":
        say("\n".join(f"{name:<17} {value}".rstrip() for name, value in _lines(found)))


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("aisec_fast", found["version"])]
    lines += [(f"backend {name}", state) for name, state in found["backends"].items()]
    sets = [f"{name} (in use)" if name == found["instruction_set"] else name for name in found["instruction_sets"]]
    lines.append(("instruction sets", ", ".join(sets) or "none"))
    generators = ", ".join(f"{backend} {name}" for backend, name in found["generators"].items() if name)
    lines.append(("SecureSource", generators))
    lines.append(("threads", str(found["threads"])))
    cuda = found["cuda"]
    versions = f", runtime {cuda['runtime']}, driver {cuda['driver']}" if cuda["runtime"] else ""
    lines.append(("CUDA devices", f"{cuda['devices']}{versions}"))
    lines += [(f"device {i}", name) for i, name in enumerate(cuda["names"])]
    machine = found["machine"]
    lines.append(("machine", f"{machine['system']} {machine['processor']}, {machine['cores']} cores"))
    lines.append(("Python", machine["python"]))
    lines += [(name, version or "not installed") for name, version in found["packages"].items()]
    return lines
