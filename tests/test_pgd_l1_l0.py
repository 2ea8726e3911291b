"""``adversarial.pgd`` and ``pgd_step`` in L1 and L0: closed forms of linear models, starts, projection, wrong use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from aisec_fast import adversarial
from aisec_fast._arrays import describe
from aisec_fast._backends import choose
from aisec_fast._reference import adversarial as reference
from aisec_fast.adversarial import GradientModel
from aisec_fast.adversarial._ball import make_ball
from tests.conftest import bits

NORMS, DTYPES = ["l1", "l0"], ["float32", "float64"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def assert_inside(adv: Any, x: Any, eps: float, norm: str, clip: tuple[float, float] | None = (0.0, 1.0)) -> None:
    """The promise: ball in float64, box exactly, and the same kind of array."""
    assert type(adv) is type(x)
    assert adv.dtype == x.dtype
    adv, x = np.asarray(adv).reshape(len(adv), -1), np.asarray(x).reshape(len(x), -1)
    distance = np.abs(adv.astype(np.float64) - x.astype(np.float64))
    assert ((distance.sum(1) if norm == "l1" else (adv != x).sum(1)) <= eps).all()
    if clip is not None:
        assert clip[0] <= float(adv.min())
        assert float(adv.max()) <= clip[1]


def highest(slopes: np.ndarray, x: np.ndarray, norm: str, eps: float) -> np.ndarray:
    """The largest <slope, z - x> of each row over ball and box: the steepest values (L1), the best whole ones (L0)."""
    room = np.where(slopes > 0, 1 - x, x)
    if norm == "l0":
        return -np.sort(-np.abs(slopes) * room, axis=1)[:, : int(eps)].sum(1)
    order = np.argsort(-np.abs(slopes), axis=1)
    room, steep = np.take_along_axis(room, order, 1), np.take_along_axis(np.abs(slopes), order, 1)
    taken = np.clip(eps - (room.cumsum(1) - room), 0, room)
    return (taken * steep).sum(1)


@pytest.mark.parametrize(("norm", "eps"), [("l1", 1.5), ("L1", 12.0), ("l0", 3), ("L0", 12)])
def test_every_target_of_a_linear_model_is_reached_as_far_as_can_be(backend, norm, eps, rng) -> None:
    """Ten classes: one run with the default step, from a random start, ends at the closed form for each target."""
    x, weights = rng.random((24, 60)), rng.standard_normal((60, 10))
    y = (x @ weights).argmax(1)
    for target in range(10):
        slopes = weights.T[target] - weights.T[y]
        adv = adversarial.pgd(GradientModel(lambda x, y, s=slopes: s), x, y, eps=eps, norm=norm, seed=target)
        assert_inside(adv, x, eps, norm.lower())
        wanted, got = highest(slopes, x, norm.lower(), eps), ((adv - x) * slopes).sum(1)
        assert (np.abs(got - wanted) <= 2.0**-28 * wanted + 1e-12).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_torch_module_is_fooled_exactly_where_it_can_be(backend, norm) -> None:
    """Two classes, whose cross-entropy has one direction: as many are fooled as the closed form says."""
    generator = torch.Generator().manual_seed(3)
    model, x = torch.nn.Linear(40, 2).double(), torch.rand((150, 40), generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    with torch.no_grad():
        slopes = (model.weight[1 - y] - model.weight[y]).numpy()
        margin = (model(x).gather(1, y[:, None]) - model(x).gather(1, 1 - y[:, None]))[:, 0].numpy()
    eps = 0.7 if norm == "l1" else 2
    gain = highest(slopes, x.numpy(), norm, eps)
    model.bias.data[y.mode().values] += float(np.median(gain - margin))  # so that about half can be
    y = model(x).argmax(1)
    with torch.no_grad():
        slopes = (model.weight[1 - y] - model.weight[y]).numpy()
        margin = (model(x).gather(1, y[:, None]) - model(x).gather(1, 1 - y[:, None]))[:, 0].numpy()
    gain = highest(slopes, x.numpy(), norm, eps)
    adv = adversarial.pgd(model, x, y, eps=eps, norm=norm, steps=20, seed=1)
    assert_inside(adv, x, eps, norm)
    clear = np.abs(margin - gain) > 1e-7
    assert np.array_equal((model(adv).argmax(1) != y).numpy()[clear], (margin < gain)[clear])
    assert 0 < np.count_nonzero(margin < gain) < len(x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("targeted", [False, True])
def test_every_iterate_stays_in_ball_and_box(backend, norm, dtype, targeted, rng) -> None:
    x, seen = rng.random((4, 3, 5)).astype(dtype), []

    def gradient(adv: np.ndarray, y: np.ndarray) -> np.ndarray:
        seen.append(adv.copy())
        return (rng.standard_normal(adv.shape) * (rng.random(adv.shape) < 0.8)).astype(dtype)

    for eps, factor in ((1.0, None), (2.5, 0.1), (3.0, 7.0), (1e6, 1e-6), (1e300, 1.0)):
        size = None if factor is None else factor * eps
        options: dict[str, Any] = {"steps": 5, "step_size": size, "targeted": targeted, "seed": 1}
        seen.clear()
        adv = adversarial.pgd(GradientModel(gradient), x, np.zeros(4), eps=eps, norm=norm, **options)
        assert len(seen) == 5
        for iterate in [*seen, adv]:
            assert_inside(iterate, x, eps, norm)


def test_a_default_step_size_is_two_and_a_half_times_the_way() -> None:
    for norm in ("linf", "l2", "l1", "l0"):
        ball = make_ball(norm, 4.0, (0.0, 1.0), "float32")
        assert ball.default_step_size(20) == 0.5
        assert ball.default_step_size(0) == 10.0


# ------------------------------------------------------------------------------------------------ starts


def start(x: Any, **options: Any) -> Any:
    return adversarial.pgd(GradientModel(lambda x, y: x), x, np.zeros(len(x)), steps=0, **options)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_seed_decides_the_start(backend, norm, dtype, rng, monkeypatch) -> None:
    x = rng.random((20, 8)).astype(dtype)
    one = start(x, eps=2.5, norm=norm, seed=5)
    assert_inside(one, x, 2.5, norm)
    assert bits(one) == bits(start(x, eps=2.5, norm=norm, seed=5))
    assert bits(one) != bits(start(x, eps=2.5, norm=norm, seed=6))
    assert bits(one[:7]) == bits(start(x[:7], eps=2.5, norm=norm, seed=5))  # not the batch size
    tensor = GradientModel(lambda x, y: x)
    adv = adversarial.pgd(tensor, torch.from_numpy(x), torch.zeros(20), eps=2.5, norm=norm, seed=5, steps=0)
    assert bits(adv) == bits(one)
    assert len({bits(row) for row in one - x}) == 20
    for values in (1, 20, 70):
        monkeypatch.setattr("aisec_fast.adversarial._start._VALUES_AT_A_TIME", values)
        assert bits(start(x, eps=2.5, norm=norm, seed=5)) == bits(one)


def test_l1_starts_are_uniform_in_the_ball() -> None:
    """Fixed seed: the tests pass or fail for good. Over seeds each of the five would fail one time in a thousand."""
    size, eps = 3, 0.25
    x = np.full((4000, size), 0.5)
    offsets = start(x, eps=eps, norm="l1", seed=0) - x
    radii = np.abs(offsets).sum(1)
    assert stats.kstest((radii / eps) ** size, "uniform").pvalue > 1e-3
    for i in (0, 2):  # of three magnitudes that sum to 1, uniform on the triangle, one is below t with 1 - (1 - t)^2
        share = np.abs(offsets[:, i]) / radii
        assert stats.kstest(1 - (1 - share) ** 2, "uniform").pvalue > 1e-3
        assert stats.binomtest(int((offsets[:, i] > 0).sum()), len(x)).pvalue > 1e-3


def test_l0_starts_choose_values_and_places_uniformly() -> None:
    """Fixed seed; over seeds each of the three would fail one time in a thousand."""
    x = np.full((4000, 6), 0.25)
    adv = start(x, eps=2.9, norm="l0", clip=(-1.0, 3.0), seed=0)
    changed = adv != x
    assert (changed.sum(1) == 2).all()
    pairs = np.array([2 ** np.arange(6) @ row for row in changed])
    assert stats.chisquare(np.unique(pairs, return_counts=True)[1]).pvalue > 1e-3
    assert np.unique(pairs).size == 15
    assert stats.kstest((adv[changed] + 1) / 4, "uniform").pvalue > 1e-3
    assert stats.kstest((adv[:, 3][changed[:, 3]] + 1) / 4, "uniform").pvalue > 1e-3
    everything = start(x, eps=100, norm="l0", clip=(-1.0, 3.0), seed=0)
    assert (everything != x).all()


# ------------------------------------------------------------------------------------------------ one step, projection


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step_size", [0.3, -2.0, 0.0])
def test_one_step_is_the_contracts(backend, norm, dtype, step_size, rng) -> None:
    x, adv = rng.random((5, 3, 7)).astype(dtype), rng.random((5, 3, 7)).astype(dtype)
    gradient, expected = rng.standard_normal(x.shape).astype(dtype), np.empty_like(x)
    getattr(reference, f"{norm}_step")(adv, x, gradient, step_size, 2.5, 0.0, 1.0, expected)
    options: dict[str, Any] = {"eps": 2.5, "step_size": step_size, "norm": norm.upper()}
    assert bits(adversarial.pgd_step(adv, x, gradient, **options)) == bits(expected)
    tensors = [torch.from_numpy(a.copy()) for a in (adv, x, gradient)]
    assert bits(adversarial.pgd_step(*tensors, out=tensors[0], **options)) == bits(expected)


@pytest.mark.parametrize("norm", ["linf", "l2", *NORMS])
@pytest.mark.parametrize("make", [lambda a: a, torch.from_numpy])
def test_a_ball_projects_what_it_is_given(backend, norm, make, rng) -> None:
    x, far = rng.random((5, 3, 7)).astype("f4"), (30 * rng.standard_normal((5, 3, 7))).astype("f4")
    far[1, 2, 3], far[2, 0, 0] = np.nan, np.inf
    expected = np.empty_like(x)
    getattr(reference, f"{norm}_step")(far, x, np.zeros_like(x), 0.0, 1.5, 0.0, 1.0, expected)
    adv, ball = make(far.copy()), make_ball(norm, 1.5, (0.0, 1.0), "float32")
    ball.project(choose([describe(adv, "adv")]), adv, make(x))
    assert bits(adv) == bits(expected)
    inside = make(expected.copy())
    ball.project(choose([describe(adv, "adv")]), inside, make(x))
    assert np.abs(np.asarray(inside) - expected).max() <= 1e-6  # what is inside stays
    none = make(x[:0].copy())
    ball.project(choose([describe(adv, "adv")]), none, none)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l3"}, "^norm is 'l3', expected one of 'linf', 'l2', 'l1', 'l0'"),
        ({"norm": "l0", "eps": 0.9}, "^eps is 0.9 and norm 'l0', expected at least 1"),
        ({"norm": "l0", "eps": 2, "clip": None}, "^clip is None and norm 'l0', expected a finite box"),
        ({"norm": "l0", "eps": 2, "clip": (0, math.inf)}, "^clip is .* and norm 'l0', expected a finite box"),
    ],
)
def test_wrong_arguments(backend, changes, message) -> None:
    x = np.full((4, 6), 0.5)
    options: dict[str, Any] = {"eps": 0.1, "norm": "l1", **changes}
    with pytest.raises(ValueError, match=message):
        adversarial.pgd(GradientModel(lambda x, y: x), x, np.zeros(4), **options)
    with pytest.raises(ValueError, match=message):
        adversarial.pgd_step(x, x, x.copy(), step_size=0.1, **options)
