"""The ghost kernels for Numba. docs/ghost.md is the contract. Everything is added in float64: straightforward loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aisec_fast._numba._kernel import inlined, kernel
from aisec_fast._numba._parallel import parallel_for, quiet, thread_count

F32: TypeAlias = np.float32
F64: TypeAlias = np.float64
Single: TypeAlias = NDArray[np.float32]
Floats: TypeAlias = NDArray[np.float64]
Pair: TypeAlias = Sequence[int]

PRODUCTS_A_THREAD = 1 << 17  # below this a thread costs more than it saves


# --- Kernels ----------------------------------------------------------------------------------------------------------


@inlined
def _add_gram(planes: Floats, gram: Floats) -> None:
    """gram[s, t] += sum over i of planes[i, s] * planes[i, t], s <= t."""
    for i in range(planes.shape[0]):
        plane = planes[i]
        for s in range(plane.size):
            value, row = plane[s], gram[s]
            for t in range(s, plane.size):
                row[t] += value * plane[t]


@inlined
def _square_and_length(a: Floats, g: Floats) -> tuple[F64, F64]:
    """Sum over s, t of a[s, t] * g[s, t], and over t of the root of a[t, t] * g[t, t], from upper triangles."""
    square, length = F64(0.0), F64(0.0)
    for s in range(a.shape[0]):
        square += a[s, s] * g[s, s]
        length += F64(math.sqrt(a[s, s])) * F64(math.sqrt(g[s, s]))
        part = F64(0.0)
        for t in range(s + 1, a.shape[0]):
            part += a[s, t] * g[s, t]
        square += F64(2.0) * part
    return square, length


@kernel
def _gram_squares(inputs: Single, outputs: Single, begin: int, end: int, squares: Floats, bounds: Floats) -> None:
    length, d, p = inputs.shape[1], inputs.shape[2], outputs.shape[2]
    planes, gradients = np.empty((d, length), F64), np.empty((p, length), F64)
    a, g = np.empty((length, length), F64), np.empty((length, length), F64)
    for b in range(begin, end):
        for t in range(length):
            for i in range(d):
                planes[i, t] = inputs[b, t, i]
            for i in range(p):
                gradients[i, t] = outputs[b, t, i]
        a[:] = F64(0.0)
        g[:] = F64(0.0)
        _add_gram(planes, a)
        _add_gram(gradients, g)
        squares[b], bounds[b] = _square_and_length(a, g)


@inlined
def _unfold(x: Single, geometry: NDArray[np.int64], rows: int, columns: int, patches: Floats) -> None:
    """patches[tap, position] of x [channels, H, W]; geometry = kernel, stride, before, dilation, each rows and columns."""
    tap = 0
    for channel in range(x.shape[0]):
        for kr in range(geometry[0]):
            for kc in range(geometry[1]):
                for i in range(rows):
                    row = i * geometry[2] + kr * geometry[6] - geometry[4]
                    for j in range(columns):
                        column = j * geometry[3] + kc * geometry[7] - geometry[5]
                        inside = 0 <= row < x.shape[1] and 0 <= column < x.shape[2]
                        patches[tap, i * columns + j] = F64(x[channel, row, column]) if inside else F64(0.0)
                tap += 1


@kernel
def _conv_gram(
    x: Single,
    g: Single,
    geometry: NDArray[np.int64],
    groups: int,
    begin: int,
    end: int,
    squares: Floats,
    bounds: Floats,
) -> None:
    channels, outputs, columns = x.shape[1] // groups, g.shape[1] // groups, g.shape[3]
    positions = g.shape[2] * columns
    patches = np.empty((channels * geometry[0] * geometry[1], positions), F64)
    gradients = np.empty((outputs, positions), F64)
    a, b = np.empty((positions, positions), F64), np.empty((positions, positions), F64)
    for sample in range(begin, end):
        square, bound = F64(0.0), F64(0.0)
        for group in range(groups):
            _unfold(x[sample, group * channels : (group + 1) * channels], geometry, g.shape[2], columns, patches)
            for p in range(outputs):
                for t in range(positions):
                    gradients[p, t] = g[sample, group * outputs + p, t // columns, t % columns]
            a[:] = F64(0.0)
            b[:] = F64(0.0)
            _add_gram(patches, a)
            _add_gram(gradients, b)
            part, length = _square_and_length(a, b)
            square += part
            bound += length * length
        squares[sample], bounds[sample] = square, F64(math.sqrt(bound))


@kernel
def _conv_rows(
    x: Single,
    g: Single,
    geometry: NDArray[np.int64],
    groups: int,
    begin: int,
    end: int,
    rows: Single,
    squares: Floats,
    bounds: Floats,
) -> None:
    """rows [B, outputs, taps]."""
    channels, outputs, columns = x.shape[1] // groups, g.shape[1] // groups, g.shape[3]
    positions = g.shape[2] * columns
    patches = np.empty((rows.shape[2], positions), F64)
    by_position = np.empty((positions, rows.shape[2]), F64)
    lengths, total = np.empty(positions, F64), np.empty(rows.shape[2], F64)
    for sample in range(begin, end):
        square, bound = F64(0.0), F64(0.0)
        for group in range(groups):
            _unfold(x[sample, group * channels : (group + 1) * channels], geometry, g.shape[2], columns, patches)
            for t in range(positions):
                patch, wanted = F64(0.0), F64(0.0)
                for tap in range(total.size):
                    by_position[t, tap] = patches[tap, t]
                    patch += patches[tap, t] * patches[tap, t]
                for p in range(outputs):
                    value = F64(g[sample, group * outputs + p, t // columns, t % columns])
                    wanted += value * value
                lengths[t] = F64(math.sqrt(patch)) * F64(math.sqrt(wanted))
            length = F64(0.0)
            for t in range(positions):
                length += lengths[t]
            bound += length * length
            for p in range(group * outputs, (group + 1) * outputs):
                total[:] = F64(0.0)
                for t in range(positions):
                    value, patch_row = F64(g[sample, p, t // columns, t % columns]), by_position[t]
                    for tap in range(total.size):
                        total[tap] += value * patch_row[tap]
                for tap in range(total.size):
                    rounded = F32(total[tap])
                    rows[sample, p, tap] = rounded
                    square += F64(rounded) * F64(rounded)
        squares[sample], bounds[sample] = square, F64(math.sqrt(bound))


# --- The backend's interface ------------------------------------------------------------------------------------------


def _threads(products: int) -> int:
    return max(1, min(thread_count(), products // PRODUCTS_A_THREAD))


@quiet
def _finish(squares: Floats, bounds: Floats, terms: int) -> None:
    """Bounds rounded up, max(|v|, 2^-50) for every length; both infinite where either is not finite."""
    bounds *= 1.0 + (terms + 16.0) * 2.0**-52
    bad = ~(np.isfinite(squares) & np.isfinite(bounds))
    squares[bad] = bounds[bad] = np.inf


def gram_squares(inputs: Single, outputs: Single, squares: Floats, bounds: Floats) -> None:
    """squares, bounds, float64 [B], of sum_t g_t a_t^T for inputs a [B, T, d] and outputs g [B, T, p]."""
    batch, length, d = inputs.shape

    def work(begin: int, end: int) -> None:
        _gram_squares(inputs, outputs, begin, end, squares, bounds)

    parallel_for(batch, _threads(batch * length * length * (d + outputs.shape[2])), work)
    _finish(squares, bounds, length + d + outputs.shape[2])


def _geometry(kernel: Pair, stride: Pair, before: Pair, dilation: Pair) -> NDArray[np.int64]:
    return np.array([*kernel, *stride, *before, *dilation], np.int64)


def conv_gram_squares(
    activation: Single,
    gradient: Single,
    kernel: Pair,
    stride: Pair,
    before: Pair,
    dilation: Pair,
    groups: int,
    squares: Floats,
    bounds: Floats,
) -> None:
    """squares, bounds, float64 [B], of the weight gradients of activation [B, C, H, W] and gradient [B, P, Ho, Wo]."""
    geometry = _geometry(kernel, stride, before, dilation)

    def work(begin: int, end: int) -> None:
        _conv_gram(activation, gradient, geometry, groups, begin, end, squares, bounds)

    terms = activation.shape[1] * math.prod(kernel) + math.prod(gradient.shape[1:])
    parallel_for(len(activation), _threads(gradient.size * terms), work)
    _finish(squares, bounds, terms)


def conv_rows(
    activation: Single,
    gradient: Single,
    kernel: Pair,
    stride: Pair,
    before: Pair,
    dilation: Pair,
    groups: int,
    rows: Single,
    squares: Floats,
    bounds: Floats,
) -> None:
    """rows, float32 [B, P, C / groups, kernel...], the weight gradients; squares, bounds as in conv_gram_squares.

    Empty bounds are not wanted.
    """
    bounds = bounds if bounds.size else np.empty_like(squares)
    geometry = _geometry(kernel, stride, before, dilation)
    flat: NDArray[Any] = rows.reshape(rows.shape[0], rows.shape[1], math.prod(rows.shape[2:]))

    def work(begin: int, end: int) -> None:
        _conv_rows(activation, gradient, geometry, groups, begin, end, flat, squares, bounds)

    parallel_for(len(activation), _threads(rows.size * math.prod(gradient.shape[2:])), work)
    _finish(squares, bounds, math.prod(flat.shape[1:]) + math.prod(gradient.shape[1:]))
