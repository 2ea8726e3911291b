"""What Auto-PGD steps along, and what it changes at checkpoints: the rules for L-infinity and L2, and those for L1.

Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks (2020),
arXiv:2003.01690, section 3; and Mind the box: l1-APGD for sparse adversarial attacks on image classifiers (2021),
arXiv:2103.01208, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from . import _rows

MOMENTUM = 0.75
RHO = 0.75  # the share of steps of a window that must raise the loss, or the step size is halved


@dataclass
class State:
    """Rows under attack: a sample's run, with all that the rules remember of it."""

    owner: Tensor  # [R], which sample of the batch
    run: Tensor  # [R], which of the runs that share the batch
    x: Tensor  # [R, ...]
    adv: Tensor
    previous: Tensor
    best: Tensor
    gradient: Tensor
    best_gradient: Tensor
    y: Tensor  # [R]
    labels: Tensor  # as the loss takes them: [R], or [R, 2] with the target beside y
    step_size: Tensor
    loss: Tensor
    best_loss: Tensor
    best_fools: Tensor
    flat: Tensor  # whether no step has raised the loss above that of its start
    rises: Tensor  # steps since the last checkpoint that raised the loss
    checked_loss: Tensor  # highest loss at the last checkpoint
    halved: Tensor  # whether the step size was halved there
    checked_support: Tensor  # values that the best point changes, at the last checkpoint
    moved: Tensor  # values that a step changes; need not be whole

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name).index_select(0, rows))

    def go_back(self, rows: Tensor) -> None:
        """Let these rows (bool) go on from their best points."""
        wide = _rows.column(rows, self.adv)
        self.adv = torch.where(wide, self.best, self.adv)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)


class Rules(Protocol):
    """The rules of a norm."""

    momentum: float  # weight of the new step beside the last move; 1: there is none

    def begin(self, state: State, eps: float, *, chosen: bool) -> None:
        """Before the first step inside a ball of radius ``eps``; ``chosen``: the start's values were chosen to be changed."""

    def direction(self, state: State) -> Tensor:
        """What a step of length 1 adds: a new tensor like the gradient, which is not changed."""

    def checkpoints(self, steps: int) -> list[int]:
        """After how many steps of ``steps`` :meth:`adapt` is to be called."""

    def adapt(self, state: State, eps: float, window: int) -> None:
        """A checkpoint, after ``window`` steps since the last one."""


class Halving:
    """L-infinity and L2: momentum, and a step size that is halved at checkpoints that come ever faster."""

    momentum = MOMENTUM

    def __init__(self, norm: str) -> None:
        self._norm = norm

    def begin(self, state: State, eps: float, *, chosen: bool) -> None:  # noqa: ARG002 - which values, does not matter
        """See :class:`Rules`."""
        state.step_size = torch.full_like(state.step_size, 2 * eps)
        state.checked_loss, state.halved = state.best_loss, torch.ones_like(state.halved)

    def direction(self, state: State) -> Tensor:
        """See :class:`Rules`."""
        gradient = state.gradient
        if self._norm == "linf":
            return gradient.sign()
        # Divided by its largest value first: squares of small gradients would underflow, which passes for robustness.
        largest = _rows.largest_magnitudes(gradient)
        scaled: Tensor = gradient / _rows.column(torch.where(largest > 0, largest, 1), gradient)
        length = torch.linalg.vector_norm(scaled.flatten(1), dim=1)
        scaled /= _rows.column(torch.where(length > 0, length, 1), gradient)
        return scaled

    def checkpoints(self, steps: int) -> list[int]:
        """``ceil(p_j * steps)`` with p_0 = 0, p_1 = 0.22 and ``p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06)``, in whole
        hundredths because 0.57 is no float."""
        found, share, width = [], 22, 22
        while share <= 100:
            found.append(-(-share * steps // 100))
            width = max(width - 3, 6)
            share += width
        return sorted(set(found))

    def adapt(self, state: State, eps: float, window: int) -> None:  # noqa: ARG002 - lengths are halved, wherever they are
        """Conditions 1 and 2 of section 3."""
        halve = (state.rises <= RHO * window) | (~state.halved & (state.checked_loss >= state.best_loss))
        state.step_size = torch.where(halve, state.step_size / 2, state.step_size)
        state.go_back(halve)
        state.halved, state.checked_loss = halve, state.best_loss


class Sparsity:
    """L1: a step changes the values of largest slope, all by as much, and how many follows the best point.

    That point's number of changed values, over 1.5, is how many values a step changes. Where it has fallen by over 5 %
    since the last checkpoint, steps begin anew from the best point at full length; else they get shorter.
    """

    momentum = 1.0
    _AT_FIRST = 0.2  # share of the values, unless the start says more
    _PRUNED = 1.5
    _FALLEN = 0.95
    _SHRINK, _SHORTEST = 1.5, 10.0

    def begin(self, state: State, eps: float, *, chosen: bool) -> None:
        """See :class:`Rules`."""
        state.step_size = torch.full_like(state.step_size, eps)
        if chosen:
            state.checked_support = _support(state)
            state.moved = state.checked_support / self._PRUNED
        else:
            size = state.x[0].numel()
            state.checked_support = torch.full_like(state.checked_support, size)
            state.moved = torch.full_like(state.moved, self._AT_FIRST * size)

    def direction(self, state: State) -> Tensor:
        """See :class:`Rules`. Slopes as large as the smallest one that is taken are taken too."""
        flat = state.gradient.flatten(1)
        sizes = flat.abs()
        count = state.moved.ceil().clamp(1, flat.shape[1]).long()
        least = sizes.topk(int(count.max()), dim=1).values.gather(1, count[:, None] - 1)
        signs = torch.where(sizes >= least, flat.sign(), 0)
        signs /= signs.abs().sum(1, keepdim=True).clamp_min(1)
        return signs.reshape(state.gradient.shape)

    def checkpoints(self, steps: int) -> list[int]:
        """Every 4 % of the steps, rounded down, at least one."""
        every = max(4 * steps // 100, 1)
        return list(range(every, steps + 1, every))

    def adapt(self, state: State, eps: float, window: int) -> None:  # noqa: ARG002 - all windows are alike
        """See :class:`Rules`."""
        support = _support(state)
        fewer = support < self._FALLEN * state.checked_support
        state.step_size = torch.where(fewer, eps, (state.step_size / self._SHRINK).clamp_min(eps / self._SHORTEST))
        state.go_back(fewer)
        state.checked_support, state.moved = support, support / self._PRUNED


def _support(state: State) -> Tensor:
    """How many values the best points change, float64 ``[R]``."""
    return (state.best != state.x).flatten(1).sum(1).double()


def rules_of(norm: str) -> Rules:
    """The rules for a ball of this norm."""
    return Sparsity() if norm == "l1" else Halving(norm)
