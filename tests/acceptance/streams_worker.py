"""The processes that emit, and read what is emitted.

    python -m tests.acceptance.streams_worker FOLDER EMITTERS EVENTS     one life on the store in a folder
    python -m tests.acceptance.streams_worker '{"url": ...}'             an executor, see `executors_worker`

In a folder, each emitter is a run with a key, and each has a reader that appends 16 bytes to a file for each event that it saw: the `seq`,
and what it says. A reader goes on after the last one in its file, as a client does that came back.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from pathlib import Path
from typing import Any

from durable import Config, Context, Durable, Handle
from durable.config import EngineSettings, StreamSettings
from tests.acceptance import executors_worker

#: An event as a reader notes it: its `seq`, and its number, or -1 for one of the engine's own.
SEEN = struct.Struct("<qq")
#: Events until the emitter waits for its record.
BURST = 50
CONFIG = Config(
    engine=EngineSettings(max_recoveries=100, shutdown_grace_seconds=0.2), stream=StreamSettings(buffer_size=256)
)


@executors_worker.shape
async def telling(ctx: Context[Any], events: int) -> int:
    """Emits these numbers."""
    for number in range(events):
        if number % BURST == BURST - 1:
            await ctx.emit("tick", number)
        else:
            ctx.emit_nowait("tick", number)
    return events


def seen(path: Path) -> list[tuple[int, int]]:
    """What a reader noted."""
    return list(SEEN.iter_unpack(path.read_bytes())) if path.exists() else []


def after(path: Path) -> int:
    """Where a reader goes on."""
    noted = seen(path)
    return noted[-1][0] if noted else 0


async def read(handle: Handle[Any], path: Path) -> None:
    """Note all events, to the end of the run."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        async for event in handle.events(after(path)):
            os.write(file, SEEN.pack(event.seq, event.data if event.name == "tick" else -1))
    finally:
        os.close(file)


async def live(folder: Path, emitters: int, events: int) -> None:
    """One life, to the end of all runs."""
    async with Durable(folder / "store", config=CONFIG) as app:
        handles = [await app.start(telling.options(key=f"emitter{number}"), events) for number in range(emitters)]
        await asyncio.gather(
            *(read(handle, folder / f"seen{number}") for number, handle in enumerate(handles)),
            *(handle.wait() for handle in handles),
        )


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        executors_worker.main(sys.argv[1])
    else:
        asyncio.run(live(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
