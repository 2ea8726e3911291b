"""Arrays that say they are on a GPU, in the two ways that `_cuda` reads: DLPack's method and its C exchange API."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CUDA = 2  # DLPack's device type
KINDS = {"i": 0, "u": 1, "f": 2}
TENSOR_NAME, API_NAME = b"dltensor", b"dlpack_exchange_api"  # kept: a capsule holds only a pointer to its name


class Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class ExchangeApi(ctypes.Structure):
    """DLPackExchangeAPI: of its functions only the two that `_cuda` calls."""

    _fields_ = [
        ("version", ctypes.c_uint32 * 2),
        ("previous", ctypes.c_void_p),
        ("unused", ctypes.c_void_p * 3),
        ("tensor_from_object", ctypes.c_void_p),
        ("current_stream", ctypes.c_void_p),
    ]


def capsule(pointer: Any, name: bytes) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.cast(pointer, ctypes.c_void_p), name, None)


class Plain:
    """A numpy array, said to be on a GPU. Remembers the stream that its consumer named."""

    def __init__(self, array: np.ndarray, device: int = 0) -> None:
        self.array, self.device, self.stream_named = array, device, None
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self.strides = (ctypes.c_int64 * array.ndim)(*(stride // array.itemsize for stride in array.strides))

    def tensor(self) -> Tensor:
        kind, bits = KINDS[self.array.dtype.kind], 8 * self.array.itemsize
        place = (ctypes.c_int32 * 2)(CUDA, self.device)
        return Tensor(self.array.ctypes.data, place, self.array.ndim, kind, bits, 1, self.shape, self.strides, 0)

    def __dlpack__(self, *, stream: int | None = None) -> Any:  # from before DLPack 1.0: no max_version
        self.stream_named = stream
        self.managed = Managed(self.tensor(), None, None)
        return capsule(ctypes.pointer(self.managed), TENSOR_NAME)


class Exchanging(Plain):
    """The same, with a current stream that it tells through the C exchange API, as torch does."""

    stream = 0x1230


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(Tensor))
def _tensor_from_object(array: Exchanging, out: Any) -> int:
    out[0] = array.tensor()
    return 0


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))
def _current_stream(_kind: int, _device: int, out: Any) -> int:
    out[0] = Exchanging.stream
    return 0


_api = ExchangeApi(
    (ctypes.c_uint32 * 2)(1, 3),
    None,
    (ctypes.c_void_p * 3)(),
    ctypes.cast(_tensor_from_object, ctypes.c_void_p),
    ctypes.cast(_current_stream, ctypes.c_void_p),
)
Exchanging.__dlpack_c_exchange_api__ = capsule(ctypes.pointer(_api), API_NAME)


def exchange_api_on_gpu(tensor_type: Any) -> Any:
    """The C exchange API of torch's tensors, but that all are said to be on GPU 0, on the stream of ``Exchanging``.

    The capsule and what it needs: the caller keeps it.
    """
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    own = ExchangeApi.from_address(pointer(tensor_type.__dlpack_c_exchange_api__, API_NAME))
    export = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(Tensor))(own.tensor_from_object)

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(Tensor))
    def tensor_from_object(tensor: Any, out: Any) -> int:
        result = int(export(tensor, out))
        out[0].device[0] = CUDA
        return result

    functions = (ctypes.cast(tensor_from_object, ctypes.c_void_p), ctypes.cast(_current_stream, ctypes.c_void_p))
    api = ExchangeApi((ctypes.c_uint32 * 2)(1, 3), None, (ctypes.c_void_p * 3)(), *functions)
    return capsule(ctypes.pointer(api), API_NAME), (api, tensor_from_object)
