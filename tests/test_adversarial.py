"""The adversarial steps of every backend against the reference, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aisec_fast import _core
from aisec_fast._reference import adversarial as reference
from tests.conftest import WITHOUT_JIT, Kernels, bits, remembered

STEPS = ["linf_step", "l2_step", "l1_step", "l0_step"]
DTYPES = ["float32", "float64"]
SHAPES = [(0, 3), (3, 0), (1, 1), (2, 15), (3, 17), (1, 31), (2, 3, 11), (5,)]
SHAPES += (
    [(1, 1025)] if WITHOUT_JIT else [(1, 1023), (2, 1024), (3, 1025), (2, 255), (2, 257), (7, 3, 32, 32), (300, 40)]
)
INF, NAN = np.inf, np.nan

NASTY = [0.0, -0.0, NAN, INF, -INF, 1.0, -1.0, 0.5, 1e-45, -1e-45, 1e-38, 3e38, -3e38, 2.0**-24, 1 + 2.0**-23]
NASTY_64 = [*NASTY, 5e-324, -5e-324, 1e-310, 1.7e308, -1.7e308, 1e-200, -1e-200, 1e200, 1 + 2.0**-52]
EPS = [0.0, 5e-324, 1e-45, 2.0**-400, 1e-130, 1e-9, 8 / 255, 0.5, 1.0, 3.0, 5.5, 1e38, 1e300, 1.7e308, INF]
SIZES = [0.0, 0.01, -0.01, 0.3, -2.0, 1e-45, 1e30, -1e300, 1.7e308]


def images(shape: tuple[int, ...], dtype: str, seed: int = 0) -> list[np.ndarray]:
    """adv, x in [0, 1], gradient: adv is partly outside the ball of any usual eps."""
    rng = np.random.default_rng(seed)
    x = rng.random(shape).astype(dtype)
    adv = (x + 0.05 * rng.standard_normal(shape)).astype(dtype)
    return [adv, x, rng.standard_normal(shape).astype(dtype)]


def length_of(step: str, shape: tuple[int, ...]) -> float:
    """A row of ones, or a part of it, in the norm of the step."""
    columns = max(1, int(np.prod(shape[1:])))
    return {"linf_step": 1.0, "l2_step": columns**0.5, "l1_step": columns / 8, "l0_step": float(columns)}[step]


@remembered
def expected(step: str, arguments: list[Any]) -> np.ndarray:
    out = np.full_like(arguments[1], 7)
    getattr(reference, step)(*arguments, out)
    return out


def check(kernels: Kernels, step: str, arguments: list[Any]) -> None:
    """The same bits, into an array of its own and in place; the inputs stay as they are."""
    wanted, before = bits(expected(step, arguments)), [bits(a) for a in arguments[:3]]
    out = np.full_like(arguments[1], 7)
    getattr(kernels.adversarial, step)(*arguments, out)
    assert bits(out) == wanted
    assert [bits(a) for a in arguments[:3]] == before
    in_place = arguments[0].copy()
    getattr(kernels.adversarial, step)(in_place, *arguments[1:], in_place)
    assert bits(in_place) == wanted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", STEPS)
def test_images(kernels: Kernels, step: str, shape: tuple[int, ...], dtype: str) -> None:
    if step in ("l1_step", "l0_step"):  # the reference goes row by row; a CUDA block a row is slow on a CPU
        shape = (min(shape[0], 3 if kernels.name == "cuda_on_host" else 20), *shape[1:])
    norm = length_of(step, shape)
    for step_size, eps, low, high in ((0.01, 8 / 255, 0.0, 1.0), (-0.02, 0.02, -INF, INF), (0.5, INF, 0.25, 0.75)):
        check(kernels, step, [*images(shape, dtype), norm * step_size, norm * eps, low, high])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(STEPS),
    st.sampled_from(DTYPES),
    st.integers(1, 4),
    st.integers(1, 40),
    st.sampled_from(SIZES),
    st.sampled_from(EPS),
    st.sampled_from([(-INF, INF), (0.0, 1.0), (-1.0, 0.5), (-0.0, 0.0)]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_nasty_values(kernels, step, dtype, rows, columns, step_size, eps, box, tame, seed) -> None:
    """adv and gradient may hold anything; `tame` rows are finite, so that the L2 step gets past their norms."""
    rng = np.random.default_rng(seed)
    values = np.array(NASTY if dtype == "float32" else NASTY_64).astype(dtype)
    finite = values[np.isfinite(values)]
    adv, gradient = (rng.choice(finite if tame else values, (rows, columns)) for _ in range(2))
    x = np.clip(rng.choice(finite, (rows, columns)), values.dtype.type(box[0]), values.dtype.type(box[1]))
    check(kernels, step, [adv, x, gradient, step_size, eps, *box])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_without_a_direction(kernels: Kernels, dtype: str) -> None:
    adv, x, gradient = images((5, 40 if WITHOUT_JIT or kernels.name == "cuda_on_host" else 1030), dtype)
    gradient[0] = 0
    gradient[1] = NAN
    gradient[2, 17] = INF
    gradient[3, 18] = NAN
    gradient[4] *= 0
    gradient[4, 3] = -INF
    for step in STEPS:
        check(kernels, step, [adv, x, gradient, 0.1, 0.4, 0.0, 1.0])
    for step in STEPS[1:]:
        out = np.empty_like(x)
        getattr(kernels.adversarial, step)(adv, x, gradient, 0.1, 1e6, -9.0, 9.0, out)
        still = np.abs(out - adv).max(axis=1) <= 2 * np.spacing(np.abs(adv)).max(axis=1)
        assert still.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_values_go_by_their_index(kernels: Kernels, dtype: str) -> None:
    """A gradient of ones: the first values are taken, over more than one block, and the last one in part (L1)."""
    columns = 60 if WITHOUT_JIT else 2100
    x, gradient = np.full((2, columns), 0.5, dtype), np.ones((2, columns), dtype)
    gradient[1, ::3] = -1
    signs, out = gradient.astype("f8"), np.empty_like(x)
    for taken in (0.25, 1.5, 20.0, columns / 2 - 7.25):
        check(kernels, "l1_step", [x, x, gradient, 1e6, taken, 0.0, 1.0])
        kernels.adversarial.l1_step(x, x, gradient, 1e6, taken, 0.0, 1.0, out)
        wanted = np.clip(taken - 0.5 * np.arange(columns), 0.0, 0.5)
        np.testing.assert_allclose(out - 0.5, wanted * signs, rtol=0, atol=4e-9 * columns)
    for taken in (1.0, 20.5, columns - 1.0):
        check(kernels, "l0_step", [x, x, gradient, 1e6, taken, 0.0, 1.0])
        kernels.adversarial.l0_step(x, x, gradient, 1e6, taken, 0.0, 1.0, out)
        assert np.array_equal(out - 0.5, 0.5 * signs * (np.arange(columns) < int(taken)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", ["l1_step", "l0_step"])
def test_far_away_points_are_projected(kernels: Kernels, step: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    shape = (2, 50 if WITHOUT_JIT else 1100)
    x = rng.random(shape).astype(dtype)
    for spread in (0.1, 1e6) if kernels.name == "cuda_on_host" else (0.1, 30.0, 1e6):
        adv = (x + spread * rng.laplace(size=shape) ** 3).astype(dtype)
        for eps in (0.5, 2.0, 40.0):
            for low, high in ((0.0, 1.0), (-INF, INF), (-4.0, 20.0)):
                check(kernels, step, [adv, x, x, 0.0, eps, low, high])


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-160, 1e160, 1e300])
def test_norms_out_of_range(kernels: Kernels, scale: float) -> None:
    adv, x, gradient = images((3, 40), "float64")
    check(kernels, "l2_step", [adv, x, gradient * scale, 0.1, 0.5, 0.0, 1.0])
    check(kernels, "l2_step", [adv * scale, x * scale, gradient, 0.1 * scale, 0.1 * scale, -INF, INF])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", STEPS)
def test_bits_do_not_depend_on_threads(kernels: Kernels, threads, step: str, dtype: str) -> None:
    shape = (7, 300) if WITHOUT_JIT else (7, 40_001)
    if kernels.name == "cuda_on_host":
        shape = (2, 2100)
    norm = length_of(step, shape)
    arguments = [*images(shape, dtype), 0.02 * norm, 0.03 * norm, 0.0, 1.0]
    wanted = bits(expected(step, arguments))
    for count in (1, 2, 3, 7):
        threads(count)
        out = np.empty_like(arguments[1])
        getattr(kernels.adversarial, step)(*arguments, out)
        assert bits(out) == wanted


def test_wrong_arrays_are_refused_by_the_native_kernels() -> None:
    adv, x, gradient = images((4, 6), "float32")
    read_only = np.zeros_like(x)
    read_only.flags.writeable = False
    numbers = (0.1, 0.1, 0.0, 1.0)
    for step in (getattr(_core, name) for name in STEPS):
        for arrays, error, message in (
            ((adv[:3], x, gradient, x), ValueError, "adv has 18 values, expected 24"),
            ((adv, x, gradient.astype("f8"), x), TypeError, "gradient has another dtype"),
            ((adv, x.astype("i8"), gradient, x), TypeError, "x has another dtype"),
            ((adv, x, np.asfortranarray(gradient), x), ValueError, "gradient is not C-contiguous"),
            ((adv, x, gradient, read_only), ValueError, "out is read-only"),
            ((adv, x, gradient, x[:, :3]), ValueError, "out is not C-contiguous"),
            ((adv, x[0, 0], gradient, x), TypeError, "x is a float32, expected an array"),
            ((adv, np.array(1.0, np.float32), gradient, x), ValueError, "x has no dimensions"),
        ):
            with pytest.raises(error, match=message):
                step(*arrays[:3], *numbers, arrays[3])
