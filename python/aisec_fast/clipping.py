"""Per-sample gradient clipping: norms, clipped sums, and a clipped noisy sum with exact sensitivity.

``grads`` is one array ``[B, ...]`` or a list of arrays ``[B, ...]``, one per parameter: row ``i`` of all of them together is
the gradient of sample ``i``. float32, float64 or bfloat16, all of one dtype on one device (numpy, torch, cupy or any DLPack
producer); rows are contiguous, any distance apart. Nothing is copied. Results are equal to the bit on every backend,
instruction set and thread count; docs/clipping.md has the order of every sum and the error bounds.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from . import _arrays, _checks
from ._arrays import Array
from ._backends import Backend, choose
from ._sources import Source, chosen

__all__ = ["clip_and_sum", "per_sample_norms", "private_sum"]

_DTYPES = ("float32", "float64", "bfloat16")
_LEAST_NOISE = 2.0**-20


def per_sample_norms(grads: Any) -> Any:
    """L2 norm of each sample's gradient over all arrays.

    Args:
        grads: see the module's text.

    Returns:
        Array ``[B]`` of the library and device of ``grads``: float64 for float64 input, else float32 (one rounding). A row
        that holds NaN or Inf has a NaN or infinite norm. Norms are private data.

    Raises:
        TypeError, ValueError: see :func:`clip_and_sum`.
    """
    arrays, _ = _gradients(grads)
    return _arrays.cast(_norms(arrays, choose(arrays)), _sum_dtype(arrays))


def clip_and_sum(grads: Any, max_norm: float, *, out: Any = None) -> tuple[Any, Any]:
    """Scale each sample's gradient to an L2 norm of at most ``max_norm`` and sum over the samples.

    ``sum_i grads[i] * min(1, max_norm / norm_i)``, accumulated in float64 in row order and rounded once. A sample whose norm
    is NaN or infinite, or above ``2^1000 max_norm``, is left out of the sum, and only it.

    Args:
        grads: see the module's text.
        max_norm: clipping bound, above 0.
        out: array (list for a list) of shape ``grads.shape[1:]`` to write to. Default: new.

    Returns:
        ``(sum, norms)``: the sum has shape ``[...]`` (a list for a list), float64 for float64 input, else float32; norms as
        in :func:`per_sample_norms`, before clipping.

    Raises:
        TypeError: ``grads`` holds something that is no array or has another dtype.
        ValueError: max_norm, an empty list, unequal batch sizes, a 0-d array, mixed devices, rows that are not
            contiguous, or an ``out`` of wrong shape, read-only or overlapping ``grads``.
        BackendError: the forced backend is missing or cannot reach ``grads``.
    """
    bound = _checks.positive(max_norm, "max_norm")
    arrays, is_list = _gradients(grads)
    outputs = _outputs(arrays, out, is_list)
    backend = choose([*arrays, *outputs])
    norms = _arrays.empty_like(arrays[0], arrays[0].shape[:1], "float64")
    backend.clipping.clip_and_sum(
        backend.operands(arrays), bound, backend.operands(outputs), *backend.operands([norms])
    )
    sums = [array.value for array in outputs]
    return (sums if is_list else sums[0]), _arrays.cast(norms, _sum_dtype(arrays))


def private_sum(grads: Any, max_norm: float, noise_multiplier: float, *, source: Source | None = None) -> Any:
    """Clipped sum with Gaussian noise of standard deviation ``noise_multiplier * max_norm``: one DP-SGD release.

    Each clipped row is truncated toward zero onto a lattice and summed in integers, so one row changes the sum by at most
    ``max_norm``, exactly and whatever the other rows are; the noise is exact (docs/noise.md). The release is the
    continuous Gaussian mechanism with this noise multiplier, nothing added, when a row is added, removed or replaced by
    zeros.

    Args:
        grads: see the module's text. Rows with NaN or Inf count as zero.
        max_norm: clipping bound, above 0.
        noise_multiplier: at least ``2^-20``, or 0 for no noise and no privacy.
        source: where the randomness comes from. Default: this process's SecureSource.

    Returns:
        The noisy sum, shape ``[...]`` (a list for a list); float64 for float64 input, else float32.

    Raises:
        TypeError, ValueError, BackendError: as :func:`clip_and_sum`.
    """
    bound = _checks.positive(max_norm, "max_norm")
    multiplier = _checks.not_negative(noise_multiplier, "noise_multiplier")
    if 0 < multiplier < _LEAST_NOISE:
        raise ValueError(f"noise_multiplier is {multiplier}, expected 0 or at least 2^-20")
    keys = chosen(source)
    arrays, is_list = _gradients(grads)
    backend = choose(arrays)
    sigma = multiplier * bound
    if not math.isfinite(sigma):
        raise ValueError(f"noise_multiplier is {multiplier} and max_norm {bound}, expected a finite product")
    granularity = lattice_granularity(bound, multiplier)
    if not 2.0**-900 <= granularity <= 2.0**900:
        raise ValueError(f"max_norm is {bound} (lattice spacing {granularity}), expected a spacing of 2^-900 to 2^900")
    limit = math.floor((Fraction(bound) / Fraction(granularity)) ** 2)
    totals = [_arrays.empty_like(array, array.shape[1:], "int64") for array in arrays]
    norms = _arrays.empty_like(arrays[0], arrays[0].shape[:1], "float64")
    backend.clipping.lattice_sum(
        backend.operands(arrays), bound, granularity, limit, backend.operands(totals), *backend.operands([norms])
    )
    sums = []
    for total in totals:
        noisy = _arrays.empty_like(total, total.shape, _sum_dtype(arrays))
        if multiplier > 0:
            operands = backend.operands([total, noisy])
            backend.noise.add_gaussian(*operands, sigma, granularity, keys.next_key(), backend.generator(keys))
            sums.append(noisy.value)
        else:
            sums.append(_arrays.cast(total, _sum_dtype(arrays)) * granularity)
    return sums if is_list else sums[0]


def lattice_granularity(max_norm: float, noise_multiplier: float) -> float:
    """Lattice spacing of :func:`private_sum`: ``2^(floor(log2 max(sigma, 2^-10 max_norm)) - 20)``."""
    return math.ldexp(1.0, math.frexp(max(noise_multiplier, 2.0**-10) * max_norm)[1] - 21)


def _norms(arrays: list[Array], backend: Backend) -> Array:
    norms = _arrays.empty_like(arrays[0], arrays[0].shape[:1], "float64")
    backend.clipping.norms(backend.operands(arrays), *backend.operands([norms]))
    return norms


def _row_norms(grads: list[Any]) -> Any:
    """Norms in float64, whatever the dtype of ``grads``: ``[B]``."""
    arrays, _ = _gradients(grads)
    return _norms(arrays, choose(arrays)).value


def _weighted_sums(grads: list[Any], weights: Any) -> list[Any]:
    """``sum_i weights[i] * grads[a][i]`` of each array ``[B, ...]``; weights ``[B]`` float64, finite; 0 selects a row away."""
    arrays, _ = _gradients(grads)
    weight = _arrays.describe(weights, "weights")
    _arrays.require_output(weight, arrays[0].shape[:1], "float64")
    outputs = _outputs(arrays, None, is_list=True)
    backend = choose([*arrays, weight])
    backend.clipping.weighted_sum(backend.operands(arrays), *backend.operands([weight]), backend.operands(outputs))
    return [array.value for array in outputs]


def _gradients(grads: Any) -> tuple[list[Array], bool]:
    is_list = isinstance(grads, (list, tuple))
    values = list(grads) if is_list else [grads]
    if not values:
        raise ValueError("grads is an empty list, expected at least one array")
    arrays = [_arrays.describe(value, f"grads[{i}]" if is_list else "grads") for i, value in enumerate(values)]
    for array in arrays:
        _arrays.require_dtype(array, _DTYPES)
        if array.dtype != arrays[0].dtype:
            raise TypeError(f"{array.name} has dtype {array.dtype}, expected {arrays[0].dtype} as grads[0]")
        if not array.shape:
            raise ValueError(f"{array.name} has no dimensions, expected [B, ...]")
        if array.shape[0] != arrays[0].shape[0]:
            raise ValueError(f"{array.name} has batch size {array.shape[0]}, expected {arrays[0].shape[0]} as grads[0]")
        if not array.contiguous_from(1):
            raise ValueError(f"{array.name} is not contiguous inside its rows (strides {array.strides}); pass a copy")
    return arrays, is_list


def _sum_dtype(arrays: list[Array]) -> str:
    return "float64" if arrays[0].dtype == "float64" else "float32"


def _outputs(arrays: list[Array], out: Any, is_list: bool) -> list[Array]:
    shapes, dtypes = [array.shape[1:] for array in arrays], [_sum_dtype(arrays)] * len(arrays)
    return _arrays.outputs(out, arrays, shapes, dtypes, is_list=is_list, in_place=False)
