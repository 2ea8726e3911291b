"""Layers of private steps in faster forms: the same gradients up to rounding, and nothing left behind (privacy/_forms)."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from aisec_fast import PrivacyError, noise, use_backend
from aisec_fast.privacy import PrivacyEngine, _forms
from tests.conftest import NATIVE, running

FAST = [name for name in NATIVE if name not in ("native-baseline", "native-sse41")]
pytestmark = [
    pytest.mark.skipif(not FAST, reason="no instruction set that has forms"),
    pytest.mark.filterwarnings("ignore:a step used a batch that did not come from the loader"),
]


@pytest.fixture(params=FAST, autouse=True)
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_forms, "_has_slow_mkl", lambda: True)
    for _ in running(request.param):
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# A layer, an input, and the forms it takes: of the forward and of the gradient of its input.
LAYERS: dict[str, tuple[Any, tuple[int, ...], tuple[str, str]]] = {
    "3 x 3": (lambda: nn.Conv2d(16, 32, 3, padding=1), (5, 16, 8, 8), ("winograd", "winograd")),
    "3 x 3, same, no bias": (
        lambda: nn.Conv2d(16, 16, 3, padding="same", bias=False), (2, 16, 19, 30), ("winograd", "winograd"),
    ),
    "3 x 3, small images": (lambda: nn.Conv2d(16, 16, 3, padding=1), (2, 16, 5, 5), ("torch", "torch")),
    "steps": (lambda: nn.Conv2d(16, 32, 4, 2), (3, 16, 13, 13), ("taps", "taps")),
    "steps, many taps": (lambda: nn.Conv2d(64, 16, 3, (2, 1), (1, 2)), (2, 64, 8, 9), ("torch", "taps")),
    "1 x 1": (lambda: nn.Conv2d(32, 16, 1, 2), (2, 32, 9, 8), ("taps", "taps")),
    "both by taps": (lambda: nn.Conv2d(32, 16, 3, (1, 2), padding=2, dilation=2), (2, 32, 12, 11), ("taps", "taps")),
    "linear": (lambda: nn.Linear(256, 256), (5, 256), ("product", "product")),
    "linear, sequences": (lambda: nn.Linear(256, 300, bias=False), (3, 7, 256), ("product", "product")),
}  # fmt: skip


def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what forms call from now on."""
    calls: list[str] = []

    def watched(owner: Any, attribute: str, name: str) -> None:
        original = getattr(owner, attribute)

        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return original(*args, **options)

        monkeypatch.setattr(owner, attribute, call)

    watched(_forms._winograd, "planes", "winograd")
    watched(_forms.ConvolutionForm, "_by_taps", "taps")
    watched(_forms, "_product", "product")
    return calls


class Model(nn.Module):
    """A layer whose input depends on a parameter, so that the gradient of its input counts."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.LayerNorm(shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.layer(self.scale(x)), inplace=True)


def test_info_says_which() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1, 2), nn.Flatten(), nn.Linear(4096, 16))
    for layers, forms in (
        ("fast", {"0": "Winograd's products", "1": "sums over taps", "3": "oneDNN's product"}),
        ("torch", {}),
    ):
        engine = PrivacyEngine(layers=layers)
        private(copy.deepcopy(model), random(2, 16, 32, 32), engine=engine)
        assert engine.info()[0]["forms"] == forms
    with use_backend("numba"):
        assert _forms.form_of(model[0]) is None


def private(model: nn.Module, x: Tensor, layers: str = "fast", engine: Any = None, **options: Any) -> Any:
    """An optimizer whose steps clip alone; nothing is clipped by more than a factor of 1000."""
    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=len(x))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (PrivacyEngine(layers=layers) if engine is None else engine).make_private(
            module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=0, max_grad_norm=0.1,
            poisson_sampling=False, source=noise.SeededSource(1), **options,
        )  # fmt: skip
    return optimizer


def step(model: nn.Module, optimizer: Any, x: Tensor) -> dict[str, Tensor]:
    optimizer.zero_grad()
    model(x).square().flatten(1).sum(1).mean().backward()
    optimizer.step()
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        found[name] = parameter.grad.clone()
    return found


def made(name: str, dtype: torch.dtype = torch.float32) -> tuple[Model, Tensor]:
    make, shape, _ = LAYERS[name]
    torch.manual_seed(3)
    return Model(make(), shape).to(dtype), random(*shape).to(dtype)


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_the_layer(name, memory, monkeypatch) -> None:
    exact, x = made(name, torch.float64)
    expected = step(exact, private(exact, x), x)
    model, x = made(name)
    optimizer = private(model, x, check_rows=False)
    calls = taken(monkeypatch)
    found = step(model, optimizer, x)
    forms = LAYERS[name][2]
    assert calls == [form for form in forms if form != "torch"]
    for key, value in found.items():  # float32 differs from float64 by 3e-7 to 2e-5 of the norm in any form
        assert (value - expected[key]).norm() <= 1e-4 * expected[key].norm(), key
    assert not {"forward", "_conv_forward"} & vars(model.layer).keys()


@pytest.mark.parametrize("name", LAYERS)
def test_a_sample_does_not_depend_on_the_others(name) -> None:
    """To the bit, at a fixed shape: what docs/privacy.md, section 2, asks of a layer. Convolutions: at any."""
    make, shape, _ = LAYERS[name]
    torch.manual_seed(3)
    layer = make().requires_grad_(False)
    form = _forms.form_of(layer)
    assert form is not None

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        result = form(x, layer.weight, layer.bias) if isinstance(layer, nn.Conv2d) else form(x)
        (gradient,) = torch.autograd.grad(result, x, torch.cos(result))
        return result.detach(), gradient

    x = random(*shape)
    other = random(*shape, seed=1)
    other[1] = x[1]
    for one, two in zip(both(x), both(other), strict=True):
        assert torch.equal(one[1], two[1])
        assert not torch.equal(one[0], two[0])
    if isinstance(layer, nn.Conv2d) and "torch" not in LAYERS[name][2]:
        for one, two in zip(both(x), both(x[1:2]), strict=True):
            assert torch.equal(one[1:2], two)


@pytest.mark.parametrize("name", ["3 x 3", "steps", "linear, sequences"])
def test_only_private_steps_take_them(name, monkeypatch) -> None:
    model, x = made(name)
    plain = copy.deepcopy(model)
    optimizer = private(model, x, check_rows=False)
    calls = taken(monkeypatch)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    model.eval()
    assert torch.equal(model(x), plain(x))
    model.train()
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        assert model.layer(x).dtype == torch.bfloat16
        model(x)
    checkpoint(model, x, use_reentrant=False)
    with torch.autograd.forward_ad.dual_level():
        model(x)
    with torch.overrides.BaseTorchFunctionMode():
        model(x)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() > 0
    torch._C._set_mkldnn_enabled(False)
    try:
        model(x)
    finally:
        torch._C._set_mkldnn_enabled(True)
    with use_backend("numba"):
        if name != "linear, sequences":  # whose form is torch's own kernel
            model(x)
    assert not calls
    optimizer.zero_grad()
    model.layer(x)  # a part called by itself
    assert not calls
    optimizer.zero_grad()
    step(model, optimizer, x)
    assert len(calls) == 2


def test_somebodys_own_forward_stays() -> None:
    model, x = made("linear")
    optimizer = private(model, x, check_rows=False)
    called = []

    def own(given: Tensor) -> Tensor:
        called.append(given)
        return nn.Linear.forward(model.layer, given)

    model.layer.forward = own
    step(model, optimizer, x)
    assert len(called) == 1
    assert vars(model.layer)["forward"] is own


def test_errors_and_changed_layers_are_torchs() -> None:
    layer = nn.Conv2d(32, 16, 3, 2).requires_grad_(False)
    form = _forms.form_of(layer)
    x = random(2, 32, 8, 8)
    with pytest.raises(RuntimeError, match="greater than actual input size"):
        form(x[:, :, :2].contiguous(), layer.weight, layer.bias)
    layer.stride = (1, 1)
    assert torch.equal(form(x, layer.weight, layer.bias), layer(x))
    linear = nn.Linear(256, 256).requires_grad_(False)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        _forms.form_of(linear)(random(2, 255))


def test_usual_arguments() -> None:
    x, weight = random(2, 3), random(4, 3)
    assert _forms._is_usual(x, weight, None)
    others = [x.double(), x.t(), x.to_sparse(), x.to("meta"), x.as_subclass(type("Other", (Tensor,), {})), x.bfloat16()]
    assert not any(_forms._is_usual(other, weight, None) for other in others)
    assert not _forms._is_usual(random(1, 6)[:, :3], weight, None)  # of a larger batch it would not be contiguous
    assert not any(_forms._is_usual(x, other, None) for other in [*others, weight.clone().requires_grad_()])
    assert not _forms._is_usual(x, weight, random(4).requires_grad_())


def test_not_if_torch_is_asked_for(monkeypatch) -> None:
    model, x = made("3 x 3")
    plain = copy.deepcopy(model)
    optimizer = private(model, x, layers="torch")
    calls = taken(monkeypatch)
    assert torch.equal(model(x), plain(x))
    optimizer.zero_grad()
    step(model, optimizer, x)
    assert not calls
    with pytest.raises(ValueError, match="layers must be one of 'fast', 'torch', got 'slow'"):
        PrivacyEngine(layers="slow")


def test_nothing_is_left_behind() -> None:
    model, x = made("3 x 3")
    optimizer = private(model, x, check_rows=False)
    seen = []
    hook = model.scale.register_forward_hook(lambda *_: seen.append("_conv_forward" in vars(model.layer)))
    step(model, optimizer, x)
    hook.remove()
    assert seen == [True]
    assert "_conv_forward" not in vars(model.layer)
    with pytest.raises(RuntimeError):
        model(x[:, :3])
    assert "_conv_forward" not in vars(model.layer)
    optimizer.zero_grad()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        other.eval()
        assert torch.equal(other(x), model.eval()(x))
        with pytest.raises(PrivacyError, match="belongs to a copy"):
            other.train()(x)


def test_second_order_and_second_passes_are_refused() -> None:
    model, x = made("3 x 3")
    optimizer = private(model, x, check_rows=False)
    loss = model(x).square().sum()
    with pytest.raises(PrivacyError, match="create_graph=True"):
        loss.backward(create_graph=True)
    optimizer.zero_grad()
    loss = model(x).square().sum()
    loss.backward(retain_graph=True)
    with pytest.raises(PrivacyError, match="second backward pass"):
        loss.backward()


def test_weights_may_not_change_before_the_backward_pass() -> None:
    model, x = made("3 x 3")
    private(model, x, check_rows=False)
    loss = model(x).square().sum()
    with torch.no_grad():
        model.layer.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_empty_batches_and_first_layers(monkeypatch) -> None:
    calls = taken(monkeypatch)
    for name in ("3 x 3", "both by taps", "linear, sequences"):
        make, shape, (form, _) = LAYERS[name]
        model = nn.Sequential(make(), nn.ReLU(inplace=True))
        optimizer = private(model, random(*shape), check_rows=False)
        calls.clear()
        for rows in (shape[0], 0):
            optimizer.zero_grad()
            model(random(rows, *shape[1:])).square().sum().backward()
            optimizer.step()
        assert not model[0].weight.grad.any()
        assert calls == [form] * 2  # nobody waits for the gradient of a first layer's input


def test_layers_that_have_no_form() -> None:
    class Other(nn.Conv2d):
        pass

    for layer in (
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding=1).double(), Other(16, 16, 3, padding=1), nn.Conv2d(16, 16, (4, 3), padding="same"),
        nn.Conv2d(64, 64, 5), nn.Conv2d(3, 16, 8, 2), nn.Conv2d(16, 16, 1, 5, padding=2), nn.Linear(64, 64), nn.Conv1d(16, 16, 3, padding=1), nn.GroupNorm(1, 16),
        nn.LayerNorm(16, elementwise_affine=False), nn.Conv2d(512, 512, 3, padding=1),
    ):  # fmt: skip
        assert _forms.form_of(layer) is None, layer
