"""The noise contract (docs/noise.md) in Python integers.

ChaCha is written as in RFC 8439, AES as in FIPS 197. A sample is decided from its whole bit expansion by the definition:
a uniform number is compared with the tail function at half-integers, in fixed point, with as many bits as that takes.
There is no fast step, so there is nothing to flag; a float64 only says where to look first.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from aisec_fast._reference.fixed_point import exp, gaussian_tail
from aisec_fast._tables import quantiles

RAW, GAUSSIAN, LAPLACE = 0, 1, 2  # domains: word 14 of the ChaCha state
MAIN, REFINEMENT, SUBKEYS = 0, 1, 2  # levels: word 15
GROUP = 128  # words made from 16 consecutive blocks
WORDS_A_SUBKEY = 2**25  # of AES

MASK32 = 2**32 - 1
CHACHA_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
QUARTER_ROUNDS = (
    *((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),  # columns
    *((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)),  # diagonals
)

EXPANSION_BITS = 319  # of a sample's uniform number: 63 of its word, 64 of each of four refinement words
FIRST_BITS = 192  # fraction bits of the first attempt to compare; doubled until they suffice
ERROR = 2**20  # of a tail in units of 2^-bits, see fixed_point.gaussian_tail

Words: TypeAlias = Sequence[int]
Extra: TypeAlias = Words | Callable[[], Words]
"""The refinement words e_0, e_1, ... (four are read), or a function that makes them."""


# --- ChaCha -----------------------------------------------------------------------------------------------------------


def chacha_block(key: bytes, counter: int, domain: int, level: int, rounds: int = 12) -> list[int]:
    """Return the 16 output words of one ChaCha block.

    `counter` fills state words 12 and 13, `domain` word 14, `level` word 15; so RFC 8439's 32-bit counter and 96-bit
    nonce are reached as `counter = block + (nonce[0] << 32)`, `domain = nonce[1]`, `level = nonce[2]`, `rounds = 20`.
    """
    start = [*CHACHA_CONSTANTS, *struct.unpack("<8I", key), counter & MASK32, counter >> 32, domain, level]
    x = list(start)
    for _ in range(rounds // 2):
        for a, b, c, d in QUARTER_ROUNDS:
            for target, source, other, distance in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[target] = (x[target] + x[source]) & MASK32
                mixed = x[other] ^ x[target]
                x[other] = (mixed << distance | mixed >> (32 - distance)) & MASK32
    return [(word + first) & MASK32 for word, first in zip(x, start, strict=True)]


def _join(x: Words) -> list[int]:
    """64-bit words from pairs of 32-bit ones, the low half first."""
    return [low | high << 32 for low, high in zip(x[0::2], x[1::2], strict=True)]


# --- AES-128 ----------------------------------------------------------------------------------------------------------


def _multiply(a: int, b: int) -> int:
    """The product in GF(2^8), modulo x^8 + x^4 + x^3 + x + 1 (FIPS 197 section 4.2)."""
    product = 0
    while b:
        product ^= a * (b & 1)
        a = a << 1 ^ 0x11B * (a >> 7)
        b >>= 1
    return product


@cache
def _substitution() -> list[int]:
    """The S-box (section 5.1.1): the inverse in GF(2^8), 0 for 0, then an affine map over the bits."""
    table = []
    for a in range(256):
        inverse = next((b for b in range(256) if _multiply(a, b) == 1), 0)
        copies = inverse * 0b100000001  # shifted right by n: inverse rotated right by n
        table.append((copies ^ copies >> 4 ^ copies >> 5 ^ copies >> 6 ^ copies >> 7 ^ 0x63) & 0xFF)
    return table


def aes_round_keys(key: bytes) -> list[bytes]:
    """Return the 11 round keys of AES-128 (section 5.2)."""
    substitution = _substitution()
    words = [key[i : i + 4] for i in range(0, 16, 4)]
    constant = 1
    for i in range(4, 44):
        previous = words[i - 1]
        if i % 4 == 0:
            previous = bytes(substitution[b] for b in previous[1:] + previous[:1])
            previous = bytes([previous[0] ^ constant]) + previous[1:]
            constant = _multiply(constant, 2)
        words.append(bytes(a ^ b for a, b in zip(words[i - 4], previous, strict=True)))
    return [b"".join(words[i : i + 4]) for i in range(0, 44, 4)]


def aes_block(round_keys: Sequence[bytes], block: bytes) -> bytes:
    """Encrypt 16 bytes (section 5.1). Byte 4 c + r of the state is row r, column c."""
    substitution = _substitution()
    state = [a ^ b for a, b in zip(block, round_keys[0], strict=True)]
    for number, round_key in enumerate(round_keys[1:], 1):
        state = [substitution[b] for b in state]
        state = [state[4 * ((c + r) % 4) + r] for c in range(4) for r in range(4)]
        if number < 10:
            twice = [b << 1 ^ 0x11B * (b >> 7) for b in state]
            mixed = []
            for c in range(0, 16, 4):  # row r: 2 a_r + 3 a_(r+1) + a_(r+2) + a_(r+3)
                total = state[c] ^ state[c + 1] ^ state[c + 2] ^ state[c + 3]
                mixed += [state[c + r] ^ total ^ twice[c + r] ^ twice[c + (r + 1) % 4] for r in range(4)]
            state = mixed
        state = [a ^ b for a, b in zip(state, round_key, strict=True)]
    return bytes(state)


# --- The stream -------------------------------------------------------------------------------------------------------


def random_words(key: bytes, n: int, domain: int = RAW, start: int = 0, generator: str = "chacha") -> list[int]:
    """Return words w_start, ..., w_(start + n - 1) of `domain`'s main stream. `generator` is "chacha" or "aes"."""
    makers = {"chacha": _chacha_words, "aes": _aes_words}
    if generator not in makers:
        raise ValueError(f"generator is {generator!r}, expected 'chacha' or 'aes'")
    return makers[generator](key, range(start, start + n), domain)


def _chacha_words(key: bytes, numbers: range, domain: int) -> list[int]:
    block = cache(lambda index: _join(chacha_block(key, index, domain, MAIN)))
    words = []
    for i in numbers:
        group, j = divmod(i, GROUP)
        k, b = divmod(j, 16)
        words.append(block(16 * group + b)[k])
    return words


def _aes_words(key: bytes, numbers: range, domain: int) -> list[int]:
    @cache
    def subkey(n: int) -> tuple[list[bytes], int]:
        x = chacha_block(key, n, domain, SUBKEYS)
        return aes_round_keys(struct.pack("<4I", *x[:4])), x[4] | x[5] << 32

    @cache
    def block(n: int, index: int) -> tuple[int, ...]:
        round_keys, nonce = subkey(n)
        return struct.unpack("<2Q", aes_block(round_keys, struct.pack("<2Q", index, nonce)))

    words = []
    for i in numbers:
        n, m = divmod(i, WORDS_A_SUBKEY)
        words.append(block(n, m // 2)[m % 2])
    return words


def refinement(key: bytes, domain: int, index: int) -> list[int]:
    """Return the eight refinement words e_0, ..., e_7 of sample `index`."""
    return _join(chacha_block(key, index, domain, REFINEMENT))


# --- Tails ------------------------------------------------------------------------------------------------------------


def _laplace_tail(y: int, bits: int) -> int:
    """F(y) = exp(-y) for 0 <= y < 2^8 in units of 2^-bits, within ERROR of them."""
    return (1 << 2 * bits) // exp(y, bits)


# --- Samples ----------------------------------------------------------------------------------------------------------


def _uniform(w: int, extra: Extra) -> int:
    """The sample's u in units of 2^-EXPANSION_BITS; 0 counts as one unit."""
    value = w >> 1
    for word in (extra() if callable(extra) else extra)[:4]:
        value = value << 64 | word
    return max(value, 1)


Tail: TypeAlias = Callable[[int, int], int]


@lru_cache(2**12)
def _tail_at(tail: Tail, k: int, s: float, bits: int) -> int:
    """F((k - 1/2) / s)."""
    numerator, denominator = s.as_integer_ratio()
    return tail(((2 * k - 1) * denominator << bits) // (2 * numerator), bits)


def _is_below(u: int, tail: Tail, k: int, s: float) -> bool:
    """u < F((k - 1/2) / s)?"""
    bits = FIRST_BITS
    while True:
        difference = _tail_at(tail, k, s, bits) - (u << bits >> EXPANSION_BITS)
        if abs(difference) > ERROR + 1:
            return difference > 0
        bits *= 2


def _magnitude(u: int, tail: Tail, s: float, guess: float) -> int:
    """|Z|, the number of k >= 1 with u < F((k - 1/2) / s). They are 1, 2, ..., |Z|, because F falls."""
    low, step = round(guess), 1
    high = low + 1
    while low > 0 and not _is_below(u, tail, low, s):
        low, high, step = max(low - step, 0), low, 2 * step
    step = 1
    while _is_below(u, tail, high, s):
        low, high, step = high, high + step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _is_below(u, tail, middle, s) else (low, middle)
    return low


def gaussian_integer(w: int, extra: Extra, s: float) -> int:
    """Return rint(s N) for the sample that owns word `w` and refinement words `extra`; 1 <= s <= 2^40."""
    u = _uniform(w, extra)
    guess = -s * NormalDist().inv_cdf(u / 2 ** (EXPANSION_BITS + 1))
    return (-1) ** (w & 1) * _magnitude(u, gaussian_tail, s, guess)


def laplace_integer(w: int, extra: Extra, s: float) -> int:
    """Return rint(s L) for the sample that owns word `w` and refinement words `extra`; 1 <= s <= 2^40."""
    u = _uniform(w, extra)
    guess = -s * math.log(u / 2**EXPANSION_BITS)
    return (-1) ** (w & 1) * _magnitude(u, _laplace_tail, s, guess)


def gaussian_integers(key: bytes, s: float, start: int, stop: int, generator: str = "chacha") -> list[int]:
    """Return the Gaussian integers Z of samples start, ..., stop - 1 of the stream of `key`."""
    words = random_words(key, stop - start, GAUSSIAN, start, generator)
    return [gaussian_integer(w, refinement(key, GAUSSIAN, i), s) for i, w in enumerate(words, start)]


def laplace_integers(key: bytes, s: float, start: int, stop: int, generator: str = "chacha") -> list[int]:
    """Return the Laplace integers Z of samples start, ..., stop - 1 of the stream of `key`."""
    words = random_words(key, stop - start, LAPLACE, start, generator)
    return [laplace_integer(w, refinement(key, LAPLACE, i), s) for i, w in enumerate(words, start)]


# --- Arrays -----------------------------------------------------------------------------------------------------------


def to_lattice(x: NDArray[Any], granularity: float) -> NDArray[np.int64]:
    """Return q = rint(x / granularity), of x's shape: NaN counts as 0, all else is clamped to +-2^62. int64 x is q."""
    if x.dtype == np.int64:
        return x.copy()
    with np.errstate(over="ignore"):
        q = np.rint(x.astype(np.float64) / granularity)
    return np.clip(np.where(np.isnan(q), 0.0, q), -(2.0**62), 2.0**62).astype(np.int64)


def from_lattice(integers: NDArray[np.int64], granularity: float, dtype: DTypeLike) -> NDArray[Any]:
    """Return integers * granularity: int64 -> dtype is the one rounding, the product is exact (or under/overflows)."""
    with np.errstate(over="ignore", under="ignore"):
        return (integers.astype(dtype).astype(np.float64) * granularity).astype(dtype)


def add_gaussian(
    x: NDArray[Any],
    sigma: float,
    granularity: float,
    key: bytes,
    dtype: DTypeLike | None = None,
    generator: str = "chacha",
) -> NDArray[Any]:
    """Return granularity * (q + Z), Z Gaussian of standard deviation sigma / granularity, in `dtype` (default: x's)."""
    return _add(x, gaussian_integers(key, sigma / granularity, 0, x.size, generator), granularity, dtype)


def add_laplace(
    x: NDArray[Any],
    scale: float,
    granularity: float,
    key: bytes,
    dtype: DTypeLike | None = None,
    generator: str = "chacha",
) -> NDArray[Any]:
    """Return granularity * (q + Z), Z Laplace of scale scale / granularity, in `dtype` (default: x's)."""
    return _add(x, laplace_integers(key, scale / granularity, 0, x.size, generator), granularity, dtype)


def _add(x: NDArray[Any], noise: list[int], granularity: float, dtype: DTypeLike | None) -> NDArray[Any]:
    integers = to_lattice(x, granularity) + np.array(noise, np.int64).reshape(x.shape)
    return from_lattice(integers, granularity, x.dtype if dtype is None else dtype)


# --- Float mode -------------------------------------------------------------------------------------------------------


def _rows_and_places(v: NDArray[np.float64], table: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The table's rows at v = 2^(32+o) m, and delta = m - (1 + (c + 1/2)/64)."""
    half, exponent = np.frexp(v)
    m, octave = 2 * half, exponent - 1 - 32
    cell = np.floor(64 * (m - 1))
    row = 64 * octave + cell.astype(np.int64)
    return table[row + (row >= 768)], m - (1 + (cell + 0.5) / 64)


def _float_samples_64(words: list[int], table: NDArray[np.float64]) -> NDArray[np.float64]:
    w = np.array(words, np.uint64)
    rows, delta = _rows_and_places(np.maximum(w, np.uint64(2**32)).astype(np.float64), table)
    c4 = (rows[:, 3].copy().view(np.uint64) << np.uint64(32)).view(np.float64)
    t = (((c4 * delta + rows[:, 3]) * delta + rows[:, 2]) * delta + rows[:, 1]) * delta + rows[:, 0]
    return np.where(w % np.uint64(2) == 1, -t, t)


def _float_samples_32(words: list[int], table: NDArray[np.float64]) -> NDArray[np.float32]:
    d = np.array([half for w in words for half in (w & MASK32, w >> 32)], np.int64)
    v = (d // 2 | 1).astype(np.float32).astype(np.float64)
    rows, place = _rows_and_places(v * 2.0**33, table)  # u = 2^-31 v = 2^-64 (2^33 v)
    c, delta = rows.astype(np.float32), place.astype(np.float32)
    t = ((c[:, 3] * delta + c[:, 2]) * delta + c[:, 1]) * delta + c[:, 0]
    return np.where(d % 2 == 1, -t, t)


def _add_float(x: NDArray[Any], scale: float, key: bytes, law: str, generator: str) -> NDArray[Any]:
    table, domain = quantiles(law), {"gaussian": GAUSSIAN, "laplace": LAPLACE}[law]
    if x.dtype == np.float32:
        words = random_words(key, (x.size + 1) // 2, domain, 0, generator)
        samples: NDArray[Any] = _float_samples_32(words, table)[: x.size]
    else:
        samples = _float_samples_64(random_words(key, x.size, domain, 0, generator), table)
    with np.errstate(all="ignore"):
        return x + x.dtype.type(scale) * samples.reshape(x.shape)


def add_float_gaussian(x: NDArray[Any], sigma: float, key: bytes, generator: str = "chacha") -> NDArray[Any]:
    """Return x + sigma T in x's floating point (docs/noise.md section 7)."""
    return _add_float(x, sigma, key, "gaussian", generator)


def add_float_laplace(x: NDArray[Any], scale: float, key: bytes, generator: str = "chacha") -> NDArray[Any]:
    """Return x + scale T in x's floating point (docs/noise.md section 7)."""
    return _add_float(x, scale, key, "laplace", generator)
