"""What must hold for any bytes: only the documented errors, and whatever is read survives being written and read again.

tests/test_parsers.py tries them with hypothesis, fuzz.py with a coverage-guided fuzzer.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from typing import Any

from rich.console import Console

from aisec_fast import ManifestError
from aisec_fast.cli import _accounting, _checksums, _hashing, _output
from aisec_fast.cli.bench import _results, _show
from aisec_fast.integrity import Manifest, _fields, _json


class Dripping(io.BytesIO):
    """A file that gives a few bytes at a time, as a pipe may."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self.most = most

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.most if size is None or size < 0 else min(size, self.most))


def checksum_file(data: bytes) -> None:
    """A checksum file: numbered lines, each well-formed or with a short reason; what is well-formed can be written."""
    for zero in (False, True):
        found = list(_checksums.read(io.BytesIO(data), zero=zero))
        end = b"\0" if zero else b"\n"
        numbers = [number for number, _ in found]
        assert numbers == sorted(set(numbers))
        assert not numbers or 1 <= numbers[0] <= numbers[-1] <= data.count(end) + 1
        if len(data) < 1 << 12:
            dripped = list(_checksums.read(Dripping(data, 7), zero=zero))
            assert list(map(str, dripped)) == list(map(str, found))
        for _, line in found:
            if isinstance(line, ValueError):
                assert type(line) is ValueError
                assert 0 < len(str(line)) < 200
                assert str(line).isprintable()
            else:
                check_line(line)


def check_line(line: _checksums.Line) -> None:
    """A line that was read can be written in every form, and says the same."""
    assert line.name
    assert "\0" not in line.name
    assert len(line.digest) == 32
    algorithm = line.algorithm or "sha256"
    for tag in (False, True):
        for zero in (False, True):
            text = _checksums.format_line(line.name, line.digest, algorithm, tag=tag, zero=zero)
            again = _checksums.parse_line(os.fsencode(text[:-1]), zero=zero)
            assert again == (line.name, line.digest, algorithm if tag else None)
            shown = _checksums.format_line(line.name, line.digest, algorithm, tag=tag, zero=zero, terminal=True)
            assert shown[:-1].isprintable()


def check_message(error: Exception) -> None:
    """A message is for a person: it does not repeat a whole file."""
    assert 0 < len(str(error)) < 2000


def manifest(data: bytes) -> None:
    """A manifest: ManifestError, or a value that is the same after it was written."""
    statement = load_manifest(data)
    if isinstance(statement, dict):
        # The same once more with a root digest that fits, which no fuzzer would find.
        with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
            resources = statement["predicate"]["resources"]
            root = hashlib.sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in resources))
            statement["subject"][0]["digest"]["sha256"] = root.hexdigest()
            data = json.dumps(statement).encode()
        load_manifest(data)


def load_manifest(data: bytes) -> Any:
    """The statement in ``data``, or None if it is not even JSON."""
    statement = None
    try:
        statement = _json(data)
        read = Manifest(**_fields(statement))
    except ManifestError as error:
        check_message(error)
        return statement
    assert Manifest(**_fields(_json(json.dumps(read.statement()).encode()))) == read
    return statement


def results(data: bytes) -> None:
    """A file of benchmark results: CommandError, or it can be compared and shown."""
    try:
        document = _results.parse(data, "b.json")
    except _output.CommandError as error:
        check_message(error)
        return
    rows = _results.compare(document, document)
    json.dumps(rows, allow_nan=False)
    _results.unmatched(document, document)
    shown = io.StringIO()
    _show.comparison(Console(file=shown), document, document, rows)
    assert not set(shown.getvalue()) & {chr(code) for code in range(32) if code != 10}


def arguments(data: bytes) -> None:
    """A number on the command line: an error that argparse tells, or the number."""
    text = os.fsdecode(data)
    for parse in (_accounting._number, _hashing._threads):
        with contextlib.suppress(ValueError, TypeError, argparse.ArgumentTypeError):
            parse(text)


def names(data: bytes) -> None:
    """What is shown of a name or message cannot steer a terminal, and no two names look the same."""
    text = os.fsdecode(data)
    assert _output.printable(text).replace("\n", "").isprintable()
    shown = _output.printable_name(text)
    assert shown.isprintable()
    assert ESCAPE.sub(unescaped, shown) == text


ESCAPE = re.compile(r"\\(?:x(..)|u(.{4})|U(.{8})|(.))", re.DOTALL)


def unescaped(found: re.Match[str]) -> str:
    byte, four, eight, letter = found.groups()
    if byte:
        return os.fsdecode(bytes.fromhex(byte))
    return chr(int(four or eight, 16)) if four or eight else {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}[letter]


PROPERTIES: dict[str, Callable[[bytes], None]] = {
    "checksum_file": checksum_file,
    "manifest": manifest,
    "results": results,
    "arguments": arguments,
    "names": names,
}
