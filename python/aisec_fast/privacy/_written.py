"""Notice gradients that somebody else has written: a private step makes ``.grad`` itself, so it would ignore them in silence."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import PrivacyError

_NOTHING = (lambda: None, 0)  # like a reference to what is gone


class Written:
    """Knows the ``.grad`` that steps have left, so that others stand out.

    ``lasting``: whether their memory may be held until the next step. If not they are referred to weakly, and
    torch.utils.swap_tensors refuses them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], lasting: bool) -> None:
        self._parameters, self._lasting = parameters, lasting
        self._left: dict[str, tuple[Any, int]] = {}  # the gradient or a reference to it, and its version

    def accept(self) -> None:
        """What stands in ``.grad`` now is known: a step has left it, or zero_grad."""
        self._left = {
            name: (gradient if self._lasting else weakref.ref(gradient), version_of(gradient))
            for name, parameter in self._parameters.items()
            if (gradient := parameter.grad) is not None
        }

    def forget(self) -> None:
        """Nothing in ``.grad`` is known any more, or held."""
        self._left = {}

    def check(self) -> None:
        """Raise PrivacyError if there is something else; zeros are nothing."""
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            left, version = self._left.get(name, _NOTHING)
            is_left = (left if self._lasting else left()) is gradient
            if (is_left and version_of(gradient) == version) or is_zero(gradient):
                continue
            what = "changed in place" if is_left else "written"
            raise PrivacyError(
                f"the .grad of parameter {name!r} was {what} since the last step, and not by the engine, which would ignore it: "
                "a private step makes .grad of what its layers recorded. Either a backward pass went past the engine's hooks "
                "(a CUDA graph of your own, torch.func, parameters whose hooks were lost), or the loop sets or scales .grad "
                "itself, which it may do after a step only. Call optimizer.zero_grad() and start the step again"
            )


def version_of(values: Tensor) -> int:
    """How often it was written to, as far as torch knows."""
    return 0 if values.is_inference() else values._version


def is_zero(gradient: Tensor) -> bool:
    """Whether there is nothing in it."""
    return gradient.layout == torch.strided and not gradient.any()
