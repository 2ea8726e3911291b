"""The command ``aisec-fast``: one module for each subcommand, imported when it runs."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Sequence
from typing import NoReturn

from .._backends import version
from .._errors import AisecFastError
from . import audit, bench, demo, epsilon, hash, info, manifest, noise_multiplier, verify
from ._hashing import name_and_reason
from ._output import CommandError, missing_package, printable, say

_DESCRIPTION = "Fast, provable kernels for privacy and robustness in machine learning."
_EPILOG = """\
examples:
  aisec-fast info                      what this installation can do
  aisec-fast demo                      train a real model privately and see what it costs
  aisec-fast epsilon --noise-multiplier 1.1 --sample-rate 256/60000 --epochs 10 --delta 1e-5
  aisec-fast noise-multiplier --target-epsilon 3 --sample-rate 256/60000 --epochs 10 --delta 1e-5
  aisec-fast audit                     does a private training leak more than it claims?
  aisec-fast hash model/               BLAKE3 of every file in a folder
  aisec-fast manifest model/           write down which files a model has, and their digests
  aisec-fast verify model/ --manifest manifest.json

exit codes: 0 fine, 1 differs from what was expected, 2 could not check or wrong usage, 130 interrupted
"""

_FINE, _COULD_NOT, _INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: those of the process) and return its exit code."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else _COULD_NOT
    try:
        code: int | None = arguments.run(arguments)
    except KeyboardInterrupt:
        return _stop("interrupted; no result was written", _INTERRUPTED)
    except ModuleNotFoundError as error:
        return _stop(missing_package(error) or traceback.format_exc(), _COULD_NOT)
    except OSError as error:
        return _stop(name_and_reason(error), _COULD_NOT)
    except (CommandError, AisecFastError) as error:
        return _stop(str(error), _COULD_NOT)
    except Exception:  # noqa: BLE001 - a fault of ours; Python's own exit code for it, 1, would say "differs"
        return _stop(f"{traceback.format_exc()}this is a fault of aisec-fast", _COULD_NOT)
    return _FINE if code is None else code


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints cannot steer a terminal: they repeat what was typed, file names among it."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and stop."""
        super().error(printable(message))


def _stop(message: str, code: int) -> int:
    say(f"aisec-fast: {printable(message)}", error=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aisec-fast",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"aisec_fast {version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (info, demo, bench, epsilon, noise_multiplier, audit, hash, manifest, verify):
        command = commands.add_parser(
            module.__name__.rpartition(".")[2].replace("_", "-"),
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.add_argument(
            "--json",
            nargs="?",
            const="-",
            metavar="FILE",
            help="write the result as JSON, to FILE or (without FILE) to standard output",
        )
        command.set_defaults(run=module.run)
    return parser
