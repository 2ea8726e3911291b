"""The Numba backend: the same bits as the native kernels where only a Python install is possible.

Imported on first use only, because importing numba takes a good part of a second.
"""
