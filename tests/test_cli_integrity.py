"""The commands hash, manifest and verify: what they print and write, and how they end."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blake3 as peer
import pytest

from aisec_fast.cli import _hashing, _output, main
from aisec_fast.cli._checksums import format_line
from aisec_fast.hashing import _files
from aisec_fast.integrity import Manifest

FILES = {"a-b": b"1", "a/b": b"22", ".hidden": b"333", "back\\slash": b"", "new\nline": b"5", "esc\x1b[31m": b"6"}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder "model" in the current folder, with a file whose name is not UTF-8."""
    monkeypatch.chdir(tmp_path)
    for name, data in FILES.items():
        (Path("model") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("model") / name).write_bytes(data)
    return Path("model")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- hash -------------------------------------------------------------------------------------------------------------


def test_hash_prints_what_sha256sum_reads(model: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    (model / os.fsdecode(b"\xff")).write_bytes(b"odd")
    assert main(["hash", "model", "--algorithm", "sha256"]) == 0
    printed = capfdbinary.readouterr().out
    assert printed.splitlines()[:3] == [
        f"{sha256(b'333')}  model/.hidden".encode(),
        f"{sha256(b'22')}  model/a/b".encode(),
        f"{sha256(b'1')}  model/a-b".encode(),
    ]
    assert f"\\{sha256(b'5')}  model/new\\nline\n".encode() in printed
    assert f"{sha256(b'odd')}  model/".encode() + b"\xff\n" in printed
    if tool := shutil.which("sha256sum"):
        run = subprocess.run([tool, "--check", "--quiet", "--strict", "-"], input=printed, check=False)
        assert run.returncode == 0
    assert len(printed.splitlines()) == len(FILES) + 1


def test_hash_takes_files_and_folders_in_order(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hash", "model/a-b", "model/a/", "./model/a-b", "--max-threads", "1"]) == 0
    one, two = (peer.blake3(data).hexdigest() for data in (b"1", b"22"))
    assert capsys.readouterr().out == f"{one}  model/a-b\n{two}  model/a/b\n{one}  ./model/a-b\n"


def test_hash_ignores_and_follows_on_demand(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "link").symlink_to("a-b")
    ignore = [option for name in FILES if name != "a-b" for option in ("--ignore", name)]
    assert main(["hash", "model", *ignore]) == 2
    printed = capsys.readouterr()
    words = "is a symbolic link, expected a regular file (--allow-symlinks takes its target instead)"
    assert printed.err == f"aisec-fast: model/link: {words}\n"
    assert printed.out.endswith("model/a-b\n")
    assert main(["hash", "model", *ignore, "--allow-symlinks"]) == 0
    assert [text[66:] for text in capsys.readouterr().out.splitlines()] == ["model/a-b", "model/link"]
    assert main(["manifest", "model"]) == 2
    assert capsys.readouterr().err == f"aisec-fast: model/link: {words}\n"
    for command in (["hash", "nothing"], ["manifest", "nothing"], ["verify", "model", "--manifest", "nothing"]):
        assert main(command) == 2
        assert capsys.readouterr().err == "aisec-fast: nothing: No such file or directory\n"
    assert main(["hash", "model", "--ignore", "../up"]) == 2
    assert "expected a path inside the folder" in capsys.readouterr().err


def test_patterns_on_the_command_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "x.tmp").write_bytes(b"1")
    assert main(["hash", "model", "--ignore-pattern", "[!a]*", "--ignore-pattern", "a/"]) == 0
    assert [text[66:] for text in capsys.readouterr().out.splitlines()] == ["model/a-b"]
    assert main(["hash", "model", "--ignore-pattern", "/a"]) == 2
    assert "expected parts between '/'" in capsys.readouterr().err
    assert main(["manifest", "model", "-o", "m.json", "--ignore-pattern", "*.tmp"]) == 0
    assert Manifest.load("m.json").ignore == ("x.tmp",)
    assert main(["manifest", "model", "-o", "m.json", "--ignore-pattern", "/a"]) == 2
    assert "expected parts between '/'" in capsys.readouterr().err


def test_one_bad_file_does_not_keep_the_others_from_being_hashed(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open, real_scan = os.open, os.scandir

    def refuse(path: Any, *arguments: Any, **more: Any) -> Any:
        if path == "a-b":
            raise PermissionError(13, "Permission denied", path)
        return real_open(path, *arguments, **more)

    def refuse_folder(descriptor: int) -> Any:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("model/a"):  # noqa: PTH115
            raise PermissionError(13, "Permission denied")
        return real_scan(descriptor)

    monkeypatch.setenv("AISEC_FAST_BACKEND", "numba")  # files are then opened in Python
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "scandir", refuse_folder)
    os.mkfifo("model/fifo\x1b")
    assert main(["hash", "nothing", "model", "/proc/self/mem", "--json", "out.json"]) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "aisec-fast: nothing: No such file or directory",
        "aisec-fast: model/a-b: Permission denied",
        "aisec-fast: model/fifo\\x1b: is a FIFO, expected a regular file",
        "aisec-fast: model/a: Permission denied",
        "aisec-fast: /proc/self/mem: Input/output error",
    ]
    assert len(printed.out.splitlines()) == 4
    result = json.loads(Path("out.json").read_text())
    assert [file["name"] for file in result["files"]] == [
        f"model/{name}" for name in sorted(set(FILES) - {"a-b", "a/b"})
    ]
    assert result["errors"][1] == {"name": "model/a-b", "error": "Permission denied"}


def test_hash_of_standard_input(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(3_000_000)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert main(["hash", "-", "model/a-b", "--algorithm", "sha256"]) == 0
    assert capsys.readouterr().out == f"{sha256(data)}  -\n{sha256(b'1')}  model/a-b\n"

    def broken(size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read=broken)))
    assert main(["hash", "-", "model/a-b"]) == 2
    assert capsys.readouterr().err == "aisec-fast: -: Input/output error\n"


def test_hash_as_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hash", "model/new\nline", "--algorithm", "sha256", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "algorithm": "sha256",
        "files": [{"name": "model/new\nline", "digest": sha256(b"5")}],
        "errors": [],
    }


def line(name: str, *, terminal: bool) -> str:
    return format_line(name, b"\0", "sha256", terminal=terminal)


def test_no_name_steers_a_terminal() -> None:
    assert line("a b", terminal=True) == line("a b", terminal=False) == "00  a b\n"
    assert line("a\x1b[2J\x7f\u202eb", terminal=True) == "\\00  a\\x1b[2J\\x7f\\u202eb\n"
    assert line(os.fsdecode(b"\xff\xc2\x9b"), terminal=True) == "\\00  \\xff\\u009b\n"
    assert line("a\rb\\c\nd", terminal=False) == "\\00  a\\rb\\\\c\\nd\n"
    assert line("a\x1bb", terminal=False) == "00  a\x1bb\n"  # a pipe gets the name as it is, as from sha256sum
    assert _output.printable_name("a\\nb\nü\U0001f600\U000e0001") == "a\\\\nb\\nü\U0001f600\\U000e0001"
    assert _output.printable("line\nline\x1b") == "line\nline\\x1b"


def test_no_message_steers_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("bad \x1b[2J name\nsecond line")

    monkeypatch.setattr("aisec_fast.info", fail)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == "aisec-fast: bad \\x1b[2J name\nsecond line\n"


def test_a_stream_that_cannot_write_a_letter_gets_it_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    _output.say("ü\udcff")
    assert raw.getvalue() == b"\\xfc\\udcff\n"


# --- manifest and verify ----------------------------------------------------------------------------------------------


def test_from_manifest_to_verdict(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", "model"]) == 0
    printed = capsys.readouterr().out
    manifest = Manifest.load("manifest.json")
    assert manifest == Manifest.from_directory("model")
    assert manifest.root_digest.hex() in printed
    assert "manifest.json (unsigned)" in printed
    assert main(["verify", "model", "--manifest", "manifest.json"]) == 0
    assert capsys.readouterr().out == "OK       model is what its manifest says (6 files, sha256)\n"
    (model / "a-b").write_bytes(b"2")
    (model / "a" / "b").unlink()
    (model / "x\x1b[2J[bold]\n").touch()
    assert main(["verify", "model", "--manifest", "manifest.json"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "DIFFERS  model is not what its manifest says (6 files, sha256)",
        "  changed  a-b",
        "  removed  a/b",
        "  added    x\\x1b[2J[bold]\\n",
    ]
    assert main(["verify", "model", "--manifest", "manifest.json", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "added": ["x\x1b[2J[bold]\n"],
        "removed": ["a/b"],
        "changed": ["a-b"],
        "files": 6,
        "algorithm": "sha256",
        "root_digest": manifest.root_digest.hex(),
        "ignored": [],
        "allow_symlinks": False,
        "manifest": "manifest.json",
    }


def test_a_manifest_inside_its_folder_ignores_itself(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--ignore", "a", "--algorithm", "blake3", "--json"]
    assert main(["manifest", "./model", "-o", "model/m\x1b.json", *options]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "manifest": "model/m\x1b.json",
        "algorithm": "blake3",
        "files": 5,
        "root_digest": Manifest.load("model/m\x1b.json").root_digest.hex(),
        "ignored": ["a", "m\x1b.json"],
    }
    assert main(["manifest", "./model", "-o", "model/m\x1b.json", *options[:-1]]) == 0
    assert "ignored      a, m\\x1b.json" in capsys.readouterr().out
    assert main(["verify", "model", "--manifest", "model/m\x1b.json"]) == 0
    # Renamed, it is in no list; verify knows it all the same.
    monkeypatch.chdir(model)
    Path("m\x1b.json").rename("renamed.json")
    assert main(["verify", ".", "--manifest", "renamed.json"]) == 0
    Path("model.sig").touch()
    assert main(["verify", ".", "--manifest", "renamed.json"]) == 1
    assert main(["verify", ".", "--manifest", "renamed.json", "--ignore", "model.sig"]) == 0


def test_a_manifest_of_nothing_is_written_with_a_warning(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert main(["manifest", "empty"]) == 0
    assert capsys.readouterr().err == "aisec-fast: empty holds no file: the manifest vouches for nothing\n"
    assert main(["manifest", "model"]) == 0
    assert capsys.readouterr().err == ""


def test_a_manifest_on_standard_output(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifest", "model", "-o", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == Manifest.from_directory("model").statement()
    assert main(["manifest", "model", "-o", "-", "--json", "result.json"]) == 0
    assert json.loads(capsys.readouterr().out)["_type"]
    assert json.loads(Path("result.json").read_text())["files"] == 6
    assert main(["manifest", "model", "-o", "-", "--json"]) == 2
    assert "cannot both go to standard output" in capsys.readouterr().err


COULD_NOT: list[tuple[list[str], str]] = [
    (["manifest", "nothing"], "aisec-fast: nothing: No such file or directory"),
    (["manifest", "model/a-b"], "aisec-fast: model/a-b: is no directory"),
    (["manifest", "model", "-o", "model"], "'model' is a folder"),
    (["manifest", "model", "-o", "no/where"], "the folder of 'no/where' does not exist"),
    (["manifest", "model", "--ignore", "/"], "expected a path inside the folder"),
    (["verify", "model", "--manifest", "nothing"], "aisec-fast: nothing: No such file or directory"),
    (["verify", "model", "--manifest", "model/a-b"], "'model/a-b': the statement is 1, expected an object"),
    (["verify", "model", "--manifest", "model/esc\x1b[31m"], r"'model/esc\x1b[31m': the statement is 6"),
    (["verify", "nothing", "--manifest", "good.json"], "aisec-fast: nothing: No such file or directory"),
    (["verify", "model", "--manifest", "good.json", "--ignore", "a"], "ignore covers 'a/b', which the manifest lists"),
    (["verify", "model"], "--manifest"),
    (["hash"], "PATH"),
    (["hash", ""], "path is ''"),
    (["hash", "model", "--algorithm", "md5"], "invalid choice: 'md5'"),
    (["hash", "model", "--max-threads", "0"], "'0' is no number of threads"),
    (["hash", "model", "--json", "no/where"], "the folder of 'no/where' does not exist"),
    (["manifest", "model", "--json", "no/where"], "the folder of 'no/where' does not exist"),
    (["verify", "model", "--manifest", "good.json", "--json", "model"], "'model' is a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), COULD_NOT, ids=[" ".join(row[0]) for row in COULD_NOT])
def test_what_cannot_be_done_ends_with_2(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Manifest.from_directory(model).save("good.json")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(map(str, Path().iterdir())) == ["good.json", "model"]


def test_a_name_that_is_not_utf8_ends_with_2(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / os.fsdecode(b"\xff")).touch()
    assert main(["manifest", "model"]) == 2
    assert r"'\udcff', expected valid Unicode" in capsys.readouterr().err
    assert list(Path().iterdir()) == [model]


def test_an_interrupt_leaves_no_manifest(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_files, "hash_found", interrupt)
    assert main(["manifest", "model"]) == 130
    assert list(Path().iterdir()) == [model]
    assert "no result was written" in capsys.readouterr().err


# --- the bar ----------------------------------------------------------------------------------------------------------


def test_a_bar_on_a_terminal_only(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with _hashing.progress_bar() as progress:
        assert progress is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["hash", "model"]) == 0
    printed = capsys.readouterr()
    assert "hashing" in printed.err
    assert len(printed.out.splitlines()) == len(FILES)
    for module in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "rich", None)
    with _hashing.progress_bar() as progress:
        assert progress is None


def test_a_verdict_says_what_its_manifest_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").touch()
    Manifest.from_directory("model", ignore=["weights"], allow_symlinks=True).save("manifest.json")
    assert main(["verify", "model", "--manifest", "manifest.json"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "OK       model is what its manifest says (0 files, sha256)",
        "  ignored  weights",
        "  links    to files inside the folder are followed",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "loop", "--manifest", "manifest.json"],
        ["manifest", "loop"],
        ["verify", "model", "--manifest", ""],
        ["verify", "", "--manifest", "manifest.json"],
        ["manifest", ""],
        ["hash", ""],
    ],
)
def test_a_loop_of_links_and_an_empty_name_are_no_verdict(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "model").mkdir()
    Manifest.from_directory("model").save("manifest.json")
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message
    assert "Traceback" not in message
