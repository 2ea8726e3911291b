"""The noise family: every backend against the reference, bit by bit, and the law of what comes out.

Statistical tests use fixed seeds; each would fail by chance with probability below 1e-6 for a fresh seed.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp, mpf
from scipy import stats

import aisec_fast
from aisec_fast import _core, noise
from tests.conftest import WITHOUT_JIT, Kernels, Remembering, bits

reference = Remembering("noise")
KEY = bytes(range(32))
SIZES = [0, 1, 63, 64, 127, 128, 129, 300] if WITHOUT_JIT else [0, 1, 63, 64, 127, 128, 129, 1000, 5000]
# s = sigma / granularity: the smallest, odd ones, where straight lines give up, the default's range, where the fast step
# gives up, and the largest.
SCALES = [1.0, 1.5, 1000.3, 2.0**12, 2.0**12 * 1.01, 2.0**20.3, 2.0**22, 2.0**22 * 1.01, 2.0**36, 2.0**40]


def values(size: int, dtype: str, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(size).standard_normal(size) * spread).astype(dtype)


def generators(kernels: Kernels) -> list[str]:
    """The generators that a backend has: AES where this CPU has instructions for it, and only in the native kernels."""
    return ["chacha", "aes"] if kernels.name.startswith("native") and kernels.noise.has_aes() else ["chacha"]


def expected(law: str, x: np.ndarray, scale: float, granularity: float, generator: str = "chacha") -> np.ndarray:
    """What the reference gives for KEY; its integers, which take long, are those of every dtype."""
    integers = getattr(reference, f"{law}_integers")(KEY, scale / granularity, 0, x.size, generator)
    total = reference.to_lattice(x, granularity) + np.array(integers, np.int64)
    return reference.from_lattice(total, granularity, x.dtype)


@pytest.mark.parametrize("size", SIZES)
def test_random_words(kernels: Kernels, size: int) -> None:
    for generator in generators(kernels):
        out = np.empty(size, np.uint64)
        kernels.noise.random_words(out, KEY, 0, generator)
        assert out.tolist() == reference.random_words(KEY, size, generator=generator)


def test_missing_generators_are_refused(kernels: Kernels) -> None:
    for generator in {"aes", "AES", ""} - set(generators(kernels)):
        with pytest.raises(ValueError, match=f"^generator is '{generator}'"):
            kernels.noise.random_words(np.empty(3, np.uint64), KEY, 0, generator)
        with pytest.raises(ValueError, match=f"^generator is '{generator}'"):
            kernels.noise.add_gaussian(np.zeros(3), np.zeros(3), 1.0, 1.0, KEY, generator)


@pytest.mark.skipif(WITHOUT_JIT, reason="native kernels only; two million words")
@pytest.mark.skipif(not _core.has_aes(), reason="this CPU has no instructions for AES")
def test_aes_takes_a_new_subkey_after_2_to_the_25_words(threads) -> None:
    """The words on both sides, from several threads; and they are neither ChaCha's nor repeat the first subkey's."""
    threads(3)
    out = np.empty(2**25 + 300, np.uint64)
    _core.random_words(out, KEY, 1, "aes")
    start = 2**25 - 200
    assert out[start:].tolist() == reference.random_words(KEY, 500, 1, start, "aes")
    assert not set(out[2**25 :].tolist()) & set(out[:300].tolist())


@pytest.mark.skipif(WITHOUT_JIT, reason="native kernels only; 33 million samples")
def test_noise_takes_a_new_subkey_in_the_middle_of_a_span(kernels: Kernels, threads) -> None:
    """A span of the second array ends 256 samples after its first 2^25 words: kernels go on from one subkey to the next."""
    if "aes" not in generators(kernels):
        pytest.skip("no AES here")
    threads(1)
    sums = [np.zeros(256, np.float32), np.zeros(2**25 + 300, np.float32)]
    kernels.update.noisy_mean(sums, 1.0, 2.0**20, 1.0, [KEY, KEY], "aes")
    start = 2**25 - 200
    assert sums[1][start:].tolist() == reference.gaussian_integers(KEY, 2.0**20, start, start + 500, "aes")


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_mode_gives_the_reference(kernels: Kernels, law: str, dtype: str) -> None:
    for generator in generators(kernels):
        for size in [*SIZES, 255, 256, 257, 383, 513]:
            x = values(size, dtype)
            out = np.empty_like(x)
            getattr(kernels.noise, f"add_float_{law}")(x, out, 1.7, KEY, generator)
            assert bits(out) == bits(getattr(reference, f"add_float_{law}")(x, 1.7, KEY, generator))
            getattr(kernels.noise, f"add_float_{law}")(x, x, 1.7, KEY, generator)  # in place
            assert bits(x) == bits(out)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_aes_has_the_same_words_by_instructions_for_one_block(kernels: Kernels, law: str, dtype: str) -> None:
    """Where the CPU has instructions for two blocks, "aes" takes those: many have none."""
    if "aes" not in generators(kernels):
        pytest.skip("no AES here")

    def both(function, x: np.ndarray, *arguments: float) -> None:
        outs = [np.empty_like(x), np.empty_like(x)]
        for out, generator in zip(outs, ["aes", "aes_one"], strict=True):
            function(x, out, *arguments, KEY, generator)
        assert bits(outs[0]) == bits(outs[1])

    for size in [*SIZES, 255, 256, 257, 383, 513]:
        x = values(size, dtype)
        both(getattr(kernels.noise, f"add_float_{law}"), x, 1.7)
        for granularity in (2.0**-7, 2.0**-20):
            both(getattr(kernels.noise, f"add_{law}"), x, 1.7, granularity)
    words = [np.empty(1000, np.uint64) for _ in range(2)]
    for out, generator in zip(words, ["aes", "aes_one"], strict=True):
        kernels.noise.random_words(out, KEY, 1, generator)
    assert words[0].tolist() == words[1].tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_mode_takes_any_value(dtype: str) -> None:
    info = np.finfo(dtype)
    x = np.array([np.nan, np.inf, -np.inf, info.max, info.smallest_subnormal, 0.0], dtype)
    out = noise.add_gaussian(x, 1.0, exact=False, source=noise.SeededSource(1))
    with np.errstate(all="ignore"):
        expected = reference.add_float_gaussian(x, 1.0, noise.SeededSource(1).next_key())
    assert bits(out) == bits(expected)
    assert np.isnan(out[0])
    assert np.isinf(out[1:3]).all()


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_float_mode_follows_the_law(law: str, dtype: str) -> None:
    """Kolmogorov-Smirnov, false-alarm rate 1e-6."""
    z = getattr(noise, f"add_{law}")(np.zeros(1 << 18, dtype), 2.0, exact=False, source=noise.SeededSource(8))
    assert stats.kstest(z, (stats.norm if law == "gaussian" else stats.laplace)(scale=2.0).cdf).pvalue > 1e-6


def test_sources_choose_their_generator() -> None:
    """A seed means ChaCha everywhere; a SecureSource takes AES where there are instructions for it, and says so."""
    backends = aisec_fast.info()["generators"]
    assert backends == {"native": "aes" if _core.has_aes() else "chacha", "numba": "chacha", "cuda": "chacha"}
    key = noise.SeededSource(4).next_key()
    assert noise.random_words(5, source=noise.SeededSource(4)).tolist() == reference.random_words(key, 5)

    class Known(noise.SecureSource):
        def next_key(self) -> bytes:
            return KEY

    for name in ("native", "numba"):
        with aisec_fast.use_backend(name):
            words = noise.random_words(5, source=Known())
        assert words.tolist() == reference.random_words(KEY, 5, generator=backends[name])


def make_rows(kernels: Kernels, law: str, s: float) -> None:
    """From now on this thread's calls for float32 at s are in fixed point, however small: a large one has made its rows."""
    if kernels.name.startswith("native"):
        out = np.zeros(10000, np.float32)
        getattr(kernels.noise, f"add_{law}")(out, out, s, 1.0, KEY)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES)
def test_bits_equal_the_reference(kernels: Kernels, law: str, dtype: str, size: int) -> None:
    x, sigma, granularity = values(size, dtype), 1.2, 2.0**-20
    for generator in generators(kernels):
        out = np.empty_like(x)
        getattr(kernels.noise, f"add_{law}")(x, out, sigma, granularity, KEY, generator)
        assert bits(out) == bits(expected(law, x, sigma, granularity, generator))


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("s", SCALES)
def test_bits_at_every_scale(kernels: Kernels, law: str, s: float) -> None:
    size = 64 if s >= 2.0**36 or WITHOUT_JIT else 2000
    for dtype in ("float32", "float64"):
        x = np.zeros(size, dtype)
        out = np.empty_like(x)
        getattr(kernels.noise, f"add_{law}")(x, out, s * 0.5, 0.5, KEY)
        assert bits(out) == bits(expected(law, x, s * 0.5, 0.5))
        make_rows(kernels, law, s)
        getattr(kernels.noise, f"add_{law}")(x, out, s * 0.5, 0.5, KEY)
        assert bits(out) == bits(expected(law, x, s * 0.5, 0.5))


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize(
    "s", [1.0, 3.7, 256.1, 1023.9, 2.0**12, 2.0**20, 1.4 * 2**20, 1.9 * 2**20, 2.0**22, 1.1 * 2**22]
)
def test_integers_do_not_depend_on_the_type(kernels: Kernels, law: str, s: float) -> None:
    """Some kernels decide most samples for float32 in float32 or in fixed point; so many have many near-ties for it."""
    size = 2**18 + 300 if kernels.name.startswith("native") else 2000
    for generator in generators(kernels):
        narrow, wide = np.empty(size, np.float32), np.empty(size)
        for out in (narrow, wide):
            getattr(kernels.noise, f"add_{law}")(np.zeros_like(out), out, s, 1.0, KEY, generator)
        assert bits(narrow) == bits(wide.astype(np.float32))


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("s", [1.9 * 2**21, 4000.0])  # of which one in 32, and one in 65 or 20, is open
@pytest.mark.parametrize("granularity", [2.0**-127, 2.0**-126, 0.5, 2.0**96, 2.0**97])
def test_open_samples_at_every_seam(kernels: Kernels, law: str, s: float, granularity: float) -> None:
    """Groups of 128, alone and in a row, what is left after them, in place; values beyond 2^30 g, with open samples."""
    make_rows(kernels, law, s)
    for generator in generators(kernels):
        for size in [128, 129, 255, 256, 257, 300, 384, 511, 1300][:: 4 if WITHOUT_JIT else 1]:
            for large in (None, size - 1, size // 2):
                x = (np.random.default_rng(size).integers(-(2**20), 2**20, size) * granularity).astype(np.float32)
                if large is not None:
                    x[large] = np.float32(2.0**31 * granularity) if granularity < 2.0**96 else np.inf
                out = np.empty_like(x)
                getattr(kernels.noise, f"add_{law}")(x, out, s * granularity, granularity, KEY, generator)
                assert bits(out) == bits(expected(law, x, s * granularity, granularity, generator))
                getattr(kernels.noise, f"add_{law}")(x, x, s * granularity, granularity, KEY, generator)
                assert bits(x) == bits(out)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("s", [1.0, 300.0])
def test_small_noise_on_any_value(kernels: Kernels, law: str, s: float) -> None:
    """Sums of float32 integers: beyond 2^24 they are rounded, and no zero is minus zero, whatever its summands are."""
    make_rows(kernels, law, s)
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.uniform(-2, 2, 1024), rng.uniform(-1, 1, 1024) * 2.0 ** rng.integers(0, 30, 1024)])
    x = (x * 0.25).astype(np.float32)
    x[::9] = -0.0
    out = np.empty_like(x)
    getattr(kernels.noise, f"add_{law}")(x, out, s * 0.25, 0.25, KEY)
    assert bits(out) == bits(expected(law, x, s * 0.25, 0.25))
    assert (s > 1.0) or (np.count_nonzero(out == 0) > 100 and not np.signbit(out[out == 0]).any())


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_numba_records_what_decides_a_flagged_sample(law: str) -> None:
    """Number, word and refinement words; a wrong one of these would change an integer once in 2^40 samples only."""
    from aisec_fast._numba import noise as numba_noise
    from aisec_fast._numba._parallel import quiet

    domain, group = numba_noise.LAWS[law][0], 5
    z, records = np.empty((1, 128)), np.empty((128, numba_noise.RECORD), np.uint64)
    table, key = numba_noise.quantiles(law), numba_noise._key_words(KEY)
    draw = quiet(numba_noise._draw_chunk)
    flagged = draw(key, domain, table, np.float64(1.0), np.float64(-1.0), group, z, records)
    words = reference.random_words(KEY, 128, int(domain), 128 * group)
    numbers = range(128 * group, 128 * group + 128)
    expected = [[i, w, *reference.refinement(KEY, int(domain), i)[:4]] for i, w in zip(numbers, words, strict=True)]
    assert flagged == 128
    assert records.tolist() == expected


@pytest.mark.parametrize("granularity", [2.0**-149, 2.0**-127, 2.0**-126, 2.0**-40, 2.0**96, 2.0**97, 2.0**127])
def test_float32_at_any_granularity(kernels: Kernels, granularity: float) -> None:
    """Where float32 itself ends: subnormal results, infinite ones, inverses that are no float32."""
    x = np.array([0.0, 1.0, -3.0, 1e30, 1e-30, -1e-45, 3e38] * 40, np.float32)
    out = np.empty_like(x)
    kernels.noise.add_gaussian(x, out, 5.0 * granularity, granularity, KEY)
    assert bits(out) == bits(reference.add_gaussian(x, 5.0 * granularity, granularity, KEY))


@pytest.mark.parametrize("value", [2.0**29.9, 2.0**30, -(2.0**30), 2.0**50.9, 2.0**51, -(2.0**60), np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_large_value_among_many(kernels: Kernels, dtype: str, value: float) -> None:
    """Where the loops for small integers hand over to those for large ones, a group of 128 at a time."""
    x = values(300, dtype)
    x[130] = value
    out = np.empty_like(x)
    kernels.noise.add_laplace(x, out, 2.0**21, 1.0, KEY)
    assert bits(out) == bits(reference.add_laplace(x, 2.0**21, 1.0, KEY))
    make_rows(kernels, "laplace", 2.0**21)
    kernels.noise.add_laplace(x, out, 2.0**21, 1.0, KEY)
    assert bits(out) == bits(reference.add_laplace(x, 2.0**21, 1.0, KEY))


def quantile(law: str, word: int, extra: list[int]) -> mpf:
    """Q(u) of the sample with this word and these refinement words."""
    u = word >> 1
    for e in extra[:4]:
        u = u << 64 | e
    share = mpf(u) / mpf(2) ** 319
    return mp.sqrt(2) * mp.erfinv(1 - share) if law == "gaussian" else -mp.log(share)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("about", [1000.0, 2.0**20.5, 2.0**30])
def test_near_ties_of_the_stream(kernels: Kernels, law: str, about: float) -> None:
    """Sigma is such that one sample lies within a few units in the last place of a half-integer, on either side.

    The fast step alone, without its margin, would decide about half of these wrongly; random ones hardly ever.
    """
    domain, size = {"gaussian": 1, "laplace": 2}[law], 128
    words = reference.random_words(KEY, size, domain)
    with mp.workprec(400):
        for i in range(0, size, 32 if WITHOUT_JIT else 5):
            q = quantile(law, words[i], reference.refinement(KEY, domain, i))
            centre = float((mp.floor(q * about) + mpf(1) / 2) / q)
            if centre < 1:
                continue
            for s in (centre, math.nextafter(centre, 0), math.nextafter(centre, math.inf)):
                out = np.empty(size)
                getattr(kernels.noise, f"add_{law}")(np.zeros(size), out, s, 1.0, KEY)
                assert abs(out[i]) == mp.floor(q * mpf(s) + mpf(1) / 2)
                if s < 2**22 and kernels.name.startswith("native"):
                    make_rows(kernels, law, s)
                    narrow = np.zeros(2 * size, np.float32)
                    getattr(kernels.noise, f"add_{law}")(narrow, narrow, s, 1.0, KEY)
                    assert narrow[i] == out[i]


# Keys (as little-endian numbers) whose first 128 words hold one below 2^44.
RARE = [("gaussian", 5739), ("gaussian", 13000), ("laplace", 12749), ("laplace", 21251)]


@pytest.mark.parametrize(("law", "number"), RARE)
@pytest.mark.parametrize("s", [1.0, 2.0**20.3, 2.0**30])
def test_words_outside_the_zone(kernels: Kernels, law: str, number: int, s: float) -> None:
    """u < 2^-20, which only one sample in a million has."""
    key = number.to_bytes(32, "little")
    assert min(reference.random_words(key, 128, {"gaussian": 1, "laplace": 2}[law])) < 2**44
    for dtype in ("float32", "float64"):
        x = np.zeros(128, dtype)
        out = np.empty_like(x)
        getattr(kernels.noise, f"add_{law}")(x, out, s, 1.0, key)
        assert bits(out) == bits(getattr(reference, f"add_{law}")(x, s, 1.0, key))
        for _ in range(2):
            more = np.zeros(257, dtype)  # several groups take another loop
            getattr(kernels.noise, f"add_{law}")(more, more, s, 1.0, key)
            assert bits(more[:128]) == bits(out)
            make_rows(kernels, law, s)


@pytest.mark.parametrize(("law", "number", "index"), [("gaussian", 2103, 1003597), ("laplace", 209, 601420)])
@pytest.mark.parametrize("s", [1.0, 250.3])
def test_words_below_every_row(kernels: Kernels, law: str, number: int, index: int, s: float) -> None:
    """u < 2^-31, which one sample in 2^31 has."""
    if not kernels.name.startswith("native"):
        pytest.skip("a million samples; such words are nothing special there")
    key, out = number.to_bytes(32, "little"), np.zeros(index + 200, np.float32)
    domain = {"gaussian": 1, "laplace": 2}[law]
    assert reference.random_words(key, 1, domain, index)[0] < 2**33
    getattr(kernels.noise, f"add_{law}")(out, out, s, 1.0, key)
    assert out[index - 2 : index + 3].tolist() == getattr(reference, f"{law}_integers")(key, s, index - 2, index + 3)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the rounding mode is set on x86 only")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_native_bits_do_not_depend_on_the_rounding_mode(dtype: str, threads) -> None:
    threads(1)
    x, libm, upward = values(1000, dtype), ctypes.CDLL(None), 0x800
    outs = [np.empty_like(x) for _ in range(4)]

    def draw(first: np.ndarray, second: np.ndarray) -> None:
        _core.add_gaussian(x, first, 1.5, 2.0**-20, KEY)
        _core.add_float_laplace(x, second, 1.5, KEY)

    draw(*outs[:2])
    assert libm.fesetround(upward) == 0
    try:
        draw(*outs[2:])
        assert libm.fegetround() == upward  # the caller's mode is put back
    finally:
        libm.fesetround(0)
    assert [bits(out) for out in outs[:2]] == [bits(out) for out in outs[2:]]


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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("exponent", [-900, -211, -187, 0, 66, 900])  # of the granularity
def test_first_unfit_at_the_ends_of_a_type(kernels: Kernels, dtype: str, exponent: int) -> None:
    limit, largest = 2.0 ** (62 + exponent), float(np.finfo(dtype).max)
    fitting = np.array(min(limit, largest), dtype)
    with np.errstate(over="ignore"):  # infinity is what follows the largest
        too_large = np.nextafter(fitting, np.array(np.inf, dtype), dtype=dtype)
    assert kernels.noise.first_unfit(np.array([0.0, fitting, -fitting], dtype), 2.0**exponent) == -1
    assert kernels.noise.first_unfit(np.array([0.0, fitting, -too_large], dtype), 2.0**exponent) == 2


def test_first_unfit_is_the_first_over_all_threads(kernels: Kernels, threads) -> None:
    x = np.zeros(2**20, np.float32)
    x[[300_001, 700_001, 1_000_001]] = np.nan
    for count in (1, 3):
        threads(count)
        assert kernels.noise.first_unfit(x, 1.0) == 300_001
        assert kernels.noise.first_unfit(x[300_002:], 1.0) == 399_999


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_first_unfit_of_a_large_array(kernels: Kernels, dtype: str, threads) -> None:  # read at eight places at once
    threads(1)
    size = 2**21 + 5000
    apart = size // 4096 * 512
    x = np.zeros(size, dtype)
    assert kernels.noise.first_unfit(x, 1.0) == -1
    indices = [0, 511, apart - 1, apart, 3 * apart + 700, 8 * apart - 1, 8 * apart, size - 1]
    for index in reversed(indices):  # the later ones stay, some of them where the array is read earlier
        x[index] = np.nan
        assert kernels.noise.first_unfit(x, 1.0) == index
    x[:] = 0
    for index in indices:
        x[index] = np.inf
        assert kernels.noise.first_unfit(x, 1.0) == index
        x[index] = 0


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
    float_seen = set()
    for count in (1, 2, 3, 7):
        threads(count)
        getattr(kernels.noise, f"add_float_{law}")(x, out, 1.0, KEY)
        float_seen.add(bits(out))
    assert len(float_seen) == 1
    part = np.empty(size - 1, np.float32)
    getattr(kernels.noise, f"add_{law}")(x[:-1], part, 1.0, 2.0**-20, KEY)
    assert len(seen) == 1
    assert bits(part) == seen.pop()[:-4]


def test_any_number_of_threads_may_be_allowed(threads) -> None:
    x, expected, out = np.zeros(20_000, np.float32), *np.empty((2, 20_000), np.float32)
    _core.add_gaussian(x, expected, 1.0, 2.0**-20, KEY)
    threads(2**60)
    _core.add_gaussian(x, out, 1.0, 2.0**-20, KEY)
    assert bits(out) == bits(expected)


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
