"""The block sum of docs/clipping.md: its order is the same in every family that adds squares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aisec_fast._numba._kernel import inlined

BLOCK, PARTIALS = 1024, 16


@inlined
def sum_of_block(x: NDArray[np.float64]) -> np.float64:
    """The sum of x [BLOCK] in the contract's order: 16 partial sums, then halves.

    Partial sums with names stay in registers; in an array LLVM would store and reload them at every step.
    """
    p0 = p1 = p2 = p3 = p4 = p5 = p6 = p7 = np.float64(0.0)
    q0 = q1 = q2 = q3 = q4 = q5 = q6 = q7 = np.float64(0.0)
    for i in range(0, BLOCK, PARTIALS):
        p0, p1, p2, p3 = p0 + x[i], p1 + x[i + 1], p2 + x[i + 2], p3 + x[i + 3]
        p4, p5, p6, p7 = p4 + x[i + 4], p5 + x[i + 5], p6 + x[i + 6], p7 + x[i + 7]
        q0, q1, q2, q3 = q0 + x[i + 8], q1 + x[i + 9], q2 + x[i + 10], q3 + x[i + 11]
        q4, q5, q6, q7 = q4 + x[i + 12], q5 + x[i + 13], q6 + x[i + 14], q7 + x[i + 15]
    even = ((p0 + q0) + (p4 + q4)) + ((p2 + q2) + (p6 + q6))
    odd = ((p1 + q1) + (p5 + q5)) + ((p3 + q3) + (p7 + q7))
    return np.float64(even + odd)


@inlined
def fold(partials: NDArray[np.float64]) -> np.float64:
    """The sum of [16] partial sums, by halves. They are not needed any more."""
    half = PARTIALS // 2
    while half > 0:
        for k in range(half):
            partials[k] += partials[k + half]
        half //= 2
    return np.float64(partials[0])
