"""The operations of a recorded module, forward and backward to the batch, as fast as torch has them on the CPU.

Images lie channels-last, weights as oneDNN packs them. A ReLU, and a residual addition before it, are part of the convolution
that they follow. Backward passes are written out: there is no graph of autograd, no gradient of a weight, and masks
overwrite gradients that nobody else needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .._winograd import Winograd, winograd
from ._weighted import gradients

aten, mkldnn = torch.ops.aten, torch.ops.mkldnn
LAST = torch.channels_last
_FEW_CHANNELS = 4  # of a batch of images: their gradient is computed for several pixels at once
_PACKED_FROM = 1 << 14  # weights of a linear layer; smaller ones gain nothing


class Slope:
    """A gradient, and how many still have to read it: the last may overwrite it."""

    __slots__ = ("holders", "values")

    def __init__(self, values: Tensor, holders: int = 1) -> None:
        self.values, self.holders = values, holders


class Slopes:
    """The gradients of places in the list, as far as the backward pass has come."""

    def __init__(self) -> None:
        self._of: dict[int, Slope] = {}

    def give(self, place: int, values: Tensor) -> None:
        """Add to a place what nobody else holds."""
        held = self._of.get(place)
        if held is None:
            self._of[place] = Slope(values)
        elif held.holders == 1:
            held.values.add_(values)
        else:
            held.holders -= 1
            self._of[place] = Slope(values.add_(held.values))

    def share(self, place: int, slope: Slope) -> None:
        """Add to a place what others hold too."""
        held = self._of.get(place)
        if held is None:
            slope.holders += 1
            self._of[place] = slope
        elif held.holders == 1:
            held.values.add_(slope.values)
        else:
            held.holders -= 1
            self._of[place] = Slope(held.values + slope.values)

    def own(self, place: int) -> Tensor | None:
        """What lies at a place, if it may be overwritten."""
        held = self._of.get(place)
        return held.values if held is not None and held.holders == 1 else None

    def taken(self, place: int) -> Slope | None:
        """What lies at a place, which is empty then."""
        return self._of.pop(place, None)


class Step:
    """An operation on places: ``takes`` are those that it reads."""

    takes: list[int]

    def forward(self, inputs: Sequence[Tensor], kept: list[Any] | None) -> Tensor:
        """The result. What the backward pass needs is appended to ``kept``, one object."""
        raise NotImplementedError

    def backward(self, slope: Slope, kept: Any, slopes: Slopes) -> None:
        """Hand the gradient on to what the step takes."""
        raise NotImplementedError


def _masked(slope: Slope, result: Tensor) -> Slope:
    """The gradient before a ReLU with this result."""
    if slope.holders == 1:
        aten.threshold_backward.grad_input(slope.values, result, 0, grad_input=slope.values)
        return slope
    slope.holders -= 1
    return Slope(aten.threshold_backward(slope.values, result, 0))


class Convolution(Step):
    """A convolution, with what may follow it: the addition of another place, and a ReLU."""

    relu = added = False

    def __init__(self, takes: int, args: Sequence[Any], shape: Sequence[int]) -> None:
        """``args`` are those of ``aten.convolution``, of one that is not transposed; ``shape`` is a sample's."""
        _, self.weight, self.bias, stride, padding, dilation, _, _, self.groups = args
        self.takes, self.shape = [takes], tuple(shape)
        self.stride, self.padding, self.dilation = map(list, (stride, padding, dilation))

    def scale(self, factor: Tensor, offset: Tensor) -> None:
        """Let the convolution give ``factor * result + offset`` for each channel, computed in float64."""
        bias = offset if self.bias is None else self.bias.double() * factor + offset
        self.weight = (self.weight.double() * factor[:, None, None, None]).float()
        self.bias = bias.float()

    def pack(self, rows: int) -> None:
        """Lay the weights out, once they are final, as they are best for so many rows."""
        size = [rows, *self.shape]
        weight = self.weight.contiguous(memory_format=LAST)
        self._winograd = winograd(weight, self.stride, self.padding, self.dilation, self.groups, self.shape[1:])
        if self.bias is not None:
            self.bias = self.bias.contiguous()
        if self._winograd is None:
            self._forward = mkldnn._reorder_convolution_weight(
                weight, self.padding, self.stride, self.dilation, self.groups, size
            )
        self._backward = _input_gradient(weight, self.stride, self.padding, self.dilation, self.groups, size)

    def forward(self, inputs: Sequence[Tensor], kept: list[Any] | None) -> Tensor:
        """See :class:`Step`."""
        x, *others = (values.contiguous(memory_format=LAST) for values in inputs)
        if self._winograd is not None:
            result: Tensor = self._winograd(x, bias=self.bias, added=others[0] if others else None, relu=self.relu)
        else:
            result = self._convolved(x, *others)
        if kept is not None:
            kept.append(result if self.relu else None)
        return result

    def _convolved(self, x: Tensor, *others: Tensor) -> Tensor:
        unary = "relu" if self.relu else "none"
        common = self._forward, self.bias, self.padding, self.stride, self.dilation, self.groups
        result: Tensor
        if others:
            result = mkldnn._convolution_pointwise.binary(
                x, *others, *common, "add", 1.0, unary if self.relu else None, [], None
            )
        else:
            result = mkldnn._convolution_pointwise(x, *common, unary, [], None)
        return result

    def backward(self, slope: Slope, kept: Any, slopes: Slopes) -> None:
        """See :class:`Step`."""
        mask = kept if self.relu else None
        if mask is not None and (self.added or self._winograd is None):
            slope, mask = _masked(slope, mask), None
        if self.added:
            slopes.share(self.takes[1], slope)
        values, into = slope.values.contiguous(memory_format=LAST), slopes.own(self.takes[0])
        found = self._backward(values, into) if mask is None else self._backward(values, into, mask)
        if found is not None:
            slopes.give(self.takes[0], found)
        slope.holders -= 1


# From the gradient of a result to that of the input. Instead of that it may be added to the other tensor: then it is None.
# That of a convolution by Winograd's products also takes the result of a ReLU that followed it.
Gradient = Callable[..., Tensor | None]


def _input_gradient(
    weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int, size: list[int]
) -> Gradient:
    """How to come from the gradient of a convolution's result to that of its input, which is about of this size."""
    rows, *shape = size
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    back = [r - p for r, p in zip(reach, padding, strict=True)]
    result = [(n + 2 * p - r - 1) // s + 1 for n, p, r, s in zip(shape[1:], padding, reach, stride, strict=True)]
    if groups > 1 or min(back) < 0:
        return lambda g, _: aten.convolution_backward(
            g, g.new_empty((len(g), *shape)).contiguous(memory_format=LAST), weight, None, stride, padding, dilation, False,
            [0, 0], groups, [True, False, False],
        )[0]  # fmt: skip
    if stride == [1, 1]:
        turned = weight.flip(2, 3).transpose(0, 1)
        if (fewer := winograd(turned, stride, back, dilation, groups, shape[1:])) is not None:
            return lambda g, into, mask=None: _added_to(into, fewer, g, mask)
        if shape[0] <= _FEW_CHANNELS and dilation == [1, 1] and shape[1] % 2 == shape[2] % 2 == 0:
            return _several_pixels(turned, back, [rows, len(weight), *result])
        packed = mkldnn._reorder_convolution_weight(
            turned.contiguous(memory_format=LAST), back, stride, dilation, 1, [rows, len(weight), *result]
        )

        def convolved(g: Tensor, into: Tensor | None) -> Tensor | None:
            if into is not None and into.is_contiguous(memory_format=LAST):
                mkldnn._convolution_pointwise_.binary(
                    into, g, packed, None, back, stride, dilation, 1, "add", 1.0, None, [], None
                )
                return None
            found: Tensor = mkldnn._convolution_pointwise(g, packed, None, back, stride, dilation, 1, "none", [], None)
            return found

        return convolved
    rest = [
        n - ((m - 1) * s - 2 * p + r + 1)
        for n, m, s, p, r in zip(shape[1:], result, stride, padding, reach, strict=True)
    ]
    spread = mkldnn._reorder_convolution_transpose_weight(
        weight.contiguous(), padding, rest, stride, dilation, 1, [rows, len(weight), *result]
    )
    return lambda g, _: mkldnn._convolution_transpose_pointwise(
        g, spread, None, padding, rest, stride, dilation, 1, "none", [], None
    )


def _added_to(into: Tensor | None, convolution: Winograd, g: Tensor, mask: Tensor | None) -> Tensor | None:
    if into is None or not into.is_contiguous(memory_format=LAST):
        return convolution(g, mask=mask)
    convolution(g, mask=mask, added=into, out=into)
    return None


def _several_pixels(turned: Tensor, back: list[int], size: list[int]) -> Gradient:
    """The same where the input has few channels: a vector of theirs would be nearly empty, so a square of pixels is computed
    as if it were one pixel of more channels, by larger windows that are as far apart as the squares are wide."""
    channels, filters, high, wide = turned.shape
    width = [n + 2 * b - k + 1 for n, b, k in zip(size[2:], back, (high, wide), strict=True)]  # of the input
    side = 4 if channels == 1 and not any(n % 4 for n in width) else 2
    windows = turned.new_zeros(channels, side, side, filters, side + high - 1, side + wide - 1)
    for row in range(side):
        for column in range(side):
            windows[:, row, column, :, row : row + high, column : column + wide] = turned
    weight = windows.flatten(0, 2).contiguous(memory_format=LAST)
    apart = [side, side]
    packed = mkldnn._reorder_convolution_weight(weight, back, apart, [1, 1], 1, size)

    def gradient(g: Tensor, _: Tensor | None) -> Tensor:
        squares = mkldnn._convolution_pointwise(g, packed, None, back, apart, [1, 1], 1, "none", [], None)
        return functional.pixel_shuffle(squares, side)

    return gradient


class Linear(Step):
    """A linear layer of rows, and a ReLU that may follow it."""

    relu = False

    def __init__(self, takes: int, weight: Tensor, bias: Tensor | None) -> None:
        self.takes, self.weight, self.bias = [takes], weight, bias  # weight: [outputs, inputs]

    def scale_input(self, factor: float, offset: float) -> None:
        """Let the layer take ``factor * x + offset`` by itself, computed in float64."""
        wide = self.weight.double()
        bias = offset * wide.sum(1)
        self.bias = (bias if self.bias is None else bias + self.bias.double()).float()
        self.weight = (factor * wide).float()

    def pack(self, rows: int) -> None:
        """Lay the weights out, once they are final, as they are best for so many rows."""
        self._forward = self._backward = None
        self.weight = self.weight.contiguous()
        if self.weight.numel() >= _PACKED_FROM:
            self._forward = mkldnn._reorder_linear_weight(self.weight, rows)
            self._backward = mkldnn._reorder_linear_weight(self.weight.t().contiguous(), rows)

    def forward(self, inputs: Sequence[Tensor], kept: list[Any] | None) -> Tensor:
        """See :class:`Step`."""
        [x] = inputs
        if self._forward is not None:
            result: Tensor = mkldnn._linear_pointwise(
                x, self._forward, self.bias, "relu" if self.relu else "none", [], ""
            )
        else:
            result = functional.linear(x, self.weight, self.bias)
            if self.relu:
                result.relu_()
        if kept is not None:
            kept.append(result if self.relu else None)
        return result

    def backward(self, slope: Slope, kept: Any, slopes: Slopes) -> None:
        """See :class:`Step`."""
        if self.relu:
            slope = _masked(slope, kept)
        if self._backward is not None:
            found = mkldnn._linear_pointwise(slope.values, self._backward, None, "none", [], "")
        else:
            found = slope.values @ self.weight
        slopes.give(self.takes[0], found)
        slope.holders -= 1


class Pool(Step):
    """The largest of each window, and a ReLU that may follow it. (One that came before it is the same, and less work.)"""

    relu = False

    def __init__(self, takes: int, args: Sequence[Any]) -> None:
        self.takes = [takes]
        given: list[Any] = [*args[1:]]
        self._args = [*given, *(given[0], 0, 1, False)[len(given) - 1 :]]

    def forward(self, inputs: Sequence[Tensor], kept: list[Any] | None) -> Tensor:
        """See :class:`Step`."""
        result: Tensor
        result, places = aten.max_pool2d_with_indices(inputs[0], *self._args)
        if self.relu:
            result.relu_()
        if kept is not None:
            kept.append((result if self.relu else None, places, inputs[0].shape))
        return result

    def backward(self, slope: Slope, kept: Any, slopes: Slopes) -> None:
        """See :class:`Step`."""
        result, places, shape = kept
        if self.relu:
            slope = _masked(slope, result)
        values = slope.values.contiguous(memory_format=LAST)
        like = torch.empty(shape, memory_format=LAST)  # nothing of it is read but the shape
        slopes.give(self.takes[0], aten.max_pool2d_with_indices_backward(values, like, *self._args, places))
        slope.holders -= 1


class View(Step):
    """Other axes after the first. ``as_it_lies``: images are flattened channel by channel for each pixel."""

    as_it_lies = False

    def __init__(self, takes: int, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        self.takes, self.before, self._after = [takes], before, after
        self.flattens_images = len(before) == 3 and len(after) == 1

    def forward(self, inputs: Sequence[Tensor], kept: list[Any] | None) -> Tensor:
        """See :class:`Step`."""
        [x] = inputs
        if kept is not None:
            kept.append(None)
        result: Tensor = (x.permute(0, 2, 3, 1) if self.as_it_lies else x).reshape(len(x), *self._after)
        return result

    def backward(self, slope: Slope, kept: Any, slopes: Slopes) -> None:  # noqa: ARG002
        """See :class:`Step`."""
        if self.as_it_lies:
            channels, height, width = self.before
            values = slope.values.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
        else:
            values = slope.values.reshape(-1, *self.before)
        if slope.holders == 1:
            slopes.give(self.takes[0], values)
        else:
            slopes.share(self.takes[0], Slope(values, 2))
        slope.holders -= 1


class Relu(Step):
    """A ReLU that is not part of another step."""

    def __init__(self, takes: int) -> None:
        self.takes = [takes]

    def forward(self, inputs: Sequence[Tensor], kept: list[Any] | None) -> Tensor:
        """See :class:`Step`."""
        result = inputs[0].relu()
        if kept is not None:
            kept.append(result)
        return result

    def backward(self, slope: Slope, kept: Any, slopes: Slopes) -> None:
        """See :class:`Step`."""
        slope = _masked(slope, kept)
        slopes.share(self.takes[0], slope)
        slope.holders -= 1


class Add(Step):
    """The sum of two places."""

    def __init__(self, takes: list[int]) -> None:
        self.takes = takes

    def forward(self, inputs: Sequence[Tensor], kept: list[Any] | None) -> Tensor:
        """See :class:`Step`."""
        if kept is not None:
            kept.append(None)
        return inputs[0] + inputs[1]

    def backward(self, slope: Slope, kept: Any, slopes: Slopes) -> None:  # noqa: ARG002
        """See :class:`Step`."""
        for place in self.takes:
            slopes.share(place, slope)
        slope.holders -= 1


class Affine(Step):
    """Constants times a place and constants added to it; both may be numbers."""

    def __init__(self, takes: int, factor: Any, offset: Any) -> None:
        self.takes, self.factor, self.offset = [takes], factor, offset

    def forward(self, inputs: Sequence[Tensor], kept: list[Any] | None) -> Tensor:
        """See :class:`Step`."""
        if kept is not None:
            kept.append(None)
        x = inputs[0] if _is_number(self.factor, 1) else inputs[0] * self.factor
        return x if _is_number(self.offset, 0) else x + self.offset

    def backward(self, slope: Slope, kept: Any, slopes: Slopes) -> None:  # noqa: ARG002
        """See :class:`Step`."""
        if _is_number(self.factor, 1):
            slopes.share(self.takes[0], slope)
        else:
            slopes.give(self.takes[0], slope.values * self.factor)
        slope.holders -= 1


def _is_number(value: Any, number: float) -> bool:
    return not isinstance(value, Tensor) and bool(value == number)


class Plain(Step):
    """Any other operation: its gradient is autograd's, which computes it once more for that."""

    def __init__(self, takes: list[int], function: Callable[..., Any], args: Sequence[Any]) -> None:
        """``args`` of the function, with None in place of what the step takes."""
        self.takes, self._function, self._args = takes, function, args

    def _call(self, inputs: Sequence[Tensor]) -> Tensor:
        left = list(inputs)
        result: Tensor = self._function(*[left.pop(0) if arg is Plain else arg for arg in self._args])
        return result

    def forward(self, inputs: Sequence[Tensor], kept: list[Any] | None) -> Tensor:
        """See :class:`Step`."""
        if kept is not None:
            kept.append(list(inputs))
        return self._call(inputs)

    def backward(self, slope: Slope, kept: Any, slopes: Slopes) -> None:
        """See :class:`Step`."""
        with torch.enable_grad():
            leaves = [values.detach().requires_grad_() for values in kept]
            found = gradients(self._call(leaves), slope.values, leaves)
        for place, values in zip(self.takes, found, strict=True):
            assert values is not None
            slopes.share(place, Slope(values, 2))  # it may be an expanded one
        slope.holders -= 1
