"""Whether samples fool the model: the one place where an attack's claim becomes a verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ._arguments import Attacked


def own_logits(victim: Attacked, x: Tensor) -> Tensor:
    """Logits of the user's own module, without a gradient."""
    return victim.model.own_logits(x)


def claims(logits: Any, y: Tensor) -> Tensor:
    """Whether the largest logit is not the label's, ``[B]`` of bool, on the device."""
    flags: Tensor = logits.argmax(1) != y
    return flags


def confirmed(victim: Attacked, adv: Tensor, y: Tensor) -> Tensor:
    """Which of these samples, all of them claimed to fool the model, do fool the user's own module: ``[B]`` of bool."""
    import torch

    return victim.model.confirmed(torch.ones_like(y, dtype=torch.bool), adv, y)


def verdicts(victim: Attacked, adv: Tensor, y: Tensor) -> Tensor:
    """Whether each sample fools the user's own module in this very batch: ``[B]`` of bool, one forward pass."""
    return claims(own_logits(victim, adv), y)
