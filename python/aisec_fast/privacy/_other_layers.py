"""More rules of ``_layers``: transposed convolutions, small normalisations and activations, and layers of the user's own."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._errors import PrivacyError
from ._layers import ConvGradients, LayerGradients, over_space

# A sum of samples' gradients may differ from the batch's by this part of their norms, all told: far more than rounding
# makes of it, far less than samples that mix.
_ALIKE = 2.0**-8


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


class OwnLayerGradients(LayerGradients):
    """A layer of the user's own, from one tensor to one tensor: its forward is differentiated for each sample alone.

    So a sample's gradient is a function of that sample's input and output gradient, whatever the layer does: clipping
    bounds it. That it is also the right one is seen once for each layer: they must add up to the batch's.
    """

    takes_any_parameters = True
    _seen: ClassVar[weakref.WeakSet[nn.Module]] = weakref.WeakSet()

    @staticmethod
    def position_rank(_layer: Any) -> int:
        return 0

    def measures_by_torch(self) -> bool:
        return True

    def adds_by_torch(self) -> bool:
        return False

    def _rows(self, name: str, _start: int, _stop: int) -> Tensor:
        layer: nn.Module = self.layer
        trained = {key: p for key, p in layer._parameters.items() if p is not None and p.requires_grad}
        own = {key: p.detach() for key, p in trained.items()}
        if not self.batch:
            return own[name].new_empty((0, *own[name].shape))

        def gradients(activation: Tensor, gradient: Tensor) -> dict[str, Tensor]:
            def forward(parameters: dict[str, Tensor]) -> Any:
                with in_place_of(layer, parameters):
                    return layer.forward(activation)

            found: tuple[dict[str, Tensor]] = torch.func.vjp(forward, own)[1](gradient)
            return found[0]

        def of_sample(activation: Tensor, gradient: Tensor) -> dict[str, Tensor]:
            return gradients(activation.unsqueeze(0), gradient.unsqueeze(0))

        try:
            with _attributes_kept(layer):
                rows = torch.func.vmap(of_sample)(self.activation, self.gradient)
                # One sample, or gradients of zero, show nothing.
                if layer not in self._seen and self.batch > 1 and self._compare(rows, trained):
                    self._seen.add(layer)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise PrivacyError(
                f"{type(layer).__name__} has no rule, and its forward cannot be differentiated for each sample alone "
                f"({type(error).__name__}: {error}); it must be deterministic, take samples in dimension 0 of one tensor and "
                "give them in dimension 0 of another. Build it of covered layers, or freeze it"
            ) from error
        self._kept |= {key: value.contiguous() for key, value in rows.items()}
        return self._kept[name]

    def _compare(self, rows: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> bool:
        """Raise PrivacyError if ``rows`` do not add up to what torch finds for the batch, with the layer as it is: its forward
        may have its parameters from elsewhere than their names. False if this batch cannot tell."""
        uses: dict[int, list[str]] = {}
        for name, parameter in trained.items():
            uses.setdefault(id(parameter), []).append(name)
        parameters = [trained[names[0]] for names in uses.values()]
        with torch.enable_grad():
            output = self.layer.forward(self.activation)
        given: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if output.requires_grad:
            given = torch.autograd.grad(output, parameters, self.gradient, allow_unused=True)
        tells = True
        for names, parameter, total in zip(uses.values(), parameters, given, strict=True):
            values = torch.stack([rows[name].double() for name in names]).sum(0).flatten(1)
            if not bool(values.isfinite().all()):
                tells = False
                continue  # NaN and Inf are the clipping's to leave out
            size = float(sum(rows[name].flatten(1).double().norm(dim=1).sum() for name in names))
            added = values.sum(0)
            apart = float((added if total is None else added - total.double().flatten()).norm())
            tells &= size > 0
            if not apart <= _ALIKE * size + math.sqrt(parameter.numel()) * torch.finfo(parameter.dtype).tiny:
                raise PrivacyError(
                    f"{type(self.layer).__name__} has no rule, and what its forward does with a batch is not what it does "
                    f"with each sample alone: the gradients of {names[0]!r} differ. Build it of covered layers, or freeze it"
                )
        return tells


class BroadcastGradients(LayerGradients):
    """A parameter [1, ...] of a module of layers that stands beside samples [B, ...], such as a class token or positions:
    the forward sees a copy of it for each sample, whose gradients these are."""

    takes_any_parameters = True

    @staticmethod
    def position_rank(_layer: Any) -> int:
        return 0

    def measures_by_torch(self) -> bool:
        return False

    def recordable(self) -> bool:
        return True

    def _rows(self, _name: str, _start: int, _stop: int) -> Tensor:
        return self.gradient.unsqueeze(1).contiguous()


@contextmanager
def _attributes_kept(layer: nn.Module) -> Iterator[None]:
    """Attributes and buffers of ``layer`` and the modules in it are afterwards what they were: nothing of a transform stays."""
    before = [(kept, dict(kept)) for module in layer.modules() for kept in (vars(module), module._buffers)]
    try:
        yield
    finally:
        for now, then in before:
            now.clear()
            now.update(then)


@contextmanager
def in_place_of(layer: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, ``layer`` has these tensors in place of its parameters of their names."""
    own: dict[str, Any] = layer._parameters
    before = {name: own[name] for name in parameters}
    own.update(parameters)
    try:
        yield
    finally:
        own.update(before)
