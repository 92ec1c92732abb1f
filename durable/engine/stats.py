"""`Stats`: how much is going on in an application, and what happened since it was opened.

Law: a snapshot; numbers of this process, but for dead letters and health, which are the store's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from durable.core.records import Kind
from durable.engine.observing import Tally
from durable.engine.parts import Given, Parts
from durable.events.hub import StreamStats
from durable.store.base import StoreHealth
from durable.tasks.handle import to_datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What happened since the opening, as far as this process wrote it.

    Arguments:
        submitted: runs that came into being, children among them.
        completed, failed, timed_out, cancelled: runs that ended so; `failed` are also those that failed by their children.
        retried: attempts that failed and are followed by another.
        recovered: runs that went on after their executor was lost.
        steps: steps that completed.
        records: durable records of all kinds.
    """

    submitted: int = 0
    completed: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    retried: int = 0
    recovered: int = 0
    steps: int = 0
    records: int = 0

    @classmethod
    def of(cls, tally: Tally) -> Totals:
        """Add up records."""
        of = tally.records
        return cls(
            submitted=of[Kind.CREATED], completed=of[Kind.COMPLETED], failed=of[Kind.FAILED] + of[Kind.CHILDREN_FAILED],
            timed_out=of[Kind.TIMED_OUT], cancelled=of[Kind.CANCELLED], retried=of[Kind.RETRYING],
            recovered=of[Kind.RECOVERED], steps=of[Kind.STEP_COMPLETED], records=sum(of),
        )  # fmt: skip

    @property
    def success_rate(self) -> float | None:
        """Completed runs among those that completed, failed or timed out; None where there are none."""
        ended = self.completed + self.failed + self.timed_out
        return self.completed / ended if ended else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How records came into the store.

    Arguments:
        backlog_records: records that are durable, but not yet in the tables.
        batches, entries: batches written into the tables, and their records: flushes of an embedded store, commits of any other.
    """

    backlog_records: int = 0
    batches: int = 0
    entries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Looks for runs that were left by a process that is gone.

    Arguments:
        scans: how many looks: one at the opening, and on PostgreSQL more from time to time.
        found: how many runs they found.
    """

    scans: int = 0
    found: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """How much is going on.

    Arguments:
        state: `running`; `degraded` or `failed` where the store is; `closing`.
        started_at: when the application was opened, UTC.
        uptime_seconds: how long ago that was.
        loaded: runs that this process has in hand.
        running: runs that hold a slot.
        queued: runs that wait for one; of a store that is shared, in all of it.
        waiting: runs in hand that do neither: they wait for a time, a signal, a child or their task, or are being closed.
        orphaned: runs whose task no imported module defines, or not in their version.
        orphans: how many for each task, with the version that they need: `"crawl 2": 3`.
        recovering: runs that go on after a crash and have not yet caught up with what they had done.
        subscribers: live event streams; see `streams`, too.
        totals: what happened since the opening.
        rejections: starts that were not let in since then, by reason.
        dead_letters: dead letters in the store; None where it cannot be asked now.
        streams: live event streams.
        written: how records came into the store.
        recovery: looks for runs that were left.
        health: how the store is.
    """

    state: Literal["running", "degraded", "failed", "closing"]
    started_at: datetime
    uptime_seconds: float
    loaded: int
    running: int
    queued: int
    waiting: int
    orphaned: int
    orphans: dict[str, int]
    recovering: int
    subscribers: int
    totals: Totals
    rejections: dict[str, int]
    dead_letters: int | None
    streams: StreamStats
    written: Written
    recovery: Recovery
    health: StoreHealth

    def as_dict(self) -> dict[str, Any]:
        """The same as values that JSON has; times in ISO 8601."""
        totals = {**asdict(self.totals), "success_rate": self.totals.success_rate}
        return {**asdict(self), "started_at": self.started_at.isoformat(), "totals": totals}


async def take_stats(given: Given, parts: Parts, *, opened_at: float, is_closing: bool) -> Stats:
    """Look at an engine that is open."""
    scheduler, tally = parts.scheduler, given.observing.tally
    health, streams, loaded = given.store.health(), given.hub.statistics(), len(parts.table)
    state: Literal["running", "degraded", "failed", "closing"] = "running" if health.state == "ok" else health.state
    return Stats(
        state="closing" if is_closing else state,
        started_at=to_datetime(opened_at),
        uptime_seconds=max(given.clock.now() - opened_at, 0.0),
        loaded=loaded,
        running=scheduler.running,
        queued=await given.observing.queued(scheduler.queued),
        waiting=max(loaded - scheduler.running - scheduler.queued_here, 0),
        orphaned=parts.lifecycle.orphaned,
        orphans=parts.lifecycle.orphans,
        recovering=scheduler.recoveries.inside + scheduler.recoveries.waiting,
        subscribers=streams.subscribers,
        totals=Totals.of(tally),
        rejections=dict(parts.gate.counts.refused),
        dead_letters=await given.observing.dead_letters(),
        streams=streams,
        written=Written(backlog_records=health.backlog_records, batches=tally.batches, entries=tally.entries),
        recovery=Recovery(scans=tally.scans, found=tally.found),
        health=health,
    )
