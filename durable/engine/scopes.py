"""`StepScope`: what durable's calls mean inside a step.

Law: a step is one unit: other steps in it are plain calls, and it starts runs only under a key, since it may run more than once.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from durable.clock import Clock, Entropy, fraction_of, uuid4_of
from durable.core.records import Call
from durable.engine.transactions import StepTransaction
from durable.errors import StepContextError
from durable.tasks.definition import StartOptions, StepDefinition, TaskDefinition
from durable.tasks.host import Host
from durable.tasks.plain import call_plain_step


def step_key(run_id: str, call: Call) -> str:
    """The idempotency key of a step's call: the same in every try of it."""
    name, ident, occurrence = call
    return hashlib.sha256(b"\0".join((run_id.encode(), name.encode(), ident, str(occurrence).encode()))).hexdigest()[
        :40
    ]


class StepScope:
    """Code inside a step."""

    __slots__ = (
        "_clock", "_entropy", "_host", "attempt", "call", "label", "replaying", "run_id", "task_name", "transaction",
    )  # fmt: skip

    def __init__(
        self, host: Host, clock: Clock, entropy: Entropy, run_id: str, call: Call, label: str,
        *, task_name: str, attempt: int,
    ) -> None:  # fmt: skip
        self._host = host
        self._clock = clock
        self._entropy = entropy
        self.run_id = run_id
        self.call = call
        self.label = label
        self.task_name = task_name
        self.attempt = attempt
        #: A step that runs is no repetition.
        self.replaying = False
        #: Of the try that is running, where there is one.
        self.transaction: StepTransaction | None = None

    @property
    def host(self) -> Host:
        """The application that runs it."""
        return self._host

    def call_step(
        self, step: StepDefinition, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """A plain call."""
        return call_plain_step(step, args, kwargs)

    def call_task(
        self, task: TaskDefinition, options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Refused: a step may run twice, and its children would too."""
        raise StepContextError(
            f"task {task.name!r} was called inside {self.label}: call it in the task's body, or start it with a key: "
            f"`await {task.name}.options(key=...).start(...)`"
        )

    async def start_task(
        self, task: TaskDefinition, options: StartOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, str | None]:
        """Start a run under a key."""
        if options.key is None and task.key is None:
            raise StepContextError(
                f"task {task.name!r} was started without a key inside {self.label}, which may run more than once: "
                f"use `{task.name}.options(key=...).start(...)`"
            )
        return await self._host.start_run(task, options, args, kwargs)

    async def sleep(self, seconds: float) -> None:
        """A plain sleep."""
        await asyncio.sleep(seconds)

    async def deadline(self, seconds: float) -> None:
        """A plain timeout."""
        return None

    def now(self) -> datetime:
        """The time."""
        return datetime.fromtimestamp(self._clock.now(), UTC)

    def uuid4(self) -> UUID:
        """A random UUID."""
        return uuid4_of(self._entropy.token_bytes(16))

    def random(self) -> float:
        """A random number."""
        return fraction_of(self._entropy.token_bytes(7))
