"""Attacks and hashing with torch's CUDA tensors and modules and with cupy's arrays, on a real GPU, through the public functions.

What is exact on the CPU is compared bit by bit: steps, attacks on models whose gradients need no rounding, digests. Of other
models what is promised must hold: ball and box in float64, and verdicts by the model itself. Without a GPU all is skipped.
"""

from __future__ import annotations

import copy
import functools
import gc
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import pytest

import aisec_fast
from aisec_fast import adversarial, hashing
from aisec_fast._errors import BackendError
from aisec_fast.adversarial import GradientModel
from tests.conftest import bits, no_waiting

_cuda = pytest.importorskip("aisec_fast._cuda", reason="this build has no CUDA module (no nvcc)")
torch = pytest.importorskip("torch", reason="torch is not installed")
from torch import Tensor, nn

DEVICE = "cuda"
NORMS = ["linf", "l2", "l1", "l0"]
EPS = {"linf": 0.06, "l2": 0.7, "l1": 4.0, "l0": 8.0}

pytestmark = [
    pytest.mark.skipif(_cuda.device_count() == 0, reason="no GPU: the driver is missing or offers no device"),
    pytest.mark.filterwarnings("ignore::aisec_fast.adversarial.GradientMaskingWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),  # torch, in a backward pass that is a thread's first
]


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions in full precision, by algorithms that give the same bits each time; models the same in every run."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    generator = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(generator)


class Arrays:
    """Arrays of one library on the GPU."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module = pytest.importorskip(name, reason=f"{name} is not installed")

    def there(self, values: np.ndarray) -> Any:
        return torch.from_numpy(values).to(DEVICE) if self.name == "torch" else self.module.asarray(values)

    def back(self, values: Any) -> np.ndarray:
        return values.cpu().numpy() if self.name == "torch" else self.module.asnumpy(values)

    def is_there(self, values: Any) -> bool:
        return isinstance(values, Tensor if self.name == "torch" else self.module.ndarray)


@pytest.fixture(params=["torch", "cupy"])
def arrays(request: pytest.FixtureRequest) -> Arrays:
    return Arrays(request.param)


def there(values: Any) -> Any:
    return values.to(DEVICE)


def host(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


# --------------------------------------------------------------------------------------------- models


def cnn(dtype: Any = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network with batch norms on the GPU, samples, and the model's answers there."""
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2),
        nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(8):
            model(torch.rand(16, 3, 8, 8))
    model = model.to(DEVICE, dtype).eval()
    x = there(torch.rand(16, 3, 8, 8).to(dtype))
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def linear(classes: int, dtype: Any, samples: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model on the CPU, samples far inside the box, and its answers."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, classes).to(dtype)).eval()
    x = 0.3 + 0.4 * torch.rand(samples, 5, 6, dtype=torch.float64)
    x = x.to(dtype)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


class Half(nn.Module):
    """Computes in bfloat16 and answers in it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.to(torch.bfloat16))
        return logits


def on_gpu(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(DEVICE)


def leads(model: nn.Module, adv: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """By how much the best other logit leads the label's, and what another order of the model's sums may explain of it."""
    with torch.no_grad():
        logits = model(adv)
    precision = torch.finfo(logits.dtype).eps
    logits = logits.double()
    others = logits.scatter(1, y[:, None], -math.inf).amax(1)
    return host(others - logits.gather(1, y[:, None])[:, 0]), host(64 * precision * logits.abs().amax(1))


def lengths(adv: Any, x: Any, norm: str) -> np.ndarray:
    change = np.abs(host(adv).astype(np.float64) - host(x)).reshape(len(host(x)), -1)
    return {
        "linf": lambda: change.max(1),
        "l2": lambda: np.sqrt((change * change).sum(1)),
        "l1": lambda: change.sum(1),
        "l0": lambda: (change != 0).sum(1),
    }[norm]()


def check_inside(adv: Any, x: Any, eps: float, norm: str) -> None:
    """Like x, in the ball, evaluated in float64 on the host, and in the box."""
    assert type(adv) is type(x)
    assert (adv.shape, adv.dtype, adv.device) == (x.shape, x.dtype, x.device)
    if isinstance(adv, Tensor):
        assert adv.is_contiguous()
        assert not adv.requires_grad
    values = host(adv)
    assert ((values >= 0) & (values <= 1)).all()
    assert (lengths(adv, x, norm) <= eps).all()


# --------------------------------------------------------------------------------------------- pgd_step


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pgd_step_gives_the_bits_of_the_cpu(arrays: Arrays, norm: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for shape in ((0, 3), (4, 0), (1, 1), (1, 3, 5), (9, 2, 77), (3, 5000)):
        x = rng.random(shape).astype(dtype)
        adv = np.clip(x + rng.normal(size=shape) / 20, 0, 1).astype(dtype)
        gradient = rng.normal(size=shape).astype(dtype)
        if gradient.size > 4:
            gradient.reshape(-1)[3] = np.nan
        options = {"eps": EPS[norm], "step_size": EPS[norm] / 3 if norm != "l0" else 3, "norm": norm}
        expected = adversarial.pgd_step(adv, x, gradient, **options)
        on_gpu = [arrays.there(values) for values in (adv, x, gradient)]
        found = adversarial.pgd_step(*on_gpu, **options)
        assert arrays.is_there(found)
        assert bits(arrays.back(found)) == bits(expected)
        assert bits(arrays.back(on_gpu[0])) == bits(adv)
        assert adversarial.pgd_step(*on_gpu, **options, out=on_gpu[0]) is on_gpu[0]
        assert bits(arrays.back(on_gpu[0])) == bits(expected)


def test_pgd_step_refuses_what_it_cannot_take(arrays: Arrays) -> None:
    host_x = np.full((4, 6), 0.5, np.float32)
    x = arrays.there(host_x)
    step = functools.partial(adversarial.pgd_step, eps=0.1, step_size=0.1)
    with pytest.raises(ValueError, match=r"x lives on cpu, x_adv on cuda:0"):
        step(x, host_x, x)
    with pytest.raises(ValueError, match=r"gradient lives on cpu, x_adv on cuda:0"):
        step(x, x, host_x)
    with pytest.raises(ValueError, match="out lives on cpu, x_adv on cuda:0; expected one device"):
        step(x, x, x, out=np.empty_like(host_x))
    with pytest.raises(ValueError, match="out lives on cuda:0, x_adv on cpu; expected one device"):
        step(host_x, host_x, host_x, out=x)
    with pytest.raises(ValueError, match="gradient is not C-contiguous"):
        step(x, x, arrays.there(np.zeros((6, 4), np.float32)).T)
    with pytest.raises(TypeError, match="x_adv has dtype float16"):
        step(*[arrays.there(host_x.astype(np.float16))] * 3)
    with pytest.raises(ValueError, match="x holds NaN"):
        step(x, x * np.nan, x, check=True)
    with pytest.raises(ValueError, match="inside clip"):
        step(x, x + 1, x, check=True)
    step(x, x + 1, x)  # on a GPU x is looked at only if that is asked for
    for name in ("native", "numba"):
        with (
            aisec_fast.use_backend(name),
            pytest.raises(BackendError, match=f"backend is '{name}', but x_adv lives on cuda"),
        ):
            step(x, x, x)
    with (
        aisec_fast.use_backend("cuda"),
        pytest.raises(BackendError, match="backend is 'cuda', but x_adv lives on cpu"),
    ):
        step(host_x, host_x, host_x)
    with aisec_fast.use_backend("cuda"):
        step(x, x, x)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_step_does_not_wait(norm: str) -> None:
    x = there(torch.rand(8, 500))
    adv = x.clone()
    gradient = torch.randn_like(x)
    with no_waiting():
        for _ in range(3):
            adversarial.pgd_step(adv, x, gradient, eps=EPS[norm], step_size=EPS[norm] / 8, norm=norm, out=adv)
    check_inside(adv, x, EPS[norm], norm)


@pytest.mark.skipif(DEVICE != "cuda", reason="streams are CUDA's")
def test_pgd_step_and_digests_wait_for_their_input() -> None:
    x = np.random.default_rng(0).random((64, 4096)).astype(np.float32)
    gradient = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
    expected = adversarial.pgd_step(x, x, gradient, eps=0.1, step_size=0.05)
    clean, slope = (torch.from_numpy(values).cuda() for values in (x, gradient))
    torch.cuda.synchronize()
    for _ in range(4):
        with torch.cuda.stream(torch.cuda.Stream()):
            late = torch.zeros_like(clean)
            torch.cuda._sleep(20_000_000)
            late += clean
            stepped = adversarial.pgd_step(late, clean, slope, eps=0.1, step_size=0.05)
            digest = hashing.hash_array(stepped)
            twice = stepped * 2
        torch.cuda.synchronize()
        assert bits(host(stepped)) == bits(expected)
        assert digest == hashing.hash_array(expected)
        assert bits(host(twice)) == bits(expected * 2)


@pytest.mark.skipif(DEVICE != "cuda", reason="pinned memory is CUDA's")
def test_pinned_memory_is_the_cpus() -> None:
    x = torch.rand(4, 100).pin_memory()
    found = adversarial.pgd_step(x, x, x, eps=0.1, step_size=0.05)
    assert bits(host(found)) == bits(adversarial.pgd_step(x.numpy(), x.numpy(), x.numpy(), eps=0.1, step_size=0.05))
    assert hashing.hash_array(x) == hashing.hash_array(x.numpy())
    records = (x * 255).to(torch.uint8).pin_memory()
    assert bits(hashing.hash_records(records)) == bits(hashing.hash_records(records.numpy()))


# --------------------------------------------------------------------------------------------- pgd


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("early_stop", [False, True])
def test_pgd_of_a_linear_module_gives_the_bits_of_the_cpu(norm: str, dtype: str, early_stop: bool) -> None:
    """The gradient of a margin is a difference of two weights: one rounding, in any order of sums."""
    model, x, y = linear(5, getattr(torch, dtype))
    options = {
        "eps": [EPS[norm] / 2, EPS[norm]], "norm": norm, "steps": 12, "loss": "margin", "targets": 3, "restarts": 2, "seed": 7,
        "early_stop": early_stop,
    }  # fmt: skip
    expected = adversarial.pgd(model, x, y, **options)
    found = adversarial.pgd(on_gpu(model), there(x), there(y), **options)
    assert found.device == there(x).device
    assert bits(host(found)) == bits(host(expected))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_pgd(norm: str, loss: str) -> None:
    model, x, y = cnn()
    before = bits(host(x)), [bits(host(values)) for values in model.state_dict().values()]
    told: list[Any] = []
    options = {"eps": EPS[norm], "norm": norm, "steps": 12, "loss": loss, "restarts": 2, "seed": 3, "early_stop": True}
    adv = adversarial.pgd(model, x, y, **options, progress=lambda *args: told.append(args))
    check_inside(adv, x, EPS[norm], norm)
    lead, doubt = leads(model, adv, y)
    assert abs(told[-1][2] - np.count_nonzero(lead > 0)) <= np.count_nonzero(abs(lead) <= doubt)
    assert told[-1][2] > 0
    assert bits(host(adversarial.pgd(model, x, y, **options))) == bits(host(adv))
    assert (bits(host(x)), [bits(host(values)) for values in model.state_dict().values()]) == before
    plain = adversarial.pgd(model, x, y, eps=EPS[norm], norm=norm, steps=5, loss=loss, random_start=False)
    check_inside(plain, x, EPS[norm], norm)
    assert (leads(model, plain, y)[0] > leads(model, x, y)[0]).mean() > 0.8


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_targeted_pgd(loss: str) -> None:
    model, x, y = cnn()
    aims = (y + 1) % 6
    adv = adversarial.pgd(model, x, aims, eps=0.25, steps=20, loss=loss, targeted=True, seed=0)
    check_inside(adv, x, 0.25, "linf")
    if loss != "dlr":  # which also falls as the largest logits come close to each other
        assert (leads(model, adv, aims)[0] < leads(model, x, aims)[0]).all()
        assert (leads(model, adv, aims)[0] < 0).any()


def test_radii_targets_and_sizes() -> None:
    model, x, y = cnn()
    several = adversarial.pgd(model, x, y, eps=[0.02, 0.1], steps=6, targets=4, seed=1)
    assert several.shape == (2, *x.shape)
    for adv, eps in zip(several, (0.02, 0.1), strict=True):
        check_inside(adv, x, eps, "linf")
    one = adversarial.pgd(model, x[:1], y[:1], eps=0.1, steps=6, seed=1)
    check_inside(one, x[:1], 0.1, "linf")
    none = adversarial.pgd(model, x[:0], y[:0], eps=0.1, steps=6)
    assert (none.shape, none.device) == (x[:0].shape, x.device)
    starts = adversarial.pgd(model, x, y, eps=0.1, steps=0, seed=5)
    linear_starts = adversarial.pgd(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 6)), x.cpu(), y.cpu(), eps=0.1, steps=0, seed=5
    )
    assert bits(host(starts)) == bits(host(linear_starts))  # starts are the same on every device


def test_layout_and_dtypes() -> None:
    model, x, y = cnn()
    options = {"eps": 0.1, "steps": 12, "seed": 2}
    adv = adversarial.pgd(model, x, y, **options)
    last = x.contiguous(memory_format=torch.channels_last)
    assert bits(host(adversarial.pgd(model, last, y.int(), **options))) == bits(host(adv))
    check_inside(adversarial.pgd(model.to(memory_format=torch.channels_last), last, y, **options), x, 0.1, "linf")
    wide, x, y = cnn(torch.float64)
    adv = adversarial.pgd(wide, x, y, **options)
    check_inside(adv, x, 0.1, "linf")
    assert (leads(wide, adv, y)[0] > 0).any()
    half = Half(cnn()[0])
    x = x.float()
    with torch.no_grad():
        y = half(x).argmax(1)
    for attack in (adversarial.pgd, adversarial.apgd, adversarial.mifgsm):
        adv = attack(half, x, y, eps=0.1, steps=8)
        check_inside(adv, x, 0.1, "linf")
        assert (leads(half, adv, y)[0] > 0).any()
    with pytest.raises(TypeError, match="x has dtype bfloat16, expected float32 or float64"):
        adversarial.pgd(half, x.to(torch.bfloat16), y, eps=0.1)


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_working_copy_is_used_and_the_module_judges(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, tf32: bool
) -> None:
    from aisec_fast.adversarial._torch_model import TorchModel

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    model, x, y = cnn(dtype)
    held, _ = TorchModel.made(model, x, y)
    with held.attacked(x):
        assert held.has_copy
        for _ in range(9):
            held.gradient(x, lambda logits: logits.amax(1))
            assert held.has_copy
        both = [host(held.logits(x)), host(held.own_logits(x))]
    np.testing.assert_allclose(*both, rtol=0, atol=(1e-2 if tf32 else 1e-4) * abs(both[1]).max())
    for with_copy in (True, False):
        adv = adversarial.pgd(model, x, y, eps=0.1, steps=15, seed=0, restarts=2, working_copy=with_copy)
        check_inside(adv, x, 0.1, "linf")
        assert (leads(model, adv, y)[0] > 0).any()


def test_steps_between_two_looks_do_not_wait() -> None:
    model, x, y = cnn()
    steps: list[int] = []

    def told(step: int, _total: int, _fooled: int | None) -> None:
        steps.append(step)
        if DEVICE == "cuda":  # losses and gradients of eight steps are looked at together
            torch.cuda.set_sync_debug_mode("error" if step < 7 else "default")

    try:
        adv = adversarial.pgd(
            model, x, y, eps=0.1, steps=7, seed=0, working_copy=False, cuda_graph=False, progress=told
        )
    finally:
        no_waiting_ends()
    assert max(steps) == 7
    check_inside(adv, x, 0.1, "linf")


def no_waiting_ends() -> None:
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("default")


def test_nan_is_found_on_the_gpu() -> None:
    class Poisoned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :4] * 1.0
            return logits + (x.flatten(1).amax(1, keepdim=True) > 0.95) * math.nan

    x, y = there(torch.full((5, 3, 4), 0.93)), there(torch.zeros(5, dtype=torch.long))
    for attack in (adversarial.pgd, adversarial.apgd, adversarial.mifgsm):
        with pytest.raises(ValueError, match="NaN"):
            attack(Poisoned(), x, y, eps=0.05, steps=20)
    with pytest.raises(ValueError, match="x holds NaN"):
        adversarial.pgd(Poisoned(), x * math.nan, y, eps=0.05)


def test_devices_that_differ_are_refused() -> None:
    model, x, y = cnn()
    for attack in (adversarial.pgd, adversarial.apgd, adversarial.square, adversarial.mifgsm):
        with pytest.raises(ValueError, match=r"x lives on cpu, model on cuda:0; expected one device"):
            attack(model, x.cpu(), y.cpu(), eps=0.1)
        with pytest.raises(ValueError, match=r"x lives on cpu, model on cuda:0; expected one device"):
            attack(model, host(x), host(y), eps=0.1)
        with pytest.raises(ValueError, match=r"y lives on cpu, x on cuda:0; expected one device"):
            attack(model, x, y.cpu(), eps=0.1)
        with pytest.raises(ValueError, match=r"x lives on cuda:0, model on cpu; expected one device"):
            attack(nn.Sequential(nn.Flatten(), nn.Linear(192, 6)), x, y, eps=0.1)
        with aisec_fast.use_backend("native"), pytest.raises(BackendError, match="x lives on cuda"):
            attack(model, x, y, eps=0.1)
    for attack in (adversarial.fab, adversarial.deepfool, adversarial.ddn, adversarial.fmn, adversarial.cw):
        with pytest.raises(ValueError, match=r"x lives on cpu, model on cuda:0; expected one device"):
            attack(model, host(x), host(y))
    with pytest.raises(ValueError, match=r"x_adv lives on cuda:0, x on cpu; expected one device"):
        adversarial.distances(x, x.cpu())
    with pytest.raises(ValueError, match="y holds label 6, expected 0 to 5"):  # and no assertion inside a kernel
        adversarial.pgd(model, x, y * 0 + 6, eps=0.1)
    with pytest.raises(ValueError, match="y holds label -1"):
        adversarial.pgd(model, x, y * 0 - 1, eps=0.1)
    assert float(model(x).sum()) == float(model(x).sum())  # the device still works
    cupy = pytest.importorskip("cupy", reason="cupy is not installed")
    with pytest.raises(TypeError, match="x is a cupy array, expected a torch tensor"):
        adversarial.pgd(model, cupy.asarray(host(x)), cupy.asarray(host(y)), eps=0.1)


# --------------------------------------------------------------------------------------------- CUDA graphs


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why each attack went without graphs in the end; empty for one that did not. Other threads are let be."""
    from aisec_fast import _cuda_graphs
    from aisec_fast.adversarial import _torch_model

    if DEVICE != "cuda":
        pytest.skip("graphs are CUDA's")
    monkeypatch.setattr(_cuda_graphs, "other_threads", lambda: False)
    reasons: list[str] = []
    attacked = _torch_model.TorchModel.attacked

    @contextmanager
    def noted(self: Any, *args: Any, **options: Any) -> Iterator[object]:
        try:
            with attacked(self, *args, **options) as held:
                yield held
        finally:
            reasons.append(self.without_graph)

    monkeypatch.setattr(_torch_model.TorchModel, "attacked", noted)
    return reasons


def healthy() -> None:
    """Stream, allocator and generators are as they are outside of recordings."""
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert not torch.cuda.is_current_stream_capturing()
    torch.rand(4, device=DEVICE)
    torch.cuda.empty_cache()
    torch.cuda.synchronize()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_replayed_passes_give_the_same_samples(graphs: list[str], norm: str, loss: str) -> None:
    model, x, y = cnn()
    options = {"eps": EPS[norm], "norm": norm, "steps": 15, "loss": loss, "seed": 3, "working_copy": False}
    found = adversarial.pgd(model, x, y, **options, cuda_graph=True)
    assert bits(host(adversarial.pgd(model, x, y, **options))) == bits(host(found))
    assert graphs == ["", ""]
    expected = adversarial.pgd(model, x, y, **options, cuda_graph=False)
    check_inside(found, x, EPS[norm], norm)
    assert bits(host(found)) == bits(host(expected))  # cuDNN is deterministic here: a graph launches the same kernels
    healthy()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_replayed_passes_of_apgd_give_the_same_samples(graphs: list[str], norm: str, loss: str) -> None:
    model, x, y = cnn()
    options = {"eps": EPS[norm], "norm": norm, "steps": 20, "loss": loss, "seed": 3}
    found = adversarial.apgd(model, x, y, **options, cuda_graph=True)
    assert graphs == [""]
    expected = adversarial.apgd(model, x, y, **options, cuda_graph=False)
    check_inside(found, x, EPS[norm], norm)
    assert bits(host(found)) == bits(host(expected))
    healthy()


def test_replayed_passes_of_evaluate_give_the_same_verdicts(graphs: list[str]) -> None:
    model, x, y = cnn()
    options = {"eps": 0.05, "seed": 1, "attacks": ("apgd-ce", "apgd-t"), "masking_checks": "cheap"}
    found = adversarial.evaluate(model, x, y, **options, cuda_graph=True)
    assert "" in graphs
    assert set(graphs) <= {"", "not asked for"}
    expected = adversarial.evaluate(model, x, y, **options, cuda_graph=False)
    assert bits(found.fooled_at) == bits(expected.fooled_at)
    assert bits(host(found.x_adv)) == bits(host(expected.x_adv))
    healthy()


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
@pytest.mark.parametrize("cuda_graph", [False, None])
def test_gradients_in_bfloat16(attack: str, cuda_graph: bool | None) -> None:
    """Ball and box stay exact, and the module as it is judges: what is counted is what it says."""
    model, x, y = cnn()
    told: list[Any] = []
    options = {
        "eps": 0.08,
        "steps": 25,
        "seed": 0,
        "early_stop": True,
        "precision": "bfloat16",
        "cuda_graph": cuda_graph,
    }
    adv = getattr(adversarial, attack)(model, x, y, **options, progress=lambda *args: told.append(args))
    check_inside(adv, x, 0.08, "linf")
    lead, doubt = leads(model, adv, y)
    assert abs(told[-1][2] - np.count_nonzero(lead > 0)) <= np.count_nonzero(abs(lead) <= doubt)
    plain = getattr(adversarial, attack)(model, x, y, **{**options, "precision": None})
    assert abs(np.count_nonzero(leads(model, plain, y)[0] > 0) - np.count_nonzero(lead > 0)) <= 2
    healthy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_replays_with_working_copy_and_early_stop(graphs: list[str], dtype: Any) -> None:
    model, x, y = cnn(dtype)
    x, y = x.repeat(4, 1, 1, 1), y.repeat(4)
    options = {"eps": 0.08, "step_size": 0.002, "steps": 60, "early_stop": True, "restarts": 2, "seed": 1}
    counts: list[Any] = []
    for graph in (True, False):
        told: list[Any] = []
        adv = adversarial.pgd(
            model, x, y, **options, cuda_graph=graph, progress=lambda *args, told=told: told.append(args)
        )
        check_inside(adv, x, 0.08, "linf")
        lead, doubt = leads(model, adv, y)
        assert abs(told[-1][2] - np.count_nonzero(lead > 0)) <= np.count_nonzero(abs(lead) <= doubt)
        counts.append(lead > 0)
    assert graphs[0] == ""
    assert counts[1].any()
    assert (counts[0] != counts[1]).mean() <= 0.05  # iterates may round another way in another batch size


@pytest.mark.parametrize(
    ("how", "reason"),
    [("item", "waits for the device"), ("random", "draws random numbers"), ("synchronize", ""), ("host", "waits")],
)
def test_models_that_cannot_be_recorded(graphs: list[str], how: str, reason: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = linear(5, torch.float32)[0]

        def forward(self, x: Tensor) -> Tensor:
            if how == "item":
                x = x * 2 if float(x.sum()) < 0 else x
            elif how == "random":
                x = nn.functional.dropout(x, 0.05, training=True)
            elif how == "synchronize":
                torch.cuda.synchronize()
            else:
                x = x - torch.zeros(6).to(x.device)
            return self.model(x)  # type: ignore[no-any-return]

    model, (_, x, y) = Odd().to(DEVICE), linear(5, torch.float32)
    options = {"eps": 0.1, "steps": 20, "seed": 0}
    adv = adversarial.pgd(model, there(x), there(y), **options)
    check_inside(adv, there(x), 0.1, "linf")
    assert graphs[0] != ""
    assert reason in graphs[0]
    healthy()
    with pytest.raises(RuntimeError, match="cuda_graph is True, but the model's passes cannot be replayed"):
        adversarial.pgd(model, there(x), there(y), **options, cuda_graph=True)
    healthy()
    plain = on_gpu(linear(5, torch.float32)[0])
    graphs.clear()
    adversarial.pgd(plain, there(x), there(y), **options, cuda_graph=True)  # recording still works
    assert graphs == [""]


def test_no_graph_outlives_the_attack(graphs: list[str]) -> None:
    model, x, y = cnn()
    x, y = x.repeat(64, 1, 1, 1), y.repeat(64)
    options = {"eps": 0.1, "steps": 15, "seed": 0, "cuda_graph": True}
    adversarial.pgd(model, x, y, **options)  # cuBLAS keeps some for a stream it has seen

    def held() -> tuple[int, int]:
        gc.collect()  # what earlier tests left in cycles must not go between two counts
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    before = held()
    for _ in range(3):
        adversarial.pgd(model, x, y, **options)
    assert held() == before

    def stop(step: int, _total: int, _fooled: int | None) -> None:
        if step == 9:
            raise KeyboardInterrupt

    try:
        adversarial.pgd(model, x, y, **options, progress=stop)
    except KeyboardInterrupt as error:
        error.__traceback__ = None
    assert held() == before
    assert graphs == [""] * 5


def test_graphs_on_a_stream_of_the_user(graphs: list[str]) -> None:
    model, x, y = cnn()
    options = {"eps": 0.1, "steps": 15, "seed": 0, "working_copy": False}
    expected = adversarial.pgd(model, x, y, **options, cuda_graph=False)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(20_000_000)
        late += x
        found = adversarial.pgd(model, late, y, **options, cuda_graph=True)
        assert torch.cuda.current_stream() == stream
        doubled = found * 2
    stream.synchronize()
    assert bits(host(found)) == bits(host(expected))
    assert bits(host(doubled)) == bits(host(expected * 2))
    healthy()


def test_graphs_in_several_threads(graphs: list[str]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model, x, y = cnn()
    models = [copy.deepcopy(model) for _ in range(4)]
    options = {"eps": 0.1, "steps": 25, "seed": 0, "working_copy": False}
    expected = adversarial.pgd(model, x, y, **options, cuda_graph=False)

    def attack(own: nn.Module) -> list[Tensor]:
        with torch.cuda.stream(torch.cuda.Stream()):
            found = [adversarial.pgd(own, x, y, **options, cuda_graph=True) for _ in range(3)]
            torch.cuda.current_stream().synchronize()
            return found

    torch.cuda.synchronize()
    with ThreadPoolExecutor(len(models)) as pool:
        for found in pool.map(attack, models):
            for adv in found:
                assert bits(host(adv)) == bits(host(expected))
    assert graphs == [""] * 13 or graphs == ["not asked for", *[""] * 12]
    healthy()


# --------------------------------------------------------------------------------------------- GradientModel


def sign_model(arrays: Arrays | None, features: int, dtype: str) -> tuple[GradientModel, np.ndarray, np.ndarray]:
    """Two classes by the sign of a weighted sum; the gradient is a product with 1 or -1: the same bits everywhere."""
    rng = np.random.default_rng(4)
    weights = rng.normal(size=features).astype(dtype)
    w = weights if arrays is None else arrays.there(weights)
    x = (0.5 + 0.1 * rng.normal(size=(20, features))).clip(0, 1).astype(dtype)
    y = (((x.astype(np.float64) - 0.5) @ weights) > 0).astype(np.int64)

    def gradient(batch: Any, labels: Any) -> Any:
        return (1 - 2 * labels[:, None]) * w

    def predict(batch: Any) -> Any:
        value = (batch - 0.5) @ w
        if arrays is None:
            return np.stack([-value, value], 1)
        return arrays.module.stack([-value, value], 1)

    def exact(batch: Any, labels: Any) -> Any:
        slope = gradient(batch, labels)
        return slope.to(batch.dtype) if isinstance(slope, Tensor) else slope.astype(batch.dtype)

    return GradientModel(exact, predict), x, y


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradient_models_give_the_bits_of_the_cpu(arrays: Arrays, norm: str, dtype: str) -> None:
    plain, x, y = sign_model(None, 40, dtype)
    model = sign_model(arrays, 40, dtype)[0]
    for options in ({}, {"restarts": 3}, {"early_stop": True, "restarts": 2}, {"eps": [EPS[norm] / 4, EPS[norm]]}):
        options = {"eps": EPS[norm] / 2, "norm": norm, "steps": 10, "seed": 11, **options}
        expected = adversarial.pgd(plain, x, y, **options)
        found = adversarial.pgd(model, arrays.there(x), arrays.there(y), **options)
        assert arrays.is_there(found)
        assert bits(arrays.back(found)) == bits(expected)
    empty = adversarial.pgd(model, arrays.there(x[:0]), arrays.there(y[:0]), eps=0.1)
    assert empty.shape == (0, 40)
    for name in NORMS:
        measured = adversarial.distances(found[1] if found.ndim == 3 else found, arrays.there(x), name)
        assert arrays.is_there(measured)
        np.testing.assert_allclose(arrays.back(measured), lengths(expected[1], x, name), rtol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_on_gradient_models(arrays: Arrays, norm: str) -> None:
    plain, x, y = sign_model(None, 48, "float64")
    model = sign_model(arrays, 48, "float64")[0]
    options = {"eps": EPS[norm] / 2, "norm": norm, "n_queries": 25, "restarts": 2, "seed": 1, "image_shape": (3, 4, 4)}
    expected = adversarial.square(plain, x, y, **options)
    found = arrays.back(adversarial.square(model, arrays.there(x), arrays.there(y), **options))
    assert (lengths(found, x, norm) <= options["eps"]).all()
    if norm == "linf":
        assert bits(found) == bits(expected)
    else:  # norms of windows are sums
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_gradient_models_must_answer_on_the_device_of_x(arrays: Arrays) -> None:
    model, x, y = sign_model(arrays, 40, "float32")
    on_gpu, labels = arrays.there(x), arrays.there(y)
    wrong = GradientModel(lambda batch, labels: np.zeros(tuple(batch.shape), np.float32))
    with pytest.raises(TypeError, match=r"gradient\(x, y\) returned a numpy array of float32 on cpu, expected"):
        adversarial.pgd(wrong, on_gpu, labels, eps=0.1)
    with pytest.raises(ValueError, match=r"y lives on cpu, x on cuda:0"):
        adversarial.pgd(model, on_gpu, y, eps=0.1)
    transposed = GradientModel(lambda batch, labels: (batch * 0 + 1).T.reshape(40, -1).T)
    adv = arrays.back(adversarial.pgd(transposed, on_gpu, labels, eps=0.1, steps=3))
    assert (lengths(adv, x, "linf") <= 0.1).all()


def test_logits_of_a_gradient_model_may_be_bfloat16() -> None:
    model, x, y = sign_model(Arrays("torch"), 40, "float32")
    half = GradientModel(model.gradient, lambda batch: model.predict(batch).to(torch.bfloat16))
    adv = adversarial.pgd(half, there(torch.from_numpy(x)), there(torch.from_numpy(y)), eps=0.05, steps=3, restarts=2)
    check_inside(adv, there(torch.from_numpy(x)), 0.05, "linf")


# --------------------------------------------------------------------------------------------- other attacks

FIXED_RADIUS: dict[str, Callable[..., Any]] = {
    "fgsm": adversarial.fgsm,
    "fgsm-l2": functools.partial(adversarial.fgsm, norm="l2"),
    "bim": functools.partial(adversarial.bim, early_stop=True),
    "mifgsm": adversarial.mifgsm,
    "mifgsm-l1": functools.partial(adversarial.mifgsm, norm="l1", loss="dlr"),
    "apgd-ce": functools.partial(adversarial.apgd, steps=15, seed=0),
    "apgd-l2-dlr": functools.partial(adversarial.apgd, steps=15, seed=0, norm="l2", loss="dlr", restarts=2),
    "apgd-late": functools.partial(adversarial.apgd, steps=15, seed=0, early_stop=False, eot_iter=2),
    "apgd-t": functools.partial(adversarial.apgd, steps=15, seed=0, loss="target_dlr", targets=3, max_rows=20),
    "square": functools.partial(adversarial.square, n_queries=60, seed=0),
    "square-l2": functools.partial(adversarial.square, n_queries=60, seed=0, norm="l2", restarts=2),
    "fab-linf": functools.partial(adversarial.fab, norm="linf", steps=10, restarts=2, seed=0),
    "fab-t-l1": functools.partial(adversarial.fab, norm="l1", steps=10, restarts=2, targets=9, seed=0),
}


@pytest.mark.parametrize("name", FIXED_RADIUS)
def test_attacks_inside_a_ball(name: str) -> None:
    model, x, y = cnn()
    attack = FIXED_RADIUS[name]
    norm = str(getattr(attack, "keywords", {}).get("norm", "linf"))
    adv = attack(model, x, y, eps=EPS[norm] * 2)
    check_inside(adv, x, EPS[norm] * 2, norm)
    lead = leads(model, adv, y)[0]
    assert (lead > leads(model, x, y)[0]).mean() > 0.5 if name.startswith("square") else (lead > 0).any()
    assert bits(host(attack(model, x, y, eps=EPS[norm] * 2))) == bits(host(adv))
    assert not attack(model, x[:0], y[:0], eps=0.1).numel()


SMALLEST: dict[str, tuple[str, Callable[..., Any]]] = {
    **{f"fab-{norm}": (norm, functools.partial(adversarial.fab, norm=norm, steps=15, seed=0)) for norm in ("linf", "l2", "l1")},
    "fab-t": ("linf", functools.partial(adversarial.fab, norm="linf", steps=15, targets=9, restarts=2, seed=0)),
    "deepfool-l2": ("l2", adversarial.deepfool),
    "deepfool-linf": ("linf", functools.partial(adversarial.deepfool, norm="linf")),
    "ddn": ("l2", functools.partial(adversarial.ddn, steps=30)),
    **{f"fmn-{norm}": (norm, functools.partial(adversarial.fmn, norm=norm, steps=30)) for norm in NORMS},
    "cw": ("l2", functools.partial(adversarial.cw, steps=40, search_steps=4, initial_c=0.1, lr=0.05)),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALLEST)
def test_attacks_for_the_smallest_change(name: str) -> None:
    model, x, y = cnn()
    y = y.clone()
    y[0] = (y[0] + 1) % 6  # wrong already
    norm, attack = SMALLEST[name]
    adv = attack(model, x, y)
    check_inside(adv, x, math.inf, norm)
    far = host(adversarial.distances(adv, x, norm))
    np.testing.assert_allclose(far, lengths(adv, x, norm), rtol=1e-12)
    lead, doubt = leads(model, adv, y)
    assert far[0] == 0
    moved = far > 0
    assert (lead[moved] > -doubt[moved]).all()
    assert moved.sum() >= 13
    if norm != "l0":  # at the border: far less than what the step back found
        assert np.median(far[moved]) < {"linf": 0.2, "l2": 2.0, "l1": 20.0}[norm]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", ["ddn", "fmn", "cw"])
def test_targets_of_the_smallest_change(name: str, targeted: bool) -> None:
    model, x, y = cnn(torch.float64)
    labels = (y + 1) % 6 if targeted else y
    adv = getattr(adversarial, name)(model, x, labels, steps=30, targeted=targeted)
    check_inside(adv, x, math.inf, "l2")
    lead, doubt = leads(model, adv, labels)
    moved = host(adversarial.distances(adv, x, "l2")) > 0
    assert moved.any()
    assert ((-lead if targeted else lead)[moved] > -doubt[moved]).all()


@pytest.mark.parametrize(
    "name", ["fab-linf", "fab-l2", "fab-l1", "deepfool-l2", "deepfool-linf", "ddn", "fmn-l2", "fmn-linf"]
)
def test_linear_models_have_a_closed_form(name: str) -> None:
    """Two classes: the way to the boundary is ``|gap| / |w1 - w0|`` in the dual norm."""
    model, x, y = linear(2, torch.float64)
    norm, attack = SMALLEST[name]
    weight = host(model[1].weight[1] - model[1].weight[0])
    with torch.no_grad():
        logits = host(model(x))
    dual = {"linf": np.abs(weight).sum(), "l2": np.sqrt(weight @ weight), "l1": np.abs(weight).max()}[norm]
    exact = np.abs(logits[:, 1] - logits[:, 0]) / dual
    options = {} if name.startswith(("fab", "deepfool")) else {"steps": 60}
    adv = attack(on_gpu(model), there(x), there(y), clip=None, **options)
    far = lengths(adv, x, norm)
    assert (far >= exact * (1 - 1e-9)).all()
    np.testing.assert_allclose(far, exact, rtol=1e-5 if not options else 1e-2)


def test_pgd_reaches_the_optimum_of_a_linear_model() -> None:
    for norm, dual in (("linf", "l1"), ("l2", "l2"), ("l1", "linf")):
        model, x, y = linear(2, torch.float64)
        eps = EPS[norm] / 10
        adv = adversarial.pgd(
            on_gpu(model),
            there(x),
            there(y),
            eps=eps,
            norm=norm,
            steps=60,
            loss="margin",
            random_start=False,
            clip=None,
        )
        assert (lengths(adv, x, norm) <= eps).all()
        weight = (model[1].weight[1] - model[1].weight[0]).detach()[None]
        steepness = lengths(weight, weight * 0, dual)[0]
        risen = leads(on_gpu(model), adv, there(y))[0] - leads(on_gpu(model), there(x), there(y))[0]
        np.testing.assert_allclose(risen, eps * steepness, rtol=1e-3)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_asks_exactly_as_often_as_it_may(norm: str) -> None:
    seen: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 6)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            logits: Tensor = self.layer(x.flatten(1))
            return logits

    model = Counting().to(DEVICE)
    x = there(torch.rand(12, 3, 8, 8))
    y = model(x).argmax(1)
    seen.clear()
    adv = adversarial.square(model, x, y, eps=1e-9, norm=norm, n_queries=17, restarts=2, seed=0)
    assert seen == [12] * 34
    check_inside(adv, x, 1e-9, norm)


class Noisy(nn.Module):
    """Draws random numbers on the device of its input, in eval mode too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x + 0.02 * torch.randn_like(x))
        return logits


def generators() -> list[bytes]:
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return [bits(state.numpy()) for state in states]


@pytest.mark.parametrize("at_once", [None, 2])
def test_averaged_models_leave_every_generator_as_it_was(at_once: int | None) -> None:
    model, x, y = cnn()
    on_cpu = Noisy(nn.Sequential(nn.Flatten(), nn.Linear(192, 6)))
    torch.rand(3, device=DEVICE)
    before = generators()
    found = []
    for _ in range(2):
        averaged = adversarial.Averaged(Noisy(model), samples=5, at_once=at_once, seed=4)
        found.append(adversarial.pgd(averaged, x, y, eps=0.1, steps=4, seed=0))
        check_inside(found[-1], x, 0.1, "linf")
    assert bits(host(found[0])) == bits(host(found[1]))
    assert generators() == before
    adversarial.Averaged(on_cpu, samples=2, seed=1)(x.cpu())
    assert generators() == before  # those of the GPU too, after a model on the CPU


def test_straight_through() -> None:
    model, x, y = cnn()
    defended = nn.Sequential(adversarial.StraightThrough(lambda values: (values * 16).round() / 16), model).eval()
    adv = adversarial.pgd(defended, x, y, eps=0.15, steps=10, seed=0)
    check_inside(adv, x, 0.15, "linf")
    assert (leads(defended, adv, y)[0] > leads(defended, x, y)[0]).mean() > 0.5
    with pytest.raises(TypeError, match=r"function\(x\) returned shape .* on cpu, expected .* on cuda:0"):
        adversarial.StraightThrough(lambda values: values.cpu())(x)


# --------------------------------------------------------------------------------------------- evaluate


def test_evaluate() -> None:
    model, x, y = cnn()
    y = y.clone()
    y[3] = (y[3] + 1) % 6
    options = {"eps": 0.05, "batch_size": 16, "seed": 1, "masking_checks": "cheap"}
    whole = adversarial.evaluate(model, x, y, **options)
    assert whole.x_adv.device == x.device
    assert whole.clean_accuracy == 15 / 16
    assert [stage.attack for stage in whole.stages] == ["clean", *["apgd-ce", "apgd-t", "fab-t", "square"]]
    check_inside(whole.x_adv, x, 0.05, "linf")
    lead, doubt = leads(model, whole.x_adv, y)
    held = whole.robust()
    assert (lead[~held] > -doubt[~held]).all()
    assert (lead[held] < doubt[held]).all()


def test_evaluate_goes_on_where_it_was_interrupted(tmp_path: Any) -> None:
    class StopError(Exception):
        pass

    model, x, y = cnn()
    options = {"eps": 0.05, "batch_size": 16, "seed": 1, "masking_checks": "cheap", "attacks": ("apgd-ce", "apgd-dlr")}
    whole = adversarial.evaluate(model, x, y, **options)

    def stopping(attack: str, done: int, samples: int, accuracy: float) -> None:
        if attack == stop_at[0]:
            raise StopError

    file = tmp_path / "evaluation"
    stop_at = [""]
    for stop_at[0] in ("apgd-ce", "apgd-dlr"):
        with pytest.raises(StopError):
            adversarial.evaluate(model, x, y, **options, checkpoint=file, progress=stopping)
    resumed = adversarial.evaluate(model, x, y, **{**options, "seed": None}, checkpoint=file)
    assert bits(resumed.fooled_at) == bits(whole.fooled_at)
    assert resumed.fooled_by == whole.fooled_by
    assert bits(host(resumed.x_adv)) == bits(host(whole.x_adv))
    digest = json.loads(whole.to_json())["x_adv_blake3"]
    assert json.loads(resumed.to_json())["x_adv_blake3"] == digest
    with pytest.raises(ValueError, match="belongs to another evaluation"):
        adversarial.evaluate(model, x.flip(0), y.flip(0), **options, checkpoint=file)


def test_evaluate_under_a_forced_backend() -> None:
    """Settings and answers are hashed on the CPU whatever the backend."""
    model, x, y = cnn()
    with aisec_fast.use_backend("cuda"):
        report = adversarial.evaluate(model, x, y, eps=0.05, attacks=["apgd-ce"], seed=0)
        assert json.loads(report.to_json())["samples"] == 16
    with pytest.raises(BackendError, match="lives on cuda"), aisec_fast.use_backend("native"):
        adversarial.evaluate(model, x, y, eps=0.05, attacks=["apgd-ce"], seed=0)


@pytest.mark.parametrize("attacks", ["quick", ["apgd-margin", "fab", adversarial.pgd]])
def test_other_ensembles(attacks: Any) -> None:
    model, x, y = cnn()
    norm = "l2" if attacks == "quick" else "linf"
    report = adversarial.evaluate(
        model, x[:8], y[:8], eps=EPS[norm], norm=norm, attacks=attacks, seed=0, masking_checks="all" if attacks == "quick" else "cheap"
    )  # fmt: skip
    check_inside(report.x_adv, x[:8], EPS[norm], norm)
    assert 0 <= report.robust_accuracy <= report.clean_accuracy


# --------------------------------------------------------------------------------------------- hashing

TORCH_DTYPES = [
    "bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32",
    "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_digests_of_tensors(dtype: str) -> None:
    kind = getattr(torch, dtype)
    for shape in ((), (0,), (1,), (3, 5), (700, 333)):
        raw = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, math.prod(shape) * 16, np.uint8)
        count = math.prod(shape) * kind.itemsize
        on_cpu = (
            torch.from_numpy(raw[:count].copy()).view(kind).reshape(shape) if count else torch.empty(shape, dtype=kind)
        )
        assert hashing.hash_array(on_cpu.to(DEVICE)) == hashing.hash_array(on_cpu)
        assert hashing.hash_array(on_cpu) == hashing.blake3(raw[:count]).digest()


@pytest.mark.parametrize("dtype", list("?bBhHiIlLefdFD"))
def test_digests_of_cupy_arrays(dtype: str) -> None:
    arrays = Arrays("cupy")
    for shape in ((), (0, 4), (1,), (3, 5), (700, 333)):
        values = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
        assert hashing.hash_array(arrays.there(np.asarray(values))) == hashing.hash_array(np.asarray(values))


def test_digests_of_parts_and_sizes(arrays: Arrays) -> None:
    """Data that begins at any address, over one slice of 256 MiB's chunks and the smaller trees."""
    memory = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8)
    on_gpu = arrays.there(memory)
    for begin, end in ((0, 1), (1, 1025), (3, 1024 * 1024 + 3), (4, 2_999_999), (16, 70_016), (5, 5), (0, 3_000_000)):
        assert hashing.hash_array(on_gpu[begin:end]) == hashing.hash_array(memory[begin:end])


def test_what_has_no_digest(arrays: Arrays) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    on_gpu = arrays.there(values)
    with pytest.raises(ValueError, match="array is not C-contiguous"):
        hashing.hash_array(on_gpu.T)
    with pytest.raises(ValueError, match="array is not C-contiguous"):
        hashing.hash_array(on_gpu[:, ::2])
    with pytest.raises(BackendError, match=r"array lives on cuda:0, but algorithm is 'sha256'"):
        hashing.hash_array(on_gpu, "sha256")
    with aisec_fast.use_backend("native"), pytest.raises(BackendError, match="array lives on cuda:0"):
        hashing.hash_array(on_gpu)
    with aisec_fast.use_backend("cuda"), pytest.raises(BackendError, match="array lives on cpu"):
        hashing.hash_array(values)
    with aisec_fast.use_backend("cuda"):
        digest = hashing.hash_array(on_gpu)
    assert digest == hashing.hash_array(values)
    for hasher in (hashing.blake3, hashing.sha256):
        with pytest.raises(TypeError, match="data"):
            hasher(on_gpu)
    with pytest.raises(TypeError, match="data"):
        hashing.blake3().update(on_gpu)


def test_records_on_a_gpu_are_refused(arrays: Arrays) -> None:
    rows = np.arange(64, dtype=np.uint8).reshape(4, 16)
    offsets = np.array([0, 16, 64])
    with pytest.raises(BackendError, match=r"data lives on .*cuda.*, but records are hashed on the CPU"):
        hashing.hash_records(arrays.there(rows))
    with pytest.raises(BackendError, match=r"data lives on .*cuda.*, but records are hashed on the CPU"):
        hashing.hash_records(arrays.there(rows.reshape(-1)), offsets)
    with pytest.raises(BackendError, match=r"offsets lives on .*cuda.*, but records are hashed on the CPU"):
        hashing.hash_records(rows.reshape(-1), arrays.there(offsets))
    with pytest.raises(BackendError, match="records are hashed on the CPU"):
        hashing.hash_records(there(torch.zeros(4, 16, requires_grad=True)))


# --------------------------------------------------------------------------------------------- what is there


def test_info() -> None:
    found = aisec_fast.info()
    assert found["backends"]["cuda"] == "available"
    assert found["cuda"]["devices"] >= 1
    assert found["cuda"]["runtime"] >= 13000
    assert found["cuda"]["driver"] > 0
    assert found["packages"]["torch"]
    from aisec_fast.cli import main

    shown = io.StringIO()
    with redirect_stdout(shown):
        assert main(["info"]) in (0, None)
    assert f"{found['cuda']['devices']}, runtime {found['cuda']['runtime']}" in shown.getvalue()
