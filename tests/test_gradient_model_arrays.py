"""``GradientModel`` over arrays of libraries that are known by DLPack and the array API alone: a stand-in, and jax."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aisec_fast import adversarial
from aisec_fast.adversarial import GradientModel
from tests.conftest import bits
from tests.test_pgd import assert_inside


class Stand:
    """An array that says where it lives, how it is read, and how others become one; nothing else. It must never change."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.before = values, values.copy()
        self.shape = values.shape

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return SimpleNamespace(from_dlpack=lambda given: Stand(np.from_dlpack(given)))


class Silent:
    """A DLPack producer that does not say how it is made."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)


RNG = np.random.default_rng(0)
X, WEIGHTS = RNG.random((12, 20)).astype(np.float32), RNG.standard_normal((20, 4)).astype(np.float32)
Y = (X @ WEIGHTS).argmax(1)


def slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the margin between the likeliest other class and the label."""
    others = np.where(np.arange(4) == y[:, None], -np.inf, x @ WEIGHTS).argmax(1)
    return np.ascontiguousarray((WEIGHTS[:, others] - WEIGHTS[:, y]).T)


PLAIN = GradientModel(slope, lambda x: x @ WEIGHTS)


def standing(kept: list[Stand]) -> GradientModel:
    """The same functions over stand-ins, of which none is changed later."""

    def gradient(x: Stand, y: Stand) -> Stand:
        assert isinstance(x, Stand)
        assert isinstance(y, Stand)
        kept.extend([x, y])
        return Stand(slope(x.values, y.values))

    def predict(x: Stand) -> Stand:
        assert isinstance(x, Stand)
        kept.append(x)
        return Stand(x.values @ WEIGHTS)

    return GradientModel(gradient, predict)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.4), ("l1", 1.0), ("l0", 2)])
def test_functions_get_and_callers_get_arrays_of_their_library(norm, eps) -> None:
    options: dict[str, Any] = {"eps": eps, "norm": norm, "steps": 6, "restarts": 3, "early_stop": True, "seed": 0}
    kept: list[Stand] = []
    x, y = Stand(X.copy()), Stand(Y.copy())
    adv = adversarial.pgd(standing(kept), x, y, **options)
    assert isinstance(adv, Stand)
    assert bits(adv.values) == bits(adversarial.pgd(PLAIN, X, Y, **options))
    if norm != "l0":
        assert_inside(adv.values, X, eps, norm, (0, 1))
    assert ((adv.values @ WEIGHTS).argmax(1) != Y).sum() > 0
    for each in (x, y, *kept):  # steps in place would show
        assert bits(each.values) == bits(each.before)
    assert len(kept) > 6
    curve = adversarial.pgd(standing(kept), x, y, **{**options, "eps": [eps, 2 * eps]})
    assert isinstance(curve, Stand)
    assert curve.shape == (2, 12, 20)


def test_square_and_sign_steps_take_them_too() -> None:
    kept: list[Stand] = []
    for attack, options in (
        (adversarial.square, {"n_queries": 30, "seed": 0}),
        (adversarial.square, {"n_queries": 30, "seed": 0, "targeted": True}),
        (adversarial.bim, {"steps": 3}),
        (adversarial.fgsm, {}),
    ):
        adv = attack(standing(kept), Stand(X), Stand(Y), eps=0.1, **options)
        assert isinstance(adv, Stand)
        assert bits(adv.values) == bits(attack(PLAIN, X, Y, eps=0.1, **options))
    for each in kept:
        assert bits(each.values) == bits(each.before)


def test_labels_keep_their_own_library_and_unknown_producers_become_numpy() -> None:
    def gradient(x: Stand, y: Any) -> Stand:
        assert y is Y
        return Stand(slope(x.values, y))

    adv = adversarial.pgd(GradientModel(gradient), Stand(X), Y, eps=0.1, steps=2, seed=0)
    expected = adversarial.pgd(PLAIN, X, Y, eps=0.1, steps=2, seed=0)
    assert bits(adv.values) == bits(expected)
    other = adversarial.pgd(PLAIN, Silent(X), Silent(Y), eps=0.1, steps=2, seed=0)
    assert type(other) is np.ndarray
    assert bits(other) == bits(expected)


def test_what_functions_return_is_checked() -> None:
    for gradient, error, message in (
        (lambda x, y: Stand(x.values[:, :3]), ValueError, r"^gradient\(x, y\) returned shape \(12, 3\)"),
        (
            lambda x, y: Stand(x.values.astype(np.float64)),
            TypeError,
            r"^gradient\(x, y\) returned a numpy array of float64",
        ),
        (lambda x, y: 3, TypeError, r"^the result of gradient\(x, y\) is an int"),
    ):
        with pytest.raises(error, match=message):
            adversarial.pgd(GradientModel(gradient), Stand(X), Stand(Y), eps=0.1, steps=1)


def test_jax() -> None:
    jax = pytest.importorskip("jax", reason="pip install jax")
    numpy = jax.numpy
    weights = numpy.asarray(WEIGHTS)

    def losses(x: Any, y: Any) -> Any:
        z = numpy.tanh(x @ weights)
        return -jax.nn.log_softmax(z)[numpy.arange(len(y)), y].sum()

    gradient = jax.jit(jax.grad(losses))
    kept: list[Any] = []

    def watched(x: Any, y: Any) -> Any:
        assert isinstance(x, jax.Array)
        assert isinstance(y, jax.Array)
        kept.append((x, np.array(x)))
        return gradient(x, y)

    model = GradientModel(watched, jax.jit(lambda x: numpy.tanh(x @ weights)))
    x, y = numpy.asarray(X), numpy.asarray(Y)
    for norm, eps in (("linf", 0.1), ("l2", 0.4), ("l1", 1.0)):
        adv = adversarial.pgd(model, x, y, eps=eps, norm=norm, steps=6, restarts=2, early_stop=True, seed=0)
        assert isinstance(adv, jax.Array)
        assert adv.dtype == numpy.float32
        assert_inside(np.asarray(adv), X, eps, norm, (0, 1))
        fooled = (np.tanh(np.asarray(adv) @ WEIGHTS).argmax(1) != Y).sum()
        assert fooled > 0
    assert all(bits(np.array(now)) == bits(then) for now, then in kept)  # immutable, so also later
    assert isinstance(adversarial.square(model, x, y, eps=0.1, n_queries=10, seed=0), jax.Array)
    assert adversarial.pgd(model, x[:0], y[:0], eps=0.1).shape == (0, 20)


def test_no_library_is_imported_for_it() -> None:
    script = (
        "import sys, numpy\n"
        "from aisec_fast import adversarial\n"
        "x = numpy.full((2, 3), 0.5)\n"
        "adversarial.pgd(adversarial.GradientModel(lambda x, y: x), x, numpy.zeros(2), eps=0.1, steps=1)\n"
        "assert not {'jax', 'torch', 'cupy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
