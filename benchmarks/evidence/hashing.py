"""Hashing beside the fastest peers: blake3 and b3sum, hashlib over threads, in one process.

    python benchmarks/evidence/hashing.py                 some four minutes; needs blake3 (PyPI) and b3sum, 2 GiB of memory and disk
    python benchmarks/evidence/hashing.py --rounds 15 --only file --only folder

Contenders take turns in every round. Small messages are hashed many times a round. Files lie in the temporary folder and in the
page cache: each was read just before. Two ratios, by medians and by the best rounds: the best peer's time over ours, above 1 we
are faster; then million bytes (records) a second. Machines with neighbours are noisy: a second run tells how much. Digests are compared
first (exit code 1 if they differ). `--threads` is ours; blake3's AUTO and b3sum take what they like, hashlib as many threads.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import record
import rounds

from aisec_fast import hashing, set_num_threads

Contenders = dict[str, Callable[[], Any]]  # ours first
MIB = 2**20


def repeated(times: int, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        for _ in range(times):
            result = call()
        return result

    return run


def messages(threads: int) -> Iterator[tuple[str, float, Contenders]]:
    """In memory; what one call hashes, in bytes."""
    data = np.random.default_rng(0).integers(0, 256, 512 * MIB, dtype=np.uint8)
    automatic = blake3.blake3.AUTO
    for name, size, limit in (
        ("4 KiB", 4096, threads),
        ("64 KiB", 2**16, threads),
        ("1 MiB", MIB, threads),
        ("512 MiB, 1 thread", 512 * MIB, 1),
        (f"512 MiB, {threads} threads", 512 * MIB, threads),
    ):
        message, times = data[:size], max(1, 2**24 // size)

        def ours(message: Any = message) -> bytes:
            return hashing.blake3(message).digest()

        def peer(message: Any = message, most: int = 1) -> bytes:
            return blake3.blake3(message, max_threads=most).digest()

        set_num_threads(limit)
        contenders = {"ours": ours, "blake3": peer}
        if limit > 1:
            contenders["blake3 AUTO"] = lambda message=message: peer(message, automatic)
        yield name, size * times, {who: repeated(times, call) for who, call in contenders.items()}
    set_num_threads(threads)


def b3sum(path: Path) -> str:
    return subprocess.run(["b3sum", "--no-names", path], capture_output=True, text=True, check=True).stdout.strip()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def by_hashlib(folder: Path, threads: int) -> list[str]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(sha256_of, sorted(folder.iterdir())))


def by_us(folder: Path) -> list[str]:
    found = hashing.hash_directory(folder, algorithm="sha256")
    return [found[name].hex() for name in sorted(found)]


def file(folder: Path) -> Iterator[tuple[str, float, Contenders]]:
    path = folder / "large"
    path.write_bytes(np.random.default_rng(1).bytes(1024 * MIB))
    yield "file of 1 GiB", 1024 * MIB, {"ours": lambda: hashing.hash_file(path).hex(), "b3sum": lambda: b3sum(path)}


def folder(threads: int, folder: Path) -> Iterator[tuple[str, float, Contenders]]:
    for count, size, name in (
        (8, 64 * MIB, "folder of 8 x 64 MiB, SHA-256"),
        (100_000, 8192, "100,000 files of 8 KiB, SHA-256"),
    ):
        where = folder / str(count)
        where.mkdir()
        data = np.random.default_rng(2).bytes(size)
        for i in range(count):
            (where / f"{i:06}").write_bytes(i.to_bytes(8, "little") + data[8:])
        yield (
            name,
            count * size,
            {"ours": lambda where=where: by_us(where), "hashlib": lambda where=where: by_hashlib(where, threads)},
        )
        shutil.rmtree(where)


def records() -> Iterator[tuple[str, float, Contenders]]:
    """One thread; a record of 24 bytes each."""
    count = 200_000
    data, offsets = np.random.default_rng(3).integers(0, 256, 24 * count, dtype=np.uint8), np.arange(count + 1) * 24
    rows, key = [bytes(row) for row in data.reshape(count, 24)], bytes(range(32))
    set_num_threads(1)

    def native(algorithm: str) -> Callable[[], list[bytes]]:
        return lambda: [bytes(row) for row in hashing.hash_records(data, offsets, algorithm=algorithm, key=key)[:3]]

    yield "records, keyed BLAKE3, 1 thread", count, {
        "ours": native("blake3"), "blake3": lambda: [blake3.blake3(row, key=key).digest() for row in rows][:3]
    }  # fmt: skip
    yield "records, HMAC-SHA-256, 1 thread", count, {
        "ours": native("hmac-sha256"), "hmac": lambda: [hmac.digest(key, row, "sha256") for row in rows][:3]
    }  # fmt: skip


def ratio(seconds: dict[str, float]) -> float:
    return round(min(value for who, value in seconds.items() if who != "ours") / seconds["ours"], 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", action="append", choices=("messages", "file", "folder", "records"))
    arguments = parser.parse_args()
    if shutil.which("b3sum") is None:
        parser.error("b3sum is not installed")
    set_num_threads(arguments.threads)
    start, wrong, rows = time.perf_counter(), 0, []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        cases = {
            "messages": lambda: messages(arguments.threads),
            "file": lambda: file(place),
            "folder": lambda: folder(arguments.threads, place),
            "records": records,
        }
        for what in arguments.only or cases:
            for case, units, contenders in cases[what]():
                results = [call() for call in contenders.values()]
                wrong += any(result != results[0] for result in results)
                seconds = rounds.interleaved(contenders, arguments.rounds)
                medians = {who: statistics.median(times) for who, times in seconds.items()}
                by_median, by_best = ratio(medians), ratio({who: min(times) for who, times in seconds.items()})
                rows.append(
                    {"case": case, "units": units, "seconds": seconds, "by_median": by_median, "by_best": by_best}
                )
                figures = "  ".join(f"{who} {units / value / 1e6:.0f}" for who, value in medians.items())
                print(f"{case:34} {by_median:6.2f} {by_best:6.2f}   {figures}", flush=True)
    path = record.write(
        "hashing", {"what": "hashing beside peers", "wrong": wrong, "rows": rows}, time.perf_counter() - start
    )
    print(f"wrote {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
