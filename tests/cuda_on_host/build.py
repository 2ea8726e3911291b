"""Compiles the CUDA sources with a C++ compiler and the stand-in for CUDA."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
CPP = HERE.parents[1] / "src" / "cpp"
CUDA = HERE.parents[1] / "src" / "cuda"
COMPILER = os.environ.get("CXX", "g++")

# -fno-gnu-unique: each library has its own blockIdx and stacks, even beside a mutant of itself.
FLAGS = ["-std=c++20", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fno-gnu-unique"]
LIBRARY = ["-O2", "-shared", "-fPIC"]
SANITIZED = ["-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def library(name: str, cuda: Path = CUDA) -> ctypes.CDLL:
    """Return `<name>.cpp` as a loaded library; `cuda` holds the kernels (a mutant's, say)."""
    return ctypes.CDLL(str(_compile([f"{name}.cpp"], LIBRARY, cuda)))


def sanitized_check(family: str, cuda: Path = CUDA) -> Path:
    """Return the program that checks a family under AddressSanitizer and UBSan."""
    return _compile([f"check_{family}.cpp", f"{family}.cpp"], SANITIZED, cuda)


def available() -> bool:
    return shutil.which(COMPILER) is not None


def _compile(sources: Sequence[str], flags: Sequence[str], cuda: Path) -> Path:
    includes = [HERE, HERE / "stand_in", cuda, CPP / "include", CPP]
    name = f"{Path(sources[0]).stem}-{_fingerprint([*FLAGS, *flags, *sources], includes)}"
    target = _cache() / name
    if not target.exists():
        unfinished = target.with_name(f"{name}.{os.getpid()}")  # other processes may compile the same
        command = [COMPILER, *FLAGS, *flags, *(f"-I{folder}" for folder in includes)]
        command += [*(str(HERE / source) for source in sources), "-o", str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        unfinished.replace(target)
    return target


def _fingerprint(words: Sequence[str], folders: Sequence[Path]) -> str:
    """Return a hash of the compiler, its arguments and every source that it might read."""
    version = subprocess.run([COMPILER, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + "\0".join([COMPILER, *words]).encode())
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in {".hpp", ".h", ".cuh", ".cu", ".cpp"}:
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _cache() -> Path:
    """Return a folder that is ours alone: what lies in it gets executed."""
    folder = Path(tempfile.gettempdir()) / f"aisec_fast_cuda_on_host_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        return Path(tempfile.mkdtemp(prefix="aisec_fast_cuda_on_host_"))
    return folder
