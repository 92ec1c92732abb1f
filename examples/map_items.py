"""Ten thousand items, some of them at once: `durable.map` with a limit, with progress, and with the rate at the end.

    python examples/map_items.py [ITEMS] [LIMIT]    # kill it half way and run it again: it goes on with what is left

For each number it counts how many steps the Collatz rule (halve it, or 3n + 1) needs to come to 1. The result of each is recorded
before the next item takes its place. A step suits work like this; pass a task instead of it, and each item is a run with retries, a
status and a record of its own.
"""

import asyncio
import sys
import time

import durable
from durable import Context, Durable, step, task


@step
async def collatz(number: int) -> int:
    steps = 0
    while number > 1:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        steps += 1
    return steps


@task
async def longest_collatz(ctx: Context, items: int, limit: int) -> tuple[int, int]:
    done = 0

    async def counted(number: int) -> int:
        nonlocal done
        steps = await collatz(number)
        done += 1
        if done % max(1, items // 10) == 0:
            await ctx.progress({"done": done})
        return steps

    steps = await durable.map(counted, range(1, items + 1), limit=limit)  # in the order of the items
    return max(zip(steps, range(1, items + 1), strict=True))


async def main(items: int, limit: int) -> None:
    async with Durable() as app:
        key = f"collatz-{items}-{limit}"
        known = await app.find(key)
        begun = time.perf_counter()
        handle = known or await app.start(longest_collatz.options(key=key), items, limit)
        async for event in handle.events():
            if event.name == "progress":
                print(f"{event.data['done']:>10,} of {items:,}", flush=True)
        steps, number = await handle
        took = time.perf_counter() - begun
        print(f"{number:,} needs most steps: {steps}")
        if known is None:
            print(f"{items:,} items in {took:.2f} s: {items / took:,.0f} a second, each durable")


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(main(*(arguments + [10_000, 100][len(arguments) :])))
