"""Losses that an attack climbs, one value a sample: their sum's gradient at a sample then is that sample's own.

Each is a function of logits ``[B, classes]`` (float32 or float64) and labels ``[B]`` that grows as the label becomes less
likely. Untargeted attacks climb it at the true label, targeted attacks descend it at the target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``logsumexp(z) - z_y``: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (2018)."""
    return functional.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """``max_{j != y} z_j - z_y``, above 0 exactly where the label has lost: Carlini and Wagner, Towards Evaluating the
    Robustness of Neural Networks (2017)."""
    label = labels[:, None]
    others = logits.scatter(1, label, -torch.inf)
    return others.amax(1) - logits.gather(1, label)[:, 0]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """The margin over ``z_1 - z_3``, the distance from the largest to the third largest logit, so that scaling all logits
    changes nothing: the difference of logits ratio of Croce and Hein, Reliable Evaluation of Adversarial Robustness with
    an Ensemble of Diverse Parameter-free Attacks (2020). 1e-12 keeps ties from dividing by zero."""
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def target_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``z_t - z_y``, above 0 where the target class has overtaken the label."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


def target_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """``(z_t - z_y) / (z_1 - (z_3 + z_4) / 2)``: the targeted difference of logits ratio of Croce and Hein (2020)."""
    top = logits.topk(4, dim=1).values
    return target_margin(logits, labels, targets) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def target_cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001 - as the others
    """``z_t - logsumexp(z)``: 0 where the model is sure of the target class."""
    return -cross_entropy(logits, targets)


def target_margin_of(logits: Tensor, pairs: Tensor) -> Tensor:
    """:func:`target_margin` of labels and targets side by side, ``[B, 2]``."""
    return target_margin(logits, *pairs.unbind(1))


def target_dlr_of(logits: Tensor, pairs: Tensor) -> Tensor:
    """:func:`target_dlr` of labels and targets side by side, ``[B, 2]``."""
    return target_dlr(logits, *pairs.unbind(1))


def likeliest_others(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The ``count`` classes (at most all) with the largest logits that are not the label, likeliest first: ``[B, count]``."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


class Loss(NamedTuple):
    """A loss, the same for one target class, and the number of classes without which they have no meaning."""

    values: Callable[[Tensor, Tensor], Tensor]
    descended: Callable[[Tensor, Tensor], Tensor]  # the same with its sign turned
    target_values: Callable[[Tensor, Tensor, Tensor], Tensor]
    least_classes: int
    least_classes_for_targets: int


LOSSES = {
    "ce": Loss(cross_entropy, lambda z, y: -cross_entropy(z, y), target_cross_entropy, 2, 2),
    "margin": Loss(margin, lambda z, y: -margin(z, y), target_margin, 2, 2),
    "dlr": Loss(dlr, lambda z, y: -dlr(z, y), target_dlr, 3, 4),
}
