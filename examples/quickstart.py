"""Two steps and a task: the shortest program that survives a crash.

    python examples/quickstart.py

Run it again, or kill it between the two steps and run it again: what was finished is not done twice. `durable runs` lists the runs.
"""

import asyncio

from durable import Durable, step, task


@step
async def fetch(name: str) -> str:
    print(f"fetching {name}")
    return f"Hello, {name}!"


@step
async def store(text: str) -> int:
    print(f"storing {text!r}")
    return len(text)


@task
async def greet(name: str) -> int:
    text = await fetch(name)  # recorded: after a crash the recorded result comes back, the body is not run again
    return await store(text)


async def main() -> None:
    async with Durable() as app:  # the folder ./.durable; whatever had not ended goes on now
        handle = await app.start(greet.options(key="greet-world"), "world")
        print(f"{await handle} characters stored by run {handle.run_id}")


if __name__ == "__main__":
    asyncio.run(main())
