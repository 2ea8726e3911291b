"""Convolutions of windows 3 x 3 with a quarter of the products: Winograd's F(4 x 4, 3 x 3), on the CPU: for the lists of steps
of attacks and for private steps.

Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308. Bounds: docs/adversarial.md,
section 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from . import _backends

_CHANNELS = 16  # inputs and outputs come in multiples of it
_FAST = ("avx512", "avx2")  # instruction sets with which it was measured to win
_POINTS = 36
_SIDE = 4  # of a tile of the result
_LEAST_USED = 0.5  # of the tiles' pixels; where they stand out further there is little to gain


class Winograd:
    """A convolution with zeros around the image, one pixel on each side, and a result of the image's size."""

    def __init__(self, weight: Tensor) -> None:
        """``weight`` is ``[outputs, channels, 3, 3]``."""
        self._weights = _spread(weight)
        self._convolve = _core().winograd

    def __call__(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        added: Tensor | None = None,
        relu: bool = False,
        out: Tensor | None = None,
    ) -> Tensor:
        """The result for images that lie channels-last, as it does.

        Args:
            x: images ``[B, channels, H, W]``.
            mask: of the same shape; where it is not above 0, ``x`` counts as 0.
            bias: a value an output.
            added: added to the result, before the ReLU.
            relu: whether there is one.
            out: where the result goes, which may be ``added``. Default: new memory.
        """
        if out is None:
            rows, _, height, width = x.shape
            out = torch.empty((rows, self._weights.shape[2], height, width), memory_format=torch.channels_last)
        places = (_as_it_lies(x), self._weights, _as_it_lies(mask), bias, _as_it_lies(added), relu, _as_it_lies(out))
        self._convolve(*places, torch.get_num_threads() > 1)  # in place of torch's convolutions, which keep to that
        return out


def _as_it_lies(images: Tensor | None) -> Tensor | None:
    return None if images is None else images.permute(0, 2, 3, 1)


def planes(x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
    """The same for contiguous images ``[B, channels, H, W]``, with weights as they are now.

    ``turned``: ``x`` is the gradient of a result, and what is wanted that of the images.
    """
    weights = _spread(weight, turned)
    result = x.new_empty((x.shape[0], weights.shape[2], *x.shape[2:]))
    _core().winograd_planes(x, weights, bias, result, torch.get_num_threads() > 1)
    return result


def winograd(
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    image: Sequence[int],
) -> Winograd | None:
    """The convolution of images of this height and width in this form, or None where it has none or would not be faster."""
    if not (has_form(weight, stride, padding, dilation, groups) and fits(image) and is_fast()):
        return None
    _backends.share_torch_threads()
    return Winograd(weight)


def has_form(
    weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Whether a convolution is one of those: by its weights and geometry."""
    around = [*stride, *padding, *dilation, groups]
    outputs, channels, *window = weight.shape
    alone = window == [3, 3] and all(number == 1 for number in around)
    return alone and outputs % _CHANNELS == 0 and channels % _CHANNELS == 0


def fits(image: Sequence[int]) -> bool:
    """Whether images of this height and width use enough of their tiles."""
    return math.prod(size / (-(-size // _SIDE) * _SIDE) for size in image) >= _LEAST_USED


def is_fast() -> bool:
    """Whether the kernels in use make it so."""
    core = _backends.native_core()
    return core is not None and core.instruction_set() in _FAST


def _spread(weight: Tensor, turned: bool = False) -> Tensor:
    outputs, channels = weight.shape[:2]
    shape = (_POINTS, outputs, channels) if turned else (_POINTS, channels, outputs)
    spread = weight.new_empty(shape)
    _core().winograd_weights(weight.contiguous(), turned, spread)
    return spread


def _core() -> ModuleType:
    core = _backends.native_core()
    assert core is not None
    return core
