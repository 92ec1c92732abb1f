"""What is refused when it is stored, with path and advice; and the types that users register."""

from __future__ import annotations

import collections
import sys
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from durable.codec import TaggedJson
from durable.errors import ConfigError, DecodeError, NotStorableError

CODEC = TaggedJson()


@dataclass
class WithLock:
    name: str
    lock: Any = None


@dataclass
class Listing(list):  # type: ignore[type-arg]
    name: str = ""


@dataclass
class Item:
    sku: str


REFUSED: list[tuple[object, str]] = [
    (WithLock("n", threading.Lock()), r"result\.lock: type _thread\.lock"),
    (
        {"items": [1, WithLock("n", {"k": (object(),)})]},
        r"result\['items'\]\[1\]\.lock\['k'\]\[0\]: type builtins\.object",
    ),
    (type("Text", (str,), {})("x"), "is a subclass of str"),
    (type("Map", (dict,), {})(), "is a subclass of dict"),
    (Listing("x"), "derives from list"),
    (Item, "it is the class"),
    (ValueError("x"), "an exception"),
    (lambda: 1, "builtins.function"),
    (iter([1]), "an iterator"),
    ({1: {(2, object()): 3}}, r"result\[1\]\[\(2, <object"),
    ({3, object}, r"result\{element\}"),
    (sys, "builtins.module"),
]


@pytest.mark.parametrize(("value", "text"), REFUSED, ids=lambda case: type(case).__name__)
def test_what_is_not_storable_is_refused_by_path(value: object, text: str) -> None:
    """The error names the path and the type, and says what to do."""
    with pytest.raises(NotStorableError, match=text) as caught:
        CODEC.encode(value, label="result")
    assert str(caught.value).startswith("cannot store result")
    assert len(str(caught.value).split(". ")) >= 2
    with pytest.raises(NotStorableError):
        CODEC.canonical(value)
    assert CODEC.identity(value)


def test_namedtuple_and_counter_with_attributes_of_their_own_are_refused() -> None:
    """Attributes that no field shows would be lost."""
    counter = collections.Counter("a")
    counter.note = 1  # type: ignore[attr-defined]
    with pytest.raises(NotStorableError, match="attributes of its own"):
        CODEC.encode(counter)


def test_defaultdict_with_code_as_factory_is_refused() -> None:
    """A factory is stored by name, and only built-in types have one."""
    with pytest.raises(NotStorableError, match="default_factory is code"):
        CODEC.encode(collections.defaultdict(lambda: 1))


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    def __hash__(self) -> int:
        return hash(self.cents)


def test_registered_type_is_of_one_instance_only() -> None:
    """Another codec knows nothing of it, in both directions."""
    codec = TaggedJson()
    codec.register(Money, "test.money", lambda money: (money.cents,), lambda parts: Money(parts[0]))
    value = {"a": [Money(5)], Money(1): (Money(2**80),)}
    encoded = codec.encode(value)
    assert codec.decode(encoded) == value
    assert codec.canonical(value) == codec.canonical(dict(reversed(value.items())))
    with pytest.raises(DecodeError, match=r"unknown tag 'test\.money'"):
        TaggedJson().decode(encoded)
    with pytest.raises(NotStorableError):
        TaggedJson().encode(value)


def test_register_refuses_what_is_taken() -> None:
    """Neither a built-in type nor a known tag can be given another meaning."""
    codec = TaggedJson()
    with pytest.raises(ConfigError, match="stored already"):
        codec.register(dict, "x", list, dict)
    with pytest.raises(ConfigError, match="taken"):
        codec.register(Money, "tuple", str, Money)
    with pytest.raises(ConfigError, match="taken"):
        codec.register(Money, "?", str, Money)


def test_errors_of_registered_functions_are_payload_errors() -> None:
    """A bug in a registered function is told apart from one in durable."""
    codec = TaggedJson()
    codec.register(Money, "test.money", lambda money: money.cents // 0, lambda cents: Money(cents // 0))
    with pytest.raises(NotStorableError, match="ZeroDivisionError"):
        codec.encode([Money(1)])
    with pytest.raises(DecodeError, match="ZeroDivisionError"):
        codec.decode(b'{"$":"test.money","v":1}')
