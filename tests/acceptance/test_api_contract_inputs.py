"""The contract, section *Tasks and steps*: what inputs and results may be, and how wrong ones are refused."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict
from uuid import UUID

import pydantic
import pytest

from durable import Durable, NotStorableError, Retry, ValidationError, step, task
from durable.store import MemoryStore

NOW = datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Inner:
    n: int
    when: datetime


@dataclass
class Outer:
    inner: Inner
    items: list[Inner] = field(default_factory=list)
    color: Color = Color.RED


class Model(pydantic.BaseModel):
    name: str
    tags: list[str] = []


class Shape(TypedDict):
    a: int
    b: NotRequired[str]


class Point(NamedTuple):
    x: int
    y: str


GOOD: list[tuple[Any, Any]] = [
    (int, 10**40), (float, 3.5), (float, float("inf")), (str, "\u0000 \U0001f600"), (bool, True), (bytes, b"\x00\xff"),
    (int | None, None), (int | str, "x"), (list[int], [1, 2]), (dict[str, int], {"a": 1}), (dict[int, str], {1: "a"}),
    (tuple[int, str], (1, "a")), (tuple[int, ...], (1, 2, 3)), (set[int], {1, 2}), (frozenset[str], frozenset({"a"})),
    (datetime, NOW), (date, NOW.date()), (time, NOW.time()), (timedelta, timedelta(days=1, microseconds=5)),
    (UUID, UUID(int=5)), (Decimal, Decimal("1.10")), (Color, Color.BLUE), (Inner, Inner(1, NOW)),
    (Outer, Outer(Inner(1, NOW), [Inner(2, NOW)], Color.BLUE)), (Model, Model(name="a", tags=["x"])), (Shape, {"a": 1}),
    (Shape, {"a": 1, "b": "x"}), (Point, Point(1, "a")), (Literal["a", "b"], "a"), (Any, {"x": [1, 2.5, None]}),
]  # fmt: skip

BAD: list[tuple[Any, Any, str]] = [
    (int, "3", "x"), (int, 3.5, "x"), (int, None, "x"), (int, True, "x"), (str, 3, "x"), (bool, "yes", "x"), (bytes, "x", "x"),
    (list[int], ["a"], "x[0]"), (list[int], 3, "x"), (dict[str, int], {"a": "b"}, "x['a']"), (tuple[int, str], (1,), "x"),
    (datetime, "nope", "x"), (UUID, "zz", "x"), (Decimal, "abc", "x"), (Color, "green", "x"), (Inner, {"n": "a"}, "x"),
    (Outer, Outer(Inner("x", NOW)), "x.inner.n"), (Model, 3, "x"), (Shape, {"b": "x"}, "x"),  # type: ignore[arg-type]
    (Shape, {"a": "x"}, "x.a"), (Literal["a", "b"], "c", "x"), (int | str, 3.5, "x"), (int | None, "x", "x"),
]  # fmt: skip


def identity_of(hint: Any) -> Callable[[Any], Any]:
    async def same(x: Any) -> Any:
        return x

    same.__annotations__ = {"x": hint, "return": hint}
    return same


@pytest.mark.parametrize(("hint", "value"), GOOD, ids=repr)
async def test_what_goes_in_comes_out(hint: Any, value: Any, tmp_path: Path) -> None:
    """Input and result are equal and of the same type, also read by the next process."""
    body = task(name="contract_same")(identity_of(hint))
    async with Durable(tmp_path):
        handle = await body.start(value)
        first = await handle
    async with Durable(tmp_path) as app:
        second = await (await app.get(handle.run_id))
    for found in (first, second):
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("hint", "value", "where"), BAD, ids=repr)
async def test_a_wrong_input_is_refused(hint: Any, value: Any, where: str) -> None:
    """`ValidationError` names the field, down to the item, and nothing is stored."""
    body = task(name="contract_refused")(identity_of(hint))
    async with Durable(MemoryStore()) as app:
        with pytest.raises(ValidationError) as caught:
            await body.start(value)
        assert caught.value.field == where and where in str(caught.value)
        assert [info async for info in app.runs()] == []


async def test_a_wrong_call_is_refused() -> None:
    """Missing, unknown and superfluous arguments, and what cannot be stored."""

    @task(name="contract_called")
    async def body(a: int, b: Any = None) -> None: ...

    async with Durable(MemoryStore()) as app:
        for args, kwargs, where in (((), {}, "a"), ((1, 2, 3), {}, None), ((1,), {"c": 3}, "c")):
            with pytest.raises(ValidationError) as caught:
                await body.start(*args, **kwargs)  # type: ignore[arg-type]
            assert where is None or caught.value.field == where
        with pytest.raises(NotStorableError):
            await body.start(1, object())
        assert [info async for info in app.runs()] == []


async def test_every_kind_of_parameter() -> None:
    """Positional only, keyword only, `*args` and `**kwargs`; defaults are the function's."""

    @task(name="contract_parameters")
    async def body(a: int, /, b: int = 2, *more: int, c: str, **rest: str) -> list[Any]:
        return [a, b, list(more), c, rest]

    async with Durable(MemoryStore()):
        assert await (await body.start(1, c="c")) == [1, 2, [], "c", {}]
        assert await (await body.start(1, 5, 6, 7, c="c", d="d")) == [1, 5, [6, 7], "c", {"d": "d"}]


async def test_a_check_of_one_s_own() -> None:
    """`validate=` gets the arguments; what it raises, or its False, refuses the start; it may be async."""

    def ordered(a: int, b: int) -> None:
        if a > b:
            raise ValueError("a must not exceed b")

    async def small(a: int, b: int) -> bool:
        return a + b < 10

    for check, wrong in ((ordered, (3, 2)), (small, (5, 6))):

        @task(name="contract_validated", validate=check)
        async def body(a: int, b: int) -> int:
            return a + b

        async with Durable(MemoryStore()) as app:
            with pytest.raises(ValidationError):
                await body.start(*wrong)
            assert [info async for info in app.runs()] == []
            assert await (await body.start(1, 2)) == 3
        del body


async def test_a_body_s_changes_stay_its_own() -> None:
    """Neither the caller's value nor the recorded result of a step changes when the body changes what it got."""

    @step
    async def items() -> list[int]:
        return [1]

    @task(name="contract_changes", retry=Retry(2, delay=0.001))
    async def body(given: list[int], attempts: list[int]) -> list[int]:
        found = await items()
        found.append(len(given))
        given.append(0)
        if len(found) == 2 and not tries:
            tries.append(1)
            raise ValueError("again")
        return found + given

    tries: list[int] = []
    given = [7]
    async with Durable(MemoryStore()):
        assert await (await body.start(given, [])) == [1, 1, 7, 0]
    assert given == [7]
