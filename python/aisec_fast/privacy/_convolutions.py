"""Convolutions of a private step's forward and backward in forms that take less time than torch's, on the CPU.

A layer whose forward or input gradient has such a form gets a stand-in for the time of its forward in a private step
(``replaced``). An image's result does not depend on the others of the batch, nor on threads: what the proof asks of a
model (docs/privacy.md, section 2). Which form is taken depends on shapes, but never on the size of the batch. Forms and
their rounding: docs/adversarial.md, section 8 (Winograd's products), and docs/products.md (sums over taps).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import _backends, _winograd

# Weights at most as points of Winograd's products: more of them would come from memory for every few tiles
# (cached_weights in bind_winograd.cpp).
_MOST_POINTS = 1 << 22
# What was measured to win, on Zen 4 beside oneDNN. Of the forward: few channels, which leave oneDNN's vectors nearly empty,
# or steps between pixels, while the weights of 16 outputs stay in the first-level cache. Of the gradient: steps.
_FEW_CHANNELS, _MOST_TAPS_OF_FEW, _MOST_TAPS = 4, 128, 320
_PANEL = 16  # outputs that are computed together
_LEAST_USED = 0.75  # of a panel


class Replaced:
    """Stands in for ``_conv_forward`` of ``layer`` while its forward runs in a private step."""

    def __init__(self, layer: nn.Conv2d, padding: tuple[int, int]) -> None:
        """``padding``: of zeros, before and after."""
        self.layer = layer
        self.geometry = layer.stride, padding, layer.dilation
        weight, size = layer.weight, layer.kernel_size
        outputs, taps = layer.out_channels, weight[0].numel()
        small = layer.in_channels <= _FEW_CHANNELS and taps <= _MOST_TAPS_OF_FEW
        steps = max(*layer.stride) > 1 or max(*size) == 1
        self.is_winograd = _winograd.has_form(weight, *self.geometry, 1) and 4 * weight.numel() <= _MOST_POINTS
        self.forward_by_taps = (small or (steps and taps <= _MOST_TAPS)) and _fills_panels(outputs)
        self.backward_by_taps = steps and _fills_panels(layer.in_channels)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What ``layer._conv_forward`` would return, up to rounding."""
        if not _winograd.is_fast() or not _is_usual(x, weight, bias):
            return self.layer.__class__._conv_forward(self.layer, x, weight, bias)
        result: Tensor = _Convolution.apply(x, weight, bias, self)  # type: ignore[no-untyped-call]
        return result

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The result."""
        if self.is_winograd and _winograd.fits(x.shape[2:]):
            return _winograd.planes(x, weight, bias, turned=False)
        if not self.forward_by_taps:
            return torch.conv2d(x, weight, bias, *self.geometry)
        sizes = zip(x.shape[2:], weight.shape[2:], *self.geometry, strict=True)
        size = [(n + 2 * p - (k - 1) * d - 1) // s + 1 for n, k, s, p, d in sizes]
        return self._by_taps(x, weight, bias, False, (x.shape[0], weight.shape[0], *size))

    def backward(self, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of an input of this shape, from that of the result."""
        if self.is_winograd and _winograd.fits(shape[2:]):
            return _winograd.planes(gradient, weight, None, turned=True)
        if self.backward_by_taps:
            return self._by_taps(gradient, weight, None, True, shape)
        unread = gradient.new_empty(()).expand(shape)  # only its shape matters
        found: Tensor = torch.ops.aten.convolution_backward(
            gradient, unread, weight, None, *self.geometry, False, (0, 0), 1, (True, False, False)
        )[0]
        return found

    def _by_taps(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool, shape: tuple[int, ...]
    ) -> Tensor:
        core, out = _backends.native_core(), x.new_empty(shape)
        assert core is not None
        core.convolution(x, weight, bias, *self.geometry, turned, out, torch.get_num_threads() > 1)
        return out


def replaced(layer: nn.Module) -> Replaced | None:
    """What may stand in for the forward of ``layer``, or None."""
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or layer.groups != 1:
        return None
    if layer.weight.dtype != torch.float32 or not layer.weight.is_contiguous():
        return None
    padding: Any = layer.padding
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(n % 2 for n in reach):
            return None
        padding = tuple(n // 2 for n in reach)
    found = Replaced(layer, padding)
    return found if found.is_winograd or found.forward_by_taps or found.backward_by_taps else None


class _Convolution(torch.autograd.Function):
    """The form's forward and backward. Weight and bias do not require grad."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, form: Replaced) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.set_materialize_grads(False)
        ctx.form, ctx.shape = form, x.shape
        return form.forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        (weight,) = ctx.saved_tensors
        if gradient is None or not ctx.needs_input_grad[0]:
            return None, None, None, None
        return ctx.form.backward(gradient.contiguous(), weight, ctx.shape), None, None, None


def _fills_panels(outputs: int) -> bool:
    return outputs >= _LEAST_USED * _PANEL * math.ceil(outputs / _PANEL)


def _is_usual(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether nothing about this call needs torch's own operation."""
    given = (x, weight) if bias is None else (x, weight, bias)
    for one in given:
        if type(one) not in (Tensor, nn.Parameter) or not (one.is_cpu and one.is_contiguous()):
            return False
        if one.dtype != torch.float32 or (one is not x and one.requires_grad):  # a parameter that is not frozen
            return False
    if x.dim() != 4 or x.shape[1] != weight.shape[1]:
        return False
    return not (
        torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.maybe_current_level() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    )
