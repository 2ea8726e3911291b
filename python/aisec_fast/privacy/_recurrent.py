"""Recurrent networks whose products are linear layers, so that they can be trained privately: in place of nn.RNN, nn.LSTM and
nn.GRU.

The products of a whole sequence with the inputs' weight are one use of a linear layer. Those with the states' weight must be
made step by step; they are, without autograd, and afterwards the layer is used once on the states of all steps, with the
gradients that the backward pass through time finds for its products. So a sample's gradient there is that of one layer on a
sequence, whose norm the engine takes as it is. The norm of T uses of a layer would be taken from T gradients.

States that are carried from one batch to the next would let a record act on the gradients of others: a private training starts
every batch from states of its own (docs/privacy.md, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import _VF, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from ._stand_in import Made, StandIn


class _OfStates(nn.Linear):
    """A linear layer that is used on the states of all steps, after they were taken: see ``_used``."""


class _Recurrent(StandIn):
    """Base of the three. The linear layers of layer ``l`` are ``ih_l``, ``hh_l`` and, with ``proj_size``, ``hr_l``."""

    torch_names = r"(weight_[ih][hr]|bias_[ih]h)_l\d+(_reverse)?"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(self.torch_type(*args, **options), {})

    def _take(self, plain: Any, made: Made, apart: bool) -> None:  # noqa: ARG002
        self.mode, self.input_size, self.hidden_size = plain.mode, plain.input_size, plain.hidden_size
        self.num_layers, self.bias, self.batch_first = plain.num_layers, plain.bias, plain.batch_first
        self.dropout, self.bidirectional, self.proj_size = plain.dropout, plain.bidirectional, plain.proj_size
        self._all_weights = [list(names) for names in plain._all_weights]
        self._text = plain.extra_repr()
        if plain.mode.startswith("RNN"):
            self.nonlinearity = plain.nonlinearity
        for weights in self._all_weights:
            for name in weights:
                kind, short = name.split("_", 1)
                self.parts[name] = (f"{short}.{kind}",)
                if kind == "weight":
                    kind_of_layer = nn.Linear if short.startswith("ih") else _OfStates
                    self._layer(short, getattr(plain, name), getattr(plain, f"bias_{short}", None), kind_of_layer)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """As torch's modules have them."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def flatten_parameters(self) -> None:
        """Nothing: parameters stay where they are."""

    def extra_repr(self) -> str:
        """As torch's modules have it."""
        return str(self._text)

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """See the forward of torch's module."""
        packed = isinstance(input, PackedSequence)
        values = input.data if packed else input
        if not packed and values.dim() not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {values.dim()}D tensor instead"
            )
        single = not packed and values.dim() == 2
        if values.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {values.shape[-1]}"
            )
        if single:
            values = values.unsqueeze(0 if self.batch_first else 1)
        batch = int(input.batch_sizes[0]) if packed else values.shape[0 if self.batch_first else 1]
        states = self._states(hx, single, batch, values)
        output: Any
        if packed:
            if input.sorted_indices is not None:
                states = [one.index_select(1, input.sorted_indices) for one in states]
            output, states = self._of_packed(input, states)
            if input.unsorted_indices is not None:
                states = [one.index_select(1, input.unsorted_indices) for one in states]
        else:
            by_steps = self.training and torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
            output, states = self._by_steps(values, states) if by_steps else self._by_torch(values, states)
        if single:
            output, states = output.squeeze(0 if self.batch_first else 1), [one.squeeze(1) for one in states]
        return output, tuple(states) if self._widths()[1:] else states[0]

    def _widths(self) -> list[int]:
        """Of each of the states."""
        return [self.hidden_size]

    def _states(self, hx: Any, single: bool, batch: int, values: Tensor) -> list[Tensor]:
        """The initial states [layers and directions, batch, width]."""
        count, widths = self.num_layers * (1 + self.bidirectional), self._widths()
        if hx is None:
            return [values.new_zeros(count, batch, width) for width in widths]
        given = list(hx) if isinstance(hx, (tuple, list)) else [hx]
        for one, width in zip(given, widths, strict=True):
            expected = (count, width) if single else (count, batch, width)
            if tuple(one.shape) != expected:
                raise RuntimeError(f"Expected hidden size {expected}, got {list(one.shape)}")
        return [one.unsqueeze(1) for one in given] if single else given

    def _of_packed(self, packed: PackedSequence, states: list[Tensor]) -> tuple[PackedSequence, list[Tensor]]:
        if self.training and torch.is_grad_enabled():
            raise ValueError(
                f"{type(self).__name__} does not train on packed sequences: they are as long as the longest record of their "
                "batch, which nobody may know. Pad the records to a fixed length, and take of the output what belongs to "
                "each, for example output[range(batch), lengths - 1]"
            )
        result = self._torchs(packed.data, packed.batch_sizes, states)
        return PackedSequence(result[0], packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), result[1]

    def _by_torch(self, values: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self._torchs(values, None, states)

    def _torchs(self, values: Tensor, sizes: Tensor | None, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What torch's own operation makes of it."""
        weights = [weight for of_layer in self.all_weights for weight in of_layer]
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        operation = getattr(_VF, self.mode.lower())
        hidden = states if len(self._widths()) > 1 else states[0]
        if sizes is None:
            output, *after = operation(values, hidden, weights, *options, self.batch_first)
        else:
            output, *after = operation(values, sizes, hidden, weights, *options)
        return output, after

    def _by_steps(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        x = x if self.batch_first else x.transpose(0, 1).contiguous()
        if not x.shape[1]:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        after: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            outputs = []
            for suffix in ("", "_reverse")[: 1 + self.bidirectional]:
                output, *ends = self._pass(x, f"l{layer}{suffix}", [one[len(after)] for one in states])
                outputs.append(output)
                after.append(ends)
            x = torch.cat(outputs, 2) if self.bidirectional else outputs[0]
            if layer < self.num_layers - 1 and self.dropout:
                # drawn in the order of torch's own, which has time first
                x = x * functional.dropout(x.new_ones(x.shape[1], len(x), x.shape[2]), self.dropout).transpose(0, 1)
        last = [torch.stack(one) for one in zip(*after, strict=True)]
        return x if self.batch_first else x.transpose(0, 1), last

    def _pass(self, x: Tensor, name: str, states: list[Tensor]) -> tuple[Tensor, ...]:
        """One direction of one layer: its outputs [B, T, width] and last states."""
        of_states = getattr(self, f"hh_{name}")
        projection = getattr(self, f"hr_{name}", None)
        products = getattr(self, f"ih_{name}")(x)
        order = range(x.shape[1])
        weights = of_states.weight, of_states.bias, None if projection is None else projection.weight
        with torch.autocast(x.device.type, enabled=False):
            with torch.no_grad():
                given = [one.detach().to(weights[0].dtype) for one in (products, *states)]
                taken = self._steps()(order[::-1] if name.endswith("reverse") else order)
                taken.weight, taken.bias, taken.projection = weights
                taken.run(*given)
            uses = [_used(of_states, taken.before)]
            if projection is not None:
                uses.append(_used(projection, taken.hidden))
            result: tuple[Tensor, ...] = _Through.apply(taken, products, *states, *uses)  # type: ignore[no-untyped-call]
        return result

    def _steps(self) -> type[_Steps]:
        """How the steps are taken."""
        raise NotImplementedError


class RNN(_Recurrent):
    """What :class:`torch.nn.RNN` does, with its arguments and keys of the state dict; packed sequences in eval mode alone."""

    torch_type = nn.RNN

    def _steps(self) -> type[_Steps]:
        return _TanhSteps if self.mode == "RNN_TANH" else _ReluSteps


class LSTM(_Recurrent):
    """What :class:`torch.nn.LSTM` does, with its arguments and keys of the state dict; packed sequences in eval mode alone."""

    torch_type = nn.LSTM

    def _widths(self) -> list[int]:
        return [self.proj_size or self.hidden_size, self.hidden_size]

    def _steps(self) -> type[_Steps]:
        return _LSTMSteps


class GRU(_Recurrent):
    """What :class:`torch.nn.GRU` does, with its arguments and keys of the state dict; packed sequences in eval mode alone."""

    torch_type = nn.GRU

    def _steps(self) -> type[_Steps]:
        return _GRUSteps


class _Way(NamedTuple):
    """What the way back through the steps of a pass needs."""

    needed: tuple[Tensor, ...]  # of what the steps have made
    weight: Tensor
    projection: Tensor | None
    # The gradients [B, width] of the outputs, from the last step's to the first's, and zeros for the initial state; written to:
    # in the end those of all states.
    slots: list[Tensor]
    last: list[Tensor]  # of other states, also written to

    def pairs(self, order: range) -> Iterator[tuple[Tensor, Tensor, int]]:
        """The gradient of a step's state, that of the state before it, and the step."""
        return zip(self.slots, self.slots[1:], reversed(order), strict=False)


class _Steps:
    """The steps of one pass, in ``order``, and the way back through them. All arrays are [B, T, ...]."""

    def __init__(self, order: range) -> None:
        self.order = order

    weight: Tensor
    bias: Tensor | None
    projection: Tensor | None
    outputs: Tensor
    last: list[Tensor]  # the states after the last step
    before: Tensor  # the state before each step
    hidden: Tensor  # what is projected
    needed: list[Tensor]  # on the way back

    def run(self, products: Tensor, *states: Tensor) -> None:
        """Take the steps: set what stands above. ``products`` are those of the inputs."""
        raise NotImplementedError

    def back(self, way: _Way) -> tuple[Tensor, Tensor]:
        """The gradients of the inputs' products and of the states' products."""
        raise NotImplementedError

    def shifted(self, states: Tensor, first: Tensor) -> Tensor:
        """The state before each step, from those after."""
        found = torch.empty_like(states)
        found[:, self.order[0]] = first
        if self.order.step > 0:
            found[:, 1:] = states[:, :-1]
        else:
            found[:, :-1] = states[:, 1:]
        return found

    def _with_bias(self, products: Tensor) -> Tensor:
        return products.clone() if self.bias is None else products + self.bias


class _TanhSteps(_Steps):
    def run(self, products: Tensor, *states: Tensor) -> None:
        state, turned = states[0], self.weight.t()
        self.outputs = self._with_bias(products)
        each = self.outputs.unbind(1)
        for t in self.order:
            state = self._activate(each[t].addmm_(state, turned))
        self.last, self.before = [state.clone()], self.shifted(self.outputs, states[0])
        self.needed = [self.before, self.last[0]]

    def _activate(self, x: Tensor) -> Tensor:
        return x.tanh_()

    def _slopes(self, results: Tensor) -> Tensor:
        """Of the activation where it gave ``results``."""
        return 1 - results.square()

    def back(self, way: _Way) -> tuple[Tensor, Tensor]:
        before, end = way.needed
        slopes = torch.empty_like(before)
        inner = self._slopes(before)  # of the step before
        if self.order.step > 0:
            slopes[:, :-1] = inner[:, 1:]
        else:
            slopes[:, 1:] = inner[:, :-1]
        slopes[:, self.order[-1]] = self._slopes(end)
        each = slopes.unbind(1)
        for slot, earlier, t in way.pairs(self.order):
            earlier.addmm_(each[t].mul_(slot), way.weight)
        return slopes, slopes


class _ReluSteps(_TanhSteps):
    def _activate(self, x: Tensor) -> Tensor:
        return x.relu_()

    def _slopes(self, results: Tensor) -> Tensor:
        return (results > 0).to(results.dtype)


class _LSTMSteps(_Steps):
    def run(self, products: Tensor, *states: Tensor) -> None:
        (state, cell), turned = states, self.weight.t()
        gates, size = self._with_bias(products), products.shape[2] // 4
        cells, self.hidden = (products.new_empty((*products.shape[:2], size)) for _ in range(2))
        self.outputs = self.hidden
        if self.projection is not None:
            self.outputs = products.new_empty((*products.shape[:2], self.projection.shape[0]))
        each, first, inner, out = (
            part.unbind(1)
            for part in (gates, gates[..., : 2 * size], gates[..., 2 * size : 3 * size], gates[..., 3 * size :])
        )
        kept, let_in = gates[..., size : 2 * size].unbind(1), gates[..., :size].unbind(1)
        each_cell, each_hidden, each_output = (one.unbind(1) for one in (cells, self.hidden, self.outputs))
        for t in self.order:
            each[t].addmm_(state, turned)
            first[t].sigmoid_()
            inner[t].tanh_()
            out[t].sigmoid_()
            cell = torch.mul(kept[t], cell, out=each_cell[t]).addcmul_(let_in[t], inner[t])
            state = torch.tanh(cell, out=each_hidden[t]).mul_(out[t])
            if self.projection is not None:
                state = torch.mm(state, self.projection.t(), out=each_output[t])
        self.last = [state.clone(), cell.clone()]
        self.before = self.shifted(self.outputs, states[0])
        self.needed = [gates, cells, states[1]]

    def back(self, way: _Way) -> tuple[Tensor, Tensor]:
        gates, cells, first = way.needed
        let_in, kept, inner, out = gates.chunk(4, 2)
        seen = cells.tanh()
        slopes = seen.square().neg_().add_(1).mul_(out)  # of the hidden state by the cell
        found = torch.empty_like(gates)
        of_let_in, of_kept, of_inner, of_out = found.chunk(4, 2)
        torch.mul(_sigmoid_slope(let_in), inner, out=of_let_in)
        torch.mul(_sigmoid_slope(kept), self.shifted(cells, first), out=of_kept)
        torch.mul(inner.square().neg_().add_(1), let_in, out=of_inner)
        torch.mul(_sigmoid_slope(out), seen, out=of_out)
        size = cells.shape[2]
        each, each_slope, each_kept, each_out = (one.unbind(1) for one in (found, slopes, kept, of_out))
        through_cell = found.view(*cells.shape[:2], 4, size)[:, :, :3].unbind(1)
        (cell,) = way.last
        for slot, earlier, t in way.pairs(self.order):
            hidden = slot if way.projection is None else slot @ way.projection
            cell.addcmul_(hidden, each_slope[t])
            through_cell[t].mul_(cell.unsqueeze(1))
            each_out[t].mul_(hidden)
            cell.mul_(each_kept[t])
            earlier.addmm_(each[t], way.weight)
        return found, found


class _GRUSteps(_Steps):
    def run(self, products: Tensor, *states: Tensor) -> None:
        state, turned, size = states[0], self.weight.t(), products.shape[2] // 3
        gates, of_state = products.clone(), torch.empty_like(products)
        self.outputs = products.new_empty((*products.shape[:2], size))
        each, inner_of_state = of_state.unbind(1), of_state[..., 2 * size :].unbind(1)
        first_of_state, first = (one[..., : 2 * size].unbind(1) for one in (of_state, gates))
        reset, update, inner = (one.unbind(1) for one in gates.chunk(3, 2))
        each_output = self.outputs.unbind(1)
        for t in self.order:
            if self.bias is None:
                torch.mm(state, turned, out=each[t])
            else:
                torch.addmm(self.bias, state, turned, out=each[t])
            first[t].add_(first_of_state[t]).sigmoid_()
            inner[t].addcmul_(reset[t], inner_of_state[t]).tanh_()
            state = torch.lerp(inner[t], state, update[t], out=each_output[t])
        self.last, self.before = [state.clone()], self.shifted(self.outputs, states[0])
        self.needed = [gates, of_state[..., 2 * size :].contiguous(), self.before]

    def back(self, way: _Way) -> tuple[Tensor, Tensor]:
        gates, inner_of_state, before = way.needed
        reset, update, inner = gates.chunk(3, 2)
        of_inputs, of_states = torch.empty_like(gates), torch.empty_like(gates)
        of_reset, of_update, of_inner = of_states.chunk(3, 2)
        slopes = inner.square().neg_().add_(1).mul_(1 - update)  # of the inner product
        torch.mul(slopes, reset, out=of_inner)
        torch.mul(_sigmoid_slope(reset), inner_of_state, out=of_reset).mul_(slopes)
        torch.mul(_sigmoid_slope(update), before - inner, out=of_update)
        size = inner.shape[2]
        each, each_slope, each_update = (one.unbind(1) for one in (of_states, slopes, update))
        by_gate = of_states.view(*inner.shape[:2], 3, size).unbind(1)
        for slot, earlier, t in way.pairs(self.order):
            by_gate[t].mul_(slot.unsqueeze(1))
            each_slope[t].mul_(slot)
            earlier.addcmul_(slot, each_update[t]).addmm_(each[t], way.weight)
        of_inputs[..., : 2 * size] = of_states[..., : 2 * size]
        of_inputs[..., 2 * size :] = slopes
        return of_inputs, of_states


def _sigmoid_slope(results: Tensor) -> Tensor:
    return results * (1 - results)


def _used(layer: nn.Linear, states: Tensor) -> Tensor:
    """Use ``layer`` on the states of all steps. What it gives is read by nobody: where autograd does not need its weight, NaN
    takes the place of products that the steps have made already, for a tenth of an LSTM's time."""

    def forward(input: Tensor) -> Tensor:
        if any(p.requires_grad for p in layer.parameters()):
            return functional.linear(input, layer.weight, layer.bias)
        return input.new_full((), math.nan).expand(*input.shape[:-1], layer.out_features)

    vars(layer)["forward"] = forward
    try:
        found: Tensor = layer(states)
        return found
    finally:
        del vars(layer)["forward"]


class _Through(torch.autograd.Function):
    """The results of steps that have been taken, and the way back: also to the uses of layers that stand for the steps'."""

    @staticmethod
    def forward(ctx: Any, steps: _Steps, products: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.states = len(steps.last)
        ctx.dtypes = [one.dtype for one in (products, *rest)]
        ctx.shape = steps.outputs.shape
        ctx.steps = type(steps)(steps.order)
        projection = () if steps.projection is None else (steps.projection,)
        ctx.save_for_backward(steps.weight, *steps.needed, *projection)
        ctx.is_projected = bool(projection)
        return (steps.outputs, *steps.last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *last: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, *needed = ctx.saved_tensors
        projection = needed.pop() if ctx.is_projected else None
        batch, _, width = ctx.shape
        whole = (
            weight.new_zeros(ctx.shape) if gradient is None else gradient.clone(memory_format=torch.contiguous_format)
        )
        order = ctx.steps.order
        of_first = weight.new_zeros(batch, width)
        slots = [*(whole[:, t] for t in reversed(order)), of_first]
        if last[0] is not None:
            slots[0].add_(last[0])
        others = [weight.new_zeros(batch, weight.shape[0] // 4) if one is None else one.clone() for one in last[1:]]
        of_inputs, of_states = ctx.steps.back(_Way(tuple(needed), weight, projection, slots, others))
        found = [of_inputs, of_first, *others, of_states]
        if projection is not None:
            found.append(whole)
        return (None, *(one.to(dtype) for one, dtype in zip(found, ctx.dtypes, strict=True)))
