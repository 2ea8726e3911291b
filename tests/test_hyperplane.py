"""FAB's projections onto a hyperplane and the box, against linear programs, a bisection, and what must hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq, linprog

from aisec_fast.adversarial._distances import lengths
from aisec_fast.adversarial._hyperplane import nearest_boundary, onto_hyperplane
from aisec_fast.adversarial._torch_model import TorchModel

Floats = NDArray[np.float64]


def smallest(x: Floats, w: Floats, value: float, low: float, high: float, norm: str) -> float:
    """The norm of the smallest change, infinite where there is none: linear programs, and the multiplier of the L2 one."""
    size = len(x)
    below, above = low - x, high - x
    if norm == "l2":
        toward = -np.sign(value)

        def change(multiplier: float) -> Floats:
            return np.clip(toward * multiplier * w, below, above)

        end = 1.0
        while toward * (value + w @ change(end)) < 0:
            end *= 4
            if end > 1e12:
                return math.inf
        multiplier = brentq(lambda m: value + w @ change(m), 0, end, xtol=1e-15, rtol=1e-14) if value else 0.0
        return float(np.linalg.norm(change(multiplier)))
    if norm == "l1":  # d = p - n
        cost, equal = np.ones(2 * size), np.concatenate([w, -w])[None]
        bounds = [(0, max(0, b)) for b in above] + [(0, max(0, -b)) for b in below]
        solved = linprog(cost, A_eq=equal, b_eq=[-value], bounds=bounds)
    else:  # |d_i| <= t
        cost, eye, ones = np.append(np.zeros(size), 1), np.eye(size), np.ones((size, 1))
        rows = np.block([[eye, -ones], [-eye, -ones]])
        solved = linprog(
            cost,
            A_ub=rows,
            b_ub=np.zeros(2 * size),
            A_eq=np.append(w, 0)[None],
            b_eq=[-value],
            bounds=[*zip(below, above, strict=True), (0, None)],
        )
    return float(solved.fun) if solved.status == 0 else math.inf


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 9), boxed=st.booleans(), ties=st.booleans())
def test_projections_are_the_smallest(norm: str, seed: int, size: int, boxed: bool, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.random(size), rng.standard_normal(size)
    if ties:  # values on the border, equal and zero weights
        x, w = rng.integers(0, 5, size) / 4, rng.integers(-2, 3, size).astype(float)
    value = float(rng.standard_normal() * rng.choice([0.1, 1, 10]))
    low, high = (0.0, 1.0) if boxed else (-math.inf, math.inf)
    if not boxed and not w.any():
        return  # nothing to be done, and no nearest point
    both = (torch.from_numpy(v)[None] for v in (x, w))
    change = onto_hyperplane(*both, torch.tensor([value], dtype=torch.float64), low, high, norm)
    d = change[0].numpy()
    truth = smallest(x, w, value, *((low, high) if boxed else (-1e9, 1e9)), norm)
    assert (x + d >= low - 1e-15).all()
    assert (x + d <= high + 1e-15).all()
    if math.isfinite(truth):
        assert abs(value + w @ d) <= 1e-9
        assert lengths(change, norm).item() == pytest.approx(truth, rel=1e-6, abs=1e-8)
    else:  # the corner of the box that is nearest to the hyperplane
        assert np.allclose(w * d, np.where(w * value > 0, w * (low - x), w * (high - x)) * (w != 0))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rows_are_projected_alone_and_in_their_dtype(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.rand(20, 500, generator=generator), torch.randn(20, 500, generator=generator)
    w[:, ::7] = 0
    value = torch.randn(20, generator=generator, dtype=torch.float64) * 20
    whole = onto_hyperplane(x, w, value, 0, 1, norm)
    assert whole.dtype == torch.float32
    for i in range(20):
        assert torch.equal(whole[i], onto_hyperplane(x[i : i + 1], w[i : i + 1], value[i : i + 1], 0, 1, norm)[0])
    wide = onto_hyperplane(x.double(), w.double(), value, 0, 1, norm)
    assert (lengths(whole.double(), norm) / lengths(wide, norm) - 1).abs().max() <= 1e-5
    assert ((value + (w.double() * whole.double()).sum(1)).abs() <= 1e-4 * value.abs()).all()
    assert (whole[:, ::7] == 0).all()


def test_the_nearest_boundary_is_that_of_a_linear_model() -> None:
    layer = torch.nn.Linear(12, 5).double()
    x, y = torch.rand(30, 12, dtype=torch.float64), torch.arange(30) % 5
    model, y = TorchModel.made(layer, x, y)
    with model.attacked():
        for norm, dual in (("linf", 1), ("l2", 2), ("l1", math.inf)):
            normal, value, largest = nearest_boundary(model, x, y, norm)
            logits, weights = layer(x).detach(), layer.weight.detach()
            for i in range(30):
                others = [k for k in range(5) if k != y[i]]
                rows = [weights[k] - weights[y[i]] for k in others]
                gaps = [(logits[i, k] - logits[i, y[i]]).item() for k in others]
                ratios = [abs(g) / torch.linalg.vector_norm(r, dual).item() for g, r in zip(gaps, rows, strict=True)]
                best = int(np.argmin(ratios))
                assert torch.allclose(normal[i], rows[best])
                assert value[i].item() == pytest.approx(gaps[best])
                assert largest[i].item() == pytest.approx(max(r.abs().max().item() for r in rows))
