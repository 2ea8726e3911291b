"""Lists of steps that are kept from one attack on a module to the next, as long as nothing of the module has changed.

Version counters do not tell: what is written through ``.data`` leaves them as they were. So the weights are hashed, and
beside them go the attributes of every submodule. What that cannot see (a list that was changed in place, a global), the
first look at logits has to: see ``TorchModel._misleads``.
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

_MOST_VALUES = 1 << 24  # of a module's weights; larger lists are too much memory to hold on to
_held: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Program]] = WeakKeyDictionary()
_lock = threading.Lock()


def state(module: nn.Module, x: Tensor) -> tuple[Any, ...] | None:
    """All that a list of steps for batches like ``x`` depends on; None if it is not to be kept."""
    tensors = [*module.parameters(), *module.buffers()]
    if sum(tensor.numel() for tensor in tensors) > _MOST_VALUES or any(tensor.is_meta for tensor in tensors):
        return None
    hasher = hashing.blake3()
    for tensor in tensors:
        if tensor.numel():
            hasher.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    parts = tuple((name, type(part), *_attributes(part)) for name, part in module.named_modules(remove_duplicate=False))
    shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
    core = _backends.native_core()
    return hasher.digest(), shapes, parts, tuple(x.shape), torch.get_num_threads(), core and core.instruction_set()


def _attributes(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """Values where they are plain, identities of other objects, and versions of tensors that are no parameters."""
    for name, value in part.__dict__.items():
        if name in ("_parameters", "_buffers", "_modules", "training"):
            continue
        if isinstance(value, Tensor):
            yield name, (id(value), value.data_ptr(), value._version)
        elif isinstance(value, (int, float, str, type(None))):
            yield name, value
        elif isinstance(value, (tuple, list, dict, set)):
            yield name, repr(value)
        else:
            yield name, id(value)
    for name, tensor in chain(part._parameters.items(), part._buffers.items()):
        yield name, None if tensor is None else tensor.shape


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
