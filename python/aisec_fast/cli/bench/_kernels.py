"""What every kernel case has in common: the same public function on each of our backends, on the CPU and on a GPU."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

import aisec_fast
from aisec_fast._backends import HASHING_ONLY
from aisec_fast._errors import BackendError

from . import _floors
from ._measure import Contender, FloorPart

Array = npt.NDArray[Any]


class DifferenceError(AssertionError):
    """A contender's result is not the reference's."""


# Name -> (call, check, private_safe).
Peers: TypeAlias = dict[str, tuple[Callable[[], Any], Callable[[Array], str], bool]]


@dataclass(frozen=True)
class Operation:
    """One public function of ours as a case needs it.

    call: makes, for input values on any device, a function without arguments that runs once and returns its result.
    check: says how a result (as numpy) was compared with the reference; raises :class:`DifferenceError`.
    peers: others that do the same: name -> (call, check, private_safe).
    peers_on_gpu: makes the peers' calls for values on a GPU, of torch.
    private_safe: whether our result may be published as private.
    """

    call: Callable[[Any], Callable[[], Any]]
    check: Callable[[Array], str]
    peers: Peers
    private_safe: bool = True
    peers_on_gpu: Callable[[Any], Peers] = lambda _values: {}


def contenders(
    operation: Operation,
    values: Array,
    *,
    reads: float = 0.0,
    updates: float = 0.0,
    writes: float = 0.0,
    on_devices: bool = True,
    hashing: bool = False,
) -> tuple[list[Contender], list[FloorPart]]:
    """Our backends and the peers, and the floor of each device: the CPU, and a GPU if ``on_devices``."""
    found = []
    for isa in aisec_fast.info()["instruction_sets"]:
        if hashing or isa not in HASHING_ONLY:
            found.append(_ours(operation, "native", values, instruction_set=isa))
    if numba_compiles():
        found.append(_ours(operation, "numba", values))
    floors = _floors.memory(values, reads=reads, updates=updates, writes=writes)
    if on_devices and aisec_fast.info()["cuda"]["devices"] > 0 and (device := on_gpu(values)) is not None:
        there, finish = device
        found.append(_ours(operation, "cuda", there, device="cuda", finish=finish))
        floors += _floors.device_memory(there, finish, reads=reads, updates=updates)
        for name, (call, check, private_safe) in operation.peers_on_gpu(there).items() if has_torch_gpu() else ():
            found.append(Contender(name, call, _checked(call, check), None, "cuda", private_safe, finish))
    for name, (call, check, private_safe) in operation.peers.items():
        found.append(Contender(name, call, _checked(call, check), private_safe=private_safe))
    return found, floors


class Whole(NamedTuple):
    """A whole attack or training step on one device: ours, the peers' by name, and the floor, which all of them contain.

    Each of ours and theirs: (call, check as :class:`Contender` has it, private_safe).
    """

    ours: tuple[Callable[[], object], Callable[[], str], bool]
    peers: dict[str, tuple[Callable[[], object], Callable[[], str], bool]]
    floor: Callable[[], object]


def on_each_device(make: Callable[[str], Whole]) -> tuple[list[Contender], list[FloorPart]]:
    """What ``make`` makes for the CPU, and for a GPU where torch and we reach one."""
    found, floors = [], []
    devices = ["cpu", "cuda"] if aisec_fast.info()["cuda"]["devices"] > 0 and has_torch_gpu() else ["cpu"]
    for device in devices:
        whole, finish = make(device), _finish_of(device)
        ours = "native" if device == "cpu" else "cuda"
        for name, (call, check, private_safe) in ({ours: whole.ours} | whole.peers).items():
            found.append(Contender(name, call, check, None, device, private_safe, finish))
        floors.append(FloorPart([whole.floor], 1.0, device, finish))
    return found, floors


def _finish_of(device: str) -> Callable[[], object]:
    if device == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def _ours(
    operation: Operation,
    backend: str,
    values: Any,
    *,
    instruction_set: str | None = None,
    device: str = "cpu",
    finish: Callable[[], object] = lambda: None,
) -> Contender:
    call, private_safe = operation.call(values), operation.private_safe
    return Contender(backend, call, _checked(call, operation.check), instruction_set, device, private_safe, finish)


def _checked(call: Callable[[], Any], check: Callable[[Array], str]) -> Callable[[], str]:
    return lambda: check(to_numpy(call()))


def to_numpy(value: Any) -> Array:
    """A result on any device as numpy."""
    if hasattr(value, "get"):
        return np.asarray(value.get())
    if hasattr(value, "detach"):
        return np.asarray(value.detach().cpu().numpy())
    return np.asarray(value)


def on_gpu(values: Array) -> tuple[Any, Callable[[], object]] | None:
    """The values on the GPU, by torch or cupy, and how to wait for it; None if neither can."""
    if has_torch_gpu():
        import torch

        return torch.from_numpy(values).cuda(), _finish_of("cuda")
    if has("cupy"):
        import cupy

        return cupy.asarray(values), cupy.cuda.get_current_stream().synchronize
    return None


def has_torch_gpu() -> bool:
    """Whether torch is there and reaches a GPU."""
    if not has("torch"):
        return False
    import torch

    return torch.cuda.is_available()


def like(values: Array, other: Any) -> Any:
    """``values`` in the library and on the device of ``other``."""
    if hasattr(other, "clone"):
        import torch

        return torch.from_numpy(values).to(other.device)
    if isinstance(other, np.ndarray):
        return values
    import cupy

    return cupy.asarray(values)


def numba_compiles() -> bool:
    """Whether Numba is there and its compiler is on; interpreted kernels would take hours."""
    try:
        with aisec_fast.use_backend("numba"):
            import numba
    except (BackendError, ImportError):
        return False
    return not getattr(numba.config, "DISABLE_JIT", 0)


def has(module: str) -> bool:
    """Whether a module can be imported."""
    return sys.modules.get(module) is not None or importlib.util.find_spec(module) is not None


def same_bits(expected: Array) -> Callable[[Array], str]:
    """Equality with the reference to the bit, where the reference covers the first values of the result."""

    def check(result: Array) -> str:
        start = np.ascontiguousarray(result.reshape(-1)[: expected.size])
        if start.tobytes() != np.ascontiguousarray(expected.reshape(-1)).tobytes():
            raise DifferenceError(
                f"differs from the reference, first at {_first_difference(start, expected.reshape(-1))}"
            )
        return "bits"

    return check


def close(expected: Array, tolerance: float) -> Callable[[Array], str]:
    """|result - expected| <= tolerance * largest |expected|."""

    def check(result: Array) -> str:
        scale = float(np.abs(expected).max(initial=0.0)) or 1.0
        error = float(np.abs(result.reshape(expected.shape).astype(np.float64) - expected).max(initial=0.0)) / scale
        if not error <= tolerance:
            raise DifferenceError(
                f"differs from the reference by {error:.2g} of its largest value, allowed {tolerance:g}"
            )
        return f"{tolerance:.1e}"

    return check


def _first_difference(result: Array, expected: Array) -> str:
    if result.size != expected.size:
        return f"its size, {result.size} for {expected.size}"
    places = np.flatnonzero(result != expected)
    return (
        "a zero's sign" if places.size == 0 else f"index {places[0]}: {result[places[0]]!r} for {expected[places[0]]!r}"
    )
