"""One rule per layer type: per-sample gradient norms and clipped sums from (activation, output gradient).

A rule is made for one use of a layer, in the backward pass, and answers for each of its trainable parameters, by name:

    kept(name)                 [B, *shape], the samples' gradients where they are small enough to be made and kept, or None
    kept_squares               squared norms that came with kept gradients, [B] each, by name
    norms(name)                Norms of each sample's gradient
    rows(name, start, stop)    [stop - start, *shape], the gradients of some samples, where nothing else will do
    add_total(name, weights, total)    adds the sum over samples of weight times gradient; a sample of weight 0 is
                               selected away, never multiplied, so that its NaN or Inf stays out
    terms(name)                how many products of one sample a float sum of ``add_total`` adds up; 0: none
    rounding(name)             what such a sum is charged for
    measures_by_torch()        whether norms and kept gradients may be made by products or convolutions of torch
    adds_by_torch()            whether ``add_total`` may
    recordable()               whether, on a GPU, all of this is done by operations that may be recorded and replayed
    measured_later()           whether norms and kept gradients are made in the step, of several layers at once: by
                               ``measure_single_positions``, or on a GPU by _together.py

``activation`` and ``gradient`` have the batch in dimension 0. Sources: Goodfellow 2015 (norms of a Linear layer from
its input and output gradient), Li et al. 2022 (Gram matrices for sequences), Rochette et al. 2019 (grouped
convolutions). Error bounds: docs/privacy.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import clipping, ghost
from . import _native
from ._charges import Rounding, block_size, gamma, least, rounding
from ._clip import Norms, Total, Weights

# Elements that one temporary of a rule may hold (64 MiB of float32): larger work is done a few samples at a time.
CHUNK_ELEMENTS = 2**24
# Per-sample gradients of a weight are kept from the norms to the sum if they are at most so many times as large as what
# they are made of. This must not depend on the size of the batch: the charge for rounding does depend on it, and a
# batch's size is as secret as its members.
KEEP_FACTOR = 4
# To save memory gradients that are larger than what they are made of are made twice in place of being kept, so many
# elements at a time (half a MiB of float32).
PART_ELEMENTS = 2**17
# On a GPU what a normalisation saw and what came back is held until the step, to be worked on with that of others, if it is
# no larger: then launches are what it costs.
_LATE_ELEMENTS = 2**20
# Of embeddings: so many rows a token, on average, have one place in a sum at most, and so many columns are summed at least.
_ROWS_AT_A_PLACE = 16
_LEAST_COLUMNS = 16


# Memory for the gradients that a rule keeps: called with a shape and dtype and device as torch.empty is.
Memory = Callable[..., Tensor]
# What a normalisation's forward has computed: mean and 1 / deviation of each group of values.
Statistics = tuple[Tensor, Tensor]


class LayerGradients:
    """Base of the rules; see the module's docstring."""

    layer_type: ClassVar[type[nn.Module]]
    parameter_names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    settings: ClassVar[tuple[str, ...]] = ()  # attributes of the layer that it reads, beside parameters
    takes_any_parameters: ClassVar[bool] = False
    takes_sequences: ClassVar[bool] = False  # and may therefore have time before the batch

    def __init__(
        self,
        layer: Any,
        activation: Tensor,
        gradient: Tensor,
        statistics: Statistics | None = None,
        memory: Memory | None = None,
        sparing: bool = False,
    ) -> None:
        """``sparing``: gradients that are larger than what they are made of may be made twice in place of being kept."""
        self.layer, self.activation, self.gradient, self.statistics = layer, activation, gradient, statistics
        self.memory, self.sparing = memory or torch.empty, sparing
        self.batch, self.dtype = gradient.shape[0], gradient.dtype
        # Whether the layer's parameters are used nowhere else: the norms of one term are the gradient's own then.
        self.alone = True
        self.forgotten = False
        self._kept: dict[str, Tensor] = {}
        self.kept_squares: dict[str, Tensor] = {}

    @staticmethod
    def position_rank(layer: Any) -> int:  # noqa: ARG004
        """How many of the last dimensions of the layer's input belong to one position of one sample."""
        return 1

    def keeps(self, name: str) -> bool:  # noqa: ARG002
        """True if the samples' gradients of parameter ``name`` are small enough to be made and kept."""
        return True

    def makes_twice(self, name: str) -> bool:  # noqa: ARG002
        """True if ``keeps`` is, but they are made again for the sum, to the same bits."""
        return False

    def kept(self, name: str) -> Tensor | None:
        """[B, *shape]: the samples' gradients of parameter ``name``, or None."""
        if name not in self._kept and self.keeps(name) and not self.makes_twice(name):
            self._kept[name] = self._rows(name, 0, self.batch)
        return self._kept.get(name)

    def keep(self, rows: dict[str, Tensor]) -> None:
        """Take the samples' gradients of these parameters, made elsewhere, as they are."""
        self._kept |= rows

    def forget(self) -> None:
        """Drop what all kept gradients were made from."""
        self.forgotten = True
        del self.activation, self.gradient

    def made_of(self) -> list[Tensor]:
        """What the sums will be made of."""
        own = (getattr(self, "activation", None), getattr(self, "gradient", None))
        return [one for one in own if one is not None] + list(self._kept.values())

    def held(self) -> int:
        """How many values are let go once the sums are made."""
        return self.activation.numel() + self.gradient.numel()

    def norms(self, name: str) -> Norms:
        """The norms of the samples' gradients of parameter ``name``."""
        rows = self.kept(name)
        if rows is None:
            return self._norms(name)
        squares = self.kept_squares.get(name)
        squares = row_squares(rows) if squares is None else squares
        return Norms(squares, squares)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """[stop - start, *shape]: the gradients of samples ``start`` to ``stop``."""
        rows = self.kept(name)
        return self._rows(name, start, stop) if rows is None else rows[start:stop]

    def terms(self, name: str) -> int:
        """Products of one sample in a float sum of ``add_total``; 0 if gradients are kept and summed in float64."""
        return 0 if name in self._kept or self.keeps(name) else self._terms()

    def rounding(self, name: str) -> Rounding:
        """What the sum over samples of ``add_total`` is charged for."""
        terms = self.terms(name)
        if terms:
            return rounding(terms, self.block(), self.dtype, alone=self.alone)
        return Rounding(samples=1) if self.dtype == torch.float64 else Rounding()  # rows are added in float64

    def measured_later(self) -> bool:
        """True if norms, or the gradients to be kept, are made of several layers at once when the step is taken."""
        return False

    def measures_by_torch(self) -> bool:
        """False if no product or convolution of torch is needed for norms and kept gradients."""
        return True

    def adds_by_torch(self) -> bool:
        """False if none is needed for the sums."""
        return not self.keeps("weight")

    def recordable(self) -> bool:
        """True if, on a GPU, norms and sums are made by operations of fixed shapes that never wait for the device: what a
        recorded step may replay."""
        return False

    def add_total(self, name: str, weights: Weights, total: Total) -> None:
        """Add the sum over samples of ``weights[i]`` times sample i's gradient to ``total``."""
        rows = self.kept(name)
        if rows is not None:
            total.add(weighted_sums([rows], weights)[0])
            return
        size = self.block()
        for start in range(self._add_blocks(size, weights, total), self.batch, size):
            stop = min(self.batch, start + size)
            self._add_product(start, stop, weights.part(start, stop), total)

    def _add_blocks(self, _size: int, _weights: Weights, _total: Total) -> int:
        """Add blocks of ``size`` samples in fewer operations than ``_add_product`` would; the number of samples in them."""
        return 0

    def block(self) -> int:
        """How many samples one product of ``add_total`` sums up."""
        return block_size(self._terms(), self.dtype, alone=self.alone)

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        raise NotImplementedError

    def _norms(self, name: str) -> Norms:
        raise NotImplementedError

    def _terms(self) -> int:
        raise NotImplementedError

    def _add_product(self, start: int, stop: int, weights: Weights, total: Total) -> None:
        """Add the weighted sum over samples ``start`` to ``stop`` of the weight's gradient, in one product."""
        raise NotImplementedError


class LinearGradients(LayerGradients):
    """Linear on [B, d] or [B, ..., d]: never a B x D matrix."""

    layer_type = nn.Linear
    takes_sequences = True

    def __init__(
        self, layer: nn.Linear, activation: Tensor, gradient: Tensor, _statistics: None = None, _memory: Any = None,
        sparing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(layer, activation, gradient.contiguous(), sparing=sparing)
        gradient = self.gradient
        self.inputs = activation.flatten(1, -2) if activation.dim() > 2 else activation.unsqueeze(1)  # [B, T, d]
        self.outputs = gradient.flatten(1, -2) if gradient.dim() > 2 else gradient.unsqueeze(1)  # [B, T, p]
        self.length = self.inputs.shape[1]
        self._native = None if _native.on_gpu(gradient) else _native.kernels(gradient)
        self._by_gram: Norms | None = None
        self.place: tuple[Any, int] | None = None  # in a stack of layers that are worked on together

    def forget(self) -> None:
        super().forget()
        del self.inputs, self.outputs

    def move_to(self, inputs: Tensor, outputs: Tensor, place: tuple[Any, int]) -> None:
        """Take copies of inputs and outputs, which are in a stack at ``place``, for them."""
        self.activation = self.inputs = inputs
        self.gradient = self.outputs = outputs
        self.place = place

    def keeps(self, name: str) -> bool:
        return name == "bias" or (self._dear_gram() and _worth_keeping(self))

    def _dear_gram(self) -> bool:
        """True where gradients cost less than Gram matrices."""
        if _native.on_gpu(self.gradient):  # where both are cuBLAS products, what they move decides (Bu et al. 2022)
            return self.length > 1 and 2 * self.length**2 > math.prod(self._widths())
        return self.length > 1 and ghost.cheapest(1, self.length, *self._widths()) == "rows"

    def _widths(self) -> tuple[int, int]:
        return self.inputs.shape[2], self.outputs.shape[2]

    def measured_later(self) -> bool:
        if self.forgotten:
            return False
        if _native.on_gpu(self.gradient):
            trained = self.layer.weight.requires_grad
            return bool(trained and self.batch and self.length and not self.sparing and not self._dear_gram())
        return self.length == 1 and self._native is not None and max(self._widths()) <= ghost.LARGEST_WIDTH

    def measures_by_torch(self) -> bool:
        return self._native is None or not (self.measured_later() or self._has_gram_kernel())

    def adds_by_torch(self) -> bool:
        return not (self.has_product("weight") or self.keeps("weight"))

    def recordable(self) -> bool:
        return True

    def _norms(self, name: str) -> Norms:
        if self.length == 1:  # the gradient is an outer product, and the bias's is one of its factors
            self.kept_squares["bias"] = row_squares(self.outputs)
            squares = row_squares(self.inputs) * self.kept_squares["bias"]
            return Norms(squares, squares)
        d, p = self._widths()
        if self._has_gram_kernel():
            if self._by_gram is None:
                self._by_gram = self._gram_norms(ghost.gram_roundoff(self.length, d, p))
            return self._by_gram
        a, g = vector_norms(self.inputs), vector_norms(self.outputs)
        lengths = (a * g).sum(1)
        if self._dear_gram():
            squares = _in_chunks(self.batch, d * p, lambda lo, hi: row_squares(self.rows(name, lo, hi)), self.gradient)
            return _with_error(squares, lengths, self.length, d * p, self.dtype)
        squares = _in_chunks(self.batch, 2 * self.length**2, self._gram_squares, self.gradient)
        # p (sum a)^2 + d (sum g)^2 + T^2 products and sums below the normal range, in fewer operations than that
        few = (p + d + self.length**2) * least(self.dtype) * ((a + g).sum(1) + 1.0).square()
        return within(squares, gamma(d + p + 4, self.dtype), lengths, few)

    def kept(self, name: str) -> Tensor | None:
        comes = name == "bias" and name not in self._kept and self.layer.weight.requires_grad
        if comes and self._has_gram_kernel():
            self._norms("weight")
        return super().kept(name)

    def _has_gram_kernel(self) -> bool:
        """Whether a kernel makes the norms by Gram matrices, and the bias's gradients in passing."""
        fits = self.dtype == torch.float32 and max(self._widths()) <= ghost.LARGEST_WIDTH
        return self.length > 1 and fits and not _native.on_gpu(self.gradient) and not self._dear_gram()

    def _gram_norms(self, roundoff: float) -> Norms:
        inputs, outputs = self.inputs.contiguous(), self.outputs
        if self._native is None:
            self._kept["bias"] = outputs.sum(1)
            squares, lengths = ghost.gram_squares(inputs, outputs)
            return within(squares, roundoff, lengths)
        self._kept["bias"] = sums = outputs.new_empty((self.batch, outputs.shape[2]))
        norms = Norms(*torch.empty((2, self.batch), dtype=torch.float64).unbind())
        self._native.gram_norms(inputs, outputs, roundoff, *norms, sums)
        return norms

    def _gram_squares(self, start: int, stop: int) -> Tensor:
        """|sum_t g_t a_t^T|^2 = sum_st (a_s . a_t)(g_s . g_t), from the T x T Gram matrices."""
        inputs, outputs = self.inputs[start:stop], self.outputs[start:stop]
        gram = torch.bmm(inputs, inputs.transpose(1, 2))
        other = torch.bmm(outputs, outputs.transpose(1, 2))
        return gram.mul_(other).sum((1, 2), dtype=torch.float64)

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        if name == "bias":
            outputs = self.outputs[start:stop]
            return outputs[:, 0] if self.length == 1 else outputs.sum(1)
        return torch.bmm(self.outputs[start:stop].transpose(1, 2), self.inputs[start:stop])

    def _terms(self) -> int:
        return self.length

    def block(self) -> int:
        size = super().block()
        return min(size, max(1, _native.DEPTH // self.length)) if self._native and self.length else size

    def has_product(self, name: str) -> bool:
        """Whether the sum of parameter ``name`` is one for ``add_products``."""
        return name == "weight" and self._native is not None and not self.keeps(name)

    def add_total(self, name: str, weights: Weights, total: Total) -> None:
        if self.has_product(name):
            add_products([(self, total)], weights)
        else:
            super().add_total(name, weights, total)

    def _add_product(self, start: int, stop: int, weights: Weights, total: Total) -> None:
        # [p, m T] times [m T, d]: the one product that a plain backward would do.
        inputs, outputs = self._weighted(start, stop, weights)
        total.add_product(outputs.flatten(0, 1).t(), inputs.flatten(0, 1))

    def _add_blocks(self, size: int, weights: Weights, total: Total) -> int:
        blocks = self.batch // size
        if blocks < 2 or not _native.on_gpu(self.gradient):
            return 0
        stop = blocks * size
        inputs, outputs = self._weighted(0, stop, weights.part(0, stop))
        inputs, outputs = (factor.reshape(blocks, size * self.length, -1) for factor in (inputs, outputs))
        total.add(torch.bmm(outputs.transpose(1, 2), inputs).sum(0))
        return stop

    def _weighted(self, start: int, stop: int, weights: Weights) -> tuple[Tensor, Tensor]:
        """Inputs and outputs of some samples, the weights in the smaller factor."""
        inputs, outputs = self.inputs[start:stop], self.outputs[start:stop]
        if inputs.shape[2] <= outputs.shape[2]:
            return weights.scale(inputs), weights.keep(outputs)
        return weights.keep(inputs), weights.scale(outputs)


class ConvGradients(LayerGradients):
    """Convolutions: per-sample gradients by our kernel, on a GPU by products of gradients and patches in cuBLAS, and where
    there is neither by one convolution_backward with the batch folded into the groups."""

    settings = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")

    def __init__(
        self, layer: Any, activation: Tensor, gradient: Tensor, statistics: None = None, memory: Memory | None = None,
        sparing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(layer, activation, gradient, statistics, memory, sparing)
        self.stride, self.dilation = each_axis(layer, layer.stride), each_axis(layer, layer.dilation)
        self.activation, self.padding = _padded(layer, activation)
        self._keeps_weight: bool | None = None
        self._norms_of_parts: Norms | None = None
        self._has_kernel: bool | None = None

    @staticmethod
    def position_rank(layer: Any) -> int:
        return 1 + len(layer.kernel_size)  # the channels and the space

    def keeps(self, name: str) -> bool:
        if self._keeps_weight is None:
            self._keeps_weight = self._dear_gram() and _worth_keeping(self)
        return name == "bias" or self._keeps_weight

    def makes_twice(self, name: str) -> bool:
        return self.sparing and name == "weight" and self.keeps(name) and self._native() and not _worth_keeping(self, 1)

    def _native(self) -> bool:
        """Whether there is a kernel for this convolution."""
        if self._has_kernel is None:
            layer, gradient = self.layer, self.gradient
            wide = max(math.prod(layer.weight.shape[1:]), layer.out_channels // layer.groups) > ghost.LARGEST_WIDTH
            self._has_kernel = (
                self.dtype == torch.float32 and gradient.dim() <= 4 and not wide and not _native.on_gpu(gradient)
            )
        return self._has_kernel

    def measured_later(self) -> bool:
        if self.forgotten or self.sparing or not _native.on_gpu(self.gradient):
            return False
        return bool(self.batch and self.layer.weight.requires_grad and not self.keeps("weight"))

    def measures_by_torch(self) -> bool:
        return not self._native()

    def recordable(self) -> bool:
        return True

    def _by_patches(self) -> bool:
        return _native.on_gpu(self.gradient) and self.gradient.dim() <= 4

    def _dear_gram(self) -> bool:
        """True where gradients cost less than Gram matrices, or there is no kernel for these."""
        if not self._native():
            return True
        layer, block = self.layer, block_size(self._terms(), self.dtype)
        activation, gradient = self.activation.shape[1:], self.gradient.shape[1:]
        kernel = tuple(layer.kernel_size)
        return _rows_are_cheaper(activation, gradient, kernel, self.stride, layer.groups, block)

    def _norms(self, name: str) -> Norms:
        layer, size, places = self.layer, self.layer.weight.numel(), math.prod(self.layer.kernel_size)
        if self.makes_twice(name):
            if self._norms_of_parts is None:
                self._norms_of_parts = self._measure_parts()
            return self._norms_of_parts
        if not self._dear_gram():
            squares, lengths = ghost.conv_gram_squares(*self._arguments(0, self.batch), **self._geometry())
            channels, positions = (layer.in_channels, layer.out_channels), self._terms()
            loss = ghost.conv_roundoff(positions, *channels, places, layer.groups)
            return within(squares, loss, lengths)
        squares = self.squares_in_chunks()
        # sum_t |g_t||a_t| by Cauchy and Schwarz; a pixel is in at most as many patches as the kernel has places.
        lengths = (row_squares(self.activation) * row_squares(self.gradient) * places).sqrt()
        return _with_error(squares, lengths, self._terms(), size, self.dtype)

    def squares_in_chunks(self) -> Tensor:
        """Squared norms of the samples' gradients of the weight, which are made and let go of."""
        size = self.layer.weight.numel()
        return _in_chunks(self.batch, size, lambda lo, hi: row_squares(self.rows("weight", lo, hi)), self.gradient)

    def _arguments(self, start: int, stop: int) -> tuple[Tensor, Tensor, Any]:
        activation, gradient = self.activation, self.gradient
        if (start, stop) != (0, self.batch):  # a slice of everything takes its time, too
            activation, gradient = activation[start:stop], gradient[start:stop]
        return activation.contiguous(), gradient.contiguous(), self.layer.kernel_size

    def _geometry(self) -> dict[str, Any]:
        groups = self.layer.groups
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": groups}

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        if name == "bias":
            return over_space(self.gradient[start:stop])
        batch = stop - start
        weight: Tensor = self.layer.weight
        if batch == 0:
            return weight.new_empty((0, *weight.shape))
        if self._native():
            kept = self.keeps(name) and not self.makes_twice(name)
            rows, squares, bias = self._native_rows(start, stop, kept)
            if kept:
                self.kept_squares[name] = squares
                if bias is not None and "bias" not in self._kept:
                    self._kept["bias"], self.kept_squares["bias"] = bias
            return rows
        if self._by_patches():
            return self._rows_of_patches(start, stop)
        # Sample i owns channels [i*C, (i+1)*C) and the groups that belong to them. Only the weight's shape matters.
        stacked = weight.new_empty((batch * weight.shape[0], *weight.shape[1:]))
        gradient = self.gradient[start:stop]
        one_image = self.activation[start:stop].flatten(0, 1).unsqueeze(0)
        gradients = self._backward(gradient.flatten(0, 1).unsqueeze(0), one_image, stacked, batch * self.layer.groups)
        return gradients.view(batch, *weight.shape)

    def _measure_parts(self) -> Norms:
        """The norms, a few samples at a time; the gradients of the bias are kept as they come by."""
        found = [self._native_rows(start, stop)[1:] for start, stop in self._small_parts()]
        if not found:
            found = [(torch.zeros(0, dtype=torch.float64), None)]
        squares = torch.cat([one for one, _ in found])
        sums = [bias for _, bias in found if bias is not None]
        if sums and "bias" not in self._kept:
            self._kept["bias"] = torch.cat([rows for rows, _ in sums])
            self.kept_squares["bias"] = torch.cat([one for _, one in sums])
        return Norms(squares, squares)

    def kept(self, name: str) -> Tensor | None:
        # The bias's gradients come with the weight's: these first, so that norms and sums are of the same bits.
        if name == "bias" and name not in self._kept and self.layer.weight.requires_grad:
            if self.makes_twice("weight"):
                self._norms("weight")
            else:
                self.kept("weight")
        return super().kept(name)

    def _native_rows(
        self, start: int, stop: int, kept: bool = False
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """The gradients of some samples and their squared norms; and of the bias both, where they come in passing.

        A sample's bits do not depend on the others. What is kept is in this layer's memory, outputs last if it can be: so
        it comes out of the kernel (see ``weighted_sums``).
        """
        activation, gradient, kernel = self._arguments(start, stop)
        native, weight = _native.kernels(gradient), self.layer.weight
        taps_first = kept and native is not None and self.layer.groups == 1
        shape = (*weight.shape[1:], weight.shape[0]) if taps_first else weight.shape
        new = self.memory if kept else torch.empty
        out = new((stop - start, *shape), dtype=self.dtype, device=gradient.device)
        if native is None:
            rows, squares, _ = ghost.conv_rows(activation, gradient, kernel, **self._geometry(), out=out, bounded=False)
            return rows, squares, None
        layer, one_row = self.layer, gradient.dim() == 3  # [B, C, L] is one row of pixels
        if one_row:
            activation, gradient = activation.unsqueeze(2), gradient.unsqueeze(2)
        first = (1,) * one_row
        squares, bias_squares = (torch.empty(stop - start, dtype=torch.float64) for _ in range(2))
        bias = torch.empty(gradient.shape[:2], dtype=self.dtype)
        native.conv_gradients(
            activation, gradient, (*first, *kernel), (*first, *self.stride), (*(0,) * one_row, *self.padding),
            (*first, *self.dilation), layer.groups, out, taps_first, squares, bias, bias_squares,
        )  # fmt: skip
        return _outputs_second(out) if taps_first else out, squares, (bias, bias_squares)

    def _small_parts(self) -> Iterator[tuple[int, int]]:
        return chunks(self.batch, self.layer.weight.numel(), PART_ELEMENTS)

    def add_total(self, name: str, weights: Weights, total: Total) -> None:
        if not self.makes_twice(name):
            super().add_total(name, weights, total)
            return
        # As one sum over all rows: what there is so far goes first, in float64, with weight 1.
        summed, one = None, weights.values.new_ones(1)
        for start, stop in self._small_parts():
            rows, factors = self._native_rows(start, stop)[0], weights.values[start:stop]
            if summed is None:
                rows = rows.double()
            else:
                joined = torch.empty((1 + len(rows), *summed.shape), dtype=torch.float64)
                joined[0] = summed
                joined[1:] = rows
                rows, factors = joined, torch.cat([one, factors])
                del joined, summed
            summed = weighted_sums([rows], Weights(factors, dropped=True))[0]
        if summed is not None:
            total.add(summed.to(self.dtype))

    def _rows_of_patches(self, start: int, stop: int) -> Tensor:
        """Sample by sample the product of its output gradient, [out, positions], and its patches, [taps, positions]."""
        weight: Tensor = self.layer.weight
        groups, positions = self.layer.groups, self._terms()
        rows = self.memory((stop - start, *weight.shape), dtype=self.dtype, device=weight.device)
        for low, high in chunks(stop - start, groups * weight[0].numel() * positions):
            count = (high - low) * groups
            patches = self._patches(self.activation[start + low : start + high]).reshape(count, -1, positions)
            gradient = self.gradient[start + low : start + high].reshape(count, -1, positions)
            out = rows[low:high].view(count, gradient.shape[1], patches.shape[1])
            torch.bmm(gradient, patches.transpose(1, 2), out=out)
        return rows

    def _patches(self, activation: Tensor) -> Tensor:
        """A view [B, channels, *kernel, *outputs]: the value that each tap sees at each position."""
        layer, space = self.layer, self.gradient.shape[2:]
        sides = [side for side in reversed(self.padding) for _ in range(2)]
        values = (functional.pad(activation, sides) if any(sides) else activation).contiguous()
        moves = values.stride()[2:]
        taps = [move * step for move, step in zip(moves, self.dilation, strict=True)]
        steps = [move * step for move, step in zip(moves, self.stride, strict=True)]
        shape = (*values.shape[:2], *layer.kernel_size, *space)
        return values.as_strided(shape, (*values.stride()[:2], *taps, *steps))

    def _terms(self) -> int:
        return self.gradient.shape[2:].numel()

    def _add_product(self, start: int, stop: int, weights: Weights, total: Total) -> None:
        if self._by_patches():
            self._add_patches(start, stop, 1, weights, total)
            return
        gradient, activation = weights.scale(self.gradient[start:stop]), weights.keep(self.activation[start:stop])
        total.add(self._backward(gradient, activation, self.layer.weight, self.layer.groups))

    def _add_blocks(self, size: int, weights: Weights, total: Total) -> int:
        blocks = self.batch // size
        if blocks < 2 or not self._by_patches():
            return 0
        patches = self.layer.groups * self.layer.weight[0].numel() * self._terms()
        for low, high in chunks(blocks, size * patches):
            start, stop = low * size, high * size
            self._add_patches(start, stop, high - low, weights.part(start, stop), total)
        return blocks * size

    def _add_patches(self, start: int, stop: int, blocks: int, weights: Weights, total: Total) -> None:
        """Of each block of samples the product over the positions of all its samples, then the sum of these."""
        weight, groups = self.layer.weight, self.layer.groups
        samples = (stop - start) // blocks
        patches, gradient = (
            values.view(blocks, samples, groups, -1, *values.shape[2:])
            for values in (self._patches(self.activation[start:stop]), self.gradient[start:stop])
        )
        rank = self.gradient.dim() - 2
        # [blocks, groups, outputs or taps, samples, positions], written in this order by what selects and scales.
        places, taps = range(4, 4 + rank), range(3, 4 + rank)
        scaled = weights.scale(gradient.permute(0, 2, 3, 1, *places), 3, laid_out=True)
        kept = weights.keep(patches.permute(0, 2, *taps, 1, *(one + rank for one in places)), 3 + rank, laid_out=True)
        outputs, inputs = (one.view(blocks * groups, -1, samples * self._terms()) for one in (scaled, kept))
        found = torch.bmm(outputs, inputs.transpose(1, 2)).view(blocks, *weight.shape)
        total.add(found[0] if blocks == 1 else found.sum(0))

    def _backward(self, gradient: Tensor, activation: Tensor, weight: Tensor, groups: int) -> Tensor:
        result: Tensor = torch.ops.aten.convolution_backward(
            gradient, activation, weight, None, self.stride, self.padding, self.dilation,
            False, [0] * len(self.stride), groups, [False, True, False],
        )[1]  # fmt: skip
        return result


@functools.lru_cache(maxsize=1024)
def _rows_are_cheaper(
    activation: torch.Size, gradient: torch.Size, kernel: Sequence[int], stride: Sequence[int], groups: int, block: int
) -> bool:
    shapes = (1, *activation), (1, *gradient)
    return ghost.cheapest_conv(*shapes, kernel, stride=stride, groups=groups, block=block) == "rows"


class Conv1dGradients(ConvGradients):
    """Conv1d on [B, C, L]."""

    layer_type = nn.Conv1d


class Conv2dGradients(ConvGradients):
    """Conv2d on [B, C, H, W]."""

    layer_type = nn.Conv2d


class Conv3dGradients(ConvGradients):
    """Conv3d on [B, C, D, H, W]."""

    layer_type = nn.Conv3d


class EmbeddingGradients(LayerGradients):
    """Embedding: a sample's gradient has one row for each different token in it; only those rows are formed.

    Where there is no kernel for them, by operations whose shapes are those of tokens and gradients, whatever the tokens are:
    a row is formed at one of its token's places, and the others hold zeros.
    """

    layer_type = nn.Embedding
    takes_sequences = True
    parameter_names = ("weight",)
    settings = ("padding_idx",)

    def __init__(self, layer: nn.Embedding, activation: Tensor, gradient: Tensor, *_unused: Any) -> None:
        tokens = activation.flatten(1) if activation.dim() > 1 else activation.unsqueeze(1)  # [B, T]
        super().__init__(layer, tokens.long().contiguous(), gradient)
        self._native = _native.kernels(gradient)
        self._formed: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def position_rank(_layer: Any) -> int:
        return 0

    def _vectors(self) -> Tensor:
        """[B, T, d]: what came back for each token."""
        return self.gradient.reshape(*self.activation.shape, self.layer.embedding_dim)

    def _entries(self) -> tuple[Tensor, Tensor]:
        """[B, T, d]: the rows of each sample's gradient, among zeros; [B, T]: the token that each belongs to."""
        if self._formed is None:
            tokens, vectors = self.activation, self._vectors()
            if self.layer.padding_idx is not None:  # the padding row is never trained
                vectors = vectors.masked_fill((tokens == self.layer.padding_idx).unsqueeze(2), 0.0)
            if self.batch and tokens.shape[1] > 1:
                length, width = vectors.shape[1:]
                ordered = tokens.sort(1).values
                # Where the first of each token is in the order: there its vectors are added up.
                places = torch.searchsorted(ordered, tokens)

                def rows(start: int, stop: int) -> Tensor:
                    apart = _numbered(places[start:stop], length)
                    sums = _sums_at(apart, vectors[start:stop].double().flatten(0, 1), (stop - start) * length)
                    return sums.to(self.dtype).view(-1, length, width)

                tokens, vectors = ordered, _in_chunks(self.batch, 2 * length * width, rows, vectors)
            self._formed = vectors, tokens
        return self._formed

    def _lookups(self) -> tuple[Tensor, Tensor, int]:
        """What the kernels take: tokens [B, T], gradients [B, T, d], and the token that is not trained."""
        padding = self.layer.padding_idx
        return self.activation, self._vectors().contiguous(), -1 if padding is None else padding

    def keeps(self, _name: str) -> bool:
        return False

    def measures_by_torch(self) -> bool:
        return False

    def adds_by_torch(self) -> bool:
        return False

    def recordable(self) -> bool:
        return True

    def terms(self, _name: str) -> int:
        return 0

    def norms(self, _name: str) -> Norms:
        if self._native is not None:
            squares = torch.empty(self.batch, dtype=torch.float64)
            self._native.embedding_squares(*self._lookups(), squares)
        else:
            squares = row_squares(self._entries()[0])
        return Norms(squares, squares)

    def _rows(self, _name: str, start: int, stop: int) -> Tensor:
        rows, tokens = (entries[start:stop] for entries in self._entries())
        words = self.layer.num_embeddings
        # A row is added to zeros only, which is exact.
        dense = _sums_at(_numbered(tokens, words), rows.flatten(0, 1), (stop - start) * words)
        return dense.view(stop - start, *self.layer.weight.shape)

    def add_total(self, _name: str, weights: Weights, total: Total) -> None:
        whole = total.space()
        if self._native is not None:
            self._native.embedding_total(*self._lookups(), weights.values, whole)
        else:
            self._add_rows(weights, whole)
        total.add(whole)

    def _add_rows(self, weights: Weights, whole: Tensor) -> None:
        """Write the weighted sum of all samples' rows, in float64 and rounded once, some columns at a time."""
        rows, tokens = self._entries()
        words, width = whole.shape
        # Samples take turns at tables that are added up afterwards, so that never too many rows have one place.
        tables = 1 + tokens.numel() // (_ROWS_AT_A_PLACE * words)
        places = (tokens + (torch.arange(self.batch, device=tokens.device) % tables * words).unsqueeze(1)).flatten()
        columns = max(_LEAST_COLUMNS, CHUNK_ELEMENTS // (2 * tokens.numel() + tables * words))
        for start in range(0, width, columns):
            scaled = weights.scale(rows[..., start : start + columns].double())
            sums = _sums_at(places, scaled.flatten(0, 1), tables * words)
            whole[:, start : start + columns] = sums if tables == 1 else sums.view(tables, words, -1).sum(0)


class LayerNormGradients(LayerGradients):
    """LayerNorm over the last dimensions: its samples' gradients are as small as one activation vector."""

    layer_type = nn.LayerNorm
    takes_sequences = True
    settings = ("normalized_shape", "eps")

    @staticmethod
    def position_rank(layer: Any) -> int:
        return len(layer.normalized_shape)

    def measured_later(self) -> bool:
        if self.forgotten or self.sparing or not _native.on_gpu(self.gradient):
            return False
        return 0 < self.activation.numel() <= _LATE_ELEMENTS

    def measures_by_torch(self) -> bool:
        return False

    def recordable(self) -> bool:
        return True

    def _rows(self, name: str, _start: int, _stop: int) -> Tensor:
        shape = self.layer.normalized_shape
        values = self.gradient
        native = _native.kernels(values)
        if native is not None and self.statistics is not None and len(shape) == 1:
            length = values.shape[1:].numel() // math.prod(shape)
            flat = [one.reshape(self.batch, length, *shape).contiguous() for one in (self.activation, values)]
            each = [one.reshape(self.batch, length) for one in self.statistics]
            weight, bias = (values.new_empty((self.batch, *shape)) for _ in range(2))
            native.layer_norm_rows(*flat, *each, weight, bias)
            self._kept |= {"weight": weight, "bias": bias}
            return self._kept[name]
        if name == "weight":
            if self.statistics is None:
                normalised = functional.layer_norm(self.activation, shape, None, None, self.layer.eps)
            else:
                normalised = (self.activation - self.statistics[0]).mul_(self.statistics[1])
            values = normalised.mul_(values)
        return values.reshape(self.batch, values.shape[1:].numel() // math.prod(shape), *shape).sum(1)


class GroupNormGradients(LayerGradients):
    """GroupNorm over [B, C, ...]: its samples' gradients have one value for each channel."""

    layer_type = nn.GroupNorm
    settings = ("num_groups", "eps")

    def measures_by_torch(self) -> bool:
        return False

    def recordable(self) -> bool:
        return True

    def _rows(self, name: str, _start: int, _stop: int) -> Tensor:
        if self.statistics is None or not self.batch:
            return over_space(self.gradient) if name == "bias" else self._weight_rows()
        # torch's own backward of one sample whose channels are those of all samples: it adds up over samples, here one.
        groups, channels = (self.batch * count for count in (self.layer.num_groups, self.layer.num_channels))
        gradient, activation = (
            values.reshape(1, channels, -1).contiguous() for values in (self.gradient, self.activation)
        )
        mean, scale = (one.reshape(1, groups) for one in self.statistics)
        weight = gradient.new_empty(channels)  # only its shape matters
        found = torch.ops.aten.native_group_norm_backward(
            gradient, activation, mean, scale, weight, 1, channels, gradient.shape[2], groups, [False, True, True]
        )
        self._kept |= {"weight": found[1].view(self.batch, -1), "bias": found[2].view(self.batch, -1)}
        return self._kept[name]

    def _weight_rows(self) -> Tensor:
        if not self.batch:
            return self.gradient.new_zeros(self.gradient.shape[:2])
        normalised = functional.group_norm(self.activation, self.layer.num_groups, None, None, self.layer.eps)
        return over_space(self.gradient * normalised)


def _numbered(places: Tensor, count: int) -> Tensor:
    """Places [B, T] below ``count`` of each sample as [B T] places of all, the samples' one after the other."""
    starts = torch.arange(places.shape[0], device=places.device) * count
    return (places + starts.unsqueeze(1)).flatten()


def _sums_at(places: Tensor, values: Tensor, count: int) -> Tensor:
    """[n, d] -> [count, d]: the sums of the values with the same place. The same bits each time, also on a GPU, as long as
    there are at most 30 times as many values as places (torch might add more of them as threads arrive); nothing waits."""
    sums: Tensor = torch.ops.aten.embedding_dense_backward(values, places, count, -1, False)
    return sums


def over_space(values: Tensor) -> Tensor:
    """[B, C, ...] -> [B, C]"""
    return values.flatten(2).sum(2) if values.dim() > 2 else values


def measure_single_positions(uses: Iterable[Any]) -> None:
    """Take the norms of those uses of linear layers of one position that have none, in one call.

    A sample's gradient there is an outer product, and the bias's is one of its factors.
    """
    linear = [use for use in dict.fromkeys(uses) if isinstance(use.rule, LinearGradients)]
    found = [use for use in linear if use.rule.measured_later() and not use.norms]
    native = found[0].rule._native if found else None
    if native is None:
        return
    rules = [use.rule for use in found]
    squares = torch.empty((2 * len(rules), rules[0].batch), dtype=torch.float64)
    native.outer_squares([rule.inputs.contiguous() for rule in rules], [rule.outputs for rule in rules], squares)
    by_parameter = squares.unbind()  # of the weights, then of the biases
    for use, weight, bias in zip(found, by_parameter[: len(rules)], by_parameter[len(rules) :], strict=True):
        norms = {"weight": Norms(weight, weight), "bias": Norms(bias, bias)}
        use.norms |= {name: norms[name] for name in use.layer.parameters}


def add_products(sums: list[tuple[LinearGradients, Total]], weights: Weights) -> None:
    """Add the weights' sums of linear layers with a product kernel: in one call, as waking threads takes its time, too."""
    groups: dict[int, list[tuple[LinearGradients, Total]]] = {}
    for rule, total in sums:
        groups.setdefault(rule.block(), []).append((rule, total))
    for block, group in groups.items():
        native = group[0][0]._native
        assert native is not None
        wholes = [total.space() for _, total in group]
        inputs, outputs = [rule.inputs.contiguous() for rule, _ in group], [rule.outputs for rule, _ in group]
        native.weighted_products(inputs, outputs, weights.values, block, wholes)
        for whole, (_, total) in zip(wholes, group, strict=True):
            total.add(whole)


def add_rows(sums: list[tuple[Tensor, Total]], weights: Weights) -> None:
    """Add the weights' sums of rows [B, ...], each to its total."""
    rows = [one for one, _ in sums]
    native = _native.kernels(rows[0]) if all(one.dtype == rows[0].dtype for one in rows) else None
    if native is None or not rows[0].shape[0]:
        found = weighted_sums(rows, weights)
    else:
        found = [total.space() for _, total in sums]
        _weighted_rows(native, rows, weights, found)
    for one, (_, total) in zip(found, sums, strict=True):
        total.add(one)


def row_squares(rows: Tensor) -> Tensor:
    """[B, ...] -> [B] float64: squared norm of each row, NaN or Inf where a row holds one."""
    return kept_squares([rows])


def kept_squares(kept: list[Tensor]) -> Tensor:
    """Arrays [B, ...] -> [B] float64: squared norms of the rows of all of them together."""
    squares = None
    for group in _by_dtype(kept):
        norms: Tensor = clipping._row_norms([_matrix(kept[i]) for i in group])
        squares = norms.square_() if squares is None else squares.add_(norms.square_())
    assert squares is not None
    return squares


def weighted_sums(kept: list[Tensor], weights: Weights) -> list[Tensor]:
    """Of each [B, ...] the sum over samples [...]: rows of weight 0 are selected away; accumulated in float64."""
    if not kept[0].shape[0]:
        return [one.new_zeros(one.shape[1:]) for one in kept]
    sums = list(kept)
    for group in _by_dtype(kept):
        rows = [kept[i] for i in group]
        native = _native.kernels(rows[0])
        if native is None:
            found = clipping._weighted_sums([_matrix(one) for one in rows], weights.values)
        else:
            found = [torch.empty(one.shape[1:], dtype=one.dtype) for one in rows]
            _weighted_rows(native, rows, weights, found)
        for i, total in zip(group, found, strict=True):
            sums[i] = total.view(kept[i].shape[1:])
    return sums


def _weighted_rows(native: ModuleType, rows: list[Tensor], weights: Weights, totals: list[Tensor]) -> None:
    """Rows [B, outputs, ...] may lie in memory as [B, ..., outputs] does."""
    dense, outputs = [], []
    for one in rows:
        if one.is_contiguous():
            dense.append(one)
            outputs.append(0)
            continue
        last = one.permute(0, *range(2, one.dim()), 1)
        dense.append(last.contiguous())
        outputs.append(one.shape[1])
    native.weighted_rows(dense, outputs, weights.values, totals)


def _by_dtype(tensors: list[Tensor]) -> list[list[int]]:
    """The places of the tensors of each dtype."""
    groups: dict[torch.dtype, list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault(tensor.dtype, []).append(i)
    return list(groups.values())


def _outputs_second(rows: Tensor) -> Tensor:
    """A view [B, outputs, ...] of [B, ..., outputs]."""
    return rows.permute(0, -1, *range(1, rows.dim() - 1))


def _matrix(rows: Tensor) -> Tensor:
    return rows.reshape(rows.shape[0], rows.shape[1:].numel()).contiguous()


def vector_norms(vectors: Tensor) -> Tensor:
    """[B, T, d] -> [B, T] float64: the norm of each vector."""
    norms: Tensor = clipping._row_norms([_matrix(vectors.flatten(0, 1))])
    return norms.view(vectors.shape[:2])


def _worth_keeping(rule: LayerGradients, factor: int | None = None) -> bool:
    made_of = rule.activation.shape[1:].numel() + rule.gradient.shape[1:].numel()
    return bool(rule.layer.weight.numel() <= (KEEP_FACTOR if factor is None else factor) * made_of)


def within(squares: Tensor, loss: float | Tensor, lengths: Tensor, few: Tensor | None = None) -> Norms:
    """Norms from squares, written to, that are within ``loss A^2 + few`` of the truth; ``lengths`` is A.

    A sum that lost all its digits may be negative; the truth is within the error all the same. One that is not finite
    counts as infinite.
    """
    spreads = lengths.square()
    error = spreads * loss if few is None else (spreads * loss).add_(few)
    upper = squares.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=math.inf).clamp_(min=0.0).add_(error)
    return Norms(upper, torch.maximum(spreads, upper))


def _with_error(squares: Tensor, lengths: Tensor, terms: int, size: int, dtype: torch.dtype) -> Norms:
    """Norms from the squares of ``size`` rounded sums of ``terms`` products each; ``lengths`` is A."""
    upper = (squares.sqrt() + gamma(terms, dtype) * lengths + terms * math.sqrt(size) * least(dtype)).square()
    return Norms(upper, torch.maximum(lengths.square(), upper))


def _in_chunks(batch: int, elements: int, part: Callable[[int, int], Tensor], like: Tensor) -> Tensor:
    """Concatenate ``part(start, stop)`` over chunks of samples, ``elements`` temporary elements each; [0] float64 if
    empty."""
    parts = [part(start, stop) for start, stop in chunks(batch, elements)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=like.device)


def chunks(batch: int, elements: int, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Split samples 0..batch into ranges whose temporaries of ``elements`` elements a sample stay within ``most``,
    CHUNK_ELEMENTS if it is None."""
    size = max(1, (CHUNK_ELEMENTS if most is None else most) // max(1, elements))
    for start in range(0, batch, size):
        yield start, min(batch, start + size)


def each_axis(layer: Any, numbers: int | Sequence[int]) -> tuple[int, ...]:
    """A number for each dimension of a convolution's space: of a stride, say. As in torch, a single one holds for all."""
    found = tuple(numbers) if isinstance(numbers, Sequence) else (numbers,)
    return found * len(layer.kernel_size) if len(found) == 1 else found


def _padded(layer: Any, activation: Tensor) -> tuple[Tensor, list[int]]:
    """The activation and the symmetric zero padding that together give what the convolution saw."""
    if layer.padding == "valid":
        return activation, [0] * len(layer.kernel_size)
    if layer.padding == "same":
        total = [d * (k - 1) for k, d in zip(layer.kernel_size, each_axis(layer, layer.dilation), strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = list(each_axis(layer, layer.padding))
    if layer.padding_mode == "zeros" and before == after:
        return activation, before
    # pad wants the last dimension first. torch, too, pads the input and then convolves without padding.
    sides = [side for pair in reversed(list(zip(before, after, strict=True))) for side in pair]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(activation, sides, mode=mode), [0] * len(before)
