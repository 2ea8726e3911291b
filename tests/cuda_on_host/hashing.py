"""The BLAKE3 functions of `_core`, by the CUDA kernels on the CPU. There is no SHA-256: one stream has no parallel part."""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from . import build
from ._call import Array, call, output, pointer


@functools.cache
def library() -> ctypes.CDLL:
    return build.library("hashing")


def blake3_update(state: Array, data: Array, max_threads: int, order: int = 0) -> None:
    assert data.dtype == np.uint8
    assert data.ndim == 1
    assert data.flags.c_contiguous
    arguments = [_state(state), pointer(data), ctypes.c_size_t(data.size)]
    call(library(), "blake3_update", *arguments, order=order)


def blake3_output(state: Array, out: Array, seek: int, order: int = 0) -> None:
    arguments = [_state(state), output(out, np.uint8), ctypes.c_size_t(out.size), ctypes.c_uint64(seek)]
    call(library(), "blake3_output", *arguments, order=order)


def _state(state: Array) -> ctypes.c_void_p:
    assert state.shape == (700,)
    return output(state, np.uint32)
