"""Which layers of a model can be trained privately, and a named reason for everything that cannot."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import ParametrizationList

from .._errors import PrivacyError, UnsupportedModuleError
from ._attention import MultiheadAttention
from ._cells import EmbeddingBag, GRUCell, LSTMCell, RNNCell
from ._layers import LayerGradients
from ._other_layers import BroadcastGradients
from ._recurrent import GRU, LSTM, RNN
from ._rules import find_rule, refusal, rules_of_its_own, supported_names
from ._stand_in import Made, StandIn

STAND_INS: tuple[type[StandIn], ...] = (MultiheadAttention, RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell, EmbeddingBag)


@dataclass(frozen=True, eq=False)
class CoveredLayer:
    """A layer with a rule, and those of its parameters that are trained."""

    name: str
    module: nn.Module
    rule: type[LayerGradients]
    parameters: Mapping[str, nn.Parameter]
    shares: bool = False  # a parameter with another layer

    def settings(self) -> tuple[Any, ...]:
        """What its rule reads of the layer beside parameters, as it is now."""
        return tuple([getattr(self.module, name) for name in self.rule.settings])

    def check(self, settings: tuple[Any, ...]) -> None:
        """Raise PrivacyError if these are others: rules read them when norms and sums are made."""
        now = self.settings()
        if now != settings:
            names = [name for name, a, b in zip(self.rule.settings, now, settings, strict=True) if a != b]
            raise PrivacyError(
                f"module {self.name!r} has another {' and '.join(names)} than when it was called: call one module for each, and "
                "change a module after optimizer.step()"
            )


@dataclass
class Coverage:
    """What ``examine`` found: covered layers, and one error for each thing that stands in the way."""

    layers: list[CoveredLayer] = field(default_factory=list)
    errors: list[UnsupportedModuleError] = field(default_factory=list)


def examine(module: nn.Module) -> Coverage:
    """Sort the layers of ``module`` into covered ones and errors. Nothing is changed."""
    found = Coverage()
    parametrizing = {
        id(part) for child in module.modules() if isinstance(child, ParametrizationList) for part in child.modules()
    }
    wholes: list[str] = []  # beginnings of the names in modules that are differentiated as a whole
    before: dict[nn.Module, str] = {}  # names of layers that are covered one by one
    for name, child in module.named_modules():
        label = f"{name or 'the model itself'} ({type(child).__name__})"
        compiled = isinstance(child, torch.jit.ScriptModule)
        reason = "is TorchScript, whose layers run past hooks" if compiled else _coupling(child) or refusal(child)
        if reason is not None:
            found.errors.append(UnsupportedModuleError(f"module {label}: {reason}"))
            continue
        trainable = {
            key: p for key, p in child.named_parameters(recurse=False, remove_duplicate=False) if p.requires_grad
        }
        if any(map(name.startswith, wholes)):
            continue
        rules = {} if id(child) in parametrizing else _rules_of(child, trainable)  # the rows of a weight are no samples
        for key in [key for key in trainable if key not in rules]:
            message = (
                f"parameter {f'{name}.{key}'.lstrip('.')!r} of module {label} has no per-sample rule; "
                f"supported layers: {supported_names()}, and modules of your own that give one tensor. Freeze it "
                "(requires_grad_(False)), replace the layer, or put what uses the parameter into a module of its own"
            )
            if (other := _stand_in(child)) is not None:
                message += f": ModuleValidator.fix(model) puts aisec_fast.privacy.{other.__name__} in its place"
            found.errors.append(UnsupportedModuleError(message))
        if rules.keys() - trainable.keys():
            wholes.append(f"{name}." if name else "")
            if twice := [before[part] for part in child.modules() if part in before]:
                found.errors.append(
                    UnsupportedModuleError(
                        f"module {label}: works with the weights of layers in it, so that it is differentiated as a whole, but "
                        f"{twice[0]!r} is in it, too, whose gradients would count twice; give each of the two its own layer"
                    )
                )
        if rules:
            before[child] = name
        parameters = dict(child.named_parameters(remove_duplicate=False)) if rules else {}
        together: dict[object, dict[str, nn.Parameter]] = {}
        for key, rule in rules.items():
            together.setdefault((rule, key) if rule is BroadcastGradients else rule, {})[key] = parameters[key]
        for some in together.values():
            rule = rules[next(iter(some))]
            if rule is not None:
                found.layers.append(CoveredLayer(name, child, rule, some))
    holders = Counter(id(p) for layer in found.layers for p in layer.parameters.values())
    for i, layer in enumerate(found.layers):
        shares = any(holders[id(p)] > 1 for p in layer.parameters.values())
        found.layers[i] = dataclasses.replace(layer, shares=shares)
    return found


def _rules_of(layer: nn.Module, trained: Mapping[str, nn.Parameter]) -> Mapping[str, type[LayerGradients] | None]:
    """Rules by name; none for a parameter that has none."""
    rule = find_rule(layer)
    if rule is None:
        return rules_of_its_own(layer, trained)
    return {key: rule for key in trained if rule.takes_any_parameters or key in rule.parameter_names}


def _coupling(module: nn.Module) -> str | None:
    """The reason why this module mixes samples or keeps private statistics, or None."""
    if isinstance(module, _BatchNorm):
        return (
            f"{type(module).__name__} normalises each sample with the others of its batch and stores their statistics, "
            "also where its parameters are frozen; replace it by GroupNorm, for example with ModuleValidator.fix(model)"
        )
    if isinstance(module, _InstanceNorm) and module.track_running_stats:
        return (
            f"{type(module).__name__} with track_running_stats=True stores statistics of the batch; "
            "replace it by GroupNorm, for example with ModuleValidator.fix(model)"
        )
    if isinstance(module, (nn.DataParallel, DistributedDataParallel)):
        return f"{type(module).__name__} splits a batch over devices; pass the plain module on one device"
    return None


class ModuleValidator:
    """Check a model before training, and repair what can be repaired. Same names as Opacus's class."""

    @staticmethod
    def validate(module: nn.Module, *, strict: bool = False) -> list[UnsupportedModuleError]:
        """Return the errors that ``make_private`` would raise for the layers of ``module``; with ``strict``, raise
        them as one."""
        errors = examine(module).errors
        if strict and errors:
            raise UnsupportedModuleError("\n".join(map(str, errors)))
        return errors

    @classmethod
    def is_valid(cls, module: nn.Module) -> bool:
        """True if ``validate`` finds nothing."""
        return not cls.validate(module)

    @staticmethod
    def fix(module: nn.Module) -> nn.Module:
        """Return a copy of ``module`` with layers that can be trained privately in place of some that cannot; ``module`` is
        left as it is.

        BatchNorm over C channels becomes GroupNorm with gcd(32, C) groups (32 as in Wu and He, 2018), InstanceNorm
        becomes GroupNorm with C groups, which is the same function without running statistics. Scale and shift are
        kept. MultiheadAttention, RNN, LSTM, GRU, their cells and EmbeddingBag become the modules of these names in
        ``aisec_fast.privacy``, which compute the same with the same weights. The optimizer must be made from the returned model's parameters.
        """
        fixed = copy.deepcopy(module)
        root = nn.ModuleDict({"root": fixed})  # so that the model itself can be replaced like any child
        replaced: dict[int, nn.Module] = {}  # a layer used in two places stays one layer
        made: Made = {}
        for parent in list(root.modules()):
            for name, child in parent._modules.items():
                if child is None:
                    continue
                if id(child) not in replaced:
                    if isinstance(child, (_BatchNorm, _InstanceNorm)):
                        replaced[id(child)] = _group_norm(child)
                    elif (other := _stand_in(child)) is not None:
                        is_cross = isinstance(parent, nn.TransformerDecoderLayer) and name == "multihead_attn"
                        replaced[id(child)] = other.of(child, made, apart=is_cross)
                parent._modules[name] = replaced.get(id(child), child)
        return root["root"]


def _stand_in(module: nn.Module) -> type[StandIn] | None:
    """What ``fix`` puts in the place of ``module``, if it is one of torch's that do what we know."""
    return next((one for one in STAND_INS if one.fits(module)), None)


def _group_norm(norm: _BatchNorm | _InstanceNorm) -> nn.GroupNorm:
    channels = norm.num_features
    groups = channels if isinstance(norm, _InstanceNorm) else math.gcd(32, channels)
    new = nn.GroupNorm(groups, channels, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        new.to(device=norm.weight.device, dtype=norm.weight.dtype)
        with torch.no_grad():
            new.weight.copy_(norm.weight).requires_grad_(norm.weight.requires_grad)
            new.bias.copy_(norm.bias).requires_grad_(norm.bias.requires_grad)
    return new.train(norm.training)
