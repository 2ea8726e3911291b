"""How many rows a module should be given at a time on the CPU.

The C library's allocator gives large activations back to the system and asks for them anew at every pass, and each of
their pages then is cleared once more: a quarter to a third of the time of a convolutional network on a batch of 256. Parts
of the batch whose activations are of a moderate size are computed in memory that is already there. Nothing but last bits
may change by that: a module whose samples depend on each other, or on random numbers, is given the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ._program import Program
from ._working_copy import same_logits

_PROBED_ROWS = 2
_FEWEST_ROWS = 16  # smaller batches are computed as they are
_BYTES_A_THREAD = 4 << 20  # of the largest activation; measured: 8 to 16 MiB are best for two threads, 32 MiB are not


def rows_at_once(module: nn.Module | Program, x: Tensor) -> int | None:
    """The rows of ``x`` whose largest activation in ``module`` is of a moderate size; None where all may go at once."""
    if x.device.type != "cpu" or len(x) < _FEWEST_ROWS:
        return None
    if isinstance(module, Program):
        nbytes = _PROBED_ROWS * module.row_bytes
    else:
        with _Largest() as seen:
            mixed = mixes(module, x)
        if mixed:
            return None
        nbytes = seen.nbytes
    rows = max(1, _BYTES_A_THREAD * torch.get_num_threads() * _PROBED_ROWS // max(1, nbytes))
    return rows if rows < len(x) else None


def mixes(module: nn.Module | Program, x: Tensor) -> bool:
    """Whether a sample's logits depend on the other samples in its batch, or on random numbers, as far as two rows show.

    So they do where the module refuses two rows: it may want the whole batch.
    """
    if len(x) < _PROBED_ROWS:
        return True
    try:
        with torch.no_grad():
            together = module(x[:_PROBED_ROWS].clone())
            return not isinstance(together, Tensor) or not same_logits(module(x[:1].clone()), together[:1])
    except Exception:  # noqa: BLE001 (the module's own, of any kind; where it is no matter of rows it will come again)
        return True


def evenly(batch: Tensor, rows: int | None) -> tuple[Tensor, ...]:
    """The batch in parts of at most ``rows`` rows, all of about the same size."""
    if rows is None or len(batch) <= rows:
        return (batch,)
    return batch.tensor_split(-(-len(batch) // rows))


class _Largest(TorchFunctionMode):
    """Notes the size of the largest result that has a row for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim and len(result) == _PROBED_ROWS:
            self.nbytes = max(self.nbytes, result.numel() * result.element_size())
        return result
