"""Privacy accounting of DP-SGD: how much epsilon a run costs, and how much noise a budget asks for.

The numbers are dp-accounting's (Google). Neighbouring data sets differ by one record replaced by a *zero contribution in the
same slot* (its `REPLACE_SPECIAL`), the relation that `aisec_fast.privacy` provides; epsilon is the same number as under
add-or-remove-one. A run is a multiset of *mechanisms* `(noise_multiplier, sample_rate)`: Gaussian noise of standard deviation
`noise_multiplier` times the sensitivity, on a batch that holds each record independently with probability `sample_rate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from aisec_fast import _checks

if TYPE_CHECKING:
    from dp_accounting import PrivacyAccountant

ACCOUNTANTS = ("pld", "rdp")
_ALIASES = {"prv": "pld"}  # Opacus's name of its numerical accountant
_TOLERANCE = 1e-4  # relative width of the bracket at which the search for a noise multiplier stops


def get_epsilon(
    *, noise_multiplier: float, sample_rate: float, steps: int, delta: float, accountant: str = "pld"
) -> float:
    """Return epsilon at `delta` after `steps` steps of DP-SGD with Poisson sampling.

    noise_multiplier: noise standard deviation / clipping norm, >= 0; 0 costs infinite epsilon.
    sample_rate: probability with which each record enters a batch, in (0, 1].
    accountant: "pld" (tight), "rdp" (looser, faster); "prv" means "pld".

    Raises TypeError or ValueError naming the argument.
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
    """Return the smallest noise multiplier, up to 0.01 %, whose epsilon at `target_delta` is at most `target_epsilon`.

    Give either `steps` or `epochs` (one epoch is 1 / sample_rate steps, the total rounded up). The returned value has been
    checked: `get_epsilon` of it never exceeds the target.

    Raises TypeError or ValueError naming the argument; ValueError if no multiplier below 10^6 is enough.
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

    def epsilon(noise_multiplier: float, method: str) -> float:
        return epsilon_of({(noise_multiplier, sample_rate): number}, target_delta, method)

    method = accountant_name(accountant)
    high = 1.0
    while epsilon(high, "rdp") > target_epsilon:
        high *= 2.0
        if high > 1e6:
            raise ValueError(
                f"target_epsilon {target_epsilon} at target_delta {target_delta} needs a noise multiplier above 1e6"
            )
    low = high / 2.0
    while epsilon(low, "rdp") <= target_epsilon:
        low, high = low / 2.0, low
    low, high = _narrow(low, high, target_epsilon, lambda value: epsilon(value, "rdp"))
    if method == "rdp":
        return high
    # The tight accountant needs less noise: walk down from the RDP answer, so that it never runs far below the target,
    # where it is slow.
    while epsilon(high, method) > target_epsilon:
        high *= 1.05
    low = 0.95 * high
    while epsilon(low, method) <= target_epsilon:
        low, high = 0.95 * low, low
    return _narrow(low, high, target_epsilon, lambda value: epsilon(value, method))[1]


def _narrow(low: float, high: float, target: float, epsilon: Callable[[float], float]) -> tuple[float, float]:
    """Bisect until high/low <= 1 + tolerance; epsilon(low) > target >= epsilon(high) holds all the way."""
    while high > low * (1.0 + _TOLERANCE):
        middle = math.sqrt(low * high)
        if epsilon(middle) <= target:
            high = middle
        else:
            low = middle
    return low, high


def epsilon_of(mechanisms: Mapping[tuple[float, float], int], delta: float, accountant: str = "pld") -> float:
    """Return epsilon at `delta` of the composition of `{(noise_multiplier, sample_rate): how often}`."""
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


def accountant_name(accountant: str) -> str:
    """Return "pld" or "rdp"; raises ValueError for anything else."""
    name = _ALIASES.get(accountant, accountant) if isinstance(accountant, str) else accountant
    if name not in ACCOUNTANTS:
        raise ValueError(f"accountant must be one of {', '.join(ACCOUNTANTS)} or prv (meaning pld), got {accountant!r}")
    return name


def _rate(sample_rate: float) -> float:
    rate = _checks.positive(sample_rate, "sample_rate")
    if rate > 1:
        raise ValueError(f"sample_rate is {rate}, expected a probability above 0, at most 1")
    return rate
