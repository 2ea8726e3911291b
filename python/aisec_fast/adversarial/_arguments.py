"""Arguments that every attack takes: samples, labels, model, box. Checked here, with errors that name them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _arrays, _checks
from .._arrays import Array
from .._backends import Backend, choose
from . import _rows
from ._ball import DTYPES
from ._box import Clip, make_box

if TYPE_CHECKING:
    from torch import Tensor

    from ._torch_model import TorchModel


def samples(x: Any) -> Array:
    """``x`` described, in C order and without its history; errors unless it can be attacked."""
    described = _arrays.describe(x.detach() if _rows.is_tensor(x) else x, "x")
    if described.dtype in ("float16", "bfloat16"):
        raise TypeError(
            f"x has dtype {described.dtype}, expected float32 or float64: steps get lost in half precision; attack in "
            "float32 (a module may convert its input)"
        )
    if described.dtype not in DTYPES:
        raise TypeError(
            f"x has dtype {described.dtype}, expected float32 or float64 (scale integer images, for example x / 255)"
        )
    if not described.shape:
        raise ValueError("x has no dimensions, expected [B, ...]")
    return _arrays.describe(_rows.contiguous(described), "x")


def precision_named(precision: object, dtype: str) -> str | None:
    """The precision of passes with a gradient: None or "bfloat16"; ValueError if it is none, or has no meaning for ``dtype``."""
    if precision is None:
        return None
    if precision != "bfloat16":
        raise ValueError(f"precision is {precision!r}, expected None (the model's own) or 'bfloat16'")
    if dtype != "float32":
        raise ValueError(f"precision is 'bfloat16' and x has dtype {dtype}, expected float32 with it")
    return "bfloat16"


def labels(y: Any, x: Array, *, integers: bool = True, name: str = "y") -> Array:
    """``y`` described: as many as there are samples, on their device; one integer each if they are to be read."""
    described = _arrays.describe(y, name)
    _arrays.require_same_device([x, described])
    if not described.shape:
        raise ValueError(
            f"{name} has no dimensions, expected {x.shape[0]} labels as x has samples; "
            f"if x, of shape {x.shape}, is one sample without a batch dimension, pass x[None] and {name}[None]"
        )
    if integers:
        if not described.dtype.startswith(("int", "uint")):
            raise TypeError(f"{name} has dtype {described.dtype}, expected integer labels")
        if len(described.shape) != 1:
            raise ValueError(f"{name} has shape {described.shape}, expected labels [{x.shape[0]}]")
    if described.shape[0] != x.shape[0]:
        raise ValueError(f"{name} has shape {described.shape}, expected {x.shape[0]} labels as x has samples")
    return described


def tensor_samples(model: Any, x: Array, *, others: str = "") -> Array:
    """``x`` as a tensor for the torch module ``model``; numpy's memory is shared. TypeError if it is none."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is {_checks.kind_of(model)}, expected a torch.nn.Module that gives logits{others}")
    return _arrays.describe(_tensor(x), x.name)


def torch_model(model: Any, x: Array, y: Any, *, least_classes: int = 2, needs: str = "") -> tuple[TorchModel, Tensor]:
    """The torch module ready for an attack on samples of :func:`tensor_samples`, and its labels (int64 ``[B]``)."""
    from ._torch_model import TorchModel

    return TorchModel.made(model, x.value, _tensor(labels(y, x)), least_classes=least_classes, needs=needs)


def as_given(adv: Any, x: Any) -> Any:
    """The result of an attack on ``x``: numpy if that was numpy, an array of another library if that can make one of numpy's."""
    if _rows.is_tensor(adv):
        return adv.numpy() if isinstance(x, np.ndarray) else adv
    made = _rows.maker(x)
    return adv if made is None else made(adv)


def _tensor(array: Array) -> Tensor:
    if array.library == "cupy":
        raise TypeError(f"{array.name} is a cupy array, expected a torch tensor or a numpy array for a torch module")
    if array.library == "torch":
        tensor: Tensor = array.value
        return tensor
    shared: Tensor = sys.modules["torch"].from_numpy(array.value if array.writable else array.value.copy())
    return shared


@dataclass(frozen=True)
class Attacked:
    """A torch module and a batch, checked; its model is in eval mode for as long as the attack lasts."""

    model: TorchModel
    x: Tensor  # [B, ...], contiguous, finite, inside the box
    y: Tensor  # [B], int64
    low: float  # the box as values of x's dtype, infinite without one
    high: float
    backend: Backend  # whose kernels step and project


@contextmanager
def attacked(
    model: Any,
    x: Any,
    y: Any,
    *,
    clip: Clip,
    least_classes: int = 2,
    needs: str = "",
    working_copy: bool = True,
    cuda_graph: bool | None = False,
    precision: str | None = None,
) -> Iterator[Attacked]:
    """Check model, samples and labels, and hold the model ready: eval mode, gradients on, autocast off.

    Args:
        model: a torch module.
        x: samples ``[B, ...]``, float32 or float64: a torch tensor, or a numpy array for a model on the CPU.
        y: integer labels ``[B]``.
        clip: the box, or None.
        least_classes: number of classes below which the attack has no meaning.
        needs: what needs them, for the error ("loss 'dlr'").
        working_copy: take logits and gradients from a faster copy of the module where that pays.
        cuda_graph: replay gradient passes of ``replayed_gradient``: None where it can be, True or it raises.
        precision: of passes with a gradient; None for the model's own.
    """
    described = tensor_samples(model, samples(x))
    box = make_box(clip, described.dtype)
    prepared, y = torch_model(model, described, y, least_classes=least_classes, needs=needs)
    box.require_inside_box(described)
    precision = precision_named(precision, described.dtype)
    with prepared.attacked(described.value if working_copy else None, cuda_graph=cuda_graph, precision=precision):
        yield Attacked(prepared, described.value, y, box.low, box.high, choose([described]))
