"""Arguments and results of modules, and what a call of one may leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Random state, attributes and buffers are afterwards as they were."""
    kept = [(one, dict(one)) for part in module.modules() for one in (vars(part), part._buffers)]
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for now, then in kept:
                now.clear()
                now.update(then)
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    if name in buffers and not equal(buffer, buffers[name]):
                        buffer.copy_(buffers[name])


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether the same values stand in both, NaN beside NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in ``value``, through tuples, lists and dicts."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(value, note)
    return found


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``change`` applied to the tensors in it, through tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(item, change) for item in value)
    return value
