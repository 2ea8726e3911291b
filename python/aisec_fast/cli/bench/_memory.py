"""Peak memory of a private training step, above the model and its optimizer, beside that of the plain step.

On the CPU it is what torch's allocator has handed out, as its profiler records it: exact and the same each time, where a
process's resident memory tells as much about malloc. What our kernels and numpy take is not in it, some KiB a thread.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from . import _training
from ._kernels import has

if TYPE_CHECKING:
    from rich.console import Console

_MEASURED = "aisec_fast: measured"
_FIRST = 2  # steps before the one that is measured: the first one looks for mixing samples, too


def rows(device: str) -> Iterator[dict[str, Any]]:
    """Bytes for each model: of the plain step, of ours by ``memory=``, and of Opacus's if it is installed."""
    from . import _models

    ways: dict[str, Callable[[Any], Callable[[], object]]] = {
        "plain": _training.plain,
        "fast": _training.private,
        "low": partial(_training.private, memory="low"),
        **({"opacus": _training.opacus} if has("opacus") else {}),
    }
    for name, batch in _training.BATCHES.items():
        found = {way: peak_bytes(make(_models.training(name, batch).to(device)), device) for way, make in ways.items()}
        yield {"model": name, "batch": batch, "device": device, "peak_bytes": found}


def peak_bytes(step: Callable[[], object], device: str = "cpu") -> int:
    """The most that a step has allocated at once; what earlier steps have left counts too."""
    import torch

    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        for _ in range(_FIRST):
            step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(_FIRST):
            step()
        with torch.profiler.record_function(_MEASURED):
            step()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    now = most = 0
    measured = False
    for event in events:
        if event.name() == _MEASURED:
            measured, most = True, now
        elif event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now) if measured else 0
    return most


def show(console: Console, found: list[dict[str, Any]]) -> None:
    """A line for each model."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="privacy: peak memory of a step", title_justify="left")
    shown.add_column("model")
    names = list(found[0]["peak_bytes"]) if found else []
    for heading in ("batch", *(f"{name}, MiB" for name in names), *(f"{name} / plain" for name in names[1:])):
        shown.add_column(heading, justify="right")
    for row in found:
        peaks = row["peak_bytes"]
        mebibytes = (f"{value / 2**20:.1f}" for value in peaks.values())
        ratios = (f"{peaks[name] / peaks['plain']:.2f}" for name in names[1:])
        shown.add_row(row["model"], str(row["batch"]), *mebibytes, *ratios)
    console.print(shown)
