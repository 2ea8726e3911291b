"""One pair or sample, any bits: the fast step's bound and the resolver's integers against 600-bit arithmetic (mpmath).

docs/noise.md section 4 has the proofs; here they meet extreme inputs and forced near-ties that random keys never give.
"""

from __future__ import annotations

import ctypes
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpmath import mp, mpf

ROOT = Path(__file__).parent.parent
ONES, EDGE = 2**64 - 1, 2**48
DRAW = random.Random(2026)

# wu (or w): empty, least, around the borders of the fast step's zone, near 1, and random.
RADII = [
    0,
    1,
    2**20,
    EDGE - 1,
    EDGE,
    EDGE + 1,
    2**47,
    2**47 - 1,
    2**63 - 1,
    2**63,
    ONES,
    ONES - 2**47,
    ONES - 2**47 + 1,
]
ANGLES = [0, 1, 2**61, 2**62 - 1, 2**62, 2**63, ONES, 2**63 + 2**61, 3 * 2**60]
EXTRAS = [[0] * 8, [ONES] * 8, [0, 0, 0, 1, 0, 0, 0, 1]]


@pytest.fixture(scope="module")
def math(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    library = tmp_path_factory.mktemp("noise_math") / "noise_math.so"
    flags = [
        "-std=c++20",
        "-O2",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fPIC",
        "-shared",
        "-I",
        ROOT / "src/cpp/include",
    ]
    subprocess.run(["g++", *flags, ROOT / "tests/noise_math.cpp", "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    for name in (
        "fast_gaussian",
        "fast_laplace",
        "decide_gaussian",
        "decide_laplace",
        "fast_logarithm",
        "fast_cosine_sine",
    ):
        getattr(loaded, name).restype = ctypes.c_double if name == "fast_logarithm" else None
    with mp.workprec(600):
        yield loaded


def word(value: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(value)


def signed(magnitude: mpf, negative: int) -> int:
    integer = int(mp.floor(magnitude + mpf(1) / 2))
    return -integer if negative else integer


def gaussian_truth(wu: int, wv: int, extra: list[int]) -> tuple[mpf, mpf]:
    """(r cos, r sin) without signs; docs/noise.md section 3."""
    u = wu
    for e in extra[:4]:
        u = u << 64 | e
    f = wv & (2**62 - 1)
    for e in extra[4:]:
        f = f << 64 | e
    radius = mp.sqrt(-2 * mp.log(mpf(max(u, 1)) / mpf(2) ** 320))
    angle = mpf(f) / mpf(2) ** 318 * mp.pi / 2
    return radius * mp.cos(angle), radius * mp.sin(angle)


def laplace_truth(w: int, extra: list[int]) -> mpf:
    u = w & (2**63 - 1)
    for e in extra[:4]:
        u = u << 64 | e
    return -mp.log(mpf(max(u, 1)) / mpf(2) ** 319)


def pairs(count: int) -> list[tuple[int, int, list[int]]]:
    fixed = [(wu, wv, extra) for wu in RADII for wv in ANGLES for extra in EXTRAS]
    drawn = [
        (DRAW.getrandbits(64), DRAW.getrandbits(64), [DRAW.getrandbits(64) for _ in range(8)]) for _ in range(count)
    ]
    return fixed + drawn


def fast(math: ctypes.CDLL, wu: int, wv: int, s: float) -> tuple[int, int, bool]:
    integers, flagged = (ctypes.c_int64 * 2)(), ctypes.c_uint64()
    math.fast_gaussian(word(wu), word(wv), ctypes.c_double(s), integers, ctypes.byref(flagged))
    return integers[0], integers[1], bool(flagged)


def decide(math: ctypes.CDLL, wu: int, wv: int, extra: list[int], s: float) -> tuple[int, int]:
    integers = (ctypes.c_int64 * 2)()
    math.decide_gaussian(word(wu), word(wv), (ctypes.c_uint64 * 8)(*extra), ctypes.c_double(s), integers)
    return integers[0], integers[1]


def fast_laplace(math: ctypes.CDLL, w: int, s: float) -> tuple[int, bool]:
    integers, flagged = (ctypes.c_int64 * 1)(), ctypes.c_uint64()
    math.fast_laplace(word(w), ctypes.c_double(s), integers, ctypes.byref(flagged))
    return integers[0], bool(flagged)


def decide_laplace(math: ctypes.CDLL, w: int, extra: list[int], s: float) -> int:
    integers = (ctypes.c_int64 * 1)()
    math.decide_laplace(word(w), (ctypes.c_uint64 * 8)(*extra), ctypes.c_double(s), integers)
    return integers[0]


@pytest.mark.parametrize("s", [1.0, 2.0**20 * 1.37, 2.0**40])
def test_gaussian_pair_against_the_truth(math: ctypes.CDLL, s: float) -> None:
    for wu, wv, extra in pairs(60):
        a, b = gaussian_truth(wu, wv, extra)
        truth = signed(a * mpf(s), wv >> 63), signed(b * mpf(s), wv >> 62 & 1)
        assert decide(math, wu, wv, extra, s) == truth
        first, second, flagged = fast(math, wu, wv, s)
        assert flagged or (first, second) == truth


@pytest.mark.parametrize("s", [1.0, 2.0**20 * 1.37, 2.0**40])
def test_laplace_sample_against_the_truth(math: ctypes.CDLL, s: float) -> None:
    for w, _, extra in pairs(60):
        truth = signed(laplace_truth(w, extra) * mpf(s), w >> 63)
        assert decide_laplace(math, w, extra, s) == truth
        integer, flagged = fast_laplace(math, w, s)
        assert flagged or integer == truth


def test_near_ties_are_flagged_and_decided(math: ctypes.CDLL) -> None:
    """s is chosen so that the sample lies within a few units in the last place of a half-integer, on both sides."""
    for _ in range(100):
        wu, wv = DRAW.getrandbits(64), DRAW.getrandbits(62)
        extra = [DRAW.getrandbits(64) for _ in range(8)]
        a, b = gaussian_truth(wu, wv, extra)
        for value, axis in ((a, 0), (b, 1)):
            centre = float((mp.floor(value * 2**20) + mpf(1) / 2) / value)
            for s in (centre * (1 - 2.0**-52), centre, centre * (1 + 2.0**-52)):
                if not 1 <= s <= 2.0**40:
                    continue
                truth = signed(value * mpf(s), 0)
                assert decide(math, wu, wv, extra, s)[axis] == truth
                assert fast(math, wu, wv, s)[2]
        w = DRAW.getrandbits(63)
        value = laplace_truth(w, extra)
        s = float((mp.floor(value * 2**20) + mpf(1) / 2) / value)
        if s >= 1:
            assert decide_laplace(math, w, extra, s) == signed(value * mpf(s), 0)
            assert fast_laplace(math, w, s)[1]


def words_of(value: mpf, first_bits: int) -> list[int]:
    """The expansion of a number in (0, 1): its first word of so many bits, then four of 64."""
    bits = int(mp.floor(value * mpf(2) ** (first_bits + 256)))
    return [bits >> 256, *(bits >> shift & ONES for shift in (192, 128, 64, 0))]


@pytest.mark.parametrize("side", [-1, 1])
def test_ties_that_need_all_the_bits(math: ctypes.CDLL, side: int) -> None:
    """The expansion of u is made so that the sample misses a half-integer by 2^-240: each of its words matters."""
    offset = mpf(side) / mpf(2) ** 240
    for s in (1.0, 2.0**20 * 1.37, 2.0**38):
        for _ in range(40):
            wv, tail = DRAW.getrandbits(62), [DRAW.getrandbits(64) for _ in range(4)]
            _, sine = gaussian_truth(0, wv, [0, 0, 0, 1, *tail])
            unit = sine / mp.sqrt(-2 * mp.log(mpf(1) / mpf(2) ** 320))
            target = mp.floor(mpf(s) * unit * DRAW.uniform(0.5, 4)) + mpf(1) / 2 + offset
            radius = target / (mpf(s) * unit)
            if radius < 8:  # beyond, 320 bits of u do not come this close
                wu, *extra = words_of(mp.exp(-(radius**2) / 2), 64)
                assert decide(math, wu, wv, extra + tail, s)[1] == int(mp.floor(target + mpf(1) / 2))
                assert fast(math, wu, wv, s)[2]
            target = mp.floor(mpf(s) * DRAW.uniform(0.1, 4)) + mpf(1) / 2 + offset
            w, *extra = words_of(mp.exp(-target / mpf(s)), 63)
            assert decide_laplace(math, w, extra + tail, s) == int(mp.floor(target + mpf(1) / 2))
            assert fast_laplace(math, w, s)[1]


def test_every_continuation_of_an_accepted_pair_agrees(math: ctypes.CDLL) -> None:
    """The least and the greatest expansion that start with the words the fast step read give its integers."""
    s = 2.0**20 * 1.91
    for _ in range(200):
        wu, wv = DRAW.getrandbits(64), DRAW.getrandbits(64)
        first, second, flagged = fast(math, wu, wv, s)
        if flagged:
            continue
        for u, v in ((0, 0), (0, ONES), (ONES, 0), (ONES, ONES)):
            assert decide(math, wu, wv, [u] * 4 + [v] * 4, s) == (first, second)


def test_logarithm_keeps_its_bound(math: ctypes.CDLL) -> None:
    """docs/noise.md: relative error of ln m below 2^-48.6; hence of L where e = 0, and 2^-46.3 absolute elsewhere."""
    ks = [2**36, 2**36 + 1, 2**51, 2**52 - 1, 2**52 - 2**35, int(2**52 * 0.5**0.5), int(2**52 * 0.5**0.5) + 1]
    for k in ks + [DRAW.getrandbits(52) | 2**36 for _ in range(3000)]:
        u = (mpf(k) + mpf(1) / 2) / mpf(2) ** 52
        truth, value = mp.log(u), mpf(math.fast_logarithm(word(k)))
        error = 2 * abs(value - truth)
        assert error <= mpf(2) ** -46.3
        if u > mpf(1) / mp.sqrt(2):
            assert error <= 2 * mpf(2) ** -48.6 * abs(truth)


def test_cosine_and_sine_keep_their_bound(math: ctypes.CDLL) -> None:
    """docs/noise.md: below 16 * 2^-53 absolute."""
    for k in [0, 1, 2**51, 2**51 - 1, 2**52 - 1] + [DRAW.getrandbits(52) for _ in range(3000)]:
        out = (ctypes.c_double * 2)()
        math.fast_cosine_sine(word(k), out)
        angle = (mpf(k) + mpf(1) / 2) / mpf(2) ** 52 * mp.pi / 2
        assert abs(mpf(out[0]) - mp.cos(angle)) <= mpf(2) ** -49
        assert abs(mpf(out[1]) - mp.sin(angle)) <= mpf(2) ** -49
