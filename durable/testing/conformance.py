"""What every store must do: one suite for memory, local, PostgreSQL, and for a store or a repository of your own.

Law: it speaks only through `Store`, and expects the same answers whether records are fresh or have long been flushed.

    class TestMyStore(StoreConformance):
        async def make_store(self, tmp_path): ...     # a store on fresh ground, not yet open
        async def reopen(self, store): ...            # close it; return an open store on the same ground

It needs pytest and pytest-asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from durable.core.query import RunFilter
from durable.core.records import Kind
from durable.core.run import fold
from durable.core.status import Status
from durable.errors import ConflictError, DurableError
from durable.store.base import Store
from durable.testing.keeping_conformance import KeepingConformance
from durable.testing.query_conformance import QueryConformance
from durable.testing.samples import NOW, World, created, failed, finished, ids, record, run_id

__all__ = ["NOW", "StoreConformance", "World", "created", "failed", "finished", "ids", "record", "run_id"]


class StoreConformance(QueryConformance, KeepingConformance):
    """See the module."""

    pytestmark = pytest.mark.asyncio

    async def make_store(self, tmp_path: Path) -> Store:
        """A store on fresh ground, not yet open."""
        raise NotImplementedError

    async def reopen(self, store: Store) -> Store:
        """Close the store and return an open one on the same ground."""
        raise NotImplementedError

    @pytest_asyncio.fixture(params=[False, True], ids=["fresh", "settled"])
    async def world(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
        """An open store; tests call `ready` between writing and reading."""
        store = await self.make_store(tmp_path)
        await store.open()
        world = World(self.reopen, store, request.param)
        yield world
        await world.store.close()

    # -- commit

    async def test_what_is_committed_is_found(self, world: World) -> None:
        """A run is there after its commit, as the fold of its records."""
        records = finished(1, user="u", key="k", version="2", parent=run_id(9), attached=True, priority=3, timeout=1.5)
        await world.store.commit([records])
        store = await world.ready()
        assert await store.find(run_id(1)) == fold(records)
        assert await store.history(run_id(1)) == records

    async def test_nothing_is_visible_before_the_commit_returns(self, world: World) -> None:
        """A commit under way shows all of its unit or nothing, and before it could have returned, nothing."""
        task = asyncio.ensure_future(world.store.commit([finished(1)]))
        assert await world.store.find(run_id(1)) in (None, fold(finished(1)))
        await task
        store = await world.ready()
        assert await store.find(run_id(1)) is not None

    async def test_records_of_a_unit_share_a_batch_and_batches_rise(self, world: World) -> None:
        """Replay hands results back in the batches in which they became durable, so their numbers must survive."""
        first, second, third = finished(1)[:1], finished(1)[1:3], finished(1)[3:]
        await world.store.commit([first, second])
        await world.store.commit([third])
        batches = [each.batch for each in (*first, *second, *third)]
        assert batches[0] < batches[1] == batches[2] < batches[3]
        store = await world.ready()
        assert [each.batch for each in await store.history(run_id(1))] == batches
        more = created(2)
        await store.commit([[more]])
        assert more.batch > batches[3]

    async def test_a_unit_may_concern_several_runs(self, world: World) -> None:
        """A parent and the child that it starts are one fact."""
        await world.store.commit([[created(1), record(1, 2, Kind.STARTED)]])
        unit = [record(1, 3, Kind.CHILD_STARTED, name="child", child=run_id(2)), created(2, parent=run_id(1))]
        await world.store.commit([unit])
        store = await world.ready()
        assert unit[0].batch == unit[1].batch
        assert (await store.history(run_id(1)))[-1] == unit[0]
        assert await store.history(run_id(2)) == [unit[1]]

    async def test_a_record_committed_twice_counts_once(self, world: World) -> None:
        """Who did not hear the answer may commit again."""
        await world.store.commit([[created(1), record(1, 2, Kind.SIGNAL, name="s", payload=b"1")]])
        await world.store.commit([[record(1, 2, Kind.SIGNAL, name="s", payload=b"1")]])
        store = await world.ready()
        run = await store.find(run_id(1))
        assert run is not None
        assert (run.seq, run.signals) == (2, [(2, "s")])
        assert [each.seq for each in await store.history(run_id(1))] == [1, 2]

    async def test_a_gap_is_refused_and_nothing_is_written(self, world: World) -> None:
        """Records of a run are 1, 2, 3 ... without a gap."""
        await world.store.commit([[created(1)]])
        for wrong in (record(1, 3, Kind.STARTED), record(7, 2, Kind.STARTED)):
            with pytest.raises(ValueError, match="record"):
                await world.store.commit([[created(2)], [wrong]])
        store = await world.ready()
        assert await store.find(run_id(2)) is None
        await store.commit([[record(1, 2, Kind.STARTED)], [created(2)]])
        assert ids(await store.query(RunFilter())) == [1, 2]

    async def test_concurrent_commits_keep_the_order_of_a_run(self, world: World) -> None:
        """Commits of one run that overlap are durable in the order in which they were called."""
        records = [created(1), *(record(1, seq, Kind.EVENT, name=f"e{seq}", payload=b"0") for seq in range(2, 40))]
        await asyncio.gather(*(world.store.commit([[each]]) for each in records))
        store = await world.ready()
        history = await store.history(run_id(1))
        assert history == records
        assert [each.batch for each in history] == sorted({each.batch for each in history})

    async def test_a_cancelled_commit_is_whole_or_absent(self, world: World) -> None:
        """Whoever is cancelled while waiting for a commit does not know its outcome; the store does."""
        tasks = [asyncio.ensure_future(world.store.commit([finished(number)])) for number in range(1, 30)]
        for number, task in enumerate(tasks):
            if number % 3 == 0:
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        store = await world.ready()
        await store.commit([[created(100)]])
        for number in range(1, 30):
            run = await store.find(run_id(number))
            assert run is None or run == fold(finished(number))
            assert len(await store.history(run_id(number))) == (0 if run is None else 4)

    async def test_a_run_goes_on_after_it_was_settled(self, world: World) -> None:
        """A signal, a cancel or a retry may meet a run that nobody has used for long."""
        await world.store.commit([[created(1)], [created(2), record(2, 2, Kind.STARTED), failed(2, 3)]])
        store = await world.ready()
        await store.commit(
            [[record(1, 2, Kind.SIGNAL, name="go", payload=b"1")], [record(2, 4, Kind.RESUMED, reason="retry")]]
        )
        store = await world.ready()
        one, two = await store.find(run_id(1)), await store.find(run_id(2))
        assert one is not None
        assert two is not None
        assert one.signals == [(2, "go")]
        assert (two.status, two.attempt, two.dead) == (Status.READY, 2, False)
        assert len(await store.history(run_id(2))) == 4

    # -- find, keys, history

    async def test_unknown_ids_are_nothing(self, world: World) -> None:
        """Asking for what does not exist is no error."""
        store = await world.ready()
        assert await store.find(run_id(1)) is None
        assert await store.find("no id at all \ud800") is None
        assert await store.find_key(None, "k") is None
        assert await store.history(run_id(1)) == []
        assert await store.query(RunFilter()) == []

    async def test_answers_are_copies(self, world: World) -> None:
        """What a caller does to a run it was given changes nothing in the store."""
        await world.store.commit([[created(1), record(1, 2, Kind.SIGNAL, name="s", payload=b"1")]])
        store = await world.ready()
        for spoiled in [*await store.query(RunFilter()), await store.find(run_id(1))]:
            assert spoiled is not None
            spoiled.signals.append((9, "x"))
            spoiled.status = Status.FAILED
            run = await store.find(run_id(1))
            assert run is not None
            assert (run.signals, run.status) == ([(2, "s")], Status.READY)

    async def test_keys_are_scoped_by_user(self, world: World) -> None:
        """Two users may use the same key, and so may no user at all; an empty name is a name."""
        users = [None, "", "a", "b", "é", "\ud800"]
        for number, user in enumerate(users, 1):
            head: dict[str, Any] = {"key": "k"} if user is None else {"key": "k", "user": user}
            await world.store.commit([[created(number, **head)]])
        store = await world.ready()
        for number, user in enumerate(users, 1):
            run = await store.find_key(user, "k")
            assert run is not None
            assert (run.run_id, run.user) == (run_id(number), user)
        assert await store.find_key("c", "k") is None
        assert await store.find_key("a", "other") is None
        assert ids(await store.query(RunFilter(key="k"))) == list(range(1, len(users) + 1))
        assert await store.query(RunFilter(key="other")) == []

    async def test_a_key_has_one_run(self, world: World) -> None:
        """A second creation with a key, be the first open or long ended, is refused before anything is written."""
        assert await world.store.find_key("u", "k") is None
        await world.store.commit([finished(1, key="k", user="u")])
        store = await world.ready()
        for _ in range(2):
            with pytest.raises(ConflictError) as caught:
                await store.commit([[created(3)], [created(2, key="k", user="u")]])
            assert caught.value.key == "k"
        race = [store.commit([[created(4, key="new")]]), store.commit([[created(5, key="new")]])]
        outcomes = await asyncio.gather(*race, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), ConflictError]
        run = await store.find_key("u", "k")
        assert run is not None
        assert run.run_id == run_id(1)
        assert ids(await store.query(RunFilter())) == [1, 4]

    async def test_history_pages(self, world: World) -> None:
        """`after` and `limit` cut the history, however long it is and wherever it lies."""
        records = [created(1), *(record(1, seq, Kind.EVENT, name="e", payload=b"%d" % seq) for seq in range(2, 501))]
        await world.store.commit([records[:300]])
        store = await world.ready()
        await store.commit([[each] for each in records[300:]])
        for after, limit in (
            (0, None),
            (0, 10),
            (295, 10),
            (298, 4),
            (300, 5),
            (499, None),
            (500, None),
            (900, 3),
            (0, 0),
        ):
            expected = records[after : None if limit is None else after + limit]
            assert await store.history(run_id(1), after, limit) == expected

    async def test_many_histories_at_once(self, world: World) -> None:
        """What recovery reads is what `history` says, whether records lie here, there or in both places."""
        await world.store.commit([[created(1)], finished(2), [created(3), record(3, 2, Kind.STARTED)]])
        store = await world.ready()
        await store.commit([[record(1, 2, Kind.STARTED)], finished(4)])
        found = await store.histories([run_id(number) for number in (4, 1, 2, 3, 99)])
        assert sorted(found) == [run_id(number) for number in (1, 2, 3, 4)]
        for each, records in found.items():
            assert records == await store.history(each)

    async def test_records_come_back_exactly(self, world: World) -> None:
        """No byte, no empty value and no text changes on the way."""
        unit = [
            created(1, task="täsk\ud800", payload=b"", note={"deep": [1, None, True, "ü\udfff", 1e300]}),
            record(1, 2, Kind.EVENT, name="\x00e", payload=bytes(range(256)) * 5),
            record(1, 3, Kind.EVENT, name="none", payload=None),
        ]
        await world.store.commit([unit])
        store = await world.ready()
        assert await store.history(run_id(1)) == unit

    # -- the store itself

    async def test_it_is_well_and_lets_in(self, world: World) -> None:
        """An open store with room admits runs and says that it is well."""
        store = await world.ready()
        store.admit()
        assert store.health().state == "ok"

    async def test_its_identity_stays(self, world: World) -> None:
        """The store id is the same for ever."""
        before = world.store.store_id
        store = await world.ready()
        assert store.store_id == before
        assert before

    async def test_a_closed_store_refuses(self, world: World) -> None:
        """After `close` nothing is answered from memory as if it were still so."""
        store = await world.ready()
        await store.commit([finished(1)])
        await store.close()
        with pytest.raises(DurableError):
            await store.commit([finished(2)])
        with pytest.raises(DurableError):
            await store.find(run_id(1))
        with pytest.raises(DurableError):
            store.admit()
        await store.open()
        assert await store.find(run_id(1)) == fold(finished(1))
        assert await store.find(run_id(2)) is None
