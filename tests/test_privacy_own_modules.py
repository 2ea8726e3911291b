"""Parameters of modules of layers, modules that work with their layers' weights, and modules called with several arguments:
beside loops over single samples, and what is refused, with its reason."""

from __future__ import annotations

import copy
import random
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from aisec_fast import PrivacyError
from aisec_fast.privacy import GRU, ModuleValidator, PrivacyEngine
from aisec_fast.privacy._coverage import examine
from aisec_fast.privacy._other_layers import BroadcastGradients
from aisec_fast.privacy._own_layers import OwnLayerGradients

from .test_privacy_layers import CLIP, Scale, check, data, loop_gradients, private_gradients, products, square_loss
from .test_privacy_own_layers import _private, is_refused_in_training

__all__ = ["products"]


class Scaled(nn.Module):
    """A block of layers with a scale of its own, as ConvNeXt has it: of ``shape``, used as ``used``, or as it is."""

    def __init__(self, channels: int, shape: tuple[int, ...], used: Any = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels)
        self.gamma, self.used = nn.Parameter(torch.linspace(0.5, 2.0, channels).view(shape)), used
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.gamma.reshape(self.used) if self.used else self.gamma
        result = self.dropout(gamma * self.norm(self.conv(x)).tanh())
        result += x
        return result


class Attention(nn.Module):
    """Works with the weights of layers that it never calls, and has a table of its own; a norm that it calls."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)
        self.table = nn.Parameter(torch.randn(2 * length - 1))
        self.register_buffer("index", torch.arange(length)[:, None] - torch.arange(length)[None] + length - 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = functional.linear(self.norm(x), self.qkv.weight, self.qkv.bias).chunk(3, 2)
        weights = (q @ k.transpose(1, 2) + self.table[self.index]).softmax(2)
        return functional.linear(weights @ v, self.proj.weight, self.proj.bias)


class Embedded(nn.Module):
    """A class token without a dimension for samples, as CLIP has it; called with a flag; positions by an embedding."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.patches, self.positions = nn.Linear(6, width), nn.Embedding(length + 1, width)
        self.token = nn.Parameter(torch.randn(width))
        self.register_buffer("numbers", torch.arange(length + 1)[None])

    def forward(self, x: Tensor, shifted: bool = False) -> Tensor:
        x = torch.cat([self.token.expand(len(x), 1, -1), self.patches(x)], 1)
        return x + self.positions(self.numbers) + float(shifted)


class Encoder(nn.Module):
    """Calls a module with a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.embedded, self.head = Embedded(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedded(x, shifted=True).tanh()).mean(1)


class Offset(nn.Embedding):
    """Positions as OPT has them: a subclass that is called with several arguments, of which it takes what it wants."""

    def forward(self, mask: Tensor, start: int = 0, numbers: Any = None) -> Tensor:  # type: ignore[override]
        numbers = (mask.cumsum(1) * mask - 1).long()[:, start:] if numbers is None else numbers
        return super().forward(numbers + 2)


class Decoder(nn.Module):
    def __init__(self, given: bool) -> None:
        super().__init__()
        self.tokens, self.positions, self.head, self.given = nn.Embedding(7, 4), Offset(9, 4), nn.Linear(4, 3), given

    def forward(self, x: Tensor) -> Tensor:
        mask = (x > 0).long()
        numbers = (mask.cumsum(1) * mask - 1).long() if self.given else None
        return self.head((self.tokens(x) + self.positions(mask, 0, numbers=numbers)).tanh().mean(1))


class Mixed(nn.Module):
    """A module called with a row for each sample, with what is the same for all, and with a list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(width))

    def forward(self, common: Tensor, x: Tensor, *, others: list[Tensor], power: int) -> Tensor:
        return (self.gamma * x * common).tanh() ** power + others[0] * self.gamma + others[1]


class CallsMixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mixed = nn.Linear(6, 5), Mixed(5)
        self.register_buffer("common", torch.linspace(-1.0, 1.0, 5)[None])

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.mixed(self.common, h, others=[h.square(), torch.ones(3, 5).to(x).mean(0)], power=2)


class Bilinear(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.second, self.both = nn.Linear(6, 3), nn.Linear(6, 4), nn.Bilinear(3, 4, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(self.first(x), self.second(x).tanh())


class Behind(nn.Module):
    """A parameter in front of the module's first layer, whose output is the module's."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.layer = nn.Parameter(torch.randn(6)), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.shift)


class Tied(nn.Module):
    """A bias that belongs to a layer too, as heads of language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 5), nn.Parameter(torch.ones(5))
        self.bias = self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


class Inner(nn.Module):
    """Modules with parameters of their own in a module with one."""

    def __init__(self) -> None:
        super().__init__()
        self.behind, self.scale, self.gamma = Behind(), Scale(5), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.behind(x)) * self.gamma + self.behind(x * 0.5)


class Chosen(nn.Module):
    """A module that is told by attributes and buffers what to do, and changes one; its last operation saves its result."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scales, self.chosen = nn.Parameter(torch.randn(2, width)), 0
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.factor = self.factor + 0.5
        return (self.scales[self.chosen] * x * self.factor).tanh()


class CallsChosen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.chosen = nn.Linear(6, 5), Chosen(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        for chosen in range(2):
            self.chosen.chosen, self.chosen.factor = chosen, x.new_ones(())
            x = self.chosen(x)
        return x


class Choice(nn.Module):
    """A module called with a table of all samples, or with what each sample has: as many tensors in another place."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor, table: Any = None, mask: Any = None) -> Tensor:
        x = self.scale * x
        return x + (self.scale * table).sum(0) if mask is None else x * mask


class CallsChoice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.choice = nn.Linear(6, 5), Choice()
        self.register_buffer("table", torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.choice(self.layer(x), table=self.table)
        return self.choice(x, mask=x > 0)


MODULES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "copies of a column": (lambda: Scaled(3, (3, 1, 1)), (9, 3, 4, 4)),  # as many samples as nothing else
    "a scale of one dimension": (lambda: Scaled(3, (3,), (1, -1, 1, 1)), (9, 3, 4, 4)),
    "two blocks": (lambda: nn.Sequential(Scaled(3, (3,), (3, 1, 1)), Scaled(3, (3, 1, 1))), (9, 3, 4, 4)),
    "as many samples as channels": (lambda: Scaled(9, (9, 1, 1)), (9, 9, 9, 9)),
    "borrowed weights": (lambda: nn.Sequential(nn.Linear(6, 4), Attention(4, 3), nn.Linear(4, 2)), (9, 3, 6)),
    "borrowed weights first": (lambda: Attention(6, 3), (9, 3, 6)),
    "a flag": (Encoder, (9, 3, 6)),
    "all kinds of arguments": (CallsMixed, (9, 6)),
    "bilinear": (lambda: Bilinear(True), (9, 6)),
    "bilinear without bias, on sequences": (lambda: Bilinear(False), (9, 2, 6)),
    "in front of the first layer": (Behind, (9, 6)),
    "a layer's bias": (lambda: nn.Sequential(Tied(), nn.Tanh()), (9, 6)),
    "inside each other": (Inner, (9, 6)),
    "told by attributes": (CallsChosen, (9, 6)),
    "a choice of arguments": (CallsChoice, (9, 6)),
    "traced by torch.fx": (lambda: torch.fx.symbolic_trace(Behind()), (9, 6)),
}


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("name", MODULES)
def test_private_gradients(name: str, memory: str) -> None:
    make, shape = MODULES[name]
    torch.manual_seed(0)
    model = make().double()
    assert ModuleValidator.is_valid(model)
    keys, kinds = list(model.state_dict()), [(type(p), p.shape, p.requires_grad) for p in model.parameters()]
    check(model, *data(shape), square_loss, memory=memory)
    assert list(model.state_dict()) == keys
    assert [(type(p), p.shape, p.requires_grad) for p in model.parameters()] == kinds


@pytest.mark.parametrize("name", MODULES)
def test_float32(name: str, products: None) -> None:
    """Tolerance: as test_privacy_layers.test_float32."""
    make, shape = MODULES[name]
    torch.manual_seed(0)
    check(make(), *data(shape, torch.float32), square_loss, tolerance=3e-4)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", MODULES)
def test_a_bad_sample_counts_as_zero(name: str, poison: float) -> None:
    make, shape = MODULES[name]
    torch.manual_seed(0)
    model, (x, y) = make().double(), data(shape)
    x[4] = poison
    rest = [i for i in range(9) if i != 4]
    expected, _ = loop_gradients(model, x[rest], y[rest], square_loss)
    for got, right in zip(private_gradients(model, x, y, square_loss), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=0.0, atol=1e-11 * CLIP * 9)


@pytest.mark.parametrize("name", MODULES)
def test_batches_of_none_and_of_one(name: str) -> None:
    make, shape = MODULES[name]
    for batch in (0, 1):
        torch.manual_seed(0)
        model, (x, y) = make().double(), data(shape)
        expected, _ = loop_gradients(model, x[4 : 4 + batch], y[4 : 4 + batch], square_loss)
        found = private_gradients(model, x[4 : 4 + batch], y[4 : 4 + batch], square_loss)
        for got, right in zip(found, expected, strict=True):
            torch.testing.assert_close(got, right, rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("name", MODULES)
def test_frozen_parameters_are_left_alone(name: str) -> None:
    """One after the other, whichever it is."""
    make, shape = MODULES[name]
    for frozen in dict(make().named_parameters()):
        torch.manual_seed(0)
        model, (x, y) = make().double(), data(shape)
        model.get_parameter(frozen).requires_grad_(False)
        expected, _ = loop_gradients(model, x, y, square_loss)
        for got, right in zip(private_gradients(model, x, y, square_loss), expected, strict=True):
            torch.testing.assert_close(got, right, rtol=0.0, atol=1e-11 * CLIP * 9)
        assert model.get_parameter(frozen).grad is None


@given(seed=st.integers(0, 999), choice=st.data())
@settings(max_examples=40, deadline=None)
def test_shapes(seed: int, choice: st.DataObject) -> None:
    """Of any size, also where samples are as many as something else."""
    torch.manual_seed(seed)
    batch, width, length = (choice.draw(st.integers(least, 5)) for least in (1, 2, 1))
    kind = choice.draw(st.sampled_from(["attention", "column", "scale", "decoder"]))
    model, (x, y) = Attention(width, length).double(), data((batch, length, width))
    if kind == "decoder":
        model, x = Decoder(choice.draw(st.booleans())).double(), torch.randint(0, 7, (batch, min(length, 5)))
    elif kind != "attention":
        shape = (width, 1, 1) if kind == "column" else (width,)
        used = None if kind == "column" else (width, 1, 1)
        model, (x, y) = Scaled(width, shape, used).double(), data((batch, width, length + 1, length))
    expected, _ = loop_gradients(model, x, y, square_loss)
    for got, right in zip(private_gradients(model, x, y, square_loss), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("given_numbers", [False, True])
def test_a_subclass_of_embedding_with_arguments_of_its_own(given_numbers: bool) -> None:
    torch.manual_seed(0)
    check(Decoder(given_numbers).double(), torch.randint(0, 7, (9, 5)), data((9, 1))[1], square_loss)


def test_which_rule_a_parameter_has() -> None:
    """Copies cost least, so they are for what has the shape for it; a layer's own parameter is the layer's."""

    def rules(model: nn.Module) -> dict[str, Any]:
        return {f"{one.name}.{key}".lstrip("."): one.rule for one in examine(model).layers for key in one.parameters}

    assert rules(Scaled(3, (3, 1, 1)))["gamma"] is BroadcastGradients
    assert rules(Scaled(3, (3,), (3, 1, 1)))["gamma"] is OwnLayerGradients
    assert set(rules(Attention(4, 3)).values()) == {OwnLayerGradients}
    assert "bias" not in rules(Tied())
    assert set(rules(Behind()).values()) != {OwnLayerGradients}


def test_copies_may_stand_beside_what_is_random() -> None:
    """As in torchvision's ConvNeXt with its stochastic depth: nothing runs a second time."""
    torch.manual_seed(0)
    model = Scaled(3, (3, 1, 1), dropout=0.5).double()
    plain, (x, y) = copy.deepcopy(model), data((9, 3, 4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _private(PrivacyEngine(), model, optimizer, noise_multiplier=0.0, max_grad_norm=1e6, loss_reduction="sum")
    for one in (model, plain):
        torch.manual_seed(5)
        square_loss(one(x), y).sum().backward()
    with pytest.warns(UserWarning, match="did not come from the loader"):
        optimizer.step()
    for found, right in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, right.grad, rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------------------------------------ what is refused


class Mixing(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - (self.gamma.view(-1, 1, 1) * x).mean(0)


class Hidden(Scaled):
    """Has its parameter from somewhere else than its name."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.all[0].view(-1, 1, 1)

    @property
    def all(self) -> list[Tensor]:
        return vars(self).setdefault("kept", [self.gamma])


class Unlike(nn.Module):
    """A module called with what has a row for each sample in some calls alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.own = nn.Linear(6, 6), Own()

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return self.own(h, h) + self.own(h, h.new_ones(2, 1, 6).sum(0))


class Own(Scale):
    def __init__(self) -> None:
        super().__init__(6)

    def forward(self, x: Tensor, other: Any) -> Tensor:  # type: ignore[override]
        return self.gamma * x + (other if isinstance(other, Tensor) else 0.0)


class Given(nn.Module):
    def __init__(self, other: Any) -> None:
        super().__init__()
        self.layer, self.own, self.other = nn.Linear(6, 6), Own(), other

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.layer(x), self.other)


class Strict(Scale):
    """Takes no other tensor for its parameter."""

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.gamma, nn.Parameter)
        return super().forward(x)


class Drawing(Scale):
    """Draws what is too small to be seen in gradients, unless it drew a zero."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 + 1e-9 * random.random())


class Started(nn.Module):
    """A recurrent network whose first states are trained, of which torch's operation makes something in place."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.start = GRU(6, 5, batch_first=True), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x[:, None], self.start.expand(1, len(x), 5).contiguous())[0]


def hooked() -> nn.Module:
    model = Scaled(3, (3,), (3, 1, 1))
    model.norm.register_forward_hook(lambda _module, _args, output: output)
    return model


IMAGES, ROWS = (9, 3, 4, 4), (9, 6)
REFUSED: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "is random": (lambda: Scaled(3, (3,), (3, 1, 1), dropout=0.5), IMAGES, "Scaled has no rule.*deterministic"),
    "mixes samples": (lambda: Mixing(3, (3,), (3, 1, 1)), IMAGES, "Mixing has no rule.*differ"),
    "is not by name": (lambda: Hidden(3, (3,), (3, 1, 1)), IMAGES, "Hidden has no rule.*differ|received a gradient"),
    "has hooks that would see it twice": (hooked, IMAGES, "hook of 'norm' would see it again"),
    "has samples in some calls alone": (Unlike, ROWS, "samples in dimension 0 in some calls alone"),
    "takes what may hide tensors": (lambda: Given({1, 2}), ROWS, r"called with \(Tensor, set\)"),
    "draws by Python's generator": (lambda: Drawing(6), ROWS, "Drawing has no rule.*draws random numbers"),
    "insists on its parameter": (lambda: Strict(6), ROWS, r"Strict has no rule.*\(AssertionError"),
    "starts a recurrent network": (Started, ROWS, r"Started has no rule.*alone \(RuntimeError"),
    "takes an object": (lambda: Given([object()]), ROWS, r"called with \(Tensor, list\)"),
}


@pytest.mark.parametrize("check_rows", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_reason(name: str, check_rows: bool) -> None:
    make, shape, match = REFUSED[name]
    torch.manual_seed(0)
    is_refused_in_training(make(), shape, match, check_rows)


class Shares(nn.Module):
    """A module that is differentiated as a whole, with a layer in it that the model has elsewhere, too."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        attention = Attention(6, 3)
        if first:
            self.norm = attention.norm
        self.attention = attention
        if not first:
            self.norm = attention.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.attention(x).tanh())


def test_a_layer_in_what_is_differentiated_as_a_whole_and_elsewhere_is_refused() -> None:
    """Its gradients would count twice, or those from elsewhere not at all."""
    attention = Attention(6, 3)
    outer = Attention(6, 3)
    outer.norm = attention  # as a whole in another one
    (error,) = ModuleValidator.validate(nn.Sequential(attention, outer))
    assert "'0' is in it, too" in str(error)
    (error,) = ModuleValidator.validate(Shares(first=True))
    assert "module attention (Attention)" in str(error)
    assert "'norm' is in it, too, whose gradients would count twice" in str(error)
    model, (x, y) = Shares(first=False).double(), data((9, 3, 6))
    with pytest.raises(PrivacyError, match="outside its layer's training forward"):
        private_gradients(model, x, y, square_loss)


def test_columns_that_do_not_stand_beside_samples_are_refused() -> None:
    torch.manual_seed(0)
    model = Scaled(3, (3, 1, 1), (1, 3, 1, 1))
    _private(PrivacyEngine(), model, torch.optim.SGD(model.parameters(), lr=0.1), check_rows=False)
    for batch in (2, 3, 9):
        with pytest.raises(PrivacyError, match=r"'gamma'.*no per-sample rule"):
            model(torch.randn(batch, 3, 4, 4))
    assert type(model.gamma) is nn.Parameter


def test_samples_joined_with_their_positions_are_refused_for_what_they_are() -> None:
    """As in OPT: rows of a layer are positions of all samples, not samples that mix."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Flatten(0, 1), nn.Linear(5, 4), nn.Unflatten(0, (-1, 3)))
    engine, optimizer = PrivacyEngine(accountant="rdp"), torch.optim.SGD(model.parameters(), lr=0.1)
    _private(engine, model, optimizer)
    model(torch.randn(9, 3, 6)).sum().backward()
    with pytest.raises(PrivacyError, match="modules see different batch sizes: '2' 27, '0' 9"):
        optimizer.step()
    assert engine.get_epsilon(1e-5) == 0.0


def test_hooks_of_all_modules_are_refused() -> None:
    torch.manual_seed(0)
    model = Scaled(3, (3,), (3, 1, 1))
    _private(PrivacyEngine(), model, torch.optim.SGD(model.parameters(), lr=0.1), check_rows=False)
    loss = model(torch.randn(IMAGES)).sum()
    handle = nn.modules.module.register_module_forward_hook(lambda _module, _args, output: output)
    try:
        with pytest.raises(PrivacyError, match="hook of all modules"):
            loss.backward()
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:a step used a batch")
def test_what_is_the_same_for_all_stays_so_in_batches_of_its_size() -> None:
    """A mask of three rows is nobody's, also when three samples come."""
    torch.manual_seed(0)

    class Masked(Own):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return self.gamma * (other @ x)

    model = Given(torch.randn(3, 3).double()).double()
    model.own = Masked().double()
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _private(PrivacyEngine(), model, optimizer, noise_multiplier=0.0, max_grad_norm=CLIP, loss_reduction="sum")
    for batch in (1, 5, 3, 1, 0):
        x, y = data((batch, 3, 6))
        optimizer.zero_grad()
        square_loss(model(x), y).sum().backward()
        optimizer.step()
        expected, _ = loop_gradients(plain, x, y, square_loss)
        for parameter, right in zip([p for p in model.parameters() if p.requires_grad], expected, strict=True):
            torch.testing.assert_close(parameter.grad, right, rtol=0.0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:a step used a batch")
@pytest.mark.parametrize("which", [0, 1])
def test_what_it_was_called_with_may_not_change(which: int) -> None:
    torch.manual_seed(0)
    model = CallsMixed()
    kept: list[Tensor] = []
    model.mixed.register_forward_pre_hook(
        lambda _module, args, kwargs: kept.extend([args[1], kwargs["others"][0]]), with_kwargs=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _private(PrivacyEngine(), model, optimizer, check_rows=False)
    loss = model(torch.randn(9, 6)).sum()
    kept[which].detach().add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        loss.backward()


def test_hooks_are_there_again_afterwards() -> None:
    """Also after an error, and the layers inside are recorded once in each step."""
    torch.manual_seed(0)
    for dropout in (0.0, 0.5):
        model = Scaled(3, (3,), (3, 1, 1), dropout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        _private(PrivacyEngine(), model, optimizer, check_rows=False)
        hooks = [(list(one._forward_hooks), list(one._forward_pre_hooks)) for one in model.modules()]
        loss = model(torch.randn(IMAGES)).sum()
        if dropout:
            with pytest.raises(PrivacyError, match="deterministic"):
                loss.backward()
        else:
            loss.backward()
        assert hooks == [(list(one._forward_hooks), list(one._forward_pre_hooks)) for one in model.modules()]


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


@pytest.mark.parametrize("name", ["two blocks", "borrowed weights", "in front of the first layer", "inside each other"])
def test_checkpoints(name: str) -> None:
    make, shape = MODULES[name]
    if name == "two blocks":  # copies are not for checkpoints
        make = partial(Scaled, 3, (3,), (3, 1, 1))
    torch.manual_seed(0)
    check(Checkpointed(make()).double(), *data(shape), square_loss)


@pytest.mark.filterwarnings("ignore")  # of torch.compile, too
@pytest.mark.parametrize("name", ["a scale of one dimension", "borrowed weights", "copies of a column"])
def test_compiled(name: str) -> None:
    make, shape = MODULES[name]
    torch.manual_seed(0)
    model, (x, y) = make().double(), data(shape)
    expected, _ = loop_gradients(model, x, y, square_loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _private(PrivacyEngine(), model, optimizer, noise_multiplier=0.0, max_grad_norm=CLIP, loss_reduction="sum")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        optimizer.zero_grad()
        square_loss(compiled(x), y).sum().backward()
        optimizer.step()
        for parameter, right in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, right, rtol=0.0, atol=1e-10)
