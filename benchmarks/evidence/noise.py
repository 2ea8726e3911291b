"""Noise beside torch's normal_, one thread and two, on every AVX instruction set of this machine.

    python benchmarks/evidence/noise.py                    some two minutes of two cores
    python benchmarks/evidence/noise.py --rounds 31 --size 4194304

Noise of a SecureSource is added in place to float32 values, by the public functions with all their checks; normal_ writes its
own over them. Contenders take turns in every round; ratios are of medians, and of the best rounds. "threads" is one thread's
time over two threads', in rounds of their own without pauses (a processor that sleeps takes a virtual machine up to a
millisecond to wake); "unchecked" is the same with ``check=False``: the look for unfit values is a read of memory, which
two threads do no faster where one fills its bandwidth. What a machine gives two threads at best is measured beside it: two processes, each on a processor of
its own, add noise to half the values each, at the same time and alone; twice the time alone over the time together.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import record
import torch
from rounds import interleaved

import aisec_fast
from aisec_fast import _core, noise

Call = Callable[[], Any]
LAWS: dict[str, Callable[..., Any]] = {
    "gaussian": noise.add_gaussian,
    "laplace": noise.add_laplace,
    "gaussian_s256": lambda x, scale, **more: noise.add_gaussian(x, scale, granularity=2.0**-8, **more),
    "gaussian_s1024": lambda x, scale, **more: noise.add_gaussian(x, scale, granularity=2.0**-10, **more),
    "gaussian_float": lambda x, scale, **more: noise.add_gaussian(x, scale, exact=False, **more),
}


def on_threads(count: int, call: Call) -> Call:
    def run() -> None:
        aisec_fast.set_num_threads(count)
        call()

    return run


def beside_normal(size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Of one law: ns a value on one thread and on two, and ratios."""
    values, source = torch.zeros(size), noise.SecureSource()
    calls: dict[Any, Call] = {"normal_": values.normal_}
    for name, add in LAWS.items():
        for threads in (1, 2):
            calls[name, threads] = on_threads(threads, lambda add=add: add(values, 1.0, source=source, out=values))
    calls["discrete"] = on_threads(1, lambda: noise.discrete_gaussian(size // 16, 100.0, source=source))
    for call in calls.values():
        call()
    seconds = interleaved(calls, rounds)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    best = {name: min(times) for name, times in seconds.items()}
    pairs = {name: two_over_one(add, values, source, rounds) for name, add in LAWS.items()}
    rows = {
        name: {
            "ns": middle[name, 1] / size * 1e9,
            "ns_2_threads": middle[name, 2] / size * 1e9,
            "of_normal": middle[name, 1] / middle["normal_"],
            "of_normal_best": best[name, 1] / best["normal_"],
            "threads": pairs[name][True],
            "unchecked": pairs[name][False],
        }
        for name in LAWS
    }
    rows["normal_"] = {"ns": middle["normal_"] / size * 1e9}
    rows["discrete_gaussian"] = {"ns": middle["discrete"] / (size // 16) * 1e9}
    return rows


def two_over_one(add: Callable[..., Any], values: Any, source: Any, rounds: int) -> dict[bool, float]:
    """One thread's median time over two threads', with and without the look for values that do not fit."""
    seconds: dict[tuple[bool, int], list[float]] = {}
    for _ in range(2 * rounds + 1):
        for check in (None, False):
            for threads in (1, 2):
                aisec_fast.set_num_threads(threads)
                start = time.perf_counter()
                add(values, 1.0, source=source, out=values, check=check)
                seconds.setdefault((check is None, threads), []).append(time.perf_counter() - start)
    middle = {key: statistics.median(times[1:]) for key, times in seconds.items()}
    return {check: middle[check, 1] / middle[check, 2] for check in (True, False)}


def alone_and_together(processor: int, law: str, size: int, rounds: int, barrier: Any, results: Any) -> None:
    """One of the two processes."""
    os.sched_setaffinity(0, {processor})
    aisec_fast.set_num_threads(1)
    values, source, add = np.zeros(size, np.float32), noise.SecureSource(), LAWS[law]
    alone, together = [], []

    def timed(into: list[float]) -> None:
        start = time.perf_counter()
        add(values, 1.0, source=source, out=values)
        into.append(time.perf_counter() - start)

    timed([])
    for turn in range(2 * rounds):
        barrier.wait()
        if turn % 2 == processor % 2:
            timed(alone)
        barrier.wait()
        timed(together)
    results.put((statistics.median(alone), statistics.median(together)))


def ceiling(law: str, size: int, rounds: int) -> float:
    """By how much two threads that share nothing but the machine are faster than one."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    both = [
        context.Process(target=alone_and_together, args=(processor, law, size // 2, rounds, barrier, results))
        for processor in sorted(os.sched_getaffinity(0))[:2]
    ]
    for process in both:
        process.start()
    found = [results.get() for _ in both]
    for process in both:
        process.join()
    return statistics.mean(2 * alone / together for alone, together in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=2**24, help="values; at least 65536")
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two processors are needed")
    torch.set_num_threads(1)
    start, found = time.perf_counter(), {}
    limits = {law: ceiling(law, arguments.size, arguments.rounds) for law in LAWS}
    native = _core.instruction_set()
    for instruction_set in (name for name in _core.instruction_sets() if "avx" in name):
        _core.use_instruction_set(instruction_set)
        found[instruction_set] = beside_normal(arguments.size, arguments.rounds)
        for law, row in found[instruction_set].items():
            print(f"{instruction_set:8} {law:18}", *(f"{name} {value:.3f}" for name, value in row.items()), flush=True)
    _core.use_instruction_set(native)
    for law, limit in limits.items():
        print(f"two processes of their own ({native}): {law:18} {limit:.2f}")
    findings = {"what": "noise beside normal_", "size": arguments.size, "rows": found, "two_processes": limits}
    print(f"wrote {record.write('noise', findings, time.perf_counter() - start)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
