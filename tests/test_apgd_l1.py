"""Auto-PGD in L1, and the ensemble of ``evaluate`` there: the paper's rules written out, closed forms, budgets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aisec_fast import adversarial
from aisec_fast.adversarial import GradientMaskingWarning, _apgd, _arguments, _ensembles, _masking
from aisec_fast.adversarial._apgd_rules import Sparsity
from aisec_fast.adversarial._ball import make_ball
from aisec_fast.adversarial._rows_seen import counting
from tests.test_apgd import data, linear, loss_at, net
from tests.test_pgd_l1_l0 import assert_inside, highest
from tests.test_pgd_torch import FINE, X, Y, few_threads

__all__ = ["few_threads"]  # a fixture: small tensors wait for threads longer than they compute


def nearest(point: Tensor, x: Tensor, eps: float) -> Tensor:
    """Of ball and box: magnitudes less one threshold, cut at the box; the threshold by bisection."""
    change = (point - x).numpy()
    room = np.where(change > 0, 1 - x.numpy(), x.numpy())

    def cut(threshold: float) -> np.ndarray:
        return np.minimum(np.maximum(np.abs(change) - threshold, 0), room)

    low, high = 0.0, np.abs(change).max()
    if cut(low).sum() <= eps:
        high = low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if cut(middle).sum() <= eps else (middle, high)
    return x + torch.from_numpy(cut(high) * np.sign(change))


def sparse_run(
    model: nn.Module,
    x: Tensor,
    y: int,
    start: Tensor,
    eps: float,
    steps: int,
    loss: str,
    target: int | None,
    chosen: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Algorithm 1 of "Mind the box" for one sample: no vectors, nothing shared with the library: x_max and all points."""

    def f(point: Tensor) -> tuple[float, Tensor]:
        leaf = point.clone().requires_grad_(True)
        value = loss_at(loss, model(leaf[None])[0], y, target)
        return value.item(), torch.autograd.grad(value, leaf)[0]

    def changed(point: Tensor) -> int:
        return int((point != x).sum())

    size, every = x.numel(), max(int(0.04 * steps + 1e-9), 1)
    here, eta, points = start, eps, [start]
    value, gradient = f(here)
    best, best_value, best_gradient = here, value, gradient
    moved, before = (changed(here) / 1.5, changed(here)) if chosen else (0.2 * size, size)
    for k in range(1, steps + 1):
        count = min(max(math.ceil(moved), 1), size)
        largest = gradient.abs().flatten().argsort(descending=True)[:count]
        step = torch.zeros(size, dtype=x.dtype)
        step[largest] = gradient.flatten()[largest].sign() / count
        here = nearest(here + eta * step.reshape(x.shape), x, eps)
        points.append(here)
        value, gradient = f(here)
        if value > best_value:
            best, best_value, best_gradient = here, value, gradient
        if k % every == 0:
            now = changed(best)
            if now / max(before, 1e-9) < 0.95:
                eta, here, gradient = eps, best, best_gradient
            else:
                eta = max(eta / 1.5, eps / 10)
            moved, before = now / 1.5, now
    return best, points


@pytest.mark.parametrize("larger_eps", [False, True])
@pytest.mark.parametrize("loss", ["ce", "dlr", "target_margin"])
def test_equal_to_the_algorithm_of_the_paper(loss, larger_eps) -> None:
    model, eps, steps = net(size=40), 0.45, 30
    x, y = data(model, 5, (2, 4, 5))
    targets = (y[:, None] + 2) % 5 if loss == "target_margin" else None
    options: dict[str, Any] = {"eps": eps, "norm": "l1", "steps": steps, "loss": loss, "targets": targets, "seed": 3}
    adv = adversarial.apgd(model, x, y, early_stop=False, larger_eps=larger_eps, **options)
    first = adversarial.apgd(model, x, y, larger_eps=larger_eps, **options)
    phases = [(3 * eps, 9), (2 * eps, 9), (eps, 12)] if larger_eps else [(eps, 30)]
    ball = make_ball("l1", 3 * eps, (0, 1), "float64")
    alike, stopped = [], 0
    for i in range(len(x)):
        draws = _apgd.generator(3, int(targets is not None), 0, i)
        point = x[i] + torch.tensor(_apgd.surface(ball, 40, draws)).reshape(2, 4, 5)
        target = None if targets is None else int(targets[i, 0])
        for radius, count in phases:
            start = nearest(point, x[i], radius)
            point, points = sparse_run(model, x[i], int(y[i]), start, radius, count, loss, target, larger_eps)
        fooling = [at for at in points if model(at[None]).argmax() != y[i]]  # of the last ball alone
        alike += [(adv[i] - point).abs().max() < 1e-6, (first[i] - (fooling or [point])[0]).abs().max() < 1e-6]
        stopped += bool(fooling)
    assert sum(alike) >= 8  # of 10: where a loss has come to rest, its last bits decide whether it rises
    assert 0 < stopped < 5


def test_phases_and_checkpoints() -> None:
    ball = make_ball("l1", 12.0, (0, 1), "float32")

    def phases(steps: int) -> list[tuple[float, int]]:
        return [(ball.eps, count) for ball, count in _apgd.Plan(steps=steps, larger_eps=True).phases(ball)]

    assert phases(100) == [(36.0, 30), (24.0, 30), (12.0, 40)]
    assert phases(1) == [(12.0, 1)]
    assert phases(7) == [(36.0, 2), (24.0, 2), (12.0, 3)]
    for steps in range(1, 50):
        assert sum(count for _, count in phases(steps)) == steps
    assert Sparsity().checkpoints(100) == list(range(4, 101, 4))
    assert Sparsity().checkpoints(40) == list(range(1, 41))
    assert Sparsity().checkpoints(1) == [1]


# ------------------------------------------------------------------------------------------------ closed forms


def reach(weights: Tensor, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The largest ``z_t - z_y`` of ball and box for each class t, ``[B, classes]``; -inf for y."""
    slopes = weights[None] - weights[y][:, None]
    rises = [highest(slopes[:, t].numpy(), x.numpy(), "l1", eps) for t in range(len(weights))]
    gap = torch.einsum("bkd,bd->bk", slopes, x) + torch.tensor(np.stack(rises, 1))
    return gap.scatter(1, y[:, None], -math.inf)


@pytest.mark.parametrize("larger_eps", [False, True])
def test_robust_accuracy_of_a_linear_model(larger_eps) -> None:
    """A class t overtakes y exactly if the largest of (w_t - w_y) . x_adv over ball and box is above 0."""
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(6, 200, dtype=torch.float64, generator=generator)
    model, x = linear(weights), torch.rand(100, 200, dtype=torch.float64, generator=generator)
    y = model(x).argmax(1).detach()
    gap = reach(weights, x, y, 1.5)
    best = gap.amax(1)
    assert best.abs().min() > 1e-6  # nobody is on the edge
    options: dict[str, Any] = {"eps": 1.5, "norm": "l1", "larger_eps": larger_eps, "loss": "target_margin", "seed": 0}
    adv = adversarial.apgd(model, x, y, **options)
    fooled = model(adv).argmax(1) != y
    assert torch.equal(fooled, best > 0)
    assert 20 < fooled.sum() < 90
    assert_inside(adv, x, 1.5, "l1")
    # One target's own optimum is reached by most; the rest are short of it by little: a step changes two values at least once
    # the best point changes two (2 / 1.5, rounded up), while the optimum may lie at one.
    target = (y + 1) % 6
    adv = adversarial.apgd(model, x, y, targets=target[:, None], early_stop=False, **options)
    missing = gap[torch.arange(100), target] - ((weights[target] - weights[y]) * adv).sum(1)
    assert missing.min() > -1e-9
    assert missing.median() < 1e-7
    assert missing.max() < 0.2


# ------------------------------------------------------------------------------------------------ promises


def test_starts_are_nearest_points_and_their_own() -> None:
    model, seen = linear(torch.randn(3, 40, dtype=torch.float64)), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    x = torch.rand(20, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for larger_eps, radius in ((False, 2.0), (True, 6.0)):
        seen.clear()
        adversarial.apgd(
            model, x, torch.zeros(20, dtype=torch.int64), eps=2.0, norm="l1", steps=10, seed=5, larger_eps=larger_eps
        )
        start = next(points for points in seen if len(points) == 20)
        noise = [np.random.Generator(_apgd.generator(5, 0, 0, i).bit_generator).standard_normal(40) for i in range(20)]
        expected = torch.stack([nearest(x[i] + torch.tensor(noise[i]), x[i], radius) for i in range(20)])
        assert torch.allclose(start, expected, rtol=0, atol=1e-7)
        assert torch.allclose((start - x).abs().sum(1), torch.full((20,), radius, dtype=torch.float64))
    wide = make_ball("l1", 1.0, (0, 255), "float64")
    assert np.allclose(_apgd.surface(wide, 9, np.random.default_rng(0)), np.random.default_rng(0).normal(0, 255, 9))
    free = make_ball("l1", 7.0, None, "float64")
    assert np.allclose(_apgd.surface(free, 9, np.random.default_rng(0)), np.random.default_rng(0).normal(0, 7, 9))


def test_what_larger_balls_find_does_not_count() -> None:
    """Only points inside ``eps`` are returned, and successes outside end nothing."""
    model = net(size=40)
    x, y = data(model, 30, (40,))
    options: dict[str, Any] = {"norm": "l1", "steps": 20, "seed": 0}
    far = adversarial.apgd(model, x, y, eps=1.2, **options)
    near = adversarial.apgd(model, x, y, eps=0.4, **options)
    counts = [int((model(adv).argmax(1) != y).sum()) for adv in (near, far)]
    assert 0 < counts[0] < counts[1]
    assert_inside(near, x, 0.4, "l1")
    told: list[tuple[int, int, int | None]] = []
    with counting() as rows:
        adversarial.apgd(model, x, y, eps=1e-6, progress=lambda *args: told.append(args), **options)
    assert (rows.forward, rows.gradient) == (
        30 * (20 + 3),
        30 * 20,
    )  # a start for each ball; last looks without a gradient
    assert [step for step, *_ in told] == [*range(1, 21), 20]
    assert {(total, fooled) for _, total, fooled in told} == {(20, 0)}


def test_float32_without_a_box_and_without_a_gradient() -> None:
    model = linear(torch.tensor([[1.0] * 8, [-1.0] * 8]))
    x, y = torch.full((3, 8), 0.25), torch.zeros(3, dtype=torch.int64)
    adv = adversarial.apgd(
        model, x, y, eps=1.0, norm="l1", clip=None, loss="margin", steps=10, seed=0, early_stop=False
    )
    assert torch.allclose(model(adv)[:, 0], torch.full((3,), 1.0), atol=1e-5)  # from 2, eps less: ties are all taken
    assert_inside(adv, x, 1.0, "l1", None)
    flat = linear(torch.zeros(2, 8))
    adv = adversarial.apgd(flat, x, y, eps=1.0, norm="l1", steps=3, random_start=False, early_stop=False)
    assert torch.equal(adv, x)


# ------------------------------------------------------------------------------------------------ evaluate


def test_standard_in_l1_is_autoattack() -> None:
    assert [(attack.name, dict(attack.settings)) for attack in _ensembles.attacks_of("standard", "l1")] == [
        (
            "apgd-ce",
            {"loss": "ce", "steps": 100, "restarts": 5, "targets": None, "eot_iter": 1, "larger_eps": True},
        ),
        (
            "apgd-t",
            {"loss": "target_dlr", "steps": 100, "restarts": 1, "targets": 5, "eot_iter": 1, "larger_eps": True},
        ),
        ("fab-t", {"steps": 100, "restarts": 1, "targets": 9}),
        ("square", {"n_queries": 5000}),
    ]
    assert [attack.settings["larger_eps"] for attack in _ensembles.attacks_of("rand", "l1")] == [False, False]
    assert _ensembles.attacks_of(["apgd-ce"], "l1")[0].settings["restarts"] == 5
    assert _ensembles.attacks_of(["apgd-ce"], "l2")[0].settings["restarts"] == 1


@pytest.mark.filterwarnings("ignore::aisec_fast.adversarial.GradientMaskingWarning")
def test_a_report_in_l1(monkeypatch) -> None:
    """Exact on a linear model, with every attack; ball and box as everywhere."""
    assert issubclass(GradientMaskingWarning, UserWarning)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(5, 36, dtype=torch.float64, generator=generator)
    model = nn.Sequential(nn.Flatten(), linear(weights))
    x = torch.rand(60, 1, 6, 6, dtype=torch.float64, generator=generator)
    y = model(x).argmax(1)
    short = _ensembles._random_search("square", n_queries=60)
    monkeypatch.setitem(_ensembles.L1_ATTACKS, "square", short)
    eps = 0.5
    report = adversarial.evaluate(
        model, x, y, eps=[eps / 2, eps], norm="L1", attacks=["square", "apgd-ce", "apgd-t", "fab-t"], seed=0
    )
    for radius in (eps / 2, eps):
        held = reach(weights, x.flatten(1), y, radius).amax(1) < 0
        assert report.curve[radius] == held.double().mean().item()
        assert_inside(report.x_adv_at(radius), x, radius, "l1")
    assert 0 < report.robust_accuracy < report.curve[eps / 2] < 1
    assert "square" in report.fooled_by
    assert str(report).startswith("L1, 60 samples")
    assert [stage.attack for stage in report.stages[1:5]] == ["square", "apgd-ce", "apgd-t", "fab-t"]
    with _arguments.attacked(model, x[:8], y[:8], clip=(0, 1)) as victim:
        job = _ensembles.Job(
            model,
            victim,
            y[:8, None],
            np.arange(8),
            make_ball("l1", eps, (0, 1), "float64"),
            (0, 1),
            0,
            8,
            lambda *_: None,
        )
        assert not _masking._unbounded(job)
    quick = adversarial.evaluate(
        model, x[:8], y[:8], eps=eps, norm="l1", attacks="quick", masking_checks="none", seed=0
    )
    assert [stage.attack for stage in quick.stages] == ["clean", "apgd-ce", "apgd-t", "square"]


# ------------------------------------------------------------------------------------------------ wrong use


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"^larger_eps is True and norm is 'linf', expected 'l1' with it"):
        adversarial.apgd(FINE, X, Y, eps=0.1, larger_eps=True)
    with pytest.raises(TypeError, match=r"^larger_eps is an int"):
        adversarial.apgd(FINE, X, Y, eps=0.1, norm="l1", larger_eps=1)
