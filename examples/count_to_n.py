"""Recovery by hand: a task that looks at what it emitted before the crash, and goes on from there.

    python examples/count_to_n.py 20        # kill -9 it half way ...
    python examples/count_to_n.py 20        # ... and it goes on with the next number

Each number is an event that is durable when `emit` returns, so none is emitted twice. Reading `ctx.past()` or `ctx.previous_events`
tells the engine that the body takes care of recovery itself; a body made of steps needs none of this.
"""

import asyncio
import sys
from dataclasses import dataclass

from durable import Context, Durable, task


@dataclass
class Tick:
    n: int


@task
async def count_to(ctx: Context, n: int) -> int:
    last = max((tick.n for tick in ctx.past(Tick)), default=0)
    if last:
        print(f"recovered after {last}", flush=True)
    for number in range(last + 1, n + 1):
        await ctx.emit(Tick(number))
        print(number, flush=True)
        await asyncio.sleep(0.1)
    return n


async def main(n: int) -> None:
    async with Durable() as app:
        handle = await app.start(count_to.options(key=f"count-to-{n}"), n)
        print(f"counted to {await handle}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
