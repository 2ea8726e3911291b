"""The working copy of a module under attack: the same logits, nothing of the module written, and the module has the last word."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from aisec_fast import adversarial
from aisec_fast.adversarial import _torch_model
from aisec_fast.adversarial._torch_model import TorchModel
from aisec_fast.adversarial._working_copy import Folded, working_copy
from tests.test_pgd_torch import few_threads

__all__ = ["few_threads"]  # a fixture: small tensors wait for threads longer than they compute

X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block as ResNet has it: three folds, and sums of what comes out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.second, self.second_norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width, affine=False)
        self.short = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.first_norm(self.first(x)), inplace=True)
        h = self.second_norm(self.second(h)) + self.short(x)
        return self.head(functional.relu(h).mean((2, 3)))


def model(kind: Callable[[], nn.Module] = lambda: Block(6), dtype: torch.dtype = torch.float32) -> nn.Module:
    """In eval mode, with statistics and weights that a fold cannot ignore."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = kind()
        for part in made.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
                if part.affine:
                    nn.init.uniform_(part.weight, 0.5, 1.5)
                    nn.init.normal_(part.bias)
    return made.to(dtype).eval()


def folds(module: nn.Module | None) -> int:
    return 0 if module is None else sum(isinstance(part, Folded) for part in module.modules())


def state(module: nn.Module) -> dict[str, Any]:
    """Every attribute of every part, tensors by their bytes."""
    return {
        f"{name}.{key}": value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)
        for name, part in module.named_modules()
        for key, value in (*part.__dict__.items(), *part._parameters.items(), *part._buffers.items())
    }


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_and_gradients_are_those_of_the_module(dtype) -> None:
    """A fold rounds each weight once more: relative errors of some units of the dtype a layer."""
    original, x = model(dtype=dtype), X.to(dtype)
    copied = working_copy(original, x)
    assert folds(copied) == 3
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    y = torch.arange(12) % 5

    def passes(module: nn.Module) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        return torch.autograd.grad(functional.cross_entropy(out, y), leaf)[0], out.detach()

    (slope, logits), (expected_slope, expected) = passes(copied), passes(original)
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()
    assert (slope - expected_slope).abs().max() <= tolerance * expected_slope.abs().max()


def test_nothing_of_the_module_is_written() -> None:
    original = model()
    before = state(original)
    copied = working_copy(original, X)
    adversarial.pgd(original, X, torch.arange(12) % 5, eps=0.1, seed=0)
    after = state(original)
    assert before.keys() == after.keys()
    assert all(same(before[key], after[key]) for key in before)
    assert copied is not None
    assert not any(p.requires_grad for p in copied.parameters())
    assert copied.head.weight.data_ptr() == original.head.weight.data_ptr()  # shared, not copied


class Twice(Block):
    """Its first convolution runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.first(x).mean((1, 2, 3))[:, None]


class Peeking(Block):
    """Reads a convolution's output beside its norm."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = functional.relu(self.first_norm(h) + h)
        return self.head((self.second_norm(self.second(h)) + self.short(x)).mean((2, 3)))


class Reading(Block):
    """Computes with the statistics of its norm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.first_norm(torch.ones(1, 6, 1, 1)).mean()


def without_statistics() -> nn.Module:
    block = Block(6)
    block.first_norm = nn.BatchNorm2d(6, track_running_stats=False)
    return block


def hooked() -> nn.Module:
    block = Block(6)
    block.first.register_forward_hook(lambda *_: None)
    return block


def with_weight_norm() -> nn.Module:
    block = Block(6)
    nn.utils.parametrizations.weight_norm(block.first)
    return block


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(model(), X)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Twice, 2),
        (Peeking, 2),
        (Reading, 2),
        (without_statistics, 2),
        (hooked, 2),
        (with_weight_norm, 2),
        (lambda: nn.Sequential(nn.Conv2d(3, 5, 8), nn.ReLU(), nn.Flatten()), 0),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 8), nn.Flatten()), 0),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)), 0),
        (traced, 0),
        (lambda: nn.DataParallel(Block(6)), 0),
    ],
)
def test_only_what_can_be_folded_is(kind, expected) -> None:
    original = model((lambda: kind(6)) if isinstance(kind, type) else kind)
    copied = working_copy(original, X)
    assert folds(copied) == expected
    if copied is not None:
        assert torch.allclose(copied(X), original(X), rtol=1e-4, atol=1e-4)


def test_a_copy_with_other_logits_is_dropped() -> None:
    """This module finds its norm by a way that the copy does not see."""

    class Hidden(Block):
        def __init__(self) -> None:
            super().__init__(6)
            self.way = [self.first]

        def forward(self, x: Tensor) -> Tensor:
            self.first(x)
            h = self.first_norm(self.way[0](x))
            return self.head((self.second_norm(self.second(h)) + self.short(x)).mean((2, 3)))

    original = model(Hidden)
    copied = working_copy(original, X)
    assert copied is None or torch.allclose(copied(X), original(X), rtol=1e-4, atol=1e-4)
    # and one whose copy must differ: the norm's weights are read where they no longer do anything

    class Borrowing(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.first.weight.sum()

    assert working_copy(model(lambda: Borrowing(6)), X) is None


def test_half_precision_is_left_alone() -> None:
    assert working_copy(model(dtype=torch.bfloat16), X.to(torch.bfloat16)) is None


def test_hooks_are_called_and_stay_where_they_are() -> None:
    original, seen = model(), []
    original.head.register_forward_hook(lambda *_: seen.append(1))
    hooks = {name: len(part._forward_hooks) for name, part in original.named_modules()}
    copied = working_copy(original, X)
    before = len(seen)
    assert copied is not None
    copied(X)
    assert len(seen) == before + 1
    assert hooks == {name: len(part._forward_hooks) for name, part in original.named_modules()}


@pytest.mark.parametrize("options", [{"early_stop": True}, {"restarts": 3}, {"loss": "margin"}, {"norm": "l2"}])
def test_attacks_have_the_same_verdicts_with_and_without(options) -> None:
    original, x = model(dtype=torch.float64), X.double()
    with torch.no_grad():
        original.head.bias -= original(x).mean(0)  # now answers differ, and borders are near
        y = original(x).argmax(1)
    settings: dict[str, Any] = {"eps": 0.1 if "norm" in options else 0.01, "seed": 0, "steps": 12, **options}
    plain, fast = (adversarial.pgd(original, x, y, **settings, working_copy=copied) for copied in (False, True))
    fooled = original(plain).argmax(1) != y
    assert torch.equal(fooled, original(fast).argmax(1) != y)
    assert 0 < int(fooled.sum()) < len(y)
    assert (plain - fast).abs().max() <= 1e-6  # signs agree where float64's last bits do not decide


class Turning(Block):
    """Reads a convolution's output beside its norm, but only outside of [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits + self.first(x).mean((1, 2, 3))[:, None] if x.max() > 1 else logits


@pytest.mark.parametrize("gradients", [True, False])
def test_a_copy_that_misleads_on_the_way_is_dropped(gradients) -> None:
    original, y = model(lambda: Turning(6)), torch.arange(12) % 5
    prepared, labels = TorchModel.made(original, X, y)

    def passes(adv: Tensor) -> Tensor:
        if gradients:
            return prepared.gradient(adv, lambda logits: functional.cross_entropy(logits, labels, reduction="none"))[0]
        return prepared.logits(adv)

    with prepared.attacked(X):
        passes(X)
        assert prepared.has_copy
        found = passes(X + 0.5)
        assert not prepared.has_copy
        assert torch.equal(passes(X + 0.5), found)  # of the module, in the very pass that noticed it


class Shifted(nn.Module):
    """A copy off by less than what counts as rounding, and by enough to turn the answers of ``undecided``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) - 2e-5 * functional.one_hot(torch.tensor(2), 5)


def undecided() -> nn.Module:
    """Answers 2, everywhere, by 1e-5."""
    original = model()
    with torch.no_grad():
        original.head.weight.zero_()
        original.head.bias.copy_(torch.tensor([-1.0, -1.0, 1e-5, 0.0, -1.0]))
    return original


def test_successes_are_judged_by_the_module_itself(monkeypatch) -> None:
    """A copy that calls every sample fooled convinces nobody."""

    monkeypatch.setattr(_torch_model, "working_copy", lambda module, x, **_: Shifted(module))
    original, y = undecided(), torch.full((12,), 2)
    told: list[int | None] = []
    settings: dict[str, Any] = {"eps": 1e-6, "seed": 0, "steps": 10, "early_stop": True}
    adv = adversarial.pgd(original, X, y, **settings, progress=lambda _, __, fooled: told.append(fooled))
    assert torch.equal(original(adv).argmax(1), y)
    assert told[-1] == 0
    prepared, labels = TorchModel.made(original, X, y)
    with prepared.attacked(X):
        hit = prepared.logits(X).argmax(1) != labels
        assert not prepared.confirmed(hit, X, labels).any()
        assert prepared.differences == int(hit.sum()) == 12
        prepared.confirmed(hit & (torch.arange(12) < 5), X, labels)
        assert prepared.differences == 12 + 5


def test_differences_are_reported(monkeypatch) -> None:
    original, y = undecided(), torch.full((12,), 2)
    report = adversarial.evaluate(original, X, y, eps=1e-6, attacks=["apgd-ce"], seed=0, masking_checks="none")
    assert [stage.differences for stage in report.stages] == [0, 0]
    monkeypatch.setattr(_torch_model, "working_copy", lambda module, x, **_: Shifted(module))
    report = adversarial.evaluate(original, X, y, eps=1e-6, attacks=["apgd-ce"], seed=0, masking_checks="none")
    assert report.robust_accuracy == 1
    assert report.stages[1].differences >= 12
    assert report.to_dict()["stages"][1]["differences"] == report.stages[1].differences


def test_short_attacks_do_without(monkeypatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(_torch_model, "working_copy", lambda module, x, **_: made.append(1))
    y = torch.arange(12) % 5
    for settings, expected in (
        ({"steps": 9}, 0), ({"steps": 10}, 1), ({"steps": 9, "working_copy": True}, 1),
        ({"steps": 20, "working_copy": False}, 0), ({"steps": 5, "restarts": 2}, 1),
    ):  # fmt: skip
        made.clear()
        adversarial.pgd(model(), X, y, eps=0.1, seed=0, **settings)
        assert len(made) == expected
