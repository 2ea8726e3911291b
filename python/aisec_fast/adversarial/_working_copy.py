"""A second form of a module that computes the same logits faster: a list of steps (_program), or where the module does more
than that knows, the module again with batch norms folded into their convolutions, and weights laid out channels-last.

The copy shares every tensor that is not changed, and is made for one attack: nothing of the module is written. Whether it
computes what the module computes is not deduced but tried, at the samples and now and then on the way: logits of both are
compared, and the copy is dropped where they differ by more than rounding. What it may get wrong is a verdict near the
border, so every success that an attack reports is judged again by the module itself.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import _kept
from ._program import Program, program
from ._weighted import gradients

PROBED_ROWS = 8  # of the batch, on which the copy is tried
_DIFFERENTIATED_ROWS = 3  # more than a list of steps is recorded with
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}  # times the largest logit, or 1
_COARSE = 0.05  # of half precision: bfloat16 keeps 8 bits, and each layer rounds anew
_TF32 = 0.01  # of float32 on CUDA, where cuDNN rounds factors to 11 bits (TF32) unless it is told not to
_SLOPE_TOLERANCE = 0.01  # of the norm; a ReLU that rounding turns over changes less
_PAYS_FROM = 1 << 25  # multiplications in a pass; smaller ones are over before a list of steps has been made and tried
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_log = logging.getLogger("aisec_fast.adversarial")
_OPAQUE = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule")


class Folded(nn.Module):
    """Mixed into a batch norm whose arithmetic is in the convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        """The input, as it is."""
        return x


_FOLDED: dict[type[nn.Module], type[nn.Module]] = {
    norm: type(f"Folded{norm.__name__}", (Folded, norm), {}) for norm in _NORMS
}


def working_copy(module: nn.Module, x: Tensor, *, steps: bool = True) -> nn.Module | Program | None:
    """Something faster that gives the logits of ``module``, or None where there is nothing to gain or it cannot be had.

    Args:
        module: in eval mode; it is called on a few rows of ``x``.
        x: the batch of the attack ``[B, ...]``.
        steps: it may be a list of steps, which compute in float32 whatever autocast says.
    """
    if not is_plain(module):
        return None
    try:
        return _tried(module, x, steps=steps)
    except Exception as error:  # noqa: BLE001 (of any kind: the module may refuse a few rows, or have no copy)
        _log.debug("no working copy: %r", error)
        return None


def _tried(module: nn.Module, x: Tensor, *, steps: bool) -> nn.Module | Program | None:
    listed = _program(module, x) if steps else None
    if listed is not None or not _may_pay(module):
        return listed
    probe = x[:PROBED_ROWS]
    with torch.no_grad():
        expected = module(probe.clone())
        if not isinstance(expected, Tensor) or expected.dtype not in _TOLERANCE:
            return None
        copy = _shared(module, {})
        pairs = _pairs(copy, probe)
        if not pairs:
            return None
        for convolution, norm in pairs:
            _fold(convolution, norm)
        if channels_last_pays(x):
            _lay_out(copy)
        return copy if same_logits(copy(for_copy(probe)), expected) else None


def _program(module: nn.Module, x: Tensor) -> Program | None:
    """The module as a list of steps, if that is tried and pays."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or len(x) < 2 or any(map(_is_watched, module.modules())):
        return None
    weights = sum(tensor.numel() for tensor in module.parameters())
    if weights * x[0].numel() * len(x) < _PAYS_FROM:  # each weight is used once a pixel at most
        return None
    now = _kept.state(module, x)
    probe = x[:_DIFFERENTIATED_ROWS] if len(x) >= _DIFFERENTIATED_ROWS else torch.cat([x, x[:1]])
    kept = _kept.find(module, now)
    if kept is not None and _does_the_same(kept, module, probe[:1]):  # three would take twice as long
        return kept
    steps = program(module, x, -(-_PAYS_FROM // len(x)))
    if steps is None or not _does_the_same(steps, module, probe):
        return None
    _kept.keep(module, now, steps)
    return steps


def _does_the_same(steps: Program, module: nn.Module, probe: Tensor) -> bool:
    """Whether logits are the same, and what gradients lead to the batch: a module may have backward passes of its own.

    Gradients are compared beside the samples, because flat parts of images lie exactly between two ways to differentiate.
    """
    generator = torch.Generator().manual_seed(0)
    low, high = probe.aminmax()
    beside = probe + 0.01 * (high - low) * torch.rand(probe.shape, generator=generator)
    with torch.enable_grad():
        leaf = beside.requires_grad_()
        expected = module(leaf.clone())
        if not isinstance(expected, Tensor) or expected.dtype != torch.float32 or not expected.requires_grad:
            return False
        try:
            found = steps(leaf)
        except RuntimeError:  # a constant has as many rows as the recorded batch had
            return False
        if not same_logits(found.detach(), expected.detach()):
            return False
        weights = torch.rand(expected.shape, generator=generator) - 0.5
        [true], [slope] = (gradients(logits, weights, [leaf]) for logits in (expected, found))
    if true is None or slope is None:
        return False
    return bool((true - slope).norm() <= _SLOPE_TOLERANCE * true.norm())


def same_logits(found: Tensor, expected: Tensor, *, coarse: bool = False) -> bool:
    """Whether logits differ by rounding only; ``coarse``: that of half precision."""
    if found.shape != expected.shape:
        return False
    tolerance = _TOLERANCE.get(expected.dtype, _COARSE)
    if expected.device.type == "cuda" and expected.dtype == torch.float32:
        tolerance = _TF32
    if coarse:
        tolerance = _COARSE
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1))


def channels_last_pays(x: Tensor) -> bool:
    """Whether images should lie channels-last. On CUDA this depends on dtype and cuDNN, and was not measured."""
    return x.ndim == 4 and x.device.type == "cpu"


def for_copy(x: Tensor) -> Tensor:
    """A copy of the batch in the layout that the working copy wants."""
    return x.clone(memory_format=torch.channels_last if channels_last_pays(x) else torch.preserve_format)


def _may_pay(module: nn.Module) -> bool:
    """Without batch norms after convolutions a new layout alone was measured to gain nothing."""
    kinds = {type(part) for part in module.modules()}
    return not kinds.isdisjoint(_CONVOLUTIONS) and not kinds.isdisjoint(_NORMS)


def is_plain(module: nn.Module) -> bool:
    """Whether every part can be copied by its attributes: what traces, compiles or shards it keeps state elsewhere."""
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule) or type(part).__name__ in _OPAQUE:
            return False
        if any(
            type(tensor) not in (nn.Parameter, Tensor) for tensor in (*_own(part._parameters), *_own(part._buffers))
        ):
            return False
    return True


def _own(tensors: Mapping[str, Tensor | None]) -> Iterable[Tensor]:
    return [tensor for tensor in tensors.values() if tensor is not None]


def _shared(module: nn.Module, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """The tree of modules anew, with the same tensors; parameters want no gradient."""
    if module in made:
        return made[module]
    copy: nn.Module = object.__new__(type(module))
    made[module] = copy
    for name, value in module.__dict__.items():  # hooks are called, but those added here stay here
        copy.__dict__[name] = value.copy() if "_hooks" in name and isinstance(value, dict) else value
    copy._parameters = {
        name: None if value is None else nn.Parameter(value.detach(), requires_grad=False)
        for name, value in module._parameters.items()
    }
    copy._buffers = dict(module._buffers)
    copy._modules = {name: None if part is None else _shared(part, made) for name, part in module._modules.items()}
    return copy


class _Uses(TorchFunctionMode):
    """Counts how often each watched tensor goes into an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}  # by identity; kept alive, so that no identity is used twice
        self.uses: Counter[int] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, (Tensor, tuple, list)):  # not a look at the shape
            self.uses.update(id(value) for value in _tensors((args, kwargs)) if id(value) in self.watched)
        return result


def _tensors(values: Any) -> Iterable[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)


def _pairs(copy: nn.Module, probe: Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """Convolutions whose output goes into one batch norm and nowhere else, each called once."""
    uses = _Uses()
    calls: Counter[nn.Module] = Counter()
    outputs: dict[int, nn.Module] = {}
    found: list[tuple[nn.Module, nn.Module, int]] = []

    def made(part: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG001 - what hooks are given
        calls[part] += 1
        outputs[id(output)] = part
        uses.watched[id(output)] = output

    def taken(part: nn.Module, inputs: Any) -> None:
        calls[part] += 1
        if id(inputs[0]) in outputs:
            found.append((outputs[id(inputs[0])], part, id(inputs[0])))

    handles = []
    for part in copy.modules():
        if type(part) in (*_CONVOLUTIONS, *_NORMS) and not _is_foldable(part):
            continue
        if type(part) in _CONVOLUTIONS:
            handles.append(part.register_forward_hook(made))
        elif type(part) in _NORMS:
            handles.append(part.register_forward_pre_hook(taken))
    try:
        with uses:
            copy(probe.clone())
    finally:
        for handle in handles:
            handle.remove()
    return [
        (convolution, norm)
        for convolution, norm, output in found
        if calls[convolution] == calls[norm] == uses.uses[output] == 1
    ]


def _is_foldable(part: nn.Module) -> bool:
    """Whether nobody watches the part, and its arithmetic is what its type says."""
    if _is_watched(part):
        return False
    tensors = [*_own(part._parameters), *_own(part._buffers)]
    if any(tensor.is_floating_point() and tensor.dtype not in _TOLERANCE for tensor in tensors):
        return False
    return type(part) in _CONVOLUTIONS or part._buffers.get("running_mean") is not None


def _is_watched(part: nn.Module) -> bool:
    """Whether it has hooks."""
    return any(value for name, value in part.__dict__.items() if "_hooks" in name and isinstance(value, dict))


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    """Let the convolution of a working copy do what the batch norm after it does, computed in float64."""
    weight = convolution._parameters["weight"]
    mean, variance = norm._buffers["running_mean"], norm._buffers["running_var"]
    assert weight is not None and mean is not None and variance is not None  # noqa: PT018
    scale = (variance.double() + norm.eps).rsqrt()  # type: ignore[operator]
    if (gamma := norm._parameters["weight"]) is not None:
        scale = scale * gamma.double()
    bias = -mean.double()
    if (own := convolution._parameters["bias"]) is not None:
        bias = bias + own.double()
    bias = bias * scale
    if (beta := norm._parameters["bias"]) is not None:
        bias = bias + beta.double()
    folded = weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
    convolution._parameters["weight"] = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
    convolution._parameters["bias"] = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
    norm.__class__ = _FOLDED[type(norm)]


def _lay_out(copy: nn.Module) -> None:
    """Weights of two-dimensional convolutions channels-last."""
    for part in copy.modules():
        weight = part._parameters.get("weight")
        if type(part) is nn.Conv2d and weight is not None:
            laid_out = weight.contiguous(memory_format=torch.channels_last)
            part._parameters["weight"] = nn.Parameter(laid_out, requires_grad=False)
