"""``aisec-fast hash --check``: whether files are what checksum files say."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

from ..hashing import _files
from ..hashing._files import Found
from ._checksums import TAGS, Line, read, shown_name
from ._hashing import hash_standard_input, print_names, progress_bar, reason, standard_input
from ._output import CommandError, printable, printable_name, say, write_json

_BATCH = 1 << 16  # lines whose files are hashed together: memory stays bounded however many a checksum file has
_MODES, _UNCHECKED = (
    ("quiet", "status", "ignore_missing", "strict", "warn"),
    ("tag", "ignore", "ignore_pattern", "allow_symlinks"),
)
_FINE, _DIFFERS, _COULD_NOT, _INTERRUPTED = 0, 1, 2, 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--check`` and what belongs to it."""
    group = parser.add_argument_group("checking", "with --check, each PATH is a checksum file")
    group.add_argument("-c", "--check", action="store_true", help="read digests and compare the files with them")
    group.add_argument("--quiet", action="store_true", help="do not name files that are as listed")
    group.add_argument("--status", action="store_true", help="print no results: the exit code tells")
    group.add_argument("--ignore-missing", action="store_true", help="pass over files that do not exist")
    group.add_argument("--strict", action="store_true", help="a line that is not well-formed is an error")
    group.add_argument("-w", "--warn", action="store_true", help="name every line that is not well-formed")


def refuse_contradictions(arguments: argparse.Namespace) -> None:
    """CommandError for options that would do nothing."""
    unused, place = (_UNCHECKED, "without") if arguments.check else (_MODES, "with")
    for name in unused:
        if getattr(arguments, name):
            raise CommandError(f"--{name.replace('_', '-')} does something only {place} --check")


def run(arguments: argparse.Namespace) -> int:
    """Check all lines of all checksum files, in order."""
    check = _Check(arguments)
    lines = check.lines()
    try:
        while batch := list(islice(lines, _BATCH)):
            check.compare(batch)
    except KeyboardInterrupt:
        say("aisec-fast: interrupted; nothing but what was printed is checked", error=True)
        return _INTERRUPTED
    check.summarize()
    if arguments.json:
        write_json(check.result(), arguments.json)
    return check.code()


class _Listed(NamedTuple):
    """A well-formed line and where it stands."""

    file: str
    number: int
    line: Line
    algorithm: str


class _Check:
    """One call: what was asked, and what was found."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.asked = arguments
        self.counts: Counter[str] = Counter()  # of lines, by what became of them
        self.verified: dict[str, bool] = {}  # for each checksum file with a well-formed line, whether a file was hashed
        self.untagged: Counter[bool] = (
            Counter()
        )  # of lines that do not name their algorithm: whether the digest matched
        self.failed = False  # a checksum file could not be used
        self.rows: list[dict[str, Any]] = []  # for --json
        self.errors: list[dict[str, str]] = []
        self.terminal = sys.stdout is not None and sys.stdout.isatty()

    def lines(self) -> Iterator[_Listed]:
        """The well-formed lines of all checksum files; what is wrong with the others is counted and told."""
        for name in self.asked.paths:
            first_fault = ""
            try:
                with _opened(name) as file:
                    for number, line in read(file, zero=self.asked.zero):
                        if isinstance(line, Line) and line.name == "-" and "-" in self.asked.paths:
                            line = ValueError("names standard input, which is a checksum file itself")
                        if isinstance(line, Line):
                            self.verified.setdefault(name, False)
                            yield _Listed(name, number, line, line.algorithm or self.asked.algorithm)
                            continue
                        self.counts["malformed"] += 1
                        first_fault = first_fault or f"line {number} {line}"
                        if self.asked.warn:
                            self.tell(name, f"line {number} {line}")
            except OSError as error:
                self.fail(name, reason(error))
                continue
            if name not in self.verified:
                hint = f" ({first_fault})" if first_fault else ""
                self.fail(name, f"no well-formed line of a checksum file found{hint}")

    def compare(self, batch: list[_Listed]) -> None:
        """Hash the files of these lines, each once, and print what became of each line."""
        answers: dict[tuple[str, str], bytes | OSError] = {}
        for algorithm in TAGS:
            names = dict.fromkeys(listed.line.name for listed in batch if listed.algorithm == algorithm)
            for name, answer in self.hashed(names, algorithm).items():
                answers[algorithm, name] = answer
        text = []
        for listed in batch:
            answer = answers[listed.algorithm, listed.line.name]
            if what := self.count(listed, answer):
                text.append(f"{''.join(shown_name(listed.line.name, terminal=self.terminal))}: {what}\n")
        if self.asked.json != "-" and not self.asked.status:
            print_names("".join(text))

    def hashed(self, names: Iterable[str], algorithm: str) -> dict[str, bytes | OSError]:
        """For each name its file's digest, or what went wrong."""
        answers: dict[str, bytes | OSError] = {}
        files: dict[str, Found] = {}
        for name in names:
            try:
                if name == "-":
                    answers[name] = hash_standard_input(algorithm, self.asked.max_threads)
                else:
                    files[name] = _files.named_file(name)
            except OSError as error:
                answers[name] = error
        if not files:
            return answers
        with progress_bar() as progress:
            found = _files.hash_found(
                list(files.values()),
                algorithm,
                max_threads=self.asked.max_threads,
                progress=progress,
                keep_going=True,
            )
        answers.update(zip(files, found, strict=True))
        return answers

    def count(self, listed: _Listed, answer: bytes | OSError) -> str | None:
        """Book what became of a line; what to print of it."""
        row = {
            "checksum_file": listed.file,
            "line": listed.number,
            "name": listed.line.name,
            "algorithm": listed.algorithm,
            "expected": listed.line.digest.hex(),
        }
        if isinstance(answer, OSError):
            missing = self.asked.ignore_missing and isinstance(answer, FileNotFoundError)
            status, shown = ("missing", None) if missing else ("unreadable", "FAILED open or read")
            row["error"] = reason(answer)
            if not missing:
                self.tell(listed.line.name, reason(answer))
        else:
            same = answer == listed.line.digest
            status, shown = ("ok", None if self.asked.quiet else "OK") if same else ("differs", "FAILED")
            row["digest"] = answer.hex()
            self.verified[listed.file] = True
            self.untagged[same] += listed.line.algorithm is None
        self.counts[status] += 1
        if self.asked.json:
            self.rows.append({**row, "status": status})
        return shown

    def summarize(self) -> None:
        """Say what was wrong, as sha256sum does, and where it may come from."""
        if self.asked.ignore_missing:
            for name in [name for name, verified in self.verified.items() if not verified]:
                self.fail(name, "no file was verified")
        if self.asked.status:
            return
        for what, one, many in (
            ("malformed", "line is improperly formatted", "lines are improperly formatted"),
            ("unreadable", "listed file could not be read", "listed files could not be read"),
            ("differs", "computed checksum did NOT match", "computed checksums did NOT match"),
        ):
            if count := self.counts[what]:
                say(f"aisec-fast: WARNING: {count} {one if count == 1 else many}", error=True)
        if self.untagged[False] and not self.untagged[True]:
            other = next(name for name in TAGS if name != self.asked.algorithm)
            say(
                f"aisec-fast: no digest matched as {TAGS[self.asked.algorithm]}, and the lines do not say what they are: "
                f"if they are {TAGS[other]}, use --algorithm {other}",
                error=True,
            )

    def result(self) -> dict[str, Any]:
        """All of it, for --json."""
        statuses = ("ok", "differs", "unreadable", "missing", "malformed")
        return {
            "ok": self.code() == _FINE,
            "counts": {status: self.counts[status] for status in statuses},
            "files": self.rows,
            "errors": self.errors,
        }

    def code(self) -> int:
        """The exit code: what could not be checked outweighs what differs."""
        if self.failed or self.counts["unreadable"] or (self.asked.strict and self.counts["malformed"]):
            return _COULD_NOT
        return _DIFFERS if self.counts["differs"] else _FINE

    def fail(self, name: str, why: str) -> None:
        """A checksum file is of no use."""
        self.failed = True
        self.errors.append({"name": name, "error": why})
        self.tell(name, why)

    def tell(self, name: str, why: str) -> None:
        """Say what is wrong with a file."""
        say(f"aisec-fast: {printable_name(name)}: {printable(why)}", error=True)


def _opened(name: str) -> AbstractContextManager[BinaryIO]:
    """A checksum file, which may be a pipe: of whoever runs us, or of the shell's <(...)."""
    return nullcontext(standard_input()) if name == "-" else open(name, "rb")  # noqa: PTH123 - the path as it was typed
