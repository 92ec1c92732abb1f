"""The writer: the one connection on which a store writes, and what the database says there.

Law: no statement is said twice. A session that leads to an older state of the store than was seen is not written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncRawCursor, errors
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from durable.errors import RepositoryUnavailableError, StorageError, StoreMismatchError
from durable.store.postgres.bundle import Bundle
from durable.store.postgres.columns import register
from durable.store.postgres.facts import Asking, Facts
from durable.store.postgres.session import Session, Sessions
from durable.store.postgres.statements import Statements
from durable.store.shared import Parcel

#: A plan that holds whatever the tables grow to, made once: each row is found by its key. And nobody's open transaction, such as
#: one that has created a run with the same key, holds up all others for long.
_SETTINGS = """
    SELECT set_config(name, value, false) FROM (VALUES ('plan_cache_mode', 'force_generic_plan'), ('enable_seqscan', 'off'),
        ('enable_hashjoin', 'off'), ('enable_mergejoin', 'off'), ('jit', 'off'), ('lock_timeout', '1s')) AS wanted (name, value)
"""
#: What the database says where a bundle does not fit: the guard; a record or a mark is there; two writes waited for each other.
_MISFITS = (errors.DivisionByZero, errors.UniqueViolation, errors.DeadlockDetected, errors.SerializationFailure)
#: What it says of values that it does not take, by the class of the SQLSTATE.
_UNTAKEN = ("22", "23", "54")
_DOUBTED = "a COMMIT did not wait for its standby, since the wait was cancelled: what became of it is not known"


class RefusedError(Exception):
    """The database took nothing of a bundle: a run or a message is not as expected."""


class UntakenError(Exception):
    """The database took nothing of a bundle: something in it cannot be stored, or is held up.

    Arguments:
        reason: what to raise.
        for_now: whether it may be stored later.
    """

    def __init__(self, reason: StorageError, *, for_now: bool) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.for_now = for_now


class Writer:
    """See the module.

    Arguments:
        sessions: where the connection comes from.
        statements: what is said.
    """

    def __init__(self, sessions: Sessions, statements: Statements) -> None:
        self._sessions = sessions
        self._statements = statements
        self._session: Session | None = None
        #: Whether something is committed of which no standby may know.
        self.unproven = False
        #: Why the last write failed; empty when it did not.
        self.trouble = ""

    async def session(self) -> Session:
        """The connection, made anew where it was lost or leads to an old primary."""
        if self._session is not None:
            try:
                self._sessions.check(self._session)
            except StoreMismatchError:
                await self.close()
        if self._session is None or self._session.closed:
            self._session = None
            session = await self._sessions.dedicated()
            if session.prepare_threshold is not None:  # else it is shared with others, through a pooler
                with self._sessions.translated():
                    await session.execute(_SETTINGS)
            self._session = session
        return self._session

    async def close(self) -> None:
        """Let go of the connection."""
        session, self._session = self._session, None
        if session is not None:
            with suppress(psycopg.Error):
                await session.close()

    async def execute(self, session: Session, bundle: Bundle) -> int:
        """Write a bundle; returns the batch of its first parcel. Raises `RefusedError`, `UntakenError`, and durable's errors
        where what became of it is not known."""
        try:
            async with session.answered():
                batch = await self.say(session, bundle, prepare=True)
        except RepositoryUnavailableError:
            self.unproven = True
            raise
        except (psycopg.Error, OSError) as error:
            raise self.failed(error) from None
        finally:
            if not session.closed and session.info.transaction_status != TransactionStatus.IDLE:
                await self.close()  # cancelled at work: what follows must not wait behind it
        self.trouble = ""
        return batch

    async def say(self, connection: AsyncConnection[Any], bundle: Bundle, *, prepare: bool) -> int:
        """Write a bundle on a connection, which may be somebody else's. Raises also psycopg's errors as they come."""
        variant = bundle.variant()
        cursor = AsyncRawCursor(connection, row_factory=tuple_row)
        if not prepare:
            register(cursor.adapters)
        try:
            await cursor.execute(self._statements.write(variant), bundle.values(variant), prepare=prepare, binary=True)
        except _MISFITS as error:
            raise RefusedError from error
        except errors.LockNotAvailable as error:
            raise UntakenError(self.failed(error), for_now=True) from None
        except psycopg.Error as error:
            if (error.sqlstate or "")[:2] in _UNTAKEN:
                raise UntakenError(self.failed(error), for_now=False) from None
            raise
        row = await cursor.fetchone()
        assert row is not None
        batch: int = row[0]
        return batch

    async def facts(self, session: Session, parcels: Sequence[Parcel]) -> Facts:
        """How what these parcels concern is; what is there is on the standby, too."""
        try:
            if self.unproven:
                await session.execute(self._statements.PROVE)
                if session.doubted():
                    raise RepositoryUnavailableError(_DOUBTED)
                self.unproven = False
            return await Asking(session, self._statements).facts(parcels)
        except (psycopg.Error, OSError) as error:
            raise self.failed(error) from None

    def failed(self, error: BaseException) -> StorageError:
        """What to raise for an error that came up here."""
        translated = self._sessions.translate(error)
        self.trouble = str(translated)
        return translated if isinstance(translated, StorageError) else StorageError(str(translated))


def contended() -> RepositoryUnavailableError:
    """The error for a write that others were always quicker than."""
    return RepositoryUnavailableError("others change the same runs all the time; nothing was written; try again")
