"""What the world knows of runs that several executors go on with, and how it judges the database by that.

Law: as `Oracle`; besides, that each record of a body was written by who held the run. What relatives owe each other is owed by messages: a
child's end and the message that tells it are one unit, what the parent makes of it is another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from durable.core.records import CALLS, ENDS, Kind, Record
from durable.core.run import Run
from durable.core.status import Status
from durable.errors import DurableError
from durable.store.shared import Parcel
from durable.testing.database import SharedDatabase
from durable.testing.kin import _birth, _ended_by, _notes
from durable.testing.oracle import Oracle

#: Records that only who holds the run may write.
BY_HOLDER = CALLS | {
    Kind.STARTED,
    Kind.RECOVERED,
    Kind.AWAKE,
    Kind.ASLEEP,
    Kind.RELEASED,
    Kind.RETRYING,
    Kind.CHILDREN_STARTED,
}


class SharedOracle(Oracle):
    """See the module."""

    family_faults = staticmethod(lambda runs, histories: executor_faults(runs, histories))

    def __init__(self) -> None:
        super().__init__()
        #: Which executor wrote records of a body, by run and epoch.
        self._writers: dict[tuple[str, int], str | None] = {}

    def wrote(
        self, records: Sequence[Record], holders: Mapping[str, tuple[str | None, int]], writer: str | None
    ) -> None:
        """The database took these records from an executor; `holders` held these runs until then, each under an epoch."""
        self.committed([records])
        created = {record.run_id for record in records if record.seq == 1}
        for record in records:
            if record.kind not in BY_HOLDER or record.run_id in created:
                continue
            holder, epoch = holders[record.run_id]
            if holder != writer:
                self.blame(
                    f"record {record.seq} {record.kind.name} of run {record.run_id} is by {writer}, and {holder} holds it"
                )
            if self._writers.setdefault((record.run_id, epoch), writer) != writer:
                self.blame(f"two executors wrote records of run {record.run_id} under epoch {epoch}")


class WatchedDatabase(SharedDatabase):
    """Tells the oracle what is written."""

    oracle: SharedOracle

    def write(self, parcel: Parcel, executor: str | None) -> DurableError | None:
        fresh = not self.has(parcel)
        runs = {record.run_id for record in parcel.records if record.run_id in self.rows}
        holders = {run_id: (self.rows[run_id].owner, self.rows[run_id].epoch) for run_id in runs}
        refusal = super().write(parcel, executor)
        if refusal is None and fresh:
            written = [self.overlay.entries[record.run_id].records[record.seq - 1] for record in parcel.records]
            self.oracle.wrote(written, holders, executor)
        return refusal


def executor_faults(runs: Mapping[str, Run], histories: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """What is wrong between these runs, which are all of a store and have come to their end."""
    children: dict[str, list[Run]] = defaultdict(list)
    for run in runs.values():
        if run.parent_id is not None:
            children[run.parent_id].append(run)
            yield from _birth(run, histories)
        yield from _notes(run, histories)
    for run in runs.values():
        yield from _ends(run, children[run.run_id], histories)
        yield from _family(run, children[run.run_id], histories)
        yield from _coordinators(run, histories)


def _ends(run: Run, children: Sequence[Run], histories: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    left = [child.run_id for child in children if child.attached and not child.ended]
    if run.closed and left:
        yield f"run {run.run_id} is closed, and its children {left} have not ended"
    if run.unfinished < 0 or run.awaiting < 0:
        yield f"run {run.run_id} counts {run.unfinished} unfinished and {run.awaiting} awaited children"
    if run.status is Status.COMPLETED and run.unfinished:
        yield f"run {run.run_id} is completed, and counts {run.unfinished} unfinished children"
    told = Counter(each.head["child"] for each in histories[run.run_id] if each.kind is Kind.CHILD_ENDED)
    for child_id, count in told.items():
        ends = sum(each.kind in ENDS for each in histories.get(child_id, ()))
        if count > ends:
            yield f"run {run.run_id} was told {count} times that {child_id} ended, which did {ends} times"


def _family(run: Run, children: Sequence[Run], histories: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """What follows from the ends of children came after them."""
    joined = [child for child in children if child.joined and child.run_id != run.coordinator_id]
    for record in histories[run.run_id]:
        if record.kind is Kind.COORDINATING:
            for child in joined:
                born = histories[child.run_id][0].batch
                if born < record.batch and not _ended_by(histories[child.run_id], record.batch):
                    yield f"the coordinator of run {run.run_id} began before {child.run_id} had ended"
    if run.status is Status.COMPLETED and run.returned_seq and not run.lenient:
        # A coordinator that returned children and is tried again returns them anew.
        returns = [record.batch for record in histories[run.run_id] if record.kind is Kind.CHILDREN_STARTED]
        for child in children:
            outdated = histories[child.run_id][0].batch in returns[1:-1]
            if child.joined and child.status is not Status.COMPLETED and not outdated:
                yield f"run {run.run_id}, which fails with any of its children, is completed; {child.run_id} is {child.status}"


def _coordinators(run: Run, histories: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """A coordinator that is a run comes into being once, and anew where children are tried again that it was told of."""
    begun: set[str] = set()
    for record in histories[run.run_id]:
        if record.kind is Kind.RESUMED and "children" in record.head:
            begun.clear()
        elif "coordinator" in record.head:
            begun.add(record.head["coordinator"])
            if len(begun) > 1:
                yield f"run {run.run_id} has {len(begun)} coordinators: {sorted(begun)}"
