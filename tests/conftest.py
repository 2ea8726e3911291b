"""Every way to run a kernel, as one fixture: each instruction set of this CPU, Numba, and the CUDA bodies on the host."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import settings

import aisec_fast
from aisec_fast import _core
from aisec_fast._backends import HASHING_ONLY

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("fixed")


class Kernels(NamedTuple):
    """The kernel functions of one backend; docs/<family>.md says what each must compute."""

    name: str
    noise: ModuleType
    clipping: ModuleType
    adversarial: ModuleType
    hashing: ModuleType
    update: ModuleType
    ghost: ModuleType


HASHING_NATIVE = [f"native-{isa}" for isa in _core.instruction_sets()]
NATIVE = [name for name in HASHING_NATIVE if name.removeprefix("native-") not in HASHING_ONLY]


def load(name: str) -> Kernels:
    if name.startswith("native"):
        return Kernels(name, *[_core] * (len(Kernels._fields) - 1))
    package = "aisec_fast._numba" if name == "numba" else "tests.cuda_on_host"
    return Kernels(name, *(importlib.import_module(f"{package}.{family}") for family in Kernels._fields[1:]))


def running(name: str) -> Iterator[Kernels]:
    """The kernels of that name, with their instruction set in use meanwhile."""
    best = _core.instruction_set()
    if name.startswith("native"):
        _core.use_instruction_set(name.removeprefix("native-"))
    yield load(name)
    _core.use_instruction_set(best)


@pytest.fixture(params=[*NATIVE, "numba", "cuda_on_host"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """One backend after the other; hashing's tests add the instruction sets that only hashing has."""
    yield from running(request.param)


@pytest.fixture(params=["native", "numba"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The CPU backends as a user forces them."""
    with aisec_fast.use_backend(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[Any]:
    """aisec_fast.set_num_threads, undone at the end."""
    before = aisec_fast.get_num_threads()
    yield aisec_fast.set_num_threads
    aisec_fast.set_num_threads(before)


WITHOUT_JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


def bits(array: Any) -> bytes:
    """An array's bytes: equality of these is equality of bits."""
    return np.ascontiguousarray(array).tobytes()


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a slow reference, which answers each question once for all backends. Its arrays are read-only."""
    answers: dict[bytes, Any] = {}

    @functools.wraps(function)
    def ask(*arguments: Any, **named: Any) -> Any:
        question = hashlib.sha256(pickle.dumps((arguments, named))).digest()  # equal for equal bits alone
        if question not in answers:
            answers[question] = _read_only(function(*arguments, **named))
        return answers[question]

    return ask


def _read_only(answer: Any) -> Any:
    for part in answer if isinstance(answer, (list, tuple)) else [answer]:
        if isinstance(part, np.ndarray):
            part.flags.writeable = False
        elif isinstance(part, (list, tuple)):
            _read_only(part)
    return answer


class Remembering:
    """A module of `_reference` whose functions remember their answers: they are asked the same for every backend."""

    def __init__(self, family: str) -> None:
        self._module = importlib.import_module(f"aisec_fast._reference.{family}")

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        setattr(self, name, remembered(value) if isinstance(value, FunctionType) else value)
        return getattr(self, name)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, torch raises where it would wait for a GPU."""
    import torch

    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
