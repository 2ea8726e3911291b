"""The demo's job: a small convolutional network on handwritten digits, trained plainly and privately."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from aisec_fast.privacy import PrivacyEngine

DELTA = 1e-5
MAX_GRAD_NORM = 1.0
BATCH = 512
LEARNING_RATE = 0.1
TEST_IMAGES = 360
SEED = 0  # of the split, the initial weights and the plain run's shuffling; private noise and sampling have no seed


@dataclass(frozen=True)
class Digits:
    """1,797 scans of handwritten digits, 8 x 8 pixels from 0 to 1, in a fixed split."""

    train: TensorDataset
    test_images: Tensor
    test_labels: Tensor


def load() -> Digits:
    """The digits that come with scikit-learn."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(images))
    x = torch.from_numpy(images[order].astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    y = torch.from_numpy(labels[order].astype(np.int64))
    split = TEST_IMAGES
    return Digits(TensorDataset(x[split:], y[split:]), x[:split], y[:split])


def small_cnn() -> nn.Module:
    """10,026 weights; GroupNorm, because BatchNorm mixes the samples of a batch."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.Tanh(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


@dataclass
class Run:
    """One model in training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: DataLoader[Any]
    step_seconds: list[float] = field(default_factory=list)
    loss: float = float("nan")  # of the last batch; of a private run it is private data and not for showing

    def step(self, images: Tensor, labels: Tensor) -> None:
        """The loop body that every torch user writes; nothing in it knows about privacy."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.step_seconds.append(time.perf_counter() - start)
        self.loss = loss.item()

    def epoch(self) -> None:
        """One pass over the loader."""
        for images, labels in self.loader:
            self.step(images, labels)

    def predict(self, images: Tensor) -> Tensor:
        """The digit that the model sees in each image."""
        with torch.no_grad():
            return self.model(images).argmax(dim=1)

    def accuracy(self, digits: Digits) -> float:
        """Share of test images that are told right."""
        return (self.predict(digits.test_images) == digits.test_labels).float().mean().item()

    @property
    def step_ms(self) -> float:
        """Median step so far."""
        return 1e3 * statistics.median(self.step_seconds)


def plain_run(digits: Digits) -> Run:
    """A fresh model with plain SGD."""
    model = small_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    return Run(model, optimizer, DataLoader(digits.train, batch_size=BATCH, shuffle=True))


def private_run(digits: Digits, epsilon: float, epochs: int) -> tuple[Run, PrivacyEngine]:
    """The same, made private: noise for ``epochs`` passes at ``epsilon``."""
    run, engine = plain_run(digits), PrivacyEngine()
    run.model, run.optimizer, run.loader = engine.make_private_with_epsilon(
        module=run.model,
        optimizer=run.optimizer,
        data_loader=run.loader,
        target_epsilon=epsilon,
        target_delta=DELTA,
        epochs=epochs,
        max_grad_norm=MAX_GRAD_NORM,
    )
    return run, engine


def train(plain: Run, private: Run, epochs: int) -> Iterator[int]:
    """Train both in turn, an epoch each; yields the number of epochs done."""
    for epoch in range(1, epochs + 1):
        plain.epoch()
        private.epoch()
        yield epoch


def step_time_ratio(digits: Digits, noise_multiplier: float, rounds: int) -> float:
    """Median private step / median plain step, on the same batch of noise images, in turns, data loading left out.

    The models are fresh and thrown away, and the images hold nothing of the data: what is timed costs no privacy.
    """
    plain, private = plain_run(digits), plain_run(digits)
    PrivacyEngine().make_private(
        module=private.model,
        optimizer=private.optimizer,
        data_loader=private.loader,
        noise_multiplier=noise_multiplier,
        max_grad_norm=MAX_GRAD_NORM,
    )
    images, labels = torch.rand(BATCH, 1, 8, 8), torch.randint(10, (BATCH,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the engine notices that the batch is not from its loader
        for _ in range(rounds + 2):
            plain.step(images, labels)
            private.step(images, labels)
    return statistics.median(private.step_seconds[2:]) / statistics.median(plain.step_seconds[2:])
