"""Sign steps from the sample itself, models that draw random numbers, and preprocessing without a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aisec_fast import adversarial
from tests.conftest import bits
from tests.test_pgd import assert_inside
from tests.test_pgd_torch import accuracy, agreement, few_threads, images, snapshot, trained, user_model

__all__ = ["few_threads", "images", "trained"]  # fixtures


@pytest.fixture(autouse=True)
def one_seed() -> Iterator[None]:
    """Models and samples that a test makes are the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def of_torchattacks(name: str) -> Any:
    return getattr(pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks==3.5.1"), name)


def plain_mifgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, decay: float) -> Tensor:
    """Algorithm 1 of Dong et al. (2018), written for this test."""
    adv, total = x.clone(), torch.zeros_like(x)
    for _ in range(steps):
        leaf = adv.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y), leaf)
        total = decay * total + gradient / gradient.abs().flatten(1).sum(1).reshape(-1, 1, 1, 1)
        adv = (x + (adv + eps / steps * total.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return adv


@pytest.mark.parametrize("other", ["plain", "torchattacks"])
def test_each_equals_other_implementations(backend, trained, images, other) -> None:
    x, y = images
    ours = [
        adversarial.fgsm(trained, x, y, eps=0.1),
        adversarial.bim(trained, x, y, eps=0.08, step_size=0.02, steps=6),
        adversarial.mifgsm(trained, x, y, eps=0.08, steps=8, decay=0.9),
    ]
    if other == "plain":
        theirs = [
            plain_mifgsm(trained, x, y, 0.1, 1, 0.0),
            ours[1],
            plain_mifgsm(trained, x, y, 0.08, 8, 0.9),
        ]
    else:
        theirs = [
            of_torchattacks("FGSM")(trained, eps=0.1)(x, y),
            of_torchattacks("BIM")(trained, eps=0.08, alpha=0.02, steps=6)(x, y),
            of_torchattacks("MIFGSM")(trained, eps=0.08, alpha=0.01, steps=8, decay=0.9)(x, y),
        ]
    for eps, a, b in zip((0.1, 0.08, 0.08), ours, theirs, strict=True):
        assert_inside(a, x, eps, "linf", (0, 1))
        assert agreement(a, b) >= 0.999
        assert accuracy(trained, a, y) < accuracy(trained, x, y)


def test_they_are_pgd_without_a_random_start(trained, images) -> None:
    x, y = images
    for norm in ("linf", "l2"):
        run = adversarial.pgd(trained, x, y, eps=0.1, step_size=0.1, steps=1, random_start=False, norm=norm)
        assert torch.equal(adversarial.fgsm(trained, x, y, eps=0.1, norm=norm), run)
        run = adversarial.pgd(trained, x, y, eps=0.1, step_size=0.025, steps=5, random_start=False, norm=norm)
        assert torch.equal(adversarial.bim(trained, x, y, eps=0.1, steps=5, norm=norm), run)
        run = adversarial.pgd(trained, x, y, eps=0.1, step_size=0.02, steps=5, random_start=False, norm=norm)
        assert agreement(adversarial.mifgsm(trained, x, y, eps=0.1, steps=5, decay=0, norm=norm), run) >= 0.999


def test_mifgsm_keeps_what_every_attack_keeps(images) -> None:
    x, y = images
    model = user_model()
    before = snapshot(model)
    told: list[Any] = []
    for options in ({}, {"targeted": True}, {"norm": "l2"}, {"loss": "dlr"}, {"clip": None}):
        adv = adversarial.mifgsm(model, x, y, eps=0.1, steps=3, progress=lambda *s: told.append(s), **options)
        assert_inside(adv, x, 0.1, options.get("norm", "linf"), options.get("clip", (0, 1)))
    assert snapshot(model) == before
    assert told[:3] == [(1, 3, None), (2, 3, None), (3, 3, None)]
    given = adversarial.mifgsm(model, x.numpy(), y.numpy(), eps=0.1, steps=3)
    assert bits(given) == bits(adversarial.mifgsm(model, x, y, eps=0.1, steps=3))
    assert adversarial.mifgsm(model, x[:0], y[:0], eps=0.1).shape == (0, 1, 8, 8)
    toward = (y + 1) % 10
    adv = adversarial.mifgsm(model, x, toward, eps=0.3, targeted=True)
    away = adversarial.mifgsm(model, x, toward, eps=0.3)
    assert (model(adv).argmax(1) == toward).sum() > (model(away).argmax(1) == toward).sum()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fgsm", {"eps": 0}, "^eps is 0.0"),
        ("fgsm", {"loss": "mse"}, "^loss is 'mse'"),
        ("bim", {"steps": 0}, "^steps is 0"),
        ("bim", {"eps": -1}, "^eps is -1.0"),
        ("mifgsm", {"eps": 0}, "^eps is 0.0"),
        ("mifgsm", {"steps": 0}, "^steps is 0"),
        ("mifgsm", {"decay": -1}, "^decay is -1.0"),
        ("mifgsm", {"step_size": 0}, "^step_size is 0.0"),
        ("mifgsm", {"norm": "l7"}, "^norm is 'l7'"),
        ("mifgsm", {"loss": "mse"}, "^loss is 'mse'"),
    ],
)
def test_wrong_arguments(images, name, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(adversarial, name)(user_model(), *images, **{"eps": 0.1, **changes})


# ------------------------------------------------------------------------------------------------ randomness


class Noisy(nn.Module):
    """A linear model of samples with noise of its own; counts its calls' sizes."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.layer, self.calls, self.drawn = nn.Linear(6, 3).to(dtype), [], []  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        self.calls.append(len(x))
        self.drawn.append(noise.detach())
        return self.layer(x * (1 + noise)).tanh()


def test_averaged_is_the_mean_of_draws_and_their_gradients() -> None:
    model, x = Noisy(), torch.rand(5, 6, dtype=torch.float64).requires_grad_(True)
    before = bits(torch.get_rng_state())
    logits = adversarial.Averaged(model, samples=12, seed=3)(x)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert bits(torch.get_rng_state()) == before
    assert model.calls == [60]
    draws = model.drawn[0].reshape(12, 5, 6)
    assert len({bits(d) for d in draws}) == 12
    each = torch.stack([model.layer(x * (1 + noise)).tanh() for noise in draws])
    assert torch.allclose(logits, each.mean(0))
    (expected,) = torch.autograd.grad(each.mean(0)[:, 0].sum(), x)
    assert torch.allclose(gradient, expected)


def test_averaged_draws_by_its_seed_and_anew_each_time() -> None:
    model, x = Noisy(), torch.rand(5, 6, dtype=torch.float64)
    runs = []
    for seed in (1, 1, 2, None, None):
        torch.rand(3)  # what the caller draws does not matter
        averaged = adversarial.Averaged(model, samples=4, seed=seed)
        runs.append([bits(averaged(x).detach()) for _ in range(3)])
    assert runs[0] == runs[1]
    assert len({result for run in (runs[0], *runs[2:]) for result in run}) == 12


@pytest.mark.parametrize("at_once", [1, 3, 5])
def test_averaged_in_parts_has_exact_gradients(at_once) -> None:
    """Each part is computed again in the backward pass, with the same draws."""
    model, x = Noisy(), torch.rand(5, 6, dtype=torch.float64).requires_grad_(True)
    averaged = adversarial.Averaged(model, samples=7, at_once=at_once, seed=0)
    before = bits(torch.get_rng_state())
    logits = averaged(x)
    draws = torch.cat(model.drawn).reshape(7, 5, 6)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
    assert bits(torch.get_rng_state()) == before
    assert max(model.calls) == 5 * at_once
    each = torch.stack([model.layer(x * (1 + noise)).tanh() for noise in draws]).mean(0)
    assert torch.allclose(logits, each)
    assert torch.allclose(gradient, torch.autograd.grad(each[:, 0].sum(), x)[0])
    model.calls.clear()
    with torch.no_grad():
        averaged(x)
    assert sum(model.calls) == 35


def test_attacks_take_averaged_models() -> None:
    """The mean of many draws is attacked as well as the model without noise."""
    model = Noisy(torch.float32)
    x = torch.rand(30, 6, generator=torch.Generator().manual_seed(0))
    averaged = adversarial.Averaged(model.train(), samples=20, seed=0)
    y = averaged(x).argmax(1)
    adv = adversarial.pgd(averaged, x, y, eps=0.3, steps=5, seed=0)
    clean = model.layer(adv).argmax(1) == y
    assert clean.float().mean() < 0.9
    again = adversarial.Averaged(model, samples=20, seed=5)
    assert torch.equal(
        adversarial.fab(again, x, y, steps=3, targets=1),
        adversarial.fab(adversarial.Averaged(model, samples=20, seed=5), x, y, steps=3, targets=1),
    )
    assert averaged.training
    assert model.training


def test_averaged_names_wrong_arguments() -> None:
    x = torch.rand(3, 6, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"^model is a function"):
        adversarial.Averaged(len and (lambda x: x))  # type: ignore[arg-type]
    for options, message in (
        ({"samples": 0}, "samples is 0"),
        ({"at_once": 0}, "at_once is 0"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(ValueError, match=message):
            adversarial.Averaged(Noisy(), **options)

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x, x

    with pytest.raises(TypeError, match=r"^model returned a tuple, expected one tensor of logits"):
        adversarial.Averaged(Pair())(x)


def test_straight_through_gives_the_functions_values_and_the_identitys_gradient(trained, images) -> None:
    x, y = images[0][:40], images[1][:40]

    def quantise(values: Tensor) -> Tensor:
        return torch.from_numpy(np.round(values.numpy() * 4) / 4)  # without torch

    layer = adversarial.StraightThrough(quantise)
    leaf = x.clone().requires_grad_(True)
    out = layer(leaf)
    assert torch.equal(out, quantise(x))
    weights = torch.randn_like(x)
    assert torch.equal(torch.autograd.grad((out * weights).sum(), leaf)[0], weights)
    defended = nn.Sequential(layer, trained)
    adv = adversarial.pgd(defended, x, y, eps=0.2, steps=10, seed=0)
    assert accuracy(defended, adv, y) < 0.3

    def spoil(values: Tensor) -> Tensor:
        return values.mul_(0)

    assert torch.equal(adversarial.StraightThrough(spoil)(leaf), torch.zeros_like(x))
    assert torch.equal(leaf.detach(), x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.numpy(), r"^function\(x\) returned an ndarray"),
        (
            lambda x: x[:1],
            r"^function\(x\) returned shape \(1, 4\), torch.float32 on cpu, expected a tensor of shape \(3, 4\)",
        ),
        (lambda x: x.double(), r"^function\(x\) returned shape \(3, 4\), torch.float64"),
    ],
)
def test_straight_through_names_what_a_function_got_wrong(function, message) -> None:
    with pytest.raises(TypeError, match=message):
        adversarial.StraightThrough(function)(torch.rand(3, 4))
    with pytest.raises(TypeError, match=r"^function is an int"):
        adversarial.StraightThrough(3)  # type: ignore[arg-type]


def test_one_radius_only() -> None:
    model, x, y = nn.Linear(4, 3), torch.full((2, 4), 0.5), torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"^eps is a list, expected a real number"):
        adversarial.fgsm(model, x, y, eps=[0.1, 0.2])  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd", "square", "fab", "deepfool", "evaluate"])
def test_samples_of_another_dtype_than_the_model(attack: str) -> None:
    """As numpy makes them: the error speaks of x, not of a matrix; a module that converts its input is attacked."""
    model, x, y = nn.Linear(4, 5), np.full((2, 4), 0.5), torch.tensor([0, 1])
    options = {} if attack in ("fab", "deepfool") else {"eps": 0.1}
    with pytest.raises(TypeError, match=r"^x has dtype float64, and the model computes in float32: .*; pass x in the"):
        getattr(adversarial, attack)(model, x, y, **options)

    class Converting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 5)

        def forward(self, batch: Tensor) -> Tensor:
            logits: Tensor = self.layer(batch.float())
            return logits

    getattr(adversarial, attack)(Converting(), x, y, **options)
