"""The functions of `_core` for optimizers' steps, by the CUDA kernels on the CPU."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

from . import build
from ._call import Array, call, dtype_number, output
from .noise import NoiseCall, noise_call


class Item(ctypes.Structure):
    _fields_ = [
        ("sums", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("state", ctypes.c_void_p * 3),
        ("size", ctypes.c_size_t),
        ("noise", NoiseCall),
    ]


class SgdStep(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("divisor", "lr", "momentum", "dampening", "weight_decay")),
        *((name, ctypes.c_bool) for name in ("nesterov", "maximize", "first")),
    ]


class AdamStep(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("divisor", "beta1", "beta2", "step_size", "root_correction")),
        *((name, ctypes.c_double) for name in ("eps", "weight_decay", "decay")),
        ("maximize", ctypes.c_bool),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    return build.library("update")


def noisy_mean(
    sums: Sequence[Array],
    divisor: float,
    sigma: float,
    granularity: float,
    keys: Sequence[bytes],
    generator: str,
    order: int = 0,
) -> None:
    arguments = _items([sums], sigma, granularity, keys, generator)
    call(library(), "noisy_mean", *arguments, ctypes.c_double(divisor), order=order)


def sgd_step(
    sums: Sequence[Array],
    params: Sequence[Array],
    buffers: Sequence[Array],
    divisor: float,
    sigma: float,
    granularity: float,
    keys: Sequence[bytes],
    generator: str,
    *numbers: Any,
    order: int = 0,
) -> None:
    arguments = _items([sums, params, buffers], sigma, granularity, keys, generator)
    call(library(), "sgd_step", *arguments, ctypes.byref(SgdStep(divisor, *numbers)), order=order)


def adam_step(
    sums: Sequence[Array],
    params: Sequence[Array],
    exp_avgs: Sequence[Array],
    exp_avg_sqs: Sequence[Array],
    max_exp_avg_sqs: Sequence[Array],
    divisor: float,
    sigma: float,
    granularity: float,
    keys: Sequence[bytes],
    generator: str,
    *numbers: Any,
    order: int = 0,
) -> None:
    arguments = _items([sums, params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs], sigma, granularity, keys, generator)
    call(library(), "adam_step", *arguments, ctypes.byref(AdamStep(divisor, *numbers)), order=order)


def _items(
    lists: Sequence[Sequence[Array]], sigma: float, granularity: float, keys: Sequence[bytes], generator: str
) -> list[Any]:
    sums = lists[0]
    assert len(keys) == (len(sums) if sigma else 0)
    items = (Item * len(sums))()
    for a, total in enumerate(sums):
        pointers = []
        for arrays in lists:
            assert len(arrays) in (0, len(sums))
            assert not arrays or arrays[a].size == total.size
            pointers.append(output(arrays[a], sums[0].dtype) if arrays else None)
        pointers += [None] * (5 - len(pointers))
        noise = noise_call(sigma, granularity, keys[a], generator) if sigma else NoiseCall()
        items[a] = Item(
            pointers[0], pointers[1], (ctypes.c_void_p * 3)(*(p and p.value for p in pointers[2:])), total.size, noise
        )
    return [dtype_number(sums[0]), items, ctypes.c_size_t(len(sums))]
