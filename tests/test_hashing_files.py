"""Files and folders: the same digest whatever the threads and blocks, and a clear word on everything that is no file."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3 as peer
import pytest

import aisec_fast
from aisec_fast import FileChangedError, UnsupportedFileError, hashing
from aisec_fast._backends import _forced
from aisec_fast.hashing import _files, hash_directory, hash_file

EXPECTED: dict[str, Callable[[bytes], bytes]] = {
    "blake3": lambda data: peer.blake3(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}
AWKWARD = [
    "a-b",
    "a/b",
    "a/b-c/d",
    ".hidden",
    ".git/config",
    "with:colon",
    "new\nline",
    "tab\t",
    "back\\slash",
    " ",
    "ü",
    "*",
]


def content(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def fill(folder: Path, names: list[str]) -> dict[str, bytes]:
    """A file for each name, each with other bytes."""
    files = {name: name.encode() * (index + 1) for index, name in enumerate(names)}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


class Recorder:
    """A hasher that tells what it is asked to do, and may do something on its own after each block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: Callable[[], object] = lambda: None) -> None:
        self.blocks: list[int] = []
        self.threads: list[int] = []
        self.backends: list[str | None] = []
        self.after = after
        monkeypatch.setattr(hashing, "blake3", lambda *, max_threads: self.new(max_threads))
        monkeypatch.setattr(hashing, "sha256", lambda: self.new(1))

    def new(self, threads: int) -> Recorder:
        self.threads.append(threads)
        self.backends.append(_forced.get())
        return self

    def update(self, data: Any) -> None:
        self.blocks.append(len(data))
        self.after()

    def digest(self) -> bytes:
        return bytes(32)


def all_ended() -> bool:
    """Whether no thread of ours goes on. One that an interrupt met while it was being started may take a moment."""
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("aisec_fast_files")]
    for thread in ours:
        thread.join(10)
    return not any(thread.is_alive() for thread in ours)


# --- Digests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", EXPECTED)
@pytest.mark.parametrize("max_threads", [None, 1, 5])
def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path, algorithm: str, max_threads: int | None) -> None:
    for size in (0, 1, 1025, (1 << 16) - 1, 1 << 16, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (6 << 20) + 7):
        (tmp_path / "file").write_bytes(content(size))
        digest = hash_file(tmp_path / "file", algorithm, max_threads=max_threads)
        assert digest == EXPECTED[algorithm](content(size)), size


def test_blake3_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert hash_file(os.fsencode(tmp_path / "file")) == hash_file(str(tmp_path / "file")) == EXPECTED["blake3"](b"abc")
    assert hash_directory(tmp_path) == {"file": EXPECTED["blake3"](b"abc")}


@pytest.mark.parametrize("algorithm", EXPECTED)
@pytest.mark.parametrize("max_threads", [1, 2, 7])
def test_a_folder_has_the_digest_of_every_file(tmp_path: Path, algorithm: str, max_threads: int) -> None:
    files = fill(tmp_path, AWKWARD)
    for name, size in {"large": 5 << 20, "larger": (5 << 20) + 1, "middle": 1 << 17}.items():
        files[name] = content(size)
        (tmp_path / name).write_bytes(files[name])
    (tmp_path / "empty folder").mkdir()
    digests = hash_directory(tmp_path, algorithm, max_threads=max_threads)
    assert digests == {name: EXPECTED[algorithm](data) for name, data in files.items()}
    assert list(digests) == sorted(files, key=lambda name: name.split("/"))


def test_names_of_any_bytes(tmp_path: Path) -> None:
    raw = bytes(range(1, 47)) + bytes(range(48, 256))
    (tmp_path / os.fsdecode(raw)).write_bytes(b"odd")
    assert hash_directory(os.fsencode(tmp_path), "sha256") == {os.fsdecode(raw): EXPECTED["sha256"](b"odd")}


def test_what_is_ignored_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, [*AWKWARD, "ab/c", "x/a/b"])
    left = hash_directory(tmp_path, ignore=["a/", "./.git", "nothing", "*", "new\nline"])
    assert set(left) == {"a-b", ".hidden", "with:colon", "tab\t", "back\\slash", " ", "ü", "ab/c", "x/a/b"}


def test_an_empty_folder(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    assert hash_directory(tmp_path, progress=lambda *call: calls.append(call)) == {}
    assert calls == [(0, 0)]


# --- Threads, blocks, progress ----------------------------------------------------------------------------------------


def test_a_large_file_gets_its_share_of_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").write_bytes(content(9 << 20))
    record = Recorder(monkeypatch)
    hash_file(tmp_path / "one", max_threads=3)
    assert record.threads == [3]
    assert record.blocks == [3 << 20] * 3
    (tmp_path / "two").write_bytes(content(9 << 20))
    (tmp_path / "small").write_bytes(b"small")
    record = Recorder(monkeypatch)
    hash_directory(tmp_path, max_threads=4)
    assert sorted(record.threads) == [1, 2, 2]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large").write_bytes(content(40 << 20))
    record = Recorder(monkeypatch)
    hash_file(tmp_path / "large", max_threads=1000)
    assert max(record.blocks) == 32 << 20
    assert sum(record.blocks) == 40 << 20


@pytest.mark.parametrize("max_threads", [1, 3])
def test_a_forced_backend_is_forced_in_every_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_threads: int
) -> None:
    for index in range(6):
        (tmp_path / str(index)).write_bytes(content(1 << 17))
    record = Recorder(monkeypatch)
    with aisec_fast.use_backend("numba"):
        hash_directory(tmp_path, max_threads=max_threads)
    assert record.backends == ["numba"] * 6


@pytest.mark.parametrize("max_threads", [1, 3])
@pytest.mark.parametrize("tick", [0.0, 1e9])
def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_threads: int, tick: float) -> None:
    for index in range(6):
        (tmp_path / str(index)).write_bytes(content(3 << 20))
    monkeypatch.setattr(_files, "_TICK", tick)
    calls: list[tuple[int, int]] = []
    threads = set()

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        threads.add(threading.current_thread())

    hash_directory(tmp_path, "sha256", max_threads=max_threads, progress=progress)
    assert threads == {threading.main_thread()}
    assert calls == sorted(calls)
    assert calls[-1] == (18 << 20, 18 << 20)
    assert {total for _, total in calls} == {18 << 20}
    assert len(calls) == 1 if tick else len(calls) > 1


@pytest.mark.parametrize("max_threads", [1, 3])
def test_a_failing_progress_stops_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_threads: int) -> None:
    for index in range(40):
        (tmp_path / str(index)).write_bytes(content(1 << 17))
    record = Recorder(monkeypatch)
    monkeypatch.setattr(_files, "_TICK", 0.0)
    gate = threading.Event()
    record.after = lambda: max_threads == 1 or gate.wait(10)  # no worker goes on before progress has failed

    def progress(done: int, total: int) -> None:
        gate.set()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hash_directory(tmp_path, max_threads=max_threads, progress=progress)
    assert len(record.blocks) < 40
    assert all_ended()


@pytest.mark.parametrize("max_threads", [1, 3])
def test_an_interrupt_stops_at_the_next_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_threads: int
) -> None:
    """A real SIGINT; blocks then wait for the stop, so that the test does not depend on who is faster."""
    for index in range(40):
        (tmp_path / str(index)).write_bytes(content(3 << 20))
    runs: list[Any] = []
    results = _files._Run.results
    monkeypatch.setattr(_files._Run, "results", lambda run: (runs.append(run), results(run))[1])
    record, first = Recorder(monkeypatch), threading.Lock()
    started, seen = threading.Barrier(max_threads), set()

    def interrupt() -> None:
        if threading.get_ident() not in seen:  # not before every worker is at work: none is being started then
            seen.add(threading.get_ident())
            started.wait(10)
        if len(record.blocks) >= 5 and first.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        if len(record.blocks) >= 5 and max_threads > 1:
            assert runs[0].stop.wait(10)

    record.after = interrupt
    with pytest.raises(KeyboardInterrupt):
        hash_directory(tmp_path, "sha256", max_threads=max_threads)
    assert len(record.blocks) <= 5 + max_threads
    assert all_ended()


# --- Links and special files ------------------------------------------------------------------------------------------


def test_a_link_that_a_caller_names_is_followed(tmp_path: Path) -> None:
    fill(tmp_path, ["folder/file"])
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "file link").symlink_to("folder/file")
    assert hash_directory(tmp_path / "link") == hash_directory(tmp_path / "folder")
    assert hash_file(tmp_path / "file link") == hash_file(tmp_path / "folder/file")


LINKS = {"to a file": "file", "to a folder": "folder", "to nothing": "nothing", "to itself": "link", "loop": "."}


@pytest.mark.parametrize("target", LINKS.values(), ids=LINKS)
def test_a_link_in_a_folder_is_an_error_that_names_it(tmp_path: Path, target: str) -> None:
    fill(tmp_path, ["file", "folder/inner"])
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UnsupportedFileError, match=r"is a symbolic link, expected a regular file .*/link'"):
        hash_directory(tmp_path)
    assert set(hash_directory(tmp_path, ignore=["link"])) == {"file", "folder/inner"}
    if target == "file":
        digests = hash_directory(tmp_path, allow_symlinks=True)
        assert digests["link"] == digests["file"]
    else:
        with pytest.raises(UnsupportedFileError, match=r"is a symbolic link, .* Its target is none either: .*/link'"):
            hash_directory(tmp_path, allow_symlinks=True)


def test_a_link_that_takes_a_files_place_after_the_scan_is_not_followed(tmp_path: Path) -> None:
    fill(tmp_path, ["file"])
    (tmp_path / "link").symlink_to("file")
    found = _files.Found("link", str(tmp_path / "link"), 4, stat.S_IFREG, follow=False)
    with pytest.raises(OSError, match="link") as caught:
        _files.hash_found([found], "sha256")
    assert caught.value.errno == errno.ELOOP


@pytest.fixture
def special(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "special"
    if request.param == "a FIFO":
        os.mkfifo(path)
    elif request.param == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif request.param == "a character device":
        try:
            os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    return path


@pytest.mark.parametrize("special", ["a FIFO", "a socket", "a character device"], indirect=True)
def test_special_files_are_named_and_not_waited_for(special: Path, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["special"]
    for allow_symlinks in (False, True):
        with pytest.raises(UnsupportedFileError, match=rf"is {kind}, expected a regular file: .*special"):
            hash_directory(special.parent, allow_symlinks=allow_symlinks)
    with pytest.raises(UnsupportedFileError, match=rf"is {kind}, expected a regular file: .*special"):
        hash_file(special)
    link = special.parent / "link"
    link.symlink_to(special)
    with pytest.raises(UnsupportedFileError, match=rf"is {kind}, expected a regular file"):
        hash_directory(special.parent, ignore=["special"], allow_symlinks=True)


def test_a_fifo_that_takes_a_files_place_after_the_scan_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    found = _files.Found("fifo", str(tmp_path / "fifo"), 4, stat.S_IFREG, follow=False)
    with pytest.raises(UnsupportedFileError, match="is a FIFO"):
        _files.hash_found([found], "sha256")


# --- What goes wrong --------------------------------------------------------------------------------------------------


def test_a_missing_file_and_the_wrong_kind(tmp_path: Path) -> None:
    fill(tmp_path, ["file"])
    with pytest.raises(FileNotFoundError, match="nothing"):
        hash_file(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="nothing"):
        hash_directory(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match="is a directory, expected a file"):
        hash_file(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"is no directory: .*file"):
        hash_directory(tmp_path / "file")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop") as caught:
        hash_file(tmp_path / "loop")
    assert caught.value.errno == errno.ELOOP


def test_a_read_that_fails_at_once_names_the_file() -> None:
    with pytest.raises(OSError, match=r"Input/output error: '/proc/self/mem'"):
        hash_file("/proc/self/mem")


@pytest.mark.parametrize("max_threads", [1, 2, 3])
def test_a_read_that_fails_midway_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_threads: int
) -> None:
    (tmp_path / "file").write_bytes(content(9 << 20))
    real, calls = os.readv, 0

    def readv(descriptor: int, buffers: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, buffers)

    monkeypatch.setattr(os, "readv", readv)
    with pytest.raises(OSError, match=r"Input/output error: '.*/file'"):
        hash_file(tmp_path / "file", max_threads=max_threads)
    assert calls == 3


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is made here."""
    fill(tmp_path, ["a", "b", "c"])
    real = os.open

    def refuse(path: Any, *arguments: Any) -> int:
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match="/b"):
        hash_directory(tmp_path)
    answers = _files.hash_found(_files.scan(tmp_path), "sha256", keep_going=True)
    assert [type(answer) for answer in answers] == [bytes, PermissionError, bytes]


@pytest.mark.parametrize("max_threads", [1, 2])
@pytest.mark.parametrize("what", ["grows", "shrinks", "is touched"])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, max_threads: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content(3 << 20))

    def change() -> None:
        if what == "grows":
            with path.open("ab") as file:
                file.write(b"more")
        elif what == "shrinks":
            os.truncate(path, 2 << 20)
        os.utime(path, ns=(1, 1))

    Recorder(monkeypatch, change)
    with pytest.raises(FileChangedError, match=r"changed while it was read: .*/file'"):
        hash_file(path, max_threads=max_threads)


def test_a_file_without_a_size_is_refused() -> None:
    with pytest.raises(FileChangedError, match=r"it had 0 bytes, then \d+"):
        hash_file("/proc/version")


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"algorithm": "md5"}, ValueError, 'algorithm is \'md5\', expected "blake3" or "sha256"'),
    ({"algorithm": None}, ValueError, "algorithm is None"),
    ({"max_threads": 0}, ValueError, "max_threads is 0, expected at least 1"),
    ({"max_threads": 1.5}, TypeError, "max_threads is a float"),
    ({"max_threads": True}, TypeError, "max_threads is a bool"),
    ({"progress": 1}, TypeError, "progress is a int, expected a function"),
    ({"path": 3}, TypeError, "path is a int, expected str, bytes or a path"),
    ({"path": None}, TypeError, "path is a NoneType"),
    ({"path": ""}, ValueError, "path is ''"),
    ({"path": "a\0b"}, ValueError, r"path is 'a\\x00b'"),
]
BAD_IGNORE: list[tuple[Any, type[Exception], str]] = [
    ("name", TypeError, r"ignore is 'name', expected several paths: \['name'\]"),
    ([b"name"], TypeError, "ignore holds a bytes"),
    (["/absolute"], ValueError, "ignore holds '/absolute', expected a path inside the folder"),
    (["../up"], ValueError, r"ignore holds '\.\./up'"),
    (["a/../../b"], ValueError, "expected a path inside"),
    (["."], ValueError, "expected a path inside"),
    ([""], ValueError, "expected a path inside"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    fill(tmp_path, ["file"])
    for function, path in ((hash_file, tmp_path / "file"), (hash_directory, tmp_path)):
        with pytest.raises(error, match=message):
            function(**{"path": path, **arguments})


@pytest.mark.parametrize(("ignore", "error", "message"), BAD_IGNORE)
def test_bad_ignore(tmp_path: Path, ignore: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hash_directory(tmp_path, ignore=ignore)
