"""`Attempt`: one attempt of one run: its calls, what is recorded of them, and when they get their results.

Law: a call of the body is recorded under its identity, and what it returned is durable before the body gets it. A call that is recorded
is never run again.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from durable.core.commands import Note, Suspend
from durable.core.memo import Divergence, Memo
from durable.core.records import RESULTS, Call, Failure, Kind, Record
from durable.engine.delivery import Delivery
from durable.engine.divergence import call_site, describe
from durable.engine.entry import Entry
from durable.engine.services import Services
from durable.errors import NonDeterminismError, StepContextError, TransitionError
from durable.tasks.context import Context, RecoveryReason
from durable.tasks.definition import TaskDefinition
from durable.tasks.failure import describe as describe_error
from durable.tasks.failure import revive
from durable.tasks.handle import Event

#: Longest identity that is kept as it is; a longer one keeps its beginning, for a reader, and a digest.
IDENT_BYTES_MAX = 256

_REASONS: dict[str | None, RecoveryReason] = {"crash": "crash", "stale": "stale", "timeout": "timeout"}


def shorten(ident: bytes) -> bytes:
    """Bound the identity of a call."""
    if len(ident) <= IDENT_BYTES_MAX:
        return ident
    return ident[: IDENT_BYTES_MAX - 64] + b"...sha256:" + hashlib.sha256(ident).hexdigest()[:48].encode()


class Receivers(Protocol):
    """The calls that wait for signals of one name."""

    def wake(self) -> None:
        """Hand out what is there."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether a signal is being handed out."""
        ...

    def close(self) -> None:
        """The attempt is over."""
        ...


class Attempt:
    """One attempt of one run."""

    # A run that is executing is one of many thousands: no dictionary of its own.
    __slots__ = (
        "_base_seq",
        "_counters",
        "_pausing",
        "_previous",
        "_steps",
        "_thread",
        "_unsynced_value",
        "_watching",
        "attempt",
        "body",
        "context",
        "coordinating",
        "deadlines",
        "definition",
        "delivery",
        "entry",
        "expires_at",
        "handling",
        "input",
        "interrupted",
        "key",
        "loop",
        "mailboxes",
        "manual",
        "max_attempts",
        "memo",
        "performing",
        "previous_error",
        "recovered",
        "recovery_reason",
        "repeats",
        "returned",
        "run_id",
        "services",
        "sites",
        "task_name",
        "user",
    )

    def __init__(
        self, services: Services, entry: Entry, definition: TaskDefinition, memo: Memo, recovered: bool,
        *, handling: bool = False, began: float | None = None, returned: bytes | None = None,
    ) -> None:  # fmt: skip
        run = entry.run
        self.services = services
        self.entry = entry
        self.definition = definition
        self.memo = memo
        self.loop = asyncio.get_running_loop()
        self.run_id = run.run_id
        #: Whether it is the coordinator that runs, and not the task's own body.
        self.coordinating = bool(run.returned_seq)
        #: Until when the calls that wait for a time wait at most.
        self.deadlines: dict[Call, float] = {}
        self.task_name, self.key, self.user = run.task, run.key, run.user
        self.attempt = run.attempt
        self.max_attempts = run.max_attempts
        self.previous_error = run.failure["message"] if run.failure else None
        self.input: dict[str, Any] = {}
        self.recovered = recovered
        #: Whether it is the task's recovery handler that runs, and not the body.
        self.handling = handling
        #: The wall-clock time at which its time limit has passed.
        self.expires_at: float | None = None
        if run.timeout is not None:
            self.expires_at = (services.clock.now() if began is None else began) + run.timeout
        #: For a coordinator: what the body returned.
        self.returned = returned
        self.recovery_reason: RecoveryReason | None = _REASONS.get(run.recovery_reason) if recovered else None
        #: Set before the engine itself cancels the body: what happens from then on is not the body's doing.
        self.interrupted = False
        self.body: asyncio.Task[Any] | None = None
        #: Whether recovery is in the hands of what runs: see `Memo.loosen`.
        self.manual = handling
        #: The calls that are under way, and the asyncio tasks that make them.
        self.performing: dict[Call, asyncio.Task[Any] | None] = {}
        self._pausing = 0
        self._watching = 0
        #: Per name of a signal, the calls that wait for one.
        self.mailboxes: dict[str, Receivers] = {}
        self.sites: dict[Call, str] = {}
        self.delivery = Delivery(
            self.loop, services.turns, memo, diverged=self.park, has_step=services.has_step,
            stall_seconds=services.settings.replay_stall_seconds, run_new_steps=services.settings.on_new_step == "run",
        )  # fmt: skip
        self._steps: dict[str, Callable[..., Any]] = {}
        self._thread = threading.get_ident()
        self._base_seq = run.seq
        self._counters: dict[str, int] = {}
        self._unsynced_value = False
        self._previous: list[Event] | None = None
        self.context: Context[Any]
        #: Whether it has yet to catch up with its record.
        self.repeats = recovered
        if recovered and not handling:
            self._catch_up()

    def number(self, name: str, ident: bytes) -> Call:
        """Give a call its identity. Raises where no call may be made."""
        if threading.get_ident() != self._thread:
            raise StepContextError(
                f"{name!r} was called in a thread: a task that calls steps or tasks must be `async def`"
            )
        self.check_current()
        call = self.memo.number(name, shorten(ident))
        if self.memo.replaying:
            self.sites[call] = call_site()
        return call

    def check_current(self) -> None:
        """Refuse what comes from code that outlived its attempt."""
        if self.interrupted or not self.entry.run.executing:
            state = "stopped" if self.interrupted else self.entry.run.status
            raise TransitionError(
                f"attempt {self.attempt} of run {self.run_id} is over ({state}): it can do nothing more"
            )

    @property
    def origin(self) -> str:
        """What the keys and random numbers of its calls are derived from: the run; a coordinator's are others than the body's."""
        return f"{self.run_id}/on_children_complete" if self.coordinating else self.run_id

    def identity(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """What tells a call apart from others of its name: its arguments."""
        if not args and not kwargs:
            return b""
        # A list at the top, or a mapping: calls with and without keywords cannot be taken for one another.
        return self.services.codec.identity({"*": list(args), **kwargs} if kwargs else list(args))

    async def perform(self, call: Call, live: Callable[[], Coroutine[Any, Any, Record]], returns: Any = Any) -> Any:
        """Make a call: hand back its recorded outcome, or run it and record what comes of it."""
        self.check_current()  # once more: the attempt may have ended since the call was numbered
        delivery = self.delivery
        task = asyncio.current_task()
        delivery.begin(task is self.body)
        self.performing[call] = task
        try:
            recorded = self.memo.result(call)
            if recorded is not None:
                if self.services.replayed is not None and recorded.kind in RESULTS:
                    self.services.replayed(self.run_id, recorded)
                record = await delivery.recall(call)
            else:
                if self.memo.marker(call) is None:
                    held = delivery.hold(call)
                    if held is not None:
                        await held
                record = await live()
        finally:
            delivery.end()
            delivery.forget(call)
            self.performing.pop(call, None)
            if self.repeats and not self.handling:
                self._catch_up()
        return self.outcome(record, returns)

    def _catch_up(self) -> None:
        """Tell once that all of its record has been handed back."""
        if not self.memo.repeating:
            self.repeats = False
            self.services.caught_up(self.entry)

    async def pause(self, call: Call, live: Callable[[], Coroutine[Any, Any, Record]], returns: Any = Any) -> Any:
        """A call that only waits, for a time or a signal: where there is nothing else, a closing application need not."""
        with self.pausing():
            return await self.perform(call, live, returns)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """In this block, a call of the body only waits. A recovery handler stays while it does: what woke it could not tell it apart."""
        if self.handling:
            self.services.caught_up(self.entry)
            yield
            return
        self._pausing += 1
        if self._pausing == 1:
            self.services.residence.paused(self.entry)
        try:
            yield
        finally:
            self._pausing -= 1
            if not self._pausing:
                self.services.residence.unpaused(self.entry)

    async def watch(self, call: Call, live: Callable[[], Coroutine[Any, Any, Record]]) -> Any:
        """A deadline beside the body: nothing that the body itself waits for."""
        self._watching += 1
        try:
            return await self.perform(call, live)
        finally:
            self._watching -= 1

    def outcome(self, record: Record, returns: Any) -> Any:
        """The value that a record holds, or the exception that it holds, raised."""
        if record.kind is Kind.STEP_FAILED:
            raise revive(Failure.of(record), self.services.codec)
        if record.kind is Kind.EVENT:
            return None
        payload = record.payload
        codec = self.services.codec if not record.head else self.services.codecs(record.head.get("codec"))
        return None if payload is None else codec.decode(payload, returns)

    async def settle(self, call: Call, kind: Kind, payload: bytes | None, head: dict[str, Any] | None = None) -> Record:
        """Record the outcome of a call and wait until it is handed back."""
        future = self.delivery.expect(call)
        self._note_outcome(call, kind, payload, head)
        return await future

    async def settle_failure(self, call: Call, error: BaseException) -> Record:
        """Record that a call failed, and wait until that is handed back."""
        future = self.delivery.expect(call)
        self.note_failure(call, error)
        return await future

    def note_failure(self, call: Call, error: BaseException, head: dict[str, Any] | None = None) -> None:
        """Record that a call failed."""
        failure = describe_error(error, self.services.codec)
        self._note_outcome(call, Kind.STEP_FAILED, failure.state, {**failure.head(), **(head or {})})

    def _note_outcome(self, call: Call, kind: Kind, payload: bytes | None, head: dict[str, Any] | None) -> None:
        self.check_current()
        self.services.pipeline.stage(self.entry, self.outcome_note(call, kind, payload, head))

    def outcome_note(self, call: Call, kind: Kind, payload: bytes | None, head: dict[str, Any] | None) -> Note:
        """What records the outcome of a call."""
        head = self.marked(head)
        return Note(kind, call, payload, {**head, "added": True} if call in self.delivery.added else head)

    def marked(self, head: dict[str, Any] | None = None) -> dict[str, Any]:
        """What goes with a record: that it is of the recovery handler, the calls of which have no place in the order of the body's."""
        return {**(head or {}), "handler": True} if self.handling else head or {}

    def note(self, kind: Kind, call: Call, payload: bytes | None = None, head: dict[str, Any] | None = None) -> None:
        """Stage a record of the body."""
        self.check_current()
        self.services.pipeline.stage(self.entry, Note(kind, call, payload, self.marked(head)))

    def note_cancelled(self, call: Call, head: dict[str, Any] | None = None) -> None:
        """Record that the body itself gave a call up, unless it was the engine that stopped the body."""
        if not self.interrupted and self.entry.run.executing:
            self.note(Kind.STEP_CANCELLED, call, None, head)

    async def values_durable(self) -> None:
        """Before a step's body runs, the times that the body read are durable: the step may carry them outside."""
        if self._unsynced_value:
            self._unsynced_value = False
            await self.services.pipeline.durable(self.entry)

    def park(self, divergence: Divergence) -> None:
        """Suspend the run, because its code does not do what its record says."""
        text = describe(self.run_id, self.task_name, divergence, self.sites)
        self.park_with(NonDeterminismError(text))

    def park_with(self, error: Exception) -> None:
        """Suspend the run with an error that a person has to look at."""
        if self.entry.run.executing and not self.interrupted:
            failure = describe_error(error, self.services.codec)
            self.services.pipeline.stage(self.entry, Suspend(type(error).__name__, failure))

    async def finish(self) -> None:
        """The body has ended: nothing that it left behind may do or record anything more."""
        self.interrupted = True
        self.delivery.close()
        for mailbox in self.mailboxes.values():
            mailbox.close()
        left = {task for task in self.performing.values() if task is not None and task is not self.body}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=self.services.settings.cancel_grace_seconds)

    # --- what the engine tells a running attempt ---------------------------------------------------------------------------------

    def committed(self, batch: list[Record]) -> None:
        """Results of its calls became durable."""
        self.delivery.committed(batch)

    def received(self, name: str) -> None:
        """A signal came."""
        mailbox = self.mailboxes.get(name)
        if mailbox is not None:
            mailbox.wake()

    @property
    def idle(self) -> bool:
        """Whether the body only waits: for a time, a signal or a child; and nothing that it waits for is on its way."""
        if not 0 < self._pausing == self.delivery.outstanding - self._watching:
            return False
        if self.delivery.delivering or not self.services.pipeline.is_durable(self.entry):
            return False
        if any(mailbox.is_busy for mailbox in self.mailboxes.values()):
            return False
        return not any(child.run.ended for child in self.entry.awaits.values())

    @property
    def wakes_at(self) -> float | None:
        """The wall-clock time until which an idle body waits at most; None where that is not known."""
        first = min(self.deadlines.values(), default=None)
        if self.expires_at is None or (first is not None and first < self.expires_at):
            return first
        return self.expires_at

    def interrupt(self) -> None:
        """Stop the body."""
        self.interrupted = True
        if self.entry.task is not None:
            self.entry.task.cancel()
