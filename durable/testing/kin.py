"""What must hold between the runs of one family, as their records tell it.

Law: it reads records and folds them, and knows nothing of how the engine makes them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from durable.core.records import ENDS, Kind, Record
from durable.core.run import COORDINATED, JOINING, Run, apply
from durable.core.status import Status

Histories = Mapping[str, Sequence[Record]]


def family_faults(runs: Mapping[str, Run], histories: Histories) -> Iterator[str]:
    """What is wrong between these runs, which are all of a store, in words."""
    children: dict[str, list[Run]] = defaultdict(list)
    for run in runs.values():
        if run.parent_id is not None:
            children[run.parent_id].append(run)
            yield from _birth(run, histories)
    watched = [run for run in runs.values() if run.watchers]
    for run in runs.values():
        yield from _notes(run, histories)
        yield from _state(run, children[run.run_id], [one for one in watched if run.run_id in one.watchers], histories)
        attached = [child for child in children[run.run_id] if child.attached]
        if attached:
            yield from _told(run, attached, histories)
            yield from _numbers(run, [child for child in attached if child.joined], histories)


def _birth(run: Run, histories: Histories) -> Iterator[str]:
    """A run came into being in the unit of its parent's record of it."""
    assert run.parent_id is not None
    born, parents = histories[run.run_id][0].batch, histories.get(run.parent_id, ())
    if run.joined:
        told = [each for each in parents if each.kind in (Kind.CHILDREN_STARTED, Kind.COORDINATING)]
        if not any(each.batch == born for each in told):
            yield f"run {run.run_id} was returned by {run.parent_id}, and came into being without its record"
        return
    notes = [each for each in parents if each.head.get("child") == run.run_id]
    if not notes or notes[0].batch != born:
        yield f"run {run.run_id} exists, and its parent {run.parent_id} has no record of it, or later"


def _notes(run: Run, histories: Histories) -> Iterator[str]:
    started: Counter[object] = Counter()
    phase = 0
    for record in histories[run.run_id]:
        for key in ("child", "coordinator"):
            child = record.head.get(key)
            if child is not None and child not in histories:
                yield f"record {record.seq} of run {run.run_id} tells of the run {child}, which does not exist"
        if record.kind is Kind.CHILD_STARTED:
            started[record.call, record.attempt, phase] += 1
        phase += record.kind is Kind.CHILDREN_STARTED
    for what, count in started.items():
        if count > 1:
            yield f"run {run.run_id} started {count} children by the call {what}"


def _state(run: Run, children: Sequence[Run], watched: Sequence[Run], histories: Histories) -> Iterator[str]:
    """The counts of a run are those of its children; closed is closed."""
    joined = [*(child for child in children if child.joined), *watched]
    unfinished = [child.run_id for child in joined if not child.ended]
    if run.status in JOINING and len(unfinished) != run.unfinished:
        yield f"run {run.run_id} is {run.status} and counts {run.unfinished} unfinished children, they are {unfinished}"
    left = [child.run_id for child in children if child.attached and not child.ended]
    if run.closed and left:
        yield f"run {run.run_id} is closed, and its children {left} have not ended"
    if run.status is Status.COMPLETED and run.returned_seq and not run.lenient:
        # A coordinator that returned children and is tried again returns them anew.
        returns = [record.batch for record in histories[run.run_id] if record.kind is Kind.CHILDREN_STARTED]
        outdated = {child.run_id for child in children if histories[child.run_id][0].batch in returns[1:-1]}
        bad = [
            f"{child.run_id} {child.status}"
            for child in children
            if child.joined and child.status is not Status.COMPLETED and child.run_id not in outdated
        ]
        if bad:
            yield f"run {run.run_id}, which fails with any of its children, is completed, and they are: {', '.join(bad)}"
    if run.unfinished < 0 or run.awaiting < 0:
        yield f"run {run.run_id} counts {run.unfinished} unfinished and {run.awaiting} awaited children"


def _told(run: Run, children: Sequence[Run], histories: Histories) -> Iterator[str]:
    """Ends of children are told to a parent that waits for them, once each, in the unit in which they end."""
    state, asleep, counting = Run(run.run_id), _Times(), _Times()
    for record in histories[run.run_id]:
        apply(state, record)
        asleep.note(record, state.asleep)
        counting.note(record, state.asleep or (state.status in JOINING and state.unfinished > 0))
    told = Counter((each.head["child"], each.batch) for each in histories[run.run_id] if each.kind is Kind.CHILD_ENDED)
    for child in children:
        ends = Counter(each.batch for each in histories[child.run_id] if each.kind in ENDS)
        for batch in {batch for told_of, batch in told if told_of == child.run_id} | set(ends):
            count = told[child.run_id, batch]
            if count > ends[batch]:
                yield f"run {run.run_id} was told {count} times in unit {batch} that {child.run_id} ended, which did {ends[batch]} times"
            elif count < ends[batch] and (counting if child.joined else asleep).throughout(batch):
                yield f"child {child.run_id} ended in unit {batch}, and run {run.run_id}, which waits for it, was not told"


class _Times:
    """Units in which something held for a run, from the first of its records in them to the last."""

    def __init__(self) -> None:
        self._after: dict[int, bool] = {}
        self._always: dict[int, bool] = {}

    def note(self, record: Record, holds: bool) -> None:
        """What is the case after this record."""
        self._after[record.batch] = holds
        self._always[record.batch] = self._always.get(record.batch, True) and holds

    def throughout(self, batch: int) -> bool:
        """Whether it held before this unit, and after each record of the run in it."""
        before = [unit for unit in self._after if unit < batch]
        return bool(before) and self._after[max(before)] and self._always.get(batch, True)


def _numbers(run: Run, children: Sequence[Run], histories: Histories) -> Iterator[str]:
    """Each record that starts children started as many as it says; a coordinator begins when no child is left."""
    born = Counter(histories[child.run_id][0].batch for child in children)
    for other in histories.values():  # runs that were there, and became children by their keys
        born.update(each.batch for each in other if each.kind is Kind.WATCHED and each.head.get("by") == run.run_id)
    for record in histories[run.run_id]:
        if record.kind is Kind.CHILDREN_STARTED:
            coordinators = [
                each.head for each in histories[run.run_id] if each.batch == record.batch and "coordinator" in each.head
            ]
            expected = record.head.get("children", 0) + len(coordinators)
            if born[record.batch] != expected:
                yield f"record {record.seq} of run {run.run_id} starts {expected} children, {born[record.batch]} are there"
        if record.kind is Kind.COORDINATING:
            for child in (child for child in children if child.run_id != record.head.get("coordinator")):
                if (
                    not _ended_by(histories[child.run_id], record.batch)
                    and histories[child.run_id][0].batch < record.batch
                ):
                    yield f"the coordinator of run {run.run_id} began in unit {record.batch} before {child.run_id} had ended"
    if run.status in COORDINATED and run.join == "task" and run.coordinator_id not in histories:
        yield f"run {run.run_id} waits for its coordinator {run.coordinator_id}, which does not exist"


def _ended_by(history: Sequence[Record], batch: int) -> bool:
    state = Run(history[0].run_id)
    for record in history:
        if record.batch <= batch:
            apply(state, record)
    return state.ended
