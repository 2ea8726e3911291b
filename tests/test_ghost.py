"""The ghost family: every backend within the bounds of docs/ghost.md, and each sample's results its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import aisec_fast
from aisec_fast import ghost
from tests.conftest import WITHOUT_JIT, Kernels, Remembering, bits

reference = Remembering("ghost")
# batch, tokens, inputs, outputs: around tiles of 4 x 3 or 4 x 4 tokens, blocks of 64, vectors of 4 to 16, chunks of 256
# or 512
GRAMS = [(0, 3, 4, 5), (2, 0, 3, 4), (1, 1, 1, 1), (2, 1, 7, 3), (3, 5, 1, 9), (2, 4, 3, 1), (2, 13, 16, 33)]
GRAMS += [] if WITHOUT_JIT else [(2, 64, 33, 17), (2, 65, 300, 5), (1, 130, 20, 257), (3, 70, 256, 512)]
GRAMS += [] if WITHOUT_JIT else [(3, 67, 530, 1040)]


def normal(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def gram(kernels: Kernels, inputs: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    squares, bounds = np.full((2, len(inputs)), 7.0)
    kernels.ghost.gram_squares(inputs, outputs, squares, bounds)
    return squares, bounds


def check_gram(inputs: np.ndarray, outputs: np.ndarray, squares: np.ndarray, bounds: np.ndarray) -> None:
    """The contract of gram_squares. The reference's own rounding in float64 is 10^-12 of the bound."""
    truth, absolute = reference.squares(reference.gradients(inputs, outputs)), reference.absolute(inputs, outputs)
    gamma = ghost.gram_roundoff(inputs.shape[1], inputs.shape[2], outputs.shape[2])
    assert gamma < 2e-5
    assert np.all(np.abs(squares - truth) <= gamma * bounds**2 + 1e-12 * absolute**2)
    assert np.all(bounds >= absolute * (1 - 1e-12))
    lengths = [np.linalg.norm(values.astype(np.float64), axis=2) + 2.0**-49 for values in (inputs, outputs)]
    assert np.all(bounds <= (1 + 1e-5) * (lengths[0] * lengths[1]).sum(axis=1))


@pytest.mark.parametrize("shape", GRAMS)
def test_gram_squares(kernels: Kernels, shape: tuple[int, int, int, int]) -> None:
    batch, length, d, p = shape
    inputs, outputs = normal((batch, length, d), 0), normal((batch, length, p), 1)
    check_gram(inputs, outputs, *gram(kernels, inputs, outputs))


def test_gram_of_tokens_that_cancel(kernels: Kernels) -> None:
    """Pairs of tokens with opposite gradients: what is left is rounding, up to gamma A^2 and of either sign."""
    for seed in range(6):
        half = normal((2, 9, 40), seed), normal((2, 9, 30), seed + 50)
        inputs = np.concatenate([half[0], half[0]], axis=1)
        outputs = np.concatenate([half[1], -half[1]], axis=1)
        outputs[1] += normal(outputs[1].shape, 3, 1e-4)
        check_gram(inputs, outputs, *gram(kernels, inputs, outputs))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-24, 1e-22, 1e-10, 1e10, 1e17])
def test_gram_at_the_ends_of_the_range(kernels: Kernels, scale: float) -> None:
    """Where products underflow in float32 the bound still covers what they lose."""
    for first, second in ((scale, scale), (scale, 1.0), (1.0, scale)):
        inputs, outputs = normal((2, 7, 20), 0, first), normal((2, 7, 300), 1, second)
        inputs[1, 3:], outputs[0] = 0, np.abs(outputs[0])
        check_gram(inputs, outputs, *gram(kernels, inputs, outputs))


def test_gram_squares_of_integers_are_exact(kernels: Kernels) -> None:
    """Small integers lose nothing to rounding, so that any slip in the pairing of tokens would be seen to the unit."""
    rng = np.random.default_rng(2)
    for length in (1, 3, 5, 11) if WITHOUT_JIT else (1, 3, 5, 11, 63, 66, 127, 129, 200):
        inputs = rng.integers(-3, 4, (2, length, 6)).astype(np.float32)
        outputs = rng.integers(-3, 4, (2, length, 9)).astype(np.float32)
        squares, _ = gram(kernels, inputs, outputs)
        assert squares.tolist() == reference.squares(reference.gradients(inputs, outputs)).tolist()


class Case(NamedTuple):
    channels: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out_size(self) -> tuple[int, int]:
        sizes = zip(self.size, self.kernel, self.stride, self.before, self.after, self.dilation, strict=True)
        first, second = ((n + b + a - d * (k - 1) - 1) // s + 1 for n, k, s, b, a, d in sizes)
        return first, second

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], int]:
        return self.kernel, self.stride, self.before, self.dilation, self.groups

    def arrays(self, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        return normal((batch, self.channels, *self.size), seed), normal((batch, self.outputs, *self.out_size), seed + 1)


ONE, TWO = (1, 1), (2, 2)
CONVS = {
    "one value": Case(1, 1, ONE, kernel=ONE),
    "3x3": Case(5, 7, (6, 5), before=ONE, after=ONE),
    "padding on one side": Case(2, 3, (4, 5), before=(2, 0), after=(0, 3)),
    "far padding": Case(1, 2, (2, 2), before=(5, 3), after=(4, 6)),
    "unread pixels": Case(3, 2, (8, 9), kernel=(2, 2), stride=(3, 4)),
    "stride 2": Case(4, 6, (9, 8), stride=TWO, before=ONE, after=ONE),
    "1x1 stride 2": Case(6, 9, (7, 7), kernel=ONE, stride=TWO),
    "long kernel": Case(1, 16, (12, 12), kernel=(8, 8), stride=TWO, before=(3, 3), after=(3, 3)),
    "dilation": Case(3, 4, (9, 11), kernel=(3, 2), before=(2, 1), after=(2, 1), dilation=(2, 3)),
    "dilation and stride": Case(2, 5, (11, 10), stride=(2, 3), before=(1, 2), after=(1, 2), dilation=(3, 2)),
    "groups": Case(6, 4, (5, 5), before=ONE, after=ONE, groups=2),
    "depthwise": Case(5, 5, (6, 6), before=ONE, after=ONE, groups=5),
    "one row": Case(3, 4, (1, 17), kernel=(1, 5), stride=(1, 2), before=(0, 2), after=(0, 1)),
}
CONVS |= {} if WITHOUT_JIT else {"wide": Case(130, 35, (8, 8), before=ONE, after=ONE), "tall": Case(20, 17, (19, 3))}


@pytest.fixture(params=CONVS.values(), ids=CONVS.keys())
def conv(request: pytest.FixtureRequest) -> Case:
    return request.param


def conv_gram(kernels: Kernels, case: Case, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    squares, bounds = np.full((2, len(x)), 7.0)
    kernels.ghost.conv_gram_squares(x, g, *case.geometry, squares, bounds)
    return squares, bounds


def conv_rows(kernels: Kernels, case: Case, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = np.full((len(x), case.outputs, case.channels // case.groups, *case.kernel), 7.0, np.float32)
    squares, bounds = np.full((2, len(x)), 7.0)
    kernels.ghost.conv_rows(x, g, *case.geometry, rows, squares, bounds)
    return rows, squares, bounds


def conv_gamma(case: Case) -> float:
    positions, taps = case.out_size[0] * case.out_size[1], case.kernel[0] * case.kernel[1]
    return ghost.conv_roundoff(positions, case.channels, case.outputs, taps, case.groups)


def check_conv_gram(case: Case, x: np.ndarray, g: np.ndarray, squares: np.ndarray, bounds: np.ndarray) -> None:
    rows, absolute = reference.conv_gradients(x, g, *case.geometry)
    assert np.all(np.abs(squares - reference.squares(rows)) <= conv_gamma(case) * bounds**2 + 1e-12 * absolute**2)
    assert np.all(bounds >= absolute * (1 - 1e-12))


def test_conv_gram_squares(kernels: Kernels, conv: Case) -> None:
    for batch in (0, 1, 3):
        x, g = conv.arrays(batch)
        squares, bounds = conv_gram(kernels, conv, x, g)
        check_conv_gram(conv, x, g, squares, bounds)
        assert np.all(bounds <= (1 + 2e-5) * reference.conv_gradients(x, g, *conv.geometry)[1])


def test_conv_gram_of_pixels_that_cancel(kernels: Kernels, conv: Case) -> None:
    """The gradients of all positions but one add up to nothing where all pixels are equal and nothing is padded."""
    x, g = conv.arrays(2, 5)
    x[:] = 1.0 + normal(x.shape, 7, 1e-3)
    g -= g.mean(axis=(2, 3), keepdims=True)
    check_conv_gram(conv, x, g, *conv_gram(kernels, conv, x, g))
    rng = np.random.default_rng(3)
    x, g = (rng.integers(-3, 4, array.shape).astype(np.float32) for array in (x, g))
    squares, _ = conv_gram(kernels, conv, x, g)  # exact in integers, as for tokens
    assert squares.tolist() == reference.squares(reference.conv_gradients(x, g, *conv.geometry)[0]).tolist()


def test_conv_rows(kernels: Kernels, conv: Case) -> None:
    for batch in (0, 1, 3):
        x, g = conv.arrays(batch)
        rows, squares, bounds = conv_rows(kernels, conv, x, g)
        truth, absolute = reference.conv_gradients(x, g, *conv.geometry)
        terms, _ = reference.conv_gradients(np.abs(x), np.abs(g), *conv.geometry)
        positions = conv.out_size[0] * conv.out_size[1]
        assert np.all(np.abs(rows - truth) <= (positions + 1) * 2.0**-24 * terms)
        own = reference.squares(rows.astype(np.float64))  # of the rows as they were stored
        assert np.all(np.abs(squares - own) <= 2 * (truth[0].size + 2 if batch else 0) * 2.0**-53 * own)
        assert np.all(bounds >= absolute * (1 - 1e-12))
        assert np.all(bounds <= absolute * (1 + 1e-10))


@pytest.mark.parametrize("scale", [1e-38, 1e-24, 1e-22, 1e10, 1e17])
def test_conv_at_the_ends_of_the_range(kernels: Kernels, scale: float) -> None:
    case = CONVS["stride 2"]
    for first, second in ((scale, scale), (scale, 1.0), (1.0, scale)):
        x, g = case.arrays(2)
        x, g = (x * np.float32(first)), np.abs(g) * np.float32(second)
        check_conv_gram(case, x, g, *conv_gram(kernels, case, x, g))


def results(kernels: Kernels, case: Case, x: np.ndarray, g: np.ndarray) -> list[bytes]:
    """The bits of everything that the kernels say about each sample."""
    arrays = [*conv_gram(kernels, case, x, g), *conv_rows(kernels, case, x, g)]
    length, tokens = case.out_size[0] * case.out_size[1], np.ascontiguousarray(g.reshape(*g.shape[:2], -1))
    wide = np.ascontiguousarray(np.resize(x, (len(x), g.shape[1], 21)))
    assert tokens.shape[2] == length
    for i in range(len(x)):  # a sample's own, whatever the batch
        wide[i] = np.resize(x[i], wide.shape[1:])
    arrays += gram(kernels, wide, tokens)
    return [b"".join(bits(array[i]) for array in arrays) for i in range(len(x))]


@pytest.mark.parametrize("name", ["3x3", "stride 2", "groups", "long kernel"])
def test_a_sample_is_its_own(kernels: Kernels, threads, name: str) -> None:
    """Bits do not depend on the other samples, on their number or on threads; NaN, Inf and overflow stay inside."""
    case = CONVS[name]
    x, g = case.arrays(9, 4)
    expected = results(kernels, case, x, g)
    for count in (1,) if kernels.name == "cuda_on_host" else (1, 3) if WITHOUT_JIT else (1, 2, 3, 7):
        threads(count)
        assert results(kernels, case, x, g) == expected
        assert [results(kernels, case, x[i : i + 1], g[i : i + 1])[0] for i in (0, 5, 8)] == [
            expected[i] for i in (0, 5, 8)
        ]
        bad = x.copy(), g.copy()
        bad[0][1, 0, 1, 1], bad[1][2, 0, 0, 0], bad[0][3] = np.nan, np.inf, 1e30
        bad[1][4], bad[0][6], bad[0][7] = -3e38, -np.inf, 0.0
        now = results(kernels, case, *bad)
        assert [now[i] for i in (0, 5, 8)] == [expected[i] for i in (0, 5, 8)]


def test_conv_rows_without_bounds(kernels: Kernels, conv: Case) -> None:
    """The same rows and squares; what is not finite is seen in the square alone."""
    x, g = conv.arrays(3)
    g[1] = np.inf
    x[2] = np.nan
    rows, squares, _ = conv_rows(kernels, conv, x, g)
    others, alone = np.full_like(rows, 7.0), np.full(3, 7.0)
    kernels.ghost.conv_rows(x, g, *conv.geometry, others, alone, np.empty(0))
    assert bits(others[0]) == bits(rows[0])
    assert alone.tolist() == squares.tolist()
    assert np.isfinite(alone[0])
    assert np.isinf(alone[1:]).all()


def test_bounds_of_conv_rows_are_optional() -> None:
    case = CONVS["3x3"]
    x, g = case.arrays(2)
    rows, squares, bounds = ghost.conv_rows(x, g, 3, padding=1)
    others, alone, none = ghost.conv_rows(x, g, 3, padding=1, bounded=False)
    assert bits(others) == bits(rows)
    assert alone.tolist() == squares.tolist()
    assert len(bounds) == 2
    assert none.shape == (0,)


def test_what_is_not_finite_is_infinite(kernels: Kernels) -> None:
    """Never a finite norm that is too small: also where one factor is zero, or a dot product overflows to -Inf."""
    inputs, outputs = normal((7, 6, 5), 0), normal((7, 6, 4), 1)
    inputs[0, 2, 1], inputs[1, 5, 4], outputs[2, 0, 0] = np.nan, np.inf, -np.inf
    inputs[3, 3, 0], outputs[3, 3] = np.inf, 0.0
    inputs[4, :2], inputs[4, 1] = 1e25, -1e25
    outputs[5], inputs[5] = 1e20, 1e-20
    squares, bounds = gram(kernels, inputs, outputs)
    assert np.all(np.isposinf(squares[:4]))
    assert np.all(np.isposinf(bounds[:4]))
    for i in (4, 5):  # beyond float32, within float64: infinite, or right
        truth = reference.squares(reference.gradients(inputs[i : i + 1], outputs[i : i + 1]))[0]
        assert np.isposinf(squares[i]) or squares[i] == pytest.approx(truth, rel=1e-4)
    assert np.isfinite(squares[6])

    case = CONVS["padding on one side"]
    x, g = case.arrays(5)
    x[0, 1, 0, 0], x[1, 0, 3, 0], g[2, 0, 1, 1], x[3] = np.nan, -np.inf, np.inf, 3e38
    for squares, bounds in (conv_gram(kernels, case, x, g), conv_rows(kernels, case, x, g)[1:]):
        assert np.all(np.isposinf(squares[:3]))
        assert np.all(np.isposinf(bounds[:3]))
        assert np.isposinf(squares[3]) or squares[3] > 1e70
        assert np.isfinite(squares[4])


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_any_convolution(seed: int) -> None:
    """The public functions beside torch's own weight gradients, over random shapes."""
    rng = np.random.default_rng(seed)

    def two(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(n) for n in rng.integers(low, high, spatial))

    spatial, groups = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    kernel, stride, dilation, before, after = two(1, 5), two(1, 4), two(1, 4), two(0, 4), two(0, 4)
    channels, outputs = (groups * int(n) for n in rng.integers(1, 20, 2))
    size = tuple(
        max(1, d * (k - 1) + 1 + int(e)) for k, d, e in zip(kernel, dilation, rng.integers(0, 9, spatial), strict=True)
    )
    x = torch.from_numpy(normal((2, channels, *size), seed))
    sides = [side for pair in reversed(list(zip(before, after, strict=True))) for side in pair]
    weight = torch.zeros(outputs, channels // groups, *kernel, requires_grad=True)
    layer = functional.conv1d if spatial == 1 else functional.conv2d
    out = layer(functional.pad(x, sides), weight, None, stride, 0, dilation, groups)
    g = torch.from_numpy(normal(tuple(out.shape), seed + 1))
    expected = [torch.autograd.grad(out[i], weight, g[i], retain_graph=True)[0] for i in range(2)]

    settings_ = {
        "stride": stride,
        "padding": list(zip(before, after, strict=True)),
        "dilation": dilation,
        "groups": groups,
    }
    rows, squares, bounds = ghost.conv_rows(x, g, kernel, **settings_)
    torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-4, atol=1e-4)
    gram, lengths = ghost.conv_gram_squares(x, g, kernel, **settings_)
    torch.testing.assert_close(gram, squares, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(bounds, lengths, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_public_functions(backend: str, library: str) -> None:
    inputs, outputs = normal((3, 6, 5), 0), normal((3, 6, 4), 1)
    case = CONVS["groups"]
    x, g = case.arrays(3)
    if library == "torch":
        inputs, outputs, x, g = (torch.from_numpy(array) for array in (inputs, outputs, x, g))
    squares, bounds = ghost.gram_squares(inputs, outputs)
    assert type(squares) is type(bounds) is type(inputs)
    check_gram(np.asarray(inputs), np.asarray(outputs), np.asarray(squares), np.asarray(bounds))
    squares, bounds = ghost.conv_gram_squares(x, g, 3, padding=1, groups=2)
    assert type(squares) is type(x)
    check_conv_gram(case, np.asarray(x), np.asarray(g), np.asarray(squares), np.asarray(bounds))
    rows, squares, _ = ghost.conv_rows(x, g, (3, 3), padding=(1, (1, 1)), groups=2)
    assert rows.shape == (3, 4, 3, 3, 3)
    np.testing.assert_allclose(reference.squares(np.asarray(rows, np.float64)), np.asarray(squares))
    again = rows * 0
    assert ghost.conv_rows(x, g, 3, padding=1, groups=2, out=again)[0] is again
    assert bits(again) == bits(rows)


def test_the_cheaper_way() -> None:
    """Few positions and many channels: Gram matrices. Long sequences, large images: rows, if they may be kept."""
    assert ghost.cheapest(32, 64, 256, 768) == "gram"
    assert ghost.cheapest(32, 1024, 64, 64) == "rows"
    assert ghost.cheapest(32, 1024, 64, 64, kept_bytes=1000) == "gram"
    assert ghost.cheapest_conv((64, 128, 8, 8), (64, 128, 8, 8), 3) == "gram"
    assert ghost.cheapest_conv((64, 32, 32, 32), (64, 32, 32, 32), (3, 3)) == "rows"
    assert ghost.cheapest_conv((64, 1, 28, 28), (64, 16, 14, 14), 8, stride=2) == "rows"
    assert ghost.cheapest_conv((1, 16, 13, 13), (1, 32, 5, 5), 4, stride=2) == "gram"
    assert ghost.cheapest_conv((1, 16, 13, 13), (1, 32, 5, 5), 4, stride=2, block=13) == "rows"
    assert ghost.cheapest_conv((64, 32, 1000), (64, 32, 500), 5, stride=(2,), kept_bytes=10) == "gram"


def test_roundoff_is_small_and_grows() -> None:
    assert ghost.gram_roundoff(64, 256, 768) < 9e-6
    assert ghost.gram_roundoff(1, 1, 1) < 1e-6
    assert ghost.conv_roundoff(64, 128, 128, 9) < 2e-5
    assert ghost.conv_roundoff(64, 512, 512, 9) > ghost.conv_roundoff(64, 128, 128, 9)


def test_backends_agree_on_the_sign_of_nothing() -> None:
    """Zero gradients have the norm zero everywhere."""
    zeros = np.zeros((2, 3, 4), np.float32)
    for name in ("native", "numba"):
        with aisec_fast.use_backend(name):
            squares, bounds = ghost.gram_squares(zeros, normal((2, 3, 2), 0))
            assert squares.tolist() == [0, 0]
            assert np.all(bounds < 1e-13)
