"""Manifests of model folders: which files belong to a model, and the digest of each.

A manifest is an OpenSSF Model Signing v1.0 statement (docs/integrity.md), here without a signature: it finds damage and
careless change, but whoever can change the files can change an unsigned manifest too. Keep it, or its ``root_digest``,
where they cannot.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from . import _checks
from ._errors import ManifestError
from ._writing import check_destination, write_whole
from .hashing import _files
from .hashing._files import DIGEST_SIZES, Found, Progress, StrPath

__all__ = ["Manifest", "Verification"]

# Facts of the format: in-toto Statement v1 (github.com/in-toto/attestation), and the model-signing package, version 1.
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_METHOD = "files"


@dataclass(frozen=True)
class Verification:
    """How a folder differs from its manifest. True as a bool (``ok``) if and only if it does not differ."""

    added: tuple[str, ...]
    """Sorted names that are in the folder, not ignored, and not in the manifest: files, links, FIFOs, sockets, devices."""
    removed: tuple[str, ...]
    """Sorted names that are in the manifest and not in the folder."""
    changed: tuple[str, ...]
    """Sorted names whose bytes differ from the manifest's digest, or that are no longer regular files."""

    @property
    def ok(self) -> bool:
        """Whether the folder is what the manifest says."""
        return not (self.added or self.removed or self.changed)

    def __bool__(self) -> bool:
        """The same as ``ok``."""
        return self.ok


@dataclass(frozen=True)
class Manifest:
    """The files of a model folder and their digests. Make one by ``from_directory`` or ``load``.

    Two manifests are equal if all their fields are.

    Raises:
        ManifestError: A name or digest that no manifest can hold (a ValueError).
    """

    digests: Mapping[str, bytes]
    """Name ("/" between its parts) to digest, read-only, in the order of the statement."""
    algorithm: str = "sha256"
    """ "sha256" or "blake3"."""
    name: str = ""
    """The model's name: the folder's own. For information only; verify does not look at it."""
    ignore: tuple[str, ...] = ()
    """Relative paths that are not part of the model, a folder with all that is in it."""
    allow_symlinks: bool = False
    """Whether a link to a regular file inside the folder counts as that file."""

    def __post_init__(self) -> None:
        """Check everything, and keep copies that the caller does not hold."""
        _check_algorithm(self.algorithm, "algorithm")
        if not isinstance(self.digests, Mapping):
            _bad("digests", self.digests, "a mapping of names to digests")
        if not isinstance(self.allow_symlinks, bool):  # "no" would mean yes
            _bad("allow_symlinks", self.allow_symlinks, "True or False")
        ignored = _checked_ignore(self.ignore, "ignore")
        left_out = _Ignored(ignored)
        for index, (name, digest) in enumerate(self.digests.items()):
            _check_name(name, left_out, f"name {index}")
            _check_bytes(digest, DIGEST_SIZES[self.algorithm], f"digest of {name!r}")
        _check_text(self.name, "name")
        object.__setattr__(self, "ignore", ignored)
        object.__setattr__(self, "digests", MappingProxyType(dict(self.digests)))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Manifest], tuple[Any, ...]]:
        """To pickle and copy: a read-only view does neither by itself."""
        return Manifest, (dict(self.digests), self.algorithm, self.name, self.ignore, self.allow_symlinks)

    @classmethod
    def from_directory(
        cls,
        path: StrPath,
        *,
        algorithm: str = "sha256",
        ignore: Iterable[str] = (),
        ignore_patterns: Iterable[str] = (),
        allow_symlinks: bool = False,
        max_threads: int | None = None,
        progress: Progress | None = None,
    ) -> Manifest:
        """The manifest of a folder as it is now: every file in it, hidden ones included.

        Args:
            path: The folder, or a symbolic link to it.
            algorithm: "sha256" (what model-signing takes for granted) or "blake3" (faster, also known to it).
            ignore: Relative paths that are not part of the model, a folder with all that is in it; recorded in the
                manifest. Where the manifest itself lies inside the folder, its own name belongs here.
            ignore_patterns: As in ``hashing.hash_directory``. Recorded as the paths that they match now: what comes
                later and matches too is found by ``verify`` as added.
            allow_symlinks: False: a symbolic link inside the folder is an error, unless it is ignored. True: a link to
                a file inside the folder counts as that file; one that leads out of it stays an error. Recorded in the
                manifest.
            max_threads: As in ``hashing.hash_file``.
            progress: As in ``hashing.hash_directory``.

        Raises:
            ManifestError: A name is not UTF-8, so that JSON cannot hold it; the message names the file.
            Otherwise as ``hashing.hash_directory``.
        """
        _check_algorithm(algorithm, "algorithm", ValueError)
        allow_symlinks = _checks.flag(allow_symlinks, "allow_symlinks")
        ignored = _checked_ignore(list(_files.ignored_names(ignore)), "ignore")
        patterns = _files.Patterns(ignore_patterns)
        files = _files.regular_files(path, ignore=ignored, patterns=patterns, allow_symlinks=allow_symlinks)
        ignored = _checked_ignore(list(_files.ignored_names((*ignored, *patterns.matched))), "ignore")
        for found in files:  # before the hours of hashing, not after them
            _check_name(found.name, _Ignored(()), "name of a file")
        digests = _files.hash_found(files, algorithm, max_threads=max_threads, progress=progress)
        names = (found.name for found in files)
        return cls(dict(zip(names, digests, strict=True)), algorithm, _model_name(path), ignored, allow_symlinks)

    # --- The statement ------------------------------------------------------------------------------------------------

    @property
    def root_digest(self) -> bytes:
        """SHA-256 over all digests in the statement's order: one value that stands for all files' bytes.

        As the format has it, it covers neither names nor which paths are ignored.
        """
        return hashlib.sha256(b"".join(self.digests.values())).digest()

    def statement(self) -> dict[str, Any]:
        """The in-toto statement, ready for ``json.dumps``."""
        serialization: dict[str, Any] = {
            "method": _METHOD,
            "hash_type": self.algorithm,
            "allow_symlinks": self.allow_symlinks,
        }
        if self.ignore:
            serialization["ignore_paths"] = list(self.ignore)
        resources = [
            {"name": name, "algorithm": self.algorithm, "digest": digest.hex()} for name, digest in self.digests.items()
        ]
        return {
            "_type": _STATEMENT_TYPE,
            "subject": [{"name": self.name, "digest": {"sha256": self.root_digest.hex()}}],
            "predicateType": _PREDICATE_TYPE,
            "predicate": {"serialization": serialization, "resources": resources},
        }

    def save(self, path: StrPath) -> None:
        """Write the statement as JSON, whole or not at all: beside ``path``, onto the disk, then renamed.

        Raises:
            OSError: The file cannot be written; what was there before is untouched.
        """
        destination = Path(_files.text_path(path))
        check_destination(destination)
        write_whole(destination, json.dumps(self.statement(), indent=2) + "\n")

    @classmethod
    def load(cls, path: StrPath) -> Manifest:
        """Read a statement and check all of it. Fields that the format does not know are passed over, as it demands.

        Raises:
            ManifestError: It is no such statement, or contradicts itself; the message names the file and the field.
            OSError: The file cannot be read.
        """
        text = _files.text_path(path)
        try:
            return cls(**_fields(_json(_read(text))))
        except ManifestError as error:
            raise ManifestError(f"{text!r}: {error}") from None

    # --- Checking a folder --------------------------------------------------------------------------------------------

    def verify(
        self,
        path: StrPath,
        *,
        ignore: Iterable[str] = (),
        max_threads: int | None = None,
        progress: Progress | None = None,
    ) -> Verification:
        """Compare a folder with this manifest.

        Args:
            path: The folder, or a symbolic link to it.
            ignore: Further relative paths that may be there, such as the manifest's own; none may hold a listed file.
            max_threads: As in ``hashing.hash_file``.
            progress: As in ``hashing.hash_directory``, over the bytes of listed files.

        Returns:
            What differs; true if nothing does. Only listed files are read.

        Raises:
            OSError: A file or folder cannot be read, or changes while it is read: nothing is then said about any.
            ValueError: ``ignore`` would hide a listed file.
        """
        ignored = _files.ignored_names(ignore)
        left_out = _Ignored(ignored)
        for name in self.digests:
            if name in left_out:
                raise ValueError(f"ignore covers {name!r}, which the manifest lists, expected paths outside of it")
        found = _files.scan(path, ignore=(*self.ignore, *ignored), allow_symlinks=self.allow_symlinks)
        present = {entry.name: entry for entry in found}
        files = [entry for name, entry in present.items() if entry.is_file and name in self.digests]
        digests = _files.hash_found(files, self.algorithm, max_threads=max_threads, progress=progress)
        same = {entry.name for entry, digest in zip(files, digests, strict=True) if digest == self.digests[entry.name]}
        listed = self.digests.keys()
        return Verification(
            added=_sorted(entry.name for entry in found if not entry.is_directory and entry.name not in listed),
            removed=_sorted(listed - present.keys()),
            changed=_sorted((listed & present.keys()) - same),
        )


def _model_name(path: StrPath) -> str:
    """A folder's own name. It is for information only, so bytes that are not UTF-8 may be replaced."""
    folder = Path(_files.text_path(path))
    name = folder.name if folder.name not in ("", "..") else folder.resolve().name
    return os.fsencode(name).decode("utf-8", "replace")


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=_files.order))


# --- What may stand in a manifest -------------------------------------------------------------------------------------


def _bad(field: str, value: object, expected: str, kind: type[ValueError] = ManifestError) -> NoReturn:
    shown = repr(value) if isinstance(value, (str, bytes, bool, int, float, type(None))) else _checks.kind_of(value)
    raise kind(f"{field} is {_shortened(shown)}, expected {expected}")


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _check_text(value: object, field: str) -> str:
    if not isinstance(value, str):
        _bad(field, value, "a string")
    try:
        value.encode()
    except UnicodeEncodeError:  # surrogates: bytes of a file name that are not UTF-8, or half of a JSON escape
        _bad(field, value, "valid Unicode: JSON cannot hold other names. Rename the file, or ignore its folder")
    return value


def _check_name(value: object, ignored: _Ignored, field: str) -> str:
    name = _check_text(value, field)
    # Also absolute ("" comes first), and what another reader might take for another file.
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        _bad(field, name, 'a path inside the folder, relative to it, without empty parts, "." and ".."')
    if name in ignored:
        _bad(field, name, "a path that is not ignored at the same time")
    return name


def _check_bytes(value: object, size: int, field: str) -> None:
    if not isinstance(value, bytes) or len(value) != size:
        _bad(field, value, f"{size} bytes")


class _Ignored:
    """The paths that are ignored, ready to be asked for any name."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = frozenset(paths)
        # A name is cut only where an ignored path could end: a name of very many parts would take hours otherwise.
        self.lengths = sorted({len(path) for path in self.paths})

    def __contains__(self, name: str) -> bool:
        """Whether a name or a folder above it is ignored."""
        for length in self.lengths:
            if length > len(name):
                return False
            if name[length : length + 1] in ("/", "") and name[:length] in self.paths:
                return True
        return False


def _checked_ignore(value: object, field: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        _bad(field, value, "a list of relative paths")
    try:
        ignored = _files.ignored_names(value)
    except (TypeError, ValueError) as error:
        raise ManifestError(f"{field}: {_shortened(str(error))}") from None
    for name in ignored:
        _check_text(name, field)
    return ignored


def _check_algorithm(value: object, field: str, kind: type[ValueError] = ManifestError) -> str:
    if not isinstance(value, str) or value not in DIGEST_SIZES:
        _bad(field, value, " or ".join(f'"{name}"' for name in DIGEST_SIZES), kind)
    return value


# --- Reading ----------------------------------------------------------------------------------------------------------


def _read(path: str) -> bytes:
    """A regular file's bytes, by the reader that waits for no FIFO."""
    found: Found = _files.named_file(path)
    with _files.opened(found.path) as (descriptor, before):
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read()
        _files.check_unchanged(descriptor, before, len(data), path)
    return data


def _json(data: bytes) -> object:
    def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Readers differ in which of two equal keys they take; so may what was signed and what is checked.
        if len(found := dict(pairs)) < len(pairs):
            double = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ManifestError(f"key {_shortened(repr(double))} stands twice in one object, expected once")
        return found

    def no_constant(name: str) -> NoReturn:
        raise ManifestError(f"is no JSON in UTF-8: {name}, which Python's reader would take, is none")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=without_doubles, parse_constant=no_constant)
    except ManifestError:
        raise
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ManifestError(f"is no JSON in UTF-8: {error}") from None


def _fields(statement: object) -> dict[str, Any]:
    """The arguments of Manifest that a statement holds."""
    whole = _object(statement, "the statement")
    if "dsseEnvelope" in whole:
        raise ManifestError("is a signed bundle, expected the statement by itself; signatures cannot be checked yet")
    _constant(whole, "_type", _STATEMENT_TYPE, "")
    _constant(whole, "predicateType", _PREDICATE_TYPE, "")
    predicate = _object(_get(whole, "predicate", ""), "predicate")
    serialization = _object(_get(predicate, "serialization", "predicate."), "predicate.serialization")
    prefix = "predicate.serialization."
    _constant(serialization, "method", _METHOD, prefix)
    algorithm = _check_algorithm(_get(serialization, "hash_type", prefix), f"{prefix}hash_type")
    allow_symlinks = _get(serialization, "allow_symlinks", prefix)
    if not isinstance(allow_symlinks, bool):
        _bad(f"{prefix}allow_symlinks", allow_symlinks, "true or false")
    ignored = _checked_ignore(serialization.get("ignore_paths", []), f"{prefix}ignore_paths")
    digests = _resources(_get(predicate, "resources", "predicate."), algorithm, ignored)
    return {
        "digests": digests,
        "algorithm": algorithm,
        "name": _subject(_get(whole, "subject", ""), digests),
        "ignore": ignored,
        "allow_symlinks": allow_symlinks,
    }


def _resources(value: object, algorithm: str, ignored: Sequence[str]) -> dict[str, bytes]:
    if not isinstance(value, list):
        _bad("predicate.resources", value, "a list")
    digests: dict[str, bytes] = {}
    left_out = _Ignored(ignored)
    for index, item in enumerate(value):
        field = f"predicate.resources[{index}]"
        resource = _object(item, field)
        name = _check_name(_get(resource, "name", f"{field}."), left_out, f"{field}.name")
        if name in digests:
            _bad(f"{field}.name", name, "a name that does not come twice")
        _constant(resource, "algorithm", algorithm, f"{field}.")
        digests[name] = _digest(_get(resource, "digest", f"{field}."), DIGEST_SIZES[algorithm], f"{field}.digest")
    return digests


def _subject(value: object, digests: Mapping[str, bytes]) -> str:
    if not isinstance(value, list) or len(value) != 1:
        _bad("subject", value, "a list of one object")
    subject = _object(value[0], "subject[0]")
    name = _check_text(_get(subject, "name", "subject[0]."), "subject[0].name")
    field = "subject[0].digest"
    digest = _get(_object(_get(subject, "digest", "subject[0]."), field), "sha256", f"{field}.")
    root = _digest(digest, 32, f"{field}.sha256")
    expected = hashlib.sha256(b"".join(digests.values())).hexdigest()
    if root.hex() != expected:
        _bad(f"{field}.sha256", root.hex(), f"{expected}, the root digest of the resources")
    return name


def _object(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _bad(field, value, "an object")
    return value


def _get(holder: dict[str, Any], key: str, prefix: str) -> Any:
    if key not in holder:
        raise ManifestError(f"{prefix}{key} is missing")
    return holder[key]


def _constant(holder: dict[str, Any], key: str, expected: str, prefix: str) -> None:
    if (value := _get(holder, key, prefix)) != expected:
        _bad(f"{prefix}{key}", value, repr(expected))


def _digest(value: object, size: int, field: str) -> bytes:
    if isinstance(value, str) and len(value) == 2 * size and set(value) <= set("0123456789abcdef"):
        return bytes.fromhex(value)
    _bad(field, value, f"{2 * size} hexadecimal digits, lower case")
