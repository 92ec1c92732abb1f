"""`durable cancel`, `retry`, `stop` and `resume`: a decision about one run, where no process executes it, or by the one that does.

Law: an application decides, so that relatives learn of it in the same commit, but one that has no task: every run waits for its task, and
no body runs here. The next application that opens the folder, or an executor of the database, acts on what was decided.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

from durable.app import Durable
from durable.cli.target import Target, children_of, find_run
from durable.cli.terminal import children_counted, complain, escaped
from durable.config import Config, Limits
from durable.core.query import RunFilter
from durable.core.run import COORDINATED, Run
from durable.core.status import ENDED, Status
from durable.errors import RunNotFoundError, StorageError
from durable.store.base import Store
from durable.tasks.handle import Handle

#: How long a decision, and the cancelling of children after it, may take.
PATIENCE_SECONDS = 30.0
#: How often to look whether runs are closed: in a folder, and in a database.
LOOK_SECONDS, ASK_SECONDS = 0.01, 0.1

_SILENT = logging.NullHandler()

#: What is asked of the application about a run.
Action = Callable[[Durable, Handle[Any]], Awaitable[None]]


@asynccontextmanager
async def application(target: Target) -> AsyncIterator[tuple[Durable, Store]]:
    """An application that executes nothing, and its store. Raises `StorageError`, `StoreLockedError`, `ConfigError`."""
    # That no module defines the task of a run is said of each run, and is how it is meant here; what fails is raised, too.
    logging.getLogger("durable").addHandler(_SILENT)
    store = target.store()
    # Which dead letters are too old or too many is the business of the applications that have them.
    limits = Limits(max_running=1, dead_letter_size=sys.maxsize, dead_letter_ttl=inf)
    config = Config.from_env()
    async with Durable(store, limits=limits, config=config, execute=not target.is_shared) as app:
        yield app, store


@dataclass(frozen=True, slots=True)
class Decided:
    """What a decision changed.

    Arguments:
        before: the run as it was.
        run: the run as it is now.
        parents: those that have it for a child and whose status the decision changed, with the new one.
        children: how many children that belong to the run had not ended before.
        closed: whether everything that was to be cancelled with it is, or has been told.
        target: the store.
    """

    before: Run
    run: Run
    parents: list[tuple[str, Status | None]]
    children: int
    closed: bool
    target: Target

    @property
    def changed(self) -> bool:
        # A run may have been retried and have failed again by now.
        return (self.before.status, self.before.attempt) != (self.run.status, self.run.attempt)

    def goes_on(self, who: str) -> str:
        """That it, or `who` of its family, goes on, and when; nothing where an executor was at it already."""
        run = self.run
        if run.ended or run.executing or run.status is Status.SUSPENDED:
            return ""
        return f"{who} {self.target.goes_on}"


async def decide(args: Namespace, action: Action) -> Decided:
    """Have the run decide. Raises `TransitionError`, `StoreLockedError`, and `StorageError` where nothing can be written."""
    target = Target.of(args)
    async with application(target) as (app, store):
        before = await find_run(store, args.run, args)
        elders = [each for each in (before.parent_id, *before.watchers) if each is not None]
        statuses = [_status(await store.find(each)) for each in elders]
        children = 0
        async for child in children_of(store, before.run_id):
            children += child.attached and not child.ended
        handle = await app.get(before.run_id)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await action(app, handle)
        except TimeoutError:
            raise StorageError(no_answer(target, store, before.run_id)) from None
        closed = await (_closed(store, before.run_id) if target.is_shared else _all_closed(store))
        run = await store.find(before.run_id)
        told = [(each, _status(await store.find(each))) for each in elders]
    if run is None:
        raise RunNotFoundError(f"run {before.run_id} is not in the store any more")
    parents = [now for was, now in zip(statuses, told, strict=True) if now[1] is not was]
    return Decided(before, run, parents, children, closed, target)


def no_answer(target: Target, store: Store, run_id: str) -> str:
    detail = store.health().detail
    if target.is_shared and not detail:
        return (
            f"no executor has answered for run {run_id} within {PATIENCE_SECONDS:g} s: what was asked stays in the store, and who has "
            "the run next does it; see with `durable why` who that can be"
        )
    return (
        f"the store takes nothing now ({detail or 'it is slow'}): see with `durable show` what became of run {run_id}"
    )


def _status(run: Run | None) -> Status | None:
    return None if run is None else run.status


async def _all_closed(store: Store) -> bool:
    """Wait until all runs that have ended are closed; False if that takes too long."""
    unclosed = RunFilter(status=ENDED, open=True, due_by=0.0, limit=1)
    for _ in range(round(PATIENCE_SECONDS / LOOK_SECONDS)):
        if not await store.query(unclosed):
            return True
        await asyncio.sleep(LOOK_SECONDS)
    return False


async def _closed(store: Store, run_id: str) -> bool:
    """Wait until the run, if it has ended, is closed: its children are told by then; False if that takes too long."""
    for _ in range(round(PATIENCE_SECONDS / ASK_SECONDS)):
        run = await store.find(run_id)
        if run is None or run.closed or not run.ended:
            return True
        await asyncio.sleep(ASK_SECONDS)
    return False


def _report(decided: Decided, *consequences: str) -> None:
    run = decided.run
    text = (
        f"run {run.run_id} of task {escaped(run.task)!r} {'is now' if decided.changed else 'was already'} {run.status}"
    )
    consequences += tuple(f"its parent {parent_id} is now {status}" for parent_id, status in decided.parents)
    print("; ".join((text, *filter(None, consequences))) if decided.changed else text)


async def cancel(args: Namespace) -> int:
    """End a run and the children that belong to it."""
    decided = await decide(args, lambda app, handle: handle.cancel(args.reason))
    run, children = decided.run, decided.children
    if run.status is not Status.CANCELLED:
        complain(f"run {run.run_id} has ended as {run.status} already: nothing was changed")
        return 1
    theirs = ""
    if children and decided.closed:
        whose = "its unfinished child is" if children == 1 else f"its {children:,} unfinished children are"
        theirs = f"{whose} {'told to end' if decided.target.is_shared else 'cancelled'} too"
    elif children:
        theirs = f"its unfinished children are being cancelled: that goes on {decided.target.goes_on}"
    _report(decided, theirs)
    return 0


async def retry(args: Namespace) -> int:
    """Let a run that failed go on from the step that failed, with the children that failed or were cancelled with it."""
    report_retry(await decide(args, lambda app, handle: handle.retry()))
    return 0


def report_retry(decided: Decided) -> None:
    """Say what became of a run that was retried."""
    run = decided.run
    who = "it goes on"
    if run.status in COORDINATED:
        who = f"its coordinator, run {run.coordinator_id}, goes on"
    elif run.status is Status.WAITING_FOR_CHILDREN:
        who = "its coordinator goes on"
        if run.unfinished:
            who = f"{children_counted(run.unfinished)} of it that did not complete {'goes' if run.unfinished == 1 else 'go'} on"
    _report(decided, decided.goes_on(who))


async def stop(args: Namespace) -> int:
    """Suspend a run."""
    _report(await decide(args, lambda app, handle: handle.stop(args.reason)), "it waits until `durable resume`")
    return 0


async def resume(args: Namespace) -> int:
    """Go on with a suspended run."""
    decided = await decide(args, lambda app, handle: handle.resume())
    _report(decided, decided.goes_on("it goes on"))
    return 0
