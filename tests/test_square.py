"""``adversarial.square``: the search of the paper written out, exact numbers of queries, and models of all kinds."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aisec_fast import adversarial, use_backend
from aisec_fast.adversarial import GradientModel, _square
from aisec_fast.adversarial._draws import generator
from tests.conftest import bits
from tests.test_apgd_l1 import nearest
from tests.test_pgd import assert_inside
from tests.test_pgd_torch import FINE, WRONG, Returns, X, Y, few_threads, snapshot, user_model

__all__ = ["few_threads"]  # a fixture: small tensors wait for threads longer than they compute


def never(*_: Any) -> Any:
    raise AssertionError("the gradient was called")


def classifier(weights: np.ndarray, seen: list[np.ndarray] | None = None) -> GradientModel:
    """Logits x W, of a model whose gradient must not be asked for."""

    def predict(x: np.ndarray) -> np.ndarray:
        if seen is not None:
            seen.append(x.copy())
        return np.tanh(x.reshape(len(x), -1) @ weights)

    return GradientModel(never, predict)


def case(
    shape: tuple[int, ...], count: int = 5, classes: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, weights = rng.random((count, *shape)), rng.standard_normal((math.prod(shape), classes)) / 10
    return x, (x.reshape(count, -1) @ weights).argmax(1), weights


# ------------------------------------------------------------------------------------------------ the algorithm


def margin(z: np.ndarray, y: int) -> float:
    return max(np.delete(z, y)) - z[y]


def long(values: np.ndarray, norm: str) -> float:
    return float(np.abs(values).sum() if norm == "l1" else np.sqrt((values**2).sum()))


def hills(height: int, width: int, norm: str = "l2") -> np.ndarray:
    """eta^(h1, h2) of the paper's section 4, with n = floor of half the larger side: value by value. L1: AutoAttack's."""
    out = np.zeros((height, width))
    n = max(height // 2, width // 2)
    for r in range(height):
        for s in range(width):
            distance = max(abs(r - height // 2), abs(s - width // 2))
            out[r, s] = sum((n + 1 - k) ** (-4.0 if norm == "l1" else -2.0) for k in range(n - distance + 1))
    return out / long(out, norm)


def random_search(
    x: np.ndarray, y: int, weights: np.ndarray, eps: float, norm: str, queries: int, seed: int, row: int
) -> np.ndarray:
    """Algorithms 1 to 3 for one image [c, h, h]; randomness is taken from where the library takes it. L1: as AutoAttack."""
    c, h, _ = x.shape
    power = {"linf": 0, "l2": 2, "l1": 1}[norm]

    def ask(point: np.ndarray) -> np.ndarray:
        return np.tanh(point.reshape(-1) @ weights)

    def bound(point: np.ndarray) -> np.ndarray:
        if norm == "l1":
            return nearest(torch.tensor(point), torch.tensor(x), eps).numpy()
        move = (
            np.clip(point - x, -eps, eps) if norm == "linf" else (point - x) * min(1, eps / np.linalg.norm(point - x))
        )
        return np.clip(x + move, 0, 1)

    def eta(s: int, draws: np.random.Generator) -> np.ndarray:
        flat = not draws.integers(2)
        both = np.concatenate([hills(s // 2, s, norm), -hills(s - s // 2, s, norm)])
        both /= long(both, norm)
        return both.T if flat else both

    first, draws = generator(seed, 0, row), generator(seed, 0)
    if norm == "linf":
        best = bound(x + 2 * eps * (2 * first.integers(2, size=(c, 1, h)) - 1))
    else:
        start, s = np.zeros_like(x), h // 5
        for i in range(5):
            for j in range(5):
                top, left = (h - 5 * s) // 2 + i * s, (h - 5 * s) // 2 + j * s
                signs = 2 * first.integers(2, size=(c, 1, 1)) - 1
                start[:, top : top + s, left : left + s] = signs * eta(s, first)
        best = bound(x + (start if norm == "l1" else eps * start / long(start, norm)))
    z = ask(best)
    for i in range(queries - 1):
        if z.argmax() != y:
            return best
        halvings = sum(i > k for k in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        side = round(math.sqrt(0.8 / 2**halvings * h * h))
        if norm == "linf":
            side = max(side, 1)
            top, left = draws.integers(h - side + 1), draws.integers(h - side + 1)
            new = best.copy()
            new[:, top : top + side, left : left + side] += 2 * eps * (2 * draws.integers(2, size=(1, c, 1, 1))[0] - 1)
        else:
            side = max(side, 3) + (max(side, 3) % 2 == 0)
            one = draws.integers(h - side + 1), draws.integers(h - side + 1)
            two = draws.integers(h - side + 1), draws.integers(h - side + 1)
            inside = [np.zeros((h, h), bool) for _ in range(2)]
            for mask, (top, left) in zip(inside, (one, two), strict=True):
                mask[top : top + side, left : left + side] = True
            change = best - x
            pattern, new = eta(side, draws), change.copy()
            signs = 2 * draws.integers(2, size=(1, c, 1, 1))[0] - 1
            unused = max(0.0, eps**power - long(change, norm) ** power)
            new[:, inside[1]] = 0
            for k in range(c):
                old = change[k][inside[0]]
                into = signs[k, 0, 0] * pattern.ravel() + old / max(long(old, norm), 1e-300)
                windows = long(change[k][inside[0] | inside[1]], norm) ** power
                available = (windows + unused / c) ** (1 / power) * (c if norm == "l1" else 1)
                new[k][inside[0]] = into / long(into, norm) * available
            new = x + (new if norm == "l1" else new / long(new, norm) * eps)
        new = bound(new)
        answer = ask(new)
        if margin(answer, y) > margin(z, y) or answer.argmax() != y:
            best, z = new, answer
    return best


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("l2", 0.4), ("l1", 2.0)])
def test_equal_to_the_search_of_the_paper(norm, eps) -> None:
    x, y, weights = case((2, 11, 11), count=6)
    adv = adversarial.square(classifier(weights), x, y, eps=eps, norm=norm, n_queries=120, seed=3)
    expected = [random_search(x[i], y[i], weights, eps, norm, 120, 3, i) for i in range(6)]
    assert np.allclose(adv, expected, rtol=0, atol=1e-6)
    fooled = (adv.reshape(6, -1) @ weights).argmax(1) != y
    assert 0 < fooled.sum() < 6


def test_patterns() -> None:
    for rows, columns in ((1, 1), (1, 2), (1, 7), (5, 5), (4, 9), (9, 1)):
        for seed in range(4):
            values = _square.pattern(rows, columns, np.random.default_rng(seed))
            assert values.shape == (rows, columns)
            assert np.linalg.norm(values) == pytest.approx(1)
            assert np.abs(_square.pattern(rows, columns, np.random.default_rng(seed), 1)).sum() == pytest.approx(1)
            assert rows * columns == 1 or abs(values.min() + values.max()) < 0.6
    for shape in ((1, 1), (3, 3), (2, 5), (5, 2), (6, 6)):
        assert np.allclose(_square._hill(*shape), hills(*shape))
        assert np.allclose(_square._hill(*shape, power=1), hills(*shape, "l1"))


def test_schedule() -> None:
    plan = _square.Plan()
    halved = [i for i in range(1, 5000) if plan.share(i) != plan.share(i - 1)]
    assert halved == [11, 51, 201, 501, 1001, 2001, 4001]
    assert plan.share(0) == 0.8
    assert plan.share(4999) == 0.8 / 128
    stretched = _square.Plan(n_queries=1000, rescale_schedule=True)
    assert stretched.share(999) == 0.8 / 512
    assert stretched.share(2) == 0.4
    assert stretched.share(1) == 0.8


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_as_strong_as_torchattacks(norm) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="pip install --no-deps torchattacks==3.5.1")
    x, y, weights = case((1, 8, 8), count=60, seed=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(weights.T))
    images, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    eps = {"linf": 0.16, "l2": 0.7}[norm]
    adv = adversarial.square(model, images, labels, eps=eps, norm=norm, n_queries=150, seed=0)
    attack = torchattacks.Square(
        model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, n_queries=150, seed=0, resc_schedule=False
    )
    ours, theirs = (int((model(points).argmax(1) != labels).sum()) for points in (adv, attack(images, labels)))
    assert ours >= theirs - 2
    assert 5 < ours < 55


# ------------------------------------------------------------------------------------------------ promises


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("queries", [1, 2, 30])
def test_queries_are_counted_exactly(norm, queries) -> None:
    x, y, weights = case((1, 8, 8), count=20)
    seen: list[np.ndarray] = []
    adversarial.square(classifier(weights, seen), x, y, eps=1e-9, norm=norm, n_queries=queries, seed=0)
    assert [len(batch) for batch in seen] == [20] * queries  # nobody is fooled
    seen.clear()
    adversarial.square(classifier(weights, seen), x, y, eps=1e-9, norm=norm, n_queries=queries, restarts=3, seed=0)
    assert [len(batch) for batch in seen] == [20] * queries * 3
    seen.clear()
    adv = adversarial.square(classifier(weights, seen), x, y, eps=0.06, norm="linf", n_queries=queries, seed=0)
    fooled = (adv.reshape(20, -1) @ weights).argmax(1) != y
    sizes = [len(batch) for batch in seen]
    assert sizes == sorted(sizes, reverse=True)
    assert len(seen) == queries or fooled.all()
    # A fooled sample is never asked about again: each batch lacks those that the one before it fooled.
    for before, after in pairwise(seen):
        hits = (before.reshape(len(before), -1) @ weights).argmax(1) != np.array(
            [y[np.abs(x - point).reshape(20, -1).max(1).argmin()] for point in before]
        )
        assert len(after) == len(before) - hits.sum()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    eps=st.sampled_from([1e-30, 1e-9, 8 / 255, 0.3, 3.0, 1e30, 1e300]),
    clip=st.sampled_from([(0.0, 1.0), None, (0.1, 0.7), (-math.inf, 2.1)]),
    dtype=st.sampled_from(["float32", "float64"]),
    norm=st.sampled_from(["linf", "l2", "l1"]),
    shape=st.sampled_from([(1, 5, 5), (2, 3, 9), (7,), (1,), (3, 1, 4), (2, 2, 3, 3), (12, 5)]),
    name=st.sampled_from(["native", "numba"]),
)
def test_every_query_lies_in_ball_and_box(seed, eps, clip, dtype, norm, shape, name) -> None:
    rng = np.random.default_rng(seed)
    low, high = (-2.0, 2.0) if clip is None else (max(clip[0], -2.0), min(clip[1], 2.0))
    x = (low + (high - low) * rng.random((3, *shape))).astype(dtype)
    if clip is not None:
        ball = _square.make_ball("linf", 1.0, clip, dtype)
        x = np.clip(x, ball.low, ball.high).astype(dtype)
    seen: list[np.ndarray] = []

    def predict(points: np.ndarray) -> np.ndarray:
        seen.append(points.copy())
        return np.stack([np.ones(len(points)), rng.random(len(points))], 1)  # nobody is fooled

    with use_backend(name):
        adv = adversarial.square(
            GradientModel(never, predict), x, np.zeros(3, int), eps=eps, norm=norm, clip=clip, n_queries=25, seed=seed
        )
    assert len(seen) == 25
    for points in [*seen, adv]:
        assert points.shape == x.shape
        assert_inside(points, x, eps, norm, clip)


def test_the_seed_decides_and_rows_do_not_matter_to_each_other() -> None:
    x, y, weights = case((1, 6, 6), count=30)
    for norm, eps in (("linf", 0.04), ("l2", 0.2), ("l1", 0.9)):
        options: dict[str, Any] = {"eps": eps, "norm": norm, "n_queries": 40, "restarts": 2}
        adv = adversarial.square(classifier(weights), x, y, seed=1, **options)
        assert bits(adv) == bits(adversarial.square(classifier(weights), x, y, seed=1, **options))
        assert bits(adv) != bits(adversarial.square(classifier(weights), x, y, seed=2, **options))
        assert bits(adv[:9]) == bits(adversarial.square(classifier(weights), x[:9], y[:9], seed=1, **options))
        assert 0 < ((adv.reshape(30, -1) @ weights).argmax(1) != y).sum() < 30


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_wanted_answers(norm) -> None:
    """With two classes the other one is wanted; with more its log-probability rises, for functions and modules alike."""
    options: dict[str, Any] = {
        "eps": {"linf": 0.05, "l2": 0.4, "l1": 2.0}[norm],
        "norm": norm,
        "n_queries": 40,
        "seed": 0,
    }
    x, y, weights = case((1, 6, 6), count=20, classes=2)
    aimed = adversarial.square(classifier(weights), x, 1 - y, targeted=True, **options)
    assert bits(aimed) == bits(adversarial.square(classifier(weights), x, y, **options))
    assert 0 < ((aimed.reshape(20, -1) @ weights).argmax(1) != y).sum() < 20
    x, y, weights = case((1, 6, 6), count=20)
    wanted = (y + 1) % 4
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4, bias=False), nn.Tanh()).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(weights.T))
    adv = adversarial.square(classifier(weights), x, wanted, targeted=True, **options)
    assert np.abs(adversarial.square(model, x, wanted, targeted=True, **options) - adv).max() < 1e-9

    def rise(points: np.ndarray) -> np.ndarray:
        z = torch.tanh(torch.tensor(points.reshape(20, -1) @ weights))
        return torch.log_softmax(z, 1).gather(1, torch.tensor(wanted)[:, None])[:, 0].numpy()

    assert (rise(adv) > rise(x)).mean() > 0.9
    assert 0 < ((adv.reshape(20, -1) @ weights).argmax(1) == wanted).sum() < 20


def test_the_margin_never_falls_and_restarts_keep_the_best() -> None:
    x, y, weights = case((1, 6, 6), count=30)
    heights = []
    for queries, restarts in ((5, 1), (20, 1), (60, 1), (60, 3)):
        adv = adversarial.square(classifier(weights), x, y, eps=0.02, n_queries=queries, restarts=restarts, seed=0)
        z = np.tanh(adv.reshape(30, -1) @ weights)
        heights.append(np.array([margin(row, label) for row, label in zip(z, y, strict=True)]))
    for lower, higher in pairwise(heights):
        assert (higher >= lower)[lower <= 0].all()
        assert (higher > lower).any()


def test_progress_and_empty_batches() -> None:
    x, y, weights = case((1, 6, 6), count=8)
    told: list[tuple[int, int, int | None]] = []
    adv = adversarial.square(
        classifier(weights), x, y, eps=0.04, n_queries=9, restarts=2, seed=0, progress=lambda *args: told.append(args)
    )
    assert [query for query, *_ in told] == sorted(query for query, *_ in told)
    assert told[-1] == (18, 18, int(((adv.reshape(8, -1) @ weights).argmax(1) != y).sum()))
    assert adversarial.square(classifier(weights), x[:0], y[:0], eps=0.1).shape == (0, 1, 6, 6)


# ------------------------------------------------------------------------------------------------ models of all kinds


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_modules_and_functions_give_the_same(norm) -> None:
    x, y, weights = case((2, 6, 6), count=20)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 4, bias=False), nn.Tanh()).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(weights.T))
    options: dict[str, Any] = {
        "eps": {"linf": 0.03, "l2": 0.2, "l1": 1.0}[norm],
        "norm": norm,
        "n_queries": 40,
        "seed": 0,
    }
    expected = adversarial.square(classifier(weights), x, y, **options)
    adv = adversarial.square(model, torch.tensor(x), torch.tensor(y), **options)
    assert np.abs(adv.numpy() - expected).max() < 1e-9
    assert bits(adversarial.square(model, x, y, **options)) == bits(adv)
    flat = adversarial.square(classifier(weights), x.reshape(20, 72), y, image_shape=(2, 6, 6), **options)
    assert bits(flat) == bits(expected)
    tensors = GradientModel(never, lambda points: torch.tanh(points.flatten(1) @ torch.tensor(weights)))
    assert (
        np.abs(adversarial.square(tensors, torch.tensor(x), torch.tensor(y), **options).numpy() - expected).max() < 1e-9
    )
    wide = torch.tensor(x).to(memory_format=torch.channels_last)
    assert bits(adversarial.square(model, wide, torch.tensor(y), **options)) == bits(adv)


def test_layouts_are_as_stated() -> None:
    assert _square.layout((7, 3, 32, 30), None) == (3, 32, 30)
    assert _square.layout((7, 2, 3, 32, 30), None) == (6, 32, 30)
    assert _square.layout((7, 32, 30), None) == (1, 32, 30)
    assert _square.layout((7, 32), None) == (1, 1, 32)
    assert _square.layout((7,), None) == (1, 1, 1)
    assert _square.layout((7, 3072), (3, 32, 32)) == (3, 32, 32)


def test_windows_reach_every_pixel_and_have_their_size() -> None:
    """The last row and column too, which an interval without its end would leave out."""
    moves = _square._Moves(None, None, (1, 7, 9))  # type: ignore[arg-type]
    for share, odd, sizes in (
        (0.8, False, {(7, 7)}),
        (0.01, False, {(1, 1)}),
        (0.01, True, {(3, 3)}),
        (0.2, True, {(5, 5)}),
    ):
        draws, found = np.random.default_rng(0), [np.zeros((7, 9), int), set()]
        for _ in range(600):
            _, _, rows, columns = moves.window(share, draws, odd=odd)
            found[0][rows, columns] += 1
            found[1].add((rows.stop - rows.start, columns.stop - columns.start))
        assert found[0].min() > 0
        assert found[1] == sizes
    moves.shape = (1, 1, 50)
    assert moves.window(0.2, np.random.default_rng(0), odd=False)[3].indices(50)[1] <= 50
    rows, columns = moves.window(0.2, np.random.default_rng(0), odd=False)[2:]
    assert (rows.stop - rows.start, columns.stop - columns.start) == (1, 10)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_model_is_left_as_it_was(norm) -> None:
    model = user_model()
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = snapshot(model)
    seen: list[set[bool]] = []
    model[6].register_forward_hook(lambda *_: seen.append({m.training for m in model.modules()}))
    adversarial.square(model, x, torch.arange(4), eps=0.1, norm=norm, n_queries=3, seed=0)
    assert snapshot(model) == before
    assert seen == [{False}] * len(seen) != []


# ------------------------------------------------------------------------------------------------ wrong use

MODELS = [
    case
    for case in WRONG
    if set(case[1]) <= {"model", "x", "y"}
    and case[0] not in ("meta logits", "detached", "no input")  # needs no gradient
]


@pytest.mark.parametrize(("what", "changes", "error", "message"), MODELS, ids=[case[0] for case in MODELS])
def test_wrong_models_and_samples(what, changes, error, message) -> None:
    options = {"model": FINE, "x": X, "y": Y, "eps": 0.1, "n_queries": 3, **changes}
    with pytest.raises(error, match=message):
        adversarial.square(options.pop("model"), options.pop("x"), options.pop("y"), **options)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"eps": -1}, ValueError, "^eps is -1.0, expected a number above 0"),
    ({"norm": "l7"}, ValueError, "^norm is 'l7'"),
    ({"n_queries": 0}, ValueError, "^n_queries is 0, expected at least 1"),
    ({"targeted": 0}, TypeError, "^targeted is an int"),
    ({"y": torch.full((4,), 9), "targeted": True}, ValueError, "^y holds label"),
    ({"restarts": 0}, ValueError, "^restarts is 0"),
    ({"p_init": 1.0}, ValueError, "^p_init is 1.0"),
    ({"rescale_schedule": 1}, TypeError, "^rescale_schedule is an int"),
    ({"image_shape": 6}, TypeError, "^image_shape is 6, expected"),
    (
        {"image_shape": (1, 2, 4)},
        ValueError,
        r"^image_shape is \(1, 2, 4\), 8 values, but a sample of x has shape \(6,\)",
    ),
    ({"seed": 1.5}, TypeError, "^seed is a float"),
    ({"model": GradientModel(never)}, ValueError, "^model is a GradientModel without predict"),
    ({"model": GradientModel(never, lambda x: x[:, :1])}, ValueError, r"^predict\(x\) returned shape"),
    ({"model": len}, TypeError, "^model is a builtin"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_wrong_arguments(changes, error, message) -> None:
    options = {"model": FINE, "x": X, "y": Y, "eps": 0.1, "n_queries": 3, **changes}
    with pytest.raises(error, match=message):
        adversarial.square(options.pop("model"), options.pop("x"), options.pop("y"), **options)


def test_nan_logits_are_named() -> None:
    calls: list[int] = []

    def spoil(logits: Tensor) -> Tensor:
        calls.append(1)
        return logits * torch.tensor([[1.0], [torch.nan], [1.0], [1.0]]) if len(calls) > 5 else logits

    model = Returns(spoil)
    with pytest.raises(ValueError, match="NaN or infinite logits for 1 of 4 samples after 5 steps"):
        adversarial.square(model, X, model.layer(X).argmax(1), eps=1e-6)
