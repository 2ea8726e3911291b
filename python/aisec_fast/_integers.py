"""Exact integers and decisions of the noise family, made on the CPU. docs/noise-integers.md defines every bit."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _arrays, _checks
from ._backends import Backend, choose
from ._reference import integers as reference
from ._reference.noise import RAW, refinement
from ._sources import Source, chosen
from ._tables import quantiles
from ._tables.wide import wide_quantiles

Shape: TypeAlias = int | tuple[int, ...]
Integers: TypeAlias = npt.NDArray[np.int64]
Decisions: TypeAlias = npt.NDArray[np.bool_]

_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-1022, 2.0**40
_WIDE_SCALE = 2.0**23  # from here on open samples would cost more than the wide step
_LARGEST_PART = 2**20  # of Skellam's variance: the table of a larger one would leave the cache
_LARGEST_VARIANCE = 2.0**26
_SHUFFLED_AT_ONCE = 2**22  # steps of a permutation between two looks at pending signals


def discrete_gaussian(shape: Shape, sigma: float, *, source: Source | None = None) -> Integers:
    """Integers of the discrete Gaussian: ``P(n) ~ exp(-n^2 / (2 sigma^2))`` (Canonne, Kamath, Steinke 2020).

    Not :func:`add_gaussian`'s law, which is a rounded Gaussian: account for it as the discrete one. Added to integers of
    sensitivity ``d`` it is ``d^2 / (2 sigma^2)``-zCDP, as the continuous one.

    Args:
        shape: an int or a tuple of ints, 0 or above.
        sigma: ``2^-1022`` to ``2^40``. The standard deviation is ``sigma`` or slightly less.
        source: where the randomness comes from. Default: this process's :class:`SecureSource`.

    Returns:
        A numpy array, int64, on the CPU whatever the backend. Exact up to a statistical distance of ``2^-270`` a value and the
        generator's quality (docs/noise-integers.md).

    Raises:
        TypeError, ValueError: an argument, by name. MemoryError: too many values.
    """
    out, keys = _new(shape, np.int64), chosen(source)
    return _of_scale(out, keys, "gaussian", reference.discrete_gaussian, sigma, "sigma")


def discrete_laplace(shape: Shape, scale: float, *, source: Source | None = None) -> Integers:
    """Integers of the discrete Laplace law: ``P(n) ~ exp(-|n| / scale)`` (two-sided geometric; Ghosh et al. 2009).

    Added to integers of sensitivity ``d`` it is ``d / scale``-DP. ``scale`` is ``2^-1022`` to ``2^40``; the rest is as for
    :func:`discrete_gaussian`.
    """
    out, keys = _new(shape, np.int64), chosen(source)
    return _of_scale(out, keys, "laplace", reference.discrete_laplace, scale, "scale")


def skellam(shape: Shape, variance: float, *, source: Source | None = None) -> Integers:
    """Integers of the symmetric Skellam law: the difference of two Poisson numbers of mean ``variance / 2``.

    ``P(n) = exp(-variance) I_n(variance)``; sums of independent ones are Skellam again, of the summed variance (Agarwal, Kairouz,
    Liu 2021). ``variance`` is ``2^-1022`` to ``2^26``; beyond ``2^20`` each value is a sum of equal parts, which takes as
    many times longer. The rest is as for :func:`discrete_gaussian`.
    """
    out, keys = _new(shape, np.int64), chosen(source)
    whole = Fraction(_between(variance, "variance", _SMALLEST_SCALE, _LARGEST_VARIANCE))
    parts = max(1, math.ceil(whole / _LARGEST_PART))
    law = reference.skellam(whole / parts)
    result = _by_table(out, keys, law)
    for _ in range(parts - 1):
        result += _by_table(np.empty_like(out), keys, law)
    return result


def uniform_integers(shape: Shape, low: int, high: int, *, source: Source | None = None) -> Integers:
    """Integers of ``low, ..., high - 1``, each with a probability within ``2^-320`` of the others'; nothing is redrawn.

    Args:
        shape: an int or a tuple of ints, 0 or above.
        low, high: ``-2^63 <= low < high <= 2^63`` and ``high - low <= 2^63``.
        source: as for :func:`discrete_gaussian`.
    """
    out, keys = _new(shape, np.int64), chosen(source)
    first, end = _whole(low, "low"), _whole(high, "high")
    if first < -(2**63):
        raise ValueError(f"low is {first}, expected at least -2^63")
    if not first < end <= 2**63:
        raise ValueError(f"high is {end}, expected above low, which is {first}, and at most 2^63")
    if end - first > 2**63:
        raise ValueError(f"high is {end}, expected at most low + 2^63, and low is {first}")
    return _bounded(out, keys, first, end - first, growth=0)


def permutation(size: int, *, source: Source | None = None) -> Integers:
    """A permutation of ``0, ..., size - 1``, uniform up to a statistical distance of ``2^-240``; int64, shape ``[size]``.

    Fisher and Yates' shuffle (Durstenfeld 1964), inside out, one word of the stream a place.
    """
    out, keys = _new(_checks.whole(size, "size"), np.int64, "size"), chosen(source)
    _bounded(out, keys, 0, 1, growth=1)
    kernels = _backend(out).integers
    for first in range(0, out.size, _SHUFFLED_AT_ONCE):
        kernels.shuffle(out, first, min(first + _SHUFFLED_AT_ONCE, out.size))
    return out


def bernoulli(shape: Shape, probability: float | Fraction, *, source: Source | None = None) -> Decisions:
    """True with ``probability``, taken exactly (a float is a fraction too); at most ``2^-320`` less, never more.

    ``probability`` is 0 to 1, a float or a :class:`fractions.Fraction`. Returns a numpy array, bool, on the CPU.
    """
    out, keys = _new(shape, np.bool_), chosen(source)
    return _decisions(out, keys, reference.probability_threshold(_probability(probability, "probability")))


def bernoulli_exp(shape: Shape, x: float | Fraction, *, source: Source | None = None) -> Decisions:
    """True with probability ``exp(-x)``, at most ``2^-320`` less (Canonne, Kamath, Steinke 2020 decide it by redrawing).

    ``x`` is 0 or above, finite, a float or a :class:`fractions.Fraction`. Returns a numpy array, bool, on the CPU.
    """
    out, keys = _new(shape, np.bool_), chosen(source)
    exponent = _exact(x, "x")
    if exponent < 0:
        raise ValueError(f"x is {x}, expected 0 or above")
    return _decisions(out, keys, reference.exp_threshold(exponent))


def poisson_mask(size: int, rate: float | Fraction, *, source: Source | None = None) -> Decisions:
    """Which of ``size`` records a Poisson subsample holds: each on its own with probability ``rate``, 0 to 1.

    The probability is that of :func:`bernoulli`, so never above ``rate``. Returns a numpy array, bool, shape ``[size]``.
    """
    out, keys = _new(_checks.whole(size, "size"), np.bool_, "size"), chosen(source)
    return _decisions(out, keys, reference.probability_threshold(_probability(rate, "rate")))


# --- Arguments --------------------------------------------------------------------------------------------------------


def _new(shape: Any, dtype: Any, name: str = "shape") -> npt.NDArray[Any]:
    """An array of this shape, its values not set."""
    if not isinstance(shape, (tuple, numbers.Integral)):
        raise TypeError(f"{name} is {_checks.kind_of(shape)}, expected an integer or a tuple of integers")
    extents = shape if isinstance(shape, tuple) else (shape,)
    checked = tuple(
        _checks.whole(extent, f"{name}[{i}]" if isinstance(shape, tuple) else name) for i, extent in enumerate(extents)
    )
    return _arrays.empty(checked if isinstance(shape, tuple) else checked[0], dtype, name)


def _between(value: object, name: str, least: float, most: float) -> float:
    number = _unrounded(value, _checks.positive(value, name), name)
    if not least <= number <= most:
        raise ValueError(f"{name} is {number}, expected 2^{int(math.log2(least))} to 2^{int(math.log2(most))}")
    return number


def _unrounded(value: Any, number: float, name: str) -> float:
    if value != number:
        raise ValueError(f"{name} is {value}, which is no float64: pass float({name}), or a bound on the safe side")
    return number


def _whole(value: object, name: str) -> int:
    """An integer of any sign."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {_checks.kind_of(value)}, expected an integer")
    return int(value)


def _exact(value: object, name: str) -> Fraction:
    """A finite real number as it is."""
    if isinstance(value, bool) or not isinstance(value, numbers.Rational):
        return Fraction(_unrounded(value, _checks.real(value, name), name))
    return Fraction(int(value.numerator), int(value.denominator))


def _probability(value: object, name: str) -> Fraction:
    probability = _exact(value, name)
    if not 0 <= probability <= 1:
        raise ValueError(f"{name} is {value}, expected 0 to 1")
    return probability


# --- Drawing ----------------------------------------------------------------------------------------------------------


def _backend(out: npt.NDArray[Any]) -> Backend:
    return choose([_arrays.describe(out, "out")], host_only=True)


def _draw(
    out: npt.NDArray[Any],
    keys: Source,
    kernel: str,
    arguments: tuple[Any, ...],
    decide: Callable[[int, list[int], list[int]], int],
) -> None:
    """One call of a kernel under a fresh key; what it leaves open is decide(index, words, refinement words)."""
    flat = out.reshape(-1)
    backend, key = _backend(flat), keys.next_key()
    for index, *words in getattr(backend.integers, kernel)(flat, key, *arguments, backend.generator(keys)):
        flat[index] = decide(index, words, refinement(key, RAW, index))


def _signed(out: Integers, keys: Source, law: reference.Law, kernel: str, arguments: tuple[Any, ...]) -> Integers:
    _draw(out, keys, kernel, arguments, lambda _, words, extra: reference.signed_integer(words[0], extra, law))
    return out


def _of_scale(
    out: Integers, keys: Source, name: str, law_of: Callable[[float], reference.Law], scale: object, argument: str
) -> Integers:
    checked = _between(scale, argument, _SMALLEST_SCALE, _LARGEST_SCALE)
    law = law_of(checked)
    if checked < reference.LISTED_SCALE:
        return _by_table(out, keys, law)
    return _signed(out, keys, law, "signed_by_quantile", _quantile_arguments(name, checked))


def _by_table(out: Integers, keys: Source, law: reference.Law) -> Integers:
    return _signed(out, keys, law, "signed_by_table", tuple(_table(law)))


def _bounded(out: Integers, keys: Source, low: int, bound: int, *, growth: int) -> Integers:
    wide = reference.words_each(bound) == 2

    def decide(index: int, words: list[int], extra: list[int]) -> int:
        return low + reference.bounded_integer(words, extra, bound + growth * index)

    _draw(out, keys, "bounded_integers", (low, bound, growth, wide), decide)
    return out


def _decisions(out: Decisions, keys: Source, threshold: int) -> Decisions:
    if threshold >> reference.DECISION_BITS:  # certain: 2^64 does not fit a kernel's threshold
        keys.next_key()
        out[...] = True
        return out

    def decide(_: int, words: list[int], extra: list[int]) -> int:
        return reference.decision(words[0], extra, threshold)

    first = threshold >> (reference.DECISION_BITS - 64)
    _draw(out.view(np.uint8), keys, "decisions", (first,), decide)
    return out


class _Table(NamedTuple):
    thresholds: npt.NDArray[np.uint64]  # floor(2^63 P(|Z| >= k)) for k = 1, 2, ..., to the first that is 0
    guide: npt.NDArray[np.uint32]  # how many of them are above every u that starts with the bits of the index


@lru_cache(64)
def _table(law: reference.Law) -> _Table:
    falling = _thresholds(law.tail)
    bits = len(falling).bit_length() + 2
    ends = np.arange(1, 2**bits + 1, dtype=np.uint64) << np.uint64(63 - bits)
    rising = np.array(falling[::-1], np.uint64)
    guide = len(falling) - np.searchsorted(rising, ends)
    return _Table(np.array(falling, np.uint64), guide.astype(np.uint32))


def _thresholds(tail: reference.Tail) -> list[int]:
    found, bits = [1], reference.FIRST_BITS
    while found[-1]:
        tail_here, drop = tail(len(found), bits), bits - 63
        lowest, highest = max(tail_here - reference.ERROR, 0) >> drop, (tail_here + reference.ERROR) >> drop
        if lowest != highest:  # with a probability of about 2^-100
            bits *= 2
            continue
        found.append(lowest)
    return found[1:]


def _quantile_arguments(law: str, scale: float) -> tuple[Any, ...]:
    """Arguments of the kernel beside out and key: docs/noise-integers.md section 4."""
    wide = wide_quantiles(law) if scale >= _WIDE_SCALE else np.empty((0, 10), np.int64)
    if law == "gaussian":
        slope = -1 / (24 * scale**2)
        limit = 0.5 - (2.0**-42 * scale + 0.53 / scale**3)
        return quantiles(law), scale / (1 - slope), 0.0, limit, wide, scale, slope
    offset = 1 / (192 * scale**3) - 1 / (8 * scale)
    return quantiles(law), scale, offset, 0.5 - 2.0**-40 * scale, wide, scale, 0.0
