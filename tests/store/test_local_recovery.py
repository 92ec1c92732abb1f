"""P7: which logs go with which repositories, and what happens with those that do not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from durable.config import FlushSettings, LogSettings
from durable.core.query import RunFilter
from durable.core.records import Kind
from durable.core.run import fold
from durable.errors import LogCorruptError, StorageError, StoreMismatchError
from durable.store import LocalStore
from durable.testing.conformance import created, finished, record, run_id

SMALL = LogSettings(segment_bytes=4096)
LARGE = LogSettings(segment_bytes=1024 * 1024)
RUNS = 60

FRESH, REBUILT, OTHER, MISMATCH, CORRUPT = "fresh", "rebuilt", "other", StoreMismatchError, LogCorruptError
CELLS = {
    ("complete", "missing"): REBUILT,
    ("complete", "empty"): REBUILT,
    ("complete", "older"): REBUILT,
    ("complete", "other"): MISMATCH,
    ("complete", "corrupt"): MISMATCH,
    ("retired", "missing"): MISMATCH,
    ("retired", "empty"): MISMATCH,
    ("retired", "older"): MISMATCH,
    ("retired", "other"): MISMATCH,
    ("retired", "corrupt"): MISMATCH,
    ("missing", "missing"): FRESH,
    ("missing", "empty"): FRESH,
    ("missing", "older"): MISMATCH,
    ("missing", "other"): MISMATCH,
    ("missing", "corrupt"): MISMATCH,
    ("other", "missing"): OTHER,
    ("other", "empty"): OTHER,
    ("other", "older"): MISMATCH,
    ("other", "other"): MISMATCH,
    ("other", "corrupt"): MISMATCH,
    ("corrupt", "missing"): CORRUPT,
    ("corrupt", "empty"): CORRUPT,
    ("corrupt", "older"): CORRUPT,
    ("corrupt", "other"): CORRUPT,
    ("corrupt", "corrupt"): MISMATCH,
}


async def grow(path: Path, settings: LogSettings, *, first: int, count: int) -> None:
    """Open, commit runs, close; everything is flushed afterwards, and retired as far as the segments allow."""
    store = LocalStore(path, log=settings, flush=FlushSettings(interval_seconds=0.001))
    await store.open()
    for number in range(first, first + count):
        await store.commit([finished(number, user="u", key=str(number))])
    await store.close()


def put_repository(path: Path, state: str, older: Path, other: Path) -> None:
    target = path / "repository.db"
    for leftover in path.glob("repository.db*"):
        leftover.unlink()
    if state == "empty":
        target.touch(0o600)
    elif state == "older":
        shutil.copy(older / "repository.db", target)
    elif state == "other":
        shutil.copy(other / "repository.db", target)
    elif state == "corrupt":
        target.write_bytes(b"this was a database once" * 400)


def put_log(path: Path, state: str, third: Path) -> None:
    if state == "missing":
        shutil.rmtree(path / "log")
    elif state == "other":
        shutil.rmtree(path / "log")
        shutil.copytree(third / "log", path / "log")
    elif state == "corrupt":
        segment = min((path / "log").glob("*.log"))
        content = bytearray(segment.read_bytes())
        content[600:700] = b"\xff" * 100
        segment.write_bytes(content)


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "lock"}


@pytest.mark.parametrize(("log", "repository"), list(CELLS))
async def test_every_pair_of_log_and_repository_has_a_clear_outcome(tmp_path: Path, log: str, repository: str) -> None:
    """Rebuilt where the log is complete; else refused before anything is changed, with what to do."""
    path, older, other, third = (tmp_path / name for name in ("store", "older", "other", "third"))
    settings = SMALL if log == "retired" else LARGE
    await grow(path, settings, first=0, count=RUNS // 2)
    if log == "retired":  # the older repository is one of before anything was retired
        await grow(older, LARGE, first=0, count=1)
        shutil.copytree(path, tmp_path / "half")
        older = tmp_path / "half"
    else:
        shutil.copytree(path, older, dirs_exist_ok=True)
    await grow(path, settings, first=RUNS // 2, count=RUNS // 2)
    await grow(other, LARGE, first=500, count=2)
    await grow(third, LARGE, first=700, count=2)
    put_log(path, log, third)
    put_repository(path, repository, older, other)
    before = snapshot(path)

    store = LocalStore(path, log=settings)
    expected = CELLS[log, repository]
    if isinstance(expected, type):
        with pytest.raises(expected) as caught:
            await store.open()
        assert len(str(caught.value)) > 40
        assert snapshot(path) == before
        with pytest.raises(expected):  # and nothing is held: asking again gives the same answer
            await store.open()
        return
    await store.open()
    found = await store.query(RunFilter(limit=1000))
    numbers = {FRESH: [], REBUILT: list(range(RUNS)), OTHER: [700, 701]}[expected]
    assert [run.run_id for run in found] == [run_id(number) for number in numbers]
    for number in numbers:
        run = await store.find(run_id(number))
        assert run == fold(finished(number, user="u", key=str(number)))
        assert [each.seq for each in await store.history(run_id(number))] == [1, 2, 3, 4]
        assert (await store.find_key("u", str(number))) is not None
    await store.commit([[created(9000)]])
    await store.close()
    await store.open()
    assert await store.find(run_id(9000)) is not None
    await store.close()


async def test_a_row_ahead_of_its_records_is_no_harm(tmp_path: Path) -> None:
    """The row of a run may be flushed ahead of its last records; what the log still holds completes it."""
    store = LocalStore(tmp_path / "store", flush=FlushSettings(interval_seconds=60.0, batch_records_max=1))
    await store.open()
    first = created(1)
    events = [record(1, seq, Kind.EVENT, name="e", payload=b"1") for seq in range(2, 30)]
    await store.commit([[first]])
    for each in events:
        await store.commit([[each]])
    assert store._flusher is not None
    store._flusher._task.cancel()  # type: ignore[union-attr]
    store._flusher._pending.clear()
    await store.close()
    reader = LocalStore(tmp_path / "store", read_only=True)
    await reader.open()
    assert await reader.history(run_id(1)) == [first, *events]
    await reader.close()
    for _ in range(2):  # from the log, and then from the repository
        await store.open()
        assert await store.history(run_id(1)) == [first, *events]
        await store.close()
    await store.open()
    assert store.health().backlog_records == 0
    await store.close()


async def test_two_opens_at_once_are_one_too_many(tmp_path: Path) -> None:
    """The directory has one process; the second is refused and the first is not disturbed."""
    first, second = LocalStore(tmp_path / "store"), LocalStore(tmp_path / "store")
    await first.open()
    with pytest.raises(StorageError, match="open in"):
        await second.open()
    await first.commit([finished(1)])
    assert await first.find(run_id(1)) is not None
    await first.close()
    await second.open()
    assert await second.find(run_id(1)) is not None
    await second.close()


async def test_a_closed_store_opens_again_without_replay(tmp_path: Path) -> None:
    """A clean close leaves nothing to replay, and no WAL behind."""
    await grow(tmp_path / "store", LARGE, first=0, count=5)
    assert not list((tmp_path / "store").glob("*-wal"))
    store = LocalStore(tmp_path / "store", log=LARGE)
    await store.open()
    assert store._flusher is not None
    assert store._flusher.position == 5
    await store.close()
