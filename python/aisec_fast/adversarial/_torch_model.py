"""Torch modules under attack: gradients with respect to the input alone, and everything left as it was."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from .. import _checks, _cuda_graphs
from .._cuda_graphs import GraphError
from . import _kept, _rows_seen
from ._activations import evenly, mixes, rows_at_once
from ._graphs import Graphs
from ._losses import LOSSES, likeliest_others
from ._models import Flags, Slope, fools
from ._program import Program
from ._randomness import Averaged, StraightThrough
from ._working_copy import for_copy, is_plain, same_logits, working_copy

_ROWS_TRIED = 4
_MOST_WAITING = 12  # rows of looks: the module takes hardly longer for them than for those of one
Values = Callable[[Tensor], Tensor]  # of logits [B, classes]: a value for each sample, [B]
LabelValues = Callable[[Tensor, Tensor], Tensor]  # of logits and labels [B, ...]
_log = logging.getLogger("aisec_fast.adversarial")


class TorchModel:
    """A module that gives logits ``[B, classes]``, and the batch of labels it is attacked with.

    Gradients and logits come from a working copy of the module (see ``_working_copy``) where that pays; ``fooled`` asks
    the module itself. The parameters' ``.grad`` and ``requires_grad`` are never touched.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, *, largest_label: int, least_classes: int = 2, needs: str = ""
    ) -> None:
        self._module, self._device, self._largest_label = module, device, largest_label
        self._least_classes, self._needs = least_classes, needs
        self._copy: nn.Module | Program | None = None
        self._passes = 0
        self._graphs: Graphs | None = None
        self.without_graph = "not asked for"  # why passes are not replayed
        self._rows_at_once: int | None = None
        self._lower: torch.dtype | None = None  # of passes with a gradient
        self._writes_to_input: bool | None = None  # not known yet
        self._clash = ""  # of x's dtype with the module's, which may be meant: it may convert its input
        self.may_wait = False  # whether somebody asks ``misled`` in the end
        self._looks: list[tuple[Tensor, Tensor]] = []  # rows, and the list's logits there, still to be compared
        self._misled = False
        self.differences = 0  # samples that fooled the working copy and not the module

    @property
    def has_copy(self) -> bool:
        """Whether ``logits`` and ``gradient`` come from a working copy, a replay or in lower precision: successes are to be confirmed."""
        return self._copy is not None or self._lower is not None or (self._graphs is not None and self._graphs.in_use)

    @property
    def has_steps(self) -> bool:
        """Whether ``logits`` and ``gradient`` come from a list of steps, in the module's own precision."""
        return isinstance(self._copy, Program)

    @classmethod
    def made(
        cls, module: nn.Module, x: Tensor, y: Tensor, *, least_classes: int = 2, needs: str = ""
    ) -> tuple[TorchModel, Tensor]:
        """The model and int64 labels, checked as far as they can be before the number of classes is known.

        Args:
            module: gives logits.
            x: the batch.
            y: integer labels ``[B]``.
            least_classes: below this the attack has no meaning.
            needs: what it is that needs them, for the error.
        """
        devices = {tensor.device for tensor in chain(module.parameters(), module.buffers())}
        if devices and x.device not in devices:
            raise ValueError(f"x lives on {x.device}, model on {', '.join(map(str, devices))}; expected one device")
        with torch.inference_mode(False):  # a tensor made in inference mode cannot be saved for a backward pass
            labels = y.to(torch.int64, copy=True)
        smallest, largest = (v.item() for v in labels.aminmax()) if labels.numel() else (0, 0)
        if smallest < 0:
            raise ValueError(f"y holds label {smallest}, expected 0 or above")
        model = cls(module, x.device, largest_label=int(largest), least_classes=least_classes, needs=needs)
        dtypes = (tensor.dtype for tensor in chain(module.parameters(), module.buffers()) if tensor.is_floating_point())
        dtype = next(dtypes, x.dtype)
        if dtype != x.dtype:
            model._clash = f"x has dtype {x.dtype}, and the model computes in {dtype}".replace("torch.", "")
        return model, labels

    @contextmanager
    def attacked(
        self,
        x: Tensor | None = None,
        *,
        copied: bool = True,
        cuda_graph: bool | None = False,
        precision: str | None = None,
    ) -> Iterator[None]:
        """Every submodule in eval mode, gradients on, autocast off.

        ``training`` is set and restored as a plain flag: ``train()`` may be overridden to do more (merge weights, skip
        frozen parts), which could not be undone.

        Args:
            x: the batch, if there will be many passes over it.
            copied: a working copy may be made, and large batches go in parts.
            cuda_graph: whether ``replayed_gradient`` replays passes: None where it can, True or it raises.
            precision: "bfloat16" to compute passes with a gradient under autocast.
        """
        self._lower = None if precision is None else getattr(torch, precision)
        before: list[tuple[nn.Module, bool]] = []
        # The user's autocast may be float16, which turns small gradients into zeros: that would pass for robustness.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(self._device.type, enabled=False):
            try:
                for module in self._module.modules():
                    before.append((module, module.training))
                    module.training = False
                if x is not None and x.numel():
                    if copied:
                        self._copy = working_copy(self._module, x, steps=self._lower is None)
                        self._rows_at_once = rows_at_once(self._copy or self._module, x)
                    if cuda_graph is not False:
                        self._graphs = self._recorded_graphs(must=cuda_graph is True)
                yield
            except RuntimeError as error:
                if self._clash and "type" in str(error):
                    raise TypeError(f"{self._clash}: {error}; pass x in the dtype of the model") from error
                raise
            finally:
                self._copy = self._rows_at_once = self._lower = None
                self._looks, self._misled = [], False
                graphs, self._graphs = self._graphs, None
                if graphs is not None:
                    graphs.close()
                for module, training in before:
                    module.training = training

    def gradient(self, adv: Tensor, values: Values) -> Slope:
        """The gradient of the sum of ``values(logits)`` at ``adv``, with the values and the logits."""
        leaves, logits = self._differentiable(adv)
        losses = values(logits)
        return Slope(self._gradient(losses, leaves), losses.detach(), logits.detach())

    def replayed_gradient(self, adv: Tensor, values: LabelValues, y: Tensor, passes_left: int) -> Slope:
        """The same of ``values(logits, y)``, from a recorded pass where that pays: see :meth:`Graphs.slope`."""
        graphs = self._graphs
        if graphs is not None:
            before = graphs.recorded
            slope = graphs.slope(adv, values, y, passes_left)
            if graphs.dropped != self.without_graph:
                self._note(graphs.dropped)
            if slope is not None:
                assert slope.logits is not None
                if graphs.recorded > before:  # which was a trial of its own
                    self._passes += 1
                    return slope
                if not self._misleads(adv, slope.logits, lower=self._lower is not None):
                    return slope
                graphs.forget()  # if the working copy was wrong, so are replays of it
        return self.gradient(adv, lambda logits: values(logits, y))

    def _recorded_graphs(self, *, must: bool) -> Graphs | None:
        try:
            recorder = _cuda_graphs.recorder(self._device)
            if not must and _cuda_graphs.other_threads():
                raise GraphError("other threads may use the device")
            tensors = chain(self._module.parameters(), self._module.buffers())
            if any(tensor.device != self._device for tensor in tensors):
                raise GraphError("the model is spread over several devices")
            if not is_plain(self._module):
                raise GraphError("the model is compiled, scripted or spread over processes")
            if any(isinstance(part, (Averaged, StraightThrough)) for part in self._module.modules()):
                raise GraphError("the model draws random numbers, or calls a function outside torch")
        except GraphError as error:
            if must:
                raise ValueError(f"cuda_graph is True, but {error}") from None
            self._note(str(error))
            return None
        self.without_graph = ""
        return Graphs(
            self._pass,
            recorder,
            must=must,
            coarse=self._lower is not None,
            mixes=lambda x: mixes(self._copy or self._module, x),
        )

    def _note(self, reason: str) -> None:
        self.without_graph = reason
        _log.debug("passes are not replayed as a CUDA graph: %s", reason)

    def _pass(self, adv: Tensor, values: LabelValues, y: Tensor) -> Slope:
        """A pass without looks at other rows."""
        leaf = adv.detach().requires_grad_(True)
        logits = self._checked(self._logits_of_leaf(leaf), leaf)
        losses = values(logits, y)
        return Slope(self._gradient(losses, [leaf]), losses.detach(), logits.detach())

    def gradients(self, adv: Tensor, values: Values) -> Iterator[tuple[Tensor, Tensor]]:
        """For each column of ``values(logits)``, which are ``[B, columns]``, gradient and value; from one forward pass."""
        leaves, logits = self._differentiable(adv)
        columns = values(logits).unbind(1)
        for index, losses in enumerate(columns, 1):
            yield self._gradient(losses, leaves, keep=index < len(columns)), losses.detach()

    def _differentiable(self, adv: Tensor) -> tuple[list[Tensor], Tensor]:
        """Leaves that are ``adv`` in parts, and the logits there."""
        leaves = [part.detach().requires_grad_(True) for part in evenly(adv, self._rows_at_once)]
        logits = _joined([self._checked(self._logits_of_leaf(leaf), leaf) for leaf in leaves])
        if self._misleads(adv, logits, lower=self._lower is not None):
            return self._differentiable(adv)
        if not logits.requires_grad:
            raise ValueError(
                "model gave logits without a gradient (detached, or made under no_grad), expected them to be "
                "differentiable with respect to x"
            )
        return leaves, logits

    @staticmethod
    def _gradient(losses: Tensor, leaves: list[Tensor], *, keep: bool = False) -> Tensor:
        slopes = torch.autograd.grad(losses.sum(), leaves, allow_unused=True, retain_graph=keep)
        if any(slope is None for slope in slopes):
            raise ValueError("model gave logits that do not depend on x, expected a model of x")
        return _joined(slopes).resolve_neg().contiguous()

    def logits(self, adv: Tensor) -> Tensor:
        """Logits without a gradient, float32 or float64."""
        if self._copy is None:
            return self.own_logits(adv)
        copy = self._copy
        with torch.no_grad():
            parts = evenly(adv, self._rows_at_once)
            made = (lambda part: part) if isinstance(copy, Program) else for_copy
            logits = _joined([self._checked(_called(copy, made(part)), part) for part in parts])
        return self.own_logits(adv) if self._misleads(adv, logits) else logits

    def _misleads(self, adv: Tensor, logits: Tensor, *, lower: bool = False) -> bool:
        """Whether the logits of copy or replay at ``adv`` are not the module's: then the copy is dropped, or the replays.

        With those the lower precision, if they were computed in it: so is the tolerance then.

        They were tried at the samples, and a module may take another way elsewhere. Asked at passes 1, 2, 4, 8, ... on a few
        rows, other ones each time. If ``may_wait``, what a list gave is kept and compared later, by ``misled``. Logits of a
        list that are not finite are compared at once: a model that gives such logits is refused.
        """
        self._passes += 1
        if not self.has_copy:
            return False
        odd = (~logits.detach().isfinite().all(1)).nonzero()[:, 0] if self.has_steps else logits.new_zeros(0)
        if len(odd):
            rows = odd[:_ROWS_TRIED]
        elif self._passes & (self._passes - 1):
            return False
        else:
            rows = (torch.arange(min(_ROWS_TRIED, len(adv)), device=adv.device) + self._passes) % len(adv)
        if self.may_wait and self.has_steps and not len(odd):
            self._looks.append((adv[rows], logits[rows].detach()))
            waiting = sum(len(part) for part, _ in self._looks)
            return waiting >= _MOST_WAITING and self._looked(self.own_logits(self._waiting()))
        if self._same_as_own(logits[rows].detach(), adv[rows], coarse=lower):
            return False
        if lower:
            warnings.warn(
                f"logits in {str(self._lower).removeprefix('torch.')} are not the model's own: the attack goes on without it",
                RuntimeWarning,
                stacklevel=2,
            )
            self._lower = None
        elif self._copy is None and self._graphs is not None:
            self._graphs.drop("replayed logits differ from the model's own")
            self._note(self._graphs.dropped)
        self._copy = None
        _kept.forget(self._module)
        return True

    def _same_as_own(self, logits: Tensor, adv: Tensor, *, coarse: bool) -> bool:
        """Not where the module refuses so few rows: it may want the whole batch."""
        try:
            own = self.own_logits(adv)
        except Exception:
            if coarse:
                raise
            return False
        return same_logits(logits, own, coarse=coarse)

    def _waiting(self) -> Tensor:
        return torch.cat([part for part, _ in self._looks])

    def _looked(self, own: Tensor) -> bool:
        """Whether the list's logits at the rows that wait are not these: then it is dropped."""
        looks, self._looks = self._looks, []
        parts = torch.split(own, [len(part) for part, _ in looks])
        if all(same_logits(logits, true) for (_, logits), true in zip(looks, parts, strict=True)):
            return False
        self._copy, self._misled = None, True
        _kept.forget(self._module)
        return True

    def misled(self) -> bool:
        """Whether passes since this was last asked were led astray by a list of steps, which is dropped then."""
        if self._looks:
            self._looked(self.own_logits(self._waiting()))
        misled, self._misled = self._misled, False
        return misled

    def own_logits(self, adv: Tensor) -> Tensor:
        """Logits of the module itself, without a gradient: verdicts are made of these."""
        with torch.no_grad():  # a module may work in place
            return _joined(
                [self._checked(_called(self._module, part.clone()), part) for part in evenly(adv, self._rows_at_once)]
            )

    def fooled(self, adv: Tensor, y: Tensor, *, targeted: bool = False) -> Tensor:
        """Whether the module itself answers something else than ``y``, or ``y`` if ``targeted``: bool ``[B]``."""
        flags: Tensor = fools(self.own_logits(adv), y, targeted=targeted)
        return flags

    def confirmed(self, hit: Tensor, adv: Tensor, y: Tensor, *, targeted: bool = False) -> Tensor:
        """Those of ``hit`` (bool ``[B]``, verdicts by ``logits``) that fool the module itself too. Others are counted."""
        if not self.has_copy or not bool(hit.any()):
            return hit
        rows = hit.nonzero()[:, 0]
        confirmed = hit.clone()
        confirmed[rows] = self.settled(adv[rows], y[rows], targeted=targeted)
        return confirmed

    def settled(self, adv: Tensor, y: Tensor, *, targeted: bool = False) -> Tensor:
        """Which of these, all of them claims, fool the module itself. Others are counted. What waits is looked at with them."""
        true: Tensor
        if self._looks:
            own = self.own_logits(torch.cat([adv, self._waiting()]))
            self._looked(own[len(adv) :])
            true = fools(own[: len(adv)], y, targeted=targeted)
        else:
            true = self.fooled(adv, y, targeted=targeted)
        self.differences += int((~true).sum())
        return true

    def _logits_of_leaf(self, leaf: Tensor) -> object:
        """Of a pass with a gradient, which alone may be in lower precision."""
        if self._lower is None:
            return self._called_with_leaf(leaf)
        # Nothing is cached: a recorded pass must not read casts that were made outside of it.
        with torch.autocast(self._device.type, dtype=self._lower, cache_enabled=False):
            return self._called_with_leaf(leaf)

    def _called_with_leaf(self, leaf: Tensor) -> object:
        """A module may work in place: it is given a copy, unless the first call has shown that it does not."""
        if isinstance(self._copy, Program):  # which writes to nothing but its own
            logits = _called(self._copy, leaf)
        elif self._copy is not None:
            logits = _called(self._copy, for_copy(leaf))
        elif self._writes_to_input is False:
            version = leaf._version
            logits = _called(self._module, leaf)
            if leaf._version != version:
                raise ValueError("model changed its input in place, which it did not do when it was first called")
        else:
            given = leaf.clone()
            logits = _called(self._module, given)
            self._writes_to_input = given._version > 0 or not torch.equal(given, leaf)
        return logits

    def _checked(self, logits: object, batch: Tensor) -> Tensor:
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"model returned {_checks.kind_of(logits)}, expected one tensor of logits [B, classes]; wrap the model in "
                "a module that returns the logits alone"
            )
        if not logits.is_floating_point():
            raise TypeError(f"model returned {logits.dtype}, expected logits of a floating-point dtype")
        if logits.ndim != 2 or logits.shape[0] != batch.shape[0]:
            raise ValueError(f"model returned shape {tuple(logits.shape)}, expected logits [{batch.shape[0]}, classes]")
        classes = logits.shape[1]
        if classes < self._least_classes:
            raise ValueError(
                f"model returned logits of {classes} classes, expected at least {self._least_classes}"
                f"{' for ' * bool(self._needs)}{self._needs}"
            )
        if self._largest_label >= classes:
            raise ValueError(f"y holds label {self._largest_label}, expected 0 to {classes - 1} as the model's logits")
        if logits.device.type == "meta":
            raise ValueError("model returned logits on the meta device, expected values")
        logits = logits.to(batch.device)  # of a model that is spread over devices, the last part's
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class TorchLoss:
    """A module together with the loss of an attack by gradients alone: see :class:`Attackable`.

    Labels are ``[B]``, or ``[B, 2]`` with a target class beside each: then the loss is that target's.
    """

    def __init__(
        self,
        model: TorchModel,
        loss: str,
        *,
        targeted: bool,
        targets: int | None,
        batch: Tensor,
        working_copy: bool,
        cuda_graph: bool | None,
        precision: str | None,
    ) -> None:
        self._model, self._loss, self._targeted, self._targets = model, LOSSES[loss], targeted, targets
        model.may_wait = True
        self._batch, self._copied, self._cuda_graph, self._precision = batch, working_copy, cuda_graph, precision

    def attacked(self) -> AbstractContextManager[object]:
        """See :class:`Attackable`."""
        return self._model.attacked(
            self._batch, copied=self._copied, cuda_graph=self._cuda_graph, precision=self._precision
        )

    def labelled(self, x: Tensor, y: Tensor) -> tuple[Tensor, int]:
        """See :class:`Attackable`: other classes beside each label, from the most likely one at ``x`` down."""
        if self._targets is None:
            return y, 0
        others = likeliest_others(self._model.own_logits(x), y, self._targets)
        return torch.stack([y[:, None].expand_as(others), others], dim=2), others.shape[1]

    def slope(self, adv: Tensor, y: Tensor, *, with_logits: bool, passes_left: int = 0) -> Slope:  # noqa: ARG002
        """See :class:`Attackable`; logits are at hand."""
        return self._model.replayed_gradient(
            adv, self._loss.values if y.ndim == 1 else self._target_values, y, passes_left
        )

    def _target_values(self, logits: Tensor, y: Tensor) -> Tensor:
        return self._loss.target_values(logits, *y.unbind(1))

    def predict(self, adv: Tensor) -> Tensor:
        """See :class:`Attackable`."""
        return self._model.own_logits(adv)

    def fooled(self, logits: Tensor, y: Tensor) -> Flags:
        """See :class:`Attackable`."""
        flags: Flags = fools(logits, _label(y), targeted=self._targeted).cpu().numpy()
        return flags

    def confirmed(self, hit: Flags, adv: Tensor, y: Tensor) -> Flags:
        """See :class:`Attackable`."""
        if not self._model.has_copy or not hit.any():
            return hit
        flags = torch.from_numpy(hit).to(adv.device)
        confirmed: Flags = self._model.confirmed(flags, adv, _label(y), targeted=self._targeted).cpu().numpy()
        return confirmed

    def may_wait(self) -> bool:
        """See :class:`Attackable`: where a list of steps gives the logits, whose verdicts differ near the border alone."""
        return self._model.has_steps

    def misled(self) -> bool:
        """See :class:`Attackable`."""
        return self._model.misled()

    def settled(self, adv: Tensor, y: Tensor) -> Flags:
        """See :class:`Attackable`."""
        flags: Flags = self._model.settled(adv, _label(y), targeted=self._targeted).cpu().numpy()
        return flags

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """See :class:`Attackable`."""
        with torch.no_grad():
            return self._loss.values(logits, _label(y))


def _called(module: nn.Module | Program, batch: Tensor) -> object:
    _rows_seen.note(len(batch), gradient=torch.is_grad_enabled())
    return module(batch)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _label(y: Tensor) -> Tensor:
    return y if y.ndim == 1 else y[:, 0]
