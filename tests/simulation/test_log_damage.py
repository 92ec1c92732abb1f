"""Damage campaign: a log that was durable is damaged, and must not pass the damage over in silence.

The stated limit: damage that reaches into the last batch, where since the records in question the log was neither
closed nor opened nor was a segment prepared, and the repository has not applied them. All else is refused, or does no
harm.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import random
from collections import Counter
from typing import Any

import pytest

from durable.config import LogSettings
from durable.errors import LogCorruptError, StorageError, StoreFormatError, StoreMismatchError
from durable.log import Log
from durable.log.format import frame_seed, peek
from durable.log.reader import survey
from durable.log.repair import repair, verify
from durable.testing.disk import SimulatedDisk
from durable.testing.loop import SimulatedLoop, SimulatedWorker

DAMAGES = int(os.environ.get("DURABLE_DAMAGES", "1500"))
SETTINGS = LogSettings(segment_bytes=4096, frame_bytes_max=65536, low_water_bytes=0)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Torn tails are the daily bread here."""
    logging.getLogger("durable.log").disabled = True
    yield
    logging.getLogger("durable.log").disabled = False


def build(seed: int) -> SimulatedDisk:
    """A log of some segments and one to three lives, all of it synced."""
    rng = random.Random(seed)
    disk = SimulatedDisk(rng)

    async def live() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        log = await Log.open(disk, SETTINGS, clock=loop.clock, entropy=loop.entropy, worker=SimulatedWorker)
        for batch in range(rng.randint(1, 12)):
            await log.append(
                [
                    b"%d/%d/%d" % (log.epoch, batch, i) + rng.randbytes(rng.randint(0, 500))
                    for i in range(rng.randint(1, 4))
                ]
            )
        await asyncio.sleep(1)  # a preparation that began may end
        if rng.random() < 0.5:
            await log.close()

    for life in range(rng.randint(1, 3)):
        loop = SimulatedLoop(seed * 4 + life)
        loop.run_until_complete(live())
        loop.abandon()
        disk = disk.kill()
    return disk


def contents(disk: SimulatedDisk) -> dict[str, bytes]:
    return {name: bytes(disk.content(name)) for name in disk.names()}


def damage(disk: SimulatedDisk, rng: random.Random) -> str:
    name = rng.choice(disk.names())
    content = disk.content(name)
    used = max(1, len(content.rstrip(b"\0")))
    kind = rng.choice(
        ("bit", "bit", "byte", "zero sector", "garbage sector", "cut", "lost file", "zero tail", "copy", "swap")
    )
    # Half of the places lie where records are, for most of a segment may be empty.
    at = rng.randrange(used if rng.random() < 0.8 else len(content))
    sector = at - at % 512
    if kind == "bit":
        content[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        content[at] = rng.randrange(256)
    elif kind == "zero sector":
        content[sector : sector + 512] = bytes(len(content[sector : sector + 512]))
    elif kind == "garbage sector":
        content[sector : sector + 512] = rng.randbytes(len(content[sector : sector + 512]))
    elif kind == "cut":
        del content[at:]
    elif kind == "zero tail":
        content[at:] = bytes(len(content) - at)
    elif kind == "copy":
        other = rng.randrange(used)
        chunk = bytes(content[sector : sector + 512])
        content[other : other + len(chunk)] = chunk[: len(content) - other]
    elif kind == "swap":
        other_name = rng.choice(disk.names())
        other_content = disk.content(other_name)
        content[:], other_content[:] = bytes(other_content), bytes(content)
    else:
        disk.lose(name)
    return f"{kind} in {name.partition('.')[2] or name}"


def reopen(disk: SimulatedDisk, applied: int | None, store_id: str | None) -> list[tuple[int, bytes]]:
    async def main() -> list[tuple[int, bytes]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        log = await Log.open(
            disk,
            SETTINGS,
            clock=loop.clock,
            entropy=loop.entropy,
            applied=applied,
            store_id=store_id,
            worker=SimulatedWorker,
        )
        first = await log.append([b"after the damage"])
        found = list(log.read(0))
        assert found[-1] == (first, b"after the damage")
        await log.close()
        return found[:-1]

    loop = SimulatedLoop(1)
    try:
        return loop.run_until_complete(main())
    finally:
        loop.abandon()


def test_damage_is_refused_or_harmless() -> None:
    """No damage makes a durable record vanish in silence or change, beyond the stated limit; a refusal changes
    nothing."""
    outcomes: Counter[str] = Counter()
    sound = [build(seed) for seed in range(40)]
    for number in range(DAMAGES):
        rng = random.Random(number)
        disk = copy.deepcopy(rng.choice(sound))
        before = survey(disk)
        assert before.manifest is not None
        records = dict(_records(disk))
        applied = rng.choice((None, 0, rng.randint(0, len(records))))
        store_id = before.manifest.store_id if applied is not None else None
        limit = max(before.manifest.durable, (applied or 0) + 1)
        active = before.segments[-1].name
        last_batch = disk.read(active, before.batch_start)
        first_of_last = peek(last_batch, 0, frame_seed(before.manifest.store_id))
        last_lsn = first_of_last[0] if first_of_last else 1
        kind = damage(disk, rng)
        damaged = contents(disk)
        within_limit = kind != "cut in log" and damaged.get(active, b"")[before.batch_start :] != last_batch
        try:
            found = dict(reopen(disk, applied, store_id))
        except (LogCorruptError, StoreMismatchError, StoreFormatError):
            outcomes["refused"] += 1
            assert contents(disk) == damaged, f"damage {number} ({kind}): a refusal changed something"
            if number % 5 == 0 and not kind.startswith("swap"):
                _repair(disk, records, applied, f"damage {number} ({kind})")
            continue
        where = f"damage {number} ({kind})"
        assert all(records.get(lsn) == payload for lsn, payload in found.items()), f"{where}: wrong data"
        lost = sorted(lsn for lsn in records if lsn not in found and lsn > (applied or 0))
        assert not lost or within_limit, f"{where}: records {lost} lost in silence, and the last batch is whole"
        assert not lost or lost[0] >= limit, f"{where}: records {lost} lost in silence, the limit is {limit}"
        assert not lost or kind[:3] not in ("bit", "byt") or lost[0] >= last_lsn, (
            f"{where}: {lost} lost, {last_lsn} is the last batch"
        )
        outcomes["within the limit" if lost else "harmless"] += 1
    assert outcomes["refused"] > DAMAGES / 3, outcomes


def _records(disk: SimulatedDisk) -> list[tuple[int, bytes]]:
    async def main() -> list[tuple[int, bytes]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        log = await Log.open(disk, SETTINGS, clock=loop.clock, entropy=loop.entropy, read_only=True)
        return list(log.read(0))

    loop = SimulatedLoop(1)
    try:
        return loop.run_until_complete(main())
    finally:
        loop.abandon()


def _repair(disk: SimulatedDisk, records: dict[int, bytes], applied: int | None, where: str) -> None:
    """Repair gives up what is behind the damage, says so, and the log opens again."""
    loop = SimulatedLoop(1)
    loop.abandon()
    before = contents(disk)
    try:
        report = verify(disk)
    except StorageError:
        return  # another format or store: nothing to repair
    if report.ok:
        return  # only the repository's witness had refused it
    with pytest.raises(StorageError):
        repair(disk, accept_loss=False, clock=loop.clock, settings=SETTINGS)
    assert contents(disk) == before
    done = repair(disk, accept_loss=True, clock=loop.clock, settings=SETTINGS, applied=applied)
    assert done is not None
    found = dict(reopen(disk, applied, None))
    assert all(records.get(lsn) == payload for lsn, payload in found.items()), f"{where}: repair made something up"
    gone = {lsn for lsn in records if lsn not in found and lsn > (applied or 0)}
    assert all(done.lost_from <= lsn for lsn in gone), f"{where}: {sorted(gone)} gone, {done}"
    # What was wiped out whole, down to the end, has left nothing that could tell of it.
    assert not ("(bit" in where or "(byte" in where) or all(lsn <= done.lost_through for lsn in gone), (
        f"{where}: {gone}, {done}"
    )
