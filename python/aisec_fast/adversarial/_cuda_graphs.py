"""CUDA graphs as ``_graphs`` records them: on a stream of their own, into memory of their own, other threads undisturbed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

import torch

from ._graphs import GraphError, Replay, recordable
from ._models import Slope

_lock = threading.Lock()  # torch records one graph at a time in a process
_streams: dict[int, torch.cuda.Stream] = {}  # one a device for good: cuBLAS keeps memory for each stream it has seen
_failed: list[Any] = []  # graphs whose recording CUDA refused: torch's allocators may hold pointers to them
_QUIET_THREADS = {"IPython", "ipykernel", "rich", "tornado", "tqdm", "zmq"}  # whose threads leave the device alone


def unavailable(device: torch.device) -> str:
    """Why nothing can be recorded on the device; empty if it can."""
    if device.type != "cuda":
        return f"x lives on {device}"
    if not hasattr(torch.cuda, "MemPool"):
        return f"torch {torch.__version__} has no torch.cuda.MemPool"
    if os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        return "CUDA_LAUNCH_BLOCKING is 1"
    if torch.is_anomaly_enabled():
        return "torch's anomaly detection is on"
    return ""


def other_threads() -> bool:
    """Whether threads of Python other than this one may use the device.

    While one thread records, random numbers that another one draws there raise an error in torch up to 2.11.
    """
    return any(
        thread is not threading.current_thread() and not _packages(thread) & _QUIET_THREADS
        for thread in threading.enumerate()
    )


def _packages(thread: threading.Thread) -> set[str]:
    target = getattr(thread, "_target", None)
    return {str(module).partition(".")[0] for module in (type(thread).__module__, getattr(target, "__module__", ""))}


class CudaRecorder:
    """Records on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def _stream(self) -> torch.cuda.Stream:
        index = self._device.index
        if index not in _streams:
            _streams[index] = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return _streams[index]

    def warmed(self, work: Callable[[], Slope]) -> Slope:
        """The result of ``work`` on the stream that records: cuBLAS and cuDNN prepare themselves for each stream."""
        with _lock:
            side, current = self._stream(), torch.cuda.current_stream(self._device)
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    result = work()
            finally:
                current.wait_stream(side)
            for tensor in result:
                if tensor is not None:
                    tensor.record_stream(current)  # its memory is the other stream's
            return result

    def record(self, work: Callable[[], Slope]) -> tuple[Replay, Slope]:
        """A replay of ``work``, and its results, in memory that is the graphs' own."""
        with _lock, torch.cuda.device(self._device), torch.cuda.stream(self._stream()):
            if self._pool is None:
                self._pool = torch.cuda.MemPool()
            graph = torch.cuda.CUDAGraph()
            # Not torch.cuda.graph, which would empty torch's cache and stays on the stream when a recording fails.
            graph.capture_begin(pool=self._pool.id, capture_error_mode="thread_local")
            try:
                with recordable():
                    result = work()
            except BaseException:
                self._end(graph, repeat=False)
                raise
            self._end(graph, repeat=True)
            self._graphs.append(graph)
            return graph.replay, result

    def _end(self, graph: torch.cuda.CUDAGraph, *, repeat: bool) -> None:
        """The end of a recording, which raises if CUDA refused something and the recording was to be repeated."""
        try:
            graph.capture_end()
        except RuntimeError:
            self._repair(graph)
            if repeat:
                raise
        else:
            if not repeat:
                graph.reset()

    def _repair(self, failed: torch.cuda.CUDAGraph) -> None:
        """After a failed recording: leave allocator and generators as they are between recordings."""
        count = 1 + len(self._graphs)  # holders of the pool
        index = self._device.index
        if not torch.cuda.is_current_stream_capturing():
            with contextlib.suppress(RuntimeError, AttributeError):
                torch._C._cuda_endAllocateToPool(index, self._pool.id)  # raises unless capture_end left it undone
        with contextlib.suppress(RuntimeError, AttributeError):
            failed.reset()
        with contextlib.suppress(RuntimeError, AttributeError):
            while self._pool.use_count() > count:
                torch._C._cuda_releasePool(index, self._pool.id)
        _failed.append(failed)
        # A generator's state goes on counting as recorded where the recording did not end well; a copy of it does not.
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())

    def close(self) -> None:
        """Give the memory back, once the device is done with it."""
        if self._pool is None:
            return
        torch.cuda.current_stream(self._device).synchronize()
        with _lock, torch.cuda.device(self._device):
            for graph in self._graphs:
                graph.reset()
            self._graphs.clear()
            self._pool = None  # frees its memory, if nobody holds a result any more


def recorder(device: torch.device) -> CudaRecorder:
    """A recorder for the device; GraphError where there is none."""
    if reason := unavailable(device):
        raise GraphError(reason)
    return CudaRecorder(device)
