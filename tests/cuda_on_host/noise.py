"""The noise functions of `_core`, by the CUDA kernels on the CPU."""

from __future__ import annotations

import ctypes
import functools
import struct

import numpy as np

from . import build
from ._call import Array, call, dtype_number, output, pointer


class NoiseCall(ctypes.Structure):
    _fields_ = [
        ("key", ctypes.c_uint32 * 8),
        ("scale", ctypes.c_double),
        ("granularity", ctypes.c_double),
        ("generator", ctypes.c_uint32),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    return build.library("noise")


def _call_of(scale: float, granularity: float, key: bytes, generator: str) -> NoiseCall:
    if generator != "chacha":
        raise ValueError(f"generator is {generator!r}, expected 'chacha'")
    words = (ctypes.c_uint32 * 8)(*struct.unpack("<8I", key))
    return NoiseCall(words, scale, granularity, 0)


def noise_call(sigma: float, granularity: float, key: bytes, generator: str) -> NoiseCall:
    if not 1.0 <= sigma / granularity <= 2.0**40:
        raise ValueError(f"sigma / granularity is {sigma / granularity}, expected 1 to 2^40")
    return _call_of(sigma / granularity, granularity, key, generator)


def _noise_call(sigma: float, granularity: float, key: bytes, generator: str) -> ctypes.c_void_p:
    return ctypes.byref(noise_call(sigma, granularity, key, generator))


def add_gaussian(
    x: Array, out: Array, sigma: float, granularity: float, key: bytes, generator: str = "chacha", order: int = 0
) -> None:
    result = output(out, out.dtype if x.dtype == np.int64 else x.dtype)
    arguments = [dtype_number(x), pointer(x), dtype_number(out), result, ctypes.c_size_t(x.size)]
    call(library(), "add_gaussian", *arguments, _noise_call(sigma, granularity, key, generator), order=order)


def add_laplace(
    x: Array, out: Array, scale: float, granularity: float, key: bytes, generator: str = "chacha", order: int = 0
) -> None:
    arguments = [dtype_number(x), pointer(x), output(out, x.dtype), ctypes.c_size_t(x.size)]
    call(library(), "add_laplace", *arguments, _noise_call(scale, granularity, key, generator), order=order)


def _add_float(law: int, x: Array, out: Array, scale: float, key: bytes, generator: str, order: int) -> None:
    arguments = [ctypes.c_int(law), dtype_number(x), pointer(x), output(out, x.dtype), ctypes.c_size_t(x.size)]
    call(library(), "add_float", *arguments, ctypes.byref(_call_of(scale, 1.0, key, generator)), order=order)


def add_float_gaussian(
    x: Array, out: Array, sigma: float, key: bytes, generator: str = "chacha", order: int = 0
) -> None:
    _add_float(0, x, out, sigma, key, generator, order)


def add_float_laplace(
    x: Array, out: Array, scale: float, key: bytes, generator: str = "chacha", order: int = 0
) -> None:
    _add_float(1, x, out, scale, key, generator, order)


def random_words(out: Array, key: bytes, domain: int, generator: str = "chacha", order: int = 0) -> None:
    arguments = [
        output(out, np.uint64),
        ctypes.c_size_t(out.size),
        _noise_call(1.0, 1.0, key, generator),
        ctypes.c_uint32(domain),
    ]
    call(library(), "random_words", *arguments, order=order)


def first_unfit(x: Array, granularity: float, order: int = 0) -> int:
    first = ctypes.c_size_t()
    arguments = [dtype_number(x), pointer(x), ctypes.c_size_t(x.size), ctypes.c_double(granularity)]
    call(library(), "first_unfit", *arguments, ctypes.byref(first), order=order)
    return -1 if first.value == x.size else first.value
