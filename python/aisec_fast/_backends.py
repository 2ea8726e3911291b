"""Which code runs a call: the native kernels, Numba, or CUDA. Chosen by where the arrays live, or forced."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from . import _checks
from ._arrays import Array, as_numpy, require_same_device
from ._errors import BackendError
from ._sources import Source

NAMES = ("native", "numba", "cuda")
HASHING_ONLY = frozenset({"sse41"})  # instruction sets that share all kernels but those of hashing with "baseline"


class Backend(NamedTuple):
    """One backend: a module of kernels for each family, all with the same functions (docs/<family>.md).

    CUDA has no SHA-256: one stream of it is sequential (docs/hashing.md). ``records`` are hashed on the CPU
    (docs/hashing-records.md) and ``files`` are read by it (docs/hashing-files.md). ``integers`` are those of the noise
    family, which are made on the CPU (docs/noise-integers.md); ``update`` is noise and an optimizer's step in one.
    """

    name: str
    noise: ModuleType
    clipping: ModuleType
    adversarial: ModuleType
    hashing: ModuleType
    records: ModuleType
    integers: ModuleType
    update: ModuleType
    ghost: ModuleType
    files: ModuleType

    def operands(self, arrays: Sequence[Array]) -> list[Any]:
        """The arrays as this backend's kernels take them."""
        return [as_numpy(array) if self.name == "numba" else array.value for array in arrays]

    def generator(self, source: Source) -> str:
        """What expands the keys of ``source`` on this backend: "aes" or "chacha" (docs/noise.md section 3)."""
        return "aes" if source.any_generator and self.name == "native" and self.noise.has_aes() else "chacha"


_FAMILIES = Backend._fields[1:]
_forced: ContextVar[str | None] = ContextVar("aisec_fast_backend", default=None)


@cache
def _extension(name: str) -> ModuleType | str:
    """A compiled module, or the reason why there is none."""
    try:
        return importlib.import_module(f"aisec_fast.{name}")
    except ModuleNotFoundError:
        return f"this installation was built without aisec_fast.{name}"
    except ImportError as error:
        return f"aisec_fast.{name} cannot be loaded: {error}"


def _core() -> ModuleType | None:
    core = _extension("_core")
    if isinstance(core, str):
        return None
    core.set_num_threads(_threads)  # a forked or late import starts with our number
    return core


def native_core() -> ModuleType | None:
    """The native kernels where they are built and no other backend is forced."""
    forced = _forced.get() or os.environ.get("AISEC_FAST_BACKEND")
    return _core() if forced in (None, "", "native") else None


@cache
def _load(name: str) -> Backend | str:
    if name == "numba":
        return Backend(name, *(importlib.import_module(f"aisec_fast._numba.{family}") for family in _FAMILIES))
    extension = _core() or _extension("_core") if name == "native" else _extension("_cuda")
    return extension if isinstance(extension, str) else Backend(name, *[extension] * len(_FAMILIES))


def _valid(name: str, origin: str) -> str:
    if name not in NAMES:
        raise BackendError(f"{origin} is {name!r}, expected one of {', '.join(NAMES)}")
    return name


def use_backend(name: str) -> AbstractContextManager[None]:
    """Force a backend inside a ``with`` block (of this thread or async task). Without ``with`` it forces nothing.

    Args:
        name: "native" (C++, CPU), "numba" (CPU) or "cuda".

    Raises:
        BackendError: unknown name, or the backend is not in this installation, when it is called. A call inside the
            block whose arrays live where the backend cannot reach them raises as well; nothing falls back silently.
    """
    loaded = _load(_valid(name, "backend"))
    if isinstance(loaded, str):
        raise BackendError(f"backend {name!r} is missing: {loaded}")
    return _force(name)


@contextmanager
def _force(name: str) -> Iterator[None]:
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(arrays: Sequence[Array], *, host_only: bool = False) -> Backend:
    """The backend for these arrays, which must share one device.

    ``host_only`` marks work that is done on the CPU whatever the backend (drawing a batch), so that forcing "cuda" does
    not stop it.
    """
    require_same_device(arrays)
    return _choose(arrays[0].device, arrays[0].name, host_only=host_only)


def choose_host(name: str) -> Backend:
    """The backend for the bytes of an argument that is no array but lies in host memory, as all buffers of Python do."""
    return _choose("cpu", name, host_only=False)


def _choose(device: str, argument: str, *, host_only: bool) -> Backend:
    on_cpu = device == "cpu"
    forced = _forced.get() or os.environ.get("AISEC_FAST_BACKEND")
    if forced:
        name = _valid(forced, "backend (AISEC_FAST_BACKEND)")
    if not forced or (host_only and name == "cuda"):
        name = _best_on_cpu() if on_cpu else "cuda"
    elif (name == "cuda") == on_cpu:
        raise BackendError(f"backend is {name!r}, but {argument} lives on {device}")
    loaded = _load(name)
    if isinstance(loaded, str):
        raise BackendError(f"{argument} lives on {device}, but backend {name!r} is missing: {loaded}")
    return loaded


def _best_on_cpu() -> str:
    """The native kernels, or Numba where there are none; not in the place of an instruction set that is forced."""
    native = _load("native")
    if not isinstance(native, str):
        return "native"
    if instruction_set := os.environ.get("AISEC_FAST_ISA"):
        raise BackendError(f"AISEC_FAST_ISA is {instruction_set!r}, but backend 'native' is missing: {native}")
    return "numba"


def compiled(name: str) -> Backend | None:
    """The backend of this name ("native", "cuda") where it is built and no other one is forced: ``choose`` says what then."""
    forced = _forced.get() or os.environ.get("AISEC_FAST_BACKEND")
    loaded = _load(name) if forced in (None, "", name) else None
    return loaded if isinstance(loaded, Backend) else None


@contextmanager
def host_work(name: str) -> Iterator[None]:
    """A block of work on the bytes of an argument, done on the CPU whatever the backend: forcing "cuda" does not stop it."""
    with use_backend(_choose("cpu", name, host_only=True).name):
        yield


def register_hashers(*types: type) -> None:
    """Tell the native hashers (in this order) the public and the portable class of blake3 and of sha256.

    They ask themselves which backend is forced: a call of Python would cost more than hashing a short message.
    """
    core = _core()
    if core is not None:
        core.set_hashers(_forced, [np.dtype(code) for code in "?bBhHiIlLqQefdFD"], *types)


def _default_threads() -> int:
    wanted = os.environ.get("AISEC_FAST_NUM_THREADS")
    if wanted:
        if (
            not wanted.isdecimal() or len(wanted) > 18 or int(wanted) < 1
        ):  # more digits fit no kernel, or not even int()
            raise ValueError(f"AISEC_FAST_NUM_THREADS is {wanted[:100]!r}, expected an integer of at least 1")
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_threads = _default_threads()


def get_num_threads() -> int:
    """Number of CPU threads that a call may use. Default: the cores this process may run on."""
    return _threads


def set_num_threads(n: int) -> None:
    """Let calls use at most ``n`` CPU threads, any ``n >= 1`` (more than cores is allowed). Results do not depend on it."""
    global _threads
    number = _checks.whole(n, "n", least=1)
    if number >= 2**63:
        raise ValueError(f"n is {number}, expected at most {2**63 - 1}")
    _threads = number
    _core()


@cache
def share_torch_threads() -> bool:
    """Let native loops run on torch's own threads, for code that alternates with torch; False where that cannot be.

    torch's idle threads wait actively for some milliseconds after each operation; threads of our own would share the cores
    with them (docs/decisions/0006-torchs-threads.md). AISEC_FAST_OWN_THREADS=1 forbids it.
    """
    core = _core()
    if core is None or os.environ.get("AISEC_FAST_OWN_THREADS") == "1" or "torch" not in sys.modules:
        return False
    home = Path(sys.modules["torch"].__file__ or "").parent
    found = [*home.glob("lib/libgomp*.so*"), *home.parent.glob("torch.libs/libgomp*.so*")]
    return any(core.share_openmp(str(path)) for path in found)


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep what is freed at the end of its heap, up to 2 GiB, for code that will ask for as much again.

    By default it gives more than twice the largest block back to the system, and a step of a training pays for the same pages
    again each time. For the whole process, as is malloc. False where there is no glibc, and where the environment has settings
    for malloc (GLIBC_TUNABLES, MALLOC_TRIM_THRESHOLD_ and the like): those stay.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ):
        return False
    trim_threshold, mmap_threshold, largest = -1, -3, 32 << 20  # M_..., and the most that malloc allows
    options = ctypes.CDLL(None)
    # Setting one stops malloc from adapting both: blocks of up to `largest` would come from the heap soon all the same.
    return bool(options.mallopt(mmap_threshold, largest) and options.mallopt(trim_threshold, 2**31 - 1))


def version() -> str:
    """The installed version: pyproject.toml is the one place where it is written."""
    return importlib.metadata.version("aisec_fast")


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def info() -> dict[str, Any]:
    """What this installation can do and what it is using.

    Returns:
        A dict of plain values: ``version``; ``backends`` (name to "available" or the reason why not; "cuda" is
        available where there is a device);
        ``instruction_sets`` (those this CPU runs, best first) and ``instruction_set`` (the one in use; None without
        native kernels); ``generators`` (of a SecureSource's words, for each backend); ``threads``; ``torch_threads_shared`` (whether
        native loops run on torch's threads, as they do once a model was made private); ``cuda`` (devices and their names, runtime and driver version); ``packages`` (installed versions
        of the libraries we work with, None if absent); ``machine``.
    """
    core, cuda = _extension("_core"), _extension("_cuda")
    devices = cuda.device_count() if not isinstance(cuda, str) else 0
    return {
        "version": version(),
        "backends": {
            "native": core if isinstance(core, str) else "available",
            "numba": "available" if _installed("numba") else "numba is not installed",
            "cuda": cuda if isinstance(cuda, str) else "available" if devices else "built, but there is no device",
        },
        "instruction_sets": core.instruction_sets() if not isinstance(core, str) else [],
        "instruction_set": core.instruction_set() if not isinstance(core, str) else None,
        "generators": {
            "native": ("aes" if core.has_aes() else "chacha") if not isinstance(core, str) else None,
            "numba": "chacha",
            "cuda": "chacha",
        },
        "threads": get_num_threads(),
        "torch_threads_shared": bool(core.shares_openmp()) if not isinstance(core, str) else False,
        "cuda": {
            "devices": devices,
            "names": cuda.device_names() if not isinstance(cuda, str) else [],
            "runtime": cuda.runtime_version() if not isinstance(cuda, str) else None,
            "driver": cuda.driver_version() if not isinstance(cuda, str) else None,
        },
        "packages": {p: _installed(p) for p in ("numpy", "numba", "torch", "cupy-cuda13x", "dp-accounting")},
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        },
    }
