"""The tables: made once however many begin at once, never touched when they are newer, and used by roles that may not make them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

import psycopg
import pytest

from durable.errors import RepositoryUnavailableError, StoreFormatError, StoreMismatchError
from durable.store.postgres.migrations import SCHEMA_VERSION, grants, migrate, verify
from durable.store.postgres.migrations import statement as in_schema

#: What is asked of the ledger.
COUNTING = (
    "SELECT * FROM {0}.let_in('{{a}}', '{{u}}', '{{t}}', 1, 1, 60, 1, 0, '{{}}')",
    "SELECT * FROM {0}.hold_places('me', 1, '{{n}}', '{{1}}', '{{1}}', '{{1}}')",
)
Sql = Any  # a function that runs one statement as the owner


@pytest.fixture
def owner(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(owner: psycopg.Connection[Any], postgres_schema: str) -> Iterator[str]:
    """A role that may log in and has been granted nothing; its name needs quotes."""
    name = f"{postgres_schema} role"
    owner.execute(f'CREATE ROLE "{name}" LOGIN'.encode())
    yield name
    owner.execute(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"'.encode())


def run(url: str, what: Any, schema: str, user: str | None = None) -> None:
    """Migrate or verify on a connection and an event loop of its own."""

    async def alone() -> None:
        options = {"user": user} if user else {}
        async with await psycopg.AsyncConnection.connect(url, autocommit=True, **options) as connection:
            await what(connection, schema)

    asyncio.run(alone())


def tables(owner: psycopg.Connection[Any], schema: str) -> list[Any]:
    """All that is in a schema, and when it was last changed."""
    query = """
        SELECT relname, pg_class.xmin::text FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s ORDER BY 1
    """
    found: list[Any] = owner.execute(query, (schema,)).fetchall()
    if any(name == "meta" for name, _ in found):
        found += owner.execute(f"SELECT xmin::text, * FROM {schema}.meta ORDER BY 1, 2".encode()).fetchall()
    return found


def meta(owner: psycopg.Connection[Any], schema: str) -> dict[str, str]:
    return dict(owner.execute(f"SELECT key, value FROM {schema}.meta".encode()).fetchall())


def test_tables_are_made_and_left_alone_then(
    owner: psycopg.Connection[Any], postgres_url: str, postgres_schema: str
) -> None:
    run(postgres_url, migrate, postgres_schema)
    made = tables(owner, postgres_schema)
    assert meta(owner, postgres_schema)["schema_version"] == str(SCHEMA_VERSION)
    run(postgres_url, migrate, postgres_schema)
    run(postgres_url, verify, postgres_schema)
    assert tables(owner, postgres_schema) == made


@pytest.mark.parametrize("schema_is_there", [False, True])
def test_eight_begin_at_once(
    owner: psycopg.Connection[Any], postgres_url: str, postgres_schema: str, schema_is_there: bool
) -> None:
    with ThreadPoolExecutor(8) as threads:
        for _ in range(10):
            if schema_is_there:
                owner.execute(f"CREATE SCHEMA {postgres_schema}".encode())
            for done in [threads.submit(run, postgres_url, migrate, postgres_schema) for _ in range(8)]:
                done.result()
            assert meta(owner, postgres_schema)["schema_version"] == str(SCHEMA_VERSION)
            owner.execute(f"DROP SCHEMA {postgres_schema} CASCADE".encode())


def test_nothing_is_left_of_a_migration_that_fails(
    owner: psycopg.Connection[Any], postgres_url: str, postgres_schema: str
) -> None:
    owner.execute(f"CREATE SCHEMA {postgres_schema}; CREATE VIEW {postgres_schema}.records AS SELECT 1 AS i".encode())
    before = tables(owner, postgres_schema)
    with pytest.raises(RepositoryUnavailableError, match=r'"records" already exists.*durable did not make'):
        run(postgres_url, migrate, postgres_schema)
    assert tables(owner, postgres_schema) == before


@pytest.mark.parametrize("what", [migrate, verify])
def test_newer_tables_are_refused_untouched(
    owner: psycopg.Connection[Any], postgres_url: str, postgres_schema: str, what: Any
) -> None:
    run(postgres_url, migrate, postgres_schema)
    owner.execute(
        f"UPDATE {postgres_schema}.meta SET value = '{SCHEMA_VERSION + 7}' WHERE key IN ('schema_version', 'reader_min')".encode()
    )
    before = tables(owner, postgres_schema)
    with pytest.raises(StoreFormatError) as caught:
        run(postgres_url, what, postgres_schema)
    said = str(caught.value)
    assert f"version {SCHEMA_VERSION + 7}" in said and f"up to {SCHEMA_VERSION};" in said and "install" in said
    assert tables(owner, postgres_schema) == before


@pytest.mark.parametrize("what", [migrate, verify])
def test_newer_tables_that_this_durable_can_use_are_used(
    owner: psycopg.Connection[Any], postgres_url: str, postgres_schema: str, what: Any
) -> None:
    run(postgres_url, migrate, postgres_schema)
    owner.execute(
        f"UPDATE {postgres_schema}.meta SET value = '{SCHEMA_VERSION + 1}' WHERE key = 'schema_version'".encode()
    )
    before = tables(owner, postgres_schema)
    run(postgres_url, what, postgres_schema)
    assert tables(owner, postgres_schema) == before


def test_missing_tables_are_said_to_be(owner: psycopg.Connection[Any], postgres_url: str, postgres_schema: str) -> None:
    with pytest.raises(StoreFormatError, match=r"has no tables.*durable migrate --store URL"):
        run(postgres_url, verify, postgres_schema)
    assert tables(owner, postgres_schema) == []


def test_tables_of_something_else_are_left_alone(
    owner: psycopg.Connection[Any], postgres_url: str, postgres_schema: str
) -> None:
    owner.execute(f"CREATE SCHEMA {postgres_schema}; CREATE TABLE {postgres_schema}.meta (id int)".encode())
    before = tables(owner, postgres_schema)
    for what in (migrate, verify):
        with pytest.raises(StoreMismatchError, match=r"durable did not make.*postgres\.schema"):
            run(postgres_url, what, postgres_schema)
    assert tables(owner, postgres_schema) == before


# -- roles


def relations(owner: psycopg.Connection[Any], schema: str, kind: str) -> list[str]:
    query = """
        SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s AND relkind = %s
    """
    return [name for (name,) in owner.execute(query, (schema, kind)).fetchall()]


def allowed(url: str, role: str, statement: str) -> bool:
    with psycopg.connect(url, user=role) as connection:
        try:
            connection.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            return False
        connection.rollback()
        return True


def test_an_executor_works_and_changes_no_table(
    owner: psycopg.Connection[Any], postgres_url: str, postgres_schema: str, role: str
) -> None:
    run(postgres_url, migrate, postgres_schema)
    owner.execute(grants(postgres_schema, role, "execute").encode())
    owner.execute(f"CREATE TABLE {postgres_schema}.later (i int)".encode())  # as a later version may
    for table in relations(owner, postgres_schema, "r"):
        for statement in ("SELECT * FROM {0}", "INSERT INTO {0} SELECT * FROM {0} WHERE false", "DELETE FROM {0}"):
            if table not in ("messages", "strays") or "INSERT" not in statement:  # their ids cannot be copied
                assert allowed(postgres_url, role, statement.format(f"{postgres_schema}.{table}")), (table, statement)
        for statement in ("DROP TABLE {0}", "TRUNCATE {0}", "ALTER TABLE {0} ADD COLUMN mine int"):
            assert not allowed(postgres_url, role, statement.format(f"{postgres_schema}.{table}")), (table, statement)
    for sequence in relations(owner, postgres_schema, "S"):
        assert allowed(postgres_url, role, f"SELECT nextval('{postgres_schema}.{sequence}')")
    for call in COUNTING:
        assert allowed(postgres_url, role, call.format(postgres_schema)), call
    assert not allowed(postgres_url, role, f"CREATE TABLE {postgres_schema}.mine (i int)")
    run(postgres_url, migrate, postgres_schema, role)  # nothing to do is done without rights
    run(postgres_url, verify, postgres_schema, role)


def test_a_reader_only_reads(
    owner: psycopg.Connection[Any], postgres_url: str, postgres_schema: str, role: str
) -> None:
    run(postgres_url, migrate, postgres_schema)
    assert not allowed(postgres_url, role, f"SELECT * FROM {postgres_schema}.runs")
    owner.execute(grants(postgres_schema, role, "read").encode())
    for table in relations(owner, postgres_schema, "r"):
        name = f"{postgres_schema}.{table}"
        assert allowed(postgres_url, role, f"SELECT * FROM {name}")
        for statement in ("DELETE FROM {0}", "SELECT * FROM {0} FOR UPDATE", "DROP TABLE {0}", "LOCK TABLE {0}"):
            assert not allowed(postgres_url, role, statement.format(name)), (table, statement)
    for sequence in relations(owner, postgres_schema, "S"):
        assert not allowed(postgres_url, role, f"SELECT nextval('{postgres_schema}.{sequence}')")
    for call in COUNTING:
        assert not allowed(postgres_url, role, call.format(postgres_schema)), call
    run(postgres_url, verify, postgres_schema, role)


def test_tables_of_the_first_version_are_brought_up_to_date(
    owner: psycopg.Connection[Any], postgres_url: str, postgres_schema: str, role: str
) -> None:
    """What they hold stays, and who was granted to execute then still may."""
    owner.execute(f"CREATE SCHEMA {postgres_schema}".encode())
    first = (files("durable.store.postgres") / "sql" / "0001_tables.sql").read_text("utf-8")
    owner.execute(in_schema(first, postgres_schema))
    owner.execute(grants(postgres_schema, role, "execute").encode())
    before = meta(owner, postgres_schema)
    with pytest.raises(StoreFormatError, match="version 1"):
        run(postgres_url, verify, postgres_schema)
    run(postgres_url, migrate, postgres_schema)
    run(postgres_url, verify, postgres_schema, role)
    assert meta(owner, postgres_schema) == before | {"schema_version": str(SCHEMA_VERSION)}
    for call in COUNTING:
        assert allowed(postgres_url, role, call.format(postgres_schema)), call


def test_a_role_that_may_create_only_in_the_schema_can_migrate(
    owner: psycopg.Connection[Any], postgres_url: str, postgres_schema: str, role: str
) -> None:
    owner.execute(f'CREATE SCHEMA {postgres_schema} AUTHORIZATION "{role}"'.encode())
    run(postgres_url, migrate, postgres_schema, role)
    run(postgres_url, verify, postgres_schema, role)
