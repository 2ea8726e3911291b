"""Norms by their names, and ``distances``: how far adversarial samples lie from what they started from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _arrays
from . import _rows

NORMS = ("linf", "l2", "l1", "l0")


def norm_named(norm: object, known: Sequence[str] = NORMS) -> str:
    """The lower-case name of a norm; ValueError if it is none of ``known``."""
    name = "l" + norm[1:] if isinstance(norm, str) and norm[:1] == "L" else norm
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"norm is {norm!r}, expected one of {', '.join(map(repr, known))} (a capital L is fine)")
    return name


def distances(x_adv: Any, x: Any, norm: str = "linf") -> Any:
    """``|x_adv - x|`` for each sample, evaluated in float64.

    Args:
        x_adv: samples ``[B, ...]``, floating point: numpy, torch, cupy or any DLPack producer.
        x: the samples they started from; same shape, library and device.
        norm: "linf" (largest change), "l2" (Euclidean), "l1" (sum of changes) or "l0" (number of values changed).

    Returns:
        float64 ``[B]``, of the library and on the device of ``x``.

    Raises:
        TypeError, ValueError: an argument, with its name.
    """
    name = norm_named(norm)
    adv, clean = _arrays.describe(x_adv, "x_adv"), _arrays.describe(x, "x")
    for array in (adv, clean):
        if "float" not in array.dtype:
            raise TypeError(f"{array.name} has dtype {array.dtype}, expected floating point")
        if not array.shape:
            raise ValueError(f"{array.name} has no dimensions, expected [B, ...]")
    if adv.shape != clean.shape:
        raise ValueError(f"x_adv has shape {adv.shape}, expected {clean.shape} as x")
    if adv.library != clean.library:
        raise TypeError(f"x_adv is a {adv.library} array, expected {clean.library} as x")
    _arrays.require_same_device([clean, adv])
    return lengths(_wide(adv.value) - _wide(clean.value), name)


def lengths(changes: Any, norm: str) -> Any:
    """The norm of each row of float64 ``changes [B, ...]``."""
    size = math.prod(changes.shape[1:])
    magnitudes = abs(changes.reshape(len(changes), size))
    if norm == "l0":
        return _wide(magnitudes != 0).sum(1)
    if norm == "linf" and size:
        return magnitudes.amax(1) if _rows.is_tensor(changes) else magnitudes.max(1)
    return magnitudes.sum(1) if norm != "l2" else (magnitudes * magnitudes).sum(1) ** 0.5


def _wide(values: Any) -> Any:
    return values.detach().double() if _rows.is_tensor(values) else values.astype(np.float64)
