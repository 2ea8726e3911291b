"""Published attacks on noise in floating point: each succeeds on a naive control and fails on `aisec_fast.noise`.

An adversary knows that one of two neighbouring inputs x, x' was used, sees one output, and says x' (+1), x (-1) or nothing
(0). Its advantage is the mean of what it says under x' minus the mean under x, halved: 0 for blind guesses, 1 for certainty.
The mechanism itself, in real numbers, allows an advantage of at most the total variation between its two output laws
("allowed" below). By Hoeffding's inequality, n outputs of each input show more than allowed + sqrt(ln(2 10^6) / n) with
probability below 10^-6: the false-alarm rate of every test here that draws. Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from aisec_fast import noise

Floats = NDArray[np.floating]
Mechanism = Callable[[float, int, int], Floats]  # (input, size, seed) -> outputs

FALSE_ALARM = 1e-6
SIZE = 20_000
CERTAIN = 0.2  # what an attack must reach on its control; the controls below give 0.3 to 1


def advantage(says_of_x: NDArray[np.int64], says_of_other: NDArray[np.int64]) -> float:
    return float(says_of_other.mean() - says_of_x.mean()) / 2


def fluctuation(size: int) -> float:
    """What chance adds to an advantage, except with probability FALSE_ALARM: 2n terms of range 1/n each."""
    return math.sqrt(math.log(2 / FALSE_ALARM) / size)


def ours(law: str, scale: float, dtype: str = "float64") -> Mechanism:
    def mechanism(x: float, size: int, seed: int) -> Floats:
        source = noise.SeededSource(seed)
        return getattr(noise, f"add_{law}")(np.full(size, x, dtype), scale, source=source)

    return mechanism


# --- Mironov 2012: the range of scale * log(u) has holes --------------------------------------------------------------
#
# "On significance of the least significant bits for differential privacy", CCS 2012. A uniform u has at most 2^53 values,
# so most floats are no value of scale * log(u). If y - x is none, x is refuted. Inputs differ by 1 and the scale is 1024:
# epsilon is 1/1024, and a Laplace mechanism allows an advantage of 1 - exp(-1/2048).

LAPLACE_SCALE = 1024.0  # a power of two: the product with the logarithm is exact, with and without fused multiply-add
INPUTS = (0.0, 1.0)
LAPLACE_ALLOWED = 1 - math.exp(-1 / (2 * LAPLACE_SCALE))

log = np.vectorize(math.log, otypes=[np.float64])  # of the C library, as numpy's Laplace; numpy's own may differ


def laplace_of_grid(bits: int) -> Mechanism:
    """The textbook: x +- scale * log(u), u a multiple of 2^-bits in (0, 1]."""

    def mechanism(x: float, size: int, seed: int) -> Floats:
        rng = np.random.default_rng(seed)
        u = np.ldexp(rng.integers(1, 2**bits, size, endpoint=True).astype(np.float64), -bits)
        return x + LAPLACE_SCALE * log(u) * rng.choice([-1.0, 1.0], size)

    return mechanism


def laplace_of_numpy(x: float, size: int, seed: int) -> Floats:
    """numpy takes the logarithm of u + u or (2 - u) - u, u a multiple of 2^-53: a multiple of 2^-53."""
    return np.random.default_rng(seed).laplace(x, LAPLACE_SCALE, size)


def reachable(y: Floats, x: float, bits: int) -> NDArray[np.bool_]:
    """Whether some u = j 2^-bits gives y = fl(x +- scale * log(u)). j is known up to the rounding of y - x and of exp."""
    drawn = y.astype(np.float64) - x
    middle = np.rint(np.ldexp(np.exp(-np.abs(drawn) / LAPLACE_SCALE), bits))
    found = np.zeros(y.shape, bool)
    for step in range(-4, 5):
        j = np.clip(middle + step, 1, 2.0**bits)
        found |= x - np.copysign(LAPLACE_SCALE, drawn) * log(np.ldexp(j, -bits)) == y
    return found


def mironov(y: Floats, bits: int) -> NDArray[np.int64]:
    """Says the input that is reachable where the other is not."""
    return reachable(y, INPUTS[1], bits).astype(np.int64) - reachable(y, INPUTS[0], bits)


@pytest.mark.parametrize(
    ("control", "bits"),
    [(laplace_of_grid(53), 53), (laplace_of_grid(32), 32), (laplace_of_numpy, 53)],
    ids=["53 bits", "32 bits", "numpy"],
)
def test_mironov(control: Mechanism, bits: int) -> None:
    naive = [control(x, SIZE, 1 + i) for i, x in enumerate(INPUTS)]
    for y, x in zip(naive, INPUTS, strict=True):
        assert reachable(y, x, bits).all()  # the truth is never refuted: each verdict is a proof
    assert advantage(*(mironov(y, bits) for y in naive)) > CERTAIN
    safe = [ours("laplace", LAPLACE_SCALE)(x, SIZE, 1 + i) for i, x in enumerate(INPUTS)]
    assert abs(advantage(*(mironov(y, bits) for y in safe))) < LAPLACE_ALLOWED + fluctuation(SIZE)


# --- Jin, McMurtry, Rubinstein, Ohrimenko 2022: Box-Muller in floats --------------------------------------------------
#
# "Are we there yet? Timing and floating-point attacks on differential privacy systems", IEEE S&P 2022. Two samples share
# u1 and u2, so a pair of outputs gives them away; few pairs of floats are r cos, r sin of any. The second input of the
# pair is known to be 0. Gaussian of sigma 1024, inputs that differ by 1: 2 Phi(1/2048) - 1 is allowed.

SIGMA = 1024.0
GAUSSIAN_ALLOWED = math.erf(1 / (2 * SIGMA * math.sqrt(2)))
PAIRS = 4000


def box_muller(j1: Floats, j2: Floats) -> tuple[Floats, Floats]:
    """sigma * (r cos, r sin) of u1 = j1 2^-53 in (0, 1] and u2 = j2 2^-53 in [0, 1)."""
    r = SIGMA * np.sqrt(-2 * np.log(np.ldexp(j1, -53)))
    angle = 2 * np.pi * np.ldexp(j2, -53)
    return r * np.cos(angle), r * np.sin(angle)


def gaussian_pairs_of_floats(x: float, size: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    first, second = box_muller(
        rng.integers(1, 2**53, size, endpoint=True).astype(np.float64), rng.integers(0, 2**53, size).astype(np.float64)
    )
    return np.stack([x + first, second], axis=1)


def gaussian_pairs_of_ours(x: float, size: int, seed: int) -> Floats:
    inputs = np.tile([x, 0.0], (size, 1))
    return noise.add_gaussian(inputs, SIGMA, source=noise.SeededSource(seed))


def reachable_pair(y: Floats, x: float) -> NDArray[np.bool_]:
    first, second = np.ascontiguousarray(y[:, 0]), np.ascontiguousarray(y[:, 1])
    drawn = first - x
    m1 = np.rint(np.ldexp(np.exp(-(drawn**2 + second**2) / (2 * SIGMA**2)), 53))
    m2 = np.rint(np.ldexp(np.arctan2(second, drawn) / (2 * np.pi) % 1.0, 53))
    found = np.zeros(first.shape, bool)
    for step1 in range(-6, 7):
        for step2 in range(-4, 5):
            a, b = box_muller(np.clip(m1 + step1, 1, 2.0**53), np.clip(m2 + step2, 0, 2.0**53 - 1))
            found |= (x + a == first) & (b == second)
    return found


def test_box_muller() -> None:
    def says(y: Floats) -> NDArray[np.int64]:
        return reachable_pair(y, INPUTS[1]).astype(np.int64) - reachable_pair(y, INPUTS[0])

    naive = [gaussian_pairs_of_floats(x, PAIRS, 3 + i) for i, x in enumerate(INPUTS)]
    for y, x in zip(naive, INPUTS, strict=True):
        assert reachable_pair(y, x).mean() > 0.99
    assert advantage(*map(says, naive)) > CERTAIN
    safe = [gaussian_pairs_of_ours(x, PAIRS, 3 + i) for i, x in enumerate(INPUTS)]
    assert abs(advantage(*map(says, safe))) < GAUSSIAN_ALLOWED + fluctuation(PAIRS)


# --- Haney, Desfontaines, Hartman, Shrestha, Hay 2022: the precision of the output ------------------------------------
#
# "Precision-based attacks and interval refining: how to break, then fix, differential privacy on finite computers",
# TPDP 2022. A float has the precision of its largest ancestor: x' + n close to 0 has only the bits of n, which is as
# large as x'; 0 + n has more. The adversary looks at the place of the lowest set bit alone, and learns from half of the
# outputs what each place says. Inputs 0 and x' = scale; it looks at outputs between x'/8 and 7x'/8. There the law under x'
# is the mirror image of the law under 0, y -> x' - y, which keeps the lowest set bit: nothing at all is allowed.


def lowest_bit(y: Floats) -> NDArray[np.int64]:
    """e such that y is an odd multiple of 2^e; y != 0."""
    mantissa, exponent = np.frexp(y.astype(np.float64))
    digits = np.ldexp(np.abs(mantissa), 53).astype(np.int64)
    return exponent - 53 + np.log2((digits & -digits).astype(np.float64)).astype(np.int64)


def haney(naive_or_ours: Mechanism, other: float, size: int) -> tuple[float, int]:
    """The learned adversary's advantage on outputs it did not learn from, and how many of each input it judged."""
    seen = []
    for i, x in enumerate((0.0, other)):
        y = naive_or_ours(x, size, 5 + i)
        seen.append(lowest_bit(y[(y > other / 8) & (y < other * 7 / 8)]))
    count = min(map(len, seen)) // 2
    places = np.arange(min(bits.min() for bits in seen), max(bits.max() for bits in seen) + 2)
    learned = [np.histogram(bits[:count], places)[0] for bits in seen]
    verdict = np.sign(learned[1] - learned[0])
    return advantage(*(verdict[bits[count : 2 * count] - places[0]] for bits in seen)), count


def float_gaussian(sigma: float, dtype: str) -> Mechanism:
    def mechanism(x: float, size: int, seed: int) -> Floats:
        drawn = np.random.default_rng(seed).standard_normal(size, dtype=np.dtype(dtype).type)
        return np.dtype(dtype).type(x) + np.dtype(dtype).type(sigma) * drawn

    return mechanism


def float_laplace(scale: float, dtype: str) -> Mechanism:
    def mechanism(x: float, size: int, seed: int) -> Floats:
        drawn = np.random.default_rng(seed).laplace(0, scale, size).astype(dtype)
        return np.dtype(dtype).type(x) + drawn

    return mechanism


@pytest.mark.parametrize("other", [1.0, 2.0**10, 2.0**-7])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_haney(law: str, dtype: str, other: float) -> None:
    control = (float_gaussian if law == "gaussian" else float_laplace)(other, dtype)
    found, _ = haney(control, other, 10 * SIZE)
    assert found > CERTAIN
    found, count = haney(ours(law, other, dtype), other, 10 * SIZE)
    assert count > SIZE
    assert abs(found) < fluctuation(count)


# --- The same paper: noise on a lattice does not help an input that is not on it --------------------------------------


def lattice_noise_alone(x: float, size: int, seed: int) -> Floats:
    """x + g * rint(noise / g): the noise is rounded, the input is not."""
    g = noise.default_granularity(1.0)
    return x + g * np.rint(np.random.default_rng(seed).standard_normal(size) / g)


def test_input_off_the_lattice() -> None:
    """Inputs 0 and 2^-30 at g = 2^-20: the control keeps the input's own bit in every output."""

    def says(y: Floats) -> NDArray[np.int64]:
        return np.where(lowest_bit(np.where(y == 0, 1.0, y)) == -30, 1, -1)

    other = 2.0**-30
    naive = [lattice_noise_alone(x, SIZE, 7 + i) for i, x in enumerate((0.0, other))]
    assert advantage(*map(says, naive)) == 1.0
    safe = [ours("gaussian", 1.0)(x, SIZE, 7 + i) for i, x in enumerate((0.0, other))]
    assert abs(advantage(*map(says, safe))) < math.erf(other) + fluctuation(SIZE)


# --- Why they fail: nothing of x enters but the integer q = rint(x / g). No chance: these hold for every output ---------


def lattice_point(x: float, g: float) -> int:
    return round(x / g)  # ties to even; x / g is exact


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("scale", [1.0, 0.7, 3e-5, 1e9])
def test_output_is_the_lattice_point_plus_an_integer(law: str, scale: float) -> None:
    """For one source the outputs of any two inputs differ by g (q' - q) exactly, and all lie on the lattice."""
    g = noise.default_granularity(scale)
    base = ours(law, scale)(0.0, 5000, 9)
    integers = base / g
    assert (integers == np.rint(integers)).all()
    for x in (g / 2, -g / 2, g * 1.5, g / 3, scale, -scale / 3, scale * math.pi, 1e3 * scale, np.nextafter(g / 2, 1)):
        shifted = ours(law, scale)(x, 5000, 9)
        assert (shifted - base == g * lattice_point(x, g)).all(), x


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_float32_is_the_lattice_value_rounded_once(law: str) -> None:
    for scale in (1.0, 0.7, 1e9):
        g = noise.default_granularity(scale)
        for x in (0.0, scale, -scale / 3, 1e3 * scale):
            narrow = np.float32(x)
            wide = ours(law, scale)(float(narrow), 5000, 9)
            assert (np.abs(wide / g) < 2**53).all()
            assert (ours(law, scale, "float32")(float(narrow), 5000, 9) == wide.astype(np.float32)).all()
