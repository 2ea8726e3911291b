"""Attention whose projections are linear layers, so that it can be trained privately: in place of nn.MultiheadAttention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._stand_in import Made, StandIn, pieces

_torch: Any = functional


class MultiheadAttention(StandIn):
    """What :class:`torch.nn.MultiheadAttention` does, with its arguments, attributes and keys of the state dict.

    Its own linear layers have the samples first, whatever ``batch_first`` is. ``named_parameters`` has their names:
    ``in_proj.weight`` for ``in_proj_weight``.
    """

    torch_type = nn.MultiheadAttention
    torch_names = "in_proj_weight|[qkv]_proj_weight|in_proj_bias|bias_[kv]"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        shape = {"kdim": kdim, "vdim": vdim, "batch_first": batch_first, "device": device, "dtype": dtype}
        plain = nn.MultiheadAttention(embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, **shape)
        super().__init__(plain, {})

    def _take(self, plain: Any, made: Made, apart: bool) -> None:
        self.embed_dim, self.num_heads, self.head_dim = plain.embed_dim, plain.num_heads, plain.head_dim
        self.kdim, self.vdim, self._qkv_same_embed_dim = plain.kdim, plain.vdim, plain._qkv_same_embed_dim
        self.dropout, self.batch_first, self.add_zero_attn = plain.dropout, plain.batch_first, plain.add_zero_attn
        same, bias = plain._qkv_same_embed_dim, plain.in_proj_bias
        self._in_one = same and not apart
        if self._in_one:
            self._layer("in_proj", plain.in_proj_weight, bias)
            weights: tuple[str, ...] = ("in_proj.weight",)
            biases: tuple[str, ...] = ("in_proj.bias",)
        else:
            split = [plain.q_proj_weight, plain.k_proj_weight, plain.v_proj_weight]
            of_each = zip("qkv", pieces(plain.in_proj_weight, made, 3) if same else split, strict=True)
            split_bias = [None] * 3 if bias is None else pieces(bias, made, 3)
            for (name, weight), one in zip(of_each, split_bias, strict=True):
                self._layer(f"{name}_proj", weight, one)
            weights, biases = (
                tuple(f"{name}_proj.weight" for name in "qkv"),
                tuple(f"{name}_proj.bias" for name in "qkv"),
            )
        self.parts["in_proj_weight"] = weights if same else ()
        for name in "qkv":
            self.parts[f"{name}_proj_weight"] = () if same else (f"{name}_proj.weight",)
        self.parts["in_proj_bias"] = () if bias is None else biases
        for name in ("bias_k", "bias_v"):
            vector = getattr(plain, name)
            self.parts[name] = () if vector is None else (f"of_{name}.weight",)
            if vector is not None:  # the key, or value, of a position that every sample has: what 1 is mapped to
                self._layer(f"of_{name}", pieces(vector, made, shape=(self.embed_dim, 1))[0], None)
        self._layer("out_proj", plain.out_proj.weight, plain.out_proj.bias)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        return (1, 1, self.embed_dim) if name in ("bias_k", "bias_v") else None

    def merge_masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor
    ) -> tuple[Tensor | None, int | None]:
        """For the fast path of nn.TransformerEncoderLayer."""
        return nn.MultiheadAttention.merge_masks(self, attn_mask, key_padding_mask, query)  # type: ignore[arg-type]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`torch.nn.MultiheadAttention.forward`."""
        if query.is_nested or key.is_nested or value.is_nested:
            return self._of_nested(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights)
        is_batched = _torch._mha_shape_check(query, key, value, key_padding_mask, attn_mask, self.num_heads)
        if not is_batched:
            query, key, value = _each(lambda x: x.unsqueeze(0), query, key, value)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = _each(lambda x: x.transpose(0, 1).contiguous(), query, key, value)
        mask, is_causal = self._mask(query, key, key_padding_mask, attn_mask, need_weights, is_causal)
        if query.shape[2] != self.embed_dim:
            raise AssertionError(f"was expecting embedding dimension of {self.embed_dim}, but got {query.shape[2]}")
        if key.shape[: 3 if self._qkv_same_embed_dim else 2] != value.shape[: 3 if self._qkv_same_embed_dim else 2]:
            raise AssertionError(f"key shape {key.shape} does not match value shape {value.shape}")
        output, weights = self._attend(self._projected(query, key, value), mask, need_weights, is_causal)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not is_batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _mask(
        self,
        query: Tensor,
        key: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        need_weights: bool,
        is_causal: bool,
    ) -> tuple[Tensor | None, bool]:
        """One mask [B or 1, heads or 1, L, S], which is added; and whether a causal one is meant in place of it."""
        batch, length, width = len(query), query.shape[1], key.shape[1]
        padding = functional._canonical_mask(
            key_padding_mask, "key_padding_mask", functional._none_or_dtype(attn_mask), "attn_mask", query.dtype
        )
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "Need attn_mask if specifying the is_causal hint. You may use the Transformer module method "
                "`generate_square_subsequent_mask` to create this mask."
            )
        if is_causal and padding is None and not need_weights:
            return None, True
        mask = functional._canonical_mask(attn_mask, "attn_mask", None, "", query.dtype, check_other=False)
        if mask is not None:
            expected = (length, width) if mask.dim() == 2 else (batch * self.num_heads, length, width)
            if mask.shape != expected:
                raise RuntimeError(
                    f"The shape of the {mask.dim()}D attn_mask is {mask.shape}, but should be {expected}."
                )
            mask = mask if mask.dim() == 2 else mask.view(batch, self.num_heads, length, width)
        if padding is not None:
            if padding.shape != (batch, width):
                raise AssertionError(f"expecting key_padding_mask shape of {(batch, width)}, but got {padding.shape}")
            padding = padding.view(batch, 1, 1, width)
            mask = padding if mask is None else mask + padding
        more = bool(self.parts["bias_k"]) + bool(self.add_zero_attn)
        if mask is not None and more:
            mask = functional.pad(mask, (0, more))
        return mask, False

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        if not self._in_one:
            return [self.q_proj(query), self.k_proj(key), self.v_proj(value)]
        layer = self.in_proj
        if query is key and key is value:
            return list(layer(query).chunk(3, -1))
        if not (self.training and torch.is_grad_enabled()):
            weights = layer.weight.chunk(3)
            biases = [None] * 3 if layer.bias is None else layer.bias.chunk(3)
            each = zip((query, key, value), weights, biases, strict=True)
            return [functional.linear(*one) for one in each]
        # All that it reads as one sequence, in one use of the layer: norms of several uses cost far more, and parts of its
        # weight are no parameters.
        read = list({id(one): one for one in (query, key, value)}.values())
        made = layer(torch.cat(read, 1)).split([one.shape[1] for one in read], 1)
        of = {id(one): result for one, result in zip(read, made, strict=True)}
        return [of[id(one)].chunk(3, -1)[i] for i, one in enumerate((query, key, value))]

    def _attend(
        self, projected: list[Tensor], mask: Tensor | None, need_weights: bool, is_causal: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The output [B, L, E] and, if asked for, the weights [B, heads, L, S]."""
        q, k, v = projected
        batch, length, heads = len(q), q.shape[1], self.num_heads
        if self.parts["bias_k"]:
            one = q.new_ones(batch, 1, 1)
            k, v = torch.cat([k, self.of_bias_k(one)], 1), torch.cat([v, self.of_bias_v(one)], 1)
        if self.add_zero_attn:
            k, v = (functional.pad(x, (0, 0, 0, 1)) for x in (k, v))
        width = k.shape[1]
        q, k, v = (x.view(batch, x.shape[1], heads, self.head_dim).transpose(1, 2) for x in (q, k, v))
        p = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            q, k, v = (x.reshape(batch * heads, x.shape[2], self.head_dim) for x in (q, k, v))
            scaled, turned = q * math.sqrt(1.0 / self.head_dim), k.transpose(1, 2)
            if mask is None:
                products = torch.bmm(scaled, turned)
            else:
                added = mask.expand(batch, heads, length, width).reshape(batch * heads, length, width)
                products = torch.baddbmm(added, scaled, turned)
            found = functional.softmax(products, -1)
            found = functional.dropout(found, p) if p > 0.0 else found
            values = torch.bmm(found, v).view(batch, heads, length, self.head_dim)
            weights = found.view(batch, heads, length, width)
        else:
            values = functional.scaled_dot_product_attention(q, k, v, mask, p, is_causal)
        return self.out_proj(values.transpose(1, 2).flatten(2)), weights

    def _of_nested(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        need_weights: bool,
        attn_mask: Tensor | None,
        average_attn_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """nn.TransformerEncoder makes padded batches nested where it evaluates, whether its layers can do with them or not."""
        whole = query is key and key is value and self.batch_first and not self.training
        if not whole or key_padding_mask is not None or attn_mask is not None:
            raise AssertionError(
                "MultiheadAttention takes nested tensors in self-attention alone: batch_first, in eval mode, without masks"
            )
        x = query.to_padded_tensor(0.0)
        lengths = torch.tensor([len(one) for one in query.unbind()], device=x.device)
        there = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        output, weights = self.forward(x, x, x, ~there, need_weights, average_attn_weights=average_attn_weights)
        return torch._nested_tensor_from_mask(output, there, mask_check=False), weights


def _each(change: Callable[[Tensor], Tensor], *tensors: Tensor) -> list[Tensor]:
    """``change`` of each; of one that is there twice once, so that it still is one."""
    made = {id(one): change(one) for one in tensors}
    return [made[id(one)] for one in tensors]
