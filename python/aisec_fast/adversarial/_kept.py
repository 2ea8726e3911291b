"""Lists of steps that are kept from one attack on a module to the next, as long as nothing of the module has changed.

Version counters do not tell: what is written through ``.data`` leaves them as they were. So the weights are hashed, and
beside them go the attributes of every submodule. What that cannot see (an object that was changed in place, a global, a
class that was patched), another trial has to: a list that was kept is tried again, on one row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import _backends, hashing
from ._program import Program

_MOST_VALUES = 1 << 23  # of a module's weights: a list may hold nine times as many, for as long as the module lives
_MOST_ENTRIES = 64  # of a list, tuple, dict or set among the attributes: longer ones are known by their identity
_held: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Program]] = WeakKeyDictionary()
_lock = threading.Lock()


def state(module: nn.Module, x: Tensor) -> tuple[Any, ...] | None:
    """All that a list of steps for batches like ``x`` depends on; None if it is not to be kept."""
    try:
        return _state(module, x)
    except Exception:  # noqa: BLE001 (of tensors and attributes of any kind, whose own code runs here)
        return None


def _state(module: nn.Module, x: Tensor) -> tuple[Any, ...] | None:
    tensors = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    if sum(tensor.numel() for tensor in tensors.values()) > _MOST_VALUES:
        return None
    hasher = hashing.blake3()
    for tensor in tensors.values():
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return None
        if tensor.numel():
            hasher.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors.values())
    numbers = {key: number for number, key in enumerate(tensors)}
    # A class by its identity: it may hold the module, which would never be freed then.
    parts = tuple((id(type(part)), type(part).__qualname__, *_attributes(part, numbers)) for part in module.modules())
    core = _backends.native_core()
    return hasher.digest(), shapes, parts, tuple(x.shape), torch.get_num_threads(), core and core.instruction_set()


def _attributes(part: nn.Module, numbers: dict[int, int]) -> Iterator[tuple[str, Any]]:
    """Values where they are plain, identities of other objects, versions of tensors that are no parameters, and which
    tensors and modules the part has."""
    for name, value in part.__dict__.items():
        if name in ("_parameters", "_buffers", "_modules", "training"):
            continue
        if isinstance(value, Tensor):
            yield name, (id(value), value.data_ptr(), value._version)
        elif isinstance(value, (int, float, str, type(None))):
            yield name, value
        elif isinstance(value, (tuple, list, dict, set)) and len(value) <= _MOST_ENTRIES:
            yield name, repr(value)
        else:
            yield name, id(value)
    for name, tensor in chain(part._parameters.items(), part._buffers.items()):
        yield name, None if tensor is None else numbers[id(tensor)]
    for name, child in part._modules.items():
        yield name, id(child)


def find(module: nn.Module, now: tuple[Any, ...] | None) -> Program | None:
    """The list that was kept in this state."""
    with _lock:
        held = _held.get(module)
    return held[1] if held is not None and now is not None and held[0] == now else None


def keep(module: nn.Module, now: tuple[Any, ...] | None, steps: Program) -> None:
    """Hold on to a list that has been tried, for as long as the module lives."""
    if now is not None:
        with _lock:
            _held[module] = now, steps


def forget(module: nn.Module) -> None:
    """The list has misled."""
    with _lock:
        _held.pop(module, None)
