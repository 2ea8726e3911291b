"""The CUDA kernels and their launches, compiled by g++ and run on the CPU: one more backend for the contract tests.

Each family has the functions of `aisec_fast._core`, on numpy arrays, bfloat16 as uint16. The first call of each
compiles for some seconds; the result is kept in the temporary folder until a source changes.
"""

from . import adversarial, clipping, ghost, hashing, noise, update

__all__ = ["adversarial", "clipping", "ghost", "hashing", "noise", "update"]
