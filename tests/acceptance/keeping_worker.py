"""Processes that end in the middle of it.

python -m tests.acceptance.keeping_worker dies STORE SCHEMA NOTES    a body that ends its process
python -m tests.acceptance.keeping_worker prunes FOLDER              forgets run after run, until it is killed
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from durable import Config, Durable, step, task
from durable.config import EngineSettings, FlushSettings, LogSettings, PostgresSettings, RetentionSettings
from durable.store import LocalStore, PostgresStore, Store

RECOVERIES_MAX = 3

NOTES = Path(os.environ.get("KEEPING_NOTES", os.devnull))


def note(line: str) -> None:
    """Say that a step's body runs, where no engine can forget it."""
    with NOTES.open("a") as file:
        file.write(f"{line}\n")


@step(name="keeping_before")
async def before() -> int:
    note("before")
    return 1


@step(name="keeping_kills")
async def kills() -> int:
    note("kills")
    if not NOTES.with_suffix(".mended").exists():
        os._exit(9)
    return 2


@task(name="keeping_killer", max_recoveries=RECOVERIES_MAX)
async def killer() -> int:
    return await before() + await kills()


def store_of(target: str, schema: str) -> Store:
    """The store that both sides mean."""
    if target.startswith("postgresql://"):
        return PostgresStore(target, PostgresSettings(schema=schema, lease_seconds=0.5, poll_seconds=0.1))
    return LocalStore(target)


async def die(target: str, schema: str) -> None:
    """Go on with the run until it has ended."""
    async with Durable(store_of(target, schema)) as app:
        handle = await app.start(killer.options(key="killer"))
        async for event in handle.events():
            print(event.name, flush=True)


def pruning(folder: str, batch_runs: int) -> Durable:
    """An application that forgets what is over, as fast as it may, in small batches, and flushes in between."""
    config = Config(
        log=LogSettings(segment_bytes=32 * 1024, low_water_bytes=0), flush=FlushSettings(interval_seconds=0.01),
        engine=EngineSettings(shutdown_grace_seconds=0.1),
        retention=RetentionSettings(closed_seconds=0.0, interval_seconds=0.01, batch_runs=batch_runs),
    )  # fmt: skip
    return Durable(folder, config=config)


@task(name="keeping_leaf")
async def leaf(number: int) -> int:
    return number


@task(name="keeping_family")
async def family(number: int) -> list[object]:
    return [leaf.child(number), leaf.child(number + 1)]


async def prune(folder: str) -> None:
    """Start families under keys that come round again and again, while those that are over are forgotten."""
    async with pruning(folder, 2) as app:
        print("open", flush=True)
        number = 0
        while True:
            await asyncio.gather(*(app.start(family.options(key=f"k{(number + n) % 20}"), 1) for n in range(5)))
            number += 5


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    asyncio.run({"dies": die, "prunes": prune}[mode](*rest))  # type: ignore[operator]
