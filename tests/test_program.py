"""A module as a list of steps: its logits and gradients, or None; what is fast must not be something else."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from aisec_fast import adversarial
from aisec_fast.adversarial import _kept, _torch_model, _working_copy
from aisec_fast.adversarial._program import Program, program
from aisec_fast.adversarial._steps import Convolution
from aisec_fast.adversarial._torch_model import TorchLoss, TorchModel
from aisec_fast.adversarial._working_copy import working_copy
from tests.test_pgd_torch import few_threads
from tests.test_working_copy import Block, model, same, state

__all__ = ["few_threads"]  # a fixture

X = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))
ROWS = torch.rand(7, 40, generator=torch.Generator().manual_seed(2))


def net(*layers: nn.Module, width: int) -> Callable[[], nn.Module]:
    """Layers on images, and a linear one for ``width`` values; weights are drawn when it is made."""

    def made() -> nn.Module:
        for layer in layers:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 5))

    return made


class Written(nn.Module):
    """A forward pass of one's own."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, 5)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1))
        self.register_buffer("count", torch.zeros(()))
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def gated(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).relu()
    return m.head((m.b(h) * h.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3)))


def before(m: Any, x: Tensor) -> Tensor:
    """Norms and ReLUs before convolutions; one place is read three times."""
    h = m.a((x - m.mean) / 0.25)
    h = h + m.b(functional.relu(m.norm(h))) + 0.5 * h
    return m.head(functional.adaptive_avg_pool2d(h, 1).view(x.shape[0], -1))


def in_place(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).relu_()
    h2 = m.b(h)
    h2 += h
    return m.head(functional.relu(h2, inplace=True).mean([2, 3]))


def twice(m: Any, x: Tensor) -> Tensor:
    """A ReLU that is pooled and read elsewhere too, and a layer used twice."""
    h = m.a(2 * x - 1).relu()
    h = functional.max_pool2d(h, 2) + functional.avg_pool2d(h, 2)
    return m.head(m.b(m.b(h).relu()).mean((2, 3)))


def deep(m: Any, x: Tensor) -> Tensor:
    """A block without a convolution of its own beside it: one gradient is added to another's place."""
    h = m.a(x).relu()
    return m.head((h + m.b(m.b(h).relu())).relu().mean((2, 3)))


def doubled(m: Any, x: Tensor) -> Tensor:
    h = m.a(1 - x)
    return m.head((h + h).relu().mean((2, 3)))


CAN = {
    "cnn": net(
        nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.MaxPool2d(2), width=36
    ),
    "pooled with padding": net(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1, ceil_mode=True), width=384),
    "strides": net(
        nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1, bias=False), nn.Conv2d(6, 6, 1, 2),
        width=24,
    ),
    "dilated, in groups, oblong": net(
        nn.Conv2d(3, 8, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 4, (1, 3), (1, 2)),
        width=336,
    ),
    "padded more than it reaches": net(nn.Conv2d(3, 4, 3, padding=3), nn.Conv2d(4, 4, 3), width=4 * 18 * 18),
    "no squares of pixels": net(nn.Conv2d(3, 4, 4, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 2), width=4 * 14 * 14),
    "other activations": net(
        nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Conv2d(6, 6, 3), nn.LeakyReLU(), nn.Conv2d(6, 6, 3), nn.Tanh(), nn.AvgPool2d(2),
        nn.ReLU6(), nn.Dropout(), width=150,
    ),
    "residual": lambda: Block(6),
    "gated": lambda: Written(gated),
    "before": lambda: Written(before),
    "in place": lambda: Written(in_place),
    "twice": lambda: Written(twice),
    "deep": lambda: Written(deep),
    "doubled": lambda: Written(doubled),
    "many channels": lambda: Block(16),
    "many channels in place": lambda: Written(in_place, width=16),
    "many channels, deep": lambda: Written(deep, width=16),
    "many channels, before": lambda: Written(before, width=16),
}  # fmt: skip
CAN_ROWS = {
    "mlp": lambda: nn.Sequential(
        nn.Linear(40, 500), nn.ReLU(), nn.Linear(500, 60, bias=False), nn.ReLU(), nn.Linear(60, 5)
    ),
    "scaled": lambda: nn.Sequential(Scaled(), nn.Linear(40, 600), nn.ELU(), nn.Linear(600, 5)),
    "normed": lambda: nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 5)),
}


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 - 2 * x / 5


def slopes(function: Callable[[Tensor], Tensor], x: Tensor, times: int = 1) -> tuple[Tensor, list[Tensor]]:
    """Logits, and gradients of some sums of them."""
    leaf = x.clone().requires_grad_()
    logits = function(leaf)
    weights = torch.rand(times, *logits.shape, generator=torch.Generator().manual_seed(0)).to(logits.dtype) - 0.5
    return logits.detach(), [torch.autograd.grad(logits, leaf, each, retain_graph=True)[0] for each in weights]


@pytest.mark.parametrize("kind", [*CAN, *CAN_ROWS])
def test_logits_and_gradients_are_those_of_the_module_in_float64(kind) -> None:
    """Each value is a sum of at most some thousand rounded terms a layer; several backward passes follow one forward pass."""
    x = X if kind in CAN else ROWS
    original = model((CAN | CAN_ROWS)[kind])
    made = program(original, x)
    assert isinstance(made, Program)
    for rows in (len(x), 1):  # recorded with two
        found, gradients = slopes(made, x[:rows], times=3)
        expected, true = slopes(original.double(), x[:rows].double(), times=3)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        for one, other in zip(gradients, true, strict=True):
            assert one.shape == x[:rows].shape
            assert (one - other).norm() <= 1e-5 * other.norm()
        original.float()
    with torch.no_grad():
        assert torch.equal(made(x[:1]), found)
    assert working_copy(original, x) is None or not isinstance(working_copy(original, x), Program)  # too small to pay


def test_a_relu_is_part_of_another_step() -> None:
    """What makes it fast: no step of its own for ReLUs, norms and sums."""
    names = [type(step).__name__ for step in program(model(CAN["cnn"]), X)._steps]
    assert names == ["Convolution", "Pool", "Convolution", "Pool", "View", "Linear"]
    assert len(program(model(), X)._steps) == 5  # three convolutions with norms, the mean and the head
    [first, *_] = program(model(CAN_ROWS["scaled"]), ROWS)._steps
    assert type(first).__name__ == "Linear"


def test_windows_of_three_pixels_take_fewer_products() -> None:
    kinds = [
        (step.weight.shape[1], step._winograd is not None)
        for step in program(model(lambda: Written(deep, width=32)), X)._steps
        if isinstance(step, Convolution)
    ]
    assert kinds == [(3, False), (32, True), (32, True)]


def test_nothing_large_is_imported_for_a_gradient() -> None:
    """Torch imports sympy, which takes one or two seconds, where it is told what the gradient of a result is."""
    code = """
import sys, torch
from torch import nn
from aisec_fast import adversarial
conv = nn.Sequential(nn.Conv2d(3, 64, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64 * 900, 9))
x = torch.rand(32, 3, 32, 32)
adversarial.pgd(conv, x, torch.zeros(32, dtype=torch.int64), eps=0.1, steps=10)
print("sympy" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def branching(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).mean((2, 3)) * (2 if x.max() > 0.9 else 1))


def counting(m: Any, x: Tensor) -> Tensor:
    m.count.add_(1)
    return m.head(m.a(x).mean((2, 3)))


def drawing(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x + 0.1 * torch.randn(1, 3, 16, 16)).mean((2, 3)))


def dropping(m: Any, x: Tensor) -> Tensor:
    return m.head(functional.dropout(m.a(x), 0.5, training=True).mean((2, 3)))


def mixing(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x - x.mean(0, keepdim=True)).mean((2, 3)))


def unpooled(m: Any, x: Tensor) -> Tensor:
    h, places = functional.max_pool2d(m.a(x), 2, return_indices=True)
    return m.head((h + places).mean((2, 3)))


def two_names(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    flat = h.view(len(x), -1)
    h.relu_()
    return m.head(h.mean((2, 3))) + flat.mean(1, keepdim=True)


def stopped(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).detach().mean((2, 3)) + m.a(x).mean((2, 3)))


def tokens(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).flatten(2).transpose(1, 2)).mean(1)


def into_zeros(m: Any, x: Tensor) -> Tensor:
    logits = torch.zeros(len(x), 5)
    logits += m.head(m.a(x).mean((2, 3)))
    return logits


def planes(m: Any, x: Tensor) -> Tensor:
    return m.head(functional.max_pool2d(m.a(x).view(len(x), 6, 256), (1, 256)).view(len(x), 6))


CANNOT = [branching, counting, drawing, dropping, mixing, unpooled, two_names, stopped, tokens, into_zeros, planes]


@pytest.mark.parametrize("forward", CANNOT, ids=lambda forward: forward.__name__)
def test_what_a_recording_cannot_say_is_refused(forward) -> None:
    assert program(model(lambda: Written(forward)), X) is None


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x + 0

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * torch.linspace(0, 1, slope.shape[-1])


def its_own_gradient(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(Halved.apply(x)).mean((2, 3)))


def numpy_in_between(m: Any, x: Tensor) -> Tensor:
    noise = torch.from_numpy(np.round(x.detach().numpy()))
    return m.head(m.a(x + noise).mean((2, 3)))


def rows_apart(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x * (1 + torch.arange(len(x)).float()[:, None, None, None])).mean((2, 3)))


@pytest.mark.parametrize("forward", [its_own_gradient, numpy_in_between, rows_apart], ids=lambda each: each.__name__)
def test_what_only_a_trial_shows_is_refused(forward, monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    original = model(lambda: Written(forward))
    assert not isinstance(working_copy(original, X), Program)
    assert isinstance(working_copy(model(lambda: Written(in_place)), X), Program)


def test_a_constant_for_each_of_two_rows_is_refused(monkeypatch) -> None:
    """Where the batch has no more rows than are recorded: others come with several radii, or once a sample is fooled."""
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    original = model(lambda: Written(lambda m, x: torch.zeros(len(x), 5) + m.head(m.a(x).mean((2, 3)))))
    assert not isinstance(working_copy(original, X[:2]), Program)
    adv = adversarial.pgd(original, X[:2], torch.tensor([0, 1]), eps=[0.01, 0.02], steps=10, seed=0)
    assert adv.shape == (2, 2, *X.shape[1:])


def test_division_by_nothing_is_what_it_is_in_torch() -> None:
    steps = program(model(lambda: Written(lambda m, x: m.head(m.a(1 - (x + 1) / 0).mean((2, 3))))), X)
    assert steps is not None
    assert steps(X).isnan().all()


@pytest.mark.parametrize("rows", [6, 20])
@pytest.mark.parametrize("pays_from", [0, 1 << 40])
def test_a_module_that_takes_whole_batches_only_is_attacked(rows, pays_from, monkeypatch) -> None:
    """Looks at a few rows are for speed: nothing may fail by them."""
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", pays_from)

    class Whole(Block):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) != rows:
                raise KeyError(len(x))
            return super().forward(x)

    x = X[torch.arange(rows) % len(X)]
    options: dict[str, Any] = {"eps": 0.02, "steps": 10, "seed": 0}
    whole, plain = model(lambda: Whole(6)), model()
    y = plain(x).argmax(1)
    found = adversarial.pgd(whole, x, y, **options)
    assert torch.equal(found, adversarial.pgd(plain, x, y, **options, working_copy=False))


def test_hooks_and_other_dtypes_do_without(monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    assert not isinstance(working_copy(model(dtype=torch.float64), X.double()), Program)
    watched = model()
    watched.first.register_forward_hook(lambda *_: None)
    assert not isinstance(working_copy(watched, X), Program)
    assert not isinstance(working_copy(model(), X, steps=False), Program)
    assert isinstance(working_copy(model(), X), Program)


def test_a_small_model_is_not_recorded() -> None:
    """Making and trying the list costs some passes over a few rows: nothing is called where that cannot pay."""
    calls: list[int] = []

    class Counted(Block):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    original = model(lambda: Counted(6))
    assert _working_copy._program(original, X[:2, :, :4, :4]) is None
    assert not calls
    assert _working_copy._program(original, X.repeat(100, 1, 1, 1)) is not None
    assert calls == [2, 3]


@pytest.mark.parametrize(("name", "eps"), [("cnn", 0.01), ("before", 0.11)])
@pytest.mark.parametrize("options", [{}, {"early_stop": True}, {"restarts": 2, "loss": "margin"}], ids=str)
def test_attacks_have_the_same_verdicts_with_and_without(name, eps, options, monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    original = model(CAN[name])
    with torch.no_grad():
        y = original(X).argmax(1)
    before = state(original)
    with_it, without = (
        adversarial.pgd(original, X, y, eps=eps, steps=12, seed=0, working_copy=flag, **options)
        for flag in (True, False)
    )
    after = state(original)
    assert before.keys() == after.keys()
    assert all(same(before[key], after[key]) for key in before)
    with torch.no_grad():
        fooled = original(with_it).argmax(1) != y
        assert torch.equal(fooled, original(without).argmax(1) != y)
    assert 0 < fooled.sum() < len(y)
    assert ((with_it - without).abs() < 1e-6).double().mean() > 0.99
    assert ((with_it - X).double().abs() <= eps).all()


class Turning(Block):
    """Another model once it is told to be."""

    turned = False

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return 2 * logits if self.turned else logits


def test_a_list_that_misleads_on_the_way_is_dropped(monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    original = model(lambda: Turning(6))
    victim, _ = _torch_model.TorchModel.made(original, X, torch.zeros(7, dtype=torch.int64))
    with victim.attacked(X):
        assert isinstance(victim._copy, Program)
        victim.logits(X)
        original.turned = True
        logits = victim.logits(X)
        assert not victim.has_copy
        assert torch.equal(logits, victim.own_logits(X))


class Late(Turning):
    """Another model after so many calls."""

    calls_left = 3  # recorded, tried, and one more

    def forward(self, x: Tensor) -> Tensor:
        self.calls_left -= 1
        self.turned = self.calls_left < 0
        return super().forward(x)


@pytest.mark.parametrize("early_stop", [False, True])
def test_a_list_that_misled_an_attack_is_not_what_it_ends_with(early_stop, monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    attack: Any = functools.partial(
        adversarial.pgd, x=X, y=torch.arange(7) % 5, eps=0.02, steps=12, random_start=False, early_stop=early_stop
    )
    turned = model(lambda: Late(6))
    turned.calls_left = 0
    expected = attack(turned, working_copy=False)
    calls: list[int] = []
    original = TorchModel.misled
    monkeypatch.setattr(TorchModel, "misled", lambda self: calls.append(original(self)) or calls[-1])
    late = model(lambda: Late(6))
    late.calls_left = 2
    assert torch.equal(attack(late, working_copy=True), expected)
    assert calls == [True]


@pytest.mark.parametrize("options", [{}, {"restarts": 3, "loss": "margin"}], ids=str)
def test_what_the_module_does_not_confirm_goes_on_from_where_it_was(options, monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    original = model(CAN["cnn"])
    with torch.no_grad():
        y = original(X).argmax(1)
    attack: Any = functools.partial(adversarial.pgd, original, X, y, eps=0.02, steps=12, seed=0, **options)
    expected, stopped = attack(), attack(early_stop=True)
    asked: list[int] = []

    def denied(_: object, adv: Tensor, y: Tensor) -> np.ndarray:
        asked.append(len(adv))
        return np.zeros(len(adv), bool)

    monkeypatch.setattr(TorchLoss, "settled", denied)
    monkeypatch.setattr(TorchLoss, "confirmed", lambda _, hit, adv, y: hit & False)
    found = attack(early_stop=True)
    assert sum(asked) > 0
    assert not torch.allclose(stopped, expected, atol=1e-3)
    assert ((found - expected).abs() < 1e-6).double().mean() > 0.99


def test_the_module_is_asked_about_many_successes_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    x = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    original = model(CAN["cnn"])
    with torch.no_grad():
        y = original(x).argmax(1)
    asked: list[int] = []
    ask = TorchModel.own_logits
    monkeypatch.setattr(TorchModel, "own_logits", lambda self, adv: asked.append(len(adv)) or ask(self, adv))
    result = adversarial.pgd(original, x, y, eps=0.05, step_size=0.003, steps=20, random_start=False, early_stop=True)
    with torch.no_grad():
        fooled = int((original(result).argmax(1) != y).sum())
    assert fooled > 30
    assert fooled <= sum(asked) <= fooled + 5 * _torch_model._ROWS_TRIED  # looks at passes 1, 2, 4, 8 and 16
    assert min(asked[:-1]) >= _torch_model._MOST_WAITING


class Scaling(Block):
    """Something to change that is no parameter."""

    def __init__(self) -> None:
        super().__init__(6)
        self.scale, self.table = 1.0, torch.ones(5)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(len(x))
        return super().forward(x) * self.scale * self.table


CALLS: list[int] = []


def through_data(m: Scaling) -> None:
    m.first.weight.data[0] += 1.0  # leaves the version as it was


def attribute(m: Scaling) -> None:
    m.scale = -1.0


def tensor_attribute(m: Scaling) -> None:
    m.table[:3] = -2.0


def one_more(m: Scaling) -> None:
    m.calls.append(1)


@pytest.mark.parametrize("change", [through_data, attribute, tensor_attribute, one_more], ids=lambda f: f.__name__)
def test_a_list_is_kept_until_something_changes(change, monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    original = model(Scaling)
    assert isinstance(first := working_copy(original, X), Program)
    CALLS.clear()
    assert working_copy(original, X) is first
    assert CALLS == [1]  # it is tried each time
    assert working_copy(original, X[:5]) is not first
    assert isinstance(first := working_copy(original, X), Program)
    change(original)
    CALLS.clear()
    again = working_copy(original, X)
    assert isinstance(again, Program)
    assert again is not first
    assert CALLS == [2, 3]
    with torch.no_grad():
        torch.testing.assert_close(again(X), original(X), rtol=1e-5, atol=1e-5)


def test_a_list_goes_with_its_module_or_when_it_misleads(monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    original = model(lambda: Turning(6))
    working_copy(original, X)
    assert original in _kept._held
    victim, _ = _torch_model.TorchModel.made(original, X, torch.zeros(7, dtype=torch.int64))
    with victim.attacked(X):
        victim.logits(X)
        monkeypatch.setattr(Turning, "turned", True)  # not seen in the module itself
        victim.logits(X)
        assert not victim.has_copy
    assert original not in _kept._held
    working_copy(original, X)
    held = len(_kept._held)
    del original, victim
    gc.collect()
    assert len(_kept._held) == held - 1


class Slanted(torch.autograd.Function):
    """Backward passes of its own, by a global."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * Slanted.factor


class Bent(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Slanted.apply(x))


def test_a_kept_list_whose_gradients_have_changed_is_not_used(monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    original = model(lambda: Bent(6))
    assert isinstance(working_copy(original, X), Program)
    monkeypatch.setattr(Slanted, "factor", -1.0)
    assert not isinstance(working_copy(original, X), Program)


def with_buffer(made: Callable[[], Tensor]) -> Callable[[nn.Module], None]:
    return lambda m: m.register_buffer("more", made())


def with_attribute(made: Callable[[], Any]) -> Callable[[nn.Module], None]:
    return lambda m: setattr(m, "more", made())


class Unnamed:
    def __repr__(self) -> str:
        raise RuntimeError


def inference_tensor() -> Tensor:
    with torch.inference_mode():
        return torch.ones(3)


def cyclic(m: nn.Module) -> None:
    m.__dict__["_modules"]["parent"] = m


ODD = {
    "sparse": with_buffer(lambda: torch.eye(3).to_sparse()),
    "sparse rows": with_buffer(lambda: torch.eye(3).to_sparse_csr()),
    "conjugate": with_buffer(lambda: torch.ones(3, dtype=torch.complex64).conj()),
    "sparse attribute": with_attribute(lambda: torch.eye(3).to_sparse()),
    "inference": with_attribute(inference_tensor),
    "no repr": with_attribute(lambda: [Unnamed()]),
    "many": with_attribute(lambda: [torch.ones(2)] * 1000),
    "cyclic": cyclic,
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_any_module_has_a_state_or_none(change, monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    original = model()
    change(original)
    assert isinstance(working_copy(original, X), Program)


def test_a_class_that_holds_its_module_does_not_keep_it(monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)

    def held() -> weakref.ref[nn.Module]:
        here: list[nn.Module] = []

        class Local(Block):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * len(here)

        here.append(model(lambda: Local(6)))
        assert isinstance(working_copy(here[0], X), Program)
        return weakref.ref(here[0])

    reference = held()
    gc.collect()
    assert reference() is None


def test_parameters_that_are_tied_anew_are_another_state() -> None:
    first, second, third = (nn.Linear(4, 4) for _ in range(3))
    net = nn.Sequential(first, second, third)
    second.weight = first.weight
    before = _kept.state(net, ROWS)
    second.weight = third.weight
    assert before is not None
    assert _kept.state(net, ROWS) != before


def test_a_list_that_overflows_where_the_module_does_not_is_left(monkeypatch) -> None:
    monkeypatch.setattr(_working_copy, "_PAYS_FROM", 0)
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 64, 5)).eval()
    x = torch.rand(6, 16, 8, 8)
    y = torch.zeros(6, dtype=torch.int64)
    assert isinstance(working_copy(original, x), Program)
    monkeypatch.setattr(_working_copy, "_does_the_same", lambda *_: True)
    result = adversarial.pgd(original, x * 1e37, y, eps=0.1, steps=20, early_stop=True, clip=None)
    assert result.isfinite().all()
