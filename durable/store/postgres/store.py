"""The store in PostgreSQL: the table is the log; what is acknowledged is committed.

Law: it is put together here, and what it does is done in the modules that it is put together of.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, cast

import psycopg
from psycopg import AsyncConnection, AsyncCursor, errors
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from durable.clock import SYSTEM_CLOCK, SYSTEM_ENTROPY, Clock, Entropy
from durable.config import PostgresSettings
from durable.core.messages import Answer, Message
from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run
from durable.errors import ConfigError, DurableError, RepositoryUnavailableError, StorageError
from durable.store.base import StoreHealth, Unit
from durable.store.postgres.apart import Apart
from durable.store.postgres.claims import Claims
from durable.store.postgres.ledger import Ledger
from durable.store.postgres.migrations import migrate, verify
from durable.store.postgres.notices import Notices
from durable.store.postgres.pruning import Pruning, Watched
from durable.store.postgres.queries import Queries
from durable.store.postgres.recent import Recent
from durable.store.postgres.session import Sessions
from durable.store.postgres.shards.membership import Membership
from durable.store.postgres.shards.store import ShardedStore
from durable.store.postgres.statements import Statements
from durable.store.postgres.writer import Writer
from durable.store.postgres.writes import Writes
from durable.store.shared import (
    Claimed,
    Executor,
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

#: Connections of the pool that are lent to nobody, where there are more.
OWN_CONNECTIONS = 2


class PostgresStore:
    """See `durable.store.shared.SharedStore`.

    Arguments:
        url: of the database: a URL or DSN as libpq takes it. One with several hosts is one store, and these its primary and standbys.
        settings: see there.
        urls: of several databases, in place of `url`: each is a shard, and has the families that fall to it. In any order, but all
            of them, always. What is made is then a `ShardedStore`.
        entropy: where tokens and the ids of executors come from.
        clock: on which this process counts its lease.
    """

    def __new__(
        cls,
        url: str | None = None,
        settings: PostgresSettings = PostgresSettings(),
        *,
        urls: Sequence[str] = (),
        **rest: Any,
    ) -> Self:
        if url is not None and urls:
            raise ConfigError(
                "PostgresStore(): give the url of one database, or the urls of several, not both", key="urls"
            )
        if len(urls) < 2:
            return super().__new__(cls)
        shards = [cls(each, settings, **rest) for each in urls]
        # It can all that a `PostgresStore` can, and is none: nothing of what that one does itself is left for it to do.
        made: SharedStore = ShardedStore(shards, entropy=rest.get("entropy", SYSTEM_ENTROPY))
        return cast(Self, made)

    def __init__(
        self,
        url: str | None = None,
        settings: PostgresSettings = PostgresSettings(),
        *,
        urls: Sequence[str] = (),
        entropy: Entropy = SYSTEM_ENTROPY,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        url = next(iter(urls), url)
        if url is None:
            raise ConfigError("PostgresStore(): give the url of a database, or the urls of several", key="urls")
        self._settings = settings
        self._entropy = entropy
        self._sessions = sessions = Sessions(url, settings)
        self._statements = statements = Statements(settings.schema)
        recent = Recent()
        self._queries = Queries(sessions, statements, recent)
        self._pruning = Pruning(self._queries, statements, recent)
        self._writer = Writer(sessions, statements)
        self._writes = Writes(self._writer, statements, recent, entropy)
        self._apart = Apart(self._writer, statements, recent)
        self._claims = Claims(self._queries, statements, recent, settings=settings, clock=clock, entropy=entropy)
        self._recent = recent
        #: What all processes count together.
        self.ledger = Ledger(self._queries, statements, settings=settings, clock=clock)
        #: What it does as one of several shards.
        self.membership = Membership(sessions, self._queries, statements)
        #: Why it is not open yet, where it will be as soon as its database can be reached; else empty.
        self.absence = ""
        #: Transactions of steps may last; the lease is renewed, and runs are claimed, on the rest.
        self._lendable = asyncio.Semaphore(max(settings.connections_max - OWN_CONNECTIONS, 1))
        self._notices: Notices | None = None
        self._store_id: str | None = None
        self._opened = False

    @property
    def store_id(self) -> str:
        if self._store_id is None:
            raise self._closed()
        return self._store_id

    @property
    def place(self) -> str:
        """Where the store is, for messages."""
        return f"{self._sessions.place}, schema {self._settings.schema!r}"

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._opened

    # -- opening and closing

    async def open(self) -> None:
        await self.connect()
        try:
            await self.membership.require_alone()
        except BaseException:
            await self.close()
            raise

    async def connect(self) -> None:
        """The same as `open`, whether it is alone or one of several shards."""
        if self._opened:
            raise StorageError(f"the store in {self._sessions.place} is open already")
        await self._sessions.open()
        try:
            async with self._sessions.connection() as session:
                with self._sessions.translated():
                    bring = migrate if self._settings.migrate else verify
                    await bring(session, self._settings.schema)
            self._store_id = await self._sessions.bind()
            await self._writer.session()
        except BaseException:
            await self._sessions.close()
            raise
        self._notices = Notices(self._sessions, self._settings.schema, self._entropy.token_bytes(8).hex())
        self._opened, self.absence = True, ""

    async def close(self) -> None:
        self._opened, self.absence = False, ""
        notices, self._notices = self._notices, None
        if notices is not None:
            await notices.close()
        await self._writes.close()
        await self._sessions.close()
        self._recent.runs.clear()

    # -- committing

    async def commit(self, units: Sequence[Unit]) -> None:
        self._check()
        await self._writes.commit(units)

    async def check(self, units: Sequence[Unit]) -> None:
        """Raise what `commit` would refuse these units with, as things are now."""
        self._check()
        await self._writes.check(units)

    def admit(self) -> None:
        self._check()

    async def write(self, parcels: Sequence[Parcel]) -> list[DurableError | None]:
        self._check()
        return await self._writes.write(parcels)

    async def create_on(self, connection: Any, parcel: Parcel) -> None:
        self._check()
        await self._refuse_elsewhere(connection)
        await self._apart.create_on(connection, parcel)

    @asynccontextmanager
    async def borrow(self, run_id: str = "") -> AsyncIterator[Any]:
        self._check()
        async with self._lendable, self._sessions.connection() as session:
            with self._sessions.translated():
                await session.execute("BEGIN")
            try:
                yield session
            finally:
                if session.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                    with suppress(psycopg.Error):
                        await session.rollback()

    async def _refuse_elsewhere(self, connection: Any) -> None:
        """Raise `ConfigError` unless this is a connection with a transaction, to this very store."""
        if not isinstance(connection, AsyncConnection):
            raise ConfigError(
                f"connection is a {type(connection).__qualname__}, but must be a psycopg.AsyncConnection",
                key="connection",
            )
        if connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
            raise ConfigError(
                "connection is in autocommit and has no transaction open; begin one with `async with connection.transaction()`",
                key="connection",
            )
        found = None
        try:
            await connection.execute(
                "SELECT 1"
            )  # begins the caller's transaction, else the next line would begin and end it
            async with connection.transaction():
                cursor = AsyncCursor(connection, row_factory=tuple_row)
                row = await (await cursor.execute(self._statements.STORE_ID)).fetchone()
                found = row[0] if row else None
        except (errors.UndefinedTable, errors.InvalidSchemaName, errors.InsufficientPrivilege):
            found = None
        except (psycopg.Error, OSError) as error:
            raise self._sessions.translate(error) from None
        if found != self._store_id:
            raise ConfigError(
                f"connection does not lead to this store in {self._sessions.place}, schema {self._settings.schema!r}: "
                "what is written there would not be committed here",
                key="connection",
            )

    # -- answering

    async def find(self, run_id: str) -> Run | None:
        self._check()
        return await self._queries.find(run_id)

    async def find_key(self, user: str | None, key: str) -> Run | None:
        self._check()
        return await self._queries.find_key(user, key)

    async def history(self, run_id: str, after: int = 0, limit: int | None = None) -> list[Record]:
        self._check()
        return await self._queries.history(run_id, after, limit)

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        self._check()
        return await self._queries.histories(run_ids)

    async def query(self, wanted: RunFilter) -> list[Run]:
        self._check()
        return await self._queries.query(wanted)

    async def count(self, wanted: RunFilter) -> int:
        self._check()
        return await self._queries.count(wanted)

    async def prune(self, before: float, limit: int, watched: Watched | None = None) -> int:
        self._check()
        return await self._pruning.prune(before, limit, watched)

    async def next_due(self, after: float) -> float | None:
        self._check()
        return await self._queries.next_due(after)

    def health(self) -> StoreHealth:
        if not self._opened:
            return StoreHealth(state="failed", detail="the store is not open")
        trouble = self._writer.trouble
        return StoreHealth(state="degraded", detail=trouble) if trouble else StoreHealth()

    # -- holding runs

    @property
    def shards(self) -> Sequence[SharedStore]:
        return (self,)

    def shard_of(self, run_id: str) -> int:
        return 0

    def family(self) -> str | None:
        return None

    @property
    def executor_id(self) -> str:
        return self._claims.executor_id

    async def read(self, run_ids: Sequence[str]) -> dict[str, Held]:
        self._check()
        return await self._queries.read(run_ids)

    async def claim(self, known: Sequence[Known], limit: int, now: float, users: UserBounds | None = None) -> Claimed:
        self._check()
        return await self._claims.claim(known, limit, now, users)

    async def take(self, run_ids: Sequence[str]) -> list[Held]:
        self._check()
        return await self._claims.take(run_ids)

    async def release(self, held: Iterable[tuple[str, int]]) -> None:
        self._check()
        await self._claims.release(held)

    async def mail(self, known: Sequence[Known], limit: int) -> list[Message]:
        self._check()
        return await self._claims.mail(known, limit)

    async def answer(self, token: str) -> Answer | None:
        self._check()
        return await self._claims.answer(token)

    async def placement(self, run_id: str) -> Placement | None:
        self._check()
        return await self._claims.placement(run_id)

    async def executors(self) -> list[Executor]:
        """The executors that there are, those whose lease has passed among them until they are swept."""
        self._check()
        return await self._claims.executors()

    # -- limits of all processes together

    async def let_in(self, asked: Sequence[StartAsked], bounds: StartBounds) -> list[StartRefused | None]:
        self._check()
        return await self.ledger.let_in(asked, bounds)

    async def take_places(self, wanted: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        self._check()
        return await self.ledger.places.take(self.executor_id, wanted)

    async def give_places(self, given: Mapping[str, int]) -> None:
        self._check()
        if await self.ledger.places.give(self.executor_id, given):
            self.notify(work=True)

    # -- the lease

    async def enroll(self, known: Sequence[Known]) -> None:
        self._check()
        await self._claims.enroll(known)
        self._writes.executor = self._claims.executor_id

    async def renew(self, known: Sequence[Known]) -> None:
        self._check()
        await self._claims.renew(known)

    async def sweep(self) -> int:
        self._check()
        return await self._claims.sweep()

    async def leave(self) -> None:
        self._check()
        self._writes.executor = None
        await self._claims.leave()

    @property
    def lease_left(self) -> float:
        return self._claims.lease_left

    @property
    def lease_seconds(self) -> float:
        return self._settings.lease_seconds

    # -- notices

    def listen(self, heard: Callable[[Notice], None]) -> None:
        self._check()
        if self._notices is not None and self._settings.notify == "listen":
            self._notices.listen(heard)

    def notify(self, *, work: bool = False, mail: bool = False, runs: Iterable[str] = ()) -> None:
        if self._notices is not None and self._settings.notify == "listen":
            self._notices.notify(work=work, mail=mail, runs=runs)

    @property
    def poll_seconds(self) -> float:
        return self._settings.poll_seconds

    def _check(self) -> None:
        if not self._opened:
            raise RepositoryUnavailableError(self.absence) if self.absence else self._closed()

    def _closed(self) -> StorageError:
        return StorageError(f"the store in {self._sessions.place} is not open; await store.open() first")
