"""Loops that do nothing but move memory: what no kernel of the same traffic can beat on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

import aisec_fast

from ._measure import FloorPart

Array = npt.NDArray[Any]


def memory(values: Array, *, reads: float = 0.0, updates: float = 0.0, writes: float = 0.0) -> list[FloorPart]:
    """The floor of an operation that reads ``reads`` arrays like ``values``, reads and writes ``updates``, and writes ``writes``."""
    if values.itemsize == 1:
        values = values.reshape(-1).view(np.int32)  # bytes, four at a time
    parts = []
    if reads:
        parts.append(FloorPart([_split(values, lambda part: part.max()), *_torch(values, "max")], reads))
    if updates:
        data = values.copy()
        parts.append(
            FloorPart([_split(data, lambda part: np.negative(part, out=part)), *_torch(data, "neg_")], updates)
        )
    if writes:
        blank = values.copy()
        parts.append(FloorPart([_split(blank, lambda part: part.fill(0)), *_torch(blank, "zero_")], writes))
    return parts


def device_memory(
    values: Any, finish: Callable[[], object], *, reads: float = 0.0, updates: float = 0.0
) -> list[FloorPart]:
    """The same on a GPU; ``values`` is a torch or cupy array there."""
    if values.itemsize == 1:
        values = values.reshape(-1).view(sys.modules["torch"].int32 if hasattr(values, "clone") else np.int32)
    parts = []
    if reads:
        parts.append(FloorPart([values.max], reads, "cuda", finish))
    if updates:
        data = values.clone() if hasattr(values, "clone") else values.copy()
        negate = data.neg_ if hasattr(data, "neg_") else lambda: np.negative(data, out=data)
        parts.append(FloorPart([negate], updates, "cuda", finish))
    return parts


def _split(values: Array, piece: Callable[[Array], object]) -> Callable[[], object]:
    """``piece`` on as many threads as our kernels use; integers, whose minimum and negation know no special values."""
    flat = values.reshape(-1)
    threads = aisec_fast.get_num_threads()
    parts = np.array_split(
        flat.view(np.int32) if flat.itemsize == 4 else flat.view(np.int64) if flat.itemsize == 8 else flat, threads
    )
    if threads == 1:
        return lambda: piece(parts[0])
    pool = ThreadPoolExecutor(threads - 1)  # ends with the last reference to it

    def run() -> None:
        others = [pool.submit(piece, part) for part in parts[1:]]
        piece(parts[0])
        for other in others:
            other.result()

    return run


def _torch(values: Array, method: str) -> list[Callable[[], object]]:
    torch = sys.modules.get("torch")
    return [getattr(torch.from_numpy(values.reshape(-1)), method)] if torch is not None else []
