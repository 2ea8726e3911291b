"""Cases of the adversarial family: the fused steps on batches, and a whole PGD beside the passes it cannot avoid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from aisec_fast import adversarial
from aisec_fast._reference import adversarial as reference

from ._kernels import (
    Array,
    DifferenceError,
    Operation,
    Peers,
    Whole,
    close,
    contenders,
    has,
    like,
    on_each_device,
    same_bits,
)
from ._measure import Case, Contender, FloorPart

if TYPE_CHECKING:
    from ._models import Bench

_ROWS = 64
_EPS, _STEP = 8 / 255, 2 / 255
_LENGTHS = {"linf": (_EPS, _STEP), "l2": (_EPS, _STEP), "l1": (12.0, 0.75), "l0": (20.0, 2.0)}  # of ball and step
_WRITTEN = ("linf", "l2")  # norms whose step is a few lines of numpy or torch
_CHECKED_ROWS = 2  # compared with the reference, whose float64 loops are slow
_ATTACK_STEPS, _CHECKED_STEPS = 10, 3
_BATCHES = {"cnn": 256, "resnet": 64, "mlp": 256}
_EARLY_STEPS = 10
_LEFT = {"cnn": (58, 20, 2), "resnet": (69,)}  # percent of samples that no attack fools
_EARLY_ROWS = {"cnn": 128, "resnet": 64}


def cases(sizes: list[int], threads: list[int]) -> Iterator[Case]:
    """The steps of every norm in place, and whole attacks where torch is there."""
    for norm in _LENGTHS:
        for size in sizes:
            shape = (_ROWS, size // _ROWS)
            for count in threads:
                prepare: Callable[[], Any] = partial(_prepare_step, norm, shape)
                yield Case("adversarial", f"{norm}_step", shape, "float32", count, size, 16, prepare)
    if has("torch"):
        for model, batch in _BATCHES.items():
            for count in threads:
                prepare = partial(_prepare_pgd, model)
                yield Case("adversarial", f"pgd_{model}", (batch,), "float32", count, 1, 0, prepare)
                for left in _LEFT.get(model, ()) if count == threads[-1] else ():
                    prepare = partial(_prepare_early, model, left)
                    yield Case(
                        "adversarial", f"pgd_early_{model}", (_EARLY_ROWS[model], left), "float32", count, 1, 0, prepare
                    )


def _prepare_step(norm: str, shape: tuple[int, int]) -> tuple[list[Contender], list[FloorPart]]:
    """One step from x itself; the result of the first call is checked, later ones move on in place."""
    generator = np.random.default_rng(0)
    x = generator.random(shape, dtype=np.float32)
    gradient = generator.standard_normal(shape, dtype=np.float32)
    eps, step_size = _LENGTHS[norm]

    def call(values: Any) -> Callable[[], Any]:
        adv = values.clone() if hasattr(values, "clone") else values.copy()
        slope = like(gradient, values)
        settings: dict[str, Any] = {"eps": eps, "step_size": step_size, "norm": norm, "check": False}
        return lambda: adversarial.pgd_step(adv, values, slope, **settings, out=adv)

    few = x[:_CHECKED_ROWS]
    expected = np.empty_like(few)
    kernel = getattr(reference, f"{norm}_step")
    kernel(few, few, gradient[:_CHECKED_ROWS], step_size, eps, 0.0, 1.0, expected)
    near = close(expected, 1e-6)

    def first(result: Array) -> str:
        return near(result[:_CHECKED_ROWS])

    def on_gpu(there: Any) -> Peers:
        return {"torch": (_torch(norm, there, like(gradient, there)), first, True)} if norm in _WRITTEN else {}

    peers: Peers = {name: (peer, first, True) for name, peer in _peers(norm, x, gradient).items()}
    return contenders(Operation(call, same_bits(expected), peers, peers_on_gpu=on_gpu), x, reads=2, updates=1)


def _peers(norm: str, x: Array, gradient: Array) -> dict[str, Callable[[], Any]]:
    """The step as one writes it, in numpy and, in place, in torch: for the norms where that is a few lines."""
    if norm not in _WRITTEN:
        return {}
    adv = x.copy()

    def numpy_step() -> Array:
        if norm == "linf":
            moved = adv + np.float32(_STEP) * np.sign(gradient)
            delta = np.clip(moved - x, -np.float32(_EPS), np.float32(_EPS))
        else:
            moved = adv + np.float32(_STEP) * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
            delta = moved - x
            delta *= np.minimum(1, np.float32(_EPS) / np.linalg.norm(delta, axis=1, keepdims=True))
        return np.clip(x + delta, 0, 1, out=adv)

    found: dict[str, Callable[[], Any]] = {"numpy": numpy_step}
    if has("torch"):
        import torch

        found["torch"] = _torch(norm, torch.from_numpy(x), torch.from_numpy(gradient))
    return found


def _torch(norm: str, x: Any, slope: Any) -> Callable[[], Any]:
    import torch

    moved = x.clone()

    def step() -> Any:
        if norm == "linf":
            moved.add_(slope.sign(), alpha=_STEP).sub_(x).clamp_(-_EPS, _EPS)
        else:
            moved.add_(slope / torch.linalg.vector_norm(slope, dim=1, keepdim=True), alpha=_STEP).sub_(x)
            moved.mul_((_EPS / torch.linalg.vector_norm(moved, dim=1, keepdim=True)).clamp_(max=1))
        return moved.add_(x).clamp_(0, 1)

    return step


def _prepare_pgd(name: str) -> tuple[list[Contender], list[FloorPart]]:
    """PGD, 10 steps; the floor is 10 forward and backward passes to the input."""
    from . import _models

    return on_each_device(lambda device: _pgd(_models.attack(name).to(device)))


def _pgd(bench: Bench) -> Whole:
    model, x, y = bench
    settings: dict[str, Any] = {"eps": _EPS, "random_start": False}

    def attack(steps: int = _ATTACK_STEPS) -> Any:
        return adversarial.pgd(model, x, y, step_size=_STEP, steps=steps, **settings)

    peers: dict[str, Any] = {}
    if has("torchattacks"):
        import torchattacks

        def peer(steps: int = _ATTACK_STEPS) -> Any:
            return torchattacks.PGD(model, alpha=_STEP, steps=steps, **settings)(x, y)

        peers["torchattacks"] = (peer, lambda: _check(bench, peer(_CHECKED_STEPS)), True)
    ours = (attack, lambda: _check(bench, attack(_CHECKED_STEPS)), True)
    return Whole(ours, peers, lambda: _passes(bench, _ATTACK_STEPS))


def _passes(bench: Bench, steps: int) -> None:
    """What no attack of so many steps can avoid."""
    import torch

    for _ in range(steps):
        point = bench.x.detach().requires_grad_()
        torch.autograd.grad(bench.loss(point, bench.y), point)


def _prepare_early(name: str, left: int) -> tuple[list[Contender], list[FloorPart]]:
    """PGD, 10 steps, with ``early_stop``, at a radius that leaves ``left`` percent of the samples; the floor is that of all
    samples. The weights are random, and labels are the model's own answers."""
    from . import _models

    return on_each_device(lambda device: _early(_models.attack(name).to(device), _EARLY_ROWS[name], left))


def _early(bench: Bench, rows: int, left: int) -> Whole:
    import torch

    model, x = bench.model, bench.x[:rows]
    with torch.no_grad():
        y = model(x).argmax(1)

    def attack(eps: float) -> Any:
        settings: dict[str, Any] = {"step_size": eps / 4, "steps": _EARLY_STEPS, "random_start": False}
        return adversarial.pgd(model, x, y, eps=eps, early_stop=True, **settings)

    @torch.no_grad()
    def fooled(x_adv: Any) -> Any:
        return model(x_adv).argmax(1) != y

    low, high = 2.0**-20, 0.5
    for _ in range(7):  # by halving; the share is met to a few percent
        middle = math.sqrt(low * high)
        low, high = (middle, high) if float(fooled(attack(middle)).double().mean()) < 1 - left / 100 else (low, middle)

    def whole() -> Any:
        import torchattacks

        settings: dict[str, Any] = {"alpha": high / 4, "steps": _EARLY_STEPS, "random_start": False}
        return torchattacks.PGD(model, eps=high, **settings)(x, y)

    def verdicts() -> str:
        """Every sample that the last iterate of a full run fools is found, on the way or there; on a GPU, where iterates
        may round another way in another batch, 98 % of all."""
        hit = fooled(attack(high))
        missed = float((fooled(whole()) & ~hit).double().mean()) if has("torchattacks") else 0.0
        if missed > (0.0 if x.device.type == "cpu" else 0.02):
            raise DifferenceError(f"{missed:.1%} of the samples are fooled by torchattacks and were not found")
        return f"{float((~hit).double().mean()):.1%} left"

    peers = {"torchattacks": (whole, lambda: "the others' check", True)} if has("torchattacks") else {}
    return Whole((lambda: attack(high), verdicts, True), peers, lambda: _passes(bench._replace(x=x, y=y), _EARLY_STEPS))


def _check(bench: Bench, x_adv: Any) -> str:
    """Equal to the loop in plain torch on 99.9 % of the elements to 1e-6, after a few steps.

    A gradient near 0 may have the other sign where two ways to round an iterate differ in the last bit; networks with
    random weights amplify that from step to step.
    """
    import torch

    adv = bench.x.clone()
    for _ in range(_CHECKED_STEPS):
        point = adv.detach().requires_grad_()
        (slope,) = torch.autograd.grad(bench.loss(point, bench.y), point)
        adv = (adv + _STEP * slope.sign() - bench.x).clamp(-_EPS, _EPS).add(bench.x).clamp(0, 1)
    share = float(((adv - x_adv).abs() <= 1e-6).double().mean())
    if share < 0.999:
        raise DifferenceError(f"equal to the plain loop on {share:.2%} of the elements only, expected 99.9 %")
    return f"{share:.2%} equal"
