"""Stopping: how the bodies of a closing application come to their end.

Law: a body that only waits is stopped at once, since nothing is lost by it; another has the grace, then it is cancelled, and
after `cancel_grace_seconds` left alone.
"""

from __future__ import annotations

import asyncio

from durable.config import EngineSettings
from durable.engine.table import Table


async def stop_bodies(table: Table, settings: EngineSettings, grace: float) -> None:
    """Wait for the bodies on the table, stop those that only wait, and after the grace all of them."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace
    while True:
        running = [entry for entry in table if entry.task is not None]
        late = loop.time() >= deadline
        for entry in running:
            if entry.execution is not None and (late or entry.execution.idle):
                entry.execution.interrupt()
            elif late and entry.task is not None:
                entry.task.cancel()
        tasks = [entry.task for entry in running if entry.task is not None]
        if not tasks:
            return
        await asyncio.wait(tasks, timeout=settings.cancel_grace_seconds if late else 0.02)
        if late:
            return
