"""Whole DP-SGD steps beside the plain step of the same model on the same batch, which is their floor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ._kernels import DifferenceError, has
from ._measure import Case, Contender, FloorPart

_MULTIPLIER, _BOUND = 1.0, 1.0
_BATCH = 256


def cases(threads: list[int]) -> Iterator[Case]:
    """One optimizer step of two of the peers' bench models; none without torch and dp-accounting."""
    if not (has("torch") and has("dp_accounting")):
        return
    for model in ("mlp", "cnn"):
        for count in threads:
            yield Case("privacy", f"step_{model}", (_BATCH,), "float32", count, 1, 0, partial(_prepare, model))


def _model(name: str) -> tuple[Any, tuple[int, ...]]:
    from torch import nn

    if name == "mlp":
        layers = [nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)]
        return nn.Sequential(*layers), (784,)
    convolutions = [nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)]
    convolutions += [nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)), (1, 28, 28)


def _prepare(name: str) -> tuple[list[Contender], list[FloorPart]]:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, shape = _model(name)
        images, labels = torch.rand(_BATCH, *shape), torch.randint(10, (_BATCH,))
        plain, _ = _model(name)
    plain.load_state_dict(model.state_dict())
    found = [Contender("native", _private(model, images, labels), partial(_check, name, images, labels))]
    if has("opacus"):
        peer, _ = _model(name)
        peer.load_state_dict(plain.state_dict())
        call = _opacus(peer, images, labels)
        found.append(Contender("opacus", call, lambda: "not checked", private_safe=False))
    return found, [FloorPart([_step(plain, torch.optim.SGD(plain.parameters(), lr=0.01), images, labels)])]


def _step(model: Any, optimizer: Any, images: Any, labels: Any) -> Callable[[], object]:
    from torch import nn

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _loader(images: Any, labels: Any) -> Any:
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(images, labels), batch_size=_BATCH)


def _private(model: Any, images: Any, labels: Any, multiplier: float = _MULTIPLIER) -> Callable[[], object]:
    import torch

    from aisec_fast.privacy import PrivacyEngine

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noise 0 in the check
        PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=_loader(images, labels),
            noise_multiplier=multiplier,
            max_grad_norm=_BOUND,
        )
    step = _step(model, optimizer, images, labels)

    def quiet_step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the engine notices that the batch is not from its loader
            step()

    return quiet_step


def _check(name: str, images: Any, labels: Any) -> str:
    """Without noise, the mean of the clipped gradients equals a loop over the samples in float64, to 1e-5."""
    import copy

    import torch
    from torch import nn

    few, shape = 8, images.shape[1:]
    model, _ = _model(name)
    exact = copy.deepcopy(model).double()
    expected = [torch.zeros_like(p) for p in exact.parameters()]
    for image, label in zip(images[:few].double(), labels[:few], strict=True):
        loss = nn.functional.cross_entropy(exact(image.reshape(1, *shape)), label.reshape(1))
        grads = torch.autograd.grad(loss, list(exact.parameters()))
        norm = torch.sqrt(sum((g.square().sum() for g in grads), torch.zeros((), dtype=torch.float64)))
        for total, grad in zip(expected, grads, strict=True):
            total += grad * min(1.0, _BOUND / float(norm)) / few
    _private(model, images[:few], labels[:few], multiplier=0.0)()
    for parameter, total in zip(model.parameters(), expected, strict=True):
        error = float((parameter.grad.double() * 1.0 - total).abs().max())
        if error > 1e-5:
            raise DifferenceError(f"a clipped gradient differs from the float64 loop's by {error:.2g}")
    return "1e-5"


def _opacus(model: Any, images: Any, labels: Any) -> Callable[[], object]:
    import torch
    from opacus import PrivacyEngine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        private, optimizer, _ = PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            data_loader=_loader(images, labels),
            noise_multiplier=_MULTIPLIER,
            max_grad_norm=_BOUND,
            poisson_sampling=False,
        )
    return _step(private, optimizer, images, labels)
