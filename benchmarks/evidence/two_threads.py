"""What two threads do that move much memory: noise beside one thread, `clip_and_sum` beside a plain read.

    python benchmarks/evidence/two_threads.py --samples 3 --pause 60        half a minute of two cores a sample

Such figures depend on the minute on a machine that is shared: on what neighbours leave of memory and of the shared cache.
So samples are taken at several times, and every one is kept: those of the same day, machine and commit lie in one file. One
sample: of noise of a SecureSource, added in place to 2^24 float32 values, one thread's time over two threads', with and
without the look for values that do not fit; of `clip_and_sum` (float32, into an array that is there) the time of a plain
read of the gradients by two threads (`max` of their halves as int32) over its own, both in turns. Medians of 15 rounds.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import record

import aisec_fast
from aisec_fast import _core, clipping, noise

ROUNDS = 15
SHAPES = ((256, 1_200_000), (256, 400_000), (1024, 100_000), (4096, 20_000))
LAWS = {"gaussian": noise.add_gaussian, "laplace": noise.add_laplace}


def medians(calls: dict[Any, Callable[[], Any]]) -> dict[Any, float]:
    """Seconds of calls in turns, without pauses: threads that sleep take a virtual machine up to a millisecond to wake."""
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def of_noise() -> dict[str, dict[str, float]]:
    """By instruction set and law, one thread's time over two threads'."""
    values, source, found = np.zeros(2**24, np.float32), noise.SecureSource(), {}

    def added(law: str, threads: int, check: bool | None) -> Callable[[], Any]:
        def run() -> None:
            aisec_fast.set_num_threads(threads)
            LAWS[law](values, 1.0, source=source, out=values, check=check)

        return run

    native = _core.instruction_set()
    for isa in (name for name in _core.instruction_sets() if "avx" in name):
        _core.use_instruction_set(isa)
        for law in LAWS:
            took = medians({(t, check): added(law, t, check) for t in (1, 2) for check in (None, False)})
            found[f"{isa} {law}"] = {
                "threads": round(took[1, None] / took[2, None], 3),
                "unchecked": round(took[1, False] / took[2, False], 3),
            }
    _core.use_instruction_set(native)
    return found


def of_clipping(pool: ThreadPoolExecutor) -> dict[str, dict[str, float]]:
    """By shape, the read's GB/s and its time in percent of ours."""
    aisec_fast.set_num_threads(2)
    found = {}
    for rows, columns in SHAPES:
        grads = np.empty((rows, columns), np.float32)
        grads[:] = np.random.default_rng(0).standard_normal(columns, dtype=np.float32)
        out, halves = np.empty(columns, np.float32), np.array_split(grads.reshape(-1).view(np.int32), 2)

        def read(halves: list[Any] = halves) -> None:
            other = pool.submit(halves[1].max)
            halves[0].max()
            other.result()

        took = medians({"read": read, "ours": lambda g=grads, o=out: clipping.clip_and_sum(g, 1.0, out=o)})
        found[f"{rows} x {columns}"] = {
            "read_gb_s": round(grads.nbytes / took["read"] / 1e9, 1),
            "percent": round(100 * took["read"] / took["ours"], 1),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--pause", type=float, default=60.0, help="seconds between samples")
    arguments = parser.parse_args()
    start, samples = time.perf_counter(), []
    path = record.HERE / "results" / f"two-threads-{dt.datetime.now(dt.timezone.utc).date().isoformat()}.json"
    if path.exists():
        before = json.loads(path.read_text())
        samples = before["samples"]
        print(f"{len(samples)} samples are there, of {before['commit']}")
    with ThreadPoolExecutor(1) as pool:
        for number in range(arguments.samples):
            if number > 0:
                time.sleep(arguments.pause)
            now = dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds")
            samples.append({"at": now, "noise": of_noise(), "clip_and_sum": of_clipping(pool)})
            print(json.dumps(samples[-1]), flush=True)
    middle = {
        kind: {
            name: {figure: statistics.median(s[kind][name][figure] for s in samples) for figure in figures}
            for name, figures in samples[0][kind].items()
        }
        for kind in ("noise", "clip_and_sum")
    }
    print(json.dumps(middle, indent=1))
    record.write("two-threads", {"medians": middle, "samples": samples}, time.perf_counter() - start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
