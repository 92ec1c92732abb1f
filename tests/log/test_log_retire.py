"""Retirement beside everything else: a store that lost nothing opens, whatever was cut short."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, ClassVar

import pytest

from durable.config import LogSettings
from durable.errors import LogFencedError
from durable.log import Log
from durable.log.worker import Done, Job
from durable.testing.disk import Fault, PowerLossError, SimulatedDisk
from durable.testing.loop import SimulatedLoop

SETTINGS = LogSettings(segment_bytes=4096, frame_bytes_max=65536, low_water_bytes=0)


class SlowWorker:
    """Runs its jobs in the next turn of the loop, unless it is held up."""

    made: ClassVar[list[SlowWorker]] = []

    def __init__(self, name: str) -> None:
        self.name = name
        self.held = False
        self.jobs: list[tuple[Job, Done]] = []
        self.told: list[tuple[Done, Any, Exception | None]] = []
        self.made.append(self)

    def submit(self, job: Job, done: Done) -> None:
        self.jobs.append((job, done))
        if not self.held:
            asyncio.get_running_loop().call_soon(self.let_go)

    def let_go(self) -> None:
        """Do what was submitted, and tell the loop of it."""
        self.do()
        self.tell()

    def do(self) -> None:
        """Do what was submitted, as a thread does: the loop hears of it later."""
        while self.jobs:
            job, done = self.jobs.pop(0)
            try:
                self.told.append((done, job(), None))
            except Exception as error:  # noqa: BLE001 - it belongs to whoever gave the job
                self.told.append((done, None, error))

    def tell(self) -> None:
        """The loop comes round to what was done."""
        while self.told:
            done, result, error = self.told.pop(0)
            done(result, error)

    def close(self) -> None:
        self.do()


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    SlowWorker.made.clear()
    loop = SimulatedLoop(7)
    try:
        return loop.run_until_complete(asyncio.wait_for(main(), 5))
    finally:
        loop.abandon()


async def open_log(disk: SimulatedDisk, **options: Any) -> Log:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    return await Log.open(disk, SETTINGS, clock=loop.clock, entropy=loop.entropy, worker=SlowWorker, **options)


async def filled(disk: SimulatedDisk) -> tuple[Log, SlowWorker, SlowWorker]:
    """A log with records 1 to 20, four of them in a segment; its writing worker and its helper."""
    log = await open_log(disk)
    for _ in range(20):
        await log.append([bytes(900)])
    await asyncio.sleep(0.1)
    writing, helper = SlowWorker.made[-2:]
    return log, writing, helper


def reopened(disk: SimulatedDisk, applied: int) -> list[int]:
    async def main() -> list[int]:
        return [lsn for lsn, _ in (await open_log(disk, applied=applied)).read(0)]

    found = run(main)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("kind", ["unlink", "fsync_dir"])
def test_a_removal_that_fails_is_the_last(kind: str) -> None:
    """What waits behind a failed removal is not done any more: it would leave a hole among the segments."""
    disk = SimulatedDisk(random.Random(1))

    async def main() -> None:
        log, _, helper = await filled(disk)
        helper.held = True
        first, second = log.retire(4), log.retire(12)
        before, names = len(disk.operations), disk.names()
        disk.faults.append(Fault(kind, disk.counts.get(kind, 0) + 1, errno.EIO))
        helper.do()
        assert disk.operations[before:] == ["unlink", "fsync_dir"][: 1 if kind == "unlink" else 2]
        assert log.health == "ok"  # the loop was not told yet
        assert set(names) - set(disk.names()) <= {"000000000001.log"}
        helper.tell()
        for removal in (first, second):
            with pytest.raises(LogFencedError, match="Input/output error"):
                await removal
        assert log.health == "fenced"

    run(main)
    assert reopened(disk.kill(), 12)[-1] == 20


@pytest.mark.parametrize("written", [False, True])
def test_the_segment_of_the_last_durable_record_stays(written: bool) -> None:
    """Until the next segment has a durable record, only the one before it can say where the log begins."""
    disk = SimulatedDisk(random.Random(2), "journal")

    async def main() -> None:
        log, writing, _ = await filled(disk)
        writing.held = True
        log.append([bytes(900)])  # the first record of segment 6
        await asyncio.sleep(0.1)
        assert len(writing.jobs) == 1
        await log.retire(20)
        if written:
            disk.crash_at = disk.points + 3  # behind the write, before the sync
            with suppress(PowerLossError):
                writing.do()

    run(main)
    assert reopened(disk.crash(), 20) in ([17, 18, 19, 20], [17, 18, 19, 20, 21])
