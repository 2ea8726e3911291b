"""Recorded steps, with a recorder that repeats Python functions where CUDA would repeat kernels: what is recorded, padded,
replayed, refused and given back. Real graphs are tested in test_gpu_privacy.py."""

from __future__ import annotations

import copy
import gc
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from aisec_fast import PrivacyError, _cuda_graphs, noise
from aisec_fast._cuda_graphs import GraphError
from aisec_fast.privacy import PrivacyEngine, _native, _replays, schedulers
from aisec_fast.privacy._recording import are_ours
from aisec_fast.privacy._sampling import Part
from tests.test_privacy_layers import LAYERS, MODELS, LossOf, data, model_case, square_loss

CLIP, MOST = 0.7, 64


class Fake:
    """Records on the CPU. ``bend`` may spoil what a replay gives."""

    def __init__(self) -> None:
        self.recorded = self.replays = 0
        self.open = False
        self.bend: Callable[[Sequence[Tensor]], None] = lambda _: None

    def warmed(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        with _cuda_graphs.recordable():
            result = work()
        self.recorded += 1
        self.open = True

        def replay() -> None:
            assert self.open
            self.replays += 1
            with torch.no_grad():
                for target, value in zip(result, work(), strict=True):
                    target.copy_(value)
            self.bend(result)

        with torch.no_grad():
            for part in result:
                part.fill_(-7)  # CUDA computes nothing while it records
        return replay, result

    def close(self) -> None:
        self.open = False


class Fakes(list[Fake]):
    """All that were made."""

    @property
    def replays(self) -> int:
        return sum(one.replays for one in self)

    def make(self, _device: torch.device) -> Fake:
        self.append(Fake())
        return self[-1]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    found = Fakes()
    monkeypatch.setattr(_native, "on_gpu", lambda _values: True)
    monkeypatch.setattr(_cuda_graphs, "recorder", found.make)
    monkeypatch.setattr(_cuda_graphs, "other_threads", lambda: False)
    monkeypatch.setattr(_replays, "_most_bytes", lambda _device: 2**30)
    return found


class Training:
    """Steps of an engine over a model."""

    def __init__(self, model: nn.Module, loss_of: LossOf, *, cuda_graph: bool | None = None, multiplier: float = 0.0,
                 reduction: str = "mean", most: int = MOST, **options: Any) -> None:  # fmt: skip
        self.model, self.loss_of, self.reduction = model, loss_of, reduction
        self.engine = PrivacyEngine(cuda_graph=cuda_graph)
        self.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no noise
            self.engine.make_private(
                module=model, optimizer=self.optimizer, data_loader=DataLoader(TensorDataset(torch.arange(most)), most),
                noise_multiplier=multiplier, max_grad_norm=CLIP, loss_reduction=reduction, poisson_sampling=False,
                check_rows=False, source=noise.SeededSource(3), **options,
            )  # fmt: skip

    def backward(self, x: Tensor, y: Tensor) -> None:
        losses = self.loss_of(self.model(x), y)
        (losses.mean() if self.reduction == "mean" else losses.sum()).backward()

    def step(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Copies of the gradients."""
        self.optimizer.zero_grad()
        self.backward(x, y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a batch of our own
            self.optimizer.step()
        return [p.grad.clone() for p in self.model.parameters() if p.grad is not None]

    @property
    def outcome(self) -> str:
        found: str = self.engine.info()[0]["cuda_graph"]
        return found


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-10)


def both(make: Callable[[], nn.Module], loss_of: LossOf = square_loss, **options: Any) -> tuple[Training, Training]:
    """The same model with replays where they can be, and without."""
    model = make()
    return Training(copy.deepcopy(model), loss_of, **options), Training(model, loss_of, cuda_graph=False, **options)


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).double()


def more(values: Tensor, rows: int, seed: int = 0) -> Tensor:
    """``rows`` of them, in another order each time."""
    order = torch.randint(len(values), (rows,), generator=torch.Generator().manual_seed(seed))
    return values[order]


def sizes_of_batches(training: Training, plain: Training, x: Tensor, y: Tensor, sizes: Sequence[int]) -> list[str]:
    """Steps of both on batches of these sizes; the outcomes."""
    outcomes = []
    for number, size in enumerate(sizes):
        batch = more(x, size, number), more(y, size, number)
        close(training.step(*batch), plain.step(*batch))
        outcomes.append(training.outcome)
    return outcomes


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, fakes: Fakes) -> None:
    """Of every step the gradients are those of steps that are not recorded, whatever the size of the batch."""
    model, x, y, loss_of = model_case(name, torch.float64)
    training, plain = both(lambda: model, loss_of)
    outcomes = sizes_of_batches(training, plain, x, y, [5, 5, 6, 3, 0, 1, 7])
    if outcomes[-1] == "replayed":
        assert fakes.replays == 5
    else:
        assert outcomes[-1].startswith("off: ")
        assert name not in ("mlp", "cnn", "resnet"), outcomes


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, fakes: Fakes) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model = make().double()
    training, plain = both(lambda: model)
    sizes_of_batches(training, plain, *data(shape), [5, 5, 6, 3])


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_clippings_and_reductions(clipping: str, reduction: str, fakes: Fakes) -> None:
    training, plain = both(layers, clipping=clipping, reduction=reduction)
    outcomes = sizes_of_batches(training, plain, *data((9, 4, 6)), [5, 5, 6, 3])
    assert outcomes == ["not yet", "replayed", "replayed", "replayed"]
    assert fakes.replays == 3


def test_rows_beyond_the_batch_are_no_samples(fakes: Fakes) -> None:
    """They hold what an earlier batch left there, here a sample without a finite gradient and others."""
    training, plain = both(layers)
    x, y = data((9, 6))
    x[7, 2] = math.inf
    for rows in (slice(0, 9), slice(0, 9), slice(0, 4), slice(4, 7), slice(0, 0), slice(6, 9)):
        close(training.step(x[rows], y[rows]), plain.step(x[rows], y[rows]))
    assert fakes.replays == 4


def test_a_larger_batch_is_recorded_anew(fakes: Fakes) -> None:
    training, plain = both(layers)
    outcomes = sizes_of_batches(training, plain, *data((9, 6)), [4, 4, 40, 41, 4, MOST])
    assert outcomes == ["not yet", *["replayed"] * 5]
    assert [one.open for one in fakes] == [False, True]
    with pytest.raises(PrivacyError, match="a batch of 65 samples"):
        training.step(*(more(values, MOST + 1) for values in data((9, 6))))


def test_gradients_that_somebody_holds_stay_as_they_are(fakes: Fakes) -> None:
    training, _ = both(layers, multiplier=1.0)
    x, y = data((9, 6))
    for _ in range(2):
        training.step(x, y)
    parameter = training.model[0].weight
    holds: list[Callable[[Tensor], Any]] = [
        lambda one: one, lambda one: one[0], lambda one: one.detach(), lambda one: one.numpy(),
        lambda one: one.untyped_storage(), torch.utils.dlpack.to_dlpack, lambda one: one.norm,
    ]  # fmt: skip
    for hold in holds:
        held, before = hold(parameter.grad), parameter.grad.clone()
        address = parameter.grad.data_ptr()
        training.step(x, y)
        assert training.outcome == "off: somebody holds the last step's gradients"
        if isinstance(held, Tensor):
            assert (held == before.view(-1)[: held.numel()].view(held.shape)).all()
        assert parameter.grad.data_ptr() != address
        del held
        training.step(x, y)
        assert training.outcome == "replayed"


@pytest.mark.parametrize("counted", [0, -1, 3])
def test_what_python_itself_counts_does_not_matter(counted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14 counts one reference less than those before: an argument's."""
    real = sys.getrefcount
    monkeypatch.setattr(sys, "getrefcount", lambda one: real(one) - 1 + counted)  # the lambda's own
    free, held, seen, stored = (torch.zeros(3) for _ in range(4))
    tensors, view, storage = [free, held, seen, stored], seen[1:], stored.untyped_storage()
    del free, seen, stored
    assert are_ours(tensors) == [True, False, False, False]
    del held, view, storage
    assert are_ours(tensors) == [True] * 4


def test_each_release_has_noise_of_its_own(fakes: Fakes) -> None:
    training, _ = both(layers, multiplier=1.0)
    x, y = data((9, 6))
    training.optimizer.param_groups[0]["lr"] = 0.0
    found = [training.step(x, y) for _ in range(4)]
    assert fakes.replays == 3
    for i in range(4):
        for j in range(i):
            assert not any(torch.equal(a, b) for a, b in zip(found[i], found[j], strict=True))


def test_what_is_charged_is_that_of_other_steps(fakes: Fakes) -> None:
    training, plain = both(layers, multiplier=1.0)
    x, y = data((9, 4, 6))
    for _ in range(3):
        training.step(x, y)
        plain.step(x, y)
    for key in ("sigma", "charges"):
        assert training.engine.info()[0][key] == plain.engine.info()[0][key]
    assert training.engine.get_epsilon(1e-5) == plain.engine.get_epsilon(1e-5)


def test_the_clipping_norm_may_change(fakes: Fakes) -> None:
    training, plain = both(layers)
    schedules = [schedulers.ExponentialGradClip(one.optimizer, gamma=0.5) for one in (training, plain)]
    x, y = data((9, 6))
    for _ in range(4):
        close(training.step(x, y), plain.step(x, y))
        for schedule in schedules:
            schedule.step()
    assert fakes.replays == 3


def test_batches_in_parts(fakes: Fakes) -> None:
    """The parts' sums are added: none is lost where the next one is replayed."""
    x, y = data((24, 6))
    found = []
    for cuda_graph in (None, False):
        model = layers()
        engine, optimizer = PrivacyEngine(cuda_graph=cuda_graph), torch.optim.SGD(model.parameters(), lr=0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no noise
            _, _, loader = engine.make_private(
                module=model, optimizer=optimizer, data_loader=DataLoader(TensorDataset(x, y), 12), noise_multiplier=0.0,
                max_grad_norm=CLIP, poisson_sampling=False, max_physical_batch_size=5,
            )  # fmt: skip
        for xs, ys in loader:
            optimizer.zero_grad()
            square_loss(model(xs), ys).mean().backward()
            optimizer.step()
        found.append([p.detach().clone() for p in model.parameters()])
        assert engine.info()[0]["cuda_graph"] == ("replayed" if cuda_graph is None else "off")
    close(*found)
    assert fakes.replays > 0


def test_parts_are_charged_alike_however_many_there_are(fakes: Fakes) -> None:
    """By how many there may be: the noise must not tell whether a batch came in one. Also after steps in which there were
    no parts, whose charge is known."""
    training, plain = both(layers, multiplier=1.0)
    x, y = data((9, 6))
    sigmas = []
    for one in (training, plain):
        for _ in range(3):
            one.step(x, y)
        step = one.engine._made[0][0]
        step.tally.handed_out(Part(first=True, last=True, largest=16, records=9))
        one.step(x, y)
        sigmas.append((step.sigma, step.float_charge))
    assert training.outcome == "replayed"
    assert sigmas[0] == sigmas[1]


def test_what_is_replayed_must_be_the_same(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    training, plain = both(layers)

    def bent(device: torch.device) -> Fake:
        one = fakes.make(device)
        one.bend = lambda result: result[1].add_(1e-9)
        return one

    monkeypatch.setattr(_cuda_graphs, "recorder", bent)
    outcomes = sizes_of_batches(training, plain, *data((9, 6)), [5, 5, 5])
    assert outcomes == ["not yet", *["off: a replayed step differs from what it repeats"] * 2]
    assert not any(one.open for one in fakes)


def refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], nn.Module]:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
        model[2].weight = model[0].weight
        return model

    def refuse(_device: torch.device) -> Fake:
        raise _cuda_graphs.GraphError("CUDA_LAUNCH_BLOCKING is 1")

    if kind == "take too much memory":
        monkeypatch.setattr(_replays, "_most_bytes", lambda _device: 100)
    if kind == "other threads may use the device":
        monkeypatch.setattr(_cuda_graphs, "other_threads", lambda: True)
    if kind == "CUDA_LAUNCH_BLOCKING":
        monkeypatch.setattr(_cuda_graphs, "recorder", refuse)
    return tied if kind == "used several times" else layers


@pytest.mark.parametrize(
    "kind", ["take too much memory", "other threads may use the device", "CUDA_LAUNCH_BLOCKING", "used several times"]
)
def test_where_nothing_is_recorded(kind: str, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    make = refused(kind, monkeypatch)
    training, plain = both(make)
    outcomes = sizes_of_batches(training, plain, *data((9, 6)), [5, 5, 5])
    assert all(kind in outcome for outcome in outcomes[1:])
    assert not any(one.open for one in fakes)
    must = Training(make(), square_loss, cuda_graph=True)
    must.step(*data((9, 6)))
    if kind.startswith("other threads"):
        must.step(*data((9, 6)))
        assert must.outcome == "replayed"
        return
    with pytest.raises(RuntimeError, match=f"cuda_graph is True, but the step cannot be replayed: .*{kind}"):
        must.step(*data((9, 6)))


def test_threads_that_stay(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while layers measure as they come again, which takes less memory."""
    monkeypatch.setattr(_cuda_graphs, "other_threads", lambda: True)
    training, plain = both(layers)
    recorder = training.engine._made[0][0].recorder
    for steps in (_replays._MOST_TRIES, 2):
        assert recorder.late
        outcomes = sizes_of_batches(training, plain, *data((9, 6)), [5] * steps)
    assert not recorder.late
    assert set(outcomes) == {"off: other threads may use the device"}
    assert not fakes


def test_sequences_of_many_lengths(fakes: Fakes) -> None:
    """Of a few, steps are recorded; of others they are made as always."""
    training, plain = both(layers)
    outcomes = []
    for length in range(1, 8):
        outcomes += sizes_of_batches(training, plain, *data((9, length, 6)), [5, 5])[1:]
    assert outcomes == ["replayed"] * 4 + ["off: batches have too many shapes"] * 3
    assert sizes_of_batches(training, plain, *data((9, 2, 6)), [5]) == ["replayed"]


def test_nothing_is_replayed_once_memory_of_libraries_may_be_gone(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, plain = both(layers)
    must = Training(layers(), square_loss, cuda_graph=True)
    x, y = data((9, 6))
    assert sizes_of_batches(training, plain, x, y, [5, 5, 5])[-1] == "replayed"
    for _ in range(2):
        must.step(x, y)
    monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", sys)
    outcomes = sizes_of_batches(training, plain, x, y, [5, 5, 5])
    assert all(outcome.startswith("off: torch.compile makes CUDA graphs") for outcome in outcomes)
    assert not fakes[0].open
    with pytest.raises(RuntimeError, match=r"cuda_graph is True, .* torch\.compile makes CUDA graphs"):
        must.step(x, y)


def test_shapes_beyond_those_are_not_remembered(fakes: Fakes) -> None:
    """There may be any number of them."""
    training = Training(layers(), square_loss)
    replays = training.engine._made[0][0].replays
    assert replays is not None
    for length in range(1, 40):
        for _ in range(2):
            training.step(*data((2, length, 6)))
    assert training.outcome == "off: batches have too many shapes"
    assert len(replays._seen) + len(replays._refused) <= 4


def test_a_layer_that_does_something_else_is_recorded_anew(fakes: Fakes) -> None:
    """Of CUDA's recording the numbers are a part, unlike of the one here."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.InstanceNorm1d(4, affine=True), nn.Flatten()).double()

    training, plain = both(make)
    x, y = data((9, 4, 5))
    changes: list[tuple[int, str, Any]] = [(1, "eps", 0.5), (0, "padding_mode", "circular"), (0, "dilation", (1,))]
    for number, (place, name, value) in enumerate(changes):
        assert sizes_of_batches(training, plain, x, y, [5, 5])[-1] == "replayed"
        for one in (training, plain):
            setattr(one.model[place], name, value)
            one.model[0]._reversed_padding_repeated_twice = [1, 1]
        sizes_of_batches(training, plain, x, y, [5])
        assert len(fakes) == min(number + 2, 3)  # the dilation is what it was


@pytest.mark.parametrize("error", [KeyboardInterrupt, AssertionError, GraphError])
def test_an_error_while_recording_gives_the_memory_back(
    error: type[BaseException], fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, plain = both(layers)
    x, y = data((9, 6))
    sizes_of_batches(training, plain, x, y, [5])

    def failing(self: Fake, work: Callable[[], Any]) -> Any:
        self.open = True
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Fake, "record", failing)
        if error is GraphError:
            assert sizes_of_batches(training, plain, x, y, [5]) == ["off: "]
        else:
            with pytest.raises(error):
                training.step(x, y)
    assert not fakes[0].open
    assert sizes_of_batches(training, plain, x, y, [5, 5])[-1] == ("off: " if error is GraphError else "replayed")


def test_what_sums_are_made_of_may_not_change(fakes: Fakes) -> None:
    training, _ = both(layers)
    for _ in range(3):
        x, y = data((9, 6))
        training.optimizer.zero_grad()
        training.backward(x, y)
        x.add_(1.0)
        with pytest.raises(PrivacyError, match="changed in place between"):
            training.optimizer.step()
        training.step(*data((9, 6)))


def test_a_step_that_is_interrupted_leaves_no_samples_behind(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the numbers and records it had told: the next batch is told all that is its own."""
    training, plain = both(layers)
    x, y = data((9, 6))
    sizes_of_batches(training, plain, x, y, [6, 6, 5])
    fill, copy_all = Tensor.fill_, torch._foreach_copy_

    def interrupted(work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> None:
            work(*args)
            raise KeyboardInterrupt

        return wrapped

    for place, name, work in ((Tensor, "fill_", fill), (torch, "_foreach_copy_", copy_all)):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, interrupted(work))
            with pytest.raises(KeyboardInterrupt):
                training.step(x[:6], y[:6])
        assert sizes_of_batches(training, plain, x, y, [5]) == ["replayed"]


def test_memory_is_given_back(fakes: Fakes) -> None:
    training, _ = both(layers)
    for _ in range(3):
        training.step(*data((9, 6)))
    assert fakes[0].open
    del training, _
    gc.collect()
    assert not fakes[0].open


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="cuda_graph"):
        PrivacyEngine(cuda_graph="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cuda_graph is True with memory='low'"):
        PrivacyEngine(cuda_graph=True, memory="low")
    with pytest.raises(ValueError, match="cuda_graph is True, but the module is on cpu"):
        Training(layers(), square_loss, cuda_graph=True)
