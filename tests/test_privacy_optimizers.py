"""The private step under torch's optimizers: fused with the noise where a kernel does it, torch's own step elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from torch import nn

from .test_privacy import private, small_model, train

Make = Callable[[Any], Any]

FUSED: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd, torch's own fused kernel": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "sgd, foreach": lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "dampening": lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1), momentum=0.8, dampening=0.3, maximize=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam, all options": lambda p: torch.optim.Adam(
        p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1, amsgrad=True, maximize=True
    ),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw, amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, fused=True),
}
OTHERS: dict[str, Make] = {
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "subclass": lambda p: type("Own", (torch.optim.SGD,), {})(p, lr=0.1, momentum=0.9),
}


def two_groups(make: Make, model: nn.Module) -> Any:
    """An optimizer whose groups have different rates."""
    parameters = list(model.parameters())
    return make([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.05}])


@pytest.mark.parametrize("name", [*FUSED, *OTHERS])
def test_updates_are_those_of_the_plain_optimizer(name: str) -> None:
    """Fed with the same gradients, under a schedule, through a saved and loaded state, a plain optimizer does the same.

    A fused step rounds its dozen operations otherwise than torch's, so each of the 15 steps may differ by 12 * 2^-24 of
    values no larger than the largest parameter or update; a step of torch itself must not differ at all.
    """
    make, fused = (FUSED[name], True) if name in FUSED else (OTHERS[name], False)
    model, twin = small_model(), small_model()
    optimizer, plain = two_groups(make, model), two_groups(make, twin)
    engine, _, _, loader = private(model, optimizer=optimizer)
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (optimizer, plain)]
    for _ in range(3):
        for batch in loader:
            train(model, optimizer, [batch])
            for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                assert p.grad.abs().sum() > 0
                q.grad = p.grad.clone()
            plain.step()
            for schedule in schedules:
                schedule.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        plain.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert engine.info()[0]["update"].startswith("fused" if fused else "torch: ")
    scale = max(float(p.detach().abs().max()) for p in model.parameters())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        if fused:
            torch.testing.assert_close(p, q, rtol=0.0, atol=15 * 12 * 2.0**-24 * max(scale, 1.0))
        else:
            assert torch.equal(p, q)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        mine, theirs = optimizer.state[p], plain.state[q]
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["momentum", "adam, all options", "adamw"])
def test_a_plain_step_goes_on_from_a_fused_one(name: str) -> None:
    model, twin = small_model(), small_model()
    optimizer, plain = FUSED[name](model.parameters()), FUSED[name](twin.parameters())
    _, _, _, loader = private(model, optimizer=optimizer)
    train(model, optimizer, loader)
    twin.load_state_dict(model.state_dict())
    plain.load_state_dict(optimizer.state_dict())
    torch.manual_seed(1)
    for q in twin.parameters():
        q.grad = torch.randn_like(q)
    plain.step()
    steps = {int(state["step"]) for state in plain.state.values() if "step" in state}
    assert steps in (set(), {6})


def test_reasons_for_torchs_own_step() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, _, _, loader = private(model, optimizer=optimizer)
    seen = []
    handle = optimizer.register_step_pre_hook(
        lambda o, _args, _kwargs: seen.append(o.param_groups[0]["params"][0].grad)
    )
    train(model, optimizer, loader)
    assert engine.info()[0]["update"] == "torch: another step hook wants to see the gradients"
    assert len(seen) == 5
    assert all(gradient is not None for gradient in seen)
    handle.remove()
    train(model, optimizer, loader)
    assert engine.info()[0]["update"] == "fused"
    with torch.no_grad():
        model[4].weight.set_(torch.randn(48, 4).t())
    train(model, optimizer, loader)
    assert engine.info()[0]["update"] == "torch: a parameter is not contiguous"


def test_a_step_that_fails_shows_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not that of an earlier step."""
    _, model, optimizer, loader = private()
    train(model, optimizer, loader)
    x, y = next(iter(loader))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    model[4](torch.zeros(len(x) + 1, 48)).sum()
    (step,) = optimizer._optimizer_step_pre_hooks.values()
    monkeypatch.setattr(step, "book", lambda _from_loader: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert all(p.grad is None for p in model.parameters())


def test_frozen_parameters_stay_untouched_by_a_fused_step() -> None:
    model = small_model()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    _, _, _, loader = private(model, optimizer=optimizer)
    train(model, optimizer, loader)
    assert torch.equal(model[0].weight, before)
    assert model[0].weight.grad is None


def _without(*keys: Any) -> Callable[[Any], None]:
    def alter(state: Any) -> None:
        *way, last = keys
        for key in way:
            state = state[key]
        del state[last]

    return alter


def _with(value: Any, *keys: Any) -> Callable[[Any], None]:
    def alter(state: Any) -> None:
        *way, last = keys
        for key in way:
            state = state[key]
        state[last] = value

    return alter


ALTERED: list[tuple[str, Callable[[Any], None], str]] = [
    ("adam", _without("param_groups"), r"^state_dict has no 'param_groups'$"),
    ("adam", _without("state"), r"^state_dict has no 'state'$"),
    ("adam", _with("no", "state"), r"^state_dict\['state'\] is a str, expected a Mapping$"),
    ("adam", _with(3, "state", 1), r"^state_dict\['state'\]\[1\] is a int, expected a dict$"),
    ("adam", _without("state", 0, "exp_avg_sq"), r"^state_dict\['state'\]\[0\] has no 'exp_avg_sq'$"),
    ("adamw, amsgrad", _without("state", 1, "max_exp_avg_sq"), r"\[1\] has no 'max_exp_avg_sq'$"),
    ("adam", _with(None, "state", 0, "exp_avg"), r"\['exp_avg'\] is a NoneType, expected a Tensor$"),
    ("adam", _with(torch.zeros(5), "state", 1, "exp_avg"), r"\['exp_avg'\] has shape \(5,\), expected \(3,\) as its"),
    ("adam", _without("state", 0, "step"), r"\[0\] has no 'step'$"),
    ("adam", _with(torch.zeros(3), "state", 0, "step"), r"\['step'\] is a tensor of shape \(3,\), expected a number$"),
    ("adam", _with(torch.tensor(float("nan")), "state", 0, "step"), r"\['step'\] is nan, expected 0 or above$"),
    ("adam", _with(-2, "state", 0, "step"), r"\['step'\] is -2\.0, expected 0 or above$"),
    ("adam", _with("no", "param_groups", 0, "lr"), r"\['lr'\] is a str, expected a number$"),
    ("adam", _without("param_groups", 0, "eps"), r"^state_dict\['param_groups'\]\[0\] has no 'eps'$"),
    ("adam", _with("no", "param_groups", 0, "betas"), r"\['betas'\] is a str, expected a Sequence$"),
    ("adam", _with((0.9,), "param_groups", 0, "betas"), r"\['betas'\] has 1 entries, expected 2$"),
    ("adam", _with((0.9, "x"), "param_groups", 0, "betas"), r"\['betas'\] is a str, expected a number$"),
    ("momentum", _without("param_groups", 0, "momentum"), r"\[0\] has no 'momentum'$"),
    ("momentum", _with(torch.zeros(7), "state", 0, "momentum_buffer"), r"\['momentum_buffer'\] has shape \(7,\), expected"),
    ("momentum", _with("no", "state", 0, "momentum_buffer"), r"\['momentum_buffer'\] is a str, expected a Tensor$"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "alter", "match"), ALTERED)
def test_altered_states_are_refused_when_they_are_loaded(name: str, alter: Callable[[Any], None], match: str) -> None:
    model = small_model()
    optimizer = FUSED[name](model.parameters())
    engine, _, _, loader = private(model, optimizer=optimizer)
    train(model, optimizer, loader)
    state = copy.deepcopy(optimizer.state_dict())
    alter(state)
    with pytest.raises((TypeError, ValueError), match=match):
        optimizer.load_state_dict(state)
    train(model, optimizer, loader)  # nothing was loaded
    assert engine._ledger.spent.total() == 10


def test_altered_states_from_before_make_private() -> None:
    """Nothing is booked for them."""
    model = small_model()
    optimizer = FUSED["adam"](model.parameters())
    model(torch.ones(2, 1, 6, 6)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    del optimizer.state[model[0].bias]["exp_avg"]
    with pytest.raises(ValueError, match=r"^optimizer\.state_dict\(\)\['state'\]\[1\] has no 'exp_avg'$"):
        private(model, optimizer=optimizer)


def test_states_that_are_whole_enough() -> None:
    """Parameters without a state, buffers that are not there yet, numbers as tensors or the other way round."""
    for name, alter in (
        ("adam", _without("state", 0)),
        ("adam", _with(7, "state", 0, "step")),
        ("adam", _with(torch.tensor(0.1), "param_groups", 0, "lr")),
        ("momentum", _without("state", 0, "momentum_buffer")),
        ("momentum", _with(None, "state", 0, "momentum_buffer")),
        ("momentum", _without("param_groups", 0, "nesterov")),
    ):
        model = small_model()
        optimizer = FUSED[name](model.parameters())
        _, _, _, loader = private(model, optimizer=optimizer)
        train(model, optimizer, loader)
        state = copy.deepcopy(optimizer.state_dict())
        alter(state)
        optimizer.load_state_dict(state)
        train(model, optimizer, loader)
