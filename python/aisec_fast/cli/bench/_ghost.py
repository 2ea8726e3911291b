"""Cases of the ghost family: layers of a transformer, a ResNet and a small CNN, whatever the sizes asked for.

The peers are what a DP-SGD step would do in torch: two batched products and a sum for a linear layer; for a convolution
the gradients by one convolution with the batch folded into its groups (Rochette et al. 2019), and, as a yardstick that
makes no per-sample gradients at all, the plain weight gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from aisec_fast import ghost
from aisec_fast._reference import ghost as reference

from ._kernels import Array, Operation, close, contenders, has, like
from ._measure import Case, Contender, FloorPart

_LINEARS = ((32, 64, 256, 768), (32, 64, 256, 256), (32, 64, 256, 1024), (32, 64, 1024, 256), (32, 64, 256, 5000))
_CHECKED = 2  # samples compared with the reference, which forms gradients in float64
_GRAM_POSITIONS = 256  # above this a convolution's Gram matrices cost more than its gradients


class _Layer(NamedTuple):
    batch: int
    channels: int
    outputs: int
    size: int
    kernel: int
    stride: int = 1
    padding: int = 0

    @property
    def out_size(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def settings(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding}


_CONVS = (
    _Layer(64, 3, 32, 32, 3, padding=1),
    _Layer(64, 32, 32, 32, 3, padding=1),
    _Layer(64, 32, 64, 32, 3, stride=2, padding=1),
    _Layer(64, 32, 64, 32, 1, stride=2),
    _Layer(64, 64, 64, 16, 3, padding=1),
    _Layer(64, 64, 128, 16, 3, stride=2, padding=1),
    _Layer(64, 64, 128, 16, 1, stride=2),
    _Layer(64, 128, 128, 8, 3, padding=1),
    _Layer(256, 1, 16, 28, 8, stride=2, padding=3),
    _Layer(256, 16, 32, 13, 4, stride=2),
)


def cases(_sizes: list[int], threads: list[int]) -> Iterator[Case]:
    """``gram_squares``, ``conv_gram_squares`` and ``conv_rows``."""
    for count in threads:
        for shape in _LINEARS:
            prepare: Callable[[], Any] = partial(_prepare_linear, shape)
            yield Case("ghost", "gram_squares", shape, "float32", count, 1, 0, prepare)
        for layer in _CONVS:
            for name in ("conv_gram_squares", "conv_rows"):
                if name == "conv_rows" or layer.out_size**2 <= _GRAM_POSITIONS:
                    yield Case("ghost", name, tuple(layer), "float32", count, 1, 0, partial(_prepare_conv, name, layer))


def _prepare_linear(shape: tuple[int, int, int, int]) -> tuple[list[Contender], list[FloorPart]]:
    batch, length, d, p = shape
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((batch, length, d), dtype=np.float32)
    outputs = generator.standard_normal((batch, length, p), dtype=np.float32)
    near = _near(reference.squares(reference.gradients(inputs[:_CHECKED], outputs[:_CHECKED])))
    peers: dict[str, Any] = {}
    if has("torch"):
        import torch

        a, g = torch.from_numpy(inputs), torch.from_numpy(outputs)

        def torch_squares() -> Any:
            gram = torch.bmm(a, a.transpose(1, 2)).mul_(torch.bmm(g, g.transpose(1, 2)))
            return gram.sum((1, 2), dtype=torch.float64)

        peers["torch"] = (torch_squares, near, True)

    def call(values: Any) -> Callable[[], Any]:
        other = like(outputs, values)
        return lambda: ghost.gram_squares(values, other)[0]

    return contenders(Operation(call, near, peers), inputs, reads=1 + p / d)


def _prepare_conv(name: str, layer: _Layer) -> tuple[list[Contender], list[FloorPart]]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((layer.batch, layer.channels, layer.size, layer.size), dtype=np.float32)
    g = generator.standard_normal((layer.batch, layer.outputs, layer.out_size, layer.out_size), dtype=np.float32)
    geometry = ((layer.kernel,) * 2, (layer.stride,) * 2, (layer.padding,) * 2, (1, 1), 1)
    near = _near(reference.squares(reference.conv_gradients(x[:_CHECKED], g[:_CHECKED], *geometry)[0]))
    peers = {peer: (run, near if peer == "torch grouped" else _unchecked, True) for peer, run in _peers(x, g, layer)}

    def call(values: Any) -> Callable[[], Any]:
        other = like(g, values)
        if name == "conv_gram_squares":
            return lambda: ghost.conv_gram_squares(values, other, layer.kernel, **layer.settings)[0]
        return lambda: ghost.conv_rows(values, other, layer.kernel, **layer.settings)[1]

    return contenders(Operation(call, near, peers), x, reads=1 + g.size / x.size)


def _peers(x: Array, g: Array, layer: _Layer) -> Iterator[tuple[str, Callable[[], Any]]]:
    if not has("torch"):
        return
    import torch

    batch, kernel = layer.batch, (layer.kernel, layer.kernel)
    weight = torch.zeros(layer.outputs, layer.channels, *kernel)
    stacked = torch.zeros(batch * layer.outputs, layer.channels, *kernel)
    pixels, wanted = torch.from_numpy(x), torch.from_numpy(g)

    def backward(one: Any, other: Any, shaped: Any, groups: int) -> Any:
        steps, sides = [layer.stride] * 2, [layer.padding] * 2
        mask = [False, True, False]
        return torch.ops.aten.convolution_backward(
            other, one, shaped, None, steps, sides, [1, 1], False, [0, 0], groups, mask
        )[1]

    def grouped() -> Any:
        rows = backward(pixels.flatten(0, 1)[None], wanted.flatten(0, 1)[None], stacked, batch)
        return torch.linalg.vector_norm(rows.view(batch, -1), dim=1).square()

    yield "torch grouped", grouped
    yield "torch plain", lambda: backward(pixels, wanted, weight, 1)


def _near(expected: Array) -> Callable[[Array], str]:
    check = close(expected, 1e-4)
    return lambda result: check(result[: len(expected)])


def _unchecked(_result: Array) -> str:
    return "no norms"
