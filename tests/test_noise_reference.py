"""The noise reference against truth that shares no code with it: published ChaCha vectors and mpmath."""

import struct

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aisec_fast._reference import noise

ONES = 2**64 - 1
ZERO_EXTRA, ONES_EXTRA = [0] * 8, [ONES] * 8
SCALES = [1.0, 1.5, 2.0**10, 2.0**20.3, 2.0**36, 2.0**40]
words = st.one_of(
    st.integers(0, ONES),
    st.sampled_from(
        [0, 1, ONES, ONES - 1, 2**48, 2**48 - 1, 2**64 - 2**47, 2**64 - 2**47 - 1, 2**63, 2**62, 2**62 - 1]
    ),
)
extras = st.one_of(st.lists(st.integers(0, ONES), min_size=8, max_size=8), st.sampled_from([ZERO_EXTRA, ONES_EXTRA]))
scales = st.one_of(st.sampled_from(SCALES), st.floats(1.0, 2.0**40))


# --- Truth ------------------------------------------------------------------------------------------------------------


def fraction(bits: str) -> mpmath.mpf:
    """0.bits in base 2, but at least 2^-320, where the contract cuts the support."""
    return mpmath.mpf(max(int(bits, 2), 2 ** (len(bits) - 320))) / 2 ** len(bits)


def binary(words: list[int]) -> str:
    return "".join(f"{word:064b}" for word in words)


def true_pair(wu: int, wv: int, extra: list[int], s: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    sign_bits, angle_bits = f"{wv:064b}"[:2], binary([wv, *extra[4:]])[2:]
    radius = mpmath.sqrt(-2 * mpmath.log(fraction(binary([wu, *extra[:4]]))))
    angle = mpmath.mpf(int(angle_bits, 2)) / 2**318 * mpmath.pi / 2
    signs = [-1 if bit == "1" else 1 for bit in sign_bits]
    return signs[0] * s * radius * mpmath.cos(angle), signs[1] * s * radius * mpmath.sin(angle)


def true_laplace(w: int, extra: list[int], s: float) -> mpmath.mpf:
    bits = binary([w, *extra[:4]])
    return (-1 if bits[0] == "1" else 1) * s * -mpmath.log(fraction(bits[1:]))


def nearest(value: mpmath.mpf) -> int:
    return int(mpmath.nint(value))


@pytest.fixture(autouse=True)
def precision():
    with mpmath.workprec(800):
        yield


# --- ChaCha -----------------------------------------------------------------------------------------------------------


def test_block_of_rfc_8439():
    """Section 2.3.2: key 00 01 ... 1f, nonce 00:00:00:09:00:00:00:4a:00:00:00:00, block counter 1, 20 rounds."""
    block = noise.chacha_block(bytes(range(32)), 1 | 0x09000000 << 32, 0x4A000000, 0, rounds=20)
    assert " ".join(f"{word:08x}" for word in block) == (
        "e4e7f110 15593bd1 1fdd0f50 c47120a3 c7f4d1c7 0368c033 9aaa2204 4e6cd4c3 "
        "466482d2 09aa9f07 05d7c214 a2028bd9 d19c12b5 b94e16de e883d0cb 4e3c50a2"
    )


def test_block_with_twelve_rounds():
    """Key and nonce zero: draft-strombergson-chacha-test-vectors, TC1, 256-bit key, 12 rounds."""
    block = noise.chacha_block(bytes(32), 0, 0, 0)
    assert struct.pack("<16I", *block).hex() == (
        "9bf49a6a0755f953811fce125f2683d50429c3bb49e074147e0089a52eae155f"
        "0564f879d27ae3c02ce82834acfa8c793a629f2ca0de6919610be82f411326be"
    )


def test_every_field_reaches_the_block():
    base = [bytes(32), 5, 0, 0]
    changed = [[bytes([1, *[0] * 31]), 5, 0, 0], [bytes(32), 6, 0, 0], [bytes(32), 5 | 1 << 32, 0, 0]]
    changed += [[bytes(32), 5, 1, 0], [bytes(32), 5, 0, 1]]
    blocks = {tuple(noise.chacha_block(*arguments)) for arguments in [base, *changed]}
    assert len(blocks) == 6


def test_layout_of_raw_words():
    """Word i = 128 G + 16 k + b is words 2k (low) and 2k + 1 (high) of block 16 G + b."""
    key = bytes(range(32))
    got = noise.random_words(key, 256, domain=2)
    for i in (0, 1, 15, 16, 127, 128, 200, 255):
        group, k, b = i // 128, i % 128 // 16, i % 16
        block = noise.chacha_block(key, 16 * group + b, 2, 0)
        assert got[i] == block[2 * k] + 2**32 * block[2 * k + 1]
    assert noise.random_words(key, 5, 2, start=126) == got[126:131]


# --- Integers ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(words, words, extras, scales)
def test_gaussian_integers_are_the_nearest_to_the_truth(wu, wv, extra, s):
    got = noise.gaussian_integer_pair(wu, wv, extra, s)
    assert got == tuple(nearest(y) for y in true_pair(wu, wv, extra, s))


@settings(max_examples=150, deadline=None)
@given(words, extras, scales)
def test_laplace_integers_are_the_nearest_to_the_truth(w, extra, s):
    assert noise.laplace_integer(w, extra, s) == nearest(true_laplace(w, extra, s))


@pytest.mark.parametrize("s", SCALES)
@pytest.mark.parametrize("extra", [ZERO_EXTRA, ONES_EXTRA])
def test_extreme_words(extra, s):
    """The longest radius, the shortest one, angles 0 and pi/2, both signs."""
    extremes = [0, ONES, 2**62 - 1, 2**63, 2**62]
    for wu in extremes:
        for wv in extremes:
            truth = true_pair(wu, wv, extra, s)
            assert noise.gaussian_integer_pair(wu, wv, extra, s) == tuple(map(nearest, truth)), (wu, wv)
        assert noise.laplace_integer(wu, extra, s) == nearest(true_laplace(wu, extra, s)), wu


@pytest.mark.parametrize("seed", range(20))
def test_near_ties(seed):
    """The two neighbouring doubles s that put a sample just below and just above a half-integer."""
    rng = np.random.default_rng(seed)
    wu, wv, *extra = rng.integers(0, ONES, 10, np.uint64).tolist()
    target = int(rng.integers(1, 2**20)) + 0.5
    for half in (0, 1):
        unit = abs(true_pair(wu, wv, extra, 1.0)[half])
        above = float(target / unit)
        above = above if above * unit > target else float(np.nextafter(above, np.inf))
        below = float(np.nextafter(above, 0.0))
        assert below * unit < target < above * unit
        got = [abs(noise.gaussian_integer_pair(wu, wv, extra, s)[half]) for s in (below, above)]
        assert got == [target - 0.5, target + 0.5]


def test_refinement_words_continue_the_expansion():
    """Main words that leave the integers open: the refinement words decide, those of u and those of f."""
    wu, wv, s = 1, 2**62 - 1, 2.0**30
    of_u, of_f = [ONES] * 4 + [0] * 4, [0] * 4 + [ONES] * 4
    got = {tuple(noise.gaussian_integer_pair(wu, wv, extra, s)) for extra in (ZERO_EXTRA, of_u)}
    assert len(got) == 2
    above = 2.0**40  # the second sample is near zero: f is the only thing that moves it
    pairs = [noise.gaussian_integer_pair(0, 0, extra, above) for extra in (ZERO_EXTRA, of_f)]
    assert pairs == [tuple(map(nearest, true_pair(0, 0, extra, above))) for extra in (ZERO_EXTRA, of_f)]
    assert noise.gaussian_integer_pair(wu, wv, lambda: of_u, s) == noise.gaussian_integer_pair(wu, wv, of_u, s)


def test_streams_read_the_documented_words():
    """Sample i of a stream, far from the start too, from blocks made by hand."""
    key, s = bytes(range(32)), 2.0**21
    for start in (0, 2**33 + 60):
        group, stop = start // 128, start + 70
        gaussian = noise.gaussian_integers(key, s, start, stop)
        laplace = noise.laplace_integers(key, s, start, stop)
        for i in range(start, stop):
            j = i % 128
            half, k, b = j // 64, j % 64 // 16, j % 16
            x = noise.chacha_block(key, 16 * (i // 128) + b, 1, 0)
            wu, wv = x[4 * k] + 2**32 * x[4 * k + 1], x[4 * k + 2] + 2**32 * x[4 * k + 3]
            extra = noise.refinement(key, 1, 64 * (i // 128) + 16 * k + b)
            assert gaussian[i - start] == nearest(true_pair(wu, wv, extra, s)[half])
            y = noise.chacha_block(key, 16 * (i // 128) + b, 2, 0)
            w = y[2 * (j // 16)] + 2**32 * y[2 * (j // 16) + 1]
            assert laplace[i - start] == nearest(true_laplace(w, noise.refinement(key, 2, i), s))
        assert stop // 128 > group or start == 0


@pytest.mark.parametrize("start", [0, 100, 2**33 + 60])
def test_streams_pass_on_the_refinement_of_their_own_sample(monkeypatch, start):
    """It decides one sample in millions only, so the integers would not show a wrong one."""
    key, seen = bytes(range(32)), []
    monkeypatch.setattr(noise, "gaussian_integer_pair", lambda wu, wv, extra, s: seen.append(extra) or (0, 0))
    monkeypatch.setattr(noise, "laplace_integer", lambda w, extra, s: seen.append(extra) or 0)

    noise.gaussian_integers(key, 1.0, start, start + 150)
    pairs = dict.fromkeys(64 * (i // 128) + i % 64 for i in range(start, start + 150))  # each once, in order
    assert seen == [noise.refinement(key, 1, pair) for pair in pairs]

    seen.clear()
    noise.laplace_integers(key, 1.0, start, start + 150)
    assert seen == [noise.refinement(key, 2, i) for i in range(start, start + 150)]


# --- Arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_to_lattice(dtype):
    x = np.array([0.25, 0.75, -0.25, -0.75, 1.25, np.nan, np.inf, -np.inf, 1e30, 3.0], dtype)
    assert noise.to_lattice(x, 0.5).tolist() == [0, 2, 0, -2, 2, 0, 2**62, -(2**62), 2**62, 6]  # ties to even
    assert noise.to_lattice(np.array([2.0**-900], np.float64), 2.0**-900).tolist() == [1]
    q = np.array([2**62 - 1, -3])
    assert noise.to_lattice(q, 0.5).tolist() == q.tolist()


def test_from_lattice_rounds_once():
    """2^60 + 2^36 + 1 lies above the middle of two float32; rounded to float64 first it would be a tie, and go down."""
    integers = np.array([2**60 + 2**36 + 1, 3, -5])
    got = noise.from_lattice(integers, 0.25, np.float32)
    assert got.dtype == np.float32
    assert [int(4 * float(value)) for value in got] == [2**60 + 2**37, 3, -5]
    assert noise.from_lattice(integers[1:], 2.0**200, np.float32).tolist() == [np.inf, -np.inf]
    assert noise.from_lattice(integers[1:], 2.0**-200, np.float32).tolist() == [0.0, -0.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_are_lattice_points(dtype):
    key, sigma, g = bytes(32), 3.0, 2.0**-10
    x = np.linspace(-4, 4, 30).reshape(5, 6).astype(dtype)
    for add, integers in (
        (noise.add_gaussian, noise.gaussian_integers),
        (noise.add_laplace, noise.laplace_integers),
    ):
        got = add(x, sigma, g, key)
        assert got.dtype == dtype
        z = integers(key, sigma / g, 0, 30)
        assert (got.ravel() / g).tolist() == [round(float(v) / g) + n for v, n in zip(x.ravel(), z, strict=True)]
    q = np.arange(4)
    assert noise.add_gaussian(q, sigma, g, key, np.float64).tolist() == (
        noise.add_gaussian(q * g, sigma, g, key).tolist()
    )
