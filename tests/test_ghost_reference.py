"""The ghost reference against autograd in float64, one sample at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from aisec_fast._reference import ghost


def of(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def weight_gradient(layer, x: torch.Tensor, weight: torch.Tensor, g: torch.Tensor) -> np.ndarray:
    weight = weight.detach().requires_grad_()
    return torch.autograd.grad(layer(x, weight), weight, g)[0].numpy()


@pytest.mark.parametrize(("batch", "length", "d", "p"), [(3, 5, 4, 2), (1, 1, 1, 1), (0, 3, 2, 2), (2, 0, 3, 4)])
def test_linear_gradients(batch: int, length: int, d: int, p: int) -> None:
    x, g = of((batch, length, d), 0), of((batch, length, p), 1)
    rows = ghost.gradients(x.numpy(), g.numpy())
    assert rows.shape == (batch, p, d)
    for i in range(batch):
        expected = weight_gradient(functional.linear, x[i], torch.zeros(p, d, dtype=torch.float64), g[i])
        np.testing.assert_allclose(rows[i], expected, rtol=1e-12, atol=1e-12)
    terms = torch.einsum("btp,btd->btpd", g, x).flatten(2).norm(dim=2).sum(1)
    np.testing.assert_allclose(ghost.absolute(x.numpy(), g.numpy()), terms, rtol=1e-12)
    np.testing.assert_allclose(ghost.squares(rows), (rows**2).sum(axis=(1, 2)))


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "stride", "padding", "dilation", "groups"),
    [
        (2, 3, (3, 4), (3, 3), (1, 1), (1, 1), (1, 1), 1),
        (4, 6, (5, 4), (2, 3), (2, 1), (0, 2), (1, 2), 2),
        (3, 3, (4, 4), (1, 1), (2, 2), (0, 0), (1, 1), 3),
        (1, 2, (1, 9), (1, 4), (1, 3), (0, 3), (1, 2), 1),
    ],
)
def test_conv_gradients(channels, outputs, size, kernel, stride, padding, dilation, groups) -> None:
    x, weight = of((2, channels, *size), 0), torch.zeros(outputs, channels // groups, *kernel, dtype=torch.float64)

    def layer(one: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(one, w, None, stride, padding, dilation, groups)

    g = of(tuple(layer(x, weight).shape), 1)
    rows, bounds = ghost.conv_gradients(x.numpy(), g.numpy(), kernel, stride, padding, dilation, groups)
    for i in range(2):
        expected = weight_gradient(layer, x[i : i + 1], weight, g[i : i + 1])
        np.testing.assert_allclose(rows[i], expected, rtol=1e-12, atol=1e-12)
        lengths = 0.0
        for group in range(groups):  # the gradient of each position alone, by autograd
            total = 0.0
            for position in range(g[0, 0].numel()):
                one = torch.zeros_like(g[i : i + 1])
                share = slice(group * outputs // groups, (group + 1) * outputs // groups)
                one.flatten(2)[0, share, position] = g[i].flatten(1)[share, position]
                total += float(np.linalg.norm(weight_gradient(layer, x[i : i + 1], weight, one)))
            lengths += total**2
        assert bounds[i] == pytest.approx(lengths**0.5, rel=1e-12)
