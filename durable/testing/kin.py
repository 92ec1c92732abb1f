"""What must hold between the runs of one family, as their records tell it.

Law: it reads records and folds them, and knows nothing of how the engine makes them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from durable.core.records import ENDS, Kind, Record
from durable.core.run import COORDINATED, JOINING, Run, apply

Histories = Mapping[str, Sequence[Record]]


def family_faults(runs: Mapping[str, Run], histories: Histories) -> Iterator[str]:
    """What is wrong between these runs, which are all of a store, in words."""
    children: dict[str, list[Run]] = defaultdict(list)
    for run in runs.values():
        if run.parent_id is not None:
            children[run.parent_id].append(run)
            yield from _birth(run, histories)
    for run in runs.values():
        yield from _notes(run, histories)
        yield from _state(run, children[run.run_id])
        if any(child.joined for child in children[run.run_id]):
            yield from _joined(run, [child for child in children[run.run_id] if child.joined], histories)


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


def _state(run: Run, children: Sequence[Run]) -> Iterator[str]:
    """The counts of a run are those of its children; closed is closed."""
    unfinished = [child.run_id for child in children if child.joined and not child.ended]
    if run.status in JOINING and len(unfinished) != run.unfinished:
        yield f"run {run.run_id} is {run.status} and counts {run.unfinished} unfinished children, they are {unfinished}"
    left = [child.run_id for child in children if child.attached and not child.ended]
    if run.closed and left:
        yield f"run {run.run_id} is closed, and its children {left} have not ended"
    if run.unfinished < 0 or run.awaiting < 0:
        yield f"run {run.run_id} counts {run.unfinished} unfinished and {run.awaiting} awaited children"


@dataclass
class _Moment:
    """A parent, as it was before and after one of its records."""

    record: Record
    counts: bool
    counted: bool


def _joined(run: Run, children: Sequence[Run], histories: Histories) -> Iterator[str]:
    """Ends of returned children are told to the parent, once each, in the unit in which they end."""
    history = histories[run.run_id]
    state, moments = Run(run.run_id), []
    for record in history:
        before = _counts(state)
        apply(state, record)
        moments.append(_Moment(record, before, _counts(state)))
    ends: Counter[tuple[object, int]] = Counter()
    for child in children:
        for record in histories[child.run_id]:
            if record.kind in ENDS:
                ends[child.run_id, record.batch] += 1
    told = Counter((each.head["child"], each.batch) for each in history if each.kind is Kind.CHILD_ENDED)
    joined = {child.run_id for child in children}
    for (child_id, batch), count in told.items():
        if child_id in joined and count > ends[child_id, batch]:
            yield f"run {run.run_id} was told {count} times in unit {batch} that {child_id} ended, which did {ends[child_id, batch]} times"
    for (child_id, batch), count in ends.items():
        if told[child_id, batch] < count and _must_be_told(moments, batch):
            yield f"child {child_id} ended in unit {batch}, and run {run.run_id}, which waits for it, was not told"
    yield from _numbers(run, children, histories)


def _counts(run: Run) -> bool:
    return (run.status in JOINING and run.unfinished > 0) or run.asleep


def _must_be_told(moments: Sequence[_Moment], batch: int) -> bool:
    """Whether the parent counted all the time while this unit was written."""
    earlier = [moment for moment in moments if moment.record.batch < batch]
    within = [moment for moment in moments if moment.record.batch == batch]
    return bool(earlier) and earlier[-1].counted and all(moment.counted for moment in within)


def _numbers(run: Run, children: Sequence[Run], histories: Histories) -> Iterator[str]:
    """Each record that starts children started as many as it says; a coordinator begins when no child is left."""
    born = Counter(histories[child.run_id][0].batch for child in children)
    for record in histories[run.run_id]:
        if record.kind is Kind.CHILDREN_STARTED and born[record.batch] != record.head.get("children", 0):
            if not any(each.kind is Kind.COORDINATING and each.batch == record.batch for each in histories[run.run_id]):
                yield f"record {record.seq} of run {run.run_id} starts {record.head} children, {born[record.batch]} are there"
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
