"""Whole DP-SGD steps beside the plain step of the same model on the same batch, which is their floor."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ._kernels import DifferenceError, Whole, has, on_each_device
from ._measure import Case, Contender, FloorPart

if TYPE_CHECKING:
    from ._models import Bench

_MULTIPLIER, _BOUND, _RATE = 1.0, 1.0, 0.01
_CHECKED = 4  # samples of the check against a float64 loop
BATCHES = {"mlp": 256, "cnn": 256, "resnet": 64, "transformer": 32}


def cases(threads: list[int]) -> Iterator[Case]:
    """One optimizer step of each model; none without torch and dp-accounting."""
    if not (has("torch") and has("dp_accounting")):
        return
    for model, batch in BATCHES.items():
        for count in threads:
            yield Case("privacy", f"step_{model}", (batch,), "float32", count, 1, 0, partial(_prepare, model))


def _prepare(name: str) -> tuple[list[Contender], list[FloorPart]]:
    return on_each_device(lambda device: _steps(name, device))


def _steps(name: str, device: str) -> Whole:
    from . import _models

    def bench() -> Bench:
        return _models.training(name).to(device)

    peers: dict[str, Any] = {}
    if has("opacus"):
        peers["opacus"] = (opacus(bench()), partial(_check, name, device, opacus), False)
    ours = (private(bench()), partial(_check_ours, name, device), True)
    return Whole(ours, peers, plain(bench()))


def plain(bench: Bench) -> Callable[[], object]:
    """A step without privacy."""
    return _step(bench, _optimizer(bench))


def _optimizer(bench: Bench) -> Any:
    import torch

    return torch.optim.SGD(bench.model.parameters(), lr=_RATE)


def _step(bench: Bench, optimizer: Any) -> Callable[[], object]:
    def step() -> None:
        optimizer.zero_grad()
        bench.loss(bench.x, bench.y).backward()
        optimizer.step()

    return step


def _arguments(bench: Bench, multiplier: float) -> dict[str, Any]:
    from torch.utils.data import DataLoader, TensorDataset

    return {
        "module": bench.model,
        "optimizer": _optimizer(bench),
        "data_loader": DataLoader(TensorDataset(bench.x, bench.y), batch_size=len(bench.x)),
        "noise_multiplier": multiplier,
        "max_grad_norm": _BOUND,
    }


def private(
    bench: Bench, multiplier: float = _MULTIPLIER, memory: str = "fast", layers: str = "fast"
) -> Callable[[], object]:
    """A step of ours."""
    from aisec_fast.privacy import PrivacyEngine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noise 0 in the check
        _, optimizer, _ = PrivacyEngine(memory=memory, layers=layers).make_private(**_arguments(bench, multiplier))
    return _quiet(_step(bench, optimizer))


def _quiet(step: Callable[[], object]) -> Callable[[], object]:
    """Without warnings: our engine notices that the batch is not from its loader, Opacus that inputs need no gradient."""

    def call() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step()

    return call


def _check_ours(name: str, device: str) -> str:
    """With torch's own layers to 1e-6 of the bound; with forms that round differently (3 to 4 times the error of each
    layer of 3 x 3, which the layers before and after add to) to 1e-4."""
    _check(name, device, partial(private, layers="torch"))
    return _check(name, device, private, "1e-4")


def _check(
    name: str, device: str, stepper: Callable[[Bench, float], Callable[[], object]], within: str = "1e-6"
) -> str:
    """Without noise, the mean of the clipped gradients equals that of a loop over the samples in float64.

    It must be a sum of the samples' clipped gradients to ``within`` of the bound, each with a weight of at most 1: an engine may
    clip by an upper bound of the norm (ours does where it adds up tokens), but by 3 % at most.
    """
    import torch

    from . import _models

    bench = _models.training(name, _CHECKED).to(device)
    exact = copy.deepcopy(bench.model).double()
    x = bench.x.double() if bench.x.is_floating_point() else bench.x
    clipped = []
    for i in range(_CHECKED):
        loss = _models.Bench(exact, x, bench.y).loss(x[i : i + 1], bench.y[i : i + 1])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(exact.parameters()))])
        clipped.append(gradient * min(1.0, _BOUND / float(gradient.norm())) / _CHECKED)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # the model's own convolutions on a GPU
        stepper(bench, 0.0)()
    found = [parameter.grad for parameter in bench.model.parameters()]
    if any(gradient is None for gradient in found):
        raise DifferenceError("a parameter has no gradient")
    result = torch.cat([gradient.double().flatten() for gradient in found if gradient is not None])
    samples = torch.stack(clipped)
    weights = torch.linalg.solve(samples @ samples.T, samples @ result)  # least squares
    error = float((result - weights @ samples).abs().max())
    least, most = float(weights.min()), float(weights.max())
    if not (error <= float(within) * _BOUND and least >= 0.97 and most <= 1.0 + max(1e-5, float(within))):
        raise DifferenceError(
            f"off the samples' clipped gradients by {error:.2g}, weights from {least:.4f} to {most:.4f}"
        )
    return within


def opacus(bench: Bench, multiplier: float = _MULTIPLIER) -> Callable[[], object]:
    """A step of Opacus's."""
    from opacus import PrivacyEngine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizer, _ = PrivacyEngine().make_private(**_arguments(bench, multiplier), poisson_sampling=False)
    return _quiet(_step(bench._replace(model=model), optimizer))
