"""Attacks on models, inside an exact L-infinity, L2, L1 or L0 ball, and their evaluation.

    x_adv = adversarial.pgd(model, x, y, eps=8 / 255, steps=40)
    report = adversarial.evaluate(model, x, y, eps=8 / 255)

Every returned sample keeps ``|x_adv - x| <= eps``, evaluated in float64, and lies in the box ``clip``, exactly. The model
is a torch module that gives logits, or a :class:`GradientModel` around functions of numpy or cupy arrays. Nothing of
the model is changed: docs/adversarial-attacks.md has the details, docs/adversarial.md the kernels' contract.

_arguments    what every attack checks;  _box, _ball  the box; norm and eps, bound to a backend's kernel;  _start  random starts
_pgd          projected gradient descent;  _runs  its loop: runs stacked, samples that leave the batch once they are fooled
_apgd         Auto-PGD;  _apgd_rules  its rules for each norm;  _square  Square Attack;  _draws  their random numbers, one generator for each sample
_evaluate     ``evaluate``: each attack of an ensemble (_ensembles) on what is left;  _state  checkpoints;  _report  what it found
_masking      signs of masked gradients;  _rows_seen  counts of what models are given
_step         ``pgd_step``, the fused step for loops of your own
_models       ``GradientModel``, and what PGD needs of any model;  _torch_model  the same of a torch module
_working_copy  batch norms folded into convolutions;  _activations  how many rows to compute at once
_graphs       gradient passes that are recorded once and replayed, by _cuda_graphs of the package
_losses       cross-entropy, margin, DLR
_fab          the smallest change, by projections onto linearised boundaries (_hyperplane);  _deepfool, _ddn, _fmn, _cw  others that look for it
_fgsm         sign steps from the sample itself;  _randomness, _sklearn  models made ready for attacks
_minimal      what the searches for the smallest change share;  _distances  the norms
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
    from ._cw import cw
    from ._ddn import ddn
    from ._deepfool import deepfool
    from ._distances import distances
    from ._evaluate import evaluate
    from ._fab import fab
    from ._fgsm import bim, fgsm, mifgsm
    from ._fmn import fmn
    from ._masking import GradientMaskingWarning
    from ._randomness import Averaged, StraightThrough
    from ._report import Report
    from ._sklearn import from_sklearn, sklearn_labels
    from ._square import square

__all__ = [
    "Averaged",
    "GradientMaskingWarning",
    "GradientModel",
    "Report",
    "StraightThrough",
    "apgd",
    "bim",
    "cw",
    "ddn",
    "deepfool",
    "distances",
    "evaluate",
    "fab",
    "fgsm",
    "fmn",
    "from_sklearn",
    "mifgsm",
    "pgd",
    "pgd_step",
    "sklearn_labels",
    "square",
]

_HOMES = {  # what is loaded with its first use: most of it needs torch
    "Averaged": "_randomness",
    "GradientMaskingWarning": "_masking",
    "Report": "_report",
    "StraightThrough": "_randomness",
    "apgd": "_apgd",
    "bim": "_fgsm",
    "cw": "_cw",
    "ddn": "_ddn",
    "deepfool": "_deepfool",
    "distances": "_distances",
    "evaluate": "_evaluate",
    "fab": "_fab",
    "fgsm": "_fgsm",
    "fmn": "_fmn",
    "from_sklearn": "_sklearn",
    "mifgsm": "_fgsm",
    "sklearn_labels": "_sklearn",
    "square": "_square",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
