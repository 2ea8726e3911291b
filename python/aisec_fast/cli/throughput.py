"""How fast each kernel runs on each backend, beside the time that its memory traffic alone takes on this machine.

A *case* is one operation on one size of input: float32, or bytes to hash. Its *contenders* are our backends (the native
kernels once for each instruction set), what other libraries offer for it, and the *floors*: loops that do nothing but read the input, or read
and write it. All contenders of a case run in interleaved rounds, so that what else the machine does hits all alike; the
figure is the median, the floor that of the fastest loop.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import aisec_fast
from aisec_fast import clipping, hashing, noise
from aisec_fast._errors import BackendError

Floats = npt.NDArray[np.float32]
Values = npt.NDArray[Any]  # of a case: float32, or uint8 to hash
SCALE = 1.0  # standard deviation, scale of Laplace noise, clipping norm and noise multiplier alike: no effect on time
_PAUSE = 0.002  # seconds before each call: torch's threads go on spinning that long after their work


@dataclass(frozen=True)
class Case:
    """One operation on one size; ``bytes_per_value`` is the least memory traffic.

    float32: 4 to read, 8 to read and write. A value of the hashing family is a byte, which is read.
    """

    family: str
    operation: str
    shape: tuple[int, ...]
    bytes_per_value: int

    @property
    def values(self) -> int:
        """Number of input values."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> str:
        """Of the input."""
        return "uint8" if self.family == "hashing" else "float32"


@dataclass(frozen=True)
class Contender:
    """One way to run a case: ``call`` runs it once, inside ``active()``.

    backend: "native", "numba", "cuda", or a library ("torch", "numpy", "hashlib", "blake3"); "floor" is a loop that only reads, or reads and writes.
    device: "cpu" or "cuda". A contender is compared with the floor of its device.
    private_safe: whether the result may be published as private.
    """

    backend: str
    call: Callable[[], object]
    instruction_set: str | None = None
    device: str = "cpu"
    private_safe: bool = True

    @property
    def label(self) -> str:
        """What stands in a table: "native avx2", "torch *" (the star: not private-safe)."""
        return " ".join(filter(None, (self.backend, self.instruction_set, "" if self.private_safe else "*")))

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Force this contender's backend and instruction set; what was in use comes back at the end."""
        with contextlib.ExitStack() as stack:
            if self.backend in ("native", "numba", "cuda"):
                stack.enter_context(aisec_fast.use_backend(self.backend))
            if self.instruction_set is not None:
                from aisec_fast import _core

                stack.callback(_core.use_instruction_set, _core.instruction_set())
                _core.use_instruction_set(self.instruction_set)
            yield


@dataclass(frozen=True)
class Result:
    """Median and quartiles of one contender in ns a value, and the floor of its device in the same rounds."""

    case: Case
    contender: Contender
    ns: float
    quartiles: tuple[float, float]
    floor_ns: float

    @property
    def gb_per_s(self) -> float:
        """Speed at which the case's least traffic went by."""
        return self.case.bytes_per_value / self.ns

    @property
    def percent_of_floor(self) -> float:
        """100 is as fast as memory allows."""
        return 100 * self.floor_ns / self.ns

    def row(self) -> dict[str, Any]:
        """The result as plain values; times are ns for each input value."""
        return {
            "family": self.case.family,
            "operation": self.case.operation,
            "shape": list(self.case.shape),
            "dtype": self.case.dtype,
            "backend": self.contender.backend,
            "instruction_set": self.contender.instruction_set,
            "threads": aisec_fast.get_num_threads(),
            "private_safe": self.contender.private_safe,
            "ns": self.ns,
            "quartiles": list(self.quartiles),
            "floor_ns": self.floor_ns,
            "gb_per_s": self.gb_per_s,
            "percent_of_floor": self.percent_of_floor,
        }


def cases(*, quick: bool = False) -> list[Case]:
    """The cases of the demo; ``quick`` makes them small."""
    vector = (2**18,) if quick else (2**22,)
    matrix = (64, 10_000) if quick else (256, 100_000)
    message = (2**22,) if quick else (2**26,)
    return [
        Case("noise", "add_gaussian", vector, 8),
        Case("noise", "add_laplace", vector, 8),
        Case("clipping", "per_sample_norms", matrix, 4),
        Case("clipping", "clip_and_sum", matrix, 4),
        Case("clipping", "private_sum", matrix, 4),
        Case("hashing", "blake3", message, 1),
        Case("hashing", "sha256", message, 1),
    ]


def contenders(case: Case) -> list[Contender]:
    """Everything on this machine that can run ``case``, floors first."""
    values = _values(case)
    found = _floors(case, values)
    native = aisec_fast.info()["instruction_sets"]
    found += [Contender("native", _ours(case, values), instruction_set=name) for name in native]
    if _numba_compiles():
        found.append(Contender("numba", _ours(case, values)))
    if aisec_fast.info()["cuda"]["devices"] > 0:
        found += _cuda(case, values)
    return found + _peers(case, values)


def measure(case: Case, rounds: int) -> list[Result]:
    """Time every contender of ``case`` once in each round, after one call that does not count (it may compile)."""
    running = contenders(case)
    seconds: list[list[float]] = [[] for _ in running]
    order = random.Random(0)
    for number in range(-1, rounds):
        # In another order each round, so that no one always follows the same.
        for place in order.sample(range(len(running)), len(running)):
            time.sleep(_PAUSE)
            with running[place].active():
                start = time.perf_counter()
                running[place].call()
                elapsed = time.perf_counter() - start
            if number >= 0:
                seconds[place].append(elapsed)
    ns = [[1e9 * one / case.values for one in times] for times in seconds]
    floors: dict[str, float] = {}
    for contender, times in zip(running, ns, strict=True):
        if contender.backend == "floor":
            floors[contender.device] = min(statistics.median(times), floors.get(contender.device, math.inf))
    return [
        Result(case, contender, statistics.median(times), _quartiles(times), floors[contender.device])
        for contender, times in zip(running, ns, strict=True)
        if contender.backend != "floor"
    ]


def _values(case: Case) -> Values:
    generator = np.random.default_rng(0)
    if case.family == "hashing":
        return np.frombuffer(generator.bytes(case.values), np.uint8)
    return generator.standard_normal(case.shape, dtype=np.float32)


def _quartiles(times: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(np.asarray(times), [0.25, 0.75])
    return float(low), float(high)


def _ours(case: Case, values: Any) -> Callable[[], object]:
    """Our public function on ``values`` (numpy, torch or cupy); noise is added in place, so that only memory moves."""
    if case.family == "noise":
        add = getattr(noise, case.operation)
        data = values.clone() if hasattr(values, "clone") else values.copy()
        return lambda: add(data, SCALE, out=data, check=False)
    if case.family == "hashing":
        return lambda: hashing.hash_array(values, case.operation)
    function = getattr(clipping, case.operation)
    arguments = {"per_sample_norms": (), "clip_and_sum": (SCALE,), "private_sum": (SCALE, SCALE)}[case.operation]
    return lambda: function(values, *arguments)


def _numba_compiles() -> bool:
    """Whether Numba is there and its compiler is on; interpreted kernels would take hours."""
    try:
        with aisec_fast.use_backend("numba"):
            import numba
    except (BackendError, ImportError):
        return False
    return not getattr(numba.config, "DISABLE_JIT", 0)


def _floors(case: Case, values: Values) -> list[Contender]:
    """The fastest loops we know that only read, or read and write in place, on as many threads as our kernels use."""
    threads = aisec_fast.get_num_threads()
    data = values.reshape(-1).view(np.float32).copy()  # of bytes, four at a time
    parts = np.array_split(data.view(np.int32), threads)
    writes = case.bytes_per_value > 4
    piece: Callable[[npt.NDArray[np.int32]], object] = (
        (lambda part: np.negative(part, out=part)) if writes else (lambda part: part.max())
    )
    if threads == 1:
        loops = [Contender("floor", lambda: piece(parts[0]))]
    else:
        pool = ThreadPoolExecutor(threads - 1)  # ends with the last reference to it

        def split() -> None:
            others = [pool.submit(piece, part) for part in parts[1:]]
            piece(parts[0])
            for other in others:
                other.result()

        loops = [Contender("floor", split)]
    if _has("torch"):
        import torch

        tensor = torch.from_numpy(data)
        call: Callable[[], object] = tensor.neg_ if writes else tensor.max
        loops.append(Contender("floor", call))
    return loops


def _peers(case: Case, values: Values) -> list[Contender]:
    """What others offer: numpy and torch no exact noise, no cryptographic generator, no guarantee; the same digests."""
    if case.family == "hashing":
        return _other_hashes(case, values)
    found = []
    if _has("torch"):
        import torch

        call = _torch_call(case, torch.from_numpy(values), torch)
        if call is not None:
            found.append(Contender("torch", call, private_safe=_is_plain(case)))
    return [*found, Contender("numpy", _numpy_call(case, values), private_safe=_is_plain(case))]


def _other_hashes(case: Case, values: Values) -> list[Contender]:
    if case.operation == "sha256":
        return [Contender("hashlib", lambda: hashlib.sha256(values.data).digest())]
    if not _has("blake3"):
        return []
    from blake3 import blake3

    threads = aisec_fast.get_num_threads()
    return [Contender("blake3", lambda: blake3(values.data, max_threads=threads).digest())]


def _is_plain(case: Case) -> bool:
    """Whether the operation makes no claim to privacy: a peer without exact noise loses nothing."""
    return case.operation in ("per_sample_norms", "clip_and_sum")


def _torch_call(case: Case, values: Any, torch: Any) -> Callable[[], object] | None:
    if case.family == "noise":
        data, drawn = values.clone(), torch.empty_like(values)
        return (lambda: data.add_(drawn.normal_(0, SCALE))) if case.operation == "add_gaussian" else None

    def norms() -> Any:
        return torch.linalg.vector_norm(values, dim=1)

    def clipped_sum() -> Any:
        return (SCALE / norms()).clamp(max=1) @ values

    def noisy_sum() -> Any:
        return clipped_sum().add_(torch.empty_like(values[0]).normal_(0, SCALE))

    return {"per_sample_norms": norms, "clip_and_sum": clipped_sum, "private_sum": noisy_sum}[case.operation]


def _numpy_call(case: Case, values: Floats) -> Callable[[], object]:
    generator = np.random.default_rng(0)
    if case.operation == "add_gaussian":
        data, drawn = values.copy(), np.empty_like(values)
        return lambda: np.add(data, generator.standard_normal(out=drawn, dtype=np.float32), out=data)
    if case.operation == "add_laplace":
        data = values.copy()
        return lambda: np.add(data, generator.laplace(0, SCALE, data.size), out=data, casting="same_kind")

    def norms() -> Floats:
        return np.sqrt(np.einsum("ij,ij->i", values, values))

    def clipped_sum() -> Floats:
        return np.minimum(SCALE / norms(), np.float32(1)) @ values

    def noisy_sum() -> Floats:
        return clipped_sum() + generator.standard_normal(values.shape[1], dtype=np.float32)

    return {"per_sample_norms": norms, "clip_and_sum": clipped_sum, "private_sum": noisy_sum}[case.operation]


def _cuda(case: Case, values: Values) -> list[Contender]:
    """Our CUDA kernels and the floor of the device, on arrays that live there; each call waits for its end."""
    if case.operation == "sha256":  # there is none on a GPU
        return []
    on_device: Any
    if _has("cupy"):
        import cupy

        on_device, synchronize = cupy.asarray(values), cupy.cuda.get_current_stream().synchronize
        negate = lambda: cupy.negative(on_device, out=on_device)
    elif _has("torch"):
        import torch

        if not torch.cuda.is_available():
            return []
        on_device, synchronize = torch.from_numpy(values.copy()).cuda(), torch.cuda.synchronize
        negate = on_device.neg_
    else:
        return []

    def finished(call: Callable[[], object]) -> Callable[[], object]:
        return lambda: (call(), synchronize())

    floor = negate if case.bytes_per_value > 4 else on_device.max
    return [
        Contender("floor", finished(floor), device="cuda"),
        Contender("cuda", finished(_ours(case, on_device)), device="cuda"),
    ]


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
