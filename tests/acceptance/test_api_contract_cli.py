"""The contract, section *Command line*: what each command shows and does, and its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from durable import Child, Context, Durable, RunFailedError, step, task
from tests.acceptance.contract_support import until_event

COMMAND = str(Path(sys.executable).with_name("durable"))


def cli(*arguments: object, cwd: Path | None = None, expect: int = 0) -> str:
    """Run a command; return what it printed."""
    words = [COMMAND, *(str(each) for each in arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=cwd, check=False)
    assert done.returncode == expect, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@step
async def contract_cli_echo(n: int) -> int:
    return n


@step
async def contract_cli_boom() -> None:
    raise ValueError("kaboom")


@task(name="contract_cli_good")
async def good(ctx: Context, n: int) -> int:
    await contract_cli_echo(n)
    await ctx.emit("tick", {"n": n})
    return n


@task(name="contract_cli_bad")
async def bad() -> None:
    await contract_cli_boom()


@task(name="contract_cli_waits")
async def waits(ctx: Context) -> Any:
    return await ctx.wait_for("go")


async def counted(children: list[Child[Any]]) -> int:
    return len(children)


@task(name="contract_cli_family", on_children_complete=counted)
async def family(ns: list[int]) -> list[Child[Any]]:
    return [good.child(n) for n in ns] + [waits.child()]


class Runs:
    """A folder with a run that completed, one that failed, and one that waits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        asyncio.run(self._fill())

    async def _fill(self) -> None:
        async with Durable(self.folder):
            completed, failed, waiting = (
                await good.options(key="the key").start(2),
                await bad.start(),
                await waits.start(),
            )
            await completed
            with pytest.raises(RunFailedError):
                await failed
            await until_event(waiting, "waiting")
        self.completed, self.failed, self.waiting = completed.run_id, failed.run_id, waiting.run_id


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / ".durable")


def test_looking(runs: Runs) -> None:
    """`runs`, `show` and `events`, in the default folder and with `--dir`, for people and as JSON."""
    listed = cli("runs", cwd=runs.folder.parent)
    assert all(run_id in listed for run_id in (runs.completed, runs.failed, runs.waiting))
    filtered = cli("runs", "--dir", runs.folder, "--status", "failed")
    assert runs.failed in filtered and runs.completed not in filtered
    assert len([json.loads(line) for line in cli("runs", "--dir", runs.folder, "--json").splitlines()]) == 3
    for name in (runs.completed, "the key"):
        shown = cli("show", name, "--dir", runs.folder)
        assert "contract_cli_good" in shown and "completed" in shown and "contract_cli_echo" in shown
    shown = cli("show", runs.failed, "--dir", runs.folder)
    assert "ValueError" in shown and "kaboom" in shown
    events = cli("events", runs.completed, "--dir", runs.folder, "--follow")
    assert "tick" in events and "completed" in events and "step:" not in events
    assert "step:completed" in cli("events", runs.completed, "--dir", runs.folder, "--steps")


def test_deciding(runs: Runs) -> None:
    """`stop`, `resume`, `cancel` and `retry` decide about a run; what its status does not allow is refused with 1."""
    folder = ("--dir", runs.folder)
    cli("resume", runs.waiting, *folder, expect=1)
    cli("stop", runs.waiting, *folder, "--reason", "later")
    assert "suspended: later" in cli("show", runs.waiting, *folder)
    cli("resume", runs.waiting, *folder)
    cli("cancel", runs.waiting, *folder, "--reason", "enough")
    assert "cancelled: enough" in cli("show", runs.waiting, *folder)
    cli("retry", runs.completed, *folder, expect=1)
    cli("cancel", runs.completed, *folder, expect=1)
    cli("retry", runs.failed, *folder)
    assert "ready" in cli("show", runs.failed, *folder)


def test_families(tmp_path: Path) -> None:
    """`show` tells of children and coordinator; `cancel` ends the children too, `retry` is of the whole family."""

    async def fill() -> str:
        async with Durable(tmp_path):
            handle = await family.start([1, 2])
            async with asyncio.timeout(20):
                while len(await handle.children()) < 3 or "completed" not in [
                    await c.status() for c in await handle.children()
                ]:
                    await asyncio.sleep(0.005)
            return handle.run_id

    run_id = asyncio.run(fill())
    folder = ("--dir", tmp_path)
    shown = cli("show", run_id, *folder)
    assert "waiting_for_children" in shown and "3 returned" in shown and shown.count("contract_cli_good") >= 2
    assert "a function, which begins when" in shown
    waiting = json.loads(cli("show", run_id, *folder, "--json"))["children"][2]["run_id"]
    assert "children_failed" in cli("cancel", waiting, *folder)
    assert "children_failed" in cli("runs", *folder, "--status", "children_failed")
    assert "waiting_for_children" in cli("retry", run_id, *folder)
    assert json.loads(cli("show", waiting, *folder, "--json"))["status"] == "ready"
    assert "unfinished child" in cli("cancel", run_id, *folder)
    assert json.loads(cli("show", waiting, *folder, "--json"))["status"] == "cancelled"


def test_exit_codes(runs: Runs) -> None:
    """1 where the thing asked about failed, 2 for wrong use; looking creates nothing."""
    for command in ("show", "events", "cancel", "stop", "resume", "retry"):
        assert "nope" in cli(command, "nope", "--dir", runs.folder, expect=1)
        cli(command, expect=2)
    cli("runs", "--dir", runs.folder, "--status", "bogus", expect=2)
    cli("bogus", expect=2)
    nothing = runs.folder.with_name("nothing")
    cli("runs", "--dir", nothing, expect=1)
    assert not nothing.exists()
    assert "usage" in cli("--help")


def test_the_log(runs: Runs) -> None:
    """`verify` and `dump` read it; a damaged one is told with 1 and mended by `repair`."""
    cli("log", "verify", runs.folder)
    assert "contract_cli_good" in cli("log", "dump", runs.folder)
    cli("log", "repair", runs.folder)
    [segment] = (runs.folder / "log").glob("*.log")
    damaged = bytearray(segment.read_bytes())
    place = damaged.index(b"contract_cli_bad")
    damaged[place] ^= 0xFF
    segment.write_bytes(damaged)
    cli("log", "verify", runs.folder, expect=1)
    cli("log", "repair", runs.folder, expect=1)
    cli("log", "repair", runs.folder, "--accept-loss")
    cli("log", "verify", runs.folder)
    cli("log", "verify", runs.folder.with_name("nothing"), expect=1)


async def test_beside_a_process_that_has_the_folder_open(tmp_path: Path) -> None:
    """Reading works and `--follow` sees the end come; writing is refused and names the process."""
    async with Durable(tmp_path):
        handle = await waits.start()
        await until_event(handle, "waiting")
        assert "running" in await asyncio.to_thread(cli, "show", handle.run_id, "--dir", tmp_path)
        assert str(os.getpid()) in await asyncio.to_thread(cli, "cancel", handle.run_id, "--dir", tmp_path, expect=1)
        words = [COMMAND, "events", handle.run_id, "--dir", str(tmp_path), "--follow"]
        follower = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        assert follower.stdout is not None
        seen = b""
        while b"waiting" not in seen:
            seen += await follower.stdout.readline()
        await handle.send("go", 1)
        await handle
        rest, _ = await asyncio.wait_for(follower.communicate(), 20)
        assert b"completed" in rest and follower.returncode == 0


def test_demo(tmp_path: Path) -> None:
    """It kills a worker and shows that no step ran twice."""
    shown = cli("demo", cwd=tmp_path)
    assert "kill -9" in shown and "0  steps run twice" in shown
