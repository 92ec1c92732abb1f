"""Each system call of the log fails once, in each way, and for ever after: nothing acknowledged is lost, nothing
hangs."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from typing import Any

import pytest

from durable.config import LogSettings
from durable.errors import LogFencedError, StorageError, StorageFullError
from durable.log import Log
from durable.testing.disk import Fault, SimulatedDisk
from durable.testing.loop import SimulatedLoop, SimulatedWorker

SETTINGS = LogSettings(segment_bytes=4096, frame_bytes_max=65536, low_water_bytes=0)
KINDS = ("create", "open", "read", "pwrite", "preallocate", "fdatasync", "rename", "unlink", "fsync_dir")


async def open_log(disk: SimulatedDisk, **options: Any) -> Log:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    return await Log.open(disk, SETTINGS, clock=loop.clock, entropy=loop.entropy, worker=SimulatedWorker, **options)


def run(main: Any) -> Any:
    loop = SimulatedLoop(7)
    try:
        return loop.run_until_complete(asyncio.wait_for(main, 5))
    finally:
        loop.abandon()


async def workload(disk: SimulatedDisk, acknowledged: dict[int, bytes]) -> tuple[str, str]:
    """Two lives with rotation and retirement. Returns health, and how the appends after the first failure ended."""
    outcome = health = "ok"
    for life in range(2):
        log = await open_log(disk)
        for turn in range(14):
            payload = b"%d/%d/" % (life, turn) + bytes(700)
            try:
                acknowledged[await log.append([payload])] = payload
            except (LogFencedError, StorageFullError) as error:
                outcome = type(error).__name__
            await asyncio.sleep(0.1)
        try:
            await log.retire(3 if life else 0)
        except LogFencedError as error:
            outcome = type(error).__name__
        health = log.health
        await log.close()
        if health == "fenced":
            break
        if not life:
            disk.holder = None
    return health, outcome


async def recovered(disk: SimulatedDisk, *, applied: int | None) -> dict[int, bytes]:
    return dict((await open_log(disk, applied=applied)).read(0))


def cases() -> list[tuple[str, int, Any, bool]]:
    """Every operation that the workload does, by kind and number."""
    disk = SimulatedDisk(random.Random(1))
    run(workload(disk, {}))
    found: list[tuple[str, int, Any, bool]] = []
    for kind in KINDS:
        for nth in range(1, disk.counts.get(kind, 0) + 1):
            for how in (errno.EIO, errno.ENOSPC, *(("short", "eintr") if kind == "pwrite" else ())):
                found += [(kind, nth, how, for_ever) for for_ever in (False, True) if not (for_ever and how == "eintr")]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_call_failing_loses_nothing_and_fences(kind: str) -> None:
    """A failed call is never glossed over: the log refuses from then on, and a restart finds all that was
    acknowledged."""
    logging.getLogger("durable.log").disabled = True
    matrix = [case for case in cases() if case[0] == kind]
    assert matrix
    for _, nth, how, for_ever in matrix:
        where = f"{kind} {nth} {how} {'for ever' if for_ever else 'once'}"
        for seed in range(3):
            disk = SimulatedDisk(random.Random(seed))
            disk.faults.append(Fault(kind, nth, how, for_ever=for_ever))
            acknowledged: dict[int, bytes] = {}
            try:
                health, outcome = run(workload(disk, acknowledged))
            except StorageError:
                health = outcome = "not opened"  # a life that cannot open changes nothing that matters
            if how in ("short", "eintr"):
                assert (health, outcome) == ("ok", "ok"), where
            elif health == "ok":
                # Only a preparation that found no room, or the mark at close, may fail without fencing.
                assert how == errno.ENOSPC or outcome == "ok", where
            disk = disk.crash()

            found = run(recovered(disk, applied=3 if len(acknowledged) > 20 else None))
            lost = [
                lsn
                for lsn, payload in acknowledged.items()
                if found.get(lsn) != payload and lsn >= min(found, default=1)
            ]
            assert not lost, f"{where}: acknowledged and lost: {lost}"
    logging.getLogger("durable.log").disabled = False


async def test_after_the_first_error_every_call_says_fenced() -> None:
    """The sync is not tried again, the waiters of the batch and all later calls hear why, and close returns."""

    async def main() -> None:
        disk = SimulatedDisk(random.Random(1))
        log = await open_log(disk)
        disk.faults.append(Fault("fdatasync", disk.counts["fdatasync"] + 1, errno.EIO))
        first, second = log.append([b"a"]), log.append([b"b"])
        await asyncio.sleep(0)
        later = log.append([b"c"])
        for waiter in (first, second, later):
            with pytest.raises(LogFencedError, match="Input/output error"):
                await waiter
        syncs = disk.counts["fdatasync"]
        with pytest.raises(LogFencedError):
            log.append([b"d"])
        assert log.health == "fenced"
        await log.close()
        assert disk.counts["fdatasync"] == syncs
        assert disk.holder is None

    await asyncio.get_running_loop().run_in_executor(None, lambda: run(main()))


async def test_a_full_disk_refuses_and_goes_on_when_there_is_room() -> None:
    """No room for a new segment is not a failure of the log: nothing was written, and what fits still fits."""

    async def main() -> None:
        disk = SimulatedDisk(random.Random(1), capacity=6000)
        log = await open_log(disk)
        acknowledged = {}
        with pytest.raises(StorageFullError):
            for _ in range(10):
                acknowledged[await log.append([bytes(900)])] = True
        assert len(acknowledged) == 4
        assert str(log.health) == "full"
        assert await log.append([b"small"]) == 5
        disk.capacity = 60_000
        assert await log.append([bytes(900)]) == 6
        assert str(log.health) == "ok"
        assert [lsn for lsn, _ in log.read(0)] == [1, 2, 3, 4, 5, 6]
        await log.close()

    await asyncio.get_running_loop().run_in_executor(None, lambda: run(main()))


def test_200_fills_lose_nothing() -> None:
    """Each time the disk is full and has room again, everything acknowledged is there."""

    async def main() -> None:
        disk = SimulatedDisk(random.Random(1), capacity=20_000)
        log = await open_log(disk, applied=0)
        fills, turn = 0, 0
        expected: dict[int, bytes] = {}
        while fills < 200:
            turn += 1
            payload = b"%d/" % turn + bytes(600)
            try:
                expected[await log.append([payload])] = payload
            except StorageFullError:
                fills += 1
                found = dict(log.read(0))
                assert found == {lsn: payload for lsn, payload in expected.items() if lsn >= log.first_lsn}
                await log.retire(log.next_lsn - 1)
        await log.close()

    loop = SimulatedLoop(3)
    loop.run_until_complete(main())
    loop.abandon()
