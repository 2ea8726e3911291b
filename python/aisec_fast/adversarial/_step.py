"""``pgd_step``: one fused step and projection, for training and attack loops of the user's own."""

from __future__ import annotations

from typing import Any

from .. import _arrays, _checks
from .._arrays import Array
from .._backends import choose
from ._ball import DTYPES, make_ball
from ._box import Clip


def pgd_step(
    x_adv: Any,
    x: Any,
    gradient: Any,
    *,
    eps: float,
    step_size: float,
    norm: str = "linf",
    clip: Clip = (0.0, 1.0),
    out: Any = None,
    check: bool | None = None,
) -> Any:
    """One step of projected gradient ascent, projected onto ball and box in the same pass over memory.

    The step, for each sample (a gradient's NaN counts as 0; but under "linf", a sample whose gradient is zero or holds an
    infinity is not moved, only projected):

    - ``"linf"``: ``x_adv + step_size * sign(gradient)``, where the sign of 0 is 0.
    - ``"l2"``: ``x_adv + step_size * gradient / |gradient|``.
    - ``"l1"``: toward the point of ball and box where the gradient's linear loss is largest, an L1 length of ``step_size``
      (Frank and Wolfe 1956; Chen et al. 2020): on a linear loss that is the optimum, and steps stay there.
    - ``"l0"``: the ``step_size`` values (rounded up) that gain most, by the gradient, go to the end of the box that it points
      to; of all that differ from ``x`` then, the ``eps`` that give most are kept. On a linear loss this ends at the optimum.

    Then the nearest point is taken for which ``|result - x| <= eps``, evaluated in float64, and
    ``low <= result <= high``, both always. docs/adversarial.md defines every bit.

    Args:
        x_adv: array ``[B, ...]`` (numpy, torch, cupy or any DLPack producer), float32 or float64, C-contiguous.
        x: the samples that ``x_adv`` started from; same shape, dtype, library and device.
        gradient: gradient of the loss at ``x_adv``; same again. Each row of the batch is one sample.
        eps: radius of the ball, in the units of ``x``; above 0 and finite. Under "l0" the number of values that may differ
            (a fraction is dropped), at least 1.
        step_size: length of the step; negative to descend (targeted attacks). 0 only projects. Finite.
        norm: "linf", "l2", "l1" or "l0" (also "Linf" and so on). "l0" counts values, each channel by itself, and needs a
            box.
        clip: the box ``(low, high)``, or None for none. Bounds that are no values of the dtype are rounded inward.
        out: array to write to, which may be ``x_adv`` (in place). Default: new.
        check: raise if a value of ``x`` is not finite or outside ``clip``; without that ball and box are not promised.
            Default: only on the CPU, where it needs no synchronisation.

    Returns:
        ``out``, or a new array like ``x_adv``.

    Raises:
        TypeError, ValueError: an argument, with its name. Nothing is written then.
        BackendError: the forced backend is missing or cannot reach the arrays.
    """
    adv = _operand(x_adv, "x_adv", None)
    clean, slope = _operand(x, "x", adv), _operand(gradient, "gradient", adv)
    ball = make_ball(norm, eps, clip, adv.dtype)
    length = _checks.real(step_size, "step_size")
    backend = choose([adv, clean, slope])
    [result] = _arrays.outputs(out, [adv], [adv.shape], [adv.dtype], is_list=False, in_place=True)
    for other in (clean, slope) if out is not None else ():
        _arrays.require_apart(result, other, same_is_fine=False)
    if adv.device == "cpu" if check is None else check:
        ball.require_inside_box(clean)
    if adv.size:
        kernel = getattr(backend.adversarial, f"{ball.norm}_step")
        *operands, target = backend.operands([adv, clean, slope, result])
        kernel(*operands, length, ball.eps, ball.low, ball.high, target)
    return result.value


def _operand(value: Any, name: str, like: Array | None) -> Array:
    array = _arrays.describe(value, name)
    _arrays.require_dtype(array, DTYPES if like is None else [like.dtype])
    if not array.shape:
        raise ValueError(f"{name} has no dimensions, expected [B, ...]")
    if like is not None and array.shape != like.shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {like.shape} as {like.name}")
    _arrays.require_contiguous(array)
    return array
