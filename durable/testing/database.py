"""A database in memory that the stores of several simulated processes share.

Law: each method is one transaction: a parcel is written whole, once, under its epochs and after the records by which it was decided, or not
at all. What it tells are copies.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from durable.clock import SYSTEM_CLOCK, SYSTEM_ENTROPY, Clock, Entropy
from durable.core.messages import Answer, Message, decode_command, encode_command
from durable.core.records import Record
from durable.core.run import Run
from durable.core.status import Status
from durable.engine.scheduler import PRIORITY_SECONDS, SIBLING_SECONDS
from durable.errors import ConflictError, DurableError, LeaseLostError
from durable.store.overlay import Overlay
from durable.store.shared import (
    Claimed,
    Held,
    Known,
    Notice,
    Parcel,
    Placement,
    StartAsked,
    StartBounds,
    StartRefused,
    UserBounds,
)
from durable.testing.ledger import MemoryLedger

#: How long answers are kept.
ANSWER_SECONDS = 600.0


class Listener(Protocol):
    """Who hears notices."""

    def hear(self, notice: Notice) -> None:
        """A notice comes in."""
        ...


@dataclass(slots=True)
class Row:
    """What is known of a run besides its state."""

    owner: str | None
    standing: float
    epoch: int = 1


class SharedDatabase:
    """What the stores have in common. Each method is one transaction.

    Arguments:
        clock: by which leases last.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK, entropy: Entropy = SYSTEM_ENTROPY) -> None:
        self.store_id = entropy.token_bytes(16).hex()
        self.overlay = Overlay()
        self.rows: dict[str, Row] = {}
        self.messages: dict[int, tuple[str, tuple[bytes, bytes | None], str]] = {}
        self.answers: dict[str, tuple[float, Answer]] = {}
        #: Until when, and for which tasks, by executor.
        self.executors: dict[str, tuple[float, Sequence[Known]]] = {}
        #: Stores that hear notices.
        self.listeners: list[Listener] = []
        #: What all processes count together.
        self.ledger = MemoryLedger(clock.now, self.is_live)
        self._clock = clock
        #: Parcels that are written, with the batch of each.
        self._tokens: dict[int, int] = {}
        self._batch = self._last_message = 0

    # -- writing

    def has(self, parcel: Parcel) -> bool:
        """Whether this very parcel is written."""
        return parcel.token in self._tokens

    def write(self, parcel: Parcel, executor: str | None) -> DurableError | None:
        """Write a parcel; returns why not, where it is refused."""
        batch = self._tokens.get(parcel.token)
        if batch is None:
            refusal = self.refusal(parcel)
            if refusal is not None:
                return refusal
            batch = self._tokens[parcel.token] = self.put(parcel.records, executor)
            for message in parcel.messages:
                self._last_message += 1
                sent = (message.run_id, encode_command(message.command), message.answer_to)
                self.messages[self._last_message] = sent
            for answer in parcel.answers:
                del self.messages[answer.message.message_id]
                if answer.message.answer_to:
                    self.answers[answer.message.answer_to] = (self._clock.monotonic(), answer)
        for record in parcel.records:
            record.batch = batch
        return None

    def put(self, records: Sequence[Record], executor: str | None) -> int:
        """Fold records that follow on what is there; returns their batch."""
        self._batch += 1
        created = [record for record in records if record.seq == 1]
        self.overlay.promise([records])
        for record in records:
            mine = copy.copy(record)
            mine.batch = self._batch
            self.overlay.fold(mine)
        for place, record in enumerate(created, 1):
            run = self.run(record.run_id)
            standing = run.created_at - PRIORITY_SECONDS * run.priority + SIBLING_SECONDS * place
            self.rows.setdefault(run.run_id, Row(executor if run.executing else None, standing))
        for record in records:
            if self.run(record.run_id).closed:
                self.rows[record.run_id].owner = None
        return self._batch

    def refusal(self, parcel: Parcel) -> DurableError | None:
        """Why a parcel is not written."""
        last: dict[str, int] = {}
        keys: dict[tuple[str | None, str], str] = {}
        for record in parcel.records:
            run_id = record.run_id
            if run_id not in last:
                last[run_id] = run.seq if (run := self.overlay.run(run_id)) is not None else 0
                epoch = parcel.epochs.get(run_id)
                if last[run_id] and epoch is not None and epoch != self.rows[run_id].epoch:
                    return _lost(run_id, f"it is at epoch {self.rows[run_id].epoch} by now, not {epoch}")
            if record.seq != last[run_id] + 1:
                return _lost(run_id, f"record {record.seq} does not follow {last[run_id]}")
            last[run_id] = record.seq
            if record.seq == 1 and "key" in record.head:
                key = (record.head.get("user"), record.head["key"])
                holder = self.overlay.run_of_key(*key)
                if keys.setdefault(key, run_id if holder is None else holder.run_id) != run_id:
                    return ConflictError(f"key {key[1]!r} belongs to run {keys[key]} already", key=key[1])
        for answer in parcel.answers:
            if answer.message.message_id not in self.messages:
                return _lost(answer.message.run_id, f"message {answer.message.message_id} for it is gone already")
        return None

    def prune(self, before: float, limit: int) -> int:
        """See `Store.prune`. A family to which somebody has sent a message stays."""
        told = {run_id for run_id, _, _ in self.messages.values()}
        count = self.overlay.prune(before, limit, told)
        self.rows = {run_id: row for run_id, row in self.rows.items() if run_id in self.overlay.entries}
        return count

    # -- holding runs

    def run(self, run_id: str) -> Run:
        """The run itself."""
        return self.overlay.entries[run_id].run

    def closed(self, run_id: str) -> bool:
        """Whether there is such a run, and it is closed."""
        run = self.overlay.run(run_id)
        return run is not None and run.closed

    def is_live(self, executor: str | None) -> bool:
        """Whether this is an executor whose lease has not passed."""
        return executor in self.executors and self.executors[executor][0] > self._clock.monotonic()

    def held(self, run_id: str) -> Held:
        """The run as it is told."""
        row = self.rows[run_id]
        return Held(self.run(run_id).copy(), row.epoch, row.owner if self.is_live(row.owner) else None)

    def read(self, run_ids: Sequence[str]) -> dict[str, Held]:
        """See `SharedStore.read`. In order: who asks has the ids of sets, and a seed shall tell all that happens."""
        return {run_id: self.held(run_id) for run_id in sorted(run_ids) if run_id in self.rows}

    def claim(
        self, me: str, known: Sequence[Known], limit: int, now: float, users: UserBounds | None = None
    ) -> Claimed:
        """See `SharedStore.claim`. A run to which somebody has sent a message is left to `mail`; one whose parent has just ended, to it."""
        told = {run_id for run_id, _, _ in self.messages.values()}
        free = (run_id for run_id, row in self.rows.items() if row.owner is None and self._wanted(run_id))
        waiting = [(self.rows[run_id].standing, run_id) for run_id in free]
        fits = [(place, run_id, self.run(run_id).due) for place, run_id in waiting if _fits(self.run(run_id), known)]
        due = sorted((at, run_id) for at, run_id, when in fits if when is not None and when <= max(now, 0.0))
        ready = self._few([run_id for _, run_id in due if run_id not in told], users)
        taken = [self._take(run_id, me) for run_id in ready[:limit]] if self.is_live(me) else []
        coming = min((when for *_, when in fits if when is not None and when > max(now, 0.0)), default=None)
        return Claimed(taken, len(taken) >= limit, coming)

    def _few(self, run_ids: list[str], users: UserBounds | None) -> list[str]:
        """Of each user's runs the first, as many as there may be."""
        left, few = dict(users.of) if users is not None else {}, list[str]()
        for run_id in run_ids:
            user = self.run(run_id).user
            if users is not None and user is not None:
                left[user] = left.get(user, users.most) - 1
                if left[user] < 0:
                    continue
            few.append(run_id)
        return few

    def _wanted(self, run_id: str) -> bool:
        """Whether its parent, if there is one, has not ended just now: it would be about to cancel it."""
        parent_id = self.run(run_id).parent_id
        parent = None if parent_id is None else self.overlay.run(parent_id)
        return parent is None or parent.closed or parent.ended_at is None

    def take(self, me: str, run_ids: Sequence[str]) -> list[Held]:
        """See `SharedStore.take`."""
        if not self.is_live(me):
            return []
        free = (run_id for run_id in run_ids if run_id in self.rows and not self.is_live(self.rows[run_id].owner))
        return [self._take(run_id, me) for run_id in sorted(free)]

    def _take(self, run_id: str, me: str) -> Held:
        row = self.rows[run_id]
        row.owner, row.epoch = me, row.epoch + 1
        return self.held(run_id)

    def release(self, me: str, held: Iterable[tuple[str, int]]) -> int:
        """See `SharedStore.release`; returns how many runs were held."""
        rows = [
            row for run_id, epoch in held if (row := self.rows.get(run_id)) and (row.owner, row.epoch) == (me, epoch)
        ]
        return self._free(rows)

    def owned(self, me: str) -> list[tuple[str, int]]:
        """What an executor holds, each with its epoch."""
        return [(run_id, row.epoch) for run_id, row in self.rows.items() if row.owner == me]

    def mail(self, me: str, known: Sequence[Known], limit: int) -> list[Message]:
        """See `SharedStore.mail`."""
        found: list[Message] = []
        for number, (run_id, command, answer_to) in self.messages.items():
            row = self.rows.get(run_id)
            if row is not None and (row.owner == me or (row.owner is None and _fits(self.run(run_id), known))):
                found.append(Message(run_id, decode_command(*command), answer_to, number))
        return found[:limit]

    def placement(self, run_id: str) -> Placement | None:
        """See `SharedStore.placement`."""
        row = self.rows.get(run_id)
        if row is None:
            return None
        left = self.executors[row.owner][0] - self._clock.monotonic() if row.owner in self.executors else 0.0
        waiting = sum(run_id == each for each, _, _ in self.messages.values())
        able = sum(self.is_live(each) and _fits(self.run(run_id), known) for each, (_, known) in self.executors.items())
        task = self.run(run_id).task
        there = {
            version
            for each, (_, known) in self.executors.items()
            if self.is_live(each)
            for name, version in known
            if name == task
        }
        return Placement(row.owner, "", 0, left, row.epoch, waiting, able, tuple(there))

    # -- limits

    def let_in(self, asked: Sequence[StartAsked], bounds: StartBounds) -> list[StartRefused | None]:
        """See `SharedStore.let_in`."""
        return self.ledger.let_in(asked, bounds, sum(map(self._waits, self.rows)), self.rows)

    def _waits(self, run_id: str) -> bool:
        run = self.run(run_id)
        is_due = run.due is not None and run.due <= self._clock.now()
        return is_due and run.status is Status.READY and run.parent_id is None

    # -- leases

    def enroll(self, me: str, old: str, known: Sequence[Known], seconds: float) -> None:
        """See `SharedStore.enroll`."""
        self.leave(old)
        self.executors[me] = (self._clock.monotonic() + seconds, known)

    def renew(self, me: str, known: Sequence[Known], seconds: float) -> bool:
        """Renew a lease that has not passed."""
        if not self.is_live(me):
            return False
        self.executors[me] = (self._clock.monotonic() + seconds, known)
        return True

    def leave(self, me: str) -> None:
        """See `SharedStore.leave`."""
        self.executors.pop(me, None)
        self._free(row for row in self.rows.values() if me and row.owner == me)

    def sweep(self) -> int:
        """See `SharedStore.sweep`."""
        self.executors = {each: lease for each, lease in self.executors.items() if self.is_live(each)}
        since = self._clock.monotonic() - ANSWER_SECONDS
        self.answers = {token: answer for token, answer in self.answers.items() if answer[0] >= since}
        return self._free(row for row in self.rows.values() if row.owner is not None and not self.is_live(row.owner))

    def _free(self, rows: Iterable[Row]) -> int:
        freed = list(rows)
        for row in freed:
            row.owner, row.epoch = None, row.epoch + 1
        return len(freed)


def _fits(run: Run, known: Sequence[Known]) -> bool:
    return any(
        (run.task == task and None in (version, run.version)) or (run.task, run.version) == (task, version)
        for task, version in known
    )


def _lost(run_id: str, why: str) -> LeaseLostError:
    return LeaseLostError(f"run {run_id} has changed: {why}. Nothing was written; look at the run anew")
