"""Files and folders: the same digest whatever the threads and blocks, and a clear word on everything that is no file."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
import resource
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blake3 as peer
import pytest

import aisec_fast
from aisec_fast import FileChangedError, UnsupportedFileError, _core, hashing
from aisec_fast._backends import _forced
from aisec_fast._numba import files as python_files
from aisec_fast.hashing import _files, hash_directory, hash_file
from aisec_fast.hashing._folders import Patterns

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


READERS = ["native", "native, one folder after another", "numba"]
in_python = pytest.mark.parametrize("reader", ["numba"], indirect=True)  # what can be watched and disturbed from here
natively = pytest.mark.parametrize("reader", READERS[:2], indirect=True)


@pytest.fixture(autouse=True, params=READERS)
def reader(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every way to read files: natively with and without openat2, and in Python."""
    _core.use_openat2(request.param != READERS[1])
    with aisec_fast.use_backend(request.param.split(",")[0]):
        yield request.param
    _core.use_openat2(True)


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
    borders = [1 << 10, 1 << 16, 87360, 1 << 17, 1 << 18, 1 << 20, 3 << 20]
    for size in (0, 1, 55, 56, 63, 64, 65, *(b + d for b in borders for d in (-1, 0, 1)), (6 << 20) + 7):
        (tmp_path / "file").write_bytes(content(size))
        digest = hash_file(tmp_path / "file", algorithm, max_threads=max_threads)
        assert digest == EXPECTED[algorithm](content(size)), size


def test_blake3_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert hash_file(os.fsencode(tmp_path / "file")) == hash_file(str(tmp_path / "file")) == EXPECTED["blake3"](b"abc")
    assert hash_directory(tmp_path) == {"file": EXPECTED["blake3"](b"abc")}


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("max_threads", [1, 3])
@pytest.mark.parametrize("algorithm", EXPECTED)
@pytest.mark.parametrize("reader", ["native"], indirect=True)
def test_streams_of_many_lengths_side_by_side(tmp_path: Path, algorithm: str, max_threads: int, isa: str) -> None:
    best, chance = _core.instruction_set(), random.Random(7)
    sizes = [chance.choice([300, 9000, 70_000, 200_000, 1_500_000]) + chance.randrange(300) for _ in range(90)]
    for index, size in enumerate(sizes):
        (tmp_path / str(index)).write_bytes(content(size)[::-1])
    try:
        _core.use_instruction_set(isa)
        digests = hash_directory(tmp_path, algorithm, max_threads=max_threads)
    finally:
        _core.use_instruction_set(best)
    assert digests == {str(i): EXPECTED[algorithm](content(size)[::-1]) for i, size in enumerate(sizes)}


@pytest.mark.parametrize("algorithm", EXPECTED)
def test_a_sparse_file(tmp_path: Path, algorithm: str) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        for place in (5 << 20, 11 << 20):
            file.seek(place)
            file.write(b"data")
        file.truncate(20 << 20)
    data = (tmp_path / "sparse").read_bytes()
    assert hash_file(tmp_path / "sparse", algorithm) == EXPECTED[algorithm](data)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for index in range(10_000):
        if index % 1000 == 0:
            (folder / f"d{index // 1000}").mkdir()
        (folder / f"d{index // 1000}" / str(index)).write_bytes(b"%d" % index * (index % 50))
    return folder


def test_ten_thousand_small_files(many: Path) -> None:
    digests = hash_directory(many, "sha256", max_threads=2)
    expected = {f"d{i // 1000}/{i}": EXPECTED["sha256"](b"%d" % i * (i % 50)) for i in range(10_000)}
    assert digests == expected
    assert list(digests) == sorted(expected, key=lambda name: name.split("/"))


def test_the_order_is_part_by_part() -> None:
    parts = ["a", "a-b", "a b", "b", "\x01", "\udc80", "\ue000", "\U0001f600", "aa"]
    names = ["/".join(some) for count in (1, 2, 3) for some in itertools.product(parts, repeat=count)]
    assert sorted(names, key=_files.order) == sorted(names, key=lambda name: name.split("/"))


def test_folders_deeper_than_the_longest_path(tmp_path: Path) -> None:
    depth, name = 60, "x" * 100
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=folder)
        below = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    with open(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=folder), "wb") as file:  # noqa: PTH123
        file.write(b"deep")
    os.close(folder)
    assert hash_directory(tmp_path) == {f"{name}/" * depth + "file": EXPECTED["blake3"](b"deep")}


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


PATTERNS = {
    "*.tmp": {"a.tmp", "x/b.tmp", "x/y/.c.tmp"},  # a name at any depth, hidden ones too
    "?.tmp": {"a.tmp", "x/b.tmp"},
    "[!a].tmp": {"x/b.tmp"},
    "y": {"x/y/.c.tmp", "x/y/d", "y"},  # a folder with all that is in it, and a file
    "y/": {"x/y/.c.tmp", "x/y/d"},  # folders alone
    "x/*": {"x/b.tmp", "x/y/.c.tmp", "x/y/d"},
    "x/*.tmp": {"x/b.tmp"},  # "*" ends with its part
    "x/**/*.tmp": {"x/b.tmp", "x/y/.c.tmp"},
    "**/**/x/**/**/d": {"x/y/d"},
    "x/**": {"x/b.tmp", "x/y/.c.tmp", "x/y/d"},
    "**/d": {"x/y/d"},
    "*/d": set(),
    "X": set(),
    "x/y/d/": set(),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_a_pattern_matches_is_left_out(tmp_path: Path, pattern: str) -> None:
    names = {"a.tmp", "x/b.tmp", "x/y/.c.tmp", "x/y/d", "y"}
    fill(tmp_path, sorted(names))
    assert set(hash_directory(tmp_path, ignore_patterns=[pattern])) == names - PATTERNS[pattern]
    assert set(hash_directory(tmp_path, ignore=["a.tmp"], ignore_patterns=[pattern, "b.*"])) == (
        names - PATTERNS[pattern] - {"a.tmp", "x/b.tmp"}
    )


@pytest.mark.parametrize("end", ["a.bin", "a"])
def test_a_very_deep_folder_does_not_keep_patterns_busy(end: str) -> None:
    """Each ``**`` might end in any part, so trying all of it would take hours."""
    pattern = Patterns(["x/" + "**/y/" * 8 + "*.bin"])
    name = "x/" + "y/" * 500 + end
    before = time.process_time()
    assert pattern.match(name, stat.S_IFREG) == (end == "a.bin")
    assert time.process_time() - before < 10  # 500 * 18 steps


def test_a_link_that_a_pattern_matches_is_no_error(tmp_path: Path) -> None:
    fill(tmp_path, ["file"])
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UnsupportedFileError, match="link"):
        hash_directory(tmp_path, ignore_patterns=["f*"])
    assert set(hash_directory(tmp_path, ignore_patterns=["l*k"])) == {"file"}


def test_an_empty_folder(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    assert hash_directory(tmp_path, progress=lambda *call: calls.append(call)) == {}
    assert calls == [(0, 0)]


# --- Threads, blocks, progress ----------------------------------------------------------------------------------------


@in_python
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


@in_python
def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large").write_bytes(content(40 << 20))
    record = Recorder(monkeypatch)
    hash_file(tmp_path / "large", max_threads=1000)
    assert max(record.blocks) == 32 << 20
    assert sum(record.blocks) == 40 << 20


@in_python
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
        (tmp_path / str(index)).touch()
        os.truncate(tmp_path / str(index), 20 << 20)
    monkeypatch.setattr(_files, "_TICK", tick)
    calls: list[tuple[int, int]] = []
    threads = set()

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        threads.add(threading.current_thread())

    hash_directory(tmp_path, "sha256", max_threads=max_threads, progress=progress)
    assert threads == {threading.main_thread()}
    assert calls == sorted(calls)
    assert calls[-1] == (120 << 20, 120 << 20)
    assert {total for _, total in calls} == {120 << 20}
    assert len(calls) == 1 if tick else len(calls) > 1


@in_python
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


@in_python
@pytest.mark.parametrize("max_threads", [1, 3])
def test_an_interrupt_stops_at_the_next_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_threads: int
) -> None:
    """A real SIGINT; blocks then wait for the stop, so that the test does not depend on who is faster."""
    for index in range(40):
        (tmp_path / str(index)).write_bytes(content(3 << 20))
    runs: list[Any] = []
    results = python_files._Run.results
    monkeypatch.setattr(python_files._Run, "results", lambda run: (runs.append(run), results(run))[1])
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


@natively
@pytest.mark.parametrize("max_threads", [1, 3])
@pytest.mark.parametrize("how", ["an interrupt", "progress fails"])
def test_native_threads_stop_at_the_next_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_threads: int, how: str
) -> None:
    """Hashing all of it would take minutes."""
    for name in ("a", "b"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 1 << 38)
    monkeypatch.setattr(_files, "_TICK", 0.0)
    before = len(os.listdir("/proc/self/task"))  # noqa: PTH208

    def progress(done: int, total: int) -> None:
        if how == "progress fails":
            raise ZeroDivisionError
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(ZeroDivisionError if how == "progress fails" else KeyboardInterrupt):
        hash_directory(tmp_path, "sha256", max_threads=max_threads, progress=progress)
    assert len(os.listdir("/proc/self/task")) <= before  # noqa: PTH208


def test_an_interrupt_is_seen_without_progress(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 1 << 38)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        hash_file(tmp_path / "file", "sha256", max_threads=2)
    timer.join()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_hashes(tmp_path: Path) -> None:
    for index in range(6):
        (tmp_path / str(index)).write_bytes(content(1 << 20))
    expected = hash_directory(tmp_path, "sha256", max_threads=3)
    child = os.fork()
    if child == 0:
        os._exit(hash_directory(tmp_path, "sha256", max_threads=3) != expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """Lets this process open so many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(more: int) -> None:
        probes = [os.open("/", os.O_RDONLY) for _ in range(more)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(probes) + 1, before[1]))
        for probe in probes:
            os.close(probe)

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("algorithm", EXPECTED)
def test_few_descriptors_are_enough(tmp_path: Path, few_descriptors: Callable[[int], None], algorithm: str) -> None:
    sizes = [*range(70_000, 110_000, 1000), *range(1000, 41_000, 1000)]
    for index, size in enumerate(sizes):
        (tmp_path / str(index)).write_bytes(content(size))
    expected = {str(index): EXPECTED[algorithm](content(size)) for index, size in enumerate(sizes)}
    hash_directory(tmp_path, algorithm)  # Numba opens files of its own when it compiles
    few_descriptors(3)  # the folder, and two at a time
    assert hash_directory(tmp_path, algorithm, max_threads=8) == expected


def test_without_a_descriptor_a_file_is_named(tmp_path: Path, few_descriptors: Callable[[int], None]) -> None:
    (tmp_path / "file").write_bytes(content(1 << 17))
    files = _files.scan(tmp_path)
    few_descriptors(1)
    with pytest.raises(OSError, match=r"file'") as caught:
        _files.hash_found(files, "sha256", max_threads=2)
    assert caught.value.errno == errno.EMFILE


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
    message = r"is a symbolic link, expected a regular file \(allow_symlinks takes its target instead\): .*/link'"
    with pytest.raises(UnsupportedFileError, match=message):
        hash_directory(tmp_path)
    assert set(hash_directory(tmp_path, ignore=["link"])) == {"file", "folder/inner"}
    if target == "file":
        digests = hash_directory(tmp_path, allow_symlinks=True)
        assert digests["link"] == digests["file"]
    else:
        with pytest.raises(UnsupportedFileError, match=r"is a symbolic link, .* Its target is none either: .*/link'"):
            hash_directory(tmp_path, allow_symlinks=True)


@pytest.mark.parametrize("through", ["the folder", "a link to the folder"])
def test_links_to_files_inside(tmp_path: Path, through: str) -> None:
    root = tmp_path / "root"
    fill(root, ["a/b/file", "c/other"])
    (root / "absolute").symlink_to(root / "a/b/file")
    (root / "a/up and out and in").symlink_to("../../root/a/b/file")
    (root / "chain").symlink_to("absolute")
    (tmp_path / "way").symlink_to("root")
    digests = hash_directory(tmp_path / ("root" if through == "the folder" else "way"), allow_symlinks=True)
    assert len(digests) == 5
    for name in ("absolute", "a/up and out and in", "chain"):
        assert digests[name] == digests["a/b/file"] != digests["c/other"]


@pytest.mark.parametrize("target", ["../outside", "inner", "../root-2/file", "/etc/passwd"])
def test_a_link_that_leads_out_of_the_folder_is_an_error(tmp_path: Path, target: str) -> None:
    fill(tmp_path, ["outside", "root/file", "root-2/file"])
    (tmp_path / "root/inner").symlink_to("../outside")
    (tmp_path / "root/link").symlink_to(target)
    message = r"is a symbolic link, expected a regular file\. Its target lies outside of the folder: .*/link'"
    with pytest.raises(UnsupportedFileError, match=message):
        hash_directory(tmp_path / "root", allow_symlinks=True, ignore=["inner"])


@pytest.mark.parametrize("allow_symlinks", [False, True])
@pytest.mark.parametrize("what", ["file", "folder", "target"])
def test_a_link_that_takes_somethings_place_after_the_scan_is_not_followed(
    tmp_path: Path, what: str, allow_symlinks: bool
) -> None:
    """Not even one that leads to the same file."""
    root = tmp_path / "root"
    fill(root, ["folder/file", "x/target"])
    if allow_symlinks:
        (root / "link").symlink_to("x/target")
    files = _files.regular_files(root, allow_symlinks=allow_symlinks)
    place = {"file": root / "folder/file", "folder": root / "folder", "target": root / "x"}[what]
    place.rename(tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    with pytest.raises(OSError, match=r"root/(folder/file|link|x/target)'") as caught:
        _files.hash_found(files, "sha256")
    assert caught.value.errno == errno.ELOOP


def test_nothing_outside_is_read_while_folders_become_links(tmp_path: Path) -> None:
    """Somebody swaps a folder for a link to another, over and over: the other's file is never what was hashed."""
    root = tmp_path / "root"
    fill(tmp_path, ["root/folder/file", "outside/file"])
    (tmp_path / "link").symlink_to("../outside")
    secret = EXPECTED["sha256"]((tmp_path / "outside/file").read_bytes())
    stop, seen = threading.Event(), {"hashed": 0, "refused": 0}

    def swap() -> None:
        while not stop.is_set():
            (root / "folder").rename(tmp_path / "away")
            (tmp_path / "link").rename(root / "folder")
            (root / "folder").rename(tmp_path / "link")
            (tmp_path / "away").rename(root / "folder")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for attempt in range(100_000):
            if attempt >= 300 and min(seen.values()) > 0:
                break
            try:
                digests = hash_directory(root, "sha256", allow_symlinks=attempt % 2 == 0)
            except OSError:
                seen["refused"] += 1
            else:
                seen["hashed"] += 1
                assert secret not in digests.values()
    finally:
        stop.set()
        swapper.join()
    assert min(seen.values()) > 0


def test_a_way_out_of_the_folder_is_not_taken(tmp_path: Path) -> None:
    fill(tmp_path, ["root/file", "outside"])
    for name in ("../outside", "file/../../outside", ".."):
        found = _files.Found(name, 4, stat.S_IFREG, str(tmp_path / "root"))
        with pytest.raises(OSError, match=r"outside|root") as caught:
            _files.hash_found([found], "sha256")
        assert caught.value.errno in (errno.EXDEV, errno.ENOTDIR)


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
    found = _files.Found("fifo", 4, stat.S_IFREG, str(tmp_path))
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


@in_python
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


@in_python
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is made here."""
    fill(tmp_path, ["a", "b", "c"])
    real = os.open

    def refuse(path: Any, *arguments: Any, **more: Any) -> int:
        if path == "b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match="/b"):
        hash_directory(tmp_path)
    answers = _files.hash_found(_files.scan(tmp_path), "sha256", keep_going=True)
    assert [type(answer) for answer in answers] == [bytes, PermissionError, bytes]


@in_python
@pytest.mark.parametrize("max_threads", [1, 2])
@pytest.mark.parametrize("what", ["grows", "shrinks", "is touched", "has another mode"])
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
        if what == "has another mode":  # seen by the change time alone
            path.chmod(0o600)
        else:
            os.utime(path, ns=(1, 1))

    Recorder(monkeypatch, change)
    with pytest.raises(FileChangedError, match=r"changed while it was read: .*/file'"):
        hash_file(path, max_threads=max_threads)


@pytest.mark.parametrize("algorithm", EXPECTED)
def test_a_file_that_vanished_is_named_and_others_go_on(tmp_path: Path, algorithm: str) -> None:
    sizes = {"a": 3, "b": 3, "c": 1 << 17, "d": 1 << 21, "e": 1 << 21, "f": 0}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(content(size))
    files = _files.scan(tmp_path)
    (tmp_path / "b").unlink()
    (tmp_path / "d").unlink()
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/[bd]'"):
        _files.hash_found(files, algorithm, max_threads=2)
    answers = dict(zip(sizes, _files.hash_found(files, algorithm, max_threads=2, keep_going=True), strict=True))
    for name, answer in answers.items():
        if name in "bd":
            assert isinstance(answer, FileNotFoundError)
            assert answer.filename == str(tmp_path / name)
        else:
            assert answer == EXPECTED[algorithm](content(sizes[name]))


@pytest.mark.parametrize("algorithm", EXPECTED)
def test_the_first_error_stops_everything(tmp_path: Path, algorithm: str) -> None:
    """Hashing all of it would take minutes."""
    for name, size in (("a", 1 << 38), ("b", 1 << 37)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    files = _files.scan(tmp_path)
    (tmp_path / "b").unlink()
    with pytest.raises(FileNotFoundError, match="/b'"):
        _files.hash_found(files, algorithm, max_threads=2)


@pytest.mark.parametrize("algorithm", EXPECTED)
def test_a_size_that_changed_since_the_scan_is_no_error(tmp_path: Path, algorithm: str) -> None:
    """The file is what it is when it is opened."""
    before, after = [0, 0, 100, 1 << 21, 1 << 21], [7, 1 << 21, (1 << 18) + 1, 0, 100]
    for index, size in enumerate(before):
        (tmp_path / str(index)).write_bytes(content(size))
    files = _files.scan(tmp_path)
    for index, size in enumerate(after):
        (tmp_path / str(index)).write_bytes(content(size))
    assert _files.hash_found(files, algorithm) == [EXPECTED[algorithm](content(size)) for size in after]


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": lambda path: os.truncate(path, (1 << 28) + 1),
    "shrinks": lambda path: os.truncate(path, 1 << 20),
    "is touched": lambda path: os.utime(path, ns=(1, 1)),
    "is written to, its time set back": lambda path: (
        path.write_bytes(b""),
        os.truncate(path, 1 << 28),
        put_back(path),
    ),
    "is replaced": lambda path: (path.with_name("new").touch(), path.with_name("new").rename(path)),
}


def put_back(path: Path) -> None:
    os.utime(path, ns=(10**18, 10**18))


@pytest.mark.parametrize("reader", ["native"], indirect=True)
@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("algorithm", EXPECTED)
def test_a_file_that_changes_while_it_is_read_natively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, algorithm: str
) -> None:
    """Long enough for progress to be called before its end, and short enough for a test."""
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 1 << 28)
    put_back(path)
    monkeypatch.setattr(_files, "_TICK", 0.0)
    changed = False

    def change(done: int, total: int) -> None:
        nonlocal changed
        if not changed and 0 < done < total:
            changed = True
            CHANGES[what](path)

    with pytest.raises(FileChangedError, match=r"changed while it was read: it ha(d|s) .*: .*/file'"):
        hash_file(path, algorithm, progress=change)


def test_a_file_without_a_size_is_refused() -> None:
    with pytest.raises(FileChangedError, match=r"it had 0 bytes, then \d+"):
        hash_file("/proc/version")


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"path": "a\ud800"}, ValueError, r"path is 'a\\ud800', which no file can be named"),
    ({"algorithm": ["sha256"]}, ValueError, r"algorithm is \['sha256'\], expected"),
    ({"algorithm": "md5"}, ValueError, 'algorithm is \'md5\', expected "blake3" or "sha256"'),
    ({"algorithm": None}, ValueError, "algorithm is None"),
    ({"max_threads": 0}, ValueError, "max_threads is 0, expected at least 1"),
    ({"max_threads": 1.5}, TypeError, "max_threads is a float"),
    ({"max_threads": True}, TypeError, "max_threads is a bool"),
    ({"progress": 1}, TypeError, "progress is an int, expected a function"),
    ({"path": 3}, TypeError, "path is an int, expected str, bytes or a path"),
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


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        ("*.tmp", TypeError, "several patterns"),
        ([b"*.tmp"], TypeError, "holds a bytes, expected str"),
        ([""], ValueError, "parts between '/'"),
        (["/"], ValueError, "parts between '/'"),
        (["/a"], ValueError, "parts between '/'"),
        (["a//b"], ValueError, "parts between '/'"),
        (["./a"], ValueError, "parts between '/'"),
        (["a/../b"], ValueError, "parts between '/'"),
    ],
)
def test_bad_patterns(tmp_path: Path, patterns: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hash_directory(tmp_path, ignore_patterns=patterns)
