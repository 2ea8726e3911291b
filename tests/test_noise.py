"""The noise family: every backend against the reference, bit by bit, and the law of what comes out.

Statistical tests use fixed seeds; each would fail by chance with probability below 1e-6 for a fresh seed.
"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aisec_fast import noise
from aisec_fast._reference import noise as reference
from tests.conftest import WITHOUT_JIT, Kernels, bits

KEY = bytes(range(32))
SIZES = [0, 1, 63, 64, 127, 128, 129, 300] if WITHOUT_JIT else [0, 1, 63, 64, 127, 128, 129, 1000, 5000]
# s = sigma / granularity: the smallest, odd ones, the default's range, where the fast step gives up, and the largest.
SCALES = [1.0, 1.5, 1000.3, 2.0**20.3, 2.0**36, 2.0**40]


def values(size: int, dtype: str, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(size).standard_normal(size) * spread).astype(dtype)


@pytest.mark.parametrize("size", SIZES)
def test_random_words(kernels: Kernels, size: int) -> None:
    out = np.empty(size, np.uint64)
    kernels.noise.random_words(out, KEY, 0)
    assert out.tolist() == reference.random_words(KEY, size)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES)
def test_bits_equal_the_reference(kernels: Kernels, law: str, dtype: str, size: int) -> None:
    x, sigma, granularity = values(size, dtype), 1.2, 2.0**-20
    out = np.empty_like(x)
    getattr(kernels.noise, f"add_{law}")(x, out, sigma, granularity, KEY)
    assert bits(out) == bits(getattr(reference, f"add_{law}")(x, sigma, granularity, KEY))


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("s", SCALES)
def test_bits_at_every_scale(kernels: Kernels, law: str, s: float) -> None:
    size = 64 if s >= 2.0**36 or WITHOUT_JIT else 2000
    x = np.zeros(size)
    out = np.empty_like(x)
    getattr(kernels.noise, f"add_{law}")(x, out, s * 0.5, 0.5, KEY)
    assert bits(out) == bits(getattr(reference, f"add_{law}")(x, s * 0.5, 0.5, KEY))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lattice_integers_are_accepted(kernels: Kernels, dtype: str) -> None:
    q = np.array([0, 1, -1, 2**62, -(2**62), 12345678901], np.int64)
    out = np.empty(q.shape, dtype)
    kernels.noise.add_gaussian(q, out, 3.0, 2.0**-19, KEY)
    assert bits(out) == bits(reference.add_gaussian(q, 3.0, 2.0**-19, KEY, dtype=dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_odd_values_are_clamped(kernels: Kernels, dtype: str) -> None:
    info = np.finfo(dtype)
    x = np.array(
        [np.nan, np.inf, -np.inf, info.max, info.min, info.tiny, info.smallest_subnormal, -0.0, 0.5, 1.5, 2.5], dtype
    )
    out = np.empty_like(x)
    kernels.noise.add_gaussian(x, out, 2.0, 1.0, KEY)
    assert bits(out) == bits(reference.add_gaussian(x, 2.0, 1.0, KEY))
    assert np.isfinite(out).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("value", "unfit"),
    [(np.nan, True), (np.inf, True), (-np.inf, True), (2.0**62, False), (2.0**62 * 1.001, True), (0.0, False)],
)
@pytest.mark.parametrize("index", [0, 77, 299])
def test_first_unfit(kernels: Kernels, dtype: str, value: float, unfit: bool, index: int) -> None:
    x = np.zeros(300, dtype)
    x[index] = value
    assert kernels.noise.first_unfit(x, 1.0) == (index if unfit else -1)
    x[-1] = np.nan
    assert kernels.noise.first_unfit(x, 1.0) == (index if unfit else 299)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_bits_do_not_depend_on_threads_or_size(kernels: Kernels, law: str, threads) -> None:
    size = 300 if WITHOUT_JIT else 100_001
    x = np.zeros(size, np.float32)
    seen = set()
    for count in (1, 2, 3, 7):
        threads(count)
        out = np.empty_like(x)
        getattr(kernels.noise, f"add_{law}")(x, out, 1.0, 2.0**-20, KEY)
        seen.add(bits(out))
    part = np.empty(size - 1, np.float32)
    getattr(kernels.noise, f"add_{law}")(x[:-1], part, 1.0, 2.0**-20, KEY)
    assert len(seen) == 1
    assert bits(part) == seen.pop()[:-4]


@given(
    size=st.integers(0, 200),
    exponent=st.integers(-800, 800),
    scale=st.floats(1.0, 2.0**40),
    spread=st.floats(0, 1e6),
    dtype=st.sampled_from(["float32", "float64"]),
    key=st.binary(min_size=32, max_size=32),
)
def test_any_argument_gives_the_reference(
    size: int, exponent: int, scale: float, spread: float, dtype: str, key: bytes
) -> None:
    from aisec_fast import _core

    granularity = 2.0 ** (exponent if dtype == "float64" else exponent // 8)
    x = (values(size, "float64", spread) * granularity).astype(dtype)
    for law in ("gaussian", "laplace"):
        out = np.empty_like(x)
        getattr(_core, f"add_{law}")(x, out, scale * granularity, granularity, key)
        with np.errstate(over="ignore", under="ignore"):
            assert bits(out) == bits(getattr(reference, f"add_{law}")(x, scale * granularity, granularity, key))


def integers(law: str, s: float, size: int, seed: int) -> np.ndarray:
    out = getattr(noise, f"add_{law}")(np.zeros(size), s, granularity=1.0, source=noise.SeededSource(seed))
    return out.astype(np.int64)


@pytest.mark.parametrize("s", [1.0, 1.7, 6.3])
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_small_scales_follow_the_rounded_law(law: str, s: float) -> None:
    """Chi-square over the integers, false-alarm rate 1e-6: P(Z = n) is the mass of [n - 1/2, n + 1/2]."""
    size = 1 << 20
    z = integers(law, s, size, seed=11)
    cdf = stats.norm(scale=s).cdf if law == "gaussian" else stats.laplace(scale=s).cdf
    reach = int(4 * s) if law == "gaussian" else int(8 * s)
    edges = np.arange(-reach, reach + 2) - 0.5
    mass = np.diff(np.concatenate([[0.0], cdf(edges), [1.0]]))
    count = np.bincount(np.clip(z + reach + 1, 0, 2 * reach + 2), minlength=2 * reach + 3)
    assert stats.chisquare(count, mass * size).pvalue > 1e-6


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_default_granularity_follows_the_law(law: str) -> None:
    """Kolmogorov-Smirnov against the continuous law, and no correlation between neighbours; false-alarm rate 1e-6 each."""
    size = 1 << 20
    z = getattr(noise, f"add_{law}")(np.zeros(size), 2.5, source=noise.SeededSource(5))
    exact = stats.norm(scale=2.5) if law == "gaussian" else stats.laplace(scale=2.5)
    assert stats.kstest(z, exact.cdf).pvalue > 1e-6
    for lag in (1, 16, 64, 128):  # neighbours, lanes, the two halves of a pair, groups
        correlation = np.corrcoef(z[:-lag], z[lag:])[0, 1]
        assert abs(correlation) * math.sqrt(size) < 4.9
        squares = np.corrcoef(z[:-lag] ** 2, z[lag:] ** 2)[0, 1]
        assert abs(squares) * math.sqrt(size) < 5.5


def test_default_granularity() -> None:
    assert noise.default_granularity(1.0) == 2.0**-20
    assert noise.default_granularity(0.99) == 2.0**-21
    assert noise.default_granularity(2.0) == 2.0**-19
    assert 2.0**20 <= 3.7 / noise.default_granularity(3.7) < 2.0**21


@given(st.floats(0, 1e6), st.integers(0, 10**12), st.integers(-60, 20))
def test_charged_sensitivity_is_an_upper_bound(max_norm: float, size: int, exponent: int) -> None:
    from fractions import Fraction

    g = 2.0**exponent
    charged = Fraction(noise.charged_sensitivity(max_norm, size, g)) - Fraction(max_norm)
    assert charged >= 0
    assert charged**2 >= Fraction(g) ** 2 * size
    l1 = Fraction(noise.charged_sensitivity(max_norm, size, g, norm="l1"))
    assert l1 >= Fraction(max_norm) + Fraction(g) * size


def test_lists_in_place_and_fresh_keys(backend: str) -> None:
    source = noise.SeededSource(3)
    arrays = [np.zeros((3, 5), np.float32), np.zeros(1, np.float32), np.zeros((0, 4), np.float32)]
    fresh = noise.add_gaussian(arrays, 1.0, source=noise.SeededSource(3))
    written = noise.add_gaussian(arrays, 1.0, source=source, out=arrays)
    assert all(a is b for a, b in zip(written, arrays, strict=True))
    assert [bits(a) for a in fresh] == [bits(a) for a in written]
    again = noise.add_gaussian(np.zeros((3, 5), np.float32), 1.0, source=source)
    assert bits(again) != bits(fresh[0])
    assert noise.add_gaussian([], 1.0) == []
    assert bits(arrays[0].reshape(-1)[:1]) != bits(arrays[1])  # two arrays of a list never share noise


def test_backends_agree_through_the_public_api() -> None:
    import aisec_fast

    x = values(1000, "float32")
    results = set()
    for name in ("native", "numba"):
        with aisec_fast.use_backend(name):
            source = noise.SeededSource(9)
            results.add(
                bits(noise.add_gaussian(x, 0.3, source=source)) + bits(noise.add_laplace(x, 7.0, source=source))
            )
    assert len(results) == 1


def test_a_failed_call_writes_nothing() -> None:
    x = [np.zeros(3), np.array([1.0, np.nan])]
    out = [np.full(3, 7.0), np.full(2, 7.0)]
    with pytest.raises(ValueError, match=r"x\[1\] at flat index 1 is nan"):
        noise.add_gaussian(x, 1.0, out=out)
    assert [a.tolist() for a in out] == [[7.0] * 3, [7.0] * 2]
    noise.add_gaussian(x, 1.0, out=out, check=False)
    assert np.isfinite(out[1]).all()


def test_huge_array_needs_64_bit_addresses() -> None:
    """Sample 2^31 + k has its own bits: no index is cut to 32 bits. float32 in place, 8 GiB."""
    size = 2**31 + 200
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < 12 << 30:
        pytest.skip(f"needs 12 GiB of free memory, {available >> 30} GiB are available")
    from aisec_fast import _core

    x = np.zeros(size, np.float32)
    _core.add_gaussian(x, x, 1.0, 2.0**-20, KEY)
    start = 2**31 - 10
    expected = np.array(reference.gaussian_integers(KEY, 2.0**20, start, size), np.int64)
    assert bits(x[start:]) == bits(reference.from_lattice(expected, 2.0**-20, np.float32))
