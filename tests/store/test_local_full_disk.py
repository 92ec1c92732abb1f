"""The local store on a disk that is full: what the repository has makes room for what comes."""

from __future__ import annotations

import asyncio
import random

from durable.config import FlushSettings, LogSettings
from durable.errors import StorageFullError
from durable.store import LocalStore
from durable.testing.conformance import finished
from durable.testing.disk import SimulatedDisk
from durable.testing.loop import SimulatedLoop, SimulatedWorker
from durable.testing.repository import MemoryRepository, away

LOG = LogSettings(segment_bytes=4096, frame_bytes_max=65536, low_water_bytes=0)


async def open_store(disk: SimulatedDisk, repository: MemoryRepository) -> LocalStore:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    store = LocalStore(
        "simulated", log=LOG, flush=FlushSettings(interval_seconds=0.2), clock=loop.clock, entropy=loop.entropy,
        files=disk, repository=repository, worker=SimulatedWorker,
    )  # fmt: skip
    await store.open()
    return store


async def fill(store: LocalStore, first: int) -> int:
    """Commit runs from the number `first` on until one finds no room; return its number."""
    for number in range(first, first + 200):
        try:
            await store.commit([finished(number)])
        except StorageFullError:
            return number
    raise AssertionError("the disk is larger than the test thinks")


def test_a_full_disk_has_room_again_once_it_is_flushed() -> None:
    """A commit that found no room finds some when the repository has what is in the log."""

    async def main() -> None:
        store = await open_store(SimulatedDisk(random.Random(1), capacity=14_000), MemoryRepository())
        number = 1
        for _ in range(5):
            number = await fill(store, number)
            await asyncio.sleep(1)  # it is flushed, and nothing else happens
            assert store.health().backlog_records == 0
        await store.commit([finished(number)])
        assert store.health().state == "ok"
        await store.close()

    SimulatedLoop(3).run_until_complete(main())


def test_a_full_disk_has_room_again_after_a_restart() -> None:
    """A process that was killed between the flush and the removal leaves no store that is full for ever."""

    async def main() -> None:
        disk, repository = SimulatedDisk(random.Random(1), capacity=14_000), MemoryRepository()
        store = await open_store(disk, repository)
        repository.away = away()
        number = await fill(store, 1)
        repository.away = None
        flushed, store._log = store._log, None  # dead before anything is removed
        await asyncio.sleep(10)
        assert flushed is not None
        assert store.health().state == "failed"
        assert (await repository.peek()).applied == flushed.next_lsn - 1
        store = await open_store(disk.kill(), repository)
        await asyncio.sleep(1)
        await store.commit([finished(number)])
        await store.close()

    SimulatedLoop(3).run_until_complete(main())
