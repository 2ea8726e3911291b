"""docs/training.md stays true: its scripts run, its commands answer, and errors say what its table says they do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from aisec_fast import accounting
from aisec_fast.cli import main
from aisec_fast.privacy import PrivacyEngine

GUIDE = (Path(__file__).parents[1] / "docs/training.md").read_text()
SCRIPTS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
RESTART, SCHEDULES = 1, 3
COMMANDS = re.findall(r"`aisec-fast ([^`]+)`", GUIDE)
MESSAGES = [  # what the table's second column quotes
    text
    for row in GUIDE[GUIDE.index("| what |") :].splitlines()[2:]
    for text in re.findall(r"`([^`]+)`", row.split("|")[2])
    if text != "criterion="
]


def test_the_guide_has_its_five_scripts() -> None:
    assert len(SCRIPTS) == 5
    assert len(COMMANDS) == 2


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_scripts_run(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # one of them writes a checkpoint
    code = compile(SCRIPTS[number], f"script {number + 1} of docs/training.md", "exec")
    exec(code, {"__name__": "script"})  # noqa: S102
    printed = capsys.readouterr().out
    if number == RESTART:
        (_, first), (steps, last) = re.findall(r"([0-9]+) steps, epsilon ([0-9.]+) of 1.0", printed)
        assert 0 < float(first) < 0.9 < float(last) <= 1.0
        cost = accounting.get_epsilon(noise_multiplier=2.0, sample_rate=1 / 20, steps=int(steps), delta=1e-5)
        assert cost <= 1.0  # of both runs
    if number == SCHEDULES:
        booked, planned = re.findall(r"[0-9]\.[0-9]{4}", printed)
        assert booked == planned


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_answer(command: str) -> None:
    assert main(command.split()) == 0


class Stream(IterableDataset[Any]):
    """Records without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(RECORDS)


class Mixing(nn.Module):
    """Subtracts the batch's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x - x.mean(0))
        return result


X, Y = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 2
RECORDS: Any = TensorDataset(X, Y)


def private(
    model: nn.Module | None = None, data_loader: Any = None, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    model = nn.Linear(4, 2) if model is None else model
    return PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(RECORDS, batch_size=20) if data_loader is None else data_loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        **options,
    )


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(x), y)


def on_a_batch(do: Callable[..., None]) -> Callable[[], None]:
    def run() -> None:
        model, optimizer, loader = private()
        do(model, optimizer, *next(batch for batch in loader if len(batch[0])))

    return run


@on_a_batch
def more_rows(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    loss_of(model, torch.cat([x, x]), torch.cat([y, y])).backward()
    optimizer.step()


def too_large() -> None:
    model, optimizer, _ = private()
    loss_of(model, X, Y).backward()
    optimizer.step()


@on_a_batch
def two_passes(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    loss_of(model, x, y).backward()
    loss_of(model, x, y).backward()
    optimizer.step()


@on_a_batch
def late_zero_grad(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    loss_of(model, x, y).backward()
    optimizer.zero_grad()
    optimizer.step()


@on_a_batch
def eval_mode(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    loss_of(model.eval(), x, y).backward()
    optimizer.step()


@on_a_batch
def penalty(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    (loss_of(model, x, y) + sum(p.square().sum() for p in model.parameters())).backward()
    optimizer.step()


def mixing() -> None:
    model, optimizer, loader = private(Mixing())
    for x, y in loader:
        loss_of(model, x, y).backward()
        optimizer.step()


@on_a_batch
def frozen(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    model.get_parameter("bias").requires_grad_(False)
    loss_of(model, x, y).backward()
    optimizer.step()


MISTAKES: list[tuple[Callable[[], object], str]] = [
    (lambda: private(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))), "ModuleValidator.fix(model)"),
    (lambda: private(nn.LSTM(4, 2)), "ModuleValidator.fix(model)"),
    (
        lambda: private(criterion=nn.CrossEntropyLoss(reduction="sum")),
        "loss_reduction is 'mean', but criterion has reduction 'sum'",
    ),
    (lambda: private(data_loader=DataLoader(Stream())), "whose records cannot be sampled"),
    (
        lambda: private(data_loader=DataLoader(RECORDS, sampler=WeightedRandomSampler([1.0] * 200, 200))),
        "would replace by Poisson sampling",
    ),
    (more_rows, "more samples than the loader's batch has records"),
    (too_large, "were declared: the mean is over the expected batch"),
    (two_passes, "two backward passes before optimizer.step()"),
    (late_zero_grad, "this step would be noise alone"),
    (eval_mode, "received a gradient outside its layer's training forward"),
    (penalty, "received a gradient outside its layer's training forward"),
    (mixing, "samples mix"),
    (frozen, "was frozen, unfrozen or replaced since make_private"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_mistakes_are_errors_that_say_so(mistake: Callable[[], object], message: str) -> None:
    assert message in MESSAGES
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        mistake()


def test_every_message_of_the_table_is_tried() -> None:
    assert set(MESSAGES) == {message for _, message in MISTAKES}


def test_nothing_is_in_grad_before_a_step_and_the_noisy_mean_after_it() -> None:
    model, optimizer, loader = private()
    for x, y in loader:
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        assert all(p.grad is None for p in model.parameters())
        assert nn.utils.clip_grad_norm_(model.parameters(), 1e-9) == 0
        optimizer.step()
        assert all(p.grad is not None and p.grad.norm() > 1e-9 for p in model.parameters())


def test_empty_batches_have_a_loss_of_nan_and_a_step_like_others() -> None:
    model, optimizer, loader = private(data_loader=DataLoader(RECORDS, batch_size=1))
    empty = 0
    for x, y in loader:  # 200 batches of 1 on average: none is empty with probability 1e-40
        before = model.get_parameter("weight").detach().clone()
        loss = loss_of(model, x, y)
        loss.backward()
        optimizer.step()
        empty += len(x) == 0
        assert loss.isnan() == (len(x) == 0)
        assert model.get_parameter("weight").isfinite().all()
        assert not torch.equal(before, model.get_parameter("weight"))
    assert empty


def test_autocast_works_and_grad_scalers_do_not() -> None:
    model, optimizer, loader = private()
    for x, y in loader:
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, x, y)
        loss.backward()
        optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    x, y = next(iter(loader))
    optimizer.zero_grad()
    scaler.scale(loss_of(model, x, y)).backward()
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(optimizer)
