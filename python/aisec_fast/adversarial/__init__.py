"""Attacks on models: projected gradient descent inside an exact L-infinity, L2, L1 or L0 ball.

    x_adv = adversarial.pgd(model, x, y, eps=8 / 255, steps=40)

Every returned sample keeps ``|x_adv - x| <= eps``, evaluated in float64, and lies in the box ``clip``, exactly. The model
is a torch module that gives logits, or a :class:`GradientModel` around functions of numpy or cupy arrays. Nothing of
the model is changed: docs/adversarial-attacks.md has the details, docs/adversarial.md the kernels' contract.

_pgd          the attack: restarts, steps, samples that leave the batch once they are fooled
_apgd         Auto-PGD;  _square  Square Attack;  _draws  their random numbers, one generator for each sample
_evaluate     ``evaluate``: each attack of an ensemble (_ensembles) on what is left;  _state  checkpoints;  _report  what it found
_masking      signs of masked gradients;  _verdicts  who fools the model;  _rows_seen  counts of what models are given
_step         ``pgd_step``, the fused step for loops of your own
_ball         norm, eps and box: checked, rounded, and bound to a backend's kernel
_start        random starts
_models       ``GradientModel``, and what the attack needs of any model;  _torch_model  the same of a torch module
_losses       cross-entropy, margin, DLR
_watch        NaN and infinity in logits and gradients;  _progress  callbacks and bar;  _rows  rows of arrays of any library
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._models import GradientModel
from ._pgd import pgd
from ._step import pgd_step

if TYPE_CHECKING:
    from ._apgd import apgd
    from ._evaluate import evaluate
    from ._masking import GradientMaskingWarning
    from ._report import Report
    from ._square import square

__all__ = ["GradientMaskingWarning", "GradientModel", "Report", "apgd", "evaluate", "pgd", "pgd_step", "square"]

_HOMES = {  # what is loaded with its first use
    "GradientMaskingWarning": "_masking",
    "Report": "_report",
    "apgd": "_apgd",
    "evaluate": "_evaluate",
    "square": "_square",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
