"""A bundle: parcels, folded into the rows that one statement writes.

Law: a parcel goes into a bundle whole or not at all. Of each run only the last state is written, and only where the run still is as it
was before the first of its records here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from durable.core.messages import Answer, Message, encode_command
from durable.core.records import Record
from durable.core.run import Run, apply
from durable.core.status import Status
from durable.core.wire import encode_record, encode_run
from durable.errors import ConflictError, DurableError, LeaseLostError
from durable.store.postgres.columns import Blobs, Doubles, Flags, Longs, Texts, escape, escape_some
from durable.store.postgres.facts import Facts, Key, mark_of
from durable.store.postgres.recent import Known
from durable.store.postgres.statements import Variant
from durable.store.shared import Parcel

#: Bytes for which one statement has room, and parcels; the numbers of parcels stay below the step of the sequence of batches.
BYTES_MAX = 16 * 1024 * 1024
PARCELS_MAX = 2000
#: Between children that come into being together, in the queue: theirs is not one place, so that others get their turn.
SIBLING_SECONDS = 0.01
PRIORITY_SECONDS = 60.0


@dataclass(slots=True)
class Change:
    """What becomes of one run.

    Arguments:
        run: as it is then.
        before: its last record before; 0 for one that is created.
        known_epoch: the epoch that it had when it was last seen.
        epoch: the epoch under which its records were decided; None where it is fenced by `before` alone.
        shape: what columns besides `seq` and `state` say of it before.
        owner: who holds it, of one that is created.
        standing: its place in the queue, of one that is created.
    """

    run: Run
    before: int
    known_epoch: int
    epoch: int | None
    shape: Shape
    owner: str | None = None
    standing: float = 0.0

    @property
    def fresh(self) -> bool:
        """Whether it has another result than before."""
        return self.run.result is not self.shape[-1]


#: Status, whether it is closed, when it is due, when it ended, whether it is dead, its result.
Shape = tuple[Status, bool, float | None, float | None, bool, bytes | None]


def _shape(run: Run) -> Shape:
    return (run.status, run.closed, run.due, run.ended_at, run.dead, run.result)


class Bundle:
    """See the module.

    Arguments:
        known: runs as they are, or as they were last seen.
        facts: what the store says, once it was asked; None: `known` may be old, and a parcel that does not fit proves nothing.
        executor: who holds what is created and at work; None: nobody.
    """

    def __init__(self, known: Mapping[str, Known], facts: Facts | None, executor: str | None) -> None:
        self._known = known if facts is None else facts.runs
        self._facts = facts
        self._executor = executor
        self.changes: dict[str, Change] = {}
        self.parcels: list[Parcel] = []
        self.bytes = 0
        self._records: list[tuple[Record, int, int, int]] = []
        self._messages: list[Message] = []
        self._strays: list[Message] = []
        self._answers: list[Answer] = []
        self._keys: dict[Key, str] = {}
        self._obeyed: set[int] = set()

    @property
    def full(self) -> bool:
        """Whether what follows should go into another one."""
        return self.bytes >= BYTES_MAX or len(self.parcels) >= PARCELS_MAX

    def add(self, parcel: Parcel) -> DurableError | None:
        """Take a parcel in, or say why it does not fit."""
        refusal = self._refusal(parcel)
        if refusal is not None:
            return refusal
        place = len(self.parcels)
        epochs = parcel.epochs
        siblings = 0
        created: list[Change] = []
        for record in parcel.records:
            run_id = record.run_id
            change = self.changes.get(run_id)
            if change is None:
                change = self.changes[run_id] = self._change(record, epochs.get(run_id))
                if record.seq == 1:
                    created.append(change)
            elif change.epoch is None:
                change.epoch = epochs.get(run_id)
            run = apply(change.run, record)
            if record.seq == 1:
                siblings += 1
                change.standing = run.created_at - PRIORITY_SECONDS * run.priority + SIBLING_SECONDS * siblings
                if run.key is not None:
                    self._keys[run.user, run.key] = run_id
            self._records.append((record, change.epoch or change.known_epoch, parcel.token, place))
            if record.payload is not None:
                self.bytes += len(record.payload)
        for change in created:
            if change.run.executing:
                change.owner = self._executor
        self._messages += parcel.messages
        self._strays += parcel.strays
        self._answers += parcel.answers
        self._obeyed.update(answer.message.message_id for answer in parcel.answers)
        self.parcels.append(parcel)
        return None

    def _refusal(self, parcel: Parcel) -> DurableError | None:
        last: dict[str, int] = {}
        keys: dict[Key, str] = {}
        for record in parcel.records:
            run_id, seq = record.run_id, record.seq
            before = last.get(run_id)
            if before is None:
                before = self.last(run_id)
                epoch = parcel.epochs.get(run_id)
                if epoch is not None and before and epoch != self.epoch(run_id):
                    return _lost(run_id, f"it is at epoch {self.epoch(run_id)} by now, not {epoch}")
            if seq != before + 1:
                return _lost(run_id, f"its last record is {before or 'none'}, and record {seq} does not follow it")
            last[run_id] = seq
            if seq == 1 and "key" in record.head:
                key = (record.head.get("user"), record.head["key"])
                holder = keys.setdefault(key, self._holder(key) or run_id)
                if holder != run_id:
                    return _taken(record.head["key"], holder)
        for answer in parcel.answers:
            number = answer.message.message_id
            if number in self._obeyed or (self._facts is not None and number not in self._facts.messages):
                return _lost(answer.message.run_id, f"message {number} for it is gone already")
        return None

    def last(self, run_id: str) -> int:
        change = self.changes.get(run_id)
        if change is not None:
            return change.run.seq
        known = self._known.get(run_id)
        return 0 if known is None else known.run.seq

    def epoch(self, run_id: str) -> int:
        change = self.changes.get(run_id)
        return self._known[run_id].epoch if change is None else change.known_epoch

    def _holder(self, key: Key) -> str | None:
        holder = self._keys.get(key)
        return self._facts.keys.get(key) if holder is None and self._facts is not None else holder

    def _change(self, record: Record, epoch: int | None) -> Change:
        if record.seq == 1:
            run = Run(record.run_id)
            return Change(run, 0, 1, 1, _shape(run))
        known = self._known[record.run_id]
        run = known.run.copy()
        return Change(run, run.seq, known.epoch, epoch, _shape(run))

    def owned(self) -> list[str]:
        """The runs that are created and then held."""
        return [run_id for run_id, change in self.changes.items() if change.owner is not None and not change.run.closed]

    # -- as the statement takes it

    def variant(self) -> Variant:
        """What there is in it."""
        changed = [change for change in self.changes.values() if change.before]
        return Variant(
            creates=len(changed) < len(self.changes),
            updates=bool(changed),
            quiet=all(change.shape == _shape(change.run) and not change.fresh for change in changed),
            records=bool(self._records),
            sends=bool(self._messages),
            obeys=bool(self._answers),
            answers=any(answer.message.answer_to for answer in self._answers),
            marks=any(not parcel.records for parcel in self.parcels),
            strays=bool(self._strays),
        )

    def values(self, variant: Variant) -> list[object]:
        """The values of `Statements.write`, in its order."""
        values: list[object] = []
        # In the order of their ids, so that of two writes one waits for the other, and not each for the other.
        changes = sorted(self.changes.items()) if len(self.changes) > 1 else list(self.changes.items())
        if variant.updates:
            values += _changed([change for _, change in changes if change.before], quiet=variant.quiet)
        if variant.creates:
            values += _created(change for _, change in changes if not change.before)
        if variant.obeys:
            values.append(Longs([answer.message.message_id for answer in self._answers]))
        if variant.marks:
            values.append(Texts([mark_of(parcel) for parcel in self.parcels if not parcel.records]))
        if variant.records:
            values += (
                Texts([record.run_id for record, *_ in self._records]),
                Longs([record.seq for record, *_ in self._records]),
                Longs([epoch for _, epoch, _, _ in self._records]),
                Longs([token for _, _, token, _ in self._records]),
                Longs([place for _, _, _, place in self._records]),
                Blobs([encode_record(record) for record, *_ in self._records]),
            )
        if variant.sends:
            values += _sent(self._messages)
        if variant.strays:
            values += _sent(self._strays)
        if variant.answers:
            values += _answered([answer for answer in self._answers if answer.message.answer_to])
        return values

    def number(self, batch: int) -> None:
        """Tell the records their batches: it is written."""
        for record, _, _, place in self._records:
            record.batch = batch + place


def _taken(key: str, holder: str) -> ConflictError:
    """The error for a creation whose key has a run."""
    return ConflictError(f"key {key!r} belongs to run {holder} already; find it by its key", key=key)


def _lost(run_id: str, why: str) -> LeaseLostError:
    return LeaseLostError(f"run {run_id} has changed: {why}. Nothing was written; look at the run anew")


def _changed(changes: Sequence[Change], *, quiet: bool) -> list[object]:
    runs = [change.run for change in changes]
    values: list[object] = [
        Texts([run.run_id for run in runs]),
        Longs([change.epoch for change in changes]),
        Longs([change.before for change in changes]),
        Longs([run.seq for run in runs]),
        Blobs([encode_run(run) for run in runs]),
    ]
    if not quiet:
        values += (
            Texts([run.status.value for run in runs]),
            Doubles([run.ended_at for run in runs]),
            Flags([not run.closed for run in runs]),
            Doubles([run.due for run in runs]),
            Flags([run.dead for run in runs]),
            Flags([change.fresh for change in changes]),
            Blobs([change.run.result if change.fresh else None for change in changes]),
        )
    return values


def _created(changes: Iterable[Change]) -> list[object]:
    rows = [(change, change.run) for change in changes]
    return [
        Texts([run.run_id for _, run in rows]),
        Texts([escape(run.task) for _, run in rows]),
        Texts([escape_some(run.version) for _, run in rows]),
        Texts([run.status.value for _, run in rows]),
        Texts([escape_some(run.user) for _, run in rows]),
        Texts([escape_some(run.key) for _, run in rows]),
        Texts([escape_some(run.parent_id) for _, run in rows]),
        Longs([run.seq for _, run in rows]),
        Doubles([run.created_at for _, run in rows]),
        Doubles([run.ended_at for _, run in rows]),
        Flags([not run.closed for _, run in rows]),
        Doubles([run.due for _, run in rows]),
        Flags([run.dead for _, run in rows]),
        Doubles([change.standing for change, _ in rows]),
        Texts([None if run.closed else change.owner for change, run in rows]),
        Longs([1] * len(rows)),
        Blobs([encode_run(run) for _, run in rows]),
        Blobs([run.input for _, run in rows]),
        Blobs([run.result for _, run in rows]),
    ]


def _sent(messages: Sequence[Message]) -> list[object]:
    bodies = [encode_command(message.command) for message in messages]
    return [
        Texts([escape(message.run_id) for message in messages]),
        Blobs([body for body, _ in bodies]),
        Blobs([payload for _, payload in bodies]),
        Texts([escape(message.answer_to) for message in messages]),
    ]


def _answered(answers: Sequence[Answer]) -> list[object]:
    return [
        Texts([escape(answer.message.answer_to) for answer in answers]),
        Texts([escape(answer.message.run_id) for answer in answers]),
        Blobs([encode_command(answer.message.command)[0] for answer in answers]),
        Texts([escape(answer.code) for answer in answers]),
        Texts([escape(answer.text) for answer in answers]),
    ]
