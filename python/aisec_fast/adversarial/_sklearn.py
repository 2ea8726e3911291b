"""scikit-learn's linear models and MLPs as torch modules, with their own logits and exact gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _checks

_LINEAR = (
    "LogisticRegression", "LogisticRegressionCV", "SGDClassifier", "LinearSVC", "RidgeClassifier", "RidgeClassifierCV",
    "Perceptron", "PassiveAggressiveClassifier",
)  # fmt: skip
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}


class _Affine(nn.Module):
    """x * scale + shift, and the bounds that a clipping scaler has."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Any, shift: Any, bounds: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(np.array(scale, np.float64)))
        self.register_buffer("shift", torch.as_tensor(np.array(shift, np.float64)))
        self.bounds = bounds

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.scale + self.shift
        return y if self.bounds is None else y.clamp(*self.bounds)


class _RowNorm(nn.Module):
    """Each row over its norm; rows of zeros stay, as in scikit-learn."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.order = {"l1": 1.0, "l2": 2.0, "max": float("inf")}[norm]

    def forward(self, x: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(x, self.order, dim=1, keepdim=True)
        return x / torch.where(norms == 0, 1, norms)


class _TwoLogits(nn.Module):
    """A single decision value d as the logits (0, d): class 1 is answered where d is above 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), x], 1)


def from_sklearn(estimator: Any, *, dtype: torch.dtype | None = None) -> nn.Module:
    """A fitted scikit-learn classifier as a torch module that gives its logits, for any attack.

    Taken are linear models (LogisticRegression, LogisticRegressionCV, SGDClassifier, LinearSVC, RidgeClassifier,
    RidgeClassifierCV, Perceptron, PassiveAggressiveClassifier), MLPClassifier with every activation, and a Pipeline that ends
    in one of them after StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler or Normalizer. Logits are what
    ``decision_function`` gives (before softmax or sigmoid, for an MLPClassifier); a binary model's single value d becomes the
    logits (0, d), so that differences of logits, and with them probabilities by softmax, are the estimator's.

    Labels of the module are positions in ``estimator.classes_``: :func:`sklearn_labels` turns yours into them.

    Args:
        estimator: fitted; it is copied, and later changes of it change nothing.
        dtype: of the module, and of the samples it takes. Default: ``torch.float64``, scikit-learn's own.

    Returns:
        A module in eval mode for samples ``[B, features]`` (further dimensions are flattened).

    Raises:
        TypeError: another kind of estimator, with its name.
        ValueError: one that is not fitted, or that gives several labels at once.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    steps = [step for _, step in estimator.steps] if _is(estimator, "Pipeline") else [estimator]
    for step in steps[:-1]:
        if step is not None and step != "passthrough":
            layers.append(_scaler(step))
    layers += _classifier(steps[-1])
    module = nn.Sequential(*layers).to(torch.float64 if dtype is None else dtype).eval()
    return module.requires_grad_(False)


def sklearn_labels(estimator: Any, y: Any) -> Any:
    """Labels of yours as the positions in ``estimator.classes_`` that the module of :func:`from_sklearn` takes.

    Args:
        estimator: fitted, with ``classes_``.
        y: labels as the estimator gives them, ``[B]``.

    Returns:
        int64 ``[B]``, numpy.

    Raises:
        ValueError: a label that the estimator does not know.
    """
    classes, labels = np.asarray(estimator.classes_), np.asarray(y)
    if labels.ndim != 1:
        raise ValueError(f"y has shape {labels.shape}, expected labels [B]")
    positions = np.searchsorted(classes, labels).clip(0, len(classes) - 1)  # classes_ are sorted
    unknown = classes[positions] != labels
    if unknown.any():
        raise ValueError(f"y holds the label {labels[unknown][0]!r}, expected one of {list(classes)}")
    return positions.astype(np.int64)


def _is(estimator: Any, *names: str) -> bool:
    """Whether it is one of scikit-learn's classes of these names, or of a class made from one."""
    return "sklearn" in sys.modules and any(
        kind.__name__ in names and kind.__module__.startswith("sklearn.") for kind in type(estimator).__mro__
    )


def _fitted(estimator: Any, attribute: str) -> Any:
    if not hasattr(estimator, attribute):
        raise ValueError(f"estimator: {type(estimator).__name__} has no {attribute}, expected a fitted one")
    return getattr(estimator, attribute)


def _scaler(step: Any) -> nn.Module:
    if _is(step, "Normalizer"):
        return _RowNorm(step.norm)
    if not _is(step, "StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler"):
        raise TypeError(
            f"estimator has the step {type(step).__name__}, expected StandardScaler, MinMaxScaler, MaxAbsScaler, "
            "RobustScaler or Normalizer before the classifier"
        )
    scale = _fitted(step, "scale_")
    if _is(step, "MinMaxScaler"):
        low, high = step.feature_range
        return _Affine(scale, step.min_, (float(low), float(high)) if step.clip else None)
    center = getattr(step, "center_" if _is(step, "RobustScaler") else "mean_", None)
    if _is(step, "StandardScaler") and not step.with_mean:
        center = None
    divisor = np.ones(step.n_features_in_) if scale is None else np.asarray(scale)
    shift = 0 * divisor if center is None else -np.asarray(center) / divisor
    bounds = (-1.0, 1.0) if _is(step, "MaxAbsScaler") and getattr(step, "clip", False) else None
    return _Affine(1 / divisor, shift, bounds)


def _classifier(step: Any) -> list[nn.Module]:
    if getattr(getattr(step, "_label_binarizer", None), "y_type_", "").startswith("multilabel"):
        raise ValueError(
            f"estimator is {_checks.kind_of(step)} for several labels at once, expected one label a sample"
        )
    if _is(step, "MLPClassifier"):
        weights, biases = _fitted(step, "coefs_"), step.intercepts_
        layers: list[nn.Module] = []
        for weight, bias in zip(weights, biases, strict=True):
            layers += [_linear(weight.T, bias), _ACTIVATIONS[step.activation]()]
        return [*layers[:-1], *([_TwoLogits()] if step.n_outputs_ == 1 else [])]
    if not _is(step, *_LINEAR):
        raise TypeError(
            f"estimator is {_checks.kind_of(step)}, expected a linear classifier ({', '.join(_LINEAR)}), an MLPClassifier, or "
            "a Pipeline of scalers that ends in one"
        )
    weight = _fitted(step, "coef_")
    weight = np.atleast_2d(weight.toarray() if hasattr(weight, "toarray") else weight)  # SGDClassifier.sparsify
    if len(weight) not in (1, len(step.classes_)) or np.ndim(step.classes_[0]):
        raise ValueError(
            f"estimator is {_checks.kind_of(step)} for several labels at once, expected one label a sample"
        )
    return [_linear(weight, step.intercept_), *([_TwoLogits()] if len(weight) == 1 else [])]


def _linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(weight, np.float64)))
        layer.bias.copy_(torch.from_numpy(np.broadcast_to(np.asarray(bias, np.float64), weight.shape[:1]).copy()))
    return layer
