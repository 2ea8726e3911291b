"""Check once, on the first training batch, that samples do not mix: the proof rests on it (docs/privacy.md, section 2).

The model runs three times on that batch with the same randomness, with all its samples but one changed the second time and
its second one, to large values, the third time: what goes in, and the gradients that come back. Every other sample's gradients must come out equal, to the bit, in every covered layer, and so must
the model's buffers. Parameters that are all zero would hide what passes through them: they are random meanwhile. Where a model on
a GPU does not repeat its bits (some operations add in any order there), differences are compared with those of unchanged runs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import PrivacyError
from ._layers import row_squares
from ._own_layers import is_plain
from ._precision import full_precision
from ._recording import Recorder, Use, saved_tensors_are_hooked
from ._values import equal, mapped, tensors_in, unchanged

_REPEATS = 3  # unchanged runs, at most, that look for operations without a fixed order
# Where there are some, a sample may change by so many times what it changed by itself, and by no more than this part, which is
# that of rounding: what passes here could be mixing.
_JITTERS, _LARGEST_CHANGE = 32.0, 2.0**-12
# What changed samples are multiplied by. What takes the largest value of a batch sees large ones alone; a model may refuse these.
_SMALL, _LARGE = -0.5, -16.0
_WAITS = "waits for the first batch of three samples"
Squares = list[tuple[str, Tensor]]


class RowProbe:
    """Forward pre-hook of the whole model that removes itself when it has done its work; ``outcome`` tells.

    ``asked``: False to look only at a model where something stands in for each sample (``_expanding``), which must pass.
    """

    def __init__(self, module: nn.Module, recorder: Recorder, asked: bool = True) -> None:
        self.recorder, self.asked = recorder, asked
        self.outcome = _WAITS if asked else "off"
        self._running = self._shows_nothing = False
        # Before all other hooks: the model is called from inside.
        self._handle = module.register_forward_pre_hook(self, prepend=True, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._running or not module.training or not torch.is_grad_enabled():
            return
        if not (self.asked or self.recorder.expanded) or not self._may_be_enough((args, kwargs)):
            return
        if saved_tensors_are_hooked():
            reason = "inside a checkpoint or another hook on saved tensors"
            if self.recorder.expanded:
                self._skipped(reason)
            elif self.outcome == _WAITS:  # a later call may be outside of it
                self.outcome = f"waits for a batch that is not {reason}"
                _warn(reason)
            return
        self._running = True
        try:
            self._probe(module, args, kwargs)
        finally:
            self._running = False

    def _least(self) -> int:
        """How many samples there must be."""
        return 2 if self.recorder.expanded else 3

    def _may_be_enough(self, arguments: Any) -> bool:
        """False if the arguments show too few samples: then the model need not run to find that out."""
        sizes = [
            tensor.shape[0 if self.recorder.batch_first else min(1, tensor.dim() - 1)]
            for tensor in tensors_in(arguments)
            if tensor.dim()
        ]
        return not sizes or max(sizes) >= self._least()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _probe(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first, state = self._run(module, args, kwargs)
        if self._shows_nothing:
            self._skipped("the model gives no tensors, alone or in tuples, lists or dicts")
            return
        batch = first[0][1].shape[0] if first else 0
        if not batch or any(len(squares) != batch for _, squares in first):
            return  # of layers that disagree about how many samples there are the step is refused
        self._check_are_samples((args, kwargs), first[0][0], batch)
        if batch < self._least():
            return
        outcomes = []
        kept = batch // 2
        for changed, like, factors in (
            ([i for i in range(batch) if i != kept], kept, [_SMALL]),
            ([1], 2 if batch > 2 else 0, [_LARGE, _SMALL]),
        ):
            found: tuple[Squares, dict[str, Tensor]] | None = None
            reason = ""
            for factor in factors:
                others = _with_other_samples((args, kwargs), changed, like, batch, self.recorder.batch_first, factor)
                if others is None:
                    self._skipped("no argument of the model has the samples in its batch dimension")
                    return
                try:
                    found = self._run(module, *others, changed, batch, factor)
                    break
                except PrivacyError:
                    raise
                except Exception as error:  # noqa: BLE001  a model may refuse what it was not made for
                    self.recorder.drop()
                    reason = f"the model does not take a changed sample ({type(error).__name__}: {error})"
            if found is None:
                self._skipped(reason)
                return
            second, state_after = found
            outcomes.append(self._compared(module, args, kwargs, first, second, changed))
            for name, value in state.items():
                if not equal(value, state_after[name]):
                    raise PrivacyError(f"buffer {name!r} of the model stores what it saw of the samples, without noise")
        if batch > 2:
            self._done(max(outcomes, key=len))

    def _check_are_samples(self, arguments: Any, name: str, batch: int) -> None:
        """Raise PrivacyError if the model is called with tensors alone, none of which has as many rows as its layers see."""
        tensors = [one for one in tensors_in(arguments) if one.dim()]
        if not tensors or not is_plain(arguments):
            return  # the samples may be where they cannot be seen
        if all(_dim_of_samples(one, batch, self.recorder.batch_first) is None for one in tensors):
            raise PrivacyError(
                f"what module {name!r} sees in its batch dimension are not the samples that the model is called with: no argument "
                "has as many (rows of classes, prompts or weights? pairs of samples?). A record may act on all of them, so "
                "clipping bounds nothing"
            )

    def _compared(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        first: Squares,
        second: Squares,
        changed: list[int],
    ) -> str:
        """What can be said of the other samples' gradients; raises PrivacyError if they changed, too."""
        others = [i for i in range(first[0][1].shape[0]) if i not in changed]
        outcome, name = "passed", _where_more(first, second, others, 0.0)
        jitter = self._jitter(module, args, kwargs, first) if name is not None and _adds_in_any_order(first) else 0.0
        if jitter > _LARGEST_CHANGE:
            raise PrivacyError(
                f"whether samples mix cannot be checked: the same batch gives squared norms that differ by {jitter:.2g} of "
                "themselves from run to run; use torch.use_deterministic_algorithms(True), or check_rows=False"
            )
        if jitter:
            outcome = "passed up to rounding: the model's operations do not repeat their bits on this device"
            name = _where_more(first, second, others, min(_JITTERS * jitter, _LARGEST_CHANGE))
        if name is not None:
            raise PrivacyError(
                f"samples mix: changing {'samples' if len(changed) > 1 else 'a sample'} of a batch changed the gradients "
                f"of others in module {name!r}. Per-sample clipping then bounds nothing; no attention, normalisation or "
                "statistics over the batch"
            )
        return outcome

    def _skipped(self, reason: str) -> None:
        if self.recorder.expanded:
            raise PrivacyError(
                f"whether samples mix cannot be checked ({reason}), and in this model something stands in for each sample; "
                "give the positions, or what uses a parameter [1, ...], a row for each sample"
            )
        self._done(f"skipped: {reason}")
        _warn(reason)

    def _jitter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], first: Squares) -> float:
        """The largest change of a sample from ``first`` to another run with the same batch; 0 if bits repeat."""
        for _ in range(_REPEATS):
            again, _state = self._run(module, args, kwargs)
            largest = max(_change(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
            if largest:
                return largest
        return 0.0

    def _done(self, outcome: str) -> None:
        self.outcome = outcome
        self._handle.remove()

    def _run(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        changed: Sequence[int] = (),
        batch: int = 0,
        factor: float = 1.0,
    ) -> tuple[Squares, dict[str, Tensor]]:
        """Squared norms of the samples' gradients, for each use of a layer, and the buffers after a run.

        The loss weighs all results; those of ``changed`` samples, of so many, by ``factor`` times as much.
        """
        with unchanged(module), _without_zeros(module), _repeatable_convolutions():
            output = module(*_detached(args), **_detached(kwargs))
            total: Any = 0.0
            generator = torch.Generator().manual_seed(0)
            results = tensors_in(output)
            self._shows_nothing = not results
            for tensor in results:
                if tensor.requires_grad:
                    weights = torch.randn(tensor.shape, generator=generator)
                    dim = _dim_of_samples(weights, batch, self.recorder.batch_first)
                    if changed and dim is not None:
                        weights.index_copy_(
                            dim, torch.tensor(changed), factor * weights.index_select(dim, torch.tensor(changed))
                        )
                    weights = weights.to(tensor)
                    total = total + (tensor * weights).sum()
            if isinstance(total, Tensor):
                total.backward()  # type: ignore[no-untyped-call]
            state = {name: buffer.clone() for name, buffer in module.named_buffers()}
            with torch.no_grad(), full_precision():
                found = [(use.layer.name, _squares(use)) for use in self.recorder.take()]
        return found, state


def _warn(reason: str) -> None:
    warnings.warn(f"check_rows: whether samples mix was not looked at: {reason}", stacklevel=3)


def _adds_in_any_order(squares: Squares) -> bool:
    """Whether the model may give other bits each time: on a GPU."""
    return squares[0][1].is_cuda


def _where_more(first: Squares, second: Squares, samples: list[int], allowed: float) -> str | None:
    """The first module where one of these samples changed by more than ``allowed``; None if none."""
    for (name, before), (_, after) in zip(first, second, strict=True):
        if before.shape != after.shape or _change(before[samples], after[samples]) > allowed:
            return name
    return None


def _change(before: Tensor, after: Tensor) -> float:
    """By what part of the larger one a value changed at most; infinite where one of the two is not finite."""
    if before.shape != after.shape:
        return math.inf
    parts = ((before - after).abs() / torch.maximum(before, after)).nan_to_num(nan=math.inf)
    parts = parts.masked_fill((before == after) | (before.isnan() & after.isnan()), 0.0)
    return float(parts.max()) if parts.numel() else 0.0


def _squares(use: Use) -> Tensor:
    total = torch.zeros(use.rule.batch, dtype=torch.float64, device=next(iter(use.layer.parameters.values())).device)
    for name in use.layer.parameters:
        rows = use.rule.kept(name)
        if rows is not None:
            total += row_squares(rows)
        else:
            total += (use.norms[name] if name in use.norms else use.rule.norms(name)).squares
    return total


def _dim_of_samples(value: Tensor, batch: int, batch_first: bool) -> int | None:
    """The dimension of ``value`` that the samples seem to be in."""
    dims = (0, 1) if batch_first else (1, 0)
    return next((dim for dim in dims if dim < value.dim() and value.shape[dim] == batch), None)


def _with_other_samples(
    arguments: Any, samples: list[int], like: int, batch: int, batch_first: bool, factor: float
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Arguments in which these samples are others: where they are real ``factor`` times themselves and a little, else the sample
    ``like``. None if there are none."""
    found = False

    def change(value: Tensor) -> Tensor:
        nonlocal found
        dim = _dim_of_samples(value, batch, batch_first)
        if dim is None:
            return value
        found = True
        rows, value = torch.tensor(samples, device=value.device), value.detach()
        others = value.index_select(dim, rows)
        if value.is_floating_point():
            others.mul_(factor).add_(-0.5 * factor)
        else:
            others.copy_(value.narrow(dim, like, 1))
        return value.clone().index_copy_(dim, rows, others)  # laid out as it was: to the bit, operations depend on that

    args, kwargs = mapped(arguments, change)
    return (args, kwargs) if found else None


@contextmanager
def _without_zeros(module: nn.Module) -> Iterator[None]:
    """Inside, parameters that are all zero are random; afterwards they are as they were."""
    zeros = [p for p in module.parameters() if p.is_floating_point() and p.numel() and not p.detach().any()]
    with torch.no_grad():
        for parameter in zeros:
            parameter.normal_().div_(
                math.sqrt(max(1, parameter.numel() // parameter.shape[0]) if parameter.dim() else 1)
            )
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()


@contextmanager
def _repeatable_convolutions() -> Iterator[None]:
    """Inside, cuDNN takes no algorithm by its time, and none that adds in any order."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _detached(value: Any) -> Any:
    return mapped(value, lambda tensor: tensor.detach())
