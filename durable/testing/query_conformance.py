"""What every store must do when it is asked which runs there are, and when the next is due: a part of `StoreConformance`.

Law: `RunFilter.matches` and `Run.due` are the meaning, whether runs are fresh or have long been flushed.
"""

from __future__ import annotations

from itertools import product

from durable.core.query import RunFilter
from durable.core.records import Kind
from durable.core.run import fold
from durable.core.status import Status
from durable.store.base import Store
from durable.testing.samples import NOW, World, asleep, created, each_wait, failed, finished, ids, record, run_id

#: Times before, at, between and after those at which the samples are due.
TIMES = (-1.0, 0.0, NOW, NOW + 0.1, NOW + 50, NOW + 69, NOW + 99.75, NOW + 100, NOW + 1e9)


class QueryConformance:
    """See the module."""

    async def _populate(self, store: Store) -> None:
        await store.commit([finished(1, user="a"), finished(2, user="b", parent=run_id(1))])
        await store.commit([[created(3, task="other", parent=run_id(1))]])
        await store.commit([[created(4, user="a"), record(4, 2, Kind.STARTED)]])
        await store.commit([[created(5), record(5, 2, Kind.STARTED), failed(5, 3)]])
        await store.commit([[created(6), record(6, 2, Kind.STARTED), failed(6, 3), record(6, 4, Kind.DISCARDED)]])
        await store.commit([[created(7), record(7, 2, Kind.CANCELLED, reason="r")]])

    async def test_every_filter(self, world: World) -> None:
        """Each filter alone, and all together, select what `RunFilter.matches` says."""
        await self._populate(world.store)
        store = await world.ready()
        expected: list[tuple[RunFilter, list[int]]] = [
            (RunFilter(), [1, 2, 3, 4, 5, 6, 7]),
            (RunFilter(status=frozenset({Status.COMPLETED})), [1, 2]),
            (RunFilter(status=frozenset({Status.READY, Status.FAILED})), [3, 5, 6]),
            (RunFilter(status=frozenset()), []),
            (RunFilter(task="other"), [3]),
            (RunFilter(user="a"), [1, 4]),
            (RunFilter(parent_id=run_id(1)), [2, 3]),
            (RunFilter(parent_id=run_id(77)), []),
            (RunFilter(dead=True), [5]),
            (RunFilter(open=True), [3, 4]),
            (RunFilter(after=run_id(3)), [4, 5, 6, 7]),
            (RunFilter(limit=0), []),
            (RunFilter(limit=3, after=run_id(2)), [3, 4, 5]),
            (RunFilter(user="a", open=True, task="task", status=frozenset({Status.RUNNING}), after=run_id(1)), [4]),
        ]
        for wanted, numbers in expected:
            assert ids(await store.query(wanted)) == numbers, wanted
        assert await store.query(RunFilter(limit=1)) == [await store.find(run_id(1))]

    async def test_a_query_sees_what_changed_since_it_was_settled(self, world: World) -> None:
        """A run that was settled in one status and is now in another is found by the new one only."""
        await self._populate(world.store)
        store = await world.ready()
        await store.commit([[record(3, 2, Kind.CANCELLED)], [record(5, 4, Kind.RESUMED, reason="retry")], [created(8)]])
        assert ids(await store.query(RunFilter(open=True))) == [4, 5, 8]
        assert ids(await store.query(RunFilter(status=frozenset({Status.READY})))) == [5, 8]
        assert ids(await store.query(RunFilter(dead=True))) == []

    async def test_paging_meets_every_run_once(self, world: World) -> None:
        """Pages of any size, over runs of which some changed and some are new, together give each match once."""
        await world.store.commit([[created(number)] for number in range(0, 120, 2)])
        store = await world.ready()
        await store.commit([[record(number, 2, Kind.CANCELLED)] for number in range(0, 120, 6)])
        await store.commit([[created(number)] for number in range(1, 120, 12)])
        expected = sorted([n for n in range(0, 120, 2) if n % 6] + list(range(1, 120, 12)))
        for limit in (1, 2, 7, 25, 200):
            met: list[int] = []
            after: str | None = None
            while page := await store.query(RunFilter(open=True, after=after, limit=limit)):
                assert len(page) <= limit
                met += ids(page)
                after = page[-1].run_id
            assert met == expected

    # -- open, and due

    async def test_open_and_due_are_what_the_run_says(self, world: World) -> None:
        """Whatever a run waits for, it is found by when it is due, and as open until it is closed."""
        units = each_wait()
        await world.store.commit(units)
        store = await world.ready()
        runs = [fold(unit) for unit in units]
        assert ids(await store.query(RunFilter(open=True))) == [*range(2, 11), *range(12, 18)]
        for after, by in product((None, *TIMES), (None, *TIMES)):
            for wanted in (
                RunFilter(due_after=after, due_by=by),
                RunFilter(due_after=after, due_by=by, open=True, task="task", after=run_id(4)),
                RunFilter(due_after=after, due_by=by, status=frozenset({Status.RUNNING, Status.CANCELLED})),
            ):
                assert await store.query(wanted) == [run for run in runs if wanted.matches(run)], wanted
        by_parent = RunFilter(due_by=NOW, parent_id=run_id(1))
        assert await store.query(by_parent) == []

    async def test_the_next_due_is_the_earliest_after(self, world: World) -> None:
        """Due at that very time does not count, and a run that waits for no time has none."""
        assert await world.store.next_due(-1.0) is None
        units = each_wait()
        await world.store.commit(units)
        store = await world.ready()
        dues = sorted({due for unit in units if (due := fold(unit).due) is not None})
        assert dues == [0.0, NOW + 0.1, NOW + 50, int(NOW) + 70, NOW + 100]
        for after in (*TIMES, *dues):
            assert await store.next_due(after) == next((due for due in dues if due > after), None), after

    async def test_when_it_is_due_changes(self, world: World) -> None:
        """A run that was settled with one time answers by the one that it has now, and by no other."""
        await world.store.commit([asleep(number, NOW + number) for number in range(1, 6)])
        store = await world.ready()
        await store.commit([[record(1, 4, Kind.AWAKE)], [record(2, 4, Kind.CANCELLED)]])
        assert await store.next_due(NOW) == NOW + 3
        await store.commit(
            [[record(3, 4, Kind.AWAKE), record(3, 5, Kind.ASLEEP, until=NOW + 4.5)], asleep(6, NOW + 0.5)]
        )
        assert await store.next_due(NOW) == NOW + 0.5
        assert await store.next_due(NOW + 0.5) == NOW + 4
        assert await store.next_due(NOW + 4) == NOW + 4.5
        assert ids(await store.query(RunFilter(due_by=NOW))) == [1]
        assert ids(await store.query(RunFilter(due_by=NOW + 4.25))) == [1, 4, 6]
        assert ids(await store.query(RunFilter(due_after=NOW, due_by=NOW + 4.5))) == [3, 4, 6]
        store = await world.ready()
        await store.commit([[record(number, 4, Kind.SIGNAL, name="s")] for number in (4, 5)])
        assert [await store.next_due(after) for after in (NOW, NOW + 0.5, NOW + 4.5)] == [NOW + 0.5, NOW + 4.5, None]
        assert ids(await store.query(RunFilter(due_by=0.0))) == [1, 4, 5]

    async def test_paging_what_is_due_meets_every_run_once(self, world: World) -> None:
        """Pages of any size, while some of the runs are no longer due and others have become so."""
        await world.store.commit([asleep(number, NOW + number % 7) for number in range(0, 120, 2)])
        store = await world.ready()
        await store.commit([[record(number, 4, Kind.CANCELLED)] for number in range(0, 120, 6)])
        await store.commit([asleep(number, NOW + number % 7) for number in range(1, 120, 12)])
        there = [n for n in range(0, 120, 2) if n % 6] + list(range(1, 120, 12))
        expected = sorted(n for n in there if n % 7 <= 3)
        for limit in (1, 2, 7, 25, 200):
            met: list[int] = []
            after: str | None = None
            while page := await store.query(RunFilter(due_by=NOW + 3, after=after, limit=limit)):
                assert len(page) <= limit
                met += ids(page)
                after = page[-1].run_id
            assert met == expected
