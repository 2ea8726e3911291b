"""Parameters [1, ...] of modules of layers (class tokens, positions): the forward sees a copy of them for each sample.

The gradient of a copy is that of its sample, if the forward uses it for that sample alone. This is tried out at the
module's first call, as what it is told by: with other parameters, drawn at random, since layers that begin as zeros
would hide it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .._errors import PrivacyError
from ._coverage import CoveredLayer
from ._other_layers import in_place_of
from ._recording import Freeze, Recorder, Thaw
from ._values import mapped, tensors_in, unchanged

# In the trial a sample's result may be apart from what it should be by this part of what the parameter moves it.
_ALIKE = 2.0**-4
_ROUNDING = 2.0**-12  # of the largest value: so much may come of rounding


class Expand(Freeze):
    """Forward pre-hook of the module: copies stand in for the parameter while the forward runs."""

    def __init__(self, layer: CoveredLayer, recorder: Recorder) -> None:
        super().__init__(layer, recorder)
        self.thaw = _Shrink(self)
        ((self.name, self.parameter),) = layer.parameters.items()
        self.full_name = f"{layer.name}.{self.name}".lstrip(".")
        self.tried = False  # whether the forward uses each copy for its sample alone

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.thread is not None:
            self._after_interrupt()
        if not module.training or not torch.is_grad_enabled() or self._rests():
            return
        self._check(module)
        sizes = [value.shape[0] for value in tensors_in((args, kwargs)) if value.dim()]
        if not sizes or not self.recorder.batch_first:
            raise PrivacyError(
                f"parameter {self.full_name!r} is needed for each sample, but samples are not in dimension 0 of what its "
                "module is called with"
            )
        count = sizes[0]
        if not self.tried and count > 1:  # one sample cannot be taken for another
            self._try(module, count, args, kwargs)
            self.tried = True
        self.thread = threading.get_ident()
        copies = _Copies.apply(self.recorder.anchor, self.parameter.detach(), count, self.layer, self.recorder)  # type: ignore[no-untyped-call]
        self.recorder.called(self.layer, copies)
        module._parameters[self.name] = copies

    def end(self) -> None:
        self.thread = None
        self.thaw.leave()
        self.layer.module._parameters[self.name] = self.parameter

    def _try(self, module: nn.Module, count: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Samples get copies of two values in turn, and must come out as if all had theirs."""

        def results(value: Tensor) -> list[Tensor]:
            with (
                torch.no_grad(),
                unchanged(module),
                _random_parameters(module),
                in_place_of(module, {self.name: value}),
            ):
                args_, kwargs_ = mapped((args, kwargs), lambda tensor: tensor.detach().clone())
                return [one.double() for one in tensors_in(module.forward(*args_, **kwargs_))]

        even, odd = (
            torch.randn(self.parameter.shape, generator=torch.Generator().manual_seed(i)).to(self.parameter)
            for i in range(2)
        )
        is_odd = torch.arange(count, device=even.device) % 2 == 1
        try:
            found, all_even, all_odd = map(results, (torch.where(_beside(is_odd, odd), odd, even), even, odd))
            is_right = _in_turn(is_odd, found, all_even, all_odd)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise self._refused(f"{type(error).__name__}: {error}") from error
        if not is_right:
            raise self._refused("samples do not come out as with the copy that is theirs")

    def _refused(self, reason: str) -> PrivacyError:
        return PrivacyError(
            f"parameter {self.full_name!r} of shape {tuple(self.parameter.shape)} has no per-sample rule, and copies of it, one "
            f"for each sample, cannot stand in for it ({reason}). Its module must give tensors with samples in dimension 0, "
            "each made with its own copy; else put what uses the parameter into a module of its own, or freeze it"
        )


def _in_turn(is_odd: Tensor, found: list[Tensor], even: list[Tensor], odd: list[Tensor]) -> bool:
    """Whether of ``found`` the odd samples are those of ``odd`` and the others those of ``even``, and this can be seen."""
    is_seen = False
    for one, a, b in zip(found, even, odd, strict=True):
        if not one.shape == a.shape == b.shape or one.shape[:1] != is_odd.shape:
            return False
        apart = float((one - torch.where(_beside(is_odd, b), b, a)).abs().max())
        moved, largest = float((a - b).abs().max()), float(a.abs().max())
        if not apart <= _ALIKE * moved + _ROUNDING * largest:
            return False
        is_seen = is_seen or moved > _ROUNDING / _ALIKE * largest
    return is_seen


def _beside(samples: Tensor, values: Tensor) -> Tensor:
    """[B] as [B, 1, ...], to stand beside ``values``."""
    return samples.view(-1, *(1,) * (values.dim() - 1))


@contextmanager
def _random_parameters(module: nn.Module) -> Iterator[None]:
    """Inside, all parameters are others: noise is added that keeps what passes through layers at its size."""
    others: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in module.modules():
            mine = {}
            for name, parameter in layer._parameters.items():
                if parameter is not None and parameter.is_floating_point():
                    inputs = max(1, parameter.numel() // max(1, parameter.shape[0])) if parameter.dim() else 1
                    if id(parameter) not in others:
                        others[id(parameter)] = parameter.detach() + torch.randn_like(parameter) / math.sqrt(inputs)
                    mine[name] = others[id(parameter)]
            stack.enter_context(in_place_of(layer, mine))
        yield


class _Copies(torch.autograd.Function):
    """[1, ...] -> [B, ...], without copying; the backward records the samples' gradients."""

    @staticmethod
    def forward(
        ctx: Any, _anchor: Tensor, parameter: Tensor, count: int, layer: CoveredLayer, recorder: Recorder
    ) -> Tensor:
        ctx.layer, ctx.recorder = layer, recorder
        return parameter.expand(count, *parameter.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        gradient = ctx.recorder.taken(gradient)
        ctx.recorder.measure(ctx.recorder.add(ctx.layer, gradient, gradient, None))
        return (None,) * 5


class _Shrink(Thaw):
    """Forward hook, also after an error: the module has its parameter again."""

    def __call__(self, *_rest: Any) -> None:
        if self.freeze.thread == threading.get_ident():
            self.freeze.end()
