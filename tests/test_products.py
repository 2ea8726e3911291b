"""Kernels of private steps alone (docs/products.md): weighted products, rows' squares, LayerNorm's gradients, sums of
tokens; on every instruction set, within the derived bounds of float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aisec_fast import _core
from tests.conftest import NATIVE, bits, running

U = 2.0**-24
# batch, tokens, inputs, outputs, block: around tiles of 6 or 8 outputs by 8, 16 or 32 inputs, pieces of 128 tokens, and
# the parts of 1024 x 512 that threads share out
PRODUCTS = [
    (1, 1, 1, 1, 1),
    (3, 1, 17, 5, 2),
    (5, 1, 16, 6, 5),
    (300, 1, 33, 13, 128),
    (7, 3, 15, 7, 2),
    (4, 64, 40, 31, 2),
]
PRODUCTS += [(3, 129, 18, 20, 1), (2, 300, 9, 14, 2), (5, 40, 530, 200, 3), (33, 2, 1030, 7, 16), (3, 50, 33, 1033, 2)]


@pytest.fixture(params=NATIVE)
def core(request: pytest.FixtureRequest) -> Iterator[Any]:
    for _ in running(request.param):
        yield _core


def normal(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def product(core: Any, inputs: np.ndarray, outputs: np.ndarray, weights: np.ndarray, block: int) -> np.ndarray:
    total = np.full((outputs.shape[2], inputs.shape[2]), 7.0, np.float32)
    core.weighted_products([inputs], [outputs], weights, block, [total])
    return total


def summed(inputs: np.ndarray, outputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    a, g = (values.astype(np.float64).reshape(-1, values.shape[2]) for values in (inputs, outputs))
    return (g * np.repeat(weights, inputs.shape[1])[:, None]).T @ a


def roundings(length: int, block: int, batch: int) -> float:
    """Of one term on its way: those of its block of samples, and those of adding blocks."""
    count = min(block, batch) * length + 4 + -(-batch // block)
    return count * U / (1 - count * U)


@pytest.mark.parametrize("shape", PRODUCTS)
def test_weighted_product(core: Any, shape: tuple[int, ...]) -> None:
    """Entry by entry within gamma times the sum of the terms' absolute values: no cancellation can hide a slip."""
    batch, length, d, p, block = shape
    inputs, outputs = normal((batch, length, d), 0), normal((batch, length, p), 1)
    weights = np.random.default_rng(2).random(batch) + 0.1
    error = np.abs(product(core, inputs, outputs, weights, block) - summed(inputs, outputs, weights))
    assert (error <= roundings(length, block, batch) * summed(np.abs(inputs), np.abs(outputs), weights)).all()


def test_weighted_product_of_integers_is_exact(core: Any) -> None:
    """Every term counts once, whatever the blocks: integers lose nothing."""
    rng = np.random.default_rng(3)
    for batch, length, d, p, block in PRODUCTS:
        inputs, outputs = (rng.integers(-3, 4, (batch, length, n)).astype(np.float32) for n in (d, p))
        weights = rng.integers(0, 3, batch).astype(np.float64)
        found = product(core, inputs, outputs, weights, block)
        assert found.tolist() == summed(inputs, outputs, weights).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_of_weight_zero_are_not_read(core: Any, bad: float) -> None:
    for batch, length, d, p, block in PRODUCTS[3:]:
        inputs, outputs, weights = normal((batch, length, d), 0), normal((batch, length, p), 1), np.ones(batch)
        left_out = slice(1, None, 2)
        weights[left_out] = 0.0
        clean = product(core, inputs, outputs, weights, block)
        assert np.isfinite(clean).all()
        inputs[left_out], outputs[left_out] = bad, 3.0
        assert bits(product(core, inputs, outputs, weights, block)) == bits(clean)
        inputs[left_out], outputs[left_out] = 3.0, bad
        assert bits(product(core, inputs, outputs, weights, block)) == bits(clean)


def test_other_samples_blocks_do_not_change(core: Any) -> None:
    """What is charged for a block is right only if a sample moves its own block alone: exact sums of blocks show it."""
    inputs, outputs, weights = normal((6, 3, 20), 0), normal((6, 3, 11), 1), np.ones(6)
    parts = [product(core, inputs[i : i + 2], outputs[i : i + 2], weights[i : i + 2], 2) for i in (0, 2, 4)]
    assert bits(product(core, inputs, outputs, weights, 2)) == bits(parts[0] + parts[1] + parts[2])


def test_bits_do_not_depend_on_threads_or_on_company(core: Any, threads: Any) -> None:
    layers = [(normal((9, 4, d), d), normal((9, 4, p), p)) for d, p in ((600, 210), (16, 500), (3, 2))]
    weights = np.random.default_rng(2).random(9)
    alone = []
    threads(1)
    for inputs, outputs in layers:
        alone.append(bits(product(core, inputs, outputs, weights, 3)))
    for count in (1, 2, 3, 7):
        threads(count)
        totals = [np.empty((g.shape[2], a.shape[2]), np.float32) for a, g in layers]
        core.weighted_products([a for a, _ in layers], [g for _, g in layers], weights, 3, totals)
        assert [bits(total) for total in totals] == alone


def test_empty(core: Any) -> None:
    for batch, length in ((0, 3), (2, 0)):
        inputs, outputs = normal((batch, length, 4), 0), normal((batch, length, 5), 1)
        assert not product(core, inputs, outputs, np.ones(batch), 1).any()
    for d, p in ((0, 5), (4, 0), (0, 0)):
        assert product(core, normal((2, 3, d), 0), normal((2, 3, p), 1), np.ones(2), 1).shape == (p, d)
    core.weighted_products([], [], np.ones(3), 1, [])
    core.outer_squares([], [], np.empty(0))
    squares = np.full((2, 3), 7.0)
    core.outer_squares([np.ones((3, 1, 0), np.float32)], [np.ones((3, 1, 2), np.float32)], squares)
    assert squares.tolist() == [[0.0] * 3, [2.0] * 3]


def test_refusals() -> None:
    a, g, w = normal((2, 3, 4), 0), normal((2, 3, 5), 1), np.ones(2)
    total = np.empty((5, 4), np.float32)
    for arguments in (
        ([a], [g[:1]], w, 1, [total]), ([a], [g], w[:1], 1, [total]), ([a], [g], w, 1, [total.T]), ([a], [g], w, 0, [total]),
        ([a], [g], w, 1, []), ([a[:, :2]], [g[:, :2]], w, 1, [total]), ([a[0]], [g[0]], w, 1, [total]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"differs|values|contiguous|samples|number|dimensions|shape"):
            _core.weighted_products(*arguments)
    with pytest.raises(TypeError, match="dtype"):
        _core.weighted_products([a.astype(np.float64)], [g], w, 1, [total])
    one, other = normal((3, 1, 4), 0), normal((3, 1, 5), 1)
    for arguments in (
        ([one], [], np.empty(6)), ([one], [other], np.empty(5)), ([one], [other[:2]], np.empty(6)), ([a], [g], np.empty(4)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"number|values|shape"):
            _core.outer_squares(*arguments)
    with pytest.raises(ValueError, match="values"):
        _core.layer_norm_rows(a, g, a[:, :, 0].copy(), a[:, :, 0].copy(), a[:, 0].copy(), a[:, 0].copy())


def test_outer_squares(core: Any, threads: Any) -> None:
    """Relative errors below 2^-39 (docs/products.md), the same bits whatever the threads and the other layers."""
    matrices = [normal((37, 1, n), n) * np.float32(10.0) ** (n % 5 - 2) for n in (1, 7, 784, 1024, 1025, 5000)]
    matrices[2][5, 0, 3], matrices[3][6, 0, 0] = np.nan, np.inf
    left, right = matrices, matrices[1:] + matrices[:1]
    found = np.full((2, len(matrices), 37), 7.0)
    core.outer_squares(left, right, found)
    assert np.isnan(found[0, 1:3, 5]).all()
    assert np.isinf(found[0, 2:4, 6]).all()
    for k in range(len(matrices)):
        own, other = (((m[k][:, 0].astype(np.longdouble)) ** 2).sum(axis=1) for m in (right, left))
        for squares, truth in ((found[1, k], own), (found[0, k], own * other)):
            finite = np.isfinite(squares)
            assert (np.abs(squares[finite] - truth[finite]) <= 2.0**-39 * truth[finite]).all()
            assert finite.sum() >= 35
    threads(3)
    for k in range(len(matrices)):
        alone = np.empty((2, 37))
        core.outer_squares([left[k]], [right[k]], alone)
        assert bits(alone) == bits(found[:, k])


def test_denormal_numbers_are_kept(core: Any) -> None:
    """Whatever the caller has set: a norm of zero beside a product that is not would be a sample that is not clipped."""
    torch = pytest.importorskip("torch")
    tiny, squares = np.full((2, 40), 1e-40, np.float32), np.zeros((2, 1, 2))
    tokens, total = np.array([[0], [1]]), np.zeros((2, 40), np.float32)
    alone, weights = np.zeros(2), np.ones(2)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        core.outer_squares([np.ones((2, 1, 1), np.float32)], [tiny[:, None]], squares)
        core.embedding_squares(tokens, tiny[:, None], -1, alone)
        core.embedding_total(tokens, tiny[:, None], -1, weights, total)
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_allclose(squares[0, 0], 40 * float(tiny[0, 0]) ** 2, rtol=1e-12)
    np.testing.assert_allclose(alone, squares[0, 0], rtol=1e-12)
    assert bits(total) == bits(tiny)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 3), (3, 1, 1), (4, 7, 33), (9, 64, 256)])
def test_layer_norm_rows(core: Any, shape: tuple[int, int, int]) -> None:
    """Within (T + 3) u of the sums of absolute values; the same bits on every instruction set."""
    batch, length, width = shape
    x, g = normal(shape, 0) + 2, normal(shape, 1)
    mean, scale = normal((batch, length), 2), np.abs(normal((batch, length), 3))
    weight, bias = (np.full((batch, width), 7.0, np.float32) for _ in range(2))
    core.layer_norm_rows(x, g, mean, scale, weight, bias)
    wide = [values.astype(np.float64) for values in (x, g, mean, scale)]
    terms = (wide[0] - wide[2][:, :, None]) * wide[3][:, :, None] * wide[1]
    for found, exact in ((weight, terms), (bias, wide[1])):
        assert (np.abs(found - exact.sum(axis=1)) <= (length + 4) * U * np.abs(exact).sum(axis=1)).all()
    core.use_instruction_set("baseline")
    again = [np.empty_like(weight), np.empty_like(bias)]
    core.layer_norm_rows(x, g, mean, scale, *again)
    assert [bits(one) for one in again] == [bits(weight), bits(bias)]


@pytest.mark.parametrize(
    "shape", [(0, 3, 4, 5), (2, 0, 3, 4), (1, 1, 1, 1), (2, 64, 33, 17), (3, 65, 8, 600), (2, 200, 5, 1)]
)
def test_sums_of_tokens(core: Any, shape: tuple[int, ...]) -> None:
    """gram_norms: the norms that follow from gram_squares, and the sums of outputs over tokens."""
    batch, length, d, p = shape
    inputs, outputs = normal((batch, length, d), 0), normal((batch, length, p), 1)
    squares, bounds = np.empty((2, batch))
    core.gram_squares(inputs, outputs, squares, bounds)
    norms, sums = np.empty((2, batch)), np.full((batch, p), 7.0, np.float32)
    core.gram_norms(inputs, outputs, 2.0**-10, *norms, sums)
    upper = np.maximum(squares, 0.0) + 2.0**-10 * bounds**2
    assert bits(norms) == bits(np.stack([upper, np.maximum(bounds**2, upper)]))
    wide = outputs.astype(np.float64)
    assert (np.abs(sums - wide.sum(axis=1)) <= length * U * np.abs(wide).sum(axis=1)).all()


def lookups(batch: int, length: int, width: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(4).integers(0, words, (batch, length)), normal((batch, length, width), 5)


def embedding_rows(tokens: np.ndarray, vectors: np.ndarray, padding: int, words: int) -> np.ndarray:
    """Each sample's gradient [B, words, d], in float64."""
    rows = np.zeros((len(tokens), words, vectors.shape[2]))
    for i, t in np.ndindex(tokens.shape):
        if tokens[i, t] != padding:
            rows[i, tokens[i, t]] += vectors[i, t]
    return rows


@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 0, 3, 4), (3, 1, 1, 2), (7, 9, 17, 5), (5, 40, 8, 300)])
@pytest.mark.parametrize("padding", [-1, 1])
def test_embeddings(shape: tuple[int, ...], padding: int, threads: Any) -> None:
    """Tokens that repeat inside a sample and between samples; a sample of weight zero is not read."""
    batch, length, width, words = shape
    tokens, vectors = lookups(batch, length, width, words)
    exact = embedding_rows(tokens, vectors, padding, words)
    squares = np.full(batch, 7.0)
    _core.embedding_squares(tokens, vectors, padding, squares)
    assert np.allclose(squares, (exact**2).sum(axis=(1, 2)), rtol=2.0**-45, atol=0)
    weights = np.random.default_rng(2).random(batch)
    weights[1::2] = 0.0
    vectors[1::2] = np.nan
    exact[1::2] = 0.0
    found = []
    for count in (1, 3):
        threads(count)
        total = np.full((words, width), 7.0, np.float32)
        _core.embedding_total(tokens, vectors, padding, weights, total)
        truth = np.tensordot(weights, exact, 1)
        terms = np.tensordot(weights, np.abs(exact), 1)
        assert (np.abs(total - truth) <= U * np.abs(truth) + 2.0**-45 * terms).all()
        found.append(bits(total))
    assert found[0] == found[1]


def test_embedding_of_integers_is_exact() -> None:
    tokens, vectors = lookups(6, 30, 11, 7)
    vectors = np.rint(vectors * 3).astype(np.float32)
    total, squares, weights = np.empty((7, 11), np.float32), np.empty(6), np.array([1.0, 2, 0, 1, 3, 1])
    _core.embedding_total(tokens, vectors, 2, weights, total)
    rows = embedding_rows(tokens, vectors, 2, 7)
    assert total.tolist() == np.tensordot(weights, rows, 1).tolist()
    _core.embedding_squares(tokens, vectors, 2, squares)
    assert squares.tolist() == (rows**2).sum(axis=(1, 2)).tolist()
    for wrong in (tokens - 1, tokens + 1):
        with pytest.raises(ValueError, match="no row"):
            _core.embedding_total(wrong, vectors, 2, weights, total)


@pytest.mark.parametrize(
    "case", [(3, 5, 9, 9, 21, 1), (2, 4, 7, 12, 8, 2), (1, 1, 1, 1, 1, 1), (0, 2, 3, 3, 4, 1), (2, 6, 6, 5, 34, 2)]
)
def test_biases_of_convolutions_come_with_rows(core: Any, case: tuple[int, ...], threads: Any) -> None:
    """Sums over the positions in their order, one chain each, and their squares; the rows are those without them."""
    batch, channels, rows, columns, outputs, groups = case
    x, g = normal((batch, channels, rows, columns), 0), normal((batch, outputs, rows, columns), 1)
    geometry = (1, 1), (1, 1), (0, 0), (1, 1), groups
    gradients = [np.full((batch, outputs, channels // groups, 1, 1), 7.0, np.float32) for _ in range(2)]
    squares, bias_squares, none = np.full((2, batch), 7.0), np.full(batch, 7.0), np.empty(0)
    core.conv_rows(x, g, *geometry, gradients[0], squares[0], none)
    for count in (1, 3):
        threads(count)
        sums = np.full((batch, outputs), 7.0, np.float32)
        core.conv_gradients(x, g, *geometry, gradients[1], False, squares[1], sums, bias_squares)
        chain = np.zeros((batch, outputs), np.float32)
        for row in range(rows):
            for column in range(columns):
                chain += g[:, :, row, column]
        assert bits(sums) == bits(chain)
        np.testing.assert_allclose(bias_squares, (sums.astype(np.float64) ** 2).sum(1), rtol=1e-15 * outputs)
    assert bits(gradients[0]) == bits(gradients[1])
    assert bits(squares[0]) == bits(squares[1])


def test_arrays_of_conv_gradients_are_checked(core: Any) -> None:
    x, g = normal((2, 3, 4, 4), 0), normal((2, 5, 4, 4), 1)
    geometry = (1, 1), (1, 1), (0, 0), (1, 1), 1
    rest = np.empty((2, 5, 3, 1, 1), np.float32), False, np.empty(2)
    good, squares = np.full((2, 5), 7.0, np.float32), np.empty(2)
    with pytest.raises(ValueError, match="sums has 8 values, expected 10"):
        core.conv_gradients(x, g, *geometry, *rest, good[:, :4].copy(), squares)
    with pytest.raises(ValueError, match="sum_squares has 1 values, expected 2"):
        core.conv_gradients(x, g, *geometry, *rest, good, squares[:1])
    with pytest.raises(TypeError, match="sums has another dtype"):
        core.conv_gradients(x, g, *geometry, *rest, good.astype(np.float64), squares)
    with pytest.raises(ValueError, match="taps_first"):
        core.conv_gradients(
            np.ones((2, 5, 4, 4), np.float32),
            g,
            *geometry[:4],
            5,
            rest[0][:, :, :1].copy(),
            True,
            squares,
            good,
            squares,
        )
    assert (good == 7.0).all()


@pytest.mark.parametrize(
    "case", [(3, 5, 9, 9, 21, 3), (2, 4, 7, 12, 8, 1), (1, 1, 1, 1, 1, 1), (0, 2, 3, 3, 4, 1), (2, 6, 6, 5, 34, 2),
             (3, 9, 5, 4, 48, 3), (130, 32, 4, 4, 32, 3)]
)  # fmt: skip
def test_rows_of_convolutions_with_outputs_last(core: Any, case: tuple[int, ...], threads: Any) -> None:
    """The values of the usual order, to the bit; the last case is large enough to go past the caches where it is aligned."""
    batch, channels, rows, columns, outputs, kernel = case
    x, g = normal((batch, channels, rows, columns), 0), normal((batch, outputs, rows, columns), 1)
    geometry = (kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1), 1
    rest = np.empty((batch, outputs), np.float32), np.empty(batch)
    usual, squares = np.empty((batch, outputs, channels, kernel, kernel), np.float32), np.empty((2, batch))
    core.conv_gradients(x, g, *geometry, usual, False, squares[0], *rest)
    threads(2)
    for offset in (0, 1):  # the second time not aligned
        memory = np.full(usual.size + 32, 7.0, np.float32)
        start = -memory.ctypes.data % 64 // 4 + offset
        last = memory[start : start + usual.size].reshape(batch, channels, kernel, kernel, outputs)
        core.conv_gradients(x, g, *geometry, last, True, squares[1], *rest)
        assert bits(np.moveaxis(last, -1, 1)) == bits(usual)
        assert bits(squares[0]) == bits(squares[1])
        assert (memory[:start] == 7.0).all()
        assert (memory[start + usual.size :] == 7.0).all()


def test_weighted_rows(core: Any, threads: Any) -> None:
    """Sums of clipping.md, turned if their outputs are last."""
    shapes = [(5,), (16, 3, 2, 2), (37, 4, 3, 3), (1, 7), (40, 1)]
    weights = np.random.default_rng(3).random(300)
    weights[[0, 7, 200]] = 0.0
    rows = [normal((300, *shape), n) for n, shape in enumerate(shapes)]
    for one in rows:
        one[7] = np.nan
    outputs = [0] + [shape[0] for shape in shapes[1:]]
    memory = [rows[0]] + [np.ascontiguousarray(np.moveaxis(one, 1, -1)) for one in rows[1:]]
    for count in (1, 3):
        threads(count)
        totals = [np.full(shape, 7.0, np.float32) for shape in shapes]
        core.weighted_rows(memory, outputs, weights, totals)
        for one, total in zip(rows, totals, strict=True):
            truth = np.zeros(total.shape)
            for weight, row in zip(weights, one.astype(np.float64), strict=True):
                if weight != 0.0:
                    truth += weight * row
            assert bits(total) == bits(truth.astype(np.float32))


def test_arrays_of_weighted_rows_are_checked() -> None:
    rows, weights, total = normal((3, 6), 0), np.ones(3), np.full(6, 7.0, np.float32)
    for arguments in (
        ([], [], weights, []), ([rows], [0, 0], weights, [total]), ([rows], [0], weights[:2], [total]),
        ([rows], [4], weights, [total]), ([rows], [0], weights, [total[:5]]), ([rows.T], [0], weights, [total]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"number|values|divide|contiguous"):
            _core.weighted_rows(*arguments)
    for wrong in (rows.astype(np.float64), weights.astype(np.float32)):
        first = wrong.ndim == 2
        with pytest.raises(TypeError, match="dtype"):
            _core.weighted_rows([wrong if first else rows], [0], weights if first else wrong, [total])
    assert (total == 7.0).all()
    squares, out = np.ones(3), np.full(3, 7.0)
    for wrong_squares, spreads in (([], []), ([squares], [squares, squares]), ([squares[:2]], [])):
        with pytest.raises(ValueError, match=r"number|values"):
            _core.clip_weights(wrong_squares, spreads, 1.0, 1.0, 16.0, 0.0, 1.0, 0.0, out)
    assert (out == 7.0).all()
