"""A process under load that is asked to end at a random moment: `app.serve()` in a program of its own.

    python -m tests.acceptance.shutdown_worker STORE SCHEMA SIDE

Everything that happens is a line in the side file, by a single appending write: `A key run` once a start was acknowledged, `X word` before
a step's body does anything, `D word` when it is done. It prints `ready` once it is open.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
from contextlib import suppress
from typing import Any

import durable
from durable import Config, Context, Durable, Limits, step
from durable.config import EngineSettings, PostgresSettings
from durable.errors import DurableError

SIDE = ""
GRACE = 0.3


def note(line: str) -> None:
    """Tell the side file."""
    side = os.open(SIDE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(side, f"{line}\n".encode())
    os.close(side)


def settings(schema: str) -> Any:
    """Of the applications, as their keyword arguments."""
    return {
        "config": Config(
            engine=EngineSettings(shutdown_grace_seconds=GRACE, cancel_grace_seconds=0.5, max_recoveries=100_000),
            postgres=PostgresSettings(schema=schema, lease_seconds=2.0, poll_seconds=0.3),
        ),
        "limits": Limits(max_running=20),
    }


@step(name="shutdown_act")
async def act(word: str, most: float) -> str:
    note(f"X {word}")
    await asyncio.sleep(most * random.random())
    note(f"D {word}")
    return word


@step(name="shutdown_block")
def block(word: str, seconds: float) -> str:
    note(f"X {word}")
    time.sleep(seconds)
    note(f"D {word}")
    return word


@durable.task(name="shutdown_stepping")
async def stepping(word: str) -> list[str]:
    return [await act(f"{word}.{number}", 0.05) for number in range(4)]


@durable.task(name="shutdown_gathering")
async def gathering(word: str) -> list[str]:
    both = await asyncio.gather(act(f"{word}.left", 0.01), block(f"{word}.right", 0.02))
    return [*both, await act(f"{word}.last", 0.0)]


@durable.task(name="shutdown_sleeping")
async def sleeping(word: str) -> list[str]:
    before = await act(f"{word}.before", 0.0)
    await durable.sleep(0.05)
    return [before, await act(f"{word}.after", 0.0)]


@durable.task(name="shutdown_child")
async def child(word: str) -> str:
    return await act(word, 0.01)


@durable.task(name="shutdown_family")
async def family(word: str) -> list[Any]:
    await act(f"{word}.own", 0.0)
    return [child.child(f"{word}.{number}") for number in range(3)]


@durable.task(name="shutdown_polite")
async def polite(ctx: Context, word: str) -> str:
    """Works until it is asked to stop, as a long body may."""
    async with asyncio.timeout(0.1):
        with suppress(TimeoutError):
            await ctx.shutting_down.wait()
    return await act(f"{word}.polite", 0.0)


PROGRAMS = (stepping, gathering, sleeping, family)


async def starting(app: Durable, life: str) -> None:
    """Start runs as fast as they are taken, until the application takes none."""
    for number in itertools.count():
        program = PROGRAMS[number % len(PROGRAMS)]
        key = f"{life}-{number}"
        try:
            handle = await program.options(key=key).start(key)
        except DurableError:
            return
        note(f"A {key} {handle.run_id}")
        await asyncio.sleep(random.choice((0.0, 0.002, 0.01)))


async def main(store: str, schema: str) -> None:
    """One life."""
    app = Durable(store, **settings(schema))
    load: list[asyncio.Task[None]] = []

    def ready() -> None:
        load.append(asyncio.create_task(starting(app, f"{os.getpid()}-{time.time_ns()}")))
        print("ready", flush=True)

    await app.serve(ready=ready, stopping=lambda: print("stopping", flush=True))
    await asyncio.wait(load)


if __name__ == "__main__":
    SIDE = sys.argv[3]
    asyncio.run(main(sys.argv[1], sys.argv[2]))
