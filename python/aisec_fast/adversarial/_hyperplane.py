"""The nearest point on a hyperplane inside the box: what attacks for the smallest change do with a linearised model.

Croce and Hein, Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack (2020), section 2.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _rows
from ._distances import lengths
from ._torch_model import TorchModel


def onto_hyperplane(x: Tensor, normal: Tensor, value: Tensor, low: float, high: float, norm: str) -> Tensor:
    """The smallest change d for which ``value + <normal, d> = 0`` and ``low <= x + d <= high``, for each row.

    Where no change inside the box reaches the hyperplane, the one that comes closest.

    Args:
        x: points ``[B, D]`` inside the box.
        normal: normals ``[B, D]``; the value does not change along entries that are 0.
        value: what the linear function is at ``x``, float64 ``[B]``.
        low: of the box, possibly infinite.
        high: of the box, possibly infinite.
        norm: in which the change is smallest: "linf", "l2" or "l1".

    Returns:
        d, ``[B, D]``. Sums are in float64; ``x + d`` can leave the box by a rounding error.
    """
    toward = torch.where((value > 0)[:, None], -normal, normal)  # the way in which each entry brings the value to 0
    room = torch.where(toward > 0, high - x, x - low)
    room.masked_fill_(toward == 0, 0)
    fill = _fill_steepest if norm == "l1" else _fill_evenly
    return fill(normal.abs(), room, value.abs(), norm).copysign_(toward)


def _fill_evenly(weights: Tensor, room: Tensor, need: Tensor, norm: str) -> Tensor:
    """min(room, t * q), q = 1 (linf) or the weights (l2), with t such that ``sum(weights * that)`` is what is needed.

    Newton's method from t = 0. The sum is concave in t, so no step goes too far: full entries stay full, and there is an
    end when no further entry fills up. It needs as many passes as groups of entries fill up, a handful.
    """
    shares = weights if norm == "l2" else torch.ones((), dtype=weights.dtype, device=weights.device)
    gains = weights * shares  # of the sum, for a unit of t
    amounts = torch.where(room > 0, weights * room, 0)
    full = room <= 0
    t = torch.zeros_like(need)
    while True:
        still_needed = need - torch.where(full, amounts, 0).sum(1, dtype=torch.float64)
        slope = torch.where(full, 0, gains).sum(1, dtype=torch.float64)
        t = torch.where(slope > 0, still_needed.clamp_min(0) / slope, torch.inf)
        now_full = full | (t.to(room.dtype)[:, None] * shares >= room)
        if torch.equal(now_full, full):
            return torch.where(full, room, t.to(room.dtype)[:, None] * shares)
        full = now_full


def _fill_steepest(weights: Tensor, room: Tensor, need: Tensor, _norm: str) -> Tensor:
    """Entries by falling weight, each to its room, until ``sum(weights * that)`` is what is needed."""
    ordered, order = weights.sort(dim=1, descending=True, stable=True)
    rooms = room.gather(1, order)
    amounts = torch.where(rooms > 0, ordered * rooms, 0).cumsum(1, dtype=torch.float64)
    left = need[:, None] - torch.cat([torch.zeros_like(amounts[:, :1]), amounts[:, :-1]], 1)
    filled = torch.where(ordered > 0, left.clamp_min(0) / ordered, 0).to(room.dtype)
    return torch.zeros_like(room).scatter_(1, order, filled.minimum(rooms))


def nearest_boundary(
    model: TorchModel,
    adv: Tensor,
    y: Tensor,
    norm: str,
    *,
    box: tuple[float, float] = (-math.inf, math.inf),
    classes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The boundary between ``y`` and the class that is nearest by the linearised model, of all classes or of these.

    Args:
        model: under attack.
        adv: where, ``[B, ...]``.
        y: labels ``[B]``.
        norm: in which "nearest" is meant.
        box: low and high, which the way to the boundary stays in.
        classes: other classes than y, ``[B, m]``. Default: all.

    Returns:
        Gradient ``[B, D]`` of ``z_class - z_y``, its value, float64 ``[B]``, and the largest magnitude in the gradients of
        all these differences, ``[B]``, for the watch.
    """

    def differences(logits: Tensor) -> Tensor:
        others = classes
        if others is None:
            others = torch.arange(logits.shape[1] - 1, device=y.device)[None]
            others = others + (others >= y[:, None])
        return logits.gather(1, others) - logits.gather(1, y[:, None])

    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    best: tuple[Tensor, Tensor, Tensor] | None = None
    largest = torch.zeros((), device=adv.device)
    for gradient, values in model.gradients(adv, differences):
        normal, value = gradient.reshape(len(adv), -1), values.double()
        distance = value.abs() / lengths(normal.double(), dual).clamp_min(1e-300)
        if math.isfinite(box[0]) or math.isfinite(box[1]):
            change = onto_hyperplane(adv.reshape(normal.shape), normal, value, *box, norm)
            missed = value + (normal * change).sum(1, dtype=torch.float64)
            distance = torch.where(missed.abs() <= 1e-3 * value.abs(), lengths(change.double(), norm), torch.inf)
        largest = _rows.largest_magnitudes(normal).maximum(largest)
        if best is None:
            best = normal, value, distance
        else:
            nearer = distance < best[2]
            best = (
                torch.where(nearer[:, None], normal, best[0]),
                torch.where(nearer, value, best[1]),
                torch.where(nearer, distance, best[2]),
            )
    assert best is not None  # there are two classes or more
    return best[0], best[1], largest
