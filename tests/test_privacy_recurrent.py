"""``privacy.RNN``, ``LSTM`` and ``GRU`` against torch's own, and against a loop over single samples.

In float64 results differ by the rounding of sums of a few dozen products of values below 10, over a handful of steps: far below
1e-12. In float32 the same sums are within 2e-5.
"""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from aisec_fast import UnsupportedModuleError
from aisec_fast.privacy import GRU, LSTM, RNN, ModuleValidator
from aisec_fast.privacy._forms import form_of
from tests.test_privacy_attention import EXACT, compare_norms, private, quiet, same, train_privately
from tests.test_privacy_layers import check, data, square_loss

__all__ = ["quiet"]

KINDS: dict[str, Any] = {
    "tanh": (nn.RNN, RNN, {}),
    "relu": (nn.RNN, RNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, LSTM, {}),
    "projected": (nn.LSTM, LSTM, {"proj_size": 2}),
    "gru": (nn.GRU, GRU, {}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, *sizes: int, **options: Any) -> Any:
    """torch's module."""
    plain, _, own = KINDS[kind]
    return plain(*sizes, **own, **options)


# ------------------------------------------------------------------------------------------------ the same numbers


@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 999), choice=st.data())
@settings(max_examples=80)
def test_is_torchs(kind: str, seed: int, choice: st.DataObject) -> None:
    """Outputs, states and all gradients, whatever the options; dropout too, where torch draws the same."""

    def flag() -> bool:
        return choice.draw(st.booleans())

    torch.manual_seed(seed)
    layers, both_ways, batch_first, batched, dtype = (
        choice.draw(st.integers(1, 3)),
        flag(),
        flag(),
        flag(),
        torch.float64,
    )
    dropout = 0.4 if layers > 1 and flag() else 0.0
    options = {"num_layers": layers, "bidirectional": both_ways, "bias": flag(), "batch_first": batch_first}
    plain = made(kind, 3, 4, dropout=dropout, dtype=dtype, **options)
    ours = ModuleValidator.fix(plain)
    assert type(ours) is KINDS[kind][1]
    batch, length = choice.draw(st.sampled_from([1, 3])), choice.draw(st.integers(1, 5))
    x = torch.randn(batch, length, 3, dtype=dtype)
    x = (x if batch_first else x.transpose(0, 1)) if batched else x[0]
    count = layers * (1 + both_ways)
    widths = [plain.proj_size or 4, 4][: 2 if isinstance(plain, nn.LSTM) else 1]
    states = [torch.randn(*((count, batch) if batched else (count,)), width, dtype=dtype) for width in widths]
    wanted = [one.requires_grad_() for one in (x, *states)]
    given_states: Any = (tuple(states) if len(states) > 1 else states[0]) if flag() else None
    if given_states is None:
        wanted = wanted[:1]
    is_training, last_alone = flag(), flag()
    found = []
    for module in (plain, ours):
        module.train(is_training)
        torch.manual_seed(seed)
        output, after = module(x, given_states)
        results = [output, *(after if isinstance(after, tuple) else (after,))]
        loss = sum((one.sin() * torch.arange(one.numel()).view(one.shape)).sum() for one in results[int(last_alone) :])
        weights = [getattr(module, name) for name in plain.state_dict()]
        results += torch.autograd.grad(loss, [*wanted, *weights], allow_unused=True)
        found.append(
            [output, after]
            + [torch.zeros(()) if one is None else one for one in results[len(results) - len(wanted) - len(weights) :]]
        )
    same(found[1], found[0], 100 * EXACT)  # weights of the loss go up to 100


@kinds
def test_float32(kind: str) -> None:
    torch.manual_seed(0)
    plain = made(kind, 16, 24, num_layers=2, bidirectional=True)
    ours, x = ModuleValidator.fix(plain), torch.randn(12, 5, 16)
    same(ours(x), plain(x), 2e-5)
    plain.eval()
    ours.eval()
    same(ours(x), plain(x), 0.0)  # which is torch's own operation


@kinds
def test_packed_sequences(kind: str) -> None:
    """Evaluated as torch does it; in training their length would tell of the batch."""
    torch.manual_seed(0)
    plain = made(kind, 3, 4, num_layers=2, bidirectional=True)
    ours, x = ModuleValidator.fix(plain), torch.randn(6, 3, 3)
    for is_sorted in (True, False):
        lengths = [6, 4, 1] if is_sorted else [4, 6, 1]
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=is_sorted)
        with pytest.raises(ValueError, match="fixed length"):
            ours.train()(packed)
        expected, found = plain(packed), ours.eval()(packed)
        same(pad_packed_sequence(found[0]), pad_packed_sequence(expected[0]), 0.0)
        same(found[1], expected[1], 0.0)


def test_what_torch_refuses_is_refused() -> None:
    module = LSTM(3, 4, batch_first=True)
    with pytest.raises(ValueError, match="2D or 3D"):
        module(torch.zeros(3))
    with pytest.raises(RuntimeError, match="input_size"):
        module(torch.zeros(2, 5, 4))
    with pytest.raises(RuntimeError, match="hidden size"):
        module(torch.zeros(2, 5, 3), (torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)))
    with pytest.raises(RuntimeError, match="larger than 0"):
        module(torch.zeros(2, 0, 3))
    with pytest.raises(ValueError, match="proj_size"):
        RNN(3, 4, proj_size=2)
    with pytest.raises(ValueError, match="nonlinearity"):
        RNN(3, 4, nonlinearity="sine")


def test_a_module_of_ones_own() -> None:
    """Made directly it starts as torch's does, and has what people ask of one."""
    torch.manual_seed(0)
    plain = nn.LSTM(3, 4, 2, proj_size=2, bidirectional=True)
    torch.manual_seed(0)
    ours = LSTM(3, 4, 2, proj_size=2, bidirectional=True)
    assert list(ours.state_dict()) == list(plain.state_dict())
    same(list(ours.state_dict().values()), list(plain.state_dict().values()), 0.0)
    ours.flatten_parameters()
    assert [len(names) for names in ours.all_weights] == [5] * 4
    assert ours.weight_hh_l1_reverse is ours.hh_l1_reverse.weight
    assert plain.extra_repr() in repr(ours)
    assert ModuleValidator.is_valid(ours)


# ------------------------------------------------------------------------------------------------ private gradients


class First(nn.Module):
    """The output of a module that gives states too, and something of the states, if asked for."""

    def __init__(self, module: nn.Module, with_states: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        self.module, self.with_states, self.batch_first = module, with_states, batch_first

    def forward(self, x: Tensor) -> Tensor:
        turn = self.module.batch_first != self.batch_first
        output, states = self.module(x.transpose(0, 1) if turn else x)
        output = output.transpose(0, 1) if turn else output
        if self.with_states:
            output = output + (states if isinstance(states, Tensor) else states[1])[-1].sum(1)[:, None, None]
        return output


@kinds
@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("memory", ["fast", "low"])
def test_private_gradients(kind: str, both_ways: bool, memory: str) -> None:
    x, y = data((9, 5, 3))
    plain = made(kind, 3, 4, num_layers=2, bidirectional=both_ways, batch_first=True)
    check(ModuleValidator.fix(First(plain, with_states=True)).double(), x, y, square_loss, memory=memory)


@kinds
@pytest.mark.parametrize("options", [{"bias": False}, {"frozen": "weight_ih_l0"}, {"frozen": "weight_hh_l0"}])
def test_without_some_parameters(kind: str, options: dict[str, Any]) -> None:
    x, y = data((9, 5, 3))
    frozen = options.pop("frozen", None) if "frozen" in (options := dict(options)) else None
    plain = made(kind, 3, 4, batch_first=True, **options)
    if frozen is not None:
        getattr(plain, frozen).requires_grad_(False)
        getattr(plain, frozen.replace("weight", "bias")).requires_grad_(False)
    fixed = ModuleValidator.fix(First(plain)).double()
    assert sum(p.requires_grad for p in fixed.parameters()) == sum(p.requires_grad for p in plain.parameters())
    check(fixed, x, y, square_loss)


@kinds
@pytest.mark.parametrize("length", [5, 9])
@pytest.mark.parametrize("of_model", [True, False])
@pytest.mark.parametrize("of_layer", [True, False])
def test_where_the_samples_are(kind: str, of_model: bool, of_layer: bool, length: int) -> None:
    """In a square of samples and steps an exchange of the two would not be noticed."""
    _, y = data((9,))
    x = torch.randn(9, length, 3, dtype=torch.float64) * 2
    model = ModuleValidator.fix(First(made(kind, 3, 4, batch_first=of_layer), batch_first=of_model)).double()

    def loss_of(output: Tensor, targets: Tensor) -> Tensor:
        return square_loss(output if of_model else output.transpose(0, 1), targets)

    check(model, x if of_model else x.transpose(0, 1), y, loss_of, batch_first=of_model)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_are_those_of_the_gradients(kind: str, dtype: torch.dtype) -> None:
    """The norm of the sum over steps, not the sum of the steps' norms, which for like steps is as many times as large."""
    torch.manual_seed(0)
    plain = made(kind, 3, 4, num_layers=2, bidirectional=True, batch_first=True)
    x = torch.randn(4, 20, 3, dtype=dtype)
    compare_norms(ModuleValidator.fix(First(plain)).to(dtype), x, dtype)


@kinds
def test_an_empty_batch(kind: str) -> None:
    model = ModuleValidator.fix(First(made(kind, 3, 4, num_layers=2, bidirectional=True, batch_first=True)))
    optimizer = private(model)
    model(torch.zeros(0, 5, 3)).sum().backward()
    optimizer.step()
    assert all(not p.grad.any() for p in model.parameters())


@kinds
def test_a_bad_sample_counts_as_zero(kind: str) -> None:
    torch.manual_seed(0)
    fixed = ModuleValidator.fix(First(made(kind, 3, 4, batch_first=True)))
    x, found = torch.randn(5, 6, 3), []
    for bad in (0.0, float("nan")):
        model = copy.deepcopy(fixed)
        optimizer = private(model, loss_reduction="sum", check_rows=False)
        one = x.clone()
        one[2] = bad
        losses = model(one).square().sum((1, 2))
        (losses * torch.tensor([1.0, 1.0, 0.0 if bad == 0 else 1.0, 1.0, 1.0])).sum().backward()
        optimizer.step()
        found.append([p.grad for p in model.parameters()])
    same(found[1], found[0], 1e-6)


@kinds
def test_inside_a_checkpoint(kind: str) -> None:
    x, y = data((9, 5, 3))

    class Checkpointed(First):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = checkpoint(super().forward, x, use_reentrant=False)
            return result

    check(ModuleValidator.fix(Checkpointed(made(kind, 3, 4, batch_first=True))).double(), x, y, square_loss)


@kinds
def test_output_changed_in_place(kind: str) -> None:
    """Nothing of what the way back needs is in the user's hands."""
    torch.manual_seed(0)
    plain = made(kind, 3, 4)
    ours, x, found = ModuleValidator.fix(plain), torch.randn(6, 2, 3), []
    for module in (ours, ours):
        output, states = module(x)
        output = output * 2 if found else output.mul_(2)
        states = states if isinstance(states, tuple) else (states,)
        loss = output.square().sum() + sum((one * 3 if found else one.mul_(3)).sum() for one in states)
        found.append(torch.autograd.grad(loss, list(module.parameters())))
    same(list(found[1]), list(found[0]), 1e-5)


@kinds
def test_nothing_is_left_of_a_pass(kind: str) -> None:
    """Memory goes with the graph, without the garbage collector."""
    ours, x = ModuleValidator.fix(made(kind, 3, 4, batch_first=True)), torch.randn(6, 2, 3)
    gc.collect()
    gc.disable()
    try:
        output, states = ours(x)
        there = weakref.ref(output.grad_fn.steps)
        assert there() is not None
        del output, states
        assert there() is None
    finally:
        gc.enable()


def test_bfloat16_around_it() -> None:
    """Steps are taken in the weights' own precision."""
    torch.manual_seed(0)
    plain = nn.LSTM(3, 4)
    ours, x = ModuleValidator.fix(plain), torch.randn(6, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(x)[0]
    assert found.dtype == torch.float32
    same(found, plain(x)[0], 0.02)
    found.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())


def test_forms_are_told_of_layers_that_have_them() -> None:
    """Steps are taken by torch's own products."""
    layers = ModuleValidator.fix(nn.LSTM(256, 256, proj_size=255)).children()
    forms = [form_of(layer) for layer in layers]
    assert forms[1:] == [None, None]


class Classifier(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        self.recurrent = made(kind, 16, 24)
        self.out = nn.Linear(24, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.out(self.recurrent(self.embedding(tokens).transpose(0, 1))[0].amax(0))
        return result


@pytest.mark.parametrize("kind", ["tanh", "lstm", "gru"])
def test_a_classifier_learns(kind: str) -> None:
    torch.manual_seed(0)
    train_privately(Classifier(kind), 60, 0.02)


# ------------------------------------------------------------------------------------------------ what fix keeps


@kinds
def test_state_dicts(kind: str) -> None:
    plain = made(kind, 3, 4, num_layers=2, bidirectional=True)
    fixed = ModuleValidator.fix(plain)
    state = {name: torch.randn_like(value) for name, value in plain.state_dict().items()}
    fixed.load_state_dict(state)
    assert list(fixed.state_dict()) == list(state)
    plain.load_state_dict(fixed.state_dict())
    same(list(plain.state_dict().values()), list(state.values()), 0.0)
    del state["weight_hh_l1"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight_hh_l1"'):
        fixed.load_state_dict(state)


def test_fix_leaves_the_original_as_it_is() -> None:
    plain = nn.LSTM(3, 4, dtype=torch.float64).eval()
    plain.bias_hh_l0.requires_grad_(False)
    before = copy.deepcopy(plain.state_dict())
    fixed = ModuleValidator.fix(nn.ModuleList([plain, plain]))
    assert type(plain) is nn.LSTM
    assert fixed[0] is fixed[1]
    assert not any(module.training for module in fixed[0].modules())
    assert fixed[0].weight_hh_l0.dtype == torch.float64
    assert not fixed[0].bias_hh_l0.requires_grad
    assert fixed[0].weight_hh_l0.requires_grad
    with torch.no_grad():
        for parameter in fixed.parameters():
            parameter.zero_()
    same(list(plain.state_dict().values()), list(before.values()), 0.0)


def test_the_error_says_what_repairs_it() -> None:
    for module in (nn.RNN(3, 4), nn.LSTM(3, 4), nn.GRU(3, 4)):
        with pytest.raises(UnsupportedModuleError, match=f"aisec_fast.privacy.{type(module).__name__} in its place"):
            ModuleValidator.validate(module, strict=True)
