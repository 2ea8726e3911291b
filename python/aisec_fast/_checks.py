"""Checks of plain arguments. Every message names the argument, what it was and what was expected."""

from __future__ import annotations

import math
import numbers

import numpy as np


def kind_of(value: object) -> str:
    """The type of a value as messages name it: "a str", "an int", "an ndarray"."""
    return with_article(type(value).__name__)


def with_article(name: str) -> str:
    """ "a str", "an int"; "a uint8", as it is spoken."""
    return f"{'an' if name[0] in 'aeioAEIO' or name == 'ndarray' else 'a'} {name}"


def real(value: object, name: str) -> float:
    """A finite real number as a float; TypeError or ValueError otherwise."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name} is {kind_of(value)}, expected a real number{_item(value, name)}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond float64
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}, expected a finite number")
    return number


def flag(value: object, name: str) -> bool:
    """True or False, Python's or numpy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {kind_of(value)}, expected a bool")
    return bool(value)


def positive(value: object, name: str) -> float:
    """A finite number above zero."""
    number = real(value, name)
    if number <= 0:
        raise ValueError(f"{name} is {number}, expected a number above 0")
    return number


def not_negative(value: object, name: str) -> float:
    """A finite number, zero or above."""
    number = real(value, name)
    if number < 0:
        raise ValueError(f"{name} is {number}, expected 0 or above")
    return number


def whole(value: object, name: str, least: int = 0) -> int:
    """An integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is {kind_of(value)}, expected an integer{_item(value, name)}")
    number = int(value)
    if number < least:
        raise ValueError(f"{name} is {number}, expected at least {least}")
    return number


def _item(value: object, name: str) -> str:
    """How to make a number of an array or tensor that holds one without a dimension."""
    return f": pass {name}.item()" if getattr(value, "shape", None) == () else ""


def probability(value: object, name: str) -> float:
    """A number strictly between 0 and 1."""
    number = real(value, name)
    if not 0 < number < 1:
        raise ValueError(f"{name} is {number}, expected a number between 0 and 1")
    return number
