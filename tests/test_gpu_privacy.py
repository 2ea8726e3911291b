"""The privacy side on a real GPU: noise, clipping, update and ghost, and DP-SGD with the model there.

What promises bits is compared with the reference or the CPU to the bit; models with a loop over samples in float64.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("mpmath")
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import aisec_fast
from aisec_fast import BackendError, PrivacyError, _core, _cuda_graphs, _update, clipping, ghost, noise
from aisec_fast.privacy import BatchMemoryManager, PrivacyEngine, _layers, _precision
from aisec_fast.privacy._clip import MARGIN, Total, Weights
from tests import test_clipping, test_ghost, test_noise, test_update
from tests.conftest import Kernels, bits, no_waiting
from tests.test_privacy_layers import LAYERS, MODELS, data, loop_gradients, model_case, private_gradients
from tests.test_privacy_replays import both, sizes_of_batches
from tests.test_privacy_step import Mixer, _remembers

_cuda = pytest.importorskip("aisec_fast._cuda", reason="this build has no CUDA module (no nvcc)")

DEVICE = "cuda"
HERE = DEVICE == "cpu" or (_cuda.device_count() > 0 and torch.cuda.is_available())
pytestmark = [
    pytest.mark.skipif(not HERE, reason="no GPU, or no torch that uses it"),
    pytest.mark.filterwarnings("ignore:Please use the new API settings"),  # of TF32: users use the old ones
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork"),
    pytest.mark.filterwarnings("ignore:This instance was constructed with capturable"),
]
on_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="about streams, or settings of a GPU")

CLIP = 0.7
DELTA = 1e-5


class Copied:
    """The kernels of the GPU for arrays of numpy, which are copied there and back."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        kernel = getattr(_cuda if DEVICE == "cuda" else _core, name)

        def call(*arguments: Any) -> Any:
            copies: dict[int, tuple[np.ndarray, Tensor]] = {}

            def move(value: Any) -> Any:
                if isinstance(value, list):
                    return [move(item) for item in value]
                if not isinstance(value, np.ndarray):
                    return value
                if id(value) not in copies:
                    copies[id(value)] = value, to_gpu(value)
                return copies[id(value)][1]

            result = kernel(*[move(argument) for argument in arguments])
            for array, there in copies.values():
                if array.dtype != np.uint16:  # bfloat16, which is only read
                    array[...] = there.cpu().numpy()
            return result

        return call


def to_gpu(array: np.ndarray) -> Tensor:
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(DEVICE)
    return torch.from_numpy(np.array(array)).to(DEVICE)


class Torch:
    def to_gpu(self, array: np.ndarray) -> Any:
        return to_gpu(array)

    def to_cpu(self, array: Any) -> np.ndarray:
        assert array.device.type == DEVICE
        return array.cpu().numpy()


class Cupy:
    def __init__(self) -> None:
        self.module = pytest.importorskip("cupy", reason="cupy is not installed")

    def to_gpu(self, array: np.ndarray) -> Any:
        return self.module.asarray(array)

    def to_cpu(self, array: Any) -> np.ndarray:
        assert isinstance(array, self.module.ndarray)
        return self.module.asnumpy(array)


@pytest.fixture(params=[Torch, Cupy])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def kernels() -> Kernels:
    return Kernels("cuda", *[Copied()] * 6)  # type: ignore[list-item]


@pytest.fixture(autouse=True)
def exact_models() -> Iterator[None]:
    """Models in full precision, unless a test says otherwise: cuDNN's default is TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 wherever torch may use it, as users allow it."""
    backends = torch.backends
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = True
    yield
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = False


def normal(shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ------------------------------------------------------------------------------------------------------- the kernels


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_float_noise(kernels: Kernels, law: str, dtype: str) -> None:
    test_noise.test_float_mode_gives_the_reference(kernels, law, dtype)
    for size in (100_003, 3_000_001):
        x = normal((size,), 1, dtype)
        expected, out = np.empty_like(x), np.empty_like(x)
        getattr(_core, f"add_float_{law}")(x, expected, 1.7, test_noise.KEY)
        getattr(kernels.noise, f"add_float_{law}")(x, out, 1.7, test_noise.KEY)
        assert bits(out) == bits(expected)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_exact_noise_where_it_is_rare(kernels: Kernels, law: str) -> None:
    for name, number in test_noise.RARE:
        if name == law:
            for s in (1.0, 2.0**20.3, 2.0**30):
                test_noise.test_words_outside_the_zone(kernels, law, number, s)
    test_noise.test_near_ties_of_the_stream(kernels, law, 2.0**20.5)
    for dtype in ("float32", "float64"):
        for value in (2.0**29.9, 2.0**30, -(2.0**30), 2.0**50.9, 2.0**51, -(2.0**60), np.nan, np.inf):
            test_noise.test_one_large_value_among_many(kernels, dtype, value)
        test_noise.test_odd_values_are_clamped(kernels, dtype)
        test_noise.test_lattice_integers_are_accepted(kernels, dtype)
    for exponent in (-149, -127, -126, 96, 97, 127):
        test_noise.test_float32_at_any_granularity(kernels, 2.0**exponent)
    if DEVICE == "cuda":
        test_noise.test_missing_generators_are_refused(kernels)


@pytest.mark.parametrize("dtype", test_clipping.DTYPES)
def test_sums_of_rows(kernels: Kernels, threads: Any, dtype: str) -> None:
    for columns in (1, 16, 17, 40):
        test_clipping.test_any_number_of_rows_and_columns(kernels, columns, dtype)
    test_clipping.test_lists_of_arrays_of_many_sizes(kernels, threads, 1, dtype)


def test_limits_of_lattice_rows(kernels: Kernels) -> None:
    test_clipping.test_lattice_limit_drops_a_row(kernels)
    test_clipping.test_the_limit_is_exact_beyond_2_53(kernels)


@pytest.mark.parametrize("sigma", [0.0, 1.5, 2.0**5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noisy_mean(kernels: Kernels, dtype: str, sigma: float) -> None:
    test_update.test_noisy_mean_is_noise_and_a_division(kernels, dtype, sigma)


@pytest.mark.parametrize("sigma", [0.0, 1.5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_optimizer_steps(kernels: Kernels, dtype: str, sigma: float) -> None:
    """SGD: momentum, dampening, weight decay, nesterov, maximize, first. Adam: plain, AdamW's decay, AMSGrad."""
    for options in (
        (0.1, 0.0, 0.0, 0.0, False, False, False),
        (0.1, 0.0, 0.0, 0.01, False, True, False),
        (0.1, 0.9, 0.3, 0.01, False, False, True),
        (0.1, 0.9, 0.3, 0.01, False, True, False),
        (3.0, 0.9, 0.0, 0.0, True, False, False),
    ):
        test_update.check_sgd(kernels, dtype, sigma, options, nasty=True)
    for amsgrad in (False, True):
        for options in (
            (0.9, 0.999, 0.01, 0.03, 1e-8, 0.0, 1.0, False),
            (0.9, 0.999, 0.01, 0.03, 1e-8, 0.01, 0.99, True),
            (0.0, 0.0, 0.01, 1.0, 0.1, 0.0, 1.0, False),
        ):
            test_update.check_adam(kernels, dtype, sigma, options, amsgrad, nasty=True)


@pytest.mark.parametrize("shape", test_ghost.GRAMS)
def test_gram_squares(kernels: Kernels, shape: tuple[int, int, int, int]) -> None:
    test_ghost.test_gram_squares(kernels, shape)


@pytest.mark.parametrize("name", test_ghost.CONVS)
def test_convolutions(kernels: Kernels, name: str) -> None:
    test_ghost.test_conv_gram_squares(kernels, test_ghost.CONVS[name])
    test_ghost.test_conv_gram_of_pixels_that_cancel(kernels, test_ghost.CONVS[name])
    test_ghost.test_conv_rows(kernels, test_ghost.CONVS[name])


def test_ghost_norms_at_the_ends(kernels: Kernels, threads: Any) -> None:
    test_ghost.test_gram_of_tokens_that_cancel(kernels)
    test_ghost.test_gram_squares_of_integers_are_exact(kernels)
    test_ghost.test_what_is_not_finite_is_infinite(kernels)
    for scale in (1e-38, 1e-24, 1e-22, 1e10, 1e17):
        test_ghost.test_gram_at_the_ends_of_the_range(kernels, scale)
        test_ghost.test_conv_at_the_ends_of_the_range(kernels, scale)
    test_ghost.test_a_sample_is_its_own(kernels, threads, "groups")


# ----------------------------------------------------------------------------------------------- the public functions


def source() -> noise.SeededSource:
    return noise.SeededSource(7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("law", [noise.add_gaussian, noise.add_laplace])
def test_public_noise(library: Any, law: Any, exact: bool, dtype: str) -> None:
    """A list of all sizes; new, into ``out`` and in place; each array with its own key."""
    xs = [normal(shape, i, dtype) for i, shape in enumerate([(5, 7), (), (0, 3), (1,), (3, 100, 50)])]
    expected = [bits(array) for array in law(xs, 1.5, exact=exact, source=source())]
    on_gpu = [library.to_gpu(x) for x in xs]
    made = law(on_gpu, 1.5, exact=exact, source=source())
    outs = [library.to_gpu(np.zeros_like(x)) for x in xs]
    assert all(a is b for a, b in zip(law(on_gpu, 1.5, exact=exact, source=source(), out=outs), outs, strict=True))
    law(on_gpu, 1.5, exact=exact, source=source(), out=on_gpu)
    for results in (made, outs, on_gpu):
        assert [bits(library.to_cpu(array)) for array in results] == expected
    single = law(library.to_gpu(xs[0]), 1.5, exact=exact, source=source())
    assert bits(library.to_cpu(single)) == expected[0]


def test_noise_checks_only_where_asked(library: Any) -> None:
    x = normal((3, 200))
    x[1, 7] = np.nan
    on_gpu = library.to_gpu(x)
    with pytest.raises(ValueError, match=r"x at flat index 207 is nan, expected finite"):
        noise.add_gaussian(on_gpu, 1.0, check=True, out=on_gpu)
    assert bits(library.to_cpu(on_gpu)) == bits(x)  # nothing written
    x[1, 7] = 3e38
    with pytest.raises(OverflowError, match=r"x\[1\] at flat index 207 exceeds 2\^62 granularity"):
        noise.add_laplace([library.to_gpu(np.zeros(3)), library.to_gpu(x)], 1.0, check=True)
    x[1, 7] = np.nan
    expected = noise.add_gaussian(x, 1.0, check=False, source=source())
    result = noise.add_gaussian(library.to_gpu(x), 1.0, source=source()) if DEVICE == "cuda" else expected
    assert np.isfinite(expected).all()
    assert bits(np.asarray(result) if DEVICE == "cpu" else library.to_cpu(result)) == bits(expected)


def test_words_and_integers_are_made_on_the_cpu() -> None:
    """Whatever the backend: they are numpy's."""
    if DEVICE == "cuda":
        with aisec_fast.use_backend("cuda"):
            words, mask = noise.random_words(5, source=source()), noise.poisson_mask(9, Fraction(1, 3), source=source())
        assert bits(words) == bits(noise.random_words(5, source=source()))
        assert bits(mask) == bits(noise.poisson_mask(9, Fraction(1, 3), source=source()))


def per_sample(dtype: str) -> list[np.ndarray]:
    grads = [normal((9, *shape), i, dtype) for i, shape in enumerate([(3, 40), (), (2000,), (0,)])]
    grads[0][2, 1, 5], grads[2][4, 9] = np.nan, np.inf
    grads[0][5] *= 1e-20
    return grads


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_public_clipping(library: Any, dtype: str) -> None:
    grads = per_sample(dtype)
    on_gpu = [library.to_gpu(grad) for grad in grads]
    np.testing.assert_array_equal(library.to_cpu(clipping.per_sample_norms(on_gpu)), clipping.per_sample_norms(grads))
    expected, norms = clipping.clip_and_sum(grads, 3.0)
    outs = [library.to_gpu(np.zeros(grad.shape[1:], dtype)) for grad in grads]
    for sums, found in (clipping.clip_and_sum(on_gpu, 3.0), clipping.clip_and_sum(on_gpu, 3.0, out=outs)):
        np.testing.assert_array_equal(library.to_cpu(found), norms)
        assert [bits(library.to_cpu(s)) for s in sums] == [bits(s) for s in expected]
    for multiplier in (0.0, 1.1):
        expected = clipping.private_sum(grads, 3.0, multiplier, source=source())
        sums = clipping.private_sum(on_gpu, 3.0, multiplier, source=source())
        assert [bits(library.to_cpu(s)) for s in sums] == [bits(s) for s in expected]
    one = clipping.private_sum(library.to_gpu(grads[2]), 3.0, 1.1, source=source())
    assert bits(library.to_cpu(one)) == bits(clipping.private_sum(grads[2], 3.0, 1.1, source=source()))


def test_clipping_of_bfloat16_and_of_rows_apart() -> None:
    grads = torch.from_numpy(normal((8, 300))).bfloat16()
    for values in (grads, grads[::3, :100], grads[:1], grads[:0], grads[:, :0]):
        there = values.to(DEVICE) if values.is_contiguous() else grads.to(DEVICE)[::3, :100]
        (expected, norms), (got, found) = clipping.clip_and_sum(values, 3.0), clipping.clip_and_sum(there, 3.0)
        assert torch.equal(found.cpu(), norms)
        assert torch.equal(got.cpu(), expected)


def test_public_updates(library: Any) -> None:
    expected = test_update.run_all(np.copy, source())

    def make(array: np.ndarray) -> Any:
        return library.to_gpu(array)

    for got, wanted in zip(test_update.run_all(make, source()), expected, strict=True):
        assert [bits(library.to_cpu(array)) for array in got] == [bits(array) for array in wanted]


def test_an_update_is_seen_by_autograd() -> None:
    parameter = nn.Parameter(to_gpu(normal((3, 4))))
    loss = (parameter * parameter).sum()
    _update.sgd([parameter.detach()], [to_gpu(normal((3, 4)))], _update.Noise(0.0), 2.0, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_public_ghost(library: Any) -> None:
    inputs, outputs = test_ghost.normal((3, 6, 5), 0), test_ghost.normal((3, 6, 4), 1)
    found = ghost.gram_squares(library.to_gpu(inputs), library.to_gpu(outputs))
    test_ghost.check_gram(inputs, outputs, *map(library.to_cpu, found))
    case = test_ghost.CONVS["groups"]
    x, g = case.arrays(3)
    there = library.to_gpu(x), library.to_gpu(g)
    found = ghost.conv_gram_squares(*there, 3, padding=1, groups=2)
    test_ghost.check_conv_gram(case, x, g, *map(library.to_cpu, found))
    rows, squares, _ = ghost.conv_rows(*there, 3, padding=1, groups=2)
    expected, _, _ = ghost.conv_rows(x, g, 3, padding=1, groups=2)
    np.testing.assert_allclose(library.to_cpu(rows), expected, rtol=0, atol=1e-4)
    again = rows * 0
    assert ghost.conv_rows(*there, 3, padding=1, groups=2, out=again)[0] is again
    assert bits(library.to_cpu(again)) == bits(library.to_cpu(rows))
    x, g = test_ghost.normal((2, 3, 9), 0), test_ghost.normal((2, 4, 9), 1)  # one dimension
    rows, squares, _ = ghost.conv_rows(library.to_gpu(x), library.to_gpu(g), 3, padding=1)
    expected, lengths, _ = ghost.conv_rows(x, g, 3, padding=1)
    np.testing.assert_allclose(library.to_cpu(rows), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(library.to_cpu(squares), lengths, rtol=1e-4)


@on_cuda
def test_bad_input(library: Any) -> None:
    x, on_cpu = library.to_gpu(normal((6, 4))), normal((6, 4))
    for call, error, match in (
        (lambda: noise.add_gaussian(x, 1.0, out=on_cpu), ValueError, "out lives on cpu, x on cuda:0"),
        (lambda: noise.add_gaussian([x, on_cpu], 1.0), ValueError, r"x\[1\] lives on cpu, x\[0\] on cuda:0"),
        (lambda: clipping.clip_and_sum([on_cpu, x], 1.0), ValueError, r"grads\[1\] lives on cuda:0, grads\[0\] on cpu"),
        (lambda: clipping.clip_and_sum(x, 1.0, out=on_cpu[0]), ValueError, "out lives on cpu"),
        (lambda: noise.add_gaussian(x[:, ::2], 1.0), ValueError, "x is not C-contiguous"),
        (lambda: noise.add_gaussian(x, 1.0, out=x[:3]), ValueError, r"out has shape \(3, 4\), expected \(6, 4\)"),
        (lambda: clipping.clip_and_sum(x[:, ::2], 1.0), ValueError, "grads is not contiguous inside its rows"),
        (lambda: clipping.clip_and_sum(x, 1.0, out=x[1]), ValueError, "out overlaps grads in memory"),
        (lambda: ghost.gram_squares(x.reshape(1, 6, 4), on_cpu.reshape(1, 6, 4)), ValueError, "outputs lives on cpu"),
        (lambda: _update.noisy_mean([x, x], _update.Noise(1.0), 2.0), ValueError, "overlaps"),
        (lambda: _update.sgd([on_cpu], [x], _update.Noise(1.0), 2.0, lr=0.1), ValueError, r"params\[0\] lives on cpu"),
    ):
        with pytest.raises(error, match=match):
            call()
    half = library.to_gpu(normal((6, 4), 0, "float16"))
    for call in (lambda: noise.add_gaussian(half, 1.0), lambda: clipping.per_sample_norms(half)):
        with pytest.raises(TypeError, match="has dtype float16, expected float32"):
            call()
    for name in ("native", "numba"):
        with (
            aisec_fast.use_backend(name),
            pytest.raises(BackendError, match=f"backend is '{name}', but x lives on cuda"),
        ):
            noise.add_gaussian(x, 1.0)
    with aisec_fast.use_backend("cuda"):
        noise.add_gaussian(x, 1.0)
        with pytest.raises(BackendError, match="backend is 'cuda', but grads lives on cpu"):
            clipping.per_sample_norms(on_cpu)


@on_cuda
def test_work_follows_the_current_stream() -> None:
    """On a side stream the input is still being made, and what follows reads the result."""
    expected = clipping.private_sum(np.full((4, 1 << 18), 3.0, np.float32), 1.0, 1.1, source=source())
    stepped = normal((1 << 18,))
    _update.sgd([stepped], [expected.copy()], _update.Noise(1.0, source=source()), 2.0, lr=0.1)
    for _ in range(3):
        with torch.cuda.stream(torch.cuda.Stream()):
            grads = torch.zeros(4, 1 << 18, device="cuda")
            parameter = to_gpu(normal((1 << 18,)))
            torch.cuda._sleep(20_000_000)
            grads += 3
            total = clipping.private_sum(grads, 1.0, 1.1, source=source())
            doubled = total * 2
            _update.sgd([parameter], [total], _update.Noise(1.0, source=source()), 2.0, lr=0.1)
            result = parameter + 0
        torch.cuda.synchronize()
        assert bits(doubled.cpu().numpy()) == bits(expected * 2)
        assert bits(result.cpu().numpy()) == bits(stepped)


@on_cuda
def test_work_follows_cupys_stream() -> None:
    cupy = Cupy().module
    expected, _ = clipping.clip_and_sum(np.full((4, 1 << 18), 3.0, np.float32), 1.0)
    for _ in range(3):
        with cupy.cuda.Stream(non_blocking=True):
            grads = cupy.zeros((4, 1 << 18), cupy.float32)
            for _ in range(200):
                grads += 3
            grads[...] = 3
            total, _ = clipping.clip_and_sum(grads, 1.0)
            doubled = total * 2
            assert bits(cupy.asnumpy(doubled)) == bits(expected * 2)


def test_plain_calls_do_not_synchronise() -> None:
    grads, parameters = torch.ones(5, 40, device=DEVICE), torch.ones(40, device=DEVICE)
    with no_waiting():
        noise.add_gaussian(grads, 1.0, check=False)
        noise.add_laplace(grads, 1.0, exact=False)
        clipping.per_sample_norms(grads)
        sums, _ = clipping.clip_and_sum(grads, 1.0)
        clipping.private_sum(grads, 1.0, 1.0)
        _update.sgd([parameters], [sums], _update.Noise(1.0), 5.0, lr=0.1)
        ghost.gram_squares(grads.view(5, 4, 10), grads.view(5, 4, 10))
    if DEVICE == "cuda":
        with pytest.raises(RuntimeError, match="synchroniz"), no_waiting():
            grads.sum().item()


# ------------------------------------------------------------------------------------------------- gradients of models


def on_gpu(model: nn.Module, x: Tensor, y: Tensor, loss_of: Any) -> tuple[nn.Module, Tensor, Tensor, Any]:
    return model.to(DEVICE), x.to(DEVICE), y.to(DEVICE), loss_of


def check(model: nn.Module, x: Tensor, y: Tensor, loss_of: Any, tolerance: float) -> None:
    """The clipped sum on the GPU beside the loop over samples on the CPU."""
    expected, norms = loop_gradients(model, x, y, loss_of)
    got = private_gradients(*on_gpu(copy.deepcopy(model), x, y, loss_of))
    for g, e in zip(got, expected, strict=True):
        assert g.device.type == DEVICE
        torch.testing.assert_close(g.double().cpu(), e, rtol=0.0, atol=tolerance * CLIP * len(norms))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, dtype: torch.dtype) -> None:
    """Tolerances are those of the tests on the CPU (test_privacy_layers.py)."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    x, y = data(shape, dtype)

    def loss_of(output: Tensor, y: Tensor) -> Tensor:
        return (output.flatten(1) - y[:, None]).square().mean(1) * y.exp()

    check(make().to(dtype), x, y, loss_of, 1e-11 if dtype == torch.float64 else 3e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_model(name: str, dtype: torch.dtype) -> None:
    check(*model_case(name, dtype), 1e-11 if dtype == torch.float64 else 3e-4)


@pytest.mark.parametrize("name", ["reused", "tied transformer", "resnet"])
def test_model_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layers, "CHUNK_ELEMENTS", 200)
    check(*model_case(name, torch.float64), 1e-11)


def test_channels_last() -> None:
    model, x, y, loss_of = model_case("resnet", torch.float64)
    expected, norms = loop_gradients(model, x, y, loss_of)
    model, x = model.to(DEVICE, memory_format=torch.channels_last), x.to(DEVICE, memory_format=torch.channels_last)
    for g, e in zip(private_gradients(model, x, y.to(DEVICE), loss_of), expected, strict=True):
        torch.testing.assert_close(g.cpu(), e, rtol=0.0, atol=1e-11 * CLIP * len(norms))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_a_bad_sample_counts_as_zero(name: str, poison: float) -> None:
    model, x, y, loss_of = model_case(name, torch.float64)
    without = [i for i in range(len(x)) if i != 4]
    expected = private_gradients(*on_gpu(copy.deepcopy(model), x[without], y[without], loss_of), reduction="sum")
    x = x.clone()
    x[4].view(-1)[0] = poison
    got = private_gradients(*on_gpu(model, x, y, loss_of), reduction="sum")
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_a_sample_whose_loss_is_nan_counts_as_zero(name: str) -> None:
    model, x, y, loss_of = model_case(name, torch.float64)

    def poisoned(output: Tensor, y: Tensor) -> Tensor:
        return loss_of(output, y) * torch.tensor([1.0] * 4 + [math.nan] + [1.0] * 4, device=y.device)[: len(y)]

    without = [i for i in range(len(x)) if i != 4]
    expected = private_gradients(*on_gpu(copy.deepcopy(model), x[without], y[without], loss_of), reduction="sum")
    got = private_gradients(*on_gpu(model, x, y, poisoned), reduction="sum")
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0.0, atol=1e-10)


def linear_loss(output: Tensor, y: Tensor) -> Tensor:
    """A loss whose gradient does not depend on the precision of the forward pass: exactly known in TF32 too."""
    slopes = torch.from_numpy(normal(tuple(output.shape[1:]), 5)).to(output)
    return (output * slopes).flatten(1).sum(1) * y


SINGLE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "product of outer products": (lambda: nn.Linear(130, 70), (16, 130)),
    "Gram and product": (lambda: nn.Linear(200, 100), (16, 9, 200)),
    "rows": (lambda: nn.Linear(24, 20), (16, 80, 24)),
    "convolution, rows": (lambda: nn.Conv2d(6, 8, 3), (16, 6, 12, 12)),
    "convolution, Gram and product": (lambda: nn.Conv2d(64, 64, 3, padding=1), (8, 64, 5, 5)),
    "three dimensions": (lambda: nn.Conv3d(4, 5, 3), (12, 4, 6, 6, 6)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_tf32_does_not_reach_the_engine(name: str, tf32: None) -> None:
    """Gradients so small that no weight but 1 occurs: what differs from the truth is the rounding of the sums.

    They have at most 3500 terms, which float32 adds within 1e-5 of the largest entry; TF32 rounds each factor to 2^-11.
    """
    make, shape = SINGLE[name]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    y = torch.linspace(1e-6, 2e-6, len(x))
    expected, norms = loop_gradients(model, x, y, linear_loss)
    got = private_gradients(*on_gpu(model, x, y, linear_loss), reduction="sum")
    assert max(norms) < 0.1 * CLIP
    for g, e in zip(got, expected, strict=True):
        assert float((g.double().cpu() - e).abs().max() / e.abs().max()) < 1e-5
    if DEVICE == "cuda":
        assert torch.backends.cuda.matmul.allow_tf32  # the user's settings are back, and can be read
        assert torch.backends.cudnn.allow_tf32


@on_cuda
@pytest.mark.parametrize("setting", ["allow_tf32", "set_float32_matmul_precision", "fp32_precision"])
def test_full_precision_whatever_was_allowed(setting: str) -> None:
    """TF32 is really on outside (so that the test can fail) and off inside; subnormal numbers are kept."""
    a, b = (torch.from_numpy(normal((256, 512), i)).cuda() for i in range(2))
    truth = a.double() @ b.double().t()
    matmul = torch.backends.cuda.matmul
    if setting == "fp32_precision" and not hasattr(matmul, "fp32_precision"):
        pytest.skip("torch before 2.9")
    try:
        if setting == "allow_tf32":
            matmul.allow_tf32 = True
        elif setting == "fp32_precision":
            matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision("high")
        outside = float((a @ b.t() - truth).abs().max())
        with _precision.full_precision():
            inside = float((a @ b.t() - truth).abs().max())
            small = torch.full((64, 64), 2.0**-70, device="cuda")
            assert float((small @ small)[0, 0]) == 64 * 2.0**-140
        assert float((a @ b.t() - truth).abs().max()) == outside
    finally:
        if hasattr(matmul, "fp32_precision"):
            matmul.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")
        matmul.allow_tf32 = False
    assert inside < 1e-3
    assert outside > 5e-3


def test_the_engines_own_sums_repeat_their_bits() -> None:
    """Many tokens in few rows, which torch might add in any order on a GPU; and nothing waits for it."""
    torch.manual_seed(0)
    for words in (3, 50):
        layer = nn.Embedding(words, 16).to(DEVICE)
        tokens, gradient = torch.randint(0, words, (40, 700), device=DEVICE), torch.randn(40, 700, 16, device=DEVICE)
        weights = torch.linspace(0.0, 1.0, 40, dtype=torch.float64, device=DEVICE)
        seen = set()
        for _ in range(5):
            total = Total(layer.weight.detach())
            with no_waiting():
                rule = _layers.EmbeddingGradients(layer, tokens, gradient)
                squares, rows = rule.norms("weight").squares, rule.rows("weight", 3, 7)
                rule.add_total("weight", Weights(weights), total)
            seen.add(tuple(bits(one.cpu().numpy()) for one in (squares, rows, total.take())))
        assert len(seen) == 1


# ---------------------------------------------------------------------------------------------------------- training


def small_model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.GroupNorm(3, 3), nn.Flatten(), nn.Linear(48, 4), nn.LayerNorm(4)
    ).to(dtype)


def small_loader(dtype: torch.dtype, batch: int = 8, **options: Any) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(2)
    records = torch.randn(40, 1, 6, 6, generator=generator).to(dtype)
    return DataLoader(TensorDataset(records, torch.arange(40) % 4), batch_size=batch, **options)


class Run:
    """A private training on a device, of records that a loader on the CPU hands out and the loop moves."""

    def __init__(
        self, device: str, optimizer: Any = torch.optim.SGD, *, dtype: torch.dtype = torch.float64, batch: int = 8,
        loader: Any = None, model: nn.Module | None = None, options: Any = None, **private: Any,
    ) -> None:  # fmt: skip
        self.device = device
        model = (small_model(dtype) if model is None else model).to(device)
        self.engine = PrivacyEngine(accountant="rdp")
        arguments = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "source": noise.SeededSource(5), **private}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model, self.optimizer, self.loader = self.engine.make_private(
                module=model,
                optimizer=optimizer(model.parameters(), lr=0.1, **(options or {})),
                data_loader=small_loader(dtype, batch) if loader is None else loader,
                **arguments,
            )
        self.gradients: list[list[Tensor]] = []
        self.sizes: list[int] = []

    def step(self, x: Tensor, y: Tensor) -> None:
        self.sizes.append(len(x))
        self.optimizer.zero_grad()
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        nn.functional.cross_entropy(self.model(x), y).backward()
        assert all(p.grad is None for p in self.model.parameters())
        self.optimizer.step()
        if (gradients := [p.grad for p in self.model.parameters()])[0] is not None:
            self.gradients.append([g.detach().cpu().clone() for g in gradients])

    def train(self, passes: int = 1, loader: Any = None) -> Run:
        for _ in range(passes):
            for x, y in self.loader if loader is None else loader:
                self.step(x, y)
        return self

    @property
    def info(self) -> dict[str, Any]:
        return self.engine.info()[0]

    @property
    def parameters(self) -> list[Tensor]:
        return [p.detach().cpu() for p in self.model.parameters()]


def assert_same(run: Run, twin: Run, lattice_steps: float = 20) -> None:
    """The same noise to the bit, on sums that differ by rounding, which moves a value by a step of the lattice at most.

    The gradient of a later step sees parameters that differ by as much, so a few steps are allowed.
    """
    spacing = noise.default_granularity(1.0) / 8
    assert len(run.gradients) == len(twin.gradients) > 0
    for got, expected in zip(run.gradients, twin.gradients, strict=True):
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=0.0, atol=lattice_steps * spacing)
    for p, e in zip(run.parameters, twin.parameters, strict=True):
        torch.testing.assert_close(p, e, rtol=1e-4, atol=1e-4)


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "SGD": (torch.optim.SGD, {}, "fused"),
    "SGD with momentum": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, "fused"),
    "SGD, torch's fused": (torch.optim.SGD, {"momentum": 0.9, "fused": True}, "fused"),
    "Adam": (torch.optim.Adam, {}, "fused"),
    "AMSGrad": (torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.01}, "fused"),
    "AdamW": (torch.optim.AdamW, {}, "fused"),
    "Adam, torch's fused": (
        torch.optim.Adam,
        {"fused": True},
        "torch: the option fused keeps the number of steps on the GPU" if DEVICE == "cuda" else "fused",
    ),
    "Adam, capturable": (torch.optim.Adam, {"capturable": True}, "torch: the option capturable asks for torch's step"),
    "Adagrad": (torch.optim.Adagrad, {}, "torch: Adagrad has no fused step"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_that_of_the_cpu(name: str) -> None:
    """Poisson batches, noise, parameters and the account; and afterwards the state is one that torch goes on with."""
    optimizer, options, update = OPTIMIZERS[name]
    if "capturable" in options and DEVICE == "cpu":
        pytest.skip("of a GPU")
    run = Run(DEVICE, optimizer, options=options).train()
    plain = {key: value for key, value in options.items() if key not in ("fused", "capturable")}
    twin = Run("cpu", optimizer, options=plain).train()
    before = [p.detach() for p in small_model(torch.float64).parameters()]
    assert run.info["update"] == update
    assert run.info["check_rows"] == "passed"
    assert run.sizes == twin.sizes
    assert run.info["sigma"] == twin.info["sigma"]
    assert all(not torch.equal(p, b) for p, b in zip(run.parameters, before, strict=True))
    assert_same(run, twin, 20 if optimizer is torch.optim.SGD else 400)
    assert all(p.device.type == DEVICE for p in run.model.parameters())
    state = copy.deepcopy(run.optimizer.state_dict())
    fresh = small_model(torch.float64).to(DEVICE)
    going_on = optimizer(fresh.parameters(), lr=0.1, **options)
    going_on.load_state_dict(state)
    fresh(torch.randn(4, 1, 6, 6, dtype=torch.float64, device=DEVICE)).sum().backward()
    going_on.step()


@pytest.mark.filterwarnings("ignore:a step used a batch")
def test_float32_training_and_the_released_gradient() -> None:
    """``.grad`` after a step: the clipped sum without noise, the noise of the source, over the expected batch."""
    x, y = next(iter(small_loader(torch.float32)))
    run = Run(DEVICE, dtype=torch.float32, check_rows=False)
    clean = Run(DEVICE, dtype=torch.float32, check_rows=False, noise_multiplier=0.0)
    keys = noise.SeededSource(5)
    run.step(x, y)
    clean.step(x, y)
    for got, total in zip(run.gradients[0], clean.gradients[0], strict=True):
        sums = (total * 8).contiguous()
        expected = noise.add_gaussian(
            sums, run.info["sigma"], granularity=noise.default_granularity(1.0), source=keys, check=False
        )
        torch.testing.assert_close(got * 8, expected, rtol=0.0, atol=2.1 * noise.default_granularity(1.0))


def test_epsilon_is_that_of_the_cpu() -> None:
    pytest.importorskip("dp_accounting")
    run, twin = Run(DEVICE).train(), Run("cpu").train()
    assert run.engine.get_epsilon(DELTA) == twin.engine.get_epsilon(DELTA) > 0


def test_empty_batches() -> None:
    run, twin = (Run(device, batch=1, noise_multiplier=1.0).train() for device in (DEVICE, "cpu"))
    assert 0 in run.sizes
    assert run.sizes == twin.sizes
    spacing = noise.default_granularity(1.0)
    for got, expected in zip(run.gradients, twin.gradients, strict=True):
        for g, e in zip(got, expected, strict=True):
            assert g.abs().sum() > 0
            torch.testing.assert_close(g, e, rtol=1e-3, atol=20 * spacing)


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_batch_of_each_model(name: str) -> None:
    model, x, y, loss_of = on_gpu(*model_case(name, torch.float32))
    for gradient in private_gradients(model, x[:0], y[:0], loss_of, reduction="sum"):
        assert gradient.device.type == DEVICE
        assert not gradient.any()


def test_batches_in_parts() -> None:
    whole = Run(DEVICE).train()
    parts = Run(DEVICE, max_physical_batch_size=3).train()
    managed = Run(DEVICE)
    with BatchMemoryManager(data_loader=managed.loader, max_physical_batch_size=3) as batches:
        managed.train(loader=batches)
    for run in (parts, managed):
        assert max(run.sizes) <= 3 < max(whole.sizes)
        assert_same(run, whole, 40)  # sigma differs by what more parts are charged


def test_pinned_memory_and_workers() -> None:
    pinned = DEVICE == "cuda"
    run = Run(DEVICE, loader=small_loader(torch.float64, num_workers=1, pin_memory=pinned)).train()
    assert_same(run, Run("cpu", loader=small_loader(torch.float64, num_workers=1)).train())


@pytest.mark.parametrize("name", MODELS)
def test_models_train_and_pass_the_check_of_rows(name: str) -> None:
    """With dropout; parameters, and the GPU's randomness, are as if the check had not happened."""
    model, x, y, loss_of = on_gpu(*model_case(name, torch.float32))
    model = nn.Sequential(model, nn.Dropout(0.3))
    gradients = []
    for check_rows in (True, False):
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        engine = PrivacyEngine()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine.make_private(
                module=twin, optimizer=optimizer, data_loader=DataLoader(TensorDataset(torch.arange(16)), batch_size=16),
                noise_multiplier=0.0, max_grad_norm=CLIP, check_rows=check_rows,
            )  # fmt: skip
            torch.manual_seed(3)
            loss_of(twin(x), y).mean().backward()
            optimizer.step()
        gradients.append([p.grad for p in twin.parameters()])
        outcome = engine.info()[0]["check_rows"]
        asked = check_rows or name in ("vit", "positioned transformer", "positioned once transformer")  # rows are made
        assert outcome.startswith("passed") if asked else outcome == "off"
        if name not in ("cnn", "resnet"):  # poolings may add in any order on a GPU
            assert outcome in ("passed", "off")
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    "mix",
    [lambda _m, h: h - h.mean(0), lambda _m, h: h.softmax(0), lambda _m, h: h + h[:1], _remembers],
    ids=["centred", "softmax", "anchor", "statistics"],
)
def test_samples_that_mix_are_found(mix: Any) -> None:
    run = Run(DEVICE, model=Mixer(mix))
    with pytest.raises(PrivacyError, match=r"samples mix|stores what it saw"):
        run.model(torch.randn(6, 4, device=DEVICE))


def test_batch_norm_is_refused() -> None:
    with pytest.raises(aisec_fast.UnsupportedModuleError, match="BatchNorm2d normalises each sample with the others"):
        Run(DEVICE, model=nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))


def test_errors_of_a_backward_pass_reach_the_user() -> None:
    """On a GPU hooks of the backward pass run in a thread of autograd."""
    run = Run(DEVICE, check_rows=False)
    x = torch.randn(5, 1, 6, 6, dtype=torch.float64, device=DEVICE)
    run.model(x).sum().backward()
    with pytest.raises(PrivacyError, match=r"two backward passes before optimizer\.step"):
        run.model(x).sum().backward()
    with pytest.raises(PrivacyError, match="this step cannot be private"):
        run.optimizer.step()
    run.optimizer.zero_grad()
    run.train()
    loss = run.model(x).sum()
    with pytest.raises(PrivacyError, match="create_graph=True"):
        loss.backward(create_graph=True)
    run.optimizer.zero_grad()
    with pytest.raises(PrivacyError, match="received a gradient outside its layer's training forward"):
        (run.model(x).sum() + run.model[4].weight.square().sum()).backward()


def test_checkpointing() -> None:
    """Without reentrance; dropout's randomness of the GPU is repeated in the second forward."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(36, 20), nn.Dropout(0.3), nn.Tanh(), nn.Linear(20, 20))

    class Model(nn.Module):
        def __init__(self, checkpointed: bool) -> None:
            super().__init__()
            self.inner, self.head, self.checkpointed = copy.deepcopy(inner), nn.Linear(20, 4), checkpointed

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.head(checkpoint(self.inner, x, use_reentrant=False) if self.checkpointed else self.inner(x))

    results = []
    for checkpointed in (True, False):
        torch.manual_seed(1)
        model = Model(checkpointed).double().to(DEVICE)
        torch.manual_seed(4)
        x, y = (value.to(DEVICE) for value in data((9, 36)))
        results.append(private_gradients(model, x, y, lambda out, y: (out.square().mean(1)) * y.exp()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-11)


def test_autocast() -> None:
    """Activations and gradients of bfloat16 are taken up in the parameters' dtype; the sum is clipped all the same."""
    run = Run(DEVICE, dtype=torch.float32, noise_multiplier=0.0)
    for x, y in run.loader:
        run.optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = nn.functional.cross_entropy(run.model(x.to(DEVICE)), y.to(DEVICE))
        loss.backward()
        run.optimizer.step()
        total = math.sqrt(sum(float(p.grad.double().square().sum()) for p in run.model.parameters()))
        assert 0 < total * 8 <= len(x) * 1.0001
    assert run.info["check_rows"].startswith("passed")


@pytest.mark.filterwarnings("ignore:a step used a batch")
def test_a_step_does_not_synchronise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of linear, convolution and normalisation layers, with kernels that are launched and replayed. To record them does, and
    so does the check of rows, which is off."""
    monkeypatch.setattr(_cuda_graphs, "other_threads", lambda: False)
    run = Run(DEVICE, dtype=torch.float32, check_rows=False, options={"momentum": 0.9})
    adam = Run(DEVICE, torch.optim.Adam, dtype=torch.float32, check_rows=False)
    x, y = torch.randn(6, 1, 6, 6, device=DEVICE), torch.zeros(6, dtype=torch.long, device=DEVICE)
    always = Run(DEVICE, dtype=torch.float32, check_rows=False, options={"momentum": 0.9})
    always.engine._made[0][0].replays = None
    runs = (run, adam, always)

    def steps() -> None:
        for one in runs:
            for _ in range(3):
                one.optimizer.zero_grad()
                nn.functional.cross_entropy(one.model(x), y).backward()
                one.optimizer.step()

    steps()
    with no_waiting():
        steps()
    assert DEVICE == "cpu" or [one.info["cuda_graph"] for one in runs] == ["replayed", "replayed", "off"]


@on_cuda
@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_are_those_that_are_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of batches of any size, and of a recording that had to be made anew."""
    monkeypatch.setattr(_cuda_graphs, "other_threads", lambda: False)
    model, x, y, loss_of = model_case(name, torch.float64)
    training, plain = both(lambda: model.to(DEVICE), loss_of)
    sizes = [5, 5, 6, 3, 0, 1, 7, 60, 5]
    outcomes = sizes_of_batches(training, plain, x.to(DEVICE), y.to(DEVICE), sizes)
    assert outcomes[-1] == "replayed" or name not in ("mlp", "cnn", "resnet", "transformer"), outcomes


@on_cuda
def test_replayed_steps_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows stand that earlier batches left, one of them without a finite gradient, the bits are those without them."""
    monkeypatch.setattr(_cuda_graphs, "other_threads", lambda: False)
    model, x, y, loss_of = model_case("resnet", torch.float32)
    training, plain = both(lambda: model.to(DEVICE), loss_of, most=9)
    x, y = x.to(DEVICE), y.to(DEVICE)
    x[7] = math.inf
    for rows in (slice(0, 9), slice(0, 9), slice(0, 4), slice(4, 9), slice(2, 3)):
        for one, other in zip(training.step(x[rows], y[rows]), plain.step(x[rows], y[rows]), strict=True):
            torch.testing.assert_close(one, other, rtol=0.0, atol=1e-5)
    assert training.outcome == "replayed"


@on_cuda
def test_noise_is_not_recorded() -> None:
    """A CUDA graph of the user's would add the same noise at every replay: private steps, and noise alone, are refused. So are
    a forward and backward pass, whose replays the engine would not see."""
    run = Run(DEVICE, dtype=torch.float32, check_rows=False, options={"momentum": 0.9})
    x, y = torch.randn(6, 1, 6, 6, device=DEVICE), torch.zeros(6, dtype=torch.long, device=DEVICE)
    stream = torch.cuda.Stream()

    def passes() -> None:
        run.optimizer.zero_grad()
        nn.functional.cross_entropy(run.model(x), y).backward()

    def step() -> None:
        passes()
        run.optimizer.step()

    with warnings.catch_warnings(), torch.cuda.stream(stream):
        warnings.simplefilter("ignore")  # a batch of our own
        for _ in range(4):
            step()
    torch.cuda.synchronize()
    for work in (
        step,
        passes,
        run.optimizer.step,
        lambda: noise.add_gaussian(x, 1.0),
        lambda: noise.add_laplace(x, 1.0, exact=False),
    ):
        graph = torch.cuda.CUDAGraph()
        with pytest.raises((RuntimeError, PrivacyError), match="recorded"), torch.cuda.graph(graph, stream=stream):
            work()
        torch.cuda.synchronize()


@on_cuda
def test_forward_on_another_stream_than_the_step() -> None:
    """A layer's backward runs on the stream of its forward; the step waits for what was measured there."""
    model, x, y, loss_of = model_case("mlp", torch.float64)
    expected, norms = loop_gradients(model, x, y, loss_of)
    model, x, y, _ = on_gpu(model, x, y, loss_of)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PrivacyEngine().make_private(
            module=model, optimizer=optimizer, data_loader=DataLoader(TensorDataset(torch.arange(16)), batch_size=16),
            noise_multiplier=0.0, max_grad_norm=CLIP, loss_reduction="sum", check_rows=False,
        )  # fmt: skip
        for _ in range(3):
            optimizer.zero_grad()
            torch.cuda.synchronize()
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                output = model(x)
                output.register_hook(lambda _g: torch.cuda._sleep(50_000_000))
                loss = loss_of(output, y).sum()
            torch.cuda.current_stream().wait_stream(side)
            loss.backward()
            optimizer.step()
            got = [p.grad.cpu() for p in model.parameters()]
            side.synchronize()
            for g, e in zip(got, expected, strict=True):
                torch.testing.assert_close(g, e, rtol=0.0, atol=1e-11 * CLIP * len(norms))


def test_a_model_that_moves_after_make_private() -> None:
    """``module.to`` keeps the parameters, which is what the engine and the optimizer hold."""
    run = Run("cpu")
    run.model.to(DEVICE)
    run.device = DEVICE
    assert_same(run.train(), Run("cpu").train())


def test_clipping_by_layer_and_automatic() -> None:
    for name in ("per_layer", "automatic"):
        assert_same(Run(DEVICE, clipping=name).train(), Run("cpu", clipping=name).train())


def test_a_model_without_noise_stays_inside_its_clipping_norm() -> None:
    """Each sample alone, in float32 and with TF32 allowed: no longer than max_grad_norm and what is charged."""
    for name in ("mlp", "cnn", "resnet"):
        model, x, y, loss_of = on_gpu(*model_case(name, torch.float32))
        for i in range(len(x)):
            alone = copy.deepcopy(model)
            gradients = private_gradients(alone, x[i : i + 1] * 30, y[i : i + 1] + 3, loss_of, reduction="sum")
            length = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            assert length <= CLIP * (1 + MARGIN + 0.01)
            assert length > 0.5 * CLIP


def test_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dp_accounting")
    from aisec_fast import audit
    from aisec_fast.audit import _report

    monkeypatch.setattr(_report, "_least_refuted", lambda _refuted: None)  # a long search, on the CPU
    reports = []
    for device in (DEVICE, "cpu"):

        def train(attach: Any, device: str = device) -> None:
            run = Run(device, batch=40, noise_multiplier=0.5)
            attach(run.optimizer)
            run.train()

        reports.append(audit.one_run(train, delta=DELTA, canaries=100, guesses=50, source=noise.SeededSource(12)))
    on_device, on_cpu = reports
    assert on_device.steps == on_cpu.steps == 1
    assert on_device.passed
    assert on_device.claimed == on_cpu.claimed
    assert abs(on_device.correct - on_cpu.correct) <= 1  # a guess may lie within rounding of even odds
    assert on_device.correct > 35
