"""The networks on which training and attacks are measured: shapes as the comparisons of DP-SGD and PGD libraries use them.

All have random weights: time does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Bench(NamedTuple):
    """A model with a batch for it. ``loss`` is the mean over the batch."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def to(self, device: str) -> Bench:
        """The same on a device."""
        return Bench(self.model.to(device), self.x.to(device), self.y.to(device))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy, over tokens too: each sample's mean, then the batch's."""
        logits = self.model(x)
        return functional.cross_entropy(logits.transpose(1, 2) if logits.ndim == 3 else logits, y)


class _Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut; ``norm`` makes the normalisation of a number of channels."""

    def __init__(self, inside: int, outside: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            norm(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            norm(outside),
        )
        same = stride == 1 and inside == outside
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inside, H, W] to [B, outside, H / stride, W / stride]."""
        return functional.relu(self.path(x) + self.shortcut(x))


def _resnet(width: int, stages: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    """A stem and ``stages`` of two residual blocks, doubling the width, for images 3 x 32 x 32."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), norm(width), nn.ReLU()]
    channels = width
    for stage in range(stages):
        wide = width * 2**stage
        layers += [_Residual(channels, wide, 1 if stage == 0 else 2, norm), _Residual(wide, wide, 1, norm)]
        channels = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class _Attention(nn.Module):
    """A pre-norm transformer layer with causal attention, of covered layers only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] to the same."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.narrow(functional.gelu(self.wide(self.after(x))))


class _Language(nn.Module):
    """Four layers of width 256 over 64 tokens of 5,000."""

    tokens, words = 64, 5000

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(self.words, width), nn.Embedding(self.tokens, width)
        self.layers = nn.Sequential(*[_Attention(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, self.words)

    def forward(self, x: Tensor) -> Tensor:
        """Words [B, T] to logits [B, T, words]."""
        places = torch.arange(x.shape[1], device=x.device).repeat(x.shape[0], 1)
        return self.head(self.norm(self.layers(self.word(x) + self.place(places))))


def training(name: str, batch: int | None = None) -> Bench:
    """ "mlp", "cnn", "resnet" (GroupNorm) or "transformer", the same weights and batch each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "transformer":
            size = batch or 32
            words = torch.randint(_Language.words, (2, size, _Language.tokens))
            return Bench(_Language(), words[0], words[1])
        if name == "mlp":
            layers = [nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)]
            model: nn.Module = nn.Sequential(*layers)
            shape: tuple[int, ...] = (784,)
            size = batch or 256
        elif name == "cnn":
            model = nn.Sequential(
                *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
                *(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten()),
                *(nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)),
            )
            shape, size = (1, 28, 28), batch or 256
        else:
            model, shape, size = _resnet(32, 3, lambda width: nn.GroupNorm(8, width)), (3, 32, 32), batch or 64
        return Bench(model, torch.randn(size, *shape), torch.randint(10, (size,)))


def attack(name: str) -> Bench:
    """ "cnn", "resnet" (BatchNorm) or "mlp" in eval mode, with images in [0, 1], the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "mlp":
            model: nn.Module = nn.Sequential(
                nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
            )
            shape: tuple[int, ...] = (4096,)
        elif name == "cnn":
            model = nn.Sequential(
                *(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, 10)),
            )
            shape = (1, 28, 28)
        else:
            model, shape = _resnet(16, 4, nn.BatchNorm2d), (3, 32, 32)
        size = 256 if name != "resnet" else 64
        return Bench(model.eval(), torch.rand(size, *shape), torch.randint(10, (size,)))
