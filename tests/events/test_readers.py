"""Readers: slow ones, many, ones that are cancelled, ones that come back; and what they cost."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from durable import Config, ConfigError, Durable, Event, Handle
from durable.config import StreamSettings
from durable.core.records import Kind, Record
from durable.core.run import Run
from durable.engine.reading import RECORDS_PAGE
from durable.events.hub import Hub
from durable.events.ring import BATCH, Ring
from durable.store.base import Store
from durable.store.memory import MemoryStore
from tests.events.conftest import ENGINE, MakeApp
from tests.events.tasks import Counting, Tail, bulk, more, nobody_reads, on_demand, steady, streams, ticks

MANY = 10_000


def in_memory(**settings: float) -> Durable:
    config = Config(engine=ENGINE, stream=StreamSettings(**settings))  # type: ignore[arg-type]
    return Durable(MemoryStore(), config=config, test_mode=True)


async def test_a_bulk_of_events_is_seen_whole(make_app: MakeApp) -> None:
    """10,000 events in one commit, many more than the buffer holds: live and later, each once, in order."""
    async with make_app() as app:
        handle = await app.start(bulk, MANY)
        tails = [Tail(handle.events(steps=True)) for _ in range(3)]
        for tail in tails:
            seen = await tail.end()
            assert ticks(seen) == list(range(MANY))
            assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
        assert [event async for event in handle.events(steps=True)] == tails[0].seen


async def test_a_reader_that_stops_gets_every_event_later(make_app: MakeApp) -> None:
    """While it stops, 10,000 events come, and a buffer holds 16: another reader sees them live, this one from the store."""
    async with make_app(buffer_size=16) as app:
        handle = await app.start(on_demand)
        stopped, live = handle.events(), Tail(handle.events())
        seen = [await anext(stopped)]
        for _ in range(10):
            await more(handle, MANY // 10)
        await more(handle, 0)
        await live.end()
        assert streams(app).subscribers == 1
        seen += [event async for event in stopped]
        assert seen == live.seen and ticks(seen) == list(range(MANY))
        assert streams(app).overflows >= 1


async def test_a_reader_that_stops_slows_nobody() -> None:
    """The events of one burst take as long with a hundred readers that stopped as with none: the least of many times, compared."""
    async with in_memory(buffer_size=16) as app:
        alone, stopped = await app.start(on_demand), await app.start(on_demand)
        readers = [stopped.events() for _ in range(100)]
        for reader in readers:
            await anext(reader)

        async def burst(handle: Handle[object]) -> float:
            began = time.process_time()
            await more(handle, 500)
            return time.process_time() - began

        times = [(await burst(alone), await burst(stopped)) for _ in range(20)]
        least = [min(each) for each in zip(*times, strict=True)]
        assert least[1] < 1.5 * least[0], f"{least[1] / least[0]:.2f} times as long"
        for reader in readers:
            await reader.aclose()  # type: ignore[attr-defined]
        await nobody_reads(app)


async def test_a_thousand_subscribers_share_what_they_read() -> None:
    """Whatever the size of the events, a subscriber that waits holds a few KiB; and they are gone with it."""

    async def held(size: int) -> tuple[int, int]:
        async with in_memory(buffer_bytes=1 << 24) as app:
            handle = await app.start(steady, 100, size)
            await handle.wait()
            live = await app.start(on_demand)
            tail = Tail(live.events())
            await tail.until("waiting")
            gc.collect()
            tracemalloc.start()
            try:
                before = tracemalloc.get_traced_memory()[0]
                readers = [Tail(live.events(tail.seen[-1].seq)) for _ in range(1_000)]
                await asyncio.sleep(0)
                while streams(app).subscribers < 1_001:
                    await asyncio.sleep(0)
                stopped = [handle.events() for _ in range(1_000)]
                for reader in stopped:
                    await anext(reader)
                gc.collect()
                used = tracemalloc.get_traced_memory()[0] - before
                for reader in readers:
                    reader.task.cancel()
                await asyncio.gather(*(reader.task for reader in readers), return_exceptions=True)
                for other in stopped:
                    await other.aclose()  # type: ignore[attr-defined]
                readers.clear()
                stopped.clear()
                del reader, other
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                gc.collect()
                left = tracemalloc.get_traced_memory()[0] - before
            finally:
                tracemalloc.stop()
            assert streams(app).subscribers == 1
            tail.task.cancel()
            return used, left

    small, large = await held(10), await held(100_000)
    assert small[0] < 2_000 * 8 * 1024, f"{small[0] / 2_000:.0f} bytes for one"
    assert large[0] < small[0] + 2_000 * 1024 + (1 << 24), f"{large[0] / 2_000:.0f} bytes for one"
    assert small[1] < 1 << 19


async def test_a_reader_that_stops_behind_the_buffer_holds_one_page(tmp_path: Path) -> None:
    """Each of a hundred has read its own part of the record from files: so much of it, and no more, however much there is."""
    config = Config(engine=ENGINE, stream=StreamSettings(buffer_size=1))
    async with Durable(tmp_path / "store", config=config, test_mode=True) as app:
        handle = await app.start(steady, 3_000, 500)
        await handle.wait()
    async with Durable(tmp_path / "store", config=config, test_mode=True) as app:
        handle = await app.get(handle.run_id)
        await Tail(handle.events()).end()
        tracemalloc.start()
        try:
            readers = [handle.events() for _ in range(100)]
            for reader in readers:
                await anext(reader)
            gc.collect()
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert used / 100 < RECORDS_PAGE * 2_500, f"{used / 100:.0f} bytes for one"
        for reader in readers:
            await reader.aclose()  # type: ignore[attr-defined]


async def test_pushing_costs_the_same_whatever_the_size_of_records_and_however_many_stopped() -> None:
    """A record is passed on, not copied; who does not wait is not looked at. The least of many times, compared."""

    def least(size: int, readers: int) -> float:
        times = []
        for _ in range(15):
            ring = Ring(1024, 1 << 40)
            ring.readers = readers
            records = [Record("run", seq, Kind.EVENT, 0.0, 1, "t", payload=b"x" * size) for seq in range(1, 2_001)]
            began = time.process_time()
            for record in records:
                ring.push(record)
            times.append(time.process_time() - began)
        return min(times)

    base = least(10, 1)
    assert least(20_000, 1) < 2 * base
    assert least(10, 1_000) < 2 * base


async def test_readers_that_wait_are_woken_once_for_all_that_came(make_app: MakeApp) -> None:
    """A hundred readers, each waiting: all see a burst; none is missed by the wake."""
    async with make_app() as app:
        handle = await app.start(on_demand)
        tails = [Tail(handle.events()) for _ in range(100)]
        for round_number in range(1, 6):
            await more(handle, 20)
            for tail in tails:
                await tail.until("done", round_number)
        await handle.cancel()
        for tail in tails:
            assert (await tail.end()) == tails[0].seen


# -- who comes back


async def test_who_comes_back_in_time_asks_nothing_of_the_store(make_app: MakeApp) -> None:
    """To a run that goes on, and to one that has ended: from any place. After that time the store is asked again."""
    gates: list[Counting] = []

    def wrap(store: Store) -> Counting:
        gates.append(Counting(store))
        return gates[-1]

    async with make_app(wrap=wrap, retention_seconds=0.3) as app:
        handle = await app.start(on_demand)
        tail = Tail(handle.events(steps=True))
        await more(handle, 5)
        await tail.until("done")
        tail.task.cancel()
        await nobody_reads(app)
        last = tail.seen[-1].seq
        await more(handle, 5)  # nobody but `more` reads meanwhile
        asked = gates[0].questions
        back = Tail(handle.events(last, steps=True))
        await back.until("done")
        assert gates[0].questions == asked
        await more(handle, 0)
        await back.end()
        asked = gates[0].questions
        everything = tail.seen + back.seen
        del tail, back  # with what they were cancelled with, and its traceback
        for after in range(len(everything)):
            assert [event async for event in handle.events(after, steps=True)] == everything[after:]
        assert gates[0].questions == asked
        assert streams(app).retained == 1
        async with asyncio.timeout(10):
            while streams(app).retained:
                await asyncio.sleep(0.01)
        assert _rings() == 0
        assert [event async for event in handle.events(steps=True)] == everything
        assert gates[0].questions > asked
        async with asyncio.timeout(10):
            while streams(app).retained:
                await asyncio.sleep(0.01)
        assert _rings() == 0


async def test_on_a_shared_store_no_buffer_is_the_whole_truth() -> None:
    """Notices get lost: who comes back asks the store, and so does who was answered by a store that went on meanwhile."""
    page = [Record("run", seq, Kind.EVENT, 0.0, 1, "t") for seq in (1, 2, 3)]
    for shared, seq in ((True, 3), (False, 3), (True, 4)):
        hub, run = Hub(StreamSettings(), shared=shared), Run("run", seq=seq)
        with hub.follow("run", 0) as reader:
            assert reader.has_to_ask
            reader.ring.news = False  # the store is asked
            reader.ring.learn(0, page, run)
            assert [record.seq for record in reader.ready()] == [1, 2, 3] and not reader.ready()
            assert reader.has_to_ask == (seq == 4)
        with hub.follow("run", 1) as reader:
            assert [record.seq for record in reader.ready()] == [2, 3]
            assert reader.has_to_ask == shared
        hub.close()


def _rings() -> int:
    """How many there are, but for those of applications that were closed, which a traceback may hold."""
    gc.collect()
    return sum(type(each) is Ring and not each.closed for each in gc.get_objects())


async def test_settings_bound_what_is_kept(make_app: MakeApp) -> None:
    """`retained_max` runs, of each `buffer_size` records and `buffer_bytes`; nothing with 0."""
    async with make_app(retained_max=3, buffer_size=4) as app:
        for _ in range(6):
            handle = await app.start(bulk, 10)
            assert len(ticks([event async for event in handle.events()])) == 10
        assert (streams(app).retained, _rings()) == (3, 3)
        held = [each for each in gc.get_objects() if type(each) is Ring and not each.closed]
        assert [len(ring) for ring in held] == [4, 4, 4]
        held.clear()
    assert _rings() == 0
    for settings in ({"retained_max": 0}, {"retention_seconds": 0}):
        async with make_app(**settings) as app:
            handle = await app.start(bulk, 10)
            assert len(ticks([event async for event in handle.events()])) == 10
            assert (streams(app).retained, _rings()) == (0, 0)
    async with make_app(buffer_bytes=10_000) as app:
        handle = await app.start(steady, 20, 1_000)
        assert len(ticks([event async for event in handle.events()])) == 20
        (ring,) = [each for each in gc.get_objects() if type(each) is Ring and not each.closed]
        assert 5 <= len(ring) <= 10
        del ring
    with pytest.raises(ConfigError, match=r"stream\.buffer_bytes"):
        StreamSettings(buffer_bytes=10)


# -- who goes


async def test_who_breaks_off_frees_all_at_once(make_app: MakeApp) -> None:
    """`break`, `aclose()`, and an error in the body of the loop."""
    async with make_app(retention_seconds=0) as app:
        handle = await app.start(on_demand.options(key="key"))
        await more(handle, 2)

        async def fails(stream: AsyncIterator[Event]) -> None:
            async for _ in stream:
                raise KeyError

        for make in (lambda: handle.events(), lambda: app.subscribe("key"), lambda: handle.events(heartbeat=9)):
            async for _ in make():
                break
            await nobody_reads(app)
            stream = make()
            await anext(stream)
            assert streams(app).subscribers == 1
            await stream.aclose()  # type: ignore[attr-defined]
            assert streams(app).subscribers == 0
            with pytest.raises(KeyError):
                await fails(make())
            await nobody_reads(app)
        assert _rings() == 0
        await handle.cancel()


@pytest.mark.parametrize("heartbeat", [None, 0.001])
async def test_a_reader_can_be_cancelled_at_every_await(make_app: MakeApp, heartbeat: float | None) -> None:
    """After each number of turns; another that waits for the same answer of the store goes on, and misses nothing."""
    async with make_app(buffer_size=8, retention_seconds=0) as app:
        handle = await app.start(steady, 30)
        await handle.wait()
        ended = [event async for event in handle.events()]
        turns, over = 0, False
        while not over:
            victims = [Tail(handle.events(heartbeat=heartbeat)) for _ in range(2)]
            other = Tail(handle.events())
            for _ in range(turns):
                await asyncio.sleep(0)
            over = all(victim.task.done() for victim in victims)
            for victim in victims:
                victim.task.cancel()
            assert await other.end() == ended
            await asyncio.gather(*(victim.task for victim in victims), return_exceptions=True)
            assert streams(app).subscribers == 0
            turns += 1
        assert turns > 1


async def test_live_readers_can_be_cancelled_while_events_come(make_app: MakeApp) -> None:
    """Readers come and are cancelled at all moments of a run; the one that stays sees all."""
    async with make_app(buffer_size=8) as app:
        handle = await app.start(steady, 300)
        stays = Tail(handle.events(steps=True))
        number = 0
        while not stays.task.done():
            number += 1
            victim = Tail(handle.events(number % 40))
            for _ in range(number % 7):
                await asyncio.sleep(0)
            victim.task.cancel()
        seen = await stays.end()
        assert [event.seq for event in seen] == list(range(1, len(seen) + 1)) and ticks(seen) == list(range(300))
        await nobody_reads(app)
        assert BATCH > 8 and number > 10
