"""Appending, reading, rotation and retirement, on a simulated disk and a virtual loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from durable.config import LogSettings
from durable.errors import PayloadTooLargeError, ShuttingDownError, StoreReadOnlyError
from durable.log import Log
from durable.log.repair import dump, verify
from durable.testing.disk import SimulatedDisk
from durable.testing.loop import DeadlockError, SimulatedLoop, SimulatedWorker

SETTINGS = LogSettings(segment_bytes=4096, frame_bytes_max=65536, low_water_bytes=1000)


def simulated(test: Callable[[SimulatedDisk, SimulatedLoop], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run the test on a virtual loop with a fresh disk."""

    def run() -> None:
        loop = SimulatedLoop(3)
        try:
            loop.run_until_complete(asyncio.wait_for(test(SimulatedDisk(random.Random(3)), loop), 1000))
        finally:
            loop.abandon()

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def open_log(disk: SimulatedDisk, loop: SimulatedLoop, settings: LogSettings = SETTINGS, **options: Any) -> Log:
    return await Log.open(disk, settings, clock=loop.clock, entropy=loop.entropy, worker=SimulatedWorker, **options)


@simulated
async def test_append_resolves_with_the_first_lsn(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """Records are numbered from 1 without a gap, and one call's payloads lie one behind the other."""
    log = await open_log(disk, loop)
    assert (log.first_lsn, log.next_lsn, log.epoch, log.health) == (1, 1, 1, "ok")
    waiters = [log.append([b"a", b"b"]), log.append([b"c"]), log.append([])]
    assert await asyncio.gather(*waiters) == [1, 3, 4]
    assert list(log.read(0)) == [(1, b"a"), (2, b"b"), (3, b"c")]
    assert list(log.read(2)) == [(3, b"c")]
    assert list(log.read(3)) == []


@simulated
async def test_appends_of_one_turn_share_a_sync(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """A thousand callers in one turn of the loop cost one write and one sync; those who come meanwhile, one more."""
    log = await open_log(disk, loop, replace(SETTINGS, segment_bytes=1024 * 1024))
    before = dict(disk.counts)
    waiters = [log.append([b"x"]) for _ in range(100)]
    await asyncio.sleep(0)
    waiters += [log.append([b"y"]) for _ in range(30)]
    await asyncio.gather(*waiters)
    assert disk.counts["pwrite"] - before["pwrite"] == disk.counts["fdatasync"] - before["fdatasync"] == 2


@simulated
async def test_a_cancelled_waiter_does_not_break_its_batch(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """Whoever stops waiting has still written; its neighbours hear as ever."""
    log = await open_log(disk, loop)
    first, second = log.append([b"a"]), log.append([b"b"])
    first.cancel()
    assert await second == 2
    assert [payload for _, payload in log.read(0)] == [b"a", b"b"]


@simulated
async def test_a_payload_over_the_limit_writes_nothing(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """The call is refused as a whole, before anything of it is written."""
    log = await open_log(disk, loop)
    with pytest.raises(PayloadTooLargeError) as caught:
        log.append([b"fine", bytes(70_000)])
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (70_000, 65536)
    assert await log.append([b"next"]) == 1


@simulated
async def test_a_payload_larger_than_a_segment_is_kept(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """The segment grows for it, also where the next one was prepared already, and it is there after a restart."""
    log = await open_log(disk, loop)
    await log.append([bytes(3000)])
    await asyncio.sleep(1)
    huge = random.Random(1).randbytes(60_000)
    assert await log.append([huge]) == 2
    assert await log.append([b"after"]) == 3
    await log.close()
    log = await open_log(disk, loop)
    assert list(log.read(1)) == [(2, huge), (3, b"after")]


@simulated
async def test_segments_rotate_and_retire(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """Only whole segments go, only below the mark, and never the active one; reading and restarting go on."""
    log = await open_log(disk, loop)
    for number in range(40):
        await log.append([b"%d" % number + bytes(500)])
    assert len([name for name in disk.names() if name.endswith(".log")]) >= 5
    await log.retire(20)
    first = log.first_lsn
    assert 10 < first <= 21
    assert [lsn for lsn, _ in log.read(0)] == list(range(first, 41))
    assert [lsn for lsn, _ in log.read(25)] == list(range(26, 41))
    await log.retire(10_000)
    assert log.first_lsn <= 40
    await log.close()
    log = await open_log(disk, loop, applied=40, store_id=log.store_id)
    assert await log.append([b"on"]) == 41
    assert verify(disk).ok


@simulated
async def test_an_old_segment_is_followed_by_a_new_one(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """A quiet log moves on by age, so that its records can be retired; an empty segment never ages."""
    log = await open_log(disk, loop, replace(SETTINGS, segment_age_seconds=10.0))
    await asyncio.sleep(30)
    await log.append([b"a"])
    await asyncio.sleep(30)
    await log.append([b"b"])  # starts the preparation and does not wait for it
    await asyncio.sleep(1)
    await log.append([b"c"])
    assert disk.names() == ["000000000001.log", "000000000002.log", "manifest"]
    assert [payload for _, payload in log.read(0)] == [b"a", b"b", b"c"]


@simulated
async def test_the_next_segment_is_ready_before_it_is_needed(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """Past the half of a segment the next one is prepared aside, and going on to it costs no further sync."""
    log = await open_log(disk, loop)
    await log.append([bytes(2500)])
    await asyncio.sleep(1)
    before = dict(disk.counts)
    await log.append([bytes(2000)])
    assert disk.counts["fdatasync"] - before["fdatasync"] == 1
    assert disk.counts["fsync_dir"] == before["fsync_dir"]


@simulated
async def test_read_sees_what_was_durable_when_it_was_called(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """A reader does not run after the writer, and a sparse index does not change what it yields."""
    log = await open_log(disk, loop, replace(SETTINGS, segment_bytes=1024 * 1024))
    for number in range(300):
        await log.append([b"%d/" % number + bytes(900)])
    reader = log.read(297)
    await log.append([b"later"])
    assert [lsn for lsn, _ in reader] == [298, 299, 300]
    for after in range(0, 301, 17):
        assert [lsn for lsn, _ in log.read(after)] == list(range(after + 1, 302))
    await log.close()
    assert [lsn for lsn, _ in dump(disk)] == list(range(1, 302))


@simulated
async def test_close_makes_durable_what_was_appended(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """What was handed over before close is written; what comes after is refused; closing twice is fine."""
    log = await open_log(disk, loop)
    waiters = [log.append([b"%d" % number + bytes(1000)]) for number in range(20)]
    await log.close()
    assert [await waiter for waiter in waiters] == list(range(1, 21))
    assert log.health == "closed"
    with pytest.raises(ShuttingDownError):
        log.append([b"late"])
    await log.close()
    log = await open_log(disk.crash(), loop)
    assert log.next_lsn == 21


@simulated
async def test_a_read_only_log_changes_nothing(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """It may look beside a living writer, takes no lock, and refuses to write."""
    log = await open_log(disk, loop)
    await log.append([b"a"])
    operations = len([kind for kind in disk.operations if kind != "read"])
    beside = await open_log(disk, loop, read_only=True)
    assert (list(beside.read(0)), beside.store_id, beside.epoch) == ([(1, b"a")], log.store_id, 1)
    with pytest.raises(StoreReadOnlyError):
        beside.append([b"b"])
    with pytest.raises(StoreReadOnlyError):
        beside.retire(1)
    await beside.close()
    assert len([kind for kind in disk.operations if kind != "read"]) == operations
    assert await log.append([b"c"]) == 2


@simulated
async def test_low_space_is_looked_up_once_a_second(disk: SimulatedDisk, loop: SimulatedLoop) -> None:
    """The low-water mark is a cheap question, so that every start can ask it."""
    log = await open_log(disk, loop)
    assert not log.free_space_low()
    disk.capacity = 5000
    assert not log.free_space_low()
    await asyncio.sleep(1.1)
    assert log.free_space_low()


def test_a_simulated_loop_notices_a_deadlock() -> None:
    """Waiting for what can never come is an error at once, not a test that hangs."""
    loop = SimulatedLoop()
    with pytest.raises(DeadlockError):
        loop.run_until_complete(loop.create_future())
    loop.abandon()
