"""Starting runs: admission, keys, and the record that brings a run into being.

Law: one key of one user is one run, however many ask at once; nothing is stored for a start that is refused.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from hashlib import sha256
from typing import Any, NamedTuple

from durable.clock import Clock, Entropy
from durable.codec import TaggedJson
from durable.core.commands import Begin, Create, Resume
from durable.core.ids import after_run_id, make_run_id
from durable.core.retry import ONCE
from durable.core.run import Run
from durable.core.status import Status
from durable.engine.entry import Entry
from durable.engine.pipeline import Pipeline
from durable.engine.scheduler import Scheduler
from durable.errors import ConfigError, ConflictError, ValidationError
from durable.store.base import Store
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.host import UserContext, current_identity


class Parentage(NamedTuple):
    """The run that starts another, whether it waits for it, and how it records that."""

    entry: Entry
    attached: bool
    note: Callable[[str, str | None], None]


class Starter:
    """Brings runs into being."""

    def __init__(
        self, entries: dict[str, Entry], *, store: Store, pipeline: Pipeline, scheduler: Scheduler,
        codec: TaggedJson, clock: Clock, entropy: Entropy,
    ) -> None:  # fmt: skip
        self._entries = entries
        self._store = store
        self._pipeline = pipeline
        self._scheduler = scheduler
        self._codec = codec
        self._clock = clock
        self._entropy = entropy
        self._last_id = ""
        self._locks: dict[tuple[str | None, str], tuple[asyncio.Lock, int]] = {}
        #: Keyed runs whose creation is on its way, even when who asked for it no longer waits.
        self._creating: dict[tuple[str | None, str], Entry] = {}

    async def start(
        self, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any], parentage: Parentage | None = None
    ) -> tuple[str, str | None]:
        """Start a run, or find the one that its key names; return its id and key."""
        if task.validate is not None:
            await _validate(task, arguments)
        if parentage is None:
            self._store.admit()
        identity = current_identity.get()
        user = options.user or (identity.user if identity is not None else None)
        if user is None and parentage is not None:
            user = parentage.entry.run.user
        encoded = self._codec.encode(arguments, task.facts.input_hint, f"the input of task {task.name!r}")
        key = self._key(task, options, arguments, user)
        create = Create(
            task.name, encoded, version=task.version, key=key, user=user,
            priority=options.priority if options.priority is not None else task.priority,
            retry=options.retry or (task.retry if task.retry is not ONCE else None),
            timeout=options.timeout or task.timeout,
            delay=options.delay if options.delay is not None else task.delay,
        )  # fmt: skip
        if key is None:
            return await self._create(create, identity, parentage), None
        essential = task.facts.essential(arguments)
        create.fingerprint = sha256(self._codec.canonical([task.name, essential])).hexdigest()
        return await self._start_keyed(create, task, identity, parentage), key

    def _key(
        self, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any], user: str | None
    ) -> str | None:
        key: Any = options.key if options.key is not None else task.key
        if callable(key):
            args, kwargs = task.facts.call_arguments(arguments, task.name)
            try:
                key = key(*args, **kwargs)
            except Exception as error:
                raise ValidationError(
                    f"the key function of task {task.name!r} refused the input: {error!r}", field="key"
                ) from error
        if key is None:
            return None
        if not isinstance(key, str) or not 1 <= len(key) <= 500:
            raise ConfigError(
                f"the key of task {task.name!r} must be a str of 1 to 500 characters, got {key!r:.100}", key="key"
            )
        if key == "auto":
            essential = task.facts.essential(arguments)
            return sha256(self._codec.canonical({"input": essential, "name": task.name, "userId": user})).hexdigest()
        return key

    async def _start_keyed(
        self, create: Create, task: TaskDefinition, identity: UserContext | None, parentage: Parentage | None
    ) -> str:
        assert create.key is not None
        name = (create.user, create.key)
        lock, users = self._locks.get(name) or (asyncio.Lock(), 0)
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                creating = self._creating.get(name)
                if creating is not None:
                    await self._pipeline.durable(creating)
                existing = await self._store.find_key(create.user, create.key)
                if existing is None:
                    return await self._create(create, identity, parentage)
                if existing.task != create.task or existing.fingerprint != create.fingerprint:
                    raise ConflictError(
                        f"key {create.key!r} belongs to run {existing.run_id} of task {existing.task!r} "
                        f"{'with another input' if existing.task == create.task else f'and not of {create.task!r}'}; "
                        "use another key, or the same input",
                        key=create.key,
                    )
                await self._reunite(existing, task, identity)
                if parentage is not None:
                    parentage.note(existing.run_id, create.key)
                    await self._pipeline.durable(parentage.entry)
                return existing.run_id
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = (lock, users - 1)

    async def _reunite(self, existing: Run, task: TaskDefinition, identity: UserContext | None) -> None:
        """A run that waits for its user's return goes on with the identity that the fresh start brings."""
        entry = self._entries.get(existing.run_id)
        if task.auto_recover or entry is None or entry.run.status is not Status.SUSPENDED:
            return
        entry.identity = identity
        self._pipeline.stage(entry, Resume())
        await self._pipeline.durable(entry)

    async def _create(self, create: Create, identity: UserContext | None, parentage: Parentage | None) -> str:
        run_id = after_run_id(self._last_id, make_run_id(self._clock.now(), self._entropy.token_bytes(10)))
        self._last_id = run_id
        entry = Entry(Run(run_id), identity)
        join = None
        if parentage is not None:
            create.parent_id = parentage.entry.run.run_id
            create.attached = parentage.attached
            parentage.note(run_id, create.key)
            join = parentage.entry.unit
            if parentage.attached:
                parentage.entry.children.add(run_id)
        self._pipeline.stage(entry, create, join=join)
        self._entries[run_id] = entry
        if create.key is not None:
            name = (create.user, create.key)
            self._creating[name] = entry
            self._pipeline.durable(entry).add_done_callback(lambda done: self._created(name, done))
        if not create.delay and self._scheduler.try_slot(entry):
            self._pipeline.stage(entry, Begin())
        try:
            await self._pipeline.durable(entry)
        except Exception:
            self._entries.pop(run_id, None)
            raise
        return run_id

    def _created(self, name: tuple[str | None, str], done: asyncio.Future[None]) -> None:
        self._creating.pop(name, None)
        if not done.cancelled():
            done.exception()  # whoever waits for the start is told it


async def _validate(task: TaskDefinition, arguments: dict[str, Any]) -> None:
    """Run the task's own check."""
    assert task.validate is not None
    args, kwargs = task.facts.call_arguments(arguments, task.name)
    try:
        verdict = task.validate(*args, **kwargs)
        if inspect.isawaitable(verdict):
            verdict = await verdict
    except ValidationError:
        raise
    except Exception as error:
        raise ValidationError(f"the input of task {task.name!r} was refused: {error}", field="input") from error
    if verdict is False:
        raise ValidationError(f"the input of task {task.name!r} was refused by its validate function", field="input")
