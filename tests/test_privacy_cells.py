"""``privacy.RNNCell``, ``LSTMCell``, ``GRUCell`` and ``EmbeddingBag`` against torch's own, and against a loop over single
samples.

In float64 results differ by the rounding of sums of a few values below 10: far below 1e-12.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from aisec_fast import PrivacyError, UnsupportedModuleError
from aisec_fast.privacy import EmbeddingBag, GRUCell, LSTMCell, ModuleValidator, PrivacyEngine, RNNCell
from tests.test_privacy_attention import EXACT, same
from tests.test_privacy_layers import CLIP, data, loop_gradients, private_gradients, products, square_loss
from tests.test_privacy_own_layers import _private

__all__ = ["products"]

CELLS: dict[str, Any] = {
    "tanh": (nn.RNNCell, RNNCell, {}),
    "relu": (nn.RNNCell, RNNCell, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTMCell, LSTMCell, {}),
    "gru": (nn.GRUCell, GRUCell, {}),
}
MODES = ("sum", "mean", "max")
cells = pytest.mark.parametrize("kind", CELLS)
modes = pytest.mark.parametrize("mode", MODES)


def compare(plain: nn.Module, ours: nn.Module, arguments: Any) -> None:
    """Results and all gradients."""
    found = []
    for module in (plain, ours):
        output = module(*arguments)
        results = list(output) if isinstance(output, tuple) else [output]
        loss = sum((one.sin() * torch.arange(one.numel()).view(one.shape)).sum() for one in results)
        wanted = [one for one in arguments if isinstance(one, Tensor) and one.requires_grad]
        wanted += [getattr(module, name) for name in plain.state_dict()]
        found.append([output, *torch.autograd.grad(loss, wanted)])
    same(found[1], found[0], 100 * EXACT)


@given(kind=st.sampled_from(list(CELLS)), seed=st.integers(0, 999), choice=st.data())
@settings(max_examples=60, deadline=None)
def test_cells_are_torchs(kind: str, seed: int, choice: st.DataObject) -> None:
    torch.manual_seed(seed)
    torch_type, own_type, options = CELLS[kind]
    plain = torch_type(3, 4, bias=choice.draw(st.booleans()), dtype=torch.float64, **options)
    ours = ModuleValidator.fix(plain)
    assert type(ours) is own_type
    shape = choice.draw(st.sampled_from([(), (1,), (5,)]))
    x = torch.randn(*shape, 3, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(*shape, 4, dtype=torch.float64, requires_grad=True) for _ in range(1 + (kind == "lstm"))]
    given_states: Any = tuple(states) if len(states) > 1 else states[0]
    is_training, has_states = choice.draw(st.booleans()), choice.draw(st.booleans())
    compare(plain.train(is_training), ours.train(is_training), (x, given_states if has_states else None))


@given(mode=st.sampled_from(MODES), seed=st.integers(0, 999), choice=st.data())
@settings(max_examples=60, deadline=None)
def test_bags_are_torchs(mode: str, seed: int, choice: st.DataObject) -> None:
    torch.manual_seed(seed)
    padding = choice.draw(st.sampled_from([None, 2, -1]))
    plain = nn.EmbeddingBag(5, 3, mode=mode, padding_idx=padding, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(torch.randn(5, 3))  # of padding, too
    ours = ModuleValidator.fix(plain)
    assert type(ours) is EmbeddingBag
    x = torch.randint(0, 5, (choice.draw(st.integers(1, 4)), choice.draw(st.integers(1, 4))))
    weights = None
    if mode == "sum" and choice.draw(st.booleans()):
        weights = torch.randn(x.shape, dtype=torch.float64, requires_grad=True)
    compare(plain, ours, (x, None, weights))
    compare(plain.eval(), ours.eval(), (x, None, weights))
    with torch.no_grad():
        offsets = torch.tensor([0, 1, x.numel()])
        same(ours(x.flatten(), offsets), plain(x.flatten(), offsets), 0.0)


def test_what_torch_refuses_is_refused() -> None:
    for cell in (RNNCell(3, 4), LSTMCell(3, 4), GRUCell(3, 4)):
        with pytest.raises(ValueError, match="1D or 2D"):
            cell(torch.zeros(2, 2, 3))
        with pytest.raises(RuntimeError, match="input_size"):
            cell(torch.zeros(2, 4))
        state = torch.zeros(3, 4)
        with pytest.raises(RuntimeError, match="Expected hidden"):
            cell(torch.zeros(2, 3), (state, state) if isinstance(cell, LSTMCell) else state)
    with pytest.raises(RuntimeError, match="nonlinearity"):
        RNNCell(3, 4, nonlinearity="sine")(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="per_sample_weights"):
        EmbeddingBag(5, 3, mode="mean")(torch.zeros(2, 2, dtype=torch.long), per_sample_weights=torch.zeros(2, 2))


def test_bags_of_several_lengths_do_not_train() -> None:
    bag, x, offsets = EmbeddingBag(5, 3), torch.tensor([1, 2, 3]), torch.tensor([0, 2])
    with pytest.raises(ValueError, match="fixed length"):
        bag(x, offsets)
    with pytest.raises(ValueError, match="fixed length"):
        bag(x.view(1, 3), offsets)
    assert bag.eval()(x, offsets).shape == (2, 3)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str)
def test_bags_that_cannot_be_private_are_refused(options: dict[str, Any]) -> None:
    fixed = ModuleValidator.fix(nn.EmbeddingBag(5, 3, mode="sum", **options))
    with pytest.raises(UnsupportedModuleError, match=next(iter(options))):
        ModuleValidator.validate(fixed, strict=True)


def test_state_dicts_are_torchs() -> None:
    for plain in (nn.LSTMCell(3, 4), nn.GRUCell(3, 4, bias=False), nn.EmbeddingBag(5, 3)):
        torch.manual_seed(0)
        ours = ModuleValidator.fix(plain)
        assert list(ours.state_dict()) == list(plain.state_dict())
        other = copy.deepcopy(plain)
        for parameter in other.parameters():
            nn.init.normal_(parameter)
        ours.load_state_dict(other.state_dict())
        plain.load_state_dict(ours.state_dict())
        same(list(plain.state_dict().values()), list(other.state_dict().values()), 0.0)
        assert plain.extra_repr() in repr(ours)
        assert ModuleValidator.is_valid(ours)
        assert not ModuleValidator.is_valid(plain)
        with pytest.raises(UnsupportedModuleError, match=f"privacy.{type(plain).__name__} in its place"):
            ModuleValidator.validate(plain, strict=True)


# ------------------------------------------------------------------------------------------------ private gradients


class Steps(nn.Module):
    """A cell in every step of a sequence."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        states: Any = None
        for t in range(x.shape[1]):
            states = self.cell(x[:, t], states)
        return self.head(states[0] + states[1].tanh() if isinstance(states, tuple) else states)


class Bags(nn.Module):
    """Two bags of tokens, one of them weighted."""

    def __init__(self, bag: nn.Module, weighted: bool) -> None:
        super().__init__()
        self.bag, self.head, self.weighted = bag, nn.Linear(3, 2), weighted

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.linspace(-1.0, 2.0, x.shape[1]).to(self.head.weight).expand(x.shape) if self.weighted else None
        return self.head(self.bag(x, per_sample_weights=weights) + self.bag(x[:, :2]).tanh())


def compare_private(plain: nn.Module, x: Tensor, y: Tensor, memory: str = "fast") -> None:
    expected, norms = loop_gradients(plain, x, y, square_loss)
    assert len(y) < 9 or min(norms) < CLIP < max(norms)
    ours = ModuleValidator.fix(plain)
    found = dict(zip((name for name, _ in ours.named_parameters()), private_gradients(ours, x, y, square_loss, memory=memory), strict=True))  # fmt: skip
    names = [name for name, _ in plain.named_parameters()]
    for name, right in zip(names, expected, strict=True):
        kind, _, short = name.rpartition(".")[2].partition("_")
        own = (
            name
            if name.startswith("head")
            else f"cell.{short}.{kind}"
            if name.startswith("cell")
            else "bag.table.weight"
        )
        torch.testing.assert_close(found[own], right, rtol=0.0, atol=1e-11 * CLIP * 9)


@cells
@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("batch", [9, 1, 0])
def test_private_gradients_of_cells(kind: str, memory: str, batch: int, products: None) -> None:
    torch_type, _, options = CELLS[kind]
    torch.manual_seed(0)
    x, y = data((9, 4, 3))
    compare_private(Steps(torch_type(3, 4, **options)).double(), x[:batch], y[:batch], memory)


@modes
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("batch", [9, 1, 0])
def test_private_gradients_of_bags(mode: str, padding: int | None, batch: int, products: None) -> None:
    torch.manual_seed(0)
    plain = Bags(nn.EmbeddingBag(5, 3, mode=mode, padding_idx=padding), weighted=mode == "sum").double()
    x, y = torch.randint(0, 5, (9, 4)), data((9, 1))[1]
    compare_private(plain, x[:batch], y[:batch])


@cells
def test_a_bad_sample_counts_as_zero(kind: str) -> None:
    torch_type, _, options = CELLS[kind]
    torch.manual_seed(0)
    model, (x, y) = ModuleValidator.fix(Steps(torch_type(3, 4, **options)).double()), data((9, 4, 3))
    x[4, 2] = float("nan")
    rest = [i for i in range(9) if i != 4]
    expected, _ = loop_gradients(model, x[rest], y[rest], square_loss)
    for got, right in zip(private_gradients(model, x, y, square_loss), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=0.0, atol=1e-11 * CLIP * 9)


def test_cells_train_once_fixed() -> None:
    torch.manual_seed(0)
    model = ModuleValidator.fix(Steps(nn.LSTMCell(3, 4)))
    engine, optimizer = PrivacyEngine(), torch.optim.SGD(model.parameters(), lr=0.1)
    _private(engine, model, optimizer)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(9, 4, 3)).square().mean().backward()
    with pytest.warns(UserWarning, match="did not come from the loader"):
        optimizer.step()
    assert engine.info()[0]["check_rows"] == "passed"
    assert not torch.equal(before["cell.weight_hh"], model.state_dict()["cell.weight_hh"])
    with pytest.raises(PrivacyError, match="copy of a private model"):
        copy.deepcopy(model)(torch.randn(9, 4, 3))
