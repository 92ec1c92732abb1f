"""Opening: what belongs together, who may open, and which format is understood. A refusal changes nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from durable.config import LogSettings
from durable.errors import LogCorruptError, StorageError, StoreFormatError, StoreLockedError, StoreMismatchError
from durable.log import Log
from durable.log.manifest import MANIFEST_NAME
from durable.log.repair import repair, verify
from durable.testing.disk import SimulatedDisk
from durable.testing.loop import SimulatedLoop, SimulatedWorker

SETTINGS = LogSettings(segment_bytes=4096, frame_bytes_max=65536, low_water_bytes=0)


def run(main: Callable[[SimulatedLoop], Any]) -> Any:
    loop = SimulatedLoop(5)
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.abandon()


def open_log(disk: SimulatedDisk, **options: Any) -> Log:
    """Open on a loop of its own; for looking at only."""

    async def main(loop: SimulatedLoop) -> Log:
        return await Log.open(disk, SETTINGS, clock=loop.clock, entropy=loop.entropy, worker=SimulatedWorker, **options)

    log = run(main)
    assert isinstance(log, Log)
    return log


def written(count: int, *, retire: int = 0, close: bool = True, seed: int = 1) -> tuple[SimulatedDisk, str]:
    """A log with `count` records of 500 bytes, and its store id."""
    disk = SimulatedDisk(random.Random(seed))

    async def main(loop: SimulatedLoop) -> str:
        entropy = type(loop.entropy)(random.Random(seed))
        log = await Log.open(disk, SETTINGS, clock=loop.clock, entropy=entropy, worker=SimulatedWorker)
        for number in range(count):
            await log.append([b"%d/" % number + bytes(500)])
        await asyncio.sleep(1)
        await log.retire(retire)
        if close:
            await log.close()
        return log.store_id

    store_id = run(main)
    return disk.kill(), str(store_id)


def contents(disk: SimulatedDisk) -> dict[str, bytes]:
    return {name: bytes(disk.content(name)) for name in disk.names()}


OTHER = "0" * 32
#: log, applied, store id (SELF: the log's own) -> None for opens, or the refusal
WITNESSES: list[tuple[str, int | None, str | None, type[StorageError] | None]] = [
    ("complete", None, None, None),
    ("complete", 0, "SELF", None),
    ("complete", 12, "SELF", None),
    ("complete", 20, "SELF", None),
    ("complete", 21, "SELF", StoreMismatchError),
    ("complete", 20, OTHER, StoreMismatchError),
    ("complete", 0, OTHER, StoreMismatchError),
    ("retired", None, None, StoreMismatchError),
    ("retired", 0, "SELF", StoreMismatchError),
    ("retired", 3, "SELF", StoreMismatchError),
    ("retired", 12, "SELF", None),
    ("retired", 12, OTHER, StoreMismatchError),
    ("missing", None, None, None),
    ("missing", 0, None, None),
    ("missing", 0, OTHER, StoreMismatchError),
    ("missing", 5, OTHER, StoreMismatchError),
    ("missing", 5, None, StoreMismatchError),
    ("corrupt", None, None, LogCorruptError),
    ("corrupt", 20, "SELF", LogCorruptError),
    ("no manifest", 20, "SELF", LogCorruptError),
    ("no segments", 20, "SELF", LogCorruptError),
    ("no segments", None, None, LogCorruptError),
]


@pytest.mark.parametrize(("state", "applied", "store_id", "refusal"), WITNESSES)
def test_log_and_repository_must_belong_together(
    state: str, applied: int | None, store_id: str | None, refusal: type[StorageError] | None
) -> None:
    """A log that does not go with its repository is refused with a word on what to do, and stays as it was."""
    disk, own = written(20, retire=12 if state == "retired" else 0)
    if state == "missing":
        disk = SimulatedDisk(random.Random(1))
    elif state == "corrupt":
        disk.content("000000000001.log")[700] ^= 1
    elif state == "no manifest":
        disk.lose(MANIFEST_NAME)
    elif state == "no segments":
        for name in [name for name in disk.names() if name != MANIFEST_NAME]:
            disk.lose(name)
    before = contents(disk)
    witness = own if store_id == "SELF" else store_id
    if refusal is None:
        open_log(disk, applied=applied, store_id=witness)
    else:
        with pytest.raises(refusal):
            open_log(disk, applied=applied, store_id=witness)
        assert contents(disk) == before
        assert disk.holder is None


def test_corruption_names_the_place() -> None:
    """The error says which segment, where in it, and which record; verify says the same without raising."""
    disk, _ = written(20)
    disk.content("000000000001.log")[700] ^= 1
    with pytest.raises(LogCorruptError) as caught:
        open_log(disk)
    assert (caught.value.segment, caught.value.lsn) == ("000000000001.log", 2)
    assert 500 < caught.value.offset < 700
    report = verify(disk)
    assert not report.ok
    assert report.problem is not None
    assert report.problem.offset == caught.value.offset


def test_repair_says_what_is_gone_and_keeps_the_bytes() -> None:
    """With the loss accepted the log goes on behind every number that was used, and the rest is kept beside."""
    disk, own = written(20)
    disk.content("000000000001.log")[700] ^= 1
    clock = SimulatedLoop().clock
    with pytest.raises(StorageError, match="accept_loss"):
        repair(disk, accept_loss=False, clock=clock, settings=SETTINGS)
    report = repair(disk, accept_loss=True, clock=clock, settings=SETTINGS)
    assert report is not None
    assert (report.lost_from, report.lost_through, report.lost) == (2, 20, 19)
    assert report.readable_after == 18
    assert all(name in disk.names() for name in report.kept_in)
    assert repair(disk, accept_loss=True, clock=clock, settings=SETTINGS) is None
    log = open_log(disk, applied=0, store_id=own)
    assert [lsn for lsn, _ in log.read(0)] == [1]
    assert log.next_lsn == 21


def test_a_newer_format_is_refused_before_a_byte_is_written() -> None:
    """Old code leaves a new store alone, down to its lock."""
    for name in (MANIFEST_NAME, "000000000001.log"):
        disk, _ = written(1)
        content = disk.content(name)
        if name == MANIFEST_NAME:
            content[:] = bytes(content).replace(b'"least_reader": 1', b'"least_reader": 2')
        else:
            content[10] = 2
        before = contents(disk)
        with pytest.raises(StoreFormatError, match="format"):
            open_log(disk)
        assert contents(disk) == before


def test_a_second_open_fails_at_once_and_the_epoch_rises() -> None:
    """One opener at a time; each later one has a higher epoch, also after a kill."""
    disk, own = written(3)
    log = open_log(disk)
    assert (log.store_id, log.epoch) == (own, 2)
    with pytest.raises(StoreLockedError, match="process"):
        open_log(disk)
    disk = disk.kill()
    assert open_log(disk).epoch == 3


def test_a_torn_tail_is_cut_kept_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Bytes of a batch that never became durable are taken out of the way, and not thrown away."""
    disk, _ = written(3, close=False)
    content = disk.content("000000000001.log")
    end = len(content.rstrip(b"\0"))
    content[end + 600 : end + 620] = b"half of another batch"[:20]
    log = open_log(disk)
    assert log.cut is not None
    assert log.cut.lsn == 4
    assert disk.content(log.cut.kept_in).endswith(b"half of another batc")
    assert [lsn for lsn, _ in log.read(0)] == [1, 2, 3]
    assert len([record for record in caplog.records if record.name == "durable.log"]) == 1
    disk = disk.crash()
    assert open_log(disk).cut is None
