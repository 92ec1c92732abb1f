"""What is said of servers and addresses that cannot be used: what, where, what to do, and never a password."""

from __future__ import annotations

import asyncio
import logging
import socket
import traceback
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from durable.config import PostgresSettings
from durable.errors import (
    ConfigError,
    DurableError,
    RepositoryUnavailableError,
    StorageError,
    StorageFullError,
    StoreFormatError,
)
from durable.store.postgres.failures import Place, translate
from durable.store.postgres.migrations import migrate, verify
from durable.store.postgres.session import Sessions
from tests.conftest import need_postgres
from tests.support.pgserver import PostgresServer

SECRET = "hunter2-of-mine"
QUICK = {"connect_seconds": 2.0}


@pytest.fixture(scope="module")
def guarded() -> Iterator[PostgresServer]:
    """A server that wants a password, with a user `worker` who has no rights, and `nologin` who may not log in."""
    need_postgres()
    with PostgresServer(tcp=True, password=SECRET) as server:
        server.sql(f"CREATE ROLE worker LOGIN PASSWORD '{SECRET}'")
        server.sql(f"CREATE ROLE nologin NOLOGIN PASSWORD '{SECRET}'")
        server.sql("CREATE DATABASE closed")
        server.sql("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
        yield server


async def failure(url: str, **settings: Any) -> DurableError:
    """What opening says; it holds the password nowhere, nor do the errors that it hangs together with."""
    with pytest.raises(DurableError) as caught:
        sessions = Sessions(url, PostgresSettings(**{**QUICK, **settings}))
        await sessions.open()
    discreet(caught.value)
    return caught.value


def discreet(error: BaseException) -> None:
    told = "".join(traceback.format_exception(error))
    chained: BaseException | None = error
    while chained is not None:
        told += f"{chained!r} {chained!s} {chained.args!r}"
        chained = chained.__cause__ or (None if chained.__suppress_context__ else chained.__context__)
    for part in (SECRET, "hunter2", "of-mine"):
        assert part not in told
    assert "postgresql://postgres" not in told and "password=" not in told


# -- addresses


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://worker:hunter2 of-mine@localhost/db", "a space, which a URL writes as %20"),
        ("postgresql://worker:hunter2%of-mine@localhost/db", "a % that is not followed"),
        ("postgresql://worker:hunter2@of-mine@localhost/db", "an @ where none can be"),
        ("postgresql://worker:hunter2/of-mine@localhost/db", "an @ where none can be"),
        ("postgresql://worker:12/of-mine@localhost/db", "an @ where none can be"),
        ("postgresql://worker:hunter2@localhost/db?of-mine=1", "an option after the ? that libpq does not know"),
        ("postgresql://worker:hunter2@localhost:of-mine/db", "a port is not a number"),
        ("postgresql://worker:hunter2@localhost:70000/db", "a port is not a number between 1 and 65535"),
        ("postgresql://worker:hunter2@[::1/db", "an IPv6 address"),
        ("host=localhost password='hunter2", "a quote (') in it is not closed"),
        ("hunter2 of-mine", "neither a URL"),
        ("host=localhost hunter2=of-mine", "an option that libpq does not know"),
        ("mysql://worker:hunter2@localhost/of-mine", "neither a URL"),
        ("postgresql://worker:hunter2@a,b,c/db?port=1,2", "not as many ports"),
    ],
)
async def test_an_address_that_cannot_be_read(url: str, says: str) -> None:
    error = await failure(url)
    assert isinstance(error, ConfigError) and error.key == "store"
    assert "is malformed" in str(error) and says in str(error)
    assert "postgresql://USER:PASSWORD@HOST:PORT/DATABASE" in str(error)


async def test_a_host_that_is_not_there() -> None:
    error = await failure(f"postgresql://worker:{SECRET}@no-such-host.invalid/db")
    assert isinstance(error, ConfigError | RepositoryUnavailableError)  # the latter where no name server answers
    assert "no-such-host.invalid" in str(error) and "check the host's name" in str(error)


async def test_a_port_where_nothing_listens(guarded: PostgresServer) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        error = await failure(f"postgresql://worker:{SECRET}@127.0.0.1:{port}/db")
    assert isinstance(error, RepositoryUnavailableError)
    assert f"host 127.0.0.1, port {port}, database db" in str(error)
    assert "check host and port, and whether the server is started" in str(error)


async def test_a_socket_that_is_not_there() -> None:
    error = await failure(f"postgresql://worker:{SECRET}@/db?host=/no/such/folder")
    assert isinstance(error, RepositoryUnavailableError)
    assert "host /no/such/folder" in str(error) and "nothing listens there" in str(error)


async def test_a_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        error = await failure(f"postgresql://worker:{SECRET}@127.0.0.1:{port}/db", connect_seconds=0.2)
    assert isinstance(error, RepositoryUnavailableError)
    assert "did not answer in time" in str(error) and f"port {port}" in str(error)


async def test_something_that_is_no_postgresql() -> None:

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]
        error = await failure(f"postgresql://worker:{SECRET}@127.0.0.1:{port}/db")
    assert isinstance(error, RepositoryUnavailableError) and f"port {port}" in str(error)


# -- users and rights


async def test_a_wrong_password(guarded: PostgresServer) -> None:
    error = await failure(guarded.url_for(user="worker", password=f"{SECRET}x"))
    assert isinstance(error, ConfigError) and error.key == "store"
    assert "the password of user worker is wrong, or there is no such user" in str(error)
    assert "check user and password" in str(error) and f"port {guarded.port}" in str(error)


async def test_no_password(guarded: PostgresServer) -> None:
    error = await failure(f"postgresql://worker@127.0.0.1:{guarded.port}/postgres")
    assert isinstance(error, ConfigError)
    assert "user worker needs a password; put it into the URL, PGPASSWORD or ~/.pgpass" in str(error)


async def test_a_database_that_is_not_there(guarded: PostgresServer) -> None:
    error = await failure(guarded.url_for(dbname="nowhere"))
    assert isinstance(error, ConfigError)
    assert "there is no database nowhere" in str(error) and 'CREATE DATABASE "nowhere"' in str(error)


async def test_a_database_that_is_closed_to_a_user(guarded: PostgresServer) -> None:
    error = await failure(guarded.url_for(user="worker", dbname="closed"))
    assert isinstance(error, ConfigError)
    assert 'GRANT CONNECT ON DATABASE "closed" TO "worker"' in str(error)


async def test_a_user_who_is_not_there(postgres_server: PostgresServer) -> None:
    error = await failure(postgres_server.url_for(user="nobody at all".replace(" ", "%20")))
    assert isinstance(error, ConfigError)
    assert "there is no user nobody at all" in str(error) and 'CREATE ROLE "nobody at all" LOGIN' in str(error)


async def test_a_user_who_may_not_log_in(guarded: PostgresServer) -> None:
    error = await failure(guarded.url_for(user="nologin"))
    assert isinstance(error, ConfigError) and "ALTER ROLE" in str(error)


async def opened(url: str, schema: str) -> Sessions:
    sessions = Sessions(url, PostgresSettings(schema=schema))
    await sessions.open()
    return sessions


async def test_no_right_to_make_the_schema(guarded: PostgresServer) -> None:
    sessions = await opened(guarded.url_for(user="worker"), "not_mine")
    with pytest.raises(StorageError) as caught:
        async with sessions.connection() as session:
            with sessions.translated():
                await migrate(session, "not_mine")
    await sessions.close()
    discreet(caught.value)
    assert "user worker may not create the schema 'not_mine'" in str(caught.value)
    granting = str(caught.value).splitlines()[-1]
    guarded.sql(granting)
    sessions = await opened(guarded.url_for(user="worker"), "not_mine")
    async with sessions.connection() as session:
        await migrate(session, "not_mine")
    await sessions.close()


async def test_no_right_to_use_the_tables(guarded: PostgresServer) -> None:
    """The SQL in the message is what is missing."""
    owner = await opened(guarded.url, "owned")
    async with owner.connection() as session:
        await migrate(session, "owned")
    await owner.close()
    sessions = await opened(guarded.url_for(user="worker"), "owned")
    with pytest.raises(StorageError) as caught:
        await sessions.bind()
    discreet(caught.value)
    said, _, granting = str(caught.value).partition("\n")
    assert "user worker lacks a right in schema 'owned' (permission denied for schema owned)" in said
    guarded.sql(granting)
    assert await sessions.bind()
    await sessions.close()


async def test_tables_that_are_not_there(guarded: PostgresServer) -> None:
    sessions = await opened(guarded.url, "empty")
    with pytest.raises(StoreFormatError, match=r"no tables of durable in schema 'empty'.*durable migrate --store URL"):
        await sessions.bind()
    async with sessions.connection() as session:
        with pytest.raises(StoreFormatError, match="durable migrate --store URL"):
            await verify(session, "empty")
    await sessions.close()


# -- servers


async def test_a_standby(guarded: PostgresServer) -> None:
    need_postgres()
    with PostgresServer(tcp=True) as primary:
        standby = primary.standby()
        try:
            error = await failure(standby.url)
            assert type(error) is StorageError
            assert f"port {standby.port}" in str(error) and "is a standby (in recovery)" in str(error)
            assert "name the primary in the address, or all hosts" in str(error)
        finally:
            standby.remove()


async def test_a_server_with_no_connection_left() -> None:
    need_postgres()
    limits = {"max_connections": 5, "superuser_reserved_connections": 0}
    with PostgresServer(settings={**limits, "max_wal_senders": 0}) as server:
        server.sql("CREATE ROLE worker LOGIN")
        held = [psycopg.connect(server.url_for(user="worker")) for _ in range(5)]
        error = await failure(server.url_for(user="worker"))
        assert isinstance(error, RepositoryUnavailableError)
        assert "all of the server's connections are in use" in str(error) and "postgres.connections_max" in str(error)
        for connection in held:
            connection.close()


async def test_nothing_secret_is_logged(guarded: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await failure(guarded.url_for(user="worker", password=f"{SECRET}x"))
        sessions = await opened(guarded.url, "quiet")
        await sessions.close()
        assert SECRET not in repr(sessions)
    assert SECRET not in caplog.text


# -- errors of the server at work, by their SQLSTATE


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        *(
            (state, RepositoryUnavailableError)
            for state in ("08006", "25006", "25P03", "40001", "40P01", "53200", "53300")
        ),
        *((state, RepositoryUnavailableError) for state in ("55P03", "57014", "57P01", "57P02", "57P03", "57P05")),
        ("53100", StorageFullError),
        ("42501", StorageError),
        ("42P01", StoreFormatError),
        ("3F000", StoreFormatError),
        ("XX001", StorageError),
        ("22021", StorageError),
    ],
)
async def test_what_the_server_says_at_work(postgres_url: str, state: str, kind: type[DurableError]) -> None:
    sessions = await opened(postgres_url, "any_schema")
    place = Place(host="h", user="worker", database="db", schema="any_schema")
    async with sessions.connection() as session:
        with pytest.raises(psycopg.Error) as caught:
            raised = f"RAISE EXCEPTION USING ERRCODE = '{state}', MESSAGE = 'said', DETAIL = 'row ({SECRET})'"
            await session.execute(f"DO $$ BEGIN {raised}; END $$".encode())
    await sessions.close()
    error = translate(caught.value, place)
    assert type(error) is kind
    assert SECRET not in str(error) and "host h" in str(error)


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError(), psycopg.InterfaceError("closed")])
def test_what_the_network_says_at_work(error: Exception) -> None:
    assert isinstance(translate(error), RepositoryUnavailableError)


def test_our_own_errors_stay_as_they_are() -> None:
    error = StoreFormatError("mine")
    assert translate(error) is error
