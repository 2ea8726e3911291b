"""Epsilon against dp-accounting's own numbers, and the search for a noise multiplier."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

dp_accounting = pytest.importorskip("dp_accounting")
from dp_accounting import pld, rdp

from aisec_fast import accounting

RELATIONS = dp_accounting.NeighboringRelation
RUN = {"noise_multiplier": 1.1, "sample_rate": 0.02, "steps": 300}


def truth(accountant: Any, noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    event = dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
    return float(accountant.compose(event, steps).get_epsilon(delta))


@pytest.mark.parametrize("relation", [RELATIONS.REPLACE_SPECIAL, RELATIONS.ADD_OR_REMOVE_ONE], ids=lambda r: r.name)
@pytest.mark.parametrize(("name", "cls"), [("pld", pld.PLDAccountant), ("rdp", rdp.RdpAccountant)])
def test_epsilon_is_that_of_dp_accounting(name: str, cls: Any, relation: Any) -> None:
    """Under both relations: replacing a record by a zero contribution costs what adding or removing one does."""
    expected = truth(cls(neighboring_relation=relation), **RUN, delta=1e-5)
    assert accounting.get_epsilon(**RUN, delta=1e-5, accountant=name) == expected


def test_little_noise_takes_a_coarser_grid() -> None:
    """Above the numbers that dp-accounting gave on its finest grid, which took it 45 and 30 seconds; and not by much."""
    for multiplier, rate, fine in ((0.3, 1.0, 696.777791573663), (0.1, 0.01, 354.19609103908897)):
        epsilon = accounting.get_epsilon(noise_multiplier=multiplier, sample_rate=rate, steps=100, delta=1e-5)
        assert fine * (1 - 1e-9) <= epsilon <= fine * (1 + 1e-4)


@pytest.mark.parametrize(
    "run",
    [
        {"noise_multiplier": 1e-5},
        {"noise_multiplier": 1e-60},
        {"steps": 10**12},
        {"steps": 10**30},
        {"steps": 10**30, "sample_rate": 1e-22},
        {"noise_multiplier": 1e9},
    ],
    ids=str,
)
def test_extreme_runs_have_an_epsilon(run: dict[str, Any]) -> None:
    """Without gigabytes, minutes or errors of the accountant's; never above what RDP says, and more for less noise."""
    whole = {**RUN, "delta": 1e-5, **run}
    epsilon = accounting.get_epsilon(**whole)
    assert 0 <= epsilon < math.inf
    assert epsilon <= accounting.get_epsilon(**whole, accountant="rdp")
    assert epsilon >= accounting.get_epsilon(**{**whole, "noise_multiplier": 2 * whole["noise_multiplier"]})


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_roundings_of_very_long_runs_are_no_privacy(accountant: str) -> None:
    """RDP of so little a run rounds to less than 0, of which dp-accounting makes an epsilon of 0.

    One run of Gaussian noise loses less: the losses' sum is nearly normal and of this variance.
    """
    multiplier, rate, steps = 1e6, 1e-3, 2**50
    alike = multiplier / (rate * math.sqrt(steps))
    least = accounting.get_epsilon(noise_multiplier=alike, sample_rate=1.0, steps=1, delta=1e-5)
    long = {"noise_multiplier": multiplier, "sample_rate": rate, "steps": steps, "delta": 1e-5}
    assert accounting.get_epsilon(**long, accountant=accountant) >= least > 0.1


def test_rdp_that_rounds_below_zero_is_no_privacy() -> None:
    """dp-accounting makes an epsilon of 0 of it, whatever delta is. Epsilon of one Gaussian run, as above, loses less."""
    multiplier, rate, steps = 742728.0, 3.2766e-5, 2**36
    alike = multiplier / (rate * math.sqrt(steps))
    for delta in (1e-9, 1e-300):
        least = accounting.get_epsilon(noise_multiplier=alike, sample_rate=1.0, steps=1, delta=delta)
        run = {"noise_multiplier": multiplier, "sample_rate": rate, "steps": steps, "delta": delta}
        assert accounting.get_epsilon(**run, accountant="rdp") >= least > 1e-6


def test_what_float64_cannot_square_is_no_noise() -> None:
    assert accounting.get_epsilon(**{**RUN, "noise_multiplier": 1e-200}, delta=1e-5) == math.inf


def test_a_tiny_delta_has_an_epsilon() -> None:
    assert accounting.get_epsilon(**RUN, delta=1e-300) < math.inf


def test_accounting_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """dp-accounting warns of each Renyi order that it leaves out."""
    accounting.get_epsilon(noise_multiplier=1.1, sample_rate=0.125, steps=8, delta=1e-5, accountant="rdp")
    assert not caplog.records


def test_prv_means_pld() -> None:
    assert accounting.get_epsilon(**RUN, delta=1e-5, accountant="prv") == accounting.get_epsilon(**RUN, delta=1e-5)


def test_single_gaussian_release_against_the_formula() -> None:
    """delta(epsilon) of one Gaussian mechanism (Balle and Wang, 2018), from the normal distribution function."""

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    sigma, delta = 2.0, 1e-5
    epsilon = accounting.get_epsilon(noise_multiplier=sigma, sample_rate=1, steps=1, delta=delta)
    at = normal(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * normal(-0.5 / sigma - epsilon * sigma)
    assert at == pytest.approx(delta, rel=1e-2)
    assert at <= delta  # the accountant rounds up


def test_no_steps_and_no_noise() -> None:
    assert accounting.get_epsilon(noise_multiplier=0, sample_rate=0.1, steps=0, delta=1e-5) == 0.0
    assert accounting.get_epsilon(noise_multiplier=0, sample_rate=0.1, steps=1, delta=1e-5) == math.inf


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize(("target", "rate", "length"), [(1.0, 0.02, {"steps": 150}), (6.0, 1.0, {"epochs": 3})])
def test_noise_multiplier_meets_its_target(accountant: str, target: float, rate: float, length: dict[str, int]) -> None:
    multiplier = accounting.get_noise_multiplier(
        target_epsilon=target, target_delta=1e-5, sample_rate=rate, accountant=accountant, **length
    )
    steps = length.get("steps", length.get("epochs"))
    run = {"sample_rate": rate, "steps": steps, "delta": 1e-5, "accountant": accountant}
    assert accounting.get_epsilon(noise_multiplier=multiplier, **run) <= target
    assert accounting.get_epsilon(noise_multiplier=multiplier * (1 - 2e-4), **run) > target


def test_epochs_are_whole_steps() -> None:
    """Three epochs at rate 1/49 are 147 steps, whatever 3 / (1/49) is in floating point."""
    by_steps = {"target_epsilon": 2.0, "target_delta": 1e-5, "sample_rate": 1 / 49, "accountant": "rdp"}
    exact = accounting.get_noise_multiplier(**by_steps, steps=147)
    assert accounting.get_noise_multiplier(**by_steps, epochs=3) == exact


SEARCH = {"target_epsilon": 1.0, "target_delta": 1e-5, "sample_rate": 0.1, "steps": 10}
BAD = [
    ("get_epsilon", {"noise_multiplier": -1.0}, ValueError, "noise_multiplier"),
    ("get_epsilon", {"noise_multiplier": float("nan")}, ValueError, "noise_multiplier"),
    ("get_epsilon", {"noise_multiplier": "1"}, TypeError, "noise_multiplier"),
    ("get_epsilon", {"sample_rate": 0.0}, ValueError, "sample_rate"),
    ("get_epsilon", {"sample_rate": 1.5}, ValueError, "sample_rate"),
    ("get_epsilon", {"steps": -1}, ValueError, "steps"),
    ("get_epsilon", {"steps": 1.5}, TypeError, "steps"),
    ("get_epsilon", {"delta": 0.0}, ValueError, "delta"),
    ("get_epsilon", {"delta": 1.0}, ValueError, "delta"),
    ("get_epsilon", {"accountant": "gdp"}, ValueError, "accountant"),
    ("get_epsilon", {"accountant": 3}, ValueError, "accountant"),
    ("get_noise_multiplier", {"target_epsilon": 0.0}, ValueError, "target_epsilon"),
    ("get_noise_multiplier", {"target_epsilon": math.inf}, ValueError, "target_epsilon"),
    ("get_noise_multiplier", {"target_delta": 2.0}, ValueError, "target_delta"),
    ("get_noise_multiplier", {"sample_rate": True}, TypeError, "sample_rate"),
    ("get_noise_multiplier", {"steps": 0}, ValueError, "steps"),
    ("get_noise_multiplier", {"epochs": 1}, ValueError, "steps and epochs"),
    ("get_noise_multiplier", {"steps": None}, ValueError, "steps and epochs"),
    ("get_noise_multiplier", {"steps": None, "epochs": -1}, ValueError, "epochs"),
    ("get_noise_multiplier", {"target_epsilon": 1e-9, "target_delta": 1e-300}, ValueError, "target_epsilon"),
]


@pytest.mark.parametrize(("function", "change", "error", "match"), BAD)
def test_bad_input(function: str, change: dict[str, Any], error: type[Exception], match: str) -> None:
    good = {**RUN, "delta": 1e-5} if function == "get_epsilon" else SEARCH
    with pytest.raises(error, match=match):
        getattr(accounting, function)(**{**good, **change})


def test_import_is_light() -> None:
    code = "import sys, aisec_fast.accounting; print('dp_accounting' in sys.modules, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
