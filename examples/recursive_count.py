"""Recursion: a task that returns itself as a child, and a coordinator that counts what comes back.

    python examples/recursive_count.py [LAST]    # LAST is 9 if not said: ten runs, one within the other

While the tenth run works, nine wait for it, and none of them is a coroutine: only records. A recursion that does not end is refused
at `engine.tree_depth_max` ancestors, a thousand if not said.
"""

import asyncio
import sys
import time

from durable import Child, Durable, task


async def count_them(children: list[Child[int]]) -> int:
    return 1 + sum(child.result for child in children)


@task(on_children_complete=count_them)
async def count_from(index: int, last: int) -> list[Child[int]]:
    await asyncio.sleep(0.001)
    return [count_from.child(index + 1, last)] if index < last else []


async def main(last: int) -> None:
    async with Durable() as app:
        begun = time.perf_counter()
        handle = await app.start(count_from, 0, last)
        print(f"count: {await handle}")
        print(f"in {1000 * (time.perf_counter() - begun):.0f} ms, with these runs, each the child of the one above:")
        run = handle
        while True:
            info = await run.info()
            print(f"  {info.run_id}  {info.status}")
            children = await run.children()
            if not children:
                break
            run = children[0]


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9))
