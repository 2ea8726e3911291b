"""``memory="low"``: the same bits as the default, from less memory."""

from __future__ import annotations

import gc
import os
import platform
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from aisec_fast import _backends, noise
from aisec_fast.cli.bench import _memory, _models, _training
from aisec_fast.privacy import PrivacyEngine, _layers

from .test_privacy_layers import LAYERS, MODELS, data, model_case, square_loss

Case = tuple[nn.Module, Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]
Optimizers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}  # the last is not fused


def make_private(model: nn.Module, memory: str, optimizer: str = "sgd", **options: Any) -> tuple[PrivacyEngine, Any]:
    engine, chosen = PrivacyEngine(memory=memory, accountant="rdp"), Optimizers[optimizer](model.parameters(), lr=0.1)
    engine.make_private(
        module=model,
        optimizer=chosen,
        data_loader=DataLoader(TensorDataset(torch.arange(16)), batch_size=16),
        noise_multiplier=0.5,
        max_grad_norm=0.7,
        source=noise.SeededSource(1),
        **options,
    )
    return engine, chosen


def trained(case: Case, memory: str, **options: Any) -> tuple[list[Tensor], list[dict[str, Any]], float]:
    """Gradients and weights of two steps, and what the engine says of them."""
    model, x, y, loss_of = case
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a batch of our own
        engine, optimizer = make_private(model, memory, **options)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model(x), y).mean().backward()
            optimizer.step()
            for parameter in (p for p in model.parameters() if p.requires_grad):
                seen += [parameter.grad.clone(), parameter.detach().clone()]
        return seen, engine.info(), engine.get_epsilon(1e-5)


def check(make: Callable[[], Case], **options: Any) -> None:
    (fast, *said), (low, *said_low) = trained(make(), "fast", **options), trained(make(), "low", **options)
    assert said == said_low
    for one, other in zip(fast, low, strict=True):
        assert torch.equal(one, other)


class Transposed(nn.Module):
    """Its loss sees the output transposed, so that the gradient that comes back is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).transpose(1, 2)


def transposed_case() -> Case:
    torch.manual_seed(0)
    model, x = Transposed(), torch.randn(9, 4, 5)

    def loss_of(output: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, y, reduction="none").mean(1)

    return model, x, torch.randint(6, (9, 4)), loss_of


def test_transposed_gradients() -> None:
    check(transposed_case)


def test_a_gradient_that_somebody_holds_is_left_alone() -> None:
    """A hook of the user's on the layer's own node sees the copy that the engine has laid out; the next step makes another."""
    model, x, y, loss_of = transposed_case()
    held: list[Tensor] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, optimizer = make_private(model, "fast", check_rows=False)
        for _ in range(3):
            optimizer.zero_grad()
            output = model(x)
            output.grad_fn.next_functions[0][0].register_prehook(lambda gradients: held.append(gradients[0]))
            copies = [gradient.clone() for gradient in held]
            loss_of(output, y).mean().backward()
            optimizer.step()
            assert all(torch.equal(a, b) for a, b in zip(held[:-1], copies, strict=True))
    assert len({gradient.data_ptr() for gradient in held}) == 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of another C library")
def test_freed_memory_is_kept() -> None:
    """Pages that have been freed cost nothing the next time: but for a few blocks of the 40, once in a while, where something
    small has taken their place. Given back to the system, all 40 would be paid for again each time."""
    program = """
import resource, torch
from aisec_fast import _backends
assert _backends.keep_freed_memory()
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**20) for _ in range(40)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[1:]))
"""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_TUNABLES", "MALLOC_"))}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=plain)
    assert int(done.stdout) < 4 * 2**22 / resource.getpagesize()


def test_settings_of_malloc_in_the_environment_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    _backends.keep_freed_memory.cache_clear()
    try:
        assert not _backends.keep_freed_memory()
    finally:
        _backends.keep_freed_memory.cache_clear()


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_only_fast_steps_keep_freed_memory(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(_backends, "keep_freed_memory", lambda: calls.append(True))
    make_private(transposed_case()[0], memory)
    assert len(calls) == (memory == "fast")


@pytest.fixture
def twice(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the parts in which gradients are made that "low" does not keep, a sample or two each."""
    monkeypatch.setattr(_layers, "PART_ELEMENTS", 500)
    parts: list[int] = []
    original = _layers.ConvGradients._small_parts

    def counted(rule: Any) -> Any:
        for start, stop in original(rule):
            parts.append(stop - start)
            yield start, stop

    monkeypatch.setattr(_layers.ConvGradients, "_small_parts", counted)
    return parts


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_has_the_same_bits(name: str, dtype: torch.dtype, twice: list[int]) -> None:
    def case() -> Case:
        make, shape = LAYERS[name]
        torch.manual_seed(0)
        return make().to(dtype), *data(shape, dtype), square_loss

    check(case)


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("optimizer", Optimizers)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_same_bits(name: str, optimizer: str, clipping: str, twice: list[int]) -> None:
    check(lambda: model_case(name, torch.float32), optimizer=optimizer, clipping=clipping)


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_gradients_that_are_made_twice_have_the_same_bits(
    bad: float | None, twice: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 9216 values, made of 2 x 32 x 121 and kept by the default; also with a sample that is left out."""

    def case() -> Case:
        torch.manual_seed(0)
        x, y = data((9, 3, 11, 11), torch.float32)
        if bad is not None:
            x[4] = bad
        layers = (nn.Conv2d(3, 32, 3, padding=1), nn.Tanh(), nn.Conv2d(32, 32, 3, padding=1), nn.Flatten())
        return nn.Sequential(*layers), x, y, square_loss

    monkeypatch.setattr(_layers, "PART_ELEMENTS", 2 * 9216)
    check(case, check_rows=False)
    assert twice == [2, 2, 2, 2, 1] * 4  # for the norms and for the sums of two steps


def test_nothing_is_held_between_steps() -> None:
    def held() -> int:
        gc.collect()
        objects = (one for one in gc.get_objects() if issubclass(type(one), Tensor))
        tensors = [one for one in objects if one.layout is torch.strided]  # other tests keep others
        return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())

    model, x, y, loss_of = model_case("resnet", torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _engine, optimizer = make_private(model, "low")
        before = held()
        loss_of(model(x), y).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert held() <= before


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_peak_is_lower(name: str) -> None:
    """What is asked of a step above the plain one's memory, and of "low" against the default."""
    make: dict[str, Callable[[Any], Callable[[], object]]] = {
        "plain": _training.plain,
        "fast": _training.private,
        "low": lambda bench: _training.private(bench, memory="low"),
    }
    peaks = {mode: _memory.peak_bytes(step(_models.training(name, 32))) for mode, step in make.items()}
    assert peaks["plain"] < peaks["fast"]
    assert 0.9 * peaks["plain"] < peaks["low"] <= 0.95 * peaks["fast"]  # forms of layers need less than torch's own


def test_memory_is_checked() -> None:
    for wrong in ("little", None, 1, ["low"]):
        with pytest.raises(ValueError, match=r"memory must be one of 'fast', 'low', got"):
            PrivacyEngine(memory=wrong)
