"""The law of the noise and of its random words, seen from outside: through the public functions, for both sources.

Seeds are fixed. For a fresh seed each test would fail by chance with probability below 10^-6: where it makes m comparisons,
each has a false-alarm rate below 10^-6 / m. Sums of many independent terms are compared in standard errors; at the numbers
of terms used here their law is that of a normal to within a factor of 3 as far out as the thresholds lie.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from aisec_fast import noise

FALSE_ALARM = 1e-6
LAWS = ("gaussian", "laplace")
LAGS = (1, 2, 16, 64, 128)  # neighbours, blocks side by side in a group, halves of a group, groups
# 2 * P(N(0,1) > STANDARD_ERRORS) = 1.2e-8: ten comparisons, with the factor of 3, have 3.6e-7 in all.
STANDARD_ERRORS = 5.7


@pytest.fixture(params=["seeded", "secure"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> noise.SeededSource | noise.SecureSource:
    """Each kind of source, repeatable: SecureSource takes what it believes to be the system's randomness."""
    if request.param == "seeded":
        return noise.SeededSource(11)
    monkeypatch.setattr(os, "urandom", lambda count: bytes(range(7, 7 + count)))
    first, second = noise.SecureSource(), noise.SecureSource()
    assert noise.random_words(4, source=first).tolist() == noise.random_words(4, source=second).tolist()
    return second


def drawn(law: str, scale: float, size: int, source: Any, dtype: str = "float64", **options: Any) -> NDArray[Any]:
    return getattr(noise, f"add_{law}")(np.zeros(size, dtype), scale, source=source, **options)


def tail(law: str, x: Any) -> Any:
    """P(|Y| > x) of the unit law."""
    return special.erfc(np.asarray(x) / math.sqrt(2)) if law == "gaussian" else np.exp(-np.asarray(x))


def far_out(law: str, sigmas: float) -> float:
    """Where the unit law has as much mass beyond on both sides as a Gaussian beyond that many sigma."""
    return sigmas if law == "gaussian" else -math.log(special.erfc(sigmas / math.sqrt(2)))


def standard_errors(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Correlation of two series, in units of its standard error if they are independent."""
    return abs(float(np.corrcoef(a, b)[0, 1])) * math.sqrt(a.size)


@pytest.mark.parametrize("s", [1.0, 1.7, 6.3])
@pytest.mark.parametrize("law", LAWS)
def test_small_scales_follow_the_rounded_law(law: str, s: float, source: Any) -> None:
    """Chi-square over the integers, with their signs: P(|Z| >= k) = F((k - 1/2) / s)."""
    size = 1 << 21
    z = drawn(law, s, size, source, granularity=1.0).astype(np.int64)
    reach = math.ceil(s * far_out(law, 3.4))
    beyond = tail(law, (np.arange(1, reach + 1) - 0.5) / s) / 2  # of k = 1, ..., reach, one sign
    mass = np.append(-np.diff(beyond), beyond[-1])
    mass = np.concatenate([mass[::-1], [1 - 2 * beyond[0]], mass])
    count = np.bincount(np.clip(z, -reach, reach) + reach, minlength=2 * reach + 1)
    assert (mass * size).min() > 50
    assert stats.chisquare(count, mass * size).pvalue > FALSE_ALARM


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("law", LAWS)
def test_default_granularity_follows_the_law(law: str, dtype: str, source: Any) -> None:
    """Kolmogorov-Smirnov against the continuous law, whose distribution function the lattice moves by less than 2^-21."""
    exact = stats.norm(scale=2.5) if law == "gaussian" else stats.laplace(scale=2.5)
    assert stats.kstest(drawn(law, 2.5, 1 << 20, source, dtype), exact.cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize("law", LAWS)
def test_every_cell_of_the_quantile_table_has_its_mass(law: str, source: Any) -> None:
    """Chi-square over (sign, octave of u, 64 cells an octave) with u = F(|Z| / s), eight octaves: a wrong row stands out."""
    size, octaves, cells = 1 << 22, 8, 64
    z = drawn(law, 1.0, size, source)
    mantissa, exponent = np.frexp(np.minimum(tail(law, np.abs(z)), np.nextafter(1, 0)))
    octave = np.minimum(-exponent, octaves)  # what is smaller counts as one cell
    cell = np.where(octave < octaves, ((2 * mantissa - 1) * cells).astype(np.int64), 0)
    place = (octave * cells + cell) * 2 + (z < 0)
    count = np.bincount(place, minlength=2 * (octaves * cells + 1))
    mass = np.append(np.repeat(0.5 ** np.arange(1, octaves + 1) / cells, 2 * cells) / 2, [0.5 ** (octaves + 1)] * 2)
    assert (mass * size).min() > 50
    assert stats.chisquare(count, mass * size).pvalue > FALSE_ALARM


@pytest.mark.parametrize("law", LAWS)
def test_low_bits_are_uniform(law: str, source: Any) -> None:
    """Chi-square of Z mod 2^10 at the default granularity: uniform, as 2^20 <= s (the law's smoothness gives e^-10^6)."""
    g = noise.default_granularity(3.0)
    z = np.rint(drawn(law, 3.0, 1 << 20, source) / g).astype(np.int64)
    assert stats.chisquare(np.bincount(z & 1023, minlength=1024)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("law", LAWS)
def test_tails_and_moments(law: str, source: Any) -> None:
    """Exact binomials: counts beyond 3, 4, 5 and 6 sigma (the Laplace law: beyond the same mass), on each side."""
    arrays, size, g = 4, 1 << 23, 2.0**-20
    levels = [math.ceil(far_out(law, sigmas) / g) for sigmas in (3, 4, 5, 6)]  # the first integer beyond
    counts, moments = np.zeros((len(levels), 2), np.int64), np.zeros(2)
    for _ in range(arrays):
        z = drawn(law, 1.0, size, source, "float32")
        counts += [[np.count_nonzero(z >= first * g), np.count_nonzero(z <= -first * g)] for first in levels]
        moments += [z.sum(dtype=np.float64), np.square(z, dtype=np.float64).sum()]
    number = arrays * size
    for first, (above, below) in zip(levels, counts.tolist(), strict=True):
        p = float(tail(law, (first - 0.5) * g))
        for count, mass in ((above, p / 2), (below, p / 2), (above + below, p)):
            p_value = 2 * min(stats.binom.cdf(count, number, mass), stats.binom.sf(count - 1, number, mass))
            assert p_value > FALSE_ALARM / (3 * len(levels) + 1), (first * g, count, number * mass)
    variance, fourth = (1.0, 3.0) if law == "gaussian" else (2.0, 24.0)
    mean, squares = moments / number
    assert abs(mean) < STANDARD_ERRORS * math.sqrt(variance / number)
    assert abs(squares - variance) < STANDARD_ERRORS * math.sqrt((fourth - variance**2) / number)


@pytest.mark.parametrize("law", LAWS)
def test_samples_of_one_array_are_not_correlated(law: str, source: Any) -> None:
    z = drawn(law, 1.0, 1 << 20, source)
    for lag in LAGS:
        assert standard_errors(z[:-lag], z[lag:]) < STANDARD_ERRORS, lag
        assert standard_errors(z[:-lag] ** 2, z[lag:] ** 2) < STANDARD_ERRORS, lag


@pytest.mark.parametrize("law", LAWS)
def test_streams_are_not_correlated(law: str, source: Any) -> None:
    """Two keys of one source, two arrays of a list, two seeds, neighbouring seeds and the two laws with one seed."""
    size = 1 << 20
    add = getattr(noise, f"add_{law}")
    first, second = drawn(law, 1.0, size, source), drawn(law, 1.0, size, source)
    listed = add([np.zeros(size), np.zeros(size)], 1.0, source=source)
    seeds = [drawn(law, 1.0, size, noise.SeededSource(seed)) for seed in (1, 2)]
    other = drawn("laplace" if law == "gaussian" else "gaussian", 1.0, size, noise.SeededSource(1))
    for a, b in ((first, second), listed, (second, listed[0]), seeds, (seeds[0], other)):
        assert standard_errors(a, b) < STANDARD_ERRORS
        assert standard_errors(a**2, b**2) < STANDARD_ERRORS


def signs(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """[n / 64, 64, 64]: blocks of 64 words, their bits as +1 (set) and -1. Sums of up to 2^24 are exact in float32."""
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little").reshape(-1, 64, 64)
    return 2 * bits.astype(np.float32) - 1


def together(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.float32]:
    """[64, 64]: sum over n words of (bit i of a) * (bit j of b), in standard errors."""
    # Block by block: a product this small stays on one thread, where threads would wait for a busy machine's cores.
    return (signs(a).transpose(0, 2, 1) @ signs(b)).sum(0) / np.float32(math.sqrt(a.size))


def test_bits_of_words_are_fair_and_independent(source: Any) -> None:
    """Each of the 64 places by itself; each pair of places, in one word, at each lag, and between two keys."""
    threshold = 7.0  # 2 P(N > 7) = 2.6e-12, 28,736 comparisons, a factor of 3: 2.3e-7 in all
    first, second = (noise.random_words(1 << 20, source=source) for _ in range(2))
    ones = np.array([int((first >> np.uint64(place) & np.uint64(1)).sum()) for place in range(64)])
    assert np.abs(2 * ones - first.size).max() < threshold * math.sqrt(first.size)
    size = 1 << 17
    pairs = [together(first[:size], first[lag : lag + size]) for lag in LAGS]
    pairs += [together(first[:size], second[:size])]
    pairs += [together(first[:size], first[:size]) - np.eye(64, dtype=np.float32) * np.float32(math.sqrt(size))]
    for place, found in enumerate(pairs):
        assert np.abs(found).max() < threshold, (*LAGS, "another key", "the word itself")[place]


def test_bytes_of_words_are_uniform(source: Any) -> None:
    """Chi-square over bytes, over pairs of bytes side by side, and over pairs of bytes 64 apart."""
    stream = noise.random_words(1 << 20, source=source).astype("<u8").view(np.uint8)
    tables = [np.bincount(stream, minlength=256)]
    for distance in (1, 64):
        pairs = stream[:-distance].astype(np.int64) * 256 + stream[distance:]
        tables.append(np.bincount(pairs, minlength=65536))
    assert stats.chisquare(tables[0]).pvalue > FALSE_ALARM / 5
    # Pairs overlap: the pair statistic less the single one is chi-square with 256 * 255 degrees (Good 1953).
    for table in tables[1:]:
        serial = stats.chisquare(table).statistic - stats.chisquare(tables[0]).statistic
        assert stats.chi2.sf(serial, 256 * 255) > FALSE_ALARM / 5
        assert stats.chi2.cdf(serial, 256 * 255) > FALSE_ALARM / 5


@pytest.mark.parametrize("kind", ["seeded", "secure"])
def test_a_million_integers_against_an_independent_truth(kind: str) -> None:
    """benchmarks/evidence/exactness.py, which ran over 10^8 of each law once; it looks for planted errors first."""
    script = Path(__file__).parent.parent / "benchmarks/evidence/exactness.py"
    command = [sys.executable, script, "--samples", "1000000", "--source", kind, "--no-record"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "'samples': 2002000" in run.stdout
