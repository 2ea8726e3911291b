"""``PrivacyEngine``: makes a module, an optimizer and a data loader private, and keeps the account."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .. import _backends, _checks, accounting, noise
from .._errors import PrivacyError, UnsupportedModuleError
from .._sources import Source, chosen
from . import _attaching, _charges, _checkpoints, _native, _recording, _sampling
from ._clip import CLIPPINGS, checked_norm
from ._coverage import CoveredLayer, examine
from ._expanding import Samples
from ._probe import RowProbe
from ._replays import Replays
from ._step import Mechanism, PrivateStep, trainable

_REDUCTIONS = ("mean", "sum")
MEMORY = ("fast", "low")
LAYERS = ("fast", "torch")


class PrivacyEngine:
    """Differentially private training of torch models (DP-SGD, Abadi et al. 2016), with Opacus's names.

    One engine keeps the account of everything it made private. Neighbouring data sets differ by one record replaced
    by a zero contribution; epsilon is computed for the nominal noise multiplier, while the noise that is really drawn
    also pays for rounding: of norms, of the float sum over samples and to the lattice (docs/privacy.md).

    Args:
        accountant: "pld" (tight) or "rdp" (looser, faster); "prv", Opacus's, means "pld". Default: the budget's, else "pld".
        secure_mode: accepted as in Opacus; noise is always exact and from a cryptographic generator.
        budget: an :class:`aisec_fast.accounting.Budget` to keep. The returned loaders then end when the next step would
            exceed it, and a step beyond it raises. Engines that share a budget share its account.
        memory: "fast", or "low" for the same results from less memory, a little slower. "fast" also lets glibc keep freed
            memory, for the whole process from then on (docs/privacy.md, section 8).
        layers: "fast": while the module trains, linear layers and convolutions go forward and backward in forms that round
            differently from torch's own but take less time, where there are such (float32 on the CPU; docs/privacy.md,
            section 9). "torch": never.
        cuda_graph: on CUDA, record a step's norms and sums once as a CUDA graph and replay it: launching their kernels is
            most of what a step of a small model costs there. None: where it can be, with memory="fast" and records that
            take up to 1/64 of the GPU's memory, of which there is then a second copy (docs/privacy.md, section 10);
            ``info()`` says whether it is. True: or a step raises RuntimeError. False: never.

    Raises:
        TypeError, ValueError: an argument, with its name.
    """

    def __init__(
        self,
        *,
        accountant: str | None = None,
        secure_mode: bool = True,  # noqa: ARG002
        budget: accounting.Budget | None = None,
        memory: str = "fast",
        layers: str = "fast",
        cuda_graph: bool | None = None,
    ) -> None:
        if budget is not None and not isinstance(budget, accounting.Budget):
            raise TypeError(f"budget must be an aisec_fast.accounting.Budget, got {type(budget).__name__}")
        kept_by = "pld" if budget is None else budget.accountant
        self.accountant = kept_by if accountant is None else accounting.accountant_name(accountant)
        if budget is not None and self.accountant != kept_by:
            # Else get_epsilon would tell another epsilon than the one that the budget keeps.
            raise ValueError(f"accountant is {accountant!r}, but the budget's is {kept_by!r}: leave it out")
        for name, value, choice in (("memory", memory, MEMORY), ("layers", layers, LAYERS)):
            if value not in choice:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choice))}, got {value!r}")
        self.cuda_graph = None if cuda_graph is None else _checks.flag(cuda_graph, "cuda_graph")
        if self.cuda_graph and memory == "low":
            raise ValueError("cuda_graph is True with memory='low', but replays read copies of what layers saw")
        self.budget, self.memory, self.layers = budget, memory, layers
        self.noise_multiplier: float | None = None  # of the latest make_private
        self._ledger = accounting.Ledger() if budget is None else budget.ledger
        self._made: list[tuple[PrivateStep, _Account]] = []  # by each make_private

    def make_private(
        self,
        *,
        module: nn.Module,
        optimizer: Optimizer,
        data_loader: DataLoader[Any],
        noise_multiplier: float,
        max_grad_norm: float | Sequence[float],
        poisson_sampling: bool = True,
        clipping: str = "flat",
        loss_reduction: str = "mean",
        batch_first: bool = True,
        max_physical_batch_size: int | None = None,
        check_rows: bool = True,
        source: Source | None = None,
        criterion: Any = None,
        grad_sample_mode: str = "hooks",
        noise_generator: Any = None,
        secure_mode: bool = True,  # noqa: ARG002
    ) -> tuple[nn.Module, Optimizer, DataLoader[Any]]:
        """Make training private: the plain loop zero_grad, forward, backward, step over the returned objects.

        ``module`` and ``optimizer`` are the very objects passed, now with hooks; the loader is new. Row i of every
        layer's input must belong to record i of the batch, in every forward pass of a step, and samples must not be
        mixed: no in-batch negatives, no loss divided by the number of tokens in the batch, no padding to the longest
        record of the batch. One backward pass a step.

        Args:
            module: model of covered layers, trainable parameters float32 or float64 on one device.
            optimizer: any torch optimizer over the module's trainable parameters, stepped without a closure.
            data_loader: loader over a data set with length and indexing.
            noise_multiplier: noise standard deviation / max_grad_norm, >= 0; 0 only clips (epsilon is infinite).
            max_grad_norm: L2 norm to which each sample's gradient over all parameters is clipped, 2^-40 to 2^80. With
                ``clipping="per_layer"`` also a list, one for each trainable parameter in the order of
                ``module.named_parameters()``; a number there gives each of k parameters max_grad_norm / sqrt(k).
            poisson_sampling: if True, each record enters a batch with probability 1/len(data_loader). If False, the
                batches are those of ``data_loader``, accounted without amplification: one Gaussian mechanism for each
                pass over the returned loader, booked at the next step. So evaluate on a loader of your own.
            clipping: "flat": one norm over all parameters. "per_layer": each parameter by its own norm. "automatic":
                every gradient scaled to max_grad_norm times norm / (norm + 0.01) (Bu et al. 2023).
            loss_reduction: "mean" or "sum" over the batch, whichever the loss does. ``.grad`` then is the noisy mean
                over the expected batch, or the noisy sum.
            batch_first: False if the sequences that Linear, LayerNorm and Embedding see are [T, B, ...].
            max_physical_batch_size: if given, the loader hands out a batch in parts of at most so many records; each
                part has its backward pass and ``optimizer.step()``, and the last one's step updates the parameters.
            check_rows: run the model twice more on the first training batch of three samples or more, to see that samples do
                not mix in it (PrivacyError if they do) and that its buffers keep nothing of them. A warning
                says where that cannot be seen.
            source: randomness of noise and sampling. Default: a new SecureSource. SeededSource is for tests only.
            criterion: accepted as in Opacus; only its ``reduction`` is compared with loss_reduction.
            grad_sample_mode: accepted as in Opacus; "hooks", "functorch" and "ew" mean the same here.
            noise_generator: must be None: noise does not come from a torch generator.
            secure_mode: accepted as in Opacus; noise is always exact and from a cryptographic generator.

        Returns:
            ``(module, optimizer, loader)``. A step on a batch that the loader did not hand out is accounted at sample
            rate 1, with a warning.

        Raises:
            UnsupportedModuleError: a layer that cannot be covered, with its name, or the parameter's.
            TypeError, ValueError: another argument, with its name. Nothing has been changed then.
        """
        multiplier = _checks.not_negative(noise_multiplier, "noise_multiplier")
        _check_options(clipping, loss_reduction, criterion, grad_sample_mode, noise_generator)
        covered = _check_model(module, optimizer)
        clip, shares = _clipping_norms(max_grad_norm, clipping, trainable(module))
        parameter = next(iter(trainable(module).values()))
        device, on_gpu = parameter.device, _native.on_gpu(parameter)
        if self.cuda_graph and not on_gpu:
            raise ValueError(f"cuda_graph is True, but the module is on {device}")
        if max_physical_batch_size is not None:
            max_physical_batch_size = _checks.whole(max_physical_batch_size, "max_physical_batch_size", least=1)
        source = noise.SecureSource() if source is None else chosen(source)
        if _checks.flag(poisson_sampling, "poisson_sampling"):
            loader = _sampling.poisson_loader(data_loader, source, max_physical_batch_size)
            records = len(data_loader.dataset)  # type: ignore[arg-type]
            rate = 1 / len(loader)
            expected, most = records * rate, _charges.largest_batch(records, rate)
        else:
            loader = _sampling.plain_loader(data_loader, max_physical_batch_size)
            most = _sampling.batch_size_of(data_loader)
            expected, rate = float(most), None
        if multiplier == 0:
            warnings.warn(
                "noise_multiplier is 0: gradients are clipped but not private (epsilon is infinite)", stacklevel=2
            )
        check_rows = _checks.flag(check_rows, "check_rows")
        _backends.share_torch_threads()
        if self.memory == "fast" and device.type == "cpu":
            _backends.keep_freed_memory()
        mean = loss_reduction == "mean"
        mechanism = Mechanism(multiplier, clip, shares, clipping, expected if mean else 1.0, most, mean)
        recorder = _recording.Recorder(batch_first, lasting=self.memory == "fast")
        account = _Account(self._ledger, self.budget, mechanism, loader.tally, rate, expected)
        loader.may_go_on = account.affords
        step = PrivateStep(module, recorder, mechanism, source, loader.tally, account.book)
        if self.cuda_graph is not False and self.memory == "fast" and on_gpu:
            step.replays = Replays(recorder, device, mean_loss=mean, most=most, must=self.cuda_graph is True)
        step.forms = _attaching.attach(module, covered, recorder, forms=self.layers == "fast")
        samples = Samples(covered, recorder)
        step.probe = RowProbe(module, recorder, check_rows) if check_rows or samples.possible() else None
        samples.watch(module)
        optimizer.register_step_pre_hook(step)
        optimizer.register_step_post_hook(step.after)
        optimizer.register_load_state_dict_pre_hook(_checkpoints.check_state)
        _drop_on_zero_grad(optimizer, step)
        self.noise_multiplier = multiplier
        self._made.append((step, account))
        return module, optimizer, loader

    def make_private_with_epsilon(
        self,
        *,
        module: nn.Module,
        optimizer: Optimizer,
        data_loader: DataLoader[Any],
        target_epsilon: float,
        target_delta: float,
        epochs: int,
        max_grad_norm: float | Sequence[float],
        poisson_sampling: bool = True,
        **options: Any,
    ) -> tuple[nn.Module, Optimizer, DataLoader[Any]]:
        """Like ``make_private``, with the least noise that keeps a whole run within a budget.

        Args:
            target_epsilon: epsilon that ``epochs`` passes over the loader may cost, at ``target_delta``.
            target_delta: in (0, 1).
            epochs: number of passes, >= 1.
            module, optimizer, data_loader, max_grad_norm, poisson_sampling, options: see :meth:`make_private`.

        Returns:
            See :meth:`make_private`; the noise multiplier found is in ``engine.noise_multiplier``.

        Raises:
            ValueError: also if this engine has spent budget already, or its budget is less than ``target_epsilon``.
        """
        if self._ledger.spent:
            raise ValueError(
                "target_epsilon is for a whole run, but this engine has already spent budget; use a new engine"
            )
        if "noise_multiplier" in options:
            raise TypeError(
                "noise_multiplier is what make_private_with_epsilon finds: leave it out, or use make_private"
            )
        epochs = _checks.whole(epochs, "epochs", least=1)
        poisson_sampling = _checks.flag(poisson_sampling, "poisson_sampling")
        _sampling.check_loader(data_loader)
        steps = len(data_loader)
        if (budget := self.budget) is not None and budget.delta == target_delta and budget.limit < target_epsilon:
            raise ValueError(
                f"target_epsilon is {target_epsilon}, which the engine's {budget} would never let it reach"
            )
        return self.make_private(
            module=module,
            optimizer=optimizer,
            data_loader=data_loader,
            noise_multiplier=accounting.get_noise_multiplier(
                target_epsilon=target_epsilon,
                target_delta=target_delta,
                sample_rate=1 / steps if poisson_sampling else 1.0,
                steps=epochs * steps if poisson_sampling else epochs,
                accountant=self.accountant,
            ),
            max_grad_norm=max_grad_norm,
            poisson_sampling=poisson_sampling,
            **options,
        )

    def get_epsilon(self, delta: float) -> float:
        """Return epsilon at ``delta``, in (0, 1), of all steps so far; 0 before the first, infinite without noise.

        Raises:
            PrivacyError: this engine has made nothing private, so that no training was: 0 would be a false claim.
        """
        epsilon = self._ledger.epsilon(delta, self.accountant)
        if not self._made and not self._ledger.spent:
            raise PrivacyError(
                "this engine has made nothing private: make_private was not called, or on another engine"
            )
        return epsilon

    @property
    def history(self) -> list[tuple[float, float, int]]:
        """What was booked, as ``(noise_multiplier, sample_rate, times)``; of a budget that others share, all of it.

        A training that goes on after a restart books it first: ``budget.spend(*run)`` for each ``run`` of what was saved.
        """
        return [(*mechanism, times) for mechanism, times in self._ledger.spent.items() if times]

    def info(self) -> list[dict[str, Any]]:
        """What each make_private of this engine releases, as plain values.

        ``noise_multiplier``, ``max_grad_norm``, ``clipping``; ``sigma``, the standard deviation really drawn, and
        ``charges``, the parts of max_grad_norm that it pays for ("float": rounding of the sum; "lattice": rounding to the
        lattice), both of the latest step, 0 before the first; ``update``, which code updates the parameters; ``forms``, of layers that
        have another form than torch's (``layers="fast"``) what it is, by name; ``check_rows``, what became of that check; ``cuda_graph``, whether the latest step was
        replayed, or why not; ``sample_rate``, with which steps are booked (without Poisson sampling 1.0, for each pass);
        ``expected_batch_size``, and ``steps``, how many have been released.
        """
        return [{**step.info(), **account.info()} for step, account in self._made]

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a PrivacyEngine cannot be copied or pickled: a copy would repeat its randomness or lose its account"
        )


class _Account:
    """Books the steps of one make_private."""

    def __init__(
        self,
        ledger: accounting.Ledger,
        budget: accounting.Budget | None,
        mechanism: Mechanism,
        tally: _sampling.Tally,
        rate: float | None,
        expected: float,
    ) -> None:
        self.ledger, self.budget, self.mechanism, self.tally, self.rate = ledger, budget, mechanism, tally, rate
        self.expected, self.steps = expected, 0
        self.noise_of_passes: list[float] = []  # that are booked
        self.warned = self.warned_of_end = False

    def info(self) -> dict[str, Any]:
        """See :meth:`PrivacyEngine.info`."""
        return {"sample_rate": self.rate or 1.0, "expected_batch_size": self.expected, "steps": self.steps}

    def affords(self, new_pass: bool) -> bool:
        """True if the budget, if there is one, allows the step on the loader's next batch."""
        if self.budget is None or (self.rate is None and not new_pass):
            return True
        allowed = self.budget.allows(self.mechanism.noise_multiplier, self.rate or 1.0)
        if not allowed and (new_pass or not self.budget.ledger.spent) and not self.warned_of_end:
            # Else a training that never began looks like one that went well, and one that waits for steps waits forever.
            self.warned_of_end = True
            warnings.warn(
                f"the loader is empty: one step at noise multiplier {self.mechanism.noise_multiplier} would exceed "
                f"{self.budget}",
                stacklevel=3,
            )
        return allowed

    def book(self, part: _sampling.Part) -> None:
        """Book the step on a batch's last ``part``, before its result exists; raises BudgetError if the budget does not allow it."""
        noise_multiplier = self.mechanism.noise_multiplier
        if not part.from_loader:
            self._spend(1.0, 1)
            if not self.warned:
                self.warned = True
                warnings.warn(
                    "a step used a batch that did not come from the loader returned by make_private; such steps are "
                    "accounted at sample rate 1",
                    stacklevel=2,
                )
        elif self.rate is not None:
            self._spend(self.rate, 1)
        elif part.number <= len(booked := self.noise_of_passes):
            if noise_multiplier != booked[part.number - 1]:
                raise PrivacyError(
                    f"noise_multiplier changed from {booked[part.number - 1]} to {noise_multiplier} inside a pass: with "
                    "poisson_sampling=False a pass is one mechanism, so change it between passes only"
                )
        else:
            # A record takes part at most once in each pass, so a pass is one Gaussian mechanism. All passes begun are
            # booked, also one that another overtook: batches of both may be in this step and later ones.
            begun = self.tally.passes - len(booked)
            self._spend(1.0, begun)
            booked += [noise_multiplier] * begun
        self.steps += 1

    def _spend(self, rate: float, times: int) -> None:
        if self.budget is None:
            self.ledger.add(self.mechanism.noise_multiplier, rate, times)
        else:
            self.budget.spend(self.mechanism.noise_multiplier, rate, times)


def _drop_on_zero_grad(optimizer: Optimizer, step: PrivateStep) -> None:
    """zero_grad also forgets a backward pass that no step used, as it would forget its gradients."""
    original = optimizer.zero_grad

    @functools.wraps(original)
    def zero_grad(*args: Any, **kwargs: Any) -> None:
        step.recorder.drop()
        original(*args, **kwargs)
        step.written.forget()
        if args or kwargs:  # else there are no gradients any more
            step.written.accept()

    optimizer.zero_grad = zero_grad  # type: ignore[method-assign]


def _check_options(
    clipping: str, loss_reduction: str, criterion: Any, grad_sample_mode: str, noise_generator: Any
) -> None:
    if clipping not in CLIPPINGS:
        raise ValueError(f"clipping must be one of {', '.join(map(repr, CLIPPINGS))}, got {clipping!r}")
    if loss_reduction not in _REDUCTIONS:
        raise ValueError(f"loss_reduction must be 'mean' or 'sum', got {loss_reduction!r}")
    reduction = getattr(criterion, "reduction", loss_reduction)
    if reduction in _REDUCTIONS and reduction != loss_reduction:
        raise ValueError(f"loss_reduction is {loss_reduction!r}, but criterion has reduction {reduction!r}")
    if grad_sample_mode not in ("hooks", "functorch", "ew"):
        raise ValueError(
            f"grad_sample_mode {grad_sample_mode!r} would return a wrapped criterion in Opacus; here the plain loss "
            "and one backward pass are enough: leave it out"
        )
    if noise_generator is not None:
        raise ValueError(
            "noise_generator would not be used: noise is exact and does not come from a torch generator; see `source`"
        )


def _clipping_norms(
    max_grad_norm: float | Sequence[float], clipping: str, parameters: dict[str, nn.Parameter]
) -> tuple[float, dict[str, float]]:
    """The norm over all parameters, and for per_layer the part of it that each parameter has."""
    if isinstance(max_grad_norm, (list, tuple)):
        if clipping != "per_layer":
            raise TypeError(f"max_grad_norm is a list, expected a number with clipping={clipping!r}")
        bounds = [_checks.positive(bound, f"max_grad_norm[{i}]") for i, bound in enumerate(max_grad_norm)]
        if len(bounds) != len(parameters):
            raise ValueError(
                f"max_grad_norm has {len(bounds)} entries, expected {len(parameters)}, one for each trainable parameter"
            )
        whole = checked_norm(math.hypot(*bounds), "max_grad_norm, over all parameters,")
        return whole, {name: bound / whole for name, bound in zip(parameters, bounds, strict=True)}
    whole = checked_norm(max_grad_norm, "max_grad_norm")
    share = 1.0 / math.sqrt(len(parameters))
    return whole, dict.fromkeys(parameters, share) if clipping == "per_layer" else {}


def _check_model(module: nn.Module, optimizer: Optimizer) -> list[CoveredLayer]:
    """Return the covered layers, or raise before anything is changed."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch Module, got {type(module).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch Optimizer, got {type(optimizer).__name__}")
    if _attaching.is_attached(module):
        raise ValueError("module is already private; load its state_dict into a fresh model to start again")
    parameters = trainable(module)
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise ValueError(f"parameter {name!r} is not initialised; run the lazy module once")
    found = examine(module)
    if found.errors:
        raise UnsupportedModuleError("\n".join(map(str, found.errors)))
    if not parameters:
        raise ValueError("module has no trainable parameters")
    devices = {parameter.device for parameter in parameters.values()}
    if len(devices) > 1:
        raise ValueError(f"module has parameters on several devices: {', '.join(sorted(map(str, devices)))}")
    for name, parameter in parameters.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"parameter {name!r} is {parameter.dtype}; float32 or float64 is needed")
    _check_optimizer(module, parameters, optimizer)
    return found.layers


def _check_optimizer(module: nn.Module, parameters: dict[str, nn.Parameter], optimizer: Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in held:
            raise ValueError(f"optimizer does not have the module's trainable parameter {name!r}")
    foreign = held - {id(p) for p in module.parameters()}  # frozen parameters of the module do no harm
    if foreign:
        shape = next(tuple(p.shape) for group in optimizer.param_groups for p in group["params"] if id(p) in foreign)
        raise ValueError(f"optimizer has a parameter of shape {shape} that is not the module's")
    if any(isinstance(hook, PrivateStep) for hook in optimizer._optimizer_step_pre_hooks.values()):
        raise ValueError("optimizer is already private; make a new one")
    _checkpoints.check_state(optimizer, optimizer.state_dict(), "optimizer.state_dict()")
