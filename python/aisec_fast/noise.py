"""Exact, float-safe Gaussian and Laplace noise from a cryptographic generator.

Values are rounded to a lattice of spacing ``granularity`` (a power of two) and exact integer noise is added there, so the
result does not leak through floating point (Mironov 2012; Haney et al. 2022) and the accounting of the continuous
mechanisms holds. The same source gives the same bits on every backend, instruction set and thread count. docs/noise.md
defines every bit and proves every bound.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _arrays, _checks
from ._arrays import Array
from ._backends import Backend, choose
from ._integers import (
    bernoulli,
    bernoulli_exp,
    discrete_gaussian,
    discrete_laplace,
    permutation,
    poisson_mask,
    skellam,
    uniform_integers,
)
from ._sources import SecureSource, SeededSource, Source, chosen

__all__ = [
    "SecureSource",
    "SeededSource",
    "add_gaussian",
    "add_laplace",
    "bernoulli",
    "bernoulli_exp",
    "charged_sensitivity",
    "default_granularity",
    "discrete_gaussian",
    "discrete_laplace",
    "permutation",
    "poisson_mask",
    "random_words",
    "skellam",
    "uniform_integers",
]

_LARGEST_EXPONENT = 900  # of the granularity
_LARGEST_RATIO = 2.0**40  # of sigma / granularity
_WORDS_DOMAIN = 0


def default_granularity(sigma: float) -> float:
    """``2^(floor(log2 sigma) - 20)``: a public function of sigma (or of Laplace's scale) alone."""
    return math.ldexp(1.0, math.frexp(_checks.positive(sigma, "sigma"))[1] - 21)


def charged_sensitivity(max_norm: float, size: int, granularity: float, *, norm: str = "l2") -> float:
    """Sensitivity of a vector after rounding to the lattice, rounded up.

    Args:
        max_norm: sensitivity of the vector before rounding, in the same norm.
        size: number of coordinates that are released together (all arrays of a list).
        granularity: lattice spacing.
        norm: "l2" (Gaussian): ``max_norm + granularity * sqrt(size)``; "l1" (Laplace): ``max_norm + granularity * size``.

    Use it in place of ``max_norm`` when calibrating the noise of :func:`add_gaussian` or :func:`add_laplace`.
    """
    sensitivity = _checks.not_negative(max_norm, "max_norm")
    count = _checks.whole(size, "size")
    spacing = _power_of_two(granularity)
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm is {norm!r}, expected 'l1' or 'l2'")
    if count > 2**200:
        raise OverflowError(f"size is {count}, expected at most 2^200")
    steps = math.sqrt(count) if norm == "l2" else float(count)
    charge = spacing * math.nextafter(steps, math.inf)
    return math.nextafter(sensitivity + charge, math.inf)


def add_gaussian(
    x: Any,
    sigma: float,
    *,
    granularity: float | None = None,
    exact: bool = True,
    source: Source | None = None,
    out: Any = None,
    check: bool | None = None,
) -> Any:
    """Add exact Gaussian noise; you calibrate: ``sigma`` is the standard deviation of the noise.

    ``result = granularity * (rint(x / granularity) + rint(N(0, (sigma / granularity)^2)))``. The guarantee is that of the
    continuous Gaussian mechanism for :func:`charged_sensitivity` (docs/noise.md section 1).

    Args:
        x: array (numpy, torch, cupy or any DLPack producer) of any shape, float32 or float64, C-contiguous; or a list
            of such arrays on one device. Each array of a list gets its own key.
        sigma: standard deviation, in the units of ``x``; above 0 and finite.
        granularity: lattice spacing, a power of two with ``1 <= sigma / granularity <= 2^40``. Default:
            :func:`default_granularity`.
        exact: False adds noise in floating point, ``x + sigma * N`` (float mode): faster, with NaN and infinities as IEEE
            arithmetic has them, from the same generators, but **not private**: its low bits tell ``x`` (Mironov 2012;
            Haney et al. 2022). It needs ``granularity=None``.
        source: where the randomness comes from. Default: this process's :class:`SecureSource`.
        out: where to write: an array of x's shape and dtype (a list for a list); ``out=x`` works in place. Default: new.
        check: raise if a value of ``x`` is NaN, infinite or beyond ``2^62 granularity``, before anything is written. If
            False, NaN counts as 0 and the rest is clamped. Default: True on the CPU, False on a GPU (no synchronisation)
            and in float mode, where it can only be False. An error reveals something of ``x``: pass False where that matters.

    Returns:
        ``out``, or new arrays of the same library, device, shape and dtype as ``x``.

    Raises:
        TypeError: ``x`` or ``out`` is no array, or its dtype is none of the two; another argument of a wrong type.
        ValueError: sigma, granularity or check out of range or not of float mode; shape, device, contiguity or a read-only or overlapping ``out``; NaN or Inf.
        OverflowError: a value beyond ``2^62 granularity``.
        RuntimeError: a CUDA graph is being recorded on the current stream: each replay would add the same noise.
        BackendError: the forced backend is missing or cannot reach ``x``.
    """
    return _add("gaussian", x, sigma, "sigma", granularity, exact, source, out, check)


def add_laplace(
    x: Any,
    scale: float,
    *,
    granularity: float | None = None,
    exact: bool = True,
    source: Source | None = None,
    out: Any = None,
    check: bool | None = None,
) -> Any:
    """Add exact Laplace noise; you calibrate: ``scale`` is ``b`` in the density ``exp(-|y| / b) / (2 b)``.

    ``result = granularity * (rint(x / granularity) + rint(Laplace(scale / granularity)))``. The guarantee is that of the
    continuous Laplace mechanism for ``charged_sensitivity(..., norm="l1")``. Arguments, result and errors are those of
    :func:`add_gaussian`.
    """
    return _add("laplace", x, scale, "scale", granularity, exact, source, out, check)


def random_words(size: int, *, source: Source | None = None) -> npt.NDArray[np.uint64]:
    """``size`` uniform 64-bit words from one key of ``source``, as a numpy array of shape ``[size]``, on the CPU."""
    out = _arrays.empty(_checks.whole(size, "size"), np.uint64, "size")
    described = _arrays.describe(out, "out")
    backend, keys = choose([described], host_only=True), chosen(source)
    backend.noise.random_words(out, keys.next_key(), _WORDS_DOMAIN, backend.generator(keys))
    return out


def _add(
    law: str,
    x: Any,
    scale: float,
    scale_name: str,
    granularity: float | None,
    exact: bool,
    source: Source | None,
    out: Any,
    check: bool | None,
) -> Any:
    # Every check comes before the first key is drawn and the first value is written.
    kernel, parameters = f"add_{law}", [_checks.positive(scale, scale_name)]
    _checks.flag(exact, "exact")
    if check is not None:
        _checks.flag(check, "check")
    if exact:
        parameters.append(lattice_spacing(scale, scale_name, granularity))
    else:
        _require_float_mode(granularity, check)
        kernel = f"add_float_{law}"
    keys = chosen(source)
    is_list = isinstance(x, (list, tuple))
    inputs = [_input(value, f"x[{i}]" if is_list else "x") for i, value in enumerate(x if is_list else [x])]
    if not inputs:
        return []
    shapes, dtypes = [array.shape for array in inputs], [array.dtype for array in inputs]
    outputs = _arrays.outputs(out, inputs, shapes, dtypes, is_list=is_list, in_place=True)
    backend = choose([*inputs, *outputs])
    if exact and (inputs[0].device == "cpu" if check is None else check):
        for array in inputs:
            _require_fit(backend, array, parameters[-1])
    for array, output in zip(inputs, outputs, strict=True):
        operands = backend.operands([array, output])
        getattr(backend.noise, kernel)(*operands, *parameters, keys.next_key(), backend.generator(keys))
    results = [array.value for array in outputs]
    return results if is_list else results[0]


def _input(value: Any, name: str) -> Array:
    array = _arrays.describe(value, name)
    _arrays.require_dtype(array, ("float32", "float64"))
    _arrays.require_contiguous(array)
    return array


def lattice_spacing(scale: float, name: str, granularity: float | None) -> float:
    """``granularity``, or the default for this scale; ValueError unless the kernels take it."""
    spacing = default_granularity(scale) if granularity is None else _power_of_two(granularity)
    if not 2.0**-_LARGEST_EXPONENT <= spacing <= 2.0**_LARGEST_EXPONENT:
        raise ValueError(
            f"granularity is {spacing} ({name} {scale}), expected 2^-{_LARGEST_EXPONENT} to 2^{_LARGEST_EXPONENT}"
        )
    if not 1.0 <= scale / spacing <= _LARGEST_RATIO:
        raise ValueError(f"granularity is {spacing}, expected {name} / 2^40 to {name}, which is {scale}")
    return spacing


def _require_float_mode(granularity: float | None, check: bool | None) -> None:
    if granularity is not None:
        raise ValueError(f"granularity is {granularity}, expected None with exact=False: float mode has no lattice")
    if check:
        raise ValueError("check is True, expected None or False with exact=False: float mode takes any value")


def _power_of_two(granularity: float) -> float:
    spacing = _checks.positive(granularity, "granularity")
    if math.frexp(spacing)[0] != 0.5:
        raise ValueError(f"granularity is {spacing}, expected a power of two")
    return spacing


def _require_fit(backend: Backend, array: Array, granularity: float) -> None:
    index = backend.noise.first_unfit(*backend.operands([array]), granularity)
    if index < 0:
        return
    value = float(array.value.reshape(-1)[index])
    where = f"{array.name} at flat index {index}"
    if math.isfinite(value):
        raise OverflowError(f"{where} exceeds 2^62 granularity; pass a coarser granularity (now {granularity})")
    raise ValueError(f"{where} is {value}, expected finite values")
