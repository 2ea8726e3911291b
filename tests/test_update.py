"""Noise and an optimizer's step in one, on every backend: the bits of the noise family and of the reference."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aisec_fast
from aisec_fast import _core, _update, noise
from aisec_fast._reference import update as reference
from tests.conftest import WITHOUT_JIT, Kernels, bits

SIZES = [0, 1, 3, 127, 128, 129, 0, 300] if WITHOUT_JIT else [0, 1, 127, 128, 129, 0, 255, 257, 5000]
DTYPES = ["float32", "float64"]
DIVISOR = 25.6
NASTY = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-30, 2.0**-21, 3 * 2.0**-21]


def arrays(dtype: str, seed: int, sizes: list[int] = SIZES) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(dtype) for size in sizes]


def keys(count: int) -> list[bytes]:
    source = noise.SeededSource(5)
    return [source.next_key() for _ in range(count)]


def release(sigma: float, count: int) -> tuple[Any, ...]:
    """The arguments of a kernel after its arrays."""
    return DIVISOR, sigma, 2.0**-20, keys(count) if sigma else [], "chacha"


def means(kernels: Kernels, sums: list[np.ndarray], sigma: float) -> list[np.ndarray]:
    """What sums must become: the noise family's noise, then the division."""
    expected = [total.copy() for total in sums]
    if sigma:
        for total, key in zip(expected, keys(len(sums)), strict=True):
            kernels.noise.add_gaussian(total, total, sigma, 2.0**-20, key)
    return [total / total.dtype.type(DIVISOR) for total in expected]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    assert [bits(array) for array in left] == [bits(array) for array in right]


def pure(values: list[np.ndarray]) -> list[np.ndarray]:
    """With one NaN for all NaNs, whose bits are not promised."""
    return [np.where(np.isnan(array), array.dtype.type(np.nan), array) for array in values]


@pytest.mark.parametrize("sigma", [0.0, 1.5, 2.0**5])  # 2^5: integers of 64 bits
@pytest.mark.parametrize("dtype", DTYPES)
def test_noisy_mean_is_noise_and_a_division(kernels: Kernels, dtype: str, sigma: float) -> None:
    sums = arrays(dtype, 1)
    sums[-1][: len(NASTY)] = NASTY
    expected = means(kernels, sums, sigma)
    kernels.update.noisy_mean(sums, *release(sigma, len(sums)))
    same(pure(sums), pure(expected))
    assert sigma == 0 or np.isfinite(sums[-1]).all()


@pytest.mark.parametrize("divisor", [256.0, 1.0, 0.5, 2.0**90, 2.0**-90, 2.0**120, 2.0**-140, 255.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_divide_as_other_numbers(kernels: Kernels, dtype: str, divisor: float) -> None:
    """Also where the quotient is subnormal, or no number any more."""
    sums = arrays(dtype, 6)
    sums[-1][: len(NASTY)] = NASTY
    small = sums[-2][:50]
    small[:] = np.float32(1e-38) * np.linspace(0, 1, 50, dtype=dtype)[: small.size]
    params, again = arrays(dtype, 7), [total.copy() for total in sums]
    with np.errstate(over="ignore"):
        expected = [total / total.dtype.type(divisor) for total in sums]
        steps = [
            reference.sgd(mean, p, p, 0.1, 0.0, 0.0, 0.0, nesterov=False, maximize=False, first=False)
            for mean, p in zip(expected, params, strict=True)
        ]
    kernels.update.noisy_mean(sums, divisor, 0.0, 1.0, [], "chacha")
    same(pure(sums), pure(expected))
    kernels.update.sgd_step(again, params, [], divisor, 0.0, 1.0, [], "chacha", 0.1, 0.0, 0.0, 0.0, False, False, False)
    same(pure(again), pure(expected))
    same(pure(params), pure([step[0] for step in steps]))


def test_noisy_mean_of_the_reference() -> None:
    """Down to the reference's own integers."""
    for sigma in (0.0, 1.5):
        sums = arrays("float32", 2, [7, 1])
        arguments = release(sigma, 2)
        expected = [
            reference.noisy_mean(total, DIVISOR, sigma, 2.0**-20, key)
            for total, key in zip(sums, arguments[3] or [b"", b""], strict=True)
        ]
        _core.noisy_mean(sums, *arguments)
        same(sums, expected)


def check_sgd(kernels: Kernels, dtype: str, sigma: float, options: tuple[Any, ...], nasty: bool) -> None:
    sums, params, buffers = (arrays(dtype, seed) for seed in (1, 2, 3))
    if nasty:
        params[-1][: len(NASTY)], buffers[-1][5 : 5 + len(NASTY)] = NASTY, NASTY
    lr, momentum, dampening, decay, nesterov, maximize, first = options
    expected = means(kernels, sums, sigma)
    steps = [
        reference.sgd(*state, lr, momentum, dampening, decay, nesterov=nesterov, maximize=maximize, first=first)
        for state in zip(expected, params, buffers, strict=True)
    ]
    if momentum and first:  # what is not read
        for buffer in buffers:
            buffer[:] = np.nan
    used = buffers if momentum else []
    kernels.update.sgd_step(sums, params, used, *release(sigma, len(sums)), *options)
    same(sums, expected)
    same(pure(params), pure([step[0] for step in steps]))
    same(pure(used), pure([step[1] for step in steps]) if momentum else [])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sgd(kernels: Kernels, dtype: str) -> None:
    for momentum, first, nesterov in ((0.0, False, False), (0.9, True, False), (0.9, False, False), (0.9, False, True)):
        for decay, maximize in ((0.0, False), (0.01, True)):
            check_sgd(kernels, dtype, 1.5, (0.1, momentum, 0.0, decay, nesterov, maximize, first), nasty=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 1.5]),
    st.tuples(
        st.sampled_from([0.0, 0.1, 3.0, 1e30]),
        st.sampled_from([0.0, 0.9, 1e-3]),
        st.sampled_from([0.0, 0.3, 1.0, -0.5]),
        st.sampled_from([0.0, 0.01]),
        *[st.booleans()] * 3,
    ),
)
def test_sgd_with_any_options(kernels: Kernels, dtype: str, sigma: float, options: tuple[Any, ...]) -> None:
    check_sgd(kernels, dtype, sigma, options, nasty=True)


def check_adam(
    kernels: Kernels, dtype: str, sigma: float, options: tuple[Any, ...], amsgrad: bool, nasty: bool
) -> None:
    sums, params, averages, squares, largest = (arrays(dtype, seed) for seed in range(1, 6))
    for array in (*squares, *largest):
        np.square(array, out=array)
    if nasty:
        params[-1][: len(NASTY)], averages[-1][5 : 5 + len(NASTY)] = NASTY, NASTY
        squares[-1][10 : 10 + len(NASTY)], largest[-1][15 : 15 + len(NASTY)] = np.abs(NASTY), np.abs(NASTY)
    expected = means(kernels, sums, sigma)
    maxima = largest if amsgrad else [None] * len(sums)
    *numbers, maximize = options
    steps = [
        reference.adam(*state, *numbers, maximize=maximize)
        for state in zip(expected, params, averages, squares, maxima, strict=True)
    ]
    used = largest if amsgrad else []
    kernels.update.adam_step(sums, params, averages, squares, used, *release(sigma, len(sums)), *options)
    same(sums, expected)
    for place, state in enumerate((params, averages, squares, used)):
        same(pure(state), pure([step[place] for step in steps]) if state else [])


@pytest.mark.parametrize("dtype", DTYPES)
def test_adam(kernels: Kernels, dtype: str) -> None:
    check_adam(kernels, dtype, 1.5, (0.9, 0.999, 0.01, 0.03, 1e-8, 0.0, 1.0, False), amsgrad=False, nasty=False)
    check_adam(kernels, dtype, 1.5, (0.9, 0.999, 0.01, 0.03, 1e-8, 0.0, 0.99, True), amsgrad=True, nasty=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 1.5]),
    st.tuples(
        st.sampled_from([0.9, 0.0, 0.3, 0.5]),
        st.sampled_from([0.999, 0.0]),
        st.sampled_from([0.01, 0.0, 1e30]),
        st.sampled_from([0.03, 1.0]),
        st.sampled_from([1e-8, 0.1]),
        st.sampled_from([0.0, 0.01]),
        st.sampled_from([1.0, 0.999]),
        st.booleans(),
    ),
    st.booleans(),
)
def test_adam_with_any_options(
    kernels: Kernels, dtype: str, sigma: float, options: tuple[Any, ...], amsgrad: bool
) -> None:
    check_adam(kernels, dtype, sigma, options, amsgrad, nasty=True)


# ------------------------------------------------------------------------------------------------ the Python functions


# The last one is shared by several threads, and its chunks start inside it.
SHAPES = [(30, 20), (0, 3), (), (7,), (5, 5) if WITHOUT_JIT else (40, 40, 50)]


def model(seed: int, dtype: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def run_all(make: Any, source: noise.Source) -> list[list[Any]]:
    """Every function once, with arrays that `make` makes of numpy's; all that they wrote."""
    lists = [[make(array) for array in model(seed)] for seed in range(9)]
    for array in lists[5] + lists[8]:
        array[...] = array * array
    noise_of_call = _update.Noise(1.5, source=source)
    _update.noisy_mean(lists[0], noise_of_call, DIVISOR)
    _update.sgd(lists[1], lists[2], noise_of_call, DIVISOR, lr=0.1, momentum=0.9, nesterov=True, buffers=lists[3])
    _update.adam(
        lists[4], lists[6], noise_of_call, DIVISOR, lr=0.1, exp_avg=lists[7], exp_avg_sq=lists[5], step=3,
        max_exp_avg_sq=lists[8], weight_decay=0.1, decoupled=True,
    )  # fmt: skip
    return lists


@pytest.mark.parametrize("threads_wanted", [1, 2, 3, 7])
def test_threads_and_libraries_and_forks_do_not_matter(backend: str, threads: Any, threads_wanted: int) -> None:
    torch = pytest.importorskip("torch")
    with aisec_fast.use_backend("native"):
        threads(1)
        expected = run_all(np.copy, noise.SeededSource(8))
    threads(threads_wanted)
    for make in (np.copy, lambda array: torch.tensor(array)):
        for got, wanted in zip(run_all(make, noise.SeededSource(8)), expected, strict=True):
            same([np.asarray(array) for array in got], wanted)
    if backend == "native" and hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            equal = [bits(a) for arrays in run_all(np.copy, noise.SeededSource(8)) for a in arrays] == [
                bits(a) for arrays in expected for a in arrays
            ]
            os._exit(0 if equal else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_that_of_add_gaussian(backend: str, dtype: str) -> None:
    for granularity in (None, 2.0**-10):
        sums, source, twin = model(1, dtype), noise.SeededSource(9), noise.SeededSource(9)
        noisy = noise.add_gaussian(sums, 1.5, granularity=granularity, source=twin)
        _update.noisy_mean(sums, _update.Noise(1.5, granularity, source), DIVISOR)
        same(sums, [np.asarray(total / total.dtype.type(DIVISOR)) for total in noisy])
        assert source.next_key() == twin.next_key()


def test_without_noise_no_key_is_drawn(backend: str) -> None:
    sums, source = model(1), noise.SeededSource(9)
    expected = [np.asarray(total / np.float32(DIVISOR)) for total in sums]
    _update.noisy_mean(sums, _update.Noise(0.0, source=source), DIVISOR)
    same(sums, expected)
    assert source.next_key() == noise.SeededSource(9).next_key()


def test_a_secure_source_draws_anew() -> None:
    first, second = np.zeros((2, 1000), np.float32)
    for sums in (first, second):
        _update.noisy_mean([sums], _update.Noise(1.0), 1.0)
    assert (first != second).all()
    # 8 standard errors: a false alarm below 1e-14
    assert abs((first.astype(float) ** 2).mean() - 1.0) < 8 * (2 / 1000) ** 0.5


def test_no_arrays() -> None:
    plain = _update.Noise(1.0)
    _update.noisy_mean([], plain, 1.0)
    _update.sgd([], [], plain, 1.0, lr=0.1)
    _update.adam([], [], plain, 1.0, lr=0.1, exp_avg=[], exp_avg_sq=[], step=1)


def test_autograd_refuses_a_graph_from_before_the_step() -> None:
    torch = pytest.importorskip("torch")
    param = torch.ones(3, requires_grad=True)
    loss = (param * param).sum()
    _update.sgd([param.detach()], [torch.ones(3)], _update.Noise(0.0), 1.0, lr=0.5)
    assert param.tolist() == [0.5, 0.5, 0.5]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ------------------------------------------------------------------------------------------------ bad input

P, S, B, V, W = (np.ones((4, 6), np.float32) for _ in range(5))
MEMORY = np.ones(100, np.float32)
READ_ONLY = np.ones((4, 6), np.float32)
READ_ONLY.flags.writeable = False


def sgd(params: Any = (P,), sums: Any = (S,), sigma: float = 1.0, divisor: Any = 2.0, **options: Any) -> None:
    source = options.pop("source", None)
    granularity = options.pop("granularity", None)
    _update.sgd(params, sums, _update.Noise(sigma, granularity, source), divisor, **{"lr": 0.1, **options})


def adam(**options: Any) -> None:
    state = {"exp_avg": [B], "exp_avg_sq": [V], "step": 1, "lr": 0.1}
    _update.adam([P], [S], _update.Noise(1.0, source=options.pop("source", None)), 2.0, **{**state, **options})


BAD = [
    (lambda s: sgd(sigma=-1.0, source=s), ValueError, "^sigma is -1"),
    (lambda s: sgd(sigma=np.nan, source=s), ValueError, "^sigma is nan"),
    (lambda s: sgd(granularity=0.3, source=s), ValueError, "^granularity is 0.3"),
    (lambda s: sgd(granularity=2.0, source=s), ValueError, "^granularity is 2"),
    (lambda s: sgd(divisor=0, source=s), ValueError, "^divisor is 0"),
    (lambda s: sgd(divisor="2", source=s), TypeError, "^divisor is a str"),
    (lambda s: sgd(source=3), TypeError, "^source is an int"),
    (lambda s: sgd(lr=-1, source=s), ValueError, "^lr is -1"),
    (lambda s: sgd(lr=np.inf, source=s), ValueError, "^lr is inf"),
    (lambda s: sgd(momentum=-0.1, source=s), ValueError, "^momentum is -0.1"),
    (lambda s: sgd(weight_decay=-1, source=s), ValueError, "^weight_decay is -1"),
    (lambda s: sgd(dampening=np.nan, source=s), ValueError, "^dampening is nan"),
    (lambda s: sgd(maximize=1, source=s), TypeError, "^maximize is an int"),
    (lambda s: sgd(nesterov=True, source=s), ValueError, "^nesterov is True with momentum 0"),
    (lambda s: sgd(momentum=0.9, source=s), ValueError, "^buffers is None, expected a list"),
    (lambda s: sgd(buffers=[B], source=s), ValueError, "^buffers is a list of 1, expected None"),
    (lambda s: sgd(momentum=0.9, buffers=[], source=s), ValueError, "^buffers has 0 arrays, expected 1 as sums"),
    (lambda s: sgd(params=[], source=s), ValueError, "^params has 0 arrays, expected 1 as sums"),
    (lambda s: sgd(params=P, source=s), TypeError, "^params is an ndarray, expected a list"),
    (lambda s: sgd(params=["x"], source=s), TypeError, r"^params\[0\] is a str"),
    (lambda s: sgd(params=[P.astype("f8")], source=s), TypeError, r"^params\[0\] has dtype float64, expected float32"),
    (lambda s: sgd(sums=[S.astype("i8")], source=s), TypeError, r"^sums\[0\] has dtype int64, expected float32 or"),
    (lambda s: sgd([P, B], [S, V.astype("f8")], source=s), TypeError, r"^sums\[1\] has dtype float64"),
    (lambda s: sgd(params=[P.T], source=s), ValueError, r"^params\[0\] has shape \(6, 4\), expected \(4, 6\)"),
    (lambda s: sgd(params=[np.ones((6, 4), "f4").T], source=s), ValueError, r"^params\[0\] is not C-contiguous"),
    (lambda s: sgd(sums=[np.ones((4, 12), "f4")[:, ::2]], source=s), ValueError, r"^sums\[0\] is not C-contiguous"),
    (lambda s: sgd(params=[READ_ONLY], source=s), ValueError, r"^params\[0\] is read-only"),
    (lambda s: sgd(sums=[READ_ONLY], source=s), ValueError, r"^sums\[0\] is read-only"),
    (lambda s: sgd(params=[S], source=s), ValueError, r"^params\[0\] overlaps sums\[0\]"),
    (lambda s: sgd([P, P], [S, B], source=s), ValueError, r"^params\[1\] overlaps params\[0\]"),
    (lambda s: sgd([MEMORY[:50]], [MEMORY[49:99]], source=s), ValueError, r"^sums\[0\] overlaps params\[0\]"),
    (lambda s: adam(exp_avg=[S], source=s), ValueError, r"^exp_avg\[0\] overlaps sums\[0\]"),
    (lambda s: adam(exp_avg_sq=[B, V], source=s), ValueError, "^exp_avg_sq has 2 arrays, expected 1"),
    (lambda s: adam(max_exp_avg_sq=[P[:2]], source=s), ValueError, r"^max_exp_avg_sq\[0\] has shape \(2, 6\)"),
    (lambda s: adam(betas=(0.9, 1.0), source=s), ValueError, r"^betas\[1\] is 1.0, expected below 1"),
    (lambda s: adam(betas=(-0.1, 0.9), source=s), ValueError, r"^betas\[0\] is -0.1"),
    (lambda s: adam(betas=0.9, source=s), TypeError, "^betas is 0.9, expected two numbers"),
    (lambda s: adam(eps=-1e-8, source=s), ValueError, "^eps is -1e-08"),
    (lambda s: adam(step=0, source=s), ValueError, "^step is 0, expected at least 1"),
    (lambda s: adam(step=1.0, source=s), TypeError, "^step is a float"),
    (lambda s: adam(decoupled=None, source=s), TypeError, "^decoupled is a NoneType"),
    (lambda s: _update.noisy_mean([S], 1.0, 2.0), TypeError, "^noise is a float, expected a Noise"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named_before_anything_is_written(call: Any, error: type[Exception], message: str) -> None:
    source = noise.SeededSource(3)
    with pytest.raises(error, match=message):
        call(source)
    for array in (P, S, B, V, W, MEMORY):
        assert (array == 1.0).all()
    assert source.next_key() == noise.SeededSource(3).next_key()


def test_torch_tensors_that_require_grad_are_refused() -> None:
    """But parameters, which autograd's leaves are."""
    torch = pytest.importorskip("torch")
    leaf = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"^params\[0\] requires grad; pass params\[0\]\.detach"):
        sgd([leaf * 1.0], [torch.ones(3)])
    with pytest.raises(ValueError, match=r"^sums\[0\] requires grad; pass sums\[0\]\.detach"):
        sgd([torch.ones(3)], [leaf])
    with pytest.raises(ValueError, match=r"^exp_avg\[0\] requires grad"):
        _update.adam(
            [leaf], [torch.ones(3)], _update.Noise(0.0), 1.0, lr=0.1, exp_avg=[leaf], exp_avg_sq=[torch.ones(3)], step=1
        )
    assert leaf.tolist() == [1.0] * 3


@pytest.mark.parametrize("kind", ["leaf", "Parameter", "Parameter beside numpy's arrays", "subclass"])
def test_leaves_of_autograd_are_parameters(backend: str, kind: str) -> None:
    torch = pytest.importorskip("torch")
    param = torch.ones(3, requires_grad=True)
    if kind.startswith("Parameter"):
        param = torch.nn.Parameter(torch.ones(3))
    elif kind == "subclass":
        param = torch.nn.Parameter(torch.ones(3).as_subclass(type("Own", (torch.Tensor,), {})))
    sums = np.ones(3, np.float32) if kind.endswith("arrays") else torch.ones(3)
    loss = (param * param).sum()
    _update.sgd([param], [sums], _update.Noise(0.0), 1.0, lr=0.5)
    assert param.tolist() == [0.5, 0.5, 0.5]
    assert param.requires_grad
    assert param.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("params", "sums", "error", "message"),
    [
        ([0, 0], [1, 2], ValueError, r"^params\[1\] overlaps params\[0\]"),
        ([0], [0], ValueError, r"^params\[0\] overlaps sums\[0\]"),
        ([3], [0], ValueError, r"^params\[0\] has shape \(6, 4\), expected \(4, 6\)"),
        ([4], [0], ValueError, r"^params\[0\] is not C-contiguous"),
        ([5], [0], TypeError, r"^params\[0\] has dtype float64"),
        ([0], [6], TypeError, r"^sums\[0\] has dtype float16"),
        ([0, 1], [2], ValueError, r"^params has 2 arrays, expected 1"),
        ([7], [8], ValueError, r"^sums\[0\] overlaps params\[0\]"),
    ],
)
def test_tensors_are_refused_as_arrays_are(
    params: list[int], sums: list[int], error: type[Exception], message: str
) -> None:
    """Tensors of torch go to the native kernels undescribed; what these refuse is described then."""
    torch = pytest.importorskip("torch")
    memory = torch.ones(100)
    tensors = [*torch.ones(3, 4, 6), torch.ones(6, 4), torch.ones(6, 4).t(), torch.ones(4, 6, dtype=torch.float64)]
    tensors += [torch.ones(4, 6, dtype=torch.float16), memory[:50], memory[49:99]]
    with pytest.raises(error, match=message):
        sgd([tensors[i] for i in params], [tensors[i] for i in sums])
    for tensor in (*tensors, memory):
        assert (tensor == 1.0).all()


def unreadable() -> dict[str, tuple[Any, type[Exception], str]]:
    """Tensors of torch that no kernel may read, most of which DLPack's C exchange API would hand out all the same."""
    torch = pytest.importorskip("torch")
    cut, part = torch.ones(4), torch.ones(8)[4:]
    cut.untyped_storage().resize_(8)
    part.untyped_storage().resize_(28)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that such tensors will go
        quantised = torch.quantize_per_tensor(torch.ones(4), 1.0, 0, torch.quint8)
    return {
        "cut": (cut, ValueError, "has no memory"),
        "cut after its start": (part, ValueError, "has no memory"),
        "negated": (torch._neg_view(torch.ones(4)), ValueError, "is a lazily negated or conjugated tensor"),
        "conjugated": (torch.ones(4, dtype=torch.complex64).conj(), ValueError, "is a lazily negated or conjugated"),
        "quantised": (quantised, TypeError, "has dtype quint8"),
        "sparse": (torch.ones(4).to_sparse(), TypeError, "has layout torch.sparse_coo"),
        "meta": (torch.ones(4, device="meta"), ValueError, "lives on meta"),
    }


@pytest.mark.parametrize("kind", ["cut", "cut after its start", "negated", "conjugated", "quantised", "sparse", "meta"])
@pytest.mark.parametrize("name", ["params", "buffers"])
def test_tensors_that_no_kernel_may_read_are_named(kind: str, name: str) -> None:
    torch = pytest.importorskip("torch")
    tensor, error, message = unreadable()[kind]
    lists = {"params": [torch.ones(4)], "buffers": [torch.ones(4)], name: [tensor]}
    params, sums = lists.pop("params"), torch.ones(4)
    with pytest.raises(error, match=rf"^{name}\[0\] {message}"):
        sgd(params, [sums], momentum=0.9, **lists)
    assert (sums == 1.0).all()
    if kind in {"cut", "cut after its start", "negated"}:  # by the kernel's own check
        with pytest.raises(ValueError, match=f"^{name} (has no memory|is a lazily negated tensor)"):
            _core.sgd_step([sums], params, lists["buffers"], *release(0.0, 1), 0.1, 0.9, 0.0, 0.0, False, False, False)


def test_lists_are_lists() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"^sums is a Tensor, expected a list"):
        _update.noisy_mean(torch.ones(4), _update.Noise(1.0), 2.0)


def test_without_the_exchange_api_tensors_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in torch from before there was one."""
    torch = pytest.importorskip("torch")
    if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    param = torch.nn.Parameter(torch.ones(3))
    _update.sgd([param], [torch.ones(3)], _update.Noise(0.0), 1.0, lr=0.5)
    assert param.tolist() == [0.5, 0.5, 0.5]


def test_a_forced_backend_is_asked_for_tensors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    sums = [torch.ones(3)]
    monkeypatch.setenv("AISEC_FAST_BACKEND", "cuda")
    with pytest.raises(aisec_fast.BackendError, match=r"^backend is 'cuda', but sums\[0\] lives on cpu"):
        _update.noisy_mean(sums, _update.Noise(0.0), 2.0)
    monkeypatch.setenv("AISEC_FAST_BACKEND", "fortran")
    with pytest.raises(aisec_fast.BackendError, match="is 'fortran', expected one of"):
        _update.noisy_mean(sums, _update.Noise(0.0), 2.0)
    monkeypatch.setenv("AISEC_FAST_BACKEND", "numba")
    monkeypatch.setattr(_core, "noisy_mean", None)
    _update.noisy_mean(sums, _update.Noise(0.0), 2.0)
    assert sums[0].tolist() == [0.5] * 3


def test_a_kernel_checks_its_lists() -> None:
    one = (1.0, 1.0, 2.0**-20, keys(1), "chacha")
    with pytest.raises(ValueError, match="params has another length than sums"):
        _core.sgd_step([S], [], [], *one, 0.1, 0.0, 0.0, 0.0, False, False, False)
    with pytest.raises(ValueError, match="buffers has another length than sums"):
        _core.sgd_step([S], [P], [], *one, 0.1, 0.9, 0.0, 0.0, False, False, False)
    with pytest.raises(ValueError, match="keys has 1 keys, expected one for each"):
        _core.noisy_mean([S, P], *one)
    with pytest.raises(ValueError, match="params has another shape than sums"):
        _core.sgd_step([S], [P[0, :2]], [], *one, 0.1, 0.0, 0.0, 0.0, False, False, False)
    for sums, params in (([S], [S]), ([MEMORY[:50]], [MEMORY[49:99]]), ([MEMORY[49:99]], [MEMORY[:50]])):
        with pytest.raises(ValueError, match="overlap in memory"):
            _core.sgd_step(sums, params, [], *one, 0.1, 0.0, 0.0, 0.0, False, False, False)
    assert (MEMORY == 1.0).all()
    assert (S == 1.0).all()
