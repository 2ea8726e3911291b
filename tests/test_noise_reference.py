"""The noise reference against truth that shares no code with it: published vectors of ChaCha and AES, and mpmath."""

import struct
from functools import cache

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aisec_fast._reference import noise

KEY = bytes(range(32))
ONES = 2**64 - 1
ZERO_EXTRA, ONES_EXTRA = [0] * 4, [ONES] * 4
SCALES = [1.0, 1.5, 1000.3, 2.0**20.3, 2.0**36, 2.0**40]
LAWS = ["gaussian", "laplace"]
TAILS = {"gaussian": noise.gaussian_tail, "laplace": noise._laplace_tail}
DOMAINS = {"gaussian": 1, "laplace": 2}
# u = 0, one unit, both ends of (0, 1), and around the borders 2^-32 and 2^-20 of section 4; the lowest bit is the sign.
EDGES = [0, 1, 2, 3, ONES, ONES - 1, 2**63, 2**63 - 1]
EDGES += [border + step for border in (2**32, 2**44) for step in (-2, -1, 0, 1)]
words = st.one_of(
    st.integers(0, ONES), st.sampled_from(EDGES), st.integers(0, 63).flatmap(lambda n: st.integers(0, 2**n))
)
extras = st.one_of(st.lists(st.integers(0, ONES), min_size=4, max_size=4), st.sampled_from([ZERO_EXTRA, ONES_EXTRA]))
scales = st.one_of(st.sampled_from(SCALES), st.floats(1.0, 2.0**40))


# --- Truth ------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def precision():
    with mpmath.workprec(920):  # 600 are left of 1 - u at u = 2^-319
        yield


def tail(law: str, x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.exp(-x) if law == "laplace" else mpmath.erfc(x / mpmath.sqrt(2))


@cache
def quantile(law: str, numerator: int) -> mpmath.mpf:
    """Q(numerator 2^-319)."""
    u = mpmath.mpf(numerator) / 2**319
    return -mpmath.log(u) if law == "laplace" else mpmath.sqrt(2) * mpmath.erfinv(1 - u)


def true_integer(law: str, w: int, extra: list[int], s: float) -> int:
    bits = "".join(f"{word:064b}" for word in [w, *extra])
    u = max(int(bits[:63] + bits[64:], 2), 1)
    magnitude = int(mpmath.nint(s * quantile(law, u)))
    return -magnitude if bits[63] == "1" else magnitude


def sample(law: str, w: int, extra: list[int], s: float) -> int:
    return getattr(noise, f"{law}_integer")(w, extra, s)


def expansion(u: int, sign: int = 0) -> tuple[int, list[int]]:
    """The word and the refinement words of u 2^-319."""
    digits = f"{u:0319b}"
    return int(digits[:63] + str(sign), 2), [int(digits[i : i + 64], 2) for i in range(63, 319, 64)]


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


# --- AES --------------------------------------------------------------------------------------------------------------


def encrypt(key: str, block: str) -> str:
    return noise.aes_block(noise.aes_round_keys(bytes.fromhex(key)), bytes.fromhex(block)).hex()


def test_aes_of_fips_197():
    """Appendix A.1 (key expansion), appendix B and C.1 (AES-128)."""
    key = "2b7e151628aed2a6abf7158809cf4f3c"
    round_keys = noise.aes_round_keys(bytes.fromhex(key))
    assert [round_keys[i].hex() for i in (0, 1, 10)] == [
        key,
        "a0fafe1788542cb123a339392a6c7605",
        "d014f9a8c9ee2589e13f0cc8b6630ca6",
    ]
    assert encrypt(key, "3243f6a8885a308d313198a2e0370734") == "3925841d02dc09fbdc118597196a0b32"
    key = "000102030405060708090a0b0c0d0e0f"
    assert encrypt(key, "00112233445566778899aabbccddeeff") == "69c4e0d86a7b0430d8cdb78070b4c55a"


@pytest.mark.parametrize(
    ("counter", "plaintext", "ciphertext"),
    [
        ("fcfdfeff", "6bc1bee22e409f96e93d7e117393172a", "874d6191b620e3261bef6864990db6ce"),
        ("fcfdff00", "ae2d8a571e03ac9c9eb76fac45af8e51", "9806f66b7970fdff8617187bb9fffdff"),
        ("fcfdff01", "30c81c46a35ce411e5fbc1191a0a52ef", "5ae4df3edbd5d35e5b4f09020db03eab"),
        ("fcfdff02", "f69f2445df4f9b17ad2b417be66c3710", "1e031dda2fbe03d1792170a0f3009cee"),
    ],
)
def test_aes_in_counter_mode(counter, plaintext, ciphertext):
    """SP 800-38A, F.5.1 (CTR-AES128.Encrypt)."""
    stream = encrypt("2b7e151628aed2a6abf7158809cf4f3c", "f0f1f2f3f4f5f6f7f8f9fafb" + counter)
    assert int(stream, 16) ^ int(plaintext, 16) == int(ciphertext, 16)


# --- The stream -------------------------------------------------------------------------------------------------------


def test_layout_of_chacha_words():
    """Word i = 128 G + 16 k + b is words 2k (low) and 2k + 1 (high) of block 16 G + b."""
    got = noise.random_words(KEY, 256, domain=2)
    for i in (0, 1, 15, 16, 127, 128, 200, 255):
        group, k, b = i // 128, i % 128 // 16, i % 16
        block = noise.chacha_block(KEY, 16 * group + b, 2, 0)
        assert got[i] == block[2 * k] + 2**32 * block[2 * k + 1]
    assert noise.random_words(KEY, 5, 2, start=126) == got[126:131]


def aes_word(domain: int, i: int) -> int:
    """Word i by hand: 16 bytes, counter and nonce, under the subkey of the 2^25 words around it."""
    x = noise.chacha_block(KEY, i // 2**25, domain, 2)
    round_keys = noise.aes_round_keys(struct.pack("<4I", *x[:4]))
    counter = (i % 2**25 // 2).to_bytes(8, "little") + x[4].to_bytes(4, "little") + x[5].to_bytes(4, "little")
    half = 8 * (i % 2)
    return int.from_bytes(noise.aes_block(round_keys, counter)[half : half + 8], "little")


@pytest.mark.parametrize("domain", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 7, 2**24 - 3, 2**25 - 5, 3 * 2**25 - 5, 2**57 - 5])
def test_layout_of_aes_words(domain, start):
    """Also where a subkey ends, and where it does not: at 2^24."""
    got = noise.random_words(KEY, 10, domain, start, generator="aes")
    assert got == [aes_word(domain, i) for i in range(start, start + 10)]


def test_streams_differ():
    streams = [noise.random_words(KEY, 4, domain, start, "aes") for domain in (0, 1, 2) for start in (0, 4, 2**25)]
    streams += [noise.random_words(KEY, 4, domain) for domain in (0, 1, 2)]
    streams += [noise.random_words(KEY[::-1], 4, 0, 0, generator) for generator in ("chacha", "aes")]
    assert len({word for stream in streams for word in stream}) == 4 * len(streams)


def test_unknown_generators_are_refused():
    with pytest.raises(ValueError, match="generator is 'AES', expected 'chacha' or 'aes'"):
        noise.random_words(KEY, 1, generator="AES")
    with pytest.raises(ValueError, match="generator is 'philox'"):
        noise.add_gaussian(np.zeros(1), 1.0, 1.0, KEY, generator="philox")


def test_refinement_words():
    block = noise.chacha_block(KEY, 2**33 + 5, 2, 1)
    assert noise.refinement(KEY, 2, 2**33 + 5) == [block[2 * m] + 2**32 * block[2 * m + 1] for m in range(8)]


# --- Integers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@settings(max_examples=120, deadline=None)
@given(w=words, extra=extras, s=scales)
def test_integers_are_the_nearest_to_the_truth(law, w, extra, s):
    assert sample(law, w, extra, s) == true_integer(law, w, extra, s)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("s", SCALES)
def test_extreme_words(law, s):
    for w in EDGES:
        for extra in (ZERO_EXTRA, ONES_EXTRA):
            assert sample(law, w, extra, s) == true_integer(law, w, extra, s), (w, extra)


def test_no_bits_at_all_count_as_one_unit():
    for law in LAWS:
        assert sample(law, 0, ZERO_EXTRA, 2.0**40) == sample(law, 0, [0, 0, 0, 1], 2.0**40)
        assert sample(law, 0, ZERO_EXTRA, 2.0**40) > sample(law, 0, [0, 0, 0, 2], 2.0**40)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("s", SCALES)
def test_ties_to_the_last_bit(law, s):
    """u just below and just above F at a half-integer, 2^-319 apart: the last bit of e_3 decides, and every bit before it."""
    at_most = {"gaussian": 19, "laplace": 185}[law]  # below F of these, units of 2^-319 are too coarse at s = 2^40
    for k in {1, 2, *(max(1, int(s * at_most * part)) for part in (0.01, 0.1, 0.24, 0.5, 0.99))}:
        y = (mpmath.mpf(k) - 0.5) / s
        below = int(mpmath.floor(tail(law, y) * 2**319))
        for sign in (0, 1):
            got = [sample(law, *expansion(u, sign), s) for u in (below, below + 1)]
            assert got == [(-1) ** sign * n for n in (k, k - 1)], k
        w, extra = expansion(below)
        assert sample(law, w, extra, s) == true_integer(law, w, extra, s)


@pytest.mark.parametrize("law", LAWS)
def test_four_refinement_words_are_read(law):
    """The block has eight; a function may make them."""
    w, extra = expansion(int(tail(law, mpmath.mpf(7.5) / 1000) * 2**319))
    assert sample(law, w, [*extra, *ZERO_EXTRA], 1000.0) == sample(law, w, [*extra, *ONES_EXTRA], 1000.0) == 8
    assert sample(law, w, lambda: extra, 1000.0) == 8


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("guess", [0.0, 1.0, 13.5, 15.4, 17.0, 200.0])
def test_a_wrong_first_guess_costs_time_only(law, guess):
    function = TAILS[law]
    for n in (0, 1, 15, 16):
        u = int(tail(law, mpmath.mpf(n) / 10) * 2**319) - 1
        assert noise._magnitude(u, function, 10.0, guess) == n


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("bits", [192, 384, 768])
def test_tails_are_within_their_error(law, bits):
    function, largest = TAILS[law], {"gaussian": 21.3, "laplace": 222.5}[law]
    for x in (0, 2.0**-41, 0.3, 1, 4.9, 0.7 * largest, largest):
        y = int(mpmath.mpf(x) * 2**bits)
        assert abs(function(y, bits) - tail(law, mpmath.mpf(x)) * 2**bits) < noise.ERROR


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("generator", ["chacha", "aes"])
@pytest.mark.parametrize("start", [0, 2**25 - 15])
def test_streams_read_the_documented_words(law, generator, start):
    s, domain = 2.0**21, DOMAINS[law]
    got = getattr(noise, f"{law}_integers")(KEY, s, start, start + 30, generator)
    own = noise.random_words(KEY, 30, domain, start, generator)
    refinements = [noise.refinement(KEY, domain, i)[:4] for i in range(start, start + 30)]
    assert got == [true_integer(law, w, extra, s) for w, extra in zip(own, refinements, strict=True)]
    if generator == "chacha":
        assert got == getattr(noise, f"{law}_integers")(KEY, s, start, start + 30)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("start", [0, 100, 2**33 + 60])
def test_streams_pass_on_the_refinement_of_their_own_sample(monkeypatch, law, start):
    """It decides one sample in millions only, so the integers would not show a wrong one."""
    seen = []
    monkeypatch.setattr(noise, f"{law}_integer", lambda w, extra, s: seen.append(extra) or 0)
    getattr(noise, f"{law}_integers")(KEY, 1.0, start, start + 40)
    assert seen == [noise.refinement(KEY, DOMAINS[law], i) for i in range(start, start + 40)]


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


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("generator", ["chacha", "aes"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_are_lattice_points(law, generator, dtype):
    sigma, g = 3.0, 2.0**-10
    add = getattr(noise, f"add_{law}")
    x = np.linspace(-4, 4, 30).reshape(5, 6).astype(dtype)
    got = add(x, sigma, g, KEY, generator=generator)
    assert got.dtype == dtype
    z = getattr(noise, f"{law}_integers")(KEY, sigma / g, 0, 30, generator)
    assert (got.ravel() / g).tolist() == [round(float(v) / g) + n for v, n in zip(x.ravel(), z, strict=True)]
    q = np.arange(4)
    on_lattice = add(q, sigma, g, KEY, dtype, generator)
    assert on_lattice.dtype == dtype
    assert on_lattice.tolist() == add((q * g).astype(dtype), sigma, g, KEY, generator=generator).tolist()
