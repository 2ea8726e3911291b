"""Instruction sets, threads, forks, backends and ways to install: what happens around the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aisec_fast
from aisec_fast import BackendError, _core, _sources, noise
from aisec_fast._numba import _parallel
from tests.conftest import bits

ROOT = Path(__file__).parent.parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    settings = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=settings, check=False, capture_output=True, text=True, timeout=120
    )


def in_child(task: Callable[[], bytes]) -> bytes:
    """What ``task`` returns in a forked child; fails if the child hangs or dies."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal_alarm()
        os.write(write, task())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        result = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return result


def signal_alarm() -> None:
    import signal

    signal.alarm(30)  # a hanging child dies


# ------------------------------------------------------------------------------------------------ instruction sets


def test_each_instruction_set_can_be_forced() -> None:
    names = _core.instruction_sets()
    assert names[-1] == "baseline"
    for name in names:
        run = python("import aisec_fast; print(aisec_fast.info()['instruction_set'])", AISEC_FAST_ISA=name)
        assert run.stdout.strip() == name, run.stderr


def test_a_missing_instruction_set_is_an_error() -> None:
    run = python("import aisec_fast._core", AISEC_FAST_ISA="sse9")
    assert run.returncode != 0
    assert "AISEC_FAST_ISA) is 'sse9', expected one that this CPU runs" in run.stderr


def test_a_broken_core_is_reported_not_replaced() -> None:
    code = "import aisec_fast, numpy\nwith aisec_fast.use_backend('native'): pass"
    run = python(code, AISEC_FAST_ISA="sse9")
    assert "backend 'native' is missing" in run.stderr
    assert "sse9" in run.stderr


@pytest.mark.parametrize("call", ["noise.add_gaussian(numpy.zeros(3), 1.0)", "hashing.blake3(b'')"])
def test_a_forced_instruction_set_is_not_replaced_by_numba(call: str) -> None:
    code = f"import aisec_fast, numpy; aisec_fast.{call}"
    run = python(code, AISEC_FAST_ISA="avx1024")
    assert "BackendError: AISEC_FAST_ISA is 'avx1024', but backend 'native' is missing" in run.stderr
    assert "expected one that this CPU runs" in run.stderr
    assert ", baseline" in run.stderr
    assert python(code, AISEC_FAST_ISA="avx1024", AISEC_FAST_BACKEND="numba").returncode == 0  # forced as well


# ------------------------------------------------------------------------------------------------ backends


def test_backend_by_environment() -> None:
    code = "import aisec_fast, numpy, sys; aisec_fast.noise.add_gaussian(numpy.zeros(3), 1.0); print('numba' in sys.modules)"
    assert python(code, AISEC_FAST_BACKEND="numba").stdout.strip() == "True"
    assert python(code, AISEC_FAST_BACKEND="native").stdout.strip() == "False"
    assert "AISEC_FAST_BACKEND) is 'gpu', expected one of" in python(code, AISEC_FAST_BACKEND="gpu").stderr
    assert "backend is 'cuda', but x lives on cpu" in python(code, AISEC_FAST_BACKEND="cuda").stderr


def test_use_backend_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    from aisec_fast._arrays import describe
    from aisec_fast._backends import choose

    array = [describe(np.zeros(1), "x")]
    with aisec_fast.use_backend("numba"):
        assert choose(array).name == "numba"
        with aisec_fast.use_backend("native"):
            assert choose(array).name == "native"
        assert choose(array).name == "numba"
    assert choose(array).name == "native"
    monkeypatch.setenv("AISEC_FAST_BACKEND", "cuda")
    assert noise.random_words(4).shape == (4,)  # drawn on the CPU whatever the backend


def test_cuda_without_a_device() -> None:
    pytest.importorskip("aisec_fast._cuda", reason="this build has no CUDA module (no nvcc)")
    from aisec_fast import _cuda

    if _cuda.device_count() > 0:
        pytest.skip("this machine has a CUDA device")
    assert aisec_fast.info()["cuda"]["devices"] == 0
    assert aisec_fast.info()["backends"]["cuda"] == "built, but there is no device"
    with aisec_fast.use_backend("cuda"), pytest.raises(BackendError, match="backend is 'cuda', but x lives on cpu"):
        noise.add_gaussian(np.zeros(3), 1.0)


def test_info_holds_plain_values() -> None:
    import json

    report = aisec_fast.info()
    assert json.loads(json.dumps(report)) == report
    assert report["version"] == aisec_fast.__version__
    assert report["instruction_set"] in report["instruction_sets"]


# ------------------------------------------------------------------------------------------------ threads


def test_thread_numbers(threads) -> None:
    threads(5)
    assert aisec_fast.get_num_threads() == 5
    code = "import aisec_fast; print(aisec_fast.get_num_threads())"
    assert python(code, AISEC_FAST_NUM_THREADS="3").stdout.strip() == "3"
    assert "AISEC_FAST_NUM_THREADS is 'many'" in python(code, AISEC_FAST_NUM_THREADS="many").stderr


def test_calls_from_many_threads(backend: str, threads) -> None:
    threads(3)
    x = np.zeros(20_000, np.float32)
    expected = noise.add_gaussian(x, 1.0, source=noise.SeededSource(1))
    results: list[bytes] = []

    def call() -> None:
        for _ in range(5):
            with aisec_fast.use_backend(backend):
                results.append(bits(noise.add_gaussian(x, 1.0, source=noise.SeededSource(1))))

    workers = [threading.Thread(target=call) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(results) == {bits(expected)}
    assert len(results) == 20


def test_threads_share_a_source_without_repeating() -> None:
    source, keys = noise.SecureSource(), []
    workers = [threading.Thread(target=lambda: keys.extend(source.next_key() for _ in range(200))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(set(keys)) == 800


# ------------------------------------------------------------------------------------------------ processors

AFFINITY = """
import os, time
import numpy as np
from aisec_fast import noise, set_num_threads

set_num_threads(2)
a, b = sorted(os.sched_getaffinity(0))[:2]
before = set(os.listdir("/proc/self/task"))
x = np.zeros(1 << 17, np.float32)

def call():
    noise.add_gaussian(x, 1.0, source=noise.SeededSource(1))

os.sched_setaffinity(0, {a})
call()
(worker,) = {int(task) for task in set(os.listdir("/proc/self/task")) - before}

def calls():
    for _ in range(3):
        call()
        time.sleep(0.01)  # for a worker that shares the processor

def mask():
    return os.sched_getaffinity(worker)

def outcome():
    os.sched_setaffinity(0, {a})
    os.sched_setaffinity(worker, {a})
    calls()  # it notes that it ran there
    os.sched_setaffinity(worker, {a, b})
    call()
    left = mask() == {b}
    os.sched_setaffinity(0, {b})
    calls()
    followed = mask() == {a}
    os.sched_setaffinity(worker, {b})
    os.sched_setaffinity(0, {a})
    calls()
    kept = mask() == {b}
    os.sched_setaffinity(0, {b})
    calls()
    return left, followed, kept, mask() == {b}

for _ in range(20):  # others may hold up the worker
    seen_all = outcome()
    if all(seen_all):
        break
print(*seen_all)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_workers_leave_the_callers_processor() -> None:
    """A worker that last ran there is sent away, and again if the caller follows; what others forbid it stays forbidden."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "AISEC_FAST_BACKEND": "native"}
    answer = subprocess.run(
        [sys.executable, "-c", AFFINITY], capture_output=True, text=True, env=environment, check=True
    )
    assert answer.stdout.split() == ["True"] * 4


# ------------------------------------------------------------------------------------------------ forks


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_computes(backend: str, threads) -> None:
    threads(4)
    x = np.zeros(100_000, np.float32)

    def noisy() -> bytes:
        return bits(noise.add_gaussian(x, 1.0, source=noise.SeededSource(4)))

    parent = noisy()  # the pool is alive when we fork
    for _ in range(3):
        assert in_child(noisy) == parent
    assert noisy() == parent


def test_a_forked_child_never_repeats_its_parent() -> None:
    source = noise.SecureSource()
    children = {in_child(source.next_key) for _ in range(3)}
    assert len(children | {source.next_key()}) == 4
    seeded = noise.SeededSource(1)
    assert in_child(seeded.next_key) == seeded.next_key()  # documented: for tests only


def test_a_source_locked_during_the_fork_works_in_the_child() -> None:
    source = noise.SecureSource()
    with source._locks.setdefault(os.getpid(), threading.Lock()):
        child = in_child(source.next_key)
    assert len(child) == 32


def test_the_default_source_being_made_during_the_fork_works_in_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sources, "_default", None)
    with _sources._default_lock:
        child = in_child(lambda: _sources.chosen(None).next_key())
    assert len(child) == 32


def test_interrupts_do_not_leave_numba_workers_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two interrupts while waiting: the exception comes when the last task has ended."""
    wait, interrupts, ended = _parallel.wait, [1, 2], []

    def interrupted(futures: Any) -> Any:
        if interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        return wait(futures)

    def task(begin: int, end: int) -> None:
        time.sleep(0.2 if begin else 0.0)
        ended.append(begin)

    monkeypatch.setattr(_parallel, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _parallel.parallel_for(4, 4, task)
    assert sorted(ended) == [0, 1, 2, 3]


def test_a_fork_without_python_handlers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    source = noise.SecureSource()
    state = bytes(source._state)
    monkeypatch.setattr(source, "_process", -1)
    source.next_key()
    expected = noise.SecureSource()
    expected._state[:] = state
    assert expected.next_key() != source.next_key()
    assert source._process == os.getpid()


# ------------------------------------------------------------------------------------------------ installs


@pytest.mark.installs
def test_pure_install_runs_on_numba(tmp_path: Path) -> None:
    """AISEC_FAST_PURE=1 needs no compiler: the wheel holds no binary, and everything runs on Numba."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(tmp_path),
    ]
    environment = {**os.environ, "AISEC_FAST_PURE": "1", "CXX": "/no/compiler", "CC": "/no/compiler"}
    built = subprocess.run([*pip, str(ROOT)], env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert not list(tmp_path.rglob("*.so"))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.meta_path = [f for f in sys.meta_path if 'aisec' not in type(f).__module__ + repr(f)]\n"
        "import aisec_fast, numpy\n"
        f"assert aisec_fast.__file__.startswith({str(tmp_path)!r}), aisec_fast.__file__\n"
        "x = aisec_fast.noise.add_gaussian(numpy.zeros(500), 1.0, source=aisec_fast.noise.SeededSource(8))\n"
        "print(aisec_fast.info()['backends']['native'], float(x.sum()).hex())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    total = noise.add_gaussian(np.zeros(500), 1.0, source=noise.SeededSource(8)).sum()
    assert run.stdout.strip() == f"this installation was built without aisec_fast._core {float(total).hex()}"
