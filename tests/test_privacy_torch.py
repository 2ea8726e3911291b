"""What torch allows to be done around a private model: right up to rounding, or refused with a reason. With forms of layers
(privacy/_forms) and without."""

from __future__ import annotations

import copy
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as everybodys
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from aisec_fast import PrivacyError, noise
from aisec_fast.privacy import PrivacyEngine, _forms
from tests.test_privacy_forms import random, taken

pytestmark = pytest.mark.filterwarnings("ignore:a step used a batch that did not come from the loader")
BOUND = 0.3
X, Y = random(5, 3, 8, 8), torch.arange(5)


@pytest.fixture(params=["fast", "torch"])
def layers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_forms, "_has_slow_mkl", lambda: True)
    return str(request.param)


class Net(nn.Module):
    """Layers of each form, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.square = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, 16)
        self.steps = nn.Conv2d(16, 32, 3, 2, padding=1)
        self.wide = nn.Linear(512, 256)
        self.last = nn.Linear(256, 10)

    def begin(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.square(functional.relu(self.first(x)))))

    def end(self, x: Tensor) -> Tensor:
        x = functional.relu(self.steps(x), inplace=True)
        return self.last(functional.relu(self.wide(x.flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.begin(x))


def losses(out: Tensor) -> Tensor:
    return functional.cross_entropy(out, Y[: len(out)], reduction="none")


def cosines(out: Tensor) -> Tensor:
    return torch.cos(out).flatten(1).sum(1)


def truth(model: nn.Module, x: Tensor, losses: Callable[[Tensor], Tensor] = losses) -> list[Tensor]:
    """The clipped sum of a loop over the samples, in float64."""
    model = copy.deepcopy(model).double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in parameters]
    for i in range(len(x)):
        with torch.random.fork_rng():
            loss = losses(model(x.double())).select(0, i)
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient * min(1.0, BOUND / norm)
    return sums


def private(model: nn.Module, layers: str, **options: Any) -> Any:
    """An optimizer that leaves the clipped sum in ``.grad``."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PrivacyEngine(layers=layers).make_private(
            module=model, optimizer=optimizer, data_loader=DataLoader(TensorDataset(torch.zeros(5)), batch_size=5),
            noise_multiplier=0, max_grad_norm=BOUND, poisson_sampling=False, loss_reduction="sum", check_rows=False,
            source=noise.SeededSource(1), **options,
        )  # fmt: skip
    return optimizer


def step(
    model: nn.Module, optimizer: Any, x: Tensor, call: Any = None, losses: Callable[[Tensor], Tensor] = losses
) -> list[Tensor]:
    optimizer.zero_grad()
    losses((model if call is None else call)(x)).sum().backward()
    optimizer.step()
    return [p.grad for p in model.parameters() if p.grad is not None]


def same(found: list[Tensor], expected: list[Tensor], relative: float = 2e-5) -> None:
    assert len(found) == len(expected)
    for one, exact in zip(found, expected, strict=True):
        assert (one - exact).norm() <= relative * exact.norm()


# ------------------------------------------------------------------------------------------ changes to parameters


def _prune(model: Net) -> None:
    prune.l1_unstructured(model.square, "weight", 0.5)


def _normed(model: Net) -> None:
    parametrizations.spectral_norm(model.square)


def _old_normed(model: Net) -> None:
    nn.utils.spectral_norm(model.square)


def _frozen(model: Net) -> None:
    model.square.requires_grad_(False)


def _assigned(model: Net) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


def _retyped(model: Net) -> None:
    model.wide.__class__ = type("Other", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("change", [_prune, _normed, _old_normed, _frozen, _assigned, _retyped])
def test_changed_layers_do_not_train(change: Any, steps: int, layers: str) -> None:
    """The recorded gradient would be another one than that of the parameter; a frozen one would be trained."""
    model = Net()
    optimizer = private(model, layers)
    for _ in range(steps):
        step(model, optimizer, X)
    change(model)
    optimizer.zero_grad()
    with torch.no_grad():
        model(X)
    model.eval()(X)
    with pytest.raises(PrivacyError, match="since make_private"):
        model.train()(X)


def test_a_discriminator_may_be_frozen_while_its_generator_trains(layers: str) -> None:
    model, generator = Net(), nn.Conv2d(3, 3, 3, padding=1)
    expected, plain = truth(Net(), X), losses(Net()(generator(X))).sum()
    gradient = torch.autograd.grad(plain, generator.weight)
    optimizer = private(model, layers)
    for _ in range(2):
        same(step(model, optimizer, X), expected)
        model.requires_grad_(False)
        generator.zero_grad()
        losses(model(generator(X))).sum().backward()
        assert not any(p.requires_grad for p in model.parameters())
        same([generator.weight.grad], list(gradient))
        with pytest.raises(PrivacyError, match="since make_private"):
            optimizer.step()
        model.requires_grad_(True)


def test_what_is_frozen_before_the_first_step_is_noticed(layers: str) -> None:
    model = Net()
    optimizer = private(model, layers)
    loss = losses(model(X)).sum()
    model.requires_grad_(False)
    loss.backward()
    with pytest.raises(PrivacyError, match="since make_private"):
        optimizer.step()


def test_functional_call(layers: str) -> None:
    """With the model's own parameters it is a call like others."""
    model, expected = Net(), truth(Net(), X)
    optimizer = private(model, layers)
    own = dict(model.named_parameters())
    others = {name: value.detach().clone().requires_grad_() for name, value in own.items()}
    same(step(model, optimizer, X, lambda x: torch.func.functional_call(model, own, x)), expected)
    with pytest.raises(PrivacyError, match="replaced since make_private"):
        torch.func.functional_call(model, others, X)
    with torch.no_grad():
        torch.func.functional_call(model, others, X)
    same(step(model, optimizer, X), expected)


def test_other_dtypes_after_make_private(layers: str) -> None:
    model, expected = Net(), truth(Net(), X)
    optimizer = private(model, layers)
    same(step(model.double(), optimizer, X.double()), expected)
    model.bfloat16()
    with pytest.raises(PrivacyError, match=r"are torch\.bfloat16 now; float32 or float64 is needed"):
        step(model, optimizer, X.bfloat16())


# ------------------------------------------------------------------------------------------------- ways to call


class Checkpointed(Net):
    """Two parts that are computed again."""

    reentrant = keeps = False

    def forward(self, x: Tensor) -> Tensor:
        options = {"use_reentrant": self.reentrant, "preserve_rng_state": self.keeps}
        return checkpoint(self.end, checkpoint(self.begin, x, **options), **options)


@pytest.mark.parametrize("keeps", [False, True])
def test_checkpoints(keeps: bool, layers: str) -> None:
    model, expected = Checkpointed(), truth(Net(), X)
    model.keeps = keeps
    optimizer = private(model, layers)
    same(step(model, optimizer, X), expected)
    model.reentrant = True
    with pytest.raises(PrivacyError, match="use_reentrant=False"):
        step(model, optimizer, X.clone().requires_grad_())


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_in_one_checkpoint(reentrant: bool, layers: str) -> None:
    model, expected = Net(), truth(Net(), X)
    optimizer = private(model, layers)
    inputs = X.clone().requires_grad_()
    same(step(model, optimizer, inputs, lambda x: checkpoint(model, x, use_reentrant=reentrant)), expected)


def test_torch_func_is_refused(layers: str) -> None:
    model, expected = Net(), truth(Net(), X)
    optimizer = private(model, layers)
    for call in (
        torch.vmap(lambda x: model(x[None])[0]),
        torch.func.jacrev(model),
        torch.func.grad(lambda x: model(x).sum()),
    ):
        with pytest.raises(PrivacyError, match=r"cannot run inside torch\.func"):
            call(X)
    model.eval()
    assert torch.func.jacrev(model)(X[:1]).shape == (1, 10, 1, 3, 8, 8)
    same(step(model.train(), optimizer, X), expected)


def test_batched_gradients_are_refused(layers: str) -> None:
    for gradients in (random(4, 5, 10), random(4, 10)[:, None].expand(4, 5, 10)):
        model = Net()
        optimizer = private(model, layers)
        x = X.clone().requires_grad_()
        out = model(x)
        with pytest.raises(PrivacyError, match="several gradients at a time"):
            torch.autograd.grad(out, x, gradients, is_grads_batched=True)
        with pytest.raises(PrivacyError, match="this step cannot be private"):
            optimizer.step()


def test_steps_without_gradients(layers: str) -> None:
    """backward(inputs=parameters) reaches none of them: noise alone would be added. An empty batch may have no backward."""
    model = Net()
    optimizer = private(model, layers)
    losses(model(X)).sum().backward(inputs=list(model.parameters()))
    with pytest.raises(PrivacyError, match="no gradient has come back"):
        optimizer.step()
    optimizer.zero_grad()
    model(X[:0])
    optimizer.step()
    assert not any(p.grad.any() for p in model.parameters())


@pytest.mark.filterwarnings("ignore")  # torch says what of the hooks it does not compile
@pytest.mark.parametrize(("when", "limit"), [("before", 8), ("before", 1), ("after", 8)])
def test_compiled_models(when: str, limit: int, layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch compiles what is between layers; forms are left out, also where it gives up after so many shapes or layers."""
    torch._dynamo.reset()
    model, expected = Net(), truth(Net(), X)
    compiled = torch.compile(model, backend="eager")
    optimizer = private(compiled if when == "before" else model, layers)
    calls = taken(monkeypatch)
    with torch._dynamo.config.patch(recompile_limit=limit):
        same(step(model, optimizer, X, compiled), expected)
        same(step(model, optimizer, X[:3], compiled), truth(Net(), X[:3]))
    assert not calls


def test_what_was_compiled_before_is_refused(layers: str) -> None:
    torch._dynamo.reset()
    model = Net()
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    optimizer = private(model, layers)
    with pytest.raises(PrivacyError, match="compiled, traced or exported before make_private"):
        step(model, optimizer, X, compiled)
    assert all(p.grad is None for p in model.parameters())


# ------------------------------------------------------------------------------------------- hooks and interrupts


@pytest.fixture
def hook_of_all() -> Iterator[list[Any]]:
    """Functions (module, inputs, output) that torch calls for every module."""
    functions: list[Any] = []

    def call(*arguments: Any) -> Any:
        for one in functions:
            return one(*arguments)
        return None

    handle = everybodys.register_module_forward_hook(call)
    yield functions
    handle.remove()


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("of_all", [False, True])
def test_hooks_that_come_first(of_all: bool, in_place: bool, layers: str, hook_of_all: list[Any]) -> None:
    """Outputs are recorded as the layer made them, whatever hooks make of them before other hooks are called."""

    def scaled(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if type(module) not in (nn.Conv2d, nn.Linear):
            return None
        return output.mul_(3.0) if in_place else output * 3.0

    model, plain = Net(), Net()
    optimizer = private(model, layers)
    if of_all:
        hook_of_all.append(scaled)
    else:
        for one in (*model.children(), *plain.children()):
            one.register_forward_hook(scaled, prepend=True)
    expected = truth(plain, X)
    for _ in range(2):
        same(step(model, optimizer, X), expected)
    assert len(everybodys._global_forward_hooks) == 1
    assert not everybodys._global_forward_hooks_with_kwargs


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("of_all", [False, True])
def test_errors_in_the_middle_of_a_forward(
    of_all: bool, before: bool, error: type[BaseException], layers: str, hook_of_all: list[Any]
) -> None:
    """The next forward is right. torch calls no hook after a KeyboardInterrupt."""
    model, expected = Net(), truth(Net(), X)
    optimizer = private(model, layers)
    for name in ("first", "square", "norm", "wide"):
        layer = getattr(model, name)

        def raises(module: nn.Module, *_rest: Any, layer: nn.Module = layer) -> None:
            if module is layer:
                raise error

        register = layer.register_forward_pre_hook if before else layer.register_forward_hook
        if of_all:
            hook_of_all.append(raises)
        else:
            handle = register(raises)
        with pytest.raises(error):
            model(X)
        hook_of_all.clear()
        if not of_all:
            handle.remove()
        if name == "square":
            with torch.no_grad():
                model(X)
        copy.deepcopy(model).eval()(X)
        same(step(model, optimizer, X), expected)
        assert len(everybodys._global_forward_hooks) == 1
        assert not any({"forward", "_conv_forward"} & vars(one).keys() for one in model.modules())


# ------------------------------------------------------------------------------------------------------ threads


def run(*functions: Callable[[], None]) -> None:
    """All at once; the first error is raised."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_another_thread_may_evaluate(layers: str) -> None:
    model, expected = Net(), truth(Net(), X)
    optimizer = private(model, layers)
    trained = threading.Event()

    def train() -> None:
        try:
            for _ in range(30):
                same(step(model, optimizer, X), expected)
        finally:
            trained.set()

    def evaluate() -> None:
        with torch.no_grad():
            while not trained.is_set():
                model(X)

    run(train, evaluate)


def test_evaluation_at_the_same_time(layers: str) -> None:
    """The same, with every layer evaluated by the other thread just while its training forward runs."""
    model, expected = Net(), truth(Net(), X)
    optimizer = private(model, layers)

    def evaluate(module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled():
            with torch.no_grad():
                run(torch.no_grad()(lambda: module(*inputs)))

    for layer in model.children():
        layer.register_forward_pre_hook(evaluate)
    same(step(model, optimizer, X), expected)


def test_one_model_is_not_trained_by_two_threads(layers: str) -> None:
    model, expected = Net(), truth(Net(), X)
    optimizer = private(model, layers)

    def also_train(_module: nn.Module, inputs: Any) -> None:
        with pytest.raises(PrivacyError, match="'wide' is at work in another thread"):
            run(lambda: model.wide(*inputs))

    handle = model.wide.register_forward_pre_hook(also_train)
    same(step(model, optimizer, X), expected)
    handle.remove()


def test_two_models_in_two_threads(layers: str) -> None:
    inputs = [random(5, 3, 8, 8, seed=seed) for seed in (1, 2)]
    models, expected = [Net(), Net()], [truth(Net(), x) for x in inputs]
    optimizers = [private(model, layers) for model in models]

    def train(i: int) -> None:
        for _ in range(20):
            same(step(models[i], optimizers[i], inputs[i]), expected[i])

    run(lambda: train(0), lambda: train(1))


# ------------------------------------------------------------------------------------- arrays and geometry


def test_tensors_whose_memory_says_something_else(layers: str) -> None:
    """torch keeps the sign of some tensors beside them, and makes no memory for some zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Linear(8, 8))
    x = random(5, 16, 8, 8)
    expected = {case: truth(model, value, cosines) for case, value in (("sign", -x), ("zero", 0 * x))}
    optimizer = private(model, layers)
    for given, case in ((torch._neg_view(x), "sign"), (torch._efficientzerotensor(x.shape), "zero")):
        same(step(model, optimizer, given, losses=cosines), expected[case])
    out = model(-x)
    (gradient,) = torch.autograd.grad(cosines(out).sum(), out, retain_graph=True)
    for given in (torch._neg_view(-gradient), torch._efficientzerotensor(gradient.shape)):
        optimizer.zero_grad()
        model(-x).backward(given)
        optimizer.step()
        found = [p.grad for p in model.parameters()]
        if given._is_zerotensor():
            assert not any(one.any() for one in found)
        else:
            same(found, expected["sign"])


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize(
    "change", [{"stride": (2,)}, {"padding": (1,)}, {"dilation": (2,)}, {"stride": 2}, {"stride": [2]}]
)
def test_one_number_for_all_dimensions(change: dict[str, Any], memory: str, layers: str) -> None:
    for make, shape in ((nn.Conv2d, (5, 16, 9, 9)), (nn.Conv3d, (5, 16, 5, 5, 5))):
        torch.manual_seed(0)
        model = nn.Sequential(nn.GroupNorm(1, 16), make(16, 16, 3, 2, padding=1))
        for name, value in change.items():
            setattr(model[1], name, value)
            expected = truth(model, random(*shape), cosines)
        optimizer = private(model, layers)
        same(step(model, optimizer, random(*shape), losses=cosines), expected)


def test_other_defaults(layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = Net(), truth(Net(), X)
    optimizer = private(model, layers)
    calls = taken(monkeypatch)
    torch.set_default_dtype(torch.float64)
    try:
        same(step(model, optimizer, X), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    whole = len(calls)
    assert bool(whole) == (layers == "fast")
    torch.set_default_device("cpu")
    try:
        same(step(model, optimizer, X), expected)
    finally:
        torch.set_default_device(None)
    assert len(calls) == 2 * whole
