"""``adversarial.pgd`` on torch modules: equal to other implementations, and the user's module is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from aisec_fast import adversarial, noise
from aisec_fast.adversarial import GradientModel
from aisec_fast.adversarial._losses import LOSSES
from aisec_fast.privacy import PrivacyEngine
from tests.conftest import bits
from tests.test_pgd import assert_inside


class SmallCNN(nn.Sequential):
    """Trained well enough on 8 x 8 digits that attacks have work to do."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.Tanh(),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 10),
        )  # fmt: skip


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallCNN()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for batch in torch.randperm(1500).split(128) * 3:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    optimizer.zero_grad()
    model.eval()
    assert accuracy(model, x[1500:], y[1500:]) > 0.85
    return model


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x[1500:1600], y[1500:1600]


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def agreement(a: Tensor, b: Tensor) -> float:
    """Share of elements that are equal to 1e-6."""
    return ((a - b).abs() <= 1e-6).float().mean().item()


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, step_size: float, steps: int, norm: str) -> Tensor:
    """A textbook loop, written for this test: whole batch, mean loss, torch operations, box [0, 1]."""
    adv = x.clone()
    for _ in range(steps):
        adv.requires_grad_(True)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(adv), y), adv)
        adv = adv.detach()
        if norm == "linf":
            offset = (adv + step_size * gradient.sign() - x).clamp(-eps, eps)
        else:
            lengths = gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            offset = adv + step_size * gradient / lengths - x
            offset = offset * (eps / offset.flatten(1).norm(dim=1)).clamp(max=1).reshape(-1, 1, 1, 1)
        adv = (x + offset).clamp(0, 1)
    return adv


def torchattacks_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, step_size: float, steps: int, norm: str
) -> Tensor:
    torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks==3.5.1")
    attack = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    return attack(model, eps=eps, alpha=step_size, steps=steps, random_start=False)(x, y)


OTHERS = pytest.mark.parametrize("other", [plain_pgd, torchattacks_pgd])


# ------------------------------------------------------------------------------------------------ the same answers


@OTHERS
@pytest.mark.parametrize(("eps", "steps"), [(0.05, 20), (0.2, 10)])
def test_linf_equals_other_implementations(backend, trained, images, other, eps, steps) -> None:
    x, y = images
    adv = adversarial.pgd(trained, x, y, eps=eps, step_size=eps / 8, steps=steps, random_start=False)
    expected = other(trained, x, y, eps, eps / 8, steps, "linf")
    assert_inside(adv, x, eps, "linf", (0, 1))
    assert agreement(adv, expected) >= 0.999
    assert accuracy(trained, adv, y) == accuracy(trained, expected, y) < accuracy(trained, x, y)


@OTHERS
def test_l2_equals_other_implementations(backend, trained, images, other) -> None:
    """In float64: in float32 a step's direction is only as good as the rounding of the whole backward pass, and steps of
    equal length carry its error on (below)."""
    x, y = images[0].double(), images[1]
    model = copy.deepcopy(trained).double()
    adv = adversarial.pgd(model, x, y, eps=0.8, step_size=0.2, steps=10, norm="l2", random_start=False)
    expected = other(model, x, y, 0.8, 0.2, 10, "l2")
    assert_inside(adv, x, 0.8, "l2", (0, 1))
    assert agreement(adv, expected) >= 0.999
    assert accuracy(model, adv, y) == accuracy(model, expected, y) < accuracy(model, x, y)


@OTHERS
def test_l2_in_float32_stays_close_to_other_implementations(trained, images, other) -> None:
    x, y = images
    adv = adversarial.pgd(trained, x, y, eps=0.8, step_size=0.2, steps=10, norm="l2", random_start=False)
    expected = other(trained, x, y, 0.8, 0.2, 10, "l2")
    assert agreement(adv, expected) >= 0.95
    assert ((adv - expected).abs() <= 1e-4).float().mean() >= 0.999
    assert abs(accuracy(trained, adv, y) - accuracy(trained, expected, y)) <= 0.01


@OTHERS
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_gives_exactly_the_same(backend, other, norm) -> None:
    """Values on a grid and lengths that are powers of two: nothing is rounded, so equality is to the bit (linf)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 65, (50, 1, 4, 4), generator=generator) / 64
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    with torch.no_grad():
        row = torch.randint(1, 9, (16,), generator=generator) / 8 * torch.tensor([1, -1]).repeat(8)
        model[1].weight.copy_(torch.stack([row, -row]))
    y = model(x).argmax(1)
    adv = adversarial.pgd(model, x, y, eps=0.125, step_size=1 / 32, steps=10, norm=norm, random_start=False)
    expected = other(model, x, y, 0.125, 1 / 32, 10, norm)
    if norm == "linf":
        assert torch.equal(adv, expected)
        away = (model[1].weight[1] - model[1].weight[0]).sign() * torch.where(y == 0, 1, -1)[:, None]
        assert torch.equal(adv, (x + 0.125 * away.reshape(x.shape)).clamp(0, 1))
    else:
        assert agreement(adv, expected) == 1


@pytest.mark.parametrize(
    ("loss", "targeted"),
    [("ce", False), ("margin", False), ("dlr", False), ("ce", True), ("margin", True), ("dlr", True)],
)
def test_losses_find_the_optimum_of_a_linear_model(backend, loss, targeted) -> None:
    """Two logits move apart, a third is far below: all losses have the same direction, w_1 - w_0."""
    w = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(16, 3).double()
    with torch.no_grad():
        model.weight.copy_(torch.stack([w, -w, torch.zeros_like(w)]))
        model.bias.copy_(torch.tensor([0.0, 0.0, -1e3]))
    x = torch.rand(20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.full((20,), 1 if targeted else 0)
    adv = adversarial.pgd(model, x, y, eps=0.3, steps=10, loss=loss, targeted=targeted, seed=0)
    assert (adv - (x - 0.3 * w.sign()).clamp(0, 1)).abs().max() <= 1e-15


def robust_linear(model: nn.Linear, x: Tensor, y: Tensor, eps: float, norm: str) -> Tensor:
    """Whether no point of ball and box (that of L2 is left out: nothing comes near it) has another answer: for each other
    class the largest difference of logits is a linear programme with a closed form."""
    w, b = model.weight.detach(), model.bias.detach()
    robust = torch.ones(len(x), dtype=torch.bool)
    for target in range(len(w)):
        slope, other = w[target] - w[y], y != target
        if norm == "linf":
            best = torch.where(slope > 0, (x + eps).clamp(max=1), (x - eps).clamp(min=0))
        elif norm == "l1":  # the steepest values go to their end of the box until eps is used up
            room = torch.where(slope > 0, 1 - x, x)
            order = slope.abs().argsort(dim=1, descending=True)
            used = room.gather(1, order).cumsum(1)
            moves = torch.zeros_like(x).scatter(1, order, room.gather(1, order) - (used - eps).clamp(min=0))
            best = x + slope.sign() * moves.clamp(min=0)
        else:
            best = x + eps * slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-30)
        robust &= ~other | ((best * slope).sum(1) + b[target] - b[y] < 0)
    return robust


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.01), ("linf", 0.03), ("l2", 0.05), ("l1", 0.3)])
@pytest.mark.parametrize("options", [{}, {"early_stop": True}, {"random_start": False}])
def test_one_margin_run_is_exact_on_linear_models(norm, eps, options) -> None:
    """Ten classes: where cross-entropy follows a mixture of them, each target class has one direction.

    Steps of fixed length turn an L2 offset only slowly, so that run starts at x and not beside its optimum.
    """
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(64, 10).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(10, 64, dtype=torch.float64, generator=generator))
        model.bias.copy_(-0.5 * model.weight.sum(1))  # so that answers differ around the middle of the box
    low, high = (0.3, 0.7) if norm == "l2" else (0.0, 1.0)
    x = low + (high - low) * torch.rand(512, 64, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        y = model(x).argmax(1)
    expected = robust_linear(model, x, y, eps, norm)
    assert 0 < int(expected.sum()) < len(x)
    settings: dict[str, Any] = {"random_start": norm != "l2", "seed": 0, **options}
    adv = adversarial.pgd(model, x, y, eps=eps, norm=norm, loss="margin", **settings)
    assert torch.equal(model(adv).argmax(1) == y, expected)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_targets_are_attacked_one_after_the_other(loss) -> None:
    """The first class that is tried is the second answer; a third is reached only if it is asked for."""
    model = nn.Linear(2, 4).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.0, -0.8, -2.6, -9.0]))
    x, y = torch.full((1, 2), 0.5, dtype=torch.float64), torch.tensor([0])
    settings: dict[str, Any] = {"eps": 0.2, "loss": loss, "random_start": False, "steps": 10}
    answers = [int(model(adversarial.pgd(model, x, y, **settings, targets=n)).argmax()) for n in (1, 2, 99)]
    assert answers == [0, 2, 2]


def test_several_radii_at_once(trained, images) -> None:
    """Each as if it had been asked for alone; the model is elementwise, so bits do not depend on the batch."""

    class Elementwise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] * x[:, 1], x[:, 2] - x[:, 0], x[:, 1] * x[:, 2]], 1)

    x, y = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    radii = [0.3, 0.05, 0.1]
    for options in ({}, {"norm": "l2"}, {"restarts": 2}, {"early_stop": True}, {"step_size": 0.01, "targeted": True}):
        settings: dict[str, Any] = {"steps": 7, "seed": 0, **options}
        found = adversarial.pgd(Elementwise(), x, y, eps=radii, **settings)
        assert found.shape == (3, 30, 3)
        for eps, adv in zip(radii, found, strict=True):
            assert bits(adv) == bits(adversarial.pgd(Elementwise(), x, y, eps=eps, **settings))
    whole, labels = images
    robust = [accuracy(trained, adv, labels) for adv in adversarial.pgd(trained, whole, labels, eps=(0.02, 0.1, 0.2))]
    assert robust == sorted(robust, reverse=True)
    assert adversarial.pgd(trained, whole[:0], labels[:0], eps=[0.1, 0.2]).shape == (2, 0, 1, 8, 8)


def test_a_fooled_sample_leaves_with_all_its_runs() -> None:
    """Whichever of the stacked runs fooled it: here the second target falls at once, the others never."""
    model = nn.Linear(1, 12).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [-0.1], [2.0], *[[-0.1]] * 9]))
        model.bias.copy_(torch.tensor([0.0, -0.02, -1.15, *[-0.5] * 9]))
    counting = Counting(model)
    x, y = torch.full((20, 1), 0.5, dtype=torch.float64), torch.zeros(20, dtype=torch.int64)
    settings: dict[str, Any] = {"loss": "margin", "eps": 0.1, "step_size": 0.02, "steps": 8, "random_start": False}
    adv = adversarial.pgd(counting, x, y, **settings, early_stop=True)
    assert (model(adv).argmax(1) == 2).all()
    assert counting.with_gradient == [20] * 8 + [160] * 5


class Wide(nn.Module):
    """Each row has an activation of 200 kB: 20 of them fit into what one thread computes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.head = nn.Linear(50, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.head((x[:, None, :] * x.new_ones(1000, 1)).mean(1))


def test_large_activations_are_computed_in_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    model, x = Wide(), torch.rand(64, 50, generator=generator)
    y = torch.arange(64) % 3
    settings: dict[str, Any] = {"eps": 0.1, "steps": 10, "random_start": False}
    in_parts = adversarial.pgd(model, x, y, **settings)
    assert model.rows == [2, 1] + [16] * 40
    model.rows.clear()
    whole = adversarial.pgd(model, x, y, **settings, working_copy=False)
    assert set(model.rows) == {64}
    assert agreement(in_parts, whole) >= 0.999


class Mixing(Wide):
    """Each sample's logits depend on the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean()


def test_batches_whose_samples_mix_stay_whole() -> None:
    model, x = Mixing(), torch.rand(64, 50, generator=torch.Generator().manual_seed(0))
    adversarial.pgd(model, x, torch.arange(64) % 3, eps=0.1, steps=10, random_start=False)
    assert model.rows == [2, 1] + [64] * 10


def test_large_batches_are_not_stacked(trained, images, monkeypatch) -> None:
    """Radii and runs go one after the other where their batch would be too large; verdicts are the same."""
    x, y = images
    settings: dict[str, Any] = {"eps": [0.05, 0.1], "steps": 5, "seed": 0, "restarts": 3}
    stacked = adversarial.pgd(trained, x, y, **settings)
    monkeypatch.setattr("aisec_fast.adversarial._runs._STACKED_VALUES", 1)
    model, steps = Counting(trained), []
    alone = adversarial.pgd(model, x, y, **settings, progress=lambda step, total, _: steps.append((step, total)))
    assert max(model.with_gradient) == len(x)
    assert steps == sorted(steps)
    assert steps[-1] == (15, 15)
    for a, b in zip(stacked, alone, strict=True):
        assert torch.equal(trained(a).argmax(1) == y, trained(b).argmax(1) == y)


def test_losses_are_those_of_their_papers() -> None:
    logits = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 7
    for row, label, *values in zip(
        logits.numpy(), y.tolist(), *(LOSSES[n].values(logits, y) for n in LOSSES), strict=True
    ):
        ranked = np.sort(row)[::-1]
        margin = max(np.delete(row, label)) - row[label]
        expected = np.log(np.exp(row).sum()) - row[label], margin, margin / (ranked[0] - ranked[2])
        assert np.allclose([v.item() for v in values], expected, rtol=1e-9)


def test_one_samples_attack_does_not_depend_on_the_batch(trained, images) -> None:
    """To the bit, where the model's own arithmetic does not depend on the batch: here it is elementwise."""

    class Elementwise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] * x[:, 1], x[:, 2] - x[:, 0], x[:, 1] * x[:, 2]], 1)

    x, y = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    for options in ({}, {"norm": "l2"}, {"loss": "dlr"}, {"early_stop": True}):
        settings: dict[str, Any] = {"eps": 0.1, "steps": 7, "random_start": False, **options}
        whole = adversarial.pgd(Elementwise(), x, y, **settings)
        parts = [adversarial.pgd(Elementwise(), x[i : i + 7], y[i : i + 7], **settings) for i in range(0, 30, 7)]
        assert bits(torch.cat(parts)) == bits(whole)


# ------------------------------------------------------------------------------------------------ early stop, restarts


def keep_first(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    """Full batch to the end; the first iterate that fools, else the last."""
    result, fooled = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    for k in range(steps + 1):
        adv = adversarial.pgd(model, x, y, eps=eps, step_size=eps / 4, steps=k, random_start=False)
        hit = (model(adv).argmax(1) != y) & ~fooled
        result[hit] = adv[hit]
        fooled |= hit
    result[~fooled] = adv[~fooled]
    return result, fooled


def test_early_stop_has_the_verdicts_of_the_full_batch(trained, images) -> None:
    x, y = images
    expected, fooled = keep_first(trained, x, y, 0.1, 8)
    adv = adversarial.pgd(trained, x, y, eps=0.1, step_size=0.025, steps=8, random_start=False, early_stop=True)
    assert torch.equal(trained(adv).argmax(1) != y, fooled)
    assert 0 < int(fooled.sum()) < len(x)
    assert agreement(adv, expected) >= 0.999


class Counting(nn.Module):
    """Counts the samples of each forward pass, and those with a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.with_gradient, self.without = model, [], []  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        (self.with_gradient if torch.is_grad_enabled() else self.without).append(len(x))
        return self.model(x)


@pytest.mark.parametrize(
    ("options", "passes", "verdicts"),
    [({}, 6, 0), ({"early_stop": True}, 6, 0), ({"restarts": 3}, 12, 2), ({"loss": "margin"}, 12, 3)],
)
def test_no_forward_pass_is_wasted(trained, images, options, passes, verdicts) -> None:
    """Later runs are stacked, and go over the samples that the first has left; targets cost one look at x."""
    x, y = images
    model = Counting(trained)
    adversarial.pgd(model, x, y, eps=0.05, steps=6, seed=0, **options)
    assert len(model.with_gradient) == passes
    assert len([rows for rows in model.without if rows > 2]) == verdicts  # two tell how large activations are
    runs = {"restarts": 2, "loss": 8}.get(next(iter(options), ""), 0)
    if runs:
        left = model.with_gradient[-1] / runs
        assert left == int(left)
        assert 0 < left < len(x)
        assert model.with_gradient == [len(x)] * 6 + [left * runs] * 6
    else:
        assert model.with_gradient == sorted(model.with_gradient, reverse=True)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_restarts_only_help(trained, images, loss) -> None:
    x, y = images
    options: dict[str, Any] = {"eps": 0.08, "steps": 4, "seed": 0, "loss": loss}
    one = adversarial.pgd(trained, x, y, **options)
    three = adversarial.pgd(trained, x, y, restarts=3, **options)
    with torch.no_grad():
        fooled_by_one, fooled = trained(one).argmax(1) != y, trained(three).argmax(1) != y
        assert not (fooled_by_one & ~fooled).any()
        higher = LOSSES[loss].values(trained(three), y) - LOSSES[loss].values(trained(one), y)
    assert (higher[~fooled] >= -1e-5).all()
    assert (higher[~fooled] > 1e-5).any()
    assert torch.equal(three[fooled_by_one], one[fooled_by_one])


def test_a_run_that_fools_wins_over_one_with_a_higher_loss() -> None:
    """Above 0.5 the label barely loses to one class, with a small loss; below it barely wins over nine."""

    class Barely(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            loses = torch.tensor([0.0, 0.1] + [-9.0] * 8)
            wins = torch.tensor([0.1] + [0.0] * 9)
            return torch.where(x > 0.5, loses, wins) + 0 * x

    x, y = torch.full((40, 1), 0.5), torch.zeros(40, dtype=torch.int64)
    model = Barely()
    with torch.no_grad():
        low, high = (LOSSES["ce"].values(model(torch.tensor([[v]])), y[:1]) for v in (0.0, 1.0))
    assert low > high
    adv = adversarial.pgd(model, x, y, eps=0.5, steps=0, restarts=20, seed=0)
    assert (adv > 0.5).all()  # over seeds it fails 4 times in 100,000


def test_targets_are_reached(trained, images) -> None:
    x, y = images
    for loss in ("ce", "margin"):
        adv = adversarial.pgd(trained, x, (y + 1) % 10, eps=0.3, targeted=True, loss=loss, early_stop=True, seed=0)
        assert accuracy(trained, adv, (y + 1) % 10) > 0.9
        assert_inside(adv, x, 0.3, "linf", (0, 1))


def test_a_seed_is_reproducible(backend, trained, images) -> None:
    x, y = images
    options: dict[str, Any] = {"eps": 0.05, "steps": 3, "restarts": 2}
    assert torch.equal(
        adversarial.pgd(trained, x, y, seed=4, **options), adversarial.pgd(trained, x, y, seed=4, **options)
    )
    assert not torch.equal(
        adversarial.pgd(trained, x, y, seed=4, **options), adversarial.pgd(trained, x, y, seed=5, **options)
    )
    assert not torch.equal(adversarial.pgd(trained, x, y, **options), adversarial.pgd(trained, x, y, **options))


# ------------------------------------------------------------------------------------------------ left as found


class Stubborn(nn.Module):
    """Its train() does more than set flags, and must not be called."""

    def train(self, mode: bool = True) -> Stubborn:
        raise AssertionError("train() was called")

    def forward(self, x: Tensor) -> Tensor:
        return x


def user_model() -> nn.Module:
    """Modes of all kinds, gradients on some parameters, one frozen layer, BatchNorm with statistics."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), Stubborn(),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[0].bias.requires_grad_(False)
    model.training = False  # a mixed tree, root in eval mode
    return model


def snapshot(model: nn.Module) -> Any:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        [(name, module.training) for name, module in model.named_modules()],
        {name: (bits(t.detach()), t.requires_grad, t._version) for name, t in tensors.items()},
        {name: None if p.grad is None else bits(p.grad) for name, p in model.named_parameters()},
        bits(torch.get_rng_state()),
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("options", [{}, {"early_stop": True, "restarts": 2}, {"steps": 0}, {"norm": "l2"}])
@pytest.mark.parametrize("in_training", [False, True])
def test_the_model_is_left_as_it_was(images, options, in_training) -> None:
    x, y = images
    model = user_model()
    model.training = in_training
    before = snapshot(model)
    adversarial.pgd(model, x, y, **{"eps": 0.1, "steps": 3, **options})
    assert snapshot(model) == before


def test_every_submodule_is_in_eval_mode_during_the_attack(images) -> None:
    x, y = images
    model, seen = user_model(), []
    model[6].register_forward_hook(lambda *_: seen.append({m.training for m in model.modules()}))
    adversarial.pgd(model, x, y, eps=0.1, steps=2, restarts=2)
    assert seen == [{False}] * len(seen) != []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["forward", "progress", "backward"])
def test_errors_pass_and_leave_the_model_as_it_was(images, error, where) -> None:
    x, y = images
    model, calls = user_model(), []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise error("stop")

    handle = model[0].register_forward_hook(fail) if where == "forward" else None
    if where == "backward":
        handle = model[6].register_forward_hook(lambda _m, _i, out: out.register_hook(fail) and None)
    before = snapshot(model)
    with pytest.raises(error, match="stop"):
        adversarial.pgd(model, x, y, eps=0.1, steps=9, progress=fail if where == "progress" else None)
    assert len(calls) == 3
    assert snapshot(model) == before
    if handle is not None:
        handle.remove()


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(trained, images, around) -> None:
    x, y = images
    expected = adversarial.pgd(trained, x, y, eps=0.05, steps=3, seed=0, early_stop=True)
    with around():
        made_inside = x.clone(), y.clone()
        adv = adversarial.pgd(trained, *made_inside, eps=0.05, steps=3, seed=0, early_stop=True)
        assert not torch.is_grad_enabled()
    assert torch.equal(adv, expected)
    assert not adv.is_inference()
    asked = x.clone().requires_grad_(True)
    adv = adversarial.pgd(trained, asked, y, eps=0.05, steps=3, seed=0, early_stop=True)
    assert torch.equal(adv, expected)
    assert not adv.requires_grad
    assert asked.grad is None


def test_autocast_is_off_during_the_attack(trained, images) -> None:
    x, y = images
    expected = adversarial.pgd(trained, x, y, eps=0.05, steps=3, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(adversarial.pgd(trained, x, y, eps=0.05, steps=3, seed=0), expected)
        assert torch.is_autocast_enabled("cpu")


def test_logits_in_half_precision_are_taken(trained, images) -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return trained(x).bfloat16()

    x, y = images
    adv = adversarial.pgd(Half(), x, y, eps=0.1, steps=5, seed=0, restarts=2)
    assert accuracy(trained, adv, y) < 0.7


def test_layouts_and_label_types_do_not_matter(trained, images) -> None:
    x, y = images
    options: dict[str, Any] = {"eps": 0.05, "steps": 3, "seed": 0}
    expected = adversarial.pgd(trained, x, y, **options)
    wide = torch.zeros(200, 1, 8, 8)
    wide[::2] = x
    for other, labels in ((wide[::2], y.int()), (x.to(memory_format=torch.channels_last), y.to(torch.uint8))):
        adv = adversarial.pgd(trained, other, labels, **options)
        assert adv.is_contiguous()
        assert torch.equal(adv, expected)
    assert adversarial.pgd(trained, x[:0], y[:0], **options).shape == (0, 1, 8, 8)


def test_numpy_goes_in_and_comes_out(trained, images) -> None:
    x, y = images
    frozen = x.numpy().copy()
    frozen.flags.writeable = False
    adv = adversarial.pgd(trained, frozen, y.numpy(), eps=0.05, steps=3, seed=0)
    assert isinstance(adv, np.ndarray)
    assert bits(adv) == bits(adversarial.pgd(trained, x, y, eps=0.05, steps=3, seed=0))


def test_gradient_models_of_torch(trained, images) -> None:
    """The same attack through a function, on tensors."""
    x, y = images

    def gradient(adv: Tensor, y: Tensor) -> Tensor:
        leaf = adv.detach().requires_grad_(True)
        return torch.autograd.grad(nn.functional.cross_entropy(trained(leaf), y, reduction="sum"), leaf)[0]

    model = GradientModel(gradient, lambda x: trained(x).detach())
    for options in ({}, {"early_stop": True}):
        expected = adversarial.pgd(trained, x, y, eps=0.05, steps=5, seed=0, **options)
        assert agreement(adversarial.pgd(model, x, y, eps=0.05, steps=5, seed=0, **options), expected) >= 0.999


# ------------------------------------------------------------------------------------------------ private models


def private_weights(attack: Callable[[nn.Module, Tensor, Tensor], Any]) -> list[bytes]:
    """Weights after three private steps with fixed randomness; ``attack`` is called in the middle of each."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(32, 1, 8, 8, generator=generator), torch.arange(32) % 10
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Dropout(0.0), nn.Flatten(), nn.Linear(144, 10))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 10)
    model, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        source=noise.SeededSource(3),
    )
    for _, (images, labels) in zip(range(3), loader, strict=False):
        attack(model, images, labels)
        optimizer.zero_grad()
        attack(model, images, labels)
        loss = nn.functional.cross_entropy(model(images), labels)
        attack(model, images, labels)
        loss.backward()
        attack(model, images, labels)
        optimizer.step()
    assert model.training
    return [bits(p.detach()) for p in model.parameters()]


def test_private_models_can_be_attacked_while_they_train() -> None:
    adversaries = []

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> None:
        grads = [p.grad for p in model.parameters()]
        adversaries.append(adversarial.pgd(model, x, y, eps=0.2, steps=3, early_stop=True, restarts=2))
        assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))

    expected = private_weights(lambda *_: None)
    assert private_weights(attack) == expected
    assert len(adversaries) == 12


# ------------------------------------------------------------------------------------------------ wrong use


class Returns(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


X, Y = torch.full((4, 6), 0.5), torch.tensor([0, 1, 2, 0])
FINE = Returns(lambda z: z)
WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("a tuple", {"model": Returns(lambda z: (z, z))}, TypeError, "^model returned a tuple, expected one tensor"),
    ("a dict", {"model": Returns(lambda z: {"logits": z})}, TypeError, "^model returned a dict"),
    ("answers", {"model": Returns(lambda z: z.argmax(1))}, TypeError, "^model returned torch.int64, expected logits"),
    ("a loss", {"model": Returns(lambda z: z.sum())}, ValueError, r"^model returned shape \(\), expected logits \[4"),
    ("another batch", {"model": Returns(lambda z: z[:2])}, ValueError, r"^model returned shape \(2, 3\)"),
    ("maps", {"model": Returns(lambda z: z[:, :, None])}, ValueError, r"^model returned shape \(4, 3, 1\)"),
    ("one logit", {"model": Returns(lambda z: z[:, :1])}, ValueError, "^model returned logits of 1 classes"),
    ("two for dlr", {"model": Returns(lambda z: z[:, :2]), "loss": "dlr"}, ValueError, "at least 3 for loss 'dlr'"),
    ("detached", {"model": Returns(lambda z: z.detach())}, ValueError, "^model gave logits without a gradient"),
    (
        "meta logits",
        {"model": Returns(lambda z: z.to("meta"))},
        ValueError,
        "^model returned logits on the meta device",
    ),
    ("no input", {"model": Returns(lambda z: FINE.layer(torch.ones(4, 6)))}, ValueError, "do not depend on x"),
    ("meta model", {"model": nn.Linear(6, 3, device="meta")}, ValueError, "^x lives on cpu, model on meta"),
    ("half x", {"x": X.half()}, TypeError, "^x has dtype float16, expected .*attack in float32"),
    ("NaN x", {"x": X * torch.nan}, ValueError, "^x holds NaN"),
    ("x outside", {"x": X * 3}, ValueError, "^x has values from 1.5 to 1.5"),
    ("y float", {"y": Y.float()}, TypeError, "^y has dtype float32, expected integer labels"),
    ("y bool", {"y": Y > 0}, TypeError, "^y has dtype bool"),
    ("y one-hot", {"y": nn.functional.one_hot(Y)}, ValueError, r"^y has shape \(4, 3\)"),
    ("y short", {"y": Y[:3]}, ValueError, r"^y has shape \(3,\), expected 4 labels"),
    ("y too large", {"y": Y + 1}, ValueError, "^y holds label 3, expected 0 to 2"),
    ("y negative", {"y": Y - 100}, ValueError, "^y holds label -100"),
    ("targets of targets", {"targets": 2, "targeted": True}, ValueError, "^targets is set and targeted is True"),
    ("targets zero", {"targets": 0}, ValueError, "^targets is 0"),
    ("dlr of targets", {"loss": "dlr", "targets": 2}, ValueError, "3 classes, expected at least 4 for loss 'dlr'"),
    ("working_copy a number", {"working_copy": 1}, TypeError, "^working_copy is an int, expected a bool"),
    ("loss unknown", {"loss": "mse"}, ValueError, "^loss is 'mse'"),
]


@pytest.mark.parametrize(("what", "changes", "error", "message"), WRONG, ids=[w[0] for w in WRONG])
@pytest.mark.parametrize("early_stop", [False, True])
def test_wrong_arguments(what, changes, error, message, early_stop) -> None:
    options = {"model": FINE, "x": X, "y": Y, "eps": 0.1, "early_stop": early_stop, **changes}
    model = options["model"]
    before = None if "meta" in what else snapshot(model)
    with pytest.raises(error, match=message):
        adversarial.pgd(options.pop("model"), options.pop("x"), options.pop("y"), **options)
    assert before is None or snapshot(model) == before


@pytest.mark.parametrize(
    "options", [{}, {"early_stop": True}, {"restarts": 2, "loss": "margin", "targeted": True}, {"loss": "dlr"}]
)
@pytest.mark.parametrize("bad_step", [0, 4, 12])
def test_nan_logits_are_named(options, bad_step) -> None:
    calls: list[int] = []

    def spoil(logits: Tensor) -> Tensor:
        calls.append(1)
        return (
            logits * torch.tensor([[1.0], [torch.nan], [1.0], [1.0]])[: len(logits)]
            if len(calls) > bad_step
            else logits
        )

    model = Returns(spoil)
    y = model.layer(X).argmax(1)  # right answers, and a tiny ball: nobody leaves the batch
    with pytest.raises(ValueError, match=f"NaN or infinite logits for 1 of 4 samples after {bad_step} steps"):
        adversarial.pgd(model, X, y, eps=1e-6, steps=20, **options)


def test_gradients_that_overflow_are_named() -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0] * 1e-30 * 1e30, (x[:, 0] * 0).sqrt()], 1)

    with pytest.raises(ValueError, match="NaN or infinite gradient for 4 of 4 samples after 0 steps"):
        adversarial.pgd(Steep(), X, torch.zeros(4, dtype=torch.int64), eps=0.1, norm="l2")


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """Small models: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("early_stop", [False, True])
def test_a_module_that_works_in_place_changes_nothing(early_stop: bool) -> None:
    """It is given a copy: ball and box hold, and it is attacked as well as the same module written out of place."""

    class InPlace(nn.Module):
        def __init__(self, linear: nn.Linear, in_place: bool) -> None:
            super().__init__()
            self.linear, self.in_place = linear, in_place

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.in_place:
                return self.linear(nn.functional.relu(x))
            x.data.abs_()  # nothing for samples in [0, 1], yet a write
            return self.linear(nn.functional.relu_(x))

    linear, generator = nn.Linear(50, 3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(3, 50, generator=generator) / 7)
    x = torch.rand(200, 50, generator=generator)
    y = linear(x).argmax(1)
    settings = {"eps": 0.03, "seed": 0, "early_stop": early_stop}
    found = [adversarial.pgd(InPlace(linear, in_place), x, y, **settings) for in_place in (True, False)]
    assert (found[0].double() - x.double()).abs().max() <= 0.03
    assert torch.equal(found[0], found[1])
    assert (linear(found[0]).argmax(1) != y).any()


def test_modes_come_back_whatever_the_forward_pass_sets() -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.drop.train()
            return self.linear(x)

    model = Restless().eval()
    adversarial.pgd(model, torch.rand(5, 4), torch.zeros(5, dtype=torch.int64), eps=0.1, steps=2)
    assert not model.drop.training
