"""A working copy of a module on the CPU that is a list of steps: see _recorded for where it comes from, _steps for the steps.

Batch norms are folded into convolutions, a ReLU before a pooling is done after it, and images are flattened as they lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._recorded import Node, NotRecordedError, aten, recorded
from ._steps import LAST, Add, Affine, Convolution, Linear, Plain, Pool, Relu, Slope, Slopes, Step, View

_RECORDED_ROWS = 2
_PACKED_FOR = 128  # rows, or fewer where the batch has fewer: layouts of weights for 2 rows cost a third more


class Program:
    """Called like the module; differentiable once with respect to the batch, as often as wanted after one forward pass."""

    def __init__(self, steps: list[Step], places: list[int], images: bool, row_bytes: int) -> None:
        """``places`` are those of the steps' results; the batch is at 0."""
        self._steps, self._places, self._images = steps, places, images
        self.row_bytes = row_bytes  # of the largest activation, for each sample
        last = {place: number for number, step in enumerate(steps) for place in step.takes}
        self._free = [[place for place, at in last.items() if at == number] for number in range(len(steps))]

    def __call__(self, batch: Tensor) -> Tensor:
        """Logits."""
        if torch.is_grad_enabled() and batch.requires_grad:
            logits: Tensor = _Pass.apply(batch, self)  # type: ignore[no-untyped-call]
            return logits
        with torch.no_grad():
            return self.forward(batch, None)

    def forward(self, batch: Tensor, kept: list[Any] | None) -> Tensor:
        """Logits; what a backward pass needs goes to ``kept``."""
        values = {0: batch.clone(memory_format=LAST) if self._images else batch}
        for step, place, free in zip(self._steps, self._places, self._free, strict=True):
            values[place] = step.forward([values[taken] for taken in step.takes], kept)
            for done in free:
                del values[done]
        return values[place]

    def backward(self, slope: Tensor, kept: list[Any]) -> Tensor | None:
        """From the gradient of the logits to that of the batch; None if they do not depend on it."""
        slopes = Slopes()
        slopes.share(self._places[-1], Slope(slope, 2))  # it is the caller's
        for step, place, its in zip(reversed(self._steps), reversed(self._places), reversed(kept), strict=True):
            if (here := slopes.taken(place)) is not None:
                step.backward(here, its, slopes)
        found = slopes.taken(0)
        return None if found is None else found.values


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, batch: Tensor, program: Program) -> Tensor:
        ctx.program, ctx.kept = program, []
        return program.forward(batch, ctx.kept)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, None]:
        return ctx.program.backward(slope, ctx.kept), None


def program(module: Callable[[Tensor], Any], batch: Tensor, least: int = 0) -> Program | None:
    """The module as a list of steps, or None where it cannot be had.

    Args:
        module: in eval mode; it is called on two rows of the batch.
        batch: on the CPU, float32, of two rows at least.
        least: multiplications a row below which it would not pay.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        nodes, _ = recorded(module, batch[:_RECORDED_ROWS].clone())
        if _multiplications(nodes) < least:
            return None
        return _built(nodes, min(len(batch), _PACKED_FOR))
    except (NotRecordedError, AttributeError, RuntimeError):  # RuntimeError: torch was built without an operation
        return None


def _multiplications(nodes: list[Node]) -> int:
    """Of a row, in convolutions and linear layers."""
    total = 0
    for node in nodes:
        if node.kind == "convolution":
            weight = node.args[1]
            total += weight[0].numel() * _size(node.shape)
        elif node.kind == "linear":
            total += node.args[-1].numel()
    return total


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _built(nodes: list[Node], rows: int) -> Program:
    builder = _Builder()
    for node in nodes[1:]:
        builder.add(node)
    largest = max(_size(node.shape) for node in nodes) * 4
    images = len(nodes[0].shape) == 3 and any(node.kind == "convolution" for node in nodes)
    for step in builder.steps:
        if isinstance(step, (Convolution, Linear)):
            step.pack(rows)
    return Program(builder.steps, builder.places, images, largest)


class _Builder:
    """Takes nodes in order and joins each to the step before it, where that can do its work."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.places: list[int] = []
        self._place_of: dict[Node, int] = {}
        self._fresh = 1
        self._maker: dict[int, Step] = {}  # of the place's result
        self._only: dict[int, bool] = {}  # whether the place has one reader
        self._waiting: dict[int, int] = {}  # places that are a ReLU of others, not computed

    def add(self, node: Node) -> None:
        """Plan the next operation."""
        getattr(self, f"_{node.kind}")(node)

    def _place(self, node: Node) -> int:
        return self._place_of.setdefault(node, 0)  # the batch

    def _new(self, node: Node, step: Step) -> None:
        self.steps.append(step)
        self.places.append(self._fresh)
        self._maker[self._fresh] = step
        self._named(node, self._fresh)
        self._fresh += 1

    def _named(self, node: Node, place: int) -> None:
        self._place_of[node] = place
        self._only[place] = len(node.users) <= 1

    def _joined(self, place: int, kind: type[Step] | tuple[type[Step], ...]) -> Any:
        """The step that made the place's result, if it is of a kind, nobody else reads it, and it ends without a ReLU."""
        step = self._maker.get(place)
        if isinstance(step, kind) and self._only[place] and not getattr(step, "relu", False):
            return step
        return None

    # -------------------------------------------------------------------------------------------- a method for each kind

    def _convolution(self, node: Node) -> None:
        x, weight, *_ = node.args
        if not isinstance(x, Node) or len(node.inputs) != 1 or node.args[6] or weight.ndim != 4 or len(x.shape) != 3:
            raise NotRecordedError("a convolution of another kind")
        _float(*[value for value in node.args if isinstance(value, Tensor)])
        self._new(node, Convolution(self._place(x), node.args, x.shape))

    def _norm(self, node: Node) -> None:
        [x] = node.inputs
        _, gamma, beta, mean, variance = node.args[:5]
        training, eps = (False, node.args[6]) if len(node.args) == 7 else (node.args[5], node.args[7])
        if training or mean is None or variance is None:
            raise NotRecordedError("a norm over the batch")
        factor = (variance.double() + eps).rsqrt()
        factor = factor if gamma is None else factor * gamma.double()
        offset = -mean.double() * factor
        offset = offset if beta is None else offset + beta.double()
        place = self._place(x)
        before = self._joined(place, Convolution)
        if before is not None and not before.added:
            before.scale(factor, offset)
            self._named(node, place)
        else:
            column = (-1, *[1] * (len(x.shape) - 1))
            self._new(node, Affine(place, factor.float().reshape(column), offset.float().reshape(column)))

    def _relu(self, node: Node) -> None:
        [x] = node.inputs
        place = self._place(x)
        before = self._joined(place, (Convolution, Linear, Pool))
        if before is not None and node.users and all(user.kind == "pool" for user in node.users):
            before = None if len(node.users) > 1 else before
            if before is not None and not getattr(before, "added", False):
                self._waiting[place] = place
                self._named(node, place)
                return
        if before is not None:
            before.relu = True
            self._named(node, place)
        else:
            self._new(node, Relu(place))

    def _pool(self, node: Node) -> None:
        if len(node.shape) != 3:
            raise NotRecordedError("a pooling of images without channels")
        place = self._place(node.inputs[0])
        step = Pool(place, node.args)
        step.relu = self._waiting.pop(place, None) is not None
        self._new(node, step)

    def _linear(self, node: Node) -> None:
        bias = node.args[0] if len(node.args) == 3 else None
        x, weight = node.args[-2:]
        nodes = [isinstance(value, Node) for value in (x, weight, bias)]
        if nodes != [True, False, False] or (bias is not None and bias.ndim != 1):
            raise NotRecordedError("a product that is no linear layer")
        _float(weight, *[] if bias is None else [bias])
        step = Linear(self._place(x), weight.t(), bias)
        before = self._joined(step.takes[0], View)
        if before is not None and before.flattens_images:
            before.as_it_lies = True
            step.weight = step.weight.reshape(-1, *before.before).permute(0, 2, 3, 1).reshape(len(step.weight), -1)
        before = self._joined(step.takes[0], Affine)
        if before is not None and not isinstance(before.factor, Tensor) and not isinstance(before.offset, Tensor):
            step.scale_input(before.factor, before.offset)
            self._drop(before)
            step.takes = before.takes
        self._new(node, step)

    def _drop(self, step: Step) -> None:
        at = self.steps.index(step)
        del self.steps[at], self.places[at]

    def _view(self, node: Node) -> None:
        [x] = node.inputs
        if _size(x.shape) != _size(node.shape):
            raise NotRecordedError("a view that mixes rows")
        self._new(node, View(self._place(x), x.shape, node.shape))

    def _same(self, node: Node) -> None:
        place = self._place(node.inputs[0])
        only = self._only.get(place, True)
        self._named(node, place)
        self._only[place] = self._only[place] and only

    def _add(self, node: Node) -> None:
        if len(node.inputs) < 2:
            self._arithmetic(node)
            return
        if len(node.args) > 2 or node.inputs[0].shape != node.inputs[1].shape:
            self._plain(node)
            return
        places = [self._place(x) for x in node.inputs]
        for mine, other in sorted((pair for pair in (places, places[::-1])), reverse=True):
            before = self._joined(mine, Convolution)
            if before is not None and not before.added and mine != other:
                self._drop(before)
                before.takes, before.added = [before.takes[0], other], True
                self._new(node, before)
                return
        self._new(node, Add(places))

    def _arithmetic(self, node: Node) -> None:
        function = node.function
        first, second, *rest = node.args
        constant = second if isinstance(first, Node) else first
        if len(node.inputs) > 1 or rest or (isinstance(constant, Tensor) and not _spreads(constant, node)):
            self._plain(node)
            return
        if isinstance(constant, Tensor):
            _float(constant)
            constant = float(constant) if constant.numel() == 1 else constant
        factor: Any = 1
        offset: Any = 0
        if function in (aten.mul.Tensor, aten.div.Tensor):
            if function is aten.div.Tensor and (not isinstance(first, Node) or _is_zero(constant)):
                self._plain(node)
                return
            factor = constant if function is aten.mul.Tensor else 1 / constant
        elif function is aten.rsub.Scalar:
            factor, offset = -1, constant
        elif function is aten.sub.Tensor:
            factor, offset = (1, -constant) if isinstance(first, Node) else (-1, constant)
        else:
            offset = constant
        place = self._place(node.inputs[0])
        before = self._joined(place, Affine)
        joined = [] if before is None else [factor, offset, before.factor, before.offset]
        if joined and not any(isinstance(value, Tensor) for value in joined):
            before.factor, before.offset = before.factor * factor, before.offset * factor + offset
            self._named(node, place)
        else:
            self._new(node, Affine(place, factor, offset))

    def _plain(self, node: Node) -> None:
        if any(isinstance(value, Tensor) and value.ndim > len(node.shape) + 1 for value in node.args):
            raise NotRecordedError("a constant of more axes")
        args = [Plain if isinstance(value, Node) else value for value in node.args]
        assert node.function is not None
        self._new(node, Plain([self._place(x) for x in node.inputs], node.function, args))


def _float(*values: Tensor) -> None:
    if any(value.dtype != torch.float32 or value.device.type != "cpu" for value in values):
        raise NotRecordedError("weights that are not float32 on the CPU")


def _is_zero(value: Any) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _spreads(constant: Tensor, node: Node) -> bool:
    """Whether it is the same for every row, and a result's shape is that of what it is combined with."""
    shape = node.inputs[0].shape
    own = tuple(constant.shape)
    if len(own) == len(shape) + 1:
        if own[0] != 1:
            return False
        own = own[1:]
    fits = all(size in (1, whole) for size, whole in zip(reversed(own), reversed(shape), strict=False))
    return len(own) <= len(shape) and fits and shape == node.shape
