"""`durable stats`: how many runs a store has, and what of them waits.

Law: as for `durable.cli.looking`: nothing here changes a run or holds one up. What an application knows of itself alone is not in its
store: `await app.stats()` tells that.
"""

from __future__ import annotations

from argparse import Namespace

from durable.cli.target import opened
from durable.cli.terminal import counted, escaped, iso, moment, print_table, span, to_json
from durable.clock import SYSTEM_CLOCK
from durable.core.query import RunFilter
from durable.core.run import Run
from durable.core.status import Status
from durable.store.base import Store
from durable.store.shared import Executor, is_shared


async def stats(args: Namespace) -> int:
    """Count runs by status, dead letters, and what waits; on PostgreSQL also executors."""
    now = SYSTEM_CLOCK.now()
    async with opened(args) as store:
        counts = {status: await store.count(RunFilter(status=frozenset({status}))) for status in Status}
        dead = await store.count(RunFilter(dead=True))
        unclosed = await store.count(RunFilter(open=True))
        waiting = await store.query(RunFilter(status=frozenset({Status.READY}), due_by=now, limit=1))
        executors = await executors_of(store) if is_shared(store) else None
    oldest = waiting[0] if waiting else None
    if args.json:
        print(to_json(_json(counts, dead, unclosed, oldest, executors, now)))
        return 0
    print_table(("status", "runs"), [(status.value, f"{count:,}") for status, count in counts.items() if count])
    print(f"{sum(counts.values()):,} runs, {unclosed:,} of them not closed; {counted(dead, 'dead letter')}")
    if oldest is not None:
        waits = span(max(now - _due(oldest), 0.0))
        print(
            f"run {oldest.run_id} of task {escaped(oldest.task)!r} waits for a slot, the longest of those that are ready: {waits}"
        )
    if executors is not None:
        _print_executors(executors)
    return 0


async def executors_of(store: Store) -> list[Executor]:
    """The executors of a store that is shared."""
    from durable.store.postgres.store import PostgresStore

    shards = store.shards if is_shared(store) else ()
    return [each for shard in shards if isinstance(shard, PostgresStore) for each in await shard.executors()]


def _due(run: Run) -> float:
    """Since when a run that is ready waits."""
    return max(run.created_at, run.not_before)


def _json(
    counts: dict[Status, int],
    dead: int,
    unclosed: int,
    oldest: Run | None,
    executors: list[Executor] | None,
    now: float,
) -> dict[str, object]:
    told: dict[str, object] = {
        "runs": {status.value: count for status, count in counts.items()},
        "open": unclosed,
        "dead_letters": dead,
        "oldest_ready": None,
    }
    if oldest is not None:
        since = _due(oldest)
        told["oldest_ready"] = {
            "run_id": oldest.run_id, "task": oldest.task, "since": iso(since), "seconds": max(now - since, 0.0),
        }  # fmt: skip
    if executors is not None:
        told["executors"] = [{**each._asdict(), "started_at": iso(each.started_at)} for each in executors]
    return told


def _print_executors(executors: list[Executor]) -> None:
    if not executors:
        print("no executors")
        return
    rows = [
        (
            each.executor_id,
            escaped(each.host),
            str(each.pid),
            f"{moment(each.started_at)}",
            f"{each.held:,}",
            f"{span(each.lease_seconds)} left" if each.lease_seconds > 0 else "passed",
        )
        for each in executors
    ]
    print_table(("executor", "host", "process", "since (UTC)", "holds", "lease"), rows)
