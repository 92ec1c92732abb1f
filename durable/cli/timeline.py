"""A run's records as a story: which calls it made, what came of each, and where a process was lost in between.

Law: it is made of records alone. A call that has its outcome in the log did not run again in any later life of the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from durable.cli.terminal import call_text, clock_time, counted, escaped, moment, readable, value_of
from durable.core.records import RESULTS, Call, Kind, Record

_OUTCOMES = {Kind.STEP_COMPLETED: "done", Kind.STEP_FAILED: "FAILED", Kind.STEP_CANCELLED: "given up"}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """A call of the body and what came of it.

    Arguments:
        seq: the record that holds the outcome; 0 while there is none.
        call: the call as one would write it.
        outcome: in a word or two.
        tries: how often the step was tried.
        at: when the outcome was recorded.
        attempt: in which attempt.
        life: in which life of the run it ran: 1 is the first, and each start after a crash or a restart is one more.
        replayed: whether a later life took the outcome from the log.
        detail: the result or the error.
        payload: the result as it is stored.
    """

    seq: int
    call: str
    outcome: str
    tries: int = 1
    at: float
    attempt: int
    life: int
    replayed: bool = False
    detail: str = ""
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class Breath:
    """Something happened to the run as a whole."""

    text: str


@dataclass(slots=True)
class Timeline:
    """Rows in the order of the record; calls without an outcome come last."""

    rows: list[Outcome | Breath] = field(default_factory=list)
    recoveries: int = 0
    #: Finished calls that the last life took from the log.
    replayed: int = 0
    events: int = 0
    _tries: dict[Call, int] = field(default_factory=dict)
    _open: dict[Call, Outcome] = field(default_factory=dict)
    _life: int = 0
    #: A process gave the run back, and none has gone on yet.
    _closed: bool = False

    @classmethod
    def of(cls, records: Iterable[Record]) -> Timeline:
        """Tell the story of a run from all its records."""
        timeline = cls()
        last: Record | None = None
        for record in records:
            timeline._take(record)
            last = record
        if last is None or last.kind not in (Kind.COMPLETED, Kind.FAILED, Kind.TIMED_OUT, Kind.CANCELLED):
            timeline.rows += timeline._open.values()
        return timeline

    def _take(self, record: Record) -> None:
        kind = record.kind
        if kind in RESULTS:
            self._result(record)
        elif kind is Kind.EVENT:
            self.events += 1
        elif kind is Kind.STEP_RETRYING:
            tries = int(record.head.get("try", 1))
            self._tries[record.call] = tries + 1
            error = escaped(f"{record.head.get('error_type')}: {record.head.get('message')}")
            self._wait(record, f"failed {counted(tries, 'time')}, to be tried again: {error}")
        elif kind is Kind.TIMER_SET:
            self._wait(record, f"until {moment(float(record.head.get('until', 0)))} UTC")
        elif kind is Kind.WAITING:
            self._wait(record, f"waits for a signal {escaped(repr(record.head.get('what')))}")
        elif kind is Kind.CHILD_STARTED:
            self._wait(
                record, f"child {escaped(str(record.head.get('child', record.head.get('run_id', ''))))}".rstrip()
            )
        else:
            self._breath(record)

    def _wait(self, record: Record, detail: str) -> None:
        self._open[record.call] = Outcome(
            seq=0, call=call_text(record.name, record.ident), outcome="unfinished", tries=self._tries.get(record.call, 1),
            at=record.at, attempt=record.attempt, life=self._life, detail=detail,
        )  # fmt: skip

    def _result(self, record: Record) -> None:
        self._open.pop(record.call, None)
        detail = ""
        if record.kind is Kind.STEP_FAILED:
            detail = escaped(f"{record.head.get('error_type')}: {record.head.get('message')}")
        elif record.payload is not None:
            detail = f"-> {readable(value_of(record.payload))}"
        self.rows.append(
            Outcome(
                seq=record.seq, call=call_text(record.name, record.ident), outcome=_OUTCOMES[record.kind],
                tries=self._tries.pop(record.call, 1), at=record.at, attempt=record.attempt, life=self._life, detail=detail,
                payload=record.payload if record.kind is Kind.STEP_COMPLETED else None,
            )
        )  # fmt: skip

    def _breath(self, record: Record) -> None:
        head, when = record.head, clock_time(record.at)
        reason = f": {escaped(str(head['reason']))}" if head.get("reason") else ""
        error = escaped(f"{head.get('error_type')}: {head.get('message')}") if "error_type" in head else ""
        text = ""
        match record.kind:
            case Kind.STARTED | Kind.RECOVERED:
                self._life += 1
                kept = self._replay(record.attempt)
                if record.kind is Kind.RECOVERED:
                    self.recoveries += 1
                    text = f"{when} the process was lost; recovered in a new one: {kept}"
                elif self._closed:
                    text = f"{when} a new process went on: {kept}"
                else:
                    text = f"{when} attempt {record.attempt} began" + (f": {kept}" if self._life > 1 else "")
                self._closed = False
            case Kind.RELEASED:
                self._closed = True
                text = f"{when} the process closed before the run ended; the next one goes on with it"
            case Kind.RETRYING:
                text = f"{when} attempt {record.attempt} failed ({error}), to be tried again"
            case Kind.SUSPENDED | Kind.RESUMED | Kind.CANCELLED | Kind.COMPLETED:
                text = f"{when} {record.event_name}{reason}"
            case Kind.FAILED | Kind.TIMED_OUT:
                text = f"{when} {record.event_name}: {error}"
        if text:
            self.rows.append(Breath(text))

    def _replay(self, attempt: int) -> str:
        """Mark what the life that begins now takes from the log, and say how much it is."""
        kept = 0
        for row in self.rows:
            # A later attempt runs again what failed; the same attempt takes that from the log, too.
            if isinstance(row, Outcome) and (row.outcome == "done" or row.attempt == attempt):
                row.replayed = True
                kept += 1
        self.replayed = kept
        return f"{counted(kept, 'finished step')} came from the log, none of them ran again"
