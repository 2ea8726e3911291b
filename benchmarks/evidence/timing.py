"""Does running time tell anything of the noise? Times many small calls beside the noise they drew.

    python benchmarks/evidence/timing.py                some minutes of one core
    python benchmarks/evidence/timing.py --calls 20000  quicker, wider intervals

Jin, McMurtry, Rubinstein and Ohrimenko (IEEE S&P 2022) read the noise of DP libraries from the time that samplers took. Here
each call on a small array is timed by itself, that of the kernel alone and, less often, the public one (add_gaussian and
add_laplace, whose own time hides more); what counts is the rank correlation
(Spearman) of its time with the largest and with the mean |noise| of the call, after taking from each time the median of the
1,000 calls around it, as machines change speed. Interval: 99.9 %, by Fisher's transformation with Bonett and Wright's (2000)
variance for ranks. An interval that holds 0 says that no monotone relation was found at this number of calls. As the noise of
calls is independent, drift of the machine and ties of the clock cannot make it too narrow; "shuffled" shows that: the mean noise
among the 1,000 calls of a block in a random order. "bits" is what two normal numbers tell of each other whose correlation is the
far end of the interval.

"top_tenth_extra_ns" is the size of the effect: the median time of the tenth of the calls with the largest |noise| less that of
the tenth with the smallest.

The slow path (docs/noise.md sections 4 and 6) is rare, so ranks do not show it. Reported apart: the calls that hold a sample
with u < 2^-20, which always takes it ("tail"), and how many of all calls and of those were slower than 99.9 % of calls are.
At s = 2^40 every sample takes it: those rows say what the resolver itself reveals once it runs.

The control, a geometric sampler that counts trials, must show its correlation; else the measure is blind (exit code 2).
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import record
from numpy.typing import NDArray
from scipy import stats

from aisec_fast import _core, noise, set_num_threads

# (through, s, type, size, share of the calls): the kernel, the public function, and the resolver, which is slow
PLANS = (
    ("kernel", 2.0**20, "float64", 1, 1.0),
    ("kernel", 2.0**20, "float64", 16, 1.0),
    ("kernel", 2.0**20, "float64", 256, 0.125),
    ("public", 2.0**20, "float64", 16, 0.1),
    ("kernel", 2.0**40, "float64", 1, 0.005),
)
# By fixed point, on every AVX instruction set of the machine; on AVX2 small scales by straight lines.
FIXED_PLANS = (("kernel", 2.0**20, "float32", 8192, 0.02), ("kernel", 2.0**10, "float32", 8192, 0.02))
BLOCK = 1000
TAIL = {"gaussian": stats.norm.isf(2.0**-21), "laplace": 20 * math.log(2)}  # where F = 2^-20, in units of the scale
Floats = NDArray[np.floating[Any]]


def timed(
    call: Callable[[Floats, Any], object], noises: Floats, prepare: Callable[[], Any] = lambda: None
) -> NDArray[np.int64]:
    """Nanoseconds of call(row, prepare()) for every row, which receives the noise; prepare is not timed."""
    clock, times = time.perf_counter_ns, np.empty(len(noises), np.int64)
    rows = list(noises)
    for row in rows[:200]:
        call(row, prepare())
    noises[:200] = 0
    gc.collect()
    gc.disable()
    try:
        for i, row in enumerate(rows):
            prepared = prepare()
            start = clock()
            call(row, prepared)
            times[i] = clock() - start
    finally:
        gc.enable()
    return times


def level(times: NDArray[np.int64]) -> Floats:
    """Times less the median of their block."""
    whole = times[: len(times) // BLOCK * BLOCK].reshape(-1, BLOCK).astype(np.float64)
    return (whole - np.median(whole, axis=1, keepdims=True)).ravel()


def correlation(times: Floats, magnitude: Floats) -> dict[str, float]:
    rho = float(stats.spearmanr(times, magnitude).statistic)
    half = stats.norm.isf(0.0005) * math.sqrt((1 + rho * rho / 2) / (len(times) - 3))
    middle = math.atanh(min(max(rho, -0.999999), 0.999999))
    low, high = math.tanh(middle - half), math.tanh(middle + half)
    return {"rho": rho, "low": low, "high": high, "bits": -0.5 * math.log2(1 - max(low * low, high * high))}


def findings(times: NDArray[np.int64], noises: Floats, scale: float, law: str) -> dict[str, Any]:
    """noises: [calls, samples of a call]."""
    leveled = level(times)
    magnitude = np.abs(noises[: len(leveled)]) / scale
    largest, mean = magnitude.max(axis=1), magnitude.mean(axis=1)
    shuffled = np.random.default_rng(0).permuted(mean.reshape(-1, BLOCK), axis=1).ravel()
    low, high = np.quantile(largest, [0.1, 0.9])
    slow = leveled > np.quantile(leveled, 0.999)
    tail = largest > TAIL[law]
    return {
        "calls": len(leveled),
        "median_ns": float(np.median(times)),
        "with_largest": correlation(leveled, largest),
        "with_mean": correlation(leveled, mean),
        "with_shuffled": correlation(leveled, shuffled),
        "top_tenth_extra_ns": float(np.median(leveled[largest >= high]) - np.median(leveled[largest <= low])),
        "tail_calls": int(tail.sum()),
        "tail_extra_ns": float(np.median(leveled[tail])) if tail.any() else None,
        "slow_calls": int(slow.sum()),
        "slow_of_tail_calls": int((slow & tail).sum()),
    }


def counted_trials(rng: np.random.Generator) -> Callable[[Floats, Any], object]:
    """The control: as many steps as the noise is large."""

    def call(row: Floats, prepared: Any) -> None:
        del prepared
        count = 0
        while rng.random() > 0.1:
            count += 1
        row[0] = count

    return call


def run(through: str, law: str, s: float, source: Any, noises: Floats) -> NDArray[np.int64]:
    """Times of adding noise with granularity 1 to every row of zeros."""
    if through == "kernel":
        kernel = getattr(_core, f"add_{law}")
        return timed(lambda row, key: kernel(row, row, s, 1.0, key), noises, source.next_key)
    add = getattr(noise, f"add_{law}")
    return timed(lambda row, _: add(row, s, granularity=1.0, source=source, out=row, check=False), noises)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000, help="of each row; at least 5000")
    arguments = parser.parse_args()
    if arguments.calls < 5 * BLOCK:
        parser.error(f"--calls is {arguments.calls}, expected at least {5 * BLOCK}")
    set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    start, rows = time.perf_counter(), []

    def show(name: dict[str, Any], found: dict[str, Any]) -> None:
        rows.append(name | found)
        parts = [
            f"{what} {c['rho']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}]" for what, c in found.items() if "with" in what
        ]
        print(*name.values(), *parts, {k: v for k, v in found.items() if "with" not in k}, flush=True)

    noises = np.zeros((max(5 * BLOCK, arguments.calls // 10), 1))
    times = timed(counted_trials(np.random.default_rng(0)), noises)
    show(
        {"source": "control", "instructions": "", "through": "python", "law": "laplace", "s": 1.0, "size": 1},
        findings(times, noises, 1.0, "laplace"),
    )
    if rows[0]["with_largest"]["low"] < 0.5:
        print("the control's correlation does not show: this machine is too busy to say anything")
        return 2

    native = _core.instruction_set()
    plans = [(native, *plan) for plan in PLANS]
    plans += [(name, *plan) for name in _core.instruction_sets() if "avx" in name for plan in FIXED_PLANS]
    for kind in (noise.SeededSource, noise.SecureSource):
        source = kind(1) if kind is noise.SeededSource else kind()
        for law in TAIL:
            for instructions, through, s, dtype, size, share in plans:
                _core.use_instruction_set(instructions)
                noises = np.zeros((max(5 * BLOCK, round(arguments.calls * share)), size), dtype)
                times = run(through, law, s, source, noises)
                name = {"source": kind.__name__, "instructions": instructions, "through": through, "law": law, "s": s}
                show(name | {"dtype": dtype, "size": size}, findings(times, noises, s, law))
    _core.use_instruction_set(native)
    path = record.write("timing", {"interval": "99.9 %", "rows": rows}, time.perf_counter() - start)
    print("written to", path.relative_to(Path.cwd()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
