"""The demo's second part: how much of each model's accuracy survives an attacker who may change every pixel a little.

The attack is projected gradient descent in the Linf ball (Madry et al. 2018). A ball holds every smaller one, so an image
that was fooled at a small eps counts as fooled at all larger ones and is not attacked again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aisec_fast import adversarial

from .training import SEED, Digits, Run

NORM = "linf"


@dataclass
class Attack:
    """One model under attack; images of the test set in the order of ``digits``.

    examples: for each image the adversarial one that fooled the model first, else the image itself: ``[n, 1, 8, 8]``.
    fooled_at: the eps at which that happened: 0 if the model was wrong from the start, infinite if it never was: ``[n]``.
    robust_accuracy: eps -> share of images that the model still tells right.
    """

    run: Run
    digits: Digits
    examples: Tensor = field(init=False)
    fooled_at: Tensor = field(init=False)
    robust_accuracy: dict[float, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Note what is wrong without any attack."""
        self.examples = self.digits.test_images.clone()
        wrong = self.run.predict(self.examples) != self.digits.test_labels
        self.fooled_at = torch.where(wrong, 0.0, torch.inf)
        self._note(0.0)

    def strengthen(self, eps: float, steps: int) -> None:
        """Attack, with this eps, what has withstood all smaller ones."""
        standing = self.fooled_at.isinf().nonzero().flatten()
        labels = self.digits.test_labels[standing]
        found = adversarial.pgd(
            self.run.model,
            self.digits.test_images[standing],
            labels,
            eps=eps,
            steps=steps,
            norm=NORM,
            early_stop=True,
            seed=SEED,
        )
        fooled = self.run.predict(found) != labels
        self.examples[standing[fooled]] = found[fooled]
        self.fooled_at[standing[fooled]] = eps
        self._note(eps)

    def _note(self, eps: float) -> None:
        self.robust_accuracy[eps] = self.fooled_at.isinf().float().mean().item()


def attack(plain: Attack, private: Attack, eps: tuple[float, ...], steps: int) -> Iterator[float]:
    """Attack both with growing eps; yields each when both are done, 0 (no attack) first."""
    yield 0.0
    for radius in eps:
        plain.strengthen(radius, steps)
        private.strengthen(radius, steps)
        yield radius


def worst_digits(plain: Attack, private: Attack, count: int) -> list[dict[str, Any]]:
    """The images that fooled the private model with the smallest change, as plain values for the page."""
    fooled = private.fooled_at.clone()
    fooled[fooled == 0] = torch.inf  # wrong without any attack: no adversarial digit
    order = fooled.argsort(stable=True)[:count]
    said = {"plain": plain.run.predict(private.examples), "private": private.run.predict(private.examples)}
    return [
        {
            "label": int(private.digits.test_labels[i]),
            "original": private.digits.test_images[i, 0].tolist(),
            "adversarial": private.examples[i, 0].tolist(),
            "eps": float(fooled[i]),
            **{name: int(answers[i]) for name, answers in said.items()},
        }
        for i in order.tolist()
        if fooled[i].isfinite()
    ]
