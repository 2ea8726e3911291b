"""Cases of the clipping family: per-sample gradients [B, D] in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from aisec_fast import clipping, noise
from aisec_fast._reference import clipping as reference
from aisec_fast._reference import noise as noise_reference

from ._kernels import Array, DifferenceError, Operation, Peers, close, contenders, has, same_bits
from ._measure import Case, Contender, FloorPart

_ROWS, _MANY_ROWS = 64, 256  # of a batch of less than 2^26 values, and of others
_BOUND = _MULTIPLIER = 1.0
_SEED = 7
_CHECKED = 192  # noisy values compared with the big-integer reference, about a millisecond each
_REFERENCE_VALUES = 2**22  # above this the float64 reference would take longer than the measurement


def cases(sizes: list[int], threads: list[int]) -> Iterator[Case]:
    """``per_sample_norms``, ``clip_and_sum`` and ``private_sum``."""
    for operation in ("per_sample_norms", "clip_and_sum", "private_sum"):
        for size in sizes:
            rows = _ROWS if size < 2**26 else _MANY_ROWS
            shape = (rows, size // rows)
            for count in threads:
                yield Case("clipping", operation, shape, "float32", count, size, 4, partial(_prepare, operation, shape))


def _prepare(name: str, shape: tuple[int, int]) -> tuple[list[Contender], list[FloorPart]]:
    grads = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    exact, near = _checks(name, grads)
    plain = name != "private_sum"
    peers: Peers = {peer: (call, near, plain) for peer, call in _peers(name, grads).items()}

    def on_gpu(there: Any) -> Peers:
        return {"torch": (_torch(name, there), near, plain)}

    return contenders(Operation(partial(_call, name), exact, peers, peers_on_gpu=on_gpu), grads, reads=1)


def _call(name: str, grads: Any) -> Callable[[], Any]:
    if name == "per_sample_norms":
        return lambda: clipping.per_sample_norms(grads)
    if name == "clip_and_sum":
        return lambda: clipping.clip_and_sum(grads, _BOUND)[0]
    source = noise.SeededSource(_SEED)  # so that the first call can be checked; a SecureSource costs the same
    return lambda: clipping.private_sum(grads, _BOUND, _MULTIPLIER, source=source)


def _checks(name: str, grads: Array) -> tuple[Callable[[Array], str], Callable[[Array], str]]:
    """How our result is compared, and a peer's: float32 sums in another order, so within (D + B) 2^-24 of the largest."""
    sample = grads if grads.size <= _REFERENCE_VALUES else grads[:4]
    tolerance = 2.0**-24 * (grads.shape[0] + grads.shape[1])
    if name == "per_sample_norms":
        expected = reference.row_norms([sample]).astype(np.float32)
        return same_bits(expected), lambda result: close(expected, tolerance)(result[: len(sample)])
    if name == "clip_and_sum":
        if grads.size <= _REFERENCE_VALUES:
            expected = reference.clip_and_sum([grads], _BOUND)[0][0]
            return same_bits(expected), close(expected, tolerance)
        total = _float64_sum(grads)
        return close(total, 1e-6), close(total, tolerance)
    total = _float64_sum(grads)

    def noisy(result: Array) -> str:
        # Noise of standard deviation 1: |mean of squares - 1| stays within 8 standard errors (false alarm below 1e-14).
        error = ((result.astype(np.float64) - total) ** 2).mean() - 1.0
        bound = 8.0 * np.sqrt(2.0 / total.size) + 0.01
        if abs(error) > bound:
            raise DifferenceError(f"variance of the noise is off by {error:.3g}, allowed {bound:.3g}")
        return "moments"

    return _exact_release(grads) if grads.size <= _REFERENCE_VALUES else noisy, noisy


def _exact_release(grads: Array) -> Callable[[Array], str]:
    """The first values of the first release: lattice integers and noise by the references, to the bit."""
    spacing = clipping.lattice_granularity(_BOUND, _MULTIPLIER)
    integers = reference.lattice_sum([grads], _BOUND, spacing)[0][0][:_CHECKED]
    key = noise.SeededSource(_SEED).next_key()
    drawn = noise_reference.gaussian_integers(key, _MULTIPLIER * _BOUND / spacing, 0, integers.size)
    return same_bits(((integers + np.array(drawn)).astype(np.float64) * spacing).astype(np.float32))


def _float64_sum(grads: Array) -> Array:
    norms = np.sqrt(np.einsum("ij,ij->i", grads, grads, dtype=np.float64))
    factors = np.minimum(1.0, _BOUND / norms)
    total = np.zeros(grads.shape[1])
    for factor, row in zip(factors, grads, strict=True):
        total += factor * row
    return total


def _peers(name: str, grads: Array) -> dict[str, Callable[[], Any]]:
    generator = np.random.default_rng(1)

    def norms() -> Array:
        return np.sqrt(np.einsum("ij,ij->i", grads, grads))

    def clipped_sum() -> Array:
        return np.minimum(_BOUND / norms(), np.float32(1)) @ grads

    def noisy_sum() -> Array:
        return clipped_sum() + generator.standard_normal(grads.shape[1], dtype=np.float32)

    found = {"numpy": {"per_sample_norms": norms, "clip_and_sum": clipped_sum, "private_sum": noisy_sum}[name]}
    if has("torch"):
        import torch

        found["torch"] = _torch(name, torch.from_numpy(grads))
    return found


def _torch(name: str, grads: Any) -> Callable[[], Any]:
    """The operation as one writes it in torch, where ``grads`` lives."""
    import torch

    def norms() -> Any:
        return torch.linalg.vector_norm(grads, dim=1)

    def clipped() -> Any:
        return (_BOUND / norms()).clamp(max=1) @ grads

    def noisy() -> Any:
        return clipped().add_(torch.empty(grads.shape[1], device=grads.device).normal_(0, 1))

    return {"per_sample_norms": norms, "clip_and_sum": clipped, "private_sum": noisy}[name]
