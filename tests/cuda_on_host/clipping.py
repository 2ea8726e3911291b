"""The clipping functions of `_core`, by the CUDA kernels on the CPU."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import build
from ._call import Array, call, dtype_number, output, pointer


class Gradients(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_ssize_t), ("columns", ctypes.c_size_t)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("rows", ctypes.c_size_t),
        ("count", ctypes.c_size_t),
        ("arrays", ctypes.POINTER(Gradients)),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    loaded = build.library("clipping")
    loaded.set_processors.argtypes = (ctypes.c_uint, ctypes.c_uint, ctypes.c_int)
    loaded.set_processors.restype = ctypes.c_uint
    return loaded


def norms(grads: Sequence[Array], norms: Array, order: int = 0) -> None:
    call(library(), "norms", _batch(grads), _per_row(grads, norms), order=order)


def weighted_sum(grads: Sequence[Array], weights: Array, outs: Sequence[Array], order: int = 0) -> None:
    arguments = [_batch(grads), _per_row(grads, weights), _sums(grads, outs)]
    call(library(), "weighted_sum", *arguments, order=order)


def clip_and_sum(grads: Sequence[Array], max_norm: float, outs: Sequence[Array], norms: Array, order: int = 0) -> None:
    arguments = [_batch(grads), ctypes.c_double(max_norm), _sums(grads, outs), _per_row(grads, norms)]
    call(library(), "clip_and_sum", *arguments, order=order)


@contextmanager
def processors(count: int, most_blocks: int = 2**32 - 1, architecture: int = 90) -> Iterator[Callable[[], int]]:
    """A GPU of so many processors, which holds no more than `most_blocks` blocks that wait for one another, and
    kernels built for an `architecture`.

    Gives a function that counts launches of such blocks.
    """
    launches = library().set_processors(count, most_blocks, architecture)
    try:
        yield lambda: int(library().set_processors(count, most_blocks, architecture)) - launches
    finally:
        library().set_processors(1, 2**32 - 1, 90)


def lattice_sum(
    grads: Sequence[Array],
    max_norm: float,
    granularity: float,
    limit: int,
    outs: Sequence[Array],
    norms: Array,
    order: int = 0,
) -> None:
    numbers = [ctypes.c_double(max_norm), ctypes.c_double(granularity), ctypes.c_int64(limit)]
    arguments = [_batch(grads), *numbers, _pointers(grads, outs, np.int64), _per_row(grads, norms)]
    call(library(), "lattice_sum", *arguments, order=order)


def _batch(grads: Sequence[Array]) -> Any:
    arrays = []
    for grad in grads:
        assert grad.dtype == grads[0].dtype
        assert len(grad) == len(grads[0])
        assert grad[:1].flags.c_contiguous
        arrays.append(Gradients(grad.ctypes.data, grad.strides[0] // grad.itemsize, _columns(grad)))
    return ctypes.byref(Batch(dtype_number(grads[0]), len(grads[0]), len(grads), (Gradients * len(grads))(*arrays)))


def _columns(grad: Array) -> int:
    return int(np.prod(grad.shape[1:], dtype=np.int64))


def _per_row(grads: Sequence[Array], values: Array) -> ctypes.c_void_p:
    assert values.dtype == np.float64
    assert values.shape == (len(grads[0]),)
    assert values.flags.c_contiguous
    return pointer(values)


def _sums(grads: Sequence[Array], outs: Sequence[Array]) -> Any:
    return _pointers(grads, outs, np.float64 if grads[0].dtype == np.float64 else np.float32)


def _pointers(grads: Sequence[Array], outs: Sequence[Array], dtype: type[Any]) -> Any:
    assert [out.size for out in outs] == [_columns(grad) for grad in grads]
    return (ctypes.c_void_p * len(outs))(*(output(out, dtype).value for out in outs))
