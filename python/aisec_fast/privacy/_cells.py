"""Cells of recurrent networks and bags of embeddings made of layers that can be trained privately: in place of nn.RNNCell,
nn.LSTMCell, nn.GRUCell and nn.EmbeddingBag.

A cell that is called in every step uses its layers as often, and the norm of a sample's gradient is taken from the sum of
all uses: where a whole sequence is there, RNN, LSTM and GRU do the same work as one use (``_recurrent``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._stand_in import Made, StandIn


class _Cell(StandIn):
    """Base of the three. The linear layers are ``ih``, of inputs, and ``hh``, of states."""

    torch_names = r"(weight|bias)_[ih]h"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(self.torch_type(*args, **options), {})

    def _take(self, plain: Any, made: Made, apart: bool) -> None:  # noqa: ARG002
        self.input_size, self.hidden_size, self.bias = plain.input_size, plain.hidden_size, plain.bias
        self.nonlinearity = getattr(plain, "nonlinearity", None)
        self._text = plain.extra_repr()
        for short in ("ih", "hh"):
            bias = getattr(plain, f"bias_{short}")
            self.parts[f"weight_{short}"] = (f"{short}.weight",)
            self.parts[f"bias_{short}"] = () if bias is None else (f"{short}.bias",)
            self._layer(short, getattr(plain, f"weight_{short}"), bias)

    def extra_repr(self) -> str:
        """As torch's modules have it."""
        return str(self._text)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """See the forward of torch's module."""
        name = type(self).__name__
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.shape[-1]} expected {self.input_size}")
        single = input.dim() == 1
        values = input.unsqueeze(0) if single else input
        given = () if hx is None else tuple(hx) if isinstance(hx, (tuple, list)) else (hx,)
        expected = (*input.shape[:-1], self.hidden_size)
        for state in given:
            if tuple(state.shape) != expected:
                raise RuntimeError(f"{name}: Expected hidden to be {expected}, got {tuple(state.shape)}")
        states = [one.unsqueeze(0) for one in given] if single else list(given)
        after = self._step(values, states)
        after = [one.squeeze(0) for one in after] if single else after
        return tuple(after) if len(after) > 1 else after[0]

    def _step(self, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        """The states after a step, from those before it; none before the first."""
        raise NotImplementedError

    def _zeros(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.hidden_size)


class RNNCell(_Cell):
    """nn.RNNCell."""

    torch_type = nn.RNNCell

    def _step(self, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        (state,) = states or [self._zeros(x)]
        activate = {"tanh": torch.tanh, "relu": torch.relu}.get(str(self.nonlinearity))
        if activate is None:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return [activate(self.ih(x) + self.hh(state))]


class LSTMCell(_Cell):
    """nn.LSTMCell."""

    torch_type = nn.LSTMCell

    def _step(self, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        state, cell = states or [self._zeros(x), self._zeros(x)]
        let_in, kept, inner, out = (self.ih(x) + self.hh(state)).chunk(4, 1)
        cell = kept.sigmoid() * cell + let_in.sigmoid() * inner.tanh()
        return [out.sigmoid() * cell.tanh(), cell]


class GRUCell(_Cell):
    """nn.GRUCell."""

    torch_type = nn.GRUCell

    def _step(self, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        (state,) = states or [self._zeros(x)]
        reset, update, inner = self.ih(x).chunk(3, 1)
        reset_of_state, update_of_state, inner_of_state = self.hh(state).chunk(3, 1)
        inner = torch.tanh(inner + torch.sigmoid(reset + reset_of_state) * inner_of_state)
        return [inner + torch.sigmoid(update + update_of_state) * (state - inner)]


class EmbeddingBag(StandIn):
    """nn.EmbeddingBag: an embedding, ``table``, and the sum, mean or maximum of each bag. It trains on bags of one length, a
    row for each sample."""

    torch_type = nn.EmbeddingBag
    torch_names = "weight"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(nn.EmbeddingBag(*args, **options), {})

    def _take(self, plain: Any, made: Made, apart: bool) -> None:  # noqa: ARG002
        for name in plain.__constants__:
            setattr(self, name, getattr(plain, name))
        self._text = plain.extra_repr()
        self.parts["weight"] = ("table.weight",)
        sizes = plain.num_embeddings, plain.embedding_dim, plain.padding_idx
        rescaling = plain.max_norm, plain.norm_type, plain.scale_grad_by_freq, plain.sparse  # which the engine refuses
        self.table = nn.Embedding(*sizes, *rescaling, device="meta")
        self.table.weight = plain.weight
        self.table.samples_first = True  # type: ignore[assignment]  # whatever the model does

    def extra_repr(self) -> str:
        """As torch's module has it."""
        return str(self._text)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """See the forward of torch's module."""
        if not (self.training and torch.is_grad_enabled() and self.table.weight.requires_grad):
            return self._by_torch(input, offsets, per_sample_weights)
        if input.dim() != 2 or offsets is not None:
            raise ValueError(
                "EmbeddingBag does not train on bags of several lengths, one after the other: whose tokens are whose cannot be "
                "seen, and how many there are is nobody's to know. Pad the bags to a fixed length, and give them as [B, N]; "
                "padding_idx leaves tokens out"
            )
        if per_sample_weights is not None and (self.mode != "sum" or per_sample_weights.shape != input.shape):
            raise ValueError("per_sample_weights must have the shape of input, and mode='sum'")
        vectors: Tensor = self.table(input)
        if per_sample_weights is not None:
            vectors = vectors * per_sample_weights.unsqueeze(2)
        left_out = torch.zeros_like(input, dtype=torch.bool) if self.padding_idx is None else input == self.padding_idx
        if self.mode == "max":
            if not input.shape[1]:
                return vectors.sum(1)
            largest = vectors.masked_fill(left_out.unsqueeze(2), -torch.inf).max(1).values
            return largest.masked_fill(left_out.all(1, keepdim=True), 0.0)
        total = vectors.masked_fill(left_out.unsqueeze(2), 0.0).sum(1)
        return total / (~left_out).sum(1, keepdim=True).clamp(min=1) if self.mode == "mean" else total

    def _by_torch(self, input: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        return functional.embedding_bag(
            input, self.table.weight, offsets, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.mode,
            self.sparse, weights, self.include_last_offset, self.padding_idx,
        )  # fmt: skip
