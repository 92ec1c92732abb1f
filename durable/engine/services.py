"""`Services`: what the execution of a run needs of its application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from durable.clock import Clock, Entropy
from durable.codec import Codec
from durable.config import EngineSettings
from durable.core.commands import Command
from durable.core.query import RunFilter
from durable.core.records import Call, Record
from durable.core.run import Run
from durable.engine.entry import Entry
from durable.engine.invoke import Invoker
from durable.engine.observing import Observing
from durable.engine.pipeline import RETRY_SECONDS, Pipeline
from durable.engine.turns import Turns
from durable.errors import StorageError
from durable.events.hub import Hub
from durable.store.base import Store
from durable.tasks.child import Child
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.host import Host

T = TypeVar("T")


class Families(Protocol):
    """Starting and following other runs from within a run."""

    async def start_child(
        self, parent: Entry, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any],
        *, attached: bool, note: Callable[[str, str | None], Command],
    ) -> str:  # fmt: skip
        """Start a run from within another; `note` is what the other records of it, durable together with it."""
        ...

    def give_up(self, parent: Entry, note: Command, run_id: str | None, *, is_own: bool) -> None:
        """Record that a body no longer waits for a child, and cancel it; no run that is not its own."""
        ...

    async def returned(self, entry: Entry, definition: TaskDefinition, encode: Callable[[], bytes]) -> None:
        """Stage what a body, or a coordinator, returned: the run's result, or that it waits for the children in it."""
        ...

    async def end_children(self, run_id: str, children: Sequence[Child[Any]]) -> None:
        """Give these children of a run their outcomes."""
        ...

    @property
    def let_go(self) -> Callable[[Entry], None]:
        """To be called with a run that nobody needs in memory any more who did."""
        ...

    @property
    def revive_awaited(self) -> Callable[[Entry, str, Command], Awaitable[None]]:
        """Try a child again that a body awaited, and awaits again; the command is what the body records of that."""
        ...

    async def load(self, run_id: str) -> Entry | None:
        """The run, read from the store if need be."""
        ...

    async def awaited(self, parent: Entry, child_id: str) -> Entry | None:
        """The child that a body is about to await; of one that another process holds, what is known of it."""
        ...


class Residence(Protocol):
    """Which runs stay in memory."""

    def paused(self, entry: Entry) -> None:
        """The body begins to wait for a time, a signal or a child."""
        ...

    def unpaused(self, entry: Entry) -> None:
        """The body waits for none of them any more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the execution of a run needs of its application."""

    host: Host
    families: Families
    store: Store
    pipeline: Pipeline
    hub: Hub
    turns: Turns
    invoker: Invoker
    residence: Residence
    codec: Codec
    codecs: Callable[[str | None], Codec]
    clock: Clock
    entropy: Entropy
    settings: EngineSettings
    observing: Observing
    has_step: Callable[[str], bool]
    closing: asyncio.Event
    #: Called with a run once it does not repeat any more what it did before a crash.
    caught_up: Callable[[Entry], None]
    #: Entered around the body of each attempt, given the run and whether it was recovered.
    around: Callable[[Run, bool], AbstractContextManager[None]] | None = None
    #: Called with the run's id where a call of its body is served from the record.
    replayed: Callable[[str, Record], None] | None = None
    #: Keeps tasks alive that nobody waits for.
    background: set[asyncio.Task[None]] = field(default_factory=set)
    #: Called with the run's id and the call, before each try of a step's body; for tests that count.
    on_step: Callable[[str, Call], None] | None = None


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask the store, and again while it cannot answer now but may later: that is no failure of whoever asks."""
    while True:
        try:
            return await ask()
        except StorageError as error:
            if not error.retryable:
                raise
        await asyncio.sleep(RETRY_SECONDS)


async def matching(store: Store, wanted: RunFilter) -> AsyncIterator[Run]:
    """All runs that match, as the store has them, read `wanted.limit` at a time."""
    while True:
        page = await patiently(partial(store.query, wanted))
        for run in page:
            yield run
        if len(page) < wanted.limit:
            return
        wanted = replace(wanted, after=page[-1].run_id)
