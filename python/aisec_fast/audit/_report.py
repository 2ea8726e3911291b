"""What an audit finds, and the search for it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .. import accounting
from . import _bounds

_POINTS = 40  # of a claimed curve that are looked at
_LARGEST_SCALE = 64.0  # of the noise: with so much of it there is hardly anything to refute
_STEP = 1.02  # to which the search for the noise goes
_MARGIN = 1e-9  # of a probability, for the rounding of the bounds


@dataclass(frozen=True)
class AuditReport:
    """A lower bound on the privacy loss of one training, with its confidence.

    ``passed`` says that the training does not contradict its claim. That is no proof of the claim: an audit can refute, never
    prove. What is refuted is refuted with ``confidence``: a training that keeps its claim fails with a probability of at
    most ``1 - confidence``, over the coins of the audit and the randomness of the training.

    Attributes:
        epsilon_lower: lower bound on epsilon at ``delta``. It is the claim at ``delta`` for the least noise that is refuted
            as a whole (all pairs of epsilon and delta at once), or ``epsilon_lower_any`` where that is more. It supposes
            that the training is like the one accounted, with the noise all that may differ.
        epsilon_lower_any: lower bound on epsilon at ``delta``, for any training at all; smaller.
        claimed: epsilon at ``delta`` of all that the engine has booked; infinite without noise.
        passed: False if the claim is refuted.
        delta: of all epsilons here.
        confidence: of both bounds together and of ``passed``.
        canaries: number of coins.
        guesses: how many canaries were guessed to be members or not; the others were left open.
        correct: right guesses among them.
        steps: releases that were seen.
    """

    epsilon_lower: float
    epsilon_lower_any: float
    claimed: float
    passed: bool
    delta: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    steps: int

    def __str__(self) -> str:
        """The report for a person."""
        claimed = "infinite (no noise)" if math.isinf(self.claimed) else f"{self.claimed:.4g}"
        verdict = (
            "not contradicted (which proves nothing)" if self.passed else "REFUTED: the training leaks more than this"
        )
        return (
            f"epsilon  at least {self.epsilon_lower:.4g} at delta {self.delta:g}, confidence {self.confidence:.4g}\n"
            f"         at least {self.epsilon_lower_any:.4g} whatever the training was\n"
            f"claim    {claimed}: {verdict}\n"
            f"guesses  {self.correct} of {self.guesses} right, {self.canaries} canaries, {self.steps} steps"
        )


def report(
    spent: Mapping[tuple[float, float], int],
    *,
    canaries: int,
    guesses: int,
    correct: int,
    steps: int,
    delta: float,
    confidence: float,
) -> AuditReport:
    """What ``correct`` right guesses say of a training that was booked as ``spent``."""
    level = (1.0 - confidence) * (1.0 - _MARGIN)
    any_training = _bounds.epsilon_at_delta(canaries, guesses, correct, delta, level)
    claimed = accounting.epsilon_of(spent, delta)
    lower, passed = any_training, any_training <= claimed
    if math.isfinite(claimed):

        @functools.cache
        def refuted(scale: float) -> bool:
            return _bounds.refutes(_curve(_scaled(spent, scale)), canaries, guesses, correct, level)

        scale = _least_refuted(refuted)
        if scale is not None:
            lower = max(lower, accounting.epsilon_of(_scaled(spent, scale), delta))
        passed = passed and not refuted(1.0)
    return AuditReport(
        epsilon_lower=lower,
        epsilon_lower_any=any_training,
        claimed=claimed,
        passed=passed,
        delta=delta,
        confidence=confidence,
        canaries=canaries,
        guesses=guesses,
        correct=correct,
        steps=steps,
    )


def _scaled(spent: Mapping[tuple[float, float], int], scale: float) -> dict[tuple[float, float], int]:
    """The same account with ``scale`` times the noise."""
    return {(noise_multiplier * scale, rate): times for (noise_multiplier, rate), times in spent.items()}


def _curve(spent: Mapping[tuple[float, float], int]) -> _bounds.Curve:
    points = np.array(accounting.curve_of(spent, _POINTS))
    return _bounds.Curve(points[:, 0], points[:, 1])


def _least_refuted(refuted: Callable[[float], bool]) -> float | None:
    """The least scale of the noise that is refuted, up to one part in fifty; None if none is."""
    high = 1.0
    while not refuted(high):
        high *= 2.0
        if high > _LARGEST_SCALE:
            return None
    low = high / 2.0
    while refuted(low):
        low, high = low / 2.0, low
    while high > low * _STEP:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high
