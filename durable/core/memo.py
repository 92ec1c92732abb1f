"""The memo: what the body's calls came to, as recorded, and in which batches they are handed back.

Law: a call is known by its name, its arguments and how often the attempt made it so. Results of this attempt come back in the batches in
which they were committed, one batch at a time and in order; results of earlier attempts come back to whoever calls for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from durable.core.records import Call, Kind, Record

_RESULTS = frozenset({Kind.STEP_COMPLETED, Kind.STEP_FAILED, Kind.STEP_CANCELLED, Kind.EVENT})
_MARKERS = frozenset({Kind.TIMER_SET, Kind.WAITING, Kind.CHILD_STARTED, Kind.STEP_RETRYING})


@dataclass(frozen=True, slots=True)
class Divergence:
    """Code and record differ.

    Arguments:
        recorded: calls that the record has next and the code has not made.
        called: calls that the code made and the record does not have there.
        guess: what probably happened to the code.
        added: the called ones look like steps that were added; nothing recorded is missing otherwise.
    """

    recorded: tuple[Call, ...]
    called: tuple[Call, ...]
    guess: str
    added: bool = False


#: For the many runs without a past, which put nothing into them: empty ones cost a kilobyte a run.
_NO_CALLS: set[Call] = set()
_NO_BATCHES: deque[list[Record]] = deque()


class Memo:
    """The recorded calls of one run, as one attempt sees them.

    Arguments:
        records: with the calls of the body, or of the coordinator, whichever it is that goes on.
        attempt: the attempt that goes on.
        past: earlier records; only the events among them matter.
    """

    __slots__ = ("_batches", "_called", "_counts", "_events", "_markers", "_prior", "_repeated", "_results")

    def __init__(self, records: Sequence[Record] = (), attempt: int = 1, past: Sequence[Record] = ()) -> None:
        self._counts: dict[tuple[str, bytes], int] = {}
        self._prior: dict[Call, Record] = {}
        self._results: dict[Call, Record] = {}
        self._markers: dict[Call, Record] = {}
        self._events: list[Record] = [record for record in past if record.kind is Kind.EVENT]
        #: Calls that the code has made while results of this attempt are still to be handed back.
        self._called: set[Call] = set() if records else _NO_CALLS
        #: After `relax`: the recorded calls of this attempt that have not been handed back.
        self._repeated: set[Call] = set() if records else _NO_CALLS
        self._batches: deque[list[Record]] = deque() if records else _NO_BATCHES
        for record in records:
            self._take(record, attempt)

    def _take(self, record: Record, attempt: int) -> None:
        kind, call = record.kind, record.call
        current = record.attempt == attempt
        if kind is Kind.EVENT:
            self._events.append(record)
            if "step" in record.head:
                return  # emitted inside a step: no call of the body
        if kind in _MARKERS:
            if current or kind is Kind.CHILD_STARTED:
                self._markers[call] = record
        elif kind in _RESULTS:
            by_handler = record.head.get("handler", False)
            if kind is Kind.STEP_CANCELLED:
                self._withdraw(call)
                if by_handler:
                    return  # what a recovery handler gave up, the body may still want
            if not current and kind is not Kind.STEP_COMPLETED and kind is not Kind.EVENT:
                return  # it failed then, and runs again from the beginning; a child, whose marker stays, is tried again itself
            if not current or by_handler or record.head.get("added"):
                # Of an earlier attempt, of the recovery handler, or of a call that the code gained while the run was replayed: it has no
                # place in the order.
                self._prior[call] = record
                return
            self._prior.pop(call, None)
            self._results[call] = record
            if not self._batches or self._batches[-1][0].batch != record.batch:
                self._batches.append([])
            self._batches[-1].append(record)

    def _withdraw(self, call: Call) -> None:
        """A call that was given up after its outcome was recorded, before the body got it, has no other outcome than that."""
        self._prior.pop(call, None)
        known = self._results.pop(call, None)
        if known is not None:
            for batch in self._batches:
                batch[:] = [record for record in batch if record is not known]
            self._batches = deque(batch for batch in self._batches if batch)

    @property
    def replaying(self) -> bool:
        """Whether results of this attempt are still to be handed back."""
        return bool(self._batches)

    @property
    def repeating(self) -> bool:
        """Whether the body is still doing what it did before."""
        return bool(self._batches or self._repeated)

    @property
    def events(self) -> list[Record]:
        """Events emitted before."""
        return self._events

    def number(self, name: str, ident: bytes) -> Call:
        """Give a call its identity: its occurrence among equal ones."""
        key = (name, ident)
        occurrence = self._counts.get(key, 0)
        self._counts[key] = occurrence + 1
        call = (name, ident, occurrence)
        if self._batches:
            self._called.add(call)
        elif self._repeated and call not in self._repeated:
            self._repeated.clear()  # the body has taken another way
        return call

    def result(self, call: Call) -> Record | None:
        """The recorded outcome of a call, if there is one."""
        return self._results.get(call) or self._prior.get(call)

    def marker(self, call: Call) -> Record | None:
        """What was recorded about a call that had not ended: its timer, its child, its last failed try."""
        return self._markers.get(call)

    def loosen(self) -> None:
        """Let the body take recovery into its own hands: recorded results serve whoever calls, and recorded events are no calls."""
        for call, record in self._results.items():
            if record.kind is Kind.STEP_COMPLETED:
                self._prior[call] = record
        self._results.clear()
        self._batches.clear()
        self._called.clear()
        self._prior = {call: record for call, record in self._prior.items() if record.kind is Kind.STEP_COMPLETED}

    def relax(self) -> None:
        """Recorded results serve whoever calls, in the order in which they were recorded; what is not called is not missed."""
        self._prior.update(self._results)
        self._repeated.update(self._results)
        self._results.clear()
        self._batches.clear()
        self._called.clear()

    def next_batch(self, waiting: Collection[Call]) -> list[Record]:
        """The results to hand back now that the run is quiet; empty when the code has to do something first.

        Earlier attempts go first: the oldest batch of which something is waited for, and of that what is waited for.
        """
        prior = [record for call in waiting if (record := self._prior.get(call)) is not None] if self._prior else None
        if prior:
            oldest = min(record.batch for record in prior)
            due = sorted((record for record in prior if record.batch == oldest), key=lambda record: record.seq)
            for record in due:
                del self._prior[record.call]
                self._repeated.discard(record.call)
            return due
        if self._batches and all(self._is_due(record, waiting) for record in self._batches[0]):
            due = self._batches.popleft()
            for record in due:
                self._called.discard(record.call)
                del self._results[record.call]
            return due
        return []

    def _is_due(self, record: Record, waiting: Collection[Call]) -> bool:
        """The code has made the call; and given it up again, where it did so before."""
        if record.call not in self._called:
            return False
        return record.kind is not Kind.STEP_CANCELLED or record.call not in waiting

    def missing(self) -> tuple[Call, ...]:
        """The calls of the next batch that the code has not made."""
        if not self._batches:
            return ()
        return tuple(record.call for record in self._batches[0] if record.call not in self._called)

    def leftover(self) -> tuple[Call, ...]:
        """The recorded calls that the code has not made at all."""
        return tuple(self._uncalled())

    def _uncalled(self) -> Iterator[Call]:
        for batch in self._batches:
            for record in batch:
                if record.call not in self._called:
                    yield record.call

    def diverged(self, unknown: Collection[Call], has_step: Callable[[str], bool]) -> Divergence:
        """Compare code and record where they do not go together; `unknown` are the calls that the record does not have."""
        missing = self.missing()
        called = tuple(unknown)
        ahead = set(self._uncalled())
        names = {name for name, _, _ in ahead}
        if not called:
            early = [call for call in self._called if call in self._results]
            return Divergence(missing, tuple(early), "the order of calls changed, or a call was removed")
        if any(name in names for name, _, _ in called):
            return Divergence(missing, called, "the arguments of a call changed")
        gone = sorted({name for name, _, _ in missing if not has_step(name)})
        if gone:
            return Divergence(missing, called, f"{', '.join(gone)} was renamed or removed")
        return Divergence(missing, called, "a call was added before the recorded ones", added=True)
