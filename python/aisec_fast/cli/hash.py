"""``aisec-fast hash``: digests of files and folders, as sha256sum and b3sum print them."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from .._backends import get_num_threads
from ..hashing import _files
from ..hashing._files import Found
from ._hashing import add_algorithm, add_common, add_links, progress_bar
from ._output import CommandError, check_json, printable, printable_name, say, write_json

HELP = "print the BLAKE3 or SHA-256 digest of files and folders"
DESCRIPTION = """\
Print a line "DIGEST  NAME" for each file, and for each file in a folder and below it, hidden files included. A name with a
backslash or a line break is escaped and its line starts with a backslash, as sha256sum and b3sum do, which can check what
is printed here (--check). On a terminal, other control characters are escaped as well."""
EPILOG = """\
examples:
  aisec-fast hash model.safetensors
  aisec-fast hash model/ --algorithm sha256 > SHA256SUMS    then: sha256sum --check SHA256SUMS
  tar c model | aisec-fast hash -                           standard input
  aisec-fast hash model/ --json digests.json

exit codes: 0 all hashed, 2 something could not be read (the rest is hashed), 130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help='file or folder; "-" is standard input')
    add_algorithm(parser, "blake3")
    add_links(parser)
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Hash everything, tell what could not be read at once, print the digests."""
    check_json(arguments.json)
    try:
        names, answers = _answers(arguments)
    except ValueError as error:
        raise CommandError(str(error)) from error
    digests = [(name, answer.hex()) for name, answer in zip(names, answers, strict=True) if isinstance(answer, bytes)]
    errors = [
        (name, _reason(answer)) for name, answer in zip(names, answers, strict=True) if isinstance(answer, OSError)
    ]
    for name, reason in errors:
        say(f"aisec-fast: {printable_name(name)}: {printable(reason)}", error=True)
    if arguments.json:
        result: dict[str, Any] = {
            "algorithm": arguments.algorithm,
            "files": [{"name": name, "digest": digest} for name, digest in digests],
            "errors": [{"name": name, "error": reason} for name, reason in errors],
        }
        write_json(result, arguments.json)
    if arguments.json != "-":
        _print("".join(line(name, digest, terminal=sys.stdout.isatty()) for name, digest in digests))
    return 2 if errors else 0


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def line(name: str, digest: str, *, terminal: bool) -> str:
    """One line of output, by the rules of GNU coreutils; on a terminal nothing in it can steer the terminal."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    shown = printable(escaped) if terminal else escaped
    return f"{'' if shown == name else chr(92)}{digest}  {shown}\n"


def _print(text: str) -> None:
    """Names go out as the bytes that they are on the disk."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(text))
    sys.stdout.buffer.flush()


def _answers(arguments: argparse.Namespace) -> tuple[list[str], list[bytes | OSError]]:
    """All names in the order of the command line, and for each its digest or what went wrong."""
    names: list[str] = []
    answers: dict[int, bytes | OSError] = {}
    files: dict[int, Found] = {}
    for path in arguments.paths:
        if path == "-":
            answers[len(names)] = _standard_input(arguments)
            names.append(path)
            continue
        for entry in _entries(path, arguments):
            if isinstance(entry, OSError):
                answers[len(names)] = entry
            elif entry.is_file:
                files[len(names)] = entry
            else:
                answers[len(names)] = entry.refusal()
            names.append(entry.path if isinstance(entry, Found) else os.fsdecode(entry.filename or path))
    with progress_bar() as progress:
        hashed = _files.hash_found(
            list(files.values()),
            arguments.algorithm,
            max_threads=arguments.max_threads,
            progress=progress,
            keep_going=True,
        )
    answers.update(zip(files, hashed, strict=True))
    return names, [answers[index] for index in range(len(names))]


def _entries(path: str, arguments: argparse.Namespace) -> list[Found | OSError]:
    """What one argument stands for: a file, everything in a folder, or an error."""
    try:
        if not os.path.isdir(path):  # noqa: PTH112 - the path as it was typed
            return [_files.named_file(path)]
        errors: list[OSError] = []
        found = _files.scan(
            path, ignore=arguments.ignore, allow_symlinks=arguments.allow_symlinks, on_error=errors.append
        )
    except OSError as error:
        return [error]
    return [*(entry for entry in found if not entry.is_directory), *errors]


def _standard_input(arguments: argparse.Namespace) -> bytes | OSError:
    threads = arguments.max_threads or get_num_threads()
    hasher = _files.hashers(arguments.algorithm)(threads)
    try:
        while block := sys.stdin.buffer.read(1 << 20):
            hasher.update(block)
    except OSError as error:
        return error
    digest: bytes = hasher.digest()
    return digest
