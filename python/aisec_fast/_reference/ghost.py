"""The ghost contract (docs/ghost.md) in float64: every per-sample gradient formed from its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Pair: TypeAlias = Sequence[int]


def gradients(inputs: NDArray[Any], outputs: NDArray[Any]) -> Floats:
    """Return sum_t g_t a_t^T for inputs a [B, T, d] and outputs g [B, T, p]: float64 [B, p, d]."""
    return np.asarray(outputs.astype(np.float64).swapaxes(1, 2) @ inputs.astype(np.float64))


def absolute(inputs: NDArray[Any], outputs: NDArray[Any]) -> Floats:
    """Return sum_t |a_t| |g_t|: float64 [B]."""
    lengths = [np.linalg.norm(values.astype(np.float64), axis=2) for values in (inputs, outputs)]
    return np.asarray((lengths[0] * lengths[1]).sum(axis=1))


def patches(
    activation: NDArray[Any], out_size: Pair, kernel: Pair, stride: Pair, before: Pair, dilation: Pair
) -> Floats:
    """Return what each output position reads of x [B, C, H, W]: float64 [B, C, kernel..., positions]; zeros outside."""
    batch, channels, height, width = activation.shape
    found = np.zeros((batch, channels, *kernel, *out_size))
    for kr, kc, i, j in np.ndindex(*kernel, *out_size):
        row = i * stride[0] + kr * dilation[0] - before[0]
        column = j * stride[1] + kc * dilation[1] - before[1]
        if 0 <= row < height and 0 <= column < width:
            found[:, :, kr, kc, i, j] = activation[:, :, row, column]
    return found.reshape(batch, channels, *kernel, out_size[0] * out_size[1])


def conv_gradients(
    activation: NDArray[Any],
    gradient: NDArray[Any],
    kernel: Pair,
    stride: Pair,
    before: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[Floats, Floats]:
    """Return each sample's weight gradient [B, P, C / groups, kernel...] and its bound A [B].

    A^2 = sum over groups of (sum_t |patch_t| |g_t|)^2.
    """
    batch, outputs = gradient.shape[:2]
    read = patches(activation, gradient.shape[2:], kernel, stride, before, dilation)
    read = read.reshape(batch, groups, activation.shape[1] // groups, *kernel, read.shape[-1])
    wanted = gradient.astype(np.float64).reshape(batch, groups, outputs // groups, read.shape[-1])
    flat = read.reshape(batch, groups, math.prod(read.shape[2:5]), read.shape[-1])
    rows = (wanted @ flat.swapaxes(2, 3)).reshape(batch, outputs, read.shape[2], *kernel)
    lengths = np.sqrt((read**2).sum(axis=(2, 3, 4))) * np.sqrt((wanted**2).sum(axis=2))
    return rows, np.sqrt((lengths.sum(axis=2) ** 2).sum(axis=1))


def squares(rows: Floats) -> Floats:
    """Return the squared norm of each sample's gradient [B, ...]: float64 [B]."""
    return np.asarray((rows.reshape(rows.shape[0], math.prod(rows.shape[1:])) ** 2).sum(axis=1))
