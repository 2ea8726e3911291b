"""The reference's steps beside torch.optim over many steps, within a bound that is carried along.

torch fuses products and sums on some processors and orders a few operations otherwise; each operation of either side has
a relative error of at most u = 2^-24 (2^-53). The bound follows the recurrences of docs/update.md to first order, with the
number of operations of a line, and is doubled for the rest.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from aisec_fast import _update, noise
from aisec_fast._reference import update as reference

torch = pytest.importorskip("torch")

STEPS, SIZE = 25, 40
UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
NO_NOISE = _update.Noise(0.0)
Floats = np.ndarray[Any, Any]


def gradients(dtype: str) -> Floats:
    return np.random.default_rng(7).standard_normal((STEPS, SIZE)).astype(dtype)


def start(dtype: str) -> Floats:
    return np.random.default_rng(8).standard_normal(SIZE).astype(dtype)


def close(ours: Floats, theirs: Any, bound: Floats) -> None:
    error = np.abs(ours.astype(np.float64) - theirs.detach().numpy().astype(np.float64))
    assert (error <= 2.0 * bound).all(), (error / bound).max()


def torch_step(optimizer: Any, param: Any, gradient: Floats) -> None:
    param.grad = torch.from_numpy(gradient.copy())
    optimizer.step()


SGD = [
    {"momentum": m, "dampening": d, "nesterov": n, "weight_decay": w, "maximize": x}
    for m, d, n, w, x in itertools.product([0.0, 0.9], [0.0, 0.3], [False, True], [0.0, 0.05], [False, True])
    if not (n and (m == 0 or d != 0))
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd(options: dict[str, Any], dtype: str) -> None:
    u, lr = UNIT[dtype], 0.07
    param = torch.tensor(start(dtype), requires_grad=True)
    optimizer = torch.optim.SGD([param], lr=lr, foreach=False, **options)
    ours, buffer = start(dtype), np.zeros(SIZE, dtype)
    momentum, kept, decay = options["momentum"], 1.0 - options["dampening"], options["weight_decay"]
    error = buffer_error = np.zeros(SIZE)
    for step, gradient in enumerate(gradients(dtype)):
        torch_step(optimizer, param, gradient)
        before, old = np.abs(ours), np.abs(buffer)
        _update.sgd([ours], [gradient], NO_NOISE, 1.0, lr=lr, first=step == 0, **options,
                    buffers=[buffer] if momentum else None)  # fmt: skip
        size = np.abs(gradient) + decay * before
        step_error = decay * error + 4 * u * size
        if momentum:
            if step == 0:
                buffer_error = step_error
            else:
                buffer_error = momentum * buffer_error + kept * step_error + 6 * u * (momentum * old + kept * size)
            size, step_error = (
                (size + momentum * np.abs(buffer), step_error + momentum * buffer_error + 4 * u * np.abs(buffer))
                if options["nesterov"]
                else (np.abs(buffer), buffer_error)
            )
        error = error + lr * step_error + 6 * u * (before + lr * size)
        close(ours, param, error)
    if momentum:
        close(buffer, optimizer.state[param]["momentum_buffer"], buffer_error)


ADAM = [
    {"betas": b, "amsgrad": a, "weight_decay": w, "maximize": x, "eps": e}
    for b, a, w, x, e in itertools.product(
        [(0.9, 0.99), (0.0, 0.9), (0.4, 0.5)], [False, True], [0.0, 0.05], [False, True], [1e-8, 0.1]
    )
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam(decoupled: bool, dtype: str) -> None:
    for options in ADAM:
        check_adam(decoupled, dtype, **options)


def check_adam(
    decoupled: bool, dtype: str, betas: tuple[float, float], amsgrad: bool, weight_decay: float, **options: Any
) -> None:
    u, lr, (beta1, beta2) = UNIT[dtype], 0.01, betas
    param = torch.tensor(start(dtype), requires_grad=True)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = kind(
        [param], lr=lr, betas=betas, amsgrad=amsgrad, weight_decay=weight_decay, foreach=False, fused=False, **options
    )
    ours, average, square, largest = start(dtype), *np.zeros((3, SIZE), dtype)
    error = average_error = square_error = largest_error = np.zeros(SIZE)
    decay, shrink = (0.0, 1.0 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    for step, gradient in enumerate(gradients(dtype), 1):
        torch_step(optimizer, param, gradient)
        before, old = np.abs(ours), np.abs(average)
        _update.adam([ours], [gradient], NO_NOISE, 1.0, lr=lr, betas=betas, weight_decay=weight_decay, step=step,
                     decoupled=decoupled, exp_avg=[average], exp_avg_sq=[square],
                     max_exp_avg_sq=[largest] if amsgrad else None, **options)  # fmt: skip
        size = np.abs(gradient) + decay * before
        gradient_error = decay * error + 4 * u * size
        average_error = beta1 * average_error + (1 - beta1) * gradient_error + 6 * u * (old + size)
        square_error = beta2 * square_error + (1 - beta2) * 2 * size * gradient_error + 8 * u * (square + size**2)
        second, second_error = square, square_error
        if amsgrad:
            largest_error = np.maximum(largest_error, square_error)
            second, second_error = largest, largest_error
        rate, root = lr / (1 - beta1**step), (1 - beta2**step) ** 0.5
        below = np.sqrt(second.astype(np.float64)) / root + options["eps"]
        below_error = second_error / (2 * np.sqrt(second.astype(np.float64)) * root) + 6 * u * below
        move = rate * np.abs(average) / below
        error = shrink * error + rate * average_error / below + move * below_error / below + 8 * u * (before + move)
        close(ours, param, error)
    state = optimizer.state[param]
    close(average, state["exp_avg"], average_error)
    close(square, state["exp_avg_sq"], square_error)
    if amsgrad:
        close(largest, state["max_exp_avg_sq"], largest_error)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_with_noise_torch_takes_the_same_step_with_the_noisy_mean(name: str) -> None:
    """One step from the same state, so that two operations' rounding is all that can differ."""
    source, size = noise.SeededSource(4), 3000
    param = torch.zeros(size, requires_grad=True)
    ours, sums, first, second = torch.zeros(4, size)
    if name == "sgd":
        _update.sgd([ours], [sums], _update.Noise(2.0, source=source), 64.0, lr=0.5, momentum=0.9, buffers=[first],
                    first=True)  # fmt: skip
        optimizer = torch.optim.SGD([param], lr=0.5, momentum=0.9)
    else:
        _update.adam([ours], [sums], _update.Noise(2.0, source=source), 64.0, lr=0.5, exp_avg=[first],
                     exp_avg_sq=[second], step=1)  # fmt: skip
        optimizer = torch.optim.Adam([param], lr=0.5)
    assert 0.9 < float((sums * 64.0).std()) / 2.0 < 1.1  # 7 standard errors
    torch_step(optimizer, param, sums.numpy())
    close(ours.numpy(), param, 16 * 2.0**-24 * np.abs(ours.numpy().astype(np.float64)))


def test_a_step_written_out() -> None:
    """By hand, in float64, with numbers that round exactly."""
    mean, param, buffer = (np.array([value]) for value in (2.0, 1.0, 4.0))
    step = reference.sgd(mean, param, buffer, 0.5, 0.5, 0.25, 0.5, nesterov=True, maximize=True, first=False)
    # gradient -2 + 0.5 = -1.5; buffer 2 + 0.75 * -1.5 = 0.875; Nesterov -1.5 + 0.4375; 1 - 0.5 * -1.0625
    assert [float(value[0]) for value in step] == [1.53125, 0.875]
    state = (np.array([4.0]), np.array([8.0]), np.array([64.0]))
    result = reference.adam(mean, param, *state, 0.5, 0.5, 2.0, 0.5, 1.0, 0.0, 0.5, maximize=False)
    # average 2 - (-2 * 0.5) = 3; square 4 + 0.5 * 4 = 6; root 8 / 0.5 + 1 = 17; 0.5 - 2 * 3 / 17
    assert [float(value[0]) for value in result] == [0.5 - 6 / 17, 3.0, 6.0, 64.0]
