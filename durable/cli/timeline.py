"""A run's records as a story: which calls it made, what came of each, and where a process was lost in between.

Law: it is made of records alone. A call that has its outcome in the log did not run again in any later life of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from durable.cli.terminal import call_text, children_counted, clock_time, counted, escaped, moment, readable, value_of
from durable.core.records import ENDS, RESULTS, Call, Kind, Record

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
        life: in which life of the run it ran: 1 is the first, and each start after a crash, a restart or a long wait is one more.
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
    #: Finished calls that the last recovery took from the log.
    replayed: int = 0
    events: int = 0
    #: Whether the body has returned children, and whether the coordinator has begun.
    returned: bool = False
    coordinated: bool = False
    _tries: dict[Call, int] = field(default_factory=dict)
    _open: dict[Call, Outcome] = field(default_factory=dict)
    _life: int = 0
    #: A process gave the run back, and none has gone on yet.
    _released: bool = False
    _over: bool = False
    #: The run that is the coordinator.
    _coordinator_id: str | None = None
    #: The first row of the function that is at work: the body's, or the coordinator's.
    _first: int = 0
    #: Children whose ends are told one after the other, by status, and when the last of them was.
    _ended: Counter[str] = field(default_factory=Counter)
    _ended_at: float = 0.0

    @classmethod
    def of(cls, records: Iterable[Record]) -> Timeline:
        """Tell the story of a run from all its records."""
        timeline = cls()
        for record in records:
            timeline._take(record)
        timeline._sum_up_ends()
        if not timeline._over:
            timeline.rows += timeline._open.values()
        return timeline

    def _take(self, record: Record) -> None:
        kind = record.kind
        if kind is Kind.CHILD_ENDED and record.head.get("child") == self._coordinator_id:
            return  # the run ends as its coordinator did: the next record says so
        if kind is Kind.CHILD_ENDED:
            self._ended[escaped(str(record.head.get("status")))] += 1
            self._ended_at = record.at
            return
        self._sum_up_ends()
        if kind in ENDS:
            self._over = True
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
            case Kind.STARTED | Kind.RECOVERED | Kind.AWAKE:
                text = f"{when} {self._begin(record)}"
            case Kind.RELEASED:
                self._released = True
                text = f"{when} the process closed before the run ended; the next one goes on with it"
            case Kind.ASLEEP:
                until = head.get("until")
                what = "for a signal or a child" if until is None else f"until {moment(float(until))} UTC"
                text = f"{when} let go while it waits {what}"
            case Kind.CHILDREN_STARTED:
                text = f"{when} {self._return(record)}"
            case Kind.COORDINATING if "coordinator" in head:
                again, self.coordinated, self._coordinator_id = self.coordinated, True, head["coordinator"]
                text = f"{when} the coordinator {'is tried again' if again else 'began'}, as run {escaped(str(self._coordinator_id))}"
            case Kind.COORDINATING:
                text = f"{when} {self._begin(record)}"
                self.coordinated = True
            case Kind.RETRYING:
                text = f"{when} {self._attempt(record)} failed ({error}), to be tried again"
            case Kind.RESUMED:
                self._over = False
                children = int(head.get("children", 0))
                text = f"{when} {record.event_name}{reason}" + (
                    f", with {children_counted(children)}" if children else ""
                )
            case Kind.SUSPENDED | Kind.CANCELLED | Kind.COMPLETED:
                text = f"{when} {record.event_name}{reason}" + (f": {error}" if error else "")
            case Kind.FAILED | Kind.TIMED_OUT | Kind.CHILDREN_FAILED:
                what = "in its coordinator" if self.returned and record.kind is not Kind.CHILDREN_FAILED else ""
                text = f"{when} {record.event_name} {what}".rstrip() + f": {error}"
            case Kind.DISCARDED:
                text = f"{when} discarded{reason}: a dead letter no more"
        if text:
            self.rows.append(Breath(text))

    def _attempt(self, record: Record) -> str:
        return f"attempt {record.attempt}" + (" of the coordinator" if self.returned else "")

    def _begin(self, record: Record) -> str:
        """A life of the run begins: of its body, or of the function that is its coordinator."""
        self._life += 1
        released, self._released = self._released, False
        first = self._life == 1 or (record.kind is Kind.COORDINATING and not self.coordinated)
        kept = self._replay(record.attempt)
        came = f"{counted(kept, 'finished step')} came from the log, none of them ran again"
        if record.kind is Kind.RECOVERED:
            self.recoveries += 1
            self.replayed = kept
            return f"the process was lost; recovered in a new one: {came}"
        if record.kind is Kind.AWAKE:
            return f"went on: {came}"
        if released:
            return f"a new process went on: {came}"
        if record.kind is Kind.COORDINATING and first:
            return "the coordinator began"
        return f"{self._attempt(record)} began" + ("" if first else f": {came}")

    def _return(self, record: Record) -> str:
        """The body, or the coordinator, returned."""
        who = "the coordinator" if self.returned else "the body"
        if not self.returned:
            self.returned = True
            self._first = len(self.rows)
            self._open.clear()
        children = int(record.head.get("children", 0))
        ends = "its end" if children == 1 else "their ends"
        return f"{who} returned" + (f" {children_counted(children)}, and waits for {ends}" if children else "")

    def _sum_up_ends(self) -> None:
        """One row for the ends of children that came one after the other."""
        if self._ended:
            total = self._ended.total()
            counts = [status if total == 1 else f"{count:,} {status}" for status, count in sorted(self._ended.items())]
            text = f"{clock_time(self._ended_at)} {children_counted(total)} ended: {', '.join(counts)}"
            self.rows.append(Breath(text))
            self._ended.clear()

    def _replay(self, attempt: int) -> int:
        """Mark what the life that begins now takes from the log, and say how much it is."""
        kept = 0
        for row in self.rows[self._first :]:
            # A later attempt runs again what failed; the same attempt takes that from the log, too.
            if isinstance(row, Outcome) and (row.outcome == "done" or row.attempt == attempt):
                row.replayed = True
                kept += 1
        return kept
