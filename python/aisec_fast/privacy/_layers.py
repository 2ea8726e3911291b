"""One rule per layer type: per-sample gradient norms and clipped sums from (activation, output gradient).

A rule is made for one use of a layer and answers for each of its trainable parameters, by name:

    squares(name)             [B] float64, squared norm of each sample's gradient
    rows(name, start, stop)   [stop - start, *shape], the gradients of some samples, where nothing else will do
    total(name, weights)      [*shape], sum over samples of weight times gradient; a sample of weight 0 is selected
                              away, never multiplied, so that its NaN or Inf stays out

``activation`` and ``gradient`` have the batch in dimension 0. Sources: Goodfellow 2015 (norms of a Linear layer from
its input and output gradient), Li et al. 2022 (Gram matrices for sequences), Rochette et al. 2019 (grouped
convolutions).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import clipping

# Elements that one temporary of a rule may hold (64 MiB of float32): larger work is done a few samples at a time.
CHUNK_ELEMENTS = 2**24
# Elements of per-sample convolution gradients kept from the norms to the sum, for one layer (128 MiB of float32).
KEEP_ELEMENTS = 2**25


class LayerGradients:
    """Base of the rules; see the module's docstring."""

    layer_type: ClassVar[type[nn.Module]]
    parameter_names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    takes_sequences: ClassVar[bool] = False  # and may therefore have time before the batch

    def __init__(self, layer: Any, activation: Tensor, gradient: Tensor) -> None:
        self.layer, self.activation, self.gradient = layer, activation, gradient
        self.batch = gradient.shape[0]

    def squares(self, name: str) -> Tensor:
        """[B] float64: squared norms of the samples' gradients of parameter ``name``."""
        return row_squares(self.rows(name, 0, self.batch))

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """[stop - start, *shape]: the gradients of samples ``start`` to ``stop``."""
        raise NotImplementedError

    def total(self, name: str, weights: Tensor) -> Tensor:
        """[*shape]: sum over samples of ``weights[i]`` (float64, finite) times sample i's gradient."""
        return weighted_sum(self.rows(name, 0, self.batch), weights)


class LinearGradients(LayerGradients):
    """Linear on [B, d] or [B, ..., d]: never a B x D matrix."""

    layer_type = nn.Linear
    takes_sequences = True

    def __init__(self, layer: nn.Linear, activation: Tensor, gradient: Tensor) -> None:
        super().__init__(layer, activation, gradient)
        self.inputs = activation.flatten(1, -2) if activation.dim() > 2 else activation.unsqueeze(1)  # [B, T, d]
        self.outputs = gradient.flatten(1, -2) if gradient.dim() > 2 else gradient.unsqueeze(1)  # [B, T, p]

    def squares(self, name: str) -> Tensor:
        if name == "bias":
            return super().squares(name)
        length, d, p = self.inputs.shape[1], self.inputs.shape[2], self.outputs.shape[2]
        if length == 1:  # the gradient is an outer product
            return row_squares(self.inputs) * row_squares(self.outputs)
        if 2 * length * length <= d * p:
            return _in_chunks(self.batch, 2 * length * length, self._gram_squares, self.gradient)
        return _in_chunks(self.batch, d * p, lambda lo, hi: row_squares(self.rows("weight", lo, hi)), self.gradient)

    def _gram_squares(self, start: int, stop: int) -> Tensor:
        """Squared norms from the T x T Gram matrices, as upper bounds.

        |sum_t g_t a_t^T|^2 = sum_st (a_s . a_t)(g_s . g_t). Where tokens cancel the sum is small against its terms
        and rounding could make it far too small, even negative, and a sample would escape clipping. Each product of
        two rounded dot products is within gamma |a_s||a_t||g_s||g_t| of the truth, gamma = (d + p + 4) unit roundoffs
        to first order, so the sum is within gamma A^2, A = sum_t |a_t||g_t|: add that.
        """
        inputs, outputs = self.inputs[start:stop], self.outputs[start:stop]
        gram = torch.bmm(inputs, inputs.transpose(1, 2))
        other = torch.bmm(outputs, outputs.transpose(1, 2))
        lengths = gram.diagonal(dim1=1, dim2=2).double() * other.diagonal(dim1=1, dim2=2).double()
        gamma = (inputs.shape[2] + outputs.shape[2] + 4) * torch.finfo(gram.dtype).eps / 2
        squares = gram.mul_(other).sum((1, 2), dtype=torch.float64)
        return squares.clamp_(min=0.0) + gamma * lengths.sqrt().sum(1).square()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        if name == "bias":
            outputs = self.outputs[start:stop]
            return outputs[:, 0] if outputs.shape[1] == 1 else outputs.sum(1)
        return torch.bmm(self.outputs[start:stop].transpose(1, 2), self.inputs[start:stop])

    def total(self, name: str, weights: Tensor) -> Tensor:
        if name == "bias":
            return super().total(name, weights)
        # [p, B T] times [B T, d]: the one GEMM that a plain backward would do, with the factors folded in.
        scaled = select_scale(self.outputs, weights).flatten(0, 1)
        return scaled.t() @ select(self.inputs, weights).flatten(0, 1)


class ConvGradients(LayerGradients):
    """Convolutions: per-sample gradients by one convolution_backward with the batch folded into the groups."""

    def __init__(self, layer: Any, activation: Tensor, gradient: Tensor) -> None:
        super().__init__(layer, activation, gradient)
        self.activation, self.padding = _padded(layer, activation)
        self.kept: Tensor | None = None

    def squares(self, name: str) -> Tensor:
        if name == "bias":
            return super().squares(name)
        size = self.layer.weight.numel()
        if self.batch * size <= KEEP_ELEMENTS:
            self.kept = self.rows("weight", 0, self.batch)
            return row_squares(self.kept)
        return _in_chunks(self.batch, size, lambda lo, hi: row_squares(self.rows("weight", lo, hi)), self.gradient)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        gradient = self.gradient[start:stop]
        if name == "bias":
            return gradient.flatten(2).sum(2)
        batch = stop - start
        weight: Tensor = self.layer.weight
        if batch == 0:
            return weight.new_empty((0, *weight.shape))
        # Sample i owns channels [i*C, (i+1)*C) and the groups that belong to them. Only the weight's shape matters.
        stacked = weight.new_empty((batch * weight.shape[0], *weight.shape[1:]))
        one_image = self.activation[start:stop].flatten(0, 1).unsqueeze(0)
        gradients = self._backward(gradient.flatten(0, 1).unsqueeze(0), one_image, stacked, batch * self.layer.groups)
        return gradients.view(batch, *weight.shape)

    def total(self, name: str, weights: Tensor) -> Tensor:
        if name == "bias":
            return super().total(name, weights)
        if self.kept is not None:
            return weighted_sum(self.kept, weights)
        if self.batch == 0:
            return torch.zeros_like(self.layer.weight)
        scaled, activation = select_scale(self.gradient, weights), select(self.activation, weights)
        return self._backward(scaled, activation, self.layer.weight, self.layer.groups)

    def _backward(self, gradient: Tensor, activation: Tensor, weight: Tensor, groups: int) -> Tensor:
        layer = self.layer
        result: Tensor = torch.ops.aten.convolution_backward(
            gradient, activation, weight, None, layer.stride, self.padding, layer.dilation,
            False, [0] * len(layer.kernel_size), groups, [False, True, False],
        )[1]  # fmt: skip
        return result


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
    """Embedding: a sample's gradient has one row for each different token in it; only those rows are formed."""

    layer_type = nn.Embedding
    takes_sequences = True
    parameter_names = ("weight",)

    def __init__(self, layer: nn.Embedding, activation: Tensor, gradient: Tensor) -> None:
        super().__init__(layer, activation, gradient)
        tokens = activation.reshape(-1).long()
        per_sample = activation.shape[1:].numel()
        samples = torch.arange(self.batch, device=tokens.device).repeat_interleave(per_sample)
        vectors = gradient.reshape(-1, layer.embedding_dim)
        if layer.padding_idx is not None:
            used = tokens != layer.padding_idx  # the padding row is never trained
            tokens, samples, vectors = tokens[used], samples[used], vectors[used]
        self.tokens, self.samples, self.vectors = tokens, samples, vectors

    def squares(self, _name: str) -> Tensor:
        pairs, place = torch.unique(self.samples * self.layer.num_embeddings + self.tokens, return_inverse=True)
        sums = self.vectors.new_zeros((pairs.shape[0], self.layer.embedding_dim)).index_add_(0, place, self.vectors)
        owner = pairs.div(self.layer.num_embeddings, rounding_mode="floor")
        result = torch.zeros(self.batch, dtype=torch.float64, device=self.vectors.device)
        return result.index_add_(0, owner, row_squares(sums))

    def rows(self, _name: str, start: int, stop: int) -> Tensor:
        inside = (self.samples >= start) & (self.samples < stop)
        place = (self.samples[inside] - start) * self.layer.num_embeddings + self.tokens[inside]
        size = (stop - start) * self.layer.num_embeddings
        dense = self.vectors.new_zeros((size, self.layer.embedding_dim)).index_add_(0, place, self.vectors[inside])
        return dense.view(stop - start, *self.layer.weight.shape)

    def total(self, _name: str, weights: Tensor) -> Tensor:
        scaled = select_scale(self.vectors, weights[self.samples])
        return self.vectors.new_zeros(self.layer.weight.shape).index_add_(0, self.tokens, scaled)


class _NormGradients(LayerGradients):
    """Scale and shift of a normalisation: their per-sample gradients are as small as one activation vector."""

    def __init__(self, layer: Any, activation: Tensor, gradient: Tensor) -> None:
        super().__init__(layer, activation, gradient)
        self._rows: dict[str, Tensor] = {}

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        if name not in self._rows:
            self._rows[name] = self._reduce(self.gradient if name == "bias" else self.gradient * self._normalised())
        return self._rows[name][start:stop]

    def _normalised(self) -> Tensor:
        """The activation, normalised, before scale and shift."""
        raise NotImplementedError

    def _reduce(self, values: Tensor) -> Tensor:
        """[B, ...] -> [B, *shape of the parameter]."""
        raise NotImplementedError


class LayerNormGradients(_NormGradients):
    """LayerNorm over the last dimensions."""

    layer_type = nn.LayerNorm
    takes_sequences = True

    def _normalised(self) -> Tensor:
        return functional.layer_norm(self.activation, self.layer.normalized_shape, None, None, self.layer.eps)

    def _reduce(self, values: Tensor) -> Tensor:
        shape = self.layer.normalized_shape
        return values.reshape(self.batch, values.shape[1:].numel() // math.prod(shape), *shape).sum(1)


class GroupNormGradients(_NormGradients):
    """GroupNorm over [B, C, ...]."""

    layer_type = nn.GroupNorm

    def _normalised(self) -> Tensor:
        return functional.group_norm(self.activation, self.layer.num_groups, None, None, self.layer.eps)

    def _reduce(self, values: Tensor) -> Tensor:
        return values.flatten(2).sum(2) if values.dim() > 2 else values


RULES: tuple[type[LayerGradients], ...] = (
    LinearGradients,
    Conv1dGradients,
    Conv2dGradients,
    Conv3dGradients,
    EmbeddingGradients,
    LayerNormGradients,
    GroupNormGradients,
)


def find_rule(layer: nn.Module) -> type[LayerGradients] | None:
    """The rule for ``layer``, or None: also for a subclass or an instance with a forward of its own."""
    for rule in RULES:
        base = rule.layer_type
        if isinstance(layer, base):
            same = all(getattr(type(layer), f, None) is getattr(base, f, None) for f in ("forward", "_conv_forward"))
            return rule if same and not {"forward", "_conv_forward"} & vars(layer).keys() else None
    return None


def refusal(layer: nn.Module) -> str | None:
    """The reason why a layer of a covered type cannot be covered as it is set up, or None."""
    if not isinstance(layer, nn.Embedding):
        return None
    if layer.max_norm is not None:
        return "max_norm rescales the rows of a batch's tokens in place, where no noise is added; use max_norm=None"
    if layer.scale_grad_by_freq:
        return "scale_grad_by_freq makes a sample's gradient depend on the others; use scale_grad_by_freq=False"
    if layer.sparse:
        return "sparse=True shows which tokens occurred, and noisy gradients are dense; use sparse=False"
    return None


def position_rank(layer: Any) -> int:
    """How many of the last dimensions of the layer's input belong to one position of one sample."""
    if isinstance(layer, nn.LayerNorm):
        return len(layer.normalized_shape)
    if isinstance(layer, nn.Embedding):
        return 0
    return 1 + len(getattr(layer, "kernel_size", ()))  # the channels, and the space of a convolution


def supported_names() -> str:
    """The layer types that have a rule, for messages."""
    return ", ".join(rule.layer_type.__name__ for rule in RULES)


def row_squares(rows: Tensor) -> Tensor:
    """[B, ...] -> [B] float64: squared norm of each row, NaN or Inf where a row holds one."""
    norms = clipping._row_norms([rows.reshape(rows.shape[0], rows.shape[1:].numel()).contiguous()])
    return torch.as_tensor(norms, dtype=torch.float64, device=rows.device).square()


def weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """[B, ...], [B] float64 -> [...]: rows of weight 0 are selected away; accumulated in float64."""
    if rows.shape[0] == 0:
        return rows.new_zeros(rows.shape[1:])
    return torch.as_tensor(clipping._weighted_sum(rows.contiguous(), weights), dtype=rows.dtype, device=rows.device)


def select(values: Tensor, weights: Tensor) -> Tensor:
    """``values`` [B, ...] with the rows of weight 0 replaced by zeros, whatever they hold."""
    return torch.where(_column(weights != 0, values), values, torch.zeros((), dtype=values.dtype, device=values.device))


def select_scale(values: Tensor, weights: Tensor) -> Tensor:
    """``values`` [B, ...] with row i multiplied by weights[i]; rows of weight 0 are zeros, whatever they hold."""
    return select(values, weights).mul_(_column(weights.to(values.dtype), values))


def _column(vector: Tensor, like: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (like.dim() - 1))


def _in_chunks(batch: int, elements: int, part: Callable[[int, int], Tensor], like: Tensor) -> Tensor:
    """Concatenate ``part(start, stop)`` over chunks of samples, ``elements`` temporary elements each; [0] float64 if
    empty."""
    parts = [part(start, stop) for start, stop in chunks(batch, elements)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=like.device)


def chunks(batch: int, elements: int) -> Iterator[tuple[int, int]]:
    """Split samples 0..batch into ranges whose temporaries of ``elements`` elements a sample stay within
    CHUNK_ELEMENTS."""
    size = max(1, CHUNK_ELEMENTS // max(1, elements))
    for start in range(0, batch, size):
        yield start, min(batch, start + size)


def _padded(layer: Any, activation: Tensor) -> tuple[Tensor, list[int]]:
    """The activation and the symmetric zero padding that together give what the convolution saw."""
    if layer.padding == "valid":
        return activation, [0] * len(layer.kernel_size)
    if layer.padding == "same":
        total = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = list(layer.padding)
    if layer.padding_mode == "zeros" and before == after:
        return activation, before
    # pad wants the last dimension first. torch, too, pads the input and then convolves without padding.
    sides = [side for pair in reversed(list(zip(before, after, strict=True))) for side in pair]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(activation, sides, mode=mode), [0] * len(before)
