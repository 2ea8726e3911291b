"""Privacy accounting of DP-SGD: how much epsilon a run costs, and how much noise a budget asks for.

The numbers are dp-accounting's (Google). Neighbouring data sets differ by one record replaced by a *zero contribution
in the same slot* (its ``REPLACE_SPECIAL``), the relation that ``aisec_fast.privacy`` provides; epsilon is the same
number as under add-or-remove-one. A run is a multiset of *mechanisms* ``(noise_multiplier, sample_rate)``: Gaussian
noise of standard deviation ``noise_multiplier`` times the sensitivity, on a batch that holds each record
independently with probability ``sample_rate``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from . import _checks

if TYPE_CHECKING:
    from dp_accounting import PrivacyAccountant

ACCOUNTANTS = ("pld", "rdp")
_ALIASES = {"prv": "pld"}  # Opacus's name of its numerical accountant
_TOLERANCE = 1e-4  # relative width of the bracket at which the search for a noise multiplier stops
_LARGEST = 1e6  # noise multiplier that the search tries


def get_epsilon(
    *, noise_multiplier: float, sample_rate: float, steps: int, delta: float, accountant: str = "pld"
) -> float:
    """Return epsilon at ``delta`` after ``steps`` steps of DP-SGD with Poisson sampling.

    Args:
        noise_multiplier: noise standard deviation / clipping norm, >= 0; 0 costs infinite epsilon.
        sample_rate: probability with which each record enters a batch, in (0, 1].
        steps: number of steps, >= 0.
        delta: in (0, 1).
        accountant: "pld" (tight) or "rdp" (looser, faster); "prv" means "pld".

    Raises:
        TypeError, ValueError: an argument out of its range, named.
    """
    mechanism = _checks.not_negative(noise_multiplier, "noise_multiplier"), _rate(sample_rate)
    return epsilon_of({mechanism: _checks.whole(steps, "steps")}, delta, accountant)


def get_noise_multiplier(
    *,
    target_epsilon: float,
    target_delta: float,
    sample_rate: float,
    steps: int | None = None,
    epochs: float | None = None,
    accountant: str = "pld",
) -> float:
    """Return the smallest noise multiplier, up to 0.01 %, that keeps a run within a budget.

    Args:
        target_epsilon: epsilon allowed at ``target_delta``; ``get_epsilon`` of the result never exceeds it.
        target_delta: in (0, 1).
        sample_rate: probability with which each record enters a batch, in (0, 1].
        steps: number of steps; or give
        epochs: number of epochs of 1 / sample_rate steps each, the total rounded up.
        accountant: "pld" (tight) or "rdp" (looser, faster); "prv" means "pld".

    Raises:
        TypeError, ValueError: an argument out of its range, named; no noise multiplier below 10^6 is enough.
    """
    target_epsilon = _checks.positive(target_epsilon, "target_epsilon")
    target_delta = _checks.probability(target_delta, "target_delta")
    sample_rate = _rate(sample_rate)
    if (steps is None) == (epochs is None):
        raise ValueError("give exactly one of steps and epochs")
    if epochs is not None:
        exact = _checks.positive(epochs, "epochs") / sample_rate
        # A sample rate of 1/469 times 469 is not 1 in floating point: do not let rounding add a step.
        steps = round(exact) if math.isclose(exact, round(exact), rel_tol=1e-9) else math.ceil(exact)
    number = _checks.whole(steps, "steps", least=1)

    @functools.cache
    def excess(noise_multiplier: float, method: str) -> float:
        """log(epsilon / target): falls with the noise multiplier, nearly a straight line in its logarithm."""
        epsilon = epsilon_of({(noise_multiplier, sample_rate): number}, target_delta, method)
        return math.log(max(epsilon, 1e-300) / target_epsilon)

    method = accountant_name(accountant)
    # RDP is quick and never below the tight epsilon: it finds the neighbourhood.
    high = 1.0
    while excess(high, "rdp") > 0:
        high *= 2.0
        if high > _LARGEST:
            raise ValueError(
                f"target_epsilon {target_epsilon} at target_delta {target_delta} needs a noise multiplier above "
                f"{_LARGEST:g}"
            )
    while excess(high / 2.0, "rdp") <= 0:
        high /= 2.0
    if method == "rdp":
        return _smallest(high / 2.0, high, lambda value: excess(value, "rdp"), _TOLERANCE)
    high = _smallest(high / 2.0, high, lambda value: excess(value, "rdp"), 0.05)
    # Walk down from there, so that the tight accountant never runs far below the target, where it is slow.
    while excess(high, method) > 0:
        high *= 1.1
    while excess(high / 1.1, method) <= 0:
        high /= 1.1
    return _smallest(high / 1.1, high, lambda value: excess(value, method), _TOLERANCE)


def _smallest(low: float, high: float, excess: Callable[[float], float], tolerance: float) -> float:
    """The smallest value with excess <= 0, up to a relative tolerance; excess(low) > 0 >= excess(high)."""
    at_low, at_high = excess(low), excess(high)
    turn = 0
    while high > low * (1.0 + tolerance):
        turn += 1
        if turn % 3 == 0 or not math.isfinite(at_low - at_high):
            middle = math.sqrt(low * high)
        else:
            # Where the straight line through the ends crosses zero, moved a little to the farther end: if the line is
            # right, the crossing is then enclosed.
            crossing = low * (high / low) ** (at_low / (at_low - at_high))
            middle = crossing * (1.0 + tolerance / 4 if high * low > crossing**2 else 1.0 - tolerance / 4)
            middle = min(max(middle, low * (1.0 + tolerance / 8)), high / (1.0 + tolerance / 8))
        value = excess(middle)
        if value <= 0:
            high, at_high = middle, value
        else:
            low, at_low = middle, value
    return high


def epsilon_of(mechanisms: Mapping[tuple[float, float], int], delta: float, accountant: str = "pld") -> float:
    """Return epsilon at ``delta`` of the composition of ``{(noise_multiplier, sample_rate): how often}``."""
    delta = _checks.probability(delta, "delta")
    method = accountant_name(accountant)
    used = {key: times for key, times in mechanisms.items() if times}
    if not used:
        return 0.0
    if any(noise_multiplier == 0.0 for noise_multiplier, _ in used):
        return math.inf
    import dp_accounting

    ledger = _accountant(method)
    for (noise_multiplier, sample_rate), times in used.items():
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise_multiplier)
        if sample_rate < 1.0:
            event = dp_accounting.PoissonSampledDpEvent(sample_rate, event)
        ledger.compose(event, times)
    return float(ledger.get_epsilon(delta))


def _accountant(method: str) -> PrivacyAccountant:
    import dp_accounting
    from dp_accounting import pld, rdp

    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    if method == "rdp":
        return rdp.RdpAccountant(neighboring_relation=relation)
    return pld.PLDAccountant(neighboring_relation=relation)


def accountant_name(accountant: object) -> str:
    """Return "pld" or "rdp"; raises ValueError for anything else."""
    name = _ALIASES.get(str(accountant), str(accountant))
    if name not in ACCOUNTANTS:
        raise ValueError(f"accountant must be one of {', '.join(ACCOUNTANTS)} or prv (meaning pld), got {accountant!r}")
    return name


def _rate(sample_rate: float) -> float:
    rate = _checks.positive(sample_rate, "sample_rate")
    if rate > 1:
        raise ValueError(f"sample_rate is {rate}, expected a probability above 0, at most 1")
    return rate
