"""Contenders in turns, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Name = TypeVar("Name")


def interleaved(calls: Mapping[Name, Callable[[], Any]], rounds: int) -> dict[Name, list[float]]:
    """Seconds of every call in every round."""
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(0.02)  # threads of the one before wait actively for a while
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds
