"""Embeddings by operations of fixed shapes, as on a GPU and wherever there is no kernel for them: rows, norms and sums
beside dense gradients of single samples in float64, and beside the kernels of the CPU.

Rows are sums in float64, rounded once to the parameter's dtype: within one rounding of the truth.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dp_accounting")
from torch import Tensor, nn

from aisec_fast.privacy import _layers, _native
from aisec_fast.privacy._clip import Total, Weights
from aisec_fast.privacy._layers import EmbeddingGradients
from tests.test_privacy_layers import LargestTensor, check, data, square_loss

WORDS, WIDTH = 7, 5
SHAPES = {
    "sequences": (9, 6),
    "one token": (9,),
    "of length one": (9, 1),
    "two dimensions": (9, 2, 3),
    "one sample": (1, 40),
}


@pytest.fixture
def gpu_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "on_gpu", lambda _values: True)


def case(shape: tuple[int, ...], dtype: torch.dtype, tokens_dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randint(0, WORDS, shape, dtype=tokens_dtype), torch.randn(*shape, WIDTH, dtype=dtype)


def dense(tokens: Tensor, gradient: Tensor, padding: int | None = None) -> Tensor:
    """[B, WORDS, WIDTH] in float64: each sample's gradient, token by token."""
    rows = torch.zeros(len(tokens), WORDS, WIDTH, dtype=torch.float64)
    for row, sample, vectors in zip(rows, tokens.reshape(len(tokens), -1), gradient.double(), strict=True):
        for token, vector in zip(sample.tolist(), vectors.reshape(-1, WIDTH), strict=True):
            if token != padding:
                row[token] += vector
    return rows


def summed(rule: EmbeddingGradients, weights: Tensor) -> Tensor:
    total = Total(rule.layer.weight.detach())
    rule.add_total("weight", Weights(weights), total)
    return total.take()


def made(tokens: Tensor, gradient: Tensor, padding: int | None = None) -> EmbeddingGradients:
    return EmbeddingGradients(nn.Embedding(WORDS, WIDTH, padding_idx=padding, dtype=gradient.dtype), tokens, gradient)


@pytest.mark.parametrize("limits", ["whole", "chunked", "tables"])
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rows_norms_and_sums(
    shape: tuple[int, ...], dtype: torch.dtype, padding: int | None, limits: str, gpu_path: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also a few samples and columns at a time, and with a table of sums for some samples each."""
    if limits == "chunked":
        monkeypatch.setattr(_layers, "CHUNK_ELEMENTS", 1)
        monkeypatch.setattr(_layers, "_LEAST_COLUMNS", 2)
    elif limits == "tables":
        monkeypatch.setattr(_layers, "_ROWS_AT_A_PLACE", 1)
    tokens, gradient = case(shape, dtype)
    rule, truth = made(tokens, gradient, padding), dense(tokens, gradient, padding)
    rounding = 1e-14 if dtype == torch.float64 else 2.0**-23
    got = rule.rows("weight", 0, len(tokens)).double()
    torch.testing.assert_close(got, truth, rtol=rounding, atol=1e-14)
    # What is measured and summed are these very rows.
    norms = rule.norms("weight")
    torch.testing.assert_close(norms.squares, got.square().sum((1, 2)), rtol=1e-12, atol=0.0)
    assert norms.spreads is norms.squares
    weights = torch.linspace(0.0, 1.0, len(tokens), dtype=torch.float64)
    expected = torch.einsum("b,bwd->wd", weights, got)
    torch.testing.assert_close(summed(rule, weights).double(), expected, rtol=rounding, atol=1e-13)
    assert rule.terms("weight") == 0
    middle = slice(len(tokens) // 2, len(tokens))
    assert torch.equal(rule.rows("weight", middle.start, middle.stop).double(), got[middle])


@pytest.mark.parametrize("tokens_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("padding", [None, 3])
def test_as_the_kernels(padding: int | None, tokens_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which do not round the rows in between."""
    tokens, gradient = case((9, 6), torch.float32, tokens_dtype)
    weights, found = torch.linspace(0.0, 1.0, 9, dtype=torch.float64), []
    for forced in (True, False):
        monkeypatch.setattr(_native, "on_gpu", lambda _values, forced=forced: forced)
        rule = made(tokens, gradient, padding)
        found.append((rule.norms("weight").squares, summed(rule, weights)))
    (squares, total), (other_squares, other_total) = found
    torch.testing.assert_close(squares, other_squares, rtol=2.0**-22, atol=0.0)
    torch.testing.assert_close(total, other_total, rtol=2.0**-22, atol=2.0**-22)


@pytest.mark.parametrize("scale", [1e-38, 1e-12, 1.0, 1e18])
def test_norms_are_upper_bounds(scale: float, gpu_path: None) -> None:
    """Of what is summed, also where vectors of a token cancel, exactly or nearly: the sum of one sample is no longer."""
    torch.manual_seed(0)
    tokens = torch.randint(0, WORDS, (8, 3)).repeat(1, 2)
    gradient = torch.randn(8, 3, WIDTH).repeat(1, 2, 1) * scale
    gradient[:, 3:] *= -1.0
    gradient[4:, 3:] *= 1.0 + 2.0**-20
    rule = made(tokens, gradient)
    squares = rule.norms("weight").squares
    assert bool((squares[:4] == 0).all())
    truth = dense(tokens, gradient).square().sum((1, 2))
    assert bool((squares[4:] <= truth[4:] * (1 + 2.0**-20) + 1e-88).all())
    for i in range(8):
        alone = torch.zeros(8, dtype=torch.float64)
        alone[i] = 1.0
        assert float(summed(rule, alone).double().square().sum()) <= float(squares[i]) * (1 + 1e-12)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("length", [1, 6])
def test_a_bad_sample_stays_alone(length: int, poison: float, gpu_path: None) -> None:
    tokens, gradient = case((9, length), torch.float32)
    clean = made(tokens, gradient)
    squares, weights = clean.norms("weight").squares, torch.ones(9, dtype=torch.float64)
    weights[4] = 0.0
    expected = summed(clean, weights)
    bad = gradient.clone()
    bad[4, length // 2, 1] = poison
    rule = made(tokens, bad)
    found = rule.norms("weight").squares
    assert not bool(found[4].isfinite())
    others = torch.arange(9) != 4
    assert torch.equal(found[others], squares[others])
    assert torch.equal(summed(rule, weights), expected)


def test_what_came_back_for_padding_does_not_matter(gpu_path: None) -> None:
    tokens, gradient = case((9, 6), torch.float32)
    rule = made(tokens, gradient.masked_fill((tokens == 2).unsqueeze(2), math.nan), 2)
    assert torch.equal(rule.norms("weight").squares, made(tokens, gradient, 2).norms("weight").squares)
    total = summed(rule, torch.ones(9, dtype=torch.float64))
    assert bool(total.isfinite().all())
    assert not total[2].any()


@pytest.mark.parametrize("shape", [(0, 6), (0,), (0, 1), (3, 0)])
def test_no_tokens(shape: tuple[int, ...], gpu_path: None) -> None:
    tokens, gradient = case(shape, torch.float32)
    rule = made(tokens, gradient, 2)
    assert rule.norms("weight").squares.tolist() == [0.0] * len(tokens)
    assert not summed(rule, torch.ones(len(tokens), dtype=torch.float64)).any()
    assert rule.rows("weight", 0, len(tokens)).shape == (len(tokens), WORDS, WIDTH)


def test_sums_are_made_of_what_was_measured(gpu_path: None) -> None:
    """And neither the gradient that came back nor the rows are written to: in float64 nothing is converted."""
    for shape in ((9,), (9, 6)):
        tokens, gradient = case(shape, torch.float64)
        before = gradient.clone()
        rule = made(tokens, gradient)
        rule.norms("weight")
        weights = torch.full((9,), 0.5, dtype=torch.float64)
        assert torch.equal(summed(rule, weights), summed(rule, weights))
        assert torch.equal(gradient, before)


@pytest.mark.parametrize("tokens_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("padding", [None, 2, -1])
@pytest.mark.parametrize("shape", [(9, 6), (9,), (9, 2, 3)])
def test_steps(shape: tuple[int, ...], padding: int | None, tokens_dtype: torch.dtype, gpu_path: None) -> None:
    """Whole private steps beside the loop over samples."""
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 3e-4)):
        torch.manual_seed(0)
        model = nn.Embedding(4, 3, padding_idx=padding).to(dtype)
        y = data((9, 1), dtype)[1]
        check(model, torch.randint(0, 4, shape, dtype=tokens_dtype), y, square_loss, tolerance=tolerance)


class Shapes(LargestTensor):
    """Notes the shapes of all that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        values = result if isinstance(result, (list, tuple)) else [result]
        self.shapes.append((func, [tuple(value.shape) for value in values if isinstance(value, Tensor)]))
        return result


def test_shapes_do_not_depend_on_tokens(gpu_path: None) -> None:
    """Nor does memory grow with samples times words."""
    found = []
    for most in (2, WORDS):
        tokens, gradient = case((32, 6), torch.float32)
        rule = made(tokens % most, gradient, 1)
        with Shapes() as seen:
            rule.norms("weight")
            summed(rule, torch.ones(32, dtype=torch.float64))
        found.append(seen.shapes)
        assert seen.elements <= max(32 * 6, 2 * WORDS) * WIDTH
    assert found[0] == found[1]
