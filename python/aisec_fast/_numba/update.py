"""Noise and an optimizer's step for Numba. docs/update.md is the contract: it fixes every operation.

Noise comes from the noise family, an array at a time; then one kernel takes the step, in the arrays' dtype, with numbers
that were rounded to it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aisec_fast._numba import noise
from aisec_fast._numba._kernel import inlined, kernel
from aisec_fast._numba._parallel import parallel_for, thread_count

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = Sequence[Array]

ELEMENTS_A_THREAD = 1 << 15  # below this a thread costs more than it saves


# --- Kernels ----------------------------------------------------------------------------------------------------------


@kernel
def _divide(sums: Array, divisor: Any) -> None:
    for i in range(sums.size):
        sums[i] = sums[i] / divisor


@inlined
def _directed(mean: Any, param: Any, weight_decay: Any, maximize: bool) -> Any:
    """The gradient as the step sees it."""
    gradient = -mean if maximize else mean
    return gradient + weight_decay * param if weight_decay != 0 else gradient


@kernel
def _sgd_plain(sums: Array, params: Array, divisor: Any, lr: Any, weight_decay: Any, maximize: bool) -> None:
    for i in range(sums.size):
        mean = sums[i] / divisor
        sums[i] = mean
        params[i] = params[i] - lr * _directed(mean, params[i], weight_decay, maximize)


@kernel
def _sgd_momentum(
    sums: Array,
    params: Array,
    buffers: Array,
    divisor: Any,
    lr: Any,
    momentum: Any,
    undampened: Any,
    weight_decay: Any,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    for i in range(sums.size):
        mean = sums[i] / divisor
        sums[i] = mean
        step = _directed(mean, params[i], weight_decay, maximize)
        moved = step if first else momentum * buffers[i] + undampened * step
        buffers[i] = moved
        params[i] = params[i] - lr * (step + momentum * moved if nesterov else moved)


@kernel
def _adam(
    sums: Array,
    params: Array,
    averages: Array,
    squares: Array,
    largest: Array,
    amsgrad: bool,
    divisor: Any,
    weight: Any,
    rest: Any,
    beta2: Any,
    weight2: Any,
    step_size: Any,
    root_correction: Any,
    eps: Any,
    weight_decay: Any,
    decay: Any,
    near: bool,
    maximize: bool,
) -> None:
    """Without `amsgrad` the array `largest` is not touched."""
    for i in range(sums.size):
        mean = sums[i] / divisor
        sums[i] = mean
        param = decay * params[i]
        gradient = _directed(mean, param, weight_decay, maximize)
        change = gradient - averages[i]
        average = averages[i] + weight * change if near else gradient - change * rest
        second = beta2 * squares[i] + (weight2 * gradient) * gradient
        averages[i] = average
        squares[i] = second
        if amsgrad:
            most = largest[i]
            second = most if most >= second or np.isnan(most) else second
            largest[i] = second
        params[i] = param - (step_size * average) / (np.sqrt(second) / root_correction + eps)


# --- The backend's interface ------------------------------------------------------------------------------------------


def noisy_mean(
    sums: Arrays, divisor: float, sigma: float, granularity: float, keys: Sequence[bytes], generator: str
) -> None:
    """Each of sums = (g (q + Z)) / divisor, in place; sigma 0: no noise and no keys. generator: "chacha"."""
    _add_noise(sums, sigma, granularity, keys, generator)
    for total in sums:
        _over_values([total], _divide, total.dtype.type(divisor))


def sgd_step(
    sums: Arrays,
    params: Arrays,
    buffers: Arrays,
    divisor: float,
    sigma: float,
    granularity: float,
    keys: Sequence[bytes],
    generator: str,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    """`noisy_mean`, then a step of SGD. buffers: one for each array if momentum is not 0."""
    _add_noise(sums, sigma, granularity, keys, generator)
    for a, total in enumerate(sums):
        number = total.dtype.type
        divide, rate, decay = number(divisor), number(lr), number(weight_decay)
        if momentum == 0:
            _over_values([total, params[a]], _sgd_plain, divide, rate, decay, maximize)
        else:
            numbers = (divide, rate, number(momentum), number(1.0 - dampening), decay, nesterov, maximize, first)
            _over_values([total, params[a], buffers[a]], _sgd_momentum, *numbers)


def adam_step(
    sums: Arrays,
    params: Arrays,
    exp_avgs: Arrays,
    exp_avg_sqs: Arrays,
    max_exp_avg_sqs: Arrays,
    divisor: float,
    sigma: float,
    granularity: float,
    keys: Sequence[bytes],
    generator: str,
    beta1: float,
    beta2: float,
    step_size: float,
    root_correction: float,
    eps: float,
    weight_decay: float,
    decay: float,
    maximize: bool,
) -> None:
    """`noisy_mean`, then a step of Adam. max_exp_avg_sqs: one for each array, or empty without AMSGrad."""
    _add_noise(sums, sigma, granularity, keys, generator)
    amsgrad = len(max_exp_avg_sqs) > 0
    for a, total in enumerate(sums):
        number = total.dtype.type
        weight = number(1.0 - beta1)
        numbers = [number(n) for n in (beta2, 1.0 - beta2, step_size, root_correction, eps, weight_decay, decay)]
        largest = max_exp_avg_sqs[a] if amsgrad else exp_avg_sqs[a]
        _over_values(
            [total, params[a], exp_avgs[a], exp_avg_sqs[a], largest],
            _adam,
            *(amsgrad, number(divisor), weight, number(number(1.0) - weight), *numbers, bool(weight < 0.5), maximize),
        )


def _add_noise(sums: Arrays, sigma: float, granularity: float, keys: Sequence[bytes], generator: str) -> None:
    if len(keys) != (len(sums) if sigma else 0):
        raise ValueError(f"keys has {len(keys)} keys, expected one for each of sums, or none without noise")
    for total, key in zip(sums, keys, strict=False):
        noise.add_gaussian(total, total, sigma, granularity, key, generator)


def _over_values(arrays: Arrays, task: Any, *numbers: Any) -> None:
    """Call task(*arrays, *numbers) on parts of flat arrays of one size, on all threads."""
    flat = [array.reshape(-1) for array in arrays]

    def work(begin: int, end: int) -> None:
        task(*(array[begin:end] for array in flat), *numbers)

    size = flat[0].size
    if size:
        parallel_for(size, max(1, min(thread_count(), size // ELEMENTS_A_THREAD)), work)
