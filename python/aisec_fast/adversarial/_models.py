"""What the attack needs of a model, and models that are given as functions: ``GradientModel``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .. import _checks
from .._arrays import Array, describe
from . import _rows

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def fools(logits: Any, y: Any, *, targeted: bool = False) -> Any:
    """Whether the largest logit is where the attacker wants it, ``[B]``: anywhere but at ``y``, or there if ``targeted``."""
    hit = logits.argmax(1) == y
    return hit if targeted else ~hit


class Slope(NamedTuple):
    """What one pass over a batch gave, on the model's device."""

    gradient: Any  # of the loss, at each sample; like the batch, C-contiguous
    losses: Any | None  # [B]; NaN where a logit is NaN
    logits: Any | None  # [B, classes]
    largest: Any | None = None  # [B], of the gradient's magnitudes; None where it is not known


class Attackable(Protocol):
    """A model together with the loss of an attack."""

    def attacked(self) -> AbstractContextManager[object]:
        """A block inside which the model is ready, and after which it is as it was."""

    def labelled(self, x: Any, y: Any) -> tuple[Any, int]:
        """Labels as the other methods take them, and the number of target classes: if any, labels are ``[B, targets, ...]``."""

    def slope(self, adv: Any, y: Any, *, with_logits: bool, passes_left: int = 0) -> Slope:
        """Gradient of the loss at ``adv``; with logits only where they are asked for or cost nothing.

        Gradient and logits hold until the next call. ``passes_left`` says how many there may be, this one included.
        """

    def predict(self, adv: Any) -> Any:
        """The model's own logits ``[B, classes]``, without a gradient."""

    def fooled(self, logits: Any, y: Any) -> Flags:
        """Whether each sample fools the model, on the host. Logits hold no NaN."""

    def confirmed(self, hit: Flags, adv: Any, y: Any) -> Flags:
        """Those of ``hit``, verdicts by logits of ``slope``, that are the model's own verdicts too."""

    def may_wait(self) -> bool:
        """Whether ``settled`` may be asked later instead of ``confirmed``, of many at a time: nearly all are confirmed."""

    def settled(self, adv: Any, y: Any) -> Flags:
        """Which of these, all hit by logits of ``slope``, fool the model itself."""

    def misled(self) -> bool:
        """Whether what ``slope`` gave since this was last asked was not the model's: then it will be from now on."""

    def losses(self, logits: Any, y: Any) -> Any:
        """Loss of each sample, NaN where a logit is NaN: restarts are compared by it."""


@dataclass(frozen=True)
class GradientModel:
    """A model given by its gradient, for numpy, cupy, jax or anything that torch does not differentiate.

    The functions are given arrays of the library that the attack's ``x`` and ``y`` came from: numpy, cupy, torch, or another
    whose arrays have the array API's ``__array_namespace__`` with ``from_dlpack``, as those of jax do. (Arrays of other
    DLPack producers reach them as numpy's or, on CUDA, cupy's.)

    Args:
        gradient: ``gradient(x, y) -> d loss_i / d x_i``, an array like ``x`` (shape, dtype, library, device), where the
            loss of a sample depends on that sample alone. Untargeted attacks climb it. ``x`` must be left as it is; it
            is overwritten after the call, so keep a copy if you keep anything. (Not so for jax's, which never change.)
        predict: ``predict(x) -> logits [B, classes]``; needed for ``early_stop`` and for ``restarts`` above 1. The label
            with the largest logit is the model's answer.
    """

    gradient: Callable[[Any, Any], Any]
    predict: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        for name, function in (("gradient", self.gradient), ("predict", self.predict)):
            if not callable(function) and (name == "gradient" or function is not None):
                raise TypeError(f"{name} is {_checks.kind_of(function)}, expected a function")


class GivenGradient:
    """A ``GradientModel`` under attack.

    Args:
        model: the functions.
        x: the samples, as they are attacked.
        given: samples and labels as the user gave them: the functions get arrays of those libraries.
        targeted: whether labels are wanted answers.
    """

    def __init__(self, model: GradientModel, x: Array, given: tuple[Any, Any], *, targeted: bool) -> None:
        self._model, self._like, self._targeted = model, x, targeted
        self._makers = tuple(map(_rows.maker, given))

    def attacked(self) -> AbstractContextManager[object]:
        """See :class:`Attackable`."""
        return nullcontext()

    def labelled(self, x: Any, y: Any) -> tuple[Any, int]:  # noqa: ARG002 - the loss is the user's
        """See :class:`Attackable`."""
        return y, 0

    def slope(self, adv: Any, y: Any, *, with_logits: bool, passes_left: int = 0) -> Slope:  # noqa: ARG002
        """See :class:`Attackable`."""
        logits = self.predict(adv) if with_logits else None
        losses = None if logits is None else self.losses(logits, y)  # before the user's function meets wrong labels
        made_x, made_y = self._makers
        labels = y if made_y is None else made_y(y.copy())
        gradient = describe(self._model.gradient(_guarded(adv, made_x), labels), "the result of gradient(x, y)")
        wanted = (self._like.library, self._like.dtype, self._like.device)
        if (gradient.library, gradient.dtype, gradient.device) != wanted:
            raise TypeError(
                f"gradient(x, y) returned a {gradient.library} array of {gradient.dtype} on {gradient.device}, "
                f"expected {wanted[0]}, {wanted[1]} on {wanted[2]} as x"
            )
        if gradient.shape != tuple(adv.shape):
            raise ValueError(f"gradient(x, y) returned shape {gradient.shape}, expected {tuple(adv.shape)} as x")
        return Slope(_rows.contiguous(gradient), losses, logits)

    def predict(self, adv: Any) -> Floats:
        """See :class:`Attackable`; logits come to the host, as numpy."""
        if self._model.predict is None:
            raise ValueError("predict is missing from the GradientModel: early_stop and restarts above 1 need it")
        logits = describe(self._model.predict(_guarded(adv, self._makers[0])), "the result of predict(x)")
        if len(logits.shape) != 2 or logits.shape[0] != len(adv) or logits.shape[1] < 2:
            raise ValueError(
                f"predict(x) returned shape {logits.shape}, expected logits [{len(adv)}, classes] with 2 or more classes"
            )
        wide = logits.value.double() if logits.library == "torch" else logits.value  # numpy has no bfloat16
        return _rows.to_host(wide).astype(np.float64)

    def confirmed(self, hit: Flags, adv: Any, y: Any) -> Flags:  # noqa: ARG002 - there is one model only
        """See :class:`Attackable`."""
        return hit

    def may_wait(self) -> bool:
        """See :class:`Attackable`."""
        return False

    def misled(self) -> bool:
        """See :class:`Attackable`."""
        return False

    def settled(self, adv: Any, y: Any) -> Flags:
        """See :class:`Attackable`."""
        return self.fooled(self.predict(adv), y)

    def fooled(self, logits: Floats, y: Any) -> Flags:
        """See :class:`Attackable`."""
        flags: Flags = fools(logits, _rows.to_host(y), targeted=self._targeted)
        return flags

    def losses(self, logits: Floats, y: Any) -> Floats:
        """Margins (``_losses.margin``): the user's loss has no value here."""
        labels = _rows.to_host(y)
        classes = logits.shape[1]
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"y holds labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
        label = np.arange(classes) == labels[:, None]
        margins: Floats = np.where(label, -np.inf, logits).max(axis=1) - np.where(label, logits, 0).sum(axis=1)
        return margins


def _guarded(adv: Any, made: Callable[[Any], Any] | None) -> Any:
    """The samples as a user's function may see them: numpy's read-only, those of another library a copy."""
    if made is not None:
        return made(adv.copy())
    if not isinstance(adv, np.ndarray):
        return adv
    view = adv.view()
    view.flags.writeable = False
    return view
