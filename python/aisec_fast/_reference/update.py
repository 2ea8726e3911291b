"""The steps of docs/update.md in NumPy: the stated operations in the arrays' dtype, one after the other.

`mean` is the noisy mean gradient of one parameter; the steps return new arrays and write nothing.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aisec_fast._reference import noise

Array: TypeAlias = NDArray[Any]


def noisy_mean(
    total: Array, divisor: float, sigma: float, granularity: float, key: bytes, generator: str = "chacha"
) -> Array:
    """Return granularity * (rint(total / granularity) + Z), of total's dtype, divided by the divisor; sigma 0: no noise."""
    noisy = noise.add_gaussian(total, sigma, granularity, key, generator=generator) if sigma else total
    with np.errstate(all="ignore"):
        quotient: Array = noisy / total.dtype.type(divisor)
    return quotient


def _directed(mean: Array, param: Array, weight_decay: float, *, maximize: bool) -> Array:
    gradient = -mean if maximize else mean
    return gradient + mean.dtype.type(weight_decay) * param if weight_decay else gradient


def sgd(
    mean: Array,
    param: Array,
    buffer: Array | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    *,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> tuple[Array, Array | None]:
    """Return the parameter and its momentum buffer after one step of torch.optim.SGD."""
    number = mean.dtype.type
    with np.errstate(all="ignore"):
        step = _directed(mean, param, weight_decay, maximize=maximize)
        if momentum:
            assert buffer is not None
            buffer = step if first else number(momentum) * buffer + number(1.0 - dampening) * step
            step = step + number(momentum) * buffer if nesterov else buffer
        return param - number(lr) * step, buffer


def adam(
    mean: Array,
    param: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    max_exp_avg_sq: Array | None,
    beta1: float,
    beta2: float,
    step_size: float,
    root_correction: float,
    eps: float,
    weight_decay: float,
    decay: float,
    *,
    maximize: bool,
) -> tuple[Array, Array, Array, Array | None]:
    """Return the parameter and its averages after one step of torch.optim.Adam (or AdamW, by `decay`)."""
    number = mean.dtype.type
    with np.errstate(all="ignore"):
        param = number(decay) * param
        gradient = _directed(mean, param, weight_decay, maximize=maximize)
        weight = number(1.0 - beta1)
        change = gradient - exp_avg
        exp_avg = exp_avg + weight * change if weight < 0.5 else gradient - change * (number(1.0) - weight)
        exp_avg_sq = number(beta2) * exp_avg_sq + (number(1.0 - beta2) * gradient) * gradient
        second = exp_avg_sq
        if max_exp_avg_sq is not None:
            second = max_exp_avg_sq = np.maximum(max_exp_avg_sq, exp_avg_sq)
        denominator = np.sqrt(second) / number(root_correction) + number(eps)
        param = param - (number(step_size) * exp_avg) / denominator
        return param, exp_avg, exp_avg_sq, max_exp_avg_sq
