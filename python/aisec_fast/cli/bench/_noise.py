"""Cases of the noise family: noise added in place to float32 values, and integers drawn.

Rows of our backends draw from a SeededSource (ChaCha12), so that their first call can be compared with the reference, and do
without the look for values that do not fit. The row "SecureSource" is what private use gets on this machine: the default
backend, its generator, and that look. "normal_" is torch's: it writes unsafe noise over the values and adds nothing. It is
the yardstick of every row of this family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from aisec_fast import noise
from aisec_fast._reference import integers
from aisec_fast._reference import noise as reference

from ._kernels import Array, DifferenceError, Operation, Peers, contenders, has, same_bits
from ._measure import Case, Contender, FloorPart

Source: TypeAlias = noise.SecureSource | noise.SeededSource

YARDSTICK = "normal_"
_SCALE = 1.0  # no effect on time; the ratio scale / granularity may have one
_DISCRETE_SIGMA = 100.0
_CHECKED = 192  # samples compared with the big-integer reference, which takes about a millisecond for each
_SEED = 7
_ALWAYS_SIZE = 2**24  # of the variants, beside the largest size


@dataclass(frozen=True)
class _Variant:
    """One row: a public function, the granularity (None: the default), and whether it is the float mode."""

    function: str
    granularity: float | None = None
    exact: bool = True

    def add(self, x: Any, out: Any, source: Source) -> Any:
        check = None if isinstance(source, noise.SecureSource) else False
        return getattr(noise, self.function)(
            x, _SCALE, granularity=self.granularity, exact=self.exact, out=out, source=source, check=check
        )


_PLAIN = {"add_gaussian": _Variant("add_gaussian"), "add_laplace": _Variant("add_laplace")}
_COARSE = {
    "add_gaussian_s256": _Variant("add_gaussian", 2.0**-8),  # sigma / granularity = 2^8
    "add_gaussian_s1024": _Variant("add_gaussian", 2.0**-10),
}
_FLOAT = {
    "add_gaussian_float": _Variant("add_gaussian", exact=False),
    "add_laplace_float": _Variant("add_laplace", exact=False),
}
VARIANTS = (*_COARSE, *_FLOAT, "discrete_gaussian")


def cases(sizes: list[int], threads: list[int]) -> Iterator[Case]:
    """``add_gaussian`` and ``add_laplace`` on vectors of every size, their variants on the largest and on 2^24 values."""
    large = [size for size in sizes if size in (max(sizes), _ALWAYS_SIZE)]
    for operation, variant in (_PLAIN | _COARSE | _FLOAT).items():
        for size in sizes if operation in _PLAIN else large:
            for count in threads:
                prepare = partial(_prepare, operation, variant, size)
                yield Case("noise", operation, (size,), "float32", count, size, 8, prepare)
    for size in large:
        for count in threads:
            prepare = partial(_prepare_discrete, size)
            yield Case("noise", "discrete_gaussian", (size,), "int64", count, size, 8, prepare)


def _prepare(name: str, variant: _Variant, size: int) -> tuple[list[Contender], list[FloorPart]]:
    values = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    variance = 1.0 if variant.function == "add_gaussian" else 2.0
    near = _moments(values, variance)
    peers: Peers = {"SecureSource": (_call(variant, noise.SecureSource(), values), near, variant.exact)}
    for peer, call in (_peers(variant.function, values) if name in _PLAIN else {}).items():
        peers[peer] = (call, near, peer == "opendp")
    peers |= _yardstick(size)

    def on_gpu(there: Any) -> Peers:
        added = {"torch": (_torch(there.clone()), near, False)} if name == "add_gaussian" else {}
        return added | _yardstick(size, there.device)

    def ours(x: Any) -> Callable[[], Any]:
        return _call(variant, noise.SeededSource(_SEED), x)

    operation = Operation(ours, _expected(variant, values), peers, variant.exact, on_gpu)
    return contenders(operation, values, updates=1)


def _call(variant: _Variant, source: Source, values: Any) -> Callable[[], Any]:
    """The first call starts from the values; later ones go on in place."""
    data = values.clone() if hasattr(values, "clone") else values.copy()
    return lambda: variant.add(data, data, source)


def _prepare_discrete(size: int) -> tuple[list[Contender], list[FloorPart]]:
    def call(source: Source) -> Callable[[], Any]:
        return lambda: noise.discrete_gaussian(size, _DISCRETE_SIGMA, source=source)

    law, key = integers.discrete_gaussian(_DISCRETE_SIGMA), noise.SeededSource(_SEED).next_key()
    expected = np.array(integers.signed_integers(key, min(_CHECKED, size), law), np.int64)
    moments = _moments(np.zeros(1), _DISCRETE_SIGMA**2)
    peers: Peers = {"SecureSource": (call(noise.SecureSource()), moments, True)}
    operation = Operation(lambda _: call(noise.SeededSource(_SEED)), same_bits(expected), peers | _yardstick(size))
    return contenders(operation, np.zeros(size, np.int64), writes=1, on_devices=False)


def _expected(variant: _Variant, values: Array) -> Callable[[Array], str]:
    """The first samples of the first call, to the bit."""
    spacing = variant.granularity or noise.default_granularity(_SCALE)
    count, key = min(_CHECKED, values.size), noise.SeededSource(_SEED).next_key()
    law = variant.function.removeprefix("add_")
    if variant.exact:
        expected = getattr(reference, f"add_{law}")(values[:count], _SCALE, spacing, key)
    else:
        expected = getattr(reference, f"add_float_{law}")(values[:count], _SCALE, key)

    def check(result: Array) -> str:
        if result[:count].tobytes() != expected.tobytes():
            raise DifferenceError(f"the first {count} samples differ from the reference")
        return "bits"

    return check


def _moments(values: Array, variance: float) -> Callable[[Array], str]:
    """A peer's noise has no defined bits: mean and variance within 8 standard errors (false alarm below 1e-14)."""

    def check(result: Array) -> str:
        drawn = (result.astype(np.float64) - values)[: 2**20]  # values: the same shape, or one value
        bound = 8.0 * np.sqrt(6.0 * variance**2 / drawn.size)  # Laplace's fourth moment is the larger: 6 variance^2
        if abs(drawn.mean()) > bound or abs((drawn**2).mean() - variance) > 4.0 * bound:
            raise DifferenceError(f"mean {drawn.mean():.3g}, variance {drawn.var():.3g}, expected 0 and {variance}")
        return "moments"

    return check


def _yardstick(size: int, device: Any = "cpu") -> Peers:
    """``normal_`` of torch on float32 values, if torch is there."""
    if not has("torch"):
        return {}
    import torch

    tensor = torch.empty(size, device=device)
    return {YARDSTICK: (lambda: tensor.normal_(0, _SCALE), _moments(np.zeros(1), _SCALE**2), False)}


def _peers(name: str, values: Array) -> dict[str, Callable[[], Any]]:
    generator = np.random.default_rng(1)
    data, drawn = values.copy(), np.empty_like(values)
    found: dict[str, Callable[[], Any]] = {}
    if name == "add_gaussian":
        found["numpy"] = lambda: np.add(data, generator.standard_normal(out=drawn, dtype=np.float32), out=data)
    else:
        found["numpy"] = lambda: np.add(data, generator.laplace(0, _SCALE, data.size), out=data, casting="same_kind")
    if has("torch") and name == "add_gaussian":
        import torch

        found["torch"] = _torch(torch.from_numpy(values.copy()))
    if has("opendp") and values.size <= 2**16:
        found["opendp"] = _opendp(name, values)
    return found


def _torch(tensor: Any) -> Callable[[], Any]:
    drawn = tensor.clone()
    return lambda: tensor.add_(drawn.normal_(0, _SCALE))


def _opendp(name: str, values: Array) -> Callable[[], Any]:
    """OpenDP's float-safe vector mechanism: microseconds a sample, so on small sizes only."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    domain = dp.vector_domain(dp.atom_domain(T=float, nan=False), size=values.size)
    make, metric = (
        (dp.m.make_gaussian, dp.l2_distance(T=float))
        if name == "add_gaussian"
        else (dp.m.make_laplace, dp.l1_distance(T=float))
    )
    mechanism, data = make(domain, metric, scale=_SCALE), values.astype(np.float64).tolist()
    return lambda: np.array(mechanism(data))
