"""The ghost functions of `_core`, by the CUDA kernels on the CPU."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence

import numpy as np

from . import build
from ._call import Array, call, output, pointer

Pair = Sequence[int]
SIZE = ctypes.c_size_t


@functools.cache
def library() -> ctypes.CDLL:
    return build.library("ghost")


def _input(array: Array, dimensions: int) -> ctypes.c_void_p:
    assert array.dtype == np.float32
    assert array.ndim == dimensions
    assert array.flags.c_contiguous
    return pointer(array)


def _norms(batch: int, squares: Array, bounds: Array) -> list[ctypes.c_void_p]:
    assert squares.shape == bounds.shape == (batch,)
    return [output(squares, np.float64), output(bounds, np.float64)]


def gram_squares(inputs: Array, outputs: Array, squares: Array, bounds: Array, order: int = 0) -> None:
    assert inputs.shape[:2] == outputs.shape[:2]
    shape = (SIZE * 3)(inputs.shape[1], inputs.shape[2], outputs.shape[2])
    arrays = (_input(inputs, 3), _input(outputs, 3), *_norms(len(inputs), squares, bounds))
    call(library(), "gram_squares", shape, SIZE(len(inputs)), *arrays, order=order)


def _conv(
    activation: Array, gradient: Array, kernel: Pair, stride: Pair, before: Pair, dilation: Pair, groups: int
) -> list[object]:
    assert len(activation) == len(gradient)
    sizes = [*activation.shape[1:], *gradient.shape[1:], *kernel, *stride, *before, *dilation, groups]
    return [(SIZE * 15)(*sizes), SIZE(len(activation)), _input(activation, 4), _input(gradient, 4)]


def conv_gram_squares(
    activation: Array,
    gradient: Array,
    kernel: Pair,
    stride: Pair,
    before: Pair,
    dilation: Pair,
    groups: int,
    squares: Array,
    bounds: Array,
    order: int = 0,
) -> None:
    arguments = _conv(activation, gradient, kernel, stride, before, dilation, groups)
    call(library(), "conv_gram_squares", *arguments, *_norms(len(activation), squares, bounds), order=order)


def conv_rows(
    activation: Array,
    gradient: Array,
    kernel: Pair,
    stride: Pair,
    before: Pair,
    dilation: Pair,
    groups: int,
    rows: Array,
    squares: Array,
    bounds: Array,
    order: int = 0,
) -> None:
    arguments = _conv(activation, gradient, kernel, stride, before, dilation, groups)
    batch, channels = activation.shape[:2]
    assert rows.size == batch * gradient.shape[1] * (channels // groups) * math.prod(kernel)
    norms = _norms(batch, squares, bounds if bounds.size else squares)
    arrays = (output(rows, np.float32), norms[0], norms[1] if bounds.size else ctypes.c_void_p())
    call(library(), "conv_rows", *arguments, *arrays, order=order)
