"""Recovery: what an application does with the runs that had not ended when it opens.

Law: every such run is loaded, and goes on, waits for its task or its user, or ends with its parent; none is left out.
"""

from __future__ import annotations

import logging

from durable.core.commands import Cancel, Suspend
from durable.core.query import RunFilter
from durable.core.status import Status
from durable.engine.entry import Entry
from durable.engine.lifecycle import Lifecycle
from durable.store.base import Store
from durable.tasks.registry import find_task

logger = logging.getLogger("durable.engine")

#: Runs that are read at once.
PAGE = 500


async def load(store: Store, entries: dict[str, Entry], slots: int) -> None:
    """Load every run that had not ended; of as many as can begin at once, also the history."""
    after: str | None = None
    while page := await store.query(RunFilter(open=True, after=after, limit=PAGE)):
        for run in page:
            entries[run.run_id] = Entry(run)
        after = page[-1].run_id
    for entry in entries.values():
        run = entry.run
        parent = entries.get(run.parent_id) if run.parent_id and run.attached else None
        if parent is not None:
            parent.children.add(run.run_id)
    first = [entry for entry in entries.values() if entry.run.status is not Status.SUSPENDED][:slots]
    for start in range(0, len(first), PAGE):  # a few large queries instead of one for each run
        some = first[start : start + PAGE]
        found = await store.histories([entry.run.run_id for entry in some])
        for entry in some:
            entry.history = found.get(entry.run.run_id)


def go_on(entry: Entry, entries: dict[str, Entry], lifecycle: Lifecycle) -> None:
    """Let a loaded run go on."""
    run, pipeline = entry.run, lifecycle.services.pipeline
    if run.status is Status.SUSPENDED:
        return
    definition = find_task(run.task)
    if definition is None:
        logger.warning("run %s waits: no imported module defines its task %r", run.run_id, run.task)
        lifecycle.orphan(entry)
    elif not definition.auto_recover:
        pipeline.stage(entry, Suspend("waits for a fresh start with its key, which brings its user back"))
    elif run.parent_id and run.attached and run.parent_id not in entries:
        pipeline.stage(entry, Cancel(f"its parent {run.parent_id} has ended"))
    else:
        lifecycle.scheduler.schedule(entry)
