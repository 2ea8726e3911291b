"""The stand-in for CUDA itself: it must catch what it is there to catch. The contract tests run the kernels on it.

A kernel is run under AddressSanitizer and UBSan on buffers of exact size; then one barrier and one bounds check are taken out
of a copy of the sources, and the failure is seen.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.cuda_on_host import build

pytestmark = pytest.mark.skipif(not build.available(), reason="no C++ compiler")


def mutant(folder: Path, file: str, before: str, after: str) -> Path:
    """A copy of the CUDA sources with one thing changed."""
    sources = folder / "cuda"
    shutil.copytree(build.CUDA, sources)
    text = (sources / file).read_text()
    assert text.count(before) == 1, before
    (sources / file).write_text(text.replace(before, after))
    return sources


def run(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program], check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("family", ["noise", "clipping"])
def test_sanitized_bodies(family: str) -> None:
    done = run(build.sanitized_check(family))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "every result as expected" in done.stdout


def test_a_removed_bounds_check_is_caught(tmp_path: Path) -> None:
    """With `i <= count` the last group writes one value beyond the array: AddressSanitizer stops it."""
    sources = mutant(
        tmp_path, "noise_body.hpp", "if (i < count) out[i] = from_lattice", "if (i <= count) out[i] = from_lattice"
    )
    done = run(build.sanitized_check("noise", sources))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


def norms_by(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, order: int) -> bytes:
    from tests.cuda_on_host import clipping

    monkeypatch.setattr(clipping, "library", lambda: library)
    grad = np.random.default_rng(0).standard_normal((2, 300_000)).astype(np.float32)
    norms = np.empty(2)
    clipping.norms([grad], norms, order=order)
    return norms.tobytes()


@pytest.mark.parametrize(
    "barrier", ["__syncthreads();  // the tile is complete", "__syncthreads();  // the tile has been read"]
)
def test_a_removed_barrier_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, barrier: str) -> None:
    """Without a barrier the result depends on the order in which threads take turns; with both it does not."""
    sound = {norms_by(build.library("clipping"), monkeypatch, order) for order in (0, 1, 2)}
    assert len(sound) == 1
    broken = build.library("clipping", mutant(tmp_path, "clipping_body.hpp", barrier, ""))
    assert {norms_by(broken, monkeypatch, order) for order in (0, 1, 2)} != sound


@pytest.mark.parametrize("fault", ["barrier_in_a_branch", "two_barriers", "lone_shuffle", "shuffle_from_outside"])
def test_the_stand_in_reports_faults(fault: str) -> None:
    library = build.library("shim_faults")
    library.fault_none.restype = ctypes.c_char_p
    assert library.fault_none() is None
    entry = library[f"fault_{fault}"]
    entry.restype = ctypes.c_char_p
    assert entry(), fault
