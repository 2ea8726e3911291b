"""The adversarial functions of `_core`, by the CUDA kernels on the CPU."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

from . import build
from ._call import Array, call, dtype_number, output, pointer


class Step(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("adv", "x", "gradient", "out")),
        ("columns", ctypes.c_size_t),
        *((name, ctypes.c_double) for name in ("step_size", "eps", "low", "high")),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    return build.library("adversarial")


def _step(name: str) -> Callable[..., None]:
    def step(
        adv: Array,
        x: Array,
        gradient: Array,
        step_size: float,
        eps: float,
        low: float,
        high: float,
        out: Array,
        order: int = 0,
    ) -> None:
        call(library(), name, *_arguments(adv, x, gradient, out, step_size, eps, low, high), order=order)

    return step


linf_step, l2_step = _step("linf_step"), _step("l2_step")
l1_step, l0_step = _step("l1_step"), _step("l0_step")


def _arguments(adv: Array, x: Array, gradient: Array, out: Array, *numbers: float) -> list[Any]:
    for array in (adv, gradient, out):
        assert array.dtype == x.dtype
        assert array.shape == x.shape
        assert array.flags.c_contiguous
    assert x.flags.c_contiguous
    pointers = (pointer(adv), pointer(x), pointer(gradient), output(out, x.dtype))
    step = Step(*pointers, math.prod(x.shape[1:]), *numbers)
    return [dtype_number(x), ctypes.c_size_t(len(x)), ctypes.byref(step)]
