"""Canaries: samples whose gradient is (up to rounding) one coordinate of one parameter, in the smallest shape of their layer.

They are made of an activation and an output gradient, from which the layer's own rule makes their gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..privacy._coverage import CoveredLayer
from ..privacy._layers import each_axis

_LOUD = 2.0**30  # an activation so large that the bias has no part in the gradient of a weight's canary
_CLEAR = 2.0**10  # far above the epsilon of a normalisation

# The layer, the name of its parameter, and the coordinates in it, one for each canary -> activation, output gradient.
Craft = Callable[[Any, str, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Place:
    """One parameter, and the coordinates of it that can have a canary."""

    layer: CoveredLayer
    name: str
    coordinates: Tensor

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter."""
        return self.layer.parameters[self.name]


def places(layers: list[CoveredLayer]) -> list[Place]:
    """Every trainable parameter once, in the order of the layers: of those for which canaries can be made."""
    found: dict[int, Place] = {}
    for layer in layers:
        if getattr(layer.rule, "layer_type", None) not in _CRAFTS:
            continue
        for name, parameter in layer.parameters.items():
            coordinates = _coordinates(layer.module, name, parameter)
            if len(coordinates):
                found.setdefault(id(parameter), Place(layer, name, coordinates))
    return list(found.values())


def spread(count: int, capacities: list[int]) -> list[int]:
    """``count`` canaries spread over parameters as evenly as their capacities allow; ``count`` is at most their sum."""
    given = [0] * len(capacities)
    order = sorted(range(len(capacities)), key=capacities.__getitem__)  # the smallest first: what they leave is shared
    for place, index in enumerate(order):
        given[index] = min(capacities[index], -(-count // (len(order) - place)))
        count -= given[index]
    return given


def craft(layer: CoveredLayer, name: str, coordinates: Tensor, signs: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """Activation and output gradient of canaries whose gradients have at least norm ``size``, [k, ...] each."""
    parameter = layer.parameters[name]
    with torch.no_grad():
        activation, gradient = _CRAFTS[layer.rule.layer_type](layer.module, name, coordinates)
        if activation.is_floating_point():
            activation = activation.to(parameter.device, parameter.dtype)
        gradient = gradient * (size * signs).view(-1, *[1] * (gradient.dim() - 1))
        return activation.to(parameter.device), gradient.to(parameter.device, parameter.dtype)


def _coordinates(module: nn.Module, name: str, parameter: Tensor) -> Tensor:
    coordinates = torch.arange(parameter.numel())
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        return coordinates[coordinates.div(module.embedding_dim, rounding_mode="floor") != module.padding_idx]
    if isinstance(module, nn.LayerNorm) and name == "weight" and math.prod(module.normalized_shape) == 1:
        return coordinates[:0]  # normalised to zero, whatever it was
    return coordinates


def _one_hot(shape: tuple[int, ...], *index: Tensor) -> Tensor:
    values = torch.zeros(shape, dtype=torch.float64)
    places = (torch.arange(shape[0]), *index)
    values[places] = 1.0
    return values


def _linear(layer: nn.Linear, name: str, at: Tensor) -> tuple[Tensor, Tensor]:
    count = len(at)
    if name == "bias":
        return torch.zeros(count, layer.in_features), _one_hot((count, layer.out_features), at)
    row, column = at.div(layer.in_features, rounding_mode="floor"), at % layer.in_features
    activation = _LOUD * _one_hot((count, layer.in_features), column)
    return activation, _one_hot((count, layer.out_features), row) / _LOUD


def _conv(layer: Any, name: str, at: Tensor) -> tuple[Tensor, Tensor]:
    count, space = len(at), layer.kernel_size
    dilation, stride = each_axis(layer, layer.dilation), each_axis(layer, layer.stride)
    reach = [d * (k - 1) for k, d in zip(space, dilation, strict=True)]
    if layer.padding == "same":
        sides = [(r // 2, r - r // 2) for r in reach]
    else:
        padding = [0] * len(space) if layer.padding == "valid" else each_axis(layer, layer.padding)
        sides = [(p, p) for p in padding]
    # The first output position whose patch holds no padding, and the smallest input with all of that patch.
    out = [-(-before // s) for (before, _), s in zip(sides, stride, strict=True)]
    start = [o * s - before for o, s, (before, _) in zip(out, stride, sides, strict=True)]
    extent = [max(f + r + 1, max(pair) + 1) for f, r, pair in zip(start, reach, sides, strict=True)]
    outputs = [(e + sum(pair) - r - 1) // s + 1 for e, pair, r, s in zip(extent, sides, reach, stride, strict=True)]
    shape = (count, layer.in_channels, *extent)
    where = [torch.full((count,), o) for o in out]
    if name == "bias":
        return torch.zeros(shape), _one_hot((count, layer.out_channels, *outputs), at, *where)
    output, channel, *kernel = torch.unravel_index(at, layer.weight.shape)
    groups = output.div(layer.out_channels // layer.groups, rounding_mode="floor")
    channel = channel + groups * (layer.in_channels // layer.groups)
    pixel = [f + k * d for f, k, d in zip(start, kernel, dilation, strict=True)]
    return _LOUD * _one_hot(shape, channel, *pixel), _one_hot(
        (count, layer.out_channels, *outputs), output, *where
    ) / _LOUD


def _embedding(layer: nn.Embedding, _name: str, at: Tensor) -> tuple[Tensor, Tensor]:
    tokens, column = at.div(layer.embedding_dim, rounding_mode="floor"), at % layer.embedding_dim
    return tokens.unsqueeze(1), _one_hot((len(at), layer.embedding_dim), column).unsqueeze(1)


def _layer_norm(layer: nn.LayerNorm, name: str, at: Tensor) -> tuple[Tensor, Tensor]:
    size = math.prod(layer.normalized_shape)
    activation, gradient = _opposites(name, _one_hot((len(at), size), at))
    shape = (len(at), 2, *layer.normalized_shape)
    return activation.view(shape), gradient.view(shape)


def _group_norm(layer: nn.GroupNorm, name: str, at: Tensor) -> tuple[Tensor, Tensor]:
    activation, gradient = _opposites(name, _one_hot((len(at), layer.num_channels), at))
    return activation.transpose(1, 2), gradient.transpose(1, 2)


def _opposites(name: str, hot: Tensor) -> tuple[Tensor, Tensor]:
    """Two positions [k, 2, d]. For the weight they are opposite in activation and gradient: what the bias gets cancels."""
    if name == "bias":
        return torch.zeros(len(hot), 2, hot.shape[1]), torch.stack([hot, torch.zeros_like(hot)], 1)
    return _CLEAR * torch.stack([hot, -hot], 1), torch.stack([hot, -hot], 1)


_CRAFTS: dict[type[nn.Module], Craft] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}
