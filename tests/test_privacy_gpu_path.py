"""The forms that private steps take on a GPU, here on the CPU: gradients as those of a loop over samples, and how many
operations they are.

On a GPU a small operation takes as long as its launch, so that their number is what a step costs. It is the same on any
machine, and so are the bounds below.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from aisec_fast import clipping
from aisec_fast.cli.bench import _models, _training
from aisec_fast.privacy import _layers, _native
from tests.test_privacy_layers import LAYERS, MODELS, check, data, model_case, private_gradients, square_loss

pytestmark = pytest.mark.usefixtures("gpu_path")


@pytest.fixture
def gpu_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "on_gpu", lambda _values: True)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with sums of blocks of two samples, the ninth alone, of gradients that are not kept."""
    if blocks:
        monkeypatch.setattr(_layers, "KEEP_FACTOR", 0)
        monkeypatch.setattr(_layers, "block_size", lambda _terms, _dtype, *, alone: 2)
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    check(make().double(), *data(shape), square_loss)


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("name", MODELS)
def test_model(name: str, memory: str) -> None:
    check(*model_case(name, torch.float64), memory=memory)
    check(*model_case(name, torch.float32), memory=memory, tolerance=3e-4)


@pytest.mark.parametrize("name", MODELS)
def test_model_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layers, "CHUNK_ELEMENTS", 200)
    check(*model_case(name, torch.float64))


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_batch(name: str) -> None:
    model, x, y, loss_of = model_case(name, torch.float32)
    for gradient in private_gradients(model, x[:0], y[:0], loss_of, reduction="sum"):
        assert not gradient.any()


@pytest.mark.parametrize("name", ["mlp", "transformer", "resnet"])
def test_a_sample_whose_loss_is_nan_counts_as_zero(name: str) -> None:
    model, x, y, loss_of = model_case(name, torch.float64)

    def poisoned(output: Tensor, y: Tensor) -> Tensor:
        return loss_of(output, y) * torch.tensor([1.0] * 4 + [math.nan] + [1.0] * 4)[: len(y)]

    without = [i for i in range(len(x)) if i != 4]
    expected = private_gradients(copy.deepcopy(model), x[without], y[without], loss_of, reduction="sum")
    for g, e in zip(private_gradients(model, x, y, poisoned, reduction="sum"), expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0.0, atol=1e-10)
