"""`Services`: what the execution of a run needs of its application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from durable.clock import Clock, Entropy
from durable.codec import Codec
from durable.config import EngineSettings
from durable.core.records import Call
from durable.core.run import Run
from durable.engine.entry import Entry
from durable.engine.invoke import Invoker
from durable.engine.pipeline import RETRY_SECONDS, Pipeline
from durable.engine.turns import Turns
from durable.errors import StorageError
from durable.events.hub import Hub
from durable.store.base import Store
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.host import Host

T = TypeVar("T")


class Families(Protocol):
    """Starting and following other runs from within a run."""

    async def start_child(
        self, parent: Entry, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any],
        *, attached: bool, note: Callable[[str, str | None], None],
    ) -> tuple[str, str | None]:  # fmt: skip
        """Start a run that belongs to `parent`; `note(run_id, key)` stages what the parent records of it, durable together with it."""
        ...

    async def wait_ended(self, run_id: str) -> Run:
        """Wait until the run has ended."""
        ...

    def give_up(self, parent: Entry, run_id: str) -> None:
        """Cancel a child that its parent no longer waits for, together with what the parent records of that; no other run."""
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
    codec: Codec
    codecs: Callable[[str | None], Codec]
    clock: Clock
    entropy: Entropy
    settings: EngineSettings
    has_step: Callable[[str], bool]
    closing: asyncio.Event
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
