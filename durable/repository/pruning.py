"""Pruning in SQLite: families of runs that are over are forgotten, with all their records.

Law: `durable.core.families.prunable` is the meaning. It is done in the transaction that looked, so that nothing that is forgotten has
changed; and no record goes that the log would bring back: all of a run that goes are below the position.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import aiosqlite

from durable.core.families import Family, families
from durable.core.wire import decode_run

#: Asked of each family that may go, with its run ids and its watchers; False where something of it is on its way.
LetsGo = Callable[[Collection[str], Collection[str]], bool]

#: Roots that are looked at together, and most ids in one `IN (...)`.
PAGE = 500

_ROOTS = """
    SELECT ended_at, run_id FROM runs INDEXED BY runs_closed
    WHERE open = 0 AND dead = 0 AND parent_id IS NULL AND ended_at < ? AND (ended_at, run_id) > (?, ?)
    ORDER BY ended_at, run_id LIMIT ?
"""
#: Those whose parents are gone.
_LEFT = """
    SELECT ended_at, run_id FROM runs INDEXED BY runs_left
    WHERE open = 0 AND dead = 0 AND parent_id IS NOT NULL AND ended_at < ? AND (ended_at, run_id) > (?, ?)
        AND NOT EXISTS (SELECT 1 FROM runs AS p WHERE p.run_id = runs.parent_id)
    ORDER BY ended_at, run_id LIMIT ?
"""
_FAMILIES = """
    WITH RECURSIVE family(root, run_id) AS (
        SELECT run_id, run_id FROM runs WHERE run_id IN ({marks})
        UNION ALL
        SELECT family.root, runs.run_id FROM family JOIN runs ON runs.parent_id = family.run_id)
    SELECT family.root, runs.run_id,
        runs.open = 0 AND runs.dead = 0 AND runs.ended_at < ? AND COALESCE((
            SELECT batch FROM records WHERE records.run_id = runs.run_id ORDER BY seq DESC LIMIT 1
        ), 0) <= (SELECT value FROM meta WHERE key = 'position'),
        CASE WHEN instr(runs.state, CAST('"watchers"' AS BLOB)) THEN runs.state ELSE x'' END
    FROM family JOIN runs ON runs.run_id = family.run_id
"""
_OPEN = "SELECT 1 FROM runs WHERE open = 1 AND run_id IN ({marks}) LIMIT 1"


async def prune(writer: aiosqlite.Connection, before: float, limit: int, lets_go: LetsGo) -> list[str]:
    """Forget families, in the transaction that is open; see `Repository.prune`."""
    gone: list[str] = []
    for statement in (_ROOTS, _LEFT):
        place: tuple[float, str] = (float("-inf"), "")
        while len(gone) < limit:
            size = min(limit - len(gone), PAGE)
            roots = await _rows(writer, statement, (before, *place, size))
            for family in await _over(writer, [run_id for _, run_id in roots], before):
                if len(gone) < limit and lets_go(family.run_ids, family.watchers):
                    gone += family.run_ids
            if len(roots) < size:
                break
            place = roots[-1]
    for some in _pages(gone):
        for table in ("records", "runs"):
            await writer.execute(f"DELETE FROM {table} WHERE run_id IN ({_marks(some)})", some)
    return gone


async def _over(writer: aiosqlite.Connection, roots: Sequence[str], before: float) -> list[Family]:
    """The families of these roots that may be forgotten, in their order."""
    rows = await _rows(writer, _FAMILIES.format(marks=_marks(roots)), (*roots, before))
    found = families((root, run_id, bool(over), watchers_of(run_id, state)) for root, run_id, over, state in rows)
    return [found[root] for root in roots if found[root].over and not await _watched(writer, found[root])]


async def _watched(writer: aiosqlite.Connection, family: Family) -> bool:
    """Whether a run that is not closed still looks to one of the family."""
    for some in _pages([run_id for run_id in family.watchers if run_id not in family.run_ids]):
        if await _rows(writer, _OPEN.format(marks=_marks(some)), some):
            return True
    return False


def watchers_of(run_id: str, state: bytes) -> list[str]:
    """The runs that have this one for a child although it is not theirs, out of its state, which is empty where there are none."""
    return decode_run(run_id, state, input=b"", result=None).watchers if state else []


def _pages(run_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (run_ids[start : start + PAGE] for start in range(0, len(run_ids), PAGE))


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


async def _rows(writer: aiosqlite.Connection, statement: str, values: Sequence[object]) -> list[Any]:
    return list(await writer.execute_fetchall(statement, values))
