"""Convolutions by Winograd's products: on every instruction set within the bound of docs/adversarial.md, section 8."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import aisec_fast
from aisec_fast._winograd import Winograd, planes, winograd
from tests.conftest import NATIVE, running

LAST = torch.channels_last
ONES = [1, 1], [1, 1], [1, 1], 1  # stride, padding, dilation, groups

# The transforms of the paper.
POINTS = torch.tensor(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6],
     [0, 0, 1]],
    dtype=torch.float64,
)  # fmt: skip
SPREAD = torch.tensor(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
     [0, 4, 0, -5, 0, 1]],
    dtype=torch.float64,
)  # fmt: skip
GATHER = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)


@pytest.fixture(params=NATIVE)
def core(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    for kernels in running(request.param):
        yield kernels.adversarial


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=LAST)


def magnitudes(x: Tensor, weight: Tensor) -> Tensor:
    """What the result would be if every product and every sum took magnitudes: rounding is relative to that."""
    height, width = x.shape[2:]
    high, wide = -(-height // 4) * 4, -(-width // 4) * 4
    padded = functional.pad(x.double().abs(), (1, wide - width + 1, 1, high - height + 1))
    patches = padded.unfold(2, 6, 4).unfold(3, 6, 4)  # [B, C, rows, columns, 6, 6]
    spread = torch.einsum("ia,bcrsae,je->bcrsij", SPREAD.abs(), patches, SPREAD.abs())
    points = POINTS.abs()
    weights = torch.einsum("ia,ocae,je->ocij", points, weight.double().abs(), points)
    products = torch.einsum("bcrsij,ocij->borsij", spread, weights)
    result = torch.einsum("ia,borsae,je->borisj", GATHER.abs(), products, GATHER.abs())
    return result.reshape(len(x), len(weight), high, wide)[:, :, :height, :width]


@pytest.mark.parametrize("turned", [False, True], ids=["as they are", "turned"])
def test_weights_are_rounded_once(core, turned) -> None:
    weight = torch.randn(32, 48, 3, 3)
    windows = weight.flip(2, 3).transpose(0, 1) if turned else weight
    exact, largest = (
        torch.einsum("ia,ocae,je->ijco", points, values.double(), points).flatten(0, 1)
        for points, values in ((POINTS, windows), (POINTS.abs(), windows.abs()))
    )
    found = torch.empty(exact.shape)
    core.winograd_weights(weight, turned, found)
    assert ((found - exact).abs() <= exact.abs() * 2.0**-24 + largest * 2.0**-48).all()
    for wrong in (np.zeros((32, 48, 9), np.float32), np.zeros((32, 48, 3, 2), np.float32)):
        with pytest.raises(ValueError, match="windows must have the shape"):
            core.winograd_weights(wrong, turned, found)
    with pytest.raises(ValueError, match="multiples of 16"):
        core.winograd_weights(weight[:, :8].contiguous(), turned, found)
    with pytest.raises(ValueError, match="weights has"):
        core.winograd_weights(weight, turned, found[:, 1:].contiguous())


# Whole images in groups, one at a time, and in bands; sizes that are no multiples of a tile's side.
@pytest.mark.parametrize(
    "shape",
    [(7, 16, 32, 8, 8), (2, 32, 16, 17, 19), (3, 16, 16, 50, 30), (2, 16, 16, 5, 300), (0, 16, 16, 8, 8)],
    ids=str,
)
@pytest.mark.parametrize("threads", [1, 3])
def test_planes_have_the_bits_of_pixels(core, shape, threads) -> None:
    batch, channels, outputs, *size = shape
    x, weight, bias = images(batch, channels, *size), torch.randn(outputs, channels, 3, 3), torch.randn(outputs)
    before = aisec_fast.get_num_threads()
    try:
        aisec_fast.set_num_threads(threads)
        found = planes(x.contiguous(), weight, bias, turned=False)
        turned = planes(found, weight, None, turned=True)
    finally:
        aisec_fast.set_num_threads(before)
    assert found.is_contiguous()
    assert torch.equal(found, Winograd(weight)(x, bias=bias))
    back = Winograd(weight.flip(2, 3).transpose(0, 1))
    assert torch.equal(turned, back(found.contiguous(memory_format=LAST)))


@pytest.mark.parametrize(
    "shape", [(3, 16, 16, 32, 32), (2, 32, 48, 7, 9), (5, 64, 16, 4, 4), (1, 48, 32, 3, 5)], ids=str
)
@pytest.mark.parametrize("more", [False, True], ids=["plain", "masked, added to, with a ReLU"])
def test_within_the_bound(core, shape, more) -> None:
    batch, channels, outputs, *size = shape
    x, weight = images(batch, channels, *size), torch.randn(outputs, channels, 3, 3) / (3 * channels**0.5)
    mask = images(batch, channels, *size, seed=1) if more else None
    added, bias = (images(batch, outputs, *size, seed=2), torch.randn(outputs)) if more else (None, None)
    convolution = Winograd(weight)
    found = convolution(x, mask=mask, bias=bias, added=added, relu=more)
    taken = x if mask is None else x * (mask > 0)
    expected = functional.conv2d(taken.double(), weight.double(), padding=1)
    allowed = magnitudes(taken, weight)
    if bias is not None and added is not None:
        expected = (expected + bias.double()[:, None, None] + added).relu()
        allowed = allowed + bias.double().abs()[:, None, None] + added.abs()
    assert found.is_contiguous(memory_format=LAST)
    assert ((found - expected).abs() <= (channels + 15) * 2.0**-24 * allowed).all()
    if added is not None:
        assert convolution(x, mask=mask, bias=bias, added=added, relu=True, out=added) is added
        assert torch.equal(added, found)


def test_each_image_by_itself_whatever_the_threads(core) -> None:
    x, convolution = images(9, 32, 10, 10), Winograd(torch.randn(16, 32, 3, 3))
    together, before = convolution(x), aisec_fast.get_num_threads()
    try:
        aisec_fast.set_num_threads(1)
        assert torch.equal(convolution(x), together)
    finally:
        aisec_fast.set_num_threads(before)
    assert torch.equal(convolution(x[4:5].contiguous(memory_format=LAST)), together[4:5])


def test_fused_instruction_sets_give_the_same_bits() -> None:
    x, weight = images(2, 16, 9, 9), torch.randn(16, 16, 3, 3)
    found = [Winograd(weight)(x) for name in NATIVE if name != "native-baseline" for _ in running(name)]
    assert all(torch.equal(each, found[0]) for each in found)


def test_what_is_not_a_number_stays(core) -> None:
    x = images(2, 16, 8, 8)
    x[1, 3, 2, 2] = torch.nan
    found = Winograd(torch.randn(16, 16, 3, 3))(x, mask=x, relu=True)
    assert found[0].isfinite().all()
    assert found[1, :, 1:4, 1:4].isnan().all()


def test_what_is_left_to_others() -> None:
    weight = torch.zeros(16, 16, 3, 3)
    assert winograd(weight, *ONES, (8, 8)) is not None
    assert winograd(weight, *ONES, (5, 5)) is None  # 25 of the 64 pixels of four tiles
    assert winograd(weight[:, :15], *ONES, (8, 8)) is None
    assert winograd(weight[:8], *ONES, (8, 8)) is None
    assert winograd(weight[:, :, :1], *ONES, (8, 8)) is None
    for other in (([2, 1], *ONES[1:]), (ONES[0], [0, 0], *ONES[2:]), (*ONES[:2], [2, 2], 1), (*ONES[:3], 2)):
        assert winograd(weight, *other, (8, 8)) is None
    with aisec_fast.use_backend("numba"):
        assert winograd(weight, *ONES, (8, 8)) is None


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"x": np.zeros((1, 4, 4, 16))}, TypeError),
        ({"x": np.zeros((1, 4, 4, 8), np.float32)}, ValueError),
        ({"x": np.zeros((1, 4, 3, 16), np.float32)}, ValueError),
        ({"x": np.zeros((4, 4, 16), np.float32)}, ValueError),
        ({"weights": np.zeros((9, 16, 32), np.float32)}, ValueError),
        ({"mask": np.zeros((1, 4, 4, 32), np.float32)}, ValueError),
        ({"bias": np.zeros(16, np.float32)}, ValueError),
        ({"added": np.zeros((1, 32, 4, 4), np.float32).transpose(0, 2, 3, 1)}, ValueError),
    ],
)
def test_wrong_arrays_are_refused(core, change, error) -> None:
    x, out = np.zeros((1, 4, 4, 16), np.float32), np.zeros((1, 4, 4, 32), np.float32)
    right = {"x": x, "weights": np.zeros((36, 16, 32), np.float32), "mask": x, "bias": None, "added": out}
    core.winograd(**right, relu=False, out=out)
    with pytest.raises(error):
        core.winograd(**(right | change), relu=False, out=out)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"x": np.zeros((1, 16, 4, 4))}, TypeError),
        ({"x": np.zeros((1, 8, 4, 4), np.float32)}, ValueError),
        ({"x": np.zeros((1, 16, 3, 4), np.float32)}, ValueError),
        ({"x": np.zeros((16, 4, 4), np.float32)}, ValueError),
        ({"weights": np.zeros((9, 16, 32), np.float32)}, ValueError),
        ({"bias": np.zeros(16, np.float32)}, ValueError),
        ({"out": np.zeros((1, 4, 4, 32), np.float32).transpose(0, 3, 1, 2)}, ValueError),
    ],
)
def test_wrong_planes_are_refused(core, change, error) -> None:
    right = {
        "x": np.zeros((1, 16, 4, 4), np.float32), "weights": np.zeros((36, 16, 32), np.float32), "bias": None,
        "out": np.zeros((1, 32, 4, 4), np.float32),
    }  # fmt: skip
    core.winograd_planes(**right)
    with pytest.raises(error):
        core.winograd_planes(**(right | change))
