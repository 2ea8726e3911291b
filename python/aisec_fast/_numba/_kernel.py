"""How every function of this backend is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile on first use, cached on disk, running without the GIL.

    No fastmath: LLVM then neither reorders nor contracts floating-point operations. `error_model="numpy"` drops the
    branches that would raise ZeroDivisionError and with them what keeps loops from being vectorised.
    """
    return _compile(function, {"nogil": True, "error_model": "numpy"})


def inlined(function: F) -> F:
    """Compile a piece of a kernel: LLVM puts it into its callers whatever its size, so that loops around it vectorise."""
    return _compile(function, {"nogil": True, "error_model": "numpy", "forceinline": True})


def _compile(function: F, options: dict[str, Any]) -> F:
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return cast(F, numba.njit(**options)(function))
