"""What lies in the page cache is hashed where it is: what happens if it goes away meanwhile, and to other people's SIGBUS."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import blake3 as peer
import pytest

import aisec_fast
from aisec_fast import FileChangedError
from aisec_fast.hashing import _files, hash_directory, hash_file

pytestmark = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="what is not Linux reads every file")

SIZE = 24 << 20
EXPECTED: dict[str, Callable[[bytes], bytes]] = {
    "blake3": lambda data: peer.blake3(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}


@pytest.fixture(autouse=True)
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told as often as can be; skips where the file system does not say what is in the page cache."""
    monkeypatch.setattr(_files, "_TICK", 0.0)
    asked = tmp_path / "asked"
    asked.write_bytes(b"?")
    with asked.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError as error:
            pytest.skip(f"this file system does not say what is in the page cache: {error}")
    asked.unlink()


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def write(path: Path, size: int = SIZE) -> bytes:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("algorithm", EXPECTED)
@pytest.mark.parametrize("size", [(1 << 17) + 1, 1 << 18, (1 << 20) + 100, (9 << 20) - 1, SIZE + 65])
def test_digests(tmp_path: Path, algorithm: str, size: int) -> None:
    files = {name: write(tmp_path / name, size + index) for index, name in enumerate("abcde")}
    for max_threads in (1, 2, 3):
        digests = hash_directory(tmp_path, algorithm, max_threads=max_threads)
        assert digests == {name: EXPECTED[algorithm](data) for name, data in files.items()}


@pytest.mark.parametrize("max_threads", [1, 3])
def test_trees_end_in_ever_smaller_pieces_and_go_on_in_the_next_segment(tmp_path: Path, max_threads: int) -> None:
    """Pieces of 1 MiB, then of 512, 256 and 128 KiB, then less than a block; 64 MiB are mapped at a time."""
    block, segment = 1 << 17, 1 << 26
    sizes = [(3 << 20) + blocks * block + rest for blocks in range(8) for rest in (0, 1, 1025)]
    for size in (*sizes, segment, segment + 1, segment + 5 * block + 3):
        data = write(tmp_path / "file", size)
        assert hash_file(tmp_path / "file", max_threads=max_threads) == EXPECTED["blake3"](data), size


@pytest.mark.parametrize("algorithm", EXPECTED)
@pytest.mark.parametrize("max_threads", [2, 9])
def test_what_is_in_the_page_cache_is_mapped(tmp_path: Path, algorithm: str, max_threads: int) -> None:
    """By few threads: many would wait for one another."""
    for index in range(9):
        write(tmp_path / str(index), 8 << 20)
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append(is_mapped(tmp_path))

    for _ in range(20):  # on a busy machine the thread that looks may get no turn while the others hash
        hash_directory(tmp_path, algorithm, max_threads=max_threads, progress=progress)
        if any(seen) or max_threads != 2:
            break
    assert any(seen) == (max_threads == 2)
    assert not is_mapped(tmp_path)


SHRINKS = """
import os, sys, time
from pathlib import Path
from aisec_fast import FileChangedError
from aisec_fast.hashing import _files, hash_file

_files._TICK = 0.0
path, algorithm, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
path.write_bytes(b"x" * size)
whole = hash_file(path, algorithm)
mapped, start = 0, time.monotonic()
while mapped == 0 or (mapped < 25 and time.monotonic() < start + 10):
    path.write_bytes(b"x" * size)
    shrunk = False
    def shrink(done, total):
        global shrunk
        if not shrunk and done < total and str(path) in Path("/proc/self/maps").read_text():
            shrunk = True
            os.truncate(path, 4096)
    try:  # it may have been hashed by then, and be mapped for another moment
        assert hash_file(path, algorithm, max_threads=1, progress=shrink) == whole
    except FileChangedError as error:
        assert shrunk and f"it had {size} bytes, then 4096" in str(error), error
        mapped += 1
print("alive")
"""


@pytest.mark.parametrize("algorithm", EXPECTED)
def test_a_file_that_shrinks_while_it_is_mapped_is_named(tmp_path: Path, algorithm: str) -> None:
    """Up to 25 times: in some of them a worker is about to touch a page that is gone, with near certainty."""
    command = [sys.executable, "-c", SHRINKS, str(tmp_path / "file"), algorithm, str(SIZE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr


def test_a_file_that_is_written_to_while_it_is_mapped_is_named(tmp_path: Path) -> None:
    """Until it was: hashing may be over before progress is told, or before the write is done; then it is as it was."""
    path = tmp_path / "file"
    write(path)
    whole, changed, named = hash_file(path, "sha256"), False, False

    def change(done: int, total: int) -> None:
        nonlocal changed
        if not changed and done < total and is_mapped(path):
            with path.open("r+b") as file:
                file.write(b"other")
            changed = True

    for _ in range(100):
        write(path)
        os.utime(path, ns=(10**18, 10**18))  # so that a write within the clock's tick is another time
        changed = False
        try:
            assert hash_file(path, "sha256", progress=change) == whole  # the slower one: progress is told in time
        except FileChangedError:
            named = True
            break
    assert changed
    assert named


SOMEBODY_ELSES = """
import ctypes, mmap, os, signal, sys
from aisec_fast.hashing import _files, hash_file

_files._TICK = 0.0
how, path = sys.argv[1:]
action = ctypes.create_string_buffer(152)
libc = ctypes.CDLL(None)

def handler():
    libc.sigaction(signal.SIGBUS, None, action)
    return action.raw[:8]

if how == "their handler":
    signal.signal(signal.SIGBUS, lambda *_: print("theirs"))
elif how == "ignored":
    signal.signal(signal.SIGBUS, signal.SIG_IGN)
before, during = handler(), []
if how == "fault":
    theirs = open(path + ".theirs", "w+b")
    theirs.write(bytes(4096))
    theirs.flush()
    memory = mmap.mmap(theirs.fileno(), 4096)
    theirs.truncate(0)

def progress(done, total):
    if path in open("/proc/self/maps").read() and not during:
        during.append(handler())
        if how == "fault":
            memory[0]
        else:
            os.kill(os.getpid(), signal.SIGBUS)

while not during:
    hash_file(path, progress=progress)
assert during[0] != before
assert handler() == before
print("done")
"""


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("their handler", 0, "theirs\ndone\n"),
        ("ignored", 0, "done\n"),
        ("nobody's", -signal.SIGBUS, ""),
        ("fault", -signal.SIGBUS, ""),
    ],
)
def test_a_bus_error_of_somebody_else_goes_where_it_went(tmp_path: Path, how: str, code: int, said: str) -> None:
    path = tmp_path / "file"
    write(path, 4 * SIZE)
    command = [sys.executable, "-c", SOMEBODY_ELSES, how, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (code, said), done.stderr


def test_a_handler_that_somebody_puts_there_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path)
    caught: list[int] = []
    before = signal.getsignal(signal.SIGBUS)

    def progress(done: int, total: int) -> None:
        if is_mapped(path):
            signal.signal(signal.SIGBUS, lambda number, frame: caught.append(number))

    try:
        while signal.getsignal(signal.SIGBUS) is before:
            hash_file(path, "sha256", progress=progress)
        signal.raise_signal(signal.SIGBUS)
        assert caught == [signal.SIGBUS]
        assert hash_file(path) == EXPECTED["blake3"](path.read_bytes())
        signal.raise_signal(signal.SIGBUS)
        assert caught == [signal.SIGBUS] * 2
    finally:
        signal.signal(signal.SIGBUS, before)


CHAINED = """
import faulthandler, mmap, sys
from aisec_fast.hashing import _files, hash_file

_files._TICK = 0.0
path = sys.argv[1]
theirs = open(path + ".theirs", "w+b")
theirs.write(bytes(4096))
theirs.flush()
memory = mmap.mmap(theirs.fileno(), 4096)
theirs.truncate(0)

def enable(done, total):
    mapped = any(line.rstrip().endswith(path) for line in open("/proc/self/maps"))
    if mapped and not faulthandler.is_enabled():
        faulthandler.enable()  # goes on to the handler that it found: ours

def touch(done, total):
    if done < total:
        memory[0]

while not faulthandler.is_enabled():
    hash_file(path, "sha256", progress=enable)
while True:
    hash_file(path, "sha256", progress=touch)
"""


def test_a_handler_that_goes_on_to_ours_gets_a_fault_once(tmp_path: Path) -> None:
    """If ours went on to it as well, the two would call each other for ever."""
    path = tmp_path / "file"
    write(path)
    command = [sys.executable, "-c", CHAINED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == -signal.SIGBUS
    assert done.stderr.count("Fatal Python error: Bus error") == 1


def test_the_calling_thread_maps_nothing(tmp_path: Path) -> None:
    """It hashes what is little itself, and may block SIGBUS: then a file that shrinks would end the process."""
    path = tmp_path / "file"
    write(path, 1 << 18)
    libc, action = ctypes.CDLL(None), ctypes.create_string_buffer(152)
    handlers: set[bytes] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            libc.sigaction(signal.SIGBUS, None, action)
            handlers.add(action.raw[:8])

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(300):
        hash_file(path)
    ended.set()
    looker.join()
    assert len(handlers) == 1


def test_only_the_native_reader_maps(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = write(path)
    mapped = []
    with aisec_fast.use_backend("numba"):
        assert hash_file(path, progress=lambda *_: mapped.append(is_mapped(path))) == EXPECTED["blake3"](data)
    assert not any(mapped)
