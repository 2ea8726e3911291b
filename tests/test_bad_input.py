"""One table of wrong calls over the public functions of arrays: each has its typed error, and leaves its arrays alone.

The table of the privacy engine is in test_privacy.py; the kernels' own guards (array views) are at the end.
"""

from __future__ import annotations

import copy
import importlib.util
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import aisec_fast
from aisec_fast import BackendError, clipping, ghost, hashing, noise

X = np.ones((4, 6), np.float32)
READ_ONLY = np.zeros((4, 6), np.float32)
READ_ONLY.flags.writeable = False
META = torch.empty(4, 6, device="meta")
SHARED = np.zeros(100, np.float32)
TOKENS, IMAGE = np.ones((2, 3, 4), np.float32), np.ones((2, 3, 5, 4), np.float32)
STATE, B = np.zeros(700, np.uint32), np.zeros(10, np.uint8)
UNALIGNED = np.zeros(101, np.uint8)[1:].view(np.float32)


class Elsewhere:
    """A producer of DLPack on a device that no backend reaches."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (15, 0)

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("must not be asked for memory")


class OnCuda(Elsewhere):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


ARRAYS: list[tuple[str, Any, type[Exception], str]] = [
    ("a list of numbers", [1.0, 2.0], TypeError, r"\[0\] is a float, expected a numpy, torch or cupy array"),
    ("a number", 1.0, TypeError, "is a float, expected"),
    ("None", None, TypeError, "is a NoneType, expected"),
    ("a string", "x", TypeError, "is a str, expected"),
    ("float16", X.astype(np.float16), TypeError, "has dtype float16, expected"),
    ("integers", X.astype(np.int64), TypeError, "has dtype int64, expected"),
    ("complex", X.astype(np.complex64), TypeError, "has dtype complex64, expected"),
    ("objects", X.astype(object), TypeError, "has dtype object, expected"),
    ("foreign byte order", X.astype(">f4"), TypeError, "has byte order '>', expected native"),
    ("a masked array", np.ma.masked_array(X), TypeError, "is a masked array"),
    ("columns first", np.asfortranarray(X), ValueError, "not contiguous|not C-contiguous"),
    ("every second value", X[:, ::2], ValueError, "not contiguous|not C-contiguous"),
    ("unaligned", UNALIGNED[:24].reshape(4, 6), ValueError, "not aligned"),
    ("torch float16", torch.ones(4, 6, dtype=torch.float16), TypeError, "has dtype float16, expected"),
    ("torch requiring grad", torch.ones(4, 6, requires_grad=True), ValueError, "requires grad"),
    ("torch sparse", torch.eye(4).to_sparse(), TypeError, "has layout torch.sparse_coo"),
    ("torch meta", META, ValueError, "lives on meta, expected the CPU or a CUDA device"),
    ("torch conjugated", torch.ones(4, 6, dtype=torch.complex64).conj(), ValueError, r"resolve_conj\(\)"),
    ("another device", Elsewhere(), ValueError, "lives on DLPack device type 15"),
]

CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    ("x", lambda a: noise.add_gaussian(a, 1.0)),
    ("x", lambda a: noise.add_laplace(a, 1.0)),
    ("grads", lambda a: clipping.per_sample_norms(a)),
    ("grads", lambda a: clipping.clip_and_sum(a, 1.0)),
    ("grads", lambda a: clipping.private_sum(a, 1.0, 1.0)),
]


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(("what", "value", "error", "message"), ARRAYS, ids=[a[0] for a in ARRAYS])
@pytest.mark.parametrize(("argument", "call"), CALLS, ids=["gaussian", "laplace", "norms", "clip", "private"])
def test_wrong_arrays(backend, argument, call, what, value, error, message) -> None:
    with pytest.raises(error, match=rf"^{argument}.*({message})"):
        call(value)


VALUES: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("sigma zero", lambda: noise.add_gaussian(X, 0), ValueError, "^sigma is 0"),
    ("sigma negative", lambda: noise.add_gaussian(X, -1.0), ValueError, "^sigma is -1"),
    ("sigma NaN", lambda: noise.add_gaussian(X, np.nan), ValueError, "^sigma is nan"),
    ("sigma infinite", lambda: noise.add_gaussian(X, np.inf), ValueError, "^sigma is inf"),
    ("sigma text", lambda: noise.add_gaussian(X, "1"), TypeError, "^sigma is a str"),  # type: ignore[arg-type]
    ("sigma bool", lambda: noise.add_gaussian(X, True), TypeError, "^sigma is a bool"),
    (
        "sigma a tensor",
        lambda: noise.add_gaussian(X, torch.tensor(1.0)),
        TypeError,
        r"a real number: pass sigma.item\(\)$",
    ),  # type: ignore[arg-type]
    ("sigma an array", lambda: noise.add_gaussian(X, X), TypeError, "^sigma is an ndarray"),  # type: ignore[arg-type]
    ("sigma tiny", lambda: noise.add_gaussian(X, 1e-300), ValueError, "^granularity is .*sigma"),
    ("scale zero", lambda: noise.add_laplace(X, 0.0), ValueError, "^scale is 0"),
    ("granularity no power", lambda: noise.add_gaussian(X, 1.0, granularity=0.3), ValueError, "power of two"),
    ("granularity too coarse", lambda: noise.add_gaussian(X, 1.0, granularity=2.0), ValueError, "^granularity is 2"),
    ("granularity too fine", lambda: noise.add_gaussian(X, 1.0, granularity=2.0**-41), ValueError, "^granularity is"),
    ("granularity zero", lambda: noise.add_gaussian(X, 1.0, granularity=0.0), ValueError, "^granularity is 0"),
    (
        "float mode has no lattice",
        lambda: noise.add_gaussian(X, 1.0, exact=False, granularity=0.5),
        ValueError,
        "^granularity is 0.5, expected None",
    ),
    (
        "float mode checks nothing",
        lambda: noise.add_laplace(X, 1.0, exact=False, check=True),
        ValueError,
        "^check is True",
    ),
    ("float mode sigma", lambda: noise.add_gaussian(X, 0.0, exact=False), ValueError, "^sigma is 0"),
    ("check no bool", lambda: noise.add_gaussian(X, 1.0, check="False"), TypeError, "^check is a str"),  # type: ignore[arg-type]
    ("charge huge", lambda: noise.charged_sensitivity(1.0, 10**400, 1.0), OverflowError, "^size is 1000"),
    ("exact no bool", lambda: noise.add_gaussian(X, 1.0, exact="no"), TypeError, "^exact is a str"),  # type: ignore[arg-type]
    ("source a seed", lambda: noise.add_gaussian(X, 1.0, source=1), TypeError, "^source is an int"),
    ("NaN", lambda: noise.add_gaussian(np.array([0.0, np.nan]), 1.0), ValueError, "flat index 1 is nan"),
    ("Inf", lambda: noise.add_laplace(np.array([np.inf]), 1.0), ValueError, "flat index 0 is inf"),
    ("too large", lambda: noise.add_gaussian(np.array([1e30]), 1.0), OverflowError, r"exceeds 2\^62 granularity"),
    ("out dtype", lambda: noise.add_gaussian(X, 1.0, out=np.zeros((4, 6))), TypeError, "^out has dtype float64"),
    (
        "out shape",
        lambda: noise.add_gaussian(X, 1.0, out=np.zeros((6, 4), "f4")),
        ValueError,
        r"^out has shape \(6, 4\)",
    ),
    ("out read-only", lambda: noise.add_gaussian(X, 1.0, out=READ_ONLY), ValueError, "^out is read-only"),
    (
        "out not contiguous",
        lambda: noise.add_gaussian(X, 1.0, out=np.zeros((6, 4), "f4").T),
        ValueError,
        "^out is not C",
    ),
    ("out a list", lambda: noise.add_gaussian(X, 1.0, out=[X]), TypeError, "^out is a list"),
    ("out no list", lambda: noise.add_gaussian([X], 1.0, out=X), TypeError, "^out is an ndarray"),
    ("out too short", lambda: noise.add_gaussian([X, X], 1.0, out=[X]), ValueError, "^out has 1 arrays, expected 2"),
    (
        "out twice",
        lambda: noise.add_gaussian([X, X + 1], 1.0, out=[SHARED[:24].reshape(4, 6)] * 2),
        ValueError,
        "overlaps",
    ),
    ("out overlaps", lambda: noise.add_gaussian(SHARED[:50], 1.0, out=SHARED[10:60]), ValueError, "^out overlaps x"),
    ("seed negative", lambda: noise.SeededSource(-1), ValueError, "^seed is -1"),
    ("seed float", lambda: noise.SeededSource(1.5), TypeError, "^seed is a float"),  # type: ignore[arg-type]
    ("words negative", lambda: noise.random_words(-1), ValueError, "^size is -1"),
    ("charge norm", lambda: noise.charged_sensitivity(1.0, 3, 1.0, norm="l3"), ValueError, "^norm is 'l3'"),
    ("charge size", lambda: noise.charged_sensitivity(1.0, -3, 1.0), ValueError, "^size is -3"),
    ("copy a secure source", lambda: copy.copy(noise.SecureSource()), TypeError, "cannot be copied"),
    ("deepcopy a secure source", lambda: copy.deepcopy(noise.SecureSource()), TypeError, "cannot be copied"),
    ("pickle a secure source", lambda: pickle.dumps(noise.SecureSource()), TypeError, "cannot be copied or pickled"),
    ("max_norm zero", lambda: clipping.clip_and_sum(X, 0.0), ValueError, "^max_norm is 0"),
    ("max_norm NaN", lambda: clipping.clip_and_sum(X, np.nan), ValueError, "^max_norm is nan"),
    (
        "no dimensions",
        lambda: clipping.clip_and_sum(np.float32([1])[0:1].reshape(()), 1.0),
        ValueError,
        "no dimensions",
    ),
    ("empty list", lambda: clipping.per_sample_norms([]), ValueError, "^grads is an empty list"),
    (
        "batch sizes",
        lambda: clipping.clip_and_sum([X, X[:3]], 1.0),
        ValueError,
        r"^grads\[1\] has batch size 3, expected 4",
    ),
    (
        "mixed dtypes",
        lambda: clipping.clip_and_sum([X, X.astype("f8")], 1.0),
        TypeError,
        r"^grads\[1\] has dtype float64",
    ),
    (
        "sum out shape",
        lambda: clipping.clip_and_sum(X, 1.0, out=X),
        ValueError,
        r"^out has shape \(4, 6\), expected \(6,\)",
    ),
    ("sum out overlaps", lambda: clipping.clip_and_sum(X, 1.0, out=X[1]), ValueError, "^out overlaps grads"),
    ("noise_multiplier negative", lambda: clipping.private_sum(X, 1.0, -1.0), ValueError, "^noise_multiplier is -1"),
    ("noise_multiplier tiny", lambda: clipping.private_sum(X, 1.0, 1e-9), ValueError, "^noise_multiplier is 1e-09"),
    ("max_norm beyond the lattice", lambda: clipping.private_sum(X, 1e-300, 1.0), ValueError, "^max_norm is 1e-300"),
    ("noise overflows", lambda: clipping.private_sum(X, 1e300, 1e300), ValueError, "^noise_multiplier is"),
    ("tokens no list", lambda: ghost.gram_squares([1.0], TOKENS), TypeError, "^inputs is a list, expected a numpy"),
    (
        "tokens float64",
        lambda: ghost.gram_squares(TOKENS, TOKENS.astype("f8")),
        TypeError,
        "^outputs has dtype float64",
    ),
    ("tokens flat", lambda: ghost.gram_squares(X, TOKENS), ValueError, r"^inputs has shape \(4, 6\), expected 3 dim"),
    ("tokens apart", lambda: ghost.gram_squares(TOKENS[:, ::2], TOKENS), ValueError, "^inputs is not C-contiguous"),
    (
        "tokens differ",
        lambda: ghost.gram_squares(TOKENS, TOKENS[:1]),
        ValueError,
        r"^outputs has shape \(1, 3, 4\), exp",
    ),
    ("pixels flat", lambda: ghost.conv_rows(X, IMAGE, 3), ValueError, "^activation has shape .* expected 3 or 4"),
    ("pixels and lines", lambda: ghost.conv_rows(IMAGE, TOKENS, 3), ValueError, "^gradient has shape .*expected 4 dim"),
    ("other batch", lambda: ghost.conv_rows(IMAGE, IMAGE[:1], 3), ValueError, "^gradient has shape .*and batch 2"),
    ("kernel zero", lambda: ghost.conv_rows(IMAGE, IMAGE, 0), ValueError, "^kernel_size is 0, expected at least 1"),
    ("kernel float", lambda: ghost.conv_rows(IMAGE, IMAGE, 3.0), TypeError, "^kernel_size is a float"),  # type: ignore[arg-type]
    (
        "kernel of 3",
        lambda: ghost.conv_rows(IMAGE, IMAGE, (1, 1, 1)),
        ValueError,
        "^kernel_size has 3 values, expected 2",
    ),
    ("stride zero", lambda: ghost.conv_gram_squares(IMAGE, IMAGE, 1, stride=(1, 0)), ValueError, "^stride is 0"),
    ("dilation zero", lambda: ghost.conv_gram_squares(IMAGE, IMAGE, 1, dilation=0), ValueError, "^dilation is 0"),
    ("padding negative", lambda: ghost.conv_rows(IMAGE, IMAGE, 1, padding=-1), ValueError, "^padding is -1"),
    ("padding of 3", lambda: ghost.conv_rows(IMAGE, IMAGE, 1, padding=[1, 1, 1]), ValueError, "^padding has 3 values"),
    (
        "groups",
        lambda: ghost.conv_rows(IMAGE, IMAGE, 1, groups=2),
        ValueError,
        "^activation has 3 channels, .*groups = 2",
    ),
    (
        "sizes",
        lambda: ghost.conv_rows(IMAGE, IMAGE, 3),
        ValueError,
        "^gradient has 5 positions in dimension 2, expected 3",
    ),
    ("rows out shape", lambda: ghost.conv_rows(IMAGE, IMAGE, 1, out=X), ValueError, r"^out has shape \(4, 6\)"),
    (
        "rows out overlaps",
        lambda: ghost.conv_rows(IMAGE[:1], IMAGE[1:], 1, out=IMAGE.reshape(-1)[60:69].reshape(1, 3, 3, 1, 1)),
        ValueError,
        "^out overlaps gradient",
    ),
    ("no pixels", lambda: ghost.conv_rows(IMAGE[:, :, :0], IMAGE, 1), ValueError, "^gradient has 5 positions"),
    ("data a str", lambda: hashing.blake3("abc"), TypeError, "^data is a str, expected bytes .*encode it"),  # type: ignore[arg-type]
    ("data an int", lambda: hashing.sha256(5), TypeError, "^data is an int, expected bytes"),  # type: ignore[arg-type]
    ("data None", lambda: hashing.sha256().update(None), TypeError, "^data is a NoneType"),  # type: ignore[arg-type]
    ("data a list", lambda: hashing.blake3([1, 2]), TypeError, "^data is a list, expected bytes"),  # type: ignore[arg-type]
    ("data a tensor", lambda: hashing.blake3(torch.ones(2)), TypeError, "^data is a Tensor.*hash_array takes arrays"),  # type: ignore[arg-type]
    ("data objects", lambda: hashing.blake3(X.astype(object)), TypeError, "^data has dtype object"),
    (
        "view of objects",
        lambda: hashing.blake3(memoryview(X.astype(object))),
        TypeError,
        "^data is a memoryview of ref",
    ),
    ("data with gaps", lambda: hashing.blake3(X[:, ::2]), ValueError, "^data is not one readable piece of memory"),
    (
        "data columns first",
        lambda: hashing.sha256(np.asfortranarray(X)),
        ValueError,
        "^data is not one readable piece of memory",
    ),
    (
        "data every second",
        lambda: hashing.sha256(memoryview(b"abcd")[::2]),
        ValueError,
        "^data is not one readable piece of memory",
    ),
    ("key too short", lambda: hashing.blake3(key=b"short"), ValueError, "^key has 5 bytes, expected 32"),
    ("key too long", lambda: hashing.blake3(key=bytes(33)), ValueError, "^key has 33 bytes, expected 32"),
    ("key a str", lambda: hashing.blake3(key="k" * 32), TypeError, "^key is a str, expected bytes"),  # type: ignore[arg-type]
    (
        "key and context",
        lambda: hashing.blake3(key=bytes(32), derive_key_context="c"),
        ValueError,
        "^key and derive_key_context are both given",
    ),
    (
        "context bytes",
        lambda: hashing.blake3(derive_key_context=b"c"),  # type: ignore[arg-type]
        TypeError,
        "^derive_key_context is a bytes, expected a str",
    ),
    (
        "context without UTF-8",
        lambda: hashing.blake3(derive_key_context="\ud800"),
        ValueError,
        "^derive_key_context is a str that has no UTF-8 form",
    ),
    ("max_threads zero", lambda: hashing.blake3(max_threads=0), ValueError, "^max_threads is 0, expected at least 1"),
    ("max_threads negative", lambda: hashing.blake3(max_threads=-2), ValueError, "^max_threads is -2"),
    ("max_threads float", lambda: hashing.blake3(max_threads=1.5), TypeError, "^max_threads is a float"),  # type: ignore[arg-type]
    ("length negative", lambda: hashing.blake3().digest(-1), ValueError, "^length is -1, expected at least 0"),
    ("length float", lambda: hashing.blake3().hexdigest(32.0), TypeError, "^length is a float"),  # type: ignore[arg-type]
    ("seek negative", lambda: hashing.blake3().digest(seek=-1), ValueError, "^seek is -1, expected at least 0"),
    (
        "seek beyond the stream",
        lambda: hashing.blake3().digest(1, seek=2**64 - 1),
        ValueError,
        "^seek is 1844.*2.64 - 1",
    ),
    (
        "unknown algorithm",
        lambda: hashing.hash_array(X, "md5"),
        ValueError,
        "^algorithm is 'md5', expected 'blake3' or",
    ),
    ("array a list", lambda: hashing.hash_array([1.0]), TypeError, "^array is a list, expected a numpy, torch"),
    ("array bytes", lambda: hashing.hash_array(b"abc"), TypeError, "^array is a bytes, expected a numpy, torch"),
    ("array columns first", lambda: hashing.hash_array(np.asfortranarray(X)), ValueError, "^array is not C-contiguous"),
    ("array with gaps", lambda: hashing.hash_array(torch.ones(4, 4)[:, ::2]), ValueError, "^array is not C-contiguous"),
    (
        "array of objects",
        lambda: hashing.hash_array(X.astype(object)),
        TypeError,
        "^array has dtype object, expected num",
    ),
    ("array of structures", lambda: hashing.hash_array(np.zeros(2, "f4,f8")), TypeError, "^array has dtype void"),
    ("array of long doubles", lambda: hashing.hash_array(X.astype("g")), TypeError, "^array has dtype (float|long)"),
    ("array of foreign order", lambda: hashing.hash_array(X.astype(">f4")), TypeError, "^array has byte order"),
    ("array masked", lambda: hashing.hash_array(np.ma.masked_array(X)), TypeError, "^array is a masked array"),
    ("array unaligned", lambda: hashing.hash_array(UNALIGNED), ValueError, "^array is not aligned"),
    ("array elsewhere", lambda: hashing.hash_array(META), ValueError, "^array lives on meta"),
    (
        "array requiring grad",
        lambda: hashing.hash_array(torch.ones(2, requires_grad=True)),
        ValueError,
        "^array requires grad",
    ),
    ("threads zero", lambda: aisec_fast.set_num_threads(0), ValueError, "^n is 0"),
    ("threads float", lambda: aisec_fast.set_num_threads(2.0), TypeError, "^n is a float"),  # type: ignore[arg-type]
    ("unknown backend", lambda: aisec_fast.use_backend("gpu"), BackendError, "^backend is 'gpu'"),
]


@pytest.mark.parametrize(
    ("value", "kind"), [(1, "an int"), (X, "an ndarray"), ("", "a str"), (None, "a NoneType"), (np.uint8(1), "a uint8")]
)
def test_a_type_has_its_article(value: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=f"^exact is {kind}, expected a bool"):
        noise.add_gaussian(X, 1.0, exact=value)


@pytest.mark.parametrize(("what", "call", "error", "message"), VALUES, ids=[v[0] for v in VALUES])
def test_wrong_values(backend, what, call, error, message) -> None:
    before = X.copy(), READ_ONLY.copy(), SHARED.copy()
    with pytest.raises(error, match=message):
        call()
    for array, old in zip((X, READ_ONLY, SHARED), before, strict=True):
        assert np.array_equal(array, old)


def test_a_bfloat16_array_gets_no_noise() -> None:
    with pytest.raises(TypeError, match=r"^x has dtype bfloat16, expected float32 or float64"):
        noise.add_gaussian(torch.ones(3, dtype=torch.bfloat16), 1.0)


def test_cuda_arrays_need_the_cuda_backend() -> None:
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("cupy is installed: the foreign array would be read through it")
    with pytest.raises(BackendError, match=r"^x lives on a CUDA device"):
        noise.add_gaussian(OnCuda(), 1.0)


NORMS = np.zeros(2), np.zeros(2)


def conv_rows(core: Any, gradient: Any = IMAGE, stride: Any = (1, 1), groups: int = 1, rows: Any = None) -> None:
    out = np.zeros(18, np.float32) if rows is None else rows
    core.conv_rows(IMAGE, gradient, (1, 1), stride, (0, 0), (1, 1), groups, out, *NORMS)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda core: core.add_gaussian([1.0], X, 1.0, 2.0**-20, bytes(32)),
            TypeError,
            "x is a list, expected an array",
        ),
        (
            lambda core: core.add_gaussian(X, X[:2], 1.0, 2.0**-20, bytes(32)),
            ValueError,
            "out has 12 values, expected 24",
        ),
        (lambda core: core.add_gaussian(X, READ_ONLY, 1.0, 2.0**-20, bytes(32)), ValueError, "out is read-only"),
        (
            lambda core: core.add_gaussian(X, X.astype("f8"), 1.0, 2.0**-20, bytes(32)),
            TypeError,
            "out has another dtype",
        ),
        (lambda core: core.add_gaussian(X, X, 1.0, 2.0**-20, bytes(31)), ValueError, "key has 31 bytes, expected 32"),
        (lambda core: core.add_gaussian(X, X, 1.0, 2.0, bytes(32)), ValueError, "expected 1 to 2"),
        (lambda core: core.add_gaussian(X.T, X, 1.0, 2.0**-20, bytes(32)), ValueError, "x is not C-contiguous"),
        (lambda core: core.add_gaussian(X.astype("i4"), X, 1.0, 2.0**-20, bytes(32)), TypeError, "no kernel takes"),
        (lambda core: core.norms([X.T], np.zeros(6)), ValueError, "not contiguous inside its rows"),
        (lambda core: core.norms([X], np.zeros(3)), ValueError, "norms has 3 values, expected 4"),
        (lambda core: core.norms([X, X[:2]], np.zeros(4)), ValueError, "number of rows"),
        (lambda core: core.norms([], np.zeros(4)), ValueError, "empty list"),
        (lambda core: core.norms([np.zeros((4, 6), np.int64)], np.zeros(4)), TypeError, "integer dtype"),
        (lambda core: core.clip_and_sum([X], 1.0, [], np.zeros(4)), ValueError, "another length"),
        (lambda core: core.random_words(np.zeros(3), bytes(32), 0), TypeError, "out has another dtype"),
        (lambda core: core.gram_squares(TOKENS, TOKENS, np.zeros(3), np.zeros(2)), ValueError, "squares has 3 values"),
        (lambda core: core.gram_squares(TOKENS, IMAGE, *NORMS), ValueError, "outputs has 4 dimensions, expected 3"),
        (lambda core: core.gram_squares(TOKENS, TOKENS[:, :2].copy(), *NORMS), ValueError, "outputs differs"),
        (lambda core: conv_rows(core, stride=(0, 1)), ValueError, "must be at least 1"),
        (lambda core: conv_rows(core, groups=2), ValueError, "groups must divide"),
        (lambda core: conv_rows(core, groups=0), ValueError, "groups must divide"),
        (lambda core: conv_rows(core, rows=np.zeros(8, np.float32)), ValueError, "rows has 8 values, expected 18"),
        (lambda core: conv_rows(core, gradient=IMAGE[:1]), ValueError, "another batch"),
        (lambda core: conv_rows(core, gradient=IMAGE[:, :, :0]), ValueError, "must not be empty"),
        (lambda core: core.first_unfit(np.zeros(3, np.int64), 1.0), TypeError, "x has another dtype"),
        (lambda core: core.blake3_update(STATE, X, 0), TypeError, "data has another dtype"),
        (lambda core: core.blake3_update(STATE[1:], B, 0), ValueError, "state has 699 values, expected 700"),
        (lambda core: core.blake3_update(STATE.view("f4"), B, 0), TypeError, "state has another dtype"),
        (lambda core: core.blake3_update(STATE + np.uint32(2000), B, 0), ValueError, "state holds no BLAKE3 state"),
        (lambda core: core.blake3_update(STATE, B[::2], 0), ValueError, "data is not C-contiguous"),
        (lambda core: core.blake3_update(STATE, B, -1), ValueError, "max_threads is -1"),
        (lambda core: core.blake3_output(STATE, B, -1), ValueError, "seek is -1"),
        (lambda core: core.blake3_output(STATE, B, 2**64 - 1), ValueError, "seek is 1844"),
        (lambda core: core.blake3_output(STATE, np.frombuffer(b"abc", "u1"), 0), ValueError, "out is read-only"),
        (lambda core: core.sha256_update(STATE, B), ValueError, "state has 700 values, expected 26"),
        (lambda core: core.sha256_output(STATE[:26], B), ValueError, "out has 10 values, expected 32"),
        (lambda core: core.use_instruction_set("sse9"), ValueError, "sse9.*expected one that this CPU runs"),
    ],
)
def test_the_kernels_guard_themselves(call, error, message) -> None:
    """Views check what they are given even if the layer above them is by-passed: no memory is touched."""
    from aisec_fast import _core

    before = X.copy()
    with pytest.raises(error, match=message):
        call(_core)
    assert np.array_equal(X, before)
