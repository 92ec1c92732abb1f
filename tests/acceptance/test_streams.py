"""Event streams over kills, restarts and executors: no gap, no double, nothing missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from durable import Durable, Event, TransitionError
from tests.acceptance.executors import Place, closed, judge, store_of, until
from tests.acceptance.executors_worker import failing, settings
from tests.acceptance.streams import many_emitters
from tests.acceptance.streams_worker import telling


class Emitters(Place):
    """A `Place` whose executors know the tasks that emit."""

    worker: ClassVar = "tests.acceptance.streams_worker"


@pytest.fixture
async def place(postgres_url: str, postgres_schema: str, tmp_path: Path) -> AsyncIterator[Place]:
    made = Emitters(postgres_url, postgres_schema, tmp_path)
    try:
        yield made
    finally:
        await made.close()


def test_w42_readers_of_64_emitters_go_on_where_they_were_after_a_kill(tmp_path: Path) -> None:
    """50,000 events, half of them seen when the process is killed: each reader sees each event of its run once, in order."""
    emitters, events = 64, 782
    told = many_emitters(tmp_path, emitters, events, 60.0)
    assert emitters * events // 2 <= told.at_kill < emitters * events
    assert told.events > emitters * events >= 50_000


@pytest.mark.timeout(120)
async def test_readers_in_a_client_go_on_over_the_kill_of_an_executor(place: Place) -> None:
    """The next executor takes the runs over; readers that were there, and one that comes later, see each event once, in order."""
    runs, events = 4, 3_000
    async with place.client(lease=1.5) as app:
        first = await place.executor(lease=1.5)
        handles = [await app.start(telling, events) for _ in range(runs)]
        told: list[list[Event]] = [[] for _ in range(2 * runs)]

        async def read(number: int, after: int = 0) -> None:
            async for event in handles[number % runs].events(after):
                told[number].append(event)

        readers = [asyncio.create_task(read(number)) for number in range(2 * runs)]

        async def well_begun() -> bool:
            return all(len(seen) > 200 for seen in told)

        await until(well_begun, "that all readers have seen some")
        await first.kill()
        at_kill = sum(map(len, told[:runs]))
        assert at_kill < runs * events, "all was over when it was killed"
        await place.executor(lease=1.5)
        await asyncio.gather(*readers)
        await closed(place, app)
        for number, handle in enumerate(handles):
            records = [record for record in await store_of(app).history(handle.run_id) if record.visible]
            seqs = [record.seq for record in records]
            assert [record.event_name for record in records].count("recovered") >= 1
            for seen in (told[number], told[number + runs]):
                assert [event.seq for event in seen] == seqs
                assert [event.data for event in seen if event.name == "tick"] == list(range(events))
            middle = seqs[len(seqs) // 2]
            assert [event.seq async for event in handle.events(middle)] == [seq for seq in seqs if seq > middle]
        await judge(place, app)


@pytest.mark.timeout(120)
async def test_a_reader_sees_a_run_come_to_its_own_process(place: Place) -> None:
    """At first the run is elsewhere and is read from the store; then its executor is killed, and what it emits comes from here."""
    events = 3_000
    first = await place.executor(lease=1.5)
    [run_id] = await first.ask("start", task=telling.name, args=[events])
    await place.held_by(run_id, first)
    async with Durable(place.url, test_mode=True, **settings(place.schema)) as app:
        handle = await app.get(run_id)
        told: list[list[Event]] = [[], []]
        here = asyncio.Event()

        async def read(number: int, after: int = 0) -> None:
            async for event in handle.events(after, steps=bool(number)):
                told[number].append(event)
                if len(told[number]) > 200:
                    here.set()

        readers = [asyncio.create_task(read(number)) for number in range(2)]
        await here.wait()
        await first.kill()
        await asyncio.gather(*readers)
        for number, seen in enumerate(told):
            records = [each for each in await store_of(app).history(run_id) if number or each.visible]
            assert [event.seq for event in seen] == [each.seq for each in records][: len(seen)]
            assert seen[-1].name == "completed"
            assert [event.data for event in seen if event.name == "tick"] == list(range(events))
        assert "recovered" in [event.name for event in told[0]]
        await closed(place, app)
        await judge(place, app)


async def test_who_comes_back_to_a_shared_store_sees_what_others_wrote_meanwhile(
    place: Place, monkeypatch: Any
) -> None:
    """What is in memory is not read again; that the run was tried again elsewhere is not missed."""
    async with place.client() as app, place.client() as other:
        await place.executor()
        handle = await app.start(failing, "word", str(place.gate))
        first = [event async for event in handle.events(steps=True)]
        assert first[-1].name == "failed"
        place.open_gate()
        history, asked = store_of(app).history, list[int]()

        async def noted(run_id: str, after: int = 0, limit: int | None = None) -> Any:
            asked.append(after)
            return await history(run_id, after, limit)

        monkeypatch.setattr(store_of(app), "history", noted)
        there = await other.get(handle.run_id)

        async def retried() -> bool:
            try:
                await there.retry()
            except TransitionError:
                return False  # it is not closed yet
            return True

        await until(retried, "that it can be retried")
        await there.wait()
        for after in range(len(first) + 1):
            seqs = [event.seq async for event in handle.events(after, steps=True)]
            assert seqs == list(range(after + 1, seqs[-1] + 1)) and seqs[-1] > len(first)
        assert min(asked) >= len(first)


async def test_readers_of_a_client_ask_the_store_once_for_all(place: Place, monkeypatch: Any) -> None:
    """64 readers of one run in a client: what comes is read once, and handed to all of them from memory."""
    async with place.client() as app:
        store, asked = store_of(app), 0
        history = store.history

        async def counted(*args: Any) -> Any:
            nonlocal asked
            asked += 1
            return await history(*args)

        monkeypatch.setattr(store, "history", counted)
        handle = await app.start(telling, 500)

        async def read() -> list[int]:
            return [event.seq async for event in handle.events()]

        readers = [asyncio.create_task(read()) for _ in range(64)]
        while asked == 0:
            await asyncio.sleep(0)
        await place.executor()
        told = await asyncio.gather(*readers)
        assert all(seen == told[0] for seen in told) and len(told[0]) == 503
        assert asked < 24, f"{asked} questions for 64 readers"
