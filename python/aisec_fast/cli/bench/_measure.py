"""Interleaved timing. A figure of this harness is a median over rounds in which every contender had its turn.

So whatever else the machine does hits all contenders alike, and a ratio within one case can be trusted where a time
alone could not. The floor of a case (the memory traffic it cannot avoid, or a plain training step) is measured in the
very same rounds.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import aisec_fast

_SAMPLE_SECONDS = (
    0.0005  # a sample is at least this long: many calls of what is short, so that the clock does not matter
)
_PAUSE = 0.002  # seconds before each sample: torch's threads go on spinning that long after their work
OURS = ("native", "numba", "cuda")
BUSY = 0.10  # share of the machine taken by other processes above which a row is marked


@dataclass(frozen=True)
class Contender:
    """One way to run a case: ``call`` runs it once, inside ``active()``.

    backend: "native", "numba" or "cuda" for ours, else the peer's name.
    check: compares one result with the reference and says how ("bits", "moments", the error allowed); AssertionError if it differs.
    device: "cpu" or "cuda". A contender is compared with the floor of its device.
    private_safe: whether the result may be published as private.
    finish: waits until what the calls have queued is done; a GPU's work goes on after a call has returned.
    """

    backend: str
    call: Callable[[], object]
    check: Callable[[], str]
    instruction_set: str | None = None
    device: str = "cpu"
    private_safe: bool = True
    finish: Callable[[], object] = lambda: None

    @property
    def label(self) -> str:
        """What stands in a table: "native avx2", "torch *" (the star: not private-safe)."""
        return " ".join(filter(None, (self.backend, self.instruction_set, "" if self.private_safe else "*")))

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Force this contender's backend and instruction set; what was in use comes back at the end."""
        with contextlib.ExitStack() as stack:
            if self.backend in OURS:
                stack.enter_context(aisec_fast.use_backend(self.backend))
            if self.instruction_set is not None:
                from aisec_fast import _core

                stack.callback(_core.use_instruction_set, _core.instruction_set())
                _core.use_instruction_set(self.instruction_set)
            yield


@dataclass(frozen=True)
class FloorPart:
    """Something that a case cannot avoid, done ``weight`` times; the fastest of ``calls`` counts."""

    calls: Sequence[Callable[[], object]]
    weight: float = 1.0
    device: str = "cpu"
    finish: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Case:
    """One operation on one size with one number of threads.

    values: what ns are divided by (values of the input; bytes for hashing; 1 for a whole step).
    bytes_per_value: least memory traffic, for GB/s; 0 where that says nothing.
    """

    family: str
    operation: str
    shape: tuple[int, ...]
    dtype: str
    threads: int
    values: int
    bytes_per_value: float
    prepare: Callable[[], tuple[list[Contender], list[FloorPart]]] = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """For a progress line."""
        shape = " x ".join(f"{extent:,}" for extent in self.shape)
        return f"{self.operation} [{shape}], {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True)
class Skipped:
    """What was not measured, and why; ``wrong`` if a result differed from the reference."""

    case: Case
    label: str
    reason: str
    wrong: bool = False


def measure(
    case: Case, rounds: int, *, most_seconds: float, backend: str | None = None, device: str | None = None
) -> tuple[list[dict[str, Any]], list[Skipped]]:
    """Check every contender of ``case`` against the reference, then time all of them once in each round.

    Args:
        case: what to run.
        rounds: number of rounds, at least 1.
        most_seconds: a contender that needs longer for one call is skipped.
        backend: of our backends only this one.
        device: "cpu" or "cuda": only what runs there.

    Returns:
        One row for each contender, and what was skipped.

    Raises:
        AssertionError: a contender's result differs from the reference. Nothing has been timed then.
    """
    try:
        with _threads(case.threads):
            return _measure(case, rounds, most_seconds, backend, device)
    except MemoryError:
        return [], [Skipped(case, "all", "not enough memory at this size")]
    finally:
        gc.collect()


def _measure(
    case: Case, rounds: int, most_seconds: float, backend: str | None, device: str | None
) -> tuple[list[dict[str, Any]], list[Skipped]]:
    contenders, floors = case.prepare()
    if device:
        contenders = [contender for contender in contenders if contender.device == device]
        floors = [part for part in floors if part.device == device]
    kept: list[tuple[Contender, str]] = []
    skipped: list[Skipped] = []
    runs: list[_Run] = []
    for contender in contenders:
        if backend and contender.backend in OURS and contender.backend != backend:
            continue
        with contender.active():
            checked = contender.check()
            seconds = _once(contender.call, contender.finish)
        if seconds > most_seconds:
            skipped.append(Skipped(case, contender.label, f"one call takes {seconds:.1f} s"))
            continue
        kept.append((contender, checked))
        runs.append(_Run(contender, contender.call, contender.finish, _repeats(seconds)))
    for part in floors:
        runs += [_Run(None, call, part.finish, _repeats(_once(call, part.finish))) for call in part.calls]
    samples, load = _rounds(runs, rounds)
    floor_ns = _floor_ns(case, floors, samples[len(kept) :])
    rows = []
    for (contender, checked), times in zip(kept, samples, strict=False):
        ns = [1e9 * one / case.values for one in times]
        rows.append(_row(case, contender, checked, ns, floor_ns[contender.device], load))
    return rows, skipped


class _Run(NamedTuple):
    """What is timed in every round: ``repeats`` calls, of a contender or of the floor."""

    contender: Contender | None
    call: Callable[[], object]
    finish: Callable[[], object]
    repeats: int


def _rounds(runs: Sequence[_Run], rounds: int) -> tuple[list[list[float]], float | None]:
    """Seconds of each run in each round, and the share of the machine that other processes took meanwhile."""
    samples: list[list[float]] = [[] for _ in runs]
    order = random.Random(0)
    load = _Load()
    for _ in range(rounds):
        # In another order each round, so that no one always follows the same.
        for place in order.sample(range(len(runs)), len(runs)):
            contender, call, finish, repeats = runs[place]
            with contender.active() if contender else contextlib.nullcontext():
                time.sleep(_PAUSE)
                start = time.perf_counter()
                for _ in range(repeats):
                    call()
                finish()
                samples[place].append((time.perf_counter() - start) / repeats)
    return samples, load.share()


def _once(call: Callable[[], object], finish: Callable[[], object]) -> float:
    """Seconds of one call, after one that may compile, allocate or fill caches."""
    call()
    finish()
    start = time.perf_counter()
    call()
    finish()
    return time.perf_counter() - start


def _repeats(seconds: float) -> int:
    return max(1, math.ceil(_SAMPLE_SECONDS / max(seconds, 1e-9)))


def _floor_ns(case: Case, floors: Sequence[FloorPart], samples: Sequence[list[float]]) -> dict[str, float]:
    """Device -> what the unavoidable parts take together, ns for each value."""
    found: dict[str, float] = {}
    medians = iter([statistics.median(times) for times in samples])
    for part in floors:
        fastest = min(next(medians) for _ in part.calls)
        found[part.device] = found.get(part.device, 0.0) + 1e9 * part.weight * fastest / case.values
    return found


def _row(
    case: Case, contender: Contender, checked: str, ns: Sequence[float], floor_ns: float, load: float | None
) -> dict[str, Any]:
    median = statistics.median(ns)
    low, high = (
        (statistics.quantiles(ns, n=4, method="inclusive")[i] for i in (0, 2)) if len(ns) > 1 else (ns[0], ns[0])
    )
    return {
        "family": case.family,
        "operation": case.operation,
        "shape": list(case.shape),
        "size": case.values,
        "dtype": case.dtype,
        "backend": contender.backend,
        "instruction_set": contender.instruction_set,
        "device": contender.device,
        "threads": case.threads,
        "private_safe": contender.private_safe,
        "ns": median,
        "quartiles": [low, high],
        "floor_ns": floor_ns,
        "percent_of_floor": 100 * floor_ns / median,
        "gb_per_s": case.bytes_per_value / median if case.bytes_per_value else None,
        "checked": checked,
        "load": load,
        "busy": load is not None and load > BUSY,
    }


class _Load:
    """How much of the machine processes other than this one take; None where the system does not tell."""

    def __init__(self) -> None:
        self.start = self._now()

    def share(self) -> float | None:
        now = self._now()
        if now is None or self.start is None:
            return None
        total, busy, own = (after - before for after, before in zip(now, self.start, strict=True))
        return max(0.0, (busy - own) / total) if total > 0 else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        try:
            fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        idle = fields[3] + fields[4]
        times = os.times()
        return sum(fields) / ticks, (sum(fields) - idle) / ticks, times.user + times.system


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Our kernels and torch on ``count`` threads; undone at the end."""
    import importlib.util

    before = aisec_fast.get_num_threads()
    aisec_fast.set_num_threads(count)
    torch: Any = None
    if importlib.util.find_spec("torch"):
        import torch as torch_module

        torch = torch_module
    torch_before = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        aisec_fast.set_num_threads(before)
        if torch:
            torch.set_num_threads(torch_before)
