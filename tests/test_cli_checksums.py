"""Checksum files: what sha256sum and b3sum write is read, what is written they read, and nothing hostile gets through."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blake3 as peer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisec_fast.cli import _check, _checksums, main
from aisec_fast.cli._checksums import Line, format_line, parse_line, read
from aisec_fast.hashing import _files

DIGEST = bytes(range(32))
HEX = DIGEST.hex().encode()
TOOLS = {"sha256": "sha256sum", "blake3": "b3sum"}
FORMS: list[dict[str, bool]] = [{}, {"tag": True}, {"zero": True}, {"tag": True, "zero": True}]
ODD = [
    b"\\",
    b"\n",
    b"\r",
    b" ",
    b"*",
    b"#",
    b"(",
    b")",
    b" = ",
    b"=",
    b"\t",
    b"\x1b",
    b"\xff",
    b"n",
    b"r",
    b"SHA256 (",
    b"\xc3\xbc",
]


def digest(data: bytes, algorithm: str) -> bytes:
    return hashlib.sha256(data).digest() if algorithm == "sha256" else peer.blake3(data).digest()


def run(tool: str, *arguments: str | bytes, folder: Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [tool, *arguments], input=data, cwd=folder, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )


@cache
def has(tool: str) -> str:
    """What an installed tool knows: its help; the test is skipped where it is missing."""
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    return subprocess.run([tool, "--help"], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


@cache
def escapes_cr(tool: str, folder: Path) -> bool:
    """Older versions of both leave a carriage return in a name as it is, and cannot read it back."""
    (folder / "\r").touch()
    return run(tool, "--", "\r", folder=folder).stdout.startswith(b"\\")


NAMES = (
    st.lists(st.sampled_from(ODD) | st.binary(max_size=3), max_size=8)
    .map(b"".join)
    .map(lambda name: name.replace(b"/", b"").replace(b"\0", b""))
)


# --- The format -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", TOOLS)
@given(names=st.lists(NAMES, min_size=1, max_size=8, unique=True))
def test_either_reads_what_the_other_wrote(algorithm: str, names: list[bytes], folder: Path) -> None:
    tool, options = TOOLS[algorithm], has(TOOLS[algorithm])
    names = [name for name in names if name not in (b"", b".", b"..", b"-")]
    if not escapes_cr(tool, folder):
        names = [name for name in names if b"\r" not in name]
    if algorithm == "blake3":  # it writes such names with a replacement character, and refuses to read that
        names = [
            name for name in names if name.decode("utf-8", "ignore").encode() == name and b"\xef\xbf\xbd" not in name
        ]
    if not names:
        return
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(name[:4])
    expected = [(os.fsdecode(name), digest(name[:4], algorithm)) for name in names]
    for form in FORMS:
        flags = [f"--{flag}" for flag in form]
        ours = b"".join(os.fsencode(format_line(*pair, algorithm, **form)) for pair in expected)
        if all(flag in options for flag in flags):
            theirs = run(tool, *flags, "--", *names, folder=folder)
            assert theirs.stdout == ours
            assert theirs.returncode == 0
        if "zero" not in form and (not form or "--tag" in options):
            assert run(tool, "--check", "--", "-", folder=folder, data=ours).returncode == 0
        zero = form.get("zero", False)
        found = [line for _, line in read(io.BytesIO(ours), zero=zero)]
        assert found == [(*pair, algorithm if "tag" in form else None) for pair in expected]


PARTS = [
    HEX,
    HEX.upper(),
    HEX[:32],
    HEX + b"0",
    b"  ",
    b" *",
    b" ",
    b"\t",
    b"\\",
    b"\\\\",
    b"\\n",
    b"\n",
    b"\r\n",
    b"\r",
]
PARTS += [HEX + b"  name\n", b"\\" + HEX + b" *a\\\\b\n", b"SHA256 (a)b) = " + HEX + b"\n"]
PARTS += [b"SHA256 (", b"SHA256(", b"MD5 (", b"BLAKE3 (", b") = ", b")= ", b")", b"a", b"name", b"#", b"\xff"]


@given(st.lists(st.sampled_from(PARTS), max_size=30).map(b"".join))
def test_no_line_is_read_that_sha256sum_refuses(folder: Path, data: bytes) -> None:
    has("sha256sum")
    theirs = run("sha256sum", "--check", "--warn", "-", folder=folder, data=data)
    refused = {int(number) for number in re.findall(rb": (\d+): improperly formatted", theirs.stderr)}
    # Without a single well-formed line it says nothing else; of BLAKE3 it knows nothing.
    nothing = b"no properly formatted" in theirs.stderr
    for number, line in read(io.BytesIO(data)):
        if isinstance(line, Line) and line.algorithm != "blake3":
            assert not nothing
            assert number not in refused


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (HEX + b"  name", ("name", None)),
        (HEX + b" *name", ("name", None)),
        (HEX.upper() + b"   * name ", (" * name ", None)),
        (b" \t" + HEX + b"\t name", ("name", None)),
        (b"\\" + HEX + b"  a\\\\n\\nb\\rc", ("a\\n\nb\rc", None)),
        (HEX + b"  a\\nb", ("a\\nb", None)),
        (HEX + b"  /abs/../\xff", ("/abs/../\udcff", None)),
        (b"SHA256 (a (b) = c) = " + HEX, ("a (b) = c", "sha256")),
        (b"\\BLAKE3 (a\\nb) = " + HEX, ("a\nb", "blake3")),
        (b"SHA256(name)= " + HEX, ("name", "sha256")),  # openssl dgst
        (b"SHA256 (" + HEX + b"  x) = " + HEX.upper(), (HEX.decode() + "  x", "sha256")),
    ],
)
def test_lines_that_are_well_formed(line: bytes, found: tuple[str, str | None]) -> None:
    assert parse_line(line) == (found[0], DIGEST, found[1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (HEX[:-2] + b"  md5", "has a digest of 62 hexadecimal digits, expected 64"),
        (HEX * 2 + b"  sha512", "has a digest of 128 hexadecimal digits"),
        (b"SHA256 (a) = " + HEX[:32], "has a digest of 32 hexadecimal digits"),
        (b"MD5 (a) = " + HEX[:32], "is of MD5, expected BLAKE3 or SHA256"),
        (HEX + b" name", "is no line"),
        (HEX + b"  ", "is no line"),
        (HEX, "is no line"),
        (b"g" + HEX[1:] + b"  name", "is no line"),
        (b"SHA256 (a) = " + HEX + b" ", "is no line"),
        (b"SHA256 () = " + HEX, "is no line"),
        (b"sha256 (a) = " + HEX, "is no line"),
        (HEX + b"  a\0b", "holds a NUL byte"),
        (b"\\" + HEX + b"  a\\tb", "has a backslash"),
        (b"\\" + HEX + b"  a\\", "has a backslash"),
    ],
)
def test_lines_that_are_not(line: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_line(line)


def test_with_zero_nothing_is_escaped() -> None:
    assert parse_line(HEX + b"  a\n\\n\r", zero=True) == ("a\n\\n\r", DIGEST, None)
    assert list(read(io.BytesIO(HEX + b"  a\0\0" + HEX + b"  b\r\n"), zero=True)) == [
        (1, ("a", DIGEST, None)),
        (3, ("b\r\n", DIGEST, None)),
    ]
    with pytest.raises(ValueError, match="is no line"):
        parse_line(b"\\" + HEX + b"  a", zero=True)


def test_comments_blank_lines_and_line_ends() -> None:
    data = b"# comment\n\n\r\n" + HEX + b"  a\r\n #\n" + HEX + b"  b"
    found = list(read(io.BytesIO(data)))
    assert [number for number, _ in found] == [4, 5, 6]
    assert [line.name if isinstance(line, Line) else "" for _, line in found] == ["a", "", "b"]


@given(st.lists(st.binary(max_size=25).map(lambda line: line.replace(b"\n", b"")), max_size=6), st.integers(1, 9))
def test_lines_are_cut_alike_wherever_blocks_end(lines: list[bytes], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_checksums, "LONGEST", 12)
        patch.setattr(_checksums, "_BLOCK", block)
        found = list(_checksums._lines(io.BytesIO(b"\n".join(lines)), b"\n"))
        rows = list(read(io.BytesIO(b"\n".join(lines))))
    expected = lines[:-1] if lines and not lines[-1] else lines
    assert len(found) == len(expected)
    for one, line in zip(found, expected, strict=True):
        assert one == line or (one is None and len(line) > 12)
    for number, row in rows:
        too_long = len(expected[number - 1].removesuffix(b"\r")) > 12
        assert ("is longer than 12 bytes" in str(row)) in {too_long, too_long or len(expected[number - 1]) > 12}


class Endless(io.RawIOBase):
    """So many bytes of one line, made when they are read."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        count = min(size, self.left)
        self.left -= count
        return b"a" * count


def test_a_line_of_a_gigabyte_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        ((number, line),) = read(Endless(1 << 30))  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert (number, str(line)) == (1, "is longer than 65,536 bytes")


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files a, b, n<line break>l and a list of each kind."""
    monkeypatch.chdir(tmp_path)
    files = {"a": b"1", "b": b"22", "n\nl": b"333"}
    for name, data in files.items():
        Path(name).write_bytes(data)
    for algorithm, tool in TOOLS.items():
        for form in FORMS:
            lines = [format_line(name, digest(data, algorithm), algorithm, **form) for name, data in files.items()]
            Path(".".join([tool, *form])).write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize("algorithm", TOOLS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_files_as_listed(
    algorithm: str, form: dict[str, bool], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = ".".join([TOOLS[algorithm], *form])
    options = (["--zero"] if "zero" in form else []) + ([] if "tag" in form else ["--algorithm", algorithm])
    assert main(["hash", "--check", sums, *options]) == 0
    assert capsys.readouterr() == ("a: OK\nb: OK\n\\n\\nl: OK\n", "")
    assert main(["hash", "-c", sums, *options, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    # What hash writes is what was checked.
    written = ["hash", "a", "b", "n\nl", "--algorithm", algorithm, *(f"--{flag}" for flag in form)]
    assert main(written) == 0
    assert capsys.readouterr().out == Path(sums).read_text()


def test_what_differs_and_what_cannot_be_read(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a").write_bytes(b"changed")
    assert main(["hash", "--check", "b3sum"]) == 1
    found = capsys.readouterr()
    assert found.out == "a: FAILED\nb: OK\n\\n\\nl: OK\n"
    assert found.err == "aisec-fast: WARNING: 1 computed checksum did NOT match\n"
    Path("b").unlink()
    Path("n\nl").unlink()
    Path("n\nl").mkdir()
    assert main(["hash", "--check", "b3sum"]) == 2
    found = capsys.readouterr()
    assert found.out == "a: FAILED\nb: FAILED open or read\n\\n\\nl: FAILED open or read\n"
    assert found.err.splitlines() == [
        "aisec-fast: b: No such file or directory",
        "aisec-fast: n\\nl: is a directory, expected a file",
        "aisec-fast: WARNING: 2 listed files could not be read",
        "aisec-fast: WARNING: 1 computed checksum did NOT match",
        (
            "aisec-fast: no digest matched as BLAKE3, and the lines do not say what they are: "
            "if they are SHA256, use --algorithm sha256"
        ),
    ]
    assert main(["hash", "--check", "b3sum", "--status"]) == 2
    found = capsys.readouterr()
    assert (found.out, len(found.err.splitlines())) == ("", 2)
    assert main(["hash", "--check", "b3sum", "--ignore-missing", "--quiet"]) == 2
    assert capsys.readouterr().out == "a: FAILED\n\\n\\nl: FAILED open or read\n"
    Path("n\nl").rmdir()
    assert main(["hash", "--check", "b3sum", "--ignore-missing"]) == 1
    assert capsys.readouterr().out == "a: FAILED\n"
    Path("a").write_bytes(b"1")
    assert main(["hash", "--check", "b3sum", "--ignore-missing"]) == 0
    assert capsys.readouterr() == ("a: OK\n", "")
    Path("a").unlink()
    assert main(["hash", "--check", "b3sum", "b3sum.tag", "--ignore-missing"]) == 2
    assert capsys.readouterr().err == (
        "aisec-fast: b3sum: no file was verified\naisec-fast: b3sum.tag: no file was verified\n"
    )


def test_the_wrong_algorithm_is_hinted_at(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hash", "--check", "sha256sum"]) == 1
    assert "if they are SHA256, use --algorithm sha256" in capsys.readouterr().err
    assert main(["hash", "--check", "b3sum", "--algorithm", "sha256"]) == 1
    assert "if they are BLAKE3, use --algorithm blake3" in capsys.readouterr().err
    Path("mixed").write_bytes(Path("b3sum").read_bytes() + Path("sha256sum").read_bytes())
    assert main(["hash", "--check", "mixed"]) == 1
    assert "use --algorithm" not in capsys.readouterr().err
    assert main(["hash", "--check", "b3sum.tag", "sha256sum.tag", "--algorithm", "sha256"]) == 0


def test_lines_that_are_not_well_formed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = Path("b3sum").read_text().splitlines()[0]
    Path("mixed").write_text(f"# comment\nno\x1b line\n{good}\nMD5 (a) = 00\n")
    assert main(["hash", "--check", "mixed"]) == 0
    assert capsys.readouterr() == ("a: OK\n", "aisec-fast: WARNING: 2 lines are improperly formatted\n")
    assert main(["hash", "--check", "mixed", "--strict", "--warn", "--quiet"]) == 2
    assert capsys.readouterr() == (
        "",
        (
            "aisec-fast: mixed: line 2 is no line of a checksum file\n"
            "aisec-fast: mixed: line 4 is of MD5, expected BLAKE3 or SHA256\n"
            "aisec-fast: WARNING: 2 lines are improperly formatted\n"
        ),
    )
    Path("none").write_text(f"{'0' * 32}  md5\n")
    assert main(["hash", "--check", "none", "mixed"]) == 2
    found = capsys.readouterr()
    assert found.out == "a: OK\n"
    assert found.err.startswith(
        "aisec-fast: none: no well-formed line of a checksum file found (line 1 has a digest of 32 hexadecimal digits"
    )


def test_the_answer_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a").write_bytes(b"changed")
    Path("b").unlink()
    assert main(["hash", "--check", "b3sum", "nothing", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["counts"] == {"ok": 1, "differs": 1, "unreadable": 1, "missing": 0, "malformed": 0}
    assert found["errors"] == [{"name": "nothing", "error": "No such file or directory"}]
    assert [row["status"] for row in found["files"]] == ["differs", "unreadable", "ok"]
    assert found["files"][0] == {
        "checksum_file": "b3sum",
        "line": 1,
        "name": "a",
        "algorithm": "blake3",
        "expected": digest(b"1", "blake3").hex(),
        "digest": digest(b"changed", "blake3").hex(),
        "status": "differs",
    }
    assert main(["hash", "--check", "b3sum", "--ignore-missing", "--json", "out.json"]) == 1
    assert capsys.readouterr().out == "a: FAILED\n\\n\\nl: OK\n"
    assert json.loads(Path("out.json").read_text())["files"][1]["status"] == "missing"


def test_a_file_named_many_times_is_hashed_once_and_memory_is_bounded(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    real = _files.hash_found

    def hash_found(files: list[_files.Found], *arguments: Any, **more: Any) -> Any:
        seen.append([found.name for found in files])
        return real(files, *arguments, **more)

    monkeypatch.setattr(_files, "hash_found", hash_found)
    line = format_line("a", digest(b"1", "blake3"), "blake3")
    Path("many").write_text(5 * line + format_line("b", DIGEST, "blake3"))
    assert main(["hash", "--check", "many"]) == 1
    assert capsys.readouterr().out == 5 * "a: OK\n" + "b: FAILED\n"
    assert seen == [["a", "b"]]
    monkeypatch.setattr(_check, "_BATCH", 3)
    assert main(["hash", "--check", "many"]) == 1
    assert seen[1:] == [["a"], ["a", "b"]]


def test_an_interrupt_leaves_what_was_checked(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = _files.hash_found, []

    def hash_found(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(_files, "hash_found", hash_found)
    monkeypatch.setattr(_check, "_BATCH", 2)
    assert main(["hash", "--check", "b3sum", "--json", "out.json"]) == 130
    found = capsys.readouterr()
    assert found.out == "a: OK\nb: OK\n"
    assert found.err == "aisec-fast: interrupted; nothing but what was printed is checked\n"
    assert not Path("out.json").exists()


def test_no_name_in_a_checksum_file_steers_a_terminal(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("evil\x1b[2J").write_bytes(b"1")
    name = "gone\x1b]0;title\a"
    Path("evil").write_text("".join(format_line(n, digest(b"1", "blake3"), "blake3") for n in ("evil\x1b[2J", name)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["hash", "--check", "evil", "evil\x1bno"]) == 2
    found = capsys.readouterr()
    assert found.out == "\\evil\\x1b[2J: OK\n\\gone\\x1b]0;title\\x07: FAILED open or read\n"
    assert "\x1b" not in found.err
    assert "\a" not in found.err


def stdin(data: bytes) -> SimpleNamespace:
    return SimpleNamespace(buffer=io.BytesIO(data))


def test_standard_input(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", stdin(Path("b3sum").read_bytes()))
    assert main(["hash", "--check", "-", "--quiet"]) == 0
    listed = format_line("-", digest(b"typed", "blake3"), "blake3")
    Path("dash").write_text(listed * 2)
    monkeypatch.setattr(sys, "stdin", stdin(b"typed"))
    assert main(["hash", "--check", "dash"]) == 0
    assert capsys.readouterr().out == "-: OK\n-: OK\n"
    monkeypatch.setattr(sys, "stdin", stdin(listed.encode()))
    assert main(["hash", "--check", "-"]) == 2
    assert "line 1 names standard input, which is a checksum file itself" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["hash", "--check", "-", "dash"]) == 2
    assert "-: standard input is closed" in capsys.readouterr().err
    assert main(["hash", "-"]) == 2
    assert capsys.readouterr().err == "aisec-fast: -: standard input is closed\n"
    monkeypatch.setattr(sys, "stdout", None)
    for arguments in (["hash", "a"], ["hash", "--check", "b3sum"]):
        assert main(arguments) == 2
        assert capsys.readouterr().err == "aisec-fast: standard output is closed\n"
    assert main(["hash", "--check", "b3sum", "--status"]) == 0


def test_pipes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    data = format_line("fifo", DIGEST, "blake3").encode()
    os.mkfifo("fifo")  # nobody writes to it: to open it would wait for ever
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(data))
    writer.start()
    assert main(["hash", "--check", "pipe"]) == 2
    writer.join()
    assert capsys.readouterr().out == "fifo: FAILED open or read\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check", "."], ".: Is a directory"),
        (["--check", "nothing"], "nothing: No such file or directory"),
        (["--check", ""], "No such file or directory"),
        (["--check", "/dev/null"], "/dev/null: no well-formed line"),
        (["--check"], "PATH"),
        (["--check", "b3sum", "--tag"], "--tag does something only without --check"),
        (["--check", "b3sum", "--ignore", "a"], "--ignore does something only without --check"),
        (["a", "--quiet"], "--quiet does something only with --check"),
        (["a", "--ignore-missing"], "--ignore-missing does something only with --check"),
        (["--check", "b3sum", "--json", "no/where"], "the folder of 'no/where' does not exist"),
    ],
)
def test_what_cannot_be_done(
    arguments: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hash", *arguments]) == 2
    found = capsys.readouterr()
    assert message in found.err
    assert "Traceback" not in found.err


def test_a_checksum_file_that_breaks_off(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[Callable[[], bytes]] = [lambda: Path("b3sum").read_bytes()]

    def broken(size: int) -> bytes:
        if blocks:
            return blocks.pop()()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read=broken)))
    assert main(["hash", "--check", "-"]) == 2
    found = capsys.readouterr()
    assert found.err == "aisec-fast: -: Input/output error\n"
    assert found.out == "a: OK\nb: OK\n\\n\\nl: OK\n"
