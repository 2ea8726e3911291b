"""Kernels that private steps alone use, on the CPU in float32 (docs/products.md); torch's operations do it elsewhere."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .. import _backends

DEPTH = 128  # terms of a product that are added in registers (product_depth in kernels.hpp)


def on_gpu(values: Tensor) -> bool:
    """Whether ``values`` take the forms that are meant for a GPU, where launches are what small operations cost.

    The one place that decides it: tests put it to True to run those forms on the CPU.
    """
    return values.is_cuda


def kernels(values: Tensor) -> ModuleType | None:
    """The native kernels if they are in use and ``values`` is theirs to work on."""
    return kernels_on(values) if values.dtype == torch.float32 else None


def kernels_on(values: Tensor) -> ModuleType | None:
    """The native kernels if they are in use and ``values``, of whatever dtype, is on the CPU."""
    if on_gpu(values) or not values.is_cpu:
        return None
    backend = _backends.choose_host("activation")
    return backend.ghost if backend.name == "native" else None
