"""``adversarial.apgd``: equal to Algorithm 1 of the paper written out, to another implementation, and to closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aisec_fast import adversarial
from aisec_fast.adversarial import _apgd, _arguments, _losses
from aisec_fast.adversarial._apgd_rules import Halving
from aisec_fast.adversarial._ball import make_ball
from aisec_fast.adversarial._rows_seen import counting
from tests.conftest import bits
from tests.test_pgd import assert_inside
from tests.test_pgd_torch import FINE, WRONG, Returns, X, Y, few_threads, snapshot, user_model

__all__ = ["few_threads"]  # a fixture: small tensors wait for threads longer than they compute

TARGETED = ("target_dlr", "target_margin")


def net(classes: int = 5, size: int = 12, seed: int = 0) -> nn.Module:
    """Small, in float64, with bends."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, classes)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def data(model: nn.Module, count: int, shape: tuple[int, ...] = (3, 4), seed: int = 1) -> tuple[Tensor, Tensor]:
    """Samples with the model's own answers as labels."""
    x = torch.rand(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return x, model(x).argmax(1)


def linear(weights: Tensor) -> nn.Module:
    """Logits ``x @ weights.T``."""
    model = nn.Linear(weights.shape[1], weights.shape[0], bias=False, dtype=weights.dtype)
    with torch.no_grad():
        model.weight.copy_(weights)
    return model


class Counting(nn.Module):
    """Notes the size of each batch, and whether a gradient is wanted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), x.requires_grad))
        return self.model(x)


# ------------------------------------------------------------------------------------------------ the algorithm


def loss_at(name: str, z: Tensor, y: int, target: int | None) -> Tensor:
    """Written from the papers' formulas, for one sample."""
    ranked = z.sort(descending=True).values
    others = torch.cat([z[:y], z[y + 1 :]])
    return {
        "ce": lambda: z.logsumexp(0) - z[y],
        "margin": lambda: others.max() - z[y],
        "dlr": lambda: -(z[y] - others.max()) / (ranked[0] - ranked[2] + 1e-12),
        "target_margin": lambda: z[target] - z[y],
        "target_dlr": lambda: -(z[y] - z[target]) / (ranked[0] - (ranked[2] + ranked[3]) / 2 + 1e-12),
    }[name]()


def algorithm_1(
    model: nn.Module, x: Tensor, y: int, start: Tensor, eps: float, norm: str, steps: int, loss: str, target: int | None
) -> tuple[Tensor, list[Tensor]]:
    """One sample, no vectors, nothing shared with the library: x_max, and every point seen."""

    def f(point: Tensor) -> tuple[float, Tensor]:
        leaf = point.clone().requires_grad_(True)
        value = loss_at(loss, model(leaf[None])[0], y, target)
        return value.item(), torch.autograd.grad(value, leaf)[0]

    def project(point: Tensor) -> Tensor:
        move = point - x
        move = move.clamp(-eps, eps) if norm == "linf" else move * min(1.0, eps / max(move.norm().item(), 1e-300))
        return (x + move).clamp(0, 1)

    def ahead(point: Tensor, gradient: Tensor, eta: float) -> Tensor:
        return project(point + eta * (gradient.sign() if norm == "linf" else gradient / gradient.norm()))

    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    w = [math.ceil(round(share * steps, 9)) for share in p]
    eta, last_eta = 2 * eps, 2 * eps
    values, gradients, points = [], [], [start]
    value, gradient = f(start)
    values.append(value)
    best, best_value, best_gradient, last_best = start, value, gradient, value
    here, before = start, start
    for k in range(steps):
        z = ahead(here, gradient, eta)
        after = z if k == 0 else project(here + 0.75 * (z - here) + 0.25 * (here - before))
        before, here = here, after
        value, gradient = f(here)
        values.append(value)
        gradients.append(gradient)
        points.append(here)
        if value > best_value:
            best, best_value, best_gradient = here, value, gradient
        if k + 1 in w:
            j = w.index(k + 1)
            rises = sum(values[i + 1] > values[i] for i in range(w[j - 1], w[j]))
            unchanged = last_eta == eta and last_best == best_value
            last_eta, last_best = eta, best_value
            if rises <= 0.75 * (w[j] - w[j - 1]) or (unchanged and j > 1):
                eta /= 2
                here, gradient = best, best_gradient
    return best, points


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", _apgd.LOSSES)
def test_equal_to_algorithm_1(norm, loss) -> None:
    model, eps, steps = net(), {"linf": 0.12, "l2": 0.4}[norm], 50
    x, y = data(model, 5)
    targets = (y[:, None] + torch.tensor([[2]])) % 5 if loss in TARGETED else None
    options: dict[str, Any] = {"eps": eps, "norm": norm, "steps": steps, "loss": loss, "targets": targets, "seed": 3}
    adv = adversarial.apgd(model, x, y, early_stop=False, **options)
    first = adversarial.apgd(model, x, y, **options)
    ball = make_ball(norm, eps, (0, 1), "float64")
    for i in range(len(x)):
        draws = _apgd.generator(3, int(targets is not None), 0, i)
        start = (x[i] + torch.tensor(_apgd.surface(ball, 12, draws)).reshape(3, 4)).clamp(0, 1)
        target = None if targets is None else int(targets[i, 0])
        best, points = algorithm_1(model, x[i], int(y[i]), start, eps, norm, steps, loss, target)
        assert torch.allclose(adv[i], best, rtol=0, atol=1e-6)
        fooling = [point for point in points if model(point[None]).argmax() != y[i]]
        assert torch.allclose(first[i], fooling[0] if fooling else best, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_equal_to_torchattacks(norm, monkeypatch) -> None:
    """From our starts, after 100 steps, all checkpoints. Its checkpoints are ours only at 100 steps, and the first window of
    its DLR counts a rise from 0 instead of from the start's loss; so cross-entropy."""
    torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks==3.5.1")
    model, eps = net(), {"linf": 0.12, "l2": 0.4}[norm]
    x, y = data(model, 20, (1, 3, 4))
    ball = make_ball(norm, eps, (0, 1), "float64")
    offsets = np.stack([_apgd.surface(ball, 12, _apgd.generator(5, 0, 0, i)) for i in range(20)]).reshape(x.shape)
    adv = adversarial.apgd(model, x, y, eps=eps, norm=norm, seed=5, early_stop=False)
    attack = torchattacks.APGD(model, eps=eps, norm={"linf": "Linf", "l2": "L2"}[norm], steps=100, loss="ce")
    monkeypatch.setattr(torch, "rand", lambda shape: torch.tensor((offsets / eps + 1) / 2))
    monkeypatch.setattr(torch, "randn", lambda shape: torch.tensor(offsets))
    best, right, _, _ = attack.attack_single_run(x, y)
    assert ((adv - best).abs().flatten(1).amax(1) < 1e-5).double().mean() >= 0.95
    stopped = adversarial.apgd(model, x, y, eps=eps, norm=norm, seed=5)
    fooled = model(stopped).argmax(1) != y
    assert torch.equal(fooled, ~right)
    assert 0 < fooled.sum() < 20


def test_checkpoints() -> None:
    checkpoints = Halving("linf").checkpoints
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(50) == [11, 21, 29, 35, 40, 44, 47, 50]
    assert checkpoints(1) == [1]
    assert checkpoints(1000) == [220, 410, 570, 700, 800, 870, 930, 990]


# ------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_robust_accuracy_of_a_linear_model_is_exact(norm, clip) -> None:
    """A class t overtakes y exactly if the largest of (w_t - w_y) . x_adv over ball and box is above 0."""
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(10, 20, dtype=torch.float64, generator=generator)
    model = linear(weights)
    x = torch.rand(200, 20, dtype=torch.float64, generator=generator)
    y = model(x).argmax(1).detach()
    if norm == "l2" and clip is not None:
        x = 0.3 + 0.4 * x  # far enough from the box that it does not matter
        y = model(x).argmax(1).detach()
    eps = 0.05 if norm == "linf" else 0.25 if clip is None else 0.1
    apart = weights[None] - weights[y][:, None]  # [B, classes, D]
    if norm == "l2":
        reach = apart.norm(dim=2) * eps
    else:
        low, high = (-math.inf, math.inf) if clip is None else clip
        up, down = (x + eps).clamp(max=high) - x, (x - eps).clamp(min=low) - x
        reach = torch.where(apart > 0, apart * up[:, None], apart * down[:, None]).sum(2)
    gap = torch.einsum("bkd,bd->bk", apart, x) + reach
    gap[torch.arange(200), y] = -math.inf
    highest = gap.amax(1)
    assert highest.abs().min() > 1e-6  # nobody is on the edge
    counts = []
    for loss in ("target_margin", "target_dlr"):
        adv = adversarial.apgd(model, x, y, eps=eps, norm=norm, loss=loss, steps=30, clip=clip, seed=0)
        fooled = model(adv).argmax(1) != y
        if loss == "target_margin":
            assert torch.equal(fooled, highest > 0)
        counts.append(int(fooled.sum()))
        assert not (fooled & (highest < 0)).any()
    assert 20 < counts[0] < 180
    assert counts[1] >= counts[0] - 2  # DLR's denominator bends the way


# ------------------------------------------------------------------------------------------------ promises


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    eps=st.sampled_from([1e-30, 1e-9, 8 / 255, 0.3, 3.0, 1e30, 1e300]),
    clip=st.sampled_from([(0.0, 1.0), None, (0.1, 0.7), (-math.inf, 2.1)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    norm=st.sampled_from(["linf", "l2", "l1"]),
    loss=st.sampled_from(["ce", "target_dlr"]),
    early_stop=st.booleans(),
    random_start=st.booleans(),
)
def test_every_point_stays_in_ball_and_box(seed, eps, clip, dtype, norm, loss, early_stop, random_start) -> None:
    generator = torch.Generator().manual_seed(seed)
    low, high = (-2.0, 2.0) if clip is None else (max(clip[0], -2.0), min(clip[1], 2.0))
    x = (low + (high - low) * torch.rand(4, 6, dtype=dtype, generator=generator)).clamp(low, high)
    if clip is not None:
        ball = make_ball("linf", 1.0, clip, str(dtype).removeprefix("torch."))
        x = x.clamp(ball.low, ball.high)
    model = linear(torch.randn(4, 6, dtype=dtype, generator=generator))
    seen = []

    class Watched(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            if len(points) == 4:
                seen.append(points.detach().clone())
            return model(torch.tanh(points / 1e3)) if eps > 1e20 else model(points)  # finite logits

    y = model(x).argmax(1)
    adv = adversarial.apgd(
        Watched(), x, y, eps=eps, norm=norm, clip=clip, steps=6, loss=loss, targets=1 if loss != "ce" else None, seed=seed,
        early_stop=early_stop, random_start=random_start,
    )  # fmt: skip
    assert_inside(adv, x, eps, norm, clip)
    for points in seen:  # those in larger balls too
        assert_inside(points, x, 3 * eps if norm == "l1" else eps, norm, clip)


def test_the_seed_decides_and_rows_do_not_matter_to_each_other() -> None:
    model = net()
    x, y = data(model, 12)
    options: dict[str, Any] = {"eps": 0.06, "steps": 8, "loss": "target_margin", "targets": 3, "restarts": 2}
    adv = adversarial.apgd(model, x, y, seed=1, **options)
    assert bits(adv) == bits(adversarial.apgd(model, x, y, seed=1, **options))
    assert bits(adv) != bits(adversarial.apgd(model, x, y, seed=2, **options))
    assert bits(adversarial.apgd(model, x, y, **options)) != bits(adversarial.apgd(model, x, y, **options))
    assert torch.allclose(adv[:5], adversarial.apgd(model, x[:5], y[:5], seed=1, **options), rtol=0, atol=1e-9)
    for rows in (1, 5, 12, 100):
        other = adversarial.apgd(model, x, y, seed=1, max_rows=rows, **options)
        held = model(adv).argmax(1) == y
        assert torch.equal(model(other).argmax(1) == y, held)
        assert 0 < held.sum() < 12
        assert torch.allclose(adv[held], other[held], rtol=0, atol=1e-9)
    with _arguments.attacked(model, x[[7, 2]], y[[7, 2]], clip=(0, 1)) as victim:
        plan = _apgd.Plan(steps=8, restarts=2, loss="target_margin", seed=1)
        aims = _losses.likeliest_others(model(victim.x), victim.y, 3)
        ball = make_ball("linf", 0.06, (0, 1), "float64")
        some = _apgd.Search(victim, ball, plan, aims, numbers=np.array([7, 2])).run()
    assert torch.allclose(adv[[7, 2]], some, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_lie_on_the_surface(norm) -> None:
    x = torch.full((50, 30), 0.5, dtype=torch.float64)
    seen = []
    model = Returns(lambda z: z)
    model.layer = nn.Linear(30, 3).double()
    model.layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    adversarial.apgd(model, x, torch.zeros(50, dtype=torch.int64), eps=0.25, norm=norm, steps=1, seed=0)
    offsets = next(points for points in seen if len(points) == 50) - x
    lengths = offsets.abs().amax(1) if norm == "linf" else offsets.norm(dim=1)
    assert torch.allclose(lengths, torch.full_like(lengths, 0.25), rtol=1e-6)
    assert len({bits(row) for row in offsets}) == 50
    assert abs(offsets.mean()) < 0.02


def test_budgets_are_exact_and_solved_samples_leave() -> None:
    model = Counting(net(classes=12))
    x, y = data(model, 8)
    with counting() as rows:
        adversarial.apgd(model, x, y, eps=1e-6, steps=10, loss="target_dlr", seed=0)
    # Nobody is fooled: one look for the targets, then for each of 9 targets a start and 10 steps, in at most 9 rows side by
    # side; the last look is without a gradient.
    assert (rows.forward, rows.gradient) == (8 + 9 * 8 * 11, 9 * 8 * 10)
    assert max(size for size, _ in model.seen) <= 9
    many, labels = data(model, 40)
    model.seen.clear()
    adversarial.apgd(model, many, labels, eps=0.05, steps=30, seed=0)
    sizes = [size for size, gradient in model.seen if gradient]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 40 > sizes[-1] > 0
    model.seen.clear()
    with counting() as rows:
        adversarial.apgd(model, x, y, eps=0.5, steps=30, loss="target_dlr", seed=0, max_rows=36)
    assert max(size for size, _ in model.seen) == 8 * 4  # four targets side by side
    assert rows.forward < 9 * 8 * 5  # and a sample leaves with all its rows
    with counting() as rows:
        adversarial.apgd(model, x, y, eps=1e-6, steps=3, eot_iter=4, seed=0)
    assert (rows.forward, rows.gradient) == (8 * 13, 8 * 12)


def test_gradients_are_averaged_over_random_models() -> None:
    """One of two weights, at random: one pass climbs one of them, the mean of many passes both."""
    weights = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]])

    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ weights[int(torch.randint(2, ()))].T

    x, y = torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    torch.manual_seed(0)
    options: dict[str, Any] = {"eps": 0.1, "steps": 1, "random_start": False, "early_stop": False}
    adv = adversarial.apgd(Random(), x, y, eot_iter=20, **options)
    assert torch.allclose(adv, torch.full((3, 2), 0.4))
    adv = adversarial.apgd(Random(), x, y, **options)
    assert ((adv - 0.5).abs() > 0.05).sum() == 3


def test_restarts_take_what_fools_or_the_highest_loss() -> None:
    model = net()
    x, y = data(model, 40)
    options: dict[str, Any] = {"eps": 0.05, "steps": 4, "loss": "margin", "seed": 0}
    many = adversarial.apgd(model, x, y, restarts=6, **options)
    one = adversarial.apgd(model, x, y, restarts=1, **options)
    fooled, early = model(many).argmax(1) != y, model(one).argmax(1) != y
    assert not (early & ~fooled).any()
    assert torch.equal(many[early], one[early])

    def height(adv: Tensor) -> Tensor:
        z = model(adv)
        return z.scatter(1, y[:, None], -math.inf).amax(1) - z.gather(1, y[:, None])[:, 0]

    assert (height(many) >= height(one))[~early].all()
    assert (height(many) > height(one))[~fooled].any()
    kept = adversarial.apgd(model, x, y, restarts=6, early_stop=False, **options)
    assert (height(kept) >= height(many))[fooled].all()
    assert not ((model(kept).argmax(1) == y) & early).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_wanted_answers(norm) -> None:
    """With two classes the other one is wanted; with more, what is not fooled only may stay where it is."""
    eps = {"linf": 0.08, "l2": 0.3, "l1": 0.8}[norm]
    options: dict[str, Any] = {"eps": eps, "norm": norm, "steps": 20, "loss": "margin", "seed": 0}
    model = net(classes=2)
    x, y = data(model, 20)
    aimed = adversarial.apgd(model, x, 1 - y, targeted=True, **options)
    assert bits(aimed) == bits(adversarial.apgd(model, x, y, **options))
    assert 0 < (model(aimed).argmax(1) != y).sum() < 20
    model = net()
    x, y = data(model, 20)
    wanted = (y + 1) % 5
    for loss in ("ce", "margin", "dlr"):
        adv = adversarial.apgd(
            model, x, wanted, targeted=True, **{**options, "loss": loss, "eps": 4 * eps, "steps": 60}
        )
        assert (model(adv).argmax(1) == wanted).sum() >= 10
        assert_inside(adv, x, 4 * eps, norm, (0, 1))
    late = adversarial.apgd(model, x, wanted, targeted=True, early_stop=False, **{**options, "eps": 4 * eps})
    assert (model(late).argmax(1) == wanted).sum() >= 10


def test_small_gradients_move_samples_in_l2() -> None:
    """Their squares underflow in float32."""
    weights = torch.tensor([[3e-25, 4e-25], [-3e-25, -4e-25]])
    x, y = torch.full((2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    adv = adversarial.apgd(
        linear(weights), x, y, eps=0.1, norm="l2", steps=1, loss="margin", random_start=False, early_stop=False
    )
    assert torch.allclose(adv, 0.5 - 0.1 * torch.tensor([[0.6, 0.8]]), atol=1e-6)


def test_progress_and_empty_batches() -> None:
    model = net()
    x, y = data(model, 6)
    told: list[tuple[int, int, int | None]] = []
    adv = adversarial.apgd(
        model, x, y, eps=0.1, steps=5, loss="target_margin", targets=4, max_rows=6, seed=0,
        progress=lambda *args: told.append(args),
    )  # fmt: skip
    assert [step for step, _, _ in told] == sorted(step for step, _, _ in told)
    assert {total for _, total, _ in told} == {20}
    assert told[-1] == (20, 20, int((model(adv).argmax(1) != y).sum()))
    assert adversarial.apgd(model, x[:0], y[:0], eps=0.1).shape == (0, 3, 4)


# ------------------------------------------------------------------------------------------------ models of all kinds


@pytest.mark.parametrize(
    "options", [{}, {"loss": "target_dlr", "targets": 2}, {"norm": "l2", "early_stop": False}, {"norm": "l1"}]
)
def test_the_model_is_left_as_it_was(options) -> None:
    model = user_model()
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = snapshot(model)
    seen: list[set[bool]] = []
    model[6].register_forward_hook(lambda *_: seen.append({m.training for m in model.modules()}))
    adversarial.apgd(model, x, torch.arange(4), eps=0.1, steps=2, seed=0, **options)
    assert snapshot(model) == before
    assert seen == [{False}] * len(seen) != []


def test_layouts_dtypes_and_libraries() -> None:
    model = net(size=48)
    x, y = data(model, 6, (3, 4, 4))
    options: dict[str, Any] = {"eps": 0.05, "steps": 5, "loss": "target_dlr", "seed": 0}
    expected = adversarial.apgd(model, x, y, **options)
    wide = torch.zeros(12, 3, 4, 4, dtype=torch.float64)
    wide[::2] = x
    for other in (wide[::2], x.to(memory_format=torch.channels_last)):
        adv = adversarial.apgd(model, other, y.int(), **options)
        assert adv.is_contiguous()
        assert torch.equal(adv, expected)
    host = adversarial.apgd(model, x.numpy(), y.numpy(), **options)
    assert isinstance(host, np.ndarray)
    assert bits(host) == bits(expected)
    assert torch.allclose(adversarial.apgd(model, x[:1], y[:1], **options), expected[:1], rtol=0, atol=1e-9)
    for around in (torch.no_grad, torch.inference_mode):
        with around():
            assert torch.equal(adversarial.apgd(model, x.clone(), y.clone(), **options), expected)

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model.float()(x).bfloat16()

    adv = adversarial.apgd(Half(), x.float(), y, eps=0.3, steps=5, seed=0)
    assert adv.dtype == torch.float32
    assert (model.float()(adv).argmax(1) != y).any()


def test_a_million_classes() -> None:
    """Nothing of the size [B, classes, D] is made."""
    weights = torch.randn(10**6, 4, generator=torch.Generator().manual_seed(0))
    model = linear(weights)
    x, y = torch.rand(2, 4), torch.tensor([0, 999_999])
    for options in ({"loss": "dlr"}, {"loss": "target_dlr", "targets": 2}):
        adv = adversarial.apgd(model, x, y, eps=0.01, steps=1, seed=0, **options)
        assert (model(adv).argmax(1) != y).all()


# ------------------------------------------------------------------------------------------------ wrong use

MODELS = [case for case in WRONG if set(case[1]) <= {"model", "x", "y"} and case[0] != "meta logits"]


@pytest.mark.parametrize(("what", "changes", "error", "message"), MODELS, ids=[case[0] for case in MODELS])
def test_wrong_models_and_samples(what, changes, error, message) -> None:
    options = {"model": FINE, "x": X, "y": Y, "eps": 0.1, **changes}
    with pytest.raises(error, match=message):
        adversarial.apgd(options.pop("model"), options.pop("x"), options.pop("y"), **options)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"eps": 0.0}, ValueError, "^eps is 0.0, expected a number above 0"),
    ({"norm": "l7"}, ValueError, "^norm is 'l7'"),
    ({"steps": 0}, ValueError, "^steps is 0, expected at least 1"),
    ({"restarts": 0}, ValueError, "^restarts is 0"),
    ({"restarts": 2, "random_start": False}, ValueError, "^restarts is 2, but random_start is False"),
    ({"loss": "mse"}, ValueError, "^loss is 'mse', expected one of 'ce'"),
    ({"loss": ["ce"]}, ValueError, "^loss is"),
    ({"targets": 3}, ValueError, "^targets are given, but loss is 'ce'"),
    ({"targeted": 1}, TypeError, "^targeted is an int"),
    ({"targeted": True, "loss": "target_dlr"}, ValueError, "^targeted is True and loss is 'target_dlr', expected 'ce'"),
    ({"loss": "target_dlr"}, ValueError, "3 classes, expected at least 4 for loss 'target_dlr'"),
    ({"loss": "target_margin", "targets": 0}, ValueError, "^targets is 0, expected at least 1"),
    ({"loss": "target_margin", "targets": Y}, ValueError, r"^targets has shape \(4,\), expected labels \[4, targets\]"),
    ({"loss": "target_margin", "targets": Y[:, None] * 1.0}, TypeError, "^targets has dtype float32"),
    ({"loss": "target_margin", "targets": Y[:, None] + 1}, ValueError, "^targets holds labels from 1 to 3"),
    ({"loss": "target_margin", "targets": Y[:, None]}, ValueError, "^targets holds true labels"),
    ({"eot_iter": 0}, ValueError, "^eot_iter is 0"),
    ({"max_rows": 0}, ValueError, "^max_rows is 0"),
    ({"early_stop": 1}, TypeError, "^early_stop is an int"),
    ({"seed": -1}, ValueError, "^seed is -1"),
    ({"clip": (1, 0)}, ValueError, "^clip is"),
    ({"progress": 3}, TypeError, "^progress is an int"),
    ({"x": X + 1}, ValueError, "^x has values from"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_wrong_arguments(changes, error, message) -> None:
    options = {"model": FINE, "x": X, "y": Y, "eps": 0.1, **changes}
    before = snapshot(FINE)
    with pytest.raises(error, match=message):
        adversarial.apgd(options.pop("model"), options.pop("x"), options.pop("y"), **options)
    assert snapshot(FINE) == before


@pytest.mark.parametrize(
    "options", [{}, {"early_stop": False}, {"norm": "l2", "loss": "margin"}, {"norm": "l1", "larger_eps": False}]
)
@pytest.mark.parametrize("bad_step", [0, 4, 12])
def test_nan_logits_are_named(options, bad_step) -> None:
    calls: list[int] = []

    def spoil(logits: Tensor) -> Tensor:
        calls.append(1)
        factor = torch.tensor([[1.0], [torch.nan], [1.0], [1.0]])
        return logits * factor if len(calls) > bad_step else logits

    model = Returns(spoil)
    y = model.layer(X).argmax(1)
    with pytest.raises(ValueError, match=f"NaN or infinite logits for 1 of 4 samples after {bad_step} steps"):
        adversarial.apgd(model, X, y, eps=1e-6, steps=20, **options)


@pytest.mark.parametrize("attack", ["apgd", "square", "evaluate"])
@pytest.mark.parametrize("norm", ["l0", "L0"])
def test_balls_without_rules_are_refused(attack, norm) -> None:
    with pytest.raises(ValueError, match=rf"^norm is '{norm}', expected one of 'linf', 'l2', 'l1' \(a capital"):
        getattr(adversarial, attack)(FINE, X, Y, eps=1.0, norm=norm)
