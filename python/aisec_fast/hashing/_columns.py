"""Columns of strings or bytes as records in memory: where each begins and ends. No value is copied that need not be.

Arrow columns of any library come through the Arrow PyCapsule interface, read here with ctypes
(https://arrow.apache.org/docs/format/CDataInterface.html and PyCapsuleInterface.html), so that neither pyarrow nor
another library is imported.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _arrays, _checks
from .._errors import BackendError
from ._hashers import Bytes, as_bytes

Places = npt.NDArray[Any]  # uint32 or int64
Mask = npt.NDArray[np.bool_]

_DLPACK_CPU, _DLPACK_CUDA, _DLPACK_PINNED = 1, 2, 3


class Records(NamedTuple):
    """Record i is ``data[starts[i]:ends[i]]``; of a column with ``codes`` they are values, of which row i has number codes[i].

    ``data`` may span memory that belongs to nobody: only records may be read. The arrays keep their owners alive.
    """

    data: Bytes
    starts: Places
    ends: Places
    valid: Mask | None = None  # which rows are not null; None: all
    codes: npt.NDArray[np.int64] | None = None
    adjoin: bool = False  # each begins where the one before it ends

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.starts if self.codes is None else self.codes)


def records_of(data: Any, offsets: Any) -> list[Records]:
    """The records of a buffer with offsets, or of a column, one entry for each of its chunks."""
    require_host(data, "data")
    if offsets is not None:
        return [_of_offsets(_as_buffer(data), offsets)]
    if isinstance(data, (str, bytes, bytearray, memoryview)):
        raise TypeError(
            f"data is {_checks.kind_of(data)} and offsets is None, expected offsets, or a column of records"
        )
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(data, (pandas.Series, pandas.Index)):
        return _of_pandas(data, pandas)
    if isinstance(data, np.ndarray):
        return [_of_numpy(data)]
    if hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__"):
        _refuse_damaged(data)
        return [_of_arrow(*chunk) for chunk in _chunks(data)]
    if hasattr(data, "__dlpack__"):
        return [_of_numpy(_arrays.as_numpy(_arrays.describe(data, "data")))]
    if isinstance(data, Sequence):
        return [_of_sequence(list(data))]
    raise TypeError(
        f"data is {_checks.kind_of(data)}, expected a buffer with offsets, an Arrow column (pyarrow, polars, ...), "
        "a pandas Series, a numpy array or a sequence of str or bytes"
    )


def require_host(value: Any, name: str) -> None:
    """BackendError for what lives on a GPU."""
    if isinstance(value, np.ndarray):
        return
    if hasattr(
        value, "__dlpack_device__"
    ):  # asked first: torch's other property raises for a tensor that requires grad
        kind, number = map(int, value.__dlpack_device__())
        if kind in (_DLPACK_CPU, _DLPACK_PINNED):
            return
        device = f"cuda:{number}" if kind == _DLPACK_CUDA else f"DLPack device {kind}"
    elif hasattr(value, "__cuda_array_interface__"):
        device = "a CUDA device"
    else:
        return
    raise BackendError(f"{name} lives on {device}, but records are hashed on the CPU: pass a copy there")


# --- Buffers with offsets ---------------------------------------------------------------------------------------------


def _as_buffer(data: Any) -> Bytes:
    if hasattr(data, "__dlpack__") and not isinstance(data, np.ndarray):
        described = _arrays.describe(data, "data")
        _arrays.require_contiguous(described)
        data = _arrays.as_numpy(described)
    return as_bytes(data, "data")


def _of_offsets(data: Bytes, offsets: Any) -> Records:
    require_host(offsets, "offsets")
    if isinstance(offsets, np.ma.MaskedArray):
        raise TypeError("offsets is a masked array, expected a plain one: its mask would be ignored")
    array = np.asarray(offsets)
    if array.dtype.kind not in "iu":
        raise TypeError(f"offsets has dtype {array.dtype}, expected int32, int64 or other integers")
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"offsets has shape {list(array.shape)}, expected [n + 1]")
    if array.dtype.itemsize < 4 or not array.dtype.isnative:
        array = array.astype(np.int64 if array.dtype.itemsize < 8 else array.dtype.newbyteorder("="))
    _check_offsets(array, data.size)
    return _between(data, array)


def _check_offsets(offsets: npt.NDArray[Any], size: int) -> None:
    falls = offsets[1:] < offsets[:-1]
    if falls.any():
        i = int(falls.argmax())
        raise ValueError(f"offsets[{i + 1}] is {offsets[i + 1]}, below offsets[{i}], which is {offsets[i]}")
    if offsets[0] < 0:
        raise ValueError(f"offsets[0] is {offsets[0]}, expected 0 or above")
    if offsets[-1] > size:
        i = int((offsets > size).argmax())
        raise ValueError(f"offsets[{i}] is {offsets[i]}, beyond the {size} bytes of data")


def _between(data: Bytes, offsets: npt.NDArray[Any]) -> Records:
    """Records between offsets that were checked."""
    places = np.require(offsets, requirements=["A", "C"]).view(np.uint32 if offsets.dtype.itemsize == 4 else np.int64)
    return Records(data, places[:-1], places[1:], adjoin=True)


# --- numpy, pandas, sequences -----------------------------------------------------------------------------------------


def _of_numpy(array: npt.NDArray[Any]) -> Records:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("data is a masked array, expected a plain one: its mask would be ignored")
    kind, dtype = array.dtype.kind, array.dtype
    if kind == "u" and dtype.itemsize == 1 and array.ndim == 2:
        return _rows(array, array.shape[1])
    if array.ndim != 1 or not (kind in "SUOT" or (kind == "V" and dtype.names is None and dtype.subdtype is None)):
        raise TypeError(
            f"data is a numpy array of dtype {dtype} and shape {list(array.shape)}, expected offsets with it, or an array "
            "[n] of strings, bytes or objects, or [n, width] of uint8"
        )
    if kind in "OT":
        return _of_sequence(array.tolist())
    if kind == "V":
        return _rows(array, dtype.itemsize)
    if kind == "U":
        try:
            array = np.char.encode(array, "utf-8")
        except UnicodeEncodeError:
            return _of_sequence(array.tolist())  # which names it
    found = _rows(array, array.dtype.itemsize)
    return found._replace(ends=found.starts + np.char.str_len(array).astype(np.int64), adjoin=False)


def _rows(array: npt.NDArray[Any], width: int) -> Records:
    """Records of one width, without gaps."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8) if array.size and width else np.empty(0, np.uint8)
    return _between(data, np.arange(len(array) + 1, dtype=np.int64) * width)


def _of_pandas(column: Any, pandas: Any) -> list[Records]:
    dtype = column.dtype
    if isinstance(dtype, pandas.CategoricalDtype):
        known = dtype.categories
        (values,) = _joined(_of_pandas(known, pandas)) if len(known) else [_of_sequence([])]
        codes = np.asarray(column.cat.codes if hasattr(column, "cat") else column.codes, np.int64)
        return [_coded(values, codes, codes >= 0)]
    if getattr(dtype, "storage", None) == "pyarrow" or type(dtype).__name__ == "ArrowDtype":
        return records_of(column.array.__arrow_array__(), None)
    if dtype == object or isinstance(dtype, pandas.StringDtype):
        return [_of_sequence(column.tolist())]
    raise TypeError(f"data is a pandas {type(column).__name__} of dtype {dtype}, expected strings or bytes")


def _of_sequence(items: list[Any]) -> Records:
    """Records of str and bytes objects, joined."""
    kinds = set(map(type, items))
    valid = None
    if not all(issubclass(kind, (str, bytes, bytearray)) for kind in kinds):
        valid = np.fromiter((not _is_null(item) for item in items), np.bool_, len(items))
        items = [item if present else b"" for item, present in zip(items, valid.tolist(), strict=True)]
        for i, item in enumerate(items):
            if not isinstance(item, (str, bytes, bytearray)):
                raise TypeError(f"data[{i}] is {_checks.kind_of(item)}, expected a str, bytes or null")
        kinds = set(map(type, items))
    if all(issubclass(kind, str) for kind in kinds):
        text = "".join(items)
        if text.isascii():  # a byte for each character
            return _joined_records(text.encode(), items, valid)
    if not all(issubclass(kind, (bytes, bytearray)) for kind in kinds):
        items = [_encoded(item, i) if isinstance(item, str) else item for i, item in enumerate(items)]
    return _joined_records(b"".join(items), items, valid)


def _joined_records(data: bytes, items: list[Any], valid: Mask | None) -> Records:
    offsets = np.zeros(len(items) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, items), np.int64, len(items)), out=offsets[1:])
    return _between(np.frombuffer(data, np.uint8), offsets)._replace(valid=valid)


def _encoded(text: str, i: int) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"data[{i}] is a str that has no UTF-8 form ({error.reason}), expected text or bytes"
        ) from None


def _is_null(item: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return item is None or (isinstance(item, float) and math.isnan(item)) or (pandas is not None and item is pandas.NA)


def _coded(values: Records, codes: npt.NDArray[np.int64], valid: Mask | None) -> Records:
    """Rows that are values of a dictionary. A row that is not valid may have any code."""
    if valid is not None:
        codes = np.where(valid, codes, 0)
    if codes.size and codes.view(np.uint64).max() >= values.rows:  # so is a negative one
        outside = codes.view(np.uint64) >= values.rows
        if valid is not None:
            outside &= valid
        if outside.any():
            i = int(outside.argmax())
            raise ValueError(
                f"data[{i}] is value {codes[i]} of a dictionary of {values.rows}, expected one that is there"
            )
    if values.rows == 0:  # then no row is valid
        empty = np.zeros(len(codes), np.int64)
        return Records(values.data, empty, empty, valid)
    if values.valid is not None:
        valid = values.valid[codes] if valid is None else valid & values.valid[codes]
    if values.codes is not None or values.rows > len(codes):
        if values.codes is not None:
            codes = values.codes[codes]
        return Records(values.data, values.starts[codes], values.ends[codes], valid)
    return values._replace(valid=valid, codes=codes)


def _joined(chunks: list[Records]) -> list[Records]:
    """The chunks of a small column (a dictionary) as one."""
    if len(chunks) == 1:
        return chunks
    parts = [c.data[int(a) : int(b)] for c in chunks for a, b in zip(c.starts, c.ends, strict=True)]
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([part.size for part in parts], out=offsets[1:])
    data = np.concatenate(parts) if parts else np.empty(0, np.uint8)
    valid = [np.ones(c.rows, np.bool_) if c.valid is None else c.valid for c in chunks]
    return [_between(data, offsets)._replace(valid=np.concatenate(valid) if valid else None)]


# --- Arrow ------------------------------------------------------------------------------------------------------------


class _Schema(ctypes.Structure):
    pass


class _Array(ctypes.Structure):
    pass


class _Stream(ctypes.Structure):
    pass


def _releaser(structure: type[ctypes.Structure]) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.POINTER(structure))


_Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_void_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.POINTER(_Schema)),
    ("release", _releaser(_Schema)),
    ("private_data", ctypes.c_void_p),
]
_Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.c_void_p),
    ("dictionary", ctypes.POINTER(_Array)),
    ("release", _releaser(_Array)),
    ("private_data", ctypes.c_void_p),
]
_Stream._fields_ = [
    ("get_schema", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Stream), ctypes.POINTER(_Schema))),
    ("get_next", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Stream), ctypes.POINTER(_Array))),
    ("get_last_error", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.POINTER(_Stream))),
    ("release", _releaser(_Stream)),
    ("private_data", ctypes.c_void_p),
]


class _Owned:
    """A structure that a producer filled for us and that we release."""

    def __init__(self, structure: type[Any]) -> None:
        self.value: Any = structure()

    def __del__(self) -> None:
        if self.value.release:
            self.value.release(ctypes.byref(self.value))


def _pointer(capsule: Any, name: bytes, structure: type[Any]) -> Any:
    """What a capsule holds; it is the capsule's, and released with it."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return structure.from_address(get(capsule, name))


def _chunks(column: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Schema, array and owner of each chunk."""
    if hasattr(column, "__arrow_c_array__"):
        schema, array = column.__arrow_c_array__()
        found = _pointer(schema, b"arrow_schema", _Schema), _pointer(array, b"arrow_array", _Array)
        yield *found, (schema, array)
        return
    capsule = column.__arrow_c_stream__()
    stream = _pointer(capsule, b"arrow_array_stream", _Stream)
    described = _Owned(_Schema)
    _ask(stream, stream.get_schema, described.value)
    while True:
        chunk = _Owned(_Array)
        _ask(stream, stream.get_next, chunk.value)
        if not chunk.value.release:  # the end
            break
        yield described.value, chunk.value, (described, chunk)
    del capsule


def _ask(stream: Any, function: Any, answer: Any) -> None:
    code = function(ctypes.byref(stream), ctypes.byref(answer))
    if code != 0:
        message = stream.get_last_error(ctypes.byref(stream)) or b"no message"
        raise ValueError(f"data cannot be read as Arrow (error {code}: {message.decode(errors='replace')})")


class _Memory:
    """Memory at an address, for np.asarray, which keeps this object and so the owner."""

    def __init__(self, address: int, count: int, dtype: Any, owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "data": (address, True),
            "shape": (count,),
            "typestr": np.dtype(dtype).str,
            "version": 3,
        }


def _memory(address: int | None, count: int, dtype: Any, owner: Any) -> npt.NDArray[Any]:
    if not address or count <= 0:
        return np.empty(0, dtype)
    return np.asarray(_Memory(address, count, dtype, owner))


def _refuse_damaged(column: Any) -> None:
    """ValueError for a column of pyarrow that leaves its buffers, as one from a stranger's file may: it checks none of them.

    The interface does not tell how large buffers are. This takes a microsecond; what it leaves out, offsets in the
    middle and indexes of dictionaries, is checked here.
    """
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None and isinstance(column, (pyarrow.Array, pyarrow.ChunkedArray)):
        try:
            column.validate()
        except ValueError as error:
            raise ValueError(f"data is a damaged Arrow column: {error}") from None


# What indexes of dictionaries are, by format.
_INDEXES = {b"c": "i1", b"C": "u1", b"s": "i2", b"S": "u2", b"i": "i4", b"I": "u4", b"l": "i8", b"L": "u8"}


def _of_arrow(schema: Any, array: Any, owner: Any) -> Records:
    rows, first = int(array.length), int(array.offset)
    valid = _valid(array, first, rows, owner)
    layout: bytes = schema.format
    buffers = [array.buffers[i] for i in range(array.n_buffers)]
    if schema.dictionary and layout in _INDEXES:
        index = _memory(buffers[1], first + rows, _INDEXES[layout], owner)[first:]
        values = _of_arrow(schema.dictionary.contents, array.dictionary.contents, owner)
        return _coded(values, index.astype(np.int64), valid)
    if layout == b"n":  # nulls alone
        nothing = np.zeros(rows, np.int64)
        return Records(np.empty(0, np.uint8), nothing, nothing, np.zeros(rows, np.bool_))
    if layout in (b"u", b"z", b"U", b"Z"):
        wide = layout in (b"U", b"Z")
        offsets = _memory(buffers[1], first + rows + 1, np.int64 if wide else np.int32, owner)[first:]
        if offsets.size == 0:  # an empty array may have no offsets at all
            offsets = np.zeros(1, np.int64)
        _check_offsets(offsets, int(offsets[-1]))
        found = _between(_memory(buffers[2], int(offsets[-1]), np.uint8, owner), offsets)
    elif layout.startswith(b"w:"):
        width = int(layout[2:])
        data = _memory(buffers[1], (first + rows) * width, np.uint8, owner)
        found = _between(data, np.arange(first, first + rows + 1, dtype=np.int64) * width)
    elif layout in (b"vu", b"vz"):
        found = _of_views(buffers, first, rows, valid, owner)
    elif layout == b"+s":  # a struct, or a whole table
        raise TypeError("data is an Arrow table or a column of structs, expected one column of strings or binary")
    else:
        raise TypeError(
            f"data is an Arrow column of format {layout.decode(errors='replace')!r}, expected strings or binary: "
            "utf8, binary, their large and view forms, fixed-size binary, or dictionaries of these"
        )
    return found._replace(valid=valid)


def _valid(array: Any, first: int, rows: int, owner: Any) -> Mask | None:
    if array.null_count == 0 or array.n_buffers == 0 or not array.buffers[0]:
        return None
    bits = _memory(array.buffers[0], (first + rows + 7) // 8, np.uint8, owner)[first // 8 :]
    valid: Mask = np.unpackbits(bits, bitorder="little")[first % 8 :][:rows].view(np.bool_)
    return None if valid.all() else valid


def _of_views(buffers: list[int | None], first: int, rows: int, valid: Mask | None, owner: Any) -> Records:
    """Views of 16 bytes: a length, and the bytes themselves if they are at most 12, else four of them, a buffer, a place."""
    views = _memory(buffers[1], 4 * (first + rows), np.int32, owner).reshape(-1, 4)[first:]
    if rows == 0:
        return Records(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64))
    sizes = views[:, 0].astype(np.int64)
    inside = sizes <= 12
    if valid is not None:  # what the view of a null says is undefined
        sizes, inside = np.where(valid, sizes, 0), inside | ~valid
    addresses = np.array([address or 0 for address in buffers[2:-1]] or [0], np.int64)
    lengths = _memory(buffers[-1], addresses.size, np.int64, owner) if len(buffers) > 3 else np.zeros(1, np.int64)
    number, place = views[:, 2], views[:, 3].astype(np.int64)
    mixed = bool(inside.any())
    if mixed:
        number, place = np.where(inside, 0, number), np.where(inside, 0, place)
    damaged = sizes.min() < 0 or place.min() < 0 or number.min() < 0 or number.max() >= addresses.size
    if not damaged and _largest_sum(place, sizes) > lengths.min():  # perhaps
        damaged = bool(((place + sizes > lengths[number]) & ~inside).any())
    if damaged:
        raise ValueError(
            "data is an Arrow column whose views are damaged: a negative length or place, one that leaves its buffer, or "
            "a buffer too many"
        )
    starts = place + (addresses[0] if addresses.size == 1 else addresses[number])
    if mixed:
        home = int(buffers[1] or 0) + 16 * first + 4
        starts = np.where(inside, home + 16 * np.arange(rows, dtype=np.int64), starts)
    base = int(starts.min())
    starts -= base
    ends = starts + sizes
    return Records(_memory(base, int(ends.max()), np.uint8, owner), starts, ends)


def _largest_sum(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> int:
    """The maximum of a + b, whose sums stay in cache."""
    step = 1 << 15
    return max(int((a[i : i + step] + b[i : i + step]).max()) for i in range(0, len(a), step))
