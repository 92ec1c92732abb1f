"""Recovery: what an application does with the runs that had not ended when it opens.

Law: every run that is due is read, and goes on, waits for its task or its user, or is closed; none is left out. What waits for something
else than time is read when that comes, what is due later when it is due: see `residence.py`.
"""

from __future__ import annotations

from dataclasses import replace

from durable.core.query import RunFilter
from durable.engine.entry import Entry
from durable.engine.table import Table
from durable.store.base import Store

#: Runs that are read at once.
PAGE = 500


async def load(store: Store, table: Table, wanted: RunFilter, slots: int, most: int) -> RunFilter | None:
    """Read the runs that are wanted; of as many as can begin at once, also the history.

    Arguments:
        slots: how many can begin at once.
        most: how many are read here; no more than that at a time.

    Returns what is left to read, if anything.
    """
    entries: list[Entry] = []
    left: RunFilter | None = replace(wanted, limit=PAGE)
    while left is not None and len(entries) < most:
        page = await store.query(left)
        for run in page:
            if table.get(run.run_id) is None:
                entries.append(await table.adopt(run))
        left = replace(left, after=page[-1].run_id) if len(page) == PAGE else None
    first = [entry for entry in entries if entry.run.executing or not entry.run.ended][:slots]
    for start in range(0, len(first), PAGE):  # a few large queries instead of one for each run
        some = first[start : start + PAGE]
        found = await store.histories([entry.run.run_id for entry in some])
        for entry in some:
            entry.history = found.get(entry.run.run_id)
    return left
