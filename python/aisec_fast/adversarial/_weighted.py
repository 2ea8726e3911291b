"""Gradients of weighted sums. Torch, told the weights, first imports a library for symbols, which takes one or two seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Weighted(torch.autograd.Function):
    """Stands for the sum of values times weights, which is not computed: only its gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor) -> Tensor:
        ctx.weights = weights
        return values.new_zeros(())

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - it is 1
        return ctx.weights, None


def gradients(values: Tensor, weights: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Of the sum of ``values * weights``; None for leaves that it does not depend on."""
    total: Tensor = _Weighted.apply(values, weights)  # type: ignore[no-untyped-call]
    return torch.autograd.grad(total, leaves, allow_unused=True)
