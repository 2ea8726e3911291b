"""Columns of every kind as records: each value as its UTF-8 or its bytes, nulls as the caller wants, no library imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import blake3
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import aisec_fast
from aisec_fast.hashing import _columns, hash_records

VALUES = ["", "a", "hello", "ünïcödé", "x" * 12, "y" * 13, "z" * 1000, "né", "end", "hello", ""]
BYTES = [value.encode() for value in VALUES]
WITH_NULLS = [None if i in (1, 4, 8) else value for i, value in enumerate(VALUES)]


def digests(values: Any) -> bytes:
    """Row by row; a null is zeros."""
    parts = []
    for value in values:
        encoded = value.encode() if isinstance(value, str) else value
        parts.append(bytes(32) if value is None else blake3.blake3(encoded).digest())
    return b"".join(parts)


def arrow(kind: pa.DataType) -> Callable[[list[Any]], Any]:
    return lambda values: pa.array(values, pa.string()).cast(kind)


def chunked(kind: pa.DataType) -> Callable[[list[Any]], Any]:
    def make(values: list[Any]) -> Any:
        whole = arrow(kind)(values)
        return pa.chunked_array([whole[:3], whole[3:3], whole[3:]])

    return make


def series(dtype: Any) -> Callable[[list[Any]], Any]:
    return lambda values: pd.Series(values, dtype=dtype)


ARROW = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view(), pa.binary_view()]
COLUMNS: dict[str, Callable[[list[Any]], Any]] = {
    **{f"pyarrow {kind}": arrow(kind) for kind in ARROW},
    **{f"pyarrow chunks of {kind}": chunked(kind) for kind in ARROW},
    "pyarrow dictionary": lambda values: pa.array(values, pa.string()).dictionary_encode(),
    "pyarrow dictionary of bytes": lambda values: pa.array(values, pa.string()).cast(pa.binary()).dictionary_encode(),
    "pyarrow dictionary of views": lambda values: pa.DictionaryArray.from_arrays(
        pa.array(range(len(values)), pa.uint8()), pa.array(values, pa.string_view())
    ),
    "polars": lambda values: pl.Series(values, dtype=pl.String),
    "polars binary": lambda values: pl.Series(values, dtype=pl.String).cast(pl.Binary),
    "polars categorical": lambda values: pl.Series(values, dtype=pl.Categorical),
    "polars chunks": lambda values: pl.concat([pl.Series(values[:4], dtype=pl.String), pl.Series(values[4:], dtype=pl.String)], rechunk=False),
    "pandas object": series(object),
    "pandas str": series("str"),
    "pandas string": series("string"),
    "pandas string of Python": series("string[python]"),
    "pandas string of pyarrow": series("string[pyarrow]"),
    "pandas ArrowDtype": series(pd.ArrowDtype(pa.string())),
    "pandas large ArrowDtype": series(pd.ArrowDtype(pa.large_string())),
    "pandas category": series("category"),
    "pandas Index": pd.Index,
    "list": list,
    "tuple": tuple,
    "numpy objects": lambda values: np.array(values, object),
}  # fmt: skip


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_a_column(make: Callable[[list[Any]], Any]) -> None:
    assert hash_records(make(VALUES)).tobytes() == digests(VALUES)
    assert hash_records(make(VALUES)[2:9]).tobytes() == digests(VALUES[2:9])  # Arrow's offset is not 0
    assert hash_records(make(VALUES)[2:2]).shape == (0, 32)


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_nulls(make: Callable[[list[Any]], Any]) -> None:
    with pytest.raises(ValueError, match=r"data\[1\] is null, and 3 of all are; expected none, or nulls='zero'"):
        hash_records(make(WITH_NULLS))
    assert hash_records(make(WITH_NULLS), nulls="zero").tobytes() == digests(WITH_NULLS)
    assert hash_records(make(WITH_NULLS)[2:9], nulls="zero").tobytes() == digests(WITH_NULLS[2:9])
    assert hash_records(make(WITH_NULLS)[2:4]).tobytes() == digests(WITH_NULLS[2:4])  # the nulls lie elsewhere
    assert hash_records(make([None, None]), nulls="zero").tobytes() == bytes(64)


def test_a_null_is_no_empty_string() -> None:
    found = hash_records(["", None], nulls="zero")
    assert found[0].any()
    assert not found[1].any()


def test_a_null_in_a_dictionary() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1, 2], pa.int8()), pa.array(["a", None, "b"]))
    assert hash_records(column, nulls="zero").tobytes() == digests(["a", None, None, None, "b"])


def test_a_dictionary_larger_than_its_column() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([5, 2], pa.int64()), pa.array(VALUES))
    assert hash_records(column).tobytes() == digests([VALUES[5], VALUES[2]])


def test_a_column_of_no_chunks() -> None:
    assert hash_records(pa.chunked_array([], pa.string()), digest_size=7).shape == (0, 7)


def test_nulls_alone() -> None:
    assert hash_records(pa.nulls(3), nulls="zero").tobytes() == bytes(96)
    assert hash_records(pl.Series([None, None]), nulls="zero").tobytes() == bytes(64)
    with pytest.raises(ValueError, match=r"data\[0\] is null, and 3 of all"):
        hash_records(pa.nulls(3))


def test_nulls_of_every_kind_in_objects() -> None:
    items = ["a", None, float("nan"), pd.NA, np.float64("nan"), b"b"]
    assert hash_records(items, nulls="zero").tobytes() == digests(["a", None, None, None, None, "b"])


def test_fixed_size_binary() -> None:
    column = pa.array([b"abc", b"de\0", None, b"ghi"], pa.binary(3))
    assert hash_records(column[1:], nulls="zero").tobytes() == digests([b"de\0", None, b"ghi"])


def test_numpy_of_fixed_width() -> None:
    """Trailing NULs are padding in S and U, as everywhere in numpy, and bytes in V and uint8."""
    arrays = [np.array(BYTES), np.array(VALUES), np.array(BYTES)[::2][::-1]]
    if hasattr(np.dtypes, "StringDType"):  # numpy 2
        arrays.append(np.array(VALUES, np.dtypes.StringDType()))
    for values in arrays:
        assert hash_records(values).tobytes() == digests(values.tolist())
    assert hash_records(np.array([b"a\0", b"a\0b"])).tobytes() == digests([b"a", b"a\0b"])
    rows = np.frombuffer(b"ab\0cd\0", np.uint8).reshape(2, 3)
    for values in (rows, rows.view("V3")[:, 0], np.asfortranarray(rows), torch.from_numpy(rows.copy())):
        assert hash_records(values).tobytes() == digests([b"ab\0", b"cd\0"])
    assert hash_records(np.empty((3, 0), np.uint8)).tobytes() == digests([b""] * 3)
    assert hash_records(np.array([], "S5")).shape == (0, 32)


def test_str_and_bytes_mix() -> None:
    items = ["ü", "ü".encode(), bytearray(b"x"), np.str_("y"), np.bytes_(b"z")]
    assert hash_records(items).tobytes() == digests(["ü", "ü", "x", "y", "z"])
    assert hash_records([]).shape == (0, 32)


def test_any_producer_of_arrow() -> None:
    """Whoever speaks the PyCapsule interface, by the array or by the stream."""

    class Producer:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getattr__(self, name: str) -> Any:
            if name != self.name:
                raise AttributeError(name)
            column: Any = pa.array(VALUES)
            return getattr(column if "array" in name else pa.chunked_array([column]), name)

    for name in ("__arrow_c_array__", "__arrow_c_stream__"):
        assert hash_records(Producer(name)).tobytes() == digests(VALUES)


def test_a_stream_that_fails() -> None:
    def batches() -> Any:
        yield pa.record_batch({"a": ["x"]})
        raise OSError("the disk is gone")

    reader = pa.RecordBatchReader.from_batches(pa.schema({"a": pa.string()}), batches())
    with pytest.raises((ValueError, TypeError), match="data"):
        hash_records(reader)


def test_what_a_producer_lends_is_given_back() -> None:
    before = pa.total_allocated_bytes()
    for column in (
        pa.array(VALUES * 1000),
        pa.chunked_array([VALUES * 1000]),
        pa.array(VALUES * 1000, pa.string_view()),
    ):
        hash_records(column)
    del column
    assert pa.total_allocated_bytes() == before


def test_the_memory_outlives_its_column() -> None:
    (records,) = _columns.records_of(pa.array(VALUES * 100), None)
    pa.array(["other"] * 10000)
    assert records.data[int(records.starts[6]) : int(records.ends[6])].tobytes() == b"z" * 1000


def test_many_views_in_many_buffers() -> None:
    values = [f"{'long ' * (i % 7)}{i}" for i in range(3000)]
    column = pa.concat_arrays([pa.array(values[i : i + 500], pa.string_view()) for i in range(0, 3000, 500)])
    assert hash_records(column).tobytes() == digests(values)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (pa.array([1, 2]), TypeError, "an Arrow column of format 'l', expected strings or binary"),
        (pa.array([["a"]]), TypeError, r"format '\+l'"),
        (pa.table({"a": ["x"]}), TypeError, "an Arrow table or a column of structs, expected one column"),
        (pl.DataFrame({"a": ["x"]}), TypeError, "an Arrow table or a column of structs, expected one"),
        (pl.Series([1.5]), TypeError, "format 'g'"),
        (pd.Series([1, 2]), TypeError, "a pandas Series of dtype int64, expected strings or bytes"),
        (pd.Series([1, 2], dtype="category"), TypeError, "dtype int64"),
        (pd.Series(["a", 1], dtype=object), TypeError, r"data\[1\] is an int, expected a str, bytes or null"),
        (["a", 1.5], TypeError, r"data\[1\] is a float"),
        ([b"a", memoryview(b"b")], TypeError, r"data\[1\] is a memoryview"),
        (["a", "\ud800"], ValueError, r"data\[1\] is a str that has no UTF-8 form"),
        (np.array(["a", "\ud800"]), ValueError, r"data\[1\] is a str that has no UTF-8 form"),
        ("abc", TypeError, "data is a str and offsets is None, expected offsets"),
        (b"abc", TypeError, "data is a bytes and offsets is None"),
        (np.zeros(3, np.uint8), TypeError, r"dtype uint8 and shape \[3\], expected offsets with it"),
        (np.zeros((2, 2)), TypeError, "dtype float64"),
        (np.zeros(2, [("a", "S3")]), TypeError, "expected offsets with it"),
        (np.array([["a"]]), TypeError, "expected offsets with it"),
        (np.ma.array(["a"]), TypeError, "data is a masked array"),
        ({"a": 1}, TypeError, "data is a dict"),
        (iter(["a"]), TypeError, "data is a list_iterator"),
        (None, TypeError, "data is a NoneType"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_column(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hash_records(data)


def test_what_lies_under_a_null_is_not_looked_at() -> None:
    """Arrow leaves it undefined: here a view into a buffer that is not there, and an index beyond the dictionary."""
    first_only = pa.py_buffer(b"\1")
    views = np.array([[3, int.from_bytes(b"abc", "little"), 0, 0], [50, 0, 9, 2**30]], np.int32)
    column = pa.Array.from_buffers(pa.string_view(), 2, [first_only, pa.py_buffer(views)])
    assert hash_records(column, nulls="zero").tobytes() == digests(["abc", None])
    codes = pa.Array.from_buffers(pa.int32(), 2, [first_only, pa.py_buffer(np.array([0, 2**30], np.int32))])
    column = pa.DictionaryArray.from_arrays(codes, pa.array(["abc", None, "x"]), safe=False)
    assert hash_records(column, nulls="zero").tobytes() == digests(["abc", None])


def test_damaged_columns() -> None:
    falling = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 5, 3], np.int32)), pa.py_buffer(b"abcdef")]
    )
    with pytest.raises(ValueError, match=r"offsets\[2\] is 3, below"):
        hash_records(falling)
    view = np.array([[20, 0, 7, 0]], np.int32)  # buffer 7 of one
    with pytest.raises(ValueError, match="views are damaged"):
        hash_records(pa.Array.from_buffers(pa.string_view(), 1, [None, pa.py_buffer(view), pa.py_buffer(b"a" * 20)]))


def of_views(views: list[list[int]], buffers: list[bytes]) -> pa.Array:
    parts = [pa.py_buffer(np.array(views, np.int32)), *map(pa.py_buffer, buffers)]
    return pa.Array.from_buffers(pa.string_view(), len(views), [None, *parts])


@pytest.mark.parametrize(
    ("size", "buffer", "place"),
    [(1 << 30, 0, 0), (20, 0, 1), (20, 0, 2**31 - 1), (20, 1, 11), (31, 1, 0), (-1, 0, 0), (20, -1, 0), (20, 2, 0)],
)
def test_a_view_that_leaves_its_buffer_is_refused(size: int, buffer: int, place: int) -> None:
    """Else whatever lies behind it would be hashed, or the process end."""
    good = [[3, int.from_bytes(b"abc", "little"), 0, 0], [20, 0, 0, 0], [30, 0, 1, 0]]
    buffers = [b"a" * 20, b"b" * 30]
    assert hash_records(of_views(good, buffers)).tobytes() == digests(["abc", "a" * 20, "b" * 30])
    for column in (of_views([*good, [size, 0, buffer, place]], buffers), of_views([[size, 0, buffer, place]], buffers)):
        with pytest.raises(ValueError, match="views are damaged"):
            hash_records(column)


def test_a_view_into_no_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="views are damaged"):
        hash_records(of_views([[20, 0, 0, 0]], []))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_binary()], ids=str)
@pytest.mark.parametrize("chunks", [False, True])
def test_offsets_that_leave_the_buffer_of_a_file_from_a_stranger_are_refused(kind: pa.DataType, chunks: bool) -> None:
    """pyarrow takes them as they come."""
    column = pa.array([b"abc", b"defgh"], pa.binary()).cast(kind)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema({"a": kind})) as stream:
        stream.write(pa.record_batch({"a": column}))
    width = np.int32 if kind == pa.string() else np.int64
    good, damaged = (np.array([0, 3, last], width).tobytes() for last in (8, 2_000_000_000))
    sent = sink.getvalue().to_pybytes()
    assert sent.count(good) == 1
    found = pa.ipc.open_stream(sent.replace(good, damaged)).read_all()["a"]
    with pytest.raises(ValueError, match="data is a damaged Arrow column"):
        hash_records(found if chunks else found.chunk(0))


@pytest.mark.parametrize("index", [-1, 2, 2**31 - 1])
@pytest.mark.parametrize("values", [["a", "b"], ["a", None]])
@pytest.mark.parametrize("rows", [1, 5])
def test_an_index_beyond_its_dictionary_is_refused(index: int, values: list[str | None], rows: int) -> None:
    codes = pa.array([0, index] + [1] * rows, pa.int32())
    with pytest.raises(ValueError, match=rf"data\[1\] is value {index} of a dictionary of 2, expected one"):
        hash_records(pa.DictionaryArray.from_arrays(codes, pa.array(values), safe=False), nulls="zero")
    nothing = pa.DictionaryArray.from_arrays(pa.array([None, index], pa.int32()), pa.array([], pa.string()), safe=False)
    with pytest.raises(ValueError, match=rf"data\[1\] is value {index} of a dictionary of 0"):
        hash_records(nothing, nulls="zero")
    assert not hash_records(nothing[:1], nulls="zero").any()


def test_numba_reads_columns_too() -> None:
    with aisec_fast.use_backend("numba"):
        for make in (arrow(pa.string()), arrow(pa.string_view()), COLUMNS["pandas category"], COLUMNS["polars"]):
            assert hash_records(make(WITH_NULLS), nulls="zero").tobytes() == digests(WITH_NULLS)


def test_nothing_is_imported() -> None:
    """Not for lists and numpy; and polars needs no pyarrow."""
    code = """
import sys
from aisec_fast.hashing import hash_records
hash_records(["a", "b"]); hash_records(b"abc", [0, 1])
assert not {"pandas", "polars", "pyarrow"} & set(sys.modules)
import polars
hash_records(polars.Series(["a", None, "a long string of more"]), nulls="zero")
assert "pyarrow" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
