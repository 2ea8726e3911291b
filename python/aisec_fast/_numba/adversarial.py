"""Adversarial steps for Numba. docs/adversarial.md is the contract: it fixes every rounding.

Results are made in a buffer before they are stored: `out` may be `adv`, and LLVM does not vectorise loops that store into
what they read.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aisec_fast._numba._block_sum import BLOCK, PARTIALS, fold, sum_of_block
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
def _gradient_total(gradient: Array, scale: F64, squares: NDArray[F64], partials: NDArray[F64]) -> F64:
    """Sum of squares of scale * gradient in the contract's order; NaN counts as 0."""
    partials[:] = F64(0.0)
    for begin in range(0, gradient.size, BLOCK):
        part = gradient[begin : begin + BLOCK]
        for i in range(part.size):
            value = F64(part[i]) * scale
            squares[i] = F64(0.0) if np.isnan(value) else value * value
        squares[part.size :] = F64(0.0)
        partials[begin // BLOCK % PARTIALS] += sum_of_block(squares)
    return fold(partials)


@inlined
def _change_total(
    adv: Array,
    x: Array,
    gradient: Array,
    quotient: F64,
    scale: F64,
    squares: NDArray[F64],
    partials: NDArray[F64],
) -> F64:
    """Sum of squares of scale * change in the contract's order."""
    partials[:] = F64(0.0)
    for begin in range(0, x.size, BLOCK):
        a, b, c = adv[begin : begin + BLOCK], x[begin : begin + BLOCK], gradient[begin : begin + BLOCK]
        for i in range(b.size):
            value = _change(a[i], b[i], c[i], quotient) * scale
            squares[i] = value * value
        squares[b.size :] = F64(0.0)
        partials[begin // BLOCK % PARTIALS] += sum_of_block(squares)
    return fold(partials)


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
    buffer, squares, partials = np.empty(BLOCK, x.dtype), np.empty(BLOCK, F64), np.empty(PARTIALS, F64)
    columns = x.shape[1]
    for row in range(begin, end):
        total = _gradient_total(gradient[row], F64(1.0), squares, partials)
        scale = _multiplier(total)
        if scale != 1:
            total = _gradient_total(gradient[row], scale, squares, partials)
        norm = F64(math.sqrt(total)) / scale
        quotient = step_size / norm if norm > 0 else F64(0.0)
        quotient = quotient if abs(quotient) <= LARGEST else F64(0.0)

        total = _change_total(adv[row], x[row], gradient[row], quotient, F64(1.0), squares, partials)
        scale = _multiplier(total)
        if scale != 1:
            total = _change_total(adv[row], x[row], gradient[row], quotient, scale, squares, partials)
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


# --- Rows of the L1 and L0 steps --------------------------------------------------------------------------------------

NO_KEY = I64(np.iinfo(I64).min)  # of values that must not be taken
MOST_GROUPS = 4096


@inlined
def _bits(value: F64) -> I64:
    return F64(value).view(I64)


@inlined
def _float(bits: I64) -> F64:
    return I64(bits).view(F64)


@inlined
def _key(value: F64) -> I64:
    """Integers in the order of the numbers; both zeros are one."""
    bits = _bits(F64(value + F64(0.0)))
    return I64(bits ^ I64((bits >> I64(63)) & I64(0x7FFFFFFFFFFFFFFF)))


@inlined
def _number_or_zero(value: F64) -> F64:
    return F64(0.0) if np.isnan(value) else value


@kernel
def _chosen_sum(
    keys: NDArray[I64],
    weights: NDArray[F64],
    least: I64,
    most: I64,
    begin: int,
    width: int,
    largest: NDArray[I64],
    terms: NDArray[F64],
) -> F64:
    """The sum of the block at `begin` over keys from `least` to `most`; groups with none of these are passed over."""
    end, piece, found = min(begin + BLOCK, keys.size), min(width, BLOCK), False
    for first in range(begin, end, piece):
        if largest[first // width] < least:
            continue
        if not found:
            terms[:] = F64(0.0)
            found = True
        some, heavy, target = keys[first : first + piece], weights[first : first + piece], terms[first - begin :]
        for i in range(some.size):
            target[i] = heavy[i] if least <= some[i] <= most else F64(0.0)
    return sum_of_block(terms) if found else F64(0.0)


@kernel
def _sum_above(
    keys: NDArray[I64],
    weights: NDArray[F64],
    threshold: I64,
    budget: F64,
    width: int,
    largest: NDArray[I64],
    terms: NDArray[F64],
) -> F64:
    """The sum over larger keys; not all of it once it is above the budget, since it only grows."""
    total, highest = F64(0.0), I64(np.iinfo(I64).max)
    for begin in range(0, keys.size, BLOCK):
        total += _chosen_sum(keys, weights, threshold + I64(1), highest, begin, width, largest, terms)
        if total > budget:
            break
    return total


@kernel
def _fill(
    keys: NDArray[I64], weights: NDArray[F64], budget: F64, largest: NDArray[I64], terms: NDArray[F64]
) -> tuple[I64, int, F64]:
    """What the budget takes, largest keys first: keys above a threshold; those equal to it below an index, and a rest there."""
    count, width = keys.size, 16
    while (count + width - 1) // width > MOST_GROUPS:
        width *= 2
    highest = NO_KEY
    for first in range(0, count, width):
        some, top = keys[first : first + width], NO_KEY
        for i in range(some.size):
            top = max(top, some[i])
        largest[first // width] = top
        highest = max(highest, top)
    if _sum_above(keys, weights, NO_KEY, budget, width, largest, terms) <= budget:
        return NO_KEY, 0, F64(0.0)
    low, high = NO_KEY, highest
    if high >= 0 and _sum_above(keys, weights, I64(-1), budget, width, largest, terms) > budget:
        low = I64(-1)
    while low + I64(1) < high:
        middle = I64((low >> I64(1)) + (high >> I64(1)) + (low & high & I64(1)))
        if _sum_above(keys, weights, middle, budget, width, largest, terms) <= budget:
            high = middle
        else:
            low = middle
    left = budget - _sum_above(keys, weights, high, budget, width, largest, terms)
    for begin in range(0, count, BLOCK):
        total = _chosen_sum(keys, weights, high, high, begin, width, largest, terms)
        if total <= left:
            left -= total
            continue
        end = min(begin + BLOCK, count)
        for i in range(begin, end):
            wanted = weights[i] if keys[i] == high else F64(0.0)
            if not wanted <= left:
                return high, i, left
            left -= wanted
        return high, end, F64(0.0)
    return high, count, F64(0.0)


@inlined
def _has_direction(gradient: Array, step_size: F64) -> Any:
    """Whether there is a step, and a gradient that is not zero and holds no infinity."""
    largest = F64(0.0)
    for i in range(gradient.size):
        magnitude = abs(F64(gradient[i]))
        largest = magnitude if magnitude > largest else largest  # noqa: FURB136
    return step_size != 0 and F64(0.0) < largest <= LARGEST


@inlined
def _room(x: Any, up: bool, bound: F64, low: Any, high: Any) -> F64:
    """How far x may go up or down, within the box and the radius."""
    most = F64(high) - F64(x) if up else F64(x) - F64(low)
    return most if most < bound else bound  # noqa: FURB136


@inlined
def _shrunk(change: F64, room: F64, threshold: F64) -> F64:
    rest = abs(change) - threshold
    positive = rest if rest > 0 else F64(0.0)
    return positive if positive < room else room  # noqa: FURB136


@kernel
def _shrunk_sums(change: NDArray[F64], rooms: NDArray[F64], threshold: F64, terms: NDArray[F64]) -> tuple[F64, F64]:
    """The sum of what a threshold leaves of the change, and how many of its terms grow as the threshold falls."""
    total, slope = F64(0.0), 0
    for begin in range(0, change.size, BLOCK):
        part, limits = change[begin : begin + BLOCK], rooms[begin : begin + BLOCK]
        for i in range(part.size):
            terms[i] = _shrunk(part[i], limits[i], threshold)
            rest = abs(part[i]) - threshold
            slope += 1 if F64(0.0) < rest < limits[i] else 0
        terms[part.size :] = F64(0.0)
        total += sum_of_block(terms)
    return total, F64(slope)


MULTIPLES = I64(1 << 53)


@inlined
def _grid_value(k: I64, spacing: F64, limit: F64) -> F64:
    if k < MULTIPLES:
        return F64(F64(k) * spacing)
    return _float(I64(_bits(limit) + (k - MULTIPLES)))


@inlined
def _grid_index(value: F64, spacing: F64, limit: F64) -> I64:
    """Of the first grid value that is not below."""
    if not value < limit:
        return I64(MULTIPLES + (_bits(value) - _bits(limit)))
    quotient = value / spacing
    floor = I64(quotient)
    return I64(floor + I64(1 if F64(floor) < quotient else 0))


@kernel
def _threshold(change: NDArray[F64], rooms: NDArray[F64], bound: F64, terms: NDArray[F64]) -> F64:
    """The smallest threshold of the contract's grid whose sum fits into the bound. Probes follow the slope; each third halves."""
    total, slope = _shrunk_sums(change, rooms, F64(0.0), terms)
    if total <= bound:
        return F64(0.0)
    largest = F64(0.0)
    for i in range(change.size):
        largest = max(largest, abs(change[i]))
    spacing = F64(_float(I64(_bits(bound) & I64(0x7FF0000000000000))) * F64(2.0**-46))
    limit = spacing * F64(2.0**53)
    low, high = I64(0), _grid_index(largest, spacing, limit)
    probe, width, probes = low, high, 0
    while high - low > 1:
        root = _grid_value(probe, spacing, limit) + (total - bound) / slope if slope > 0 else F64(-1.0)
        middle = I64(low + ((high - low) >> I64(1)))
        following = _grid_index(root, spacing, limit) if F64(0.0) <= root <= LARGEST else middle
        probes += 1
        if probes % 3 == 0:
            following = middle if high - low > (width >> I64(1)) else following
            width = high - low
        probe = min(max(following, low + I64(1)), high - I64(1))
        total, slope = _shrunk_sums(change, rooms, _grid_value(probe, spacing, limit), terms)
        if total <= bound:
            high = probe
        else:
            low = probe
    return _grid_value(high, spacing, limit)


@inlined
def _offset(adv: Any, x: Any) -> F64:
    offset = F64(adv) - F64(x)
    return offset if abs(offset) <= LARGEST else F64(0.0)


@kernel
def _l1_change(
    adv: Array,
    x: Array,
    gradient: Array,
    step_size: F64,
    bound: F64,
    inner: F64,
    low: Any,
    high: Any,
    keys: NDArray[I64],
    rooms: NDArray[F64],
    largest: NDArray[I64],
    terms: NDArray[F64],
    change: NDArray[F64],
) -> None:
    """How far each value is from x after its share of the way to the vertex of ball and box."""
    if not _has_direction(gradient, step_size):
        for i in range(x.size):
            change[i] = _offset(adv[i], x[i])
        return
    climbs, zero, shift = step_size > 0, x.dtype.type(0), I64(29 if x.itemsize == 4 else 0)
    for i in range(x.size):
        magnitude = abs(F64(gradient[i]))
        keys[i] = I64(_bits(magnitude) >> shift) if magnitude > 0 else NO_KEY
        rooms[i] = _room(x[i], (gradient[i] > zero) == climbs, bound, low, high)
    threshold, stop, last = _fill(keys, rooms, inner, largest, terms)
    distance = F64(0.0)
    for begin in range(0, x.size, BLOCK):
        width = min(BLOCK, x.size - begin)
        for k in range(width):
            i = begin + k
            tied = rooms[i] if i < stop else (last if i == stop else F64(0.0))
            taken = rooms[i] if keys[i] > threshold else (tied if keys[i] == threshold else F64(0.0))
            vertex = taken if (gradient[i] > zero) == climbs else -taken
            change[i] = vertex
            terms[k] = abs(vertex - _offset(adv[i], x[i]))
        terms[width:] = F64(0.0)
        distance += sum_of_block(terms)
    share = abs(step_size) / distance if distance > 0 else F64(1.0)
    if share < 1:
        for i in range(x.size):
            offset = _offset(adv[i], x[i])
            change[i] = offset + share * (change[i] - offset)
    for i in range(x.size):
        change[i] = change[i] if abs(change[i]) <= LARGEST else F64(0.0)


@kernel
def _l1_rows(
    adv: Array,
    x: Array,
    gradient: Array,
    step_size: F64,
    bound: F64,
    inner: F64,
    low: Any,
    high: Any,
    begin: int,
    end: int,
    out: Array,
) -> None:
    """Rows begin, ..., end - 1 of arrays [B, D]; `bound` is the radius less its margin, `inner` a little less again."""
    columns = x.shape[1]
    keys, rooms, change = np.empty(columns, I64), np.empty(columns, F64), np.empty(columns, F64)
    largest, terms = np.empty(MOST_GROUPS, I64), np.empty(BLOCK, F64)
    for row in range(begin, end):
        b = x[row]
        _l1_change(adv[row], b, gradient[row], step_size, bound, inner, low, high, keys, rooms, largest, terms, change)
        for i in range(columns):
            rooms[i] = _room(b[i], change[i] > 0, bound, low, high)
        threshold = _threshold(change, rooms, bound, terms)
        for i in range(columns):
            reach = _shrunk(change[i], rooms[i], threshold)
            out[row, i] = _l2(b[i], _toward_zero(-reach if change[i] < 0 else reach, b[i]), low, high)


@inlined
def _takes(i: int, key: I64, threshold: I64, stop: int) -> Any:
    return key > threshold or (key == threshold and i < stop)


@kernel
def _l0_nearest(
    adv: Array,
    x: Array,
    most: F64,
    low: Any,
    high: Any,
    keys: NDArray[I64],
    ones: NDArray[F64],
    largest: NDArray[I64],
    terms: NDArray[F64],
    point: Array,
) -> None:
    """The values whose return to x would cost most, clamped to the box; the others are x."""
    for i in range(x.size):
        wide = F64(x[i])
        point[i] = _clamp(adv[i], low, high) if abs(F64(adv[i])) <= LARGEST else x[i]
        change, wanted = abs(F64(point[i]) - wide), abs(F64(adv[i]) - wide)
        gain = _number_or_zero(change * (F64(2.0) * wanted - change))
        keys[i] = _key(gain) if point[i] != x[i] else NO_KEY
    threshold, stop, _ = _fill(keys, ones, most, largest, terms)
    for i in range(x.size):
        point[i] = point[i] if _takes(i, keys[i], threshold, stop) else x[i]


@inlined
def _given(slope: F64, value: Any, x: Any) -> F64:
    """What a value's place gives along the gradient."""
    return _number_or_zero(slope * (F64(value) - F64(x)))


@inlined
def _slope(gradient: Any, climbs: bool) -> F64:
    slope = _number_or_zero(F64(gradient))
    return slope if climbs else -slope


@kernel
def _l0_rows(
    adv: Array,
    x: Array,
    gradient: Array,
    step_size: F64,
    most: F64,
    low: Any,
    high: Any,
    begin: int,
    end: int,
    out: Array,
) -> None:
    """Rows begin, ..., end - 1 of arrays [B, D], of which `most` values may differ from x."""
    columns, climbs, swaps = x.shape[1], bool(step_size > 0), F64(np.ceil(abs(step_size)))
    keys, ones, point = np.empty(columns, I64), np.ones(columns, F64), np.empty(columns, x.dtype)
    largest, terms = np.empty(MOST_GROUPS, I64), np.empty(BLOCK, F64)
    for row in range(begin, end):
        b, c = x[row], gradient[row]
        _l0_nearest(adv[row], b, most, low, high, keys, ones, largest, terms, point)
        if _has_direction(c, step_size):
            held, least = 0, F64(np.inf)
            for i in range(columns):
                if point[i] != b[i]:
                    held += 1
                    least = min(least, _given(_slope(c[i], climbs), point[i], b[i]))
            least = least if held > 0 and F64(held) + F64(1.0) > most else F64(0.0)
            for i in range(columns):
                slope = _slope(c[i], climbs)
                reachable = _given(slope, high if slope > 0 else low, b[i]) if slope != 0 else F64(0.0)
                alone = reachable - least if reachable > 0 else F64(0.0)
                benefit = reachable - _given(slope, point[i], b[i]) if point[i] != b[i] else alone
                keys[i] = _key(benefit) if benefit > 0 else NO_KEY
            threshold, stop, _ = _fill(keys, ones, swaps, largest, terms)
            for i in range(columns):
                slope = _slope(c[i], climbs)
                if _takes(i, keys[i], threshold, stop):
                    point[i] = high if slope > 0 else low
                keys[i] = _key(_given(slope, point[i], b[i])) if point[i] != b[i] else NO_KEY
            threshold, stop, _ = _fill(keys, ones, most, largest, terms)
            for i in range(columns):
                point[i] = point[i] if _takes(i, keys[i], threshold, stop) else b[i]
        for i in range(columns):
            out[row, i] = point[i]


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


def _rows_step(
    kernel_: Any, arrays: tuple[Array, ...], numbers: tuple[Any, ...], low: float, high: float, out: Array
) -> None:
    """Run a kernel on the rows of adv, x and gradient over the threads."""
    x = arrays[1]
    shape = (x.shape[0], math.prod(x.shape[1:]))
    operands, result = [array.reshape(shape) for array in arrays], out.reshape(shape)
    lowest, highest = _box(low, high, x.dtype.type)

    def work(begin: int, end: int) -> None:
        kernel_(*operands, *numbers, lowest, highest, begin, end, result)

    parallel_for(shape[0], _threads(x.size), work)


def l2_step(
    adv: Array, x: Array, gradient: Array, step_size: float, eps: float, low: float, high: float, out: Array
) -> None:
    """out = adv moved by step_size along the row's gradient, back into the ball of radius eps around x and the box."""
    bound = F64(radius(eps, math.prod(x.shape[1:])))
    _rows_step(_l2_rows, (adv, x, gradient), (F64(step_size), bound), low, high, out)


def l1_step(
    adv: Array, x: Array, gradient: Array, step_size: float, eps: float, low: float, high: float, out: Array
) -> None:
    """out = adv moved by step_size toward the vertex of ball and box that the gradient points to, then projected onto both."""
    columns = math.prod(x.shape[1:])
    bound = radius(eps, columns)
    numbers = (F64(step_size), F64(bound), F64(radius(bound, columns)))
    _rows_step(_l1_rows, (adv, x, gradient), numbers, low, high, out)


def l0_step(
    adv: Array, x: Array, gradient: Array, step_size: float, eps: float, low: float, high: float, out: Array
) -> None:
    """out = adv with the ceil(|step_size|) values that gain most at their end of the box, and the eps best of all kept."""
    _rows_step(_l0_rows, (adv, x, gradient), (F64(step_size), F64(eps)), low, high, out)
