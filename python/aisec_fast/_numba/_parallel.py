"""Threads for kernels that release the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def quiet(function: Callable[P, R]) -> Callable[P, R]:
    """Silence, during a call, what NumPy reports and the contracts define: overflow, underflow and NaN.

    Without Numba's compiler integers that wrap are reported too. The setting is each thread's own. Each call makes its
    own errstate: NumPy 1 keeps the caller's setting in that object, which threads and nested calls would overwrite.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return function(*args, **kwargs)

    return call


class _Pool(NamedTuple):
    process: int
    workers: int
    executor: ThreadPoolExecutor


# Replaced as a whole, never changed: needs no lock, and so leaves none held in a forked child.
_pool: _Pool | None = None


def _executor(workers: int) -> ThreadPoolExecutor:
    """Return an executor with at least `workers` threads that belong to this process.

    Threads do not survive a fork: a child makes its own. Two threads that get here at once may both make one; the
    loser's is used for that one call and then dropped, which ends its threads.
    """
    global _pool
    if _pool is None or _pool.process != os.getpid() or _pool.workers < workers:
        _pool = _Pool(os.getpid(), workers, ThreadPoolExecutor(workers, thread_name_prefix="aisec_fast"))
    return _pool.executor


def thread_count() -> int:
    """Return the number of threads the user allows."""
    from aisec_fast._backends import get_num_threads

    return get_num_threads()


def _wait_for_all(futures: list[Future[Any]]) -> None:
    """Wait even through interrupts: the tasks write into the caller's arrays. The last interrupt is raised at the end."""
    interrupt: KeyboardInterrupt | None = None
    while True:
        try:
            wait(futures)
            break
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def parallel_for(count: int, threads: int, task: Callable[[int, int], object]) -> None:
    """Call `task(begin, end)` on ranges that cover 0, ..., count - 1, one range a thread, and wait for all of them.

    The calling thread takes the first range. If tasks raise, the exception of the lowest range is raised, after every
    task has ended (they write into the caller's arrays).
    """
    run = quiet(task)
    parts = min(count, threads)
    if parts <= 1:
        if count > 0:
            run(0, count)
        return
    bounds = [count * part // parts for part in range(parts + 1)]
    executor = _executor(parts - 1)
    futures = [executor.submit(run, bounds[part], bounds[part + 1]) for part in range(1, parts)]
    try:
        run(0, bounds[1])
    finally:
        _wait_for_all(futures)
    for future in futures:
        future.result()
