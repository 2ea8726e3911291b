"""Layers without a rule: what of them can be trained privately (tests/test_privacy_layers.py has them beside loops over
single samples), and what is refused, with its reason, before anything is released."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn

from aisec_fast import PrivacyError
from aisec_fast.privacy import PrivacyEngine

from .test_privacy_layers import (
    CLIP,
    Positioned,
    Scale,
    VisionTransformer,
    data,
    loop_gradients,
    private_gradients,
    square_loss,
)


class Centred(Scale):
    """Mixes the samples of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * (x - x.mean(0))


class Dropping(Scale):
    """Draws something else each time."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * nn.functional.dropout(x, 0.5)


class Counting(Scale):
    """Does what depends on values, not on shapes alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x if bool((x > 0).any()) else x


class Batched(Scale):
    """Takes what it finds in the batch as a whole for a sample."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x * x.shape[0]


class Listed(Scale):
    """Has its parameter from somewhere else than its name."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.all = [self.gamma]

    def forward(self, x: Tensor) -> Tensor:
        return self.all[0] * x


class Named(Scale):
    """One parameter by two names."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.again = self.gamma

    def forward(self, x: Tensor) -> Tensor:
        return (self.gamma * x).tanh() * self.again


class Keeping(Scale):
    """Keeps what it made for the next forward, and what it saw."""

    calls = 0

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("twos", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.twos is None or self.twos.shape != x.shape:
            self.twos = torch.full_like(x, 2.0)
        self.last = x
        return self.gamma * x * self.twos


class Two(Scale):
    """Gives two tensors."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.gamma * x, x


class Calls(nn.Module):
    """Calls a layer of the user's in some way."""

    def __init__(self, layer: nn.Module, call: Any) -> None:
        super().__init__()
        self.first, self.layer, self.call = nn.Linear(6, 5), layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, self.first(x))


REFUSED: dict[str, tuple[Any, str]] = {
    "mixes samples": (lambda: nn.Sequential(nn.Linear(6, 5), Centred(5)), "Centred has no rule.*differ"),
    "is random": (lambda: nn.Sequential(nn.Linear(6, 5), Dropping(5)), "Dropping has no rule.*deterministic"),
    "depends on values": (lambda: nn.Sequential(nn.Linear(6, 5), Counting(5)), "Counting has no rule"),
    "depends on the batch's size": (lambda: nn.Sequential(nn.Linear(6, 5), Batched(5)), "Batched has no rule.*differ"),
    "is not by name": (lambda: nn.Sequential(nn.Linear(6, 5), Listed(5)), "Listed has no rule.*differ"),
    "gives two tensors": (lambda: Calls(Two(5), lambda f, x: f(x)[0]), "'layer' has no rule.*gave tuple"),
}


def is_refused_in_training(model: nn.Module, shape: tuple[int, ...], match: str, check_rows: bool) -> None:
    """A backward pass and a step are refused, and nothing has happened."""
    before = copy.deepcopy(model.state_dict())
    engine, optimizer = PrivacyEngine(accountant="rdp"), torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data(shape, torch.float32)
    _private(engine, model, optimizer, check_rows)
    with pytest.raises(PrivacyError, match=match if not check_rows else f"{match}|samples mix"):
        square_loss(model(x), y).mean().backward()
    with pytest.raises(PrivacyError):
        optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert engine.get_epsilon(1e-5) == 0.0


@pytest.mark.parametrize("check_rows", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_for_each_sample_is_refused(name: str, check_rows: bool) -> None:
    make, match = REFUSED[name]
    torch.manual_seed(0)
    is_refused_in_training(make(), (9, 6), match, check_rows)


def _private(engine: PrivacyEngine, model: nn.Module, optimizer: Any, check_rows: bool = True, **options: Any) -> None:
    records = torch.utils.data.TensorDataset(torch.arange(16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a batch of our own
        engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=torch.utils.data.DataLoader(records, batch_size=16),
            check_rows=check_rows,
            **{"noise_multiplier": 1.0, "max_grad_norm": 1.0} | options,
        )


@pytest.mark.parametrize(
    "call", [lambda f, x: f(x), lambda f, x: f(x=x), lambda f, x: f(f(x))], ids=["once", "by name", "twice"]
)
def test_calls(call: Any) -> None:
    """By position, by name, and twice: the gradients of both uses add up before they are clipped."""
    torch.manual_seed(0)
    model = Calls(Scale(5), call).double()
    x, y = data((9, 6))
    expected, _ = loop_gradients(model, x, y, square_loss)
    for got, right in zip(private_gradients(model, x, y, square_loss), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=0.0, atol=1e-10)


def test_a_parameter_of_two_names() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), Named(5)).double()
    x, y = data((9, 6))
    expected, _ = loop_gradients(model, x, y, square_loss)
    for got, right in zip(private_gradients(model, x, y, square_loss), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=0.0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:a step used a batch")
@pytest.mark.parametrize("check_rows", [False, True])
def test_what_a_layer_keeps_is_of_its_own_forwards(check_rows: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), Keeping(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _private(PrivacyEngine(), model, optimizer, check_rows)
    for calls, batch in enumerate((5, 1, 1, 5), 1):
        optimizer.zero_grad()
        model(torch.randn(batch, 6)).sum().backward()
        optimizer.step()
        assert model[1].calls == calls
        assert model[1].last.shape == model[1].twos.shape == (batch, 5)
        assert torch.equal(model[1].twos, torch.full((batch, 5), 2.0))


@pytest.mark.filterwarnings("ignore:a step used a batch")
@pytest.mark.parametrize("first", ["one sample", "no gradient"])
def test_a_batch_that_cannot_tell_is_not_the_last_one_compared(first: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), Batched(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _private(PrivacyEngine(), model, optimizer, check_rows=False)
    out = model(torch.randn(1, 6)) if first == "one sample" else 0.0 * model(torch.randn(4, 6))
    out.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(PrivacyError, match=r"Batched has no rule.*differ"):
        model(torch.randn(4, 6)).sum().backward()


def test_time_before_the_batch_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), Scale(5))
    engine, optimizer = PrivacyEngine(), torch.optim.SGD(model.parameters(), lr=0.1)
    _private(engine, model, optimizer, batch_first=False, check_rows=False)
    with pytest.raises(PrivacyError, match="batch_first=False"):
        model(torch.randn(3, 9, 6)).sum().backward()


class Beside(nn.Module):
    """A parameter [1, ...] of a module of layers that is used in some way."""

    def __init__(self, use: Any) -> None:
        super().__init__()
        self.layer, self.token, self.use = nn.Linear(6, 5), nn.Parameter(torch.randn(1, 3, 5)), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.layer(x), self.token)


NOT_FOR_EACH_SAMPLE: dict[str, Any] = {
    "the first": lambda x, token: x * token[0].sum(),
    "the third": lambda x, token: x + token[min(2, len(token) - 1)],
    "their mean": lambda x, token: x + token.mean(0),
    "the first row of all": lambda x, token: x.mean(1) + token.flatten()[:5],
    "without the dimension": lambda x, token: x + token.squeeze(0)[0],
    "moved by one": lambda x, token: x + token.roll(1, 0),
    "as a table": lambda x, token: x.flatten(1) @ token.reshape(-1, 5).T.repeat(3, 1),
    "as many as there are": lambda x, token: x + token * len(token),
    "by a size of all": lambda x, token: x + token / token.norm().detach(),
    "no tensor": lambda x, token: (x + token).tolist(),
}


@pytest.mark.parametrize("name", NOT_FOR_EACH_SAMPLE)
def test_parameters_that_are_not_one_for_each_sample_are_refused(name: str) -> None:
    """Most give the same numbers as long as all copies are alike, but gradients of several samples, or of others."""
    torch.manual_seed(0)
    model = Beside(NOT_FOR_EACH_SAMPLE[name])
    engine, optimizer = PrivacyEngine(accountant="rdp"), torch.optim.SGD(model.parameters(), lr=0.1)
    _private(engine, model, optimizer, check_rows=False)
    token = model.token
    for batch in (2, 5, 9):
        with pytest.raises(PrivacyError, match=r"'token'.*no per-sample rule|samples mix"):
            model(torch.randn(batch, 3, 6))
    assert model.token is token
    assert all(p.requires_grad for p in model.parameters())
    assert engine.get_epsilon(1e-5) == 0.0


def test_layers_that_begin_as_zeros_hide_nothing() -> None:
    torch.manual_seed(0)
    for use, fits in ((lambda x, token: x + token, True), (lambda x, token: x + token[0], False)):
        model = nn.Sequential(Beside(use), nn.Linear(5, 4))
        nn.init.zeros_(model[1].weight)
        whole = Whole(model)
        engine, optimizer = PrivacyEngine(), torch.optim.SGD(whole.parameters(), lr=0.1)
        _private(engine, whole, optimizer, check_rows=False)
        if fits:
            whole(torch.randn(9, 3, 6)).sum().backward()
            continue
        with pytest.raises(PrivacyError, match=r"no per-sample rule|samples mix"):
            whole(torch.randn(9, 3, 6))


class Whole(nn.Module):
    """The parameters of its parts, and one of its own."""

    def __init__(self, parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.last = parts, nn.Parameter(torch.zeros(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x) * self.last


def test_a_module_with_parameters_of_its_own_is_left_as_it_is() -> None:
    """Outside of training forwards nothing stands in for the parameters; after an error they are back."""
    torch.manual_seed(0)
    model = VisionTransformer()
    twin = copy.deepcopy(model)
    engine, optimizer = PrivacyEngine(accountant="rdp"), torch.optim.SGD(model.parameters(), lr=0.1)
    _private(engine, model, optimizer)
    x, y = data((9, 3, 8, 8), torch.float32)
    optimizer.zero_grad()
    random = torch.get_rng_state()
    out = model(x)
    assert torch.equal(random, torch.get_rng_state())
    torch.testing.assert_close(out, twin(x), rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == list(twin.state_dict())
    assert type(model.token) is nn.Parameter
    square_loss(out, y).mean().backward()
    with pytest.warns(UserWarning, match="did not come from the loader"):
        optimizer.step()
    assert not torch.equal(model.positions, twin.positions)
    assert not torch.equal(model.token, twin.token)
    with pytest.raises(RuntimeError):
        model(torch.randn(9, 4, 8, 8))
    assert type(model.token) is type(model.positions) is nn.Parameter
    model.eval()
    assert torch.autograd.grad(model(x).sum(), model.token)[0].shape == (1, 1, 8)
    with pytest.raises(PrivacyError, match="copy of a private model"):
        copy.deepcopy(model).train()(x)


def test_samples_are_looked_for_where_they_are() -> None:
    torch.manual_seed(0)
    model = Beside(lambda x, token: x + token)
    engine, optimizer = PrivacyEngine(), torch.optim.SGD(model.parameters(), lr=0.1)
    _private(engine, model, optimizer, batch_first=False, check_rows=False)
    with pytest.raises(PrivacyError, match=r"'token'.*dimension 0"):
        model(torch.randn(9, 3, 6))


@pytest.mark.filterwarnings("ignore:a step used a batch")
@pytest.mark.parametrize("kind", ["parameter", "embedding"])
def test_how_many_samples_there_are_is_of_this_call(kind: str) -> None:
    """As many copies as the model's last forward had samples would all be of one record, and be clipped one by one."""
    torch.manual_seed(0)
    inner = Beside(lambda x, token: x + token) if kind == "parameter" else Positioned((1, -1))
    x = torch.randn(9, 3, 6) if kind == "parameter" else torch.randint(0, 7, (9, 3))
    model = nn.Sequential(inner, nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _private(PrivacyEngine(), model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
    with pytest.raises(PrivacyError, match="how many there are cannot be seen"):
        inner(x[:1])


@pytest.mark.filterwarnings("ignore:a step used a batch")
@pytest.mark.parametrize(
    "make",
    [lambda: Scale(6), lambda: nn.Embedding(9, 2), lambda: Beside(lambda x, token: x + token)],
    ids=["own", "embedding", "copies"],
)
def test_a_second_backward_pass_through_a_graph_is_refused(make: Any) -> None:
    """Also after the step, which has changed the parameters."""
    model = nn.Sequential(make())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _private(PrivacyEngine(), model, optimizer)
    x = {Scale: torch.randn(9, 6), nn.Embedding: torch.randint(0, 9, (9, 3))}.get(type(model[0]), torch.randn(9, 3, 6))
    loss = model(x).square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(PrivacyError, match="second backward pass through the same graph"):
        loss.backward()
    with pytest.raises(PrivacyError):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:a step used a batch")
def test_parameters_changed_between_forward_and_backward_are_refused() -> None:
    model = nn.Sequential(Scale(6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _private(PrivacyEngine(), model, optimizer)
    loss = model(torch.randn(9, 6)).square().sum()
    with torch.no_grad():
        model[0].gamma.mul_(2.0)
    with pytest.raises(PrivacyError, match="parameter or buffer of Scale was changed in place"):
        loss.backward()
    with pytest.raises(PrivacyError):
        optimizer.step()


class Told(Scale):
    """Does what it is told by an attribute, a buffer, a module or what is in a container, which differ from call to call."""

    def __init__(self, how: str) -> None:
        super().__init__(6)
        self.how, self.number, self.options, self.steps = how, 1.0, {"number": 1.0}, [1.0]
        self.register_buffer("kept", torch.ones(1))
        self.inner = nn.Linear(6, 6, bias=False).requires_grad_(False)
        self.act: nn.Module = nn.Identity()

    def tell(self, number: float) -> None:
        if self.how == "a module":
            self.act = nn.Tanh() if number > 1.0 else nn.Softplus()
        elif self.how == "a number":
            self.number = number
        elif self.how == "a dict":
            self.options["number"] = number
        elif self.how == "a list":
            self.steps.append(number)
        elif self.how == "a buffer exchanged":
            self.kept = torch.full_like(self.kept, number)
        with torch.no_grad():
            if self.how == "a buffer in place":
                self.kept.fill_(number)
            elif self.how == "a frozen weight in place":
                self.inner.weight.fill_(number)

    def forward(self, x: Tensor) -> Tensor:
        number = self.kept * self.number * self.options["number"] * self.steps[-1]
        return torch.tanh(self.act(self.gamma * x) + number + self.inner(x))


class TellsTwice(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.told, self.last = Told(how), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros((), dtype=x.dtype)
        for number in (1.0, 3.0):
            self.told.tell(number)
            total = total + self.told(x)
        return self.last(total)


@pytest.mark.parametrize("how", ["a module", "a number", "a dict", "a list", "a buffer exchanged"])
def test_what_a_module_is_told_is_of_its_call(how: str) -> None:
    torch.manual_seed(0)
    model = TellsTwice(how).double()
    x, y = data((9, 6))
    expected, _ = loop_gradients(model, x, y, square_loss)
    del model.told.steps[1:]
    for got, right in zip(private_gradients(model, x, y, square_loss), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=0.0, atol=1e-10)
    assert model.told.steps in ([1.0], [1.0, *[1.0, 3.0] * 4])  # the check of rows, and the step


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_hook_tells_a_module(when: str) -> None:
    """A pre-hook from before make_private is done when the engine's takes down what the module is told."""
    torch.manual_seed(0)
    model = TellsTwice("nothing").double()

    def tell(module: Any, _args: Any) -> None:
        module.number = 2.0 - 0.5 * module.number

    x, y = data((9, 6))
    if when == "before":
        model.told.register_forward_pre_hook(tell)
        expected, _ = loop_gradients(model, x[:1], y[:1], square_loss)
        for got, right in zip(private_gradients(model, x[:1], y[:1], square_loss), expected, strict=True):
            torch.testing.assert_close(got, right, rtol=0.0, atol=1e-10)
        return
    _private(PrivacyEngine(), model, torch.optim.SGD(model.parameters(), lr=0.1))
    model.told.register_forward_pre_hook(tell)
    with pytest.raises(PrivacyError, match="'told' has no rule of its own, and a forward pre-hook was put on it after"):
        model(x)
    model.eval()(x)


@pytest.mark.filterwarnings("ignore:a step used a batch")
@pytest.mark.parametrize("how", ["a buffer in place", "a frozen weight in place"])
def test_what_is_written_to_between_two_calls_is_refused(how: str) -> None:
    torch.manual_seed(0)
    model = TellsTwice(how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _private(PrivacyEngine(), model, optimizer, check_rows=False)
    model(torch.randn(9, 6)).square().sum().backward()
    with pytest.raises(PrivacyError, match="parameter or buffer of Told was changed in place"):
        optimizer.step()


class ByName(Scale):
    """Another function for each name."""

    def forward(self, x: Tensor, name: str) -> Tensor:
        return self.gamma * x * (x.shape[0] if name == "batch" else 1)


@pytest.mark.filterwarnings("ignore:a step used a batch")
def test_every_choice_of_names_is_compared() -> None:
    torch.manual_seed(0)
    names = iter(["sample", "batch"])
    model = Calls(ByName(5), lambda f, x: f(x, next(names)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _private(PrivacyEngine(), model, optimizer, check_rows=False)
    model(torch.randn(9, 6)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(PrivacyError, match=r"ByName has no rule.*differ"):
        model(torch.randn(9, 6)).square().sum().backward()


class Recursive(Scale):
    """Calls itself."""

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = self.gamma * x.tanh()
        return self(x, depth - 1) if depth else x


class Around(nn.Module):
    """Calls itself, with a parameter beside all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.randn(1, 1, 6)), nn.Linear(6, 6)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        x = self.layer(x[:, None] + self.token)[:, 0]
        return self(x, depth - 1) if depth else x


@pytest.mark.parametrize("make", [lambda: Recursive(6), Around])
def test_a_module_inside_its_own_forward_is_refused(make: Any) -> None:
    """What it did before the inner call would be missing."""
    torch.manual_seed(0)
    model = nn.Sequential(make())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _private(PrivacyEngine(), model, optimizer)
    for _ in range(2):
        with pytest.raises(PrivacyError, match=r"'0' was called inside its own forward|copies of them"):
            model(torch.randn(9, 6))
    assert all(p.requires_grad for name, p in model.named_parameters() if name != "0.shift")
    model.eval()(torch.randn(9, 6))


def test_what_is_saved_after_an_interrupt_is_the_parameter() -> None:
    torch.manual_seed(0)

    def interrupt(x: Tensor, token: Tensor) -> Tensor:
        if len(token) > 1:
            raise KeyboardInterrupt
        return x + token

    model = nn.Sequential(Beside(lambda x, token: x + token))
    _private(PrivacyEngine(), model, torch.optim.SGD(model.parameters(), lr=0.1), check_rows=False)
    model(torch.randn(9, 3, 6))
    model[0].use = interrupt
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(9, 3, 6))
    assert model.state_dict()["0.token"].shape == (1, 3, 5)
    assert type(model[0].token) is nn.Parameter


@pytest.mark.filterwarnings("ignore")  # of torch.compile, too
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(6, 5), lambda: Scale(6), lambda: Beside(lambda x, token: x + token)]
)
def test_a_compiled_model_is_looked_at_first(make: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), make())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine()
    _private(engine, model, optimizer)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for batch in (5, 3, 5):
        optimizer.zero_grad()
        compiled(torch.randn(batch, 3, 6)).sum().backward()
        optimizer.step()
    assert engine.info()[0]["check_rows"] == "passed"


@pytest.mark.parametrize("shape", [(-1,), (1, -1)])
def test_positions_of_all_samples_in_batches_of_any_size(shape: tuple[int, ...]) -> None:
    """From one sample on, and where there are as many samples as positions."""
    torch.manual_seed(0)
    model = Positioned(shape).double()
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no noise; a batch of our own
        _private(PrivacyEngine(), model, optimizer, noise_multiplier=0.0, max_grad_norm=CLIP, loss_reduction="sum")
        for batch in (1, 2, 5, 3, 0, 4, 1):
            x = torch.randint(0, 11, (batch, 5))
            optimizer.zero_grad()
            _losses(model(x), x).sum().backward()
            optimizer.step()
            found = [p.grad.clone() for p in model.parameters()]
            expected, _ = loop_gradients(plain, x, x, _losses)
            for got, right in zip(found, expected, strict=True):
                torch.testing.assert_close(got, right, rtol=0.0, atol=1e-10)


def _losses(output: Tensor, x: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.transpose(1, 2), x, reduction="none").mean(1) * x.double().mean(1)
