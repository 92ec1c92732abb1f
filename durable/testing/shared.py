"""A shared store in memory: what each simulated process has open on one `SharedDatabase`.

Law: it keeps the contract of `SharedStore` to the letter. All that is asked of the database goes through `_ask`, where a test may put what
goes wrong between the two.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from durable.clock import SYSTEM_CLOCK, SYSTEM_ENTROPY, Clock, Entropy
from durable.core.messages import Answer, Message
from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run, fold
from durable.errors import ConfigError, DurableError, LeaseLostError, StorageError
from durable.store.base import StoreHealth, Unit
from durable.store.overlay import earliest_due
from durable.store.places import OwnPlaces, PlacesTold
from durable.store.shared import (
    Claimed,
    Held,
    Known,
    Notice,
    Parcel,
    Placement,
    SharedStore,
    StartAsked,
    StartBounds,
    StartRefused,
    UserBounds,
)  # fmt: skip
from durable.testing.database import Listener, SharedDatabase

T = TypeVar("T")

#: How long notices are gathered before they are sent together.
GATHER_SECONDS = 0.003
#: For how long what was asked may still be carried out after its answer was given up.
LATE_SECONDS = 30.0


class SharedMemoryStore:
    """One process's store; see `SharedStore`.

    Arguments:
        database: what it has in common with others.
        clock: by which this process counts its lease.
        lease_seconds, poll_seconds: see `PostgresSettings`.
    """

    def __init__(
        self, database: SharedDatabase, *, clock: Clock = SYSTEM_CLOCK, entropy: Entropy = SYSTEM_ENTROPY,
        lease_seconds: float = 15.0, poll_seconds: float = 1.0,
    ) -> None:  # fmt: skip
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self.lease_seconds = lease_seconds
        self.poll_seconds = poll_seconds
        self.executor_id = ""
        self._renewed_at: float | None = None
        self._places = OwnPlaces(self._tell, clock.monotonic, LATE_SECONDS)
        self._open = False
        self._writing, self._taking = asyncio.Lock(), asyncio.Lock()
        #: Runs of which this process knows that it holds them, and perhaps some that it holds no more.
        self._mine: set[str] = set()
        #: Until when a claim or a write may still be carried out of which no answer came.
        self._strays_until = -math.inf
        self._heard: Callable[[Notice], None] | None = None
        self._work = self._mail = False
        self._news: set[str] = set()
        self._sending: asyncio.TimerHandle | None = None

    async def _ask(self, what: str, work: Callable[[], T]) -> T:
        """Have the database do something. Raises `RepositoryUnavailableError` where it is not known whether that was done."""
        self._check()
        await asyncio.sleep(0)  # nothing is answered in the turn that asks for it
        self._check()
        return work()

    # -- a store

    @property
    def store_id(self) -> str:
        return self._database.store_id

    async def open(self) -> None:
        self._open = True

    async def close(self) -> None:
        self._open = False
        self._heard = None
        if self in self._database.listeners:
            self._database.listeners.remove(self)

    async def commit(self, units: Sequence[Unit]) -> None:
        async with self._writing:
            await self._ask("commit", lambda: self._commit(units))

    def _commit(self, units: Sequence[Unit]) -> None:
        overlay = self._database.overlay
        overlay.withdraw(overlay.promise(units))  # all of them fit, or nothing is written
        for unit in units:
            new = [each for each in unit if (run := overlay.run(each.run_id)) is None or each.seq > run.seq]
            batch = self._database.put(new, self.executor_id or None)
            for record in unit:
                record.batch = batch

    def admit(self) -> None:
        self._check()

    async def find(self, run_id: str) -> Run | None:
        return await self._ask("find", lambda: _copied(self._database.overlay.run(run_id)))

    async def find_key(self, user: str | None, key: str) -> Run | None:
        return await self._ask("find", lambda: _copied(self._database.overlay.run_of_key(user, key)))

    async def history(self, run_id: str, after: int = 0, limit: int | None = None) -> list[Record]:
        start = max(after, 0)
        records = (await self.histories([run_id])).get(run_id, [])
        return records[start : None if limit is None else start + limit]

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        def work() -> dict[str, list[Record]]:
            tails = ((run_id, self._database.overlay.tail(run_id)) for run_id in run_ids)
            return {run_id: [copy.copy(record) for record in tail[1]] for run_id, tail in tails if tail is not None}

        return await self._ask("history", work)

    async def query(self, wanted: RunFilter) -> list[Run]:
        def work() -> list[Run]:
            return [run.copy() for run in self._database.overlay.matching(wanted)[: max(wanted.limit, 0)]]

        return await self._ask("query", work)

    async def count(self, wanted: RunFilter) -> int:
        return await self._ask("query", lambda: len(self._database.overlay.matching(wanted)))

    async def prune(self, before: float, limit: int) -> int:
        return await self._ask("prune", lambda: self._database.prune(before, limit))

    async def next_due(self, after: float) -> float | None:
        return await self._ask("query", lambda: earliest_due(self._database.overlay.entries.values(), after))

    def health(self) -> StoreHealth:
        return StoreHealth() if self._open else StoreHealth(state="failed", detail="the store is not open")

    def _check(self) -> None:
        if not self._open:
            raise StorageError("the store is not open; await store.open() first")

    # -- a shared store

    @property
    def shards(self) -> Sequence[SharedStore]:
        return (self,)

    def shard_of(self, run_id: str) -> int:
        return 0

    def family(self) -> str | None:
        return None

    async def write(self, parcels: Sequence[Parcel]) -> list[DurableError | None]:
        me = self.executor_id or None
        async with self._writing:
            for parcel in parcels:
                self._mine.update(_begun(parcel))  # before it is known: what is at work here is no stray
            outcomes, closed = await self._ask("write", lambda: self._write(parcels, me))
            self._mine.difference_update(closed)
        return outcomes

    def _write(self, parcels: Sequence[Parcel], me: str | None) -> tuple[list[DurableError | None], set[str]]:
        outcomes = [self._database.write(parcel, me) for parcel in parcels]
        runs = {record.run_id for parcel in parcels for record in parcel.records}
        return outcomes, {run_id for run_id in runs if self._database.closed(run_id)}

    async def create_on(self, connection: Any, parcel: Parcel) -> None:
        raise ConfigError("a store in memory has no connections", key="connection")

    def borrow(self, run_id: str) -> AbstractAsyncContextManager[Any]:
        raise ConfigError("a store in memory has no connections", key="target")

    async def read(self, run_ids: Sequence[str]) -> dict[str, Held]:
        return await self._ask("read", lambda: self._database.read(run_ids))

    async def claim(self, known: Sequence[Known], limit: int, now: float, users: UserBounds | None = None) -> Claimed:
        me = self.executor_id
        async with self._held_only_if_told():
            claimed = await self._ask("claim", lambda: self._database.claim(me, known, limit, now, users))
            self._mine.update(held.run.run_id for held in claimed.held)
        return claimed

    async def take(self, run_ids: Sequence[str]) -> list[Held]:
        me = self.executor_id
        async with self._held_only_if_told():
            taken = await self._ask("take", lambda: self._database.take(me, run_ids))
            self._mine.update(held.run.run_id for held in taken)
        return taken

    @asynccontextmanager
    async def _held_only_if_told(self) -> AsyncIterator[None]:
        async with self._taking:
            try:
                yield
            except BaseException:
                self._expect_strays()
                raise

    def _expect_strays(self) -> None:
        self._strays_until = self._clock.monotonic() + LATE_SECONDS + self.lease_seconds

    async def release(self, held: Iterable[tuple[str, int]]) -> None:
        me, runs = self.executor_id, list(held)
        self._mine.difference_update(run_id for run_id, _ in runs)
        if await self._ask("release", lambda: self._database.release(me, runs)) < len(runs):
            self._expect_strays()  # what creates one of them was given up, and may still be carried out

    async def mail(self, known: Sequence[Known], limit: int) -> list[Message]:
        me = self.executor_id
        return await self._ask("mail", lambda: self._database.mail(me, known, limit))

    async def answer(self, token: str) -> Answer | None:
        return (await self._ask("answer", lambda: self._database.answers.get(token, (0.0, None))))[1]

    async def placement(self, run_id: str) -> Placement | None:
        return await self._ask("read", lambda: self._database.placement(run_id))

    # -- limits of all processes together

    async def let_in(self, asked: Sequence[StartAsked], bounds: StartBounds) -> list[StartRefused | None]:
        return await self._ask("let_in", lambda: self._database.let_in(asked, bounds))

    async def take_places(self, wanted: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        return await self._places.take(self.executor_id, wanted)

    async def give_places(self, given: Mapping[str, int]) -> None:
        if await self._places.give(self.executor_id, given):
            self.notify(work=True)

    async def _tell(self, told: PlacesTold) -> list[tuple[int, int]]:
        return await self._ask("places", lambda: self._database.ledger.hold(told))

    # -- the lease

    async def enroll(self, known: Sequence[Known]) -> None:
        made, old, sent_at = self._entropy.token_bytes(16).hex(), self.executor_id, self._clock.monotonic()
        await self._ask("enroll", lambda: self._database.enroll(made, old, known, self.lease_seconds))
        self.executor_id, self._renewed_at, self._strays_until = made, sent_at, -math.inf
        self._mine.clear()

    async def renew(self, known: Sequence[Known]) -> None:
        me, sent_at = self.executor_id, self._clock.monotonic()
        if not await self._ask("renew", lambda: self._database.renew(me, known, self.lease_seconds)):
            self._renewed_at = None
            raise LeaseLostError(f"the lease of executor {me} has passed")
        self._renewed_at = sent_at
        if self._strays_until >= sent_at:
            async with self._taking:
                owned = await self._ask("owned", lambda: self._database.owned(me))
                await self.release(each for each in owned if each[0] not in self._mine)

    async def sweep(self) -> int:
        return await self._ask("sweep", self._database.sweep)

    async def leave(self) -> None:
        me, self.executor_id, self._renewed_at = self.executor_id, "", None
        if me:
            await self._ask("leave", lambda: self._database.leave(me))

    @property
    def lease_left(self) -> float:
        return 0.0 if self._renewed_at is None else self._renewed_at + self.lease_seconds - self._clock.monotonic()

    # -- notices

    def listen(self, heard: Callable[[Notice], None]) -> None:
        self._heard = heard
        self._database.listeners.append(self)

    def notify(self, *, work: bool = False, mail: bool = False, runs: Iterable[str] = ()) -> None:
        self._work, self._mail = self._work or work, self._mail or mail
        self._news.update(runs)
        if self._open and self._sending is None:
            self._sending = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._send)

    def _send(self) -> None:
        notice = Notice(self._work, frozenset(self._news), self._mail)
        self._work = self._mail = False
        self._news, self._sending = set(), None
        for other in list(self._database.listeners):
            if other is not self:
                self._deliver(other, notice)

    def _deliver(self, other: Listener, notice: Notice) -> None:
        """Bring a notice to another process."""
        other.hear(notice)

    def hear(self, notice: Notice) -> None:
        """A notice comes in."""
        if self._heard is not None:
            self._heard(notice)


def _copied(run: Run | None) -> Run | None:
    return None if run is None else run.copy()


def _begun(parcel: Parcel) -> Iterable[str]:
    """The runs that are created in the parcel, and at work."""
    created = {record.run_id: list[Record]() for record in parcel.records if record.seq == 1}
    for record in parcel.records:
        if record.run_id in created:
            created[record.run_id].append(record)
    return (run_id for run_id, records in created.items() if fold(records).executing)
