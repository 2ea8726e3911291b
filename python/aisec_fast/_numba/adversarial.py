"""Adversarial steps for Numba. docs/adversarial.md is the contract: it fixes every rounding.

Results are made in a buffer before they are stored: `out` may be `adv`, and LLVM does not vectorise loops that store into
what they read.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aisec_fast._numba._block_sum import BLOCK, sum_of_block
from aisec_fast._numba._kernel import inlined, kernel
from aisec_fast._numba._parallel import parallel_for, thread_count
from aisec_fast._reference.adversarial import radius

F32: TypeAlias = np.float32
F64: TypeAlias = np.float64
I32: TypeAlias = np.int32
I64: TypeAlias = np.int64
Array: TypeAlias = NDArray[Any]

SIGN_32, SIGN_64 = I32(-(2**31)), I64(-(2**63))
LARGEST = F64(np.finfo(F64).max)
SMALL_TOTAL, SHRINK, ENLARGE = F64(2.0**-900), F64(2.0**-600), F64(2.0**600)
LEAST_FACTOR = F64(2.0**-1000)
ELEMENTS_A_THREAD = 1 << 15  # below this a thread costs more than it saves


# --- Pieces of kernels ------------------------------------------------------------------------------------------------


@inlined
def _inside_32(x: F32, reach: F64, most: F64) -> F32:
    """x + reach rounded to float32, moved one value toward x where it is then farther from x than most = |reach|.

    By bits and without a branch, so that loops vectorise: seen from x, a value on the same side of zero as its direction
    is moved toward zero, another away from zero. A zero that must move has x's sign, so it counts as the other side.
    """
    nearest = F32(F64(x) + reach)
    bits, direction = nearest.view(I32), SIGN_32 if nearest < x else I32(0)
    toward_zero = I32(I32(I32(bits ^ direction) >> I32(31)) | I32(1))  # 1, or -1 for away from zero
    return I32(I32(bits - toward_zero) if abs(F64(nearest) - F64(x)) > most else bits).view(F32)


@inlined
def _inside_64(x: F64, reach: F64, most: F64) -> F64:
    """The same for float64."""
    nearest = F64(x + reach)
    bits, direction = nearest.view(I64), SIGN_64 if nearest < x else I64(0)
    toward_zero = I64(I64(I64(bits ^ direction) >> I64(63)) | I64(1))
    return I64(I64(bits - toward_zero) if abs(nearest - x) > most else bits).view(F64)


@inlined
def _nearest_inside(x: Any, reach: F64, most: F64) -> Any:
    return _inside_32(x, reach, most) if isinstance(x, np.float32) else _inside_64(x, reach, most)


@inlined
def _narrow(value: F64, like: Any) -> Any:
    """Value rounded to the dtype of `like`."""
    return F32(value) if isinstance(like, np.float32) else value


@inlined
def _clamp(value: Any, low: Any, high: Any) -> Any:
    """The order of the comparisons says which zero wins."""
    raised = value if value > low else low  # noqa: FURB136
    return raised if raised < high else high  # noqa: FURB136


@inlined
def _linf(adv: Any, x: Any, gradient: Any, step_size: F64, eps: F64, low: Any, high: Any) -> Any:
    sign = _narrow(F64(1.0), x) if gradient > 0 else (_narrow(F64(-1.0), x) if gradient < 0 else _narrow(F64(0.0), x))
    stepped = _narrow(F64(adv) + step_size * F64(sign), x)
    moved = x if np.isnan(stepped) else stepped
    bound = _nearest_inside(x, F64(math.copysign(eps, F64(moved) - F64(x))), eps)
    lower, upper = bound if bound < x else x, x if bound < x else bound  # noqa: FURB136
    return _clamp(_clamp(moved, lower, upper), low, high)


@inlined
def _change(adv: Any, x: Any, gradient: Any, quotient: F64) -> F64:
    """The row's difference from x after the move; 0 where that is not finite."""
    slope = F64(gradient)
    move = quotient * slope if abs(slope) <= LARGEST else F64(0.0)
    change = (F64(adv) + move) - F64(x)
    return change if abs(change) <= LARGEST else F64(0.0)


@inlined
def _multiplier(total: F64) -> F64:
    """1, or what a row is multiplied by when the sum of its squares has left float64's range."""
    return F64(1.0) if SMALL_TOTAL <= total <= LARGEST else (SHRINK if total > LARGEST else ENLARGE)


@inlined
def _gradient_total(gradient: Array, scale: F64, squares: NDArray[F64]) -> F64:
    """Sum of squares of scale * gradient in the contract's order; NaN counts as 0."""
    total = F64(0.0)
    for begin in range(0, gradient.size, BLOCK):
        part = gradient[begin : begin + BLOCK]
        for i in range(part.size):
            value = F64(part[i]) * scale
            squares[i] = F64(0.0) if np.isnan(value) else value * value
        squares[part.size :] = F64(0.0)
        total += sum_of_block(squares)
    return total


@inlined
def _change_total(adv: Array, x: Array, gradient: Array, quotient: F64, scale: F64, squares: NDArray[F64]) -> F64:
    """Sum of squares of scale * change in the contract's order."""
    total = F64(0.0)
    for begin in range(0, x.size, BLOCK):
        a, b, c = adv[begin : begin + BLOCK], x[begin : begin + BLOCK], gradient[begin : begin + BLOCK]
        for i in range(b.size):
            value = _change(a[i], b[i], c[i], quotient) * scale
            squares[i] = value * value
        squares[b.size :] = F64(0.0)
        total += sum_of_block(squares)
    return total


# --- Kernels ----------------------------------------------------------------------------------------------------------


@kernel
def _linf_values(
    adv: Array,
    x: Array,
    gradient: Array,
    step_size: F64,
    eps: F64,
    low: Any,
    high: Any,
    begin: int,
    end: int,
    out: Array,
) -> None:
    """out[begin : end] of flat arrays."""
    buffer = np.empty(BLOCK, x.dtype)
    for start in range(begin, end, BLOCK):
        stop = min(start + BLOCK, end)
        a, b, c = adv[start:stop], x[start:stop], gradient[start:stop]
        for i in range(b.size):
            buffer[i] = _linf(a[i], b[i], c[i], step_size, eps, low, high)
        out[start:stop] = buffer[: b.size]


@kernel
def _l2_rows(
    adv: Array,
    x: Array,
    gradient: Array,
    step_size: F64,
    bound: F64,
    low: Any,
    high: Any,
    begin: int,
    end: int,
    out: Array,
) -> None:
    """Rows begin, ..., end - 1 of arrays [B, D]; `bound` is the radius of the ball less its margin."""
    buffer, squares = np.empty(BLOCK, x.dtype), np.empty(BLOCK, F64)
    columns = x.shape[1]
    for row in range(begin, end):
        total = _gradient_total(gradient[row], F64(1.0), squares)
        scale = _multiplier(total)
        if scale != 1:
            total = _gradient_total(gradient[row], scale, squares)
        norm = F64(math.sqrt(total)) / scale
        quotient = step_size / norm if norm > 0 else F64(0.0)
        quotient = quotient if abs(quotient) <= LARGEST else F64(0.0)

        total = _change_total(adv[row], x[row], gradient[row], quotient, F64(1.0), squares)
        scale = _multiplier(total)
        if scale != 1:
            total = _change_total(adv[row], x[row], gradient[row], quotient, scale, squares)
        norm = F64(math.sqrt(total)) / scale
        factor = F64(1.0) if norm <= bound else bound / norm
        factor = factor if factor >= LEAST_FACTOR else F64(0.0)

        for start in range(0, columns, BLOCK):
            stop = min(start + BLOCK, columns)
            a, b, c = adv[row, start:stop], x[row, start:stop], gradient[row, start:stop]
            for i in range(b.size):
                reach = factor * _change(a[i], b[i], c[i], quotient)
                buffer[i] = _clamp(_nearest_inside(b[i], reach, abs(reach)), low, high)
            out[row, start:stop] = buffer[: b.size]


# --- The backend's interface ------------------------------------------------------------------------------------------


def _threads(elements: int) -> int:
    return max(1, min(thread_count(), elements // ELEMENTS_A_THREAD))


def linf_step(
    adv: Array, x: Array, gradient: Array, step_size: float, eps: float, low: float, high: float, out: Array
) -> None:
    """out = adv moved by step_size along the sign of the gradient, back into the ball of radius eps around x and the box."""
    narrow = x.dtype.type
    flat_adv, flat_x, flat_gradient, result = (array.reshape(-1) for array in (adv, x, gradient, out))
    size, reach = F64(step_size), F64(min(eps, LARGEST))
    lowest, highest = narrow(low), narrow(high)

    def work(begin: int, end: int) -> None:
        _linf_values(flat_adv, flat_x, flat_gradient, size, reach, lowest, highest, begin, end, result)

    parallel_for(x.size, _threads(x.size), work)


def l2_step(
    adv: Array, x: Array, gradient: Array, step_size: float, eps: float, low: float, high: float, out: Array
) -> None:
    """out = adv moved by step_size along the row's gradient, back into the ball of radius eps around x and the box."""
    narrow, shape = x.dtype.type, (x.shape[0], math.prod(x.shape[1:]))
    adv_rows, x_rows, gradient_rows, result = (array.reshape(shape) for array in (adv, x, gradient, out))
    size, bound = F64(step_size), F64(radius(eps, shape[1]))
    lowest, highest = narrow(low), narrow(high)

    def work(begin: int, end: int) -> None:
        _l2_rows(adv_rows, x_rows, gradient_rows, size, bound, lowest, highest, begin, end, result)

    parallel_for(shape[0], _threads(x.size), work)
