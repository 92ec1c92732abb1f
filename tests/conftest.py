"""What all tests share: `need` for tools that a machine may lack, a folder for a store, and a PostgreSQL."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from tests.support import pgserver

CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def need(what: object, reason: str) -> None:
    """Go on if `what` is there. Else skip on a person's machine and fail in CI, where green has to mean that it ran.

    The reason names what would run the test: `need(shutil.which("node"), "node was not found: install Node.js 18 or newer")`.
    """
    if what:
        return
    if CI:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture
def store_dir(tmp_path: Path) -> Path:
    """A folder for one store, which is not there yet."""
    return tmp_path / "store"


def need_postgres() -> None:
    """Go on if this machine has a PostgreSQL to start servers of."""
    need(pgserver.binaries(), pgserver.ADVICE)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[pgserver.PostgresServer]:
    """A server for the whole session, which no test may stop: those that have to start their own, after `need_postgres()`."""
    need_postgres()
    with pgserver.PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """Where the session's server is, or the one of DURABLE_TEST_POSTGRES_URL; tests keep apart by `postgres_schema`."""
    if given := os.environ.get("DURABLE_TEST_POSTGRES_URL"):
        return given
    server: pgserver.PostgresServer = request.getfixturevalue("postgres_server")
    return server.url


SCHEMA_NUMBERS = itertools.count(1)


@pytest.fixture
def postgres_schema(postgres_url: str) -> Iterator[str]:
    """The name of a schema that is not there yet, for `PostgresSettings.schema`; dropped, with what is in it, after the test."""
    name = f"t{os.getpid()}_{next(SCHEMA_NUMBERS)}"
    yield name
    with psycopg.connect(postgres_url, autocommit=True, options="-c lock_timeout=10s") as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE".encode())


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database of the session's server; dropped after the test."""
    name = f"d{os.getpid()}_{next(SCHEMA_NUMBERS)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        parts = urlsplit(postgres_url)
        yield urlunsplit((parts.scheme, parts.netloc, f"/{name}", parts.query, ""))
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
