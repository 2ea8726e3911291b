"""The Python module `_cuda` without a GPU: compiled on the stand-in, called with arrays that say they are on one.

What it must get right around the kernels: arguments, devices, streams, errors.
"""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from aisec_fast import _backends, _core, _update, noise
from tests.conftest import bits
from tests.cuda_on_host import build
from tests.cuda_on_host.arrays import Exchanging, Plain, exchange_api_on_gpu

pytestmark = pytest.mark.skipif(not build.available(), reason=f"no C++ compiler: {build.COMPILER} is not on the path")

KEY = bytes(range(3, 35))
LEGACY_STREAM = 1


@pytest.fixture(scope="module")
def cuda() -> ModuleType:
    return build.extension()


@pytest.fixture
def noted(cuda: ModuleType) -> Any:
    library = ctypes.CDLL(cuda.__file__)
    library.last_stream.restype = ctypes.c_void_p
    library.record.argtypes = [ctypes.c_void_p, ctypes.c_bool]
    return library


def values(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(4).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("array", [Plain, Exchanging])
def test_every_function_computes(cuda: ModuleType, array: Any) -> None:
    x, out, expected = values(500), *np.empty((2, 500), np.float32)
    for law in ("gaussian", "laplace"):
        getattr(_core, f"add_{law}")(x, expected, 1.5, 2.0**-20, KEY)
        getattr(cuda, f"add_{law}")(array(x), array(out), 1.5, 2.0**-20, KEY)
        assert bits(out) == bits(expected)
    integers = np.arange(500)
    _core.add_gaussian(integers, expected, 1.5, 2.0**-20, KEY)
    cuda.add_gaussian(array(integers), array(out), 1.5, 2.0**-20, KEY)
    assert bits(out) == bits(expected)
    words, expected_words = np.empty((2, 300), np.uint64)
    _core.random_words(expected_words, KEY, 0)
    cuda.random_words(array(words), KEY, 0)
    assert bits(words) == bits(expected_words)
    assert cuda.first_unfit(array(x), 1.0) == -1
    x[77] = np.inf
    assert cuda.first_unfit(array(x), 1.0) == 77

    grads = [values(9, 2000)[::2, :1500], values(5, 3, 4)]
    on_gpu = [array(g) for g in grads]
    norms, expected_norms = np.empty((2, 5))
    _core.norms(grads, expected_norms)
    cuda.norms(on_gpu, array(norms))
    assert bits(norms) == bits(expected_norms)
    for name, dtype, numbers in (("clip_and_sum", "f4", [2.0]), ("lattice_sum", "i8", [2.0, 2.0**-20, 2**42])):
        outs, expected_outs = ([np.empty(size, dtype) for size in (1500, 12)] for _ in range(2))
        norms[:] = 0
        getattr(_core, name)(grads, *numbers, expected_outs, expected_norms)
        getattr(cuda, name)(on_gpu, *numbers, [array(out) for out in outs], array(norms))
        assert bits(norms) == bits(expected_norms)
        assert [bits(out) for out in outs] == [bits(out) for out in expected_outs]
    outs, expected_outs = ([np.empty(size, "f4") for size in (1500, 12)] for _ in range(2))
    _core.weighted_sum(grads, norms, expected_outs)
    cuda.weighted_sum(on_gpu, array(norms), [array(out) for out in outs])
    assert [bits(out) for out in outs] == [bits(out) for out in expected_outs]

    adv, center, gradient = values(3, 70), values(3, 70) * 0.9, values(3, 70) - 0.1
    for step in ("linf_step", "l2_step", "l1_step", "l0_step"):
        result, wanted = np.empty((2, 3, 70), np.float32)
        numbers = (0.1, 2.2, -3.0, 3.0)
        getattr(_core, step)(adv, center, gradient, *numbers, wanted)
        getattr(cuda, step)(array(adv), array(center), array(gradient), *numbers, array(result))
        assert bits(result) == bits(wanted)

    release = (64.0, 1.5, 2.0**-20, [KEY], "chacha")
    for step, used, more in (
        ("noisy_mean", 1, ()),
        ("sgd_step", 3, (0.1, 0.9, 0.1, 0.01, False, True, False)),
        ("adam_step", 4, ([], 0.9, 0.99, 0.1, 0.5, 1e-8, 0.0, 0.99, False)),
    ):
        given, wanted = ([np.abs(values(300)) * (k + 1) for k in range(used)] for _ in range(2))
        between, numbers = (more[:1], more[1:]) if used == 4 else ((), more)
        getattr(_core, step)(*([a] for a in wanted), *between, *release, *numbers)
        getattr(cuda, step)(*([array(a)] for a in given), *between, *release, *numbers)
        assert [bits(a) for a in given] == [bits(a) for a in wanted]
    cuda.noisy_mean([], *release[:3], [], "chacha")


def blake3_state() -> np.ndarray:
    state = np.zeros(700, np.uint32)
    state[:8], state[8] = np.frombuffer(KEY, np.uint32), 16
    return state


@pytest.mark.parametrize("array", [Plain, Exchanging])
def test_hashing_keeps_its_state_on_the_host(cuda: ModuleType, noted: Any, array: Any) -> None:
    data = np.random.default_rng(5).integers(0, 256, 9000, dtype=np.uint8)
    state, expected = blake3_state(), blake3_state()
    _core.blake3_update(expected, data, 0)
    waits = noted.waits()
    for part in (data[:0], data[:1500], data[1500:]):
        cuda.blake3_update(state, array(part), 0)
    assert noted.waits() > waits
    assert bits(state) == bits(expected)
    out, expected_out = np.empty((2, 300), np.uint8)
    cuda.blake3_output(state, out, 77)
    _core.blake3_output(expected, expected_out, 77)
    assert bits(out) == bits(expected_out)


def test_work_goes_to_the_arrays_device_and_back(cuda: ModuleType, noted: Any) -> None:
    x = values(10)
    for device in (1, 0):
        cuda.add_gaussian(Plain(x, device), Plain(x, device), 1.0, 2.0**-20, KEY)
        assert (noted.last_device(), noted.current_device()) == (device, 0)
    with pytest.raises(RuntimeError, match="CUDA: an error of the stand-in"):
        cuda.add_gaussian(Plain(x, 7), Plain(x, 7), 1.0, 2.0**-20, KEY)  # no such device
    assert noted.current_device() == 0
    with pytest.raises(ValueError, match="out and x are on different GPUs"):
        cuda.add_gaussian(Plain(x, 0), Plain(x, 1), 1.0, 2.0**-20, KEY)


def test_a_producer_that_cannot_tell_its_stream_is_told_ours(cuda: ModuleType, noted: Any) -> None:
    x, out, waits = Plain(values(10)), Plain(values(10)), noted.waits()
    cuda.add_gaussian(x, out, 1.0, 2.0**-20, KEY)
    assert x.stream_named == out.stream_named == LEGACY_STREAM
    assert noted.last_stream() == LEGACY_STREAM
    assert noted.waits() == waits + 1  # it cannot wait for us, so the call waits


def test_a_producers_current_stream_is_used(cuda: ModuleType, noted: Any) -> None:
    x, waits = Exchanging(values(10)), noted.waits()
    cuda.add_gaussian(x, x, 1.0, 2.0**-20, KEY)
    assert noted.last_stream() == Exchanging.stream
    assert noted.waits() == waits


NOISY: dict[str, tuple[int, Any]] = {  # how many arrays, and a call with them and a sigma
    "add_gaussian": (2, lambda cuda, a, sigma: cuda.add_gaussian(*a, sigma, 2.0**-20, KEY)),
    "add_laplace": (2, lambda cuda, a, sigma: cuda.add_laplace(*a, sigma, 2.0**-20, KEY)),
    "add_float_gaussian": (2, lambda cuda, a, sigma: cuda.add_float_gaussian(*a, sigma, KEY)),
    "add_float_laplace": (2, lambda cuda, a, sigma: cuda.add_float_laplace(*a, sigma, KEY)),
    "noisy_mean": (1, lambda cuda, a, sigma: cuda.noisy_mean([a[0]], 8.0, sigma, 2.0**-20, [KEY][: sigma > 0], "chacha")),
    "sgd_step": (
        2,
        lambda cuda, a, sigma: cuda.sgd_step(
            [a[0]], [a[1]], [], 8.0, sigma, 2.0**-20, [KEY][: sigma > 0], "chacha", 0.1, 0.0, 0.0, 0.0, False, False, False
        ),
    ),
    "adam_step": (
        4,
        lambda cuda, a, sigma: cuda.adam_step(
            *([one] for one in a), [], 8.0, sigma, 2.0**-20, [KEY][: sigma > 0], "chacha", 0.9, 0.99, 0.1, 0.5, 1e-8, 0.0,
            0.99, False,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("array", [Plain, Exchanging])
def test_noise_is_not_recorded(name: str, array: Any, cuda: ModuleType, noted: Any) -> None:
    """A graph would add the same at every replay. Steps without noise may be recorded, and other streams go on."""
    count, call = NOISY[name]
    given = [values(300) for _ in range(count)]
    before = [one.copy() for one in given]
    stream = LEGACY_STREAM if array is Plain else Exchanging.stream
    try:
        noted.record(stream, True)
        with pytest.raises(RuntimeError, match="each replay would add the same noise"):
            call(cuda, [array(one) for one in given], 1.0)
        assert [bits(one) for one in given] == [bits(one) for one in before]
        if not name.startswith("add_"):
            call(cuda, [array(one) for one in given], 0.0)
        noted.record(0x77, True)
        call(cuda, [array(one) for one in given], 1.0)
    finally:
        noted.record(None, False)


def test_words_are_not_recorded(cuda: ModuleType, noted: Any) -> None:
    words = np.zeros(300, np.uint64)
    try:
        noted.record(LEGACY_STREAM, True)
        with pytest.raises(RuntimeError, match="a CUDA graph is being recorded"):
            cuda.random_words(Plain(words), KEY, 0)
    finally:
        noted.record(None, False)
    assert not words.any()


@pytest.mark.parametrize("stream", [0x1230, 0])
@pytest.mark.parametrize("first", [Plain, Exchanging])
def test_producers_of_both_kinds(
    cuda: ModuleType, noted: Any, first: Any, stream: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Exchanging, "stream", stream)
    second = Exchanging if first is Plain else Plain
    x, out, waits = first(values(10)), second(values(10)), noted.waits()
    cuda.add_gaussian(x, out, 1.0, 2.0**-20, KEY)
    plain = x if first is Plain else out
    assert plain.stream_named == (stream or LEGACY_STREAM)  # DLPack has no 0
    assert (noted.last_stream() or 0) == stream
    assert noted.waits() == waits + 1


@pytest.fixture
def tensors_on_gpu(cuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Module torch, whose tensors say that they are on a GPU: fused steps go to the stand-in."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this torch has no C exchange API")
    api, kept = exchange_api_on_gpu(torch.Tensor)
    monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", api)
    stand_in = _backends.Backend("cuda", *[cuda] * len(_backends._FAMILIES))
    monkeypatch.setattr(_update, "compiled", lambda _name: stand_in)
    yield torch
    del kept


@pytest.mark.parametrize("stream", [0x1230, 0])
def test_a_fused_step_of_tensors(tensors_on_gpu: Any, noted: Any, stream: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters as they are, more than one launch takes, on their current stream and without waiting for it."""
    torch = tensors_on_gpu
    monkeypatch.setattr(Exchanging, "stream", stream)
    shapes = [(k % 5 + 1, 7) for k in range(40)] + [(), (0, 3)]
    host = [[np.asarray(np.abs(values(*shape)) + k) for shape in shapes] for k in range(4)]
    lists = [[torch.tensor(array) for array in arrays] for arrays in host]
    lists[0] = [torch.nn.Parameter(param) for param in lists[0]]
    losses = sum((param * param).sum() for param in lists[0])
    for form, more in (("sgd", {"momentum": 0.9}), ("adam", {"step": 3})):
        waits = noted.waits()
        for (params, sums, first, second), source in ((host, noise.SeededSource(3)), (lists, noise.SeededSource(3))):
            state = {"buffers": first} if form == "sgd" else {"exp_avg": first, "exp_avg_sq": second}
            getattr(_update, form)(params, sums, _update.Noise(1.5, source=source), 8.0, lr=0.1, **state, **more)
        for arrays, tensors in zip(host, lists, strict=True):
            assert [bits(array) for array in arrays] == [bits(t.detach().numpy()) for t in tensors]
        assert (noted.last_stream() or 0) == stream
        assert noted.waits() == waits
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.backward()


def test_a_fused_step_refuses_tensors_by_name(tensors_on_gpu: Any) -> None:
    torch = tensors_on_gpu
    memory, cut = torch.ones(100), torch.ones(5)
    cut.untyped_storage().resize_(8)
    for params, sums, error, message in (
        ([torch.ones(4)], [torch.ones(5)], ValueError, r"params\[0\] has shape \(4,\), expected \(5,\)"),
        ([torch.ones(5).double()], [torch.ones(5)], TypeError, r"params\[0\] has dtype float64"),
        ([torch.ones(5)], [torch.ones(5).half()], TypeError, r"sums\[0\] has dtype float16"),
        ([torch.ones(10)[::2]], [torch.ones(5)], ValueError, r"params\[0\] is not C-contiguous"),
        ([memory[:50]], [memory[49:99]], ValueError, r"sums\[0\] overlaps params\[0\]"),
        ([torch.ones(5)], [torch.nn.Parameter(torch.ones(5))], ValueError, r"sums\[0\] requires grad"),
        ([torch.ones(5)], [torch.ones(5, requires_grad=True)], ValueError, r"sums\[0\] requires grad"),
        ([cut], [torch.ones(5)], ValueError, r"params\[0\] has no memory"),
        ([torch._neg_view(torch.ones(5))], [torch.ones(5)], ValueError, r"params\[0\] is a lazily negated"),
        ([torch.ones(5)], [torch.ones(5), torch.ones(2)], ValueError, "params has 1 arrays, expected 2"),
    ):
        before = [tensor.clone() for tensor in sums]
        with pytest.raises(error, match=f"^{message}"):
            _update.sgd(params, sums, _update.Noise(1.0), 2.0, lr=0.1)
        assert all(torch.equal(*pair) for pair in zip(before, sums, strict=True))


def test_bad_arguments(cuda: ModuleType) -> None:
    x, grad, per_row, byte = Plain(values(8)), Plain(values(4, 6)), Plain(np.zeros(4)), Plain(np.zeros(8, np.uint8))

    def step(adv: Any, center: Any, gradient: Any, out: Any) -> None:
        cuda.l2_step(adv, center, gradient, 0.1, 0.2, 0.0, 1.0, out)

    for call, error, message in (
        (lambda: cuda.add_gaussian([1.0], x, 1.0, 2.0**-20, KEY), TypeError, "x is a list, expected an array"),
        (lambda: cuda.add_gaussian(x.array, x, 1.0, 2.0**-20, KEY), ValueError, "x lives on DLPack device type 1"),
        (
            lambda: cuda.add_gaussian(x, Plain(values(7)), 1.0, 2.0**-20, KEY),
            ValueError,
            "out has 7 values, expected 8",
        ),
        (lambda: cuda.add_gaussian(x, Plain(np.zeros(8)), 1.0, 2.0**-20, KEY), TypeError, "out has another dtype"),
        (
            lambda: cuda.add_gaussian(x, Plain(np.zeros(8, "i8")), 1.0, 2.0**-20, KEY),
            TypeError,
            "out has another dtype",
        ),
        (lambda: cuda.add_laplace(Plain(np.zeros(8, "i8")), x, 1.0, 2.0**-20, KEY), TypeError, "x has another dtype"),
        (lambda: cuda.add_laplace(x, Plain(np.zeros(8)), 1.0, 2.0**-20, KEY), TypeError, "out has another dtype"),
        (lambda: cuda.add_gaussian(x, x, 1.0, 2.0**-20, KEY[1:]), ValueError, "key has 31 bytes, expected 32"),
        (lambda: cuda.add_gaussian(x, x, 1.0, 2.0, KEY), ValueError, "expected 1 to 2"),
        (lambda: cuda.first_unfit(Plain(values(8)[::2]), 1.0), ValueError, "x is not C-contiguous"),
        (lambda: cuda.first_unfit(Plain(np.zeros(8, "i8")), 1.0), TypeError, "x has another dtype"),
        (lambda: cuda.random_words(x, KEY, 0), TypeError, "out has another dtype"),
        (lambda: step(x, x, x, Plain(values(7))), ValueError, "out has 7 values, expected 8"),
        (lambda: step(x, x, Plain(np.zeros(8)), x), TypeError, "gradient has another dtype"),
        (lambda: step(x, Plain(np.zeros(8, "i8")), x, x), TypeError, "x has another dtype"),
        (lambda: step(Plain(values(16)[::2]), x, x, x), ValueError, "adv is not C-contiguous"),
        (lambda: step(x, x, x.array, x), ValueError, "gradient lives on DLPack device type 1"),
        (lambda: cuda.norms([], per_row), ValueError, "grads is an empty list"),
        (lambda: cuda.norms([Plain(np.zeros((4, 6), "i8"))], per_row), TypeError, "grads has an integer dtype"),
        (lambda: cuda.norms([Plain(values(6, 4).T)], per_row), ValueError, "not contiguous inside its rows"),
        (lambda: cuda.norms([grad, Plain(values(3, 6))], per_row), ValueError, "differ in their number of rows"),
        (lambda: cuda.norms([grad], x), TypeError, "norms has another dtype"),
        (lambda: cuda.norms([grad], Plain(np.zeros(3))), ValueError, "norms has 3 values, expected 4"),
        (lambda: cuda.weighted_sum([grad], Plain(np.zeros(3)), []), ValueError, "weights has 3 values, expected 4"),
        (lambda: cuda.clip_and_sum([grad], 1.0, [], per_row), ValueError, "outs has another length than grads"),
        (lambda: cuda.clip_and_sum([grad], 1.0, [x], per_row), ValueError, "out has 8 values, expected 6"),
        (lambda: cuda.lattice_sum([grad], 1.0, 1.0, 1, [x], per_row), TypeError, "out has another dtype"),
        (lambda: cuda.blake3_update(blake3_state(), byte.array, 0), ValueError, "data lives on DLPack device type 1"),
        (lambda: cuda.blake3_update(Plain(blake3_state()), byte, 0), ValueError, "state lives on DLPack device type 2"),
        (lambda: cuda.blake3_update(blake3_state()[1:], byte, 0), ValueError, "state has 699 values, expected 700"),
        (lambda: cuda.blake3_update(np.full(700, 2000, "u4"), byte, 0), ValueError, "state holds no BLAKE3 state"),
        (lambda: cuda.blake3_update(blake3_state(), x, 0), TypeError, "data has another dtype"),
        (lambda: cuda.blake3_update(blake3_state(), Plain(byte.array[::2]), 0), ValueError, "data is not C-contiguous"),
        (lambda: cuda.blake3_update(blake3_state(), byte, -1), ValueError, "max_threads is -1"),
        (lambda: cuda.blake3_output(blake3_state(), byte, 0), ValueError, "out lives on DLPack device type 2"),
        (lambda: cuda.blake3_output(blake3_state(), byte.array, 2**64 - 8), ValueError, "seek is 18446744073709551608"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_versions(cuda: ModuleType) -> None:
    assert cuda.device_count() == 2
    assert cuda.device_names() == ["stand-in"] * 2
    assert cuda.runtime_version() == cuda.driver_version() == 13000
    assert cuda.version == "on the host"
