"""``PrivacyEngine``: makes a module, an optimizer and a data loader private, and keeps the account."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .. import _checks, accounting, noise
from .._errors import UnsupportedModuleError
from .._sources import Source, chosen
from . import _recording, _sampling
from ._coverage import CoveredLayer, examine
from ._step import PrivateStep, Release, trainable

_REDUCTIONS = ("mean", "sum")


class PrivacyEngine:
    """Differentially private training of torch models (DP-SGD, Abadi et al. 2016), with Opacus's names.

    One engine keeps the account of everything it made private. Neighbouring data sets differ by one record replaced
    by a zero contribution; epsilon is computed for the nominal noise multiplier, while the noise that is really drawn
    also pays for rounding to the lattice (docs/noise.md, section 1). Rounding in the float sum over samples is not
    charged.

    Args:
        accountant: "pld" (tight) or "rdp" (looser, faster); "prv", Opacus's, means "pld".
        secure_mode: accepted as in Opacus; noise is always exact and from a cryptographic generator.
    """

    def __init__(self, *, accountant: str = "pld", secure_mode: bool = True) -> None:  # noqa: ARG002
        self.accountant = accounting.accountant_name(accountant)
        self.noise_multiplier: float | None = None  # of the latest make_private
        self._spent: Counter[tuple[float, float]] = Counter()  # (noise multiplier, sample rate) -> steps

    def make_private(
        self,
        *,
        module: nn.Module,
        optimizer: Optimizer,
        data_loader: DataLoader[Any],
        noise_multiplier: float,
        max_grad_norm: float,
        poisson_sampling: bool = True,
        clipping: str = "flat",
        loss_reduction: str = "mean",
        batch_first: bool = True,
        source: Source | None = None,
        criterion: Any = None,
        grad_sample_mode: str = "hooks",
        noise_generator: Any = None,
        secure_mode: bool = True,  # noqa: ARG002
    ) -> tuple[nn.Module, Optimizer, DataLoader[Any]]:
        """Make training private: the plain loop zero_grad, forward, backward, step over the returned objects.

        ``module`` and ``optimizer`` are the very objects passed, now with hooks; the loader is new. Row i of every
        layer's input must belong to record i of the batch, in every forward pass of a step, and samples must not be
        mixed: no in-batch negatives, no loss divided by the number of tokens in the batch. One backward pass a step.

        Args:
            module: model of covered layers, trainable parameters float32 or float64 on one device.
            optimizer: any torch optimizer over the module's trainable parameters, stepped without a closure.
            data_loader: loader over a data set with length and indexing.
            noise_multiplier: noise standard deviation / max_grad_norm, >= 0; 0 only clips (epsilon is infinite).
            max_grad_norm: L2 norm to which each sample's gradient over all parameters is clipped, > 0.
            poisson_sampling: if True, each record enters a batch with probability 1/len(data_loader). If False, the
                batches are those of ``data_loader``, accounted without amplification: one Gaussian mechanism for each
                pass over the returned loader, booked at the next step. So evaluate on a loader of your own.
            clipping: "flat", the only kind: one norm over all parameters.
            loss_reduction: "mean" or "sum" over the batch, whichever the loss does.
            batch_first: False if the sequences that Linear, LayerNorm and Embedding see are [T, B, ...].
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
        release_noise = _checks.not_negative(noise_multiplier, "noise_multiplier")
        clip = _checks.positive(max_grad_norm, "max_grad_norm")
        _check_options(clipping, loss_reduction, criterion, grad_sample_mode, noise_generator)
        layers = _check_model(module, optimizer)
        source = noise.SecureSource() if source is None else chosen(source)
        if poisson_sampling:
            loader = _sampling.poisson_loader(data_loader, source)
            expected = len(data_loader.dataset) / len(data_loader)  # type: ignore[arg-type]
        else:
            loader = _sampling.plain_loader(data_loader)
            expected = float(_sampling.batch_size_of(data_loader))
        if release_noise == 0:
            warnings.warn(
                "noise_multiplier is 0: gradients are clipped but not private (epsilon is infinite)", stacklevel=2
            )
        release = Release(release_noise, clip, expected, loss_reduction == "mean", batch_first)
        recorder = _recording.Recorder()
        account = _Account(self._spent, release_noise, loader.tally, 1 / len(loader) if poisson_sampling else None)
        step = PrivateStep(module, recorder, release, source, account.book)
        _recording.attach(layers, recorder)
        optimizer.register_step_pre_hook(step)
        _drop_on_zero_grad(optimizer, recorder)
        self.noise_multiplier = release_noise
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
        max_grad_norm: float,
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
            ValueError: also if this engine has spent budget already.
        """
        if self._spent:
            raise ValueError(
                "target_epsilon is for a whole run, but this engine has already spent budget; use a new engine"
            )
        epochs = _checks.whole(epochs, "epochs", least=1)
        _sampling.check_loader(data_loader)
        steps = len(data_loader)
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
        """Return epsilon at ``delta``, in (0, 1), of all steps so far; 0 before the first, infinite without noise."""
        return accounting.epsilon_of(self._spent, delta, self.accountant)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a PrivacyEngine cannot be copied or pickled: a copy would repeat its randomness or lose its account"
        )


class _Account:
    """Books the steps of one make_private."""

    def __init__(
        self, spent: Counter[tuple[float, float]], noise_multiplier: float, tally: _sampling.Tally, rate: float | None
    ) -> None:
        self.spent, self.noise_multiplier, self.tally, self.rate = spent, noise_multiplier, tally, rate
        self.passes_booked = 0
        self.warned = False

    def book(self) -> None:
        """Book one step, before its result exists."""
        if not self.tally.use():
            self.spent[self.noise_multiplier, 1.0] += 1
            if not self.warned:
                self.warned = True
                warnings.warn(
                    "a step used a batch that did not come from the loader returned by make_private; such steps are "
                    "accounted at sample rate 1",
                    stacklevel=2,
                )
        elif self.rate is not None:
            self.spent[self.noise_multiplier, self.rate] += 1
        else:
            # A record takes part at most once in each pass, so a pass is one Gaussian mechanism. All passes begun are
            # booked, also one that another overtook: batches of both may be in this step and later ones.
            self.spent[self.noise_multiplier, 1.0] += self.tally.passes - self.passes_booked
            self.passes_booked = self.tally.passes


def _drop_on_zero_grad(optimizer: Optimizer, recorder: _recording.Recorder) -> None:
    """zero_grad also forgets a backward pass that no step used, as it would forget its gradients."""
    original = optimizer.zero_grad

    @functools.wraps(original)
    def zero_grad(*args: Any, **kwargs: Any) -> None:
        recorder.drop()
        original(*args, **kwargs)

    optimizer.zero_grad = zero_grad  # type: ignore[method-assign]


def _check_options(
    clipping: str, loss_reduction: str, criterion: Any, grad_sample_mode: str, noise_generator: Any
) -> None:
    if clipping != "flat":
        raise ValueError(f"clipping must be 'flat' (one norm over all parameters), got {clipping!r}")
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


def _check_model(module: nn.Module, optimizer: Optimizer) -> list[CoveredLayer]:
    """Return the covered layers, or raise before anything is changed."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch Module, got {type(module).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch Optimizer, got {type(optimizer).__name__}")
    if _recording.is_attached(module):
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
