"""Forward and backward passes that go past the engine's hooks: refused, not made steps of noise alone. What a loop may do
beside its private steps goes on."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from torch import Tensor, nn
from torch.nn import functional

from aisec_fast import PrivacyError
from aisec_fast.audit import GradientCanaries
from aisec_fast.privacy import PrivacyEngine, _recording

from .test_privacy import private, small_loader, train

Batch = tuple[Tensor, Tensor]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))


def loss(model: Any, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def full(batches: Iterator[Batch]) -> Batch:
    """The next batch with records."""
    return next(batch for batch in batches if len(batch[0]))


def plain_gradients(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The un-noised gradients of the model's parameters, by a copy of it."""

    def of(parameters: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(torch.func.functional_call(network(), parameters, batch[0]), batch[1])

    return list(torch.func.grad(of)(dict(model.named_parameters())).values())


def with_the_same_parameters(model: nn.Module) -> nn.Sequential:
    twin = network()
    for i in (1, 3):
        twin[i].weight, twin[i].bias = model[i].weight, model[i].bias  # type: ignore[index]
    return twin


# ------------------------------------------------------------------------- what only the step itself can notice


def _nothing(model: Any, optimizer: Any, batch: Batch) -> None:
    """A recording of the user's is replayed: no Python runs, no hook is called."""


def _forgotten(model: Any, optimizer: Any, batch: Batch) -> None:
    loss(model, batch).backward()
    optimizer.zero_grad()


def _without_gradients(model: Any, optimizer: Any, batch: Batch) -> None:
    with torch.no_grad():
        loss(model, batch)


def _functions_of_torch(model: Any, optimizer: Any, batch: Batch) -> None:
    plain_gradients(model, batch)


def _assigned(model: Any, optimizer: Any, batch: Batch) -> None:
    for parameter, gradient in zip(model.parameters(), plain_gradients(model, batch), strict=True):
        parameter.grad = gradient


def _assigned_beside(model: Any, optimizer: Any, batch: Batch) -> None:
    """Of one parameter, after a private pass."""
    loss(model, batch).backward()
    model[3].bias.grad = plain_gradients(model, batch)[3]


def _without_guards(model: Any, optimizer: Any, batch: Batch) -> None:
    """Parameters are swapped for others, which takes torch's hooks along, and used directly."""
    for parameter in model.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().clone()))
    loss(with_the_same_parameters(model), batch).backward()


def _a_layer_without_hooks(model: Any, optimizer: Any, batch: Batch) -> None:
    model[3]._forward_pre_hooks.clear()
    model[3]._forward_hooks.clear()
    for parameter in model[3].parameters():
        parameter._post_accumulate_grad_hooks.clear()
    loss(model, batch).backward()


ALONE, WRITTEN, IN_PLACE = (
    "this step would be noise alone",
    r"\.grad of parameter '.*' was written",
    "was changed in place",
)


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("poisson", [True, False])
@pytest.mark.parametrize(
    ("way", "match"),
    [(_nothing, ALONE), (_forgotten, ALONE), (_without_gradients, ALONE), (_functions_of_torch, ALONE),
     (_assigned, WRITTEN), (_assigned_beside, WRITTEN), (_without_guards, WRITTEN), (_a_layer_without_hooks, WRITTEN)],
)  # fmt: skip
def test_the_step_notices(way: Callable[[Any, Any, Batch], None], match: str, poisson: bool, memory: str) -> None:
    engine = PrivacyEngine(accountant="rdp", memory=memory)
    engine, model, optimizer, loader = private(network(), engine=engine, poisson_sampling=poisson)
    batches = iter(loader)
    train(model, optimizer, [full(batches)])
    batch = full(batches)
    optimizer.zero_grad()
    way(model, optimizer, batch)
    before, spent = copy.deepcopy(model.state_dict()), engine._ledger.spent.copy()
    for _ in range(2):
        with pytest.raises(PrivacyError, match=match):
            optimizer.step()
    assert engine._ledger.spent == spent
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    if way is not _a_layer_without_hooks:
        assert train(model, optimizer, [batch]) == 1  # zero_grad clears the failure; the batch is still the loader's
        assert set(engine._ledger.spent) == set(spent)


def test_no_batch_and_no_backward() -> None:
    """A second step for one batch, or one before the first."""
    engine, model, optimizer, loader = private(network())
    with pytest.raises(PrivacyError, match=ALONE):
        optimizer.step()
    train(model, optimizer, [full(iter(loader))])
    with pytest.raises(PrivacyError, match=ALONE):
        optimizer.step()
    assert engine._ledger.spent.total() == 1


def test_a_part_without_a_backward() -> None:
    """It can be made good."""
    engine, model, optimizer, loader = private(network(), max_physical_batch_size=3, poisson_sampling=False)
    for batch in loader:
        optimizer.zero_grad()
        with pytest.raises(PrivacyError, match=ALONE):
            optimizer.step()
        train(model, optimizer, [batch])
    assert engine._ledger.spent.total() == 1


def test_gradients_changed_in_place() -> None:
    """The last step's, which are still there: they are not this step's."""
    for memory in ("fast", "low"):
        _, model, optimizer, loader = private(network(), engine=PrivacyEngine(accountant="rdp", memory=memory))
        batches = iter(loader)
        train(model, optimizer, [full(batches)])
        loss(model, full(batches)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        with pytest.raises(PrivacyError, match=IN_PLACE):
            optimizer.step()


def test_gradients_from_before_make_private() -> None:
    """A recording of forward and backward from then goes on writing to them."""
    model = network()
    model(torch.ones(2, 36)).sum().backward()
    _, model, optimizer, loader = private(model)
    loss(model, full(iter(loader))).backward()
    with pytest.raises(PrivacyError, match=WRITTEN):
        optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("when", ["before make_private", "in the pass"])
def test_gradients_of_frozen_parameters(kind: Any, when: str) -> None:
    """The optimizer holds them, and would take them as they are."""
    model = network()
    if when == "before make_private":
        model(torch.ones(2, 36)).sum().backward()
        model[1].zero_grad()
    model[3].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer = kind(model.parameters(), lr=1.0)
    engine, model, optimizer, loader = private(model, optimizer=optimizer)
    batch = full(iter(loader))
    model[3].requires_grad_(when == "in the pass")
    loss(model, batch).backward()
    model[3].requires_grad_(False)
    with pytest.raises(PrivacyError, match=r"frozen parameter '3\.weight' has a \.grad"):
        optimizer.step()
    assert engine.get_epsilon(1e-5) == 0.0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    optimizer.zero_grad()
    train(model, optimizer, [batch])
    assert torch.equal(before["3.weight"], model[3].weight)


# ------------------------------------------------------------------------------ what is noticed in backward passes


class Replayed(torch.autograd.Function):
    """As torch.cuda.make_graphed_callables makes one: parameters are arguments, gradients come from a recording."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.shapes = [parameter.shape for parameter in parameters]
        return x.flatten(1)[:, :4].clone()

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> Any:
        return None, *[torch.ones(shape) for shape in ctx.shapes]


def _graphed_before(model: Any, x: Tensor) -> Any:
    return lambda x: Replayed.apply(x, *model.parameters())


def _twin(model: Any, x: Tensor) -> Any:
    return with_the_same_parameters(model)


def _compiled_twin(model: Any, x: Tensor) -> Any:
    torch._dynamo.reset()
    return torch.compile(with_the_same_parameters(model), backend="eager")


def _traced(model: Any, x: Tensor) -> Any:
    with torch.no_grad():
        return torch.jit.trace(model, x)


def _functional(model: Any, x: Tensor) -> Any:
    return lambda x: torch.func.functional_call(network(), dict(model.named_parameters()), x)


def _forwards_alone(model: Any, x: Tensor) -> Any:
    def call(x: Tensor) -> Tensor:
        for layer in model:
            x = layer.forward(x)
        return x

    return call


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("made", [_graphed_before, _twin, _compiled_twin, _traced, _functional, _forwards_alone])
def test_the_backward_pass_notices(made: Callable[[Any, Tensor], Any]) -> None:
    engine, model, optimizer, loader = private(network())
    batch = full(iter(loader))
    call = made(model, batch[0])
    with pytest.raises(PrivacyError, match="received a gradient outside its layer's training forward"):
        loss(call, batch).backward()
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(PrivacyError, match="this step cannot be private"):
        optimizer.step()
    assert not engine._ledger.spent
    assert train(model, optimizer, [batch]) == 1


def test_replicas() -> None:
    """As DataParallel makes them on several GPUs."""
    _, model, _, _ = private(network())
    replica = model[1]._replicate_for_data_parallel()
    replica.weight, replica.bias = (parameter.view_as(parameter) for parameter in model[1].parameters())
    with pytest.raises(PrivacyError, match=r"a replica of DataParallel's"):
        replica(torch.ones(2, 36))
    with torch.no_grad():
        replica(torch.ones(2, 36))


def test_recordings_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine sees in a recording of forward or backward it would not see in its replays."""
    engine, model, optimizer, loader = private(network())
    batch = full(iter(loader))

    def captured(is_captured: bool) -> None:
        monkeypatch.setattr(_recording, "_is_captured", lambda _values: is_captured)

    def refused(record: Callable[[], object]) -> None:
        captured(True)
        with pytest.raises(PrivacyError, match="cannot train inside a CUDA graph"):
            record()
        captured(False)
        with pytest.raises(PrivacyError, match="this step cannot be private"):
            optimizer.step()
        assert train(model, optimizer, [batch]) == 1

    refused(lambda: loss(model, batch))
    batch = full(iter(loader))
    refused(loss(model, batch).backward)
    captured(True)
    with torch.no_grad():
        model(batch[0])
    model.eval()(batch[0])
    assert engine._ledger.spent.total() == 2


# ------------------------------------------------------------------------------------------- what may go on


def empty_and_full(loader: Any) -> tuple[list[Batch], list[Batch]]:
    """A pass that has both, its batches in order."""
    while True:
        batches = list(loader)
        if not len(batches[-1][0]) and any(len(x) for x, _ in batches):
            return [b for b in batches if not len(b[0])], [b for b in batches if len(b[0])]


def test_empty_batches_need_no_pass() -> None:
    """The loader knows that they are empty, also where others were left out, which keep their place."""
    engine, model, optimizer, loader = private(network(), loader=small_loader(8, 1))
    empty, others = empty_and_full(loader)
    for _ in empty:
        optimizer.zero_grad()
        optimizer.step()
    assert model[1].weight.grad.any()
    with pytest.raises(PrivacyError, match=ALONE):
        optimizer.step()
    train(model, optimizer, others)
    assert set(engine._ledger.spent) == {(1.0, 1 / 8)}


def test_a_batch_whose_samples_the_loop_dropped() -> None:
    """The model has run, on no rows."""
    engine, model, optimizer, loader = private(network())
    x, _ = full(iter(loader))
    optimizer.zero_grad()
    model(x[:0])
    optimizer.step()
    assert engine._ledger.spent == {(1.0, 0.2): 1}


def test_batches_without_a_step() -> None:
    engine, model, optimizer, loader = private(network())
    for count, batch in enumerate(loader):
        optimizer.zero_grad()
        loss(model, batch).backward()
        if count % 2:
            optimizer.step()
    assert engine._ledger.spent == {(1.0, 0.2): 2}


class InPlace(torch.optim.SGD):
    """An optimizer that changes the gradients on its way."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.sub_(parameter.grad.mean())
        super().step(closure)


def test_an_optimizer_made_from_another() -> None:
    """torch calls its hooks again when it calls the other's step: one release, one booking, one update."""

    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            super().step(closure)

    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # from now on torch calls hooks there
    model = network()
    engine, model, optimizer, loader = private(model, optimizer=Twice(model.parameters(), lr=0.1))
    canaries = GradientCanaries(optimizer, count=20)
    for batch in loader:
        before = [p.detach().clone() for p in model.parameters()]
        train(model, optimizer, [batch])
        for old, new in zip(before, model.parameters(), strict=True):
            torch.testing.assert_close(old - 0.2 * new.grad, new.detach())
    assert engine._ledger.spent == {(1.0, 0.2): 5}
    assert canaries.steps == 5
    with pytest.raises(PrivacyError, match=ALONE):
        optimizer.step()


def test_an_optimizer_that_fails() -> None:
    """The step after it is one of its own, also without zero_grad in between."""

    class Failing(torch.optim.SGD):
        fails = True

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            if self.fails:
                raise MemoryError
            super().step(closure)

    model = network()
    engine, model, optimizer, loader = private(model, optimizer=Failing(model.parameters(), lr=0.1))
    batches = iter(loader)
    loss(model, full(batches)).backward()
    with pytest.raises(MemoryError):
        optimizer.step()
    with pytest.raises(PrivacyError, match=ALONE):
        optimizer.step()
    optimizer.fails = False
    before = [p.grad for p in model.parameters()]
    loss(model, full(batches)).backward()
    optimizer.step()
    assert engine._ledger.spent == {(1.0, 0.2): 2}
    assert not any(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


def _with_zeros(model: Any, optimizer: Any) -> None:
    optimizer.zero_grad(set_to_none=False)


def _with_zeros_of_the_modules(model: Any, optimizer: Any) -> None:
    model.zero_grad(set_to_none=False)
    optimizer.zero_grad = lambda: None


def _with_own_zeros(model: Any, optimizer: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def _never(model: Any, optimizer: Any) -> None:
    """Each step replaces the gradients."""


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad, InPlace])
@pytest.mark.parametrize("between", [_with_zeros, _with_zeros_of_the_modules, _with_own_zeros, _never])
def test_gradients_that_a_loop_leaves(between: Callable[[Any, Any], None], kind: Any, memory: str) -> None:
    model = network()
    engine = PrivacyEngine(accountant="rdp", memory=memory)
    optimizer = kind(model.parameters(), lr=0.1)
    _, model, optimizer, loader = private(model, optimizer=optimizer, engine=engine)
    for batch in loader:
        between(model, optimizer)
        loss(model, batch).backward()
        optimizer.step()
    assert engine._ledger.spent == {(1.0, 0.2): 5}


@pytest.mark.parametrize("swaps", [False, True])
def test_a_module_that_is_converted_between_steps(swaps: bool) -> None:
    """Its gradients are converted with it."""
    _, model, optimizer, loader = private(network())
    batches = iter(loader)
    train(model, optimizer, [full(batches)])
    torch.__future__.set_swap_module_params_on_conversion(swaps)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    x, y = full(batches)
    loss(model, (x.double(), y)).backward()
    optimizer.step()
    assert model[1].weight.grad.dtype == torch.float64


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("memory", ["fast", "low"])
def test_memory_of_gradients_is_let_go(kind: Any, memory: str) -> None:
    """By zero_grad; of a fused step with memory="fast" it is the next step's."""
    model = network()
    engine = PrivacyEngine(accountant="rdp", memory=memory)
    _, model, optimizer, loader = private(model, optimizer=kind(model.parameters(), lr=0.1), engine=engine)
    batches = iter(loader)
    train(model, optimizer, [full(batches)])
    gradient, address = weakref.ref(model[1].weight.grad), model[1].weight.grad.data_ptr()
    if memory == "low":
        model.zero_grad()
    else:
        optimizer.zero_grad()
    is_held = memory == "fast" and kind is torch.optim.SGD
    assert (gradient() is not None) == is_held
    for _ in range(2 * is_held):  # also without zero_grad
        loss(model, full(batches)).backward()
        optimizer.step()
        assert model[1].weight.grad.data_ptr() == address


def test_what_else_goes_on_between_steps() -> None:
    """Evaluation, passes without gradients, gradients of what is frozen, steps in inference mode."""
    model = nn.Sequential(network(), nn.Linear(4, 4).requires_grad_(False))
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    engine, model, optimizer, loader = private(model, optimizer=optimizer)
    for batch in loader:
        with torch.no_grad():
            model(batch[0])
        optimizer.zero_grad()
        loss(model, batch).backward()
        model[1].weight.grad = torch.ones(4, 4)
        with torch.inference_mode():
            model.eval()(batch[0])
            optimizer.step()
        model.train()
    assert engine._ledger.spent == {(1.0, 0.2): 5}
    assert torch.equal(model[1].weight.grad, torch.ones(4, 4))
