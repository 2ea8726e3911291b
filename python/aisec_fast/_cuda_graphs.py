"""Work on a GPU recorded once as a CUDA graph and replayed: on a stream of its own, into memory of its own, other threads
undisturbed. What is replayed is what the device was made to do, at the same addresses."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Replay = Callable[[], object]
Result = TypeVar("Result", bound=Iterable["Tensor | None"])  # tensors that recorded work writes


class GraphError(RuntimeError):
    """Why something cannot be recorded."""


class Recorder(Protocol):
    """Records what a device is made to do."""

    def warmed(self, work: Callable[[], Result]) -> Result:
        """The result of ``work``, computed where it will be recorded."""

    def record(self, work: Callable[[], Result]) -> tuple[Replay, Result]:
        """A function that repeats ``work``, and the tensors that it writes; GraphError, or what ``work`` raises."""

    def close(self) -> None:
        """Give all memory back; nothing is replayed after this."""


_lock = threading.Lock()  # torch records one graph at a time in a process
_to_close: list[CudaRecorder] = []  # Python may find one to be garbage in the middle of another's recording
_streams: dict[int, torch.cuda.Stream] = {}  # one a device for good: cuBLAS keeps memory for each stream it has seen
_failed: list[Any] = []  # graphs whose recording CUDA refused: torch's allocators may hold pointers to them
# Whose threads leave the device alone, or (those of torch's loaders) draw no numbers on it.
_QUIET_THREADS = {"IPython", "ipykernel", "multiprocessing.queues", "rich", "torch.utils", "tornado", "tqdm", "zmq"}


def unavailable(device: torch.device) -> str:
    """Why nothing can be recorded on the device; empty if it can."""
    if device.type != "cuda":
        return f"the work is on {device}"
    if not hasattr(torch.cuda, "MemPool"):
        return f"torch {torch.__version__} has no torch.cuda.MemPool"
    if os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        return "CUDA_LAUNCH_BLOCKING is 1"
    if torch.is_anomaly_enabled():
        return "torch's anomaly detection is on"
    return ""


def workspaces_may_go() -> bool:
    """Whether somebody may free the memory of cuBLAS's that recorded products go on using: it is one of each stream's for
    all. torch does when it makes graphs itself, for torch.compile(mode="reduce-overhead"), with a module that it imports
    no earlier."""
    return "torch._inductor.cudagraph_trees" in sys.modules


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
    modules = [str(module) for module in (type(thread).__module__, getattr(target, "__module__", ""))]
    return {".".join(module.split(".")[:parts]) for module in modules for parts in (1, 2)}


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

    def warmed(self, work: Callable[[], Result]) -> Result:
        """The result of ``work`` on the stream that records: cuBLAS and cuDNN prepare themselves for each stream."""
        with _recording():
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

    def record(self, work: Callable[[], Result]) -> tuple[Replay, Result]:
        """A replay of ``work``, and its results, in memory that is the graphs' own."""
        with _recording(), torch.cuda.device(self._device), torch.cuda.stream(self._stream()):
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
        """Give the memory back, once the device is done with it: now, or when the recording that goes on is through."""
        if self._pool is not None:
            _to_close.append(self)
            _close_all()

    def _give_back(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()
        with torch.cuda.device(self._device):
            for graph in self._graphs:
                graph.reset()
            self._graphs.clear()
            self._pool = None  # frees its memory, if nobody holds a result any more


@contextmanager
def _recording() -> Iterator[None]:
    """A block that is the only one of its kind in the process."""
    try:
        with _lock:
            yield
    finally:
        with contextlib.suppress(RuntimeError):  # nothing that this block has done
            _close_all()


def _close_all() -> None:
    """Close recorders that wait for it, unless something is recorded: that would wait for the device, and for itself."""
    while _to_close and not torch.cuda.is_current_stream_capturing() and _lock.acquire(blocking=False):
        try:
            with contextlib.suppress(IndexError):  # another thread was faster
                _to_close.pop()._give_back()
        finally:
            _lock.release()


def recorder(device: torch.device) -> CudaRecorder:
    """A recorder for the device; GraphError where there is none."""
    if reason := unavailable(device):
        raise GraphError(reason)
    return CudaRecorder(device)


@contextmanager
def recordable() -> Iterator[None]:
    """A block in which GraphError is raised before an operation that waits for the device, or draws random numbers.

    CUDA would refuse the first kind too, but a recording that it has refused leaves torch's allocator and generators
    behind in the middle of a recording.
    """
    with _Making(), _Running():  # type: ignore[no-untyped-call]
        yield


class _Making(TorchFunctionMode):
    """Looks at tensors that are made of Python's numbers: these are brought to the device unseen by what is below."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.new_tensor or (func in _MAKERS and kwargs.get("device") is not None):
            raise GraphError(f"it waits for the device ({func.__name__})")
        return func(*args, **kwargs)


_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray)


class _Running(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at operations as they reach the device."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch imports its compiler, which takes seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _draws_numbers(func, args, kwargs):
            raise GraphError(f"it draws random numbers ({func})")
        if torch.Tag.data_dependent_output in func.tags or _waits(func, args, kwargs):
            raise GraphError(f"it waits for the device ({func})")
        return func(*args, **kwargs)


def _draws_numbers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the operation draws: of those that may, attention is told how much to drop."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return bool(func.overloadpacket is torch.ops.aten.random_)
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            return bool(kwargs.get("dropout_p", args[place] if place < len(args) else argument.default_value))
    return True


def _waits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the operation needs values, or copies them from one device to another."""
    name = func.overloadpacket.__name__
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name in ("equal", "_linalg_check_errors"):
        return True
    if name == "_to_copy":
        device = kwargs.get("device")
        return device is not None and torch.device(device).type != args[0].device.type
    if name == "copy_":
        return bool(args[0].device != args[1].device)
    return torch.Tag.dynamic_output_shape in func.tags
