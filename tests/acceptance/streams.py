"""Many emitters, each with a reader, in a process that is killed in the middle and started again; and what is judged of what they saw."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from durable.store.local import LocalStore
from tests.acceptance.streams_worker import SEEN, seen

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Told:
    """What came of it.

    Arguments:
        events: what all readers saw, together.
        at_kill: what they had seen when the process was killed.
        seconds: how long both lives took.
    """

    events: int
    at_kill: int
    seconds: float


def _noted(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("seen*")) // SEEN.size


def _life(folder: Path, emitters: int, events: int) -> subprocess.Popen[bytes]:
    words = ["-m", "tests.acceptance.streams_worker", str(folder), str(emitters), str(events)]
    return subprocess.Popen([sys.executable, "-W", "ignore", *words], cwd=ROOT)


def many_emitters(folder: Path, emitters: int, events: int, seconds_max: float) -> Told:
    """Run it: each emitter emits so many events. Raises `AssertionError` for a gap, a double or a miss."""
    began = time.monotonic()
    first = _life(folder, emitters, events)
    while (at_kill := _noted(folder)) < emitters * events // 2:
        assert first.poll() is None, f"it ended with {first.returncode}, when {at_kill} events had been seen"
        assert time.monotonic() < began + seconds_max, f"only {at_kill} events were seen in {seconds_max:g} s"
        time.sleep(0.02)
    first.kill()
    first.wait()
    at_kill = _noted(folder)
    assert _life(folder, emitters, events).wait(seconds_max) == 0
    seconds = time.monotonic() - began
    return Told(asyncio.run(_judge_all(folder, emitters, events)), at_kill, seconds)


async def _judge_all(folder: Path, emitters: int, events: int) -> int:
    store = LocalStore(folder / "store")
    await store.open()
    try:
        return sum([await _judge(store, folder, number, events) for number in range(emitters)])
    finally:
        await store.close()


async def _judge(store: LocalStore, folder: Path, number: int, events: int) -> int:
    """What a reader saw is what is on record: each event once, in order."""
    path, key = folder / f"seen{number}", f"emitter{number}"
    run = await store.find_key(None, key)
    assert run is not None and run.ended, key
    visible = [record.seq for record in await store.history(run.run_id) if record.visible]
    noted = seen(path)
    assert [seq for seq, _ in noted] == visible, key
    assert [value for _, value in noted if value >= 0] == list(range(events)), key
    return len(noted)
