"""Values as PostgreSQL takes them: texts that it cannot hold as they are, and whole columns as binary arrays.

Law: `unescape(escape(text)) == text` for every text, and two texts are equal exactly when they are equal escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct, pack
from typing import ClassVar

import psycopg
from psycopg.adapt import AdaptersMap, Dumper
from psycopg.pq import Format

#: PostgreSQL holds no NUL, and UTF-8 no lone surrogate.
_UNHOLDABLE = re.compile("[\\\\\x00\ud800-\udfff]")
_ESCAPED = re.compile(r"\\(\\|u[0-9a-f]{4})")


def escape(text: str) -> str:
    """The text with what a column cannot hold, and every backslash, replaced."""
    if "\\" not in text and text.isprintable():
        return text
    return _UNHOLDABLE.sub(lambda found: r"\\" if found[0] == "\\" else f"\\u{ord(found[0]):04x}", text)


def unescape(text: str) -> str:
    """The counterpart of `escape`."""
    if "\\" not in text:
        return text
    return _ESCAPED.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), text)


def escape_some(text: str | None) -> str | None:
    """`escape`, for what may be missing."""
    return None if text is None else escape(text)


_length = Struct("!i").pack
_long = Struct("!iq").pack
_double = Struct("!id").pack
_NULL = _length(-1)
_TRUE, _FALSE = _length(1) + b"\x01", _length(1) + b"\x00"


@lru_cache(512)
def _head(element_oid: int, count: int) -> bytes:
    """Dimensions, whether there may be nulls, the type; then how many, and the number of the first."""
    return pack("!iiIii", 1, 1, element_oid, count, 1)


class Array:
    """A column: an array in PostgreSQL's binary form, made in one go."""

    __slots__ = ("body",)
    element_oid: ClassVar[int]
    oid: ClassVar[int]

    def __init__(self, count: int, items: bytes) -> None:
        self.body = _head(self.element_oid, count) + items


class Texts(Array):
    """Texts, escaped already."""

    element_oid, oid = 25, 1009

    def __init__(self, values: Sequence[str | None]) -> None:
        parts: list[bytes] = []
        for value in values:
            if value is None:
                parts.append(_NULL)
            else:
                encoded = value.encode()
                parts += (_length(len(encoded)), encoded)
        super().__init__(len(values), b"".join(parts))


class Blobs(Array):
    """Byte strings."""

    element_oid, oid = 17, 1001

    def __init__(self, values: Sequence[bytes | None]) -> None:
        parts: list[bytes] = []
        for value in values:
            if value is None:
                parts.append(_NULL)
            else:
                parts += (_length(len(value)), value)
        super().__init__(len(values), b"".join(parts))


class Longs(Array):
    """Whole numbers of 64 bits."""

    element_oid, oid = 20, 1016

    def __init__(self, values: Sequence[int | None]) -> None:
        super().__init__(len(values), b"".join([_NULL if value is None else _long(8, value) for value in values]))


class Doubles(Array):
    """Floating-point numbers, exactly."""

    element_oid, oid = 701, 1022

    def __init__(self, values: Sequence[float | None]) -> None:
        super().__init__(len(values), b"".join([_NULL if value is None else _double(8, value) for value in values]))


class Flags(Array):
    """Truth values."""

    element_oid, oid = 16, 1000

    def __init__(self, values: Sequence[bool]) -> None:
        super().__init__(len(values), b"".join([_TRUE if value else _FALSE for value in values]))


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.body


def register(adapters: AdaptersMap) -> None:
    """Let a cursor of somebody else's connection take arrays; all that are opened from now on do."""
    for kind in (Texts, Blobs, Longs, Doubles, Flags):
        adapters.register_dumper(kind, type(f"{kind.__name__}Dumper", (_ArrayDumper,), {"oid": kind.oid}))


register(psycopg.adapters)  # the types are this module's own
