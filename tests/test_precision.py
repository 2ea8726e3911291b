"""Gradients in bfloat16: the module as it is has the last word, ball and box stay exact, and what misleads is dropped."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from aisec_fast import adversarial
from aisec_fast.adversarial import GradientModel
from aisec_fast.adversarial._torch_model import TorchModel
from tests.test_apgd import data, net
from tests.test_graphs import Fake, fake
from tests.test_pgd import assert_inside
from tests.test_pgd_torch import few_threads, snapshot
from tests.test_working_copy import X, model

__all__ = ["fake", "few_threads"]  # fixtures


def watched(module: nn.Module) -> list[tuple[torch.dtype, bool]]:
    """What each pass of the module gives: dtype, and whether a gradient is wanted."""
    seen: list[tuple[torch.dtype, bool]] = []
    module.register_forward_hook(lambda _m, _x, logits: seen.append((logits.dtype, torch.is_grad_enabled())))
    return seen


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_successes_are_the_modules_own_inside_ball_and_box(attack, norm) -> None:
    original = net().float()
    x, y = data(net(), 40)
    x, eps = x.float(), {"linf": 0.06, "l2": 0.2, "l1": 0.4}[norm]
    before = snapshot(original)
    options: dict[str, Any] = {"eps": eps, "norm": norm, "steps": 15, "early_stop": True, "seed": 0}
    adv = getattr(adversarial, attack)(original, x, y, precision="bfloat16", **options)
    plain = getattr(adversarial, attack)(original, x, y, **options)
    assert snapshot(original) == before
    assert adv.dtype == torch.float32
    assert_inside(adv, x, eps, norm, (0, 1))
    assert not torch.equal(adv, plain)
    fooled, expected = (int((original(points).argmax(1) != y).sum()) for points in (adv, plain))
    assert abs(fooled - expected) <= 4
    assert 0 < expected < 40


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_gradients_alone_are_in_lower_precision(attack) -> None:
    original, y = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), torch.zeros(12, dtype=torch.int64)
    seen = watched(original)
    getattr(adversarial, attack)(original, X, y, eps=0.1, steps=12, early_stop=True, precision="bfloat16", seed=0)
    assert {dtype for dtype, gradient in seen if gradient} == {torch.bfloat16}
    assert {dtype for dtype, gradient in seen if not gradient} == {torch.float32}
    seen.clear()
    with torch.autocast("cpu", dtype=torch.float16):  # the caller's own is no wish for one
        getattr(adversarial, attack)(original, X, y, eps=0.1, steps=12, early_stop=True, seed=0)
    assert {dtype for dtype, _ in seen} == {torch.float32}


class Close(nn.Module):
    """Answers 2, by less than bfloat16 can tell: there classes 0 and 2 are equal, and the first is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 3)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.layer.bias.copy_(torch.tensor([1.0, 0.0, 1.0 + 1e-4]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def test_what_fools_in_lower_precision_only_fools_nobody() -> None:
    original, y = Close(), torch.full((12,), 2)
    told: list[int | None] = []
    for attack in (adversarial.pgd, adversarial.apgd):
        adv = attack(
            original, X, y, eps=1e-3, steps=5, early_stop=True, precision="bfloat16", seed=0,
            progress=lambda _step, _total, fooled: told.append(fooled),
        )  # fmt: skip
        assert torch.equal(original(adv).argmax(1), y)
    assert set(told) == {0}
    prepared, labels = TorchModel.made(original, X, y)
    with prepared.attacked(X, precision="bfloat16"):
        logits = prepared.gradient(X, lambda z: functional.cross_entropy(z, labels, reduction="none")).logits
        assert prepared.has_copy
        hit = logits.argmax(1) != labels
        assert hit.all()
        assert not prepared.confirmed(hit, X, labels).any()
        assert prepared.differences == 12
    assert not prepared.has_copy


class Turning(nn.Module):
    """Gives other logits in bfloat16, from a point on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.passes = nn.Linear(192, 5), 0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        self.passes += torch.is_grad_enabled()
        return logits + 9 * (self.passes > 3) if logits.dtype == torch.bfloat16 else logits


def test_lower_precision_that_misleads_is_dropped_and_said() -> None:
    torch.manual_seed(0)
    original, y = Turning(), torch.zeros(12, dtype=torch.int64)
    seen = watched(original)
    with pytest.warns(
        RuntimeWarning, match="^logits in bfloat16 are not the model's own: the attack goes on without it"
    ):
        adv = adversarial.pgd(original, X, y, eps=0.1, steps=12, precision="bfloat16", seed=0)
    kinds = [dtype for dtype, gradient in seen if gradient]
    assert kinds == [torch.bfloat16] * 4 + [torch.float32] * 9  # the fourth pass is looked at, and taken again
    assert_inside(adv, X, 0.1, "linf", (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adversarial.pgd(model(), X, y, eps=0.1, steps=12, precision="bfloat16", seed=0)


def test_with_a_working_copy() -> None:
    """Both at once: folded batch norms, in bfloat16."""
    original, y = model(), torch.arange(12) % 5
    prepared, labels = TorchModel.made(original, X, y)

    def values(logits: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, reduction="none")

    slopes = []
    for precision in ("bfloat16", None):
        with prepared.attacked(X, precision=precision):
            assert prepared._copy is not None
            slopes.append(prepared.gradient(X, values))
            assert prepared._copy is not None  # it is not misled by what lower precision rounds
    low, full = slopes
    assert low.gradient.dtype == torch.float32
    assert 0 < (low.gradient - full.gradient).abs().max() < 0.1 * full.gradient.abs().max()


def test_recorded_passes_are_in_lower_precision_too(fake: Fake) -> None:
    original, y = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 5)).eval(), None
    with torch.no_grad():
        y = original(X).argmax(1)
    options: dict[str, Any] = {"eps": 0.1, "steps": 12, "seed": 0, "precision": "bfloat16"}
    found = adversarial.pgd(original, X, y, **options)
    assert fake.replays >= 11
    assert torch.equal(found, adversarial.pgd(original, X, y, **options, cuda_graph=False))
    assert not torch.equal(found, adversarial.pgd(original, X, y, **{**options, "precision": None}))


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (None, {"precision": "float16"}, r"^precision is 'float16', expected None \(the model's own\) or 'bfloat16'"),
    (None, {"precision": torch.bfloat16}, "^precision is torch.bfloat16, expected"),
    (None, {"x": X.double()}, "^precision is 'bfloat16' and x has dtype float64, expected float32"),
    (GradientModel(lambda x, y: x), {}, "^precision is 'bfloat16', but model is a GradientModel"),
]


@pytest.mark.parametrize(("given", "changes", "message"), WRONG)
def test_wrong_arguments(given, changes, message) -> None:
    options = {"x": X, "y": torch.zeros(12, dtype=torch.int64), "eps": 0.1, "precision": "bfloat16", **changes}
    x, y = options.pop("x"), options.pop("y")
    for attack in (adversarial.pgd, *([adversarial.apgd] if given is None else [])):
        with pytest.raises(ValueError, match=message):
            attack(given or Close().to(x.dtype), x, y, **options)
