"""How samples are weighted and summed, what rounding is charged, parts of a batch, schedules and budgets."""

from __future__ import annotations

import copy
import itertools
import math
import types
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from aisec_fast import BudgetError, PrivacyError, accounting, noise, use_backend
from aisec_fast.privacy import (
    BatchMemoryManager,
    PrivacyEngine,
    _charges,
    _clip,
    _layers,
    _native,
    _precision,
    _probe,
    schedulers,
)
from aisec_fast.privacy._clip import KAPPA, LEAST_WEIGHT, MARGIN, STABILITY, Batch, Norms, Weights, clip, weights_of

from .test_privacy import private, small_loader, small_model, train
from .test_privacy_layers import MODELS, loop_gradients, model_case, square_loss

DELTA = 1e-5


def step_of(optimizer: Any) -> Any:
    return next(iter(optimizer._optimizer_step_pre_hooks.values()))


def one_step(model: nn.Module, x: Tensor, y: Tensor, loss_of: Any, **options: Any) -> tuple[list[Tensor], Any]:
    """What a step without noise puts into ``.grad`` for a sum of losses, and the step itself."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    arguments = {"noise_multiplier": 0.0, "max_grad_norm": 0.7, "loss_reduction": "sum", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no noise; a batch of our own
        loader = DataLoader(TensorDataset(torch.arange(16)), batch_size=16)
        PrivacyEngine().make_private(module=model, optimizer=optimizer, data_loader=loader, **arguments)
        loss_of(model(x), y).sum().backward()
        optimizer.step()
    return [p.grad for p in model.parameters() if p.requires_grad], step_of(optimizer)


# ------------------------------------------------------------------------------------------------------- weights


def norms(squares: list[float], spreads: list[float]) -> Norms:
    return Norms(torch.tensor(squares, dtype=torch.float64), torch.tensor(spreads, dtype=torch.float64))


def test_weights() -> None:
    """Below the bound, at it, above it, zero, one held back by its spread, one too large, and what is not finite."""
    inf, nan = math.inf, math.nan
    squares = [0.25, 1.0, 16.0, 0.0, 1.0, 2.0**90, inf, nan, 1.0]
    spreads = [0.25, 1.0, 16.0, 0.0, (4 * KAPPA) ** 2, 2.0**90, inf, 1.0, inf]
    bound = 2.0 * (1 - MARGIN)
    assert weights_of(norms(squares, spreads), 2.0, "flat").tolist() == [1, 1, bound / 4, 1, bound / 4, 0, 0, 0, 0]
    automatic = weights_of(norms(squares, spreads), 2.0, "automatic").tolist()
    assert automatic == [
        bound / (0.5 + STABILITY), bound / (1 + STABILITY), bound / (4 + STABILITY), bound / STABILITY, bound / 4, 0, 0, 0, 0
    ]  # fmt: skip
    least = bound / LEAST_WEIGHT
    assert weights_of(norms([least**2, (2 * least) ** 2], [0.0, 0.0]), 2.0, "flat").tolist() == [LEAST_WEIGHT, 0]


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
def test_weights_of_the_kernel_are_those(clipping: str) -> None:
    """To the bit, with norms in parts, exact or with spreads; and it says whether some weight is zero."""
    generator = np.random.default_rng(5)
    for exact in (True, False):
        for special in ([], [0.0, math.inf, math.nan, 2.0**90, 5e-324, -1.0]):
            parts = []
            for k in range(3):
                squares = 10.0 ** generator.uniform(-4, 4, 500)
                spreads = squares * (1 + 10.0 ** generator.uniform(-3, 4, 500))
                for values in (squares, spreads):
                    values[k : k + 3 * len(special) : 3] = special
                one = torch.from_numpy(squares)
                parts.append(Norms(one, one if exact else torch.from_numpy(spreads)))
            for scale in (1.0, 256.0, 3.7):
                expected = weights_of(Norms.added(parts).scaled(scale), 1.7, clipping) * scale
                with use_backend("native"):
                    found = clip(parts, Batch(0, scale, 1.7), 1.7, clipping)
                assert found.values.tolist() == expected.tolist()
                assert found.dropped == bool(special)
                with use_backend("numba"):
                    assert clip(parts, Batch(0, scale, 1.7), 1.7, clipping).values.tolist() == expected.tolist()


def test_rows_of_weight_zero_are_selected_away() -> None:
    rows = torch.tensor([[1.0, 2.0], [math.nan, math.inf], [3.0, 4.0]])
    weights = Weights(torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64))
    assert weights.scale(rows).tolist() == [[0.5, 1.0], [0.0, 0.0], [3.0, 4.0]]
    assert weights.keep(rows).tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]
    assert weights.part(1, 3).scale(rows[1:]).tolist() == [[0.0, 0.0], [3.0, 4.0]]


def loop_sums(model: nn.Module, x: Tensor, y: Tensor, loss_of: Any, weigh: Any) -> list[Tensor]:
    """The sum over samples of gradients weighted by ``weigh(gradients)``, a weight for each parameter."""
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    sums = [torch.zeros_like(p) for p in parameters]
    for i in range(len(x)):
        gradients = torch.autograd.grad(loss_of(model(x[i : i + 1]), y[i : i + 1]).sum(), parameters)
        for total, gradient, weight in zip(sums, gradients, weigh(gradients), strict=True):
            total += weight * gradient
    return sums


def whole_norm(gradients: Any) -> float:
    return math.sqrt(sum(float(g.square().sum()) for g in gradients))


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "transformer"])
def test_automatic_clipping(name: str) -> None:
    model, x, y, loss_of = model_case(name, torch.float64)
    expected = loop_sums(model, x, y, loss_of, lambda g: [0.7 * (1 - MARGIN) / (whole_norm(g) + STABILITY)] * len(g))
    for got, want in zip(one_step(model, x, y, loss_of, clipping="automatic")[0], expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("given", ["number", "list"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "transformer"])
def test_per_layer_clipping(name: str, given: str) -> None:
    """Each parameter by its own norm; the bounds of a number are equal and add up to it."""
    model, x, y, loss_of = model_case(name, torch.float64)
    count = len(list(model.parameters()))
    bounds = [0.7 / math.sqrt(count)] * count if given == "number" else [0.1 * (i % 5 + 1) for i in range(count)]

    def weigh(gradients: Any) -> list[float]:
        return [
            min(1.0, b * (1 - MARGIN) / max(whole_norm([g]), 1e-300)) for b, g in zip(bounds, gradients, strict=True)
        ]

    expected = loop_sums(model, x, y, loss_of, weigh)
    options = {"clipping": "per_layer", "max_grad_norm": 0.7 if given == "number" else bounds}
    sums, step = one_step(model, x, y, loss_of, **options)
    assert step.mechanism.max_grad_norm == pytest.approx(math.hypot(*bounds), rel=1e-12)
    for got, want in zip(sums, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0.0, atol=1e-11)


# ------------------------------------------------------------------------------------------------------- charges


def test_rows_of_float64_are_charged_for_each_addition() -> None:
    """They are added in their own precision: n of them, of at most the clipping norm, err by up to n (n - 1) / 2 u each way."""
    most = 5000
    model = nn.Sequential(nn.LayerNorm(4), nn.Flatten(0)).double()
    engine, optimizer = PrivacyEngine(), torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.arange(most)), batch_size=most)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a batch of our own
        engine.make_private(
            module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0,
            poisson_sampling=False, check_rows=False,
        )  # fmt: skip
        model(torch.randn(3, 4, dtype=torch.float64)).sum().backward()
        optimizer.step()
    assert 2.0**-53 * most**2 <= engine.info()[0]["charges"]["float"] <= 2.1 * 2.0**-53 * most * (most + 10)


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("name", MODELS)
def test_one_sample_moves_the_sum_by_no_more_than_is_charged(name: str, clipping: str) -> None:
    """In float32: each sample in turn is made unusable, so that it contributes zero, in the same batch."""
    model, x, y, loss_of = model_case(name, torch.float32)
    on_loss = name.endswith("transformer")  # tokens cannot be NaN, the loss can
    y = y.clone()
    if on_loss:
        y[:, 5] *= 100
    else:
        y += 4
    everything, step = one_step(copy.deepcopy(model), x, y, loss_of, clipping=clipping)
    moved = []
    for i in range(len(x)):
        x_without, y_without = x.clone(), y.clone()
        if on_loss:
            y_without[i, 5] = math.nan
        else:
            x_without[i] = math.nan
        without, _ = one_step(copy.deepcopy(model), x_without, y_without, loss_of, clipping=clipping)
        moved.append(whole_norm([(a.double() - b.double()) for a, b in zip(everything, without, strict=True)]))
    charge = step.sums_charge if hasattr(step, "sums_charge") else step.float_charge
    assert 0 < charge < 0.02
    assert max(moved) <= 0.7 * (1 + charge)
    assert max(moved) >= 0.7 * 0.9  # some sample is clipped, by a norm that is nearly its own


def test_float_sum_is_within_its_charge() -> None:
    """Products of whole blocks against float64: the error is within half of what is charged for it."""
    torch.manual_seed(0)
    for terms, samples in itertools.product((1, 3, 64), (1, 7, 40)):
        a, g = torch.randn(samples * terms, 30) + 3, torch.randn(samples * terms, 20) + 3
        exact = g.double().t() @ a.double()
        error = float(((g.t() @ a).double() - exact).norm())
        lengths = float((a.double().norm(dim=1) * g.double().norm(dim=1)).sum())  # at most samples * KAPPA * C
        bound = _charges.block_charge(samples, terms, torch.float32) * lengths / samples
        assert error <= (bound if terms == 1 else bound / KAPPA)


def test_blocks_keep_their_charge_small() -> None:
    for terms in (1, 2, 64, 1024, 2**20):
        size = _charges.block_size(terms, torch.float32)
        assert size == 1 or _charges.block_charge(size, terms, torch.float32) <= 0.008
        assert _charges.block_charge(size + 1, terms, torch.float32) > 0.008
    assert _charges.block_size(1, torch.float32) >= 256
    assert _charges.block_size(64, torch.float32) >= 8
    assert _charges.block_charge(2**15, 64, torch.float64) < 1e-3
    assert math.isinf(_charges.gamma(2**24, torch.float32))


def test_what_a_linear_layers_sum_is_charged() -> None:
    """Blocks of the kernel, as small as its registers like; those of torch's products, as large as the charge allows."""
    layer = nn.Linear(4000, 4000)
    for length, native, torchs in ((1, 128, 256), (2, 45, 45), (64, 2, 8), (128, 1, 4), (300, 1, 1)):
        inputs, outputs = torch.randn(1, length, 4000), torch.randn(1, length, 4000)
        found = _layers.LinearGradients(layer, inputs, outputs)
        assert found.rounding("weight").samples == pytest.approx(native, abs=1 if length == 2 else 0)
        assert found.rounding("weight") == _charges.rounding(length, found.rounding("weight").samples, torch.float32)
        found._native = None
        assert found.rounding("weight").samples == pytest.approx(torchs, abs=2)
        assert found.rounding("bias") == _charges.Rounding()
    first, second = _charges.rounding(64, 2, torch.float32), _charges.rounding(300, 1, torch.float32)
    worst = _charges.Rounding(300, 1, max(first.charge, second.charge))
    assert first.worst(second) == second.worst(first) == worst
    assert first.worst(_charges.Rounding()) == _charges.Rounding().worst(first) == first


def test_blocks_of_several_sizes() -> None:
    """Found by hand: two parameters, blocks of 1 and of 10 samples, each of which has all of its gradient in one of them."""
    small, large = (_charges.Rounding(terms, samples, 0.008) for terms, samples in ((1000, 1), (100, 10)))
    gradients = np.zeros((10, 2))
    gradients[0, 0], gradients[1:, 1] = 1.0, 1.0
    # What the proof allows a sample to add to the error of a block: that of the block by the samples in it.
    moved = [small.charge * gradients[0, 0], large.charge * gradients[:, 1].sum() / large.samples]
    charged = _charges.products_charge([[small], [large]])
    assert math.hypot(*moved) <= charged
    assert charged == pytest.approx(0.008 * math.sqrt(2))
    assert _charges.products_charge([[small], [small], [_charges.Rounding()], []]) == 0.008
    assert _charges.products_charge([[small, large], [small]]) == pytest.approx(math.hypot(0.016, 0.008))
    assert _charges.products_charge([[_charges.Rounding()]]) == 0.0


def test_what_layers_with_blocks_of_several_sizes_are_charged() -> None:
    """Sequences of 3 and of 4 positions."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(200, 200), nn.Linear(200, 200)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x[:, :3]).sum(1) + self.second(x).sum(1)

    _, step = one_step(Two(), torch.randn(16, 4, 200), torch.zeros(16), square_loss)
    samples = [min(_charges.block_size(terms, torch.float32), 128 // terms) for terms in (3, 4)]
    charges = [_charges.block_charge(m, terms, torch.float32) for m, terms in zip(samples, (3, 4), strict=True)]
    assert samples[0] > samples[1] > 1
    assert step.float_charge > math.hypot(*charges) > 1.2 * max(charges)


def test_largest_batch() -> None:
    """The cap is exceeded with probability below 2^-64, by the exact binomial tail."""
    from scipy import stats

    for records, rate in ((50_000, 0.005), (1000, 0.3), (100, 0.01), (10**7, 1e-5), (8, 1.0)):
        cap = _charges.largest_batch(records, rate)
        assert cap == records or stats.binom.sf(cap, records, rate) < 2.0**-64
        assert cap <= min(records, records * rate + 70 + 14 * math.sqrt(records * rate))


def test_noise_pays_for_everything() -> None:
    sigma, granularity = _charges.noise_scale(1.5, 2.0, 0.01, 10**6)
    assert granularity == 2.0**-19
    exact = 1.5 * (2.0 * 1.01 + 2.0**-19 * 1000)
    assert exact < sigma < exact * (1 + 1e-15)


def test_a_batch_larger_than_declared() -> None:
    engine, model, optimizer, _ = private(loader=small_loader(size=8, batch=8))
    nn.functional.cross_entropy(model(torch.zeros(9, 1, 6, 6)), torch.zeros(9, dtype=torch.int64)).backward()
    with pytest.raises(PrivacyError, match="a batch of 9 samples, where at most 8 were declared"):
        optimizer.step()
    assert engine.get_epsilon(DELTA) == 0.0
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("layers", "shape", "owner", "name"),
    [
        ((nn.Conv2d(32, 40, 3), nn.Flatten(), nn.Linear(160, 4)), (32, 4, 4), _layers.ConvGradients, "_add_product"),
        ((nn.Linear(4, 3), nn.Flatten(), nn.Linear(240, 4)), (80, 4), torch, "bmm"),
    ],
)
def test_so_are_those_that_torch_makes_beside_our_kernels(
    layers: tuple[nn.Module, ...], shape: tuple[int, ...], owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Precision is set only where torch computes: the sum of a wide convolution, the rows of a narrow sequence."""
    seen = []
    real = getattr(owner, name)

    def spy(*arguments: Any) -> Any:
        seen.append(_precision._SWITCHES[0][0].fp32_precision)
        return real(*arguments)

    monkeypatch.setattr(owner, name, spy)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = torch.utils.data.TensorDataset(torch.randn(8, *shape), torch.arange(8) % 4)
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    model, optimizer, loader = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0,
        poisson_sampling=False, check_rows=False,
    )  # fmt: skip
    x, y = next(iter(loader))
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert seen
    assert set(seen) == {"ieee"}
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_products_are_made_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's choice of TF32 or bfloat16 for the forward pass does not reach the engine's sums."""
    seen = []
    real = torch.Tensor.__matmul__

    def spy(a: Tensor, b: Tensor) -> Tensor:
        seen.append(_precision._SWITCHES[0][0].fp32_precision)
        assert not torch.backends.cudnn.enabled
        return real(a, b)

    _, model, optimizer, loader = private(nn.Sequential(nn.Flatten(), nn.Linear(36, 4)))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
        monkeypatch.setattr(_native, "kernels", lambda _values: None)  # torch's products, as on a GPU
        train(model, optimizer, [next(iter(loader))])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen
    assert set(seen) == {"ieee"}
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_autocast_reaches_neither_norms_nor_sums(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around the backward pass and the step: in half precision norms would be no upper bounds."""
    monkeypatch.setattr(_native, "on_gpu", lambda _values: True)
    longest, bound = 0.0, 2.0**-10
    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Linear(40, 40, bias=False)
        engine, optimizer = PrivacyEngine(memory=memory, cuda_graph=False), torch.optim.SGD(model.parameters(), lr=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no noise, a batch of our own
            engine.make_private(
                module=model, optimizer=optimizer, data_loader=DataLoader(TensorDataset(torch.zeros(4)), 4),
                noise_multiplier=0.0, max_grad_norm=bound, poisson_sampling=False, check_rows=False, loss_reduction="sum",
            )  # fmt: skip
            x, y = torch.randn(1, 4, 40) + 1.0, torch.randn(1, 4, 40)
            loss = (model(x) - y).square().sum()
            with torch.autocast("cpu", torch.bfloat16):
                loss.backward()
                optimizer.step()
        assert model.weight.grad is not None
        assert model.weight.grad.dtype == torch.float32
        longest = max(longest, float(model.weight.grad.double().norm()))
    assert 0.999 * bound < longest <= bound


def test_info_says_what_is_released() -> None:
    engine, model, optimizer, loader = private(noise_multiplier=1.5, max_grad_norm=0.5)
    assert engine.info()[0]["sigma"] == 0.0
    train(model, optimizer, loader)
    (said,) = engine.info()
    assert (said["noise_multiplier"], said["max_grad_norm"], said["clipping"]) == (1.5, 0.5, "flat")
    assert said["sigma"] == pytest.approx(0.75 * (1 + sum(said["charges"].values())), rel=1e-12)
    assert 0 < said["charges"]["lattice"] < said["charges"]["float"] < 0.01


# ------------------------------------------------------------------------------------------------ parts of a batch


@pytest.mark.parametrize("way", ["make_private", "BatchMemoryManager"])
@pytest.mark.parametrize("poisson", [True, False])
def test_parts_are_one_step(way: str, poisson: bool) -> None:
    """Parts give the sum of the whole batch, one update, one booked step."""
    results = []
    for size in (None, 3):
        options = {"max_physical_batch_size": size} if way == "make_private" else {}
        engine, model, optimizer, loader = private(
            noise_multiplier=0.0,
            optimizer=None,
            poisson_sampling=poisson,
            source=noise.SeededSource(3),
            **options,
        )
        gradients, sizes = [], []

        def run(
            batches: Any, gradients: Any = gradients, sizes: Any = sizes, m: Any = model, o: Any = optimizer
        ) -> None:
            for x, y in batches:
                before = [p.detach().clone() for p in m.parameters()]
                train(m, o, [(x, y)])
                sizes.append(len(x))
                if m[4].weight.grad is None:
                    assert all(torch.equal(a, b) for a, b in zip(before, m.parameters(), strict=True))
                else:
                    gradients.append([p.grad.clone() for p in m.parameters()])

        if way == "BatchMemoryManager" and size:
            with BatchMemoryManager(data_loader=loader, max_physical_batch_size=size, optimizer=optimizer) as parts:
                run(parts)
            assert loader.parts.max_physical_batch_size is None
        else:
            run(loader)
        assert len(gradients) == 5
        assert sum(engine._ledger.spent.values()) == (5 if poisson else 1)
        assert size is None or max(sizes) == 3
        results.append(gradients)
    for whole, parts in zip(*results, strict=True):
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=1e-6)


def test_sigma_does_not_tell_the_size_of_a_batch() -> None:
    """Batches of one part and of many have the same charge, so the same sigma."""
    for size in (None, 2):
        engine, model, optimizer, loader = private(loader=small_loader(size=12, batch=4), max_physical_batch_size=size)
        sizes, sigmas, parts = set(), set(), 0
        for _ in range(4):
            for x, y in loader:
                parts += 1
                train(model, optimizer, [(x, y)])
                if model[4].weight.grad is not None:
                    sizes.add(parts)
                    sigmas.add(engine.info()[0]["sigma"])
                    parts = 0
        assert len(sigmas) == 1
        assert size is None or len(sizes) > 2


def test_adam_counts_logical_steps() -> None:
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    _, _, _, loader = private(model, optimizer=optimizer, max_physical_batch_size=2)
    assert train(model, optimizer, loader) > 5
    assert {int(state["step"]) for state in optimizer.state.values()} == {5}


def test_parts_cannot_be_skipped_or_read_ahead() -> None:
    _, model, optimizer, loader = private(max_physical_batch_size=2)
    batches = iter(loader)
    train(model, optimizer, [next(batches)])
    next(batches)
    with pytest.raises(PrivacyError, match="every batch needs its backward pass and step"):
        next(batches)


def test_a_pass_left_in_the_middle_of_a_batch() -> None:
    """Its parts are forgotten: a record must not enter one release twice."""
    engine, model, optimizer, loader = private(noise_multiplier=0.0, poisson_sampling=False, max_physical_batch_size=3)
    train(model, optimizer, [next(iter(loader))])
    assert engine.get_epsilon(DELTA) == 0.0
    before = engine._ledger.spent.total()
    steps = train(model, optimizer, loader)
    assert (steps, engine._ledger.spent.total() - before) == (15, 2)  # of both passes, as either may be in a step
    norm = whole_norm([p.grad for p in model.parameters()]) * 8
    assert norm <= 8


def test_a_part_that_fails_spoils_its_batch() -> None:
    engine, model, optimizer, loader = private(poisson_sampling=False, max_physical_batch_size=3)
    batches = iter(loader)
    x, _ = next(batches)
    (model(x).sum() + model[4](torch.zeros(5, 48)).sum()).backward()
    with pytest.raises(PrivacyError, match="different batch sizes"):
        optimizer.step()
    with pytest.raises(PrivacyError, match="an earlier part of this batch failed"):
        train(model, optimizer, batches)
    assert engine.get_epsilon(DELTA) == 0.0


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("poisson", [True, False])
def test_a_record_counts_once(poisson: bool, size: int | None) -> None:
    """Views of records side by side, and batches joined, would give a record several times the clipping norm."""
    engine, model, optimizer, loader = private(poisson_sampling=poisson, max_physical_batch_size=size)
    x, y = next(iter(loader))
    assert len(x)
    with pytest.raises(PrivacyError, match="more samples than the loader's batch has records"):
        train(model, optimizer, [(torch.cat([x, x.flip(-1)]), torch.cat([y, y]))])
    assert engine.get_epsilon(DELTA) == 0.0
    if size is None:
        (a, b), (c, d), *_ = loader
        with pytest.raises(PrivacyError, match="more samples than the loader's batch has records"):
            train(model, optimizer, [(torch.cat([a, c]), torch.cat([b, d]))])


@pytest.mark.filterwarnings("ignore:a step has fewer samples")
def test_batches_that_the_loop_leaves_out() -> None:
    """Also of less than a batch's records, and with batches read ahead, a step is on a batch of the loader."""
    engine, model, optimizer, loader = private(loader=small_loader(size=40, batch=2))
    sizes = set()
    for x, y in loader:
        sizes.add(len(x))
        if len(x) != 1:
            train(model, optimizer, [(x[1:], y[1:])])
    assert min(sizes) < 2 < max(sizes)
    batches = [batch for batch in loader if len(batch[0]) != 1]
    train(model, optimizer, batches)
    assert set(engine._ledger.spent) == {(1.0, 0.05)}


@pytest.mark.parametrize("size", [None, 3])
def test_fewer_samples_than_records_are_told_once(size: int | None) -> None:
    """They may be steps of time, or classes: a record acts on all of them."""
    _, model, optimizer, loader = private(poisson_sampling=False, max_physical_batch_size=size)
    batches = iter(loader)
    train(model, optimizer, [next(batches)])
    x, y = next(batches)
    with pytest.warns(UserWarning, match="fewer samples than the loader's batch has records"):
        train(model, optimizer, [(x[1:], y[1:])])
    x, y = next(batches)
    train(model, optimizer, [(x[1:], y[1:])])


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_of_one_step_is_refused(parts: int) -> None:
    """A row would be several records, which are clipped together."""
    engine, model, optimizer, loader = private(poisson_sampling=False)
    x, y = next(iter(loader))
    assert len(x) % parts == 0
    outputs = torch.cat([model(part) for part in x.chunk(parts)])
    nn.functional.cross_entropy(outputs, y).backward()
    with pytest.raises(PrivacyError, match="batch went through the model in parts of one step"):
        optimizer.step()
    assert engine.get_epsilon(DELTA) == 0.0


def test_two_batches_in_one_step_are_told() -> None:
    _, model, optimizer, loader = private(poisson_sampling=False)
    (x, y), (z, _), *_ = loader
    nn.functional.cross_entropy(model(x) + model(z), y).backward()
    with pytest.warns(UserWarning, match="called several times for a step while several batches wait"):
        optimizer.step()


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_clip_schedule_between_two_parts(factor: float) -> None:
    """All parts of a batch are clipped to one norm, the one of its noise."""
    _, model, optimizer, loader = private(poisson_sampling=False, max_physical_batch_size=3, max_grad_norm=1.0)
    schedule = schedulers.ExponentialGradClip(optimizer, gamma=factor)
    for x, y in itertools.islice(loader, 3):
        train(model, optimizer, [(x, y)])
        schedule.step()
    assert step_of(optimizer).sigma == pytest.approx(1.0, rel=0.01)
    train(model, optimizer, itertools.islice(loader, 3))
    assert step_of(optimizer).sigma == pytest.approx(factor**3, rel=0.01)


def test_memory_manager_wants_a_private_loader() -> None:
    with pytest.raises(TypeError, match=r"data_loader must be the loader that make_private has returned"):
        BatchMemoryManager(data_loader=small_loader(), max_physical_batch_size=2)
    _, _, _, loader = private()
    with pytest.raises(ValueError, match="max_physical_batch_size"):
        BatchMemoryManager(data_loader=loader, max_physical_batch_size=0)


# ------------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda o: schedulers.ExponentialNoise(o, gamma=0.5), [2.0, 1.0, 0.5]),
        (lambda o: schedulers.StepNoise(o, step_size=2, gamma=0.5), [2.0, 2.0, 1.0]),
        (lambda o: schedulers.LambdaNoise(o, noise_lambda=lambda epoch: 1 + epoch), [2.0, 4.0, 6.0]),
    ],
)
def test_noise_schedules_are_booked(make: Any, values: list[float]) -> None:
    engine, model, optimizer, loader = private(noise_multiplier=2.0)
    schedule = make(optimizer)
    for value in values:
        assert step_of(optimizer).mechanism.noise_multiplier == value
        train(model, optimizer, loader)
        assert step_of(optimizer).sigma == pytest.approx(value, rel=0.01)
        schedule.step()
    assert engine._ledger.spent == {(v, 0.2): 5 * values.count(v) for v in values}
    saved = schedule.state_dict()
    fresh = make(private(noise_multiplier=7.0)[2])
    fresh.load_state_dict(saved)
    assert fresh.mechanism.noise_multiplier == schedule.mechanism.noise_multiplier
    assert fresh.last_epoch == schedule.last_epoch == 3


def test_clip_schedules() -> None:
    _, model, optimizer, loader = private(noise_multiplier=1.0, max_grad_norm=4.0)
    for make, values in (
        (lambda: schedulers.ExponentialGradClip(optimizer, gamma=0.5), [4.0, 2.0]),
        (lambda: schedulers.StepGradClip(optimizer, step_size=1, gamma=0.25), [2.0, 0.5]),
        (lambda: schedulers.LambdaGradClip(optimizer, scheduler_function=lambda e: e + 1.0), [0.5, 1.0]),
    ):
        schedule = make()
        for value in values:
            assert step_of(optimizer).mechanism.max_grad_norm == value
            train(model, optimizer, [next(iter(loader))])
            assert step_of(optimizer).sigma == pytest.approx(value, rel=0.01)
            if value != values[-1]:
                schedule.step()


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ([], "^state_dict is a list, expected a dict$"),
        ({"base": 1.0}, "^state_dict has no 'last_epoch'$"),
        ({"last_epoch": 1}, "^state_dict has no 'base'$"),
        ({"base": "1", "last_epoch": 1}, r"^state_dict\['base'\] is a str, expected a real number$"),
        ({"base": 1.0, "last_epoch": 1.5}, r"^state_dict\['last_epoch'\] is a float, expected an integer$"),
        ({"base": -1.0, "last_epoch": 3}, "^noise_multiplier is -0.5, expected 0 or above$"),
    ],
)
def test_altered_states_of_schedules(state: Any, match: str) -> None:
    """Nothing is taken over."""
    schedule = schedulers.StepNoise(private(noise_multiplier=2.0)[2], step_size=2, gamma=0.5)
    with pytest.raises((TypeError, ValueError), match=match):
        schedule.load_state_dict(state)
    schedule.step()
    assert schedule.mechanism.noise_multiplier == 2.0
    assert schedule.state_dict() == {"base": 2.0, "last_epoch": 1}


def test_schedules_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="optimizer is not private"):
        schedulers.ExponentialNoise(torch.optim.SGD(small_model().parameters(), lr=0.1), gamma=0.9)
    _, _, optimizer, _ = private()
    with pytest.raises(ValueError, match="gamma"):
        schedulers.StepNoise(optimizer, step_size=1, gamma=0.0)
    with pytest.raises(ValueError, match="step_size"):
        schedulers.StepGradClip(optimizer, step_size=0, gamma=0.5)
    with pytest.raises(ValueError, match=r"max_grad_norm is 1e-20, expected 2\^-40"):
        schedulers.LambdaGradClip(optimizer, scheduler_function=lambda _epoch: 1e-20)
    with pytest.raises(ValueError, match="noise_multiplier"):
        schedulers.LambdaNoise(optimizer, noise_lambda=lambda _epoch: -1.0)


def test_noise_does_not_change_inside_an_unamplified_pass() -> None:
    _, model, optimizer, loader = private(poisson_sampling=False)
    batches = iter(loader)
    train(model, optimizer, [next(batches)])
    schedulers.LambdaNoise(optimizer, noise_lambda=lambda _epoch: 0.5)
    with pytest.raises(PrivacyError, match=r"noise_multiplier changed from 1.0 to 0.5 inside a pass"):
        train(model, optimizer, [next(batches)])
    assert train(model, optimizer, loader) == 5


def test_noise_does_not_change_inside_an_unamplified_pass_that_another_overtook() -> None:
    """Each pass is booked with the noise of all its steps."""
    engine, model, optimizer, loader = private(poisson_sampling=False, noise_multiplier=4.0)
    schedule = schedulers.StepNoise(optimizer, step_size=1, gamma=0.5)
    older = iter(loader)
    train(model, optimizer, [next(older)])
    schedule.step()
    train(model, optimizer, [next(iter(loader))])
    with pytest.raises(PrivacyError, match=r"noise_multiplier changed from 4.0 to 2.0 inside a pass"):
        train(model, optimizer, [next(older)])
    assert engine._ledger.spent == {(4.0, 1.0): 1, (2.0, 1.0): 1}


# -------------------------------------------------------------------------------------------------------- budgets


# Mechanisms whose epsilon is computed fast: others cost dp-accounting a second each time, and nothing here depends on it.
@pytest.mark.parametrize(
    ("accountant", "limit", "mechanism"),
    [("rdp", 2.0, (2.0, 0.1)), ("rdp", 0.9, (2.0, 1.0)), ("pld", 2.0, (8.0, 1.0))],
)
def test_budget_allows_as_many_runs_as_the_limit(accountant: str, limit: float, mechanism: tuple[float, float]) -> None:
    budget = accounting.Budget(limit, DELTA, accountant=accountant)
    budget.spend(9.0, 1.0, 2)

    def cost(times: int) -> float:
        return accounting.epsilon_of({(9.0, 1.0): 2, mechanism: times}, DELTA, accountant)

    done = 0
    while budget.allows(*mechanism):
        budget.spend(*mechanism)
        done += 1
    assert cost(done) <= limit < cost(done + 1)
    assert budget.epsilon == cost(done)
    assert budget.remaining == limit - cost(done)
    assert not budget.allows(*mechanism)
    assert not budget.allows(0.0, 0.2)
    with pytest.raises(
        BudgetError, match=rf"1 more of noise multiplier {mechanism[0]} at sample rate {mechanism[1]} would exceed"
    ):
        budget.spend(*mechanism)
    assert budget.allows(500.0, 0.001)  # something far cheaper still fits


def test_budget_that_never_ends() -> None:
    budget = accounting.Budget(1.0, DELTA, accountant="rdp")
    for _ in range(3):
        budget.spend(1e6, 1e-6)
    assert budget.allows(1e6, 1e-6, 2**30)


def test_budget_with_changing_mechanisms() -> None:
    budget = accounting.Budget(1.0, DELTA, accountant="rdp")
    spent: dict[tuple[float, float], int] = {}
    for i in itertools.count():
        mechanism = (2.0 + i % 3, 0.2)
        if not budget.allows(*mechanism):
            break
        budget.spend(*mechanism)
        spent[mechanism] = spent.get(mechanism, 0) + 1
    assert accounting.epsilon_of(spent, DELTA, "rdp") <= 1.0
    assert accounting.epsilon_of({**spent, mechanism: spent.get(mechanism, 0) + 1}, DELTA, "rdp") > 1.0
    assert "Budget(epsilon=1.0" in repr(budget)


def test_training_ends_within_its_budget() -> None:
    """The loader ends; a later pass is empty; a batch from elsewhere raises and changes nothing."""
    limit = (
        accounting.get_epsilon(noise_multiplier=1.0, sample_rate=0.2, steps=7, delta=DELTA, accountant="rdp") * 1.001
    )
    budget = accounting.Budget(limit, DELTA, accountant="rdp")
    engine = PrivacyEngine(accountant="rdp", budget=budget)
    _, model, optimizer, loader = private(engine=engine)
    assert [train(model, optimizer, loader) for _ in range(2)] == [5, 2]
    with pytest.warns(UserWarning, match=r"the loader is empty: one step .* would exceed Budget"):
        assert train(model, optimizer, loader) == 0
    assert train(model, optimizer, loader) == 0  # told once
    assert engine.get_epsilon(DELTA) == budget.epsilon <= limit
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    model(torch.zeros(3, 1, 6, 6)).sum().backward()
    with pytest.raises(BudgetError, match=r"at sample rate 1.0 would exceed the budget"):
        optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_budget_and_its_engine_agree() -> None:
    budget = accounting.Budget(2.0, DELTA, accountant="rdp")
    assert PrivacyEngine(budget=budget).accountant == "rdp"
    with pytest.raises(ValueError, match="accountant is 'pld', but the budget's is 'rdp'"):
        PrivacyEngine(budget=budget, accountant="pld")
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"target_epsilon is 3.0, which the engine's Budget\(epsilon=2.0"):
        PrivacyEngine(budget=budget).make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(torch.zeros(8, 2))),
            target_epsilon=3.0,
            target_delta=DELTA,
            epochs=1,
            max_grad_norm=1.0,
        )


def test_what_a_restart_needs() -> None:
    """The history, booked again, is the same epsilon; info tells rate, batch and steps."""
    engine, model, optimizer, loader = private()
    assert train(model, optimizer, loader) == 5
    (info,) = engine.info()
    assert (info["sample_rate"], info["steps"]) == (1 / len(loader), 5)
    assert info["expected_batch_size"] == pytest.approx(len(loader.dataset) / len(loader))
    assert engine.history == [(1.0, 0.2, 5)]
    budget = accounting.Budget(50.0, DELTA, accountant=engine.accountant)
    for run in engine.history:
        budget.spend(*run)
    assert budget.epsilon == engine.get_epsilon(DELTA) == PrivacyEngine(budget=budget).get_epsilon(DELTA)


def test_no_epsilon_without_private_training() -> None:
    with pytest.raises(PrivacyError, match="make_private was not called"):
        PrivacyEngine().get_epsilon(DELTA)
    engine, *_ = private()
    assert engine.get_epsilon(DELTA) == 0


def test_a_schedule_that_ends_privacy_is_told() -> None:
    _, _, optimizer, _ = private()
    schedule = schedulers.LambdaNoise(optimizer, noise_lambda=lambda epoch: float(epoch < 1))
    with pytest.warns(UserWarning, match="noise_multiplier is 0"):
        schedule.step()
    schedule.step()


def test_parts_for_another_optimizer_are_refused() -> None:
    _, _, optimizer, loader = private()
    _, _, other, _ = private()
    BatchMemoryManager(data_loader=loader, max_physical_batch_size=2, optimizer=optimizer)
    for wrong in (other, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)):
        with pytest.raises(ValueError, match="optimizer is not"):
            BatchMemoryManager(data_loader=loader, max_physical_batch_size=2, optimizer=wrong)


def test_a_budget_that_no_step_fits_is_told() -> None:
    engine = PrivacyEngine(accountant="rdp", budget=accounting.Budget(0.01, DELTA, accountant="rdp"))
    _, model, optimizer, loader = private(engine=engine)
    with pytest.warns(UserWarning, match=r"the loader is empty: one step .* would exceed Budget\(epsilon=0.01"):
        assert train(model, optimizer, loader) == 0


def test_budget_of_passes_and_of_parts() -> None:
    limit = (
        accounting.get_epsilon(noise_multiplier=4.0, sample_rate=1.0, steps=2, delta=DELTA, accountant="rdp") * 1.001
    )
    engine = PrivacyEngine(accountant="rdp", budget=accounting.Budget(limit, DELTA, accountant="rdp"))
    _, model, optimizer, loader = private(
        engine=engine, noise_multiplier=4.0, poisson_sampling=False, max_physical_batch_size=4
    )
    assert [train(model, optimizer, loader) for _ in range(2)] == [10, 10]
    with pytest.warns(UserWarning, match=r"the loader is empty"):
        assert train(model, optimizer, loader) == 0
    with pytest.raises(TypeError, match=r"budget must be an aisec_fast.accounting.Budget"):
        PrivacyEngine(budget=3.0)  # type: ignore[arg-type]
    for bad in ((0.0, DELTA), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(ValueError, match=r"epsilon|delta"):
            accounting.Budget(*bad)


def test_loop_gradients_agree_with_the_step() -> None:
    """The helpers of two test files mean the same thing."""
    model, x, y, _ = model_case("mlp", torch.float64)
    expected, _ = loop_gradients(model, x, y, square_loss)
    for got, want in zip(one_step(model, x, y, square_loss)[0], expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0.0, atol=1e-10)
    assert _clip.CLIPPINGS == ("flat", "per_layer", "automatic")


# ------------------------------------------------------------------------------------------------- samples that mix


class Mixer(nn.Module):
    """A layer between two Linear ones; ``mix`` may let samples see each other."""

    def __init__(self, mix: Any) -> None:
        super().__init__()
        self.first, self.mix, self.last = nn.Linear(4, 5), mix, nn.Linear(5, 3)
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(self, self.first(x)))


def _remembers(model: Any, h: Tensor) -> Tensor:
    model.seen.add_(h.detach().mean(0))
    return h


MIXES = {
    "centred": (lambda _m, h: h - h.mean(0), "module '(first|last)'"),
    "softmax over the batch": (lambda _m, h: h.softmax(0), "module '(first|last)'"),
    "anchor": (lambda _m, h: h + h[:1], "module '(first|last)'"),
    "shifted": (lambda _m, h: h + h.roll(1, 0), "module '(first|last)'"),
    "divided by the largest": (lambda _m, h: h / h.detach().abs().max(), "module '(first|last)'"),
    "divided by the range": (lambda _m, h: h / (h.max() - h.min()).detach(), "module '(first|last)'"),
    "statistics": (_remembers, "buffer 'seen'"),
}


@pytest.mark.parametrize("name", MIXES)
def test_samples_that_mix_are_found(name: str) -> None:
    mix, match = MIXES[name]
    _, model, _, _ = private(Mixer(mix))
    x = torch.randn(64, 4)
    x[5] *= 2.0  # the largest is none of those that are changed
    with pytest.raises(PrivacyError, match=match):
        model(x)


class Words(nn.Module):
    """Takes tokens, 0 for none, and divides by the number of those of the longest text, or of its own."""

    def __init__(self, of_all: bool) -> None:
        super().__init__()
        self.embedding, self.last, self.of_all = nn.Embedding(50, 5, padding_idx=0), nn.Linear(5, 3), of_all

    def forward(self, x: Tensor) -> Tensor:
        lengths = (x > 0).sum(1, keepdim=True)
        return self.last(self.embedding(x).sum(1) / (lengths.max() if self.of_all else lengths))


@pytest.mark.parametrize("of_all", [True, False])
def test_the_longest_of_a_batch_is_found(of_all: bool) -> None:
    torch.manual_seed(0)
    _, model, _, _ = private(Words(of_all))
    x = torch.randint(1, 50, (16, 12)) * (torch.arange(12) < torch.randint(1, 9, (16, 1)))
    x[5, :10] = 1
    if of_all:
        with pytest.raises(PrivacyError, match="samples mix"):
            model(x)
    else:
        model(x)


class Ends(nn.Module):
    """Samples meet in what comes back alone: the layer sees the same whatever others hold."""

    def __init__(self, end: Any) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(4, 5), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.layer(x))


@pytest.mark.parametrize("name", ["centred", "anchor", "shifted"])
def test_samples_that_mix_after_the_last_layer_are_found(name: str) -> None:
    mix = MIXES[name][0]
    _, model, _, _ = private(Ends(lambda h: mix(None, h)))
    with pytest.raises(PrivacyError, match=r"samples mix.*module 'layer'"):
        model(torch.randn(6, 4))


def test_samples_that_mix_behind_zeros_are_found() -> None:
    """A layer that begins as zeros lets no gradient through, yet."""
    model = Mixer(lambda _m, h: torch.tanh(h - h.mean(0)))
    model.last.requires_grad_(False)
    nn.init.zeros_(model.last.weight)
    _, model, _, _ = private(model)
    with pytest.raises(PrivacyError, match=r"samples mix.*module 'first'"):
        model(torch.randn(6, 4))
    assert not model.last.weight.any()


@pytest.mark.parametrize("name", MODELS)
def test_samples_that_do_not_mix_pass(name: str) -> None:
    """Every model of the tests; parameters, randomness and the recorded step are as if nothing had happened."""
    model, x, y, loss_of = model_case(name, torch.float32)
    model = nn.Sequential(model, nn.Dropout(0.3))
    steps = []
    for check_rows in (True, False):
        twin = copy.deepcopy(model)
        torch.manual_seed(3)
        steps.append(one_step(twin, x, y, loss_of, check_rows=check_rows))
    always = {
        "vit",
        "positioned transformer",
        "positioned once transformer",
    }  # something stands in for each sample there
    assert [step.info()["check_rows"] for _, step in steps] == ["passed", "passed" if name in always else "off"]
    for a, b in zip(steps[0][0], steps[1][0], strict=True):
        assert torch.equal(a, b)


def _trembling(size: float) -> Any:
    """Scales each sample by a number that is new each time, as sums in any order change last bits."""
    numbers = np.random.default_rng(0)
    return lambda _m, h: h * torch.from_numpy(1 + size * numbers.standard_normal((len(h), 1))).float()


def test_bits_that_do_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU samples that do not mix pass then, and it is said; those that mix more than bits tremble are found."""
    _, model, _, _ = private(Mixer(_trembling(1e-6)))
    with pytest.raises(PrivacyError, match="samples mix"):  # a CPU repeats its bits
        model(torch.randn(6, 4))
    monkeypatch.setattr(_probe, "_adds_in_any_order", lambda _squares: True)
    engine, model, _, _ = private(Mixer(_trembling(1e-6)))
    model(torch.randn(6, 4))
    assert engine.info()[0]["check_rows"].startswith("passed up to rounding")
    little, some, much = _trembling(1e-6), _trembling(2e-5), _trembling(0.003)
    for mix, report in (
        (lambda m, h: little(m, h) + 0.01 * h.mean(0), "samples mix"),
        (lambda m, h: some(m, h) + 0.005 * h.mean(0), "samples mix"),  # within 32 times, and beyond rounding
        (lambda m, h: much(m, h) + 0.01 * h.mean(0), "whether samples mix cannot be checked"),
    ):
        _, model, _, _ = private(Mixer(mix))
        with pytest.raises(PrivacyError, match=report):
            model(torch.randn(6, 4))


@pytest.mark.parametrize("rows", [1, 2, 4, 7])
@pytest.mark.parametrize("check_rows", [True, False])
def test_rows_that_are_no_samples_are_found(rows: int, check_rows: bool) -> None:
    """A network that makes the weights of classes sees these."""

    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.layer(torch.ones(rows, 3)).T

    _, model, optimizer, loader = private(Hyper(), poisson_sampling=False, check_rows=check_rows)
    x = torch.randn(len(next(iter(loader))[0]), 5)
    if check_rows:
        with pytest.raises(PrivacyError, match="module 'layer' sees in its batch dimension are not the samples"):
            model(x)
    else:
        model(x).square().sum().backward()
        with pytest.warns(UserWarning, match="fewer samples than the loader's batch has records"):
            optimizer.step()


def test_a_sample_that_the_model_does_not_take_so_large() -> None:
    def small(_m: Any, h: Tensor) -> Tensor:
        assert h.abs().max() < 6.0
        return h

    engine, model, _, _ = private(Mixer(small))
    model(torch.rand(6, 4))
    assert engine.info()[0]["check_rows"] == "passed"


def test_what_cannot_be_checked_is_said() -> None:
    class Inputless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 5)

        def forward(self, size: int) -> Tensor:
            return self.layer(torch.ones(size, 4))

    engine, model, _, _ = private(Inputless())
    assert engine.info()[0]["check_rows"] == "waits for the first batch of three samples"
    model(2)
    assert engine.info()[0]["check_rows"] == "waits for the first batch of three samples"
    model.eval()(5)
    with pytest.warns(UserWarning, match="whether samples mix was not looked at: no argument"):
        model.train()(5)
    assert engine.info()[0]["check_rows"].startswith("skipped: no argument")

    def one_hot(_m: Any, h: Tensor) -> Tensor:
        assert (h[:, 0] >= 0).all()
        return h

    engine, model, _, _ = private(Mixer(one_hot))
    with torch.no_grad():
        model.first.weight.zero_()
        model.first.weight[0, 0] = 1.0
        model.first.bias.zero_()
    with pytest.warns(UserWarning, match="whether samples mix was not looked at: the model does not take"):
        model(torch.full((6, 4), 3.0))
    assert engine.info()[0]["check_rows"].startswith(
        "skipped: the model does not take a changed sample (AssertionError"
    )

    engine, model, _, _ = private(Mixer(lambda _m, h: h - h.mean(0)))
    with torch.autograd.graph.save_on_cpu():
        with pytest.warns(UserWarning, match="whether samples mix was not looked at: inside a checkpoint"):
            model(torch.randn(6, 4))
        model(torch.randn(6, 4))
    assert engine.info()[0]["check_rows"].startswith("waits for a batch that is not inside a checkpoint")
    with pytest.raises(PrivacyError, match="samples mix"):
        model(torch.randn(6, 4))

    engine, model, _, _ = private(Ends(lambda h: types.SimpleNamespace(logits=h)))
    with pytest.warns(UserWarning, match="whether samples mix was not looked at: the model gives no tensors"):
        model(torch.randn(6, 4))


def test_gradients_that_somebody_holds_are_not_overwritten() -> None:
    """Memory of a gradient is used again only when nobody has it or a view of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, 4))
    _, _, optimizer, loader = private(model)
    weight = model[1].weight
    for hold in (lambda g: g, lambda g: g.detach(), lambda g: g[:2], lambda g: g.numpy(), None):
        train(model, optimizer, [next(iter(loader))])
        address = weight.grad.data_ptr()
        held = hold(weight.grad) if hold else None
        before = None if held is None else copy.deepcopy(held)
        train(model, optimizer, [next(iter(loader))])
        if held is None:
            assert weight.grad.data_ptr() == address
        else:
            assert (torch.as_tensor(held) == torch.as_tensor(before)).all()
            assert weight.grad.data_ptr() != address
        del held


class Operations(TorchDispatchMode):
    """Counts torch's operations that compute something: on a GPU each is a launch or more."""

    VIEWS = ("view", "t", "transpose", "permute", "unsqueeze", "slice", "select", "expand", "detach", "empty", "as_strided",
             "_unsafe_view", "_reshape_alias")  # fmt: skip
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().removeprefix("aten::").partition(".")[0] not in self.VIEWS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("layer", "shape", "most"),
    [
        (lambda: nn.Linear(8, 8), (4, 8), 4),
        (lambda: nn.Linear(8, 8), (4, 3, 8), 9),
        (lambda: nn.Conv2d(2, 2, 3, padding=1), (4, 2, 5, 5), 1),
        (lambda: nn.GroupNorm(2, 8), (4, 8, 5), 6),
        (lambda: nn.LayerNorm(8), (4, 3, 8), 4),
    ],
    ids=["linear", "linear on sequences", "conv", "group norm", "layer norm"],
)
def test_operations_of_a_layer(layer: Any, shape: tuple[int, ...], most: int) -> None:
    """How many of torch's a private step needs for one layer more, beside a plain one: what small models wait for."""

    def count(layers: int, is_private: bool) -> int:
        torch.manual_seed(0)
        model = nn.Sequential(*(layer() for _ in range(layers)))
        x = torch.randn(shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            if is_private:
                loader = DataLoader(TensorDataset(torch.arange(16)), batch_size=16)
                PrivacyEngine().make_private(
                    module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0, max_grad_norm=1.0
                )
            for _ in range(2):  # the second has no more to set up
                with Operations() as operations:
                    optimizer.zero_grad()
                    model(x).square().mean().backward()
                    optimizer.step()
        return operations.count

    more = {kind: count(6, kind) - count(5, kind) for kind in (False, True)}
    assert more[True] - more[False] <= most


def test_the_check_waits_without_running_the_model() -> None:
    """A part of two samples cannot show mixing, and must not cost a second pass each time."""
    engine, model, _, _ = private(loader=small_loader(size=8, batch=8))
    runs: list[int] = []
    model[0].register_forward_hook(lambda *_: runs.append(1))
    model(torch.randn(2, 1, 6, 6))
    assert len(runs) == 1
    model(torch.randn(3, 1, 6, 6))
    assert len(runs) == 5  # three more to check
    assert engine.info()[0]["check_rows"] == "passed"


class Named(TorchDispatchMode):
    """Names of torch's operations, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name().removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("first", "shape"),
    [
        (lambda: nn.Linear(6, 4), (3, 6)),
        (lambda: nn.Linear(6, 4), (3, 5, 6)),
        (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (3, 2, 5, 5)),
        (lambda: nn.GroupNorm(2, 4), (3, 4, 5)),
        (lambda: nn.LayerNorm(6), (3, 5, 6)),
    ],
    ids=["linear", "linear on sequences", "conv", "group norm", "layer norm"],
)
def test_no_gradient_of_a_first_layers_input_is_computed(first: Any, shape: tuple[int, ...]) -> None:
    """The node that is watched there gets no gradient; the input stays as it was, and the records are those of a later layer."""
    gradients, counts = [], []
    for asks in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(first(), nn.Flatten())
        x = torch.randn(shape, requires_grad=asks)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = DataLoader(TensorDataset(torch.arange(3)), batch_size=3)
        with warnings.catch_warnings():  # a batch from elsewhere, without noise
            warnings.simplefilter("ignore")
            PrivacyEngine().make_private(
                module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=0.0, max_grad_norm=1.0,
                poisson_sampling=False,
            )  # fmt: skip
            loss = model(x).square().sum()
            with Named() as operations:
                loss.backward()
            optimizer.step()
        gradients.append([p.grad for p in model.parameters()])
        computed = {"mm", "addmm", "convolution_backward", "native_group_norm_backward", "native_layer_norm_backward"}
        counts.append(sum(name in computed for name in operations.names))  # a rule may take one for its rows
        assert x.requires_grad == asks
        assert (x.grad is not None) == asks
    assert counts[0] == counts[1] - 1
    for one, other in zip(*gradients, strict=True):
        assert one.tolist() == other.tolist()
        assert one.abs().max() > 0


def hooked(layer: nn.Module, other: nn.Module, kind: str) -> None:
    """A hook of the user's on a first layer, after the engine's own."""
    if kind == "changes its input in place":
        layer.register_forward_pre_hook(lambda _, args: (args[0].mul_(0.5),))
    elif kind == "puts another layer before it":
        layer.register_forward_pre_hook(lambda _, args: (other(args[0]),))
    elif kind == "looks at gradients":
        layer.register_full_backward_hook(lambda *_: None)


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize(
    "case", ["none", "changes its input in place", "puts another layer before it", "looks at gradients"]
)
@pytest.mark.parametrize("length", [(), (5,), (5, 2)], ids=["one position", "sequence", "grid"])
def test_operations_in_place_and_hooks_around_linear_layers(length: tuple[int, ...], case: str, memory: str) -> None:
    """In-place operations after a layer whose output is a view, and hooks that change a first layer's input."""
    gradients = []
    for is_private in (False, True):
        torch.manual_seed(2)
        relu = nn.ReLU(inplace=case != "looks at gradients")  # torch allows none right after such a hook
        layers = nn.Sequential(nn.Linear(6, 7), relu, nn.Linear(7, 5), nn.ReLU(inplace=True), nn.Linear(5, 6))
        other = nn.Linear(6, 6)
        model = nn.ModuleList([layers, other])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(3, *length, 6)
        with warnings.catch_warnings():  # a batch from elsewhere, without noise
            warnings.simplefilter("ignore")
            if is_private:
                PrivacyEngine(memory=memory).make_private(
                    module=model, optimizer=optimizer, max_grad_norm=1e6, noise_multiplier=0.0,
                    data_loader=DataLoader(TensorDataset(torch.arange(3)), batch_size=3), poisson_sampling=False,
                )  # fmt: skip
            hooked(layers[0], other, case)
            result = layers(x) if case == "puts another layer before it" else other(layers(x))
            (result.square().sum() / 3).backward()
            if is_private:
                optimizer.step()
        gradients.append([p.grad for p in model.parameters()])
    for one, found in zip(*gradients, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(found, one)
