"""Writing in a transaction of another connection: that of a step, which is committed, or that of a caller, which stays open.

Law: what was written beside the records is there if they are, and only then. A COMMIT that was not answered is looked for before anything
is said of it.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from durable.errors import DurableError, RepositoryUnavailableError
from durable.store.postgres.bundle import Bundle
from durable.store.postgres.columns import Texts, escape
from durable.store.postgres.facts import Asking, Facts
from durable.store.postgres.recent import Recent
from durable.store.postgres.session import Session
from durable.store.postgres.statements import Statements
from durable.store.postgres.writer import RefusedError, UntakenError, Writer, contended
from durable.store.shared import Parcel

Connection = AsyncConnection[Any]


class Apart:
    """See the module.

    Arguments:
        writer: the store's own connection, on which it is looked.
        statements: what is said.
        recent: runs as last seen.
    """

    def __init__(self, writer: Writer, statements: Statements, recent: Recent) -> None:
        self._writer = writer
        self._statements = statements
        self._recent = recent

    async def write(self, parcel: Parcel, executor: str | None) -> DurableError | None:
        """Write a parcel in the transaction of its connection, and commit it; or say why not, and roll it back."""
        connection: Connection = parcel.connection
        try:
            is_open = not connection.closed and connection.info.transaction_status == TransactionStatus.INTRANS
            bundle = Bundle(self._recent.runs, None, executor)
            if not is_open or bundle.add(parcel) is not None:
                facts = await self._facts(parcel)
                if facts.written(parcel):
                    return None
                bundle = Bundle({}, facts, executor)
                refusal = bundle.add(parcel)
                if refusal is not None:
                    return refusal
            if not is_open:
                return RepositoryUnavailableError(
                    "the transaction in which this was to be written has ended: begin it anew"
                )
            return await self._commit(connection, bundle, parcel)
        finally:
            if not connection.closed and connection.info.transaction_status != TransactionStatus.IDLE:
                with suppress(psycopg.Error):
                    await connection.rollback()

    async def _commit(self, connection: Connection, bundle: Bundle, parcel: Parcel) -> DurableError | None:
        self._recent.mine.update(bundle.owned())
        try:
            batch = await self._writer.say(connection, bundle, prepare=False)
        except RefusedError:
            facts = await self._facts(parcel)
            return None if facts.written(parcel) else Bundle({}, facts, None).add(parcel) or contended()
        except UntakenError as error:
            return error.reason
        except (psycopg.Error, OSError) as error:
            return self._writer.failed(error)  # COMMIT was not said: nothing of it is written
        try:
            async with connection.answered() if isinstance(connection, Session) else nullcontext():
                await connection.execute("COMMIT")
        except (psycopg.Error, OSError) as error:
            return await self._settle(parcel, error)
        except RepositoryUnavailableError as error:
            self._writer.unproven = True
            return await self._settle(parcel, error)
        bundle.number(batch)
        for change in bundle.changes.values():
            self._recent.wrote(change.run, change.known_epoch)
        return None

    async def _settle(self, parcel: Parcel, error: Exception) -> DurableError | None:
        """Find out what became of a transaction whose COMMIT was not answered."""
        session = await self._writer.session()
        ids = Texts([escape(record.run_id) for record in parcel.records])
        try:
            # It has changed these runs: this waits until it has ended, if it is still at work.
            await session.execute(self._statements.SETTLE, (ids,))
        except (psycopg.Error, OSError) as failure:
            raise self._writer.failed(failure) from None
        return None if (await self._facts(parcel)).written(parcel) else self._writer.failed(error)

    async def _facts(self, parcel: Parcel) -> Facts:
        self._recent.forget(record.run_id for record in parcel.records)
        return await self._writer.facts(await self._writer.session(), [parcel])

    async def create_on(self, connection: Connection, parcel: Parcel) -> None:
        """Write creations in a transaction that stays open. Who holds the runs is decided when they are there for others."""
        bundle = Bundle({}, None, None)
        refusal = bundle.add(parcel)
        if refusal is None:
            try:
                async with (
                    connection.transaction()
                ):  # a savepoint, so that a refusal does not end the caller's transaction
                    await self._writer.say(connection, bundle, prepare=False)
                    return
            except RefusedError:
                facts = await Asking(connection, self._statements).facts([parcel])
                refusal = Bundle({}, facts, None).add(parcel) or contended()
            except UntakenError as error:
                refusal = error.reason
            except (psycopg.Error, OSError) as error:
                refusal = self._writer.failed(error)
        raise refusal
