"""The real directory: rights, the lock between processes, forks, kills."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from durable.clock import SYSTEM_CLOCK, SYSTEM_ENTROPY
from durable.config import LogSettings
from durable.errors import ForkedProcessError, StoreLockedError
from durable.log import DiskFiles, Log
from durable.log.repair import verify

SETTINGS = LogSettings(segment_bytes=64 * 1024, low_water_bytes=0)
ROOT = Path(__file__).resolve().parents[2]


async def open_log(path: Path) -> Log:
    return await Log.open(DiskFiles(path), SETTINGS, clock=SYSTEM_CLOCK, entropy=SYSTEM_ENTROPY)


async def test_records_are_back_after_a_restart(tmp_path: Path) -> None:
    """The whole way through real files: many segments, concurrent callers, retirement, another open."""
    log = await open_log(tmp_path / "a" / "log")
    firsts = await asyncio.gather(*(log.append([b"%d" % number, bytes(300)]) for number in range(500)))
    assert firsts == list(range(1, 1001, 2))
    assert len(list(tmp_path.glob("a/log/*.log"))) >= 2
    await log.close()
    log = await open_log(tmp_path / "a" / "log")
    assert [payload for lsn, payload in log.read(0) if lsn % 2] == [b"%d" % number for number in range(500)]
    await log.retire(1000)
    assert log.first_lsn > 1
    assert await log.append([b"more"]) == 1001
    await log.close()
    assert verify(DiskFiles(tmp_path / "a" / "log")).ok


async def test_nobody_else_may_look(tmp_path: Path) -> None:
    """The directory is 0700 and its files are 0600."""
    log = await open_log(tmp_path / "log")
    await log.append([b"secret"])
    await log.close()
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "log").iterdir()} == {0o600}


async def test_the_second_open_names_the_holder(tmp_path: Path) -> None:
    """Also within one process, and two hundred times; after close the directory is free."""
    log = await open_log(tmp_path)
    for _ in range(200):
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()} on "):
            await open_log(tmp_path)
    assert json.loads((tmp_path / "lock").read_bytes())["pid"] == os.getpid()
    await log.close()
    await (await open_log(tmp_path)).close()


async def test_a_forked_child_never_appends(tmp_path: Path) -> None:
    """It is refused, its exit leaves the parent's lock and log alone, and it does not keep the lock for a dead
    parent."""
    log = await open_log(tmp_path)
    await log.append([b"parent"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def child() -> None:
        try:
            log.append([b"child"])
        except ForkedProcessError:
            sys.exit(7)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    await asyncio.to_thread(process.join, 20)
    assert process.exitcode == 7
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(StoreLockedError):
        await open_log(tmp_path)
    assert await log.append([b"parent again"]) == 2
    await log.close()


_WRITER = """
    import asyncio, sys
    from durable.clock import SYSTEM_CLOCK, SYSTEM_ENTROPY
    from durable.config import LogSettings
    from durable.log import DiskFiles, Log
    async def main():
        settings = LogSettings(segment_bytes=64 * 1024, low_water_bytes=0)
        log = await Log.open(DiskFiles(sys.argv[1]), settings, clock=SYSTEM_CLOCK, entropy=SYSTEM_ENTROPY)
        async def client(number):
            while True:
                print(await log.append([b"%d" % number + bytes(200)]), flush=True)
        if len(sys.argv) > 2:
            await log.append([b"not closed"])
        else:
            await asyncio.gather(*(client(number) for number in range(8)))
    asyncio.run(main())
"""


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    """SIGKILL between any two instructions: every number that came out of the process is in the log."""
    for _ in range(5):
        command = [sys.executable, "-c", textwrap.dedent(_WRITER), str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            heard = b"".join(process.stdout.readline() for _ in range(100))
            process.send_signal(signal.SIGKILL)
            heard += process.stdout.read()
        acknowledged = max(int(line) for line in heard.split(b"\n")[:-1])
        report = verify(DiskFiles(tmp_path))
        assert report.ok
        assert report.next_lsn > acknowledged


def test_a_log_that_nobody_closed_lets_the_interpreter_go(tmp_path: Path) -> None:
    """Forgetting close costs half a second at exit, and no record."""
    command = [sys.executable, "-c", textwrap.dedent(_WRITER), str(tmp_path), "once"]
    subprocess.run(command, cwd=ROOT, timeout=20, check=True)
    assert verify(DiskFiles(tmp_path)).next_lsn == 2
