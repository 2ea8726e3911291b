"""Layers of the same shapes worked on together, on a GPU: there an operation on a few samples takes as long as its launch.

Their records are stacked, [layers, B, ...], in place of the records themselves. Bounds are those of the rules
(docs/privacy.md, section 3), their numbers in a column for each layer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import clipping
from . import _layers, _native
from ._charges import gamma, least
from ._clip import Norms, Total, Weights
from ._layers import (
    ConvGradients,
    LayerNormGradients,
    LinearGradients,
    chunks,
    row_squares,
    vector_norms,
    weighted_sums,
    within,
)

_MOST_COLUMNS = 4096  # of kept gradients that are copied to lie beside each other


def measure(uses: Iterable[Any]) -> None:
    """Take norms of those uses that left them for later, and keep their small gradients."""
    later = [use for use in dict.fromkeys(uses) if use.rule.alone and use.rule.measured_later() and not use.norms]
    if not later or not _native.on_gpu(later[0].rule.gradient):
        return
    linear = [use for use in later if isinstance(use.rule, LinearGradients)]
    single, sequences = ([use for use in linear if (use.rule.length == 1) == one] for one in (True, False))
    convolutions = [use for use in later if isinstance(use.rule, ConvGradients)]
    if single:
        _measure_outer_products(single)
    if convolutions:
        _measure_convolutions(convolutions)
    for group in _groups([use for use in later if isinstance(use.rule, LayerNormGradients)], _normalisation):
        if len(group) > 1:
            _keep_normalisations(group)
    if sequences:
        _measure_sequences(list(_groups(sequences, _sequence)))


def _groups(uses: Sequence[Any], kind: Any) -> Iterator[list[Any]]:
    """Uses of the same kind together, as many as memory for temporaries allows. ``kind`` gives it and a use's elements."""
    groups: dict[Hashable, list[Any]] = {}
    for use in uses:
        key, elements = kind(use)
        group = groups.setdefault(key, [])
        if group and (len(group) + 1) * elements > _layers.CHUNK_ELEMENTS:
            yield groups.pop(key)
            group = groups.setdefault(key, [])
        group.append(use)
    yield from groups.values()


def _sequence(use: Any) -> tuple[Hashable, int]:
    rule = use.rule
    (length, inputs), outputs = rule.inputs.shape[1:], rule.outputs.shape[2]
    blocks = max(1, rule.batch // rule.block())
    elements = max(rule.batch * length * max(inputs + outputs, 2 * length), blocks * inputs * outputs)
    return (length, inputs, outputs, rule.dtype, rule.gradient.device, tuple(use.layer.parameters)), elements


def _normalisation(use: Any) -> tuple[Hashable, int]:
    rule = use.rule
    shapes = tuple(rule.activation.shape), tuple(rule.layer.normalized_shape)
    names = tuple(use.layer.parameters)
    return (shapes, rule.layer.eps, rule.dtype, rule.gradient.device, names), 2 * rule.activation.numel()


def _measure_outer_products(uses: list[Any]) -> None:
    """Of linear layers of one position, whose gradient is an outer product."""
    factors = [one.flatten(1) for use in uses for one in (use.rule.inputs, use.rule.outputs)]
    squares = torch.stack([clipping._row_norms([one.contiguous()]) for one in factors]).square_()
    for use, found in zip(uses, (squares[::2] * squares[1::2]).unbind(), strict=True):
        use.norms["weight"] = Norms(found, found)


def _measure_convolutions(uses: list[Any]) -> None:
    """Of convolutions whose gradients are not kept: as the rule does it for one."""
    rules = [use.rule for use in uses]
    parts = [
        one
        for rule in rules
        for one in (rule.squares_in_chunks(), row_squares(rule.activation), row_squares(rule.gradient))
    ]
    norms, activations, gradients = torch.stack(parts).sqrt_().view(len(rules), 3, -1).unbind(1)
    numbers = []
    for rule in rules:
        terms, weight = rule.gradient.shape[2:].numel(), rule.layer.weight
        places = math.prod(rule.layer.kernel_size)
        numbers.append(
            (math.sqrt(places), gamma(terms, rule.dtype), terms * math.sqrt(weight.numel()) * least(rule.dtype))
        )
    places, losses, smallest = _columns(tuple(numbers), norms.device)
    lengths = (activations * gradients).mul_(places)
    upper = torch.addcmul(norms, lengths, losses).add_(smallest).square_()
    spreads = torch.maximum(lengths.square_(), upper)
    for use, found in zip(uses, zip(upper.unbind(), spreads.unbind(), strict=True), strict=True):
        use.norms["weight"] = Norms(*found)


def _keep_normalisations(uses: list[Any]) -> None:
    """Form and keep the gradients of normalisations of the same shape."""
    rules = [use.rule for use in uses]
    activation, gradient = (
        torch.stack(values) for values in zip(*((r.activation, r.gradient) for r in rules), strict=True)
    )
    shape = rules[0].layer.normalized_shape
    form = (len(rules), rules[0].batch, -1, *shape)
    rows: dict[str, Tensor] = {}
    for name in uses[0].layer.parameters:
        values = gradient
        if name == "weight":
            values = functional.layer_norm(activation, shape, None, None, rules[0].layer.eps).mul_(gradient)
        rows[name] = values.view(form).sum(2)
    for i, rule in enumerate(rules):
        rule.keep({name: of_all[i] for name, of_all in rows.items()})
        rule.forget()


def _measure_sequences(groups: list[list[Any]]) -> None:
    """Of linear layers on sequences, by Gram matrices; the gradients of their biases are kept in passing."""
    uses = [use for group in groups for use in group]
    first = uses[0].rule
    whole = torch.empty((3, len(uses), first.batch), dtype=torch.float64, device=first.gradient.device)
    done, numbers = 0, []
    for group in groups:
        stack = _Stack([use.rule for use in group])
        stack.measure(*whole[:, done : done + len(group)])
        done += len(group)
        if "bias" in group[0].layer.parameters:
            for use, rows in zip(group, stack.outputs.sum(2).unbind(), strict=True):
                use.rule.keep({"bias": rows})
        (length, d), p, dtype = stack.inputs.shape[2:], stack.outputs.shape[3], group[0].rule.dtype
        numbers += [(gamma(d + p + 4, dtype), (p + d + length**2) * least(dtype))] * len(group)
    squares, lengths, sums = whole
    losses, smallest = _columns(tuple(numbers), first.gradient.device)
    few = sums.add_(1.0).square_().mul_(smallest)
    norms = within(squares, losses, lengths, few)
    for use, upper, spreads in zip(uses, norms.squares.unbind(), norms.spreads.unbind(), strict=True):
        use.norms["weight"] = Norms(upper, spreads)


@functools.cache  # without end: recorded steps go on reading them
def _columns(numbers: tuple[tuple[float, ...], ...], device: torch.device) -> tuple[Tensor, ...]:
    """Columns of the numbers, of which there is a tuple for each layer, on the device; by operations that wait for nothing."""
    return tuple(
        torch.stack([torch.full((1,), number, dtype=torch.float64, device=device) for number in column])
        for column in zip(*numbers, strict=True)
    )


class _Stack:
    """Records of linear layers on sequences, all of the same shapes. The layers know of it, not it of the layers: what they
    let go of is gone."""

    def __init__(self, rules: list[LinearGradients]) -> None:
        self.layers, self.batch = len(rules), rules[0].batch
        if self.layers == 1:
            self.inputs, self.outputs = rules[0].inputs.unsqueeze(0), rules[0].outputs.unsqueeze(0)
            return
        self.inputs, self.outputs = torch.stack([r.inputs for r in rules]), torch.stack([r.outputs for r in rules])
        for i, rule in enumerate(rules):
            rule.move_to(self.inputs[i], self.outputs[i], (self, i))

    def measure(self, squares: Tensor, lengths: Tensor, sums: Tensor) -> None:
        """Write, [layers, B] each: Gram squares, the sum over positions of |a||g|, and that of |a| + |g|."""
        inputs, outputs = self.inputs.flatten(0, 1), self.outputs.flatten(0, 1)
        flat = squares.view(-1)
        for low, high in chunks(len(inputs), 2 * inputs.shape[1] ** 2):
            gram = torch.bmm(inputs[low:high], inputs[low:high].transpose(1, 2))
            gram.mul_(torch.bmm(outputs[low:high], outputs[low:high].transpose(1, 2)))
            torch.sum(gram, (1, 2), dtype=torch.float64, out=flat[low:high])
        a, g = vector_norms(inputs), vector_norms(outputs)
        torch.sum(a * g, 1, out=lengths.view(-1))
        torch.sum(a.add_(g), 1, out=sums.view(-1))

    def add(self, totals: list[Total], size: int, weights: Weights) -> None:
        """Add the layers' sums over samples, in blocks of ``size``. What is stacked is scaled where it lies, and of no use
        afterwards."""
        by_sample = self.inputs.transpose(0, 1), self.outputs.transpose(0, 1)
        smaller, larger = by_sample if self.inputs.shape[3] <= self.outputs.shape[3] else reversed(by_sample)
        weights.scale(smaller, own=True)
        weights.keep(larger, own=True)
        stop = self.batch // size * size
        for low, high, blocks in ((0, stop, stop // size), (stop, self.batch, 1)):
            if low == high:
                continue
            inputs, outputs = (
                one[:, low:high].reshape(self.layers * blocks, -1, one.shape[3]) for one in (self.inputs, self.outputs)
            )
            found = torch.bmm(outputs.transpose(1, 2), inputs).view(self.layers, blocks, outputs.shape[2], -1)
            for total, one in zip(totals, found[:, 0] if blocks == 1 else found.sum(1), strict=True):
                total.add(one)


def in_stacks(keys: list[int], rule_of: Callable[[int], Any]) -> list[list[int]]:
    """The keys, those whose layers are stacked, all of them among the keys, together where the first of them is."""
    members: dict[int, dict[int, int]] = {}
    for key in keys:
        if (place := _place(rule_of(key))) is not None:
            members.setdefault(id(place[0]), {})[place[1]] = key
    found: list[list[int]] = []
    for key in keys:
        place = _place(rule_of(key))
        here = [] if place is None else [one for _, one in sorted(members[id(place[0])].items())]
        if place is None or len(here) < place[0].layers:
            found.append([key])
        elif here not in found:
            found.append(here)
    return found


def _place(rule: Any) -> tuple[_Stack, int] | None:
    return rule.place if isinstance(rule, LinearGradients) else None


def add_stack(sums: list[tuple[Any, Total]], weights: Weights) -> None:
    """Add the sums of all layers of a stack."""
    first = sums[0][0]
    assert first.place is not None
    first.place[0].add([total for _, total in sums], min(first.batch, first.block()), weights)


class Beside:
    """Kept gradients [B, ...] of several parameters: those of few values copied to lie beside each other, [B, values]."""

    def __init__(self, kept: dict[int, Tensor]) -> None:
        few: dict[torch.dtype, list[int]] = {}
        for key, one in kept.items():
            if one.shape[1:].numel() <= _MOST_COLUMNS:
                few.setdefault(one.dtype, []).append(key)
        joined = [keys for keys in few.values() if len(keys) > 1]
        self.keys = joined + [[key] for key in kept if not any(key in keys for keys in joined)]
        self.shapes = {key: one.shape[1:] for key, one in kept.items()}
        self.rows = [
            kept[keys[0]] if len(keys) == 1 else torch.cat([kept[key].flatten(1) for key in keys], 1)
            for keys in self.keys
        ]

    def add(self, totals: dict[int, Total], weights: Weights) -> None:
        """Add each parameter's sum over samples."""
        for keys, found in zip(self.keys, weighted_sums(self.rows, weights), strict=True):
            parts = torch.split(found.view(-1), [self.shapes[key].numel() for key in keys])
            for key, part in zip(keys, parts, strict=True):
                totals[key].add(part.view(self.shapes[key]))
