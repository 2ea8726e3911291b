"""Compare the native integers with an independent truth, sample by sample, and record the count.

    python benchmarks/evidence/exactness.py --samples 100000000     10^8 of each law, minutes on one core
    python benchmarks/evidence/exactness.py --source secure         the same with AES's words where the CPU has it
    python benchmarks/evidence/exactness.py --samples 1000000 --model   a model of the contract instead of the kernels

The truth (docs/noise.md section 3): sample i owns word w; bit 0 is its sign, the other 63 bits and then the refinement words
are u; |Z| is the number of k >= 1 with u < F((k - 1/2) / s). So a claimed |Z| = n is right if and only if

    F((n + 1/2) / s) <= u < F((n - 1/2) / s)        (the right side only if n >= 1)

Neither the kernels' tables nor their resolver are used. F is evaluated in float64 by Taylor's series, degree 7, around the
nearest multiple of 2^-7, with coefficients from mpmath. Relative errors, h = 2^-53, y = (n -+ 1/2) / s, y <= 7 (Gaussian) or 32:

    remainder of the series      below 2^-54; `table` computes a bound for every row and refuses a larger one
    coefficients, Horner         below 4 h: the terms after the first are at most 2^-5 of it, each with a few h
    rounding of y                below h y |F'/F| <= h y (y + 1) <= 56 h (Gaussian: |F'/F| <= y + 1), h y <= 32 h (Laplace)
    float64 from the word        h

Together below 62 h < 2^-47. A sample is accepted if the inequalities hold with room for 2^-46 of F, and for the 2^-63 that
u may gain from further bits. All others (one in millions at the default granularity), and those beyond the table, go to
mpmath with 120 digits and all 319 bits of u, whose refinement block comes from the ChaCha12 below, written after RFC 8439.

The comparison first has to find errors planted in every law: |Z| off by one either way, and a wrong sign. Exit code 1 if a
sample differs.
"""

from __future__ import annotations

import argparse
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
from mpmath import mp, mpf
from numpy.typing import NDArray
from scipy import special

from aisec_fast import _core, noise, set_num_threads

DOMAINS = {"gaussian": 1, "laplace": 2}
REACH = {"gaussian": 7, "laplace": 32}  # of the table, in units of the law's scale
ROWS_PER_UNIT, DEGREE = 128, 7
REMAINDER, MARGIN = 2.0**-54, 2.0**-46
CHUNK = 2**19
ENOUGH = 1000  # samples that differ: then the run ends
# s and its share of the samples: the default granularity's range, small ones, and one where ties come close.
SHARES = {
    2.0**20: 0.2,
    1437000.7: 0.2,
    2.0**21 - 1: 0.2,
    1.0: 0.09,
    6.3: 0.09,
    2.0**8: 0.09,
    1000.3: 0.09,
    2.0**30: 0.04,
}
LARGEST, LARGEST_SAMPLES = 2.0**40, 1000  # here nearly every sample goes to mpmath


# --- F, fast --------------------------------------------------------------------------------------------------------


def exact_tail(law: str, y: mpf) -> mpf:
    return mp.erfc(y / mp.sqrt(2)) if law == "gaussian" else mp.exp(-y)


def hermite() -> list[list[int]]:
    """He_0, ..., He_DEGREE, lowest power first: He_(k+1) = x He_k - k He_(k-1)."""
    found = [[1], [0, 1]]
    for k in range(1, DEGREE):
        following = [0, *found[k]]
        for power, coefficient in enumerate(found[k - 1]):
            following[power] -= k * coefficient
        found.append(following)
    return found


def table(law: str) -> NDArray[np.float64]:
    """[DEGREE + 1, rows]: Taylor coefficients of F around multiples of 1 / ROWS_PER_UNIT; a bound of each remainder is checked."""
    rows = []
    half = mpf(1) / (2 * ROWS_PER_UNIT)
    polynomials = hermite()
    with mp.workdps(40):

        def density(y: mpf) -> mpf:
            return mp.sqrt(2 / mp.pi) * mp.exp(-y * y / 2)

        for row in range(REACH[law] * ROWS_PER_UNIT + 1):
            y = mpf(row) / ROWS_PER_UNIT
            value = exact_tail(law, y)
            left = max(y - half, mpf(0))
            if law == "gaussian":  # F^(k+1) = -(-1)^k He_k density
                higher = [-((-1) ** k) * mp.polyval(p[::-1], y) * density(y) for k, p in enumerate(polynomials)]
                largest = sum(abs(c) * (y + half) ** k for k, c in enumerate(polynomials[DEGREE])) * density(left)
            else:
                higher = [(-1) ** k * value for k in range(1, DEGREE + 1)]
                largest = exact_tail(law, left)
            if largest * half ** (DEGREE + 1) / mp.factorial(DEGREE + 1) > REMAINDER * exact_tail(law, y + half):
                raise SystemExit(f"{law}: the series around {y} is too short")
            derivatives = [value, *higher[:DEGREE]]
            rows.append([float(d / mp.factorial(k)) for k, d in enumerate(derivatives)])
    return np.ascontiguousarray(np.array(rows).T)


def fast_tail(coefficients: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """F(y) with the error stated above; NaN beyond the table."""
    row = np.rint(np.minimum(y * ROWS_PER_UNIT, coefficients.shape[1] - 1.0)).astype(np.int64)
    delta = y - row / ROWS_PER_UNIT  # exact
    value = coefficients[DEGREE][row]
    for k in range(DEGREE - 1, -1, -1):
        value = value * delta + coefficients[k][row]
    return np.where(y * ROWS_PER_UNIT <= coefficients.shape[1] - 1, value, np.nan)


# --- F, slow --------------------------------------------------------------------------------------------------------


def refinement(key: bytes, domain: int, index: int) -> list[int]:
    """e_0, ..., e_7 of a sample: the ChaCha12 block (domain, level 1, index)."""
    start = [*struct.unpack("<4I8I", b"expand 32-byte k" + key), index & 0xFFFFFFFF, index >> 32, domain, 1]
    x = list(start)

    def step(a: int, b: int, d: int, distance: int) -> None:
        x[a] = (x[a] + x[b]) & 0xFFFFFFFF
        mixed = x[d] ^ x[a]
        x[d] = (mixed << distance | mixed >> (32 - distance)) & 0xFFFFFFFF

    for double_round in range(6):
        del double_round
        for shift in (0, 1):  # columns, then diagonals
            for i in range(4):
                a, b, c, d = i, 4 + (i + shift) % 4, 8 + (i + 2 * shift) % 4, 12 + (i + 3 * shift) % 4
                step(a, b, d, 16)
                step(c, d, b, 12)
                step(a, b, d, 8)
                step(c, d, b, 7)
    out = [(one + other) & 0xFFFFFFFF for one, other in zip(x, start, strict=True)]
    return [out[2 * m] | out[2 * m + 1] << 32 for m in range(8)]


def right(law: str, s: float, word: int, extra: list[int], n: int) -> bool:
    """Whether |Z| = n, from all bits of u."""
    bits = word >> 1
    for one in extra[:4]:
        bits = bits << 64 | one
    with mp.workdps(120):
        u = mpf(max(bits, 1)) / mpf(2) ** 319
        above = n == 0 or u < exact_tail(law, (mpf(n) - 0.5) / mpf(s))
        return bool(above and u >= exact_tail(law, (mpf(n) + 0.5) / mpf(s)))


# --- Comparison -----------------------------------------------------------------------------------------------------


def wrong(
    law: str, s: float, coefficients: NDArray[np.float64], words: NDArray[np.uint64], z: NDArray[np.float64], key: bytes
) -> tuple[NDArray[np.int64], int]:
    """Places where z is not the sample of its word, and how many places needed mpmath."""
    n = np.abs(z)
    low = (words >> np.uint64(1)).astype(np.float64) * 2.0**-63  # u is at least this (to h) and less than 2^-63 more
    outer, inner = fast_tail(coefficients, (n + 0.5) / s), fast_tail(coefficients, np.maximum(n - 0.5, 0.0) / s)
    with np.errstate(invalid="ignore"):  # NaN: beyond the table, not decided
        sure = (low >= outer * (1 + MARGIN)) & ((n == 0) | (low + 2.0**-63 <= inner * (1 - MARGIN)))
    sign_is_wrong = (n > 0) & ((z < 0) != ((words & np.uint64(1)) == 1))
    doubtful = np.flatnonzero(~sure)
    differ: list[int] = []
    for i in doubtful.tolist():
        if not right(law, s, int(words[i]), refinement(key, DOMAINS[law], i), int(n[i])):
            differ.append(i)
        if len(differ) > ENOUGH:
            break  # something is wrong throughout; the rest would take hours
    return np.union1d(np.array(differ, np.int64), np.flatnonzero(sign_is_wrong)), doubtful.size


def drawn(
    law: str, s: float, size: int, key: bytes, generator: str, model: bool
) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Words of one key and the integers made from them."""
    words = np.empty(size, np.uint64)
    _core.random_words(words, key, DOMAINS[law], generator)
    if model:
        u = (words >> np.uint64(1)).astype(np.float64) * 2.0**-63
        q = np.sqrt(2) * special.erfcinv(u) if law == "gaussian" else -np.log(u)
        return words, np.where(words & np.uint64(1), -1.0, 1.0) * np.rint(s * q)
    # float32, which holds integers of small scales, has a way of its own there.
    z = np.empty(size, np.float32 if s <= 2.0**10 else np.float64)
    getattr(_core, f"add_{law}")(np.zeros_like(z), z, s, 1.0, key, generator)
    return words, z.astype(np.float64)


def planted(law: str, coefficients: NDArray[np.float64]) -> int:
    """Errors of three kinds in a model's samples, all of which must be found; returns their number."""
    count = 0
    for s in (6.3, 2.0**20):
        key = noise.SeededSource(1).next_key()
        words, z = drawn(law, s, 3000, key, "chacha", model=True)
        places = np.arange(0, z.size, 10)
        for bad in (z + np.copysign(1.0, z), z - np.copysign(1.0, z), -z):
            mixed = z.copy()
            mixed[places] = bad[places]
            expected = places[mixed[places] != z[places]]
            found, _ = wrong(law, s, coefficients, words, mixed, key)
            if found.tolist() != expected.tolist():
                raise SystemExit(f"{law}, s {s}: {expected.size} errors were planted, {found.size} found")
            count += expected.size
    return count


def plan(samples: int) -> Iterator[tuple[float, int]]:
    for s, share in SHARES.items():
        yield s, round(samples * share)
    yield LARGEST, min(LARGEST_SAMPLES, samples)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10**8, help="of each law")
    parser.add_argument("--source", choices=("seeded", "secure"), default="seeded")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-record", action="store_true", help="write no record")
    parser.add_argument("--model", action="store_true", help="check a numpy model of the contract; writes no record")
    arguments = parser.parse_args()
    set_num_threads(1)
    start = shown = time.perf_counter()
    source: Any = noise.SecureSource() if arguments.source == "secure" else noise.SeededSource(arguments.seed)
    generator = "aes" if source.any_generator and _core.has_aes() else "chacha"
    rows, first, found_errors = [], [], 0
    for law in DOMAINS:
        coefficients = table(law)
        found_errors += planted(law, coefficients)
        for s, size in plan(arguments.samples):
            row = {"law": law, "s": s, "samples": 0, "by_mpmath": 0, "differ": 0}
            while row["samples"] < size:
                key = source.next_key()
                words, z = drawn(law, s, min(CHUNK, size - row["samples"]), key, generator, arguments.model)
                differ, doubtful = wrong(law, s, coefficients, words, z, key)
                first += [{"law": law, "s": s, "word": hex(words[i]), "z": z[i]} for i in differ[:3]]
                for name, count in (("samples", z.size), ("by_mpmath", doubtful), ("differ", differ.size)):
                    row[name] += count
                if row["differ"] > ENOUGH:
                    print(row, first[:10])
                    return 1
                if time.perf_counter() - shown > 5:
                    shown = time.perf_counter()
                    print(f"{shown - start:5.0f} s  {law} s {s}: {row}", flush=True)
            rows.append(row)
            print(row, flush=True)
    total = {name: sum(row[name] for row in rows) for name in ("samples", "by_mpmath", "differ")}
    print(total, first[:10])
    if not (arguments.model or arguments.no_record):
        seed = arguments.seed if arguments.source == "seeded" else None
        findings = {
            "source": arguments.source,
            "generator": generator,
            "seed": seed,
            "planted_and_found": found_errors,
            "total": total,
        }
        path = record.write(
            f"exactness-{generator}", findings | {"rows": rows, "first": first[:10]}, time.perf_counter() - start
        )
        print("written to", path.relative_to(Path.cwd()))
    return 1 if total["differ"] else 0


if __name__ == "__main__":
    sys.exit(main())
