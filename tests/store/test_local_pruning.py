"""The local store forgets runs: what is in the log, on its way there, or being brought back, is never contradicted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from durable.config import FlushSettings, LogSettings
from durable.core.query import RunFilter
from durable.core.records import Kind
from durable.core.run import Run, fold
from durable.errors import ConflictError, RepositoryUnavailableError, StoreReadOnlyError
from durable.repository import SqliteRepository
from durable.store import LocalStore
from durable.testing.repository import MemoryRepository, away
from durable.testing.samples import NOW, created, failed, finished, ids, record, run_id

from .conftest import Opener

LATER = NOW + 1_000
SLOW = FlushSettings(interval_seconds=3_600)
#: A run that failed and was discarded: it may be forgotten, or be retried.
DISCARDED = [created(1), record(1, 2, Kind.STARTED), failed(1, 3), record(1, 4, Kind.DISCARDED)]


class Gated(SqliteRepository):
    """One that stops before a run is looked up, or in the middle of forgetting."""

    gate: asyncio.Event | None = None
    reached: asyncio.Event

    async def _pass(self) -> None:
        gate, self.gate = self.gate, None
        if gate is not None:
            self.reached.set()
            await gate.wait()

    async def find(self, run_ids: object) -> dict[str, Run]:
        found = await super().find(run_ids)  # type: ignore[arg-type]
        await self._pass()
        return found

    async def prune(
        self, before: float, limit: int, lets_go: Callable[[Collection[str], Collection[str]], bool]
    ) -> list[str]:
        gone = await super().prune(before, limit, lets_go)
        await self._pass()
        return gone

    def shut(self) -> asyncio.Event:
        """Stop who comes next."""
        self.gate, self.reached = asyncio.Event(), asyncio.Event()
        return self.gate


async def test_what_is_not_flushed_is_flushed_first(open_store: Opener) -> None:
    """And with the log as it is, each opening finds it gone."""
    store = await open_store(flush=SLOW)
    await store.commit([finished(1), [created(2)]])
    assert store.health().backlog_records == 5
    assert await store.prune(LATER, 10) == 1
    assert store.health().backlog_records == 0
    for _ in range(2):
        await store.close()
        await store.open()
        assert ids(await store.query(RunFilter())) == [2]


async def test_a_repository_that_is_away_forgets_nothing(open_store: Opener) -> None:
    """Who asks is told, and the store goes on."""
    repository = MemoryRepository()
    store = await open_store(flush=SLOW, repository=repository)
    await store.commit([finished(1)])
    repository.away = away()
    with pytest.raises(RepositoryUnavailableError):
        await store.prune(LATER, 10)
    await store.commit([[created(2)]])
    repository.away = None
    assert await store.prune(LATER, 10) == 1


async def test_what_is_above_the_position_stays_until_it_is_below(open_store: Opener) -> None:
    """A run that the repository refuses keeps the position, and all that came after it, also what is flushed."""
    repository = MemoryRepository()
    repository.refuses = lambda row: row[0] == run_id(13)
    store = await open_store(repository=repository)
    await store.commit([finished(number) for number in range(30)])
    assert await store.prune(LATER, 100) == 13
    await store.close()
    repository.refuses = None
    await store.open()
    assert ids(await store.query(RunFilter())) == list(range(13, 30))
    assert await store.prune(LATER, 100) == 17
    await store.close()
    await store.open()
    assert await store.count(RunFilter()) == 0


async def test_a_commit_that_brings_a_run_back_keeps_it(tmp_path: Path) -> None:
    """It is being looked up for a commit when it is to be forgotten: it stays."""
    repository = Gated(tmp_path / "store" / "repository.db")
    store = LocalStore(tmp_path / "store", repository=repository)
    await store.open()
    await store.commit([DISCARDED, finished(2)])
    await store.close()
    await store.open()
    gate = repository.shut()
    commit = asyncio.ensure_future(store.commit([[record(1, 5, Kind.RESUMED)]]))
    await repository.reached.wait()
    assert await store.prune(LATER, 10) == 1
    gate.set()
    await commit
    assert await store.prune(LATER, 10) == 0
    await store.close()
    await store.open()
    assert ids(await store.query(RunFilter())) == [1]
    assert len(await store.history(run_id(1))) == 5
    await store.close()


async def test_a_commit_that_comes_too_late_is_refused(tmp_path: Path) -> None:
    """It waits for what is being forgotten, and is told; nothing of it is in the log."""
    repository = Gated(tmp_path / "store" / "repository.db")
    store = LocalStore(tmp_path / "store", repository=repository)
    await store.open()
    await store.commit([DISCARDED])
    await store.prune(0.0, 10)  # flushed, and out of memory
    gate = repository.shut()
    pruning = asyncio.ensure_future(store.prune(LATER, 10))
    await repository.reached.wait()
    commit = asyncio.ensure_future(store.commit([[record(1, 5, Kind.RESUMED)]]))
    await asyncio.wait((commit,), timeout=0.05)
    assert not commit.done()
    gate.set()
    assert await pruning == 1
    with pytest.raises(ValueError, match="no run has this id"):
        await commit
    await store.commit([[created(2)]])
    await store.close()
    await store.open()
    assert ids(await store.query(RunFilter())) == [2]
    await store.close()


async def test_a_child_that_only_the_log_has_keeps_its_family(open_store: Opener) -> None:
    """The repository does not know it yet."""
    repository = MemoryRepository()
    store = await open_store(flush=SLOW, repository=repository)
    await store.commit([finished(1)])
    await store.prune(0.0, 1)
    repository.refuses = lambda row: row[0] == run_id(2)
    await store.commit([finished(2, parent=run_id(1))])
    assert await store.prune(LATER, 10) == 0
    assert ids(await store.query(RunFilter())) == [1, 2]


async def test_many_forget_while_many_commit(open_store: Opener) -> None:
    """At once, on one store: what is over goes once, what is not stays, and the keys come round."""
    store = await open_store(flush=FlushSettings(interval_seconds=0.001), log=LogSettings(segment_bytes=16 * 1024))
    counts: list[int] = []
    done = False

    async def forget() -> None:
        while not done:
            counts.append(await store.prune(LATER, 7))
            await asyncio.sleep(0)

    forgetting = [asyncio.ensure_future(forget()) for _ in range(3)]
    kept = []
    for number in range(0, 600, 3):
        for _ in range(100):
            try:
                await store.commit(
                    [finished(number, key=f"k{number % 30}"), finished(number + 1), [created(number + 2)]]
                )
                break
            except ConflictError:
                await asyncio.sleep(0.001)
        else:
            pytest.fail("the key of a run that is over is never free")
        kept.append(number + 2)
    done = True
    await asyncio.gather(*forgetting)
    while count := await store.prune(LATER, 100):
        counts.append(count)
    assert sum(counts) == 400
    await store.close()
    await store.open()
    assert ids(await store.query(RunFilter(limit=1_000))) == kept


async def test_a_reader_sees_it_go_and_forgets_nothing(open_store: Opener) -> None:
    """A store that is open for reading only refuses."""
    store = await open_store()
    await store.commit([finished(1), [created(2)]])
    reader = LocalStore(store.path, read_only=True)
    await reader.open()
    with pytest.raises(StoreReadOnlyError):
        await reader.prune(LATER, 10)
    assert await reader.count(RunFilter()) == 2
    assert await reader.find(run_id(1)) == fold(finished(1))
    await reader.close()
    await store.prune(LATER, 10)
    await reader.open()
    assert (await reader.count(RunFilter()), await reader.find(run_id(1))) == (1, None)
    await reader.close()


async def test_counting_reads_indexes_only(open_store: Opener) -> None:
    """What is asked often, dead letters and runs by their status, reads no row."""
    store = await open_store()
    repository = store._repository
    assert isinstance(repository, SqliteRepository) and repository._scans is not None
    for sql in (
        "SELECT count(*) FROM runs WHERE dead = 1",
        "SELECT count(*) FROM runs WHERE status IN ('ready', 'running')",
    ):
        (plan,) = await repository._scans.execute_fetchall(f"EXPLAIN QUERY PLAN {sql}")
        assert "USING COVERING INDEX" in plan[3], plan[3]
