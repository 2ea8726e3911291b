"""Attacks for the smallest change: distances against closed forms, promises, other implementations, wrong use."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aisec_fast import adversarial
from aisec_fast.adversarial._distances import lengths
from tests.conftest import bits
from tests.test_hyperplane import smallest
from tests.test_pgd_torch import Returns, few_threads, images, snapshot, trained, user_model

__all__ = ["few_threads", "images", "trained"]  # fixtures

Attack = Callable[..., Any]
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
# Name, attack, norm, options that find the optimum of a linear model, how far from it they may end (relative).
ATTACKS: list[tuple[str, Attack, str, dict[str, Any], float]] = [
    (f"fab{'-t' * bool(targets)} {norm}", adversarial.fab, norm, {"norm": norm, "steps": 20, "targets": targets}, 1e-6)
    for norm in ("linf", "l2", "l1")
    for targets in (None, 4)
]
EVERY = pytest.mark.parametrize(("name", "attack", "norm", "options", "near"), ATTACKS, ids=[a[0] for a in ATTACKS])


def linear(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of 5 classes, samples around the middle of the box, and its answers, of which two are made wrong."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(30, 5).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 30, generator=generator, dtype=dtype))
        layer.bias.copy_(torch.randn(5, generator=generator, dtype=dtype) / 10)
    model = nn.Sequential(nn.Flatten(), layer)
    x = 0.3 + 0.4 * torch.rand(40, 5, 6, generator=generator, dtype=dtype)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % 5
    return model, x, y


def to_boundary(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The distance to the nearest hyperplane, in the dual norm; 0 where the model is wrong."""
    weights, logits = model[1].weight.detach(), model(x).detach()
    gaps = logits.gather(1, y[:, None]) - logits
    steep = torch.stack([lengths((weights[y] - row).double(), DUAL[norm]) for row in weights], 1)
    return torch.where(steep > 0, gaps / steep, math.inf).amin(1).clamp_min(0)


@EVERY
def test_distances_are_those_of_the_closed_form(name, attack, norm, options, near) -> None:
    model, x, y = linear()
    adv = attack(model, x, y, clip=None, **options)
    truth, found = to_boundary(model, x, y, norm), adversarial.distances(adv, x, norm)
    assert (model(adv).argmax(1) != y).all()
    assert torch.equal(adv[:2], x[:2])
    assert (found[2:] >= truth[2:] * (1 - 1e-12)).all()
    assert (found[2:] <= truth[2:] * (1 + near)).all()


@EVERY
def test_distances_in_the_box_are_those_of_a_linear_program(name, attack, norm, options, near) -> None:
    """A narrow box, which the nearest points lie on the border of."""
    model, x, y = linear()
    low, high = 0.25, 0.75
    adv = attack(model, x, y, clip=(low, high), **{**options, "steps": 2 * options.get("steps", 50)})
    weights, logits = model[1].weight.detach(), model(x).detach()
    ratios = []
    for i in range(2, 40):
        rows = [(weights[k] - weights[y[i]], logits[i, k] - logits[i, y[i]]) for k in range(5) if k != y[i]]
        best = min(smallest(x[i].reshape(-1).numpy(), w.numpy(), value.item(), low, high, norm) for w, value in rows)
        ratios.append(adversarial.distances(adv[i : i + 1], x[i : i + 1], norm).item() / best)
    assert low <= adv.min().item()
    assert adv.max().item() <= high
    assert min(ratios) >= 1 - 1e-6
    assert max(ratios) <= 1.005  # FAB goes 5 % beyond the boundary, but not with what lies on the border of the box


@EVERY
def test_results_of_a_network_fool_it_inside_the_box(trained, images, name, attack, norm, options, near) -> None:
    x, y = images[0][:30], images[1][:30]
    options = {**options, "steps": 10}
    before = snapshot(trained)
    adv = attack(trained, x, y, **options)
    assert snapshot(trained) == before
    assert type(adv) is Tensor
    assert adv.dtype == torch.float32
    assert adv.is_contiguous()
    assert adv.min().item() >= 0
    assert adv.max().item() <= 1
    wrong = trained(x).argmax(1) != y
    assert torch.equal(adv[wrong], x[wrong])
    fooled = trained(adv).argmax(1) != y
    assert torch.equal(~fooled, (adv == x).flatten(1).all(1) & ~wrong)
    assert fooled.float().mean() >= 0.9


@EVERY
def test_samples_are_attacked_alone(name, attack, norm, options, near) -> None:
    """To the bit, where the model's own arithmetic does not depend on the batch."""

    class Elementwise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] * x[:, 1], x[:, 2] - x[:, 0], x[:, 1] * x[:, 2], x[:, 0] ** 2 - 0.2], 1)

    x, y = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4
    whole = attack(Elementwise(), x, y, **options)
    parts = [attack(Elementwise(), x[i : i + 7], y[i : i + 7], **options) for i in range(0, 20, 7)]
    assert bits(torch.cat(parts)) == bits(whole)
    assert bits(attack(Elementwise(), x, y, **options)) == bits(whole)
    assert bits(attack(Elementwise(), x[3:4], y[3:4], **options)) == bits(whole[3:4])


@EVERY
def test_layouts_dtypes_and_modes(trained, images, name, attack, norm, options, near) -> None:
    x, y = images[0][:10], images[1][:10]
    options = {**options, "steps": 3}
    expected = attack(trained, x, y, **options)
    wide = torch.zeros(20, 1, 8, 8)
    wide[::2] = x
    for other, labels in ((wide[::2], y.int()), (x.to(memory_format=torch.channels_last), y.to(torch.uint8))):
        adv = attack(trained, other, labels, **options)
        assert adv.is_contiguous()
        assert (adv - expected).abs().max() <= 1e-4  # torch has other kernels for other strides
    given = attack(trained, x.numpy(), y.numpy(), **options)
    assert isinstance(given, np.ndarray)
    assert bits(given) == bits(expected)
    with torch.inference_mode():
        assert torch.equal(attack(trained, x.clone(), y, **options), expected)
    assert attack(copy.deepcopy(trained).double(), x.double(), y, **options).dtype == torch.float64
    assert attack(trained, x[:0], y[:0], **options).shape == (0, 1, 8, 8)
    model = user_model()
    before = snapshot(model)
    attack(model, x, y, **options)
    assert snapshot(model) == before

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return trained(x).bfloat16()

    adv = attack(Half(), x, y, **options)
    assert torch.equal(Half()(adv).argmax(1) == y, (adv == x).flatten(1).all(1) & (Half()(x).argmax(1) == y))


FEW = torch.full((4, 6), 0.5), torch.tensor([0, 1, 2, 0])
FINE = Returns(lambda z: z)


def returns(function: Callable[[Tensor], Any]) -> nn.Module:
    """FINE's answers, so that its labels are right ones, turned into something else."""
    model = Returns(function)
    model.layer = FINE.layer
    return model


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("a tuple", {"model": returns(lambda z: (z, z))}, TypeError, "^model returned a tuple"),
    ("a dict", {"model": returns(lambda z: {"logits": z})}, TypeError, "^model returned a dict"),
    ("one logit", {"model": returns(lambda z: z[:, :1])}, ValueError, "^model returned logits of 1 classes"),
    ("detached", {"model": returns(lambda z: z.detach())}, ValueError, "^model gave logits without a gradient"),
    ("NaN logits", {"model": returns(lambda z: z * torch.nan)}, ValueError, "^model gave NaN or infinite logits for 4"),
    ("functions", {"model": adversarial.GradientModel(lambda x, y: x)}, TypeError, "^model is a GradientModel"),
    ("y too large", {"y": FEW[1] + 1}, ValueError, "^y holds label 3, expected 0 to 2"),
    ("y negative", {"y": FEW[1] - 5}, ValueError, "^y holds label -5"),
    ("y short", {"y": FEW[1][:3]}, ValueError, r"^y has shape \(3,\)"),
    ("x outside", {"x": FEW[0] * 3}, ValueError, "^x has values from 1.5"),
    ("NaN x", {"x": FEW[0] * torch.nan}, ValueError, "^x holds NaN"),
    ("half x", {"x": FEW[0].half()}, TypeError, "^x has dtype float16"),
    ("bytes", {"x": (FEW[0] * 255).byte()}, TypeError, "^x has dtype uint8.*scale integer images"),
    ("clip", {"clip": (1, 0)}, ValueError, "^clip is"),
    ("steps", {"steps": 0}, ValueError, "^steps is 0, expected at least 1"),
    ("steps float", {"steps": 1.5}, TypeError, "^steps is a float"),
    ("progress", {"progress": 3}, TypeError, "^progress is a int"),
]


@pytest.mark.parametrize("name", ["fab"])
@pytest.mark.parametrize(("what", "changes", "error", "message"), WRONG, ids=[w[0] for w in WRONG])
def test_wrong_arguments(name, what, changes, error, message) -> None:
    options = {"model": FINE, "x": FEW[0], "y": FINE(FEW[0]).argmax(1), **changes}
    before = snapshot(FINE)
    with pytest.raises(error, match=message):
        getattr(adversarial, name)(options.pop("model"), options.pop("x"), options.pop("y"), **options)
    assert snapshot(FINE) == before


class FailsLater(nn.Module):
    """Its gradient turns into NaN after some passes, or it raises then."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.layer, self.passes, self.error = nn.Linear(6, 3), 0, error

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes < 6:
            return self.layer(x)
        if self.error is not None:
            raise self.error
        return self.layer(x) * torch.where(torch.arange(len(x)) == 0, torch.nan, 1.0)[:, None]


@EVERY
def test_nan_on_the_way_and_interrupts(name, attack, norm, options, near) -> None:
    x = torch.rand(4, 6)
    for error, message in ((None, "^model gave (a )?NaN"), (KeyboardInterrupt("stop"), "stop")):
        model = FailsLater(error)
        y = model(x).argmax(1)
        model.train()
        with pytest.raises(ValueError if error is None else KeyboardInterrupt, match=message):
            attack(model, x, y, **{**options, "steps": 30})
        assert model.training


# ------------------------------------------------------------------------------------------------ FAB


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targets", [None, 4])
def test_fab_in_a_ball_finds_what_there_is(backend, norm, targets) -> None:
    model, x, y = linear()
    truth = to_boundary(model, x, y, norm)
    eps = truth[2:].median().item() * 1.001
    for dtype in (torch.float64, torch.float32):
        model, x = model.to(dtype), x.to(dtype)
        adv = adversarial.fab(model, x, y, eps=eps, norm=norm, targets=targets, clip=None, restarts=2, seed=0)
        fooled = model(adv).argmax(1) != y
        assert torch.equal(fooled, truth < eps)
        assert torch.equal(adv[~fooled], x[~fooled])
        assert adversarial.distances(adv, x, norm).max().item() <= eps


def test_fab_restarts_only_help_and_depend_on_the_seed(trained, images) -> None:
    x, y = images[0][:40], images[1][:40]
    one = adversarial.distances(adversarial.fab(trained, x, y, targets=2), x)
    runs = [adversarial.fab(trained, x, y, targets=2, restarts=3, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    found = adversarial.distances(runs[0], x)
    assert (found <= one * (1 + 1e-6)).all()
    assert (found < one * 0.999).any()
    part = adversarial.fab(trained, x[:7], y[:7], targets=2, restarts=3, seed=1)
    assert (part - runs[0][:7]).abs().max() <= 1e-3  # the starts of a row are its own


def test_fab_in_a_ball_attacks_only_what_is_left(trained, images) -> None:
    x, y = images[0][:40], images[1][:40]
    passes: list[int] = []
    hook = trained.register_forward_hook(lambda _m, inputs, _o: passes.append(len(inputs[0])))
    told: list[tuple[int, int, Any]] = []
    adv = adversarial.fab(
        trained, x, y, eps=0.1, targets=3, steps=10, restarts=2, seed=0, progress=lambda *s: told.append(s)
    )
    hook.remove()
    left = int((trained(adv).argmax(1) == y).sum())
    assert 0 < left < 30
    assert passes[0] == 40
    assert passes[-10] <= 3 * left
    assert told[-1] == (20, 20, 40 - left)
    assert [s[0] for s in told] == sorted(s[0] for s in told)


def test_fab_without_targets_says_how_many_classes_it_takes() -> None:
    model, x = nn.Linear(4, 101), torch.rand(3, 4)
    y = model(x).argmax(1)
    with pytest.raises(ValueError, match=r"^model gave logits of 101 classes, expected at most 100"):
        adversarial.fab(model, x, y)
    adv = adversarial.fab(model, x, y, targets=9, steps=5, clip=None)
    assert (model(adv).argmax(1) != y).all()


FAB_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"norm": "l0"}, "^norm is 'l0', expected one of 'linf', 'l2', 'l1'"),
    ({"norm": 2}, "^norm is 2"),
    ({"eps": 0}, "^eps is 0.0, expected a number above 0"),
    ({"eps": math.nan}, "^eps is nan"),
    ({"restarts": 0}, "^restarts is 0"),
    ({"targets": 0}, "^targets is 0"),
    ({"alpha_max": 1.5}, "^alpha_max is 1.5"),
    ({"eta": 0.9}, "^eta is 0.9"),
    ({"beta": 1}, "^beta is 1"),
    ({"seed": -1}, "^seed is -1"),
]


@pytest.mark.parametrize(("changes", "message"), FAB_WRONG)
def test_fab_names_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adversarial.fab(FINE, *FEW, **changes)


# ------------------------------------------------------------------------------------------------ other implementations


@pytest.mark.parametrize("norm", ["linf", "l2"])  # its L1 fails at a variable that was never set
def test_fab_is_as_good_as_torchattacks(trained, images, norm) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks==3.5.1")
    x, y = images[0][:30], images[1][:30]
    other = torchattacks.FAB(trained, norm=norm.capitalize(), eps=100, steps=15, n_restarts=1, n_classes=10)
    theirs = adversarial.distances(other(x, y), x, norm)
    ours = adversarial.distances(adversarial.fab(trained, x, y, norm=norm, steps=15), x, norm)
    assert ours.median() <= theirs.median()
    assert (ours <= theirs * 1.02).float().mean() >= 0.9


# ------------------------------------------------------------------------------------------------ distances


def test_distances_of_every_norm_and_library() -> None:
    x = np.array([[[0.0, 0.5], [1.0, 0.25]], [[0.0, 0.0], [0.0, 0.0]]], np.float32)
    adv = x + np.array([[[0.0, 0.25], [-0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]], np.float32)
    for norm, expected in (("linf", 0.5), ("L2", math.sqrt(0.3125)), ("l1", 0.75), ("L0", 2)):
        for pair in ((adv, x), (torch.from_numpy(adv), torch.from_numpy(x))):
            found = adversarial.distances(*pair, norm)
            assert type(found) is type(pair[0])
            assert str(found.dtype).endswith("float64")
            assert found.tolist() == [expected, 0]
    assert adversarial.distances(x[:0], x[:0]).shape == (0,)
    assert adversarial.distances(x[:, :0], x[:, :0], "l2").tolist() == [0, 0]
    big = np.full((1, 1), 2.0**24 + 1)
    assert adversarial.distances(big, np.zeros((1, 1)))[0] == 2.0**24 + 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.ones(3), np.ones(4)), ValueError, r"^x_adv has shape \(3,\), expected \(4,\) as x"),
        ((np.ones((3, 1), int), np.ones((3, 1))), TypeError, "^x_adv has dtype int64, expected floating point"),
        ((np.float64(1), np.ones(1)), (TypeError, ValueError), "^x_adv"),
        ((np.ones((3, 1)), torch.ones(3, 1)), TypeError, "^x_adv is a numpy array, expected torch as x"),
        ((np.ones((3, 1)), np.ones((3, 1)), "l3"), ValueError, "^norm is 'l3'"),
    ],
)
def test_distances_name_wrong_arguments(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        adversarial.distances(*arguments)
