"""Signs that gradients are masked and that robustness is overstated.

Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security (2018); Carlini et al., On Evaluating
Adversarial Robustness (2019), section 5; Croce et al., Evaluating the Adversarial Robustness of Adaptive Test-time Defenses
(2022), and the checks of AutoAttack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from . import _apgd
from ._ball import Ball
from ._ensembles import Job, rows_of

if TYPE_CHECKING:
    from torch import Tensor


class GradientMaskingWarning(UserWarning):
    """A robust accuracy may be too high: something that a sound evaluation rules out was seen."""


@dataclass(frozen=True)
class Finding:
    """One sign. ``code`` is a fixed name of the check, ``message`` says what was seen and what to do."""

    code: str
    message: str


_SAMPLES = 256  # that the costly checks take
_ALIKE = 1e-4  # largest distance of normalised logits of two passes: AutoAttack's threshold
_SQUARE_SHARE = 0.002  # of the samples, fooled by black-box attacks alone: AutoAttack's threshold
_FLAT_SHARE = 0.1  # of survivors whose loss never rose
_MORE_STEPS_SHARE = 0.01  # of survivors that five times the steps fool
_STARTS_SHARE = 0.02  # of the samples, between the best and the worst random starts
_WIDER, _ENOUGH = 3, 100  # a radius so many times as large must fool somebody of so many survivors
_EPS_SHARE = 0.05  # of samples whose highest loss falls as eps grows


def of_logits(logits: Tensor, again: Tensor, *, random_is_fine: bool) -> list[Finding]:
    """Logits of the first batch, twice: are they logits, and the same?"""
    found = []
    one, other = (values / (values.norm(dim=1, keepdim=True) + 1e-10) for values in (logits, again))
    differ = float((one - other).norm(dim=1).max()) if len(logits) else 0.0
    if not random_is_fine and (differ > _ALIKE or bool((logits.argmax(1) != again.argmax(1)).any())):
        found.append(
            Finding(
                "random_logits",
                f"two passes over the same samples gave different logits (normalised, by up to {differ:.2g}): the model "
                "draws random numbers in eval mode; attacks='rand' averages gradients over its draws",
            )
        )
    low, high = (float(bound) for bound in logits.aminmax()) if logits.numel() else (0.0, 0.0)
    if logits.numel() and low >= -1e-5 and high <= 1 + 1e-5 and float((logits.sum(1) - 1).abs().max()) < 1e-5:
        found.append(
            Finding(
                "probabilities",
                "the model gives probabilities, not logits: a softmax at the end makes gradients vanish; attack the logits",
            )
        )
    return found


def of_stages(
    samples: int, newly_fooled: Sequence[tuple[float, str, bool, int]], notes: Mapping[str, _apgd.Notes], open_: int
) -> list[Finding]:
    """What the attacks saw.

    Args:
        samples: in the whole evaluation.
        newly_fooled: eps, attack, whether it is a black box, and how many it fooled, in order.
        notes: of gradient attacks.
        open_: samples that no attack fooled.
    """
    found = []
    for name, note in notes.items():
        if note.zero_gradients:
            found.append(
                Finding(
                    "zero_gradients",
                    f"{name}: the gradient is zero everywhere for {note.zero_gradients} of {note.samples} samples: "
                    "saturated or non-differentiable parts hide it; attack the logits with 'apgd-t' or 'apgd-margin', or "
                    "replace such parts in the backward pass",
                )
            )
        if note.flat > max(2, _FLAT_SHARE * note.samples):
            found.append(
                Finding(
                    "loss_does_not_rise",
                    f"{name}: for {note.flat} of {note.samples} samples no step raised the loss above its start: gradients do "
                    "not point uphill",
                )
            )
    black_only, white = 0, set()  # eps at which gradient attacks have been
    for eps, _, black, count in newly_fooled:
        if not black:
            white.add(eps)
        elif eps in white:
            black_only += count
    if black_only > max(1, _SQUARE_SHARE * samples):
        found.append(
            Finding(
                "black_box_wins",
                f"black-box attacks fooled {black_only} of {samples} samples that the gradient attacks before them did not: "
                "gradients mislead; run more queries and restarts, and an attack made for this model",
            )
        )
    radii = sorted({eps for eps, *_ in newly_fooled})
    for smaller, larger in pairwise(radii):
        more = sum(count for eps, *_, count in newly_fooled if eps == larger)
        if larger >= _WIDER * smaller and not more and open_ >= _ENOUGH:
            found.append(
                Finding(
                    "eps_does_not_help",
                    f"no sample more was fooled at eps {larger:g} than at {smaller:g}, though {open_} are left: a larger ball "
                    "must help a sound attack",
                )
            )
    return found


def costly(job: Job, radii: Sequence[float], fooled_at: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[Finding]:
    """Checks that run attacks of their own, on at most 256 samples. ``job`` holds all samples."""
    right = np.flatnonzero(~(fooled_at == 0))[:_SAMPLES]
    eps = radii[0]
    open_ = np.flatnonzero(~(fooled_at <= eps))[:_SAMPLES]
    return [
        *(_unbounded(rows_of(job, right)) if len(right) else []),
        *(_more_steps(rows_of(job, open_), eps) if len(open_) else []),
        *(_starts(rows_of(job, right), eps) if len(right) else []),
        *(_loss_over_eps(rows_of(job, right), eps) if len(right) else []),
    ]


def _search(job: Job, ball: Ball, *, steps: int = 100, seed: int = 0, early_stop: bool = True) -> _apgd.Search:
    plan = _apgd.Plan(
        steps=steps,
        seed=job.seed + seed,
        max_rows=job.max_rows,
        early_stop=early_stop,
        larger_eps=job.ball.norm == "l1",
    )
    search = _apgd.Search(job.victim, ball, plan, numbers=job.numbers)
    search.run()
    return search


def _unbounded(job: Job) -> list[Finding]:
    ball = job.ball
    size = job.victim.x[0].numel()
    width = ball.high - ball.low if np.isfinite(ball.high - ball.low) else 1000 * ball.eps
    longest = {"linf": 1.0, "l2": size**0.5}.get(ball.norm, float(size)) * width
    left = int(np.count_nonzero(~_search(job, replace(ball, eps=longest)).fooled))
    if not left:
        return []
    return [
        Finding(
            "unbounded_eps",
            f"with eps {longest:g}, which allows any sample, {left} of {len(job.numbers)} samples still resist: a sound attack "
            "fools all of them",
        )
    ]


def _more_steps(job: Job, eps: float) -> list[Finding]:
    more = int(_search(job, replace(job.ball, eps=eps), steps=500).fooled.sum())
    if more <= max(1, _MORE_STEPS_SHARE * len(job.numbers)):
        return []
    return [
        Finding(
            "more_steps_help",
            f"500 steps of apgd-ce fooled {more} of {len(job.numbers)} samples that were left at eps {eps:g}: the attacks have "
            "not converged; run more steps and restarts",
        )
    ]


def _starts(job: Job, eps: float) -> list[Finding]:
    counts = [int(_search(job, replace(job.ball, eps=eps), seed=seed).fooled.sum()) for seed in range(1, 6)]
    spread = max(counts) - min(counts)
    if spread <= max(2, _STARTS_SHARE * len(job.numbers)):
        return []
    return [
        Finding(
            "starts_differ",
            f"five random starts of apgd-ce fooled from {min(counts)} to {max(counts)} of {len(job.numbers)} samples at eps "
            f"{eps:g}: the loss is rugged; run many restarts",
        )
    ]


def _loss_over_eps(job: Job, eps: float) -> list[Finding]:
    heights = [
        _search(job, replace(job.ball, eps=factor * eps), steps=20, early_stop=False).highest for factor in (0.5, 2.0)
    ]
    falls = int(np.count_nonzero(heights[1] < heights[0]))
    if falls <= max(1, _EPS_SHARE * len(job.numbers)):
        return []
    return [
        Finding(
            "loss_falls_with_eps",
            f"for {falls} of {len(job.numbers)} samples the highest loss at eps {2 * eps:g} is below that at {eps / 2:g}: "
            "gradients mislead",
        )
    ]
