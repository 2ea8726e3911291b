"""One digest of an array's values, wherever they live."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .. import _arrays
from .._arrays import Array
from .._backends import choose
from .._errors import BackendError
from ._hashers import HASHERS
from ._portable import FRESH_BLAKE3


def hash_array(array: Any, algorithm: str = "blake3") -> bytes:
    """Digest of an array's values: their bytes in C order, as they lie in memory (little-endian). Nothing is copied.

    Neither shape nor dtype is hashed: arrays of the same bytes have the same digest, which is that of
    ``array.tobytes()``. Equal numbers may differ in bytes: 0.0 and -0.0, one NaN and another, float32 and float64.

    Args:
        array: numpy, torch, cupy or any DLPack producer, C-contiguous, of numbers (bfloat16 and other small floats of
            torch too), booleans, dates or strings of fixed length. Any shape, empty too.
        algorithm: "blake3" or "sha256". On a GPU only "blake3", a tree, has work for all threads.

    Returns:
        32 bytes.

    Raises:
        TypeError: no array, or a dtype whose bytes are no values: objects, structures, extended precision.
        ValueError: an unknown algorithm, or an array that is not contiguous.
        BackendError: the forced backend is missing or cannot reach the array; "sha256" of a CUDA array.
    """
    if algorithm not in [*HASHERS]:
        raise ValueError(f"algorithm is {algorithm!r}, expected {' or '.join(map(repr, HASHERS))}")
    described = _arrays.describe(array, "array")
    _require_plain_values(described)
    _arrays.require_contiguous(described)
    if described.device != "cpu" and algorithm == "sha256":
        raise BackendError(
            f"array lives on {described.device}, but algorithm is 'sha256', which is sequential and runs on the CPU only; "
            "pass algorithm='blake3' or a copy on the CPU"
        )
    kernels = choose([described]).hashing
    values = _flat_bytes(described)
    if described.device == "cpu":
        return HASHERS[algorithm](values).digest()
    state, out = FRESH_BLAKE3.copy(), np.empty(32, np.uint8)
    kernels.blake3_update(state, values, 0)
    kernels.blake3_output(state, out, 0)
    return out.tobytes()


def _require_plain_values(array: Array) -> None:
    if array.library == "torch":
        unfit = array.value.is_quantized
    else:
        dtype = array.value.dtype
        extended = dtype in (np.longdouble, np.clongdouble) and dtype not in (np.float64, np.complex128)
        added = dtype.isbuiltin == 2  # bfloat16 and the like of ml_dtypes
        unfit = extended or not (dtype.kind in "biufcmMSU" or added)
    if unfit:
        raise TypeError(
            f"array has dtype {array.dtype}, expected numbers, booleans, dates or strings of fixed length: "
            "its bytes are not (only) its values"
        )


def _flat_bytes(array: Array) -> Any:
    """A view of the array's memory as uint8 ``[n]``, of the same library; numpy for the CPU."""
    if array.size * array.itemsize == 0:
        return np.empty(0, np.uint8) if array.device == "cpu" else _arrays.empty_like(array, (0,), "uint8").value
    flat = array.value.reshape(-1)
    if array.library != "torch":
        return flat.view(np.uint8)
    tensor = flat.view(sys.modules["torch"].uint8)
    return tensor.numpy() if array.device == "cpu" else tensor
