"""The optimizer's step taken together with the noise, in one pass over memory, for the optimizers that have a kernel.

A fused step leaves parameters and ``optimizer.state`` as ``torch.optim.SGD``, ``Adam`` and ``AdamW`` would (up to rounding,
docs/update.md), so that schedulers, ``state_dict`` and a later plain step go on from there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from .. import _update
from .._update import Noise

Sums = dict[nn.Parameter, Tensor]
Row = tuple[Hashable, tuple[Any, ...]]  # what may not be mixed in one call, and arrays that go together


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


def step(optimizer: Optimizer, sums: Sums, noise: Noise, divisor: float) -> None:
    """Turn ``sums`` into noisy means, in place, and take the optimizer's step with them as gradients."""
    for group in optimizer.param_groups:
        if type(optimizer) is SGD:
            _sgd(optimizer.state, group, sums, noise, divisor)
        else:
            # Before torch 2.6 AdamW is a class of its own, and its groups do not tell.
            decoupled = bool(group.get("decoupled_weight_decay", isinstance(optimizer, AdamW)))
            _adam(optimizer.state, group, decoupled, sums, noise, divisor)


def noisy_means(sums: Iterable[Tensor], noise: Noise, divisor: float) -> None:
    """Turn ``sums`` into noisy means, in place."""
    for (same,) in _grouped((total.dtype, (total,)) for total in sums).values():
        _update.noisy_mean(same, noise, divisor)


def _sgd(state: Any, group: dict[str, Any], sums: Sums, noise: Noise, divisor: float) -> None:
    momentum = float(group["momentum"])

    def rows() -> Iterator[Row]:
        for parameter in group["params"]:  # hundreds: each is looked up once
            total = sums.get(parameter)
            if total is None:
                continue
            buffer = state[parameter].get("momentum_buffer") if momentum else None
            yield (parameter.dtype, momentum != 0 and buffer is None), (parameter, total, buffer)

    for (_, first), (parameters, totals, buffers) in _grouped(rows()).items():
        if first:
            buffers = [torch.empty_like(p, memory_format=torch.preserve_format) for p in parameters]
            for parameter, buffer in zip(parameters, buffers, strict=True):
                state[parameter]["momentum_buffer"] = buffer
        _update.sgd(
            parameters,
            totals,
            noise,
            divisor,
            lr=float(group["lr"]),
            momentum=momentum,
            dampening=float(group["dampening"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=bool(group["nesterov"]),
            maximize=bool(group["maximize"]),
            buffers=buffers if momentum else None,
            first=first,
        )


def _adam(state: Any, group: dict[str, Any], decoupled: bool, sums: Sums, noise: Noise, divisor: float) -> None:
    amsgrad = bool(group["amsgrad"])
    names = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else []))

    def rows() -> Iterator[Row]:
        for parameter in group["params"]:
            total = sums.get(parameter)
            if total is None:
                continue
            own = state[parameter]
            if not own:
                own["step"] = torch.tensor(0.0)
                for name in names:
                    own[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            count = own["step"]
            yield (parameter.dtype, int(count.item())), (parameter, total, count, *[own[name] for name in names])

    for (_, done), (parameters, totals, counts, averages, squares, *largest) in _grouped(rows()).items():
        _update.adam(
            parameters,
            totals,
            noise,
            divisor,
            lr=float(group["lr"]),
            betas=tuple(map(float, group["betas"])),
            eps=float(group["eps"]),
            weight_decay=float(group["weight_decay"]),
            decoupled=decoupled,
            maximize=bool(group["maximize"]),
            exp_avg=averages,
            exp_avg_sq=squares,
            max_exp_avg_sq=largest[0] if amsgrad else None,
            step=done + 1,
        )
        # With a tensor and a factor: the one form in which torch makes no tensor of the number for each.
        torch._foreach_add_(counts, counts[0].new_ones(()), alpha=1)


def _grouped(rows: Iterable[Row]) -> dict[Any, list[list[Any]]]:
    """The columns of all rows with the same key, in their order."""
    groups: dict[Any, list[tuple[Any, ...]]] = {}
    for key, row in rows:
        groups.setdefault(key, []).append(row)
    return {key: [list(column) for column in zip(*same, strict=True)] for key, same in groups.items()}
