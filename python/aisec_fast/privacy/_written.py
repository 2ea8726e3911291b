"""Notice gradients that somebody else has written: a private step makes ``.grad`` itself, so it would ignore them in silence."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .._errors import PrivacyError


class Written:
    """Knows the ``.grad`` that steps have left, so that others stand out."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        # Of each its .grad and that one's version. Not the gradient itself: its memory is the user's to let go.
        self._left: dict[str, tuple[weakref.ref[Tensor], int]] = {}

    def accept(self) -> None:
        """What stands in ``.grad`` now is known: a step has left it, or zero_grad."""
        self._left = {
            name: (weakref.ref(gradient), _version(gradient))
            for name, parameter in self._parameters.items()
            if (gradient := parameter.grad) is not None
        }

    def check(self) -> None:
        """Raise PrivacyError if there is something else; zeros are nothing."""
        for name, parameter in self._parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            left = self._left.get(name)
            if left is not None and left[0]() is gradient:
                if _version(gradient) == left[1]:
                    continue
                what = "changed in place"
            else:
                what = "written"
            if _is_zero(gradient):
                continue
            raise PrivacyError(
                f"the .grad of parameter {name!r} was {what} since the last step, and not by the engine, which would ignore it: "
                "a private step makes .grad of what its layers recorded. Either a backward pass went past the engine's hooks "
                "(a CUDA graph of your own, torch.func, parameters whose hooks were lost), or the loop sets or scales .grad "
                "itself, which it may do after a step only. Call optimizer.zero_grad() and start the step again"
            )


def _version(gradient: Tensor) -> int:
    """How often it was written to, as far as torch knows."""
    return 0 if gradient.is_inference() else gradient._version


def _is_zero(gradient: Tensor) -> bool:
    return gradient.layout == torch.strided and not gradient.any()
