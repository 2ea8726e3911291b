"""Cases of files: one in the page cache, a folder of large ones, a folder of many small ones."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import aisec_fast
from aisec_fast import hashing

from ._kernels import Array, Operation, contenders, has, same_bits
from ._measure import Case, Contender, FloorPart

_LARGEST = 2**30  # bytes of a case: a page cache of a few GiB holds it
_FEWEST = 2**20
_SMALL_FILE = 2**13
_BLOCK = 2**18  # bytes that the floor and hashlib read at a time


def cases(sizes: list[int], threads: list[int]) -> Iterator[Case]:
    """At one size, eight times the largest of the kernels, and on every number of threads."""
    size = min(max(8 * max(sizes), _FEWEST), _LARGEST)
    for operation, shape in (
        ("file_blake3", (size,)),
        ("large_files_sha256", (8, size // 8)),
        ("small_files_sha256", (size // _SMALL_FILE // 4, _SMALL_FILE)),
    ):
        count = int(np.prod(shape))
        for one in threads:
            yield Case("hashing", operation, shape, "uint8", one, count, 1, partial(_prepare, operation, shape))


def _prepare(operation: str, shape: tuple[int, ...]) -> tuple[list[Contender], list[FloorPart]]:
    place = _Place()
    files = _make(place.folder, shape)
    whole = files[0] if len(files) == 1 else _whole(place.whole, files)
    if operation == "file_blake3":

        def call() -> Array:
            return np.frombuffer(hashing.hash_file(place.folder / whole.relative_to(place.folder), "blake3"), np.uint8)

        check, peers = _agreement(call), _b3sum(whole)
    else:

        def call() -> Array:
            return _in_order(hashing.hash_directory(place.folder, "sha256"))

        check = same_bits(_in_threads(_hashlib, files))
        peers = {"hashlib": lambda: _in_threads(_hashlib, files)} | _model_signing(place.folder)
    measured = {name: (peer, check, True) for name, peer in peers.items()}
    found, _ = contenders(
        Operation(lambda _: call, check, measured), np.empty(4, np.uint8), on_devices=False, hashing=True
    )
    return found, [FloorPart([lambda: (_in_threads(_read, _parts(whole)), place)])]


class _Place:
    """A folder for the files of one case, and beside it one file for the floor; gone with the last function that knows it."""

    def __init__(self) -> None:
        name = tempfile.mkdtemp(prefix="aisec-fast-bench-")
        weakref.finalize(self, shutil.rmtree, name, ignore_errors=True)
        self.folder, self.whole = Path(name) / "files", Path(name) / "whole"


def _whole(path: Path, files: list[Path]) -> Path:
    """The bytes of all files in one, for the floor."""
    with path.open("wb") as out:
        for file in files:
            out.write(file.read_bytes())
    return path


def _make(folder: Path, shape: tuple[int, ...]) -> list[Path]:
    """Files of chance bytes, their names in order; large ones from half to one and a half times their mean."""
    count, mean = shape if len(shape) == 2 else (1, shape[0])
    chance = np.random.default_rng(0).integers(0, 256, 2 * mean + count, dtype=np.uint8)
    files = []
    for index in range(count):
        size = mean * (7 + 2 * index) // 14 if count == 8 else mean
        files.append(folder / f"{index // 1000:03}" / f"{index % 1000:03}")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        files[-1].write_bytes(chance[index : index + size].tobytes())
    return files


def _in_order(digests: dict[str, bytes]) -> Array:
    return np.frombuffer(b"".join(digests[name] for name in sorted(digests)), np.uint8)


def _agreement(call: Callable[[], Array]) -> Callable[[Array], str]:
    if has("blake3"):
        return same_bits(call())
    agrees = same_bits(call())
    return lambda result: f"equal {agrees(result)}"


def _in_threads(function: Callable[[Any], bytes], items: list[Any]) -> Array:
    with ThreadPoolExecutor(aisec_fast.get_num_threads()) as pool:
        return np.frombuffer(b"".join(pool.map(function, items)), np.uint8)


def _hashlib(path: Path) -> bytes:
    digest, view = hashlib.sha256(), memoryview(bytearray(_BLOCK))  # hashlib.file_digest came with Python 3.11
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view):
            digest.update(view[:count])
    return digest.digest()


def _read(part: tuple[Path, int, int]) -> bytes:
    """Reads a part of a file, and does nothing with it."""
    path, start, end = part
    view = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while start < end and (count := os.preadv(file.fileno(), [view[: end - start]], start)):
            start += count
    return b""


def _parts(path: Path) -> list[tuple[Path, int, int]]:
    size, count = path.stat().st_size, aisec_fast.get_num_threads()
    return [(path, size * part // count, size * (part + 1) // count) for part in range(count)]


def _b3sum(path: Path) -> dict[str, Callable[[], Array]]:
    command = shutil.which("b3sum")
    if command is None:
        return {}

    def call() -> Array:
        arguments = [command, "--num-threads", str(aisec_fast.get_num_threads()), "--no-names", str(path)]
        return np.frombuffer(
            bytes.fromhex(subprocess.run(arguments, capture_output=True, check=True).stdout.decode()), np.uint8
        )

    return {"b3sum": call}


def _model_signing(folder: Path) -> dict[str, Callable[[], Array]]:
    """Its hashing alone: it signs a manifest of these digests."""
    if not has("model_signing"):
        return {}
    theirs: Any = importlib.import_module("model_signing.hashing")

    def call() -> Array:
        config = theirs.Config().use_file_serialization(
            hashing_algorithm="sha256", max_workers=aisec_fast.get_num_threads()
        )
        found = config.hash(folder).resource_descriptors()
        return _in_order({one.identifier: one.digest.digest_value for one in found})

    return {"model-signing": call}
