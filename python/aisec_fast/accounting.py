"""Privacy accounting of DP-SGD: how much epsilon a run costs, and how much noise a budget asks for.

The numbers are dp-accounting's (Google). Neighbouring data sets differ by one record replaced by a *zero contribution
in the same slot* (its ``REPLACE_SPECIAL``), the relation that ``aisec_fast.privacy`` provides; epsilon is the same
number as under add-or-remove-one. A run is a multiset of *mechanisms* ``(noise_multiplier, sample_rate)``: Gaussian
noise of standard deviation ``noise_multiplier`` times the sensitivity, on a batch that holds each record
independently with probability ``sample_rate``. Bounds are those of exact arithmetic: rounding inside dp-accounting can
take some parts in 10^11 from an epsilon.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from . import _checks
from ._errors import BudgetError

if TYPE_CHECKING:
    from dp_accounting import PrivacyAccountant

ACCOUNTANTS = ("pld", "rdp")
_ALIASES = {"prv": "pld"}  # Opacus's name of its numerical accountant
_TOLERANCE = 1e-4  # relative width of the bracket at which the search for a noise multiplier stops
_LARGEST = 1e6  # noise multiplier that the search tries
_LEAST = 1e-100  # what is below counts as no noise: its square would leave float64
_MOST_RUNS = 2**40  # of one mechanism that are told apart
# Rounding of one run's RDP, divided by the order: of the series for an order, dp-accounting leaves out terms below
# e^-30 of the sum, and the least order is 1.1.
_ROUNDING = 2.0**-40
_LITTLE = 2.0**-20  # loss of one run beside which that is not nothing
_INTERVAL = 1e-4  # of the losses that the tight accountant tells apart
_FINE_UP_TO = 20.0  # epsilon, by RDP, up to which it does; above, intervals grow in proportion
_NOT_TIGHT_ABOVE = 1e6  # epsilon, by RDP, that says all there is to say


def get_epsilon(
    *, noise_multiplier: float, sample_rate: float, steps: int, delta: float, accountant: str = "pld"
) -> float:
    """Return epsilon at ``delta`` after ``steps`` steps of DP-SGD with Poisson sampling.

    Args:
        noise_multiplier: noise standard deviation / clipping norm, >= 0; 0 costs infinite epsilon.
        sample_rate: probability with which each record enters a batch, in (0, 1].
        steps: number of steps, >= 0.
        delta: in (0, 1).
        accountant: "pld" (tight) or "rdp" (looser, faster); "prv" means "pld". An epsilon above about 20 is bounded on a
            coarser grid, one above 10^6 by RDP: the tight accountant would take minutes and gigabytes for it.

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
    if any(noise_multiplier < _LEAST for noise_multiplier, _ in used):
        return math.inf
    return _epsilon(used, delta, method)


def curve_of(mechanisms: Mapping[tuple[float, float], int], points: int) -> list[tuple[float, float]]:
    """Pairs (epsilon, delta) that all hold for the composition at once, by the tight accountant.

    They go from epsilon 0 to where delta is 1e-9, in equal steps. Every mechanism of ``mechanisms`` has noise.
    """
    loose = float(_composed(mechanisms, "rdp").get_epsilon(1e-9)) if _may_be_large(mechanisms) else None
    ledger = _composed(mechanisms, "pld", _interval(loose))
    last = float(ledger.get_epsilon(1e-9))
    epsilons = [last * i / (points - 1) for i in range(points)]
    return [(epsilon, float(ledger.get_delta(epsilon))) for epsilon in epsilons]


def _epsilon(mechanisms: Mapping[tuple[float, float], int], delta: float, method: str) -> float:
    # Of runs that lose little, or of very many, roundings may take all that there is, and RDP below 0 reads as no loss.
    rounded = sum(n for key, n in mechanisms.items() if n > _MOST_RUNS or (key[1] < 1 and _spread(*key) < _LITTLE))

    def by_rdp() -> float:
        charged = mechanisms
        if rounded:
            # One more run of Gaussian noise, whose RDP is the order times what is charged, makes up for them.
            charged = Counter(mechanisms) + Counter({(math.sqrt(0.5 / _ROUNDING / rounded), 1.0): 1})
        return float(_composed(charged, "rdp").get_epsilon(delta))

    loose = by_rdp() if method == "rdp" or _may_be_large(mechanisms) else None
    if loose is not None and (method == "rdp" or loose > _NOT_TIGHT_ABOVE or max(mechanisms.values()) > _MOST_RUNS):
        return loose
    tight = float(_composed(mechanisms, "pld", _interval(loose)).get_epsilon(delta))
    if math.isinf(tight) and loose is None:  # a delta below what the tight accountant leaves out of the tails
        loose = by_rdp()
    return tight if loose is None else min(loose, tight)  # both are upper bounds, on any grid


def _may_be_large(mechanisms: Mapping[tuple[float, float], int]) -> bool:
    """False where epsilon is far below what the tight accountant can do on its finest grid.

    The sum of many small losses is nearly normal, of variance ``spread``. The estimate decides on time and memory alone.
    """
    spread = sum(times * _spread(*mechanism) for mechanism, times in mechanisms.items())
    return spread > 4.0 or max(mechanisms.values()) > _MOST_RUNS


def _spread(noise_multiplier: float, rate: float) -> float:
    """The variance of the loss of one run, if that is little; twice its RDP divided by the order, too."""
    return rate**2 * math.expm1(min(noise_multiplier**-2.0, 700.0))


def _interval(loose: float | None) -> float:
    """The width of the tight accountant's grid where RDP says ``loose`` (None: little)."""
    return _INTERVAL if loose is None else _INTERVAL * max(1.0, loose / _FINE_UP_TO)


def _composed(
    mechanisms: Mapping[tuple[float, float], int], method: str, interval: float = _INTERVAL
) -> PrivacyAccountant:
    try:
        import dp_accounting
    except ModuleNotFoundError as error:
        message = f"{error}; epsilon needs dp-accounting: pip install '.[privacy]' in a checkout of aisec_fast"
        raise ModuleNotFoundError(message, name=error.name) from error

    ledger = _accountant(method, interval)
    for (noise_multiplier, sample_rate), times in mechanisms.items():
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise_multiplier)
        if sample_rate < 1.0:
            event = dp_accounting.PoissonSampledDpEvent(sample_rate, event)
        ledger.compose(event, times)
    return ledger


class Ledger:
    """What has been released: ``spent`` maps mechanisms ``(noise_multiplier, sample_rate)`` to how often each ran."""

    def __init__(self) -> None:
        """Nothing has been released."""
        self.spent: Counter[tuple[float, float]] = Counter()

    def add(self, noise_multiplier: float, sample_rate: float, times: int = 1) -> None:
        """Book ``times`` runs of a mechanism."""
        self.spent[noise_multiplier, sample_rate] += times

    def epsilon(self, delta: float, accountant: str = "pld") -> float:
        """Epsilon at ``delta`` of everything booked."""
        return epsilon_of(self.spent, delta, accountant)


class Budget:
    """A limit of epsilon at delta, and the account of what was spent of it.

    Give it to :class:`aisec_fast.privacy.PrivacyEngine`, whose loaders then end before the limit would be exceeded; or
    keep it by hand: ``if budget.allows(noise_multiplier, sample_rate): budget.spend(noise_multiplier, sample_rate)``.
    """

    def __init__(self, epsilon: float, delta: float, *, accountant: str = "pld") -> None:
        """Nothing has been spent.

        Args:
            epsilon: the limit, above 0.
            delta: in (0, 1).
            accountant: "pld" (tight) or "rdp" (looser, faster); "prv" means "pld".

        Raises:
            TypeError, ValueError: an argument out of its range, named.
        """
        self.limit = _checks.positive(epsilon, "epsilon")
        self.delta = _checks.probability(delta, "delta")
        self.accountant = accountant_name(accountant)
        self.ledger = Ledger()
        # A mechanism, what was spent otherwise, and the number of its runs up to which the limit is known to hold; the
        # last number is the first known not to hold, or 0.
        self._known: tuple[tuple[float, float], Counter[tuple[float, float]], int, int] | None = None

    @property
    def epsilon(self) -> float:
        """Epsilon spent so far, at ``delta``."""
        return self.ledger.epsilon(self.delta, self.accountant)

    @property
    def remaining(self) -> float:
        """What is left of the limit; epsilons of different mechanisms do not simply add, so this is an upper bound."""
        return max(0.0, self.limit - self.epsilon)

    def allows(self, noise_multiplier: float, sample_rate: float, times: int = 1) -> bool:
        """True if ``times`` more runs of a mechanism stay within the limit.

        Args:
            noise_multiplier: noise standard deviation / clipping norm, >= 0; 0 is never allowed.
            sample_rate: probability with which each record enters a batch, in (0, 1].
            times: number of runs, >= 1.
        """
        mechanism = _checks.not_negative(noise_multiplier, "noise_multiplier"), _rate(sample_rate)
        wanted = self.ledger.spent[mechanism] + _checks.whole(times, "times", least=1)
        others = Counter({key: n for key, n in self.ledger.spent.items() if n and key != mechanism})
        if self._known is None or self._known[:2] != (mechanism, others):
            known, broken = 0, 0
        else:
            known, broken = self._known[2:]
            if wanted > known and not broken:  # the same mechanism again: find out once how far it may go
                known, broken = self._reach(mechanism, others, known, wanted)
        if not broken and wanted > known:
            known, broken = (wanted, 0) if self._holds(mechanism, others, wanted) else (known, wanted)
        self._known = mechanism, others, known, broken
        return wanted <= known

    def _reach(
        self, mechanism: tuple[float, float], others: Counter[tuple[float, float]], holds: int, start: int
    ) -> tuple[int, int]:
        """The largest number of runs that hold, and the next one; the limit holds for ``holds``, ``start`` is open."""

        @functools.cache
        def excess(runs: int, method: str) -> float:
            """log(epsilon / limit): grows with the runs, nearly a straight line in their logarithm."""
            epsilon = epsilon_of({**others, mechanism: runs}, self.delta, method)
            return math.log(max(epsilon, 1e-300) / self.limit)

        def last_within(method: str, low: int, guess: int) -> int:
            """The largest number of runs with no excess, from ``low`` on; a good guess saves work."""
            high, turn = 0, 0  # 0: none is known to exceed
            while high == 0 or high > low + 1:
                turn += 1
                value = excess(guess, method)
                low, high = (guess, high) if value <= 0 else (low, guess)
                if low > _MOST_RUNS:  # so cheap that the end does not matter
                    return low
                if high == 0:
                    guess = max(low + 1, math.ceil(low * (1.1 if method != "rdp" else 4.0)))
                elif turn % 3 == 0 or low < 1:
                    guess = (low + high) // 2
                else:
                    at_low, at_high = excess(low, method), excess(high, method)
                    share = (
                        -at_low / (at_high - at_low) if math.isfinite(at_high - at_low) and at_high > at_low else 0.5
                    )
                    guess = round(low * (high / low) ** min(max(share, 0.0), 1.0))
                guess = max(guess, low + 1) if high == 0 else min(max(guess, low + 1), high - 1)
            return low

        # RDP is quick and never far off: it finds the neighbourhood.
        reach = last_within("rdp", holds, start)
        if self.accountant != "rdp":
            reach = last_within(self.accountant, holds, max(reach, start))
        return (reach, 0) if reach > _MOST_RUNS else (reach, reach + 1)

    def _holds(self, mechanism: tuple[float, float], others: Counter[tuple[float, float]], runs: int) -> bool:
        return epsilon_of({**others, mechanism: runs}, self.delta, self.accountant) <= self.limit

    def spend(self, noise_multiplier: float, sample_rate: float, times: int = 1) -> None:
        """Book ``times`` runs of a mechanism.

        Raises:
            BudgetError: they would exceed the limit; nothing is booked then.
            TypeError, ValueError: as :meth:`allows`.
        """
        if not self.allows(noise_multiplier, sample_rate, times):
            raise BudgetError(
                f"{times} more of noise multiplier {noise_multiplier} at sample rate {sample_rate} would exceed the "
                f"budget of epsilon {self.limit} at delta {self.delta} (spent: {self.epsilon:.4g})"
            )
        self.ledger.add(float(noise_multiplier), float(sample_rate), times)

    def __repr__(self) -> str:
        """The limit."""
        return f"Budget(epsilon={self.limit}, delta={self.delta}, accountant={self.accountant!r})"


def _accountant(method: str, interval: float) -> PrivacyAccountant:
    import dp_accounting
    from dp_accounting import pld, rdp

    logging.getLogger("absl").addFilter(_worth_saying)  # adding it again does nothing
    relation = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    if method == "rdp":
        return rdp.RdpAccountant(neighboring_relation=relation)
    return pld.PLDAccountant(neighboring_relation=relation, value_discretization_interval=interval)


def _worth_saying(record: logging.LogRecord) -> bool:
    """Not worth it: that RDP leaves out an order whose series is long. The others give an upper bound as well."""
    return not str(record.msg).startswith("_compute_log_a_frac failed to converge")


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
