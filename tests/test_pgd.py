"""``adversarial.pgd`` on gradient functions, its starts, restarts, promises, and ``pgd_step``. Torch modules: test_pgd_torch.py."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aisec_fast import adversarial, use_backend
from aisec_fast._reference import adversarial as reference
from aisec_fast.adversarial import GradientModel, _rows
from aisec_fast.adversarial._ball import make_ball
from aisec_fast.adversarial._start import RandomStarts
from tests.conftest import bits

DTYPES = ["float32", "float64"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def assert_inside(adv: Any, x: Any, eps: float, norm: str, clip: tuple[float, float] | None) -> None:
    """The promise: ball in float64, box exactly, and the same kind of array."""
    assert type(adv) is type(x)
    assert adv.dtype == x.dtype
    assert adv.shape == x.shape
    adv, x = np.asarray(adv), np.asarray(x)
    distance = (adv.astype(np.float64) - x.astype(np.float64)).reshape(len(x), -1)
    if norm == "linf":
        assert np.abs(distance).max() <= eps
    elif norm == "l1":
        assert np.abs(distance).sum(1).max() <= eps
        assert max(math.fsum(abs(row)) for row in distance) <= eps
    else:
        assert np.sqrt((distance * distance).sum(1)).max() <= eps
        assert max(math.sqrt(math.fsum(row * row)) for row in distance) <= eps
    if clip is not None:
        assert clip[0] <= float(adv.min())
        assert float(adv.max()) <= clip[1]


def linear(weights: np.ndarray) -> GradientModel:
    """The loss w . x, whose gradient is w everywhere."""
    return GradientModel(lambda x, y: np.broadcast_to(weights.astype(x.dtype), x.shape))


def classifier(weights: np.ndarray) -> GradientModel:
    """Logits x W [D, classes]; the loss is max_{j != y} z_j - z_y."""

    def predict(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1) @ weights

    def gradient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        logits = predict(x)
        logits[np.arange(len(x)), y] = -np.inf
        rows = weights.T[logits.argmax(1)] - weights.T[y]
        return rows.reshape(x.shape).astype(x.dtype)

    return GradientModel(gradient, predict)


# ------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("targeted", [False, True])
def test_linf_finds_the_optimum_of_a_linear_loss(backend, dtype, targeted, rng) -> None:
    x, w = rng.random((6, 3, 5)).astype(dtype), rng.standard_normal((3, 5))
    adv = adversarial.pgd(linear(w), x, np.zeros(6), eps=0.1, steps=10, targeted=targeted, seed=1)
    assert_inside(adv, x, 0.1, "linf", (0, 1))
    optimum = np.clip(x.astype("f8") + 0.1 * np.sign(-w if targeted else w), 0, 1)
    assert np.abs(adv - optimum).max() <= np.finfo(dtype).eps  # one rounding, toward x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("targeted", [False, True])
def test_l2_finds_the_optimum_of_a_linear_loss(backend, dtype, targeted, rng) -> None:
    x, w = rng.standard_normal((6, 3, 5)).astype(dtype), rng.standard_normal((3, 5))
    adv = adversarial.pgd(
        linear(w), x, np.zeros(6), eps=0.5, steps=60, norm="L2", targeted=targeted, clip=None, random_start=False
    )
    assert_inside(adv, x, 0.5, "l2", None)
    optimum = x.astype("f8") + 0.5 * (-w if targeted else w) / np.linalg.norm(w)
    # The projection shrinks by less than 2^-29; every step rounds once, toward x, values below 4.
    assert np.abs(adv - optimum).max() <= 0.5 * 2**-29 + 60 * 2 * np.finfo(dtype).eps


def test_steps_have_the_length_asked_for(backend) -> None:
    x, w = np.full((2, 4), 0.5), np.array([3.0, -4.0, 0.0, 0.0])
    kept = {"eps": 1.0, "random_start": False, "clip": None}
    far = adversarial.pgd(linear(w), x, x, steps=3, step_size=0.0625, **kept)
    assert np.array_equal(far, x + 3 * 0.0625 * np.sign(w))
    far = adversarial.pgd(linear(w), x, x, steps=3, step_size=0.0625, norm="l2", **kept)
    assert np.allclose(far, x + 3 * 0.0625 * w / 5, rtol=0, atol=1e-15)
    assert np.array_equal(
        adversarial.pgd(linear(w), x, x, steps=5, **kept),
        adversarial.pgd(linear(w), x, x, steps=5, step_size=0.5, **kept),
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_classifier_is_fooled_exactly_where_it_can_be(norm, rng) -> None:
    """Two classes: the margin moves by at most eps * |w_0 - w_1| in the dual norm."""
    x, weights = rng.standard_normal((200, 16)), rng.standard_normal((16, 2))
    y = (x @ weights).argmax(1)
    margin = np.abs((x @ weights) @ [1, -1])
    dual = np.linalg.norm(weights @ [1, -1], 1 if norm == "linf" else 2)
    eps = float(np.median(margin) / dual)
    adv = adversarial.pgd(classifier(weights), x, y, eps=eps, norm=norm, clip=None, steps=20, random_start=False)
    clear = np.abs(margin - eps * dual) > 1e-6
    assert np.array_equal(((adv @ weights).argmax(1) != y)[clear], (margin < eps * dual)[clear])


# ------------------------------------------------------------------------------------------------ ball and box


@given(
    seed=st.integers(0, 2**32),
    eps=st.sampled_from([1e-30, 1e-9, 1e-3, 8 / 255, 0.1, 0.7, 3.0, 1e6, 1e30, 1e300]),
    clip=st.sampled_from([(0.0, 1.0), None, (0.1, 0.7), (-1 / 3, 1e-3), (-1e300, 0.3), (-math.inf, 2.1)]),
    dtype=st.sampled_from(DTYPES),
    norm=st.sampled_from(["linf", "l2"]),
    steps=st.integers(0, 4),
    factor=st.sampled_from([None, 1e-3, 1.0, 7.0]),
    random_start=st.booleans(),
    name=st.sampled_from(["native", "numba"]),
)
def test_every_iterate_stays_in_ball_and_box(seed, eps, clip, dtype, norm, steps, factor, random_start, name) -> None:
    rng = np.random.default_rng(seed)
    low, high = (-5.0, 5.0) if clip is None else (max(clip[0], -2.0), min(clip[1], 2.0))
    x = (low + (high - low) * rng.random((3, 4, 7))).astype(dtype)
    x[rng.random(x.shape) < 0.2] = low  # much of an image lies on the box's faces
    x = np.clip(x, *np.array(_box(clip, dtype), dtype))
    seen = []

    def gradient(adv: np.ndarray, y: np.ndarray) -> np.ndarray:
        seen.append(adv.copy())
        return (rng.standard_normal(adv.shape) * (rng.random(adv.shape) < 0.8)).astype(dtype)

    with use_backend(name):
        adv = adversarial.pgd(
            GradientModel(gradient),
            x,
            np.zeros(3),
            eps=eps,
            norm=norm,
            clip=clip,
            steps=steps,
            step_size=None if factor is None else factor * eps,
            random_start=random_start,
            seed=seed,
        )
    assert len(seen) == steps
    for iterate in [*seen, adv]:
        assert_inside(iterate, x, eps, norm, clip)


def _box(clip: tuple[float, float] | None, dtype: str) -> tuple[float, float]:
    ball = make_ball("linf", 1.0, clip, dtype)
    return ball.low, ball.high


def test_bounds_are_rounded_inward() -> None:
    for clip in [(0.1, 0.7), (0.7, 1.1), (-0.1, 0.1), (0.25, 0.5)]:
        low, high = _box(clip, "float32")
        assert np.float32(low) == low >= clip[0]
        assert float(np.nextafter(np.float32(low), np.float32(-np.inf))) < clip[0]
        assert np.float32(high) == high <= clip[1]
        assert float(np.nextafter(np.float32(high), np.float32(np.inf))) > clip[1]
        assert _box(clip, "float64") == clip
    assert _box((-1e300, 1e300), "float32") == (-np.finfo("f4").max, np.finfo("f4").max)
    assert _box(None, "float32") == (-math.inf, math.inf)


def test_x_is_left_alone_and_the_result_is_new(backend, rng) -> None:
    x = rng.random((4, 5))
    before = x.copy()
    x.flags.writeable = False
    for steps in (0, 3):
        adv = adversarial.pgd(linear(np.ones(5)), x, np.zeros(4), eps=0.1, steps=steps, random_start=False)
        assert np.array_equal(x, before)
        assert not np.shares_memory(adv, x)
        assert adv.flags.writeable
        assert np.array_equal(adv, x) == (steps == 0)


def test_a_gradient_function_cannot_write_to_the_iterate() -> None:
    def gradient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x += 1
        return x

    with pytest.raises(ValueError, match="read-only"):
        adversarial.pgd(GradientModel(gradient), np.zeros((2, 2)), np.zeros(2), eps=0.1)


@pytest.mark.parametrize("shape", [(0, 3, 4), (0,), (3, 0)])
def test_empty_batches(backend, shape) -> None:
    x = np.empty(shape, np.float32)
    adv = adversarial.pgd(linear(np.ones(1)), x, np.zeros(shape[0]), eps=0.1)
    assert adv is not x
    assert adv.shape == shape
    assert adv.dtype == np.float32


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_layouts_do_not_matter(backend, norm, rng) -> None:
    wide = rng.random((12, 10)).astype("f4")
    w = rng.standard_normal(5)
    expected = adversarial.pgd(linear(w), np.ascontiguousarray(wide[::2, ::2]), np.zeros(6), eps=0.1, norm=norm, seed=1)
    assert bits(adversarial.pgd(linear(w), wide[::2, ::2], np.zeros(6), eps=0.1, norm=norm, seed=1)) == bits(expected)
    columns = np.asfortranarray(wide[::2, ::2])
    adv = adversarial.pgd(linear(w), columns, np.zeros(6), eps=0.1, norm=norm, seed=1)
    assert bits(adv) == bits(expected)
    assert adv.flags.c_contiguous
    tensor = GradientModel(lambda x, y: torch.tensor(w, dtype=x.dtype).expand(x.shape))
    adv = adversarial.pgd(tensor, torch.from_numpy(wide[::2, ::2]), torch.zeros(6), eps=0.1, norm=norm, seed=1)
    assert isinstance(adv, torch.Tensor)
    assert bits(adv) == bits(expected)


def test_backends_agree_to_the_bit(rng) -> None:
    x, weights = rng.random((9, 70)).astype("f4"), rng.standard_normal((70, 3)).astype("f4")
    y = (x @ weights).argmax(1)
    for norm in ("linf", "l2"):
        results = []
        for name in ("native", "numba"):
            with use_backend(name):
                results.append(adversarial.pgd(classifier(weights), x, y, eps=0.05, norm=norm, seed=3, steps=7))
        assert bits(results[0]) == bits(results[1])


# ------------------------------------------------------------------------------------------------ random starts


def start(x: Any, **options: Any) -> Any:
    return adversarial.pgd(linear(np.ones(1)), x, np.zeros(len(x)), steps=0, **options)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_seed_decides_the_start(backend, norm, dtype, rng) -> None:
    x = rng.random((20, 8)).astype(dtype)
    one = start(x, eps=0.2, norm=norm, seed=5)
    assert bits(one) == bits(start(x, eps=0.2, norm=norm, seed=5))
    assert bits(one) != bits(start(x, eps=0.2, norm=norm, seed=6))
    assert bits(one[:7]) == bits(start(x[:7], eps=0.2, norm=norm, seed=5))  # not the batch size
    tensor = adversarial.pgd(
        GradientModel(lambda x, y: x), torch.from_numpy(x), torch.zeros(20), eps=0.2, norm=norm, seed=5, steps=0
    )
    assert bits(tensor) == bits(one)
    assert bits(start(x, eps=0.2, norm=norm)) != bits(start(x, eps=0.2, norm=norm))
    assert len({bits(row) for row in one - x}) == 20


def test_chunks_of_rows_do_not_change_the_start(monkeypatch) -> None:
    x = np.full((10, 6), 0.5)
    for norm in ("linf", "l2"):
        whole = start(x, eps=0.2, norm=norm, seed=1)
        for values in (1, 7, 18):
            monkeypatch.setattr("aisec_fast.adversarial._start._VALUES_AT_A_TIME", values)
            assert bits(start(x, eps=0.2, norm=norm, seed=1)) == bits(whole)
        monkeypatch.undo()


def test_starts_are_uniform_in_the_ball() -> None:
    """Fixed seed: the tests pass or fail for good. Over seeds each of the four would fail one time in a thousand."""
    size, eps = 3, 0.25
    x = np.full((4000, size), 0.5)
    offsets = start(x, eps=eps, seed=0) - x
    assert stats.kstest(offsets.ravel(), stats.uniform(-eps, 2 * eps).cdf).pvalue > 1e-3
    offsets = start(x, eps=eps, norm="l2", seed=0) - x
    radii = np.linalg.norm(offsets, axis=1)
    assert stats.kstest((radii / eps) ** size, "uniform").pvalue > 1e-3
    # In three dimensions every coordinate of a uniform direction is uniform (Archimedes).
    assert stats.kstest(offsets[:, 0] / radii, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    assert stats.kstest(offsets[:, 2] / radii, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_global_generators_are_left_alone() -> None:
    numpy_state, torch_state = str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002 - it must not move
    start(np.full((3, 4), 0.5), eps=0.1)
    start(np.full((3, 4), 0.5), eps=0.1, seed=1)
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


# ------------------------------------------------------------------------------------------------ early stop and restarts


def keep_first(model: GradientModel, x: np.ndarray, y: np.ndarray, begin: np.ndarray, eps: float, steps: int) -> Any:
    """The first iterate that fools the model, else the last one: full batch, plain numpy, step 2.5 eps / steps."""
    assert model.predict is not None
    adv, result, fooled = begin.copy(), begin.copy(), np.zeros(len(x), bool)
    for k in range(steps + 1):
        hit = (model.predict(adv).argmax(1) != y) & ~fooled
        result[hit] = adv[hit]
        fooled |= hit
        if k < steps:
            reference.linf_step(adv, x, model.gradient(adv, y), 2.5 * eps / steps, eps, 0.0, 1.0, adv)
    result[~fooled] = adv[~fooled]
    return result, fooled


@pytest.mark.parametrize("eps", [0.01, 0.05, 0.3, 1.0])
def test_early_stop_keeps_the_first_iterate_that_fools(backend, eps, rng) -> None:
    x, weights = rng.random((64, 12)), rng.standard_normal((12, 4))
    y = np.where(rng.random(64) < 0.9, (x @ weights).argmax(1), 0)  # some are fooled from the start
    model = classifier(weights)
    begin = start(x, eps=eps, seed=2)
    expected, fooled = keep_first(model, x, y, begin, eps, 9)
    counts = []
    adv = adversarial.pgd(
        model, x, y, eps=eps, steps=9, seed=2, early_stop=True, progress=lambda step, total, n: counts.append((step, n))
    )
    assert bits(adv) == bits(expected)
    assert counts[-1] == (9, np.count_nonzero(fooled))
    assert [n for _, n in counts] == sorted(n for _, n in counts)
    last = adversarial.pgd(model, x, y, eps=eps, steps=9, seed=2)
    assert not np.any((last @ weights).argmax(1)[~fooled] != y[~fooled])


def test_fooled_samples_leave_the_batch(rng) -> None:
    x, weights = rng.random((64, 12)), rng.standard_normal((12, 4))
    sizes, model = [], classifier(weights)

    def gradient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return model.gradient(x, y)

    adversarial.pgd(
        GradientModel(gradient, model.predict), x, (x @ weights).argmax(1), eps=0.3, steps=30, seed=1, early_stop=True
    )
    assert sizes[0] == 64
    assert sizes[-1] < 32
    assert sizes == sorted(sizes, reverse=True)


def test_restarts_take_the_highest_loss_where_nothing_fools(backend, rng) -> None:
    """With no steps a run's result is its start, so the best of them can be picked by hand."""
    x, weights = rng.random((30, 12)).astype("f4"), rng.standard_normal((12, 4))
    y, eps, restarts = (x @ weights).argmax(1), 0.2, 6
    starts = RandomStarts(9, restarts)
    ball = make_ball("linf", eps, (0.0, 1.0), "float32")
    results = []
    for restart in range(restarts):
        adv = x + starts.drawn(restart, ball, x.shape, "float32", np.arange(30)).values
        reference.linf_step(adv, x, x, 0.0, eps, 0.0, 1.0, adv)
        results.append(adv)
    logits = np.stack(results).astype("f8") @ weights  # [restarts, B, classes]
    label = np.arange(4) == y[:, None]
    margins = np.where(label, -np.inf, logits).max(2) - np.where(label, logits, 0).sum(2)
    first_fooled = np.where((margins > 0).any(0), (margins > 0).argmax(0), margins.argmax(0))
    assert len(set(first_fooled.tolist())) == restarts
    expected = np.stack(results)[first_fooled, np.arange(30)]
    adv = adversarial.pgd(classifier(weights), x, y, eps=eps, steps=0, restarts=restarts, seed=9)
    assert bits(adv) == bits(expected)


def test_more_restarts_only_help(rng) -> None:
    x, weights = rng.random((40, 12)), rng.standard_normal((12, 4))
    y = (x @ weights).argmax(1)
    fooled = []
    for restarts in (1, 2, 5, 20):
        adv = adversarial.pgd(classifier(weights), x, y, eps=0.1, steps=1, step_size=0.02, restarts=restarts, seed=1)
        assert_inside(adv, x, 0.1, "linf", (0, 1))
        fooled.append((adv @ weights).argmax(1) != y)
    for fewer, more in itertools.pairwise(fooled):
        assert not np.any(fewer & ~more)
    assert fooled[0].sum() < fooled[-1].sum()


def test_targets_are_reached(rng) -> None:
    x, weights = rng.random((40, 12)), rng.standard_normal((12, 4))
    targets = (x @ weights).argsort(1)[:, -2]  # the runner-up
    for options in ({}, {"early_stop": True}, {"restarts": 2}, {"norm": "l2", "eps": 2.0}):
        settings: dict[str, Any] = {"eps": 0.6, "steps": 20, "seed": 1, **options}
        adv = adversarial.pgd(classifier(weights), x, targets, targeted=True, **settings)
        assert np.mean((adv @ weights).argmax(1) == targets) == 1


# ------------------------------------------------------------------------------------------------ progress


def test_progress_is_told_of_every_step() -> None:
    x, told = np.full((3, 4), 0.5), []
    adversarial.pgd(linear(np.ones(4)), x, np.zeros(3), eps=0.1, steps=4, progress=lambda *news: told.append(news))
    assert told[:4] == [(k, 4, None) for k in range(1, 5)]
    assert told[-1] == (4, 4, None)


def test_progress_over_restarts_reaches_its_end(rng) -> None:
    x, weights = rng.random((20, 12)), rng.standard_normal((12, 4))
    y, told = (x @ weights).argmax(1), []
    adversarial.pgd(
        classifier(weights), x, y, eps=0.9, steps=5, restarts=4, seed=1, progress=lambda *news: told.append(news)
    )
    assert [step for step, _, _ in told] == sorted(step for step, _, _ in told)
    assert told[-1] == (20, 20, 20)


def test_the_bar_goes_to_standard_error(capsys) -> None:
    adversarial.pgd(linear(np.ones(4)), np.full((3, 4), 0.5), np.zeros(3), eps=0.1, steps=4, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "PGD" in captured.err
    assert "4/4" in captured.err


def test_the_bar_needs_rich(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ModuleNotFoundError, match="progress=True needs rich"):
        start(np.zeros((1, 1)), eps=0.1, progress=True)


# ------------------------------------------------------------------------------------------------ wrong use

X = np.full((4, 6), 0.5, np.float32)
Y = np.array([0, 1, 2, 0])
MODEL = classifier(np.linspace(-1, 1, 18).reshape(6, 3))
WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("eps zero", {"eps": 0}, ValueError, "^eps is 0"),
    ("eps negative", {"eps": -0.1}, ValueError, "^eps is -0.1"),
    ("eps NaN", {"eps": math.nan}, ValueError, "^eps is nan"),
    ("eps infinite", {"eps": math.inf}, ValueError, "^eps is inf"),
    ("eps text", {"eps": "8/255"}, TypeError, "^eps is a str"),
    ("eps of nothing", {"eps": []}, ValueError, r"^eps is \[\], expected a number or a sequence"),
    ("eps of two axes", {"eps": [[0.1]]}, ValueError, r"^eps is \[\[0.1\]\], expected a number or a sequence"),
    ("one eps negative", {"eps": [0.1, -0.1]}, ValueError, "^eps is -0.1"),
    ("step_size zero", {"step_size": 0.0}, ValueError, "^step_size is 0"),
    ("step_size negative", {"step_size": -1.0}, ValueError, "^step_size is -1"),
    ("steps negative", {"steps": -1}, ValueError, "^steps is -1"),
    ("steps float", {"steps": 1.5}, TypeError, "^steps is a float"),
    ("norm unknown", {"norm": "l3"}, ValueError, "^norm is 'l3', expected one of 'linf', 'l2', 'l1', 'l0'"),
    ("norm a number", {"norm": math.inf}, ValueError, "^norm is inf, expected one of 'linf'"),
    ("restarts zero", {"restarts": 0}, ValueError, "^restarts is 0"),
    ("restarts of one start", {"restarts": 2, "random_start": False}, ValueError, "^restarts is 2, but random_start"),
    ("clip a number", {"clip": 1.0}, TypeError, "^clip is 1.0, expected a pair"),
    ("clip of three", {"clip": (0, 1, 2)}, TypeError, "^clip is .*expected a pair"),
    ("clip of text", {"clip": ("0", "1")}, TypeError, "^clip is .*real numbers"),
    ("clip upside down", {"clip": (1.0, 0.0)}, ValueError, "^clip is .*low < high"),
    ("clip NaN", {"clip": (0.0, math.nan)}, ValueError, "^clip is .*low < high"),
    ("clip between two values", {"clip": (0.1, 0.1 + 1e-12)}, ValueError, "^clip is .*holds no float32 value"),
    ("clip beyond the dtype", {"clip": (1e300, 1e301)}, ValueError, "^clip is .*holds no float32 value"),
    ("x outside clip", {"clip": (0.0, 0.25)}, ValueError, "^x has values from 0.5 to 0.5, expected .*clip"),
    ("x NaN", {"x": np.where(X > 1, X, np.nan)}, ValueError, "^x holds NaN or infinite"),
    ("x infinite", {"x": X * np.inf, "clip": None}, ValueError, "^x holds NaN or infinite"),
    ("x integers", {"x": X.astype(np.uint8)}, TypeError, "^x has dtype uint8, expected .*x / 255"),
    ("x half", {"x": X.astype(np.float16)}, TypeError, "^x has dtype float16, expected .*attack in float32"),
    ("x bfloat16", {"x": torch.zeros(4, 6, dtype=torch.bfloat16)}, TypeError, "bfloat16.*attack in float32"),
    ("x a list", {"x": [[0.5]]}, TypeError, "^x is a list"),
    ("x a number", {"x": np.array(0.5)}, ValueError, "^x has no dimensions"),
    ("one sample", {"x": X[0], "y": np.array(0)}, ValueError, r"^y has no dimensions.* x\[None\] and y\[None\]"),
    ("y too long", {"y": np.zeros(5, int)}, ValueError, r"^y has shape \(5,\), expected 4 labels"),
    ("y a list", {"y": [0, 1, 2, 0]}, TypeError, "^y is a list"),
    ("y no labels", {"y": np.zeros((4, 3), int), "early_stop": True}, ValueError, r"^y has shape \(4, 3\)"),
    ("y floats", {"y": np.zeros(4), "early_stop": True}, TypeError, "^y has dtype float64, expected integer"),
    ("y too large", {"y": np.array([0, 1, 2, 3]), "early_stop": True}, ValueError, "^y holds labels from 0 to 3"),
    ("y negative", {"y": np.array([0, 1, 2, -1]), "restarts": 2}, ValueError, "^y holds labels from -1 to 2"),
    ("y elsewhere", {"y": torch.zeros(4, device="meta")}, ValueError, "^y lives on meta"),
    ("loss unknown", {"loss": "hinge"}, ValueError, "^loss is 'hinge', expected one of 'ce', 'margin', 'dlr'"),
    ("targets of a function", {"targets": 2}, ValueError, "^targets is set, but model is a GradientModel"),
    ("loss of a function", {"loss": "dlr"}, ValueError, "^loss is 'dlr', but model is a GradientModel"),
    ("seed negative", {"seed": -1}, ValueError, "^seed is -1"),
    ("targeted text", {"targeted": "no"}, TypeError, "^targeted is a str, expected a bool"),
    ("early_stop a number", {"early_stop": 1}, TypeError, "^early_stop is an int, expected a bool"),
    ("random_start text", {"random_start": "no"}, TypeError, "^random_start is a str, expected a bool"),
    ("seed float", {"seed": 1.0}, TypeError, "^seed is a float"),
    ("progress a number", {"progress": 3}, TypeError, "^progress is an int"),
    ("model a function", {"model": lambda x: x}, TypeError, "^model is a function, expected a torch.nn.Module"),
    ("no predict", {"model": linear(np.ones(6)), "early_stop": True}, ValueError, "GradientModel without predict"),
]


@pytest.mark.parametrize(("what", "changes", "error", "message"), WRONG, ids=[w[0] for w in WRONG])
def test_wrong_arguments(backend, what, changes, error, message) -> None:
    before = X.copy()
    options = {"model": MODEL, "x": X, "y": Y, "eps": 0.1, "steps": 2, **changes}
    with pytest.raises(error, match=message):
        adversarial.pgd(options.pop("model"), options.pop("x"), options.pop("y"), **options)
    assert np.array_equal(X, before)


FUNCTIONS: list[tuple[str, Any, Any, type[Exception], str]] = [
    ("gradient a list", lambda x, y: [1.0], None, TypeError, r"^the result of gradient\(x, y\) is a list"),
    ("gradient float64", lambda x, y: np.ones(x.shape), None, TypeError, "float64 on cpu, expected numpy, float32"),
    ("gradient of torch", lambda x, y: torch.ones(4, 6), None, TypeError, "a torch array"),
    ("gradient a sum", lambda x, y: x.sum(0), None, ValueError, r"shape \(6,\), expected \(4, 6\)"),
    (
        "logits flat",
        None,
        lambda x: x[:, 0],
        ValueError,
        r"predict\(x\) returned shape \(4,\), expected logits \[4, cl",
    ),
    ("one logit", None, lambda x: x[:, :1], ValueError, r"returned shape \(4, 1\).*2 or more classes"),
    ("logits of others", None, lambda x: x[:2], ValueError, r"returned shape \(2, 6\)"),
    ("labels", None, lambda x: 3, TypeError, r"the result of predict\(x\) is an int"),
]


@pytest.mark.parametrize(("what", "gradient", "predict", "error", "message"), FUNCTIONS, ids=[f[0] for f in FUNCTIONS])
def test_wrong_functions(what, gradient, predict, error, message) -> None:
    model = GradientModel(gradient or MODEL.gradient, predict or MODEL.predict)
    with pytest.raises(error, match=message):
        adversarial.pgd(model, X, Y, eps=0.1, early_stop=predict is not None)


def test_a_gradient_model_takes_functions() -> None:
    with pytest.raises(TypeError, match=r"^gradient is a NoneType, expected a function"):
        GradientModel(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^predict is an int"):
        GradientModel(MODEL.gradient, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bad_step", [0, 5, 19])
def test_broken_gradients_are_named(value, bad_step) -> None:
    calls = []

    def gradient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        result = np.ones(x.shape, x.dtype)
        if len(calls) == bad_step:
            result[1:3, 2] = value
        calls.append(1)
        return result

    with pytest.raises(ValueError, match=f"NaN or infinite gradient for 2 of 4 samples after {bad_step} steps"):
        adversarial.pgd(GradientModel(gradient), X, Y, eps=0.1, steps=20)
    assert len(calls) <= bad_step + 8  # it does not go on for long


@pytest.mark.parametrize("options", [{"early_stop": True}, {"restarts": 2}])
def test_broken_logits_are_named(options) -> None:
    def predict(x: np.ndarray) -> np.ndarray:
        logits = np.array(MODEL.predict(x))  # type: ignore[misc]
        logits[0, 2] = np.nan
        return logits

    with pytest.raises(ValueError, match="NaN or infinite logits for 1 of 4 samples after"):
        adversarial.pgd(GradientModel(MODEL.gradient, predict), X, Y, eps=0.1, **options)


# ------------------------------------------------------------------------------------------------ one step


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step_size", [0.03, -0.2, 0.0])
def test_one_step_is_the_contracts(backend, norm, dtype, step_size, rng) -> None:
    x, adv = rng.random((5, 3, 7)).astype(dtype), rng.random((5, 3, 7)).astype(dtype)
    gradient = rng.standard_normal(x.shape).astype(dtype)
    expected = np.empty_like(x)
    low, high = _box((0.1, 0.9), dtype)
    x = np.clip(x, low, high).astype(dtype)
    getattr(reference, f"{norm}_step")(adv, x, gradient, step_size, 0.1, low, high, expected)
    options: dict[str, Any] = {"eps": 0.1, "step_size": step_size, "norm": norm, "clip": (0.1, 0.9)}
    before = adv.copy()
    assert bits(adversarial.pgd_step(adv, x, gradient, **options)) == bits(expected)
    assert bits(adv) == bits(before)
    out = np.empty_like(x)
    assert adversarial.pgd_step(adv, x, gradient, out=out, **options) is out
    assert bits(out) == bits(expected)
    tensors = [torch.from_numpy(a.copy()) for a in (adv, x, gradient)]
    assert bits(adversarial.pgd_step(*tensors, out=tensors[0], **options)) == bits(expected)
    assert bits(tensors[0]) == bits(expected)
    assert adversarial.pgd_step(x[:0], x[:0], x[:0], **options).shape == (0, 3, 7)


STEPS: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("x_adv a list", {"x_adv": [1.0]}, TypeError, "^x_adv is a list"),
    ("x_adv half", {"x_adv": X.astype("f2")}, TypeError, "^x_adv has dtype float16"),
    ("x of another dtype", {"x": X.astype("f8")}, TypeError, "^x has dtype float64, expected float32"),
    ("gradient of another shape", {"gradient": X[:2]}, ValueError, r"^gradient has shape \(2, 6\), expected \(4, 6\)"),
    ("gradient columns first", {"gradient": np.asfortranarray(X)}, ValueError, "^gradient is not C-contiguous"),
    ("no dimensions", {"x_adv": np.array(0.5)}, ValueError, "^x_adv has no dimensions"),
    ("out of another shape", {"out": X[:2].copy()}, ValueError, "^out has shape"),
    ("out is x", {"out": X}, ValueError, "^out overlaps x in memory"),
    ("x outside clip", {"clip": (0.6, 0.7)}, ValueError, "^x has values from 0.5"),
    ("x NaN", {"x": X * np.float32(np.nan)}, ValueError, "^x holds NaN"),
    ("step_size NaN", {"step_size": math.nan}, ValueError, "^step_size is nan"),
    ("eps zero", {"eps": 0.0}, ValueError, "^eps is 0"),
    ("norm unknown", {"norm": "l3"}, ValueError, "^norm is 'l3'"),
    ("x requires grad", {"x": torch.zeros(4, 6, requires_grad=True)}, ValueError, "^x requires grad"),
]


@pytest.mark.parametrize(("what", "changes", "error", "message"), STEPS, ids=[s[0] for s in STEPS])
def test_wrong_steps(backend, what, changes, error, message) -> None:
    before = X.copy()
    options = {"x_adv": X + 0, "x": X, "gradient": X + 0, "eps": 0.1, "step_size": 0.1, **changes}
    arrays = [options.pop(name) for name in ("x_adv", "x", "gradient")]
    with pytest.raises(error, match=message):
        adversarial.pgd_step(*arrays, **options)
    assert np.array_equal(X, before)


def test_the_check_of_x_can_be_left_out() -> None:
    adv = adversarial.pgd_step(X, X, X.copy(), eps=0.1, step_size=0.1, clip=(0.6, 0.7), check=False)
    assert adv.max() <= 0.7


def test_row_helpers_know_numpy_and_torch() -> None:
    for values in (np.arange(12.0).reshape(4, 3), torch.arange(12.0).reshape(4, 3)):
        rows = np.array([2, 0])
        taken = _rows.take(values, rows)
        assert np.array_equal(np.asarray(taken), np.arange(12).reshape(4, 3)[rows])
        _rows.put(values, rows, -taken)
        assert np.array_equal(np.asarray(values[2]), [-6, -7, -8])
        assert np.array_equal(_rows.to_host(_rows.largest_magnitudes(values)), [2, 5, 8, 11])
        assert _rows.value_range(values) == (-8, 11)
