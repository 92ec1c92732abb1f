"""Pruning: families of runs that are over are forgotten, with their records.

Law: `durable.core.families.prunable` is the meaning; but a family to which somebody has sent a message stays until that is obeyed, and so
does one of which somebody else has a row locked. What was looked at may have changed by the time that it goes: that is decided under locks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from durable.core.families import Family, families
from durable.repository.pruning import watchers_of
from durable.store.postgres.columns import Longs, Texts, escape, unescape
from durable.store.postgres.queries import Queries
from durable.store.postgres.recent import Recent
from durable.store.postgres.statements import Statements

#: Tells whether one of these runs is open.
Watched = Callable[[Sequence[str]], Awaitable[bool]]

#: Roots that are looked at together.
PAGE = 500

_OVER = "NOT r.open AND NOT r.dead AND r.ended_at < %(before)s::float8"
_PAGE = f"""{_OVER} AND (r.ended_at, r.run_id) > (%(ended_at)s::float8, %(run_id)s::text)
    ORDER BY r.ended_at, r.run_id LIMIT %(limit)s"""

_ROOTS = f"SELECT r.ended_at, r.run_id FROM {{s}}.runs r WHERE r.parent_id IS NULL AND {_PAGE}"
#: Those whose parents are gone.
_LEFT = f"""
    SELECT r.ended_at, r.run_id FROM {{s}}.runs r WHERE r.parent_id IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM {{s}}.runs p WHERE p.run_id = r.parent_id) AND {_PAGE}
"""
_FAMILIES = f"""
    WITH RECURSIVE family (root, run_id) AS (
        SELECT r.run_id, r.run_id FROM {{s}}.runs r WHERE r.run_id = ANY(%(roots)b::text[])
        UNION ALL
        SELECT f.root, r.run_id FROM family f JOIN {{s}}.runs r ON r.parent_id = f.run_id)
    SELECT f.root, r.run_id,
        {_OVER} AND NOT EXISTS (SELECT 1 FROM {{s}}.messages m WHERE m.run_id = r.run_id),
        CASE WHEN position('"watchers"'::bytea IN r.state) > 0 THEN r.state ELSE ''::bytea END
    FROM family f JOIN {{s}}.runs r ON r.run_id = f.run_id
"""
_OPEN = "SELECT r.run_id FROM {s}.runs r WHERE r.open AND r.run_id = ANY(%(ids)b::text[])"
#: Ids as arrays that are made first: each is then looked up in the index, whatever the planner thinks of how many there are.
_FORGET = f"""
    WITH n AS MATERIALIZED (SELECT * FROM unnest(%(families)b::bigint[], %(ids)b::text[]) AS n (family, run_id)),
        picked AS MATERIALIZED (
            SELECT r.run_id FROM {{s}}.runs r WHERE r.run_id = ANY(%(ids)b::text[]) AND {_OVER}
            ORDER BY r.run_id FOR UPDATE OF r SKIP LOCKED),
        whole AS (
            SELECT n.family FROM n LEFT JOIN picked p ON p.run_id = n.run_id GROUP BY n.family HAVING count(p.run_id) = count(*)),
        going AS MATERIALIZED (SELECT array_agg(n.run_id) AS ids FROM n JOIN whole w ON w.family = n.family),
        forgotten AS (DELETE FROM {{s}}.records WHERE run_id = ANY(ARRAY(SELECT unnest(ids) FROM going))),
        gone AS (DELETE FROM {{s}}.runs WHERE run_id = ANY(ARRAY(SELECT unnest(ids) FROM going)) RETURNING run_id)
    SELECT run_id FROM gone
"""
#: For runs that went just before they came.
_LOST_MESSAGES = """
    DELETE FROM {s}.messages m WHERE m.created_at < clock_timestamp() - interval '1 hour'
        AND NOT EXISTS (SELECT 1 FROM {s}.runs r WHERE r.run_id = m.run_id)
"""


class Pruning:
    """See the module.

    Arguments:
        queries: ask, and change.
        statements: of the same schema.
        recent: runs as last seen.
    """

    def __init__(self, queries: Queries, statements: Statements, recent: Recent) -> None:
        self._queries = queries
        self._recent = recent
        self._roots, self._left = statements.of(_ROOTS), statements.of(_LEFT)
        self._families, self._open = statements.of(_FAMILIES), statements.of(_OPEN)
        self._forget, self._lost_messages = statements.of(_FORGET), statements.of(_LOST_MESSAGES)

    async def prune(self, before: float, limit: int, watched: Watched | None) -> int:
        """See `Store.prune`.

        Arguments:
            watched: told of those who watch a family, whether one of them is open; None: they are all in this database.
        """
        count = 0
        for statement in (self._roots, self._left):
            place = {"ended_at": float("-inf"), "run_id": ""}
            while count < limit:
                size = min(limit - count, PAGE)
                roots = await self._queries.ask(statement, {**place, "before": before, "limit": size})
                count += await self._prune([run_id for _, run_id in roots], before, limit - count, watched)
                if len(roots) < size:
                    break
                place = {"ended_at": roots[-1][0], "run_id": roots[-1][1]}
        if count < limit:
            await self._queries.change(self._lost_messages, ())
        return count

    async def _prune(self, roots: Sequence[str], before: float, limit: int, watched: Watched | None) -> int:
        """Forget the families of these roots, which are few enough for one transaction, but for one that is large by itself."""
        if not roots:
            return 0
        rows = await self._queries.ask(self._families, {"roots": Texts(roots), "before": before})
        found = families(
            (root, run_id, over, watchers_of(unescape(run_id), state)) for root, run_id, over, state in rows
        )
        going: list[Family] = []
        size = 0
        for root in roots:
            family = found.get(root)  # somebody else may have been faster
            if family is None or not family.over or size >= limit:
                continue
            watchers = set(family.watchers).difference(map(unescape, family.run_ids))
            if not watchers or not await (watched or self._watched)(sorted(watchers)):
                going.append(family)
                size += len(family.run_ids)
        if not going:
            return 0
        numbers = [number for number, family in enumerate(going) for _ in family.run_ids]
        ids = [run_id for family in going for run_id in family.run_ids]
        gone = await self._queries.tell(self._forget, {"families": Longs(numbers), "ids": Texts(ids), "before": before})
        self._recent.forget(unescape(run_id) for (run_id,) in gone)
        return len(gone)

    async def _watched(self, run_ids: Sequence[str]) -> bool:
        """Whether one of these runs is not closed."""
        return bool(await self._queries.ask(self._open, {"ids": Texts([escape(run_id) for run_id in run_ids])}))
