"""Tasks for workers: the module that the tests give to `durable worker`.

What runs is noted in the file WORKING_NOTES, a line for each step that begins; a step `hold` lasts until the file WORKING_GO is there.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from durable import Context, Durable, sleep, step, task

STORE = os.environ.get("WORKING_STORE", "./.durable")
#: For `durable worker tests.cli.working:app`; on a database a client, as in a web application that leaves the work to workers.
app = Durable(STORE, execute="://" not in STORE)


def note(line: str) -> None:
    with Path(os.environ["WORKING_NOTES"]).open("a") as file:
        file.write(f"{line}\n")


@step(name="working_first")
async def first() -> int:
    note("first")
    return 1


@step(name="working_hold")
async def hold() -> int:
    note("hold")
    while not Path(os.environ["WORKING_GO"]).exists():
        await asyncio.sleep(0.01)
    return 2


@task(name="working_long")
async def long(ctx: Context[Any]) -> int:
    one = await first()
    await ctx.emit("begun")
    return one + await hold()


@task(name="working_nap")
async def nap(ctx: Context[Any], seconds: float) -> str:
    await ctx.emit("begun")
    await sleep(seconds)
    return "awake"


@task(name="working_wait")
async def wait(ctx: Context[Any]) -> str:
    return str(await ctx.wait_for("go"))


@task(name="working_parent")
async def parent() -> list[Any]:
    return [wait.child(), wait.child()]
