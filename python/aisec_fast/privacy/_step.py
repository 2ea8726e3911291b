"""The private step: hooks around the user's ``optimizer.step`` that clip, sum, book, add noise and update."""

from __future__ import annotations

import functools
import math
import operator
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import zip_longest
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._errors import PrivacyError
from .._sources import Source
from .._update import Noise
from . import _charges, _native, _optimizers, _together
from ._charges import Rounding
from ._clip import Batch, Norms, Total, clip
from ._layers import (
    LinearGradients,
    add_products,
    add_rows,
    chunks,
    kept_squares,
    measure_single_positions,
    row_squares,
)
from ._precision import full_precision
from ._probe import RowProbe
from ._recording import Recorder, Seen, Use, are_ours, changed, is_called_from
from ._replays import Replays
from ._sampling import Part, Tally
from ._written import Written, is_zero


@dataclass
class Mechanism:
    """What a step releases: the noisy sum of clipped gradients, over the divisor. Schedulers change the numbers."""

    noise_multiplier: float
    max_grad_norm: float  # over all parameters
    shares: dict[str, float]  # per_layer: of each parameter in max_grad_norm; else empty
    clipping: str
    divisor: float
    most_samples: int  # in one logical batch
    mean_loss: bool


class PrivateStep:
    """Optimizer step pre-hook: clip and sum the samples; at the last part of a batch book the step and release the noisy mean.

    The mean becomes ``.grad``, for the optimizer to use; or, where a kernel takes the optimizer's step together with the
    noise, the optimizer finds no gradients, does nothing, and the post-hook ``after`` shows the mean.
    """

    def __init__(
        self,
        module: nn.Module,
        recorder: Recorder,
        mechanism: Mechanism,
        source: Source,
        tally: Tally,
        book: Callable[[Part], None],
    ) -> None:
        self.module, self.recorder, self.mechanism, self.source = module, recorder, mechanism, source
        self.tally, self.book = tally, book
        self.trainable = trainable(module)
        self.size = sum(p.numel() for p in self.trainable.values())
        self.written = Written(self.trainable, recorder.lasting)
        self.float_charge = 0.0  # the largest so far, as a part of max_grad_norm
        self.sums: Sums | None = None  # of a logical batch whose last part has not come
        self.sigma: float = 0.0
        self.granularity: float | None = None
        self.replays: Replays | None = None
        self.not_fused: str | None = None  # why the latest step was torch's own
        self.probe: RowProbe | None = None
        self.forms: dict[str, str] = {}
        # Each gives uses of layers by samples that no data set holds, for every logical batch: canaries of an audit.
        self.guests: list[Callable[[], list[Use]]] = []
        # The call of the optimizer's step that goes on. Its class may call the step of the one it is made from, and torch calls
        # the hooks for that one, too.
        self.going_on: FrameType | None = None
        self._means: dict[nn.Parameter, Tensor] = {}
        self._warned = False  # of samples that are fewer than records
        self._charged: dict[int, list[Rounding]] | None = None  # the latest roundings, of one part, that are paid for
        # What of the module and of the optimizer was trainable when they were last looked at by name. The objects, not
        # their identities, which a new object may take over.
        self._same: list[nn.Parameter] | None = None

    def info(self) -> dict[str, Any]:
        """See :meth:`PrivacyEngine.info`."""
        mechanism = self.mechanism
        lattice = (self.granularity or 0.0) * math.sqrt(self.size) / mechanism.max_grad_norm
        return {
            "noise_multiplier": mechanism.noise_multiplier,
            "max_grad_norm": mechanism.max_grad_norm,
            "clipping": mechanism.clipping,
            "sigma": self.sigma,
            "charges": {"float": self.float_charge, "lattice": lattice},
            "update": "fused" if self.not_fused is None else f"torch: {self.not_fused}",
            "forms": self.forms,
            "cuda_graph": "off" if self.replays is None else self.replays.outcome,
            "check_rows": "off" if self.probe is None else self.probe.outcome,
        }

    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(value is not None and value is not optimizer for value in (*args, *kwargs.values())):
            raise PrivacyError(
                "optimizer.step(closure) evaluates the loss inside the step, which is not private; "
                "call loss.backward() and then optimizer.step() without arguments"
            )
        on_cuda = any(p.is_cuda for p in self.trainable.values())  # now: the module may have moved
        if on_cuda and torch.cuda.is_current_stream_capturing():
            raise PrivacyError(
                "a private step cannot be recorded in a CUDA graph: each replay would add the same noise, and nobody would "
                "account for it. What norms and sums cost is recorded by the engine itself (its argument cuda_graph)"
            )
        self._check_same(optimizer)
        if self.going_on is not None and is_called_from(self.going_on):
            return  # the noisy mean is in .grad already
        self.going_on = None
        self.written.check()
        seen, uses = self.recorder.seen, self.recorder.take()
        if not uses:
            self._check_nothing(seen)
        samples = uses[0].batch if uses else 0
        waiting = self.tally.waiting(samples)
        part = self.tally.next(samples)
        if samples and part.records is not None and (samples != part.records or waiting > 1):
            self._check_records(uses, samples, part.records, waiting)
        self.written.forget()  # whose memory may be used again
        with torch.no_grad():
            for parameter in self.trainable.values():
                parameter.grad = None  # so that the optimizer changes nothing, unless a release sets it
            if part.first:
                # How many parts there may be, not how many there are: sigma must not tell the size of the batch.
                most_parts = math.ceil(self.mechanism.most_samples / part.largest) if part.largest else 1
                # A schedule may go on between two parts: all of a batch is clipped to the norm that it began with.
                at_start = replace(self.mechanism)
                spare = self._spare()
                self.sums = Sums(self.trainable, at_start, spare, most_parts + len(self.guests), self.replays)
            elif self.sums is None:
                raise PrivacyError(
                    "an earlier part of this batch failed, so it cannot be finished; go on with the next batch"
                )
            sums, self.sums = self.sums, None
            sums.add(uses, part)
            if part.last:
                for invite in self.guests:
                    with full_precision():
                        sums.add(invite())
                self._release(optimizer, sums, part)
            else:
                self.sums = sums
        self.going_on = sys._getframe(1)

    def _check_same(self, optimizer: Optimizer) -> None:
        """Raise PrivacyError if parameters were frozen, added or exchanged since make_private."""
        now = _trainable_in_order(self.module)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        trained = [p for p in held if p.requires_grad]
        now += trained
        if self._same is None or len(now) != len(self._same) or not all(map(operator.is_, now, self._same)):
            check_same(trainable(self.module), self.trainable, optimizer)
            self._same = now
        if len(trained) != len(held):
            check_frozen(self.module, held)

    def _check_nothing(self, seen: Seen) -> None:
        """Raise PrivacyError unless a step without gradients is one on no records: it would release noise alone."""
        if seen is Seen.SAMPLES:
            raise PrivacyError(
                "the model has run, but no gradient has come back to a layer of it: call backward() of a loss of its output, "
                "without inputs= (those of a private model are not in the graph)"
            )
        if seen is Seen.NOTHING and not self.tally.waiting(0):
            raise PrivacyError(
                "since the last step no layer of the model has run in training, and the loader has handed out no empty batch: "
                "this step would be noise alone. Either there was no forward and backward pass, or zero_grad() came after it, "
                "or it went past the engine's hooks (a CUDA graph of your own, torch.cuda.make_graphed_callables, "
                "torch.func with another copy of the model). Call the model that make_private has returned, and leave "
                "recording to the engine (its argument cuda_graph); run the model on batches without samples, too"
            )

    def _check_records(self, uses: list[Use], samples: int, records: int, waiting: int) -> None:
        """Raise PrivacyError, or warn once, where a sample seems not to be a record. ``waiting``: batches of so many records."""
        calls = min(Counter(id(use.layer) for use in uses).values())  # of the whole model, at most
        if calls > 1 and calls * samples == records:
            raise PrivacyError(
                "the loader's batch went through the model in parts of one step: rows of different records would count as one "
                "sample. Let the loader make the parts (max_physical_batch_size), each with its backward() and step()"
            )
        reason = None
        if samples < records and not waiting:
            # Whether the loop has left out records cannot be told from here.
            reason = (
                "a step has fewer samples than the loader's batch has records. If the loop has left records out, all is well; if "
                "not, clipping bounds nothing: what the layers see in dimension 0 are no samples then, but steps of time "
                "(batch_first=False), classes, prompts or pairs of records"
            )
        elif 1 < calls <= waiting:
            reason = (
                "the model was called several times for a step while several batches wait. If all calls were on one of them, all "
                "is well; if not, rows of different records count as one sample, and a record moves the sum by more "
                "than max_grad_norm: one batch a step"
            )
        if reason is not None and not self._warned:
            self._warned = True
            warnings.warn(reason, stacklevel=4)

    def _release(self, optimizer: Optimizer, sums: Sums, part: Part) -> None:
        """Book the step, add the noise and take the mean; take the optimizer's step too where a kernel does it all."""
        mechanism = replace(sums.mechanism, noise_multiplier=self.mechanism.noise_multiplier)
        # Of replayed steps the roundings are the same; what may be added up is not, where batches come in parts.
        if sums.most_parts > 1 or sums.roundings is not self._charged:
            self.float_charge = max(self.float_charge, sums.float_charge())
            self._charged = sums.roundings if sums.most_parts == 1 else None
        self.book(part)  # before anything of this step can be seen
        self.sigma, self.granularity = 0.0, None
        if mechanism.noise_multiplier > 0:
            self.sigma, self.granularity = _charges.noise_scale(
                mechanism.noise_multiplier, mechanism.max_grad_norm, self.float_charge, self.size
            )
        # Values that do not fit the lattice saturate: raising would tell about the data.
        noise = Noise(self.sigma, self.granularity, self.source)
        totals = dict(zip(self.trainable.values(), sums.take(), strict=True))
        self.not_fused = _optimizers.why_not_fused(optimizer, self)
        if self.not_fused is None:
            _optimizers.step(optimizer, totals, noise, mechanism.divisor)
            self._means = totals
        else:
            _optimizers.noisy_means(totals.values(), noise, mechanism.divisor)
            for parameter, mean in totals.items():
                parameter.grad = mean
            self.written.accept()

    def after(self, _optimizer: Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        """Post-hook: show the noisy means that a fused step has used."""
        if self.going_on is sys._getframe(1):
            self.going_on = None
        for parameter, mean in self._means.items():
            parameter.grad = mean
        self.written.accept()
        if not self.recorder.lasting:
            self._means = {}

    def _spare(self) -> dict[nn.Parameter, Tensor]:
        """Memory of the last step's means that nobody else holds any more."""
        if not self.recorder.lasting:
            return {}
        parameters, means = list(self._means), list(self._means.values())
        self._means = {}
        return {p: mean for p, mean, ours in zip(parameters, means, are_ours(means), strict=True) if ours}


class Sums:
    """The clipped sum of one logical batch, parameter by parameter; its parts may come one after the other."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        mechanism: Mechanism,
        spare: dict[nn.Parameter, Tensor],
        most_parts: int,
        replays: Replays | None = None,
    ) -> None:
        self.parameters, self.mechanism, self.most_parts = parameters, mechanism, most_parts
        self.replays = replays
        self.totals = {id(p): Total(p, spare.get(p)) for p in parameters.values()}
        self.samples = 0
        self.roundings: dict[int, list[Rounding]] = {}  # of each use, by parameter
        self.products_charge = 0.0

    def add(self, found: list[Use], part: Part | None = None) -> None:
        """Clip the samples of one backward pass and add them; ``part`` is None for those that no data set holds.

        Raises PrivacyError if uses disagree on the batch size, or it is above the part's records, where they are known.
        """
        size = batch_of(found)
        if part is not None and part.records is not None and size > part.records:
            # No numbers: how many records a batch has is a secret.
            raise PrivacyError(
                "the step has more samples than the loader's batch has records: then a record may count several times, with "
                "max_grad_norm each time. One batch a step, and one sample a record, also of several views or positions"
            )
        for use in found:
            use.check()
        self.samples += size
        if self.samples > self.mechanism.most_samples:
            raise PrivacyError(
                f"a batch of {self.samples} samples, where at most {self.mechanism.most_samples} were declared: the mean "
                "is over the expected batch of the data_loader given to make_private, so pass it one with larger batches"
            )
        batch = Batch.of(size, self.mechanism.max_grad_norm, mean_loss=self.mechanism.mean_loss)
        if part is None or self.replays is None or not self._add_replayed(self.replays, found, batch, part):
            self.add_measured(found, batch)

    def _add_replayed(self, replays: Replays, found: list[Use], batch: Batch, part: Part) -> bool:
        """The same by a recorded step, if there is one, or one can be recorded."""

        done = replays.sums(found, batch, functools.partial(_sums_of, self.parameters, self.mechanism))
        if done is None:
            return False
        self._charge(done.roundings, done.products_charge)
        for total, key in zip(done.totals, self.totals, strict=True):
            # What is replayed writes there again; of a batch of one part the sum is released before.
            self.totals[key].add(total if part.whole else total.clone())
        return True

    def add_measured(self, found: list[Use], batch: Batch) -> None:
        """Clip and add samples, with norms and sums made here and now."""
        uses: dict[int, list[tuple[str, Use]]] = {id(p): [] for p in self.parameters.values()}
        by_torch = False
        for use in found:
            for name, parameter in use.layer.parameters.items():
                uses[id(parameter)].append((name, use))
            by_torch |= use.needs_torch()
        for of_parameter in uses.values():
            for _, use in of_parameter:
                use.rule.alone &= len(of_parameter) == 1
        roundings = {key: [use.rule.rounding(name) for name, use in of_parameter] for key, of_parameter in uses.items()}
        self._charge(roundings, _charges.products_charge(roundings.values()))
        if not batch.size:  # an empty batch, or no backward at all
            return
        by_torch = by_torch or any(len(of_parameter) > 1 for of_parameter in uses.values())
        with full_precision() if by_torch else nullcontext():
            _together.measure(found)
            if self.mechanism.clipping == "per_layer":
                for name, parameter in self.parameters.items():
                    bound = batch.max_norm * self.mechanism.shares[name]
                    self._add_clipped({id(parameter): uses[id(parameter)]}, batch, bound)
            else:
                self._add_clipped(uses, batch, batch.max_norm)

    def _charge(self, roundings: dict[int, list[Rounding]], products_charge: float) -> None:
        """Take account of the sums of one backward pass."""
        before, self.roundings = self.roundings, roundings
        if before:
            self.roundings = {
                key: [one.worst(other) for one, other in zip_longest(before[key], found, fillvalue=Rounding())]
                for key, found in roundings.items()
            }
        # A sample is in the blocks of one part only.
        self.products_charge = max(self.products_charge, products_charge)

    def _add_clipped(self, uses: dict[int, list[tuple[str, Use]]], batch: Batch, max_norm: float | Tensor) -> None:
        """Clip over the parameters of ``uses`` together."""
        measure_single_positions([use for of_parameter in uses.values() for _, use in of_parameter])
        kept: dict[int, Tensor] = {}
        unmeasured: list[int] = []
        parts: list[Norms] = []
        for key, of_parameter in uses.items():
            name, use = of_parameter[0] if of_parameter else ("", None)
            if use is not None and len(of_parameter) == 1 and (rows := use.rule.kept(name)) is not None:
                kept[key] = rows
                del rows
            if key in kept and use is not None and name not in use.norms:
                unmeasured.append(key)
            elif of_parameter:
                parts.append(measured(of_parameter, batch.size, self.totals[key].parameter))
        beside: _together.Beside | None = None
        if unmeasured:
            if _native.on_gpu(kept[unmeasured[0]]):
                beside = _together.Beside({key: kept[key] for key in unmeasured})
            squares = kept_squares([kept[key] for key in unmeasured] if beside is None else beside.rows)
            parts.append(Norms(squares, squares))
        if not parts:
            return
        weights = clip(parts, batch, max_norm, self.mechanism.clipping)
        # Sums let go of what they were made of as they come: the gradients that were kept, then layer by layer.
        products = sorted((key for key in uses if key not in kept), key=lambda key: self._place(key, uses[key]))
        if kept:
            rest = kept if beside is None else {key: rows for key, rows in kept.items() if key not in unmeasured}
            if beside is not None:
                beside.add(self.totals, weights)
                beside = None
            if rest:
                add_rows([(rows, self.totals[key]) for key, rows in rest.items()], weights)
            for key in kept:
                name, use = uses[key][0]
                use.added(name)
            kept.clear()
        # Where a sum has its memory already nothing is to be let go of first: all such products in one call.
        at_once: dict[int, LinearGradients] = {}
        for key in products:
            if len(uses[key]) == 1 and self.totals[key].ready():
                name, use = uses[key][0]
                if isinstance(use.rule, LinearGradients) and use.rule.has_product(name):
                    at_once[key] = use.rule
        add_products([(rule, self.totals[key]) for key, rule in at_once.items()], weights)
        for keys in _together.in_stacks(products, lambda key: uses[key][0][1].rule if len(uses[key]) == 1 else None):
            if len(keys) > 1:
                _together.add_stack([(uses[key][0][1].rule, self.totals[key]) for key in keys], weights)
            for key in keys:
                for name, use in uses[key]:
                    if key not in at_once and len(keys) == 1:
                        use.rule.add_total(name, weights, self.totals[key])
                    use.added(name)

    def _place(self, key: int, uses: list[tuple[str, Use]]) -> tuple[bool, int]:
        """For sorting, to need little memory: first sums that let go of more than they are, small ones first, then those that
        let go of most."""
        held, size = sum(use.rule.held() for _, use in uses), self.totals[key].parameter.numel()
        return held < size, size if held >= size else -held

    def float_charge(self) -> float:
        """How far rounding can move the sum when one sample does, as a part of max_grad_norm (docs/privacy.md)."""
        most = self.mechanism.most_samples
        adding = 0.0
        for key, uses in self.roundings.items():
            additions = sum(math.ceil(most / (found.samples or most)) + self.most_parts for found in uses)
            dtype = self.totals[key].parameter.dtype
            adding = max(adding, _charges.adding_charge(most, additions, dtype, alone=len(uses) <= 1))
        return self.products_charge + adding

    def take(self) -> list[Tensor]:
        """The sums, in the order of the parameters."""
        return [self.totals[id(p)].take() for p in self.parameters.values()]


def _sums_of(parameters: dict[str, nn.Parameter], mechanism: Mechanism, uses: list[Use], batch: Batch) -> Sums:
    """The sums of one backward pass alone."""
    sums = Sums(parameters, mechanism, {}, 1)
    sums.add_measured(uses, batch)
    return sums


def batch_of(uses: list[Use]) -> int:
    """The number of samples that all uses agree on; 0 without uses."""
    for use in uses:
        if use.batch != uses[0].batch:
            first, other = (u.layer.name or type(u.layer.module).__name__ for u in (uses[0], use))
            raise PrivacyError(
                f"modules see different batch sizes: {first!r} {uses[0].batch}, {other!r} {use.batch}. Every "
                "covered layer must have the samples in its batch dimension (an embedding of positions: a row of "
                "positions a sample)"
            )
    return uses[0].batch if uses else 0


def measured(uses: list[tuple[str, Use]], batch: int, parameter: Tensor) -> Norms:
    """Norms of the samples' gradients of one parameter."""
    if len(uses) == 1:
        name, use = uses[0]
        return use.norms[name] if name in use.norms else use.rule.norms(name)
    # Used several times (tied weights, a module called twice): the norm of the sum needs the gradients themselves.
    parts = []
    for start, stop in chunks(batch, parameter.numel()):
        parts.append(row_squares(functools.reduce(torch.add, (use.rule.rows(n, start, stop) for n, use in uses))))
    squares = torch.cat(parts)
    lengths, error = torch.zeros_like(squares), torch.zeros_like(squares)
    for name, use in uses:
        length = use.rule.norms(name).spreads.sqrt()
        lengths += length
        error += _charges.gamma(use.rule.terms(name) + len(uses), parameter.dtype) * length
    upper = (squares.sqrt() + error).square()
    return Norms(upper, torch.maximum(lengths.square(), upper))


def step_of(optimizer: Optimizer) -> PrivateStep:
    """The private step of an optimizer; ValueError if it has none."""
    for hook in getattr(optimizer, "_optimizer_step_pre_hooks", {}).values():
        if isinstance(hook, PrivateStep):
            return hook
    raise ValueError("optimizer is not private; pass the one that PrivacyEngine.make_private has returned")


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's parameters that require grad, each once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _trainable_in_order(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that require grad, in an order of the tree: without their names, which take most of the time."""
    found: list[nn.Parameter] = []
    waiting: list[nn.Module | None] = [module]
    seen: set[nn.Module] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.add(one)
            parameters: dict[str, nn.Parameter | None] = one._parameters
            found += [p for p in parameters.values() if p is not None and p.requires_grad]
            waiting += one._modules.values()
    return found


def check_frozen(module: nn.Module, held: list[nn.Parameter]) -> None:
    """Raise PrivacyError if the optimizer would move a frozen parameter that it holds: by a gradient without noise."""
    for frozen in held:
        if not frozen.requires_grad and frozen.grad is not None and not is_zero(frozen.grad):
            name = next((name for name, p in module.named_parameters() if p is frozen), "of no name")
            raise PrivacyError(
                f"the frozen parameter {name!r} has a .grad, by which the optimizer would move it without noise: it was not "
                "frozen in some backward pass. Call optimizer.zero_grad() and leave it frozen, or make private a fresh model "
                "in which it is not"
            )


def check_same(now: dict[str, nn.Parameter], then: dict[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Raise PrivacyError if parameters were frozen, added or exchanged since make_private."""
    known = {id(p) for p in then.values()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    for name in now.keys() | then.keys():
        if now.get(name) is not then.get(name):
            raise changed(name)
    if held != known:
        raise PrivacyError(
            "the optimizer's parameters changed since make_private; call make_private again with a fresh model"
        )
