"""Record what each covered layer saw and what gradient came back, in one backward pass.

During its forward a covered layer's own parameters do not require grad, so autograd builds no weight-gradient nodes.
Its output then goes through a *tap*, an identity whose backward records (activation, output gradient) and passes the
gradient on. The sums over the batch that a plain backward would leave in ``.grad`` are never computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .._errors import PrivacyError
from ._coverage import CoveredLayer


@dataclass(frozen=True)
class Record:
    """One use of a layer: its input and the gradient of the loss with respect to its output, both with all samples."""

    layer: CoveredLayer
    activation: Tensor
    gradient: Tensor


class Recorder:
    """The records of one backward pass. A second pass before they are taken is an error that stays until ``drop``."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._pass: int | None = None
        self._failure: str | None = None
        # An input of the tap that requires grad: a first layer, whose own input requires none, is recorded too.
        self.anchor = torch.zeros(1, requires_grad=True)

    def add(self, record: Record) -> None:
        """Keep ``record``, which was made during a backward pass."""
        number = torch._C._current_graph_task_id()
        if self._pass is not None and number != self._pass:
            self.fail(
                "two backward passes before optimizer.step(): add the losses and call backward() once; "
                "if the first pass was not meant for training, call optimizer.zero_grad() after it "
                "(reentrant checkpointing also makes several passes: use_reentrant=False)"
            )
        self._pass = number
        self._records.append(record)

    def fail(self, message: str) -> None:
        """Raise PrivacyError, now and at every later step until ``drop``: what has been recorded cannot be trusted."""
        self._records.clear()
        self._failure = message
        raise PrivacyError(message)

    def take(self) -> list[Record]:
        """Return the records and forget them."""
        if self._failure is not None:
            raise PrivacyError(
                f"this step cannot be private ({self._failure}); call optimizer.zero_grad() and start it again"
            )
        records = self._records
        self.drop()
        return records

    def drop(self) -> None:
        """Forget everything, also a failure."""
        self._records, self._pass, self._failure = [], None, None


class _Tap(torch.autograd.Function):
    """Identity; its backward records. The output is marked dirty, not viewed: in-place operations may follow."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, _anchor: Tensor, activation: Tensor, layer: CoveredLayer, recorder: Recorder
    ) -> Tensor:
        ctx.mark_dirty(output)
        ctx.save_for_backward(activation)  # torch then notices if somebody changes the activation in place
        ctx.layer, ctx.recorder = layer, recorder
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (activation,) = ctx.saved_tensors
        ctx.recorder.add(Record(ctx.layer, activation, gradient))
        return (gradient if ctx.needs_input_grad[0] else None), None, None, None, None


class _Freeze:
    """Forward pre-hook: the layer's trainable parameters do not require grad while its forward runs."""

    def __init__(self, layer: CoveredLayer) -> None:
        self.layer = layer
        self.active = False

    def __call__(self, module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        # In eval mode or without grad nothing is recorded and nothing is touched.
        self.active = module.training and torch.is_grad_enabled()
        if self.active:
            for parameter in self.layer.parameters.values():
                parameter.requires_grad_(False)

    def __reduce__(self) -> tuple[type[_CopiedFreeze], tuple[str]]:
        return _CopiedFreeze, (self.layer.name,)


class _Thaw:
    """Forward hook, also after an error: parameters require grad again, the output goes through the tap."""

    def __init__(self, freeze: _Freeze, recorder: Recorder) -> None:
        self.freeze, self.recorder = freeze, recorder

    def __call__(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor | None
    ) -> Tensor | None:
        if not self.freeze.active:
            return None
        self.freeze.active = False
        for parameter in self.freeze.layer.parameters.values():
            parameter.requires_grad_(True)
        if output is None:  # the forward raised
            return None
        activation: Tensor = args[0] if args else kwargs["input"]
        tapped: Tensor = _Tap.apply(  # type: ignore[no-untyped-call]
            output, self.recorder.anchor, activation.detach(), self.freeze.layer, self.recorder
        )
        return tapped

    def __reduce__(self) -> tuple[type[_CopiedThaw], tuple[()]]:
        return _CopiedThaw, ()


class _CopiedFreeze:
    """What a copy (deepcopy, pickle) of a private model carries: good for inference, refuses to train unprotected."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, *_rest: Any) -> None:
        if module.training and torch.is_grad_enabled():
            raise PrivacyError(
                f"module {self.name!r} belongs to a copy of a private model, which no engine protects: use it in eval "
                "mode or under no_grad, or load its state_dict into a fresh model"
            )


class _CopiedThaw:
    """Does nothing: the copied pre-hook has refused already where it had to."""

    def __call__(self, *_rest: Any) -> None:
        return


class _Guard:
    """Post-accumulate hook: what autograd itself accumulates is an un-noised sum, so it is deleted and refused."""

    def __init__(self, name: str, recorder: Recorder) -> None:
        self.name, self.recorder = name, recorder

    def __call__(self, parameter: Tensor) -> None:
        parameter.grad = None
        self.recorder.fail(
            f"parameter {self.name!r} received a gradient outside its layer's training forward: it was used directly "
            "(a penalty on weights belongs in the optimizer's weight_decay), or its layer was in eval mode"
        )


def attach(layers: list[CoveredLayer], recorder: Recorder) -> None:
    """Install the hooks on ``layers`` and the guards on their trainable parameters."""
    guarded: set[int] = set()
    for layer in layers:
        freeze = _Freeze(layer)
        layer.module.register_forward_pre_hook(freeze, with_kwargs=True)
        # First among the hooks: the gradient recorded is that of the layer's own output, before other hooks change it.
        layer.module.register_forward_hook(_Thaw(freeze, recorder), with_kwargs=True, always_call=True, prepend=True)
        for name, parameter in layer.parameters.items():
            if id(parameter) not in guarded:
                guarded.add(id(parameter))
                guard = _Guard(f"{layer.name}.{name}".lstrip("."), recorder)
                parameter.register_post_accumulate_grad_hook(guard)  # type: ignore[no-untyped-call]


def is_attached(module: nn.Module) -> bool:
    """True if some layer of ``module`` carries our hooks."""
    return any(isinstance(hook, _Freeze) for child in module.modules() for hook in child._forward_pre_hooks.values())
