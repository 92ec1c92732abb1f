"""SQLite as the repository: what it asserts about its file, and how its errors are told."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from durable.core.query import RunFilter
from durable.core.records import Record
from durable.core.run import Run, fold
from durable.core.status import Status
from durable.core.wire import encode_record
from durable.errors import RepositoryUnavailableError, StorageError, StoreFormatError, StoreMismatchError
from durable.repository import RecordRefusedError, RepositoryState, SqliteRepository, statements
from durable.repository.projection import RecordRow, RunRow, run_of, run_row
from durable.repository.sqlite import SCHEMA_VERSION
from durable.testing.conformance import created, finished, run_id


def batch(records: list[Record], position: int) -> tuple[list[RecordRow], list[RunRow], int]:
    rows = [(each.run_id, each.seq, position, encode_record(each)) for each in records]
    return rows, [run_row(fold(records))], position


def make_database(path: Path, script: str) -> None:
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute(script)
    connection.commit()
    connection.close()


def damage(path: Path) -> None:
    """Spoil every page but the first two."""
    content = bytearray(path.read_bytes())
    content[8192:] = b"\x55" * (len(content) - 8192)
    path.write_bytes(content)


@pytest.fixture
async def repository(tmp_path: Path) -> AsyncIterator[SqliteRepository]:
    found = SqliteRepository(tmp_path / "repository.db", busy_timeout_seconds=0.05)
    assert await found.initialize() == RepositoryState(None, None)
    await found.adopt("s" * 32)
    yield found
    await found.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "repository.db"


def test_a_run_goes_through_its_row_unchanged() -> None:
    """Every field comes back, with or without the optional ones."""
    for run in (
        fold(
            finished(
                1,
                user="\ud800",
                key="k",
                version="1",
                parent=run_id(2),
                attached=True,
                priority=-3,
                retry=[3, 1.0, 2.0, 60.0, 0.1],
            )
        ),
        fold([created(2)]),
        Run(
            run_id(3),
            5,
            signals=[(2, "a"), (4, "ü")],
            result=b"",
            failure={"error_type": "E", "message": "", "traceback": ""},
        ),
    ):
        row = run_row(run)
        assert run_of((row.run_id, row.state, row.input, row.result, row.open)) == run


async def test_a_batch_and_its_position_are_one_transaction(repository: SqliteRepository, path: Path) -> None:
    """A batch that is refused half-way leaves neither a row nor a position."""
    await repository.apply_batch(*batch(finished(1, key="k"), 7))
    records, runs, _ = batch(finished(2, key="k"), 8)
    with pytest.raises(RecordRefusedError):
        await repository.apply_batch(records, runs, 8)
    assert await repository.events(run_id(2), 0, None) == []
    await repository.close()
    assert await repository.peek() == RepositoryState("s" * 32, 7)


async def test_a_batch_applied_again_changes_nothing(repository: SqliteRepository) -> None:
    """Idempotent by (run, seq); an older row does not replace a newer one."""
    await repository.apply_batch(*batch(finished(1), 5))
    await repository.apply_batch(*batch(finished(1)[:2], 5))
    assert (await repository.find([run_id(1)]))[run_id(1)] == fold(finished(1))
    assert len(await repository.events(run_id(1), 0, None)) == 4


async def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """0600 for the database and what SQLite puts beside it, also where an older file was looser."""
    before = os.umask(0)
    try:
        path = tmp_path / "deep" / "repository.db"
        repository = SqliteRepository(path)
        for _ in range(2):
            await repository.initialize()
            for file in path.parent.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
            assert len(list(path.parent.iterdir())) == 3
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            await repository.close()
            path.chmod(0o644)
    finally:
        os.umask(before)


async def test_durability_is_asserted_not_assumed(
    repository: SqliteRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer has WAL and synchronous=FULL; where SQLite answers otherwise, the store does not open."""
    assert repository._writer is not None
    for pragma, expected in (("journal_mode", "wal"), ("synchronous", 2)):
        assert (await repository._writer.execute_fetchall(f"PRAGMA {pragma}"))[0][0] == expected  # type: ignore[index]
    with pytest.raises(StorageError, match="local file system"):
        await repository._set(repository._writer, "synchronous", "NORMAL", 2)


async def test_readers_can_neither_write_nor_checkpoint(repository: SqliteRepository) -> None:
    """Query-only, and no automatic checkpoint."""
    for reader in (repository._lookups, repository._scans):
        assert reader is not None
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await reader.execute("DELETE FROM runs")
        assert (await reader.execute_fetchall("PRAGMA wal_autocheckpoint"))[0][0] == 0  # type: ignore[index]


async def test_a_newer_schema_is_refused_before_a_byte_is_written(repository: SqliteRepository, path: Path) -> None:
    """Older code leaves a newer database alone; what only it must not write, it may still read."""
    await repository.apply_batch(*batch(finished(1), 3))
    await repository.close()
    for reader_min, readable in ((SCHEMA_VERSION, True), (SCHEMA_VERSION + 1, False)):
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (SCHEMA_VERSION + 1,))
            connection.execute("UPDATE meta SET value = ? WHERE key = 'reader_min'", (reader_min,))
        connection.close()
        before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
        with pytest.raises(StoreFormatError, match="newer durable"):
            await repository.initialize()
        if readable:
            assert (await repository.peek()).applied == 3
            assert len(await repository.query(RunFilter())) == 1
        else:
            with pytest.raises(StoreFormatError, match="newer durable"):
                await repository.peek()
        await repository.close()
        assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


async def test_looking_writes_nothing_with_or_without_a_wal(repository: SqliteRepository, path: Path) -> None:
    """A reader leaves the folder as it was: beside a living writer, after a kill, and after a clean end."""
    await repository.apply_batch(*batch(finished(1), 3))
    living = SqliteRepository(path)
    assert (await living.peek()).applied == 3
    await repository.apply_batch(*batch(finished(2), 4))
    assert len(await living.query(RunFilter())) == 2
    await living.close()
    killed, copied = path.parent / "killed", path.parent / "copied"
    for folder, suffixes in ((killed, ("", "-wal", "-shm")), (copied, ("", "-wal"))):
        folder.mkdir()
        for suffix in suffixes:
            (folder / f"repository.db{suffix}").write_bytes((path.parent / f"repository.db{suffix}").read_bytes())
    await repository.close()
    for folder, names in ((killed, 3), (copied, 2), (path.parent, 1)):
        reader = SqliteRepository(folder / "repository.db")
        before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        assert len(before) == names
        assert (await reader.peek()).applied == 4
        assert len(await reader.events(run_id(2), 0, None)) == 4
        after = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        await reader.close()
        if folder is copied:  # the index has to be made; it is no part of what is stored
            after.pop("repository.db-shm")
        assert after == before


async def test_no_file_is_nothing_and_stays_nothing(path: Path) -> None:
    """Looking at a repository that is not there does not make it."""
    repository = SqliteRepository(path)
    assert await repository.peek() == RepositoryState(None, None)
    assert await repository.query(RunFilter()) == []
    assert await repository.find([run_id(1)]) == {}
    assert not os.listdir(os.path.dirname(path))
    with pytest.raises(RepositoryUnavailableError):
        await repository.apply_batch((), (), 1)
    await repository.close()


async def test_a_foreign_database_is_not_taken(path: Path) -> None:
    """A database with other tables, or a `meta` of somebody else, is left alone."""
    for script in ("CREATE TABLE other (x)", "CREATE TABLE meta (key, value)"):
        make_database(path, script)
        repository = SqliteRepository(path)
        with pytest.raises(StorageError):
            await repository.initialize()
        await repository.close()


async def test_a_locked_database_is_away_for_now(repository: SqliteRepository, path: Path) -> None:
    """Somebody else holds the write lock: unavailable, and well again after."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RepositoryUnavailableError, match="locked"):
        await repository.apply_batch(*batch(finished(1), 3))
    with pytest.raises(RepositoryUnavailableError):
        await repository.health_check()
    other.execute("ROLLBACK")
    other.close()
    await repository.apply_batch(*batch(finished(1), 3))
    await repository.health_check()


async def test_damage_says_what_to_do(repository: SqliteRepository, path: Path) -> None:
    """A damaged page found later is told as damage, with the way out."""
    for number in range(200):
        await repository.apply_batch(*batch(finished(number, note="x" * 500), number))
    await repository.close()
    damage(path)
    await repository.initialize()
    with pytest.raises(StoreMismatchError, match="builds them anew"):
        await repository.query(RunFilter())
    await repository.close()


async def test_another_store_cannot_adopt_it(repository: SqliteRepository) -> None:
    """A store id is given once."""
    with pytest.raises(StoreMismatchError):
        await repository.adopt("t" * 32)


async def test_keys_keep_users_apart(repository: SqliteRepository) -> None:
    """The unique index holds for no user as for any; an empty name is another user than none."""
    await repository.apply_batch(*batch(finished(1, key="k"), 1))
    await repository.apply_batch(*batch(finished(2, key="k", user=""), 2))
    with pytest.raises(RecordRefusedError):
        await repository.apply_batch(*batch(finished(3, key="k"), 3))
    found = await repository.find_by_key("", "k")
    assert found is not None
    assert found.run_id == run_id(2)


async def test_every_index_is_used(repository: SqliteRepository) -> None:
    """The queries of the engine read neither the whole table nor all that is asleep."""
    someone, status = run_id(1), frozenset({Status.RUNNING})
    for wanted, index in (
        (RunFilter(due_by=1.0), "runs_open (due<?)"),
        (RunFilter(due_by=1.0, after=someone, task="t", user="u", status=status), "runs_open (due<?)"),
        (RunFilter(due_after=1.0), "runs_open (due>?)"),
        (RunFilter(due_after=1.0, due_by=2.0, open=True, after=someone), "runs_open (due>? AND due<?)"),
        (RunFilter(open=True), "runs_open"),
        (RunFilter(open=True, after=someone), "runs_open"),
        (RunFilter(parent_id=someone), "runs_parent (parent_id=?)"),
        (RunFilter(parent_id=someone, open=True, due_by=1.0, after=someone), "runs_parent (parent_id=? AND run_id>?)"),
        (RunFilter(dead=True, open=True, after=someone), "runs_dead (run_id>?)"),
        (RunFilter(user="u", open=True, after=someone), "runs_user (user=? AND run_id>?)"),
        (RunFilter(key="k"), "runs_key (key=?)"),
        (RunFilter(status=status, open=True, after=someone), "runs_status (status=? AND run_id>?)"),
    ):
        plan = await explain(repository, *statements.select(wanted))
        assert f"INDEX {index}" in plan, (wanted, plan)
    plan = await explain(repository, statements.DUES, [1.0, 1.0, "", 9])
    assert "INDEX runs_open (due>?)" in plan
    assert "B-TREE" not in plan
    assert "runs_key (key=?" in await explain(repository, statements.FIND_KEY, ["k", None])


async def explain(repository: SqliteRepository, sql: str, values: list[object]) -> str:
    """How SQLite is going to answer."""
    assert repository._scans is not None
    rows = await repository._scans.execute_fetchall(f"EXPLAIN QUERY PLAN {sql}", values)
    return "; ".join(str(row[3]) for row in rows)
