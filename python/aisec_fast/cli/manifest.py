"""``aisec-fast manifest``: write down which files a model has, and their digests."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .._writing import check_destination
from ..integrity import Manifest
from ._hashing import add_algorithm, add_common, add_links, add_patterns, inside, progress_bar
from ._output import CommandError, check_json, printable_name, say, write_json

HELP = "write a manifest of a model folder: every file and its digest"
DESCRIPTION = """\
Write a manifest of a folder: an OpenSSF Model Signing v1.0 statement, without a signature. "aisec-fast verify" compares the
folder with it later. Whoever can change the files can change an unsigned manifest too: keep it, or the root digest that is
printed, where they cannot."""
EPILOG = """\
examples:
  aisec-fast manifest model/                                 writes manifest.json to the current folder
  aisec-fast manifest model/ -o model/manifest.json          it may lie in the folder; it then ignores itself
  aisec-fast manifest model/ --ignore .git --ignore logs --algorithm blake3

exit codes: 0 written, 2 could not write or read, 130 interrupted; a manifest is written whole or not at all
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("folder", metavar="DIR", help="the model's folder")
    parser.add_argument(
        "-o", "--output", default="manifest.json", metavar="FILE", help='default: manifest.json; "-": standard output'
    )
    add_algorithm(parser, "sha256")
    add_links(parser)
    add_common(parser)
    add_patterns(parser)


def run(arguments: argparse.Namespace) -> None:
    """Hash, write, say what was written."""
    check_json(arguments.json)
    folder, output, ignore = arguments.folder, arguments.output, list(arguments.ignore)
    if output != "-":
        check_destination(Path(output))
        if own := inside(output, folder):
            ignore.append(own)
    elif arguments.json == "-":
        raise CommandError("the manifest and the result cannot both go to standard output: name a file for one of them")
    try:
        with progress_bar() as progress:
            manifest = Manifest.from_directory(
                folder,
                algorithm=arguments.algorithm,
                ignore=ignore,
                ignore_patterns=arguments.ignore_pattern,
                allow_symlinks=arguments.allow_symlinks,
                max_threads=arguments.max_threads,
                progress=progress,
            )
    except ValueError as error:
        raise CommandError(str(error)) from error
    if not manifest.digests:
        say(f"aisec-fast: {printable_name(folder)} holds no file: the manifest vouches for nothing", error=True)
    if output == "-":
        say(json.dumps(manifest.statement(), indent=2))
    else:
        manifest.save(output)
    if arguments.json:
        result = {
            "manifest": output,
            "algorithm": manifest.algorithm,
            "files": len(manifest.digests),
            "root_digest": manifest.root_digest.hex(),
            "ignored": list(manifest.ignore),
        }
        write_json(result, arguments.json)
    if output != "-" and arguments.json != "-":
        say(_text(manifest, output))


def _text(manifest: Manifest, output: str) -> str:
    lines = [
        f"manifest     {printable_name(output)} (unsigned)",
        f"files        {len(manifest.digests):,}, {manifest.algorithm}",
        f"root digest  {manifest.root_digest.hex()}",
    ]
    if manifest.ignore:
        lines.append(f"ignored      {', '.join(printable_name(name) for name in manifest.ignore)}")
    return "\n".join(lines)
