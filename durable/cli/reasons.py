"""Why a run is where it is, in words: what it does or waits for, who has it, and what would let it go on.

Law: it is made of facts that were read before; nothing is asked or changed here, and every stored text is escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from durable.cli.family import BY_KEY, Relative, took
from durable.cli.terminal import call_text, children_counted, clipped, counted, escaped, moment, span
from durable.core.records import RESULTS, Call, Kind, Record
from durable.core.run import COORDINATED, Run
from durable.core.status import ENDED, Status
from durable.engine.kinship import WAITS_FOR_USER
from durable.errors import NonDeterminismError
from durable.store.shared import Placement

RELATIVES_SHOWN = 5
MESSAGE_CHARACTERS_MAX = 400
_MARKERS = frozenset({Kind.STEP_RETRYING, Kind.TIMER_SET, Kind.WAITING, Kind.CHILD_STARTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a run.

    Arguments:
        run: the run.
        records: all of it.
        children: its children, by their ties; see `family.tie`.
        placement: where it is, in a store that executors share; None in a folder.
        now: the time, seconds since the epoch.
    """

    run: Run
    records: Sequence[Record]
    children: Sequence[Relative]
    placement: Placement | None
    now: float


def reasons(facts: Facts) -> Iterator[str]:
    """Yield one line for each thing that there is to say, the most telling first."""
    run = facts.run
    if run.ended:
        yield from _ended(facts)
    elif run.status is Status.SUSPENDED:
        yield from _suspended(run)
    elif run.status is Status.READY:
        yield from _ready(facts)
    elif run.unfinished:
        yield from _joining(facts)
    elif run.status is Status.WAITING_FOR_CHILDREN:
        yield "all children that it returned have ended: its coordinator is to begin"
        yield from _executor(facts)
    else:
        yield from _at_work(facts)
    yield from _unread(facts)


# --- by status --------------------------------------------------------------------------------------------------------------------


def _ended(facts: Facts) -> Iterator[str]:
    run = facts.run
    at = f"at {moment(run.ended_at)} UTC"
    if run.status is Status.COMPLETED:
        yield f"it completed {at}, {took(run)} after it began"
    elif run.status is Status.CANCELLED:
        yield f"it was cancelled {at}" + (f": {escaped(run.reason)}" if run.reason else "")
    else:
        yield f"it ended {at}, in attempt {run.attempt} of {run.max_attempts}: {_error(run)}"
    if run.dead:
        yield "it is a dead letter: `durable retry` lets it go on from what failed"
    if not run.closed:
        left = [child for child in facts.children if child.tie not in (BY_KEY, "started") and child.status not in ENDED]
        yield f"it is not closed yet: {children_counted(len(left)) if left else 'its children'} of it still to be cancelled"
        yield from _listed(left)
        if facts.placement is None:
            yield "the process that has this folder open goes on with that, or the next application that opens it"
        else:
            yield from _executor(facts)


def _suspended(run: Run) -> Iterator[str]:
    failure = run.failure or {}
    if run.reason == WAITS_FOR_USER:
        whose = f"of user {escaped(run.user)!r} " if run.user else ""
        yield "it waits for its user: the process that had the user's identity is gone, and it does not go on without"
        yield f"a fresh start {whose}with its key {escaped(run.key or '')!r} brings that back"
    elif str(failure.get("error_type", "")).endswith(f".{NonDeterminismError.__name__}"):
        yield "it is suspended because its code does not do what its record says:"
        yield from (escaped(line) for line in str(failure.get("message", "")).splitlines()[1:-1])
        yield "mend the code, then `durable resume`; or cancel it"
    else:
        why = f": {escaped(run.reason)}" if run.reason else ""
        yield f"it is suspended{why}" + (f" ({_error(run)})" if failure else "")
        yield "`durable resume` lets it go on"


def _ready(facts: Facts) -> Iterator[str]:
    run = facts.run
    if run.failure:
        yield f"attempt {run.attempt} of {run.max_attempts} is next; the last one failed: {_error(run)}"
    if run.not_before > facts.now:
        yield f"it is not to begin before {_until(run.not_before, facts.now)}"
        return
    yield from _executor(facts)
    yield from _calls(facts)


def _joining(facts: Facts) -> Iterator[str]:
    """It waits for the ends of runs: its coordinator's, or those of children that it, or its coordinator, returned."""
    run = facts.run
    wanted = ("coordinator",) if run.coordinator_id is not None else ("returned", BY_KEY)
    left = [child for child in facts.children if child.tie in wanted and child.status not in ENDED]
    if run.coordinator_id is not None:
        yield "it waits for its coordinator, a run of its own:"
    else:
        who = "its coordinator" if run.status in COORDINATED else "it"
        yield f"it waits for {children_counted(run.unfinished)} that {who} returned:"
    yield from _listed(left)
    if len(left) > RELATIVES_SHOWN:
        yield f"`durable runs --parent {run.run_id}` lists all"


def _at_work(facts: Facts) -> Iterator[str]:
    run = facts.run
    if run.status in COORDINATED:
        yield "its coordinator, a function of this run, is at work" if run.executing else "its coordinator has begun"
    calls = list(_calls(facts))
    if run.executing:
        yield from _executor(facts)
        last = facts.records[-1]
        yield from calls or [
            f"it waits for nothing that is on record: a step, or code between steps, is at work; "
            f"its last record, #{last.seq} {escaped(last.event_name)}, is {span(max(facts.now - last.at, 0.0))} old"
        ]
        return
    yield from calls
    if run.wake_at is None or run.wake_at > facts.now:
        yield "it waits in the store only: no executor holds it, and it takes no slot"
    else:
        yield "what it waited for has come"
        yield from _executor(facts)


# --- who has it -------------------------------------------------------------------------------------------------------------------


def _executor(facts: Facts) -> Iterator[str]:
    run, placement = facts.run, facts.placement
    if placement is None:
        if run.executing:
            yield "the process that has this folder open executes it; if none has, the next application that opens it goes on with it"
        else:
            yield "it begins when the process that has this folder open has a slot for it, or in the next application that opens it"
        if run.version is not None:
            needs = f"version {escaped(run.version)!r} of its task {escaped(run.task)!r}"
            yield f"it needs code of {needs}, or without a version: a process that has another one leaves it waiting"
        return
    if placement.owner is not None:
        who = f"executor {placement.owner} (process {placement.pid} on {escaped(placement.host)})"
        if placement.lease_seconds > 0:
            yield f"it is held by {who}; that one's lease lasts {span(placement.lease_seconds)} more, if it is not renewed"
            return
        yield f"it was held by {who}, whose lease passed {span(-placement.lease_seconds)} ago: another may take it now"
    what = f"its task {escaped(run.task)!r}" + (f" in version {escaped(run.version)!r}" if run.version else "")
    if placement.executors:
        know = "executor that is alive knows" if placement.executors == 1 else "executors that are alive know"
        yield f"it waits for a slot: {placement.executors:,} {know} {what}"
    else:
        yield f"it waits for an executor: none that is alive knows {what}; start one with `durable worker MODULE --store ...`"
        if others := sorted({escaped(version) for version in placement.versions if version is not None}):
            yield f"executors that are alive know that task in version {', '.join(map(repr, others))}: start one with the code of its own"


# --- what it waits for ------------------------------------------------------------------------------------------------------------


def _open_calls(run: Run, records: Iterable[Record]) -> list[Record]:
    """The calls of the body, or of the coordinator, that have no outcome, each by what is on record of it last."""
    found: dict[Call, Record] = {}
    for record in records:
        if record.seq <= run.returned_seq:
            continue
        if record.kind in RESULTS:
            found.pop(record.call, None)
        elif record.kind is Kind.CHILD_STARTED or (record.kind in _MARKERS and record.attempt == run.attempt):
            found[record.call] = record
    return list(found.values())


def _calls(facts: Facts) -> Iterator[str]:
    now = facts.now
    children = {child.run_id: child for child in facts.children}
    awaited: list[Relative] = []
    for record in _open_calls(facts.run, facts.records):
        head = record.head
        match record.kind:
            case Kind.CHILD_STARTED:
                child = children.get(str(head.get("child")))
                awaited += [] if child is None else [child]
            case Kind.WAITING:
                until = "" if "until" not in head else f", until {_until(float(head['until']), now)} at most"
                yield f"it waits for the signal {escaped(repr(head.get('what')))}{until}"
            case Kind.TIMER_SET if record.name.endswith("timeout"):
                yield f"a time limit in it ends at {_until(float(head.get('until', 0.0)), now)}"
            case Kind.TIMER_SET:
                yield f"it sleeps until {_until(float(head.get('until', 0.0)), now)}"
            case _:
                at = record.at + float(head.get("wait", 0.0))
                error = clipped(escaped(f"{head.get('error_type')}: {head.get('message')}"), MESSAGE_CHARACTERS_MAX)
                again = f"to be tried again at {_until(at, now)}" if at > now else "and is being tried again"
                yield f"{call_text(record.name, record.ident)} failed {counted(int(head.get('try', 1)), 'time')}, {again}: {error}"
    if awaited:
        yield f"it waits for {children_counted(len(awaited))}:"
        yield from _listed(awaited)


def _unread(facts: Facts) -> Iterator[str]:
    placement, run = facts.placement, facts.run
    if placement is not None and placement.messages:
        what = "1 message waits" if placement.messages == 1 else f"{placement.messages:,} messages wait"
        yield f"{what} for it, until an executor obeys them"
    if run.signals and not run.ended:
        names = Counter(name for _, name in run.signals)
        shown = ", ".join(
            escaped(repr(name)) + (f" ({count:,} times)" if count > 1 else "") for name, count in names.items()
        )
        yield f"sent to it and not yet taken: {clipped(shown)}"


def _listed(runs: Sequence[Relative]) -> Iterator[str]:
    for run in runs[:RELATIVES_SHOWN]:
        yield f"  run {run.run_id} of task {escaped(run.task)!r}, {run.status}"
    if len(runs) > RELATIVES_SHOWN:
        yield f"  and {len(runs) - RELATIVES_SHOWN:,} more"


def _error(run: Run) -> str:
    failure = run.failure or {}
    return clipped(escaped(f"{failure.get('error_type')}: {failure.get('message')}"), MESSAGE_CHARACTERS_MAX)


def _until(at: float, now: float) -> str:
    """A time for people, and how far away it is."""
    return f"{moment(at)} UTC, {f'in {span(at - now)}' if at > now else 'which has passed'}"
