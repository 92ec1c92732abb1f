"""The repository in one SQLite file.

Law: one connection writes and checkpoints; all others are query-only and never checkpoint (so the WAL-reset bug of SQLite before
3.51.3 cannot be met). WAL and synchronous=FULL are read back after they are set. A batch and its position are one transaction.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Collection, Container, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from threading import Thread
from typing import Any
from urllib.parse import quote

import aiosqlite

from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run
from durable.core.wire import decode_record
from durable.errors import (
    DecodeError,
    RepositoryUnavailableError,
    StorageError,
    StoreFormatError,
    StoreMismatchError,
)
from durable.repository import pruning, statements
from durable.repository.base import RecordRefusedError, RepositoryState
from durable.repository.projection import RecordRow, RunRow, read_history, run_of, text

SCHEMA_VERSION = 3
MIGRATIONS = {1: "0001_initial.sql", 2: "0002_due.sql", 3: "0003_closed.sql"}
#: Most rows that are fetched and decoded in one turn of the event loop (about 3 ms).
SLICE_ROWS = 200
#: Most ids in one `IN (...)`.
IDS_MAX = 500

_REFUSALS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, OverflowError, UnicodeEncodeError)
_BROKEN = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class SqliteRepository:
    """See `durable.repository.base.Repository`.

    Arguments:
        path: the database file; made, with mode 0600, by `initialize`.
        busy_timeout_seconds: how long to wait for a lock that another process (a backup, a shell) holds.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout_seconds: float = 10.0) -> None:
        self._path = os.path.abspath(os.fspath(path))
        self._busy_timeout_seconds = busy_timeout_seconds
        self._writer: aiosqlite.Connection | None = None
        #: One for lookups and one for queries that may take long, so that these do not hold up those.
        self._lookups: aiosqlite.Connection | None = None
        self._scans: aiosqlite.Connection | None = None
        self._empty = False
        self._schema = SCHEMA_VERSION
        #: Held by who has a transaction on the writer.
        self._turn = asyncio.Lock()

    # -- opening

    async def peek(self) -> RepositoryState:
        self._empty = self._is_empty()
        if self._empty:
            return RepositoryState(None, None)
        async with self._guarded():
            self._lookups = self._scans = connection = await self._connect(self._reading_uri())
            await connection.execute("PRAGMA query_only = ON")
            return await self._state(connection, read_only=True)

    async def initialize(self) -> RepositoryState:
        await self.close()
        self._empty = False
        os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
        await self._refuse_newer()
        async with self._guarded():
            self._create_file()
            uri = f"file:{quote(self._path)}?mode=rw"
            self._writer = writer = await self._connect(uri)
            await self._set(writer, "journal_mode", "WAL", "wal")
            await self._set(writer, "synchronous", "FULL", 2)
            await writer.execute("PRAGMA trusted_schema = OFF")
            state = await self._migrate(writer)
            self._lookups, self._scans = await self._reader(uri), await self._reader(uri)
            return state

    async def adopt(self, store_id: str) -> None:
        writer = self._writing()
        async with self._guarded(), _transaction(writer):
            cursor = await writer.execute(statements.ADOPT, (store_id,))
            if cursor.rowcount != 1:
                raise StoreMismatchError(
                    f"{self._path} belongs to a store already; it cannot be given to store {store_id}"
                )

    async def close(self) -> None:
        readers = {self._lookups, self._scans}
        writer, self._writer, self._lookups, self._scans = self._writer, None, None, None
        # The writer last: the last one to leave checkpoints and removes the WAL.
        for connection in (*readers, writer):
            if connection is not None:
                with suppress(sqlite3.Error):
                    await connection.close()

    def _is_empty(self) -> bool:
        return not os.path.exists(self._path) or not os.path.getsize(self._path)

    def _reading_uri(self) -> str:
        uri = f"file:{quote(self._path)}?mode=ro"
        # Without a WAL file nobody writes and all is in the one file: `immutable` keeps SQLite from making a WAL only to read.
        # With one, `readonly_shm` keeps it from changing the index that it shares with the writer; where there is a WAL and no
        # index (a copy of a store that was not closed), SQLite has to make one, and touches nothing else.
        if not os.path.exists(f"{self._path}-wal"):
            return f"{uri}&immutable=1"
        return f"{uri}&readonly_shm=1" if os.path.exists(f"{self._path}-shm") else uri

    async def _connect(self, uri: str) -> aiosqlite.Connection:
        connection = aiosqlite.connect(uri, uri=True, isolation_level=None, timeout=self._busy_timeout_seconds)
        # A process that ends without `close` must not hang on this thread: the log has everything. (Before 0.22 a connection was one.)
        thread = getattr(connection, "_thread", connection)
        if isinstance(thread, Thread):
            thread.daemon = True
        return await connection

    async def _reader(self, uri: str) -> aiosqlite.Connection:
        reader = await self._connect(uri)
        await reader.execute("PRAGMA query_only = ON")
        await reader.execute("PRAGMA wal_autocheckpoint = 0")
        return reader

    async def _set(self, connection: aiosqlite.Connection, name: str, wanted: str, expected: object) -> None:
        await connection.execute(f"PRAGMA {name} = {wanted}")
        found = (await _rows(connection, f"PRAGMA {name}"))[0][0]
        if found != expected:
            raise StorageError(
                f"{self._path}: SQLite answers {name} = {found!r}, but durable needs {expected!r}; "
                "put the store on a local file system that supports shared memory and locks"
            )

    def _create_file(self) -> None:
        if os.path.exists(self._path):
            for path in (self._path, f"{self._path}-wal", f"{self._path}-shm"):
                with suppress(FileNotFoundError):
                    if stat.S_IMODE(os.stat(path).st_mode) != 0o600:
                        os.chmod(path, 0o600)
            return
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)  # whatever the umask says; SQLite gives -wal and -shm the mode of the database
        finally:
            os.close(fd)
        directory = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    async def _refuse_newer(self) -> None:
        """A look at the version that writes nothing, since even opening for writing may recover and checkpoint."""
        try:
            await self.peek()
            found = await self._meta() if not self._empty else {}
        finally:
            await self.close()
            self._empty = False
        if found and found["schema_version"] > SCHEMA_VERSION:
            raise self._newer(found["schema_version"])

    async def _meta(self) -> dict[str, Any]:
        if self._lookups is None:
            return {}
        async with self._guarded():
            if not (await _rows(self._lookups, statements.TABLES))[0][0]:
                return {}
            return dict(await _rows(self._lookups, statements.META))

    def _newer(self, version: int) -> StoreFormatError:
        return StoreFormatError(
            f"{self._path} has schema {version}, this durable knows schemas up to {SCHEMA_VERSION}; open it with a newer durable"
        )

    async def _state(self, connection: aiosqlite.Connection, *, read_only: bool) -> RepositoryState:
        if not (await _rows(connection, statements.TABLES))[0][0]:
            self._empty = read_only
            return RepositoryState(None, None)
        meta = dict(await _rows(connection, statements.META))
        if not {"schema_version", "reader_min", "store_id", "position"} <= meta.keys():
            raise StoreMismatchError(
                f"{self._path} is a database, but no repository of durable; move it away or choose another path"
            )
        if meta["reader_min"] > SCHEMA_VERSION:
            raise self._newer(meta["schema_version"])
        self._schema = meta["schema_version"]
        applied = meta["position"] if meta["store_id"] is not None else None
        return RepositoryState(meta["store_id"], applied)

    async def _migrate(self, writer: aiosqlite.Connection) -> RepositoryState:
        version = 0
        if (await _rows(writer, statements.TABLES))[0][0]:
            version = dict(await _rows(writer, statements.META))["schema_version"]
        if version < SCHEMA_VERSION:
            await writer.create_function("due_of", 2, _due_of, deterministic=True)
        for number in range(version + 1, SCHEMA_VERSION + 1):
            script = files("durable.repository").joinpath("sql", MIGRATIONS[number]).read_text("utf-8")
            try:
                await writer.executescript(f"BEGIN IMMEDIATE;\n{script}\nCOMMIT;")
            except BaseException:
                await _roll_back(writer)
                raise
        return await self._state(writer, read_only=False)

    # -- writing

    async def apply_batch(self, records: Sequence[RecordRow], runs: Sequence[RunRow], position: int) -> None:
        writer = self._writing()
        async with self._guarded(), self._turn, _transaction(writer):
            if records:
                await writer.executemany(statements.PUT_RECORD, records)
            if runs:
                await writer.executemany(statements.PUT_RUN, runs)
            await writer.execute(statements.POSITION, (position,))

    async def prune(self, before: float, limit: int, lets_go: pruning.LetsGo) -> list[str]:
        writer = self._writing()
        async with self._guarded(), self._turn, _transaction(writer):
            return await pruning.prune(writer, before, limit, lets_go)

    async def health_check(self) -> None:
        writer = self._writing()
        async with self._guarded(), self._turn, _transaction(writer):
            pass

    def _writing(self) -> aiosqlite.Connection:
        if self._writer is None:
            raise RepositoryUnavailableError(f"{self._path} is not open for writing")
        return self._writer

    # -- reading

    async def find(self, run_ids: Sequence[str]) -> dict[str, Run]:
        found: dict[str, Run] = {}
        for start in range(0, len(run_ids), IDS_MAX):
            some = [text(run_id) for run_id in run_ids[start : start + IDS_MAX]]
            marks = ", ".join("?" * len(some))
            for run in await self._runs(self._lookups, f"{statements.RUN} WHERE run_id IN ({marks})", some):
                found[run.run_id] = run
        return found

    async def find_by_key(self, user: str | None, key: str) -> Run | None:
        runs = await self._runs(self._lookups, statements.FIND_KEY, (text(key), None if user is None else text(user)))
        return runs[0] if runs else None

    async def query(self, wanted: RunFilter) -> list[Run]:
        if wanted.due_after is not None or wanted.due_by is not None:
            self._require_due()
        return await self._runs(self._scans, *statements.select(wanted))

    async def count(self, wanted: RunFilter, but: Collection[str] = ()) -> int:
        if wanted.due_after is not None or wanted.due_by is not None:
            self._require_due()
        rows = await self._fetch(self._scans, *statements.count(wanted, but))
        return rows[0][0] if rows else 0

    async def next_due(self, after: float, but: Container[str] = ()) -> float | None:
        self._require_due()
        due: float
        last: tuple[float, str | bytes] = (after, statements.LAST_ID)
        while rows := await self._fetch(self._lookups, statements.DUES, (last[0], *last, SLICE_ROWS)):
            for due, run_id in rows:
                if run_id not in but:
                    return due
            last = rows[-1]
        return None

    def _require_due(self) -> None:
        if self._schema < 2:
            raise StoreFormatError(
                f"{self._path} has schema {self._schema}, which does not say when runs are due; open the store for writing once"
            )

    async def events(self, run_id: str, after: int, limit: int | None) -> list[Record]:
        async def rows_after(seq: int, size: int) -> list[Any]:
            return await self._fetch(self._lookups, statements.EVENTS, (text(run_id), seq, size))

        return await read_history(rows_after, after, limit, SLICE_ROWS)

    async def histories(self, run_ids: Sequence[str]) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for start in range(0, len(run_ids), IDS_MAX):
            some = [text(run_id) for run_id in run_ids[start : start + IDS_MAX]]
            marks = ", ".join("?" * len(some))
            rows = await self._fetch(self._lookups, statements.HISTORIES.format(marks=marks), some)
            for number, (run_id, batch, body) in enumerate(rows, 1):
                found.setdefault(run_id, []).append(decode_record(body, batch))
                if number % SLICE_ROWS == 0:
                    await asyncio.sleep(0)
        return found

    async def _runs(self, connection: aiosqlite.Connection | None, sql: str, values: Sequence[object]) -> list[Run]:
        rows = await self._fetch(connection, sql, values)
        runs: list[Run] = []
        for start in range(0, len(rows), SLICE_ROWS):
            if start:
                await asyncio.sleep(0)
            runs.extend(run_of(row) for row in rows[start : start + SLICE_ROWS])
        return runs

    async def _fetch(self, connection: aiosqlite.Connection | None, sql: str, values: Iterable[object]) -> list[Any]:
        if self._empty:
            return []
        if connection is None:
            raise RepositoryUnavailableError(f"{self._path} is not open")
        async with self._guarded():
            return await _rows(connection, sql, values)

    @asynccontextmanager
    async def _guarded(self) -> AsyncIterator[None]:
        """Turn SQLite's errors into those of the protocol."""
        try:
            yield
        except _REFUSALS as error:
            raise RecordRefusedError(f"{self._path} refuses this content: {error}") from error
        except (sqlite3.Error, ValueError) as error:  # aiosqlite says ValueError for a connection that is closed
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN:
                raise StoreMismatchError(
                    f"{self._path} is damaged ({error}). Close the store and move {os.path.basename(self._path)}, -wal and -shm "
                    "away: where the log still begins with its first record, the next open builds them anew from it; "
                    "otherwise put a backup in their place, not older than the first record of the log"
                ) from error
            raise RepositoryUnavailableError(f"{self._path} cannot be used now: {error}") from error
        except OSError as error:
            raise RepositoryUnavailableError(f"{self._path} cannot be used now: {error}") from error


def _due_of(run_id: str, state: bytes) -> float | None:
    """For the migration to schema 2, of a run that is open. A state that cannot be read is due: who loads the run is told."""
    try:
        return run_of((run_id, state, b"null", None, True)).due
    except (DecodeError, StoreFormatError):
        return 0.0


async def _rows(connection: aiosqlite.Connection, sql: str, values: Iterable[object] = ()) -> list[Any]:
    return list(await connection.execute_fetchall(sql, tuple(values)))


@asynccontextmanager
async def _transaction(writer: aiosqlite.Connection) -> AsyncIterator[None]:
    try:
        await writer.execute("BEGIN IMMEDIATE")
        yield
        await writer.execute("COMMIT")
    except BaseException:
        await _roll_back(writer)
        raise


async def _roll_back(writer: aiosqlite.Connection) -> None:
    # The connection's thread takes its orders in turn, so this also ends a transaction whose COMMIT was cancelled on the way.
    with suppress(sqlite3.Error, ValueError):  # there may be no transaction, or no connection any more
        await asyncio.shield(asyncio.ensure_future(_execute(writer, "ROLLBACK")))


async def _execute(connection: aiosqlite.Connection, sql: str) -> None:
    await connection.execute(sql)
