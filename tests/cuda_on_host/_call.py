"""What the families share: dtypes as numbers, pointers, errors."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# enum DType of aisec_fast/kernels.hpp; bfloat16 comes as uint16.
DTYPES = {"float32": 0, "float64": 1, "uint16": 2, "int64": 3, "uint64": 4, "uint8": 5, "uint32": 6}


def dtype_number(array: Array) -> int:
    return DTYPES[array.dtype.name]


def pointer(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def output(array: Array, dtype: np.dtype[Any] | type[Any]) -> ctypes.c_void_p:
    """Return the pointer of an array that will be written without any further check."""
    assert array.dtype == dtype, (array.dtype, dtype)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    return pointer(array)


def call(library: ctypes.CDLL, function: str, *arguments: Any, order: int = 0) -> None:
    """Call a C function that returns an error message or NULL. `order` is the order in which threads take turns."""
    library.set_order(ctypes.c_uint(order))
    entry = library[function]
    entry.restype = ctypes.c_char_p
    message = entry(*arguments)
    if message is not None:
        raise RuntimeError(message.decode())
