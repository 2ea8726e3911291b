"""What rounding costs: how far float sums can move when one record does, and the noise that pays for it.

Derived in docs/privacy.md. A float sum of weighted gradients is made in blocks of ``m`` samples with ``terms`` products
each in one matrix product, in an order that belongs to the library; blocks are then added one by one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from .. import noise
from ._clip import KAPPA

_BLOCK_CHARGE = 0.008  # largest charge for the products of a block, as a part of the clipping norm
_TAIL = 64 * math.log(2.0)  # a Poisson batch is larger than its cap with probability below 2^-64
_EXTRA = 4  # roundings of a term beside those of the sum: weight, scaling, product, block


def gamma(roundings: int, dtype: torch.dtype) -> float:
    """Higham's ``n u / (1 - n u)``: relative error of ``n`` roundings of ``dtype``; infinite where it has no bound."""
    loss = roundings * torch.finfo(dtype).eps / 2
    return loss / (1.0 - loss) if loss < 1.0 else math.inf


def least(dtype: torch.dtype) -> float:
    """The smallest positive number of ``dtype``: what a product that underflows loses at most."""
    info = torch.finfo(dtype)
    return info.tiny * info.eps


class Rounding(NamedTuple):
    """Of a float sum over samples: nothing, or blocks of ``samples`` samples with at most ``terms`` products each."""

    terms: int = 0
    samples: int = 0
    charge: float = 0.0  # that of one block

    def worst(self, other: Rounding) -> Rounding:
        """What holds for either."""
        samples = min(self.samples, other.samples) or max(self.samples, other.samples)
        return Rounding(max(self.terms, other.terms), samples, max(self.charge, other.charge))


@functools.lru_cache(maxsize=256)
def rounding(terms: int, samples: int, dtype: torch.dtype, *, alone: bool = True) -> Rounding:
    """Of blocks of ``samples`` samples with ``terms`` products each, of a parameter that is used once or not."""
    return Rounding(terms, samples, block_charge(samples, terms, dtype, alone=alone))


@functools.cache
def block_size(terms: int, dtype: torch.dtype, *, alone: bool = True) -> int:
    """The largest number of samples, at least 1, whose products may be summed at once within the charge."""
    low, high = 1, 2**24
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if block_charge(middle, terms, dtype, alone=alone) <= _BLOCK_CHARGE else (low, middle - 1)
        )
    return low


def block_charge(samples: int, terms: int, dtype: torch.dtype, *, alone: bool = True) -> float:
    """How far the products of one block can move beyond its exact sum, as a part of the clipping norm.

    A sample of one term has a gradient no smaller than the sum of its terms' norms, so its KAPPA is 1; unless it uses the
    parameter several times (not ``alone``), when its terms may cancel.
    """
    kappa = 1.0 if terms == 1 and alone else KAPPA
    return (2 * samples - 1) * kappa * gamma(samples * terms + _EXTRA, dtype)


def products_charge(parameters: Iterable[Sequence[Rounding]]) -> float:
    """The same for all of a step's products, from the roundings of each parameter's uses.

    Of blocks of one size the charge is the largest. Blocks of several sizes hold other samples: one may have all of its
    gradient where only the large block holds it, another in the small one. So the charges of the sizes are added: as parts
    of one vector where no parameter has both, as numbers where one has.
    """
    groups: dict[tuple[bool, frozenset[int]], dict[int, float]] = {}
    for uses in parameters:
        found = [use for use in uses if use.terms]
        if found:
            single = len(uses) == 1 and found[0].terms == 1  # KAPPA is 1: far below the others
            sizes = groups.setdefault((single, frozenset(use.samples for use in found)), {})
            for use in found:
                sizes[use.samples] = max(sizes.get(use.samples, 0.0), use.charge)
    return math.hypot(*(sum(sizes.values()) for sizes in groups.values()))


@functools.lru_cache(maxsize=256)
def adding_charge(most_samples: int, additions: int, dtype: torch.dtype, *, alone: bool = True) -> float:
    """The same for adding ``additions`` blocks of at most ``most_samples`` samples in all, and for one more rounding.

    What a sample gives is at most the clipping norm long, or KAPPA of it where its uses of the parameter may cancel.
    """
    return 2.0 * most_samples * (1.0 if alone else KAPPA) * gamma(additions + 1, dtype) * (1.0 + 2.0**-7)


def largest_batch(records: int, rate: float) -> int:
    """A size that a Poisson batch exceeds with probability below 2^-64 (Bernstein's inequality)."""
    mean = records * rate
    excess = _TAIL / 3 + math.sqrt((_TAIL / 3) ** 2 + 2 * _TAIL * mean)
    return min(records, math.ceil(mean + excess))


@functools.lru_cache(maxsize=256)
def noise_scale(noise_multiplier: float, max_grad_norm: float, float_charge: float, size: int) -> tuple[float, float]:
    """(sigma, granularity) of the noise on the sum of ``size`` coordinates, all charges paid, sigma rounded up."""
    granularity = noise.default_granularity(noise_multiplier * max_grad_norm)
    bound = math.nextafter(max_grad_norm * math.nextafter(1.0 + float_charge, math.inf), math.inf)
    sensitivity = noise.charged_sensitivity(bound, size, granularity)
    return math.nextafter(noise_multiplier * sensitivity, math.inf), granularity
