"""What every store must do to count runs and to forget them: a part of `durable.testing.conformance`.

Law: as there.
"""

from __future__ import annotations

from itertools import product

import pytest

from durable.core.families import prunable
from durable.core.query import RunFilter
from durable.core.records import Kind, Record
from durable.core.run import fold
from durable.core.status import Status
from durable.testing.samples import NOW, World, created, each_wait, failed, finished, ids, record, run_id

#: Later than anything that ended in these tests.
LATER = NOW + 1_000
#: When the runs of `finished` ended.
ENDED = NOW + 4


class KeepingConformance:
    """See the module."""

    pytestmark = pytest.mark.asyncio

    # -- count

    async def test_a_count_is_how_many_a_query_finds(self, world: World) -> None:
        """For each condition, alone and with another; however small the limit."""
        units = [
            *each_wait(),
            finished(20, user="u", key="k"),
            [created(21), record(21, 2, Kind.STARTED), failed(21, 3)],
        ]
        await world.store.commit(units)
        store = await world.ready()
        runs = [fold(unit) for unit in units]
        conditions: list[dict[str, object]] = [
            {}, {"status": frozenset({Status.COMPLETED})}, {"status": frozenset({Status.READY, Status.RUNNING})}, {"dead": True},
            {"open": True}, {"user": "u"}, {"key": "k"}, {"task": "task"}, {"task": "none"}, {"parent_id": run_id(1)},
            {"due_by": NOW + 60}, {"due_after": NOW}, {"after": run_id(9)}, {"ended_by": NOW + 4}, {"ended_by": NOW + 3},
        ]  # fmt: skip
        for first, second in product(conditions, conditions):
            wanted = RunFilter(**{**first, **second, "limit": 1})  # type: ignore[arg-type]
            assert await store.count(wanted) == sum(map(wanted.matches, runs)), wanted

    async def test_a_run_that_changed_is_counted_as_it_is(self, world: World) -> None:
        """Once, by what it is now, wherever what it was is stored."""
        await world.store.commit([[created(1)], [created(2)], [created(3), record(3, 2, Kind.STARTED), failed(3, 3)]])
        store = await world.ready()
        await store.commit([[record(1, 2, Kind.CANCELLED)], [record(3, 4, Kind.DISCARDED)], [created(4)]])
        counts = [await store.count(wanted) for wanted in (RunFilter(), RunFilter(open=True), RunFilter(dead=True))]
        assert counts == [4, 2, 0]
        assert await store.count(RunFilter(status=frozenset({Status.READY}))) == 2

    async def test_dead_letters_are_found_by_when_they_died(self, world: World) -> None:
        """With those of any age left out."""
        units = [[created(n), record(n, 2, Kind.STARTED), failed(n, 2 + n)] for n in (1,)]
        units += [
            [created(n), *(record(n, seq, Kind.EVENT) for seq in range(2, n + 2)), failed(n, n + 2)] for n in (2, 3)
        ]
        await world.store.commit(units)
        store = await world.ready()
        for seconds, dead in ((2, []), (3, [1]), (4, [1, 2]), (9, [1, 2, 3])):
            wanted = RunFilter(dead=True, ended_by=NOW + seconds)
            assert (ids(await store.query(wanted)), await store.count(wanted)) == (dead, len(dead))

    # -- prune

    async def test_what_is_over_is_forgotten_with_all_its_records(self, world: World) -> None:
        """What ended at that very time, or has not ended, stays."""
        await world.store.commit([finished(1), finished(2, key="k"), [created(3)]])
        store = await world.ready()
        assert await store.prune(ENDED, 10) == 0
        assert await store.prune(LATER, 10) == 2
        assert ids(await store.query(RunFilter())) == [3]
        assert await store.count(RunFilter()) == 1
        for number in (1, 2):
            assert await store.find(run_id(number)) is None
            assert await store.history(run_id(number)) == []
        assert await store.histories([run_id(1), run_id(2)]) == {}
        assert await store.prune(LATER, 10) == 0

    async def test_what_is_gone_stays_gone(self, world: World) -> None:
        """Whatever happens next, and however often the store is opened again."""
        await world.store.commit([finished(1), [created(2)]])
        assert await world.store.prune(LATER, 10) == 1
        await world.store.commit([[record(2, 2, Kind.STARTED)], [created(3)]])
        for _ in range(3):
            store = await world.ready()
            assert await store.find(run_id(1)) is None
            assert ids(await store.query(RunFilter())) == [2, 3]

    async def test_its_key_is_free_again(self, world: World) -> None:
        """At once, for another run, which is then the one that is found by it."""
        await world.store.commit([finished(1, key="k", user="u")])
        store = await world.ready()
        assert await store.prune(LATER, 10) == 1
        assert await store.find_key("u", "k") is None
        await store.commit([[created(2, key="k", user="u")]])
        store = await world.ready()
        found = await store.find_key("u", "k")
        assert found is not None
        assert found.run_id == run_id(2)

    @pytest.mark.parametrize("keeps", ["open", "ended but not closed", "dead letter", "younger"])
    async def test_a_family_goes_whole_or_not_at_all(self, world: World, keeps: str) -> None:
        """One grandchild keeps a family, whether it belongs to its parent or lives on its own."""
        last: dict[str, list[Record]] = {
            "open": [], "ended but not closed": [record(3, 2, Kind.CHILD_STARTED, child=run_id(9)), record(3, 3, Kind.CANCELLED)],
            "dead letter": [record(3, 2, Kind.STARTED), failed(3, 3)],
            "younger": [record(3, 1 + n, Kind.EVENT) for n in range(1, 1_000)] + [record(3, 1_001, Kind.CANCELLED)],
        }  # fmt: skip
        end: dict[str, list[Record]] = {
            "open": [record(3, 2, Kind.CANCELLED)], "ended but not closed": [record(3, 4, Kind.CLOSED)],
            "dead letter": [record(3, 4, Kind.DISCARDED)], "younger": [],
        }  # fmt: skip
        family = [
            finished(1),
            finished(2, parent=run_id(1)),
            [created(3, parent=run_id(2), attached=True), *last[keeps]],
        ]
        await world.store.commit([*family, finished(4)])
        store = await world.ready()
        assert await store.prune(LATER, 100) == 1
        assert ids(await store.query(RunFilter())) == [1, 2, 3]
        if end[keeps]:
            await store.commit([end[keeps]])
        store = await world.ready()
        assert await store.prune(LATER + 2_000, 100) == 3
        assert await store.query(RunFilter()) == []

    async def test_a_run_that_another_watches_stays(self, world: World) -> None:
        """As long as that one is open: it has it for a child, and may still read what came of it."""
        watched = [created(1), record(1, 2, Kind.WATCHED, by=run_id(9)), record(1, 3, Kind.COMPLETED)]
        await world.store.commit([watched, [created(9)]])
        store = await world.ready()
        assert await store.prune(LATER, 10) == 0
        await store.commit([[record(9, 2, Kind.CANCELLED)]])
        store = await world.ready()
        assert await store.prune(LATER, 10) == 2

    async def test_those_go_first_that_ended_first(self, world: World) -> None:
        """So many and no more, but for the last family, which goes whole."""
        late = [
            [created(n), *(record(n, seq, Kind.EVENT) for seq in range(2, 9 - n)), record(n, 9 - n, Kind.CANCELLED)]
            for n in (1, 2, 3)
        ]
        child = finished(6, parent=run_id(3))
        await world.store.commit([*late, child])
        store = await world.ready()
        assert await store.prune(LATER, 0) == 0
        assert await store.prune(LATER, 1) == 2
        assert ids(await store.query(RunFilter())) == [1, 2]
        assert await store.prune(LATER, 1) == 1
        assert ids(await store.query(RunFilter())) == [1]

    async def test_a_run_whose_parent_is_not_there_is_a_family(self, world: World) -> None:
        """With all that came from it."""
        await world.store.commit([finished(2, parent=run_id(1)), finished(3, parent=run_id(2))])
        store = await world.ready()
        assert await store.prune(LATER, 10) == 2

    async def test_what_goes_is_what_may_go(self, world: World) -> None:
        """Runs in every state, and families of several hundred."""
        units = [*each_wait(), finished(100)]
        units += [finished(n, parent=run_id(100 + n % 7 * (n > 110))) for n in range(101, 700)]
        await world.store.commit(units)
        store = await world.ready()
        runs = {unit[0].run_id: fold(unit) for unit in units}
        going = {run_id for family in prunable(runs, LATER) for run_id in family}
        assert len(going) > 500
        assert await store.prune(LATER, 10_000) == len(going)
        assert [run.run_id for run in await store.query(RunFilter(limit=10_000))] == sorted(runs.keys() - going)

    async def test_one_that_goes_on_again_stays(self, world: World) -> None:
        """What was decided last counts, however long ago it had ended."""
        await world.store.commit([[created(1), record(1, 2, Kind.STARTED), failed(1, 3), record(1, 4, Kind.DISCARDED)]])
        store = await world.ready()
        await store.commit([[record(1, 5, Kind.RESUMED)]])
        assert await store.prune(LATER, 10) == 0
        await store.commit([[record(1, 6, Kind.STARTED), record(1, 7, Kind.COMPLETED)]])
        store = await world.ready()
        assert await store.prune(LATER, 10) == 1
