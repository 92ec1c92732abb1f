"""The local store and a repository that is slow, away, or does not want what it is given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import TypeVar

import pytest

from durable.config import FlushSettings, LogSettings
from durable.core.query import RunFilter
from durable.core.records import Kind
from durable.core.run import Run, fold
from durable.errors import BackpressureError, RepositoryUnavailableError, StorageFullError, StoreReadOnlyError
from durable.store import LocalStore
from durable.testing.conformance import created, finished, ids, record, run_id
from durable.testing.repository import MemoryRepository, away
from durable.testing.samples import NOW, asleep

from .conftest import Opener

T = TypeVar("T")
QUICK = FlushSettings(interval_seconds=0.002, breaker_threshold=2, breaker_open_seconds=0.02)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def flushed(store: LocalStore) -> bool:
    return store.health().backlog_records == 0


async def test_work_goes_on_while_the_repository_is_away(open_store: Opener, caplog: pytest.LogCaptureFixture) -> None:
    """Commits and what memory can answer go on; the rest says that the repository is away; all of it is flushed once it is back."""
    caplog.set_level(logging.INFO, "durable.flush")
    repository = MemoryRepository()
    store = await open_store(flush=QUICK, repository=repository)
    await store.commit([finished(1, key="old")])
    await until(lambda: flushed(store))
    assert await store.find_key(None, "k") is None  # as the engine does before it creates a run with a key
    repository.away = away()
    await store.commit([[created(2, key="k"), record(2, 2, Kind.STARTED)]])
    await until(lambda: store.health().state == "degraded")
    assert "away" in store.health().detail
    await store.commit([[record(2, 3, Kind.EVENT, name="e", payload=b"1")], finished(3)])
    assert (await store.find_key(None, "k")) is not None
    assert len(await store.history(run_id(2))) == 3
    assert await store.find(run_id(3)) == fold(finished(3))
    for question in (
        store.find(run_id(1)),
        store.find_key(None, "old"),
        store.history(run_id(1)),
        store.query(RunFilter()),
    ):
        with pytest.raises(RepositoryUnavailableError):
            await question
    for unknowable in ([created(4, key="another")], [record(1, 5, Kind.DISCARDED)]):
        with pytest.raises(RepositoryUnavailableError):
            await store.commit([unknowable])
    store.admit()
    repository.away = None
    await until(lambda: flushed(store) and store.health().state == "ok")
    assert ids(await store.query(RunFilter())) == [1, 2, 3]
    told = [each.message.split(":")[0].split("(")[0].strip() for each in caplog.records]
    assert told.count("the repository is away") <= told.count("trying the repository again")
    assert told[0] == "the repository is away"
    assert told[-1] == "the repository is back"


async def test_whatever_a_repository_raises_it_is_only_away(open_store: Opener) -> None:
    """A driver's own error neither kills the flusher nor reaches who asks."""
    repository = MemoryRepository()
    store = await open_store(flush=QUICK, repository=repository)
    repository.away = KeyError("a bug in the driver")
    await store.commit([finished(1)])
    with pytest.raises(RepositoryUnavailableError, match="a bug in the driver"):
        await store.query(RunFilter())
    repository.away = None
    await until(lambda: flushed(store))


async def test_an_answer_that_is_lost_does_no_harm(open_store: Opener) -> None:
    """The batch was applied, its answer lost: it is applied again, and nothing is there twice."""
    repository = MemoryRepository()
    store = await open_store(flush=QUICK, repository=repository)
    repository.fail_after = away("the answer was lost")
    await store.commit([finished(1)])
    await until(lambda: flushed(store))
    assert repository.batches == 2
    assert len(await store.history(run_id(1))) == 4


async def test_close_succeeds_while_the_repository_is_away(open_store: Opener) -> None:
    """The log has it all: the next open flushes it."""
    repository = MemoryRepository()
    store = await open_store(flush=QUICK, repository=repository)
    repository.away = away()
    await store.commit([finished(1)])
    await store.close()
    with pytest.raises(RepositoryUnavailableError):
        await store.open()
    repository.away = None
    await store.open()
    assert await store.find(run_id(1)) == fold(finished(1))
    await until(lambda: repository.position == 1)


async def test_a_backlog_first_refuses_starts_and_then_holds_commits(open_store: Opener) -> None:
    """Past one bound `admit` raises; past twice the bound commits wait, in order, and go on when there is room."""
    repository = MemoryRepository()
    settings = FlushSettings(
        interval_seconds=0.002, backlog_records_max=10, breaker_threshold=1, breaker_open_seconds=0.01
    )
    store = await open_store(flush=settings, repository=repository)
    repository.away = away()
    await store.commit([[created(number)] for number in range(10)])
    store.admit()
    await store.commit([[created(10)]])
    with pytest.raises(BackpressureError) as caught:
        store.admit()
    assert caught.value.retry_after > 0
    await store.commit([[created(number)] for number in range(11, 20)])
    waiting = [asyncio.ensure_future(store.commit([[created(number)]])) for number in range(20, 25)]
    waiting.append(asyncio.ensure_future(store.commit([[record(24, 2, Kind.STARTED)]])))
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    assert "commits wait" in store.health().detail
    repository.away = None
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    await until(lambda: flushed(store))
    store.admit()
    assert ids(await store.query(RunFilter())) == list(range(25))


async def test_closing_lets_commits_go_that_wait_for_room(open_store: Opener) -> None:
    """Nobody hangs on a store that is closed."""
    repository = MemoryRepository()
    store = await open_store(flush=FlushSettings(interval_seconds=0.002, backlog_records_max=1), repository=repository)
    repository.away = away()
    await store.commit([finished(1)])
    waiting = asyncio.ensure_future(store.commit([finished(2)]))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await store.close()
    await asyncio.wait({waiting}, timeout=5)
    repository.away = None
    await store.open()
    assert (await store.find(run_id(2)) is not None) == (waiting.exception() is None)


async def test_a_poison_record_holds_up_nobody_else(open_store: Opener, caplog: pytest.LogCaptureFixture) -> None:
    """The run that the repository refuses is withheld and named; the others are flushed; the log keeps it; it is tried again at open."""
    repository = MemoryRepository()
    repository.refuses = lambda row: row[0] == run_id(13) and row[1] == 3
    store = await open_store(flush=QUICK, repository=repository)
    await store.commit([finished(number) for number in range(30)])
    await until(lambda: store.health().backlog_records == 4)
    await store.commit([[created(40)], [record(13, 5, Kind.RESUMED)]])
    await until(lambda: store.health().backlog_records == 5)
    assert store.health().state == "degraded"
    assert run_id(13) in store.health().detail
    assert "record 3" in store.health().detail
    assert sum("refuses run" in each.message for each in caplog.records) == 1
    assert repository.position == 13
    assert ids(await store.query(RunFilter())) == [*range(30), 40]
    assert len(await store.history(run_id(13))) == 5
    await store.close()
    await store.open()
    await until(lambda: store.health().state == "degraded" and store.health().backlog_records == 5)
    assert len(await store.history(run_id(13))) == 5
    assert ids(await store.query(RunFilter())) == [*range(30), 40]
    await store.close()
    repository.refuses = None
    await store.open()
    await until(lambda: flushed(store))
    assert store.health().state == "ok"
    assert repository.position == 32
    assert len(await store.history(run_id(13))) == 5


async def test_a_repository_that_refuses_everything_is_away(open_store: Opener) -> None:
    """Beyond a number of refused runs the fault is the repository's, and the breaker opens."""
    repository = MemoryRepository()
    repository.refuses = lambda row: True
    store = await open_store(flush=QUICK, repository=repository)
    await store.commit([[created(number)] for number in range(300)])
    await until(lambda: "refuses more than" in store.health().detail)
    assert repository.position == 0
    await store.commit([[created(1000)]])


async def test_the_position_counts_whole_units(open_store: Opener) -> None:
    """A batch never ends inside a unit, however small batches are."""
    repository = MemoryRepository()
    store = await open_store(flush=FlushSettings(interval_seconds=0.001, batch_records_max=3), repository=repository)
    await store.commit([finished(number) for number in range(20)])
    await until(lambda: flushed(store))
    assert repository.position == 20
    assert repository.batches == 20


async def test_flushing_lets_go_of_what_it_flushed(open_store: Opener) -> None:
    """Memory holds no record that the repository has, and no run that has ended."""
    store = await open_store(flush=QUICK)
    await store.commit([finished(1), [created(2, key="k", parent=run_id(1)), record(2, 2, Kind.STARTED)]])
    await until(lambda: flushed(store))
    overlay = store._overlay
    assert list(overlay.entries) == [run_id(2)]
    assert overlay.entries[run_id(2)].records == []
    await store.commit([[record(2, 3, Kind.CANCELLED)]])
    await until(lambda: flushed(store))
    assert not any((overlay.entries, overlay._keys, overlay._children, overlay._clean))


async def test_what_is_committed_twice_does_not_stop_the_flusher(open_store: Opener) -> None:
    """A run may be closed, flushed and forgotten when its records come once more: the flusher has no need of it then."""
    store = await open_store(flush=replace(QUICK, batch_records_max=2))
    await store.commit([finished(1), finished(1)])
    await until(lambda: flushed(store))
    assert run_id(1) not in store._overlay.entries
    await store.commit([finished(1)])
    await store.commit([finished(2)])
    await until(lambda: flushed(store))
    assert store.health().state == "ok"


async def test_flushed_segments_are_removed(open_store: Opener) -> None:
    """The log is retired as far as the repository has it."""
    store = await open_store(flush=QUICK, log=LogSettings(segment_bytes=4096))
    for number in range(100):
        await store.commit([finished(number)])
    await until(lambda: flushed(store))
    assert store._log is not None
    await until(lambda: store._log is not None and store._log.first_lsn > 80)


async def test_little_room_refuses_starts_and_nothing_else(open_store: Opener) -> None:
    """Below the low-water mark new runs are refused, while what runs goes on."""
    store = await open_store(log=LogSettings(low_water_bytes=1 << 62))
    with pytest.raises(StorageFullError, match="low_water_bytes"):
        store.admit()
    await store.commit([finished(1)])
    assert store.health().state == "degraded"


async def test_a_reader_sees_what_is_acknowledged_and_writes_nothing(open_store: Opener) -> None:
    """Beside a living process, a store that is open for reading shows the repository and the rest of the log."""
    store = await open_store(flush=QUICK)
    await store.commit([finished(1, key="k")])
    await until(lambda: flushed(store))
    quiet = await open_store(read_only=True)
    await store.commit([finished(2)])
    for reader in (quiet, await open_store(read_only=True)):
        assert await reader.find_key(None, "k") == fold(finished(1, key="k"))
        assert len(await reader.history(run_id(1))) == 4
        with pytest.raises(StoreReadOnlyError):
            await reader.commit([finished(3)])
        with pytest.raises(StoreReadOnlyError):
            reader.admit()
    assert await reader.find(run_id(2)) == fold(finished(2))
    assert reader.store_id == store.store_id


class Slow(MemoryRepository):
    """It has its answer, and gives it when the gate is open."""

    gate: asyncio.Event | None = None

    async def query(self, wanted: RunFilter) -> list[Run]:
        return await self._late(await super().query(wanted))

    async def next_due(self, after: float, but: Container[str] = ()) -> float | None:
        return await self._late(await super().next_due(after, but))

    async def _late(self, answer: T) -> T:
        if self.gate is not None:
            await self.gate.wait()
        return answer


async def test_a_query_in_the_middle_of_a_flush_misses_nothing(open_store: Opener) -> None:
    """A run that is flushed, and even let go, while the repository is asked is in the answer all the same."""
    repository = Slow()
    store = await open_store(flush=FlushSettings(interval_seconds=0.02), repository=repository)
    await store.commit([finished(1), [created(2)], asleep(3, NOW + 5)])
    repository.gate = asyncio.Event()
    asking = asyncio.ensure_future(store.query(RunFilter()))
    due = asyncio.ensure_future(store.query(RunFilter(due_by=NOW)))
    next_due = asyncio.ensure_future(store.next_due(0.0))
    await asyncio.sleep(0.001)
    await until(lambda: flushed(store) and run_id(1) not in store._overlay.entries)
    await store.commit([[record(3, 4, Kind.AWAKE), record(3, 5, Kind.ASLEEP, until=NOW + 6)]])
    await until(lambda: flushed(store))
    repository.gate.set()
    assert ids(await asking) == [1, 2, 3]
    assert ids(await due) == [2]
    assert await next_due == NOW + 6


class SlowFinder(MemoryRepository):
    """Tells of runs when a gate is open."""

    gate: asyncio.Event | None = None

    async def find(self, run_ids: Sequence[str]) -> dict[str, Run]:
        found = await super().find(run_ids)
        if self.gate is not None:
            await self.gate.wait()
        return found


async def test_a_run_that_leaves_memory_while_another_is_looked_up_is_looked_up_too(open_store: Opener) -> None:
    """Of two closed runs in one commit one was flushed, and let go, while the repository was asked for the other."""
    repository = SlowFinder()
    store = await open_store(flush=FlushSettings(interval_seconds=0.02), repository=repository)
    await store.commit([finished(1)])
    await until(lambda: flushed(store) and run_id(1) not in store._overlay.entries)
    await store.commit([finished(2)])
    repository.gate = asyncio.Event()
    committing = asyncio.ensure_future(store.commit([[record(2, 5, Kind.DISCARDED)], [record(1, 5, Kind.DISCARDED)]]))
    await until(lambda: flushed(store) and run_id(2) not in store._overlay.entries)
    repository.gate.set()
    await committing
    assert [len(await store.history(run_id(number))) for number in (1, 2)] == [5, 5]


async def test_what_is_due_is_found_among_many_that_are_asleep(open_store: Opener) -> None:
    """Opening and asking for what is due bring into memory what is due, however many runs are asleep."""
    repository = MemoryRepository()
    store = await open_store(repository=repository)
    await store.commit(
        [*(asleep(number, NOW + number) for number in range(500)), *(asleep(n) for n in range(500, 600))]
    )
    await store.close()
    await store.open()
    assert not store._overlay.entries
    assert await store.next_due(NOW) == NOW + 1
    assert ids(await store.query(RunFilter(due_by=NOW + 3))) == [0, 1, 2, 3]
    assert len(store._overlay.entries) == 4
    assert not store._overlay.unflushed


async def test_a_run_that_is_not_closed_stays_at_hand(open_store: Opener) -> None:
    """It has ended, and its children have not: what follows needs no query."""
    repository = MemoryRepository()
    store = await open_store(flush=QUICK, repository=repository)
    await store.commit(
        [[created(1), record(1, 2, Kind.STARTED), record(1, 3, Kind.CHILD_STARTED), record(1, 4, Kind.CANCELLED)]]
    )
    await until(lambda: flushed(store))
    repository.away = away()
    await store.commit([[record(1, 5, Kind.CLOSED)]])
    repository.away = None
    await until(lambda: flushed(store))
    assert not store._overlay.entries
    assert ids(await store.query(RunFilter(open=True))) == []
