"""The private step: a hook that runs before the user's optimizer and puts noisy clipped means into ``.grad``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import noise
from .._errors import PrivacyError
from .._sources import Source
from ._layers import LayerGradients, chunks, position_rank, row_squares
from ._recording import Record, Recorder


@dataclass(frozen=True)
class Release:
    """What a step releases: the noisy sum of clipped gradients, over the expected batch size."""

    noise_multiplier: float
    max_grad_norm: float
    expected_batch: float
    mean_loss: bool
    batch_first: bool


class PrivateStep:
    """Optimizer step pre-hook: clip and sum the records, book the step, add noise, set ``.grad``."""

    def __init__(
        self,
        module: nn.Module,
        recorder: Recorder,
        release: Release,
        source: Source,
        book: Callable[[], None],
    ) -> None:
        self.module, self.recorder, self.release, self.source, self.book = module, recorder, release, source, book
        self.trainable = trainable(module)
        self.sigma, self.granularity = 0.0, None
        if release.noise_multiplier > 0:
            self.sigma, self.granularity = charged_noise(release, sum(p.numel() for p in self.trainable.values()))

    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(value is not None and value is not optimizer for value in (*args, *kwargs.values())):
            raise PrivacyError(
                "optimizer.step(closure) evaluates the loss inside the step, which is not private; "
                "call loss.backward() and then optimizer.step() without arguments"
            )
        check_same(trainable(self.module), self.trainable, optimizer)
        with torch.no_grad():
            sums = clipped_sums(self.recorder.take(), self.trainable, self.release)
            self.book()  # before anything of this step can be seen
            if self.sigma:
                add_noise(sums, self.sigma, self.granularity, self.source)
            for parameter, total in zip(self.trainable.values(), sums, strict=True):
                parameter.grad = total.div_(self.release.expected_batch)


def charged_noise(release: Release, size: int) -> tuple[float, float]:
    """Return (sigma, granularity) for ``size`` coordinates: sigma pays for rounding to the lattice."""
    granularity = noise.default_granularity(release.noise_multiplier * release.max_grad_norm)
    sensitivity = noise.charged_sensitivity(release.max_grad_norm, size, granularity)
    return math.nextafter(release.noise_multiplier * sensitivity, math.inf), granularity


def add_noise(sums: list[Tensor], sigma: float, granularity: float | None, source: Source) -> None:
    """Add Gaussian noise to ``sums`` in place. Values that do not fit saturate: raising would tell about the data."""
    for dtype in {total.dtype for total in sums}:
        group = [total for total in sums if total.dtype == dtype]
        noise.add_gaussian(group, sigma, granularity=granularity, source=source, out=group, check=False)


def clipped_sums(records: Iterable[Record], parameters: dict[str, nn.Parameter], release: Release) -> list[Tensor]:
    """Return, for each parameter, the sum over samples of their gradients, each clipped to norm ``max_grad_norm``.

    The norm is over all parameters. A sample whose norm is NaN or infinite contributes zero. A parameter without
    records gets zeros. Raises PrivacyError if records disagree on the batch size.
    """
    uses: dict[int, list[tuple[str, LayerGradients]]] = {id(p): [] for p in parameters.values()}
    batch: int | None = None
    first = ""
    for record in records:
        rule = _rule(record, release.batch_first)
        name = record.layer.name or type(record.layer.module).__name__
        if batch is None:
            batch, first = rule.batch, name
        elif rule.batch != batch:
            raise PrivacyError(
                f"modules see different batch sizes: {first!r} {batch}, {name!r} {rule.batch}. Every covered layer "
                "must have the samples in its batch dimension (an embedding of positions: a row of positions a sample)"
            )
        for key, parameter in record.layer.parameters.items():
            uses[id(parameter)].append((key, rule))
    if not batch:  # an empty batch, or no backward at all
        return [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in parameters.values()]
    device = next(iter(parameters.values())).device
    squares = torch.zeros(batch, dtype=torch.float64, device=device)
    for parameter in parameters.values():
        squares += _squares(uses[id(parameter)], batch, parameter)
    # A mean loss has divided each sample's gradient by the batch size.
    scale = float(batch) if release.mean_loss else 1.0
    norms = squares.sqrt() * scale
    factors = (release.max_grad_norm / norms).clamp(max=1.0)
    weights = torch.where(norms.isfinite(), factors, 0.0) * scale
    return [_total(uses[id(p)], weights, p) for p in parameters.values()]


def _rule(record: Record, batch_first: bool) -> LayerGradients:
    layer, rule = record.layer.module, record.layer.rule
    activation, gradient = record.activation, record.gradient
    inner = position_rank(layer)
    if activation.dim() <= inner:
        raise PrivacyError(
            f"module {record.layer.name!r} got an input of shape {tuple(activation.shape)}: it has no batch dimension"
        )
    if not batch_first and rule.takes_sequences and activation.dim() > inner + 1:
        activation, gradient = activation.transpose(0, 1), gradient.transpose(0, 1)
    dtype = next(iter(record.layer.parameters.values())).dtype
    if activation.is_floating_point():
        activation = activation.to(dtype)
    return rule(layer, activation, gradient.to(dtype))


def _squares(uses: list[tuple[str, LayerGradients]], batch: int, parameter: nn.Parameter) -> Tensor | float:
    """[B] squared norms of the samples' gradients of one parameter."""
    if not uses:
        return 0.0
    if len(uses) == 1:
        name, rule = uses[0]
        return rule.squares(name)
    # Used several times (tied weights, a module called twice): the norm of the sum needs the gradients themselves.
    parts = []
    for start, stop in chunks(batch, parameter.numel()):
        gradients = [rule.rows(name, start, stop) for name, rule in uses]
        parts.append(row_squares(functools.reduce(torch.add, gradients)))
    return torch.cat(parts)


def _total(uses: list[tuple[str, LayerGradients]], weights: Tensor, parameter: nn.Parameter) -> Tensor:
    totals = [rule.total(name, weights) for name, rule in uses]
    if not totals:
        return torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    return functools.reduce(torch.add, totals).contiguous()


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's parameters that require grad, each once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def check_same(now: dict[str, nn.Parameter], then: dict[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Raise PrivacyError if parameters were frozen, added or exchanged since make_private."""
    known = {id(p) for p in then.values()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    for name in now.keys() | then.keys():
        if now.get(name) is not then.get(name):
            raise PrivacyError(
                f"parameter {name!r} was frozen, unfrozen or replaced since make_private; start with a fresh model"
            )
    if held != known:
        raise PrivacyError(
            "the optimizer's parameters changed since make_private; call make_private again with a fresh model"
        )
