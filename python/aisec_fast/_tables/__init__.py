"""Tables that are data, not code. docs/noise.md section 4 defines quantiles.bin and says how it is made."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_LAWS = ("gaussian", "laplace")


@cache
def quantiles(law: str) -> NDArray[np.float64]:
    """The table of "gaussian" or "laplace": float64 [2050 rows, 4 numbers], read-only."""
    stored = Path(__file__).with_name("quantiles.bin").read_bytes()
    tables = np.frombuffer(stored, "<f8").reshape(len(_LAWS), -1, 4).astype(np.float64)
    tables.flags.writeable = False
    table: NDArray[np.float64] = tables[_LAWS.index(law)]
    return table
