"""From guesses to privacy: which claims ``correct`` of ``guesses`` right guesses about ``canaries`` fair coins refute.

Both tests bound ``P[C >= v]``, the probability of at least ``v`` right guesses, for every mechanism that keeps a claim;
docs/audit.md derives them. A claim is refuted at ``level`` if the bound is below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_LARGEST = 64.0  # epsilon; 2^-64 is below every level that can be asked for
_TOLERANCE = 2.0**-20  # of the search for epsilon


class Curve:
    """Pairs (epsilon, delta) that a mechanism claims all at once, as lines above its trade-off curve.

    For every event ``P <= e^epsilon Q + delta`` and, from the complement with the roles exchanged,
    ``P <= e^-epsilon Q + 1 - e^-epsilon (1 - delta)``.
    """

    def __init__(self, epsilons: Floats, deltas: Floats) -> None:
        falling = np.exp(-epsilons)
        self._slopes = np.concatenate([np.exp(epsilons), falling])
        self._heights = np.concatenate([deltas, 1.0 - falling * (1.0 - deltas)])

    def least(self, p: float) -> float:
        """The least ``Q`` that the claim allows an event of probability ``p`` on the other side."""
        return max(0.0, float(((p - self._heights) / self._slopes).max()))


def refutes(curve: Curve, canaries: int, guesses: int, correct: int, level: float) -> bool:
    """True if no mechanism within ``curve`` has ``P[C >= correct]`` of ``level`` or more (section 3)."""
    tail = level  # a lower bound of P[C >= k], from k = correct downwards
    tails = level  # the sum of these bounds from k upwards
    for k in range(correct, 0, -1):
        mean = (k - 1) * tail + tails  # of C on the event C >= k
        needed = canaries * curve.least(mean / canaries)
        tail = max(tail, (needed + tails) / (guesses - k + 1))
        if tail > 1.0:
            return True
        tails += tail
    return False


def binomial_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """An upper bound of ``P[C >= correct]`` for every (epsilon, delta)-DP mechanism (section 4)."""
    k = np.arange(guesses + 1)
    log_p, log_not = -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
    log_factorials = np.array([math.lgamma(i + 1) for i in range(guesses + 1)])
    masses = np.exp(log_factorials[-1] - log_factorials - log_factorials[::-1] + k * log_p + k[::-1] * log_not)
    # Lifting a run from k right guesses to `correct` takes correct - k accidents, of which there are canaries * delta.
    below = masses[:correct][::-1]
    costs = np.cumsum(np.arange(1, correct + 1) * below)
    budget = canaries * delta
    whole = int(np.searchsorted(costs, budget))
    lifted = float(below[:whole].sum())
    if whole < correct:
        lifted += (budget - (float(costs[whole - 1]) if whole else 0.0)) / (whole + 1)
    return min(1.0, float(masses[correct:].sum()) + lifted)


def epsilon_at_delta(canaries: int, guesses: int, correct: int, delta: float, level: float) -> float:
    """The largest epsilon for which (epsilon, delta)-DP is refuted; 0 if none is."""

    def refuted(epsilon: float) -> bool:
        if binomial_p_value(canaries, guesses, correct, epsilon, delta) < level:
            return True
        return refutes(Curve(np.array([epsilon]), np.array([delta])), canaries, guesses, correct, level)

    return largest(refuted, 0.0, _LARGEST)


def largest(refuted: Callable[[float], bool], low: float, high: float) -> float:
    """The largest value in ``low`` to ``high`` that is known to be refuted, by bisection; ``low`` if none is."""
    if not refuted(low):
        return low
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
