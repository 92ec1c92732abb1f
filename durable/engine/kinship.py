"""Kinship: what the runs of one family owe each other.

Law: a child's end and what its parent makes of it are one commit; where another process has the parent, the child's end and the message
that tells it are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from durable.codec import TaggedJson
from durable.config import EngineSettings
from durable.core.commands import (
    Cancel,
    ChildEnded,
    Command,
    Complete,
    Coordinate,
    Create,
    Suspend,
    Watch,
)
from durable.core.query import RunFilter
from durable.core.records import ENDS, Record
from durable.core.run import Join, Run
from durable.core.status import Status
from durable.engine.entry import Entry
from durable.engine.holding import HoldingTable
from durable.engine.pipeline import Pipeline, Target, Wish
from durable.engine.scheduler import Scheduler
from durable.engine.services import matching, patiently
from durable.engine.starting import Parentage, Starter, require_same
from durable.engine.table import Table
from durable.errors import ConflictError, LimitError, PayloadTooLargeError, RunNotFoundError
from durable.store.base import Store
from durable.tasks.child import Child, new_children
from durable.tasks.definition import StartOptions, TaskDefinition
from durable.tasks.host import current_identity
from durable.tasks.registry import find_code

logger = logging.getLogger("durable.engine")

#: Runs that are read at once where all children of a run are wanted.
FAMILY_PAGE = 5_000
#: Why a run that lost its user's identity with its process is suspended.
WAITS_FOR_USER = "waits for a fresh start with its key, which brings its user back"


class Kinship:
    """Ties between parents, children and coordinators."""

    pipeline: Pipeline
    scheduler: Scheduler
    starter: Starter
    #: Called with a run that nobody needs in memory any more who did.
    let_go: Callable[[Entry], None]
    #: Lets a run that was read from the store go on.
    go_on: Callable[[Entry], None]
    #: See `Revival.revive_awaited`.
    revive_awaited: Callable[[Entry, str, Command], Awaitable[None]]

    def __init__(self, table: Table, store: Store, codec: TaggedJson, settings: EngineSettings) -> None:
        self._table = table
        self._store = store
        self._codec = codec
        self._settings = settings
        #: The table, where other processes may hold runs, too.
        self.holding = table if isinstance(table, HoldingTable) else None

    # --- what a record means for relatives --------------------------------------------------------------------------------------

    def entailed(self, entry: Entry, record: Record) -> Iterable[Wish]:
        """What a record of a run means for other runs, to be staged together with it; see `pipeline.ENTAILING`."""
        if record.kind in ENDS:
            return self._told(entry)
        return self.coordination(entry) if entry.run.status is Status.WAITING_FOR_CHILDREN else ()

    def _told(self, entry: Entry) -> Iterable[Wish]:
        run, parent = entry.run, entry.parent
        if self.holding is not None:
            elsewhere = parent is None or parent.lost
            return self._told_by_message(run) if elsewhere else self._told_here(entry, run.watchers)
        if parent is None and not entry.watchers:
            return ()
        return self._told_here(entry, entry.watchers)

    def _told_by_message(self, run: Run) -> Iterable[Wish]:
        told: list[Wish] = [(watcher, told_of_end(run)) for watcher in run.watchers]
        if run.attached and run.parent_id:
            told.append((run.parent_id, told_of_end(run, counts=run.joined)))
        return told

    def _told_here(self, entry: Entry, watchers: Iterable[Target]) -> Iterable[Wish]:
        run, parent = entry.run, entry.parent
        told: list[Wish] = [(watcher, told_of_end(run)) for watcher in watchers]
        if parent is not None and (run.joined or parent.run.asleep):
            told.append((parent, told_of_end(run, counts=run.joined)))
        elif parent is not None and (command := entry.outcome(run)) is not None:
            told.append((parent, command))
        return told

    def coordination(self, entry: Entry) -> Sequence[Wish]:
        """What begins the coordinator of a run whose children have all ended; nothing where it cannot begin now."""
        run = entry.run
        definition = find_code(run.task, run.version)
        if run.unfinished or not run.join or definition is None or definition.on_children_complete is None:
            return ()
        if not entry.owned:
            return ()  # whoever claims the run begins it
        if isinstance(definition.on_children_complete, TaskDefinition):
            return self._coordinator_run(entry, definition.on_children_complete, definition.coordinator_options)
        if entry.restored and not definition.auto_recover:
            return ((entry, Coordinate()), (entry, Suspend(WAITS_FOR_USER)))
        if entry.slot or self.scheduler.try_slot(entry):
            return ((entry, Coordinate()),)
        return ()

    def _coordinator_run(self, entry: Entry, task: TaskDefinition, options: StartOptions) -> Sequence[Wish]:
        run = entry.run
        parameter = next(iter(task.facts.signature.parameters.values()))
        # What the body returned goes on as it is stored: the children in it are references, which the coordinator's start resolves.
        value = b"[%s]" % run.result if parameter.kind is parameter.VAR_POSITIONAL else run.result
        encoded = b"{%s:%s}" % (json.dumps(parameter.name).encode(), value or b"null")
        create = self.starter.creation(task, options, encoded, run.user)
        create.attached = create.joined = True
        create.trace = run.attempt_trace
        run_id = self.starter.make_id(run.run_id)
        return ((entry, Coordinate(run_id)), *self.starter.enter(run_id, create, entry, entry.identity))

    # --- what a body asks for ---------------------------------------------------------------------------------------------------

    async def returned(self, entry: Entry, definition: TaskDefinition, encode: Callable[[], bytes]) -> None:
        """Stage what a body, or a coordinator, returned: the run's result, or that it waits for the children in it.

        Arguments:
            encode: gives the payload of the returned value.

        Raises what `encode` raises, and what refuses a child: `ValidationError`, `ConflictError`, `LimitError`, `PayloadError`.
        """
        with new_children(partial(self.starter.make_id, entry.run.run_id)) as children:
            payload = encode()
        join: Join = ""
        if definition.on_children_complete is not None and not entry.run.returned_seq:
            join = "task" if isinstance(definition.on_children_complete, TaskDefinition) else "function"
        lenient = definition.on_child_failure == "continue"
        if not children:
            if entry.run.executing:
                self.pipeline.stage(entry, Complete(payload, 0, join, lenient))
            return
        creates = [await self.starter.prepare(*child.call, entry) for child in children if child.call is not None]
        self._check_size(entry.run, creates)
        async with self.starter.naming(*creates):
            others: list[Target] = []
            try:
                own = await self._by_key(entry, list(zip(children, creates, strict=True)), others)
                while late := [
                    other for other in _loaded(others) if other.run.ended and not self.pipeline.is_durable(other)
                ]:
                    await self.pipeline.durable(late[0])  # the parent counts no end that a crash could undo
                if len(own) < len(children):
                    payload = encode()  # with the runs that keys name
                self._stage_family(entry, Complete(payload, len(own) + len(others), join, lenient), own, others)
            finally:
                for other in _loaded(others):
                    other.held -= 1
                    self.let_go(other)

    def _stage_family(
        self, entry: Entry, complete: Complete, own: list[tuple[Child[Any], Create]], others: list[Target]
    ) -> None:
        wishes: list[Wish] = []
        for child, create in own:
            create.attached = create.joined = True
            wishes += self.starter.enter(child.run_id, create, entry, current_identity.get())
        running = [other for other in others if isinstance(other, str) or not other.run.ended]
        told: list[Wish] = [(other, Watch(entry.run.run_id)) for other in running]
        told += [(entry, told_of_end(other.run)) for other in _loaded(others) if other.run.ended]
        try:
            self.pipeline.stage(entry, complete, *wishes, *told)
        except BaseException:
            self.starter.withdraw(wishes)
            raise
        self.starter.created(wishes)
        for other in _loaded(running):
            other.watch(entry)

    async def _by_key(
        self, entry: Entry, children: list[tuple[Child[Any], Create]], others: list[Target]
    ) -> list[tuple[Child[Any], Create]]:
        """Return the children that come into being; `others` gets the runs that the keys of the rest name, held."""
        own: list[tuple[Child[Any], Create]] = []
        named: dict[tuple[str | None, str], tuple[Child[Any], Create]] = {}
        known: set[str] = set()
        for child, create in children:
            if create.key is None:
                own.append((child, create))
                continue
            twin = named.get((create.user, create.key))
            if twin is not None:
                require_same(create, twin[0].run_id, twin[1].task, twin[1].fingerprint)
                child.stands_for(twin[0].run_id)
                continue
            holder = await patiently(partial(self.starter.holder, create))
            if holder is None:
                own.append((child, create))
                named[create.user, create.key] = (child, create)
                continue
            self._refuse_ancestor(entry, holder.run_id, create)
            child.stands_for(holder.run_id)
            if holder.run_id in known:
                continue
            known.add(holder.run_id)
            other = await self._named(holder)
            if other is not None:
                others.append(other)
                if isinstance(other, Entry):
                    other.held += 1
        return own

    async def _named(self, holder: Run) -> Target | None:
        """The run that a key names, as whom to tell: what another process may go on with meanwhile is sent a message."""
        if self.holding is not None:
            return Entry(holder) if holder.ended else holder.run_id
        return await patiently(partial(self._table.load, holder.run_id))

    def _refuse_ancestor(self, entry: Entry, run_id: str, create: Create) -> None:
        ancestor: Entry | None = entry
        while ancestor is not None:
            if ancestor.run.run_id == run_id:
                raise ConflictError(
                    f"key {create.key!r} belongs to run {run_id}, which would wait for itself: give the child another key",
                    key=create.key,
                )
            ancestor = ancestor.parent

    def _check_size(self, run: Run, creates: Sequence[Create]) -> None:
        if len(creates) > self._settings.children_max:
            raise LimitError(
                f"run {run.run_id} returned {len(creates)} children, at most {self._settings.children_max} are allowed "
                "(engine.children_max); give it fewer, each with children of its own"
            )
        self.check_depth(run)
        size = sum(len(create.input) for create in creates)
        if size > self._settings.family_bytes_max:
            raise PayloadTooLargeError(
                f"the inputs of the {len(creates)} children of run {run.run_id} take {size} bytes, at most "
                f"{self._settings.family_bytes_max} are allowed (engine.family_bytes_max): pass references instead of data"
            )

    def check_depth(self, run: Run) -> None:
        """Refuse a child of a run that is too deep in its tree."""
        if run.depth >= self._settings.tree_depth_max:
            raise LimitError(
                f"run {run.run_id} has {run.depth} ancestors, the most there may be (engine.tree_depth_max): "
                "end the recursion, or use a loop in one run"
            )

    async def start_child(
        self, parent: Entry, task: TaskDefinition, options: StartOptions, arguments: dict[str, Any],
        *, attached: bool, note: Callable[[str, str | None], Command],
    ) -> str:  # fmt: skip
        """Start a run from within another; `note` is what the other records of it, durable together with it."""
        if attached:
            self.check_depth(parent.run)
        run_id, _ = await self.starter.start(task, options, arguments, Parentage(parent, attached, note))
        return run_id

    def give_up(self, parent: Entry, note: Command, run_id: str | None, *, is_own: bool) -> None:
        """Record that a body no longer waits for a child, and cancel it; no run that is not its own."""
        child = None if run_id is None else self._table.get(run_id)
        cancel = Cancel("the parent no longer waits for it")
        if child is not None and child.parent is parent and not child.run.ended:
            self.pipeline.stage(parent, note, (child, cancel))
        elif run_id is not None and is_own and self.holding is not None:
            self.pipeline.stage(parent, note, (run_id, cancel))
        else:
            self.pipeline.stage(parent, note)

    async def load(self, run_id: str) -> Entry | None:
        """The run, read from the store if need be."""
        return await self._table.load(run_id)

    async def awaited(self, parent: Entry, child_id: str) -> Entry | None:
        """The child that a body is about to await; of one that another process holds, what is known of it."""
        if self.holding is None:
            return await self._table.load(child_id)
        if (known := parent.awaits.get(child_id)) is not None:
            return known  # another call awaits it already
        if (child := self.holding.held(child_id)) is not None and child.parent is parent:
            return child
        # Before it is read: from here on its end is not missed.
        stand_in = parent.awaits[child_id] = Entry(Run(child_id))
        try:
            found = await self._store.find(child_id)
            if found is None or found.ended or not found.attached or found.parent_id != parent.run.run_id:
                return None
            for taken in await self.holding.take([child_id]):
                self.go_on(taken)  # nobody had it: it goes on here, in the slot of its parent
                return taken
            if not stand_in.run.ended:
                stand_in.run.become(found)
            stand_in.parent = parent
            return parent.awaits[child_id]
        finally:
            if stand_in.parent is None and parent.awaits.get(child_id) is stand_in:
                del parent.awaits[child_id]

    async def end_children(self, run_id: str, children: Sequence[Child[Any]]) -> None:
        """Give these children of a run their outcomes."""
        missing = {child.run_id for child in children}
        ended: dict[str, Run] = {}
        async for run in matching(self._store, RunFilter(parent_id=run_id, limit=FAMILY_PAGE)):
            if run.run_id in missing:
                ended[run.run_id] = run
        for child in children:
            found = ended.get(child.run_id) or await patiently(
                partial(self._store.find, child.run_id)
            )  # else its key named it
            if found is None:
                raise RunNotFoundError(f"no run has the id {child.run_id!r}, which is named as a child of run {run_id}")
            child.end(found, self._codec)

    async def find(self, run_id: str) -> Run | None:
        """The run, as the store has it."""
        return await patiently(partial(self._store.find, run_id))

    def relatives(self, wanted: RunFilter) -> AsyncIterator[Run]:
        """All runs that match, as the store has them."""
        return matching(self._store, wanted)


def _loaded(targets: Iterable[Target]) -> Iterator[Entry]:
    return (target for target in targets if isinstance(target, Entry))


def told_of_end(run: Run, *, counts: bool = True) -> ChildEnded:
    """What relatives of a run are told of its end."""
    return ChildEnded(run.run_id, run.task, run.status, run.result, run.failure, run.reason, counts)
