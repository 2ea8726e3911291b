"""Checksum files: the lines that sha256sum and b3sum write and check, read and written here and nowhere else.

The format is that of GNU coreutils 9 (digest.c) and b3sum 1: ``DIGEST  NAME`` or, with ``--tag``, ``SHA256 (NAME) = DIGEST``.
A name with a backslash or a line break is escaped, and its line then starts with a backslash. With ``--zero`` lines end in a
NUL byte and nothing is escaped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ..hashing._files import DIGEST_SIZES
from ._output import printable

TAGS = {"blake3": "BLAKE3", "sha256": "SHA256"}
LONGEST = 1 << 16  # bytes of a line; no system opens a path of that length

_BLOCK = 1 << 18
_DIGITS = 2 * 32
_ALGORITHMS = {tag.encode(): algorithm for algorithm, tag in TAGS.items()}
# Where coreutils takes blanks, so do we; a name's own blanks belong to it.
_PLAIN = re.compile(rb"([0-9A-Fa-f]+)[ \t][ *](.+)", re.DOTALL)
_TAGGED = re.compile(rb"([A-Z0-9/-]+) ?\((.+)\)[ \t]*=[ \t]*([0-9A-Fa-f]+)", re.DOTALL)
_ESCAPE = re.compile(rb"\\(.?)", re.DOTALL)
_ESCAPED = {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}

assert set(DIGEST_SIZES) == set(TAGS)
assert {2 * size for size in DIGEST_SIZES.values()} == {_DIGITS}


class Line(NamedTuple):
    """What one line says."""

    name: str  # bytes that are not UTF-8 are kept as os.fsdecode gives them
    digest: bytes
    algorithm: str | None  # None: the line does not say


def shown_name(name: str, *, terminal: bool, zero: bool = False) -> tuple[str, str]:
    """A backslash if the name is escaped, and the name as it is written: on a terminal so that nothing can steer it."""
    if zero and not terminal:
        return "", name
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    shown = printable(escaped) if terminal else escaped
    return "" if shown == name else "\\", shown


def format_line(
    name: str, digest: bytes, algorithm: str, *, tag: bool = False, zero: bool = False, terminal: bool = False
) -> str:
    """One line with its end. For a terminal it can be read, but not checked where that is more than the format escapes."""
    mark, shown = shown_name(name, terminal=terminal, zero=zero)
    text = f"{TAGS[algorithm]} ({shown}) = {digest.hex()}" if tag else f"{digest.hex()}  {shown}"
    return f"{mark}{text}{chr(0) if zero else chr(10)}"


def parse_line(line: bytes, *, zero: bool = False) -> Line:
    """Read one line, given without its end; ValueError says what is wrong with it."""
    if b"\0" in line:
        raise ValueError("holds a NUL byte (--zero is for lines that end in one)")
    text = line.lstrip(b" \t")
    escaped = text.startswith(b"\\") and not zero
    text = text.removeprefix(b"\\") if escaped else text
    algorithm: str | None = None
    if found := _TAGGED.fullmatch(text):
        tag, name, digits = found.groups()
        if tag not in _ALGORITHMS:
            raise ValueError(f"is of {tag[:20].decode()}, expected {' or '.join(TAGS.values())}")
        algorithm = _ALGORITHMS[tag]
    elif found := _PLAIN.fullmatch(text):
        digits, name = found.groups()
    else:
        raise ValueError("is no line of a checksum file")
    if len(digits) != _DIGITS:
        raise ValueError(f"has a digest of {len(digits)} hexadecimal digits, expected {_DIGITS}")
    return Line(os.fsdecode(_unescaped(name) if escaped else name), bytes.fromhex(digits.decode()), algorithm)


def read(file: BinaryIO, *, zero: bool = False) -> Iterator[tuple[int, Line | ValueError]]:
    """Every line that is not empty and no comment, with its number from 1: what it says, or what is wrong with it.

    Memory stays bounded, whatever the file holds.
    """
    for number, line in enumerate(_lines(file, b"\0" if zero else b"\n"), 1):
        if not zero and line is not None:
            if line.startswith(b"#"):
                continue
            line = line.removesuffix(b"\r")
        if line == b"":
            continue
        try:
            if line is None or len(line) > LONGEST:
                raise ValueError(f"is longer than {LONGEST:,} bytes")
            yield number, parse_line(line, zero=zero)
        except ValueError as error:
            yield number, error


def _unescaped(name: bytes) -> bytes:
    def letter(found: re.Match[bytes]) -> bytes:
        if found[1] not in _ESCAPED:
            raise ValueError(r"has a backslash in its name that starts none of \\, \n and \r")
        return _ESCAPED[found[1]]

    return _ESCAPE.sub(letter, name)


def _lines(file: BinaryIO, end: bytes) -> Iterator[bytes | None]:
    """Lines without their ends; None for one that is too long to be kept."""
    rest, dropping = b"", False
    while block := file.read(_BLOCK):
        first, *others = block.split(end)
        rest += first
        for following in others:
            yield None if dropping else rest
            rest, dropping = following, False
        if len(rest) > LONGEST:
            rest, dropping = b"", True
    if rest or dropping:
        yield None if dropping else rest
