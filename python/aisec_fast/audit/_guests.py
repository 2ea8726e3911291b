"""The canaries of an audit in a private training: who takes part in which step, and what each release says of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import _checks, noise
from .._sources import Source, chosen
from ..privacy import _charges
from ..privacy._clip import Norms, Total, Weights
from ..privacy._coverage import CoveredLayer, examine
from ..privacy._engine import _Account
from ..privacy._layers import LayerGradients
from ..privacy._recording import Use
from ..privacy._step import Mechanism, PrivateStep
from . import _canaries
from ._canaries import Place
from ._report import AuditReport, report

LEAST_CANARIES = 20  # with fewer no common confidence is reached
_ONE_IN = 5  # canaries is guessed by default
_SIZE = 2.0**10  # norm of a canary before clipping, in clipping norms


class GradientCanaries:
    """Canaries in a private training, from now until :meth:`result` or :meth:`detach`.

    A canary is a sample whose gradient is one coordinate, far longer than the clipping norm, which the engine clips and
    adds as it does a record's. A secret fair coin makes it a member or not. Members take part as a record would: in each
    step with the loader's sampling rate, or in the first step of each pass of a loader that does not sample. They disturb
    the training: throw its model away.

    Args:
        optimizer: the optimizer that ``make_private`` returned.
        count: number of canaries, at least 20, on different coordinates, spread over all trainable parameters.
        guesses: how many of them will be guessed; fixed here, before anything is seen. Default: one in five, which suits
            epsilons of 1 to 10; less noise allows more of them.
        source: randomness of coins, coordinates and participation. Default: this process's SecureSource.

    Raises:
        TypeError, ValueError: an argument, by name; the optimizer is not private, or is being audited already.
    """

    def __init__(
        self, optimizer: Optimizer, *, count: int = 1000, guesses: int | None = None, source: Source | None = None
    ) -> None:
        step = _private_step(optimizer)
        self.count, self.guesses = checked_numbers(count, guesses)
        self._groups = _groups(step, self.count, chosen(source))
        account = getattr(step.book, "__self__", None)
        assert isinstance(account, _Account)
        self._step, self._account, self._passes = step, account, account.tally.passes
        self.steps = 0  # releases seen
        self._rate = 0.0  # with which members take part in the step that goes on
        self._spent: Counter[tuple[float, float]] | None = None  # all that was booked until the end
        self._guests: list[Callable[[], list[Use]]] = [self._look, *(self._inviter(group) for group in self._groups)]
        most = self.count if account.rate is None else _charges.largest_batch(self.count, account.rate)
        self._places = most + 1  # one for the look at the records' sum
        step.mechanism.most_samples += self._places
        step.guests += self._guests
        self._hook = optimizer.register_step_post_hook(self._after)

    def detach(self) -> None:
        """Take the canaries out of the training; what has been seen stays. A second call does nothing."""
        if self._spent is not None:
            return
        self._spent = Counter(self._account.ledger.spent)
        self._hook.remove()
        self._step.guests[:] = [guest for guest in self._step.guests if guest not in self._guests]
        self._step.mechanism.most_samples -= self._places

    def result(self, *, delta: float, confidence: float = 0.95) -> AuditReport:
        """End the audit and say what the releases tell about the coins.

        Args:
            delta: at which epsilon is bounded, in (0, 1); of use well below 1 / count.
            confidence: in (0, 1).

        Raises:
            TypeError, ValueError: an argument, by name; no step was taken.
        """
        delta, confidence = _checks.probability(delta, "delta"), _checks.probability(confidence, "confidence")
        self.detach()
        if not self.steps:
            raise ValueError("no step was taken while the canaries were attached: attach them before the training loop")
        assert self._spent is not None
        scores = np.concatenate([group.scores for group in self._groups])
        members = np.concatenate([group.members for group in self._groups])
        surest = np.argsort(-np.abs(scores), kind="stable")[: self.guesses]
        return report(
            self._spent,
            canaries=self.count,
            guesses=self.guesses,
            correct=int(((scores > 0) == members)[surest].sum()),
            steps=self.steps,
            delta=delta,
            confidence=confidence,
        )

    def _look(self) -> list[Use]:
        """A guest that adds nothing: it comes first and sees the sum of the records (docs/audit.md, section 2)."""
        rate = self._account.rate
        if rate is None:  # once a pass
            self._rate = float(self._account.tally.passes != self._passes)
            self._passes = self._account.tally.passes
        else:
            self._rate = rate
        parameters = {str(number): group.place.parameter for number, group in enumerate(self._groups)}
        layer = CoveredLayer("the audit", self._step.module, LayerGradients, parameters)
        return [Use(layer, _Look(self._groups, self._step.module))]

    def _inviter(self, group: _Group) -> Callable[[], list[Use]]:
        return lambda: group.invite(self._rate, self._step.mechanism.max_grad_norm)

    def _after(self, _optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        """Post-hook of the optimizer: score the release, if this was the last part of a batch."""
        if self._step.going_on or any(group.place.parameter.grad is None for group in self._groups):
            return
        self.steps += 1
        for group in self._groups:
            group.score(self._rate, self._step.mechanism)


class _Group:
    """The canaries of one parameter."""

    def __init__(self, place: Place, share: float, coordinates: Tensor, source: Source) -> None:
        self.place, self.share, self.source = place, share, source
        self.coordinates = coordinates
        count = len(coordinates)
        self.members = noise.bernoulli(count, Fraction(1, 2), source=source)
        self.signs = torch.from_numpy(2.0 * noise.bernoulli(count, Fraction(1, 2), source=source) - 1.0)
        self.scores = np.zeros(count)  # log-likelihood ratio of member to non-member
        self.records = torch.zeros(count, dtype=torch.float64)  # the sum without the canaries

    def invite(self, rate: float, max_norm: float) -> list[Use]:
        """The members that take part in one logical batch."""
        # Drawn for all: how many are members is a secret too.
        mask = torch.from_numpy(noise.poisson_mask(len(self.members), rate, source=self.source) & self.members)
        layer = self.place.layer
        crafted = _canaries.craft(
            layer, self.place.name, self.coordinates[mask], self.signs[mask], size=_SIZE * max_norm
        )
        return [Use(layer, layer.rule(layer.module, *crafted))]

    def at(self, values: Tensor) -> Tensor:
        """What ``values``, in the parameter's shape, hold at the canaries' coordinates."""
        return values.detach().reshape(-1)[self.coordinates.to(values.device)].double().cpu()

    def score(self, rate: float, mechanism: Mechanism) -> None:
        """Add what one release says: member with the rate, and then a unit more than Gaussian noise, or not."""
        gradient = self.place.parameter.grad
        if gradient is None or not rate:
            return
        unit = mechanism.max_grad_norm * self.share
        seen = (self.signs * (self.at(gradient) * mechanism.divisor - self.records) / unit).numpy()
        deviation = mechanism.noise_multiplier / self.share
        ratio = (seen - 0.5) / deviation**2 if deviation else seen - 0.5
        with np.errstate(divide="ignore"):
            self.scores += np.logaddexp(np.log1p(-rate), np.log(rate) + ratio)


class _Look(LayerGradients):
    """The rule of one sample without any gradient. Being added up, it reads what is there already."""

    def __init__(self, groups: list[_Group], module: torch.nn.Module) -> None:
        empty = torch.zeros(1, 0)
        super().__init__(module, empty, empty)
        self.groups = groups

    def keeps(self, name: str) -> bool:  # noqa: ARG002
        return False

    def terms(self, name: str) -> int:  # noqa: ARG002
        return 0

    def norms(self, name: str) -> Norms:
        nothing = torch.zeros(1, dtype=torch.float64, device=self.groups[int(name)].place.parameter.device)
        return Norms(nothing, nothing)

    def add_total(self, name: str, weights: Weights, total: Total) -> None:  # noqa: ARG002
        group = self.groups[int(name)]
        group.records = torch.zeros_like(group.signs) if total.value is None else group.at(total.value)


def one_run(
    train: Callable[[Callable[[Optimizer], GradientCanaries]], object],
    *,
    delta: float,
    canaries: int = 1000,
    guesses: int | None = None,
    confidence: float = 0.95,
    source: Source | None = None,
) -> AuditReport:
    """Audit one private training (Steinke, Nasr, Jagielski 2023, with canaries in the gradients).

    Args:
        train: called once with ``attach``. It makes a training private, calls ``attach(optimizer)`` and runs its loop.
        delta: at which epsilon is bounded, in (0, 1); of use well below 1 / canaries.
        canaries, guesses, source: ``count``, ``guesses`` and ``source`` of :class:`GradientCanaries`.
        confidence: in (0, 1).

    Returns:
        A lower bound on epsilon of that training, beside its claim. The model of the training is good for nothing else.

    Raises:
        TypeError, ValueError: an argument, by name; ``train`` did not attach one private optimizer, or took no step.
    """
    _checks.probability(delta, "delta")
    _checks.probability(confidence, "confidence")
    checked_numbers(canaries, guesses)
    chosen(source)
    if not callable(train):
        raise TypeError(f"train is {_checks.kind_of(train)}, expected a function that is called with attach")
    attached: list[GradientCanaries] = []

    def attach(optimizer: Optimizer) -> GradientCanaries:
        if attached:
            raise ValueError("attach was called twice: an audit is of one training; use GradientCanaries for several")
        attached.append(GradientCanaries(optimizer, count=canaries, guesses=guesses, source=source))
        return attached[0]

    try:
        train(attach)
    finally:
        for found in attached:
            found.detach()
    if not attached:
        raise ValueError("train did not call attach(optimizer)")
    return attached[0].result(delta=delta, confidence=confidence)


def checked_numbers(canaries: object, guesses: object) -> tuple[int, int]:
    """The numbers of canaries and of guesses, or TypeError, ValueError."""
    count = _checks.whole(canaries, "canaries", least=LEAST_CANARIES)
    made = count // _ONE_IN if guesses is None else _checks.whole(guesses, "guesses", least=1)
    if made > count:
        raise ValueError(f"guesses is {made}, expected at most the number of canaries, which is {count}")
    return count, made


def _private_step(optimizer: object) -> PrivateStep:
    """The private step of ``optimizer``, which has no canaries yet."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch Optimizer, got {type(optimizer).__name__}")
    for hook in optimizer._optimizer_step_pre_hooks.values():
        if isinstance(hook, PrivateStep):
            if hook.guests:
                raise ValueError("optimizer is being audited already: take the result of that audit first")
            return hook
    raise ValueError("optimizer is not private: pass the one that make_private returned")


def _groups(step: PrivateStep, count: int, source: Source) -> list[_Group]:
    places = _canaries.places(examine(step.module).layers)
    capacities = [len(place.coordinates) for place in places]
    if count > sum(capacities):
        raise ValueError(
            f"canaries is {count}, expected at most {sum(capacities)}, the model's trainable coordinates in layers that "
            "canaries are made for (docs/audit.md)"
        )
    names = {id(parameter): name for name, parameter in step.trainable.items()}
    groups = []
    for place, number in zip(places, _canaries.spread(count, capacities), strict=True):
        if number:
            chosen_ones = noise.permutation(len(place.coordinates), source=source)[:number]
            share = step.mechanism.shares.get(names[id(place.parameter)], 1.0)
            groups.append(_Group(place, share, place.coordinates[torch.from_numpy(chosen_ones)], source))
    return groups
