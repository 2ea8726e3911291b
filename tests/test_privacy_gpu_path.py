"""The forms that private steps take on a GPU, here on the CPU: gradients as those of a loop over samples, and how many
operations they are.

On a GPU a small operation takes as long as its launch, so that their number is what a step costs. It is the same on any
machine, and so are the bounds below.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from aisec_fast import clipping
from aisec_fast._cuda_graphs import GraphError, recordable
from aisec_fast.cli.bench import _models, _training
from aisec_fast.privacy import _layers, _native, _rules, _together
from aisec_fast.privacy._clip import KAPPA, LEAST_WEIGHT, Batch, Norms, clip, weights_of
from aisec_fast.privacy._coverage import CoveredLayer
from aisec_fast.privacy._layers import LayerGradients
from aisec_fast.privacy._recording import Recorder, Use
from aisec_fast.privacy._step import Sums
from tests.test_privacy_layers import LAYERS, MODELS, LossOf, check, data, model_case, private_gradients, square_loss

pytestmark = pytest.mark.usefixtures("gpu_path")


@pytest.fixture
def gpu_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "on_gpu", lambda _values: True)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with sums of blocks of two samples, the ninth alone, of gradients that are not kept."""
    if blocks:
        monkeypatch.setattr(_layers, "KEEP_FACTOR", 0)
        monkeypatch.setattr(_layers, "block_size", lambda _terms, _dtype, *, alone: 2)
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    check(make().double(), *data(shape), square_loss)


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("name", MODELS)
def test_model(name: str, memory: str) -> None:
    check(*model_case(name, torch.float64), memory=memory)
    check(*model_case(name, torch.float32), memory=memory, tolerance=3e-4)


@pytest.mark.parametrize("name", MODELS)
def test_model_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layers, "CHUNK_ELEMENTS", 200)
    check(*model_case(name, torch.float64))


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_batch(name: str) -> None:
    model, x, y, loss_of = model_case(name, torch.float32)
    for gradient in private_gradients(model, x[:0], y[:0], loss_of, reduction="sum"):
        assert not gradient.any()


@pytest.mark.parametrize("name", ["mlp", "transformer", "resnet"])
def test_a_sample_whose_loss_is_nan_counts_as_zero(name: str) -> None:
    model, x, y, loss_of = model_case(name, torch.float64)

    def poisoned(output: Tensor, y: Tensor) -> Tensor:
        return loss_of(output, y) * torch.tensor([1.0] * 4 + [math.nan] + [1.0] * 4)[: len(y)]

    without = [i for i in range(len(x)) if i != 4]
    expected = private_gradients(copy.deepcopy(model), x[without], y[without], loss_of, reduction="sum")
    for g, e in zip(private_gradients(model, x, y, poisoned, reduction="sum"), expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0.0, atol=1e-10)


def equal_layers(dtype: torch.dtype) -> nn.Module:
    """Sequences through linear layers and normalisations of the same shapes, some of them without a bias."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for bias in (True, True, False, True, False):
        layers += [nn.Linear(8, 8, bias=bias), nn.LayerNorm(8, bias=bias), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(8, 3)).to(dtype)


@pytest.mark.parametrize("most", [2**24, 2000, 1], ids=["together", "some", "alone"])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_equal_layers(size: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of any size, with a rest or without, of as many layers as memory allows."""
    monkeypatch.setattr(_layers, "block_size", lambda _terms, _dtype, *, alone: size)
    monkeypatch.setattr(_layers, "CHUNK_ELEMENTS", most)
    x, y = data((9, 3, 8))
    check(equal_layers(torch.float64), x, y, square_loss)


def test_equal_layers_of_which_some_rest() -> None:
    """Frozen weights, biases and layers among them."""
    model = equal_layers(torch.float64)
    for parameter in (model[0].weight, model[3].bias, model[4].weight, model[6].weight):
        parameter.requires_grad_(False)
    check(model, *data((9, 3, 8)), square_loss)


@pytest.mark.parametrize("clipping", ["per_layer", "automatic"])
@pytest.mark.parametrize("name", ["equal", "mlp", "resnet", "transformer"])
def test_other_clippings(name: str, clipping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the CPU's forms, up to the rounding of float64."""
    found = []
    for forced in (True, False):
        monkeypatch.setattr(_native, "on_gpu", lambda _values, forced=forced: forced)
        if name == "equal":
            model, (x, y), loss_of = equal_layers(torch.float64), data((9, 3, 8)), square_loss
        else:
            model, x, y, loss_of = model_case(name, torch.float64)
        found.append(private_gradients(model, x, y, loss_of, clipping=clipping))
    for g, e in zip(*found, strict=True):
        torch.testing.assert_close(g, e, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_bad_sample_in_equal_layers_counts_as_zero(poison: float) -> None:
    x, y = data((9, 3, 8))
    without = [i for i in range(9) if i != 4]
    expected = private_gradients(equal_layers(torch.float64), x[without], y[without], square_loss, reduction="sum")
    x[4, 1, 2] = poison
    got = private_gradients(equal_layers(torch.float64), x, y, square_loss, reduction="sum")
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0.0, atol=1e-10)


def uses_of(layers: list[nn.Module], records: list[tuple[Tensor, Tensor]]) -> list[Use]:
    found = []
    for layer, (activation, gradient) in zip(layers, records, strict=True):
        rule = _rules.find_rule(layer)
        assert rule is not None
        covered = CoveredLayer("", layer, rule, dict(layer.named_parameters()), False)
        found.append(Use(covered, rule(layer, activation, gradient)))
    return found


@pytest.mark.parametrize("scale", [1e-38, 1e-24, 1e-12, 1.0, 1e8])
def test_norms_are_upper_bounds(scale: float) -> None:
    """In float32, also of tokens that cancel and of products below the normal range; and close where nothing cancels."""
    torch.manual_seed(0)
    linear: list[nn.Module] = [nn.Linear(40, 30) for _ in range(3)] + [nn.Linear(20, 30)]
    records = [(torch.randn(8, 6, layer.in_features), torch.randn(8, 6, 30) * scale) for layer in linear]  # type: ignore[arg-type]
    for activation, gradient in records:
        activation[:4, 3:], gradient[:4, 3:] = activation[:4, :3], -gradient[:4, :3]
        activation[2, 3:] *= 1.0 + 2.0**-20
    convolutions: list[nn.Module] = [nn.Conv2d(16, 40, 3), nn.Conv2d(16, 24, 1, bias=False)]
    records += [(torch.randn(8, 16, 5, 5), torch.randn(8, *shape) * scale) for shape in ((40, 3, 3), (24, 5, 5))]
    layers = linear + convolutions
    uses = uses_of(layers, records)
    truths = []
    for use, (activation, gradient) in zip(uses, records, strict=True):
        if isinstance(use.layer.module, nn.Linear):
            truths.append(torch.einsum("bto,bti->boi", gradient.double(), activation.double()))
        else:
            exact = _rules.find_rule(use.layer.module)(  # type: ignore[misc]
                copy.deepcopy(use.layer.module).double(), activation.double(), gradient.double()
            )
            truths.append(exact._rows("weight", 0, 8))
    for use in uses[4:]:
        use.rule._keeps_weight = False
    with torch.no_grad():
        _together.measure(uses)
    for use, truth in zip(uses, truths, strict=True):
        squares, spreads = use.norms["weight"]
        exact = truth.flatten(1).square().sum(1)
        assert bool((squares >= exact).all())
        assert bool((spreads >= squares).all())
        if scale >= 1e-12:
            assert bool((squares[4:] <= 1.001 * exact[4:]).all())


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_weights_in_few_operations(scale: float) -> None:
    """Those of the definition, up to rounding in float64; 0 for what is not finite or too large."""
    least = LEAST_WEIGHT
    lengths = [0.0, 1e-200, 0.5, 1.0, 2.0, 1e6, 0.999 / least, 1.001 / least, 1e200, math.inf, math.nan, 1.0, 1.0, 1.0]
    ratios = [1.0, 1.0, 1.0, KAPPA, 2 * KAPPA, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, math.inf, math.nan, 1e5]
    squares, spreads = (torch.tensor(values, dtype=torch.float64) for values in (lengths, ratios))
    squares, spreads = squares.square(), (squares * spreads).square()
    for norms in (Norms(squares, spreads), Norms(squares, squares)):
        found = clip([norms], Batch(0, scale, scale), scale, "flat").values
        torch.testing.assert_close(found, weights_of(norms.scaled(scale), scale, "flat") * scale, rtol=1e-14, atol=0.0)
        assert found[0] == scale
        assert found[7] == found[8] == found[9] == found[10] == 0.0 < found[6]


# Operations of torch beyond those of the plain step, and launches of our kernels: two an array for norms, one for a sum.
MOST = {"mlp": (15, 15), "cnn": (17, 14), "resnet": (82, 55), "transformer": (72, 30)}
VIEWS = {
    "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "is_same_size", "lift_fresh",
    "new_empty", "new_empty_strided", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "unsqueeze", "view", "_record_function_enter_new", "_record_function_exit", "_reshape_alias",
    "_unsafe_view",
}  # fmt: skip


class Counted(TorchDispatchMode):
    """Counts operations that work on values."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name not in VIEWS:
            self.operations[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MOST)
def test_operations_of_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the benchmark's models. The plain step's optimizer is one operation a parameter here; on a GPU it is a few."""
    launches = Counter[str]()

    def counted(kernel: str, each: int) -> None:
        original = getattr(clipping, kernel)

        def call(arrays: list[Tensor], *rest: Any) -> Any:
            launches[kernel] += each * len(arrays)
            return original(arrays, *rest)

        monkeypatch.setattr(clipping, kernel, call)

    counted("_row_norms", 2)
    counted("_weighted_sums", 1)
    counts = []
    for step in (
        _training.plain(_models.training(name)),
        _training.private(_models.training(name), layers="torch"),
    ):
        for _ in range(2):
            step()
        launches.clear()
        with Counted() as found:
            step()
        counts.append(found.operations)
    most, most_launches = MOST[name]
    assert counts[1].total() - counts[0].total() <= most, counts
    assert launches.total() <= most_launches, launches


EMBEDDINGS = {
    f"embedding of {tokens} with padding {padding}": (
        lambda padding=padding: nn.Embedding(4, 3, padding_idx=padding),
        tokens,
    )
    for tokens in ((9,), (9, 6))
    for padding in (None, 2)
}


def layer_case(name: str) -> tuple[nn.Module, Tensor, Tensor, LossOf]:
    torch.manual_seed(0)
    if name in MODELS:
        return model_case(name, torch.float32)
    if name in EMBEDDINGS:
        make, shape = EMBEDDINGS[name]
        return make(), torch.randint(0, 4, shape), data((9, 1), torch.float32)[1], square_loss
    make, shape = LAYERS[name]
    return make(), *data(shape, torch.float32), square_loss


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> list[LayerGradients]:
    """Rules are made and asked under the guard of recordings, if all of them may be recorded; the rules that were."""
    rules: list[LayerGradients] = []

    def guard(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any) -> Any:
            may = all(rule.recordable() for rule in rules)
            with recordable() if may else nullcontext():
                found = original(*args)
            if isinstance(found, Use):
                rules.append(found.rule)
            return found

        monkeypatch.setattr(owner, name, call)

    guard(Recorder, "add")
    guard(Recorder, "measure")
    guard(Sums, "add")
    return rules


NOT_RECORDABLE = [name for name in LAYERS if name.startswith("own ")] + ["vit", "regression"]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("memory", "clipping"), [("fast", "flat"), ("fast", "per_layer"), ("low", "automatic")])
@pytest.mark.parametrize("name", [*LAYERS, *EMBEDDINGS, *MODELS])
def test_what_is_recordable_waits_for_nothing(
    name: str, memory: str, clipping: str, guarded: list[LayerGradients]
) -> None:
    """Nor does it draw: of each layer and model one step's measuring and adding."""
    private_gradients(*layer_case(name), memory=memory, clipping=clipping)
    assert guarded
    assert all(rule.recordable() for rule in guarded) == (name not in NOT_RECORDABLE)


@pytest.mark.parametrize("place", ["norms", "add_total", "_rows"])
def test_waiting_would_be_seen(place: str, guarded: list[LayerGradients], monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(_layers.EmbeddingGradients, place)

    def waiting(rule: LayerGradients, *args: Any) -> Any:
        rule.gradient.sum().item()
        return original(rule, *args)

    monkeypatch.setattr(_layers.EmbeddingGradients, place, waiting)
    with pytest.raises(GraphError, match="waits for the device"):
        private_gradients(*model_case("tied transformer" if place == "_rows" else "transformer", torch.float32))
