"""Full float32 precision for the engine's own products: the bounds of docs/privacy.md hold for no less.

cuDNN is left out as a whole: it may choose Winograd's algorithm, whose rounding is another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Inside, no product or convolution of float32 is made in TF32 or bfloat16, whatever the user has allowed; nor in half
    precision, where an autocast goes on around the backward pass or the step."""
    before = [(place, name, getattr(place, name)) for place, name, _ in _SWITCHES]
    try:
        for place, name, exact in _SWITCHES:
            setattr(place, name, exact)
        with ExitStack() as stack:
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _switches() -> list[tuple[Any, str, Any]]:
    backends = torch.backends
    plain = (backends.cudnn, "enabled", False)
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # torch 2.9 and later
        places = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.cuda.matmul)  # type: ignore[attr-defined]
        return [*((place, "fp32_precision", "ieee") for place in places), plain]
    return [
        (backends.cuda.matmul, "allow_tf32", False),
        (_LegacyPrecision(), "matmul", "highest"),
        plain,
    ]


class _LegacyPrecision:
    """What older versions keep behind two functions, as an attribute."""

    @property
    def matmul(self) -> str:
        return torch.get_float32_matmul_precision()

    @matmul.setter
    def matmul(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


_SWITCHES = _switches()
