"""Arrays of every library reach the kernels without a copy, and results come back as arrays of the same library."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from aisec_fast import _arrays, clipping, noise
from tests.conftest import bits


class Foreign:
    """A DLPack producer of a library we have never heard of; ``versioned=False`` is one from before DLPack 1.0."""

    def __init__(self, array: np.ndarray, versioned: bool = True) -> None:
        self.array, self.versioned = array, versioned

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **options: Any) -> Any:
        if not self.versioned and set(options) - {"stream"}:
            raise TypeError("unexpected keyword argument")
        return self.array.__dlpack__(**options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_libraries_agree(backend: str, dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((7, 11)).astype(dtype)
    results = [
        noise.add_gaussian(value, 1.0, source=noise.SeededSource(2))
        for value in (x, torch.from_numpy(x), Foreign(x), Foreign(x, versioned=False))
    ]
    assert [type(r) for r in results] == [np.ndarray, torch.Tensor, np.ndarray, np.ndarray]
    assert len({bits(r) for r in results}) == 1
    sums = [clipping.clip_and_sum(value, 1.0) for value in (x, torch.from_numpy(x), Foreign(x))]
    assert [type(s[0]) for s in sums] == [np.ndarray, torch.Tensor, np.ndarray]
    assert len({bits(s[0]) + bits(s[1]) for s in sums}) == 1


def test_in_place_writes_to_the_callers_memory(backend: str) -> None:
    x, t = np.zeros(200, np.float32), torch.zeros(200)
    assert noise.add_gaussian(x, 1.0, out=x) is x
    assert noise.add_gaussian(t, 1.0, out=t) is t
    assert x.std() > 0.5
    assert t.std() > 0.5


def test_core_views_take_any_producer() -> None:
    """The C++ view itself: numpy, torch's C exchange API, and capsules of both DLPack generations."""
    from aisec_fast import _core

    x = np.random.default_rng(1).standard_normal((5, 9)).astype(np.float32)
    seen = set()
    for value in (x, torch.from_numpy(x), Foreign(x), Foreign(x, versioned=False)):
        norms = np.empty(5)
        _core.norms([value], norms)
        seen.add(bits(norms))
    assert len(seen) == 1
    with pytest.raises(TypeError, match=r"grads is a Lost, expected an array"):
        _core.norms([type("Lost", (), {})()], np.empty(5))


@pytest.mark.parametrize("axes", [1, 4, 5, 6, 7, 20])
def test_core_views_have_any_number_of_axes(axes: int) -> None:
    """Few are kept in the view itself, many beside it."""
    from aisec_fast import _core

    shape = (3, *[1] * (axes - 2), 4)[-axes:]
    x = np.arange(float(np.prod(shape)), dtype=np.float32).reshape(shape)
    for make in (np.copy, torch.tensor, Foreign):
        norms = np.empty(shape[0])
        _core.norms([make(x)], norms)
        np.testing.assert_allclose(norms, np.linalg.norm(x.reshape(shape[0], -1), axis=1), rtol=1e-6)
    release = (2.0, 0.0, 1.0, [], "chacha", 0.5, 0.0, 0.0, 0.0, False, False, False)
    for make in (np.copy, torch.tensor):
        total, param, other = make(x), make(x), make(x.reshape(*shape[:-1], 2, 2))
        _core.sgd_step([total], [param], [], *release)
        assert bits(np.asarray(param)) == bits(x * np.float32(0.75))
        with pytest.raises(ValueError, match="params has another shape than sums"):
            _core.sgd_step([total], [other], [], *release)
        with pytest.raises(ValueError, match="params is not C-contiguous"):
            _core.sgd_step([total], [make(np.repeat(x, 2, -1))[..., ::2]], [], *release)


def test_bfloat16_of_torch_is_read_in_place(backend: str) -> None:
    grads = torch.randn(6, 40).to(torch.bfloat16)
    total, norms = clipping.clip_and_sum(grads, 1.0)
    assert total.dtype == norms.dtype == torch.float32
    expected, _ = clipping.clip_and_sum(grads.float(), 1.0)
    assert bits(total) == bits(expected)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (3, 0), (1, 1, 1)])
def test_empty_and_small_shapes(backend: str, shape: tuple[int, ...]) -> None:
    for make in (np.zeros, torch.zeros):
        x = make(shape)
        assert tuple(noise.add_gaussian(x, 1.0).shape) == shape
        if shape:
            total, norms = clipping.clip_and_sum(x, 1.0)
            assert tuple(total.shape) == shape[1:]
            assert tuple(norms.shape) == shape[:1]
            assert not np.asarray(total).any()


def test_memory_map(tmp_path: Any, backend: str) -> None:
    path = tmp_path / "values"
    np.arange(100, dtype=np.float32).tofile(path)
    x = np.memmap(path, np.float32, mode="r")
    assert noise.add_gaussian(x, 1e-6).shape == (100,)
    with pytest.raises(ValueError, match=r"^out is read-only"):
        noise.add_gaussian(x, 1.0, out=x)


def test_views_keep_nothing_alive(backend: str) -> None:
    x = torch.zeros(300)
    noise.add_gaussian(x, 1.0)
    alive = weakref.ref(x)
    del x
    gc.collect()
    assert alive() is None


def test_extents_of_reversed_arrays() -> None:
    x = np.zeros((4, 6), np.float32)
    whole, reversed_rows = _arrays.describe(x, "x"), _arrays.describe(x[::-1], "x")
    assert reversed_rows.extent() == whole.extent()
    assert _arrays.describe(x[:0], "x").extent()[0] == _arrays.describe(x[:0], "x").extent()[1]


def test_a_tensor_whose_memory_was_freed_is_refused() -> None:
    """As FSDP leaves parameters that live elsewhere: reading them is a crash, or whatever lies there."""
    from aisec_fast import clipping, hashing

    x = torch.ones(4, 100)
    x.untyped_storage().resize_(0)
    for call in (
        lambda: noise.add_gaussian(x, 1.0),
        lambda: clipping.per_sample_norms(x),
        lambda: hashing.hash_array(x),
    ):
        with pytest.raises(ValueError, match="has no memory"):
            call()
