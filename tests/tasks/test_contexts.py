"""`Context` in a run: what it tells, what it emits under which names, and that its logger does not repeat itself."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from durable import (
    Context,
    Durable,
    Event,
    Handle,
    NonRetryableError,
    ReservedNameError,
    Result,
    Retry,
    RunFailedError,
    step,
    task,
)
from durable.core.records import RESERVED_NAMES
from durable.store import MemoryStore
from durable.tasks.context import check_event_name
from tests.tasks.conftest import QUICK

seen: list[Any] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Nothing was seen yet."""
    seen.clear()


@dataclass
class Tick:
    n: int


@dataclass
class Done:
    total: int


@dataclass
class completed:  # a class of a reserved name
    n: int


async def emitted(handle: Handle[Any]) -> list[tuple[str, Any]]:
    """The events that the body emitted."""
    return [(event.name, event.data) async for event in handle.events() if event.name not in RESERVED_NAMES]


# --- what it tells --------------------------------------------------------------------------------------------------------------


@task(name="contexts.tells", retry=Retry(3, delay=0))
async def tells(ctx: Context[Tick], n: int, *, flag: bool = True) -> dict[str, Any]:
    await ctx.emit(Tick(ctx.attempt))
    if ctx.attempt < 3:
        raise ValueError(f"attempt {ctx.attempt}")
    told = (
        "run_id",
        "task_name",
        "key",
        "user",
        "attempt",
        "max_attempts",
        "previous_error",
        "input",
        "recovered",
        "recovery_reason",
    )
    return {name: getattr(ctx, name) for name in told}


async def test_a_context_tells_about_its_run(app: Durable) -> None:
    """Everything that api.md lists, in the attempt that it is about."""
    handle = await app.start(tells.options(key="k", user="ann"), 1)
    assert await handle == {
        "run_id": handle.run_id,
        "task_name": "contexts.tells",
        "key": "k",
        "user": "ann",
        "attempt": 3,
        "max_attempts": 3,
        "previous_error": "attempt 2",
        "input": {"n": 1},
        "recovered": False,
        "recovery_reason": None,
    }


@task(name="contexts.looks_back", retry=Retry(2, delay=0))
async def looks_back(ctx: Context[Tick | Done]) -> list[Any]:
    if ctx.attempt == 1:
        assert ctx.previous_events == []
        await ctx.emit(Tick(1))
        await ctx.emit("note", {"n": 1})
        await ctx.emit(Tick(2))
        raise ValueError("again")
    assert all(isinstance(event, Event) for event in ctx.previous_events)
    return [[event.name for event in ctx.previous_events], ctx.past(Tick), ctx.past(Done)]


async def test_past_events_come_back_as_their_classes(app: Durable) -> None:
    """`previous_events` has all that was emitted before this attempt, `past` those of one type, as instances."""
    handle = await app.start(looks_back)
    names, ticks, done = await handle
    assert (names, ticks, done) == (["Tick", "note", "Tick"], [Tick(1), Tick(2)], [])


@step(retry=Retry(3, delay=0))
async def keyed(ctx: Context, n: int) -> str:
    seen.append(ctx.step_key())
    if len(seen) % 2:
        raise OSError("once more")
    return ctx.step_key()


@task(name="contexts.calls_keyed")
async def calls_keyed(ctx: Context) -> list[str]:
    with pytest.raises(Exception, match="inside"):
        ctx.step_key()
    return [await keyed(1), await keyed(1), await keyed(2)]


async def test_a_step_key_is_the_same_in_every_try_and_another_for_every_call(app: Durable) -> None:
    """So it serves as an idempotency key for an outside API."""
    keys = await (await app.start(calls_keyed))
    assert len(set(keys)) == 3
    assert seen == [key for key in keys for _ in range(2)]
    assert not set(keys) & set(await (await app.start(calls_keyed)))


# --- events ---------------------------------------------------------------------------------------------------------------------


@step
async def emitting_step(ctx: Context, n: int) -> int:
    await ctx.emit(Tick(n))
    ctx.emit_nowait("from a step", n)
    return n


@task(name="contexts.emits")
async def emits(ctx: Context) -> None:
    await ctx.emit(Tick(1))
    await ctx.emit("tick", {"n": 2})
    await ctx.emit("bare")
    ctx.emit_nowait(Done(3))
    await ctx.progress({"done": 0.5})
    await emitting_step(4)


async def test_events_are_seen_in_order_under_their_names(app: Durable) -> None:
    """A typed event goes by the name of its class, and arrives as its instance."""
    handle = await app.start(emits)
    await handle
    assert await emitted(handle) == [
        ("Tick", Tick(1)),
        ("tick", {"n": 2}),
        ("bare", None),
        ("Done", Done(3)),
        ("progress", {"done": 0.5}),
        ("Tick", Tick(4)),
        ("from a step", 4),
    ]


@task(name="contexts.yields")
async def yields(n: int) -> AsyncIterator[Any]:
    yield Tick(n)
    yield {"n": n}
    yield "named", {"n": n}
    yield Result(n)


async def test_what_a_generator_yields_is_emitted(app: Durable) -> None:
    """A value of a class of one's own goes by its name, a pair by its first, and any other is progress."""
    handle = await app.start(yields, 3)
    assert await handle == 3
    assert await emitted(handle) == [("Tick", Tick(3)), ("progress", {"n": 3}), ("named", {"n": 3})]


@pytest.mark.parametrize(
    "name", sorted({*RESERVED_NAMES, "step:", "step:mine", "children_failed", "ready", "error", "gap"})
)
def test_reserved_names_are_refused(name: str) -> None:
    """They are the engine's own, or the stream's."""
    with pytest.raises(ReservedNameError, match="choose another"):
        check_event_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "created",
        "started",
        "retrying",
        "recovered",
        "waiting",
        "suspended",
        "resumed",
        "completed",
        "failed",
        "timed_out",
        "children_failed",
        "cancelled",
        "ready",
        "error",
        "heartbeat",
        "gap",
        "server_shutting_down",
    ],
)
def test_every_name_of_the_contract_is_reserved(name: str) -> None:
    """What api.md lists."""
    assert name in RESERVED_NAMES


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "a\r", "\0", "\u2028", 5, None, b"tick"])
def test_odd_names_are_refused(name: Any) -> None:
    """A line break in a name would end a line of the stream."""
    with pytest.raises(ReservedNameError):
        check_event_name(name)


@pytest.mark.parametrize(
    "name", ["tick", "Tick", "with space", "häppchen", "x" * 200, "steps", "Completed", "progress"]
)
def test_other_names_are_accepted(name: str) -> None:
    """Any 1 to 200 printable characters."""
    assert check_event_name(name) == name


@task(name="contexts.emits_reserved")
async def emits_reserved(ctx: Context, how: str) -> None:
    if how == "name":
        await ctx.emit("completed", {})
    elif how == "nowait":
        ctx.emit_nowait("step:x")
    else:
        await ctx.emit(completed(1))


@pytest.mark.parametrize("how", ["name", "nowait", "class"])
async def test_a_body_cannot_emit_a_reserved_name(app: Durable, how: str) -> None:
    """It fails, and the event is not there; a class counts by its name."""
    handle = await app.start(emits_reserved, how)
    with pytest.raises(RunFailedError, match="durable's own") as caught:
        await handle
    assert caught.value.error_type == "durable.errors.ReservedNameError"
    assert [event.name async for event in handle.events()] == ["created", "started", "failed"]


@task(name="contexts.waits_for_nothing")
async def waits_for_nothing(ctx: Context, name: Any) -> None:
    await ctx.wait_for(name)


@pytest.mark.parametrize("name", ["", 5])
async def test_a_signal_needs_a_name(app: Durable, name: Any) -> None:
    """A wait that nobody could end is an error at once."""
    with pytest.raises(RunFailedError, match="wait_for"):
        await (await app.start(waits_for_nothing, name))


# --- the logger -----------------------------------------------------------------------------------------------------------------


@step
async def first() -> int:
    return 1


@step
async def second() -> int:
    return 2


@task(name="contexts.logs")
async def logs(ctx: Context) -> bool:
    ctx.logger.info("begun", extra={"colour": "red"})
    await first()
    ctx.logger.info("in between")
    await second()
    await ctx.emit("waiting for it")
    await ctx.wait_for("go")
    ctx.logger.info("went on")
    return ctx.recovered


async def test_the_logger_is_silent_while_the_body_is_replayed(caplog: pytest.LogCaptureFixture) -> None:
    """After a restart the body runs from its beginning, and what it logged before is not logged again."""
    caplog.set_level(logging.INFO, "durable.task.contexts.logs")
    store = MemoryStore()
    async with Durable(store, config=QUICK) as app:
        run_id = (await app.start(logs)).run_id
        async for event in app.subscribe(run_id):
            if event.name == "waiting for it":
                break
    async with Durable(store, config=QUICK) as app:
        handle = await app.get(run_id)
        await handle.send("go")
        await handle.wait(20)
    records = [record for record in caplog.records if record.name == "durable.task.contexts.logs"]
    assert [record.message for record in records] == ["begun", "in between", "went on"]
    assert {vars(record)["run_id"] for record in records} == {run_id}
    assert vars(records[0])["colour"] == "red"


# --- how it ends ----------------------------------------------------------------------------------------------------------------


class OutOfStock(NonRetryableError):
    """An error of one's own."""


@task(name="contexts.gives_up", retry=Retry(5, delay=0, unless=(KeyError,)))
async def gives_up(ctx: Context, how: str) -> None:
    seen.append(ctx.attempt)
    if how == "subclass":
        raise OutOfStock("none left")
    if how == "unless":
        raise KeyError("none left")
    raise OSError("none left")


@pytest.mark.parametrize(("how", "attempts"), [("subclass", 1), ("unless", 1), ("other", 5)])
async def test_errors_that_end_the_attempts_at_once(app: Durable, how: str, attempts: int) -> None:
    """A `NonRetryableError`, a subclass, or what `unless=` names is not tried again."""
    with pytest.raises(RunFailedError, match="none left") as caught:
        await (await app.start(gives_up, how))
    assert seen == list(range(1, attempts + 1))
    assert "gives_up" in caught.value.traceback
