"""How much of each sample's gradient enters the sum: weights from norms, and the products that apply them.

Symbols are those of docs/privacy.md: ``n`` an upper bound of a sample's norm, ``A`` of the sum over its terms of the
terms' norms (which bounds the rounding of float sums), ``C`` the clipping norm, ``w`` the weight.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _checks
from . import _native

CLIPPINGS = ("flat", "per_layer", "automatic")
KAPPA = 16.0  # w A is at most KAPPA C, so that a sample's rounding is bounded by C too
MARGIN = 2.0**-30  # part of C that pays for the rounding of norms and weights in float64
LEAST_WEIGHT = 2.0**-40  # a sample that would need a smaller weight is left out
LEAST_NORM, LARGEST_NORM = 2.0**-40, 2.0**80  # of clipping: beyond, float32 sums underflow or overflow
STABILITY = 0.01  # added to the norm by automatic clipping (Bu et al. 2023)


def checked_norm(value: object, name: str) -> float:
    """A clipping norm, or TypeError or ValueError."""
    norm = _checks.positive(value, name)
    if not LEAST_NORM <= norm <= LARGEST_NORM:
        raise ValueError(f"{name} is {norm}, expected 2^-40 to 2^80: beyond, sums underflow or overflow")
    return norm


class Batch(NamedTuple):
    """What clipping must know of a batch. In a recorded step it is told anew each time, in tensors of no dimension."""

    size: int  # rows of what layers saw
    scale: float | Tensor  # by which gradients are multiplied before they are clipped
    max_norm: float | Tensor  # over all parameters
    valid: Tensor | None = None  # [size] bool, which rows are samples; None: all

    @classmethod
    def of(cls, size: int, max_norm: float, *, mean_loss: bool) -> Batch:
        """A mean loss has divided each sample's gradient by the size of the batch."""
        return cls(size, float(size) if mean_loss else 1.0, max_norm)


class Norms(NamedTuple):
    """Of each sample, over some of the parameters: [B] float64 each."""

    squares: Tensor  # upper bounds of n^2
    spreads: Tensor  # upper bounds of A^2, never below squares

    def scaled(self, scale: float | Tensor) -> Norms:
        """The norms of gradients multiplied by ``scale``."""
        squares = self.squares * scale**2
        return Norms(squares, squares if self.spreads is self.squares else self.spreads * scale**2)

    @classmethod
    def added(cls, parts: list[Norms]) -> Norms:
        """The norms over the parameters of all parts, which are added in their order."""
        squares = _added([part.squares for part in parts])
        exact = all(part.spreads is part.squares for part in parts)
        return cls(squares, squares if exact else _added([part.spreads for part in parts]))


def _added(vectors: list[Tensor]) -> Tensor:
    """Their sum: on the CPU one after the other, on a GPU, where operations are what costs, in two of them."""
    if not _native.on_gpu(vectors[0]):  # numpy adds a few hundred values in a tenth of torch's time
        with np.errstate(all="ignore"):
            return torch.from_numpy(functools.reduce(operator.add, [vector.numpy() for vector in vectors]))
    return torch.stack(vectors).sum(0) if len(vectors) > 2 else functools.reduce(operator.add, vectors)


def weights_of(norms: Norms, max_norm: float | Tensor, clipping: str) -> Tensor:
    """[B] float64: ``min(1, C / n, KAPPA C / A)`` for each sample; 0 where a norm is not finite or too large.

    Automatic clipping normalises: ``min(C / (n + STABILITY), KAPPA C / A)``.
    """
    on_cpu = not _native.on_gpu(norms.squares)
    xp: Any = np if on_cpu else torch  # numpy takes half the time, and torch's root wakes threads
    squares, spreads = (values.numpy() if on_cpu else values for values in norms)
    bound = max_norm * (1.0 - MARGIN)
    with np.errstate(all="ignore"):
        norm = xp.sqrt(squares)
        spread = norm if norms.spreads is norms.squares else xp.sqrt(spreads)
        if clipping == "automatic":
            weights = xp.minimum(bound / (norm + STABILITY), KAPPA * bound / spread)
        else:
            weights = xp.minimum(bound / norm, KAPPA * bound / spread).clip(max=1.0)
        # An infinite norm or spread has weight 0, NaN is no number at all: neither is as large as that.
        weights = xp.where(weights >= LEAST_WEIGHT, weights, 0.0)
    found: Tensor = torch.from_numpy(weights) if on_cpu else weights
    return found


def clip(parts: list[Norms], batch: Batch, max_norm: float | Tensor, clipping: str) -> Weights:
    """The weights, times ``batch.scale``, of samples whose gradients are multiplied by it before they are clipped.

    ``parts``: the norms of those gradients over some parameters each; ``max_norm``: over these parameters. The kernel takes
    the place of some twenty operations on a few hundred values, to the same bits.
    """
    squares, scale = [part.squares for part in parts], batch.scale
    native = _native.kernels_on(squares[0])
    if native is None:
        if clipping != "automatic" and _native.on_gpu(squares[0]):
            weights = _in_few_operations(Norms.added(parts), scale, max_norm * (1.0 - MARGIN))
        else:
            weights = weights_of(Norms.added(parts).scaled(scale), max_norm, clipping) * scale
        return Weights(weights if batch.valid is None else weights.where(batch.valid, 0.0))
    assert batch.valid is None
    exact = all(part.spreads is part.squares for part in parts)
    spreads = [] if exact else [part.spreads for part in parts]
    bound, automatic = max_norm * (1.0 - MARGIN), clipping == "automatic"
    added, most = (STABILITY, math.inf) if automatic else (0.0, 1.0)
    values = torch.empty_like(squares[0])
    dropped = native.clip_weights(
        squares, spreads, scale, bound, KAPPA * bound, added, most, LEAST_WEIGHT, values
    )  # fmt: skip
    return Weights(values, dropped)


def _in_few_operations(norms: Norms, scale: float | Tensor, bound: float | Tensor) -> Tensor:
    """``scale * weights_of(norms.scaled(scale))``, up to rounding: ``min(scale, bound / max(n, A / KAPPA))``."""
    squares, spreads = norms
    if spreads is not squares:
        squares = torch.maximum(squares, spreads * KAPPA**-2)
    weights = squares.rsqrt().mul_(bound).clamp_(max=scale)
    return torch.where(weights >= LEAST_WEIGHT * scale, weights, 0.0)  # which NaN is not


class Weights:
    """The weights of a batch, ready to multiply rows: a row of weight 0 is selected away, whatever it holds.

    On the CPU a batch without such rows skips the selection; on a GPU looking would cost more than selecting.
    """

    def __init__(self, values: Tensor, dropped: bool | None = None) -> None:
        self.values = values
        if dropped is None and not _native.on_gpu(values):
            dropped = not values.numpy().all()
        self.dropped = dropped is not False
        # What many layers ask for again: on a GPU the time of a small operation is that of launching it.
        self._made: dict[Any, Tensor] = {}
        self._whole: tuple[Weights, int, int] | None = None  # of which these are a part

    def part(self, start: int, stop: int) -> Weights:
        """The weights of samples ``start`` to ``stop``."""
        if (start, stop) == (0, len(self.values)):
            return self
        found = Weights(self.values[start:stop], self.dropped)
        found._whole = self, start, stop
        return found

    def keep(self, rows: Tensor, dim: int = 0, *, laid_out: bool = False, own: bool = False) -> Tensor:
        """``rows`` where the weight of their sample is not 0, else zeros. See ``scale``."""
        if not laid_out:
            if not self.dropped:
                return rows
            gone = _column(self._gone(), rows, dim)
            return rows.masked_fill_(gone, 0.0) if own else rows.masked_fill(gone, 0.0)
        out = rows.new_empty(rows.shape)
        if not self.dropped:
            return out.copy_(rows)
        # The one selection that writes into a layout of the caller's.
        return torch.where(_column(self._gone(), rows, dim), self._zero(rows), rows, out=out)

    def scale(self, rows: Tensor, dim: int = 0, *, laid_out: bool = False, own: bool = False) -> Tensor:
        """``rows``, each multiplied by the weight of its sample in the dtype of ``rows``.

        ``dim``: where the samples are; above 0 that of the samples of a block, and the blocks, all as large, are dimension
        0. ``laid_out``: a contiguous result even if ``rows`` is not; ``own``: in place.
        """
        factors = _column(self._factors(rows.dtype), rows, dim)
        if own:
            product = rows.mul_(factors)
        else:
            product = torch.mul(rows, factors, out=rows.new_empty(rows.shape)) if laid_out else rows * factors
        return product.masked_fill_(_column(self._gone(), rows, dim), 0.0) if self.dropped else product

    def _factors(self, dtype: torch.dtype) -> Tensor:
        return self._once(dtype, lambda weights: weights.values.to(dtype))

    def _gone(self) -> Tensor:
        return self._once("gone", lambda weights: weights.values == 0)

    def _zero(self, like: Tensor) -> Tensor:
        owner = self if self._whole is None else self._whole[0]
        if ("zero", like.dtype) not in owner._made:
            owner._made["zero", like.dtype] = like.new_zeros(())
        return owner._made["zero", like.dtype]

    def _once(self, key: Any, make: Callable[[Weights], Tensor]) -> Tensor:
        """What ``make`` makes of all weights, the part of it that belongs to these."""
        if key not in self._made:
            if self._whole is None:
                self._made[key] = make(self)
            else:
                whole, start, stop = self._whole
                self._made[key] = whole._once(key, make)[start:stop]
        return self._made[key]


def _column(values: Tensor, like: Tensor, dim: int) -> Tensor:
    if dim == 0:
        return values.view(-1, *[1] * (like.dim() - 1))
    return values.view(like.shape[0], *[1] * (dim - 1), like.shape[dim], *[1] * (like.dim() - dim - 1))


class Total:
    """The sum over samples of one parameter's weighted gradients: parts are added as they come."""

    def __init__(self, parameter: Tensor, spare: Tensor | None = None) -> None:
        self.parameter, self.spare = parameter, spare  # memory to use again: fresh pages cost more than a sum
        self.value: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """Add ``part``, which nobody else uses, in the parameter's shape and dtype."""
        if self.value is None:
            self.value = part.contiguous()
        else:
            self.value.add_(part)

    def ready(self) -> bool:
        """Whether nothing has been added, and memory is there."""
        return self.value is None and self.spare is not None

    def space(self) -> Tensor:
        """Memory for a part that fills all of it and is then added."""
        if self.value is None and self.spare is not None:
            return self.spare
        return torch.empty_like(self.parameter, memory_format=torch.contiguous_format, requires_grad=False)

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add the matrix product, which has the parameter's shape."""
        if self.value is None and self.spare is not None:
            self.value = torch.mm(left, right, out=self.spare)
        else:
            self.add(left @ right)

    def take(self) -> Tensor:
        """The sum; zeros if nothing was added."""
        if self.value is None:
            self.value = torch.zeros_like(self.parameter, memory_format=torch.contiguous_format)
        return self.value
