"""Torch modules under attack: gradients with respect to the input alone, and everything left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from ._losses import LOSSES
from ._models import Flags, Slope


class TorchModel:
    """A module that gives logits ``[B, classes]``, with a loss: see :class:`Attackable`.

    The parameters' ``.grad`` and ``requires_grad`` are never touched.
    """

    def __init__(self, module: nn.Module, device: torch.device, *, loss: str, targeted: bool, largest: int) -> None:
        self._module, self._device, self._targeted = module, device, targeted
        self._loss_name, self._loss = loss, LOSSES[loss]
        self._largest_label = largest

    @classmethod
    def made(cls, module: nn.Module, x: Tensor, y: Tensor, *, loss: str, targeted: bool) -> tuple[TorchModel, Tensor]:
        """The model and int64 labels, checked as far as they can be before the number of classes is known."""
        devices = {tensor.device for tensor in chain(module.parameters(), module.buffers())}
        if devices and x.device not in devices:
            raise ValueError(f"x lives on {x.device}, model on {', '.join(map(str, devices))}; expected one device")
        with torch.inference_mode(False):  # a tensor made in inference mode cannot be saved for a backward pass
            labels = y.to(torch.int64, copy=True)
        smallest, largest = (v.item() for v in labels.aminmax()) if labels.numel() else (0, 0)
        if smallest < 0:
            raise ValueError(f"y holds label {smallest}, expected 0 or above")
        return cls(module, x.device, loss=loss, targeted=targeted, largest=int(largest)), labels

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

    def slope(self, adv: Tensor, y: Tensor, *, with_logits: bool) -> Slope:  # noqa: ARG002 - logits are at hand
        """See :class:`Attackable`."""
        leaf = adv.detach().requires_grad_(True)
        logits = self._logits(leaf.clone())  # a module may work in place; what it is given is its own
        if not logits.requires_grad:
            raise ValueError(
                "model gave logits without a gradient (detached, or made under no_grad), expected them to be "
                "differentiable with respect to x"
            )
        losses = self._loss.values(logits, y)
        (gradient,) = torch.autograd.grad(losses, leaf, torch.ones_like(losses), allow_unused=True)
        if gradient is None:
            raise ValueError("model gave logits that do not depend on x, expected a model of x")
        return Slope(gradient.contiguous(), losses.detach(), logits.detach())

    def predict(self, adv: Tensor) -> Tensor:
        """See :class:`Attackable`."""
        with torch.no_grad():
            return self._logits(adv.clone())  # a module may work in place where no gradient is wanted

    def fooled(self, logits: Tensor, y: Tensor) -> Flags:
        """See :class:`Attackable`."""
        hit = logits.argmax(1) == y
        flags: Flags = (hit if self._targeted else ~hit).cpu().numpy()
        return flags

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """See :class:`Attackable`."""
        with torch.no_grad():
            return self._loss.values(logits, y)

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
        if classes < self._loss.least_classes:
            raise ValueError(
                f"model returned logits of {classes} classes, expected at least {self._loss.least_classes} for loss "
                f"{self._loss_name!r}"
            )
        if self._largest_label >= classes:
            raise ValueError(f"y holds label {self._largest_label}, expected 0 to {classes - 1} as the model's logits")
        if logits.device != batch.device:
            raise ValueError(f"model returned logits on {logits.device}, expected {batch.device} as x")
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
