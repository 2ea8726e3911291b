"""Cases of the noise family: in-place addition of noise to float32 values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from aisec_fast import noise
from aisec_fast._reference import noise as reference

from ._kernels import Array, DifferenceError, Operation, contenders, has
from ._measure import Case, Contender, FloorPart

_SCALE = 1.0  # no effect on time
_CHECKED = 192  # samples compared with the big-integer reference, which takes about a millisecond for each
_SEED = 7


def cases(sizes: list[int], threads: list[int]) -> Iterator[Case]:
    """``add_gaussian`` and ``add_laplace`` on vectors."""
    for operation in ("add_gaussian", "add_laplace"):
        for size in sizes:
            for count in threads:
                yield Case("noise", operation, (size,), "float32", count, size, 8, partial(_prepare, operation, size))


def _prepare(name: str, size: int) -> tuple[list[Contender], list[FloorPart]]:
    values = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    peers = {}
    for peer, call in _peers(name, values).items():
        peers[peer] = (call, _moments(values, 1.0 if name == "add_gaussian" else 2.0), peer == "opendp")
    return contenders(Operation(partial(_call, name), _exact(name, values), peers), values, updates=1)


def _call(name: str, values: Any) -> Callable[[], Any]:
    """The first call starts from the values with a seeded source, so that it can be checked; later ones go on in place.

    SecureSource and SeededSource cost the same: they differ in where the first key comes from.
    """
    add, source = getattr(noise, name), noise.SeededSource(_SEED)
    data = values.clone() if hasattr(values, "clone") else values.copy()
    return lambda: add(data, _SCALE, out=data, source=source, check=False)


def _exact(name: str, values: Array) -> Callable[[Array], str]:
    """The first samples of the first call, to the bit."""
    spacing = noise.default_granularity(_SCALE)
    count = min(_CHECKED, values.size)
    integers = reference.gaussian_integers if name == "add_gaussian" else reference.laplace_integers
    added = np.array(integers(noise.SeededSource(_SEED).next_key(), _SCALE / spacing, 0, count), np.int64)
    total = np.rint(values[:count].astype(np.float64) / spacing).astype(np.int64) + added
    expected = (total.astype(np.float64) * spacing).astype(np.float32)

    def check(result: Array) -> str:
        if result[:count].tobytes() != expected.tobytes():
            raise DifferenceError(f"the first {count} samples differ from the reference")
        return "bits"

    return check


def _moments(values: Array, variance: float) -> Callable[[Array], str]:
    """A peer's noise has no defined bits: mean and variance within 8 standard errors (false alarm below 1e-14)."""

    def check(result: Array) -> str:
        drawn = (result.astype(np.float64) - values)[: 2**20]
        bound = 8.0 * np.sqrt(6.0 * variance**2 / drawn.size)  # Laplace's fourth moment is the larger: 6 variance^2
        if abs(drawn.mean()) > bound or abs((drawn**2).mean() - variance) > 4.0 * bound:
            raise DifferenceError(f"mean {drawn.mean():.3g}, variance {drawn.var():.3g}, expected 0 and {variance}")
        return "moments"

    return check


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

        tensor, noise_of_torch = torch.from_numpy(values.copy()), torch.empty(values.shape)
        found["torch"] = lambda: tensor.add_(noise_of_torch.normal_(0, _SCALE))
    if has("opendp") and values.size <= 2**16:
        found["opendp"] = _opendp(name, values)
    return found


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
