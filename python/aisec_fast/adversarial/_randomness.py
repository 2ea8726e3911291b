"""Models that draw random numbers, and preprocessing without a gradient: wrappers that any attack can be given.

Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security (2018): expectation over transformations
(EOT) and the straight-through estimator, the plain form of backward pass differentiable approximation (BPDA).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import _checks


class Averaged(nn.Module):
    """A model that answers by the mean of its logits over several draws of its random numbers (EOT).

        x_adv = adversarial.pgd(adversarial.Averaged(model, samples=20), x, y, eps=8 / 255)

    Gradients of the mean are means of gradients, and verdicts are those of the mean. Numbers come from torch's own
    generators, which are put back after each call: what is drawn depends on ``seed`` and on how many calls there were, and
    nothing outside changes. Every call draws anew.

    Args:
        model: gives logits ``[B, classes]``, and draws with torch's generators when called (in eval mode, under attack).
        samples: number of draws, at least 1.
        at_once: most draws that are stacked into one batch; the others follow, and are computed again in the backward pass,
            so that memory is that of one stack. Default: all.
        seed: of the draws. Default: from the operating system.
    """

    def __init__(
        self, model: nn.Module, samples: int = 20, *, at_once: int | None = None, seed: int | None = None
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is {_checks.kind_of(model)}, expected a torch.nn.Module that gives logits")
        self.model = model
        self.samples = _checks.whole(samples, "samples", least=1)
        self.at_once = self.samples if at_once is None else _checks.whole(at_once, "at_once", least=1)
        self._draws = torch.Generator()
        if seed is None:
            self._draws.seed()
        else:
            self._draws.manual_seed(_checks.whole(seed, "seed"))

    def forward(self, x: Tensor) -> Tensor:
        """The mean of the logits over the draws, ``[B, classes]``."""
        counts = [min(self.at_once, self.samples - done) for done in range(0, self.samples, self.at_once)]
        with _own_draws(self._draws):
            if len(counts) == 1 or not torch.is_grad_enabled():
                sums = [self._sum(x, count) for count in counts]
            else:
                sums = [checkpoint(self._sum, x, count, use_reentrant=False) for count in counts]
        return torch.stack(sums).sum(0) / self.samples

    def _sum(self, x: Tensor, count: int) -> Tensor:
        logits = self.model(x.repeat(count, *[1] * (x.ndim - 1)))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count * len(x):
            what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else _checks.kind_of(logits)
            raise TypeError(f"model returned {what}, expected one tensor of logits [{count * len(x)}, classes]")
        return logits.reshape(count, len(x), -1).sum(0)


@contextmanager
def _own_draws(draws: torch.Generator) -> Iterator[None]:
    """Torch's generators seeded by the next of ``draws``, and put back afterwards.

    Those of all CUDA devices too, once there are any: a model may be spread over several, or draw on another than that of x.
    torch.manual_seed would also write down a seed for CUDA where that is not in use yet.
    """
    generators = [torch.default_generator, *(torch.cuda.default_generators if torch.cuda.is_initialized() else ())]  # type: ignore[no-untyped-call]
    states = [generator.get_state() for generator in generators]
    seed = int(torch.randint(2**63 - 1, (), generator=draws))
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


class StraightThrough(nn.Module):
    """Preprocessing without a gradient, which the backward pass takes for the identity (straight-through, BPDA).

        defended = nn.Sequential(adversarial.StraightThrough(quantise), model)

    Args:
        function: of a tensor, gives a tensor of its shape, dtype and device; it may do anything, also without torch.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not callable(function):
            raise TypeError(f"function is {_checks.kind_of(function)}, expected a function of a tensor")
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """``function(x)``; its gradient is passed on unchanged."""
        result: Tensor = _Through.apply(x, self.function)  # type: ignore[no-untyped-call]
        return result


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, function: Callable[[Tensor], Any]) -> Tensor:
        result = function(x.detach().clone())
        wanted = (tuple(x.shape), x.dtype, x.device)
        if not isinstance(result, Tensor) or (tuple(result.shape), result.dtype, result.device) != wanted:
            what = (
                f"shape {tuple(result.shape)}, {result.dtype} on {result.device}"
                if isinstance(result, Tensor)
                else _checks.kind_of(result)
            )
            raise TypeError(
                f"function(x) returned {what}, expected a tensor of shape {wanted[0]}, {x.dtype} on {x.device} as x"
            )
        through: Tensor = result.detach()
        return through

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
