"""scikit-learn's classifiers as torch modules: their own decision values, gradients and labels."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Perceptron,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC
from torch import nn

from aisec_fast import adversarial
from tests.test_pgd_torch import few_threads

__all__ = ["few_threads"]  # scikit-learn's threads and torch's wait for each other otherwise

IMAGES, DIGITS = load_digits(return_X_y=True)
IMAGES, DIGITS = IMAGES[:300] / 16, DIGITS[:300]
NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
LABELS = {"ten": DIGITS, "two": DIGITS > 4, "names": NAMES[DIGITS]}


def fitted(estimator: Any, labels: Any, x: Any = IMAGES) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(x, labels)


LINEAR = [LogisticRegression(max_iter=30), SGDClassifier(random_state=0), LinearSVC(), RidgeClassifier(), Perceptron()]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("estimator", LINEAR, ids=lambda e: type(e).__name__)
def test_linear_models_have_their_decision_values(estimator, labels) -> None:
    estimator = fitted(estimator, LABELS[labels])
    module = adversarial.from_sklearn(estimator)
    logits = module(torch.from_numpy(IMAGES)).numpy()
    values = estimator.decision_function(IMAGES)
    values = values if values.ndim == 2 else np.stack([0 * values, values], 1)
    assert np.allclose(logits, values, rtol=0, atol=1e-12 * max(1, np.abs(values).max()))
    assert np.array_equal(estimator.classes_[logits.argmax(1)], estimator.predict(IMAGES))
    assert np.array_equal(estimator.classes_[adversarial.sklearn_labels(estimator, LABELS[labels])], LABELS[labels])


@pytest.mark.parametrize("labels", ["ten", "two"])
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_networks_have_their_logits(activation, labels) -> None:
    estimator = MLPClassifier((12, 7), activation=activation, max_iter=3, random_state=0)
    estimator = fitted(estimator, LABELS[labels])
    module = adversarial.from_sklearn(estimator)
    logits = module(torch.from_numpy(IMAGES))
    assert np.allclose(logits.softmax(1).numpy(), estimator.predict_proba(IMAGES), rtol=1e-9, atol=1e-12)
    assert np.array_equal(estimator.classes_[logits.argmax(1).numpy()], estimator.predict(IMAGES))
    leaf = torch.from_numpy(IMAGES[:3]).requires_grad_(True)
    assert torch.autograd.gradcheck(module, (leaf,))


SCALERS = [
    StandardScaler(), StandardScaler(with_mean=False), StandardScaler(with_std=False), MinMaxScaler((-1, 2)),
    MinMaxScaler(clip=True), MaxAbsScaler(), RobustScaler(), RobustScaler(with_scaling=False),
    RobustScaler(with_centering=False), Normalizer(), Normalizer("l1"), Normalizer("max"), "passthrough",
]  # fmt: skip


@pytest.mark.parametrize("scaler", SCALERS, ids=str)
def test_pipelines_of_scalers(scaler) -> None:
    shifted = IMAGES - 0.2  # negative values too, and later ones beyond what a clipping scaler has seen
    shifted[0] = 0
    estimator = fitted(make_pipeline(scaler, LogisticRegression(max_iter=30)), DIGITS, shifted)
    further = 1.5 * shifted
    logits = adversarial.from_sklearn(estimator)(torch.from_numpy(further)).numpy()
    assert np.allclose(logits, estimator.decision_function(further), rtol=0, atol=1e-11)


def test_attacks_take_numpy_and_give_numpy() -> None:
    estimator = fitted(make_pipeline(StandardScaler(), LogisticRegression(max_iter=30)), NAMES[DIGITS])
    module = adversarial.from_sklearn(estimator)
    y = adversarial.sklearn_labels(estimator, NAMES[DIGITS])
    right = estimator.predict(IMAGES) == NAMES[DIGITS]
    adv = adversarial.fab(module, IMAGES, y, norm="l2", steps=10)
    assert isinstance(adv, np.ndarray)
    assert adv.dtype == np.float64
    assert (estimator.predict(adv) != NAMES[DIGITS]).all()
    assert (adversarial.distances(adv, IMAGES, "l2") > 0).tolist() == right.tolist()
    adv = adversarial.pgd(module, IMAGES, y, eps=0.1, steps=5, seed=0)
    assert isinstance(adv, np.ndarray)
    assert (estimator.predict(adv) == NAMES[DIGITS]).mean() < 0.5


def test_dtypes_copies_and_shapes() -> None:
    estimator = fitted(LogisticRegression(max_iter=30), DIGITS)
    module = adversarial.from_sklearn(estimator)
    before = module(torch.from_numpy(IMAGES))
    estimator.coef_ *= 0
    assert torch.equal(module(torch.from_numpy(IMAGES)), before)
    assert not any(p.requires_grad for p in module.parameters())
    assert not module.training
    single = adversarial.from_sklearn(fitted(LogisticRegression(max_iter=30), DIGITS), dtype=torch.float32)
    images = torch.from_numpy(IMAGES).float().reshape(-1, 1, 8, 8)
    assert single(images).dtype == torch.float32
    assert (single(images) - before).abs().max() <= 1e-4
    assert torch.equal(pickle.loads(pickle.dumps(module))(torch.from_numpy(IMAGES)), before)
    sparse = fitted(SGDClassifier(penalty="l1", random_state=0), DIGITS)
    dense = adversarial.from_sklearn(sparse)(torch.from_numpy(IMAGES))
    assert torch.equal(adversarial.from_sklearn(sparse.sparsify())(torch.from_numpy(IMAGES)), dense)


@pytest.mark.parametrize(
    ("estimator", "error", "message"),
    [
        (RandomForestClassifier(), TypeError, "^estimator is a RandomForestClassifier, expected a linear classifier"),
        (LinearRegression(), TypeError, "^estimator is a LinearRegression"),
        (nn.Linear(3, 2), TypeError, "^estimator is a Linear"),
        (3, TypeError, "^estimator is an int"),
        (
            make_pipeline(PolynomialFeatures(), LogisticRegression()),
            TypeError,
            "^estimator has the step PolynomialFeat",
        ),
        (LogisticRegression(), ValueError, "^estimator: LogisticRegression has no coef_, expected a fitted one"),
        (MLPClassifier(), ValueError, "^estimator: MLPClassifier has no coefs_"),
        (make_pipeline(StandardScaler(), LinearSVC()), ValueError, "^estimator: StandardScaler has no scale_"),
        (
            fitted(RidgeClassifier(), np.eye(10, dtype=int)[DIGITS]),
            ValueError,
            "^estimator is a RidgeClassifier for sev",
        ),
        (
            fitted(MLPClassifier((3,), max_iter=2), np.eye(10, dtype=int)[DIGITS]),
            ValueError,
            "^estimator is a MLPClassifier for several",
        ),
    ],
)
def test_what_is_not_taken_is_named(estimator, error, message) -> None:
    with pytest.raises(error, match=message):
        adversarial.from_sklearn(estimator)


def test_labels_that_are_not_known_are_named() -> None:
    estimator = fitted(LogisticRegression(max_iter=30), NAMES[DIGITS])
    with pytest.raises(ValueError, match=r"^y holds the label .*'ten'.*, expected one of"):
        adversarial.sklearn_labels(estimator, ["one", "ten"])
    with pytest.raises(ValueError, match=r"^y has shape \(1, 1\)"):
        adversarial.sklearn_labels(estimator, [["one"]])


class Foreign:
    """An array of a library of its own: anything with DLPack, as jax has."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


def test_gradient_models_of_other_libraries_work_or_are_named() -> None:
    x = Foreign(np.full((4, 3), 0.5))
    weights = np.array([1.0, -2.0, 0.5])
    model = adversarial.GradientModel(lambda x, y: np.broadcast_to(weights, x.shape))
    adv = np.asarray(adversarial.pgd(model, x, np.zeros(4), eps=0.1, seed=0))
    assert np.allclose(adv, 0.5 + 0.1 * np.sign(weights))
