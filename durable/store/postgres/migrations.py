"""The tables: created and brought up to date by the numbered scripts in `sql`, and who may do what with them.

Law: a script and its number in `meta` are one transaction, in order, once, however many processes start at once. What a newer durable
has made is refused before anything is written.
"""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import Any, Literal

import psycopg
from psycopg import errors, sql

from durable.errors import RepositoryUnavailableError, StoreFormatError, StoreMismatchError

#: The scripts in order; `{schema}` in them stands for the quoted name of the schema, which is there when they run.
SCRIPTS = {1: "0001_tables.sql", 2: "0002_ledger.sql", 3: "0003_closed.sql"}
SCHEMA_VERSION = max(SCRIPTS)
#: How often a migration is begun anew that met another one of the same schema.
TRIES = 50
PAUSE_SECONDS = 0.02

Connection = psycopg.AsyncConnection[Any]

# Two that create the same at once: the second waits for the first, and is then told that it is there, in one of these ways.
_MET_ANOTHER = (
    errors.UniqueViolation,
    errors.DuplicateSchema,
    errors.DuplicateTable,
    errors.DuplicateObject,
    errors.DeadlockDetected,
    errors.SerializationFailure,
)


async def migrate(connection: Connection, schema: str) -> None:
    """Create the tables of a store, or bring them up to date.

    Arguments:
        connection: in autocommit, of a role that may create in the database, or in the schema where that exists.
        schema: the name of the schema, unquoted.

    Raises `StoreFormatError` for tables of a newer durable, `StoreMismatchError` for a schema that holds something else, and
    psycopg's errors as they come.
    """
    for attempt in range(1, TRIES + 1):
        try:
            while await _step(connection, schema):
                pass
        except _MET_ANOTHER as error:
            if attempt == TRIES:
                raise RepositoryUnavailableError(
                    f"schema {schema!r} could not be migrated: {TRIES} attempts in a row were told {error.diag.message_primary!r}; others "
                    "keep changing it, or it holds something of this name that durable did not make"
                ) from error
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            return


async def verify(connection: Connection, schema: str) -> None:
    """Raise `StoreFormatError` where the tables are missing, or older or newer than this durable needs; writes nothing."""
    version = await version_of(connection, schema)
    if version < SCHEMA_VERSION:
        found = f"has tables of version {version}" if version else "has no tables"
        raise StoreFormatError(
            f"schema {schema!r} {found}, but this durable needs version {SCHEMA_VERSION}: run `durable migrate --store URL` "
            "as a role that may create tables, or open the store with postgres.migrate=True"
        )


def grants(schema: str, role: str, kind: Literal["execute", "read"]) -> str:
    """Return the SQL by which the owner of a store's tables lets another role use them.

    Arguments:
        schema, role: their names, unquoted.
        kind: `execute` for executors and clients that start runs; `read` for those that only look.
    """
    rights = {"execute": "SELECT, INSERT, UPDATE, DELETE", "read": "SELECT"}[kind]
    sequences = {"execute": "USAGE, SELECT", "read": "SELECT"}[kind]
    inside, to = _quoted(schema), _quoted(role)
    return "\n".join(
        (
            f"GRANT USAGE ON SCHEMA {inside} TO {to};",
            f"GRANT {rights} ON ALL TABLES IN SCHEMA {inside} TO {to};",
            f"GRANT {sequences} ON ALL SEQUENCES IN SCHEMA {inside} TO {to};",
            f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {inside} TO {to};",
            # For what later versions add, when the same role migrates.
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {inside} GRANT {rights} ON TABLES TO {to};",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {inside} GRANT {sequences} ON SEQUENCES TO {to};",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {inside} GRANT EXECUTE ON FUNCTIONS TO {to};",
        )
    )


def statement(text: str, schema: str) -> bytes:
    """Return a statement with the quoted name of the schema in place of `{schema}`."""
    return text.replace("{schema}", _quoted(schema)).encode()


async def _step(connection: Connection, schema: str) -> bool:
    """Run the next script; whether it is to be looked for another one."""
    if await version_of(connection, schema) >= SCHEMA_VERSION:
        return False
    async with connection.transaction():
        empty = not await _exists(connection, schema, "meta")
        if empty:
            await _create_schema(connection, schema)
        else:
            await connection.execute(statement("LOCK TABLE {schema}.meta IN SHARE ROW EXCLUSIVE MODE", schema))
        version = await version_of(connection, schema)
        if version >= SCHEMA_VERSION or (empty and version):  # another one was faster, and nothing is locked here
            return True
        script = (files("durable.store.postgres") / "sql" / SCRIPTS[version + 1]).read_text("utf-8")
        await connection.execute(statement(script, schema))
        done = statement("UPDATE {schema}.meta SET value = %s WHERE key = 'schema_version'", schema)
        await connection.execute(done, (str(version + 1),))
    return True


async def _create_schema(connection: Connection, schema: str) -> None:
    # Not IF NOT EXISTS: that needs the right to create schemas even where this one is there, made by an administrator.
    cursor = await connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,))
    if await cursor.fetchone() is None:
        await connection.execute(statement("CREATE SCHEMA {schema}", schema))


async def version_of(connection: Connection, schema: str) -> int:
    """The number of the last script that was run, 0 if there are no tables."""
    if not await _exists(connection, schema, "meta"):
        return 0
    query = "SELECT key, value FROM {schema}.meta WHERE key IN ('schema_version', 'reader_min')"
    try:
        rows = await (await connection.execute(statement(query, schema))).fetchall()
        meta = {key: int(value) for key, value in rows}
        version, reader_min = meta["schema_version"], meta["reader_min"]
    except (errors.UndefinedColumn, KeyError, ValueError) as error:
        raise StoreMismatchError(
            f"schema {schema!r} holds tables that durable did not make (its table `meta` is not a store's); "
            "name another one in postgres.schema"
        ) from error
    if version > SCHEMA_VERSION and reader_min > SCHEMA_VERSION:
        raise StoreFormatError(
            f"schema {schema!r} has tables of version {version}, this durable knows versions up to {SCHEMA_VERSION}; "
            "install the version of durable that made them, or a newer one"
        )
    return version


async def _exists(connection: Connection, schema: str, table: str) -> bool:
    query = """
        SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = %s AND relname = %s
    """
    return await (await connection.execute(query, (schema, table))).fetchone() is not None


def _quoted(name: str) -> str:
    return sql.Identifier(name).as_string(None)
