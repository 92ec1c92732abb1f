"""Users' own classes: how they come back, how they may change, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum
from types import ModuleType
from typing import Any, Generic, NamedTuple, Optional, TypeVar

import attrs
import msgspec
import pydantic
import pytest

from durable.codec import TaggedJson
from durable.errors import DecodeError, NotStorableError

T = TypeVar("T")
CODEC = TaggedJson()


@dataclass
class Item:
    sku: str
    price: Decimal = Decimal(0)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    number: int
    items: list[Item] = field(default_factory=list)
    due: date | None = None


@dataclass
class Noisy:
    count: int
    scale: InitVar[int] = 1
    total: int = field(init=False)
    constant: int = field(init=False, default=7)

    def __post_init__(self, scale: int) -> None:
        self.total = self.count * scale
        self.note = "beyond the fields"
        self.made = getattr(self, "made", 0) + 1

    @functools.cached_property
    def derived(self) -> list[int]:
        return [self.count]


@dataclass(slots=True)
class Unfilled:
    later: int = field(init=False)


@dataclass
class Box(Generic[T]):
    item: T


class SlottedBase:
    __slots__ = ("__private", "unset")

    def fill(self) -> None:
        self.__private = 5

    def filled(self) -> int:
        return self.__private


@dataclass
class Derived(SlottedBase):
    name: str


@attrs.define
class Part:
    name: str
    _weight: float = 1.5
    labels: set[str] = attrs.field(factory=set)


@attrs.frozen(cache_hash=True, slots=False)
class Key:
    name: str
    number: int = attrs.field(default=3, validator=attrs.validators.gt(0))


class Row(msgspec.Struct, frozen=True):
    number: int
    price: Decimal = Decimal(0)


class Adjusting(msgspec.Struct):
    number: int

    def __post_init__(self) -> None:
        self.number += 1


class User(pydantic.BaseModel):
    name: str
    born: date | None = None
    _secret: int = pydantic.PrivateAttr(default=3)

    @pydantic.field_validator("name")
    @classmethod
    def _shout(cls, name: str) -> str:
        return name + "!"

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @functools.cached_property
    def size(self) -> int:
        return len(self.name)


class Open(pydantic.BaseModel, extra="allow", frozen=True):
    items: tuple[Decimal, ...] = ()


class Root(pydantic.RootModel[list[int]]):
    pass


class Place(NamedTuple):
    x: int
    y: int = 0


class Level(Enum):
    LOW = 1


RECORDS: list[object] = [
    Item("a"),
    Item("a", Decimal("1.10"), ("x",)),
    Order(number=1, items=[Item("b")], due=date(2026, 1, 2)),
    Box([1, (2,)]),
    Box(Box(None)),
    Part("n", 2.0, {"a"}),
    Key("k"),
    Row(1, Decimal("2.50")),
    User(name="Ann", born=date(2000, 1, 1)),
    User(name="Bob"),
    Open(items=(Decimal("1.0"),), more={"a": (1,)}),  # type: ignore[call-arg]
    Root([1, 2]),
    Place(1),
]


@pytest.mark.parametrize("value", RECORDS, ids=lambda value: type(value).__name__)
def test_record_comes_back(value: object) -> None:
    """Each kind of class survives with its exact type and field types, and the bytes are stable."""
    encoded = CODEC.encode([value, {"k": value}])
    decoded = CODEC.decode(encoded)
    assert decoded == [value, {"k": value}]
    assert type(decoded[0]) is type(value)  # type: ignore[index]
    assert repr(decoded[0]) == repr(value)  # type: ignore[index]
    assert CODEC.encode(decoded) == encoded


def test_dataclass_is_restored_without_running_its_code() -> None:
    """Neither __init__ nor __post_init__ runs; init=False fields and further attributes come back as they were."""
    noisy = Noisy(2, scale=10)
    assert noisy.derived == [2]
    restored: Any = CODEC.decode(CODEC.encode(noisy))
    assert restored == noisy
    assert (restored.total, restored.note, restored.made) == (20, "beyond the fields", 1)
    assert "derived" not in vars(restored)
    assert restored.derived == [2]


def test_slots_without_value_and_private_slots_survive() -> None:
    """State in slots of a plain base class is state, and an unset slot stays unset."""
    assert not hasattr(CODEC.decode(CODEC.encode(Unfilled())), "later")
    value = Derived("n")
    value.fill()
    restored: Any = CODEC.decode(CODEC.encode(value))
    assert (restored.name, restored.filled(), hasattr(restored, "unset")) == ("n", 5, False)


def test_generic_alias_does_not_get_in_the_way() -> None:
    """`Box[int](1)` carries typing's note of its argument, which is no part of the value."""
    assert CODEC.decode(CODEC.encode(Box[int](1))) == Box(1)


def test_pydantic_state_is_kept_and_validators_do_not_run_again() -> None:
    """A validator that changes its input would change it once more at each replay."""
    user = User(name="Ann")
    user._secret = 9
    assert user.size == 4
    restored: Any = CODEC.decode(CODEC.encode(user))
    assert (restored.name, restored._secret, restored.model_fields_set) == ("Ann!", 9, {"name"})
    assert CODEC.canonical(User(name="A", born=None)) == CODEC.canonical(User(name="A"))


def test_struct_gets_its_stored_fields_back_after_post_init() -> None:
    """msgspec runs __post_init__; what was stored wins."""
    value = Adjusting(1)
    assert value.number == 2
    assert CODEC.decode(CODEC.encode(value)) == value


def test_cached_hash_of_attrs_is_not_stored() -> None:
    """A string's hash differs between processes, so that a stored one would lose the key in its dict."""
    key = Key("k")
    hash(key)
    assert str(hash(key)).encode() not in CODEC.encode(key)
    assert CODEC.decode(CODEC.encode({key: 1})) == {Key("k"): 1}


@pytest.fixture
def module() -> Iterator[ModuleType]:
    made = ModuleType("codec_sample_module")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def define(module: ModuleType, name: str, *fields: Any, **options: Any) -> Any:
    made = dataclasses.make_dataclass(name, fields, **options)
    made.__module__ = module.__name__
    setattr(module, name, made)
    return made


def test_field_gained_since_gets_its_default(module: ModuleType) -> None:
    """A payload from before the field reads as if the default had been stored; without one the error names the field."""
    encoded = CODEC.encode(define(module, "Thing", "a")(1))
    new = define(module, "Thing", "a", ("b", int, 5), ("c", list, field(default_factory=list)))
    assert CODEC.decode(encoded) == new(1, 5, [])
    define(module, "Thing", "a", "z")
    with pytest.raises(DecodeError, match="field 'z' without a default"):
        CODEC.decode(encoded)


def test_field_lost_since_is_named(module: ModuleType) -> None:
    """Dropping a stored field in silence would be a change; so it is an error."""
    encoded = CODEC.encode(define(module, "Thing", "a", "b")(1, 2))
    define(module, "Thing", "a")
    with pytest.raises(DecodeError, match="no field 'b' any more"):
        CODEC.decode(encoded)


@pytest.mark.parametrize(
    "value", [Item("a"), Part("a"), Row(1), User(name="a"), Place(1)], ids=lambda v: type(v).__name__
)
def test_every_kind_fills_defaults_and_names_lost_and_missing_fields(value: Any) -> None:
    """The rule for changed classes is one for all kinds."""
    encoded = CODEC.encode(value)
    first = next(iter(CODEC_FIELDS[type(value)]))
    gone = encoded.replace(f'"{first}":'.encode(), b'"zzz":')
    with pytest.raises(DecodeError, match="zzz"):
        CODEC.decode(gone)
    node: Any = msgspec.json.decode(encoded)
    for name in list(node["v"])[1:]:
        del node["v"][name]
    assert CODEC.decode(msgspec.json.encode(node)) == value
    del node["v"][first]
    with pytest.raises(DecodeError, match=first):
        CODEC.decode(msgspec.json.encode(node))


CODEC_FIELDS: dict[type, tuple[str, ...]] = {
    Item: ("sku",),
    Part: ("name",),
    Row: ("number",),
    User: ("name",),
    Place: ("x",),
}


def test_class_renamed_moved_or_not_imported_is_named(module: ModuleType) -> None:
    """The error says which class, and what brings it back; an alias under the old name does."""
    thing = define(module, "Thing", "a")
    encoded = CODEC.encode(thing(1))
    del module.Thing  # type: ignore[attr-defined]
    with pytest.raises(DecodeError, match=r"'codec_sample_module:Thing'.*renamed, moved or deleted"):
        CODEC.decode(encoded)
    module.Thing = Item  # type: ignore[attr-defined]
    with pytest.raises(DecodeError, match="no field 'a'"):
        CODEC.decode(encoded)
    module.Thing = Level  # type: ignore[attr-defined]
    with pytest.raises(DecodeError, match="of kind 'dataclass'"):
        CODEC.decode(encoded)
    with pytest.raises(DecodeError, match="'absent' is not imported"):
        CODEC.decode(encoded.replace(b"codec_sample_module", b"absent"))


def test_local_class_needs_a_hint_that_mentions_it() -> None:
    """A class inside a function has no path; the hint of the place that reads is the one way to it."""

    @dataclass
    class Inner:
        a: int

    @dataclass
    class Local:
        inner: Inner
        level: int = 1

    class Shade(Enum):
        DARK = 1

    with pytest.raises(NotStorableError, match=r"result\[0\].*inside a function.*type hint"):
        CODEC.encode([Local(Inner(1))], label="result")
    for hint in (list[Local | Inner], Optional[dict[str, tuple[Local, Inner]]], (Local, Inner)):  # noqa: UP045 - the older spelling is a hint too
        assert CODEC.decode(CODEC.encode([Local(Inner(1))], hint), hint) == [Local(Inner(1))]
    assert CODEC.decode(CODEC.encode(Shade.DARK, Shade), Shade) is Shade.DARK
    with pytest.raises(DecodeError, match="inside a function"):
        CODEC.decode(CODEC.encode(Inner(1), Inner))


def test_hint_of_a_global_class_reaches_its_fields_classes() -> None:
    """Classes are found through the field annotations of those in the hint."""
    a = dataclasses.make_dataclass("A", [("x", int)])
    b = dataclasses.make_dataclass("B", [("a", list[a])])  # type: ignore[valid-type]
    a.__module__ = b.__module__ = "codec_module_that_is_not_imported"
    assert CODEC.decode(CODEC.encode(b([a(1)]), list[b]), b) == b([a(1)])  # type: ignore[valid-type]
