"""Clipping on a GPU beside one plain read of the same memory, and beside torch's norms and product.

    python benchmarks/evidence/gpu_clipping.py        seconds of one GPU

Each call lies between two CUDA events, medians of 15 calls; the read is ``torch.max``, the other way torch's ``vector_norm``
and a product with the factors (two reads, sums in float32 in no fixed order). Percentages are of the read's time.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import record
import torch

from aisec_fast import clipping

SHAPES = ((256, 1_200_000), (256, 1_048_576), (512, 400_000), (1024, 100_000), (4096, 20_000), (256, 2_000_000))


def microseconds(call: Callable[[], Any], rounds: int = 15) -> float:
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return statistics.median(times)


def measured(rows: int, columns: int) -> dict[str, Any]:
    grads = torch.randn(rows, columns, device="cuda")
    out = torch.empty(columns, device="cuda")

    def by_torch() -> torch.Tensor:
        return (1.0 / torch.linalg.vector_norm(grads, dim=1)).clamp(max=1.0) @ grads

    read = microseconds(grads.max)
    return {
        "shape": [rows, columns],
        "read_us": round(read),
        "clip_and_sum": round(100 * read / microseconds(lambda: clipping.clip_and_sum(grads, 1.0, out=out))),
        "torch": round(100 * read / microseconds(by_torch)),
    }


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU")
        return 2
    start, rows = time.perf_counter(), []
    for shape in SHAPES:
        rows.append(measured(*shape))
        print(rows[-1], flush=True)
    print(f"wrote {record.write('gpu-clipping', {'percent_of_read': rows}, time.perf_counter() - start)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
