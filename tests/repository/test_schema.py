"""From one schema to the next: what a database of schema 1 holds is there afterwards, and means the same."""

from __future__ import annotations

import json
import sqlite3
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from durable.core.query import RunFilter
from durable.core.run import Run
from durable.core.status import ENDED, Status
from durable.errors import DecodeError, RepositoryUnavailableError, StoreFormatError
from durable.repository import RepositoryState, SqliteRepository
from durable.repository.sqlite import SCHEMA_VERSION
from durable.testing.conformance import ids, run_id

#: A time that SQLite's own reading of JSON gets one bit wrong on some builds.
LATER = 1_700_000_000.1234567
#: What schema 1 stored: states without `closed`, which it did not have, and without all that was as usual.
OLD: list[dict[str, Any]] = [
    {"status": "completed", "ended_at": 5.0},
    {"status": "failed", "ended_at": 5.0, "dead": True, "failure": {"error_type": "E", "message": "", "traceback": ""}},
    {"status": "cancelled", "ended_at": 5.0, "reason": "r"},
    {"status": "ready", "user": "\ud800"},
    {"status": "ready", "not_before": LATER},
    {"status": "running", "not_before": 3.0, "signals": [[4, "s"]], "parent_id": run_id(1)},
    {"status": "suspended", "not_before": 3.0, "reason": "r"},
]
DUE = [None, None, None, 0.0, LATER, 0.0, None]


def old_row(number: int, state: dict[str, Any]) -> tuple[object, ...]:
    """A row as the code of schema 1 wrote it."""
    user = state.get("user")
    is_open = Status(state["status"]) not in ENDED
    head = {"wire": 1, "status": state["status"], "seq": 9, "task": "t"} | state
    body = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return (
        *(run_id(number), "t", state["status"], None if user is None else user.encode("utf-8", "surrogatepass"), None),
        *(
            state.get("parent_id"),
            9,
            1.0,
            state.get("ended_at"),
            is_open,
            state.get("dead", False),
            body,
            b"null",
            None,
        ),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database that the script of schema 1 made, with a run in each state that there was."""
    path = tmp_path / "repository.db"
    connection = sqlite3.connect(path)
    connection.executescript(files("durable.repository").joinpath("sql", "0001_initial.sql").read_text("utf-8"))
    columns = "run_id, task, status, user, key, parent_id, seq, created_at, ended_at, open, dead, state, input, result"
    rows = [old_row(number, state) for number, state in enumerate(OLD, 1)]
    connection.executemany(f"INSERT INTO runs ({columns}) VALUES ({', '.join('?' * 14)})", rows)
    connection.execute("UPDATE meta SET value = 'old' WHERE key = 'store_id'")
    connection.execute("UPDATE meta SET value = 7 WHERE key = 'position'")
    connection.commit()
    connection.close()
    return path


def look(path: Path, sql: str) -> list[Any]:
    """Ask the database, past the repository."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def expect_old(runs: list[Run]) -> None:
    """These are the runs of schema 1, and what had ended is closed."""
    assert ids(runs) == list(range(1, len(OLD) + 1))
    for run, state, due in zip(runs, OLD, DUE, strict=True):
        assert (run.status, run.user, run.dead) == (state["status"], state.get("user"), state.get("dead", False))
        assert run.closed is run.ended
        assert run.due == due


async def test_schema_1_is_brought_up_to_date(path: Path) -> None:
    """Every run is there as it was, with the time at which it is due; older code may read it no more."""
    repository = SqliteRepository(path)
    for _ in range(2):  # the second time, nothing is left to do
        assert await repository.initialize() == RepositoryState("old", 7)
        expect_old(await repository.query(RunFilter()))
        assert ids(await repository.query(RunFilter(open=True))) == [4, 5, 6, 7]
        assert ids(await repository.query(RunFilter(due_by=0.0))) == [4, 6]
        assert ids(await repository.query(RunFilter(due_after=0.0, due_by=LATER))) == [5]
        assert [await repository.next_due(after) for after in (-1.0, 0.0, LATER)] == [0.0, LATER, None]
        await repository.close()
    assert [due for (due,) in look(path, "SELECT due FROM runs ORDER BY run_id")] == DUE
    assert dict(look(path, "SELECT key, value FROM meta WHERE key <> 'store_id'")) == {
        "schema_version": SCHEMA_VERSION, "reader_min": 2, "position": 7,
    }  # fmt: skip


async def test_a_reader_does_not_need_it_up_to_date(path: Path) -> None:
    """Looking writes nothing, so it must do with schema 1, except for what that does not know."""
    before = path.read_bytes()
    reader = SqliteRepository(path)
    assert await reader.peek() == RepositoryState("old", 7)
    expect_old(await reader.query(RunFilter()))
    assert ids(await reader.query(RunFilter(open=True))) == [4, 5, 6, 7]
    for question in (reader.query(RunFilter(due_by=0.0)), reader.query(RunFilter(due_after=0.0)), reader.next_due(0.0)):
        with pytest.raises(StoreFormatError, match="schema 1"):
            await question
    await reader.close()
    assert path.read_bytes() == before


async def test_a_migration_is_whole_or_absent(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails half-way leaves schema 1, and the next open makes it."""
    repository = SqliteRepository(path)
    with monkeypatch.context() as patch:

        def breaks(*row: object) -> float:
            raise ZeroDivisionError

        patch.setattr("durable.repository.sqlite._due_of", breaks)
        with pytest.raises(RepositoryUnavailableError):
            await repository.initialize()
        await repository.close()
    assert look(path, "SELECT value FROM meta WHERE key = 'schema_version'") == [(1,)]
    assert "due" not in str(look(path, "SELECT sql FROM sqlite_master"))
    await repository.initialize()
    expect_old(await repository.query(RunFilter()))
    await repository.close()


async def test_a_state_that_cannot_be_read_is_due(path: Path) -> None:
    """It does not keep the others from being brought up to date; who loads it is told."""
    connection = sqlite3.connect(path)
    connection.execute("UPDATE runs SET state = x'00' WHERE run_id = ?", (run_id(5),))
    connection.commit()
    connection.close()
    repository = SqliteRepository(path)
    await repository.initialize()
    with pytest.raises(DecodeError):
        await repository.query(RunFilter(due_by=0.0))
    await repository.close()
