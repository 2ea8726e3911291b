"""`PrivacyEngine` end to end: noise, accounting, sampling, what it refuses, and that no un-noised gradient is ever visible."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
dp_accounting = pytest.importorskip("dp_accounting")
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from aisec_fast import PrivacyError, UnsupportedModuleError, _update, accounting, noise
from aisec_fast._update import Noise
from aisec_fast.privacy import ModuleValidator, PrivacyEngine, _optimizers, _sampling

DELTA = 1e-5
FALSE_ALARM = 1e-6  # of each statistical check, were its seed not fixed


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.GroupNorm(3, 3), nn.Flatten(), nn.Linear(48, 4))


def small_loader(size: int = 40, batch: int = 8, **options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(2)
    records = TensorDataset(torch.randn(size, 1, 6, 6, generator=generator), torch.arange(size) % 4)
    return DataLoader(records, batch_size=batch, **options)


def private(
    model: nn.Module | None = None,
    *,
    noise_multiplier: float = 1.0,
    loader: DataLoader[Any] | None = None,
    optimizer: Any = None,
    engine: PrivacyEngine | None = None,
    **options: Any,
) -> tuple[PrivacyEngine, Any, Any, Any]:
    model = small_model() if model is None else model
    engine = PrivacyEngine(accountant="rdp") if engine is None else engine
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if optimizer is None else optimizer
    options = {"max_grad_norm": 1.0, "source": noise.SeededSource(5), **options}
    with warnings.catch_warnings():
        if noise_multiplier == 0:
            warnings.simplefilter("ignore")
        triple = engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=small_loader() if loader is None else loader,
            noise_multiplier=noise_multiplier,
            **options,
        )
    return engine, *triple


def train(model: nn.Module, optimizer: Any, batches: Any) -> int:
    """The user's plain loop; counts its steps and checks that no gradient is visible before the step."""
    steps = 0
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        assert all(p.grad is None for p in model.parameters())
        optimizer.step()
        steps += 1
    return steps


# ------------------------------------------------------------------------------------------------ the plain loop


def test_the_users_objects_come_back_and_the_plain_loop_is_private() -> None:
    model, loader = small_model(), small_loader()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keys = list(model.state_dict())
    before = copy.deepcopy(model.state_dict())
    engine, same_model, same_optimizer, new_loader = private(model, optimizer=optimizer, loader=loader)
    assert same_model is model
    assert same_optimizer is optimizer
    assert new_loader is not loader
    assert new_loader.dataset is loader.dataset
    assert len(new_loader) == len(loader) == 5
    assert engine.get_epsilon(DELTA) == 0.0
    assert train(model, optimizer, new_loader) == 5
    assert list(model.state_dict()) == keys
    assert all(not torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())


def test_eval_and_no_grad_leave_nothing_behind() -> None:
    _, model, optimizer, loader = private()
    x, y = next(iter(loader))
    model.eval()
    out = model(x)
    assert torch.autograd.grad(out.sum(), model[4].bias)[0] is not None  # plain autograd
    model.train()
    with torch.no_grad():
        assert not model(x).requires_grad
    model(x)  # forward without backward
    step = next(iter(optimizer._optimizer_step_pre_hooks.values()))
    assert step.recorder.take() == []
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert train(model, optimizer, [(x, y)]) == 1


def test_forward_that_raises_leaves_parameters_trainable() -> None:
    _, model, _, _ = private()
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 7, 6, 6))
    assert all(p.requires_grad for p in model.parameters())


def test_activation_changed_in_place_is_noticed() -> None:
    """The recorded activation must be what the layer saw; torch's own check guards it."""
    _, model, _, _ = private()
    x = torch.randn(4, 1, 6, 6)
    loss = model(x).sum()
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:check_rows. whether samples mix was not looked at. inside a checkpoint")
def test_non_reentrant_checkpointing() -> None:
    """Recomputed activations give the same step, up to how a normalisation's gradient is rounded."""
    grads = []
    for checkpoint in (False, True):
        _, model, optimizer, _ = private(noise_multiplier=0.0)
        x, y = torch.ones(8, 1, 6, 6).cumsum(0), torch.arange(8) % 4
        out = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False) if checkpoint else model(x)
        nn.functional.cross_entropy(out, y).backward()
        with pytest.warns(UserWarning, match="did not come from the loader"):
            optimizer.step()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- noise


def test_noise_variance_of_each_parameter() -> None:
    """A step on no samples releases noise alone: chi-square of each parameter, two-sided at FALSE_ALARM."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 80), nn.LayerNorm(80), nn.Linear(80, 60, bias=False))
    _, _, optimizer, _ = private(model, noise_multiplier=1.3, max_grad_norm=0.5, poisson_sampling=False)
    model(torch.zeros(0, 100))
    with pytest.warns(UserWarning, match="did not come from the loader"):
        optimizer.step()
    step = next(iter(optimizer._optimizer_step_pre_hooks.values()))
    for parameter in model.parameters():
        noise_only = parameter.grad.double() * 8  # the loader's batch size
        statistic = float(noise_only.square().sum() / step.sigma**2)
        low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], parameter.numel())
        assert low < statistic < high
    everything = torch.cat([p.grad.flatten() for p in model.parameters()]).double().numpy() * 8 / step.sigma
    assert stats.kstest(everything, "norm").pvalue > FALSE_ALARM


def test_sigma_carries_the_lattice_charge(monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the kernel: nominal multiplier times the charged sensitivity, never less, all sums in one call."""
    seen: dict[str, Any] = {}
    real = _update.sgd

    def spy(params: list[Tensor], sums: list[Tensor], added: Noise, *rest: Any, **options: Any) -> None:
        seen.update(added._asdict(), size=sum(t.numel() for t in sums))
        real(params, sums, added, *rest, **options)

    monkeypatch.setattr(_update, "sgd", spy)
    source = noise.SeededSource(1)
    _, model, optimizer, loader = private(noise_multiplier=1.3, max_grad_norm=0.5, source=source)
    train(model, optimizer, [next(iter(loader))])
    size = sum(p.numel() for p in model.parameters())
    granularity = noise.default_granularity(1.3 * 0.5)
    rounding = next(iter(optimizer._optimizer_step_pre_hooks.values())).float_charge
    assert 0 < rounding < 0.01
    charged = 1.3 * noise.charged_sensitivity(0.5 * (1 + rounding), size, granularity)
    assert seen["sigma"] > 1.3 * (0.5 * (1 + rounding) + granularity * math.sqrt(size))
    assert charged < seen["sigma"] <= charged * (1 + 1e-15)
    assert (seen["size"], seen["granularity"], seen["source"]) == (size, granularity, source)


def test_fresh_noise_every_step() -> None:
    _, model, optimizer, _ = private()
    grads = []
    for _ in range(2):
        model(torch.zeros(0, 1, 6, 6))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (grads[0] != grads[1]).float().mean() > 0.9


def test_unused_layer_still_gets_noise() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(36, 4), "unused": nn.Linear(3, 3)})
    _, _, optimizer, loader = private(model)
    x, y = next(iter(loader))
    nn.functional.cross_entropy(model["used"](x.flatten(1)), y).backward()
    optimizer.step()
    assert (model["unused"].weight.grad != 0).all()


def test_huge_gradients_saturate_instead_of_raising() -> None:
    """An overflowing sum would tell about the data; float32 samples with infinite norm count as zero."""
    torch.manual_seed(0)
    _, model, optimizer, _ = private(nn.Linear(4, 2))
    (model(torch.full((3, 4), 1e30)) * 1e30).mean().backward()
    with pytest.warns(UserWarning, match="did not come from the loader"):
        optimizer.step()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------------------------------------------- accounting


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_epsilon_of_poisson_training(accountant: str) -> None:
    engine, model, optimizer, loader = private(engine=PrivacyEngine(accountant=accountant))
    steps = train(model, optimizer, loader)
    expected = accounting.get_epsilon(
        noise_multiplier=1.0, sample_rate=1 / 5, steps=steps, delta=DELTA, accountant=accountant
    )
    assert engine.get_epsilon(DELTA) == expected


def test_epsilon_without_amplification() -> None:
    """One Gaussian mechanism for each pass from which a step was made, at its first step."""
    engine, model, optimizer, loader = private(poisson_sampling=False, loader=small_loader(shuffle=True))

    def passes() -> float:
        return sum(engine._ledger.spent.values())

    batches = iter(loader)
    assert train(model, optimizer, [next(batches)]) == 1
    assert passes() == 1
    assert train(model, optimizer, batches) == 4
    assert passes() == 1
    assert train(model, optimizer, loader) == 5
    assert passes() == 2
    first, second = iter(loader), iter(loader)
    for batches in (first, second, first):  # two passes at a time: both take part
        train(model, optimizer, [next(batches)])
    assert passes() == 4
    next(iter(loader))
    train(model, optimizer, [next(iter(loader))])  # two passes begun before one step: the step may hold either
    assert passes() == 6
    expected = accounting.get_epsilon(noise_multiplier=1.0, sample_rate=1, steps=6, delta=DELTA, accountant="rdp")
    assert engine.get_epsilon(DELTA) == expected


@pytest.mark.parametrize("poisson", [True, False])
def test_foreign_batches_cost_full_price(poisson: bool) -> None:
    engine, model, optimizer, loader = private(poisson_sampling=poisson)
    batch = next(iter(loader))
    train(model, optimizer, [batch])
    with pytest.warns(UserWarning, match="sample rate 1") as caught:
        train(model, optimizer, [batch, batch])
    assert len(caught) == 1
    assert engine._ledger.spent[1.0, 1.0] == (2 if poisson else 3)


def test_no_noise_is_said_once_and_costs_infinity() -> None:
    engine, model = PrivacyEngine(), small_model()
    arguments = {"module": model, "optimizer": _sgd(model), "data_loader": small_loader(), "max_grad_norm": 1.0}
    with pytest.warns(UserWarning, match="not private") as caught:
        _, optimizer, loader = engine.make_private(**arguments, noise_multiplier=0)
    assert len(caught) == 1
    train(model, optimizer, loader)
    assert engine.get_epsilon(DELTA) == math.inf


@pytest.mark.parametrize("poisson", [True, False])
def test_make_private_with_epsilon(poisson: bool) -> None:
    engine = PrivacyEngine(accountant="rdp")
    model = small_model()
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=small_loader(),
        target_epsilon=3.0,
        target_delta=DELTA,
        epochs=2,
        max_grad_norm=1.0,
        poisson_sampling=poisson,
    )
    for _ in range(2):
        train(model, optimizer, loader)
    assert 2.95 < engine.get_epsilon(DELTA) <= 3.0
    with pytest.raises(ValueError, match="already spent"):
        engine.make_private_with_epsilon(
            module=model,
            optimizer=optimizer,
            data_loader=small_loader(),
            target_epsilon=3.0,
            target_delta=DELTA,
            epochs=1,
            max_grad_norm=1.0,
        )


def test_one_engine_adds_up() -> None:
    engine, model, optimizer, loader = private()
    train(model, optimizer, loader)
    one = engine.get_epsilon(DELTA)
    _, model, optimizer, loader = private(engine=engine, noise_multiplier=2.0)
    train(model, optimizer, loader)
    assert engine.get_epsilon(DELTA) > one


def test_step_is_booked_before_anything_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """If adding the noise fails, the step has been paid for, no gradient is there and the weights are as they were."""
    engine, model, optimizer, loader = private()
    before = copy.deepcopy(model.state_dict())

    def broken(*args: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(_update, "sgd", broken)
    with pytest.raises(MemoryError):
        train(model, optimizer, [next(iter(loader))])
    assert sum(engine._ledger.spent.values()) == 1
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_engine_and_loader_are_not_copied() -> None:
    engine, _, _, loader = private()
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="copied or pickled"):
            attempt(engine)
    with pytest.raises(TypeError):
        copy.deepcopy(loader)


# ------------------------------------------------------------------------------------------------------ sampling


def test_poisson_inclusion_frequency() -> None:
    """Each record independently with probability 1/steps: counts per record, batch sizes and pairs, at FALSE_ALARM each."""
    size, steps, passes = 50, 4, 500
    sampler = _sampling.PoissonBatchSampler(size, steps, noise.SeededSource(3))
    assert len(sampler) == steps
    drawn = np.zeros((passes * steps, size))
    for i in range(passes):
        for j, batch in enumerate(sampler):
            assert batch == sorted(set(batch))
            drawn[i * steps + j, batch] = 1
    draws, rate = len(drawn), 1 / steps
    normal = stats.norm.isf(FALSE_ALARM / 2 / size)
    per_record = (drawn.sum(0) - draws * rate) / math.sqrt(draws * rate * (1 - rate))
    assert np.abs(per_record).max() < normal
    total = (drawn.sum() - drawn.size * rate) / math.sqrt(drawn.size * rate * (1 - rate))
    assert abs(total) < stats.norm.isf(FALSE_ALARM / 2)
    # Batch sizes are binomial: their variance, by the normal approximation of the sample variance.
    variance = size * rate * (1 - rate)
    assert abs(drawn.sum(1).var() / variance - 1) < stats.norm.isf(FALSE_ALARM / 2) * math.sqrt(2 / draws)
    pair = (drawn[:, 0] * drawn[:, 1]).sum()
    assert abs(pair - draws * rate**2) < normal * math.sqrt(draws * rate**2)
    assert not np.array_equal(drawn[:steps], drawn[steps : 2 * steps])


def test_poisson_sampler_draws_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sampling, "_RECORDS", 7)
    batches = list(_sampling.PoissonBatchSampler(50, 2, noise.SeededSource(3)))
    assert all(set(b) <= set(range(50)) for b in batches)
    assert max(max(b) for b in batches) > 42
    assert list(_sampling.PoissonBatchSampler(9, 1, noise.SeededSource(3))) == [list(range(9))]


def test_empty_batches_have_the_right_shape_and_train() -> None:
    """Two records at rate 1/2: a quarter of the batches is empty. Each still is a step."""
    loader = small_loader(size=2, batch=1)
    engine, model, optimizer, loader = private(loader=loader)
    sizes = []
    for _ in range(12):
        for x, y in loader:
            assert (x.shape[1:], x.dtype, y.shape, y.dtype) == ((1, 6, 6), torch.float32, (len(x),), torch.int64)
            sizes.append(len(x))
            train(model, optimizer, [(x, y)])
    assert {0, 1, 2} == set(sizes)
    assert sum(engine._ledger.spent.values()) == 24
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("seed", range(4))
def test_empty_batches_may_not_be_left_out(seed: int) -> None:
    """Else the number of steps tells of them, and epsilon is too small. In the midst, or at a pass's end."""
    _, model, optimizer, loader = private(
        loader=small_loader(size=4, batch=1, shuffle=True), source=noise.SeededSource(seed)
    )
    sizes = []

    def without_empty_ones() -> None:
        for _ in range(8):
            for x, y in loader:
                sizes.append(len(x))
                if len(x):
                    train(model, optimizer, [(x, y)])

    with pytest.raises(PrivacyError, match="a batch without samples was left out"):
        without_empty_ones()
    first = next(i for i, size in enumerate(sizes) if size == 0 and any(sizes[i // 4 * 4 : (i // 4 + 1) * 4]))
    assert len(sizes) <= (first // 4 + 1) * 4 + 1  # at once, or at the end of the pass
    for _ in range(8):  # a pass without any step is no training, and batches may be read ahead
        assert len([len(x) for x, _ in loader]) == 4
        assert sum(train(model, optimizer, [batch]) for batch in list(loader)) == 4


def _time_first(samples: list[Any]) -> dict[str, Any]:
    from collections import namedtuple

    pair = namedtuple("pair", "a b")  # noqa: PYI024
    x = torch.stack([s[0] for s in samples], 1)
    return {"x": x, "pair": pair(x[0], (x[0],)), "names": ["?"] * len(samples)}


def test_empty_batch_of_a_structure() -> None:
    """The batch dimension is found, wherever it is."""
    records = TensorDataset(torch.randn(3, 5, 2))
    collate = _sampling.EmptyCollate(_time_first, records)
    empty = collate([])
    assert empty["x"].shape == (5, 0, 2)
    assert empty["pair"].a.shape == empty["pair"].b[0].shape == (0, 2)
    assert empty["names"] == []
    assert collate([records[0]])["x"].shape == (5, 1, 2)
    for bad in (lambda s: torch.zeros(3), lambda s: 7):
        with pytest.raises(TypeError, match="empty batch"):
            _sampling.EmptyCollate(bad, records)([])


def test_loader_settings_are_kept_and_workers_work() -> None:
    _, model, optimizer, loader = private(loader=small_loader(num_workers=1, shuffle=True, timeout=60))
    assert (loader.num_workers, loader.timeout) == (1, 60)
    assert train(model, optimizer, loader) == 5


class Twice(BatchSampler):
    """Draws record 0 in two batches of a pass."""

    def __iter__(self) -> Iterator[list[int]]:
        yield [0, 1]
        yield [0, 2]


def test_a_record_twice_in_a_pass_is_refused_without_poisson_sampling() -> None:
    records = small_loader().dataset
    doubled = DataLoader(records, batch_sampler=Twice(range(4), 2, False))
    _, model, optimizer, loader = private(loader=doubled, poisson_sampling=False)
    with pytest.raises(PrivacyError, match="twice in one pass"):
        train(model, optimizer, loader)


# ------------------------------------------------------------------------------- what must not reach ``.grad``


def test_two_backward_passes() -> None:
    engine, model, optimizer, loader = private()
    x, y = next(iter(loader))
    nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(PrivacyError, match="two backward passes"):
        nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(PrivacyError, match="two backward passes"):
        optimizer.step()
    assert engine.get_epsilon(DELTA) == 0.0
    assert train(model, optimizer, [(x, y)]) == 1  # zero_grad clears the failure


def test_zero_grad_forgets_an_unused_backward() -> None:
    _, model, optimizer, loader = private(noise_multiplier=0.0)
    x, y = next(iter(loader))
    (100 * model(x)).sum().backward()
    assert train(model, optimizer, [(x, y)]) == 1
    optimizer.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in model.parameters())


@pytest.mark.parametrize("case", ["penalty", "eval", "functional"])
def test_gradients_outside_the_layers_are_refused(case: str) -> None:
    """Also on top of an old ``.grad``: what autograd accumulated is deleted before the error is raised."""
    _, model, optimizer, loader = private()
    x, y = next(iter(loader))
    train(model, optimizer, [(x, y)])
    loss = nn.functional.cross_entropy(model(x), y)
    if case == "penalty":
        loss = loss + model[4].weight.square().sum()
    elif case == "functional":
        loss = loss + nn.functional.linear(x.flatten(1)[:, :4], model[4].weight[:, :4]).sum()
    else:
        model[4].eval()
        loss = nn.functional.cross_entropy(model(x), y)
    with pytest.raises(PrivacyError, match=r"parameter '4\.(weight|bias)' received a gradient outside"):
        loss.backward()
    assert model[4].weight.grad is None or case == "eval"
    with pytest.raises(PrivacyError, match="this step cannot be private"):
        optimizer.step()


def test_double_backward_is_refused() -> None:
    """A gradient penalty: its second-order part would bypass the records."""
    _, model, optimizer, loader = private()
    x = torch.randn(4, 1, 6, 6, requires_grad=True)
    with pytest.raises(PrivacyError, match="create_graph=True differentiates twice"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(PrivacyError, match="create_graph=True differentiates twice"):
        optimizer.step()
    train(model, optimizer, loader)  # zero_grad clears the failure


def test_a_graph_is_used_once() -> None:
    _, model, optimizer, _ = private()
    loss = model(torch.randn(4, 1, 6, 6)).sum()
    loss.backward(retain_graph=True)
    optimizer.zero_grad()
    with pytest.raises(PrivacyError, match="second backward pass through the same graph"):
        loss.backward()


def test_hooks_of_the_user_are_part_of_the_gradient() -> None:
    """A hook on a layer's output changes the gradient of the layer, as it does in plain training; in-place too."""
    gradients = []
    for hooked in (False, True):
        _, model, optimizer, _ = private(noise_multiplier=0.0, max_grad_norm=1e3, loader=small_loader(8, 8))
        hidden = model[:4](torch.ones(8, 1, 6, 6).cumsum(0) / 8)
        out = model[4](hidden)
        if hooked:
            out.register_hook(lambda g: 2 * g)
        out.mul_(1.0).square().sum().backward()
        with pytest.warns(UserWarning, match="did not come from the loader"):
            optimizer.step()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(2 * a, b)


def test_closure_is_refused() -> None:
    _, _, optimizer, _ = private()
    for call in (lambda: optimizer.step(lambda: 0.0), lambda: optimizer.step(closure=lambda: 0.0)):
        with pytest.raises(PrivacyError, match="closure"):
            call()


def test_copies_of_the_model_infer_but_do_not_train() -> None:
    _, model, _, loader = private()
    x, _ = next(iter(loader))
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for twin in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
        with pytest.raises(PrivacyError, match="copy of a private model"):
            twin(x)
        with torch.no_grad():
            assert torch.equal(twin(x), model(x))
        assert torch.equal(twin.eval()(x), model(x))
    fresh = small_model()
    fresh.load_state_dict(model.state_dict())
    fresh(x).sum().backward()
    assert fresh[4].weight.grad is not None


def _batch_mismatch(model: Any, x: Tensor) -> Tensor:
    return model[4](torch.zeros(3, 48)).sum() + model(x).sum()


def _no_batch(model: Any, x: Tensor) -> Tensor:
    return model[4](torch.zeros(48)).sum()


@pytest.mark.parametrize(
    ("loss", "match"),
    [(_batch_mismatch, r"different batch sizes: '(0|2|4)' \d+, '(0|2|4)' \d+"), (_no_batch, "no batch dimension")],
)
def test_records_that_do_not_fit(loss: Any, match: str) -> None:
    engine, model, optimizer, _ = private()

    def step() -> None:
        loss(model, torch.randn(5, 1, 6, 6)).backward()
        optimizer.step()

    with pytest.raises(PrivacyError, match=match):
        step()
    assert engine.get_epsilon(DELTA) == 0.0
    assert all(p.grad is None for p in model.parameters())


def _freeze(model: Any, optimizer: Any) -> None:
    model[4].weight.requires_grad_(False)


def _replace(model: Any, optimizer: Any) -> None:
    model[4].weight = nn.Parameter(torch.zeros(4, 48))


def _add_group(model: Any, optimizer: Any) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})


@pytest.mark.parametrize("change", [_freeze, _replace, _add_group])
def test_changes_after_make_private_are_noticed(change: Any) -> None:
    _, model, optimizer, _ = private()
    change(model, optimizer)
    with pytest.raises(PrivacyError, match="since make_private"):
        optimizer.step()


# --------------------------------------------------------------------------------------------------- bad input


class Stream(IterableDataset[Any]):
    """Records without an index."""

    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(4)


def with_instance_forward() -> nn.Module:
    model = nn.Linear(4, 2)
    model.forward = lambda x: x  # type: ignore[method-assign]
    return model


def with_direct_parameter() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 2))
    model.register_parameter("scale", nn.Parameter(torch.ones(2)))
    return model


class LowRank(nn.Module):
    """Its "samples" would be the rows of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(4))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.factor


def with_own_parametrization() -> nn.Module:
    layer = nn.Linear(4, 2)
    nn.utils.parametrize.register_parametrization(layer, "weight", LowRank())
    return layer


UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)),
        r"1 \(BatchNorm1d\).*ModuleValidator\.fix",
    ),
    "frozen batch norm": (
        lambda: nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2).requires_grad_(False)),
        "BatchNorm1d.*GroupNorm",
    ),
    "instance norm": (
        lambda: nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True)),
        "InstanceNorm2d.*GroupNorm",
    ),
    "lstm": (lambda: nn.LSTM(4, 2), r"'weight_ih_l0'.*\(LSTM\).*supported layers: Linear"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), r"'in_proj_weight'.*MultiheadAttention"),
    "a parametrization of the user's": (
        with_own_parametrization,
        r"'(layer\.)?parametrizations.weight.0.factor'.*LowRank",
    ),
    "instance forward": (with_instance_forward, r"'weight'.*Linear"),
    "direct parameter": (with_direct_parameter, r"'scale'.*Sequential"),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)), "original0"),
    "max_norm": (lambda: nn.Embedding(4, 2, max_norm=1.0), r"Embedding.*max_norm"),
    "scale_grad_by_freq": (lambda: nn.Embedding(4, 2, scale_grad_by_freq=True), r"Embedding.*scale_grad_by_freq"),
    "sparse": (lambda: nn.Embedding(4, 2, sparse=True), r"Embedding.*sparse"),
    "data parallel": (lambda: nn.DataParallel(nn.Linear(4, 2)), r"DataParallel.*one device"),
}


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_layers_are_named_before_training(name: str) -> None:
    make, match = UNSUPPORTED[name]
    model = make()
    assert not ModuleValidator.is_valid(model)
    with pytest.raises(UnsupportedModuleError, match=match):
        ModuleValidator.validate(model, strict=True)
    before = hooks_of(model)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1)), *model.parameters()], lr=0.1)
    with pytest.raises(UnsupportedModuleError, match=match):
        private(model, optimizer=optimizer)
    assert hooks_of(model) == before
    assert "zero_grad" not in vars(optimizer)


def _sgd(model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def _missing_parameter() -> dict[str, Any]:
    model = nn.Linear(4, 2)
    return {"module": model, "optimizer": torch.optim.SGD([model.weight], lr=0.1)}


def _foreign_parameter() -> dict[str, Any]:
    model = nn.Linear(4, 2)
    return {"module": model, "optimizer": torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(9))], lr=0.1)}


def _half() -> dict[str, Any]:
    model = nn.Linear(4, 2).to(torch.bfloat16)
    return {"module": model, "optimizer": _sgd(model)}


def _two_devices() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2, device="meta"))
    return {"module": model, "optimizer": _sgd(model)}


def _lazy() -> dict[str, Any]:
    model = nn.LazyLinear(2)
    return {"module": model, "optimizer": _sgd(model)}


def _frozen() -> dict[str, Any]:
    model = nn.Linear(4, 2).requires_grad_(False)
    return {"module": model, "optimizer": _sgd(model)}


def _already_private() -> dict[str, Any]:
    _, model, optimizer, _ = private()
    return {"module": model, "optimizer": optimizer}


def _optimizer_already_private() -> dict[str, Any]:
    _, _, optimizer, _ = private()
    model = small_model()
    for group in optimizer.param_groups:
        group["params"] = list(model.parameters())
    return {"module": model, "optimizer": optimizer}


def _sampler(sampler: Any) -> dict[str, Any]:
    return {"data_loader": DataLoader(small_loader().dataset, batch_size=2, sampler=sampler)}


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "module": ({"module": 3}, TypeError, "module must be"),
    "optimizer": ({"optimizer": None}, TypeError, "optimizer must be"),
    "missing parameter": (_missing_parameter, ValueError, "optimizer does not have .* 'bias'"),
    "foreign parameter": (_foreign_parameter, ValueError, r"optimizer has a parameter of shape \(9,\)"),
    "frozen": (_frozen, ValueError, "no trainable parameters"),
    "dtype": (_half, TypeError, "'weight' is torch.bfloat16"),
    "devices": (_two_devices, ValueError, "several devices: cpu, meta"),
    "lazy": (_lazy, ValueError, "'weight' is not initialised"),
    "already private": (_already_private, ValueError, "module is already private"),
    "optimizer already private": (_optimizer_already_private, ValueError, "optimizer is already private"),
    "noise negative": ({"noise_multiplier": -1.0}, ValueError, "noise_multiplier"),
    "noise nan": ({"noise_multiplier": math.nan}, ValueError, "noise_multiplier"),
    "noise text": ({"noise_multiplier": "1"}, TypeError, "noise_multiplier"),
    "clip zero": ({"max_grad_norm": 0.0}, ValueError, "max_grad_norm"),
    "clip underflows": ({"max_grad_norm": 2.0**-41}, ValueError, r"max_grad_norm is .*, expected 2\^-40 to 2\^80"),
    "clip overflows": ({"max_grad_norm": [1.0, 1e30] * 3, "clipping": "per_layer"}, ValueError, r"expected 2\^-40 to 2\^80"),
    "clip infinite": ({"max_grad_norm": math.inf}, ValueError, "max_grad_norm"),
    "clip list": ({"max_grad_norm": [1.0, 1.0]}, TypeError, "max_grad_norm"),
    "clipping": ({"clipping": "ghost"}, ValueError, "clipping must be one of 'flat', 'per_layer', 'automatic'"),
    "list of norms": ({"max_grad_norm": [1.0] * 6}, TypeError, "max_grad_norm is a list"),
    "too few norms": ({"max_grad_norm": [1.0] * 2, "clipping": "per_layer"}, ValueError, "max_grad_norm has 2 entries"),
    "bad norm": ({"max_grad_norm": [1.0, 0.0], "clipping": "per_layer"}, ValueError, r"max_grad_norm\[1\]"),
    "physical batch": ({"max_physical_batch_size": 0}, ValueError, "max_physical_batch_size"),
    "loss_reduction": ({"loss_reduction": "none"}, ValueError, "loss_reduction"),
    "criterion": ({"criterion": nn.CrossEntropyLoss(reduction="sum")}, ValueError, "criterion has reduction 'sum'"),
    "ghost": ({"grad_sample_mode": "ghost"}, ValueError, "grad_sample_mode 'ghost'"),
    "generator": ({"noise_generator": torch.Generator()}, ValueError, "noise_generator"),
    "source": ({"source": 7}, TypeError, "source"),
    "sampling": ({"poisson_sampling": "no"}, TypeError, "^poisson_sampling is a str, expected a bool"),
    "loader type": ({"data_loader": [1, 2]}, TypeError, "data_loader must be"),
    "stream": ({"data_loader": DataLoader(Stream(), batch_size=2)}, TypeError, "IterableDataset"),
    "stream, plain": (
        {"data_loader": DataLoader(Stream(), batch_size=2), "poisson_sampling": False},
        TypeError,
        "IterableDataset",
    ),
    "no batches": ({"data_loader": DataLoader([1, 2], batch_size=None)}, ValueError, "batch_size=None"),
    "no records": ({"data_loader": DataLoader([], batch_size=2)}, ValueError, "data_loader is empty"),
    "weighted": (lambda: _sampler(WeightedRandomSampler([1.0] * 40, 40)), ValueError, "WeightedRandomSampler"),
    "subset": (lambda: _sampler(SubsetRandomSampler([1, 2])), ValueError, "SubsetRandomSampler.*Subset"),
    "batch sampler without size": (
        {"data_loader": DataLoader([1, 2], batch_sampler=[[0], [1]]), "poisson_sampling": False},
        ValueError,
        "batch_size",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    change, error, match = BAD[name]
    change = change() if callable(change) else change
    model = small_model()
    arguments = {
        "module": model,
        "optimizer": _sgd(model),
        "data_loader": small_loader(),
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        **change,
    }
    with pytest.raises(error, match=match):
        PrivacyEngine().make_private(**arguments)
    assert hooks_of(model) == 0


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"target_epsilon": -1.0}, ValueError, "target_epsilon"),
        ({"target_delta": 0.0}, ValueError, "target_delta"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"epochs": 1.5}, TypeError, "epochs"),
        ({"data_loader": 3}, TypeError, "data_loader"),
    ],
)
def test_bad_input_with_epsilon(change: dict[str, Any], error: type[Exception], match: str) -> None:
    model = small_model()
    arguments = {"data_loader": small_loader(), "target_epsilon": 1.0, "target_delta": DELTA, "epochs": 1, **change}
    with pytest.raises(error, match=match):
        PrivacyEngine().make_private_with_epsilon(module=model, optimizer=_sgd(model), max_grad_norm=1.0, **arguments)


def test_noise_beside_its_target_is_refused() -> None:
    model = small_model()
    with pytest.raises(TypeError, match="noise_multiplier is what make_private_with_epsilon finds"):
        PrivacyEngine().make_private_with_epsilon(
            module=model,
            optimizer=_sgd(model),
            data_loader=small_loader(),
            target_epsilon=1.0,
            target_delta=DELTA,
            epochs=1,
            max_grad_norm=1.0,
            noise_multiplier=1.0,
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_modules_and_data_of_no_length_are_refused() -> None:
    traced = torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(UnsupportedModuleError, match="is TorchScript"):
        private(traced)

    class Endless:
        def __getitem__(self, index: int) -> Tensor:
            return torch.zeros(3)

    with pytest.raises(TypeError, match="data set, a Endless, has no len"):
        private(nn.Linear(3, 2), loader=DataLoader(Endless(), sampler=[0, 1]))  # type: ignore[arg-type]


def test_bad_engine_arguments() -> None:
    with pytest.raises(ValueError, match="accountant"):
        PrivacyEngine(accountant="gdp")
    with pytest.raises(ValueError, match="delta"):
        PrivacyEngine().get_epsilon(0.0)


def test_opacus_arguments_that_change_nothing() -> None:
    engine = PrivacyEngine(accountant="prv", secure_mode=True)
    assert engine.accountant == "pld"
    private(engine=engine, criterion=nn.CrossEntropyLoss(), grad_sample_mode="functorch", secure_mode=True)


# ------------------------------------------------------------------------------------------------- ModuleValidator


def test_fix_replaces_batch_norm() -> None:
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(48)
    model = nn.Sequential(
        nn.Conv2d(1, 48, 3), shared, nn.Sequential(nn.ReLU(), shared), nn.InstanceNorm2d(48, affine=True)
    )
    nn.init.normal_(shared.weight)
    fixed = ModuleValidator.fix(model)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert [type(m).__name__ for m in fixed.modules()].count("GroupNorm") == 2  # the shared one once
    assert fixed[1] is fixed[2][1]
    assert (fixed[1].num_groups, fixed[3].num_groups) == (16, 48)
    assert torch.equal(fixed[1].weight, shared.weight)
    x = torch.randn(2, 48, 5, 5)
    torch.testing.assert_close(fixed[3](x), model[3](x))
    assert ModuleValidator.is_valid(fixed)
    assert ModuleValidator.validate(fixed) == []
    assert isinstance(ModuleValidator.fix(nn.BatchNorm1d(10, affine=False).double()), nn.GroupNorm)


def test_all_problems_are_listed() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.LSTM(4, 2))
    errors = ModuleValidator.validate(model)
    assert len(errors) == 5  # one for the norm, four for the LSTM's parameters
    with pytest.raises(UnsupportedModuleError, match=r"(?s)BatchNorm1d.*weight_hh_l0"):
        ModuleValidator.validate(model, strict=True)


def test_mixed_precision_parameters_are_noised_by_dtype() -> None:
    torch.manual_seed(0)
    sums = [torch.zeros(300), torch.zeros(300, dtype=torch.float64)]
    _optimizers.noisy_means(sums, Noise(2.0, None, noise.SeededSource(1)), 1.0)
    for total in sums:
        assert 1.5 < float(total.double().std()) < 2.5


def test_a_frozen_parameter_of_the_optimizer_may_not_be_thawed_later() -> None:
    """Its gradient is that of no covered layer: clipped and noised by nobody. Also after a step that passed."""
    for steps in (0, 1, 2):
        outside = nn.Linear(36, 36).requires_grad_(False)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
        _, model, optimizer, loader = private(model)
        optimizer.add_param_group({"params": list(outside.parameters())})
        for _ in range(steps):
            x, y = next(iter(loader))
            nn.functional.cross_entropy(model(outside(x.flatten(1))), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        outside.requires_grad_(True)
        before = outside.weight.detach().clone()
        x, y = next(iter(loader))
        nn.functional.cross_entropy(model(outside(x.flatten(1))), y).backward()
        with pytest.raises(PrivacyError, match="parameters changed since make_private"):
            optimizer.step()
        assert torch.equal(outside.weight, before)
