"""Convolutions of windows 3 x 3 with a quarter of the products: Winograd's F(4 x 4, 3 x 3), for lists of steps on the CPU.

Lavin and Gray 2015, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308. Bounds: docs/adversarial.md,
section 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _backends

_CHANNELS = 16  # inputs and outputs come in multiples of it
_FAST = ("avx512", "avx2")  # instruction sets with which it was measured to win
_POINTS = 36
_SIDE = 4  # of a tile of the result
_LEAST_USED = 0.5  # of the tiles' pixels; where they stand out further there is little to gain


class Winograd:
    """A convolution with zeros around the image, one pixel on each side, and a result of the image's size."""

    def __init__(self, weight: Tensor) -> None:
        """``weight`` is ``[outputs, channels, 3, 3]``."""
        core = _backends.native_core()
        assert core is not None
        windows = weight.permute(2, 3, 1, 0).contiguous()
        self._weights = torch.empty(_POINTS, *windows.shape[2:])
        core.winograd_weights(windows, self._weights)
        self._convolve = core.winograd

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


def winograd(
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    image: Sequence[int],
) -> Winograd | None:
    """The convolution of images of this height and width in this form, or None where it has none or would not be faster."""
    around = [*stride, *padding, *dilation, groups]
    if math.prod(size / (-(-size // _SIDE) * _SIDE) for size in image) < _LEAST_USED:
        return None
    outputs, channels, *window = weight.shape
    if window != [3, 3] or any(number != 1 for number in around) or outputs % _CHANNELS or channels % _CHANNELS:
        return None
    core = _backends.native_core()
    if core is None or core.instruction_set() not in _FAST:
        return None
    _backends.share_torch_threads()
    return Winograd(weight)
