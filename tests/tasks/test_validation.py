"""Annotations as checks: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import collections
import enum
import inspect
import subprocess
import sys
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    ParamSpec,
    Protocol,
    TypeVar,
    runtime_checkable,
)
from uuid import UUID, uuid4

import annotated_types
import attrs
import msgspec
import pydantic
import pytest
from typing_extensions import TypeAliasType, TypedDict

from durable.errors import ValidationError
from durable.tasks.validation import DEPTH_MAX, InputCheck, compile_check

T = TypeVar("T")
Bounded = TypeVar("Bounded", bound=int)
Chosen = TypeVar("Chosen", int, str)
P = ParamSpec("P")
UserId = NewType("UserId", int)
Whole = TypeAliasType("Whole", int | None)


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


@dataclass
class Item:
    qty: int
    tags: list[str] = field(default_factory=list)


@dataclass
class Order:
    items: list[Item]
    note: str = None  # type: ignore[assignment] # a default that does not fit is common
    parent: Order | None = None


@dataclass
class Slotted:
    value: int = field(init=False)


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Movie(TypedDict):
    title: str
    year: typing.NotRequired[int]


class Tree(TypedDict):
    branches: list[Tree]


class Partial(TypedDict, total=False):
    title: typing.Required[str]
    year: int


class Quacks(Protocol):
    def quack(self) -> str: ...


@runtime_checkable
class Closes(Protocol):
    def close(self) -> None: ...


class Box(Generic[T]):
    pass


class Model(pydantic.BaseModel):
    n: int


class GenericModel(pydantic.BaseModel, Generic[T]):
    n: T


@attrs.define
class Attrs:
    n: int


class Struct(msgspec.Struct):
    n: int


class Text(str):
    __slots__ = ()


ACCEPTED: list[tuple[object, object]] = [
    (Any, object()),
    (object, 1),
    (None, None),
    (int, 1),
    (int, Number.ONE),
    (float, 1.5),
    (float, 1),
    (complex, 1),
    (bool, True),
    (str, Text("x")),
    (bytes, b"x"),
    (date, datetime.now().astimezone()),
    (Decimal, Decimal(1)),
    (UUID, uuid4()),
    (Path, Path()),
    (int | None, None),
    (typing.Optional[int], 3),  # noqa: UP045 - the old spelling too
    (typing.Union[int, str], "x"),  # noqa: UP007
    (list, [1, "x"]),
    (typing.List, [1]),  # noqa: UP006
    (list[int], []),
    (list[int], [1, 2]),
    (set[str], {"x"}),
    (frozenset[int], frozenset({1})),
    (tuple, (1, "x")),
    (typing.Tuple, (1, 2)),  # noqa: UP006
    (tuple[int, str], (1, "x")),
    (tuple[int, ...], (1, 2, 3)),
    (tuple[()], ()),
    (tuple[int, *tuple[str, ...]], (1, "x")),
    (dict[str, int], {"x": 1}),
    (typing.Dict[str, int], {"x": 1}),  # noqa: UP006
    (Mapping[str, int], {"x": 1}),
    (collections.defaultdict[str, int], collections.defaultdict(int, x=1)),
    (collections.Counter[str], collections.Counter("xyz")),
    (Sequence[str], "text"),
    (Sequence[int], (1, 2)),
    (Iterable[int], ["not looked at"]),
    (Iterator[int], iter(["not used up"])),
    (deque[int], deque([1])),
    (Literal["a", 1], 1),
    (Literal[Colour.RED], Colour.RED),
    (Annotated[int, "a note", []], 1),
    (Annotated[int, annotated_types.Gt(3)], 4),
    (Annotated[list[int], annotated_types.Len(1)], [1]),
    (Annotated[int, pydantic.Strict()], 4),
    (pydantic.AwareDatetime, datetime.now().astimezone()),
    (Colour, Colour.RED),
    (Movie, {"title": "x"}),
    (Movie, {"title": "x", "year": 1}),
    (Partial, {"title": "x"}),
    (Item, Item(1, ["x"])),
    (Order, Order([Item(1)], parent=Order([]))),
    (Slotted, Slotted()),
    (Point, Point(1, 2)),
    (Model, Model(n=1)),
    (GenericModel[int], GenericModel(n=1)),
    (GenericModel[int], GenericModel[int](n=1)),
    (Attrs, Attrs(1)),
    (Struct, Struct(1)),
    (UserId, 3),
    (T, object()),
    (Bounded, 3),
    (Chosen, "x"),
    (Callable[[int], str], len),
    (Callable, len),
    (typing.Callable, len),
    (type[int], bool),
    (type[int | str], str),
    (type[Any], int),
    (type, int),
    (Quacks, object()),
    (Closes, sys.stdout),
    ("Unresolved", object()),
    (typing.ForwardRef("Unresolved"), object()),
    (P.args, ()),  # type: ignore[attr-defined]
    (Box[int], Box()),
    (Whole, 3),
    (TypeAliasType("Unresolved", "list[Unresolved]"), [[]]),
    (typing.LiteralString, "x"),
    (typing.Self, object()),
    ([], object()),
]

REFUSED: list[tuple[object, object, str, str]] = [
    (None, 0, "x", "None"),
    (int, True, "x", "int"),
    (int, 1.0, "x", "int"),
    (int, "1", "x", "int"),
    (float, True, "x", "float"),
    (float, "1.5", "x", "float"),
    (str, b"x", "x", "str"),
    (datetime, "2026-01-01", "x", "datetime.datetime"),
    (int | None, "x", "x", "int | None"),
    (list[int] | None, [1, "x"], "x[1]", "int"),
    (list[int] | dict[str, int], "x", "x", "list[int] | dict[str, int]"),
    (list, (1,), "x", "list"),
    (list[int], [1, None], "x[1]", "int"),
    (list[list[int]], [[1], [2, "x"]], "x[1][1]", "int"),
    (set[int], {"a"}, "x[0]", "int"),
    (tuple[int, str], (1, 2), "x[1]", "str"),
    (tuple[int, str], (1,), "x", "tuple[int, str]"),
    (tuple[int, ...], (1, "x"), "x[1]", "int"),
    (tuple[()], (1,), "x", "tuple[()]"),
    (dict[str, int], {"a": "b"}, "x['a']", "int"),
    (dict[str, int], {1: 1}, "x[1]", "str"),
    (Mapping[str, int], [("a", 1)], "x", "collections.abc.Mapping[str, int]"),
    (Sequence[int], "text", "x[0]", "int"),
    (Iterable[int], 5, "x", "collections.abc.Iterable"),
    (deque[int], deque(["x"]), "x[0]", "int"),
    (Literal[1], True, "x", "Literal[1]"),
    (Literal["a"], "b", "x", "Literal['a']"),
    (Literal["a"], [], "x", "Literal['a']"),
    (Annotated[int, "note"], "x", "x", "int"),
    (Colour, "red", "x", f"{__name__}.Colour"),
    (Movie, {"title": 1}, "x.title", "str"),
    (Movie, {}, "x", f"{__name__}.Movie"),
    (Movie, {"title": "x", "extra": 1}, "x", f"{__name__}.Movie"),
    (Partial, {"year": 1}, "x", f"{__name__}.Partial"),
    (Order, Order([Item(1), Item(2), Item("3")]), "x.items[2].qty", "int"),  # type: ignore[arg-type]
    (Order, {"items": []}, "x", f"{__name__}.Order"),
    (Order, Order([], parent=Order([Item(1, [2])])), "x.parent.items[0].tags[0]", "str"),  # type: ignore[list-item]
    (Point, Point(1, "y"), "x.y", "float"),  # type: ignore[arg-type]
    (Point, (1, 2.0), "x", f"{__name__}.Point"),
    (Model, {"n": 1}, "x", f"{__name__}.Model"),
    (Attrs, {"n": 1}, "x", f"{__name__}.Attrs"),
    (Struct, {"n": 1}, "x", f"{__name__}.Struct"),
    (UserId, "x", "x", "int"),
    (Bounded, "x", "x", "int"),
    (list[Whole], ["x"], "x[0]", "int | None"),
    (Chosen, 1.5, "x", "~Chosen"),
    (Callable[[int], str], 5, "x", "collections.abc.Callable"),
    (type[int], str, "x", "type[int]"),
    (type[int], 5, "x", "type[int]"),
    (Closes, object(), "x", f"{__name__}.Closes"),
    (Box[int], 5, "x", f"{__name__}.Box"),
    (typing.LiteralString, 5, "x", "str"),
]


@pytest.mark.parametrize(("annotation", "value"), ACCEPTED)
def test_what_the_annotation_allows_is_accepted(annotation: object, value: object) -> None:
    """A value that fits, and any value where the annotation cannot be checked, passes."""
    compile_check(annotation)(value, "x")


@pytest.mark.parametrize(("annotation", "value", "where", "expected"), REFUSED)
def test_what_does_not_fit_is_refused_with_its_place(
    annotation: object, value: object, where: str, expected: str
) -> None:
    """The error names the innermost field that is wrong and what belongs there; nothing is converted."""
    with pytest.raises(ValidationError) as caught:
        compile_check(annotation)(value, "x")
    assert caught.value.field == where
    assert caught.value.errors[0]["expected"] == expected
    assert expected in str(caught.value)
    assert type(value).__qualname__ in str(caught.value) or where != "x"


@pytest.mark.parametrize(
    ("annotation", "value", "reason"),
    [
        (Annotated[int, annotated_types.Gt(3)], 3, "greater than 3"),
        (Annotated[list[Box[int]], annotated_types.Len(1)], [], "at least 1 item"),
        (Annotated[str, pydantic.Field(pattern="^a")], "b", "match pattern"),
        (Annotated[UUID, pydantic.types.UuidVersion(1)], UUID(int=4 << 76 | 8 << 60), "version 1"),
        (pydantic.AwareDatetime, datetime.now().astimezone().replace(tzinfo=None), "timezone"),
    ],
)
def test_constraints_in_annotated_are_checked_by_pydantic(annotation: object, value: object, reason: str) -> None:
    """Metadata that pydantic understands is part of the check, also on a class that pydantic does not know."""
    with pytest.raises(ValidationError, match=reason):
        compile_check(annotation)(value, "x")


def test_a_class_that_mentions_itself_is_followed_only_so_deep() -> None:
    """A value that contains itself is refused rather than followed for ever; one within the bound passes."""
    loop = Order([])
    loop.parent = loop
    with pytest.raises(ValidationError, match=f"more than {DEPTH_MAX} deep"):
        compile_check(Order)(loop, "order")
    tree: Tree = {"branches": []}
    compile_check(Tree)(tree, "tree")
    tree["branches"].append(tree)
    with pytest.raises(ValidationError, match=f"more than {DEPTH_MAX} deep"):
        compile_check(Tree)(tree, "tree")
    chain = Order([])
    for _ in range(DEPTH_MAX - 1):
        chain = Order([], parent=chain)
    compile_check(Order)(chain, "order")


def _test_an_alias_that_mentions_itself_is_checked_at_every_level() -> None:
    """`type Json = ...` is followed lazily, and only so deep."""
    names: dict[str, Any] = {}
    exec("type Json = int | str | list[Json] | dict[str, Json]", names)
    check = compile_check(names["Json"])
    check({"a": [1, "x", {"b": []}]}, "json")
    endless: list[Any] = []
    endless.append(endless)
    for wrong in ({"a": [1, 2.5]}, endless):
        with pytest.raises(ValidationError):
            check(wrong, "json")


if sys.version_info >= (
    3,
    12,
):  # `type X = ...` is new syntax there: on 3.11 there is nothing to test, so nothing to skip
    test_an_alias_that_mentions_itself_is_checked_at_every_level = (
        _test_an_alias_that_mentions_itself_is_checked_at_every_level
    )


def test_a_refused_value_is_shown_short() -> None:
    """The message never carries the whole payload, and survives a value whose repr fails."""

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    for value in ("secret" * 1000, ["x" * 500] * 500, {"k" * 500: "v" * 500}, 10**3000, Broken()):
        with pytest.raises(ValidationError) as caught:
            compile_check(Colour)(value, "x")
        assert len(str(caught.value)) < 250


def signature_of(function: Callable[..., object]) -> InputCheck:
    return InputCheck(inspect.signature(function), typing.get_type_hints(function, include_extras=True))


def bound(function: Callable[..., object], *args: Any, **kwargs: Any) -> dict[str, Any]:
    return inspect.signature(function).bind(*args, **kwargs).arguments


def test_all_parameters_are_checked_and_reported_together() -> None:
    """Each kind of parameter is checked; one error lists every parameter that is wrong."""

    def call(a: int, /, b: str, *rest: int, c: float = 1.0, d=None, **options: bool) -> None:  # type: ignore[no-untyped-def]
        pass

    check = signature_of(call)
    check.check(bound(call, 1, "x", 2, 3, c=2, d=object(), verbose=True))
    check.check(bound(call, 1, "x"))
    with pytest.raises(ValidationError) as caught:
        check.check(bound(call, "1", 2, 3, "4", c="5", d=object(), verbose=6))
    assert [error["field"] for error in caught.value.errors] == ["a", "b", "rest[1]", "c", "verbose"]
    assert caught.value.field == "a"


def test_a_typed_dict_of_options_is_checked_as_a_whole() -> None:
    """`**options: typing.Unpack[Movie]` demands the keys of Movie."""

    def call(**options: typing.Unpack[Movie]) -> None:
        pass

    check = signature_of(call)
    check.check(bound(call, title="x"))
    with pytest.raises(ValidationError) as caught:
        check.check(bound(call, title=1))
    assert caught.value.field == "title"


def test_the_default_that_a_function_names_is_accepted() -> None:
    """`limit: int = None` may be called with None, and with no other wrong value."""

    def call(limit: int = None, *, also: list[int] = None) -> None:  # type: ignore[assignment] # noqa: RUF013
        pass

    check = signature_of(call)
    check.check({"limit": None, "also": None})
    with pytest.raises(ValidationError):
        check.check({"limit": "x"})


def test_importing_the_module_does_not_import_pydantic() -> None:
    """Who does not use pydantic does not pay for it."""
    program = "import sys, durable.tasks.validation; print('pydantic' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"
