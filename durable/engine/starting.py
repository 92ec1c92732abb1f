"""Starting runs: admission, keys, and the record that brings a run into being.

Law: one key of one user is one run, however many ask at once; nothing is stored for a start that is refused.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

from durable.clock import Clock, Entropy
from durable.codec import TaggedJson
from durable.core.commands import Begin, Command, Create, Resume
from durable.core.ids import after_run_id, family_of, family_of_key, make_run_id
from durable.core.retry import ONCE
from durable.core.run import Run
from durable.core.status import Status
from durable.engine.entrance import Entrance
from durable.engine.entry import Entry
from durable.engine.holding import HoldingTable
from durable.engine.pipeline import Pipeline, Wish
from durable.engine.scheduler import Scheduler
from durable.engine.table import Table
from durable.errors import ConfigError, ConflictError, LeaseLostError, RepositoryUnavailableError, ValidationError
from durable.store.base import Store
from durable.store.shared import Parcel, is_shared, make_token
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.host import UserContext, current_identity
from durable.tasks.registry import find_code, find_task


class Parentage(NamedTuple):
    """The run that starts another, whether the other belongs to it, and the command by which it records that."""

    entry: Entry
    attached: bool
    note: Callable[[str, str | None], Command]


class Starter:
    """Brings runs into being."""

    def __init__(
        self, table: Table, *, store: Store, pipeline: Pipeline, scheduler: Scheduler,
        entrance: Entrance, codec: TaggedJson, clock: Clock, entropy: Entropy, timeout: float | None,
    ) -> None:  # fmt: skip
        #: Of an attempt, for tasks that set none.
        self._timeout = timeout
        self._table = table
        self._entrance = entrance
        self._store = store
        self._pipeline = pipeline
        self._scheduler = scheduler
        self._codec = codec
        self._clock = clock
        self._entropy = entropy
        #: The table, where other processes may hold runs, too.
        self.holding = table if isinstance(table, HoldingTable) else None
        self._last_id = ""
        self._locks: dict[tuple[str | None, str], tuple[asyncio.Lock, int]] = {}
        #: Keyed runs whose creation is on its way, even when who asked for it no longer waits.
        self._creating: dict[tuple[str | None, str], Entry] = {}

    async def start(
        self, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any], parentage: Parentage | None = None
    ) -> tuple[str, str | None]:
        """Start a run, or find the one that its key names; return its id and key."""
        came = asyncio.get_running_loop().time()
        if parentage is None:
            self._entrance.check_store(task.name, options.user)
        create = await self.prepare(task, options, arguments, None if parentage is None else parentage.entry)
        try:
            if create.key is None:
                return await self._create(create, parentage, came), None
            return await self._start_keyed(create, task, parentage, came), create.key
        except LeaseLostError as error:
            if parentage is not None:
                raise
            raise RepositoryUnavailableError(
                "this process lost its lease before the start was durable: what became of it is not known; with a key, start it again"
            ) from error

    async def start_on(
        self, connection: object, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any]
    ) -> tuple[str, str | None]:
        """Start a run in the caller's transaction: it is there, and others find it, once the caller has committed."""
        if not is_shared(self._store):
            raise ConfigError("start(connection=...) needs a PostgreSQL store", key="connection")
        self._entrance.check_store(task.name, options.user)
        create = await self.prepare(task, options, arguments)
        async with self.naming(create):
            for again in (False, True):
                existing = await self.holder(create)
                if existing is not None:
                    return existing.run_id, create.key
                run_id = self.make_id(create=create)
                if not again:
                    await self._entrance.let_in_on(run_id, create)
                run = Run(run_id)
                records = self._pipeline.decide(run, create, self._clock.now(), 1)
                try:
                    await self._store.create_on(connection, Parcel(records, make_token(self._entropy)))
                except ConflictError as error:  # another was quicker, and is known now that its transaction has ended
                    if again:
                        raise ConflictError(
                            f"key {create.key!r} was used in this very transaction before: its run can be found once that is committed",
                            key=create.key,
                        ) from error
                else:
                    break
            return run_id, create.key

    async def prepare(
        self, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any], parent: Entry | None = None
    ) -> Create:
        """Check and encode what a start is given."""
        if task.validate is not None:
            await _validate(task, arguments)
        identity = current_identity.get()
        user = options.user or (identity.user if identity is not None else None)
        if user is None and parent is not None:
            user = parent.run.user
        encoded = self._codec.encode(arguments, task.facts.input_hint, f"the input of task {task.name!r}")
        create = self.creation(task, options, encoded, user)
        create.key = self._key(task, options, arguments, user)
        if create.key is not None:
            essential = task.facts.essential(arguments)
            create.fingerprint = sha256(self._codec.canonical([task.name, essential])).hexdigest()
        return create

    def creation(self, task: TaskDefinition, options: StartOptions, encoded: bytes, user: str | None) -> Create:
        """What brings a run of the task into being; options go before the task's own settings."""
        return Create(
            task.name, encoded, version=task.version, user=user,
            priority=options.priority if options.priority is not None else task.priority,
            retry=options.retry or (task.retry if task.retry is not ONCE else None),
            timeout=options.timeout or task.timeout or self._timeout,
            delay=options.delay if options.delay is not None else task.delay,
        )  # fmt: skip

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

    async def _start_keyed(self, create: Create, task: TaskDefinition, parentage: Parentage | None, came: float) -> str:
        assert create.key is not None
        async with self.naming(create):
            while (existing := await self.holder(create)) is None:
                try:
                    return await self._create(create, parentage, came)
                except ConflictError:  # another process was quicker
                    if self.holding is None or parentage is not None:
                        raise
            await self._reunite(existing, task)
            if parentage is not None:
                self._pipeline.stage(parentage.entry, parentage.note(existing.run_id, create.key))
                await self._pipeline.durable(parentage.entry)
            return existing.run_id

    @asynccontextmanager
    async def naming(self, *creates: Create) -> AsyncIterator[None]:
        """Hold the keys of these creations: nobody else looks for them or takes them meanwhile."""
        names = sorted({(create.user or "", create.user is None, create.key) for create in creates if create.key})
        async with AsyncExitStack() as stack:
            for user, is_nobody, key in names:
                assert key is not None
                name = (None if is_nobody else user, key)
                lock, users = self._locks.get(name) or (asyncio.Lock(), 0)
                self._locks[name] = (lock, users + 1)
                stack.callback(self._unname, name)
                await stack.enter_async_context(lock)
            yield

    def _unname(self, name: tuple[str | None, str]) -> None:
        lock, users = self._locks[name]
        if users == 1:
            del self._locks[name]
        else:
            self._locks[name] = (lock, users - 1)

    async def holder(self, create: Create) -> Run | None:
        """The run that the creation's key names, if there is one; to be asked while the key is held. Raises `ConflictError`."""
        if create.key is None:
            return None
        creating = self._creating.get((create.user, create.key))
        if creating is not None:
            try:
                await self._pipeline.durable(creating)
            except (ConflictError, LeaseLostError):
                if self.holding is None:
                    raise
                # It did not come into being here: another process may have been quicker.
        existing = await self._store.find_key(create.user, create.key)
        if existing is not None:
            require_same(create, existing.run_id, existing.task, existing.fingerprint)
        return existing

    async def _reunite(self, existing: Run, task: TaskDefinition) -> None:
        """A run that waits for its user's return goes on with the identity that the fresh start brings."""
        if task.auto_recover or existing.ended:
            return
        if self.holding is None:
            entry = await self._table.load(existing.run_id)
        else:  # it has to go on here, where its identity is
            entry = await self.holding.hold(existing.run_id)
        if entry is None or entry.run.status is not Status.SUSPENDED:
            return
        entry.identity, entry.restored = current_identity.get(), False
        self._pipeline.stage(entry, Resume())
        await self._pipeline.durable(entry)

    def make_id(self, relative: str | None = None, create: Create | None = None) -> str:
        """The id of a new run, later in order than all before.

        Arguments:
            relative: the id of a run whose family it joins.
            create: what brings it into being: a run with a key that joins no family is of the family that its key names.
        """
        family = None if relative is None else family_of(relative)
        if family is None and create is not None and create.key is not None:
            family = family_of_key(create.user, create.key)
        if family is None and self.holding is not None:
            family = self.holding.family()
        made = make_run_id(self._clock.now(), self._entropy.token_bytes(10), family)
        self._last_id = after_run_id(self._last_id, made)
        return self._last_id

    def enter(
        self,
        run_id: str,
        create: Create,
        parent: Entry | None,
        identity: UserContext | None,
        let_in: Entry | None = None,
    ) -> list[Wish]:
        """Put a new run on the table; returns what has to be staged for it, with its beginning where a slot is free.

        Arguments:
            let_in: the run, where it was made already to be let in, with its slot if it has one.
        """
        if parent is not None:
            create.parent_id = parent.run.run_id
            create.depth = parent.run.depth + 1 if create.attached else 0
        entry = let_in
        if entry is None:
            run = Run(run_id, attached=create.attached, joined=create.joined, user=create.user)
            entry = Entry(run, identity, parent if create.attached else None)
        entry.definition = find_task(create.task)
        self._table.add(entry)
        wishes: list[Wish] = [(entry, create)]
        if create.key is not None:
            self._creating[create.user, create.key] = entry
        has_code = find_code(create.task, create.version) is not None
        if has_code and not create.delay and (entry.slot or (let_in is None and self._scheduler.try_slot(entry))):
            wishes.append((entry, Begin()))
        else:
            if entry.slot:  # with which it was let in: its code is gone since
                self._scheduler.release(entry)
            entry.owned = self.holding is None
        return wishes

    def withdraw(self, wishes: Sequence[Wish]) -> None:
        """The runs that these wishes were to create do not come into being."""
        for entry, command in wishes:
            if type(command) is Create and isinstance(entry, Entry):
                self._table.drop(entry)
                self._scheduler.forget(entry)
                self._scheduler.release(entry)
                if command.key is not None:
                    self._creating.pop((command.user, command.key), None)

    def created(self, wishes: Sequence[Wish]) -> None:
        """These wishes were staged: their keys are known to the store once they are durable."""
        for entry, command in wishes:
            if type(command) is Create and command.key is not None and isinstance(entry, Entry):
                name = (command.user, command.key)
                self._pipeline.durable(entry).add_done_callback(partial(self._created, name))

    async def _create(self, create: Create, parentage: Parentage | None, came: float) -> str:
        parent = None
        if parentage is not None:
            parent, create.attached = parentage.entry, parentage.attached
        run_id = self.make_id(None if parent is None else parent.run.run_id, create)
        let_in = await self._entrance.let_in(run_id, create, came) if parentage is None else None
        wishes = self.enter(run_id, create, parent, current_identity.get(), let_in)
        entry = wishes[0][0]
        assert isinstance(entry, Entry)
        try:
            if parentage is None:
                for _, command in wishes:
                    self._pipeline.stage(entry, command)
                self._entrance.created(create)
            else:
                self._pipeline.stage(parentage.entry, parentage.note(run_id, create.key), *wishes)
        except BaseException:
            self.withdraw(wishes)
            raise
        self.created(wishes)
        try:
            await self._pipeline.durable(entry)
        except Exception:
            self._table.drop(entry)
            raise
        return run_id

    def _created(self, name: tuple[str | None, str], done: asyncio.Future[None]) -> None:
        self._creating.pop(name, None)
        if not done.cancelled():
            done.exception()  # whoever waits for the start is told it


def require_same(create: Create, run_id: str, task: str, fingerprint: str) -> None:
    """Raise `ConflictError` where the run that has the creation's key is not the run that it asks for."""
    if task != create.task or fingerprint != create.fingerprint:
        raise ConflictError(
            f"key {create.key!r} belongs to run {run_id} of task {task!r} "
            f"{'with another input' if task == create.task else f'and not of {create.task!r}'}; use another key, or the same input",
            key=create.key,
        )


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
