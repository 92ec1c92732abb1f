"""Several PostgreSQLs as one store: each is a shard, and has whole families of runs.

Law: a run lies where the last digits of its id say, and nowhere else; nothing is written to two shards at once. A shard that is away takes
nothing with it but its own runs, and no list is told to be whole that lacks them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from heapq import merge
from itertools import chain, islice, zip_longest
from operator import attrgetter
from typing import Any, Protocol

from durable.clock import SYSTEM_ENTROPY, Entropy
from durable.core.ids import FAMILY_DIGITS, family_of_key
from durable.core.messages import Answer, Message
from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run
from durable.errors import DurableError, RepositoryUnavailableError, StorageError
from durable.store.base import StoreHealth, Unit
from durable.store.postgres.shards.claims import Claiming
from durable.store.postgres.shards.courier import Courier, Post
from durable.store.postgres.shards.fan import Fan
from durable.store.postgres.shards.keeping import Keeping
from durable.store.postgres.shards.limits import Limited
from durable.store.postgres.shards.placing import Placing
from durable.store.postgres.shards.reach import Reach
from durable.store.postgres.shards.roll import Member, call_roll, come_late
from durable.store.shared import Held, Known, Notice, Parcel, Placement, SharedStore

logger = logging.getLogger("durable.store")

#: Messages whose answers are awaited, of which it is remembered where they went.
ASKED_MAX = 10_000
#: How often digits are drawn for a family that a shard can take which is not away.
DRAWS = 100


class Shard(SharedStore, Post, Member, Protocol):
    """A store that can be one of several."""

    async def check(self, units: Sequence[Unit]) -> None:
        """Raise what `commit` would refuse these units with, as things are now."""
        ...


class ShardedStore(Claiming, Keeping, Limited):
    """See the module, and `durable.store.shared.SharedStore`. What is not told here of one shard is told of all: it fails if one does.

    Arguments:
        shards: not open yet, in any order.
        entropy: where families' digits come from while a shard is away.
    """

    def __init__(self, shards: Sequence[Shard], *, entropy: Entropy = SYSTEM_ENTROPY) -> None:
        self._given = shards
        self._entropy = entropy
        #: The shards in the order of their ids; None while it is closed.
        self._opened: Fan[Shard] | None = None
        self._store_ids: Sequence[str] = ()
        self._courier: Courier
        self._heard: list[Callable[[Notice], None]] = []
        #: To which shard messages went, by the tokens of their answers.
        self._asked: dict[str, int] = {}
        #: Runs that were to be let go of while their shards were away.
        self._leaving: dict[int, list[tuple[str, int]]] = {}

    @property
    def store_id(self) -> str:
        if not self._store_ids:
            raise _closed()
        return sha256(" ".join(self._store_ids).encode()).hexdigest()[:32]

    @property
    def _fan(self) -> Fan[Shard]:
        if self._opened is None:
            raise _closed()
        return self._opened

    # -- opening and closing

    async def open(self) -> None:
        """See `Store.open`. One of the shards may be away, once all have been there together."""
        if self._opened is not None:
            raise StorageError("the store is open already")
        roll = await call_roll(self._given)
        self._store_ids = sorted(roll)
        shards = [self._given[roll[store_id]] for store_id in self._store_ids]
        reaches = [
            Reach(f"the shard at {shard.place}", partial(self._probe, place), partial(self._back, place))
            for place, shard in enumerate(shards)
        ]
        self._opened = Fan(shards, reaches, Placing(self._store_ids))
        for shard, reach in zip(shards, reaches, strict=True):
            if shard.absence:
                reach.lost(shard.absence)
                reach.suspect()
        self._courier = Courier(list(zip(shards, reaches, strict=True)), self.shard_of, self._delivered)

    async def close(self) -> None:
        fan, self._opened = self._opened, None
        if fan is not None:
            await self._courier.close()
            for reach in fan.reaches:
                await reach.close()
        self._heard, self._asked, self._leaving = [], {}, {}
        await asyncio.gather(*(shard.close() for shard in self._given))

    async def _probe(self, place: int) -> None:
        shard = self._fan.shards[place]
        if not shard.is_open:
            await come_late(shard, self._store_ids[place], self._store_ids)
            for heard in self._heard:
                shard.listen(heard)
        await shard.membership.ping()
        while left := self._leaving.get(place):
            some = list(left)
            await shard.release(some)
            del left[: len(some)]

    def _back(self, place: int) -> None:
        for heard in self._heard:
            heard(Notice(True, None, True))  # its own notices may have been missed
        self._courier.call()

    # -- where runs are

    @property
    def shards(self) -> Sequence[SharedStore]:
        return self._fan.shards

    def shard_of(self, run_id: str) -> int:
        return self._fan.place_of(run_id)

    def family(self) -> str | None:
        reaches, placing = self._fan.reaches, self._fan.placing
        if all(not reach.absence for reach in reaches):
            return None
        for _ in range(DRAWS):
            family = self._entropy.token_bytes(FAMILY_DIGITS).hex()[:FAMILY_DIGITS]
            if not reaches[placing.place(family)].absence:
                return family
        return None

    # -- writing

    async def commit(self, units: Sequence[Unit]) -> None:
        """See `Store.commit`. Raises `ValueError` for a unit of several shards. Units of several shards are looked at by all before any
        is written: only where others change the same runs at that very time may some be written although another is refused."""
        groups: dict[int, list[Unit]] = {}
        shards = self._fan.shards
        for unit in units:
            places = {self.shard_of(record.run_id) for record in unit}
            if len(places) > 1:
                raise ValueError(
                    "the records of a unit belong to runs of several shards: they cannot become durable together"
                )
            for place in places:
                groups.setdefault(place, []).append(unit)
        if len(groups) > 1:
            await self._fan.all({place: partial(shards[place].check, some) for place, some in groups.items()})
        outcomes = await asyncio.gather(
            *(shards[place].commit(some) for place, some in groups.items()), return_exceptions=True
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    def admit(self) -> None:
        if self._opened is None:
            raise _closed()

    async def write(self, parcels: Sequence[Parcel]) -> list[DurableError | None]:
        groups = self._fan.split(enumerate(parcels), lambda each: _run_of(each[1]))
        outcomes: list[DurableError | None] = [None] * len(parcels)

        async def write(place: int, some: list[tuple[int, Parcel]]) -> None:
            sorted_out = [self._sorted_out(parcel, place) for _, parcel in some]
            try:
                answers = await self._fan.shards[place].write(sorted_out)
            except RepositoryUnavailableError:
                self._fan.reaches[place].suspect()
                raise
            for (number, _), answer in zip(some, answers, strict=True):
                outcomes[number] = answer
            if any(parcel.strays for parcel in sorted_out):
                self._courier.call()

        results = await asyncio.gather(*(write(place, some) for place, some in groups.items()), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result
        return outcomes

    def _sorted_out(self, parcel: Parcel, place: int) -> Parcel:
        """The parcel as its shard gets it: what is for runs of others is told apart."""
        strays: list[Message] = []
        messages: list[Message] = []
        for message in parcel.messages:
            (messages if self.shard_of(message.run_id) == place else strays).append(message)
            if message.answer_to:
                self._asked[message.answer_to] = self.shard_of(message.run_id)
                if len(self._asked) > ASKED_MAX:
                    del self._asked[next(iter(self._asked))]
        return replace(parcel, messages=messages, strays=strays) if strays else parcel

    async def create_on(self, connection: Any, parcel: Parcel) -> None:
        """See `SharedStore.create_on`. The connection has to lead to the shard of the run, else `ConfigError`."""
        await self._fan.shards[self.shard_of(_run_of(parcel))].create_on(connection, parcel)

    def borrow(self, run_id: str) -> AbstractAsyncContextManager[Any]:
        return self._fan.shards[self.shard_of(run_id)].borrow(run_id)

    # -- answering

    async def find(self, run_id: str) -> Run | None:
        return await self._fan.of(run_id, lambda shard: shard.find(run_id))

    async def find_key(self, user: str | None, key: str) -> Run | None:
        """See `Store.find_key`. A run that joined no family is where its key says; a keyed child is where its family is."""
        asks = self._fan.each(lambda shard: shard.find_key(user, key))
        home = self._fan.placing.place(family_of_key(user, key))
        found = await self._fan.one(home, asks.pop(home))
        return found or next((run for run in await self._fan.all(asks) if run is not None), None)

    async def history(self, run_id: str, after: int = 0, limit: int | None = None) -> list[Record]:
        return await self._fan.of(run_id, lambda shard: shard.history(run_id, after, limit))

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        found = await self._fan.all(self._fan.those_of(run_ids, lambda shard, ids: shard.histories(ids)))
        return {run_id: records for some in found for run_id, records in some.items()}

    async def query(self, wanted: RunFilter) -> list[Run]:
        asks = self._fan.each(lambda shard: shard.query(wanted))
        if wanted.parent_id is not None:  # children are where their parent is
            home = self.shard_of(wanted.parent_id)
            return await self._fan.one(home, asks[home])
        pages = await self._fan.all(asks)
        return list(islice(merge(*pages, key=attrgetter("run_id")), max(wanted.limit, 0)))

    async def next_due(self, after: float) -> float | None:
        dues = await self._fan.all(self._fan.each(lambda shard: shard.next_due(after)))
        return min((due for due in dues if due is not None), default=None)

    def health(self) -> StoreHealth:
        if self._opened is None:
            return StoreHealth(state="failed", detail="the store is not open")
        troubles = [
            reach.absence or f"the shard at {shard.place}: {shard.health().detail}"
            for shard, reach in zip(self._fan.shards, self._fan.reaches, strict=True)
            if reach.absence or shard.health().state != "ok"
        ]
        return StoreHealth(state="degraded", detail="; ".join(troubles)) if troubles else StoreHealth()

    # -- holding runs

    @property
    def executor_id(self) -> str:
        """Those of all shards, with commas."""
        return ",".join(shard.executor_id for shard in self._fan.shards)

    async def read(self, run_ids: Sequence[str]) -> dict[str, Held]:
        found = await self._fan.some(self._fan.those_of(run_ids, lambda shard, ids: shard.read(ids)))
        return {run_id: held for some in found for run_id, held in some.items()}

    async def take(self, run_ids: Sequence[str]) -> list[Held]:
        found = await self._fan.some(self._fan.those_of(run_ids, lambda shard, ids: shard.take(ids)))
        return list(chain.from_iterable(found))

    async def release(self, held: Iterable[tuple[str, int]]) -> None:
        """See `SharedStore.release`. Runs of a shard that is away are let go of when it is back; or when the lease there has passed."""

        async def release(place: int, some: list[tuple[str, int]]) -> None:
            try:
                await self._fan.one(place, partial(self._fan.shards[place].release, some))
            except RepositoryUnavailableError:
                self._leaving.setdefault(place, []).extend(some)

        groups = self._fan.split(held, lambda each: each[0])
        await asyncio.gather(*(release(place, some) for place, some in groups.items()))

    def _let_go(self) -> None:
        """Have runs let go of that could not be when they were to; see `_probe`."""
        for place, left in self._leaving.items():
            if left:
                self._fan.reaches[place].suspect()

    async def mail(self, known: Sequence[Known], limit: int) -> list[Message]:
        """See `SharedStore.mail`. Who asks for messages brings those to their shards that lie in others, too."""
        places = self._fan.present()
        self._courier.open()
        found = await self._fan.some({place: partial(self._fan.shards[place].mail, known, limit) for place in places})
        turns = (message for row in zip_longest(*found) for message in row if message is not None)
        return list(islice(turns, limit))

    async def answer(self, token: str) -> Answer | None:
        place = self._asked.get(token)
        if place is not None:
            found = await self._fan.one(place, lambda: self._fan.shards[place].answer(token))
        else:
            answers = await self._fan.all(self._fan.each(lambda shard: shard.answer(token)))
            found = next((answer for answer in answers if answer is not None), None)
        if found is not None:
            self._asked.pop(token, None)
        return found

    async def placement(self, run_id: str) -> Placement | None:
        return await self._fan.of(run_id, lambda shard: shard.placement(run_id))

    # -- the leases: each shard has its own, and `shards` is there to keep them one by one

    async def enroll(self, known: Sequence[Known]) -> None:
        await self._fan.all(self._fan.each(lambda shard: shard.enroll(known)))

    async def renew(self, known: Sequence[Known]) -> None:
        await self._fan.all(self._fan.each(lambda shard: shard.renew(known)))

    async def sweep(self) -> int:
        return sum(await self._fan.all(self._fan.each(lambda shard: shard.sweep())))

    async def leave(self) -> None:
        await self._fan.all(self._fan.each(lambda shard: shard.leave()))

    @property
    def lease_left(self) -> float:
        return min(shard.lease_left for shard in self._fan.shards)

    @property
    def lease_seconds(self) -> float:
        return self._given[0].lease_seconds

    # -- notices

    def listen(self, heard: Callable[[Notice], None]) -> None:
        self._heard.append(heard)
        for shard in self._fan.shards:
            if shard.is_open:
                shard.listen(heard)

    def notify(self, *, work: bool = False, mail: bool = False, runs: Iterable[str] = ()) -> None:
        if self._opened is None:
            return
        groups = self._fan.split(runs, str)
        present = [place for place, reach in enumerate(self._fan.reaches) if not reach.absence]
        if (work or mail) and present and not any(place in groups for place in present):
            groups[present[0]] = []  # all listen to all: one is enough
        for place in present:
            if place in groups:
                self._fan.shards[place].notify(work=work, mail=mail, runs=groups[place])

    def _delivered(self) -> None:
        """The courier brought messages: others hear of it, and so does this process."""
        self.notify(mail=True)
        for heard in self._heard:
            heard(Notice(False, frozenset(), True))

    @property
    def poll_seconds(self) -> float:
        return self._given[0].poll_seconds


def _closed() -> StorageError:
    return StorageError("the store is not open; await store.open() first")


def _run_of(parcel: Parcel) -> str:
    """A run of the shard that the parcel is for."""
    if parcel.records:
        return parcel.records[0].run_id
    return parcel.answers[0].message.run_id if parcel.answers else parcel.messages[0].run_id
