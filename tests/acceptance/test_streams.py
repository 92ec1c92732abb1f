"""Event streams over kills, restarts and executors: no gap, no double, nothing missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from durable import Event
from tests.acceptance.executors import Place, closed, judge, store_of, until
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
        assert asked < 64, f"{asked} questions for 64 readers"
