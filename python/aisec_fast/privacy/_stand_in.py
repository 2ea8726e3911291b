"""What modules have in common that stand in for torch's own: the weights are in linear layers, which the engine covers, and
to state dicts they have torch's names."""

from __future__ import annotations

import operator
import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Made = dict[int, list[nn.Parameter]]  # from a parameter of torch's module, by identity: what it became

# What a module is called with and what it gives is as it was, so hooks that somebody put there go on working.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


class StandIn(nn.Module):
    """Stands in for a module of torch's.

    ``parts``: of each of its parameters, by torch's name, the names of those here that it is made of, one after the other in
    dimension 0; none if torch's module has None there.
    """

    torch_type: ClassVar[type[Any]]
    torch_names: ClassVar[str]  # what torch's parameters are called: a regular expression

    def __init__(self, plain: nn.Module, made: Made, apart: bool = False) -> None:
        """With the parameters of ``plain``; ``made`` keeps parameters shared that several modules share."""
        super().__init__()
        self.parts: dict[str, tuple[str, ...]] = {}
        self._take(plain, made, apart)
        self._order = [name for name, _ in plain.named_parameters(remove_duplicate=False)]
        self.train(plain.training)

    @classmethod
    def of(cls, plain: nn.Module, made: Made, apart: bool = False) -> StandIn:
        """In place of ``plain``, an instance of torch's class."""
        found = cls.__new__(cls)
        StandIn.__init__(found, plain, made, apart)
        for name in _HOOKS:
            if name in vars(plain):
                setattr(found, name, vars(plain)[name])
        return found

    @classmethod
    def fits(cls, plain: nn.Module) -> bool:
        """Whether ``plain`` is of torch's class and as that class made it: not pruned, parametrized or given a forward."""
        named = all(re.fullmatch(cls.torch_names, name) for name in plain._parameters)
        return type(plain) is cls.torch_type and named and "forward" not in vars(plain)

    def _take(self, plain: Any, made: Made, apart: bool) -> None:
        """Become what ``plain`` is. ``apart``: in attention, a layer each for queries, keys and values, as suits where they are
        not the same."""
        raise NotImplementedError

    def _shape(self, _name: str) -> tuple[int, ...] | None:
        """The shape of a parameter in torch's module, where it is not that of its parts."""
        return None

    def _layer(
        self, name: str, weight: nn.Parameter, bias: nn.Parameter | None, kind: type[nn.Linear] = nn.Linear
    ) -> nn.Linear:
        """A linear layer of this name with these parameters."""
        layer = kind(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        layer.weight = weight
        if bias is not None:
            layer.bias = bias
        layer.samples_first = True  # type: ignore[assignment]  # whatever the model does
        self.add_module(name, layer)
        return layer

    def __getattr__(self, name: str) -> Any:
        parts = self.__dict__.get("parts", {}).get(name)
        if parts is None:
            return super().__getattr__(name)
        # Not by get_parameter, which refuses what stands in for a parameter while a module around is differentiated.
        values: list[Tensor] = [operator.attrgetter(part)(self) for part in parts]
        shape = self._shape(name)
        if not values:
            return None
        whole = values[0] if len(values) == 1 else torch.cat(values)
        return whole if shape is None else whole.view(shape)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of torch's module."""
        found = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for name, parts in self.parts.items():
            values = [found.pop(prefix + part) for part in parts]
            if values:
                shape = self._shape(name)
                whole = values[0] if len(values) == 1 else torch.cat(values)
                found[prefix + name] = whole if shape is None else whole.view(shape)
        for name in self._order:
            found[prefix + name] = found.pop(prefix + name)
        return found

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, parts in self.parts.items():
            own = [self.get_parameter(part).detach() for part in parts]
            if not own or all(prefix + part in state_dict for part in parts):
                continue
            values = own  # of a missing or unfit one what is there already: a message is enough
            if prefix + name not in state_dict:
                if strict:
                    missing_keys.append(prefix + name)
            else:
                whole = state_dict.pop(prefix + name)
                shape = self._shape(name) or (sum(len(one) for one in own), *own[0].shape[1:])
                if tuple(whole.shape) == tuple(shape):
                    flat = whole if self._shape(name) is None else whole.view(own[0].shape)
                    values = list(flat.split([len(one) for one in own]))
                else:
                    error_msgs.append(
                        f"size mismatch for {prefix + name}: copying a param with shape {tuple(whole.shape)} from checkpoint, "
                        f"the shape in current model is {tuple(shape)}."
                    )
            state_dict.update({prefix + part: value for part, value in zip(parts, values, strict=True)})
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def pieces(whole: nn.Parameter, made: Made, count: int = 1, shape: tuple[int, ...] | None = None) -> list[nn.Parameter]:
    """``whole``, or equal parts of it in dimension 0, or the same values in another shape."""
    if count == 1 and shape is None:
        return [whole]
    if id(whole) not in made:
        values = whole.detach().clone()
        parts = values.chunk(count) if shape is None else [values.view(shape)]
        made[id(whole)] = [nn.Parameter(part.clone(), requires_grad=whole.requires_grad) for part in parts]
    return made[id(whole)]
