"""The log on a disk that loses what was not synced: thousands of power losses, judged by an oracle of acknowledgements.

Each seed lives two to four lives on one disk. A life ends by a power loss at a random crash point, by a kill, or by a
clean close; in some lives a system call fails, a write is short, or the disk is full. `DURABLE_SEEDS` sets how many
seeds run.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from durable.config import LogSettings
from durable.errors import LogCorruptError, LogFencedError, StorageError, StorageFullError
from durable.log import Log
from durable.log import log as log_module
from durable.log import writer as writer_module
from durable.testing.disk import Fault, PowerLossError, SimulatedDisk
from durable.testing.loop import SimulatedLoop, SimulatedWorker
from tests.simulation.log_defects import (
    acknowledge_before_sync,
    ignore_a_short_write,
    keep_the_torn_tail,
    retry_the_sync,
)

SEEDS = int(os.environ.get("DURABLE_SEEDS", "1500"))
FAULTS = (*2 * ("fdatasync", "pwrite", "fsync_dir"), "unlink", "rename", "create", "preallocate")
SETTINGS = LogSettings(segment_bytes=4096, frame_bytes_max=65536, segment_age_seconds=0.5, low_water_bytes=0)


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Torn tails and abandoned tasks are the daily bread here."""
    loggers = [logging.getLogger("asyncio"), logging.getLogger("durable.log")]
    for logger in loggers:
        logger.disabled = True
    yield
    for logger in loggers:
        logger.disabled = False


@dataclass
class Oracle:
    """What the world outside knows: what was sent, what was acknowledged or seen, what was refused, what was
    retired."""

    known: dict[bytes, int] = field(default_factory=dict)
    sent: list[list[bytes]] = field(default_factory=list)
    refused: set[bytes] = field(default_factory=set)
    #: Lives on a disk that could be full: a refusal whose caller died or had gone away is not on record.
    may_refuse: set[int] = field(default_factory=set)
    retired: int = 0
    epoch: int = 0

    def check(self, log: Log) -> None:
        """Compare a log just opened with what is known, and take note of what it shows."""
        found = list(log.read(0))
        lsns = [lsn for lsn, _ in found]
        assert lsns == list(range(log.first_lsn, log.next_lsn)), "the numbers have a hole or do not fit"
        assert log.first_lsn <= self.retired + 1, "records are gone that nobody retired"
        at = {payload: lsn for lsn, payload in found}
        assert len(at) == len(found), "a record is there twice"
        for payload, lsn in self.known.items():
            assert at.get(payload) == lsn or lsn < log.first_lsn, "an acknowledged or seen record is lost"
        everything = {payload for life in self.sent for payload in life}
        assert everything.issuperset(at), "a record that nobody wrote"
        assert self.refused.isdisjoint(at), "a record that was refused as not written"
        for life in self.sent:
            here = [at[payload] for payload in life if payload in at]
            assert here == sorted(here), "records changed places"
            if here and here[0] > log.first_lsn and id(life) not in self.may_refuse:
                assert {*life[: len(here)]}.issubset(at), "not a prefix of what was appended"
        assert log.epoch > self.epoch, "the boot epoch did not rise"
        self.epoch = log.epoch
        self.known.update(at)


async def life(disk: SimulatedDisk, oracle: Oracle, rng: random.Random, name: bytes) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    applied = rng.choice((None, oracle.retired, oracle.retired)) if not oracle.retired else oracle.retired
    log = await Log.open(
        disk, SETTINGS, clock=loop.clock, entropy=loop.entropy, applied=applied, worker=SimulatedWorker
    )
    oracle.check(log)
    sent: list[bytes] = []
    oracle.sent.append(sent)
    if disk.capacity is not None or any(fault.how == errno.ENOSPC for fault in disk.faults):
        oracle.may_refuse.add(id(sent))

    flushes = rng.random() < 0.4

    async def client(number: int) -> None:
        for turn in range(rng.randint(1, 20 if flushes else 6)):
            size = rng.choice((0, 10, 300, 900, 6000 if rng.random() < 0.05 else 100))
            payloads = [
                b"%s/%d/%d/%d/" % (name, number, turn, i) + bytes(size) for i in range(rng.choice((1, 1, 1, 3)))
            ]
            sent.extend(payloads)
            waiter = log.append(payloads)
            if rng.random() < 0.1:
                waiter.cancel()
                continue
            try:
                first = await waiter
            except StorageFullError:
                oracle.refused.update(payloads)
                continue
            oracle.known.update((payload, first + i) for i, payload in enumerate(payloads))
            await asyncio.sleep(rng.choice((0, 0.001, 0.3)) * rng.random())
            if rng.random() < 0.1:
                oracle.retired = max(oracle.retired, log.next_lsn - 1 - rng.randint(0, 3))
                await log.retire(oracle.retired)

    async def flusher() -> None:
        while log.health in ("ok", "full"):
            await asyncio.sleep(rng.choice((0, 0.001, 0.01, 0.3)) * rng.random())
            for target in sorted(rng.randint(oracle.retired, log.next_lsn - 1) for _ in range(rng.randint(1, 4))):
                if log.health in ("ok", "full"):
                    oracle.retired = target
                    log.retire(target).add_done_callback(asyncio.Future.exception)

    flushing = asyncio.create_task(flusher()) if flushes else None
    outcomes = await asyncio.gather(*(client(number) for number in range(rng.randint(1, 6))), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None and not isinstance(outcome, LogFencedError):
            raise outcome
    if flushing is not None:
        flushing.cancel()
    if rng.random() < 0.7:
        await log.close()


def run_life(disk: SimulatedDisk, oracle: Oracle, seed: int, name: bytes, *, faults: bool) -> tuple[bool, int]:
    """One process life. Returns whether the power went, and the trace of the loop."""
    loop = SimulatedLoop(seed)
    try:
        loop.run_until_complete(life(disk, oracle, random.Random(seed), name))
    except PowerLossError:
        return True, loop.trace
    except StorageError as error:
        # Opening met the planted fault: the process would exit and be started again.
        if not faults or not isinstance(error.__cause__, Exception):
            raise
    finally:
        loop.abandon()
    return False, loop.trace


def run_seed(seed: int, kind: type[SimulatedDisk] = SimulatedDisk, *, check_end: bool = True) -> tuple[int, list[int]]:
    """All lives of one seed. Returns the number of power losses, and the traces."""
    rng = random.Random(seed)
    disk = kind(rng, rng.choice(("posix", "journal", "ext4")))
    oracle, losses, traces = Oracle(), 0, []
    lives = rng.randint(2, 4)
    for number in range(lives):
        if rng.random() < 0.85:
            disk.crash_at = disk.points + rng.randint(1, rng.choice((40, 250)))
        faults = rng.random() < 0.5
        if faults:
            what = rng.choice(FAULTS)
            how: Any = rng.choice((errno.EIO, errno.ENOSPC))
            if what == "pwrite":
                how = rng.choice(("short", "eintr", how))
            disk.faults.append(Fault(what, rng.randint(1, 30), how, for_ever=rng.random() < 0.2 and how != "eintr"))
        if rng.random() < 0.15:
            disk.capacity = rng.randint(3000, 30000)
            faults = True
        lost, trace = run_life(disk, oracle, seed * 8 + number, b"%d.%d" % (seed, number), faults=faults)
        traces.append(trace)
        losses += lost
        disk = disk.crash() if lost or rng.random() < 0.5 else disk.kill()
        disk.capacity = None
    if check_end:
        # Twice, with a power loss between: what recovery showed once must stay.
        for number in (6, 7):
            run_life(disk, oracle, seed * 8 + number, b"%d.%d" % (seed, number), faults=False)
            disk = disk.crash()
            losses += 1
    return losses, traces


def test_no_power_loss_loses_an_acknowledged_record() -> None:
    """After every power loss the log is a prefix of what was appended, with all that was acknowledged or ever seen."""
    losses = 0
    for seed in range(SEEDS):
        try:
            losses += run_seed(seed)[0]
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert losses >= 2 * SEEDS


def test_a_seed_runs_the_same_twice() -> None:
    """A failure can be replayed: the same seed gives the same schedule."""
    assert [run_seed(seed) for seed in range(20)] == [run_seed(seed) for seed in range(20)]


# -- planted defects: the simulation must find each of them


def _trust_the_cache_after_a_failed_sync(patch: pytest.MonkeyPatch) -> None:
    def sync_only(files: Any, found: Any) -> Any:
        if found.segments:
            active = found.segments[-1]
            active.file = files.open(active.name)
            if found.torn is not None and found.torn.segment == active.name:
                active.file.pwrite(bytes(len(found.torn.remains)), found.torn.offset)
            active.file.fdatasync()

    patch.setattr(log_module, "mend", sync_only)


def _go_on_after_an_error(patch: pytest.MonkeyPatch) -> None:
    def fence(self: Any, error: Exception | None, lost: Any = ()) -> None:
        waiting = [future for _, _, future in self._waiting]
        self._waiting.clear()
        for future in (*lost, *waiting):
            if not future.done():
                future.set_exception(LogFencedError(str(error)))
        self._settle()

    patch.setattr(writer_module.Writer, "_fence", fence)
    patch.setattr(writer_module.Writer, "_do", lambda self, job: job())
    patch.setattr(writer_module.Writer, "_refusal", lambda self: LogFencedError("not really"))


def _retire_up_to_the_active_segment(patch: pytest.MonkeyPatch) -> None:
    def retirable(segments: Any, through: int) -> Any:
        return [segment for segment in segments[:-1] if segment.next_lsn - 1 <= through]

    patch.setattr(log_module, "retirable", retirable)


class _NoDirectorySync(SimulatedDisk):
    def fsync_dir(self) -> None:
        self._begin("fsync_dir")


DEFECTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "ack before sync": acknowledge_before_sync,
    "sync retried": retry_the_sync,
    "short write ignored": ignore_a_short_write,
    "torn tail kept": keep_the_torn_tail,
    "cache trusted after a failed sync": _trust_the_cache_after_a_failed_sync,
    "goes on after an error": _go_on_after_an_error,
    "last durable segment retired": _retire_up_to_the_active_segment,
    "no directory sync": lambda patch: None,
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation can see what it is there to see: with the defect, some seed breaks a promise."""
    DEFECTS[defect](monkeypatch)
    kind = _NoDirectorySync if defect == "no directory sync" else SimulatedDisk
    for seed in range(3000):
        try:
            run_seed(seed, kind)
        except (AssertionError, LogCorruptError):
            return
    pytest.fail(f"3000 seeds did not find: {defect}")
