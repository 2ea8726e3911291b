"""Layers' forward and the gradients of their inputs in forms that take less time than torch's own, on the CPU.

A layer that has such a form gets a stand-in while a private step runs through it. A sample's result does not depend on
the others of the batch (of linear layers: at a fixed size of it), nor on threads: what the proof asks of a model
(docs/privacy.md, section 2). Which form is taken
depends on shapes, but never on the size of the batch. Forms and their rounding: docs/adversarial.md, section 8
(Winograd's products), and docs/products.md (sums over taps); linear layers take oneDNN's product.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._device import DeviceContext

from .. import _backends, _winograd
from ._layers import each_axis

# Weights at most as points of Winograd's products: more of them would come from memory for every few tiles
# (cached_weights in bind_winograd.cpp).
_MOST_POINTS = 1 << 22
# Where sums over taps were measured to win, on Zen 4 beside oneDNN: with steps between pixels. Of the forward: with channels
# enough that its turning of the result counts little, while the weights of 16 outputs stay in the first-level cache.
_LEAST_CHANNELS, _MOST_TAPS = 16, 320
_PANEL = 16  # outputs that are computed together
_LEAST_USED = 0.75  # of a panel
_LEAST_WEIGHTS = 1 << 16  # of a linear layer: below that oneDNN's call takes as long as what it saves


class Form:
    """Stands in for a method of ``layer``."""

    method: str  # its name
    kind: str  # of form, for people

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def _result(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """By this form if nothing about the call needs torch's own operation, or by that."""
        if not _is_usual(x, weight, bias):
            result: Tensor = self.usual(x, weight, bias)
        else:
            result = _Formed.apply(x, weight, bias, self)  # type: ignore[no-untyped-call]
        return result

    def usual(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What torch would do."""
        raise NotImplementedError

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The result."""
        raise NotImplementedError

    def backward(self, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of an input of this shape, from that of the result."""
        raise NotImplementedError


class LinearForm(Form):
    """oneDNN's product in place of MKL's."""

    method, kind = "forward", "oneDNN's product"

    def __call__(self, input: Tensor) -> Tensor:
        """``layer.forward``"""
        weight, bias = self.layer.weight, self.layer.bias
        fits = input.dim() > 0 and input.shape[-1] == weight.shape[1]
        return self._result(input, weight, bias) if fits else self.usual(input, weight, bias)

    def usual(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, weight, bias)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight, bias)

    def backward(self, gradient: Tensor, weight: Tensor, _shape: torch.Size) -> Tensor:
        return _product(gradient, weight.t(), None)

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether ``layer`` has this form, and gains by it on this machine."""
        return type(layer) is nn.Linear and layer.weight.numel() >= _LEAST_WEIGHTS and _has_slow_mkl()


class ConvolutionForm(Form):
    """Winograd's products or sums over taps, each direction for itself."""

    method = "_conv_forward"

    def __init__(self, layer: nn.Conv2d, padding: tuple[int, ...]) -> None:
        """``padding``: of zeros, before and after."""
        super().__init__(layer)
        stride, dilation = each_axis(layer, layer.stride), each_axis(layer, layer.dilation)
        self.geometry = stride, padding, dilation
        self.made_for = _geometry(layer)
        weight, size = layer.weight, layer.kernel_size
        outputs, taps = layer.out_channels, weight[0].numel()
        steps = max(stride) > 1 or max(size) == 1
        self.is_winograd = _winograd.has_form(weight, *self.geometry, 1) and 4 * weight.numel() <= _MOST_POINTS
        gains = steps and layer.in_channels >= _LEAST_CHANNELS and taps <= _MOST_TAPS
        self.forward_by_taps = gains and _fills_panels(outputs)
        self.backward_by_taps = steps and _fills_panels(layer.in_channels)
        self.kind = "Winograd's products" if self.is_winograd else "sums over taps"

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``layer._conv_forward``"""
        fits = x.dim() == 4 and x.shape[1] == weight.shape[1] and min(self._size(x, weight)) > 0
        if not fits or _geometry(self.layer) != self.made_for or not _winograd.is_fast():
            return self.usual(x, weight, bias)
        return self._result(x, weight, bias)

    def usual(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = nn.Conv2d._conv_forward(self.layer, x, weight, bias)
        return result

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.is_winograd and _winograd.fits(x.shape[2:]):
            return _winograd.planes(x, weight, bias, turned=False)
        if not self.forward_by_taps:
            return torch.conv2d(x, weight, bias, *self.geometry)
        return self._by_taps(x, weight, bias, False, (x.shape[0], weight.shape[0], *self._size(x, weight)))

    def backward(self, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        if self.is_winograd and _winograd.fits(shape[2:]):
            return _winograd.planes(gradient, weight, None, turned=True)
        if self.backward_by_taps:
            return self._by_taps(gradient, weight, None, True, shape)
        unread = gradient.new_empty(()).expand(shape)  # only its shape matters
        found: Tensor = torch.ops.aten.convolution_backward(
            gradient, unread, weight, None, *self.geometry, False, (0, 0), 1, (True, False, False)
        )[0]
        return found

    def _size(self, x: Tensor, weight: Tensor) -> list[int]:
        """Height and width of the result; below 1 where torch has an error."""
        sizes = zip(x.shape[2:], weight.shape[2:], *self.geometry, strict=True)
        return [(n + 2 * p - (k - 1) * d - 1) // s + 1 for n, k, s, p, d in sizes]

    def _by_taps(self, x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool, shape: tuple[int, ...]) -> Tensor:
        core, out = _backends.native_core(), x.new_empty(shape)
        assert core is not None
        core.convolution(x, weight, bias, *self.geometry, turned, out, torch.get_num_threads() > 1)
        return out


def form_of(layer: nn.Module) -> Form | None:
    """A form of ``layer`` that takes less time than torch's, or None."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.dtype != torch.float32 or not weight.is_cpu:
        return None
    if LinearForm.fits(layer):
        return LinearForm(layer)
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or layer.groups != 1 or not _winograd.is_fast():
        return None
    reach = [d * (k - 1) for d, k in zip(each_axis(layer, layer.dilation), layer.kernel_size, strict=True)]
    if layer.padding == "valid":
        padding: tuple[int, ...] = (0, 0)
    elif layer.padding == "same":
        if any(n % 2 for n in reach):
            return None
        padding = tuple(n // 2 for n in reach)
    else:
        padding = each_axis(layer, layer.padding)  # type: ignore[arg-type]
    if any(p > n for p, n in zip(padding, reach, strict=True)):
        return None  # some results are of zeros alone
    found = ConvolutionForm(layer, padding)
    return found if found.is_winograd or found.forward_by_taps or found.backward_by_taps else None


class _Formed(torch.autograd.Function):
    """A form's forward and backward. Weight and bias do not require grad."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
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


def _geometry(layer: nn.Conv2d) -> tuple[Any, ...]:
    return layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode


def _fills_panels(outputs: int) -> bool:
    return outputs >= _LEAST_USED * _PANEL * math.ceil(outputs / _PANEL)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    # No view, or autograd would not allow operations in place on it.
    return result if rows is x else torch.ops.aten._unsafe_view(result, (*x.shape[:-1], weight.shape[0]))


@functools.cache
def _has_slow_mkl() -> bool:
    """Whether oneDNN's products of float32 matrices are there and faster than MKL's: by 10 to 15 % on AMD's processors."""
    core = _backends.native_core()
    return core is not None and core.is_amd() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _has_modes() -> bool:
    """Whether a mode takes torch's calls, other than that of a default device."""
    modes = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    return any(type(mode) is not DeviceContext for mode in modes)


def _is_usual(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether nothing about this call needs torch's own operation."""
    if torch.compiler.is_compiling() or torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None:
        return False  # inside a compiled call, also in what torch.compile leaves to Python
    for one in (x, weight) if bias is None else (x, weight, bias):
        if type(one) not in (Tensor, nn.Parameter) or not one.is_cpu or one.layout is not torch.strided:
            return False
        if one.dtype != torch.float32 or not one.is_contiguous() or one.is_neg() or one._is_zerotensor():
            return False  # in memory such tensors are not what they are
        if one is not x and one.requires_grad:
            return False  # what requires grad is a parameter that is not frozen: no private step runs through the layer
    # Of a batch of one as of larger ones, between whose samples other memory may lie.
    return x.stride(0) == math.prod(x.shape[1:]) and not (
        torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
        or not torch._C._get_mkldnn_enabled()
        or torch._C._len_torch_dispatch_stack()
        or _has_modes()
        or torch._C._functorch.maybe_current_level() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    )
