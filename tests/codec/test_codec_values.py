"""What `TaggedJson` stores comes back with the same type, value and order, one case per value."""

from __future__ import annotations

import datetime as dt
import json
import math
import struct
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum, auto
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from uuid import UUID, uuid1
from zoneinfo import ZoneInfo

import pytest

from durable.codec import TaggedJson


class Color(Enum):
    RED = "r"
    CRIMSON = "r"  # an alias
    BLUE = (1, 2)


class Number(IntEnum):
    ONE = 1


class Word(StrEnum):
    YES = auto()


class Access(Flag):
    READ = auto()
    WRITE = auto()
    BOTH = READ | WRITE


class Bits(IntFlag):
    LOW = 1
    HIGH = 4


class Point(NamedTuple):
    x: int
    y: object = None


class Outer:
    class Inner(Enum):
        A = 1


def same(left: object, right: object) -> bool:
    """Equal in type, value and order, down to the bits of floats."""
    if type(left) is not type(right):
        return False
    match left:
        case float():
            return struct.pack(">d", left) == struct.pack(">d", right)  # type: ignore[arg-type]
        case complex():
            return same(left.real, right.real) and same(left.imag, right.imag)  # type: ignore[attr-defined]
        case Decimal():
            return left.as_tuple() == right.as_tuple()  # type: ignore[attr-defined]
        case dt.datetime() | dt.time():
            return repr(left) == repr(right)
        case dict():
            if isinstance(left, defaultdict) and left.default_factory is not right.default_factory:  # type: ignore[attr-defined]
                return False
            return same(list(left.items()), list(right.items()))  # type: ignore[attr-defined]
        case deque():
            return left.maxlen == right.maxlen and same(list(left), list(right))  # type: ignore[attr-defined,call-overload]
        case list() | tuple():
            return len(left) == len(right) and all(map(same, left, right))  # type: ignore[arg-type]
        case set() | frozenset():
            # Their order may differ, and that of the sets in them: look for a partner for each part.
            parts: set[object] = right  # type: ignore[assignment]
            return len(left) == len(parts) and all(any(same(one, other) for other in parts) for one in left)
    return left == right and (type(left) is int or repr(left) == repr(right))


MOMENT = dt.datetime(2026, 10, 25, 2, 30, 3, 456789)  # noqa: DTZ001 - naive on purpose
PARIS = ZoneInfo("Europe/Paris")
VALUES: list[object] = [
    None, True, False, 0, -1, 2**53 - 1, 2**53, -(2**63), 2**70, 10**700, -(10**5000), 16**4000 - 1,
    0.1, -0.0, 1e308, 5e-324, 1.0, math.inf, -math.inf, math.nan, -math.nan,
    "", "é\u0000\"\\\u2028", "\ud800", "a\udc80é", "\ud83d\ude00", "😀", "$", '"$"', "\\\ud800",
    [], [1, "a", None], [[[]]], [2**60, 1, 2, 3, 4, 5, 6, 7, 8, 9], [math.nan] * 10, list(range(20)), [1.5] * 20,
    {}, {"b": 1, "a": 2}, {"$": 1}, {"$": "tuple", "v": []}, {"a": {"$": {"$": 2}}}, {1: "a", "1": "b"},
    {None: 1, True: 2, 2: 3}, {(1, 2): 3, 1.5: 4, Number.ONE: 5}, {frozenset([1]): b""}, {"\ud800": 1, "\u0000": 2},
    {"a": 1, 2: [1, {3: 4}]}, {-0.0: 1}, {math.inf: 1},
    (), (1,), (1, (2, [3, (4,)])), set(), {1, 2}, {"b", "a"}, {1, "a", None, (1, 2)}, frozenset({1.5, b"x"}), {frozenset()},
    b"", b"\x00\xff", bytearray(b"ab"),
    Decimal("1.10"), Decimal("-0"), Decimal("NaN"), Decimal("sNaN12"), Decimal("-Infinity"), Decimal("1E+999999"),
    Fraction(-1, 3), Fraction(10**700, 7), 1j, complex(-0.0, math.nan), complex(math.inf, -0.0),
    UUID(int=5), uuid1(),
    MOMENT, MOMENT.replace(fold=1), MOMENT.replace(tzinfo=dt.UTC), MOMENT.replace(tzinfo=PARIS),
    MOMENT.replace(tzinfo=PARIS, fold=1), MOMENT.replace(tzinfo=ZoneInfo("UTC")),
    MOMENT.replace(tzinfo=dt.timezone(dt.timedelta(hours=-5, minutes=-30, seconds=-7, microseconds=-9))),
    MOMENT.replace(tzinfo=dt.timezone(dt.timedelta(0), "UTC")), MOMENT.replace(tzinfo=dt.timezone(dt.timedelta(hours=1), "X")),
    MOMENT.replace(tzinfo=dt.UTC, fold=1), MOMENT.replace(year=1), MOMENT.replace(year=9999), dt.date(1, 1, 1), MOMENT.date(), dt.time(),
    dt.time(1, 2, 3, 4, fold=1), dt.time(1, tzinfo=dt.UTC), dt.time(1, tzinfo=PARIS),
    dt.timedelta(days=-1, microseconds=3), dt.timedelta.max, dt.timedelta(0),
    Path("/a/b"), Path(), PurePosixPath("a/../b"), PureWindowsPath("C:\\x"), Path("\udc80"),
    range(5), range(10**20, 0, -3), slice(1, None, "x"),
    Color.RED, Color.BLUE, Number.ONE, Word.YES, Access.READ, Access.BOTH, Access(0), Bits.LOW | Bits.HIGH, Bits(9), Bits(-2),
    Outer.Inner.A, Point(1), Point(1, [Point(2, (3,))]),
    OrderedDict(b=1, a=2), defaultdict(list, {"a": [1]}), defaultdict(None, {1: 2}), defaultdict(int), Counter("abca"),
    Counter({(1,): -2}), deque([1, 2]), deque([1], maxlen=3), deque(maxlen=0),
    ["a", ("b", {"c": {1, 2}}), {"d": [Decimal(1), {"e": Point(1, Color.RED)}]}],
]  # fmt: skip
NAMES = [f"{index}-{type(value).__name__}" for index, value in enumerate(VALUES)]


@pytest.mark.parametrize("value", VALUES, ids=NAMES)
def test_value_comes_back_exactly(value: object) -> None:
    """Type, value, order and bits survive; what is decoded encodes to the same bytes again."""
    codec = TaggedJson()
    encoded = codec.encode(value)
    decoded = codec.decode(encoded)
    assert same(value, decoded), (encoded, decoded)
    assert codec.encode(decoded) == encoded
    assert same(codec.decode(memoryview(encoded)), value)
    assert codec.canonical(decoded) == codec.canonical(value) == codec.identity(value)


@pytest.mark.parametrize("value", VALUES, ids=NAMES)
def test_value_comes_back_exactly_from_inside_others(value: object) -> None:
    """A value is stored inside containers as it is by itself."""
    codec = TaggedJson()
    nested = {"list": [value] * 10, "tuple": (value,), 3: value}
    assert same(codec.decode(codec.encode(nested)), nested)


def test_payload_is_json_that_others_read() -> None:
    """A plain value is plain JSON, and a lone surrogate is an escape rather than broken UTF-8."""
    codec = TaggedJson()
    assert codec.encode({"a": [1, 2.5, "é", None, True]}) == '{"a":[1,2.5,"é",null,true]}'.encode()
    assert codec.encode("\ud800é") == b'"\\ud800\xc3\xa9"'
    assert json.loads(codec.encode((1, 2**60))) == {"$": "tuple", "v": [1, {"$": "int", "v": str(2**60)}]}


def test_huge_integer_is_exact_under_every_digit_limit() -> None:
    """The interpreter's limit on decimal digits may differ between the process that writes and the one that reads."""
    codec = TaggedJson()
    before = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(0)
        encoded = codec.encode([10**639, 10**640, 10**9999])
        sys.set_int_max_str_digits(640)
        assert codec.decode(encoded) == [10**639, 10**640, 10**9999]
        assert codec.encode([10**639, 10**640, 10**9999]) == encoded
    finally:
        sys.set_int_max_str_digits(before)


def test_shared_part_is_stored_twice() -> None:
    """Sharing is not kept: the two places are equal, and no longer the same object."""
    shared = [1]
    first, second = TaggedJson().decode(TaggedJson().encode([shared, shared]))  # type: ignore[misc]
    assert first == second == [1]
    assert first is not second


def test_canonical_bytes_do_not_depend_on_order() -> None:
    """Equal dicts and sets have equal canonical bytes; order counts where equality says so, and types always."""
    codec = TaggedJson()
    assert codec.canonical({"a": 1, "b": {2, 1}}) == codec.canonical({"b": {1, 2}, "a": 1})
    assert codec.canonical({1: 2, (3,): 4}) == codec.canonical({(3,): 4, 1: 2})
    assert codec.canonical(Counter("ab")) == codec.canonical(Counter("ba"))
    assert codec.canonical(OrderedDict(a=1, b=2)) != codec.canonical(OrderedDict(b=2, a=1))
    assert codec.canonical(1) != codec.canonical(1.0) != codec.canonical(True)
    assert codec.canonical([1]) != codec.canonical((1,))


def test_identity_never_fails() -> None:
    """What cannot be stored becomes a marker of its type, and the storable parts still count."""
    codec = TaggedJson()

    class Local:
        pass

    class Hostile:
        def __await__(self) -> object:
            raise RuntimeError

    cycle: list[object] = []
    cycle.append(cycle)
    assert codec.identity((1, Local())) == codec.identity((1, Local()))
    assert codec.identity((1, Local())) != codec.identity((2, Local()))
    assert codec.identity((1, Local())) != codec.identity((1, Hostile()))
    assert codec.identity({"b": len, "a": 1}) == codec.identity({"a": 1, "b": len})
    assert codec.identity(cycle) != codec.identity([[]])
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    assert codec.identity(deep)


def test_identity_of_objects_that_all_refer_to_each_other_ends() -> None:
    """A graph is walked once per way without a repetition, not along every way to the depth limit."""
    nodes: list[list[object]] = [[] for _ in range(6)]
    for node in nodes:
        node.extend(nodes)
    assert TaggedJson().identity(nodes)
