"""`durable migrate`, and what roles may do afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable import Config, Durable
from durable.config import PostgresSettings
from durable.store.postgres.migrations import SCHEMA_VERSION
from tests.cli import working
from tests.cli.workers import ROOT, Place, cli
from tests.support.pgserver import PostgresServer


@pytest.fixture
def fresh(postgres_url: str, postgres_schema: str, tmp_path: Path) -> Place:
    """A schema that is not there yet."""
    return Place(postgres_url, postgres_schema, tmp_path)


def test_it_says_from_which_version_to_which(fresh: Place) -> None:
    """Other commands create nothing, and name it; it creates the tables once."""
    shown = fresh.cli("runs")
    assert shown.code == 1
    assert "durable migrate" in shown.err
    assert f"the tables are of version {SCHEMA_VERSION} now, created\n" in fresh.cli("migrate").out
    assert f"the tables are of version {SCHEMA_VERSION} already\n" in fresh.cli("migrate").out
    assert fresh.cli("runs").out == "no runs\n"


def test_several_at_once_create_the_tables_once(fresh: Place) -> None:
    """As when a service is deployed in four places at the same time."""
    command = [sys.executable, "-m", "durable", "migrate", *fresh.words]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[0].count("version") for process in started] == [1] * 4
    assert [process.returncode for process in started] == [0] * 4


def test_print_shows_the_sql_that_grants_and_does_nothing(fresh: Place) -> None:
    """Without a server, too: whoever owns the tables runs it."""
    shown = cli("migrate", "--print", "--grant-read", "looker", "--grant-execute", "a worker", "--schema", "some")
    assert shown.code == 0
    assert 'GRANT SELECT ON ALL TABLES IN SCHEMA "some" TO "looker";' in shown.out
    assert 'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "some" TO "a worker";' in shown.out
    assert cli("migrate", "--print").code == 2
    assert fresh.cli("runs").code == 1


def test_wrong_use_is_exit_code_2(fresh: Place, tmp_path: Path) -> None:
    """A folder needs no migrate; a role that is not there is an error of the server."""
    for words in ((), ("--store", str(tmp_path))):
        shown = cli("migrate", *words)
        assert (shown.code, len(shown.err.splitlines())) == (2, 1)
    shown = fresh.cli("migrate", "--grant-read", "nobody_of_that_name")
    assert (shown.code, len(shown.err.splitlines())) == (1, 1)
    assert "nobody_of_that_name" in shown.err


@pytest.fixture
def roles(postgres_server: PostgresServer) -> Iterator[tuple[str, str]]:
    names = ("cli_executing", "cli_reading")
    for name in names:
        postgres_server.sql(f"CREATE ROLE {name} LOGIN")
    yield names
    postgres_server.sql("DROP SCHEMA IF EXISTS cli_roles CASCADE")
    for name in names:
        postgres_server.sql(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_roles_may_do_what_they_were_granted(
    postgres_server: PostgresServer, roles: tuple[str, str], tmp_path: Path
) -> None:
    """One that executes starts and cancels; one that reads looks, and is told what it lacks for more."""
    executing, reading = roles
    words = ("--schema", "cli_roles", "--grant-execute", executing, "--grant-read", reading)
    shown = cli("migrate", "--store", postgres_server.url, *words)
    assert (shown.code, shown.out.count("may")) == (0, 2)
    worker = Place(postgres_server.url_for(user=executing), "cli_roles", tmp_path)
    config = Config(postgres=PostgresSettings(schema="cli_roles", migrate=False))
    async with Durable(worker.url, config=config, execute=False) as app:
        await app.start(working.wait.options(key="waits"))
    looker = Place(postgres_server.url_for(user=reading), "cli_roles", tmp_path)
    for words in (("runs",), ("show", "waits"), ("events", "waits"), ("why", "waits")):
        shown = looker.cli(*words)
        assert (shown.code, shown.err) == (0, "")
    shown = looker.cli("cancel", "waits")
    assert shown.code == 1
    assert "lacks a right" in shown.err
    with worker.worker() as process:
        assert process.stop() == 0
    assert worker.cli("cancel", "waits").code == 0
