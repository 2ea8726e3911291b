"""Exact integers and decisions: every backend against the reference, the laws against exact masses, wrong calls.

Statistical tests use fixed seeds; each would fail by chance with probability below 1e-6 for a fresh seed.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from mpmath import mp, mpf
from scipy import stats

import aisec_fast
from aisec_fast import _core, _integers, noise
from aisec_fast._reference import integers as reference
from aisec_fast._reference.fixed_point import exp, exp_of_minus, gaussian_tail
from aisec_fast._reference.noise import RAW, random_words, refinement
from aisec_fast._tables.wide import wide_quantiles
from tests import quantile_tables
from tests.conftest import NATIVE, WITHOUT_JIT, remembered
from tests.test_codebase import PACKAGE, functions

KEY = bytes(range(32))
SIZES = [0, 1, 127, 300] if WITHOUT_JIT else [0, 1, 127, 1023, 1025, 3000]
FALSE_ALARM = 1e-6
# Below 1: nothing, little; tables; both sides of where tables end; the default's range; where many samples stay open.
SCALES = [2.0**-1022, 0.04, 0.4, 1.0, 5.3, 63.999, 64.0, 1000.3, 2.0**20.3, 2.0**36, 2.0**40]


class OneKey(noise.SeededSource):
    """A source that gives KEY to every call."""

    def __init__(self) -> None:
        super().__init__(0)
        self.calls = 0

    def next_key(self) -> bytes:
        self.calls += 1
        return KEY


@pytest.fixture(params=[*NATIVE, "numba"])
def kernels(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The kernels of one backend, which public calls then use."""
    best = _core.instruction_set()
    name, _, instruction_set = request.param.partition("-")
    if instruction_set:
        _core.use_instruction_set(instruction_set)
    with aisec_fast.use_backend(name):
        yield _core if name == "native" else importlib.import_module("aisec_fast._numba.integers")
    _core.use_instruction_set(best)


# The reference's answers for KEY, which take long: once for all backends.
decisions, uniform_integers, permutation = map(
    remembered, (reference.decisions, reference.uniform_integers, reference.permutation)
)


@functools.cache
def signed_integers(law: str, parameter: float, size: int) -> list[int]:
    return reference.signed_integers(KEY, size, LAWS[law](parameter))


def test_the_backends_have_the_same_functions() -> None:
    core, numba = functions(PACKAGE / "_core.pyi"), functions(PACKAGE / "_numba" / "integers.py")
    assert numba
    assert {name: core[name] for name in numba} == numba


# --- The reference ----------------------------------------------------------------------------------------------------


def masses(law: str, parameter: float, reach: int) -> list[mpf]:
    """P(Z = 0), ..., P(Z = reach) by the definitions, to mpmath's precision."""
    x = mpf(parameter)
    if law == "gaussian":
        terms = [mp.exp(-(mpf(n) ** 2) / (2 * x * x)) for n in range(reach + 1)]
        total = terms[0] + 2 * mp.fsum(terms[1:])
        return [term / total for term in terms]
    if law == "laplace":
        q = mp.exp(-1 / x)
        return [(1 - q) / (1 + q) * q**n for n in range(reach + 1)]
    return [mp.exp(-x) * mp.besseli(n, x) for n in range(reach + 1)]


LAWS: dict[str, Callable[[float], reference.Law]] = {
    "gaussian": reference.discrete_gaussian,
    "laplace": reference.discrete_laplace,
    "skellam": lambda variance: reference.skellam(Fraction(variance)),
}


@pytest.mark.parametrize(
    ("law", "parameter", "spread"),
    [
        *(("gaussian", sigma, sigma) for sigma in (0.05, 0.3, 5.3, 63.9, 64.0, 100.7)),
        *(("laplace", scale, 3 * scale) for scale in (0.02, 0.5, 63.9, 64.0, 90.5)),
        *(("skellam", variance, math.sqrt(variance)) for variance in (1e-3, 1.0, 77.25)),
    ],
)
@pytest.mark.parametrize("bits", [192, 384])
def test_tails_are_those_of_the_law(law: str, parameter: float, spread: float, bits: int) -> None:
    reach = int(30 * spread) + 60
    with mp.workprec(bits + 100):
        exact = masses(law, parameter, reach)
        tail, position = mpf(0), LAWS[law](parameter).tail
        for k in range(reach, 0, -1):
            tail += 2 * exact[k]
            if k <= 3 or k % max(1, reach // 20) == 0:
                left_out = 2.0**bits * 2.0**-500 if law == "laplace" else 0
                wrong = abs(position(k, bits) - tail * mpf(2) ** bits)
                assert wrong < reference.ERROR + left_out + mpf(2) ** bits * exact[reach] * 4 * spread, k


def test_a_skellam_tail_of_large_variance() -> None:
    with mp.workprec(320):
        v = mpf(10000.5)
        inside = mp.exp(-v) * (mp.besseli(0, v) + 2 * mp.fsum(mp.besseli(n, v) for n in range(1, 150)))
        assert abs(reference.skellam(Fraction(10000.5)).tail(150, 192) - (1 - inside) * mpf(2) ** 192) < reference.ERROR


@pytest.mark.parametrize("bits", [192, 704])
def test_fixed_point_functions(bits: int) -> None:
    with mp.workprec(2 * bits + 1000):
        unit = mpf(2) ** bits
        for numerator, denominator in ((0, 1), (1, 3), (7, 1), (311, 7), (10**6, 1)):
            got = exp_of_minus(numerator, denominator, bits)
            assert abs(got - mp.exp(-mpf(numerator) / denominator) * unit) <= 2
        for y in (0.0, 0.25, 1.0, 4.875, 21.5):
            assert abs(gaussian_tail(int(y * 2**53) << (bits - 53), bits) - mp.erfc(y / mp.sqrt(2)) * unit) < 2**17
        assert abs(exp(300 << bits, bits) / unit / mp.exp(300) - 1) < 2**14 / unit


@pytest.mark.parametrize("x", [0, Fraction(1, 3), 0.7, 5e-324, 44.25, 221.0, 222.5])
def test_the_threshold_of_exp(x: Any) -> None:
    with mp.workprec(2000):
        exact = mp.exp(-mpf(Fraction(x).numerator) / Fraction(x).denominator) * mpf(2) ** 320
        assert reference.exp_threshold(Fraction(x)) == int(mp.floor(exact))


@pytest.mark.parametrize("sigma", [64.0, 97.3, 1000.5])
def test_the_shift_of_the_discrete_gaussian(sigma: float) -> None:
    """docs/noise-integers.md section 4: |x_k - (k - 1/2)(1 + 1/(24 sigma^2))| <= 0.53 / sigma^3 for y <= 5."""
    bits = 256
    unit, tail = mpf(2) ** bits, reference.discrete_gaussian(sigma).tail
    with mp.workprec(400):
        for k in [*range(1, 9), *range(9, int(5 * sigma), max(1, int(sigma / 9)))]:
            middle, slack = (k - mpf(0.5)) * (1 + 1 / (24 * mpf(sigma) ** 2)), mpf(0.53) / mpf(sigma) ** 3
            near, far = (gaussian_tail(int((middle + sign * slack) / sigma * unit), bits) for sign in (-1, 1))
            assert far + reference.ERROR < tail(k, bits) < near - reference.ERROR, k


def wide_value(row: np.ndarray, delta: Fraction) -> Fraction:
    """The polynomial of a row of the wide table, without rounding."""
    c0 = (int(row[0]) << 64) + int(row[1]) % 2**64
    powers = sum(int(c) * (64 * delta) ** k for k, c in enumerate(row[2:], 1))
    return Fraction(c0 + powers, 2**66)


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_the_wide_table_is_near_enough(law: str) -> None:
    """docs/noise-integers.md section 4: within 2^-65 of Q. A proof by the remainder, and points of every sixth row."""
    table, slack = wide_quantiles(law), 2.0**-65
    assert table.shape == (1280, 10)
    with mp.workprec(160):
        for number, row in list(enumerate(table))[::6]:
            scale, middle = mpf(2) ** (number // 64 - 20), Fraction(2 * (64 + number % 64) + 1, 128)
            of = quantile_tables._quantile_derivatives(law)
            left = scale * (mpf(middle.numerator) / middle.denominator - mpf(2) ** -7)
            remainder = abs(of(left)[1][8]) * scale**9 * mpf(2) ** -63 / mp.factorial(9)
            q, derivatives = of(left + scale * mpf(2) ** -7)
            exact = [q, *(d * scale**k / mp.factorial(k) for k, d in enumerate(derivatives[:8], 1))]
            c0 = (int(row[0]) << 64) + int(row[1]) % 2**64
            stored = [c0, *(int(c) * 2 ** (6 * k) for k, c in enumerate(row[2:], 1))]
            wrong = sum(
                abs(mpf(c) / 2**66 - e) * mpf(2) ** (-7 * k) for k, (c, e) in enumerate(zip(stored, exact, strict=True))
            )
            assert wrong + remainder < slack, number
            u = scale * (mpf(middle.numerator) / middle.denominator + mpf(2) ** -8)
            got = wide_value(row, Fraction(1, 256))
            assert abs(mpf(got.numerator) / got.denominator - of(u)[0]) < slack


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("scale", [2.0**23, 2.0**30.3, 2.0**40])
def test_the_wide_step(kernels: ModuleType, law: str, scale: float) -> None:
    """With every sample left to it: those it closes are the reference's; and it closes almost all."""
    rows, factor, offset, _, *wide = _integers._quantile_arguments(law, scale)
    out = np.zeros(300, np.int64)
    opened = kernels.signed_by_quantile(out, KEY, rows, factor, offset, -1.0, *wide)
    assert len(opened) <= 1
    expected = signed_integers(law, scale, 300)
    assert [z for i, z in enumerate(out.tolist()) if i not in dict(opened)] == [
        z for i, z in enumerate(expected) if i not in dict(opened)
    ]


# --- Backends against the reference -----------------------------------------------------------------------------------


def signed(law: str) -> Callable[..., Any]:
    return {"gaussian": noise.discrete_gaussian, "laplace": noise.discrete_laplace, "skellam": noise.skellam}[law]


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("scale", SCALES)
def test_signed_integers_equal_the_reference(kernels: ModuleType, law: str, scale: float) -> None:
    size = 200 if scale > 100 or WITHOUT_JIT else 1500
    got = signed(law)(size, scale, source=OneKey())
    assert got.dtype == np.int64
    assert got.tolist() == signed_integers(law, scale, size)


@pytest.mark.parametrize("variance", [2.0**-1022, 0.01, 1.0, 50.5, 4000.0])
def test_skellam_equals_the_reference(kernels: ModuleType, variance: float) -> None:
    size = 200 if WITHOUT_JIT else 1500
    assert noise.skellam(size, variance, source=OneKey()).tolist() == signed_integers("skellam", variance, size)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(kernels: ModuleType, size: int) -> None:
    assert noise.discrete_gaussian(size, 2.0, source=OneKey()).tolist() == signed_integers("gaussian", 2.0, size)
    decided = decisions(KEY, size, reference.probability_threshold(Fraction(1, 3)))
    assert noise.bernoulli(size, Fraction(1, 3), source=OneKey()).tolist() == decided
    assert noise.poisson_mask(size, Fraction(1, 3), source=OneKey()).tolist() == decided
    integers = uniform_integers(KEY, size, -5, 95)
    assert noise.uniform_integers(size, -5, 95, source=OneKey()).tolist() == integers
    assert noise.permutation(size, source=OneKey()).tolist() == permutation(KEY, size)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0, 1),
        (-(2**63), -(2**63) + 7),
        (2**63 - 10, 2**63),
        (0, 2**32),
        (-5, 2**32 - 5 + 1),
        (0, 2**52 + 17),
        (-(2**62) - 1, 2**62 - 1),
        (-(2**63), 0),
        (0, 2**63),
        (-3, 2**63 - 4),
    ],
)
def test_uniform_integers_equal_the_reference(kernels: ModuleType, low: int, high: int) -> None:
    got = noise.uniform_integers(300, low, high, source=OneKey())
    assert got.dtype == np.int64
    assert got.tolist() == uniform_integers(KEY, 300, low, high)


@pytest.mark.parametrize("x", [0, 0.0, 1e-300, 0.5, Fraction(1, 3), 3, 44.0, 221.0, 1e300])
def test_bernoulli_exp_equals_the_reference(kernels: ModuleType, x: Any) -> None:
    expected = decisions(KEY, 300, reference.exp_threshold(Fraction(x)))
    got = noise.bernoulli_exp((3, 100), x, source=OneKey())
    assert got.dtype == np.bool_
    assert got.shape == (3, 100)
    assert got.reshape(-1).tolist() == expected


def test_values_do_not_depend_on_threads_or_size(kernels: ModuleType, threads: Any) -> None:
    size = 300 if WITHOUT_JIT else 50_001
    calls: list[Callable[[int], Any]] = [
        lambda n: noise.discrete_gaussian(n, 3.0, source=OneKey()),
        lambda n: noise.discrete_laplace(n, 2.0**20, source=OneKey()),
        lambda n: noise.uniform_integers(n, 0, 2**40, source=OneKey()),
        lambda n: noise.bernoulli(n, 0.25, source=OneKey()),
    ]
    for call in calls:
        seen = set()
        for count in (1, 2, 5):
            threads(count)
            seen.add(call(size).tobytes())
        assert len(seen) == 1
        assert call(size)[: size - 1].tobytes() == call(size - 1).tobytes()


def test_backends_agree_on_many() -> None:
    size = 300 if WITHOUT_JIT else 200_000
    calls: list[Callable[[], Any]] = [
        *(lambda s=s: noise.discrete_gaussian(size, s, source=OneKey()) for s in (0.7, 63.0, 64.0, 3000.0)),
        *(lambda s=s: noise.discrete_laplace(size, s, source=OneKey()) for s in (0.7, 63.0, 64.0, 3000.0)),
        lambda: noise.permutation(size, source=OneKey()),
        lambda: noise.uniform_integers(size, -7, 2**61, source=OneKey()),
    ]
    for call in calls:
        results = set()
        for name in ("native", "numba"):
            with aisec_fast.use_backend(name):
                results.add(call().tobytes())
        assert len(results) == 1


# --- What a word leaves open ------------------------------------------------------------------------------------------


def number(digits: list[int]) -> int:
    value = 0
    for digit in digits:
        value = value << 64 | digit
    return value


@pytest.mark.parametrize("index", [0, 77, 299])
@pytest.mark.parametrize("step", [-1, 0, 1])
def test_a_decision_at_its_threshold(kernels: ModuleType, index: int, step: int) -> None:
    """The threshold is sample `index`'s own number, and one unit below and above it: the last bit decides."""
    own = number([random_words(KEY, 1, start=index)[0], *refinement(KEY, RAW, index)[:4]])
    mask = noise.bernoulli(300, Fraction(own + step, 2**320), source=OneKey())
    assert mask[index] == (step == 1)
    assert mask.tolist() == decisions(KEY, 300, own + step)


def test_words_at_thresholds(kernels: ModuleType) -> None:
    """Thresholds are the words themselves, and those one below and above."""
    words = random_words(KEY, 300)
    some = sorted({u for i in range(0, 300, 7) for u in ((words[i] >> 1) + i % 3 - 1,)}, reverse=True)
    thresholds = np.array([*some, 0], np.uint64)
    for bits in (1, 6, 12):
        ends = [(c + 1) << (63 - bits) for c in range(2**bits)]
        guide = np.array([sum(t >= end for t in some) for end in ends], np.uint32)
        out = np.empty(300, np.int64)
        opened = kernels.signed_by_table(out, KEY, thresholds, guide)
        assert sorted(opened) == [(i, w) for i, w in enumerate(words) if w >> 1 in some]
        assert opened
        expected = [(-1) ** (w & 1) * sum(w >> 1 < t for t in some) for w in words]
        closed = np.ones(300, bool)
        closed[[i for i, _ in opened]] = False
        assert out[closed].tolist() == np.array(expected)[closed].tolist()


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_what_the_quantile_leaves_open(kernels: ModuleType, law: str) -> None:
    """A closed sample is the reference's; with no room between integers all are open, and come with their words."""
    rows, scale, offset, limit, *wide = _integers._quantile_arguments(law, 1000.3)
    size, expected = 300, signed_integers(law, 1000.3, 300)
    out = np.empty(size, np.int64)
    assert kernels.signed_by_quantile(out, KEY, rows, scale, offset, limit, *wide) == []
    assert out.tolist() == expected
    opened = kernels.signed_by_quantile(out, KEY, rows, scale, offset, 0.25, *wide)
    assert size / 4 < len(opened) < size * 3 / 4
    assert sorted(kernels.signed_by_quantile(out, KEY, rows, scale, offset, -1.0, *wide)) == list(
        enumerate(random_words(KEY, size))
    )


@pytest.mark.parametrize("scale", [64.0, 1000.3, 2.0**22])
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
def test_samples_closed_next_to_the_limit(law: str, scale: float) -> None:
    """Within 2^-10 of what stays open: a shift left out, or of the wrong sign, would decide many of these wrongly."""
    size = 1 << 15
    rows, factor, offset, limit, *wide = _integers._quantile_arguments(law, scale)
    out, wider = np.empty(size, np.int64), np.empty(size, np.int64)
    opened = dict(_core.signed_by_quantile(out, KEY, rows, factor, offset, limit, *wide))
    near = dict(_core.signed_by_quantile(wider, KEY, rows, factor, offset, limit - 2.0**-10, *wide))
    chosen = [i for i in near if i not in opened]
    assert len(chosen) > 30
    expected = [reference.signed_integer(near[i], refinement(KEY, RAW, i), LAWS[law](scale)) for i in chosen]
    assert out[chosen].tolist() == expected


def test_deep_samples_stay_open(kernels: ModuleType) -> None:
    """u < 2^-20 has its own rows, which the fast step does not use."""
    if WITHOUT_JIT:
        pytest.skip("needs millions of words")
    size = 1 << 22
    words = np.empty(size, np.uint64)
    _core.random_words(words, KEY, RAW)
    arguments = _integers._quantile_arguments("gaussian", 64.0)
    opened = {i for i, _ in kernels.signed_by_quantile(np.empty(size, np.int64), KEY, *arguments)}
    deep = np.flatnonzero(words < 2**44)
    assert deep.size
    assert set(deep.tolist()) <= opened
    assert len(opened) < deep.size + size * 2.0**-17  # near-ties: 2 E of them, E = 2^-18.9 here


def test_products_that_could_carry(kernels: ModuleType) -> None:
    words, bound = random_words(KEY, 300), 2**63 - 25
    out = np.empty(300, np.int64)
    opened = kernels.bounded_integers(out, KEY, 0, bound, 0, False)
    could = [(i, w) for i, w in enumerate(words) if (w * bound) >> 64 != (w * bound + bound - 1) >> 64]
    assert could
    assert sorted(opened) == could
    closed = np.setdiff1d(np.arange(300), [i for i, _ in opened])
    assert out[closed].tolist() == [words[i] * bound >> 64 for i in closed]


def test_wide_products_that_could_carry(kernels: ModuleType) -> None:
    """Bounds from continued fractions: multiples of a sample's 128 bits that fall just short of a whole number."""
    words, out, found = random_words(KEY, 200), np.empty(100, np.int64), 0
    for i in range(100):
        own = words[2 * i] << 64 | words[2 * i + 1]
        for bound in denominators(own, 2**128):
            short = -own * bound % 2**128
            if not 2**40 < bound <= 2**63 or short > 2**65:
                continue
            opened = kernels.bounded_integers(out, KEY, 0, bound, 0, True)
            could = own * bound >> 128 != (own * bound + bound - 1) >> 128
            assert opened == ([(i, *words[2 * i : 2 * i + 2])] if could else [])
            assert could or out[i] == own * bound >> 128
            found += could
    assert found > 3


def denominators(numerator: int, denominator: int) -> Iterator[int]:
    """Of the convergents of numerator / denominator."""
    before, this = 1, 0
    while denominator:
        quotient, rest = divmod(numerator, denominator)
        numerator, denominator = denominator, rest
        before, this = this, before + quotient * this
        yield this


class AllOpen:
    """Kernels that decide nothing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name == "shuffle":
            return _core.shuffle

        def leave_open(out: np.ndarray, key: bytes, *arguments: Any) -> list[tuple[int, ...]]:
            *_, wide, generator = arguments
            assert generator == "chacha"
            each = 2 if name == "bounded_integers" and wide else 1
            words = random_words(key, each * out.size)
            return [(i, *words[each * i : each * (i + 1)]) for i in range(out.size)]

        return leave_open


def test_open_samples_are_decided_as_by_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = _integers._backend(np.empty(0))._replace(integers=AllOpen())
    monkeypatch.setattr(_integers, "_backend", lambda _: backend)
    n = 40
    for low, high in ((-3, 97), (-5, 2**40)):
        got = noise.uniform_integers(n, low, high, source=OneKey())
        assert got.tolist() == uniform_integers(KEY, n, low, high)
    assert noise.permutation(n, source=OneKey()).tolist() == permutation(KEY, n)
    expected = decisions(KEY, n, reference.exp_threshold(Fraction(1, 2)))
    assert noise.bernoulli_exp(n, 0.5, source=OneKey()).tolist() == expected
    for scale in (3.0, 2.0**30):
        signed_ones = reference.signed_integers(KEY, n, reference.discrete_laplace(scale))
        assert noise.discrete_laplace(n, scale, source=OneKey()).tolist() == signed_ones


def test_steps_of_a_shuffle_that_lead_nowhere(kernels: ModuleType) -> None:
    with pytest.raises(IndexError, match=r"^places holds a step beyond"):
        kernels.shuffle(np.array([0, 2, 0]), 0, 3)


@pytest.mark.parametrize(
    ("law", "parameter", "k"),
    [("gaussian", 3.0, 2), ("gaussian", 90.0, 100), ("laplace", 0.5, 40), ("skellam", 9.0, 5)],
)
def test_the_last_bit_decides(law: str, parameter: float, k: int) -> None:
    """u one unit of 2^-319 below and above T(k): its bits stand in w and e_0, ..., e_3, the highest first."""
    below = LAWS[law](parameter).tail(k, 768) >> (768 - reference.SIGNED_BITS)
    for u, expected in ((below, k), (below + 1, k - 1)):
        w = (u >> 256) << 1
        extra = [u >> shift & (2**64 - 1) for shift in (192, 128, 64, 0)]
        assert reference.signed_integer(w, extra, LAWS[law](parameter)) == expected
        assert reference.signed_integer(w + 1, extra, LAWS[law](parameter)) == -expected


def test_u_of_zero() -> None:
    """All bits 0 count as one unit of 2^-319: the largest value there is."""
    for w in (0, 1):
        got = reference.signed_integer(w, [0] * 8, reference.discrete_gaussian(100.0))
        assert abs(got) == 2087
        assert (got < 0) == (w == 1)
    assert reference.signed_integer(0, [0] * 8, reference.discrete_laplace(0.5)) == 110


# --- Laws -------------------------------------------------------------------------------------------------------------


def chi_square(count: np.ndarray, mass: np.ndarray) -> float:
    """The p-value of counts; cells that expect fewer than 10 are put together from the end."""
    expected = mass * count.sum()
    while len(expected) > 2 and expected[-1] < 10:
        expected = np.append(expected[:-2], expected[-2:].sum())
        count = np.append(count[:-2], count[-2:].sum())
    return float(stats.chisquare(count, expected).pvalue)


N = 1 << 20


@pytest.mark.parametrize(
    ("law", "parameter"),
    [
        *(("gaussian", sigma) for sigma in (0.3, 1.0, 7.7, 63.9, 64.0, 300.0)),
        *(("laplace", scale) for scale in (0.2, 1.0, 20.0, 64.0, 300.0)),
        *(("skellam", variance) for variance in (0.1, 2.0, 400.0)),
    ],
)
def test_small_scales_follow_the_law(law: str, parameter: float) -> None:
    """Chi-square over every integer against the exact masses."""
    z = signed(law)(N, parameter, source=noise.SeededSource(17))
    spread = math.sqrt(parameter) if law == "skellam" else parameter
    reach = int(16 * spread) + 10
    with mp.workdps(30):
        one_sided = np.array([float(m) for m in masses(law, parameter, reach)])
    assert np.abs(z).max() <= reach
    # From the middle outwards: 0, 1, -1, 2, -2, ...
    order = np.where(z > 0, 2 * z - 1, -2 * z)
    mass = np.append(one_sided[:1], np.repeat(one_sided[1:], 2))
    assert chi_square(np.bincount(order, minlength=mass.size), mass / mass.sum()) > FALSE_ALARM


@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("scale", [1000.5, 2.0**20.7, 2.0**30])
def test_large_scales_follow_the_law(law: str, scale: float) -> None:
    """Kolmogorov-Smirnov against the continuous law, within 1/(2 scale) of it; low bits and neighbours by chi-square."""
    size = N if scale < 2**25 else N // 64
    z = signed(law)(size, scale, source=noise.SeededSource(23))
    exact = stats.norm(scale=scale) if law == "gaussian" else stats.laplace(scale=scale)
    jitter = np.random.default_rng(1).random(size) - 0.5
    assert stats.kstest(z + jitter, exact.cdf).pvalue > FALSE_ALARM
    assert stats.chisquare(np.bincount(z & 63, minlength=64)).pvalue > FALSE_ALARM
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) * math.sqrt(size) < 4.9


@pytest.mark.parametrize("scale", [2.0**36, 2.0**40])
def test_the_largest_scales_follow_the_law(scale: float) -> None:
    for function, exact in ((noise.discrete_gaussian, stats.norm), (noise.discrete_laplace, stats.laplace)):
        z = function(4000, scale, source=noise.SeededSource(29))
        assert stats.kstest(z, exact(scale=scale).cdf).pvalue > FALSE_ALARM
        assert stats.chisquare(np.bincount(z & 15, minlength=16)).pvalue > FALSE_ALARM


def test_tiny_scales_are_zero() -> None:
    for scale in (2.0**-1022, 0.01):
        assert not noise.discrete_gaussian(10_000, scale, source=noise.SeededSource(1)).any()
        assert not noise.discrete_laplace(10_000, scale, source=noise.SeededSource(1)).any()
    assert not noise.skellam(10_000, 2.0**-1022, source=noise.SeededSource(1)).any()


def test_large_skellam_is_a_sum() -> None:
    """Variance 2^21 takes two parts: Kolmogorov-Smirnov against the normal law it is close to (within 1e-4)."""
    z = noise.skellam(100_000, 2.0**21, source=noise.SeededSource(31))
    assert stats.kstest(z, stats.norm(scale=2**10.5).cdf).pvalue > FALSE_ALARM
    parts = noise.SeededSource(31)
    first, second = (noise.skellam(100_000, 2.0**20, source=parts) for _ in range(2))
    assert (z == first + second).all()


@pytest.mark.parametrize("bound", [3, 10, 1000])
def test_uniform_integers_are_uniform(bound: int) -> None:
    z = noise.uniform_integers(N, 0, bound, source=noise.SeededSource(5))
    assert stats.chisquare(np.bincount(z, minlength=bound)).pvalue > FALSE_ALARM


def test_a_bound_that_does_not_divide_the_words() -> None:
    """3 2^61: a remainder of words (w mod bound) would hit the lowest third of the range twice as often."""
    bound = 3 * 2**61
    z = noise.uniform_integers(N, 0, bound, source=noise.SeededSource(6))
    assert stats.chisquare(np.bincount(z // 2**61, minlength=3)).pvalue > FALSE_ALARM
    assert stats.chisquare(np.bincount(z % 3, minlength=3)).pvalue > FALSE_ALARM


def test_permutations_are_uniform() -> None:
    source = noise.SeededSource(7)
    count = 24_000
    places = [noise.permutation(4, source=source) @ [64, 16, 4, 1] for _ in range(count)]
    found = np.unique(places, return_counts=True)[1]
    assert found.size == 24
    assert stats.chisquare(found).pvalue > FALSE_ALARM


def test_a_permutation_has_everything_once() -> None:
    size = 3000 if WITHOUT_JIT else 1_000_003
    p = noise.permutation(size, source=noise.SeededSource(8))
    assert (np.sort(p) == np.arange(size)).all()
    assert stats.kstest((p[: size // 2] + 0.5) / size, "uniform").pvalue > FALSE_ALARM
    assert abs(np.corrcoef(p, np.arange(size))[0, 1]) * math.sqrt(size) < 4.9


def test_a_permutation_is_shuffled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noise.permutation(1000, source=OneKey())
    monkeypatch.setattr(_integers, "_SHUFFLED_AT_ONCE", 7)
    assert (noise.permutation(1000, source=OneKey()) == whole).all()


@pytest.mark.parametrize("p", [0, 1, Fraction(1, 3), 0.001, 0.5, 1 - 2.0**-53])
def test_rates(p: Any) -> None:
    mask = noise.poisson_mask(N, p, source=noise.SeededSource(9))
    deviation = math.sqrt(N * p * (1 - p))
    assert abs(mask.sum() - N * p) <= 4.9 * deviation + (0 < p < 1)
    chance = noise.bernoulli_exp(N, 0.7, source=noise.SeededSource(9)).mean() - math.exp(-0.7)
    assert abs(chance) < 4.9 * 0.5 / math.sqrt(N)


# --- Calls ------------------------------------------------------------------------------------------------------------


def test_shapes(kernels: ModuleType) -> None:
    for shape in (3, (), (0,), (2, 0, 3), (2, 3, 4)):
        assert noise.discrete_gaussian(shape, 1.0).shape == ((shape,) if isinstance(shape, int) else shape)
        assert noise.bernoulli(shape, 0.5).shape == ((shape,) if isinstance(shape, int) else shape)
    assert noise.discrete_gaussian(np.int32(3), np.float32(1.0)).shape == (3,)  # type: ignore[arg-type]


def test_each_call_takes_one_key() -> None:
    for call in (
        lambda s: noise.discrete_gaussian(5, 1.0, source=s),
        lambda s: noise.discrete_laplace(5, 100.0, source=s),
        lambda s: noise.skellam(5, 1.0, source=s),
        lambda s: noise.uniform_integers(5, 0, 9, source=s),
        lambda s: noise.permutation(5, source=s),
        lambda s: noise.bernoulli(5, 0.5, source=s),
        lambda s: noise.bernoulli(5, 1, source=s),
        lambda s: noise.bernoulli_exp(5, 0, source=s),
        lambda s: noise.poisson_mask(5, 0, source=s),
    ):
        source = OneKey()
        call(source)
        assert source.calls == 1


def test_the_default_source_and_forced_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(noise.permutation(50).tolist())) == 50
    monkeypatch.setenv("AISEC_FAST_BACKEND", "cuda")
    assert noise.poisson_mask(5, 1).all()  # drawn on the CPU whatever the backend


VALUES: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    *(
        (lambda s, f=f, v=v: f(5, v, source=s), ValueError, rf"^{name} is {said}")
        for f, name, most in (
            (noise.discrete_gaussian, "sigma", 40),
            (noise.discrete_laplace, "scale", 40),
            (noise.skellam, "variance", 26),
        )
        for v, said in (
            (0, "0.0, expected a number above 0"),
            (-1.5, "-1.5, expected a number above 0"),
            (math.nan, "nan"),
            (math.inf, "inf"),
            (10**400, "inf"),
            (5e-324, rf"5e-324, expected 2\^-1022 to 2\^{most}"),
            (2.0**40.001, rf"\d*.*, expected 2\^-1022 to 2\^{most}"),
        )
    ),
    (lambda s: noise.discrete_gaussian(5, "1", source=s), TypeError, "^sigma is a str, expected a real number"),
    (lambda s: noise.discrete_gaussian(5, True, source=s), TypeError, "^sigma is a bool"),
    (lambda s: noise.discrete_laplace(5, np.ones(2), source=s), TypeError, "^scale is an ndarray"),
    (lambda s: noise.discrete_gaussian(-1, 1.0, source=s), ValueError, "^shape is -1, expected at least 0"),
    (lambda s: noise.discrete_gaussian(1.5, 1.0, source=s), TypeError, "^shape is a float, expected an integer"),
    (lambda s: noise.discrete_gaussian((2, -3), 1.0, source=s), ValueError, r"^shape\[1\] is -3"),
    (lambda s: noise.discrete_gaussian((2, "3"), 1.0, source=s), TypeError, r"^shape\[1\] is a str"),
    (
        lambda s: noise.discrete_gaussian([2, 3], 1.0, source=s),
        TypeError,
        "^shape is a list, expected an integer or a tuple",
    ),
    (lambda s: noise.discrete_gaussian(True, 1.0, source=s), TypeError, "^shape is a bool"),
    (lambda s: noise.discrete_gaussian(2**60, 1.0, source=s), MemoryError, "^shape is 1152921504606846976"),
    (lambda s: noise.discrete_gaussian((2**40, 2**40), 1.0, source=s), MemoryError, r"^shape is \(10995"),
    (lambda s: noise.permutation(2**70, source=s), MemoryError, "^size is 11805"),
    (lambda s: noise.random_words(2**62, source=s), MemoryError, "^size is 46116"),
    (lambda s: noise.discrete_laplace(3, Fraction(1, 3), source=s), ValueError, "^scale is 1/3, which is no float64"),
    (
        lambda s: noise.bernoulli(3, np.longdouble(1) / 3, source=s),
        ValueError,
        "^probability is 0.3+, which is no float64",
    ),
    (lambda s: noise.permutation(-1, source=s), ValueError, "^size is -1"),
    (lambda s: noise.permutation((2,), source=s), TypeError, "^size is a tuple"),
    (lambda s: noise.poisson_mask(1.0, 0.5, source=s), TypeError, "^size is a float"),
    (lambda s: noise.poisson_mask(5, 1.5, source=s), ValueError, "^rate is 1.5, expected 0 to 1"),
    (lambda s: noise.poisson_mask(5, -1e-9, source=s), ValueError, "^rate is -1e-09, expected 0 to 1"),
    (lambda s: noise.poisson_mask(5, math.nan, source=s), ValueError, "^rate is nan"),
    (lambda s: noise.poisson_mask(5, False, source=s), TypeError, "^rate is a bool"),
    (lambda s: noise.bernoulli(5, Fraction(4, 3), source=s), ValueError, "^probability is 4/3, expected 0 to 1"),
    (lambda s: noise.bernoulli(5, "0.5", source=s), TypeError, "^probability is a str"),
    (lambda s: noise.bernoulli_exp(5, -0.5, source=s), ValueError, "^x is -0.5, expected 0 or above"),
    (lambda s: noise.bernoulli_exp(5, math.inf, source=s), ValueError, "^x is inf, expected a finite"),
    (lambda s: noise.uniform_integers(5, 3, 3, source=s), ValueError, "^high is 3, expected above low, which is 3"),
    (lambda s: noise.uniform_integers(5, 3, 2, source=s), ValueError, "^high is 2, expected above low"),
    (lambda s: noise.uniform_integers(5, 0.0, 2, source=s), TypeError, "^low is a float, expected an integer"),
    (lambda s: noise.uniform_integers(5, 0, True, source=s), TypeError, "^high is a bool"),
    (lambda s: noise.uniform_integers(5, 0, 2**63 + 1, source=s), ValueError, "^high is 9223372036854775809"),
    (lambda s: noise.uniform_integers(5, -(2**63) - 1, 0, source=s), ValueError, "^low is -9223372036854775809"),
    (lambda s: noise.uniform_integers(5, -1, 2**63, source=s), ValueError, r"^high .* low \+ 2\^63, and low is -1"),
]


@pytest.mark.parametrize(("call", "error", "message"), VALUES)
def test_wrong_calls_draw_nothing(call: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    source = OneKey()
    with pytest.raises(error, match=message):
        call(source)
    assert source.calls == 0


def test_a_wrong_source() -> None:
    with pytest.raises(TypeError, match=r"^source is an int"):
        noise.discrete_gaussian(5, 1.0, source=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _core.signed_by_table(np.zeros(3), KEY, T, G), TypeError, "out has another dtype"),
        (lambda: _core.signed_by_table(Z, KEY, T[:1], G), ValueError, "thresholds must end with 0"),
        (lambda: _core.signed_by_table(Z, KEY, T[:0], G), ValueError, "thresholds must end with 0"),
        (lambda: _core.signed_by_table(Z, KEY, T, G[:3]), ValueError, "guide must have"),
        (lambda: _core.signed_by_table(Z, KEY, T, G + np.uint32(9)), ValueError, "guide leads beyond"),
        (lambda: _core.signed_by_table(Z, KEY[:5], T, G), ValueError, "key has 5 bytes"),
        (lambda: _core.signed_by_quantile(Z, KEY, np.zeros(8), *Q[1:]), ValueError, "rows has 8 values"),
        (lambda: _core.signed_by_quantile(Z, KEY, *Q[:4], Z, *Q[5:]), ValueError, "wide has 3 values"),
        (lambda: _core.signed_by_quantile(Z, KEY, *Q[:5], 2.0**41, 0.0), ValueError, "exact_scale"),
        (lambda: _core.decisions(Z, KEY, 5), TypeError, "out has another dtype"),
        (lambda: _core.bounded_integers(Z, KEY, 0, 5, 1, True), ValueError, "growth"),
        (lambda: _core.shuffle(Z, 2, 1), ValueError, "first and last"),
        (lambda: _core.shuffle(Z, 0, 4), ValueError, "first and last"),
    ],
)
def test_the_kernels_guard_their_arrays(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


Q = _integers._quantile_arguments("laplace", 2.0**30)
Z, T, G = np.zeros(3, np.int64), np.array([5, 0], np.uint64), np.zeros(4, np.uint32)


@pytest.mark.skipif(not _core.has_aes(), reason="this CPU has no instructions for AES")
def test_a_secure_source_draws_from_aes() -> None:
    class Known(noise.SecureSource):
        def next_key(self) -> bytes:
            return KEY

    words = np.array(random_words(KEY, 300, RAW, generator="aes"), np.uint64)
    assert noise.poisson_mask(300, 0.25, source=Known()).tolist() == (words < 2**62).tolist()
    expected = [reference.bounded_integer([int(w)], refinement(KEY, RAW, i), 10) for i, w in enumerate(words)]
    assert noise.uniform_integers(300, 0, 10, source=Known()).tolist() == expected
