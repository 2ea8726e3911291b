"""What is loaded into an optimizer, looked at before a private step works on it: a step is booked before it can fail."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

_NUMBERS = {SGD: ("lr", "momentum", "dampening", "weight_decay"), Adam: ("lr", "eps", "weight_decay")}
_NUMBERS[AdamW] = _NUMBERS[Adam]


def check_state(optimizer: Optimizer, state_dict: Mapping[str, Any], name: str = "state_dict") -> None:
    """Raise TypeError or ValueError, with the field, unless ``state_dict`` has what a fused step of ``optimizer`` reads.

    Of other optimizers nothing is known. How many groups and parameters there are is looked at by torch.
    """
    if type(optimizer) not in _NUMBERS:
        return
    groups = _field(state_dict, "param_groups", name, Sequence)
    states = _field(state_dict, "state", name, Mapping)
    for i, (group, own) in enumerate(zip(groups, optimizer.param_groups, strict=False)):
        place = f"{name}['param_groups'][{i}]"
        for number in _NUMBERS[type(optimizer)]:
            _check_number(_field(group, number, place), f"{place}[{number!r}]")
        if type(optimizer) is not SGD:
            betas = _field(group, "betas", place, Sequence)
            if len(betas) != 2:
                raise ValueError(f"{place}['betas'] has {len(betas)} entries, expected 2")
            for beta in betas:
                _check_number(beta, f"{place}['betas']")
        for key, parameter in zip(_field(group, "params", place, Sequence), own["params"], strict=False):
            if states.get(key):
                _check_parameter(states[key], f"{name}['state'][{key!r}]", parameter, type(optimizer), group)


def _check_parameter(
    state: Any, place: str, parameter: Tensor, kind: type[Optimizer], group: Mapping[str, Any]
) -> None:
    if kind is SGD:
        if isinstance(state, Mapping) and state.get("momentum_buffer") is None:
            return
        names = ["momentum_buffer"]
    else:
        step = _field(state, "step", place)
        _check_number(step, f"{place}['step']")
        if not (math.isfinite(step) and step >= 0):
            raise ValueError(f"{place}['step'] is {float(step)}, expected 0 or above")
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group.get("amsgrad") else [])]
    for name in names:
        value = _field(state, name, place, Tensor)
        if value.shape != parameter.shape:
            raise ValueError(
                f"{place}[{name!r}] has shape {tuple(value.shape)}, expected {tuple(parameter.shape)} as its parameter"
            )


def _field(values: Any, name: str, place: str, kind: type | None = None) -> Any:
    """``values[name]``, of this ``kind``."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{place} is a {type(values).__name__}, expected a dict")
    if name not in values:
        raise ValueError(f"{place} has no {name!r}")
    value = values[name]
    if kind is not None and (not isinstance(value, kind) or isinstance(value, str)):
        raise TypeError(f"{place}[{name!r}] is a {type(value).__name__}, expected a {kind.__name__}")
    return value


def _check_number(value: Any, place: str) -> None:
    is_tensor = isinstance(value, torch.Tensor)
    if not (is_tensor and value.numel() == 1) and not isinstance(value, numbers.Real):
        what = f"tensor of shape {tuple(value.shape)}" if is_tensor else type(value).__name__
        raise TypeError(f"{place} is a {what}, expected a number")
