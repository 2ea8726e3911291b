"""``aisec-fast verify``: whether a model folder is what its manifest says."""

from __future__ import annotations

import argparse

from ..integrity import Manifest, Verification
from ._hashing import add_common, inside, progress_bar
from ._output import CommandError, check_json, printable_name, say, write_json

HELP = "compare a model folder with its manifest"
DESCRIPTION = """\
Compare a folder with a manifest and name every file that was added, removed or changed. The manifest is not signed: a
verdict is worth as much as the place where the manifest was kept."""
EPILOG = """\
examples:
  aisec-fast verify model/ --manifest manifest.json
  aisec-fast verify model/ --manifest model/manifest.json --ignore model.sig
  aisec-fast verify model/ --manifest manifest.json --json

exit codes: 0 the folder is what the manifest says, 1 it differs, 2 could not check, 130 interrupted
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("folder", metavar="DIR", help="the model's folder")
    parser.add_argument("--manifest", required=True, metavar="FILE", help="as written by aisec-fast manifest")
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare, give the verdict, and say it with the exit code as well."""
    check_json(arguments.json)
    if not arguments.manifest:
        raise CommandError("--manifest is '', expected the path of a file")
    manifest = Manifest.load(arguments.manifest)
    ignore = list(arguments.ignore)
    # A manifest cannot list itself. Where it does list such a name, that is another file, to be checked.
    if (own := inside(arguments.manifest, arguments.folder)) and own not in manifest.digests:
        ignore.append(own)
    try:
        with progress_bar() as progress:
            found = manifest.verify(
                arguments.folder, ignore=ignore, max_threads=arguments.max_threads, progress=progress
            )
    except ValueError as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        result = {
            "ok": found.ok,
            "added": list(found.added),
            "removed": list(found.removed),
            "changed": list(found.changed),
            "files": len(manifest.digests),
            "algorithm": manifest.algorithm,
            "root_digest": manifest.root_digest.hex(),
            "ignored": list(manifest.ignore),
            "allow_symlinks": manifest.allow_symlinks,
            "manifest": arguments.manifest,
        }
        write_json(result, arguments.json)
    if arguments.json != "-":
        say(_text(found, manifest, arguments))
    return 0 if found else 1


def _text(found: Verification, manifest: Manifest, arguments: argparse.Namespace) -> str:
    folder, listed = printable_name(arguments.folder), f"{len(manifest.digests):,} files, {manifest.algorithm}"
    # What the manifest leaves out or lets through, the reader of the verdict must know: it is the maker's word.
    limits = [f"  ignored  {printable_name(name)}" for name in manifest.ignore]
    limits += ["  links    to files inside the folder are followed"] if manifest.allow_symlinks else []
    if found:
        return "\n".join([f"OK       {folder} is what its manifest says ({listed})", *limits])
    lines = [f"DIFFERS  {folder} is not what its manifest says ({listed})"]
    for what in ("changed", "removed", "added"):
        lines += [f"  {what:<7}  {printable_name(name)}" for name in getattr(found, what)]
    return "\n".join([*lines, *limits])
