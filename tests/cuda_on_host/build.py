"""Compiles the CUDA sources with a C++ compiler and the stand-in for CUDA."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pybind11

from tests.quantile_tables import include_text

HERE = Path(__file__).parent
CPP = HERE.parents[1] / "src" / "cpp"
CUDA = HERE.parents[1] / "src" / "cuda"
COMPILER = os.environ.get("CXX", "g++")

# -fno-gnu-unique: each library has its own blockIdx and stacks, even beside a mutant of itself.
FLAGS = ["-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fno-gnu-unique"]
LIBRARY = ["-O2", "-shared", "-fPIC"]
EXTENSION = ["-O0", "-shared", "-fPIC", "-fvisibility=hidden", '-DAISEC_FAST_VERSION="on the host"']
SANITIZED = ["-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
ADDRESSES = ["-O0", "-fsanitize=address"]  # compiles in two thirds of the time


def library(name: str, cuda: Path = CUDA) -> ctypes.CDLL:
    """Return `<name>.cpp` as a loaded library; `cuda` holds the kernels (a mutant's, say)."""
    return ctypes.CDLL(str(_compile([f"{name}.cpp"], LIBRARY, cuda)))


def sanitized_check(family: str, cuda: Path = CUDA, flags: Sequence[str] = SANITIZED) -> Path:
    """Return the program that checks a family under AddressSanitizer and UBSan, or the former alone (`ADDRESSES`)."""
    return _compile([f"check_{family}.cpp", f"{family}.cpp"], flags, cuda)


def extension() -> ModuleType:
    """Return the Python module `_cuda` itself, compiled on the stand-in."""
    headers = (pybind11.get_include(), sysconfig.get_path("include"))
    flags = [*EXTENSION, *(f"-isystem{folder}" for folder in headers)]
    loader = ExtensionFileLoader("_cuda", str(_compile(["module.cpp"], flags, CUDA)))
    module = module_from_spec(spec_from_loader("_cuda", loader))
    loader.exec_module(module)
    return module


def available() -> bool:
    return shutil.which(COMPILER) is not None


def _compile(sources: Sequence[str], flags: Sequence[str], cuda: Path) -> Path:
    with ThreadPoolExecutor() as threads:
        objects = list(threads.map(lambda source: _object(source, flags, cuda), sources))
    inputs = [*FLAGS, *flags, *(path.name for path in objects)]
    return _made(Path(sources[0]).stem, [*FLAGS, *flags, *map(str, objects)], _fingerprint(inputs, []))


def _object(source: str, flags: Sequence[str], cuda: Path) -> Path:
    """Return a compiled source. What checks a family sees its functions alone: one object checks all its mutants."""
    kernels = [] if source.startswith("check_") else [cuda]
    includes = [HERE, HERE / "stand_in", *kernels, CPP / "include", CPP, _generated()]
    command = [*FLAGS, *flags, *(f"-I{folder}" for folder in includes), "-c", str(HERE / source)]
    return _made(f"{source}.o", command, _fingerprint([*FLAGS, *flags, source], includes))


def _made(name: str, arguments: Sequence[str], fingerprint: str) -> Path:
    """Return what the compiler makes of these arguments, from the cache if it has it."""
    target = _cache() / f"{fingerprint}-{name}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=_cache()) as folder:  # other processes may compile the same
            _run([COMPILER, *arguments, "-o", f"{folder}/{name}"])
            Path(folder, name).replace(target)
    return target


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def run_check(program: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of `sanitized_check`. Leaks are counted by the stand-in, so ASan need not look for them."""
    environment = {**_environment(), "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([program], capture_output=True, text=True, check=False, env=environment)


def _environment() -> dict[str, str]:
    """Return ours without the sanitizer that `make asan` preloads into Python: not for the compiler, nor for programs."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def _fingerprint(words: Sequence[str], folders: Sequence[Path]) -> str:
    """Return a hash of the compiler, its arguments and every source that it might read."""
    version = subprocess.run([COMPILER, "--version"], capture_output=True, check=True, env=_environment()).stdout
    digest = hashlib.sha256(version + "\0".join([COMPILER, *words]).encode())
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in {".hpp", ".h", ".cuh", ".cu", ".cpp", ".inc"}:
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _generated() -> Path:
    """Return a folder with what CMake writes for the CUDA sources."""
    folder = _cache() / "generated"
    folder.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        file.write(include_text())
    Path(file.name).replace(folder / "quantiles.inc")
    return folder


@functools.cache
def _cache() -> Path:
    """Return a folder that is ours alone: what lies in it gets executed."""
    folder = Path(tempfile.gettempdir()) / f"aisec_fast_cuda_on_host_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        return Path(tempfile.mkdtemp(prefix="aisec_fast_cuda_on_host_"))
    return folder
