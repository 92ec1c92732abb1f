"""`Execution`: an attempt as its body sees it: what the functions of `durable`, and the context, do in a body.

Law: everything that could come out differently another time goes through a recorded call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

from durable.clock import fraction_of, uuid4_of
from durable.core.records import Kind, Record
from durable.engine.attempt import Attempt
from durable.engine.offspring import run_child, spawn
from durable.engine.scopes import StepScope, step_key
from durable.engine.steps import run_step
from durable.engine.waits import receive, run_timer
from durable.errors import DuplicateStepError, StepContextError
from durable.tasks.definition import StartOptions, StepDefinition, TaskDefinition, code_of
from durable.tasks.handle import Event, remember_event_class, to_event
from durable.tasks.host import Host, current_scope


class Execution(Attempt):
    """The scope of a body, and the backing of its context."""

    __slots__ = ()

    # --- what the body may ask for: Scope ---------------------------------------------------------------------------------------

    @property
    def host(self) -> Host:
        """The application that runs it."""
        return self.services.host

    def call_step(
        self, step: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """A recorded step."""
        known = self._steps.setdefault(step.name, step.facts.function)
        if known is not step.facts.function and code_of(known) != code_of(step.facts.function):
            raise DuplicateStepError(
                f"run {self.run_id} calls two different functions as step {step.name!r}: {known!r} and {step.facts.function!r}; "
                "pass name= to one of them"
            )
        call = self.number(step.name, self.identity(args, kwargs))
        return self.perform(call, lambda: run_step(self, call, step, args, kwargs), step.facts.returns)

    def call_task(
        self, task: TaskDefinition, options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """A child run that belongs to this one."""
        arguments = task.facts.bind(args, kwargs, task.name)
        call = self.number(task.name, self.identity(args, kwargs))
        return self.perform(call, lambda: run_child(self, call, task, options, arguments), task.result_hint)

    async def start_task(
        self, task: TaskDefinition, options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, str | None]:
        """A run of its own, started once."""
        arguments = task.facts.bind(args, kwargs, task.name)
        call = self.number(f"start:{task.name}", self.identity(args, kwargs))
        run_id, key = await self.perform(call, lambda: spawn(self, call, task, options, arguments))
        return run_id, key

    def _own(self, name: str) -> str:
        """The name of a call that does nothing outside: a recovery handler's is another than the body's."""
        return f"recovery:{name}" if self.handling else name

    @property
    def _label(self) -> str | None:
        """Within what an event is emitted that is no call of the body: a step, or the recovery handler."""
        scope = current_scope.get()
        return scope.label if isinstance(scope, StepScope) else "the recovery handler" if self.handling else None

    async def sleep(self, seconds: float) -> None:
        """A recorded sleep."""
        call = self.number(self._own("sleep"), repr(seconds).encode())
        await self.pause(call, lambda: run_timer(self, call, seconds))

    async def deadline(self, seconds: float) -> Coroutine[Any, Any, Any] | None:
        """A recorded deadline."""
        call = self.number(self._own("timeout"), repr(seconds).encode())
        return self.watch(call, lambda: run_timer(self, call, seconds))

    async def wait_for(self, name: str, timeout: float | None) -> Any:
        """A signal."""
        call = self.number(self._own("wait_for"), self.services.codec.identity(name))
        recorded = self.memo.result(call)
        try:
            return await self.pause(call, lambda: receive(self, call, name, timeout))
        except asyncio.CancelledError:
            if recorded is not None and "signal" in recorded.head:
                # The process ended after it took the signal and before the body gave the call up, as it does again.
                self.note_cancelled(call, {"unread": recorded.head["signal"], "what": name})
                self.received(name)
            raise

    def now(self) -> datetime:
        """The recorded time."""
        call = self.number(self._own("now"), b"")
        record = self.memo.result(call)
        if record is None:
            stamp = self.services.clock.now()
            self.note(Kind.STEP_COMPLETED, call, self.services.codec.encode(stamp))
            self._unsynced_value = True
        else:
            stamp = self.services.codec.decode(record.payload or b"0.0", float)  # type: ignore[assignment]
        return datetime.fromtimestamp(stamp, UTC)

    def uuid4(self) -> UUID:
        """A UUID that follows from the run and the number of the call: nothing to record, nothing to lose."""
        return uuid4_of(self._derived("uuid4"))

    def random(self) -> float:
        """A number in [0, 1) that follows from the run and the number of the call."""
        return fraction_of(self._derived("random"))

    def _derived(self, what: str) -> bytes:
        count = self._counters[what] = self._counters.get(what, 0) + 1
        # Who recovers by hand takes another path than the body before: what it draws must not equal what that drew.
        salt = "recovery" if self.handling else self._base_seq if self.manual and self.recovered else 0
        text = f"{self.services.store.store_id}:{self.origin}:{what}:{count}:{salt}"
        return sha256(text.encode()).digest()

    # --- what the context asks for: Backing -------------------------------------------------------------------------------------

    @property
    def shutting_down(self) -> bool:
        """Whether the application is closing."""
        return self.services.closing.is_set()

    async def wait_shutting_down(self) -> None:
        """Return once the application is closing."""
        await self.services.closing.wait()

    @property
    def replaying(self) -> bool:
        """Whether the body is repeating what it did before."""
        return self.memo.repeating

    def saw_recovery(self) -> None:
        """The body was told that it was recovered: what it does from here on may differ from its record."""
        if self.memo.replaying and current_scope.get() is self and threading.get_ident() == self._thread:
            self.memo.relax()
            self.delivery.relaxed()

    def previous_events(self) -> list[Event]:
        """What the body emitted before this attempt; asking for it takes recovery into the body's hands."""
        if not self.manual:
            self.manual = True
            self.memo.loosen()
        if self._previous is None:
            self._previous = [to_event(record, self.services.codec) for record in self.memo.events]
        return self._previous

    def step_key(self) -> str:
        """The idempotency key of the step that is running."""
        scope = current_scope.get()
        if not isinstance(scope, StepScope):
            raise StepContextError("step_key() is for steps: call it inside one")
        return step_key(self.origin, scope.call)

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """The transaction of the step that is running."""
        scope = current_scope.get()
        if not isinstance(scope, StepScope) or scope.transaction is None or threading.get_ident() != self._thread:
            raise StepContextError("transaction() is for steps: use it inside an `async def` step")
        return scope.transaction.enter()

    async def emit(self, name: str, value: object, ephemeral: bool) -> None:
        """Record an event; durable when this returns."""
        payload = self._event_payload(value)
        if ephemeral:
            if not self.memo.repeating:
                self._publish_ephemeral(name, payload)
            return
        label = self._label
        if label is not None:
            self.note(Kind.EVENT, (name, b"", 0), payload, {"step": label})
            await self.services.pipeline.durable(self.entry)
            return
        call = self.number(name, payload)

        async def live() -> Record:
            return await self.settle(call, Kind.EVENT, payload)

        await self.perform(call, live)

    def emit_nowait(self, name: str, value: object) -> None:
        """Record an event with the next commit."""
        payload = self._event_payload(value)
        label = self._label
        if label is not None:
            if threading.get_ident() != self._thread:
                self.loop.call_soon_threadsafe(self._note_late, name, payload, label)
            else:
                self.note(Kind.EVENT, (name, b"", 0), payload, {"step": label})
            return
        if threading.get_ident() == self._thread:
            self._emit_recorded(name, payload)
        else:  # a task that is a plain `def`: it waits, so its events have one order
            asyncio.run_coroutine_threadsafe(self._emit_from_thread(name, payload), self.loop).result()

    def _emit_recorded(self, name: str, payload: bytes) -> None:
        call = self.number(name, payload)
        if self.memo.result(call) is None:
            self.note(Kind.EVENT, call, payload)

    async def _emit_from_thread(self, name: str, payload: bytes) -> None:
        self._emit_recorded(name, payload)

    def _event_payload(self, value: object) -> bytes:
        kind = type(value)
        if "<locals>" not in kind.__qualname__:
            return self.services.codec.encode(value)
        remember_event_class(kind)
        return self.services.codec.encode(value, kind)

    def _note_late(self, name: str, payload: bytes, label: str) -> None:
        if self.entry.run.executing:
            self.note(Kind.EVENT, (name, b"", 0), payload, {"step": label})

    def _publish_ephemeral(self, name: str, payload: bytes) -> None:
        run = self.entry.run
        record = Record(run.run_id, run.seq, Kind.EVENT, self.services.clock.now(), run.attempt, name, payload=payload)
        record.head = {"ephemeral": True}
        self.services.hub.publish_ephemeral(record)
