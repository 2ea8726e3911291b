"""Moving data to a GPU and back, apart from any computing: what decides from which size on a GPU is worth it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

import aisec_fast

from ._floors import memory
from ._kernels import on_gpu, same_bits, to_numpy
from ._measure import Case, Contender, FloorPart


def cases(sizes: list[int]) -> Iterator[Case]:
    """There and back, for each size of float32; none without a CUDA device."""
    if aisec_fast.info()["cuda"]["devices"] > 0:
        for size in sizes:
            yield Case("transfer", "transfer", (size,), "float32", 1, size, 8, partial(_prepare, size))


def _prepare(size: int) -> tuple[list[Contender], list[FloorPart]]:
    values = np.random.default_rng(0).random(size, dtype=np.float32)
    check = same_bits(values)

    def there_and_back() -> object:
        device = on_gpu(values)
        return None if device is None else to_numpy(device[0])

    # Pageable memory, as users have it; the floor is one pass over it on the host.
    return [Contender("cuda", there_and_back, lambda: check(to_numpy(there_and_back())))], memory(values, updates=1)
