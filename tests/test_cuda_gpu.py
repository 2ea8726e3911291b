"""The CUDA backend on a real GPU: the same bits as the CPU kernels, which the other tests hold to the contract.

Without a GPU only the first test runs; the kernels themselves are then tested on the CPU by test_cuda_on_host.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import aisec_fast
from aisec_fast import _core, _update
from aisec_fast.noise import SeededSource
from tests.conftest import bits

_cuda = pytest.importorskip("aisec_fast._cuda", reason="this build has no CUDA module (no nvcc)")

on_gpu = pytest.mark.skipif(
    _cuda.device_count() == 0, reason="no GPU: the driver is missing or offers no device (test_cuda_on_host.py runs)"
)

KEY = bytes(range(5, 37))
SIZES = [0, 1, 63, 64, 65, 127, 128, 129, 100_003, 3_000_001]
SHAPES = [(0, 3), (3, 0), (1, 1), (3, 127), (3, 129), (7, 1025), (300, 4097), (3, 700_001)]


class Torch:
    """Arrays of torch, which tells its current stream."""

    def __init__(self) -> None:
        self.module = pytest.importorskip("torch", reason="torch is not installed")
        if not self.module.cuda.is_available():
            pytest.skip("this torch has no CUDA")

    def to_gpu(self, array: np.ndarray, bfloat16: bool = False) -> Any:
        if bfloat16:
            return self.module.from_numpy(array.view(np.int16)).view(self.module.bfloat16).cuda()
        return self.module.from_numpy(array).cuda()

    def to_cpu(self, array: Any) -> np.ndarray:
        return array.cpu().numpy()


class Cupy:
    """Arrays of cupy: the general DLPack producer. It has no bfloat16."""

    def __init__(self) -> None:
        self.module = pytest.importorskip("cupy", reason="cupy is not installed")

    def to_gpu(self, array: np.ndarray, bfloat16: bool = False) -> Any:
        if bfloat16:
            pytest.skip("cupy has no bfloat16")
        return self.module.asarray(array)

    def to_cpu(self, array: Any) -> np.ndarray:
        return self.module.asnumpy(array)


@pytest.fixture(params=[Torch, Cupy])
def library(request: pytest.FixtureRequest) -> Any:
    return request.param()


def blake3_state() -> np.ndarray:
    state = np.zeros(700, np.uint32)
    state[:8], state[8] = np.frombuffer(KEY, np.uint32), 16
    return state


def test_without_a_gpu_nothing_fails() -> None:
    assert _cuda.device_count() >= 0
    assert _cuda.runtime_version() >= 13000
    assert _cuda.driver_version() >= 0
    assert _cuda.version == _core.version
    x = np.zeros((2, 3))
    for call in (
        lambda: _cuda.add_gaussian(x, x, 1.0, 2.0**-20, KEY),
        lambda: _cuda.add_laplace(x, x, 1.0, 2.0**-20, KEY),
        lambda: _cuda.first_unfit(x, 1.0),
        lambda: _cuda.norms([x], np.zeros(2)),
        lambda: _cuda.linf_step(x, x, x, 0.1, 0.2, 0.0, 1.0, x),
        lambda: _cuda.l2_step(x, x, x, 0.1, 0.2, 0.0, 1.0, x),
        lambda: _cuda.l1_step(x, x, x, 0.1, 0.2, 0.0, 1.0, x),
        lambda: _cuda.l0_step(x, x, x, 0.1, 0.2, 0.0, 1.0, x),
    ):
        with pytest.raises(ValueError, match="lives on DLPack device type 1, expected 2"):
            call()
    with pytest.raises(ValueError, match="grads is an empty list"):
        _cuda.norms([], np.zeros(0))
    with pytest.raises(ValueError, match="data lives on DLPack device type 1, expected 2"):
        _cuda.blake3_update(blake3_state(), np.zeros(3, np.uint8), 0)
    state, (out, expected) = blake3_state(), np.empty((2, 1000), np.uint8)  # no array of this call is on a GPU
    _cuda.blake3_output(state, out, 30)
    _core.blake3_output(state, expected, 30)
    assert bits(out) == bits(expected)


@on_gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_noise(library: Any, law: str, dtype: str, size: int) -> None:
    if law == "laplace" and dtype == "int64":
        pytest.skip("add_laplace takes no lattice integers")
    x = (np.random.default_rng(size).standard_normal(size) * 100).astype(dtype)
    for out_dtype in ("float32", "float64") if dtype == "int64" else (dtype,):
        expected = np.empty(size, out_dtype)
        out = library.to_gpu(expected)
        getattr(_core, f"add_{law}")(x, expected, 1.3, 2.0**-20, KEY)
        getattr(_cuda, f"add_{law}")(library.to_gpu(x), out, 1.3, 2.0**-20, KEY)
        assert bits(library.to_cpu(out)) == bits(expected)


@on_gpu
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("s", [1.0, 1000.3, 2.0**36, 2.0**40])
def test_noise_at_every_scale(library: Any, law: str, s: float) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e300, -0.0, 5e-324, 0.5, 1.5, *range(500)])
    expected = np.empty_like(x)
    getattr(_core, f"add_{law}")(x, expected, s, 1.0, KEY)
    out = library.to_gpu(x)
    getattr(_cuda, f"add_{law}")(out, out, s, 1.0, KEY)  # in place
    assert bits(library.to_cpu(out)) == bits(expected)


@on_gpu
@pytest.mark.parametrize("size", SIZES)
def test_words_and_first_unfit(library: Any, size: int) -> None:
    expected = np.empty(size, np.uint64)
    out = library.to_gpu(expected)
    _core.random_words(expected, KEY, 0)
    _cuda.random_words(out, KEY, 0)
    assert bits(library.to_cpu(out)) == bits(expected)
    x = np.zeros(size, np.float32)
    assert _cuda.first_unfit(library.to_gpu(x), 1.0) == -1
    x[size // 2 :] = np.nan
    assert _cuda.first_unfit(library.to_gpu(x), 1.0) == (size // 2 if size else -1)


def gradients(shape: tuple[int, int], dtype: str) -> list[np.ndarray]:
    """Two arrays; bfloat16 as its bits. Some rows are tiny, huge, zero, infinite or NaN."""
    rng = np.random.default_rng(shape[1])
    grads = [rng.standard_normal(shape), rng.standard_normal((shape[0], 5))]
    for grad in grads:
        if shape[0] > 6 and grad.size:
            grad[1] *= 1e-200
            grad[2] *= 1e200 if dtype == "float64" else 1e20
            grad[3] = 0
            grad[4, 0], grad[5, 0] = np.inf, np.nan
    if dtype == "bfloat16":
        return [(grad.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for grad in grads]
    return [grad.astype(dtype) for grad in grads]


@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_clipping(library: Any, shape: tuple[int, int], dtype: str) -> None:
    import torch

    half = dtype == "bfloat16"
    host = gradients(shape, dtype)
    native = [torch.from_numpy(g.view(np.int16)).view(torch.bfloat16) if half else g for g in host]
    grads = [library.to_gpu(g, bfloat16=half) for g in host]
    bound = 0.9 * (shape[1] + 5) ** 0.5
    sum_dtype = np.float64 if dtype == "float64" else np.float32

    norms = np.empty(shape[0])
    sums = [np.empty(g.shape[1], sum_dtype) for g in host]
    gpu_norms, gpu_sums = library.to_gpu(norms), [library.to_gpu(s) for s in sums]
    _core.clip_and_sum(native, bound, sums, norms)
    _cuda.clip_and_sum(grads, bound, gpu_sums, gpu_norms)
    np.testing.assert_array_equal(library.to_cpu(gpu_norms), norms)  # NaN has many bits
    assert [bits(library.to_cpu(s)) for s in gpu_sums] == [bits(s) for s in sums]
    _cuda.norms(grads, gpu_norms)
    np.testing.assert_array_equal(library.to_cpu(gpu_norms), norms)

    weights = np.where(np.isfinite(norms), np.linspace(0.0, 2.0, shape[0]), 0.0)
    _core.weighted_sum(native, weights, sums)
    _cuda.weighted_sum(grads, library.to_gpu(weights), gpu_sums)
    assert [bits(library.to_cpu(s)) for s in gpu_sums] == [bits(s) for s in sums]

    integers = [np.empty(g.shape[1], np.int64) for g in host]
    gpu_integers = [library.to_gpu(i) for i in integers]
    for limit in (2**40, 2**40 * 15 // 16, 0):
        _core.lattice_sum(native, bound, bound * 2.0**-20, limit, integers, norms)
        _cuda.lattice_sum(grads, bound, bound * 2.0**-20, limit, gpu_integers, gpu_norms)
        assert [bits(library.to_cpu(i)) for i in gpu_integers] == [bits(i) for i in integers]


@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("own", [1, 2, 3, 5, 9, 12])
def test_wide_rows_are_read_once(own: int, dtype: str) -> None:
    """By blocks of the GPU that wait for one another, each with `own` blocks of columns: the CPU's bits."""
    import torch

    processors = torch.cuda.get_device_properties(0).multi_processor_count
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs a GPU of compute capability 9")
    columns = 1024 * own * (processors - processors // 32 - 1) - 512
    grads = [torch.randn(33, columns).to(getattr(torch, dtype))]
    if own == 3:  # several arrays, some of whose rows do not begin at multiples of 16 bytes
        half = columns // 2 // 8 * 8
        widths = [half, 63, 3, columns - half - 72, 6]
        grads = [part.contiguous() for part in grads[0].split(widths, 1)]
    grads[0][3, 7], grads[-1][9, 1] = float("nan"), float("inf")
    grads[0][11] *= 1e-3
    expected, norms = aisec_fast.clipping.clip_and_sum(grads, 0.7 * columns**0.5)
    there = [g.cuda() for g in grads]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        got, measured = aisec_fast.clipping.clip_and_sum(there, 0.7 * columns**0.5)
        torch.cuda.synchronize()
    assert [bits(one.cpu().numpy()) for one in got] == [bits(one.numpy()) for one in expected]
    np.testing.assert_array_equal(measured.cpu().numpy(), norms.numpy())  # NaN has many bits
    assert any("once" in event.name for event in profile.events())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = aisec_fast.clipping.clip_and_sum(there, 0.7 * columns**0.5)[0]
    for one in recorded:
        one.zero_()
    for _ in range(3):
        graph.replay()
    assert [bits(one.cpu().numpy()) for one in recorded] == [bits(one.numpy()) for one in expected]


@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", ["linf_step", "l2_step", "l1_step", "l0_step"])
def test_adversarial_steps(library: Any, step: str, shape: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(shape[1])
    x = rng.random(shape).astype(dtype)
    adv, gradient = (x + 0.05 * rng.standard_normal(shape)).astype(dtype), rng.standard_normal(shape).astype(dtype)
    if shape[0] > 6:
        gradient[1] *= 1e-30 if dtype == "float32" else 1e-200
        gradient[2], gradient[3, 0], gradient[4, 0] = 0, np.inf, np.nan
        adv[5, 0], adv[6, 0] = np.inf, np.nan
    columns = max(1, shape[1])
    length = {"linf_step": 1.0, "l2_step": columns**0.5, "l1_step": columns / 8, "l0_step": float(columns)}[step]
    for size, eps, low, high in ((0.01, 8 / 255, 0.0, 1.0), (-0.02, 0.02, -np.inf, np.inf), (0.5, np.inf, 0.25, 0.75)):
        numbers = (length * size, length * eps, low, high)
        expected = np.empty_like(x)
        getattr(_core, step)(adv, x, gradient, *numbers, expected)
        on_device = library.to_gpu(adv)
        getattr(_cuda, step)(on_device, library.to_gpu(x), library.to_gpu(gradient), *numbers, on_device)
        assert bits(library.to_cpu(on_device)) == bits(expected)


@on_gpu
def test_rows_apart() -> None:
    torch_ = Torch()
    whole = np.random.default_rng(0).standard_normal((9, 2000)).astype(np.float32)
    norms, expected = torch_.to_gpu(np.empty(3)), np.empty(3)
    _core.norms([whole[::3, :1500]], expected)
    _cuda.norms([torch_.to_gpu(whole)[::3, :1500]], norms)
    assert bits(torch_.to_cpu(norms)) == bits(expected)


@on_gpu
def test_work_follows_the_producers_stream() -> None:
    """On a side stream: x is still being made when the call is queued, and what follows reads its result."""
    torch = Torch().module
    x = np.ones(1 << 20, np.float32)
    expected = np.empty_like(x)
    _core.add_gaussian(x * 3, expected, 1.0, 2.0**-20, KEY)
    for _ in range(10):
        with torch.cuda.stream(torch.cuda.Stream()):
            values = torch.zeros(1 << 20, device="cuda")
            torch.cuda._sleep(10_000_000)
            values += 3
            _cuda.add_gaussian(values, values, 1.0, 2.0**-20, KEY)
            doubled = values * 2
        torch.cuda.synchronize()
        assert bits(doubled.cpu().numpy()) == bits(expected * 2)


@on_gpu
def test_samples_beyond_2_to_31() -> None:
    torch = Torch().module
    size = 2**31 + 200
    if torch.cuda.mem_get_info()[0] < 5 * size:
        pytest.skip(f"needs {5 * size >> 30} GiB of free GPU memory")
    values = torch.zeros(size, dtype=torch.float32, device="cuda")
    values[-1] = float("nan")
    assert _cuda.first_unfit(values, 1.0) == size - 1
    values[-1] = 0.0
    _cuda.add_gaussian(values, values, 1.0, 2.0**-20, KEY)
    from aisec_fast._reference import noise as reference

    integers = np.array(reference.gaussian_integers(KEY, 2.0**20, size - 300, size))
    expected = reference.from_lattice(integers, 2.0**-20, np.float32)
    assert bits(values[-300:].cpu().numpy()) == bits(expected)


@on_gpu
def test_arrays_on_two_devices_are_refused() -> None:
    torch_ = Torch()
    on_cuda = torch_.to_gpu(np.zeros(3))
    with pytest.raises(ValueError, match="out lives on DLPack device type 1"):
        _cuda.add_gaussian(on_cuda, np.zeros(3), 1.0, 2.0**-20, KEY)
    if _cuda.device_count() > 1:
        with pytest.raises(ValueError, match="out and x are on different GPUs"):
            _cuda.add_gaussian(on_cuda, on_cuda.to("cuda:1"), 1.0, 2.0**-20, KEY)


@on_gpu
def test_public_functions_take_gpu_arrays() -> None:
    torch_ = Torch()
    grads = np.random.default_rng(3).standard_normal((16, 1000)).astype(np.float32)
    source, twin = aisec_fast.noise.SeededSource(1), aisec_fast.noise.SeededSource(1)
    on_cuda = aisec_fast.clipping.private_sum(torch_.to_gpu(grads), 1.0, 1.1, source=source)
    assert on_cuda.is_cuda
    assert bits(torch_.to_cpu(on_cuda)) == bits(aisec_fast.clipping.private_sum(grads, 1.0, 1.1, source=twin))


@on_gpu
@pytest.mark.parametrize(
    "size", [0, 1, 1024, 1025, 2**20, 2**20 + 1, 3_000_001, 2**28 + 7 * 1024, 2**29 + 12_345, 2**30 + 12_345]
)
def test_blake3(library: Any, size: int) -> None:
    """One slice and several, aligned to words and not, after any number of chunks."""
    memory = np.tile(np.arange(251, dtype=np.uint8), (size + 1) // 251 + 1)[: size + 1]
    on_device = library.to_gpu(memory)
    for shift in (0, 1):
        expected = blake3_state()
        _core.blake3_update(expected, memory[shift : shift + size], 0)
        for first in sorted({0, min(size, 5 * 1024), min(size, 1027), size // 3}):
            state = blake3_state()
            _cuda.blake3_update(state, on_device[shift : shift + first], 0)
            _cuda.blake3_update(state, on_device[shift + first : shift + size], 0)
            assert bits(state) == bits(expected)


@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["sgd", "adam"])
def test_fused_steps_of_parameters(form: str, dtype: str) -> None:
    """Parameters as they are, more than one launch takes, on a side stream where the sums are still being made."""
    torch = Torch().module
    rng = np.random.default_rng(2)
    shapes = [(k % 5 + 1, 7 * k + 1) for k in range(70)] + [(), (0, 3), (300, 1000)]
    host = [[np.asarray(np.abs(rng.standard_normal(shape)), dtype) for shape in shapes] for _ in range(4)]
    lists = [[torch.from_numpy(array.copy()).cuda() for array in arrays] for arrays in host]
    lists[0] = [torch.nn.Parameter(param) for param in lists[0]]
    loss = sum((param * param).sum() for param in lists[0])

    def step(params: Any, sums: Any, first: Any, second: Any) -> None:
        more: dict[str, Any] = {"buffers": first, "momentum": 0.9}
        if form == "adam":
            more = {"exp_avg": first, "exp_avg_sq": second, "step": 3}
        getattr(_update, form)(params, sums, _update.Noise(1.5, source=SeededSource(3)), 8.0, lr=0.1, **more)

    torch.cuda.synchronize()
    for turn in range(3):
        step(*host)
        for total in host[1]:
            total += turn
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(10_000_000)
            step(*lists)
            torch._foreach_add_(lists[1], turn)
        torch.cuda.synchronize()
        for arrays, tensors in zip(host, lists, strict=True):
            assert [bits(array) for array in arrays] == [bits(t.detach().cpu().numpy()) for t in tensors]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@on_gpu
def test_fused_steps_refuse_tensors_by_name() -> None:
    torch = Torch().module

    def ones(*shape: int, **options: Any) -> Any:
        return torch.ones(*shape, device="cuda", **options)

    memory, cut, part = ones(100), ones(5), ones(10)[5:]
    cut.untyped_storage().resize_(8)
    part.untyped_storage().resize_(36)
    cases: list[tuple[list[Any], list[Any], type[Exception], str]] = [
        ([torch.ones(5)], [ones(5)], ValueError, r"params\[0\] lives on cpu, sums\[0\] on cuda:0; expected one device"),
        ([ones(5)], [torch.ones(5)], ValueError, r"params\[0\] lives on cuda:0, sums\[0\] on cpu; expected one device"),
        ([ones(5), torch.ones(5)], [ones(5), ones(5)], ValueError, r"params\[1\] lives on cpu"),
        ([np.ones(5, np.float32)], [ones(5)], ValueError, r"params\[0\] lives on cpu"),
        ([ones(4)], [ones(5)], ValueError, r"params\[0\] has shape \(4,\), expected \(5,\)"),
        ([ones(5).double()], [ones(5)], TypeError, r"params\[0\] has dtype float64"),
        ([ones(5)], [ones(5).half()], TypeError, r"sums\[0\] has dtype float16"),
        ([ones(5)], [ones(5, dtype=torch.complex64)], TypeError, r"sums\[0\] has dtype complex64"),
        ([ones(10)[::2]], [ones(5)], ValueError, r"params\[0\] is not C-contiguous"),
        ([memory[:50]], [memory[49:99]], ValueError, r"sums\[0\] overlaps params\[0\]"),
        ([memory[:50], memory[:50]], [ones(50), ones(50)], ValueError, r"params\[1\] overlaps params\[0\]"),
        ([ones(5)], [ones(5, requires_grad=True)], ValueError, r"sums\[0\] requires grad; pass sums\[0\].detach"),
        ([ones(5, requires_grad=True) * 1.0], [ones(5)], ValueError, r"params\[0\] requires grad"),
        ([cut], [ones(5)], ValueError, r"params\[0\] has no memory"),
        ([part], [ones(5)], ValueError, r"params\[0\] has no memory"),
        ([torch._neg_view(ones(5))], [ones(5)], ValueError, r"params\[0\] is a lazily negated"),
        ([ones(5).to_sparse()], [ones(5)], TypeError, r"params\[0\] has layout torch.sparse_coo"),
        ([ones(5)], [ones(5), ones(2)], ValueError, "params has 1 arrays, expected 2"),
    ]
    if _cuda.device_count() > 1:
        cases.append(
            ([ones(5).to("cuda:1")], [ones(5)], ValueError, r"params\[0\] lives on cuda:1, sums\[0\] on cuda:0")
        )
    for params, sums, error, message in cases:
        with pytest.raises(error, match=f"^{message}"):
            _update.sgd(params, sums, _update.Noise(1.0), 2.0, lr=0.1)
        assert all((total == 1).all() for total in sums)
    for name in ("native", "numba"):
        with (
            aisec_fast.use_backend(name),
            pytest.raises(aisec_fast.BackendError, match=rf"backend is '{name}', but sums\[0\] lives on cuda:0"),
        ):
            _update.sgd([ones(5)], [ones(5)], _update.Noise(1.0), 2.0, lr=0.1)
    with aisec_fast.use_backend("cuda"):
        _update.sgd([ones(5)], [ones(5)], _update.Noise(1.0), 2.0, lr=0.1)
