"""Clipping kernels for Numba. docs/clipping.md is the contract: it fixes the order of every floating-point addition.

Gradients are read once from memory: a block of rows gives its norms and, while it is still in cache, its share of the
sum. Both steps are split over threads by columns, which leaves the order of the additions of one column as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from aisec_fast._numba._block_sum import BLOCK, PARTIALS, fold, sum_of_block
from aisec_fast._numba._kernel import inlined, kernel
from aisec_fast._numba._parallel import parallel_for, quiet, thread_count
from aisec_fast._reference.clipping import factors, lattice_factors

U32: TypeAlias = np.uint32
U64: TypeAlias = np.uint64
I64: TypeAlias = np.int64
F64: TypeAlias = np.float64
Grads: TypeAlias = Sequence[NDArray[Any]]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

TILE = 2048  # columns: their float64 sums stay in the first-level cache while rows pass by
CACHE_BYTES = 8 << 20  # rows handled at a time ...
FEWEST_ROWS = 16  # ... but not fewer than these: reading rows twice then costs less than reading the sums so often
ELEMENTS_A_THREAD = 1 << 15  # below this a thread costs more than it saves

LOW_32 = U64(2**32 - 1)
LARGEST_INTEGER = F64(3e9)  # above every integer that can count (2^31), and its square fits into 63 bits
TWO_52, ROUNDER, ROUNDER_BITS = F64(2.0**52), F64(1.5 * 2.0**52), I64(0x4338000000000000)


class _Matrix(NamedTuple):
    """An array [B, ...] as rows in flat memory: row i is values[first + i * stride :][:columns]."""

    values: NDArray[Any]
    first: int
    stride: int
    rows: int
    columns: int


def _matrix(grad: NDArray[Any]) -> _Matrix:
    rows, columns = grad.shape[0], math.prod(grad.shape[1:])
    if grad.flags.c_contiguous:
        return _Matrix(grad.reshape(-1), 0, columns, rows, columns)
    # A strided array would cost the kernels their vector loads; contiguous rows any distance apart need not.
    stride = grad.strides[0] // grad.itemsize
    span = (rows - 1) * abs(stride) + columns
    values = as_strided(grad[:1] if stride >= 0 else grad[-1:], (span,), (grad.itemsize,))
    return _Matrix(values, 0 if stride >= 0 else span - columns, stride, rows, columns)


# --- Kernels ----------------------------------------------------------------------------------------------------------


@inlined
def _widen(value: Any) -> F64:
    """The value in float64; uint16 is a bfloat16's bits."""
    if isinstance(value, np.uint16):
        return F64(U32(U32(value) << U32(16)).view(np.float32))
    return F64(value)


@kernel
def _block_sums(
    values: NDArray[Any], first: int, stride: int, columns: int, scale: F64, begin: int, end: int, sums: Floats
) -> None:
    """sums[row, block] = sum of squares of scale * values, for row * blocks + block = begin, ..., end - 1."""
    squares = np.empty(BLOCK, F64)
    blocks = sums.shape[1]
    for unit in range(begin, end):
        row, block = unit // blocks, unit % blocks
        start = first + row * stride + block * BLOCK
        part = values[start : start + min(BLOCK, columns - block * BLOCK)]
        for i in range(part.size):
            value = _widen(part[i]) * scale
            squares[i] = value * value
        squares[part.size :] = F64(0.0)
        sums[row, block] = sum_of_block(squares)


@kernel
def _add_block_sums(sums: Floats, totals: Floats) -> None:
    """totals = sums of each row, in the order of a block's values."""
    partials = np.empty(PARTIALS, F64)
    for row in range(sums.shape[0]):
        partials[:] = F64(0.0)
        for block in range(sums.shape[1]):
            partials[block % PARTIALS] += sums[row, block]
        totals[row] = fold(partials)


@kernel
def _add_rows(
    values: NDArray[Any], first: int, stride: int, weights: Floats, begin: int, end: int, total: Floats
) -> None:
    """Columns begin, ..., end - 1 of total += weights[0] * row 0 + weights[1] * row 1 + ..., in this order."""
    for tile in range(begin, end, TILE):
        stop = min(tile + TILE, end)
        sums = total[tile:stop]
        for row in range(weights.size):
            weight = weights[row]
            if weight != 0:
                start = first + row * stride
                part = values[start + tile : start + stop]
                for c in range(sums.size):
                    sums[c] += weight * _widen(part[c])


@kernel
def _add_lattice_rows(
    values: NDArray[Any],
    first: int,
    stride: int,
    scales: Floats,
    sign: I64,
    begin: int,
    end: int,
    total: Integers,
    squares: NDArray[U64],
) -> None:
    """Columns begin, ..., end - 1 of total += sign * (t of row 0 + t of row 1 + ...), t = trunc(scales[row] * value).

    Adds the squares of t to squares[row]: their upper halves to squares[row, 0], their lower ones to squares[row, 1].
    So neither sum can wrap, whatever the values are.
    """
    for tile in range(begin, end, TILE):
        stop = min(tile + TILE, end)
        sums = total[tile:stop]
        for row in range(scales.size):
            scale = scales[row]
            if scale != 0:
                start = first + row * stride
                part = values[start + tile : start + stop]
                high, low = U64(0), U64(0)
                for c in range(sums.size):
                    t = np.trunc(_widen(part[c]) * scale)
                    t = min(max(t, -LARGEST_INTEGER), LARGEST_INTEGER)
                    # Conversions by bit patterns: AVX2 has no instruction for float64 -> int64.
                    sums[c] += sign * I64(F64(t + ROUNDER).view(I64) - ROUNDER_BITS)
                    magnitude = U64(F64(abs(t) + TWO_52).view(U64) & LOW_32)
                    square = U64(magnitude * magnitude)
                    high += U64(square >> U64(32))
                    low += U64(square & LOW_32)
                squares[row, 0] += high
                squares[row, 1] += low


# --- Steps ------------------------------------------------------------------------------------------------------------


def _threads(elements: int) -> int:
    return max(1, min(thread_count(), elements // ELEMENTS_A_THREAD))


def _over_columns(matrix: _Matrix, rows: int, task: Callable[[int, int], object]) -> None:
    """Call task(begin, end) on ranges of columns, on all threads."""
    tiles = -(-matrix.columns // BLOCK)

    def work(begin: int, end: int) -> None:
        task(begin * BLOCK, min(end * BLOCK, matrix.columns))

    parallel_for(tiles, _threads(rows * matrix.columns), work)


def _row_blocks(matrices: Sequence[_Matrix]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive rows that fit into the cache."""
    row_bytes = sum(matrix.columns * matrix.values.itemsize for matrix in matrices)
    step = max(FEWEST_ROWS, CACHE_BYTES // max(1, row_bytes))
    rows = matrices[0].rows
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _array_totals(matrix: _Matrix, start: int, stop: int, scale: float) -> Floats:
    """Return one array's sums of squares of scale * values, for rows start, ..., stop - 1."""
    values, first, stride, _, columns = matrix
    first += start * stride
    sums = np.empty((stop - start, -(-columns // BLOCK)))

    def work(begin: int, end: int) -> None:
        _block_sums(values, first, stride, columns, F64(scale), begin, end, sums)

    parallel_for(sums.size, _threads((stop - start) * columns), work)
    totals = np.empty(stop - start)
    _add_block_sums(sums, totals)
    return totals


def _row_totals(matrices: Sequence[_Matrix], start: int, stop: int, scale: float) -> Floats:
    totals = np.zeros(stop - start)
    for matrix in matrices:
        totals += _array_totals(matrix, start, stop, scale)
    return totals


@quiet
def _norms(matrices: Sequence[_Matrix], start: int, stop: int) -> Floats:
    """Return the norms of rows start, ..., stop - 1."""
    totals = _row_totals(matrices, start, stop, 1.0)
    norms: Floats = np.sqrt(totals)
    if matrices[0].values.dtype == np.float64:  # squares of narrower types neither overflow nor vanish
        for row in np.flatnonzero(np.isposinf(totals) | (totals < 2.0**-900)).tolist():
            scale = 2.0**-600 if totals[row] > 1 else 2.0**600
            norms[row] = np.sqrt(_row_totals(matrices, start + row, start + row + 1, scale)[0]) / scale
    return norms


def _add_weighted(matrix: _Matrix, weights: Floats, start: int, total: Floats) -> None:
    """total [D] += sum_i weights[i] * row start + i."""
    values, first, stride, _, _ = matrix
    first += start * stride

    def work(begin: int, end: int) -> None:
        _add_rows(values, first, stride, weights, begin, end, total)

    _over_columns(matrix, weights.size, work)


def _add_lattice(matrix: _Matrix, scales: Floats, start: int, total: Integers, sign: int = 1) -> NDArray[U64]:
    """total [D] += sign * sum_i (t of row start + i); return sum t^2 as [rows, 2]: upper and lower halves."""
    values, first, stride, _, _ = matrix
    first += start * stride
    parts: list[NDArray[U64]] = []

    def work(begin: int, end: int) -> None:
        squares = np.zeros((scales.size, 2), U64)
        _add_lattice_rows(values, first, stride, scales, I64(sign), begin, end, total, squares)
        parts.append(squares)

    _over_columns(matrix, scales.size, work)
    return sum(parts, np.zeros((scales.size, 2), U64))


def _exceeds(squares: NDArray[U64], limit: int) -> NDArray[np.bool_]:
    """Whether each row's 2^32 squares[row, 0] + squares[row, 1] > limit, which is at most 2^62."""
    high = squares[:, 0] + (squares[:, 1] >> U64(32))
    low = squares[:, 1] & LOW_32
    limit_high, limit_low = U64(limit >> 32), U64(limit & (2**32 - 1))
    exceeds: NDArray[np.bool_] = (high > limit_high) | ((high == limit_high) & (low > limit_low))
    return exceeds


@quiet
def _round_once(totals: Sequence[Floats], outs: Sequence[NDArray[Any]]) -> None:
    for total, out in zip(totals, outs, strict=True):
        out.reshape(-1)[:] = total


# --- The backend's interface ------------------------------------------------------------------------------------------


def norms(grads: Grads, norms: Floats) -> None:
    """norms, float64 [B], = L2 norms of the rows of grads, a list of arrays [B, ...]."""
    matrices = [_matrix(grad) for grad in grads]
    for start, stop in _row_blocks(matrices):
        norms[start:stop] = _norms(matrices, start, stop)


def weighted_sum(grads: Grads, weights: Floats, outs: Sequence[NDArray[Any]]) -> None:
    """outs, one [D] for each array, = sum_i weights[i] * row i; rows of weight 0 are not read. Weights are finite."""
    matrices = [_matrix(grad) for grad in grads]
    totals = [np.zeros(matrix.columns) for matrix in matrices]
    for matrix, total in zip(matrices, totals, strict=True):
        _add_weighted(matrix, weights, 0, total)
    _round_once(totals, outs)


def clip_and_sum(grads: Grads, max_norm: float, outs: Sequence[NDArray[Any]], norms: Floats) -> None:
    """outs, one [D] for each array, = sums of the rows clipped to max_norm; norms, float64 [B], = their norms before."""
    matrices = [_matrix(grad) for grad in grads]
    totals = [np.zeros(matrix.columns) for matrix in matrices]
    for start, stop in _row_blocks(matrices):
        norms[start:stop] = _norms(matrices, start, stop)
        weights = factors(norms[start:stop], max_norm)
        for matrix, total in zip(matrices, totals, strict=True):
            _add_weighted(matrix, weights, start, total)
    _round_once(totals, outs)


def lattice_sum(
    grads: Grads, max_norm: float, granularity: float, limit: int, outs: Sequence[Integers], norms: Floats
) -> None:
    """outs, one int64 [D] for each array, = sums of the rows clipped to max_norm and truncated to the lattice.

    limit: floor((max_norm / granularity)^2), what the sum of squares of a row's integers must not exceed; norms as in
    `clip_and_sum`.
    """
    matrices = [_matrix(grad) for grad in grads]
    totals = [out.reshape(-1) for out in outs]
    for total in totals:
        total[:] = 0
    for start, stop in _row_blocks(matrices):
        norms[start:stop] = _norms(matrices, start, stop)
        scales = lattice_factors(norms[start:stop], max_norm, granularity)
        pairs = list(zip(matrices, totals, strict=True))
        squares = sum((_add_lattice(m, scales, start, total) for m, total in pairs), np.zeros((scales.size, 2), U64))
        too_long = _exceeds(squares, limit)
        if too_long.any():  # never, for sane input: take these rows' integers out again, which is exact
            for matrix, total in pairs:
                _add_lattice(matrix, np.where(too_long, scales, 0.0), start, total, -1)
