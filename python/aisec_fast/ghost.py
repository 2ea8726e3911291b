"""Norms of per-sample weight gradients of linear and convolutional layers, without forming the gradients or cheaply.

A layer's gradient for one sample is ``sum_t g_t a_t^T`` over its positions t (tokens, pixels): ``a_t`` is what the layer
read there, ``g_t`` the gradient of its output. Goodfellow 2015 reads the norm off ``|a|`` and ``|g|`` for one position, Li et
al. 2022 off two Gram matrices for several, Bu et al. 2022 choose between that and the gradient itself. All arrays are
float32, C-contiguous, on one device (numpy, torch, cupy or any DLPack producer); nothing is copied. Results of a sample
depend on that sample alone, to the bit, whatever the batch and the number of threads. docs/ghost.md has the proofs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from . import _arrays, _checks
from ._arrays import Array
from ._backends import Backend, choose

__all__ = [
    "cheapest",
    "cheapest_conv",
    "conv_gram_squares",
    "conv_roundoff",
    "conv_rows",
    "gram_roundoff",
    "gram_squares",
]

LARGEST_WIDTH = 2**22  # of a dot product: the error bounds hold up to here
# What one thread of an AVX2 core did when nothing else ran, in operations (a multiply-add is two) or bytes a nanosecond:
# only their ratios matter. _PRODUCT_RATE is torch's; _KEPT_RATE is for writing rows once and reading them once.
_GRAM_RATE, _PIXEL_GRAM_RATE, _SHIFT_RATE, _ROWS_RATE, _PRODUCT_RATE, _KEPT_RATE = 60.0, 40.0, 15.0, 75.0, 60.0, 3.0
# What a product of a block of samples takes in torch beside its operations, in nanoseconds.
_BLOCK_TIME = 100e3
_CHANNEL_CHUNK, _DOT_ROUNDINGS = 64, 68  # docs/ghost.md


def gram_squares(inputs: Any, outputs: Any) -> tuple[Any, Any]:
    """Squared norms of per-sample gradients of a linear layer over a sequence, by Gram matrices.

    ``squares[b]`` is ``|sum_t g_t a_t^T|^2 = sum_{s,t} (a_s . a_t)(g_s . g_t)``, within ``gram_roundoff(T, d, p) *
    bounds[b]^2`` of the truth, which can make it negative where tokens cancel; ``bounds[b]`` is at least
    ``sum_t |a_t| |g_t|``.

    Args:
        inputs: what the layer read, ``[B, T, d]``, float32.
        outputs: gradient of the loss with respect to the layer's output, ``[B, T, p]``, float32.

    Returns:
        ``(squares, bounds)``, float64 ``[B]`` each, of the library and device of ``inputs``. Both are infinite for a sample
        that holds NaN or Inf, or whose dot products leave the range of float32. Private data.

    Raises:
        TypeError: no array, or another dtype than float32.
        ValueError: wrong shapes, not contiguous, or on different devices.
        BackendError: the forced backend is missing or cannot reach the arrays.
    """
    a, g = _input(inputs, "inputs", (3,)), _input(outputs, "outputs", (3,))
    if g.shape[:2] != a.shape[:2]:
        raise ValueError(f"outputs has shape {g.shape}, expected {(*a.shape[:2], 'p')} as inputs")
    for array in (a, g):
        _check_width(array.shape[2], array.name)
    backend = choose([a, g])
    squares, bounds = _per_sample(a), _per_sample(a)
    backend.ghost.gram_squares(*backend.operands([a, g, squares, bounds]))
    return squares.value, bounds.value


def conv_gram_squares(
    activation: Any,
    gradient: Any,
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int | tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Any, Any]:
    """Squared norms of per-sample weight gradients of a convolution, by Gram matrices of its pixels.

    Native: the Gram matrix of patches is a sum of entries of the pixels' Gram matrix, one for each kernel offset, so that
    patches are never unfolded. Meant for few positions and many channels; takes ``8 (H W)^2`` bytes a thread.

    Args:
        activation: what the layer read, before padding: ``[B, C, L]`` or ``[B, C, H, W]``, float32.
        gradient: gradient of the loss with respect to the output, ``[B, P, Lo]`` or ``[B, P, Ho, Wo]``, float32.
        kernel_size, stride, dilation: one integer, or one for each dimension.
        padding: zeros around: one integer, or for each dimension an integer or ``(before, after)``.
        groups: as in torch's convolutions.

    Returns:
        ``(squares, bounds)`` as :func:`gram_squares`, within ``conv_roundoff * bounds^2``. A bound is the root of the sum over
        groups of ``(sum_t |patch_t| |g_t|)^2``.

    Raises:
        TypeError, ValueError, BackendError: as :func:`gram_squares`; ValueError too if the sizes do not fit together.
    """
    layer = _convolution(activation, gradient, kernel_size, stride, padding, dilation, groups)
    squares, bounds = _per_sample(layer.activation), _per_sample(layer.activation)
    backend = layer.backend
    a, g, square, bound = backend.operands([layer.activation, layer.gradient, squares, bounds])
    backend.ghost.conv_gram_squares(a, g, *layer.geometry, square, bound)
    return squares.value, bounds.value


def conv_rows(
    activation: Any,
    gradient: Any,
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int | tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    out: Any = None,
    bounded: bool = True,
) -> tuple[Any, Any, Any]:
    """Per-sample weight gradients of a convolution, and their squared norms.

    Args:
        activation, gradient, kernel_size, stride, padding, dilation, groups: as in :func:`conv_gram_squares`.
        out: array for the rows. Default: new; memory that was just asked for costs more than the gradients, so keep one.
        bounded: False for no bounds, which take time of their own: an empty array comes in their place.

    Returns:
        ``(rows, squares, bounds)``: the gradients, float32 ``[B, P, C / groups, *kernel_size]``; the sum of the squares of
        those very values, in float64 (within ``(size + 2) 2^-53`` relatively; nothing is charged for the rows, which are a
        function of their sample alone); bounds as in :func:`conv_gram_squares`.

    Raises:
        TypeError, ValueError, BackendError: as :func:`conv_gram_squares`.
    """
    layer = _convolution(activation, gradient, kernel_size, stride, padding, dilation, groups)
    channels = layer.activation.shape[1] // groups
    shape = (layer.activation.shape[0], layer.gradient.shape[1], channels, *layer.kernel)
    (rows,) = _arrays.outputs(out, [layer.activation], [shape], ["float32"], is_list=False, in_place=False)
    _arrays.require_apart(rows, layer.gradient, same_is_fine=False)
    squares = _per_sample(layer.activation)
    bounds = _arrays.empty_like(layer.activation, shape[:1] if _checks.flag(bounded, "bounded") else (0,), "float64")
    backend = layer.backend
    a, g, row, square, bound = backend.operands([layer.activation, layer.gradient, rows, squares, bounds])
    backend.ghost.conv_rows(a, g, *layer.geometry, row, square, bound)
    return rows.value, squares.value, bounds.value


def gram_roundoff(length: int, d: int, p: int) -> float:
    """Gamma of :func:`gram_squares`: ``|squares - truth| <= gamma * bounds^2``, on every backend (docs/ghost.md)."""
    return _roundoff(min(d, _DOT_ROUNDINGS) + 1, min(p, _DOT_ROUNDINGS) + 1, length * length)


def conv_roundoff(positions: int, channels: int, out_channels: int, taps: int, groups: int = 1) -> float:
    """Gamma of :func:`conv_gram_squares`: ``|squares - truth| <= gamma * bounds^2``.

    Args:
        positions: of the output, ``Ho * Wo``.
        channels, out_channels, groups: of the layer.
        taps: kernel offsets, ``kh * kw``.
    """
    inside, outside = channels // groups, out_channels // groups
    added = [min(n, _CHANNEL_CHUNK) + n // _CHANNEL_CHUNK + 1 for n in (inside, outside)]
    return _roundoff(added[0] + taps, added[1], positions * positions * taps * groups)


def _roundoff(first: int, second: int, terms: int) -> float:
    """Of a sum in float64 of so many products of two numbers, each with so many roundings to float32."""
    gammas = [n * 2.0**-24 / (1 - n * 2.0**-24) for n in (first, second)]
    in_float64 = (terms + 8) * 2.0**-53
    return (gammas[0] + gammas[1] + gammas[0] * gammas[1] + 2 * in_float64) * (1 + 2.0**-40)


def cheapest(batch: int, length: int, d: int, p: int, *, kept_bytes: int = 2**27) -> Literal["gram", "rows"]:
    """Which way to the norms *and* the clipped sum of a linear layer is cheaper, by a model with measured rates.

    "gram": :func:`gram_squares`, then the product of the whole batch that a plain backward pass does, too. "rows": every
    sample's gradient, kept and added with weights: no other product, but the rows are written and read again.

    Args:
        batch, length, d, p: shapes as in :func:`gram_squares`.
        kept_bytes: the most that the rows may take; "rows" only if they fit.
    """
    product = 2 * length * d * p
    gram = length * length * (d + p) / _GRAM_RATE + product / _PRODUCT_RATE
    rows = product / _PRODUCT_RATE + 4 * d * p / _KEPT_RATE
    return "rows" if rows < gram and 4 * batch * d * p <= kept_bytes else "gram"


def cheapest_conv(
    activation_shape: Sequence[int],
    gradient_shape: Sequence[int],
    kernel_size: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    groups: int = 1,
    kept_bytes: int = 2**27,
    block: int | None = None,
) -> Literal["gram", "rows"]:
    """The same for a convolution: :func:`conv_gram_squares` and weighted products, or :func:`conv_rows`, kept.

    Args:
        activation_shape, gradient_shape: ``[B, C, ...]``, ``[B, P, ...]``.
        kernel_size, stride, groups: as in :func:`conv_gram_squares`.
        kept_bytes: as in :func:`cheapest`.
        block: how many samples one weighted product may hold (many short ones take longer); None for all.
    """
    spatial = len(activation_shape) - 2
    taps = math.prod(_whole_list(kernel_size, "kernel_size", spatial, least=1))
    classes = min(taps, math.prod(_whole_list(stride, "stride", spatial, least=1)))
    batch, channels = activation_shape[:2]
    outputs, pixels, positions = gradient_shape[1], math.prod(activation_shape[2:]), math.prod(gradient_shape[2:])
    size = outputs * channels // groups * taps
    product = 2 * positions * size
    pairs = pixels * pixels / classes * channels + positions * positions * outputs
    shifted = positions * positions * taps * groups
    gram = pairs / _PIXEL_GRAM_RATE + shifted / _SHIFT_RATE + product / _PRODUCT_RATE
    gram += _BLOCK_TIME / block if block else 0.0
    rows = product / _ROWS_RATE + 4 * size / _KEPT_RATE
    return "rows" if rows < gram and 4 * batch * size <= kept_bytes else "gram"


class _Convolution(NamedTuple):
    """A checked call: arrays with two spatial dimensions each, and the kernels' arguments between them and the results."""

    activation: Array
    gradient: Array
    kernel: tuple[int, ...]  # of as many dimensions as the user's arrays
    geometry: tuple[list[int], list[int], list[int], list[int], int]
    backend: Backend


def _input(value: Any, name: str, dimensions: tuple[int, ...]) -> Array:
    array = _arrays.describe(value, name)
    _arrays.require_dtype(array, ["float32"])
    if len(array.shape) not in dimensions:
        raise ValueError(f"{name} has shape {array.shape}, expected {' or '.join(map(str, dimensions))} dimensions")
    _arrays.require_contiguous(array)
    return array


def _per_sample(like: Array) -> Array:
    return _arrays.empty_like(like, like.shape[:1], "float64")


def _check_width(width: int, name: str) -> None:
    if width > LARGEST_WIDTH:
        raise ValueError(f"{name} has dot products of {width} values, expected at most 2^22")


def _convolution(
    activation: Any, gradient: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> _Convolution:
    a, g = _input(activation, "activation", (3, 4)), _input(gradient, "gradient", (3, 4))
    spatial = len(a.shape) - 2
    if len(g.shape) != len(a.shape) or g.shape[0] != a.shape[0]:
        raise ValueError(f"gradient has shape {g.shape}, expected {len(a.shape)} dimensions and batch {a.shape[0]}")
    kernel, steps, spread = (
        _whole_list(value, name, spatial, least=1)
        for value, name in ((kernel_size, "kernel_size"), (stride, "stride"), (dilation, "dilation"))
    )
    sides = _sides(padding, spatial)
    count = _checks.whole(groups, "groups", least=1)
    for array in (a, g):
        if array.shape[1] == 0 or array.shape[1] % count != 0:
            raise ValueError(
                f"{array.name} has {array.shape[1]} channels, expected a positive multiple of groups = {count}"
            )
    for axis, (size, k, step, gap, (before, after)) in enumerate(
        zip(a.shape[2:], kernel, steps, spread, sides, strict=True)
    ):
        expected = (size + before + after - gap * (k - 1) - 1) // step + 1
        if size == 0 or expected < 1 or g.shape[2 + axis] != expected:
            raise ValueError(
                f"gradient has {g.shape[2 + axis]} positions in dimension {2 + axis}, expected {expected} from "
                f"{size} pixels, padding {(before, after)}, kernel_size {k}, stride {step}, dilation {gap}"
            )
    _check_width(a.shape[1] // count * math.prod(kernel), "activation")
    _check_width(g.shape[1] // count, "gradient")
    backend = choose([a, g])
    pad = [0] * (2 - spatial)
    one = [1] * (2 - spatial)
    geometry = (one + kernel, one + steps, pad + [before for before, _ in sides], one + spread, count)
    return _Convolution(_with_rows(a), _with_rows(g), tuple(kernel), geometry, backend)


def _with_rows(array: Array) -> Array:
    """[B, C, L] as [B, C, 1, L]."""
    if len(array.shape) == 4:
        return array
    return _arrays.describe(array.value.reshape(*array.shape[:2], 1, array.shape[2]), array.name)


def _whole_list(value: Any, name: str, length: int, least: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value] * length
    if len(values) != length:
        raise ValueError(f"{name} has {len(values)} values, expected {length}")
    return [_checks.whole(number, name, least) for number in values]


def _sides(padding: Any, length: int) -> list[tuple[int, int]]:
    values = list(padding) if isinstance(padding, (tuple, list)) else [padding] * length
    if len(values) != length:
        raise ValueError(f"padding has {len(values)} values, expected {length}")
    sides = []
    for value in values:
        both = _whole_list(value, "padding", 2, least=0)
        sides.append((both[0], both[1]))
    return sides
