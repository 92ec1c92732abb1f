"""`durable runs`, `show` and `events`: reading a store, also beside the processes that have it open.

Law: nothing here changes a run or holds one up; a folder is opened for reading only, so that not a byte in it changes.
"""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress

from durable.cli.family import Family, took
from durable.cli.target import Target, find_run, opened, pages
from durable.cli.terminal import (
    CELL_CHARACTERS_MAX,
    STORED,
    VALUE_CHARACTERS_MAX,
    call_text,
    clipped,
    clock_time,
    counted,
    escaped,
    iso,
    moment,
    print_table,
    readable,
    to_json,
    value_of,
)
from durable.cli.timeline import Breath, Outcome, Timeline
from durable.core.query import RunFilter
from durable.core.records import Kind, Record
from durable.core.run import Run
from durable.core.status import Status
from durable.store.base import Store
from durable.store.shared import is_shared
from durable.tasks.handle import to_event

#: How often a followed store is asked whether its files changed, and after how many such looks it is read in any case.
FOLLOW_SECONDS = 0.1
FOLLOW_LOOKS_MAX = 20


def run_json(run: Run) -> dict[str, object]:
    """A run for programs."""
    failure = run.failure or {}
    return {
        "run_id": run.run_id, "task": run.task, "status": run.status.value, "key": run.key, "user": run.user,
        "version": run.version, "parent_id": run.parent_id, "coordinator_id": run.coordinator_id,
        "attempt": run.attempt, "max_attempts": run.max_attempts,
        "recoveries": run.recoveries, "created_at": iso(run.created_at), "started_at": iso(run.started_at),
        "ended_at": iso(run.ended_at), "dead": run.dead, "retried": run.retried,
        "reason": run.reason, "error_type": failure.get("error_type"),
        "error": failure.get("message"), "last_seq": run.seq,
    }  # fmt: skip


async def runs(args: Namespace) -> int:
    """List runs, the newest first."""
    kept: deque[Run] = deque(maxlen=args.limit)
    count = 0
    async with opened(args) as store:
        parent_id = None if args.parent is None else (await find_run(store, args.parent, args)).run_id
        wanted = RunFilter(status=args.status, task=args.task, user=args.user, parent_id=parent_id)
        async for page in pages(store, wanted):
            kept.extend(page)
            count += len(page)
    if args.json:
        for run in reversed(kept):
            print(to_json(run_json(run)))
        return 0
    rows = [
        (
            run.run_id,
            escaped(run.task),
            run.status.value,
            moment(run.created_at),
            took(run),
            clipped(escaped(run.key or "-"), 40),
        )
        for run in reversed(kept)
    ]
    if rows:
        print_table(("run", "task", "status", "created (UTC)", "took", "key"), rows)
    if count > len(rows):
        print(f"the newest {len(rows)} of {count:,} runs; --limit {count} shows all")
    elif not rows:
        print("no runs" if args.status is args.task is args.user is parent_id is None else "no runs like that")
    return 0


async def show(args: Namespace) -> int:
    """Show one run: what it is, its steps, and where each result came from."""
    async with opened(args) as store:
        run = await find_run(store, args.run, args)
        records = await store.history(run.run_id)
        timeline, family = Timeline.of(records), await Family.of(store, run, records)
    if args.json:
        steps = [_outcome_json(row) for row in timeline.rows if isinstance(row, Outcome)]
        values = {"input": value_of(run.input), _result_name(run): value_of(run.result)}
        print(to_json({**run_json(run), "result": None, **values, "steps": steps, "children": family.json()}))
        return 0
    lines = _header(run, timeline, family)
    width = max(9, *(len(name) for name, _ in lines))
    for name, text in lines:
        print(f"{name:<{width}} {text}")
    _print_steps(timeline)
    family.print_children()
    failure = run.failure or {}
    if failure.get("traceback"):
        print("\ntraceback")
        for line in failure["traceback"].rstrip().splitlines():
            print(f"  {escaped(line)}")
    return 0


def _result_name(run: Run) -> str:
    """A run that waits for the children in what it returned, or failed by them, has no result."""
    return "result" if run.status is Status.COMPLETED else "returned"


def _header(run: Run, timeline: Timeline, family: Family) -> list[tuple[str, str]]:
    failure = run.failure or {}
    lines = [
        ("run", run.run_id),
        ("task", escaped(run.task) + (f", version {escaped(run.version)}" if run.version else "")),
        ("status", run.status.value + (f": {escaped(run.reason)}" if run.reason else "")),
    ]
    lines += [(name, escaped(value)) for name, value in (("key", run.key), ("user", run.user)) if value]
    lines += family.header(coordinated=timeline.coordinated)
    lines.append(("created", f"{moment(run.created_at)} UTC"))
    if run.ended_at is not None and run.started_at is not None:
        lines.append(("ended", f"{moment(run.ended_at)} UTC, {took(run)} after it began"))
    lines.append(("attempt", f"{run.attempt} of {run.max_attempts}"))
    if timeline.recoveries:
        came = counted(timeline.replayed, "finished step") + " came from the log"
        lines.append(
            ("recovered", f"{counted(timeline.recoveries, 'time')}; the last time {came}, and did not run again")
        )
    lines.append(("input", clipped(readable(value_of(run.input)), VALUE_CHARACTERS_MAX)))
    if run.result is not None:
        name = _result_name(run)
        most = (
            VALUE_CHARACTERS_MAX if name == "result" else CELL_CHARACTERS_MAX
        )  # as a rule there are children in it, shown below
        lines.append((name, clipped(readable(value_of(run.result)), most)))
    if failure:
        lines.append(("error", escaped(f"{failure.get('error_type')}: {failure.get('message')}")))
    lines.append(
        ("records", f"{run.seq}, {counted(timeline.events, 'event')} among them (durable events RUN shows them)")
    )
    return lines


def _print_steps(timeline: Timeline) -> None:
    if not timeline.rows:
        return
    print("\nsteps")
    width = max([len(clipped(row.call, 60)) for row in timeline.rows if isinstance(row, Outcome)] or [0])
    for row in timeline.rows:
        if isinstance(row, Breath):
            print(f"  -- {row.text}")
            continue
        tries = f"  after {counted(row.tries, 'try').replace('trys', 'tries')}" if row.tries > 1 else ""
        detail = f"  {clipped(row.detail)}" if row.detail else ""
        seq = f"#{row.seq}" if row.seq else ""
        print(f"  {seq:>5}  {clipped(row.call, 60):<{width}}  {row.outcome}{tries}{detail}")


def _outcome_json(row: Outcome) -> dict[str, object]:
    return {
        "seq": row.seq, "call": row.call, "outcome": row.outcome, "tries": row.tries, "at": iso(row.at), "attempt": row.attempt,
        "ran_in": row.life, "replayed": row.replayed, "result": value_of(row.payload),
    }  # fmt: skip


async def events(args: Namespace) -> int:
    """Print the events of a run; with --follow also those to come, until it ends."""
    async with opened(args) as store:
        run_id = (await find_run(store, args.run, args)).run_id
    async for record in _follow(args, run_id) if args.follow else _recorded(args, run_id):
        if not args.steps and not record.visible:
            continue
        event = to_event(record, STORED)
        if args.json:
            line = {
                "seq": event.seq,
                "name": event.name,
                "data": event.data,
                "at": event.at.isoformat(),
                "attempt": event.attempt,
            }
            print(to_json(line), flush=args.follow)
        else:
            shown = "" if event.data is None or event.data == {} else clipped(_event_text(record, event.data), 200)
            name = escaped(event.name)
            print(f"{event.seq:>5}  {clock_time(record.at)}  {name:<16}  {shown}".rstrip(), flush=args.follow)
    return 0


def _event_text(record: Record, shown: object) -> str:
    """The data of an event; of a step, the call as it was written and what came of it."""
    if not record.visible and not record.name:
        return readable(record.head) if record.head else ""
    if (record.visible and record.kind is not Kind.WAITING) or not isinstance(shown, dict):
        return readable(shown)
    rest = {key: value for key, value in shown.items() if key not in ("step", "occurrence", "traceback")}
    call = call_text(record.name, record.ident)
    return (
        f"{call} -> {readable(rest['result'])}"
        if "result" in rest
        else f"{call} {readable(rest) if rest else ''}".rstrip()
    )


async def _recorded(args: Namespace, run_id: str) -> AsyncIterator[Record]:
    async with opened(args) as store:
        for record in await store.history(run_id):
            yield record


async def _follow(args: Namespace, run_id: str) -> AsyncIterator[Record]:
    """Records as other processes write them, to the end of the run."""
    after = 0
    async with aclosing(_by_notice(args) if Target.of(args).is_shared else _by_files(args)) as looks:
        async for store in looks:
            records = await store.history(run_id, after)
            run = await store.find(run_id)
            for record in records:
                after = record.seq
                yield record
            if run is None or (run.ended and after >= run.seq):
                return


async def _by_files(args: Namespace) -> AsyncGenerator[Store]:
    """The store in a folder, each time that there may be news. No notice comes from there, so its files are watched."""
    path = Target.of(args).text
    while True:
        before = _stamp(path)
        async with opened(args) as store:
            yield store
        for _ in range(FOLLOW_LOOKS_MAX):
            await asyncio.sleep(FOLLOW_SECONDS)
            if _stamp(path) != before:
                break


async def _by_notice(args: Namespace) -> AsyncGenerator[Store]:
    """The store in a database, each time that there may be news."""
    async with opened(args) as store:
        heard = asyncio.Event()
        poll_seconds = FOLLOW_SECONDS
        if is_shared(store):
            store.listen(lambda notice: heard.set())
            poll_seconds = store.poll_seconds
        while True:
            heard.clear()
            yield store
            with suppress(TimeoutError):
                async with asyncio.timeout(poll_seconds):
                    await heard.wait()


def _stamp(path: str) -> list[tuple[str, int, int]]:
    """What changes when something is written to the store."""
    found = []
    for folder in (path, os.path.join(path, "log")):
        if os.path.isdir(folder):
            with os.scandir(folder) as entries:
                found += [(each.name, (s := each.stat()).st_mtime_ns, s.st_size) for each in entries if each.is_file()]
    return sorted(found)
