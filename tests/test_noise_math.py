"""One sample, any bits: the fast step's bound and the resolver's integers against 1200-bit arithmetic (mpmath).

docs/noise.md section 4 has the proofs; here they meet extreme inputs and forced near-ties that random keys never give.
"""

from __future__ import annotations

import ctypes
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mpmath import mp, mpf

from tests.quantile_tables import include_text

ROOT = Path(__file__).parent.parent
ONES, EDGE, DEEPEST = 2**64 - 1, 2**44, 2**32
DRAW = random.Random(2026)
LAWS = {"gaussian": 0, "laplace": 1}
BOUND = {"gaussian": mpf(2) ** -42, "laplace": mpf(2) ** -40}  # E / s

# Nothing, the least, the borders of the tables and of the fast step's zone, cells' borders, near 1.
WORDS = [
    *(0, 1, 2, 2**20, DEEPEST - 2, DEEPEST - 1, DEEPEST, DEEPEST + 1, EDGE - 1, EDGE, EDGE + 1),
    *(2**63, 2**63 - 1, 2**63 + 2**57, 2**63 + 2**57 - 1, ONES, ONES - 1, ONES - 2**11, ONES - 2**10, 2**53 + 1),
]
EXTRAS = [[0] * 8, [ONES] * 8, [0, 0, 0, 1, 0, 0, 0, 1]]


@pytest.fixture(scope="module")
def math(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    folder = tmp_path_factory.mktemp("noise_math")
    (folder / "quantiles.inc").write_text(include_text())
    library = folder / "noise_math.so"
    flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    includes = ["-I", ROOT / "src/cpp/include", "-I", folder]
    subprocess.run(["g++", *flags, *includes, ROOT / "tests/noise_math.cpp", "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.fast_sample.restype = ctypes.c_double
    loaded.decide_sample.restype = ctypes.c_int64
    loaded.reaches_at_length.restype = ctypes.c_bool
    loaded.groups_of_four_terms.restype = ctypes.c_uint64
    with mp.workprec(1200):
        yield loaded


def expansion(w: int, extra: list[int]) -> mpf:
    u = w >> 1
    for e in extra[:4]:
        u = u << 64 | e
    return mpf(max(u, 1)) / mpf(2) ** 319


def tail(law: str, y: mpf) -> mpf:
    return mp.erfc(y / mp.sqrt(2)) if law == "gaussian" else mp.exp(-y)


def quantile(law: str, u: mpf) -> mpf:
    """Q(u), by Newton's method on the tail from a rough start."""
    if law == "laplace":
        return -mp.log(u)
    with mp.workprec(120):
        x = mp.sqrt(2) * mp.erfinv(1 - u) if u > mpf(2) ** -60 else mp.sqrt(-2 * mp.log(u))
        for _ in range(0 if u > mpf(2) ** -60 else 60):
            step = (tail(law, x) - u) / (mp.sqrt(2 / mp.pi) * mp.exp(-x * x / 2))
            x += step
            if abs(step) < mpf(2) ** -100:
                break
    for _ in range(5):
        x += (tail(law, x) - u) / (mp.sqrt(2 / mp.pi) * mp.exp(-x * x / 2))
    return x


def truth(law: str, w: int, extra: list[int], s: float) -> int:
    magnitude = int(mp.floor(mpf(s) * quantile(law, expansion(w, extra)) + mpf(1) / 2))
    return -magnitude if w & 1 else magnitude


def fast(math: ctypes.CDLL, law: str, w: int, s: float) -> tuple[float, int, bool]:
    integer, flagged = ctypes.c_int64(), ctypes.c_uint64()
    a = math.fast_sample(
        LAWS[law], ctypes.c_uint64(w), ctypes.c_double(s), ctypes.byref(integer), ctypes.byref(flagged)
    )
    return a, integer.value, bool(flagged.value)


def decide(math: ctypes.CDLL, law: str, w: int, extra: list[int], s: float) -> int:
    return math.decide_sample(LAWS[law], ctypes.c_uint64(w), (ctypes.c_uint64 * 8)(*extra), ctypes.c_double(s))


def samples(count: int) -> list[tuple[int, list[int]]]:
    fixed = [(w, extra) for w in WORDS for extra in EXTRAS]
    drawn = [(DRAW.getrandbits(64), [DRAW.getrandbits(64) for _ in range(8)]) for _ in range(count)]
    small = [
        (DRAW.getrandbits(64) >> DRAW.randrange(64), [DRAW.getrandbits(64) for _ in range(8)]) for _ in range(count)
    ]
    return fixed + drawn + small


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("s", [1.0, 1.5, 2.0**20 * 1.37, 2.0**36 * 1.9, 2.0**40])
def test_samples_against_the_truth(math: ctypes.CDLL, law: str, s: float) -> None:
    for w, extra in samples(25):
        expected = truth(law, w, extra, s)
        assert decide(math, law, w, extra, s) == expected
        _, integer, flagged = fast(math, law, w, s)
        assert flagged or integer == expected


@pytest.mark.parametrize("law", LAWS)
def test_the_fast_step_keeps_its_bound(math: ctypes.CDLL, law: str) -> None:
    """|a - s Q(u)| < E for the least and the greatest continuation of w, in every octave of the zone."""
    worst = mpf(0)
    with mp.workprec(160):
        for _ in range(1500):
            w = (2**63 | DRAW.getrandbits(63)) >> DRAW.randrange(20)
            s = DRAW.choice([1.0, 2.0**20 * DRAW.uniform(1, 2)])
            a, _, _ = fast(math, law, w, s)
            for u in (mpf(w & ~1), mpf((w | 1) + 1)):
                q = mp.sqrt(2) * mp.erfinv(1 - u / 2**64) if law == "gaussian" else -mp.log(u / 2**64)
                worst = max(worst, abs(mpf(a) / mpf(s) - q))
    assert worst < BOUND[law]
    assert worst > BOUND[law] / 16  # the test reaches where the bound is


@pytest.mark.parametrize("law", LAWS)
def test_outside_the_zone_everything_is_flagged(math: ctypes.CDLL, law: str) -> None:
    for w in [*(x for x in WORDS if x < EDGE), *(DRAW.getrandbits(44) for _ in range(100))]:
        assert fast(math, law, w, 1.0)[2]
    assert not fast(math, law, EDGE + 12345, 1.0)[2]


@pytest.mark.parametrize("law", LAWS)
def test_near_ties_are_flagged_and_decided(math: ctypes.CDLL, law: str) -> None:
    """s is chosen so that the sample lies within a few units in the last place of a half-integer, on both sides."""
    for _ in range(60):
        w, extra = DRAW.getrandbits(64) & ~1, [DRAW.getrandbits(64) for _ in range(8)]
        q = quantile(law, expansion(w, extra))
        centre = float((mp.floor(q * 2**20) + mpf(1) / 2) / q)
        for s in (centre * (1 - 2.0**-52), centre, centre * (1 + 2.0**-52)):
            if 1 <= s <= 2.0**40:
                assert decide(math, law, w, extra, s) == int(mp.floor(q * mpf(s) + mpf(1) / 2))
                assert fast(math, law, w, s)[2]


@pytest.mark.parametrize("law", LAWS)
def test_the_margin_is_neither_smaller_nor_much_larger_than_stated(math: ctypes.CDLL, law: str) -> None:
    """The fast step may be off by 0.83 E: what lies within 0.15 E of a half-integer is flagged, what lies 1.9 E off not."""
    for _ in range(100):
        w = DRAW.getrandbits(64) | 2**45
        q = quantile(law, expansion(w, EXTRAS[0]))
        n = int(q * 2**20) + mpf(1) / 2
        for share in (-0.15, 0.15, -1.9, 1.9):
            s = float(n / q * (1 + mpf(share) * BOUND[law] / q))
            if 1 <= s <= 2.0**40:
                assert fast(math, law, w, s)[2] == (abs(share) < 1)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("side", [-1, 1])
def test_ties_that_need_all_the_bits(math: ctypes.CDLL, law: str, side: int) -> None:
    """The expansion of u is the last before, or the first beyond, F at a half-integer: each of its words matters."""
    for s in (1.0, 2.0**20 * 1.37, 2.0**38):
        for _ in range(25):
            n = int(s * DRAW.uniform(0.2, 4)) + 1
            units = int(mp.floor(tail(law, (n - mpf(1) / 2) / mpf(s)) * mpf(2) ** 319))  # u < F up to here
            bits = units if side < 0 else units + 1
            w, *extra = [bits >> 256 << 1, *(bits >> shift & ONES for shift in (192, 128, 64, 0))]
            expected = n if side < 0 else n - 1
            assert decide(math, law, w, [*extra, 0, 0, 0, 0], s) == expected
            assert decide(math, law, w | 1, [*extra, 0, 0, 0, 0], s) == -expected
            assert fast(math, law, w, s)[2]


def tail_error(function: Any, law: str, y: Any, limbs: int) -> mpf:
    """How far a fixed-point tail with so many fractional limbs is off at y, cut to 2^-48."""
    numerator, divisor = int(y * 2**48), 2**48
    exact = tail(law, mpf(numerator) / divisor)
    found = (ctypes.c_uint64 * (limbs + 1))()
    function(LAWS[law], ctypes.c_uint64(numerator), ctypes.c_uint64(divisor), found)
    value = sum(mpf(limb) * mpf(2) ** (64 * (i - limbs)) for i, limb in enumerate(found))
    return abs(value - (1 - exact if law == "gaussian" else exact))


@pytest.mark.parametrize("law", LAWS)
def test_the_tail_of_the_resolver(math: ctypes.CDLL, law: str) -> None:
    """Fixed point against mpmath: within 2^-347 (docs), and 2^-192 for the short arithmetic up to y = 8."""
    farthest = 21.2 if law == "gaussian" else 222.0
    for y in [0.0, 2.0**-40, 0.5, 1.0, 7.99, farthest / 2, farthest] + [DRAW.uniform(0, farthest) for _ in range(12)]:
        assert tail_error(math.long_tail, law, y, 11) < mpf(2) ** -347
        if y < 8:
            assert tail_error(math.short_tail, law, y, 4) < mpf(2) ** -194


@pytest.mark.parametrize("law", LAWS)
def test_the_tail_in_128_bits(math: ctypes.CDLL, law: str) -> None:
    """Within 2^-95 (docs) up to y = 4: beside every square root of an integer too, where the number of terms changes."""
    steps = [mp.sqrt(square) + side * mpf(2) ** -48 for square in range(1, 16) for side in (-1, 0, 1)]
    for y in [0.0, 2.0**-40, 0.5, 4 - 2.0**-48, *steps, *(DRAW.uniform(0, 4) for _ in range(100))]:
        assert tail_error(math.shortest_tail, law, y, 2) < mpf(2) ** -95


def test_the_terms_left_out_of_128_bits(math: ctypes.CDLL) -> None:
    """y^(2N) / (2N + 1)!! < 2^-129, and each later term is less than half of the one before."""
    for square_below in range(1, 17):
        terms = 4 * math.groups_of_four_terms(square_below)
        odd = 1
        for factor in range(3, 2 * terms + 2, 2):
            odd *= factor
        assert square_below**terms << 129 < odd
        assert 2 * square_below < 2 * terms + 3


@pytest.mark.parametrize("law", LAWS)
def test_every_continuation_of_an_accepted_sample_agrees(math: ctypes.CDLL, law: str) -> None:
    """The least and the greatest expansion that start with the word the fast step read give its integer."""
    s = 2.0**20 * 1.91
    for _ in range(200):
        w = DRAW.getrandbits(64)
        _, integer, flagged = fast(math, law, w, s)
        if not flagged:
            assert decide(math, law, w, [0] * 8, s) == decide(math, law, w, [ONES] * 8, s) == integer
