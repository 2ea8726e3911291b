"""The optimizer's step taken together with the noise, in one pass over memory, for the optimizers that have a kernel.

A fused step leaves parameters and ``optimizer.state`` as ``torch.optim.SGD``, ``Adam`` and ``AdamW`` would (up to rounding,
docs/update.md), so that schedulers, ``state_dict`` and a later plain step go on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from .. import _update
from .._update import Noise


def why_not_fused(optimizer: Optimizer, own_hook: object) -> str | None:
    """The reason why the optimizer has to take its step itself, or None."""
    if type(optimizer) not in (SGD, Adam, AdamW):
        return f"{type(optimizer).__name__} has no fused step"
    if any(hook is not own_hook for hook in optimizer._optimizer_step_pre_hooks.values()):
        return "another step hook wants to see the gradients"
    for group in optimizer.param_groups:
        for option in ("differentiable", "capturable"):
            if group.get(option):
                return f"the option {option} asks for torch's step"
        if type(optimizer) is not SGD and group.get("fused") and any(p.is_cuda for p in group["params"]):
            return "the option fused keeps the number of steps on the GPU"
        if not all(p.is_contiguous() for p in group["params"]):
            return "a parameter is not contiguous"
    return None


def step(optimizer: Optimizer, sums: dict[nn.Parameter, Tensor], noise: Noise, divisor: float) -> None:
    """Turn ``sums`` into noisy means, in place, and take the optimizer's step with them as gradients."""
    for group in optimizer.param_groups:
        parameters = [p for p in group["params"] if p in sums]
        if type(optimizer) is SGD:
            _sgd(optimizer.state, group, parameters, sums, noise, divisor)
        else:
            # Before torch 2.6 AdamW is a class of its own, and its groups do not tell.
            decoupled = bool(group.get("decoupled_weight_decay", isinstance(optimizer, AdamW)))
            _adam(optimizer.state, group, decoupled, parameters, sums, noise, divisor)


def noisy_means(sums: Iterable[Tensor], noise: Noise, divisor: float) -> None:
    """Turn ``sums`` into noisy means, in place."""
    for _, same in _grouped(sums, lambda total: total.dtype):
        _update.noisy_mean(same, noise, divisor)


def _sgd(
    state: Any, group: dict[str, Any], parameters: list[nn.Parameter], sums: dict[nn.Parameter, Tensor], noise: Noise,
    divisor: float,
) -> None:  # fmt: skip
    momentum = float(group["momentum"])

    def kind(parameter: nn.Parameter) -> tuple[torch.dtype, bool]:
        return parameter.dtype, momentum != 0 and state[parameter].get("momentum_buffer") is None

    for (_, first), same in _grouped(parameters, kind):
        if first:
            for parameter in same:
                state[parameter]["momentum_buffer"] = torch.empty_like(parameter, memory_format=torch.preserve_format)
        _update.sgd(
            [p.detach() for p in same],
            [sums[p] for p in same],
            noise,
            divisor,
            lr=float(group["lr"]),
            momentum=momentum,
            dampening=float(group["dampening"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=bool(group["nesterov"]),
            maximize=bool(group["maximize"]),
            buffers=[state[p]["momentum_buffer"] for p in same] if momentum else None,
            first=first,
        )


def _adam(
    state: Any, group: dict[str, Any], decoupled: bool, parameters: list[nn.Parameter],
    sums: dict[nn.Parameter, Tensor], noise: Noise, divisor: float,
) -> None:  # fmt: skip
    amsgrad = bool(group["amsgrad"])
    for parameter in parameters:
        own = state[parameter]
        if not own:
            own["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])):
                own[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    for (_, done), same in _grouped(parameters, lambda p: (p.dtype, int(state[p]["step"]))):
        _update.adam(
            [p.detach() for p in same],
            [sums[p] for p in same],
            noise,
            divisor,
            lr=float(group["lr"]),
            betas=tuple(map(float, group["betas"])),
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            decoupled=decoupled,
            maximize=bool(group["maximize"]),
            exp_avg=[state[p]["exp_avg"] for p in same],
            exp_avg_sq=[state[p]["exp_avg_sq"] for p in same],
            max_exp_avg_sq=[state[p]["max_exp_avg_sq"] for p in same] if amsgrad else None,
            step=done + 1,
        )
        for parameter in same:
            state[parameter]["step"] += 1


def _grouped(values: Iterable[Any], key: Callable[[Any], Hashable]) -> Sequence[tuple[Any, list[Any]]]:
    """Values with the same key together, in their order."""
    groups: dict[Hashable, list[Any]] = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    return list(groups.items())
