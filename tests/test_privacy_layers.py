"""The clipped gradient of every covered layer against a loop over single samples in float64.

In float64 the engine and the loop differ by rounding only: each entry of the sum is within a few hundred roundings of
values no larger than max_norm, far below 1e-11. In float32 the forward pass itself is rounded; see ``test_float32``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from aisec_fast import PrivacyError
from aisec_fast.privacy import PrivacyEngine, _charges, _layers, _native
from aisec_fast.privacy._clip import KAPPA, MARGIN, Total, Weights

CLIP = 0.7
LossOf = Callable[[Tensor, Tensor], Tensor]  # (model output, target) -> [B] losses


def private_gradients(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss_of: LossOf,
    *,
    reduction: str = "mean",
    batch_first: bool = True,
    memory: str = "fast",
    clipping: str = "flat",
) -> list[Tensor]:
    """The sum of clipped gradients that one noiseless step puts into ``.grad``, for a mean loss over the expected batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    records = TensorDataset(torch.arange(16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no noise; a batch of our own
        PrivacyEngine(memory=memory).make_private(
            module=model,
            optimizer=optimizer,
            data_loader=DataLoader(records, batch_size=16),
            noise_multiplier=0.0,
            max_grad_norm=CLIP,
            loss_reduction=reduction,
            batch_first=batch_first,
            clipping=clipping,
        )
        losses = loss_of(model(x), y)
        (losses.mean() if reduction == "mean" else losses.sum()).backward()
        assert all(p.grad is None for p in model.parameters())
        optimizer.step()
    factor = 16 if reduction == "mean" else 1
    return [p.grad * factor for p in model.parameters() if p.requires_grad]


def loop_gradients(
    model: nn.Module, x: Tensor, y: Tensor, loss_of: LossOf, dim: int = 0
) -> tuple[list[Tensor], list[float]]:
    """The same sum from one backward pass per sample in float64, and the norms before clipping."""
    model = copy.deepcopy(model).double()
    x = x.double() if x.is_floating_point() else x
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums, norms = [torch.zeros_like(p) for p in parameters], []
    for i in range(x.shape[dim]):
        output = model(x.narrow(dim, i, 1))
        gradients = torch.autograd.grad(loss_of(output, y[i : i + 1]).sum(), parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        norms.append(float(torch.sqrt(sum(g.square().sum() for g in gradients))))
        if norms[-1] < float("inf"):
            for total, g in zip(sums, gradients, strict=True):
                total += g * min(1.0, CLIP * (1 - MARGIN) / max(norms[-1], 1e-300))
    return sums, norms


def check(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss_of: LossOf,
    *,
    reduction: str = "mean",
    batch_first: bool = True,
    tolerance: float = 1e-11,
    memory: str = "fast",
) -> None:
    expected, norms = loop_gradients(model, x, y, loss_of, dim=0 if batch_first else 1)
    assert min(norms) < CLIP < max(norms), f"the test should clip some samples and not others: {norms}"
    got = private_gradients(model, x, y, loss_of, reduction=reduction, batch_first=batch_first, memory=memory)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=0.0, atol=tolerance * CLIP * len(norms))


def square_loss(output: Tensor, y: Tensor) -> Tensor:
    """A per-sample loss whose size differs between samples, so that some are clipped and others are not."""
    return (output.flatten(1) - y[:, None]).square().mean(1) * y.exp()


def data(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(shape, dtype=dtype), torch.linspace(-7.0, 3.0, shape[0], dtype=dtype)


# ------------------------------------------------------------------------------------------------ single layers


class GivenSize(nn.ConvTranspose2d):
    """Called with a size of the output that several inputs have in common."""

    def __init__(self) -> None:
        super().__init__(2, 3, 3, stride=3, padding=1)
        self.register_forward_pre_hook(lambda _module, args: (*args, [11, 14]))


class Scale(nn.Module):
    """A layer without a rule, with a parameter that is trained and one that is not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 2.0, width))
        self.shift = nn.Parameter(torch.zeros(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x + self.shift


class OwnNorm(nn.Module):
    """As many language models have it, with a buffer, an activation inside and a parameter that is used twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.ones(width)), nn.Tanh()
        self.register_buffer("eps", torch.tensor(1e-6))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.eps)
        return self.inner(self.weight * hidden) * self.weight


class Doubled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Turned(Scale):
    """Gives a view of what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(1, 2).contiguous().transpose(1, 2)


class Unused(Scale):
    """Does not use what it has: its gradient is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (9, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (9, 6)),
    "linear, short sequences: Gram": (lambda: nn.Linear(6, 9), (9, 3, 6)),
    "linear, long sequences: per sample": (lambda: nn.Linear(3, 2), (9, 7, 3)),
    "linear, two sequence dimensions": (lambda: nn.Linear(6, 5), (9, 2, 2, 6)),
    "linear, sequences of length one": (lambda: nn.Linear(6, 5), (9, 1, 6)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), (9, 2, 11)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3), (9, 2, 7, 6)),
    "conv2d strides, padding, dilation": (
        lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(2, 1)),
        (9, 2, 9, 8),
    ),
    "conv2d groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (9, 4, 6, 6)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding="valid"), (9, 4, 6, 6)),
    "conv2d same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (9, 2, 6, 6)),
    "conv2d same, even kernel": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2)), (9, 2, 6, 6)),
    "conv2d reflect": (lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), (9, 2, 6, 6)),
    "conv2d circular same": (lambda: nn.Conv2d(2, 3, 4, padding="same", padding_mode="circular"), (9, 2, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=2, padding=1), (9, 2, 4, 5, 4)),
    "layer norm": (lambda: nn.LayerNorm(5), (9, 5)),
    "layer norm on sequences": (lambda: nn.LayerNorm(5), (9, 4, 5)),
    "layer norm, two dimensions": (lambda: nn.LayerNorm((4, 5)), (9, 3, 4, 5)),
    "layer norm without bias": (lambda: nn.LayerNorm(5, bias=False), (9, 4, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (9, 6, 3, 3)),
    "group norm without space": (lambda: nn.GroupNorm(2, 6), (9, 6)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1), (9, 2, 6)),
    "transposed conv2d": (lambda: nn.ConvTranspose2d(2, 4, 3), (9, 2, 5, 6)),
    "transposed conv2d strides, padding, dilation": (
        lambda: nn.ConvTranspose2d(2, 4, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(2, 1)),
        (9, 2, 5, 4),
    ),
    "transposed conv2d output padding": (
        lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=(0, 2), output_padding=1),
        (9, 2, 4, 5),
    ),
    "transposed conv2d output padding beyond the stride": (
        lambda: nn.ConvTranspose2d(2, 3, 2, padding=1, output_padding=2, dilation=3, bias=False),
        (9, 2, 4, 5),
    ),
    "transposed conv2d groups": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (9, 4, 5, 5)),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (9, 2, 2, 3, 2)),
    "transposed conv2d of a given size": (GivenSize, (9, 2, 4, 5)),
    "rms norm": (lambda: nn.RMSNorm(5), (9, 5)),
    "rms norm on sequences": (lambda: nn.RMSNorm(5, eps=0.1), (9, 4, 5)),
    "rms norm, two dimensions": (lambda: nn.RMSNorm((4, 5)), (9, 3, 4, 5)),
    "instance norm 1d": (lambda: nn.InstanceNorm1d(3, affine=True), (9, 3, 7)),
    "instance norm 2d": (lambda: nn.InstanceNorm2d(3, affine=True, eps=0.1), (9, 3, 4, 5)),
    "instance norm 3d": (lambda: nn.InstanceNorm3d(2, affine=True), (9, 2, 3, 2, 4)),
    "prelu": (lambda: nn.Sequential(nn.Linear(6, 5), nn.PReLU()), (9, 6)),
    "prelu of channels": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.PReLU(4)), (9, 2, 6)),
    "prelu of channels without space": (lambda: nn.Sequential(nn.Linear(6, 5), nn.PReLU(5)), (9, 6)),
    "own scale": (lambda: nn.Sequential(nn.Linear(6, 5), Scale(5), nn.Linear(5, 4), nn.Tanh(), Scale(4)), (9, 3, 6)),
    "own scale first": (lambda: nn.Sequential(Scale(6), nn.Linear(6, 5)), (9, 6)),
    "own norm": (lambda: nn.Sequential(OwnNorm(6), nn.Linear(6, 5)), (9, 4, 6)),
    "own forward of a linear layer": (lambda: nn.Sequential(Doubled(6, 5), nn.ReLU(inplace=True)), (9, 3, 6)),
    "own layer that gives a view": (lambda: nn.Sequential(nn.Linear(6, 5), Turned(5), nn.Linear(5, 4)), (9, 3, 6)),
    "own layer that gives its input": (lambda: nn.Sequential(nn.Linear(6, 5), Unused(5), nn.Linear(5, 4)), (9, 6)),
}


@pytest.fixture(params=[False, True], ids=["", "as on a GPU"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms of a GPU too, where torch makes what kernels of our own do on the CPU."""
    if request.param:
        monkeypatch.setattr(_native, "on_gpu", lambda _values: True)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, chunked: bool, products: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rule, also where memory limits make it work a few samples at a time."""
    if chunked:
        monkeypatch.setattr(_layers, "CHUNK_ELEMENTS", 1)
        monkeypatch.setattr(_layers, "KEEP_FACTOR", 0)
        monkeypatch.setattr(_layers, "block_size", lambda _terms, _dtype, *, alone: 2)
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    check(make().double(), *data(shape), square_loss)


SINGLE = LAYERS | {
    f"linear, {length} tokens{named}": (partial(nn.Linear, *sizes, bias=bias), (9, length, sizes[0]))
    for length in (20, 65, 129, 200)
    for sizes in ((6, 5), (40, 70))
    for named, bias in (("", True), (" without bias", False))
    for named in (f" of {sizes[0]}{named}",)
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("name", SINGLE)
def test_layer_in_float32(name: str, memory: str, products: None) -> None:
    """What kernels of our own do only there. Tolerance: as test_float32."""
    make, shape = SINGLE[name]
    torch.manual_seed(0)
    check(make(), *data(shape, torch.float32), square_loss, tolerance=3e-4, memory=memory)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["conv2d", "conv2d groups", "group norm"])
def test_images_that_lie_channels_last(name: str, batch: int, products: None) -> None:
    """Of a batch of one even a view of such an image can look as if it lay in order."""
    make, shape = LAYERS[name]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 3e-4)):
        torch.manual_seed(0)
        model, (x, y) = nn.Sequential(nn.Identity(), make()).to(dtype), data((batch, *shape[1:]), dtype)
        expected, _ = loop_gradients(
            model, x, y, square_loss
        )  # in order: torch's own GroupNorm fails for such an image
        turned = x.contiguous(memory_format=torch.channels_last)
        for found, right in zip(private_gradients(model, turned, y, square_loss), expected, strict=True):
            torch.testing.assert_close(found.double(), right, rtol=tolerance, atol=tolerance * float(right.norm()))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("padding", [None, 2, -1])
@pytest.mark.parametrize("shape", [(9, 6), (9,), (9, 2, 3)])
def test_embedding(shape: tuple[int, ...], padding: int | None, reduction: str) -> None:
    """Tokens that repeat inside a sample and between samples, and a padding token."""
    torch.manual_seed(0)
    model = nn.Embedding(4, 3, padding_idx=padding).double()
    check(model, torch.randint(0, 4, shape), data((9, 1))[1], square_loss, reduction=reduction)


def test_frozen_parameters_are_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    check(model, *data((9, 6)), square_loss)
    assert model[0].weight.grad is None


@pytest.mark.parametrize(("dtype", "smallest"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_gram_norm_is_never_too_small(dtype: torch.dtype, smallest: float) -> None:
    """Tokens that cancel: the Gram sum loses all its digits, so the norm has to be an upper bound."""
    torch.manual_seed(0)
    for scale in (0.0, smallest, 10 * smallest, 100 * smallest):
        inputs = torch.randn(16, 1, 64, dtype=dtype).repeat(1, 2, 1)
        first = torch.randn(16, 1, 64, dtype=dtype)
        outputs = torch.cat([first, -first * (1 + scale)], 1)
        rule = _layers.LinearGradients(nn.Linear(64, 64), inputs, outputs)
        # The tokens are alike, so the gradient is one outer product: exact to a few roundings.
        truth = outputs.double().sum(1).square().sum(1) * inputs[:, 0].double().square().sum(1)
        found = rule.norms("weight").squares
        assert (found >= truth * (1 - 1e-12)).all()
        assert (
            found <= truth + 1e-3 * inputs.double().square().sum((1, 2)) * first.double().square().sum((1, 2))
        ).all()


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any torch operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("case", ["linear", "gram", "long sequences", "embedding"])
def test_no_matrix_of_all_samples_gradients(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing as large as batch x parameters is ever made for Linear and Embedding."""
    torch.manual_seed(0)
    monkeypatch.setattr(_layers, "CHUNK_ELEMENTS", 3 * 64 * 64)
    batch, length = 32, {"linear": 1, "gram": 4, "long sequences": 128, "embedding": 16}[case]
    if case == "embedding":
        model, x = nn.Embedding(500, 64), torch.randint(0, 500, (batch, length))
        rule = _layers.EmbeddingGradients(model, x, torch.randn(batch, length, 64))
    else:
        model, x = nn.Linear(64, 64), torch.randn(batch, length, 64)
        rule = _layers.LinearGradients(model, x, torch.randn(batch, length, 64))
    with LargestTensor() as largest:
        rule.norms("weight")
        rule.add_total("weight", Weights(torch.ones(batch, dtype=torch.float64)), Total(model.weight))
    inputs_and_weight = max(batch * length * 64, model.weight.numel(), 3 * 64 * 64)
    assert largest.elements <= inputs_and_weight
    assert case == "long sequences" or inputs_and_weight * 2 < batch * model.weight.numel()


# -------------------------------------------------------------------------------------------------- whole models


class Block(nn.Module):
    """Residual block with in-place ReLU and in-place addition."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.n1 = nn.GroupNorm(2, outputs)
        self.c2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.n2 = nn.GroupNorm(2, outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.n1(self.c1(x)))
        y = self.n2(self.c2(y))
        y += self.short(x)
        return F.relu_(y)


class Layer(nn.Module):
    """Transformer layer of Linear, LayerNorm and scaled_dot_product_attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.n1(x)).view(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(a)
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Transformer(nn.Module):
    """Language model; with ``tied``, the output layer shares the token embedding's weight."""

    def __init__(self, words: int = 11, width: int = 8, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(16, width)
        self.layers = nn.Sequential(Layer(width), Layer(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device).repeat(x.shape[0], 1)
        return self.head(self.norm(self.layers(self.tokens(x) + self.positions(positions))))


class Positioned(Transformer):
    """Its positions are those of all samples, [T] or [1, T], as most language models have them."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device).view(self.shape)
        return self.head(self.norm(self.layers(self.tokens(x) + self.positions(positions))))


class Reused(nn.Module):
    """One layer called three times, on inputs of different shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.core, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.core(torch.tanh(self.core(self.first(x))))
        pair = torch.stack([h, x[:, :5]], 1)
        return self.last(self.core(pair).sum(1))


class VisionTransformer(nn.Module):
    """With a class token and positions, parameters of a module of layers, and a scale of each branch."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) / 5)
        self.positions = nn.Parameter(torch.randn(1, 5, width) / 5)
        self.layer, self.scale, self.norm, self.head = Layer(width), Scale(width), OwnNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(x + self.scale(self.layer(x)))[:, 0] + self.positions[:, 0])


class Regression(nn.Module):
    """All of it is one layer of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(12, 4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 5, 2, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(6, 8, 3, groups=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(8 * 5 * 5, 10),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Linear(16, 4)), (9, 12)),
    "cnn": (cnn, (9, 2, 16, 16)),
    "resnet": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 1, 1),
            Block(4, 4, 1),
            Block(4, 8, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        ),
        (9, 3, 8, 8),
    ),
    "reused": (Reused, (9, 6)),
    "vit": (VisionTransformer, (9, 3, 8, 8)),
    "regression": (Regression, (9, 12)),
    "transformer": (Transformer, ()),
    "tied transformer": (lambda: Transformer(tied=True), ()),
    "positioned transformer": (lambda: Positioned((-1,)), ()),
    "positioned once transformer": (lambda: Positioned((1, -1)), ()),
}


def model_case(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor, LossOf]:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().to(dtype)
    if shape:
        return model, *data(shape, dtype), square_loss
    x = torch.randint(0, 11, (9, 5))
    scale = torch.logspace(-2, 0.5, 9, dtype=dtype)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output.transpose(1, 2), y[:, :5].long(), reduction="none").mean(1) * y[:, 5]

    return model, x, torch.cat([torch.randint(0, 11, (9, 5)).to(dtype), scale[:, None]], 1), loss


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    check(*model_case(name, torch.float64))


@pytest.mark.parametrize("name", ["reused", "tied transformer"])
def test_reuse_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layers, "CHUNK_ELEMENTS", 200)
    check(*model_case(name, torch.float64))


@pytest.mark.parametrize("name", MODELS)
def test_float32(name: str, products: None) -> None:
    """Float32 against the float64 loop.

    Sums of at most 256 terms through at most 20 layers: each layer's relative error is at most 256 * 2^-24 = 1.5e-5 of
    the values it sums, so 3e-4 of max_norm per sample is a generous bound.
    """
    check(*model_case(name, torch.float32), tolerance=3e-4)


def test_several_forward_passes_into_one_loss() -> None:
    """Two views of the same records: each sample's gradients are added before the norm is taken."""

    class TwoViews(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(48, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.net(x.flip(3))

    torch.manual_seed(0)
    check(TwoViews().double(), *data((9, 1, 6, 6)), square_loss)


def test_batch_second() -> None:
    """Sequences of shape [T, B, ...], reduced over time before a head that sees [B, d]."""

    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.mix, self.norm, self.head = (
                nn.Embedding(7, 6),
                nn.Linear(6, 5),
                nn.LayerNorm(5),
                nn.Linear(5, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.mix(self.tokens(x))).mean(0))

    torch.manual_seed(0)
    x = torch.randint(0, 7, (4, 9))
    check(TimeFirst().double(), x, data((9, 1))[1], square_loss, batch_first=False)


# -------------------------------------------------------------------------------------------- samples to leave out


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "reused"])
def test_bad_sample_contributes_zero(
    name: str, chunked: bool, poison: float, products: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample with NaN or Inf counts as zero and changes nothing else. The loop leaves it out too."""
    if chunked:
        monkeypatch.setattr(_layers, "CHUNK_ELEMENTS", 1)
        monkeypatch.setattr(_layers, "KEEP_FACTOR", 0)
    model, x, y, loss = model_case(name, torch.float64)
    x[4] = poison
    kept = [i for i in range(9) if i != 4]
    expected, _ = loop_gradients(model, x[kept], y[kept], loss)
    got = private_gradients(model, x, y, loss)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0.0, atol=1e-11 * CLIP * 9)


def test_bad_gradient_of_a_transformer_sample() -> None:
    """The same where the input is fine and the loss is not."""
    model, x, y, loss = model_case("tied transformer", torch.float64)
    y[4, 5] = float("nan")
    kept = [i for i in range(9) if i != 4]
    expected, _ = loop_gradients(model, x[kept], y[kept], loss)
    for g, e in zip(private_gradients(model, x, y, loss), expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0.0, atol=1e-11 * CLIP * 9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("name", MODELS)
def test_empty_batch(name: str, memory: str, dtype: torch.dtype, products: None) -> None:
    model, x, y, loss = model_case(name, dtype)
    assert all((g == 0).all() for g in private_gradients(model, x[:0], y[:0], loss, memory=memory))


@pytest.mark.filterwarnings("ignore:a step used a batch that did not come from the loader")
@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("name", ["embedding", "linear, short sequences: Gram", "linear"])
def test_what_sums_are_made_of_may_not_change(name: str, memory: str) -> None:
    """Norms are of what was there in the backward pass: nine tokens that become one would count three times."""
    torch.manual_seed(0)
    make, shape = LAYERS.get(name, (lambda: nn.Embedding(10, 4), (1, 9)))
    model = make()
    x = torch.arange(9).view(shape) if name == "embedding" else torch.randn(shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loader = DataLoader(TensorDataset(torch.arange(16)), batch_size=16)
    model, optimizer, _ = PrivacyEngine(memory=memory).make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=CLIP
    )
    model(x).square().sum().backward()
    x.fill_(3)
    with pytest.raises(PrivacyError, match=r"changed in place between backward\(\) and optimizer.step\(\)"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:a step used a batch that did not come from the loader")
def test_single_terms_of_a_parameter_used_twice_may_cancel() -> None:
    """The weight of a sample then goes by the sum of its terms' lengths, as for sequences, and so do the charges."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(30, 20)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) - self.layer(x * 0.875)

    charges = {}
    for model in (Twice(), nn.Linear(30, 20)):
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        loader = DataLoader(TensorDataset(torch.arange(256)), batch_size=256)
        engine = PrivacyEngine()
        model, optimizer, _ = engine.make_private(
            module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=CLIP,
            poisson_sampling=False,
        )  # fmt: skip
        model(torch.randn(256, 30)).square().sum().backward()
        optimizer.step()
        charges[type(model)] = engine.info()[0]["charges"]["float"]
    block = min(_charges.block_size(1, torch.float32, alone=False), 128)
    assert charges[Twice] > _charges.block_charge(block, 1, torch.float32, alone=False)
    assert _charges.block_charge(block, 1, torch.float32, alone=False) == pytest.approx(
        KAPPA * _charges.block_charge(block, 1, torch.float32)
    )
    # What is added up is as much longer.
    once, twice = (_charges.adding_charge(256, 10, torch.float32, alone=alone) for alone in (True, False))
    assert twice == KAPPA * once
    assert charges[nn.Linear] < 0.004


class _TwoUses(nn.Module):
    """A bias that two convolutions share, or a convolution called twice whose bias comes first among its parameters."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 4, 3)
        if shared:
            self.other = nn.Conv2d(1, 4, 3)
            self.other.bias = self.one.bias
        else:
            self.other = self.one
            weight = self.one.weight
            del self.one.weight
            self.one.weight = weight

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.one(x[:, :1]), self.other(x[:, 1:])


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_norm_is_that_of_the_very_bias_that_is_summed(shared: bool, memory: str) -> None:
    """Gradients of 1e5 whose sum over the positions is all rounding: of another order of additions, it is another one."""
    torch.manual_seed(0)
    model = _TwoUses(shared=shared)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(16)), batch_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PrivacyEngine(memory=memory).make_private(
            module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=0.0, max_grad_norm=0.1,
            loss_reduction="sum", check_rows=False, poisson_sampling=False,
        )  # fmt: skip
        gradient = torch.randn(1, 4, 20, 20) * 1e5
        for _ in range(30):
            gradient.view(1, 4, -1)[..., -1] -= gradient.sum((2, 3))
        one, other = model(torch.zeros(1, 2, 22, 22))
        (one.sum() * 0 + (other * gradient).sum()).backward()
        optimizer.step()
    total = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert total.norm() <= 0.1 * (1 + 1e-6)


def test_a_stride_may_be_a_list() -> None:
    layer = nn.Conv2d(2, 3, 3)
    layer.stride = [1, 1]  # type: ignore[assignment]
    rule = _layers.Conv2dGradients(layer, torch.randn(2, 2, 5, 5), torch.randn(2, 3, 3, 3))
    assert rule.keeps("weight") in (True, False)


class _TwoWays(nn.Module):
    """A layer with a setting that changes from call to call."""

    def __init__(self, layer: nn.Module, name: str, values: tuple[Any, Any]) -> None:
        super().__init__()
        self.layer, self.name, self.values = layer, name, values

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros((len(x), 1))
        for value in self.values:
            setattr(self.layer, self.name, value)
            total = total + self.layer(x).flatten(1).square().sum(1, keepdim=True)
        return total


SETTINGS: dict[str, tuple[Any, str, tuple[Any, Any], tuple[int, ...]]] = {
    "dilation": (lambda: nn.Conv2d(4, 3, 3), "dilation", ((1, 1), (2, 2)), (5, 4, 8, 8)),
    "stride": (lambda: nn.Conv1d(4, 3, 3), "stride", ((1,), (2,)), (5, 4, 8)),
    "num_groups": (lambda: nn.GroupNorm(2, 4), "num_groups", (2, 4), (5, 4, 8)),
    "eps": (lambda: nn.LayerNorm(4), "eps", (1e-5, 1.0), (5, 4)),
    "padding_idx": (lambda: nn.Embedding(6, 4), "padding_idx", (None, 2), (5, 4)),
}


@pytest.mark.parametrize("when", ["between two calls", "before backward", "before the step"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_changes_in_a_step_is_refused(name: str, when: str) -> None:
    """The rule would take the new one for all calls."""
    make, key, (one, other), shape = SETTINGS[name]
    twice = when != "before backward"
    model = _TwoWays(make(), key, (one, other) if when == "between two calls" else (one, one)[: 1 + twice])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(16)), batch_size=16)
    engine = PrivacyEngine()
    engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0, check_rows=False
    )
    torch.manual_seed(0)
    x = torch.randint(6, shape) if name == "padding_idx" else torch.randn(shape)

    def step() -> None:
        loss = model(x).sum()
        if when == "before backward":
            setattr(model.layer, key, other)
        loss.backward()
        setattr(model.layer, key, other)
        optimizer.step()

    with pytest.raises(PrivacyError, match=f"module 'layer' has another {key} than when it was called"):
        step()
    assert engine.get_epsilon(1e-5) == 0.0
