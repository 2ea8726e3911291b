"""What a module does to a batch, as a list of torch's operations: recorded from a call on a few rows, not read from its code.

Weights and whatever else does not depend on the batch are constants. A module that does something that is not on the list
below, or that looks at values (``.item()``, ``if x.max() > 1``), draws random numbers or writes to its own tensors, cannot
be recorded. What a recording cannot know, who uses it has to try: whether the module takes another way at other samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class NotRecordedError(Exception):
    """The module does something that a recording cannot say."""


@dataclass(eq=False)
class Node:
    """An operation, and the place of its result."""

    kind: str  # as in _KINDS, or "input"
    function: Callable[..., Any] | None = None
    inputs: list[Node] = field(default_factory=list)  # what it takes of the batch, in order
    args: tuple[Any, ...] = ()  # of ``function``, with nodes in place of what depends on the batch
    shape: tuple[int, ...] = ()  # of the result, without the rows
    users: list[Node] = field(default_factory=list)


_KINDS = {
    aten.convolution.default: "convolution",
    aten.native_batch_norm.default: "norm",
    aten._native_batch_norm_legit_no_training.default: "norm",
    aten.relu.default: "relu",
    aten.relu_.default: "relu",
    aten.max_pool2d_with_indices.default: "pool",
    aten.addmm.default: "linear",
    aten.mm.default: "linear",
    aten.view.default: "view",
    aten._unsafe_view.default: "view",
    aten.add.Tensor: "add",
    aten.add_.Tensor: "add",
    aten.sub.Tensor: "arithmetic",
    aten.rsub.Scalar: "arithmetic",
    aten.mul.Tensor: "arithmetic",
    aten.div.Tensor: "arithmetic",
    aten.alias.default: "same",
    aten.clone.default: "same",
    aten.mean.dim: "plain",
    aten.avg_pool2d.default: "plain",
    aten._adaptive_avg_pool2d.default: "plain",
    aten.sigmoid.default: "plain",
    aten.tanh.default: "plain",
    aten.gelu.default: "plain",
    aten.silu.default: "plain",
    aten.elu.default: "plain",
    aten.leaky_relu.default: "plain",
    aten.hardtanh.default: "plain",
    aten.softplus.default: "plain",
}
_VALUES = {aten.relu_.default: aten.relu.default, aten.add_.Tensor: aten.add.Tensor}  # of those that work in place


def recorded(module: Callable[[Tensor], Any], batch: Tensor) -> tuple[list[Node], Tensor]:
    """The operations from batch to logits, in order, the batch itself first; and the logits.

    NotRecordedError if there are others. ``batch`` may be overwritten.
    """
    with torch.no_grad(), _Recorder(batch) as recorder:
        logits = module(batch)
    if not isinstance(logits, Tensor) or id(logits) not in recorder.node_of:
        raise NotRecordedError("the result is no tensor that depends on the batch")
    nodes = _needed(recorder.node_of[id(logits)])
    if nodes[0].kind != "input":
        raise NotRecordedError("the batch is not used")
    return nodes, logits


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, batch: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows = len(batch)
        self.node_of: dict[int, Node] = {id(batch): Node("input", shape=tuple(batch.shape[1:]))}
        self._alive: list[Any] = [batch]  # so that no identity is used twice
        self._views = {batch.untyped_storage()._cdata: 1}  # tensors of each storage
        self._unsaid: set[int] = set()  # further results of an operation

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotRecordedError(f"{func} draws random numbers")
        tensors = list(_tensors((*args, *(kwargs or {}).values())))
        taken = [value for value in tensors if id(value) in self.node_of]
        if any(id(value) in self._unsaid for value in tensors):
            raise NotRecordedError(f"{func} takes a further result of an operation")
        if not taken:
            if func._schema.is_mutable:
                raise NotRecordedError(f"{func} writes to a tensor of the module")
            return func(*args, **(kwargs or {}))
        kind = _KINDS.get(func)
        if kind is None or (kwargs and kind != "same"):
            raise NotRecordedError(f"{func} {sorted(kwargs or {})}")
        if func in _VALUES and (id(args[0]) not in self.node_of or self._views[args[0].untyped_storage()._cdata] > 1):
            raise NotRecordedError(f"{func} writes to a constant, or to what has several names")
        result = func(*args, **(kwargs or {}))
        first, *further = result if isinstance(result, tuple) else (result,)
        self._unsaid.update(id(value) for value in further)
        self._alive.extend(further)
        if first.ndim < 1 or len(first) != self._rows or (func is aten.mean.dim and _over_rows(args[0], args[1])):
            raise NotRecordedError(f"{func} mixes rows")
        node = Node(
            kind,
            _VALUES.get(func, func),
            [self.node_of[id(value)] for value in taken],
            tuple(self._noted(value) for value in args),
            tuple(first.shape[1:]),
        )
        self.node_of[id(first)] = node
        self._alive.append(first)
        storage = first.untyped_storage()._cdata
        if func not in _VALUES:
            self._views[storage] = self._views.get(storage, 0) + 1
        return result

    def _noted(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        node = self.node_of.get(id(value))
        return value.detach() if node is None else node


def _over_rows(values: Tensor, axes: Any) -> bool:
    return axes is None or any(axis % values.ndim == 0 for axis in axes)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _needed(last: Node) -> list[Node]:
    """The nodes that lead to ``last``, each after those that it takes."""
    order: list[Node] = []
    seen: set[Node] = set()
    waiting = [(last, False)]
    while waiting:
        node, ready = waiting.pop()
        if ready:
            order.append(node)
            for each in node.inputs:
                each.users.append(node)
        elif node not in seen:
            seen.add(node)
            waiting.append((node, True))
            waiting.extend((each, False) for each in reversed(node.inputs))
    return order
