"""What every repository must do by itself, apart from the store in front of it: to be used together with `StoreConformance`.

Law: it speaks only through `Repository`; a row says of a run what `Run` says.

    class TestMyRepository(RepositoryConformance):
        async def make_repository(self, tmp_path): ...     # initialized, adopted, and empty

It needs pytest and pytest-asyncio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import pytest_asyncio

from durable.core.query import RunFilter
from durable.core.records import Kind, Record
from durable.core.run import fold
from durable.core.wire import encode_record
from durable.repository.base import Repository
from durable.repository.projection import RecordRow, RunRow, run_row
from durable.testing.query_conformance import TIMES
from durable.testing.samples import NOW, asleep, created, each_wait, finished, ids, record, run_id


def batch(units: Sequence[Sequence[Record]], position: int) -> tuple[list[RecordRow], list[RunRow], int]:
    """What a flusher makes of runs of which these are all records."""
    rows = [(each.run_id, each.seq, position, encode_record(each)) for unit in units for each in unit]
    return rows, [run_row(fold(unit)) for unit in units], position


class RepositoryConformance:
    """See the module."""

    pytestmark = pytest.mark.asyncio

    async def make_repository(self, tmp_path: Path) -> Repository:
        """A repository that is initialized, adopted by a store, and empty."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def rows(self, tmp_path: Path) -> AsyncIterator[Repository]:
        """The repository under test."""
        repository = await self.make_repository(tmp_path)
        yield repository
        await repository.close()

    async def test_runs_come_back_as_they_were(self, rows: Repository) -> None:
        """Each state of waiting survives its row, and so do the records."""
        units = each_wait()
        await rows.apply_batch(*batch(units, 1))
        found = await rows.find([unit[0].run_id for unit in units])
        assert found == {unit[0].run_id: fold(unit) for unit in units}
        first = [replace(each, batch=1) for each in units[0]]
        assert await rows.histories([first[0].run_id]) == {first[0].run_id: first}

    async def test_filters_mean_what_they_say(self, rows: Repository) -> None:
        """Open or not, due after and by any time, alone and from any run on: as `RunFilter.matches` has it."""
        units = each_wait()
        await rows.apply_batch(*batch(units, 1))
        runs = [fold(unit) for unit in units]
        for after, by, is_open, start in product((None, *TIMES), (None, *TIMES), (False, True), (None, run_id(5))):
            wanted = RunFilter(due_after=after, due_by=by, open=is_open, after=start)
            matching = [run for run in runs if wanted.matches(run)]
            assert await rows.query(wanted) == matching, wanted
            limited = RunFilter(due_after=after, due_by=by, open=is_open, after=start, limit=2)
            assert await rows.query(limited) == matching[:2], limited

    async def test_the_next_due_leaves_out_what_it_is_told(self, rows: Repository) -> None:
        """Many of the first may be left out, many may be due at one time, and all may be left out."""
        assert await rows.next_due(-1.0) is None
        await rows.apply_batch(*batch([asleep(number, NOW + number // 700) for number in range(1500)], 1))
        assert await rows.next_due(0.0) == NOW
        assert await rows.next_due(NOW) == NOW + 1
        assert await rows.next_due(NOW + 2) is None
        for count, expected in ((1, NOW), (700, NOW + 1), (1400, NOW + 2), (1499, NOW + 2), (1500, None)):
            assert await rows.next_due(0.0, {run_id(number) for number in range(count)}) == expected, count

    async def test_a_row_follows_its_run(self, rows: Repository) -> None:
        """When it is due and whether it is open change with the state, and an older state changes nothing."""
        await rows.apply_batch(*batch([asleep(1, NOW)], 1))
        await rows.apply_batch(*batch([[*asleep(1, NOW), record(1, 4, Kind.AWAKE)]], 2))
        await rows.apply_batch(*batch([asleep(1, NOW)], 3))
        assert (await rows.next_due(-1.0), await rows.next_due(0.0)) == (0.0, None)
        await rows.apply_batch(
            *batch([[*asleep(1, NOW), record(1, 4, Kind.AWAKE), record(1, 5, Kind.CANCELLED)], finished(2)], 4)
        )
        assert await rows.next_due(-1.0) is None
        assert await rows.query(RunFilter(open=True)) == []
        assert ids(await rows.query(RunFilter())) == [1, 2]

    # -- counting and forgetting

    async def test_a_count_leaves_out_what_it_is_told(self, rows: Repository) -> None:
        """Of many thousands, too; and means the same as a query."""
        units = each_wait()
        await rows.apply_batch(*batch([*units, *(finished(number) for number in range(100, 1_300))], 1))
        runs = [fold(unit) for unit in units]
        for wanted in (
            RunFilter(open=True, limit=1),
            RunFilter(due_by=NOW + 60),
            RunFilter(dead=True),
            RunFilter(ended_by=NOW + 3),
        ):
            assert await rows.count(wanted) == sum(map(wanted.matches, runs)), wanted
        assert await rows.count(RunFilter()) == len(units) + 1_200
        assert await rows.count(RunFilter(), {run_id(number) for number in range(100, 10_000)}) == len(units)
        assert (
            await rows.count(RunFilter(open=True), [run_id(2), run_id(99_999)])
            == sum(not run.closed for run in runs) - 1
        )

    async def test_who_is_asked_may_keep_a_family(self, rows: Repository) -> None:
        """It is asked with all of a family and those who watch it; nothing goes that it does not let go of."""
        watched = [created(4), record(4, 2, Kind.WATCHED, by=run_id(90)), record(4, 3, Kind.COMPLETED)]
        units = [finished(1), finished(2, parent=run_id(1)), finished(3), watched]
        await rows.apply_batch(*batch(units, 1))
        asked: list[tuple[list[str], list[str]]] = []

        def lets_go(run_ids: Collection[str], watchers: Collection[str]) -> bool:
            asked.append((sorted(run_ids), sorted(watchers)))
            return run_id(2) not in run_ids

        gone = await rows.prune(NOW + 1_000, 10, lets_go)
        assert sorted(gone) == [run_id(3), run_id(4)]
        assert sorted(asked) == [([run_id(1), run_id(2)], []), ([run_id(3)], []), ([run_id(4)], [run_id(90)])]
        assert ids(await rows.query(RunFilter())) == [1, 2]
        assert await rows.histories([run_id(3), run_id(4)]) == {}
        assert len((await rows.histories([run_id(1)]))[run_id(1)]) == 4

    async def test_what_the_log_would_bring_back_stays(self, rows: Repository) -> None:
        """A run of which a record lies above the position, with its family."""
        low, _, _ = batch([finished(1)], 3)
        high, runs, _ = batch([finished(2), finished(3, parent=run_id(2)), finished(1)], 9)
        await rows.apply_batch([*low, *high[:8]], runs, 5)
        assert await rows.prune(NOW + 1_000, 10, _lets_all_go) == [run_id(1)]
        await rows.apply_batch((), (), 9)
        assert sorted(await rows.prune(NOW + 1_000, 10, _lets_all_go)) == [run_id(2), run_id(3)]


def _lets_all_go(run_ids: Collection[str], watchers: Collection[str]) -> bool:
    return True
