"""`Entry`: a run that this process has in hand.

Law: `run` is the state with everything that has been decided, durable or not, and is seen by `decide` only; what anybody else sees comes
from the store, and so was durable before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from durable.core.commands import Command
from durable.core.messages import Answer, Message
from durable.core.records import Record
from durable.core.run import Run
from durable.guard.queue import Turn
from durable.tasks.definition import TaskDefinition
from durable.tasks.host import UserContext


class Running(Protocol):
    """A running attempt, as the engine sees it."""

    def committed(self, batch: list[Record]) -> None:
        """Results of its calls became durable."""
        ...

    def received(self, name: str) -> None:
        """A signal came."""
        ...

    @property
    def idle(self) -> bool:
        """Whether the body only waits: for a time, a signal or a child."""
        ...

    @property
    def wakes_at(self) -> float | None:
        """The wall-clock time until which an idle body waits at most; None where that is not known."""
        ...

    def interrupt(self) -> None:
        """Stop the body."""
        ...


class Unit:
    """Records that become durable together, and who waits for that."""

    __slots__ = ("answers", "connection", "items", "messages", "parcel", "size_bytes", "waiters")

    def __init__(self) -> None:
        self.items: list[tuple[Entry, Record]] = []
        self.waiters: list[asyncio.Future[Any]] = []
        self.size_bytes = 0
        #: In a store that is shared: what becomes durable with the records, for runs that others may hold.
        self.messages: list[Message] = []
        #: Messages that were obeyed or refused, each with the run that it was for.
        self.answers: list[tuple[Entry, Answer]] = []
        #: The user's connection whose transaction it is committed in.
        self.connection: Any = None
        #: As it was first handed to the store.
        self.parcel: Any = None

    @property
    def entries(self) -> Iterator[Entry]:
        """The runs that it concerns; some more than once."""
        for entry, _ in self.items:
            yield entry
        for entry, _ in self.answers:
            yield entry


class Entry:
    """A loaded run."""

    __slots__ = (
        "awaited",
        "awaits",
        "branches",
        "children",
        "counted",
        "definition",
        "epoch",
        "execution",
        "held",
        "history",
        "identity",
        "in_flight",
        "lost",
        "on_end",
        "owned",
        "parent",
        "place",
        "restored",
        "run",
        "settled",
        "slot",
        "task",
        "timer",
        "unit",
        "waiters",
        "watchers",
    )

    def __init__(self, run: Run, identity: UserContext | None = None, parent: Entry | None = None) -> None:
        self.run = run
        #: The run that this one belongs to; it stays loaded as long as this one is, and has not ended.
        self.parent = parent
        if parent is not None:
            parent.children.add(self)
        self.identity = identity
        #: Records decided and not yet handed to the store.
        self.unit: Unit | None = None
        #: The last unit with its records that is on its way to the store.
        self.in_flight: Unit | None = None
        #: The asyncio task that runs the body.
        self.task: asyncio.Task[None] | None = None
        self.execution: Running | None = None
        #: Whether it holds one of the running slots.
        self.slot = False
        #: Whether that one counts: not that of a run which another holds one for.
        self.counted = False
        #: Its place in the queue for a slot; None when it does not wait for one.
        self.place: Turn[Entry] | None = None
        #: Bodies that wait for the end of this run.
        self.awaited = 0
        self.timer: asyncio.TimerHandle | None = None
        #: Those who wait for the end.
        self.waiters: list[asyncio.Future[Run]] = []
        #: Loaded runs that belong to this one and have not ended.
        self.children: set[Entry] = set()
        #: Loaded runs that have this one for a child although it is not theirs.
        self.watchers: list[Entry] = []
        #: How many of its children have come to the queue for a slot: each comes a little later than the one before.
        self.branches = 0
        #: What the calls of its parent's body that await this run record of its end, in the same commit.
        self.on_end: tuple[Callable[[Run], Command | None], ...] = ()
        #: Its records, where they were read ahead for its recovery.
        self.history: list[Record] | None = None
        #: Keeps the task alive that nothing else may hold: one that was made in an expression.
        self.definition: TaskDefinition | None = None
        #: Whether it was read from the store: what was only in memory before is lost.
        self.restored = False
        #: By how many it is kept loaded although nothing goes on in it.
        self.held = 0
        #: Whether its end has been told.
        self.settled = False
        #: Whether this process holds the run: nobody else writes to it. In a store of one process it always does.
        self.owned = True
        #: In a store that is shared: the epoch under which what is decided here is written.
        self.epoch = 1
        #: Whether another process may have changed the run: nothing that was decided here counts any more.
        self.lost = False
        #: Children that its body awaits, by their id, each as it was when last heard of: others may hold it.
        self.awaits: dict[str, Entry] = {}

    def outcome(self, run: Run) -> Command | None:
        """What the body that awaits this run, which has ended like this, records of that; None where it says so itself."""
        return next((command for on_end in self.on_end if (command := on_end(run)) is not None), None)

    def watch(self, watcher: Entry) -> None:
        """Keep a run loaded that is to be told of this one's end."""
        self.watchers.append(watcher)
        watcher.held += 1

    def tell(self, error: Exception) -> None:
        """Tell those who wait for the end that it does not come here."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self.waiters.clear()
