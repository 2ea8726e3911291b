"""The clipping contract (docs/clipping.md) in NumPy: float64 operations in the stated order, nothing else.

`grads` is a list of arrays [B, ...]: float32, float64, or bfloat16 given as its bits in uint16. A row is one sample's
values in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Grads: TypeAlias = Sequence[NDArray[Any]]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

BLOCK, PARTIALS = 1024, 16
SHRINK = 1 - 2.0**-30  # keeps a row that was scaled to max_norm below it after rounding
LEAST_FACTOR = 2.0**-1000  # a smaller quotient may have lost bits: subnormal, up to twice the true one


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the values of bfloat16 bit patterns: they are the upper halves of float32's."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _matrix(grad: NDArray[Any]) -> Floats:
    """Return grad as float64 [B, D]."""
    values = from_bfloat16(grad) if grad.dtype == np.uint16 else grad
    return values.reshape(grad.shape[0], math.prod(grad.shape[1:])).astype(np.float64)


def _sums(values: Floats) -> Floats:
    """Return the sums along the last axis, in the order of the contract."""
    count = values.shape[-1]
    turns = -(-count // PARTIALS)
    padded = np.zeros((*values.shape[:-1], turns * PARTIALS))
    padded[..., :count] = values
    terms = padded.reshape(*values.shape[:-1], turns, PARTIALS)
    partial = np.zeros((*values.shape[:-1], PARTIALS))
    for j in range(turns):
        partial += terms[..., j, :]
    for half in (8, 4, 2, 1):
        partial = partial[..., :half] + partial[..., half:]
    return partial[..., 0]


def block_sums(matrix: Floats) -> Floats:
    """Return the sums of blocks of 1024 values of each row, [B, blocks]."""
    rows, columns = matrix.shape
    blocks = -(-columns // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK))
    padded[:, :columns] = matrix
    return _sums(padded.reshape(rows, blocks, BLOCK))


def _row_totals(matrices: Sequence[Floats], scale: float) -> Floats:
    total = np.zeros(matrices[0].shape[0])
    for matrix in matrices:
        scaled = matrix * scale
        total += _sums(block_sums(scaled * scaled))
    return total


def row_norms(grads: Grads) -> Floats:
    """Return the L2 norm of every row, float64 [B]."""
    matrices = [_matrix(grad) for grad in grads]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        total = _row_totals(matrices, 1.0)
        norms = np.sqrt(total)
        if grads[0].dtype == np.float64:  # squares of narrower types neither overflow nor vanish
            for again, scale in ((np.isposinf(total), 2.0**-600), (total < 2.0**-900, 2.0**600)):
                norms[again] = np.sqrt(_row_totals(matrices, scale)[again]) / scale
    return norms


def factors(norms: Floats, max_norm: float) -> Floats:
    """Return the clip factors [B]; 0 stands for a row that is left out: norm not finite, or factor below 2^-1000."""
    with np.errstate(all="ignore"):
        factor = max_norm / norms
        clipped = np.where(np.isfinite(norms) & (factor >= LEAST_FACTOR), factor, 0.0)
        return np.where(norms <= max_norm, 1.0, clipped)


def lattice_factors(norms: Floats, max_norm: float, granularity: float) -> Floats:
    """Return F [B], what a row is multiplied by on its way to the lattice; 0 stands for a row that is left out."""
    factor: Floats = factors(norms, max_norm) * SHRINK / granularity
    return np.where(factor >= LEAST_FACTOR, factor, 0.0)


def weighted_sum(grad: NDArray[Any], weights: Floats) -> Floats:
    """Return sum_i weights[i] * row i, float64 [D], added in row order; a row of weight 0 is never read."""
    matrix = _matrix(grad)
    total = np.zeros(matrix.shape[1])
    for weight, row in zip(weights, matrix, strict=True):
        if weight != 0:
            total += weight * row
    return total


def clip_and_sum(grads: Grads, max_norm: float) -> tuple[list[NDArray[Any]], Floats]:
    """Return the sums [D] of the clipped rows (float64 for float64 input, else float32), and the norms [B]."""
    norms = row_norms(grads)
    weights = factors(norms, max_norm)
    dtype = np.float64 if grads[0].dtype == np.float64 else np.float32
    with np.errstate(over="ignore", under="ignore"):
        return [weighted_sum(grad, weights).astype(dtype) for grad in grads], norms


def lattice_rows(grads: Grads, max_norm: float, granularity: float) -> tuple[list[Integers], Floats]:
    """Return each row's clipped integers t, int64 [B, D] for each array, and the norms [B].

    Rows that do not count (norm not finite, or integers longer than max_norm / granularity) are zero.
    """
    norms = row_norms(grads)
    scales = lattice_factors(norms, max_norm, granularity)
    limit = math.floor((Fraction(max_norm) / Fraction(granularity)) ** 2)
    matrices = [_matrix(grad) for grad in grads]
    integers = [np.zeros(matrix.shape, np.int64) for matrix in matrices]
    for i in np.flatnonzero(np.isfinite(norms)):
        rows = [[int(value) for value in matrix[i] * scales[i]] for matrix in matrices]
        if sum(t * t for row in rows for t in row) <= limit:
            for target, row in zip(integers, rows, strict=True):
                target[i] = row
    return integers, norms


def lattice_sum(grads: Grads, max_norm: float, granularity: float) -> tuple[list[Integers], Floats]:
    """Return the integers q, int64 [D] for each array, whose noisy version `private_sum` publishes; and the norms."""
    integers, norms = lattice_rows(grads, max_norm, granularity)
    return [t.sum(axis=0) for t in integers], norms
