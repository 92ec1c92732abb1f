"""Sessions with the server: opened, set up, checked, shared and closed.

Law: no session is used that leads to another store, or to an older state of it, than this process has seen: system, timeline, store and
generation are compared on each new session, and the older primary is passed over for the newer. A COMMIT whose wait for its standby was
cancelled is not an answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any

import psycopg
from psycopg.errors import Diagnostic
from psycopg.pq import ConnStatus, TransactionStatus

from durable.config import PostgresSettings
from durable.errors import (
    ConfigError,
    RepositoryUnavailableError,
    StorageError,
    StoreMismatchError,
)
from durable.store.postgres.address import place_of, targets
from durable.store.postgres.failures import Place, translate, unreachable
from durable.store.postgres.migrations import statement
from durable.store.postgres.origin import Origin, less

_SET_UP = """
    SELECT set_config('statement_timeout', %(statement)s, false), set_config('lock_timeout', %(statement)s, false),
        set_config('idle_in_transaction_session_timeout', %(idle)s, false), set_config('TimeZone', 'UTC', false),
        set_config('default_transaction_isolation', 'read committed', false),
        set_config('synchronous_commit',
            CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)
"""
# A managed server may not allow these, and one that only speaks like PostgreSQL may not have them.
_RIGHTS = """
    SELECT pg_is_in_recovery(), has_function_privilege(to_regprocedure('pg_control_system()'), 'EXECUTE'),
        has_function_privilege(to_regprocedure('pg_walfile_name(pg_lsn)'), 'EXECUTE')
"""
_SYSTEM = "SELECT system_identifier FROM pg_control_system()"
# Not pg_control_checkpoint(): that names the old timeline until the first checkpoint after a promotion.
_TIMELINE = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"
_META = """
    SELECT max(value) FILTER (WHERE key = 'store_id'), max(value) FILTER (WHERE key = 'generation')::bigint FROM {schema}.meta
"""
_NEXT_GENERATION = "UPDATE {schema}.meta SET value = (value::bigint + 1)::text WHERE key = 'generation'"
_MAY_WRITE = "SELECT has_table_privilege(%s, 'UPDATE')"

_LEFT_OPEN = {TransactionStatus.INTRANS, TransactionStatus.INERROR}


class Session(psycopg.AsyncConnection[Any]):
    """A connection, and which state of the store it leads to."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.origin = Origin()
        self.answer_seconds: float | None = None
        self._doubted = False
        self.add_notice_handler(self._noticed)

    @asynccontextmanager
    async def answered(self) -> AsyncIterator[None]:
        """Around what commits: a COMMIT, or a statement in autocommit. Raises `RepositoryUnavailableError` where it came back without
        the standby's answer, or not at all within twice `postgres.statement_seconds`: what became of it is then not known."""
        self._doubted = False
        try:
            # The server's own time-out does not run while it waits for a standby, nor in a server that hangs.
            async with asyncio.timeout(self.answer_seconds):
                yield
        except TimeoutError:
            self._doubted = True
        if self.doubted():
            raise RepositoryUnavailableError(
                "a COMMIT had no answer from the standby: the wait for it was cancelled, or took longer than twice "
                "postgres.statement_seconds; what became of it is not known"
            )

    def doubted(self) -> bool:
        """Whether a COMMIT since the last question did not wait for its standby, as `answered` asks for itself."""
        doubted, self._doubted = self._doubted, False
        return doubted

    def _noticed(self, notice: Diagnostic) -> None:
        # The function's name is never translated, unlike the message.
        if notice.source_function == "SyncRepWaitForLSN" or "synchronous replication" in (notice.message_primary or ""):
            self._doubted = True


class Sessions:
    """The sessions of one process with one store.

    Arguments:
        url: a URL or DSN of libpq; with several hosts, the primary among them is found, and found again after a failover.
        settings: times, the most connections, the schema.
    """

    def __init__(self, url: str, settings: PostgresSettings) -> None:
        self._settings = settings
        self._targets = targets(url, settings)
        self._place = place_of(self._targets, settings)
        self._seen = Origin()
        self._bound = False
        self._may_write = False
        self._opening = True
        self._closed = True
        self._idle: list[Session] = []
        self._free = asyncio.Semaphore(settings.connections_max)

    @property
    def place(self) -> Place:
        """Where the store is, for messages."""
        return self._place

    # -- the life

    async def open(self) -> None:
        """Connect, to every host that there is, and remember the newest primary.

        Raises `ConfigError` for what the address has wrong, `RepositoryUnavailableError` for a server that cannot be reached, and
        `StorageError` for one that is a standby.
        """
        self._opening, self._bound = True, False
        results = await asyncio.gather(*map(self._connect, self._targets), return_exceptions=True)
        self._opening = False
        self._idle = [result for result in results if isinstance(result, Session)]
        failures = [result for result in results if isinstance(result, BaseException)]
        expected = [failure for failure in failures if isinstance(failure, StorageError | ConfigError)]
        await self._drop([session for session in self._idle if self._is_stale(session)])
        if not self._idle or len(expected) < len(failures):
            await self.close()
            raise next((failure for failure in failures if failure not in expected), None) or _most_telling(expected)
        info = self._idle[0].info
        self._place = self._place._replace(user=info.user, database=info.dbname)
        self._closed = False

    async def bind(self) -> str:
        """Hold each session to the store's id and generation from now on; the tables are there. Returns the id."""
        async with self.connection() as session:
            with self.translated():
                table = statement("{schema}.meta", self._settings.schema).decode()
                row = await (await session.execute(_MAY_WRITE, (table,))).fetchone()
                self._may_write = bool(row and row[0])
                self._bound = True
                before = self._seen
                if self._may_write:
                    await session.execute(self._sql(_NEXT_GENERATION))
                await self._admit(session, before)
        if self._seen.store_id is None:
            raise StoreMismatchError(
                f"{self._place}: the table `meta` of schema {self._settings.schema!r} has no store_id"
            )
        return self._seen.store_id

    async def close(self) -> None:
        """Close all sessions; those in use when they are given back."""
        self._closed = True
        await self._drop(list(self._idle))

    # -- sessions

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Session]:
        """A session of the pool, in autocommit; rolled back if a transaction is left open in it.

        Raises `RepositoryUnavailableError` if none can be had, `StoreMismatchError` if only older states can be reached. Errors of
        what is done in it pass as they are: see `translated`.
        """
        session = await self._take()
        try:
            yield session
        finally:
            await self._give_back(session)

    async def dedicated(self) -> Session:
        """A session beside the pool, in autocommit, to be closed by the caller. Raises as `connection`."""
        failures = []
        for target in list(self._targets):
            try:
                session = await self._connect(target)
            except (StorageError, ConfigError) as error:
                failures.append(error)
                continue
            self._targets.remove(target)  # the next attempt begins with what worked last
            self._targets.insert(0, target)
            return session
        raise _most_telling(failures)

    def check(self, session: Session) -> None:
        """Raise `StoreMismatchError` if a newer primary was seen since this session began; asks nobody."""
        if self._is_stale(session):
            session.origin.require_recent(Origin(timeline=self._seen.timeline), self._at(session))

    # -- errors

    def translate(self, error: BaseException) -> StorageError | ConfigError:
        """What to raise for an error that came up in a session."""
        return translate(error, self._place)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise durable's errors for those of psycopg and the network; `with`, also around what is awaited."""
        try:
            yield
        except (psycopg.Error, OSError) as error:
            # Not `from error`: its detail may quote rows.
            raise self.translate(error) from None

    # -- inside: the pool

    async def _take(self) -> Session:
        if self._closed:
            raise StorageError(f"{self._place} is not open")
        try:
            async with asyncio.timeout(self._settings.connect_seconds):
                await self._free.acquire()
        except TimeoutError:
            raise RepositoryUnavailableError(
                f"all {self._settings.connections_max} connections to {self._place} were in use for "
                f"{self._settings.connect_seconds:g} s: raise postgres.connections_max, or hold them for less time"
            ) from None
        try:
            while self._idle:
                session = self._idle.pop()
                if _is_alive(session) and not self._is_stale(session):
                    return session
                await session.close()
            return await self.dedicated()
        except BaseException:
            self._free.release()
            raise

    async def _give_back(self, session: Session) -> None:
        try:
            if session.info.transaction_status in _LEFT_OPEN:
                with suppress(psycopg.Error):
                    await session.rollback()
        finally:
            self._free.release()
            if self._closed or session.info.transaction_status != TransactionStatus.IDLE:
                await session.close()
            else:
                self._idle.append(session)

    async def _drop(self, sessions: list[Session]) -> None:
        for session in sessions:
            self._idle.remove(session)
            await session.close()

    # -- inside: a new session

    async def _connect(self, target: dict[str, Any]) -> Session:
        session: Session | None = None
        before = self._seen
        # Prepared statements do not survive a pooler of transactions, for which `poll` is.
        prepare = 5 if self._settings.notify == "listen" else None
        try:
            async with asyncio.timeout(self._settings.connect_seconds):
                session = await Session.connect(autocommit=True, prepare_threshold=prepare, **target)
                session.answer_seconds = 2 * self._settings.statement_seconds
                milliseconds = {
                    "statement": f"{math.ceil(self._settings.statement_seconds * 1000)}ms",
                    "idle": f"{math.ceil(self._settings.idle_seconds * 1000)}ms",
                }
                await session.execute(_SET_UP, milliseconds)
                await self._admit(session, before)
        except BaseException as error:
            if session is not None:
                await session.close()
            if not isinstance(error, psycopg.Error | OSError | StorageError):
                raise
            raise unreachable(error, place_of([target], self._settings), opening=self._opening) from None
        return session

    async def _admit(self, session: Session, before: Origin) -> None:
        """Let a session in, or raise.

        Arguments:
            before: what had been seen when the session began: others may have seen newer states since, which is no fault of this one.
        """
        found = await self._server(session)
        self._compare(session, found, before)
        if self._bound:
            store_id, generation = await _row(session, self._sql(_META))
            found = replace(found, store_id=store_id, generation=generation)
            self._compare(session, found, before)
        if self._bound and self._may_write and less(self._seen.timeline, found.timeline):
            await session.execute(self._sql(_NEXT_GENERATION))
        self._seen = found.newest(self._seen)
        session.origin = found
        self.check(session)

    async def _server(self, session: Session) -> Origin:
        standby, may_system, may_timeline = await _row(session, _RIGHTS)
        if standby:
            message = (
                f"{self._at(session)} is a standby (in recovery), where nothing can be written: name the primary in the address, or "
                "all hosts, as in postgresql://USER@HOST1,HOST2/DATABASE"
            )
            raise StorageError(message) if self._opening else RepositoryUnavailableError(message)
        system = str((await _row(session, _SYSTEM))[0]) if may_system else None
        timeline = int((await _row(session, _TIMELINE))[0], 16) if may_timeline else None
        return Origin(system=system, timeline=timeline)

    def _compare(self, session: Session, found: Origin, before: Origin) -> None:
        found.require_same(self._seen, self._at(session))
        found.require_recent(before, self._at(session))

    def _at(self, session: Session) -> Place:
        return place_of([session.info.get_parameters()], self._settings)

    def _is_stale(self, session: Session) -> bool:
        return less(session.origin.timeline, self._seen.timeline)

    def _sql(self, text: str) -> bytes:
        return statement(text, self._settings.schema)


def _most_telling(failures: list[StorageError | ConfigError]) -> StorageError | ConfigError:
    """One error for several hosts: as long as one of them may come back, trying again may help."""
    first = min(failures, key=lambda failure: (not failure.retryable, not isinstance(failure, ConfigError)))
    return first if len(failures) == 1 else type(first)("; ".join(str(failure) for failure in failures))


def _is_alive(session: Session) -> bool:
    """Whether the server has not ended it meanwhile, as far as this side knows without asking."""
    if session.closed:
        return False
    with suppress(psycopg.Error):
        session.pgconn.consume_input()
        session.pgconn.consume_input()  # the first may have read the server's last words: then this one finds the end
        return session.pgconn.status == ConnStatus.OK
    return False


async def _row(session: Session, query: str | bytes) -> tuple[Any, ...]:
    row = await (await session.execute(query.encode() if isinstance(query, str) else query)).fetchone()
    assert row is not None
    return tuple(row)
