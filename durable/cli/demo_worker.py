"""The demo's worker process: opens the folder, starts the task under one key, and prints the run's events as lines of JSON.

Law: the same program runs before and after the kill; it does not know which of the two it is.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict

from durable.app import Durable
from durable.cli.demo_pipeline import label_of, measure_library
from durable.cli.terminal import to_json
from durable.tasks.handle import Event


def line_of(event: Event) -> dict[str, object]:
    """What the supervisor needs of an event."""
    line: dict[str, object] = {"seq": event.seq, "name": event.name}
    match event.name:
        case "step:completed":
            step, result = event.data["step"], event.data["result"]
            if step == "transform":
                line.update(label=label_of(step, result.batch), modules=result.modules)
            elif step == "extract":
                line.update(label=step, modules=sum(len(batch.paths) for batch in result), batches=len(result))
            else:
                line.update(label=step, modules=result.modules)
        case "completed":
            line["report"] = asdict(event.data["result"])
        case "failed" | "suspended":
            line["error"] = str(event.data.get("message", event.data))
    return line


async def main(folder: str, library: str) -> None:
    """Run the task to its end. The key makes the second start find the run of the first."""
    async with Durable(folder) as app:
        handle = await app.start(measure_library.options(key="demo"), library)
        async for event in handle.events(steps=True):
            print(to_json(line_of(event)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
