"""What stands beside all samples at once gets a row for each: embeddings of positions, and parameters [1, ...] or [C, 1, 1]
of modules of layers (class tokens, positions; scales of channels).

An embedding of positions is called with [T] or [1, T]; its input is repeated for each sample. Such a parameter is
replaced by copies of it, [B, ...] or [B, C, 1, 1], while its module's forward runs. The gradients of a sample's rows are that sample's if the model
uses them for that sample alone. Two things are seen to, at the first call with two samples or more (earlier calls decide
nothing for good): that the model gives the same as without rows of their own, here, with random parameters, since layers
that begin as zeros would hide what passes through them; and that no sample's rows depend on another sample, by
``RowProbe``, which cannot be left out then.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .._errors import PrivacyError
from ._coverage import CoveredLayer
from ._layers import EmbeddingGradients
from ._other_layers import BroadcastGradients
from ._own_layers import in_place_of
from ._recording import Copied, Freeze, Recorder, Thaw, Trial
from ._values import mapped, tensors_in, unchanged

# What rounding may make of a model, as a part of its largest result: in rows of their own it may compute in another order.
_ALIKE = 2.0**-6


class Samples:
    """Forward pre-hook of the whole model: counts the samples, and decides at first what gets a row for each."""

    def __init__(self, layers: list[CoveredLayer], recorder: Recorder) -> None:
        self.recorder = recorder
        self.embeddings = [layer for layer in layers if layer.rule is EmbeddingGradients]
        self.parameters = [layer for layer in layers if layer.rule is BroadcastGradients]
        self._decided = False

    def possible(self) -> bool:
        """Whether the model has anything that may get rows."""
        return bool(self.embeddings or self.parameters)

    def watch(self, module: nn.Module) -> None:
        """Be called before all other hooks, where there is something to do."""
        if self.possible():
            module.register_forward_pre_hook(self, prepend=True, with_kwargs=True)
            module.register_forward_hook(_Ended(self.recorder), always_call=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.training or not torch.is_grad_enabled() or not self.recorder.batch_first:
            return
        sizes = [value.shape[0] for value in tensors_in((args, kwargs)) if value.dim()]
        self.recorder.model_begins(sizes[0] if sizes else None)
        if not self._decided and sizes:
            self._decide(module, args, kwargs)
            self._decided = sizes[0] > 1  # fewer show nothing

    def __reduce__(self) -> tuple[type[Copied], tuple[()]]:
        return Copied, ()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _decide(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        def results(expanded: set[int]) -> tuple[list[Tensor], set[int]]:
            trial = self.recorder.trial = Trial(expanded)
            try:
                with torch.no_grad(), unchanged(module), _random_parameters(module), ExitStack() as own:
                    # No hook of the module's is called, but of its own parameters there are copies too.
                    for hook in list(module._forward_pre_hooks.values()):
                        if isinstance(hook, Expand) and id(hook.layer) in expanded:
                            hook(module)
                            own.callback(hook.end)
                    args_, kwargs_ = mapped((args, kwargs), lambda value: value.detach().clone())
                    found = tensors_in(module.forward(*args_, **kwargs_))
            finally:
                self.recorder.trial = None
            return found, trial.without_samples

        plain, without_samples = results(set())
        parameters = {id(layer) for layer in self.parameters}
        reason = "the model gives no tensor"
        for chosen in ([parameters | without_samples] if without_samples else []) + [parameters]:
            try:
                if not chosen or _are_alike(plain, results(chosen)[0]):
                    self.recorder.expanded = chosen
                    return
                reason = "the model gives something else with them"
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                reason = f"{type(error).__name__}: {error}"
        named = [f"{layer.name}.{next(iter(layer.parameters))}".lstrip(".") for layer in self.parameters]
        raise PrivacyError(
            f"parameters {', '.join(map(repr, named))} have no per-sample rule, and copies of them, one for each sample, "
            f"cannot stand in for them ({reason}). Put what uses them into modules of its own, or freeze them"
        )


class _Ended:
    """Forward hook of the whole model, also after an error: what is called alone from now on has samples of its own."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __call__(self, module: nn.Module, *_rest: Any) -> None:
        if module.training and torch.is_grad_enabled() and self.recorder.batch_first:
            self.recorder.model_ends()

    def __reduce__(self) -> tuple[type[Copied], tuple[()]]:
        return Copied, ()


class Expand(Freeze):
    """Forward pre-hook of a module with such a parameter: copies stand in for it while the forward runs."""

    def __init__(self, layer: CoveredLayer, recorder: Recorder) -> None:
        super().__init__(layer, recorder)
        self.thaw = _Shrink(self)
        ((self.name, self.parameter),) = layer.parameters.items()
        self.before: Tensor = self.parameter

    def __call__(self, module: nn.Module, *_arguments: Any) -> None:
        recorder, trial = self.recorder, self.recorder.trial
        if self.thread is not None:
            self._after_interrupt()
        if trial is not None:
            if module.training and id(self.layer) in trial.expanded:
                value: Any = module._parameters[self.name]
                self.before, self.call = value, sys._getframe(1)
                self._put(module, _copies(value, recorder.samples(self.layer)))
            return
        if not module.training or not torch.is_grad_enabled() or self._rests():
            return
        self._check(module)
        self.before, self.call = self.parameter, sys._getframe(1)
        copies = _Copies.apply(
            recorder.anchor, self.parameter.detach(), recorder.samples(self.layer), self.layer, recorder
        )  # type: ignore[no-untyped-call]
        recorder.called(self.layer, copies)
        self._put(module, copies)

    def _put(self, module: nn.Module, value: Tensor) -> None:
        self.thread = threading.get_ident()
        module._parameters[self.name] = value  # type: ignore[assignment]

    def end(self) -> None:
        self.thread = self.call = None
        self.layer.module._parameters[self.name] = self.before  # type: ignore[assignment]


class _Shrink(Thaw):
    """Forward hook, also after an error: the module has its parameter again."""

    def __call__(self, *_rest: Any) -> None:
        if self.freeze.thread == threading.get_ident():
            self.freeze.end()


class _Copies(torch.autograd.Function):
    """See ``_copies``; the backward records the samples' gradients."""

    @staticmethod
    def forward(
        ctx: Any, _anchor: Tensor, parameter: Tensor, count: int, layer: CoveredLayer, recorder: Recorder
    ) -> Tensor:
        ctx.layer, ctx.recorder, ctx.shape, ctx.is_done = layer, recorder, parameter.shape, False
        return _copies(parameter, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        ctx.recorder.only_once(ctx)
        gradient = ctx.recorder.taken(gradient)
        gradient = gradient.reshape(len(gradient), *ctx.shape)
        ctx.recorder.measure(ctx.recorder.add(ctx.layer, gradient, gradient, None))
        return (None,) * 5


def _copies(parameter: Tensor, count: int) -> Tensor:
    """[1, ...] -> [count, ...], and [C, 1, 1] -> [count, C, 1, 1], without copying."""
    rows = parameter if parameter.shape[0] == 1 else parameter.unsqueeze(0)
    return rows.expand(count, *rows.shape[1:])


def _are_alike(a: list[Tensor], b: list[Tensor]) -> bool:
    """False also if there is nothing to compare."""
    if not a or [one.shape for one in a] != [one.shape for one in b]:
        return False
    pairs = [(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=True) if x.numel()]
    return all(float((x - y).abs().max()) <= _ALIKE * float(x.abs().max()) for x, y in pairs)


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
                        other = parameter.detach() + torch.randn_like(parameter) / math.sqrt(inputs)
                        others[id(parameter)] = nn.Parameter(other, requires_grad=False)
                    mine[name] = others[id(parameter)]
            stack.enter_context(in_place_of(layer, mine))
        yield
