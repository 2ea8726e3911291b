"""Exact noise, the division by the expected batch and the optimizer's step, over all parameters in one pass.

``sums`` is a list with one array for each parameter: the sum of the clipped gradients on entry, the noisy mean gradient
on return. Parameters and state are updated in place. All arrays of a call are float32 or all float64, C-contiguous, on
one device, and share no memory; numpy, torch (parameters may be leaves of autograd, nothing else may require grad), cupy
or any DLPack producer. Nothing is copied, and nothing is written before all checks have passed. The same bits on every
backend, instruction set and thread count; docs/update.md has every operation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import _arrays, _checks
from ._arrays import Array
from ._backends import Backend, choose, compiled
from ._sources import Source, chosen
from .noise import lattice_spacing


class Noise(NamedTuple):
    """What is added to the sums: :func:`noise.add_gaussian` with ``check=False``, one key of the source for each array.

    sigma: standard deviation, 0 for no noise (then there is no lattice either, and NaN and infinities are passed on).
    granularity: lattice spacing; None for :func:`noise.default_granularity`. Values that do not fit it saturate.
    source: where the randomness comes from; None for this process's SecureSource.
    """

    sigma: float
    granularity: float | None = None
    source: Source | None = None


def noisy_mean(sums: Sequence[Any], noise: Noise, divisor: float) -> None:
    """``sums[i] = add_gaussian(sums[i]) / divisor``, in place: the gradients for an optimizer that has no fused step.

    Args:
        sums: see the module's text.
        noise: what is added.
        divisor: the expected batch size, above 0.

    Raises:
        TypeError: something that is no array, or another dtype.
        ValueError: a number out of range, shapes, devices, contiguity, read-only or overlapping arrays.
        BackendError: the forced backend is missing or cannot reach the arrays.
    """
    release = _Release(noise, divisor)
    _run("noisy_mean", {"sums": sums}, release)


def sgd(
    params: Sequence[Any],
    sums: Sequence[Any],
    noise: Noise,
    divisor: float,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    buffers: Sequence[Any] | None = None,
    first: bool = False,
) -> None:
    """:func:`noisy_mean` and one step of ``torch.optim.SGD`` with the noisy mean as the gradient.

    Args:
        params: one array for each parameter, updated in place.
        sums: of the same shapes; see the module's text.
        noise: what is added.
        divisor: the expected batch size, above 0.
        lr, momentum, dampening, weight_decay, nesterov, maximize: those of ``torch.optim.SGD``; numbers are rounded to
            the arrays' dtype.
        buffers: momentum buffers, of the same shapes, if ``momentum`` is not 0.
        first: whether this is the first step of these parameters: buffers become the gradient and are not read.

    Raises:
        TypeError, ValueError, BackendError: see :func:`noisy_mean`; or Nesterov momentum with dampening or without
            momentum, or buffers missing or not used.
    """
    numbers = [
        _checks.not_negative(lr, "lr"),
        _checks.not_negative(momentum, "momentum"),
        _checks.real(dampening, "dampening"),
        _checks.not_negative(weight_decay, "weight_decay"),
    ]
    flags = [_checks.flag(nesterov, "nesterov"), _checks.flag(maximize, "maximize"), _checks.flag(first, "first")]
    if flags[0] and not (numbers[1] > 0 and numbers[2] == 0):
        raise ValueError(
            f"nesterov is True with momentum {momentum} and dampening {dampening}, expected a momentum and no dampening"
        )
    if (buffers is None) == (numbers[1] > 0):
        raise ValueError(f"buffers is {_length(buffers)}, expected {'a list' if momentum else 'None'} with {momentum=}")
    release = _Release(noise, divisor)
    _run("sgd_step", {"sums": sums, "params": params, "buffers": buffers}, release, *numbers, *flags)


def adam(
    params: Sequence[Any],
    sums: Sequence[Any],
    noise: Noise,
    divisor: float,
    *,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    exp_avg: Sequence[Any],
    exp_avg_sq: Sequence[Any],
    max_exp_avg_sq: Sequence[Any] | None = None,
    step: int,
) -> None:
    """:func:`noisy_mean` and one step of ``torch.optim.Adam``, or of ``AdamW``, with the noisy mean as the gradient.

    Args:
        params: one array for each parameter, updated in place.
        sums: of the same shapes; see the module's text.
        noise: what is added.
        divisor: the expected batch size, above 0.
        lr, betas, eps, weight_decay, maximize: those of ``torch.optim.Adam``; numbers are rounded to the arrays' dtype,
            the bias corrections are computed in float64 first.
        decoupled: True for AdamW: weight decay acts on the parameters and not on the gradient.
        exp_avg, exp_avg_sq: the averages, of the same shapes, updated in place; zeros before the first step.
        max_exp_avg_sq: the same for AMSGrad's maxima; None without AMSGrad.
        step: number of this step, 1 for the first.

    Raises:
        TypeError, ValueError, BackendError: see :func:`noisy_mean`; a beta outside [0, 1).
    """
    rate, epsilon = _checks.not_negative(lr, "lr"), _checks.not_negative(eps, "eps")
    decay = _checks.not_negative(weight_decay, "weight_decay")
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas is {betas!r}, expected two numbers")
    beta1, beta2 = (_checks.not_negative(beta, f"betas[{i}]") for i, beta in enumerate(betas))
    for i, beta in enumerate((beta1, beta2)):
        if beta >= 1:
            raise ValueError(f"betas[{i}] is {beta}, expected below 1")
    on_params, on_maximum = _checks.flag(decoupled, "decoupled"), _checks.flag(maximize, "maximize")
    count = _checks.whole(step, "step", least=1)
    numbers = [
        beta1,
        beta2,
        rate / (1.0 - beta1**count),
        (1.0 - beta2**count) ** 0.5,
        epsilon,
        0.0 if on_params else decay,
        1.0 - rate * decay if on_params else 1.0,
    ]
    release = _Release(noise, divisor)
    named = {"sums": sums, "params": params, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    _run("adam_step", {**named, "max_exp_avg_sq": max_exp_avg_sq}, release, *numbers, on_maximum)


class _Release:
    """Noise and divisor, checked."""

    def __init__(self, noise: Noise, divisor: float) -> None:
        if not isinstance(noise, Noise):
            raise TypeError(f"noise is {_checks.kind_of(noise)}, expected a Noise")
        self.divisor = _checks.positive(divisor, "divisor")
        self.sigma = _checks.not_negative(noise.sigma, "sigma")
        self.spacing = lattice_spacing(self.sigma, "sigma", noise.granularity) if self.sigma else 1.0
        self.source = chosen(noise.source)

    def arguments(self, backend: Backend, count: int) -> tuple[float, float, float, list[bytes], str]:
        """What a kernel takes after its arrays. Draws the keys: nothing may fail from here on but the kernel itself."""
        keys = self.source.next_keys(count) if self.sigma else []
        return self.divisor, self.sigma, self.spacing, keys, backend.generator(self.source)


def _run(name: str, values: dict[str, Sequence[Any] | None], release: _Release, *arguments: Any) -> None:
    """Check the lists of arrays and call the kernel of this name."""
    backend = _backend_of_tensors(values)
    if backend is not None:  # whose kernels check all the rest
        lists = [arrays or [] for arrays in values.values()]
        try:
            getattr(backend.update, name)(*lists, *release.arguments(backend, len(lists[0])), *arguments)
        except (TypeError, ValueError, RuntimeError):  # the last one from torch, for tensors that it exports to nobody
            _backend(_lists(values))  # raises in more detail
            raise
        _mark_changed(values.get("params") or [])
        return
    described = _lists(values)
    if described["sums"]:
        backend = _backend(described)
        operands = [backend.operands(arrays) for arrays in described.values()]
        getattr(backend.update, name)(*operands, *release.arguments(backend, len(operands[0])), *arguments)
        _mark_changed([array.value for array in described.get("params", [])])


def _backend_of_tensors(values: dict[str, Sequence[Any] | None]) -> Backend | None:
    """The compiled backend if all arrays are tensors of torch itself, as in nearly every private step; else None.

    A model has hundreds of tensors: to describe them in Python takes longer than to update them.
    """
    torch, sums = sys.modules.get("torch"), values["sums"]
    if torch is None or not isinstance(sums, (list, tuple)) or not sums:
        return None
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):  # an older torch
        return None
    for name, arrays in values.items():
        if not isinstance(arrays, (list, tuple, type(None))):
            return None
        known = {torch.Tensor, torch.nn.Parameter} if name == "params" else {torch.Tensor}
        if not known.issuperset(map(type, arrays or ())):  # subclasses may have their values elsewhere
            return None
    return compiled("cuda" if sums[0].is_cuda else "native")


def _lists(values: dict[str, Sequence[Any] | None]) -> dict[str, list[Array]]:
    """The described arrays of each list, all checked against those of ``sums``; an empty list for None."""
    lists: dict[str, list[Array]] = {}
    for name, arrays in values.items():
        if arrays is None:
            lists[name] = []
            continue
        if not isinstance(arrays, (list, tuple)):
            raise TypeError(f"{name} is {_checks.kind_of(arrays)}, expected a list of arrays")
        used = map(_detached, arrays) if name == "params" else arrays
        lists[name] = [_arrays.describe(value, f"{name}[{i}]") for i, value in enumerate(used)]
        sums = lists["sums"]
        if len(arrays) != len(sums):
            raise ValueError(f"{name} has {len(arrays)} arrays, expected {len(sums)} as sums")
        if sums:
            _arrays.require_dtype(sums[0], ("float32", "float64"))
        for array, total in zip(lists[name], sums, strict=True):
            like = array.shape == total.shape and array.strides == total.strides and array.dtype == total.dtype
            if arrays is values["sums"] or not (like and array.writable):  # models have hundreds of arrays
                _arrays.require_output(array, total.shape, sums[0].dtype)
    return lists


def _detached(param: Any) -> Any:
    """The memory of a leaf of torch's autograd; anything else as it is."""
    torch = sys.modules.get("torch")
    leaf = torch is not None and isinstance(param, torch.Tensor) and param.requires_grad and param.is_leaf
    return param.detach() if leaf else param


def _backend(lists: dict[str, list[Array]]) -> Backend:
    everything = [array for arrays in lists.values() for array in arrays]
    backend = choose(everything)
    _arrays.require_all_apart(everything)
    return backend


def _mark_changed(params: Sequence[Any]) -> None:
    """Tell torch's autograd: a backward through a graph from before the step must be refused, not go wrong."""
    torch = sys.modules.get("torch")
    changed = [] if torch is None else [value for value in params if isinstance(value, torch.Tensor)]
    if changed:
        torch.autograd.graph.increment_version(changed)  # type: ignore[union-attr]


def _length(arrays: Sequence[Any] | None) -> str:
    return "None" if arrays is None else f"a list of {len(arrays)}"
