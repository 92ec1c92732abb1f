"""`decide`: what a command does to a run, as records.

Law: pure. It reads the run, the command and the time, consults `TRANSITIONS` for every change of status, and returns the new records
(none where there is nothing to do) or raises a refusal; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from durable.core.commands import (
    Begin,
    Cancel,
    ChildEnded,
    Close,
    Command,
    Complete,
    Coordinate,
    Create,
    Discard,
    Fail,
    Note,
    Receive,
    Recover,
    Release,
    Resume,
    Revive,
    Send,
    Sleep,
    Suspend,
    Wake,
    Watch,
)
from durable.core.records import Failure, Kind, Record
from durable.core.run import COORDINATED, JOINING, Run
from durable.core.status import Status, Verb, after
from durable.errors import HistoryLimitError, LimitError, TransitionError


def _record(
    run: Run, kind: Kind, now: float, head: dict[str, Any] | None = None, payload: bytes | None = None
) -> Record:
    return Record(run.run_id, run.seq + 1, kind, now, run.attempt, head=head or {}, payload=payload)


def _note(run: Run, command: Note, now: float) -> list[Record]:
    if not run.executing:
        raise TransitionError(f"run {run.run_id} is {run.status}: its body can record nothing more")
    name, ident, occurrence = command.call
    return [
        Record(
            run.run_id,
            run.seq + 1,
            command.kind,
            now,
            run.attempt,
            name,
            ident,
            occurrence,
            command.head,
            command.payload,
        )
    ]


def _create(run: Run, command: Create, now: float) -> list[Record]:
    if run.seq:
        raise TransitionError(f"run {run.run_id} exists already")
    head: dict[str, Any] = {}
    for key, value in (
        ("version", command.version),
        ("key", command.key),
        ("fingerprint", command.fingerprint),
        ("user", command.user),
        ("parent", command.parent_id),
        ("attached", command.attached),
        ("joined", command.joined),
        ("depth", command.depth),
        ("priority", command.priority),
        ("trace", command.trace),
    ):
        if value:
            head[key] = value
    if command.timeout is not None:
        head["timeout"] = command.timeout
    if command.retry is not None:
        head["retry"] = command.retry.to_json()
    if command.delay:
        head["not_before"] = now + command.delay
    return [Record(run.run_id, 1, Kind.CREATED, now, 1, command.task, b"", 0, head, command.input)]


def _begin(run: Run, command: Begin, now: float) -> list[Record]:
    after(run.status, Verb.BEGIN, run.run_id)
    return [_record(run, Kind.STARTED, now)]


def _recover(run: Run, command: Recover, now: float) -> list[Record]:
    after(run.status, Verb.RECOVER, run.run_id)
    _require_body(run, "recover")
    if run.recoveries >= command.recoveries_max:
        after(run.status, Verb.FAIL, run.run_id)
        failure = Failure(
            "durable.RecoveryLimit",
            f"the executor was lost {run.recoveries + 1} times while this run was executing and no step was recorded in between; "
            "the body may be what ends the process",
        )
        return [_record(run, Kind.FAILED, now, failure.head())]
    return [_record(run, Kind.RECOVERED, now, {"reason": command.reason})]


def _receive(run: Run, command: Receive, now: float) -> list[Record]:
    if not run.executing:
        raise TransitionError(f"run {run.run_id} is {run.status}: its body can receive nothing more")
    for seq, name in run.signals:
        if name == command.signal:
            head = {**command.head, "signal": seq}
            return _note(run, Note(Kind.STEP_COMPLETED, command.call, command.payloads[seq], head), now)
    return []


def _send(run: Run, command: Send, now: float) -> list[Record]:
    if run.ended:
        raise TransitionError(f"run {run.run_id} is {run.status}: nobody is left to receive {command.name!r}")
    if len(run.signals) >= command.signals_max:
        raise LimitError(
            f"run {run.run_id} has {len(run.signals)} unread signals, the most it may have (engine.signals_max)"
        )
    record = _record(run, Kind.SIGNAL, now, payload=command.payload)
    record.name = command.name
    return [record]


def _complete(run: Run, command: Complete, now: float) -> list[Record]:
    _require_body(run, "complete")
    if not command.children and (not command.join or run.returned_seq):
        after(run.status, Verb.COMPLETE, run.run_id)
        return [_record(run, Kind.COMPLETED, now, payload=command.payload)]
    after(run.status, Verb.WAIT, run.run_id)
    head: dict[str, Any] = {"children": command.children}
    if not run.returned_seq:
        if command.join:
            head["join"] = command.join
        if command.lenient:
            head["lenient"] = True
    return [_record(run, Kind.CHILDREN_STARTED, now, head, command.payload)]


def _require_body(run: Run, verb: str) -> None:
    """Refuse what only a body at work can do, where the status alone does not tell."""
    if run.asleep or (run.status in JOINING and not run.executing):
        waits = "it is asleep" if run.asleep else _waiting(run)
        raise TransitionError(f"run {run.run_id} is {run.status}: it cannot {verb}; {waits}")


def _waiting(run: Run) -> str:
    if not run.unfinished:
        return "its coordinator has not begun"
    return "it waits for a child" if run.unfinished == 1 else f"it waits for {run.unfinished} children"


def _child_ended(run: Run, command: ChildEnded, now: float) -> list[Record]:
    if run.asleep:  # its body awaits the child, or would be glad to know
        return [_record(run, Kind.CHILD_ENDED, now, {"child": command.child_id, "status": command.status})]
    if not command.counts or run.status not in JOINING or not run.unfinished:
        return []
    counted = _record(run, Kind.CHILD_ENDED, now, {"child": command.child_id, "status": command.status})
    by_task = run.status in COORDINATED and run.join == "task"
    if command.status is not Status.COMPLETED and (by_task or not run.lenient):
        after(run.status, Verb.FAIL_BY_CHILDREN, run.run_id)
        kind = Kind.FAILED if run.status in COORDINATED else Kind.CHILDREN_FAILED
        end = _record(run, kind, now, _failure_of(command, by_task))
    elif run.unfinished == 1 and (run.status in COORDINATED or not run.join):
        after(run.status, Verb.COMPLETE, run.run_id)
        end = _record(run, Kind.COMPLETED, now, payload=command.result if by_task else run.result)
    else:
        return [counted]
    end.seq += 1
    return [counted, end]


def _failure_of(command: ChildEnded, is_coordinator: bool) -> dict[str, Any]:
    if command.status is Status.CANCELLED:
        error_type, message = "durable.errors.RunCancelledError", command.reason or "no reason given"
    else:
        failure = command.failure or {}
        error_type, message = failure.get("error_type", ""), failure.get("message", "")
    if command.status is Status.CHILDREN_FAILED:  # it names the run that failed: once is enough, however deep that is
        return Failure(error_type, message, (command.failure or {}).get("traceback", "")).head()
    who = "coordinator" if is_coordinator else "child"
    text = f"{who} {command.child_id} (task {command.task!r}) is {command.status}: {message}"
    return Failure(error_type, text, (command.failure or {}).get("traceback", "")).head()


def _coordinate(run: Run, command: Coordinate, now: float) -> list[Record]:
    after(run.status, Verb.COORDINATE, run.run_id)
    if run.unfinished:
        raise TransitionError(f"run {run.run_id} cannot coordinate yet: {_waiting(run)}")
    head = {"coordinator": command.child_id, "children": 1} if command.child_id else None
    return [_record(run, Kind.COORDINATING, now, head)]


def _watch(run: Run, command: Watch, now: float) -> list[Record]:
    if run.ended:
        raise TransitionError(f"run {run.run_id} is {run.status}: there is nothing more to tell run {command.by}")
    return [_record(run, Kind.WATCHED, now, {"by": command.by})]


def _sleep(run: Run, command: Sleep, now: float) -> list[Record]:
    after(run.status, Verb.SLEEP, run.run_id)
    _require_body(run, "sleep")
    return [_record(run, Kind.ASLEEP, now, {} if command.until is None else {"until": command.until})]


def _wake(run: Run, command: Wake, now: float) -> list[Record]:
    after(run.status, Verb.WAKE, run.run_id)
    return [_record(run, Kind.AWAKE, now)] if run.asleep else []


def _close(run: Run, command: Close, now: float) -> list[Record]:
    return [_record(run, Kind.CLOSED, now)] if run.ended and not run.closed else []


def _fail(run: Run, command: Fail, now: float) -> list[Record]:
    head = command.failure.head()
    if run.unfinished or run.asleep:
        _require_body(run, "fail")
    if command.retryable and run.attempt < run.max_attempts and run.executing:
        after(run.status, Verb.RETRY, run.run_id)
        wait = run.retry.wait_after(run.attempt - run.attempt_base, command.fraction)
        head["not_before"] = now + wait
        if command.timed_out:
            head["timed_out"] = True
        return [_record(run, Kind.RETRYING, now, head)]
    verb, kind = (Verb.TIME_OUT, Kind.TIMED_OUT) if command.timed_out else (Verb.FAIL, Kind.FAILED)
    after(run.status, verb, run.run_id)
    return [_record(run, kind, now, head)]


def _cancel(run: Run, command: Cancel, now: float) -> list[Record]:
    if run.ended:
        return []  # the caller lost a race against the end
    after(run.status, Verb.CANCEL, run.run_id)
    return [_record(run, Kind.CANCELLED, now, {"reason": command.reason} if command.reason else None)]


def _suspend(run: Run, command: Suspend, now: float) -> list[Record]:
    if run.status is Status.SUSPENDED:
        return []
    if run.status in JOINING and not run.asleep and not run.executing:
        what = "its children" if run.unfinished else "its coordinator once it has begun"
        if run.status in COORDINATED and run.coordinator_id is not None:
            what = f"its coordinator, run {run.coordinator_id}"
        raise TransitionError(
            f"run {run.run_id} is {run.status}: it cannot stop, since no code of its own is at work; stop {what}, or cancel it"
        )
    after(run.status, Verb.SUSPEND, run.run_id)
    head = command.failure.head() if command.failure is not None else {}
    if command.reason:
        head["reason"] = command.reason
    return [_record(run, Kind.SUSPENDED, now, head)]


def _resume(run: Run, command: Resume, now: float) -> list[Record]:
    coordinates = run.returned_seq and run.status is Status.SUSPENDED
    after(run.status, Verb.REJOIN if coordinates else Verb.RESUME, run.run_id)
    return [_record(run, Kind.RESUMED, now)]


def _revive(run: Run, command: Revive, now: float) -> list[Record]:
    tried_again = run.ended and run.status is not Status.COMPLETED
    if tried_again and not command.by_parent and (run.attached or run.status is Status.CANCELLED):
        why = (
            f"it belongs to run {run.parent_id}: retry that"
            if run.attached
            else "somebody cancelled it: start a new run"
        )
        raise TransitionError(f"run {run.run_id} is {run.status}: it cannot retry; {why}")
    after(run.status, Verb.REJOIN if tried_again and run.returned_seq else Verb.REVIVE, run.run_id)
    if not run.closed:
        raise TransitionError(
            f"run {run.run_id} is {run.status}: it cannot retry yet; its children are still being cancelled"
        )
    if run.status is Status.CHILDREN_FAILED and not command.children:
        raise TransitionError(f"run {run.run_id} is {run.status}: it cannot retry without the children that failed")
    most = command.letter_retries
    if most is not None and run.retried >= most:
        times = "once" if run.retried == 1 else f"{run.retried} times"
        raise LimitError(
            f"run {run.run_id} was retried as a dead letter {times} already, the most that limits.dead_letter_retries ({most}) allows: "
            "discard it, or let its handle retry it, which has no limit"
        )
    head: dict[str, Any] = {"reason": "retry"}
    if most is not None:
        head["letter"] = True
    if command.children:
        head["children"] = command.children
    resumed = _record(run, Kind.RESUMED, now, head)
    if not run.returned_seq or run.join or command.children:
        return [resumed]
    # Its children had all completed, and nothing follows them: all that it lacked was to say so.
    after(Status.WAITING_FOR_CHILDREN, Verb.COMPLETE, run.run_id)
    completed = _record(run, Kind.COMPLETED, now, payload=run.result)
    completed.seq, completed.attempt = completed.seq + 1, run.attempt + 1
    return [resumed, completed]


def _release(run: Run, command: Release, now: float) -> list[Record]:
    after(run.status, Verb.RELEASE, run.run_id)
    _require_body(run, "release")
    return [_record(run, Kind.RELEASED, now)]


def _discard(run: Run, command: Discard, now: float) -> list[Record]:
    if not run.dead:
        raise TransitionError(f"run {run.run_id} is {run.status} and no dead letter")
    return [_record(run, Kind.DISCARDED, now, {"reason": command.reason} if command.reason else None)]


_RULES: dict[type, Callable[[Run, Any, float], list[Record]]] = {
    Note: _note,
    Complete: _complete,
    ChildEnded: _child_ended,
    Coordinate: _coordinate,
    Sleep: _sleep,
    Wake: _wake,
    Watch: _watch,
    Close: _close,
    Begin: _begin,
    Create: _create,
    Recover: _recover,
    Receive: _receive,
    Send: _send,
    Fail: _fail,
    Cancel: _cancel,
    Suspend: _suspend,
    Resume: _resume,
    Revive: _revive,
    Release: _release,
    Discard: _discard,
}


def decide(run: Run, command: Command, now: float, records_max: int) -> list[Record]:
    """Return the records that `command` adds to `run` at time `now`.

    Raises `TransitionError` where the run's status does not allow it, `LimitError` where a bound is reached. The body of a run that
    has reached `records_max` records nothing more and gets no further attempt; the run can still end.
    """
    full = run.seq >= records_max
    if full and type(command) is Fail:
        command = replace(command, retryable=False)  # the history has no room for another attempt
    records = _RULES[type(command)](run, command, now)
    if full and type(command) is Note:
        raise HistoryLimitError(
            f"run {run.run_id} has {run.seq} records, the most it may have (engine.history_records_max); "
            "split it into child runs or start a follow-up run"
        )
    return records
