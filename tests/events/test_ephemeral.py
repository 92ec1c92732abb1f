"""Ephemeral events, and heartbeats: what live readers see besides the record."""

from __future__ import annotations

import asyncio

import pytest

from durable import ConfigError, Context, Event, task
from tests.events.conftest import MakeApp
from tests.events.tasks import Counting, Tail, more, on_demand, own, rest, steady, ticks


@task(name="streams_tokens")
async def tokens(ctx: Context, count: int) -> None:
    """Ephemeral events among durable ones, of which some are on their way."""
    await ctx.wait_for("go")
    for number in range(count):
        ctx.emit_nowait("a", number)
        await ctx.emit("token", number, ephemeral=True)
        ctx.emit_nowait("b", number)
        await ctx.emit("token", f"{number}.1", ephemeral=True)
        await ctx.emit("token", f"{number}.2", ephemeral=True)
        if number % 3 == 0:
            await ctx.emit("c", number)
            await ctx.emit("token", f"{number}.3", ephemeral=True)
    await ctx.emit("done")


def expected(count: int) -> list[tuple[str, object]]:
    told: list[tuple[str, object]] = []
    for number in range(count):
        told += [("a", number), ("token", number), ("b", number), ("token", f"{number}.1"), ("token", f"{number}.2")]
        if number % 3 == 0:
            told += [("c", number), ("token", f"{number}.3")]
    return [*told, ("done", None)]


async def test_ephemeral_events_come_in_order_and_push_no_durable_one_aside(make_app: MakeApp) -> None:
    """Between durable events that are not yet on record when it is emitted: each is seen once, where the body had it."""
    async with make_app() as app:
        handle = await app.start(tokens, 50)
        tails = [Tail(handle.events(steps=steps)) for steps in (False, True)]
        await tails[0].until("waiting")
        await tails[1].until("waiting")
        await handle.send("go")
        for tail in tails:
            seen = await tail.end()
            assert [pair for pair in own(seen) if not pair[0].startswith("step:")] == expected(50)
            last = 0
            for event in seen:
                assert event.seq == last if event.name == "token" else event.seq > last
                last = event.seq
        assert [event for event in await tails[1].end() if event.name != "token"] == [
            event async for event in handle.events(steps=True)
        ]


async def test_ephemeral_events_are_for_who_is_there(make_app: MakeApp) -> None:
    """Nobody who comes later sees one, also not while it is still in memory."""
    async with make_app() as app:
        handle = await app.start(tokens, 5)
        tail = Tail(handle.events())
        await tail.until("waiting")
        await handle.send("go")
        assert len([event for event in await tail.end() if event.name == "token"]) == 17
        for after in range(tail.seen[-1].seq):
            assert not [event async for event in handle.events(after) if event.name == "token"]


async def test_who_lags_misses_ephemeral_events_and_no_other(make_app: MakeApp) -> None:
    """A buffer of four, and a reader that is busy: the durable events are all there, in order."""
    async with make_app(buffer_size=4) as app:
        handle = await app.start(tokens, 200)
        seen: list[Event] = []
        async for event in handle.events():
            if event.name == "waiting":
                await handle.send("go")
                await handle.wait()
            seen.append(event)
        assert [pair for pair in own(seen) if pair[0] != "token"] == [
            pair for pair in expected(200) if pair[0] != "token"
        ]
        assert len([event for event in seen if event.name == "token"]) <= 4
        assert [event.seq for event in seen] == sorted(event.seq for event in seen)


async def test_a_heartbeat_comes_when_nothing_else_does(make_app: MakeApp) -> None:
    """It has the number of the last event, and no data; events come as ever, and each once."""
    async with make_app() as app:
        handle = await app.start(on_demand.options(key="slow"))
        for stream in (handle.events(heartbeat=0.02), app.subscribe("slow", heartbeat=0.02)):
            tail = Tail(stream)
            beat = await tail.until("heartbeat", 3)
            before = tail.seen[: [event.name for event in tail.seen].index("heartbeat")]
            assert (beat.seq, beat.data, beat.attempt) == (before[-1].seq, None, 1)
            had = len(ticks(tail.seen))
            await more(handle, 2)
            await tail.until("done", had // 2 + 1)
            await tail.until("heartbeat", len(tail.seen) + 1)
            assert [event for event in tail.seen if event.name != "heartbeat"] == await _until_now(handle)
            tail.task.cancel()
        await handle.cancel()
        assert "heartbeat" not in [event.name async for event in handle.events(heartbeat=60)]


async def _until_now(handle: object) -> list[Event]:
    last = (await handle.info()).last_seq  # type: ignore[attr-defined]
    found: list[Event] = []
    async for event in handle.events(heartbeat=0.01):  # type: ignore[attr-defined]
        if event.name == "heartbeat":
            break
        found.append(event)
    assert found[-1].seq <= last
    return found


@task(name="streams_steps_only")
async def steps_only(ctx: Context) -> None:
    """Records steps all the time, and tells nothing."""
    while not ctx.shutting_down:
        await rest(0)
        await asyncio.sleep(0.005)


async def test_records_that_a_reader_does_not_see_are_no_sign_of_life(make_app: MakeApp) -> None:
    """Steps are recorded more often than heartbeats are due: the reader of events gets its heartbeats, that of steps none."""
    async with make_app() as app:
        handle = await app.start(steps_only)
        events, steps = Tail(handle.events(heartbeat=0.1)), Tail(handle.events(steps=True, heartbeat=5))
        beat = await events.until("heartbeat", 2)
        assert beat.seq == 2
        assert "step:completed" in [event.name for event in steps.seen]
        assert "heartbeat" not in [event.name for event in steps.seen]
        await handle.cancel()
        assert (await events.end())[-1].name == (await steps.end())[-1].name == "cancelled"


async def test_heartbeats_come_while_the_store_is_away(make_app: MakeApp) -> None:
    """A reader that waits for the store is told that its stream lives; what it waited for comes once, in order."""
    gates: list[Counting] = []

    def wrap(store: object) -> Counting:
        gates.append(Counting(store))  # type: ignore[arg-type]
        return gates[0]

    async with make_app(wrap=wrap) as app:
        handle = await app.start(on_demand)
        await more(handle, 3)
        gates[0].failing = {"history", "find"}
        tail = Tail(handle.events(3, heartbeat=0.02))  # what came before is in memory for nobody: `more` came later
        fresh = await app.start(on_demand)
        away = Tail(fresh.events(heartbeat=0.02))
        beat = await away.until("heartbeat", 2)
        assert (beat.seq, len(away.seen)) == (0, 2)
        gates[0].failing = set()
        await away.until("waiting")
        await tail.until("done")
        seqs = [event.seq for event in tail.seen if event.name != "heartbeat"]
        assert seqs == sorted(set(seqs)) and ticks(tail.seen) == [0, 1, 2]
        for each in (tail, away):
            each.task.cancel()


@pytest.mark.parametrize("heartbeat", [0, -1, float("nan"), "1", True])
async def test_a_heartbeat_is_a_time(make_app: MakeApp, heartbeat: object) -> None:
    """Anything else is refused, and says which argument it is."""
    async with make_app() as app:
        handle = await app.start(on_demand)
        with pytest.raises(ConfigError, match="heartbeat"):
            await anext(handle.events(heartbeat=heartbeat))  # type: ignore[arg-type]


async def test_a_reader_with_heartbeats_misses_no_wake(make_app: MakeApp) -> None:
    """What comes just when it begins to wait does not have to wait for the next event, or for a heartbeat."""
    async with make_app() as app:
        for _ in range(20):
            handle = await app.start(steady, 30)
            tails = [Tail(handle.events(heartbeat=3_600)) for _ in range(3)]
            for tail in tails:
                assert ticks(await tail.end()) == list(range(30))
