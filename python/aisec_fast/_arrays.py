"""What the library needs to know of an array, whatever made it: numpy, torch, cupy or another DLPack producer.

Nothing is copied and no framework is imported: an array of torch can only exist once torch is loaded.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _checks
from ._errors import BackendError

_DLPACK_CPU, _DLPACK_CUDA = 1, 2


class Array(NamedTuple):
    """A described array: ``value`` is the user's object, or a zero-copy numpy or cupy view of a foreign one."""

    value: Any
    name: str
    library: str  # "numpy", "torch" or "cupy": outputs are made by the same
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in values
    dtype: str  # "float32", "bfloat16", ...
    device: str  # "cpu", "cuda:0"
    address: int
    itemsize: int
    writable: bool
    contiguous: bool  # in C order without gaps

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def extent(self) -> tuple[int, int]:
        """First address and the one after the last, in bytes."""
        if self.contiguous:
            return self.address, self.address + self.size * self.itemsize
        if self.size == 0:
            return self.address, self.address
        steps = [(n - 1) * stride * self.itemsize for n, stride in zip(self.shape, self.strides, strict=True)]
        low, high = sum(s for s in steps if s < 0), sum(s for s in steps if s > 0)
        return self.address + low, self.address + high + self.itemsize

    def contiguous_from(self, axis: int) -> bool:
        """Whether the axes from ``axis`` on lie in C order without gaps."""
        if self.contiguous or 0 in self.shape:
            return True
        expected = 1
        for extent, stride in zip(reversed(self.shape[axis:]), reversed(self.strides[axis:]), strict=True):
            if extent != 1 and stride != expected:
                return False
            expected *= extent
        return True


def describe(value: Any, name: str) -> Array:
    """Describe ``value``; TypeError if it is no array, ValueError if no backend can reach it."""
    if isinstance(value, np.ndarray):
        return _describe_numpy(value, name)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _describe_torch(value, name, torch)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return _describe_cupy(value, name)
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__") and not isinstance(value, type):
        return _describe_foreign(value, name)
    raise TypeError(
        f"{name} is {_checks.kind_of(value)}, expected a numpy, torch or cupy array or another producer of DLPack"
    )


def _describe_numpy(value: npt.NDArray[Any], name: str) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, expected a plain one: its mask would be ignored")
    if not value.dtype.isnative:
        raise TypeError(f"{name} has byte order {value.dtype.byteorder!r}, expected native")
    item = max(1, value.itemsize)
    flags, strides = value.flags, value.strides
    if not flags.c_contiguous and any(s % item for s, n in zip(strides, value.shape, strict=True) if n > 1):
        raise ValueError(f"{name} has strides that are no multiple of its item size; pass a copy")
    address = value.__array_interface__["data"][0]  # several times faster than value.ctypes.data
    if address % value.dtype.alignment:  # of a string: that of its characters
        raise ValueError(f"{name} is not aligned for its dtype; pass a copy")
    return Array(
        value=value,
        name=name,
        library="numpy",
        shape=value.shape,
        strides=tuple([s // item for s in strides]),
        dtype=_dtype_name(value.dtype),
        device="cpu",
        address=address,
        itemsize=value.itemsize,
        writable=flags.writeable,
        contiguous=flags.c_contiguous,
    )


@lru_cache(maxsize=64)
def _dtype_name(dtype: np.dtype[Any]) -> str:
    """``dtype.name``, which numpy works out anew each time, slower than a small kernel runs."""
    return str(dtype.name)


def _describe_torch(value: Any, name: str, torch: Any) -> Array:
    # Called for every array of every call: each attribute of a tensor costs as much as a few lines of Python.
    if value.layout is not torch.strided:
        raise TypeError(f"{name} has layout {value.layout}, expected a dense tensor")
    if value.is_cpu:
        device = "cpu"
    elif value.is_cuda:
        device = f"cuda:{value.get_device()}"
    else:
        raise ValueError(f"{name} lives on {value.device}, expected the CPU or a CUDA device")
    if value.requires_grad:
        raise ValueError(f"{name} requires grad; pass {name}.detach()")
    if value.is_neg() or value.is_conj():
        raise ValueError(
            f"{name} is a lazily negated or conjugated tensor; pass {name}.resolve_{'neg' if value.is_neg() else 'conj'}()"
        )
    shape = tuple(value.shape)
    if not has_memory(value):  # what FSDP does to parameters that are elsewhere
        raise ValueError(f"{name} has no memory: its storage was freed")
    return _torch_array(value, name, shape, device)


def has_memory(tensor: Any) -> bool:
    """Whether the storage of a tensor still reaches to its last value: it can be resized under it."""
    if tensor.is_contiguous():
        values = tensor.numel()
    else:
        values = 1 + sum([(n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)])
    held = int(tensor.untyped_storage().nbytes())
    needed = int((tensor.storage_offset() + values) * tensor.itemsize)
    return values == 0 or held >= needed


def _torch_array(value: Any, name: str, shape: tuple[int, ...], device: str) -> Array:
    dtype, itemsize = _torch_dtype(value.dtype)
    contiguous = value.is_contiguous()
    return Array(
        value, name, "torch", shape, value.stride(), dtype, device, value.data_ptr(), itemsize, True, contiguous
    )


@cache
def _torch_dtype(dtype: Any) -> tuple[str, int]:
    return str(dtype).removeprefix("torch."), dtype.itemsize


def _describe_cupy(value: Any, name: str) -> Array:
    return Array(
        value=value,
        name=name,
        library="cupy",
        shape=tuple(value.shape),
        strides=tuple(s // max(1, value.itemsize) for s in value.strides),
        dtype=value.dtype.name,
        device=f"cuda:{value.device.id}",
        address=int(value.data.ptr),
        itemsize=value.itemsize,
        writable=True,
        contiguous=value.flags.c_contiguous,
    )


def _describe_foreign(value: Any, name: str) -> Array:
    kind = int(value.__dlpack_device__()[0])
    if kind == _DLPACK_CPU:
        return _describe_numpy(np.from_dlpack(value), name)
    if kind == _DLPACK_CUDA:
        try:
            import cupy
        except ImportError:
            raise BackendError(f"{name} lives on a CUDA device and is none of torch: reading it needs cupy") from None
        return _describe_cupy(cupy.from_dlpack(value), name)
    raise ValueError(f"{name} lives on DLPack device type {kind}, expected 1 (CPU) or 2 (CUDA)")


def require_dtype(array: Array, allowed: Sequence[str]) -> None:
    """TypeError unless the array has one of the dtypes."""
    if array.dtype not in allowed:
        raise TypeError(f"{array.name} has dtype {array.dtype}, expected {_either(allowed)}")


def require_contiguous(array: Array) -> None:
    """ValueError unless the array lies in C order without gaps."""
    if not array.contiguous_from(0):
        raise ValueError(f"{array.name} is not C-contiguous (strides {array.strides}); pass a contiguous copy")


def require_same_device(arrays: Sequence[Array]) -> None:
    """ValueError unless all arrays live on the same device."""
    for array in arrays[1:]:
        if array.device != arrays[0].device:
            raise ValueError(
                f"{array.name} lives on {array.device}, {arrays[0].name} on {arrays[0].device}; expected one device"
            )


def require_output(out: Array, shape: tuple[int, ...], dtype: str) -> None:
    """Errors unless ``out`` can take a result of this shape and dtype."""
    require_dtype(out, [dtype])
    if out.shape != shape:
        raise ValueError(f"{out.name} has shape {out.shape}, expected {shape}")
    require_contiguous(out)
    if not out.writable:
        raise ValueError(f"{out.name} is read-only")


def require_apart(out: Array, x: Array, *, same_is_fine: bool) -> None:
    """ValueError if ``out`` shares memory with ``x``; ``same_is_fine`` allows the very same memory (in place)."""
    if out.device != x.device or (same_is_fine and out.address == x.address):
        return
    (out_start, out_end), (x_start, x_end) = out.extent(), x.extent()
    if out_start < x_end and x_start < out_end:
        expected = "the same memory or none in common" if same_is_fine else "memory of its own"
        raise ValueError(f"{out.name} overlaps {x.name} in memory, expected {expected}")


def empty(shape: int | tuple[int, ...], dtype: Any, name: str) -> npt.NDArray[Any]:
    """A new numpy array; MemoryError, naming the argument that asked for it, if there is no room."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError, OverflowError):  # numpy: beyond memory, the address space or 64 dimensions
        raise MemoryError(f"{name} is {shape}: no memory for so many values of {np.dtype(dtype)}") from None


def outputs(out: Any, like: Sequence[Array], shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], *, is_list: bool,
            in_place: bool) -> list[Array]:  # fmt: skip
    """The described outputs of a call: new ones if ``out`` is None, else ``out`` checked against shapes and dtypes.

    Args:
        out: None, an array, or a list of them if the call was given a list.
        like: the inputs: new outputs are of their library and device.
        shapes, dtypes: what each output must have.
        is_list: whether the call was given a list.
        in_place: whether an output may be the input at the same position.
    """
    if out is None:
        return [empty_like(*wanted) for wanted in zip(like, shapes, dtypes, strict=True)]
    if is_list != isinstance(out, (list, tuple)):
        raise TypeError(f"out is {_checks.kind_of(out)}, expected {'a list like the input' if is_list else 'an array'}")
    values = list(out) if is_list else [out]
    if len(values) != len(like):
        raise ValueError(f"out has {len(values)} arrays, expected {len(like)} as the input")
    described = [
        _again(source, value, f"out[{i}]" if is_list else "out")
        for i, (source, value) in enumerate(zip(like, values, strict=True))
    ]
    for output, source, shape, dtype in zip(described, like, shapes, dtypes, strict=True):
        require_output(output, shape, dtype)
        require_same_device([source, output])
    require_all_apart(described, like, in_place=in_place)
    return described


def _again(known: Array, value: Any, name: str) -> Array:
    """``describe``, sooner where ``value`` is known: most work is done in place."""
    return known._replace(name=name) if value is known.value else describe(value, name)


def require_all_apart(outs: Sequence[Array], inputs: Sequence[Array] = (), *, in_place: bool = False) -> None:
    """ValueError if an output shares memory with another one or with an input, its own input aside if ``in_place``.

    Arrays are visited in the order of their addresses, beside those that reach beyond the address.
    """
    if len(outs) == len(inputs) == 1:
        require_apart(outs[0], inputs[0], same_is_fine=in_place)
        return
    extents = sorted([array.extent() for array in (*outs, *inputs)])
    if all(before[1] <= after[0] for before, after in itertools.pairwise(extents)):
        return  # as is nearly every call
    everything = [(array.extent(), i, array, True) for i, array in enumerate(outs)]
    everything += [(array.extent(), i, array, False) for i, array in enumerate(inputs)]
    near: list[tuple[int, int, Array, bool]] = []
    for (start, end), i, array, is_out in sorted(everything, key=lambda entry: entry[0]):
        near = [entry for entry in near if entry[0] > start]
        for _, j, other, other_is_out in near:
            if is_out:
                require_apart(array, other, same_is_fine=in_place and i == j and not other_is_out)
            elif other_is_out:
                require_apart(other, array, same_is_fine=in_place and i == j)
        near.append((end, i, array, is_out))


def empty_like(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """A new array of the same library on the same device, described; its values are not set."""
    if array.library == "torch":
        torch = sys.modules["torch"]
        value = torch.empty(shape, dtype=getattr(torch, dtype), device=array.value.device)
        return _torch_array(value, "result", shape, array.device)
    if array.library == "cupy":
        cupy = sys.modules["cupy"]
        with array.value.device:
            value = cupy.empty(shape, dtype=dtype)
    else:
        value = np.empty(shape, dtype=dtype)
    return describe(value, "result")


def cast(array: Array, dtype: str) -> Any:
    """The array's values in another dtype, rounded to nearest (overflow gives Inf)."""
    if array.dtype == dtype:
        return array.value
    if array.library == "torch":
        return array.value.to(getattr(sys.modules["torch"], dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        return array.value.astype(dtype)


def as_numpy(array: Array) -> npt.NDArray[Any]:
    """A numpy view of an array on the CPU; bfloat16, which numpy lacks, as its bits in uint16."""
    if array.library == "torch":
        value = array.value
        if array.dtype == "bfloat16":
            bits: npt.NDArray[Any] = value.view(sys.modules["torch"].int16).numpy()
            return bits.view(np.uint16)
        view: npt.NDArray[Any] = value.numpy()
        return view
    plain: npt.NDArray[Any] = array.value
    return plain.view(np.uint16) if array.dtype == "bfloat16" else plain


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]
