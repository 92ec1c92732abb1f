"""`SharedStore`: what the engine knows of a store that executors on several machines share.

Law: a run is held by one executor at a time. Taking hold of it, and letting go of it, raises its epoch, and nothing is written of it but
by who knows its epoch and its last `seq`. What concerns a run that another holds is sent to it, in the same commit as what it follows from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeGuard

from durable.clock import Entropy
from durable.core.messages import Answer, Message
from durable.core.records import Record
from durable.core.run import Run
from durable.errors import DurableError
from durable.guard.gate import StartAsked as StartAsked  # noqa: PLC0414 - part of this protocol
from durable.guard.gate import StartBounds as StartBounds  # noqa: PLC0414
from durable.guard.gate import StartRefused as StartRefused  # noqa: PLC0414
from durable.store.base import Store

#: A task that an executor can run: its name, and the version of the code where it has one.
Known = tuple[str, str | None]


@dataclass(slots=True)
class Parcel:
    """What becomes durable whole or not at all.

    Arguments:
        records: of one run or of several.
        token: a random number below 2**63 that tells this parcel apart: it is written once, however often it is handed in.
        epochs: for each of its runs that exists already, the epoch under which its records were decided. A run that is missing here
            and whose first record is not `seq` 1 is fenced by its `seq` alone.
        messages: for runs that others may hold.
        answers: messages that were obeyed, or refused, and are gone now.
        connection: the caller's connection, with a transaction open, in which it is to be written and which is then committed.
        strays: messages for runs of other shards: a store of several shards tells them from the others.
    """

    records: Sequence[Record]
    token: int
    epochs: Mapping[str, int] = field(default_factory=dict)
    messages: Sequence[Message] = ()
    answers: Sequence[Answer] = ()
    connection: Any = None
    strays: Sequence[Message] = ()


def make_token(entropy: Entropy) -> int:
    """A random number for `Parcel.token`."""
    return int.from_bytes(entropy.token_bytes(8), "big") >> 1


class Held(NamedTuple):
    """A run as it is stored, with the epoch of its last change of hands, and the id of the executor that holds it, if one does."""

    run: Run
    epoch: int
    owner: str | None


class UserBounds(NamedTuple):
    """How many runs of each user a claim may bring. Runs of nobody are not bounded.

    Arguments:
        most: of one user.
        of: of some users, in place of `most`; may be 0.
    """

    most: int
    of: Mapping[str, int]


class Claimed(NamedTuple):
    """What a claim brought.

    Arguments:
        held: the runs, first those that stand first; held by this executor from now on.
        more: whether there may be more to claim at once.
        next_due: when the next run will be due that can be claimed; None if none is known.
    """

    held: list[Held]
    more: bool
    next_due: float | None


class Notice(NamedTuple):
    """A hint from elsewhere: nothing depends on its coming.

    Arguments:
        work: there may be runs to claim.
        runs: runs with news: events, an end, an answer. None: of any run, since notices may have been missed.
        mail: there may be messages.
    """

    work: bool
    runs: frozenset[str] | None
    mail: bool = False


class Placement(NamedTuple):
    """Where a run is, for people.

    Arguments:
        owner: the executor that holds it.
        host, pid: where that one runs.
        lease_seconds: how long its lease still lasts; negative where it has passed.
        epoch: how often the run has changed hands.
        messages: how many messages wait for it.
        executors: how many executors are alive that know its task and version.
        versions: those in which executors that are alive know its task; None among them for code without one.
    """

    owner: str | None
    host: str
    pid: int
    lease_seconds: float
    epoch: int
    messages: int
    executors: int
    versions: Sequence[str | None] = ()


class Executor(NamedTuple):
    """An executor, for people.

    Arguments:
        executor_id: its name.
        host, pid: where it runs.
        started_at: since when, seconds since the epoch by the clock of the store.
        lease_seconds: how long its lease still lasts if it is not renewed; negative where it has passed.
        held: how many runs it holds.
    """

    executor_id: str
    host: str
    pid: int
    started_at: float
    lease_seconds: float
    held: int


class SharedStore(Store, Protocol):
    """A `Store` that several processes have open at once. Times of leases are those of the store, not of this machine."""

    @property
    def shards(self) -> Sequence[SharedStore]:
        """The stores that this one consists of, each with leases of its own; itself where it is one."""
        ...

    def shard_of(self, run_id: str) -> int:
        """Which of the shards has the run. Those of one family are in the same, and a parcel concerns one shard only."""
        ...

    def family(self) -> str | None:
        """The last digits for the id of a run that joins no family, where not all shards can take one now; None: any will do."""
        ...

    @property
    def executor_id(self) -> str:
        """The name under which this process holds runs; another after each `enroll`. Of one shard."""
        ...

    # -- writing

    async def write(self, parcels: Sequence[Parcel]) -> list[DurableError | None]:
        """Make parcels durable, in order, as few transactions as can be.

        Returns for each parcel None, or why it was refused and nothing of it was written: `LeaseLostError` (a run is not as the
        parcel's writer knows it), `ConflictError` (a creation whose user and key have a run). A run that is created and whose body
        is at work in the same parcel is held by this executor; a run that is closed is held by nobody.
        Raises `RepositoryUnavailableError` where what became of the parcels is not known: handed in again, those that were written
        count as written, once.
        """
        ...

    async def create_on(self, connection: Any, parcel: Parcel) -> None:
        """Write a creation in the caller's transaction, without committing it. Raises `ConflictError`, `ConfigError` for a
        connection that leads elsewhere."""
        ...

    def borrow(self, run_id: str) -> AbstractAsyncContextManager[Any]:
        """A connection with a transaction open, for the `Parcel.connection` of this run; rolled back when left uncommitted."""
        ...

    # -- holding runs

    async def read(self, run_ids: Sequence[str]) -> dict[str, Held]:
        """The runs of these ids, as they are stored. An owner whose lease has passed counts as nobody.

        Of several shards, those that can be asked answer; raises `RepositoryUnavailableError` where none can that has one of them."""
        ...

    async def claim(self, known: Sequence[Known], limit: int, now: float, users: UserBounds | None = None) -> Claimed:
        """Take hold of at most `limit` runs that are due at `now`, that nobody holds and whose task and version are known.

        With `users`, those of users who may have none are passed over; of one user's, fewer may come than there could be, never none.
        """
        ...

    async def take(self, run_ids: Sequence[str]) -> list[Held]:
        """Take hold of those of these runs that nobody holds."""
        ...

    async def release(self, held: Iterable[tuple[str, int]]) -> None:
        """Let go of runs, given as (run_id, epoch), raising epochs; those that have changed hands since are left alone."""
        ...

    async def mail(self, known: Sequence[Known], limit: int) -> list[Message]:
        """Messages for runs that this executor holds, or that nobody holds and whose task and version are known, oldest first."""
        ...

    async def answer(self, token: str) -> Answer | None:
        """The answer to a message that was sent with `answer_to=token`, once there is one; it is kept for some minutes."""
        ...

    async def placement(self, run_id: str) -> Placement | None:
        """Where a run is."""
        ...

    # -- limits of all processes together

    async def let_in(self, asked: Sequence[StartAsked], bounds: StartBounds) -> list[StartRefused | None]:
        """Decide starts, in order, by the clock of the store; None where one is let in, and counts from now on."""
        ...

    async def take_places(self, wanted: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """Take places that executors share: for each name, (how many, of how many there are). Returns how many were got.

        They are this executor's until it gives them back, leaves, or is swept."""
        ...

    async def give_places(self, given: Mapping[str, int]) -> None:
        """Give places back."""
        ...

    # -- the lease

    async def enroll(self, known: Sequence[Known]) -> None:
        """Become an executor, under a new id; what an earlier id of this object held is let go, with its epochs raised."""
        ...

    async def renew(self, known: Sequence[Known]) -> None:
        """Renew the lease. Raises `LeaseLostError` when it has passed: others may hold the runs by now."""
        ...

    async def sweep(self) -> int:
        """Let go of what executors hold whose lease has passed, raising epochs; returns how many runs that were."""
        ...

    async def leave(self) -> None:
        """Be no executor any more: at once, others may claim what this one held."""
        ...

    @property
    def lease_left(self) -> float:
        """Seconds until this process has to count its lease as lost: from the moment at which the last renewal was sent."""
        ...

    @property
    def lease_seconds(self) -> float:
        """How long a lease lasts that is not renewed."""
        ...

    # -- notices

    def listen(self, heard: Callable[[Notice], None]) -> None:
        """Call `heard` on the event loop for each notice, from now on until `close`."""
        ...

    def notify(self, *, work: bool = False, mail: bool = False, runs: Iterable[str] = ()) -> None:
        """Let the other processes look soon; notices are gathered for a few milliseconds and sent together, and may get lost."""
        ...

    @property
    def poll_seconds(self) -> float:
        """How long to wait at most before looking without a notice."""
        ...


def is_shared(store: Store) -> TypeGuard[SharedStore]:
    """Whether several processes may have the store open at once."""
    return hasattr(store, "claim")
