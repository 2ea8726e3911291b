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
from aisec_fast._reference.adversarial import radius, toward_zero

F32: TypeAlias = np.float32
F64: TypeAlias = np.float64
I32: TypeAlias = np.int32
I64: TypeAlias = np.int64
Array: TypeAlias = NDArray[Any]

LARGEST = F64(np.finfo(F64).max)
SMALL_TOTAL, SHRINK, ENLARGE = F64(2.0**-900), F64(2.0**-600), F64(2.0**600)
LEAST_FACTOR = F64(2.0**-1000)
ELEMENTS_A_THREAD = 1 << 15  # below this a thread costs more than it saves


# --- Pieces of kernels ------------------------------------------------------------------------------------------------


@inlined
def _toward_zero(value: F64, like: Any) -> Any:
    """Value rounded to the dtype of `like` toward zero; infinity stays."""
    if isinstance(like, np.float32):
        nearest = F32(value)
        return I32(nearest.view(I32) - I32(1 if abs(F64(nearest)) > abs(value) else 0)).view(F32)
    return value


@inlined
def _next_down(value: Any) -> Any:
    """The next value below one that is not zero."""
    if isinstance(value, np.float32):
        bits = F32(value).view(I32)
        return I32(bits - I32(I32(bits >> I32(31)) | I32(1))).view(F32)
    wide_bits = F64(value).view(I64)
    return I64(wide_bits - I64(I64(wide_bits >> I64(63)) | I64(1))).view(F64)


@inlined
def _sum_down(a: Any, b: Any) -> Any:
    """a + b rounded down, for finite a and b >= 0, by the exact error of the sum (Knuth); infinite beyond the range."""
    total = a + b
    rest = total - a
    error = (a - (total - rest)) + (b - rest)
    return _next_down(total) if error < 0 else total


@inlined
def _clamp(value: Any, low: Any, high: Any) -> Any:
    """The order of the comparisons says which zero wins."""
    raised = value if value > low else low  # noqa: FURB136
    return raised if raised < high else high  # noqa: FURB136


@inlined
def _linf(adv: Any, x: Any, gradient: Any, step_size: Any, zero: Any, eps: Any, low: Any, high: Any) -> Any:
    """One value, mirrored so that it moves up from x: then the ball ends at x + eps, rounded down."""
    stepped = adv + ((step_size if gradient > 0 else zero) - (step_size if gradient < 0 else zero))
    moved = x if np.isnan(stepped) else stepped
    mirrored = moved < x
    limit, target = _sum_down(-x if mirrored else x, eps), -moved if mirrored else moved
    inside = target if target < limit else limit  # noqa: FURB136
    return _clamp(-inside if mirrored else inside, low, high)


@inlined
def _l2(x: Any, reach: Any, low: Any, high: Any) -> Any:
    """x + reach rounded toward x, in the box."""
    mirrored = np.signbit(reach)
    moved = _sum_down(-x if mirrored else x, abs(reach))
    return _clamp(-moved if mirrored else moved, low, high)


@inlined
def _copy(source: Array, target: Array) -> None:
    """Like target[:] = source[:target.size], which Numba does one value at a time."""
    for i in range(target.size):
        target[i] = source[i]


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
    step_size: Any,
    eps: Any,
    low: Any,
    high: Any,
    begin: int,
    end: int,
    out: Array,
) -> None:
    """out[begin : end] of flat arrays."""
    buffer, zero = np.empty(BLOCK, x.dtype), x.dtype.type(0)
    for start in range(begin, end, BLOCK):
        stop = min(start + BLOCK, end)
        a, b, c = adv[start:stop], x[start:stop], gradient[start:stop]
        for i in range(b.size):
            buffer[i] = _linf(a[i], b[i], c[i], step_size, zero, eps, low, high)
        _copy(buffer, out[start:stop])


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
                reach = _toward_zero(factor * _change(a[i], b[i], c[i], quotient), b[i])
                buffer[i] = _l2(b[i], reach, low, high)
            _copy(buffer, out[row, start:stop])


# --- The backend's interface ------------------------------------------------------------------------------------------


def _threads(elements: int) -> int:
    return max(1, min(thread_count(), elements // ELEMENTS_A_THREAD))


def _box(low: float, high: float, narrow: Any) -> tuple[Any, Any]:
    """The box in the arrays' dtype; without one, the finite values."""
    largest = float(np.finfo(narrow).max)
    return narrow(max(low, -largest)), narrow(min(high, largest))


def linf_step(
    adv: Array, x: Array, gradient: Array, step_size: float, eps: float, low: float, high: float, out: Array
) -> None:
    """out = adv moved by step_size along the sign of the gradient, back into the ball of radius eps around x and the box."""
    narrow = x.dtype.type
    flat_adv, flat_x, flat_gradient, result = (array.reshape(-1) for array in (adv, x, gradient, out))
    lowest, highest = _box(low, high, narrow)
    with np.errstate(over="ignore", under="ignore"):
        size, reach = narrow(step_size), narrow(toward_zero(F64(eps), narrow))

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
    lowest, highest = _box(low, high, narrow)

    def work(begin: int, end: int) -> None:
        _l2_rows(adv_rows, x_rows, gradient_rows, size, bound, lowest, highest, begin, end, result)

    parallel_for(shape[0], _threads(x.size), work)
