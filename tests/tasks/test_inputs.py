"""Inputs and keys: binding, storing and calling again, `validate=`, `key=`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable import ConfigError, ConflictError, Context, Durable, UserContext, ValidationError, run_as, task
from durable.tasks.context import Context as ContextClass
from durable.tasks.definition import FunctionFacts


@task(name="inputs.two")
async def two(a: int, b: int = 2) -> list[int]:
    return [a, b]


@task(name="inputs.every_kind")
async def every_kind(
    ctx: Context, first: int, /, second: int, third: int = 3, *rest: int, flag: bool, level: int = 5, **named: str
) -> list[Any]:
    return [first, second, third, list(rest), flag, level, named, ctx.input]


@task(name="inputs.defaults")
async def defaults(a: int = 1, b: int = 2, *, c: int = 3) -> list[int]:
    return [a, b, c]


@task(name="inputs.positional_only")
async def positional_only(a: int, b: int = 2, /, **named: int) -> list[Any]:
    return [a, b, named]


@task(name="inputs.threaded")
def threaded(*items: int, **named: int) -> list[Any]:
    return [list(items), named]


# --- binding --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "field"),
    [
        ((), {}, "a"),
        ((1, 2, 3), {}, "arguments"),
        ((1,), {"a": 1}, "a"),
        ((1,), {"c": 1}, "c"),
        (("1",), {}, "a"),
        ((1,), {"b": "2"}, "b"),
        ((True,), {}, "a"),
    ],
)
async def test_a_wrong_input_is_refused_before_anything_is_stored(
    app: Durable, args: tuple[Any, ...], kwargs: dict[str, Any], field: str
) -> None:
    """The error names the field, and there is no run."""
    with pytest.raises(ValidationError, match="two") as caught:
        await app.start(two, *args, **kwargs)
    assert caught.value.field == field
    assert [info async for info in app.runs()] == []


async def test_the_context_is_not_a_parameter(app: Durable) -> None:
    """Nobody can pass it, by position or by name."""

    @task
    async def takes_context(ctx: Context, n: int) -> int:
        return n

    with pytest.raises(ValidationError) as caught:
        await app.start(takes_context, n=1, ctx=None)  # type: ignore[call-arg]
    assert caught.value.field == "ctx"
    assert await (await app.start(takes_context, 1)) == 1


async def test_a_parameter_called_ctx_is_an_ordinary_one(app: Durable) -> None:
    """The annotation decides, and not the name or the place."""

    @task
    async def named_ctx(ctx: dict[str, int]) -> dict[str, int]:
        return ctx

    @task
    async def any_first(value: Any, ctx: int = 3) -> list[Any]:
        return [value, ctx]

    assert await (await app.start(named_ctx, {"n": 1})) == {"n": 1}
    assert await (await app.start(any_first, "x")) == ["x", 3]


async def test_annotations_that_cannot_be_resolved_do_not_hide_the_others(app: Durable) -> None:
    """A class that is local, or imported for type checkers only, is not checked; the other parameters are."""

    class Local(dict[str, int]):
        pass

    @task
    async def partly(ctx: Context, local: Local, n: int) -> int:
        return n + ctx.attempt

    assert await (await app.start(partly, {}, 1)) == 2  # type: ignore[arg-type]
    with pytest.raises(ValidationError) as caught:
        await app.start(partly, {}, "1")  # type: ignore[arg-type]
    assert caught.value.field == "n"


# --- stored and called again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "args", "kwargs", "result"),
    [
        (defaults, (), {}, [1, 2, 3]),
        (defaults, (7,), {}, [7, 2, 3]),
        (defaults, (), {"b": 8}, [1, 8, 3]),
        (defaults, (), {"c": 9}, [1, 2, 9]),
        (defaults, (), {"c": 9, "b": 8, "a": 7}, [7, 8, 9]),
        (positional_only, (1,), {}, [1, 2, {}]),
        (positional_only, (1, 3), {"a": 5, "b": 6}, [1, 3, {"a": 5, "b": 6}]),
        (threaded, (), {}, [[], {}]),
        (threaded, (1, 2), {"items": 3, "named": 4}, [[1, 2], {"items": 3, "named": 4}]),
        (every_kind, (1, 2), {"flag": True}, [1, 2, 3, [], True, 5, {}, {"first": 1, "second": 2, "flag": True}]),
        (
            every_kind,
            (1, 2, 4, 6, 7),
            {"flag": False, "level": 1, "x": "y"},
            [
                *(1, 2, 4, [6, 7], False, 1, {"x": "y"}),
                {"first": 1, "second": 2, "third": 4, "rest": [6, 7], "flag": False, "level": 1, "named": {"x": "y"}},
            ],
        ),
    ],
)
async def test_stored_arguments_come_back_as_they_were_passed(
    app: Durable, job: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: list[Any]
) -> None:
    """The body is called from what was stored: by position, by name, with defaults left to the function."""
    got = await (await app.start(job, *args, **kwargs))
    if job is every_kind and "rest" in got[-1]:
        got[-1]["rest"] = list(got[-1]["rest"])
    assert got == result


def facts(function: Callable[..., Any]) -> FunctionFacts:
    return FunctionFacts(function, ContextClass)


def test_a_parameter_that_was_removed_since_is_a_clear_error() -> None:
    """A run stored by older code says which parameter is gone, and does not lose its value in silence."""

    def older(a: int, b: int) -> None: ...
    def newer(a: int) -> None: ...

    stored = facts(older).bind((1, 2), {}, "job")
    with pytest.raises(ValidationError, match=r"job\(a.*no longer has the parameter 'b'") as caught:
        facts(newer).call_arguments(stored, "job")
    assert caught.value.field == "b"


def test_a_parameter_that_was_added_or_moved_since_is_no_error() -> None:
    """Stored arguments go by name: an added one has its default, and an order that changed changes nothing."""

    def older(a: int, b: int) -> None: ...
    def newer(c: int = 0, b: int = 0, a: int = 0, *, d: int = 4) -> tuple[int, ...]:
        return (a, b, c, d)

    args, kwargs = facts(newer).call_arguments(facts(older).bind((1, 2), {}, "job"), "job")
    assert newer(*args, **kwargs) == (1, 2, 0, 4)


# --- validate= ------------------------------------------------------------------------------------------------------------------


def at_most_ten(n: int) -> None:
    if n > 10:
        raise ValueError(f"{n} is more than ten")


async def is_even(n: int) -> bool:
    return n % 2 == 0


def own_error(n: int) -> None:
    raise ValidationError("no such customer", field="customer")


@pytest.mark.parametrize(
    ("validate", "good", "bad", "field", "text"),
    [
        (at_most_ten, 10, 11, "input", "more than ten"),
        (is_even, 2, 3, "input", "validate"),
        (lambda n: n != 5, 4, 5, "input", "validate"),
        (own_error, None, 1, "customer", "no such customer"),
    ],
    ids=["raising", "async", "false", "its own error"],
)
async def test_validate_refuses_a_start(
    app: Durable, validate: Callable[..., Any], good: int | None, bad: int, field: str, text: str
) -> None:
    """It sees the arguments; what it raises, or False, refuses the start before anything is stored."""

    async def body(ctx: Context, n: int) -> int:
        return n

    checked = task(name="checked", validate=validate)(body)
    with pytest.raises(ValidationError, match=text) as caught:
        await app.start(checked, bad)
    assert caught.value.field == field
    assert [info async for info in app.runs()] == []
    if good is not None:
        assert await (await app.start(checked, good)) == good


# --- keys -----------------------------------------------------------------------------------------------------------------------


@task(name="inputs.by_order", key=lambda order, note="": f"order:{order}")
async def by_order(order: int, note: str = "") -> str:
    return f"{order}{note}"


@task(name="inputs.automatic", key="auto")
async def automatic(query: dict[str, Any], tags: list[str] | None = None) -> int:
    return len(query)


@task(name="inputs.wrong_key", key=lambda n: n)
async def wrong_key(n: int) -> int:
    return n


async def test_a_key_may_be_a_function_of_the_arguments(app: Durable) -> None:
    """The same order is the same run; another input under its key is a conflict."""
    one = await app.start(by_order, 7)
    assert one.key == "order:7"
    assert (await app.start(by_order, order=7)).run_id == one.run_id
    assert (await app.start(by_order, 8)).run_id != one.run_id
    with pytest.raises(ConflictError, match="another input") as caught:
        await app.start(by_order, 7, note="!")
    assert caught.value.key == "order:7"
    assert (await app.start(by_order.options(key="own"), 7)).key == "own"


async def test_a_key_function_that_makes_no_key_is_an_error(app: Durable) -> None:
    """A key is a str; nothing is stored."""
    with pytest.raises(ConfigError, match="wrong_key") as caught:
        await app.start(wrong_key, 3)
    assert caught.value.key == "key"
    assert [info async for info in app.runs()] == []


async def test_an_automatic_key_is_stable_across_the_order_of_a_dict(app: Durable) -> None:
    """It is a digest of task, input and user in canonical form; how the input was passed does not matter."""
    one = await app.start(automatic, {"a": 1, "b": [1, 2]})
    same = await app.start(automatic, query={"b": [1, 2], "a": 1})
    assert one.key is not None
    assert len(one.key) == 64
    assert (same.run_id, same.key) == (one.run_id, one.key)
    assert (await app.start(automatic, {"a": 1, "b": [2, 1]})).key != one.key


async def test_an_automatic_key_is_the_users_own(app: Durable) -> None:
    """Two users who ask for the same have a run each, and `run_as` counts as `user=` does."""
    nobody = await app.start(automatic, {})
    ann = await app.start(automatic.options(user="ann"), {})
    bob = await app.start(automatic.options(user="bob"), {})
    assert len({nobody.key, ann.key, bob.key}) == 3
    with run_as(UserContext("ann")):
        assert (await app.start(automatic, {})).run_id == ann.run_id


async def test_a_key_finds_its_run(app: Durable) -> None:
    """For the user it was started for, or the one of `run_as`; nobody else's."""
    handle = await app.start(two.options(key="k", user="ann"), 1)
    found = await app.find("k", user="ann")
    assert found is not None
    assert found.run_id == handle.run_id
    assert await app.find("k", user="bob") is None
    with run_as(UserContext("ann")):
        assert (await app.find("k")) is not None
    with run_as(UserContext("bob")):
        assert await app.find("k") is None
