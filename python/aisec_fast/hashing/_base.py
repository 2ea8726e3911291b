"""What the public hashers derive from in an installation without native kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

PORTABLE: dict[type, type] = {}  # the class behind each public class


class Base:
    """Makes the portable hasher of a public class, as the native types do where another backend is forced."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> Self:
        made: Self = object.__new__(PORTABLE.get(cls, cls))
        return made
