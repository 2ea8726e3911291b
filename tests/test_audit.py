"""The audit: its bounds against the worst mechanisms there are, its canaries, and engines that keep their claim or do not."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from scipy import optimize, sparse, stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from aisec_fast import accounting, audit, noise
from aisec_fast.audit import _bounds, _canaries, _report
from aisec_fast.audit._bounds import Curve
from aisec_fast.privacy import PrivacyEngine, _charges, _recording, _step
from aisec_fast.privacy._coverage import examine

DELTA = 1e-5


@pytest.fixture(autouse=True)
def coarse_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every trial composes a privacy loss distribution; the bound is valid however early the search ends."""
    monkeypatch.setattr(_report, "_STEP", 1.1)


# -------------------------------------------------------------------------------------------------------- the bounds


def most_right(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """P[C >= correct] of the worst (epsilon, delta)-DP mechanism from coins to guesses, by linear programming."""
    coins = list(itertools.product((-1, 1), repeat=canaries))
    answers = [t for t in itertools.product((-1, 0, 1), repeat=canaries) if sum(map(abs, t)) == guesses]
    number = len(coins) * len(answers)
    goal = np.array([sum(a == b for a, b in zip(s, t, strict=True)) >= correct for s in coins for t in answers]) / len(
        coins
    )
    pairs = [(i, j) for i, s in enumerate(coins) for j, t in enumerate(coins) if sum(map(abs, np.subtract(s, t))) == 2]
    excess = len(pairs) * len(answers)  # P(t|s) - e^epsilon P(t|s') where that is positive, which sums to delta at most
    above = sparse.lil_array((excess + len(pairs), number + excess))
    for place, (i, j) in enumerate(pairs):
        for t in range(len(answers)):
            row = place * len(answers) + t
            above[row, i * len(answers) + t] = 1.0
            above[row, j * len(answers) + t] = -math.exp(epsilon)
            above[row, number + row] = -1.0
            above[excess + place, number + row] = 1.0
    limits = np.concatenate([np.zeros(excess), np.full(len(pairs), delta)])
    whole = sparse.kron(sparse.eye_array(len(coins)), np.ones((1, len(answers))))
    whole = sparse.hstack([whole, sparse.csr_array((len(coins), excess))])
    found = optimize.linprog(
        np.concatenate([-goal, np.zeros(excess)]), A_ub=above.tocsr(), b_ub=limits, A_eq=whole, b_eq=np.ones(len(coins))
    )
    assert found.success
    return float(-found.fun)


def curve(epsilon: float, delta: float) -> Curve:
    return Curve(np.array([epsilon]), np.array([delta]))


@pytest.mark.parametrize("guesses", [1, 2, 3])
@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.02), (0.7, 0.02), (0.3, 0.1), (2.0, 0.01)]
)
def test_no_mechanism_guesses_better_than_the_bounds(guesses: int, epsilon: float, delta: float) -> None:
    for correct in range(1, guesses + 1):
        worst = most_right(3, guesses, correct, epsilon, delta)
        assert _bounds.binomial_p_value(3, guesses, correct, epsilon, delta) >= worst - 1e-9
        assert not _bounds.refutes(curve(epsilon, delta), 3, guesses, correct, worst - 1e-9)


def test_a_mechanism_that_reaches_the_bound() -> None:
    """Randomised response: for pure epsilon the binomial law is exact, and the other bound is where all guesses are right."""
    epsilon = 1.3
    p = 1 / (1 + math.exp(-epsilon))
    for guesses, correct in ((10, 10), (40, 33), (300, 240), (5, 0)):
        tail = stats.binom.sf(correct - 1, guesses, p)
        assert _bounds.binomial_p_value(500, guesses, correct, epsilon, 0.0) == pytest.approx(tail, rel=1e-9)
        assert not _bounds.refutes(curve(epsilon, 0.0), 500, guesses, correct, tail * (1 - 1e-9))
    assert _bounds.refutes(curve(epsilon, 0.0), 500, 10, 10, p**10 * (1 + 1e-9))


def test_all_right_has_a_closed_form() -> None:
    for guesses in (5, 60, 1000):
        p = 0.05 ** (1 / guesses)
        found = _bounds.epsilon_at_delta(1000, guesses, guesses, 0.0, 0.05)
        assert found == pytest.approx(math.log(p / (1 - p)), abs=1e-5)
    assert _bounds.epsilon_at_delta(1000, 4, 4, 0.0, 0.05) == 0.0  # 2^-4 is not below 0.05


def test_accidents_by_hand() -> None:
    """Two guesses at epsilon 0: masses 1/4, 1/2, 1/4; 4 delta lifts runs of one right guess first, then of none."""
    assert _bounds.binomial_p_value(4, 2, 2, 0.0, 0.05) == pytest.approx(0.25 + 0.2)
    assert _bounds.binomial_p_value(4, 2, 2, 0.0, 0.175) == pytest.approx(0.25 + 0.5 + 0.1)
    assert _bounds.binomial_p_value(4, 2, 2, 0.0, 0.5) == pytest.approx(1.0)


def test_accidents_depend_on_the_other_guesses() -> None:
    """The mechanism of docs/audit.md, section 4, which breaks the bound that takes accidents to be independent."""
    delta, p = 0.01, 0.875
    found = most_right(3, 3, 1, 0.0, delta)
    assert found == pytest.approx(p + p * delta)
    assert found > p + 2 * 3 * delta * (1 - p)
    assert _bounds.binomial_p_value(3, 3, 1, 0.0, delta) == pytest.approx(p + 3 * delta)


def test_mechanisms_that_leak_together_are_within_the_bounds() -> None:
    """With probability delta everything is told, or each coin on its own: both are (0, delta)-DP."""
    size, delta = 50, 0.03
    together = delta + (1 - delta) * 2.0**-size
    told = stats.binom(size, delta)
    for correct in (28, 33, 40, size):
        alone = sum(told.pmf(n) * stats.binom.sf(correct - n - 1, size - n, 0.5) for n in range(size + 1))
        for worst in (together, alone):
            assert _bounds.binomial_p_value(size, size, correct, 0.0, delta) >= worst * (1 - 1e-9)
            assert not _bounds.refutes(curve(0.0, delta), size, size, correct, worst * (1 - 1e-9))


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
def test_gaussians_are_within_their_curve(mu: float) -> None:
    """Each coin moves a Gaussian of its own, all are guessed by the sign: a binomial number is right."""
    claim = _report._curve({(1 / mu, 1.0): 1})
    right = stats.binom(200, stats.norm.cdf(mu / 2))
    for correct in right.ppf([0.1, 0.5, 0.95, 0.999]).astype(int):
        assert not _bounds.refutes(claim, 200, 200, correct, right.sf(correct - 1))
    p = 0.01  # the curve's lines touch the trade-off curve of the Gaussian
    assert claim.least(p) <= stats.norm.cdf(stats.norm.ppf(p) - mu)
    assert claim.least(p) >= 0.8 * stats.norm.cdf(stats.norm.ppf(p) - mu)


def test_bounds_are_monotone() -> None:
    def bound(canaries: int = 1000, correct: int = 180, delta: float = 1e-6, level: float = 0.05) -> float:
        return _bounds.epsilon_at_delta(canaries, 200, correct, delta, level)

    assert 0 == bound(correct=100) < bound(correct=150) < bound() < bound(correct=200)
    assert bound(delta=1e-4) < bound() < bound(delta=1e-9)
    assert bound(level=0.01) < bound() < bound(level=0.2)
    assert bound(canaries=10**6) < bound()


# ------------------------------------------------------------------------------------------------------ the canaries

LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(5, 4),
    lambda: nn.Linear(5, 4, bias=False),
    lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2),
    lambda: nn.Conv2d(2, 3, (3, 2), padding="same", dilation=2),
    lambda: nn.Conv2d(2, 3, 3, stride=3, padding=1, padding_mode="reflect"),
    lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"),
    lambda: nn.Conv2d(3, 3, 3, padding="valid", groups=3),
    lambda: nn.Conv3d(1, 2, 2, stride=2),
    lambda: nn.Embedding(6, 3, padding_idx=2),
    lambda: nn.LayerNorm(5),
    lambda: nn.LayerNorm((2, 3)),
    lambda: nn.GroupNorm(2, 6),
    lambda: nn.GroupNorm(4, 4),
]


@pytest.mark.parametrize("make", LAYERS)
def test_a_canary_is_one_coordinate(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layers = examine(make()).layers
    for place in _canaries.places(layers):
        at = place.coordinates
        signs = torch.where(torch.arange(len(at)) % 2 == 0, 1.0, -1.0)
        activation, gradient = _canaries.craft(place.layer, place.name, at, signs, 8.0)
        rule = place.layer.rule(place.layer.module, activation, gradient)
        for name, parameter in place.layer.parameters.items():
            rows = rule.rows(name, 0, len(at)).flatten(1).double()
            assert rows.shape == (len(at), parameter.numel())
            if name == place.name:
                values = rows[torch.arange(len(at)), at]
                assert (values * signs >= 8.0 * (1 - 1e-5)).all()
                rows[torch.arange(len(at)), at] = 0.0
            assert rows.abs().max() <= 8.0 * 2.0**-19


def test_canaries_are_spread_over_parameters() -> None:
    assert _canaries.spread(10, [2, 100, 3]) == [2, 5, 3]
    assert _canaries.spread(7, [100, 100, 100]) == [3, 2, 2]
    assert _canaries.spread(6, [1, 2, 3]) == [1, 2, 3]


def test_layers_that_no_canaries_are_made_for_have_none() -> None:
    model = nn.Sequential(nn.Linear(4, 30), nn.PReLU(), nn.ConvTranspose1d(30, 2, 1))
    found = _canaries.places(examine(model).layers)
    assert [(place.layer.name, place.name) for place in found] == [("0", "weight"), ("0", "bias")]


# ------------------------------------------------------------------------------------------------------- whole audits


def make(
    noise_multiplier: float, *, batches: int = 1, optimizer: Any = torch.optim.SGD, **options: Any
) -> tuple[PrivacyEngine, nn.Module, Any, Any]:
    """A small private training; one batch is a sampling rate of 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 4))
    data = TensorDataset(torch.randn(40, 1, 6, 6), torch.arange(40) % 4)
    engine = PrivacyEngine()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no noise
        return engine, *engine.make_private(
            module=model,
            optimizer=optimizer(model.parameters(), lr=0.1),
            data_loader=DataLoader(data, batch_size=40 // batches),
            noise_multiplier=noise_multiplier,
            max_grad_norm=0.5,
            source=noise.SeededSource(11),
            **options,
        )


def loop(model: nn.Module, optimizer: Any, loader: Any, passes: int = 1) -> None:
    for _ in range(passes):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


def audited(
    noise_multiplier: float = 1.0, *, canaries: int = 1000, guesses: int | None = None, **options: Any
) -> audit.AuditReport:
    """Seeds are fixed. Were they not, a truthful engine would fail with a probability of at most 0.05."""

    def train(attach: Any) -> None:
        _, model, optimizer, loader = make(noise_multiplier, **options)
        attach(optimizer)
        loop(model, optimizer, loader)

    return audit.one_run(train, delta=DELTA, canaries=canaries, guesses=guesses, source=noise.SeededSource(12))


def test_a_truthful_engine_stays_under_its_claim() -> None:
    report = audited()
    assert report.passed
    assert report.claimed == pytest.approx(4.377, abs=0.01)  # a Gaussian mechanism of noise multiplier 1
    assert 0.4 * report.claimed < report.epsilon_lower < report.claimed
    assert 1.0 < report.epsilon_lower_any < report.epsilon_lower
    assert report.steps == 1
    assert (report.canaries, report.guesses) == (1000, 200)
    assert "not contradicted" in str(report)


def halve_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _charges.noise_scale

    def halved(*arguments: Any) -> tuple[float, float]:
        sigma, granularity = original(*arguments)
        return sigma / 2, granularity

    monkeypatch.setattr(_charges, "noise_scale", halved)


def do_not_clip_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _step.Sums._add_clipped

    def add(self: Any, uses: dict[int, Any], batch: Any, max_norm: float) -> None:
        free = id(self.parameters["4.weight"])
        original(self, {key: of for key, of in uses.items() if key != free}, batch, max_norm)
        if uses[free]:
            original(self, {free: uses[free]}, batch, 1e30)

    monkeypatch.setattr(_step.Sums, "_add_clipped", add)


def count_samples_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _step.Sums._add_clipped

    def add(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        original(self, *arguments)

    monkeypatch.setattr(_step.Sums, "_add_clipped", add)
    monkeypatch.setattr(_recording.Use, "added", lambda *_: None)  # or nothing would be left to count again


@pytest.mark.parametrize("sabotage", [halve_the_noise, do_not_clip_one_layer, count_samples_twice])
def test_a_sabotaged_engine_is_found_out(sabotage: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch)
    # Only 64 of the 1000 canaries are in the layer that is not clipped, and only members give themselves away.
    report = audited(3.0, guesses=50) if sabotage is do_not_clip_one_layer else audited(1.0)
    assert not report.passed
    assert report.epsilon_lower > report.claimed
    assert "REFUTED" in str(report)


@pytest.mark.parametrize(
    "options",
    [
        {"batches": 4, "clipping": "automatic", "max_physical_batch_size": 8},
        {"batches": 4, "poisson_sampling": False, "clipping": "per_layer"},
        {"optimizer": torch.optim.Adam, "loss_reduction": "sum"},
    ],
)
def test_scores_follow_the_coins(options: dict[str, Any]) -> None:
    """Whatever the setting: with little noise nearly every score is on its coin's side."""
    _, model, optimizer, loader = make(0.05, **options)
    step = next(iter(optimizer._optimizer_step_pre_hooks.values()))
    canaries = audit.GradientCanaries(optimizer, count=300, source=noise.SeededSource(3))
    loop(model, optimizer, loader, passes=4)
    assert canaries.steps == 4 * options.get("batches", 1)
    scores = np.concatenate([group.scores for group in canaries._groups])
    members = np.concatenate([group.members for group in canaries._groups])
    # At rate 1/4 a member misses all 16 steps with probability 0.01. False alarm below 1e-6 were the seeds not fixed.
    assert ((scores > 0) == members).mean() > (0.96 if options.get("batches") and step.book.__self__.rate else 0.999)
    canaries.detach()


def test_members_take_part_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the loader does not sample, a pass is accounted as one mechanism: no record is in it twice, nor a canary."""
    _, model, optimizer, loader = make(1.0, batches=4, poisson_sampling=False)
    canaries = audit.GradientCanaries(optimizer, count=100, source=noise.SeededSource(3))
    taken: list[int] = []
    for group in canaries._groups:
        original = group.invite

        def counted(*arguments: Any, original: Any = original) -> Any:
            uses = original(*arguments)
            taken.append(uses[0].rule.batch)
            return uses

        monkeypatch.setattr(group, "invite", counted)
    loop(model, optimizer, loader, passes=3)
    members = sum(int(group.members.sum()) for group in canaries._groups)
    by_step = np.array(taken).reshape(12, len(canaries._groups)).sum(1)
    assert by_step.tolist() == [members, 0, 0, 0] * 3
    canaries.detach()


def test_afterwards_the_training_is_as_before() -> None:
    engine, model, optimizer, loader = make(1.0, batches=2)
    step = next(iter(optimizer._optimizer_step_pre_hooks.values()))
    most, hooks = step.mechanism.most_samples, len(optimizer._optimizer_step_post_hooks)
    canaries = audit.GradientCanaries(optimizer, count=50)
    assert canaries.count == 50
    with pytest.raises(ValueError, match="audited already"):
        audit.GradientCanaries(optimizer)
    with pytest.raises(ValueError, match="no step"):
        canaries.result(delta=DELTA)
    canaries.detach()
    assert step.guests == []
    assert step.mechanism.most_samples == most
    assert len(optimizer._optimizer_step_post_hooks) == hooks
    again = audit.GradientCanaries(optimizer, count=50)  # the place is free
    loop(model, optimizer, loader)
    assert engine.info()[0]["update"] == "fused"  # what is audited is the step that users get
    again.detach()
    spent = dict(engine._ledger.spent)
    loop(model, optimizer, loader)
    assert again.steps == 2
    assert again._spent == spent  # what came later is not the audit's


def test_a_training_that_fails_leaves_no_canaries() -> None:
    _, _, optimizer, _ = make(1.0)

    def train(attach: Any) -> None:
        attach(optimizer)
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        audit.one_run(train, delta=DELTA)
    assert next(iter(optimizer._optimizer_step_pre_hooks.values())).guests == []


def test_without_noise_the_claim_is_infinite_and_cannot_fail() -> None:
    report = audited(0.0, canaries=100)
    assert report.claimed == math.inf
    assert report.passed
    assert report.correct == report.guesses == 20
    assert report.epsilon_lower == report.epsilon_lower_any == pytest.approx(1.8, abs=0.1)
    assert "infinite" in str(report)


def test_bad_input() -> None:
    _, model, optimizer, _ = make(1.0)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="not private"):
        audit.GradientCanaries(plain)
    with pytest.raises(TypeError, match="optimizer must be a torch Optimizer, got Sequential"):
        audit.GradientCanaries(model)
    with pytest.raises(ValueError, match="canaries is 19, expected at least 20"):
        audit.GradientCanaries(optimizer, count=19)
    with pytest.raises(TypeError, match="train is a NoneType, expected a function"):
        audit.one_run(None, delta=1e-5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="canaries is 100000, expected at most 1156"):
        audit.GradientCanaries(optimizer, count=100000)
    with pytest.raises(TypeError, match="canaries is a float"):
        audit.GradientCanaries(optimizer, count=1e3)
    with pytest.raises(ValueError, match="guesses is 101, expected at most the number of canaries, which is 100"):
        audit.GradientCanaries(optimizer, count=100, guesses=101)
    with pytest.raises(ValueError, match="guesses is 0"):
        audit.GradientCanaries(optimizer, count=100, guesses=0)
    with pytest.raises(TypeError, match="source is an int"):
        audit.GradientCanaries(optimizer, source=5)

    def never(attach: Any) -> None:
        pytest.fail("the arguments come first")

    for bad in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="delta"):
            audit.one_run(never, delta=bad)
        with pytest.raises(ValueError, match="confidence"):
            audit.one_run(never, delta=DELTA, confidence=bad)
    with pytest.raises(ValueError, match="canaries is 3"):
        audit.one_run(never, delta=DELTA, canaries=3)
    with pytest.raises(ValueError, match="did not call attach"):
        audit.one_run(lambda attach: None, delta=DELTA)
    with pytest.raises(ValueError, match="attach was called twice"):
        audit.one_run(lambda attach: (attach(optimizer), attach(optimizer)), delta=DELTA)


def test_curve_of_holds_at_each_point() -> None:
    mechanisms = {(2.0, 0.5): 3}
    pairs = accounting.curve_of(mechanisms, 5)
    assert pairs[0][0] == 0.0
    assert pairs[-1][1] == pytest.approx(1e-9, rel=0.1)
    for epsilon, delta in pairs[1:-1]:
        assert accounting.epsilon_of(mechanisms, delta) == pytest.approx(epsilon, rel=1e-3)


def test_coins_are_fair_and_secret() -> None:
    """Half of the canaries are members: within 5.5 standard deviations (false alarm 4e-8 were the seed not fixed)."""
    _, _, optimizer, _ = make(1.0)
    canaries = audit.GradientCanaries(optimizer, count=1000, source=noise.SeededSource(8))
    members = sum(int(group.members.sum()) for group in canaries._groups)
    assert abs(members - 500) < 5.5 * math.sqrt(1000 * Fraction(1, 4))
