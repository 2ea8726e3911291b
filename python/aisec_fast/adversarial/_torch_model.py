"""Torch modules under attack: gradients with respect to the input alone, and everything left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from ._losses import LOSSES
from ._models import Flags, Slope

Values = Callable[[Tensor], Tensor]  # of logits [B, classes]: a value for each sample, [B]


class TorchModel:
    """A module that gives logits ``[B, classes]``, and the batch of labels it is attacked with.

    The parameters' ``.grad`` and ``requires_grad`` are never touched.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, *, largest_label: int, least_classes: int = 2, needs: str = ""
    ) -> None:
        self._module, self._device, self._largest_label = module, device, largest_label
        self._least_classes, self._needs = least_classes, needs

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
        return model, labels

    @contextmanager
    def attacked(self) -> Iterator[None]:
        """Every submodule in eval mode, gradients on, autocast off.

        ``training`` is set and restored as a plain flag: ``train()`` may be overridden to do more (merge weights, skip
        frozen parts), which could not be undone.
        """
        before: list[tuple[nn.Module, bool]] = []
        # Half precision turns small gradients into zeros, which would pass for robustness.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(self._device.type, enabled=False):
            try:
                for module in self._module.modules():
                    before.append((module, module.training))
                    module.training = False
                yield
            finally:
                for module, training in before:
                    module.training = training

    def gradient(self, adv: Tensor, values: Values) -> Slope:
        """The gradient of the sum of ``values(logits)`` at ``adv``, with the values and the logits."""
        leaf, logits = self._differentiable(adv)
        losses = values(logits)
        return Slope(self._gradient(losses, leaf), losses.detach(), logits.detach())

    def gradients(self, adv: Tensor, values: Values) -> Iterator[tuple[Tensor, Tensor]]:
        """For each column of ``values(logits)``, which are ``[B, columns]``, gradient and value; from one forward pass."""
        leaf, logits = self._differentiable(adv)
        columns = values(logits).unbind(1)
        for index, losses in enumerate(columns, 1):
            yield self._gradient(losses, leaf, keep=index < len(columns)), losses.detach()

    def _differentiable(self, adv: Tensor) -> tuple[Tensor, Tensor]:
        """A leaf like ``adv`` and the logits there."""
        leaf = adv.detach().requires_grad_(True)
        logits = self._logits(leaf.clone())  # a module may work in place; what it is given is its own
        if not logits.requires_grad:
            raise ValueError(
                "model gave logits without a gradient (detached, or made under no_grad), expected them to be "
                "differentiable with respect to x"
            )
        return leaf, logits

    @staticmethod
    def _gradient(losses: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
        (gradient,) = torch.autograd.grad(losses, leaf, torch.ones_like(losses), allow_unused=True, retain_graph=keep)
        if gradient is None:
            raise ValueError("model gave logits that do not depend on x, expected a model of x")
        return gradient.contiguous()

    def logits(self, adv: Tensor) -> Tensor:
        """Logits without a gradient, float32 or float64."""
        with torch.no_grad():
            return self._logits(adv.clone())  # a module may work in place where no gradient is wanted

    def _logits(self, batch: Tensor) -> Tensor:
        logits = self._module(batch)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"model returned a {type(logits).__name__}, expected one tensor of logits [B, classes]; wrap the model in "
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
        if logits.device != batch.device:
            raise ValueError(f"model returned logits on {logits.device}, expected {batch.device} as x")
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class TorchLoss:
    """A module together with the loss of an attack by gradients alone: see :class:`Attackable`."""

    def __init__(self, model: TorchModel, loss: str, *, targeted: bool) -> None:
        self._model, self._values, self._targeted = model, LOSSES[loss].values, targeted
        self.attacked = model.attacked

    def slope(self, adv: Tensor, y: Tensor, *, with_logits: bool) -> Slope:  # noqa: ARG002 - logits are at hand
        """See :class:`Attackable`."""
        return self._model.gradient(adv, lambda logits: self._values(logits, y))

    def predict(self, adv: Tensor) -> Tensor:
        """See :class:`Attackable`."""
        return self._model.logits(adv)

    def fooled(self, logits: Tensor, y: Tensor) -> Flags:
        """See :class:`Attackable`."""
        hit = logits.argmax(1) == y
        flags: Flags = (hit if self._targeted else ~hit).cpu().numpy()
        return flags

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """See :class:`Attackable`."""
        with torch.no_grad():
            return self._values(logits, y)
