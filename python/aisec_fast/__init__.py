"""aisec_fast: the fast engine under privacy and robustness work in machine learning.

Submodules are loaded when first used: ``noise`` (exact, float-safe Gaussian and Laplace noise), ``clipping``
(per-sample gradients), ``ghost`` (their norms, without them), ``privacy`` (DP-SGD for torch), ``accounting`` (epsilon), ``audit``
(what a training really leaked), ``adversarial`` (attacks on models), ``hashing`` (BLAKE3, SHA-256) and ``integrity`` (manifests of model folders). ``import aisec_fast`` itself imports numpy
and nothing heavier.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._backends import get_num_threads, info, set_num_threads, use_backend
from ._errors import (
    AisecFastError,
    BackendError,
    BudgetError,
    FileChangedError,
    ManifestError,
    PrivacyError,
    UnsupportedFileError,
    UnsupportedModuleError,
)

if TYPE_CHECKING:
    from . import accounting, adversarial, audit, clipping, ghost, hashing, integrity, noise, privacy

    __version__: str

_SUBMODULES = ("accounting", "adversarial", "audit", "clipping", "ghost", "hashing", "integrity", "noise", "privacy")

__all__ = [
    "AisecFastError",
    "BackendError",
    "BudgetError",
    "FileChangedError",
    "ManifestError",
    "PrivacyError",
    "UnsupportedFileError",
    "UnsupportedModuleError",
    "__version__",
    "accounting",
    "adversarial",
    "audit",
    "clipping",
    "get_num_threads",
    "ghost",
    "hashing",
    "info",
    "integrity",
    "noise",
    "privacy",
    "set_num_threads",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__version__":
        return importlib.import_module(f"{__name__}._backends").version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
