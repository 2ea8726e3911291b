"""More rules of ``_layers``: transposed convolutions, small normalisations and activations, and copies for each sample."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._layers import ConvGradients, LayerGradients, over_space


class ConvTransposeGradients(ConvGradients):
    """Transposed convolutions: the weight's gradient is that of the convolution which takes the output's gradient to the
    layer's input, so the two change roles; by torch's convolutions."""

    def __init__(self, layer: Any, activation: Tensor, gradient: Tensor, *more: Any) -> None:
        super().__init__(layer, gradient, activation, *more)
        self.outputs = gradient
        # What an output is longer than its input makes it: of output_padding, or asked for by output_size.
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, layer.kernel_size, strict=True)]
        sizes = zip(gradient.shape[2:], activation.shape[2:], self.stride, self.padding, spans, strict=True)
        extra = [n - ((m - 1) * stride - 2 * padding + span) for n, m, stride, padding, span in sizes]
        if any(extra):
            sides = [(padding, padding - more) for padding, more in zip(self.padding, extra, strict=True)]
            self.activation = functional.pad(gradient, [side for pair in reversed(sides) for side in pair])
            self.padding = [0] * len(sides)

    def forget(self) -> None:
        super().forget()
        del self.outputs

    def _native(self) -> bool:
        return False

    def _by_patches(self) -> bool:
        return False

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        return over_space(self.outputs[start:stop]) if name == "bias" else super()._rows(name, start, stop)


class ConvTranspose1dGradients(ConvTransposeGradients):
    """ConvTranspose1d on [B, C, L]."""

    layer_type = nn.ConvTranspose1d


class ConvTranspose2dGradients(ConvTransposeGradients):
    """ConvTranspose2d on [B, C, H, W]."""

    layer_type = nn.ConvTranspose2d


class ConvTranspose3dGradients(ConvTransposeGradients):
    """ConvTranspose3d on [B, C, D, H, W]."""

    layer_type = nn.ConvTranspose3d


class RMSNormGradients(LayerGradients):
    """RMSNorm over the last dimensions."""

    layer_type = nn.RMSNorm
    settings = ("normalized_shape", "eps")
    parameter_names = ("weight",)
    takes_sequences = True

    @staticmethod
    def position_rank(layer: Any) -> int:
        return len(layer.normalized_shape)

    def measures_by_torch(self) -> bool:
        return False

    def recordable(self) -> bool:
        return True

    def _rows(self, _name: str, _start: int, _stop: int) -> Tensor:
        shape = self.layer.normalized_shape
        values = functional.rms_norm(self.activation, shape, None, self.layer.eps) * self.gradient
        return values.reshape(self.batch, values.shape[1:].numel() // math.prod(shape), *shape).sum(1)


class InstanceNormGradients(LayerGradients):
    """InstanceNorm by each sample's own statistics, on [B, C, ...]."""

    space: ClassVar[int]
    settings = ("eps",)

    @classmethod
    def position_rank(cls, _layer: Any) -> int:
        return 1 + cls.space

    def measures_by_torch(self) -> bool:
        return False

    def recordable(self) -> bool:
        return True

    def _rows(self, name: str, _start: int, _stop: int) -> Tensor:
        if name == "bias":
            return over_space(self.gradient)
        return over_space(functional.instance_norm(self.activation, eps=self.layer.eps) * self.gradient)


class InstanceNorm1dGradients(InstanceNormGradients):
    """InstanceNorm1d on [B, C, L]."""

    layer_type = nn.InstanceNorm1d
    space = 1


class InstanceNorm2dGradients(InstanceNormGradients):
    """InstanceNorm2d on [B, C, H, W]."""

    layer_type = nn.InstanceNorm2d
    space = 2


class InstanceNorm3dGradients(InstanceNormGradients):
    """InstanceNorm3d on [B, C, D, H, W]."""

    layer_type = nn.InstanceNorm3d
    space = 3


class PReLUGradients(LayerGradients):
    """PReLU with one slope, or one for each channel of [B, C, ...]."""

    layer_type = nn.PReLU
    parameter_names = ("weight",)

    @staticmethod
    def position_rank(layer: Any) -> int:
        return int(layer.num_parameters > 1)

    def measures_by_torch(self) -> bool:
        return False

    def recordable(self) -> bool:
        return True

    def _rows(self, _name: str, _start: int, _stop: int) -> Tensor:
        values = torch.where(self.activation > 0, 0.0, self.activation * self.gradient)
        if self.layer.num_parameters == 1:
            return values.reshape(self.batch, values.shape[1:].numel()).sum(1, keepdim=True)
        return over_space(values)


class BroadcastGradients(LayerGradients):
    """A parameter [1, ...] or [C, 1, 1] of a module of layers that stands beside samples [B, ...], such as a class token,
    positions or a scale of channels: the forward sees a copy of it for each sample, whose gradients these are."""

    takes_any_parameters = True

    @staticmethod
    def position_rank(_layer: Any) -> int:
        return 0

    def measures_by_torch(self) -> bool:
        return False

    def recordable(self) -> bool:
        return True

    def _rows(self, _name: str, _start: int, _stop: int) -> Tensor:
        return self.gradient.contiguous()
