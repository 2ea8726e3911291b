"""Install the hooks of a private training on a model's layers, and the guards on its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._coverage import CoveredLayer
from ._expanding import Expand
from ._forms import Form, form_of
from ._other_layers import BroadcastGradients
from ._recording import Copied, Freeze, Recorder


class _Guard:
    """Post-accumulate hook: what autograd itself accumulates is an un-noised sum, so it is deleted and refused."""

    def __init__(self, name: str, recorder: Recorder) -> None:
        self.name, self.recorder = name, recorder

    def __call__(self, parameter: Tensor) -> None:
        parameter.grad = None
        self.recorder.fail(
            f"parameter {self.name!r} received a gradient outside its layer's training forward: it was used directly "
            "(a penalty on weights belongs in the optimizer's weight_decay), its layer was in eval mode, or the model was "
            "compiled, traced or exported before make_private, or without hooks"
        )


class _PutForms:
    """Forward pre-hook of the whole module: its layers are done in their forms while its forward runs."""

    def __init__(self, forms: list[Form]) -> None:
        self.forms = forms

    def __call__(self, module: nn.Module, *_rest: Any) -> None:
        if not module.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        for form in self.forms:
            vars(form.layer).setdefault(form.method, form)  # somebody's own method stays

    def __reduce__(self) -> tuple[type[Copied], tuple[()]]:
        return Copied, ()


class _TakeForms:
    """Forward hook of the whole module, also after an error: its layers are as they were."""

    def __init__(self, forms: list[Form]) -> None:
        self.forms = forms

    def __call__(self, *_rest: Any) -> None:
        for form in self.forms:
            if vars(form.layer).get(form.method) is form:
                vars(form.layer).pop(form.method, None)  # another thread may be quicker

    def __reduce__(self) -> tuple[type[Copied], tuple[()]]:
        return Copied, ()


def attach(module: nn.Module, layers: list[CoveredLayer], recorder: Recorder, forms: bool) -> dict[str, str]:
    """Install the hooks on ``layers`` of ``module`` and the guards on their trainable parameters; also those that do layers
    in their own ``forms``; return which form each of these has."""
    found = {layer.name: form_of(layer.module) for layer in layers} if forms else {}
    if own := [form for form in found.values() if form is not None]:
        module.register_forward_pre_hook(_PutForms(own), prepend=True)
        module.register_forward_hook(_TakeForms(own), always_call=True)
    for layer in layers:
        freeze = (Expand if layer.rule is BroadcastGradients else Freeze)(layer, recorder)
        layer.module.register_forward_pre_hook(freeze, with_kwargs=True)
        handle = layer.module.register_forward_hook(freeze.thaw, with_kwargs=True, always_call=True, prepend=True)
        freeze.thaw.number = handle.id
        if isinstance(freeze, Expand):  # hooks are not called after an interrupt, and a model is saved then
            layer.module.register_state_dict_pre_hook(freeze.thaw)  # type: ignore[no-untyped-call]
        for name, parameter in layer.parameters.items():
            if id(parameter) not in recorder.trained:
                recorder.trained[id(parameter)] = parameter
                guard = _Guard(f"{layer.name}.{name}".lstrip("."), recorder)
                parameter.register_post_accumulate_grad_hook(guard)  # type: ignore[no-untyped-call]
    return {name: form.kind for name, form in found.items() if form is not None}


def is_attached(module: nn.Module) -> bool:
    """True if some layer of ``module`` carries our hooks."""
    return any(isinstance(hook, Freeze) for child in module.modules() for hook in child._forward_pre_hooks.values())
