"""Attacks for the smallest change: distances against closed forms, promises, other implementations, wrong use."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor, nn

from aisec_fast import adversarial
from aisec_fast.adversarial._distances import lengths
from aisec_fast.adversarial._fmn import into_ball
from tests.conftest import bits
from tests.test_hyperplane import smallest
from tests.test_pgd_torch import Returns, few_threads, images, snapshot, trained, user_model

__all__ = ["few_threads", "images", "trained"]  # fixtures

Attack = Callable[..., Any]
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


class Case(NamedTuple):
    name: str
    attack: Attack
    norm: str
    options: dict[str, Any]
    classes: int  # of the linear model: with two there is only one boundary, which attacks that follow a loss must find
    near: float  # to the optimum of a linear model, relative
    boxed: float  # the same in a narrow box


ATTACKS = [
    *(
        Case(
            f"fab{'-t' * bool(targets)} {norm}", adversarial.fab, norm, {"norm": norm, "steps": 20, "targets": targets},
            5, 1e-6, 0.005,
        )
        for norm in ("linf", "l2", "l1")
        for targets in (None, 4)
    ),
    *(Case(f"deepfool {norm}", adversarial.deepfool, norm, {"norm": norm}, 5, 1e-6, 0.02) for norm in ("linf", "l2")),
    Case("ddn", adversarial.ddn, "l2", {"steps": 50}, 2, 1e-3, 0.02),
    Case("fmn linf", adversarial.fmn, "linf", {"norm": "linf", "steps": 50}, 2, 1e-3, 0.02),
    Case("fmn l2", adversarial.fmn, "l2", {"norm": "l2", "steps": 50}, 2, 1e-3, 0.02),
    Case("fmn l1", adversarial.fmn, "l1", {"norm": "l1", "steps": 100}, 2, 0.001, 0.01),
    Case(
        "cw", adversarial.cw, "l2", {"steps": 100, "search_steps": 8, "initial_c": 0.1, "lr": 0.02}, 2, 0.03, 0.03
    ),
]  # fmt: skip
EVERY = pytest.mark.parametrize("case", ATTACKS, ids=[case.name for case in ATTACKS])
NAMES = ("fab", "deepfool", "ddn", "fmn", "cw")


@pytest.fixture(autouse=True)
def one_seed() -> Iterator[None]:
    """Models and samples that a test makes are the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def linear(classes: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model in float64, samples around the middle of the box, and its answers, of which two are made wrong."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(30, classes).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, 30, generator=generator))
        layer.bias.copy_(torch.randn(classes, generator=generator) / 10)
    model = nn.Sequential(nn.Flatten(), layer)
    x = 0.3 + 0.4 * torch.rand(40, 5, 6, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % classes
    return model, x, y


def to_boundary(model: nn.Module, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The distance to the nearest hyperplane, in the dual norm; 0 where the model is wrong."""
    weights, logits = model[1].weight.detach(), model(x).detach()
    gaps = logits.gather(1, y[:, None]) - logits
    steep = torch.stack([lengths((weights[y] - row).double(), DUAL[norm]) for row in weights], 1)
    return torch.where(steep > 0, gaps / steep, math.inf).amin(1).clamp_min(0)


@EVERY
def test_distances_are_those_of_the_closed_form(case) -> None:
    model, x, y = linear(case.classes)
    adv = case.attack(model, x, y, clip=None, **case.options)
    truth, found = to_boundary(model, x, y, case.norm), adversarial.distances(adv, x, case.norm)
    assert (model(adv).argmax(1) != y).all()
    assert torch.equal(adv[:2], x[:2])
    assert (found[2:] >= truth[2:] * (1 - 1e-12)).all()
    assert (found[2:] <= truth[2:] * (1 + case.near)).all()


@EVERY
def test_distances_in_the_box_are_those_of_a_linear_program(case) -> None:
    """A narrow box, which the nearest points lie on the border of."""
    model, x, y = linear(case.classes)
    low, high = 0.25, 0.75
    truth, reachable = in_the_box(case.classes, case.norm, low, high)
    adv = case.attack(
        model,
        x,
        y,
        clip=(low, high),
        **{**case.options, "steps": 100 if case.name == "cw" else 2 * case.options.get("steps", 50)},
    )
    ratios = adversarial.distances(adv, x, case.norm)[reachable] / truth[reachable]
    assert low <= adv.min().item()
    assert adv.max().item() <= high
    assert (model(adv).argmax(1) != y)[reachable].all()
    assert ratios.min() >= 1 - 1e-6
    assert ratios.max() <= 1 + case.boxed  # FAB goes 5 % beyond the boundary, but not with what lies on the border


@functools.cache
def in_the_box(classes: int, norm: str, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The smallest changes of linear's samples, and which of them are wanted and possible."""
    model, x, y = linear(classes)
    weights, logits = model[1].weight.detach(), model(x).detach()
    truth = []
    for i in range(len(x)):
        rows = [(weights[k] - weights[y[i]], logits[i, k] - logits[i, y[i]]) for k in range(classes) if k != y[i]]
        start = x[i].reshape(-1).numpy()
        truth.append(min(smallest(start, w.numpy(), value.item(), low, high, norm) for w, value in rows))
    found = torch.tensor(truth)
    return found, found.isfinite() & (logits.argmax(1) == y)


@EVERY
def test_results_of_a_network_fool_it_inside_the_box(trained, images, case) -> None:
    x, y = images[0][:30], images[1][:30]
    options = {**case.options, "steps": 30, **({"lr": 0.1} if case.name == "cw" else {})}
    before = snapshot(trained)
    adv = case.attack(trained, x, y, **options)
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
    assert fooled.all()


@EVERY
def test_samples_are_attacked_alone(case) -> None:
    """To the bit, where the model's own arithmetic does not depend on the batch."""

    class Elementwise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] * x[:, 1], x[:, 2] - x[:, 0], x[:, 1] * x[:, 2], x[:, 0] ** 2 - 0.2], 1)

    x, y = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4
    attack, options = case.attack, {**case.options, "steps": 20}
    whole = attack(Elementwise(), x, y, **options)
    parts = [attack(Elementwise(), x[i : i + 7], y[i : i + 7], **options) for i in range(0, 20, 7)]
    assert bits(torch.cat(parts)) == bits(whole)
    assert bits(attack(Elementwise(), x, y, **options)) == bits(whole)
    assert bits(attack(Elementwise(), x[3:4], y[3:4], **options)) == bits(whole[3:4])


@EVERY
def test_layouts_dtypes_and_modes(trained, images, case) -> None:
    x, y = images[0][:10], images[1][:10]
    attack, options = case.attack, {**case.options, "steps": 3}
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
    ("progress", {"progress": 3}, TypeError, "^progress is an int"),
]


@pytest.mark.parametrize("name", NAMES)
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
def test_nan_on_the_way_and_interrupts(case) -> None:
    x = torch.rand(4, 6)
    for error, message in ((None, "^model gave (a )?NaN"), (KeyboardInterrupt("stop"), "stop")):
        model = FailsLater(error)
        y = model(x).argmax(1)
        model.train()
        with pytest.raises(ValueError if error is None else KeyboardInterrupt, match=message):
            case.attack(model, x, y, **{**case.options, "steps": 30})
        assert model.training


# ------------------------------------------------------------------------------------------------ FAB


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("targets", [None, 4])
def test_fab_in_a_ball_finds_what_there_is(backend, norm, targets) -> None:
    model, x, y = linear()
    truth = to_boundary(model, x, y, norm)
    eps = truth[2:].median().item() * 1.001
    for dtype in (torch.float64, torch.float32):
        model, x = model.to(dtype), x.to(dtype)
        adv = adversarial.fab(model, x, y, eps=eps, norm=norm, targets=targets, clip=None, restarts=2, steps=25, seed=0)
        fooled = model(adv).argmax(1) != y
        assert torch.equal(fooled, truth < eps)
        assert torch.equal(adv[~fooled], x[~fooled])
        assert adversarial.distances(adv, x, norm).max().item() <= eps


def test_fab_restarts_only_help_and_depend_on_the_seed(trained, images) -> None:
    x, y = images[0][:25], images[1][:25]
    options = {"targets": 1, "steps": 40, "restarts": 3}
    one = adversarial.distances(adversarial.fab(trained, x, y, targets=1, steps=40), x)
    runs = [adversarial.fab(trained, x, y, seed=seed, **options) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    found = adversarial.distances(runs[0], x)
    assert (found <= one * (1 + 1e-6)).all()
    assert (found < one * 0.999).any()
    part = adversarial.fab(trained, x[:7], y[:7], seed=1, **options)
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
    assert max(passes) >= 3 * 30  # all of a sample's targets side by side
    assert passes[passes.index(max(passes)) + 15] < max(passes)  # of 20 in the first run
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
    ({"targets": 2, "targeted": True}, "^targets is set and targeted is True"),
    ({"alpha_max": 1.5}, "^alpha_max is 1.5"),
    ({"eta": 0.9}, "^eta is 0.9"),
    ({"beta": 1}, "^beta is 1"),
    ({"seed": -1}, "^seed is -1"),
]


@pytest.mark.parametrize(("changes", "message"), FAB_WRONG)
def test_fab_names_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adversarial.fab(FINE, *FEW, **changes)


# ------------------------------------------------------------------------------------------------ the others


def test_fmn_in_l0_changes_as_few_values_as_can_be(trained, images) -> None:
    """A linear model's entries by what each can do inside the box, largest first."""
    model, x, y = linear(2)
    adv = adversarial.fmn(model, x, y, norm="l0", steps=100)
    weights, logits = model[1].weight.detach(), model(x).detach()
    toward = weights[1 - y] - weights[y]
    flat = x.flatten(1)
    gains = (toward * torch.where(toward > 0, 1 - flat, -flat)).sort(1, descending=True).values.cumsum(1)
    gap = logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])
    truth = (gains <= gap).sum(1) + 1
    found = adversarial.distances(adv, x, "l0")
    assert (model(adv).argmax(1) != y).all()
    assert (found[2:] >= truth[2:]).all()
    assert (found[2:] <= truth[2:] + 1).all()
    assert (found[2:] == truth[2:]).float().mean() >= 0.8


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_fmn_projects_onto_the_nearest_point_of_its_balls(norm) -> None:
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    radius = torch.linspace(0, 12, 50, dtype=torch.float64)
    radius = radius.floor() if norm == "l0" else radius
    inside = into_ball(change, radius, norm)
    assert (lengths(inside, norm) <= radius * (1 + 1e-12)).all()
    already = lengths(change, norm) <= radius
    assert already.any()
    assert torch.equal(inside[already], change[already])
    away = lengths(inside - change, "l2")
    for _ in range(300):  # no other point of the ball is nearer
        other = torch.randn(50, 8, generator=generator, dtype=torch.float64)
        other = (inside + 0.2 * other) * (torch.rand(50, 8, generator=generator) < 0.7)
        if norm == "l0":
            ranks = other.abs().argsort(1, descending=True).argsort(1)
            other = torch.where(ranks < radius[:, None], other, 0)
        else:
            other = other * (radius / lengths(other, norm).clamp_min(1e-12)).clamp_max(1)[:, None]
        assert (lengths(other - change, "l2") >= away * (1 - 1e-12)).all()


TARGETED = {
    "fab": {"steps": 30, "norm": "l2"},
    "ddn": {"steps": 60},
    "fmn": {"steps": 60},
    "cw": {"steps": 60, "search_steps": 4, "initial_c": 1.0, "lr": 0.1, "confidence": 0.5},
}


@pytest.mark.parametrize("name", TARGETED)
def test_targets_are_reached(trained, images, name) -> None:
    x, y = images[0][:30], (images[1][:30] + 1) % 10
    adv = getattr(adversarial, name)(trained, x, y, targeted=True, **TARGETED[name])
    assert (trained(adv).argmax(1) == y).all()
    assert adv.min().item() >= 0
    assert adv.max().item() <= 1
    there = trained(x).argmax(1) == y
    assert torch.equal(adv[there], x[there])
    free = adversarial.distances(getattr(adversarial, name)(trained, x, images[1][:30], **TARGETED[name]), x, "l2")
    assert (adversarial.distances(adv, x, "l2")[~there] >= 0.8 * free[~there]).all()


def nearest_answer(model: nn.Module, x: Tensor, wanted: int, norm: str) -> float:
    """The smallest change of one sample in the box [0, 1] after which a linear model's largest logit is at ``wanted``."""
    weights, bias = (values.detach().numpy() for values in (model[1].weight, model[1].bias))
    start = x.reshape(-1).numpy()
    others = [k for k in range(len(bias)) if k != wanted]
    # Variables: the change d, and magnitudes m >= |d| (l1), or the largest of them alone (linf). Their sum is smallest.
    size, count = len(start), len(start) if norm == "l1" else 1
    spread = np.eye(size) if norm == "l1" else np.ones((size, 1))
    limits = np.block([[np.eye(size), -spread], [-np.eye(size), -spread]])
    leads = np.hstack([weights[others] - weights[wanted], np.zeros((len(others), count))])
    gaps = (weights[wanted] - weights[others]) @ start + bias[wanted] - bias[others]
    found = optimize.linprog(
        np.concatenate([np.zeros(size), np.ones(count)]),
        np.vstack([limits, leads]),
        np.concatenate([np.zeros(2 * size), gaps]),
        bounds=[*zip(-start, 1 - start, strict=True), *[(0, None)] * count],
    )
    return float(found.fun)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_fab_finds_the_nearest_wanted_answer_of_a_linear_model(norm) -> None:
    """Beyond several boundaries at once, which steps meet one at a time: the linear program is an end that they come near."""
    model, x, y = linear(5)
    x, y = x[2:12], (y[2:12] + 1) % 5
    adv = adversarial.fab(model, x, y, norm=norm, targeted=True)
    assert (model(adv).argmax(1) == y).all()
    truth = torch.tensor([nearest_answer(model, x[i], int(y[i]), norm) for i in range(10)])
    ratios = adversarial.distances(adv, x, norm) / truth
    assert ratios.min() >= 1 - 1e-6
    assert ratios.median() <= 1.02
    assert ratios.max() <= 1.2
    eps = float(truth.median())
    inside = adversarial.fab(model, x, y, norm=norm, targeted=True, eps=1.05 * eps, restarts=2, seed=0)
    done = model(inside).argmax(1) == y
    assert done[truth * ratios <= eps].all()
    assert not done[truth > 1.05 * eps].any()
    assert torch.equal(inside[~done], x[~done])
    assert adversarial.distances(inside, x, norm).max() <= 1.05 * eps


def test_targeted_fab_takes_any_number_of_classes() -> None:
    model, x, wanted = nn.Linear(101, 101), torch.rand(3, 101), torch.tensor([5, 6, 7])
    with torch.no_grad():
        model.weight.copy_(torch.eye(101))
    adv = adversarial.fab(model, x, wanted, targeted=True)
    assert (model(adv).argmax(1) == wanted).all()


@pytest.mark.parametrize("clip", [(-3.0, 2.0), None])
def test_cw_leads_by_its_confidence(trained, images, clip) -> None:
    x, y = images[0][:8], images[1][:8]
    leads = []
    for confidence in (0.0, 2.0):
        adv = adversarial.cw(
            trained, x, y, confidence=confidence, steps=60, search_steps=4, initial_c=1.0, lr=0.05, clip=clip
        )
        logits = trained(adv).detach()
        right = trained(x).argmax(1) == y
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        leads.append((others - logits.gather(1, y[:, None])[:, 0])[right])
        assert (leads[-1] >= confidence).all()
        assert (leads[-1] <= confidence + 0.5).all()
        if clip is not None:
            assert clip[0] <= adv.min().item()
            assert adv.max().item() <= clip[1]


def test_cw_gives_up_early_without_another_result(trained, images) -> None:
    """Samples that make no more progress leave the batch."""
    x, y = images[0][:10], images[1][:10]
    passes: list[int] = []
    hook = trained.register_forward_hook(lambda _m, inputs, _o: passes.append(len(inputs[0])))
    found, work = [], []
    for early_abort in (True, False):
        passes.clear()
        adv = adversarial.cw(trained, x, y, steps=150, search_steps=2, initial_c=1.0, lr=0.1, early_abort=early_abort)
        found.append(adversarial.distances(adv, x, "l2"))
        work.append(sum(passes))
    hook.remove()
    assert work[0] < 0.8 * work[1]
    assert found[0].median() <= found[1].median() * 1.01


def test_deepfool_is_the_papers_loop() -> None:
    """Written again for one sample, without a box, on a model that is not linear."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 4)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(12, 10, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    for norm in ("l2", "linf"):
        adv = adversarial.deepfool(model, x, y, norm=norm, clip=None)
        for start, label, given in zip(x, y.tolist(), adv, strict=True):
            point, total = start, torch.zeros_like(start)
            while model(point).argmax() == label:
                steps = []
                for k in (k for k in range(4) if k != label):
                    leaf = point.clone().requires_grad_(True)
                    logits = model(leaf)
                    (w,) = torch.autograd.grad(logits[k] - logits[label], leaf)
                    f = (logits[k] - logits[label]).abs().item()
                    dual = w.norm() if norm == "l2" else w.abs().sum()
                    steps.append((f / dual, f / dual * (w / dual if norm == "l2" else w.sign())))
                total = total + min(steps, key=lambda s: s[0])[1]
                point = start + 1.02 * total
            way, whole = given - start, point - start  # it ends with the way back as far as the model is fooled
            part = (way @ whole) / (whole @ whole)
            assert 0.5 <= part <= 1
            assert torch.allclose(way, part * whole, rtol=0, atol=1e-9)


def test_many_classes_need_no_more_than_a_few() -> None:
    generator = torch.Generator().manual_seed(0)
    model, x = nn.Linear(8, 100_000), torch.rand(3, 8, generator=generator)
    y = model(x).argmax(1)
    for name, options in (
        ("deepfool", {}), ("ddn", {}), ("fmn", {}), ("fab", {"targets": 3}),
        ("cw", {"search_steps": 2, "initial_c": 1.0, "steps": 20}),
    ):  # fmt: skip
        adv = getattr(adversarial, name)(model, x, y, clip=None, **{"steps": 10, **options})
        assert (model(adv).argmax(1) != y).all()


OTHERS_WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("deepfool", {"norm": "l1"}, ValueError, "^norm is 'l1', expected one of 'linf', 'l2'"),
    ("deepfool", {"overshoot": -1}, ValueError, "^overshoot is -1.0"),
    ("deepfool", {"num_classes": 1}, ValueError, "^num_classes is 1, expected at least 2"),
    ("ddn", {"init_norm": 0}, ValueError, "^init_norm is 0.0"),
    ("ddn", {"gamma": 1}, ValueError, "^gamma is 1.0"),
    ("ddn", {"targeted": 1}, TypeError, "^targeted is an int"),
    ("fab", {"targeted": None}, TypeError, "^targeted is a NoneType"),
    ("fmn", {"norm": "l3"}, ValueError, "^norm is 'l3'"),
    ("fmn", {"step_size": -1}, ValueError, "^step_size is -1.0"),
    ("fmn", {"gamma": 0}, ValueError, "^gamma is 0.0"),
    ("cw", {"confidence": -1}, ValueError, "^confidence is -1.0"),
    ("cw", {"search_steps": 0}, ValueError, "^search_steps is 0"),
    ("cw", {"initial_c": 0}, ValueError, "^initial_c is 0.0"),
    ("cw", {"lr": math.inf}, ValueError, "^lr is inf"),
    ("cw", {"early_abort": None}, TypeError, "^early_abort is a NoneType"),
]


@pytest.mark.parametrize(("name", "changes", "error", "message"), OTHERS_WRONG)
def test_the_others_name_wrong_arguments(name, changes, error, message) -> None:
    with pytest.raises(error, match=message):
        getattr(adversarial, name)(FINE, *FEW, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_progress_ends_at_the_end(trained, images, name) -> None:
    told: list[tuple[int, int, Any]] = []
    x, y = (v[:10] for v in images)
    adv = getattr(adversarial, name)(trained, x, y, steps=5, progress=lambda *s: told.append(s))
    assert [s[0] for s in told] == sorted(s[0] for s in told)
    assert told[-1][0] == told[-1][1]
    assert told[-1][2] == (trained(adv).argmax(1) != y).sum()


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


def test_cw_and_deepfool_are_as_good_as_torchattacks(trained, images) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks==3.5.1")
    x, y = images[0][:30], images[1][:30]
    theirs = torchattacks.CW(trained, c=1, steps=100, lr=0.05)(x, y)
    ours = adversarial.cw(trained, x, y, initial_c=1.0, search_steps=1, steps=100, lr=0.05)
    found = [trained(a).argmax(1) != y for a in (theirs, ours)]
    assert (found[1] | ~found[0]).all()
    d = [adversarial.distances(a, x, "l2") for a in (theirs, ours)]
    both = found[0] & found[1]
    assert d[1][both].median() <= d[0][both].median() * 1.001
    theirs = adversarial.distances(torchattacks.DeepFool(trained)(x[:10], y[:10]), x[:10], "l2")
    ours = adversarial.distances(adversarial.deepfool(trained, x[:10], y[:10]), x[:10], "l2")
    assert ours.median() <= theirs.median() * 1.001


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


def test_ddn_does_not_depend_on_the_default_dtype() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 4)).double()
    x = torch.rand(9, 12, dtype=torch.float64)
    y = model(x).argmax(1)
    found = adversarial.ddn(model, x, y, steps=15)
    torch.set_default_dtype(torch.float64)
    try:
        assert bits(adversarial.ddn(model, x, y, steps=15)) == bits(found)
    finally:
        torch.set_default_dtype(torch.float32)
