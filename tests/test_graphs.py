"""Recorded passes, with a recorder that repeats Python functions where CUDA would repeat kernels: which passes are recorded,
padded, tried, dropped and freed. Real graphs are tested in test_gpu_attacks.py."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aisec_fast import _cuda_graphs, adversarial
from aisec_fast._cuda_graphs import recordable
from aisec_fast.adversarial import _apgd, _arguments, _ensembles, _graphs, _rows_seen
from aisec_fast.adversarial._ball import make_ball
from aisec_fast.adversarial._models import Slope
from aisec_fast.adversarial._torch_model import TorchModel
from aisec_fast.adversarial._watch import Watch
from tests.test_pgd_torch import few_threads

__all__ = ["few_threads"]  # a fixture: small tensors wait for threads longer than they compute


class Fake:
    """Records on the CPU. ``bend`` may spoil what a replay gives."""

    def __init__(self) -> None:
        self.rows: list[int] = []  # of each recording
        self.replays = self.warm = 0
        self.open = False
        self.bend: Callable[[int, Slope], None] = lambda _, __: None

    def warmed(self, work: Callable[[], Slope]) -> Slope:
        self.warm += 1
        return work()

    def record(self, work: Callable[[], Slope]) -> tuple[Callable[[], object], Slope]:
        with recordable():
            result = work()
        self.open = True
        self.rows.append(len(result.gradient))

        def replay() -> None:
            assert self.open
            self.replays += 1
            with _rows_seen.paused():
                again = work()
            for target, value in zip(result, again, strict=True):
                if target is not None:
                    target.copy_(value)
            self.bend(self.replays, result)

        for part in result:
            if part is not None:
                part.fill_(-7)  # CUDA computes nothing while it records
        return replay, result

    def close(self) -> None:
        self.open = False


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    recorder = Fake()
    monkeypatch.setattr(_cuda_graphs, "recorder", lambda device: recorder)
    monkeypatch.setattr(_cuda_graphs, "other_threads", lambda: False)
    return recorder


def batch(rows: int = 12, kind: Callable[[], nn.Module] | None = None) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = [nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), *([kind()] if kind else []), nn.Linear(16, 5)]
        model, x = nn.Sequential(*parts).eval(), torch.rand(rows, 3, 4)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def both(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The attack with graphs where they pay, and without."""
    options = {"eps": 0.1, "steps": 12, "seed": 0, **options}
    return adversarial.pgd(model, x, y, **options), adversarial.pgd(model, x, y, **options, cuda_graph=False)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_replayed_passes_give_the_same_samples(fake: Fake, loss: str, norm: str) -> None:
    found, expected = both(*batch(), loss=loss, norm=norm)
    assert torch.equal(found, expected)
    assert fake.rows[0] == 12
    assert fake.replays >= 11  # the trial, and all passes but the first two
    assert not fake.open


def test_passes_are_recorded_where_enough_are_left(fake: Fake) -> None:
    for steps, recorded in ((_graphs.PAYS_FROM, []), (_graphs.PAYS_FROM + 1, [12])):
        fake.rows.clear()
        both(*batch(), steps=steps)
        assert fake.rows == recorded
    adversarial.pgd(*batch(), eps=0.1, steps=3, cuda_graph=True)
    assert fake.rows == [12, 12]
    adversarial.pgd(*batch(), eps=0.1, steps=12, cuda_graph=False)
    assert fake.rows == [12, 12]


def test_labels_are_those_of_each_pass(fake: Fake) -> None:
    """Targets follow each other, with the same shape."""
    model, x, y = batch()
    found, expected = both(model, x, y, loss="margin", targets=3, eps=0.01)
    assert torch.equal(found, expected)
    assert fake.rows == [12, 24]  # two targets beside each other; the third fits in
    both(model, x, y, targets=3)


def test_samples_that_leave_are_replaced_by_padding(fake: Fake) -> None:
    model, x, y = batch(40)
    options = {"early_stop": True, "eps": 0.15, "steps": 40, "step_size": 0.004, "random_start": False}
    seen: list[int] = []
    original = _graphs._replayed

    def replayed(graph: Any, adv: Tensor, labels: Tensor) -> Slope:
        seen.append(len(adv))
        slope = original(graph, adv, labels)
        assert all(len(part) == len(adv) for part in slope if part is not None)
        padding = graph.x[len(adv) :]
        assert torch.equal(padding, adv[-1:].expand_as(padding))
        return slope

    _graphs._replayed, restore = replayed, original
    try:
        found, expected = both(model, x, y, **options)
    finally:
        _graphs._replayed = restore
    with torch.no_grad():
        assert torch.equal(model(found).argmax(1) == y, model(expected).argmax(1) == y)
    assert len(set(seen)) > 3
    assert fake.rows[0] == 40
    assert all(after == (before + 1) // 2 for before, after in zip(fake.rows, fake.rows[1:], strict=False))
    assert len(fake.rows) > 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * x.mean(0, keepdim=True)


def test_no_padding_where_samples_mix(fake: Fake) -> None:
    model, x, y = batch(40, Mixing)
    found, expected = both(model, x, y, early_stop=True, eps=0.15, steps=40, step_size=0.004, random_start=False)
    assert torch.equal(found, expected)


def test_a_smaller_batch_is_recorded_anew_only_if_that_pays(fake: Fake) -> None:
    model, x, y = batch(32)
    held, _ = TorchModel.made(model, x, y)

    def values(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.gather(1, labels[:, None])[:, 0]

    with held.attacked(x, copied=False, cuda_graph=None):

        def go(rows: int, left: int) -> list[int]:
            fake.rows.clear()
            slope = held.replayed_gradient(x[:rows], values, y[:rows], left)
            plain = held.gradient(x[:rows], lambda logits: values(logits, y[:rows]))
            torch.testing.assert_close(slope.gradient, plain.gradient)
            torch.testing.assert_close(slope.losses, plain.losses)
            torch.testing.assert_close(slope.logits, plain.logits)
            return fake.rows.copy()

        assert go(32, 30) == []
        assert go(32, 29) == [32]
        assert go(17, 28) == []
        assert go(16, _graphs.PAYS_FROM - 1) == []
        assert go(7, 20) == [8]
        assert go(12, 20) == [16]
        assert go(16, 20) == []
        assert go(32, 20) == []
        assert go(5, 20) == []


@pytest.mark.parametrize("spoiled", [1, 2, 3, 5, 9])
def test_replays_that_err_are_dropped(fake: Fake, spoiled: int) -> None:
    model, x, y = batch()

    def bend(number: int, result: Slope) -> None:
        if number >= spoiled:
            result.logits.mul_(-1)
            if number == 1:
                result.gradient.mul_(-1)

    fake.bend = bend
    found, expected = both(model, x, y, steps=30)
    assert torch.equal(found, expected)
    trials = [1, 3, 7, 15]  # the first replay, which is none of the attack's, and then its passes 4, 8 and 16
    assert fake.replays == next(trial for trial in trials if trial >= spoiled)
    assert not fake.open
    fake.replays = 0
    with pytest.raises(RuntimeError, match=r"cuda_graph is True, but the model's passes cannot be replayed: .*differ"):
        adversarial.pgd(model, x, y, eps=0.1, steps=30, cuda_graph=True)
    assert not fake.open


def test_a_gradient_that_errs_is_dropped(fake: Fake) -> None:
    fake.bend = lambda _, result: result.gradient.mul_(1.1)
    found, expected = both(*batch())
    assert torch.equal(found, expected)
    assert fake.replays == 1


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1, training=True)


class Asking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.max().item() > 0.5 else x


class Filling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.empty_like(x).random_(3)


class Comparing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if torch.equal(x, x) else x


class Choosing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * random.choice([1.0, 1.5])


class NumpyChoosing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.random())  # noqa: NPY002


class Masking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[x > 0.2] = 0.2
        return y


class Making(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - torch.tensor([0.1], device=x.device)


class Counting(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Dropping, "draws random numbers"), (Asking, "waits for the device"), (Choosing, "draws random numbers"),
        (NumpyChoosing, "draws random numbers"), (Masking, "waits for the device"), (Counting, "differs"),
        (Making, "waits for the device"), (Filling, "draws random numbers"), (Comparing, "waits for the device"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_recorded(fake: Fake, kind: Any, reason: str) -> None:
    model, x, y = batch(kind=kind)
    with torch.random.fork_rng():
        found = adversarial.pgd(model, x, y, eps=0.1, steps=20)
        assert (found - x).abs().max() <= 0.1
        assert fake.replays <= 1
        assert not fake.open
        with pytest.raises(RuntimeError, match=f"cuda_graph is True, but the model's passes.*{reason}"):
            adversarial.pgd(model, x, y, eps=0.1, steps=20, cuda_graph=True)


class Attending(nn.Module):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        heads = x.reshape(len(x), 1, 4, 4)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads, dropout_p=self.drop).flatten(1)


def test_attention_draws_only_if_it_drops(fake: Fake) -> None:
    for kind in (lambda: Attending(0.0), nn.Dropout):  # in eval mode
        found, expected = both(*batch(kind=kind))
        assert torch.equal(found, expected)
        assert fake.replays > 10
        fake.replays = 0
    with torch.random.fork_rng(), pytest.raises(RuntimeError, match="draws random numbers"):
        adversarial.pgd(*batch(kind=lambda: Attending(0.5)), eps=0.1, steps=20, cuda_graph=True)


def test_models_that_are_not_recorded(fake: Fake) -> None:
    model, x, y = batch()
    through = nn.Sequential(adversarial.StraightThrough(lambda x: x.round(decimals=1)), model)
    for wrapped in (adversarial.Averaged(model, 2), through):
        adversarial.pgd(wrapped, x, y, eps=0.1, steps=20)
        assert fake.rows == []
        with pytest.raises(ValueError, match="cuda_graph is True, but the model draws random numbers, or calls a func"):
            adversarial.pgd(wrapped, x, y, eps=0.1, steps=20, cuda_graph=True)
    given = adversarial.GradientModel(lambda x, y: x)
    with pytest.raises(ValueError, match="cuda_graph is True, but model is a GradientModel"):
        adversarial.pgd(given, x.numpy(), y.numpy(), eps=0.1, cuda_graph=True)
    with pytest.raises(TypeError, match="cuda_graph is an int, expected a bool"):
        adversarial.pgd(model, x, y, eps=0.1, cuda_graph=1)


def test_there_are_no_graphs_on_the_cpu() -> None:
    with pytest.raises(ValueError, match="cuda_graph is True, but the work is on cpu"):
        adversarial.pgd(*batch(), eps=0.1, cuda_graph=True)


def test_an_error_on_the_way_gives_the_memory_back(fake: Fake) -> None:
    def stop(step: int, _total: int, _fooled: int | None) -> None:
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adversarial.pgd(*batch(), eps=0.1, steps=20, progress=stop)
    assert fake.replays == 6
    assert not fake.open


def test_an_error_on_the_way_leaves_no_tensor_in_a_cycle(fake: Fake) -> None:
    """Memory of a GPU would be held until Python looks for garbage, which it may not do for long."""

    def stop(step: int, _total: int, _fooled: int | None) -> None:
        if step == 7:
            raise KeyboardInterrupt

    def attack(**options: Any) -> None:
        adversarial.pgd(model, x, y, eps=0.1, steps=20, seed=0, **options)

    def tensors() -> int:
        return sum(issubclass(type(one), Tensor) for one in gc.get_objects())

    model, x, y = batch()
    attack()
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        attack()
        assert tensors() == before
        with suppress(KeyboardInterrupt):
            attack(progress=stop)
        assert tensors() == before
    finally:
        gc.enable()
    assert len(fake.rows) == 3


def test_nan_is_found_in_replays(fake: Fake) -> None:
    class Poisoned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :4] * 1.0
            return logits + torch.where(x.flatten(1).amax(1, keepdim=True) > 0.97, torch.nan, 0.0)

    x, y = torch.full((5, 3, 4), 0.93), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match="NaN"):
        adversarial.pgd(Poisoned(), x, y, eps=0.05, steps=20, step_size=0.01, random_start=False)
    assert fake.replays


def test_wrong_working_copies_are_recorded_no_more(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    from aisec_fast.adversarial import _torch_model

    class Shifting(nn.Module):
        """Right at the start, and wrong away from it."""

        def __init__(self, module: nn.Module, x: Tensor) -> None:
            super().__init__()
            self.module, self.x = module, x

        def forward(self, x: Tensor) -> Tensor:
            away = (x.flatten(1) - self.x.flatten(1)[: len(x)]).abs().amax(1, keepdim=True)
            return self.module(x) + torch.where(away > 0.05, 3.0, 0.0) * torch.arange(5)

    model, x, y = batch()
    monkeypatch.setattr(_torch_model, "working_copy", lambda module, x, **_: Shifting(module, x))
    settings = {"eps": 0.3, "steps": 40, "step_size": 0.02, "random_start": False}
    found = adversarial.pgd(model, x, y, **settings)
    assert fake.rows == [12, 12]  # the copy, and then the module
    with torch.no_grad():
        assert (model(found).argmax(1) != y).any()


def first_logit(logits: Tensor, _labels: Tensor) -> Tensor:
    return logits[:, 0]


def test_what_a_pass_gave_is_kept_and_counted(fake: Fake) -> None:
    model, x, y = batch(32)
    held, _ = TorchModel.made(model, x, y)
    with held.attacked(x, copied=False, cuda_graph=None), _rows_seen.counting() as seen:
        slopes = [held.replayed_gradient(x / number, first_logit, y, 20) for number in (1, 2, 3, 4)]
        for number, slope in enumerate(slopes, 1):
            with torch.no_grad():
                torch.testing.assert_close(slope.losses, model(x / number)[:, 0])
        assert seen.gradient == 4 * 32
        held.replayed_gradient(x[:20], first_logit, y[:20], 20)
        assert seen.gradient == 5 * 32  # padding is computed too


def test_batches_of_a_mixing_model_are_not_padded(fake: Fake) -> None:
    model, x, y = batch(32, Mixing)
    held, _ = TorchModel.made(model, x, y)
    with held.attacked(x, copied=False, cuda_graph=None):
        for rows in (32, 32, 20):
            slope = held.replayed_gradient(x[:rows], first_logit, y[:rows], 20)
            leaf = x[:rows].clone().requires_grad_()
            losses = model(leaf)[:, 0]
            torch.testing.assert_close(slope.losses, losses.detach())
            torch.testing.assert_close(slope.gradient, torch.autograd.grad(losses.sum(), leaf)[0])
        assert fake.rows == [32]
        assert not held.without_graph


def test_few_graphs_are_recorded(fake: Fake) -> None:
    model, x, y = batch(64)
    held, _ = TorchModel.made(model, x, y)
    with held.attacked(x, copied=False, cuda_graph=None):
        held.replayed_gradient(x, first_logit, y, 20)
        for rows in (4, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28, 32, 32):
            held.replayed_gradient(x[:rows], first_logit, y[:rows], 20)
        before = fake.replays
        held.replayed_gradient(x[:1], first_logit, y[:1], 20)
        assert fake.replays == before + 1
    assert fake.rows == [4, 12, 16, 20, 24, 28]  # a new size is recorded when it comes again


def test_dropped_graphs_are_freed_at_once(fake: Fake) -> None:
    fake.bend = lambda _, result: result.logits.mul_(1.1)  # the gradient is right
    model, x, y = batch()
    held, _ = TorchModel.made(model, x, y)
    with held.attacked(x, copied=False, cuda_graph=None):
        for _ in range(2):
            held.replayed_gradient(x, first_logit, y, 20)
        assert "differs" in held.without_graph
        assert not fake.open


def test_a_gradient_that_is_not_finite_is_left_to_the_watch(fake: Fake) -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4].mul(0).sqrt() + x.flatten(1)[:, :4]

    x, y = torch.full((5, 3, 4), 0.5), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match="gradient"):
        adversarial.pgd(Steep(), x, y, eps=0.1, steps=3, loss="ce", cuda_graph=True)
    model, x, y = batch()
    held, _ = TorchModel.made(model, x, y)
    with held.attacked(x, copied=False, cuda_graph=True):
        for _ in range(2):
            slope = held.replayed_gradient(x, lambda logits, _: logits[:, 0] * torch.inf, y, 20)
    assert not bool(slope.gradient.isfinite().all())
    assert not held.without_graph


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_threads_and_compiled_models(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = batch()
    with pytest.raises(ValueError, match="cuda_graph is True, but the model is compiled, scripted or spread"):
        adversarial.pgd(torch.jit.trace(model, x), x, y, eps=0.1, steps=12, cuda_graph=True)
    monkeypatch.setattr(_cuda_graphs, "other_threads", lambda: True)
    adversarial.pgd(model, x, y, eps=0.1, steps=12)
    assert fake.rows == []
    adversarial.pgd(model, x, y, eps=0.1, steps=12, cuda_graph=True)
    assert fake.rows == [12]


def test_threads_are_told_apart() -> None:
    import threading

    done = threading.Event()
    before = _cuda_graphs.other_threads()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert _cuda_graphs.other_threads()
    finally:
        done.set()
        other.join()
    assert _cuda_graphs.other_threads() == before


# ------------------------------------------------------------------------------------------------ Auto-PGD, evaluate


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "l2", "loss": "dlr"},
        {"norm": "l1", "eps": 1.5, "loss": "margin"},
        {"loss": "target_dlr", "targets": 3, "restarts": 2},
        {"targeted": True, "loss": "margin"},
        {"eot_iter": 3},
        {"early_stop": True},
    ],
    ids=str,
)
def test_auto_pgd_keeps_nothing_that_is_overwritten(fake: Fake, options: Any) -> None:
    """Its best points' gradients outlive a replay, and so does the sum of several passes."""
    model, x, y = batch(12)
    options = {"eps": 0.15, "steps": 12, "seed": 0, "early_stop": False, **options}
    if "targeted" in options:
        y = (y + 1) % 5
    expected = adversarial.apgd(model, x, y, **options, cuda_graph=False)
    assert not fake.rows
    found = adversarial.apgd(model, x, y, **options)
    assert torch.equal(found, expected)
    assert fake.rows
    assert fake.replays >= 3
    assert not fake.open


@pytest.mark.parametrize("passes", [1, 3])
def test_gradients_that_auto_pgd_keeps_are_its_own(fake: Fake, passes: int) -> None:
    """Neither the best point's nor a sum over passes lies in the memory that the next replay writes to."""
    model, x, y = batch()
    with _arguments.attacked(model, x, y, clip=(0, 1), cuda_graph=None) as victim:
        ball = make_ball("linf", 0.1, (0, 1), "float32")
        search = _apgd.Search(victim, ball, _apgd.Plan(steps=20, eot_iter=passes))
        state = search._begin(np.arange(12), [(0, 0)])
        here = state.adv
        expected = victim.model.gradient(here, lambda logits: search._values(logits, state.labels)).gradient
        for _ in range(5):
            state.adv = state.best = here
            search._enter(state, 0, Watch(), 0)
            state.adv = 1 - here
            search._slope(state, 20)
            assert torch.allclose(state.best_gradient, expected, rtol=1e-5)
    assert fake.replays >= 5


def test_an_evaluation_records_each_loss_anew(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    short = (
        _ensembles._auto_pgd("apgd-ce", "ce", steps=10),
        _ensembles._auto_pgd("apgd-t", "target_dlr", steps=10, targets=2),
    )
    monkeypatch.setattr(_ensembles, "ATTACKS", {attack.name: attack for attack in short})
    model, x, y = batch(40)
    options: dict[str, Any] = {"eps": [0.02, 0.05], "attacks": ["apgd-ce", "apgd-t"], "seed": 0, "batch_size": 30}
    expected = adversarial.evaluate(model, x, y, **options, cuda_graph=False, masking_checks="none")
    assert not fake.rows
    found = adversarial.evaluate(model, x, y, **options, masking_checks="none")
    assert np.array_equal(found.fooled_at, expected.fooled_at, equal_nan=True)
    assert torch.equal(found.x_adv, expected.x_adv)
    assert 0 < found.robust_accuracy < found.clean_accuracy
    # Two losses at two eps. Graphs are kept from batch to batch of a stage, and no stage starts with another's.
    assert _graphs._MOST_GRAPHS < len(fake.rows) <= 4 * _graphs._MOST_GRAPHS
    assert fake.rows[0] == 30
    assert fake.replays > sum(stage.gradient_rows for stage in expected.stages) / 30 / 2
    assert not fake.open


def test_auto_pgd_with_graphs_that_must_be(fake: Fake) -> None:
    model, x, y = batch()
    adversarial.apgd(model, x, y, eps=1e-3, steps=3, cuda_graph=True, seed=0)
    assert fake.rows == [12]
    with pytest.raises(TypeError, match=r"^cuda_graph is a str"):
        adversarial.apgd(model, x, y, eps=0.1, cuda_graph="yes")
    with pytest.raises(TypeError, match=r"^cuda_graph is an int"):
        adversarial.evaluate(model, x, y, eps=0.1, cuda_graph=1)


def test_auto_pgd_has_no_graphs_on_the_cpu() -> None:
    model, x, y = batch()
    with pytest.raises(ValueError, match=r"^cuda_graph is True, but the work is on cpu"):
        adversarial.apgd(model, x, y, eps=0.1, cuda_graph=True)
    assert torch.equal(
        adversarial.apgd(model, x, y, eps=0.1, steps=8, seed=0),
        adversarial.apgd(model, x, y, eps=0.1, steps=8, seed=0, cuda_graph=False),
    )


class Idle:
    """A stream with nothing to do."""

    def wait_stream(self, _other: Any) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture
def idle_device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    for name, made in {
        "Stream": lambda _device: Idle(), "current_stream": lambda _device: Idle(),
        "stream": lambda _stream: nullcontext(), "device": lambda _device: nullcontext(),
        "is_current_stream_capturing": lambda: False,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, made)
    monkeypatch.setattr(Tensor, "record_stream", lambda _self, _stream: None)
    monkeypatch.setattr(_cuda_graphs, "_streams", {})
    return torch.device("cuda", 0)


@pytest.mark.parametrize("users", [False, True])
def test_garbage_in_the_middle_of_a_recording(
    users: bool, idle_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder that is closed there neither waits for the recording, nor for the device; also in a recording of the
    user's."""
    first, second = (_cuda_graphs.CudaRecorder(idle_device) for _ in range(2))
    first._pool = object()
    open_during: list[bool] = []

    def work() -> list[Tensor]:
        closing = threading.Thread(target=first.close, daemon=True)  # what would wait does so there
        closing.start()
        closing.join(10.0)
        assert not closing.is_alive()
        open_during.append(first._pool is not None)
        return []

    if users:
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            work()
        second.warmed(list)
    else:
        second.warmed(work)
    assert open_during == [True]
    assert first._pool is None
