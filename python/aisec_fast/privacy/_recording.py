"""Record what each covered layer saw and what gradient came back, in one backward pass, and measure it there.

During its forward a covered layer's own parameters do not require grad, so autograd builds no weight-gradient nodes.
The node that made its output is then watched: when the backward pass arrives there, (activation, output gradient) is
recorded. An output without a node (of an Embedding, or inside a checkpoint) goes through a *tap*, an identity with a
backward of its own. The sums over the batch that a plain backward would leave in ``.grad`` are never computed.
"""

from __future__ import annotations

import enum
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as everybodys
from torch.utils.hooks import RemovableHandle

from .._errors import PrivacyError
from . import _native
from ._clip import Norms
from ._coverage import CoveredLayer
from ._layers import EmbeddingGradients, LayerGradients, Memory, Statistics
from ._own_layers import Attributes, Calls, Form, Others, OwnLayerGradients, attributes_of, versions_of
from ._precision import full_precision
from ._rules import STATISTICAL
from ._values import mapped, tensors_in

_SECOND_PASS = "a second backward pass through the same graph (retain_graph=True)"


class Record(NamedTuple):
    """What a layer saw, what gradient came back, and what its forward has computed, all with samples first; or, of a layer
    without a rule, what else it was called with."""

    activation: Tensor
    gradient: Tensor
    statistics: Statistics | Others | None = None

    def tensors(self) -> list[Tensor]:
        """All there are."""
        return [self.activation, self.gradient, *(self.statistics or ())]

    def rule(
        self,
        layer: CoveredLayer,
        memory: Memory | None = None,
        sparing: bool = False,
        settings: tuple[Any, ...] | None = None,
    ) -> LayerGradients:
        """The layer's rule for it; ``settings``: the layer's, when it was called."""
        if settings:
            layer.check(settings)
        make: Callable[..., LayerGradients] = layer.rule
        made = make(layer.module, *self, memory, sparing)
        if isinstance(made, OwnLayerGradients):
            made.trained = layer.parameters
        return made


class Use:
    """One use of a layer in a step: its rule, and what has been measured of it.

    ``made``: the rule, or what makes it of the record when it is first asked for.
    """

    def __init__(
        self,
        layer: CoveredLayer,
        made: LayerGradients | Callable[[Record], LayerGradients],
        record: Record | None = None,
    ) -> None:
        self.layer, self.record = layer, record
        self._rule: LayerGradients | None = None
        self._make: Callable[[Record], LayerGradients] | None = None
        if isinstance(made, LayerGradients):
            self._rule, self.batch = made, made.batch
        else:
            assert record is not None
            self._make, self.batch = made, len(record.gradient)
        self.norms: dict[str, Norms] = {}  # those that are known before all gradients are
        self._open = set(layer.parameters)  # those whose sums are still to be made
        self._versions: list[int] | None = None  # of what the sums will be made of, once norms are taken

    @property
    def rule(self) -> LayerGradients:
        """The rule; after this there is no record any more, only what the rule makes of it."""
        if self._rule is None:
            assert self._make is not None
            assert self.record is not None
            self._rule, self.record = self._make(self.record), None
        return self._rule

    def added(self, name: str) -> None:
        """The sum of parameter ``name`` is made. After the last one, what the layer saw and what came back is let go."""
        self._open.discard(name)
        if not self._open:
            self._rule = self._make = None

    def seal(self) -> None:
        """From now on what the sums will be made of may not change: norms are taken of it as it is."""
        self._versions = [one._version for one in self._made_of()]

    def _made_of(self) -> list[Tensor]:
        return self.rule.made_of() if self.record is None else self.record.tensors()

    def check(self) -> None:
        """Raise PrivacyError if it has changed since: clipping would be by the norms of other values."""
        if self._versions is not None and self._versions != [one._version for one in self._made_of()]:
            raise PrivacyError(
                f"what module {self.layer.name!r} read, or the gradient of what it gave, was changed in place between "
                "backward() and optimizer.step(); change it after the step, or work on a copy"
            )

    def needs_torch(self) -> bool:
        """Whether norms or sums that are still to be made may take products or convolutions of torch."""
        return not self.rule.forgotten and (self.rule.measures_by_torch() or self.rule.adds_by_torch())

    def measure(self) -> None:
        """Take norms, and keep small gradients in place of what they are made of."""
        rule = self.rule
        kept = [rule.kept(name) is not None for name in self.layer.parameters]
        for name, is_kept in zip(self.layer.parameters, kept, strict=True):
            if not is_kept or name in rule.kept_squares:
                self.norms[name] = rule.norms(name)
        if all(kept):
            rule.forget()


class Trial:
    """A forward that is not recorded, with rows for each sample of these layers (``_expanding``)."""

    def __init__(self, expanded: set[int]) -> None:
        self.expanded = expanded
        self.without_samples: set[int] = set()  # identities of embeddings that were not called with a row for each


class Seen(enum.Enum):
    """What layers have been called with in training since the last ``drop``."""

    NOTHING = enum.auto()  # they have not
    NO_SAMPLES = enum.auto()
    SAMPLES = enum.auto()


class Recorder:
    """The uses in one backward pass. A second pass before they are taken is an error that stays until ``drop``.

    ``lasting``: whether memory may be held from one pass to the next, to be used again.
    """

    def __init__(self, batch_first: bool = True, lasting: bool = True) -> None:
        self.batch_first, self.lasting = batch_first, lasting
        self.late = False  # whether all is measured in the step
        self._uses: list[Use] = []
        self._forwards: Counter[int] = Counter()  # calls of each layer since the last ``drop``
        self._settings: dict[int, tuple[Any, ...]] = {}  # of each layer in its latest call
        self._pass: int | None = None
        self._failure: str | None = None
        self._memory, self._layouts = _Memory(), _Memory()
        self._streams: set[tuple[int, int, int]] = set()  # of a GPU, on which uses were recorded
        self._samples: int | None = None  # of the model's latest forward in training
        self._depth = 0  # of the model's forwards that go on: the check of rows calls it from inside
        self.expanded: set[int] = set()  # identities of layers that get a row for each sample
        self.trial: Trial | None = None
        self.seen = Seen.NOTHING
        self.trained: dict[int, nn.Parameter] = {}  # all parameters whose gradients are recorded, by identity
        self.frozen: set[int] = set()  # identities of parameters of layers whose forward runs
        # An input of the tap that requires grad: a layer whose own input requires none is recorded too.
        self.anchor = torch.zeros(1, requires_grad=True)

    def model_begins(self, samples: int | None) -> None:
        """The model's forward begins, in training, with so many samples; None if they cannot be counted."""
        self._samples, self._depth = samples, self._depth + 1

    def model_ends(self) -> None:
        """The model's forward has ended."""
        self._depth = max(0, self._depth - 1)

    def samples(self, layer: CoveredLayer) -> int:
        """How many samples the model's forward has that runs, or that a checkpoint repeats in the backward pass."""
        if self._samples is None or not (self._depth or torch._C._current_graph_task_id() >= 0):
            names = " and ".join(repr(f"{layer.name}.{name}".lstrip(".")) for name in layer.parameters)
            raise PrivacyError(
                f"{names} needs a row for each sample, but how many there are cannot be seen: call the model that make_private "
                "has returned, as a whole, with samples in dimension 0 of its first tensor"
            )
        return self._samples

    def for_samples(
        self, layer: CoveredLayer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Tokens [T] or [1, ...], of all samples, as [B, ...]."""
        count = self.samples(layer)

        def repeated(tokens: Tensor) -> Tensor:
            if tokens.dim() == 1:
                return tokens.expand(count, *tokens.shape)
            return tokens.expand(count, *tokens.shape[1:]) if tokens.shape[:1] == (1,) else tokens

        return mapped(args, repeated), mapped(kwargs, repeated)

    def called(self, layer: CoveredLayer, output: Tensor) -> None:
        """A training forward of ``layer`` happened."""
        if layer.rule.settings:
            if self._forwards[id(layer)]:
                layer.check(self._settings[id(layer)])
            self._settings[id(layer)] = layer.settings()
        self._forwards[id(layer)] += 1
        if self.seen is not Seen.SAMPLES:
            self.seen = Seen.SAMPLES if output.numel() else Seen.NO_SAMPLES
        self._check_not_captured(output)

    def taken(self, gradient: Tensor) -> Tensor:
        """``gradient`` as it came back to a layer, with values in memory as they are; one that has several is refused."""
        gradient = _in_memory(gradient)
        if not torch._C._has_storage(gradient):
            self.fail(
                "several gradients at a time (is_grads_batched=True, or a transform of torch.func) are not recorded"
            )
        return gradient

    def add(
        self, layer: CoveredLayer, activation: Tensor, gradient: Tensor, statistics: Statistics | Others | None
    ) -> Use:
        """Keep one use, during a backward pass; it is for the caller to have it measured."""
        number = torch._C._current_graph_task_id()
        if self._pass is not None and number != self._pass:
            self.fail(
                "two backward passes before optimizer.step(): add the losses and call backward() once; "
                "if the first pass was not meant for training, call optimizer.zero_grad() after it "
                "(reentrant checkpointing also makes several passes: use_reentrant=False)"
            )
        self._pass = number
        self._check_not_captured(gradient)
        if gradient.is_cuda:  # autograd runs a layer's backward on the stream of its forward
            self._streams.add(torch._C._cuda_getCurrentStream(gradient.get_device()))
        memory = partial(self._memory.take, layer) if self.lasting else None
        settings = self._settings.get(id(layer))
        make = partial(Record.rule, layer=layer, memory=memory, sparing=not self.lasting, settings=settings)
        use = Use(layer, make, self._record(layer, activation, gradient, statistics))
        self._uses.append(use)
        return use

    def laid_out(self, layer: CoveredLayer, gradient: Tensor) -> Tensor:
        """A contiguous copy of ``gradient``."""
        if not self.lasting or _native.on_gpu(gradient):
            return gradient.contiguous()
        self._layouts.let_go(layer)
        return self._layouts.take(layer, gradient.shape, dtype=gradient.dtype, device=gradient.device).copy_(gradient)

    def measure(self, use: Use) -> None:
        """Measure what only this use needs, while it is in cache."""
        if self.late:
            use.seal()
            return
        try:
            if not use.layer.shares and self._forwards[id(use.layer)] == 1 and not use.rule.measured_later():
                if use.rule.measures_by_torch():
                    with torch.no_grad(), full_precision():
                        use.measure()
                else:  # nothing that asks for a precision, or that autograd could record
                    use.measure()
        except Exception as error:
            self._uses.clear()
            self._failure = f"{type(error).__name__}: {error}"  # a step would be on a part of the model
            raise
        use.seal()

    def _record(
        self, layer: CoveredLayer, activation: Tensor, gradient: Tensor, statistics: Statistics | Others | None
    ) -> Record:
        inner = layer.rule.position_rank(layer.module)
        if activation.dim() <= inner:
            self.fail(
                f"module {layer.name!r} got an input of shape {tuple(activation.shape)}: it has no batch dimension"
            )
        samples_first = self.batch_first or getattr(layer.module, "samples_first", False)
        if not samples_first and layer.rule.takes_any_parameters:
            self.fail(
                f"module {layer.name!r} has no rule of its own, and batch_first=False: samples are not found there"
            )
        if not samples_first and layer.rule.takes_sequences and activation.dim() > inner + 1:
            activation, gradient, statistics = activation.transpose(0, 1), gradient.transpose(0, 1), None
        dtype = next(iter(layer.parameters.values())).dtype
        if dtype not in (torch.float32, torch.float64):
            self.fail(f"parameters of module {layer.name!r} are {dtype} now; float32 or float64 is needed")
        if isinstance(statistics, Others):
            statistics = Others.of(
                [one.to(dtype) if one.is_floating_point() else one for one in statistics], statistics.form
            )
        if activation.is_floating_point() and activation.dtype != dtype:
            activation = activation.to(dtype)
            statistics = statistics if isinstance(statistics, Others) else None
        return Record(activation, gradient if gradient.dtype == dtype else gradient.to(dtype), statistics)

    def _check_not_captured(self, values: Tensor) -> None:
        """A recording of the user's is replayed without the engine: what it records here would be all it ever sees."""
        if _is_captured(values):
            self.fail(
                "a private model cannot train inside a CUDA graph (torch.cuda.graph, torch.cuda.make_graphed_callables): its "
                "replays would go past the engine, and steps would be noise alone. What norms and sums cost is recorded by "
                "the engine itself (its argument cuda_graph)"
            )

    def only_once(self, ctx: Any) -> None:
        """Fail if a backward pass has been at this node: after a step the parameters are no longer those of its forward."""
        if ctx.is_done:
            self.fail(_SECOND_PASS)
        ctx.is_done = True

    def fail(self, message: str) -> NoReturn:
        """Raise PrivacyError, now and at every later step until ``drop``: what has been recorded cannot be trusted."""
        self._uses.clear()
        self._failure = message
        raise PrivacyError(message)

    def take(self) -> list[Use]:
        """Return the uses and forget them."""
        if self._failure is not None:
            raise PrivacyError(
                f"this step cannot be private ({self._failure}); call optimizer.zero_grad() and start it again"
            )
        uses = self._uses
        for number, index, kind in self._streams:
            if torch._C._cuda_getCurrentStream(index) != (number, index, kind):
                stream = torch.cuda.Stream(stream_id=number, device_index=index, device_type=kind)  # type: ignore[no-untyped-call]
                torch.cuda.current_stream(index).wait_stream(stream)
        self.drop()
        return uses

    def drop(self) -> None:
        """Forget everything, also a failure."""
        self._uses, self._pass, self._failure, self.seen = [], None, None, Seen.NOTHING
        self._forwards.clear()
        self._streams.clear()
        self._memory.busy.clear()
        self._layouts.busy.clear()


def is_called_from(call: FrameType) -> bool:
    """Whether ``call`` is one of those that lead here."""
    frame = sys._getframe(1).f_back
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is call


def _is_captured(values: Tensor) -> bool:
    return values.is_cuda and torch.cuda.is_current_stream_capturing()


def is_alone(tensor: Tensor) -> bool:
    """Whether no other tensor, array or view shares the memory of ``tensor``."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None or not hasattr(tensor, "_use_count"):
        return False
    return bool(tensor._use_count() == 1 and count(tensor.untyped_storage()._cdata) == 2)  # its own, the one just made


def are_ours(tensors: list[Tensor]) -> list[bool]:
    """Of each whether it is in this list alone, and so is its memory.

    How many references Python and torch themselves have to what is counted depends on their versions: so one that nobody
    holds is counted the same way.
    """
    free = torch.empty(0)
    *in_storages, of_free = _references(
        [one.untyped_storage() for one in (*tensors, free)]
    )  # one object for all who ask
    alone = _references([object()])[0]
    counts = zip(tensors, _references(tensors), in_storages, strict=True)
    return [count == alone and of_storage == of_free and is_alone(one) for one, count, of_storage in counts]


def _references(objects: Sequence[object]) -> list[int]:
    return [sys.getrefcount(one) for one in objects]


class _Memory:
    """Memory for kept gradients, used again in the next pass: fresh pages cost more than what is written to them."""

    def __init__(self) -> None:
        self.blocks: dict[int, Tensor] = {}
        self.busy: set[int] = set()

    def take(self, layer: CoveredLayer, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Like torch.empty; of each layer the first of a pass is lasting memory."""
        key, size = id(layer), math.prod(shape)
        if key in self.busy:
            return torch.empty(shape, dtype=dtype, device=device)
        self.busy.add(key)
        block = self.blocks.get(key)
        if block is None or block.numel() < size or block.dtype != dtype or block.device != device:
            block = self.blocks[key] = torch.empty(shape, dtype=dtype, device=device)
        return block if block.shape == shape else block.view(-1)[:size].view(shape)

    def let_go(self, layer: CoveredLayer) -> None:
        """Forget memory that somebody else (a hook of the user's) still holds."""
        held = [self.blocks.pop(id(layer))] if id(layer) in self.blocks else []
        if held and are_ours(held)[0]:
            self.blocks[id(layer)] = held[0]


class _Watch:
    """Pre-hook of the autograd node that made a layer's output: records the gradient that arrives there.

    After all hooks of the output tensor, as for the layer's own backward, and before in-place operations that follow.
    """

    def __init__(
        self,
        recorder: Recorder,
        layer: CoveredLayer,
        activation: Tensor,
        statistics: Statistics | None,
        number: int,
        shape: torch.Size,
        is_first: bool,
    ) -> None:
        self.recorder, self.layer, self.statistics, self.number = recorder, layer, statistics, number
        self.shape = shape  # of the layer's output, where the node made what that is a view of
        self.is_first = is_first  # nobody waits for the node's work
        self.activation: Tensor | None = activation
        self.version = activation._version
        self.use: Use | None = None  # to be measured after the node's work

    def __call__(self, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
        gradient = gradients[self.number]
        if gradient is None:
            return None
        if torch.is_grad_enabled():
            self.recorder.fail("create_graph=True differentiates twice, and the second order would bypass the records")
        # The graph may live longer than the step.
        activation, self.activation = self.activation, None
        statistics, self.statistics = self.statistics, None
        if activation is None:
            self.recorder.fail(_SECOND_PASS)
        if activation._version != self.version:
            raise RuntimeError(
                f"the input of module {self.layer.name!r}, needed for gradient computation, has been modified by an inplace "
                "operation"
            )
        gradient = self.recorder.taken(gradient)
        # A gradient that came through a transposition is laid out anew once, for the node and for the record.
        laid_out = gradient if gradient.is_contiguous() else self.recorder.laid_out(self.layer, gradient)
        of_output = laid_out if laid_out.shape == self.shape else laid_out.view(self.shape)
        use = self.recorder.add(self.layer, activation, of_output, statistics)
        if self.recorder.lasting or statistics is not None:
            self.recorder.measure(use)
        else:
            self.use = use
        if laid_out is gradients[self.number] and not self.is_first:
            return None
        return (*gradients[: self.number], None if self.is_first else laid_out, *gradients[self.number + 1 :])

    def after(self, *_gradients: Any) -> None:
        """Post-hook, to save memory: what the node itself needs for its work is gone before gradients are kept."""
        use, self.use = self.use, None
        if use is not None:
            self.recorder.measure(use)


class _Tap(torch.autograd.Function):
    """Identity whose backward records, where there is no node to watch: after an Embedding, whose input has no gradient.

    Inside checkpoints, which must be able to drop the activation. And after modules without a rule: the node that made
    the output may be that of a layer in them, which has a watch of its own. The output is marked dirty, not viewed: in-place
    operations may follow. Of a module without a rule the node may have saved its output for its backward (tanh), so that it must
    not count as changed: another tensor has its memory, and its count of changes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        _anchor: Tensor,
        layer: CoveredLayer,
        recorder: Recorder,
        form: Form | None,
        activation: Tensor,
        *others: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(activation, *others)  # torch then notices if somebody changes one in place
        ctx.layer, ctx.recorder, ctx.form, ctx.is_done = layer, recorder, form, False
        if form is not None:
            return output.detach()
        ctx.mark_dirty(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.recorder.only_once(ctx)
        activation, *others = ctx.saved_tensors
        gradient = ctx.recorder.taken(gradient)
        rest = None if ctx.form is None else Others.of(others, ctx.form)
        ctx.recorder.measure(ctx.recorder.add(ctx.layer, activation, gradient, rest))
        return (gradient if ctx.needs_input_grad[0] else None), *(None,) * (5 + len(others))


class Freeze:
    """Forward pre-hook: the layer's trainable parameters do not require grad while its forward runs.

    A first layer's input, which does not either, is replaced by an alias that does: so there is a node to watch, and when
    the gradient has been recorded there, the node gets none and has nothing to do.
    """

    def __init__(self, layer: CoveredLayer, recorder: Recorder) -> None:
        self.layer, self.recorder = layer, recorder
        self.parameters = tuple(layer.parameters.values())
        self.identities = frozenset(map(id, self.parameters))
        self.type = type(layer.module)
        self.thread: int | None = None  # that runs the layer's forward
        self.call: FrameType | None = None  # of the layer, which does so
        self.is_first = False
        self.thaw = Thaw(self)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.thread is not None:
            self._after_interrupt()
        if self.recorder.trial is not None:
            return self._try(self.recorder.trial, args, kwargs)
        # In eval mode or without grad nothing is recorded and nothing is touched.
        if not module.training or not torch.is_grad_enabled() or self._rests():
            return None
        self._check(module)
        if self.layer.rule is OwnLayerGradients:
            self._check_last(module)
        self.thread, self.call, self.is_first = threading.get_ident(), sys._getframe(1), False
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        self.recorder.frozen |= self.identities
        self.thaw.come_first(module)
        if id(self.layer) in self.recorder.expanded:
            return self.recorder.for_samples(self.layer, args, kwargs)
        if self.layer.rule is OwnLayerGradients:
            self.thaw.attributes = attributes_of(module)
            return None
        if len(args) != 1 or kwargs or type(args[0]) is not Tensor or args[0].requires_grad or _is_watched(module):
            return None
        self.is_first = args[0].is_floating_point() and not saved_tensors_are_hooked()
        return ((args[0].detach().requires_grad_(),), kwargs) if self.is_first else None

    def _try(
        self, trial: Trial, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.layer.rule is not EmbeddingGradients or not self.layer.module.training:
            return None
        if id(self.layer) in trial.expanded:
            return self.recorder.for_samples(self.layer, args, kwargs)
        if any(value.dim() == 1 or value.shape[:1] == (1,) for value in tensors_in((args, kwargs))):
            trial.without_samples.add(id(self.layer))
        return None

    def _rests(self) -> bool:
        """Whether the whole model is frozen: a discriminator, while its generator trains. Then it gets no gradients at all.

        Of a model frozen in parts some layers would train on, so its forward is refused.
        """
        if self.recorder.frozen or self.parameters[0].requires_grad:
            return False
        return not any(p.requires_grad for p in self.recorder.trained.values())

    def end(self) -> None:
        """Parameters require grad again."""
        self.thread = self.call = None
        self.thaw.leave()
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.recorder.frozen -= self.identities

    def _after_interrupt(self) -> None:
        """Hooks are not called after an error that is no Exception: a KeyboardInterrupt."""
        if self.thread == threading.get_ident():
            goes_on = self.call is not None and is_called_from(self.call)
            self.end()
            if goes_on:
                raise PrivacyError(
                    f"module {self.layer.name!r} was called inside its own forward: what it does around that call cannot be "
                    "recorded. Call it several times one after the other, or a module of its own for each"
                )
        elif torch.is_grad_enabled():
            raise PrivacyError(f"module {self.layer.name!r} is at work in another thread; train a model in one")

    def _check(self, module: nn.Module) -> None:
        """What is recorded must be what the layer's own operation does with the parameters that are trained."""
        if torch._C._functorch.maybe_current_level() is not None:
            raise PrivacyError(
                "a private model that trains cannot run inside torch.func (vmap, grad, ...), whose gradients nobody "
                "records: use it in eval mode or under no_grad there"
            )
        for name, parameter in self.layer.parameters.items():
            thawed = parameter.requires_grad or id(parameter) in self.recorder.frozen
            if _parameter_of(module, name) is not parameter or not thawed:
                if module is not self.layer.module:
                    raise PrivacyError(
                        f"a copy of module {self.layer.name!r} with parameters of its own (a replica of DataParallel's) ran in "
                        "training, past the engine: train the module that make_private has returned, on one device"
                    )
                raise changed(f"{self.layer.name}.{name}".lstrip("."))
        if type(module) is not self.type:
            raise PrivacyError(f"module {self.layer.name!r} has another type since make_private")

    def _check_last(self, module: nn.Module) -> None:
        """Raise PrivacyError if others' hooks come later: what they tell the module would be missing when its forward runs again."""
        for hook in reversed(module._forward_pre_hooks.values()):
            if hook is self:
                return
            if not type(hook).__module__.startswith(__package__):
                raise PrivacyError(
                    f"module {self.layer.name!r} has no rule of its own, and a forward pre-hook was put on it after make_private; "
                    "put it there before, so that its forward runs in the backward pass as the hook has left it"
                )

    def __reduce__(self) -> tuple[type[CopiedFreeze], tuple[str]]:
        return CopiedFreeze, (self.layer.name,)


class Thaw:
    """Forward hook, also after an error: parameters require grad again, the output is watched.

    First among the hooks: the gradient recorded is that of the layer's own output, before other hooks change it.
    """

    def __init__(self, freeze: Freeze) -> None:
        self.freeze = freeze
        self.number = -1  # among the module's hooks
        self.ahead: RemovableHandle | None = None  # of hooks of all modules, which are called before a module's own
        self.calls = Calls(freeze.layer.name) if freeze.layer.rule is OwnLayerGradients else None
        self.attributes: Attributes = []  # of a layer without a rule, as its forward found them

    def come_first(self, module: nn.Module) -> None:
        """Be called before hooks that were put in front since."""
        own: Any = module._forward_hooks
        if next(iter(own), None) != self.number:
            own.move_to_end(self.number, last=False)
        of_all: Any = everybodys._global_forward_hooks
        if of_all:
            self.ahead = everybodys.register_module_forward_hook(
                self._of_any_module,  # type: ignore[arg-type]
                with_kwargs=True,
            )
            of_all.move_to_end(self.ahead.id, last=False)

    def leave(self) -> None:
        """Be called as a hook of the module's own alone."""
        if self.ahead is not None:
            self.ahead.remove()
            everybodys._global_forward_hooks_with_kwargs.pop(self.ahead.id, None)  # torch forgets to
            self.ahead = None

    def _of_any_module(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Tensor | None:
        return self(module, args, kwargs, output) if module is self.freeze.layer.module else None

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor | None
    ) -> Tensor | None:
        if self.freeze.thread != threading.get_ident():
            return None
        self.freeze.end()
        attributes, self.attributes = self.attributes, []
        if output is None:  # the forward raised
            return None
        layer, recorder = self.freeze.layer, self.freeze.recorder
        others: tuple[Tensor, ...] = ()
        if self.calls is not None:
            given, others = self.calls.take_apart(args, kwargs, output, attributes, versions_of(module))
            output = _output_of_its_own(output, tensors_in((args, kwargs)))
        else:
            given = args[0] if args else kwargs["input"]
        recorder.called(layer, output)
        activation = _in_memory(given.detach())
        made = _made(output) if output._is_view() else output
        if made.grad_fn is not None and self.calls is None and not saved_tensors_are_hooked():
            statistics = _statistics(output) if layer.rule in STATISTICAL else None
            watch = _Watch(recorder, layer, activation, statistics, made.output_nr, output.shape, self.freeze.is_first)
            made.grad_fn.register_prehook(watch)
            if not recorder.lasting:
                made.grad_fn.register_hook(watch.after)
            return None
        if output.grad_fn is None and output._is_view():  # marking a view dirty would copy gradients back and forth
            output = output.detach()
        form = others.form if isinstance(others, Others) else None
        tapped: Tensor = _Tap.apply(
            output, recorder.anchor, layer, recorder, form, activation, *map(_in_memory, others)
        )  # type: ignore[no-untyped-call]
        return tapped

    def __reduce__(self) -> tuple[type[Copied], tuple[()]]:
        return Copied, ()


def _output_of_its_own(output: Tensor, given: list[Tensor]) -> Tensor:
    """The output of a module without a rule; a copy if it may be older than the module's forward."""
    is_older = output.grad_fn is None or output._is_view() or any(output is one for one in given)
    return output.clone() if is_older else output


def _parameter_of(module: nn.Module, name: str) -> Tensor | None:
    """The parameter of this name, of ``module`` or of one in it."""
    path, _, key = name.rpartition(".")
    holder: nn.Module | None = module
    for part in path.split(".") if path else ():
        holder = None if holder is None else holder._modules.get(part)
    return None if holder is None else holder._parameters.get(key)


def changed(name: str) -> PrivacyError:
    """The error for a parameter that is not what it was."""
    return PrivacyError(
        f"parameter {name!r} was frozen, unfrozen or replaced since make_private; start with a fresh model"
    )


def _in_memory(values: Tensor) -> Tensor:
    """``values`` whose memory holds what they are: torch may keep a sign, or that all are zero, beside it."""
    return values.clone() if values._is_zerotensor() else values.resolve_neg()


def _made(output: Tensor) -> Tensor:
    """What the layer's node made: the output, or what all of it is a view of (of a Linear on sequences).

    An operation in place on a view, or on a part of it, takes the view's own node out of the graph.
    """
    base = output._base
    if base is None or base.numel() != output.numel():
        return output
    return base if base.is_contiguous() and output.is_contiguous() else output


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody else has hooks on ``module``, who would see what is put in place of its input."""
    ours = len(module._forward_pre_hooks) == 1 and len(module._forward_hooks) == 1
    return not ours or bool(module._backward_hooks) or bool(module._backward_pre_hooks)


def saved_tensors_are_hooked() -> bool:
    """Whether somebody (checkpointing) takes what this forward saves for its backward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _statistics(output: Tensor) -> Statistics | None:
    """Mean and 1 / deviation that the forward of a normalisation has kept for its backward, or None."""
    if type(output.grad_fn).__name__ not in ("NativeGroupNormBackward0", "NativeLayerNormBackward0"):
        return None
    return output.grad_fn._saved_result1, output.grad_fn._saved_result2  # type: ignore[union-attr]


class CopiedFreeze:
    """What a copy (deepcopy, pickle) of a private model carries: good for inference, refuses to train unprotected."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, *_rest: Any) -> None:
        if module.training and torch.is_grad_enabled():
            raise PrivacyError(
                f"module {self.name!r} belongs to a copy of a private model, which no engine protects: use it in eval "
                "mode or under no_grad, or load its state_dict into a fresh model"
            )


class Copied:
    """A hook that does nothing: the copied pre-hook has refused already where it had to."""

    def __call__(self, *_rest: Any) -> None:
        return
