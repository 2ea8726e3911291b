"""``aisec-fast hash``: digests of files and folders, as sha256sum and b3sum print them."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from ..hashing import _files
from ..hashing._files import Found
from . import _check
from ._checksums import format_line
from ._hashing import (
    add_algorithm,
    add_common,
    add_links,
    add_patterns,
    hash_standard_input,
    print_names,
    progress_bar,
    reason,
)
from ._output import CommandError, check_json, printable, printable_name, say, write_json

HELP = "print or check BLAKE3 or SHA-256 digests of files and folders"
DESCRIPTION = """\
Print a line "DIGEST  NAME" for each file, and for each file in a folder and below it, hidden files included; or, with
--check, read such lines and compare the files with them. The lines are those of sha256sum and b3sum: either reads what the
other wrote. A name with a backslash or a line break is escaped and its line starts with a backslash. On a terminal, other
control characters are escaped as well."""
EPILOG = """\
examples:
  aisec-fast hash model.safetensors
  aisec-fast hash model/ --algorithm sha256 > SHA256SUMS    then: sha256sum --check SHA256SUMS
  aisec-fast hash --check B3SUMS                            as b3sum --check, on all cores
  aisec-fast hash --check SHA256SUMS --algorithm sha256     lines with a tag, "SHA256 (NAME) = DIGEST", need no algorithm
  tar c model | aisec-fast hash -                           standard input
  aisec-fast hash model/ --json digests.json

exit codes: 0 all hashed, 2 something could not be read (the rest is hashed), 130 interrupted
with --check: 0 all files are as listed; 1 a file differs; 2 something could not be checked: a file or a checksum file that
cannot be read, none of whose lines is well-formed or (--strict) one is not, or of whose files all are missing
(--ignore-missing); 2 also if at the same time a file differs
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help='file or folder, with --check a checksum file; "-" is standard input'
    )
    add_algorithm(parser, "blake3")
    add_links(parser)
    add_common(parser)
    add_patterns(parser)
    parser.add_argument("--tag", action="store_true", help="print BSD lines: SHA256 (NAME) = DIGEST")
    parser.add_argument("-z", "--zero", action="store_true", help="lines end in a NUL byte, names are not escaped")
    _check.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Hash everything, tell what could not be read at once, print the digests; or check what others printed."""
    check_json(arguments.json)
    _check.refuse_contradictions(arguments)
    if arguments.check:
        return _check.run(arguments)
    try:
        names, answers = _answers(arguments)
    except ValueError as error:
        raise CommandError(str(error)) from error
    pairs = list(zip(names, answers, strict=True))
    digests = [(name, answer) for name, answer in pairs if isinstance(answer, bytes)]
    errors = [(name, reason(answer)) for name, answer in pairs if isinstance(answer, OSError)]
    for name, why in errors:
        say(f"aisec-fast: {printable_name(name)}: {printable(why)}", error=True)
    if arguments.json:
        result: dict[str, Any] = {
            "algorithm": arguments.algorithm,
            "files": [{"name": name, "digest": digest.hex()} for name, digest in digests],
            "errors": [{"name": name, "error": why} for name, why in errors],
        }
        write_json(result, arguments.json)
    if arguments.json != "-":
        terminal = sys.stdout is not None and sys.stdout.isatty()
        form = {"tag": arguments.tag, "zero": arguments.zero, "terminal": terminal}
        print_names("".join(format_line(name, digest, arguments.algorithm, **form) for name, digest in digests))
    return 2 if errors else 0


def _answers(arguments: argparse.Namespace) -> tuple[list[str], list[bytes | OSError]]:
    """All names in the order of the command line, and for each its digest or what went wrong."""
    names: list[str] = []
    answers: dict[int, bytes | OSError] = {}
    files: dict[int, Found] = {}
    for path in arguments.paths:
        if path == "-":
            answers[len(names)] = hash_standard_input(arguments.algorithm, arguments.max_threads)
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
            path,
            ignore=arguments.ignore,
            patterns=_files.Patterns(arguments.ignore_pattern),
            allow_symlinks=arguments.allow_symlinks,
            on_error=errors.append,
        )
    except OSError as error:
        return [error]
    return [*(entry for entry in found if not entry.is_directory), *errors]
