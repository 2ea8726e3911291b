"""Schedules for the noise and the clipping norm of a private optimizer, with Opacus's names.

Make one after ``make_private`` and call its ``step()`` once an epoch, like a learning-rate scheduler of torch. The account
books each step with the noise multiplier that it really has. With ``poisson_sampling=False`` a pass over the loader is one
mechanism, so change the noise between passes only.

    optimizer's step  ->  noise_multiplier or max_grad_norm = base value * factor(epoch)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

from .. import _checks
from ._clip import checked_norm
from ._step import Mechanism, step_of

__all__ = ["ExponentialGradClip", "ExponentialNoise", "LambdaGradClip", "LambdaNoise", "StepGradClip", "StepNoise"]


class _Scheduler:
    """Sets ``attribute`` of the optimizer's mechanism to its base value times a factor of the epoch."""

    attribute = ""

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float], last_epoch: int = -1) -> None:
        self.mechanism: Mechanism = step_of(optimizer).mechanism
        self.factor = factor
        self.base = float(getattr(self.mechanism, self.attribute))
        self.last_epoch = last_epoch
        self.step()

    def step(self) -> None:
        """Go on to the next epoch."""
        value = self.base * self.factor(self.last_epoch + 1)
        check = _checks.not_negative if self.attribute == "noise_multiplier" else checked_norm
        checked, before = check(value, self.attribute), getattr(self.mechanism, self.attribute)
        setattr(self.mechanism, self.attribute, checked)
        self.last_epoch += 1
        if self.attribute == "noise_multiplier" and checked == 0 < before:
            warnings.warn("the schedule's noise_multiplier is 0: steps are not private from now on", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """What a restart needs: the base value and the epoch."""
        return {"base": self.base, "last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; TypeError or ValueError with the field's name, and nothing is changed then."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict is a {type(state_dict).__name__}, expected a dict")
        for name in ("base", "last_epoch"):
            if name not in state_dict:
                raise ValueError(f"state_dict has no {name!r}")
        base = _checks.real(state_dict["base"], "state_dict['base']")
        last_epoch = _checks.whole(state_dict["last_epoch"], "state_dict['last_epoch']")
        before = self.base, self.last_epoch
        self.base, self.last_epoch = base, last_epoch - 1
        try:
            self.step()
        except Exception:
            self.base, self.last_epoch = before
            raise


class _Noise(_Scheduler):
    attribute = "noise_multiplier"


class _GradClip(_Scheduler):
    attribute = "max_grad_norm"


class ExponentialNoise(_Noise):
    """noise_multiplier = base * gamma^epoch."""

    def __init__(self, optimizer: Optimizer, *, gamma: float, last_epoch: int = -1) -> None:
        """Start at epoch ``last_epoch + 1`` from what the optimizer has now."""
        super().__init__(optimizer, _exponential(gamma), last_epoch)


class LambdaNoise(_Noise):
    """noise_multiplier = base * noise_lambda(epoch)."""

    def __init__(self, optimizer: Optimizer, *, noise_lambda: Callable[[int], float], last_epoch: int = -1) -> None:
        """Start at epoch ``last_epoch + 1`` from what the optimizer has now."""
        super().__init__(optimizer, noise_lambda, last_epoch)


class StepNoise(_Noise):
    """noise_multiplier = base * gamma^(epoch // step_size)."""

    def __init__(self, optimizer: Optimizer, *, step_size: int, gamma: float, last_epoch: int = -1) -> None:
        """Start at epoch ``last_epoch + 1`` from what the optimizer has now."""
        super().__init__(optimizer, _stepwise(step_size, gamma), last_epoch)


class ExponentialGradClip(_GradClip):
    """max_grad_norm = base * gamma^epoch."""

    def __init__(self, optimizer: Optimizer, *, gamma: float, last_epoch: int = -1) -> None:
        """Start at epoch ``last_epoch + 1`` from what the optimizer has now."""
        super().__init__(optimizer, _exponential(gamma), last_epoch)


class LambdaGradClip(_GradClip):
    """max_grad_norm = base * scheduler_function(epoch)."""

    def __init__(
        self, optimizer: Optimizer, *, scheduler_function: Callable[[int], float], last_epoch: int = -1
    ) -> None:
        """Start at epoch ``last_epoch + 1`` from what the optimizer has now."""
        super().__init__(optimizer, scheduler_function, last_epoch)


class StepGradClip(_GradClip):
    """max_grad_norm = base * gamma^(epoch // step_size)."""

    def __init__(self, optimizer: Optimizer, *, step_size: int, gamma: float, last_epoch: int = -1) -> None:
        """Start at epoch ``last_epoch + 1`` from what the optimizer has now."""
        super().__init__(optimizer, _stepwise(step_size, gamma), last_epoch)


def _exponential(gamma: float) -> Callable[[int], float]:
    factor = _checks.positive(gamma, "gamma")
    return lambda epoch: factor**epoch


def _stepwise(step_size: int, gamma: float) -> Callable[[int], float]:
    factor, size = _checks.positive(gamma, "gamma"), _checks.whole(step_size, "step_size", least=1)
    return lambda epoch: factor ** (epoch // size)
