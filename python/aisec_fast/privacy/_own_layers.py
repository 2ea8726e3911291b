"""Layers of the user's own: their forward is differentiated for each sample alone.

Also modules of layers that have parameters themselves, and modules that work with the weights of their layers without calling
them. What such a module is called with is taken apart: tensors with a row for each sample, of which each sample gets its own,
and what is the same for all.
"""

from __future__ import annotations

import copy
import dis
import math
import pickle
import random
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as everybodys

from .._errors import PrivacyError
from . import _forms
from ._layers import LayerGradients, Memory, Statistics
from ._values import mapped, tensors_in
from ._written import version_of

# A sum of samples' gradients may differ from the batch's by this part of their norms, all told: far more than rounding
# makes of it, far less than samples that mix.
_ALIKE = 2.0**-8
_ROUNDINGS = 2.0**10  # that leave something of a gradient that is zero, as a part of all gradients of the layer
_PLAIN = (type(None), bool, int, float, complex, str, slice, Enum, torch.dtype, torch.device, torch.layout)
_LOOKS = ("dtype", "device", "shape", "requires_grad", "is_cuda")  # of a weight that is not worked with
_FORMED = (_forms.LinearForm.method, _forms.ConvolutionForm.method)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_HOOKS_OF_ALL = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)


# Of a layer and the modules in it: where attributes, buffers and modules are kept, and which those were.
Attributes = list[tuple[dict[str, Any], dict[str, Any]]]
_CONTAINERS = (dict, OrderedDict, list, set, deque)  # whose contents are attributes, too
_OF_ALL_MODULES = frozenset(vars(nn.Module()))

# Parameters and buffers of a layer and the modules in it, and how often each was written to, as far as torch knows.
Versions = list[tuple[Tensor, int]]

# A choice of arguments: by position or name how many tensors are in each, and which name (or yes or no) it is.
Choice = frozenset[tuple[Any, int, Any]]
_NAMES = (bool, str, Enum)


class _Place(NamedTuple):
    """Stands for a tensor in a call."""

    number: int


class Form(NamedTuple):
    """A call without its tensors: arguments by position and by name, with places for tensors; which choice of arguments it is;
    of which every sample has a row; which of them is the activation; and what attributes the layer had, and
    versions of its parameters."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    choice: Choice
    each: tuple[bool, ...]
    first: int
    attributes: Attributes
    versions: Versions


class Others(tuple[Tensor, ...]):
    """The tensors of a call beside the activation."""

    form: Form

    @classmethod
    def of(cls, tensors: Any, form: Form) -> Others:
        """These tensors of a call of this form."""
        found = cls(tensors)
        found.form = form
        return found

    def call(self, activation: Tensor) -> list[Tensor]:
        """All tensors of the call, in order."""
        return [*self[: self.form.first], activation, *self[self.form.first :]]


class Calls:
    """Takes calls of a layer without a rule apart. Which tensors have a row for each sample is decided once for each choice of
    arguments: a size that happens to be that of a batch decides nothing again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._each: dict[Choice, tuple[bool, ...]] = {}

    def take_apart(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, attributes: Attributes, versions: Versions
    ) -> tuple[Tensor, Others]:
        """What the layer was called with, while it had these ``attributes`` and ``versions`` of its parameters and buffers: the activation, and
        all else."""
        if not isinstance(output, Tensor) or not output.dim():
            kind = "a number" if isinstance(output, Tensor) else type(output).__name__
            raise self._error(f"gave {kind}; such a module must give one tensor")
        tensors: list[Tensor] = []

        def place(tensor: Tensor) -> Any:
            tensors.append(tensor)
            return _Place(len(tensors) - 1)

        form_args, form_kwargs = mapped((args, kwargs), place)
        if not all(is_plain(value) for value in (*form_args, *form_kwargs.values())):
            kinds = ", ".join(type(value).__name__ for value in (*args, *kwargs.values()))
            raise self._error(
                f"was called with ({kinds}); such a module must be called with tensors, numbers and names"
            )
        batch = output.shape[0]
        each = tuple(bool(one.dim()) and one.shape[0] == batch for one in tensors)
        choice = frozenset(
            (key, len(tensors_in(value)), value if isinstance(value, _NAMES) else None)
            for key, value in (*enumerate(args), *kwargs.items())
        )
        if batch > 1:  # of one sample all that has one row may count as its
            before = self._each.setdefault(choice, each)
            if any(then and not now for then, now in zip(before, each, strict=True)):
                raise self._error("was called with tensors that have samples in dimension 0 in some calls alone")
            each = before
        if not any(each):
            shapes = ", ".join(str(tuple(one.shape)) for one in tensors)
            raise self._error(
                f"gave {batch} samples, but none of its tensors has as many ({shapes or 'there are none'})"
            )
        first = each.index(True)
        rest = [one.detach() for i, one in enumerate(tensors) if i != first]
        return tensors[first].detach(), Others.of(
            rest, Form(form_args, form_kwargs, choice, each, first, attributes, versions)
        )

    def _error(self, what: str) -> PrivacyError:
        return PrivacyError(f"module {self.name!r} has no rule of its own and {what}")


def is_plain(value: Any) -> bool:
    """Whether no tensor can be hidden in ``value``."""
    if isinstance(value, (_Place, Tensor)):
        return True
    if isinstance(value, dict):
        return all(is_plain(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    return isinstance(value, _PLAIN)


def _with_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """``value`` with tensors at their places."""
    if isinstance(value, _Place):
        return tensors[value.number]
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_with_tensors(item, tensors) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_with_tensors(item, tensors) for item in value)
    return value


class OwnLayerGradients(LayerGradients):
    """A layer of the user's own that gives one tensor: its forward is differentiated for each sample alone, by
    ``trained``, all else of the module being constant.

    So a sample's gradient is a function of that sample's inputs and output gradient, whatever the layer does: clipping
    bounds it. That it is also the right one is seen once for each layer and choice of arguments: they must add up to the
    batch's.
    """

    takes_any_parameters = True
    _seen: ClassVar[weakref.WeakKeyDictionary[nn.Module, set[Choice]]] = weakref.WeakKeyDictionary()

    def __init__(
        self,
        layer: nn.Module,
        activation: Tensor,
        gradient: Tensor,
        others: Statistics | Others | None = None,
        memory: Memory | None = None,
        sparing: bool = False,
    ) -> None:
        super().__init__(layer, activation, gradient, None, memory, sparing)
        one_tensor = Others.of((), Form((_Place(0),), {}, frozenset({(0, 1, None)}), (True,), 0, [], []))
        self.others = others if isinstance(others, Others) else one_tensor
        self.trained: Mapping[str, Tensor] = {
            key: p for key, p in layer._parameters.items() if p is not None and p.requires_grad
        }

    @staticmethod
    def position_rank(_layer: Any) -> int:
        return 0

    def measures_by_torch(self) -> bool:
        return True

    def adds_by_torch(self) -> bool:
        return False

    def forget(self) -> None:
        super().forget()
        del self.others

    def made_of(self) -> list[Tensor]:
        return super().made_of() + list(getattr(self, "others", ()))

    def _rows(self, name: str, _start: int, _stop: int) -> Tensor:
        if not self.batch:
            return self.trained[name].new_empty((0, *self.trained[name].shape))
        layer, form = self.layer, self.others.form
        if any(version_of(one) != before for one, before in form.versions):
            raise PrivacyError(
                f"a parameter or buffer of {type(layer).__name__} was changed in place after its forward, before the step"
            )
        seen = self._seen.setdefault(layer, set())
        try:
            if form.choice not in seen and self.batch > 1:  # one sample shows nothing
                # As it is now, too: what it has begun to keep for later calls may hold its parameters.
                draws = _states_of_generators()
                told = [self._compare(attributes) for attributes in (attributes_of(layer), form.attributes)]
                if draws != _states_of_generators():
                    raise PrivacyError(f"{type(layer).__name__} has no rule, and its forward draws random numbers")
                if all(told):
                    seen.add(form.choice)
            rows = self._rows_of_all(form.attributes)
        except (PrivacyError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a forward may not take what a transform gives it, whatever it says then
            raise PrivacyError(
                f"{type(layer).__name__} has no rule, and its forward cannot be differentiated for each sample alone "
                f"({type(error).__name__}: {error}); it must be deterministic (no dropout while it trains), take samples in "
                "dimension 0 of tensors and give them in dimension 0 of another. Build it of covered layers, or freeze it"
            ) from error
        self._kept |= {key: value.contiguous() for key, value in rows.items()}
        return self._kept[name]

    def _rows_of_all(self, attributes: Attributes) -> dict[str, Tensor]:
        """The samples' gradients of all parameters, of the layer with these attributes."""
        layer: nn.Module = self.layer
        own = {key: p.detach() for key, p in self.trained.items()}
        form, tensors = self.others.form, self.others.call(self.activation)

        def of_sample(samples: list[Tensor], gradient: Tensor) -> dict[str, Tensor]:
            rows = iter(samples)
            mine = [next(rows).unsqueeze(0) if each else one for one, each in zip(tensors, form.each, strict=True)]

            def forward(parameters: dict[str, Tensor]) -> Any:
                with in_place_of(layer, {**constants, **parameters}):
                    return layer.forward(*_with_tensors(form.args, mine), **_with_tensors(form.kwargs, mine))

            found: tuple[dict[str, Tensor]] = torch.func.vjp(forward, own)[1](gradient.unsqueeze(0))
            return found[0]

        with _as_it_was(layer, attributes), _without_hooks(layer):
            named = layer.named_parameters(remove_duplicate=False)
            constants = {key: p.detach() for key, p in named if key not in own}
            samples = [one for one, each in zip(tensors, form.each, strict=True) if each]
            return torch.func.vmap(of_sample)(samples, self.gradient)

    def _compare(self, attributes: Attributes) -> bool:
        """Raise PrivacyError if rows do not add up to what torch finds for the batch, of the layer with these attributes: its
        forward may have its parameters from elsewhere than their names. False if this batch cannot tell."""
        rows = self._rows_of_all(attributes)
        uses: dict[int, list[str]] = {}
        for name, parameter in self.trained.items():
            uses.setdefault(id(parameter), []).append(name)
        parameters = [self.trained[names[0]] for names in uses.values()]
        form, tensors = self.others.form, self.others.call(self.activation)
        given: tuple[Tensor | None, ...] = (None,) * len(parameters)
        with _as_it_was(self.layer, attributes), _without_hooks(self.layer):
            with torch.enable_grad():
                output = self.layer.forward(*_with_tensors(form.args, tensors), **_with_tensors(form.kwargs, tensors))
            if output.requires_grad:
                given = torch.autograd.grad(output, parameters, self.gradient, allow_unused=True)
        sizes = {name: float(rows[name].flatten(1).double().norm(dim=1).sum()) for name in self.trained}
        # What rounding may leave of a gradient that is zero: that of a bias of keys, say.
        whole = sum(size for size in sizes.values() if math.isfinite(size))
        tells = True
        for names, parameter, total in zip(uses.values(), parameters, given, strict=True):
            values = torch.stack([rows[name].double() for name in names]).sum(0).flatten(1)
            if not bool(values.isfinite().all()):
                tells = False
                continue  # NaN and Inf are the clipping's to leave out
            size, info = sum(sizes[name] for name in names), torch.finfo(parameter.dtype)
            least = _ROUNDINGS * info.eps * whole + math.sqrt(parameter.numel()) * info.tiny
            added = values.sum(0)
            apart = float((added if total is None else added - total.double().flatten()).norm())
            tells &= size > least
            if not apart <= _ALIKE * size + least:
                raise PrivacyError(
                    f"{type(self.layer).__name__} has no rule, and what its forward does with a batch is not what it does "
                    f"with each sample alone: the gradients of {names[0]!r} differ. Build it of covered layers, or freeze it"
                )
        return tells


def _states_of_generators() -> Any:
    """Of the generators that no transform of torch knows: Python's, and NumPy's."""
    return random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002


def borrows(layer: nn.Module) -> bool:
    """Whether the forward of ``layer`` seems to work with the weight of a layer in it (``self.qkv.weight``), in place of calling
    that layer, so that no call shows what it does. Where this errs, training is slower or refused, never wrong."""
    code = getattr(type(layer).forward, "__code__", None)
    if code is None:
        return False
    names = [one.argval if one.opname.startswith("LOAD_") else "" for one in dis.get_instructions(code)]
    children = {name for name, child in layer.named_children() if any(p.requires_grad for p in child.parameters())}
    reads = zip(names, names[1:], [*names[2:], ""], strict=False)
    return any(name in children and key == "weight" and then not in _LOOKS for name, key, then in reads)


@contextmanager
def _without_hooks(layer: nn.Module) -> Iterator[None]:
    """Inside, no hook of the engine's is called in ``layer``, which runs another time; there may be no others."""
    for hooks in _HOOKS_OF_ALL:
        if getattr(everybodys, hooks) and any(True for _ in layer.children()):
            raise _hooked(layer, "all modules")
    for name, child in layer.named_modules():
        for hooks in _HOOKS if name else ():
            own = getattr(child, hooks)
            if any(not type(hook).__module__.startswith(__package__) for hook in own.values()):
                raise _hooked(layer, repr(name))
            if own:
                vars(child)[hooks] = OrderedDict()  # until attributes are what they were
    yield


def _hooked(layer: nn.Module, where: str) -> PrivacyError:
    return PrivacyError(
        f"{type(layer).__name__} has no rule, so that its forward runs another time in the backward pass, where a hook of "
        f"{where} would see it again; remove the hook, or freeze the parameters of {type(layer).__name__}"
    )


def attributes_of(layer: nn.Module) -> Attributes:
    """Those of now, without the engine's forms of layers, which are for the forward that goes on."""
    found: Attributes = []
    for kept in _places(layer):
        own = dict(kept)
        for method in _FORMED:
            if isinstance(own.get(method), _forms.Form):
                del own[method]
        for name, value in own.items():
            if type(value) in _CONTAINERS and name not in _OF_ALL_MODULES:
                own[name] = copy.copy(value)  # what is put into it later is not of now
        found.append((kept, own))
    return found


def _places(layer: nn.Module) -> Iterator[dict[str, Any]]:
    """Where a layer and the modules in it keep attributes, buffers and modules."""
    for module in layer.modules():
        yield from (vars(module), module._buffers, module._modules)


def versions_of(layer: nn.Module) -> Versions:
    """Those of now."""
    return [(one, version_of(one)) for one in (*layer.parameters(), *layer.buffers())]


@contextmanager
def _as_it_was(layer: nn.Module, then: Attributes) -> Iterator[None]:
    """Inside, attributes, buffers and modules of ``layer`` and the modules in it are what they were ``then``, when it was called;
    afterwards what they are now: nothing of a transform stays."""
    before = [(kept, dict(kept)) for kept in (*_places(layer), *(kept for kept, _ in then))]
    for now, values in then:
        now.clear()
        now.update(values)
    try:
        yield
    finally:
        for now, values in before:
            now.clear()
            now.update(values)


@contextmanager
def in_place_of(layer: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, ``layer`` has these tensors in place of its parameters of their names, which may be those of modules in it."""
    with ExitStack() as stack:
        for name, value in parameters.items():
            path, _, key = name.rpartition(".")
            own: dict[str, Any] = layer.get_submodule(path)._parameters
            stack.callback(own.__setitem__, key, own[key])
            own[key] = value
        yield
