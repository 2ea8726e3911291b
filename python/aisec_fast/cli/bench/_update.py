"""Cases of the update family: noise, the division by the batch and an optimizer's step on vectors of float32.

The row "separate" is what the fused step replaces: :func:`noise.add_gaussian`, a division and torch's optimizer, one after the
other. "torch" is torch's optimizer alone on ready gradients: without any noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from aisec_fast import _update, noise
from aisec_fast._reference import update as reference

from ._kernels import Array, Operation, Peers, contenders, has, same_bits
from ._measure import Case, Contender, FloorPart

_SIGMA, _DIVISOR, _LR, _SEED = 1.0, 256.0, 1e-3, 7
_CHECKED = 192  # values compared with the big-integer reference, about a millisecond each
_ARRAYS = {"sgd": 2, "sgd_momentum": 3, "adam": 4}  # read and written: sums, parameters, state


def cases(sizes: list[int], threads: list[int]) -> Iterator[Case]:
    """One step of SGD, of SGD with momentum 0.9 and of Adam."""
    for operation, arrays in _ARRAYS.items():
        for size in sizes:
            for count in threads:
                prepare = partial(_prepare, operation, size)
                yield Case("update", operation, (size,), "float32", count, size, 8.0 * arrays, prepare)


def _prepare(name: str, size: int) -> tuple[list[Contender], list[FloorPart]]:
    values = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    check = same_bits(_expected(name, values[:_CHECKED]))

    def peers(on: Any) -> Peers:
        return {peer: (call, lambda _: "not compared", peer == "separate") for peer, call in _peers(name, on).items()}

    operation = Operation(partial(_call, name), check, peers(values), peers_on_gpu=peers)
    return contenders(operation, values, updates=_ARRAYS[name])


def _call(name: str, values: Any) -> Callable[[], Any]:
    """The first step starts from parameters that are the sums, and state of ones; it returns the parameters."""
    sums, params, first, second = (values.clone() if hasattr(values, "clone") else values.copy() for _ in range(4))
    first[:], second[:] = 1.0, 1.0
    added = _update.Noise(_SIGMA, source=noise.SeededSource(_SEED))

    def step() -> Any:
        if name == "adam":
            _update.adam([params], [sums], added, _DIVISOR, lr=_LR, exp_avg=[first], exp_avg_sq=[second], step=2)
        elif name == "sgd_momentum":
            _update.sgd([params], [sums], added, _DIVISOR, lr=_LR, momentum=0.9, buffers=[first])
        else:
            _update.sgd([params], [sums], added, _DIVISOR, lr=_LR)
        return params

    return step


def _expected(name: str, values: Array) -> Array:
    spacing, key = noise.default_granularity(_SIGMA), noise.SeededSource(_SEED).next_key()
    mean, ones = reference.noisy_mean(values, _DIVISOR, _SIGMA, spacing, key), np.ones_like(values)
    if name == "adam":
        numbers = (0.9, 0.999, _LR / (1 - 0.9**2), (1 - 0.999**2) ** 0.5, 1e-8, 0.0, 1.0)
        return reference.adam(mean, values, ones, ones, None, *numbers, maximize=False)[0]
    momentum = 0.9 if name == "sgd_momentum" else 0.0
    return reference.sgd(mean, values, ones, _LR, momentum, 0.0, 0.0, nesterov=False, maximize=False, first=False)[0]


def _peers(name: str, values: Any) -> dict[str, Callable[[], Any]]:
    if not has("torch"):
        return {}
    import torch

    def copy() -> Any:
        return torch.as_tensor(values).clone()

    def ready() -> tuple[Any, Any]:
        param = copy().requires_grad_()
        param.grad = copy()
        if name == "adam":
            return param, torch.optim.Adam([param], lr=_LR)
        return param, torch.optim.SGD([param], lr=_LR, momentum=0.9 if name == "sgd_momentum" else 0.0)

    (param, optimizer), (other, other_optimizer) = ready(), ready()
    source, total = noise.SeededSource(_SEED), copy()

    def alone() -> Any:
        optimizer.step()
        return param

    def separate() -> Any:
        noise.add_gaussian(total, _SIGMA, source=source, out=total, check=False)
        other.grad = total.div_(_DIVISOR)
        other_optimizer.step()
        return other

    return {"torch": alone, "separate": separate}
