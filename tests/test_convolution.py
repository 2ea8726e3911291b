"""Convolutions as sums over taps, and gradients of their inputs: every instruction set within the bound of docs/products.md."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import aisec_fast
from tests.conftest import NATIVE, running

UNIT = 2.0**-24


@pytest.fixture(params=NATIVE)
def core(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    for kernels in running(request.param):
        yield kernels.adversarial


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: dict[str, Any]) -> Tensor:
    return functional.conv2d(
        x, weight, bias, stride=geometry["stride"], padding=geometry["before"], dilation=geometry["dilation"]
    )


def turned_back(gradient: Tensor, weight: Tensor, shape: torch.Size, geometry: dict[str, Any]) -> Tensor:
    """The gradient of the input, by autograd in the dtype of what is given."""
    x = torch.zeros(shape, dtype=gradient.dtype, requires_grad=True)
    (found,) = torch.autograd.grad(made(x, weight, None, geometry), x, gradient)
    return found


def check(core: ModuleType, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: dict[str, Any]) -> None:
    """Both directions against float64: taps products and sums, and a bias."""
    exact = made(x.double(), weight.double(), None if bias is None else bias.double(), geometry)
    sizes = made(x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs(), geometry)
    found = torch.full(exact.shape, torch.nan)
    core.convolution(x, weight, bias, **geometry, turned=False, out=found)
    assert ((found - exact).abs() <= (weight[0].numel() + 2) * UNIT * sizes).all()

    gradient = random(*found.shape, seed=1)
    exact = turned_back(gradient.double(), weight.double(), x.shape, geometry)
    sizes = turned_back(gradient.double().abs(), weight.double().abs(), x.shape, geometry)
    found = torch.full(x.shape, torch.nan)
    core.convolution(gradient, weight, None, **geometry, turned=True, out=found)
    assert ((found - exact).abs() <= (weight[:, 0].numel() + 1) * UNIT * sizes).all()


SIDES = st.tuples(st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=60, deadline=None)
@given(
    kernel=SIDES, stride=SIDES, dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    before=st.tuples(st.integers(0, 4), st.integers(0, 4)), more=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    channels=st.integers(1, 20), outputs=st.integers(1, 35), batch=st.integers(1, 3), biased=st.booleans(),
)  # fmt: skip
def test_within_the_bound(kernel, stride, dilation, before, more, channels, outputs, batch, biased) -> None:
    size = [max(1, (k - 1) * d + 1 - 2 * b) + m for k, d, b, m in zip(kernel, dilation, before, more, strict=True)]
    x, weight = random(batch, channels, *size), random(outputs, channels, *kernel, seed=2)
    bias = random(outputs, seed=3) if biased else None
    geometry = {"stride": stride, "before": before, "dilation": dilation}
    for name in NATIVE:
        for kernels in running(name):
            check(kernels.adversarial, x, weight, bias, geometry)


# Layers of common models: first ones, shortcuts, and several bands of rows of one image.
LAYERS = [
    ((3, 1, 28, 28), (16, 1, 8, 8), 2, 3),
    ((2, 16, 13, 13), (32, 16, 4, 4), 2, 0),
    ((2, 32, 16, 16), (64, 32, 1, 1), 2, 0),
    ((1, 3, 150, 200), (32, 3, 7, 7), 2, 3),
    ((2, 16, 90, 70), (32, 16, 3, 3), 2, 1),
]


@pytest.mark.parametrize(("size", "weights", "stride", "padding"), LAYERS, ids=str)
def test_layers_of_models(core, size, weights, stride, padding) -> None:
    geometry = {"stride": (stride, stride), "before": (padding, padding), "dilation": (1, 1)}
    check(core, random(*size), random(*weights, seed=2), random(weights[0], seed=3), geometry)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (3, 2)], ids=str)
@pytest.mark.parametrize(("stride", "before", "dilation"), [(20, 5, 1), (5, 2, 1), (7, 9, 2), (64, 40, 1)], ids=str)
@pytest.mark.parametrize("kernel", [1, 2])
def test_results_of_zeros_alone(core, size, stride, before, dilation, kernel) -> None:
    """Paddings wider than the window, and steps over the whole image."""
    geometry = {"stride": (stride, 1), "before": (before, 1), "dilation": (dilation, 1)}
    check(core, random(2, 16, *size), random(16, 16, kernel, 1, seed=2), random(16, seed=3), geometry)


def both(core: ModuleType, x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    geometry = {"stride": (2, 3), "before": (1, 2), "dilation": (1, 2)}
    result, back = torch.full((len(x), *gradient.shape[1:]), torch.nan), torch.full(x.shape, torch.nan)
    core.convolution(x, weight, None, **geometry, turned=False, out=result)
    core.convolution(gradient, weight, None, **geometry, turned=True, out=back)
    return result, back


def test_each_image_by_itself_whatever_the_threads(core) -> None:
    x, weight, gradient = random(9, 5, 20, 22), random(20, 5, 3, 3, seed=2), random(9, 20, 10, 8, seed=3)
    together, before = both(core, x, weight, gradient), aisec_fast.get_num_threads()
    try:
        for threads in (1, 3):
            aisec_fast.set_num_threads(threads)
            assert all(map(torch.equal, both(core, x, weight, gradient), together))
    finally:
        aisec_fast.set_num_threads(before)
    alone = both(core, x[4:5].contiguous(), weight, gradient[4:5].contiguous())
    assert all(torch.equal(one, all_[4:5]) for one, all_ in zip(alone, together, strict=True))


def test_fused_instruction_sets_give_the_same_bits() -> None:
    x, weight, gradient = random(2, 5, 20, 22), random(20, 5, 3, 3, seed=2), random(2, 20, 10, 8, seed=3)
    found = [
        both(kernels.adversarial, x, weight, gradient)
        for name in NATIVE
        if name != "native-baseline"
        for kernels in running(name)
    ]
    assert all(torch.equal(one, first) for each in found for one, first in zip(each, found[0], strict=True))


def test_empty_and_not_a_number(core) -> None:
    geometry = {"stride": (1, 1), "before": (1, 1), "dilation": (1, 1)}
    weight = random(16, 3, 3, 3)
    core.convolution(random(0, 3, 4, 4), weight, None, **geometry, turned=False, out=torch.empty(0, 16, 4, 4))
    core.convolution(random(0, 16, 4, 4), weight, None, **geometry, turned=True, out=torch.empty(0, 3, 4, 4))
    x, out = random(2, 3, 6, 6), torch.zeros(2, 16, 6, 6)
    x[1, 2, 0, 0] = torch.nan
    core.convolution(x, weight, None, **geometry, turned=False, out=out)
    assert out.isnan().nonzero()[:, 0].unique().tolist() == [1]
    assert out[1, :, :2, :2].isnan().all()
    assert out[1].isnan().sum() == 16 * 4


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"x": np.zeros((1, 3, 8, 8))}, TypeError),
        ({"x": np.zeros((3, 8, 8), np.float32)}, ValueError),
        ({"x": np.zeros((1, 4, 8, 8), np.float32)}, ValueError),
        ({"x": np.zeros((1, 3, 8, 7), np.float32)}, ValueError),
        ({"weight": np.zeros((16, 3, 3), np.float32)}, ValueError),
        ({"weight": np.zeros((16, 3, 0, 3), np.float32)}, ValueError),
        ({"weight": np.zeros((8, 3, 3, 3), np.float32)}, ValueError),
        ({"weight": np.zeros((16, 3, 9, 9), np.float32)}, ValueError),
        ({"bias": np.zeros(3, np.float32)}, ValueError),
        ({"stride": (0, 1)}, ValueError),
        ({"dilation": (1, 0)}, ValueError),
        ({"stride": (2, 1)}, ValueError),
        ({"before": (2**63, 0)}, ValueError),
        ({"dilation": (2**63, 1)}, ValueError),
        ({"out": np.zeros((1, 6, 6, 16), np.float32).transpose(0, 3, 1, 2)}, ValueError),
        ({"out": np.broadcast_to(np.float32(0), (1, 16, 6, 6))}, ValueError),
    ],
)
def test_wrong_arrays_are_refused(core, change, error) -> None:
    right = {
        "x": np.zeros((1, 3, 8, 8), np.float32), "weight": np.zeros((16, 3, 3, 3), np.float32), "bias": None,
        "stride": (1, 1), "before": (0, 0), "dilation": (1, 1), "turned": False,
        "out": np.zeros((1, 16, 6, 6), np.float32),
    }  # fmt: skip
    core.convolution(**right)
    with pytest.raises(error):
        core.convolution(**(right | change))
